//! How an instruction is put into the baseline's code: of which form it is there, and which are not. What is known of
//! each without looking at its operands stands in [`crate::instructions`].
use super::features::on_host;
use crate::instructions::{Memory, Taken, row};
use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpAccess, OpKind, Register};
use mynah_cpu::int::string::One;

/// The form of an instruction that takes any register, where it has a shorter one for the accumulator or is not
/// encodable in 64-bit code.
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
    use Mnemonic::{Cli, Cmpxchg16b, Leave, Pushfq, Sti};
    match i.mnemonic() {
        Cmpxchg16b => true,
        Leave | Cli | Sti | Pushfq => !i.has_lock_prefix(),
        _ => One::repeated(i).is_some() && !i.has_lock_prefix(),
    }
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

/// `None`: it is called, or has an emitter of its own.
pub(super) fn how(i: &Instruction) -> Option<How> {
    use Mnemonic::*;
    if i.is_string_instruction() || i.has_rep_prefix() && i.mnemonic() != Xchg || i.has_repne_prefix() {
        return None;
    }
    if i.has_lock_prefix() && !(i.op_code().can_use_lock_prefix() && i.op0_kind() == OpKind::Memory) {
        return None;
    }
    let fits = match i.mnemonic() {
        // A bit's number in a register reaches beyond a memory operand.
        Bt | Bts | Btr | Btc => i.op0_kind() == OpKind::Register || i.op1_kind() == OpKind::Immediate8,
        Movbe | Popcnt | Tzcnt | Lzcnt | Andn | Blsi | Blsmsk | Blsr | Bzhi | Bextr | Sarx | Shlx | Shrx
        | Rorx | Pdep | Pext | Mulx | Crc32 | Adcx | Adox => on_host(i.code()),
        // Of 16 bits it is undefined.
        Bswap => i.op0_register().size() > 2,
        // Its first operand is compared with RAX: that one as both would be two.
        Cmpxchg => i.op0_register().full_register() != Register::RAX,
        _ => true,
    };
    match row(i).taken {
        Taken::Same if fits => Some(How::Same),
        Taken::AroundRax if fits => Some(How::AroundRax),
        Taken::Nothing => Some(How::Nothing),
        _ => None,
    }
}

/// As `how`, of an instruction on vectors.
pub(super) fn vector_how(i: &Instruction) -> Option<How> {
    let plain = (0..i.op_count()).all(|n| match i.op_kind(n) {
        OpKind::Register => {
            let r = i.op_register(n);
            r.is_xmm() || r.is_ymm() || r.is_gpr()
        }
        OpKind::Memory | OpKind::Immediate8 => true,
        _ => false,
    });
    (plain && row(i).taken == Taken::Vector && on_host(i.code())).then_some(How::Same)
}

/// Whether a vector of `len` bytes in memory must be aligned.
pub(super) fn is_aligned(i: &Instruction, len: u64) -> bool {
    match row(i).memory {
        Memory::Free => false,
        Memory::Vectors => len == 16,
        Memory::Aligned => true,
    }
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
    if !row(i).counts {
        return false;
    }
    let last = i.op_count() - 1;
    !matches!(i.op_kind(last), OpKind::Immediate8) || i.immediate(last) & 31 == 0 || i.op_count() == 3
}

/// The form of an instruction whose operand `n` may be in memory, if it does to that what it does to a register:
/// nothing is to be cleared above it.
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
    row(i).whole
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x64::registers::MAP;
    use crate::x64::x87::is_x87;
    use iced_x86::{InstructionInfoFactory, OpCodeOperandKind as Kind};
    use std::collections::HashMap;

    /// An instruction of a code whose operands are registers that nothing uses implicitly (or fixed ones); `None` if
    /// it has operands of other kinds, which the baseline refuses.
    fn sample(code: Code, in_memory: bool) -> Option<Instruction> {
        let mut i = Instruction::default();
        i.set_code(code);
        let o = code.op_code();
        for n in 0..o.op_count() {
            let register = match o.op_kind(n) {
                Kind::mem | Kind::mem_offs => None,
                Kind::r8_or_mem
                | Kind::r16_or_mem
                | Kind::r32_or_mem
                | Kind::r64_or_mem
                | Kind::mm_or_mem
                | Kind::xmm_or_mem
                | Kind::ymm_or_mem
                    if in_memory =>
                {
                    None
                }
                Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode => Some(Register::R8L),
                Kind::r16_or_mem | Kind::r16_reg | Kind::r16_rm | Kind::r16_opcode => Some(Register::R8W),
                Kind::r32_or_mem | Kind::r32_reg | Kind::r32_rm | Kind::r32_opcode | Kind::r32_vvvv => {
                    Some(Register::R8D)
                }
                Kind::r64_or_mem | Kind::r64_reg | Kind::r64_rm | Kind::r64_opcode | Kind::r64_vvvv => {
                    Some(Register::R8)
                }
                Kind::xmm_or_mem | Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_vvvv | Kind::xmm_is4 => {
                    Some(Register::XMM8)
                }
                Kind::ymm_or_mem | Kind::ymm_reg | Kind::ymm_rm | Kind::ymm_vvvv | Kind::ymm_is4 => {
                    Some(Register::YMM8)
                }
                Kind::al => Some(Register::AL),
                Kind::cl => Some(Register::CL),
                Kind::ax => Some(Register::AX),
                Kind::eax => Some(Register::EAX),
                Kind::rax => Some(Register::RAX),
                Kind::imm8 | Kind::imm8_const_1 => {
                    i.set_op_kind(n, OpKind::Immediate8);
                    continue;
                }
                Kind::imm16
                | Kind::imm32
                | Kind::imm64
                | Kind::imm8sex16
                | Kind::imm8sex32
                | Kind::imm8sex64
                | Kind::imm32sex64 => {
                    i.set_op_kind(n, OpKind::Immediate32);
                    continue;
                }
                _ => return None,
            };
            match register {
                Some(r) => {
                    let fixed = matches!(
                        r,
                        Register::AL | Register::CL | Register::AX | Register::EAX | Register::RAX
                    );
                    i.set_op_kind(n, OpKind::Register);
                    i.set_op_register(n, if fixed { r } else { r + n });
                }
                None => {
                    i.set_op_kind(n, OpKind::Memory);
                    i.set_memory_base(Register::R14);
                }
            }
        }
        Some(i)
    }

    /// A register whichever its width: whether it is a vector, and its number.
    fn whole(r: Register) -> (bool, usize) {
        (r.is_vector_register(), r.full_register().number())
    }

    /// An instruction with a register that is no operand would be put into the code with whatever the host has there.
    #[test]
    fn every_implicit_register_of_what_the_baseline_takes_stands_in_the_table() {
        let mut info = InstructionInfoFactory::new();
        let (mut taken, mut with_implicit) = (0, 0);
        let mut said: HashMap<(Mnemonic, Register), bool> = HashMap::new();
        for (code, in_memory) in Code::values().flat_map(|c| [(c, false), (c, true)]) {
            let Some(i) = sample(code, in_memory) else { continue };
            let vector = (0..i.op_count()).any(|n| i.op_register(n).is_vector_register());
            let row = row(&i);
            let how = if vector { vector_how(&i) } else { how(&i) };
            // Where the host has not what it needs, only the table is looked at.
            let own = row.taken == Taken::Own && !is_x87(code);
            if how.is_none() && !own && !(row.taken == Taken::Vector && vector) {
                continue;
            }
            taken += 1;
            let mut implicit = Vec::new();
            for used in info.info(&i).used_registers() {
                let r = used.register();
                let explicit = (0..i.op_count()).any(|n| whole(i.op_register(n)) == whole(r))
                    || i.memory_base() == r.full_register() && r.is_gpr();
                if explicit || r.is_segment_register() || own && r.full_register() == Register::RSP {
                    continue;
                }
                assert!(r.is_gpr() || r.is_vector_register(), "{code:?} uses {r:?}");
                implicit.push((whole(r), writes(used.access())));
            }
            if row.taken == Taken::Own && i.mnemonic() == Mnemonic::Vzeroupper {
                continue;
            }
            with_implicit += usize::from(!implicit.is_empty());
            for ((vector, number), written) in implicit {
                let listed = row.implicit.iter().copied().find(|&r| whole(r) == (vector, number));
                let Some(listed) = listed else {
                    panic!("{code:?} uses register {number} (vector: {vector}), which the table has not")
                };
                said.insert((i.mnemonic(), listed), true);
                if own {
                    continue;
                }
                // Vectors are loaded, and not stored; general registers are the host's own, or RAX.
                assert!(!(vector && written), "{code:?}");
                let in_place = MAP[number & 15] == Some(number as u8);
                assert!(vector || in_place || number == 0 && how == Some(How::AroundRax), "{code:?}");
            }
            for &r in row.implicit {
                said.entry((i.mnemonic(), r)).or_insert(false);
            }
        }
        // These share a row with what extends RAX into RDX.
        let narrow = |m: Mnemonic| matches!(m, Mnemonic::Cbw | Mnemonic::Cwde | Mnemonic::Cdqe);
        for ((m, r), used) in said {
            assert!(used || narrow(m) && r == Register::RDX, "{m:?} does not use {r:?}");
        }
        assert!(taken > 1500 && with_implicit > 40, "{taken} {with_implicit}");
    }

    /// What the table does not know is called.
    #[test]
    fn what_the_table_does_not_name_is_not_taken() {
        for code in Code::values() {
            for i in [false, true].into_iter().filter_map(|m| sample(code, m)) {
                if row(&i).taken == Taken::Called {
                    assert!(!emits(&i) && how(&i).is_none() && vector_how(&i).is_none(), "{code:?}");
                }
            }
        }
        for odd in [Code::Pcmpestri_xmm_xmmm128_imm8, Code::Pcmpestri64_xmm_xmmm128_imm8] {
            assert!(sample(odd, false).is_some_and(|i| vector_how(&i).is_none()));
        }
    }
}
