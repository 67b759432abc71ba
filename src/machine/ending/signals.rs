//! Signals that end the machine: they come through a pipe, as a handler may do little, to a thread.
use crate::machine::power::Power;
use std::fs;
use std::io::{self, PipeReader, Read};
use std::mem::MaybeUninit;
use std::os::fd::{IntoRawFd, RawFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// Signals by which a user or a tool ends the machine. (SIGQUIT dumps core, as everywhere.)
const SIGNALS: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Where the handler writes; -1 while there is no machine.
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// What is written to the pipe for a thread that has panicked.
const PANIC: i32 = 0;

/// Tells the machine, if there is one, that a thread has panicked.
pub(super) fn tell_panic() {
    // SAFETY: the note is readable for its length; a descriptor of -1 is an error that is none here.
    unsafe { libc::write(PIPE.load(Ordering::SeqCst), [0_u8; 8].as_ptr().cast(), 8) };
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

/// Signals that are taken, until this is dropped.
pub(super) struct Taken {
    before: Vec<(libc::c_int, libc::sigaction)>,
    pipe: RawFd,
}

impl Taken {
    /// Has signals end `power`'s machine.
    pub(super) fn take(power: &Arc<Power>) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let pipe = writer.into_raw_fd();
        let mut taken = Self { before: Vec::new(), pipe };
        // SAFETY: an open descriptor of ours: a handler must not wait.
        unsafe { libc::fcntl(pipe, libc::F_SETFL, libc::O_NONBLOCK) };
        let told = power.clone();
        std::thread::Builder::new()
            .name("mynah-signals".into())
            .spawn(move || take_signals(reader, &told))?;
        PIPE.store(pipe, Ordering::SeqCst);
        for signal in SIGNALS {
            taken.before.extend(catch(signal).map(|old| (signal, old)));
        }
        Ok(taken)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        for (signal, old) in &self.before {
            // SAFETY: what sigaction gave is whole.
            unsafe { libc::sigaction(*signal, old, ptr::null_mut()) };
        }
        PIPE.store(-1, Ordering::SeqCst);
        // SAFETY: ours, and nobody writes to it any more: the handlers are gone. The reader's thread ends with it.
        unsafe { libc::close(self.pipe) };
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

/// Ends the process: no destructor runs.
pub(super) fn end_at_once(code: i32) -> ! {
    // SAFETY: it never returns, and what it leaves undone has just been done.
    unsafe { libc::_exit(code) }
}
