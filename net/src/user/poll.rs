//! A small event loop on poll(2) for tests and benchmarks, whose clock can be put forward.
use crate::reactor::{Interest, Reactor, Token};
use parking_lot::Mutex;
use socket2::Socket;
use std::collections::HashMap;
use std::io;
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
                let events = if *read { host::POLLIN } else { 0 } | if *write { host::POLLOUT } else { 0 };
                fds.push(host::entry(socket, events));
                tokens.push(*token);
            }
            let wait = state.deadline.map_or(most, |d| d.saturating_duration_since(now).min(most));
            (fds, tokens, wait)
        };
        let found = host::poll(&mut fds, wait.as_micros().div_ceil(1000) as i32);
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
            let failed = fd.revents & (host::POLLERR | host::POLLHUP) != 0;
            let read = entry.1 && (fd.revents & host::POLLIN != 0 || failed);
            let write = entry.2 && (fd.revents & host::POLLOUT != 0 || failed);
            (entry.1, entry.2) = (false, false);
            drop(state);
            user.ready(token, read, write);
        }
    }
}

#[cfg(unix)]
mod host {
    pub use libc::{POLLERR, POLLHUP, POLLIN, POLLOUT, pollfd};
    use socket2::Socket;
    use std::os::fd::AsRawFd;

    pub fn entry(socket: &Socket, events: i16) -> pollfd {
        pollfd { fd: socket.as_raw_fd(), events, revents: 0 }
    }

    pub fn poll(fds: &mut [pollfd], wait: i32) -> i32 {
        // SAFETY: `fds` is a slice of that many entries; the descriptors are open as long as they are registered, and
        // one that was closed meanwhile is POLLNVAL, no more.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as _, wait) }
    }
}

#[cfg(windows)]
mod host {
    use socket2::Socket;
    use std::os::windows::io::AsRawSocket;
    pub use windows_sys::Win32::Networking::WinSock::{POLLERR, POLLHUP, POLLIN, POLLOUT};
    use windows_sys::Win32::Networking::WinSock::{WSAPOLLFD, WSAPoll};

    pub fn entry(socket: &Socket, events: i16) -> WSAPOLLFD {
        WSAPOLLFD { fd: socket.as_raw_socket() as usize, events, revents: 0 }
    }

    pub fn poll(fds: &mut [WSAPOLLFD], wait: i32) -> i32 {
        if fds.is_empty() {
            // It takes no empty list.
            std::thread::sleep(std::time::Duration::from_millis(wait as u64));
            return 0;
        }
        // SAFETY: `fds` is a slice of that many entries; a socket that was closed meanwhile is POLLNVAL, no more.
        unsafe { WSAPoll(fds.as_mut_ptr(), fds.len() as u32, wait) }
    }
}
