//! IDE: two cables with two devices each, behind the PIIX3's IDE function.
//!
//! ```text
//!   ports 1F0h-1F7h, 3F6h --> Channel "ide.0" { Device 0, Device 1, BusMaster } --> IRQ 14
//!   ports 170h-177h, 376h --> Channel "ide.1" { Device 0, Device 1, BusMaster } --> IRQ 15
//!   BAR 4                 --> both bus masters
//! ```
//!
//! Locks: a channel's, which is held while memory is copied, before the drives' and the pins'. Ends of requests are
//! told on the drives' threads, which take the channel's lock.
mod bus_master;
mod cable;
mod channel;
mod drives;
mod piix3;
#[cfg(test)]
mod tests;

pub use cable::Cable;
pub use channel::Channel;
pub use drives::IdeDrive;
pub use piix3::{DEVFN, Piix3Ide};
