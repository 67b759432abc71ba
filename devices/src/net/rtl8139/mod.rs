//! Realtek's RTL8139C+, a Fast Ethernet controller on PCI: `rtl8139`.
//!
//! ```text
//!   registers.rs   what reads and writes do     regs.rs      names, places, bits
//!   tx.rs          descriptors to frames        packet.rs    IPv4, TCP and UDP: checksums, segments
//!   rx.rs          frames to the receive buffer or to descriptors
//! ```
//!
//! It has two modes: that of all RTL8139s, with four transmit descriptors in registers and one receive buffer, and C+
//! mode, with rings of up to 64 descriptors, checksums, segmentation and VLAN tags. A driver tells by the revision: from
//! 20h on there is C+ mode.
//!
//! A frame is sent on the thread of the vCPU that asks for it, and received on that of the back end. A frame for which
//! there is no room is not lost but waits, and MPC and the overflow interrupt tell once each time that this begins.
//! Negotiation takes no time. What is written to the EEPROM lasts until the board is reset.
//!
//! On purpose absent: collisions, early transmission and reception (their registers are kept, frames are moved whole),
//! flow control, wake-up, CardBus function events, vital product data, frames with errors (so AR and AER choose
//! nothing), the transceiver's test registers (kept). A received frame's own checksum is zeros, and a frame that is
//! sent has one whatever TCR.CRC says.
//!
//! Locks: `control`, then `tx`, which is held while a frame goes to the back end, then `rx`, then `irq`, then the
//! function's. The back end holds its own while it gives a frame, which takes `rx` and `irq` alone; it is woken with
//! none held.
//!
//! Sources: Realtek, RTL8139C+ data sheet (1.6), cited as RTL8139C+ by chapter; RTL8139C(L) data sheet (1.4);
//! RTL8139(A/B) Programming Guide (0.1).
use crate::bus::{Mmio, PortIo};
use crate::card_properties;
use crate::clock::{Clock, Timer, TimerOwner};
use crate::device::{Device, Invalid, Reset};
use crate::kind::{Bus, KINDS, Kind, PlugError, Site, Values};
use crate::net::{Card, Link};
use crate::pci::config::reg;
use crate::pci::{BarKind, BarTarget, ConfigSpace, Function, FunctionV1, PciDevice};
use linkme::distributed_slice;
use mynah_net::{Frame, Nic};
use parking_lot::Mutex;
use registers::Control;
use rx::Rx;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};
use tx::Tx;

mod packet;
mod registers;
mod regs;
mod rx;
#[cfg(test)]
mod tests;
mod tx;

/// Of an RTL8139C+.
const REVISION: u8 = 0x20;
/// Bytes of the registers.
const REGISTERS: u64 = 256;

/// ISR and IMR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Interrupts {
    isr: u16,
    imr: u16,
}

/// The controller.
struct Adapter {
    function: Function,
    link: Arc<Link>,
    clock: Arc<dyn Clock>,
    control: Mutex<Control>,
    tx: Mutex<Tx>,
    rx: Mutex<Rx>,
    irq: Mutex<Interrupts>,
    /// For TimerInt.
    timer: Arc<dyn Timer>,
    tx_timer: Arc<dyn Timer>,
    rx_timer: Arc<dyn Timer>,
}

/// The controller as a device.
pub struct Rtl8139(Arc<Adapter>);

#[distributed_slice(KINDS)]
static KIND: Kind = Kind {
    name: "rtl8139",
    bus: Bus::Pci,
    about: "Realtek's RTL8139C+, a Fast Ethernet card",
    properties: card_properties!(),
    plug,
};

fn plug(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let link = Link::plug(site, values, "rtl8139")?;
    site.plug_pci(values, config(), |function| {
        Arc::new(Rtl8139(Adapter::new(function, link, site.clock.clone())))
    })
    .map(drop)
}

fn config() -> ConfigSpace {
    let mut c = ConfigSpace::new(0x10ec, 0x8139, 0x02_0000, REVISION);
    c.set16(reg::SUBSYSTEM_VENDOR_ID, 0x1af4);
    c.set16(reg::SUBSYSTEM_ID, 0x1100);
    c.set8(reg::INTERRUPT_PIN, 1);
    c.add_bar(0, BarKind::Io, REGISTERS);
    c.add_bar(1, BarKind::Memory32 { prefetchable: false }, REGISTERS);
    c
}

impl Adapter {
    fn new(function: Function, link: Arc<Link>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let card = Arc::new_cyclic(|me: &Weak<Self>| Self {
            function,
            control: Mutex::new(Control::new(link.mac(), link.is_up(), clock.now())),
            tx: Mutex::new(Tx::new()),
            rx: Mutex::new(Rx::new([0; 6])),
            irq: Mutex::default(),
            timer: clock.timer(me.clone()),
            tx_timer: clock.timer(me.clone()),
            rx_timer: clock.timer(me.clone()),
            link,
            clock,
        });
        card.power_on();
        card.link.connect(&card);
        card
    }

    /// All is as after power-on.
    fn power_on(&self) {
        let mut control = self.control.lock();
        *control = Control::new(self.link.mac(), self.link.is_up(), self.clock.now());
        self.timer.set(None);
        *self.tx.lock() = Tx::new();
        *self.rx.lock() = Rx::new(control.mac());
        self.change_irq(|irq| *irq = Interrupts::default());
    }

    /// Causes of interrupts come up.
    fn raise(&self, causes: u16) {
        if causes != 0 {
            self.change_irq(|irq| irq.isr |= causes);
        }
    }

    /// Changes what `change` does, and brings the pin up to date.
    fn change_irq(&self, change: impl FnOnce(&mut Interrupts)) {
        let mut irq = self.irq.lock();
        let before = irq.isr & irq.imr != 0;
        change(&mut irq);
        let now = irq.isr & irq.imr != 0;
        if now != before {
            self.function.set_interrupt(now);
        }
    }
}

impl Nic for Adapter {
    fn can_receive(&self) -> bool {
        let rx = self.rx.lock();
        self.has_room(&rx)
    }

    fn receive(&self, frame: &Frame<'_>) -> bool {
        self.take(frame, false)
    }
}

impl Card for Adapter {
    fn link_changed(&self) {
        let changed = {
            let mut control = self.control.lock();
            let up = self.link.is_up();
            std::mem::replace(&mut control.link, up) != up
        };
        if changed {
            self.raise(regs::isr::LINK_CHG);
        }
    }
}

impl TimerOwner for Adapter {
    fn expired(&self) {
        self.timer_expired();
        self.tx_expired();
        self.rx_expired();
    }
}

/// The registers in memory, and at ports.
struct Registers(Arc<Adapter>);

impl Mmio for Registers {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let at = offset as u32;
        match size {
            8 => u64::from(self.0.read(at, 4)) | u64::from(self.0.read(at + 4, 4)) << 32,
            size => self.0.read(at, size.into()).into(),
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let at = offset as u32;
        self.0.write(at, u32::from(size).min(4), value as u32);
        if size == 8 {
            self.0.write(at + 4, 4, (value >> 32) as u32);
        }
    }
}

impl PortIo for Registers {
    fn read(&self, offset: u16, size: u8) -> u32 {
        self.0.read(offset.into(), size.into())
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        self.0.write(offset.into(), size.into(), value);
    }
}

impl PciDevice for Rtl8139 {
    fn config(&self) -> &Mutex<ConfigSpace> {
        self.0.function.config()
    }

    fn function(&self) -> Option<&Function> {
        Some(&self.0.function)
    }

    fn config_write(&self, offset: u8, size: u8, value: u32) {
        let function = &self.0.function;
        function.config().lock().write(offset, size, value);
        let before = function.dma().is_enabled();
        function.follow();
        if !before && function.dma().is_enabled() {
            self.0.wake();
        }
    }

    fn bar(&self, index: usize) -> BarTarget {
        let registers = Arc::new(Registers(self.0.clone()));
        match index {
            0 => BarTarget::Io(registers),
            1 => BarTarget::Memory(registers),
            _ => BarTarget::Own,
        }
    }
}

/// What is saved of the controller.
#[derive(Serialize, Deserialize)]
pub struct Rtl8139V1 {
    function: FunctionV1,
    control: Control,
    tx: Tx,
    rx: Rx,
    interrupts: Interrupts,
}

impl Device for Rtl8139 {
    type State = Rtl8139V1;
    const KIND: &'static str = "rtl8139";

    fn reset(&self, _: Reset) {
        // Transfers under way end first.
        self.0.function.reset();
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

    fn save(&self) -> Rtl8139V1 {
        let control = self.0.control.lock().clone();
        let tx = self.0.tx.lock().clone();
        let rx = self.0.rx.lock().clone();
        Rtl8139V1 { function: self.0.function.save(), control, tx, rx, interrupts: *self.0.irq.lock() }
    }

    fn restore(&self, saved: Rtl8139V1) -> Result<(), Invalid> {
        let Rtl8139V1 { function, control, tx, rx, interrupts } = saved;
        if !control.is_valid() {
            return Err(Invalid("the registers"));
        }
        if !tx.is_valid() {
            return Err(Invalid("the transmitter"));
        }
        if !rx.is_valid() {
            return Err(Invalid("the receiver"));
        }
        let mut control_now = self.0.control.lock();
        let mut tx_now = self.0.tx.lock();
        let mut rx_now = self.0.rx.lock();
        self.0.function.restore(function)?;
        *self.0.irq.lock() = interrupts;
        self.0.timer.set(control.timer_due);
        self.0.tx_timer.set(tx.again());
        self.0.rx_timer.set(rx.retry());
        (*control_now, *tx_now, *rx_now) = (control, tx, rx);
        Ok(())
    }
}
