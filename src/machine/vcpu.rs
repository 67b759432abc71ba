//! A vCPU in its thread: the board as it sees it, its interrupt pins, and the loop around its engine.
use super::bios::BiosCalls;
use super::handoff::Handoffs;
use super::power::{Power, Report, Request};
use mynah_cpu::board::{EV_INIT, EV_INTR, EV_KICK, EV_LATCHED, EV_NMI, EV_SIPI, EV_SIPI_VECTOR};
use mynah_cpu::state::Activity;
use mynah_cpu::trace::{cpu_state, fpu_state};
use mynah_cpu::world::MemoryChanges;
use mynah_cpu::{Accelerator, Board, Cpu, Events, Exit, World};
use mynah_devices::bus::PortBus;
use mynah_devices::chipset::Ferr;
use mynah_devices::events::{MachineEvents, ResetCause, WakeCause};
use mynah_devices::interrupts::lapic::{LocalApic, ReadTsc, VcpuPins};
use mynah_devices::misc::entropy::{Asker, Entropy};
use mynah_firmware::bios::PORT;
use mynah_mmu::interrupts::ApicKeeper;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What other threads hold of a vCPU.
#[derive(Clone, Default)]
pub struct VcpuHandle {
    /// Its event bits.
    pub events: Arc<Events>,
    /// What has changed in memory.
    pub inbox: Arc<Mutex<MemoryChanges>>,
    /// The id of its local APIC.
    pub apic_id: u32,
}

impl VcpuHandle {
    /// Has the vCPU come out of its run loop.
    pub fn kick(&self) {
        self.events.raise(EV_KICK);
    }

    /// RESET: what was signalled before is void.
    pub fn forget_signals(&self) {
        self.events.take(EV_LATCHED);
    }

    /// Leaves a note on memory and has the vCPU look at it.
    pub fn memory(&self, change: impl FnOnce(&mut MemoryChanges)) {
        change(&mut self.inbox.lock());
        self.events.raise(mynah_cpu::board::EV_MEMORY);
    }
}

/// The pins that the local APIC drives.
pub struct Pins(pub Arc<Events>);

impl VcpuPins for Pins {
    fn set_intr(&self, pending: bool) {
        if pending {
            self.0.raise(EV_INTR);
        } else {
            self.0.take(EV_INTR);
        }
    }
    fn nmi(&self) {
        self.0.nmi();
    }
    fn smi(&self) {
        // There is no system management mode: as with SMIs disabled in the chipset.
    }
    fn init(&self) {
        // A start-up IPI that was not looked at yet is void.
        self.0.take(EV_SIPI | EV_SIPI_VECTOR);
        self.0.raise(EV_INIT);
    }
    fn sipi(&self, vector: u8) {
        // Of several the last one counts. Calls come one at a time, with the local APIC locked.
        self.0.take(EV_SIPI | EV_SIPI_VECTOR);
        self.0.raise(EV_SIPI | u32::from(vector) << 24);
    }
}

/// The board as one vCPU sees it.
pub struct VcpuBoard {
    /// I/O ports.
    pub ports: Arc<PortBus>,
    /// Its local APIC.
    pub apic: Arc<LocalApic>,
    /// The time-stamp counter.
    pub tsc: ReadTsc,
    /// How far the vCPU's is ahead of it, for its local APIC.
    pub tsc_offset: Arc<AtomicU64>,
    /// Random numbers, and which of those that ask it is.
    pub entropy: (Arc<Entropy>, Asker),
    /// The built-in BIOS, if that is the machine's firmware.
    pub bios: Option<Arc<BiosCalls>>,
    /// FERR# and IGNNE#, if they are wired.
    pub ferr: Option<Arc<Ferr>>,
    /// Who is told of port writes, if somebody waits for one.
    pub handoffs: Option<Arc<Handoffs>>,
}

impl Board for VcpuBoard {
    fn port_read(&self, port: u16, size: u8) -> u32 {
        self.ports.read(port, size)
    }
    fn port_write(&self, port: u16, size: u8, value: u32) {
        if let (PORT, Some(bios)) = (port, &self.bios) {
            bios.request();
            return;
        }
        self.ports.write(port, size, value);
        if let Some(handoffs) = &self.handoffs {
            handoffs.port_written(port, value);
        }
    }
    fn acknowledge(&self) -> Option<u8> {
        self.apic.acknowledge()
    }
    fn cr8(&self) -> u8 {
        self.apic.cr8()
    }
    fn set_cr8(&self, v: u8) {
        self.apic.set_cr8(v);
    }
    fn apic_msr_read(&self, index: u32) -> Result<u64, ()> {
        self.apic.msr_read(index)
    }
    fn apic_msr_write(&self, index: u32, value: u64) -> Result<(), ()> {
        self.apic.msr_write(index, value)
    }
    fn apic_page(&self) -> Option<u64> {
        self.apic.mmio_page()
    }
    fn apic_read(&self, offset: u32, size: u8) -> u64 {
        u64::from(self.apic.mmio_read(u64::from(offset), size))
    }
    fn apic_write(&self, offset: u32, size: u8, value: u64) {
        self.apic.mmio_write(u64::from(offset), size, value as u32);
    }
    fn lend_apic(&self, keeper: &Arc<dyn ApicKeeper>) -> bool {
        self.apic.lend(keeper)
    }
    fn apic_ended(&self, vector: u8) {
        self.apic.ended(vector);
    }
    fn tsc(&self) -> u64 {
        (self.tsc)()
    }
    fn tsc_moved(&self, offset: u64) {
        if self.tsc_offset.swap(offset, Ordering::SeqCst) != offset {
            self.apic.tsc_changed();
        }
    }
    fn random(&self) -> Option<u64> {
        let (source, asker) = &self.entropy;
        Some(source.number(*asker))
    }
    fn ferr(&self, asserted: bool) {
        if let Some(chip) = &self.ferr {
            chip.ferr(asserted);
        }
    }
    fn ignne(&self) -> bool {
        self.ferr.as_ref().is_none_or(|chip| chip.ignne())
    }
}

/// Ends the machine if its vCPU's thread panics, so that nobody waits for it.
struct EndOnPanic<'a> {
    power: &'a Power,
    world: &'a World,
    seat: usize,
}

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.world.leave(self.seat);
            self.power.fail(format!("internal error: the thread of vCPU {} has panicked", self.seat));
        }
    }
}

/// How a halted vCPU rests. To put a thread to sleep and to wake it takes the host some 10 us, and the guest waits for
/// it. So if its last rest was a short one, the vCPU looks for an event for a while before its thread sleeps.
struct Rest {
    /// How long it looks.
    look: Duration,
    /// How long it may look at most.
    most: Duration,
}

impl Rest {
    /// The longest rest that is a short one.
    const SHORT: Duration = Duration::from_micros(100);
    /// How long the vCPU looks after the first of them; twice as long after each further one.
    const LEAST: Duration = Duration::from_micros(10);

    /// For one of `vcpus` on a host with so many `processors`, one of which is for what wakes them.
    fn new(vcpus: usize, processors: usize) -> Self {
        let most = if vcpus < processors { Self::SHORT } else { Duration::ZERO };
        Self { look: Duration::ZERO, most }
    }

    /// Returns when one of `mask` is pending.
    fn wait(&mut self, events: &Events, mask: u32) {
        let begin = Instant::now();
        while begin.elapsed() < self.look {
            for _ in 0..16 {
                if events.pending() & mask != 0 {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        events.wait(mask, None);
        self.learn(begin.elapsed());
    }

    /// The thread had to sleep, and the rest was so long.
    fn learn(&mut self, rest: Duration) {
        self.look =
            if rest > Self::SHORT { Duration::ZERO } else { (2 * self.look).max(Self::LEAST).min(self.most) };
    }
}

/// Runs the vCPU in seat `seat` by `engine` until the machine ends. `reset` puts it into the state of a fresh start; that of the
/// boot processor, which is called while all others stand still, does the same to the machine; it is told why, if that
/// is to wake from sleep.
pub fn run(
    cpu: &mut Cpu,
    engine: &mut dyn Accelerator,
    world: &World,
    seat: usize,
    power: &Power,
    bios: Option<&BiosCalls>,
    mut reset: impl FnMut(&mut Cpu, Option<WakeCause>) -> anyhow::Result<()>,
) {
    let _guard = EndOnPanic { power, world, seat };
    let mut rest = Rest::new(world.len(), std::thread::available_parallelism().map_or(1, usize::from));
    loop {
        match power.request(seat) {
            Request::Run => {}
            Request::Stop => return,
            Request::Reset if seat == 0 => {
                if !power.wait_parked() {
                    continue;
                }
                let waking = power.waking();
                if let Err(e) = reset(cpu, waking) {
                    power.fail(crate::cli::explain(&e));
                    return;
                }
                power.reset_done(waking);
            }
            Request::Reset => {
                if power.park_for_reset()
                    && let Err(e) = reset(cpu, None)
                {
                    power.fail(crate::cli::explain(&e));
                    return;
                }
                continue;
            }
            Request::Pause => {
                power.wait_while_paused(seat);
                continue;
            }
            Request::Report => {
                let registers = cpu_state(cpu) + &fpu_state(cpu);
                let state = Box::new(cpu.save());
                power.report(seat, Report { thread: thread_id(), registers, state, paging: cpu.paging });
                continue;
            }
        }
        let exit = match engine.run(cpu) {
            Ok(exit) => exit,
            Err(e) => {
                power.fail(e.to_string());
                return;
            }
        };
        match exit {
            Exit::Kick | Exit::Budget => {
                if let Some(bios) = bios {
                    bios.serve(cpu);
                }
            }
            // Waiting for a start-up IPI it takes no interrupts.
            Exit::Halt if cpu.state.activity == Activity::WaitSipi => {
                cpu.events.wait(cpu.event_mask & !(EV_INTR | EV_NMI), None);
            }
            Exit::Halt => rest.wait(&cpu.events, cpu.event_mask),
            Exit::Shutdown => {
                power.describe(cpu_state(cpu));
                power.reset(ResetCause::TripleFault);
                if power.request(seat) == Request::Run {
                    // Nobody acts on it: stay shut down until someone does.
                    cpu.events.wait(EV_KICK | EV_INIT | EV_NMI, None);
                }
            }
        }
    }
}

/// The host's number of the calling thread, by which its tools know it.
fn thread_id() -> u64 {
    #[cfg(target_os = "linux")]
    // SAFETY: it takes nothing, touches no memory and cannot fail.
    return unsafe { libc::gettid() } as u64;
    #[cfg(windows)]
    // SAFETY: it takes nothing, touches no memory and cannot fail.
    return unsafe { windows_sys::Win32::System::Threading::GetCurrentThreadId() }.into();
    #[cfg(not(any(target_os = "linux", windows)))]
    // SAFETY: it takes nothing, touches no memory of ours and cannot fail.
    return unsafe { libc::pthread_self() } as u64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_looks_for_events_after_short_rests_alone() {
        let us = Duration::from_micros;
        let mut rest = Rest::new(1, 2);
        let mut looks = |rested| {
            rest.learn(us(rested));
            rest.look
        };
        assert_eq!([5000, 60, 60, 60, 60, 60].map(&mut looks), [0, 10, 20, 40, 80, 100].map(us));
        assert_eq!([101, 60].map(looks), [0, 10].map(us));
        // With no processor to spare for what would wake it, never.
        let mut rest = Rest::new(2, 2);
        rest.learn(us(60));
        assert_eq!(rest.look, us(0));
    }

    #[test]
    fn a_rest_ends_with_an_event_that_is_asked_for() {
        let events = Events::default();
        let mut rest = Rest::new(1, 2);
        for look in [0, 10_000_000] {
            rest.look = Duration::from_micros(look);
            events.raise(EV_KICK);
            std::thread::scope(|s| {
                s.spawn(|| {
                    std::thread::sleep(Duration::from_millis(2));
                    events.raise(EV_INTR);
                });
                rest.wait(&events, EV_INTR | EV_NMI);
            });
            assert_eq!(events.take(EV_INTR | EV_KICK), EV_INTR | EV_KICK);
        }
    }
}
