//! An IDE disk and a CD-ROM drive: a bare program finds in their registers, and at the data port, what it finds under
//! QEMU; Debian's own driver (ata_piix) works with them by DMA, and by PIO if the kernel is told to.
//!
//! Kernel and modules are fetched once through apt (`tests/guests/manifest.toml`): `cargo test --release --test ide --
//! --ignored`. MYNAH_GUESTS=cached passes over what is not there.
#![cfg(unix)]
mod common;
mod kit;
use common::{guest, has_qemu, ramdisk, run, run_qemu};
use iced_x86::code_asm::*;
use kit::{DATA, Folder, Guest, command, power_off};
use mynah_guests::cpio::Archive;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
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
mkdir -p /sys; mount -t sysfs none /sys 2> /dev/null
echo "KEY disk by $(cat /sys/class/ata_device/dev1.0/xfer_mode)"
echo "KEY disc by $(cat /sys/class/ata_device/dev2.0/xfer_mode)"
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
    let append = format!("console=ttyS0 panic=-1 quiet {more}");
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
        // A PIIX3 knows no Ultra DMA.
        let mode = if more.is_empty() { "XFER_MW_DMA_2" } else { "XFER_PIO_4" };
        assert_eq!(said.iter().filter(|l| l.ends_with(&format!(" by {mode}"))).count(), 2, "{said:?}");
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

const HD: u16 = 0x1f0;
const CD: u16 = 0x170;

/// What the bare program does: a command, and a packet behind it if there is one.
struct Step {
    base: u16,
    /// Device, features, count, low, mid, high, command.
    registers: [u8; 7],
    packet: Option<[u8; 12]>,
    /// What is found is not told.
    quiet: bool,
}

/// Bytes of a step in the program's table.
const STEP: i32 = 24;
const TABLE: u32 = DATA + 0x100;

fn disk(command: u8, features: u8, count: u8, lba: [u8; 3]) -> Step {
    let [low, mid, high] = lba;
    let registers = [0xe0, features, count, low, mid, high, command];
    Step { base: HD, registers, packet: None, quiet: false }
}

fn disc(command: u8) -> Step {
    Step { base: CD, registers: [0xa0, 0, 0, 0, 0, 0, command], packet: None, quiet: false }
}

fn packet(limit: u16, bytes: &[u8]) -> Step {
    let [mid, high] = limit.to_le_bytes();
    let mut packet = [0; 12];
    packet[..bytes.len()].copy_from_slice(bytes);
    Step { base: CD, registers: [0xa0, 0, 0, 1, mid, high, 0xa0], packet: Some(packet), quiet: false }
}

fn steps() -> Vec<Step> {
    let smart = |feature| disk(0xb0, feature, 0, [0, 0x4f, 0xc2]);
    let mut steps = vec![
        Step { registers: [0xa0, 0, 0, 0, 0, 0, 0xec], ..disk(0, 0, 0, [0; 3]) },
        Step { registers: [0xb0, 0, 0, 0, 0, 0, 0xec], ..disk(0, 0, 0, [0; 3]) },
        disk(0x90, 0, 0, [0; 3]),
        disk(0x00, 0, 0, [0; 3]),
        disk(0x10, 0, 0, [0; 3]),
        disk(0x70, 0, 0, [0; 3]),
        Step { registers: [0xef, 0, 63, 0, 0, 0, 0x91], ..disk(0, 0, 0, [0; 3]) },
    ];
    steps.extend([16, 3, 0, 8].map(|n| disk(0xc6, 0, n, [0; 3])));
    steps.extend([0x45, 0x22, 0x0c].map(|mode| disk(0xef, 3, mode, [0; 3])));
    steps.extend([0x82, 0x02, 0x55, 0xaa, 0x99].map(|feature| disk(0xef, feature, 0, [0; 3])));
    steps.extend([0xe5, 0xe0, 0xf8, 0x27, 0xe7, 0xea].map(|code| disk(code, 0, 0, [0; 3])));
    steps.extend([0xd8, 0xda, 0xd9, 0xda, 0xd8].map(smart));
    steps.extend([disk(0xb0, 0xd8, 0, [0; 3]), disk(0x99, 0, 0, [0; 3]), disk(0xf5, 0, 0, [0; 3])]);
    steps.extend([disk(0x20, 0, 2, [3, 0, 0]), disk(0x24, 0, 1, [9, 0, 0]), disk(0x20, 0, 1, [0xff; 3])]);
    steps.extend([0xec, 0x20, 0x00, 0x08, 0xa1, 0x90, 0xe7, 0x91].map(disc));
    // The unit attention of a reset, which QEMU's drive does not have.
    steps.extend([&[0][..], &[3, 0, 0, 0, 18]].map(|p| Step { quiet: true, ..packet(0xfffe, p) }));
    steps.extend(
        [
            &[0][..],
            &[0x12, 0, 0, 0, 96],
            &[0x12, 1, 0x83, 0, 255],
            &[0x25],
            &[0x43, 0, 0, 0, 0, 0, 0, 0, 100],
            &[0x43, 2, 0, 0, 0, 0, 0, 0, 100],
            &[0x43, 0, 0, 0, 0, 0, 0, 0, 12, 0x80],
            &[0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8],
            &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8],
            &[0x51, 0, 0, 0, 0, 0, 0, 0, 34],
            &[0xad, 0, 0, 0, 0, 0, 0, 0xff, 0x10, 0],
            &[0x28, 0, 0, 0, 0, 5, 0, 0, 2],
            &[0x28, 0, 0, 0, 9, 0, 0, 0, 1],
            &[3, 0, 0, 0, 18],
            &[0xff],
            &[0xa8, 0, 0, 0, 0, 1, 0, 0, 0, 1],
            &[0x28, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x2b, 0, 0, 0, 0, 1],
        ]
        .map(|bytes| packet(0xfffe, bytes)),
    );
    steps.extend([512, 1001, 2048].map(|limit| packet(limit, &[0x28, 0, 0, 0, 0, 5, 0, 0, 1])));
    steps
}

fn table() -> Vec<u8> {
    let mut table = Vec::new();
    for step in steps() {
        table.extend(step.base.to_le_bytes());
        table.extend(step.registers);
        table.extend([step.packet.is_some().into(), step.quiet.into(), 0]);
        table.extend(step.packet.unwrap_or_default());
    }
    table.extend([0; STEP as usize]);
    table
}

/// The program: ESI is the step, EDI its ports.
fn program(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let [mut next, mut end, mut data, mut done] = [(); 4].map(|()| a.create_label());
    let [mut tell, mut send, mut ready, mut registers, mut skip] = [(); 5].map(|()| a.create_label());
    a.mov(esi, TABLE)?;
    a.set_label(&mut next)?;
    a.movzx(edi, word_ptr(esi))?;
    a.test(edi, edi)?;
    a.jz(end)?;
    // The device first: the others are its own.
    for (at, port) in [(2, 6), (3, 1), (4, 2), (5, 3), (6, 4), (7, 5), (8, 7)] {
        a.lea(edx, dword_ptr(edi + port))?;
        a.mov(al, byte_ptr(esi + at))?;
        a.out(dx, al)?;
    }
    a.call(tell)?;
    a.cmp(byte_ptr(esi + 9), 0)?;
    a.je(data)?;
    a.mov(edx, edi)?;
    for at in (12..24).step_by(2) {
        a.mov(ax, word_ptr(esi + at))?;
        a.out(dx, ax)?;
    }
    a.call(tell)?;
    // All the data that it has.
    a.set_label(&mut data)?;
    a.call(ready)?;
    a.test(al, 0x08)?;
    a.jz(done)?;
    a.mov(edx, edi)?;
    a.in_(ax, dx)?;
    a.mov(ebx, eax)?;
    a.call(send)?;
    a.shr(ebx, 8)?;
    a.call(send)?;
    a.jmp(data)?;
    a.set_label(&mut done)?;
    a.call(tell)?;
    a.add(esi, STEP)?;
    a.jmp(next)?;
    a.set_label(&mut end)?;
    power_off(a)?;
    // Waits until it is not busy; AL is the alternate status.
    a.set_label(&mut ready)?;
    a.lea(edx, dword_ptr(edi + 0x206))?;
    a.in_(al, dx)?;
    a.test(al, 0x80)?;
    a.jnz(ready)?;
    a.ret()?;
    // Tells the registers, the status last.
    a.set_label(&mut tell)?;
    a.call(ready)?;
    a.mov(ecx, 1)?;
    a.set_label(&mut registers)?;
    a.lea(edx, dword_ptr(edi + ecx))?;
    a.in_(al, dx)?;
    a.movzx(ebx, al)?;
    a.call(send)?;
    a.inc(ecx)?;
    a.cmp(ecx, 8)?;
    a.jne(registers)?;
    a.ret()?;
    // Sends BL, when COM1 takes it.
    a.set_label(&mut send)?;
    a.cmp(byte_ptr(esi + 10), 0)?;
    a.jne(skip)?;
    let mut wait = a.create_label();
    a.mov(edx, 0x3fd)?;
    a.set_label(&mut wait)?;
    a.in_(al, dx)?;
    a.test(al, 0x20)?;
    a.jz(wait)?;
    a.mov(edx, 0x3f8)?;
    a.mov(al, bl)?;
    a.out(dx, al)?;
    a.set_label(&mut skip)?;
    a.ret()
}

/// What the program has found.
fn found(folder: &Folder, tag: &str, machine: &mut Command, more: &[&str]) -> Vec<u8> {
    let guest = Guest { data: vec![(TABLE, table())], ..Guest::new(&program) };
    let kernel = folder.file("kernel", &guest.image());
    let (disk, disc) = (folder.file("disk", &pattern(DISK, 1)), folder.file("disc", &pattern(DISC, 2)));
    let (drive, serial) = (format!("file={disk},if=ide,format=raw"), format!("file:{}", folder.path(tag)));
    machine.args(["-display", "none", "-m", "16", "-no-reboot", "-kernel", &kernel, "-serial", &serial]);
    machine.args(["-drive", &drive, "-cdrom", &disc]).args(more);
    assert!(machine.stdout(Stdio::null()).status().expect("it starts").success(), "{tag}");
    std::fs::read(folder.path(tag)).unwrap()
}

/// Where QEMU's drives do otherwise than the standards say: position in what the program tells, QEMU's bytes, these
/// drives', and why.
const OTHERWISE: [(usize, &[u8], &[u8], &str); 6] = [
    (
        960,
        &[0x00, 0, 0, 0, 0, 0xe0, 0x50, 0x00, 0, 0, 0, 0, 0xe0, 0x50],
        &[0x04, 0, 0, 0, 0, 0xe0, 0x41, 0x04, 0, 0, 0, 0, 0xe0, 0x41],
        "F5h is SECURITY FREEZE LOCK, which a device without the security feature set aborts (ATA/ATAPI-6, 8.46); \
         QEMU's has the CFA's wear level there",
    ),
    (
        975,
        &[1, 4],
        &[2, 3],
        "no sector of two was transferred yet (ATA-3, 6.2.11: the count is decremented as sectors are); QEMU's registers \
         show the next one as soon as the first can be read",
    ),
    (
        2082,
        &[0x00, 1, 1, 0x14, 0xeb, 0xa0, 0, 0x00],
        &[0x01, 1, 1, 0x14, 0xeb, 0xa0, 0, 0x01],
        "DEVICE RESET leaves the diagnostic code in the error register (ATA/ATAPI-6, 8.10.5)",
    ),
    (
        2919,
        &[0x16],
        &[0x14],
        "the lead-out may be copied no more than the track before it (MMC-3, table 237)",
    ),
    (2960, &[0x16], &[0x14], "the same, in another form"),
    (
        3146,
        &[0x03, 0x40, 0, 0xc0, 0x04, 0x40, 8, 4],
        &[0x04, 0x40, 8, 4, 0xff, 0x40, 0, 0x14],
        "the list of DVD structures has those that can be read (MMC-3, 6.22.2.16): this list, and not 03h",
    ),
];

#[test]
fn registers_and_data_are_as_under_qemu() {
    let folder = Folder::new("ide");
    let of = |accel| found(&folder, accel, &mut command(&["run"]), &["-accel", accel]);
    let (interp, jit) = (of("interp"), of("jit,cache=off"));
    assert!(interp.len() > 8 * steps().len() && interp == jit);
    for (at, _, ours, why) in OTHERWISE {
        assert_eq!(interp.get(at..at + ours.len()), Some(ours), "at {at}: {why}");
    }
    if has_qemu() {
        let mut qemus = found(
            &folder,
            "qemu",
            &mut Command::new("qemu-system-x86_64"),
            &["-accel", "tcg", "-nic", "none"],
        );
        for (at, theirs, ours, why) in OTHERWISE {
            assert_eq!(qemus.get(at..at + theirs.len()), Some(theirs), "at {at}, under QEMU: {why}");
            qemus[at..at + ours.len()].copy_from_slice(ours);
        }
        let at = interp.iter().zip(&qemus).position(|(a, b)| a != b);
        let near = |bytes: &[u8]| at.map(|n| bytes[n.saturating_sub(16)..bytes.len().min(n + 16)].to_vec());
        assert!(interp == qemus, "at {at:?}: {:02x?}, and under QEMU {:02x?}", near(&interp), near(&qemus));
    }
}
