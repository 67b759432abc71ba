//! `stdio`: the process's standard input and output.
//!
//! If standard input is a terminal it is in raw mode while the backend lives. The settings found are put back
//! when it is dropped, when the process exits, when a thread panics, and when a signal ends the process
//! (`fatal`); after SIGCONT raw mode is taken up again. The end of standard input, or a
//! standard output that nobody reads any more, ends that direction only: the machine goes on.
//!
//! One lock-free cell holds the settings to be restored, because signal handlers need them: `SAVED` goes from
//! null to a leaked `termios` pair when raw mode is entered and back to null by whoever restores it first.
use super::pump::{Ends, Line, Output, Pump, is_ready, read};
use super::worker::Worker;
use super::{Chardev, ChardevError, Host, Receiver, fatal};
use crate::event_loop::Descriptor;
use rustix::termios::{self, OptionalActions, Termios};
use std::fs::File;
use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

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
            Some(RawMode::enter(libc::STDIN_FILENO, signal).map_err(ChardevError::Terminal)?)
        } else {
            None
        };
        let (stdin, stdout): (Descriptor, Descriptor) = (Arc::new(io::stdin()), Arc::new(io::stdout()));
        let plain = stdin.source().try_clone_to_owned().and_then(|fd| File::from(fd).metadata());
        let always = plain.is_ok_and(|m| m.is_file()) || !host.events.can_wait_for(&stdin);
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
        if !is_ready(fd, libc::POLLIN, Duration::ZERO) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        read(fd, buf)
    }

    fn input_ended(&mut self, why: Option<io::Error>) -> Option<ChardevError> {
        self.input = None;
        let cause = why?;
        // EIO is how a terminal says that it has gone, or that this is a background process.
        (cause.raw_os_error() != Some(libc::EIO))
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
        let raw = RawMode::take(libc::STDIN_FILENO, false, LEAVE_SCREEN).map_err(ChardevError::Terminal)?;
        Ok(Self { _raw: raw, _claim: claim })
    }
}

/// The process was stopped, and goes on: a screen is to be drawn anew.
static CONTINUED: AtomicBool = AtomicBool::new(false);

/// Whether the process has gone on after a stop since the last call.
pub fn has_continued() -> bool {
    CONTINUED.swap(false, Ordering::SeqCst)
}

/// Raw mode, until it is dropped.
struct RawMode;

impl RawMode {
    fn enter(fd: RawFd, signal: bool) -> io::Result<Self> {
        Self::take(fd, signal, b"")
    }

    fn take(fd: RawFd, signal: bool, leave: &'static [u8]) -> io::Result<Self> {
        // SAFETY: the caller has it open.
        let found = termios::tcgetattr(unsafe { BorrowedFd::borrow_raw(fd) })?;
        let settings = Settings { fd, raw: raw(found.clone(), signal), found, leave };
        install_guards();
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

/// Puts the terminal's settings back, if they are changed, for a process that ends without dropping what it
/// has. May be called from a signal handler.
pub fn restore_terminal() {
    restore();
}

/// Puts the terminal's settings back, if they are changed. Async-signal-safe: an atomic exchange, `sigprocmask`,
/// `poll`, `write` and `tcsetattr` (signal-safety(7)).
fn restore() {
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

/// Sees to it that the terminal is restored however the process ends. Once for the process.
fn install_guards() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: `at_exit` is a plain function that lives as long as the process.
        unsafe { libc::atexit(at_exit) };
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            hook(info);
        }));
        fatal::install();
        catch_continue();
    });
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
    use std::os::fd::{AsRawFd, FromRawFd};

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

        let mode = RawMode::enter(slave.as_raw_fd(), false).unwrap();
        assert_eq!(lflag(&slave) & (libc::ICANON | libc::ECHO | libc::ISIG), 0);
        drop(mode);
        assert_eq!(lflag(&slave), before);

        let mode = RawMode::enter(slave.as_raw_fd(), true).unwrap();
        assert_eq!(lflag(&slave) & (libc::ICANON | libc::ECHO | libc::ISIG), libc::ISIG);
        drop(mode);

        let mode = RawMode::enter(slave.as_raw_fd(), false).unwrap();
        let thread = std::thread::spawn(|| panic!("on purpose, to see the terminal restored"));
        assert!(thread.join().is_err());
        assert_eq!(lflag(&slave), before);
        drop(mode);
        assert_eq!(lflag(&slave), before);
    }

    #[test]
    fn standard_input_and_output_have_one_user() {
        let first = Claim::take().unwrap();
        assert!(matches!(Claim::take(), Err(ChardevError::StdioInUse)));
        drop(first);
        assert!(Claim::take().is_ok());
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
                .args(["chardev::stdio::tests::child", "--exact", "--nocapture", "--test-threads=1"])
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
