use super::regs::*;
use super::*;
use crate::clock::ManualClock;
use crate::net::testing::Recorder;
use crate::pci::DevFn;
use crate::pci::config::command;
use crate::pci::testing::{Pc, Wires};
use mynah_net::checksum::checksum;
use std::io::IoSlice;
use std::sync::atomic::Ordering;

mod cplus;
mod legacy;

const AT: DevFn = DevFn::new(4, 0);
const BASE: u64 = 0xfea0_0000;
const PORTS: u16 = 0xc000;
/// The receive buffer, or the rings of C+ mode.
const RX: u64 = 0x2_0000;
const TX: u64 = 0x1000;
const HIGH: u64 = 0x1800;
const DATA: u64 = 0x1_0000;
const BUFFERS: u64 = 0x4_0000;
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

struct Test {
    pc: Pc,
    clock: ManualClock,
    wires: Arc<Wires>,
    wire: Arc<Recorder>,
    link: Arc<Link>,
    device: Arc<dyn crate::device::Plugged>,
}

/// A card that nobody has set up.
fn bare() -> Test {
    let (pc, clock) = (Pc::new(), ManualClock::new());
    let wires = Wires::on(&pc.bus);
    let (wire, link) = Recorder::linked("rtl8139");
    let function = pc.bus.function(AT, config());
    let device = Arc::new(Rtl8139(Adapter::new(function, link.clone(), Arc::new(clock.clone()))));
    pc.bus.attach(AT, device.clone());
    for (at, value) in [(0x10, u32::from(PORTS)), (0x14, BASE as u32)] {
        pc.write(AT, at, 4, value);
    }
    let on = command::IO | command::MEMORY | command::MASTER;
    pc.write(AT, reg::COMMAND, 2, on.into());
    Test { pc, clock, wires, wire, link, device }
}

impl Test {
    fn read(&self, at: u32) -> u32 {
        self.read_sized(at, register(at).1 as u8)
    }

    fn read_sized(&self, at: u32, size: u8) -> u32 {
        self.pc.memory.phys_read(BASE + u64::from(at), size) as u32
    }

    fn write(&self, at: u32, value: u32) {
        self.pc.memory.phys_write(BASE + u64::from(at), register(at).1 as u8, value.into());
    }

    fn give(&self, bytes: &[u8]) -> bool {
        self.wire.give(&Frame::new(&[IoSlice::new(bytes)]))
    }

    fn memory(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.pc.memory.read(at, &mut bytes);
        bytes
    }

    fn word(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.memory(at, 4).try_into().unwrap())
    }

    /// ISR, which is acknowledged.
    fn causes(&self) -> u16 {
        let value = self.read(ISR);
        self.write(ISR, value);
        value as u16
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
    let mut bytes = frame(14);
    bytes.truncate(12);
    bytes.extend([8, 0, 0x45, 0, 0, 0, 0x12, 0x34, 0, 0, 64, protocol, 0, 0, 10, 0, 2, 2, 10, 0, 2, 15]);
    if protocol == 6 {
        bytes.extend([0x12, 0x34, 0, 80, 0, 0, 1, 0, 0, 0, 0, 1, 0x50, 0x19, 0x10, 0, 0, 0, 0, 0]);
    } else {
        let len = (8 + data.len() as u16).to_be_bytes();
        bytes.extend([0x12, 0x34, 0, 53, len[0], len[1], 0, 0]);
    }
    bytes.extend(data);
    let len = (bytes.len() - 14) as u16;
    bytes[16..18].copy_from_slice(&len.to_be_bytes());
    let sum = checksum(&[&bytes[14..34]], 0);
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    let sum = checksum(&[&bytes[26..34], &bytes[34..]], u64::from(len - 20) + u64::from(protocol));
    let at = 34 + if protocol == 6 { 16 } else { 6 };
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

#[test]
fn the_eeprom_is_read_bit_by_bit_and_loads_the_address() {
    let t = bare();
    let word = |n: u32| {
        let edge = |bit: u32| {
            t.write(EECR, 0x88 | bit << 1);
            t.write(EECR, 0x8c | bit << 1);
            t.read(EECR) & 1
        };
        t.write(EECR, 0x80);
        (0..9).rev().for_each(|bit| _ = edge((6 << 6 | n) >> bit & 1));
        let value = (0..16).fold(0, |v, _| v << 1 | edge(0));
        t.write(EECR, 0);
        value
    };
    assert_eq!([0, 1, 2].map(word), [0x8129, 0x10ec, 0x8139]);
    assert_eq!([7, 8, 9].map(word), [0x5452, 0x1200, 0x5634]);
    assert_eq!((t.read_sized(IDR, 4), t.read_sized(4, 2)), (0x1200_5452, 0x5634));
    t.pc.memory.phys_write(BASE, 4, 0x0403_0201);
    t.pc.memory.phys_write(BASE + 4, 4, 0x0605);
    assert!(t.read_sized(IDR, 4) == 0x0403_0201 && t.read_sized(4, 4) == 0x0605);
    t.write(EECR, 0x40);
    assert_eq!((t.read_sized(IDR, 4), t.read(EECR)), (0x1200_5452, 0), "all is loaded anew");
}

#[test]
fn configuration_is_locked() {
    let t = bare();
    assert_eq!((t.read(CONFIG1), t.pc.read(AT, reg::REVISION, 1), t.read(RERID)), (0x0c, 0x20, 0x20));
    assert_eq!(t.read(TCR), 0x7480_0000, "an 8139C+");
    for (locked, config1, bmcr) in [(true, 0x0c, 0x3100), (false, 0x2d, 0x2000)] {
        t.write(EECR, if locked { 0 } else { 0xc0 });
        t.write(CONFIG1, 0x21);
        t.write(BMCR, 0x2000);
        assert_eq!((t.read(CONFIG1), t.read(BMCR)), (config1, bmcr));
    }
}

#[test]
fn the_link_is_told_of() {
    let t = bare();
    t.write(IMR, isr::LINK_CHG.into());
    assert_eq!((t.read(MSR) & 0xc, t.read(BMSR), t.read(BMCR), t.read(ANLPAR)), (0, 0x782d, 0x3100, 0x45e1));
    t.link.set_up(false);
    assert_eq!((t.read(MSR) & 4, t.read(BMSR) & 0x24, t.wires.take()), (4, 0, vec![(0, 1)]));
    assert_eq!((t.causes(), t.wires.take()), (isr::LINK_CHG, vec![(0, 0)]));
    t.link.set_up(true);
    assert_eq!((t.read(MSR) & 4, t.causes()), (0, isr::LINK_CHG));
    // 10 Mb/s is all that software wants.
    t.write(ANAR, 0x0061);
    assert_eq!((t.read(MSR) & 8, t.read(BMCR)), (8, 0x1100));
}

#[test]
fn the_timer_runs_in_guest_time() {
    let t = bare();
    t.write(IMR, isr::TIMEOUT.into());
    t.clock.advance(3000);
    assert_eq!(t.read(TCTR), 100);
    t.write(TIMER_INT, 150);
    t.clock.advance(1499);
    assert_eq!(t.wires.take(), []);
    t.clock.advance(1);
    assert_eq!((t.read(TCTR), t.wires.take(), t.causes()), (150, vec![(0, 1)], isr::TIMEOUT));
    // It begins anew when TCTR is written, whatever that is.
    t.write(TCTR, 7);
    t.clock.advance(4500);
    assert_eq!((t.read(TCTR), t.causes()), (150, isr::TIMEOUT));
    t.write(TIMER_INT, 0);
    t.clock.advance(1 << 40);
    assert_eq!(t.causes(), 0);
}

#[test]
fn registers_are_reached_at_ports_and_in_any_width() {
    let t = bare();
    t.pc.ports.write(PORTS + RCR as u16, 4, 0xffff_ffff);
    assert_eq!((t.read(RCR), t.pc.ports.read(PORTS + RCR as u16 + 1, 2)), (0x0f03_ffbf, 0x03ff));
    // IMR and ISR at once, and half of one of them.
    t.write(TPPOLL, tppoll::FSW_INT.into());
    t.pc.memory.phys_write(BASE + u64::from(IMR), 4, 0xfeff_ffff);
    assert_eq!(t.read_sized(IMR, 4), 0x0100_e1ff);
    t.pc.memory.phys_write(BASE + u64::from(IMR), 1, 0);
    t.pc.memory.phys_write(BASE + u64::from(ISR), 1, 0xff);
    assert_eq!(t.read_sized(IMR, 4), 0x0100_e100, "another half is not acknowledged");
    t.pc.memory.phys_write(BASE + 0x84, 8, 0x1122_3344_5566_7788);
    assert_eq!(
        (t.pc.memory.phys_read(BASE + 0x84, 8), t.read_sized(0xfe, 4)),
        (0x1122_3344_5566_7788, 0xffff_0000)
    );
}

#[test]
fn a_reset_by_software_keeps_addresses_and_configuration() {
    let t = bare();
    t.pc.memory.phys_write(BASE, 4, 0x0403_0201);
    t.pc.memory.phys_write(BASE + u64::from(MAR), 4, 0x8000_0001);
    t.write(EECR, 0xc0);
    t.write(CONFIG1, 0x21);
    t.write(CR, (cr::TE | cr::RE).into());
    t.write(IMR, 0xffff);
    t.write(TPPOLL, tppoll::FSW_INT.into());
    t.write(CPCR, 3);
    t.write(RCR, 0xf);
    t.write(CR, cr::RST.into());
    let seen = [CR, IMR, ISR, CPCR, RCR, CAPR, TSD, EECR].map(|at| t.read(at));
    assert_eq!(seen, [1, 0, 0, 0, 0, 0xfff0, tsd::OWN, 0]);
    assert_eq!(
        (t.read_sized(IDR, 4), t.read_sized(MAR, 4), t.read(CONFIG1)),
        (0x0403_0201, 0x8000_0001, 0x2d)
    );
    assert_eq!(t.wires.take(), [(0, 1), (0, 0)]);
}
