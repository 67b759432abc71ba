//! The bytes of primitives: see [`crate::clif::primitive`] for what they are to Cranelift.
//!
//! Operands and results are as in the System V convention: integers in RDI, RSI, RDX, RCX, R8, R9, vectors in XMM0 to
//! XMM7; results in RAX, RDX and XMM0, XMM1. A primitive changes nothing else but the host's flags.
use super::features::{has_bmi2, on_host};
use super::x87::bytes_of;
use cranelift_codegen::ir::{InstBuilder, Value};
use cranelift_codegen::isa::CallConv;
use cranelift_frontend::FunctionBuilder;
use iced_x86::{
    Code, Encoder, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind as Kind, OpKind, Register,
};
use mynah_cpu::op::Op;
use std::collections::HashMap;
use std::sync::OnceLock;

/// Where operands and results are.
pub(crate) const CONVENTION: CallConv = CallConv::SystemV;

/// Whether the host has such instructions at all.
pub(crate) const HERE: bool = cfg!(target_arch = "x86_64");

/// Length of the call that a primitive replaces: opcode E8 and a displacement.
const CALL: usize = 5;
/// LAHF.
const LAHF: u8 = 0x9f;

/// Puts primitives into compiled code in place of `calls`: offsets of their displacements, and which is called. `None`
/// if one is no such call.
pub(crate) fn place(
    primitives: &[Box<[u8]>],
    calls: &[(usize, usize)],
    mut code: Vec<u8>,
) -> Option<Vec<u8>> {
    let mut behind: HashMap<usize, usize> = HashMap::new();
    for &(displacement, number) in calls {
        let bytes = primitives.get(number)?;
        let end = displacement + 4;
        let at = end.checked_sub(CALL)?;
        if *code.get(at)? != 0xe8 {
            return None;
        }
        let place = code.get_mut(at..end)?;
        if let Some(rest) = CALL.checked_sub(bytes.len()) {
            place[..bytes.len()].copy_from_slice(bytes);
            place[bytes.len()..].copy_from_slice(NOPS[rest]);
            continue;
        }
        let to = *behind.entry(number).or_insert_with(|| {
            let to = code.len();
            code.extend_from_slice(bytes);
            code.push(0xc3);
            to
        });
        let distance = i32::try_from(to as i64 - end as i64).ok()?;
        code[at + 1..end].copy_from_slice(&distance.to_le_bytes());
    }
    Some(code)
}

/// Instructions of n bytes that do nothing.
const NOPS: [&[u8]; CALL + 1] = [
    &[],
    &[0x90],
    &[0x66, 0x90],
    &[0x0f, 0x1f, 0x00],
    &[0x0f, 0x1f, 0x40, 0x00],
    &[0x0f, 0x1f, 0x44, 0x00, 0x00],
];

/// The bytes of an instruction of 64-bit code; `None` if it cannot be encoded.
fn encode(i: &Instruction) -> Option<Vec<u8>> {
    let mut e = Encoder::new(64);
    e.encode(i, 0).ok()?;
    Some(e.take_buffer())
}

/// The instruction of each name on XMM registers that the host has: legacy, `xmm, xmm` or `xmm, xmm, imm8`, or else
/// with a VEX prefix.
fn host_codes() -> &'static HashMap<Mnemonic, Code> {
    static CODES: OnceLock<HashMap<Mnemonic, Code>> = OnceLock::new();
    CODES.get_or_init(|| {
        let mut codes = HashMap::new();
        for encoding in [EncodingKind::Legacy, EncodingKind::VEX] {
            for code in Code::values() {
                let o = code.op_code();
                let vector = |n| {
                    matches!(o.op_kind(n), Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_or_mem | Kind::xmm_vvvv)
                };
                let byte = |n| o.op_kind(n) == Kind::imm8;
                let fits = o.encoding() == encoding
                    && match o.op_count() {
                        2 => vector(0) && vector(1),
                        3 => {
                            vector(0) && vector(1) && (byte(2) || encoding == EncodingKind::VEX && vector(2))
                        }
                        4 => vector(0) && vector(1) && vector(2) && byte(3),
                        _ => false,
                    };
                if fits && on_host(code) {
                    codes.entry(code.mnemonic()).or_insert(code);
                }
            }
        }
        codes
    })
}

/// The bytes of an instruction that makes XMM0 of itself and XMM1 (and an immediate).
pub(crate) fn binary(id: Mnemonic, imm: u8) -> Option<Vec<u8>> {
    use Register::{XMM0, XMM1};
    let code = *host_codes().get(&id)?;
    let (o, imm) = (code.op_code(), u32::from(imm));
    let last = o.op_count() - 1;
    let i = match (o.op_count(), o.op_kind(last) == Kind::imm8) {
        (2, _) => Instruction::with2(code, XMM0, XMM1),
        // The destination of one that narrows may be memory: its operands stand in the other order, but so do its
        // registers.
        (3, true) => Instruction::with3(code, XMM0, XMM1, imm),
        (3, false) => Instruction::with3(code, XMM0, XMM0, XMM1),
        _ => Instruction::with4(code, XMM0, XMM0, XMM1, imm),
    };
    encode(&i.ok()?)
}

/// The bytes of `id xmm1, xmm2`, for an instruction whose third operand is XMM0.
pub(crate) fn with_xmm0(id: Mnemonic) -> Option<Vec<u8>> {
    let code = *host_codes().get(&id)?;
    encode(&Instruction::with2(code, Register::XMM1, Register::XMM2).ok()?)
}

/// The bytes of `id xmm0, xmm1, xmm2`.
pub(crate) fn fused(id: Mnemonic) -> Option<Vec<u8>> {
    let code = *host_codes().get(&id)?;
    encode(&Instruction::with3(code, Register::XMM0, Register::XMM1, Register::XMM2).ok()?)
}

/// The bytes of code that makes XMM0 and XMM1, as lanes of a 256-bit vector, of itself and of XMM2 and XMM3.
pub(crate) fn across_lanes(id: Mnemonic) -> Option<Vec<u8>> {
    use Register::{XMM1, XMM3, YMM0, YMM2};
    let code = Code::VEX_Vpermd_ymm_ymm_ymmm256;
    if id != Mnemonic::Vpermd || !on_host(code) {
        return None;
    }
    let (join, part) = (Code::VEX_Vinserti128_ymm_ymm_xmmm128_imm8, Code::VEX_Vextracti128_xmmm128_ymm_imm8);
    let mut bytes = Vec::new();
    for i in [
        Instruction::with4(join, YMM0, YMM0, XMM1, 1).ok()?,
        Instruction::with4(join, YMM2, YMM2, XMM3, 1).ok()?,
        Instruction::with3(code, YMM0, YMM0, YMM2).ok()?,
        Instruction::with3(part, XMM1, YMM0, 1).ok()?,
        // Legacy SSE instructions follow; nothing is kept in upper halves.
        Instruction::with(Code::VEX_Vzeroupper),
    ] {
        bytes.extend(encode(&i)?);
    }
    Some(bytes)
}

/// The bytes of an instruction that makes a general register, of 64 bits if it is `wide`, of XMM0.
pub(crate) fn float_to_int(id: Mnemonic, wide: bool) -> Option<Vec<u8>> {
    use Code::*;
    let code = match (id, wide) {
        _ if !HERE => return None,
        (Mnemonic::Cvtss2si, false) => Cvtss2si_r32_xmmm32,
        (Mnemonic::Cvtss2si, true) => Cvtss2si_r64_xmmm32,
        (Mnemonic::Cvtsd2si, false) => Cvtsd2si_r32_xmmm64,
        (Mnemonic::Cvtsd2si, true) => Cvtsd2si_r64_xmmm64,
        (Mnemonic::Cvttss2si, false) => Cvttss2si_r32_xmmm32,
        (Mnemonic::Cvttss2si, true) => Cvttss2si_r64_xmmm32,
        (Mnemonic::Cvttsd2si, false) => Cvttsd2si_r32_xmmm64,
        (Mnemonic::Cvttsd2si, true) => Cvttsd2si_r64_xmmm64,
        _ => return None,
    };
    let to = if wide { Register::RAX } else { Register::EAX };
    encode(&Instruction::with2(code, to, Register::XMM0).ok()?)
}

/// The bytes of an instruction that makes XMM0 of itself and of an integer, of 64 bits if it is `wide`.
pub(crate) fn int_to_float(id: Mnemonic, wide: bool) -> Option<Vec<u8>> {
    use Code::*;
    let code = match (id, wide) {
        _ if !HERE => return None,
        (Mnemonic::Cvtsi2ss, false) => Cvtsi2ss_xmm_rm32,
        (Mnemonic::Cvtsi2ss, true) => Cvtsi2ss_xmm_rm64,
        (Mnemonic::Cvtsi2sd, false) => Cvtsi2sd_xmm_rm32,
        (Mnemonic::Cvtsi2sd, true) => Cvtsi2sd_xmm_rm64,
        _ => return None,
    };
    let from = if wide { Register::RDI } else { Register::EDI };
    encode(&Instruction::with2(code, Register::XMM0, from).ok()?)
}

/// The bytes of a comparison of XMM0 with XMM1, which yields an integer for [`compared`].
pub(crate) fn compare(id: Mnemonic) -> Option<Vec<u8>> {
    let mut bytes = binary(id, 0)?;
    bytes.push(LAHF);
    Some(bytes)
}

/// CF, PF and ZF at their places in RFLAGS, of what a comparison has yielded: they are in AH.
pub(crate) fn compared(b: &mut FunctionBuilder, rax: Value) -> Value {
    let flags = b.ins().ushr_imm_u(rax, 8);
    b.ins().band_imm_u(flags, 0x45)
}

/// The bytes of DIV or IDIV (64 bits or 32), if the host has them, of what RDI, RSI and RDX are: divisor, lower and
/// upper half.
pub(crate) fn divide(wide: bool, signed: bool) -> Option<&'static [u8]> {
    // RAX = RSI; RDX:RAX / RDI.
    let bytes: &[u8] = match (wide, signed) {
        (true, false) => &[0x56, 0x58, 0x48, 0xf7, 0xf7],
        (true, true) => &[0x56, 0x58, 0x48, 0xf7, 0xff],
        (false, false) => &[0x89, 0xf0, 0xf7, 0xf7],
        (false, true) => &[0x89, 0xf0, 0xf7, 0xff],
    };
    HERE.then_some(bytes)
}

/// The bytes of PDEP or PEXT, if the host has them: RAX of RDI by the mask RSI.
pub(crate) fn bits_by_mask(id: Mnemonic) -> Option<[u8; 5]> {
    let prefix = if id == Mnemonic::Pdep { 0xc3 } else { 0xc2 };
    has_bmi2().then_some([0xc4, 0xe2, prefix, 0xf5, 0xc6])
}

/// EMMS.
pub(crate) const EMMS: &[u8] = &[0x0f, 0x77];
/// FNSTSW AX.
pub(crate) const X87_STATUS: &[u8] = &[0xdf, 0xe0];

/// An x87 instruction on registers.
pub(crate) fn x87(op: &Op) -> [u8; 2] {
    let (first, second) = bytes_of(op);
    [first, second]
}

/// An x87 instruction on memory at RDI.
pub(crate) fn x87_on_memory(op: &Op) -> [u8; 2] {
    let (first, second) = bytes_of(op);
    // mod 0, r/m RDI.
    [first, second & 0x38 | 7]
}

/// FCOMI and its kin, which yield an integer for [`compared`].
pub(crate) fn x87_compare(op: &Op) -> [u8; 3] {
    let (first, second) = bytes_of(op);
    [first, second, LAHF]
}

/// FCMOVcc, if EDI is not 0.
pub(crate) fn x87_move_if(op: &Op) -> [u8; 4] {
    // TEST EDI, EDI; FCMOVNE ST(0), ST(i).
    [0x85, 0xff, 0xdb, 0xc8 | bytes_of(op).1 & 7]
}

/// An operand of an MMX instruction.
#[derive(Clone, Copy)]
pub(crate) enum MmxOperand {
    Immediate(u8),
    /// At RDI.
    Memory,
    Mm(u8),
    /// In RAX.
    Result {
        wide: bool,
    },
    /// In RDI.
    Source {
        wide: bool,
    },
}

/// The bytes of an MMX instruction.
pub(crate) fn mmx(code: Code, operands: &[MmxOperand]) -> Option<Vec<u8>> {
    let mut i = Instruction::default();
    i.set_code(code);
    for (n, &operand) in (0..).zip(operands) {
        let register = match operand {
            MmxOperand::Immediate(v) => {
                i.set_op_kind(n, OpKind::Immediate8);
                i.set_immediate8(v);
                continue;
            }
            MmxOperand::Memory => {
                i.set_op_kind(n, OpKind::Memory);
                i.set_memory_base(Register::RDI);
                continue;
            }
            MmxOperand::Mm(number) => Register::MM0 + u32::from(number),
            MmxOperand::Result { wide: true } => Register::RAX,
            MmxOperand::Result { wide: false } => Register::EAX,
            MmxOperand::Source { wide: true } => Register::RDI,
            MmxOperand::Source { wide: false } => Register::EDI,
        };
        i.set_op_kind(n, OpKind::Register);
        i.set_op_register(n, register);
    }
    encode(&i)
}
