//! The Bochs-style debug console: each byte written to its port goes to a character backend, a read tells
//! that it is there.
//!
//! It has no flow control. A guest that writes faster than the other side reads has its output in the backend's
//! reserve; with that full it is slowed down, as long as the other side does read. What a reader that has stopped
//! has no room for is lost.
//!
//! Source: the convention of Bochs and QEMU (`-debugcon`, port E9h, which reads as E9h).
use crate::bus::{PortBus, PortIo, open_bus};
use crate::chardev::{Chardev, PATIENCE};
use crate::device::{Device, Invalid, Reset};
use crate::kind::{Bus, KINDS, Kind, PlugError, Property, Site, Type, Values};
use linkme::distributed_slice;
use parking_lot::Mutex;
use std::sync::Arc;

/// The usual port.
pub const PORT: u16 = 0xe9;
/// What a read gives.
const SIGNATURE: u8 = 0xe9;

#[distributed_slice(KINDS)]
static KIND: Kind = Kind {
    name: "isa-debugcon",
    bus: Bus::Isa,
    about: "a port to print through",
    properties: &[
        Property {
            name: "iobase",
            kind: Type::Number(0, 0xffff),
            default: Some(PORT as u64),
            help: "the port",
        },
        Property {
            name: "readback",
            kind: Type::Number(0, 0xff),
            default: Some(SIGNATURE as u64),
            help: "what a read gives",
        },
        Property { name: "chardev", kind: Type::Chardev, default: None, help: "where the characters go" },
    ],
    plug,
};

fn plug(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    if let Some(readback) = values.number("readback").filter(|r| *r != u64::from(SIGNATURE)) {
        return Err(PlugError::Value(format!("readback={readback:#x}: only 0xe9 is supported yet")));
    }
    let port = values.port("iobase", PORT);
    let console = Debugcon::new(site.chardev(values, "chardev")?);
    console.attach(site.ports, port);
    site.plug_isa(values, format!("debugcon@{port:x}"), console);
    Ok(())
}

/// A debug console.
pub struct Debugcon {
    /// Keeps bytes of several vCPUs in the order of their writes.
    line: Mutex<Arc<dyn Chardev>>,
}

impl Debugcon {
    /// A console on `line`.
    pub fn new(line: Arc<dyn Chardev>) -> Arc<Self> {
        Arc::new(Self { line: Mutex::new(line) })
    }

    /// Puts the console on the bus at `port` (`PORT` by custom).
    pub fn attach(self: &Arc<Self>, bus: &PortBus, port: u16) {
        bus.map(port, 1, self.clone());
    }
}

impl PortIo for Debugcon {
    fn read(&self, _: u16, size: u8) -> u32 {
        open_bus(size) & !0xff | u32::from(SIGNATURE)
    }

    fn write(&self, _: u16, _: u8, value: u32) {
        self.line.lock().write_all(&[value as u8], PATIENCE);
    }
}

/// It has no registers.
impl Device for Debugcon {
    type State = ();
    const KIND: &'static str = "isa-debugcon";

    fn reset(&self, _: Reset) {}
    fn save(&self) {}
    fn restore(&self, (): ()) -> Result<(), Invalid> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chardev::testing::Loose;
    use crate::events::testing::hammer;

    #[test]
    fn bytes_go_to_the_line_and_the_port_reads_as_its_number() {
        let line = Loose::new();
        let bus = PortBus::new();
        Debugcon::new(line.clone()).attach(&bus, 0x402);
        for b in b"SeaBIOS" {
            bus.write(0x402, 1, u32::from(*b));
        }
        assert_eq!((line.take(), bus.read(0x402, 1)), (b"SeaBIOS".to_vec(), 0xe9));
    }

    #[test]
    fn no_access_of_any_width_panics() {
        hammer(&*Debugcon::new(Loose::new()), 4);
    }
}
