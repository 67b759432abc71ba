//! virtio-console (5.3): lines of characters, several on one device.
//!
//! ```text
//!   queues 0, 1   port 0: to and from the guest       2n + 2, 2n + 3   port n
//!   queues 2, 3   control: what ports there are, their names, who has opened which end
//! ```
//!
//! `virtio-serial-pci` is the device, `virtconsole` and `virtserialport` are ports on it, each with a line of the host.
//! A driver without VIRTIO_CONSOLE_F_MULTIPORT sees port 0 alone. What the host's line has no room for stays in the
//! ring, so that the guest waits as at a real line; what the guest does not take stays with the host. Ports neither
//! come nor go while the machine runs. On purpose absent: the console's size (QEMU does not tell it either).
use super::chain::{self, Broken, Chain};
use super::mmio::{VirtioMmio, mmio_properties};
use super::pci::{PciOptions, VirtioPci, pci_properties};
use super::{Core, Model, Served, Then};
use crate::chardev::{Chardev, Event, Receiver};
use crate::device::Invalid;
use crate::kind::{Bus, KINDS, Kind, PlugError, Property, Site, Type, Values};
use linkme::distributed_slice;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// Features of the type (5.3.3).
const MULTIPORT: u64 = 1 << 1;
const EMERGENCY_WRITE: u64 = 1 << 2;
/// Configuration space: columns and rows 16 each, ports 32, emergency character 32.
const EMERGENCY: usize = 8;
/// The control queues, to and from the guest.
const TO_GUEST: usize = 2;
const FROM_GUEST: usize = 3;
/// Bytes of a line that wait for the guest's buffers.
const ROOM: usize = 4096;
/// Control messages that wait for the guest's buffers; what is beyond is lost on a guest that gives none.
const MESSAGES: usize = 256;
/// Bytes that are read of the guest's memory at once.
const PIECE: usize = 4096;

/// Control messages (5.3.6.2).
mod event {
    pub const DEVICE_READY: u16 = 0;
    pub const PORT_ADD: u16 = 1;
    pub const PORT_READY: u16 = 3;
    pub const CONSOLE_PORT: u16 = 4;
    pub const PORT_OPEN: u16 = 6;
    pub const PORT_NAME: u16 = 7;
}

/// What is known of a port, beside its line.
#[derive(Default)]
struct PortState {
    /// The guest has opened its end.
    guest_open: bool,
    /// Somebody is at the host's.
    host_open: bool,
    /// From the host, for the guest.
    inbound: VecDeque<u8>,
    /// From the guest, and the bytes of it that have gone out.
    held: Option<(Chain, u64)>,
}

/// A line.
struct Port {
    number: u16,
    console: bool,
    name: String,
    line: Arc<dyn Chardev>,
    state: Mutex<PortState>,
}

impl Port {
    fn is_open(&self, state: &PortState) -> bool {
        self.console || state.guest_open
    }

    /// Queues to and from the guest.
    fn queues(&self) -> (usize, usize) {
        let first = if self.number == 0 { 0 } else { 2 * usize::from(self.number) + 2 };
        (first, first + 1)
    }
}

/// A device with ports.
pub struct Console {
    most: u16,
    emergency_write: bool,
    ports: Mutex<Vec<Arc<Port>>>,
    /// Control messages for the guest.
    control: Mutex<VecDeque<Vec<u8>>>,
    paused: AtomicBool,
    core: OnceLock<Weak<Core>>,
    me: Weak<Self>,
}

macro_rules! own_properties {
    ($with:ident) => {
        $with![
            Property {
                name: "max_ports",
                kind: Type::Number(1, 31),
                default: Some(31),
                help: "ports that there may be"
            },
            Property {
                name: "emergency-write",
                kind: Type::Switch,
                default: Some(1),
                help: "a guest without a driver can write to the console",
            },
        ]
    };
}

const PROPERTIES: &[Property] = own_properties!(pci_properties);

#[distributed_slice(KINDS)]
static KIND: Kind = Kind {
    name: "virtio-serial-pci",
    bus: Bus::Pci,
    about: "ports for virtconsole and virtserialport, virtio",
    properties: PROPERTIES,
    plug,
};

#[distributed_slice(KINDS)]
static ALIAS: Kind =
    Kind { name: "virtio-serial", bus: Bus::Pci, about: "virtio-serial-pci", properties: PROPERTIES, plug };

const PORT_PROPERTIES: &[Property] = &[
    Property { name: "chardev", kind: Type::Chardev, default: None, help: "what is at the other end" },
    Property { name: "name", kind: Type::Text, default: None, help: "what the guest calls it" },
    Property {
        name: "nr",
        kind: Type::Number(0, 30),
        default: None,
        help: "its number (default: the next free one; 0 is a console's)",
    },
    Property {
        name: "bus",
        kind: Type::Text,
        default: None,
        help: "ID.0 of a virtio-serial-pci (default: the first one)",
    },
];

#[distributed_slice(KINDS)]
static CONSOLE: Kind = Kind {
    name: "virtconsole",
    bus: Bus::VirtioSerial,
    about: "a console's line on a virtio-serial-pci",
    properties: PORT_PROPERTIES,
    plug: |site, values| plug_port(site, values, true),
};

#[distributed_slice(KINDS)]
static PORT: Kind = Kind {
    name: "virtserialport",
    bus: Bus::VirtioSerial,
    about: "a line on a virtio-serial-pci",
    properties: PORT_PROPERTIES,
    plug: |site, values| plug_port(site, values, false),
};

#[distributed_slice(KINDS)]
static MMIO: Kind = Kind {
    name: "virtio-serial-device",
    bus: Bus::VirtioMmio,
    about: "ports for virtconsole and virtserialport, virtio",
    properties: own_properties!(mmio_properties),
    plug: |site, values| {
        let device = VirtioMmio::plug(site, values, console(values))?;
        enter(site, values, device.model());
        Ok(())
    },
};

fn plug(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let pci = PciOptions::of(values, 2)?;
    let device = VirtioPci::plug(site, values, console(values), 0x07_8000, pci)?;
    enter(site, values, device.model());
    Ok(())
}

fn console(values: &Values) -> Arc<Console> {
    let most = values.number("max_ports").map_or(31, |n| n as u16);
    let emergency = values.switch("emergency-write") || !values.values.contains_key("emergency-write");
    Console::new(most, emergency)
}

/// Ports can be added to it.
fn enter(site: &Site<'_>, values: &Values, device: &Arc<Console>) {
    let mut consoles = site.consoles.borrow_mut();
    let name = values.id.clone().unwrap_or_else(|| format!("virtio-serial{}", consoles.len()));
    consoles.push((name, device.clone()));
}

fn plug_port(site: &Site<'_>, values: &Values, console: bool) -> Result<(), PlugError> {
    let line = site.chardev(values, "chardev")?;
    let consoles = site.consoles.borrow();
    let wanted = values.text("bus");
    let found = consoles.iter().find(|(name, _)| wanted.is_none_or(|w| w.strip_suffix(".0") == Some(name)));
    let (_, device) = found.ok_or_else(|| {
        PlugError::Value(match wanted {
            Some(bus) => format!("bus={bus}: there is no such virtio-serial-pci before it"),
            None => "it goes on a virtio-serial-pci, and there is none before it".into(),
        })
    })?;
    let number = values.number("nr").map(|n| n as u16);
    let name = values.text("name").unwrap_or_default();
    device.add_port(number, console, name, line).map_err(PlugError::Value)
}

impl Console {
    /// A device for up to `most` ports, with none.
    pub fn new(most: u16, emergency_write: bool) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            most: most.clamp(1, 31),
            emergency_write,
            ports: Mutex::default(),
            control: Mutex::default(),
            paused: AtomicBool::new(false),
            core: OnceLock::new(),
            me: me.clone(),
        })
    }

    /// Adds a port, before the machine runs.
    ///
    /// # Errors
    /// Its number is another one's, or there is none left; the text says so.
    pub fn add_port(
        &self,
        number: Option<u16>,
        console: bool,
        name: &str,
        line: Arc<dyn Chardev>,
    ) -> Result<(), String> {
        let mut ports = self.ports.lock();
        let free = |n: &u16| ports.iter().all(|p| p.number != *n);
        // Drivers without MULTIPORT take port 0 for a console.
        let first = u16::from(!console);
        let number = match number {
            Some(0) if !console => return Err("nr=0: that is a console's".into()),
            Some(n) if n >= self.most => return Err(format!("nr={n}: there are {} ports", self.most)),
            Some(n) if !free(&n) => return Err(format!("nr={n}: there is another port")),
            Some(n) => n,
            None => (first..self.most).find(free).ok_or("all ports are in use")?,
        };
        let state = Mutex::new(PortState { host_open: true, ..PortState::default() });
        ports.push(Arc::new(Port { number, console, name: name.into(), line: line.clone(), state }));
        drop(ports);
        line.set_receiver(Arc::new(Line { device: self.me.clone(), number }));
        Ok(())
    }

    fn port(&self, number: u32) -> Option<Arc<Port>> {
        self.ports.lock().iter().find(|p| u32::from(p.number) == number).cloned()
    }

    fn core(&self) -> Option<Arc<Core>> {
        self.core.get().and_then(Weak::upgrade)
    }

    fn kick(&self, queue: usize) {
        if let Some(core) = self.core() {
            core.kick(queue);
        }
    }

    fn is_multiport(&self) -> bool {
        self.core().is_some_and(|core| core.features() & MULTIPORT != 0)
    }

    /// Tells the guest something of a port, when it gives a buffer for it.
    fn tell(&self, port: u16, event: u16, value: u16, text: &[u8]) {
        let mut control = self.control.lock();
        if control.len() < MESSAGES {
            let head = u64::from(port) | u64::from(event) << 32 | u64::from(value) << 48;
            control.push_back([&head.to_le_bytes(), text].concat());
        }
    }

    /// A control message of the guest. Whether there are answers.
    fn told(&self, port: u32, event: u16, value: u16) {
        match (event, self.port(port)) {
            (event::DEVICE_READY, _) if value != 0 => {
                let ports = self.ports.lock().clone();
                ports.iter().for_each(|p| self.tell(p.number, event::PORT_ADD, 1, &[]));
            }
            (event::PORT_READY, Some(p)) if value != 0 => {
                if p.console {
                    self.tell(p.number, event::CONSOLE_PORT, 1, &[]);
                }
                if !p.name.is_empty() {
                    self.tell(p.number, event::PORT_NAME, 1, &[p.name.as_bytes(), &[0]].concat());
                }
                if p.state.lock().host_open {
                    self.tell(p.number, event::PORT_OPEN, 1, &[]);
                }
            }
            (event::PORT_OPEN, Some(p)) => {
                p.state.lock().guest_open = value != 0;
                p.line.accept_input();
            }
            _ => {}
        }
    }

    /// Messages to the guest.
    fn serve_control(&self, served: &mut Served<'_, '_>) -> Result<Then, Broken> {
        loop {
            if self.control.lock().is_empty() {
                return Ok(Then::Later);
            }
            let Some(chain) = served.pop()? else { return Ok(Then::Empty) };
            let message = self.control.lock().pop_front().unwrap_or_default();
            let room = chain::total(&chain.writable).min(message.len() as u64) as usize;
            if !chain::write(served.memory, &chain.writable, 0, &message[..room]) {
                return Err(Broken("a buffer that is not in memory"));
            }
            served.done(chain.head, room as u32)?;
        }
    }

    /// Messages of the guest.
    fn serve_orders(&self, served: &mut Served<'_, '_>) -> Result<Then, Broken> {
        let mut answers = false;
        while let Some(chain) = served.pop()? {
            let mut head = [0; 8];
            if chain::read(served.memory, &chain.readable, 0, &mut head) {
                let head = u64::from_le_bytes(head);
                self.told(head as u32, (head >> 32) as u16, (head >> 48) as u16);
                answers = true;
            }
            served.done(chain.head, 0)?;
        }
        if answers {
            self.kick(TO_GUEST);
        }
        Ok(Then::Empty)
    }

    /// Characters for the guest.
    fn serve_inbound(&self, port: &Port, served: &mut Served<'_, '_>) -> Result<Then, Broken> {
        let mut taken = false;
        let then = loop {
            if port.state.lock().inbound.is_empty() {
                break Then::Later;
            }
            let Some(chain) = served.pop()? else { break Then::Empty };
            let bytes: Vec<u8> = {
                let mut state = port.state.lock();
                let n = chain::total(&chain.writable).min(state.inbound.len() as u64) as usize;
                state.inbound.drain(..n).collect()
            };
            taken = true;
            if !chain::write(served.memory, &chain.writable, 0, &bytes) {
                return Err(Broken("a buffer that is not in memory"));
            }
            served.done(chain.head, bytes.len() as u32)?;
        };
        if taken {
            port.line.accept_input();
        }
        Ok(then)
    }

    /// Characters of the guest.
    fn serve_outbound(&self, port: &Port, served: &mut Served<'_, '_>) -> Result<Then, Broken> {
        if served.is_paused() {
            return Ok(Then::Later);
        }
        loop {
            let held = port.state.lock().held.take();
            let (chain, mut from) = match held {
                Some(held) => held,
                None => match served.pop()? {
                    Some(chain) => (chain, 0),
                    None => return Ok(Then::Empty),
                },
            };
            let end = chain::total(&chain.readable);
            while from < end {
                let mut bytes = vec![0; (end - from).min(PIECE as u64) as usize];
                if !chain::read(served.memory, &chain.readable, from, &mut bytes) {
                    return Err(Broken("a buffer that is not in memory"));
                }
                let n = port.line.write(&bytes).min(bytes.len());
                from += n as u64;
                if n < bytes.len() {
                    // The line calls when it has room again.
                    port.state.lock().held = Some((chain, from));
                    return Ok(Then::Later);
                }
            }
            served.done(chain.head, 0)?;
        }
    }
}

/// What a line of the host sees of the port.
struct Line {
    device: Weak<Console>,
    number: u16,
}

impl Line {
    fn port(&self) -> Option<(Arc<Console>, Arc<Port>)> {
        let device = self.device.upgrade()?;
        let port = device.port(self.number.into())?;
        Some((device, port))
    }
}

impl Receiver for Line {
    fn can_receive(&self) -> usize {
        let Some((device, port)) = self.port() else { return 0 };
        let state = port.state.lock();
        let ready = port.is_open(&state) && device.core().is_some_and(|core| core.is_running());
        let paused = device.paused.load(Ordering::SeqCst);
        if ready && !paused { ROOM.saturating_sub(state.inbound.len()) } else { 0 }
    }

    fn receive(&self, bytes: &[u8]) {
        if let Some((device, port)) = self.port() {
            port.state.lock().inbound.extend(bytes);
            device.kick(port.queues().0);
        }
    }

    fn writable(&self) {
        if let Some((device, port)) = self.port() {
            device.kick(port.queues().1);
        }
    }

    fn event(&self, event: Event) {
        let Some((device, port)) = self.port() else { return };
        let open = match event {
            Event::Opened => true,
            Event::Closed => false,
            Event::Break => return,
        };
        // A console's line is open always, as a terminal that is switched off.
        if !port.console && std::mem::replace(&mut port.state.lock().host_open, open) != open {
            device.tell(port.number, event::PORT_OPEN, open.into(), &[]);
            device.kick(TO_GUEST);
        }
    }
}

/// What is saved of a port.
#[derive(Serialize, Deserialize)]
struct PortV1 {
    number: u16,
    guest_open: bool,
    #[serde(with = "serde_bytes")]
    inbound: Vec<u8>,
    held: Option<(Chain, u64)>,
}

/// What is saved of a device with ports. Who is at the host's end is found anew.
#[derive(Serialize, Deserialize)]
pub struct ConsoleV1 {
    ports: Vec<PortV1>,
    control: Vec<Vec<u8>>,
}

impl Model for Console {
    const ID: u16 = 3;
    const PCI: &'static str = "virtio-serial-pci";
    const MMIO: &'static str = "virtio-serial-device";
    type State = ConsoleV1;

    fn features(&self) -> u64 {
        let multiport = if self.most > 1 { MULTIPORT } else { 0 };
        multiport | if self.emergency_write { EMERGENCY_WRITE } else { 0 }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let all = if self.most > 1 { 2 * usize::from(self.most) + 2 } else { 2 };
        (0..all).map(|n| if n == TO_GUEST || n == FROM_GUEST { 32 } else { 128 }).collect()
    }

    fn connect(&self, core: &Arc<Core>) {
        let _ = self.core.set(Arc::downgrade(core));
    }

    fn config(&self) -> Vec<u8> {
        [0, u32::from(self.most), 0].map(u32::to_le_bytes).concat()
    }

    fn write_config(&self, at: usize, bytes: &[u8]) {
        if let (EMERGENCY, Some(byte), true) = (at, bytes.first(), self.emergency_write)
            && let Some(port) = self.ports.lock().iter().find(|p| p.console).cloned()
        {
            port.line.write_all(&[*byte], Duration::ZERO);
        }
    }

    fn started(&self, _: u64) {
        self.ports.lock().clone().iter().for_each(|p| p.line.accept_input());
    }

    fn serve(&self, queue: usize, served: &mut Served<'_, '_>) -> Result<Then, Broken> {
        if self.is_multiport() {
            match queue {
                TO_GUEST => return self.serve_control(served),
                FROM_GUEST => return self.serve_orders(served),
                _ => {}
            }
        }
        let port = self.ports.lock().iter().find(|p| p.queues().0 == queue & !1).cloned();
        match port {
            Some(port) if queue & 1 == 0 => self.serve_inbound(&port, served),
            Some(port) => self.serve_outbound(&port, served),
            // Nobody is there: what is written goes nowhere.
            None if queue & 1 == 0 => Ok(Then::Later),
            None => {
                while let Some(chain) = served.pop()? {
                    served.done(chain.head, 0)?;
                }
                Ok(Then::Empty)
            }
        }
    }

    fn halt(&self, queue: usize) {
        if queue == TO_GUEST {
            self.control.lock().clear();
        }
        let port = self.ports.lock().iter().find(|p| p.queues().1 == queue).cloned();
        if let Some(port) = port {
            port.state.lock().held = None;
        }
    }

    fn reset(&self) {
        for port in self.ports.lock().iter() {
            let mut state = port.state.lock();
            state.guest_open = false;
            state.inbound.clear();
        }
    }

    fn drain(&self) {
        self.paused.store(true, Ordering::SeqCst);
    }

    fn resume(&self) {
        self.paused.store(false, Ordering::SeqCst);
        self.ports.lock().clone().iter().for_each(|p| p.line.accept_input());
    }

    fn save(&self) -> ConsoleV1 {
        let of = |p: &Arc<Port>| {
            let state = p.state.lock();
            PortV1 {
                number: p.number,
                guest_open: state.guest_open,
                inbound: state.inbound.iter().copied().collect(),
                held: state.held.clone(),
            }
        };
        let control = self.control.lock().iter().cloned().collect();
        ConsoleV1 { ports: self.ports.lock().iter().map(of).collect(), control }
    }

    fn restore(&self, ConsoleV1 { ports: saved, control }: ConsoleV1) -> Result<(), Invalid> {
        let ports = self.ports.lock();
        let same = ports.len() == saved.len() && ports.iter().zip(&saved).all(|(p, s)| p.number == s.number);
        if !same {
            return Err(Invalid("the ports"));
        }
        let sound = |(chain, from): &(Chain, u64)| chain.is_sound() && *from <= chain::total(&chain.readable);
        if control.len() > MESSAGES
            || saved.iter().any(|s| s.held.as_ref().is_some_and(|held| !sound(held)))
            || saved.iter().any(|s| s.inbound.len() > 2 * ROOM)
        {
            return Err(Invalid("what waits at a port"));
        }
        *self.control.lock() = control.into();
        for (port, s) in ports.iter().zip(saved) {
            let mut state = port.state.lock();
            state.guest_open = s.guest_open;
            (state.inbound, state.held) = (s.inbound.into(), s.held);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Rig, WAYS, Way};
    use super::*;
    use crate::chardev::testing::Loose;

    const BUFFER: u64 = 0x8_0000;

    fn rig(way: Way) -> (Rig<Console>, Arc<Loose>, Arc<Loose>) {
        let (console, line) = (Loose::new(), Loose::new());
        let device = Console::new(4, true);
        device.add_port(None, true, "", console.clone()).unwrap();
        device.add_port(None, false, "org.mynah.0", line.clone()).unwrap();
        (Rig::new(way, device), console, line)
    }

    fn order(rig: &mut Rig<Console>, port: u32, event: u16, value: u16) {
        rig.pc.memory.write_u32(BUFFER, port);
        rig.pc.memory.write_u32(BUFFER + 4, u32::from(event) | u32::from(value) << 16);
        rig.add(3, &[(BUFFER, 8, false)]);
        rig.notify(3);
        assert_eq!(rig.used(3).len(), 1);
    }

    /// Control messages to the guest, which has 16 buffers at a time.
    fn messages(rig: &mut Rig<Console>) -> Vec<(u32, u16, u16, Vec<u8>)> {
        for n in 0..8 {
            rig.add(2, &[(BUFFER + 0x100 * (n + 1), 64, true)]);
        }
        rig.notify(2);
        let used = rig.used(2);
        let got = used.into_iter().map(|(head, len)| {
            let at = BUFFER + 0x100 * (u64::from(head % 8) + 1);
            let mut bytes = vec![0; len as usize];
            rig.pc.memory.read(at, &mut bytes);
            let word = |n: usize| u16::from_le_bytes([bytes[n], bytes[n + 1]]);
            (u32::from(word(0)), word(4), word(6), bytes[8..].to_vec())
        });
        got.collect()
    }

    #[test]
    fn a_driver_of_one_port_writes_and_reads() {
        for way in WAYS {
            let (mut rig, console, _) = rig(way);
            rig.start(0);
            rig.pc.memory.write(BUFFER, b"hello");
            rig.add(1, &[(BUFFER, 2, false), (BUFFER + 2, 3, false)]);
            rig.notify(1);
            assert_eq!((console.take(), rig.used(1).len()), (b"hello".to_vec(), 1), "{way:?}");
            rig.add(0, &[(BUFFER, 3, true)]);
            rig.notify(0);
            assert_eq!(console.receiver().can_receive(), ROOM, "{way:?}");
            console.receiver().receive(b"typed");
            assert_eq!(rig.used(0), [(0, 3)], "{way:?}");
            rig.add(0, &[(BUFFER + 3, 10, true)]);
            rig.notify(0);
            assert_eq!(rig.used(0)[0].1, 2, "{way:?}");
            let mut text = [0; 5];
            rig.pc.memory.read(BUFFER, &mut text);
            assert_eq!(&text, b"typed", "{way:?}");
            rig.set_config(8, 4, u32::from(b'!').into());
            assert_eq!(console.take(), b"!", "{way:?}");
            console.receiver().receive(b"lost");
            rig.set_status(0);
            assert_eq!(console.receiver().can_receive(), 0, "{way:?}: no driver");
        }
    }

    #[test]
    fn ports_are_told_of_and_are_heard_when_the_guest_has_opened_them() {
        let (mut rig, _, line) = rig(Way::Modern);
        rig.start(MULTIPORT);
        assert_eq!(rig.config(4, 4), 4);
        order(&mut rig, 0, event::DEVICE_READY, 1);
        assert_eq!(messages(&mut rig), [(0, 1, 1, vec![]), (1, 1, 1, vec![])]);
        order(&mut rig, 1, event::PORT_READY, 1);
        order(&mut rig, 0, event::PORT_READY, 1);
        order(&mut rig, 99, event::PORT_READY, 1);
        let name = b"org.mynah.0\0".to_vec();
        let told = messages(&mut rig);
        assert_eq!(told, [(1, 7, 1, name), (1, 6, 1, vec![]), (0, 4, 1, vec![]), (0, 6, 1, vec![])]);
        assert_eq!(line.receiver().can_receive(), 0, "the guest has not opened it");
        order(&mut rig, 1, event::PORT_OPEN, 1);
        assert_eq!((line.receiver().can_receive(), *line.accepts.lock() > 0), (ROOM, true));
        line.receiver().event(Event::Closed);
        assert_eq!(messages(&mut rig), [(1, 6, 0, vec![])]);
        rig.pc.memory.write(BUFFER, b"port 1");
        rig.add(5, &[(BUFFER, 6, false)]);
        rig.notify(5);
        assert_eq!(line.take(), b"port 1");
        // A guest that asks again and again, and takes no answers.
        (0..1000).for_each(|_| order(&mut rig, 0, event::DEVICE_READY, 1));
        assert!(rig.model().control.lock().len() <= MESSAGES);
    }

    #[test]
    fn what_a_line_has_no_room_for_stays_in_the_ring_also_of_a_saved_machine() {
        let (mut rig, console, _) = rig(Way::Modern);
        rig.start(0);
        *console.limit.lock() = Some(5);
        let text: Vec<u8> = (0..10_000).map(|n| n as u8).collect();
        rig.pc.memory.write(BUFFER, &text);
        rig.add(1, &[(BUFFER, 10_000, false)]);
        rig.notify(1);
        assert_eq!((console.take(), rig.used(1)), (text[..5].to_vec(), vec![]));
        rig.pause();
        console.receiver().writable();
        assert_eq!((console.take(), console.receiver().can_receive()), (vec![], 0));
        console.receiver().receive(b"late");
        let (mut other, line, _) = self::rig(Way::Modern);
        other.restore(rig.save(), &rig).unwrap();
        other.resume();
        assert_eq!((line.take(), other.used(1)), (text[5..].to_vec(), vec![(0, 0)]));
        other.add(0, &[(BUFFER, 100, true)]);
        other.notify(0);
        assert_eq!(other.used(0).len(), 1, "what was typed meanwhile");
        *console.limit.lock() = None;
        rig.resume();
        assert_eq!((console.take(), rig.used(1).len()), (text[5..].to_vec(), 1));
    }

    #[test]
    fn ports_have_numbers_of_their_own() {
        let device = Console::new(3, true);
        let add = |nr, console| device.add_port(nr, console, "", Loose::new());
        assert_eq!(add(Some(2), false), Ok(()));
        assert!(add(Some(2), false).is_err() && add(Some(0), false).is_err() && add(Some(3), true).is_err());
        assert_eq!((add(None, false), add(None, true)), (Ok(()), Ok(())));
        assert!(add(None, true).is_err());
    }
}
