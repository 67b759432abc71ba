//! What a guest has on its screen: it sets a mode by the VGA's registers and draws, and the picture is QEMU's, if that
//! is there; and it is drawn anew while the guest goes on.
#![cfg(unix)]
mod kit;
#[path = "../devices/src/display/vga/modes.rs"]
mod modes;

use iced_x86::code_asm::*;
use kit::*;
use mynah::cli::build;
use mynah::machine::Machine;
use mynah_devices::display::{Screen, Surface, dump};
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Slot 4, as `-device VGA,addr=4` has it.
const VGA: u32 = 0x8000_2000;
const LFB: u32 = 0xe000_0000;
/// What the guest does, in records of three words.
const SCRIPT: u32 = BASE + 0x3000;

/// A record of a script.
#[derive(Clone, Copy)]
enum Step {
    Out8(u32, u32),
    Out16(u32, u32),
    Out32(u32, u32),
    In8(u32),
    Store(u32, u32),
    /// Bytes of a pattern, which begins at a place of its own: address, length, where.
    Pattern(u32, u32, u32),
}

impl Step {
    fn words(self) -> [u32; 4] {
        match self {
            Self::Out8(port, value) => [1, port, value, 0],
            Self::Out16(port, value) => [2, port, value, 0],
            Self::Out32(port, value) => [3, port, value, 0],
            Self::In8(port) => [4, port, 0, 0],
            Self::Store(at, value) => [5, at, value, 0],
            Self::Pattern(at, len, from) => [6, at, len, from],
        }
    }
}

/// Follows the script, sends a letter by COM1, and counts at `LFB` for good.
fn guest(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut labels = [(); 9].map(|()| a.create_label());
    let [next, pattern, fill, end, count, ..] = &mut labels;
    a.mov(esi, SCRIPT)?;
    a.set_label(next)?;
    a.lodsd()?;
    a.mov(ebp, eax)?;
    a.lodsd()?;
    a.mov(edi, eax)?;
    a.mov(edx, eax)?;
    a.lodsd()?;
    a.mov(ecx, eax)?;
    a.mov(ebx, dword_ptr(esi))?;
    a.add(esi, 4)?;
    a.test(ebp, ebp)?;
    a.jz(*end)?;
    a.cmp(ebp, 6)?;
    a.je(*pattern)?;
    for step in 1..=5 {
        let mut other = a.create_label();
        a.cmp(ebp, step)?;
        a.jne(other)?;
        match step {
            1 => a.out(dx, al)?,
            2 => a.out(dx, ax)?,
            3 => a.out(dx, eax)?,
            4 => a.in_(al, dx)?,
            _ => a.mov(dword_ptr(edi), eax)?,
        }
        a.jmp(*next)?;
        a.set_label(&mut other)?;
        a.nop()?;
    }
    a.set_label(pattern)?;
    a.nop()?;
    a.set_label(fill)?;
    a.mov(eax, ebx)?;
    a.shr(eax, 7)?;
    a.xor(al, bl)?;
    a.mov(byte_ptr(edi), al)?;
    a.inc(edi)?;
    a.inc(ebx)?;
    a.dec(ecx)?;
    a.jnz(*fill)?;
    a.jmp(*next)?;
    a.set_label(end)?;
    send(a, b'd')?;
    a.xor(ebx, ebx)?;
    a.set_label(count)?;
    a.test(edi, edi)?;
    let mut still = a.create_label();
    a.jz(still)?;
    a.inc(ebx)?;
    a.mov(dword_ptr(edi), ebx)?;
    a.set_label(&mut still)?;
    a.jmp(*count)
}

/// The BARs are set up, a mode of the BIOS is set, nothing blinks.
fn mode(mode: u8) -> Vec<Step> {
    let mut steps = Vec::new();
    for (at, value) in [(0x10, LFB), (0x04, 3)] {
        steps.extend([Step::Out32(0xcf8, VGA | at), Step::Out32(0xcfc, value)]);
    }
    // No linear mode, if firmware has set one.
    steps.extend([Step::Out16(0x1ce, 4), Step::Out16(0x1cf, 0), Step::In8(0x3da), Step::In8(0x3ba)]);
    let writes = modes::writes(mode);
    steps.extend(writes.into_iter().map(|(port, value)| Step::Out8(port.into(), value.into())));
    steps.extend([Step::Out16(0x3d4, 0x200a), Step::In8(0x3da)]);
    let blink = if mode == 3 { 0x04 } else { 0x01 | (0x40 * u32::from(mode >= 0x13)) };
    steps.extend([0x10, blink, 0x20].map(|v| Step::Out8(0x3c0, v)));
    steps
}

fn text() -> Vec<Step> {
    // A font of which no glyph is as another.
    let mut steps = mode(3);
    let set = |port: u32, pairs: &[(u32, u32)]| -> Vec<Step> {
        pairs.iter().map(|(index, value)| Step::Out16(port, value << 8 | index)).collect()
    };
    steps.extend(set(0x3c4, &[(2, 4), (4, 6)]));
    steps.extend(set(0x3ce, &[(5, 0), (6, 4)]));
    for code in 0..256_u32 {
        let glyph = [0x7e00 | code << 24, 0x4281_0042 | code << 8, code.wrapping_mul(0x0102_0408), 0x007e];
        let rows = (0..).zip(glyph).map(|(n, v)| Step::Store(0xa_0000 + 32 * code + 4 * n, v));
        steps.extend(rows);
    }
    steps.extend(mode(3));
    steps.push(Step::Pattern(0xb_8000, 4000, 0));
    steps
}

fn planar(number: u8, len: u32) -> Vec<Step> {
    let mut steps = mode(number);
    for plane in 0..4 {
        steps.push(Step::Out16(0x3c4, 0x100 << plane | 2));
        steps.push(Step::Pattern(0xa_0000, len, plane * 1000));
    }
    steps
}

fn linear(x: u32, y: u32, bits: u32) -> Vec<Step> {
    let mut steps = mode(0x13);
    for (index, value) in [(1, x), (2, y), (3, bits), (4, 0x41)] {
        steps.extend([Step::Out16(0x1ce, index), Step::Out16(0x1cf, value)]);
    }
    steps.push(Step::Pattern(LFB, x * y * bits.div_ceil(8), 0));
    steps
}

fn kernel(steps: &[Step]) -> Vec<u8> {
    let words = steps.iter().flat_map(|s| s.words());
    let mut guest = Guest::new(&guest);
    let script: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    // The end, and where it counts.
    let end = [0, if matches!(steps.last(), Some(Step::Pattern(LFB, ..))) { LFB } else { 0 }, 0, 0];
    guest.data.push((SCRIPT, [script, end.map(u32::to_le_bytes).concat()].concat()));
    guest.image()
}

/// Runs the guest until it has drawn, and some more.
fn mynah(folder: &Folder, steps: &[Step], accel: &str, mut look: impl FnMut(&dyn Fn(&mut Screen) -> usize)) {
    let kernel = folder.file("kernel", &kernel(steps));
    let serial = format!("file:{}", folder.path("com1"));
    let _ = fs::remove_file(folder.path("com1"));
    let args = ["-display", "none", "-m", "16", "-accel", accel, "-kernel", &kernel, "-monitor", "none"];
    let more = ["-serial", &serial, "-device", "VGA,addr=4"];
    let words: Vec<OsString> = args.iter().chain(&more).map(Into::into).collect();
    let machine = Machine::new(build::config("mynah run", &words).unwrap()).unwrap();
    let handle = machine.handle();
    let thread = std::thread::spawn(move || machine.run());
    until(|| fs::read(folder.path("com1")).is_ok_and(|said| said == b"d"));
    let displays = handle.displays();
    assert_eq!(displays.len(), 1);
    look(&|screen| displays[0].1.refresh(screen).len());
    handle.end();
    drop(displays);
    thread.join().unwrap().unwrap();
}

fn until(mut what: impl FnMut() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(120), "it has not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// QEMU's picture.
fn qemu(folder: &Folder, steps: &[Step]) -> Vec<u8> {
    let kernel = folder.file("kernel", &kernel(steps));
    let (serial, picture) = (folder.path("com1-qemu"), folder.path("picture"));
    let _ = (fs::remove_file(&serial), fs::remove_file(&picture));
    let args = ["-display", "none", "-m", "16", "-accel", "tcg", "-kernel", &kernel, "-nodefaults"];
    let file = format!("file:{serial}");
    let mut child = Command::new("qemu-system-x86_64")
        .args(args)
        .args(["-serial", &file, "-device", "VGA,addr=4", "-monitor", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("QEMU starts");
    until(|| fs::read(&serial).is_ok_and(|said| said == b"d"));
    let mut monitor = child.stdin.take().unwrap();
    monitor.write_all(format!("stop\nscreendump {picture}\nquit\n").as_bytes()).unwrap();
    child.wait().unwrap();
    fs::read(&picture).unwrap()
}

fn ppm(surface: &Surface) -> Vec<u8> {
    let mut bytes = Vec::new();
    dump::ppm(surface, &mut bytes).unwrap();
    bytes
}

/// Whether a byte of the text's picture is in the ninth column of a character from B0h to BFh: there QEMU has the
/// eighth once more, and the VGA does so from C0h on.
fn ninth_of_b0(at: usize) -> bool {
    let (x, y) = (at / 3 % 720, at / 3 / 720);
    let cell = 2 * (y / 16 * 80 + x / 9);
    x % 9 == 8 && (0xb0..0xc0).contains(&((cell >> 7 ^ cell) & 0xff))
}

#[test]
fn pictures_are_those_of_qemu() {
    if Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: there is no qemu-system-x86_64 to compare with");
        return;
    }
    let scenes = [
        ("text", text()),
        ("cga", [mode(4), vec![Step::Pattern(0xb_8000, 0x4000, 5)]].concat()),
        ("cga-mono", [mode(6), vec![Step::Pattern(0xb_8000, 0x4000, 5)]].concat()),
        ("planar-320", planar(0x0d, 8000)),
        ("planar-640", planar(0x12, 38400)),
        ("mode-13h", [mode(0x13), vec![Step::Pattern(0xa_0000, 64000, 0)]].concat()),
        ("mode-x", planar(0x14, 16000)),
        ("linear-8", linear(640, 480, 8)),
        ("linear-15", linear(320, 200, 15)),
        ("linear-16", linear(800, 600, 16)),
        ("linear-24", linear(320, 200, 24)),
        ("linear-32", linear(1024, 768, 32)),
    ];
    let folder = Folder::new("screen");
    for (name, steps) in scenes {
        let theirs = qemu(&folder, &steps);
        mynah(&folder, &steps, "jit,cache=off", |refresh| {
            let mut screen = Screen::default();
            refresh(&mut screen);
            let ours = ppm(screen.surface());
            let head = |b: &[u8]| String::from_utf8_lossy(&b[..15.min(b.len())]).into_owned();
            assert_eq!(ours.len(), theirs.len(), "{name}: {:?}, and {:?}", head(&ours), head(&theirs));
            // QEMU has six bits of a palette's colours, and five of those in 15 or 16 bits. The first pixel is one that
            // the guest counts in.
            let lost = match name {
                "linear-24" | "linear-32" => 0,
                "linear-15" | "linear-16" => 3,
                _ => 2,
            };
            let same = |a: &u8, b: &u8| a >> lost == b >> lost;
            let pixels = ours.iter().zip(&theirs).enumerate().skip(32);
            let differ = pixels
                .filter(|(at, _)| name != "text" || !ninth_of_b0(at - 15))
                .find(|(_, (a, b))| !same(a, b));
            if let (Some(_), Ok(directory)) = (differ, std::env::var("MYNAH_PICTURES")) {
                fs::write(format!("{directory}/{name}-ours.ppm"), &ours).unwrap();
                fs::write(format!("{directory}/{name}-qemu.ppm"), &theirs).unwrap();
            }
            assert_eq!(differ, None, "{name}");
        });
    }
}

#[test]
fn what_a_guest_draws_is_seen_while_it_draws() {
    let folder = Folder::new("screen-live");
    for accel in ["interp", "jit,cache=off"] {
        mynah(&folder, &linear(640, 480, 32), accel, |refresh| {
            let mut screen = Screen::default();
            refresh(&mut screen);
            let mut looks = 0;
            for _ in 0..10 {
                let before = screen.surface().pixels()[0];
                until(|| {
                    looks += 1;
                    refresh(&mut screen) == 1
                });
                assert_ne!(screen.surface().pixels()[0], before, "{accel}");
            }
            // Every 32nd look finds what no page tells of.
            assert!(looks < 160, "{accel}: 10 changes in {looks} looks");
        });
    }
}
