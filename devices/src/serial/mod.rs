//! Serial ports: the 16550A on I/O ports, with its line to a character backend.
//!
//! ```text
//!   vCPU --PortIo--> Serial { Uart16550 } --Chardev--> backend
//!                     |   ^--Receiver--                (backend's thread)
//!                     +--Irq
//! ```
//!
//! `Uart16550` is the chip: registers, no lock, no thread, no clock. `Serial` owns the lock, the pin, the
//! timer of the receive time-out and the line. What the guest transmits goes to the backend at once, if that has
//! room; else the chip's transmitter stays full, as on a line that is held, until it has. What a guest writes
//! then all the same (Linux's console waits 10 ms for each character) goes to the backend's reserve. Input is
//! taken only as far as the receive FIFO has room.
//!
//! Locks, in this order: `tx` (keeps bytes in the order of their writes) or `held`, then the model, then whatever is
//! behind the interrupt pin. The backend is never called with the model locked. Nobody waits under a lock.
use crate::aml::{Fragment, IrqNoFlags, Under, crs, hid, io, name};
use crate::bus::{Irq, PortBus, PortIo, read_bytes, write_bytes};
use crate::chardev::{Chardev, Event, Receiver};
use crate::clock::{Clock, Nanos, Timer, TimerOwner};
use crate::device::{Device, Invalid, Reset};
use crate::kind::{Bus, KINDS, Kind, PlugError, Property, Site, Type, Values};
use linkme::distributed_slice;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

mod uart16550;

pub use uart16550::Uart16550;

/// I/O ports that a 16550A takes.
pub const PORTS: u32 = 8;
/// Base ports and ISA interrupts of COM1 to COM4.
pub const COM: [(u16, u32); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];

#[distributed_slice(KINDS)]
static KIND: Kind = Kind {
    name: "isa-serial",
    bus: Bus::Isa,
    about: "a 16550A serial port",
    properties: &[
        Property { name: "chardev", kind: Type::Chardev, default: None, help: "what its line leads to" },
        Property {
            name: "index",
            kind: Type::Number(0, 3),
            default: None,
            help: "0 for COM1, and so on; the next one if not given",
        },
        Property {
            name: "iobase",
            kind: Type::Number(0, 0xfff8),
            default: None,
            help: "the first port, if not that of its index",
        },
        Property {
            name: "irq",
            kind: Type::Number(0, 15),
            default: None,
            help: "the interrupt, if not that of its index",
        },
    ],
    plug,
};

fn plug(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let index = values.number("index").map_or(site.serials.borrow().len(), |n| n as usize);
    let Some(&(base, irq)) = COM.get(index) else {
        return Err(PlugError::Value("a PC has four serial ports".into()));
    };
    let line = site.chardev(values, "chardev")?;
    let irq = values.number("irq").map_or(irq, |n| n as u32);
    Serial::plug(site, values, line, values.port("iobase", base), irq);
    Ok(())
}

/// A 16550A serial port of the PC.
pub struct Serial {
    tx: Mutex<()>,
    model: Mutex<Uart16550>,
    line: Arc<dyn Chardev>,
    irq: Irq,
    /// The first of its ports.
    base: OnceLock<u16>,
    clock: Arc<dyn Clock>,
    timeout: Arc<dyn Timer>,
    /// What came from the line since the machine stands still, if it does. Before the model.
    held: Mutex<Option<Vec<u8>>>,
}

impl Serial {
    /// A port whose line leads to `line`. Its interrupt pin is `irq`; as on the PC it is connected through
    /// OUT2.
    pub fn new(line: Arc<dyn Chardev>, irq: Irq, clock: Arc<dyn Clock>) -> Arc<Self> {
        let serial = Arc::new_cyclic(|weak: &Weak<Self>| {
            let timeout = clock.timer(weak.clone());
            Self {
                tx: Mutex::new(()),
                model: Mutex::new(Uart16550::new()),
                line: line.clone(),
                irq,
                base: OnceLock::new(),
                clock,
                timeout,
                held: Mutex::new(None),
            }
        });
        line.set_receiver(Arc::new(Input(Arc::downgrade(&serial))));
        serial
    }

    /// Makes a port with these ports and this ISA interrupt, and plugs it in.
    pub fn plug(site: &Site<'_>, values: &Values, line: Arc<dyn Chardev>, base: u16, irq: u32) {
        let serial = Self::new(line, site.isa_pin(irq as usize), site.clock.clone());
        serial.attach(site.ports, base);
        site.plug_isa(values, format!("serial@{base:x}"), serial.clone());
        site.serials.borrow_mut().push(serial);
    }

    /// Puts the port on the bus.
    pub fn attach(self: &Arc<Self>, bus: &PortBus, base: u16) {
        let _ = self.base.set(base);
        bus.map(base, PORTS, self.clone());
    }

    /// Waits until what was transmitted has left the process, or the time has come.
    pub fn flush(&self, until: Instant) {
        loop {
            self.line.flush(until);
            // The last characters may have found no room before.
            self.send(&self.tx.lock());
            let left = self.model.lock().transmitting().count();
            if left == 0 || Instant::now() >= until {
                break;
            }
        }
        self.line.flush(until);
    }

    /// Has the line take what is in the transmitter, as far as it has room.
    fn send(&self, _order: &MutexGuard<'_, ()>) {
        loop {
            let mut bytes = [0; uart16550::FIFO];
            let n =
                bytes.iter_mut().zip(self.model.lock().transmitting()).map(|(to, from)| *to = from).count();
            if n == 0 {
                return;
            }
            let taken = self.line.write(&bytes[..n]);
            if taken > 0 {
                let mut model = self.model.lock();
                model.transmitted(taken);
                self.settle(&mut model);
            }
            if taken < n {
                return;
            }
        }
    }

    /// Changes the modem status inputs.
    pub fn set_modem_lines(&self, cts: bool, dsr: bool, ri: bool, dcd: bool) {
        let mut model = self.model.lock();
        model.set_modem_lines(cts, dsr, ri, dcd);
        self.settle(&mut model);
    }

    fn receive(&self, bytes: &[u8]) {
        let mut model = self.model.lock();
        for &byte in bytes {
            model.receive(byte);
        }
        self.settle(&mut model);
    }

    /// After the model has changed: drives the pin and keeps the time-out's timer.
    fn settle(&self, model: &mut MutexGuard<'_, Uart16550>) {
        self.irq.set(model.interrupt());
        match model.take_timeout_request() {
            Some(Some(nanos)) => self.timeout.arm(self.clock.now().saturating_add(nanos)),
            Some(None) => self.timeout.cancel(),
            None => {}
        }
    }

    fn write_register(&self, reg: u16, value: u8) {
        let order = self.tx.lock();
        let mut model = self.model.lock();
        let had_room = model.receive_room() > 0;
        let pushed_out = model.write(reg, value);
        let sends = model.transmitting().next().is_some();
        self.settle(&mut model);
        let has_room = model.receive_room() > 0;
        drop(model);
        if !pushed_out.is_empty() {
            self.line.write_all(&pushed_out, Duration::ZERO);
        }
        if sends {
            self.send(&order);
        }
        drop(order);
        if has_room && !had_room {
            self.line.accept_input();
        }
    }

    fn read_register(&self, reg: u16) -> u8 {
        let mut model = self.model.lock();
        let value = model.read(reg);
        self.settle(&mut model);
        let room = reg & 7 == 0 && model.receive_room() > 0;
        let held = reg & 7 == 5 && model.transmitting().next().is_some();
        drop(model);
        if room {
            self.line.accept_input();
        }
        if held {
            // A guest that asks again and again leaves the host's CPU to whoever makes room.
            std::thread::yield_now();
        }
        value
    }
}

impl TimerOwner for Serial {
    /// Nothing was received for as long as four characters take.
    fn expired(&self) {
        let mut model = self.model.lock();
        model.receive_timeout();
        self.settle(&mut model);
    }
}

impl PortIo for Serial {
    fn read(&self, offset: u16, size: u8) -> u32 {
        read_bytes(size, |i| self.read_register(offset.wrapping_add(i)))
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        write_bytes(size, value, |i, b| self.write_register(offset.wrapping_add(i), b));
    }
}

/// The port as its backend sees it; weak, so that dropping the port drops the backend.
struct Input(Weak<Serial>);

impl Receiver for Input {
    fn can_receive(&self) -> usize {
        let Some(serial) = self.0.upgrade() else { return 0 };
        if serial.held.lock().is_some() { 0 } else { serial.model.lock().receive_room() }
    }

    fn receive(&self, bytes: &[u8]) {
        let Some(serial) = self.0.upgrade() else { return };
        match &mut *serial.held.lock() {
            // There was room when the line asked.
            Some(held) => held.extend_from_slice(bytes),
            None => serial.receive(bytes),
        }
    }

    fn writable(&self) {
        if let Some(serial) = self.0.upgrade() {
            serial.send(&serial.tx.lock());
        }
    }

    fn event(&self, event: Event) {
        let Some(serial) = self.0.upgrade() else { return };
        // A break is a moment of the line: one in a pause has passed.
        if event == Event::Break && serial.held.lock().is_none() {
            let mut model = serial.model.lock();
            model.receive_break();
            serial.settle(&mut model);
        }
    }
}

/// What is saved of a serial port. Characters that are on their way through the host, in either direction, are not the
/// guest's any more, or not yet.
#[derive(Serialize, Deserialize)]
pub struct SerialV1 {
    model: Uart16550,
    timeout: Option<Nanos>,
    irq: bool,
}

impl Device for Serial {
    type State = SerialV1;
    const KIND: &'static str = "isa-serial";

    fn aml(&self) -> Option<Fragment> {
        let &base = self.base.get()?;
        let n = 1 + COM.iter().position(|(port, _)| *port == base)?;
        let crs = crs(vec![&io(base, PORTS as u8), &IrqNoFlags(self.irq.line() as u8)]);
        Some(Fragment::device(Under::Isa, &format!("COM{n}"), vec![&hid("PNP0501"), &name("_UID", &n), &crs]))
    }

    /// What is under way on the line is not lost.
    fn reset(&self, _: Reset) {
        let _order = self.tx.lock();
        let mut model = self.model.lock();
        let left = model.reset();
        self.settle(&mut model);
        drop(model);
        self.line.write_all(&left, Duration::ZERO);
        self.line.accept_input();
    }

    fn pause(&self) {
        self.held.lock().get_or_insert_default();
    }

    fn resume(&self) {
        let mut held = self.held.lock();
        self.receive(&held.take().unwrap_or_default());
        drop(held);
        self.send(&self.tx.lock());
        self.line.accept_input();
    }

    fn save(&self) -> SerialV1 {
        let model = self.model.lock().clone();
        SerialV1 { model, timeout: self.timeout.deadline(), irq: self.irq.level() }
    }

    fn restore(&self, SerialV1 { model, timeout, irq }: SerialV1) -> Result<(), Invalid> {
        model.check()?;
        let mut now = self.model.lock();
        *now = model;
        self.timeout.set(timeout);
        self.irq.restore(irq);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chardev::testing::Loose;
    use crate::clock::ManualClock;
    use crate::events::testing::hammer;

    fn port() -> (Arc<Loose>, Arc<Serial>, Arc<ManualClock>, Irq) {
        let (line, clock, irq) = (Loose::new(), Arc::new(ManualClock::new()), Irq::unconnected());
        let serial = Serial::new(line.clone(), irq.clone(), clock.clone());
        (line, serial, clock, irq)
    }

    #[test]
    fn transmitted_bytes_reach_the_backend_in_order() {
        let (line, serial, _, _) = port();
        for b in b"Linux version" {
            assert_eq!(serial.read(5, 1) & 0x60, 0x60);
            serial.write(0, 1, u32::from(*b));
        }
        assert_eq!(line.take(), b"Linux version");
    }

    #[test]
    fn a_line_that_takes_nothing_holds_the_transmitter_and_an_interrupt_says_when_it_goes_on() {
        let (line, serial, _, irq) = port();
        *line.limit.lock() = Some(1);
        serial.write(2, 1, 0x01);
        serial.write(4, 1, 0x0b);
        serial.write(1, 1, 0x02);
        assert_eq!(serial.read(2, 1), 0xc2, "enabled while the transmitter is empty");
        serial.write(0, 1, u32::from(b'a'));
        assert!(irq.level(), "taken at once");
        assert_eq!((serial.read(2, 1), serial.read(5, 1) & 0x60), (0xc2, 0x60));
        for b in b"bcdefghijklmnopq" {
            serial.write(0, 1, u32::from(*b));
            assert_eq!((serial.read(5, 1) & 0x60, irq.level()), (0, false));
        }
        assert_eq!(line.written.lock().as_slice(), b"a");
        // Some room, but not for all.
        *line.limit.lock() = Some(10);
        line.receiver().writable();
        assert_eq!(line.written.lock().as_slice(), b"abcdefghij");
        assert_eq!((serial.read(5, 1) & 0x60, irq.level()), (0, false));
        *line.limit.lock() = None;
        line.receiver().writable();
        assert_eq!(line.take(), b"abcdefghijklmnopq");
        assert_eq!((serial.read(5, 1) & 0x60, irq.level()), (0x60, true));
        assert_eq!(serial.read(2, 1), 0xc2);
        assert!(line.reserve.lock().is_empty());
    }

    #[test]
    fn a_guest_that_does_not_look_whether_there_is_room_loses_nothing_while_the_reserve_lasts() {
        for fifo in [0x00, 0x01] {
            let (line, serial, _, _) = port();
            *line.limit.lock() = Some(0);
            serial.write(2, 1, fifo);
            let text: Vec<u8> = (0..200).collect();
            for b in &text[..100] {
                serial.write(0, 1, u32::from(*b));
            }
            // A driver that starts clears the FIFOs; a real line would have taken them long ago.
            serial.write(2, 1, 0x07);
            for b in &text[100..] {
                serial.write(0, 1, u32::from(*b));
            }
            serial.reset(Reset::Board);
            assert_eq!(line.reserve.lock().as_slice(), text);
            assert_eq!(serial.read(5, 1) & 0x60, 0x60);
        }
    }

    #[test]
    fn the_backend_is_asked_for_more_when_the_guest_has_read() {
        let (line, serial, _, _) = port();
        serial.write(2, 1, 0x01);
        let rx = line.receiver();
        assert_eq!(rx.can_receive(), 16);
        rx.receive(b"0123456789abcdef");
        assert_eq!(rx.can_receive(), 0);
        let before = *line.accepts.lock();
        assert_eq!(serial.read(0, 1), u32::from(b'0'));
        assert_eq!((rx.can_receive(), *line.accepts.lock()), (1, before + 1));
        serial.write(2, 1, 0x03);
        assert_eq!(rx.can_receive(), 16);
    }

    #[test]
    fn a_byte_below_the_trigger_level_interrupts_after_four_characters_of_silence() {
        let (line, serial, clock, irq) = port();
        serial.write(2, 1, 0xc1);
        serial.write(3, 1, 0x83);
        serial.write(0, 1, 1); // 115,200 baud
        serial.write(1, 1, 0);
        serial.write(3, 1, 0x03);
        serial.write(4, 1, 0x0b);
        serial.write(1, 1, 0x01);
        line.receiver().receive(b"x");
        assert!(!irq.level());
        clock.advance(300_000);
        assert!(!irq.level());
        clock.advance(60_000);
        assert!(irq.level());
        assert_eq!(serial.read(2, 1), 0xcc);
        assert_eq!(serial.read(0, 1), u32::from(b'x'));
        assert!(!irq.level());
    }

    #[test]
    fn a_break_from_the_terminal_is_seen_in_the_line_status() {
        let (line, serial, _, _) = port();
        line.receiver().event(Event::Break);
        assert_eq!(serial.read(5, 1) & 0x11, 0x11);
        assert_eq!(serial.read(0, 1), 0);
    }

    #[test]
    fn no_access_of_any_width_panics() {
        let (line, serial, _, _) = port();
        hammer(&*serial, 8);
        let rx = line.receiver();
        rx.receive(&vec![0x55; rx.can_receive()]);
        hammer(&*serial, 8);
    }
}
