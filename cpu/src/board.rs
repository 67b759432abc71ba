//! What a vCPU asks of the board it is plugged into, and what the board signals to it.
use mynah_mmu::interrupts::ApicKeeper;
use parking_lot::{Condvar, Mutex, RwLock};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// The board as one vCPU sees it: I/O ports, its local APIC, the time-stamp counter. What an implementation leaves out
/// is as on a board with nothing on it.
// Err(()) is "#GP(0)": there is nothing else to say.
#[allow(clippy::result_unit_err)]
pub trait Board: Send + Sync {
    /// IN: `size` is 1, 2 or 4.
    fn port_read(&self, _port: u16, size: u8) -> u32 {
        u32::MAX >> (32 - 8 * u32::from(size))
    }
    /// OUT.
    fn port_write(&self, _port: u16, _size: u8, _value: u32) {}
    /// The interrupt-acknowledge cycle: the vector to deliver; `None` if the request has vanished.
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    /// CR8, the task priority (4 bits).
    fn cr8(&self) -> u8 {
        0
    }
    /// Writes CR8.
    fn set_cr8(&self, _v: u8) {}
    /// Reads a local APIC MSR: IA32_APIC_BASE, IA32_TSC_DEADLINE, 800h-8FFh. `Err` raises #GP(0).
    fn apic_msr_read(&self, _index: u32) -> Result<u64, ()> {
        Err(())
    }
    /// Writes a local APIC MSR.
    fn apic_msr_write(&self, _index: u32, _value: u64) -> Result<(), ()> {
        Err(())
    }
    /// Where the local APIC's page stands, if it is enabled and in xAPIC mode.
    fn apic_page(&self) -> Option<u64> {
        None
    }
    /// Reads a local APIC register by MMIO.
    fn apic_read(&self, _offset: u32, _size: u8) -> u64 {
        0
    }
    /// Writes a local APIC register by MMIO.
    fn apic_write(&self, _offset: u32, _size: u8, _value: u64) {}
    /// Has this vCPU's local APIC be kept by `keeper` from now on, unless it is kept elsewhere already; whether all of
    /// the machine are, without which no vCPU may run there.
    fn lend_apic(&self, _keeper: &Arc<dyn ApicKeeper>) -> bool {
        true
    }
    /// The keeper of the local APIC has seen the end of a level-triggered interrupt.
    fn apic_ended(&self, _vector: u8) {}
    /// The time-stamp counter before the vCPU's own offset.
    fn tsc(&self) -> u64 {
        0
    }
    /// This vCPU's counter is so far ahead of [`Board::tsc`] from now on: for deadlines, which are in terms of it.
    fn tsc_moved(&self, _offset: u64) {}
    /// 64 random bits, for RDRAND and RDSEED. Without any these say by CF that there are none just now.
    fn random(&self) -> Option<u64> {
        None
    }
    /// FERR#: an x87 exception is pending while CR0.NE is clear. A PC/AT raises IRQ 13 when it is asserted, and drops
    /// IGNNE# when it is not.
    fn ferr(&self, _asserted: bool) {}
    /// IGNNE#: x87 instructions go on in spite of FERR#. On a PC/AT a write to port F0h asserts it (and drops IRQ 13)
    /// while FERR# is. A board that does not wire FERR# ties it active.
    fn ignne(&self) -> bool {
        true
    }
}

/// A board with nothing on it: ports read as all ones, nothing interrupts, time stands still.
pub struct NoBoard;

impl Board for NoBoard {}

/// Signals to a vCPU from other threads.
#[derive(Default)]
pub struct Events {
    bits: AtomicU32,
    sleep: Mutex<()>,
    wake: Condvar,
    /// Whether there is a kicker.
    kicked: AtomicBool,
    kicker: RwLock<Option<Arc<dyn Kicker>>>,
}

/// What brings a vCPU to look at its event word while the host's hypervisor runs it.
pub trait Kicker: Send + Sync {
    /// Another signal is pending. Called on any thread, also while the vCPU does not run.
    fn kick(&self);
}

/// Leave the run loop and report `Exit::Kick`.
pub const EV_KICK: u32 = 1;
/// The INTR pin is up: the APIC or the PIC has an interrupt to deliver.
pub const EV_INTR: u32 = 2;
/// An NMI is latched.
pub const EV_NMI: u32 = 4;
/// INIT was received.
pub const EV_INIT: u32 = 8;
/// A start-up IPI was received; its vector is in bits 24-31.
pub const EV_SIPI: u32 = 16;
/// The physical address map, the A20 gate or a code page changed: caches must be looked through.
pub const EV_MEMORY: u32 = 32;

/// A faster tier has code ready.
pub const EV_TIER: u32 = 64;
/// Another vCPU wants the machine for itself: stop for a moment.
pub const EV_SYNC: u32 = 128;
/// With [`EV_NMI`]: a second NMI is latched behind the first. It ends no run by itself.
pub const EV_NMI_AGAIN: u32 = 256;
/// A stretch of instructions is over: see [`crate::lockstep`].
pub const EV_STRETCH: u32 = 512;
/// With [`EV_SIPI`]: its vector.
pub const EV_SIPI_VECTOR: u32 = 0xff00_0000;
/// The signals that a vCPU latches itself: saved with it, and forgotten at RESET. The interrupt pin is the local
/// APIC's, and other bits are between threads of the host.
pub const EV_LATCHED: u32 = EV_NMI | EV_NMI_AGAIN | EV_INIT | EV_SIPI | EV_SIPI_VECTOR;

impl Events {
    /// The pending bits.
    #[inline(always)]
    pub fn pending(&self) -> u32 {
        self.bits.load(Ordering::Relaxed)
    }
    /// Where the pending bits are, for generated code.
    pub fn as_ptr(&self) -> *const u32 {
        self.bits.as_ptr()
    }
    /// Sets bits and wakes the vCPU if it sleeps.
    pub fn raise(&self, bits: u32) {
        let before = self.bits.fetch_or(bits, Ordering::SeqCst);
        if before & bits != bits {
            self.notify();
        }
    }
    /// Names who is told of new signals, if somebody is to be.
    pub fn set_kicker(&self, kicker: Option<Arc<dyn Kicker>>) {
        let mut at = self.kicker.write();
        self.kicked.store(kicker.is_some(), Ordering::SeqCst);
        *at = kicker;
    }
    /// Wakes the vCPU, or has it look.
    fn notify(&self) {
        if self.kicked.load(Ordering::SeqCst)
            && let Some(kicker) = &*self.kicker.read()
        {
            kicker.kick();
        }
        drop(self.sleep.lock());
        self.wake.notify_all();
    }
    /// Latches an NMI and wakes the vCPU. A processor takes one and keeps one more that comes meanwhile (SDM volume
    /// 3A, 6.7.1), so of NMIs in a row, of which none has been taken yet, two are.
    pub fn nmi(&self) {
        let latched = |bits| bits | EV_NMI | if bits & EV_NMI != 0 { EV_NMI_AGAIN } else { 0 };
        let before = self.bits.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |bits| Some(latched(bits)));
        if before.is_ok_and(|bits| bits & EV_NMI == 0) {
            self.notify();
        }
    }
    /// The vCPU takes an NMI; one that is latched behind it stays, until NMIs are unblocked.
    pub fn take_nmi(&self) {
        let rest = |bits| bits & !if bits & EV_NMI_AGAIN != 0 { EV_NMI_AGAIN } else { EV_NMI };
        let _ = self.bits.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |bits| Some(rest(bits)));
    }
    /// NMIs are unblocked: of those that came while they were blocked one is left.
    pub fn unblock_nmi(&self) {
        self.take(EV_NMI_AGAIN);
    }
    /// Sets bits without waking the vCPU: it sees them when it runs next.
    pub fn mark(&self, bits: u32) {
        self.bits.fetch_or(bits, Ordering::SeqCst);
    }
    /// Clears bits; returns which of them were set.
    pub fn take(&self, bits: u32) -> u32 {
        self.bits.fetch_and(!bits, Ordering::SeqCst) & bits
    }
    /// Sleeps until one of `mask` is pending, or `timeout` is over.
    pub fn wait(&self, mask: u32, timeout: Option<Duration>) {
        let mut g = self.sleep.lock();
        let end = timeout.map(|t| std::time::Instant::now() + t);
        while self.bits.load(Ordering::SeqCst) & mask == 0 {
            match end {
                None => self.wake.wait(&mut g),
                Some(e) => {
                    if self.wake.wait_until(&mut g, e).timed_out() {
                        return;
                    }
                }
            }
        }
    }
}
