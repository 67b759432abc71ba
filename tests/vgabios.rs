//! INT 10h of the built-in BIOS beside SeaBIOS' VGA BIOS under QEMU: a boot sector makes the same calls, and registers,
//! memory and pictures are the same.
#![cfg(unix)]
mod kit;

use iced_x86::IcedError;
use kit::Folder;
use mynah::cli::build;
use mynah::machine::Machine;
use mynah_devices::display::{Screen, dump};
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where the script is loaded, behind the boot sector; data that calls are given, and where they put theirs.
const SCRIPT: u16 = 0x7e00;
const SECTORS: usize = 48;
const DATA: u16 = 0xd000;
const BUFFER: u16 = 0xd800;

/// Registers of a call.
#[derive(Clone, Copy, Default)]
struct Call {
    ax: u16,
    bx: u16,
    cx: u16,
    dx: u16,
    bp: u16,
    di: u16,
    /// Bytes at ES:DI that are compared afterwards, instead of making a call.
    dump: u16,
    /// A bit for each of AX, BX, CX, DX, BP, DI that is not compared.
    ignored: u16,
}

impl Call {
    fn new(ax: u16) -> Self {
        Self { ax, ..Self::default() }
    }
    fn bx(self, bx: u16) -> Self {
        Self { bx, ..self }
    }
    fn cx(self, cx: u16) -> Self {
        Self { cx, ..self }
    }
    fn dx(self, dx: u16) -> Self {
        Self { dx, ..self }
    }
    fn bp(self, bp: u16) -> Self {
        Self { bp, ..self }
    }
    fn di(self, di: u16) -> Self {
        Self { di, ..self }
    }
    fn ignoring(self, ignored: u16) -> Self {
        Self { ignored, ..self }
    }
}

/// A boot sector that loads the rest, makes the calls, and sends what they give by COM1.
fn image(calls: &[Call], data: &[u8]) -> Vec<u8> {
    let code = boot_sector().unwrap();
    let mut image = vec![0; 512 * (1 + SECTORS) + (1 << 20)];
    image[..code.len()].copy_from_slice(&code);
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut at = 512;
    for c in calls {
        for word in [1, c.ax, c.bx, c.cx, c.dx, c.bp, c.di, c.dump] {
            image[at..at + 2].copy_from_slice(&word.to_le_bytes());
            at += 2;
        }
    }
    let data_at = 512 + usize::from(DATA - SCRIPT);
    assert!(at + 16 <= data_at && data.len() <= usize::from(BUFFER - DATA));
    image[data_at..data_at + data.len()].copy_from_slice(data);
    image
}

fn boot_sector() -> Result<Vec<u8>, IcedError> {
    use iced_x86::code_asm::*;
    let mut a = CodeAssembler::new(16)?;
    let mut labels = [(); 6].map(|()| a.create_label());
    let [next, dump, send, wait, end, here] = &mut labels;
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    a.mov(es, ax)?;
    a.mov(ss, ax)?;
    a.mov(sp, 0x7c00)?;
    a.cld()?;
    a.mov(ax, 0x0200 + SECTORS as i32)?;
    a.mov(bx, u32::from(SCRIPT))?;
    a.mov(cx, 2)?;
    a.mov(dx, 0x80)?;
    a.int(0x13)?;
    a.mov(si, u32::from(SCRIPT))?;
    a.set_label(next)?;
    a.cmp(word_ptr(si), 0)?;
    a.je(*end)?;
    a.cmp(word_ptr(si + 14), 0)?;
    a.jne(*dump)?;
    a.push(si)?;
    a.mov(ax, word_ptr(si + 2))?;
    a.mov(bx, word_ptr(si + 4))?;
    a.mov(cx, word_ptr(si + 6))?;
    a.mov(dx, word_ptr(si + 8))?;
    a.mov(bp, word_ptr(si + 10))?;
    a.mov(di, word_ptr(si + 12))?;
    a.int(0x10)?;
    a.pusha()?;
    a.xor(ax, ax)?;
    a.mov(es, ax)?;
    a.mov(ds, ax)?;
    // DI SI BP SP BX DX CX AX, as they lie.
    a.mov(si, sp)?;
    a.mov(cx, 16)?;
    a.call(*send)?;
    a.popa()?;
    a.pop(si)?;
    a.add(si, 16)?;
    a.jmp(*next)?;
    a.set_label(dump)?;
    a.push(si)?;
    a.mov(cx, word_ptr(si + 14))?;
    a.mov(si, word_ptr(si + 12))?;
    a.call(*send)?;
    a.pop(si)?;
    a.add(si, 16)?;
    a.jmp(*next)?;
    // CX bytes at SI.
    a.set_label(send)?;
    a.lodsb()?;
    a.mov(ah, al)?;
    a.set_label(wait)?;
    a.mov(dx, 0x3fd)?;
    a.in_(al, dx)?;
    a.test(al, 0x20)?;
    a.jz(*wait)?;
    a.mov(dx, 0x3f8)?;
    a.mov(al, ah)?;
    a.out(dx, al)?;
    a.loop_(*send)?;
    a.ret()?;
    a.set_label(end)?;
    for c in *b"END" {
        a.mov(byte_ptr(0x600), i32::from(c))?;
        a.mov(si, 0x600)?;
        a.mov(cx, 1)?;
        a.call(*send)?;
    }
    a.set_label(here)?;
    a.hlt()?;
    a.jmp(*here)?;
    let code = a.assemble(0x7c00)?;
    assert!(code.len() <= 510);
    Ok(code)
}

/// What came by COM1, and the picture.
type Seen = (Vec<u8>, Vec<u8>);

fn until(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(120), "it has not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn mynah(folder: &Folder, image: &str) -> Seen {
    let serial = folder.path("com1");
    let _ = fs::remove_file(&serial);
    let (drive, file) = (format!("file={image},format=raw"), format!("file:{serial}"));
    let args = ["-display", "none", "-m", "16", "-drive", &drive, "-serial", &file, "-monitor", "none"];
    let words: Vec<OsString> = args.iter().map(Into::into).collect();
    let machine = Machine::new(build::config("mynah run", &words).unwrap()).unwrap();
    let handle = machine.handle();
    let thread = std::thread::spawn(move || machine.run());
    until(|| fs::read(&serial).is_ok_and(|said| said.ends_with(b"END")));
    let displays = handle.displays();
    let mut screen = Screen::default();
    displays[0].1.refresh(&mut screen);
    let mut picture = Vec::new();
    dump::ppm(screen.surface(), &mut picture).unwrap();
    handle.end();
    drop(displays);
    thread.join().unwrap().unwrap();
    (fs::read(&serial).unwrap(), picture)
}

fn qemu(folder: &Folder, image: &str) -> Seen {
    let (serial, picture) = (folder.path("com1-qemu"), folder.path("picture"));
    let _ = (fs::remove_file(&serial), fs::remove_file(&picture));
    let (drive, file) = (format!("file={image},format=raw"), format!("file:{serial}"));
    let mut child = Command::new("qemu-system-x86_64")
        .args(["-display", "none", "-m", "16", "-accel", "tcg", "-drive", &drive, "-serial", &file])
        .args(["-monitor", "stdio", "-nic", "none"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("QEMU starts");
    until(|| fs::read(&serial).is_ok_and(|said| said.ends_with(b"END")));
    let mut monitor = child.stdin.take().unwrap();
    monitor.write_all(format!("stop\nscreendump {picture}\nquit\n").as_bytes()).unwrap();
    child.wait().unwrap();
    (fs::read(&serial).unwrap(), fs::read(&picture).unwrap())
}

fn teletype(text: &str, colour: u16) -> Vec<Call> {
    text.bytes().map(|c| Call::new(0x0e00 | u16::from(c)).bx(colour)).collect()
}

/// Text in many ways, on whatever mode is on.
fn writing(colours: u16) -> Vec<Call> {
    let mut calls = teletype("Hello, screen!\r\nnext\x08T\r\n", 0x0f & colours);
    // A character so many times, with colours; the cursor stays.
    calls.push(Call::new(0x0200).dx(0x0305));
    calls.push(Call::new(0x0941).bx(0x1e & colours).cx(3));
    calls.push(Call::new(0x0a42).bx(0x02 & colours).cx(2));
    calls.push(Call::new(0x0300));
    calls.push(Call::new(0x0200).dx(0x0306));
    calls.push(Call::new(0x0800));
    // Strings: with one attribute, with one each, with the cursor moved.
    calls.push(Call::new(0x1300).bx(0x0c & colours).cx(5).dx(0x0602).bp(DATA));
    calls.push(Call::new(0x1301).bx(0x0a & colours).cx(5).dx(0x0702).bp(DATA));
    calls.push(Call::new(0x0300));
    // Windows that scroll.
    calls.push(Call::new(0x0601).bx(0x0300 & colours << 8).cx(0x0002).dx(0x0a14));
    calls.push(Call::new(0x0702).bx(0x0500 & colours << 8).cx(0x0204).dx(0x0c10));
    calls.push(Call::new(0x0600).bx(0x0200 & colours << 8).cx(0x1010).dx(0x1220));
    calls
}

struct Scene {
    name: &'static str,
    calls: Vec<Call>,
    picture: bool,
}

fn scenes() -> Vec<Scene> {
    let mut all = Vec::new();
    let mut scene = |name, calls: Vec<Call>, picture| all.push(Scene { name, calls, picture });
    let hidden = || vec![Call::new(0x0100).cx(0x2000)];
    let set = |mode: u16| vec![Call::new(mode), Call::new(0x0f00)];
    scene("text", [set(3), writing(0xff), hidden()].concat(), true);
    // Pictures are not compared where QEMU has 16 dots for a character, and not 18.
    scene("text-40", [set(1), writing(0xff), hidden()].concat(), false);
    let many: Vec<Call> = (0..30).flat_map(|n| teletype(&format!("line {n}\r\n"), 7)).collect();
    scene("scrolled", [set(3), many.clone(), hidden()].concat(), true);
    let fifty = vec![Call::new(0x1112), Call::new(0x1130).bx(0x0300).ignoring(0b01_0000)];
    scene("text-50", [set(3), fifty, writing(0xff), hidden()].concat(), true);
    let pages = vec![
        Call::new(0x0200).bx(0x0100).dx(0x0203),
        Call::new(0x0950).bx(0x011f).cx(9),
        Call::new(0x0501),
        Call::new(0x0f00),
        Call::new(0x0300).bx(0x0100),
    ];
    scene("pages", [set(3), pages, hidden()].concat(), true);
    for (name, mode) in [("cga-4", 4), ("cga-6", 6), ("ega-0d", 0x0d), ("ega-0e", 0x0e), ("ega-10", 0x10)] {
        scene(name, [set(mode), writing(0x0f)].concat(), true);
    }
    let dots: Vec<Call> = (0..40)
        .map(|n| Call::new(0x0c00 | (n & 15)).cx(50 + n * 3).dx(60 + n * n / 20))
        .chain([
            Call::new(0x0c85).cx(53).dx(60),
            Call::new(0x0d00).cx(53).dx(60),
            Call::new(0x0d00).cx(56).dx(60),
        ])
        .collect();
    scene("vga-12", [set(0x12), writing(0x0f), dots.clone()].concat(), true);
    scene("vga-13", [set(0x13), writing(0x7f)].concat(), true);
    scene("scrolled-12", [set(0x12), many].concat(), true);
    let palette = vec![
        Call::new(0x1000).bx(0x3401),
        Call::new(0x1007).bx(0x0001),
        Call::new(0x1001).bx(0x0900),
        Call::new(0x1008),
        Call::new(0x1010).bx(0x0034).cx(0x1122).dx(0x3300),
        Call::new(0x1015).bx(0x0034),
        Call::new(0x1012).bx(0x0000).cx(2).dx(DATA + 48),
        Call::new(0x1017).bx(0x0000).cx(4).dx(BUFFER),
        Call { di: BUFFER, dump: 12, ..Call::default() },
        Call::new(0x1003).bx(0x0000),
        Call::new(0x101a),
        // QEMU's VGA has no mask.
        Call::new(0x1019).ignoring(0b10),
        Call::new(0x1009).dx(BUFFER),
        Call { di: BUFFER, dump: 17, ..Call::default() },
    ];
    scene("palette", [set(3), teletype("colours", 7), palette, hidden()].concat(), true);
    let asked = vec![
        Call::new(0x1210).bx(0x0010),
        Call::new(0x1202).bx(0x0030),
        Call::new(0x1201).bx(0x0034),
        Call::new(0x1200).bx(0x0034),
        Call::new(0x1a00),
        Call::new(0x1b00).di(BUFFER),
        Call { di: BUFFER + 4, dump: 30 - 2, ..Call::default() },
        Call { di: BUFFER + 0x22, dump: 4, ..Call::default() },
    ];
    scene("asked", [set(3), asked].concat(), false);
    let modes = [
        0x100, 0x101, 0x103, 0x105, 0x107, 0x10d, 0x10f, 0x111, 0x112, 0x115, 0x118, 0x11e, 0x142, 0x144,
        0x18c, 0x192,
    ];
    let mut vbe = vec![
        Call::new(0x4f00).di(BUFFER),
        Call { di: BUFFER, dump: 6, ..Call::default() },
        Call { di: BUFFER + 10, dump: 4, ..Call::default() },
        Call { di: BUFFER + 18, dump: 2, ..Call::default() },
    ];
    for mode in modes {
        vbe.push(Call::new(0x4f01).cx(mode).di(BUFFER));
        // Windows; the pitch and what follows to the fields; the framebuffer of linear modes.
        vbe.extend([(2, 10), (16, 12), (31, 8)].map(|(at, n)| Call {
            di: BUFFER + at,
            dump: n,
            ..Call::default()
        }));
    }
    vbe.push(Call::new(0x4f01).cx(0x1ff).di(BUFFER));
    vbe.extend([
        Call::new(0x4f02).bx(0x4112),
        Call::new(0x4f03),
        Call::new(0x4f06).bx(0x0001),
        Call::new(0x4f06).bx(0x0000).cx(1024),
        Call::new(0x4f07).bx(0x0000).cx(16).dx(4),
        Call::new(0x4f07).bx(0x0001),
        Call::new(0x4f02).bx(0x0105),
        Call::new(0x4f05).bx(0x0000).dx(3),
        Call::new(0x4f05).bx(0x0100),
        Call::new(0x4f08).bx(0x0800),
        Call::new(0x4f08).bx(0x0001),
        // SeaBIOS has no palette by VBE.
        Call::new(0x4f09).bx(0x0000).cx(2).dx(5).di(DATA + 48).ignoring(1),
        Call::new(0x4f15).bx(0x0001).di(BUFFER),
        Call { di: BUFFER, dump: 8, ..Call::default() },
        Call::new(0x4f02).bx(0x0003),
        Call::new(0x4f03),
    ]);
    scene("vbe", vbe, false);
    // SeaBIOS writes to the first 64 KiB alone.
    scene("vbe-text", [vec![Call::new(0x4f02).bx(0x0101)], writing(0x0f)].concat(), false);
    all
}

#[test]
fn int_10h_is_as_under_seabios() {
    if Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: there is no qemu-system-x86_64 to compare with");
        return;
    }
    let folder = Folder::new("vgabios");
    let mut wrong = Vec::new();
    for Scene { name, calls, picture } in scenes() {
        let file = folder.file(
            name,
            &image(
                &calls,
                b"Words and more of them, with many bytes.        \x01\x3f\x20\x3e\x11\x02\x03\x04",
            ),
        );
        let (ours, theirs) = (mynah(&folder, &file), qemu(&folder, &file));
        let (mut a, mut b) = (&ours.0[..], &theirs.0[..]);
        for (n, call) in calls.iter().enumerate() {
            let len = if call.dump != 0 { usize::from(call.dump) } else { 16 };
            if a.len() < len || b.len() < len {
                wrong.push(format!("{name}: call {n}: nothing came"));
                break;
            }
            let (x, y) = (&a[..len], &b[..len]);
            (a, b) = (&a[len..], &b[len..]);
            if call.dump != 0 {
                if x != y {
                    wrong.push(format!("{name}: {n}: at {:#x}: {x:02x?}, and {y:02x?}", call.di));
                }
                continue;
            }
            let word = |b: &[u8], at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
            let registers = [("ax", 14), ("bx", 8), ("cx", 12), ("dx", 10), ("bp", 4), ("di", 0)];
            for (bit, (register, at)) in registers.into_iter().enumerate() {
                if call.ignored >> bit & 1 == 0 && word(x, at) != word(y, at) {
                    let (ax, bx) = (call.ax, call.bx);
                    let (x, y) = (word(x, at), word(y, at));
                    wrong.push(format!(
                        "{name}: {n}: {ax:04x} bx {bx:04x}: {register} is {x:04x}, and {y:04x}"
                    ));
                }
            }
        }
        if !picture {
            continue;
        }
        if let Ok(directory) = std::env::var("MYNAH_PICTURES") {
            fs::write(format!("{directory}/{name}-ours.ppm"), &ours.1).unwrap();
            fs::write(format!("{directory}/{name}-qemu.ppm"), &theirs.1).unwrap();
        }
        // QEMU has six bits of a palette's colours.
        let same =
            ours.1.len() == theirs.1.len() && ours.1.iter().zip(&theirs.1).all(|(a, b)| a >> 2 == b >> 2);
        if !same {
            wrong.push(format!(
                "{name}: the pictures differ ({} and {} bytes)",
                ours.1.len(),
                theirs.1.len()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
