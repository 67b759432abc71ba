//! What a driver hands over at once: pieces of guest memory, first those that the device reads, then those it writes.
pub use crate::pieces::{Piece, read, total, write};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// The most pieces that a chain may have, as in QEMU.
pub const MOST_PIECES: usize = 1024;

/// The driver has broken the rules in a ring or a descriptor; what it was, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// Pieces of a chain: few need no memory of their own.
pub type Pieces = SmallVec<[Piece; 4]>;

/// A chain of descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// By what the driver knows it.
    pub head: u16,
    /// What the device reads.
    #[serde(with = "as_vec")]
    pub readable: Pieces,
    /// What the device writes.
    #[serde(with = "as_vec")]
    pub writable: Pieces,
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

/// Pieces are saved as a `Vec`, which is read with no trust in the number that stands before it.
mod as_vec {
    use super::{Piece, Pieces};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(pieces: &Pieces, to: S) -> Result<S::Ok, S::Error> {
        pieces.as_slice().serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Pieces, D::Error> {
        Vec::<Piece>::deserialize(from).map(Pieces::from_vec)
    }
}
