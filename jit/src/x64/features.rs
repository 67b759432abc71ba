//! What the host's CPU has.
use iced_x86::Code;
#[cfg(target_arch = "x86_64")]
use iced_x86::CpuidFeature;

/// Whether the host has what an instruction needs.
#[cfg(target_arch = "x86_64")]
pub(crate) fn on_host(code: Code) -> bool {
    code.cpuid_features().iter().all(|f| match f {
        CpuidFeature::MMX | CpuidFeature::SSE | CpuidFeature::SSE2 => true,
        CpuidFeature::INTEL8086 | CpuidFeature::INTEL386 | CpuidFeature::INTEL486 | CpuidFeature::X64 => true,
        CpuidFeature::CMPXCHG16B => is_x86_feature_detected!("cmpxchg16b"),
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

/// Whether the host has blends by a mask (SSE4.1).
pub(crate) fn has_blends() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("sse4.1");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether the host has PDEP and PEXT.
pub(super) fn has_bmi2() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("bmi2");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether the host has FISTTP.
pub(super) fn has_sse3() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("sse3");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Maker and features of the host's CPU.
pub(crate) fn identity() -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        let (a, b, c, d, e) =
            (__cpuid(0), __cpuid(1), __cpuid_count(7, 0), __cpuid_count(7, 1), __cpuid(0x8000_0001));
        let words =
            [a.ebx, a.ecx, a.edx, b.ecx, b.edx, c.ebx, c.ecx, c.edx, d.eax, d.ecx, d.edx, e.ecx, e.edx];
        // What the host's kernel does not save, the CPU does not have.
        let enabled = [is_x86_feature_detected!("avx"), is_x86_feature_detected!("avx512f")];
        words.iter().flat_map(|w| w.to_le_bytes()).chain(enabled.map(u8::from)).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}
