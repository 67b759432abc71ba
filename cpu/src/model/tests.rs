use super::leaves::Dynamic;
use super::*;

fn model(s: &str) -> CpuModel {
    CpuModel::parse(s).unwrap_or_else(|e| panic!("{s}: {e}"))
}
fn enabled() -> Dynamic {
    Dynamic { apic_enabled: true, long64: true, ..Dynamic::default() }
}

#[test]
fn qemu64_answers_as_qemu_does_but_for_svm() {
    let m = model("qemu64");
    let d = enabled();
    assert_eq!(m.cpuid(&d, 0, 0), [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]);
    assert_eq!(m.cpuid(&d, 1, 0), [0x0006_0fb1, 0x0000_0800, 0x8000_2001, 0x078b_fbfd]);
    assert_eq!(m.cpuid(&d, 7, 0), [0; 4]);
    assert_eq!(m.cpuid(&d, 0xb, 0), [0, 1, 0x100, 0]);
    assert_eq!(m.cpuid(&d, 0xb, 1), [0, 1, 0x201, 0]);
    assert_eq!(m.cpuid(&d, 0x8000_0001, 0), [0x0006_0fb1, 0, 0x0000_0001, 0x2193_fbfd]);
    assert_eq!(m.cpuid(&d, 0x8000_0002, 0)[0], u32::from_le_bytes(*b"QEMU"));
    assert_eq!(m.cpuid(&d, 0x8000_0008, 0)[0], 0x3028);
}

#[test]
fn qemu32_answers_as_qemu_does() {
    let m = model("qemu32");
    let d = enabled();
    assert_eq!(m.cpuid(&d, 0, 0), [4, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]);
    assert_eq!(m.cpuid(&d, 1, 0)[0], 0x663);
    assert_eq!(m.cpuid(&d, 1, 0)[2], 0x8000_0001);
    assert_eq!(m.cpuid(&d, 2, 0), [1, 0, 0x4d, 0x002c_307d]);
    assert_eq!(m.cpuid(&d, 4, 0), [0x121, 0x01c0_003f, 0x3f, 1]);
    assert_eq!(m.cpuid(&d, 0x8000_0001, 0)[3] & F::LM.mask(), 0);
    assert!(!m.is_64bit());
}

#[test]
fn no_model_promises_what_is_not_implemented() {
    for name in ["qemu64", "qemu32", "max", "host", "x86-64-v1", "x86-64-v2", "x86-64-v3"] {
        let m = model(name);
        for n in FEATURES.iter().filter(|n| n.status == Status::Missing) {
            assert!(!m.has(n.feature), "{name} has {}", n.name);
        }
    }
    for name in ["qemu64", "x86-64-v2", "max,-avx", "max,-xsave"] {
        let m = model(name);
        assert_eq!(m.cpuid(&enabled(), 1, 0)[2] & (F::AVX.mask() | F::FMA.mask() | F::F16C.mask()), 0);
        assert_eq!(m.cpuid(&enabled(), 7, 0)[1] & F::AVX2.mask(), 0);
        assert_eq!(m.cpuid(&enabled(), 7, 0)[2] & (F::VAES.mask() | F::VPCLMULQDQ.mask()), 0);
        assert_eq!(m.cpuid(&enabled(), 0xd, 0)[0] & 4, 0);
        assert_eq!(m.cpuid(&enabled(), 0xd, 2), [0; 4]);
    }
}

#[test]
fn x86_64_v3_has_what_the_psabi_asks_for_and_no_more() {
    let m = model("x86-64-v3");
    let all =
        [F::AVX, F::AVX2, F::BMI1, F::BMI2, F::F16C, F::FMA, F::ABM, F::MOVBE, F::XSAVE, F::SSE42, F::POPCNT];
    assert!(all.iter().all(|f| m.has(*f)));
    for f in [F::AES, F::VAES, F::ADX, F::AVX512F, F::SHA_NI, F::PKU] {
        assert!(!m.has(f));
    }
    let d = Dynamic { xcr0: 7, ..enabled() };
    assert_eq!(m.cpuid(&d, 0xd, 0), [7, 832, 832, 0]);
    assert_eq!(m.cpuid(&d, 0xd, 1), [7, 832, 0, 0]);
    assert_eq!(m.cpuid(&d, 0xd, 2), [256, 576, 0, 0]);
    assert!(!model("x86-64-v3,-avx2").has(F::AVX2) && model("x86-64-v3,-avx2").has(F::FMA));
    assert!(!model("x86-64-v3,-avx").has(F::AVX2));
    assert!(!model("qemu64,+avx").has(F::AVX), "without XSAVE no system could enable it");
    assert!(model("qemu64,+xsave,+avx").has(F::AVX));
}

#[test]
fn features_are_switched_by_sign_and_by_value_and_signs_win() {
    assert!(!model("max,-pcid").has(F::PCID));
    assert!(!model("max,-pcid").has(F::INVPCID));
    assert!(!model("max,smap=off").has(F::SMAP));
    assert!(model("qemu64,+smep").has(F::SMEP));
    assert!(model("qemu64,popcnt").has(F::POPCNT));
    assert!(model("qemu64,+popcnt,popcnt=off").has(F::POPCNT));
    assert!(model("qemu64,+sse4.1,+ssse3,+sse4_2").has(F::SSE42));
    assert_eq!(model("max,phys-bits=40").phys_bits(), 40);
    assert_eq!(model("max,family=6,model=0x55,stepping=4,vendor=GenuineIntel").signature(), 0x50654);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_model_host_is_of_the_hosts_maker() {
    use std::arch::x86_64::__cpuid;
    let (m, d) = (model("host"), enabled());
    let id = |leaf: [u32; 4]| [leaf[1], leaf[3], leaf[2]].map(u32::to_le_bytes).concat();
    let host = __cpuid(0);
    let theirs = id([host.eax, host.ebx, host.ecx, host.edx]);
    if [Vendor::Amd, Vendor::Intel].iter().any(|v| v.id()[..] == theirs) {
        assert_eq!(id(m.cpuid(&d, 0, 0)), theirs);
        assert_eq!(m.cpuid(&d, 1, 0)[0], __cpuid(1).eax & 0x0fff_0fff);
    } else {
        assert_eq!(m.signature(), model("max").signature());
    }
    // What a user says wins.
    assert_eq!(model("host,vendor=GenuineIntel,family=6,model=0x55,stepping=4").signature(), 0x50654);
    // AMD's family 25 model 17, Intel's family 6 model 207 and 5 model 4.
    assert_eq!(parts(0x00a1_0f11), (25, 0x11, 1));
    assert_eq!(parts(0x000c_06f2), (6, 207, 2));
    assert_eq!(parts(0x0000_0543), (5, 4, 3));
}

#[test]
fn what_needs_a_missing_feature_goes_with_it() {
    let m = model("max,-xsave");
    for f in [F::XSAVEOPT, F::XSAVEC, F::XSAVES, F::PKU] {
        assert!(!m.has(f));
    }
    assert_eq!(m.cpuid(&enabled(), 0xd, 0), [0; 4]);
}

#[test]
fn errors_name_the_word_and_the_nearest_known() {
    let e = CpuModel::parse("qemu46").unwrap_err().to_string();
    assert!(e.contains("'qemu46'") && e.contains("'qemu64'"), "{e}");
    let e = CpuModel::parse("max,+smpe").unwrap_err().to_string();
    assert!(e.contains("'smpe'") && e.contains("'smep'"), "{e}");
    let e = CpuModel::parse("x86-64-v4").unwrap_err().to_string();
    assert!(e.contains("AVX-512") && e.contains("not implemented yet"), "{e}");
    let e = CpuModel::parse("max,+avx512f").unwrap_err().to_string();
    assert!(e.contains("'avx512f'") && e.contains("not implemented"), "{e}");
    assert!(CpuModel::parse("max,-avx2,-svm,kvm=off").is_ok());
    assert!(CpuModel::parse("max,smep=maybe").is_err());
    assert!(CpuModel::parse("max,phys-bits=99").is_err());
    assert!(CpuModel::parse("").is_err());
}

#[test]
fn dynamic_bits_follow_the_registers() {
    let m = model("max");
    let mut d = Dynamic { apic_id: 5, ..Dynamic::default() };
    let [_, b, c, e] = m.cpuid(&d, 1, 0);
    assert_eq!((b >> 24, c >> 27 & 1, e >> 9 & 1), (5, 0, 0));
    d.osxsave = true;
    d.apic_enabled = true;
    d.pke = true;
    let [_, _, c, e] = m.cpuid(&d, 1, 0);
    assert_eq!((c >> 27 & 1, e >> 9 & 1), (1, 1));
    assert_eq!(m.cpuid(&d, 7, 0)[2] >> 4 & 1, 1);
    d.xcr0 = 3;
    assert_eq!(m.cpuid(&d, 0xd, 0)[1], 576);
    assert_eq!(m.cpuid(&d, 0xd, 0)[2], 0xa88);
    d.xcr0 = 0x203;
    assert_eq!(m.cpuid(&d, 0xd, 0)[1], 0xa88);
    assert_eq!(m.cpuid(&d, 0xd, 1)[1], 584);
    d.xcr0 = 0x207;
    assert_eq!((m.cpuid(&d, 0xd, 0)[1], m.cpuid(&d, 0xd, 1)[1]), (0xa88, 840));
    assert_eq!(m.cpuid(&d, 0xd, 9), [8, 0xa80, 0, 0]);
}

#[test]
fn topology_is_told_in_whole_bit_fields() {
    let mut m = model("qemu64");
    m.set_topology(1, 3, 2);
    assert_eq!(m.apic_id(0), 0);
    assert_eq!(m.apic_id(1), 1);
    assert_eq!(m.apic_id(2), 2);
    assert_eq!(m.apic_id(5), 5);
    assert_eq!(m.apic_id(6), 8);
    let d = enabled();
    assert_eq!(m.cpuid(&d, 0xb, 0)[..2], [1, 2]);
    assert_eq!(m.cpuid(&d, 0xb, 1)[..2], [3, 6]);
    assert_eq!(m.cpuid(&d, 1, 0)[1] >> 16 & 0xff, 8);
    assert_eq!(m.cpuid(&d, 1, 0)[3] >> 28 & 1, 1);
    assert_eq!(m.cpuid(&d, 0x8000_0008, 0)[2], 0x3005);
}

#[test]
fn dies_are_told_by_intels_models_that_have_some() {
    let mut m = model("max,vendor=GenuineIntel");
    m.set_topology(1, 4, 1);
    assert!(m.level < 0x1f);
    m.set_topology(2, 3, 2);
    assert_eq!(m.level, 0x1f);
    // A bit for the thread, two for the core, one for the die.
    assert_eq!([1, 2, 6, 11, 12].map(|n| m.apic_id(n)), [1, 2, 8, 13, 16]);
    let d = Dynamic { apic_id: 13, ..enabled() };
    let leaves = [0, 1, 2, 3].map(|sub| m.cpuid(&d, 0x1f, sub));
    assert_eq!(leaves, [[1, 2, 0x100, 13], [3, 6, 0x201, 13], [4, 12, 0x502, 13], [0, 0, 3, 13]]);
    assert_eq!(m.cpuid(&d, 0xb, 1), [4, 12, 0x201, 13]);
    let mut amd = model("max,vendor=AuthenticAMD");
    amd.set_topology(2, 3, 2);
    assert!(amd.level < 0x1f && amd.cpuid(&d, 0x1f, 0) == [0; 4]);
}

#[test]
fn instructions_exist_only_if_the_model_has_their_feature() {
    use iced_x86::{Decoder, DecoderOptions};
    let decode = |bytes: &[u8]| Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    let popcnt = decode(&[0xf3, 0x0f, 0xb8, 0xc1]);
    let vaddps = decode(&[0xc5, 0xf0, 0x58, 0xc2]);
    let andn = decode(&[0xc4, 0xe2, 0x70, 0xf2, 0xc2]);
    let endbr = decode(&[0xf3, 0x0f, 0x1e, 0xfa]);
    let add = decode(&[0x01, 0xc8]);
    let (small, max) = (model("qemu64"), model("max"));
    assert!(!small.allows(&popcnt) && max.allows(&popcnt));
    assert!(!small.allows(&vaddps) && max.allows(&vaddps));
    assert!(!small.allows(&andn) && max.allows(&andn));
    assert!(small.allows(&endbr) && small.allows(&add));
    // Without BMI1 F3 0F BC is BSF, not an invalid opcode.
    let mut d = Decoder::new(64, &[0xf3, 0x0f, 0xbc, 0xc1], small.decoder_options());
    assert_eq!(d.decode().mnemonic(), iced_x86::Mnemonic::Bsf);
}

#[test]
fn every_instruction_of_an_implemented_feature_has_semantics() {
    use crate::decode::decode_op;
    use crate::mode::ModeKey;
    let m = model("max,+monitor,+clzero,+serialize");
    let code: &[(&str, &[u8])] = &[
        ("sha", &[0x0f, 0x38, 0xc8, 0xc1]),
        ("aes", &[0x66, 0x0f, 0x38, 0xdc, 0xc1]),
        ("pclmulqdq", &[0x66, 0x0f, 0x3a, 0x44, 0xc1, 0]),
        ("sse4.2", &[0x66, 0x0f, 0x3a, 0x63, 0xc1, 0]),
        ("sse4.1", &[0x66, 0x0f, 0x38, 0x10, 0xc1]),
        ("ssse3", &[0x66, 0x0f, 0x38, 0x00, 0xc1]),
        ("sse3", &[0xf2, 0x0f, 0x7c, 0xc1]),
        ("avx", &[0xc5, 0xf0, 0x58, 0xc2]),
        ("avx2", &[0xc4, 0xe2, 0x75, 0x36, 0xc2]),
        ("fma", &[0xc4, 0xe2, 0xf1, 0xb9, 0xc2]),
        ("f16c", &[0xc4, 0xe2, 0x79, 0x13, 0xc1]),
        ("vaes", &[0xc4, 0xe2, 0x75, 0xdc, 0xc2]),
        ("vpclmulqdq", &[0xc4, 0xe3, 0x75, 0x44, 0xc2, 0]),
        ("bmi2", &[0xc4, 0xe2, 0x73, 0xf5, 0xc2]),
        ("adx", &[0x66, 0x0f, 0x38, 0xf6, 0xc1]),
        ("movbe", &[0x0f, 0x38, 0xf0, 0x00]),
        ("rdrand", &[0x0f, 0xc7, 0xf0]),
        ("rdseed", &[0x0f, 0xc7, 0xf8]),
        ("lzcnt", &[0xf3, 0x0f, 0xbd, 0xc1]),
        ("popcnt", &[0xf3, 0x0f, 0xb8, 0xc1]),
        ("cx16", &[0x48, 0x0f, 0xc7, 0x08]),
        ("rdpid", &[0xf3, 0x0f, 0xc7, 0xf8]),
        ("clwb", &[0x66, 0x0f, 0xae, 0x30]),
        ("clflushopt", &[0x66, 0x0f, 0xae, 0x38]),
        ("wbnoinvd", &[0xf3, 0x0f, 0x09]),
        ("clzero", &[0x0f, 0x01, 0xfc]),
        ("serialize", &[0x0f, 0x01, 0xe8]),
        ("monitor", &[0x0f, 0x01, 0xc8]),
        ("rdtscp", &[0x0f, 0x01, 0xf9]),
        ("invpcid", &[0x66, 0x0f, 0x38, 0x82, 0x00]),
        ("xsaves", &[0x0f, 0xc7, 0x28]),
        ("xsaveopt", &[0x0f, 0xae, 0x30]),
        ("fsgsbase", &[0xf3, 0x0f, 0xae, 0xc0]),
        ("pku", &[0x0f, 0x01, 0xef]),
        ("smap", &[0x0f, 0x01, 0xcb]),
        ("prefetchw", &[0x0f, 0x0d, 0x08]),
        ("rdsspq", &[0xf3, 0x48, 0x0f, 0x1e, 0xc8]),
        ("lahf", &[0x9f]),
    ];
    for (name, bytes) in code {
        let (op, _) = decode_op(&m, ModeKey(ModeKey::LONG | ModeKey::PE), bytes, 0).unwrap();
        let undefined = op.run as usize == crate::handler::run_ender as *const () as usize
            && op.helper as usize == crate::handler::undefined as *const () as usize;
        assert!(!undefined, "{name}");
        assert_eq!(usize::from(op.len), bytes.len(), "{name}");
    }
}
