//! C+ mode.
use super::*;
use mynah_net::{Gso, Offload, Partial};

/// Descriptors of a ring.
const COUNT: u64 = 4;
const WHOLE: u32 = desc::OWN | desc::FS | desc::LS;

/// A card that such a driver has set up: rings of four, buffers of 1536 bytes.
fn setup(extra: u16) -> Test {
    let t = bare();
    t.write(CPCR, (cpcr::TE | cpcr::RE | extra).into());
    for (at, value) in [(TNPDS, TX), (THPDS, HIGH), (RDSAR, RX)] {
        t.write(at, value as u32);
        t.write(at + 4, 0);
    }
    t.write(CR, (cr::TE | cr::RE).into());
    t.write(RCR, rcr::APM | rcr::AB);
    (0..COUNT).for_each(|n| refill(&t, n, 1536));
    t
}

fn end(n: u64) -> u32 {
    if n == COUNT - 1 { desc::EOR } else { 0 }
}

fn refill(t: &Test, n: u64, size: u32) {
    t.pc.memory.write_u64(RX + 16 * n + 8, BUFFERS + 0x1000 * n);
    t.pc.memory.write_u64(RX + 16 * n, (desc::OWN | end(n) | size).into());
}

/// Puts a descriptor into a ring.
fn post(t: &Test, ring: u64, n: u64, first: u32, second: u32, at: u64) {
    t.pc.memory.write_u64(ring + 16 * n + 8, at);
    t.pc.memory.write_u32(ring + 16 * n + 4, second);
    t.pc.memory.write_u32(ring + 16 * n, first | end(n));
}

fn poll(t: &Test) {
    t.write(TPPOLL, tppoll::NPQ.into());
}

#[test]
fn frames_of_several_descriptors_go_round_the_ring() {
    let t = setup(0);
    t.write(IMR, isr::TOK.into());
    t.pc.memory.write(DATA, &frame(200));
    for round in 0..6 {
        let n = 2 * round % COUNT;
        post(&t, TX, n, desc::OWN | desc::FS | 120, 0, DATA);
        poll(&t);
        assert_eq!((t.wire.frames().len(), t.causes()), (0, isr::TDU), "the rest has not come");
        post(&t, TX, n + 1, desc::OWN | desc::LS | 80, 0, DATA + 120);
        poll(&t);
        assert_eq!((t.wire.frames(), t.causes()), (vec![frame(200)], isr::TOK | isr::TDU));
        let left = [n, n + 1].map(|n| t.word(TX + 16 * n));
        assert_eq!(left, [desc::FS | 120, desc::LS | 80 | end(n + 1)]);
    }
    assert_eq!(t.wires.take().len(), 12);
    // The ring of high priority goes first.
    post(&t, TX, 0, WHOLE | 60, 0, DATA);
    post(&t, HIGH, 0, WHOLE | 61, 0, DATA);
    t.write(TPPOLL, u32::from(tppoll::NPQ | tppoll::HPQ));
    let lens = t.wire.frames().iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!((lens, t.read(TPPOLL)), (vec![61, 60], 0));
}

#[test]
fn checksums_are_made() {
    let t = setup(0);
    *t.wire.takes.lock() =
        mynah_net::Takes { partial: true, tso4: true, tso6: true, ..mynah_net::Takes::default() };
    for (n, (protocol, sum)) in [(6, desc::TCPCS), (17, desc::UDPCS)].into_iter().enumerate() {
        let right = datagram(protocol, &[3; 101]);
        let place = 34 + if protocol == 6 { 16 } else { 6 };
        let mut bytes = right.clone();
        bytes[24..26].fill(0xaa);
        bytes[place..place + 2].fill(0xaa);
        t.pc.memory.write(DATA, &bytes);
        post(&t, TX, n as u64, WHOLE | desc::IPCS | sum | bytes.len() as u32, 0, DATA);
        poll(&t);
        let (mut sent, offload) = t.wire.sent.lock().pop().unwrap();
        let partial = Partial { start: 34, offset: place as u16 - 34 };
        assert_eq!(offload, Offload { partial: Some(partial), ..Offload::default() });
        assert!(mynah_net::offload::complete(&mut sent, partial));
        assert_eq!(sent, right);
    }
    // Padding behind the datagram is none of it, and no checksum is made that is not asked for.
    let right = [&datagram(17, b"abc")[..], &[9; 30]].concat();
    let mut bytes = right.clone();
    bytes[40..42].fill(0);
    t.pc.memory.write(DATA, &bytes);
    post(&t, TX, 2, WHOLE | desc::UDPCS | bytes.len() as u32, 0, DATA);
    post(&t, TX, 3, WHOLE | desc::TCPCS | bytes.len() as u32, 0, DATA);
    poll(&t);
    assert_eq!(t.wire.frames(), [right, bytes]);
}

#[test]
fn a_long_segment_stands_for_several() {
    let t = setup(0);
    *t.wire.takes.lock() =
        mynah_net::Takes { partial: true, tso4: true, tso6: true, ..mynah_net::Takes::default() };
    let data = (0..4000_u32).map(|n| n as u8).collect::<Vec<_>>();
    let right = datagram(6, &data);
    let mut bytes = right.clone();
    bytes[24..26].fill(0);
    bytes[50..52].fill(0x55);
    t.pc.memory.write(DATA, &bytes);
    post(&t, TX, 0, WHOLE | desc::LGSEN | 1460 << 16 | bytes.len() as u32, 0, DATA);
    poll(&t);
    let (sent, offload) = t.wire.sent.lock().pop().unwrap();
    assert_eq!(offload.gso, Some(Gso { v6: false, size: 1460 }));
    assert_eq!(t.word(TX), desc::FS | desc::LS | bytes.len() as u32, "no bit of an error is left");
    let mut whole = sent.clone();
    assert!(mynah_net::offload::complete(&mut whole, offload.partial.unwrap()));
    assert_eq!(whole, right);
    let mut got = Vec::new();
    let frame = Frame { offload, parts: &[IoSlice::new(&sent)] };
    mynah_net::offload::deliver(&frame, Default::default(), &mut |f| got.push(f.to_vec().split_off(54)));
    assert_eq!((got.len(), got.concat()), (3, data));
    // What is no TCP goes as it is.
    t.pc.memory.write(DATA, &super::frame(300));
    post(&t, TX, 1, WHOLE | desc::LGSEN | 100 << 16 | 300, 0, DATA);
    poll(&t);
    assert_eq!(t.wire.frames(), [super::frame(300)]);
}

#[test]
fn tags_are_put_in_and_taken_out() {
    let t = setup(cpcr::RX_VLAN);
    let bytes = frame(80);
    let tagged = [&bytes[..12], &[0x81, 0, 0x60, 0x23], &bytes[12..]].concat();
    t.pc.memory.write(DATA, &bytes);
    post(&t, TX, 0, WHOLE | 80, desc::TAGC | 0x2360, DATA);
    poll(&t);
    assert_eq!(t.wire.frames(), std::slice::from_ref(&tagged));
    assert!(t.give(&tagged) && t.give(&bytes));
    assert_eq!([t.word(RX + 4), t.word(RX + 20)], [desc::TAVA | 0x2360, 0]);
    assert_eq!((t.word(RX) & desc::LEN, t.memory(BUFFERS, 80)), (84, bytes));
    t.write(CPCR, (cpcr::TE | cpcr::RE).into());
    assert!(t.give(&tagged));
    assert_eq!((t.word(RX + 36), t.memory(BUFFERS + 0x2000, 84)), (0, tagged));
}

#[test]
fn a_frame_lands_in_a_descriptor_with_what_is_known_of_it() {
    let t = setup(cpcr::RX_CHK_SUM);
    t.write(IMR, isr::ROK.into());
    let tcp = datagram(6, &[7; 100]);
    let mut bad = tcp.clone();
    bad[60] ^= 1;
    let mut worse = datagram(17, &[7; 100]);
    worse[20] ^= 1;
    for bytes in [&tcp, &bad, &worse, &frame(60)] {
        assert!(t.give(bytes));
    }
    let seen = [0, 1, 2, 3].map(|n| t.word(RX + 16 * n));
    let usual = desc::FS | desc::LS | desc::PAM;
    let len = |bytes: &[u8]| bytes.len() as u32 + 4;
    assert_eq!(
        seen,
        [
            usual | desc::PID_TCP | len(&tcp),
            usual | desc::PID_TCP | desc::TCPF | len(&tcp),
            // A fragment, by its flags, whose header's sum is wrong.
            usual | desc::PID_IP | desc::IPF | len(&worse),
            usual | desc::EOR | 64
        ]
    );
    assert_eq!((t.memory(BUFFERS, tcp.len()), t.wires.take(), t.causes()), (tcp, vec![(0, 1)], isr::ROK));
}

#[test]
fn a_frame_waits_for_descriptors() {
    let t = setup(0);
    t.write(IMR, isr::RXOVW.into());
    assert!((0..COUNT).all(|_| t.give(&frame(60))) && !t.give(&frame(61)) && !t.give(&frame(61)));
    assert_eq!((t.wires.take(), t.read(MPC), t.read(ISR) as u16), (vec![(0, 1)], 1, isr::RXOVW | isr::ROK));
    t.causes();
    assert_eq!(t.wire.woken.load(Ordering::SeqCst), 0);
    refill(&t, 0, 1536);
    t.write(IMR, 0xffff);
    assert!(t.wire.woken.load(Ordering::SeqCst) == 1 && t.give(&frame(61)), "when interrupts are unmasked");
    assert!(!t.give(&frame(62)));
    refill(&t, 1, 1536);
    t.clock.advance(10_000_000);
    assert!(t.wire.woken.load(Ordering::SeqCst) == 2 && t.give(&frame(62)), "or in a while");
    assert_eq!((t.word(RX) & desc::LEN, t.word(RX + 16) & desc::LEN), (65, 66));
}

#[test]
fn a_frame_may_take_several_descriptors() {
    let t = setup(0);
    (0..COUNT).for_each(|n| refill(&t, n, 256));
    let bytes = frame(600);
    assert!(t.give(&bytes));
    let status = [0, 1, 2].map(|n| t.word(RX + 16 * n));
    assert_eq!(status, [desc::FS, 0, desc::LS | desc::PAM | 604]);
    let got = [(0, 256), (1, 256), (2, 88)].map(|(n, len)| t.memory(BUFFERS + 0x1000 * n, len)).concat();
    assert_eq!(got, bytes);
    (0..COUNT).for_each(|n| refill(&t, n, 256));
    assert!(t.give(&frame(1100)), "there never is room for it: it is lost");
    assert_eq!(t.read(MPC), 1);
}

#[test]
fn statistics_go_to_memory() {
    let t = setup(0);
    t.pc.memory.write(DATA, &frame(60));
    post(&t, TX, 0, WHOLE | 60, 0, DATA);
    poll(&t);
    t.give(&frame(60));
    t.give(&[&[0xff; 6], &frame(60)[6..]].concat());
    t.pc.memory.write(DATA, &[0x55; 65]);
    t.write(DTCCR_HIGH, 0);
    t.write(DTCCR, DATA as u32 | DTCCR_CMD);
    assert_eq!(t.read(DTCCR), DATA as u32, "it is done");
    let table = t.memory(DATA, 65);
    let at = |n: usize| u64::from_le_bytes(table[n..n + 8].try_into().unwrap());
    assert_eq!((at(0), at(8), at(16), at(40), at(48), table[64]), (1, 2, 0, 1, 1, 0x55));
}

#[test]
fn rings_that_are_none_send_and_take_nothing() {
    let t = setup(0);
    for at in [0xfff0_0000_u32, 0xffff_ff00] {
        t.write(TNPDS, at);
        t.write(RDSAR, at);
        for high in [0, u32::MAX] {
            t.write(TNPDS + 4, high);
            t.write(RDSAR + 4, high);
            poll(&t);
            assert!(!t.give(&frame(60)) && t.wire.frames().is_empty());
        }
    }
    // Parts that are nowhere, no first descriptor, more than a frame has: they are done, and nothing is sent.
    let bad = [(WHOLE | 60, 0xfff0_0000), (desc::OWN | desc::LS | 60, DATA)];
    for (first, at) in bad {
        t.write(TNPDS, TX as u32);
        t.write(TNPDS + 4, 0);
        post(&t, TX, 0, first, 0, at);
        t.pc.memory.write_u32(TX + 16, 0);
        t.causes();
        poll(&t);
        assert_eq!((t.causes(), t.word(TX) & desc::OWN), (isr::TER | isr::TDU, 0));
    }
    t.write(TNPDS, TX as u32);
    for n in 0..64 {
        t.pc.memory.write_u64(TX + 16 * n, u64::from(desc::OWN | (desc::FS * u32::from(n == 0)) | 0xffff));
        t.pc.memory.write_u64(TX + 16 * n + 8, DATA);
    }
    t.pc.memory.write_u32(TX + 16 * 63, desc::OWN | desc::LS | 60);
    poll(&t);
    assert_eq!((t.causes(), t.wire.frames().len()), (isr::TER | isr::TDU, 0));
}

#[test]
fn a_saved_card_goes_on_in_the_middle_of_a_frame() {
    let one = setup(0);
    one.pc.memory.write(DATA, &frame(200));
    post(&one, TX, 0, desc::OWN | desc::FS | 120, 0, DATA);
    poll(&one);
    (0..COUNT).for_each(|_| assert!(one.give(&frame(60))));
    assert!(!one.give(&frame(61)));
    let other = bare();
    other.clock.advance(one.clock.now());
    other.device.restore(&one.device.save("card")).unwrap();
    other.pc.memory.write(TX, &one.memory(TX, 0x800));
    other.pc.memory.write(DATA, &frame(200));
    other.pc.memory.write(RX, &one.memory(RX, 64));
    for t in [&one, &other] {
        post(t, TX, 1, desc::OWN | desc::LS | 80, 0, DATA + 120);
        poll(t);
        assert_eq!(t.wire.frames(), [frame(200)]);
        refill(t, 0, 1536);
        t.clock.advance(10_000_000);
        assert!(t.wire.woken.load(Ordering::SeqCst) == 1 && t.give(&frame(61)));
    }
    assert_eq!(other.device.save("card"), one.device.save("card"));
}
