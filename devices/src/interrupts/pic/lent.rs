//! The pair where somebody else keeps it: see [`crate::interrupts::lapic`].
//!
//! A keeper has no level triggering by ICW1 and no single chips: what ICW1 says of these stays with us.
use super::{CASCADE, Chip, Expect, ICW1_IC4, ICW4_AEOI, ICW4_SFNM, Pair, Pic, State};
use mynah_mmu::interrupts::{ChipKeeper, PicImage};
use std::sync::Arc;

impl Chip {
    fn image(&self) -> PicImage {
        PicImage {
            lines: self.lines,
            irr: self.irr,
            imr: self.imr,
            isr: self.isr,
            top: self.top,
            vector: self.vector,
            read_isr: self.read_isr,
            poll: self.poll,
            special_mask: self.special_mask,
            expects: match self.expect {
                Expect::Ocw1 => 0,
                Expect::Icw2 => 2,
                Expect::Icw3 => 3,
                Expect::Icw4 => 4,
            },
            auto_eoi: self.icw4 & ICW4_AEOI != 0,
            rotate_on_auto_eoi: self.rotate_on_aeoi,
            special_fully_nested: self.icw4 & ICW4_SFNM != 0,
            has_icw4: self.icw1 & ICW1_IC4 != 0,
            elcr: self.elcr,
        }
    }

    /// Takes it on, but for the inputs.
    fn take_on(&mut self, image: &PicImage) {
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        self.imr = image.imr;
        self.isr = image.isr;
        self.top = image.top & 7;
        self.vector = image.vector & 0xf8;
        self.read_isr = image.read_isr;
        self.poll = image.poll;
        self.special_mask = image.special_mask;
        self.expect = match image.expects {
            2 => Expect::Icw2,
            3 => Expect::Icw3,
            4 => Expect::Icw4,
            _ => Expect::Ocw1,
        };
        self.rotate_on_aeoi = image.rotate_on_auto_eoi;
        self.icw4 = self.icw4 & !(ICW4_AEOI | ICW4_SFNM)
            | bit(image.auto_eoi, ICW4_AEOI)
            | bit(image.special_fully_nested, ICW4_SFNM);
        self.icw1 = self.icw1 & !ICW1_IC4 | bit(image.has_icw4, ICW1_IC4);
        self.elcr = image.elcr & super::ELCR_MASK[usize::from(!self.is_master)];
        self.irr = image.irr & !self.level() | self.lines & self.level();
    }
}

impl Pair {
    fn images(&self) -> [PicImage; 2] {
        let mut master = self.master.image();
        // There, too, the wire between them makes an edge.
        master.lines &= !(1 << CASCADE);
        [master, self.slave.image()]
    }

    fn take_on(&mut self, images: &[PicImage; 2]) {
        self.master.take_on(&images[0]);
        self.slave.take_on(&images[1]);
        self.cascade();
    }

    /// Does something to the registers at the keeper's.
    pub(super) fn at_keeper<R>(&mut self, keeper: &dyn ChipKeeper, f: impl FnOnce(&mut Self) -> R) -> R {
        if let Some(images) = keeper.pic() {
            self.take_on(&images);
        }
        let before = self.images();
        let result = f(self);
        self.cascade();
        let after = self.images();
        if after != before {
            keeper.put_pic(&after);
        }
        result
    }

    /// The keeper is told of an input, too.
    pub(super) fn note_line(&mut self, line: u32, level: bool) {
        let (chip, n) = if line < 8 { (&mut self.master, line) } else { (&mut self.slave, line - 8) };
        let bit = 1 << (n & 7);
        chip.lines = if level { chip.lines | bit } else { chip.lines & !bit };
    }

    /// As it is at the keeper's.
    pub(super) fn seen_at(&self, keeper: &dyn ChipKeeper) -> Self {
        let mut now = self.clone();
        if let Some(images) = keeper.pic() {
            now.take_on(&images);
        }
        now
    }
}

impl Pic {
    /// `keeper` keeps the pair from now on, and asks the processor for it.
    pub(in crate::interrupts) fn lend(&self, keeper: &Arc<dyn ChipKeeper>) {
        let mut state = self.state.lock();
        keeper.put_pic(&state.pair.images());
        state.keeper = Some(keeper.clone());
        self.out.set(false);
    }

    /// It comes back, if it was lent. No vCPU runs.
    pub(in crate::interrupts) fn take_back(&self) {
        let mut state = self.state.lock();
        let State { pair, keeper } = &mut *state;
        let Some(keeper) = keeper.take() else { return };
        match keeper.pic() {
            Some(images) => pair.take_on(&images),
            None => tracing::error!("the state of the 8259A pair cannot be had from the host's kernel"),
        }
        self.out.set(pair.master.request().is_some());
    }
}
