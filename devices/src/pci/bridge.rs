//! Bridges to other buses: `pcie-root-port`, a root port of PCI Express with one slot, and `pci-bridge`, to a bus of
//! wires.
//!
//! ```text
//!   18h bus numbers   1Ch I/O window   20h memory window   24h window of prefetchable memory, 64 bits wide
//!   bus "ID" or "pci.1", "pci.2", ... in the order in which they are plugged in
//! ```
//!
//! A bridge has registers alone; what they let through is asked by its bus ([`super::PciBus`]). A root port's slot is
//! full or empty from the start: it has no hot plug, no power controller, no indicators, and its interrupt has nothing
//! to tell. On purpose absent: VGA decoding (BCTL bit 3 is kept only), SHPC, AER and ACS.
//!
//! Sources: PCI-to-PCI Bridge Architecture 1.1, chapter 3; PCI Express Base Specification 2.0, 7.5.3 and 7.8.
use super::config::{ConfigSpace, command, reg};
use super::{Function, FunctionV1, PciBus, PciDevice};
use crate::device::{Device, Invalid, Reset};
use crate::kind::{Bus, KINDS, Kind, PlugError, Property, Site, Type, Values};
use linkme::distributed_slice;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// The capability of a bridge's subsystem ids (PCI-to-PCI Bridge Architecture 1.2, 3.2.5.13).
const SUBSYSTEM: u8 = 0x0d;
/// The PCI Express capability (7.8).
pub const EXPRESS: u8 = 0x10;

/// Registers of a type 1 header (PCI-to-PCI Bridge Architecture 1.1, 3.2).
mod at {
    pub const BUSES: u8 = 0x18;
    pub const IO_BASE: u8 = 0x1c;
    pub const IO_LIMIT: u8 = 0x1d;
    pub const SECONDARY_STATUS: u8 = 0x1e;
    pub const MEMORY_BASE: u8 = 0x20;
    pub const MEMORY_LIMIT: u8 = 0x22;
    pub const PREFETCH_BASE: u8 = 0x24;
    pub const PREFETCH_LIMIT: u8 = 0x26;
    pub const PREFETCH_BASE_HIGH: u8 = 0x28;
    pub const PREFETCH_LIMIT_HIGH: u8 = 0x2c;
    pub const BRIDGE_CONTROL: u8 = 0x3e;
}

/// Offsets in the PCI Express capability.
mod pcie {
    pub const FLAGS: u8 = 0x02;
    pub const DEVICE_CAPABILITIES: u8 = 0x04;
    pub const DEVICE_CONTROL: u8 = 0x08;
    pub const DEVICE_STATUS: u8 = 0x0a;
    pub const LINK_CAPABILITIES: u8 = 0x0c;
    pub const LINK_CONTROL: u8 = 0x10;
    pub const LINK_STATUS: u8 = 0x12;
    pub const SLOT_CAPABILITIES: u8 = 0x14;
    pub const SLOT_CONTROL: u8 = 0x18;
    pub const SLOT_STATUS: u8 = 0x1a;
    pub const ROOT_CONTROL: u8 = 0x1c;
    pub const LINK_CONTROL_2: u8 = 0x30;
    pub const LEN: u8 = 0x3c;
}

/// What a bridge lets through to its bus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Windows {
    io: Option<RangeInclusive<u64>>,
    memory: Option<RangeInclusive<u64>>,
    prefetch: Option<RangeInclusive<u64>>,
}

impl Windows {
    /// As a bridge's registers have them: none of what the command register forbids, none whose limit is below its
    /// base.
    pub(super) fn of(c: &ConfigSpace) -> Self {
        let command = c.get16(reg::COMMAND);
        let window = |enabled: u16, base: u64, limit: u64, low: u64| {
            (command & enabled != 0 && base <= limit).then_some(base..=limit | low)
        };
        let page = |at: u8| u64::from(c.get8(at) & 0xf0) << 8;
        let megabyte = |at: u8| u64::from(c.get16(at) & 0xfff0) << 16;
        let wide = |low: u8, high: u8| megabyte(low) | u64::from(c.get32(high)) << 32;
        Self {
            io: window(command::IO, page(at::IO_BASE), page(at::IO_LIMIT), 0xfff),
            memory: window(command::MEMORY, megabyte(at::MEMORY_BASE), megabyte(at::MEMORY_LIMIT), 0xf_ffff),
            prefetch: window(
                command::MEMORY,
                wide(at::PREFETCH_BASE, at::PREFETCH_BASE_HIGH),
                wide(at::PREFETCH_LIMIT, at::PREFETCH_LIMIT_HIGH),
                0xf_ffff,
            ),
        }
    }

    /// Whether all of a range is let through.
    pub(super) fn have(&self, io: bool, address: u64, size: u64) -> bool {
        let last = address.saturating_add(size.saturating_sub(1));
        let within = |w: &RangeInclusive<u64>| w.contains(&address) && w.contains(&last);
        let windows: &[_] = if io { &[&self.io] } else { &[&self.memory, &self.prefetch] };
        windows.iter().any(|w| w.as_ref().is_some_and(within))
    }
}

impl ConfigSpace {
    /// A bridge with the type 1 header.
    pub fn new_bridge(vendor: u16, device: u16, revision: u8) -> Self {
        let mut c = Self::new(vendor, device, 0x06_0400, revision);
        c.set8(reg::HEADER_TYPE, 0x01);
        // Numbers of the buses, and the latency timer behind it.
        c.allow32(at::BUSES, u32::MAX);
        c.allow16(at::IO_BASE, 0xf0f0);
        c.allow_clear8(at::SECONDARY_STATUS + 1, 0xf9);
        for at in [at::MEMORY_BASE, at::MEMORY_LIMIT, at::PREFETCH_BASE, at::PREFETCH_LIMIT] {
            c.allow16(at, 0xfff0);
        }
        c.set16(at::PREFETCH_BASE, 1);
        c.set16(at::PREFETCH_LIMIT, 1);
        c.allow32(at::PREFETCH_BASE_HIGH, u32::MAX);
        c.allow32(at::PREFETCH_LIMIT_HIGH, u32::MAX);
        // Parity and SERR#, ISA and VGA, master aborts, reset of the bus behind it.
        c.allow16(at::BRIDGE_CONTROL, 0x007f);
        c
    }

    /// Adds the PCI Express capability of an endpoint (type 0) or a root port (4); a port has a slot of this number.
    pub fn add_express(&mut self, kind: u8, slot: Option<u16>) -> u8 {
        let at = self.add_capability(EXPRESS, pcie::LEN);
        let has_slot = u16::from(slot.is_some()) << 8;
        self.set16(at + pcie::FLAGS, 2 | u16::from(kind) << 4 | has_slot);
        // Error reporting as from revision 1.1 on.
        self.set32(at + pcie::DEVICE_CAPABILITIES, 1 << 15);
        self.allow16(at + pcie::DEVICE_CONTROL, 0x78ef);
        self.allow_clear8(at + pcie::DEVICE_STATUS, 0x0f);
        // 2.5 GT/s, one lane; a port tells when its link is up. Its number is the slot's.
        let number = u32::from(slot.unwrap_or_default() as u8) << 24;
        self.set32(at + pcie::LINK_CAPABILITIES, 0x11 | u32::from(slot.is_some()) << 20 | number);
        self.allow16(at + pcie::LINK_CONTROL, 0x00eb);
        self.set16(at + pcie::LINK_STATUS, 0x11);
        self.set16(at + pcie::LINK_CONTROL_2, 1);
        if let Some(slot) = slot {
            self.set32(at + pcie::SLOT_CAPABILITIES, u32::from(slot & 0x1fff) << 19);
            self.allow16(at + pcie::SLOT_CONTROL, 0x1fff);
            self.allow_clear8(at + pcie::SLOT_STATUS, 0x1f);
            self.allow16(at + pcie::ROOT_CONTROL, 0x001f);
        }
        at
    }
}

/// A root port (`PORT`), or a bridge to a bus of wires.
pub struct Bridge<const PORT: bool> {
    function: Function,
    bus: Arc<PciBus>,
    /// Where the PCI Express capability is.
    express: Option<u8>,
}

impl<const PORT: bool> Bridge<PORT> {
    /// Says in the registers of its slot whether something is in it.
    fn look_at_slot(&self) {
        const PRESENT: u8 = 1 << 6;
        const LINK_ACTIVE: u8 = 1 << 5;
        let Some(at) = self.express else { return };
        let full = self.bus.free_device(0).is_none();
        let mut c = self.function.config().lock();
        c.change8(at + pcie::SLOT_STATUS, PRESENT, if full { PRESENT } else { 0 });
        c.change8(at + pcie::LINK_STATUS + 1, LINK_ACTIVE, if full { LINK_ACTIVE } else { 0 });
    }
}

impl<const PORT: bool> PciDevice for Bridge<PORT> {
    fn config(&self) -> &Mutex<ConfigSpace> {
        self.function.config()
    }

    fn function(&self) -> Option<&Function> {
        Some(&self.function)
    }

    fn secondary(&self) -> Option<&Arc<PciBus>> {
        Some(&self.bus)
    }

    fn config_read(&self, offset: u8, size: u8) -> u32 {
        self.look_at_slot();
        self.config().lock().read(offset, size)
    }
}

/// What is saved of a bridge.
#[derive(Serialize, Deserialize)]
pub struct BridgeV1 {
    function: FunctionV1,
}

impl<const PORT: bool> Device for Bridge<PORT> {
    type State = BridgeV1;
    const KIND: &'static str = if PORT { "pcie-root-port" } else { "pci-bridge" };

    fn reset(&self, _: Reset) {
        self.function.reset();
    }

    fn save(&self) -> BridgeV1 {
        BridgeV1 { function: self.function.save() }
    }

    fn restore(&self, saved: BridgeV1) -> Result<(), Invalid> {
        self.function.restore(saved.function)
    }
}

const CHASSIS: Property = Property {
    name: "chassis",
    kind: Type::Number(0, 255),
    default: Some(0),
    help: "chassis that its slot is in, a note for the guest",
};
const SLOT: Property = Property {
    name: "slot",
    kind: Type::Number(0, 0x1fff),
    default: Some(0),
    help: "number of its slot, a note for the guest",
};
const PORT_NUMBER: Property =
    Property { name: "port", kind: Type::Number(0, 255), default: Some(0), help: "number of the port" };
const CHASSIS_NR: Property = Property {
    name: "chassis_nr",
    kind: Type::Number(0, 255),
    default: Some(0),
    help: "chassis that its slots are in, a note for the guest",
};
const MSI: Property =
    Property { name: "msi", kind: Type::Switch, default: Some(1), help: "interrupts may be messages" };

#[distributed_slice(KINDS)]
static ROOT_PORT: Kind = Kind {
    name: "pcie-root-port",
    bus: Bus::Pci,
    about: "a PCI Express port with one slot: its id is the name of the bus behind it",
    properties: &[CHASSIS, SLOT, PORT_NUMBER],
    plug: plug_root_port,
};

#[distributed_slice(KINDS)]
static PCI_BRIDGE: Kind = Kind {
    name: "pci-bridge",
    bus: Bus::Pci,
    about: "a bridge to another PCI bus, whose name is its id",
    properties: &[CHASSIS_NR, MSI],
    plug: plug_pci_bridge,
};

fn plug_root_port(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let on = site.pci_bus(values)?;
    if !on.is_express() || !on.is_root() {
        return Err(PlugError::Value(
            "a root port goes on bus 0 of a board with PCI Express (-M q35)".into(),
        ));
    }
    // QEMU's port: Red Hat's id, 1B36h.
    let mut c = ConfigSpace::new_bridge(0x1b36, 0x000c, 0);
    c.set8(reg::INTERRUPT_PIN, 1);
    // Only its own number tells two ports apart; QEMU insists on different slots of a chassis, and guests do not mind.
    let number = |name| values.number(name).unwrap_or_default();
    let slot = if number("slot") != 0 { number("slot") } else { number("port") };
    let express = c.add_express(4, Some(slot as u16));
    c.add_msi(1);
    // Subsystem vendor and device of a bridge.
    let at = c.add_capability(SUBSYSTEM, 8);
    c.set16(at + 4, 0x1b36);
    plug::<true>(site, values, c, Some(express))
}

fn plug_pci_bridge(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let mut c = ConfigSpace::new_bridge(0x1b36, 0x0001, 0);
    c.set8(reg::INTERRUPT_PIN, 1);
    if values.switch("msi") || !values.values.contains_key("msi") {
        c.add_msi(1);
    }
    plug::<false>(site, values, c, None)
}

fn plug<const PORT: bool>(
    site: &Site<'_>,
    values: &Values,
    c: ConfigSpace,
    express: Option<u8>,
) -> Result<(), PlugError> {
    let on = site.pci_bus(values)?;
    let devfn = site.pci_address(values, &on)?;
    let name = match &values.id {
        Some(id) => id.clone(),
        None => site.free_bus_name(if PORT { "pcie" } else { "pci" })?,
    };
    let bus = on.behind(devfn, name, PORT);
    site.plug_pci(values, c, |function| Arc::new(Bridge::<PORT> { function, bus, express })).map(drop)
}

#[cfg(test)]
mod tests;
