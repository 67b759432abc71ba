//! Every instruction that falls through, in each form and width, with random operands: interpreted and translated, the
//! whole state and memory must be the same, faults included.
mod common;

use common::*;
use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, EncodingKind, FlowControl, Instruction, MemoryOperand, Mnemonic,
    OpCodeOperandKind as Kind, Register,
};
use mynah_cpu::decode::build;
use mynah_cpu::mode::ModeKey;
use mynah_cpu::state::{fl, gpr};
use mynah_cpu::{Cpu, CpuModel};
use mynah_jit::tier::Optimize;

/// Not the same twice, or not to be executed alone, or leaving a mode that regions are made for (a segment that is not
/// flat).
fn is_excluded(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        m,
        Rdtsc
            | Rdtscp
            | Rdrand
            | Rdseed
            | Rdpmc
            | Hlt
            | Mwait
            | Monitor
            | Wbinvd
            | Invd
            | Les
            | Lds
            | Lss
            | Lfs
            | Lgs
    )
}

/// Instructions of a code: register and memory forms, with operands from `r`.
fn forms(code: Code, bits: u32, r: &mut Random) -> Vec<Instruction> {
    let info = code.op_code();
    let mut out = Vec::new();
    for in_memory in [false, true] {
        let mut i = Instruction::default();
        i.set_code(code);
        let mut any_memory = false;
        let mut ok = true;
        for n in 0..info.op_count() {
            let wide = bits == 64 && r.below(3) == 0;
            let reg = |list: &[Register], r: &mut Random| list[r.below(list.len() as u64) as usize];
            use Register::*;
            let r8: &[Register] =
                if wide { &[AL, CL, DL, BL, BPL, R8L, R13L] } else { &[AL, CL, DL, BL, AH, CH, DH, BH] };
            let r16: &[Register] = if wide { &[AX, R9W, R15W] } else { &[AX, CX, DX, BX, BP] };
            let r32: &[Register] = if wide { &[EAX, R8D, R12D] } else { &[EAX, ECX, EDX, EBX, EBP] };
            let r64: &[Register] = &[RAX, RCX, RDX, RBX, RBP, R8, R10, R15];
            let x: &[Register] = if wide { &[XMM1, XMM9, XMM15] } else { &[XMM0, XMM1, XMM5] };
            let y: &[Register] = if wide { &[YMM1, YMM9, YMM15] } else { &[YMM0, YMM1, YMM5] };
            let mm: &[Register] = &[MM0, MM3, MM7];
            let mut memory = |i: &mut Instruction| {
                any_memory = true;
                i.set_op_kind(n, iced_x86::OpKind::Memory);
                let (base, index) = if bits == 64 { (RSI, RDI) } else { (ESI, EDI) };
                let m = match r.below(4) {
                    0 => MemoryOperand::with_base(base),
                    1 => MemoryOperand::with_base_displ(base, 0x21),
                    2 => MemoryOperand::new(base, index, 4, -0x40, 1, false, Register::None),
                    _ => MemoryOperand::new(base, index, 2, 0x300, 4, false, Register::None),
                };
                i.set_memory_base(m.base);
                i.set_memory_index(m.index);
                i.set_memory_index_scale(m.scale);
                i.set_memory_displ_size(m.displ_size);
                i.set_memory_displacement64(m.displacement as u64);
            };
            macro_rules! register {
                ($list:expr) => {{
                    let v = reg($list, r);
                    i.set_op_kind(n, iced_x86::OpKind::Register);
                    i.set_op_register(n, v);
                }};
            }
            match info.op_kind(n) {
                Kind::mem => memory(&mut i),
                Kind::r8_or_mem
                | Kind::r16_or_mem
                | Kind::r32_or_mem
                | Kind::r64_or_mem
                | Kind::xmm_or_mem
                | Kind::ymm_or_mem
                | Kind::mm_or_mem
                | Kind::r32_or_mem_mpx
                | Kind::r64_or_mem_mpx
                    if in_memory =>
                {
                    memory(&mut i);
                }
                Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode => register!(r8),
                Kind::r16_or_mem | Kind::r16_reg | Kind::r16_rm | Kind::r16_opcode => register!(r16),
                Kind::r32_or_mem | Kind::r32_vvvv | Kind::r32_reg | Kind::r32_rm | Kind::r32_opcode => {
                    register!(r32)
                }
                Kind::r64_or_mem | Kind::r64_vvvv | Kind::r64_reg | Kind::r64_rm | Kind::r64_opcode => {
                    register!(r64)
                }
                Kind::xmm_or_mem | Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_vvvv | Kind::xmm_is4 => {
                    register!(x)
                }
                Kind::ymm_or_mem | Kind::ymm_reg | Kind::ymm_rm | Kind::ymm_vvvv | Kind::ymm_is4 => {
                    register!(y)
                }
                Kind::mm_or_mem | Kind::mm_reg | Kind::mm_rm => register!(mm),
                Kind::st0 => register!(&[ST0]),
                Kind::sti_opcode => register!(&[ST0, ST1, ST5, ST7]),
                Kind::al => register!(&[AL]),
                Kind::cl => register!(&[CL]),
                Kind::ax => register!(&[AX]),
                Kind::dx => register!(&[DX]),
                Kind::eax => register!(&[EAX]),
                Kind::rax => register!(&[RAX]),
                Kind::imm8
                | Kind::imm8_const_1
                | Kind::imm16
                | Kind::imm32
                | Kind::imm64
                | Kind::imm8sex16
                | Kind::imm8sex32
                | Kind::imm8sex64
                | Kind::imm32sex64 => {
                    use iced_x86::OpKind as O;
                    let v = r.value();
                    let (kind, v) = match info.op_kind(n) {
                        Kind::imm8 => (O::Immediate8, v & 0xff),
                        Kind::imm8_const_1 => (O::Immediate8, 1),
                        Kind::imm16 => (O::Immediate16, v & 0xffff),
                        Kind::imm32 => (O::Immediate32, v & 0xffff_ffff),
                        Kind::imm64 => (O::Immediate64, v),
                        Kind::imm8sex16 => (O::Immediate8to16, v as i8 as u64),
                        Kind::imm8sex32 => (O::Immediate8to32, v as i8 as u64),
                        Kind::imm8sex64 => (O::Immediate8to64, v as i8 as u64),
                        _ => (O::Immediate32to64, v as i32 as u64),
                    };
                    i.set_op_kind(n, kind);
                    i.set_immediate_u64(n, v);
                }
                _ => ok = false,
            }
        }
        if ok && (any_memory || !in_memory) {
            out.push(i);
        }
    }
    out
}

fn check_all(bits: u32, wanted: impl Fn(&Instruction) -> bool, at_least: usize) {
    check_all_in(Optimize::Speed, bits, wanted, at_least);
}

fn check_all_in(optimize: Optimize, bits: u32, wanted: impl Fn(&Instruction) -> bool, at_least: usize) {
    let mut r = Random(0x1234_5678_9abc_def1 ^ u64::from(bits));
    let mut pair = Pair::with(bits, optimize, 1);
    let baseline = optimize == Optimize::Baseline;
    let model = CpuModel::parse("max").expect("a model");
    let mode = ModeKey(pair.plain.mode_key);
    let mut tested = 0;
    for code in Code::values() {
        let info = code.op_code();
        let in_mode = if bits == 64 { info.mode64() } else { info.mode32() };
        if !info.is_instruction()
            || !in_mode
            || !matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
            || is_excluded(info.mnemonic())
        {
            continue;
        }
        for mut i in forms(code, bits, &mut r) {
            if i.flow_control() != FlowControl::Next {
                continue;
            }
            if i.memory_base() != Register::None && bits == 32 && r.below(5) == 0 {
                i.set_segment_prefix(Register::FS);
            }
            let lockable = info.can_use_lock_prefix() && i.op0_kind() == iced_x86::OpKind::Memory;
            i.set_has_lock_prefix(lockable && r.below(2) == 0);
            let mut e = Encoder::new(bits);
            if e.encode(&i, 0).is_err() {
                continue;
            }
            let mut bytes = e.take_buffer();
            let i = Decoder::new(bits, &bytes, DecoderOptions::AMD).decode();
            if i.code() != code || !wanted(&i) || build::<Cpu>(&model, mode, &i, 0).is_none() {
                continue;
            }
            // Around it: something that sets flags and registers before, and something that reads flags after.
            // The baseline has the host's undefined flags.
            let set: [&[u8]; 4] = [&[], &[0x01, 0xc8], &[0x29, 0xd1], &[0x84, 0xc0]];
            let before = set[r.below(if baseline { 3 } else { 4 }) as usize];
            let after: &[u8] =
                [&[0x0f, 0x92, 0xc7][..], &[0x0f, 0x4c, 0xe8], &[0x83, 0xd0, 0x05], &[]][r.below(4) as usize];
            let text = format!("{i} (before {before:x?}, after {after:x?}, {bits} bits)");
            bytes.splice(0..0, before.iter().copied());
            bytes.extend_from_slice(after);
            bytes.push(0xf4);
            let at = pair.put_code(&bytes);
            let before = pair.statistics();
            for n in 0..12 {
                let seed = r.next();
                pair.prepare(at, seed, |s, r| {
                    let place = match n {
                        0..6 => DATA + 0x1000 + 16 * r.below(256),
                        6 => DATA + 0x1000 + r.below(0x1000),
                        7 => DATA + 0x1ff8 + r.below(16), // across pages
                        8 => READ_ONLY + 0x400,
                        9 => ABSENT + 0x800 - 0x10 * r.below(0x100),
                        10 => READ_ONLY - r.below(8),
                        _ => r.next() & if bits == 64 { u64::MAX } else { 0xffff_ffff },
                    };
                    // Through FS with a limit of 4 KiB in 32-bit mode.
                    let fs = i.segment_prefix() == Register::FS;
                    s.gpr[gpr::RSI] = if fs && n < 10 { place & 0xfff } else { place };
                    s.gpr[gpr::RDI] =
                        if i.is_string_instruction() { DATA + r.below(0x4000) } else { r.below(16) };
                    if r.below(4) == 0 {
                        s.rflags |= fl::DF;
                    }
                    if r.below(2) == 0 {
                        s.gpr[gpr::RCX] &= 0x3f;
                    }
                });
                pair.run(&|| format!("{text}, run {n}"));
            }
            let now = pair.statistics();
            let translated =
                (baseline || now.installed > before.installed) && now.entered >= before.entered + 12;
            assert!(translated && now.refused == 0, "{text} was not translated: {now:?}");
            tested += 1;
        }
    }
    assert!(tested >= at_least, "only {tested} forms tested");
}

fn is_vector(i: &Instruction) -> bool {
    use iced_x86::CpuidFeature::*;
    i.cpuid_features().iter().any(|f| {
        !matches!(
            f,
            INTEL8086
                | INTEL8086_ONLY
                | INTEL186
                | INTEL286
                | INTEL286_ONLY
                | INTEL386
                | INTEL386_ONLY
                | INTEL386_A0_ONLY
                | INTEL486
                | INTEL486_A_ONLY
                | X64
                | CMOV
                | POPCNT
                | BMI1
                | BMI2
                | LZCNT
                | MOVBE
                | MULTIBYTENOP
                | CX8
                | CMPXCHG16B
                | ADX
                | SSE4_2
        )
    })
}

#[test]
fn integer_instructions_of_64_bit_code_do_the_same_translated() {
    check_all(64, |i| !is_vector(i), 500);
}

#[test]
fn integer_instructions_of_32_bit_code_do_the_same_translated() {
    check_all(32, |i| !is_vector(i), 350);
}

#[test]
fn vector_and_x87_instructions_do_the_same_translated() {
    check_all(64, is_vector, 300);
}

#[test]
fn vector_instructions_of_32_bit_code_do_the_same_translated() {
    check_all(32, is_vector, 300);
}

fn is_x87(i: &Instruction) -> bool {
    (Code::Fadd_m32fp as u16..=Code::Fcomip_st0_sti as u16).contains(&(i.code() as u16))
        || i.code() == Code::Wait
}

#[test]
fn x87_instructions_do_the_same_in_the_baseline() {
    if lacks_baseline() {
        return;
    }
    check_all_in(Optimize::Baseline, 64, is_x87, 130);
    check_all_in(Optimize::Baseline, 32, is_x87, 130);
}
