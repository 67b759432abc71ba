//! The thread behind a character backend that lives on file descriptors: it moves bytes both ways with
//! `poll`.
//!
//! ```text
//!   guest --write()--> bounded buffer --+            +--> output descriptor
//!                                       +-- thread --+
//!   guest <--receive()-- as much as can_receive() ---+--- input descriptor
//! ```
//!
//! `write` waits while the buffer is full, so nothing a guest sends is lost while somebody is there to take
//! it; with nobody there (a socket without a client, a broken pipe) it is discarded, as a cable with nothing
//! at its end would. Input is read only as far as the receiver has room; when it has none the thread leaves
//! the descriptor alone until `accept_input` wakes it.
//!
//! Locks: `state` guards the buffer and is never held over a system call or a receiver's method.
use super::{ChardevError, Event, Receiver};
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::VecDeque;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// Bytes that may wait for a slow backend before the guest waits too.
const CAPACITY: usize = 64 * 1024;
/// Bytes moved at once; no more than a pipe takes without blocking once `poll` says that it takes any
/// (PIPE_BUF, pipe(7)).
const CHUNK: usize = 4096;
/// How long `flush` waits for a backend that takes nothing.
const PATIENCE: Duration = Duration::from_secs(5);

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
    stop: bool,
    done: bool,
}

struct Shared {
    state: Mutex<State>,
    /// Signalled when the buffer has shrunk or the thread has ended.
    moved: Condvar,
    wake: PipeWriter,
    /// The receiver had no room when last asked: `accept_input` must wake the thread.
    starved: AtomicBool,
    receiver: RwLock<Option<Arc<dyn Receiver>>>,
    on_error: Arc<dyn Fn(ChardevError) + Send + Sync>,
}

/// The handle of a backend's thread; dropping it flushes and ends the thread.
pub(super) struct Pump {
    shared: Arc<Shared>,
    thread: ThreadId,
}

impl Pump {
    /// Starts the thread.
    pub(super) fn start(
        name: &str,
        line: Box<dyn Line>,
        connected: bool,
        on_error: Arc<dyn Fn(ChardevError) + Send + Sync>,
    ) -> Result<Self, ChardevError> {
        let failed = |source| ChardevError::Thread { name: name.to_owned(), source };
        let (woken, wake) = io::pipe().map_err(failed)?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                out: VecDeque::new(),
                connected,
                awake: false,
                stop: false,
                done: false,
            }),
            moved: Condvar::new(),
            wake,
            starved: AtomicBool::new(false),
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
                done.0.run(line, woken);
            })
            .map_err(failed)?;
        Ok(Self { shared, thread: thread.thread().id() })
    }

    /// Whether the caller is the pump's own thread, which must not wait for itself.
    fn is_own_thread(&self) -> bool {
        thread::current().id() == self.thread
    }

    pub(super) fn write(&self, mut bytes: &[u8]) {
        let mut state = self.shared.state.lock();
        while !bytes.is_empty() && state.connected && !state.done {
            let room =
                if self.is_own_thread() { bytes.len() } else { CAPACITY.saturating_sub(state.out.len()) };
            if room == 0 {
                self.shared.moved.wait(&mut state);
                continue;
            }
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            state.out.extend(now);
            bytes = later;
            if !state.awake {
                state.awake = true;
                self.shared.wake();
            }
        }
    }

    pub(super) fn set_receiver(&self, receiver: Arc<dyn Receiver>) {
        *self.shared.receiver.write() = Some(receiver);
        self.shared.wake();
    }

    pub(super) fn accept_input(&self) {
        if self.shared.starved.swap(false, Ordering::SeqCst) {
            self.shared.wake();
        }
    }

    pub(super) fn flush(&self) {
        if self.is_own_thread() {
            return;
        }
        let mut state = self.shared.state.lock();
        let mut left = state.out.len();
        let mut give_up = Instant::now() + PATIENCE;
        while left > 0 && state.connected && !state.done {
            if self.shared.moved.wait_until(&mut state, give_up).timed_out() {
                return;
            }
            if state.out.len() < left {
                give_up = Instant::now() + PATIENCE;
            }
            left = state.out.len();
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.flush();
        let mut state = self.shared.state.lock();
        state.stop = true;
        self.shared.wake();
        if !self.is_own_thread() {
            // A thread that is stuck in a write to a stopped terminal is left behind.
            let give_up = Instant::now() + PATIENCE;
            while !state.done && !self.shared.moved.wait_until(&mut state, give_up).timed_out() {}
        }
    }
}

impl Shared {
    fn wake(&self) {
        // The pipe holds a byte for each pending wake-up; it cannot fail while the reader lives, and then
        // nobody needs waking.
        let _ = (&self.wake).write(&[0]);
    }

    fn receiver(&self) -> Option<Arc<dyn Receiver>> {
        self.receiver.read().clone()
    }

    fn report(&self, error: Option<ChardevError>) {
        if let Some(e) = error {
            (self.on_error)(e);
        }
    }

    fn run(&self, mut line: Box<dyn Line>, mut woken: PipeReader) {
        let mut open = false;
        let mut buf = [0_u8; CHUNK];
        loop {
            let ends = line.ends();
            let now_open = ends.input.is_some() || ends.output.is_some();
            if now_open != open {
                open = now_open;
                if let Some(r) = self.receiver() {
                    r.event(if open { Event::Opened } else { Event::Closed });
                }
            }
            let want_out = {
                let mut state = self.state.lock();
                state.connected = ends.output.is_some();
                if !state.connected {
                    state.out.clear();
                    self.moved.notify_all();
                }
                if state.stop {
                    return;
                }
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
        // SAFETY: the first `n` bytes of `buf` are initialised, and the line keeps `fd` open until its next
        // `ends`.
        let written = unsafe { libc::write(fd, buf.as_ptr().cast(), n) };
        if written < 0 {
            let e = io::Error::last_os_error();
            if !matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) {
                self.report(line.output_failed(e));
            }
            return;
        }
        self.state.lock().out.drain(..(written as usize).min(n));
        self.moved.notify_all();
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
