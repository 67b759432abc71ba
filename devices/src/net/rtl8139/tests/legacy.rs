//! The mode of all RTL8139s.
use super::*;

const ON: u32 = (cr::TE | cr::RE) as u32;
/// Own frames and broadcasts, into 8 KiB.
const RCR_OWN: u32 = rcr::APM | rcr::AB;

/// A card that such a driver has set up.
fn setup() -> Test {
    let t = bare();
    t.write(CR, ON);
    t.write(RCR, RCR_OWN);
    t.write(RBSTART, RX as u32);
    for n in 0..4 {
        t.write(TSAD + 4 * n, DATA as u32 + 0x800 * n);
    }
    t
}

/// What the driver reads: status and frames without their checksums, until the buffer is empty.
fn drain(t: &Test) -> Vec<(u16, Vec<u8>)> {
    let size = 8192 << (t.read(RCR) >> 11 & 3);
    let wraps = t.read(RCR) & rcr::WRAP == 0 || size == 65_536;
    let mut got = Vec::new();
    while t.read(CR) & u32::from(cr::BUFE) == 0 {
        let at = (t.read(CAPR) + 16) % size;
        let header = t.word(RX + u64::from(at));
        let len = header >> 16;
        let place = |n: u32| if wraps { (at + 4 + n) % size } else { at + 4 + n };
        let bytes = (0..len - 4).map(|n| t.memory(RX + u64::from(place(n)), 1)[0]).collect();
        got.push((header as u16, bytes));
        t.write(CAPR, (at + 4 + len).next_multiple_of(4).wrapping_sub(16) & 0xffff);
    }
    got
}

#[test]
fn frames_go_out_in_the_order_of_the_descriptors() {
    let t = setup();
    t.write(IMR, isr::TOK.into());
    for n in 0..4 {
        t.pc.memory.write(DATA + 0x800 * n, &frame(100 + n as usize));
    }
    // The second one has to wait for the first.
    t.write(TSD + 4, 101);
    assert_eq!((t.wire.frames().len(), t.read(TSAD_ALL)), (0, 0x000d));
    t.write(TSD, 100 | 0x003f_0000);
    assert_eq!(t.wire.frames(), [frame(100), frame(101)]);
    assert_eq!((t.read(TSD), t.read(TSD + 4)), (0x003f_a064, 0xa065));
    assert_eq!((t.wires.take(), t.causes(), t.read(TSAD_ALL)), (vec![(0, 1)], isr::TOK, 0x300f));
    t.write(TSD + 8, 20);
    let padded = [&frame(102)[..20], &[0; 40]].concat();
    assert_eq!(t.wire.frames(), [padded], "a short frame is padded");
    // A buffer that is nowhere, and a transmitter that is off.
    t.write(TSAD + 12, 0xfff0_0000);
    t.write(TSD + 12, 60);
    assert_eq!((t.causes(), t.read(TSD + 12)), (isr::TOK | isr::TER, 0x4000_203c));
    t.write(CR, 0);
    t.write(TSD, 100);
    assert_eq!(t.wire.frames().len(), 0);
    t.write(CR, ON);
    assert_eq!(t.wire.frames().len(), 1);
}

#[test]
fn a_frame_lands_in_the_buffer_behind_its_header() {
    let t = setup();
    t.write(IMR, isr::ROK.into());
    assert_eq!((t.read(CR), t.read(CBR)), (ON | 1, 0));
    assert!(t.wire.give(&Frame::new(&[IoSlice::new(&frame(99)[..30]), IoSlice::new(&frame(99)[30..])])));
    assert_eq!(
        (t.word(RX), t.read(CBR), t.read(CR), t.wires.take()),
        (103 << 16 | 0x4001, 108, ON, vec![(0, 1)])
    );
    let all = [&[0xff; 6], &frame(40)[6..]].concat();
    t.give(&all);
    let padded = [&all[..], &[0; 20]].concat();
    assert_eq!(drain(&t), [(0x4001, frame(99)), (0x2001, padded)]);
    assert_eq!((t.causes(), t.read(CR)), (isr::ROK, ON | 1));
    assert!(t.give(&frame(4093)), "too long: it is gone");
    assert!(t.give(&frame(4092)));
    assert_eq!(drain(&t), [(0x4001, frame(4092))]);
}

#[test]
fn the_buffer_wraps_or_runs_over_its_end() {
    for (rcr, at_start) in [(0, true), (rcr::WRAP, false), (rcr::WRAP | 3 << 11, true)] {
        let t = setup();
        t.write(RCR, RCR_OWN | rcr);
        let size = 8192_usize << (rcr >> 11 & 3);
        let mut crossed = false;
        for n in 0..3 * size / 1500 {
            let before = t.read(CBR);
            t.pc.memory.write_u32(RX, 0x5555_5555);
            let bytes = frame(1400 + n % 7);
            assert!(t.give(&bytes));
            if t.read(CBR) < before && before as usize + 4 + bytes.len() > size {
                crossed = true;
                assert_eq!(t.word(RX) != 0x5555_5555, at_start, "size {size}");
            }
            assert_eq!(drain(&t), [(0x4001, bytes)], "frame {n}, {rcr:#x}");
        }
        assert!(crossed);
    }
}

#[test]
fn a_frame_waits_for_room() {
    let t = setup();
    t.write(IMR, isr::RXOVW.into());
    let sent = (0..5).map(|n| frame(1500 + n)).collect::<Vec<_>>();
    assert!(sent.iter().all(|f| t.give(f)));
    assert_eq!(t.read(MPC), 0);
    assert!(!t.give(&frame(1514)) && !t.give(&frame(1514)) && !t.wire.card().can_receive());
    assert_eq!((t.read(MPC), t.wires.take()), (1, vec![(0, 1)]), "it is told of once");
    t.write(MPC, 5);
    assert_eq!((t.read(MPC), t.wire.woken.load(Ordering::SeqCst)), (0, 0));
    assert_eq!(drain(&t).len(), 5);
    assert!(t.wire.woken.load(Ordering::SeqCst) == 1 && t.give(&frame(1514)));
    t.write(CR, 0);
    assert!(!t.give(&frame(60)), "the receiver is off");
    t.write(CR, ON);
    assert!(t.wire.woken.load(Ordering::SeqCst) == 2 && t.read(CBR) == 0 && t.give(&frame(60)));
    t.pc.write(AT, reg::COMMAND, 2, command::MEMORY.into());
    assert!(!t.give(&frame(60)), "no bus mastering");
    t.pc.write(AT, reg::COMMAND, 2, (command::MEMORY | command::MASTER).into());
    assert_eq!(t.wire.woken.load(Ordering::SeqCst), 3);
}

#[test]
fn filters_let_through_what_is_the_guests() {
    let t = setup();
    let to = |mac: [u8; 6]| [&mac[..], &frame(60)[6..]].concat();
    let (other, group, all) = ([0x52, 0, 0, 0, 0, 1], [0x01, 0, 0x5e, 0, 0, 1], [0xff; 6]);
    let passes = |rcr: u32| {
        t.write(RCR, rcr);
        [MAC, other, group, all].map(|mac| {
            assert!(t.give(&to(mac)), "what is not the guest's is gone");
            drain(&t).first().map_or(0, |(status, _)| *status)
        })
    };
    assert_eq!(passes(0), [0, 0, 0, 0]);
    assert_eq!(passes(rcr::APM), [0x4001, 0, 0, 0]);
    assert_eq!(passes(rcr::AAP), [1, 1, 0, 0]);
    assert_eq!(passes(rcr::AB | rcr::AM), [0, 0, 0, 0x2001], "no group is chosen");
    // The hash of 01:00:5e:00:00:01 is 31.
    t.pc.memory.phys_write(BASE + u64::from(MAR), 4, 1 << 31);
    assert_eq!(passes(rcr::AB | rcr::AM), [0, 0, 0x8001, 0x2001]);
    t.pc.memory.phys_write(BASE + u64::from(MAR), 8, !(1 << 31));
    assert_eq!(passes(rcr::AM), [0, 0, 0, 0]);
}

#[test]
fn what_is_sent_comes_back_in_loopback() {
    let t = setup();
    t.write(TCR, tcr::LBK);
    t.pc.memory.write(DATA, &frame(70));
    t.write(TSD, 70);
    assert!(t.give(&frame(71)), "nothing else comes in");
    assert_eq!((drain(&t), t.wire.frames().len()), (vec![(0x4001, frame(70))], 0));
}

#[test]
fn pointers_that_no_driver_has_harm_nothing() {
    let t = setup();
    for (start, capr, rcr) in
        [(0xffff_ff00_u32, 0x1234_u32, 0x80), (0xfff0_0000, 0x7003, 0x1880), (RX as u32, 0xefff, 0)]
    {
        t.write(RCR, RCR_OWN | rcr);
        t.write(RBSTART, start);
        t.write(CAPR, capr);
        let taken = (0..64).filter(|_| t.give(&frame(1514))).count();
        assert!((2..64).contains(&taken), "{start:#x} {capr:#x}: {taken}");
    }
}

#[test]
fn a_saved_card_goes_on_in_the_middle() {
    let one = setup();
    one.write(IMR, 0xffff);
    one.write(TIMER_INT, 1000);
    one.give(&frame(1000));
    one.write(TSD + 4, 80);
    one.write(EECR, 0x88);
    one.write(EECR, 0x8e);
    let other = bare();
    other.clock.advance(one.clock.now());
    other.device.restore(&one.device.save("card")).unwrap();
    assert_eq!(other.device.save("card"), one.device.save("card"));
    assert_eq!(other.wires.take(), [], "no edge moves");
    other.pc.memory.write(RX, &one.memory(RX, 0x4000));
    for t in [&one, &other] {
        t.pc.memory.write(DATA, &frame(60));
        t.pc.memory.write(DATA + 0x800, &frame(80));
        assert_eq!(drain(t), [(0x4001, frame(1000))]);
        t.write(TSD, 60);
        assert_eq!(t.wire.frames(), [frame(60), frame(80)]);
        t.clock.advance(30_000);
        assert_eq!(t.causes(), isr::ROK | isr::TOK | isr::TIMEOUT);
    }
    assert_eq!(other.device.save("card"), one.device.save("card"));
}
