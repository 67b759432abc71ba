//! What a request asks for, and how far it is (5.2.6).
//!
//! ```text
//!   device reads:   type 32 | reserved 32 | sector 64 | data of a write, or segments
//!   device writes:  data of a read | status 8
//! ```
//!
//! The parts may lie in any pieces.
use super::{Blk, MOST_ZEROED, SECTOR};
use crate::dma::Session;
use crate::virtio::chain::{self, Broken, Chain};
use crate::virtio::core::Served;
use mynah_block::Request;
use serde::{Deserialize, Serialize};

/// Bytes of the header.
const HEADER: u64 = 16;
/// Bytes of a segment of a discard: sector 64, sectors 32, flags 32.
const SEGMENT: u64 = 16;
/// Its flag: the room may be given back.
const UNMAP: u32 = 1;
/// Bytes of the identification.
pub(super) const ID_LEN: usize = 20;

/// Types of requests.
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
    /// VIRTIO_BLK_T_BARRIER, of before version 1; QEMU takes it for nothing as well.
    pub const BARRIER: u32 = 1 << 31;
}

/// How a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What is moved or done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum What {
    /// Bytes from `at` on.
    Read {
        at: u64,
        len: u64,
    },
    /// To `at` on.
    Write {
        at: u64,
        len: u64,
    },
    Flush,
    Discard {
        at: u64,
        len: u64,
    },
    Zero {
        at: u64,
        len: u64,
        unmap: bool,
    },
    /// Nothing that takes time.
    Nothing,
}

/// A request that was taken out of the ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Task {
    chain: Chain,
    what: What,
    /// Bytes that were moved already.
    moved: u64,
}

/// A request, and whether there is anything left to do.
pub(super) enum Asked {
    Done(Task, Status),
    Task(Task),
}

/// What a chain asks for.
///
/// # Errors
/// It has no header, or no room for a status.
pub(super) fn parse(chain: Chain, memory: &Session<'_>, disk: &Blk) -> Result<Asked, Broken> {
    if chain::total(&chain.writable) == 0 {
        return Err(Broken("a request with no room for its status"));
    }
    let mut header = [0; HEADER as usize];
    if chain::total(&chain.readable) < HEADER || !chain::read(memory, &chain.readable, 0, &mut header) {
        return Err(Broken("a request with no header"));
    }
    let mut task = Task { chain, what: What::Nothing, moved: 0 };
    let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let sector = word(&header, 8);
    let found = match kind & !kind::BARRIER {
        kind::IN => {
            let len = task.data_room();
            place(disk, sector, len).map(|at| What::Read { at, len })
        }
        kind::OUT => {
            let len = chain::total(&task.chain.readable) - HEADER;
            place(disk, sector, len).map(|at| What::Write { at, len })
        }
        kind::FLUSH => Ok(What::Flush),
        kind::GET_ID => return Ok(task.identify(memory, &disk.options.serial)),
        kind::DISCARD if disk.options.discard => task.segment(memory, disk, false),
        kind::WRITE_ZEROES if disk.options.write_zeroes => task.segment(memory, disk, true),
        _ => Err(Status::Unsupported),
    };
    Ok(match found {
        Ok(what) => {
            task.what = what;
            Asked::Task(task)
        }
        Err(status) => Asked::Done(task, status),
    })
}

fn word(bytes: &[u8; 16], at: usize) -> u64 {
    let word = |i: usize| u64::from(bytes[at + i]) << (8 * i);
    (0..8).map(word).sum()
}

/// Where `len` bytes from `sector` on are, if the disk has them and they are whole blocks.
fn place(disk: &Blk, sector: u64, len: u64) -> Result<u64, Status> {
    let block = u64::from(disk.options.logical_block);
    let at = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
    let end = at.checked_add(len).ok_or(Status::IoError)?;
    let fits = end <= disk.sectors() * SECTOR && at.is_multiple_of(block) && len.is_multiple_of(block);
    if fits { Ok(at) } else { Err(Status::IoError) }
}

impl Task {
    /// Bytes that the device writes before the status.
    fn data_room(&self) -> u64 {
        chain::total(&self.chain.writable) - 1
    }

    fn identify(self, memory: &Session<'_>, serial: &str) -> Asked {
        let mut id = [0; ID_LEN];
        let n = serial.len().min(ID_LEN);
        id[..n].copy_from_slice(&serial.as_bytes()[..n]);
        let room = self.data_room().min(ID_LEN as u64) as usize;
        let good = chain::write(memory, &self.chain.writable, 0, &id[..room]);
        Asked::Done(self, if good { Status::Ok } else { Status::IoError })
    }

    /// The one segment of a discard or a write of zeros.
    fn segment(&self, memory: &Session<'_>, disk: &Blk, zero: bool) -> Result<What, Status> {
        let mut bytes = [0; SEGMENT as usize];
        let there = chain::total(&self.chain.readable) - HEADER;
        if there > SEGMENT {
            return Err(Status::Unsupported);
        }
        if there < SEGMENT || !chain::read(memory, &self.chain.readable, HEADER, &mut bytes) {
            return Err(Status::IoError);
        }
        let (sector, rest) = (word(&bytes, 0), word(&bytes, 8));
        let (sectors, flags) = (rest as u32, (rest >> 32) as u32);
        if flags & !UNMAP != 0 || !zero && flags != 0 {
            return Err(Status::Unsupported);
        }
        if sectors > MOST_ZEROED {
            return Err(Status::IoError);
        }
        let len = u64::from(sectors) * SECTOR;
        let at = place(disk, sector, len)?;
        Ok(if zero { What::Zero { at, len, unmap: flags & UNMAP != 0 } } else { What::Discard { at, len } })
    }

    /// Bytes of the next piece.
    fn next(&self, most: usize) -> usize {
        match self.what {
            What::Read { len, .. } | What::Write { len, .. } => (len - self.moved).min(most as u64) as usize,
            _ => 0,
        }
    }

    /// Bytes that it takes while a piece of it is under way.
    pub(super) fn cost(&self, most: usize) -> usize {
        self.next(most) + self.chain.cost()
    }

    /// What is asked of the drive next; none if what is to be written is not in memory.
    pub(super) fn request(&self, memory: &Session<'_>, most: usize) -> Option<Request> {
        let len = self.next(most);
        Some(match self.what {
            What::Read { at, .. } => Request::Read { at: at + self.moved, len },
            What::Write { at, .. } => {
                let mut data = vec![0; len];
                if !chain::read(memory, &self.chain.readable, HEADER + self.moved, &mut data) {
                    return None;
                }
                Request::Write { at: at + self.moved, data }
            }
            What::Flush | What::Nothing => Request::Flush,
            What::Discard { at, len } => Request::Discard { at, len },
            What::Zero { at, len, unmap } => Request::Zero { at, len, unmap },
        })
    }

    /// A piece has ended: puts what was read where it belongs. Whether that is memory.
    pub(super) fn advance(&mut self, memory: &Session<'_>, data: &[u8], most: usize) -> bool {
        let len = self.next(most) as u64;
        let good = match self.what {
            What::Read { .. } => {
                data.len() as u64 == len && chain::write(memory, &self.chain.writable, self.moved, data)
            }
            _ => true,
        };
        self.moved += len;
        good
    }

    /// Whether all of it has been moved.
    pub(super) fn is_done(&self) -> bool {
        match self.what {
            What::Read { len, .. } | What::Write { len, .. } => self.moved == len,
            _ => true,
        }
    }

    /// Gives the chain back with a status.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) fn end(self, served: &mut Served<'_, '_>, status: Status) -> Result<(), Broken> {
        let room = self.data_room();
        if !chain::write(served.memory, &self.chain.writable, room, &[status as u8]) {
            return Err(Broken("a status that is not in memory"));
        }
        // What counts are bytes from the first one on; after an error these are not written.
        let written = if status == Status::Ok || room == 0 { room + 1 } else { 0 };
        served.done(self.chain.head, u32::try_from(written).unwrap_or(u32::MAX))
    }

    /// Whether it can be one that was saved.
    pub(super) fn is_sound(&self) -> bool {
        let c = &self.chain;
        let fits = match self.what {
            What::Read { len, .. } => self.moved <= len && len == chain::total(&c.writable).saturating_sub(1),
            What::Write { len, .. } => {
                self.moved <= len && Some(len) == chain::total(&c.readable).checked_sub(HEADER)
            }
            _ => self.moved == 0,
        };
        let within = |at: u64, len: u64| at.checked_add(len).is_some();
        let placed = match self.what {
            What::Read { at, len } | What::Write { at, len } => within(at, len),
            What::Discard { at, len } | What::Zero { at, len, .. } => within(at, len),
            What::Flush | What::Nothing => true,
        };
        c.is_sound() && chain::total(&c.writable) > 0 && fits && placed
    }
}
