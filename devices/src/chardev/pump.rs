//! What moves the bytes of a character backend that lives on file descriptors, both ways, on the event loop.
//!
//! ```text
//!   guest --write()--> bounded buffer --+                  +--> output descriptor
//!                                       +-- mynah-events --+
//!   guest <--receive()-- as much as can_receive() ---------+--- input descriptor
//!         <--writable()-- there is room again
//! ```
//!
//! The buffer has room for [`ROOM`] bytes; with what comes from devices that cannot hold theirs back it grows
//! to [`RESERVE`] bytes. With nobody there (a socket without a client, a broken pipe) output is discarded, as
//! a cable with nothing at its end would. Input is read only as far as the receiver has room; when it has none
//! the descriptor is left alone until `accept_input`.
//!
//! The loop must not wait, and two kinds of output cannot be made not to. Standard output belongs to others too, who
//! would find its descriptor changed, and a write to a terminal that is stopped waits until it goes on. A regular file
//! is always ready, and waits for its disk. These are written by a thread ([`Output::Waits`]), standard output by one
//! of its own, all files by one. Input that cannot be waited for (a regular file, /dev/null) is always there, and is
//! read a chunk in each turn of the loop. Errors are told on a thread that lasts as long as that takes: standard error
//! may wait as well.
//!
//! Locks: `io` is held by the loop through a turn, and taken by others only to end the line. `state` guards the buffer
//! and is never held over a system call (but for the wake-up) or a receiver's method.
use super::worker::Worker;
use super::{Chardev, ChardevError, Event, Host, PATIENCE, RESERVE, ROOM, Receiver};
use crate::descriptor::{is_writable, read, write};
use crate::event_loop::{Descriptor, EventLoop, Registration, Source, TimedSource, Timer};
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes in the buffer at which those who found no room are told that there is some.
const LOW: usize = ROOM / 2;
/// Bytes moved at once; no more than a pipe takes without blocking once `poll` says that it takes any
/// (PIPE_BUF, pipe(7)).
const CHUNK: usize = 4096;
/// Chunks written in a turn.
const BURST: usize = 16;
/// How long a backend that is dropped waits for a turn of the loop to end.
const PARTING: Duration = Duration::from_millis(50);
/// How often a thread that waits to write looks whether it still has to.
const LOOK: Duration = Duration::from_millis(50);

/// The descriptors of a line as they are now. Those that the loop waits for are one: input and output are the same, or
/// the output is written by a thread.
#[derive(Clone, Default)]
pub(super) struct Ends {
    /// Read from here.
    pub input: Option<Descriptor>,
    /// The input cannot be waited for, but is always there.
    pub always: bool,
    /// Write here; with none, output is discarded.
    pub output: Option<Descriptor>,
    /// Call `Line::knocked` when this is readable (a listening socket).
    pub knock: Option<Descriptor>,
    /// Call `Line::knocked` after so long (something that can only be asked).
    pub retry: Option<Duration>,
}

/// A connection to the outside. All methods are called by the loop, and none may wait.
pub(super) trait Line: Send {
    /// What to wait for now.
    fn ends(&mut self) -> Ends;
    /// A look at `knock` or a retry is due.
    fn knocked(&mut self) -> Option<ChardevError> {
        None
    }
    /// Reads from the input, which is said to be ready.
    fn read(&mut self, fd: &Descriptor, buf: &mut [u8]) -> io::Result<usize> {
        read(fd, buf)
    }
    /// Writes to the output, which is said to be ready.
    fn write(&mut self, fd: &Descriptor, bytes: &[u8]) -> io::Result<usize> {
        write(fd, bytes)
    }
    /// The input is at its end, or failed.
    fn input_ended(&mut self, why: Option<io::Error>) -> Option<ChardevError>;
    /// The output failed.
    fn output_failed(&mut self, why: io::Error) -> Option<ChardevError>;
}

/// Who writes a line's output.
pub(super) enum Output {
    /// The loop, when the line's output is ready.
    Polled,
    /// A thread, to this descriptor: writing may wait.
    Waits(Descriptor, Arc<Worker>),
}

struct State {
    out: VecDeque<u8>,
    /// There is someone to write to.
    connected: bool,
    /// Somebody will look at the buffer without being told.
    awake: bool,
    /// Somebody found no room, and is to be told when there is some.
    refused: bool,
    /// When the buffer last shrank, or began to fill.
    moved: Instant,
    /// Bytes that the buffer had no room for.
    lost: u64,
    /// Why the thread that writes has given up.
    failed: Option<io::Error>,
    /// Errors that are being told.
    telling: usize,
    hurry: bool,
    stop: bool,
    done: bool,
}

impl State {
    /// Whether anybody takes what is written.
    fn is_open(&self) -> bool {
        self.connected && !self.done
    }

    /// Puts as many of `bytes` into the buffer as it holds with `bound`; how many.
    fn take(&mut self, bytes: &[u8], bound: usize) -> usize {
        let n = bound.saturating_sub(self.out.len()).min(bytes.len());
        if n > 0 && self.out.is_empty() {
            self.moved = Instant::now();
        }
        self.out.extend(&bytes[..n]);
        n
    }

    /// The next chunk; how long it is.
    fn chunk(&self, buf: &mut [u8; CHUNK]) -> usize {
        let n = self.out.len().min(CHUNK);
        for (to, from) in buf.iter_mut().zip(self.out.iter()) {
            *to = *from;
        }
        n
    }

    /// Whether those who found no room can be told that there is some.
    fn has_room_again(&self) -> bool {
        self.refused && self.out.len() <= LOW
    }
}

/// What the loop has of a line.
struct Io {
    line: Box<dyn Line>,
    /// As the line had them last.
    ends: Ends,
    at: Option<Registration>,
    /// What is waited for there: input, room for output.
    armed: (bool, bool),
    /// For `Ends::retry`, and whether it is set.
    retry: Timer,
    asking: bool,
    /// A turn is on its way to read what is always there.
    turning: bool,
    open: bool,
    said_lost: bool,
}

struct Shared {
    me: Weak<Shared>,
    /// What is written to, for messages.
    target: String,
    events: Arc<EventLoop>,
    output: Output,
    state: Mutex<State>,
    /// Signalled when the buffer has shrunk, nobody takes it any more, or an error has been told.
    moved: Condvar,
    /// A turn is on its way, or has not come to where it looks at all there is.
    woken: AtomicBool,
    /// The receiver had no room when last asked: `accept_input` must tell the loop.
    starved: AtomicBool,
    receiver: RwLock<Option<Arc<dyn Receiver>>>,
    on_error: Arc<dyn Fn(ChardevError) + Send + Sync>,
    /// None when the line has ended.
    io: Mutex<Option<Io>>,
}

/// The handle of a backend; dropping it flushes and ends the line.
pub(super) struct Pump {
    shared: Arc<Shared>,
}

/// Why there is a turn.
enum Turn {
    Woken,
    Due,
    Always,
    Ready { readable: bool, writable: bool },
}

impl Pump {
    /// Has the loop of `host` serve a line that messages call `target`.
    pub(super) fn start(
        target: String,
        line: Box<dyn Line>,
        connected: bool,
        output: Output,
        host: &Host,
    ) -> Result<Self, ChardevError> {
        if let Output::Waits(_, worker) = &output {
            worker.start().map_err(|cause| ChardevError::Thread { name: target.clone(), cause })?;
        }
        let shared = Arc::new_cyclic(|me: &Weak<Shared>| {
            let timed: Weak<dyn TimedSource> = me.clone();
            let io = Io {
                line,
                ends: Ends::default(),
                at: None,
                armed: (false, false),
                retry: host.events.timer(timed),
                asking: false,
                turning: false,
                open: false,
                said_lost: false,
            };
            Shared {
                me: me.clone(),
                target,
                events: host.events.clone(),
                output,
                state: Mutex::new(State {
                    out: VecDeque::new(),
                    connected,
                    awake: false,
                    refused: false,
                    moved: Instant::now(),
                    lost: 0,
                    failed: None,
                    telling: 0,
                    hurry: false,
                    stop: false,
                    done: false,
                }),
                moved: Condvar::new(),
                woken: AtomicBool::new(false),
                starved: AtomicBool::new(false),
                receiver: RwLock::new(None),
                on_error: host.on_error.clone(),
                io: Mutex::new(Some(io)),
            }
        });
        shared.wake();
        Ok(Self { shared })
    }

    /// Whether anybody is there.
    pub(super) fn is_connected(&self) -> bool {
        self.shared.state.lock().is_open()
    }

    /// Whether the caller is the loop's own thread, which must not wait for itself.
    fn is_own_thread(&self) -> bool {
        self.shared.events.is_own_thread()
    }
}

impl Chardev for Pump {
    fn write(&self, bytes: &[u8]) -> usize {
        let mut state = self.shared.state.lock();
        if !state.is_open() {
            return bytes.len();
        }
        let n = state.take(bytes, ROOM);
        state.refused |= n < bytes.len();
        self.shared.look(&mut state);
        n
    }

    fn write_all(&self, mut bytes: &[u8], patience: Duration) {
        let mut state = self.shared.state.lock();
        while state.is_open() {
            let n = state.take(bytes, RESERVE);
            bytes = &bytes[n..];
            self.shared.look(&mut state);
            if bytes.is_empty() {
                return;
            }
            let give_up = state.moved + patience;
            if state.hurry || self.is_own_thread() || Instant::now() >= give_up {
                state.lost += bytes.len() as u64;
                // Said by the loop, once.
                self.shared.wake();
                return;
            }
            self.shared.moved.wait_until(&mut state, give_up);
        }
    }

    fn room(&self) -> usize {
        let mut state = self.shared.state.lock();
        let room = if state.is_open() { ROOM.saturating_sub(state.out.len()) } else { usize::MAX };
        state.refused |= room == 0;
        room
    }

    fn set_receiver(&self, receiver: Arc<dyn Receiver>) {
        *self.shared.receiver.write() = Some(receiver);
        self.shared.wake();
    }

    fn accept_input(&self) {
        if self.shared.starved.swap(false, Ordering::SeqCst) {
            self.shared.wake();
        }
    }

    fn hurry(&self) {
        self.shared.state.lock().hurry = true;
        self.shared.moved.notify_all();
    }

    fn unsent(&self) -> u64 {
        let state = self.shared.state.lock();
        state.lost + state.out.len() as u64
    }

    fn flush(&self, until: Instant) {
        if self.is_own_thread() {
            return;
        }
        let mut state = self.shared.state.lock();
        while !state.out.is_empty() && state.is_open() || state.telling > 0 {
            if self.shared.moved.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }
}

/// A backend that is a pump and what it keeps beside it.
macro_rules! chardev_by_pump {
    ($backend:ty) => {
        impl $crate::chardev::Chardev for $backend {
            fn write(&self, bytes: &[u8]) -> usize {
                self.pump.write(bytes)
            }
            fn write_all(&self, bytes: &[u8], patience: std::time::Duration) {
                self.pump.write_all(bytes, patience);
            }
            fn room(&self) -> usize {
                self.pump.room()
            }
            fn set_receiver(&self, receiver: std::sync::Arc<dyn $crate::chardev::Receiver>) {
                self.pump.set_receiver(receiver);
            }
            fn flush(&self, until: std::time::Instant) {
                self.pump.flush(until);
            }
            fn hurry(&self) {
                self.pump.hurry();
            }
            fn unsent(&self) -> u64 {
                self.pump.unsent()
            }
            fn accept_input(&self) {
                self.pump.accept_input();
            }
            fn name(&self) -> String {
                self.filename()
            }
        }
    };
}
pub(super) use chardev_by_pump;

impl Drop for Pump {
    fn drop(&mut self) {
        if !self.shared.state.lock().hurry {
            self.flush(Instant::now() + PATIENCE);
        }
        self.shared.state.lock().stop = true;
        // The loop may be in a turn of this line's, even in the one that this is called from.
        let io = if self.is_own_thread() { None } else { self.shared.io.try_lock_for(PARTING) };
        match io {
            Some(mut io) => {
                let gone = io.take();
                drop(io);
                drop(gone);
                self.shared.end();
            }
            None => {
                let shared = self.shared.clone();
                self.shared.events.post(move || {
                    let gone = shared.io.lock().take();
                    drop(gone);
                    shared.end();
                });
            }
        }
    }
}

impl Source for Shared {
    fn ready(&self, readable: bool, writable: bool) {
        self.turn(Turn::Ready { readable, writable });
    }
}

impl TimedSource for Shared {
    fn due(&self) {
        self.turn(Turn::Due);
    }
}

impl Shared {
    /// Has the loop look at the line.
    fn wake(&self) {
        if !self.woken.swap(true, Ordering::SeqCst)
            && let Some(me) = self.me.upgrade()
        {
            self.events.post(move || me.turn(Turn::Woken));
        }
    }

    /// Has the buffer looked at.
    fn look(&self, state: &mut State) {
        if state.awake || state.out.is_empty() {
            return;
        }
        state.awake = true;
        match &self.output {
            Output::Polled => self.wake(),
            Output::Waits(_, worker) => self.write_on(worker),
        }
    }

    fn write_on(&self, worker: &Worker) {
        if let Some(me) = self.me.upgrade() {
            worker.run(move || me.write_out());
        }
    }

    fn receiver(&self) -> Option<Arc<dyn Receiver>> {
        self.receiver.read().clone()
    }

    /// Nobody moves bytes any more.
    fn end(&self) {
        self.state.lock().done = true;
        self.moved.notify_all();
    }

    fn report(&self, error: Option<ChardevError>) {
        let (Some(e), Some(me)) = (error, self.me.upgrade()) else { return };
        self.state.lock().telling += 1;
        let tell = move || {
            (me.on_error)(e);
            me.state.lock().telling -= 1;
            me.moved.notify_all();
        };
        if thread::Builder::new().name("mynah-report".into()).spawn(tell).is_err() {
            tracing::error!("{}: no thread to tell of an error", self.target);
            self.state.lock().telling -= 1;
        }
    }

    /// Does what there is to do, and sees to it that the loop comes again when there is more.
    fn turn(&self, why: Turn) {
        /// Tells whoever waits, should a receiver panic.
        struct Done<'a>(&'a Shared);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                if thread::panicking() {
                    self.0.end();
                }
            }
        }
        let _done = Done(self);
        // All there is to do is looked at below, so nobody need ask for it until then: what is received may be
        // answered at once.
        self.woken.store(true, Ordering::SeqCst);
        let mut io = self.io.lock();
        let Some(io) = io.as_mut() else { return };
        match why {
            Turn::Woken => {}
            Turn::Due => {
                io.asking = false;
                let error = io.line.knocked();
                self.report(error);
            }
            Turn::Always => {
                io.turning = false;
                self.fill(io);
            }
            Turn::Ready { readable, writable } => {
                let (read, write) = std::mem::take(&mut io.armed);
                if io.ends.knock.is_some() {
                    if readable {
                        let error = io.line.knocked();
                        self.report(error);
                    }
                } else if !(write && writable && self.drain(io).is_err()) && read && readable {
                    self.fill(io);
                }
            }
        }
        self.woken.swap(false, Ordering::SeqCst);
        let failed = self.state.lock().failed.take();
        if let Some(e) = failed {
            let error = io.line.output_failed(e);
            self.report(error);
        }
        self.settle(io);
    }

    /// Follows the line, tells the receiver, and waits for what is to come.
    fn settle(&self, io: &mut Io) {
        io.ends = io.line.ends();
        let ends = io.ends.clone();
        {
            let mut state = self.state.lock();
            state.connected = ends.output.is_some();
            if !state.connected {
                state.out = VecDeque::new();
                state.awake = false;
                self.moved.notify_all();
            }
        }
        // Whoever is told that a peer has come may write to it at once.
        let now_open = ends.input.is_some() || ends.output.is_some();
        if now_open != io.open
            && let Some(r) = self.receiver()
        {
            io.open = now_open;
            r.event(if now_open { Event::Opened } else { Event::Closed });
        }
        let (tell, lost) = {
            let mut state = self.state.lock();
            if state.stop {
                return;
            }
            let tell = state.has_room_again();
            state.refused &= !tell;
            (tell, state.lost > 0)
        };
        if lost && !io.said_lost {
            io.said_lost = true;
            self.report(Some(ChardevError::Lost { target: self.target.clone() }));
        }
        if tell && let Some(r) = self.receiver() {
            r.writable();
        }
        let mut write = false;
        if matches!(self.output, Output::Polled) {
            let mut state = self.state.lock();
            state.awake = !state.out.is_empty();
            write = state.awake;
        }
        let mut read = false;
        if ends.input.is_some() {
            // Before asking for room, so that room made after the answer wakes us.
            self.starved.store(true, Ordering::SeqCst);
            read = self.receiver().is_some_and(|r| r.can_receive() > 0);
            if read {
                self.starved.store(false, Ordering::SeqCst);
            }
        }
        if read && ends.always {
            read = false;
            if !std::mem::replace(&mut io.turning, true)
                && let Some(me) = self.me.upgrade()
            {
                self.events.post(move || me.turn(Turn::Always));
            }
        }
        match &self.output {
            _ if ends.knock.is_some() => self.wait_for(io, ends.knock.as_ref(), (true, false)),
            Output::Polled => self.wait_for(io, ends.input.as_ref().or(ends.output.as_ref()), (read, write)),
            Output::Waits(..) => self.wait_for(io, ends.input.as_ref(), (read, false)),
        }
        if ends.retry.is_some() != io.asking {
            io.asking = !io.asking;
            io.retry.set(ends.retry.map(|after| Instant::now() + after));
        }
    }

    /// Has the loop wait at `descriptor` alone, for input and for room for output.
    fn wait_for(&self, io: &mut Io, descriptor: Option<&Descriptor>, wanted: (bool, bool)) {
        let (read, write) = wanted;
        if !io.at.as_ref().zip(descriptor).is_some_and(|(at, d)| Arc::ptr_eq(at.descriptor(), d)) {
            io.at = None;
            io.armed = (false, false);
        }
        if wanted == io.armed {
            return;
        }
        let waits = match (&io.at, descriptor) {
            (Some(at), _) => at.want(read, write),
            (None, Some(descriptor)) => {
                let source: Weak<dyn Source> = self.me.clone();
                self.events.add(descriptor, source, read, write).map(|at| io.at = Some(at))
            }
            (None, None) => return,
        };
        io.armed = wanted;
        if let Err(e) = waits {
            // Only for want of memory in the host.
            tracing::error!("{}: the host does not wait for it: {e}", self.target);
        }
    }

    /// `written` bytes have left the buffer.
    fn drained(&self, written: usize) {
        let mut state = self.state.lock();
        let n = written.min(state.out.len());
        state.out.drain(..n);
        if state.out.is_empty() && state.out.capacity() > 4 * ROOM {
            state.out = VecDeque::new();
        }
        state.moved = Instant::now();
        drop(state);
        self.moved.notify_all();
    }

    /// Writes some of what waits, as far as the output takes it.
    fn drain(&self, io: &mut Io) -> Result<(), ()> {
        let Some(fd) = &io.ends.output else { return Ok(()) };
        let mut buf = [0; CHUNK];
        for _ in 0..BURST {
            let n = self.state.lock().chunk(&mut buf);
            if n == 0 {
                break;
            }
            match io.line.write(fd, &buf[..n]) {
                Ok(written) => self.drained(written),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => {
                    let error = io.line.output_failed(e);
                    self.report(error);
                    return Err(());
                }
            }
        }
        Ok(())
    }

    /// The same by a thread, to an output that may make it wait.
    fn write_out(&self) {
        let Output::Waits(fd, worker) = &self.output else { return };
        let mut buf = [0; CHUNK];
        for _ in 0..BURST {
            let n = {
                let mut state = self.state.lock();
                let n = if state.stop || !state.connected { 0 } else { state.chunk(&mut buf) };
                if n == 0 {
                    state.awake = false;
                    return;
                }
                n
            };
            if !is_writable(fd, LOOK) {
                break;
            }
            match write(fd, &buf[..n]) {
                Ok(written) => {
                    self.drained(written);
                    if self.state.lock().has_room_again() {
                        self.wake();
                    }
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(e) => {
                    // The loop tells the line, which then has no output any more.
                    self.state.lock().failed = Some(e);
                    self.wake();
                    return;
                }
            }
        }
        self.write_on(worker);
    }

    /// Reads as much as there is room for and hands it on.
    fn fill(&self, io: &mut Io) {
        let (Some(fd), Some(r)) = (&io.ends.input, self.receiver()) else { return };
        let room = r.can_receive().min(CHUNK);
        if room == 0 {
            return;
        }
        let mut buf = [0; CHUNK];
        match io.line.read(fd, &mut buf[..room]) {
            Ok(0) => {
                let error = io.line.input_ended(None);
                self.report(error);
            }
            Ok(n) => r.receive(&buf[..n]),
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(e) => {
                let error = io.line.input_ended(Some(e));
                self.report(error);
            }
        }
    }
}
