//! Every x87 instruction, executed by its helper and by the chip on the same random state: registers, status,
//! tags, memory and flags must agree.
use super::rig::{OPERAND, Random, Rig, on_intel};
use crate::state::{F80, gpr};
use crate::x87::word::{C0, C2, C3, CC};
use std::collections::BTreeMap;

const ARITH: u64 = 0x8d5;

/// A page of code: FRSTOR [rdi]; push rdx; popfq; the instruction; mov r8, rax; pushfq; pop rax; FNSAVE
/// [rdi]; mov [rdi+112], r8; ret.
struct Page(*mut u8);

impl Page {
    fn new() -> Self {
        // SAFETY: a fresh private mapping.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(p, libc::MAP_FAILED);
        Self(p.cast())
    }

    fn load(&self, instruction: &[u8]) {
        let mut code = vec![0xdd, 0x27, 0x52, 0x9d];
        code.extend_from_slice(instruction);
        code.extend_from_slice(&[0x49, 0x89, 0xc0, 0x9c, 0x58, 0xdd, 0x37, 0x4c, 0x89, 0x47, 0x70, 0xc3]);
        // SAFETY: the page has 4096 bytes; nothing executes it now.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.0, code.len()) };
    }

    /// Executes on the state in `image`; the operand in `memory`; returns the flags.
    fn run(&self, image: &mut [u8; 128], memory: &mut [u8; 256], flags: u64) -> u64 {
        type Code = unsafe extern "sysv64" fn(*mut u8, *mut u8, u64) -> u64;
        // SAFETY: `load` has put such a function there. It touches the two buffers, which are as large as any
        // instruction needs, and the x87 unit, which FNSAVE leaves as the ABI wants it; no exception is
        // pending when a waiting instruction executes.
        unsafe {
            let f: Code = std::mem::transmute(self.0);
            f(image.as_mut_ptr(), memory.as_mut_ptr(), flags)
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: unmaps what `new` mapped.
        unsafe { libc::munmap(self.0.cast(), 4096) };
    }
}

fn word(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

fn put80(b: &mut [u8], x: F80) {
    b[..8].copy_from_slice(&x.mant.to_le_bytes());
    b[8..10].copy_from_slice(&x.exp.to_le_bytes());
}

/// A random image for FRSTOR without a pending exception.
fn image(r: &mut Random) -> [u8; 128] {
    let mut b = [0u8; 128];
    let cw = r.control();
    let sticky = if r.chance(2) { 0 } else { (r.next() as u16 & cw & 0x3f) | (r.next() as u16 & 0x40) };
    let sw = (r.next() as u16 & 0x7f00) | sticky;
    let tags = match r.below(4) {
        0 => r.next() as u8,
        1 => 0,
        // ST(7) empty: room to push.
        _ => 1 << (((sw >> 11) + 7) & 7) | if r.chance(4) { r.next() as u8 & r.next() as u8 } else { 0 },
    };
    let tw = (0..8).fold(0u16, |w, i| w | if tags >> i & 1 != 0 { 3 << (2 * i) } else { 0 });
    b[0..2].copy_from_slice(&cw.to_le_bytes());
    b[4..6].copy_from_slice(&sw.to_le_bytes());
    b[8..10].copy_from_slice(&tw.to_le_bytes());
    for i in 0..8 {
        put80(&mut b[28 + 10 * i..], r.f80());
    }
    b
}

/// A random operand in memory for the instruction.
fn operand(r: &mut Random, instruction: &[u8]) -> [u8; 256] {
    let mut m = [0u8; 256];
    let narrow = instruction[0] == 0x66;
    let i = if narrow { &instruction[1..] } else { instruction };
    match (i[0], i[1] >> 3 & 7) {
        (0xd8, _) | (0xd9, 0) => m[..4].copy_from_slice(&r.f32().to_le_bytes()),
        (0xdc, _) | (0xdd, 0) => m[..8].copy_from_slice(&r.f64().to_le_bytes()),
        (0xdb, 5) => put80(&mut m, r.f80()),
        (0xd9, 4) | (0xdd, 4) => {
            let img = image(r);
            if narrow {
                for n in 0..7 {
                    m[2 * n..2 * n + 2].copy_from_slice(&img[4 * n..4 * n + 2]);
                }
                m[14..94].copy_from_slice(&img[28..108]);
            } else {
                m[..128].copy_from_slice(&img);
            }
            if r.chance(2) {
                // Exceptions pending, and whatever tags.
                let w = if narrow { 2 } else { 4 };
                m[w] = r.next() as u8;
                m[w + 1] = r.next() as u8;
                m[2 * w] = r.next() as u8;
                m[2 * w + 1] = r.next() as u8;
            }
        }
        (0xdf, 4) => {
            for x in &mut m[..9] {
                *x = (r.below(10) << 4 | r.below(10)) as u8;
            }
            m[9] = r.next() as u8;
        }
        _ => {
            let v = r.next() >> r.below(64);
            let v = if r.chance(2) { v } else { v.wrapping_neg() };
            m[..8].copy_from_slice(&v.to_le_bytes());
            for x in &mut m[8..16] {
                *x = r.next() as u8;
            }
        }
    }
    m
}

/// Bits of the status word that the manual leaves undefined after the instruction. Our choice is that of
/// AMD's chips.
fn undefined(i: &[u8]) -> u16 {
    if !on_intel() {
        return 0;
    }
    let register = i[1] >= 0xc0;
    match (i[0], i[1] >> 3 & 7, register) {
        // Comparisons, FTST and FXAM define all; FNSTSW, FLDENV and the like move the word.
        (0xd8 | 0xda | 0xdc | 0xde, 2 | 3, false) | (0xd8 | 0xdc, 2 | 3, true) => 0,
        (0xdd, 4 | 5, true) | (0xde, 3, true) | (0xda, 5, true) => 0,
        (0xd9, 4, true) if i[1] >= 0xe4 => 0,
        (0xd9 | 0xdd, 4..=7, false) | (0x66, ..) => 0,
        // FFREE, FFREEP, FNCLEX, FNOP and what is reserved: all undefined.
        (0xdd | 0xdf, 0, true) | (0xdb, 4, true) | (0xd9, 2, true) => CC,
        // FPREM and the trigonometric functions define more than C1 unless they fail.
        (0xd9, 6 | 7, true) => C0 | C3,
        _ => C0 | C2 | C3,
    }
}

/// Loads the vCPU's unit from an image.
fn load(rig: &mut Rig, b: &[u8; 128]) {
    let f = &mut rig.cpu.state.fpu;
    f.init();
    f.set_control(word(b, 0));
    f.set_status(word(b, 4));
    f.set_tag_word(word(b, 8));
    for i in 0..8u8 {
        let x = &b[28 + 10 * usize::from(i)..];
        let p = f.phys(i);
        f.r[p] = F80 { mant: u64::from_le_bytes(x[..8].try_into().unwrap()), exp: word(x, 8) };
    }
}

/// What is compared.
#[derive(PartialEq, Eq)]
struct Seen {
    cw: u16,
    sw: u16,
    tw: u16,
    st: [F80; 8],
    memory: Vec<u8>,
    ax: u16,
    flags: u64,
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(
            f,
            "cw {:04x} sw {:04x} tw {:04x} ax {:04x} flags {:03x} st",
            self.cw, self.sw, self.tw, self.ax, self.flags
        )?;
        for x in &self.st {
            write!(f, " {:04x}.{:016x}", x.exp, x.mant)?;
        }
        write!(f, " mem {:02x?}", &self.memory[..16])
    }
}

fn helper(rig: &mut Rig, i: &[u8], img: &[u8; 128], memory: &[u8; 256], flags: u64) -> Option<Seen> {
    load(rig, img);
    rig.write(memory);
    rig.cpu.state.set_rflags(flags | 2);
    rig.cpu.state.gpr[gpr::RAX] = OPERAND; // anything
    let r = rig.execute(i)?;
    assert_eq!(r, Ok(()), "{i:02x?}");
    let f = &rig.cpu.state.fpu;
    Some(Seen {
        cw: f.cw,
        sw: f.status(),
        tw: f.tag_word(),
        st: std::array::from_fn(|n| f.st(n as u8)),
        memory: rig.read(256),
        ax: rig.cpu.state.gpr[gpr::RAX] as u16,
        flags: rig.cpu.state.rflags() & ARITH,
    })
}

fn native(page: &Page, i: &[u8], img: &[u8; 128], memory: &[u8; 256], flags: u64) -> Seen {
    let (mut b, mut m) = (*img, *memory);
    page.load(i);
    let flags = page.run(&mut b, &mut m, flags | 0x202) & ARITH;
    let ax = if i == [0xdf, 0xe0] { word(&b, 112) } else { OPERAND as u16 };
    Seen {
        cw: word(&b, 0),
        sw: word(&b, 4),
        tw: word(&b, 8),
        st: std::array::from_fn(|n| {
            let x = &b[28 + 10 * n..];
            F80 { mant: u64::from_le_bytes(x[..8].try_into().unwrap()), exp: word(x, 8) }
        }),
        memory: m.to_vec(),
        ax,
        flags,
    }
}

/// All x87 instructions: two bytes each, with [ESI] as the memory operand; the environment ones in both
/// sizes.
fn instructions() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for b0 in 0xd8..=0xdfu8 {
        for reg in 0..8u8 {
            all.push(vec![b0, reg << 3 | 6]);
            if matches!((b0, reg), (0xd9 | 0xdd, 4 | 6)) {
                all.push(vec![0x66, b0, reg << 3 | 6]);
            }
        }
        for modrm in 0xc0..=0xffu8 {
            all.push(vec![b0, modrm]);
        }
    }
    all
}

fn disassemble(i: &[u8]) -> String {
    use iced_x86::Formatter;
    let d = iced_x86::Decoder::new(32, i, iced_x86::DecoderOptions::AMD).decode();
    let mut s = String::new();
    iced_x86::NasmFormatter::new().format(&d, &mut s);
    s
}

/// Blanks the instruction and operand pointers in stored environments: the two sides execute at different
/// addresses.
fn blank(i: &[u8], s: &mut Seen) {
    let wide = match i {
        [0xd9 | 0xdd, 0x36] => true,
        [0x66, 0xd9 | 0xdd, 0x36] => false,
        _ => return,
    };
    let range = if wide { 12..28 } else { 6..14 };
    s.memory[range].fill(0);
}

/// X87_ROUNDS (random states for each instruction) and X87_SEED in the environment make it longer or another.
#[test]
fn every_instruction_does_what_the_chip_does() {
    let number = |name, default| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let rounds = number("X87_ROUNDS", 500);
    let mut r = Random(number("X87_SEED", 0x1234_5678_9abc_def1));
    let mut rig = Rig::new();
    let page = Page::new();
    let mut wrong: BTreeMap<Vec<u8>, (u64, String)> = BTreeMap::new();
    let mut compared = 0;
    for i in instructions() {
        for _ in 0..rounds {
            let (img, memory, flags) = (image(&mut r), operand(&mut r, &i), r.next() & ARITH);
            let Some(mut ours) = helper(&mut rig, &i, &img, &memory, flags) else {
                break;
            };
            let mut theirs = native(&page, &i, &img, &memory, flags);
            blank(&i, &mut ours);
            blank(&i, &mut theirs);
            let mask = undefined(&i);
            ours.sw &= !mask;
            theirs.sw &= !mask;
            compared += 1;
            // A denormal's remainder by an infinity raises no unmasked UE with Intel.
            let infinite = theirs.st[1].exp & 0x7fff == 0x7fff && theirs.st[1].mant == 1 << 63;
            let remainder = matches!(i[..], [0xd9, 0xf5 | 0xf8]) && infinite;
            if on_intel() && remainder && ours.sw & !theirs.sw & 0x10 != 0 {
                continue;
            }
            if ours != theirs {
                let mut before = load_seen(&mut rig, &img, &memory, flags);
                before.ax = 0;
                let e = wrong.entry(i.clone()).or_insert_with(|| {
                    (0, format!("{}\n  from {before}\n  ours {ours}\n  chip {theirs}", disassemble(&i)))
                });
                e.0 += 1;
            }
        }
    }
    assert!(compared > 100 * rounds);
    let report: Vec<String> =
        wrong.iter().map(|(i, (n, s))| format!("{i:02x?}: {n} of {rounds} differ: {s}")).collect();
    assert!(report.is_empty(), "{} instructions differ\n{}", report.len(), report.join("\n"));
}

fn load_seen(rig: &mut Rig, img: &[u8; 128], memory: &[u8; 256], flags: u64) -> Seen {
    load(rig, img);
    let f = &rig.cpu.state.fpu;
    Seen {
        cw: f.cw,
        sw: f.status(),
        tw: f.tag_word(),
        st: std::array::from_fn(|n| f.st(n as u8)),
        memory: memory.to_vec(),
        ax: 0,
        flags,
    }
}
