//! Mynah: a full-system x86 PC emulator. The machine (board, processors, run control) and the command line, where all
//! parts meet.

pub mod cli;
pub mod config;
pub mod machine;
