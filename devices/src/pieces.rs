//! Guest memory in pieces: what a request's data lie in, however a device is told of them.
use crate::dma::Session;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

/// Some guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Its first byte's address.
    pub at: u64,
    /// Its bytes.
    pub len: u32,
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
