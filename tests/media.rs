//! Boot media made here from Debian's packages, as people make them, booted by the built-in BIOS and by SeaBIOS on a
//! screen with a keyboard: Memtest86+, GRUB's rescue floppy and USB stick, isolinux, syslinux and memdisk, Debian's
//! installer.
//!
//! Packages are fetched once through apt (`tests/guests/manifest.toml`):
//! `cargo test --release --test media -- --ignored`. MYNAH_GUESTS=cached passes over what is
//! not there; a tool that is not is said, and passed over. MYNAH_MEDIA=FOLDER keeps pictures.
#![cfg(unix)]
#[allow(dead_code, reason = "it drives machines by their monitors")]
mod common;
mod kit;
use common::{guest, ramdisk};
use kit::typed::Machine;
use kit::{Client, Folder};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The built-in BIOS, and SeaBIOS where it is installed.
fn firmware() -> Vec<&'static [&'static str]> {
    let mut all: Vec<&[&str]> = vec![&[]];
    if Path::new("/usr/share/seabios/vgabios-stdvga.bin").exists() {
        all.push(&["-bios", "bios-256k.bin"]);
    } else {
        eprintln!("SKIPPED by SeaBIOS: it is not installed (Debian's package 'seabios')");
    }
    all
}

/// Runs the test on each board with each firmware; it is given the options for them.
fn on_boards(name: &str, boards: &[&str], test: impl Fn(&[&str])) {
    for board in boards {
        for bios in firmware() {
            let start = Instant::now();
            eprintln!("{name} on {board} {bios:?}");
            test(&[&["-M", board], bios].concat());
            eprintln!("{name} on {board} {bios:?}: {:?}", start.elapsed());
        }
    }
}

const BOTH: &[&str] = &["pc", "q35"];

/// A machine with a screen and a keyboard, whose serial console is read too.
struct Pc {
    machine: Machine,
    monitor: Client<UnixStream>,
    folder: Folder,
}

impl Pc {
    fn start(board: &[&str], args: &[&str]) -> Self {
        let folder = Folder::new("media");
        let socket = folder.path("monitor");
        let monitor = format!("unix:{socket},server=on,wait=off");
        let own = ["-display", "none", "-serial", "stdio", "-monitor", &monitor, "-no-reboot", "-snapshot"];
        let machine = Machine::start(&[board, &own, args].concat());
        Pc { machine, monitor: Client::at(&socket), folder }
    }

    fn text(&mut self) -> String {
        self.monitor.ask("screentext")
    }

    /// Waits until the text screen has this on it.
    fn screen(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            let screen = self.text();
            if screen.contains(text) {
                return screen;
            }
            assert!(start.elapsed() < LIMIT, "no '{text}' on the screen after {LIMIT:?}:\n{screen}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Presses keys by their names, blanks between them.
    fn keys(&mut self, keys: &str) {
        for key in keys.split(' ') {
            assert_eq!(self.monitor.ask(&format!("sendkey {key}")), "", "{key}");
            // As a hand would: a menu draws itself anew between two.
            std::thread::sleep(Duration::from_millis(150));
        }
    }

    /// Presses a key by which the guest switches its machine off: the monitor may be gone before it answers.
    fn last_key(mut self, key: &str) {
        self.monitor.send(&format!("sendkey {key}"));
        self.off();
    }

    /// The picture's width and height, and how many colours it has.
    fn picture(&mut self) -> (usize, usize, usize) {
        let file = self.folder.path("screen.ppm");
        assert_eq!(self.monitor.ask(&format!("screendump {file}")), "");
        let bytes = std::fs::read(&file).unwrap();
        // P6, width, height and 255, then three bytes of each pixel.
        let header: Vec<&[u8]> = bytes.splitn(4, u8::is_ascii_whitespace).collect();
        let number = |n: usize| std::str::from_utf8(header[n]).unwrap().parse::<usize>().unwrap();
        let (width, height) = (number(1), number(2));
        let pixels = &bytes[bytes.len() - 3 * width * height..];
        let colours: std::collections::HashSet<&[u8]> = pixels.chunks_exact(3).collect();
        (width, height, colours.len())
    }

    /// Waits until the screen is of this size and has some colours.
    fn graphics(&mut self, size: (usize, usize), colours: usize) {
        let start = Instant::now();
        loop {
            let (width, height, seen) = self.picture();
            if (width, height) == size && seen >= colours {
                return;
            }
            assert!(start.elapsed() < LIMIT, "{width} x {height} with {seen} colours after {LIMIT:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Keeps the picture for people to look at, if that is wanted.
    fn keep(&mut self, name: &str) {
        if let Ok(folder) = std::env::var("MYNAH_MEDIA") {
            assert_eq!(self.monitor.ask(&format!("screendump {folder}/{name}.png")), "");
        }
    }

    /// The guest has switched it off.
    fn off(self) {
        assert_eq!(self.machine.ends(), Some(0));
    }
}

/// How long a guest may take for what is waited for, on a slow host too.
const LIMIT: Duration = Duration::from_secs(180);

/// Whether these programs are there; else it is said which is not.
fn tools(names: &[(&str, &str)]) -> bool {
    names.iter().all(|(name, package)| {
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .chain([PathBuf::from("/usr/sbin")])
            .any(|folder| folder.join(name).exists());
        if !found {
            eprintln!("SKIPPED: {name} is not installed (Debian's package '{package}')");
        }
        found
    })
}

/// Runs a tool, which must do what it is asked to.
fn tool(name: &str, args: &[&str]) {
    let out = Command::new(name).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(out.status.success(), "{name} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Puts the files of a guest that is an archive into a folder; `None` if it is not there.
fn unpack(name: &str, folder: &Path) -> Option<()> {
    let archive = std::fs::read(guest(name)?).unwrap();
    let mut at = 0;
    // The new ASCII form: a header of 110 characters, in it fields of 8 digits; the file's length is the 7th, its
    // name's the 12th.
    loop {
        let number = |n: usize| {
            let digits = std::str::from_utf8(&archive[at + 6 + 8 * n..][..8]).unwrap();
            usize::from_str_radix(digits, 16).unwrap()
        };
        let (len, name_len) = (number(6), number(11));
        let name = std::str::from_utf8(&archive[at + 110..][..name_len - 1]).unwrap();
        let data = (at + 110 + name_len).next_multiple_of(4);
        match name.rsplit_once('/') {
            _ if name == "TRAILER!!!" => return Some(()),
            Some((_, file)) => std::fs::write(folder.join(file), &archive[data..][..len]).unwrap(),
            None => {}
        }
        at = (data + len).next_multiple_of(4);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is text")
}

#[test]
#[ignore = "boots media made from Debian's packages"]
fn memtest_tests_the_memory_from_a_cd_a_floppy_and_as_a_kernel() {
    let (Some(cd), Some(kernel)) = (guest("memtest-cd"), guest("memtest")) else { return };
    let folder = Folder::new("media-memtest");
    let mut floppy = std::fs::read(&kernel).unwrap();
    floppy.resize(1440 << 10, 0);
    let floppy = folder.file("floppy", &floppy);
    for (name, args) in
        [("cd", ["-cdrom", text(&cd)]), ("floppy", ["-fda", &floppy]), ("kernel", ["-kernel", text(&kernel)])]
    {
        on_boards(&format!("memtest {name}"), BOTH, |board| {
            let mut pc = Pc::start(board, &[&args[..], &["-m", "24"]].concat());
            pc.screen("<Enter> to start testing");
            pc.keys("ret");
            pc.screen("Status: Testing");
            // It tests, and has found all of the memory but what the firmware keeps.
            let screen = pc.screen("Test #");
            assert!(screen.contains("Memory  :   2"), "{screen}");
            assert!(screen.lines().any(|l| l.trim_end().ends_with("Errors: 0")), "{screen}");
        });
    }
}

#[test]
#[ignore = "boots media made from Debian's packages"]
fn grub_s_rescue_floppy_and_usb_image_come_to_its_prompt_and_switch_off() {
    let (Some(floppy), Some(usb)) = (guest("grub-floppy"), guest("grub-usb")) else { return };
    for (name, args, device) in [
        ("grub floppy", vec!["-fda", text(&floppy)], "(fd0)"),
        ("grub usb", vec!["-hda", text(&usb)], "(hd0)"),
    ] {
        on_boards(name, BOTH, |board| {
            let mut pc = Pc::start(board, &args);
            pc.screen("for a command-line");
            pc.keys("c");
            pc.screen("grub>");
            pc.keys("l s ret");
            pc.screen(device);
            pc.keys("h a l t");
            pc.last_key("ret");
        });
    }
}

/// What isolinux and syslinux show.
fn menu(module: &str) -> String {
    let entry = |name: &str| {
        format!(
            "LABEL {name}\n KERNEL vmlinuz\n APPEND initrd=initrd console=ttyS0 panic=-1 quiet entry={name}\n"
        )
    };
    format!(
        "UI {module}\nPROMPT 0\nMENU TITLE Mynah's menu\n{}{}LABEL mem\n KERNEL memdisk\n APPEND initrd=floppy.img\n",
        entry("one"),
        entry("two"),
    )
}

const SCRIPT: &str = "echo \"MARK $(cat /proc/cmdline)\"\npoweroff -f\n";

/// A folder with a menu, a kernel, its initial RAM disk, memdisk and a floppy for it.
fn with_menu(module: &str) -> Option<Folder> {
    let folder = Folder::new("media-menu");
    let put = |name: &str, from: &Path| std::fs::copy(from, folder.0.join(name)).unwrap();
    put("vmlinuz", &guest("cloud")?);
    let initrd = ramdisk("media", "busybox", SCRIPT)?;
    put("initrd", &initrd);
    std::fs::remove_file(initrd).unwrap();
    put("memdisk", &guest("memdisk")?);
    put("floppy.img", &guest("grub-floppy")?);
    unpack("syslinux", &folder.0)?;
    for name in ["isolinux.cfg", "syslinux.cfg"] {
        folder.file(name, menu(module).as_bytes());
    }
    Some(folder)
}

/// A CD that isolinux boots, and as a disk too if that is wanted; `None` if something for it is not there.
fn isolinux(module: &str, hybrid: bool) -> Option<(Folder, String)> {
    if !tools(&[("xorriso", "xorriso")]) {
        return None;
    }
    let (source, folder) = (with_menu(module)?, Folder::new("media-cd"));
    unpack("isolinux", &source.0)?;
    let (iso, mbr) = (folder.path("cd.iso"), source.path("isohdpfx.bin"));
    let at =
        "-as mkisofs -quiet -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table";
    let mut args: Vec<&str> = at.split(' ').collect();
    if hybrid {
        args.extend(["-isohybrid-mbr", &mbr]);
    }
    args.extend(["-o", &iso, text(&source.0)]);
    tool("xorriso", &args);
    Some((folder, iso))
}

/// The second entry boots Linux with what the menu says.
fn second_entry_boots(mut pc: Pc, module: &str) {
    if module == "menu.c32" {
        pc.screen("Mynah's menu");
    } else {
        pc.graphics((640, 480), 8);
        pc.keep("vesamenu");
    }
    pc.keys("down ret");
    pc.machine.until("MARK ");
    pc.machine.until("entry=two");
    pc.off();
}

/// The third is GRUB's floppy, by memdisk.
fn third_entry_is_a_floppy(mut pc: Pc) {
    pc.screen("Mynah's menu");
    pc.keys("down down ret");
    pc.screen("for a command-line");
    pc.keys("c");
    pc.screen("grub>");
    pc.keys("l s ret");
    pc.screen("(fd0)");
    pc.keys("h a l t");
    pc.last_key("ret");
}

#[test]
#[ignore = "boots media made from Debian's packages"]
fn isolinux_s_menus_boot_linux_from_a_cd_and_from_the_same_as_a_disk() {
    for (module, boards) in [("menu.c32", BOTH), ("vesamenu.c32", &["pc"])] {
        let Some((_folder, iso)) = isolinux(module, true) else { return };
        for drive in ["-cdrom", "-hda"] {
            on_boards(&format!("isolinux {module} {drive}"), boards, |board| {
                second_entry_boots(Pc::start(board, &["-m", "256", drive, &iso]), module);
            });
        }
    }
    let Some((_folder, iso)) = isolinux("menu.c32", false) else { return };
    on_boards("isolinux memdisk", &["pc"], |board| {
        third_entry_is_a_floppy(Pc::start(board, &["-m", "256", "-cdrom", &iso]));
    });
}

/// A FAT volume with these files of a folder, at `at` bytes of an image.
fn fat(image: &str, at: u64, format: &[&str], folder: &Folder, files: &[&str], to: &str) {
    let volume = format!("{image}@@{at}");
    if !format.is_empty() {
        tool("mformat", &[&["-i", &volume], format, &["::"]].concat());
    }
    let paths: Vec<String> = files.iter().map(|f| folder.path(f)).collect();
    let mut args = vec!["-i", &volume, "-o"];
    args.extend(paths.iter().map(String::as_str));
    args.push(to);
    tool("mcopy", &args);
}

const FAT_TOOLS: &[(&str, &str)] = &[("mformat", "mtools"), ("mcopy", "mtools"), ("mmd", "mtools")];

/// Where the disk's partition begins, and how long it is, in sectors.
const FIRST: u32 = 2048;
const SECTORS: u32 = 63 * 2048;

#[test]
#[ignore = "boots media made from Debian's packages"]
fn syslinux_s_menus_boot_linux_from_a_fat_disk_with_an_mbr() {
    if !tools(FAT_TOOLS) || !tools(&[("syslinux", "syslinux")]) {
        return;
    }
    for (module, boards) in [("menu.c32", BOTH), ("vesamenu.c32", &["pc"])] {
        let Some(folder) = with_menu(module) else { return };
        let mut disk = std::fs::read(folder.path("mbr.bin")).unwrap();
        disk.resize(64 << 20, 0);
        // One active partition of type 0Eh.
        disk[0x1be..0x1c6].copy_from_slice(&[0x80, 32, 33, 0, 0x0e, 254, 255, 255]);
        disk[0x1c6..0x1ca].copy_from_slice(&FIRST.to_le_bytes());
        disk[0x1ca..0x1ce].copy_from_slice(&SECTORS.to_le_bytes());
        disk[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        let image = folder.file("disk", &disk);
        let (sectors, hidden) = (SECTORS.to_string(), FIRST.to_string());
        let format = ["-T", &sectors, "-h", "255", "-s", "63", "-H", &hidden];
        let at = u64::from(FIRST) * 512;
        let files = ["vmlinuz", "initrd", "memdisk", "floppy.img", "syslinux.cfg"];
        let modules = ["menu.c32", "vesamenu.c32", "libcom32.c32", "libutil.c32"];
        fat(&image, at, &format, &folder, &[&files[..], &modules].concat(), "::");
        tool("syslinux", &["--install", "--offset", &at.to_string(), &image]);
        on_boards(&format!("syslinux {module}"), boards, |board| {
            second_entry_boots(Pc::start(board, &["-m", "256", "-hda", &image]), module);
        });
        if module == "menu.c32" {
            on_boards("syslinux memdisk", &["pc"], |board| {
                third_entry_is_a_floppy(Pc::start(board, &["-m", "256", "-hda", &image]));
            });
        }
    }
}

#[test]
#[ignore = "boots media made from Debian's packages"]
fn syslinux_boots_memtest_from_a_floppy_or_switches_off() {
    if !tools(FAT_TOOLS) || !tools(&[("syslinux", "syslinux")]) {
        return;
    }
    let folder = Folder::new("media-floppy");
    let (Some(memtest), Some(())) = (guest("memtest"), unpack("syslinux", &folder.0)) else { return };
    std::fs::copy(memtest, folder.0.join("memtest")).unwrap();
    let menu = "UI menu.c32\nPROMPT 0\nMENU TITLE Mynah's menu\n\
                LABEL off\n COM32 poweroff.c32\nLABEL memory\n KERNEL memtest\n";
    folder.file("syslinux.cfg", menu.as_bytes());
    let image = folder.file("floppy", &[0; 1440 << 10]);
    let files = ["memtest", "syslinux.cfg", "menu.c32", "libutil.c32", "libcom32.c32", "poweroff.c32"];
    fat(&image, 0, &["-f", "1440"], &folder, &files, "::");
    tool("syslinux", &["--install", &image]);
    on_boards("syslinux floppy", BOTH, |board| {
        let mut pc = Pc::start(board, &["-fda", &image]);
        pc.screen("Mynah's menu");
        pc.keys("down ret");
        pc.screen("Memtest86+ v");
        let mut pc = Pc::start(board, &["-fda", &image]);
        pc.screen("Mynah's menu");
        pc.last_key("ret");
    });
}

#[test]
#[ignore = "boots media made from Debian's packages"]
fn debian_s_installer_asks_for_the_language_on_text_and_on_a_frame_buffer() {
    if !tools(&[("xorriso", "xorriso")]) {
        return;
    }
    let source = Folder::new("media-installer");
    let all = ["installer", "isolinux", "syslinux"].map(|name| unpack(name, &source.0));
    if all.contains(&None) {
        return;
    }
    let entry =
        |name: &str, vga: &str| format!("LABEL {name}\n KERNEL linux\n APPEND vga={vga} initrd=initrd.gz\n");
    let menu = format!(
        "UI menu.c32\nPROMPT 0\nMENU TITLE Mynah's menu\n{}{}",
        entry("text", "normal fb=false nomodeset"),
        entry("picture", "788")
    );
    source.file("isolinux.cfg", menu.as_bytes());
    let folder = Folder::new("media-cd");
    let iso = folder.path("cd.iso");
    let at =
        "-as mkisofs -quiet -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table -o";
    tool("xorriso", &[&at.split(' ').collect::<Vec<_>>()[..], &[&iso, text(&source.0)]].concat());
    on_boards("installer", &["pc"], |board| {
        let args = ["-m", "1024", "-cdrom", &iso];
        let mut pc = Pc::start(board, &args);
        pc.screen("Mynah's menu");
        pc.keys("ret");
        pc.screen("Select a language");
        pc.keep("installer-text");
        let mut pc = Pc::start(board, &args);
        pc.screen("Mynah's menu");
        pc.keys("down ret");
        // A frame buffer has penguins or white text on black first; the installer's screen is blue, red and grey.
        pc.graphics((800, 600), 5);
        pc.keep("installer-picture");
    });
}
