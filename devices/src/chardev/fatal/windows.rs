//! Ends of the process that Windows tells of: Ctrl-C, Ctrl-Break, a console that is closed, an exception that nobody
//! handles. Before it ends, the console is put back and files that must not stay are removed.
//!
//! Who takes Ctrl-C for itself later, as the machine does, is asked first; what was there before goes on after us.
use super::{leftovers, stdio};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use windows_sys::Win32::System::Console::SetConsoleCtrlHandler;
use windows_sys::Win32::System::Diagnostics::Debug::{
    EXCEPTION_POINTERS, LPTOP_LEVEL_EXCEPTION_FILTER, SetUnhandledExceptionFilter,
};
use windows_sys::core::BOOL;

/// EXCEPTION_CONTINUE_SEARCH: what would have been done is done.
const GO_ON: i32 = 0;

/// A `fn()` that is called as well, null if there is none.
static ALSO: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());
/// What was asked about exceptions before, null if nobody.
static BEFORE: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());
/// How deep in handlers the process is: one that crashes is not tried again.
static DEPTH: AtomicUsize = AtomicUsize::new(0);

/// Takes what ends the process. Once for the process; later calls change nothing.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: both are functions of the types that are asked for, and live as long as the process.
        unsafe {
            SetConsoleCtrlHandler(Some(on_control), 1);
            let before = SetUnhandledExceptionFilter(Some(on_exception));
            if let Some(before) = before {
                BEFORE.store(before as *mut (), Ordering::SeqCst);
            }
        }
    });
}

/// Has `f` called as well. It must not wait.
pub fn also(f: fn()) {
    ALSO.store(f as *mut (), Ordering::SeqCst);
}

/// Puts away what must not stay.
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

unsafe extern "system" fn on_control(_: u32) -> BOOL {
    put_away();
    // Not handled: the process ends.
    0
}

unsafe extern "system" fn on_exception(what: *const EXCEPTION_POINTERS) -> i32 {
    put_away();
    let before = BEFORE.load(Ordering::SeqCst);
    if before.is_null() {
        return GO_ON;
    }
    // SAFETY: SetUnhandledExceptionFilter gave it as such a function.
    let before = unsafe { std::mem::transmute::<*mut (), LPTOP_LEVEL_EXCEPTION_FILTER>(before) };
    // SAFETY: it gets what we got.
    before.map_or(GO_ON, |before| unsafe { before(what) })
}
