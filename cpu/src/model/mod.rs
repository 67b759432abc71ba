//! CPU models: what CPUID says, which instructions exist, which registers have which bits.
//!
//! A [`CpuModel`] is made once, from a `-cpu` argument as QEMU takes it ([`CpuModel::parse`]), and shared by all
//! vCPUs. CPUID never promises what is not there: a feature bit can only be set if [`features`] lists it as
//! implemented. `qemu64` and `qemu32` say what QEMU 7.2's models of the same names say under TCG (but SVM, which is
//! not implemented); `max` has all that is implemented, with an AMD signature as QEMU's has, so that kernels do not
//! turn on what they do against the faults of Intel's processors; `host` is of the host's maker.
//!
//! * [`features`]: names, places and status of feature bits. [`leaves`]: the CPUID leaves.

pub mod features;
pub mod leaves;

use features::{DEPENDENCIES, FEATURES, NEUTRAL_NAMES, OTHER_NAMES, Status, WORDS};
pub use features::{Feature, Word};

/// Who the CPU says has made it. Some instructions differ between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// AuthenticAMD.
    Amd,
    /// GenuineIntel.
    Intel,
}

impl Vendor {
    /// The twelve characters of leaf 0.
    pub fn id(self) -> &'static [u8; 12] {
        match self {
            Self::Amd => b"AuthenticAMD",
            Self::Intel => b"GenuineIntel",
        }
    }

    /// The one with these characters; none if it is another.
    pub fn of_id(id: &[u8]) -> Option<Self> {
        [Self::Amd, Self::Intel].into_iter().find(|v| v.id()[..] == *id)
    }

    /// Who has made this host's processor, if it is one of them.
    #[cfg(target_arch = "x86_64")]
    pub fn of_host() -> Option<Self> {
        let leaf0 = std::arch::x86_64::__cpuid(0);
        Self::of_id(&[leaf0.ebx, leaf0.edx, leaf0.ecx].map(u32::to_le_bytes).concat())
    }
}

/// Why a `-cpu` argument was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelError {
    /// No model has this name; the nearest that exists.
    UnknownModel(String, &'static str),
    /// No feature or property has this name; the nearest that exists.
    UnknownFeature(String, &'static str),
    /// The model needs what is not implemented; what it is.
    ModelNotYet(String, &'static str),
    /// The feature is known but not implemented.
    FeatureNotYet(String),
    /// A property's value makes no sense; name, value, what is expected.
    BadValue(String, String, &'static str),
}

impl std::fmt::Display for ModelError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UnknownModel(n, near) => {
                write!(f, "unknown CPU model '{n}' (the nearest name is '{near}'; -cpu help lists all)")
            }
            Self::UnknownFeature(n, near) => {
                write!(f, "unknown CPU feature '{n}' (the nearest name is '{near}'; -cpu help lists all)")
            }
            Self::ModelNotYet(n, what) => {
                write!(f, "CPU model '{n}' needs {what}, which is not implemented yet")
            }
            Self::FeatureNotYet(n) => write!(f, "CPU feature '{n}' is not implemented yet"),
            Self::BadValue(n, v, want) => write!(f, "CPU property '{n}={v}': expected {want}"),
        }
    }
}

impl std::error::Error for ModelError {}

/// A CPU model with its features and the machine's topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    /// The model's name on the command line.
    pub name: &'static str,
    /// Vendor.
    pub vendor: Vendor,
    /// Family (base plus extended).
    pub family: u32,
    /// Model (base and extended).
    pub model: u32,
    /// Stepping.
    pub stepping: u32,
    /// The name in leaves 8000_0002h-8000_0004h, up to 48 bytes.
    pub brand: String,
    /// Highest basic leaf.
    pub level: u32,
    /// Highest extended leaf.
    pub xlevel: u32,
    phys_bits: u8,
    words: [u32; WORDS],
    /// Dies of a package, cores of a die, threads of a core.
    dies: u32,
    cores: u32,
    threads: u32,
}

const MODELS: &[(&str, &str)] = &[
    ("qemu64", "QEMU Virtual CPU version 2.5+ (default)"),
    ("qemu32", "QEMU Virtual CPU version 2.5+, 32 bits"),
    ("max", "everything that is implemented"),
    ("host", "what is implemented and the host's CPU has too"),
    ("x86-64-v1", "x86-64 psABI level 1: the baseline"),
    ("x86-64-v2", "x86-64 psABI level 2: up to SSE4.2"),
    ("x86-64-v3", "x86-64 psABI level 3: up to AVX2 and FMA"),
];

use Feature as F;

/// What every model here has.
const BASE: &[Feature] = &[
    F::FPU,
    F::DE,
    F::PSE,
    F::TSC,
    F::MSR,
    F::PAE,
    F::MCE,
    F::CX8,
    F::APIC,
    F::SEP,
    F::MTRR,
    F::PGE,
    F::MCA,
    F::CMOV,
    F::PAT,
    F::PSE36,
    F::CLFLUSH,
    F::MMX,
    F::FXSR,
    F::SSE,
    F::SSE2,
    F::HYPERVISOR,
];
/// What the 64-bit ones add.
const BASE64: &[Feature] = &[F::SYSCALL, F::NX, F::LM];
const V2: &[Feature] = &[F::SSE3, F::SSSE3, F::SSE41, F::SSE42, F::CX16, F::POPCNT, F::LAHF_LM];
const V3: &[Feature] = &[
    F::AVX,
    F::AVX2,
    F::BMI1,
    F::BMI2,
    F::F16C,
    F::FMA,
    F::ABM,
    F::MOVBE,
    F::XSAVE,
    F::XSAVEOPT,
    F::XSAVEC,
    F::XGETBV1,
];

impl CpuModel {
    fn plain(name: &'static str, brand: &str) -> Self {
        Self {
            name,
            vendor: Vendor::Amd,
            family: 15,
            model: 107,
            stepping: 1,
            brand: brand.to_string(),
            level: 0xd,
            xlevel: 0x8000_000a,
            phys_bits: 40,
            words: [0; WORDS],
            dies: 1,
            cores: 1,
            threads: 1,
        }
    }

    fn with(mut self, lists: &[&[Feature]]) -> Self {
        for f in lists.iter().copied().flatten() {
            self.set(*f, true);
        }
        self
    }

    fn everything(name: &'static str, brand: &str) -> Self {
        let mut m = Self::plain(name, brand);
        for n in FEATURES.iter().filter(|n| n.status == Status::Max) {
            m.set(n.feature, true);
        }
        m.phys_bits = 46;
        m
    }

    /// The model of this name without any options.
    fn named(name: &str) -> Result<Self, ModelError> {
        const QEMU: &str = "QEMU Virtual CPU version 2.5+";
        Ok(match name {
            "qemu64" | "qemu64-v1" => {
                Self::plain("qemu64", QEMU).with(&[BASE, BASE64, &[F::SSE3, F::CX16, F::LAHF_LM]])
            }
            "qemu32" | "qemu32-v1" => {
                let mut m = Self::plain("qemu32", QEMU).with(&[BASE, &[F::SSE3]]);
                for f in [F::MTRR, F::MCA, F::PSE36, F::CLFLUSH] {
                    m.set(f, false);
                }
                (m.vendor, m.family, m.model, m.stepping) = (Vendor::Intel, 6, 6, 3);
                (m.level, m.xlevel, m.phys_bits) = (4, 0x8000_0004, 36);
                m
            }
            "max" => Self::everything("max", "Mynah CPU, all features"),
            "host" => Self::host(),
            "x86-64-v1" => Self::plain("x86-64-v1", "Mynah CPU, x86-64-v1").with(&[BASE, BASE64]),
            "x86-64-v2" => Self::plain("x86-64-v2", "Mynah CPU, x86-64-v2").with(&[BASE, BASE64, V2]),
            "x86-64-v3" => Self::plain("x86-64-v3", "Mynah CPU, x86-64-v3").with(&[BASE, BASE64, V2, V3]),
            "x86-64-v4" => {
                return Err(ModelError::ModelNotYet(name.to_string(), "AVX-512"));
            }
            _ => {
                return Err(ModelError::UnknownModel(
                    name.to_string(),
                    nearest(name, MODELS.iter().map(|m| m.0)),
                ));
            }
        })
    }

    /// `max` without what the host's CPU lacks, of the host's maker, family, model and stepping. What is not about
    /// instructions a program uses (paging, APIC, hypervisor bit, ...) stays. A maker that there is no [`Vendor`] of
    /// leaves the maker and the numbers of `max`.
    fn host() -> Self {
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
        let mut m = Self::everything("host", "Mynah CPU, features of the host");
        #[cfg(target_arch = "x86_64")]
        {
            let keep =
                [F::X2APIC, F::TSC_DEADLINE, F::HYPERVISOR, F::INVTSC, F::ARAT, F::XSAVEERPTR, F::WBNOINVD];
            let host = features::host_words();
            for n in FEATURES {
                let there = host[n.feature.word as usize] & n.feature.mask() != 0;
                if !there && !keep.contains(&n.feature) {
                    m.set(n.feature, false);
                }
            }
            if let Some(v) = Vendor::of_host() {
                m.vendor = v;
                (m.family, m.model, m.stepping) = parts(std::arch::x86_64::__cpuid(1).eax);
            }
            m.settle();
        }
        m
    }

    /// Makes a model from an argument of `-cpu`: `model[,+feature][,-feature][,feature[=on|off]][,property=value]...`.
    ///
    /// # Errors
    /// An unknown or unimplemented name, or a value that makes no sense; the message names it and the nearest name
    /// that exists.
    pub fn parse(arg: &str) -> Result<Self, ModelError> {
        let mut parts = arg.split(',');
        let mut m = Self::named(parts.next().unwrap_or_default().trim())?;
        // As in QEMU `+x` and `-x` win over `x=on` and `x=off`, wherever they stand.
        let mut signed = Vec::new();
        for p in parts.map(str::trim).filter(|p| !p.is_empty()) {
            if let Some(f) = p.strip_prefix('+') {
                signed.push((f, true));
            } else if let Some(f) = p.strip_prefix('-') {
                signed.push((f, false));
            } else {
                m.property(p)?;
            }
        }
        for (f, on) in signed {
            m.switch(f, on)?;
        }
        m.settle();
        Ok(m)
    }

    fn property(&mut self, p: &str) -> Result<(), ModelError> {
        let (name, value) = p.split_once('=').unwrap_or((p, "on"));
        let bad = |want| ModelError::BadValue(name.to_string(), value.to_string(), want);
        let number = |lo: u32, hi: u32, want| {
            let n = match value.strip_prefix("0x") {
                Some(h) => u32::from_str_radix(h, 16),
                None => value.parse(),
            };
            n.ok().filter(|n| (lo..=hi).contains(n)).ok_or_else(|| bad(want))
        };
        match name {
            "vendor" => {
                let vendor = Vendor::of_id(value.as_bytes());
                self.vendor = vendor.ok_or_else(|| bad("AuthenticAMD or GenuineIntel"))?;
            }
            "family" => self.family = number(0, 0x10e, "0 to 270")?,
            "model" => self.model = number(0, 0xff, "0 to 255")?,
            "stepping" => self.stepping = number(0, 15, "0 to 15")?,
            "level" => self.level = number(1, 0xffff, "1 to 0xffff")?,
            "min-level" => self.level = self.level.max(number(0, 0xffff, "0 to 0xffff")?),
            "xlevel" => self.xlevel = number(0x8000_0000, 0x8000_ffff, "0x80000000 to 0x8000ffff")?,
            "min-xlevel" => {
                self.xlevel = self.xlevel.max(number(0x8000_0000, 0x8000_ffff, "0x80000000 to 0x8000ffff")?);
            }
            "phys-bits" => self.phys_bits = number(32, 52, "32 to 52")? as u8,
            "model-id" if value.len() <= 48 => self.brand = value.to_string(),
            "model-id" => return Err(bad("at most 48 bytes")),
            _ => {
                let on = match value {
                    "on" | "yes" | "true" | "y" => true,
                    "off" | "no" | "false" | "n" => false,
                    _ => return Err(bad("on or off")),
                };
                self.switch(name, on)?;
            }
        }
        Ok(())
    }

    fn switch(&mut self, name: &str, on: bool) -> Result<(), ModelError> {
        let plain = name.replace('_', "-");
        if NEUTRAL_NAMES.contains(&plain.as_str()) {
            return Ok(());
        }
        if let Some(n) = FEATURES.iter().find(|n| n.name == plain) {
            if on && n.status == Status::Missing {
                return Err(ModelError::FeatureNotYet(name.to_string()));
            }
            self.set(n.feature, on);
            return Ok(());
        }
        if OTHER_NAMES.contains(&plain.as_str()) || plain.starts_with("vmx-") || plain.starts_with("hv-") {
            return if on { Err(ModelError::FeatureNotYet(name.to_string())) } else { Ok(()) };
        }
        Err(ModelError::UnknownFeature(name.to_string(), nearest(&plain, FEATURES.iter().map(|n| n.name))))
    }

    /// Takes features away, for an engine that has not all of them, and with them those that need them.
    pub fn without(&mut self, features: &[Feature]) {
        for f in features {
            self.set(*f, false);
        }
        self.settle();
    }

    fn set(&mut self, f: Feature, on: bool) {
        let w = &mut self.words[f.word as usize];
        *w = if on { *w | f.mask() } else { *w & !f.mask() };
    }

    /// Takes away what depends on something that is not there, and raises the levels so that all leaves with something
    /// in them are reached.
    fn settle(&mut self) {
        loop {
            let before = self.words;
            for (need, f) in DEPENDENCIES {
                if !self.has(*need) {
                    self.set(*f, false);
                }
            }
            if before == self.words {
                break;
            }
        }
        let words = |list: &[Word]| list.iter().any(|w| self.words[*w as usize] != 0);
        if words(&[Word::L7Ebx, Word::L7Ecx, Word::L7Edx]) {
            self.level = self.level.max(7);
        }
        if self.has(F::XSAVE) {
            self.level = self.level.max(0xd);
        }
        if self.has(F::LM) || words(&[Word::X7Edx, Word::X8Ebx]) {
            self.xlevel = self.xlevel.max(0x8000_0008);
        }
        if self.has(F::TOPOEXT) {
            self.xlevel = self.xlevel.max(0x8000_001e);
        }
    }

    /// The models by name, with a description each.
    pub fn list() -> &'static [(&'static str, &'static str)] {
        MODELS
    }

    /// The packages' shape: `dies` per package, `cores` per die and `threads` per core. As in QEMU, Intel's models
    /// tell of dies, in leaf 1Fh.
    pub fn set_topology(&mut self, dies: u32, cores: u32, threads: u32) {
        self.dies = dies.clamp(1, 0x100);
        self.cores = cores.clamp(1, 0x1000);
        self.threads = threads.clamp(1, 0x100);
        let many = self.logical_processors() > 1;
        if self.dies > 1 && self.vendor == Vendor::Intel {
            self.level = self.level.max(0x1f);
        }
        self.set(F::HT, many);
        self.set(F::CMP_LEGACY, many && self.vendor == Vendor::Amd);
    }

    /// The initial APIC id of vCPU `index`: thread, core, die and package numbers in fields of whole bits.
    pub fn apic_id(&self, index: u32) -> u32 {
        let (thread, rest) = (index % self.threads, index / self.threads);
        let (core, rest) = (rest % self.cores, rest / self.cores);
        let (die, package) = (rest % self.dies, rest / self.dies);
        let [core_at, die_at, package_at] = self.id_fields();
        package << package_at | die << die_at | core << core_at | thread
    }

    /// The first bits of the APIC id's fields that number the cores of a die, the dies of a package, and packages.
    pub(crate) fn id_fields(&self) -> [u32; 3] {
        let bits = |n: u32| u32::BITS - (n - 1).leading_zeros();
        let (core, die) = (bits(self.threads), bits(self.cores));
        [core, core + die, core + die + bits(self.dies)]
    }

    /// Threads of a package.
    pub(crate) fn logical_processors(&self) -> u32 {
        self.dies * self.cores * self.threads
    }

    /// Whether the model has a feature.
    #[inline]
    pub fn has(&self, f: Feature) -> bool {
        self.words[f.word as usize] & f.mask() != 0
    }

    /// Physical address bits (MAXPHYADDR).
    #[inline]
    pub fn phys_bits(&self) -> u8 {
        self.phys_bits
    }

    /// Linear address bits.
    pub fn linear_bits(&self) -> u8 {
        if !self.has(F::LM) {
            32
        } else if self.has(F::LA57) {
            57
        } else {
            48
        }
    }

    /// Whether it has long mode.
    pub fn is_64bit(&self) -> bool {
        self.has(F::LM)
    }

    /// CPUID.1:EAX: family, model and stepping; also in EDX after RESET.
    pub fn signature(&self) -> u32 {
        let (family, ext) = (self.family.min(15), self.family.saturating_sub(15));
        ext << 20 | (self.model >> 4 & 15) << 16 | family << 8 | (self.model & 15) << 4 | (self.stepping & 15)
    }

    /// The options that make iced-x86 decode as this model does. In 64-bit mode an operand-size prefix makes a near
    /// branch one of 16 bits with AMD and is ignored with Intel, and REX.W gives far pointers in memory an offset of
    /// 64 bits with Intel only (SDM volume 2, CALL, JMP and LSS; AMD APM volume 3 of the same). Prefixed forms whose
    /// feature the model lacks are the plain instruction.
    pub fn decoder_options(&self) -> u32 {
        use iced_x86::DecoderOptions as D;
        let mut o = if self.vendor == Vendor::Amd { D::AMD } else { D::NONE };
        if !self.has(F::BMI1) {
            o |= D::NO_MPFX_0FBC;
        }
        if !self.has(F::ABM) {
            o |= D::NO_MPFX_0FBD;
        }
        if !self.has(F::WBNOINVD) {
            o |= D::NO_WBNOINVD;
        }
        if !self.has(F::LAHF_LM) {
            o |= D::NO_LAHF_SAHF_64;
        }
        o
    }

    /// Whether the model has the instruction; without it the instruction is an invalid opcode.
    pub fn allows(&self, i: &iced_x86::Instruction) -> bool {
        // PREFETCH with a register operand: a no-operation with Intel, an invalid opcode with AMD.
        use iced_x86::Code::{
            Reservednop_rm16_r16_0F0D, Reservednop_rm32_r32_0F0D, Reservednop_rm64_r64_0F0D,
        };
        let hint = matches!(
            i.code(),
            Reservednop_rm16_r16_0F0D | Reservednop_rm32_r32_0F0D | Reservednop_rm64_r64_0F0D
        );
        if hint && self.vendor == Vendor::Amd && i.op0_kind() == iced_x86::OpKind::Register {
            return false;
        }
        i.cpuid_features().iter().all(|f| self.allows_set(*f))
    }

    fn allows_set(&self, f: iced_x86::CpuidFeature) -> bool {
        use iced_x86::CpuidFeature as C;
        let f = match f {
            // What every CPU from the 486 on has, and hints that are no-operations where they are not implemented.
            C::INTEL8086
            | C::INTEL186
            | C::INTEL286
            | C::INTEL386
            | C::INTEL486
            | C::FPU287
            | C::FPU387
            | C::CPUID
            | C::MULTIBYTENOP
            | C::PAUSE
            | C::RDPMC
            | C::CLDEMOTE
            | C::PREFETCHITI
            | C::PREFETCHWT1
            | C::CET_IBT
            | C::CET_SS
            | C::SMM => return true,
            C::PREFETCHW => return self.has(F::X3DNOWPREFETCH) || self.has(F::LM),
            C::X64 => F::LM,
            C::ADX => F::ADX,
            C::AES => F::AES,
            C::AVX => F::AVX,
            C::AVX2 => F::AVX2,
            C::BMI1 => F::BMI1,
            C::BMI2 => F::BMI2,
            C::CLFLUSHOPT => F::CLFLUSHOPT,
            C::CLFSH => F::CLFLUSH,
            C::CLWB => F::CLWB,
            C::CLZERO => F::CLZERO,
            C::CMOV => F::CMOV,
            C::CMPXCHG16B => F::CX16,
            C::CX8 => F::CX8,
            C::F16C => F::F16C,
            C::FMA => F::FMA,
            C::FPU => F::FPU,
            C::FSGSBASE => F::FSGSBASE,
            C::FXSR => F::FXSR,
            C::INVPCID => F::INVPCID,
            C::LZCNT => F::ABM,
            C::MMX => F::MMX,
            C::MONITOR => F::MONITOR,
            C::MOVBE => F::MOVBE,
            C::MSR => F::MSR,
            C::PCLMULQDQ => F::PCLMULQDQ,
            C::PKU => F::PKU,
            C::POPCNT => F::POPCNT,
            C::RDPID => F::RDPID,
            C::RDRAND => F::RDRAND,
            C::RDSEED => F::RDSEED,
            C::RDTSCP => F::RDTSCP,
            C::SEP => F::SEP,
            C::SERIALIZE => F::SERIALIZE,
            C::SHA => F::SHA_NI,
            C::SMAP => F::SMAP,
            C::SSE => F::SSE,
            C::SSE2 => F::SSE2,
            C::SSE3 => F::SSE3,
            C::SSE4_1 => F::SSE41,
            C::SSE4_2 => F::SSE42,
            C::SSE4A => F::SSE4A,
            C::SSSE3 => F::SSSE3,
            C::SYSCALL => F::SYSCALL,
            C::TSC => F::TSC,
            C::VAES => F::VAES,
            C::VPCLMULQDQ => F::VPCLMULQDQ,
            C::WBNOINVD => F::WBNOINVD,
            C::XSAVE => F::XSAVE,
            C::XSAVEC => F::XSAVEC,
            C::XSAVEOPT => F::XSAVEOPT,
            C::XSAVES => F::XSAVES,
            _ => return false,
        };
        self.has(f)
    }
}

impl Default for CpuModel {
    /// `qemu64`.
    fn default() -> Self {
        Self::named("qemu64").expect("qemu64 is a known model")
    }
}

/// Family, model and stepping from what CPUID.1:EAX has (SDM volume 2, CPUID, figure 3-6). The extended family counts
/// with family 15 only, the extended model with 6 and 15.
#[cfg(target_arch = "x86_64")]
fn parts(signature: u32) -> (u32, u32, u32) {
    let field = |at: u32, bits: u32| signature >> at & ((1 << bits) - 1);
    let base = field(8, 4);
    let family = if base == 15 { base + field(20, 8) } else { base };
    let model = if matches!(base, 6 | 15) { field(16, 4) << 4 } else { 0 } | field(4, 4);
    (family, model, field(0, 4))
}

/// The known name with the least edit distance.
fn nearest(name: &str, known: impl Iterator<Item = &'static str>) -> &'static str {
    known.min_by_key(|k| distance(name.as_bytes(), k.as_bytes())).unwrap_or_default()
}

/// Edit distance: insertions, deletions, substitutions, and swaps of neighbours.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let mut best = (last[j] + usize::from(a[i] != b[j])).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests;
