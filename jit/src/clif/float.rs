//! Floating point by the host's own instructions: SSE's as [primitives](crate::clif::primitive), under the guest's MXCSR.
//!
//! An operation is the guest's instruction, executed where the guest executes it, so that rounding, flushing, NaNs and sticky flags are exact by
//! construction. The host's MXCSR is the guest's meanwhile: see [`mynah_cpu::host_float`]. That is tested once in a straight run of code.
use crate::clif::Translator;
use crate::clif::primitive::encode;
use crate::runtime::{Context, FLOAT};
use cranelift_codegen::ir::{InstBuilder, Value, types};
use iced_x86::{
    Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind as Kind, Register,
};
use mynah_cpu::host_float::{SSE, X87};
use mynah_cpu::{Cpu, Stop};
use std::collections::HashMap;
use std::mem::offset_of;
use std::sync::OnceLock;

/// Whether the host has what an instruction needs.
#[cfg(target_arch = "x86_64")]
pub(crate) fn on_host(code: Code) -> bool {
    code.cpuid_features().iter().all(|f| match f {
        CpuidFeature::MMX | CpuidFeature::SSE | CpuidFeature::SSE2 => true,
        CpuidFeature::INTEL8086 | CpuidFeature::INTEL386 | CpuidFeature::INTEL486 | CpuidFeature::X64 => true,
        CpuidFeature::MOVBE => is_x86_feature_detected!("movbe"),
        CpuidFeature::POPCNT => is_x86_feature_detected!("popcnt"),
        CpuidFeature::LZCNT => is_x86_feature_detected!("lzcnt"),
        CpuidFeature::BMI1 => is_x86_feature_detected!("bmi1"),
        CpuidFeature::BMI2 => is_x86_feature_detected!("bmi2"),
        CpuidFeature::ADX => is_x86_feature_detected!("adx"),
        CpuidFeature::VAES => is_x86_feature_detected!("vaes"),
        CpuidFeature::VPCLMULQDQ => is_x86_feature_detected!("vpclmulqdq"),
        CpuidFeature::SSE3 => is_x86_feature_detected!("sse3"),
        CpuidFeature::SSSE3 => is_x86_feature_detected!("ssse3"),
        CpuidFeature::SSE4_1 => is_x86_feature_detected!("sse4.1"),
        CpuidFeature::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        CpuidFeature::AES => is_x86_feature_detected!("aes"),
        CpuidFeature::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        CpuidFeature::SHA => is_x86_feature_detected!("sha"),
        CpuidFeature::AVX => is_x86_feature_detected!("avx"),
        CpuidFeature::AVX2 => is_x86_feature_detected!("avx2"),
        CpuidFeature::FMA => is_x86_feature_detected!("fma"),
        CpuidFeature::F16C => is_x86_feature_detected!("f16c"),
        _ => false,
    })
}
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn on_host(_: Code) -> bool {
    false
}

/// The instruction of each name on XMM registers that the host has: legacy, `xmm, xmm` or `xmm, xmm, imm8`, or else with a VEX prefix.
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
pub(crate) fn host_instruction(id: Mnemonic, imm: u8) -> Option<Vec<u8>> {
    use Register::{XMM0, XMM1};
    let code = *host_codes().get(&id)?;
    let (o, imm) = (code.op_code(), u32::from(imm));
    let last = o.op_count() - 1;
    let i = match (o.op_count(), o.op_kind(last) == Kind::imm8) {
        (2, _) => Instruction::with2(code, XMM0, XMM1),
        // The destination of one that narrows may be memory: its operands stand in the other order, but so do its registers.
        (3, true) => Instruction::with3(code, XMM0, XMM1, imm),
        (3, false) => Instruction::with3(code, XMM0, XMM0, XMM1),
        _ => Instruction::with4(code, XMM0, XMM0, XMM1, imm),
    };
    encode(&i.ok()?)
}

/// The bytes of `id xmm1, xmm2`, for an instruction whose third operand is XMM0.
pub(crate) fn host_instruction3(id: Mnemonic) -> Option<Vec<u8>> {
    let code = *host_codes().get(&id)?;
    encode(&Instruction::with2(code, Register::XMM1, Register::XMM2).ok()?)
}

/// The bytes of `id xmm0, xmm1, xmm2`.
fn host_fused(id: Mnemonic) -> Option<Vec<u8>> {
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

impl Translator<'_> {
    /// Has the host's registers hold the guest's MXCSR or x87 unit; leaves for the interpreter where they must not.
    fn host_float(&mut self, which: u8) {
        let t = types::I64;
        let at = offset_of!(Cpu, float_live) as i32;
        let live = self.b.ins().load(types::I8, self.access.state, self.cpu, at);
        let live = self.b.ins().band_imm_u(live, i64::from(which));
        let out = self.interpret_here();
        let enter = self.b.create_block();
        let on = self.b.create_block();
        self.b.set_cold_block(enter);
        self.b.ins().brif(live, on, &[], enter, &[]);
        self.b.switch_to_block(enter);
        self.b.seal_block(enter);
        let kind = self.b.ins().iconst(t, (FLOAT | u64::from(which)) as i64);
        let done = self.call_stub(offset_of!(Context, fill_stub), kind);
        self.b.ins().brif(done, on, &[], out, &[]);
        self.b.switch_to_block(on);
        self.b.seal_block(on);
    }

    /// Before an instruction that reads or changes MXCSR.
    fn ready_float(&mut self) {
        if !self.ready.float {
            self.host_float(SSE);
            self.ready.float = true;
        }
    }

    /// Before an instruction of the x87 unit or MMX.
    pub(crate) fn ready_x87(&mut self) {
        if !self.ready.x87 {
            self.host_float(X87);
            self.ready.x87 = true;
        }
    }

    pub(crate) fn float_vector(&mut self, id: Mnemonic, a: Value, b: Value, imm: u8) -> Result<Value, Stop> {
        if self.unable {
            return Err(Stop::Again);
        }
        let bytes = host_instruction(id, imm).ok_or(Stop::Again)?;
        self.ready_float();
        Ok(self.primitive(&bytes, &[], &[a, b], 0, 1)[0])
    }

    /// On three vectors, the first the destination's old value.
    pub(crate) fn float_fused(&mut self, id: Mnemonic, a: Value, b: Value, c: Value) -> Result<Value, Stop> {
        let bytes = host_fused(id).filter(|_| !self.unable).ok_or(Stop::Again)?;
        self.ready_float();
        Ok(self.primitive(&bytes, &[], &[a, b, c], 0, 1)[0])
    }

    /// To a general register of the current instruction's width.
    pub(crate) fn float_to_int(&mut self, id: Mnemonic, b: Value) -> Result<Value, Stop> {
        use Code::*;
        let wide = matches!(self.op().code().op_code().op_kind(0), Kind::r64_reg);
        let code = match (id, wide) {
            (Mnemonic::Cvtss2si, false) => Cvtss2si_r32_xmmm32,
            (Mnemonic::Cvtss2si, true) => Cvtss2si_r64_xmmm32,
            (Mnemonic::Cvtsd2si, false) => Cvtsd2si_r32_xmmm64,
            (Mnemonic::Cvtsd2si, true) => Cvtsd2si_r64_xmmm64,
            (Mnemonic::Cvttss2si, false) => Cvttss2si_r32_xmmm32,
            (Mnemonic::Cvttss2si, true) => Cvttss2si_r64_xmmm32,
            (Mnemonic::Cvttsd2si, false) => Cvttsd2si_r32_xmmm64,
            (Mnemonic::Cvttsd2si, true) => Cvttsd2si_r64_xmmm64,
            _ => return Err(Stop::Again),
        };
        let to = if wide { Register::RAX } else { Register::EAX };
        let bytes = Instruction::with2(code, to, Register::XMM0).ok().and_then(|i| encode(&i));
        let bytes = bytes.filter(|_| !self.unable).ok_or(Stop::Again)?;
        self.ready_float();
        Ok(self.primitive(&bytes, &[], &[b], 1, 0)[0])
    }

    /// From an integer of 32 or 64 bits.
    pub(crate) fn int_to_float(&mut self, id: Mnemonic, a: Value, b: Value) -> Result<Value, Stop> {
        use Code::*;
        let wide = self.type_of(b) == types::I64;
        let code = match (id, wide) {
            (Mnemonic::Cvtsi2ss, false) => Cvtsi2ss_xmm_rm32,
            (Mnemonic::Cvtsi2ss, true) => Cvtsi2ss_xmm_rm64,
            (Mnemonic::Cvtsi2sd, false) => Cvtsi2sd_xmm_rm32,
            (Mnemonic::Cvtsi2sd, true) => Cvtsi2sd_xmm_rm64,
            _ => return Err(Stop::Again),
        };
        let from = if wide { Register::RDI } else { Register::EDI };
        let bytes = Instruction::with2(code, Register::XMM0, from).ok().and_then(|i| encode(&i));
        let bytes = bytes.filter(|_| !self.unable).ok_or(Stop::Again)?;
        self.ready_float();
        Ok(self.primitive(&bytes, &[b], &[a], 0, 1)[0])
    }

    /// COMISS and its kin: the comparison, then LAHF.
    pub(crate) fn float_compare(&mut self, id: Mnemonic, a: Value, b: Value) -> Result<(), Stop> {
        let mut bytes = host_instruction(id, 0).filter(|_| !self.unable).ok_or(Stop::Again)?;
        bytes.push(0x9f);
        self.ready_float();
        let rax = self.primitive(&bytes, &[], &[a, b], 1, 0)[0];
        // AH.
        let flags = self.b.ins().ushr_imm_u(rax, 8);
        let flags = self.b.ins().band_imm_u(flags, 0x45);
        self.set_compared(flags);
        Ok(())
    }
}
