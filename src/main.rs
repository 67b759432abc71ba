//! The program `mynah`, and `qemu-system-x86_64` when it is called so: see [`mynah::cli`].

use std::io::IsTerminal;

/// Blocks, regions and the compiler's data come and go by the hundred thousand.
#[cfg(not(target_vendor = "apple"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The allocator's option for how many milliseconds free memory waits to be given back, by its number in mimalloc's
/// header, and what it is by default.
#[cfg(not(target_vendor = "apple"))]
const PURGE_DELAY: (libmimalloc_sys::mi_option_t, std::ffi::c_long) = (15, 1000);

/// Free memory is given back after ten seconds: a boot gave 600 MB back in pieces and got them again, cleared. What the
/// environment says goes first (`MIMALLOC_PURGE_DELAY`).
#[cfg(not(target_vendor = "apple"))]
fn keep_free_memory() {
    // SAFETY: there is no other thread yet; another option's number has another default, and is left alone.
    unsafe {
        if libmimalloc_sys::mi_option_get(PURGE_DELAY.0) == PURGE_DELAY.1 {
            libmimalloc_sys::mi_option_set(PURGE_DELAY.0, 10_000);
        }
    }
}

fn main() {
    #[cfg(not(target_vendor = "apple"))]
    keep_free_memory();
    let filter = tracing_subscriber::EnvFilter::try_from_env("MYNAH_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A file or a pipe gets no colours.
        .with_ansi(
            std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        )
        .without_time()
        .init();
    std::process::exit(mynah::cli::main(std::env::args_os()));
}
