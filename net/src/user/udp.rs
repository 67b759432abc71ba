//! UDP: each pair of ends is a flow with a connected socket of the host's, so that errors of the network come back to
//! it; a flow that came in by a forward uses the forward's socket. A flow ends when nothing has passed for a while.
use super::core::{Core, FlowCounters, FlowInfo, Reach, Unreachable, kind};
use super::{hosterror, icmp, ip};
use crate::errors::EMSGSIZE;
use crate::reactor::{Interest, Token};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Datagrams that are read in one turn.
const TURN: usize = 64;

/// How long a flow to a port lives without traffic.
fn lifetime(port: u16) -> Duration {
    Duration::from_secs(match port {
        53 => 10,
        123 => 30,
        _ => 240,
    })
}

enum End {
    /// A socket of its own.
    Own { interest: Box<dyn Interest>, socket: Arc<Socket> },
    /// The socket of a forward, and who is at its other end.
    Forward { socket: Arc<Socket>, peer: SocketAddr },
}

/// The query that a name server has not answered, and which one was asked.
struct Query {
    server: usize,
    address: SocketAddr,
    id: Option<[u8; 2]>,
}

struct Flow {
    guest: SocketAddr,
    remote: SocketAddr,
    end: End,
    dns: Option<Query>,
    hops: u8,
    last: Instant,
    queued: Option<Instant>,
    counters: FlowCounters,
}

/// All flows.
#[derive(Default)]
pub(super) struct Udp {
    flows: HashMap<Token, Flow>,
    keys: HashMap<(SocketAddr, SocketAddr), Token>,
    /// By forward and peer.
    peers: HashMap<(Token, SocketAddr), Token>,
    buffer: Vec<u8>,
}

impl Udp {
    pub fn info(&self) -> impl Iterator<Item = FlowInfo> + '_ {
        self.flows.values().map(|f| FlowInfo {
            protocol: "udp",
            guest: f.guest,
            remote: f.remote,
            state: "Open".into(),
            buffered: 0,
            counters: f.counters,
        })
    }

    /// A datagram from the guest that is for nobody here. `original` is the packet from its IP header on.
    pub fn input(
        &mut self,
        core: &mut Core,
        guest: SocketAddr,
        remote: SocketAddr,
        ttl: u8,
        data: &[u8],
        original: &[u8],
    ) {
        if guest.port() == 0 || remote.port() == 0 {
            return;
        }
        let mut known = self.keys.get(&(guest, remote)).copied();
        let id = data.first_chunk::<2>().copied();
        if let Some(token) = known
            && let Some(Flow { dns: Some(query), .. }) = self.flows.get(&token)
        {
            let servers = core.resolvers.current(core.now);
            // The same question again: the next server may know. Or the host has other servers now.
            let again = query.id.is_some() && query.id == id;
            let next = if again { query.server + 1 } else { 0 };
            if again || !servers.contains(&query.address) {
                self.close(core, token);
                known = self.open(core, guest, remote, next, original);
            }
        }
        let Some(token) = known.or_else(|| self.open(core, guest, remote, 0, original)) else { return };
        let Some(flow) = self.flows.get_mut(&token) else { return };
        flow.last = core.now;
        flow.counters.segments_from += 1;
        flow.counters.from_guest += data.len() as u64;
        if let Some(query) = &mut flow.dns {
            query.id = id;
        }
        let sent = match &flow.end {
            End::Own { socket, .. } => {
                let hops = ttl.saturating_sub(1).max(1);
                if hops != flow.hops && flow.dns.is_none() {
                    // So that the guest's traceroute sees what is on the way.
                    let _ = match remote.ip() {
                        IpAddr::V4(_) => socket.set_ttl_v4(hops.into()),
                        IpAddr::V6(_) => socket.set_unicast_hops_v6(hops.into()),
                    };
                    flow.hops = hops;
                }
                // An error that is still pending is told by the first call, which then has not sent.
                socket.send(data).or_else(|e| match e.kind() {
                    ErrorKind::WouldBlock => Err(e),
                    _ if e.raw_os_error() == Some(EMSGSIZE) => Err(e),
                    _ => socket.send(data),
                })
            }
            End::Forward { socket, peer } => socket.send_to(data, &(*peer).into()),
        };
        if let Err(e) = sent {
            let why = if e.raw_os_error() == Some(EMSGSIZE) {
                let End::Own { socket, .. } = &flow.end else { return };
                hosterror::path_mtu(socket, remote.is_ipv6()).map(Unreachable::TooBig)
            } else {
                Unreachable::from_datagram(&e)
            };
            if let Some(why) = why.filter(|_| flow.dns.is_none()) {
                icmp::unreachable(core, guest.ip(), why, original);
            }
        }
    }

    fn open(
        &mut self,
        core: &mut Core,
        guest: SocketAddr,
        remote: SocketAddr,
        server: usize,
        original: &[u8],
    ) -> Option<Token> {
        let mut to = match core.reach(remote) {
            Reach::Host(to) => to,
            Reach::Refused(Unreachable::Prohibited) => return None,
            Reach::Refused(why) => {
                icmp::unreachable(core, guest.ip(), why, original);
                return None;
            }
        };
        let is_dns = core.is_dns(remote.ip());
        if is_dns {
            let servers = core.resolvers.current(core.now);
            to = servers[server % servers.len()];
        }
        self.make_room(core);
        let token = core.token(kind::UDP);
        let made = (|| {
            let socket = Arc::new(Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?);
            socket.set_nonblocking(true)?;
            hosterror::enable(&socket, to.is_ipv6());
            socket.connect(&to.into())?;
            let interest = core.reactor.register(&socket, token)?;
            interest.want(true, false)?;
            Ok::<_, std::io::Error>(End::Own { interest, socket })
        })();
        match made {
            Ok(end) => {
                let dns = is_dns.then_some(Query { server, address: to, id: None });
                self.insert(core, token, guest, remote, end, dns);
                Some(token)
            }
            Err(e) if core.starves(&e) => None,
            Err(e) => {
                core.once("udp", format_args!("{remote}: {e}"));
                if let Some(why) = Unreachable::from_error(&e).filter(|_| !is_dns) {
                    icmp::unreachable(core, guest.ip(), why, original);
                }
                None
            }
        }
    }

    fn insert(
        &mut self,
        core: &mut Core,
        token: Token,
        guest: SocketAddr,
        remote: SocketAddr,
        end: End,
        dns: Option<Query>,
    ) {
        let mut queued = None;
        core.arm(token, &mut queued, Some(core.now + lifetime(remote.port())));
        let counters = FlowCounters::default();
        let flow = Flow { guest, remote, end, dns, hops: 64, last: core.now, queued, counters };
        self.keys.insert((guest, remote), token);
        self.flows.insert(token, flow);
    }

    /// A datagram has come to a forward.
    pub fn inbound(
        &mut self,
        core: &mut Core,
        forward: Token,
        socket: &Arc<Socket>,
        guest: SocketAddr,
        peer: SocketAddr,
        data: &[u8],
    ) {
        let token = match self.peers.get(&(forward, peer)) {
            Some(token) => *token,
            None => {
                self.make_room(core);
                let mut remote = SocketAddr::new(core.seen_as(peer.ip(), guest.ip()), peer.port());
                while self.keys.contains_key(&(guest, remote)) {
                    remote.set_port(1024 + (core.random() % 64_000) as u16);
                }
                let token = core.token(kind::UDP);
                let end = End::Forward { socket: socket.clone(), peer };
                self.insert(core, token, guest, remote, end, None);
                self.peers.insert((forward, peer), token);
                token
            }
        };
        let Some(flow) = self.flows.get_mut(&token) else { return };
        flow.last = core.now;
        flow.counters.segments_to += 1;
        flow.counters.to_guest += data.len() as u64;
        core.datagram(flow.remote, flow.guest, data);
    }

    /// A flow's socket is ready.
    pub fn ready(&mut self, core: &mut Core, token: Token) {
        let Some(flow) = self.flows.get_mut(&token) else { return };
        let End::Own { interest, socket } = &flow.end else { return };
        let (guest, remote) = (flow.guest, flow.remote);
        self.buffer.resize(65_536, 0);
        let mut failed = None;
        for _ in 0..TURN {
            match (&**socket).read(&mut self.buffer) {
                Ok(n) => {
                    flow.last = core.now;
                    flow.counters.segments_to += 1;
                    flow.counters.to_guest += n as u64;
                    if let Some(query) = &mut flow.dns {
                        query.id = None;
                    }
                    core.datagram(remote, guest, &self.buffer[..n]);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => failed = Some(e),
            }
        }
        let told = hosterror::take(socket);
        if flow.dns.is_none() {
            let len = [0, 8, 0, 0];
            if told.is_empty()
                && let Some(why) = failed.as_ref().and_then(Unreachable::from_datagram)
            {
                icmp::unreachable_flow(core, guest, remote, ip::UDP, len, why);
            }
            for told in told {
                let from = core.seen_as(told.from.unwrap_or(remote.ip()), guest.ip());
                let quote = icmp::quote(core, guest, remote, ip::UDP, len);
                icmp::error(core, from, guest.ip(), told.why, &quote);
            }
        }
        let _ = interest.want(true, false);
    }

    /// A flow's time has come.
    pub fn due(&mut self, core: &mut Core, token: Token) {
        let Some(flow) = self.flows.get_mut(&token) else { return };
        flow.queued = None;
        let end = flow.last + lifetime(flow.remote.port());
        if end <= core.now {
            self.close(core, token);
        } else {
            core.arm(token, &mut flow.queued, Some(end));
        }
    }

    /// The flow with a socket of its own that has been idle for longest.
    pub fn oldest(&self) -> Option<(Instant, Token)> {
        let own = self.flows.iter().filter(|(_, f)| matches!(f.end, End::Own { .. }));
        own.map(|(token, f)| (f.last, *token)).min()
    }

    pub fn close(&mut self, core: &mut Core, token: Token) {
        let Some(flow) = self.flows.remove(&token) else { return };
        core.disarm(token, flow.queued);
        self.keys.remove(&(flow.guest, flow.remote));
        self.peers.retain(|_, t| *t != token);
    }

    fn make_room(&mut self, core: &mut Core) {
        if self.flows.len() < core.max_flows {
            return;
        }
        if let Some(oldest) = self.flows.iter().min_by_key(|(_, f)| f.last).map(|(t, _)| *t) {
            let most = core.max_flows;
            core.once("udp flows", format_args!("the guest has {most} UDP flows: the oldest is closed"));
            self.close(core, oldest);
        }
    }
}
