//! Signals that end the process: before they do, the terminal is put back and files that must not stay are removed,
//! for SIGSEGV and SIGABRT as for SIGTERM.
//!
//! A handler that was there before is called after that (the language's runtime has one for a stack that has
//! overflowed); without one the signal does what it does by default. Signals that are ignored stay so. Who takes a
//! signal for itself later, as the machine does SIGTERM, puts this one back when it is done.
use super::{leftovers, stdio};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Once, OnceLock};

/// All that end a process by default and can be caught (signal(7)), but SIGPIPE, which the runtime ignores.
const SIGNALS: &[libc::c_int] = &[
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGUSR1,
    libc::SIGSEGV,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGSYS,
    #[cfg(target_os = "linux")]
    libc::SIGSTKFLT,
    #[cfg(target_os = "linux")]
    libc::SIGXCPU,
    #[cfg(target_os = "linux")]
    libc::SIGXFSZ,
    #[cfg(target_os = "linux")]
    libc::SIGVTALRM,
    #[cfg(target_os = "linux")]
    libc::SIGPROF,
    #[cfg(target_os = "linux")]
    libc::SIGPWR,
];

/// A handler with SA_SIGINFO.
type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// What each of [`SIGNALS`] did before.
static PREVIOUS: OnceLock<[libc::sigaction; SIGNALS.len()]> = OnceLock::new();
/// A `fn()` that is called as well, null if there is none.
static ALSO: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());
/// How deep in handlers the process is: one that crashes is not tried again.
static DEPTH: AtomicUsize = AtomicUsize::new(0);

/// Takes the signals. Once for the process; later calls change nothing.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        PREVIOUS.get_or_init(|| std::array::from_fn(|n| found(SIGNALS[n])));
        for (signal, old) in SIGNALS.iter().zip(PREVIOUS.get().into_iter().flatten()) {
            if old.sa_sigaction == libc::SIG_IGN {
                continue;
            }
            // SAFETY: all zeroes is a valid sigaction: no flags, an empty mask, SIG_DFL.
            let mut action = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
            action.sa_sigaction = on_signal as Handler as usize;
            // On a stack of its own, where the thread has one: its stack may be what is at its end.
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
            // SAFETY: `action` is whole, and its handler has the type that SA_SIGINFO asks for and is
            // async-signal-safe.
            unsafe { libc::sigaction(*signal, &action, ptr::null_mut()) };
        }
    });
}

/// Has `f` called in the handlers too. It must be async-signal-safe, and must not wait.
pub fn also(f: fn()) {
    ALSO.store(f as *mut (), Ordering::SeqCst);
}

/// What a signal does now.
fn found(signal: libc::c_int) -> libc::sigaction {
    let mut old = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with a null new action sigaction only fills `old`, which is valid as zeroes, too.
    unsafe {
        libc::sigaction(signal, ptr::null(), old.as_mut_ptr());
        old.assume_init()
    }
}

/// Puts away what must not stay. Async-signal-safe.
fn put_away() {
    if DEPTH.fetch_add(1, Ordering::SeqCst) == 0 {
        stdio::restore_terminal();
        leftovers::remove_all();
        let also = ALSO.load(Ordering::SeqCst);
        if !also.is_null() {
            // SAFETY: only `also` stores there, and it stores functions of this type.
            let also = unsafe { std::mem::transmute::<*mut (), fn()>(also) };
            also();
        }
    }
}

extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    put_away();
    let at = SIGNALS.iter().position(|s| *s == signal);
    let old = at.and_then(|at| PREVIOUS.get().map(|all| all[at]));
    // SAFETY: the kernel gives a whole siginfo to a handler with SA_SIGINFO.
    let sent = unsafe { (*info).si_code } <= 0;
    match old {
        // One for faults would take one that was sent for none, and go on.
        Some(old) if old.sa_sigaction != libc::SIG_DFL && !sent => {
            if old.sa_flags & libc::SA_SIGINFO != 0 {
                // SAFETY: sigaction gave it as a handler with SA_SIGINFO.
                let handler = unsafe { std::mem::transmute::<usize, Handler>(old.sa_sigaction) };
                handler(signal, info, context);
            } else {
                // SAFETY: sigaction gave it as a handler without SA_SIGINFO; it is neither SIG_DFL nor SIG_IGN.
                let handler =
                    unsafe { std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(old.sa_sigaction) };
                handler(signal);
            }
        }
        // SAFETY: signal and raise are async-signal-safe. The signal is blocked until this handler returns and
        // then ends the process.
        _ => unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        },
    }
}
