//! Bytes for a form, with everything around the opcode left to chance: prefixes in any order, some of them meaningless,
//! REX bits, all addressing forms, all registers. What comes out is decoded again by the caller, since chance may have
//! made another instruction of it.

use crate::rng::Rng;
use iced_x86::{Code, EncodingKind, MandatoryPrefix, OpCodeOperandKind as K, OpCodeTableKind};

/// What follows from a form's operands.
struct Shape {
    modrm: bool,
    needs_register: bool,
    needs_memory: bool,
    opcode_register: bool,
    segment_register: bool,
    vvvv: bool,
    vsib: bool,
    immediates: Vec<u32>,
    moffs: bool,
    memory: bool,
}

fn shape(code: Code) -> Shape {
    let op = code.op_code();
    let mut s = Shape {
        modrm: op.group_index() >= 0 || op.rm_group_index() >= 0,
        needs_register: op.rm_group_index() >= 0 || op.ignores_mod_bits(),
        needs_memory: false,
        opcode_register: false,
        segment_register: false,
        vvvv: false,
        vsib: false,
        immediates: Vec::new(),
        moffs: false,
        memory: false,
    };
    for k in op.op_kinds() {
        match k {
            K::mem | K::mem_mpx | K::mem_mib => {
                s.modrm = true;
                s.needs_memory = true;
            }
            K::mem_vsib32x | K::mem_vsib64x | K::mem_vsib32y | K::mem_vsib64y => {
                s.modrm = true;
                s.needs_memory = true;
                s.vsib = true;
            }
            K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem => {
                s.modrm = true;
                s.memory = true;
            }
            K::r16_rm | K::r32_rm | K::r64_rm | K::mm_rm | K::xmm_rm | K::ymm_rm => {
                s.modrm = true;
                s.needs_register = true;
            }
            K::r8_reg
            | K::r16_reg
            | K::r32_reg
            | K::r64_reg
            | K::r16_reg_mem
            | K::r32_reg_mem
            | K::r64_reg_mem => {
                s.modrm = true;
            }
            K::mm_reg | K::xmm_reg | K::ymm_reg | K::cr_reg | K::dr_reg | K::tr_reg => s.modrm = true,
            K::seg_reg => {
                s.modrm = true;
                s.segment_register = true;
            }
            K::r8_opcode | K::r16_opcode | K::r32_opcode | K::r64_opcode | K::sti_opcode => {
                s.opcode_register = true
            }
            K::r32_vvvv | K::r64_vvvv | K::xmm_vvvv | K::ymm_vvvv => s.vvvv = true,
            K::xmm_is4 | K::ymm_is4 => s.immediates.push(1),
            K::imm8 | K::imm8sex16 | K::imm8sex32 | K::imm8sex64 | K::br16_1 | K::br32_1 | K::br64_1 => {
                s.immediates.push(1)
            }
            K::imm16 | K::br16_2 | K::xbegin_2 | K::brdisp_2 => s.immediates.push(2),
            K::imm32 | K::imm32sex64 | K::br32_4 | K::br64_4 | K::xbegin_4 | K::brdisp_4 => {
                s.immediates.push(4)
            }
            K::imm64 => s.immediates.push(8),
            K::farbr2_2 => s.immediates.push(4),
            K::farbr4_2 => s.immediates.push(6),
            K::mem_offs => s.moffs = true,
            K::seg_rSI | K::es_rDI | K::seg_rDI | K::seg_rBX_al => s.memory = true,
            _ => {}
        }
    }
    s.memory |= s.needs_memory || s.moffs;
    s
}

/// Random bytes of the form `code` in a code segment of `bitness` bits.
pub fn assemble(rng: &mut Rng, code: Code, bitness: u32) -> Vec<u8> {
    let op = code.op_code();
    let s = shape(code);
    let vex = op.encoding() == EncodingKind::VEX;
    let mut prefixes: Vec<u8> = Vec::new();
    let mut w = false;
    let mandatory = op.mandatory_prefix();
    if !vex {
        match op.operand_size() {
            16 if bitness != 16 => prefixes.push(0x66),
            32 if bitness == 16 => prefixes.push(0x66),
            64 => w = !op.default_op_size64() && !op.force_op_size64() || rng.chance(10),
            _ => {}
        }
        match mandatory {
            MandatoryPrefix::P66 => prefixes.push(0x66),
            MandatoryPrefix::PF3 => prefixes.push(0xf3),
            MandatoryPrefix::PF2 => prefixes.push(0xf2),
            MandatoryPrefix::None => {
                if op.can_use_rep_prefix() && rng.chance(60) {
                    prefixes.push(0xf3);
                } else if op.can_use_repne_prefix() && rng.chance(60) || rng.chance(1) {
                    prefixes.push(0xf2);
                } else if rng.chance(1) {
                    prefixes.push(0xf3);
                }
            }
            _ => {}
        }
        w |= op.w() == 1 && op.operand_size() == 0 && mandatory != MandatoryPrefix::None;
    }
    let mut address = bitness;
    let other = if bitness == 32 { 16 } else { 32 };
    if op.address_size() != 0 && op.address_size() != bitness
        || op.address_size() == 0 && s.memory && rng.chance(9)
    {
        prefixes.push(0x67);
        address = other;
    }
    if s.memory && rng.chance(15) || rng.chance(1) {
        let any = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x64, 0x65];
        prefixes.push(rng.pick(&any));
    }
    if op.can_use_lock_prefix() && rng.chance(30) || !vex && rng.chance(1) {
        prefixes.push(0xf0);
    }
    if rng.chance(1) {
        prefixes.push(if vex { rng.pick(&[0x66, 0xf2, 0xf3, 0x48]) } else { 0x66 });
    }
    for i in (1..prefixes.len()).rev() {
        prefixes.swap(i, rng.below(i as u64 + 1) as usize);
    }
    let mut b = prefixes;
    let extended = bitness == 64 && rng.chance(45);
    let bits = if extended { rng.below(8) as u8 } else { 0 };
    let opcode = op.op_code();
    let embedded = if s.opcode_register { rng.below(8) as u32 } else { 0 };
    if vex {
        let pp = match mandatory {
            MandatoryPrefix::P66 => 1,
            MandatoryPrefix::PF3 => 2,
            MandatoryPrefix::PF2 => 3,
            _ => 0,
        };
        let map = match op.table() {
            OpCodeTableKind::T0F => 1,
            OpCodeTableKind::T0F38 => 2,
            _ => 3,
        };
        let vvvv = if s.vvvv || rng.chance(2) { rng.below(16) as u8 } else { 15 };
        let w = if op.is_wig() || op.is_wig32() && bitness != 64 { rng.chance(50) } else { op.w() == 1 };
        let keep = if bitness == 64 { (!bits & 7) << 5 } else { 0xc0 | (rng.below(2) as u8) << 5 };
        let l = op.l() as u8 & 1 ^ u8::from(op.is_lig() && rng.chance(50) || rng.chance(1));
        let last = vvvv << 3 | l << 2 | pp;
        if map == 1 && !w && keep & 0x60 == 0x60 && rng.chance(50) {
            b.extend([0xc5, keep & 0x80 | last]);
        } else {
            b.extend([0xc4, keep | map, u8::from(w) << 7 | last]);
        }
        b.push(opcode as u8);
    } else {
        if bitness == 64 && (w || extended || rng.chance(3)) {
            b.push(0x40 | u8::from(w || rng.chance(4)) << 3 | bits);
        }
        match op.table() {
            OpCodeTableKind::T0F => b.push(0x0f),
            OpCodeTableKind::T0F38 => b.extend([0x0f, 0x38]),
            OpCodeTableKind::T0F3A => b.extend([0x0f, 0x3a]),
            _ => {}
        }
        let opcode = opcode + embedded;
        if op.op_code_len() == 2 {
            b.push((opcode >> 8) as u8);
        }
        b.push(opcode as u8);
    }
    if s.modrm {
        let reg = match op.group_index() {
            n if n >= 0 => n as u8,
            _ if s.segment_register && rng.chance(90) => rng.pick(&[0u8, 0, 2, 3, 4, 5]),
            _ => rng.below(8) as u8,
        };
        let register = s.needs_register || !s.needs_memory && rng.chance(40);
        let rm = match op.rm_group_index() {
            n if n >= 0 => n as u8,
            _ if s.vsib && rng.chance(99) => 4,
            _ => rng.below(8) as u8,
        };
        if register {
            b.push(0xc0 | reg << 3 | rm);
        } else {
            memory_operand(rng, &mut b, reg, rm, address);
        }
    }
    if s.moffs {
        let mut v = [0; 8];
        rng.fill(&mut v);
        b.extend(&v[..address as usize / 8]);
    }
    for n in s.immediates {
        let v = match rng.below(4) {
            0 => rng.below(10),
            1 => rng.u64(),
            _ => crate::values::int(rng),
        };
        b.extend(&v.to_le_bytes()[..n as usize]);
    }
    b
}

fn memory_operand(rng: &mut Rng, b: &mut Vec<u8>, reg: u8, rm: u8, address: u32) {
    let mode = rng.below(3) as u8;
    b.push(mode << 6 | reg << 3 | rm);
    let mut displacement = [0, 1, 4][usize::from(mode)];
    if address == 16 {
        displacement = if mode == 0 && rm == 6 || mode == 2 { 2 } else { displacement };
    } else if rm == 4 {
        let sib = rng.u64() as u8;
        b.push(sib);
        if mode == 0 && sib & 7 == 5 {
            displacement = 4;
        }
    } else if mode == 0 && rm == 5 {
        displacement = 4;
    }
    let d = match rng.below(4) {
        0 => rng.u64(),
        1 => rng.below(64).wrapping_neg(),
        _ => rng.below(0x100),
    };
    b.extend(&d.to_le_bytes()[..displacement]);
}
