use super::regs::ring;
use super::regs::*;
use super::*;
use crate::clock::ManualClock;
use crate::net::testing::Recorder;
use crate::pci::DevFn;
use crate::pci::config::command;
use crate::pci::testing::{Pc, Wires};
use mynah_net::{Gso, Partial};
use std::io::IoSlice;

mod express;
mod receive;
mod transmit;

const AT: DevFn = DevFn::new(4, 0);
const BASE: u64 = 0xfea0_0000;
const PORTS: u16 = 0xc000;
const TX: u64 = 0x1000;
const RX: u64 = 0x2000;
const DATA: u64 = 0x1_0000;
const BUFFERS: u64 = 0x4_0000;
/// Descriptors of a ring.
const COUNT: u32 = 8;
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

struct Test {
    pc: Pc,
    clock: ManualClock,
    wires: Arc<Wires>,
    wire: Arc<Recorder>,
    link: Arc<Link>,
    card: Arc<Adapter>,
    device: Arc<dyn crate::device::Plugged>,
}

fn bare<const EXPRESS: bool>() -> Test {
    let (pc, clock) = (Pc::new(), ManualClock::new());
    let wires = Wires::on(&pc.bus);
    let model = if EXPRESS { Model::I82574l } else { Model::I82540em };
    let (wire, link) = Recorder::linked(model.name());
    let function = pc.bus.function(AT, config(model, true));
    let card = Adapter::new(model, function, link.clone(), Arc::new(clock.clone()));
    let device = Arc::new(Port::<EXPRESS>(card.clone()));
    pc.bus.attach(AT, device.clone());
    let test = Test { pc, clock, wires, wire, link, card, device };
    test.configure();
    test
}

/// An 82540EM whose driver has set it up.
fn setup() -> Test {
    let test = bare::<false>();
    test.start();
    test
}

impl Test {
    fn configure(&self) {
        let io = 0x14 + if self.card.model == Model::I82574l { 4 } else { 0 };
        for (at, value) in [(0x10, BASE as u32), (io, u32::from(PORTS))] {
            self.pc.write(AT, at, 4, value);
        }
        let on = command::IO | command::MEMORY | command::MASTER;
        self.pc.write(AT, crate::pci::config::reg::COMMAND, 2, on.into());
    }

    /// Rings of eight, buffers of 2 KiB, all own frames and broadcasts.
    fn start(&self) {
        for (base, at) in [(TDBAL, TX), (RDBAL, RX)] {
            self.write(base, at as u32);
            self.write(base + ring::LEN, COUNT * 16);
        }
        for n in 0..u64::from(COUNT) {
            self.pc.memory.write_u64(RX + 16 * n, BUFFERS + 0x1000 * n);
            self.pc.memory.write_u64(RX + 16 * n + 8, 0);
        }
        self.write(RDBAL + ring::TAIL, COUNT - 1);
        self.write(RCTL, rctl::EN | rctl::BAM | rctl::SECRC);
        self.write(TCTL, tctl::EN | tctl::PSP);
    }

    fn read(&self, at: u32) -> u32 {
        self.pc.memory.phys_read(BASE + u64::from(at), 4) as u32
    }

    fn write(&self, at: u32, value: u32) {
        self.pc.memory.phys_write(BASE + u64::from(at), 4, value.into());
    }

    /// Puts descriptors at the tail and moves it.
    fn post(&self, descriptors: &[(u64, u32, u32)]) {
        let mut tail = self.read(TDBAL + ring::TAIL);
        for (address, command, fields) in descriptors {
            let at = TX + 16 * u64::from(tail);
            self.pc.memory.write_u64(at, *address);
            self.pc.memory.write_u32(at + 8, *command);
            self.pc.memory.write_u32(at + 12, *fields);
            tail = (tail + 1) % COUNT;
        }
        self.write(TDBAL + ring::TAIL, tail);
    }

    fn give(&self, bytes: &[u8]) -> bool {
        self.wire.give(&Frame::new(&[IoSlice::new(bytes)]))
    }

    fn memory(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.pc.memory.read(at, &mut bytes);
        bytes
    }

    /// Length, checksum, status, errors and tag of a receive descriptor.
    fn received(&self, n: u64) -> (u16, u16, u8, u8, u16) {
        let b = self.memory(RX + 16 * n + 8, 8);
        let word = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        (word(0), word(2), b[4], b[5], word(6))
    }

    fn mdic(&self, value: u32) -> u32 {
        self.write(MDIC, value);
        self.read(MDIC)
    }

    fn phy(&self, register: u32) -> u32 {
        self.mdic(2 << 26 | 1 << 21 | register << 16) & 0xffff
    }
}

/// A frame to the card of so many bytes.
fn frame(len: usize) -> Vec<u8> {
    let mut bytes = [&MAC[..], &[0x02, 0, 0, 0, 0, 9], &[0x88, 0xb5]].concat();
    bytes.extend((14..len).map(|n| n as u8));
    bytes
}

/// A datagram of TCP or UDP over IPv4 whose checksums are right, as a whole frame to the card.
fn datagram(protocol: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = frame(12);
    bytes.truncate(12);
    bytes.extend([8, 0, 0x45, 0, 0, 0, 0x12, 0x34, 0, 0, 64, protocol, 0, 0, 10, 0, 2, 2, 10, 0, 2, 15]);
    if protocol == 6 {
        bytes.extend([0x12, 0x34, 0, 80, 0, 0, 1, 0, 0, 0, 0, 1, 0x50, 0x19, 0x10, 0, 0, 0, 0, 0]);
    } else {
        bytes.extend([0x12, 0x34, 0, 53, 0, 8 + data.len() as u8, 0, 0]);
    }
    bytes.extend(data);
    let len = (bytes.len() - 14) as u16;
    bytes[16..18].copy_from_slice(&len.to_be_bytes());
    let sum = mynah_net::checksum::checksum(&[&bytes[14..34]], 0);
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    let start = u64::from(len - 20) + u64::from(protocol);
    let sum = mynah_net::checksum::checksum(&[&bytes[26..34], &bytes[34..]], start);
    let at = 34 + if protocol == 6 { 16 } else { 6 };
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// Drivers of the whole family (U-Boot's) ask for it of any model, and read no EEPROM without it.
#[test]
fn the_semaphore_of_the_eeprom_is_had_by_whoever_asks() {
    let t = bare::<false>();
    assert_eq!(t.read(SWSM), 0);
    t.write(SWSM, 2);
    assert_eq!(t.read(SWSM), 2);
    t.write(SWSM, 0);
    assert_eq!(t.read(SWSM), 0);
}

#[test]
fn the_eeprom_has_the_address_and_its_sum_by_either_way() {
    let t = bare::<false>();
    let by_eerd: Vec<u16> = (0..64)
        .map(|n| {
            t.write(EERD, n << 8 | 1);
            let value = t.read(EERD);
            assert_eq!(value & 0x10, 0x10, "it is done");
            (value >> 16) as u16
        })
        .collect();
    assert_eq!(by_eerd[..3], [0x5452, 0x1200, 0x5634]);
    assert_eq!(by_eerd.iter().fold(0_u16, |sum, w| sum.wrapping_add(*w)), 0xbaba);
    let (sk, cs, di, data) = (1, 2, 4, 8);
    let request = 0x40;
    t.write(EECD, request);
    assert_eq!(t.read(EECD) & 0x180, 0x180, "it is there, and granted");
    let clock = |bit: u32| {
        t.write(EECD, request | cs | (bit * di));
        t.write(EECD, request | cs | (bit * di) | sk);
        let out = t.read(EECD) & data != 0;
        t.write(EECD, request | cs | (bit * di));
        u16::from(out)
    };
    for (n, expected) in by_eerd.iter().enumerate() {
        t.write(EECD, request);
        t.write(EECD, request | cs);
        (0..9).rev().for_each(|bit| _ = clock((0x180 | n as u32) >> bit & 1));
        let word = (0..16).fold(0, |word, _| word << 1 | clock(0));
        assert_eq!(word, *expected, "word {n}");
    }
}

#[test]
fn the_phy_negotiates_in_some_time_and_tells_by_an_interrupt() {
    let t = bare::<false>();
    assert_eq!((t.phy(2), t.phy(3)), (0x0141, 0x0c20));
    assert_eq!(t.mdic(2 << 26 | 2 << 21) >> 30 & 1, 1, "nothing is at another address");
    assert_eq!((t.read(STATUS) & 2, t.phy(1) & 0x24, t.phy(17) & 0xec00), (2, 0x24, 0xac00));
    t.write(IMS, cause::LSC);
    t.mdic(1 << 26 | 1 << 21 | 0x1340);
    assert_eq!((t.read(STATUS) & 2, t.phy(1) & 0x24), (0, 0), "it negotiates");
    assert_eq!((t.read(ICR), t.wires.take()), (cause::LSC, vec![(0, 1), (0, 0)]));
    assert!(!t.give(&frame(60)), "nothing comes in meanwhile");
    t.clock.advance(phy::NEGOTIATION);
    assert_eq!((t.read(STATUS) & 2, t.phy(1) & 0x24, t.phy(1) & 0x24), (2, 0x20, 0x24));
    assert_eq!(t.read(ICR), cause::LSC);
    t.link.set_up(false);
    assert_eq!((t.read(STATUS) & 2, t.read(ICR)), (0, cause::LSC));
    t.link.set_up(true);
    t.clock.advance(phy::NEGOTIATION);
    assert_eq!((t.read(STATUS) & 0xc3, t.read(ICR)), (0x83, cause::LSC));
    // 100 Mb/s, half duplex, by hand.
    t.mdic(1 << 26 | 1 << 21 | 0x2000);
    t.clock.advance(phy::NEGOTIATION);
    assert_eq!(t.read(STATUS) & 0xc3, 0x42);
}

#[test]
fn causes_are_masked_and_cleared_by_reading() {
    let t = bare::<false>();
    t.write(ICS, cause::TXDW | cause::RXT0);
    assert_eq!(t.wires.take(), []);
    t.write(IMS, cause::RXT0);
    assert_eq!((t.wires.take(), t.read(IMS)), (vec![(0, 1)], cause::RXT0));
    t.write(IMC, cause::RXT0);
    assert_eq!(t.wires.take(), [(0, 0)]);
    t.write(ICR, cause::TXDW);
    assert_eq!((t.read(ICR), t.read(ICR)), (cause::RXT0, 0));
}

#[test]
fn interrupts_are_throttled_in_guest_time() {
    let t = bare::<false>();
    t.write(ITR, 1000);
    t.write(IMS, cause::RXT0);
    t.write(ICS, cause::RXT0);
    assert_eq!((t.read(ICR), t.wires.take()), (cause::RXT0, vec![(0, 1), (0, 0)]));
    t.write(ICS, cause::RXT0);
    t.clock.advance(255_999);
    assert_eq!(t.wires.take(), []);
    t.clock.advance(1);
    assert_eq!(t.wires.take(), [(0, 1)]);
}

#[test]
fn an_answer_s_interrupt_tells_of_what_it_answers_too_and_need_not_wait() {
    // As Linux sets it up, in units of 256 and 1,024 ns.
    let t = setup();
    t.write(ITR, 195);
    t.write(TIDV, 8);
    t.write(TADV, 32);
    t.write(IMS, cause::TXDW | cause::RXT0);
    t.pc.memory.write(DATA, &frame(64));
    for _ in 0..3 {
        t.post(&[(DATA, 64 | 0x8b00_0000, 0)]);
        t.clock.advance(25_000);
        assert_eq!(t.wires.take(), []);
        t.give(&frame(60));
        assert_eq!(t.wires.take(), [(0, 1)], "at once");
        t.clock.advance(5_000);
        assert_eq!(t.read(ICR) & 0x81, cause::TXDW | cause::RXT0);
        t.clock.advance(20_000);
        assert_eq!(t.wires.take(), [(0, 0)]);
    }
    // What is not answered is told of nevertheless.
    t.post(&[(DATA, 64 | 0x8b00_0000, 0)]);
    t.clock.advance(32_768 + 100_000 - 1);
    assert_eq!(t.wires.take(), []);
    t.clock.advance(1);
    assert_eq!(t.wires.take(), [(0, 1)]);
}

#[test]
fn what_was_sent_is_told_of_at_once_if_the_driver_flushes_it() {
    let t = setup();
    t.write(ITR, 195);
    t.write(TIDV, 8);
    t.write(TADV, 32);
    t.write(IMS, cause::TXDW);
    t.pc.memory.write(DATA, &frame(64));
    t.post(&[(DATA, 64 | 0x8b00_0000, 0)]);
    assert_eq!(t.wires.take(), []);
    t.write(TIDV, 8 | 1 << 31);
    assert_eq!(t.wires.take(), [(0, 1)]);
}

#[test]
fn registers_are_reached_by_ports_too_and_by_their_older_places() {
    let t = bare::<false>();
    t.pc.ports.write(PORTS, 4, TDBAL);
    t.pc.ports.write(PORTS + 4, 4, 0x1234_5678);
    assert_eq!((t.pc.ports.read(PORTS, 4), t.pc.ports.read(PORTS + 4, 4)), (TDBAL, 0x1234_5670));
    assert_eq!((t.read(0x420), t.read(0x40)), (0x1234_5670, 0x1200_5452));
    t.pc.ports.write(PORTS, 4, 0xffff_fff0);
    assert_eq!(t.pc.ports.read(PORTS + 4, 4), u32::MAX);
    assert_eq!(t.pc.memory.phys_read(BASE + 2, 2), u64::from(t.read(CTRL) >> 16));
}

#[test]
fn a_reset_by_software_forgets_all_but_the_link() {
    let t = setup();
    t.write(RAL, 7);
    t.write(IMS, cause::LSC);
    t.write(ICS, cause::LSC);
    t.write(MTA + 4, 1);
    t.write(CTRL, t.read(CTRL) | ctrl::RST);
    let seen = [CTRL, RCTL, TCTL, IMS, ICR, RDBAL, MTA + 4, RAL].map(|at| t.read(at));
    let usual = ctrl::FD | ctrl::SLU | ctrl::SPEED_1000;
    assert_eq!(seen, [usual, 0, 0, 0, 0, 0, 0, 0x1200_5452]);
    assert_eq!((t.read(STATUS) & 2, t.wires.take()), (2, vec![(0, 1), (0, 0)]));
}

#[test]
fn a_saved_card_goes_on_in_the_middle() {
    let one = setup();
    one.write(IMS, cause::TXDW | cause::RXT0);
    one.write(ITR, 1000);
    // Half a frame, a context, a delayed cause, and a negotiation.
    one.pc.memory.write(DATA, &frame(64));
    one.write(TIDV, 100);
    one.post(&[(DATA, 20 | 0x8800_0000, 0)]);
    one.give(&frame(60));
    assert_eq!(one.wires.take(), [(0, 1)]);
    one.mdic(1 << 26 | 1 << 21 | 0x1340);
    one.post(&[(DATA + 20, 20, 0)]);
    let other = bare::<false>();
    other.clock.advance(one.clock.now());
    other.device.restore(&one.device.save("card")).unwrap();
    assert_eq!(other.device.save("card"), one.device.save("card"));
    assert_eq!(other.wires.take(), [], "no edge moves");
    other.pc.memory.write(TX, &one.memory(TX, 0x2000));
    other.pc.memory.write(DATA, &frame(64));
    for t in [&one, &other] {
        t.wire.frames();
        t.post(&[(DATA + 40, 24 | 0x0100_0000, 0)]);
        t.clock.advance(phy::NEGOTIATION);
        let sent = t.wire.frames();
        assert_eq!((sent, t.read(STATUS) & 2), (vec![frame(64)], 2));
        assert_eq!(t.read(ICR) & (cause::TXDW | cause::LSC), cause::TXDW | cause::LSC);
    }
    assert_eq!(other.device.save("card"), one.device.save("card"));
}
