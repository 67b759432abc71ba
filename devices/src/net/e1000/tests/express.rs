use super::*;

const EIAC_ALL: u32 = 0x1f << 20;
/// A vector's address is its number's.
const MESSAGE: u64 = 0xfee0_0000;

/// An 82574L with MSI-X on: a vector for each cause.
fn setup() -> Test {
    let t = bare::<true>();
    let table = 0xfeb0_0000_u64;
    t.pc.write(AT, 0x1c, 4, table as u32);
    let msix = t.card.function.config().lock().capability(MSIX).expect("MSI-X");
    for n in 0..5 {
        for (at, value) in [(0, MESSAGE), (8, 0x40 + n), (12, 0)] {
            t.pc.memory.phys_write(table + 16 * n + at, 4, value);
        }
    }
    t.pc.write(AT, msix + 2, 2, 0x8000);
    t.write(IVAR, 0x000c_ba98 | 1);
    t
}

/// Rings whose descriptors have so many bytes, of which `fill` writes the addresses.
fn ring_of(t: &Test, size: u64, fill: impl Fn(u64) -> [u64; 4]) {
    t.write(RDBAL, RX as u32);
    t.write(RDBAL + ring::LEN, 8 * size as u32);
    for n in 0..8 {
        for (i, address) in fill(n).into_iter().enumerate().take(size as usize / 8) {
            t.pc.memory.write_u64(RX + size * n + 8 * i as u64, address);
        }
    }
    t.write(RFCTL, rfctl::EXSTEN);
    t.write(RDBAL + ring::TAIL, 7);
}

#[test]
fn it_is_on_pci_express_and_has_its_windows() {
    let t = bare::<true>();
    assert_eq!((t.pc.read(AT, 0, 4), t.pc.read(AT, 0x2c, 4)), (0x10d3_8086, 0x8086));
    let c = t.card.function.config().lock().clone();
    assert!(c.is_express() && [1, 5, MSIX].iter().all(|id| c.capability(*id).is_some()));
    assert_eq!(
        [0, 1, 2, 3].map(|n| c.bar(n).map(|b| b.1)),
        [Some(0x2_0000), Some(0x2_0000), Some(32), Some(0x4000)]
    );
    t.pc.ports.write(PORTS, 4, STATUS);
    assert_eq!(t.pc.ports.read(PORTS + 4, 4), t.read(STATUS));
}

#[test]
fn a_driver_finds_eeprom_phy_and_semaphores() {
    let t = bare::<true>();
    let word = |n: u32| {
        t.write(EERD, n << 2 | 1);
        let value = t.read(EERD);
        assert_eq!(value & 2, 2);
        (value >> 16) as u16
    };
    assert_eq!([0, 1, 2].map(word), [0x5452, 0x1200, 0x5634]);
    assert_eq!((0..64).map(word).fold(0_u16, |sum, w| sum.wrapping_add(w)), 0xbaba);
    t.write(EEWR, 0x1234 << 16 | 5 << 2 | 1);
    assert_eq!((word(5), t.read(EEWR) & 2), (0x1234, 2));
    assert_eq!((t.phy(2), t.phy(3)), (0x0141, 0x0cb1));
    assert_eq!(t.read(EECD) & 0x300, 0x300, "it was read");
    // Another page, and back.
    t.mdic(1 << 26 | 1 << 21 | 22 << 16 | 2);
    t.mdic(1 << 26 | 1 << 21 | 2 << 16 | 0x77);
    assert_eq!((t.phy(2), t.phy(22)), (0x77, 2));
    assert_eq!([t.read(SWSM) & 1, t.read(SWSM) & 1], [0, 1], "who reads it first has it");
    t.write(SWSM, 2);
    assert_eq!(t.read(SWSM), 2);
    t.write(0xf00, 0x20);
    assert_eq!(t.read(0xf00), 0x20);
    let master = 1 << 19;
    assert_eq!(t.read(STATUS) & master, master);
    t.write(CTRL, t.read(CTRL) | 4);
    assert_eq!(t.read(STATUS) & master, 0);
    // 25 MHz, counted in 40s.
    t.write(TIMINCA, 1 << 24 | 40);
    t.write(SYSTIMH, 0);
    t.write(SYSTIML, 100);
    t.clock.advance(1000);
    assert_eq!(t.read(SYSTIML), 1100);
}

#[test]
fn each_cause_has_a_vector_that_clears_and_masks_it() {
    let t = setup();
    t.start();
    t.wires.take();
    t.write(EIAC, cause::RXQ0 | cause::TXQ0);
    t.write(IMS, cause::RXQ0 | cause::TXQ0 | cause::OTHER | cause::LSC);
    t.give(&frame(60));
    t.give(&frame(60));
    assert_eq!(t.wires.take(), [(MESSAGE, 0x41)], "once, until it is unmasked");
    assert_eq!(t.read(IMS) & EIAC_ALL, cause::TXQ0 | cause::OTHER);
    t.write(IMS, cause::RXQ0);
    assert_eq!(t.wires.take(), [(MESSAGE, 0x41)]);
    t.pc.memory.write(DATA, &frame(60));
    t.post(&[(DATA, 60 | 9 << 24, 0)]);
    assert_eq!(t.wires.take(), [(MESSAGE, 0x42)]);
    t.link.set_up(false);
    assert_eq!(t.wires.take(), [(MESSAGE, 0x44)]);
    let icr = t.read(ICR);
    assert_eq!(
        icr & (cause::LSC | cause::OTHER | cause::INT_ASSERTED),
        cause::LSC | cause::OTHER | cause::INT_ASSERTED
    );
    assert_eq!(t.read(ICR) & (cause::LSC | cause::OTHER), 0);
    t.write(ICS, cause::RXQ0);
    assert_eq!(t.wires.take(), []);
}

#[test]
fn vectors_are_throttled_one_by_one() {
    let t = setup();
    t.write(EITR + 4, 100);
    t.write(EIAC, EIAC_ALL);
    for (cause, expected) in [(cause::RXQ0, 1), (cause::TXQ0, 1), (cause::RXQ0, 0), (cause::TXQ0, 1)] {
        t.write(IMS, cause);
        t.write(ICS, cause);
        assert_eq!(t.wires.take().len(), expected);
    }
    t.clock.advance(25_599);
    assert_eq!(t.wires.take(), []);
    t.clock.advance(1);
    assert_eq!(t.wires.take(), [(MESSAGE, 0x41)]);
}

#[test]
fn reading_causes_masks_them_where_that_is_asked_for() {
    let t = bare::<true>();
    t.write(CTRL_EXT, ctrl_ext::IAME);
    t.write(IAM, u32::MAX);
    t.write(IMS, cause::RXT0);
    t.write(ICS, cause::TXDW);
    assert_eq!((t.read(ICR), t.read(ICR)), (cause::TXDW, cause::TXDW), "nothing is asserted: it stays");
    t.write(ICS, cause::RXT0);
    assert_eq!(t.read(ICR), cause::TXDW | cause::RXT0 | cause::INT_ASSERTED);
    assert_eq!((t.read(ICR), t.read(IMS), t.wires.take()), (0, 0, vec![(0, 1), (0, 0)]));
}

#[test]
fn extended_descriptors_tell_more() {
    let t = bare::<true>();
    ring_of(&t, 16, |n| [BUFFERS + 0x1000 * n, 0, 0, 0]);
    t.write(RCTL, rctl::EN | rctl::SECRC);
    let bytes = datagram(17, b"some data");
    t.give(&bytes);
    let back = t.memory(RX, 16);
    let word = |at: usize| u32::from_le_bytes([back[at], back[at + 1], back[at + 2], back[at + 3]]);
    let sum = mynah_net::checksum::checksum(&[&bytes], 0);
    // Padded to 60 bytes.
    assert_eq!((word(0), word(4), word(8), word(12)), (0, u32::from(sum) << 16 | 0x1234, 0x73, 60));
    t.write(RXCSUM, t.read(RXCSUM) | rxcsum::PCSD);
    t.give(&bytes);
    assert_eq!(t.memory(RX + 16 + 4, 4), [0; 4]);
}

#[test]
fn headers_are_split_from_data() {
    let t = bare::<true>();
    let at = |n: u64, i: u64| BUFFERS + 0x4000 * n + 0x1000 * i;
    ring_of(&t, 32, |n| [at(n, 0), at(n, 1), u64::MAX, u64::MAX]);
    t.write(PSRCTL, 2 | 4 << 8);
    t.write(RCTL, rctl::EN | rctl::SECRC | rctl::DTYP_SPLIT | rctl::LPE | rctl::BAM);
    let bytes = datagram(6, &[9; 3000]);
    assert!(t.give(&bytes));
    let back = t.memory(RX, 32);
    assert_eq!((&back[12..14], &back[16..20]), (&54_u16.to_le_bytes()[..], &[54, 0x80, 0xb8, 0x0b][..]));
    assert_eq!(back[8], 0x63);
    assert_eq!((t.memory(at(0, 0), 54), t.memory(at(0, 1), 3000)), (bytes[..54].to_vec(), vec![9; 3000]));
    // What has no headers fills one buffer after the other, over two descriptors.
    let bytes = frame(4500);
    assert!(t.give(&bytes));
    let back = t.memory(RX + 32, 64);
    assert_eq!((back[8] & 3, back[40] & 3), (1, 3));
    assert_eq!([12, 18, 44].map(|i| u16::from_le_bytes([back[i], back[i + 1]])), [256, 4096, 148]);
    assert_eq!(t.read(RDBAL + ring::HEAD), 3);
}

/// The key, a packet's ends and its hashes that Microsoft gives ("Verifying the RSS hash calculation").
const KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
    0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
    0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];
const WITH_PORTS: u32 = 0x51cc_c178;
const ADDRESSES: u32 = 0x323e_8fc2;

fn known(protocol: u8) -> Vec<u8> {
    let mut bytes = datagram(protocol, b"some data");
    bytes[26..34].copy_from_slice(&[66, 9, 149, 187, 161, 142, 100, 80]);
    bytes[34..36].copy_from_slice(&2794_u16.to_be_bytes());
    bytes[36..38].copy_from_slice(&1766_u16.to_be_bytes());
    bytes
}

#[test]
fn frames_go_to_the_ring_that_the_table_has_for_their_hash() {
    const SECOND: u64 = 0x8000;
    let t = setup();
    t.write(IVAR, 0x000c_ba98);
    ring_of(&t, 16, |n| [BUFFERS + 0x1000 * n, 0, 0, 0]);
    t.write(RDBAL + 0x100, SECOND as u32);
    t.write(RDBAL + 0x100 + ring::LEN, 128);
    t.write(RDBAL + 0x100 + ring::TAIL, 1);
    t.pc.memory.write_u64(SECOND, BUFFERS + 0x9000);
    t.write(RXCSUM, rxcsum::PCSD);
    for (n, word) in KEY.as_chunks::<4>().0.iter().enumerate() {
        t.write(RSSRK + 4 * n as u32, u32::from_le_bytes(*word));
    }
    // Entry 78h, of 128, leads to the second ring.
    t.write(RETA + (WITH_PORTS & 0x7c), 0x80 << (8 * (WITH_PORTS & 3)));
    t.write(MRQC, mrqc::RSS | mrqc::TCP_IPV4 | mrqc::IPV4);
    t.write(RCTL, rctl::EN | rctl::SECRC);
    t.write(IMS, cause::RXQ0 | cause::RXQ0 << 1);
    let words = |at: u64| {
        t.memory(at, 8).as_chunks::<4>().0.iter().map(|w| u32::from_le_bytes(*w)).collect::<Vec<_>>()
    };
    assert!(t.give(&known(6)));
    assert_eq!((words(SECOND), t.wires.take()), (vec![1 | 1 << 8, WITH_PORTS], vec![(MESSAGE, 0x41)]));
    assert_eq!((t.memory(SECOND + 8, 1)[0] & 3, t.memory(BUFFERS + 0x9000, 63)), (3, known(6)));
    // Ports count for TCP alone; what is no IP has no hash.
    assert!(t.give(&known(17)) && t.give(&frame(60)));
    assert_eq!((words(RX), words(RX + 16)), (vec![2, ADDRESSES], vec![0, 0]));
    assert_eq!(t.wires.take()[0], (MESSAGE, 0x40));
    assert_eq!([0, 0x100].map(|ring| t.read(RDBAL + ring + ring::HEAD)), [2, 1]);
    // It is full: that one waits, until there is room.
    assert!(!t.give(&known(6)));
    t.write(RDBAL + 0x100 + ring::TAIL, 2);
    // A restored card has the same.
    let other = setup();
    other.device.restore(&t.device.save("card")).unwrap();
    other.pc.bus.follow();
    for t in [&t, &other] {
        assert!(t.give(&known(6)));
        assert_eq!(t.read(RDBAL + 0x100 + ring::HEAD), 2);
    }
    // What goes to a ring that is none is lost, and holds nothing up.
    t.write(RDBAL + 0x100 + ring::LEN, 0);
    assert!(t.give(&known(6)) && t.card.can_receive());
    assert_eq!(t.read(0x4010), 1);
    // Without the place for a hash in descriptors there is no scaling.
    t.write(RXCSUM, 0);
    assert!(t.give(&known(6)));
    assert_eq!(t.read(RDBAL + ring::HEAD), 3);
}

#[test]
fn a_second_ring_sends_as_well() {
    let t = setup();
    t.pc.memory.write(DATA, &frame(60));
    t.pc.memory.write_u64(TX, DATA);
    t.pc.memory.write_u32(TX + 8, 60 | 9 << 24);
    t.write(TCTL, tctl::EN);
    t.write(IMS, cause::TXQ0 << 1);
    t.write(TDBAL + 0x100, TX as u32);
    t.write(TDBAL + 0x100 + ring::LEN, 128);
    t.write(TDBAL + 0x100 + ring::TAIL, 1);
    assert_eq!((t.wire.frames(), t.wires.take()), (vec![frame(60)], vec![(MESSAGE, 0x43)]));
}

#[test]
fn both_rings_go_on_with_what_a_turn_has_left() {
    let t = setup();
    t.pc.memory.write(DATA, &frame(60));
    for n in 0..0x1fff {
        t.pc.memory.write_u64(0x4_0000 + 16 * n, DATA);
        t.pc.memory.write_u32(0x4_0000 + 16 * n + 8, 60 | 1 << 24);
    }
    for base in [TDBAL, TDBAL + 0x100] {
        t.write(base, 0x4_0000);
        t.write(base + ring::LEN, 0x2_0000);
        t.write(base + ring::TAIL, 0x1fff);
    }
    t.write(TCTL, tctl::EN);
    assert!(t.wire.frames().len() < 2 * 0x1fff);
    t.clock.advance(100_000);
    assert_eq!([TDBAL, TDBAL + 0x100].map(|base| t.read(base + ring::HEAD)), [0x1fff; 2]);
}

#[test]
fn a_saved_one_goes_on() {
    let one = setup();
    one.start();
    one.write(EITR + 4, 100);
    one.write(EIAC, EIAC_ALL);
    one.write(IMS, cause::RXQ0);
    one.give(&frame(60));
    one.write(IMS, cause::RXQ0);
    one.give(&frame(60));
    let other = bare::<true>();
    other.device.restore(&one.device.save("card")).unwrap();
    other.pc.bus.follow();
    one.wires.take();
    assert_eq!(other.wires.take(), []);
    for t in [&one, &other] {
        t.clock.advance(25_600);
        assert_eq!(t.wires.take(), [(MESSAGE, 0x41)]);
    }
    assert_eq!(one.device.save("card"), other.device.save("card"));
    assert!(bare::<false>().device.restore(&one.device.save("card")).is_err());
}
