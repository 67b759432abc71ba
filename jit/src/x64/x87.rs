//! What is known of x87 instructions, and which of them the host's unit executes for the guest.
use super::features::has_sse3;
use iced_x86::Code;
use mynah_cpu::op::Op;

/// Masks in the control word.
pub(crate) const MASKS: i64 = 0x3f;

/// Whether an instruction is the x87 unit's, WAIT aside.
pub(crate) fn is_x87(code: Code) -> bool {
    is_x87_number(code as u16)
}

/// As [`is_x87`], of the code's number.
pub(crate) fn is_x87_number(code: u16) -> bool {
    (Code::Fadd_m32fp as u16..=Code::Fcomip_st0_sti as u16).contains(&code)
}

/// Whether the host's x87 unit does for an instruction of the x87 unit (or WAIT) what the guest's would.
pub(crate) fn is_direct(code: Code) -> bool {
    use Code::*;
    match code {
        Fldenv_m14byte | Fldenv_m28byte | Fnstenv_m14byte | Fnstenv_m28byte | Fstenv_m14byte
        | Fstenv_m28byte | Frstor_m94byte | Frstor_m108byte | Fnsave_m94byte | Fnsave_m108byte
        | Fsave_m94byte | Fsave_m108byte | Fninit | Finit | Fnclex | Fclex | Fneni | Feni | Fndisi
        | Fdisi | Fnsetpm | Fsetpm | Frstpm | Fstpnce_sti => false,
        Fisttp_m16int | Fisttp_m32int | Fisttp_m64int => has_sse3(),
        Wait => true,
        _ => is_x87(code),
    }
}

/// Whether an x87 instruction does not count as the last one, which the pointers and the opcode are noted of.
pub(crate) fn is_control(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        Fldcw_m2byte
            | Fnstcw_m2byte
            | Fstcw_m2byte
            | Fnstsw_m2byte
            | Fstsw_m2byte
            | Fnstsw_AX
            | Fstsw_AX
            | Fnop
            | Fincstp
            | Fdecstp
            | Ffree_sti
            | Ffreep_sti
    )
}

/// The two bytes of an x87 instruction.
pub(crate) fn bytes_of(op: &Op) -> (u8, u8) {
    (0xd8 | (op.imm >> 8 & 7) as u8, op.imm as u8)
}

/// Whether an instruction loads control registers of the floating-point units from memory, so that what stands there
/// decides whether the host's own raise exceptions. Such an operand is read once, into a copy, which is checked and
/// then loaded: another vCPU may change the guest's memory at any time.
pub(crate) fn loads_control(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        Fldcw_m2byte
            | Fldenv_m14byte
            | Fldenv_m28byte
            | Frstor_m94byte
            | Frstor_m108byte
            | Ldmxcsr_m32
            | VEX_Vldmxcsr_m32
            | Fxrstor_m512byte
            | Fxrstor64_m512byte
            | Xrstor_mem
            | Xrstor64_mem
            | Xrstors_mem
            | Xrstors64_mem
    )
}

/// Whether an instruction with a memory operand writes it.
pub(crate) fn is_store(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        Fst_m32fp
            | Fstp_m32fp
            | Fst_m64fp
            | Fstp_m64fp
            | Fstp_m80fp
            | Fist_m16int
            | Fistp_m16int
            | Fist_m32int
            | Fistp_m32int
            | Fistp_m64int
            | Fisttp_m16int
            | Fisttp_m32int
            | Fisttp_m64int
            | Fbstp_m80bcd
            | Fnstcw_m2byte
            | Fstcw_m2byte
            | Fnstsw_m2byte
            | Fstsw_m2byte
    )
}
