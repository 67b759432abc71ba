//! VEX instructions on a vCPU: that all of x86-64-v3 is there, what turns them off, widths, alignment, faults.
use super::machine::{DATA, execute, get, gp, machine, plain, put};
use crate::cpu::Cpu;
use crate::decode::{build, decode_op};
use crate::event::vector;
use crate::mode::ModeKey;
use crate::model::CpuModel;
use crate::state::{cr0, cr4, gpr};
use iced_x86::{Code, EncodingKind, Instruction, OpCodeOperandKind as K, OpKind, Register};

/// A vCPU whose system has AVX enabled.
fn avx() -> Box<Cpu> {
    let mut cpu = machine();
    cpu.state.cr4 |= cr4::OSXSAVE;
    cpu.state.xcr0 = 7;
    cpu.sync_all();
    cpu
}
fn set(cpu: &mut Cpu, r: usize, low: u128, high: u128) {
    cpu.state.xmm[r].set_x(low);
    cpu.state.xmm[r].set_y_high(high);
}
fn ymm(cpu: &Cpu, r: usize) -> (u128, u128) {
    (cpu.state.xmm[r].x(), cpu.state.xmm[r].y_high())
}
/// The same 32-bit element everywhere.
fn all(x: u32) -> u128 {
    u128::from(x) * 0x1_0000_0001_0000_0001_0000_0001
}

const A: u128 = 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100;
const B: u128 = 0x1f1e_1d1c_1b1a_1918_1716_1514_1312_1110;

/// Whether the bytes are an instruction.
fn defined(model: &CpuModel, mode: u32, bytes: &[u8]) -> bool {
    let (op, _) = decode_op(model, ModeKey(mode), bytes, 0).unwrap();
    op.helper as usize != crate::handler::undefined as *const () as usize
        || op.run as usize != crate::handler::run_ender as *const () as usize
}

#[test]
fn every_vex_instruction_of_an_implemented_feature_is_handled() {
    let model = CpuModel::parse("max").unwrap();
    let (mut missing, mut count) = (vec![], 0);
    for code in Code::values().filter(|c| c.encoding() == EncodingKind::VEX) {
        let mut i = Instruction::default();
        i.set_code(code);
        if !code.op_code().is_instruction() || !model.allows(&i) {
            continue;
        }
        for memory in [false, true] {
            let mut i = i;
            let (mut memories, mut skip) = (0, false);
            for (n, kind) in code.op_code().op_kinds().iter().enumerate() {
                let name = format!("{kind:?}");
                let either = name.contains("_or_mem");
                if name.starts_with("mem") && !memory {
                    skip = true;
                } else if name.starts_with("mem") || either && memory {
                    i.try_set_op_kind(n as u32, OpKind::Memory).unwrap();
                    memories += 1;
                } else if matches!(kind, K::imm8) {
                    i.try_set_op_kind(n as u32, OpKind::Immediate8).unwrap();
                } else if matches!(kind, K::seg_rDI) {
                    i.try_set_op_kind(n as u32, OpKind::MemorySegRDI).unwrap();
                } else {
                    let r = match name.get(..2) {
                        Some("r3") => Register::EDX,
                        Some("r6") => Register::RDX,
                        Some("ym") => Register::YMM2,
                        _ => Register::XMM2,
                    };
                    i.try_set_op_register(n as u32, r).unwrap();
                }
            }
            if skip || memory && memories == 0 {
                continue;
            }
            count += 1;
            let there = build::<Cpu>(&model, ModeKey(ModeKey::LONG | ModeKey::PE), &i, 0).is_some();
            if !there {
                missing.push(format!("{code:?} (memory: {memory})"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(count > 1000, "only {count} forms were looked at");
}

#[test]
fn vex_instructions_want_the_system_to_have_enabled_avx() {
    let vaddps = &[0xc5, 0xf0, 0x58, 0xc2][..]; // vaddps xmm0, xmm1, xmm2
    let vzeroupper = &[0xc5, 0xf8, 0x77][..];
    let vldmxcsr = &[0xc5, 0xf8, 0xae, 0x10][..]; // vldmxcsr [rax]
    let vgather = &[0xc4, 0xe2, 0x69, 0x90, 0x04, 0x08][..]; // vpgatherdd xmm0, [rax + xmm1], xmm2
    let table: &[(u64, u64, u64, u8)] = &[
        (cr4::OSXSAVE, 7, 0, 0),
        (cr4::OSXSAVE, 7, cr0::EM, 0),
        (0, 7, 0, vector::UD),
        (cr4::OSXSAVE, 3, 0, vector::UD),
        (cr4::OSXSAVE, 1, 0, vector::UD),
        (cr4::OSXSAVE, 7, cr0::TS, vector::NM),
        (cr4::OSXSAVE, 3, cr0::TS, vector::UD),
    ];
    for &(c4, xcr0, c0, want) in table {
        for code in [vaddps, vzeroupper, vldmxcsr, vgather] {
            let mut cpu = machine();
            put(&cpu, DATA, 0x1f80);
            cpu.state.cr4 |= c4;
            cpu.state.xcr0 = xcr0;
            cpu.state.cr0 |= c0;
            cpu.sync_mode();
            let want = if want == 0 { None } else { plain(want) };
            assert_eq!(execute(&mut cpu, code), want, "{code:02x?} {c4:x} {xcr0} {c0:x}");
        }
    }
}

#[test]
fn there_are_no_vex_prefixes_in_real_and_virtual_8086_mode() {
    let model = CpuModel::parse("max").unwrap();
    let defined = |mode: u32, bytes: &[u8]| defined(&model, mode, bytes);
    // vaddps xmm0, xmm1, xmm2; andn eax, ecx, edx
    for code in [&[0xc5, 0xf0, 0x58, 0xc2][..], &[0xc4, 0xe2, 0x70, 0xf2, 0xc2]] {
        assert!(defined(ModeKey::PE | ModeKey::LONG, code));
        assert!(defined(ModeKey::PE, code), "16-bit protected mode has them");
        assert!(!defined(0, code));
        assert!(!defined(ModeKey::PE | ModeKey::VM, code));
    }
}

#[test]
fn reserved_encodings_are_undefined() {
    let cpu = avx();
    for code in [
        &[0xf0, 0xc5, 0xf0, 0x58, 0xc2][..],   // LOCK before VEX
        &[0x66, 0xc5, 0xf0, 0x58, 0xc2],       // 66h
        &[0xf3, 0xc5, 0xf0, 0x58, 0xc2],       // F3h
        &[0xf2, 0xc5, 0xf0, 0x58, 0xc2],       // F2h
        &[0x48, 0xc5, 0xf0, 0x58, 0xc2],       // REX
        &[0xc5, 0xf0, 0x51, 0xc2],             // vsqrtps with VEX.vvvv = 1
        &[0xc5, 0xfc, 0x12, 0xc2],             // vmovhlps with VEX.L = 1
        &[0xc4, 0xe3, 0x79, 0x06, 0xc2, 0],    // vperm2f128 with VEX.L = 0
        &[0xc4, 0xe2, 0x71, 0x90, 0x04, 0x08], // vpgatherdd whose index is its mask
        &[0xc4, 0xe2, 0x69, 0x90, 0x14, 0x08], // vpgatherdd whose destination is its mask
    ] {
        assert!(!defined(&cpu.model, ModeKey::PE | ModeKey::LONG, code), "{code:02x?}");
    }
}

#[test]
fn forms_of_128_bits_zero_the_upper_half_and_legacy_forms_keep_it() {
    let mut cpu = avx();
    set(&mut cpu, 0, A, A);
    set(&mut cpu, 1, A, B);
    set(&mut cpu, 2, B, B);
    // pxor xmm0, xmm2
    assert_eq!(execute(&mut cpu, &[0x66, 0x0f, 0xef, 0xc2]), None);
    assert_eq!(ymm(&cpu, 0), (A ^ B, A));
    // vpxor ymm0, ymm1, ymm2
    assert_eq!(execute(&mut cpu, &[0xc5, 0xf5, 0xef, 0xc2]), None);
    assert_eq!(ymm(&cpu, 0), (A ^ B, 0));
    // vpor ymm0, ymm1, ymm2, then vpor xmm0, xmm1, xmm2
    assert_eq!(execute(&mut cpu, &[0xc5, 0xf5, 0xeb, 0xc2]), None);
    assert_eq!(ymm(&cpu, 0), (A | B, B));
    assert_eq!(execute(&mut cpu, &[0xc5, 0xf1, 0xeb, 0xc2]), None);
    assert_eq!(ymm(&cpu, 0), (A | B, 0));
    // A scalar operation takes the rest from its second operand: vaddss xmm0, xmm1, xmm2
    set(&mut cpu, 1, A >> 32 << 32 | u128::from(1f32.to_bits()), A);
    set(&mut cpu, 2, 2f32.to_bits().into(), A);
    assert_eq!(execute(&mut cpu, &[0xc5, 0xf2, 0x58, 0xc2]), None);
    assert_eq!(ymm(&cpu, 0), (A >> 32 << 32 | u128::from(3f32.to_bits()), 0));
}

#[test]
fn vzeroupper_and_vzeroall_reach_eight_registers_outside_64_bit_mode() {
    for (code, low) in [(&[0xc5, 0xf8, 0x77][..], A), (&[0xc5, 0xfc, 0x77], 0)] {
        for (mode, count) in [(ModeKey::PE | ModeKey::D32, 8), (ModeKey::PE | ModeKey::LONG, 16)] {
            let mut cpu = avx();
            for r in 0..16 {
                set(&mut cpu, r, A, B);
            }
            let (op, _) = decode_op(&cpu.model, ModeKey(mode), code, 0).unwrap();
            (op.run)(&mut cpu, &op);
            for r in 0..16 {
                assert_eq!(ymm(&cpu, r), if r < count { (low, 0) } else { (A, B) }, "{r}");
            }
        }
    }
}

#[test]
fn only_aligned_moves_check_alignment_and_to_the_operands_own_size() {
    let mut cpu = avx();
    put(&cpu, DATA + 16, A);
    put(&cpu, DATA + 32, B);
    cpu.state.gpr[gpr::RAX] = DATA + 16;
    // vpaddb ymm1, ymm2, [rax]; vmovdqu ymm1, [rax]; vmovdqa xmm1, [rax]; vmovntdqa xmm1, [rax]
    for code in [
        &[0xc5, 0xed, 0xfc, 0x08][..],
        &[0xc5, 0xfe, 0x6f, 0x08],
        &[0xc5, 0xf9, 0x6f, 0x08],
        &[0xc4, 0xe2, 0x79, 0x2a, 0x08],
    ] {
        assert_eq!(execute(&mut cpu, code), None, "{code:02x?}");
        assert_eq!(cpu.state.xmm[1].x(), A);
    }
    // vmovdqa ymm1, [rax]; vmovaps [rax], ymm1; vmovntdq [rax], ymm1; vmovntdqa ymm1, [rax]
    for code in [
        &[0xc5, 0xfd, 0x6f, 0x08][..],
        &[0xc5, 0xfc, 0x29, 0x08],
        &[0xc5, 0xfd, 0xe7, 0x08],
        &[0xc4, 0xe2, 0x7d, 0x2a, 0x08],
    ] {
        assert_eq!(execute(&mut cpu, code), gp(), "{code:02x?}");
    }
}

#[test]
fn elements_that_are_masked_out_are_neither_read_nor_written() {
    let mut cpu = avx();
    // The operand's upper half is on a page that is not there.
    cpu.state.gpr[gpr::RAX] = DATA + 0xff0;
    put(&cpu, DATA + 0xff0, A);
    set(&mut cpu, 1, 0x8000_0000_0000_0000_8000_0000_7fff_ffff, all(0x7fff_ffff));
    set(&mut cpu, 2, B, B);
    // vmaskmovps ymm0, ymm1, [rax]; vpmaskmovd [rax], ymm1, ymm2
    assert_eq!(execute(&mut cpu, &[0xc4, 0xe2, 0x75, 0x2c, 0x00]), None);
    let mask = 0xffff_ffff_0000_0000_ffff_ffff_0000_0000u128;
    assert_eq!(ymm(&cpu, 0), (A & mask, 0));
    assert_eq!(execute(&mut cpu, &[0xc4, 0xe2, 0x75, 0x8e, 0x10]), None);
    assert_eq!(get(&cpu, DATA + 0xff0), A & !mask | B & mask);
    // With one element there, nothing is stored and the fault is that element's.
    put(&cpu, DATA + 0xff0, A);
    set(&mut cpu, 1, all(0x8000_0000), 0x8000_0000_0000_0000_0000_0000_0000_0000);
    assert_eq!(execute(&mut cpu, &[0xc4, 0xe2, 0x75, 0x8e, 0x10]).map(|e| e.vector), Some(vector::PF));
    assert_eq!((cpu.state.cr2, get(&cpu, DATA + 0xff0)), (0x600c, A));
}

#[test]
fn a_gather_that_faults_goes_on_where_it_was() {
    let mut cpu = avx();
    put(&cpu, DATA, A);
    let indices = 0xc_0000_1000_0000_0004_0000_0000u128; // 0, 4, 1000h, 12
    set(&mut cpu, 0, B, B);
    set(&mut cpu, 1, indices, B);
    set(&mut cpu, 2, 0x8000_0000_8000_0000_0000_0001_8000_0000, B);
    // vpgatherdd xmm0, [rax + xmm1], xmm2
    let code = &[0xc4, 0xe2, 0x69, 0x90, 0x04, 0x08][..];
    assert_eq!(execute(&mut cpu, code).map(|e| e.vector), Some(vector::PF));
    assert_eq!(cpu.state.cr2, DATA + 0x1000);
    assert_eq!(cpu.state.xmm[0].x(), B >> 32 << 32 | A & 0xffff_ffff);
    assert_eq!(cpu.state.xmm[2].x(), 0x8000_0000_8000_0000_0000_0000_0000_0000);
    // The page comes, and the first element's memory has changed meanwhile: it is not read again.
    cpu.state.xmm[1].set_x(0xc_0000_0008_0000_0004_0000_0000);
    cpu.mem.write_u32(DATA, 0x7777_7777);
    assert_eq!(execute(&mut cpu, code), None);
    let second = B & 0xffff_ffff_0000_0000;
    assert_eq!(ymm(&cpu, 0), (A >> 64 << 64 | second | A & 0xffff_ffff, 0));
    assert_eq!(ymm(&cpu, 2), (0, 0));
}

#[test]
fn with_intel_a_gather_makes_its_mask_ones_and_zeros_before_it_faults() {
    let mut cpu = avx();
    std::sync::Arc::make_mut(&mut cpu.model).vendor = crate::model::Vendor::Intel;
    put(&cpu, DATA, A);
    set(&mut cpu, 0, B, B);
    set(&mut cpu, 1, 0xc_0000_1000_0000_0004_0000_0000, B);
    set(&mut cpu, 2, 0x8000_0000_8000_0000_0000_0001_8000_0000, B);
    let code = &[0xc4, 0xe2, 0x69, 0x90, 0x04, 0x08][..];
    assert_eq!(execute(&mut cpu, code).map(|e| e.vector), Some(vector::PF));
    assert_eq!(ymm(&cpu, 0), (B >> 32 << 32 | A & 0xffff_ffff, 0));
    assert_eq!(ymm(&cpu, 2), (!0 << 64, 0));
}

#[test]
fn with_intel_halves_are_made_before_their_store_faults() {
    use crate::model::Vendor;
    for (vendor, flags) in [(Vendor::Amd, 0), (Vendor::Intel, 0x20)] {
        let mut cpu = avx();
        std::sync::Arc::make_mut(&mut cpu.model).vendor = vendor;
        cpu.state.gpr[gpr::RAX] = DATA + 0x1000;
        cpu.state.mxcsr = 0x1f80;
        set(&mut cpu, 0, all(0x3f80_0001), 0);
        // vcvtps2ph [rax], xmm0, 0 of what has no exact half; with PE unmasked #XM comes first, too.
        let code = &[0xc4, 0xe3, 0x79, 0x1d, 0x00, 0x00][..];
        assert_eq!(execute(&mut cpu, code).map(|e| e.vector), Some(vector::PF));
        assert_eq!(cpu.state.mxcsr & 0x3f, flags, "{vendor:?}");
        cpu.state.mxcsr = 0x0f80;
        let first = if vendor == Vendor::Intel { vector::XM } else { vector::PF };
        assert_eq!(execute(&mut cpu, code).map(|e| e.vector), Some(first), "{vendor:?}");
    }
}

#[test]
fn an_exception_in_either_lane_keeps_both_from_having_a_result() {
    let mut cpu = avx();
    let one = all(1f32.to_bits());
    set(&mut cpu, 0, A, B);
    set(&mut cpu, 1, one, one);
    // Inexact in the low lane, a division by zero in the high one.
    set(&mut cpu, 2, all(3f32.to_bits()), one & !0xffff_ffff);
    let vdivps = &[0xc5, 0xf4, 0x5e, 0xc2][..];
    cpu.state.mxcsr = 0x1f80 & !(1 << 9);
    assert_eq!(execute(&mut cpu, vdivps), plain(vector::XM));
    assert_eq!((ymm(&cpu, 0), cpu.state.mxcsr & 0x3f), ((A, B), 4));
    cpu.state.mxcsr = 0x1f80;
    assert_eq!(execute(&mut cpu, vdivps), None);
    assert_eq!(ymm(&cpu, 0), (all(0x3eaa_aaab), one & !0xffff_ffff | 0x7f80_0000));
    assert_eq!(cpu.state.mxcsr & 0x3f, 0x24);
}

#[test]
fn fused_operations_round_once() {
    let mut cpu = avx();
    // (1 + 2^-52) (1 - 2^-52) - 1 = -2^-104: zero if the product is rounded.
    set(&mut cpu, 1, (1f64.to_bits() + 1).into(), B);
    set(&mut cpu, 2, (1f64.to_bits() - 2).into(), B);
    set(&mut cpu, 0, (-1f64).to_bits().into(), B);
    // vfmadd231sd xmm0, xmm1, xmm2
    assert_eq!(execute(&mut cpu, &[0xc4, 0xe2, 0xf1, 0xb9, 0xc2]), None);
    assert_eq!(ymm(&cpu, 0), ((-2f64.powi(-104)).to_bits().into(), 0));
    assert_eq!(cpu.state.mxcsr, 0x1f80, "the sum is exact");
}
