//! pvpanic: a port by which a guest tells that it has panicked, has loaded a crash kernel, or shuts down.
//!
//! Source: QEMU's specification of the pvpanic device: a read gives the events that are known, a write
//! reports some of them.
use crate::aml::{Fragment, STA_ON, Under, crs, io, name};
use crate::bus::{PortBus, PortIo, open_bus};
use crate::device::{Device, Invalid, Reset};
use crate::events::MachineEvents;
use crate::kind::{Bus, KINDS, Kind, PlugError, Property, Site, Type, Values};
use acpi_tables::aml::{
    Arg, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, Method, OpRegion, OpRegionSpace,
    Path, Return, Store,
};
use linkme::distributed_slice;
use std::sync::{Arc, OnceLock};

/// The usual port.
pub const PORT: u16 = 0x505;
/// The guest has panicked.
pub const PANICKED: u8 = 1 << 0;
/// The guest has panicked and goes on with a crash kernel.
pub const CRASH_LOADED: u8 = 1 << 1;
/// The guest is about to shut down.
pub const SHUTDOWN: u8 = 1 << 2;

#[distributed_slice(KINDS)]
static KIND: Kind = Kind {
    name: "pvpanic",
    bus: Bus::Isa,
    about: "a port by which the guest tells of its panic",
    properties: &[
        Property {
            name: "ioport",
            kind: Type::Number(0, 0xffff),
            default: Some(PORT as u64),
            help: "the port",
        },
        Property {
            name: "events",
            kind: Type::Number(0, 0xff),
            default: Some(3),
            help: "the events that the guest is told it may send",
        },
    ],
    plug,
};

fn plug(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    if let Some(events) = values.number("events").filter(|e| *e != 3) {
        return Err(PlugError::Value(format!("events={events}: only 3 (all) is supported yet")));
    }
    let port = values.port("ioport", PORT);
    let pvpanic = Pvpanic::new(site.events.clone());
    pvpanic.attach(site.ports, port);
    site.plug_isa(values, format!("pvpanic@{port:x}"), pvpanic);
    Ok(())
}

/// The device.
pub struct Pvpanic {
    port: OnceLock<u16>,
    events: Arc<dyn MachineEvents>,
}

impl Pvpanic {
    /// The device; the machine is told of each event.
    pub fn new(events: Arc<dyn MachineEvents>) -> Arc<Self> {
        Arc::new(Self { port: OnceLock::new(), events })
    }

    /// Puts the device on the bus at `port` (`PORT` by custom).
    pub fn attach(self: &Arc<Self>, bus: &PortBus, port: u16) {
        let _ = self.port.set(port);
        bus.map(port, 1, self.clone());
    }
}

impl PortIo for Pvpanic {
    fn read(&self, _: u16, size: u8) -> u32 {
        open_bus(size) & !0xff | u32::from(PANICKED | CRASH_LOADED | SHUTDOWN)
    }

    fn write(&self, _: u16, _: u8, value: u32) {
        let events = value as u8;
        if events & PANICKED != 0 {
            self.events.guest_panicked();
        } else if events & CRASH_LOADED != 0 {
            self.events.guest_crash_loaded();
        } else if events & SHUTDOWN != 0 {
            self.events.guest_shutdown();
        }
        if events & !(PANICKED | CRASH_LOADED | SHUTDOWN) != 0 {
            tracing::debug!("the guest reports unknown events {events:#x} to pvpanic");
        }
    }
}

/// It has no registers.
impl Device for Pvpanic {
    type State = ();
    const KIND: &'static str = "pvpanic";

    fn aml(&self) -> Option<Fragment> {
        let &port = self.port.get()?;
        let (hid, sta, crs) = (name("_HID", &"QEMU0001"), name("_STA", &STA_ON), crs(vec![&io(port, 1)]));
        let region = OpRegion::new("PEOR".into(), OpRegionSpace::SystemIO, &port, &1u8);
        let byte = FieldEntry::Named(*b"PEPT", 8);
        let (access, lock, update) =
            (FieldAccessType::Byte, FieldLockRule::NoLock, FieldUpdateRule::Preserve);
        let field = Field::new("PEOR".into(), access, lock, update, vec![byte]);
        let (register, value) = (Path::new("PEPT"), Arg(0));
        let (get, set) = (Return::new(&register), Store::new(&register, &value));
        let read = Method::new("RDPT".into(), 0, false, vec![&get]);
        let write = Method::new("WRPT".into(), 1, false, vec![&set]);
        Some(Fragment::device(Under::Isa, "PEVT", vec![&hid, &sta, &crs, &region, &field, &read, &write]))
    }

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
    fn each_event_is_reported() {
        let (events, bus) = (Recorder::new(), PortBus::new());
        Pvpanic::new(events.clone()).attach(&bus, PORT);
        assert_eq!(bus.read(PORT, 1), 7);
        for bit in [1, 2, 4, 8] {
            bus.write(PORT, 1, bit);
        }
        assert_eq!(events.take(), ["panicked", "crash loaded", "shutdown"]);
    }

    #[test]
    fn no_access_of_any_width_panics() {
        hammer(&*Pvpanic::new(Recorder::new()), 4);
    }
}
