//! CPUID as KVM is told it.
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use mynah_cpu::CpuModel;
use mynah_cpu::model::features::Feature;
use mynah_cpu::model::leaves::Dynamic;

/// Leaves whose answer depends on ECX, and the last ECX that any model answers.
const WITH_INDEX: &[(u32, u32)] = &[(4, 4), (7, 0), (0xb, 2), (0xd, 9), (0x1f, 3), (0x8000_001d, 4)];

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
