//! Old and strange callers of the built-in BIOS: a program in unreal mode, one in virtual-8086 mode under a monitor,
//! one in protected mode of 16 bits and of 32, and what DOS asks of floppies. The same guests run on SeaBIOS, here
//! and under QEMU, where that has what they ask for.
#![cfg(unix)]
mod kit;
#[path = "callers/protected.rs"]
mod protected;
#[path = "common/real_mode.rs"]
mod real_mode;
#[path = "callers/v86.rs"]
mod v86;

use iced_x86::code_asm::*;
use kit::{Client, Folder, PATIENCE, Running, command, wait_for_text};
use real_mode::{CONTENT, Guest, Result};
use std::path::Path;
use std::process::{Command, Stdio};

/// Where the program is loaded, entered with CS, DS, ES and SS 0, and how many sectors of it there are.
const AT: u16 = 0x8000;
const SECTORS: u16 = 48;
/// Where the number of the drive is.
const DRIVE: u16 = 0x600;
/// A sector is read to here.
const BUFFER: i32 = 0x5000;
/// Checks are counted from here on, so that none is `CONTENT`.
const FIRST_CHECK: u32 = 0x20;

/// 16-bit code for an address.
fn code16(at: u16, code: impl FnOnce(&mut Guest<'_>) -> Result) -> (u16, Vec<u8>) {
    let mut a = CodeAssembler::new(16).unwrap();
    code(&mut Guest { a: &mut a, check: FIRST_CHECK }).unwrap();
    (at, a.assemble(at.into()).unwrap())
}

/// 32-bit code for an address.
fn code32(at: u16, code: impl FnOnce(&mut CodeAssembler) -> Result) -> (u16, Vec<u8>) {
    let mut a = CodeAssembler::new(32).unwrap();
    code(&mut a).unwrap();
    (at, a.assemble(at.into()).unwrap())
}

/// A boot sector that loads what is behind it, a sector at a time, and goes there.
fn loader(sectors: u32, heads: u32) -> Vec<u8> {
    let mut a = CodeAssembler::new(16).unwrap();
    let mut code = || -> Result {
        let (mut next, mut failed) = (a.create_label(), a.create_label());
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.mov(es, ax)?;
        a.mov(ss, ax)?;
        a.mov(sp, 0x7c00)?;
        a.mov(byte_ptr(DRIVE), dl)?;
        a.mov(si, 1)?;
        a.mov(di, u32::from(AT))?;
        a.set_label(&mut next)?;
        a.mov(ax, si)?;
        a.xor(dx, dx)?;
        a.mov(cx, sectors)?;
        a.div(cx)?;
        a.inc(dx)?;
        a.mov(cl, dl)?;
        a.xor(dx, dx)?;
        a.mov(bx, heads)?;
        a.div(bx)?;
        a.mov(dh, dl)?;
        a.mov(ch, al)?;
        a.mov(dl, byte_ptr(DRIVE))?;
        a.mov(bx, di)?;
        a.mov(ax, 0x0201)?;
        a.int(0x13)?;
        a.jc(failed)?;
        a.add(di, 512)?;
        a.inc(si)?;
        a.cmp(si, u32::from(SECTORS) + 1)?;
        a.jb(next)?;
        a.push(0)?;
        a.push(i32::from(AT as i16))?;
        a.retf()?;
        a.set_label(&mut failed)?;
        Guest { a: &mut a, check: 0 }.exit(0x7f)
    };
    code().unwrap();
    let mut sector = a.assemble(0x7c00).unwrap();
    assert!(sector.len() <= 510);
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

/// A disk of `len` bytes with a program's parts behind its boot sector.
fn disk(len: usize, sectors: u32, heads: u32, parts: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut image = loader(sectors, heads);
    image.resize(len, 0);
    let mut end = usize::from(AT);
    for (at, bytes) in parts {
        let at = usize::from(*at);
        assert!(at >= end, "parts in order, and none over another ({at:x})");
        end = at + bytes.len();
        image[512 + at - usize::from(AT)..][..bytes.len()].copy_from_slice(bytes);
    }
    assert!(end <= usize::from(AT) + 512 * usize::from(SECTORS));
    image
}

/// A hard disk's image.
fn hard_disk(parts: &[(u16, Vec<u8>)]) -> Vec<u8> {
    disk(2 << 20, 63, 16, parts)
}

fn seabios() -> Option<&'static str> {
    let found = Path::new("/usr/share/seabios/bios-256k.bin").exists();
    if !found {
        eprintln!("SKIPPED with SeaBIOS: it is not installed (Debian's package 'seabios')");
    }
    found.then_some("bios-256k.bin")
}

fn has_qemu() -> bool {
    let found = Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("SKIPPED in QEMU: qemu-system-x86_64 is not installed");
    }
    found
}

const EXIT: [&str; 2] = ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"];

fn ends_content(name: &str, machine: &mut Command, args: &[&str]) {
    machine.args(["-display", "none", "-serial", "null", "-no-reboot", "-m", "16"]).args(EXIT).args(args);
    let status = Running::start(machine.stdout(Stdio::null())).ended(PATIENCE);
    let code = status.and_then(|s| s.code());
    let check = code.map(|c| c >> 1);
    assert_eq!(code, Some((CONTENT << 1 | 1) as i32), "{name}: check {check:x?}");
}

/// Runs a guest from a drive on both engines; with `second`, on SeaBIOS here and under QEMU as well.
fn check(folder: &Folder, name: &str, image: &[u8], drive: &str, second: bool) {
    let boot = |tag: &str, mut machine: Command, more: &[&str]| {
        let file = folder.file(name, image);
        let drive = format!("{drive},format=raw,file={file}");
        ends_content(&format!("{name}, {tag}"), &mut machine, &[&["-drive", &drive], more].concat());
    };
    for accel in ["interp", "jit"] {
        boot(accel, command(&["run"]), &["-accel", accel]);
        if let Some(bios) = seabios().filter(|_| second) {
            boot("SeaBIOS", command(&["run"]), &["-accel", accel, "-bios", bios]);
        }
    }
    if second && has_qemu() {
        boot("QEMU", Command::new("qemu-system-x86_64"), &["-accel", "tcg", "-nic", "none"]);
    }
}

impl Guest<'_> {
    /// Goes on if carry is clear.
    fn no_carry(&mut self) -> Result {
        self.a.cmc()?;
        self.carry()
    }

    /// INT 13h with AX, CX, DH and the drive that was booted, ES:BX the buffer.
    fn int13(&mut self, function: u32, cylinder_and_sector: u32, head: u32) -> Result {
        self.a.mov(ax, function)?;
        self.a.mov(cx, cylinder_and_sector)?;
        self.a.mov(dh, head)?;
        self.a.mov(dl, byte_ptr(DRIVE))?;
        self.a.mov(bx, BUFFER)?;
        self.a.int(0x13)
    }
}

/// What a program has above 1 MiB.
const HIGH: u32 = 0x30_0000;
const MARK: u32 = 0x1234_5678;
/// The GDT's descriptor, a GDT with 4 GiB of data at 8, and an address packet for INT 13h AH 42h.
const GDTR: u16 = 0x9800;
const PACKET: u16 = 0x9840;
/// Where a fault ends the guest.
const FAULT: u16 = 0x9880;

/// DS and ES reach all of memory, from real mode.
fn unreal(g: &mut Guest<'_>, moves: bool) -> Result {
    fn kept(g: &mut Guest<'_>) -> Result {
        g.a.mov(ebx, HIGH)?;
        g.a.mov(eax, dword_ptr(ebx))?;
        g.a.cmp(eax, MARK as i32)?;
        g.equal()?;
        g.a.mov(eax, dword_ptr(ebx).es())?;
        g.a.cmp(eax, MARK as i32)?;
        g.equal()
    }
    g.a.cld()?;
    g.a.mov(ax, 0x2401)?;
    g.a.int(0x15)?;
    g.no_carry()?;
    // INT 0Dh: a limit is lost.
    g.a.mov(word_ptr(4 * 0x0d), u32::from(FAULT))?;
    g.a.mov(word_ptr(4 * 0x0d + 2), 0)?;
    g.a.cli()?;
    g.a.lgdt(fword_ptr(GDTR))?;
    for protected in [true, false] {
        let mut on = g.a.create_label();
        g.a.mov(eax, cr0)?;
        if protected {
            g.a.or(al, 1)?;
        } else {
            g.a.and(al, 0xfe)?;
        }
        g.a.mov(cr0, eax)?;
        g.a.jmp(on)?;
        g.a.set_label(&mut on)?;
        g.a.mov(bx, if protected { 8 } else { 0 })?;
        g.a.mov(ds, bx)?;
        g.a.mov(es, bx)?;
    }
    g.a.sti()?;
    g.a.mov(ebx, HIGH)?;
    g.a.mov(dword_ptr(ebx), MARK)?;
    kept(g)?;
    g.print("U")?;
    kept(g)?;
    // By cylinder and by block; from there to above 1 MiB, and compared.
    for block in [false, true] {
        g.a.mov(word_ptr(BUFFER + 510), 0)?;
        if block {
            g.a.mov(si, u32::from(PACKET))?;
            g.int13(0x4200, 0, 0)?;
        } else {
            g.int13(0x0201, 1, 0)?;
        }
        g.no_carry()?;
        g.a.cmp(word_ptr(BUFFER + 510), 0xaa55_u32)?;
        g.equal()?;
        kept(g)?;
        for compared in [false, true] {
            g.a.mov(esi, BUFFER)?;
            g.a.mov(edi, HIGH + 16)?;
            g.a.mov(ecx, 128)?;
            // REP MOVSD, REPE CMPSD with 32-bit addresses.
            g.a.db(&[0x67, 0x66, 0xf3, if compared { 0xa7 } else { 0xa5 }])?;
        }
        g.equal()?;
    }
    // The memory map.
    g.a.mov(eax, 0xe820)?;
    g.a.xor(ebx, ebx)?;
    g.a.mov(ecx, 20)?;
    g.a.mov(edx, 0x534d_4150)?;
    g.a.mov(di, BUFFER)?;
    g.a.int(0x15)?;
    g.no_carry()?;
    kept(g)?;
    // What changes ES, memory sizes, a short delay, keys, the clock, PCI.
    for (ax_, vector) in
        [(0xc000, 0x15), (0x8800, 0x15), (0xe801, 0x15), (0x0100, 0x16), (0, 0x1a), (0xb101, 0x1a), (0, 0x12)]
    {
        g.a.mov(ax, ax_)?;
        g.a.int(vector)?;
        g.a.xor(ax, ax)?;
        g.a.mov(es, ax)?;
        kept(g)?;
    }
    g.a.mov(ax, 0x8600)?;
    g.a.xor(cx, cx)?;
    g.a.mov(dx, 3000)?;
    g.a.int(0x15)?;
    kept(g)?;
    // A tick of the timer.
    g.a.hlt()?;
    kept(g)?;
    if moves {
        // The descriptors of INT 15h 87h, 32 words of the first MiB to above it.
        for (at, base) in [(BUFFER + 0x10, u32::from(AT)), (BUFFER + 0x18, HIGH + 0x1000)] {
            g.a.mov(word_ptr(at), 0xffff_u32)?;
            g.a.mov(dword_ptr(at + 2), base | 0x9300_0000)?;
            g.a.mov(word_ptr(at + 6), 0)?;
        }
        g.a.mov(si, BUFFER)?;
        g.a.mov(cx, 32)?;
        g.a.mov(ax, 0x8700)?;
        g.a.int(0x15)?;
        g.no_carry()?;
        kept(g)?;
        g.a.mov(ebx, HIGH + 0x1000)?;
        g.a.mov(eax, dword_ptr(ebx))?;
        g.a.cmp(eax, dword_ptr(AT))?;
        g.equal()?;
    }
    g.exit(CONTENT)
}

#[test]
fn unreal_mode_keeps_its_limits_across_the_services() {
    let folder = Folder::new("callers");
    let gdt = [0_u64, 0x00cf_9300_0000_ffff].map(u64::to_le_bytes).concat();
    let gdtr = [&15_u16.to_le_bytes()[..], &(u32::from(GDTR) + 8).to_le_bytes(), &[0; 2], &gdt].concat();
    let packet = [16, 0, 1, 0, 0x00, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
    let fault = || code16(FAULT, |g| g.exit(0x7e));
    let image = |moves| {
        hard_disk(&[
            code16(AT, |g| unreal(g, moves)),
            (GDTR, gdtr.clone()),
            (PACKET, packet.clone()),
            fault(),
        ])
    };
    check(&folder, "unreal", &image(false), "if=ide", true);
    // SeaBIOS' block move leaves limits of 64 KiB.
    check(&folder, "unreal-moves", &image(true), "if=ide", false);
}

/// Asks INT 13h of a floppy of 1.44 MB, whose sector n has n in its bytes, what DOS and its tools do.
fn floppy(g: &mut Guest<'_>, formats: bool) -> Result {
    fn sectors_are(g: &mut Guest<'_>, numbers: &[u8]) -> Result {
        for (i, n) in numbers.iter().enumerate() {
            let n = u32::from(*n);
            g.a.cmp(word_ptr(BUFFER + 512 * i as i32 + 30), n | n << 8)?;
            g.equal()?;
        }
        Ok(())
    }
    // From head 0 to head 1 of a cylinder: the last two sectors and the first two.
    g.int13(0x0204, 0x0511, 0)?;
    g.no_carry()?;
    sectors_are(g, &[196, 197, 198, 199])?;
    // From head 1 to the next cylinder.
    g.int13(0x0202, 0x0712, 1)?;
    g.no_carry()?;
    sectors_are(g, &[31, 32])?;
    // A track.
    g.int13(0x0212, 0x0601, 1)?;
    g.no_carry()?;
    sectors_are(g, &[234, 235])?;
    // A change line is there.
    g.int13(0x1500, 0, 0)?;
    g.no_carry()?;
    // INT 1Eh and AH 08h point to a table of 18 sectors.
    g.a.les(bx, dword_ptr(4 * 0x1e))?;
    g.a.cmp(byte_ptr(bx + 4).es(), 18)?;
    g.equal()?;
    g.a.xor(ax, ax)?;
    g.a.mov(es, ax)?;
    g.int13(0x0800, 0, 0)?;
    g.no_carry()?;
    g.a.cmp(byte_ptr(di + 4).es(), 18)?;
    g.equal()?;
    g.a.xor(ax, ax)?;
    g.a.mov(es, ax)?;
    // A track is formatted, by address fields at ES:BX.
    for n in 0..18_u32 {
        g.a.mov(dword_ptr(BUFFER + 4 * n as i32), 0x0200_0028 | (n + 1) << 16)?;
    }
    g.int13(0x0512, 0x2801, 0)?;
    g.no_carry()?;
    g.int13(0x0202, 0x2811, 0)?;
    g.no_carry()?;
    // QEMU's controller leaves what is there.
    if formats {
        sectors_are(g, &[0xf6, 0xf6])?;
    }
    // A sector that there is none of, a head, and none at all.
    for (function, place, head) in [(0x0201, 0x0113, 0), (0x0201, 0x0101, 2), (0x0200, 0x0101, 0)] {
        g.int13(function, place, head)?;
        g.carry()?;
    }
    g.exit(CONTENT)
}

/// A write is refused.
fn protected_floppy(g: &mut Guest<'_>) -> Result {
    g.int13(0x0301, 0x2801, 0)?;
    g.a.mov(bp, ax)?;
    g.carry()?;
    g.a.and(bp, 0xff00_u32)?;
    g.a.cmp(bp, 0x0300)?;
    g.equal()?;
    g.int13(0x0201, 0x2801, 0)?;
    g.no_carry()?;
    g.exit(CONTENT)
}

const FLOPPY: usize = 1440 << 10;

/// A floppy whose sectors behind the program have their numbers in their bytes.
fn numbered(image: Vec<u8>) -> Vec<u8> {
    let behind = 512 * (1 + usize::from(SECTORS));
    let mut numbers: Vec<u8> = (0..image.len() / 512).flat_map(|n| [n as u8; 512]).collect();
    numbers[..behind].copy_from_slice(&image[..behind]);
    numbers
}

#[test]
fn a_floppy_is_read_across_heads_formatted_and_write_protected() {
    let folder = Folder::new("callers");
    for formats in [false, true] {
        let image = numbered(disk(FLOPPY, 18, 2, &[code16(AT, |g| floppy(g, formats))]));
        check(&folder, "floppy", &image, "if=floppy", !formats);
    }
    let image = numbered(disk(FLOPPY, 18, 2, &[code16(AT, protected_floppy)]));
    check(&folder, "protected", &image, "if=floppy,readonly=on", true);
}

/// Says that it waits, and goes on when another diskette is there, of 720 KiB.
fn changed_floppy(g: &mut Guest<'_>) -> Result {
    let mut wait = g.a.create_label();
    g.int13(0x1600, 0, 0)?;
    g.no_carry()?;
    g.a.mov(al, u32::from(b'W'))?;
    g.a.out(0xe9, al)?;
    g.a.set_label(&mut wait)?;
    g.a.sti()?;
    g.a.hlt()?;
    // The change is told until it is accessed; a drive that is being emptied has it, too.
    g.int13(0x1600, 0, 0)?;
    g.a.jnc(wait)?;
    g.a.cmp(ah, 6)?;
    g.equal()?;
    g.int13(0x0201, 0x0001, 0)?;
    g.a.cmp(ah, 0x80)?;
    g.a.je(wait)?;
    g.a.cmp(ah, 6)?;
    g.equal()?;
    g.int13(0x0000, 0, 0)?;
    g.no_carry()?;
    // Cylinder 1, head 0, sector 1 is the nineteenth of 9 sectors a track.
    g.int13(0x0201, 0x0101, 0)?;
    g.no_carry()?;
    g.a.cmp(byte_ptr(BUFFER), 18)?;
    g.equal()?;
    g.int13(0x1600, 0, 0)?;
    g.no_carry()?;
    // It has 9 sectors a track, and the format's table can be had.
    g.int13(0x0201, 0x010a, 0)?;
    g.carry()?;
    g.int13(0x1800, 0x4f09, 0)?;
    g.no_carry()?;
    g.a.cmp(byte_ptr(di + 4).es(), 9)?;
    g.equal()?;
    g.exit(CONTENT)
}

#[test]
fn a_change_of_diskette_is_told_once_and_the_new_one_has_its_own_format() {
    let folder = Folder::new("callers");
    let image = disk(FLOPPY, 18, 2, &[code16(AT, changed_floppy)]);
    let numbers: Vec<u8> = (0..1440_usize).flat_map(|n| [n as u8; 512]).collect();
    for accel in ["interp", "jit"] {
        let (one, two) = (folder.file("one", &image), folder.file("two", &numbers));
        let (said, socket) = (folder.path("said"), folder.path("monitor"));
        let _ = (std::fs::remove_file(&said), std::fs::remove_file(&socket));
        let (log, monitor) = (format!("file:{said}"), format!("unix:{socket},server=on,wait=off"));
        let args = ["run", "-accel", accel, "-display", "none", "-serial", "null", "-m", "16", "-fda", &one];
        let mut machine = command(&args);
        machine.args(["-debugcon", &log, "-monitor", &monitor]).args(EXIT).stdout(Stdio::null());
        let mut running = Running::start(&mut machine);
        let mut client = Client::at(&socket);
        wait_for_text(&said, "W");
        assert_eq!(client.ask(&format!("change floppy0 {two} raw")), "");
        let code = running.ended(PATIENCE).and_then(|s| s.code());
        assert_eq!(code, Some((CONTENT << 1 | 1) as i32), "{accel}: check {:x?}", code.map(|c| c >> 1));
    }
}

/// Sends what INT 13h AH 48h says of the drive that was booted to port E9h, with room for 66 bytes and for 74.
fn drive_place(g: &mut Guest<'_>) -> Result {
    g.a.cld()?;
    for room in [66_u32, 74] {
        g.a.mov(word_ptr(BUFFER), room)?;
        g.a.mov(si, BUFFER)?;
        g.a.mov(ax, 0x4800)?;
        g.a.mov(dl, byte_ptr(DRIVE))?;
        g.a.int(0x13)?;
        g.no_carry()?;
        g.a.mov(si, BUFFER)?;
        g.a.mov(cx, word_ptr(BUFFER))?;
        g.a.mov(dx, 0xe9)?;
        g.a.rep().outsb()?;
    }
    g.exit(CONTENT)
}

#[test]
fn edd_tells_where_virtio_scsi_and_nvme_drives_are() {
    let folder = Folder::new("callers");
    let image = hard_disk(&[code16(AT, drive_place)]);
    let place = |machine: &mut Command, devices: &[&str]| {
        let said = folder.path("said");
        let _ = std::fs::remove_file(&said);
        let drive = format!("if=none,id=d,format=raw,file={}", folder.file("edd", &image));
        let log = format!("file:{said}");
        let args = [&["-debugcon", &log, "-drive", &drive], devices].concat();
        ends_content(&format!("{devices:?}"), machine, &args);
        let said = std::fs::read(&said).unwrap();
        // The firmware's own text comes first.
        said[said.len() - 140..].to_vec()
    };
    let path = |seen: &[u8]| (seen[30..66].to_vec(), seen[66 + 30..].to_vec());
    let own: [(&[&str], &[u8; 12], [u8; 16]); 5] = [
        (
            &["-device", "virtio-blk-pci,drive=d,addr=5"],
            b"PCI SCSI    ",
            [5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        (
            &["-device", "virtio-blk-pci,drive=d,id=v,addr=6"],
            b"PCI SCSI    ",
            [6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        (
            &["-device", "virtio-scsi-pci,addr=7", "-device", "scsi-hd,drive=d,scsi-id=2,lun=3"],
            b"PCI SCSI    ",
            [7, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0, 0, 0, 0, 0, 0],
        ),
        (
            &[
                "-device",
                "virtio-scsi-pci,addr=8,id=a",
                "-device",
                "scsi-hd,drive=d,id=disk,bus=a.0,scsi-id=1",
            ],
            b"PCI SCSI    ",
            [8, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        (
            &["-device", "nvme,drive=d,serial=s,addr=9"],
            b"PCI NVME    ",
            [9, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
    ];
    for (devices, names, rest) in own {
        let (short, long) = path(&place(&mut command(&["run"]), devices));
        // Bus 0, then the slot.
        let want = [&names[..], &[0], &rest[..15]].concat();
        assert_eq!(short[6..34], want, "{devices:?}");
        assert_eq!(long[6..34], want, "{devices:?}");
        let sum = |b: &[u8]| b.iter().fold(0u8, |s, b| s.wrapping_add(*b));
        assert_eq!((short[2], long[2], sum(&short), sum(&long)), (36, 44, 0, 0), "{devices:?}");
    }
}
