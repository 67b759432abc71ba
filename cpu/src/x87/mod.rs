//! The x87 FPU: every instruction as a helper.
//!
//! * [`unit`]: what instructions have in common: checks, pointers, FERR#. [`stack`]: registers, tags, TOP, and what
//!   raised exceptions do. [`word`]: bits of the status and control words.
//! * [`load_store`], [`arith`], [`transcendental`], [`compare`], [`control`], [`env`]: the instructions by
//!   group.
//! * [`soft`]: the arithmetic, portable and exact to the bit, exceptions and all. [`engine`] picks the
//!   elementary functions: [`host`]'s on an x86-64 host, [`soft`]'s elsewhere.
//!
//! An instruction that waits first raises what is pending: #NM (CR0.EM, CR0.TS), then #MF. With CR0.NE clear
//! the PC/AT's way is taken instead: FERR# goes to the board, which raises IRQ 13, and the vCPU stays at the
//! instruction, taking interrupts, until the board's IGNNE# lets it pass (SDM volume 1, 8.7.2).
//!
//! FIP, FCS, FDP, FDS and FOP follow every non-control instruction (as without the CPUID bits
//! "FDP_EXCPTN_ONLY"; AMD's FXSAVE, which stores them only while an exception is pending, is FXSAVE's
//! business). An instruction without memory operand leaves FDP and FDS. In the 64-bit formats of FXSAVE the
//! two are whole. FOP comes with the decoded instruction, see [`note_opcode`].
//!
//! Elementary functions differ in the last place between hosts, as they do between makers of the real chip;
//! all else is the same everywhere.

pub mod arith;
pub mod compare;
pub mod control;
pub mod engine;
pub mod env;
#[cfg(target_arch = "x86_64")]
pub mod host;
pub mod load_store;
pub mod soft;
pub mod stack;
#[cfg(test)]
mod tests;
pub mod transcendental;
pub(crate) mod unit;
pub mod word;

use crate::op::{Helper, HelperFn, Op};
use iced_x86::Code;

/// Puts the opcode of an x87 instruction (low 3 bits of its first byte, then the ModR/M byte: what FOP holds)
/// into `op.imm`, which these instructions do not use otherwise. `bytes` starts with the instruction's
/// prefixes.
pub fn note_opcode(op: &mut Op, bytes: &[u8]) {
    if !(Code::Fadd_m32fp as u16..=Code::Fcomip_st0_sti as u16).contains(&op.code) {
        return;
    }
    if let Some(i) = bytes.iter().position(|b| (0xd8..=0xdf).contains(b))
        && let Some(modrm) = bytes.get(i + 1)
    {
        op.imm = u64::from(bytes[i] & 7) << 8 | u64::from(*modrm);
    }
}

/// The helper for an x87 instruction.
pub fn lookup(i: &iced_x86::Instruction) -> Option<Helper> {
    use arith as a;
    use compare as c;
    use control as k;
    use env as e;
    use load_store as l;
    use transcendental as t;
    const ADD: u8 = 0;
    const MUL: u8 = 1;
    const SUB: u8 = 4;
    const SUBR: u8 = 5;
    const DIV: u8 = 6;
    const DIVR: u8 = 7;
    use Code::*;
    let run: HelperFn = match i.code() {
        Fadd_st0_sti => a::st0_sti::<ADD>,
        Fmul_st0_sti => a::st0_sti::<MUL>,
        Fsub_st0_sti => a::st0_sti::<SUB>,
        Fsubr_st0_sti => a::st0_sti::<SUBR>,
        Fdiv_st0_sti => a::st0_sti::<DIV>,
        Fdivr_st0_sti => a::st0_sti::<DIVR>,
        Fadd_sti_st0 => a::sti_st0::<ADD>,
        Fmul_sti_st0 => a::sti_st0::<MUL>,
        Fsub_sti_st0 => a::sti_st0::<SUB>,
        Fsubr_sti_st0 => a::sti_st0::<SUBR>,
        Fdiv_sti_st0 => a::sti_st0::<DIV>,
        Fdivr_sti_st0 => a::sti_st0::<DIVR>,
        Faddp_sti_st0 => a::sti_st0_pop::<ADD>,
        Fmulp_sti_st0 => a::sti_st0_pop::<MUL>,
        Fsubp_sti_st0 => a::sti_st0_pop::<SUB>,
        Fsubrp_sti_st0 => a::sti_st0_pop::<SUBR>,
        Fdivp_sti_st0 => a::sti_st0_pop::<DIV>,
        Fdivrp_sti_st0 => a::sti_st0_pop::<DIVR>,
        Fadd_m32fp => a::m32::<ADD>,
        Fmul_m32fp => a::m32::<MUL>,
        Fsub_m32fp => a::m32::<SUB>,
        Fsubr_m32fp => a::m32::<SUBR>,
        Fdiv_m32fp => a::m32::<DIV>,
        Fdivr_m32fp => a::m32::<DIVR>,
        Fadd_m64fp => a::m64::<ADD>,
        Fmul_m64fp => a::m64::<MUL>,
        Fsub_m64fp => a::m64::<SUB>,
        Fsubr_m64fp => a::m64::<SUBR>,
        Fdiv_m64fp => a::m64::<DIV>,
        Fdivr_m64fp => a::m64::<DIVR>,
        Fiadd_m16int => a::m16int::<ADD>,
        Fimul_m16int => a::m16int::<MUL>,
        Fisub_m16int => a::m16int::<SUB>,
        Fisubr_m16int => a::m16int::<SUBR>,
        Fidiv_m16int => a::m16int::<DIV>,
        Fidivr_m16int => a::m16int::<DIVR>,
        Fiadd_m32int => a::m32int::<ADD>,
        Fimul_m32int => a::m32int::<MUL>,
        Fisub_m32int => a::m32int::<SUB>,
        Fisubr_m32int => a::m32int::<SUBR>,
        Fidiv_m32int => a::m32int::<DIV>,
        Fidivr_m32int => a::m32int::<DIVR>,
        Fchs => a::fchs,
        Fabs => a::fabs,
        Fsqrt => a::fsqrt,
        Frndint => a::frndint,
        Fscale => a::fscale,
        Fxtract => a::fxtract,
        Fprem => a::fprem::<false>,
        Fprem1 => a::fprem::<true>,

        F2xm1 => t::f2xm1,
        Fyl2x => t::fyl2x,
        Fyl2xp1 => t::fyl2xp1,
        Fpatan => t::fpatan,
        Fptan => t::fptan,
        Fsin => t::fsin,
        Fcos => t::fcos,
        Fsincos => t::fsincos,

        Fld_m32fp => l::fld_m32,
        Fld_m64fp => l::fld_m64,
        Fld_m80fp => l::fld_m80,
        Fld_sti => l::fld_sti,
        Fild_m16int => l::fild_m16,
        Fild_m32int => l::fild_m32,
        Fild_m64int => l::fild_m64,
        Fbld_m80bcd => l::fbld,
        Fld1 => l::fld1,
        Fldl2t => l::fldl2t,
        Fldl2e => l::fldl2e,
        Fldpi => l::fldpi,
        Fldlg2 => l::fldlg2,
        Fldln2 => l::fldln2,
        Fldz => l::fldz,
        Fst_m32fp => l::fst_m32::<false>,
        Fstp_m32fp => l::fst_m32::<true>,
        Fst_m64fp => l::fst_m64::<false>,
        Fstp_m64fp => l::fst_m64::<true>,
        Fstp_m80fp => l::fstp_m80,
        Fst_sti => l::fst_sti::<false>,
        Fstp_sti | Fstp_sti_DFD0 | Fstp_sti_DFD8 => l::fst_sti::<true>,
        Fstpnce_sti => l::fstpnce,
        Fist_m16int => l::fist_m16::<false>,
        Fistp_m16int => l::fist_m16::<true>,
        Fist_m32int => l::fist_m32::<false>,
        Fistp_m32int => l::fist_m32::<true>,
        Fistp_m64int => l::fistp_m64,
        Fisttp_m16int => l::fisttp_m16,
        Fisttp_m32int => l::fisttp_m32,
        Fisttp_m64int => l::fisttp_m64,
        Fbstp_m80bcd => l::fbstp,
        Fxch_st0_sti | Fxch_st0_sti_DDC8 | Fxch_st0_sti_DFC8 => l::fxch,
        Fcmovb_st0_sti => l::fcmov::<0>,
        Fcmove_st0_sti => l::fcmov::<1>,
        Fcmovbe_st0_sti => l::fcmov::<2>,
        Fcmovu_st0_sti => l::fcmov::<3>,
        Fcmovnb_st0_sti => l::fcmov::<4>,
        Fcmovne_st0_sti => l::fcmov::<5>,
        Fcmovnbe_st0_sti => l::fcmov::<6>,
        Fcmovnu_st0_sti => l::fcmov::<7>,

        Fcom_st0_sti | Fcom_st0_sti_DCD0 => c::fcom_sti::<false, 0>,
        Fcomp_st0_sti | Fcomp_st0_sti_DCD8 | Fcomp_st0_sti_DED0 => c::fcom_sti::<false, 1>,
        Fucom_st0_sti => c::fcom_sti::<true, 0>,
        Fucomp_st0_sti => c::fcom_sti::<true, 1>,
        Fcompp => c::fcompp::<false>,
        Fucompp => c::fcompp::<true>,
        Fcom_m32fp => c::fcom_m32::<0>,
        Fcomp_m32fp => c::fcom_m32::<1>,
        Fcom_m64fp => c::fcom_m64::<0>,
        Fcomp_m64fp => c::fcom_m64::<1>,
        Ficom_m16int => c::ficom_m16::<0>,
        Ficomp_m16int => c::ficom_m16::<1>,
        Ficom_m32int => c::ficom_m32::<0>,
        Ficomp_m32int => c::ficom_m32::<1>,
        Fcomi_st0_sti => c::fcomi::<false, false>,
        Fcomip_st0_sti => c::fcomi::<false, true>,
        Fucomi_st0_sti => c::fcomi::<true, false>,
        Fucomip_st0_sti => c::fcomi::<true, true>,
        Ftst => c::ftst,
        Fxam => c::fxam,

        Wait => k::wait,
        Fnop | Feni | Fdisi | Fsetpm => k::fnop,
        Fneni | Fndisi | Fnsetpm | Frstpm => k::ignored,
        Fninit => k::fninit,
        Finit => k::finit,
        Fnclex => k::fnclex,
        Fclex => k::fclex,
        Fldcw_m2byte => k::fldcw,
        Fnstcw_m2byte => k::fnstcw,
        Fstcw_m2byte => k::fstcw,
        Fnstsw_m2byte => k::fnstsw,
        Fstsw_m2byte => k::fstsw,
        Fnstsw_AX => k::fnstsw_ax,
        Fstsw_AX => k::fstsw_ax,
        Fincstp => k::fincstp,
        Fdecstp => k::fdecstp,
        Ffree_sti => k::ffree::<false>,
        Ffreep_sti => k::ffree::<true>,

        Fldenv_m14byte => e::fldenv::<false>,
        Fldenv_m28byte => e::fldenv::<true>,
        Fnstenv_m14byte => e::fnstenv::<false>,
        Fnstenv_m28byte => e::fnstenv::<true>,
        Fstenv_m14byte => e::fstenv::<false>,
        Fstenv_m28byte => e::fstenv::<true>,
        Frstor_m94byte => e::frstor::<false>,
        Frstor_m108byte => e::frstor::<true>,
        Fnsave_m94byte => e::fnsave::<false>,
        Fnsave_m108byte => e::fnsave::<true>,
        Fsave_m94byte => e::fsave::<false>,
        Fsave_m108byte => e::fsave::<true>,
        _ => return None,
    };
    Helper::straight(run)
}
