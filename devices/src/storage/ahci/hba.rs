//! The controller: its PCI function, its registers, and what the ports' interrupts lead to.
use super::port::{Port, PortV1};
use crate::bus::{Mmio, PortIo, open_bus};
use crate::device::{Device, Invalid, Reset};
use crate::kind::{Bus, KINDS, Kind, PlugError, Site, Values};
use crate::pci::config::reg;
use crate::pci::{BarKind, BarTarget, ConfigSpace, DevFn, Function, FunctionV1, PciBus, PciDevice};
use crate::storage::ide::Cable;
use linkme::distributed_slice;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};

/// Ports of the ICH9's controller.
const PORTS: usize = 6;
/// BARs: index and data, and the registers.
const INDEX_BAR: usize = 4;
const REGISTERS_BAR: usize = 5;
const REGISTERS: u64 = 0x1000;
/// Offsets in the first.
const INDEX: u16 = 0x10;
const DATA: u16 = 0x14;
/// Where ports' registers begin, and how many bytes each has.
const FIRST_PORT: u64 = 0x100;
const PORT: u64 = 0x80;

/// Offsets of the controller's registers (AHCI 1.3.1, 3.1).
mod at {
    pub const CAP: u64 = 0x00;
    pub const GHC: u64 = 0x04;
    pub const IS: u64 = 0x08;
    pub const PI: u64 = 0x0c;
    pub const VS: u64 = 0x10;
}
/// CAP: 64-bit addresses, NCQ, no ATA registers beside these, 1.5 Gbit/s, 32 slots.
const CAP: u32 = 1 << 31 | 1 << 30 | 1 << 20 | 1 << 18 | 31 << 8 | (PORTS as u32 - 1);
/// GHC: AHCI is on, and cannot be off; interrupts; reset.
const AE: u32 = 1 << 31;
const IE: u32 = 1 << 1;
const HR: u32 = 1 << 0;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct HostState {
    /// Interrupts are on.
    enabled: bool,
    /// Ports that have interrupted.
    status: u32,
    /// Ports that have something enabled to tell.
    pending: u32,
    /// The register that the data port shows.
    index: u32,
}

/// What ports have of the controller.
pub(super) struct Host {
    pub function: Function,
    state: Mutex<HostState>,
}

impl Host {
    /// A port has something to tell, or has not any more.
    pub fn port_changed(&self, port: u8, pending: bool) {
        let mut state = self.state.lock();
        let bit = 1 << port;
        state.pending = state.pending & !bit | u32::from(pending) << port;
        let is_news = pending && state.status & bit == 0;
        state.status |= state.pending & bit;
        if is_news {
            self.tell(&state, true);
        }
    }

    fn tell(&self, state: &HostState, is_news: bool) {
        let on = state.enabled && state.status != 0;
        self.function.set_interrupt(on);
        if on && is_news {
            self.function.notify(0);
        }
    }
}

/// A controller.
pub struct Ahci {
    host: Arc<Host>,
    ports: Vec<Arc<Port>>,
    me: Weak<Self>,
}

fn config() -> ConfigSpace {
    const SATA: u8 = 0x12;
    // Address map: AHCI, six ports.
    const MAP: u8 = 0x90;
    let mut c = ConfigSpace::new(0x8086, 0x2922, 0x01_0601, 0x02);
    c.set8(reg::CACHE_LINE_SIZE, 0x08);
    c.set8(reg::INTERRUPT_PIN, 1);
    c.set16(reg::SUBSYSTEM_VENDOR_ID, 0x1af4);
    c.set16(reg::SUBSYSTEM_ID, 0x1100);
    c.set8(MAP, 0x40);
    c.add_bar(INDEX_BAR, BarKind::Io, 32);
    c.add_bar(REGISTERS_BAR, BarKind::Memory32 { prefetchable: false }, REGISTERS);
    // Revision 1.0; where index and data are.
    let at = c.add_capability(SATA, 8);
    c.set16(at + 2, 0x10);
    c.set32(at + 4, (INDEX_BAR as u32 + 4) | u32::from(INDEX / 4) << 4);
    c.add_msi(1);
    c
}

impl Ahci {
    fn new(function: Function, name: impl Fn(usize) -> String) -> Arc<Self> {
        let host = Arc::new(Host { function, state: Mutex::default() });
        let ports = (0..PORTS).map(|n| Port::new(n as u8, name(n), host.clone())).collect();
        Arc::new_cyclic(|me| Self { host, ports, me: me.clone() })
    }

    /// A controller at a place on `pci`, whose ports are `stem`.0 and so on.
    pub fn at(pci: &PciBus, devfn: DevFn, stem: &str) -> Arc<Self> {
        let ahci = Self::new(pci.function(devfn, config()), |n| format!("{stem}.{n}"));
        pci.attach(devfn, ahci.clone());
        ahci
    }

    /// Its ports, to plug drives in.
    pub fn cables(&self) -> Vec<Arc<dyn Cable>> {
        self.ports.iter().map(|p| p.clone() as Arc<dyn Cable>).collect()
    }

    /// The port whose register is at an offset, and the register's offset there.
    fn port(&self, at: u64) -> Option<(&Port, u64)> {
        let at = at.checked_sub(FIRST_PORT)?;
        Some((self.ports.get((at / PORT) as usize)?, at % PORT))
    }

    fn register(&self, at: u64) -> u32 {
        if let Some((port, at)) = self.port(at) {
            return port.read(at);
        }
        let state = self.host.state.lock();
        match at {
            at::CAP => CAP,
            at::GHC => AE | if state.enabled { IE } else { 0 },
            at::IS => state.status,
            at::PI => (1 << PORTS) - 1,
            at::VS => 0x0001_0000,
            _ => 0,
        }
    }

    fn set_register(&self, at: u64, value: u32) {
        if let Some((port, at)) = self.port(at) {
            return port.write(at, value);
        }
        match at {
            at::GHC if value & HR != 0 => self.reset_host(),
            at::GHC => {
                let mut state = self.host.state.lock();
                let before = std::mem::replace(&mut state.enabled, value & IE != 0);
                self.host.tell(&state, !before);
            }
            at::IS => {
                let mut state = self.host.state.lock();
                state.status = state.status & !value | state.pending;
                // What is still there, or there again, is told again.
                self.host.tell(&state, true);
            }
            _ => {}
        }
    }

    /// The controller's own reset.
    fn reset_host(&self) {
        {
            let mut state = self.host.state.lock();
            *state = HostState { index: state.index, ..HostState::default() };
            self.host.tell(&state, false);
        }
        self.ports.iter().for_each(|p| p.reset());
    }

    fn read(&self, offset: u64, size: u8) -> u64 {
        let word = |at: u64| u64::from(self.register(at));
        let at = offset & !3;
        let value = if size > 4 || offset % 4 + u64::from(size) > 4 {
            word(at) | word(at + 4) << 32
        } else {
            word(at)
        };
        value >> (8 * (offset % 4))
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        if size == 8 && offset.is_multiple_of(4) {
            self.set_register(offset, value as u32);
            return self.set_register(offset + 4, (value >> 32) as u32);
        }
        let (at, shift) = (offset & !3, 8 * (offset % 4));
        if offset % 4 + u64::from(size) > 4 {
            // Nobody writes across two registers.
            return;
        }
        let mask = (1u64 << (8 * size)) - 1;
        let takes_ones = at == at::IS || self.port(at).is_some_and(|(_, at)| Port::takes_ones(at));
        let old = if takes_ones || size == 4 { 0 } else { self.register(at) };
        self.set_register(at, old & !((mask << shift) as u32) | ((value & mask) << shift) as u32);
    }
}

struct Registers(Weak<Ahci>);

impl Mmio for Registers {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.0.upgrade().map_or(u64::MAX, |ahci| ahci.read(offset, size))
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        if let Some(ahci) = self.0.upgrade() {
            ahci.write(offset, size, value);
        }
    }
}

/// Index and data.
struct IndexData(Weak<Ahci>);

impl PortIo for IndexData {
    fn name(&self) -> &'static str {
        "ahci-idp"
    }

    fn read(&self, offset: u16, size: u8) -> u32 {
        let Some(ahci) = self.0.upgrade() else { return open_bus(size) };
        let index = ahci.host.state.lock().index;
        match offset {
            INDEX..DATA => index >> (8 * (offset - INDEX)),
            DATA..0x18 => ahci.read(u64::from(index) + u64::from(offset - DATA), size) as u32,
            _ => 0,
        }
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        let Some(ahci) = self.0.upgrade() else { return };
        let index = ahci.host.state.lock().index;
        match (offset, size) {
            (INDEX, 4) => ahci.host.state.lock().index = value & (REGISTERS as u32 - 4),
            (DATA..0x18, _) => ahci.write(u64::from(index) + u64::from(offset - DATA), size, value.into()),
            _ => {}
        }
    }
}

impl PciDevice for Ahci {
    fn config(&self) -> &Mutex<ConfigSpace> {
        self.host.function.config()
    }

    fn function(&self) -> Option<&Function> {
        Some(&self.host.function)
    }

    fn bar(&self, index: usize) -> BarTarget {
        match index {
            INDEX_BAR => BarTarget::Io(Arc::new(IndexData(self.me.clone()))),
            _ => BarTarget::Memory(Arc::new(Registers(self.me.clone()))),
        }
    }
}

/// What is saved of a controller; its drives are saved by themselves.
#[derive(Serialize, Deserialize)]
pub struct AhciV1 {
    function: FunctionV1,
    state: HostState,
    ports: Vec<PortV1>,
}

impl Device for Ahci {
    type State = AhciV1;
    const KIND: &'static str = "ich9-ahci";

    fn reset(&self, _: Reset) {
        self.host.function.reset();
        *self.host.state.lock() = HostState::default();
        self.ports.iter().for_each(|p| p.reset());
    }

    fn save(&self) -> AhciV1 {
        AhciV1 {
            function: self.host.function.save(),
            state: self.host.state.lock().clone(),
            ports: self.ports.iter().map(|p| p.save()).collect(),
        }
    }

    fn restore(&self, saved: AhciV1) -> Result<(), Invalid> {
        const ALL: u32 = (1 << PORTS) - 1;
        let state = saved.state;
        if saved.ports.len() != self.ports.len() || (state.status | state.pending) & !ALL != 0 {
            return Err(Invalid("the ports"));
        }
        if state.index & !(REGISTERS as u32 - 4) != 0 {
            return Err(Invalid("the index"));
        }
        self.host.function.restore(saved.function)?;
        for (port, saved) in self.ports.iter().zip(saved.ports) {
            port.restore(saved)?;
        }
        *self.host.state.lock() = state;
        Ok(())
    }

    fn resume(&self) {
        // What a restored queue was waiting for is asked again.
        self.ports.iter().for_each(|p| p.with(0, &mut |_| {}));
    }
}

#[distributed_slice(KINDS)]
static AHCI: Kind = Kind {
    name: "ahci",
    bus: Bus::Pci,
    about: "a SATA controller with six ports: ID.0 to ID.5",
    properties: &[],
    plug,
};

#[distributed_slice(KINDS)]
static ICH9_AHCI: Kind = Kind {
    name: "ich9-ahci",
    bus: Bus::Pci,
    about: "the same: the SATA controller of the ICH9",
    properties: &[],
    plug,
};

fn plug(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let first = site.ide.borrow().len();
    let name = |n: usize| match &values.id {
        Some(id) => format!("{id}.{n}"),
        // As QEMU numbers the buses of controllers that have no name.
        None => format!("ide.{}", first + n),
    };
    let ahci = site.plug_pci(values, config(), |function| Ahci::new(function, name))?;
    site.ide.borrow_mut().extend(ahci.cables());
    Ok(())
}
