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
#[path = "common/tools.rs"]
mod tools;
use common::{guest, ramdisk};
use kit::typed::Machine;
use kit::{Client, Folder};
use mynah_guests::cpio::entries;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use tools::{FAT_TOOLS, firmware, text, tool, tools};

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
        let machine = Machine::start(&[board, &own, args].concat()).patient(LIMIT);
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

    /// The picture's width and height, and its pixels, three bytes each.
    fn picture(&mut self) -> (usize, usize, Vec<u8>) {
        let file = self.folder.path("screen.ppm");
        assert_eq!(self.monitor.ask(&format!("screendump {file}")), "");
        let bytes = std::fs::read(&file).unwrap();
        // P6, width, height and 255, then three bytes of each pixel.
        let header: Vec<&[u8]> = bytes.splitn(4, u8::is_ascii_whitespace).collect();
        let number = |n: usize| std::str::from_utf8(header[n]).unwrap().parse::<usize>().unwrap();
        let (width, height) = (number(1), number(2));
        (width, height, bytes[bytes.len() - 3 * width * height..].to_vec())
    }

    /// Waits until the screen is of this size, has been drawn (it is the same twice), and each of these colours has
    /// more than so many hundredths of it.
    fn graphics(&mut self, size: (usize, usize), colours: &[([u8; 3], usize)]) {
        let start = Instant::now();
        let mut before = Vec::new();
        loop {
            let (width, height, pixels) = self.picture();
            let share = |colour: [u8; 3]| pixels.chunks_exact(3).filter(|p| *p == colour).count() * 100;
            let seen: Vec<_> = colours.iter().map(|&(c, _)| share(c)).collect();
            let enough = seen.iter().zip(colours).all(|(seen, (_, wanted))| *seen > wanted * width * height);
            if (width, height) == size && enough && pixels == before {
                return;
            }
            assert!(
                start.elapsed() < LIMIT,
                "{width} x {height} with {seen:?} hundredths of pixels of {colours:?} after {LIMIT:?}"
            );
            before = pixels;
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Waits until the screen is of this size, has been drawn, and has the many colours of a menu on a photograph.
    fn photograph(&mut self, size: (usize, usize)) {
        let start = Instant::now();
        let mut before = Vec::new();
        loop {
            let (width, height, pixels) = self.picture();
            let colours: std::collections::HashSet<&[u8]> = pixels.chunks_exact(3).collect();
            if (width, height) == size && colours.len() > 100 && pixels == before {
                return;
            }
            let n = colours.len();
            assert!(start.elapsed() < LIMIT, "{width} x {height} with {n} colours after {LIMIT:?}");
            before = pixels;
            std::thread::sleep(Duration::from_millis(500));
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
const LIMIT: Duration = Duration::from_secs(600);

/// Puts the files of a guest that is an archive into a folder; `None` if it is not there.
fn unpack(name: &str, folder: &Path) -> Option<()> {
    let archive = std::fs::read(guest(name)?).unwrap();
    for entry in entries(&archive).expect("a guest's archive is whole").iter().filter(|e| e.is_file()) {
        std::fs::write(folder.join(Path::new(entry.path).file_name().unwrap()), entry.data).unwrap();
    }
    Some(())
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
        pc.photograph((640, 480));
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
fn debian_s_installer_asks_for_the_language_in_text_by_serial_and_on_a_frame_buffer() {
    if !tools(&[("xorriso", "xorriso")]) {
        return;
    }
    let source = Folder::new("media-installer");
    let all = ["installer", "isolinux", "syslinux"].map(|name| unpack(name, &source.0));
    if all.contains(&None) {
        return;
    }
    let entry =
        |name: &str, args: &str| format!("LABEL {name}\n KERNEL linux\n APPEND {args} initrd=initrd.gz\n");
    // By itself the kernel would drive the adapter without VBE: nomodeset. The installer is on all consoles.
    let menu = format!(
        "UI menu.c32\nPROMPT 0\nMENU TITLE Mynah's menu\n{}{}",
        entry("text", "vga=normal fb=false nomodeset console=ttyS0 console=tty0"),
        entry("picture", "vga=788 nomodeset")
    );
    source.file("isolinux.cfg", menu.as_bytes());
    let folder = Folder::new("media-cd");
    let iso = folder.path("cd.iso");
    let at =
        "-as mkisofs -quiet -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table -o";
    tool("xorriso", &[&at.split(' ').collect::<Vec<_>>()[..], &[&iso, text(&source.0)]].concat());
    on_boards("installer", BOTH, |board| {
        let args = ["-m", "1024", "-cdrom", &iso];
        let mut pc = Pc::start(board, &args);
        pc.screen("Mynah's menu");
        pc.keys("ret");
        pc.screen("Select a language");
        pc.keep("installer-text");
        pc.machine.until("Select a language");
        let mut pc = Pc::start(board, &args);
        pc.screen("Mynah's menu");
        pc.keys("down ret");
        // The frame buffer of 16 bits a pixel that VBE has set up, with the installer's grey box on blue.
        pc.graphics((800, 600), &[([173, 170, 173], 30), ([0, 0, 173], 5)]);
        pc.keep("installer-picture");
    });
}

#[test]
#[ignore = "boots media made from Debian's packages"]
fn u_boot_reads_a_disk_by_its_own_driver_and_has_an_address_of_the_network() {
    let Some(rom) = guest("u-boot") else { return };
    let folder = Folder::new("media-u-boot");
    let mut disk = vec![0; 1 << 20];
    disk[512..528].copy_from_slice(b"of the sector 1.");
    let disk = folder.file("disk", &disk);
    let own =
        ["-M", "pc", "-m", "256", "-display", "none", "-serial", "stdio", "-monitor", "none", "-snapshot"];
    let args = ["-bios", text(&rom), "-hda", &disk, "-nic", "user,model=e1000"];
    let mut machine = Machine::start(&[&own[..], &args].concat()).patient(LIMIT);
    machine.until("eth0: e1000#0");
    machine.until("Hit any key to stop autoboot:");
    machine.types("\r");
    for (command, answer) in [
        ("ide reset", "Capacity: 1.0 MB"),
        ("ide read 2000000 1 1", "1 blocks read: OK"),
        ("md.b 2000000 10", "of the sector 1."),
        ("setenv autoload no", ""),
        ("dhcp", "bound to address 10.0.2.15"),
    ] {
        machine.until("=> ");
        machine.types(&format!("{command}\r"));
        machine.until(answer);
    }
}

#[test]
#[ignore = "boots media made from Debian's packages"]
fn grub_legacy_steps_through_the_bios_and_finds_a_file() {
    if !tools(FAT_TOOLS) {
        return;
    }
    let folder = Folder::new("media-legacy");
    let Some(()) = unpack("grub-legacy", &folder.0) else { return };
    let mut floppy = std::fs::read(folder.path("stage1")).unwrap();
    floppy.extend(std::fs::read(folder.path("stage2")).unwrap());
    floppy.resize(1440 << 10, 0);
    let floppy = folder.file("floppy", &floppy);
    let mut disk = vec![0; 64 << 20];
    disk[0x1be..0x1c6].copy_from_slice(&[0x80, 32, 33, 0, 0x0e, 254, 255, 255]);
    disk[0x1c6..0x1ca].copy_from_slice(&FIRST.to_le_bytes());
    disk[0x1ca..0x1ce].copy_from_slice(&SECTORS.to_le_bytes());
    disk[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    let disk = folder.file("disk", &disk);
    let (sectors, hidden) = (SECTORS.to_string(), FIRST.to_string());
    let format = ["-T", &sectors, "-h", "255", "-s", "63", "-H", &hidden];
    folder.file("thefile", b"what stands in it");
    fat(&disk, u64::from(FIRST) * 512, &format, &folder, &["thefile"], "::");
    on_boards("grub legacy", BOTH, |board| {
        let mut pc = Pc::start(board, &["-boot", "a", "-fda", &floppy, "-hda", &disk]);
        pc.screen("grub>");
        pc.keys("c a t spc shift-9 h d 0 comma 0 shift-0 slash t h e f i l e ret");
        pc.screen("what stands in it");
        // It traces INT 13h with the trap flag, for the ports that the BIOS uses; SeaBIOS' AHCI driver is 32-bit code,
        // in which that ends nowhere, as under QEMU.
        if board.contains(&"pc") {
            pc.keys("i o p r o b e spc shift-9 h d 0 shift-0 ret");
            pc.screen(" 0x");
        }
        pc.keys("h a l t");
        pc.last_key("ret");
    });
}

#[test]
#[ignore = "boots media made from Debian's packages"]
fn ipxe_s_cd_has_an_address() {
    let Some(cd) = guest("ipxe-cd") else { return };
    on_boards("ipxe cd", &["pc"], |board| {
        let mut pc = Pc::start(board, &["-cdrom", text(&cd), "-nic", "user,model=e1000"]);
        pc.screen("net0: 10.0.2.15/255.255.255.0");
    });
}
