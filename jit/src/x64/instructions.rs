//! What the baseline does with each kind of instruction.
use crate::x64::features::on_host;
use iced_x86::{Code, ConditionCode, EncodingKind, Instruction, Mnemonic, OpAccess, OpKind, Register};

/// The form of an instruction that takes any register, where it has a shorter one for the accumulator or is not encodable in 64-bit code.
pub(super) fn general(code: Code) -> Code {
    macro_rules! accumulators {
        ($($al:ident $ax:ident $eax:ident $rax:ident: $b:ident $w:ident $d:ident $q:ident;)*) => {
            match code {
                $(Code::$al => Code::$b, Code::$ax => Code::$w, Code::$eax => Code::$d, Code::$rax => Code::$q,)*
                Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
                Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
                Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
                Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
                Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
                Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
                Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
                Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
                Code::Xchg_r16_AX => Code::Xchg_rm16_r16,
                Code::Xchg_r32_EAX => Code::Xchg_rm32_r32,
                Code::Xchg_r64_RAX => Code::Xchg_rm64_r64,
                Code::Add_rm8_imm8_82 => Code::Add_rm8_imm8,
                Code::Or_rm8_imm8_82 => Code::Or_rm8_imm8,
                Code::Adc_rm8_imm8_82 => Code::Adc_rm8_imm8,
                Code::Sbb_rm8_imm8_82 => Code::Sbb_rm8_imm8,
                Code::And_rm8_imm8_82 => Code::And_rm8_imm8,
                Code::Sub_rm8_imm8_82 => Code::Sub_rm8_imm8,
                Code::Xor_rm8_imm8_82 => Code::Xor_rm8_imm8,
                Code::Cmp_rm8_imm8_82 => Code::Cmp_rm8_imm8,
                Code::Inc_r16 => Code::Inc_rm16,
                Code::Inc_r32 => Code::Inc_rm32,
                Code::Dec_r16 => Code::Dec_rm16,
                Code::Dec_r32 => Code::Dec_rm32,
                other => other,
            }
        };
    }
    accumulators! {
        Add_AL_imm8 Add_AX_imm16 Add_EAX_imm32 Add_RAX_imm32: Add_rm8_imm8 Add_rm16_imm16 Add_rm32_imm32 Add_rm64_imm32;
        Or_AL_imm8 Or_AX_imm16 Or_EAX_imm32 Or_RAX_imm32: Or_rm8_imm8 Or_rm16_imm16 Or_rm32_imm32 Or_rm64_imm32;
        Adc_AL_imm8 Adc_AX_imm16 Adc_EAX_imm32 Adc_RAX_imm32: Adc_rm8_imm8 Adc_rm16_imm16 Adc_rm32_imm32 Adc_rm64_imm32;
        Sbb_AL_imm8 Sbb_AX_imm16 Sbb_EAX_imm32 Sbb_RAX_imm32: Sbb_rm8_imm8 Sbb_rm16_imm16 Sbb_rm32_imm32 Sbb_rm64_imm32;
        And_AL_imm8 And_AX_imm16 And_EAX_imm32 And_RAX_imm32: And_rm8_imm8 And_rm16_imm16 And_rm32_imm32 And_rm64_imm32;
        Sub_AL_imm8 Sub_AX_imm16 Sub_EAX_imm32 Sub_RAX_imm32: Sub_rm8_imm8 Sub_rm16_imm16 Sub_rm32_imm32 Sub_rm64_imm32;
        Xor_AL_imm8 Xor_AX_imm16 Xor_EAX_imm32 Xor_RAX_imm32: Xor_rm8_imm8 Xor_rm16_imm16 Xor_rm32_imm32 Xor_rm64_imm32;
        Cmp_AL_imm8 Cmp_AX_imm16 Cmp_EAX_imm32 Cmp_RAX_imm32: Cmp_rm8_imm8 Cmp_rm16_imm16 Cmp_rm32_imm32 Cmp_rm64_imm32;
        Test_AL_imm8 Test_AX_imm16 Test_EAX_imm32 Test_RAX_imm32: Test_rm8_imm8 Test_rm16_imm16 Test_rm32_imm32 Test_rm64_imm32;
    }
}

/// Whether an instruction is emitted here though the interpreter has it as a helper.
pub(super) fn is_helper(i: &Instruction) -> bool {
    i.mnemonic() == Mnemonic::Leave && !i.has_lock_prefix()
}

/// How an instruction is put into the code.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// As it is, with other registers.
    Same,
    /// With the guest's RAX in the host's meanwhile.
    AroundRax,
    /// Nothing has to be done.
    Nothing,
}

/// Whether the baseline has an instruction in its code, as far as its kind tells.
pub(crate) fn emits(i: &Instruction) -> bool {
    let vector = (0..i.op_count()).any(|n| i.op_register(n).is_vector_register());
    if vector {
        vector_how(i).is_some()
    } else {
        how(i).is_some() || matches!(i.mnemonic(), Mnemonic::Div | Mnemonic::Idiv)
    }
}

/// `None`: it is called.
pub(super) fn how(i: &Instruction) -> Option<How> {
    use Mnemonic::*;
    if i.is_string_instruction() || i.has_rep_prefix() && i.mnemonic() != Xchg || i.has_repne_prefix() {
        return None;
    }
    let lockable = matches!(
        i.mnemonic(),
        Add | Adc
            | And
            | Btc
            | Btr
            | Bts
            | Cmpxchg
            | Dec
            | Inc
            | Neg
            | Not
            | Or
            | Sbb
            | Sub
            | Xor
            | Xadd
            | Xchg
    );
    if i.has_lock_prefix() && !(lockable && i.op0_kind() == OpKind::Memory) {
        return None;
    }
    Some(match i.mnemonic() {
        Mov | Movzx | Movsx | Movsxd | Add | Or | Adc | Sbb | And | Sub | Xor | Cmp | Test | Inc | Dec
        | Neg | Not | Shl | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd | Xchg | Xadd | Cmc | Clc
        | Stc | Movnti | Lfence | Mfence | Sfence | Bsf | Bsr => How::Same,
        Seta | Setae | Setb | Setbe | Sete | Setg | Setge | Setl | Setle | Setne | Setno | Setnp | Setns
        | Seto | Setp | Sets => How::Same,
        Cmova | Cmovae | Cmovb | Cmovbe | Cmove | Cmovg | Cmovge | Cmovl | Cmovle | Cmovne | Cmovno
        | Cmovnp | Cmovns | Cmovo | Cmovp | Cmovs => How::Same,
        // A bit's number in a register reaches beyond a memory operand.
        Bt | Bts | Btr | Btc if i.op0_kind() == OpKind::Register || i.op1_kind() == OpKind::Immediate8 => {
            How::Same
        }
        Movbe | Popcnt | Tzcnt | Lzcnt | Andn | Blsi | Blsmsk | Blsr | Bzhi | Bextr | Sarx | Shlx | Shrx
        | Rorx | Pdep | Pext | Mulx | Crc32 | Adcx | Adox
            if on_host(i.code()) =>
        {
            How::Same
        }
        Imul if i.op_count() > 1 => How::Same,
        // Of 16 bits it is undefined.
        Bswap if i.op0_register().size() > 2 => How::Same,
        Mul | Imul | Cbw | Cwde | Cdqe | Cwd | Cdq | Cqo => How::AroundRax,
        // Its first operand is compared with RAX: that one as both would be two.
        Cmpxchg if i.op0_register().full_register() != Register::RAX => How::AroundRax,
        Nop | Endbr64 | Endbr32 | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchnta | Prefetchw
        | Prefetch | Prefetchwt1 => How::Nothing,
        _ => return None,
    })
}

/// As `how`, of an instruction on vectors.
pub(super) fn vector_how(i: &Instruction) -> Option<How> {
    use Mnemonic::*;
    // These have operands of their own kind.
    let odd = matches!(
        i.mnemonic(),
        Maskmovdqu
            | Vmaskmovdqu
            | Pcmpistrm
            | Vpcmpistrm
            | Pcmpestri
            | Pcmpestrm
            | Vpcmpestri
            | Vpcmpestrm
            | Movdq2q
            | Movq2dq
    );
    let plain = (0..i.op_count()).all(|n| match i.op_kind(n) {
        OpKind::Register => {
            let r = i.op_register(n);
            r.is_xmm() || r.is_ymm() || r.is_gpr()
        }
        OpKind::Memory | OpKind::Immediate8 => true,
        _ => false,
    });
    (plain && !odd && !i.is_vsib() && on_host(i.code())).then_some(How::Same)
}

/// Whether a vector in memory must be aligned (SDM volume 1, 14.9 and volume 2, 2.4).
pub(super) fn is_aligned(i: &Instruction, len: u64) -> bool {
    use Mnemonic::*;
    if i.encoding() == EncodingKind::VEX {
        return matches!(
            i.mnemonic(),
            Vmovaps | Vmovapd | Vmovdqa | Vmovntps | Vmovntpd | Vmovntdq | Vmovntdqa
        );
    }
    let free = matches!(i.mnemonic(), Movups | Movupd | Movdqu | Lddqu | Pcmpistri);
    len == 16 && !free
}

/// Whether an operand that is accessed so is written, or may be.
pub(super) fn writes(a: OpAccess) -> bool {
    !matches!(a, OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess)
}

pub(super) fn is_second_byte(r: Register) -> bool {
    matches!(r, Register::AH | Register::BH | Register::CH | Register::DH)
}

/// A bit in a register's number: it is its second byte.
pub(super) const HIGH: u8 = 0x20;

/// Whether an instruction leaves the flags, or some of them, as they were in some cases.
pub(super) fn may_keep_flags(i: &Instruction) -> bool {
    use Mnemonic::*;
    if !matches!(i.mnemonic(), Shl | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd) {
        return false;
    }
    let last = i.op_count() - 1;
    !matches!(i.op_kind(last), OpKind::Immediate8) || i.immediate(last) & 31 == 0 || i.op_count() == 3
}

/// The form of an instruction whose operand `n` may be in memory, if it does to that what it does to a register: nothing is to be cleared above it.
pub(super) fn with_memory(code: Code, n: u32) -> Option<Code> {
    macro_rules! forms {
        ($($rm:ident $r:ident $rm32:ident $r32:ident $imm8:ident $imm32:ident;)*) => {
            match (code, n) {
                $((Code::$rm | Code::$r, 0) => Code::$rm,
                (Code::$rm | Code::$r, 1) => Code::$r,
                (Code::$rm32 | Code::$r32, 1) => Code::$r32,
                (Code::$imm8 | Code::$imm32, 0) => code,)*
                (Code::Mov_rm64_r64 | Code::Mov_r64_rm64, 0) => Code::Mov_rm64_r64,
                (Code::Mov_rm64_r64 | Code::Mov_r64_rm64, 1) => Code::Mov_r64_rm64,
                (Code::Mov_rm32_r32 | Code::Mov_r32_rm32, 1) => Code::Mov_r32_rm32,
                (Code::Cmp_rm32_r32 | Code::Cmp_r32_rm32, 0) => Code::Cmp_rm32_r32,
                (Code::Cmp_rm32_imm8 | Code::Cmp_rm32_imm32 | Code::Mov_rm64_imm32, 0) => code,
                (Code::Imul_r64_rm64 | Code::Imul_r32_rm32, 1) => code,
                _ => return None,
            }
        };
    }
    Some(forms! {
        Add_rm64_r64 Add_r64_rm64 Add_rm32_r32 Add_r32_rm32 Add_rm64_imm8 Add_rm64_imm32;
        Or_rm64_r64 Or_r64_rm64 Or_rm32_r32 Or_r32_rm32 Or_rm64_imm8 Or_rm64_imm32;
        Adc_rm64_r64 Adc_r64_rm64 Adc_rm32_r32 Adc_r32_rm32 Adc_rm64_imm8 Adc_rm64_imm32;
        Sbb_rm64_r64 Sbb_r64_rm64 Sbb_rm32_r32 Sbb_r32_rm32 Sbb_rm64_imm8 Sbb_rm64_imm32;
        And_rm64_r64 And_r64_rm64 And_rm32_r32 And_r32_rm32 And_rm64_imm8 And_rm64_imm32;
        Sub_rm64_r64 Sub_r64_rm64 Sub_rm32_r32 Sub_r32_rm32 Sub_rm64_imm8 Sub_rm64_imm32;
        Xor_rm64_r64 Xor_r64_rm64 Xor_rm32_r32 Xor_r32_rm32 Xor_rm64_imm8 Xor_rm64_imm32;
        Cmp_rm64_r64 Cmp_r64_rm64 Cmp_rm32_r32 Cmp_r32_rm32 Cmp_rm64_imm8 Cmp_rm64_imm32;
    })
}

/// Whether an instruction overwrites the whole of its first operand, a register, without looking at it.
pub(super) fn overwrites(i: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(i.mnemonic(), Mov | Movzx | Movsx | Movsxd)
        && i.op0_register().size() >= 4
        && (i.op1_kind() != OpKind::Register
            || i.op1_register().full_register() != i.op0_register().full_register())
}

/// A condition as in the opcode of Jcc.
pub(super) fn condition(c: ConditionCode) -> Option<u8> {
    Some(match c {
        ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        ConditionCode::g => 15,
        ConditionCode::None => return None,
    })
}
