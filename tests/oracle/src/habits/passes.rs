//! What each line of the table is about: which cases (functions of [`Ctx`]), and which bits of which places (functions
//! of [`Raw`] too).

use super::Ctx;
use crate::compare::{Place, Raw, iced_flags, operand_address};
use crate::forms;
use crate::layout::*;
use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind};

const ALL: u128 = u128::MAX;

fn all_if(yes: bool) -> u128 {
    if yes { ALL } else { 0 }
}

// ---- which bits -------------------------------------------------------------------------------------------

pub fn everything(_: &Ctx, _: &Raw) -> u128 {
    ALL
}
/// Exception, error code, CR2.
pub fn fault(_: &Ctx, r: &Raw) -> u128 {
    all_if(matches!(r.place, Place::Exception | Place::ErrorCode | Place::Cr2))
}
pub fn error_code(_: &Ctx, r: &Raw) -> u128 {
    all_if(r.place == Place::ErrorCode)
}
pub fn present_bit(_: &Ctx, r: &Raw) -> u128 {
    u128::from(r.place == Place::ErrorCode)
}
pub fn cr2(_: &Ctx, r: &Raw) -> u128 {
    all_if(r.place == Place::Cr2)
}
pub fn near_cr2(_: &Ctx, r: &Raw) -> u128 {
    all_if(r.place == Place::Cr2 && r.want.abs_diff(r.got) <= 0x1000)
}
pub fn memory(_: &Ctx, r: &Raw) -> u128 {
    all_if(matches!(r.place, Place::Byte(_) | Place::Pieces))
}
pub fn undefined_flags(c: &Ctx, r: &Raw) -> u128 {
    if r.place == Place::Rflags { c.undefined.into() } else { 0 }
}
pub fn resume_flag(_: &Ctx, r: &Raw) -> u128 {
    if r.place == Place::Rflags { 1 << 16 } else { 0 }
}
pub fn null_rpl(_: &Ctx, r: &Raw) -> u128 {
    let null = r.want | r.got <= 3 && matches!(r.place, Place::Selector(n) if n != 1 && n != 2);
    if null { 3 } else { 0 }
}
pub fn null_base(c: &Ctx, r: &Raw) -> u128 {
    all_if(matches!(r.place, Place::Base(n) if c.want.regs.sel[4 + (n & 1)] & !3 == 0))
}
pub fn lsl_cpu_number(_: &Ctx, r: &Raw) -> u128 {
    all_if(matches!(r.place, Place::Gpr(_)) && r.want ^ r.got < 0x1000 && r.got & 0xffff == 0)
}
pub fn x87_registers(_: &Ctx, r: &Raw) -> u128 {
    all_if(matches!(r.place, Place::Fsw | Place::Ftw | Place::St(_)))
}
pub fn general_but_rsp(_: &Ctx, r: &Raw) -> u128 {
    all_if(matches!(r.place, Place::Gpr(n) if n != RSP))
}
pub fn first_register(c: &Ctx, r: &Raw) -> u128 {
    all_if(r.place == Place::Gpr(c.i.op0_register().full_register().number()))
}
pub fn low_word(c: &Ctx, r: &Raw) -> u128 {
    first_register(c, r) & 0xffff
}
pub fn stack_top(_: &Ctx, r: &Raw) -> u128 {
    all_if(r.place == Place::St(0))
}
pub fn x87_transition(c: &Ctx, r: &Raw) -> u128 {
    match r.place {
        Place::Fsw => 0x3800,
        Place::Ftw | Place::St(_) => ALL,
        _ => all_if(c.want.vector == 16 || c.got.vector == 16),
    }
}
pub fn reserved_control(_: &Ctx, r: &Raw) -> u128 {
    if r.place == Place::Fcw { 0xe0c0 } else { 0 }
}
pub fn enter_places(c: &Ctx, r: &Raw) -> u128 {
    fault(c, r) | memory(c, r)
}
pub fn rip_and_stack(c: &Ctx, r: &Raw) -> u128 {
    match r.place {
        Place::Exception | Place::Rip | Place::Gpr(RSP) => ALL,
        _ => resume_flag(c, r) | memory(c, r),
    }
}
pub fn gathered(c: &Ctx, r: &Raw) -> u128 {
    let own = |n| [c.i.op0_register(), c.i.op2_register()].iter().any(|o| o.number() == n);
    all_if(matches!(r.place, Place::Xmm(n) | Place::Ymm(n) if own(n)))
}

/// Where a differing byte of memory lies, from the memory operand on.
fn in_operand(c: &Ctx, r: &Raw) -> Option<u64> {
    let Place::Byte(o) = r.place else { return None };
    Some(data_address(o).wrapping_sub(operand_address(c.case, c.i)?))
}
pub fn mxcsr_mask(c: &Ctx, r: &Raw) -> u128 {
    all_if(in_operand(c, r).is_some_and(|n| (28..32).contains(&n)))
}
pub fn x87_pointers(c: &Ctx, r: &Raw) -> u128 {
    use Mnemonic::*;
    let lost = |before: u64| all_if(r.want == 0 && r.got == before.into());
    let before = &c.case.regs;
    match r.place {
        Place::Fop => return lost(before.fx16(6).into()),
        Place::Fip => return lost(before.fx64(8)),
        Place::Fdp => return lost(before.fx64(16)),
        _ => {}
    }
    let range = match c.i.mnemonic() {
        Fnstenv | Fnsave if matches!(c.i.memory_size().size(), 14 | 94) => 6..14,
        Fnstenv | Fnsave => 12..28,
        _ if is_save(c.i) => 6..24,
        _ => return 0,
    };
    all_if(in_operand(c, r).is_some_and(|n| range.contains(&n)))
}
pub fn initial_components(c: &Ctx, r: &Raw) -> u128 {
    let Some(n) = in_operand(c, r) else { return 0 };
    let f = &c.case.regs.fx;
    let zero = |b: &[u8]| b.iter().all(|b| *b == 0);
    let x87 = f[..2] == [0x7f, 3] && zero(&f[2..24]) && zero(&f[32..160]);
    let (sse, avx) = (zero(&f[160..416]), zero(&c.case.regs.ymm));
    match n {
        0..24 | 32..160 => all_if(x87),
        24..32 | 160..416 => all_if(sse),
        512 => u128::from(x87) | u128::from(sse) << 1 | u128::from(avx) << 2,
        576..832 => all_if(avx),
        _ => 0,
    }
}

/// The linear address of the stack pointer that an outcome has left.
fn stack(c: &Ctx) -> u64 {
    let mut regs = c.case.regs;
    regs.sel[2] = c.want.regs.sel[2];
    crate::compare::stack_address(&regs, c.want.regs.gpr[RSP])
}
pub fn below_stack(c: &Ctx, r: &Raw) -> u128 {
    let Place::Byte(o) = r.place else { return 0 };
    all_if((1..=16).contains(&stack(c).wrapping_sub(data_address(o))))
}
pub fn memory_of_slot(c: &Ctx, r: &Raw) -> u128 {
    let Place::Byte(o) = r.place else { return 0 };
    all_if((2..8).contains(&data_address(o).wrapping_sub(stack(c))))
}

/// Each lane of single precision in which two approximations are within the error that they may have between them.
pub fn near_lanes(_: &Ctx, r: &Raw) -> u128 {
    if !matches!(r.place, Place::Xmm(_) | Place::Ymm(_)) {
        return 0;
    }
    let near = |x: u32, y: u32| {
        let (fx, fy) = (f64::from(f32::from_bits(x)), f64::from(f32::from_bits(y)));
        // The least normal number, give or take the error: results below it are made zero.
        let least = f64::from(f32::MIN_POSITIVE) * (1.0 + 3.0 / 4096.0);
        let tiny = fx.abs() <= least && fy.abs() <= least && (x ^ y) >> 31 == 0;
        tiny || fx.is_finite() && fy.is_finite() && (fx - fy).abs() <= fx.abs() * 3.0 / 4096.0
    };
    (0..4)
        .filter(|n| near((r.want >> (32 * n)) as u32, (r.got >> (32 * n)) as u32))
        .fold(0, |m, n| m | 0xffff_ffff << (32 * n))
}

/// ST(0) and ST(1) by one unit in the last place; C1 and PE, which say how it was rounded, UE, if a tiny result that
/// is exact counts as inexact, or one that is rounded to the least normal number as tiny, and what an unmasked PE or
/// UE entails (ES and B; a result with another exponent).
pub fn last_place(c: &Ctx, r: &Raw) -> u128 {
    let key = |v: u128| (v >> 64 & 0x7fff) << 63 | v & (!0 >> 1) & u128::from(u64::MAX >> 1);
    let sign = |v: u128| v >> 79 & 1;
    match r.place {
        Place::Fsw => {
            let least = (0..2).any(|n| is_least(c.want.regs.st(n)) || is_least(c.got.regs.st(n)));
            let tiny = least || c.want.regs.st(0).0 & 0x7fff == 0;
            let may = 0x20 | if tiny { 0x10 } else { 0 };
            let unmasked = u128::from(!c.case.regs.fx16(0)) & (r.want ^ r.got) & may != 0;
            0x200 | may | if unmasked { 0x8080 } else { 0 }
        }
        Place::St(n @ (0 | 1)) if c.case.regs.fx16(0) & 0x10 == 0 && is_least(c.want.regs.st(n)) => {
            // The exponent that an unmasked UE gives, of the number just below.
            all_if(sign(r.want) == sign(r.got) && key(r.got) == key(0x6000 << 64 | u128::from(u64::MAX)))
        }
        Place::St(0 | 1) => all_if(sign(r.want) == sign(r.got) && key(r.want).abs_diff(key(r.got)) <= 1),
        _ => 0,
    }
}

/// UE with ES and B, and ST(0), which is tiny in one of the two.
pub fn underflow(_: &Ctx, r: &Raw) -> u128 {
    let tiny = |v: u128| v >> 64 & 0x7fff == 0;
    match r.place {
        Place::Fsw => 0x8090,
        Place::St(0) => all_if(tiny(r.want) != tiny(r.got)),
        _ => 0,
    }
}
/// Whether an x87 register holds the least normal number.
fn is_least((exp, mant): (u16, u64)) -> bool {
    exp & 0x7fff == 1 && mant == 1 << 63
}

/// Bits of the status word that the manual leaves undefined after the instruction.
pub fn undefined_conditions(c: &Ctx, r: &Raw) -> u128 {
    const C0: u128 = 1 << 8;
    const C1: u128 = 1 << 9;
    const C2: u128 = 1 << 10;
    const C3: u128 = 1 << 14;
    let code = c.case.bytes();
    let at = code.iter().position(|b| (0xd8..=0xdf).contains(b));
    let (Place::Fsw, Some(&[opcode, modrm])) = (r.place, at.and_then(|n| code.get(n..n + 2)?.first_chunk()))
    else {
        return 0;
    };
    match (opcode, modrm >> 3 & 7, modrm >= 0xc0) {
        // Comparisons, FTST and FXAM define all; FNSTSW, FLDENV and the like move the word.
        (0xd8 | 0xda | 0xdc | 0xde, 2 | 3, false) | (0xd8 | 0xdc, 2 | 3, true) => 0,
        (0xdd, 4 | 5, true) | (0xde, 3, true) | (0xda, 5, true) => 0,
        (0xd9, 4, true) if modrm >= 0xe4 => 0,
        (0xd9 | 0xdd, 4..=7, false) => 0,
        // FFREE, FFREEP, FNCLEX, FNOP and what is reserved: all undefined.
        (0xdd | 0xdf, 0, true) | (0xdb, 4, true) | (0xd9, 2, true) => C0 | C1 | C2 | C3,
        // FPREM and the trigonometric functions define more than C1 unless they fail.
        (0xd9, 6 | 7, true) => C0 | C3,
        _ => C0 | C2 | C3,
    }
}

pub fn overflow(_: &Ctx, r: &Raw) -> u128 {
    if r.place == Place::Rflags { 1 << 11 } else { 0 }
}
/// Each lane in which both have a NaN.
pub fn nan_lanes(c: &Ctx, r: &Raw) -> u128 {
    let own = c.i.op0_register().number();
    if !matches!(r.place, Place::Xmm(n) | Place::Ymm(n) if n == own) {
        return 0;
    }
    let double = matches!(c.i.mnemonic(), Mnemonic::Dppd | Mnemonic::Vdppd);
    let (bits, infinity) = if double { (64, 0x7ff << 52) } else { (32, 0xff << 23) };
    let lane = u128::MAX >> (128 - bits);
    let nan = |v: u128, n: u32| v >> (n * bits) & (lane >> 1) > infinity;
    (0..128 / bits).filter(|&n| nan(r.want, n) && nan(r.got, n)).fold(0, |m, n| m | lane << (n * bits))
}
pub fn in_ten_bytes(c: &Ctx, r: &Raw) -> u128 {
    all_if(in_operand(c, r).is_some_and(|n| n < 10))
}

// ---- which cases ------------------------------------------------------------------------------------------

const RSP: usize = 4;
const RBP: usize = 5;

pub fn any(_: &Ctx) -> bool {
    true
}
/// Whether both ended in a fault that memory or a segment raises.
fn both_fault(c: &Ctx) -> bool {
    matches!(c.want.vector, 10..=14 | 17) && matches!(c.got.vector, 10..=14 | 17)
}
/// Whether one of the two ended with vector `a`, the other with `b`.
fn ended(c: &Ctx, a: u32, b: u32) -> bool {
    matches!((c.want.vector, c.got.vector), v if v == (a, b) || v == (b, a))
}
pub fn page_fault(c: &Ctx) -> bool {
    c.want.vector == 14 && c.want.cr2 >= 0x7fff_ffff_f000
}
pub fn lsl(c: &Ctx) -> bool {
    c.i.mnemonic() == Mnemonic::Lsl
}
pub fn mxcsr_mm(c: &Ctx) -> bool {
    c.want.regs.mxcsr() & 0x2_0000 != 0
}
fn is_save(i: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(i.mnemonic(), Fxsave | Fxsave64) || is_xsave(i)
}
fn is_xsave(i: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(i.mnemonic(), Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64)
}
pub fn saves(c: &Ctx) -> bool {
    is_save(c.i)
}
pub fn saves_in_use(c: &Ctx) -> bool {
    is_xsave(c.i)
}
pub fn x87(c: &Ctx) -> bool {
    forms::group(c.i.code()) == "x87"
}
pub fn pointers(c: &Ctx) -> bool {
    x87(c) || is_save(c.i)
}
pub fn mmx_fault(c: &Ctx) -> bool {
    !c.done && matches!(forms::group(c.i.code()), "mmx" | "sse" | "sse2")
}
pub fn transfers(c: &Ctx) -> bool {
    use Mnemonic::*;
    matches!(c.i.mnemonic(), Call | Retf | Iret | Iretd | Iretq)
}
pub fn transfers_fault_otherwise(c: &Ctx) -> bool {
    transfers(c) && both_fault(c) && c.want.vector != c.got.vector
}
pub fn call_fault(c: &Ctx) -> bool {
    !c.done && c.i.mnemonic() == Mnemonic::Call
}
pub fn popa_fault(c: &Ctx) -> bool {
    !c.done && matches!(c.i.mnemonic(), Mnemonic::Popa | Mnemonic::Popad)
}
pub fn pusha_fault(c: &Ctx) -> bool {
    !c.done && matches!(c.i.mnemonic(), Mnemonic::Pusha | Mnemonic::Pushad)
}
fn stores_masked_bytes(i: &Instruction) -> bool {
    matches!(i.mnemonic(), Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu)
}
pub fn wide(c: &Ctx) -> bool {
    !matches!(c.i.memory_size().size(), 1..=10 | 16) || stores_masked_bytes(c.i)
}
pub fn gather_steps(c: &Ctx) -> bool {
    c.i.is_vsib() && c.want.vector == 1 && c.want.regs.rip == c.case.regs.rip && c.got.vector != 1
}
pub fn gather_faults(c: &Ctx) -> bool {
    c.i.is_vsib() && !c.done && both_fault(c)
}
pub fn approximates(c: &Ctx) -> bool {
    use Mnemonic::*;
    matches!(c.i.mnemonic(), Rcpps | Rcpss | Rsqrtps | Rsqrtss | Vrcpps | Vrcpss | Vrsqrtps | Vrsqrtss)
}
pub fn elementary(c: &Ctx) -> bool {
    use Mnemonic::*;
    matches!(c.i.mnemonic(), Fsin | Fcos | Fsincos | Fptan | Fpatan | Fyl2x | Fyl2xp1 | F2xm1)
}
pub fn remainders_by_infinity(c: &Ctx) -> bool {
    let unmasked = c.case.regs.fx16(0) & 0x10 == 0 && (c.want.regs.fx16(2) ^ c.got.regs.fx16(2)) & 0x10 != 0;
    let (exp, mant) = c.case.regs.st(1);
    let infinite = exp & 0x7fff == 0x7fff && mant == 1 << 63;
    matches!(c.i.mnemonic(), Mnemonic::Fprem | Mnemonic::Fprem1) && infinite && unmasked
}
/// F2XM1 beyond -1...+1, FYL2XP1 beyond -(1 - sqrt(1/2))...+(1 - sqrt(1/2)).
pub fn beyond_domain(c: &Ctx) -> bool {
    let (exp, mant) = c.case.regs.st(0);
    let exp = exp & 0x7fff;
    let number = mant >> 63 != 0 && (exp != 0x7fff || mant == 1 << 63);
    let beyond = |last: (u16, u64)| number && (exp, mant) > last;
    match c.i.mnemonic() {
        Mnemonic::F2xm1 => beyond((0x3fff, 1 << 63)),
        Mnemonic::Fyl2xp1 => beyond((0x3ffd, 0x95f6_1998_0c43_36f7)),
        _ => false,
    }
}
pub fn locked_faults(c: &Ctx) -> bool {
    let locked = c.i.has_lock_prefix() || c.i.mnemonic() == Mnemonic::Xchg;
    let (a, size) = (operand_address(c.case, c.i), c.i.memory_size().size() as u64);
    let split = a.is_some_and(|a| a & 63 > 64 - size.clamp(1, 64));
    locked && split && c.want.vector == 17 && c.case.regs.rflags & 1 << 18 == 0
}
/// The instruction's bytes behind its legacy prefixes and a REX prefix, and whether LOCK was among them.
fn opcode<'a>(c: &Ctx<'a>) -> (bool, &'a [u8]) {
    let code = c.case.bytes();
    let prefix =
        |b: &u8| matches!(b, 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65);
    let at = code.iter().position(|b| !prefix(b)).unwrap_or(code.len());
    let rex = c.case.regs.bitness() == 64 && code.get(at).is_some_and(|b| b & 0xf0 == 0x40);
    (code[..at].contains(&0xf0), &code[at + usize::from(rex)..])
}
pub fn lock_verw(c: &Ctx) -> bool {
    let verify = matches!(opcode(c), (true, [0x0f, 0, modrm, ..]) if matches!(modrm >> 3 & 7, 4 | 5));
    verify && c.got.vector == 6 && c.want.vector != 6
}
pub fn control_moves(c: &Ctx) -> bool {
    ended(c, 6, 13) && matches!(opcode(c).1, [0x0f, 0x20..=0x23, ..])
}
pub fn rex2(c: &Ctx) -> bool {
    c.case.regs.bitness() == 64 && matches!(opcode(c).1, [0xd5, ..]) && c.got.vector == 6
}
pub fn undefined_or_fetch(c: &Ctx) -> bool {
    let o = if c.want.vector == 14 { c.want } else { c.got };
    let next = (c.case.regs.rip_linear() | 0xfff) + 1;
    ended(c, 6, 14) && o.error & 0x10 != 0 && o.cr2 == next
}
pub fn wraps(c: &Ctx) -> bool {
    let size = c.i.memory_size().size() as u64;
    // What LEAVE reads is where EBP points.
    let frame = c.i.mnemonic() == Mnemonic::Leave && (c.case.regs.gpr[RBP] as u32) > u32::MAX - 3;
    let operand = || operand_address(c.case, c.i).is_some_and(|a| a + size > 1 << 32);
    c.case.regs.bitness() != 64 && (frame || operand())
}
/// A masked operand that crosses the end of the addresses that its registers can name.
pub fn masked_wraps(c: &Ctx) -> bool {
    use Mnemonic::*;
    let masked = matches!(c.i.mnemonic(), Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq);
    let Some(n) = (0..c.i.op_count()).find(|&n| masked && c.i.op_kind(n) == OpKind::Memory) else {
        return false;
    };
    let bits =
        match c.i.memory_base().size().max(c.i.memory_index().size()).max(c.i.memory_displ_size() as usize) {
            2 => 16,
            4 => 32,
            _ => return false,
        };
    let mut flat = *c.case;
    (flat.regs.sel, flat.regs.base) = ([sel::DATA, c.case.regs.sel[1], 0, 0, 0, 0], [0; 2]);
    let offset = crate::compare::address_of(&flat, c.i, n).unwrap_or(0) & ((1 << bits) - 1);
    offset + c.i.memory_size().size() as u64 > 1 << bits
}
pub fn restores_fault(c: &Ctx) -> bool {
    use Mnemonic::*;
    ended(c, 13, 14) && matches!(c.i.mnemonic(), Fxrstor | Fxrstor64 | Xrstor | Xrstor64)
}
pub fn bswap16(c: &Ctx) -> bool {
    c.i.mnemonic() == Mnemonic::Bswap && c.i.op0_register().is_gpr16()
}
pub fn cvtpi2ps_memory(c: &Ctx) -> bool {
    matches!(c.i.mnemonic(), Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd) && c.i.op1_kind() == OpKind::Memory
}
pub fn fbld(c: &Ctx) -> bool {
    c.i.mnemonic() == Mnemonic::Fbld
}
pub fn branches_away(c: &Ctx) -> bool {
    let ends = |o: &Outcome| matches!(o.vector, 1 | 13) && o.error == 0;
    let either = c.want.vector == 13 || c.got.vector == 13;
    let far = c.i.is_jmp_far_indirect() || c.i.is_call_far_indirect() || c.i.mnemonic() == Mnemonic::Retf;
    c.case.regs.bitness() == 64
        && c.i.flow_control() != FlowControl::Next
        && !far
        && either
        && ends(c.want)
        && ends(c.got)
}
pub fn software_interrupt(c: &Ctx) -> bool {
    c.i.mnemonic() == Mnemonic::Int && c.want.vector == 13 && c.got.vector == 13
}
pub fn pushes_selector(c: &Ctx) -> bool {
    c.i.mnemonic() == Mnemonic::Push && c.i.op0_register().is_segment_register()
}
pub fn scans_zero(c: &Ctx) -> bool {
    let zf = u64::from(iced_flags(iced_x86::RflagsBits::ZF));
    matches!(c.i.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr) && c.done && c.want.regs.rflags & zf != 0
}
pub fn enter_faults(c: &Ctx) -> bool {
    c.i.mnemonic() == Mnemonic::Enter && !c.done && both_fault(c)
}
pub fn misaligned(c: &Ctx) -> bool {
    let on = c.case.regs.rflags & 1 << 18 != 0;
    on && both_fault(c) && (c.want.vector == 17) != (c.got.vector == 17)
}
pub fn unaligned_vector(c: &Ctx) -> bool {
    let size = c.i.memory_size().size() as u64;
    let off = |a: u64| matches!(size, 16 | 32) && a & (size - 1) != 0;
    ended(c, 13, 14) && operand_address(c.case, c.i).is_some_and(off)
}

/// The linear address of a string instruction's operand `n`, by the registers that an outcome has left.
fn string_operand(c: &Ctx, o: &Outcome, n: u32) -> Option<u64> {
    let mut now = *c.case;
    now.regs = o.regs;
    (now.regs.sel, now.regs.base) = (c.case.regs.sel, c.case.regs.base);
    crate::compare::address_of(&now, c.i, n)
}
/// Both ended in a fault of one of two string operands, of which each is there in both.
fn strings_fault(c: &Ctx) -> bool {
    let size = c.i.memory_size().size() as u64;
    let of_operand = |o: &Outcome| {
        matches!(o.vector, 12 | 13 | 17)
            || o.vector == 14
                && (0..2).any(|n| string_operand(c, o, n).is_some_and(|a| o.cr2.wrapping_sub(a) < size))
    };
    c.want.regs.rip == c.case.regs.rip && of_operand(c.want) && of_operand(c.got)
}
fn has_string_operands(i: &Instruction) -> bool {
    i.op_count() == 2 && (0..2).all(|n| (OpKind::MemorySegSI..=OpKind::MemoryESRDI).contains(&i.op_kind(n)))
}
pub fn cmps_faults(c: &Ctx) -> bool {
    use Mnemonic::*;
    matches!(c.i.mnemonic(), Cmpsb | Cmpsw | Cmpsd | Cmpsq) && has_string_operands(c.i) && strings_fault(c)
}
pub fn movs_faults(c: &Ctx) -> bool {
    use Mnemonic::*;
    matches!(c.i.mnemonic(), Movsb | Movsw | Movsd | Movsq) && has_string_operands(c.i) && strings_fault(c)
}

pub fn turns_whole(c: &Ctx) -> bool {
    c.done && crate::compare::turns_whole(c.i)
}
pub fn dot_products(c: &Ctx) -> bool {
    use Mnemonic::*;
    matches!(c.i.mnemonic(), Dpps | Dppd | Vdpps | Vdppd)
}
fn moves_masked_elements(i: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(i.mnemonic(), Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq)
}
pub fn masked_faults(c: &Ctx) -> bool {
    moves_masked_elements(c.i) && c.want.vector == 14 && c.got.vector == 14
}
pub fn masked_edge(c: &Ctx) -> bool {
    ended(c, 13, 14)
        && c.case.regs.bitness() == 64
        && (stores_masked_bytes(c.i) || moves_masked_elements(c.i))
}
pub fn bound_faults(c: &Ctx) -> bool {
    c.i.mnemonic() == Mnemonic::Bound && (12..=14).any(|v| ended(c, 5, v))
}
/// FSTP of 80 bits and FBSTP that both fault.
pub fn stores_ten(c: &Ctx) -> bool {
    matches!(c.i.mnemonic(), Mnemonic::Fstp | Mnemonic::Fbstp)
        && c.i.memory_size().size() == 10
        && !c.done
        && both_fault(c)
}
/// One faults, the other goes on with an x87 exception pending.
pub fn stores_nothing(c: &Ctx) -> bool {
    use Mnemonic::*;
    let faults = |o: &Outcome| matches!(o.vector, 12..=14 | 17);
    let pends = |o: &Outcome| {
        matches!(o.vector, 1 | 3)
            && o.regs.fx16(2) & 0x80 != 0
            && o.regs.fx16(2) & !o.regs.fx16(0) & 0x3f != 0
            && c.case.regs.fx16(2) & 0x80 == 0
    };
    matches!(c.i.mnemonic(), Fst | Fstp | Fist | Fistp | Fisttp | Fbstp)
        && c.i.op0_kind() == OpKind::Memory
        && (faults(c.want) && pends(c.got) || faults(c.got) && pends(c.want))
}
pub fn locked_misaligned(c: &Ctx) -> bool {
    misaligned(c) && (c.i.has_lock_prefix() || c.i.mnemonic() == Mnemonic::Xchg)
}
pub fn transfers_fault_alike(c: &Ctx) -> bool {
    transfers(c) && both_fault(c) && c.want.vector == c.got.vector
}

/// One faults, the other does not, and no element that the mask selects lies on the page of the fault.
pub fn masked_store(c: &Ctx) -> bool {
    use Mnemonic::*;
    let faulty = match (matches!(c.want.vector, 12..=14), matches!(c.got.vector, 12..=14)) {
        (true, false) => c.want,
        (false, true) => c.got,
        _ => return false,
    };
    let size = match c.i.mnemonic() {
        Maskmovq | Maskmovdqu | Vmaskmovdqu => 1,
        Vmaskmovps | Vpmaskmovd => 4,
        Vmaskmovpd | Vpmaskmovq => 8,
        _ => return false,
    };
    let mask = c.i.op1_register();
    let Some(n) = (0..c.i.op_count()).find(|&n| c.i.op_kind(n) != OpKind::Register) else { return false };
    let (Some(at), r) = (crate::compare::address_of(c.case, c.i, n), &c.case.regs) else { return false };
    let mut bytes = [0; 32];
    if mask.is_mm() {
        bytes[..8].copy_from_slice(&r.st(mask.number()).1.to_le_bytes());
    } else {
        bytes[..16].copy_from_slice(&r.xmm(mask.number()).to_le_bytes());
        bytes[16..].copy_from_slice(&r.ymm_high(mask.number()).to_le_bytes());
    }
    let len = mask.size();
    let mut selected = (0..len).filter(|k| bytes[(k / size + 1) * size - 1] & 0x80 != 0);
    if faulty.vector != 14 {
        return selected.next().is_none();
    }
    !selected.any(|k| at.wrapping_add(k as u64) >> 12 == faulty.cr2 >> 12)
}
