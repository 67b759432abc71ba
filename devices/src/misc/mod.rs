//! Devices of the emulated PC that no data sheet knows: ways for a guest to talk to its emulator.
//!
//! `fw_cfg` hands firmware and kernels what the board knows; `debugcon` takes characters; `debug_exit` ends
//! the process with a status; `pvpanic` reports a guest's panic. Their callbacks go to `MachineEvents`. `entropy` is
//! where random numbers come from, of processors and devices alike.

pub mod debug_exit;
pub mod debugcon;
pub mod entropy;
pub mod fw_cfg;
pub mod pvpanic;

pub use crate::events::{A20Gate, MachineEvents, NoEvents, ResetCause, SleepState};
pub use debug_exit::DebugExit;
pub use debugcon::Debugcon;
pub use fw_cfg::FwCfg;
pub use pvpanic::Pvpanic;
