//! The machine's networks: what is behind its cards (`-netdev`, `-nic`), and the cards' links.
use super::guestfwd::Lines;
use crate::config::{Config, FilterKind, LogItem, NetFilter, NetKind, Netdev};
use anyhow::{Context, bail};
use mynah_devices::chardev::Chardev;
use mynah_devices::device::{Device, Invalid, Registry, Reset};
use mynah_devices::event_loop::{EventLoop, Registration, Source, TimedSource, Timer};
use mynah_devices::net::Link;
use mynah_net::fault::{Alarm, Fault, Line};
use mynah_net::log::Log;
use mynah_net::reactor::{Handler, Interest, Reactor, Token};
use mynah_net::sockets::{Dgram, Stream};
use mynah_net::tap::{Origin, TapConfig};
use mynah_net::user::{self, Behind, Lost};
use mynah_net::watch::Watch;
use mynah_net::{Backend, Capture, Hub, Tap, User};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use socket2::Socket;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

/// All back ends of a machine by name, and its cards' links.
#[derive(Default)]
pub struct Nets {
    all: Vec<Net>,
    /// Those that a card has taken.
    taken: Mutex<BTreeSet<String>>,
    /// The cards' links, in the order in which they were plugged in.
    pub links: Vec<Arc<Link>>,
}

/// A back end.
pub struct Net {
    /// Its name, `id=`.
    pub id: String,
    /// What it is.
    pub kind: NetKind,
    /// What a card sees: the back end, or the filter that is the furthest from it.
    front: Arc<dyn Backend>,
    /// The NAT, if it is one.
    pub user: Option<Arc<User>>,
}

impl Nets {
    /// Makes the back ends that `cfg` names.
    ///
    /// # Errors
    /// The host does not give what one needs.
    pub fn open(cfg: &Config, events: &Arc<EventLoop>) -> anyhow::Result<Self> {
        let mut hubs: BTreeMap<u32, Arc<Hub>> = BTreeMap::new();
        let mut all: Vec<Net> = Vec::new();
        for Netdev { id, shown, kind } in &cfg.netdevs {
            let mut made = kind.clone();
            let (backend, user): (Arc<dyn Backend>, _) = match kind {
                NetKind::User(config) => {
                    let reactor = LoopReactor::new(events);
                    let user =
                        User::new((**config).clone(), reactor.clone()).with_context(|| shown.clone())?;
                    reactor.serve(&user);
                    tell_chosen(cfg, config, &user);
                    (user.clone(), Some(user))
                }
                NetKind::Stream(config) => {
                    let reactor = LoopReactor::new(events);
                    let made = Stream::new(config.clone(), reactor.clone());
                    let stream = made.with_context(|| format!("{shown}: {}", config.address))?;
                    reactor.serve(&stream);
                    (stream, None)
                }
                NetKind::Dgram(config) => {
                    let reactor = LoopReactor::new(events);
                    let theirs: Arc<dyn Reactor> = reactor.clone();
                    let dgram = Dgram::new(config, &theirs).with_context(|| shown.clone())?;
                    reactor.serve(&dgram);
                    (dgram, None)
                }
                NetKind::Tap(config) => {
                    let reactor = LoopReactor::new(events);
                    let theirs: Arc<dyn Reactor> = reactor.clone();
                    let tap = Tap::new(config, &theirs).with_context(|| shown.clone())?;
                    reactor.serve(&tap);
                    // The host may have chosen it.
                    if let NetKind::Tap(TapConfig { origin: Origin::Open { ifname, .. }, .. }) = &mut made {
                        *ifname = tap.name().into();
                    }
                    (tap, None)
                }
                NetKind::Hubport { hub, .. } => (hubs.entry(*hub).or_default().port(), None),
            };
            let mut front = backend;
            for filter in cfg.net_filters.iter().filter(|f| f.netdev == *id) {
                front = put_in_front(filter, front, events)?;
            }
            if cfg.log.has(LogItem::Net) {
                front = Watch::new(front, Log::new(id, super::log_out(cfg)?));
            }
            all.push(Net { id: id.clone(), kind: made, front, user });
        }
        let nets = Self { all, ..Self::default() };
        let mut nats = BTreeSet::new();
        for net in &nets.all {
            let NetKind::Hubport { hub, netdev: Some(id) } = &net.kind else { continue };
            let Some(hub_of) = hubs.get(hub) else { continue };
            let backend = nets.take(id);
            let backend = backend
                .with_context(|| format!("id={}: netdev={id}: there is none, or it is used", net.id))?;
            if nets.find(id).is_some_and(|n| n.user.is_some()) && !nats.insert(hub) {
                bail!(
                    "netdev={id}: hub {hub} has a NAT already: a second one would answer the same questions"
                );
            }
            hub_of.join(&backend);
        }
        Ok(nets)
    }

    /// Has the character devices that forwards name behind them.
    ///
    /// # Errors
    /// There is no such device.
    pub fn lead_to(
        &self,
        device: impl Fn(&str) -> Option<Arc<dyn Chardev>>,
        events: &Arc<EventLoop>,
    ) -> anyhow::Result<()> {
        for net in &self.all {
            let (NetKind::User(config), Some(user)) = (&net.kind, &net.user) else { continue };
            let mut devices = BTreeMap::new();
            for forward in &config.guest_forwards {
                if let Behind::Chardev(id) = &forward.to {
                    let found = device(id);
                    let found =
                        found.with_context(|| format!("guestfwd: there is no -chardev with id={id}"))?;
                    devices.insert(id.clone(), found);
                }
            }
            if !devices.is_empty() {
                user.set_dial(Arc::new(Lines::new(devices, events)));
            }
        }
        Ok(())
    }

    /// Enters what is to be saved.
    pub fn plug(&self, devices: &Registry) {
        for net in &self.all {
            if let Some(user) = &net.user {
                devices.plug("network", net.id.clone(), Arc::new(Nat(user.clone())));
            }
        }
    }

    /// The back end of this name, for the first card that asks for it.
    pub fn take(&self, id: &str) -> Option<Arc<dyn Backend>> {
        let net = self.find(id)?;
        self.taken.lock().insert(id.into()).then(|| net.front.clone())
    }

    /// The back end of this name.
    pub fn find(&self, id: &str) -> Option<&Net> {
        self.all.iter().find(|n| n.id == id)
    }

    /// All of them.
    pub fn all(&self) -> &[Net] {
        &self.all
    }

    /// The card that has the back end of this name.
    pub fn card_of(&self, id: &str) -> Option<&Arc<Link>> {
        self.links.iter().find(|l| l.netdev() == Some(id))
    }

    /// The card of this name, or the one that is in front of the back end of this name.
    pub fn link(&self, name: &str) -> Option<&Arc<Link>> {
        self.links.iter().find(|l| l.name() == name).or_else(|| self.card_of(name))
    }
}

/// A NAT as a part of the machine: what it knows of its guests is saved. Connections end in this host's sockets: a
/// restored guest is told that they are reset.
pub struct Nat(pub Arc<User>);

/// What is saved of a NAT.
#[derive(Serialize, Deserialize)]
pub struct NatV2 {
    /// Ethernet addresses and what they have leased.
    leases: Vec<([u8; 6], [u8; 4])>,
    /// The address that was leased last.
    last: Option<[u8; 4]>,
    /// Connections that guests know of.
    connections: Vec<ConnectionV1>,
}

/// A connection: addresses with IPv4's in IPv6's form.
#[derive(Serialize, Deserialize)]
pub struct ConnectionV1 {
    mac: [u8; 6],
    guest: ([u8; 16], u16),
    remote: ([u8; 16], u16),
    seq: u32,
    ack: u32,
}

impl From<Lost> for ConnectionV1 {
    fn from(Lost { mac, guest, remote, seq, ack }: Lost) -> Self {
        let end = |at: SocketAddr| {
            let ip = match at.ip() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            (ip.octets(), at.port())
        };
        Self { mac, guest: end(guest), remote: end(remote), seq, ack }
    }
}

impl From<ConnectionV1> for Lost {
    fn from(ConnectionV1 { mac, guest, remote, seq, ack }: ConnectionV1) -> Self {
        let end = |(ip, port): ([u8; 16], u16)| SocketAddr::new(IpAddr::from(ip).to_canonical(), port);
        Self { mac, guest: end(guest), remote: end(remote), seq, ack }
    }
}

impl Device for Nat {
    type State = NatV2;
    const KIND: &'static str = "user";
    const VERSION: u16 = 2;

    /// A guest that is reset keeps its lease.
    fn reset(&self, _: Reset) {}

    fn save(&self) -> NatV2 {
        let mut leases: Vec<_> = self.0.leases().into_iter().map(|(mac, at)| (mac, at.octets())).collect();
        leases.sort_unstable();
        let last = match self.0.last_lease() {
            Some(IpAddr::V4(at)) => Some(at.octets()),
            _ => None,
        };
        let connections = self.0.connections().into_iter().map(Into::into).collect();
        NatV2 { leases, last, connections }
    }

    fn restore(&self, NatV2 { leases, last, connections }: NatV2) -> Result<(), Invalid> {
        let leases: Vec<_> = leases.into_iter().map(|(mac, at)| (mac, at.into())).collect();
        let lost: Vec<Lost> = connections.into_iter().map(Into::into).collect();
        if lost.iter().any(|l| l.guest.is_ipv4() != l.remote.is_ipv4()) {
            return Err(Invalid("a connection"));
        }
        self.0.restore(&leases, last.map(|at| IpAddr::V4(at.into())), &lost);
        Ok(())
    }
}

/// A filter with what is behind it.
fn put_in_front(
    filter: &NetFilter,
    behind: Arc<dyn Backend>,
    events: &Arc<EventLoop>,
) -> anyhow::Result<Arc<dyn Backend>> {
    Ok(match &filter.kind {
        FilterKind::Dump { file, most } => {
            let shown = || format!("-object filter-dump,id={}: {}", filter.id, file.display());
            // Without a buffer: whoever looks at it sees what has passed.
            let out = File::create(file).with_context(shown)?;
            Capture::in_front(behind, out, *most).with_context(shown)?
        }
        FilterKind::Fault(faults) => {
            let fault = Fault::new(*faults, behind);
            let late = Arc::new(Late(Arc::downgrade(&fault)));
            let owner: Arc<dyn TimedSource> = late.clone();
            fault
                .set_alarm(Arc::new(LoopAlarm { timer: events.timer(Arc::downgrade(&owner)), _owner: late }));
            Arc::new(Line(fault))
        }
    })
}

/// Whose frames are late.
struct Late(Weak<Fault>);

impl TimedSource for Late {
    fn due(&self) {
        if let Some(fault) = self.0.upgrade() {
            fault.due();
        }
    }
}

struct LoopAlarm {
    timer: Timer,
    /// The loop holds it weakly.
    _owner: Arc<Late>,
}

impl Alarm for LoopAlarm {
    fn set(&self, deadline: Option<Instant>) {
        self.timer.set(deadline);
    }
}

/// Says which ports the host has chosen.
fn tell_chosen(cfg: &Config, wanted: &user::Config, user: &User) {
    for (wanted, open) in wanted.host_forwards.iter().zip(user.forwards()) {
        if wanted.host.port() == 0 {
            let kind = if open.udp { "udp" } else { "tcp" };
            let to = open.guest.port();
            crate::cli::say(
                &cfg.program,
                &format!("hostfwd: {kind} {} leads to the guest's port {to}", open.host),
            );
        }
    }
}

/// The event loop as a back end wants it.
pub(crate) struct LoopReactor {
    events: Arc<EventLoop>,
    served: Arc<Served>,
    timer: Timer,
}

/// Whose sockets and times these are.
#[derive(Default)]
struct Served(OnceLock<Weak<dyn Handler>>);

impl Served {
    fn handler(&self) -> Option<Arc<dyn Handler>> {
        self.0.get().and_then(Weak::upgrade)
    }
}

impl TimedSource for Served {
    fn due(&self) {
        if let Some(handler) = self.handler() {
            handler.due();
        }
    }
}

struct Waiting {
    served: Arc<Served>,
    token: Token,
}

impl Source for Waiting {
    fn ready(&self, readable: bool, writable: bool) {
        if let Some(handler) = self.served.handler() {
            handler.ready(self.token, readable, writable);
        }
    }
}

struct Registered {
    registration: Registration,
    _source: Arc<Waiting>,
}

impl Interest for Registered {
    fn want(&self, read: bool, write: bool) -> io::Result<()> {
        self.registration.want(read, write)
    }
}

impl LoopReactor {
    /// One for a back end that is about to be made.
    pub(crate) fn new(events: &Arc<EventLoop>) -> Arc<Self> {
        let served = Arc::new(Served::default());
        let owner: Arc<dyn TimedSource> = served.clone();
        let timer = events.timer(Arc::downgrade(&owner));
        Arc::new(Self { events: events.clone(), served, timer })
    }

    /// What is ready is told to `handler` from now on.
    pub(crate) fn serve<H: Handler + 'static>(&self, handler: &Arc<H>) {
        let handler: Arc<dyn Handler> = handler.clone();
        let _ = self.served.0.set(Arc::downgrade(&handler));
    }
}

impl Reactor for LoopReactor {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn register(&self, socket: &Arc<Socket>, token: Token) -> io::Result<Box<dyn Interest>> {
        let source = Arc::new(Waiting { served: self.served.clone(), token });
        let told: Arc<dyn Source> = source.clone();
        let descriptor: mynah_devices::event_loop::Descriptor = socket.clone();
        let registration = self.events.add(&descriptor, Arc::downgrade(&told), false, false)?;
        Ok(Box::new(Registered { registration, _source: source }))
    }

    fn set_timer(&self, deadline: Option<Instant>) {
        self.timer.set(deadline);
    }
}
