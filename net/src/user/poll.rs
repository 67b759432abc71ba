//! A small event loop on poll(2) for tests and benchmarks, whose clock can be put forward.
use crate::reactor::{Interest, Reactor, Token};
use parking_lot::Mutex;
use socket2::Socket;
use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

type Waiting = HashMap<Token, (Arc<Socket>, bool, bool)>;

#[derive(Default)]
struct State {
    waiting: Waiting,
    deadline: Option<Instant>,
    skew: Duration,
}

/// An event loop on poll(2) without a thread: [`Poll::turn`] is one turn of it.
#[derive(Clone, Default)]
pub struct Poll(Arc<Mutex<State>>);

struct Registered {
    state: Arc<Mutex<State>>,
    token: Token,
}

impl Interest for Registered {
    fn want(&self, read: bool, write: bool) -> io::Result<()> {
        if let Some(entry) = self.state.lock().waiting.get_mut(&self.token) {
            (entry.1, entry.2) = (read, write);
        }
        Ok(())
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.state.lock().waiting.remove(&self.token);
    }
}

impl Reactor for Poll {
    fn now(&self) -> Instant {
        Instant::now() + self.0.lock().skew
    }

    fn register(&self, socket: &Arc<Socket>, token: Token) -> io::Result<Box<dyn Interest>> {
        self.0.lock().waiting.insert(token, (socket.clone(), false, false));
        Ok(Box::new(Registered { state: self.0.clone(), token }))
    }

    fn set_timer(&self, deadline: Option<Instant>) {
        self.0.lock().deadline = deadline;
    }
}

impl Poll {
    /// A loop that waits for nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts the clock forward.
    pub fn advance(&self, by: Duration) {
        self.0.lock().skew += by;
    }

    /// How many sockets there are.
    pub fn sockets(&self) -> usize {
        self.0.lock().waiting.len()
    }

    /// One turn: waits until something is ready, a time has come, or `most` is over, and tells `user`.
    pub fn turn(&self, user: &super::User, most: Duration) {
        let now = self.now();
        let (mut fds, tokens, wait) = {
            let state = self.0.lock();
            let (mut fds, mut tokens) = (Vec::new(), Vec::new());
            for (token, (socket, read, write)) in state.waiting.iter().filter(|(_, (_, r, w))| *r || *w) {
                let events = if *read { libc::POLLIN } else { 0 } | if *write { libc::POLLOUT } else { 0 };
                fds.push(libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 });
                tokens.push(*token);
            }
            let wait = state.deadline.map_or(most, |d| d.saturating_duration_since(now).min(most));
            (fds, tokens, wait)
        };
        // SAFETY: `fds` is a slice of that many entries; the descriptors are open as long as they are registered, and
        // one that was closed meanwhile is POLLNVAL, no more.
        let found =
            unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as _, wait.as_micros().div_ceil(1000) as i32) };
        let now = self.now();
        let due = self.0.lock().deadline.take_if(|d| *d <= now).is_some();
        if due {
            user.due();
        }
        if found <= 0 {
            return;
        }
        for (fd, token) in fds.iter().zip(tokens).filter(|(fd, _)| fd.revents != 0) {
            let mut state = self.0.lock();
            let Some(entry) = state.waiting.get_mut(&token) else { continue };
            let failed = fd.revents & (libc::POLLERR | libc::POLLHUP) != 0;
            let read = entry.1 && (fd.revents & libc::POLLIN != 0 || failed);
            let write = entry.2 && (fd.revents & libc::POLLOUT != 0 || failed);
            (entry.1, entry.2) = (false, false);
            drop(state);
            user.ready(token, read, write);
        }
    }
}
