//! `pty`: a new pseudo-terminal, whose name is announced. What the guest sends while nobody has it open is
//! discarded.
//!
//! A master without a slave polls as hung up for ever, so its state is asked again a few times a second until
//! someone opens it.
use super::pump::{Ends, Line, Output, Pump, chardev_by_pump};
use super::{ChardevError, Host};
use crate::event_loop::Descriptor;
use rustix::fs::{Mode, OFlags, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pty::{self, OpenptFlags};
use rustix::termios::{self, OptionalActions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// How often to ask whether someone has opened the slave.
const ASK: Duration = Duration::from_millis(200);

/// A pseudo-terminal.
pub struct Pty {
    pump: Pump,
    path: String,
}

struct PtyLine {
    master: Descriptor,
    /// Writing has failed for another reason than a closed slave.
    dead: bool,
}

impl Pty {
    /// Makes a pseudo-terminal in raw mode and announces its path.
    pub fn open(host: &Host) -> Result<Self, ChardevError> {
        let (master, path) = create().map_err(ChardevError::Pty)?;
        (host.announce)(&format!("char device redirected to {path}"));
        let line = PtyLine { master: Arc::new(master), dead: false };
        let pump = Pump::start(path.clone(), Box::new(line), false, Output::Polled, host)?;
        Ok(Self { pump, path })
    }

    /// The slave's path, for another program to open.
    pub fn path(&self) -> &str {
        &self.path
    }

    fn filename(&self) -> String {
        format!("pty:{}", self.path)
    }
}

fn create() -> io::Result<(OwnedFd, String)> {
    let master = pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    pty::grantpt(&master)?;
    pty::unlockpt(&master)?;
    let path = pty::ptsname(&master, Vec::new())?.to_string_lossy().into_owned();
    let slave = rustix::fs::open(&path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    let mut t = termios::tcgetattr(&slave)?;
    t.make_raw();
    termios::tcsetattr(&slave, OptionalActions::Now, &t)?;
    fcntl_setfd(&master, FdFlags::CLOEXEC)?;
    // The flag is the open file's, which nobody else has.
    fcntl_setfl(&master, OFlags::NONBLOCK)?;
    Ok((master, path))
}

impl PtyLine {
    /// Whether someone has the slave open.
    fn ask(&self) -> bool {
        let mut fd = libc::pollfd { fd: self.master.source().as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: one initialised pollfd; no waiting.
        let n = unsafe { libc::poll(&mut fd, 1, 0) };
        n >= 0 && fd.revents & libc::POLLHUP == 0
    }
}

impl Line for PtyLine {
    fn ends(&mut self) -> Ends {
        if self.dead {
            Ends::default()
        } else if self.ask() {
            let fd = Some(self.master.clone());
            Ends { input: fd.clone(), output: fd, ..Ends::default() }
        } else {
            Ends { retry: Some(ASK), ..Ends::default() }
        }
    }

    fn input_ended(&mut self, _: Option<io::Error>) -> Option<ChardevError> {
        // EIO: the slave was closed. `ends` sees it and waits for the next one.
        None
    }

    fn output_failed(&mut self, cause: io::Error) -> Option<ChardevError> {
        // The same: `ends` will find it hung up. Anything else is worth a word, once.
        self.dead = cause.raw_os_error() != Some(libc::EIO);
        self.dead.then(|| ChardevError::Write { target: "the pseudo-terminal".to_owned(), cause })
    }
}

chardev_by_pump!(Pty);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chardev::testing::Sink;
    use crate::chardev::{Chardev, PATIENCE};
    use std::fs::OpenOptions;
    use std::io::{Read, Write};

    #[test]
    fn the_announced_terminal_carries_bytes_both_ways() {
        let (said, says) = std::sync::mpsc::channel();
        let said = parking_lot::Mutex::new(said);
        let host = Host {
            announce: Arc::new(move |line| said.lock().send(line.to_owned()).unwrap()),
            ..Host::default()
        };
        let pty = Pty::open(&host).unwrap();
        assert!(says.recv().unwrap().ends_with(pty.path()));
        let sink = Sink::new(usize::MAX);
        pty.set_receiver(sink.clone());
        for (round, text) in [b"one\r\x03", b"two\n\x00"].iter().enumerate() {
            let mut slave = OpenOptions::new().read(true).write(true).open(pty.path()).unwrap();
            slave.write_all(*text).unwrap();
            let all = sink.wait(5 * (round + 1));
            assert_eq!(&all[5 * round..], *text);
            pty.write_all(b"back\n", PATIENCE);
            let mut heard = [0; 5];
            slave.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"back\n");
        }
    }
}
