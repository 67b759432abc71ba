//! Devices of the emulated PC that no data sheet knows: ways for a guest to talk to its emulator;
//! and what goes nowhere else.
//!
//! `fw_cfg` hands firmware and kernels what the board knows; `debugcon` takes characters; `debug_exit` ends
//! the process with a status; `pvpanic` reports a guest's panic;
//! `vmgenid` tells it that it goes on from a copy. `i6300esb` is a watchdog with a data sheet. Their callbacks go to
//! `MachineEvents`. `entropy` is where random numbers come from, of processors and devices alike.

pub mod debug_exit;
pub mod debugcon;
pub mod entropy;
pub mod fw_cfg;
pub mod i6300esb;
pub mod pvpanic;
pub mod vmgenid;

pub use crate::events::{A20Gate, MachineEvents, NoEvents, ResetCause, SleepState};
pub use debug_exit::DebugExit;
pub use debugcon::Debugcon;
pub use fw_cfg::FwCfg;
pub use pvpanic::Pvpanic;
