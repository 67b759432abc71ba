//! A VNC server (RFB 3.3 to 3.8): a screen, a keyboard and a pointer for clients of the network.
//!
//! ```text
//!   clients <--sockets--> event loop: handshake, messages --> Input
//!                                \__ requests __
//!   mynah-vnc, a thread: waits for a request, refreshes the screen, encodes what changed, 30 times a second at most
//! ```
//!
//! Encodings: raw and ZRLE, changes of the desktop's size, QEMU's extended key events. Security: none, or the
//! password of VNC. Nothing is drawn while no client waits for an update. Not there: TLS and SASL, Tight and Hextile,
//! the clipboard, sound, WebSockets, pointer shapes.
//!
//! Bytes of a client are hostile: each connection has bounded buffers (`client`), and there are so many connections at
//! most; the oldest that has not come through its handshake makes room for another.
//!
//! Locks: `clients`, then a client's own. Input is told with a client's lock held: it must not call back.
//!
//! Source: RFC 6143.
use super::input::Input;
use super::{Display, Screen};
use crate::chardev::ChardevError;
use crate::chardev::socket::Listener;
use crate::chardev::spec::Address;
use crate::event_loop::{Descriptor, EventLoop, Registration, Source};
use client::Client;
use parking_lot::{Condvar, Mutex};
use std::io;
use std::sync::{Arc, OnceLock, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

mod auth;
mod client;
mod encode;
mod keys;
mod protocol;
#[cfg(test)]
mod tests;

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
    /// Eight characters of it count; none lets everybody in.
    pub password: Option<String>,
    /// The desktop's name.
    pub name: String,
}

struct Clients {
    all: Vec<Arc<Client>>,
    ended: bool,
}

/// What the thread, the loop and the clients share.
struct Server {
    display: Arc<dyn Display>,
    input: Arc<dyn Input>,
    events: Arc<EventLoop>,
    password: Option<String>,
    name: String,
    listener: Arc<Listener>,
    at: OnceLock<Registration>,
    clients: Mutex<Clients>,
    /// Somebody wants an update, or the server ends.
    wake: Condvar,
    me: Weak<Server>,
}

/// A server, until it is dropped.
pub struct VncServer {
    server: Arc<Server>,
    thread: Option<JoinHandle<()>>,
    address: Address,
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
        let listener = Arc::new(Listener::bind(&mut address)?);
        let host = |cause| VncError::Host { address: address.to_string(), cause };
        listener.set_nonblocking().map_err(host)?;
        let server = Arc::new_cyclic(|me| Server {
            display,
            input,
            events: events.clone(),
            password: options.password.clone(),
            name: options.name.clone(),
            listener: listener.clone(),
            at: OnceLock::new(),
            clients: Mutex::new(Clients { all: Vec::new(), ended: false }),
            wake: Condvar::new(),
            me: me.clone(),
        });
        let descriptor: Descriptor = listener;
        let source: Weak<Server> = Arc::downgrade(&server);
        let at = events.add(&descriptor, source, true, false).map_err(host)?;
        let _ = server.at.set(at);
        server.listen_on();
        let painter = server.clone();
        let thread =
            thread::Builder::new().name("mynah-vnc".into()).spawn(move || painter.paint()).map_err(host)?;
        Ok(Self { server, thread: Some(thread), address })
    }

    /// Where it listens; of TCP port 0 the one that was given.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Clients that have come through their handshake.
    pub fn clients(&self) -> usize {
        self.server.clients.lock().all.iter().filter(|c| c.is_running()).count()
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
    /// An update is waited for. The lock is taken so that the thread either has seen that or is told.
    fn wake_up(&self) {
        drop(self.clients.lock());
        self.wake.notify_all();
    }

    fn listen_on(&self) {
        if let Some(at) = self.at.get() {
            let _ = at.want(true, false);
        }
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

    fn come(self: &Arc<Self>, peer: Descriptor) {
        let client = match Client::new(self, peer) {
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

impl Source for Server {
    fn ready(&self, _: bool, _: bool) {
        match self.listener.accept(true) {
            Ok(peer) => {
                if let Some(me) = self.me.upgrade() {
                    me.come(peer);
                }
            }
            Err(e) => tracing::debug!("vnc: accept: {e}"),
        }
        self.listen_on();
    }
}
