//! Which instructions are tried: every legacy and VEX form that the CPU model has, but for those whose outcome is not
//! the CPU's alone.

use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpCodeInfo};
use mynah_cpu::CpuModel;

/// What a program on Linux cannot try, or what gives another result each time.
fn excluded(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        m,
        // Counters, random numbers, the machine's own properties.
        Rdtsc | Rdtscp | Rdpmc | Rdrand | Rdseed | Cpuid | Xgetbv | Rdpid | Rdpru
        // The kernel answers these itself.
        | Syscall | Sysenter | Int1 | Sgdt | Sidt | Sldt | Str | Smsw
        // The hypervisor or the firmware does.
        | Monitor | Mwait | Monitorx | Mwaitx | Vmcall | Vmmcall | Getsec | Rsm | Clzero
    )
}

/// Whether a form is tried on `model`.
pub fn claimed(model: &CpuModel, code: Code) -> bool {
    let op = code.op_code();
    if !op.is_instruction() || excluded(code.mnemonic()) {
        return false;
    }
    let encoding = matches!(op.encoding(), EncodingKind::Legacy | EncodingKind::VEX);
    let mut i = Instruction::default();
    i.set_code(code);
    encoding && model.allows(&i)
}

/// Whether it is a fused multiplication and addition.
pub fn is_fused(m: Mnemonic) -> bool {
    (Mnemonic::Vfmadd132pd..=Mnemonic::Vfnmsub231ss).contains(&m)
}

/// The group that a form is counted in.
pub fn group(code: Code) -> &'static str {
    use CpuidFeature as C;
    let op = code.op_code();
    let f = code.cpuid_features();
    let has = |x: C| f.contains(&x);
    if op.must_be_cpl0() || op.is_privileged() {
        "privileged"
    } else if has(C::FMA) {
        "fma"
    } else if has(C::F16C) {
        "f16c"
    } else if op.encoding() == EncodingKind::VEX
        && (has(C::AES) || has(C::VAES) || has(C::PCLMULQDQ) || has(C::VPCLMULQDQ))
    {
        "vaes"
    } else if has(C::AVX2) {
        "avx2"
    } else if has(C::AVX) {
        "avx"
    } else if has(C::FPU) || has(C::FPU287) || has(C::FPU387) {
        "x87"
    } else if has(C::MMX) || op.op_kinds().iter().any(|k| format!("{k:?}").starts_with("mm_")) {
        "mmx"
    } else if has(C::SSE) {
        "sse"
    } else if has(C::SSE2) {
        "sse2"
    } else if has(C::SSE3) || has(C::SSSE3) {
        "sse3"
    } else if has(C::SSE4_1) || has(C::SSE4_2) {
        "sse4"
    } else if has(C::AES) || has(C::PCLMULQDQ) || has(C::SHA) {
        "crypto"
    } else if has(C::BMI1) || has(C::BMI2) || has(C::ADX) || has(C::MOVBE) || has(C::LZCNT) || has(C::POPCNT)
    {
        "bmi"
    } else if has(C::FXSR) || has(C::XSAVE) || has(C::XSAVEC) || has(C::XSAVEOPT) {
        "save"
    } else {
        match code.mnemonic() {
            _ if op.is_string() => "string",
            _ if code.flow_control() != iced_x86::FlowControl::Next => "flow",
            _ if op.is_stack_instruction() => "stack",
            _ => "integer",
        }
    }
}

trait StringForm {
    fn is_string(&self) -> bool;
}
impl StringForm for OpCodeInfo {
    fn is_string(&self) -> bool {
        use iced_x86::OpCodeOperandKind as K;
        self.op_kinds().iter().any(|k| matches!(k, K::seg_rSI | K::es_rDI | K::seg_rDI))
    }
}

/// All forms tried in a mode.
pub fn forms(model: &CpuModel, bitness: u32) -> Vec<Code> {
    Code::values().filter(|&c| c.op_code().is_available_in_mode(bitness) && claimed(model, c)).collect()
}
