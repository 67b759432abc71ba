//! Keyboard and mouse.
//!
//! `i8042` is the controller on ports 60h and 64h, `ps2` the two devices behind it: each part is a pure
//! register machine, and `I8042` the adapter that owns lock, pins and callbacks.

pub mod i8042;
pub mod ps2;

pub use i8042::I8042;
pub use ps2::{Key, MouseButtons};
