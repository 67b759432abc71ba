//! A vCPU in KVM: loaded, run, answered, saved.
use super::coalesced::Ring;
use super::kick::{Held, Kick, Ticks};
use super::lapic::{self, Kept};
use super::{Irqchip, Vm, convert, cpuid, failed, read_msrs};
use crate::AccelError;
use kvm_bindings::{
    CpuId, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_PAYLOAD, KVM_VCPUEVENT_VALID_SHADOW, KVMIO,
    Msrs, kvm_interrupt, kvm_msr_entry, kvm_signal_mask, kvm_sregs2,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use mynah_cpu::accel::{SIGNALS, Signals};
use mynah_cpu::board::{EV_INTR, EV_NMI};
use mynah_cpu::state::{Activity, Shadow, State, fl};
use mynah_cpu::sys::msr::index;
use mynah_cpu::{Accelerator, Cpu, EngineError, Exit};
use mynah_mmu::interrupts::ApicKeeper;
use mynah_mmu::walk::load_pdptes;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};

// What kvm-ioctls has not.
ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);
ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, kvm_signal_mask);
ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_sregs2);

/// What KVM_SET_SIGNAL_MASK reads: as long as the kernel's set of signals.
#[repr(C)]
struct SignalMask {
    len: u32,
    signals: [u8; 8],
}

/// A counter that differs from what the board says by less is left alone: it is KVM that keeps it, with the processor's
/// own.
const TSC_APART_NANOS: u64 = 1_000_000;

/// A vCPU.
pub struct Vcpu {
    pub(super) fd: VcpuFd,
    pub(super) kick: Arc<Kick>,
    events: Arc<mynah_cpu::Events>,
    /// MSRs that KVM keeps here.
    msrs: Vec<u32>,
    /// What they have there.
    known: mynah_cpu::state::Msrs,
    /// What XCR0 may have.
    xcr0_mask: u64,
    /// The rate of the board's time-stamp counter in Hz; 0: it is nobody's business.
    pub(super) tsc_hz: u64,
    /// The last exit has an instruction half done, which the next entry finishes.
    unfinished: bool,
    /// An interrupt can be injected now.
    ready: bool,
    /// IA32_APIC_BASE as the board has it.
    apic_base: u64,
    /// An interrupt could not be injected since then.
    shut_out: Option<Instant>,
    /// For how long one may wait before the interpreter looks for the moment.
    patience: Duration,
    /// Brings the thread out of the kernel while one waits.
    ticks: Ticks,
    exits: u64,
    /// Its local APIC, where the kernel has it while it runs.
    lapic: Option<Arc<Kept>>,
    // Last, as all above is of it.
    vm: Arc<Vm>,
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        // The kicker points into the run area.
        self.events.set_kicker(None);
    }
}

/// Why the loop around KVM_RUN came to an end: the state is needed at hand.
pub(super) enum Left {
    /// Signals are pending that need it.
    Signals,
    /// HLT.
    Halt,
    /// Triple fault.
    Shutdown,
    /// KVM cannot execute the instruction at RIP.
    Emulate,
    /// An interrupt finds no way in.
    ShutOut,
    /// A single step is done.
    Stepped,
}

/// For how long an interrupt waits for KVM to say that it may come in, before the interpreter looks for the moment: a KVM
/// that is emulated itself may miss it where exits follow each other closely, or where there are none. Twice as long,
/// up to the second, each time that the interpreter has not found it either, as the guest just does not want it.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(64));
/// How often it is looked for what a timer in the kernel has not told yet, where that runs out again and again.
const MOST_LOOKS: u32 = 4;
/// Between two looks whether all vCPUs are about to run.
const GATHERING: Duration = Duration::from_micros(100);
/// For how many instructions it looks.
const LOOK: u32 = 20_000;

impl Vcpu {
    pub(super) fn new(vm: &Arc<Vm>, cpu: &Cpu, tsc_hz: u64) -> Result<Self, AccelError> {
        let keeps = vm.irqchip != Irqchip::Off;
        // Where it keeps local APICs it knows vCPUs by their IDs.
        let id = if keeps { cpu.cpuid_input().apic_id } else { cpu.index };
        let mut fd = vm.fd.create_vcpu(id.into()).map_err(failed("create a vCPU"))?;
        let entries = cpuid::entries(&cpu.model, &cpu.cpuid_input());
        let entries = CpuId::from_entries(&entries)
            .map_err(|e| AccelError::Kvm { what: "take so many CPUID leaves", reason: format!("{e:?}") })?;
        fd.set_cpuid2(&entries).map_err(failed("set CPUID"))?;
        if tsc_hz != 0 && vm.scales {
            fd.set_tsc_khz((tsc_hz / 1000) as u32).map_err(failed("set the time-stamp counter's rate"))?;
        }
        if vm.collects && vm.ring.get().is_none() {
            let _ = vm.ring.set(Ring::new(&fd)?);
        }
        // SAFETY: the run area is mapped as long as `fd` lives, and `drop` takes the kicker away before that.
        let kick = unsafe { Kick::new(&raw mut fd.get_kvm_run().immediate_exit) };
        cpu.events.set_kicker(Some(kick.clone()));
        let lapic = if keeps { Some(Kept::new(vm, &fd)?) } else { None };
        let mut msrs = convert::msrs();
        msrs.retain(|&index| read_msrs(&fd, &[index]).is_ok_and(|all| all.len() == 1));
        let mut this = Self {
            fd,
            kick,
            events: cpu.events.clone(),
            msrs,
            known: mynah_cpu::state::Msrs::default(),
            xcr0_mask: cpu.model.xcr0_mask(),
            tsc_hz,
            unfinished: false,
            ready: false,
            apic_base: 0,
            shut_out: None,
            patience: PATIENCE.0,
            ticks: Ticks::default(),
            exits: 0,
            lapic,
            vm: vm.clone(),
        };
        let mut known = this.known;
        this.save_msrs(&mut known)?;
        this.known = known;
        Ok(this)
    }

    /// Has KVM take over the state.
    pub(super) fn load(&mut self, cpu: &Cpu) -> Result<(), AccelError> {
        let s = &cpu.state;
        let cr8 = match self.lapic {
            // They are there.
            Some(_) => {
                let now = self.fd.get_sregs().map_err(failed("get segment and control registers"))?;
                self.apic_base = now.apic_base;
                now.cr8 as u8
            }
            None => {
                self.apic_base = cpu.board.apic_msr_read(index::APIC_BASE).unwrap_or(0xfee0_0900);
                cpu.board.cr8()
            }
        };
        let sregs = convert::sregs(s, cr8, self.apic_base);
        const WHAT: &str = "set segment and control registers";
        if self.vm.pdptes && convert::has_pdptes(s) {
            // KVM takes them from memory otherwise, where the guest may have others by now.
            let sregs = convert::with_pdptes(&sregs, s);
            // SAFETY: the kernel reads a `kvm_sregs2`.
            if unsafe { ioctl_with_ref(&self.fd, KVM_SET_SREGS2(), &sregs) } != 0 {
                return Err(failed(WHAT)(kvm_ioctls::Error::last()));
            }
        } else {
            self.fd.set_sregs(&sregs).map_err(failed(WHAT))?;
        }
        if self.xcr0_mask != 0 {
            self.fd.set_xcrs(&convert::xcrs(s)).map_err(failed("set XCR0"))?;
        }
        let xsave = convert::xsave(s, self.xcr0_mask);
        // SAFETY: no component is enabled that is not in the 4 KiB of this area: the model has none.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(failed("set the XSAVE area"))?;
        self.load_msrs(s)?;
        self.load_tsc(cpu)?;
        self.fd.set_regs(&convert::regs(s)).map_err(failed("set registers"))?;
        self.fd.set_debug_regs(&convert::debug_regs(s)).map_err(failed("set debug registers"))?;
        let mut events = convert::events(s);
        if let Some(lapic) = &self.lapic {
            // NMIs that wait are the kernel's.
            events.flags &= !KVM_VCPUEVENT_VALID_NMI_PENDING;
            lapic.set_deadline()?;
            self.fd.set_mp_state(lapic::mp_state(s.activity)).map_err(failed("set a vCPU's activity"))?;
        }
        self.fd.set_vcpu_events(&events).map_err(failed("set pending events"))?;
        self.ready = s.rflags & fl::IF != 0 && s.shadow == Shadow::None;
        Ok(())
    }

    /// Gives it back.
    pub(super) fn save(&mut self, cpu: &mut Cpu) -> Result<(), AccelError> {
        // First, as a start-up IPI that is looked at here changes all else.
        for n in 0..MOST_LOOKS {
            if !self.lapic.as_ref().map_or(Ok(false), |lapic| lapic.leaves(n > 0))? {
                break;
            }
            self.run_nothing(cpu)?;
        }
        let activity = match &self.lapic {
            Some(_) => Some(self.fd.get_mp_state().map_err(failed("get a vCPU's activity"))?),
            None => None,
        };
        let sregs = self.fd.get_sregs().map_err(failed("get segment and control registers"))?;
        let regs = self.fd.get_regs().map_err(failed("get registers"))?;
        let xsave = self.fd.get_xsave().map_err(failed("get the XSAVE area"))?;
        let debug = self.fd.get_debug_regs().map_err(failed("get debug registers"))?;
        let events = self.fd.get_vcpu_events().map_err(failed("get pending events"))?;
        let s = &mut cpu.state;
        convert::set_sregs(s, &sregs);
        if convert::has_pdptes(s) {
            let mut sregs = kvm_sregs2::default();
            // SAFETY: the kernel writes a `kvm_sregs2`.
            if self.vm.pdptes && unsafe { ioctl_with_mut_ref(&self.fd, KVM_GET_SREGS2(), &mut sregs) } == 0 {
                convert::set_pdptes(s, &sregs);
            } else if let Ok(pdptes) = load_pdptes(&cpu.mem, s.cr3, cpu.model.phys_bits()) {
                s.pdpte = pdptes;
            }
        }
        convert::set_regs(s, &regs);
        if self.xcr0_mask != 0 {
            convert::set_xcrs(s, &self.fd.get_xcrs().map_err(failed("get XCR0"))?);
        }
        convert::set_xsave(s, &xsave, self.xcr0_mask);
        convert::set_debug_regs(s, &debug);
        let nmis = convert::set_events(s, &events);
        let mut msrs = s.msr;
        self.save_msrs(&mut msrs)?;
        s.msr = msrs;
        self.known = msrs;
        self.save_tsc(cpu)?;
        match activity {
            Some(state) => {
                cpu.state.activity = lapic::activity(state);
                self.lapic.iter().for_each(|lapic| lapic.left(cpu.state.activity));
                self.note_apic_base(cpu, sregs.apic_base);
            }
            None => (0..nmis).for_each(|_| cpu.events.nmi()),
        }
        cpu.taken_over();
        Ok(())
    }

    /// Sets those MSRs that have another value there.
    fn load_msrs(&mut self, s: &State) -> Result<(), AccelError> {
        let mut wanted = s.msr;
        let mut known = self.known;
        let mut entries = Vec::new();
        for &index in &self.msrs {
            let (Some(want), Some(have)) =
                (convert::msr(&mut wanted, index), convert::msr(&mut known, index))
            else {
                continue;
            };
            if *want != *have {
                entries.push(kvm_msr_entry { index, data: *want, ..Default::default() });
            }
        }
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            let all = Msrs::from_entries(rest)
                .map_err(|e| AccelError::Kvm { what: "set so many MSRs", reason: format!("{e:?}") })?;
            let done = self.fd.set_msrs(&all).map_err(failed("set MSRs"))?;
            let Some(refused) = rest.get(done) else { break };
            tracing::debug!("KVM does not take {:#x} for MSR {:#x}", refused.data, refused.index);
            rest = &rest[done + 1..];
        }
        self.known = s.msr;
        Ok(())
    }

    fn save_msrs(&mut self, to: &mut mynah_cpu::state::Msrs) -> Result<(), AccelError> {
        let all = read_msrs(&self.fd, &self.msrs)?;
        for entry in all {
            if let Some(at) = convert::msr(to, entry.index) {
                *at = entry.data;
            }
        }
        Ok(())
    }

    fn tsc(&self) -> Result<u64, AccelError> {
        let all = read_msrs(&self.fd, &[index::TSC])?;
        Ok(all.first().map_or(0, |entry| entry.data))
    }

    /// Whether the counter is what it is set to.
    pub(super) fn takes_counter(&self) -> Result<bool, AccelError> {
        let wanted = self.tsc()?.wrapping_add(1 << 50);
        self.set_tsc(wanted)?;
        Ok(self.tsc()?.wrapping_sub(wanted) < 1 << 40)
    }

    fn set_tsc(&self, to: u64) -> Result<(), AccelError> {
        let entry = kvm_msr_entry { index: index::TSC, data: to, ..Default::default() };
        let one = Msrs::from_entries(&[entry])
            .map_err(|e| AccelError::Kvm { what: "set the time-stamp counter", reason: format!("{e:?}") })?;
        self.fd.set_msrs(&one).map_err(failed("set the time-stamp counter"))?;
        Ok(())
    }

    /// The time-stamp counter goes on where it is.
    fn load_tsc(&mut self, cpu: &Cpu) -> Result<(), AccelError> {
        if self.tsc_hz == 0 {
            return Ok(());
        }
        let wanted = cpu.tsc();
        let apart = wanted.wrapping_sub(self.tsc()?) as i64;
        if apart.unsigned_abs() > (self.tsc_hz / 1000).saturating_mul(TSC_APART_NANOS / 1_000_000) {
            self.set_tsc(cpu.tsc())?;
        }
        Ok(())
    }

    fn save_tsc(&mut self, cpu: &mut Cpu) -> Result<(), AccelError> {
        if self.tsc_hz != 0 {
            let now = self.tsc()?;
            cpu.set_tsc_offset(now.wrapping_sub(cpu.board.tsc()));
        }
        Ok(())
    }

    /// The guest has moved its local APIC, or switched it.
    fn note_apic_base(&mut self, cpu: &mut Cpu, base: u64) {
        if base != self.apic_base {
            let _ = cpu.write_msr(index::APIC_BASE, base);
            self.apic_base = base;
        }
    }

    /// Whether an instruction is half done.
    pub(super) fn is_unfinished(&self) -> bool {
        self.unfinished
    }

    /// Finishes an instruction that is half done, so that the state is at a boundary.
    fn finish(&mut self, cpu: &mut Cpu) -> Result<(), AccelError> {
        while self.unfinished {
            self.kick.set(true);
            // What it meets on the way (the second half of an access) is answered; all else was said before.
            self.enter(cpu)?;
        }
        Ok(())
    }

    /// One KVM_RUN, and the answer to its exit if that takes no more than the board.
    pub(super) fn enter(&mut self, cpu: &mut Cpu) -> Result<Option<Left>, AccelError> {
        self.unfinished = false;
        self.exits += 1;
        let run = &raw mut *self.fd.get_kvm_run();
        let mut finishing = false;
        let ran = self.fd.run();
        // Before what it has exited for.
        if let Some(ring) = self.vm.ring.get() {
            ring.drain(&self.vm.memory);
        }
        let left = match ran {
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => None,
            Err(e) => return Err(failed("run a vCPU")(e)),
            Ok(VcpuExit::IoOut(port, data)) => {
                // SAFETY: the exit says that this is the union's member.
                let size = unsafe { (*run).__bindgen_anon_1.io.size };
                for element in data.chunks(usize::from(size.clamp(1, 4))) {
                    let mut bytes = [0; 4];
                    bytes[..element.len()].copy_from_slice(element);
                    cpu.board.port_write(port, size, u32::from_le_bytes(bytes));
                }
                finishing = true;
                None
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                // SAFETY: as above.
                let size = unsafe { (*run).__bindgen_anon_1.io.size };
                for element in data.chunks_mut(usize::from(size.clamp(1, 4))) {
                    let bytes = cpu.board.port_read(port, size).to_le_bytes();
                    element.copy_from_slice(&bytes[..element.len()]);
                }
                finishing = true;
                None
            }
            Ok(VcpuExit::MmioRead(gpa, data)) => {
                let bytes = mmio_read(cpu, gpa, data.len() as u8).to_le_bytes();
                let len = data.len().min(8);
                data[..len].copy_from_slice(&bytes[..len]);
                finishing = true;
                None
            }
            Ok(VcpuExit::MmioWrite(gpa, data)) => {
                let mut bytes = [0; 8];
                let len = data.len().min(8);
                bytes[..len].copy_from_slice(&data[..len]);
                mmio_write(cpu, gpa, len as u8, u64::from_le_bytes(bytes));
                finishing = true;
                None
            }
            Ok(VcpuExit::X86Rdmsr(exit)) => {
                match cpu.read_msr(exit.index) {
                    Ok(value) => *exit.data = value,
                    Err(_) => *exit.error = 1,
                }
                finishing = true;
                None
            }
            Ok(VcpuExit::X86Wrmsr(exit)) => {
                let (msr, value) = (exit.index, exit.data);
                // A deadline is in terms of the counter, which the guest may have written since.
                if msr == index::TSC_DEADLINE {
                    self.save_tsc(cpu)?;
                }
                if cpu.write_msr(msr, value).is_err() {
                    // SAFETY: the exit says that this is the union's member.
                    unsafe { (*run).__bindgen_anon_1.msr.error = 1 };
                }
                finishing = true;
                None
            }
            Ok(VcpuExit::IrqWindowOpen | VcpuExit::SetTpr | VcpuExit::Intr) => None,
            Ok(VcpuExit::IoapicEoi(vector)) => {
                cpu.board.apic_ended(vector);
                None
            }
            Ok(VcpuExit::Debug(_)) => Some(Left::Stepped),
            Ok(VcpuExit::Hlt) => Some(Left::Halt),
            Ok(VcpuExit::Shutdown) => Some(Left::Shutdown),
            // Of an instruction that it cannot emulate, or of one that it did not find.
            Ok(VcpuExit::InternalError | VcpuExit::MemoryFault { .. }) => Some(Left::Emulate),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                return Err(AccelError::Kvm {
                    what: "enter the guest",
                    reason: format!("the processor refuses its state (reason {reason:#x})"),
                });
            }
            Ok(other) => {
                return Err(AccelError::Kvm { what: "go on", reason: format!("unknown exit {other:?}") });
            }
        };
        self.unfinished = finishing;
        let run = self.fd.get_kvm_run();
        self.ready = run.ready_for_interrupt_injection != 0 && run.if_flag != 0;
        let (cr8, apic_base) = (run.cr8 as u8 & 15, run.apic_base);
        if self.lapic.is_none() {
            if cr8 != cpu.board.cr8() && !finishing {
                cpu.board.set_cr8(cr8);
            }
            self.note_apic_base(cpu, apic_base);
        }
        Ok(left)
    }

    /// Has the kernel do what it does about the vCPU before that executes anything: a timer that has run out has its
    /// interrupt wait in the registers then. (Of a run that `immediate_exit` ends it does nothing.)
    fn run_nothing(&mut self, cpu: &mut Cpu) -> Result<(), AccelError> {
        // The registers know of the time before the kernel's own timer does; ours is set for later than that one.
        std::thread::sleep(Duration::from_micros(20));
        for _ in 0..3 {
            self.kick.set(false);
            let held = Held::new();
            let mask = SignalMask { len: 8, signals: held.others().to_ne_bytes() };
            // SAFETY: the kernel reads the structure, with as many bytes of signals as it says.
            if unsafe { ioctl_with_ref(&self.fd, KVM_SET_SIGNAL_MASK(), &mask) } != 0 {
                return Err(failed("let a signal in")(kvm_ioctls::Error::last()));
            }
            let ran = self.enter(cpu);
            // SAFETY: without an address it takes the mask away, and reads nothing.
            unsafe { ioctl_with_val(&self.fd, KVM_SET_SIGNAL_MASK(), 0) };
            drop(held);
            ran?;
            // Somebody who was late to kick may have ended it at once.
            if !self.kick.is_set() {
                break;
            }
        }
        self.finish(cpu)
    }

    /// Runs with the state in KVM, until it is needed at hand.
    fn run_inside(&mut self, cpu: &mut Cpu) -> Result<Left, AccelError> {
        loop {
            let pending = cpu.events.pending();
            if pending & SIGNALS != 0 {
                self.finish(cpu)?;
                return Ok(Left::Signals);
            }
            if pending & EV_NMI != 0 {
                cpu.events.take_nmi();
                self.fd.nmi().map_err(failed("inject an NMI"))?;
            }
            let mut window = false;
            if pending & EV_INTR != 0 {
                // Behind the instruction that may well have asked for it.
                self.finish(cpu)?;
                if !self.ready {
                    let since = *self.shut_out.get_or_insert_with(Instant::now);
                    if since.elapsed() > self.patience {
                        self.shut_out = None;
                        return Ok(Left::ShutOut);
                    }
                    // The longer the guest does not want it, the less often it is disturbed.
                    let period = PATIENCE.0.max(self.patience / 8);
                    self.ticks.start(period).map_err(|e| AccelError::Kvm {
                        what: "start a timer for interrupts that wait",
                        reason: e.to_string(),
                    })?;
                    window = true;
                } else if let Some(vector) = cpu.board.acknowledge() {
                    self.ready = false;
                    self.shut_out = None;
                    self.patience = PATIENCE.0;
                    self.inject(vector)?;
                    // One more may wait.
                    window = cpu.events.pending() & EV_INTR != 0;
                }
            }
            let cr8 = if self.lapic.is_none() { cpu.board.cr8() } else { 0 };
            let run = self.fd.get_kvm_run();
            run.request_interrupt_window = window.into();
            run.cr8 = cr8.into();
            self.kick.enter();
            fence(Ordering::SeqCst);
            // What came before `enter` has kicked nobody.
            let now = cpu.events.pending();
            if now & (SIGNALS | EV_NMI) != 0 || now & EV_INTR != 0 && !window {
                self.kick.set(true);
            }
            let left = self.enter(cpu);
            self.kick.leave();
            if self.shut_out.is_none() {
                self.ticks.stop();
            }
            if let Some(left) = left? {
                return Ok(left);
            }
        }
    }

    /// The processor takes an interrupt.
    fn inject(&self, vector: u8) -> Result<(), AccelError> {
        const WHAT: &str = "inject an interrupt";
        let Some(lapic) = &self.lapic else {
            let interrupt = kvm_interrupt { irq: vector.into() };
            // SAFETY: the kernel reads a `kvm_interrupt`.
            return match unsafe { ioctl_with_ref(&self.fd, KVM_INTERRUPT(), &interrupt) } {
                0 => Ok(()),
                _ => Err(failed(WHAT)(kvm_ioctls::Error::last())),
            };
        };
        // Where the local APIC is the kernel's, KVM_INTERRUPT only has it wait, where it is not seen: who is kicked then
        // would leave it behind. As one that is being delivered it comes back with the state.
        let mut events = self.fd.get_vcpu_events().map_err(failed(WHAT))?;
        events.interrupt.injected = 1;
        events.interrupt.nr = vector;
        events.interrupt.soft = 0;
        // What comes meanwhile from other processors is left alone.
        events.flags &= KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_PAYLOAD;
        self.fd.set_vcpu_events(&events).map_err(failed(WHAT))?;
        lapic.wake()
    }

    /// Instructions by the interpreter, from memory as it is: so many, or until no interrupt is pending any more.
    fn step(&mut self, cpu: &mut Cpu, most: u32) -> Option<Exit> {
        cpu.drop_code();
        let mut exit = None;
        for _ in 0..most {
            exit = cpu.step();
            if exit.is_some() || cpu.events.pending() & EV_INTR == 0 {
                break;
            }
        }
        cpu.drop_code();
        exit
    }

    fn run_to_exit(&mut self, cpu: &mut Cpu) -> Result<Exit, AccelError> {
        // What is decoded now would be stale when it is looked at next.
        cpu.drop_code();
        loop {
            match cpu.take_signals() {
                Signals::Leave(exit) => return Ok(exit),
                Signals::Changed => continue,
                Signals::None => {}
            }
            // What is logged stays with the interpreter, and its local APIC with the board.
            let lent = self.lapic.as_ref().filter(|_| !cpu.is_logged());
            let is_lent = lent.is_some();
            if let Some(lapic) = lent {
                let keeper: Arc<dyn ApicKeeper> = lapic.clone();
                if !cpu.board.lend_apic(&keeper) {
                    // Until the others are here as well there is nothing that it could do.
                    std::thread::sleep(GATHERING);
                    continue;
                }
            }
            match cpu.state.activity {
                Activity::Running => {}
                // It waits there.
                Activity::WaitSipi | Activity::Halted if is_lent => {}
                Activity::WaitSipi => return Ok(Exit::Halt),
                Activity::Shutdown => return Ok(Exit::Shutdown),
                Activity::Halted => {
                    cpu.sync_events();
                    if cpu.events.pending() & cpu.event_mask & (EV_INTR | EV_NMI) == 0 {
                        return Ok(Exit::Halt);
                    }
                    cpu.state.activity = Activity::Running;
                }
            }
            // What only the interpreter does: the A20 gate, and logs of each instruction.
            let runs = cpu.state.activity == Activity::Running;
            if runs && (cpu.a20_mask != !0 || cpu.is_logged()) {
                match self.step(cpu, 1) {
                    Some(Exit::Halt) if is_lent => {}
                    Some(exit) => return Ok(exit),
                    None => {}
                }
                continue;
            }
            self.load(cpu)?;
            let left = self.run_inside(cpu);
            // All that it has asked of devices has begun.
            if let Some(bells) = &self.vm.bells {
                bells.flush();
            }
            let saved = self.save(cpu);
            let left = left?;
            saved?;
            match left {
                Left::Signals | Left::Stepped => {}
                Left::Halt => cpu.halted(),
                Left::Shutdown => cpu.state.activity = Activity::Shutdown,
                Left::Emulate => match self.step(cpu, 1) {
                    // It waits where its local APIC is.
                    Some(Exit::Halt) if is_lent => {}
                    Some(exit) => return Ok(exit),
                    None => {}
                },
                Left::ShutOut => {
                    match self.step(cpu, LOOK) {
                        Some(Exit::Halt) if is_lent => {}
                        Some(exit) => return Ok(exit),
                        None => {}
                    }
                    let fruitless = cpu.events.pending() & EV_INTR != 0;
                    self.patience = if fruitless { (self.patience * 2).min(PATIENCE.1) } else { PATIENCE.0 };
                    // Others from now on.
                    self.ticks.stop();
                }
            }
        }
    }
}

impl Accelerator for Vcpu {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn run(&mut self, cpu: &mut Cpu) -> Result<Exit, EngineError> {
        cpu.among_others(|cpu| self.run_to_exit(cpu))
            .map_err(|e| EngineError(format!("-accel kvm: vCPU {}: {e}", cpu.index)))
    }

    fn step(&mut self, cpu: &mut Cpu) -> Result<(), EngineError> {
        self.step_one(cpu).map_err(|e| EngineError(format!("-accel kvm: vCPU {}: {e}", cpu.index)))
    }

    fn exits(&self) -> u64 {
        self.exits
    }
}

/// A read of up to 8 bytes that no slot answers.
fn mmio_read(cpu: &Cpu, gpa: u64, size: u8) -> u64 {
    match (cpu.apic_offset(gpa), size) {
        (Some(offset), 1 | 2 | 4 | 8) => cpu.board.apic_read(offset, size),
        (_, 1 | 2 | 4 | 8) => cpu.mem.phys_read(gpa, size),
        // A part of an access that crosses a page.
        _ => (0..size.min(8)).fold(0, |v, n| v | mmio_read(cpu, gpa + u64::from(n), 1) << (8 * n)),
    }
}

fn mmio_write(cpu: &Cpu, gpa: u64, size: u8, value: u64) {
    match (cpu.apic_offset(gpa), size) {
        (Some(offset), 1 | 2 | 4 | 8) => cpu.board.apic_write(offset, size, value),
        (_, 1 | 2 | 4 | 8) => cpu.mem.phys_write(gpa, size, value),
        _ => (0..size.min(8)).for_each(|n| mmio_write(cpu, gpa + u64::from(n), 1, value >> (8 * n))),
    }
}
