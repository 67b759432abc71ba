//! CPUID: what the model promises, as far as KVM has it on this host.
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use mynah_cpu::CpuModel;
use mynah_cpu::model::features::{FEATURES, Feature, Word};
use mynah_cpu::model::leaves::Dynamic;

/// Leaves whose answer depends on ECX, and the last ECX that any model answers.
const WITH_INDEX: &[(u32, u32)] = &[(4, 4), (7, 0), (0xb, 2), (0xd, 9), (0x1f, 3), (0x8000_001d, 4)];

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

/// The features of `model` that KVM, which supports `supported`, has not here: name and place of each.
pub fn missing(model: &CpuModel, supported: &CpuId) -> Vec<(&'static str, Feature)> {
    let has = |f: Feature| {
        let Some((leaf, sub, register)) = place(f.word) else { return true };
        let entry = supported.as_slice().iter().find(|e| e.function == leaf && e.index == sub);
        entry.is_some_and(|e| [e.eax, e.ebx, e.ecx, e.edx][register] & f.mask() != 0)
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

/// The entries for a vCPU of `model`. KVM itself keeps up what depends on the vCPU's registers.
pub fn entries(model: &CpuModel, vcpu: &Dynamic) -> Vec<kvm_cpuid_entry2> {
    let mut all = Vec::new();
    let mut add = |leaf: u32| {
        let last = WITH_INDEX.iter().find(|(l, _)| *l == leaf).map(|(_, last)| *last);
        for index in 0..=last.unwrap_or(0) {
            let [eax, ebx, ecx, edx] = model.cpuid(vcpu, leaf, index);
            if index != 0 && (eax | ebx | edx) == 0 && leaf != 0xb {
                continue;
            }
            let flags = if last.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
            all.push(kvm_cpuid_entry2 {
                function: leaf,
                index,
                flags,
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            });
        }
    };
    (0..=model.level).for_each(&mut add);
    if model.has(Feature::HYPERVISOR) {
        (0x4000_0000..=0x4000_0001).for_each(&mut add);
    }
    (0x8000_0000..=model.xlevel).for_each(&mut add);
    all
}
