//! Bringing a vCPU's thread out of the kernel: a flag in the run area, and a signal.
//!
//! Who raises an event sets `immediate_exit`, so that a run that has not begun ends at once, and then signals the
//! thread, so that one that has begun ends too. Both only while the thread is about to run or runs.
use mynah_cpu::board::Kicker;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

/// Kicks one vCPU's thread.
pub(super) struct Kick {
    /// Between the last look at the events and the end of the run.
    inside: AtomicBool,
    thread: AtomicI32,
    /// `immediate_exit` of the vCPU's run area.
    flag: *const AtomicU8,
}

// SAFETY: `flag` is an atomic in the vCPU's run area, which is mapped until the vCPU is dropped, and that takes this
// kicker away from the events first.
unsafe impl Send for Kick {}
// SAFETY: as above.
unsafe impl Sync for Kick {}

/// The signal: one that nobody uses for anything else.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 7
}

extern "C" fn nothing(_: libc::c_int) {}

/// The kernel does not restart what the signal has interrupted, and nothing else comes of it.
fn handle_signal() {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // SAFETY: the handler does nothing, which is safe at any moment.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            libc::sigaction(signal(), &action, std::ptr::null_mut());
        }
    });
}

impl Kick {
    /// For the vCPU with this flag in its run area.
    ///
    /// # Safety
    /// The flag is valid until the kicker is not used any more.
    pub unsafe fn new(flag: *mut u8) -> Arc<Self> {
        handle_signal();
        Arc::new(Self { inside: AtomicBool::new(false), thread: AtomicI32::new(0), flag: flag.cast() })
    }

    /// The calling thread is about to run the vCPU: events are to be looked at after this.
    pub fn enter(&self) {
        // SAFETY: it takes nothing, touches no memory and cannot fail.
        self.thread.store(unsafe { libc::gettid() }, Ordering::Relaxed);
        self.set(false);
        self.inside.store(true, Ordering::SeqCst);
    }

    /// It has come out.
    pub fn leave(&self) {
        self.inside.store(false, Ordering::SeqCst);
    }

    /// Whether a run ends at once.
    pub fn is_set(&self) -> bool {
        // SAFETY: valid, as the maker of this has promised.
        unsafe { &*self.flag }.load(Ordering::SeqCst) != 0
    }

    /// Whether the next run is to end before it has executed anything.
    pub fn set(&self, at_once: bool) {
        // SAFETY: valid, as the maker of this has promised.
        unsafe { &*self.flag }.store(at_once.into(), Ordering::SeqCst);
    }
}

/// While this lives the signal waits for the calling thread, and is kept from it.
pub(super) struct Held {
    before: libc::sigset_t,
}

impl Held {
    pub fn new() -> Self {
        handle_signal();
        // SAFETY: a set of signals is plain memory, which `sigemptyset` and `pthread_sigmask` fill in; a signal for the
        // thread itself, which is blocked, only waits.
        unsafe {
            let (mut one, mut before) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigemptyset(&mut one);
            libc::sigaddset(&mut one, signal());
            libc::pthread_sigmask(libc::SIG_BLOCK, &one, &mut before);
            libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), signal());
            Self { before }
        }
    }

    /// The signals that are kept from it without this, as the kernel's set has them: bit n - 1 is signal n.
    pub fn others(&self) -> u64 {
        // SAFETY: it reads the set that lives here.
        let has = |n: libc::c_int| unsafe { libc::sigismember(&self.before, n) } == 1;
        (1..=64).filter(|&n| n != signal() && has(n)).fold(0, |set, n| set | 1 << (n - 1))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The handler, which does nothing, runs now.
        // SAFETY: it reads the set that lives here.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

impl Kicker for Kick {
    fn kick(&self) {
        if !self.inside.load(Ordering::SeqCst) {
            return;
        }
        self.set(true);
        let thread = self.thread.load(Ordering::Relaxed);
        // SAFETY: it names a thread of this process by number; one that is gone is an error that does no harm.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
    }
}

/// The signal again and again for the thread that has started it. One that comes before a run has begun brings nobody
/// out of it; the next does.
#[derive(Default)]
pub(super) struct Ticks {
    /// The kernel's timer, and the thread that it signals.
    timer: Option<(libc::timer_t, i32)>,
    runs: bool,
}

// SAFETY: a `timer_t` is a number of the process's, that any thread may use.
unsafe impl Send for Ticks {}

impl Ticks {
    /// Every `period` from now on, unless they run.
    ///
    /// # Errors
    /// The host has no timer left.
    pub fn start(&mut self, period: Duration) -> std::io::Result<()> {
        // SAFETY: it takes nothing, touches no memory and cannot fail.
        let thread = unsafe { libc::gettid() };
        if self.runs && self.timer.is_some_and(|(_, t)| t == thread) {
            return Ok(());
        }
        if self.timer.is_none_or(|(_, t)| t != thread) {
            self.delete();
            handle_signal();
            let mut timer = std::ptr::null_mut();
            // SAFETY: all of the structure is set, and both live until the call returns.
            let made = unsafe {
                let mut event: libc::sigevent = std::mem::zeroed();
                event.sigev_notify = libc::SIGEV_THREAD_ID;
                event.sigev_signo = signal();
                event.sigev_notify_thread_id = thread;
                libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer)
            };
            if made != 0 {
                return Err(std::io::Error::last_os_error());
            }
            self.timer = Some((timer, thread));
        }
        self.set(period)?;
        self.runs = true;
        Ok(())
    }

    /// No more of them.
    pub fn stop(&mut self) {
        if std::mem::take(&mut self.runs) {
            let _ = self.set(Duration::ZERO);
        }
    }

    fn set(&self, period: Duration) -> std::io::Result<()> {
        let Some((timer, _)) = self.timer else { return Ok(()) };
        let each = libc::timespec { tv_sec: period.as_secs() as _, tv_nsec: period.subsec_nanos().into() };
        let times = libc::itimerspec { it_interval: each, it_value: each };
        // SAFETY: `timer` is one of ours that is not deleted yet.
        match unsafe { libc::timer_settime(timer, 0, &times, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }

    fn delete(&mut self) {
        self.runs = false;
        if let Some((timer, _)) = self.timer.take() {
            // SAFETY: it is ours, and gone from here.
            unsafe { libc::timer_delete(timer) };
        }
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        self.delete();
    }
}
