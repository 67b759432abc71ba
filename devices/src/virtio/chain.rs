//! What a driver hands over at once: pieces of guest memory, first those that the device reads, then those it writes.
use crate::dma::Session;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

/// The most pieces that a chain may have, as in QEMU.
pub const MOST_PIECES: usize = 1024;

/// The driver has broken the rules in a ring or a descriptor; what it was, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// Some guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Its first byte's address.
    pub at: u64,
    /// Its bytes.
    pub len: u32,
}

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

/// Bytes of all pieces.
pub fn total(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|p| u64::from(p.len)).sum()
}

/// Calls `each` with the parts of `pieces` that `len` bytes from `from` on are in: address, and their place among the
/// `len`. Whether there are so many, and `each` went well.
fn parts(pieces: &[Piece], from: u64, len: usize, mut each: impl FnMut(u64, usize, usize) -> bool) -> bool {
    let (mut skip, mut done) = (from, 0);
    for p in pieces {
        if done == len {
            break;
        }
        let there = u64::from(p.len);
        if skip >= there {
            skip -= there;
            continue;
        }
        let n = ((there - skip) as usize).min(len - done);
        let Some(at) = p.at.checked_add(skip) else { return false };
        if !each(at, done, n) {
            return false;
        }
        skip = 0;
        done += n;
    }
    done == len
}

/// Reads bytes of pieces, from the one at `from` on. False, and some of `into` may have been filled, if there are not
/// so many or they are not in RAM.
#[must_use]
pub fn read(memory: &Session<'_>, pieces: &[Piece], from: u64, into: &mut [u8]) -> bool {
    parts(pieces, from, into.len(), |at, first, n| {
        memory.read_slice(&mut into[first..first + n], GuestAddress(at)).is_ok()
    })
}

/// Writes bytes to pieces, from the one at `from` on. False, and some may have been written, as for [`read`].
#[must_use]
pub fn write(memory: &Session<'_>, pieces: &[Piece], from: u64, bytes: &[u8]) -> bool {
    parts(pieces, from, bytes.len(), |at, first, n| {
        memory.write_slice(&bytes[first..first + n], GuestAddress(at)).is_ok()
    })
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
