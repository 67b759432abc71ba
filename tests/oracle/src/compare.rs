//! Whether two outcomes of a case are the same, as far as the manuals say what they must be.
//!
//! What is not compared:
//!
//! | what | where | why |
//! | --- | --- | --- |
//! | flags that the manual leaves undefined | as iced-x86 lists them, when the instruction completes (`--flags` shows where they differ) | differ between processors |
//! | error code bit 0 (present) | page faults at addresses that are not the program's | Linux sets it always, to hide its mappings |
//! | which fault | CALL, RETF and IRET that could raise several | processors differ in what they read, write and check first |
//! | memory below the stack pointer | CALL that faults | processors differ in whether they have written the return address |
//! | RPL of null selectors | ES, DS, FS, GS | the kernel's IRET clears them |
//! | MXCSR_MASK | memory written by FXSAVE and XSAVE | the processor's own |
//! | FOP, FIP, FDP | unless this instruction raised an x87 exception; memory written by FXSAVE, XSAVE, FNSTENV, FNSAVE | AMD's processors save them only then |
//! | TOP and tags | MMX instructions that fault | some processors have gone over to MMX before |
//! | registers | POPA that faults | some processors have written some of them |
//! | memory | PUSHA that faults | some processors have written some of it |
//! | CR2 | CALL, RETF and IRET | the order of their accesses is not defined |
//! | all | gathers that fault with TF set | AMD's processors deliver the trap of elements that are there first |
//! | result 0 | LSL | the limit of a segment in which Linux keeps the CPU's number |
//! | all | MXCSR bit 17 was set (MM) | AMD's processors have it |
//! | CR2 | within 4096 bytes, for operands of more than 16 bytes and MASKMOVQ | processors start at different ends |

use crate::layout::*;
use iced_x86::{Instruction, Mnemonic, Register};

/// What a pair of outcomes differs in: the name of the place, the oracle's value, Mynah's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Register, flag or memory.
    pub what: String,
    /// What the oracle has.
    pub want: String,
    /// What Mynah has.
    pub got: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: oracle {}, mynah {}", self.what, self.want, self.got)
    }
}

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// Whether the instruction was completed (a fault may still come from fetching the next one).
pub fn completed(case: &Case, o: &Outcome) -> bool {
    matches!(o.vector, 1 | 3) || o.regs.rip != case.regs.rip
}

/// Flags that need not agree.
pub fn flags_ignored(case: &Case, i: &Instruction, o: &Outcome) -> u64 {
    if !completed(case, o) {
        return 0;
    }
    u64::from(iced_flags(i.rflags_undefined()))
}

/// iced-x86's bits for flags, at their places in RFLAGS.
pub fn iced_flags(bits: u32) -> u32 {
    use iced_x86::RflagsBits as R;
    let table = [
        (R::OF, 1 << 11),
        (R::SF, 1 << 7),
        (R::ZF, 1 << 6),
        (R::AF, 1 << 4),
        (R::CF, 1 << 0),
        (R::PF, 1 << 2),
        (R::DF, 1 << 10),
        (R::IF, 1 << 9),
        (R::AC, 1 << 18),
    ];
    table.iter().filter(|(b, _)| bits & b != 0).map(|(_, f)| f).sum()
}

/// The linear address of the memory operand (`None` for those that have many).
pub fn operand_address(case: &Case, i: &Instruction) -> Option<u64> {
    if i.is_vsib() {
        return None;
    }
    let n = (0..i.op_count()).find(|&n| i.op_kind(n) == iced_x86::OpKind::Memory)?;
    let a = i.virtual_address(n, 0, |r, _, _| {
        Some(match r {
            Register::FS => case.regs.base[0],
            Register::GS => case.regs.base[1],
            r if r.is_segment_register() => {
                let s = case.regs.sel[r.number()];
                let ldt = s & 4 != 0 && case.regs.bitness() != 64;
                if ldt { LDT.get(usize::from(s >> 3)).map_or(0, |d| u64::from(d.base)) } else { 0 }
            }
            r => case.regs.gpr[r.full_register().number() & 15] & (!0 >> (64 - 8 * r.size().clamp(1, 8))),
        })
    })?;
    Some(if case.regs.bitness() == 64 { a } else { a & 0xffff_ffff })
}

/// Whether an operand of `size` bytes at linear address `a` lies within its segment, or begins beyond it (not in 64-bit mode).
pub fn within_limit(case: &Case, i: &Instruction, a: u64, size: u64) -> bool {
    let s = case.regs.sel[i.memory_segment().number().min(5)];
    let d = (s & 4 != 0).then(|| LDT.get(usize::from(s >> 3))).flatten();
    let (base, limit) = match d {
        Some(d) if d.pages => (d.base, u32::MAX),
        Some(d) => (d.base, d.limit),
        None => (0, u32::MAX),
    };
    let offset = a.wrapping_sub(base.into()) & 0xffff_ffff;
    let end = offset + size - 1;
    let down = d.is_some_and(|d| d.contents == 1);
    let inside = |o: u64| if down { o > u64::from(limit) && o >> 32 == 0 } else { o <= u64::from(limit) };
    inside(offset) == inside(end)
}

/// All differences between the oracle's outcome and Mynah's.
pub fn compare(
    case: &Case,
    i: &Instruction,
    background: &[u8],
    want: &Outcome,
    got: &Outcome,
) -> Vec<Difference> {
    let mut all = Vec::new();
    let mut put = |what: &str, want: u64, got: u64| {
        if want != got {
            all.push(Difference { what: what.into(), want: format!("{want:#x}"), got: format!("{got:#x}") });
        }
    };
    let (w, g) = (&want.regs, &got.regs);
    let done = completed(case, want);
    // Which of several faults comes first.
    let far = matches!(
        i.mnemonic(),
        Mnemonic::Call | Mnemonic::Retf | Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq
    );
    if far
        && matches!(want.vector, 10..=14 | 17)
        && matches!(got.vector, 10..=14 | 17)
        && want.vector != got.vector
    {
        return all;
    }
    if i.is_vsib() && want.vector == 1 && w.rip == case.regs.rip && got.vector != 1 {
        return all;
    }
    // MXCSR.MM, which AMD's processors have.
    if w.mxcsr() & 0x2_0000 != 0 {
        return all;
    }
    let wide = !matches!(i.memory_size().size(), 1..=10 | 16)
        || matches!(i.mnemonic(), Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu);
    put("exception", want.vector.into(), got.vector.into());
    let present = if want.vector == 14 && want.cr2 >= 0x7fff_ffff_f000 { 1 } else { 0 };
    put("error code", u64::from(want.error | present), u64::from(got.error | present));
    if !far && (!wide || want.cr2.abs_diff(got.cr2) > 0x1000) {
        put("cr2", want.cr2, got.cr2);
    }
    put("rip", w.rip, g.rip);
    let ignored = flags_ignored(case, i, want);
    put("rflags", w.rflags & !ignored, g.rflags & !ignored);
    for n in 0..16 {
        // An IRET to a 16-bit stack leaves part of the kernel's stack pointer above ESP.
        let narrow = case.regs.bitness() != 64 || want.regs.bitness() != 64;
        let seen = if n == 4 && narrow { 0xffff_ffff } else { u64::MAX };
        if n != 4 && !done && matches!(i.mnemonic(), Mnemonic::Popa | Mnemonic::Popad) {
            continue;
        }
        // The limit of the segment in which Linux keeps the CPU's number.
        if i.mnemonic() == Mnemonic::Lsl && w.gpr[n] ^ g.gpr[n] < 0x1000 && g.gpr[n] & 0xffff == 0 {
            continue;
        }
        put(NAMES[n], w.gpr[n] & seen, g.gpr[n] & seen);
    }
    for n in 0..6 {
        // The kernel's IRET clears null selectors that have an RPL.
        let seen = |s: u16| u64::from(if n != 1 && n != 2 && s & !3 == 0 { 0 } else { s });
        put(SEGMENTS[n], seen(w.sel[n]), seen(g.sel[n]));
    }
    if case.regs.bitness() == 64 {
        put("fs base", w.base[0], g.base[0]);
        put("gs base", w.base[1], g.base[1]);
    }
    put("mxcsr", w.mxcsr().into(), g.mxcsr().into());
    put("fcw", w.fx16(0).into(), g.fx16(0).into());
    let group = crate::forms::group(i.code());
    let transition = !done && matches!(group, "mmx" | "sse" | "sse2");
    if !transition {
        put("fsw", w.fx16(2).into(), g.fx16(2).into());
        put("ftw", w.fx[4].into(), g.fx[4].into());
    }
    if group == "x87" && w.fx16(2) & 0x80 != 0 && case.regs.fx16(2) & 0x80 == 0 && i.memory_size().size() < 14
    {
        // The kernel's switch to another process and back has lost the pointers if there was no exception before.
        let before = &case.regs;
        if w.fx16(6) != 0 || g.fx16(6) != before.fx16(6) {
            put("fop", w.fx16(6).into(), g.fx16(6).into());
        }
        for (name, at) in [("fip", 8), ("fdp", 16)] {
            if w.fx64(at) != 0 || g.fx64(at) != before.fx64(at) {
                put(name, w.fx64(at), g.fx64(at));
            }
        }
    }
    for n in 0..if transition { 0 } else { 8 } {
        let (a, b) = (w.st(n), g.st(n));
        if a != b {
            all.push(Difference {
                what: format!("st{n}"),
                want: format!("{:04x}:{:016x}", a.0, a.1),
                got: format!("{:04x}:{:016x}", b.0, b.1),
            });
        }
    }
    let approximate = approximation(i);
    for n in 0..16 {
        let (a, b) = (w.xmm(n), g.xmm(n));
        if a != b && !(approximate && near(a, b)) {
            all.push(Difference {
                what: format!("xmm{n}"),
                want: format!("{a:032x}"),
                got: format!("{b:032x}"),
            });
        }
    }
    for n in 0..16 {
        let (a, b) = (w.ymm_high(n), g.ymm_high(n));
        if a != b && !(approximate && near(a, b)) {
            all.push(Difference {
                what: format!("ymm{n}"),
                want: format!("{a:032x}"),
                got: format!("{b:032x}"),
            });
        }
    }
    let pusha = !done && matches!(i.mnemonic(), Mnemonic::Pusha | Mnemonic::Pushad);
    if want.chunks() != got.chunks() && !pusha {
        memory(case, i, background, want, got, &mut all);
    }
    all
}

/// Instructions whose result is only bounded in its error (relative 1.5 * 2^-12).
fn approximation(i: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(i.mnemonic(), Rcpps | Rcpss | Rsqrtps | Rsqrtss | Vrcpps | Vrcpss | Vrsqrtps | Vrsqrtss)
}

/// Whether four floats are each within the error that two approximations may have between them.
fn near(a: u128, b: u128) -> bool {
    (0..4).all(|n| {
        let (x, y) = ((a >> (32 * n)) as u32, (b >> (32 * n)) as u32);
        let (fx, fy) = (f64::from(f32::from_bits(x)), f64::from(f32::from_bits(y)));
        x == y || fx.is_finite() && fy.is_finite() && (fx - fy).abs() <= fx.abs() * 3.0 / 4096.0
    })
}

fn memory(
    case: &Case,
    i: &Instruction,
    background: &[u8],
    want: &Outcome,
    got: &Outcome,
    all: &mut Vec<Difference>,
) {
    use Mnemonic::*;
    let (w, mut g) = (want.memory(background), got.memory(background));
    if let Some(at) = operand_address(case, i) {
        let mut ignore = |from: u64, to: u64| {
            for o in (from..to).filter_map(|n| data_offset(at.wrapping_add(n))) {
                g[o] = w[o];
            }
        };
        if matches!(
            i.mnemonic(),
            Fxsave | Fxsave64 | Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64
        ) {
            ignore(28, 32);
            ignore(6, 24);
        }
        match i.mnemonic() {
            Fnstenv | Fnsave if matches!(i.memory_size().size(), 14 | 94) => ignore(6, 14),
            Fnstenv | Fnsave => ignore(12, 28),
            _ => {}
        }
    }
    if matches!(i.mnemonic(), Call) && !completed(case, want) {
        // Far calls that fault at their target have pushed the return address on some processors.
        let sp = want.regs.gpr[4];
        let sp = if want.regs.sel[2] == sel::DATA16 { LOW + (sp & 0xffff) } else { sp };
        for o in (1..=16).filter_map(|n| data_offset(sp.wrapping_sub(n))) {
            g[o] = w[o];
        }
    }
    let mut n = 0;
    while n < w.len() {
        if w[n] == g[n] {
            n += 1;
            continue;
        }
        let start = n;
        while n < w.len() && w[n] != g[n] && n < start + 32 {
            n += 1;
        }
        let hex = |b: &[u8]| b.iter().map(|b| format!("{b:02x}")).collect::<String>();
        all.push(Difference {
            what: format!("memory {:#x}", data_address(start)),
            want: hex(&w[start..n]),
            got: hex(&g[start..n]),
        });
        if all.len() > 40 {
            return;
        }
    }
    if want.chunks != got.chunks && want.chunks.max(got.chunks) as usize > CHUNKS {
        all.push(Difference {
            what: "memory, 64-byte pieces changed".into(),
            want: want.chunks.to_string(),
            got: got.chunks.to_string(),
        });
    }
}
