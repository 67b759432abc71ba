//! `-cpu`: a model, features switched on and off, and properties.
//!
//! Names are checked here so that a slip of the fingers is found; whether the build has a feature is for the CPU to
//! say.

use super::Error;
use super::props::parse_switch;
use super::size::{number_from, parse_size};
use super::suggest::did_you_mean;
use crate::config::{CpuModel, FeatureDelta, split_commas};

/// The models, each with what it is.
pub const MODELS: &[(&str, &str)] = &[
    ("qemu64", "a generic 64-bit CPU: QEMU's default, x86-64-v1 and a little more"),
    ("qemu32", "a generic 32-bit CPU"),
    ("x86-64-v1", "the x86-64 psABI's baseline"),
    ("x86-64-v2", "with SSE4.2, POPCNT, CMPXCHG16B, LAHF"),
    ("x86-64-v3", "with AVX2, FMA, F16C, BMI1, BMI2, LZCNT, MOVBE"),
    ("max", "everything that the chosen engine can do"),
    ("host", "what this host's CPU has (with -accel kvm), or as much of it as the engine can do"),
];

/// CPUID feature names, spelled with `-`.
const FEATURES: &[&str] = &[
    // leaf 1 EDX
    "fpu",
    "vme",
    "de",
    "pse",
    "tsc",
    "msr",
    "pae",
    "mce",
    "cx8",
    "apic",
    "sep",
    "mtrr",
    "pge",
    "mca",
    "cmov",
    "pat",
    "pse36",
    "pn",
    "clflush",
    "ds",
    "acpi",
    "mmx",
    "fxsr",
    "sse",
    "sse2",
    "ss",
    "ht",
    "tm",
    "ia64",
    "pbe",
    // leaf 1 ECX
    "pni",
    "pclmulqdq",
    "dtes64",
    "monitor",
    "ds-cpl",
    "vmx",
    "smx",
    "est",
    "tm2",
    "ssse3",
    "cid",
    "fma",
    "cx16",
    "xtpr",
    "pdcm",
    "pcid",
    "dca",
    "sse4.1",
    "sse4.2",
    "x2apic",
    "movbe",
    "popcnt",
    "tsc-deadline",
    "aes",
    "xsave",
    "avx",
    "f16c",
    "rdrand",
    "hypervisor",
    // leaf 8000_0001h
    "syscall",
    "nx",
    "mmxext",
    "fxsr-opt",
    "pdpe1gb",
    "rdtscp",
    "lm",
    "3dnowext",
    "3dnow",
    "lahf-lm",
    "cmp-legacy",
    "svm",
    "extapic",
    "cr8legacy",
    "abm",
    "sse4a",
    "misalignsse",
    "3dnowprefetch",
    "osvw",
    "ibs",
    "xop",
    "skinit",
    "wdt",
    "lwp",
    "fma4",
    "tce",
    "nodeid-msr",
    "tbm",
    "topoext",
    "perfctr-core",
    "perfctr-nb",
    // leaf 7
    "fsgsbase",
    "tsc-adjust",
    "sgx",
    "bmi1",
    "hle",
    "avx2",
    "smep",
    "bmi2",
    "erms",
    "invpcid",
    "rtm",
    "mpx",
    "avx512f",
    "avx512dq",
    "rdseed",
    "adx",
    "smap",
    "avx512ifma",
    "pcommit",
    "clflushopt",
    "clwb",
    "intel-pt",
    "avx512pf",
    "avx512er",
    "avx512cd",
    "sha-ni",
    "avx512bw",
    "avx512vl",
    "avx512vbmi",
    "umip",
    "pku",
    "waitpkg",
    "avx512vbmi2",
    "gfni",
    "vaes",
    "vpclmulqdq",
    "avx512vnni",
    "avx512bitalg",
    "avx512-vpopcntdq",
    "la57",
    "rdpid",
    "bus-lock-detect",
    "cldemote",
    "movdiri",
    "movdir64b",
    "pks",
    "avx512-4vnniw",
    "avx512-4fmaps",
    "fsrm",
    "avx512-vp2intersect",
    "md-clear",
    "serialize",
    "tsx-ldtrk",
    "arch-lbr",
    "amx-bf16",
    "avx512-fp16",
    "amx-tile",
    "amx-int8",
    "spec-ctrl",
    "stibp",
    "arch-capabilities",
    "core-capability",
    "ssbd",
    "avx-vnni",
    "avx512-bf16",
    "fzrm",
    "fsrs",
    "fsrc",
    // leaves 0Dh, 06h, 8000_0007h, 8000_0008h, 8000_000Ah
    "xsaveopt",
    "xsavec",
    "xgetbv1",
    "xsaves",
    "xfd",
    "arat",
    "invtsc",
    "clzero",
    "xsaveerptr",
    "wbnoinvd",
    "ibpb",
    "ibrs",
    "amd-stibp",
    "amd-ssbd",
    "virt-ssbd",
    "amd-no-ssb",
    "rdpru",
    "npt",
    "lbrv",
    "svm-lock",
    "nrip-save",
    "tsc-scale",
    "vmcb-clean",
    "flushbyasid",
    "decodeassists",
    "pause-filter",
    "pfthreshold",
    "avic",
    "vgif",
    // paravirtualization
    "kvm",
    "kvmclock",
    "kvm-nopiodelay",
    "kvm-mmu",
    "kvm-asyncpf",
    "kvm-steal-time",
    "kvm-pv-eoi",
    "kvm-pv-unhalt",
    "kvm-pv-tlb-flush",
    "kvm-pv-ipi",
    "kvm-poll-control",
    "kvmclock-stable-bit",
    "kvm-hint-dedicated",
    "kvm-asyncpf-int",
    "kvm-msi-ext-dest-id",
];

/// Other names of features, after `_` was written as `-`.
const ALIASES: &[(&str, &str)] = &[
    ("sse3", "pni"),
    ("sse4-1", "sse4.1"),
    ("sse4-2", "sse4.2"),
    ("xd", "nx"),
    ("i64", "lm"),
    ("ffxsr", "fxsr-opt"),
    ("tsc-deadline-timer", "tsc-deadline"),
    ("sha", "sha-ni"),
    ("pclmuldq", "pclmulqdq"),
];

/// Properties that are switches.
const SWITCHES: &[&str] = &[
    "check",
    "enforce",
    "migratable",
    "host-phys-bits",
    "host-cache-info",
    "l3-cache",
    "legacy-cache",
    "pmu",
    "full-cpuid-auto-level",
    "fill-mtrr-mask",
    "expose-kvm",
    "expose-tcg",
    "vmware-cpuid-freq",
    "cpuid-0xb",
    "lmce",
    "hv-relaxed",
    "hv-vapic",
    "hv-time",
    "hv-vpindex",
    "hv-runtime",
    "hv-synic",
    "hv-stimer",
    "hv-frequencies",
    "hv-passthrough",
    "hv-reset",
    "hv-crash",
    "hv-tlbflush",
    "hv-ipi",
    "hv-reenlightenment",
    "hv-evmcs",
];

/// Properties with a number.
const NUMBERS: &[&str] = &[
    "family",
    "model",
    "stepping",
    "level",
    "xlevel",
    "xlevel2",
    "min-level",
    "min-xlevel",
    "min-xlevel2",
    "phys-bits",
    "host-phys-bits-limit",
    "apic-id",
    "tsc-frequency",
    "ucode-rev",
    "hv-spinlocks",
];

/// Properties with text.
const TEXTS: &[&str] = &["vendor", "model-id", "hv-vendor-id"];

/// The highest frequency of the time-stamp counter that can be asked for: 32 bits of kHz, as QEMU has it.
const MOST_HZ: u64 = u32::MAX as u64 * 1000;

/// Parses `-cpu`.
pub fn cpu(text: &str) -> Result<CpuModel, Error> {
    let parts = split_commas(text);
    let mut parts = parts.iter().map(String::as_str);
    let model = parts.next().unwrap_or_default();
    if model == "help" || model == "?" {
        return Err(Error::info(help()));
    }
    if !MODELS.iter().any(|m| m.0 == model) {
        let hint = did_you_mean("", model, MODELS.iter().map(|m| m.0));
        let accepted = format!(" (accepted: {})", MODELS.iter().map(|m| m.0).collect::<Vec<_>>().join(", "));
        return Err(Error::new(format!(
            "-cpu {model}: unknown model{}",
            if hint.is_empty() { accepted } else { hint }
        )));
    }
    let mut cpu = CpuModel { model: model.into(), features: Vec::new(), properties: Vec::new() };
    for part in parts.filter(|p| !p.is_empty()) {
        item(text, part, &mut cpu)?;
    }
    Ok(cpu)
}

fn item(text: &str, part: &str, cpu: &mut CpuModel) -> Result<(), Error> {
    let error = |what: String| Error::new(format!("-cpu {text}: {what}"));
    let (key, value) = if let Some(name) = part.strip_prefix('+') {
        (name, "on")
    } else if let Some(name) = part.strip_prefix('-') {
        (name, "off")
    } else {
        part.split_once('=').unwrap_or((part, "on"))
    };
    let signed = part.starts_with(['+', '-']);
    let mut name = key.replace('_', "-").to_ascii_lowercase();
    if let Some((_, real)) = ALIASES.iter().find(|a| a.0 == name) {
        name = (*real).into();
    }
    if FEATURES.contains(&name.as_str()) {
        let on = parse_switch(value)
            .ok_or_else(|| error(format!("{key}={value}: '{value}' is neither on nor off")))?;
        cpu.features.push(FeatureDelta { name, on });
    } else if SWITCHES.contains(&name.as_str()) {
        parse_switch(value)
            .ok_or_else(|| error(format!("{key}={value}: '{value}' is neither on nor off")))?;
        cpu.properties.push((name, value.into()));
    } else if NUMBERS.contains(&name.as_str()) && !signed {
        // What the build makes of it is for the CPU to say.
        let number = match name.as_str() {
            "tsc-frequency" => match parse_size(value, 1) {
                Ok(hz @ 1..=MOST_HZ) => Ok(hz),
                _ => Err(format!("that is not a frequency from 1 to {MOST_HZ} Hz")),
            },
            "ucode-rev" => number_from(value, 0, u64::MAX),
            _ => number_from(value, 0, u32::MAX.into()),
        };
        number.map_err(|why| error(format!("{key}={value}: {why}")))?;
        cpu.properties.push((name, value.into()));
    } else if TEXTS.contains(&name.as_str()) && !signed {
        if name == "vendor" && value.len() != 12 {
            return Err(error(format!("vendor={value}: a vendor has 12 characters, such as GenuineIntel")));
        }
        cpu.properties.push((name, value.into()));
    } else {
        let known = FEATURES.iter().chain(SWITCHES).chain(NUMBERS).chain(TEXTS).copied();
        let hint = did_you_mean("", &name, known.chain(ALIASES.iter().map(|a| a.0)));
        return Err(error(format!("unknown feature or property '{key}'{hint}")));
    }
    Ok(())
}

fn help() -> String {
    let mut text = "CPU models:\n".to_string();
    for (name, what) in MODELS {
        text += &format!("  {name:10} {what}\n");
    }
    text += "\nFeatures, as +NAME, -NAME or NAME=on|off:\n";
    let mut line = " ".to_string();
    for name in FEATURES {
        if line.len() + name.len() + 1 > 78 {
            text += &format!("{line}\n");
            line = " ".into();
        }
        line += &format!(" {name}");
    }
    text + &line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(text: &str) -> Vec<(String, bool)> {
        cpu(text).unwrap().features.into_iter().map(|f| (f.name, f.on)).collect()
    }

    #[test]
    fn features_switch_in_all_spellings_and_in_order() {
        assert_eq!(
            features("max,+sse4_2,-x2apic,sse3=off,lahf_lm,AVX=on,+x2apic"),
            [
                ("sse4.2".to_string(), true),
                ("x2apic".to_string(), false),
                ("pni".to_string(), false),
                ("lahf-lm".to_string(), true),
                ("avx".to_string(), true),
                ("x2apic".to_string(), true),
            ]
        );
    }

    #[test]
    fn properties_are_kept() {
        let c =
            cpu("qemu64,vendor=GenuineIntel,family=6,phys-bits=40,enforce,tsc-frequency=2000000000").unwrap();
        assert!(c.features.is_empty());
        assert_eq!(c.properties[0], ("vendor".into(), "GenuineIntel".into()));
        assert_eq!(c.properties[3], ("enforce".into(), "on".into()));
    }

    #[test]
    fn unknown_models_and_features_are_named() {
        assert_eq!(
            cpu("qemu46").unwrap_err().to_string(),
            "-cpu qemu46: unknown model; did you mean 'qemu64'?"
        );
        assert!(cpu("Pentium99").unwrap_err().to_string().contains("accepted: qemu64"));
        assert_eq!(
            cpu("max,+x2apci").unwrap_err().to_string(),
            "-cpu max,+x2apci: unknown feature or property 'x2apci'; did you mean 'x2apic'?"
        );
        assert!(cpu("max,sse=perhaps").unwrap_err().to_string().contains("neither on nor off"));
        assert!(cpu("max,family=six").unwrap_err().to_string().contains("'six' is not a number"));
        assert!(cpu("max,vendor=Intel").unwrap_err().to_string().contains("12 characters"));
        assert!(cpu("max,+family").is_err());
    }

    #[test]
    fn feature_names_are_unique_and_aliases_lead_to_them() {
        for (i, name) in FEATURES.iter().enumerate() {
            assert!(!FEATURES[..i].contains(name), "{name}");
            assert!(!SWITCHES.contains(name) && !NUMBERS.contains(name) && !TEXTS.contains(name));
        }
        assert!(ALIASES.iter().all(|(alias, name)| FEATURES.contains(name) && !FEATURES.contains(alias)));
    }
}
