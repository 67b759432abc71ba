//! An IDE disk and a CD-ROM drive under Debian's own driver (ata_piix): by DMA, and by PIO as the kernel is told to.
//!
//! Kernel and modules are fetched once through apt (`tests/guests/manifest.toml`): `cargo test --release --test ide --
//! --ignored`. MYNAH_GUESTS=cached passes over what is not there.
mod common;
use common::{guest, has_qemu, ramdisk, run, run_qemu};
use mynah_guests::cpio::Archive;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// In the order in which they need each other.
const MODULES: [&str; 7] = ["scsi_common", "scsi_mod", "libata", "ata_piix", "cdrom", "sr_mod", "sd_mod"];

/// Bytes of the disk, no multiple of what anything asks for at once.
const DISK: usize = (20 << 20) + 512 * 7;
const DISC: usize = 3 << 20;

const WORK: &str = r#"
for m in scsi_common scsi_mod; do insmod /$m.ko; done
insmod /libata.ko $(grep -o 'libata[.][^ ]*' /proc/cmdline | cut -d. -f2-)
for m in ata_piix cdrom sr_mod sd_mod; do insmod /$m.ko; done
i=0; while [ ! -b /dev/sda -o ! -b /dev/sr0 ] && [ $i -lt 60 ]; do sleep 1; i=$((i + 1)); done
echo "KEY $(dmesg | grep -o 'ata1.00: ATA-7: .*')"
echo "KEY $(dmesg | grep -o 'ata1.00: configured for .*')"
echo "KEY $(dmesg | grep -o 'ata2.00: configured for .*')"
echo "KEY $(dmesg | grep -o 'ata1.00: [0-9]* sectors.*')"
echo "KEY $(dmesg | grep -o 'ata2.00: ATAPI: .*')"
echo "KEY $(dmesg | grep -o 'sr0. scsi3-mmc.*')"
echo "KEY disk $(md5sum < /dev/sda)"
echo "KEY disc $(md5sum < /dev/sr0)"
i=0; while [ $i -lt 5000 ]; do echo "line $i of what is written"; i=$((i + 1)); done > /tmp/p
n=$(wc -c < /tmp/p)
dd if=/tmp/p of=/dev/sda bs=64k seek=100 conv=fsync 2> /dev/null
echo 3 > /proc/sys/vm/drop_caches
echo "KEY back $(dd if=/dev/sda bs=64k skip=100 2> /dev/null | head -c $n | md5sum)"
dd if=/tmp/p of=/dev/sda bs=512 seek=30001 count=33 oflag=direct 2> /dev/null
echo "KEY all $(md5sum < /dev/sda)"
echo "KEY faults $(dmesg | grep -c -i -E 'ata[0-9].*(exception|error|failed|timeout|frozen)|I/O error')"
dmesg | grep -i -E 'ata[0-9].*(exception|error|failed|timeout|frozen)|I/O error'
poweroff -f
"#;

/// Bytes that are nowhere alike.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut n = seed;
    let mut next = || {
        n = n.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (n >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

struct Files {
    initrd: PathBuf,
    disk: PathBuf,
    disc: PathBuf,
}

impl Files {
    fn new(tag: &str) -> Option<Self> {
        let initrd = ramdisk(tag, "busybox", WORK)?;
        let mut modules = Archive::new();
        for name in MODULES {
            let module = std::fs::read(guest(&format!("cloud-{name}"))?).unwrap();
            modules.file(&format!("{name}.ko"), 0o644, &module);
        }
        // The kernel unpacks one archive behind the other.
        let both = [std::fs::read(&initrd).unwrap(), modules.finish()].concat();
        std::fs::write(&initrd, both).unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = std::env::temp_dir().join(format!("mynah-ide-{}-{tag}-{name}", std::process::id()));
            std::fs::write(&path, bytes).unwrap();
            path
        };
        Some(Self { initrd, disk: file("disk", &pattern(DISK, 1)), disc: file("disc", &pattern(DISC, 2)) })
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in [&self.initrd, &self.disk, &self.disc] {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the temporary folder's name is text")
}

/// What the guest says, and what is on the disk then.
fn boot(tag: &str, accel: Option<&str>, more: &str) -> Option<(Vec<String>, Vec<u8>)> {
    let (kernel, files) = (guest("cloud")?, Files::new(tag)?);
    let drive = format!("file={},if=ide,format=raw", text(&files.disk));
    let append = format!("console=ttyS0 panic=-1 {more}");
    let mut args: Vec<&str> = "-m 256 -nographic -no-reboot".split(' ').collect();
    args.extend(["-kernel", text(&kernel), "-initrd", text(&files.initrd), "-append", &append]);
    args.extend(["-drive", &drive, "-cdrom", text(&files.disc)]);
    let limit = Duration::from_secs(600);
    let boot = match accel {
        Some(accel) => run(&[&args[..], &["-accel", accel]].concat(), limit, |_| None),
        None => run_qemu(&args, limit, |_| None),
    };
    assert_eq!(boot.code, Some(0), "{}", boot.console);
    let said: Vec<String> =
        boot.console.lines().filter_map(|l| Some(l.split_once("KEY ")?.1.trim_end().to_owned())).collect();
    assert_eq!(said.last().map(String::as_str), Some("faults 0"), "{}", boot.console);
    Some((said, std::fs::read(&files.disk).unwrap()))
}

/// The guest finds what QEMU's guest finds, reads what is there, and what it has written is in the image.
fn is_as_under_qemu(tag: &str, more: &str) {
    for accel in ["interp", "jit"] {
        let Some((said, disk)) = boot(&format!("{tag}-{accel}"), Some(accel), more) else { return };
        let lines: String = (0..5000).map(|i| format!("line {i} of what is written\n")).collect();
        assert!(disk[100 << 16..].starts_with(lines.as_bytes()));
        assert_eq!(disk[30_001 * 512..][..33 * 512], lines.as_bytes()[..33 * 512]);
        let mode = if more.is_empty() { "UDMA/100" } else { "PIO4" };
        assert_eq!(
            said.iter().filter(|l| l.ends_with(&format!("configured for {mode}"))).count(),
            2,
            "{said:?}"
        );
        if has_qemu() {
            let (qemus, qemus_disk) = boot(&format!("{tag}-qemu"), None, more).expect("the same guest");
            assert_eq!(said, qemus);
            assert!(disk == qemus_disk, "what is on the disk");
        }
    }
}

#[test]
#[ignore = "boots a guest"]
fn a_linux_guest_works_by_dma() {
    is_as_under_qemu("dma", "");
}

#[test]
#[ignore = "boots a guest"]
fn a_linux_guest_works_by_pio() {
    is_as_under_qemu("pio", "libata.dma=0");
}
