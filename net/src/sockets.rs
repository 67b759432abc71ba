//! Back ends that are sockets: a link to another machine, this program's or QEMU's (`-netdev stream`, `dgram`,
//! `socket`), or to passt.
//!
//! On a stream each frame has its length in front of it, 32 bits, big-endian; a datagram is a frame. Frames are plain.
//!
//! Locks: what comes in and what goes out have one each. The first is held while the card is given a frame, the second
//! for a system call only, so that two of these may be on one hub.
use crate::reactor::{Handler, Interest, Reactor, Token};
use crate::{Backend, Frame, MAX_FRAME, Nic};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Bytes that wait for the other side's room; further frames are lost.
const BACKLOG: usize = 1 << 20;
/// Bytes that are read at once.
const CHUNK: usize = 128 << 10;
/// Datagrams that are taken in one turn.
const TURN: usize = 64;

const LISTENER: Token = Token(0);
const PEER: Token = Token(1);

/// Where a socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host, by name or address (all of this one's if empty), and a port.
    Inet(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

/// Both ends of a TCP connection over the loopback, without Nagle's delay.
///
/// # Errors
/// The host's, as where the loopback is down.
pub fn pair() -> io::Result<(Socket, Socket)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let ours = TcpStream::connect_timeout(&listener.local_addr()?, Duration::from_millis(100))?;
    listener.set_nonblocking(true)?;
    // Whoever else has come to that port meanwhile is turned away.
    loop {
        let (theirs, peer) = listener.accept()?;
        if peer == ours.local_addr()? {
            theirs.set_nonblocking(false)?;
            ours.set_nodelay(true)?;
            theirs.set_nodelay(true)?;
            return Ok((ours.into(), theirs.into()));
        }
    }
}

impl Address {
    fn resolve(&self, listen: bool) -> io::Result<(Domain, SockAddr)> {
        match self {
            Self::Unix(_) if cfg!(windows) => Err(io::Error::new(
                ErrorKind::Unsupported,
                "Unix sockets are there on Unix hosts only: say inet, with a host and a port",
            )),
            Self::Unix(path) => Ok((Domain::UNIX, SockAddr::unix(path)?)),
            Self::Inet(host, port) => {
                let host = match host.trim_matches(['[', ']']) {
                    "" if listen => "0.0.0.0",
                    "" => "127.0.0.1",
                    host => host,
                };
                let first = (host, *port).to_socket_addrs()?.next();
                let at = first
                    .ok_or_else(|| io::Error::new(ErrorKind::NotFound, format!("{host} has no address")))?;
                Ok((Domain::for_address(at), at.into()))
            }
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inet(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What a stream is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamConfig {
    /// Where.
    pub address: Address,
    /// Others connect to it, one at a time; or else it connects.
    pub server: bool,
    /// Seconds until it connects again; 0 for never.
    pub reconnect: u32,
}

struct Socketed {
    socket: Arc<Socket>,
    interest: Box<dyn Interest>,
}

#[derive(Default)]
struct Incoming {
    listener: Option<Socketed>,
    /// What has been read and is not whole yet, or waits for the card.
    bytes: Vec<u8>,
    /// The card has had no room.
    blocked: bool,
}

#[derive(Default)]
struct Outgoing {
    peer: Option<Socketed>,
    /// What the socket had no room for.
    rest: VecDeque<u8>,
}

/// A stream to another machine.
pub struct Stream {
    config: StreamConfig,
    reactor: Arc<dyn Reactor>,
    nic: OnceLock<Arc<dyn Nic>>,
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Outgoing>,
}

impl Stream {
    /// Listens or connects.
    ///
    /// # Errors
    /// The address cannot be had, or nobody is there and it is not to be tried again.
    pub fn new(config: StreamConfig, reactor: Arc<dyn Reactor>) -> io::Result<Arc<Self>> {
        let made = Arc::new(Self {
            config,
            reactor,
            nic: OnceLock::new(),
            incoming: Mutex::default(),
            outgoing: Mutex::default(),
        });
        if made.config.server {
            made.listen()?;
        } else if let Err(e) = made.dial() {
            if made.config.reconnect == 0 {
                return Err(e);
            }
            made.later();
        }
        Ok(made)
    }

    /// Whether somebody is at the other end.
    pub fn is_connected(&self) -> bool {
        self.outgoing.lock().peer.is_some()
    }

    fn listen(&self) -> io::Result<()> {
        let (domain, at) = self.config.address.resolve(true)?;
        #[cfg(unix)]
        if let Address::Unix(path) = &self.config.address
            && path.exists()
            && std::os::unix::net::UnixStream::connect(path).is_err()
        {
            // A socket that nobody listens at any more.
            let _ = std::fs::remove_file(path);
        }
        let socket = Socket::new(domain, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // On Windows it would let another program have the address too.
        if domain != Domain::UNIX && cfg!(unix) {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&at)?;
        socket.listen(1)?;
        let listener = self.wait_for(socket, LISTENER, true)?;
        self.incoming.lock().listener = Some(listener);
        Ok(())
    }

    fn dial(&self) -> io::Result<()> {
        let (domain, at) = self.config.address.resolve(false)?;
        let socket = Socket::new(domain, Type::STREAM, None)?;
        // A machine is on this host or next to it.
        socket.connect_timeout(&at, Duration::from_secs(5)).or_else(|e| match domain {
            Domain::UNIX => socket.connect(&at),
            _ => Err(e),
        })?;
        self.connected(socket)
    }

    fn connected(&self, socket: Socket) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        if socket.local_addr()?.is_ipv4() || socket.local_addr()?.is_ipv6() {
            socket.set_tcp_nodelay(true)?;
        }
        let peer = self.wait_for(socket, PEER, true)?;
        self.incoming.lock().bytes.clear();
        let mut outgoing = self.outgoing.lock();
        outgoing.rest.clear();
        outgoing.peer = Some(peer);
        Ok(())
    }

    fn wait_for(&self, socket: Socket, token: Token, read: bool) -> io::Result<Socketed> {
        let socket = Arc::new(socket);
        let interest = self.reactor.register(&socket, token)?;
        interest.want(read, false)?;
        Ok(Socketed { socket, interest })
    }

    fn later(&self) {
        let wait = Duration::from_secs(self.config.reconnect.into());
        self.reactor.set_timer(Some(self.reactor.now() + wait));
    }

    /// The other side has gone.
    fn hang_up(&self, why: &str) {
        tracing::info!("{}: {why}", self.config.address);
        self.incoming.lock().bytes.clear();
        *self.outgoing.lock() = Outgoing::default();
        if !self.config.server && self.config.reconnect > 0 {
            self.later();
        }
    }

    fn accept(&self) {
        let incoming = self.incoming.lock();
        let Some(listener) = &incoming.listener else { return };
        let accepted = listener.socket.accept();
        let _ = listener.interest.want(true, false);
        drop(incoming);
        if let Ok((socket, _)) = accepted {
            // One at a time: another one is sent away.
            if !self.is_connected()
                && let Err(e) = self.connected(socket)
            {
                tracing::warn!("{}: {e}", self.config.address);
            }
        }
    }

    /// Reads, and gives the card what is whole.
    fn input(&self) {
        let Some(peer) = self.outgoing.lock().peer.as_ref().map(|p| p.socket.clone()) else { return };
        let mut incoming = self.incoming.lock();
        let before = incoming.bytes.len();
        if before < 2 * CHUNK {
            incoming.bytes.resize(before + CHUNK, 0);
            let got = (&*peer).read(&mut incoming.bytes[before..]);
            incoming.bytes.truncate(before + *got.as_ref().unwrap_or(&0));
            let why = match got {
                Ok(0) => Some("the other side has closed the link".to_owned()),
                Ok(_) => None,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => None,
                Err(e) => Some(e.to_string()),
            };
            if let Some(why) = why {
                drop(incoming);
                self.hang_up(&why);
                return;
            }
        }
        let sound = self.deliver(&mut incoming);
        let blocked = incoming.blocked;
        drop(incoming);
        if !sound {
            self.hang_up("the other side sends what is no frame");
        } else if !blocked {
            self.want();
        }
    }

    /// Gives the card what is whole; false if a frame cannot be one.
    fn deliver(&self, incoming: &mut Incoming) -> bool {
        let mut at = 0;
        incoming.blocked = false;
        while let Some(head) = incoming.bytes[at..].first_chunk::<4>() {
            let len = u32::from_be_bytes(*head) as usize;
            if len > MAX_FRAME {
                return false;
            }
            let Some(frame) = incoming.bytes.get(at + 4..at + 4 + len) else { break };
            let taken = self.nic.get().is_none_or(|nic| nic.receive(&Frame::new(&[IoSlice::new(frame)])));
            if !taken {
                incoming.blocked = true;
                break;
            }
            at += 4 + len;
        }
        incoming.bytes.drain(..at);
        true
    }

    fn want(&self) {
        let outgoing = self.outgoing.lock();
        if let Some(peer) = &outgoing.peer {
            let _ = peer.interest.want(true, !outgoing.rest.is_empty());
        }
    }

    /// Writes what has waited.
    fn output(&self) {
        let mut outgoing = self.outgoing.lock();
        let Outgoing { peer: Some(peer), rest } = &mut *outgoing else { return };
        while !rest.is_empty() {
            match peer.socket.send(rest.as_slices().0) {
                Ok(n) => _ = rest.drain(..n),
                Err(_) => break,
            }
        }
    }
}

impl Backend for Stream {
    fn connect(&self, nic: Arc<dyn Nic>) {
        let _ = self.nic.set(nic);
    }

    fn send(&self, frame: &Frame<'_>) {
        let len = (frame.len() as u32).to_be_bytes();
        let mut outgoing = self.outgoing.lock();
        let Outgoing { peer: Some(peer), rest } = &mut *outgoing else { return };
        if frame.len() > MAX_FRAME || rest.len() > BACKLOG {
            return;
        }
        let mut done = 0;
        if rest.is_empty() {
            let mut parts = vec![IoSlice::new(&len)];
            parts.extend_from_slice(frame.parts);
            done = match peer.socket.send_vectored(&parts) {
                Ok(n) => n,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
                // The reader finds out why.
                Err(_) => return,
            };
            if done == len.len() + frame.len() {
                return;
            }
        }
        rest.extend(len.iter().skip(done));
        let skip = done.saturating_sub(len.len());
        frame.slices(skip, frame.len()).iter().for_each(|part| rest.extend(*part));
        let _ = peer.interest.want(true, true);
    }

    fn wake(&self) {
        let mut incoming = self.incoming.lock();
        if !incoming.blocked {
            return;
        }
        let sound = self.deliver(&mut incoming);
        let blocked = incoming.blocked;
        drop(incoming);
        if !sound {
            self.hang_up("the other side sends what is no frame");
        } else if !blocked {
            self.want();
        }
    }
}

impl Handler for Stream {
    fn ready(&self, token: Token, read: bool, write: bool) {
        if token == LISTENER {
            return self.accept();
        }
        if write {
            self.output();
        }
        let blocked = self.incoming.lock().blocked;
        if read && !blocked {
            return self.input();
        }
        let outgoing = self.outgoing.lock();
        if let Some(peer) = &outgoing.peer {
            let _ = peer.interest.want(!blocked, !outgoing.rest.is_empty());
        }
    }

    fn due(&self) {
        if !self.is_connected() && self.dial().is_err() {
            self.later();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let (Address::Unix(path), true) = (&self.config.address, self.config.server) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Whom datagrams go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DgramConfig {
    /// A peer, from an address of ours.
    Peer {
        /// Ours.
        local: Option<Address>,
        /// The peer's.
        remote: Address,
    },
    /// All of a group, by an interface with this address.
    Multicast {
        /// The group's address and port.
        group: SocketAddr,
        /// The interface's, or any.
        local: Option<Ipv4Addr>,
    },
}

/// Datagrams to other machines.
pub struct Dgram {
    socket: Arc<Socket>,
    to: SockAddr,
    /// What sends to a group: its datagrams come back, and are known by its address.
    sender: Option<Socket>,
    nic: OnceLock<Arc<dyn Nic>>,
    interest: Mutex<Box<dyn Interest>>,
    /// What the card had no room for is lost, as on a wire; this is what it is read into.
    buffer: Mutex<Vec<MaybeUninit<u8>>>,
    unlink: Option<PathBuf>,
}

impl Dgram {
    /// Opens the socket.
    ///
    /// # Errors
    /// The address cannot be had.
    pub fn new(config: &DgramConfig, reactor: &Arc<dyn Reactor>) -> io::Result<Arc<Self>> {
        let (socket, to, sender, unlink) = match config {
            DgramConfig::Peer { local, remote } => {
                let (domain, to) = remote.resolve(false)?;
                let socket = Socket::new(domain, Type::DGRAM, None)?;
                let mut unlink = None;
                if let Some(local) = local {
                    if let Address::Unix(path) = local {
                        let _ = std::fs::remove_file(path);
                        unlink = Some(path.clone());
                    }
                    socket.bind(&local.resolve(true)?.1)?;
                }
                (socket, to, None, unlink)
            }
            DgramConfig::Multicast { group, local } => {
                let SocketAddr::V4(group) = group else {
                    return Err(io::Error::new(ErrorKind::InvalidInput, "a group of IPv4 is needed"));
                };
                let interface = local.unwrap_or(Ipv4Addr::UNSPECIFIED);
                let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
                socket.set_reuse_address(true)?;
                socket.bind(&SocketAddr::from((*group.ip(), group.port())).into())?;
                socket.join_multicast_v4(group.ip(), &interface)?;
                let sender = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
                sender.set_multicast_loop_v4(true)?;
                if local.is_some() {
                    sender.set_multicast_if_v4(&interface)?;
                }
                let to: SockAddr = SocketAddr::from((*group.ip(), group.port())).into();
                // So that it has an address.
                sender.connect(&to)?;
                sender.set_nonblocking(true)?;
                (socket, to, Some(sender), None)
            }
        };
        socket.set_nonblocking(true)?;
        let socket = Arc::new(socket);
        let interest = reactor.register(&socket, PEER)?;
        interest.want(true, false)?;
        let mut buffer = Vec::new();
        buffer.resize(MAX_FRAME, MaybeUninit::uninit());
        Ok(Arc::new(Self {
            socket,
            to,
            sender,
            nic: OnceLock::new(),
            interest: Mutex::new(interest),
            buffer: Mutex::new(buffer),
            unlink,
        }))
    }
}

impl Backend for Dgram {
    fn connect(&self, nic: Arc<dyn Nic>) {
        let _ = self.nic.set(nic);
    }

    fn send(&self, frame: &Frame<'_>) {
        // What nobody is there for, or has no room, is lost.
        let _ = match &self.sender {
            Some(sender) => sender.send_vectored(frame.parts),
            None => self.socket.send_to_vectored(frame.parts, &self.to),
        };
    }
}

impl Handler for Dgram {
    fn ready(&self, _: Token, _: bool, _: bool) {
        let own = self.sender.as_ref().and_then(|s| s.local_addr().ok()?.as_socket());
        let mut buffer = self.buffer.lock();
        for _ in 0..TURN {
            let (n, from) = match self.socket.recv_from(&mut buffer) {
                Ok(got) => got,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                // An earlier datagram found nobody.
                Err(_) => continue,
            };
            if own.is_some() && from.as_socket() == own {
                continue;
            }
            // SAFETY: the call has filled in that many bytes.
            let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), n) };
            if let Some(nic) = self.nic.get() {
                nic.receive(&Frame::new(&[IoSlice::new(bytes)]));
            }
        }
        let _ = self.interest.lock().want(true, false);
    }

    fn due(&self) {}
}

impl Drop for Dgram {
    fn drop(&mut self) {
        if let Some(path) = &self.unlink {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::Handler;
    use std::time::Instant;

    /// A loop that waits for nothing: the tests turn it.
    struct Hand;
    struct Nothing;
    impl Reactor for Hand {
        fn now(&self) -> Instant {
            Instant::now()
        }
        fn register(&self, _: &Arc<Socket>, _: Token) -> io::Result<Box<dyn Interest>> {
            Ok(Box::new(Nothing))
        }
        fn set_timer(&self, _: Option<Instant>) {}
    }
    impl Interest for Nothing {
        fn want(&self, _: bool, _: bool) -> io::Result<()> {
            Ok(())
        }
    }

    #[derive(Default)]
    struct Card {
        got: Mutex<Vec<Vec<u8>>>,
        room: std::sync::atomic::AtomicUsize,
    }
    impl Nic for Card {
        fn can_receive(&self) -> bool {
            true
        }
        fn receive(&self, frame: &Frame<'_>) -> bool {
            use std::sync::atomic::Ordering::SeqCst;
            if self.room.load(SeqCst) == 0 {
                return false;
            }
            self.room.fetch_sub(1, SeqCst);
            self.got.lock().push(frame.to_vec());
            true
        }
    }

    fn card(backend: &dyn Backend, room: usize) -> Arc<Card> {
        let card = Arc::new(Card::default());
        card.room.store(room, std::sync::atomic::Ordering::SeqCst);
        backend.connect(card.clone());
        card
    }

    fn frame(backend: &dyn Backend, bytes: &[u8]) {
        let (a, b) = bytes.split_at(bytes.len() / 2);
        backend.send(&Frame::new(&[IoSlice::new(a), IoSlice::new(b)]));
    }

    /// Calls `turn` until it says that it is done.
    fn until(mut turn: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !turn() {
            assert!(Instant::now() < end, "nothing comes");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("mynah-{name}-{}", std::process::id()))
    }

    #[test]
    fn frames_cross_a_stream_both_ways_and_wait_for_a_full_card() {
        let address = Address::Unix(path("stream"));
        let config = |server| StreamConfig { address: address.clone(), server, reconnect: 0 };
        let nobody = Stream::new(config(false), Arc::new(Hand));
        assert_eq!(nobody.err().map(|e| e.kind()), Some(ErrorKind::NotFound));
        let server = Stream::new(config(true), Arc::new(Hand)).unwrap();
        let client = Stream::new(config(false), Arc::new(Hand)).unwrap();
        let (near, far) = (card(&*server, 2), card(&*client, usize::MAX));
        server.ready(LISTENER, true, false);
        assert!(server.is_connected());
        let frames: Vec<Vec<u8>> = (0..200_u32).map(|n| vec![n as u8; 60 + n as usize * 300]).collect();
        for f in &frames {
            frame(&*client, f);
            // What does not fit into the socket waits.
            client.ready(PEER, false, true);
            server.ready(PEER, true, false);
        }
        assert_eq!(near.got.lock().len(), 2);
        near.room.store(usize::MAX, std::sync::atomic::Ordering::SeqCst);
        server.wake();
        until(|| {
            client.ready(PEER, false, true);
            server.ready(PEER, true, false);
            near.got.lock().len() >= 20
        });
        let got = near.got.lock().clone();
        assert!(frames.starts_with(&got[..20]), "in order and whole");
        frame(&*server, b"back again, and that is all of it");
        until(|| {
            client.ready(PEER, true, false);
            !far.got.lock().is_empty()
        });
        drop(client);
        until(|| {
            server.ready(PEER, true, false);
            !server.is_connected()
        });
        frame(&*server, b"nobody is there");
    }

    #[test]
    fn what_is_no_frame_ends_the_link() {
        let address = Address::Unix(path("bad"));
        let config = StreamConfig { address: address.clone(), server: true, reconnect: 0 };
        let server = Stream::new(config, Arc::new(Hand)).unwrap();
        card(&*server, 9);
        let Address::Unix(at) = address else { panic!() };
        let mut client = std::os::unix::net::UnixStream::connect(&at).unwrap();
        server.ready(LISTENER, true, false);
        io::Write::write_all(&mut client, &[0xff; 100]).unwrap();
        until(|| {
            server.ready(PEER, true, false);
            !server.is_connected()
        });
        drop(server);
        assert!(!at.exists());
    }

    #[test]
    fn datagrams_go_to_a_peer_and_to_a_group() {
        let reactor: Arc<dyn Reactor> = Arc::new(Hand);
        let (a, b) = (Address::Unix(path("a")), Address::Unix(path("b")));
        let of = |local: &Address, remote: &Address| {
            let config = DgramConfig::Peer { local: Some(local.clone()), remote: remote.clone() };
            Dgram::new(&config, &reactor).unwrap()
        };
        let (one, two) = (of(&a, &b), of(&b, &a));
        let got = card(&*two, usize::MAX);
        frame(&*one, b"a frame");
        until(|| {
            two.ready(PEER, true, false);
            !got.got.lock().is_empty()
        });
        assert_eq!(*got.got.lock(), [b"a frame"]);

        let group = DgramConfig::Multicast {
            group: "239.192.7.7:0"
                .parse::<SocketAddr>()
                .map(|mut g| {
                    g.set_port(20_000 + (std::process::id() % 20_000) as u16);
                    g
                })
                .unwrap(),
            local: Some(Ipv4Addr::LOCALHOST),
        };
        let (one, two) = (Dgram::new(&group, &reactor).unwrap(), Dgram::new(&group, &reactor).unwrap());
        let (own, other) = (card(&*one, usize::MAX), card(&*two, usize::MAX));
        frame(&*one, b"to all");
        until(|| {
            two.ready(PEER, true, false);
            !other.got.lock().is_empty()
        });
        one.ready(PEER, true, false);
        assert!(own.got.lock().is_empty(), "one does not hear oneself");
    }
}
