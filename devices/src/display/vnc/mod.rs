//! A VNC server (RFB 3.3 to 3.8): a screen, a keyboard and a pointer for clients of the network.
//!
//! ```text
//!   clients <--sockets--> event loop: handshake, messages --> Input
//!                                \__ requests __
//!   mynah-vnc, a thread: waits for a request, refreshes the screen, encodes what changed, 30 times a second at most
//! ```
//!
//! Encodings: raw, ZRLE and Tight (without JPEG), changes of the desktop's size, QEMU's extended key events and its
//! relative pointer. Security: none, or the password of VNC. A second address may take WebSockets, for browsers.
//! Nothing is drawn while no client waits for an update. Not there: TLS and SASL, Hextile, the clipboard, sound,
//! pointer shapes.
//!
//! Bytes of a client are hostile: each connection has bounded buffers (`client`), and there are so many connections at
//! most; the oldest that has not come through its handshake makes room for another.
//!
//! Locks: `clients`, then a client's own. Input is told with a client's lock held: it must not call back.
//!
//! Source: RFC 6143.
use super::input::Input;
use super::layout::Layout;
use super::{Display, Screen};
use crate::chardev::ChardevError;
use crate::chardev::socket::{self, Listener};
use crate::chardev::spec::Address;
use crate::event_loop::{Descriptor, EventLoop, Registration, Source, TimedSource, Timer};
use client::Client;
use parking_lot::{Condvar, Mutex};
use std::io;
use std::sync::{Arc, OnceLock, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

mod auth;
mod client;
mod encode;
mod keys;
mod protocol;
mod sha1;
#[cfg(test)]
mod tests;
mod tight;
mod websocket;

/// Between two looks at the screen.
const FRAME: Duration = Duration::from_millis(33);
/// Connections at a time.
const MOST_CLIENTS: usize = 16;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum VncError {
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] ChardevError),
    /// The host refuses a thread, or to wait for the socket.
    #[error("VNC on {address}: {cause}")]
    Host {
        /// Where it was to listen.
        address: String,
        /// The host's reason.
        cause: io::Error,
    },
}

/// What is chosen of a server.
#[derive(Clone, Debug)]
pub struct VncOptions {
    /// Where it listens.
    pub address: Address,
    /// Clients need a password.
    pub needs_password: bool,
    /// The password, of which eight characters count; while there is none nobody comes in, if one is needed.
    pub password: Option<String>,
    /// Where it listens for WebSockets.
    pub websocket: Option<Address>,
    /// Ports behind its own that it may take if that one is in use.
    pub more_ports: u16,
    /// A client that wants the screen for itself shares it all the same.
    pub shared: bool,
    /// The keyboard's layout, for clients that send no scan codes.
    pub layout: &'static Layout,
    /// The desktop's name.
    pub name: String,
}

struct Clients {
    all: Vec<Arc<Client>>,
    ended: bool,
}

/// Who comes in.
struct Auth {
    needed: bool,
    password: Option<String>,
    /// The password lets in until then.
    expires: Option<SystemTime>,
}

impl Auth {
    /// The password that lets in now.
    fn password(&self) -> Option<&str> {
        self.password.as_deref().filter(|_| self.expires.is_none_or(|at| SystemTime::now() < at))
    }
}

/// An address on which clients come.
struct Door {
    server: Weak<Server>,
    listener: Arc<Listener>,
    at: OnceLock<Registration>,
    /// A client has come who could not be let in: the listener stays ready, and is asked again later.
    later: Timer,
    websocket: bool,
}

impl Door {
    fn open(server: &Arc<Server>, listener: Arc<Listener>, websocket: bool) -> io::Result<Arc<Self>> {
        let door = Arc::new_cyclic(|me: &Weak<Self>| Self {
            server: Arc::downgrade(server),
            listener: listener.clone(),
            at: OnceLock::new(),
            later: server.events.timer(me.clone()),
            websocket,
        });
        let descriptor: Descriptor = listener;
        let source: Weak<Self> = Arc::downgrade(&door);
        let at = server.events.add(&descriptor, source, true, false)?;
        let _ = door.at.set(at);
        door.listen_on();
        Ok(door)
    }

    fn listen_on(&self) {
        if let Some(at) = self.at.get() {
            let _ = at.want(true, false);
        }
    }
}

impl Source for Door {
    fn ready(&self, _: bool, _: bool) {
        match self.listener.accept(true) {
            Ok(peer) => {
                if let Some(server) = self.server.upgrade() {
                    server.come(peer, self.websocket);
                }
            }
            Err(e) => {
                tracing::debug!("vnc: accept: {e}");
                if socket::stays(&e) {
                    return self.later.set(Some(Instant::now() + socket::LATER));
                }
            }
        }
        self.listen_on();
    }
}

impl TimedSource for Door {
    fn due(&self) {
        self.listen_on();
    }
}

/// What is to be told of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VncInfo {
    /// Where it listens, and whether for WebSockets.
    pub addresses: Vec<(String, bool)>,
    /// Clients need a password.
    pub needs_password: bool,
    /// Clients that have come through their handshake.
    pub clients: usize,
}

/// What is done to a server while it runs; it does not keep it.
#[derive(Clone)]
pub struct VncControl(Weak<Server>);

impl VncControl {
    /// Lets in whoever has this password, from now on; nobody without one.
    ///
    /// # Errors
    /// The server has gone, or lets everybody in.
    pub fn set_password(&self, password: Option<String>) -> Result<(), &'static str> {
        self.change(|auth| auth.password = password)
    }

    /// The password lets in until then; for good without a time.
    ///
    /// # Errors
    /// As of [`VncControl::set_password`].
    pub fn expire_password(&self, at: Option<SystemTime>) -> Result<(), &'static str> {
        self.change(|auth| auth.expires = at)
    }

    /// What is to be told of the server, while there is one.
    pub fn info(&self) -> Option<VncInfo> {
        let server = self.0.upgrade()?;
        let needs_password = server.auth.lock().needed;
        Some(VncInfo { addresses: server.addresses.clone(), needs_password, clients: server.running() })
    }

    fn change(&self, what: impl FnOnce(&mut Auth)) -> Result<(), &'static str> {
        let server = self.0.upgrade().ok_or("there is no VNC server")?;
        let mut auth = server.auth.lock();
        if !auth.needed {
            return Err("the VNC server lets everybody in (-vnc ...,password=on asks for one)");
        }
        what(&mut auth);
        Ok(())
    }
}

/// What the thread, the loop and the clients share.
struct Server {
    display: Arc<dyn Display>,
    input: Arc<dyn Input>,
    events: Arc<EventLoop>,
    auth: Mutex<Auth>,
    /// Where it listens, and whether for WebSockets.
    addresses: Vec<(String, bool)>,
    name: String,
    layout: &'static Layout,
    shared: bool,
    clients: Mutex<Clients>,
    /// Somebody wants an update, or the server ends.
    wake: Condvar,
}

/// Listens at an address, or at the first of so many ports behind it that is free.
fn listen(address: &mut Address, more: u16) -> Result<Arc<Listener>, ChardevError> {
    let mut left = more;
    loop {
        match Listener::bind(address) {
            Err(ChardevError::AddressInUse { .. }) if left > 0 => {
                let Address::Tcp { port, .. } = address else {
                    left = 0;
                    continue;
                };
                match port.checked_add(1) {
                    Some(next) => (*port, left) = (next, left - 1),
                    None => left = 0,
                }
            }
            other => return other.map(Arc::new),
        }
    }
}

/// A server, until it is dropped.
pub struct VncServer {
    server: Arc<Server>,
    thread: Option<JoinHandle<()>>,
    address: Address,
    websocket: Option<Address>,
    _doors: Vec<Arc<Door>>,
}

impl VncServer {
    /// Shows `display` to whoever connects, and gives what they do to `input`.
    ///
    /// # Errors
    /// The address is none that it can listen on.
    pub fn start(
        options: &VncOptions,
        display: Arc<dyn Display>,
        input: Arc<dyn Input>,
        events: Arc<EventLoop>,
    ) -> Result<Self, VncError> {
        let mut address = options.address.clone();
        let listener = listen(&mut address, options.more_ports)?;
        let mut doors = vec![(listener, false)];
        let mut websocket = options.websocket.clone();
        if let Some(address) = &mut websocket {
            doors.push((Arc::new(Listener::bind(address)?), true));
        }
        let host = |cause| VncError::Host { address: address.to_string(), cause };
        let auth = Auth { needed: options.needs_password, password: options.password.clone(), expires: None };
        let server = Arc::new(Server {
            display,
            input,
            events,
            auth: Mutex::new(auth),
            addresses: [(Some(&address), false), (websocket.as_ref(), true)]
                .into_iter()
                .filter_map(|(address, websocket)| Some((address?.to_string(), websocket)))
                .collect(),
            name: options.name.clone(),
            layout: options.layout,
            shared: options.shared,
            clients: Mutex::new(Clients { all: Vec::new(), ended: false }),
            wake: Condvar::new(),
        });
        let open = |(listener, websocket): (Arc<Listener>, bool)| {
            listener.set_nonblocking()?;
            Door::open(&server, listener, websocket)
        };
        let doors = doors.into_iter().map(open).collect::<io::Result<Vec<_>>>().map_err(host)?;
        let painter = server.clone();
        let thread =
            thread::Builder::new().name("mynah-vnc".into()).spawn(move || painter.paint()).map_err(host)?;
        Ok(Self { server, thread: Some(thread), address, websocket, _doors: doors })
    }

    /// Where it listens; of TCP port 0 the one that was given.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Where it listens for WebSockets, if it does.
    pub fn websocket(&self) -> Option<&Address> {
        self.websocket.as_ref()
    }

    /// What may be done to it while it runs.
    pub fn control(&self) -> VncControl {
        VncControl(Arc::downgrade(&self.server))
    }

    /// Clients that have come through their handshake.
    pub fn clients(&self) -> usize {
        self.server.running()
    }
}

impl Drop for VncServer {
    fn drop(&mut self) {
        let clients = {
            let mut clients = self.server.clients.lock();
            clients.ended = true;
            std::mem::take(&mut clients.all)
        };
        self.server.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        clients.iter().for_each(|c| c.release(&self.server));
    }
}

impl Server {
    fn running(&self) -> usize {
        self.clients.lock().all.iter().filter(|c| c.is_running()).count()
    }

    /// An update is waited for. The lock is taken so that the thread either has seen that or is told.
    fn wake_up(&self) {
        drop(self.clients.lock());
        self.wake.notify_all();
    }

    /// The thread: shows the screen to those who wait for it.
    fn paint(&self) {
        let mut screen = Screen::default();
        let mut clients = self.clients.lock();
        loop {
            while !clients.ended && !clients.all.iter().any(|c| c.wants()) {
                if clients.all.is_empty() {
                    // The memory of a picture that nobody sees.
                    screen = Screen::default();
                }
                self.wake.wait(&mut clients);
            }
            if clients.ended {
                return;
            }
            let all = clients.all.clone();
            drop(clients);
            let damage = self.display.refresh(&mut screen);
            all.iter().for_each(|c| c.update(screen.surface(), &damage));
            drop(all);
            clients = self.clients.lock();
            let until = std::time::Instant::now() + FRAME;
            while !clients.ended && !self.wake.wait_until(&mut clients, until).timed_out() {}
        }
    }

    /// Takes a client off, and closes its connection.
    fn leave(&self, client: &Client) {
        self.clients.lock().all.retain(|c| !std::ptr::eq(&**c, client));
        client.release(self);
    }

    /// One client wants the screen for itself.
    fn leave_others(&self, client: &Client) {
        let others: Vec<_> = {
            let mut clients = self.clients.lock();
            let (stay, go) =
                std::mem::take(&mut clients.all).into_iter().partition(|c| std::ptr::eq(&**c, client));
            clients.all = stay;
            go
        };
        others.iter().for_each(|c| c.release(self));
    }

    fn come(self: &Arc<Self>, peer: Descriptor, websocket: bool) {
        let client = match Client::new(self, peer, websocket) {
            Ok(client) => client,
            Err(e) => return tracing::warn!("vnc: a client cannot be waited for: {e}"),
        };
        let mut clients = self.clients.lock();
        if clients.all.len() >= MOST_CLIENTS {
            let Some(strange) = clients.all.iter().position(|c| !c.is_running()) else {
                return tracing::warn!("vnc: a client is turned away: there are {MOST_CLIENTS}");
            };
            clients.all.remove(strange);
        }
        if !clients.ended {
            clients.all.push(client);
        }
    }
}
