//! Bringing a vCPU's thread out of the kernel: a flag in the run area, and a signal.
//!
//! Who raises an event sets `immediate_exit`, so that a run that has not begun ends at once, and then signals the
//! thread, so that one that has begun ends too. Both only while the thread is about to run or runs.
use mynah_cpu::board::Kicker;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, Once};

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

impl Kick {
    /// For the vCPU with this flag in its run area.
    ///
    /// # Safety
    /// The flag is valid until the kicker is not used any more.
    pub unsafe fn new(flag: *mut u8) -> Arc<Self> {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| {
            // SAFETY: the handler does nothing, which is safe at any moment; no flag has the kernel restart a run.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = nothing as *const () as usize;
                libc::sigaction(signal(), &action, std::ptr::null_mut());
            }
        });
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

    /// Whether the next run is to end before it has executed anything.
    pub fn set(&self, at_once: bool) {
        // SAFETY: valid, as the maker of this has promised.
        unsafe { &*self.flag }.store(at_once.into(), Ordering::SeqCst);
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
