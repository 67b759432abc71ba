//! The machine's networks: what is behind its cards (`-netdev`, `-nic`), and the cards' links.
use crate::config::{Config, NetKind, Netdev};
use anyhow::{Context, bail};
use mynah_devices::event_loop::{EventLoop, Registration, Source, TimedSource, Timer};
use mynah_devices::net::Link;
use mynah_net::user::{Interest, Reactor, Token};
use mynah_net::{Backend, Hub, User};
use parking_lot::Mutex;
use socket2::Socket;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
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
    backend: Arc<dyn Backend>,
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
            let (backend, user): (Arc<dyn Backend>, _) = match kind {
                NetKind::User(config) => {
                    let reactor = LoopReactor::new(events);
                    let user =
                        User::new((**config).clone(), reactor.clone()).with_context(|| shown.clone())?;
                    reactor.serve(&user);
                    (user.clone(), Some(user))
                }
                NetKind::Hubport { hub, .. } => (hubs.entry(*hub).or_insert_with(Hub::new).port(), None),
            };
            all.push(Net { id: id.clone(), kind: kind.clone(), backend, user });
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

    /// The back end of this name, for the first card that asks for it.
    pub fn take(&self, id: &str) -> Option<Arc<dyn Backend>> {
        let net = self.find(id)?;
        self.taken.lock().insert(id.into()).then(|| net.backend.clone())
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

/// The event loop as the NAT wants it.
struct LoopReactor {
    events: Arc<EventLoop>,
    served: Arc<Served>,
    timer: Timer,
}

/// Whose sockets and times these are.
#[derive(Default)]
struct Served(OnceLock<Weak<User>>);

impl Served {
    fn user(&self) -> Option<Arc<User>> {
        self.0.get().and_then(Weak::upgrade)
    }
}

impl TimedSource for Served {
    fn due(&self) {
        if let Some(user) = self.user() {
            user.due();
        }
    }
}

struct Waiting {
    served: Arc<Served>,
    token: Token,
}

impl Source for Waiting {
    fn ready(&self, readable: bool, writable: bool) {
        if let Some(user) = self.served.user() {
            user.ready(self.token, readable, writable);
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
    fn new(events: &Arc<EventLoop>) -> Arc<Self> {
        let served = Arc::new(Served::default());
        let owner: Arc<dyn TimedSource> = served.clone();
        let timer = events.timer(Arc::downgrade(&owner));
        Arc::new(Self { events: events.clone(), served, timer })
    }

    /// What is ready is told to `user` from now on.
    fn serve(&self, user: &Arc<User>) {
        let _ = self.served.0.set(Arc::downgrade(user));
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
