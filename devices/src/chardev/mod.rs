//! Character backends: what is at the other end of a serial line, a debug console or a monitor.
//!
//! ```text
//!   Uart16550 --Chardev::write--> backend --> terminal, file, pty, socket
//!             <--Receiver::receive--      <--
//! ```
//!
//! `Spec` is parsed from what `-serial` and `-debugcon` take in QEMU; `Spec::open` makes the backend.
//! Backends on descriptors share one design (`pump`): a bounded buffer, and the event loop, which serves all of
//! them; what may wait is done by threads (standard output, files, a monitor's commands). `Mux` sits between a
//! guest's line and a backend and gives the user the Ctrl-A commands; a `MonitorLine` is a monitor that has a
//! backend for itself. On purpose absent: telnet and websocket framing, TLS, spice, Braille.
//!
//! Nobody waits for a reader. A device with flow control (the UART) is told when a backend has no room, holds
//! what it has as its hardware would, and is called when there is room again. One without (the debug console)
//! has a reserve, and slows down for a while if the other side is slow but does read. What goes beyond is
//! lost, counted, and said once.
use crate::event_loop::EventLoop;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[cfg(unix)]
pub mod fatal;
#[cfg(windows)]
#[path = "fatal/windows.rs"]
pub mod fatal;
pub mod file;
mod holder;
#[cfg(unix)]
pub mod leftovers;
#[cfg(windows)]
#[path = "leftovers/windows.rs"]
pub mod leftovers;
pub mod monitor;
pub mod mux;
pub mod null;
#[cfg(unix)]
pub mod pty;
mod pump;
pub mod socket;
pub mod spec;
pub mod stdio;
#[cfg(unix)]
mod terminal;
#[cfg(windows)]
#[path = "terminal/windows.rs"]
mod terminal;
pub mod vc;
mod worker;

pub use monitor::{Monitor, MonitorLine};
pub use mux::Mux;
pub use null::Null;
pub use spec::{Spec, SpecError};

/// Something that happens on a line besides bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A peer is there.
    Opened,
    /// The peer has gone.
    Closed,
    /// A break condition (line held low for longer than a character).
    Break,
}

/// The device's side of a line. A backend calls its methods on the event loop's thread, so none may wait.
pub trait Receiver: Send + Sync {
    /// How many bytes `receive` would take now.
    fn can_receive(&self) -> usize;
    /// Takes bytes, no more than `can_receive` said.
    fn receive(&self, bytes: &[u8]);
    /// There is room for output again, after [`Chardev::write`] has taken less than it was given, or
    /// [`Chardev::room`] has said 0.
    fn writable(&self) {}
    /// Is told of an event.
    fn event(&self, event: Event) {
        let _ = event;
    }
}

/// Bytes that a backend holds for a slow reader before it has no room.
pub const ROOM: usize = 16 << 10;
/// Bytes that it holds at most, with those of devices that cannot hold theirs back.
pub const RESERVE: usize = 1 << 20;
/// How long a device without flow control waits for a reader that takes nothing.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// The host's side of a line.
pub trait Chardev: Send + Sync {
    /// Sends the first of `bytes`, as many as there is room for, and says how many. Never waits. With nobody
    /// there all are taken, and discarded.
    fn write(&self, bytes: &[u8]) -> usize;
    /// Sends all of `bytes`, for those who cannot hold them back: what there is no room for goes to the
    /// reserve. With that full it waits as long as something was taken within the last `patience`, and not at
    /// all after [`Chardev::hurry`]; then the bytes are lost, and counted.
    fn write_all(&self, bytes: &[u8], patience: Duration);
    /// How many bytes `write` would take now.
    fn room(&self) -> usize;
    /// Names the one who gets what comes in.
    fn set_receiver(&self, receiver: Arc<dyn Receiver>);
    /// Waits until what was written has left the process, nobody takes it any more, or the time has come.
    fn flush(&self, until: Instant);
    /// The machine ends: nobody waits in `write_all` any more.
    fn hurry(&self) {}
    /// Bytes that were lost because nobody read, and those still held.
    fn unsent(&self) -> u64 {
        0
    }
    /// What is at the other end, as QEMU's `info chardev` calls it.
    fn name(&self) -> String {
        "null".to_owned()
    }
    /// Whether a person types here: what is typed in vain is then dropped, so that commands get through.
    fn is_terminal(&self) -> bool {
        false
    }
    /// The receiver has room again after its `can_receive` said 0.
    fn accept_input(&self) {}
}

/// What a backend may ask of its surroundings.
#[derive(Clone)]
pub struct Host {
    /// What waits for descriptors.
    pub events: Arc<EventLoop>,
    /// Is called, once for each failure, from a thread that may wait.
    pub on_error: Arc<dyn Fn(ChardevError) + Send + Sync>,
    /// Shows the user a line: the path of a pty, a socket that waits for its client.
    pub announce: Arc<dyn Fn(&str) + Send + Sync>,
    /// What writes to files.
    files: Arc<worker::Worker>,
}

impl Host {
    /// Backends that `events` serves; errors and announcements go to the log.
    pub fn new(events: Arc<EventLoop>) -> Self {
        Self {
            events,
            on_error: Arc::new(|e| tracing::warn!("{e}")),
            announce: Arc::new(|line| tracing::info!("{line}")),
            files: Arc::new(worker::Worker::new("mynah-files")),
        }
    }
}

#[cfg(test)]
impl Default for Host {
    fn default() -> Self {
        Self::new(Arc::new(EventLoop::new().unwrap()))
    }
}

/// An open backend.
pub struct Opened {
    /// The line for the device.
    pub chardev: Arc<dyn Chardev>,
    /// The multiplexer, if the specification asked for one (`mon:`): give it its monitor and its quit hook.
    pub mux: Option<Arc<Mux>>,
}

/// Why a backend cannot be opened, or has failed. Its text has the cause, which therefore is no `source`: who prints a
/// chain of causes would print it twice.
#[derive(Debug, thiserror::Error)]
pub enum ChardevError {
    /// stdio has one user only.
    #[error("stdio is in use by another device already")]
    StdioInUse,
    /// The terminal's settings cannot be changed.
    #[error("cannot set the terminal on standard input to raw mode: {0}")]
    Terminal(io::Error),
    /// A file cannot be opened for writing.
    #[error("cannot open '{}' for writing: {cause}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// No pseudo-terminal is to be had.
    #[error("cannot open a pseudo-terminal: {0}")]
    Pty(io::Error),
    /// Somebody listens there.
    #[error(
        "cannot listen on {address}: the address is in use{}",
        holder.as_ref().map_or(String::new(), |h| format!(" by {h}"))
    )]
    AddressInUse {
        /// The socket's address.
        address: String,
        /// The process that holds it, where that can be found out.
        holder: Option<String>,
    },
    /// A file is in the socket's place.
    #[error("cannot listen on unix:{}: the path exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The socket's path does not fit into an address.
    #[error("the path of a socket has at most {} bytes, and this one has {len}", socket::MAX_PATH)]
    LongPath {
        /// Bytes of its path.
        len: usize,
    },
    /// Listening failed.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// The socket's address.
        address: String,
        /// Why.
        cause: io::Error,
    },
    /// Connecting failed.
    #[error("cannot connect to {address}: {cause}")]
    Connect {
        /// The peer's address.
        address: String,
        /// Why.
        cause: io::Error,
    },
    /// Writing failed; output is discarded from now on.
    #[error("cannot write to {target}: {cause}; further output is discarded")]
    Write {
        /// What was written to.
        target: String,
        /// Why.
        cause: io::Error,
    },
    /// Nobody reads, and what is held for a reader has grown to its bound.
    #[error("{target} takes no more output; what it has no room for is lost")]
    Lost {
        /// What was written to.
        target: String,
    },
    /// Reading failed; there is no more input.
    #[error("cannot read from {target}: {cause}; there will be no more input")]
    Read {
        /// What was read from.
        target: String,
        /// Why.
        cause: io::Error,
    },
    /// The thread that writes cannot be started.
    #[error("cannot start the thread that writes to {name}: {cause}")]
    Thread {
        /// The backend.
        name: String,
        /// Why.
        cause: io::Error,
    },
}

impl Spec {
    /// Opens what the specification names. `None` gives a line that leads nowhere; whether there is a device
    /// at all is the board's matter.
    pub fn open(&self, host: &Host) -> Result<Opened, ChardevError> {
        let chardev: Arc<dyn Chardev> = match self {
            Spec::None | Spec::Null => Arc::new(Null),
            Spec::Stdio { signal } => Arc::new(stdio::Stdio::open(*signal, host)?),
            Spec::File { path, append } => Arc::new(file::FileSink::open(path, *append, host)?),
            #[cfg(unix)]
            Spec::Pty => Arc::new(pty::Pty::open(host)?),
            #[cfg(windows)]
            Spec::Pty => {
                let why = "they are there on Unix hosts only: say tcp:HOST:PORT,server=on";
                return Err(ChardevError::Pty(io::Error::new(io::ErrorKind::Unsupported, why)));
            }
            Spec::Socket(s) => Arc::new(socket::Socket::open(s, host)?),
            Spec::Mon(inner) => {
                let mux = Mux::new(inner.open(host)?.chardev);
                return Ok(Opened { chardev: mux.clone(), mux: Some(mux) });
            }
        };
        Ok(Opened { chardev, mux: None })
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use parking_lot::{Condvar, Mutex};

    /// A backend in memory.
    #[derive(Default)]
    pub(crate) struct Loose {
        pub(crate) written: Mutex<Vec<u8>>,
        /// Bytes that it takes, if not any number.
        pub(crate) limit: Mutex<Option<usize>>,
        /// What did not fit.
        pub(crate) reserve: Mutex<Vec<u8>>,
        pub(crate) receiver: Mutex<Option<Arc<dyn Receiver>>>,
        pub(crate) accepts: Mutex<usize>,
    }

    impl Loose {
        pub(crate) fn new() -> Arc<Self> {
            Arc::new(Self::default())
        }
        /// What was written since the last call.
        pub(crate) fn take(&self) -> Vec<u8> {
            std::mem::take(&mut self.written.lock())
        }
        /// The receiver that was set.
        pub(crate) fn receiver(&self) -> Arc<dyn Receiver> {
            self.receiver.lock().clone().expect("a receiver was set")
        }
    }

    impl Chardev for Loose {
        fn write(&self, bytes: &[u8]) -> usize {
            let n = bytes.len().min(self.room());
            self.written.lock().extend_from_slice(&bytes[..n]);
            n
        }
        fn write_all(&self, bytes: &[u8], _: Duration) {
            let n = self.write(bytes);
            self.reserve.lock().extend_from_slice(&bytes[n..]);
        }
        fn room(&self) -> usize {
            self.limit.lock().map_or(usize::MAX, |l| l.saturating_sub(self.written.lock().len()))
        }
        fn set_receiver(&self, receiver: Arc<dyn Receiver>) {
            *self.receiver.lock() = Some(receiver);
        }
        fn flush(&self, _: Instant) {}
        fn accept_input(&self) {
            *self.accepts.lock() += 1;
        }
    }

    /// A device that takes up to `limit` bytes and lets a test wait for them.
    pub(crate) struct Sink {
        pub(crate) got: Mutex<Vec<u8>>,
        pub(crate) events: Mutex<Vec<Event>>,
        pub(crate) limit: Mutex<usize>,
        /// How often there was room for output again.
        pub(crate) writable: Mutex<usize>,
        changed: Condvar,
    }

    impl Sink {
        pub(crate) fn new(limit: usize) -> Arc<Self> {
            Arc::new(Self {
                got: Mutex::new(Vec::new()),
                events: Mutex::new(Vec::new()),
                limit: Mutex::new(limit),
                writable: Mutex::new(0),
                changed: Condvar::new(),
            })
        }
        /// Waits until `n` bytes have come and returns all there are.
        pub(crate) fn wait(&self, n: usize) -> Vec<u8> {
            let mut got = self.got.lock();
            while got.len() < n {
                self.changed.wait(&mut got);
            }
            got.clone()
        }
    }

    impl Receiver for Sink {
        fn can_receive(&self) -> usize {
            self.limit.lock().saturating_sub(self.got.lock().len())
        }
        fn receive(&self, bytes: &[u8]) {
            self.got.lock().extend_from_slice(bytes);
            self.changed.notify_all();
        }
        fn writable(&self) {
            *self.writable.lock() += 1;
        }
        fn event(&self, event: Event) {
            self.events.lock().push(event);
            self.changed.notify_all();
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::testing::Sink;
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_line_that_has_ended_leaves_nothing_behind() {
        let path = |name| std::env::temp_dir().join(format!("mynah-ended-{}-{name}", std::process::id()));
        let (socket, file) = (path("socket"), path("file"));
        for _ in 0..20 {
            let host = Host::default();
            let events = Arc::downgrade(&host.events);
            let specs = [
                format!("unix:{},server,nowait", socket.display()),
                format!("file:{}", file.display()),
                "pty".to_owned(),
            ];
            let lines = specs.map(|spec| spec.parse::<Spec>().unwrap().open(&host).unwrap().chardev);
            drop(host);
            let sink = Sink::new(1);
            let mut client = UnixStream::connect(&socket).unwrap();
            // More than is taken.
            client.write_all(b"hello").unwrap();
            for line in &lines {
                line.set_receiver(sink.clone());
                line.write(b"hello");
            }
            sink.wait(1);
            drop(lines);
            assert!(!socket.exists());
            // The loop may be about to let go.
            while events.strong_count() > 0 || Arc::strong_count(&sink) > 1 {
                std::thread::yield_now();
            }
        }
        std::fs::remove_file(&file).unwrap();
    }
}
