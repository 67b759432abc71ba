//! The I/O APIC where somebody else keeps it: see [`crate::interrupts::lapic`].
use super::{Ioapic, IoapicV1, LEVEL, PINS, REMOTE_IRR, State, WRITABLE};
use mynah_mmu::interrupts::{ChipKeeper, IoapicImage};
use std::sync::Arc;

impl IoapicV1 {
    fn image(&self) -> IoapicImage {
        let is_level = |pin: &usize| self.redirection[*pin] & LEVEL != 0;
        let levels = (0..PINS).filter(is_level).fold(0, |levels, pin| levels | 1 << pin);
        IoapicImage {
            id: (self.id >> 24) as u8,
            index: self.index,
            redirection: self.redirection,
            levels: self.lines & levels,
        }
    }

    /// Takes it on, but for the pins.
    fn take_on(&mut self, image: &IoapicImage) {
        self.id = u32::from(image.id & 0xf) << 24;
        self.index = image.index;
        self.redirection = image.redirection.map(|entry| entry & (WRITABLE | REMOTE_IRR));
        for entry in &mut self.redirection {
            if *entry & LEVEL == 0 {
                *entry &= !REMOTE_IRR;
            }
        }
    }

    /// As it is at the keeper's.
    pub(super) fn seen_at(&self, keeper: &dyn ChipKeeper) -> Self {
        let mut now = self.clone();
        if let Some(image) = keeper.ioapic() {
            now.take_on(&image);
        }
        now
    }
}

impl State {
    /// Does something to the registers at the keeper's, if one has them.
    pub(super) fn change<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        let Some(keeper) = self.keeper.clone() else { return f(self) };
        if let Some(image) = keeper.ioapic() {
            self.regs.take_on(&image);
        }
        let before = self.regs.image();
        let result = f(self);
        let after = self.regs.image();
        if after != before {
            keeper.put_ioapic(&after);
        }
        result
    }
}

impl Ioapic {
    /// `keeper` keeps it from now on.
    pub(in crate::interrupts) fn lend(&self, keeper: &Arc<dyn ChipKeeper>) {
        let mut state = self.state.lock();
        keeper.put_ioapic(&state.regs.image());
        state.keeper = Some(keeper.clone());
    }

    /// It comes back, if it was lent. No vCPU runs.
    pub(in crate::interrupts) fn take_back(&self) {
        let mut state = self.state.lock();
        let Some(keeper) = state.keeper.take() else { return };
        match keeper.ioapic() {
            Some(image) => state.regs.take_on(&image),
            None => tracing::error!("the state of the I/O APIC cannot be had from the host's kernel"),
        }
        self.tell_all(&state.regs);
        // A level that the keeper was about to send.
        (0..PINS).for_each(|pin| self.send(&mut state, pin, false));
    }
}
