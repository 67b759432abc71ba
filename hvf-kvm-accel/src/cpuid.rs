//! CPUID: what the model promises, as far as the host has it.
use mynah_cpu::CpuModel;
use mynah_cpu::model::features::{FEATURES, Feature, Word};

/// What is ours to give whatever KVM says: the local APIC's, the topology's, and that there is a hypervisor.
const OURS: &[Feature] = &[
    Feature::APIC,
    Feature::X2APIC,
    Feature::TSC_DEADLINE,
    Feature::HYPERVISOR,
    Feature::HT,
    Feature::CMP_LEGACY,
    Feature::TOPOEXT,
    Feature::ARAT,
];

/// The leaf, its index and the register (0-3: EAX, EBX, ECX, EDX) of a word of features.
fn place(word: Word) -> Option<(u32, u32, usize)> {
    Some(match word {
        Word::L1Edx => (1, 0, 3),
        Word::L1Ecx => (1, 0, 2),
        Word::L7Ebx => (7, 0, 1),
        Word::L7Ecx => (7, 0, 2),
        Word::L7Edx => (7, 0, 3),
        Word::X1Edx => (0x8000_0001, 0, 3),
        Word::X1Ecx => (0x8000_0001, 0, 2),
        Word::X7Edx => (0x8000_0007, 0, 3),
        Word::X8Ebx => (0x8000_0008, 0, 1),
        Word::D1Eax => (0xd, 1, 0),
        _ => return None,
    })
}

/// The features of `model` that a host has not: name and place of each. `supported` tells EAX, EBX, ECX and EDX of a
/// leaf and its index, if there are such.
pub fn missing(
    model: &CpuModel,
    supported: impl Fn(u32, u32) -> Option<[u32; 4]>,
) -> Vec<(&'static str, Feature)> {
    let has = |f: Feature| {
        let Some((leaf, sub, register)) = place(f.word) else { return true };
        supported(leaf, sub).is_some_and(|registers| registers[register] & f.mask() != 0)
    };
    let mut all: Vec<(&'static str, Feature)> = FEATURES
        .iter()
        .filter(|n| model.has(n.feature) && !OURS.contains(&n.feature) && !has(n.feature))
        .map(|n| (n.name, n.feature))
        .collect();
    // A second name of the same bit.
    all.dedup_by_key(|(_, f)| (f.word as usize, f.bit));
    all
}
