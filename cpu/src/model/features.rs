//! CPUID feature bits: where they stand, what QEMU calls them, and which of them this CPU implements.
//!
//! A [`Feature`] is a bit in one of the feature words of CPUID ([`Word`]). The table below has every name that QEMU
//! 7.2 knows for these words, so that a command line written for QEMU is understood; the names that are marked as not
//! implemented are refused when asked for and accepted when switched off.
//!
//! Sources: Intel SDM volume 2A, CPUID; AMD APM volume 3 (24594), appendix E.

/// A CPUID register that holds feature bits.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Leaf 1, EDX.
    L1Edx,
    /// Leaf 1, ECX.
    L1Ecx,
    /// Leaf 7 subleaf 0, EBX.
    L7Ebx,
    /// Leaf 7 subleaf 0, ECX.
    L7Ecx,
    /// Leaf 7 subleaf 0, EDX.
    L7Edx,
    /// Leaf 8000_0001h, EDX.
    X1Edx,
    /// Leaf 8000_0001h, ECX.
    X1Ecx,
    /// Leaf 8000_0007h, EDX.
    X7Edx,
    /// Leaf 8000_0008h, EBX.
    X8Ebx,
    /// Leaf 0Dh subleaf 1, EAX.
    D1Eax,
    /// Leaf 6, EAX.
    L6Eax,
}

/// Number of feature words.
pub const WORDS: usize = 11;

/// A feature: word and bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The word.
    pub word: Word,
    /// The bit in it.
    pub bit: u8,
}

impl Feature {
    /// The feature's mask in its word.
    pub const fn mask(self) -> u32 {
        1 << (self.bit & 31)
    }
}

/// How far a feature is implemented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Implemented, and part of `max`.
    Max,
    /// Implemented, but only on demand: it brings a guest nothing, or costs it something.
    OnDemand,
    /// Known to QEMU and not implemented here.
    Missing,
}

/// A named feature.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    /// QEMU's name.
    pub name: &'static str,
    /// The bit.
    pub feature: Feature,
    /// Implemented?
    pub status: Status,
}

macro_rules! features {
    ($($id:ident $word:ident $bit:literal $status:ident $name:literal $(| $alias:literal)*;)*) => {
        #[allow(missing_docs)]
        impl Feature {
            $(pub const $id: Feature = Feature { word: Word::$word, bit: $bit };)*
        }
        /// All named features; aliases follow the name that is shown.
        pub static FEATURES: &[Named] = &[
            $(Named { name: $name, feature: Feature::$id, status: Status::$status },
              $(Named { name: $alias, feature: Feature::$id, status: Status::$status },)*)*
        ];
    };
}

features! {
    FPU L1Edx 0 Max "fpu";
    VME L1Edx 1 Max "vme";
    DE L1Edx 2 Max "de";
    PSE L1Edx 3 Max "pse";
    TSC L1Edx 4 Max "tsc";
    MSR L1Edx 5 Max "msr";
    PAE L1Edx 6 Max "pae";
    MCE L1Edx 7 Max "mce";
    CX8 L1Edx 8 Max "cx8";
    APIC L1Edx 9 Max "apic";
    SEP L1Edx 11 Max "sep";
    MTRR L1Edx 12 Max "mtrr";
    PGE L1Edx 13 Max "pge";
    MCA L1Edx 14 Max "mca";
    CMOV L1Edx 15 Max "cmov";
    PAT L1Edx 16 Max "pat";
    PSE36 L1Edx 17 Max "pse36";
    PN L1Edx 18 Missing "pn";
    CLFLUSH L1Edx 19 Max "clflush";
    DS L1Edx 21 Missing "ds";
    ACPI L1Edx 22 Missing "acpi";
    MMX L1Edx 23 Max "mmx";
    FXSR L1Edx 24 Max "fxsr";
    SSE L1Edx 25 Max "sse";
    SSE2 L1Edx 26 Max "sse2";
    SS L1Edx 27 Max "ss";
    HT L1Edx 28 OnDemand "ht";
    TM L1Edx 29 Missing "tm";
    IA64 L1Edx 30 Missing "ia64";
    PBE L1Edx 31 Missing "pbe";

    SSE3 L1Ecx 0 Max "pni" | "sse3";
    PCLMULQDQ L1Ecx 1 Max "pclmulqdq" | "pclmuldq";
    DTES64 L1Ecx 2 Missing "dtes64";
    MONITOR L1Ecx 3 OnDemand "monitor";
    DS_CPL L1Ecx 4 Missing "ds-cpl";
    VMX L1Ecx 5 Missing "vmx";
    SMX L1Ecx 6 Missing "smx";
    EST L1Ecx 7 Missing "est";
    TM2 L1Ecx 8 Missing "tm2";
    SSSE3 L1Ecx 9 Max "ssse3";
    CID L1Ecx 10 Missing "cid";
    FMA L1Ecx 12 Max "fma";
    CX16 L1Ecx 13 Max "cx16";
    XTPR L1Ecx 14 Missing "xtpr";
    PDCM L1Ecx 15 Missing "pdcm";
    PCID L1Ecx 17 Max "pcid";
    DCA L1Ecx 18 Missing "dca";
    SSE41 L1Ecx 19 Max "sse4.1" | "sse4-1";
    SSE42 L1Ecx 20 Max "sse4.2" | "sse4-2";
    X2APIC L1Ecx 21 Max "x2apic";
    MOVBE L1Ecx 22 Max "movbe";
    POPCNT L1Ecx 23 Max "popcnt";
    TSC_DEADLINE L1Ecx 24 Max "tsc-deadline";
    AES L1Ecx 25 Max "aes";
    XSAVE L1Ecx 26 Max "xsave";
    AVX L1Ecx 28 Max "avx";
    F16C L1Ecx 29 Max "f16c";
    RDRAND L1Ecx 30 Max "rdrand";
    HYPERVISOR L1Ecx 31 Max "hypervisor";

    FSGSBASE L7Ebx 0 Max "fsgsbase";
    TSC_ADJUST L7Ebx 1 Max "tsc-adjust";
    SGX L7Ebx 2 Missing "sgx";
    BMI1 L7Ebx 3 Max "bmi1";
    HLE L7Ebx 4 Missing "hle";
    AVX2 L7Ebx 5 Max "avx2";
    SMEP L7Ebx 7 Max "smep";
    BMI2 L7Ebx 8 Max "bmi2";
    ERMS L7Ebx 9 Max "erms";
    INVPCID L7Ebx 10 Max "invpcid";
    RTM L7Ebx 11 Missing "rtm";
    MPX L7Ebx 14 Missing "mpx";
    AVX512F L7Ebx 16 Missing "avx512f";
    AVX512DQ L7Ebx 17 Missing "avx512dq";
    RDSEED L7Ebx 18 Max "rdseed";
    ADX L7Ebx 19 Max "adx";
    SMAP L7Ebx 20 Max "smap";
    AVX512IFMA L7Ebx 21 Missing "avx512ifma";
    PCOMMIT L7Ebx 22 Missing "pcommit";
    CLFLUSHOPT L7Ebx 23 Max "clflushopt";
    CLWB L7Ebx 24 Max "clwb";
    INTEL_PT L7Ebx 25 Missing "intel-pt";
    AVX512PF L7Ebx 26 Missing "avx512pf";
    AVX512ER L7Ebx 27 Missing "avx512er";
    AVX512CD L7Ebx 28 Missing "avx512cd";
    SHA_NI L7Ebx 29 Max "sha-ni";
    AVX512BW L7Ebx 30 Missing "avx512bw";
    AVX512VL L7Ebx 31 Missing "avx512vl";

    AVX512VBMI L7Ecx 1 Missing "avx512vbmi";
    UMIP L7Ecx 2 Max "umip";
    PKU L7Ecx 3 Max "pku";
    WAITPKG L7Ecx 5 Missing "waitpkg";
    AVX512VBMI2 L7Ecx 6 Missing "avx512vbmi2";
    GFNI L7Ecx 8 Missing "gfni";
    VAES L7Ecx 9 Max "vaes";
    VPCLMULQDQ L7Ecx 10 Max "vpclmulqdq";
    AVX512VNNI L7Ecx 11 Missing "avx512vnni";
    AVX512BITALG L7Ecx 12 Missing "avx512bitalg";
    AVX512_VPOPCNTDQ L7Ecx 14 Missing "avx512-vpopcntdq";
    LA57 L7Ecx 16 Max "la57";
    RDPID L7Ecx 22 Max "rdpid";
    BUS_LOCK_DETECT L7Ecx 24 Missing "bus-lock-detect";
    CLDEMOTE L7Ecx 25 OnDemand "cldemote";
    MOVDIRI L7Ecx 27 Missing "movdiri";
    MOVDIR64B L7Ecx 28 Missing "movdir64b";
    SGXLC L7Ecx 30 Missing "sgxlc";
    PKS L7Ecx 31 Missing "pks";

    AVX512_4VNNIW L7Edx 2 Missing "avx512-4vnniw";
    AVX512_4FMAPS L7Edx 3 Missing "avx512-4fmaps";
    FSRM L7Edx 4 Max "fsrm";
    AVX512_VP2INTERSECT L7Edx 8 Missing "avx512-vp2intersect";
    MD_CLEAR L7Edx 10 OnDemand "md-clear";
    SERIALIZE L7Edx 14 OnDemand "serialize";
    TSX_LDTRK L7Edx 16 Missing "tsx-ldtrk";
    ARCH_LBR L7Edx 19 Missing "arch-lbr";
    AMX_BF16 L7Edx 22 Missing "amx-bf16";
    AVX512_FP16 L7Edx 23 Missing "avx512-fp16";
    AMX_TILE L7Edx 24 Missing "amx-tile";
    AMX_INT8 L7Edx 25 Missing "amx-int8";
    SPEC_CTRL L7Edx 26 OnDemand "spec-ctrl";
    STIBP L7Edx 27 OnDemand "stibp";
    ARCH_CAPABILITIES L7Edx 29 OnDemand "arch-capabilities";
    CORE_CAPABILITY L7Edx 30 Missing "core-capability";
    SSBD L7Edx 31 OnDemand "ssbd";

    SYSCALL X1Edx 11 Max "syscall";
    NX X1Edx 20 Max "nx" | "xd";
    MMXEXT X1Edx 22 Max "mmxext";
    FXSR_OPT X1Edx 25 Missing "fxsr-opt" | "ffxsr";
    PDPE1GB X1Edx 26 Max "pdpe1gb";
    RDTSCP X1Edx 27 Max "rdtscp";
    LM X1Edx 29 Max "lm" | "i64";
    X3DNOWEXT X1Edx 30 Missing "3dnowext";
    X3DNOW X1Edx 31 Missing "3dnow";

    LAHF_LM X1Ecx 0 Max "lahf-lm";
    CMP_LEGACY X1Ecx 1 OnDemand "cmp-legacy";
    SVM X1Ecx 2 Missing "svm";
    EXTAPIC X1Ecx 3 Missing "extapic";
    CR8LEGACY X1Ecx 4 Missing "cr8legacy";
    ABM X1Ecx 5 Max "abm" | "lzcnt";
    SSE4A X1Ecx 6 Missing "sse4a";
    MISALIGNSSE X1Ecx 7 Missing "misalignsse";
    X3DNOWPREFETCH X1Ecx 8 Max "3dnowprefetch";
    OSVW X1Ecx 9 Missing "osvw";
    IBS X1Ecx 10 Missing "ibs";
    XOP X1Ecx 11 Missing "xop";
    SKINIT X1Ecx 12 Missing "skinit";
    WDT X1Ecx 13 Missing "wdt";
    LWP X1Ecx 15 Missing "lwp";
    FMA4 X1Ecx 16 Missing "fma4";
    TCE X1Ecx 17 Missing "tce";
    NODEID_MSR X1Ecx 19 Missing "nodeid-msr";
    TBM X1Ecx 21 Missing "tbm";
    TOPOEXT X1Ecx 22 OnDemand "topoext";
    PERFCTR_CORE X1Ecx 23 Missing "perfctr-core";
    PERFCTR_NB X1Ecx 24 Missing "perfctr-nb";

    INVTSC X7Edx 8 Max "invtsc";

    CLZERO X8Ebx 0 OnDemand "clzero";
    XSAVEERPTR X8Ebx 2 Max "xsaveerptr";
    WBNOINVD X8Ebx 9 Max "wbnoinvd";
    IBPB X8Ebx 12 OnDemand "ibpb";
    IBRS X8Ebx 14 OnDemand "ibrs";
    AMD_STIBP X8Ebx 15 OnDemand "amd-stibp";
    AMD_SSBD X8Ebx 24 OnDemand "amd-ssbd";
    VIRT_SSBD X8Ebx 25 OnDemand "virt-ssbd";
    AMD_NO_SSB X8Ebx 26 OnDemand "amd-no-ssb";

    XSAVEOPT D1Eax 0 Max "xsaveopt";
    XSAVEC D1Eax 1 Max "xsavec";
    XGETBV1 D1Eax 2 Max "xgetbv1";
    XSAVES D1Eax 3 Max "xsaves";
    XFD D1Eax 4 Missing "xfd";

    ARAT L6Eax 2 Max "arat";
}

/// Boolean properties of QEMU's CPUs that are no CPUID bits of these words, or that change nothing here: accepted when
/// switched off.
pub static OTHER_NAMES: &[&str] = &[
    "ace2",
    "ace2-en",
    "avic",
    "avx-vnni",
    "avx512-bf16",
    "decodeassists",
    "flushbyasid",
    "full-width-write",
    "ibrs-all",
    "intel-pt-lip",
    "kvm-asyncpf",
    "kvm-asyncpf-int",
    "kvm-hint-dedicated",
    "kvm-mmu",
    "kvm-msi-ext-dest-id",
    "kvm-nopiodelay",
    "kvm-poll-control",
    "kvm-pv-eoi",
    "kvm-pv-ipi",
    "kvm-pv-sched-yield",
    "kvm-pv-tlb-flush",
    "kvm-pv-unhalt",
    "kvm-steal-time",
    "kvmclock",
    "kvmclock-stable-bit",
    "kvm",
    "lbrv",
    "mds-no",
    "npt",
    "nrip-save",
    "pause-filter",
    "pfthreshold",
    "phe",
    "phe-en",
    "pmm",
    "pmm-en",
    "pmu",
    "pschange-mc-no",
    "rdctl-no",
    "rsba",
    "sgx-debug",
    "sgx-exinfo",
    "sgx-kss",
    "sgx-mode64",
    "sgx-provisionkey",
    "sgx-tokenkey",
    "sgx1",
    "sgx2",
    "skip-l1dfl-vmentry",
    "split-lock-detect",
    "ssb-no",
    "svm-lock",
    "svme-addr-chk",
    "taa-no",
    "tsc-scale",
    "tsx-ctrl",
    "v-vmsave-vmload",
    "vgif",
    "vmcb-clean",
    "xcrypt",
    "xcrypt-en",
    "xstore",
    "xstore-en",
];

/// Properties that ask for a check of the model, which is always made here, or for what is always so: accepted in
/// either position.
pub static NEUTRAL_NAMES: &[&str] =
    &["check", "enforce", "migratable", "fill-mtrr-mask", "host-phys-bits", "x-force-features"];

/// Features that mean nothing without another one: the second goes if the first is off.
pub static DEPENDENCIES: &[(Feature, Feature)] = &[
    (Feature::FXSR, Feature::SSE),
    (Feature::SSE, Feature::SSE2),
    (Feature::SSE2, Feature::SSE3),
    (Feature::SSE2, Feature::PCLMULQDQ),
    (Feature::SSE2, Feature::AES),
    (Feature::SSE2, Feature::SHA_NI),
    (Feature::SSE3, Feature::SSSE3),
    (Feature::SSE3, Feature::SSE4A),
    (Feature::SSSE3, Feature::SSE41),
    (Feature::SSE41, Feature::SSE42),
    (Feature::XSAVE, Feature::XSAVEOPT),
    (Feature::XSAVE, Feature::XSAVEC),
    (Feature::XSAVE, Feature::XGETBV1),
    (Feature::XSAVEC, Feature::XSAVES),
    (Feature::XSAVE, Feature::PKU),
    (Feature::XSAVE, Feature::AVX),
    (Feature::AVX, Feature::AVX2),
    (Feature::AVX, Feature::FMA),
    (Feature::AVX, Feature::F16C),
    (Feature::AVX, Feature::VAES),
    (Feature::AES, Feature::VAES),
    (Feature::AVX, Feature::VPCLMULQDQ),
    (Feature::PCLMULQDQ, Feature::VPCLMULQDQ),
    (Feature::APIC, Feature::X2APIC),
    (Feature::APIC, Feature::TSC_DEADLINE),
    (Feature::PAE, Feature::LM),
    (Feature::LM, Feature::PCID),
    (Feature::LM, Feature::LA57),
    (Feature::LM, Feature::FSGSBASE),
    (Feature::LM, Feature::PDPE1GB),
    (Feature::LM, Feature::LAHF_LM),
    (Feature::LM, Feature::CX16),
    (Feature::PCID, Feature::INVPCID),
    (Feature::MSR, Feature::SYSCALL),
    (Feature::SYSCALL, Feature::LM),
];

/// The feature words of the CPU we run on.
#[cfg(target_arch = "x86_64")]
pub(super) fn host_words() -> [u32; WORDS] {
    use std::arch::x86_64::__cpuid_count;
    let leaf = |n: u32, sub: u32| {
        let top = __cpuid_count(n & 0x8000_0000, 0).eax;
        let r = __cpuid_count(n, sub);
        if n <= top { [r.eax, r.ebx, r.ecx, r.edx] } else { [0; 4] }
    };
    let mut w = [0; WORDS];
    w[Word::L1Edx as usize] = leaf(1, 0)[3];
    w[Word::L1Ecx as usize] = leaf(1, 0)[2];
    w[Word::L7Ebx as usize] = leaf(7, 0)[1];
    w[Word::L7Ecx as usize] = leaf(7, 0)[2];
    w[Word::L7Edx as usize] = leaf(7, 0)[3];
    w[Word::X1Edx as usize] = leaf(0x8000_0001, 0)[3];
    w[Word::X1Ecx as usize] = leaf(0x8000_0001, 0)[2];
    w[Word::X7Edx as usize] = leaf(0x8000_0007, 0)[3];
    w[Word::X8Ebx as usize] = leaf(0x8000_0008, 0)[1];
    w[Word::D1Eax as usize] = leaf(0xd, 1)[0];
    w[Word::L6Eax as usize] = leaf(6, 0)[0];
    // Intel's processors do not show MMXEXT, which their SSE has, nor the bits that say what AMD's do not always do.
    w[Word::X1Edx as usize] |=
        (w[Word::L1Edx as usize] & Feature::SSE.mask()) >> Feature::SSE.bit << Feature::MMXEXT.bit;
    w
}
