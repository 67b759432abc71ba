use super::*;

const DD_EOP: u8 = 3;

#[test]
fn a_frame_lands_in_a_buffer_with_what_is_known_of_it() {
    let t = setup();
    t.write(IMS, cause::RXT0);
    let bytes = datagram(6, &[7; 100]);
    assert!(t.wire.give(&Frame::new(&[IoSlice::new(&bytes[..14]), IoSlice::new(&bytes[14..])])));
    let (len, sum, status, errors, _) = t.received(0);
    assert_eq!((len, status, errors), (bytes.len() as u16, DD_EOP | 0x60, 0), "both checksums are right");
    assert_eq!(sum, mynah_net::checksum::checksum(&[&bytes], 0));
    assert_eq!((t.memory(BUFFERS, bytes.len()), t.wires.take()), (bytes.clone(), vec![(0, 1)]));
    assert_eq!((t.read(RDBAL + ring::HEAD), t.read(ICR)), (1, cause::RXT0));
    let mut bad = bytes.clone();
    bad[60] ^= 1;
    t.give(&bad);
    bad[20] ^= 1;
    t.give(&bad);
    t.give(&frame(60));
    assert_eq!([1, 2, 3].map(|n| (t.received(n).2, t.received(n).3)), [(0x63, 0x20), (0x43, 0x40), (7, 0)]);
    // With the checksum, and padding, and none looked at.
    t.write(RCTL, t.read(RCTL) & !rctl::SECRC);
    t.write(RXCSUM, 0);
    t.give(&datagram(17, b"x"));
    assert_eq!((t.received(4).0, t.received(4).2), (64, 7));
    assert_eq!([0x4074, 0x40d0, 0x4088, 0x4074].map(|at| t.read(at)), [5, 5, 3 * 158 + 128, 0]);
}

#[test]
fn filters_let_through_what_is_the_guests() {
    let t = setup();
    t.write(RCTL, rctl::EN | rctl::SECRC);
    let to = |mac: [u8; 6]| [&mac[..], &frame(60)[6..]].concat();
    let passes = |bytes: &[u8]| {
        let before = t.read(RDBAL + ring::HEAD);
        assert!(t.give(bytes), "what is not the guest's is gone");
        let now = t.read(RDBAL + ring::HEAD);
        t.write(RDBAL + ring::TAIL, (now + 7) % COUNT);
        now != before
    };
    let (other, group, all) = ([0x52, 0, 0, 0, 0, 1], [0x01, 0, 0x5e, 0, 0x12, 0x34], [0xff; 6]);
    assert_eq!([MAC, other, group, all].map(|mac| passes(&to(mac))), [true, false, false, false]);
    t.write(RCTL, t.read(RCTL) | rctl::BAM);
    assert!(passes(&to(all)));
    // Bits 47 to 36 of the address.
    let hash = 0x3412 >> 4;
    t.write(MTA + 4 * (hash >> 5), 1 << (hash & 31));
    assert!(passes(&to(group)) && !passes(&to([1, 0, 0, 0, 0x12, 0x35])));
    t.write(RAL + 8, u32::from_le_bytes([0x52, 0, 0, 0]));
    t.write(RAL + 12, 0x8000_0100);
    assert!(passes(&to(other)));
    t.write(RAL + 12, 0x0100);
    assert!(!passes(&to(other)));
    t.write(RCTL, t.read(RCTL) | rctl::UPE);
    assert!(passes(&to(other)) && !passes(&to([3; 6])));
    t.write(RCTL, t.read(RCTL) | rctl::MPE);
    assert!(passes(&to([3; 6])));
}

#[test]
fn tags_are_looked_at_and_taken_out() {
    let t = setup();
    let bytes = frame(80);
    let tagged = [&bytes[..12], &[0x81, 0, 0x60, 0x23], &bytes[12..]].concat();
    t.give(&tagged);
    assert_eq!((t.received(0).0, t.received(0).2 & 8), (84, 0));
    t.write(CTRL, t.read(CTRL) | ctrl::VME);
    t.give(&tagged);
    assert_eq!((t.received(1).0, t.received(1).2 & 8, t.received(1).4), (80, 8, 0x6023));
    assert_eq!(t.memory(BUFFERS + 0x1000, 80), bytes);
    t.write(RCTL, t.read(RCTL) | rctl::VFE);
    t.give(&tagged);
    assert_eq!(t.read(RDBAL + ring::HEAD), 2);
    t.write(VFTA + 4, 1 << 3);
    t.give(&tagged);
    t.give(&bytes);
    assert_eq!(t.read(RDBAL + ring::HEAD), 4);
}

#[test]
fn a_jumbo_frame_takes_several_descriptors() {
    let t = setup();
    let bytes = frame(5000);
    assert!(t.give(&bytes));
    assert_eq!((t.read(RDBAL + ring::HEAD), t.read(0x40ac)), (0, 1), "too long");
    t.write(RCTL, t.read(RCTL) | rctl::LPE);
    assert!(t.give(&bytes));
    let seen = [0, 1, 2].map(|n| (t.received(n).0, t.received(n).2 & 3));
    assert_eq!(seen, [(2048, 1), (2048, 1), (904, 3)]);
    let got = [0, 1, 2].map(|n| t.memory(BUFFERS + 0x1000 * n, seen[n as usize].0.into())).concat();
    assert_eq!(got, bytes);
    // Seven descriptors of 256 bytes never have room for it: it is lost, and nobody waits for it.
    t.write(RCTL, t.read(RCTL) | 3 << 16);
    assert!(t.give(&bytes));
    assert_eq!(t.read(0x4010), 1);
}

#[test]
fn a_frame_waits_for_buffers() {
    let t = setup();
    t.write(RDBAL + ring::TAIL, 2);
    t.write(IMS, cause::RXDMT0);
    assert!(t.give(&frame(60)) && t.give(&frame(61)));
    assert_eq!(t.read(ICR) & cause::RXDMT0, cause::RXDMT0, "few are left");
    assert!(!t.wire.card().can_receive() && !t.give(&frame(62)) && !t.give(&frame(62)));
    assert_eq!((t.read(0x40a0), t.wire.woken.load(Ordering::SeqCst)), (1, 0));
    t.write(RDBAL + ring::TAIL, 7);
    assert_eq!(t.wire.woken.load(Ordering::SeqCst), 1);
    assert!(t.give(&frame(62)));
    t.write(RDBAL + ring::TAIL, 0);
    assert_eq!((t.received(2).0, t.wire.woken.load(Ordering::SeqCst)), (62, 1), "nobody waits any more");
    t.write(RCTL, 0);
    assert!(!t.give(&frame(60)));
    t.write(RCTL, rctl::EN);
    assert_eq!(t.wire.woken.load(Ordering::SeqCst), 2);
}

#[test]
fn reception_may_be_told_of_later() {
    let t = setup();
    t.write(IMS, cause::RXT0);
    t.write(RDTR, 10);
    t.write(RADV, 15);
    t.give(&frame(60));
    t.clock.advance(8 * 1024);
    t.give(&frame(60));
    t.clock.advance(7 * 1024 - 1);
    assert_eq!(t.wires.take(), []);
    t.clock.advance(1);
    assert_eq!(t.wires.take(), [(0, 1)]);
    t.read(ICR);
    t.write(RDBAL + ring::TAIL, 1);
    t.give(&frame(60));
    assert_eq!(t.read(ICR), 0);
    t.write(RDTR, 1 << 31 | 10);
    assert_eq!(t.read(ICR), cause::RXT0);
}

#[test]
fn rings_that_are_none_take_nothing() {
    let t = setup();
    for (base, len, head, tail) in
        [(RX, 128, 9, 3), (RX, 0, 0, 3), (0xfff0_0000, 128, 0, 3), (!15, 0xfff80, 0, 0xffff)]
    {
        for (register, value) in [
            (0, base as u32),
            (4, (base >> 32) as u32),
            (ring::LEN, len),
            (ring::HEAD, head),
            (ring::TAIL, tail),
        ] {
            t.write(RDBAL + register, value);
        }
        assert!(!t.give(&frame(60)), "{base:#x} {len} {head} {tail}");
    }
    t.pc.memory.write_u64(RX, 0xfff0_0000);
    for (register, value) in [(0, RX as u32), (4, 0), (ring::LEN, 128), (ring::HEAD, 0), (ring::TAIL, 7)] {
        t.write(RDBAL + register, value);
    }
    assert!(t.give(&frame(60)) && t.give(&frame(61)), "a buffer that is nowhere loses its bytes alone");
    assert_eq!((t.received(0).0, t.received(1).0, t.memory(BUFFERS + 0x1000, 61)), (60, 61, frame(61)));
    t.pc.write(AT, crate::pci::config::reg::COMMAND, 2, command::MEMORY.into());
    assert!(!t.give(&frame(60)), "no bus mastering");
    let before = t.wire.woken.load(Ordering::SeqCst);
    t.pc.write(AT, crate::pci::config::reg::COMMAND, 2, (command::MEMORY | command::MASTER).into());
    assert_eq!(t.wire.woken.load(Ordering::SeqCst), before + 1);
}
