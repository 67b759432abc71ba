//! The terminal of a Unix host.
//!
//! One lock-free cell holds the settings to be restored, because signal handlers need them: `SAVED` goes from
//! null to a leaked `termios` pair when raw mode is entered and back to null by whoever restores it first.
mod guards;

use crate::event_loop::Descriptor;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{self, OptionalActions, Termios};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::time::Duration;

/// Standard input and output.
pub(super) fn streams() -> io::Result<(Descriptor, Descriptor)> {
    Ok((Arc::new(io::stdin()), Arc::new(io::stdout())))
}

/// Whether it is a regular file, which is always ready.
pub(super) fn is_plain_file(stream: &Descriptor) -> bool {
    let file = stream.source().try_clone_to_owned().and_then(|fd| File::from(fd).metadata());
    file.is_ok_and(|m| m.is_file())
}

/// EIO is how a terminal says that it has gone, or that this is a background process.
pub(super) fn has_gone(why: &io::Error) -> bool {
    why.raw_os_error() == Some(libc::EIO)
}

/// Columns and rows of the terminal that is standard output.
pub fn window_size() -> Option<(usize, usize)> {
    let size = termios::tcgetwinsize(io::stdout()).ok()?;
    Some((size.ws_col.into(), size.ws_row.into()))
}

/// What has come of [`typed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typed {
    /// Nothing in this time.
    Nothing,
    /// So many bytes.
    Bytes(usize),
    /// The terminal has gone.
    Ended,
    /// Somebody else has the terminal now.
    Elsewhere,
}

/// Waits so long for what is typed at the terminal that is standard input.
pub fn typed(wait: Duration, bytes: &mut [u8]) -> Typed {
    let stdin = io::stdin();
    let time = Timespec { tv_sec: 0, tv_nsec: wait.as_nanos() as _ };
    let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
    if poll(&mut fds, Some(&time)).unwrap_or(0) == 0 {
        return Typed::Nothing;
    }
    match rustix::io::read(&stdin, bytes) {
        Ok(0) => Typed::Ended,
        Ok(n) => Typed::Bytes(n),
        // The terminal has gone, or this is a background process.
        Err(rustix::io::Errno::IO) => Typed::Elsewhere,
        Err(_) => Typed::Bytes(0),
    }
}

/// A terminal's settings: as found, and raw.
struct Settings {
    fd: RawFd,
    found: Termios,
    raw: Termios,
    /// What is written to standard output when they are put back.
    leave: &'static [u8],
}

impl Settings {
    /// Gives the terminal one of the two. Async-signal-safe, as tcsetattr is (signal-safety(7)).
    fn set(&self, which: &Termios) -> io::Result<()> {
        // SAFETY: nothing but this one call is made on it. If the descriptor has been closed meanwhile it fails, which
        // is harmless.
        let fd = unsafe { BorrowedFd::borrow_raw(self.fd) };
        Ok(termios::tcsetattr(fd, OptionalActions::Now, which)?)
    }
}

/// What to restore; null while no terminal is in raw mode. The `Settings` are leaked, so the pointer stays
/// valid for ever.
static SAVED: AtomicPtr<Settings> = AtomicPtr::new(std::ptr::null_mut());

/// The process was stopped, and goes on: a screen is to be drawn anew.
static CONTINUED: AtomicBool = AtomicBool::new(false);

/// Whether the process has gone on after a stop since the last call.
pub fn has_continued() -> bool {
    CONTINUED.swap(false, Ordering::SeqCst)
}

/// Raw mode, until it is dropped.
pub(super) struct RawMode;

impl RawMode {
    /// Puts the terminal that is standard input into raw mode, with `signal` except for the keys that are signals;
    /// `leave` is written to standard output when that is over.
    pub(super) fn enter(signal: bool, leave: &'static [u8]) -> io::Result<Self> {
        Self::take(libc::STDIN_FILENO, signal, leave)
    }

    fn take(fd: RawFd, signal: bool, leave: &'static [u8]) -> io::Result<Self> {
        // SAFETY: the caller has it open.
        let found = termios::tcgetattr(unsafe { BorrowedFd::borrow_raw(fd) })?;
        let settings = Settings { fd, raw: raw(found.clone(), signal), found, leave };
        guards::install(at_exit, catch_continue);
        let settings: &'static Settings = Box::leak(Box::new(settings));
        SAVED.store(std::ptr::from_ref(settings).cast_mut(), Ordering::SeqCst);
        let mode = RawMode;
        settings.set(&settings.raw)?;
        Ok(mode)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Raw input, except for signal keys if they are wanted; output keeps its newline translation, so that our
/// own messages look right.
fn raw(mut t: Termios, signal: bool) -> Termios {
    use rustix::termios::{
        ControlModes as C, InputModes as I, LocalModes as L, OutputModes, SpecialCodeIndex,
    };
    let translated = I::IGNBRK | I::BRKINT | I::PARMRK | I::ISTRIP | I::INLCR | I::IGNCR | I::ICRNL | I::IXON;
    t.input_modes.remove(translated);
    t.output_modes.insert(OutputModes::OPOST);
    t.local_modes.remove(L::ECHO | L::ECHONL | L::ICANON | L::IEXTEN);
    if !signal {
        t.local_modes.remove(L::ISIG);
    }
    t.control_modes.remove(C::CSIZE | C::PARENB);
    t.control_modes.insert(C::CS8);
    t.special_codes[SpecialCodeIndex::VMIN] = 1;
    t.special_codes[SpecialCodeIndex::VTIME] = 0;
    t
}

/// Puts the terminal's settings back, if they are changed, for a process that ends without dropping what it has. May be
/// called from a signal handler: an atomic exchange, `sigprocmask`, `poll`, `write` and `tcsetattr` (signal-safety(7)).
pub fn restore() {
    let saved = SAVED.swap(std::ptr::null_mut(), Ordering::SeqCst);
    // SAFETY: the pointer is null or points to leaked, immutable `Settings`.
    if let Some(s) = unsafe { saved.as_ref() } {
        // SAFETY: the sets are whole before they are used. Blocked, SIGTTOU does not stop a process that ends in the
        // background.
        unsafe {
            let mut mask = MaybeUninit::<libc::sigset_t>::zeroed().assume_init();
            let mut before = mask;
            libc::sigemptyset(&mut mask);
            libc::sigaddset(&mut mask, libc::SIGTTOU);
            libc::pthread_sigmask(libc::SIG_BLOCK, &mask, &mut before);
            // A terminal that is stopped would have the process wait for ever.
            let mut out = libc::pollfd { fd: libc::STDOUT_FILENO, events: libc::POLLOUT, revents: 0 };
            if !s.leave.is_empty() && libc::poll(&mut out, 1, 0) == 1 {
                libc::write(libc::STDOUT_FILENO, s.leave.as_ptr().cast(), s.leave.len());
            }
            let _ = s.set(&s.found);
            libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        }
    }
}

extern "C" fn at_exit() {
    restore();
}

/// The process goes on after a stop: the shell has had the terminal meanwhile.
extern "C" fn on_continue(_: libc::c_int) {
    // SAFETY: the pointer is null or points to leaked, immutable `Settings`.
    if let Some(s) = unsafe { SAVED.load(Ordering::SeqCst).as_ref() } {
        let _ = s.set(&s.raw);
        CONTINUED.store(true, Ordering::SeqCst);
    }
}

/// Takes SIGCONT, unless someone has it.
fn catch_continue() {
    let mut old = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with a null new action sigaction only fills `old`, which is valid as zeroes, too.
    let old = unsafe {
        libc::sigaction(libc::SIGCONT, std::ptr::null(), old.as_mut_ptr());
        old.assume_init()
    };
    if old.sa_sigaction != libc::SIG_DFL {
        return;
    }
    // SAFETY: all zeroes is a valid sigaction: no flags, an empty mask, SIG_DFL.
    let mut action = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
    action.sa_sigaction = on_continue as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `action` is whole, and the handler is async-signal-safe.
    unsafe { libc::sigaction(libc::SIGCONT, &action, std::ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chardev::stdio::Stdio;
    use crate::chardev::{Chardev, Host};
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::time::Instant;

    fn terminal() -> (File, File) {
        let (mut master, mut slave) = (-1, -1);
        // SAFETY: both descriptors are writable; name, termios and window size may be null.
        let failed = unsafe {
            libc::openpty(
                &mut master,
                &mut slave,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
        assert_eq!(failed, 0, "openpty: {}", io::Error::last_os_error());
        // SAFETY: openpty has succeeded: both are open and ours alone.
        unsafe { (File::from_raw_fd(master), File::from_raw_fd(slave)) }
    }

    fn lflag(f: &File) -> libc::tcflag_t {
        let mut t = MaybeUninit::<libc::termios>::zeroed();
        // SAFETY: `t` is writable and of the right type; all zeroes is a valid termios.
        unsafe {
            assert_eq!(libc::tcgetattr(f.as_raw_fd(), t.as_mut_ptr()), 0);
            t.assume_init().c_lflag
        }
    }

    // One test, since the process has one set of saved settings.
    #[test]
    fn raw_mode_ends_with_the_backend_with_a_panic_and_keeps_signals_if_asked() {
        let (_master, slave) = terminal();
        let before = lflag(&slave);
        assert!(before & (libc::ICANON | libc::ISIG) == libc::ICANON | libc::ISIG);

        let mode = RawMode::take(slave.as_raw_fd(), false, b"").unwrap();
        assert_eq!(lflag(&slave) & (libc::ICANON | libc::ECHO | libc::ISIG), 0);
        drop(mode);
        assert_eq!(lflag(&slave), before);

        let mode = RawMode::take(slave.as_raw_fd(), true, b"").unwrap();
        assert_eq!(lflag(&slave) & (libc::ICANON | libc::ECHO | libc::ISIG), libc::ISIG);
        drop(mode);

        let mode = RawMode::take(slave.as_raw_fd(), false, b"").unwrap();
        let thread = std::thread::spawn(|| panic!("on purpose, to see the terminal restored"));
        assert!(thread.join().is_err());
        assert_eq!(lflag(&slave), before);
        drop(mode);
        assert_eq!(lflag(&slave), before);
    }

    /// What `a_signal_that_ends_the_process_leaves_the_terminal_as_it_was` runs in a process of its own.
    #[test]
    fn child() {
        let Ok(how) = std::env::var("MYNAH_TEST_STDIO_CHILD") else { return };
        let stdio = Stdio::open(false, &Host::default()).unwrap();
        stdio.write_all(b"ready", Duration::ZERO);
        stdio.flush(Instant::now() + Duration::from_secs(60));
        match how.as_str() {
            "exit" => std::process::exit(7),
            "abort" => std::process::abort(),
            "illegal" => {
                // SAFETY: raise is harmless; with a handler in place it is called on this thread.
                unsafe { libc::raise(libc::SIGILL) };
            }
            "segv" => {
                // SAFETY: on purpose: nothing is mapped at the first page, and the kernel sends SIGSEGV.
                unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) };
            }
            "overflow" => {
                #[allow(unconditional_recursion, reason = "on purpose: the stack is to overflow")]
                fn deep(n: u64) -> u64 {
                    let mut room = [n; 512];
                    std::hint::black_box(&mut room);
                    deep(n + 1) + room[(n % 512) as usize]
                }
                let deep = std::thread::spawn(|| deep(0));
                let _ = deep.join();
            }
            _ => loop {
                std::thread::park();
            },
        }
    }

    // An end by each kind of signal that there is: sent, a fault, an abort, a stack that has overflowed.
    #[test]
    fn a_signal_that_ends_the_process_leaves_the_terminal_as_it_was() {
        use std::io::Read;
        use std::os::unix::process::{CommandExt, ExitStatusExt};
        use std::process::{Command, Stdio as Pipe};
        let sent = [
            libc::SIGTERM,
            libc::SIGINT,
            libc::SIGHUP,
            libc::SIGQUIT,
            libc::SIGABRT,
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGUSR1,
            libc::SIGXCPU,
        ];
        let own = [("exit", 0), ("abort", libc::SIGABRT), ("illegal", libc::SIGILL), ("segv", libc::SIGSEGV)];
        let all = own.into_iter().chain([("overflow", libc::SIGABRT)]).chain(sent.map(|s| ("wait", s)));
        for (how, signal) in all {
            let (_master, slave) = terminal();
            let before = lflag(&slave);
            let mut child = Command::new(std::env::current_exe().unwrap());
            // SAFETY: between fork and exec only `signal` and `setrlimit` are called, which are async-signal-safe.
            unsafe {
                child.pre_exec(|| {
                    // Whoever runs the tests may ignore them, as shells do for what runs in the background.
                    for s in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
                        libc::signal(s, libc::SIG_DFL);
                    }
                    // No core files.
                    libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 });
                    Ok(())
                });
            }
            let mut child = child
                .args(["chardev::terminal::tests::child", "--exact", "--nocapture", "--test-threads=1"])
                .env("MYNAH_TEST_STDIO_CHILD", how)
                .stdin(slave.try_clone().unwrap())
                .stdout(Pipe::piped())
                .stderr(Pipe::null())
                .spawn()
                .unwrap();
            let mut out = child.stdout.take().unwrap();
            let (mut said, mut byte) = (Vec::new(), [0]);
            while !said.ends_with(b"ready") {
                assert_eq!(
                    out.read(&mut byte).unwrap(),
                    1,
                    "the child ended early: {}",
                    String::from_utf8_lossy(&said)
                );
                said.push(byte[0]);
            }
            if how == "wait" {
                assert_eq!(lflag(&slave) & libc::ICANON, 0, "raw while it runs");
                // SAFETY: a child of ours that has not been waited for.
                assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
            }
            let status = child.wait().unwrap();
            assert_eq!(status.signal().unwrap_or(0), signal, "{how}");
            if signal == 0 {
                assert_eq!(status.code(), Some(7));
            }
            assert_eq!(lflag(&slave), before, "{how} {signal}");
        }
    }
}
