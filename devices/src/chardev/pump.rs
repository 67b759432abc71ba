//! The thread behind a character backend that lives on file descriptors: it moves bytes both ways with
//! `poll`.
//!
//! ```text
//!   guest --write()--> bounded buffer --+            +--> output descriptor
//!                                       +-- thread --+
//!   guest <--receive()-- as much as can_receive() ---+--- input descriptor
//!         <--writable()-- there is room again
//! ```
//!
//! The buffer has room for [`ROOM`] bytes; with what comes from devices that cannot hold theirs back it grows
//! to [`RESERVE`] bytes. With nobody there (a socket without a client, a broken pipe) output is discarded, as
//! a cable with nothing at its end would. Input is read only as far as the receiver has room; when it has none
//! the thread leaves the descriptor alone until `accept_input` wakes it.
//!
//! Locks: `state` guards the buffer and is never held over a system call (but for the wake-up) or a receiver's
//! method.
use super::{Chardev, ChardevError, Event, PATIENCE, RESERVE, ROOM, Receiver};
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::VecDeque;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// Bytes in the buffer at which those who found no room are told that there is some.
const LOW: usize = ROOM / 2;
/// Bytes moved at once; no more than a pipe takes without blocking once `poll` says that it takes any
/// (PIPE_BUF, pipe(7)).
const CHUNK: usize = 4096;
/// How long a backend that is dropped waits for its thread, which may be stuck in a write.
const PARTING: Duration = Duration::from_millis(50);

/// The descriptors of a line as they are now.
#[derive(Default)]
pub(super) struct Ends {
    /// Read from here.
    pub input: Option<RawFd>,
    /// Write here; with none, output is discarded.
    pub output: Option<RawFd>,
    /// Call `Line::knocked` when this is readable (a listening socket).
    pub knock: Option<RawFd>,
    /// Call `Line::knocked` after so long (something that can only be asked).
    pub retry: Option<Duration>,
}

/// A connection to the outside. All methods run on the pump's thread.
pub(super) trait Line: Send {
    /// What to poll now.
    fn ends(&mut self) -> Ends;
    /// A look at `knock` or a retry is due.
    fn knocked(&mut self) -> Option<ChardevError> {
        None
    }
    /// Writes to the output, which `poll` has found ready. A line with input too must not wait here, or nobody
    /// reads what is typed.
    fn write(&mut self, fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: `bytes` is readable for its length, and the line keeps `fd` open until its next `ends`.
        let n = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }
    /// The input is at its end, or failed.
    fn input_ended(&mut self, why: Option<io::Error>) -> Option<ChardevError>;
    /// The output failed.
    fn output_failed(&mut self, why: io::Error) -> Option<ChardevError>;
}

struct State {
    out: VecDeque<u8>,
    /// There is someone to write to.
    connected: bool,
    /// The thread will look at the buffer without being woken.
    awake: bool,
    /// Somebody found no room, and is to be told when there is some.
    refused: bool,
    /// When the buffer last shrank, or began to fill.
    moved: Instant,
    /// Bytes that the buffer had no room for.
    lost: u64,
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
}

struct Shared {
    /// What is written to, for messages.
    target: String,
    state: Mutex<State>,
    /// Signalled when the buffer has shrunk or the thread has ended.
    moved: Condvar,
    wake: PipeWriter,
    /// The receiver had no room when last asked: `accept_input` must wake the thread.
    starved: AtomicBool,
    /// Another pump, of the same receiver's output, has room again.
    writable: AtomicBool,
    receiver: RwLock<Option<Arc<dyn Receiver>>>,
    on_error: Arc<dyn Fn(ChardevError) + Send + Sync>,
}

/// The handle of a backend's thread; dropping it flushes and ends the thread.
pub(super) struct Pump {
    shared: Arc<Shared>,
    thread: ThreadId,
}

/// The pump of a line's input that has its output in a pump of its own, and tells the receiver for it.
pub(super) struct InputSide(Arc<Shared>);

impl Pump {
    /// Starts a thread called `name`, for what messages call `target`.
    pub(super) fn start(
        name: &str,
        target: String,
        line: Box<dyn Line>,
        connected: bool,
        on_error: Arc<dyn Fn(ChardevError) + Send + Sync>,
    ) -> Result<Self, ChardevError> {
        Self::start_beside(name, target, line, connected, on_error, None)
    }

    /// The same for output alone, beside the pump of the input: a write that waits keeps nobody from reading.
    pub(super) fn start_beside(
        name: &str,
        target: String,
        line: Box<dyn Line>,
        connected: bool,
        on_error: Arc<dyn Fn(ChardevError) + Send + Sync>,
        beside: Option<InputSide>,
    ) -> Result<Self, ChardevError> {
        let failed = |cause| ChardevError::Thread { name: name.to_owned(), cause };
        let (woken, wake) = io::pipe().map_err(failed)?;
        let shared = Arc::new(Shared {
            target,
            state: Mutex::new(State {
                out: VecDeque::new(),
                connected,
                awake: false,
                refused: false,
                moved: Instant::now(),
                lost: 0,
                hurry: false,
                stop: false,
                done: false,
            }),
            moved: Condvar::new(),
            wake,
            starved: AtomicBool::new(false),
            writable: AtomicBool::new(false),
            receiver: RwLock::new(None),
            on_error,
        });
        let theirs = shared.clone();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // Tells whoever waits that nobody will move bytes any more, even if a receiver panics.
                struct Done(Arc<Shared>);
                impl Drop for Done {
                    fn drop(&mut self) {
                        self.0.state.lock().done = true;
                        self.0.moved.notify_all();
                    }
                }
                let done = Done(theirs);
                done.0.run(line, woken, beside);
            })
            .map_err(failed)?;
        Ok(Self { shared, thread: thread.thread().id() })
    }

    /// For the pump of the output.
    pub(super) fn input_side(&self) -> InputSide {
        InputSide(self.shared.clone())
    }

    /// Whether anybody is there.
    pub(super) fn is_connected(&self) -> bool {
        self.shared.state.lock().is_open()
    }

    /// Whether the caller is the pump's own thread, which must not wait for itself.
    fn is_own_thread(&self) -> bool {
        thread::current().id() == self.thread
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
                // Said by the thread, once: whoever writes here must not wait for standard error either.
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
        while !state.out.is_empty() && state.is_open() {
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
        let mut state = self.shared.state.lock();
        state.stop = true;
        self.shared.wake();
        if !self.is_own_thread() {
            // A thread that is stuck in a write to a stopped terminal is left behind.
            let give_up = Instant::now() + PARTING;
            while !state.done && !self.shared.moved.wait_until(&mut state, give_up).timed_out() {}
        }
    }
}

impl Shared {
    fn wake(&self) {
        // The pipe holds a byte for each pending wake-up, and a full one wakes as well; it cannot fail while
        // the reader lives, and then nobody needs waking.
        let _ = (&self.wake).write(&[0]);
    }

    /// Has the thread look at the buffer.
    fn look(&self, state: &mut State) {
        if !state.awake && !state.out.is_empty() {
            state.awake = true;
            self.wake();
        }
    }

    fn receiver(&self) -> Option<Arc<dyn Receiver>> {
        self.receiver.read().clone()
    }

    fn report(&self, error: Option<ChardevError>) {
        if let Some(e) = error {
            (self.on_error)(e);
        }
    }

    /// Tells those who found no room that there is some.
    fn tell_writable(&self, beside: Option<&InputSide>) {
        match beside {
            Some(InputSide(input)) => {
                input.writable.store(true, Ordering::SeqCst);
                input.wake();
            }
            None => {
                if let Some(r) = self.receiver() {
                    r.writable();
                }
            }
        }
    }

    fn run(&self, mut line: Box<dyn Line>, mut woken: PipeReader, beside: Option<InputSide>) {
        let mut open = false;
        let mut said_lost = false;
        let mut buf = [0_u8; CHUNK];
        loop {
            let ends = line.ends();
            {
                let mut state = self.state.lock();
                state.connected = ends.output.is_some();
                if !state.connected {
                    state.out = VecDeque::new();
                    self.moved.notify_all();
                }
            }
            // Whoever is told that a peer has come may write to it at once.
            let now_open = ends.input.is_some() || ends.output.is_some();
            if now_open != open
                && let Some(r) = self.receiver()
            {
                open = now_open;
                r.event(if open { Event::Opened } else { Event::Closed });
            }
            let (tell, lost) = {
                let mut state = self.state.lock();
                if state.stop {
                    return;
                }
                let tell = state.refused && state.out.len() <= LOW;
                state.refused &= !tell;
                (tell, state.lost > 0)
            };
            if tell {
                self.tell_writable(beside.as_ref());
            }
            if self.writable.swap(false, Ordering::SeqCst) {
                self.tell_writable(None);
            }
            if lost && !said_lost {
                said_lost = true;
                self.report(Some(ChardevError::Lost { target: self.target.clone() }));
            }
            let want_out = {
                let mut state = self.state.lock();
                state.awake = !state.out.is_empty();
                state.awake
            };
            let mut room = 0;
            if ends.input.is_some() {
                // Before asking for room, so that room made after the answer wakes us.
                self.starved.store(true, Ordering::SeqCst);
                room = self.receiver().map_or(0, |r| r.can_receive()).min(CHUNK);
                if room > 0 {
                    self.starved.store(false, Ordering::SeqCst);
                }
            }

            let poll_in =
                |fd: Option<RawFd>, events| libc::pollfd { fd: fd.unwrap_or(-1), events, revents: 0 };
            let mut fds = [
                poll_in(Some(woken.as_raw_fd()), libc::POLLIN),
                poll_in(ends.input.filter(|_| room > 0), libc::POLLIN),
                poll_in(ends.output.filter(|_| want_out), libc::POLLOUT),
                poll_in(ends.knock, libc::POLLIN),
            ];
            let timeout = ends.retry.map_or(-1, |d| d.as_millis().min(i32::MAX as u128) as i32);
            // SAFETY: `fds` is an array of that many initialised pollfds; descriptors of -1 are ignored
            // (poll(2)).
            let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
            if ready < 0 {
                let e = io::Error::last_os_error();
                if e.kind() != io::ErrorKind::Interrupted {
                    tracing::error!("poll: {e}");
                    return;
                }
                continue;
            }
            if fds[0].revents != 0 {
                let _ = woken.read(&mut [0; 64]);
            }
            if let (Some(fd), true) = (ends.output, fds[2].revents != 0) {
                self.drain(fd, &mut *line, &mut buf);
            }
            if let (Some(fd), true) = (ends.input, fds[1].revents != 0) {
                self.fill(fd, &mut *line, &mut buf[..room]);
            }
            if fds[3].revents != 0 || (ready == 0 && ends.retry.is_some()) {
                self.report(line.knocked());
            }
        }
    }

    /// Writes a chunk of what waits.
    fn drain(&self, fd: RawFd, line: &mut dyn Line, buf: &mut [u8; CHUNK]) {
        let n = {
            let state = self.state.lock();
            let n = state.out.len().min(CHUNK);
            for (to, from) in buf.iter_mut().zip(state.out.iter()) {
                *to = *from;
            }
            n
        };
        match line.write(fd, &buf[..n]) {
            Ok(written) => {
                let mut state = self.state.lock();
                state.out.drain(..written.min(n));
                if state.out.is_empty() && state.out.capacity() > 4 * ROOM {
                    state.out = VecDeque::new();
                }
                state.moved = Instant::now();
                drop(state);
                self.moved.notify_all();
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(e) => self.report(line.output_failed(e)),
        }
    }

    /// Reads as much as there is room for and hands it on.
    fn fill(&self, fd: RawFd, line: &mut dyn Line, buf: &mut [u8]) {
        // SAFETY: `buf` is writable for its length, and the line keeps `fd` open until its next `ends`.
        let n = unsafe { libc::read(fd, buf.as_mut_ptr().cast(), buf.len()) };
        match n {
            0 => self.report(line.input_ended(None)),
            1.. => {
                if let Some(r) = self.receiver() {
                    r.receive(&buf[..n as usize]);
                }
            }
            _ => {
                let e = io::Error::last_os_error();
                if !matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) {
                    self.report(line.input_ended(Some(e)));
                }
            }
        }
    }
}
