use super::super::testing::{Buffer, Rig, WAYS, Way, options as pci_options};
use super::super::{feature as ring, status};
use super::*;
use crate::kind::{Value, Values};
use crate::net::testing::Recorder;
use mynah_net::{Backend, Frame, Gso, MAX_FRAME, Mac, Nic, Offload, Partial, Takes};
use std::io::IoSlice;

const RX: usize = 0;
const TX: usize = 1;
const CONTROL: usize = 2;
/// Where the driver has its buffers.
const AT: u64 = 0x8_0000;
const ALL: u64 = !(ring::EVENT_IDX | ring::RING_RESET | ring::INDIRECT_DESC | ring::RING_PACKED);
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

struct Test {
    rig: Rig<Net>,
    wire: Arc<Recorder>,
    link: Arc<Link>,
}

impl std::ops::Deref for Test {
    type Target = Rig<Net>;
    fn deref(&self) -> &Rig<Net> {
        &self.rig
    }
}

impl std::ops::DerefMut for Test {
    fn deref_mut(&mut self) -> &mut Rig<Net> {
        &mut self.rig
    }
}

fn chosen(way: Way, options: NetOptions) -> Test {
    let (wire, link) = Recorder::linked("virtio-net-pci");
    *wire.takes.lock() = Takes { partial: true, tso4: true, tso6: true, ..Takes::default() };
    let net = Net::new(link.clone(), options);
    link.connect(&net);
    Test { rig: Rig::with(way, net, pci_options(4)), wire, link }
}

fn test(way: Way) -> Test {
    chosen(way, NetOptions::default())
}

/// A card whose driver wants these features.
fn started(way: Way, features: u64) -> Test {
    let mut t = test(way);
    t.start(features);
    t
}

/// A frame to the card's address.
fn frame(len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|n| (n * 7 + n / 256) as u8).collect();
    bytes[..6].copy_from_slice(&MAC);
    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
    bytes
}

/// A long TCP segment over IPv4 or IPv6.
fn segment(len: usize, v6: bool) -> (Vec<u8>, Offload) {
    let (mut bytes, tcp) = (frame(len), if v6 { 54 } else { 34 });
    let kind: &[u8] = if v6 { &[0x86, 0xdd, 0x60] } else { &[8, 0, 0x45] };
    bytes[12..15].copy_from_slice(kind);
    bytes[if v6 { 20 } else { 23 }] = 6;
    bytes[tcp + 12] = 0x80;
    bytes[tcp + 13] = 0x10;
    let partial = Some(Partial { start: tcp as u16, offset: 16 });
    (bytes, Offload { partial, gso: Some(Gso { v6, size: 1448 }), valid: false })
}

fn header(flags: u8, kind: u8, words: [u16; 4]) -> [u8; 10] {
    let mut header = [0; 10];
    header[..2].copy_from_slice(&[flags, kind]);
    words
        .iter()
        .enumerate()
        .for_each(|(n, w)| header[2 + 2 * n..4 + 2 * n].copy_from_slice(&w.to_le_bytes()));
    header
}

impl Test {
    /// Bytes of the header that this driver sees.
    fn head(&self) -> usize {
        super::header::len(self.model().features())
    }

    fn give(&self, bytes: &[u8]) -> bool {
        self.wire.give(&Frame::new(&[IoSlice::new(bytes)]))
    }

    /// Sends a frame whose parts, of these lengths, lie far apart.
    fn send(&mut self, header: &[u8], bytes: &[u8], lens: &[usize]) {
        let mut all = header.to_vec();
        all.resize(self.head(), 0);
        all.extend(bytes);
        let (mut at, mut buffers): (usize, Vec<Buffer>) = (0, Vec::new());
        for (n, len) in lens.iter().copied().chain([usize::MAX]).enumerate() {
            let part = &all[at..all.len().min(at.saturating_add(len))];
            if part.is_empty() {
                break;
            }
            let place = AT + 0x1_1001 * n as u64;
            self.pc.memory.write(place, part);
            buffers.push((place, part.len() as u32, false));
            at += part.len();
        }
        let head = self.add(TX, &buffers);
        self.notify(TX);
        assert_eq!(self.used(TX), [(head, 0)], "{:?}", self.way);
    }

    /// Bytes of guest memory.
    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.pc.memory.read(at, &mut bytes);
        bytes
    }

    /// A command: the answer, and bytes written.
    fn command(&mut self, command: &[u8]) -> (u8, u32) {
        self.pc.memory.write(AT, command);
        self.pc.memory.write(AT + 0x2_0000, &[0x77]);
        let (first, rest) = (2.min(command.len() as u32), command.len() as u32 - 2);
        let mut buffers = vec![(AT, first, false)];
        if rest > 0 {
            buffers.push((AT + 2, rest, false));
        }
        buffers.push((AT + 0x2_0000, 1, true));
        let head = self.add(CONTROL, &buffers);
        self.notify(CONTROL);
        let used = self.used(CONTROL);
        assert_eq!(used.len(), 1, "{:?}", self.way);
        assert_eq!(used[0].0, head);
        (self.bytes(AT + 0x2_0000, 1)[0], used[0].1)
    }

    fn obeys(&mut self, command: &[u8]) -> bool {
        let (answer, written) = self.command(command);
        assert_eq!((written, answer & !1), (1, 0));
        answer == 0
    }
}

#[test]
fn a_driver_finds_address_status_and_features() {
    for way in WAYS {
        let t = test(way);
        let high = if way == Way::Legacy { 0 } else { ring::VERSION_1 | ring::RING_RESET };
        let rings = ring::INDIRECT_DESC | ring::EVENT_IDX;
        let layout = if way == Way::Legacy { ring::ANY_LAYOUT } else { 0 };
        // QEMU's virtio-net-pci without VIRTIO_NET_F_GSO and UFO.
        assert_eq!(t.offered(), 0x00bf_bba7 | high | rings | layout, "{way:?}");
        let mac = t.config(0, 4) | t.config(4, 2) << 32;
        assert_eq!(mac.to_le_bytes()[..6], MAC, "{way:?}");
        assert_eq!(t.config(6, 2), 1, "{way:?}: the cable is in");
    }
}

#[test]
fn properties_are_qemus() {
    let of = |given: &[(&'static str, Value)]| {
        NetOptions::of(&Values { values: given.iter().cloned().collect(), ..Values::default() })
    };
    let features = |given: &[(&'static str, Value)]| of(given).unwrap().features;
    let all = NetOptions::default().features;
    let off = Value::Switch(false);
    assert_eq!(features(&[]), all);
    assert_eq!(features(&[("mrg_rxbuf", off.clone())]), all & !feature::MRG_RXBUF);
    let tso = feature::HOST_TSO4 | feature::HOST_TSO6;
    assert_eq!(features(&[("gso", off.clone())]), all & !tso);
    assert_eq!(features(&[("csum", off.clone())]), all & !(tso | feature::HOST_ECN | feature::CSUM));
    let orders = feature::CTRL_RX | feature::CTRL_RX_EXTRA | feature::CTRL_VLAN | feature::CTRL_MAC_ADDR;
    let orders = orders | feature::CTRL_GUEST_OFFLOADS | feature::GUEST_ANNOUNCE | feature::CTRL_VQ;
    assert_eq!(features(&[("ctrl_vq", off), ("mq", Value::Switch(true))]), all & !orders);
    let more = [
        ("host_mtu", Value::Number(9000)),
        ("speed", Value::Number(10_000)),
        ("duplex", Value::Text("full".into())),
        ("mq", Value::Switch(true)),
        ("queues", Value::Number(4)),
    ];
    let more = of(&more).unwrap();
    assert_eq!(more.features, all | feature::MTU | feature::SPEED_DUPLEX | feature::MQ);
    let t = chosen(Way::Mmio, more);
    assert_eq!([t.config(8, 2), t.config(10, 2), t.config(12, 4), t.config(16, 1)], [4, 9000, 10_000, 1]);
    for bad in [
        ("host_mtu", Value::Number(67)),
        ("duplex", Value::Text("both".into())),
        ("rx_queue_size", Value::Number(300)),
    ] {
        assert!(of(std::slice::from_ref(&bad)).is_err(), "{bad:?}");
    }
}

#[test]
fn a_driver_of_before_version_1_writes_the_address() {
    for way in WAYS {
        let mut t = started(way, feature::CTRL_VQ);
        t.set_config(0, 1, 2);
        t.set_config(5, 1, 9);
        let wanted = if way == Way::Legacy { [2, 9] } else { [0x52, 0x56] };
        assert_eq!([t.config(0, 1), t.config(5, 1)], wanted, "{way:?}");
        t.start(0);
        assert_eq!([t.config(0, 1), t.config(5, 1)], [0x52, 0x56], "{way:?}");
    }
}

#[test]
fn frames_are_sent_whatever_pieces_they_lie_in() {
    for way in WAYS {
        for features in [0, feature::MRG_RXBUF] {
            let mut t = started(way, features);
            let long = way != Way::Legacy || features != 0;
            assert_eq!(t.head(), if long { 12 } else { 10 }, "{way:?}");
            for lens in [&[][..], &[10], &[12], &[1, 1, 20], &[500], &[12, 14]] {
                let bytes = frame(1514);
                t.send(&[], &bytes, lens);
                assert_eq!(*t.wire.sent.lock(), [(bytes, Offload::default())], "{way:?} {lens:?}");
                t.wire.sent.lock().clear();
            }
        }
    }
}

#[test]
fn what_is_left_to_the_receiver_is_handed_on_and_what_cannot_be_is_dropped() {
    for way in WAYS {
        let mut t = started(way, ALL);
        for v6 in [false, true] {
            let (bytes, offload) = segment(MAX_FRAME, v6);
            let tcp = offload.partial.unwrap().start;
            let kind = if v6 { 4 } else { 1 };
            t.send(&header(1, kind, [tcp + 32, 1448, tcp, 16]), &bytes, &[12, 66, 30000]);
            t.send(&header(1, kind | 0x80, [0, 1448, tcp, 16]), &bytes, &[]);
            t.send(&header(1, 0, [0, 0, tcp, 16]), &bytes[..1514], &[]);
            let partial = Offload { gso: None, ..offload };
            let sent = std::mem::take(&mut *t.wire.sent.lock());
            let expected =
                [(bytes.clone(), offload), (bytes.clone(), offload), (bytes[..1514].to_vec(), partial)];
            assert!(sent == expected, "{way:?}");
        }
        let bytes = segment(100, false).0;
        for (what, header) in [
            ("a sum that begins behind the frame", header(1, 0, [0, 0, 100, 0])),
            ("a sum that goes behind the frame", header(1, 0, [0, 0, 34, 65])),
            ("a sum that goes far away", header(1, 0, [0, 0, 0xffff, 0xffff])),
            ("segments without a sum", header(0, 1, [66, 1448, 34, 16])),
            ("segments of no bytes", header(1, 1, [66, 0, 34, 16])),
            ("headers longer than the frame", header(1, 1, [101, 10, 34, 16])),
            ("a segment that is cut off", header(1, 1, [66, 10, 82, 16])),
            ("segments of UDP", header(1, 3, [42, 100, 34, 6])),
            ("segments of nothing that there is", header(1, 0x7f, [66, 1448, 34, 16])),
        ] {
            t.send(&header, &bytes, &[]);
            assert_eq!(t.wire.frames(), Vec::<Vec<u8>>::new(), "{way:?}: {what}");
        }
        t.send(&[], &bytes[..13], &[]);
        t.send(&[], &vec![0; MAX_FRAME + 1], &[20000, 20000]);
        assert_eq!(
            (t.wire.frames().len(), t.status() & status::NEEDS_RESET),
            (0, 0),
            "{way:?}: of no length"
        );
        let head = t.add(TX, &[(AT, 5, false)]);
        let nowhere = t.add(TX, &[(1 << 40, 100, false)]);
        t.notify(TX);
        assert_eq!((t.used(TX), t.wire.frames().len()), (vec![(head, 0), (nowhere, 0)], 0), "{way:?}");
        // Without the feature there is nothing to leave to others.
        let mut t = started(way, 0);
        t.send(&header(1, 0, [0, 0, 34, 16]), &bytes, &[]);
        assert_eq!(t.wire.frames().len(), 0, "{way:?}");
    }
}

#[test]
fn a_long_datagram_is_cut_where_the_driver_may_send_one() {
    // 802.3, IPv4 and UDP in front of 2,500 bytes.
    let mut bytes = segment(42 + 2500, false).0;
    bytes[20..22].fill(0);
    bytes[23] = 17;
    let sent = header(1, 5, [42, 1000, 34, 6]);
    for way in [Way::Modern, Way::Mmio] {
        let uso = NetOptions {
            features: NetOptions::default().features | feature::HOST_USO,
            ..NetOptions::default()
        };
        let mut t = chosen(way, uso);
        t.start(ALL);
        t.send(&sent, &bytes, &[]);
        let frames = std::mem::take(&mut *t.wire.sent.lock());
        let lens: Vec<_> =
            frames.iter().map(|(b, _)| (b.len(), u16::from_be_bytes([b[38], b[39]]))).collect();
        assert_eq!(lens, [(1042, 1008), (1042, 1008), (542, 508)], "{way:?}");
        assert_eq!(
            frames.iter().flat_map(|(b, _)| &b[42..]).collect::<Vec<_>>(),
            bytes[42..].iter().collect::<Vec<_>>()
        );
        let partial = Some(Partial { start: 34, offset: 6 });
        assert!(frames.iter().all(|(_, o)| *o == Offload { partial, ..Offload::default() }), "{way:?}");
        for (what, header) in [
            ("the sum of TCP", header(1, 5, [42, 1000, 34, 16])),
            ("no sum", header(0, 5, [42, 1000, 34, 6])),
            ("pieces of no bytes", header(1, 5, [42, 0, 34, 6])),
            ("a header that is cut off", header(1, 5, [42, 1000, 2540, 6])),
        ] {
            t.send(&header, &bytes, &[]);
            assert_eq!(t.wire.frames(), Vec::<Vec<u8>>::new(), "{way:?}: {what}");
        }
        // Not if the card does not offer it.
        let mut t = started(way, ALL);
        t.send(&sent, &bytes, &[]);
        assert_eq!(t.wire.frames(), Vec::<Vec<u8>>::new(), "{way:?}");
    }
}

#[test]
fn a_long_datagram_is_the_driver_s_if_it_takes_them() {
    // UDP over IPv4 and IPv6: 3,000 bytes in pieces of 1,000.
    let datagram = |v6: bool| {
        let udp = if v6 { 54 } else { 34 };
        let (mut bytes, offload) = segment(udp + 8 + 3000, v6);
        bytes[if v6 { 20 } else { 23 }] = 17;
        let partial = Some(Partial { start: udp as u16, offset: 6 });
        (bytes, Offload { partial, gso: Some(Gso { v6, size: 1000 }), ..offload })
    };
    for way in [Way::Modern, Way::Mmio] {
        let uso = NetOptions {
            features: NetOptions::default().features | feature::GUEST_USO4 | feature::GUEST_USO6,
            ..NetOptions::default()
        };
        // It takes all, those of IPv4 alone, none; then changes its mind.
        for (without, v4, v6) in
            [(0, true, true), (feature::GUEST_USO6, true, false), (feature::GUEST_CSUM, false, false)]
        {
            let mut t = chosen(way, uso.clone());
            t.start(ALL & !without);
            let takes = t.wire.card().takes();
            assert_eq!((takes.uso4, takes.uso6), (v4, v6), "{way:?}");
            for n in 0..24 {
                t.add(RX, &[(AT + 0x1000 * n, 4096, true)]);
            }
            t.notify(RX);
            for (is_v6, whole) in [(false, v4), (true, v6)] {
                let (bytes, offload) = datagram(is_v6);
                assert!(t.wire.give(&Frame { offload, parts: &[IoSlice::new(&bytes)] }), "{way:?}");
                let used = t.used(RX);
                let first = if is_v6 && v4 {
                    1
                } else if is_v6 {
                    3
                } else {
                    0
                };
                if whole {
                    let header = t.bytes(AT + 0x1000 * first, 12);
                    let transport = if is_v6 { 54 } else { 34 };
                    let expected = [1, 5, transport + 8, 0, 0xe8, 3, transport, 0, 6, 0, 1, 0];
                    assert_eq!((used.len(), header), (1, expected.to_vec()), "{way:?}");
                    assert_eq!(t.bytes(AT + 0x1000 * first + 12, bytes.len()), bytes, "{way:?}");
                } else {
                    assert_eq!(used.len(), 3, "{way:?}: it is cut");
                }
            }
        }
        // Offered only if the user says so.
        let t = started(way, ALL);
        assert!(!t.wire.card().takes().uso4 && !t.wire.card().takes().uso6, "{way:?}");
    }
}

#[test]
fn a_frame_comes_in_one_buffer_with_its_header() {
    for way in WAYS {
        for features in [0, feature::MRG_RXBUF | feature::GUEST_CSUM | feature::GUEST_TSO4] {
            let mut t = started(way, features);
            let head = t.head();
            let buffers = [(AT, head as u32, true), (AT + 0x1000, 100, true), (AT + 0x2000, 1600, true)];
            let one = t.add(RX, &buffers);
            let two = t.add(RX, &buffers);
            t.notify(RX);
            t.took();
            let bytes = frame(1514);
            assert!(t.give(&bytes), "{way:?}");
            let buffers = u64::from(head == 12) << 48;
            assert_eq!(t.bytes(AT, head)[..8], [0; 8], "{way:?}");
            assert_eq!(t.pc.memory.read_u64(AT + 4) & 0xffff << 48, if head == 12 { buffers } else { 0 });
            assert_eq!([t.bytes(AT + 0x1000, 100), t.bytes(AT + 0x2000, 1414)].concat(), bytes, "{way:?}");
            assert_eq!(t.isr(), 1, "{way:?}");
            t.set_quiet(RX, true);
            let offload = Offload { valid: true, ..Offload::default() };
            assert!(
                t.wire.give(&Frame {
                    offload,
                    parts: &[IoSlice::new(&bytes[..20]), IoSlice::new(&bytes[20..])]
                })
            );
            assert_eq!(t.isr(), 0, "{way:?}: the driver does not wish to hear");
            assert_eq!(t.bytes(AT, 1)[0], if features != 0 { 2 } else { 0 }, "{way:?}: known to be right");
            assert_eq!(t.used(RX), [(one, head as u32 + 1514), (two, head as u32 + 1514)], "{way:?}");
        }
    }
}

#[test]
fn a_long_segment_lies_in_several_buffers_that_the_driver_sees_at_once() {
    for way in WAYS {
        for features in [ALL, ALL | ring::EVENT_IDX] {
            let mut t = started(way, features);
            assert_eq!(
                t.wire.card().takes(),
                Takes { partial: true, tso4: true, tso6: true, ..Takes::default() },
                "{way:?}"
            );
            let heads: Vec<_> = (0..20).map(|n| t.add(RX, &[(AT + 0x1000 * n, 4096, true)])).collect();
            t.set_used_event(RX, 3);
            t.notify(RX);
            for v6 in [false, true] {
                let (bytes, offload) = segment(30000, v6);
                assert!(t.wire.give(&Frame { offload, parts: &[IoSlice::new(&bytes)] }), "{way:?}");
                let used = t.used(RX);
                assert_eq!(used.len(), 8, "{way:?}");
                let first = usize::from(v6) * 8;
                let expected: Vec<_> =
                    (0..8).map(|n| (heads[first + n], if n < 7 { 4096 } else { 30012 - 7 * 4096 })).collect();
                assert_eq!(used, expected, "{way:?}");
                let at = AT + 0x1000 * first as u64;
                let tcp = offload.partial.unwrap().start;
                let mut wanted = header(1, if v6 { 4 } else { 1 }, [tcp + 32, 1448, tcp, 16]).to_vec();
                wanted.extend([8, 0]);
                wanted.extend(&bytes);
                assert!(t.bytes(at, 30012) == wanted, "{way:?}");
                // The third of the first eight was asked for, with event indexes, and none of the others.
                assert_eq!(t.isr(), u8::from(!v6 || features & ring::EVENT_IDX == 0), "{way:?}");
            }
        }
    }
}

#[test]
fn a_frame_without_buffers_waits_and_one_too_long_for_them_is_dropped() {
    for way in WAYS {
        for mergeable in [0, feature::MRG_RXBUF] {
            for events in [0, ring::EVENT_IDX] {
                let mut t = started(way, mergeable | events);
                let woken = |t: &Test| t.wire.woken.swap(0, Ordering::SeqCst);
                assert_eq!(woken(&t), 1, "{way:?}: there is a driver");
                assert!(!t.give(&frame(60)) && !t.wire.card().can_receive(), "{way:?}");
                // It is to notify of the first buffer.
                let no_notify = |t: &Test| t.word(t.parts(RX).2) & 1 == 1;
                assert!(!no_notify(&t) && t.available_event(RX) == 0, "{way:?}");
                let one = t.add(RX, &[(AT, 200, true)]);
                t.notify(RX);
                assert_eq!((woken(&t), t.wire.card().can_receive()), (1, true), "{way:?}");
                assert!(events != 0 || no_notify(&t), "{way:?}: nobody waits");
                t.add(RX, &[(AT + 0x1000, 200, true)]);
                t.notify(RX);
                assert_eq!((woken(&t), t.used(RX)), (0, vec![]), "{way:?}");
                assert!(t.give(&frame(60)), "{way:?}");
                assert_eq!(t.used(RX), [(one, 60 + t.head() as u32)], "{way:?}");
                let two = t.give(&frame(300));
                assert_eq!((two, t.used(RX)), (mergeable == 0, vec![]), "{way:?}: too long");
                if mergeable != 0 {
                    assert_eq!(
                        t.available_event(RX),
                        if events != 0 { 2 } else { 0 },
                        "{way:?}: of the next one"
                    );
                    assert!(!no_notify(&t), "{way:?}");
                    t.add(RX, &[(AT + 0x2000, 200, true)]);
                    t.notify(RX);
                    assert_eq!(woken(&t), 1, "{way:?}");
                    assert!(t.give(&frame(300)), "{way:?}");
                    assert_eq!(t.used(RX).len(), 2, "{way:?}");
                } else {
                    assert!(
                        t.give(&frame(60)) && t.used(RX).len() == 1,
                        "{way:?}: the buffer is there still"
                    );
                }
                assert_eq!(t.status() & status::NEEDS_RESET, 0, "{way:?}");
            }
        }
    }
    // All that a ring has is less than a frame.
    let mut t = started(Way::Modern, feature::MRG_RXBUF);
    (0..t.entries(RX)).for_each(|n| _ = t.add(RX, &[(AT + 0x100 * u64::from(n), 20, true)]));
    t.notify(RX);
    assert!(t.give(&frame(1514)) && t.used(RX).is_empty());
    assert!(t.give(&frame(60)) && t.used(RX).len() == 4);
}

#[test]
fn buffers_that_are_none_stop_the_device() {
    for buffers in [&[(AT, 100, false)][..], &[(AT, 5, true)], &[(1 << 40, 2000, true)]] {
        let mut t = started(Way::Modern, 0);
        t.add(RX, buffers);
        t.notify(RX);
        t.give(&frame(60));
        assert_ne!(t.status() & status::NEEDS_RESET, 0, "{buffers:?}");
        assert!(t.give(&frame(60)) || !t.wire.card().can_receive());
        t.start(0);
        t.add(RX, &[(AT, 2000, true)]);
        assert!(t.give(&frame(60)) && t.used(RX).len() == 1, "{buffers:?}");
    }
}

#[test]
fn the_driver_chooses_what_it_sees() {
    for way in WAYS {
        let mut t = started(way, ALL);
        for n in 0..40 {
            t.add(RX, &[(AT + 0x3_0000 + 0x400 * n, 200, true)]);
        }
        t.notify(RX);
        let sees = |t: &mut Test, to: [u8; 6], vlan: Option<u16>| {
            let mut bytes = frame(60);
            bytes[..6].copy_from_slice(&to);
            if let Some(vlan) = vlan {
                bytes[12..14].copy_from_slice(&[0x81, 0]);
                bytes[14..16].copy_from_slice(&(vlan | 0xe000).to_be_bytes());
            }
            assert!(t.give(&bytes));
            !t.used(RX).is_empty()
        };
        const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 1];
        const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];
        const ALL_STATIONS: [u8; 6] = [0xff; 6];
        assert!(sees(&mut t, OTHER, Some(5)), "{way:?}: all, by itself");
        assert!(t.obeys(&[0, 0, 0]), "{way:?}");
        assert_eq!(
            [MAC, OTHER, GROUP, ALL_STATIONS].map(|to| sees(&mut t, to, None)),
            [true, false, false, true]
        );
        let table = [&[1, 0, 1, 0, 0, 0][..], &OTHER, &[1, 0, 0, 0], &GROUP].concat();
        assert!(t.obeys(&table), "{way:?}");
        assert_eq!([OTHER, GROUP].map(|to| sees(&mut t, to, None)), [true, true], "{way:?}");
        // More than are looked at: all of that sort.
        let many = [&[1, 0, 0, 0, 0, 0, 65, 0, 0, 0][..], &[1; 65 * 6]].concat();
        assert!(t.obeys(&many), "{way:?}");
        assert_eq!([OTHER, GROUP].map(|to| sees(&mut t, to, None)), [false, true], "{way:?}");
        assert!(t.obeys(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "{way:?}");
        for (command, to) in [(1, GROUP), (2, OTHER)] {
            assert!(t.obeys(&[0, command, 1]) && sees(&mut t, to, None), "{way:?}");
        }
        for (command, to) in [(3, GROUP), (4, MAC), (5, ALL_STATIONS)] {
            assert!(t.obeys(&[0, command, 1]) && !sees(&mut t, to, None), "{way:?}");
            assert!(t.obeys(&[0, command, 0]) && sees(&mut t, to, None), "{way:?}");
        }
        assert!(
            !sees(&mut t, MAC, Some(5)) && t.obeys(&[2, 0, 5, 0]) && sees(&mut t, MAC, Some(5)),
            "{way:?}"
        );
        assert!(
            !sees(&mut t, MAC, Some(69)) && t.obeys(&[2, 1, 5, 0]) && !sees(&mut t, MAC, Some(5)),
            "{way:?}"
        );
        assert!(t.obeys(&[&[1, 1][..], &OTHER].concat()) && t.obeys(&[0, 2, 0]), "{way:?}");
        assert!(sees(&mut t, OTHER, None) && !sees(&mut t, MAC, None), "{way:?}");
        assert_eq!(t.config(0, 4) as u32, 2, "{way:?}: its address");
        // Addresses that are not in memory.
        let before = t.model().settings.lock().clone();
        t.pc.memory.write(AT, &[1, 0, 1, 0, 0, 0]);
        t.add(CONTROL, &[(AT, 6, false), (1 << 40, 10, false), (AT + 0x100, 1, true)]);
        t.notify(CONTROL);
        assert_eq!((t.bytes(AT + 0x100, 1)[0], &*t.model().settings.lock()), (1, &before), "{way:?}");
        // A reset forgets it all.
        t.start(0);
        t.add(RX, &[(AT, 200, true)]);
        assert!(sees(&mut t, MAC, Some(5)), "{way:?}");
        assert_eq!(t.config(0, 1), 0x52, "{way:?}");
    }
}

#[test]
fn commands_that_are_none_change_nothing() {
    for way in WAYS {
        let mut t = started(way, ALL);
        let before = t.model().settings.lock().clone();
        let group = [1, 1, 1, 0, 0, 0, 0, 0];
        let few = [1, 0, 2, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0];
        for command in [
            &[0, 0][..],
            &[0, 6, 1],
            &[1, 0],
            &[1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
            &[1, 0, 0, 0, 0, 0],
            &few,
            &[1, 1, 0, 0],
            &group,
            &[1, 2, 0, 0, 0, 0, 0, 0],
            &[2, 0, 0, 16],
            &[2, 2, 1, 0],
            &[2, 0, 1],
            &[3, 0],
            &[4, 0, 1, 0],
            &[5, 0, 1],
            &[5, 0, 0, 0, 1, 0, 0, 0, 0, 0],
            &[5, 1, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0xff, 0xff],
        ] {
            assert!(!t.obeys(command), "{way:?}: {command:?}");
            assert_eq!(*t.model().settings.lock(), before, "{way:?}: {command:?}");
        }
        for buffers in [
            &[(AT, 1, false), (AT + 4, 1, true)][..],
            &[(AT, 8, false)],
            &[(1 << 40, 8, false), (AT, 1, true)],
        ] {
            let mut t = started(way, ALL);
            t.add(CONTROL, buffers);
            t.notify(CONTROL);
            assert_ne!(t.status() & status::NEEDS_RESET, 0, "{way:?}: {buffers:?}");
        }
    }
}

#[test]
fn a_driver_changes_what_it_takes() {
    for way in WAYS {
        let mut t = started(way, ALL);
        assert!(t.obeys(&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]), "{way:?}");
        assert_eq!(t.wire.card().takes(), Takes { partial: true, ..Takes::default() }, "{way:?}");
        (0..3).for_each(|n| _ = t.add(RX, &[(AT + 0x1000 * n, 4096, true)]));
        // What was on its way for a driver that took more is cut.
        let (bytes, offload) = segment(66 + 3000, false);
        assert!(t.wire.give(&Frame { offload, parts: &[IoSlice::new(&bytes)] }), "{way:?}");
        let lens: Vec<_> = t.used(RX).iter().map(|(_, len)| len - 12).collect();
        assert_eq!(lens, [66 + 1448, 66 + 1448, 66 + 104], "{way:?}");
        assert_eq!(t.bytes(AT, 2), [1, 0], "{way:?}");
        assert!(t.obeys(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "{way:?}");
        t.add(RX, &[(AT, 4096, true)]);
        let partial = Offload { gso: None, ..offload };
        assert!(t.wire.give(&Frame { offload: partial, parts: &[IoSlice::new(&bytes[..100])] }), "{way:?}");
        assert_eq!(t.bytes(AT, 10), [0; 10], "{way:?}");
        assert_ne!(t.bytes(AT + 12 + 50, 2), bytes[50..52], "{way:?}: the sum is there");
    }
}

#[test]
fn a_cable_that_is_pulled_out_is_seen() {
    for way in WAYS {
        let mut t = started(way, ALL);
        t.add(RX, &[(AT, 2000, true)]);
        t.isr();
        t.link.set_up(false);
        assert_eq!((t.isr(), t.config(6, 2)), (2, 0), "{way:?}");
        assert!(t.give(&frame(60)) && t.used(RX).is_empty(), "{way:?}");
        t.send(&[], &frame(60), &[]);
        assert_eq!(t.wire.frames().len(), 0, "{way:?}");
        t.link.set_up(true);
        assert_eq!((t.isr() & 2, t.config(6, 2)), (2, 1), "{way:?}");
        assert!(t.give(&frame(60)) && t.used(RX).len() == 1, "{way:?}");
    }
}

#[test]
fn a_saved_card_goes_on_and_tells_where_it_is() {
    for way in WAYS {
        let mut one = started(way, ALL);
        assert!(one.obeys(&[0, 0, 0]) && one.obeys(&[1, 1, 2, 0, 0, 0, 0, 9]), "{way:?}");
        assert!(one.obeys(&[2, 0, 7, 0]) && one.obeys(&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]), "{way:?}");
        assert!(!one.give(&[2, 0, 0, 0, 0, 9].repeat(10)), "{way:?}");
        one.link.set_up(false);
        one.pause();
        one.link.set_up(true);
        assert!(!one.give(&frame(60)), "{way:?}: a pause");
        one.link.set_up(false);
        let tx = one.add(TX, &[(AT, 72, false)]);
        one.notify(TX);
        let mut other = test(way);
        other.pause();
        let state = one.save();
        other.took();
        other.rig.restore(state.clone(), &one.rig).unwrap();
        assert_eq!((other.save(), other.took()), (state.clone(), vec![]), "{way:?}: no edge");
        other.resume();
        assert_eq!((other.used(TX), other.wire.frames().len()), (vec![(tx, 0)], 0), "{way:?}: no cable");
        assert_eq!((other.isr() & 2, other.config(6, 2), other.config(5, 1)), (2, 2, 9), "{way:?}");
        other.link.set_up(true);
        assert_eq!(other.wire.card().takes(), Takes { partial: true, ..Takes::default() }, "{way:?}");
        assert!(other.obeys(&[3, 0]) && !other.obeys(&[3, 0]) && other.config(6, 2) == 1, "{way:?}");
        assert_ne!(other.wire.woken.swap(0, Ordering::SeqCst), 0, "{way:?}: a frame waits");
        assert!(!other.give(&[2, 0, 0, 0, 0, 9].repeat(10)), "{way:?}");
        other.add(RX, &[(AT, 200, true)]);
        other.notify(RX);
        assert_eq!(other.wire.woken.load(Ordering::SeqCst), 1, "{way:?}");
        assert!(other.give(&frame(60)) && other.used(RX).is_empty(), "{way:?}: another's address");
        assert!(other.give(&[2, 0, 0, 0, 0, 9].repeat(10)) && other.used(RX).len() == 1, "{way:?}");
        for n in (way as usize..state.len()).step_by(7) {
            let mut damaged = state.clone();
            damaged[n] = 0xff;
            let mut third = test(way);
            if third.rig.restore(damaged, &one.rig).is_ok() {
                third.resume();
                (0..3).for_each(|n| third.notify(n));
                third.give(&frame(60));
                third.save();
                third.reset();
            }
        }
    }
}

#[test]
fn a_flow_comes_back_to_the_pair_that_it_was_sent_on() {
    let options = || NetOptions {
        queues: 3,
        features: NetOptions::default().features | feature::MQ | feature::RSS,
        ..NetOptions::default()
    };
    for way in WAYS {
        let mut t = chosen(way, options());
        t.start(ALL);
        assert_eq!(t.config(8, 2), 3, "{way:?}");
        let flow = |port: u8, back: bool| {
            let mut bytes = segment(80, false).0;
            let (mut ends, mut ports) = ([[10, 0, 2, 15], [10, 0, 2, 2]], [[0x80, port], [0, 80]]);
            if back {
                ends.reverse();
                ports.reverse();
            }
            bytes[20..22].fill(0);
            bytes[26..34].copy_from_slice(&ends.concat());
            bytes[34..38].copy_from_slice(&ports.concat());
            bytes
        };
        // Rings of five queues fill the first part of memory.
        let place = |n: u64| 0x6_0000 + 0x1000 * n;
        let send = |t: &mut Test, queue: usize, bytes: &[u8]| {
            t.pc.memory.write(place(9), &[&[0; 12], bytes].concat());
            t.add(queue, &[(place(9), 12 + bytes.len() as u32, false)]);
            t.notify(queue);
            assert_eq!(t.used(queue).len(), 1);
        };
        let order = |t: &mut Test, command: &[u8]| {
            t.pc.memory.write(place(8), command);
            t.add(6, &[(place(8), command.len() as u32, false), (place(7), 1, true)]);
            t.notify(6);
            assert_eq!(t.used(6).len(), 1, "{:?}", t.way);
            t.bytes(place(7), 1)[0] == 0
        };
        let command = |t: &mut Test, pairs: u8| order(t, &[4, 0, pairs, 0]);
        for n in [0, 2, 4] {
            (0..8).for_each(|_| _ = t.add(n, &[(place(n as u64), 200, true)]));
            t.notify(n);
        }
        let got = |t: &mut Test, bytes: &[u8]| {
            assert!(t.give(bytes));
            [0, 2, 4].map(|n| t.used(n).len())
        };
        send(&mut t, 3, &flow(1, false));
        assert_eq!(got(&mut t, &flow(1, true)), [1, 0, 0], "{way:?}: one pair, until there are more");
        assert!(!command(&mut t, 4) && !command(&mut t, 0) && command(&mut t, 3), "{way:?}");
        assert_eq!(got(&mut t, &flow(1, true)), [0, 1, 0], "{way:?}");
        send(&mut t, 5, &flow(2, false));
        assert_eq!(got(&mut t, &flow(2, true)), [0, 0, 1], "{way:?}");
        assert_eq!(got(&mut t, &flow(1, true)), [0, 1, 0], "{way:?}");
        // The last pair is not listened to any more, and who waited for it is heard.
        (0..6).for_each(|_| _ = t.give(&flow(2, true)));
        assert!(t.used(4).len() == 6 && t.give(&flow(2, true)) && !t.give(&flow(2, true)), "{way:?}");
        t.wire.woken.store(0, Ordering::SeqCst);
        assert!(command(&mut t, 1), "{way:?}");
        assert_eq!(t.wire.woken.load(Ordering::SeqCst), 1, "{way:?}");
        assert_eq!(got(&mut t, &flow(2, true)), [1, 0, 1], "{way:?}: and one that had come before");
        if way != Way::Legacy {
            let rss = |table: &[u8], pairs: u8, kinds: u8| {
                let entries = (table.len() / 2 - 1) as u8;
                [&[4, 1, kinds, 0, 0, 0, entries, 0, 1, 0][..], table, &[pairs, 0, 2, 0xff, 0xff]].concat()
            };
            for bad in [
                rss(&[0, 0, 1, 0, 2, 0], 3, 7),
                rss(&[3, 0], 3, 7),
                rss(&[0, 0], 4, 7),
                rss(&[0, 0], 0, 7),
                rss(&[0, 0], 1, 0x47),
                rss(&[0; 512], 1, 7),
                rss(&[0, 0], 1, 7)[..16].to_vec(),
            ] {
                assert!(!order(&mut t, &bad), "{way:?}: {bad:?}");
            }
            (0..4).for_each(|_| _ = t.add(4, &[(place(4), 200, true)]));
            t.notify(4);
            assert!(order(&mut t, &rss(&[2, 0, 2, 0], 3, 7)), "{way:?}");
            assert_eq!(got(&mut t, &flow(1, true)), [0, 0, 1], "{way:?}: as the table has it");
            assert!(order(&mut t, &rss(&[2, 0, 2, 0], 1, 0x38)), "{way:?}");
            assert_eq!(got(&mut t, &flow(1, true)), [0, 1, 0], "{way:?}: there is no hash of it");
            let state = t.save();
            let mut other = chosen(way, options());
            other.rig.restore(state.clone(), &t.rig).unwrap();
            assert_eq!(other.save(), state, "{way:?}");
            assert!(command(&mut t, 1), "{way:?}");
            assert_eq!(got(&mut t, &flow(1, true)), [1, 0, 0], "{way:?}");
        }
        // A driver of one pair has its commands on queue 2.
        let mut t = chosen(way, options());
        t.start(ALL & !(feature::MQ | feature::RSS));
        assert!(t.obeys(&[0, 0, 0]), "{way:?}");
    }
}

/// Gives each frame back while it is sent.
#[derive(Default)]
struct Echo(OnceLock<Arc<dyn Nic>>);

impl Backend for Echo {
    fn connect(&self, nic: Arc<dyn Nic>) {
        let _ = self.0.set(nic);
    }
    fn send(&self, frame: &Frame<'_>) {
        self.0.get().unwrap().receive(frame);
    }
}

fn echoing(way: Way) -> (Rig<Net>, Arc<Link>) {
    let link = Link::new("n".into(), "virtio-net-pci", Mac(MAC), None, Some(Arc::new(Echo::default())));
    let link = Arc::new(link);
    let net = Net::new(link.clone(), NetOptions::default());
    link.connect(&net);
    (Rig::with(way, net, pci_options(4)), link)
}

#[test]
fn no_driver_does_harm_and_each_goes_on_when_it_is_restored() {
    let mut x = 1_u64;
    let mut next = move |below: u64| {
        x = x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (x >> 33) % below
    };
    for way in WAYS {
        let (mut rig, mut link) = echoing(way);
        let (mut waiting, mut sent, mut received, mut broken) = ([0; 3], 0, 0, 0);
        for n in 0..6000 {
            let up = rig.status() & (status::NEEDS_RESET | status::DRIVER_OK) == status::DRIVER_OK;
            if !up || next(500) == 0 {
                broken += usize::from(!up);
                rig.start(next(u64::MAX) | feature::CTRL_VQ | feature::CTRL_RX);
                waiting = [0; 3];
            }
            let queue = [RX, RX, TX, TX, CONTROL][next(5) as usize];
            if waiting[queue] < 12 {
                let count = 1 + next(4);
                let mut buffers: Vec<Buffer> = (0..count)
                    .map(|i| {
                        let most = [20, 1600, 9000][next(3) as usize];
                        let len = 1 + next(most);
                        let writes = queue == RX || queue == CONTROL && i + 1 == count && count > 1;
                        (AT + 0x1000 * next(48), len as u32, writes)
                    })
                    .collect();
                if next(100) == 0 {
                    let at = next(count) as usize;
                    buffers[at] = match next(4) {
                        0 => (1 << next(64), 100, buffers[at].2),
                        1 => (buffers[at].0, 1 << next(32), buffers[at].2),
                        2 => (buffers[at].0, 0, buffers[at].2),
                        _ => (buffers[at].0, 10, !buffers[at].2),
                    };
                }
                if queue != RX && buffers[0].0 < AT + 0x10_0000 {
                    let head =
                        [next(6), next(3), 0, 0, next(3), next(2), next(60), 0, 16, 0].map(|b| b as u8);
                    rig.pc.memory.write(buffers[0].0, &head);
                }
                rig.add(queue, &buffers);
                waiting[queue] += 1;
            }
            rig.notify(next(3) as usize);
            (0..3).for_each(|q| waiting[q] -= rig.used(q).len().min(waiting[q]));
            if n % 300 == 0 {
                let counts = link.counts();
                (sent, received) = (sent + counts.sent, received + counts.received);
                let (mut other, others) = echoing(way);
                rig.pause();
                let state = rig.save();
                other.restore(state.clone(), &rig).unwrap();
                assert_eq!(other.save(), state, "{way:?}");
                other.resume();
                (rig, link) = (other, others);
            }
        }
        assert!(sent > 100 && received > 100 && broken > 5, "{way:?}: {sent} {received} {broken}");
    }
}

#[test]
fn frames_come_while_one_is_sent_and_from_other_threads() {
    for way in WAYS {
        let (mut rig, _link) = echoing(way);
        let net = rig.model();
        rig.start(feature::MRG_RXBUF);
        let stop = Arc::new(AtomicBool::new(false));
        let others: Vec<_> = (0..2)
            .map(|_| {
                let (net, stop) = (net.clone(), stop.clone());
                std::thread::spawn(move || {
                    let bytes = frame(300);
                    let mut taken = 0;
                    while !stop.load(Ordering::SeqCst) {
                        taken += usize::from(net.receive(&Frame::new(&[IoSlice::new(&bytes)])));
                        std::thread::yield_now();
                    }
                    taken
                })
            })
            .collect();
        rig.pc.memory.write(AT, &[&[0; 12][..], &frame(300)].concat());
        let (mut got, mut sent) = (0, 0);
        for n in 0..200 {
            // At most 32 buffers at a time.
            rig.add(RX, &[(AT + 0x1000, 200, true)]);
            rig.add(RX, &[(AT + 0x2000, 200, true)]);
            rig.notify(RX);
            rig.add(TX, &[(AT, 312, false)]);
            rig.notify(TX);
            sent += rig.used(TX).len();
            let used = rig.used(RX);
            assert!(
                used.len() % 2 == 0 && used.iter().all(|(_, len)| [200, 112].contains(len)),
                "{way:?} {used:?}"
            );
            got += used.len() / 2;
            if n % 50 == 49 {
                rig.pause();
                rig.resume();
            }
        }
        while got < 200 {
            std::thread::yield_now();
            got += rig.used(RX).len() / 2;
        }
        stop.store(true, Ordering::SeqCst);
        let taken: usize = others.into_iter().map(|t| t.join().unwrap()).sum();
        assert!(taken <= got && sent == 200, "{way:?}: {taken} {got} {sent}");
    }
}
