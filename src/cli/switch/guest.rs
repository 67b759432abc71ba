//! Guests' ports: Unix sockets on which each frame has its length in front of it, 32 bits, big-endian, as `-netdev
//! stream` has it, QEMU's too.
use super::super::tell;
use super::fabric::{Fabric, Outlet, Wait, Waits};
use super::plan::Group;
use mynah_devices::event_loop::{Descriptor, Registration, Source, TimedSource, Timer};
use mynah_net::MAX_FRAME;
use mynah_net::switch::Next;
use parking_lot::Mutex;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

/// Octets that are read at once.
const CHUNK: usize = 64 << 10;
/// Octets that are taken from the switch at once.
const BATCH: usize = 64 << 10;
/// In front of each frame.
const HEAD: usize = 4;

/// How long nobody is let in when the host has no descriptors left.
const PAUSE: Duration = Duration::from_millis(200);

/// Who waits at a path.
struct Listener {
    fabric: Arc<Fabric>,
    socket: Arc<UnixListener>,
    /// The ports of those who connect there, and their names.
    ports: Vec<(usize, String)>,
    registration: OnceLock<Registration>,
    timer: Timer,
}

/// Waits for guests, for as long as the process lives.
pub fn serve(fabric: &Arc<Fabric>, socket: UnixListener, group: Group) -> anyhow::Result<()> {
    let mut ports = Vec::new();
    for config in group.ports {
        let name = config.name.clone();
        ports.push((fabric.add(config).map_err(super::Error::new)?, name));
    }
    socket.set_nonblocking(true)?;
    let socket = Arc::new(socket);
    let descriptor: Descriptor = socket.clone();
    let listener = Arc::new_cyclic(|own: &Weak<Listener>| Listener {
        fabric: fabric.clone(),
        socket,
        ports,
        registration: OnceLock::new(),
        timer: fabric.events.timer(own.clone()),
    });
    let source: Arc<dyn Source> = listener.clone();
    let registration = fabric.events.add(&descriptor, Arc::downgrade(&source), true, false)?;
    let _ = listener.registration.set(registration);
    // The loop holds it weakly, and it is there as long as the process.
    std::mem::forget(listener);
    Ok(())
}

impl Source for Listener {
    fn ready(&self, _: bool, _: bool) {
        let accepted = self.socket.accept();
        if let Err(why) = &accepted
            && !matches!(
                why.kind(),
                ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted
            )
        {
            tracing::warn!("a guest cannot be let in: {why}");
            return self.timer.set(Some(Instant::now() + PAUSE));
        }
        if let Ok((socket, _)) = accepted {
            let free = self.fabric.with(|s| {
                self.ports.iter().find(|(n, _)| s.ports().get(*n).is_some_and(|p| !p.connected)).cloned()
            });
            match free {
                Some((port, name)) => {
                    if let Err(why) = Peer::start(&self.fabric, port, &name, socket) {
                        tell(&format!("port {name}: {why}"));
                    }
                }
                None => tell(&format!(
                    "port {}: another guest is turned away: {} are there (guests=N makes room)",
                    self.ports.first().map_or("", |p| &p.1),
                    self.ports.len()
                )),
            }
        }
        self.due();
    }
}

impl TimedSource for Listener {
    /// Waits for the next.
    fn due(&self) {
        if let Some(registration) = self.registration.get() {
            let _ = registration.want(true, false);
        }
    }
}

#[derive(Default)]
struct State {
    /// What has been read and has not been taken: at most a chunk and a frame.
    input: Vec<u8>,
    /// Whether the port's rate is used up.
    input_waits: bool,
    /// What the socket had no room for, and how far it has got.
    output: Vec<u8>,
    sent: usize,
    gone: bool,
}

/// A guest.
struct Peer {
    fabric: Arc<Fabric>,
    port: usize,
    name: String,
    socket: Arc<UnixStream>,
    registration: OnceLock<Registration>,
    waits: Waits,
    state: Mutex<State>,
}

impl Peer {
    fn start(fabric: &Arc<Fabric>, port: usize, name: &str, socket: UnixStream) -> std::io::Result<()> {
        socket.set_nonblocking(true)?;
        let socket = Arc::new(socket);
        let descriptor: Descriptor = socket.clone();
        let peer = Arc::new_cyclic(|own: &Weak<Self>| Self {
            fabric: fabric.clone(),
            port,
            name: name.into(),
            socket,
            registration: OnceLock::new(),
            waits: Waits::new(fabric, own.clone()),
            state: Mutex::default(),
        });
        let source: Arc<dyn Source> = peer.clone();
        let registration = fabric.events.add(&descriptor, Arc::downgrade(&source), true, false)?;
        let _ = peer.registration.set(registration);
        fabric.connect(port, Some(peer));
        tracing::info!("port {name}: a guest has come");
        Ok(())
    }

    /// Reads once, and gives the switch what is whole.
    fn input(&self) {
        let mut state = self.state.lock();
        if state.gone || state.input_waits {
            return;
        }
        let before = state.input.len();
        state.input.resize(before + CHUNK, 0);
        let got = (&*self.socket).read(&mut state.input[before..]);
        state.input.truncate(before + *got.as_ref().unwrap_or(&0));
        let why = match got {
            Ok(0) => Some("it has closed its link".to_owned()),
            Ok(_) => None,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => None,
            Err(e) => Some(e.to_string()),
        };
        drop(state);
        match why {
            Some(why) => self.leave(&why),
            None => self.take(),
        }
    }

    /// Gives the switch what is whole, as far as the port's rate lets it.
    fn take(&self) {
        let mut state = self.state.lock();
        if state.gone {
            return;
        }
        let now = self.fabric.now();
        let (mut at, mut wait, mut sound) = (0, None, true);
        self.fabric.with(|switch| {
            while let Some(head) = state.input[at..].first_chunk::<HEAD>() {
                let len = u32::from_be_bytes(*head) as usize;
                if len > MAX_FRAME {
                    sound = false;
                    break;
                }
                let Some(frame) = state.input.get(at + HEAD..at + HEAD + len) else { break };
                if let Err(when) = switch.input(self.port, frame, now) {
                    wait = Some(when);
                    break;
                }
                at += HEAD + len;
            }
        });
        state.input.drain(..at);
        state.input_waits = wait.is_some();
        self.waits.set(&self.fabric, Wait::Input, wait);
        drop(state);
        if !sound {
            self.leave("it sends what is no frame");
        }
        self.fabric.flush();
    }

    fn leave(&self, why: &str) {
        if std::mem::replace(&mut self.state.lock().gone, true) {
            return;
        }
        tracing::info!("port {}: the guest has gone: {why}", self.name);
        // Who reads there is told so, though somebody may hold us for a moment.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        self.fabric.connect(self.port, None);
    }

    /// Waits for what is to be waited for.
    fn wait(&self) {
        let state = self.state.lock();
        if let Some(registration) = self.registration.get().filter(|_| !state.gone) {
            let _ = registration.want(!state.input_waits, !state.output.is_empty());
        }
    }
}

impl Outlet for Peer {
    fn drain(&self) {
        let mut state = self.state.lock();
        while !state.gone {
            if state.output.is_empty() {
                let now = self.fabric.now();
                let mut wait = None;
                self.fabric.with(|switch| {
                    while state.output.len() < BATCH {
                        match switch.next(self.port, now) {
                            Next::Frame(frame) => {
                                state.output.extend((frame.len() as u32).to_be_bytes());
                                state.output.extend_from_slice(&frame);
                            }
                            Next::Wait(at) => {
                                wait = Some(at);
                                break;
                            }
                            Next::Nothing => break,
                        }
                    }
                });
                self.waits.set(&self.fabric, Wait::Output, wait);
                if state.output.is_empty() {
                    return;
                }
            }
            let sent = state.sent;
            match (&*self.socket).write(&state.output[sent..]) {
                Ok(n) => state.sent += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                // The reader finds out.
                Err(_) => state.sent = state.output.len(),
            }
            if state.sent == state.output.len() {
                state.output.clear();
                state.sent = 0;
            }
        }
        drop(state);
        self.wait();
    }
}

impl Source for Peer {
    fn ready(&self, readable: bool, writable: bool) {
        if writable {
            self.drain();
        }
        if readable {
            self.input();
        }
        self.wait();
    }
}

impl TimedSource for Peer {
    fn due(&self) {
        let [input, output] = self.waits.take_due(&self.fabric);
        if output {
            self.drain();
        }
        if input {
            self.state.lock().input_waits = false;
            self.take();
        }
        self.wait();
    }
}
