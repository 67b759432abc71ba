//! What the generator does not try, as no two makers agree on it: see [`TABLE`].

use crate::compare::{operand_address, within_limit};
use crate::layout::*;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use std::sync::atomic::{AtomicU64, Ordering};

/// A kind of case that is not generated.
pub struct Untried {
    /// Its name.
    pub name: &'static str,
    /// Instructions and operands.
    pub covers: &'static str,
    /// The manual's section, or what is known of processors.
    pub why: &'static str,
}

macro_rules! table {
    ($($id:ident $name:literal, $covers:literal, $why:literal;)*) => {
        /// Indices into [`TABLE`].
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Why { $(#[doc = $covers] $id),* }
        /// All of them.
        pub const TABLE: &[Untried] = &[$(Untried { name: $name, covers: $covers, why: $why }),*];
    };
}
table! {
    NonCanonicalOffset "non-canonical-offset",
        "offsets that are not canonical before the base of FS or GS is added but are so then",
        "AMD's processors raise #GP";
    Parts "parts-across-edge",
        "operands of several parts that cross a segment's limit or the end of canonical addresses",
        "the order of the parts is not defined";
    DoubleShift "double-shift-16",
        "SHLD and SHRD of 16-bit operands by more than 16",
        "SDM volume 2, SHLD: the result is undefined";
    RepLoop "rep-loop",
        "REP prefixes on LOOPE and LOOPNE",
        "on some processors they choose the condition instead of the opcode";
    Components "save-components",
        "XSAVE and XRSTOR of components that only the host has",
        "they are the host's own";
    ShaAlignment "sha-alignment",
        "SHA instructions with operands that are not aligned",
        "Intel's processors raise #GP, AMD's do not";
    VexW "vex-w",
        "VEX.W on VPEXTRD and VPINSRD outside 64-bit mode",
        "Intel's processors ignore it, AMD's raise #UD (Mynah by its model: cpu/src/sse/tests)";
    Movsxd "movsxd-16",
        "MOVSXD of 16 bits from memory",
        "AMD's processors read 32 bits";
    FarToLong "far-16-to-64",
        "direct far JMP and CALL from 16-bit to 64-bit code",
        "with a 16-bit stack the kernel does not get back to 64-bit code";
    FarWide "far-rex-w",
        "REX.W on far JMP and CALL; a stack above 4 GiB there",
        "AMD's processors push 64-bit frames and read 32-bit offsets, and cut the stack pointer off first when the target is 32-bit code";
    MaskedEdge "masked-across-limit",
        "MASKMOVQ and MASKMOVDQU across a segment's limit or 64 KiB",
        "the order of the bytes is not defined";
    UndefinedAcrossPage "ud0-across-page",
        "UD0 and UD1 that cross a page",
        "AMD's processors do not fetch all of their bytes";
    IretAlignment "iret-alignment",
        "IRETD and IRETQ of misaligned frames that set AC, or may",
        "Intel's processors raise #AC by the flags on the stack, which Linux takes for a split lock and tries again for ever";
}

/// How often a case was made and thrown away, by line of [`TABLE`].
#[derive(Debug, Default)]
pub struct Counts([AtomicU64; TABLE.len()]);

impl Counts {
    /// One more.
    pub fn note(&self, why: Why) {
        self.0[why as usize].fetch_add(1, Ordering::Relaxed);
    }
    /// The names and numbers of those that came.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        let all = TABLE.iter().zip(&self.0).map(|(u, n)| (u.name, n.load(Ordering::Relaxed)));
        all.filter(|(_, n)| *n != 0).collect()
    }
}

/// Why a case of one instruction is not to be tried, if it is not.
pub fn reason(case: &Case, i: &Instruction) -> Option<Why> {
    use Mnemonic::*;
    const RSP: usize = 4;
    const RSI: usize = 6;
    const RDI: usize = 7;
    let unless = |fits: bool, why: Why| (!fits).then_some(why);
    let fs_gs = matches!(i.memory_segment(), Register::FS | Register::GS);
    if case.regs.bitness() == 64 && fs_gs {
        let base = case.regs.base[usize::from(i.memory_segment() == Register::GS)];
        let canonical = |a: u64| (a << 16) as i64 >> 16 == a as i64;
        let through = |k: OpKind, r: usize| {
            (0..i.op_count()).any(|n| i.op_kind(n) == k) && !canonical(case.regs.gpr[r])
        };
        if through(OpKind::MemorySegRSI, RSI)
            || through(OpKind::MemorySegRDI, RDI)
            || operand_address(case, i).is_some_and(|a| !canonical(a.wrapping_sub(base)))
        {
            return Some(Why::NonCanonicalOffset);
        }
    }
    if let Some(a) = operand_address(case, i) {
        let save = i.memory_size().size() == 0 || i.memory_size().size() == 512;
        let size = if save { crate::generate::SAVE_LEN } else { i.memory_size().size() as u64 };
        if size > 8 && size != 16 || i.is_jmp_far_indirect() || i.is_call_far_indirect() {
            let last = a.wrapping_add(size - 1);
            let beyond = (a as i64 ^ last as i64) >> 47 != 0;
            if beyond || case.regs.bitness() != 64 && !within_limit(case, i, a, size) {
                return Some(Why::Parts);
            }
        }
    }
    let rep =
        || case.bytes().iter().take_while(|b| ![0xe0, 0xe1].contains(*b)).any(|b| matches!(b, 0xf2 | 0xf3));
    match i.mnemonic() {
        Shld | Shrd if i.op1_register().is_gpr16() => {
            let n = if i.op2_kind() == OpKind::Register { case.regs.gpr[1] } else { i.immediate(2) };
            unless(n & 31 <= 16, Why::DoubleShift)
        }
        Iretd | Iretq => {
            let width = if i.mnemonic() == Iretq { 8 } else { 4 };
            let at = crate::compare::stack_address(&case.regs, case.regs.gpr[RSP]);
            let flags = at.wrapping_add(2 * width);
            let set = |p: &Patch| {
                let byte = flags.wrapping_add(2).wrapping_sub(p.addr);
                (byte < p.len.into()).then(|| p.data[byte as usize] & 4 != 0)
            };
            let sets_ac = case.patches().iter().rev().find_map(set).unwrap_or(true);
            unless(at.is_multiple_of(width) || !sets_ac, Why::IretAlignment)
        }
        Loope | Loopne => unless(!rep(), Why::RepLoop),
        Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64 | Xrstor | Xrstor64 => {
            unless(case.regs.gpr[0] & 0xffff_fff8 == 0 && case.regs.gpr[2] as u32 == 0, Why::Components)
        }
        Sha1msg1 | Sha1msg2 | Sha1nexte | Sha1rnds4 | Sha256msg1 | Sha256msg2 | Sha256rnds2 => {
            unless(operand_address(case, i).is_none_or(|a| a & 15 == 0), Why::ShaAlignment)
        }
        Vpextrd | Vpinsrd => unless(case.regs.bitness() == 64 || !vex_w(case.bytes()), Why::VexW),
        Movsxd if i.op0_register().is_gpr16() => unless(i.op1_kind() == OpKind::Register, Why::Movsxd),
        Jmp | Call
            if case.regs.bitness() == 16
                && matches!(i.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32) =>
        {
            unless(i.far_branch_selector() & !3 != 0x30, Why::FarToLong)
        }
        Maskmovq | Maskmovdqu | Vmaskmovdqu if case.regs.bitness() != 64 => {
            let by16 = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::MemorySegDI);
            let rdi = case.regs.gpr[RDI] & if by16 { 0xffff } else { 0xffff_ffff };
            let n = i.memory_segment().number().min(5);
            let s = case.regs.sel[n];
            let base = if s & 4 != 0 { LDT.get(usize::from(s >> 3)).map_or(0, |d| d.base) } else { 0 };
            let a = rdi.wrapping_add(base.into()) & 0xffff_ffff;
            unless(within_limit(case, i, a, 16) && !(by16 && rdi > 0xfff0), Why::MaskedEdge)
        }
        Ud0 | Ud1 => {
            unless((case.regs.rip_linear() & 0xfff) + i.len() as u64 <= 0x1000, Why::UndefinedAcrossPage)
        }
        Jmp | Call if i.is_jmp_far_indirect() || i.is_call_far_indirect() => {
            let opcode = case.bytes().iter().position(|&b| b == 0xff).unwrap_or(0);
            let plain = opcode == 0 || case.code[opcode - 1] & 0xf8 != 0x48;
            unless(case.regs.bitness() != 64 || plain && case.regs.gpr[RSP] >> 32 == 0, Why::FarWide)
        }
        _ => None,
    }
}

/// Whether VEX.W is set: three bytes behind legacy prefixes.
fn vex_w(bytes: &[u8]) -> bool {
    let at = bytes.iter().position(|b| matches!(b, 0xc4 | 0xc5));
    at.is_some_and(|n| bytes[n] == 0xc4 && bytes.get(n + 2).is_some_and(|b| b & 0x80 != 0))
}
