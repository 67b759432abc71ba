//! What all protocols share: the card, the guests' addresses, timers, and where an address of the guest's leads.
use super::config::{Behind, Config, Dial};
use super::dns::Resolvers;
use super::ip::{self, Fragment};
use crate::errors;
use crate::reactor::{Reactor, Token};
use crate::{Frame, Nic, Offload, Takes};
use rustc_hash::FxHashMap;
use serde::Serialize;
use socket2::Socket;
use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt::Arguments;
use std::hash::BuildHasher;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The kinds of tokens: the highest byte of one.
pub(super) mod kind {
    pub const TCP: u8 = 1;
    pub const UDP: u8 = 2;
    pub const PING: u8 = 3;
    pub const LISTEN: u8 = 4;
    pub const TFTP: u8 = 5;
    pub const TICK: u8 = 6;
}

/// Guests' addresses that are known at a time.
const NEIGHBOURS: usize = 256;
/// Frames that wait for the card, or for a guest's address, and their bytes.
const QUEUED: usize = 512;
const QUEUED_BYTES: usize = 1 << 20;
const WAITING: usize = 16;
/// How often a message of a kind is said.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// ICMP errors and challenges in a second.
const ERRORS: u32 = 200;

/// What a flow has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FlowCounters {
    /// Bytes of data from the guest.
    pub from_guest: u64,
    /// Bytes of data for the guest.
    pub to_guest: u64,
    /// Segments or datagrams from the guest.
    pub segments_from: u64,
    /// Segments or datagrams to the guest.
    pub segments_to: u64,
    /// Segments that were sent again.
    pub retransmitted: u64,
}

/// A flow, for who wants to look at it.
#[derive(Clone, Debug, Serialize)]
pub struct FlowInfo {
    /// tcp, udp or icmp.
    pub protocol: &'static str,
    /// The guest's end.
    pub guest: SocketAddr,
    /// The other end, as the guest sees it.
    pub remote: SocketAddr,
    /// How far it is.
    pub state: String,
    /// Bytes of memory it holds.
    pub buffered: usize,
    /// What has passed.
    pub counters: FlowCounters,
}

/// What the whole network has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Frames from the guest.
    pub from_guest: u64,
    /// Frames to the guest.
    pub to_guest: u64,
    /// Frames from the guest that were none, or for somebody else.
    pub ignored: u64,
    /// Packets from the guest with a wrong checksum.
    pub bad_checksums: u64,
    /// Frames to the guest that its card never had room for.
    pub dropped: u64,
}

/// Why a packet of the guest's goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreachable {
    Net,
    Host,
    Port,
    Prohibited,
    /// The path takes packets of this many bytes only.
    TooBig(u16),
    /// Its time to live is over.
    Expired,
}

impl Unreachable {
    /// What the host's error means to the guest; None for a reset.
    pub fn from_error(e: &io::Error) -> Option<Self> {
        match e.raw_os_error()? {
            errors::ENETUNREACH | errors::ENETDOWN | errors::EADDRNOTAVAIL | errors::EAFNOSUPPORT => {
                Some(Self::Net)
            }
            errors::EHOSTUNREACH | errors::EHOSTDOWN | errors::ETIMEDOUT => Some(Self::Host),
            errors::ECONNREFUSED => Some(Self::Port),
            errors::EACCES | errors::EPERM => Some(Self::Prohibited),
            _ => None,
        }
    }

    /// What an error of a socket for datagrams means. Windows has words of its own for an earlier datagram's fate
    /// (recv's WSAECONNRESET and WSAENETRESET).
    pub fn from_datagram(e: &io::Error) -> Option<Self> {
        match e.kind() {
            io::ErrorKind::ConnectionReset if cfg!(windows) => Some(Self::Port),
            io::ErrorKind::NetworkDown if cfg!(windows) => Some(Self::Net),
            _ if cfg!(windows) && e.raw_os_error() == Some(10_052) => Some(Self::Expired),
            _ => Self::from_error(e),
        }
    }
}

/// Where an address of the guest's leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    Host(SocketAddr),
    Refused(Unreachable),
}

/// Whether a socket is one of TCP or UDP.
pub(super) fn mapped(socket: &Socket) -> bool {
    socket.local_addr().is_ok_and(|a| a.is_ipv4() || a.is_ipv6())
}

pub(super) struct Core {
    pub config: Config,
    pub reactor: Arc<dyn Reactor>,
    pub nic: Option<Arc<dyn Nic>>,
    /// What the machine has behind addresses.
    pub dial: Option<Arc<dyn Dial>>,
    pub takes: Takes,
    pub now: Instant,
    began: Instant,
    pub stats: Stats,
    /// Bytes in the flows' buffers.
    pub buffered: usize,
    /// The most flows of a protocol.
    pub max_flows: usize,
    /// The process had no descriptor for what was asked for; and whether to say nothing yet, as there will be one.
    pub starved: bool,
    pub patient: bool,
    pub resolvers: Resolvers,
    /// The address that was leased last.
    pub leased: Option<IpAddr>,
    /// There are few, so that none who makes addresses up gains by what they hash to.
    neighbours: FxHashMap<IpAddr, [u8; 6]>,
    queue: VecDeque<(Offload, Vec<u8>)>,
    queued: usize,
    waiting: VecDeque<(IpAddr, Vec<u8>)>,
    timers: BTreeSet<(Instant, Token)>,
    timer: Option<Instant>,
    names: u64,
    ident: u32,
    seed: RandomState,
    drawn: u64,
    said: HashMap<&'static str, Instant>,
    errors: (Instant, u32),
}

impl Core {
    pub fn new(config: Config, reactor: Arc<dyn Reactor>) -> Self {
        let now = reactor.now();
        let resolvers = Resolvers::new(config.resolv_conf.clone());
        // Each flow has a descriptor: half of what the process may have is for others.
        let files = descriptors().map_or(usize::MAX, |n| (n / 4).max(16));
        Self {
            max_flows: config.max_flows.clamp(1, files),
            starved: false,
            patient: false,
            config,
            reactor,
            nic: None,
            dial: None,
            takes: Takes::default(),
            now,
            began: now,
            stats: Stats::default(),
            buffered: 0,
            resolvers,
            leased: None,
            neighbours: FxHashMap::default(),
            queue: VecDeque::new(),
            queued: 0,
            waiting: VecDeque::new(),
            timers: BTreeSet::new(),
            timer: None,
            names: 0,
            ident: 0,
            seed: RandomState::new(),
            drawn: 0,
            said: HashMap::new(),
            errors: (now, 0),
        }
    }

    /// A new name for what waits for the loop.
    pub fn token(&mut self, kind: u8) -> Token {
        self.names += 1;
        Token(u64::from(kind) << 56 | self.names)
    }

    /// How long it has been there.
    pub fn uptime(&self) -> Duration {
        self.now.saturating_duration_since(self.began)
    }

    /// A number that the guest cannot guess (RFC 6528).
    pub fn random(&mut self) -> u32 {
        self.drawn += 1;
        self.seed.hash_one(self.drawn) as u32
    }

    /// Says something of a kind, unless it has just been said.
    pub fn once(&mut self, kind: &'static str, what: Arguments<'_>) {
        let now = self.now;
        if self.said.get(kind).is_none_or(|t| now.saturating_duration_since(*t) >= SAY_AGAIN) {
            self.said.insert(kind, now);
            tracing::warn!("user network: {what}");
        }
    }

    /// Whether an error means that descriptors are to be had by closing others, and that it will be tried again.
    pub fn starves(&mut self, e: &io::Error) -> bool {
        let starves = self.patient && matches!(e.raw_os_error(), Some(errors::EMFILE | errors::ENFILE));
        self.starved |= starves;
        starves
    }

    /// Whether one more error may be sent in this second.
    pub fn challenge(&mut self) -> bool {
        if self.now.saturating_duration_since(self.errors.0) >= Duration::from_secs(1) {
            self.errors = (self.now, 0);
        }
        self.errors.1 += 1;
        self.errors.1 <= ERRORS
    }

    // --- time ---

    /// Has `token` told at `next`; `queued` is when it is told by now. An early call is cheaper than a timer that is
    /// moved with each packet.
    pub fn arm(&mut self, token: Token, queued: &mut Option<Instant>, next: Option<Instant>) {
        let Some(next) = next else { return };
        match *queued {
            Some(at) if at <= next => return,
            Some(at) => {
                self.timers.remove(&(at, token));
            }
            None => {}
        }
        self.timers.insert((next, token));
        *queued = Some(next);
    }

    /// Takes a timer out.
    pub fn disarm(&mut self, token: Token, queued: Option<Instant>) {
        if let Some(at) = queued {
            self.timers.remove(&(at, token));
        }
    }

    /// How many timers are due: those that are set anew meanwhile are not among them.
    pub fn due(&self) -> usize {
        self.timers.iter().take_while(|t| t.0 <= self.now).count()
    }

    /// The first timer that is due.
    pub fn pop(&mut self) -> Option<Token> {
        let first = *self.timers.first()?;
        (first.0 <= self.now).then(|| {
            self.timers.pop_first();
            first.1
        })
    }

    /// Tells the loop when the next is due, if that has changed.
    pub fn settle(&mut self) {
        let first = self.timers.first().map(|t| t.0);
        if first != self.timer {
            self.timer = first;
            self.reactor.set_timer(first);
        }
    }

    /// The loop's timer has gone off.
    pub fn fired(&mut self) {
        self.timer = None;
    }

    // --- addresses ---

    /// Our Ethernet address, as QEMU's.
    pub fn mac(&self) -> [u8; 6] {
        let [a, b, c, d] = self.config.host.octets();
        [0x52, 0x55, a, b, c, d]
    }

    /// The gateway's link-local address.
    pub fn link_local(&self) -> Ipv6Addr {
        let low = u128::from(self.config.host6) as u64;
        Ipv6Addr::from(0xfe80_u128 << 112 | u128::from(low))
    }

    /// Whether an address is the gateway's.
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => a == self.config.host,
            IpAddr::V6(a) => a == self.config.host6 || a == self.link_local(),
        }
    }

    /// Whether an address is the name server's.
    pub fn is_dns(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => a == self.config.dns,
            IpAddr::V6(a) => a == self.config.dns6,
        }
    }

    /// Whether an address is one of those that we answer for.
    pub fn is_ours(&self, address: IpAddr) -> bool {
        self.is_gateway(address)
            || self.is_dns(address)
            || self.config.guest_forwards.iter().any(|f| f.server.ip() == address)
    }

    /// The gateway, in the family of `like`.
    pub fn gateway(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.config.host.into() } else { self.config.host6.into() }
    }

    /// How a peer of the host's looks to the guest: as the gateway if it is the host itself, or of the other family.
    pub fn seen_as(&self, peer: IpAddr, guest: IpAddr) -> IpAddr {
        let peer = peer.to_canonical();
        let foreign = peer.is_ipv4() != guest.is_ipv4();
        if foreign || peer.is_loopback() || self.config.has(peer) { self.gateway(guest) } else { peer }
    }

    /// The guest of a forward that names none.
    pub fn guest(&self, wanted: IpAddr) -> IpAddr {
        if wanted.is_unspecified() { self.leased.unwrap_or(self.config.dhcp_start.into()) } else { wanted }
    }

    /// What is behind an address that only the guest sees.
    pub fn guest_forward(&self, to: SocketAddr) -> Option<Behind> {
        self.config.guest_forwards.iter().find(|f| f.server == to).map(|f| f.to.clone())
    }

    /// Where an address of the guest's leads. The host's loopback is behind the gateway, and only there.
    pub fn reach(&mut self, to: SocketAddr) -> Reach {
        let ip = to.ip();
        if self.config.restrict {
            return Reach::Refused(Unreachable::Prohibited);
        }
        if self.is_gateway(ip) {
            let loopback: IpAddr =
                if ip.is_ipv4() { [127, 0, 0, 1].into() } else { Ipv6Addr::LOCALHOST.into() };
            return Reach::Host(SocketAddr::new(loopback, to.port()));
        }
        if self.is_dns(ip) {
            return match self.resolvers.current(self.now).first() {
                Some(resolver) if to.port() == 53 => Reach::Host(*resolver),
                _ => Reach::Refused(Unreachable::Port),
            };
        }
        if self.config.has(ip) {
            return Reach::Refused(Unreachable::Host);
        }
        if is_outside(ip) { Reach::Host(to) } else { Reach::Refused(Unreachable::Net) }
    }

    /// Which Ethernet address a guest's has.
    pub fn neighbour(&self, guest: IpAddr) -> Option<[u8; 6]> {
        self.neighbours.get(&guest).copied()
    }

    /// Learns a guest's address; what waited for it goes out.
    pub fn learn(&mut self, address: IpAddr, mac: [u8; 6]) {
        let local = match address {
            IpAddr::V4(_) => self.config.has(address),
            IpAddr::V6(a) => self.config.has(address) || a.is_unicast_link_local(),
        };
        if !local || address.is_unspecified() || mac[0] & 1 != 0 || self.is_ours(address) {
            return;
        }
        if self.neighbours.get(&address) == Some(&mac) {
            return;
        }
        if self.neighbours.len() >= NEIGHBOURS && !self.neighbours.contains_key(&address) {
            // A guest with more addresses than that has made them up: any goes.
            let any = self.neighbours.keys().next().copied();
            any.map(|a| self.neighbours.remove(&a));
        }
        self.neighbours.insert(address, mac);
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain_mut(|(to, frame)| {
            let theirs = *to == address;
            if theirs {
                frame[..6].copy_from_slice(&mac);
                self.give_or_queue(Offload::default(), std::mem::take(frame));
            }
            !theirs
        });
        self.waiting = waiting;
    }

    /// Our Ethernet address and that of a guest, if it is known.
    pub fn macs(&self, guest: IpAddr) -> Option<([u8; 6], [u8; 6])> {
        self.neighbours.get(&guest).map(|mac| (self.mac(), *mac))
    }

    /// The most TCP data in a packet.
    pub fn mss(&self, guest: IpAddr) -> usize {
        usize::from(self.config.mtu).max(576) - ip::header_len(guest) - 20
    }

    // --- frames ---

    /// Gives the card a frame, after those that wait. False if it has no room.
    pub fn give(&mut self, frame: &Frame<'_>) -> bool {
        if !self.drain() {
            return false;
        }
        let taken = self.nic.as_ref().is_some_and(|nic| nic.receive(frame));
        self.stats.to_guest += u64::from(taken);
        taken
    }

    /// Gives the card what waits for it; whether nothing is left.
    pub fn drain(&mut self) -> bool {
        while let Some((offload, bytes)) = self.queue.front() {
            let parts = [IoSlice::new(bytes)];
            let frame = Frame { offload: *offload, parts: &parts };
            if !self.nic.as_ref().is_some_and(|nic| nic.receive(&frame)) {
                return false;
            }
            self.queued -= bytes.len();
            self.stats.to_guest += 1;
            self.queue.pop_front();
        }
        true
    }

    /// Keeps a frame until the card has room.
    pub fn queue(&mut self, bytes: Vec<u8>, offload: Offload) {
        if self.nic.is_none() || self.queue.len() >= QUEUED || self.queued + bytes.len() > QUEUED_BYTES {
            self.stats.dropped += 1;
            return;
        }
        self.queued += bytes.len();
        self.queue.push_back((offload, bytes));
    }

    fn give_or_queue(&mut self, offload: Offload, bytes: Vec<u8>) {
        if !self.give(&Frame { offload, parts: &[IoSlice::new(&bytes)] }) {
            self.queue(bytes, offload);
        }
    }

    /// Sends a frame that is complete.
    pub fn frame(&mut self, bytes: Vec<u8>) {
        self.give_or_queue(Offload::default(), bytes);
    }

    /// Sends an IP packet to a guest, in fragments if it is too long.
    pub fn packet(&mut self, src: IpAddr, dst: IpAddr, proto: u8, ttl: u8, transport: &[u8]) {
        let mac = self.neighbours.get(&dst).copied();
        self.packet_to(mac, src, dst, proto, ttl, transport);
    }

    /// The same, to an Ethernet address. Without one the guest is asked for it first.
    pub fn packet_to(
        &mut self,
        mac: Option<[u8; 6]>,
        src: IpAddr,
        dst: IpAddr,
        proto: u8,
        ttl: u8,
        transport: &[u8],
    ) {
        let header = ip::header_len(dst);
        let mtu = usize::from(self.config.mtu).max(576);
        let macs = (self.mac(), mac.unwrap_or([0xff; 6]));
        let send = |core: &mut Self, place: Option<Fragment>, data: &[u8]| {
            let mut frame = vec![0; ip::ETHERNET + 48 + data.len()];
            let n = ip::headers(&mut frame, macs, (src, dst), proto, ttl, data.len(), place);
            frame.truncate(n + data.len());
            frame[n..].copy_from_slice(data);
            if mac.is_some() { core.frame(frame) } else { core.wait_for(dst, frame) }
        };
        if header + transport.len() <= mtu {
            return send(self, None, transport);
        }
        if transport.len() > 65_535 - header {
            return;
        }
        self.ident = self.ident.wrapping_add(1);
        let room = (mtu - header - if dst.is_ipv4() { 0 } else { 8 }) & !7;
        let ident = self.ident;
        for (i, chunk) in transport.chunks(room).enumerate() {
            let offset = i * room;
            let more = offset + chunk.len() < transport.len();
            send(self, Some(Fragment { ident, offset, more }), chunk);
        }
    }

    fn wait_for(&mut self, guest: IpAddr, frame: Vec<u8>) {
        if self.waiting.len() >= WAITING {
            self.waiting.pop_front();
            self.stats.dropped += 1;
        }
        self.waiting.push_back((guest, frame));
        super::link::ask(self, guest);
    }

    /// Sends a UDP datagram to a guest.
    pub fn datagram(&mut self, src: SocketAddr, dst: SocketAddr, data: &[u8]) {
        let mac = self.neighbours.get(&dst.ip()).copied();
        self.datagram_to(mac, src, dst, data);
    }

    /// The same, to an Ethernet address.
    pub fn datagram_to(&mut self, mac: Option<[u8; 6]>, src: SocketAddr, dst: SocketAddr, data: &[u8]) {
        let Ok(len) = u16::try_from(8 + data.len()) else { return };
        let mut bytes = Vec::with_capacity(len.into());
        for word in [src.port(), dst.port(), len, 0] {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        bytes.extend_from_slice(data);
        ip::fill(src.ip(), dst.ip(), ip::UDP, &mut bytes, 6, &[]);
        self.packet_to(mac, src.ip(), dst.ip(), ip::UDP, 64, &bytes);
    }
}

/// Whether an address may be one outside of host and network: neither the host's loopback by any of its names, nor many
/// hosts at once, nor none.
fn is_outside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            let first = a.octets()[0];
            !(first == 0 || first == 127 || a.is_multicast() || a.is_broadcast() || first >= 240)
        }
        IpAddr::V6(a) => {
            let bits = u128::from(a);
            let site_local = (a.segments()[0] & 0xffc0) == 0xfec0;
            // ::/96 holds ::, ::1 and IPv4-compatible addresses; IPv4-mapped ones are the host's IPv4.
            let v4 = bits >> 32 == 0 || a.to_ipv4_mapped().is_some();
            // Stateless translation (RFC 2765) would be the host's IPv4 as well.
            let translated = a.segments()[..6] == [0, 0, 0, 0, 0xffff, 0];
            !(v4 || translated || a.is_multicast() || a.is_unicast_link_local() || site_local)
        }
    }
}

/// How many descriptors the process may have, if the host has a limit.
#[cfg(windows)]
fn descriptors() -> Option<usize> {
    None
}

/// How many descriptors the process may have.
#[cfg(unix)]
fn descriptors() -> Option<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call fills in the structure that it is given.
    let done = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    (done == 0).then(|| usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_of_the_loopback_is_outside() {
        for inside in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "224.0.0.1",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "::ffff:0:127.0.0.1",
            "fe80::1",
            "ff02::1",
            "fec0::9",
        ] {
            assert!(!is_outside(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["192.0.2.1", "1.1.1.1", "2001:db8::1", "fd00::1"] {
            assert!(is_outside(outside.parse().unwrap()), "{outside}");
        }
    }
}
