//! The x87's error wires as a PC/AT has them: FERR# to IRQ 13, and port F0h to IGNNE#.
//!
//! ```text
//!   CPU FERR#  --> latch --> IRQ 13     write to F0h: the latch is cleared, IGNNE# asserted
//!   CPU IGNNE# <-- latch                FERR# goes away: IGNNE# is dropped
//! ```
//!
//! With CR0.NE clear an unmasked x87 exception does not raise #MF but asserts FERR#; the next waiting instruction stops
//! until the interrupt's handler has written to F0h. Port F1h (reset the coprocessor) does nothing, as on the 387 and
//! later.
//!
//! Source: Intel 82371SB (PIIX3) data sheet (290550-002), 3.5 "Coprocessor error"; SDM volume 1, appendix D.
use crate::aml::{Fragment, IrqNoFlags, io};
use crate::bus::{Irq, PortBus, PortIo, open_bus};
use crate::device::{Device, Invalid, Reset};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The first of two ports.
pub const PORT: u16 = 0xf0;

#[derive(Clone, Default, Serialize, Deserialize)]
struct State {
    ferr: bool,
    ignne: bool,
}

/// The latch between FERR#, IRQ 13 and IGNNE#.
pub struct Ferr {
    irq: Irq,
    state: Mutex<State>,
}

impl Ferr {
    /// A latch that drives `irq` (ISA interrupt 13).
    pub fn new(irq: Irq) -> Arc<Self> {
        Arc::new(Self { irq, state: Mutex::default() })
    }

    /// Puts ports F0h and F1h on the bus.
    pub fn attach(self: &Arc<Self>, bus: &PortBus) {
        bus.map(PORT, 2, self.clone());
    }

    /// FERR# goes up or down.
    pub fn ferr(&self, asserted: bool) {
        let mut state = self.state.lock();
        if asserted && !state.ferr {
            self.irq.set(true);
        }
        if !asserted {
            state.ignne = false;
            self.irq.set(false);
        }
        state.ferr = asserted;
    }

    /// Whether IGNNE# is asserted.
    pub fn ignne(&self) -> bool {
        self.state.lock().ignne
    }
}

impl PortIo for Ferr {
    fn read(&self, _: u16, size: u8) -> u32 {
        open_bus(size)
    }

    fn write(&self, offset: u16, _: u8, _: u32) {
        if offset != 0 {
            return;
        }
        let mut state = self.state.lock();
        self.irq.set(false);
        // IGNNE# lasts as long as the error that it is to ignore.
        state.ignne = state.ferr;
    }
}

/// What is saved of the latch.
#[derive(Serialize, Deserialize)]
pub struct FerrV1 {
    state: State,
    irq13: bool,
}

impl Device for Ferr {
    type State = FerrV1;
    const KIND: &'static str = "ferr";

    fn aml(&self) -> Option<Fragment> {
        Some(Fragment::isa("FPU_", "PNP0C04", vec![&io(0xf0, 16), &IrqNoFlags(13)]))
    }

    fn reset(&self, _: Reset) {
        let mut state = self.state.lock();
        *state = State::default();
        self.irq.set(false);
    }

    fn save(&self) -> FerrV1 {
        FerrV1 { state: self.state.lock().clone(), irq13: self.irq.level() }
    }

    fn restore(&self, FerrV1 { state, irq13 }: FerrV1) -> Result<(), Invalid> {
        let mut now = self.state.lock();
        *now = state;
        self.irq.restore(irq13);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::IrqSink;
    use crate::events::testing::hammer;

    #[derive(Default)]
    struct Pin(Mutex<bool>);
    impl IrqSink for Pin {
        fn set(&self, _: u32, level: bool) {
            *self.0.lock() = level;
        }
    }

    #[test]
    fn an_error_interrupts_until_it_is_acknowledged_and_is_ignored_until_it_goes() {
        let pin = Arc::new(Pin::default());
        let chip = Ferr::new(Irq::new(pin.clone(), 13));
        let irq = || *pin.0.lock();
        chip.write(0, 1, 0);
        assert!(!irq() && !chip.ignne(), "nothing to ignore");
        chip.ferr(true);
        assert!(irq() && !chip.ignne());
        chip.write(1, 1, 0);
        assert!(irq(), "F1h is not the latch");
        chip.write(0, 1, 0);
        assert!(!irq() && chip.ignne());
        chip.ferr(false);
        assert!(!irq() && !chip.ignne());
        chip.ferr(true);
        chip.reset(Reset::Board);
        assert!(!irq() && !chip.ignne());
        hammer(&*chip, 2);
    }
}
