//! The program `mynah`, and `qemu-system-x86_64` when it is called so: see [`mynah::cli`].

use std::io::IsTerminal;

/// Blocks, regions and the compiler's data come and go by the hundred thousand.
#[cfg(not(target_vendor = "apple"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
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
