use super::*;
use crate::bus::{Irq, IrqSink, Mmio, PortIo};
use crate::pci::testing::{Pc, Wires};
use crate::pci::{BarKind, BarTarget, CONFIG_PORTS, DevFn};
use mynah_mmu::Target;

struct Card(Function);

struct Registers;
impl PortIo for Registers {
    fn read(&self, _: u16, _: u8) -> u32 {
        0x5a
    }
    fn write(&self, _: u16, _: u8, _: u32) {}
}
impl Mmio for Registers {
    fn read(&self, offset: u64, _: u8) -> u64 {
        offset
    }
    fn write(&self, _: u64, _: u8, _: u64) {}
}

impl PciDevice for Card {
    fn config(&self) -> &Mutex<ConfigSpace> {
        self.0.config()
    }
    fn function(&self) -> Option<&Function> {
        Some(&self.0)
    }
    fn bar(&self, index: usize) -> BarTarget {
        if index == 0 { BarTarget::Io(Arc::new(Registers)) } else { BarTarget::Memory(Arc::new(Registers)) }
    }
}

const BRIDGE: DevFn = DevFn::new(3, 0);
const CARD: DevFn = DevFn::new(2, 0);

/// A bridge on bus 0, and a card on the bus behind it, or behind a second bridge in slot 1 of that.
fn setup(depth: usize) -> (Pc, Arc<Card>) {
    let pc = Pc::new();
    let _ = Wires::on(&pc.bus);
    let mut bus = pc.bus.clone();
    for n in 0..depth {
        let at = if n == 0 { BRIDGE } else { DevFn::new(1, 0) };
        let behind = bus.behind(at, format!("pci.{}", n + 1), false);
        let function = bus.function(at, ConfigSpace::new_bridge(0x1b36, 1, 0));
        bus.attach(at, Arc::new(Bridge::<false> { function, bus: behind.clone(), express: None }));
        bus = behind;
    }
    let mut c = ConfigSpace::new(0x1234, 0x5678, 0xff_0000, 0);
    c.add_bar(0, BarKind::Io, 16);
    c.add_bar(1, BarKind::Memory32 { prefetchable: false }, 0x1000);
    c.add_bar(2, BarKind::Memory64 { prefetchable: true }, 0x10_0000);
    c.set8(reg::INTERRUPT_PIN, 1);
    let card = Arc::new(Card(bus.function(CARD, c)));
    bus.attach(CARD, card.clone());
    (pc, card)
}

/// A configuration access on bus `bus`.
fn read(pc: &Pc, bus: u8, at: DevFn, register: u8) -> u32 {
    let function = u32::from(at.device()) << 11 | u32::from(at.function()) << 8;
    pc.ports.write(CONFIG_PORTS, 4, 1 << 31 | u32::from(bus) << 16 | function | u32::from(register & 0xfc));
    pc.ports.read(CONFIG_PORTS + 4, 4)
}

fn write(pc: &Pc, bus: u8, at: DevFn, register: u8, value: u32) {
    read(pc, bus, at, register);
    pc.ports.write(CONFIG_PORTS + 4, 4, value);
}

#[test]
fn buses_have_the_numbers_that_bridges_say() {
    let (pc, _) = setup(2);
    assert_eq!(read(&pc, 1, CARD, 0), u32::MAX, "no bridge is numbered");
    write(&pc, 0, BRIDGE, 0x18, 0x0003_0200);
    write(&pc, 2, DevFn::new(1, 0), 0x18, 0x0003_0302);
    assert_eq!(read(&pc, 2, DevFn::new(1, 0), 8) >> 16, 0x0604);
    assert_eq!(read(&pc, 3, CARD, 0), 0x5678_1234);
    assert_eq!((read(&pc, 1, CARD, 0), read(&pc, 4, CARD, 0)), (u32::MAX, u32::MAX));
    // Behind the first bridge's last bus nothing is found.
    write(&pc, 0, BRIDGE, 0x18, 0x0002_0200);
    assert_eq!(read(&pc, 3, CARD, 0), u32::MAX);
}

#[test]
fn bars_are_seen_through_the_windows_of_all_bridges() {
    let (pc, _) = setup(2);
    write(&pc, 0, BRIDGE, 0x18, 0x0002_0100);
    write(&pc, 1, DevFn::new(1, 0), 0x18, 0x0002_0201);
    for (register, value) in [(0x10, 0xd000), (0x14, 0xe010_0000), (0x18, 0x1000_0000), (0x1c, 0x8), (4, 7)] {
        write(&pc, 2, CARD, register, value);
    }
    let seen = |at: u64| matches!(pc.memory.lookup(at), Target::Mmio(..));
    let all = || (pc.ports.read(0xd000, 1) == 0x5a, seen(0xe010_0000), seen(0x8_1000_0000));
    let open = |bus: u8, at: DevFn| {
        for (register, value) in
            [(0x1c, 0xd0d0), (0x20, 0xe010_e010), (0x24, 0x1000_1000), (0x28, 8), (0x2c, 8), (4, 7)]
        {
            write(&pc, bus, at, register, value);
        }
    };
    assert_eq!(all(), (false, false, false));
    open(1, DevFn::new(1, 0));
    assert_eq!(all(), (false, false, false), "the bridge before it is closed");
    open(0, BRIDGE);
    assert_eq!(all(), (true, true, true));
    write(&pc, 0, BRIDGE, 4, 1);
    assert_eq!(all(), (true, false, false), "memory is not let through");
    write(&pc, 0, BRIDGE, 4, 7);
    write(&pc, 0, BRIDGE, 0x20, 0xe000_e010);
    assert_eq!(all(), (true, false, true), "the limit is below the base");
    pc.bus.device(BRIDGE).unwrap().function().unwrap().reset();
    pc.bus.follow();
    assert_eq!(all(), (false, false, false));
}

#[derive(Default)]
struct Pin(Mutex<Vec<(DevFn, u8)>>);
impl IrqSink for Pin {
    fn set(&self, _: u32, _: bool) {}
}

#[test]
fn pins_are_rotated_by_each_bridge_on_the_way() {
    let pc = Pc::new();
    let asked = Arc::new(Pin::default());
    let log = asked.clone();
    let sink: Arc<dyn IrqSink> = asked.clone();
    pc.bus.connect(
        Arc::new(crate::pci::function::NoMessages),
        Box::new(move |at, pin| {
            log.0.lock().push((at, pin));
            Irq::new(sink.clone(), 0)
        }),
    );
    let first = pc.bus.behind(BRIDGE, "a".into(), false);
    let second = first.behind(DevFn::new(2, 0), "b".into(), false);
    let mut c = ConfigSpace::new(0x1234, 0x5678, 0xff_0000, 0);
    c.set8(reg::INTERRUPT_PIN, 2);
    second.function(DevFn::new(5, 0), c);
    // INTB# of device 5 is INTC# at the inner bridge, device 2, and INTA# at the outer one.
    assert_eq!(*asked.0.lock(), [(BRIDGE, 0)]);
    assert!(pc.bus.find("b").is_none(), "no bridge was plugged in");
}
