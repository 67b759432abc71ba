//! Whole instructions on a vCPU in 64-bit mode: operand forms, faults, MXCSR, and the x87 unit under MMX.
use crate::board::{Events, NoBoard};
use crate::cpu::Cpu;
use crate::decode::decode_op;
use crate::event::{Exception, vector};
use crate::mode::ModeKey;
use crate::model::CpuModel;
use crate::state::{Fpu, Segment, cr0, cr4, efer, fl, gpr, seg};
use iced_x86::{Code, EncodingKind, Instruction, OpKind, Register};
use mynah_mmu::{GuestRam, PhysMemory};
use std::sync::Arc;

/// Where the tests keep their operands: RAX points here. The page after it is not mapped.
pub(super) const DATA: u64 = 0x5000;

/// A vCPU in 64-bit mode: page tables at 1000h map 4 KiB pages 0-5 one to one.
pub(super) fn machine() -> Box<Cpu> {
    let mem = PhysMemory::new(GuestRam::new(0x10000).unwrap(), 0x10000);
    for (at, entry) in [(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003)] {
        mem.write_u64(at, entry);
    }
    for page in 0..6 {
        mem.write_u64(0x4000 + 8 * page, page << 12 | 3);
    }
    let model = Arc::new(CpuModel::parse("max").unwrap());
    let mut cpu = Cpu::new(0, mem, Arc::new(NoBoard), Arc::new(Events::default()), model);
    let s = &mut cpu.state;
    s.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::NE;
    s.cr3 = 0x1000;
    s.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
    s.msr.efer = efer::LME | efer::LMA;
    s.seg[seg::CS] = Segment { base: 0, limit: !0, attr: 0x9b | Segment::L, sel: 8 };
    s.gpr[gpr::RAX] = DATA;
    s.fpu = Fpu::default();
    cpu.sync_all();
    cpu
}

/// Executes one instruction: the exception it raised, if any.
pub(super) fn execute(cpu: &mut Cpu, bytes: &[u8]) -> Option<Exception> {
    let (op, _) = decode_op(&cpu.model, ModeKey(cpu.mode_key), bytes, 0).expect("a whole instruction");
    assert_eq!(usize::from(op.len), bytes.len());
    cpu.faulted = false;
    (op.run)(cpu, &op);
    std::mem::take(&mut cpu.faulted).then_some(cpu.fault)
}

pub(super) fn gp() -> Option<Exception> {
    Some(Exception { vector: vector::GP, error: Some(0) })
}
pub(super) fn plain(vector: u8) -> Option<Exception> {
    Some(Exception { vector, error: None })
}
pub(super) fn put(cpu: &Cpu, at: u64, v: u128) {
    cpu.mem.write(at, &v.to_le_bytes());
}
pub(super) fn get(cpu: &Cpu, at: u64) -> u128 {
    let mut b = [0; 16];
    cpu.mem.read(at, &mut b);
    u128::from_le_bytes(b)
}

const A: u128 = 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100;
const B: u128 = 0x1f1e_1d1c_1b1a_1918_1716_1514_1312_1110;

#[test]
fn every_legacy_vector_instruction_is_handled() {
    let mut missing = vec![];
    for code in Code::values() {
        let features: Vec<_> = code.cpuid_features().iter().map(|f| format!("{f:?}")).collect();
        let ours = |f: &String| {
            ["MMX", "SSE", "SSE2", "SSE3", "SSSE3", "SSE4_1", "SSE4_2", "AES", "PCLMULQDQ", "SHA"]
                .contains(&f.as_str())
        };
        let name = format!("{code:?}");
        let elsewhere = ["Lfence", "Mfence", "Sfence", "Prefetch", "Crc32", "Fisttp", "Popcnt", "Pause"];
        if code.encoding() != EncodingKind::Legacy
            || !features.iter().any(ours)
            || elsewhere.iter().any(|e| name.starts_with(e))
        {
            continue;
        }
        // Both operand kinds, as the code's name allows them.
        let memory_only = name.split('_').skip(1).any(|o| matches!(o, "m32" | "m64" | "m128"));
        let memory_first = name.split('_').nth(1).is_some_and(|o| o.contains('m') && o != "mm" && o != "xmm");
        for memory in [false, true] {
            if memory_only && !memory {
                continue;
            }
            let mut i = Instruction::default();
            i.set_code(code);
            let register = if name.contains("_mm") { Register::MM1 } else { Register::XMM1 };
            if i.op_count() > 0 {
                if memory && memory_first {
                    i.set_op0_kind(OpKind::Memory);
                } else {
                    i.set_op0_register(register);
                }
            }
            if i.op_count() > 1 {
                if name.ends_with("mm_imm8") && i.op_count() == 2 {
                    i.set_op1_kind(OpKind::Immediate8);
                } else if memory && !memory_first {
                    i.set_op1_kind(OpKind::Memory);
                } else {
                    i.set_op1_register(register);
                }
            }
            if super::super::select::<Cpu>(&i).is_none() && super::super::lookup(&i).is_none() {
                missing.push(format!("{name} (memory: {memory})"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn packed_memory_operands_must_be_aligned_and_moves_for_unaligned_ones_need_not_be() {
    let mut cpu = machine();
    put(&cpu, DATA + 8, B);
    cpu.state.xmm[1].set_x(A);
    // paddb xmm1, [rax + 8]; movaps xmm1, [rax + 8]; movaps [rax + 8], xmm1; movntdq [rax + 8], xmm1;
    // cvtdq2ps xmm1, [rax + 8]
    for bytes in [
        &[0x66, 0x0f, 0xfc, 0x48, 8][..],
        &[0x0f, 0x28, 0x48, 8],
        &[0x0f, 0x29, 0x48, 8],
        &[0x66, 0x0f, 0xe7, 0x48, 8],
        &[0x0f, 0x5b, 0x48, 8],
    ] {
        assert_eq!(execute(&mut cpu, bytes), gp(), "{bytes:02x?}");
        assert_eq!((cpu.state.xmm[1].x(), get(&cpu, DATA + 8)), (A, B));
    }
    // movups xmm2, [rax + 8]; lddqu xmm3, [rax + 8]; movdqu [rax + 24], xmm2
    assert_eq!(execute(&mut cpu, &[0x0f, 0x10, 0x50, 8]), None);
    assert_eq!(execute(&mut cpu, &[0xf2, 0x0f, 0xf0, 0x58, 8]), None);
    assert_eq!(execute(&mut cpu, &[0xf3, 0x0f, 0x7f, 0x50, 24]), None);
    assert_eq!((cpu.state.xmm[2].x(), cpu.state.xmm[3].x(), get(&cpu, DATA + 24)), (B, B, B));
}

#[test]
fn writes_keep_the_bits_above_127() {
    let mut cpu = machine();
    cpu.state.xmm[9].0 = [1, 2, 3, 4, 5, 6, 7, 8];
    cpu.state.xmm[2].set_x(B);
    // pxor xmm9, xmm2
    assert_eq!(execute(&mut cpu, &[0x66, 0x44, 0x0f, 0xef, 0xca]), None);
    assert_eq!(cpu.state.xmm[9].0, [1 ^ B as u64, 2 ^ (B >> 64) as u64, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn scalar_loads_clear_the_rest_and_scalar_register_moves_keep_it() {
    let mut cpu = machine();
    put(&cpu, DATA + 1, B);
    cpu.state.xmm[1].set_x(A);
    cpu.state.xmm[2].set_x(B);
    // movss xmm1, xmm2
    assert_eq!(execute(&mut cpu, &[0xf3, 0x0f, 0x10, 0xca]), None);
    assert_eq!(cpu.state.xmm[1].x(), A & !0xffff_ffff | B & 0xffff_ffff);
    // movss xmm1, [rax + 1]
    assert_eq!(execute(&mut cpu, &[0xf3, 0x0f, 0x10, 0x48, 1]), None);
    assert_eq!(cpu.state.xmm[1].x(), B & 0xffff_ffff);
    // movhps xmm1, [rax + 1]; movhpd [rax + 0x20], xmm1; movd ecx, xmm1; pextrw edx, xmm1, 12 (modulo 8)
    assert_eq!(execute(&mut cpu, &[0x0f, 0x16, 0x48, 1]), None);
    assert_eq!(cpu.state.xmm[1].x(), B & 0xffff_ffff | B << 64);
    assert_eq!(execute(&mut cpu, &[0x66, 0x0f, 0x17, 0x48, 0x20]), None);
    assert_eq!(get(&cpu, DATA + 0x20), B & u128::from(u64::MAX));
    cpu.state.gpr[gpr::RCX] = !0;
    assert_eq!(execute(&mut cpu, &[0x66, 0x0f, 0x7e, 0xc9]), None);
    assert_eq!(cpu.state.gpr[gpr::RCX], (B as u32).into());
    assert_eq!(execute(&mut cpu, &[0x66, 0x0f, 0xc5, 0xd1, 12]), None);
    assert_eq!(cpu.state.gpr[2], (B as u16).into());
    // pinsrb xmm1, esp, 15: register 4 is SPL here, not AH
    cpu.state.gpr[gpr::RSP] = 0x1234;
    assert_eq!(execute(&mut cpu, &[0x66, 0x0f, 0x3a, 0x20, 0xcc, 15]), None);
    assert_eq!(cpu.state.xmm[1].x() >> 120, 0x34);
    // insertps xmm1, [rax + 1], 0xd2: from memory the source element is the only one; lane 1 is replaced,
    // then lane 1 zeroed
    assert_eq!(execute(&mut cpu, &[0x66, 0x0f, 0x3a, 0x21, 0x48, 1, 0xd0]), None);
    assert_eq!(cpu.state.xmm[1].x() >> 32 & 0xffff_ffff, B & 0xffff_ffff);
}

#[test]
fn a_page_fault_leaves_registers_and_the_x87_unit_alone() {
    let mut cpu = machine();
    cpu.state.xmm[1].set_x(A);
    cpu.state.fpu.top = 3;
    cpu.state.gpr[gpr::RAX] = 0x6000;
    // paddb xmm1, [rax]; paddb mm1, [rax]; movq [rax], mm1
    for bytes in [&[0x66, 0x0f, 0xfc, 0x08][..], &[0x0f, 0xfc, 0x08], &[0x0f, 0x7f, 0x08]] {
        assert_eq!(execute(&mut cpu, bytes).map(|e| e.vector), Some(vector::PF));
        assert_eq!((cpu.state.cr2, cpu.state.xmm[1].x()), (0x6000, A));
        assert_eq!((cpu.state.fpu.top, cpu.state.fpu.empty), (3, 0xff));
    }
}

#[test]
fn control_bits_turn_vector_instructions_off() {
    let sse = &[0x66, 0x0f, 0xfc, 0xca][..]; // paddb xmm1, xmm2
    let mmx = &[0x0f, 0xfc, 0xca][..]; // paddb mm1, mm2
    let movnti = &[0x0f, 0xc3, 0x08][..]; // movnti [rax], ecx
    let ldmxcsr = &[0x0f, 0xae, 0x10][..]; // ldmxcsr [rax]
    let table: &[(u64, u64, u8, u8)] = &[
        (cr0::EM, cr4::OSFXSR, vector::UD, vector::UD),
        (cr0::TS, cr4::OSFXSR, vector::NM, vector::NM),
        (cr0::EM | cr0::TS, cr4::OSFXSR, vector::UD, vector::UD),
        (0, 0, vector::UD, 0),
        (cr0::TS, 0, vector::UD, vector::NM),
        (0, cr4::OSFXSR, 0, 0),
    ];
    for &(c0, c4, for_sse, for_mmx) in table {
        let mut cpu = machine();
        cpu.state.cr0 |= c0;
        cpu.state.cr4 = cpu.state.cr4 & !cr4::OSFXSR | c4;
        put(&cpu, DATA, 0x1f80);
        cpu.sync_mode();
        let expected = |v: u8| if v == 0 { None } else { plain(v) };
        assert_eq!(execute(&mut cpu, sse), expected(for_sse), "{c0:x} {c4:x}");
        assert_eq!(execute(&mut cpu, ldmxcsr), expected(for_sse), "{c0:x} {c4:x}");
        assert_eq!(execute(&mut cpu, mmx), expected(for_mmx), "{c0:x} {c4:x}");
        assert_eq!(execute(&mut cpu, movnti), None);
    }
}

#[test]
fn mmx_instructions_take_over_the_x87_registers_until_emms() {
    let mut cpu = machine();
    cpu.state.fpu.top = 5;
    cpu.state.gpr[gpr::RCX] = 0x8000_0000_0000_0001;
    // movq mm3, rcx
    assert_eq!(execute(&mut cpu, &[0x48, 0x0f, 0x6e, 0xd9]), None);
    let f = &cpu.state.fpu;
    assert_eq!((f.top, f.empty, f.r[3].mant, f.r[3].exp), (0, 0, 0x8000_0000_0000_0001, 0xffff));
    assert_eq!(f.r[2].exp, 0);
    // movq2dq xmm1, mm3; movd edx, mm3; pmovmskb ebx, mm3
    cpu.state.xmm[1].set_x(A);
    assert_eq!(execute(&mut cpu, &[0xf3, 0x0f, 0xd6, 0xcb]), None);
    assert_eq!(cpu.state.xmm[1].x(), 0x8000_0000_0000_0001);
    assert_eq!(execute(&mut cpu, &[0x0f, 0x7e, 0xda]), None);
    assert_eq!(execute(&mut cpu, &[0x0f, 0xd7, 0xdb]), None);
    assert_eq!((cpu.state.gpr[2], cpu.state.gpr[3]), (1, 0x80));
    // emms
    assert_eq!(execute(&mut cpu, &[0x0f, 0x77]), None);
    assert_eq!((cpu.state.fpu.empty, cpu.state.fpu.r[3].mant), (0xff, 0x8000_0000_0000_0001));
    // A pending x87 exception comes first.
    cpu.state.fpu.cw &= !1;
    cpu.state.fpu.sw |= 0x8081;
    assert_eq!(execute(&mut cpu, &[0x48, 0x0f, 0x6e, 0xd9]), plain(vector::MF));
    assert_eq!(cpu.state.fpu.empty, 0xff);
    // With memory neither cvtpi2pd xmm1, [rax] nor cvtpi2ps xmm1, [rax] looks at the x87 unit.
    put(&cpu, DATA, 7);
    assert_eq!(execute(&mut cpu, &[0x66, 0x0f, 0x2a, 0x08]), None);
    assert_eq!(cpu.state.xmm[1].x(), 7f64.to_bits().into());
    assert_eq!(execute(&mut cpu, &[0x0f, 0x2a, 0x08]), None);
    assert_eq!(cpu.state.fpu.empty, 0xff);
}

#[test]
fn masked_stores_write_only_the_chosen_bytes_and_check_the_whole_operand() {
    let mut cpu = machine();
    cpu.state.gpr[gpr::RDI] = DATA + 0xff0;
    put(&cpu, DATA + 0xff0, 0);
    cpu.state.xmm[1].set_x(A);
    cpu.state.xmm[2].set_x(0x80_0000_0000_8000);
    // maskmovdqu xmm1, xmm2
    assert_eq!(execute(&mut cpu, &[0x66, 0x0f, 0xf7, 0xca]), None);
    assert_eq!(cpu.mem.read_u64(DATA + 0xff0), 0x06_0000_0000_0100);
    // Eight bytes of the operand are on a page that is not there, chosen or not.
    cpu.state.gpr[gpr::RDI] = DATA + 0xff8;
    put(&cpu, DATA + 0xff8, 0);
    assert_eq!(execute(&mut cpu, &[0x66, 0x0f, 0xf7, 0xca]).map(|e| e.vector), Some(vector::PF));
    assert_eq!(cpu.mem.read_u64(DATA + 0xff8), 0);
}

#[test]
fn mxcsr_rejects_reserved_bits_and_collects_flags() {
    let mut cpu = machine();
    put(&cpu, DATA, 0x1_1f80);
    assert_eq!(execute(&mut cpu, &[0x0f, 0xae, 0x10]), gp());
    assert_eq!(cpu.state.mxcsr, 0x1f80);
    let third = u128::from(3f32.to_bits());
    cpu.state.xmm[1].set_x(1f32.to_bits().into());
    cpu.state.xmm[2].set_x(third);
    // divss xmm1, xmm2; divss xmm2, xmm3 (by zero); stmxcsr [rax]
    assert_eq!(execute(&mut cpu, &[0xf3, 0x0f, 0x5e, 0xca]), None);
    assert_eq!((cpu.state.xmm[1].x(), cpu.state.mxcsr), (0x3eaa_aaab, 0x1fa0));
    assert_eq!(execute(&mut cpu, &[0xf3, 0x0f, 0x5e, 0xd3]), None);
    assert_eq!(execute(&mut cpu, &[0x0f, 0xae, 0x18]), None);
    assert_eq!(cpu.mem.read_u32(DATA), 0x1fa4);
    // The rounding mode is obeyed: 1/3 upwards and downwards.
    for (rc, want) in [(1, 0x3eaa_aaaa), (2, 0x3eaa_aaab), (3, 0x3eaa_aaaa)] {
        put(&cpu, DATA, 0x1f80 | rc << 13);
        assert_eq!(execute(&mut cpu, &[0x0f, 0xae, 0x10]), None);
        cpu.state.xmm[1].set_x(1f32.to_bits().into());
        cpu.state.xmm[2].set_x(third);
        assert_eq!(execute(&mut cpu, &[0xf3, 0x0f, 0x5e, 0xca]), None);
        assert_eq!((cpu.state.xmm[1].x(), cpu.state.mxcsr), (want, 0x1fa0 | (rc as u32) << 13));
    }
}

#[test]
fn an_unmasked_exception_is_raised_without_a_result() {
    let mut cpu = machine();
    // Division by zero in lane 0, an inexact quotient in lane 1.
    let (a, b) = (u128::from(1f32.to_bits()) * 0x1_0000_0001, u128::from(3f32.to_bits()) << 32);
    let divps = &[0x0f, 0x5e, 0xca][..];
    cpu.state.xmm[1].set_x(a);
    cpu.state.xmm[2].set_x(b);
    cpu.state.mxcsr = 0x1f80 & !(1 << 9);
    assert_eq!(execute(&mut cpu, divps), plain(vector::XM));
    // What is found before computing keeps the rest from being found (0/0 in lanes 2 and 3 is invalid, though
    // masked).
    assert_eq!((cpu.state.xmm[1].x(), cpu.state.mxcsr & 0x3f), (a, 0x05));
    // Precision alone unmasked: all flags are set.
    cpu.state.mxcsr = 0x1f80 & !(1 << 12);
    assert_eq!(execute(&mut cpu, divps), plain(vector::XM));
    assert_eq!((cpu.state.xmm[1].x(), cpu.state.mxcsr & 0x3f), (a, 0x25));
    cpu.state.cr4 &= !cr4::OSXMMEXCPT;
    assert_eq!(execute(&mut cpu, divps), plain(vector::UD));
}

#[test]
fn comparisons_set_all_arithmetic_flags() {
    let mut cpu = machine();
    let cases =
        [(1f64, 2f64, fl::CF), (2.0, 1.0, 0), (1.0, 1.0, fl::ZF), (1.0, f64::NAN, fl::ZF | fl::PF | fl::CF)];
    for (a, b, flags) in cases {
        cpu.state.set_arith_flags(fl::ARITH);
        cpu.state.xmm[1].set_x(a.to_bits().into());
        cpu.state.xmm[2].set_x(b.to_bits().into());
        // ucomisd xmm1, xmm2
        assert_eq!(execute(&mut cpu, &[0x66, 0x0f, 0x2e, 0xca]), None);
        assert_eq!(cpu.state.arith_flags(), flags, "{a} {b}");
        assert_eq!(cpu.state.mxcsr, 0x1f80);
    }
    // comisd: a quiet NaN is invalid.
    assert_eq!(execute(&mut cpu, &[0x66, 0x0f, 0x2f, 0xca]), None);
    assert_eq!(cpu.state.mxcsr, 0x1f81);
    // ptest xmm1, xmm2 with nothing in common, xmm2 = 0: ZF and CF.
    cpu.state.xmm[2].set_x(0);
    assert_eq!(execute(&mut cpu, &[0x66, 0x0f, 0x38, 0x17, 0xca]), None);
    assert_eq!(cpu.state.arith_flags(), fl::ZF | fl::CF);
}

#[test]
fn conversions_to_registers_clear_the_upper_half_and_take_the_indefinite_value() {
    let mut cpu = machine();
    cpu.state.gpr[gpr::RCX] = !0;
    cpu.state.xmm[1].set_x((-2.5f64).to_bits().into());
    // cvttsd2si ecx, xmm1; cvtsd2si rcx, xmm1
    assert_eq!(execute(&mut cpu, &[0xf2, 0x0f, 0x2c, 0xc9]), None);
    assert_eq!(cpu.state.gpr[gpr::RCX], 0xffff_fffe);
    assert_eq!(execute(&mut cpu, &[0xf2, 0x48, 0x0f, 0x2d, 0xc9]), None);
    assert_eq!(cpu.state.gpr[gpr::RCX], -2i64 as u64);
    cpu.state.xmm[1].set_x(1e10f64.to_bits().into());
    assert_eq!(execute(&mut cpu, &[0xf2, 0x0f, 0x2d, 0xc9]), None);
    assert_eq!((cpu.state.gpr[gpr::RCX], cpu.state.mxcsr), (0x8000_0000, 0x1fa1));
    // cvtsi2sd xmm1, rcx keeps the upper half
    cpu.state.xmm[1].set_x(A);
    assert_eq!(execute(&mut cpu, &[0xf2, 0x48, 0x0f, 0x2a, 0xc9]), None);
    assert_eq!(cpu.state.xmm[1].x(), A >> 64 << 64 | u128::from(2147483648f64.to_bits()));
}

#[test]
fn string_comparison_finds_the_terminator() {
    let mut cpu = machine();
    // pcmpistri xmm1, [rax + 1], 0x08 (equal each, bytes): unaligned memory is allowed
    cpu.state.xmm[1].set_x(0x44434241);
    put(&cpu, DATA + 1, 0x00584241);
    assert_eq!(execute(&mut cpu, &[0x66, 0x0f, 0x3a, 0x63, 0x48, 1, 0x18]), None);
    assert_eq!(cpu.state.gpr[gpr::RCX], 2);
    assert_eq!(cpu.state.arith_flags(), fl::CF | fl::ZF | fl::SF);
}
