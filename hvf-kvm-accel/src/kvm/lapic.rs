//! `kernel-irqchip=split`: local APICs in the kernel, I/O APIC and 8259A ours.
//!
//! While vCPUs run here the kernel has their local APICs: IPIs, timers and HLT are no exits, and devices' threads send
//! their messages (MSI, and what the I/O APICs send) with none either. The board lends them one by one, and has them
//! back when all vCPUs stand still ([`mynah_cpu::Board::lend_apic`]), so they are saved and handed over like all else.
//!
//! The end of a level-triggered interrupt is an exit, for vectors that [`ApicKeeper::levels`] has named. The 8259A's
//! interrupts are injected one by one, as without all this. Both are the kernel's own business where it has all
//! controllers (`chips`).
use super::{Vm, failed, read_msrs};
use crate::AccelError;
use kvm_bindings::{
    KVM_CAP_SIGNAL_MSI, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_IRQ_ROUTING_MSI, KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_X2APIC_API_USE_32BIT_IDS, KvmIrqRouting,
    Msrs, kvm_enable_cap, kvm_irq_routing_entry, kvm_lapic_state, kvm_mp_state, kvm_msi, kvm_msr_entry,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use mynah_cpu::state::Activity;
use mynah_cpu::sys::msr::index;
use mynah_mmu::interrupts::{ApicImage, ApicKeeper, ApicSignals, ChipKeeper, REGISTERS};
use parking_lot::Mutex;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Pins of I/O APICs that a machine may have, whose messages KVM is told of.
const PINS: u64 = 48;
/// Registers by number: interrupts that are requested, the timer's entry in the local vector table, its counts.
const IRR: usize = 0x20;
const LVT_TIMER: usize = 0x32;
const INITIAL: usize = 0x38;
const CURRENT: usize = 0x39;
const DIVIDE: usize = 0x3e;
/// Bits of that entry.
const MASKED: u32 = 1 << 16;
const MODES: u32 = 3 << 17;
const ONE_SHOT: u32 = 0;
const PERIODIC: u32 = 1 << 17;
const DEADLINE_MODE: u32 = 2 << 17;

/// What it needs beside [`super::NEEDED`].
pub(super) fn lacks(kvm: &Kvm) -> Option<&'static str> {
    let all = [
        (kvm.check_extension_raw(KVM_CAP_SPLIT_IRQCHIP.into()) > 0, "local APICs in the kernel alone"),
        (kvm.check_extension(Cap::IrqRouting), "interrupt routes"),
        (kvm.check_extension_raw(KVM_CAP_SIGNAL_MSI.into()) > 0, "messages between local APICs"),
        (kvm.check_extension(Cap::MpState), "states of waiting vCPUs"),
        (kvm.check_extension(Cap::TscDeadlineTimer), "the local APIC's deadlines"),
    ];
    all.into_iter().find(|(has, _)| !has).map(|(_, what)| what)
}

/// Has this virtual machine, which has no vCPU yet, keep local APICs.
pub(super) fn enable(kvm: &Kvm, fd: &VmFd) -> Result<(), AccelError> {
    if let Some(what) = lacks(kvm) {
        return Err(AccelError::Lacks(what));
    }
    let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    cap.args[0] = PINS;
    fd.enable_cap(&cap).map_err(failed("keep local APICs"))?;
    widen(fd);
    Ok(())
}

/// Has it take IDs above 254.
pub(super) fn widen(fd: &VmFd) {
    let mut wide = kvm_enable_cap { cap: KVM_CAP_X2APIC_API, ..Default::default() };
    wide.args[0] = KVM_X2APIC_API_USE_32BIT_IDS.into();
    let _ = fd.enable_cap(&wide);
}

/// The message that a write to the local APICs' range is.
fn msi(address: u64, data: u32) -> kvm_msi {
    kvm_msi { address_lo: address as u32, address_hi: (address >> 32) as u32, data, ..Default::default() }
}

/// A register's value.
fn register(lapic: &kvm_lapic_state, n: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| lapic.regs[16 * n + i] as u8))
}

/// A timer's count at some moment.
#[derive(Clone, Copy)]
struct Count {
    count: u32,
    /// How long that takes from then on.
    rest: Duration,
    /// No earlier than it was read.
    at: Instant,
}

impl Count {
    /// Of a timer with this divide configuration register, whose input is KVM's of 1 GHz.
    fn new(count: u32, divide: u32) -> Self {
        // Bits 3, 1 and 0 are log2 of the divisor less one, with 111b for 1.
        let log2 = ((divide >> 1 & 4 | divide & 3) + 1) & 7;
        Self { count, rest: Duration::from_nanos(u64::from(count) << log2), at: Instant::now() }
    }

    /// Whether a periodic timer has run out since then and begun anew: its count is this, and was read no earlier than
    /// `now`. With a count of 0 it is about to.
    fn has_wrapped(&self, count: u32, now: Instant) -> bool {
        count > self.count || count != 0 && now.saturating_duration_since(self.at) > self.rest
    }
}

/// The local APIC of one vCPU.
pub(super) struct Kept {
    /// The vCPU. Its thread has a descriptor of its own, with which it runs it.
    fd: VcpuFd,
    vm: Arc<Vm>,
    /// A deadline that is to be set when the time-stamp counter is.
    deadline: Mutex<Option<u64>>,
    /// The vCPU waited for a start-up IPI when it came out of the kernel.
    waits: AtomicBool,
    /// What its timer's count was then.
    count: Mutex<Count>,
}

impl Kept {
    /// That of `vcpu`.
    pub fn new(vm: &Arc<Vm>, vcpu: &VcpuFd) -> Result<Arc<Self>, AccelError> {
        // SAFETY: it makes a descriptor of the same file, and touches no memory.
        let copy = unsafe { libc::fcntl(vcpu.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
        if copy < 0 {
            return Err(failed("have a second descriptor of a vCPU")(kvm_ioctls::Error::last()));
        }
        // SAFETY: the descriptor is new, of a vCPU of this virtual machine, and nobody else's.
        let fd = unsafe { vm.fd.create_vcpu_from_rawfd(copy) };
        let fd = fd.map_err(failed("have a second descriptor of a vCPU"))?;
        Ok(Arc::new(Self {
            fd,
            vm: vm.clone(),
            deadline: Mutex::new(None),
            waits: AtomicBool::new(false),
            count: Mutex::new(Count::new(0, 0)),
        }))
    }

    /// Sets the deadline that waits for the time-stamp counter.
    pub fn set_deadline(&self) -> Result<(), AccelError> {
        let Some(data) = self.deadline.lock().take() else { return Ok(()) };
        let entry = kvm_msr_entry { index: index::TSC_DEADLINE, data, ..Default::default() };
        let one = Msrs::from_entries(&[entry])
            .map_err(|e| AccelError::Kvm { what: "set a timer's deadline", reason: format!("{e:?}") })?;
        self.fd.set_msrs(&one).map_err(failed("set a timer's deadline"))?;
        Ok(())
    }

    /// The vCPU does not halt any more.
    pub fn wake(&self) -> Result<(), AccelError> {
        const WHAT: &str = "wake a vCPU";
        let state = self.fd.get_mp_state().map_err(failed(WHAT))?;
        if state.mp_state == KVM_MP_STATE_HALTED {
            self.fd.set_mp_state(mp_state(Activity::Running)).map_err(failed(WHAT))?;
        }
        Ok(())
    }

    /// The vCPU comes out of the kernel. Its timer goes on there, and what runs out from now on the kernel keeps to
    /// itself until the vCPU runs again. Whether it has to be run once more, with nothing executed: a one-shot timer is
    /// over, or a periodic one may have run out, and the kernel may not have told the registers yet, which it does as
    /// it runs the vCPU. `again` if that has just been done, and is needed once more only for what came meanwhile.
    pub fn leaves(&self, again: bool) -> Result<bool, AccelError> {
        let began = Instant::now();
        let lapic = self.fd.get_lapic().map_err(failed("get a local APIC"))?;
        let count = register(&lapic, CURRENT);
        let before = std::mem::replace(&mut *self.count.lock(), Count::new(count, register(&lapic, DIVIDE)));
        let entry = register(&lapic, LVT_TIMER);
        let vector = entry & 0xff;
        let is_told = register(&lapic, IRR + vector as usize / 32) >> (vector % 32) & 1 != 0;
        if is_told || entry & MASKED != 0 || register(&lapic, INITIAL) == 0 {
            return Ok(false);
        }
        Ok(match entry & MODES {
            ONE_SHOT => count == 0 && !again,
            PERIODIC => !again || before.has_wrapped(count, began),
            _ => false,
        })
    }

    /// It has come out, and did this there.
    pub fn left(&self, activity: Activity) {
        self.waits.store(activity == Activity::WaitSipi, Ordering::Relaxed);
    }

    /// What has come for the vCPU since it has come out of the kernel, and is now taken from there.
    fn try_take_signals(&self) -> Result<ApicSignals, AccelError> {
        let events = self.fd.get_vcpu_events().map_err(failed("get pending events"))?;
        let init = events.smi.latched_init != 0;
        let mut signals = ApicSignals { nmis: events.nmi.pending, init, sipi: None };
        if init || self.waits.load(Ordering::Relaxed) {
            // It starts where it is asked this, if a start-up IPI has come.
            let state = self.fd.get_mp_state().map_err(failed("get a vCPU's activity"))?;
            let sregs = self.fd.get_sregs().map_err(failed("get a vCPU's start"))?;
            const BOOTS: u64 = 1 << 8;
            if activity(state) == Activity::Running && sregs.apic_base & BOOTS == 0 {
                signals.sipi = Some((sregs.cs.selector >> 8) as u8);
            }
        }
        Ok(signals)
    }

    fn try_get(&self) -> Result<ApicImage, AccelError> {
        let began = Instant::now();
        let lapic = self.fd.get_lapic().map_err(failed("get a local APIC"))?;
        let mut page: [u32; REGISTERS] = std::array::from_fn(|n| register(&lapic, n));
        let left_with = *self.count.lock();
        let ran_out = match page[LVT_TIMER] & MODES {
            ONE_SHOT => page[CURRENT] == 0 && left_with.count != 0,
            PERIODIC => page[INITIAL] != 0 && left_with.has_wrapped(page[CURRENT], began),
            _ => false,
        };
        if ran_out && page[LVT_TIMER] & MASKED == 0 {
            let vector = page[LVT_TIMER] & 0xff;
            page[IRR + vector as usize / 32] |= 1 << (vector % 32);
        }
        let waiting = *self.deadline.lock();
        let deadline = match waiting {
            Some(deadline) => deadline,
            None => read_msrs(&self.fd, &[index::TSC_DEADLINE])?.first().map_or(0, |entry| entry.data),
        };
        let sregs = self.fd.get_sregs().map_err(failed("get a local APIC's base"))?;
        Ok(ApicImage { base: sregs.apic_base, page, tsc_deadline: deadline })
    }

    fn try_put(&self, image: &ApicImage, fresh: bool) -> Result<(), AccelError> {
        let mut sregs = self.fd.get_sregs().map_err(failed("get a local APIC's base"))?;
        if sregs.apic_base != image.base {
            sregs.apic_base = image.base;
            self.fd.set_sregs(&sregs).map_err(failed("set a local APIC's base"))?;
        }
        let mut lapic = kvm_lapic_state::default();
        for (to, from) in lapic.regs.chunks_exact_mut(16).zip(image.page) {
            to.iter_mut().zip(from.to_le_bytes()).for_each(|(to, from)| *to = from as _);
        }
        self.fd.set_lapic(&lapic).map_err(failed("set a local APIC"))?;
        *self.count.lock() = Count::new(image.page[CURRENT], image.page[DIVIDE]);
        if image.page[LVT_TIMER] & MODES == DEADLINE_MODE {
            *self.deadline.lock() = Some(image.tsc_deadline);
        }
        if fresh {
            let mut events = self.fd.get_vcpu_events().map_err(failed("get pending events"))?;
            events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
            events.nmi.pending = 0;
            self.fd.set_vcpu_events(&events).map_err(failed("set pending events"))?;
        }
        Ok(())
    }
}

impl ApicKeeper for Kept {
    fn message(&self, address: u64, data: u32) -> bool {
        // One that nobody takes is an error to it, and nothing to us.
        self.vm.fd.signal_msi(msi(address, data)).is_ok()
    }

    fn get(&self) -> Option<ApicImage> {
        self.try_get().inspect_err(|e| tracing::error!("-accel kvm: {e}")).ok()
    }

    fn take_signals(&self) -> ApicSignals {
        self.try_take_signals().inspect_err(|e| tracing::error!("-accel kvm: {e}")).unwrap_or_default()
    }

    fn put(&self, image: &ApicImage, fresh: bool) {
        if let Err(e) = self.try_put(image, fresh) {
            tracing::error!("-accel kvm: {e}");
        }
    }

    fn levels(&self, routes: &[(u32, u64, u32)]) {
        // It knows them from its own I/O APIC.
        if self.vm.chips.is_some() {
            return;
        }
        let entries: Vec<_> =
            routes.iter().map(|(gsi, address, data)| route(*gsi, *address, *data)).collect();
        let set = KvmIrqRouting::from_entries(&entries)
            .map_err(|e| AccelError::Kvm { what: "take so many routes", reason: format!("{e:?}") })
            .and_then(|all| self.vm.fd.set_gsi_routing(&all).map_err(failed("set interrupt routes")));
        if let Err(e) = set {
            tracing::error!("-accel kvm: {e}");
        }
    }

    fn chips(&self) -> Option<Arc<dyn ChipKeeper>> {
        self.vm.chips.clone()
    }
}

/// The interrupt `gsi` is this message.
fn route(gsi: u32, address: u64, data: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = address as u32;
    entry.u.msi.address_hi = (address >> 32) as u32;
    entry.u.msi.data = data;
    entry
}

/// What a vCPU does, as KVM has it where it keeps local APICs.
pub(super) fn mp_state(activity: Activity) -> kvm_mp_state {
    let mp_state = match activity {
        Activity::Running | Activity::Shutdown => KVM_MP_STATE_RUNNABLE,
        Activity::Halted => KVM_MP_STATE_HALTED,
        Activity::WaitSipi => KVM_MP_STATE_INIT_RECEIVED,
    };
    kvm_mp_state { mp_state }
}

/// And back.
pub(super) fn activity(state: kvm_mp_state) -> Activity {
    match state.mp_state {
        KVM_MP_STATE_HALTED => Activity::Halted,
        KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED | KVM_MP_STATE_SIPI_RECEIVED => {
            Activity::WaitSipi
        }
        _ => Activity::Running,
    }
}
