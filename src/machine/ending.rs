//! The process ends when it is told to: signals, and what happens when something does not let go.
//!
//! ```text
//!   SIGTERM, SIGINT, SIGHUP, Ctrl-C --> thread --> Power::end <-- Ctrl-A X, quit, the guest's power-off, errors
//!                                                      |
//!       told --+-- 0.5 s --> no vCPU and no reader of a console is waited for any longer
//!              +-- 0.85 s -> the process ends, whatever its threads wait for (a disk, standard error, ...)
//! ```
//!
//! However it ends, the terminal is as it was found, sockets and pid file are gone, the log of `-d` is written, and
//! the exit code is the one that belongs to how it was told. A signal that ends the process by itself (SIGSEGV,
//! SIGQUIT, ...) leaves no less behind: see [`fatal`].
//!
//! A thread that panics ends the machine: nobody knows what the others wait for it to do.
#[cfg(unix)]
mod signals;
#[cfg(windows)]
#[path = "ending/windows.rs"]
mod signals;

use super::power::Power;
use mynah_cpu::trace::Trace;
use mynah_devices::chardev::{fatal, leftovers, stdio};
use parking_lot::Mutex;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

/// After being told to end, how long vCPUs and the readers of consoles have.
pub const GRACE: Duration = Duration::from_millis(500);
/// After being told to end, when the process ends at the latest.
pub const LATEST: Duration = Duration::from_millis(850);

/// How long the log may take then to be written out.
const WRITING: Duration = Duration::from_millis(50);

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

/// Has a panic of any thread end the machine, if there is one. By another thread, as this one may hold locks.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            hook(info);
            signals::tell_panic();
        }));
    });
}

/// Watches over a machine's end, until it is dropped.
pub struct Ending {
    power: Arc<Power>,
    over: Arc<AtomicBool>,
    signals: Option<signals::Taken>,
}

impl Ending {
    /// Takes signals, and starts the threads that see to the end of `power`'s machine.
    pub fn watch(power: &Arc<Power>) -> io::Result<Self> {
        let mut ending = Self { power: power.clone(), over: Arc::default(), signals: None };
        let (told, over) = (power.clone(), ending.over.clone());
        std::thread::Builder::new().name("mynah-end".into()).spawn(move || {
            let end = told.wait_end();
            std::thread::sleep(LATEST.saturating_sub(end.told.elapsed()));
            if !over.load(Ordering::SeqCst) {
                end_process(end.code);
            }
        })?;
        ending.signals = Some(signals::Taken::take(power)?);
        watch_panics();
        fatal::also(write_log);
        Ok(ending)
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.signals = None;
        self.over.store(true, Ordering::SeqCst);
        // It has been written.
        if let Some(mut log) = LOG.try_lock() {
            *log = None;
        }
        // If it was an error that ended the run before anybody was told: lets the thread go.
        self.power.end(crate::config::exit_code::ERROR, None);
    }
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
    signals::end_at_once(code)
}
