//! ICMP: echoes to the gateway are answered here, others go out by sockets that need no privilege (`ping_group_range`
//! on Linux, and on Windows by a function: `echo`); errors go to the guest as a router's would (RFC 792, RFC 4443).
use super::core::{Core, FlowCounters, FlowInfo, Reach, Unreachable, kind};
use super::hosterror;
use super::ip::{self, Ip};
use crate::reactor::{Interest, Token};
use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet};
use socket2::Socket;
#[cfg(unix)]
use socket2::{Domain, Protocol, Type};
use std::collections::HashMap;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an echo may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Pings at a time.
const PINGS: usize = 64;
/// What an error quotes of the packet (RFC 1812, 4.3.2.3; RFC 4443, 3: as much as fits into the least MTU).
const QUOTE_V4: usize = 548;
const QUOTE_V6: usize = 1232;

struct Ping {
    #[cfg(windows)]
    echoes: super::echo::Echoes,
    interest: Box<dyn Interest>,
    socket: Arc<Socket>,
    guest: IpAddr,
    remote: IpAddr,
    ident: u16,
    last: Instant,
    queued: Option<Instant>,
    counters: FlowCounters,
}

/// The echoes that are on their way.
#[derive(Default)]
pub(super) struct Icmp {
    pings: HashMap<Token, Ping>,
}

impl Icmp {
    pub fn info(&self) -> impl Iterator<Item = FlowInfo> + '_ {
        self.pings.values().map(|p| FlowInfo {
            protocol: "icmp",
            guest: SocketAddr::new(p.guest, p.ident),
            remote: SocketAddr::new(p.remote, p.ident),
            state: "Open".into(),
            buffered: 0,
            counters: p.counters,
        })
    }

    /// A message from the guest; neighbour discovery is not here. `original` is the packet from its IP header on.
    pub fn input(&mut self, core: &mut Core, ip: &Ip, message: &[u8], original: &[u8]) {
        let v6 = ip.src.is_ipv6();
        let start = if v6 { ip::pseudo(ip.src, ip.dst, ip::ICMPV6, message.len()) } else { 0 };
        if message.len() < 8 || ip::checksum(&[message], start) != 0 {
            return;
        }
        // Echo request.
        if (message[0], message[1]) != (if v6 { 128 } else { 8 }, 0) {
            return;
        }
        if core.is_gateway(ip.dst) || core.is_dns(ip.dst) {
            return reply(core, ip.dst, ip.src, message);
        }
        match core.reach(SocketAddr::new(ip.dst, 0)) {
            Reach::Host(_) => {}
            Reach::Refused(Unreachable::Prohibited) => return,
            Reach::Refused(why) => return unreachable(core, ip.src, why, original),
        }
        let ident = u16::from_be_bytes([message[4], message[5]]);
        let known =
            self.pings.iter().find(|(_, p)| p.guest == ip.src && p.remote == ip.dst && p.ident == ident);
        let token = match known {
            Some((token, _)) => *token,
            None => match self.open(core, ip, ident) {
                Ok(token) => token,
                Err(e) if core.starves(&e) => return,
                Err(e) => {
                    let what = if cfg!(windows) {
                        "a ping goes nowhere"
                    } else {
                        "the host gives no socket for ping: see net.ipv4.ping_group_range"
                    };
                    core.once("ping", format_args!("{what} ({e})"));
                    return;
                }
            },
        };
        let Some(ping) = self.pings.get_mut(&token) else { return };
        ping.last = core.now;
        ping.counters.segments_from += 1;
        ping.counters.from_guest += message.len() as u64;
        let hops = ip.ttl.saturating_sub(1);
        // The host puts an identification of its own in and computes the checksum.
        if let Err(e) = ping.send(message, hops, v6)
            && let Some(why) = Unreachable::from_error(&e)
        {
            unreachable(core, ip.src, why, original);
        }
    }

    fn open(&mut self, core: &mut Core, ip: &Ip, ident: u16) -> io::Result<Token> {
        #[cfg(unix)]
        let (domain, protocol) = match ip.dst {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        #[cfg(unix)]
        let socket = {
            let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
            hosterror::enable(&socket, ip.dst.is_ipv6());
            socket.connect(&SocketAddr::new(ip.dst, 0).into())?;
            socket
        };
        #[cfg(windows)]
        let (echoes, socket) = super::echo::Echoes::open(ip.dst)?;
        socket.set_nonblocking(true)?;
        if self.pings.len() >= PINGS
            && let Some(oldest) = self.pings.iter().min_by_key(|(_, p)| p.last).map(|(t, _)| *t)
        {
            self.close(core, oldest);
        }
        let (token, socket) = (core.token(kind::PING), Arc::new(socket));
        let interest = core.reactor.register(&socket, token)?;
        interest.want(true, false)?;
        let mut queued = None;
        core.arm(token, &mut queued, Some(core.now + TIMEOUT));
        let (guest, remote, last) = (ip.src, ip.dst, core.now);
        let counters = FlowCounters::default();
        let ping = Ping {
            #[cfg(windows)]
            echoes,
            interest,
            socket,
            guest,
            remote,
            ident,
            last,
            queued,
            counters,
        };
        self.pings.insert(token, ping);
        Ok(token)
    }

    /// The echo that has been on its way for longest.
    pub fn oldest(&self) -> Option<(Instant, Token)> {
        self.pings.iter().map(|(token, p)| (p.last, *token)).min()
    }

    pub fn close(&mut self, core: &mut Core, token: Token) {
        if let Some(ping) = self.pings.remove(&token) {
            core.disarm(token, ping.queued);
        }
    }

    pub fn ready(&mut self, core: &mut Core, token: Token) {
        let Some(ping) = self.pings.get_mut(&token) else { return };
        let mut buffer = vec![0; 65_536];
        let mut failed = None;
        for _ in 0..16 {
            match (&*ping.socket).read(&mut buffer) {
                Ok(n) if n >= 8 => {
                    let message = &mut buffer[..n];
                    message[4..6].copy_from_slice(&ping.ident.to_be_bytes());
                    ping.counters.segments_to += 1;
                    ping.counters.to_guest += n as u64;
                    echo(core, ping.remote, ping.guest, message);
                }
                Ok(_) => {}
                Err(e) => {
                    failed = Unreachable::from_error(&e);
                    break;
                }
            }
        }
        let (guest, remote) = (SocketAddr::new(ping.guest, 0), SocketAddr::new(ping.remote, 0));
        let proto = if ping.guest.is_ipv4() { ip::ICMP } else { ip::ICMPV6 };
        let [first, second] = ping.ident.to_be_bytes();
        let told = hosterror::take(&ping.socket);
        if told.is_empty()
            && let Some(why) = failed
        {
            unreachable_flow(core, guest, remote, proto, [first, second, 0, 0], why);
        }
        for told in told {
            // With the guest's number in the place of the host's, so that it finds what it had sent.
            let [.., high, low] = told.data;
            let from = core.seen_as(told.from.unwrap_or(ping.remote), ping.guest);
            let quote = quote(core, guest, remote, proto, [first, second, high, low]);
            error(core, from, ping.guest, told.why, &quote);
        }
        let _ = ping.interest.want(true, false);
    }

    pub fn due(&mut self, core: &mut Core, token: Token) {
        let Some(ping) = self.pings.get_mut(&token) else { return };
        ping.queued = None;
        let end = ping.last + TIMEOUT;
        if end <= core.now {
            self.close(core, token);
        } else {
            core.arm(token, &mut ping.queued, Some(end));
        }
    }
}

impl Ping {
    /// Sends an echo request of the guest's.
    #[cfg(unix)]
    fn send(&self, message: &[u8], hops: u8, v6: bool) -> io::Result<usize> {
        let hops = hops.into();
        let _ = if v6 { self.socket.set_unicast_hops_v6(hops) } else { self.socket.set_ttl_v4(hops) };
        self.socket.send(message)
    }

    /// Sends an echo request of the guest's.
    #[cfg(windows)]
    fn send(&self, message: &[u8], hops: u8, _: bool) -> io::Result<usize> {
        self.echoes.send(message, hops.max(1));
        Ok(message.len())
    }
}

/// Answers an echo.
fn reply(core: &mut Core, from: IpAddr, to: IpAddr, request: &[u8]) {
    let mut message = request.to_vec();
    message[0] = if to.is_ipv6() { 129 } else { 0 };
    echo(core, from, to, &mut message);
}

/// Sends the guest a message, with its checksum.
fn echo(core: &mut Core, from: IpAddr, to: IpAddr, message: &mut [u8]) {
    let proto = if to.is_ipv6() { ip::ICMPV6 } else { ip::ICMP };
    ip::fill(from, to, proto, message, 2, &[]);
    core.packet(from, to, proto, 64, message);
}

/// Tells a guest why `original`, its packet from the IP header on, goes nowhere. Said by the gateway.
pub(super) fn unreachable(core: &mut Core, guest: IpAddr, why: Unreachable, original: &[u8]) {
    let from = core.gateway(guest);
    error(core, from, guest, why, original);
}

/// The same, by somebody else on the way.
pub(super) fn error(core: &mut Core, from: IpAddr, guest: IpAddr, why: Unreachable, original: &[u8]) {
    if guest.is_unspecified() || guest.is_multicast() || !core.challenge() {
        return;
    }
    let quote = &original[..original.len().min(if guest.is_ipv4() { QUOTE_V4 } else { QUOTE_V6 })];
    let mut message = vec![0; 8];
    if guest.is_ipv4() {
        let (kind, code) = match why {
            Unreachable::Net => (3, 0),
            Unreachable::Host => (3, 1),
            Unreachable::Port => (3, 3),
            Unreachable::Prohibited => (3, 13),
            Unreachable::TooBig(mtu) => {
                message[6..8].copy_from_slice(&mtu.to_be_bytes());
                (3, 4)
            }
            Unreachable::Expired => (11, 0),
        };
        let mut packet = Icmpv4Packet::new_unchecked(&mut message);
        packet.set_msg_type(kind.into());
        packet.set_msg_code(code);
    } else {
        let (kind, code) = match why {
            Unreachable::Net => (1, 0),
            Unreachable::Host => (1, 3),
            Unreachable::Port => (1, 4),
            Unreachable::Prohibited => (1, 1),
            Unreachable::TooBig(mtu) => {
                message[6..8].copy_from_slice(&mtu.to_be_bytes());
                (2, 0)
            }
            Unreachable::Expired => (3, 0),
        };
        let mut packet = Icmpv6Packet::new_unchecked(&mut message);
        packet.set_msg_type(kind.into());
        packet.set_msg_code(code);
    }
    message.extend_from_slice(quote);
    echo(core, from, guest, &mut message);
}

/// Tells a guest why a flow of its has ended, where its packet is no longer there: as much of it as identifies the flow
/// is made anew. `rest` is bytes 4 to 7 of the transport's header.
pub(super) fn unreachable_flow(
    core: &mut Core,
    guest: SocketAddr,
    remote: SocketAddr,
    proto: u8,
    rest: [u8; 4],
    why: Unreachable,
) {
    let from = match why {
        // The host itself has said so.
        Unreachable::Port => remote.ip(),
        _ => core.gateway(guest.ip()),
    };
    let packet = quote(core, guest, remote, proto, rest);
    error(core, from, guest.ip(), why, &packet);
}

/// The first bytes of a packet of the guest's.
pub(super) fn quote(core: &Core, guest: SocketAddr, remote: SocketAddr, proto: u8, rest: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0; ip::ETHERNET + 48 + 8];
    let macs = (core.mac(), core.mac());
    let n = ip::headers(&mut frame, macs, (guest.ip(), remote.ip()), proto, 64, 8, None);
    frame.truncate(n + 8);
    if proto == ip::ICMP || proto == ip::ICMPV6 {
        frame[n] = if proto == ip::ICMP { 8 } else { 128 };
        frame[n + 4..n + 8].copy_from_slice(&rest);
    } else {
        frame[n..n + 2].copy_from_slice(&guest.port().to_be_bytes());
        frame[n + 2..n + 4].copy_from_slice(&remote.port().to_be_bytes());
        frame[n + 4..n + 8].copy_from_slice(&rest);
    }
    frame.split_off(ip::ETHERNET)
}
