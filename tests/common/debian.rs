//! Debian as a disk: a small system made of its packages by mmdebstrap, on a disk with an MBR and GRUB, as grub-pc
//! makes one, or with a GPT, GRUB and systemd-boot for UEFI.
//!
//! The root's file system is made once and kept in the guests' cache, under a key of its recipe; disks are put together
//! around copies of it. Nothing is mounted.
use crate::disk::{ESP, FIRST, LINUX, Partition, SECTOR, gpt};
use crate::tools::{FAT_TOOLS, text, tool, tools};
use mynah_guests::Store;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a system is made of.
struct Recipe {
    /// What its folder's name begins with.
    prefix: &'static str,
    /// What mmdebstrap is told, but for what the packages leave out.
    options: &'static [&'static str],
    /// Folders of modules that are left out, beside those of [`NO_MODULES`].
    no_modules: &'static str,
    /// Sectors of the root's partition.
    root: u64,
}

/// One to try disks with.
const DISKS: Recipe = Recipe {
    prefix: "debian-",
    options: &[
        "--variant=minbase",
        // dbus: logind, which acts upon the power button, wants it.
        "--include=linux-image-amd64,systemd-sysv,udev,dbus,initramfs-tools,e2fsprogs,nvme-cli,hdparm,efibootmgr",
        "--customize-hook=chroot \"$1\" passwd -d root",
        "--customize-hook=echo debian >\"$1/etc/hostname\"",
        "--customize-hook=echo 'LABEL=root / ext4 errors=remount-ro 0 1' >\"$1/etc/fstab\"",
        "bookworm",
    ],
    no_modules: "drivers/net/ethernet net",
    root: ROOT,
};

/// One to try networks with: its first card is `eth0` (under `net.ifnames=0`) and gets an address by DHCP.
const NETWORKS: Recipe = Recipe {
    prefix: "networks-",
    options: &[
        "--variant=minbase",
        "--include=linux-image-amd64,systemd-sysv,udev,dbus,initramfs-tools,e2fsprogs,ifupdown,isc-dhcp-client,\
         iproute2,iputils-ping,openssh-server,curl,iperf3,bind9-dnsutils,python3-minimal,ethtool,smbclient",
        "--customize-hook=chroot \"$1\" passwd -d root",
        "--customize-hook=echo debian >\"$1/etc/hostname\"",
        "--customize-hook=echo 'LABEL=root / ext4 errors=remount-ro 0 1' >\"$1/etc/fstab\"",
        "--customize-hook=printf 'auto lo eth0\\niface lo inet loopback\\niface eth0 inet dhcp\\n' \
         >\"$1/etc/network/interfaces\"",
        "bookworm",
    ],
    no_modules: "drivers/net/ethernet/mellanox drivers/net/ethernet/chelsio drivers/net/ethernet/broadcom \
                 drivers/net/ethernet/qlogic drivers/net/ethernet/netronome drivers/net/ethernet/marvell \
                 drivers/net/ethernet/cavium drivers/net/ethernet/emulex drivers/net/ethernet/brocade",
    root: 1024 * 2048,
};

/// What the packages leave out: documents, and modules for what no PC here has.
const WITHOUT: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/i18n/*",
    "/usr/lib/x86_64-linux-gnu/gconv/*",
];
const NO_MODULES: &str = "drivers/gpu/drm/amd drivers/gpu/drm/i915 drivers/gpu/drm/nouveau drivers/gpu/drm/radeon \
    drivers/media drivers/infiniband drivers/staging drivers/iio drivers/isdn drivers/comedi drivers/net/wireless \
    drivers/bluetooth drivers/hwmon drivers/mtd drivers/target drivers/md sound fs/xfs fs/btrfs \
    fs/ocfs2 fs/nfs fs/nfsd fs/cifs fs/ceph fs/f2fs fs/gfs2 fs/jfs fs/reiserfs fs/afs fs/nilfs2 fs/udf fs/ubifs \
    fs/ksmbd fs/smbfs_common fs/dlm fs/lockd";

/// The archive of mmdebstrap's (`$1`) becomes a file system (`$2`) of so many KiB (`$4`), on which GRUB finds its
/// modules and its menu (`$3`); kernel and initial RAM disk are copied beside it.
const PACK: &str = r#"
set -e
root="$1.d"; mkdir "$root"; tar --numeric-owner -xf "$1" -C "$root"; rm "$1"
mkdir -p "$root/boot/grub/i386-pc"
cp /usr/lib/grub/i386-pc/*.mod /usr/lib/grub/i386-pc/*.lst "$root/boot/grub/i386-pc"
cp "$3" "$root/boot/grub/grub.cfg"
to=$(dirname "$2")
cp -L "$root/vmlinuz" "$to/vmlinuz"; cp -L "$root/initrd.img" "$to/initrd.img"
PATH="$PATH:/usr/sbin:/sbin" mke2fs -q -F -t ext4 -L root -d "$root" "$2" "$4K"
rm -rf "$root"
"#;

/// GRUB's menu.
const MENU: &str = "serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
set timeout=1
menuentry Debian {
 search --label --set=root root
 linux /vmlinuz root=LABEL=root ro console=tty0 console=ttyS0 systemd.default_device_timeout_sec=900
 initrd /initrd.img
}
";

/// The menu of GRUB for UEFI, which leads to the other.
const EFI_MENU: &str =
    "search --label --set=root root\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n";

/// systemd-boot's entry.
const ENTRY: &str = "title Debian\nlinux /vmlinuz\ninitrd /initrd.img\n\
                     options root=LABEL=root ro console=tty0 console=ttyS0 \
                     systemd.default_device_timeout_sec=900\n";

/// Sectors of the root's partition, and of the EFI system partition.
const ROOT: u64 = 768 * 2048;
const EFI: u64 = 96 * 2048;

/// A system that disks are made of.
pub struct System {
    folder: PathBuf,
    recipe: &'static Recipe,
}

impl System {
    /// The one that is kept, or one that is made now; `None` if what makes it is not there, or, with
    /// MYNAH_GUESTS=cached, if none is kept.
    pub fn get() -> Option<Self> {
        Self::of(&DISKS)
    }

    /// The same, of one with what tries networks.
    pub fn with_network() -> Option<Self> {
        Self::of(&NETWORKS)
    }

    fn of(recipe: &'static Recipe) -> Option<Self> {
        let exclude = |path: String| format!("--dpkgopt=path-exclude={path}");
        let mut options: Vec<String> = WITHOUT.iter().map(|&path| exclude(path.to_owned())).collect();
        let modules = NO_MODULES.split_whitespace().chain(recipe.no_modules.split_whitespace());
        options.extend(modules.map(|name| exclude(format!("/lib/modules/*/kernel/{name}/*"))));
        options.extend(recipe.options.iter().map(|&option| option.to_owned()));
        let key = blake3::hash(format!("{options:?}{PACK}{MENU}{}", recipe.root).as_bytes()).to_hex();
        let store = Store::open().unwrap();
        let system = Self { folder: store.folder().join(format!("{}{}", recipe.prefix, &key[..16])), recipe };
        if system.folder.exists() {
            return Some(system);
        }
        if std::env::var("MYNAH_GUESTS").is_ok_and(|v| v == "cached") {
            eprintln!("SKIPPED: Debian's disk is not in the cache ({})", system.folder.display());
            return None;
        }
        system.make(&options)?;
        // What other recipes have made is wanted no more.
        for old in fs::read_dir(store.folder()).unwrap().flatten() {
            if old.file_name().to_string_lossy().starts_with(recipe.prefix) && old.path() != system.folder {
                let _ = fs::remove_dir_all(old.path());
            }
        }
        Some(system)
    }

    /// Makes it: in a folder of its own, which gets its name when it is whole.
    fn make(&self, options: &[String]) -> Option<()> {
        let needed = [
            ("mmdebstrap", "mmdebstrap"),
            ("mke2fs", "e2fsprogs"),
            ("/usr/lib/grub/i386-pc/boot.img", "grub-pc-bin"),
        ];
        if !tools(&needed) {
            return None;
        }
        if tool("id", &["-u"]).trim() != "0" {
            eprintln!("SKIPPED: Debian's disk is made by root alone: others cannot say whose its files are");
            return None;
        }
        let scratch =
            self.folder.with_file_name(format!(".{}new-{}", self.recipe.prefix, std::process::id()));
        let _ = fs::remove_dir_all(&scratch);
        fs::create_dir_all(&scratch).unwrap();
        let (tar, root, menu) =
            (scratch.join("root.tar"), scratch.join("root.ext4"), scratch.join("grub.cfg"));
        fs::write(&menu, MENU).unwrap();
        eprintln!("making a disk of Debian's packages, which takes minutes");
        let mut made = Command::new("mmdebstrap");
        let made = made.args(options).arg(&tar).stdin(Stdio::null()).output().unwrap();
        assert!(made.status.success(), "mmdebstrap: {}", String::from_utf8_lossy(&made.stderr));
        tool(
            "sh",
            &["-c", PACK, "sh", text(&tar), text(&root), text(&menu), &(self.recipe.root / 2).to_string()],
        );
        fs::remove_file(menu).unwrap();
        // Another process may have been faster.
        if fs::rename(&scratch, &self.folder).is_err() {
            fs::remove_dir_all(&scratch).unwrap();
        }
        Some(())
    }

    /// Its kernel, initial RAM disk and root's file system, to be booted as they are.
    pub fn parts(&self) -> [PathBuf; 3] {
        ["vmlinuz", "initrd.img", "root.ext4"].map(|name| self.folder.join(name))
    }

    /// A disk with an MBR, GRUB behind it, and a partition, of which it is told where it begins; `None` if a tool for
    /// it is not there.
    pub fn with_mbr(&self, to: &Path) -> Option<u64> {
        const GRUB: &str = "/usr/lib/grub/i386-pc";
        let needed = [("grub-mkimage", "grub-common"), ("/usr/lib/grub/i386-pc/boot.img", "grub-pc-bin")];
        if !tools(&needed) {
            return None;
        }
        let core = to.with_extension("core");
        // What grub-install gives it: how to come to the modules, on the disk that it was read from.
        let args = ["-O", "i386-pc", "-d", GRUB, "-p", "(,msdos1)/boot/grub", "-o", text(&core)];
        tool("grub-mkimage", &[&args[..], &["biosdisk", "part_msdos", "ext2"]].concat());
        let (mut boot, mut image) = (fs::read(format!("{GRUB}/boot.img")).unwrap(), fs::read(&core).unwrap());
        fs::remove_file(core).unwrap();
        image.resize(image.len().next_multiple_of(SECTOR), 0);
        let sectors = image.len() / SECTOR;
        assert!(sectors < FIRST as usize);
        // As grub-bios-setup does: the boot sector reads sector 1 of the disk that it is on, and that the rest, from
        // sector 2 on, to 8200h.
        boot[0x5c..0x64].copy_from_slice(&1_u64.to_le_bytes());
        boot[0x66..0x68].copy_from_slice(&[0x90, 0x90]);
        image[0x1f4..0x1fc].copy_from_slice(&2_u64.to_le_bytes());
        image[0x1fc..0x1fe].copy_from_slice(&(sectors as u16 - 1).to_le_bytes());
        image[0x1fe..0x200].copy_from_slice(&0x820_u16.to_le_bytes());
        boot[0x1b8..0x1be].copy_from_slice(b"MYNH\0\0");
        boot[0x1be..0x1fe].fill(0);
        boot[0x1be..0x1c6].copy_from_slice(&[0x80, 32, 33, 0, 0x83, 254, 255, 255]);
        boot[0x1c6..0x1ca].copy_from_slice(&(FIRST as u32).to_le_bytes());
        boot[0x1ca..0x1ce].copy_from_slice(&(self.recipe.root as u32).to_le_bytes());
        boot[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        self.put_root(to, FIRST, FIRST + self.recipe.root);
        put(to, 0, &[boot, image].concat());
        Some(FIRST * SECTOR as u64)
    }

    /// A disk with a GPT, an EFI system partition on which GRUB is what is booted by itself and systemd-boot may be
    /// chosen, and a partition, of which it is told where it begins; `None` if a tool for it is not there.
    pub fn with_gpt(&self, to: &Path, grub: &Path, systemd: &Path) -> Option<u64> {
        if !tools(FAT_TOOLS) {
            return None;
        }
        let (root, sectors) = (FIRST + EFI, FIRST + EFI + self.recipe.root + 2048);
        let [begin, end] = gpt(
            sectors,
            &[
                Partition { kind: ESP, first: FIRST, sectors: EFI },
                Partition { kind: LINUX, first: root, sectors: self.recipe.root },
            ],
        );
        self.put_root(to, root, sectors);
        put(to, 0, &begin);
        put(to, sectors * SECTOR as u64 - end.len() as u64, &end);
        let volume = format!("{}@@{}", text(to), FIRST * SECTOR as u64);
        let (len, hidden) = (EFI.to_string(), FIRST.to_string());
        tool("mformat", &["-i", &volume, "-T", &len, "-h", "255", "-s", "63", "-H", &hidden, "::"]);
        let folders =
            ["::EFI", "::EFI/BOOT", "::EFI/debian", "::EFI/systemd", "::loader", "::loader/entries"];
        tool("mmd", &[&["-i", &volume], &folders[..]].concat());
        let menu = to.with_extension("menu");
        let copy = |from: &Path, to: &str| tool("mcopy", &["-i", &volume, text(from), to]);
        for (contents, to) in [
            (EFI_MENU, "::EFI/debian/grub.cfg"),
            (ENTRY, "::loader/entries/debian.conf"),
            ("timeout 2\n", "::loader/loader.conf"),
        ] {
            fs::write(&menu, contents).unwrap();
            copy(&menu, to);
        }
        fs::remove_file(&menu).unwrap();
        copy(grub, "::EFI/BOOT/BOOTX64.EFI");
        copy(systemd, "::EFI/systemd/systemd-bootx64.efi");
        copy(&self.folder.join("vmlinuz"), "::vmlinuz");
        copy(&self.folder.join("initrd.img"), "::initrd.img");
        Some(root * SECTOR as u64)
    }

    /// A disk of so many sectors with the root's file system at one of them.
    fn put_root(&self, to: &Path, at: u64, sectors: u64) {
        let from = format!("if={}", text(&self.folder.join("root.ext4")));
        File::create(to).unwrap().set_len(sectors * SECTOR as u64).unwrap();
        let (to, seek) = (format!("of={}", text(to)), format!("seek={}", at / 2048));
        tool("dd", &[&from, &to, "bs=1M", &seek, "conv=notrunc,sparse", "status=none"]);
    }
}

/// Writes bytes into a file.
fn put(file: &Path, at: u64, bytes: &[u8]) {
    let mut file = File::options().write(true).open(file).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}
