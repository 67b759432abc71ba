//! Local APICs that somebody else keeps while vCPUs run: the host's kernel (KVM's `kernel-irqchip=split`).
//!
//! All of a machine's are lent, or none: processors send each other interrupts without asking us then. They are lent
//! one after the other, by vCPUs that are about to run, of which none does before all are ([`LocalApic::lend`]); and
//! taken back together, while no vCPU runs ([`LocalApics::take_back`]). What is saved, reset or handed to another
//! engine is taken back before. While they are lent messages go to the keeper, and registers are asked of it, by the
//! vCPU's own thread alone: nobody else knows that the vCPU does not run. Who wants to see them has the vCPUs look
//! ([`LocalApics::look`]). A keeper that has the 8259A pair and the first I/O APIC as well ([`ApicKeeper::chips`]) gets
//! these when it has all local APICs: their inputs go to it one by one then, and what software does to their registers
//! it does there. An access that comes to us all the same, as from an instruction that is interpreted, is made on a
//! copy, which is put back.
//!
//! What goes along are the registers as software sees them. Periodic interrupts that are owed to a late guest are
//! forgotten, of errors only those that ESR shows go, and the initial count of a timer that has run out reads as 0
//! there (the kernel would start the timer by it).
use super::registers::{Registers, reg};
use super::timer::{Mode, Time};
use super::{LocalApic, LocalApics, State};
use crate::interrupts::ioapic::Ioapic;
use crate::interrupts::lapic::message::ApicMessage;
use mynah_mmu::interrupts::{ApicImage, ApicKeeper, ChipKeeper, REGISTERS};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// Whether somebody has written a register between these two: a count that has gone on is no difference.
fn differ(after: &ApicImage, before: &ApicImage) -> bool {
    let current = reg::TIMER_CURRENT as usize;
    let mut then = before.clone();
    if after.page[current] < then.page[current] {
        then.page[current] = after.page[current];
    }
    *after != then
}

/// Has a keeper deliver a message to whichever of the machine's local APICs it is for; whether one has accepted it.
pub(super) fn deliver(keeper: &dyn ApicKeeper, message: &ApicMessage) -> bool {
    let (address, data) = message.to_msi();
    keeper.message(address, data)
}

/// Who keeps the local APICs, by their order.
#[derive(Default)]
pub(super) struct Lent {
    keepers: Vec<Arc<dyn ApicKeeper>>,
}

impl Registers {
    /// The registers as software sees them.
    pub fn image(&mut self, time: &Time) -> ApicImage {
        let mut page = [0; REGISTERS];
        let (initial, current) = (reg::TIMER_INITIAL as usize, reg::TIMER_CURRENT as usize);
        // First, and once: to look at the count is to take account of the time, and of an interrupt that is due by it.
        page[current] = self.peek(reg::TIMER_CURRENT, time);
        for (n, at) in (0..).zip(&mut page).filter(|(n, _)| *n != reg::TIMER_CURRENT) {
            *at = self.peek(n, time);
        }
        let mode = Mode::of(page[reg::LVT_TIMER as usize]);
        if mode.counts() {
            match self.timer_runs() {
                true => page[current] = page[current].max(1),
                false => (page[initial], page[current]) = (0, 0),
            }
        }
        ApicImage { base: self.base(), page, tsc_deadline: self.deadline() }
    }

    /// Takes them on. Pins, and what is owed, stay.
    pub fn take_on(&mut self, image: &ApicImage, time: &Time) {
        let at = |n: u32| image.page[n as usize];
        self.take_on_registers(image);
        let count = (at(reg::TIMER_INITIAL), at(reg::TIMER_CURRENT), at(reg::TIMER_DIVIDE));
        self.take_on_timer(count, image.tsc_deadline, time);
    }
}

impl LocalApic {
    /// Has `keeper` keep this local APIC from now on, unless one does already; whether all of the machine are kept by
    /// somebody, without which none of the vCPUs may run there.
    pub fn lend(&self, keeper: &Arc<dyn ApicKeeper>) -> bool {
        let Some(bus) = self.bus.upgrade() else { return true };
        if bus.all_lent.load(Ordering::SeqCst) {
            return true;
        }
        let _turn = bus.turns.lock();
        // Another vCPU's thread may have lent the last one meanwhile.
        if bus.all_lent.load(Ordering::SeqCst) {
            return true;
        }
        let Some(first) = self.lend_one(&bus, keeper) else { return false };
        if let Some(chips) = first.chips() {
            bus.lend_chips(&chips);
        }
        bus.all_lent.store(true, Ordering::SeqCst);
        true
    }

    /// Lends this one; the first keeper, when all are lent.
    fn lend_one(&self, bus: &LocalApics, keeper: &Arc<dyn ApicKeeper>) -> Option<Arc<dyn ApicKeeper>> {
        let mut lent = bus.lent.write();
        let all = bus.apics.read().len();
        let mut state = self.state.lock();
        if state.keeper.is_none() {
            let time = self.time();
            let image = state.regs.image(&time);
            keeper.put(&image, true);
            state.keeper = Some(keeper.clone());
            // It has no time of its own, and asks for the 8259A only.
            if state.armed.take().is_some() {
                self.timer.set(None);
            }
            self.tell(&mut state);
            if lent.keepers.is_empty() {
                keeper.levels(&bus.levels());
            }
            lent.keepers.push(keeper.clone());
        }
        lent.keepers.first().filter(|_| lent.keepers.len() == all).cloned()
    }

    /// The keeper has ended a level-triggered interrupt.
    pub fn ended(&self, vector: u8) {
        let sink = self.bus.upgrade().and_then(|bus| bus.eoi.get()?.upgrade());
        if let Some(sink) = sink {
            sink.eoi(vector);
        }
    }

    /// Does something to the registers of a local APIC that is lent, for its vCPU, which does not run there.
    pub(super) fn at_keeper<R>(
        &self,
        state: &mut State,
        keeper: &dyn ApicKeeper,
        f: impl FnOnce(&mut Registers, &Time) -> R,
    ) -> R {
        let time = self.time();
        if let Some(image) = keeper.get() {
            state.regs.take_on(&image, &time);
        }
        let before = state.regs.image(&time);
        let result = f(&mut state.regs, &time);
        let after = state.regs.image(&time);
        if differ(&after, &before) {
            keeper.put(&after, false);
        }
        result
    }

    /// The registers here become those at the keeper's, where they stay. The vCPU does not run.
    fn look(&self) {
        let mut state = self.state.lock();
        let Some(image) = state.keeper.as_ref().and_then(|keeper| keeper.get()) else { return };
        state.regs.take_on(&image, &self.time());
    }

    fn taken_back(&self) {
        let mut state = self.state.lock();
        let Some(keeper) = state.keeper.take() else { return };
        let time = self.time();
        match keeper.get() {
            Some(image) => state.regs.take_on(&image, &time),
            None => tracing::error!("the state of a local APIC cannot be had from the host's kernel"),
        }
        let signals = keeper.take_signals();
        if signals.init {
            state.regs.init();
            self.pins.init();
        }
        if let Some(vector) = signals.sipi {
            self.pins.sipi(vector);
        }
        (0..signals.nmis).for_each(|_| self.pins.nmi());
        self.with_locked(state, |regs, time| regs.settle_timer(time));
    }
}

impl LocalApics {
    /// All that are lent come back. No vCPU runs.
    pub fn take_back(&self) {
        let _turn = self.turns.lock();
        if self.lent.read().keepers.is_empty() {
            return;
        }
        self.all_lent.store(false, Ordering::SeqCst);
        // First, as their locks are above the list's.
        if let Some(pic) = self.pic.get().and_then(Weak::upgrade) {
            pic.take_back();
        }
        if let Some(ioapic) = self.ioapic.get().and_then(Weak::upgrade) {
            ioapic.take_back();
        }
        let mut lent = self.lent.write();
        lent.keepers.clear();
        self.apics.read().iter().for_each(|apic| apic.taken_back());
    }

    /// For the vCPU in `seat`, which does not run: what is shown of its local APIC is from now on as it is, wherever it is
    /// kept.
    pub fn look(&self, seat: usize) {
        let apic = self.apics.read().get(seat).cloned();
        apic.iter().for_each(|apic| apic.look());
    }

    /// Whether all are kept by somebody.
    pub fn are_lent(&self) -> bool {
        self.all_lent.load(Ordering::SeqCst)
    }

    /// Names the I/O APIC that a keeper may have as well. Once.
    pub fn connect_ioapic(&self, ioapic: &Arc<Ioapic>) {
        let _ = self.ioapic.set(Arc::downgrade(ioapic));
    }

    fn lend_chips(&self, keeper: &Arc<dyn ChipKeeper>) {
        if let Some(pic) = self.pic.get().and_then(Weak::upgrade) {
            pic.lend(keeper);
        }
        if let Some(ioapic) = self.ioapic.get().and_then(Weak::upgrade) {
            ioapic.lend(keeper);
        }
    }

    /// Delivers a message to those who keep all local APICs, if somebody does.
    pub(super) fn deliver_away(&self, message: &ApicMessage) -> Option<bool> {
        if !self.all_lent.load(Ordering::SeqCst) {
            return None;
        }
        let lent = self.lent.read();
        // It may have been taken back meanwhile.
        let all = self.all_lent.load(Ordering::SeqCst);
        lent.keepers.first().filter(|_| all).map(|keeper| deliver(&**keeper, message))
    }

    /// The messages of level-triggered pins, as a keeper takes them.
    fn levels(&self) -> Vec<(u32, u64, u32)> {
        let levels = self.levels.lock();
        let writes = levels.iter().map(|(pin, message)| {
            let (address, data) = message.to_msi();
            (*pin, address, data)
        });
        writes.collect()
    }

    /// What a pin of an I/O APIC sends has changed.
    pub(super) fn pin_sends(&self, pin: u32, message: Option<ApicMessage>) {
        let mut levels = self.levels.lock();
        let before = match message.filter(|m| m.level) {
            Some(message) => levels.insert(pin, message),
            None => levels.remove(&pin),
        };
        if before == message.filter(|m| m.level) {
            return;
        }
        drop(levels);
        if let Some(keeper) = self.lent.read().keepers.first() {
            keeper.levels(&self.levels());
        }
    }
}
