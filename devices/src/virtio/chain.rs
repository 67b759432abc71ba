//! What a driver hands over at once: pieces of guest memory, first those that the device reads, then those it writes.
pub use crate::pieces::{Piece, read, total, write};
use serde::{Deserialize, Serialize};

/// The most pieces that a chain may have, as in QEMU.
pub const MOST_PIECES: usize = 1024;

/// The driver has broken the rules in a ring or a descriptor; what it was, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// A chain of descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// By what the driver knows it.
    pub head: u16,
    /// What the device reads.
    pub readable: Vec<Piece>,
    /// What the device writes.
    pub writable: Vec<Piece>,
}

impl Chain {
    /// What is saved of a chain is one that a driver can have made.
    pub fn is_sound(&self) -> bool {
        self.readable.len() + self.writable.len() <= MOST_PIECES
            && total(&self.readable) + total(&self.writable) <= u64::from(u32::MAX)
    }

    /// Bytes that it takes itself.
    pub fn cost(&self) -> usize {
        (self.readable.len() + self.writable.len()) * size_of::<Piece>()
    }
}
