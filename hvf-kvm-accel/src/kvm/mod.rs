//! KVM: `/dev/kvm` through kvm-ioctls.
//!
//! ```text
//!   Cpu (state, events, board) <--load/save--> Vcpu (KVM_RUN, exits) ---- Vm (slots, CPUID)
//! ```
//!
//! A [`Vcpu`] is an [`Accelerator`]: it loads a vCPU's state into KVM, runs it there, and saves it back before it
//! returns. Ports, MMIO, CR8 and MSRs that KVM does not know are done on the way, with the state in KVM; what needs it
//! at hand (INIT, a kick, HLT) is done with it back in the [`mynah_cpu::Cpu`]. The local APIC is ours, in user space, so
//! interrupts are injected one by one; or the kernel's while vCPUs run ([`Irqchip::Split`], `lapic`), and the other
//! interrupt controllers with it ([`Irqchip::On`], `chips`).
//!
//! What KVM cannot execute (an instruction that it does not emulate, a closed A20 gate) our interpreter does, for that
//! instruction.
//!
//! * [`convert`]: state to KVM's structures and back. `memory`: slots that follow the map. `coalesced`: writes that are
//!   collected. `bells`: writes that only wake a device. [`cpuid`]. `kick`: bringing a thread out of the kernel. `lapic`:
//!   local APICs in the kernel. `vcpu`: the run loop. `step`: single instructions. [`probe`]: whether KVM can be used
//!   here, and how fast it is.
//!   [`selftest`]: whether its local APICs can.
mod bells;
mod chips;
mod coalesced;
mod convert;
pub mod cpuid;
mod kick;
mod lapic;
mod memory;
pub mod probe;
pub mod selftest;
mod step;
mod vcpu;

#[cfg(test)]
mod tests;

pub use vcpu::Vcpu;

/// Where the interrupt controllers are while vCPUs run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Irqchip {
    /// All are the board's (`kernel-irqchip=off`).
    #[default]
    Off,
    /// Local APICs are the kernel's, the others the board's (`kernel-irqchip=split`).
    Split,
    /// All are the kernel's (`kernel-irqchip=on`), but for a second I/O APIC, which a board may not have then.
    On,
}

use crate::AccelError;
use bells::Bells;
use coalesced::Ring;
use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_SREGS2, KVM_CAP_X86_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR,
    KVM_MAX_CPUID_ENTRIES, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN, Msrs, kvm_enable_cap, kvm_msr_entry,
};
use kvm_ioctls::{Cap, Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use memory::Slots;
use mynah_cpu::model::features::Feature;
use mynah_cpu::sys::msr::index;
use mynah_cpu::{Cpu, CpuModel};
use mynah_mmu::interrupts::ChipKeeper;
use mynah_mmu::{CodeWatcher, PhysMemory};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Where KVM is.
pub const DEVICE: &str = "/dev/kvm";
/// Pages that Intel's processors need below 4 GiB for real mode: a page table, and behind it three pages of a TSS.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TSS: usize = 0xfeff_d000;
/// What KVM has to have: each has been there since Linux 4.12 or longer.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "memory slots"),
    (Cap::ImmediateExit, "immediate exits"),
    (Cap::VcpuEvents, "vCPU events"),
    (Cap::Xsave, "the XSAVE area"),
    (Cap::Xcrs, "XCR0"),
    (Cap::Debugregs, "debug registers"),
    (Cap::ReadonlyMem, "read-only memory slots"),
    (Cap::SyncMmu, "memory that is the process's own"),
];

/// Values of MSRs, up to the first that KVM does not have.
fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, AccelError> {
    let entries: Vec<_> =
        indices.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
    let mut all = Msrs::from_entries(&entries)
        .map_err(|e| AccelError::Kvm { what: "get so many MSRs", reason: format!("{e:?}") })?;
    let done = fd.get_msrs(&mut all).map_err(failed("get MSRs"))?;
    Ok(all.as_slice()[..done.min(indices.len())].to_vec())
}

fn failed(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> AccelError {
    move |e| AccelError::Kvm { what, reason: e.to_string() }
}

/// KVM on this host.
pub struct Host {
    kvm: Kvm,
    supported: CpuId,
}

impl Host {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// What is wrong with it, and the remedy.
    pub fn open() -> Result<Self, AccelError> {
        Self::open_at(Path::new(DEVICE))
    }

    /// Opens a device at another place.
    ///
    /// # Errors
    /// As [`Host::open`].
    pub fn open_at(path: &Path) -> Result<Self, AccelError> {
        let kvm = probe::open(path)?;
        let version = kvm.get_api_version();
        if version != KVM_API_VERSION as i32 {
            return Err(AccelError::Version { path: path.display().to_string(), version });
        }
        for (cap, what) in NEEDED {
            if !kvm.check_extension(*cap) {
                return Err(AccelError::Lacks(what));
            }
        }
        // Whoever else has the processor shows only now.
        kvm.create_vm().map_err(|e| match e.errno() {
            libc::EBUSY => AccelError::Busy(path.display().to_string()),
            _ => failed("create a virtual machine")(e),
        })?;
        let supported =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("read the supported CPUID"))?;
        Ok(Self { kvm, supported })
    }

    /// The features of `model` that vCPUs here cannot have, with their names.
    pub fn missing(&self, model: &CpuModel) -> Vec<(&'static str, Feature)> {
        let supported = self.supported.as_slice();
        let mut all = crate::cpuid::missing(model, |leaf, index| {
            let entry = supported.iter().find(|e| e.function == leaf && e.index == index)?;
            Some([entry.eax, entry.ebx, entry.ecx, entry.edx])
        });
        // Both are MSRs of our local APIC.
        for (name, f) in [("x2apic", Feature::X2APIC), ("tsc-deadline", Feature::TSC_DEADLINE)] {
            if model.has(f) && !self.asks_for_msrs() {
                all.push((name, f));
            }
        }
        all
    }

    /// What it lacks to keep local APICs ([`Irqchip::Split`]), if something.
    pub fn lacks_split(&self) -> Option<&'static str> {
        lapic::lacks(&self.kvm)
    }

    /// The same for all interrupt controllers ([`Irqchip::On`]).
    pub fn lacks_irqchip(&self) -> Option<&'static str> {
        chips::lacks(&self.kvm)
    }

    /// Whether MSRs that KVM does not know, or that we keep from it, can be ours.
    fn asks_for_msrs(&self) -> bool {
        let has = |cap: u32| self.kvm.check_extension_raw(cap.into()) > 0;
        has(KVM_CAP_X86_USER_SPACE_MSR) && has(KVM_CAP_X86_MSR_FILTER)
    }

    /// The rate in Hz at which time-stamp counters of vCPUs run here, if it cannot be chosen.
    pub fn fixed_tsc_hz(&self) -> Option<u64> {
        if self.kvm.check_extension(Cap::TscControl) {
            return None;
        }
        let vcpu = self.kvm.create_vm().ok()?.create_vcpu(0).ok()?;
        vcpu.get_tsc_khz().ok().filter(|khz| *khz != 0).map(|khz| u64::from(khz) * 1000)
    }
}

/// A virtual machine: a guest's physical memory, as KVM sees it.
pub struct Vm {
    host: Host,
    fd: Arc<VmFd>,
    slots: Arc<Slots>,
    /// PDPTEs can be had and set.
    pdptes: bool,
    /// Time-stamp counters run at any rate.
    scales: bool,
    /// Writes are collected, in this ring.
    collects: bool,
    ring: OnceLock<Ring>,
    bells: Option<Arc<Bells>>,
    irqchip: Irqchip,
    /// What it keeps beside local APICs.
    chips: Option<Arc<dyn ChipKeeper>>,
    // The slots point into it.
    memory: Arc<PhysMemory>,
}

impl Vm {
    /// A machine with this memory, whose map it follows from now on.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn new(host: Host, memory: &Arc<PhysMemory>) -> Result<Arc<Self>, AccelError> {
        Self::with(host, memory, Irqchip::Off)
    }

    /// The same with interrupt controllers there.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn with(host: Host, memory: &Arc<PhysMemory>, irqchip: Irqchip) -> Result<Arc<Self>, AccelError> {
        let fd = Arc::new(host.kvm.create_vm().map_err(failed("create a virtual machine"))?);
        // Both fail on processors that need neither.
        let _ = fd.set_identity_map_address(IDENTITY_MAP);
        let _ = fd.set_tss_address(TSS);
        let mut chips = None;
        match irqchip {
            Irqchip::Off => {}
            Irqchip::Split => lapic::enable(&host.kvm, &fd)?,
            Irqchip::On => chips = Some(chips::enable(&host.kvm, &fd)?),
        }
        if host.asks_for_msrs() {
            msrs_to_us(&fd, irqchip).map_err(failed("have MSRs asked for"))?;
        }
        let scales = host.kvm.check_extension(Cap::TscControl);
        let pdptes = host.kvm.check_extension_raw(KVM_CAP_SREGS2.into()) > 0;
        let collects = host.kvm.check_extension(Cap::CoalescedMmio);
        let bells = match host.kvm.check_extension(Cap::Ioeventfd) {
            true => Some(Bells::new(fd.clone(), memory)?),
            false => None,
        };
        let slots = Slots::new(fd.clone(), memory, collects, bells.clone());
        slots.update().map_err(failed("map guest memory"))?;
        memory.watch_code(slots.clone());
        Ok(Arc::new(Self {
            host,
            fd,
            slots,
            pdptes,
            scales,
            collects,
            ring: OnceLock::new(),
            bells,
            irqchip,
            chips,
            memory: memory.clone(),
        }))
    }

    /// A vCPU that runs `cpu`, of whose model it is. It runs that one only.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn vcpu(self: &Arc<Self>, cpu: &Cpu, tsc_hz: u64) -> Result<Vcpu, AccelError> {
        Vcpu::new(self, cpu, tsc_hz)
    }

    /// KVM on this host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Has the slots be what the map asks for, which they are but while that changes.
    pub fn follow(&self) {
        self.slots.map_changed(0, u64::MAX);
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if let Some(bells) = &self.bells {
            bells.end();
        }
    }
}

/// Has accesses to MSRs that KVM does not know, and to the deadline of a local APIC that is ours, exit to us.
fn msrs_to_us(fd: &VmFd, irqchip: Irqchip) -> Result<(), kvm_ioctls::Error> {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..Default::default() };
    let reasons = KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_FILTER;
    cap.args[0] = reasons.into();
    fd.enable_cap(&cap)?;
    if irqchip != Irqchip::Off {
        return Ok(());
    }
    let ours = MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: index::TSC_DEADLINE,
        msr_count: 1,
        // A clear bit denies.
        bitmap: &[0],
    };
    fd.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[ours])
}
