//! Whether two outcomes of a case are the same, but for what [`habits`](crate::habits) passes over.
//!
//! First all that a program can see is compared ([`raw`]), then each place that differs is shown to the habits that
//! the case falls under.

use crate::habits::{Ctx, Habits, Passed};
use crate::layout::*;
use iced_x86::{Instruction, Register};

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

/// Whether it is an RCL or RCR by an immediate that is a multiple of the bits of its operand and CF.
pub fn turns_whole(i: &Instruction) -> bool {
    use iced_x86::{Mnemonic, OpKind};
    if !matches!(i.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr) || i.op1_kind() != OpKind::Immediate8 {
        return false;
    }
    let bits =
        if i.op0_kind() == OpKind::Memory { i.memory_size().size() } else { i.op0_register().size() } * 8;
    let n = usize::from(i.immediate8()) & 31;
    n != 0 && n.is_multiple_of(bits + 1)
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
    address_of(case, i, n)
}

/// The linear address of operand `n`, which is one in memory.
pub fn address_of(case: &Case, i: &Instruction, n: u32) -> Option<u64> {
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

/// The linear address of the stack pointer `sp` in the mode and with the SS that `regs` have.
pub fn stack_address(regs: &Regs, sp: u64) -> u64 {
    match (regs.sel[2], regs.bitness()) {
        (sel::DATA16, _) => LOW + (sp & 0xffff),
        (_, 64) => sp,
        _ => sp & 0xffff_ffff,
    }
}

/// Whether an operand of `size` bytes at linear address `a` lies within its segment, or begins beyond it (not in 64-bit
/// mode).
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

/// A place that a program can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The exception's vector.
    Exception,
    /// Its error code.
    ErrorCode,
    /// CR2 after a page fault.
    Cr2,
    /// RIP.
    Rip,
    /// RFLAGS.
    Rflags,
    /// A general register.
    Gpr(usize),
    /// A segment register's selector: ES, CS, SS, DS, FS, GS.
    Selector(usize),
    /// The base of FS (0) or GS (1).
    Base(usize),
    /// MXCSR.
    Mxcsr,
    /// The x87 control word.
    Fcw,
    /// The x87 status word.
    Fsw,
    /// The x87 tags as FXSAVE has them.
    Ftw,
    /// The last x87 opcode.
    Fop,
    /// The last x87 instruction's address.
    Fip,
    /// The last x87 operand's address.
    Fdp,
    /// ST(n): sign and exponent from bit 64, significand.
    St(usize),
    /// Bits 0-127 of a vector register.
    Xmm(usize),
    /// Bits 128-255 of a vector register.
    Ymm(usize),
    /// A byte of data memory, by its offset there.
    Byte(usize),
    /// How many pieces of memory have changed, where they are more than an outcome keeps.
    Pieces,
}

/// A place in which two outcomes differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raw {
    /// Where.
    pub place: Place,
    /// What the oracle has there.
    pub want: u128,
    /// What Mynah has.
    pub got: u128,
}

/// What a comparison has found.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// What differs and may not.
    pub differences: Vec<Difference>,
    /// The habits that something else was passed over for.
    pub passed: Passed,
}

/// Compares the oracle's outcome of a case with Mynah's.
pub fn compare(
    case: &Case,
    i: &Instruction,
    background: &[u8],
    want: &Outcome,
    got: &Outcome,
    habits: &Habits,
) -> Verdict {
    judge(&Ctx::new(case, i, want, got), background, habits)
}

/// The same where more is known of the case than its instruction says.
pub fn judge(ctx: &Ctx, background: &[u8], habits: &Habits) -> Verdict {
    let all = raw(ctx, background);
    if all.is_empty() {
        return Verdict::default();
    }
    let (left, passed) = habits.pass_over(ctx, all);
    Verdict { differences: differences(&left), passed }
}

/// All places in which the outcomes differ. Not looked at, as it cannot be seen on the host: what the kernel's return
/// from a signal does not restore (the pointers of the x87 unit where no exception is noted, bits 32-63 of RSP under a
/// 16-bit stack segment, bases outside 64-bit mode).
pub fn raw(ctx: &Ctx, background: &[u8]) -> Vec<Raw> {
    let (case, want, got) = (ctx.case, ctx.want, ctx.got);
    let mut all = Vec::new();
    let mut put = |place, want: u128, got: u128| {
        if want != got {
            all.push(Raw { place, want, got });
        }
    };
    let (w, g) = (&want.regs, &got.regs);
    put(Place::Exception, want.vector.into(), got.vector.into());
    put(Place::ErrorCode, want.error.into(), got.error.into());
    put(Place::Cr2, want.cr2.into(), got.cr2.into());
    put(Place::Rip, w.rip.into(), g.rip.into());
    put(Place::Rflags, w.rflags.into(), g.rflags.into());
    for n in 0..16 {
        // An IRET to a 16-bit stack leaves part of the kernel's stack pointer above ESP.
        let narrow = n == 4 && (case.regs.bitness() != 64 || w.bitness() != 64);
        let seen = if narrow { 0xffff_ffff } else { u64::MAX };
        put(Place::Gpr(n), (w.gpr[n] & seen).into(), (g.gpr[n] & seen).into());
    }
    for n in 0..6 {
        put(Place::Selector(n), w.sel[n].into(), g.sel[n].into());
    }
    if case.regs.bitness() == 64 {
        for n in 0..2 {
            put(Place::Base(n), w.base[n].into(), g.base[n].into());
        }
    }
    put(Place::Mxcsr, w.mxcsr().into(), g.mxcsr().into());
    put(Place::Fcw, w.fx16(0).into(), g.fx16(0).into());
    put(Place::Fsw, w.fx16(2).into(), g.fx16(2).into());
    put(Place::Ftw, w.fx[4].into(), g.fx[4].into());
    if ctx.pointers {
        put(Place::Fop, w.fx16(6).into(), g.fx16(6).into());
        put(Place::Fip, w.fx64(8).into(), g.fx64(8).into());
        put(Place::Fdp, w.fx64(16).into(), g.fx64(16).into());
    }
    for n in 0..8 {
        let number = |(exp, mant): (u16, u64)| u128::from(exp) << 64 | u128::from(mant);
        put(Place::St(n), number(w.st(n)), number(g.st(n)));
    }
    for n in 0..16 {
        put(Place::Xmm(n), w.xmm(n), g.xmm(n));
        put(Place::Ymm(n), w.ymm_high(n), g.ymm_high(n));
    }
    if want.chunks() != got.chunks() {
        let (w, g) = (want.memory(background), got.memory(background));
        for n in (0..w.len()).filter(|&n| w[n] != g[n]) {
            put(Place::Byte(n), w[n].into(), g[n].into());
        }
    }
    if want.chunks != got.chunks && want.chunks.max(got.chunks) as usize > CHUNKS {
        put(Place::Pieces, want.chunks.into(), got.chunks.into());
    }
    all
}

/// Places in words; bytes of memory in a row are one difference.
fn differences(left: &[Raw]) -> Vec<Difference> {
    let mut all = Vec::new();
    let mut n = 0;
    while n < left.len() {
        let r = left[n];
        n += 1;
        let plain = |what: &str| {
            let (want, got) = (format!("{:#x}", r.want), format!("{:#x}", r.got));
            Difference { what: what.into(), want, got }
        };
        let wide = |what: String| {
            let (want, got) = (format!("{:032x}", r.want), format!("{:032x}", r.got));
            Difference { what, want, got }
        };
        all.push(match r.place {
            Place::Exception => plain("exception"),
            Place::ErrorCode => plain("error code"),
            Place::Cr2 => plain("cr2"),
            Place::Rip => plain("rip"),
            Place::Rflags => plain("rflags"),
            Place::Gpr(k) => plain(NAMES[k & 15]),
            Place::Selector(k) => plain(SEGMENTS[k.min(5)]),
            Place::Base(k) => plain(["fs base", "gs base"][k & 1]),
            Place::Mxcsr => plain("mxcsr"),
            Place::Fcw => plain("fcw"),
            Place::Fsw => plain("fsw"),
            Place::Ftw => plain("ftw"),
            Place::Fop => plain("fop"),
            Place::Fip => plain("fip"),
            Place::Fdp => plain("fdp"),
            Place::Pieces => plain("memory, 64-byte pieces changed"),
            Place::Xmm(k) => wide(format!("xmm{k}")),
            Place::Ymm(k) => wide(format!("ymm{k}")),
            Place::St(k) => {
                let text = |v: u128| format!("{:04x}:{:016x}", v >> 64, v as u64);
                Difference { what: format!("st{k}"), want: text(r.want), got: text(r.got) }
            }
            Place::Byte(start) => {
                let row = left[n - 1..].iter().zip(start..start + 32);
                let row: Vec<&Raw> =
                    row.take_while(|(r, at)| r.place == Place::Byte(*at)).map(|p| p.0).collect();
                n += row.len() - 1;
                Difference {
                    what: format!("memory {:#x}", data_address(start)),
                    want: row.iter().map(|r| format!("{:02x}", r.want)).collect(),
                    got: row.iter().map(|r| format!("{:02x}", r.got)).collect(),
                }
            }
        });
        if all.len() > 40 {
            break;
        }
    }
    all
}
