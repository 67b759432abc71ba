//! Port 92h, system control port A: fast A20 (bit 1) and fast reset (bit 0). The other bits are storage.
//!
//! The A20 bit is the machine's one gate, so it shows what the keyboard controller did to it.
//!
//! Source: IBM PS/2 Hardware Interface Technical Reference (1990), System Control Port A.
use crate::bus::{PortBus, PortIo, open_bus};
use crate::device::{Device, Invalid, Reset};
use crate::events::{A20Gate, MachineEvents, ResetCause};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The port.
pub const PORT: u16 = 0x92;
const RESET: u8 = 1 << 0;
const A20: u8 = 1 << 1;

/// System control port A.
pub struct Port92 {
    value: Mutex<u8>,
    a20: Arc<A20Gate>,
    events: Arc<dyn MachineEvents>,
}

impl Port92 {
    /// The port, on the machine's A20 gate.
    pub fn new(a20: Arc<A20Gate>, events: Arc<dyn MachineEvents>) -> Arc<Self> {
        Arc::new(Self { value: Mutex::new(0), a20, events })
    }

    /// Puts the port on the bus.
    pub fn attach(self: &Arc<Self>, bus: &PortBus) {
        bus.map(PORT, 1, self.clone());
    }
}

impl PortIo for Port92 {
    fn read(&self, _: u16, size: u8) -> u32 {
        let a20 = if self.a20.is_open() { A20 } else { 0 };
        open_bus(size) & !0xff | u32::from(*self.value.lock() & !A20 | a20)
    }

    fn write(&self, _: u16, _: u8, value: u32) {
        let value = value as u8;
        let before = std::mem::replace(&mut *self.value.lock(), value);
        self.a20.set(value & A20 != 0);
        if value & !before & RESET != 0 {
            self.events.reset(ResetCause::Port92);
        }
    }
}

/// What is saved of the port; the gate is saved by itself.
#[derive(Serialize, Deserialize)]
pub struct Port92V1 {
    value: u8,
}

impl Device for Port92 {
    type State = Port92V1;
    const KIND: &'static str = "port92";

    fn reset(&self, _: Reset) {
        *self.value.lock() = 0;
    }

    fn save(&self) -> Port92V1 {
        Port92V1 { value: *self.value.lock() }
    }

    fn restore(&self, Port92V1 { value }: Port92V1) -> Result<(), Invalid> {
        *self.value.lock() = value;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::testing::{Recorder, hammer};

    #[test]
    fn it_operates_the_gate_and_shows_it() {
        let events = Recorder::new();
        let gate = A20Gate::new(false, events.clone());
        let port = Port92::new(gate.clone(), events.clone());
        port.write(0, 1, 2);
        assert_eq!((events.take(), port.read(0, 1)), (vec!["a20 true".to_owned()], 2));
        gate.set(false);
        assert_eq!(port.read(0, 1), 0);
    }

    #[test]
    fn a_rising_reset_bit_resets_once() {
        let events = Recorder::new();
        let port = Port92::new(A20Gate::new(true, events.clone()), events.clone());
        port.write(0, 1, 3);
        port.write(0, 1, 3);
        assert_eq!(events.take(), ["reset Port92"]);
    }

    #[test]
    fn no_access_of_any_width_panics() {
        let events = Recorder::new();
        hammer(&*Port92::new(A20Gate::new(true, events.clone()), events), 4);
    }
}
