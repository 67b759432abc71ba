use super::*;
use crate::clock::ManualClock;
use crate::pci::DevFn;
use crate::pci::config::command;
use crate::pci::testing::{Pc, Wires};

const AT: DevFn = DevFn::new(4, 0);
const BASE: u64 = 0xfea0_0000;

struct Test {
    pc: Pc,
    clock: ManualClock,
    edu: Arc<Edu>,
    wires: Arc<Wires>,
}

fn setup() -> Test {
    let (pc, clock) = (Pc::new(), ManualClock::new());
    let wires = Wires::on(&pc.bus);
    let edu = Edu::new(pc.bus.function(AT, config()), Arc::new(clock.clone()), 0xfff_ffff);
    pc.bus.attach(AT, edu.clone());
    pc.write(AT, reg::BAR0, 4, BASE as u32);
    pc.write(AT, reg::COMMAND, 2, (command::MEMORY | command::MASTER).into());
    Test { pc, clock, edu, wires }
}

impl Test {
    fn read(&self, at: u64) -> u64 {
        self.pc.memory.phys_read(BASE + at, 4)
    }
    fn write(&self, at: u64, value: u64) {
        self.pc.memory.phys_write(BASE + at, 4, value);
    }
    fn took(&self) -> Vec<(u64, u32)> {
        self.wires.take()
    }
    fn transfer(&self, source: u64, destination: u64, count: u64, command: u64) {
        for (at, value) in [(0x80, source), (0x88, destination), (0x90, count), (0x98, command)] {
            self.pc.memory.phys_write(BASE + at, 8, value);
        }
        assert_eq!(self.read(0x98) & START, START, "it takes time");
        self.clock.advance(WORK);
        assert_eq!(self.read(0x98) & START, 0);
    }
}

#[test]
fn it_tells_what_it_is_and_that_it_lives() {
    let t = setup();
    assert_eq!((t.pc.read(AT, 0, 4), t.pc.read(AT, 8, 4)), (0x11e8_1234, 0x00ff_0010));
    t.write(4, 0x1234_5678);
    assert_eq!((t.read(0), t.read(4)), (0x0100_00ed, 0xedcb_a987));
    assert_eq!((t.pc.memory.phys_read(BASE, 2), t.read(0x30)), (0xffff, 0xffff_ffff));
}

#[test]
fn a_factorial_takes_time_and_interrupts_if_that_is_asked_for() {
    let t = setup();
    t.write(0x08, 5);
    t.write(0x08, 6);
    assert_eq!(t.read(0x20), 1);
    t.clock.advance(WORK);
    assert_eq!((t.read(0x20), t.read(0x08), t.read(0x24)), (0, 120, 0));
    t.write(0x20, 0x80);
    t.write(0x08, 13);
    t.clock.advance(WORK);
    assert_eq!((t.read(0x08), t.read(0x24), t.took()), (1_932_053_504, 1, vec![(0, 1)]));
    t.write(0x64, 1);
    assert_eq!((t.read(0x24), t.took()), (0, vec![(0, 0)]));
    assert_eq!([0, 1, 33, 34, u32::MAX].map(factorial), [1, 1, 0x8000_0000, 0, 0]);
}

#[test]
fn interrupts_are_messages_if_the_guest_wants_them() {
    let t = setup();
    let msi = t.pc.read(AT, reg::CAPABILITIES, 1) as u8;
    t.pc.write(AT, msi + 4, 4, 0xfee0_0000);
    t.pc.write(AT, msi + 12, 2, 0x51);
    t.pc.write(AT, msi + 2, 2, 1);
    t.write(0x60, 6);
    t.write(0x60, 1);
    assert_eq!((t.took(), t.read(0x24)), (vec![(0xfee0_0000, 0x51); 2], 7));
}

#[test]
fn dma_goes_both_ways_and_not_without_bus_mastering() {
    let t = setup();
    t.pc.memory.write(0x8000, b"to the device and back");
    t.transfer(0x8000, BUFFER + 8, 22, START);
    t.transfer(BUFFER + 8, 0x9000, 22, START | TO_RAM | DMA_INTERRUPT);
    let mut back = [0; 22];
    t.pc.memory.read(0x9000, &mut back);
    assert_eq!((&back, t.read(0x24)), (b"to the device and back", 0x100));
    t.pc.write(AT, reg::COMMAND, 2, command::MEMORY.into());
    t.transfer(BUFFER + 8, 0xa000, 22, START | TO_RAM);
    t.pc.memory.read(0xa000, &mut back);
    assert_eq!((back, t.edu.function.dma().counts().refused), ([0; 22], 1));
}

#[test]
fn a_transfer_that_leaves_the_buffer_or_memory_moves_nothing() {
    let t = setup();
    t.pc.memory.write(0x8000, &[0xaa; 64]);
    t.transfer(0x8000, BUFFER, 64, START);
    for (source, destination, count, command) in [
        (BUFFER + 4090, 0x9000, 7, START | TO_RAM),
        (BUFFER - 1, 0x9000, 7, START | TO_RAM),
        (BUFFER, 0x9000, u64::MAX, START | TO_RAM),
        (u64::MAX, 0x9000, 2, START | TO_RAM),
        (0x8000, u64::MAX, u64::MAX, START),
        (0x50_0000, BUFFER, 64, START),
        (BASE, BUFFER, 64, START),
    ] {
        t.transfer(source, destination, count, command);
    }
    assert_eq!((t.pc.memory.phys_read(0x9000, 8), t.edu.state.lock().buffer[63]), (0, 0xaa));
    // It has 28 address lines.
    t.transfer(BUFFER, 0x1_0000_9000, 8, START | TO_RAM);
    assert_eq!(t.pc.memory.phys_read(0x9000, 8), 0xaaaa_aaaa_aaaa_aaaa);
}

#[test]
fn a_reset_cuts_a_transfer_off() {
    let t = setup();
    t.write(0x90, 4);
    t.write(0x80, BUFFER);
    t.write(0x88, 0x9000);
    t.write(0x98, START | TO_RAM | DMA_INTERRUPT);
    t.edu.reset(Reset::Board);
    t.pc.bus.follow();
    t.clock.advance(WORK);
    assert_eq!((t.took(), t.edu.function.dma().counts()), (vec![], Default::default()));
    assert_eq!(t.pc.memory.phys_read(BASE, 4), 0xffff_ffff, "it is not mapped");
}
