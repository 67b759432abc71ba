//! The local APICs: one [`LocalApic`] per vCPU, and [`LocalApics`], the bus between them, the I/O APIC and the 8259A.
//!
//! Implemented: xAPIC registers (MMIO page, each vCPU its own) and x2APIC MSRs with the state machine of
//! IA32_APIC_BASE; all LVT entries; ICR with all delivery modes, shorthands, physical, flat, cluster and x2APIC
//! destinations; self IPI; lowest-priority arbitration; priorities (TPR, CR8, PPR); EOI broadcast and its suppression;
//! error status; timer one-shot, periodic, TSC deadline; LINT0/LINT1 with ExtINT pass-through of the 8259A ("virtual
//! wire"), also when globally disabled; MSI. On purpose missing: CMCI, remote read, bus arbitration IDs, relocating the
//! ID (read-only, as in current processors).
//!
//! The vCPU: after [`VcpuPins::set_intr`]`(true)` it calls [`LocalApic::acknowledge`] as soon as it can take an
//! interrupt, and gets the vector. `registers` and `timer` are pure; this file adds locks, time and wires.
//!
//! The host's kernel may keep the registers while vCPUs run: `lent`.
//!
//! Locks: one per local APIC, taken after the list's; the pins are called with it held, so that the last call is always
//! the true state. Nothing above in the order (8259A, I/O APIC, other local APICs) is called with it held. See the
//! module `interrupts`.
//!
//! Source: Intel SDM vol. 3A, chapter 11.
mod lent;
mod message;
mod registers;
#[cfg(test)]
mod tests;
mod timer;

pub use message::{ApicBus, ApicMessage, DeliveryMode};
pub use registers::LAPIC_BASE;
pub use timer::TIMER_HZ;

use crate::bus::{Edge, IrqSink};
use crate::clock::{Clock, Nanos, Timer, TimerOwner};
use crate::device::{Device, Invalid, Reset};
use crate::interrupts::EoiSink;
use crate::interrupts::ioapic::Ioapic;
use crate::interrupts::pic::Pic;
use crate::pci::MsiSink;
use lent::Lent;
use message::Shorthand;
use mynah_mmu::interrupts::ApicKeeper;
use parking_lot::{Mutex, MutexGuard, RwLock};
use registers::{Acknowledge, Registers};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use timer::Time;

/// MSR numbers that a local APIC answers (besides 800h-8FFh).
pub const IA32_APIC_BASE: u32 = 0x1B;
/// The TSC deadline MSR.
pub const IA32_TSC_DEADLINE: u32 = 0x6E0;

/// Reads a vCPU's time stamp counter. It is called with the local APIC locked: it must not call the APIC.
pub type ReadTsc = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The vCPU's pins as its local APIC drives them. Calls come from any thread, with the APIC locked: an implementation
/// sets flags and wakes its vCPU, and does not call the APIC.
pub trait VcpuPins: Send + Sync {
    /// Whether there is an interrupt that [`LocalApic::acknowledge`] would deliver now. Called at changes.
    fn set_intr(&self, pending: bool);
    /// A non-maskable interrupt.
    fn nmi(&self);
    /// A system management interrupt.
    fn smi(&self);
    /// INIT: the processor resets and, unless it is the boot processor, waits for a start-up IPI. Its APIC is reset
    /// already.
    fn init(&self);
    /// A start-up IPI: a processor that waits for it starts at physical address `vector` << 12.
    fn sipi(&self, vector: u8);
}

struct State {
    regs: Registers,
    /// What `set_intr` was last told.
    intr: bool,
    /// What the host timer is armed for.
    armed: Option<Nanos>,
    /// Who has the registers, if it is not us.
    keeper: Option<Arc<dyn ApicKeeper>>,
}

/// The local APIC of one vCPU.
pub struct LocalApic {
    id: u32,
    /// It is the boot processor's.
    bsp: bool,
    state: Mutex<State>,
    pins: Arc<dyn VcpuPins>,
    clock: Arc<dyn Clock>,
    timer: Arc<dyn Timer>,
    tsc: ReadTsc,
    tsc_hz: u64,
    bus: Weak<LocalApics>,
}

// Err(()) is "#GP(0)": there is nothing else to say.
#[allow(clippy::result_unit_err)]
impl LocalApic {
    /// The APIC ID given at construction.
    pub fn id(&self) -> u32 {
        self.id
    }

    fn time(&self) -> Time<'_> {
        Time { clock: &*self.clock, tsc: &*self.tsc, tsc_hz: self.tsc_hz }
    }

    /// Has the vCPU be told whether there is an interrupt.
    fn tell(&self, state: &mut State) {
        let intr = match state.keeper {
            None => state.regs.interrupt_pending(),
            // The rest is its keeper's business. As on QEMU's boards the 8259A is the boot processor's.
            Some(_) => self.bsp && state.regs.is_asked_by_pic(),
        };
        if intr != state.intr {
            state.intr = intr;
            self.pins.set_intr(intr);
        }
    }

    /// Does something to the registers and then what follows from it: pins and timer under the lock, the rest after it.
    fn with<R>(&self, f: impl FnOnce(&mut Registers, &Time) -> R) -> R {
        self.with_locked(self.state.lock(), f)
    }

    fn with_locked<R>(
        &self,
        mut state: MutexGuard<'_, State>,
        f: impl FnOnce(&mut Registers, &Time) -> R,
    ) -> R {
        let result = match state.keeper.clone() {
            None => f(&mut state.regs, &self.time()),
            Some(keeper) => self.at_keeper(&mut state, &*keeper, f),
        };
        let out = std::mem::take(&mut state.regs.out);
        if out.init {
            self.pins.init();
        }
        if let Some(vector) = out.sipi {
            self.pins.sipi(vector);
        }
        if out.smi {
            self.pins.smi();
        }
        if out.nmi {
            self.pins.nmi();
        }
        self.tell(&mut state);
        let wakeup = state.regs.timer_wakeup().filter(|_| state.keeper.is_none());
        if wakeup != state.armed {
            state.armed = wakeup;
            self.timer.set(wakeup);
        }
        drop(state);
        if out.ipi.is_none() && out.eoi.is_none() {
            return result;
        }
        if let Some(bus) = self.bus.upgrade() {
            if let Some((shorthand, message)) = out.ipi {
                bus.send(self, shorthand, message);
            }
            if let (Some(vector), Some(sink)) = (out.eoi, bus.eoi.get().and_then(Weak::upgrade)) {
                sink.eoi(vector);
            }
        }
        result
    }

    // The vCPU's side.

    /// The vCPU takes an interrupt: returns its vector, which is now in service (or comes from the 8259A, perhaps as
    /// its spurious vector). None if there is nothing to take any more.
    ///
    /// Then timers deliver what they owe ([`LocalApics::tell_taken`]): their locks may not be held.
    pub fn acknowledge(&self) -> Option<u8> {
        let bus = self.bus.upgrade();
        let is_lent = self.state.lock().keeper.is_some();
        let taken = self.with(|regs, _| match is_lent && !regs.ext_int_pending() {
            true => Acknowledge::Nothing,
            false => regs.acknowledge(),
        });
        let vector = match taken {
            Acknowledge::Vector(v) => v,
            Acknowledge::Nothing => return None,
            Acknowledge::ExtInt => bus.as_ref()?.pic.get()?.upgrade()?.acknowledge(),
        };
        if let Some(bus) = bus {
            bus.late.read().iter().filter_map(Weak::upgrade).for_each(|timer| timer.redeliver());
        }
        Some(vector)
    }

    /// Whether [`LocalApic::acknowledge`] would give an interrupt now.
    pub fn has_interrupt(&self) -> bool {
        self.state.lock().regs.interrupt_pending()
    }

    /// CR8: bits 7-4 of TPR.
    pub fn cr8(&self) -> u8 {
        let state = self.state.lock();
        match state.keeper {
            None => state.regs.tpr() >> 4,
            Some(_) => self.with_locked(state, |regs, _| regs.tpr() >> 4),
        }
    }

    /// Writes CR8: bits 3-0 go to TPR's bits 7-4, whose bits 3-0 become 0.
    pub fn set_cr8(&self, value: u8) {
        self.with(|regs, _| regs.set_tpr(value << 4));
    }

    /// The physical page where this vCPU sees the xAPIC registers; none while the APIC is disabled or in x2APIC mode.
    pub fn mmio_page(&self) -> Option<u64> {
        let state = self.state.lock();
        (state.regs.is_enabled() && !state.regs.is_x2apic())
            .then(|| state.regs.base() & 0x000F_FFFF_FFFF_F000)
    }

    /// Reads from the xAPIC page at `offset` (0-FFFh). Registers are 32 bits wide, on 16-byte boundaries; narrower
    /// reads give a part of one, what is between them reads as 0.
    pub fn mmio_read(&self, offset: u64, size: u8) -> u32 {
        let (n, within) = (offset as u32 >> 4 & 0xFF, offset as u32 & 0xF);
        if within > 3 {
            return 0;
        }
        let value = self.with(|regs, time| regs.mmio_read(n, time)) >> (8 * within);
        match size {
            1 => value & 0xFF,
            2 => value & 0xFFFF,
            _ => value,
        }
    }

    /// Writes to the xAPIC page at `offset` (0-FFFh). Writes that are not 32 bits wide on a 16-byte boundary are
    /// ignored.
    pub fn mmio_write(&self, offset: u64, size: u8, value: u32) {
        if size >= 4 && offset & 0xF == 0 {
            self.with(|regs, time| regs.mmio_write(offset as u32 >> 4 & 0xFF, value, time));
        }
    }

    /// RDMSR of 800h-8FFh, IA32_APIC_BASE or IA32_TSC_DEADLINE; Err is #GP.
    pub fn msr_read(&self, index: u32) -> Result<u64, ()> {
        match index {
            IA32_APIC_BASE => Ok(self.apic_base()),
            IA32_TSC_DEADLINE => Ok(self.tsc_deadline()),
            0x800..=0x8FF => self.with(|regs, time| regs.msr_read(index - 0x800, time)),
            _ => Err(()),
        }
    }

    /// WRMSR of 800h-8FFh, IA32_APIC_BASE or IA32_TSC_DEADLINE; Err is #GP.
    pub fn msr_write(&self, index: u32, value: u64) -> Result<(), ()> {
        match index {
            IA32_APIC_BASE => self.set_apic_base(value),
            IA32_TSC_DEADLINE => {
                self.set_tsc_deadline(value);
                Ok(())
            }
            0x800..=0x8FF => self.with(|regs, time| regs.msr_write(index - 0x800, value, time)),
            _ => Err(()),
        }
    }

    /// IA32_APIC_BASE: base address, enable (bit 11), x2APIC (bit 10), boot processor (bit 8).
    pub fn apic_base(&self) -> u64 {
        self.state.lock().regs.base()
    }

    /// Writes IA32_APIC_BASE. Err, which is #GP, for reserved bits (those above bit 51; the processor knows its own
    /// MAXPHYADDR) and for transitions that the mode's state machine does not have.
    pub fn set_apic_base(&self, value: u64) -> Result<(), ()> {
        self.with(|regs, _| regs.set_base(value))
    }

    /// IA32_TSC_DEADLINE: 0 unless armed.
    pub fn tsc_deadline(&self) -> u64 {
        self.with(|regs, time| regs.tsc_deadline(time))
    }

    /// Writes IA32_TSC_DEADLINE, in units of the vCPU's TSC.
    pub fn set_tsc_deadline(&self, value: u64) {
        self.with(|regs, time| regs.set_tsc_deadline(value, time));
    }

    /// To be called after the vCPU's TSC was set to something else: a pending deadline comes at another time then.
    pub fn tsc_changed(&self) {
        let state = self.state.lock();
        if state.keeper.is_none() {
            self.with_locked(state, |regs, time| regs.tsc_changed(time));
        }
    }

    /// The performance counters overflow: what their LVT entry says happens.
    pub fn performance_event(&self) {
        self.with(|regs, _| regs.performance_event());
    }

    /// What PC firmware does to the boot processor's APIC before it starts a system: enables it (spurious vector FFh),
    /// LINT0 as ExtINT, LINT1 as NMI. For boards that boot without firmware.
    pub fn enter_virtual_wire(&self) {
        self.with(|regs, _| regs.virtual_wire());
    }

    // The bus's side.

    /// A wire that ends at every processor changes.
    fn wire(&self, line: usize, level: bool) {
        let mut state = self.state.lock();
        if state.keeper.is_some() {
            state.regs.note_lint(line, level);
            self.tell(&mut state);
            return;
        }
        self.with_locked(state, |regs, _| regs.set_lint(line, level));
    }

    fn accept(&self, message: &ApicMessage) -> bool {
        let state = self.state.lock();
        if let Some(keeper) = &state.keeper {
            return lent::deliver(
                &**keeper,
                &ApicMessage { destination: self.id, logical: false, ..*message },
            );
        }
        self.with_locked(state, |regs, _| regs.accept(message))
    }

    /// It is with us, for what needs all of it.
    fn at_home(&self) {
        if let Some(bus) = self.bus.upgrade() {
            bus.take_back();
        }
    }

    fn is_addressed(&self, message: &ApicMessage) -> bool {
        if message.logical {
            self.state.lock().regs.matches_logical(message.destination)
        } else {
            message.destination == self.id || message.destination == u32::MAX
        }
    }
}

impl TimerOwner for LocalApic {
    /// It may be early if the timer was armed anew in the meantime, which is seen from the registers.
    fn expired(&self) {
        let mut state = self.state.lock();
        state.armed = None;
        if state.keeper.is_none() {
            self.with_locked(state, |regs, time| regs.settle_timer(time));
        }
    }
}

/// What is saved of a local APIC.
#[derive(Serialize, Deserialize)]
pub struct LocalApicV1 {
    regs: Registers,
    intr: bool,
    timer: Option<Nanos>,
}

impl Device for LocalApic {
    type State = LocalApicV1;
    const KIND: &'static str = "apic";

    fn reset(&self, _: Reset) {
        self.at_home();
        self.with(|regs, _| regs.reset(self.bsp));
    }

    /// The machine stands still, as the registers come back here.
    fn save(&self) -> LocalApicV1 {
        self.at_home();
        self.shown()
    }

    /// Of one that is lent, as it was when its vCPU last had it looked at ([`LocalApics::look`]).
    fn shown(&self) -> LocalApicV1 {
        let State { regs, intr, .. } = &*self.state.lock();
        LocalApicV1 { regs: regs.clone(), intr: *intr, timer: self.timer.deadline() }
    }

    fn restore(&self, LocalApicV1 { regs, intr, timer }: LocalApicV1) -> Result<(), Invalid> {
        regs.check(self.id)?;
        self.at_home();
        let mut now = self.state.lock();
        *now = State { regs, intr, armed: timer, keeper: None };
        self.timer.set(timer);
        // The wire's other end has no memory of its own: it is a bit of the vCPU's events.
        self.pins.set_intr(intr);
        Ok(())
    }
}

/// A timer whose edges come one after the other to a processor that is late: the next one when the one before was
/// taken.
pub trait Redeliver: Send + Sync {
    /// A processor has taken an interrupt: if it was this timer's, an edge that is owed can be delivered. No lock may be
    /// held.
    fn redeliver(&self);
}

/// All local APICs of a machine: takes messages ([`ApicBus`]) and the wires that end at every processor ([`IrqSink`]:
/// line 0 is INTR, to LINT0; line 1 is NMI, to LINT1).
pub struct LocalApics {
    clock: Arc<dyn Clock>,
    tsc_hz: u64,
    apics: RwLock<Vec<Arc<LocalApic>>>,
    pic: OnceLock<Weak<Pic>>,
    ioapic: OnceLock<Weak<Ioapic>>,
    eoi: OnceLock<Weak<dyn EoiSink>>,
    late: RwLock<Vec<Weak<dyn Redeliver>>>,
    /// Where the search for the lowest priority starts, so that equals take turns.
    turn: AtomicUsize,
    /// They are lent and taken back one after the other. Its lock comes before all others here.
    turns: Mutex<()>,
    /// Who keeps them. Its lock comes before the list's.
    lent: RwLock<Lent>,
    all_lent: AtomicBool,
    /// What the I/O APICs' pins send, where that is a level.
    levels: Mutex<BTreeMap<u32, ApicMessage>>,
}

impl LocalApics {
    /// A bus without processors. `tsc_hz` is the rate of the vCPUs' time stamp counters.
    pub fn new(clock: Arc<dyn Clock>, tsc_hz: u64) -> Arc<Self> {
        Arc::new(Self {
            clock,
            tsc_hz,
            apics: RwLock::default(),
            pic: OnceLock::new(),
            ioapic: OnceLock::new(),
            eoi: OnceLock::new(),
            late: RwLock::default(),
            turn: AtomicUsize::new(0),
            turns: Mutex::default(),
            lent: RwLock::default(),
            all_lent: AtomicBool::new(false),
            levels: Mutex::default(),
        })
    }

    /// Adds a vCPU's local APIC. `bsp` marks the boot processor. It comes up as after RESET (software-disabled, LINT
    /// pins masked).
    pub fn add(
        self: &Arc<Self>,
        id: u32,
        bsp: bool,
        tsc: ReadTsc,
        pins: Arc<dyn VcpuPins>,
    ) -> Arc<LocalApic> {
        let apic = Arc::new_cyclic(|me: &Weak<LocalApic>| LocalApic {
            id,
            bsp,
            state: Mutex::new(State {
                regs: Registers::new(id, bsp),
                intr: false,
                armed: None,
                keeper: None,
            }),
            pins,
            clock: self.clock.clone(),
            timer: self.clock.timer(me.clone()),
            tsc,
            tsc_hz: self.tsc_hz,
            bus: Arc::downgrade(self),
        });
        self.apics.write().push(apic.clone());
        apic
    }

    /// Names the 8259A that gives ExtINT vectors. Once.
    pub fn connect_pic(&self, pic: &Arc<Pic>) {
        let _ = self.pic.set(Arc::downgrade(pic));
    }

    /// Names the I/O APIC that is told of EOIs. Once.
    pub fn connect_eoi(&self, sink: Weak<dyn EoiSink>) {
        let _ = self.eoi.set(sink);
    }

    /// Has a timer told whenever a vCPU takes an interrupt.
    pub fn tell_taken<T: Redeliver + 'static>(&self, timer: &Arc<T>) {
        let timer: Arc<dyn Redeliver> = timer.clone();
        self.late.write().push(Arc::downgrade(&timer));
    }

    fn deliver_where(&self, message: &ApicMessage, addressed: impl Fn(&LocalApic) -> bool) -> bool {
        let apics = self.apics.read();
        if message.mode != DeliveryMode::LowestPriority {
            let mut accepted = false;
            for apic in apics.iter().filter(|a| addressed(a)) {
                accepted |= apic.accept(message);
            }
            return accepted;
        }
        let start = self.turn.fetch_add(1, Ordering::Relaxed) % apics.len().max(1);
        let in_turn = apics[start..].iter().chain(&apics[..start]);
        let priority = |a: &&Arc<LocalApic>| {
            let state = a.state.lock();
            state.regs.can_arbitrate().then(|| state.regs.ppr())
        };
        in_turn
            .filter(|a| addressed(a))
            .filter_map(|a| Some((priority(&a)?, a)))
            .min_by_key(|(priority, _)| *priority)
            .is_some_and(|(_, apic)| apic.accept(message))
    }

    fn send(&self, from: &LocalApic, shorthand: Shorthand, message: ApicMessage) {
        match shorthand {
            Shorthand::None => self.deliver(message),
            Shorthand::Myself => from.accept(&message),
            Shorthand::All => self.deliver_where(&message, |_| true),
            Shorthand::Others => self.deliver_where(&message, |a| !std::ptr::eq(a, from)),
        };
    }
}

/// What is saved of the bus between local APICs: whose turn it is.
#[derive(Serialize, Deserialize)]
pub struct LocalApicsV1 {
    turn: u64,
}

impl Device for LocalApics {
    type State = LocalApicsV1;
    const KIND: &'static str = "apic-bus";

    fn reset(&self, _: Reset) {
        self.turn.store(0, Ordering::Relaxed);
    }

    fn save(&self) -> LocalApicsV1 {
        LocalApicsV1 { turn: self.turn.load(Ordering::Relaxed) as u64 }
    }

    fn restore(&self, LocalApicsV1 { turn }: LocalApicsV1) -> Result<(), Invalid> {
        self.turn.store(turn as usize, Ordering::Relaxed);
        Ok(())
    }
}

impl MsiSink for LocalApics {
    fn msi(&self, address: u64, data: u32) {
        self.deliver(ApicMessage::from_msi(address, data));
    }
}

impl ApicBus for LocalApics {
    fn deliver(&self, message: ApicMessage) -> bool {
        match self.deliver_away(&message) {
            Some(accepted) => accepted,
            None => self.deliver_where(&message, |apic| apic.is_addressed(&message)),
        }
    }

    fn pin_sends(&self, pin: u32, message: Option<ApicMessage>) {
        LocalApics::pin_sends(self, pin, message);
    }

    fn edge(&self, message: &ApicMessage) -> Edge {
        // Nobody says of one that is kept elsewhere when its edges are taken.
        let away = self.all_lent.load(Ordering::SeqCst);
        if away || !matches!(message.mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority) {
            return Edge::Uncounted;
        }
        let apics = self.apics.read();
        let addressed = apics.iter().filter(|a| a.is_addressed(message));
        addressed.map(|a| a.state.lock().regs.edge(message.vector)).max().unwrap_or(Edge::Uncounted)
    }
}

impl IrqSink for LocalApics {
    fn set(&self, line: u32, level: bool) {
        for apic in self.apics.read().iter() {
            apic.wire(line as usize, level);
        }
    }
}
