//! TCP: a connection of the guest's ends here, and its bytes go on in a socket of the host's.
//!
//! ```text
//!   guest  <-- segments, window, loss -->  Flow  <-- send, recv -->  socket of the host  <-- the host's TCP -->  peer
//! ```
//!
//! * The guest's SYN is answered when the host's socket is connected: what is refused there is refused here.
//! * What the guest sends in order is written to the socket from the frame's own memory; what it has no room for is
//!   kept. The window we tell is what is left of that ([`flow::OUT`]), so a peer that does not read stops the guest.
//! * What the host's socket has is read when the guest's window has room for it, and kept until it is acknowledged.
//!   The card takes it out of there. A guest that does not read thus stops the peer.
//! * There is no congestion control towards the guest: the link is memory. Loss is repaired all the same (RFC 6298
//!   timer, fast retransmit, window probes).
//! * FIN and RST pass both ways, each after the data before it.
//! * A guest that understands it is told what of its data has come too early (RFC 2018); what it says of that itself is
//!   not looked at.
//! * One that stamps its segments has its stamps back (RFC 7323): without, it could not tell how long an answer takes
//!   while it sends everything again.
//!
//! Missing on purpose: ECN; the host's TCP has its own with the peer.
mod flow;
mod input;
mod output;
mod ring;

pub use flow::Key;

use super::config::Behind;
use super::core::{Core, FlowInfo, Reach, Unreachable, kind, mapped};
use super::{Lost, icmp, ip};
use crate::Frame;
use crate::errors::EINPROGRESS;
use crate::reactor::Token;
use flow::{Fate, Flow, Phase};
use input::Segment;
use output::{ACK, Header, RST, SYN, header};
use rustc_hash::FxHashMap;
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};
use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr};
#[cfg(unix)]
use std::os::unix::process::CommandExt;
use std::process::Child;
#[cfg(unix)]
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// All connections.
#[derive(Default)]
pub(super) struct Tcp {
    flows: FxHashMap<Token, Flow>,
    keys: HashMap<Key, Token>,
    /// Programs of guest forwards that may still run.
    children: Vec<Child>,
}

impl Tcp {
    pub fn info(&self) -> impl Iterator<Item = FlowInfo> + '_ {
        self.flows.values().map(|f| FlowInfo {
            protocol: "tcp",
            guest: f.key.guest,
            remote: f.key.remote,
            state: format!("{:?}", f.phase),
            buffered: f.counted,
            counters: f.counters,
        })
    }

    /// The connections that the guest has or may have open: both ends, SND.UNA and RCV.NXT.
    pub fn known(&self) -> impl Iterator<Item = (SocketAddr, SocketAddr, u32, u32)> + '_ {
        let open = self.flows.values().filter(|f| matches!(f.phase, Phase::SynReceived | Phase::Open));
        open.map(|f| (f.key.guest, f.key.remote, f.una, f.rcv_nxt))
    }

    /// A segment from the guest.
    pub fn input(&mut self, core: &mut Core, ip: &ip::Ip, head: &[u8], frame: &Frame<'_>) {
        let Some(first) = head.get(ip.payload..).filter(|b| b.len() >= 20 && ip.len >= 20) else { return };
        let header_len = usize::from(first[12] >> 4) * 4;
        let Some(bytes) = first.get(..header_len).filter(|_| header_len >= 20 && header_len <= ip.len) else {
            return;
        };
        let trusted = frame.offload.partial.is_some() || frame.offload.valid;
        if !trusted {
            let all = frame.slices(ip.payload, ip.len);
            if ip::checksum(&all, ip::pseudo(ip.src, ip.dst, ip::TCP, ip.len)) != 0 {
                core.stats.bad_checksums += 1;
                return;
            }
        }
        let data = frame.slices(ip.payload + header_len, ip.len - header_len);
        let Some(segment) = Segment::parse(bytes, data) else { return };
        let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let key = Key { guest: SocketAddr::new(ip.src, port(0)), remote: SocketAddr::new(ip.dst, port(2)) };
        if let Some(&id) = self.keys.get(&key) {
            let Some(flow) = self.flows.get_mut(&id) else { return };
            // A new connection in the place of one that is over (RFC 9293, 3.10.7.4).
            let anew = flow.phase == Phase::TimeWait
                && segment.has(SYN)
                && !segment.has(ACK)
                && output::before(flow.rcv_nxt, segment.seq);
            if !anew {
                let fate = flow.arrives(core, &segment);
                self.end(core, id, fate);
                return;
            }
            self.end(core, id, Fate::Gone);
        }
        if segment.has(RST) {
            return;
        }
        if segment.has(SYN) && !segment.has(ACK) && key.guest.port() != 0 && key.remote.port() != 0 {
            self.open(core, key, &segment, &head[ip.at..]);
        } else {
            refuse(core, key, &segment);
        }
    }

    /// Has a name server asked after `flow`'s has failed; whether there is another.
    fn ask_next(core: &mut Core, flow: &mut Flow) -> bool {
        let Some(Ok(((socket, connected, _), n))) = flow.resolver.and_then(|n| ask_server(core, n + 1))
        else {
            return false;
        };
        // Its registration goes before the new one, which has the same name.
        (flow.interest, flow.socket, flow.armed) = (None, None, (false, false));
        flow.rto_at = None;
        let socket = Arc::new(socket);
        let Ok(interest) = core.reactor.register(&socket, flow.id) else { return false };
        (flow.interest, flow.socket, flow.resolver) = (Some(interest), Some(socket), Some(n));
        if Self::is_last(core, n) {
            flow.question = None;
        }
        if connected {
            flow.phase = Phase::SynReceived;
            flow.send_syn(core);
        }
        true
    }

    /// Has the next name server asked after one has taken a question, and not answered; whether there is another.
    fn ask_again(core: &mut Core, flow: &mut Flow) -> bool {
        let open = flow.phase == Phase::Open && flow.question.is_some();
        let Some(n) = flow.resolver.filter(|_| open) else { return false };
        let Some(Ok(((socket, ..), n))) = ask_server(core, n + 1) else { return false };
        // Its registration goes before the new one, which has the same name.
        (flow.interest, flow.socket, flow.armed) = (None, None, (false, false));
        let socket = Arc::new(socket);
        let Ok(interest) = core.reactor.register(&socket, flow.id) else { return false };
        (flow.interest, flow.socket, flow.resolver) = (Some(interest), Some(socket), Some(n));
        flow.ask_again(core.now, Self::is_last(core, n));
        true
    }

    fn is_last(core: &mut Core, resolver: usize) -> bool {
        core.resolvers.current(core.now).len() <= resolver + 1
    }

    /// A name server says nothing: the next one is asked, and the last is waited for.
    fn silent(core: &mut Core, flow: &mut Flow) -> Fate {
        flow.queued = None;
        flow.rto_at = None;
        if !Self::ask_next(core, flow) && flow.socket.is_none() {
            return Fate::Reset;
        }
        flow.pump(core)
    }

    /// The guest opens a connection.
    fn open(&mut self, core: &mut Core, key: Key, segment: &Segment<'_>, original: &[u8]) {
        let mut resolver = None;
        let made = match core.guest_forward(key.remote) {
            Some(Behind::Tcp(address)) => {
                dial(address.into(), Domain::for_address(address), Some(Protocol::TCP))
            }
            Some(Behind::Unix(path)) => {
                SockAddr::unix(path).and_then(|address| dial(address, Domain::UNIX, None))
            }
            Some(Behind::Chardev(id)) => {
                let dialed = core.dial.as_ref().map(|dial| dial.dial(&id));
                let socket = dialed.unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()));
                socket.and_then(|socket| prepare(&socket).map(|()| (socket, true, None)))
            }
            Some(Behind::Command(program)) => spawn(&program).map(|(s, c)| (s, true, Some(c))),
            None => match core.reach(key.remote) {
                Reach::Host(_) if core.is_dns(key.remote.ip()) => {
                    let made = ask_server(core, 0).unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()));
                    made.map(|(made, n)| {
                        resolver = Some(n);
                        made
                    })
                }
                Reach::Host(to) => dial(to.into(), Domain::for_address(to), Some(Protocol::TCP)),
                Reach::Refused(Unreachable::Port | Unreachable::Prohibited) => {
                    return refuse(core, key, segment);
                }
                Reach::Refused(why) => return icmp::unreachable(core, key.guest.ip(), why, original),
            },
        };
        let (socket, connected, child) = match made {
            Ok(made) => made,
            Err(e) if core.starves(&e) => return,
            Err(e) => {
                core.once("tcp", format_args!("{}: {e}", key.remote));
                return self.failed(core, key, segment, &e, original);
            }
        };
        self.make_room(core);
        let (token, socket) = (core.token(kind::TCP), Arc::new(socket));
        let mut flow = match Flow::new(core, token, key, socket, Phase::Connecting) {
            Ok(flow) => flow,
            Err(e) => return self.failed(core, key, segment, &e, original),
        };
        (flow.child, flow.resolver) = (child, resolver);
        flow.question = resolver.filter(|n| !Self::is_last(core, *n)).map(|_| Vec::new());
        flow.synchronize(core, segment);
        flow.counters.segments_from = 1;
        let fate = if connected {
            flow.phase = Phase::SynReceived;
            flow.send_syn(core);
            flow.pump(core)
        } else {
            flow.pump(core)
        };
        self.keys.insert(key, token);
        self.flows.insert(token, flow);
        self.end(core, token, fate);
    }

    /// The host cannot make a connection.
    fn failed(&self, core: &mut Core, key: Key, segment: &Segment<'_>, e: &io::Error, original: &[u8]) {
        match Unreachable::from_error(e) {
            None | Some(Unreachable::Port) => refuse(core, key, segment),
            Some(why) => icmp::unreachable(core, key.guest.ip(), why, original),
        }
    }

    /// Somebody has connected to a port of the host's that leads to `guest`.
    pub fn accept(&mut self, core: &mut Core, socket: Socket, guest: SocketAddr, peer: SocketAddr) {
        let mut remote = SocketAddr::new(core.seen_as(peer.ip(), guest.ip()), peer.port());
        // Peers that all look like the gateway may have the same port.
        while self.keys.contains_key(&Key { guest, remote }) {
            remote.set_port(1024 + (core.random() % 64_000) as u16);
        }
        if prepare(&socket).is_err() {
            return;
        }
        self.make_room(core);
        let key = Key { guest, remote };
        let token = core.token(kind::TCP);
        let Ok(mut flow) = Flow::new(core, token, key, Arc::new(socket), Phase::SynSent) else { return };
        // We scale, acknowledge selectively and stamp, if the guest does.
        (flow.scale, flow.sack, flow.stamp) = (Some(0), true, Some(0));
        flow.send_syn(core);
        let fate = flow.pump(core);
        self.keys.insert(key, token);
        self.flows.insert(token, flow);
        self.end(core, token, fate);
    }

    /// A host's socket is ready.
    pub fn ready(&mut self, core: &mut Core, id: Token, _: bool, _: bool) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.armed = (false, false);
        let fate =
            if flow.phase == Phase::Connecting { Self::connected(core, flow) } else { flow.pump(core) };
        self.end(core, id, fate);
    }

    /// Connecting has come to its end, one way or the other.
    fn connected(core: &mut Core, flow: &mut Flow) -> Fate {
        let failed = match flow.socket.as_ref().map(|s| (s.take_error(), s.peer_addr())) {
            Some((Ok(None), Ok(_))) => None,
            Some((Ok(Some(e)) | Err(e), _)) => Some(e),
            // Told too early.
            Some((Ok(None), Err(_))) | None => return flow.pump(core),
        };
        let Some(e) = failed else {
            (flow.phase, flow.rto_at) = (Phase::SynReceived, None);
            flow.send_syn(core);
            return flow.pump(core);
        };
        tracing::debug!("{:?}: {e}", flow.key);
        if Self::ask_next(core, flow) {
            return flow.pump(core);
        }
        match Unreachable::from_error(&e) {
            None | Some(Unreachable::Port) => Fate::Reset,
            Some(why) => {
                let seq = flow.rcv_nxt.wrapping_sub(1).to_be_bytes();
                icmp::unreachable_flow(core, flow.key.guest, flow.key.remote, ip::TCP, seq, why);
                Fate::Gone
            }
        }
    }

    /// A flow's time has come.
    pub fn due(&mut self, core: &mut Core, id: Token) {
        if let Some(flow) = self.flows.get_mut(&id) {
            let fate = if flow.asks() && flow.rto_at.is_some_and(|t| t <= core.now) {
                Self::silent(core, flow)
            } else if flow.answer_at.is_some_and(|t| t <= core.now) {
                flow.queued = None;
                flow.answer_at = None;
                if !Self::ask_again(core, flow) && flow.socket.is_none() {
                    Fate::Reset
                } else {
                    flow.pump(core)
                }
            } else {
                flow.due(core)
            };
            self.end(core, id, fate);
        }
        self.children.retain_mut(|c| matches!(c.try_wait(), Ok(None)));
    }

    /// The card has room again.
    pub fn wake(&mut self, core: &mut Core) {
        let blocked: Vec<Token> = self.flows.values().filter(|f| f.blocked).map(|f| f.id).collect();
        for id in blocked {
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            let fate = flow.pump(core);
            self.end(core, id, fate);
        }
    }

    /// The guest has been told that what it sends is too long or does not get there: nothing for TCP, as the host's
    /// own looks after it. Ends a flow, if that is its fate.
    fn end(&mut self, core: &mut Core, id: Token, fate: Fate) {
        if fate == Fate::Live {
            return;
        }
        if fate == Fate::Reset
            && let Some(flow) = self.flows.get_mut(&id)
            && Self::ask_again(core, flow)
        {
            let fate = flow.pump(core);
            return self.end(core, id, fate);
        }
        let Some(mut flow) = self.flows.remove(&id) else { return };
        self.keys.remove(&flow.key);
        if fate == Fate::Reset {
            flow.send_reset(core);
        }
        if fate != Fate::Gone
            && let Some(socket) = &flow.socket
        {
            // Closing it sends RST then.
            let _ = socket.set_linger(Some(Duration::ZERO));
        }
        core.disarm(id, flow.queued);
        core.buffered = core.buffered.saturating_sub(flow.counted);
        if let Some(child) = flow.child.take() {
            // It sees its input end; what is left of it is collected later.
            let _ = flow.socket.as_ref().map(|s| s.shutdown(Shutdown::Both));
            self.children.push(child);
        }
        self.children.retain_mut(|c| matches!(c.try_wait(), Ok(None)));
    }

    /// The flow with a socket that has been idle for longest.
    pub fn oldest(&self) -> Option<(Instant, Token)> {
        self.flows.values().filter(|f| f.socket.is_some()).map(|f| (f.last, f.id)).min()
    }

    /// Closes a flow for want of a descriptor.
    pub fn shed(&mut self, core: &mut Core, id: Token) {
        self.end(core, id, Fate::Reset);
    }

    /// Ends the flow that has been idle for longest if there are too many. One that is over goes first; then, if half
    /// of all are not open yet, the oldest of these, so that a flood of SYNs ends no connection.
    fn make_room(&mut self, core: &mut Core) {
        if self.flows.len() < core.max_flows {
            return;
        }
        let opening = |f: &Flow| matches!(f.phase, Phase::Connecting | Phase::SynSent | Phase::SynReceived);
        let flood = self.flows.values().filter(|f| opening(f)).count() > core.max_flows / 2;
        let oldest = self.flows.values().min_by_key(|f| {
            let class = if f.phase == Phase::TimeWait { 0 } else { 1 + u8::from(!(flood && opening(f))) };
            (class, f.last)
        });
        let Some((id, over)) = oldest.map(|f| (f.id, f.phase == Phase::TimeWait)) else { return };
        if !over {
            let most = core.max_flows;
            core.once("tcp flows", format_args!("the guest has {most} connections: the oldest is closed"));
        }
        self.end(core, id, if over { Fate::Gone } else { Fate::Reset });
    }
}

/// Sends a segment that is as old as one that keeps a connection alive (RFC 9293, 3.8.4). The guest answers with where it
/// is, and that is answered with a reset, as there is no such connection.
pub(super) fn ask(core: &mut Core, lost: &Lost) {
    let h = Header { seq: lost.seq.wrapping_sub(1), ack: lost.ack, flags: ACK, window: 0xffff };
    send(core, Key { guest: lost.guest, remote: lost.remote }, &h);
}

/// Answers a segment that belongs to nothing (RFC 9293, 3.10.7.1).
fn refuse(core: &mut Core, key: Key, s: &Segment<'_>) {
    let h = if s.has(ACK) {
        Header { seq: s.ack, ack: 0, flags: RST, window: 0 }
    } else {
        Header { seq: 0, ack: s.seq.wrapping_add(s.space()), flags: RST | ACK, window: 0 }
    };
    send(core, key, &h);
}

/// Sends a segment that belongs to no flow.
fn send(core: &mut Core, key: Key, h: &Header) {
    let mut bytes = [0; 20];
    header(&mut bytes, key.remote, key.guest, h, &[]);
    ip::fill(key.remote.ip(), key.guest.ip(), ip::TCP, &mut bytes, 16, &[]);
    core.packet(key.remote.ip(), key.guest.ip(), ip::TCP, 64, &bytes);
}

/// What our sockets are: none waits, none delays, and urgent data stays in its place.
fn prepare(socket: &Socket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    if mapped(socket) {
        // None of these is worth a connection.
        let _ = socket.set_tcp_nodelay(true);
        let _ = socket.set_out_of_band_inline(true);
        let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(flow::IDLE));
    }
    Ok(())
}

/// A socket, whether it is connected already, and the program at its other end.
type Made = (Socket, bool, Option<Child>);

/// Begins to connect to the first of the host's name servers from the `first` on that does not fail at once: which it
/// is. None if there are no more.
fn ask_server(core: &mut Core, first: usize) -> Option<io::Result<(Made, usize)>> {
    let mut made = None;
    for (n, to) in core.resolvers.current(core.now).iter().enumerate().skip(first) {
        let dialed = dial((*to).into(), Domain::for_address(*to), Some(Protocol::TCP));
        made = Some(dialed.map(|m| (m, n)));
        if matches!(made, Some(Ok(_))) {
            break;
        }
    }
    made
}

/// Begins to connect; whether it is connected already.
fn dial(to: SockAddr, domain: Domain, protocol: Option<Protocol>) -> io::Result<Made> {
    let socket = Socket::new(domain, Type::STREAM, protocol)?;
    prepare(&socket)?;
    match socket.connect(&to) {
        Ok(()) => Ok((socket, true, None)),
        Err(e) if e.raw_os_error() == Some(EINPROGRESS) => Ok((socket, false, None)),
        Err(e) => Err(e),
    }
}

/// No program has a socket as its standard input here, which [`super::config`] says to the user.
#[cfg(windows)]
fn spawn(_: &str) -> io::Result<(Socket, Child)> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Starts a program with a socket as its standard input and output. It has a process group of its own: some signal
/// theirs when they end (smbd), and what a user types is not theirs.
#[cfg(unix)]
fn spawn(program: &str) -> io::Result<(Socket, Child)> {
    // smbd asks for its peer's address, which a Unix socket has not. Where the loopback is down there is no program
    // that wants to know it.
    let (ours, theirs) =
        crate::sockets::pair().or_else(|_| Socket::pair(Domain::UNIX, Type::STREAM, None))?;
    prepare(&ours)?;
    let theirs = std::os::fd::OwnedFd::from(theirs);
    let child = Command::new("/bin/sh")
        .args(["-c", program])
        .stdin(Stdio::from(theirs.try_clone()?))
        .stdout(Stdio::from(theirs))
        .process_group(0)
        .spawn()?;
    Ok((ours, child))
}
