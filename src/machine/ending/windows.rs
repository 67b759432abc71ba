//! What ends the machine on Windows: Ctrl-C, Ctrl-Break, a console that is closed, the session's end. Each comes on a
//! thread of its own, and so may wait.
use crate::config::exit_code;
use crate::machine::power::Power;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use windows_sys::Win32::System::Console as console;
use windows_sys::Win32::System::Threading::{GetCurrentProcess, TerminateProcess};
use windows_sys::core::BOOL;

/// What there is to tell the machine.
enum Told {
    Event(u32),
    Panic,
}

/// The machine that is told; None while there is none.
static MACHINE: Mutex<Option<Sender<Told>>> = Mutex::new(None);

/// Tells the machine, if there is one, that a thread has panicked.
pub(super) fn tell_panic() {
    if let Some(to) = MACHINE.try_lock().as_deref().and_then(Option::as_ref) {
        let _ = to.send(Told::Panic);
    }
}

unsafe extern "system" fn on_event(event: u32) -> BOOL {
    let told = MACHINE.lock().as_ref().is_some_and(|to| to.send(Told::Event(event)).is_ok());
    if told
        && matches!(
            event,
            console::CTRL_CLOSE_EVENT | console::CTRL_LOGOFF_EVENT | console::CTRL_SHUTDOWN_EVENT
        )
    {
        // The process is ended as soon as this returns: the machine has until then.
        std::thread::sleep(super::LATEST);
    }
    told.into()
}

/// Events that are taken, until this is dropped.
pub(super) struct Taken {
    thread: Option<JoinHandle<()>>,
}

impl Taken {
    /// Has events end `power`'s machine.
    pub(super) fn take(power: &Arc<Power>) -> io::Result<Self> {
        let (to, from) = channel();
        let told = power.clone();
        let thread = std::thread::Builder::new().name("mynah-signals".into()).spawn(move || {
            for what in from {
                match what {
                    Told::Panic => told.fail("internal error: a thread has panicked".into()),
                    Told::Event(event) => {
                        told.end(exit_code::POWER_OFF, Some(format!("terminating on {}", name(event))));
                    }
                }
            }
        })?;
        *MACHINE.lock() = Some(to);
        let taken = Self { thread: Some(thread) };
        // SAFETY: it is a function of the type that is asked for.
        if unsafe { console::SetConsoleCtrlHandler(Some(on_event), 1) } == 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(taken)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // SAFETY: as above; the handler was put there by us.
        unsafe { console::SetConsoleCtrlHandler(Some(on_event), 0) };
        // The thread ends with its sender. Wine 8 may crash where a process exits while a thread of it ends by itself.
        *MACHINE.lock() = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn name(event: u32) -> &'static str {
    match event {
        console::CTRL_C_EVENT => "Ctrl-C",
        console::CTRL_BREAK_EVENT => "Ctrl-Break",
        console::CTRL_CLOSE_EVENT => "the console's end",
        _ => "the session's end",
    }
}

/// Ends the process: no destructor runs.
pub(super) fn end_at_once(code: i32) -> ! {
    loop {
        // SAFETY: it takes a handle that stands for this process, and a number.
        unsafe { TerminateProcess(GetCurrentProcess(), code as u32) };
    }
}
