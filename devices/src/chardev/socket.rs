//! `unix:` and `tcp:`: a stream socket, as a server of one client at a time or as a client.
//!
//! A server goes on listening when its client leaves; output in between is discarded. A client that loses its
//! peer stays without one. A stale unix socket (nobody listens on it) is replaced; one that is in use is an
//! error that names its holder.
#[cfg(unix)]
use super::leftovers::Leftover;
use super::pump::{Ends, Line, Output, Pump, chardev_by_pump};
use super::spec::{Address, SocketSpec};
use super::{ChardevError, Host, holder};
use crate::descriptor;
use crate::event_loop::Descriptor;
#[cfg(unix)]
use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
#[cfg(unix)]
use std::os::unix::net::{UnixListener, UnixStream};
#[cfg(unix)]
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Most bytes of a unix socket's path: what the address holds, less the closing zero that it needs on some systems
/// (unix(7)).
#[cfg(unix)]
pub const MAX_PATH: usize =
    size_of::<libc::sockaddr_un>() - std::mem::offset_of!(libc::sockaddr_un, sun_path) - 1;
/// Most bytes of a unix socket's path; there are none of these here.
#[cfg(windows)]
pub const MAX_PATH: usize = 107;

/// A stream socket.
pub struct Socket {
    pump: Pump,
    server: bool,
    /// Where a server really listens (a port of 0 has been replaced by the one that was given).
    address: Address,
}

/// A socket that listens.
pub(crate) enum Listener {
    /// With the path's entry, which goes when the listener does.
    #[cfg(unix)]
    Unix(UnixListener, #[allow(dead_code, reason = "removes the path when it is dropped")] Leftover),
    Tcp(TcpListener),
}

/// How long a server waits that has no descriptor for the client who has come.
pub(crate) const LATER: Duration = Duration::from_millis(100);

struct SocketLine {
    listener: Option<Arc<Listener>>,
    /// A client has come who could not be let in: he is asked again after a while, as the listener stays ready.
    refused: bool,
    peer: Option<Descriptor>,
    nodelay: bool,
    target: String,
}

impl Socket {
    /// Connects, or listens and (with `wait`) waits for a client.
    pub fn open(spec: &SocketSpec, host: &Host) -> Result<Self, ChardevError> {
        let mut address = spec.address.clone();
        if let Address::Unix(path) = &address
            && path.as_os_str().len() > MAX_PATH
        {
            return Err(ChardevError::LongPath { len: path.as_os_str().len() });
        }
        let mut line = SocketLine {
            listener: None,
            refused: false,
            peer: None,
            nodelay: spec.nodelay,
            target: address.to_string(),
        };
        if spec.server {
            let listener = Listener::bind(&mut address)?;
            line.target = address.to_string();
            if spec.wait {
                (host.announce)(&format!("waiting for a connection on {address}"));
                line.peer =
                    Some(listener.accept(spec.nodelay).map_err(|cause| listen_error(&address, cause))?);
            }
            // From here on the listener is only asked when a client has come, who may be gone again by then.
            listener.set_nonblocking().map_err(|cause| listen_error(&address, cause))?;
            line.listener = Some(Arc::new(listener));
        } else {
            let peer = connect(&address, spec.nodelay)
                .map_err(|cause| ChardevError::Connect { address: address.to_string(), cause })?;
            line.peer = Some(peer);
        }
        let connected = line.peer.is_some();
        let target = line.target.clone();
        let pump = Pump::start(target, Box::new(line), connected, Output::Polled, host)?;
        Ok(Self { pump, server: spec.server, address })
    }

    /// The address in use; for a server on TCP port 0 it has the port that was chosen.
    pub fn address(&self) -> &Address {
        &self.address
    }

    fn filename(&self) -> String {
        let nobody = if self.pump.is_connected() { "" } else { "disconnected:" };
        let server = if self.server { ",server=on" } else { "" };
        format!("{nobody}{}{server}", self.address)
    }
}

fn listen_error(address: &Address, cause: io::Error) -> ChardevError {
    match cause.kind() {
        io::ErrorKind::AddrInUse => {
            ChardevError::AddressInUse { address: address.to_string(), holder: holder::of(address) }
        }
        _ => ChardevError::Listen { address: address.to_string(), cause },
    }
}

/// Why there is no unix socket.
#[cfg(windows)]
fn no_unix() -> io::Error {
    let why = "unix sockets are there on Unix hosts only: say tcp:HOST:PORT";
    io::Error::new(io::ErrorKind::Unsupported, why)
}

fn connect(address: &Address, nodelay: bool) -> io::Result<Descriptor> {
    match address {
        #[cfg(unix)]
        Address::Unix(path) => unix_peer(UnixStream::connect(path)?),
        #[cfg(windows)]
        Address::Unix(_) => Err(no_unix()),
        Address::Tcp { host, port } => {
            let host = if host.is_empty() { "localhost" } else { host };
            tcp_peer(TcpStream::connect((host, *port))?, nodelay)
        }
    }
}

#[cfg(unix)]
fn unix_peer(stream: UnixStream) -> io::Result<Descriptor> {
    stream.set_nonblocking(true)?;
    Ok(Arc::new(stream))
}

fn tcp_peer(stream: TcpStream, nodelay: bool) -> io::Result<Descriptor> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(nodelay)?;
    Ok(Arc::new(stream))
}

/// Takes a socket that nobody listens on out of the way.
#[cfg(unix)]
fn clear_stale(path: &Path) -> Result<(), ChardevError> {
    use std::os::unix::fs::FileTypeExt;
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(ChardevError::NotASocket(path.to_owned()));
    }
    let address = Address::Unix(path.to_owned());
    let holder = holder::of(&address);
    // The table of the kernel has the name that the holder used, which may be another; so knock as well, but
    // only if need be.
    if holder.is_some() || UnixStream::connect(path).is_ok() {
        return Err(ChardevError::AddressInUse { address: address.to_string(), holder });
    }
    fs::remove_file(path).map_err(|cause| ChardevError::Listen { address: address.to_string(), cause })
}

impl Listener {
    /// Listens on `address`, whose port 0 becomes the one that was given.
    pub(crate) fn bind(address: &mut Address) -> Result<Self, ChardevError> {
        match address {
            #[cfg(windows)]
            Address::Unix(_) => Err(listen_error(address, no_unix())),
            #[cfg(unix)]
            Address::Unix(path) => {
                clear_stale(path)?;
                match UnixListener::bind(&*path) {
                    Ok(l) => Ok(Listener::Unix(l, Leftover::new(path))),
                    Err(e) => Err(listen_error(address, e)),
                }
            }
            Address::Tcp { host, port } => {
                let bound = if host.is_empty() {
                    TcpListener::bind(("::", *port)).or_else(|e| match e.kind() {
                        io::ErrorKind::AddrInUse => Err(e),
                        _ => TcpListener::bind(("0.0.0.0", *port)),
                    })
                } else {
                    TcpListener::bind((host.as_str(), *port))
                };
                match bound {
                    Ok(l) => {
                        if let Ok(local) = l.local_addr() {
                            *port = local.port();
                        }
                        Ok(Listener::Tcp(l))
                    }
                    Err(e) => Err(listen_error(address, e)),
                }
            }
        }
    }

    /// The next client; its socket does not wait.
    pub(crate) fn accept(&self, nodelay: bool) -> io::Result<Descriptor> {
        match self {
            #[cfg(unix)]
            Listener::Unix(l, _) => unix_peer(l.accept()?.0),
            Listener::Tcp(l) => tcp_peer(l.accept()?.0, nodelay),
        }
    }

    /// From now on `accept` does not wait.
    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            #[cfg(unix)]
            Listener::Unix(l, _) => l.set_nonblocking(true),
            Listener::Tcp(l) => l.set_nonblocking(true),
        }
    }
}

#[cfg(windows)]
impl std::os::windows::io::AsSocket for Listener {
    fn as_socket(&self) -> std::os::windows::io::BorrowedSocket<'_> {
        match self {
            Listener::Tcp(l) => l.as_socket(),
        }
    }
}

#[cfg(unix)]
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix(l, _) => l.as_fd(),
            Listener::Tcp(l) => l.as_fd(),
        }
    }
}

/// Whether what `accept` failed of is likely to be there at once again: no descriptors, no memory (accept(2)). Others
/// are of the client, who has gone.
pub(crate) fn stays(e: &io::Error) -> bool {
    !matches!(
        e.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}

impl Line for SocketLine {
    fn ends(&mut self) -> Ends {
        let peer = self.peer.clone();
        let listener = self.listener.clone().filter(|_| peer.is_none());
        let later = self.refused && listener.is_some();
        let knock = listener.filter(|_| !later).map(|l| l as Descriptor);
        Ends { input: peer.clone(), output: peer, knock, retry: later.then_some(LATER), ..Ends::default() }
    }

    fn knocked(&mut self) -> Option<ChardevError> {
        self.refused = false;
        match self.listener.as_ref()?.accept(self.nodelay) {
            Ok(peer) => self.peer = Some(peer),
            Err(e) => {
                self.refused = stays(&e);
                tracing::debug!("{}: accept: {e}", self.target);
            }
        }
        None
    }

    fn write(&mut self, fd: &Descriptor, bytes: &[u8]) -> io::Result<usize> {
        descriptor::send(fd, bytes)
    }

    fn input_ended(&mut self, why: Option<io::Error>) -> Option<ChardevError> {
        self.peer = None;
        let cause = why?;
        // A client that goes away rudely is no error of ours as long as the next may come.
        self.listener.is_none().then(|| ChardevError::Read { target: self.target.clone(), cause })
    }

    fn output_failed(&mut self, cause: io::Error) -> Option<ChardevError> {
        self.peer = None;
        self.listener.is_none().then(|| ChardevError::Write { target: self.target.clone(), cause })
    }
}

chardev_by_pump!(Socket);

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::chardev::testing::Sink;
    use crate::chardev::{Chardev, Monitor, MonitorLine, PATIENCE, RESERVE, ROOM};
    use std::io::{Read, Write};
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    fn spec(address: Address) -> SocketSpec {
        SocketSpec { address, server: true, wait: false, nodelay: false }
    }

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("mynah-socket-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_server_talks_to_one_client_after_another() {
        let address = Address::Tcp { host: "127.0.0.1".into(), port: 0 };
        let socket = Socket::open(&spec(address), &Host::default()).unwrap();
        let Address::Tcp { port, .. } = *socket.address() else { panic!("not TCP") };
        let sink = Sink::new(usize::MAX);
        socket.set_receiver(sink.clone());
        let mut seen = 0;
        for text in ["first", "second"] {
            let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
            client.write_all(text.as_bytes()).unwrap();
            seen += text.len();
            assert!(sink.wait(seen).ends_with(text.as_bytes()));
            // Having heard the client, the server knows of it: nothing that is said now is lost.
            socket.write_all(b"hello ", PATIENCE);
            socket.write_all(text.as_bytes(), PATIENCE);
            let mut heard = vec![0; 6 + text.len()];
            client.read_exact(&mut heard).unwrap();
            assert_eq!(heard, [b"hello ", text.as_bytes()].concat());
        }
    }

    #[test]
    fn input_stays_in_the_socket_until_the_receiver_has_room() {
        let path = path("room");
        let socket = Socket::open(&spec(Address::Unix(path.clone())), &Host::default()).unwrap();
        let sink = Sink::new(3);
        socket.set_receiver(sink.clone());
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"abcdefgh").unwrap();
        assert_eq!(sink.wait(3), b"abc");
        *sink.limit.lock() = 8;
        socket.accept_input();
        assert_eq!(sink.wait(8), b"abcdefgh");
        drop(socket);
        assert!(!path.exists(), "the socket is removed with its server");
    }

    #[test]
    fn a_server_that_waits_has_its_client_when_it_opens() {
        let path = path("wait");
        let listening = path.clone();
        let (heard, hears) = std::sync::mpsc::channel();
        let heard = parking_lot::Mutex::new(heard);
        let host = Host {
            announce: Arc::new(move |line| {
                assert!(line.contains(listening.to_str().unwrap()), "{line}");
                let (path, heard) = (listening.clone(), heard.lock().clone());
                std::thread::spawn(move || {
                    let mut text = String::new();
                    UnixStream::connect(path).unwrap().read_to_string(&mut text).unwrap();
                    heard.send(text).unwrap();
                });
            }),
            ..Host::default()
        };
        let socket = Socket::open(&SocketSpec { wait: true, ..spec(Address::Unix(path)) }, &host).unwrap();
        socket.write_all(b"early", PATIENCE);
        drop(socket);
        assert_eq!(hears.recv().unwrap(), "early");
    }

    #[test]
    fn an_address_in_use_is_refused_and_its_holder_named() {
        let path = path("busy");
        let unix = spec(Address::Unix(path.clone()));
        let _first = Socket::open(&unix, &Host::default()).unwrap();
        let e = Socket::open(&unix, &Host::default()).err().unwrap().to_string();
        assert!(e.contains(path.to_str().unwrap()) && e.contains("in use"), "{e}");
        #[cfg(target_os = "linux")]
        assert!(e.contains(&format!("process {}", std::process::id())), "{e}");

        let tcp = Socket::open(&spec(Address::Tcp { host: "127.0.0.1".into(), port: 0 }), &Host::default());
        let tcp = tcp.unwrap();
        let e = Socket::open(&spec(tcp.address().clone()), &Host::default()).err().unwrap().to_string();
        assert!(e.contains("tcp:127.0.0.1:") && e.contains("in use"), "{e}");
    }

    #[test]
    fn a_stale_socket_is_replaced_but_a_file_is_not() {
        let stale = path("stale");
        drop(UnixListener::bind(&stale).unwrap());
        assert!(stale.exists());
        Socket::open(&spec(Address::Unix(stale)), &Host::default()).unwrap();

        let file = path("file");
        fs::write(&file, "precious").unwrap();
        let e = Socket::open(&spec(Address::Unix(file.clone())), &Host::default()).err().unwrap();
        assert!(matches!(e, ChardevError::NotASocket(_)), "{e}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        fs::remove_file(file).unwrap();
    }

    #[test]
    fn a_client_without_a_server_is_an_error_that_names_the_address() {
        let path = path("nobody");
        let client = SocketSpec { server: false, ..spec(Address::Unix(path.clone())) };
        let e = Socket::open(&client, &Host::default()).err().unwrap().to_string();
        assert!(e.contains(path.to_str().unwrap()), "{e}");
    }

    #[test]
    fn each_client_is_greeted_by_who_is_told_of_it() {
        struct Greets(std::sync::OnceLock<Socket>);
        impl crate::chardev::Receiver for Greets {
            fn can_receive(&self) -> usize {
                1
            }
            fn receive(&self, _: &[u8]) {}
            fn event(&self, event: crate::chardev::Event) {
                if event == crate::chardev::Event::Opened {
                    self.0.get().unwrap().write_all(b"hello", Duration::ZERO);
                }
            }
        }
        let path = path("greets");
        let socket = Socket::open(&spec(Address::Unix(path.clone())), &Host::default()).unwrap();
        let greets = Arc::new(Greets(std::sync::OnceLock::new()));
        let _ = greets.0.set(socket);
        greets.0.get().unwrap().set_receiver(greets.clone());
        for _ in 0..3 {
            let mut client = UnixStream::connect(&path).unwrap();
            let mut heard = [0; 5];
            client.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"hello");
        }
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_path_that_is_too_long_is_refused_with_the_limit() {
        let folder = std::env::temp_dir();
        let room = MAX_PATH - folder.as_os_str().len() - 1;
        for (len, server) in [(room, true), (room + 1, true), (room + 1, false), (5000, false)] {
            let path = folder.join("s".repeat(len));
            let opened =
                Socket::open(&SocketSpec { server, ..spec(Address::Unix(path.clone())) }, &Host::default());
            match opened.err() {
                None => assert_eq!(len, room),
                Some(e) => {
                    assert!(len > room, "{e}");
                    let len = path.as_os_str().len();
                    let why = format!("at most {MAX_PATH} bytes, and this one has {len}");
                    assert!(e.to_string().ends_with(&why), "{e}");
                }
            }
        }
    }

    /// A server that knows of its client, and the errors that it reports.
    fn connected(name: &str) -> (Socket, UnixStream, Arc<Sink>, Arc<parking_lot::Mutex<Vec<String>>>) {
        let errors = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let theirs = errors.clone();
        let host = Host { on_error: Arc::new(move |e| theirs.lock().push(e.to_string())), ..Host::default() };
        let path = path(name);
        let socket = Socket::open(&spec(Address::Unix(path.clone())), &host).unwrap();
        let sink = Sink::new(usize::MAX);
        socket.set_receiver(sink.clone());
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"!").unwrap();
        sink.wait(1);
        (socket, client, sink, errors)
    }

    fn pattern(from: usize, len: usize) -> Vec<u8> {
        (from..from + len).map(|n| (n % 251) as u8).collect()
    }

    #[test]
    fn a_client_that_never_reads_keeps_nobody_waiting_and_is_told_of_when_it_does() {
        let (socket, mut client, sink, errors) = connected("unread");
        // All that goes without a reserve: the socket's buffer, and the room that there is here.
        let mut sent = 0;
        let full = Instant::now() + 60 * PATIENCE;
        let mut refused = 0;
        while refused < 50 {
            assert!(Instant::now() < full, "it takes {sent} bytes and more");
            let n = socket.write(&pattern(sent, 1000));
            sent += n;
            if n < 1000 {
                refused += 1;
                // The pump may be about to make room.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert_eq!(socket.room(), 0);
        // And what cannot be held back, until the reserve is full as well.
        for _ in 0..2000 {
            socket.write_all(&pattern(sent, 1000), Duration::ZERO);
            sent += 1000;
        }
        let unsent = socket.unsent() as usize;
        assert!(unsent >= 2_000_000 && sent - unsent < RESERVE, "{unsent} of {sent} were not sent");
        // It reads what was kept, in order.
        let mut got = vec![0; sent - unsent + RESERVE];
        client.set_read_timeout(Some(60 * PATIENCE)).unwrap();
        client.read_exact(&mut got).unwrap();
        assert!(got == pattern(0, got.len()));
        while *sink.writable.lock() == 0 || socket.room() < ROOM {
            assert!(Instant::now() < full, "nobody says that there is room again");
            std::thread::sleep(Duration::from_millis(1));
        }
        // It has been told of when nothing is left to be told.
        socket.flush(full);
        let errors = errors.lock();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains("is lost"));
    }

    #[test]
    fn a_monitor_s_client_that_asks_and_never_reads_is_not_read_either() {
        /// Counts what it is asked.
        struct Long(AtomicUsize);
        const ANSWER: usize = 10_000;
        impl Monitor for Long {
            fn command(&self, _: &str) -> String {
                self.0.fetch_add(1, Ordering::SeqCst);
                "x".repeat(ANSWER)
            }
        }
        let path = path("asks");
        let socket = Arc::new(Socket::open(&spec(Address::Unix(path.clone())), &Host::default()).unwrap());
        let long = Arc::new(Long(AtomicUsize::new(0)));
        let _monitor = MonitorLine::new(socket.clone(), long.clone());
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_nonblocking(true).unwrap();
        // All that the host's sockets hold of questions, until none goes for a while; and answers until no more are
        // taken, which a busy host may be long about.
        let (mut asked, mut since) = (0, Instant::now());
        let end = Instant::now() + 600 * PATIENCE;
        while since.elapsed() < Duration::from_millis(500) || socket.room() > 0 {
            assert!(Instant::now() < end, "it goes on being read: {asked} bytes");
            match client.write(&b"l\n".repeat(1000)) {
                Ok(n) => (asked, since) = (asked + n, Instant::now()),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        // Answers that are in the host's sockets (a few hundred KiB), and those that wait here.
        let answered = long.0.load(Ordering::SeqCst) * ANSWER;
        assert!(answered < 2 << 20, "{answered} bytes of answers for who does not read");
        assert!(asked / 2 * ANSWER > 16 * answered, "{asked} bytes of questions");
        // It reads: what it has asked is answered, and nothing was lost.
        client.set_nonblocking(false).unwrap();
        client.set_read_timeout(Some(60 * PATIENCE)).unwrap();
        let (mut left, mut buf) = (asked / 2 * ANSWER, vec![0; 1 << 20]);
        while left > 0 {
            let n = match client.read(&mut buf) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                read => read.unwrap(),
            };
            assert!(n > 0, "it has hung up");
            left -= buf[..n].iter().filter(|b| **b == b'x').count();
        }
        assert_eq!(long.0.load(Ordering::SeqCst), asked / 2);
        // What has come here was sent, which the sender need not have noted yet; the end of the last answer's line may
        // still be to come.
        let end = Instant::now() + 60 * PATIENCE;
        while socket.unsent() > 0 {
            assert!(Instant::now() < end, "{} bytes are not sent", socket.unsent());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_server_that_cannot_let_a_client_in_asks_again_later() {
        let path = path("full");
        let listener = Arc::new(Listener::bind(&mut Address::Unix(path.clone())).unwrap());
        listener.set_nonblocking().unwrap();
        let mut line = SocketLine {
            listener: Some(listener),
            refused: false,
            peer: None,
            nodelay: false,
            target: "a test".into(),
        };
        // Nobody has come: the listener is waited for.
        assert!(line.knocked().is_none());
        let waits = |line: &mut SocketLine| (line.ends().knock.is_some(), line.ends().retry);
        assert_eq!(waits(&mut line), (true, None));
        // No descriptors: it would be ready again and again.
        line.refused = stays(&io::Error::from_raw_os_error(libc::EMFILE));
        assert_eq!(waits(&mut line), (false, Some(LATER)));
        // After a while there is one.
        let _client = UnixStream::connect(&path).unwrap();
        assert!(line.knocked().is_none());
        assert_eq!((waits(&mut line), line.ends().input.is_some()), ((false, None), true));
        for gone in [libc::ECONNABORTED, libc::EINTR, libc::EAGAIN] {
            assert!(!stays(&io::Error::from_raw_os_error(gone)));
        }
    }

    #[test]
    fn a_client_that_is_only_slow_loses_nothing() {
        let (socket, mut client, _sink, errors) = connected("slow");
        const LEN: usize = 4 << 20;
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            let mut buf = [0; 100_000];
            while got.len() < LEN {
                std::thread::sleep(Duration::from_millis(1));
                let n = client.read(&mut buf).unwrap();
                got.extend_from_slice(&buf[..n]);
            }
            got
        });
        for at in (0..LEN).step_by(1024) {
            socket.write_all(&pattern(at, 1024), 60 * PATIENCE);
        }
        assert!(reader.join().unwrap() == pattern(0, LEN));
        assert!(errors.lock().is_empty());
    }

    #[test]
    fn whoever_waits_for_a_reader_is_let_go_when_the_machine_ends() {
        let (socket, _client, _sink, _errors) = connected("hurry");
        let socket = Arc::new(socket);
        let theirs = socket.clone();
        let writer = std::thread::spawn(move || {
            for _ in 0..5000 {
                theirs.write_all(&[0; 1024], 3600 * PATIENCE);
            }
        });
        while (socket.unsent() as usize) < RESERVE {
            std::thread::sleep(Duration::from_millis(1));
        }
        socket.hurry();
        writer.join().unwrap();
        let start = Instant::now();
        socket.flush(start + Duration::from_millis(20));
        drop(socket);
        assert!(start.elapsed() < 30 * PATIENCE);
    }
}
