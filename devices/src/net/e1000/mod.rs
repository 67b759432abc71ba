//! Intel's gigabit Ethernet controllers: `e1000`, an 82540EM on PCI, and `e1000e`, an 82574L on PCI Express.
//!
//! ```text
//!   registers.rs   what reads and writes do     regs.rs   names, offsets, bits, registers that only keep
//!   tx.rs          descriptors to frames        segment.rs   segmentation
//!   rx.rs          frames to descriptors        packet.rs    headers and checksums of what has come
//!   rss.rs         which ring
//!   irq.rs         causes, delays, throttling   eeprom.rs, phy.rs   behind EECD, EERD and MDIC      ring.rs   rings
//! ```
//!
//! A frame is sent on the thread of the vCPU that writes the tail, and received on that of the back end. The link is up
//! from power-on on, whatever CTRL.SLU says; negotiation, if software asks for it, takes 20 ms. What is written to the
//! EEPROM lasts until the board is reset.
//!
//! On purpose absent: collisions, flow control (its registers are kept), wake-up and manageability (kept as well), the
//! packet buffer memory, frames whose checksum software appends (IFCS is taken for granted), and on the 82574 the bits
//! of its SPI bus and time stamps of frames. A received frame's own checksum (without RCTL.SECRC) is zeros.
//!
//! Locks: `control`, then `tx`, which is held while a frame goes to the back end, then `rx`, then `irq`, then the
//! function's. The back end holds its own while it gives a frame, which takes `rx` and `irq` alone; it is woken with
//! none held.
//!
//! Sources: Intel, PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual (317453, revision 4.0),
//! cited by section alone; Intel 82574 GbE Controller Family Datasheet (316080).
use crate::bus::{Mmio, PortIo};
use crate::card_properties;
use crate::clock::{Clock, Timer, TimerOwner};
use crate::device::{Device, Invalid, Reset};
use crate::kind::{Bus, KINDS, Kind, PlugError, Site, Values};
use crate::net::{Card, Link};
use crate::pci::config::reg;
use crate::pci::{BarKind, BarTarget, ConfigSpace, Function, FunctionV1, PciDevice};
use irq::Interrupts;
use linkme::distributed_slice;
use mynah_net::sync::Mutex;
use mynah_net::{Frame, Nic};
use registers::Control;
use rx::Rx;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use tx::{Tx, TxV1};

mod eeprom;
mod irq;
mod packet;
mod phy;
mod registers;
mod regs;
mod ring;
mod rss;
mod rx;
mod segment;
#[cfg(test)]
mod tests;
mod tx;

/// Which controller it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Model {
    I82540em,
    I82574l,
}

impl Model {
    /// Rings in each direction.
    fn queues(self) -> usize {
        match self {
            Self::I82540em => 1,
            Self::I82574l => 2,
        }
    }

    /// Bits of ICR.
    fn causes(self) -> u32 {
        match self {
            Self::I82540em => regs::cause::ALL_82540,
            Self::I82574l => regs::cause::ALL_82574,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::I82540em => "e1000",
            Self::I82574l => "e1000e",
        }
    }
}

/// CTRL.VME, above VET.
const VME: u32 = 1 << 16;
/// Who has what is sent come back.
const LOOPBACK_MAC: u8 = 1;
const LOOPBACK_PHY: u8 = 2;
/// Bytes of the registers, and of the window onto the flash chip.
const REGISTERS: u64 = 128 << 10;
/// The 82574's BAR of MSI-X, and where its pending bits are.
const MESSAGES: u64 = 16 << 10;
const PENDING: u32 = 0x2000;
/// The capabilities of MSI-X and of PCI Express.
const MSIX: u8 = 0x11;
const EXPRESS_CAPABILITY: u8 = 0x10;

/// What both controllers are.
struct Adapter {
    model: Model,
    function: Function,
    link: Arc<Link>,
    clock: Arc<dyn Clock>,
    control: Mutex<Control>,
    tx: Mutex<Tx>,
    rx: Mutex<Rx>,
    irq: Mutex<Interrupts>,
    /// VET, and [`VME`].
    vlan: AtomicU32,
    /// The link is up.
    up: AtomicBool,
    loopback: AtomicU8,
    /// A timer goes on with what a turn of the transmitter has left.
    tx_waits: AtomicBool,
    /// MSI-X is on.
    msix: AtomicBool,
    phy_timer: Arc<dyn Timer>,
    irq_timer: Arc<dyn Timer>,
    tx_timer: Arc<dyn Timer>,
}

/// The 82540EM.
pub type E1000 = Port<false>;
/// The 82574L.
pub type E1000e = Port<true>;

/// A controller as a device.
pub struct Port<const EXPRESS: bool>(Arc<Adapter>);

macro_rules! kind {
    ($entry:ident, $name:literal, $plug:expr, $about:literal) => {
        #[distributed_slice(KINDS)]
        static $entry: Kind =
            Kind { name: $name, bus: Bus::Pci, about: $about, properties: card_properties!(), plug: $plug };
    };
}
kind!(KIND, "e1000", plug::<false>, "Intel's 82540EM, a gigabit network card");
kind!(ALIAS, "e1000-82540em", plug::<false>, "another name of e1000");
kind!(EXPRESS, "e1000e", plug::<true>, "Intel's 82574L, a gigabit network card on PCI Express");

fn plug<const EXPRESS: bool>(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let model = if EXPRESS { Model::I82574l } else { Model::I82540em };
    let link = Link::plug(site, values, model.name())?;
    let integrated = site.pci_bus(values)?.is_root();
    site.plug_pci(values, config(model, integrated), |function| {
        Arc::new(Port::<EXPRESS>(Adapter::new(model, function, link, site.clock.clone())))
    })
    .map(drop)
}

/// `integrated`: it is on a root complex's own bus.
fn config(model: Model, integrated: bool) -> ConfigSpace {
    let memory = BarKind::Memory32 { prefetchable: false };
    let (device, revision, subsystem) = match model {
        Model::I82540em => (0x100e, 3, (0x1af4, 0x1100)),
        Model::I82574l => (0x10d3, 0, (0x8086, 0)),
    };
    let mut c = ConfigSpace::new(0x8086, device, 0x02_0000, revision);
    c.set16(reg::SUBSYSTEM_VENDOR_ID, subsystem.0);
    c.set16(reg::SUBSYSTEM_ID, subsystem.1);
    c.set8(reg::INTERRUPT_PIN, 1);
    c.add_bar(0, memory, REGISTERS);
    match model {
        Model::I82540em => c.add_bar(1, BarKind::Io, 64),
        Model::I82574l => {
            c.add_bar(1, memory, REGISTERS);
            c.add_bar(2, BarKind::Io, 32);
            c.add_bar(3, memory, MESSAGES);
            add_power_management(&mut c);
            c.add_msi(1);
            add_express(&mut c, integrated);
            c.add_msix(irq::VECTORS as u16, 3, 0, PENDING);
        }
    }
    c
}

/// The capability of power management (PCI Bus Power Management 1.2, 3.2): the state is kept.
fn add_power_management(c: &mut ConfigSpace) {
    let at = c.add_capability(0x01, 8);
    // Version 2, to be initialized by a driver, PME# from D0 and D3hot.
    c.set16(at + 2, 0xc822);
    // Registers are kept in D3hot.
    c.set16(at + 4, 1 << 3);
    c.allow16(at + 4, 0x0103);
    c.allow_clear8(at + 5, 0x80);
}

/// The capability of PCI Express (Base Specification 1.1, 7.8): one lane of 2.5 GT/s.
fn add_express(c: &mut ConfigSpace, integrated: bool) {
    let at = c.add_capability(EXPRESS_CAPABILITY, 0x14);
    c.set16(at + 0x02, 1 | if integrated { 9 << 4 } else { 0 });
    c.set32(at + 0x04, 1 << 15);
    c.set16(at + 0x08, 0x2810);
    c.allow16(at + 0x08, 0x7eff);
    c.allow_clear8(at + 0x0a, 0x0f);
    c.set32(at + 0x0c, 0x11);
    c.allow16(at + 0x10, 0x01cb);
    c.set16(at + 0x12, 0x11);
}

impl Adapter {
    fn new(model: Model, function: Function, link: Arc<Link>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let adapter = Arc::new_cyclic(|me: &Weak<Self>| Self {
            model,
            function,
            control: Mutex::new(Control::new(model, link.mac(), link.is_up())),
            tx: Mutex::default(),
            rx: Mutex::new(Rx::new()),
            irq: Mutex::default(),
            vlan: AtomicU32::new(0),
            up: AtomicBool::new(false),
            loopback: AtomicU8::new(0),
            tx_waits: AtomicBool::new(false),
            msix: AtomicBool::new(false),
            phy_timer: clock.timer(me.clone()),
            irq_timer: clock.timer(me.clone()),
            tx_timer: clock.timer(me.clone()),
            link,
            clock,
        });
        adapter.power_on();
        adapter.link.connect(&adapter);
        adapter
    }

    /// All is as after power-on.
    fn power_on(&self) {
        let mut control = self.control.lock();
        *control = Control::new(self.model, self.link.mac(), self.link.is_up());
        let mut rx = Rx::new();
        rx.set_address(control.eeprom.mac());
        self.tx.lock().reset();
        *self.rx.lock() = rx;
        self.loopback.store(0, Ordering::Relaxed);
        self.reset_irq();
        self.follow(&mut control, 0);
    }

    /// Whether MSI-X is on is asked for each interrupt: it is looked up when it may have changed.
    fn look_at_messages(&self) -> bool {
        let on = {
            let c = self.function.config().lock();
            c.capability(MSIX).is_some_and(|at| c.get16(at + 2) & 1 << 15 != 0)
        };
        self.msix.swap(on, Ordering::Relaxed) != on
    }

    fn config_write(&self, offset: u8, size: u8, value: u32) {
        self.function.config().lock().write(offset, size, value);
        let before = self.function.dma().is_enabled();
        self.function.follow();
        if self.look_at_messages() {
            self.messages_changed();
        }
        if !before && self.function.dma().is_enabled() {
            self.wake();
        }
    }

    fn save(&self) -> E1000V1 {
        let control = self.control.lock().clone();
        let tx = self.tx.lock().save();
        let rx = self.rx.lock().clone();
        E1000V1 { function: self.function.save(), control, tx, rx, interrupts: self.irq.lock().clone() }
    }

    fn restore(&self, saved: E1000V1) -> Result<(), Invalid> {
        if !saved.control.is_valid() {
            return Err(Invalid("the registers"));
        }
        if !saved.rx.is_valid() {
            return Err(Invalid("the receiver"));
        }
        let mut control = self.control.lock();
        *self.tx.lock() = Tx::restored(saved.tx).ok_or(Invalid("the transmitter"))?;
        *self.rx.lock() = saved.rx;
        self.function.restore(saved.function)?;
        self.look_at_messages();
        self.restore_irq(saved.interrupts);
        *control = saved.control;
        self.restore_followers(&control);
        let again = self.tx.lock().again();
        self.tx_waits.store(again.is_some(), Ordering::Release);
        self.tx_timer.set(again);
        Ok(())
    }
}

impl Nic for Adapter {
    fn can_receive(&self) -> bool {
        self.up.load(Ordering::Relaxed) && self.rx.lock().has_room(self.model)
    }

    fn receive(&self, frame: &Frame<'_>) -> bool {
        self.take(frame, false)
    }

    fn paces(&self) -> bool {
        self.is_throttled()
    }
}

impl Card for Adapter {
    fn link_changed(&self) {
        let came_up = {
            let mut control = self.control.lock();
            control.phy.set_cable(self.link.is_up(), self.clock.now());
            self.follow(&mut control, 0)
        };
        if came_up {
            self.wake();
        }
    }
}

impl TimerOwner for Adapter {
    fn expired(&self) {
        self.irq_expired();
        let came_up = {
            let mut control = self.control.lock();
            let due = control.phy.negotiated_at.is_some_and(|at| at <= self.clock.now());
            due && self.follow(&mut control, 0)
        };
        if came_up {
            self.wake();
        }
        self.tx_expired();
    }
}

/// A BAR in memory.
struct Window(Arc<Adapter>, usize);

impl Mmio for Window {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let Self(adapter, bar) = self;
        match bar {
            0 => {
                // Registers have 32 bits; others read a part of one, or two.
                let at = offset as u32 & !3;
                let value = u64::from(adapter.read_register(at)) >> (8 * (offset & 3));
                match size {
                    8 => value | u64::from(adapter.read_register(at + 4)) << 32,
                    4 => value,
                    n => value & ((1 << (8 * n)) - 1),
                }
            }
            3 if offset < PENDING.into() => adapter.function.table_read(offset, size),
            3 => adapter.function.pending_read(offset - u64::from(PENDING), size),
            _ => u64::MAX,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let Self(adapter, bar) = self;
        match bar {
            0 if matches!(size, 4 | 8) && offset & 3 == 0 => {
                adapter.write_register(offset as u32, value as u32);
                if size == 8 {
                    adapter.write_register(offset as u32 + 4, (value >> 32) as u32);
                }
            }
            3 if offset < PENDING.into() => adapter.function.table_write(offset, size, value),
            _ => {}
        }
    }
}

/// The BAR of ports: an address, and what is there (13.3).
struct Ports(Arc<Adapter>);

impl PortIo for Ports {
    fn read(&self, offset: u16, size: u8) -> u32 {
        let address = self.0.control.lock().io_address;
        match (offset, size) {
            (0, 4) => address,
            (4, 4) if u64::from(address) < REGISTERS => self.0.read_register(address & !3),
            _ => u32::MAX,
        }
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        match (offset, size) {
            (0, 4) => self.0.control.lock().io_address = value,
            (4, 4) => {
                let address = self.0.control.lock().io_address;
                if u64::from(address) < REGISTERS {
                    self.0.write_register(address & !3, value);
                }
            }
            _ => {}
        }
    }
}

impl<const EXPRESS: bool> PciDevice for Port<EXPRESS> {
    fn config(&self) -> &parking_lot::Mutex<ConfigSpace> {
        self.0.function.config()
    }

    fn function(&self) -> Option<&Function> {
        Some(&self.0.function)
    }

    fn config_write(&self, offset: u8, size: u8, value: u32) {
        self.0.config_write(offset, size, value);
    }

    fn bar(&self, index: usize) -> BarTarget {
        let me = self.0.clone();
        let kind = me.function.config().lock().bar(index).map(|(kind, _)| kind);
        match kind {
            Some(BarKind::Io) => BarTarget::Io(Arc::new(Ports(me))),
            Some(_) => BarTarget::Memory(Arc::new(Window(me, index))),
            None => BarTarget::Own,
        }
    }
}

/// What is saved of a controller.
#[derive(Serialize, Deserialize)]
pub struct E1000V1 {
    function: FunctionV1,
    control: Control,
    tx: TxV1,
    rx: Rx,
    interrupts: Interrupts,
}

impl<const EXPRESS: bool> Device for Port<EXPRESS> {
    type State = E1000V1;
    const KIND: &'static str = if EXPRESS { "e1000e" } else { "e1000" };

    fn reset(&self, _: Reset) {
        // Transfers under way end first.
        self.0.function.reset();
        self.0.look_at_messages();
        self.0.power_on();
    }

    fn pause(&self) {
        self.0.link.pause();
    }

    fn resume(&self) {
        // The cable may have been moved while the machine stood.
        self.0.link_changed();
        self.0.link.resume();
    }

    fn save(&self) -> E1000V1 {
        self.0.save()
    }

    fn restore(&self, saved: E1000V1) -> Result<(), Invalid> {
        self.0.restore(saved)
    }
}
