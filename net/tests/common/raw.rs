//! A guest without a stack: frames are made by hand, and all that the NAT sends is kept to be looked at.
use super::{MAC, listen};
use mynah_net::user::{Config, Poll, User};
use mynah_net::{Backend, Frame, Gso, Nic, Offload, Partial, Takes};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Address, Ipv4Packet,
    TcpPacket, UdpPacket,
};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::{Ipv6Addr, SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;
pub const GUEST: [u8; 4] = [10, 0, 2, 15];
pub const GATEWAY: [u8; 4] = [10, 0, 2, 2];

/// The card.
pub struct Card {
    pub frames: Mutex<VecDeque<(Offload, Vec<u8>)>>,
    /// Its interrupts keep a distance.
    pub paces: AtomicBool,
    takes: Takes,
}

impl Nic for Card {
    fn can_receive(&self) -> bool {
        true
    }
    fn receive(&self, frame: &Frame<'_>) -> bool {
        self.frames.lock().unwrap().push_back((frame.offload, frame.to_vec()));
        true
    }
    fn takes(&self) -> Takes {
        self.takes
    }
    fn paces(&self) -> bool {
        self.paces.load(Ordering::Relaxed)
    }
}

/// A segment that has come.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The host's port and the guest's.
    pub ports: (u16, u16),
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub options: Vec<u8>,
    pub data: Vec<u8>,
    pub partial: Option<Partial>,
    pub gso: Option<Gso>,
}

pub struct Raw {
    pub poll: Poll,
    pub user: Arc<User>,
    pub card: Arc<Card>,
}

/// What a segment says of itself.
#[derive(Clone, Copy, Default)]
pub struct Tcp<'a> {
    pub ports: (u16, u16),
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub options: &'a [u8],
    pub data: &'a [u8],
}

/// An Ethernet frame with an IPv4 packet in it, from the guest.
pub fn packet(src: [u8; 4], dst: [u8; 4], proto: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let mut f = vec![0; 34 + payload.len()];
    let mut e = EthernetFrame::new_unchecked(&mut f);
    e.set_dst_addr(EthernetAddress([0x52, 0x55, 10, 0, 2, 2]));
    e.set_src_addr(EthernetAddress(MAC));
    e.set_ethertype(EthernetProtocol::Ipv4);
    let mut ip = Ipv4Packet::new_unchecked(e.payload_mut());
    ip.set_version(4);
    ip.set_header_len(20);
    ip.set_total_len((20 + payload.len()) as u16);
    ip.set_hop_limit(64);
    ip.set_next_header(proto);
    ip.set_src_addr(src.into());
    ip.set_dst_addr(dst.into());
    ip.payload_mut().copy_from_slice(payload);
    ip.fill_checksum();
    f
}

/// A segment from the guest to `to`, with its checksum.
pub fn segment(to: [u8; 4], t: Tcp<'_>) -> Vec<u8> {
    let mut bytes = vec![0; 20 + t.options.len() + t.data.len()];
    let mut tcp = TcpPacket::new_unchecked(&mut bytes);
    tcp.set_src_port(t.ports.0);
    tcp.set_dst_port(t.ports.1);
    tcp.set_header_len((20 + t.options.len()) as u8);
    tcp.set_window_len(0xffff);
    bytes[4..8].copy_from_slice(&t.seq.to_be_bytes());
    bytes[8..12].copy_from_slice(&t.ack.to_be_bytes());
    bytes[13] = t.flags;
    bytes[20..20 + t.options.len()].copy_from_slice(t.options);
    bytes[20 + t.options.len()..].copy_from_slice(t.data);
    let ends = (IpAddress::from(Ipv4Address::from(GUEST)), IpAddress::from(Ipv4Address::from(to)));
    TcpPacket::new_unchecked(&mut bytes).fill_checksum(&ends.0, &ends.1);
    packet(GUEST, to, IpProtocol::Tcp, &bytes)
}

/// An Ethernet frame with an IPv6 packet in it, from fec0::15. The checksum in `body` is the caller's.
pub fn six(next: u8, to: &str, hops: u8, body: &[u8]) -> Vec<u8> {
    let to: Ipv6Addr = to.parse().unwrap();
    let mut f = vec![0x52, 0x55, 10, 0, 2, 2];
    if to.is_multicast() {
        f = [&[0x33, 0x33][..], &to.octets()[12..]].concat();
    }
    f.extend_from_slice(&MAC);
    f.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
    f.extend_from_slice(&(body.len() as u16).to_be_bytes());
    f.extend_from_slice(&[next, hops]);
    f.extend_from_slice(&"fec0::15".parse::<Ipv6Addr>().unwrap().octets());
    f.extend_from_slice(&to.octets());
    f.extend_from_slice(body);
    f
}

/// The checksum of an ICMPv6 message from fec0::15 (RFC 4443, 2.3), put into it.
pub fn sum_six(to: &str, message: &mut [u8]) {
    let to: Ipv6Addr = to.parse().unwrap();
    let from: Ipv6Addr = "fec0::15".parse().unwrap();
    message[2..4].fill(0);
    let head = [&from.octets()[..], &to.octets(), &[0, 0, 0, message.len() as u8, 0, 0, 0, 58]].concat();
    let words = head.chunks(2).chain(message.chunks(2));
    let sum: u32 = words.map(|c| u32::from(u16::from_be_bytes([c[0], *c.get(1).unwrap_or(&0)]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    message[2..4].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
}

/// A datagram from the guest.
pub fn datagram(from: u16, to: SocketAddrV4, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 8 + data.len()];
    let mut udp = UdpPacket::new_unchecked(&mut bytes);
    udp.set_src_port(from);
    udp.set_dst_port(to.port());
    udp.set_len((8 + data.len()) as u16);
    udp.payload_mut().copy_from_slice(data);
    udp.fill_checksum(&Ipv4Address::from(GUEST).into(), &(*to.ip()).into());
    packet(GUEST, to.ip().octets(), IpProtocol::Udp, &bytes)
}

impl Raw {
    /// A guest whose card takes long segments, or plain frames only.
    pub fn new(config: Config, long: bool) -> Self {
        let poll = Poll::new();
        let user = User::new(config, Arc::new(poll.clone())).unwrap();
        let takes = Takes { partial: long, tso4: long, tso6: long, ..Takes::default() };
        let card = Arc::new(Card { frames: Mutex::default(), paces: AtomicBool::new(false), takes });
        user.connect(card.clone());
        Self { poll, user, card }
    }

    pub fn send(&self, frame: &[u8]) {
        self.user.send(&Frame::new(&[IoSlice::new(frame)]));
    }

    /// Sends a segment to the gateway; one that is longer than 1,460 bytes as segments of that.
    pub fn tcp(&self, t: Tcp<'_>) {
        let gso = (t.data.len() > 1460).then_some(Gso { v6: false, size: 1460 });
        let partial = gso.map(|_| Partial { start: 34, offset: 16 });
        let frame = segment(GATEWAY, t);
        let (head, data) = frame.split_at(54 + t.options.len());
        // In pieces, as descriptors are.
        let parts: Vec<_> = [head].into_iter().chain(data.chunks(4096)).map(IoSlice::new).collect();
        self.user.send(&Frame { offload: Offload { partial, gso, valid: false }, parts: &parts });
    }

    /// The next segment that has come; other frames are thrown away.
    pub fn next(&self) -> Option<Seen> {
        loop {
            let (offload, f) = self.card.frames.lock().unwrap().pop_front()?;
            if f.len() < 54 || f[12..14] != [8, 0] || f[23] != 6 {
                continue;
            }
            let word = |at: usize| u32::from_be_bytes([f[at], f[at + 1], f[at + 2], f[at + 3]]);
            let half = |at: usize| u16::from_be_bytes([f[at], f[at + 1]]);
            let data = 34 + usize::from(f[46] >> 4) * 4;
            return Some(Seen {
                ports: (half(34), half(36)),
                seq: word(38),
                ack: word(42),
                flags: f[47],
                window: half(48),
                options: f[54..data].to_vec(),
                data: f[data..14 + usize::from(half(16))].to_vec(),
                partial: offload.partial,
                gso: offload.gso,
            });
        }
    }

    /// Waits for a segment.
    #[track_caller]
    pub fn wait(&self) -> Seen {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(seen) = self.next() {
                return seen;
            }
            assert!(Instant::now() < end, "no segment: {:?}", self.user.flows());
            self.poll.turn(&self.user, Duration::from_millis(10));
        }
    }

    /// A guest with a connection to a port of the host's: that port, the number of the first byte that comes, and the
    /// host's end. It is from port 1000; the number of the first byte that goes is 101.
    #[track_caller]
    pub fn with_connection(long: bool, options: &[u8]) -> (Self, u16, u32, TcpStream) {
        let (listener, at) = listen();
        let raw = Self::new(Config::default(), long);
        let ack = raw.open(1000, at.port(), options);
        (raw, at.port(), ack, listener.accept().unwrap().0)
    }

    /// Opens a connection to a port of the host's: the number of the first byte that comes. Ours is 101.
    #[track_caller]
    pub fn open(&self, from: u16, to: u16, options: &[u8]) -> u32 {
        let ports = (from, to);
        self.tcp(Tcp { ports, seq: 100, flags: SYN, options, ..Tcp::default() });
        let answer = self.wait();
        assert_eq!((answer.flags, answer.ack), (SYN | ACK, 101));
        let ack = answer.seq.wrapping_add(1);
        self.tcp(Tcp { ports, seq: 101, ack, flags: ACK, ..Tcp::default() });
        ack
    }
}

impl Raw {
    /// Waits for a datagram over IPv4: from which port of whom, to which of ours, and what.
    #[track_caller]
    pub fn wait_datagram(&self) -> (SocketAddrV4, u16, Vec<u8>) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let next = self.card.frames.lock().unwrap().pop_front();
            if let Some((_, f)) = next
                && f[12..14] == [8, 0]
                && f[23] == 17
            {
                let half = |at: usize| u16::from_be_bytes([f[at], f[at + 1]]);
                let from = SocketAddrV4::new([f[26], f[27], f[28], f[29]].into(), half(34));
                return (from, half(36), f[42..14 + usize::from(half(16))].to_vec());
            }
            assert!(Instant::now() < end, "no datagram: {:?}", self.user.flows());
            self.poll.turn(&self.user, Duration::from_millis(10));
        }
    }
}
