//! What has the terminal be as it was found, however the process ends.
use crate::chardev::fatal;
use std::sync::Once;

/// Has `restore` be called when the process exits, panics, or meets an error that ends it, and `more` now. Once for the
/// process.
pub(super) fn install(restore: extern "C" fn(), more: fn()) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a plain function that lives as long as the process.
        unsafe { libc::atexit(restore) };
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            hook(info);
        }));
        fatal::install();
        more();
    });
}
