use super::*;
use mynah_net::checksum::checksum;

/// Commands of descriptors.
const EOP: u32 = 1 << 24;
const IC: u32 = 1 << 26;
const TSE: u32 = 1 << 26;
const RS: u32 = 1 << 27;
const DEXT: u32 = 1 << 29;
const VLE: u32 = 1 << 30;
const IDE: u32 = 1 << 31;
/// A data descriptor.
const DTYP: u32 = 1 << 20 | DEXT;
const POPTS: u32 = 0x300;

/// A context of TCP over IPv4 behind Ethernet.
fn context(command: u32, header: u32, mss: u32) -> (u64, u32, u32) {
    let ip = 14 | 24 << 8 | 33 << 16;
    let tcp: u32 = 34 | 50 << 8;
    (u64::from(tcp) << 32 | ip, DEXT | 3 << 24 | command, mss << 16 | header << 8)
}

#[test]
fn a_frame_in_pieces_is_sent_padded_and_its_end_told() {
    let t = setup();
    t.write(IMS, cause::TXDW);
    let bytes = frame(50);
    t.pc.memory.write(DATA, &bytes);
    t.post(&[(DATA, 20, 0), (DATA + 20, 30 | EOP | RS, 0)]);
    let mut padded = bytes.clone();
    padded.resize(60, 0);
    assert_eq!(t.wire.frames(), [padded]);
    assert_eq!((t.pc.memory.read_u32(TX + 12), t.pc.memory.read_u32(TX + 28)), (0, 1));
    assert_eq!((t.read(TDBAL + ring::HEAD), t.wires.take()), (2, vec![(0, 1)]));
    assert_eq!(t.read(ICR), cause::TXDW | cause::TXQE);
    assert_eq!((t.read(0x4080), t.read(0x4080), t.read(0x40d8)), (1, 0, 1), "counted, and cleared by it");
    assert_eq!((t.read(0x4090), t.read(0x4094), t.read(0x4090)), (64, 0, 0));
    // Once around.
    t.wire.frames();
    for _ in 0..3 {
        t.post(&[(DATA, 50 | EOP, 0), (DATA, 50 | EOP, 0), (DATA, 50 | EOP, 0)]);
    }
    assert_eq!((t.wire.frames().len(), t.read(TDBAL + ring::HEAD)), (9, 3));
}

#[test]
fn what_is_sent_later_is_told_later() {
    let t = setup();
    t.write(IMS, cause::TXDW);
    t.write(TIDV, 10);
    t.write(TADV, 15);
    t.pc.memory.write(DATA, &frame(60));
    t.post(&[(DATA, 60 | EOP | RS | IDE, 0)]);
    t.clock.advance(8 * 1024);
    t.post(&[(DATA, 60 | EOP | RS | IDE, 0)]);
    t.clock.advance(7 * 1024 - 1);
    assert_eq!((t.wire.frames().len(), t.wires.take()), (2, vec![]), "a further frame has put it off");
    t.clock.advance(1);
    assert_eq!((t.wires.take(), t.read(ICR) & cause::TXDW), (vec![(0, 1)], cause::TXDW));
}

#[test]
fn checksums_are_left_to_the_receiver_or_made() {
    let t = setup();
    let mut bytes = datagram(6, b"some data");
    let right = bytes.clone();
    let pseudo = !checksum(&[&bytes[26..34]], 6 + 29);
    bytes[24..26].fill(0);
    bytes[50..52].copy_from_slice(&pseudo.to_be_bytes());
    t.pc.memory.write(DATA, &bytes);
    let len = bytes.len() as u32;
    t.post(&[context(0, 0, 0), (DATA, DTYP | 20, POPTS), (DATA + 20, DTYP | EOP | (len - 20), 0)]);
    let (mut sent, offload) = t.wire.sent.lock().pop().expect("a frame");
    if let Some(partial) = offload.partial {
        assert!(mynah_net::offload::complete(&mut sent, partial));
    }
    assert_eq!(sent[..right.len()], right);
    // A legacy descriptor inserts one.
    let word = [&bytes[..34], &right[34..50], &pseudo.to_be_bytes(), &right[52..]].concat();
    t.pc.memory.write(DATA, &word);
    t.post(&[(DATA, len | 50 << 16 | EOP | IC, 34 << 8)]);
    let frames = t.wire.frames();
    assert_eq!(frames[0][34..right.len()], right[34..]);
}

#[test]
fn a_long_segment_goes_out_whole_and_as_it_would_be_cut() {
    let t = setup();
    let data: Vec<u8> = (0..5000_u32).map(|n| (n * 7) as u8).collect();
    let mut bytes = datagram(6, &data);
    // As drivers leave it: no lengths, the pseudo-header's sum without one.
    bytes[16..18].fill(0);
    bytes[24..26].fill(0);
    let pseudo = !checksum(&[&bytes[26..34]], 6);
    bytes[50..52].copy_from_slice(&pseudo.to_be_bytes());
    t.pc.memory.write(DATA, &bytes);
    let len = bytes.len() as u32;
    let send = |command: u32| {
        t.post(&[
            context(TSE | command, 54, 1400),
            (DATA, DTYP | TSE | 54, POPTS),
            (DATA + 54, DTYP | TSE | EOP | (len - 54), 0),
        ]);
    };
    *t.wire.takes.lock() =
        mynah_net::Takes { partial: true, tso4: true, tso6: true, ..mynah_net::Takes::default() };
    send(0);
    let (whole, offload) = t.wire.sent.lock().pop().expect("one frame");
    assert_eq!(offload.gso, Some(Gso { v6: false, size: 1400 }));
    assert_eq!(offload.partial, Some(Partial { start: 34, offset: 16 }));
    assert_eq!((&whole[16..18], &whole[54..]), (&(5040_u16.to_be_bytes())[..], &data[..]));
    assert_eq!(checksum(&[&whole[14..34]], 0), 0);
    *t.wire.takes.lock() = Default::default();
    send(0);
    let cut = t.wire.frames();
    assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [1454, 1454, 1454, 854]);
    assert_eq!((t.read(0x40f8), t.read(0x4080)), (2, 8), "one by one");
    // With something between Ethernet and IP that only the driver understands, the card cuts as it does.
    bytes[12] = 0x77;
    t.pc.memory.write(DATA, &bytes);
    send(0);
    let mut odd = t.wire.frames();
    odd.iter_mut().for_each(|f| f[12] = 8);
    assert_eq!(odd, cut);
}

#[test]
fn udp_is_cut_into_datagrams_of_their_own() {
    let t = setup();
    let mut bytes = datagram(17, &[0x55; 200]);
    bytes[16..18].fill(0);
    bytes[24..26].fill(0);
    let pseudo = !checksum(&[&bytes[26..34]], 17);
    bytes[40..42].copy_from_slice(&pseudo.to_be_bytes());
    t.pc.memory.write(DATA, &bytes);
    let ip: u64 = 14 | 24 << 8 | 33 << 16;
    let context = ((34 | 40 << 8) << 32 | ip, DEXT | 2 << 24 | TSE, 120 << 16 | 42 << 8);
    t.post(&[context, (DATA, DTYP | TSE | EOP | 242, POPTS)]);
    let frames = t.wire.frames();
    assert_eq!(frames.len(), 2);
    for (frame, (len, id)) in frames.iter().zip([(128_u16, 0x1234_u16), (88, 0x1235)]) {
        assert_eq!(
            (frame[38..40].to_vec(), frame[18..20].to_vec()),
            (len.to_be_bytes().into(), id.to_be_bytes().into())
        );
        assert_eq!(checksum(&[&frame[14..34]], 0), 0);
        assert_eq!(checksum(&[&frame[26..34], &frame[34..]], u64::from(len) + 17), 0);
    }
}

#[test]
fn a_tag_is_put_in_where_that_is_on() {
    let t = setup();
    let bytes = frame(60);
    t.pc.memory.write(DATA, &bytes);
    t.post(&[(DATA, 60 | EOP | VLE, 0x2007 << 16)]);
    t.write(CTRL, t.read(CTRL) | ctrl::VME);
    t.post(&[(DATA, 60 | EOP | VLE, 0x2007 << 16)]);
    let tagged = [&bytes[..12], &[0x81, 0, 0x20, 7], &bytes[12..]].concat();
    assert_eq!(t.wire.frames(), [bytes, tagged]);
}

#[test]
fn a_loop_brings_back_what_was_sent() {
    let t = setup();
    let bytes = frame(100);
    t.pc.memory.write(DATA, &bytes);
    t.write(RCTL, t.read(RCTL) | 1 << 6);
    t.post(&[(DATA, 100 | EOP, 0)]);
    assert_eq!((t.wire.frames().len(), t.received(0).0, t.memory(BUFFERS, 100)), (0, 100, bytes));
}

#[test]
fn rings_that_are_none_send_nothing_and_end() {
    let t = setup();
    t.pc.memory.write(DATA, &frame(60));
    for n in 0..u64::from(COUNT) {
        t.pc.memory.write_u64(TX + 16 * n, DATA);
        t.pc.memory.write_u32(TX + 16 * n + 8, 60 | EOP | RS);
    }
    for (base, len, head, tail) in [
        (TX, 128, 9, 3),
        (TX, 128, 0, 8),
        (TX, 0, 0, 3),
        (TX, 0, 3, 0),
        (0xfff0_0000, 128, 0, 3),
        (!15, 0xfff80, 0, 0xffff),
        (0xf_fff8, 128, 0, 3),
    ] {
        for (register, value) in [
            (0, base as u32),
            (4, (base >> 32) as u32),
            (ring::LEN, len),
            (ring::HEAD, head),
            (ring::TAIL, tail),
        ] {
            t.write(TDBAL + register, value);
        }
        t.clock.advance(1_000_000);
        assert_eq!(t.wire.frames(), Vec::<Vec<u8>>::new(), "{base:#x} {len} {head} {tail}");
    }
    for (register, value) in [(0, TX as u32), (4, 0), (ring::LEN, 128), (ring::HEAD, 6), (ring::TAIL, 2)] {
        t.write(TDBAL + register, value);
    }
    assert_eq!(t.wire.frames().len(), 4, "it goes on behind them");
}

#[test]
fn a_frame_without_end_or_not_in_memory_is_dropped() {
    let t = setup();
    t.pc.memory.write(DATA, &frame(60));
    for _ in 0..4 {
        t.post(&[(DATA, DTYP | 0xffff, 0); 5]);
    }
    t.post(&[(DATA, 60 | EOP, 0)]);
    assert_eq!(t.wire.frames().len(), 0);
    t.post(&[(0xfff0_0000, 60 | EOP, 0), (DATA, EOP, 0), (DATA, 60 | EOP, 0)]);
    assert_eq!(t.wire.frames(), [vec![0; 60], frame(60)]);
}

#[test]
fn a_ring_that_is_full_of_work_is_served_in_turns() {
    let t = setup();
    t.pc.memory.write(DATA, &frame(60));
    t.write(TDBAL, 0x4_0000);
    t.write(TDBAL + ring::LEN, 0x8_0000);
    for n in 0..0x7fff {
        t.pc.memory.write_u64(0x4_0000 + 16 * n, DATA);
        t.pc.memory.write_u32(0x4_0000 + 16 * n + 8, 60 | EOP);
    }
    t.write(TDBAL + ring::TAIL, 0x7fff);
    let first = t.wire.frames().len();
    assert!(first < 0x2000, "{first} frames in one turn");
    let saved = t.device.save("card");
    t.device.restore(&saved).unwrap();
    t.clock.advance(1_000_000);
    assert_eq!(first + t.wire.frames().len(), 0x7fff);
}
