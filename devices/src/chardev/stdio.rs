//! `stdio`: the process's standard input and output.
//!
//! If standard input is a terminal it is in raw mode while the backend lives. The settings found are put back
//! when it is dropped, when the process exits, when a thread panics, and when a signal ends the process
//! (`fatal`); after SIGCONT raw mode is taken up again. The end of standard input, or a
//! standard output that nobody reads any more, ends that direction only: the machine goes on.
//!
//! What a terminal is to the host is in `terminal`.
use super::pump::{Ends, Line, Output, Pump};
use super::terminal::{self, RawMode};
use super::worker::Worker;
use super::{Chardev, ChardevError, Host, Receiver};
use crate::descriptor::{is_readable, read};
use crate::event_loop::Descriptor;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use super::terminal::{Typed, has_continued, restore as restore_terminal, typed, window_size};

/// The process's standard input and output. There can be one at a time.
///
/// Output has a thread: standard output belongs to others too, so its descriptor cannot be made not to wait, and
/// a terminal that has stopped must not keep anybody from reading what is typed there.
pub struct Stdio {
    // In this order: the pump flushes and ends, then the terminal is restored, then the next one may come.
    pump: Pump,
    terminal: bool,
    _raw: Option<RawMode>,
    _claim: Claim,
}

static IN_USE: AtomicBool = AtomicBool::new(false);

/// The right to use standard input and output.
struct Claim;

impl Claim {
    fn take() -> Result<Self, ChardevError> {
        if IN_USE.swap(true, Ordering::SeqCst) { Err(ChardevError::StdioInUse) } else { Ok(Claim) }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        IN_USE.store(false, Ordering::SeqCst);
    }
}

struct StdioLine {
    input: Option<Descriptor>,
    /// The input cannot be waited for.
    always: bool,
    output: Option<Descriptor>,
}

impl Stdio {
    /// Takes standard input and output. With `signal`, Ctrl-C and its like act on this process; without, the
    /// guest gets them.
    pub fn open(signal: bool, host: &Host) -> Result<Self, ChardevError> {
        let claim = Claim::take()?;
        let raw = if io::stdin().is_terminal() {
            Some(RawMode::enter(signal, b"").map_err(ChardevError::Terminal)?)
        } else {
            None
        };
        let (stdin, stdout) = terminal::streams().map_err(ChardevError::Terminal)?;
        let always = terminal::is_plain_file(&stdin) || !host.events.can_wait_for(&stdin);
        let line = StdioLine { input: Some(stdin), always, output: Some(stdout.clone()) };
        let output = Output::Waits(stdout, Arc::new(Worker::new("mynah-stdout")));
        let pump = Pump::start("standard output".to_owned(), Box::new(line), true, output, host)?;
        Ok(Self { pump, terminal: raw.is_some(), _raw: raw, _claim: claim })
    }
}

impl Line for StdioLine {
    fn ends(&mut self) -> Ends {
        let Self { input, always, output } = self;
        Ends { input: input.clone(), always: *always, output: output.clone(), ..Ends::default() }
    }

    fn read(&mut self, fd: &Descriptor, buf: &mut [u8]) -> io::Result<usize> {
        // Others may have read it by now (a shell, while this process was stopped), and the descriptor is theirs too.
        if !is_readable(fd) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        read(fd, buf)
    }

    fn input_ended(&mut self, why: Option<io::Error>) -> Option<ChardevError> {
        self.input = None;
        let cause = why?;
        (!terminal::has_gone(&cause))
            .then(|| ChardevError::Read { target: "standard input".to_owned(), cause })
    }

    fn output_failed(&mut self, cause: io::Error) -> Option<ChardevError> {
        self.output = None;
        Some(ChardevError::Write { target: "standard output".to_owned(), cause })
    }
}

impl Chardev for Stdio {
    fn write(&self, bytes: &[u8]) -> usize {
        self.pump.write(bytes)
    }
    fn write_all(&self, bytes: &[u8], patience: Duration) {
        self.pump.write_all(bytes, patience);
    }
    fn room(&self) -> usize {
        self.pump.room()
    }
    fn set_receiver(&self, receiver: Arc<dyn Receiver>) {
        self.pump.set_receiver(receiver);
    }
    fn flush(&self, until: Instant) {
        self.pump.flush(until);
    }
    fn hurry(&self) {
        self.pump.hurry();
    }
    fn unsent(&self) -> u64 {
        self.pump.unsent()
    }
    fn is_terminal(&self) -> bool {
        self.terminal
    }
    fn name(&self) -> String {
        "stdio".to_owned()
    }
    fn accept_input(&self) {
        self.pump.accept_input();
    }
}

/// The whole terminal, for a program that draws on it: raw, its keys are no signals, and written to from its upper left
/// corner on. When this is dropped, and however else the process ends, it is as it was.
pub struct FullScreen {
    _raw: RawMode,
    _claim: Claim,
}

/// Shows the terminal's other screen, and empties it; the cursor is a block that stays.
pub const ENTER_SCREEN: &[u8] = b"\x1b[?1049h\x1b[0m\x1b[2J\x1b[H";
/// Shows the usual one again, with a cursor and no colours.
const LEAVE_SCREEN: &[u8] = b"\x1b[0m\x1b[?25h\x1b[?1049l";

impl FullScreen {
    /// Takes standard input and output, which are a terminal.
    ///
    /// # Errors
    /// Somebody has them, or they are none.
    pub fn enter() -> Result<Self, ChardevError> {
        let claim = Claim::take()?;
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Err(ChardevError::Terminal(io::Error::other("they are no terminal")));
        }
        let raw = RawMode::enter(false, LEAVE_SCREEN).map_err(ChardevError::Terminal)?;
        Ok(Self { _raw: raw, _claim: claim })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_input_and_output_have_one_user() {
        let first = Claim::take().unwrap();
        assert!(matches!(Claim::take(), Err(ChardevError::StdioInUse)));
        drop(first);
        assert!(Claim::take().is_ok());
    }
}
