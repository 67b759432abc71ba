//! The process ends when it is told to: signals, and what happens when something does not let go.
//!
//! ```text
//!   SIGTERM, SIGINT, SIGHUP --> pipe --> thread --> Power::end <-- Ctrl-A X, quit, the guest's power-off, errors
//!                                                       |
//!       told --+-- 0.5 s --> no vCPU and no reader of a console is waited for any longer
//!              +-- 0.85 s -> the process ends, whatever its threads wait for (a disk, standard error, ...)
//! ```
//!
//! However it ends, the terminal is as it was found, sockets and pid file are gone, the log of `-d` is written, and
//! the exit code is the one that belongs to how it was told. A signal that ends the process by itself (SIGSEGV,
//! SIGQUIT, ...) leaves no less behind: see [`fatal`].
//!
//! A thread that panics ends the machine: nobody knows what the others wait for it to do.
use super::power::Power;
use mynah_cpu::trace::Trace;
use mynah_devices::chardev::{fatal, leftovers, stdio};
use parking_lot::Mutex;
use std::fs;
use std::io::{self, PipeReader, Read};
use std::mem::MaybeUninit;
use std::os::fd::{IntoRawFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

/// After being told to end, how long vCPUs and the readers of consoles have.
pub const GRACE: Duration = Duration::from_millis(500);
/// After being told to end, when the process ends at the latest.
pub const LATEST: Duration = Duration::from_millis(850);

/// How long the log may take then to be written out.
const WRITING: Duration = Duration::from_millis(50);

/// Signals by which a user or a tool ends the machine. (SIGQUIT dumps core, as everywhere.)
const SIGNALS: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Where the handler writes; -1 while there is no machine.
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// The log, to be written out when the process ends without coming to that by itself.
static LOG: Mutex<Option<Arc<Trace>>> = Mutex::new(None);

/// Has `log`, which goes to a plain file, written out however the process ends.
pub fn keep_log(log: &Arc<Trace>) {
    *LOG.lock() = Some(log.clone());
}

/// Writes out what is buffered of the log, unless somebody has hold of it. For a signal handler as well: taking a lock
/// that is free is an exchange, and writing is `write`; that lock is not given back.
fn write_log() {
    if let Some(log) = LOG.try_lock() {
        if let Some(log) = log.as_ref() {
            log.try_flush();
        }
        std::mem::forget(log);
    }
}

/// What is written to the pipe for a thread that has panicked.
const PANIC: i32 = 0;

/// Has a panic of any thread end the machine, if there is one. Through the pipe, as the thread may hold locks.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            hook(info);
            // SAFETY: the note is readable for its length; a descriptor of -1 is an error that is none here.
            unsafe { libc::write(PIPE.load(Ordering::SeqCst), [0_u8; 8].as_ptr().cast(), 8) };
        }));
    });
}

/// Writes number and sender of a signal to the pipe, which takes eight bytes at once or none.
extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a whole siginfo to a handler with SA_SIGINFO; the field is set for signals that a
    // process sends, and 0 else.
    let sender = unsafe { if (*info).si_code <= 0 { (*info).si_pid() } else { 0 } };
    let mut note = [0; 8];
    note[..4].copy_from_slice(&signal.to_ne_bytes());
    note[4..].copy_from_slice(&sender.to_ne_bytes());
    // SAFETY: write is async-signal-safe; errno belongs to what was interrupted and is put back.
    unsafe {
        #[cfg(target_os = "macos")]
        let errno = libc::__error();
        #[cfg(not(target_os = "macos"))]
        let errno = libc::__errno_location();
        let before = *errno;
        libc::write(PIPE.load(Ordering::SeqCst), note.as_ptr().cast(), note.len());
        *errno = before;
    }
}

/// Watches over a machine's end, until it is dropped.
pub struct Ending {
    power: Arc<Power>,
    over: Arc<AtomicBool>,
    before: Vec<(libc::c_int, libc::sigaction)>,
    pipe: RawFd,
}

impl Ending {
    /// Takes signals, and starts the threads that see to the end of `power`'s machine.
    pub fn watch(power: &Arc<Power>) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let pipe = writer.into_raw_fd();
        let mut ending = Self { power: power.clone(), over: Arc::default(), before: Vec::new(), pipe };
        // SAFETY: an open descriptor of ours: a handler must not wait.
        unsafe { libc::fcntl(pipe, libc::F_SETFL, libc::O_NONBLOCK) };
        let told = power.clone();
        std::thread::Builder::new()
            .name("mynah-signals".into())
            .spawn(move || take_signals(reader, &told))?;
        let (told, over) = (power.clone(), ending.over.clone());
        std::thread::Builder::new().name("mynah-end".into()).spawn(move || {
            let end = told.wait_end();
            std::thread::sleep(LATEST.saturating_sub(end.told.elapsed()));
            if !over.load(Ordering::SeqCst) {
                end_process(end.code);
            }
        })?;
        PIPE.store(pipe, Ordering::SeqCst);
        watch_panics();
        fatal::also(write_log);
        for signal in SIGNALS {
            ending.before.extend(catch(signal).map(|old| (signal, old)));
        }
        Ok(ending)
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        for (signal, old) in &self.before {
            // SAFETY: what sigaction gave is whole.
            unsafe { libc::sigaction(*signal, old, ptr::null_mut()) };
        }
        PIPE.store(-1, Ordering::SeqCst);
        // SAFETY: ours, and nobody writes to it any more: the handlers are gone. The reader's thread ends with it.
        unsafe { libc::close(self.pipe) };
        self.over.store(true, Ordering::SeqCst);
        // It has been written.
        if let Some(mut log) = LOG.try_lock() {
            *log = None;
        }
        // If it was an error that ended the run before anybody was told: lets the thread go.
        self.power.end(crate::config::exit_code::ERROR, None);
    }
}

/// Has `on_signal` handle a signal; what did before. An ignored SIGHUP or SIGINT stays ignored: whoever started us
/// (nohup, a shell that runs us in the background) wants it so.
fn catch(signal: libc::c_int) -> Option<libc::sigaction> {
    let mut old = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with a null new action sigaction only fills `old`, which is valid as zeroes, too.
    let old = unsafe {
        libc::sigaction(signal, ptr::null(), old.as_mut_ptr());
        old.assume_init()
    };
    if old.sa_sigaction == libc::SIG_IGN && signal != libc::SIGTERM {
        return None;
    }
    // SAFETY: all zeroes is a valid sigaction: no flags, an empty mask, SIG_DFL.
    let mut action = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
    action.sa_sigaction = on_signal as *const () as usize;
    action.sa_flags = libc::SA_RESTART | libc::SA_SIGINFO;
    // SAFETY: `action` is whole, and its handler has the type that SA_SIGINFO asks for and is async-signal-safe.
    unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
    Some(old)
}

/// Ends the machine when a signal comes, until the pipe is closed.
fn take_signals(mut pipe: PipeReader, power: &Power) {
    let mut note = [0; 8];
    while pipe.read_exact(&mut note).is_ok() {
        let [signal, sender] = [0, 4].map(|at| i32::from_ne_bytes([0, 1, 2, 3].map(|n| note[at + n])));
        if signal == PANIC {
            power.fail("internal error: a thread has panicked".into());
            continue;
        }
        let from = if sender == 0 { String::new() } else { format!(" from pid {sender}{}", name(sender)) };
        power.end(crate::config::exit_code::POWER_OFF, Some(format!("terminating on signal {signal}{from}")));
    }
}

/// The name of a process, in brackets, if it can be had.
fn name(pid: i32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.is_empty() { name } else { format!(" ({})", name.trim_end()) }
}

/// Ends the process at once: no destructor runs that could wait.
fn end_process(code: i32) -> ! {
    leftovers::remove_all();
    stdio::restore_terminal();
    // A disk may not answer.
    if let Ok(writer) = std::thread::Builder::new().spawn(write_log) {
        let give_up = Instant::now() + WRITING;
        while !writer.is_finished() && Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    // SAFETY: it never returns, and what it leaves undone has just been done.
    unsafe { libc::_exit(code) }
}
