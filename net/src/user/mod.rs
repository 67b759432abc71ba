//! The user network: a NAT with an IPv4 and IPv6 network of its own, whose flows end in sockets of the host.
//!
//! ```text
//!   guest -- card -- User::send --+--> link, ndp      who has which Ethernet address
//!     ^                           +--> dhcp, dhcpv6, tftp, icmp     answered here
//!     |                           +--> tcp, udp, icmp --> sockets of the host <--+
//!     +------- Nic::receive <-----------------------------------------------+   |
//!                                                                           |   |
//!   event loop (Reactor) -- User::ready, User::due --> tcp, udp, icmp, forward --+
//! ```
//!
//! Nothing waits, and there is no thread but one that reads files for TFTP: what the guest sends is handled on the thread
//! that sends it, what sockets have on the event loop's. One mutex, [`User`]'s, is held meanwhile, and while the card is given a frame.
//!
//! What a guest can take up is bounded: flows, fragments, frames that wait for its card, bytes in buffers.
mod config;
mod core;
mod dhcp;
mod dhcpv6;
mod dns;
#[cfg(windows)]
mod echo;
mod forward;
mod holder;
mod hosterror;
mod icmp;
mod ip;
mod lease;
mod link;
mod ndp;
mod poll;
mod reassembly;
mod report;
#[cfg_attr(not(unix), path = "smb_elsewhere.rs")]
mod smb;
mod tcp;
mod tftp;
mod udp;

pub use self::config::{Behind, Config, ConfigError, Dial, GuestForward, HostForward};
pub use self::core::{FlowCounters, FlowInfo, Stats};
pub use self::poll::Poll;
pub use self::report::{Lease, Report};
pub use crate::reactor::{Handler, Interest, Reactor, Token};

use self::core::{Core, Unreachable, kind};
use self::forward::Forwards;
use self::icmp::Icmp;
use self::lease::Leases;
use self::reassembly::Reassembly;
use self::smb::Smb;
use self::tcp::Tcp;
use self::tftp::Tftp;
use self::udp::Udp;
use crate::sync::Mutex;
use crate::{Backend, Frame, MAX_FRAME, Nic, Takes};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Instant;
use thiserror::Error;

/// How often a descriptor is made free for one thing that needs some.
const SHED: usize = 5;

/// Why there is no network.
#[derive(Debug, Error)]
pub enum UserError {
    /// The host does not give a port.
    #[error("hostfwd={kind}:{at}: {why}{}", holder.as_ref().map(|h| format!(": {h} has it")).unwrap_or_default())]
    Forward {
        /// tcp or udp.
        kind: &'static str,
        /// Which.
        at: SocketAddr,
        /// What it says.
        why: io::Error,
        /// Who has it, as far as the host tells.
        holder: Option<String>,
    },
    /// The folder cannot be shared.
    #[error("smb={folder}: {why}")]
    Smb {
        /// Which.
        folder: String,
        /// What is wrong.
        why: io::Error,
    },
}

impl UserError {
    fn forward(udp: bool, at: SocketAddr, why: io::Error) -> Self {
        let taken = why.kind() == io::ErrorKind::AddrInUse;
        let holder = if taken { holder::of(udp, at) } else { None };
        Self::Forward { kind: if udp { "udp" } else { "tcp" }, at, why, holder }
    }
}

/// The most connections whose end a restored guest is told: as many frames may wait for its card.
const MOST_LOST: usize = 512;

/// A connection that ends with the network, as its guest knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The guest's Ethernet address.
    pub mac: [u8; 6],
    /// Its end.
    pub guest: SocketAddr,
    /// The other one.
    pub remote: SocketAddr,
    /// The first sequence number that the guest has not acknowledged.
    pub seq: u32,
    /// What it is to send next.
    pub ack: u32,
}

struct Nat {
    core: Core,
    tcp: Tcp,
    udp: Udp,
    icmp: Icmp,
    tftp: Tftp,
    leases: Leases,
    forwards: Forwards,
    reassembly: Reassembly,
    tick: Token,
    tick_at: Option<Instant>,
    /// Its files go with the network.
    _smb: Option<Smb>,
}

/// The back end.
pub struct User {
    nat: Mutex<Nat>,
}

impl User {
    /// Makes the network, and opens its ports of the host's.
    pub fn new(mut config: Config, reactor: Arc<dyn Reactor>) -> Result<Arc<Self>, UserError> {
        let smb = Smb::share(&mut config).map_err(|why| {
            let folder = config.smb.iter().map(|f| f.display().to_string()).collect();
            UserError::Smb { folder, why }
        })?;
        let mut ours = vec![config.host, config.dns];
        ours.extend(config.guest_forwards.iter().filter_map(|f| match f.server.ip() {
            IpAddr::V4(a) => Some(a),
            IpAddr::V6(_) => None,
        }));
        let leases = Leases::new(config.dhcp_start, config.broadcast(), &ours);
        let forwards = config.host_forwards.clone();
        let mut core = Core::new(config, reactor);
        let tick = core.token(kind::TICK);
        let mut nat = Nat {
            core,
            tcp: Tcp::default(),
            udp: Udp::default(),
            icmp: Icmp::default(),
            tftp: Tftp::new(Arc::new(|_| {})),
            leases,
            forwards: Forwards::default(),
            reassembly: Reassembly::default(),
            tick,
            tick_at: None,
            _smb: smb,
        };
        for forward in forwards {
            let (udp, at) = (forward.udp, forward.host);
            nat.forwards.add(&mut nat.core, forward).map_err(|why| UserError::forward(udp, at, why))?;
        }
        if nat.core.config.ipv6 {
            let first = nat.core.now + ndp::EVERY;
            nat.core.arm(tick, &mut nat.tick_at, Some(first));
        }
        nat.core.settle();
        Ok(Arc::new_cyclic(|me: &Weak<Self>| {
            let me = me.clone();
            nat.tftp = Tftp::new(Arc::new(move |piece| {
                if let Some(user) = me.upgrade() {
                    let nat = &mut *user.nat.lock();
                    nat.enter();
                    nat.tftp.has_read(&mut nat.core, piece);
                    nat.core.settle();
                }
            }));
            Self { nat: Mutex::new(nat) }
        }))
    }

    /// What [`Behind::Chardev`] leads to.
    pub fn set_dial(&self, dial: Arc<dyn Dial>) {
        self.nat.lock().core.dial = Some(dial);
    }

    /// A socket is ready, which the loop was asked to wait for.
    pub fn ready(&self, token: Token, read: bool, write: bool) {
        let mut nat = self.nat.lock();
        let nat = &mut *nat;
        nat.enter();
        match (token.0 >> 56) as u8 {
            kind::TCP => nat.tcp.ready(&mut nat.core, token, read, write),
            kind::UDP => nat.udp.ready(&mut nat.core, token),
            kind::PING => nat.icmp.ready(&mut nat.core, token),
            kind::LISTEN => nat.with_descriptors(|nat| {
                nat.forwards.ready(&mut nat.core, token, &mut nat.tcp, &mut nat.udp);
            }),
            _ => {}
        }
        nat.core.settle();
    }

    /// The time has come that was set with [`Reactor::set_timer`].
    pub fn due(&self) {
        let mut nat = self.nat.lock();
        let nat = &mut *nat;
        nat.enter();
        nat.core.fired();
        for _ in 0..nat.core.due() {
            let Some(token) = nat.core.pop() else { break };
            match (token.0 >> 56) as u8 {
                kind::TCP => nat.tcp.due(&mut nat.core, token),
                kind::UDP => nat.udp.due(&mut nat.core, token),
                kind::PING => nat.icmp.due(&mut nat.core, token),
                kind::TFTP => nat.tftp.due(&mut nat.core, token),
                kind::LISTEN => nat.forwards.due(token),
                kind::TICK => {
                    ndp::advertise(&mut nat.core, None, [0; 6]);
                    let next = nat.core.now + ndp::EVERY;
                    nat.tick_at = None;
                    nat.core.arm(nat.tick, &mut nat.tick_at, Some(next));
                }
                _ => {}
            }
        }
        nat.core.settle();
    }

    /// Opens a port of the host's, as `hostfwd_add` does: `[tcp|udp]:[host]:port-[guest]:port`. Which it is.
    pub fn add_forward(&self, forward: &str) -> Result<SocketAddr, String> {
        let forward = config::host_forward(forward)?;
        let (udp, at) = (forward.udp, forward.host);
        let nat = &mut *self.nat.lock();
        let opened = nat.forwards.add(&mut nat.core, forward);
        opened.map_err(|why| UserError::forward(udp, at, why).to_string())
    }

    /// Closes a port of the host's; whether it was open.
    pub fn remove_forward(&self, udp: bool, host: SocketAddr) -> bool {
        self.nat.lock().forwards.remove(udp, host)
    }

    /// The ports of the host's that are open, with the numbers that the host has chosen.
    pub fn forwards(&self) -> Vec<HostForward> {
        self.nat.lock().forwards.all()
    }

    /// What passes through just now.
    pub fn flows(&self) -> Vec<FlowInfo> {
        let nat = self.nat.lock();
        nat.tcp.info().chain(nat.udp.info()).chain(nat.icmp.info()).collect()
    }

    /// Which guests have leased which address.
    pub fn leases(&self) -> Vec<([u8; 6], Ipv4Addr)> {
        self.nat.lock().leases.all().collect()
    }

    /// Takes on what an earlier network knew of its guests: leases, which address was leased last, and connections.
    /// These are not there any more: what a guest sends on one is answered with a reset, and a guest that only listens
    /// is asked for a word, so that it gets one too.
    pub fn restore(&self, leases: &[([u8; 6], Ipv4Addr)], last: Option<IpAddr>, lost: &[Lost]) {
        let nat = &mut *self.nat.lock();
        nat.enter();
        nat.leases.restore(leases, nat.core.now);
        nat.core.leased = last.filter(|a| nat.core.config.has(*a));
        for lost in lost.iter().take(MOST_LOST) {
            nat.core.learn(lost.guest.ip(), lost.mac);
            tcp::ask(&mut nat.core, lost);
        }
        if !lost.is_empty() {
            tracing::info!("user network: {} connections of the saved machine are reset", lost.len());
        }
        nat.core.settle();
    }

    /// The connections that a guest knows of, for [`User::restore`] of another network.
    pub fn connections(&self) -> Vec<Lost> {
        let nat = self.nat.lock();
        let mac = |guest: IpAddr| nat.core.neighbour(guest);
        nat.tcp
            .known()
            .filter_map(|(guest, remote, seq, ack)| {
                Some(Lost { mac: mac(guest.ip())?, guest, remote, seq, ack })
            })
            .collect()
    }

    /// The address that was leased last, where forwards lead to that name none.
    pub fn last_lease(&self) -> Option<IpAddr> {
        self.nat.lock().core.leased
    }

    /// What has passed in all.
    pub fn stats(&self) -> Stats {
        self.nat.lock().core.stats
    }

    /// Bytes in the buffers of all flows.
    pub fn buffered(&self) -> usize {
        self.nat.lock().core.buffered
    }
}

impl Handler for User {
    fn ready(&self, token: Token, read: bool, write: bool) {
        self.ready(token, read, write);
    }

    fn due(&self) {
        self.due();
    }
}

impl Backend for User {
    fn connect(&self, nic: Arc<dyn Nic>) {
        let mut nat = self.nat.lock();
        if nat.core.nic.is_none() {
            nat.core.nic = Some(nic);
        }
    }

    fn send(&self, frame: &Frame<'_>) {
        let mut nat = self.nat.lock();
        nat.enter();
        nat.core.stats.from_guest += 1;
        nat.input(frame);
        nat.core.settle();
    }

    fn wake(&self) {
        let mut nat = self.nat.lock();
        let nat = &mut *nat;
        nat.enter();
        if nat.core.drain() {
            nat.tcp.wake(&mut nat.core);
        }
        nat.core.settle();
    }

    fn takes(&self) -> Takes {
        Takes { partial: true, tso4: true, tso6: true, ..Takes::default() }
    }
}

impl Nat {
    /// Brings what may have changed since the last call up to date.
    fn enter(&mut self) {
        self.core.now = self.core.reactor.now();
        self.core.takes = self.core.nic.as_ref().map(|n| n.takes()).unwrap_or_default();
    }

    /// A frame from the guest.
    fn input(&mut self, frame: &Frame<'_>) {
        let mut buffer = [0; ip::HEADERS];
        let head = ip::head(frame, &mut buffer);
        let total = frame.len();
        let to_us = head.first_chunk::<6>().is_some_and(|to| *to == self.core.mac() || to[0] & 1 != 0);
        if head.len() < ip::ETHERNET || total > MAX_FRAME || !to_us {
            self.core.stats.ignored += 1;
            return;
        }
        let mut mac = [0; 6];
        mac.copy_from_slice(&head[6..12]);
        match u16::from_be_bytes([head[12], head[13]]) {
            ip::TYPE_ARP if self.core.config.ipv4 => link::arp(&mut self.core, &head[ip::ETHERNET..]),
            ip::TYPE_IPV4 if self.core.config.ipv4 => self.ip(frame, head, total, mac, false),
            ip::TYPE_IPV6 if self.core.config.ipv6 => self.ip(frame, head, total, mac, true),
            _ => self.core.stats.ignored += 1,
        }
    }

    fn ip(&mut self, frame: &Frame<'_>, head: &[u8], total: usize, mac: [u8; 6], v6: bool) {
        let Some(ip) = ip::Ip::parse(head, total, v6) else {
            self.core.stats.ignored += 1;
            return;
        };
        // Many cannot be the source of one packet (RFC 1122, 3.2.1.3).
        if ip.src.is_multicast() || ip.src == IpAddr::V4(Ipv4Addr::BROADCAST) || ip.src.is_loopback() {
            self.core.stats.ignored += 1;
            return;
        }
        // IPv6 has its own way for that; both must tell before anything can be sent to them.
        self.core.learn(ip.src, mac);
        let routed = !self.core.is_ours(ip.dst) && !self.core.config.has(ip.dst) && !ip.dst.is_multicast();
        if routed && ip.ttl <= 1 && !self.core.config.restrict {
            icmp::unreachable(&mut self.core, ip.src, Unreachable::Expired, &head[ip.at..]);
            return;
        }
        if ip.fragment.is_none() && ip.proto == ip::TCP {
            if !ip.src.is_unspecified() && !self.is_many(ip.dst) {
                self.with_descriptors(|nat| nat.tcp.input(&mut nat.core, &ip, head, frame));
            }
            return;
        }
        let data = frame.slices(ip.payload, ip.len).concat();
        let whole = match ip.fragment {
            None => data,
            Some(_) => match self.reassembly.add(&ip, data, self.core.now) {
                Some(whole) => whole,
                None => return,
            },
        };
        let original = &head[ip.at..];
        let trusted = ip.fragment.is_none() && (frame.offload.partial.is_some() || frame.offload.valid);
        match ip.proto {
            ip::UDP => self.datagram(&ip, mac, &whole, trusted, original),
            ip::ICMP if !v6 => {
                if !self.is_many(ip.dst) {
                    self.with_descriptors(|nat| nat.icmp.input(&mut nat.core, &ip, &whole, original));
                }
            }
            ip::ICMPV6 if v6 => {
                if ndp::is_ours(&whole) {
                    ndp::input(&mut self.core, &ip, mac, &whole);
                } else if !self.is_many(ip.dst) {
                    self.with_descriptors(|nat| nat.icmp.input(&mut nat.core, &ip, &whole, original));
                }
            }
            // A segment in fragments, which no guest sends.
            _ => self.core.stats.ignored += 1,
        }
    }

    /// Does what may need descriptors. If the process has none left, what has been idle for longest is closed, of any
    /// protocol, and it is tried again.
    fn with_descriptors(&mut self, mut work: impl FnMut(&mut Self)) {
        for left in (0..SHED).rev() {
            (self.core.patient, self.core.starved) = (left > 0, false);
            work(self);
            if !self.core.starved || !self.shed() {
                break;
            }
        }
        if std::mem::take(&mut self.core.starved) {
            // There was nothing to close: now it is told.
            self.core.patient = false;
            work(self);
        }
        self.core.patient = false;
    }

    /// Closes what has been idle for longest; whether there was something.
    fn shed(&mut self) -> bool {
        let core = &mut self.core;
        let all = [self.tcp.oldest(), self.udp.oldest(), self.icmp.oldest()];
        let Some((_, token)) = all.into_iter().flatten().min() else { return false };
        let what = "the process has no descriptor left (ulimit -n): the connection that was idle for longest is closed";
        core.once("descriptors", format_args!("{what}"));
        match (token.0 >> 56) as u8 {
            kind::TCP => self.tcp.shed(core, token),
            kind::UDP => self.udp.close(core, token),
            _ => self.icmp.close(core, token),
        }
        true
    }

    /// Whether an address is that of many.
    fn is_many(&self, address: IpAddr) -> bool {
        address.is_multicast()
            || matches!(address, IpAddr::V4(a) if a.is_broadcast() || a == self.core.config.broadcast())
    }

    fn datagram(&mut self, ip: &ip::Ip, mac: [u8; 6], bytes: &[u8], trusted: bool, original: &[u8]) {
        let core = &mut self.core;
        let Some((header, data)) = bytes.split_first_chunk::<8>() else { return };
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let (from, to, len, sum) = (word(0), word(2), usize::from(word(4)), word(6));
        if len < 8 || len > bytes.len() {
            return;
        }
        let data = &data[..len - 8];
        // None is allowed with IPv4 only (RFC 768; RFC 8200, 8.1).
        if !trusted
            && (sum != 0 || ip.src.is_ipv6())
            && ip::checksum(&[&bytes[..len]], ip::pseudo(ip.src, ip.dst, ip::UDP, len)) != 0
        {
            core.stats.bad_checksums += 1;
            return;
        }
        let (guest, remote) = (SocketAddr::new(ip.src, from), SocketAddr::new(ip.dst, to));
        let many = ip.dst.is_multicast()
            || matches!(ip.dst, IpAddr::V4(a) if a.is_broadcast() || a == core.config.broadcast());
        let gateway = core.is_gateway(ip.dst);
        match to {
            dhcp::SERVER if ip.dst.is_ipv4() && (many || gateway) => {
                return dhcp::input(core, &mut self.leases, data);
            }
            dhcpv6::SERVER if ip.dst.is_ipv6() && (many || gateway) => {
                core.learn(ip.src, mac);
                return dhcpv6::input(core, guest, data);
            }
            _ => {}
        }
        // Broadcasts and multicasts stay on the link.
        if many || ip.src.is_unspecified() {
            return;
        }
        if to == tftp::SERVER && gateway {
            return self.tftp.input(core, guest, remote, data);
        }
        self.with_descriptors(|nat| nat.udp.input(&mut nat.core, guest, remote, ip.ttl, data, original));
    }
}
