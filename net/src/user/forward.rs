//! Ports of the host's that lead to a guest (`hostfwd`).
use super::config::HostForward;
use super::core::{Core, kind};
use super::tcp::Tcp;
use super::udp::Udp;
use crate::reactor::{Interest, Token};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Connections or datagrams that are taken in one turn.
const TURN: usize = 64;
/// When a socket that gives no connection is tried again.
const AGAIN: Duration = Duration::from_millis(200);

struct Listener {
    interest: Box<dyn Interest>,
    socket: Arc<Socket>,
    token: Token,
    forward: HostForward,
    /// When it is tried again, after the host had no descriptor for a connection.
    queued: Option<Instant>,
}

/// All forwards.
#[derive(Default)]
pub(super) struct Forwards {
    listeners: Vec<Listener>,
    buffer: Vec<MaybeUninit<u8>>,
}

impl Forwards {
    /// Opens a port; which one, if the host was to choose.
    pub fn add(&mut self, core: &mut Core, mut forward: HostForward) -> io::Result<SocketAddr> {
        let (kind_, protocol) =
            if forward.udp { (Type::DGRAM, Protocol::UDP) } else { (Type::STREAM, Protocol::TCP) };
        let socket = Socket::new(Domain::for_address(forward.host), kind_, Some(protocol))?;
        socket.set_nonblocking(true)?;
        // On Windows it would let another program have the port too.
        if !forward.udp && cfg!(unix) {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&forward.host.into())?;
        if !forward.udp {
            socket.listen(128)?;
        }
        if let Some(bound) = socket.local_addr()?.as_socket() {
            forward.host = bound;
        }
        let (socket, token) = (Arc::new(socket), core.token(kind::LISTEN));
        let interest = core.reactor.register(&socket, token)?;
        interest.want(true, false)?;
        let at = forward.host;
        let name = if forward.udp { "udp" } else { "tcp" };
        tracing::info!("user network: {name} {at} leads to the guest's {}", forward.guest);
        self.listeners.push(Listener { interest, socket, token, forward, queued: None });
        Ok(at)
    }

    /// Closes a port; whether there was one.
    pub fn remove(&mut self, udp: bool, host: SocketAddr) -> bool {
        let before = self.listeners.len();
        self.listeners.retain(|l| l.forward.udp != udp || l.forward.host != host);
        self.listeners.len() != before
    }

    /// What there is, with the ports that the host has chosen.
    pub fn all(&self) -> Vec<HostForward> {
        self.listeners.iter().map(|l| l.forward.clone()).collect()
    }

    /// A forward may have a descriptor again.
    pub fn due(&mut self, token: Token) {
        if let Some(l) = self.listeners.iter_mut().find(|l| l.token == token) {
            l.queued = None;
            let _ = l.interest.want(true, false);
        }
    }

    /// A forward's socket is ready.
    pub fn ready(&mut self, core: &mut Core, token: Token, tcp: &mut Tcp, udp: &mut Udp) {
        let Some(l) = self.listeners.iter_mut().find(|l| l.token == token) else { return };
        let guest = SocketAddr::new(core.guest(l.forward.guest.ip()), l.forward.guest.port());
        for _ in 0..TURN {
            let failed = if l.forward.udp {
                self.buffer.resize(65_536, MaybeUninit::uninit());
                match l.socket.recv_from(&mut self.buffer) {
                    Ok((n, peer)) => {
                        // SAFETY: the call has filled in that many bytes.
                        let data =
                            unsafe { std::slice::from_raw_parts(self.buffer.as_ptr().cast::<u8>(), n) };
                        if let Some(peer) = peer.as_socket() {
                            udp.inbound(core, token, &l.socket, guest, peer, data);
                        }
                        continue;
                    }
                    Err(e) => e,
                }
            } else {
                match l.socket.accept() {
                    Ok((socket, peer)) => {
                        if let Some(peer) = peer.as_socket() {
                            tcp.accept(core, socket, guest, peer);
                        }
                        continue;
                    }
                    Err(e) => e,
                }
            };
            match failed.kind() {
                ErrorKind::WouldBlock => break,
                // One of a connection that has gone again, or of an earlier answer.
                ErrorKind::Interrupted | ErrorKind::ConnectionAborted | ErrorKind::ConnectionRefused => {}
                ErrorKind::ConnectionReset if cfg!(windows) => {}
                _ if core.starves(&failed) => break,
                _ => {
                    // The connection stays, and so would the loop be called again at once.
                    core.once("forward", format_args!("{}: {failed}", l.forward.host));
                    let next = core.now + AGAIN;
                    core.arm(token, &mut l.queued, Some(next));
                    return;
                }
            }
        }
        let _ = l.interest.want(true, false);
    }
}
