//! isa-debug-exit: a write of `value` ends the process with status `(value << 1) | 1`, which is never 0.
//!
//! Source: QEMU's device of that name and its options `iobase` and `iosize`.
use crate::bus::{PortBus, PortIo};
use crate::device::{Device, Invalid, Reset};
use crate::events::MachineEvents;
use crate::kind::{Bus, KINDS, Kind, PlugError, Property, Site, Type, Values};
use linkme::distributed_slice;
use std::sync::Arc;

/// Default of `iobase`.
pub const IOBASE: u16 = 0x501;
/// Default of `iosize`.
pub const IOSIZE: u32 = 2;

#[distributed_slice(KINDS)]
static KIND: Kind = Kind {
    name: "isa-debug-exit",
    bus: Bus::Isa,
    about: "a write of V ends Mynah with code (V<<1)|1",
    properties: &[
        Property {
            name: "iobase",
            kind: Type::Number(0, 0xffff),
            default: Some(IOBASE as u64),
            help: "the first port",
        },
        Property {
            name: "iosize",
            kind: Type::Number(1, 0x100),
            default: Some(IOSIZE as u64),
            help: "how many ports",
        },
    ],
    plug,
};

fn plug(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let iobase = values.port("iobase", IOBASE);
    let iosize = values.number("iosize").map_or(IOSIZE, |n| n as u32);
    let last = u32::from(iobase) + iosize - 1;
    if last > 0xffff {
        return Err(PlugError::Value(format!("ports {iobase:#x} to {last:#x} end past 0xffff")));
    }
    let exit = DebugExit::new(site.events.clone());
    exit.attach(site.ports, iobase, iosize);
    site.plug_isa(values, format!("debug-exit@{iobase:x}"), exit);
    Ok(())
}

/// The device.
pub struct DebugExit {
    events: Arc<dyn MachineEvents>,
}

impl DebugExit {
    /// The device; the machine is asked to exit.
    pub fn new(events: Arc<dyn MachineEvents>) -> Arc<Self> {
        Arc::new(Self { events })
    }

    /// Puts the device on the bus at `iobase` with `iosize` ports.
    pub fn attach(self: &Arc<Self>, bus: &PortBus, iobase: u16, iosize: u32) {
        bus.map(iobase, iosize, self.clone());
    }
}

impl PortIo for DebugExit {
    fn read(&self, _: u16, _: u8) -> u32 {
        0
    }

    fn write(&self, _: u16, _: u8, value: u32) {
        self.events.exit((value << 1 | 1) as i32);
    }
}

/// It has no registers.
impl Device for DebugExit {
    type State = ();
    const KIND: &'static str = "isa-debug-exit";

    fn reset(&self, _: Reset) {}
    fn save(&self) {}
    fn restore(&self, (): ()) -> Result<(), Invalid> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::testing::{Recorder, hammer};

    #[test]
    fn the_status_is_twice_the_value_plus_one() {
        let (events, bus) = (Recorder::new(), PortBus::new());
        DebugExit::new(events.clone()).attach(&bus, 0xf4, 4);
        bus.write(0xf4, 1, 0x10);
        bus.write(0xf4, 4, 0);
        bus.write(0xf4, 2, 0x1234);
        assert_eq!(events.take(), ["exit 33", "exit 1", "exit 9321"]);
        assert_eq!(bus.read(0xf4, 4), 0);
    }

    #[test]
    fn no_access_of_any_width_panics() {
        hammer(&*DebugExit::new(Recorder::new()), 4);
    }
}
