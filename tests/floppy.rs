//! Floppies, flash' poor relations: a bare program finds in the controller's registers and by DMA what it finds under
//! QEMU; boot sectors reach them by INT 13h of the built-in BIOS and of SeaBIOS (which drives the controller), here and
//! under QEMU; and what is booted first is what was asked for.
#![cfg(unix)]
#[allow(dead_code, reason = "it drives bare machines and their monitors")]
mod common;
mod kit;
#[path = "common/real_mode.rs"]
mod real_mode;
use common::{guest, has_qemu};
use iced_x86::code_asm::*;
use kit::typed::Machine;
use kit::{Client, DATA, FREE, Folder, Guest, PATIENCE, Running, command, power_off};
use real_mode::{CONTENT, Guest as Real};
use std::path::Path;
use std::process::{Command, Stdio};

/// Bytes that are nowhere alike.
fn pattern(len: usize) -> Vec<u8> {
    let mut n = 1_u64;
    let mut next = || {
        n = n.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (n >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

const TABLE: u32 = DATA + 0x100;
/// Where DMA goes: below 16 MiB, in one page of 64 KiB.
const BUFFER: u32 = (FREE + 0xffff) & !0xffff;

/// What the bare program does, in turn.
enum Step {
    Out(u16, u8),
    /// Tells what is read.
    In(u16),
    /// Sends a command; tells all that comes back, and the main status.
    Does(Vec<u8>),
    /// Tells 16 bytes of memory.
    Tell(u32),
}

fn dma(mode: u8, len: u32) -> Vec<Step> {
    let count = (len - 1).to_le_bytes();
    let at = BUFFER.to_le_bytes();
    [
        (0x0a, 6),
        (0x0c, 0),
        (0x0b, mode),
        (4, at[0]),
        (4, at[1]),
        (0x81, at[2]),
        (5, count[0]),
        (5, count[1]),
        (0x0a, 2),
    ]
    .map(|(port, value)| Step::Out(port, value))
    .into()
}

fn steps() -> Vec<Step> {
    use Step::{Does, In, Out, Tell};
    let does = |bytes: &[u8]| Does(bytes.to_vec());
    let sense = || Does(vec![8]);
    let mut all = vec![Out(0x3f2, 0x08), Out(0x3f2, 0x1c), In(0x3f4), In(0x3f2), In(0x3f7)];
    all.extend((0..5).map(|_| sense()));
    all.extend([
        does(&[3, 0xdf, 0x02]),
        does(&[0x13, 0, 0x57, 0]),
        does(&[0x10]),
        does(&[0x18]),
        does(&[0x94]),
    ]);
    all.extend([Out(0x3f7, 0), does(&[7, 0]), sense(), sense(), does(&[0x0f, 0, 5]), sense(), In(0x3f7)]);
    all.extend([does(&[4, 0]), does(&[4, 4]), does(&[7, 0]), sense(), does(&[4, 0])]);
    // By DMA, within a track where the head is: else QEMU's status 0 tells of a seek.
    for (len, command) in [
        (512, [0xe6, 0, 0, 0, 3, 2, 18, 0x1b, 0xff]),
        (1024, [0xe6, 0, 1, 0, 16, 2, 18, 0x1b, 0xff]),
        (2048, [0x66, 4, 40, 1, 9, 2, 18, 0x1b, 0xff]),
    ] {
        all.extend([does(&[0x0f, 0, command[2]]), sense()]);
        all.extend(dma(0x46, len));
        all.extend([does(&command), Tell(BUFFER), Tell(BUFFER + len - 16), In(0x08), In(0x08)]);
    }
    all.extend([Out(0x0c, 0), In(4), In(4), In(5), In(5)]);
    // What was read is written somewhere else, and read again.
    all.extend([does(&[0x0f, 0, 70]), sense()]);
    all.extend(dma(0x4a, 2048));
    all.push(does(&[0xc5, 0, 70, 0, 2, 2, 18, 0x1b, 0xff]));
    all.extend(dma(0x46, 1536));
    all.extend([does(&[0xe6, 0, 70, 0, 3, 2, 18, 0x1b, 0xff]), Tell(BUFFER), Tell(BUFFER + 1520)]);
    // Another data rate finds nothing.
    all.extend([Out(0x3f7, 2), does(&[0xe6, 0, 70, 0, 3, 2, 18, 0x1b, 0xff]), Out(0x3f7, 0)]);
    for code in [0x00, 0x01, 0x1f] {
        all.push(does(&[code]));
    }
    all.extend([does(&[7, 0]), sense(), Out(0x3f4, 0x80), sense(), does(&[0x14])]);
    all
}

fn table() -> Vec<u8> {
    let mut bytes = Vec::new();
    for step in steps() {
        match step {
            Step::Out(port, value) => {
                bytes.extend([1, value]);
                bytes.extend(port.to_le_bytes());
            }
            Step::In(port) => {
                bytes.extend([2, 0]);
                bytes.extend(port.to_le_bytes());
            }
            Step::Does(command) => {
                bytes.extend([3, command.len() as u8]);
                bytes.extend(command);
            }
            Step::Tell(at) => {
                bytes.extend([4, 16]);
                bytes.extend(at.to_le_bytes());
            }
        }
    }
    bytes.push(0);
    bytes
}

/// The program: ESI is in the table.
fn program(a: &mut CodeAssembler) -> std::result::Result<(), IcedError> {
    let [mut next, mut end, mut not_out, mut not_in, mut not_does] = [(); 5].map(|()| a.create_label());
    let [mut byte, mut room, mut back, mut more, mut done, mut tell, mut send] =
        [(); 7].map(|()| a.create_label());
    a.mov(esi, TABLE)?;
    a.set_label(&mut next)?;
    a.xor(eax, eax)?;
    a.lodsb()?;
    a.test(al, al)?;
    a.jz(end)?;
    a.mov(ebp, eax)?;
    a.movzx(ecx, byte_ptr(esi))?;
    a.inc(esi)?;
    a.cmp(ebp, 1)?;
    a.jne(not_out)?;
    a.movzx(edx, word_ptr(esi))?;
    a.add(esi, 2)?;
    a.mov(al, cl)?;
    a.out(dx, al)?;
    a.jmp(next)?;
    a.set_label(&mut not_out)?;
    a.cmp(ebp, 2)?;
    a.jne(not_in)?;
    a.movzx(edx, word_ptr(esi))?;
    a.add(esi, 2)?;
    a.in_(al, dx)?;
    a.mov(bl, al)?;
    a.call(send)?;
    a.jmp(next)?;
    a.set_label(&mut not_in)?;
    a.cmp(ebp, 3)?;
    a.jne(not_does)?;
    // The command's bytes, when it takes them.
    a.set_label(&mut byte)?;
    a.mov(edx, 0x3f4)?;
    a.set_label(&mut room)?;
    a.in_(al, dx)?;
    a.and(al, 0xc0u32 as i32)?;
    a.cmp(al, 0x80u32 as i32)?;
    a.jne(room)?;
    a.inc(edx)?;
    a.lodsb()?;
    a.out(dx, al)?;
    a.dec(ecx)?;
    a.jnz(byte)?;
    // What comes back.
    a.set_label(&mut back)?;
    a.mov(edx, 0x3f4)?;
    a.set_label(&mut more)?;
    a.in_(al, dx)?;
    a.test(al, 0x80u32 as i32)?;
    a.jz(more)?;
    a.test(al, 0x40)?;
    a.jz(done)?;
    a.inc(edx)?;
    a.in_(al, dx)?;
    a.mov(bl, al)?;
    a.call(send)?;
    a.jmp(back)?;
    a.set_label(&mut done)?;
    a.mov(bl, al)?;
    a.call(send)?;
    a.jmp(next)?;
    a.set_label(&mut not_does)?;
    a.lodsd()?;
    a.mov(edi, eax)?;
    a.set_label(&mut tell)?;
    a.mov(bl, byte_ptr(edi))?;
    a.call(send)?;
    a.inc(edi)?;
    a.dec(ecx)?;
    a.jnz(tell)?;
    a.jmp(next)?;
    a.set_label(&mut end)?;
    power_off(a)?;
    // Sends BL, when COM1 takes it.
    a.set_label(&mut send)?;
    let mut wait = a.create_label();
    a.mov(edx, 0x3fd)?;
    a.set_label(&mut wait)?;
    a.in_(al, dx)?;
    a.test(al, 0x20)?;
    a.jz(wait)?;
    a.mov(edx, 0x3f8)?;
    a.mov(al, bl)?;
    a.out(dx, al)?;
    a.ret()
}

/// What the program has found, and what is on the floppy then.
fn found(folder: &Folder, tag: &str, machine: &mut Command, more: &[&str]) -> (Vec<u8>, Vec<u8>) {
    let guest = Guest { data: vec![(TABLE, table())], ..Guest::new(&program) };
    let kernel = folder.file("kernel", &guest.image());
    let floppy = folder.file("floppy", &pattern(1440 << 10));
    let (drive, serial) =
        (format!("file={floppy},if=floppy,format=raw"), format!("file:{}", folder.path(tag)));
    machine.args(["-display", "none", "-m", "16", "-no-reboot", "-kernel", &kernel, "-serial", &serial]);
    machine.args(["-drive", &drive]).args(more).stdout(Stdio::null());
    let status = Running::start(machine).ended(PATIENCE);
    assert!(status.is_some_and(|s| s.success()), "{tag}: {:02x?}", std::fs::read(folder.path(tag)));
    (std::fs::read(folder.path(tag)).unwrap(), std::fs::read(floppy).unwrap())
}

#[test]
fn the_controller_and_dma_are_as_under_qemu() {
    let folder = Folder::new("floppy");
    let of = |accel| found(&folder, accel, &mut command(&["run"]), &["-accel", accel]);
    let (interp, jit) = (of("interp"), of("jit,cache=off"));
    let same = |a: &[u8], b: &[u8], who: &str| {
        let at = a.iter().zip(b).position(|(a, b)| a != b);
        let near = |bytes: &[u8]| at.map(|n| bytes[n.saturating_sub(16)..bytes.len().min(n + 16)].to_vec());
        assert!(
            a == b,
            "at {at:?} of {} and {}: {:02x?}, and {who} {:02x?}",
            a.len(),
            b.len(),
            near(a),
            near(b)
        );
    };
    assert!(interp.0.len() > steps().len());
    same(&interp.0, &jit.0, "on the translator");
    assert!(interp.1 == jit.1, "what is on the floppy");
    if has_qemu() {
        let mut machine = Command::new("qemu-system-x86_64");
        let qemus = found(&folder, "qemu", &mut machine, &["-accel", "tcg", "-nic", "none"]);
        same(&interp.0, &qemus.0, "under QEMU");
        assert!(interp.1 == qemus.1, "what is on the floppy");
    }
}

/// A sector at 7C00h that is booted.
fn boot_sector(code: impl FnOnce(&mut Real<'_>) -> real_mode::Result) -> Vec<u8> {
    let mut a = CodeAssembler::new(16).unwrap();
    code(&mut Real { a: &mut a, check: 0 }).unwrap();
    let mut sector = a.assemble(0x7c00).unwrap();
    assert!(sector.len() <= 510, "{} bytes", sector.len());
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

/// Asks INT 13h of drive A: what any BIOS answers. Sector n of the floppy has n in its bytes.
fn int13(g: &mut Real<'_>) -> real_mode::Result {
    const AT: i32 = 0x5000;
    fn call(g: &mut Real<'_>, eax_: i32, ecx_: i32, edx_: i32) -> real_mode::Result {
        g.a.mov(ax, eax_)?;
        g.a.mov(cx, ecx_)?;
        g.a.mov(dx, edx_)?;
        g.a.mov(bx, AT)?;
        g.a.int(0x13)
    }
    fn no_carry(g: &mut Real<'_>) -> real_mode::Result {
        g.a.cmc()?;
        g.carry()
    }
    g.a.xor(ax, ax)?;
    g.a.mov(ds, ax)?;
    g.a.mov(es, ax)?;
    g.a.mov(ss, ax)?;
    g.a.mov(sp, 0x7c00)?;
    // 1: booted from A.
    g.a.test(dl, dl)?;
    g.equal()?;
    // 2: reset.
    call(g, 0x0000, 0, 0)?;
    no_carry(g)?;
    // 3 to 5: geometry: 80 tracks, 18 sectors, 2 heads; a drive of 1.44 MB.
    call(g, 0x0800, 0, 0)?;
    g.a.cmp(cx, 0x4f12)?;
    g.equal()?;
    g.a.cmp(dh, 1)?;
    g.equal()?;
    g.a.cmp(bl, 4)?;
    g.equal()?;
    g.a.xor(ax, ax)?;
    g.a.mov(es, ax)?;
    // 6 to 8: cylinder 1, head 1, sectors 3 and 4.
    call(g, 0x0202, 0x0103, 0x0100)?;
    g.a.mov(bp, ax)?;
    no_carry(g)?;
    g.a.cmp(bp, 2)?;
    g.equal()?;
    g.a.cmp(word_ptr(AT + 510), (56 | 56 << 8) as u32)?;
    g.equal()?;
    // 9: the next one.
    g.a.cmp(word_ptr(AT + 512), (57 | 57 << 8) as u32)?;
    g.equal()?;
    // 10, 11: written and read again.
    g.a.mov(word_ptr(AT), 0x1234u32)?;
    call(g, 0x0301, 0x4f12, 0x0100)?;
    no_carry(g)?;
    g.a.mov(word_ptr(AT), 0u32)?;
    call(g, 0x0201, 0x4f12, 0x0100)?;
    g.a.cmp(word_ptr(AT), 0x1234u32)?;
    g.equal()?;
    // 12: verified.
    call(g, 0x0401, 0x4f12, 0x0100)?;
    no_carry(g)?;
    // 13: a sector that there is none of.
    call(g, 0x0201, 0x0013, 0x0000)?;
    g.carry()?;
    // 14: a change line.
    call(g, 0x1500, 0, 0)?;
    g.a.cmp(ah, 0)?;
    g.a.setz(al)?;
    g.a.cmp(al, 0)?;
    g.equal()?;
    // 15: drives in the equipment word.
    g.a.int(0x11)?;
    g.a.and(ax, 1)?;
    g.a.cmp(ax, 1)?;
    g.equal()?;
    g.exit(CONTENT)
}

fn numbered(sector: &[u8]) -> Vec<u8> {
    let mut image: Vec<u8> = (0..2880_usize).flat_map(|n| [n as u8; 512]).collect();
    image[..512].copy_from_slice(sector);
    image
}

/// SeaBIOS of Debian's package, if it is there.
fn seabios() -> Option<&'static str> {
    let found = Path::new("/usr/share/seabios/bios-256k.bin").exists();
    if !found {
        eprintln!("SKIPPED with SeaBIOS: it is not installed (Debian's package 'seabios')");
    }
    found.then_some("bios-256k.bin")
}

const EXIT: [&str; 2] = ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"];

fn ends_content(name: &str, machine: &mut Command, args: &[&str]) {
    machine.args(["-display", "none", "-serial", "null", "-no-reboot"]).args(EXIT).args(args);
    let status = Running::start(machine.stdout(Stdio::null())).ended(PATIENCE);
    let code = status.and_then(|s| s.code());
    assert_eq!(code, Some((CONTENT << 1 | 1) as i32), "{name}: check {:?}", code.map(|c| c >> 1));
}

#[test]
fn a_boot_sector_reaches_drive_a_by_either_bios() {
    let folder = Folder::new("floppy");
    let image = numbered(&boot_sector(int13));
    let check = |name: &str, mut machine: Command, more: &[&str]| {
        let floppy = folder.file("floppy", &image);
        let drive = format!("if=floppy,format=raw,file={floppy}");
        ends_content(name, &mut machine, &[&["-drive", &drive], more].concat());
        let now = std::fs::read(floppy).unwrap();
        assert!(now[..2879 * 512] == image[..2879 * 512] && now[2879 * 512..][..2] == [0x34, 0x12], "{name}");
    };
    for accel in ["interp", "jit"] {
        check(accel, command(&["run"]), &["-accel", accel]);
        if let Some(bios) = seabios() {
            check("seabios", command(&["run"]), &["-accel", accel, "-bios", bios]);
        }
    }
    if has_qemu() {
        check("qemu", Command::new("qemu-system-x86_64"), &["-accel", "tcg", "-nic", "none"]);
    }
}

/// Says a letter, and resets the machine; or ends it, if that is the letter.
fn letter(letter: u8, last: bool) -> Vec<u8> {
    boot_sector(|g| {
        // The BIOS says something there as well.
        for c in [1, letter] {
            g.a.mov(al, i32::from(c))?;
            g.a.out(0xe9, al)?;
        }
        if last {
            return g.exit(CONTENT);
        }
        g.a.mov(dx, 0x0cf9)?;
        g.a.mov(al, 2)?;
        g.a.out(dx, al)?;
        g.a.mov(al, 6)?;
        g.a.out(dx, al)?;
        let mut here = g.a.create_label();
        g.a.set_label(&mut here)?;
        g.a.jmp(here)
    })
}

/// What drives are booted in turn, by the letters that they say.
fn booted(machine: &mut Command, folder: &Folder, args: &[&str]) -> String {
    let log = folder.path("said");
    let _ = std::fs::remove_file(&log);
    let said = format!("file:{log}");
    machine.args(["-display", "none", "-serial", "null", "-debugcon", &said]).args(EXIT).args(args);
    let status = Running::start(machine.stdout(Stdio::null())).ended(PATIENCE);
    let said = std::fs::read_to_string(&log).unwrap();
    assert_eq!(status.and_then(|s| s.code()), Some((CONTENT << 1 | 1) as i32), "{args:?}: {said}");
    said.split('\x01').skip(1).filter_map(|s| s.chars().next()).collect()
}

#[test]
fn what_is_booted_once_is_booted_once_and_indices_go_before_letters() {
    let folder = Folder::new("floppy");
    let floppy =
        |end| format!("if=floppy,format=raw,file={}", folder.file("a", &numbered(&letter(b'A', end))));
    let disk = |name: &str, letter_: u8| {
        let mut image = letter(letter_, true);
        image.resize(1 << 20, 0);
        format!("format=raw,file={}", folder.file(name, &image))
    };
    let (first, second, ide) = (floppy(false), disk("v", b'V'), disk("c", b'C'));
    let ide_index = format!("if=none,id=c,{ide}");
    let virtio = format!("if=none,id=v,{second}");
    let last = format!("if=none,id=a,format=raw,file={}", folder.file("l", &numbered(&letter(b'A', true))));
    let cases: [(&str, Vec<&str>); 5] = [
        ("AC", vec!["-drive", &first, "-drive", &ide, "-boot", "order=c,once=a"]),
        ("C", vec!["-drive", &first, "-drive", &ide, "-boot", "c"]),
        (
            "V",
            vec![
                "-drive",
                &ide_index,
                "-drive",
                &virtio,
                "-device",
                "ide-hd,drive=c,bootindex=2",
                "-device",
                "virtio-blk-pci,drive=v,bootindex=1",
            ],
        ),
        (
            "C",
            vec![
                "-drive",
                &ide_index,
                "-drive",
                &virtio,
                "-device",
                "ide-hd,drive=c,bootindex=0",
                "-device",
                "virtio-blk-pci,drive=v,bootindex=1",
            ],
        ),
        (
            "A",
            vec![
                "-drive",
                &ide_index,
                "-drive",
                &last,
                "-device",
                "ide-hd,drive=c,bootindex=7",
                "-device",
                "floppy,drive=a,bootindex=3",
            ],
        ),
    ];
    for (letters, args) in cases {
        assert_eq!(booted(&mut command(&["run"]), &folder, &args), letters, "{args:?}");
        if let Some(bios) = seabios() {
            let args = [&args[..], &["-bios", bios]].concat();
            assert_eq!(booted(&mut command(&["run"]), &folder, &args), letters, "{args:?}");
        }
        // QEMU names a floppy's index by its controller.
        if !args.iter().any(|a| a.starts_with("floppy,")) && has_qemu() {
            let args = [&args[..], &["-accel", "tcg", "-nic", "none"]].concat();
            assert_eq!(
                booted(&mut Command::new("qemu-system-x86_64"), &folder, &args),
                letters,
                "QEMU: {args:?}"
            );
        }
    }
}

#[test]
fn a_floppy_is_changed_and_taken_out_by_the_monitor() {
    let folder = Folder::new("floppy");
    let (one, two) = (folder.file("one", &vec![0; 1440 << 10]), folder.file("two", &vec![0; 720 << 10]));
    let monitor = format!("unix:{},server=on,wait=off", folder.path("monitor"));
    let args = ["run", "-display", "none", "-serial", "null", "-S", "-monitor", &monitor, "-fda", &one];
    let mut running = Running::start(command(&args).stdout(Stdio::null()));
    let mut client = Client::at(&folder.path("monitor"));
    assert!(
        client.ask("info block").contains(&format!("floppy0: {one} (raw)")),
        "{}",
        client.ask("info block")
    );
    assert_eq!(client.ask("eject floppy0"), "");
    assert!(client.ask("info block").contains("floppy0: [not inserted]"));
    assert_eq!(client.ask(&format!("change floppy0 {two} raw")), "");
    assert!(client.ask("info block").contains(&format!("floppy0: {two} (raw)")));
    client.send("quit");
    assert!(running.ended(PATIENCE).is_some());
}

#[test]
#[ignore = "boots an image from Debian's packages"]
fn grub_boots_from_its_rescue_floppy() {
    let Some(floppy) = guest("grub-floppy") else { return };
    let floppy = format!("if=floppy,format=raw,readonly=on,file={}", floppy.display());
    for accel in ["jit", "interp"] {
        let mut machine = Machine::start(&["-nographic", "-accel", accel, "-drive", &floppy]);
        machine.until("Press enter to boot");
        machine.types("c");
        machine.until("grub>");
        machine.types("ls\r");
        machine.until("(fd0)");
        machine.until("grub>");
        machine.types("halt\r");
        assert_eq!(machine.ends(), Some(0));
    }
}
