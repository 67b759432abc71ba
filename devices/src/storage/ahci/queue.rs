//! Commands of a queue (native command queuing): READ FPDMA QUEUED, WRITE FPDMA QUEUED, and the log of what has failed.
//!
//! A command is carried out by pieces. All of the queue may be at the drive at once, in any order.
//!
//! Source: Serial ATA Revision 2.6, 13.6.
use super::fis::Frame;
use super::prdt::{Cursor, Fault};
use crate::dma::Dma;
use crate::storage::ata::{SECTOR, error};
use mynah_block::Request;
use serde::{Deserialize, Serialize};

/// Commands that a queue has room for.
pub const DEPTH: u8 = 32;
/// Most bytes that a command has at the drive.
pub const CHUNK: u32 = 128 << 10;

/// Command codes.
pub const READ_FPDMA_QUEUED: u8 = 0x60;
pub const WRITE_FPDMA_QUEUED: u8 = 0x61;
/// The command by which logs are read, and the logs there are: which there are, and that of what has failed in a queue.
pub const READ_LOG_EXT: u8 = 0x2f;
const LOG_DIRECTORY: u8 = 0x00;
const LOG_QUEUE: u8 = 0x10;

/// A command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Queued {
    /// Its tag, which is its slot.
    pub tag: u8,
    write: bool,
    /// It ends when what it has written is durable.
    durable: bool,
    /// All is written, and made durable.
    flushing: bool,
    /// What comes next, in sectors.
    lba: u64,
    left: u32,
    cursor: Cursor,
    /// Where `cursor` was before the piece that is at the drive.
    began: Cursor,
    /// A piece is at the drive.
    #[serde(skip)]
    pub sent: bool,
}

/// Of a command that has failed: what the log says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    tag: u8,
    status: u8,
    error: u8,
    lba: u64,
    count: u16,
    device: u8,
}

impl Queued {
    /// The command of a frame in `slot`, for a disk of so many sectors.
    ///
    /// # Errors
    /// The bits of the error register that it fails with at once.
    pub fn new(frame: &Frame, slot: u8, cursor: Cursor, capacity: u64) -> Result<Self, u8> {
        const FUA: u8 = 1 << 7;
        let tag = (frame.count() >> 3) as u8 & 0x1f;
        let left = if frame.features() == 0 { 0x1_0000 } else { u32::from(frame.features()) };
        let write = frame.code() == WRITE_FPDMA_QUEUED;
        let lba = frame.lba();
        if tag != slot {
            return Err(error::ABRT);
        }
        if lba + u64::from(left) > capacity {
            return Err(error::IDNF);
        }
        let durable = write && frame.device() & FUA != 0;
        Ok(Self { tag, write, durable, flushing: false, lba, left, cursor, began: cursor, sent: false })
    }

    fn piece(&self) -> u32 {
        self.left.min(CHUNK / SECTOR as u32)
    }

    /// What to ask of the drive next.
    ///
    /// # Errors
    /// What is to be written is not in memory.
    pub fn next(&mut self, dma: &Dma) -> Result<Request, Fault> {
        let (at, len) = (self.lba * SECTOR, (self.piece() * SECTOR as u32) as usize);
        if self.flushing {
            return Ok(Request::Flush);
        }
        if !self.write {
            return Ok(Request::Read { at, len });
        }
        let mut data = vec![0; len];
        // After a restore a piece is asked for again.
        self.cursor = self.began;
        self.cursor.read(dma, &mut data)?;
        Ok(Request::Write { at, data })
    }

    /// The drive has done what it was asked; these are the bytes of a read. Whether the command has ended.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn done(&mut self, dma: &Dma, data: &[u8]) -> Result<bool, Fault> {
        self.sent = false;
        if self.flushing {
            return Ok(true);
        }
        if !self.write {
            self.cursor.write(dma, data)?;
        }
        self.began = self.cursor;
        let piece = self.piece();
        self.lba += u64::from(piece);
        self.left -= piece;
        self.flushing = self.left == 0 && self.durable;
        Ok(self.left == 0 && !self.durable)
    }

    /// Whether its drive's errors are those of a read.
    pub fn reads(&self) -> bool {
        !self.write
    }

    /// What the log says of it when it fails.
    pub fn failed(&self, status: u8, error: u8) -> Failed {
        Failed { tag: self.tag, status, error, lba: self.lba, count: self.left as u16, device: 0x40 }
    }

    /// Whether a queue may have it, for a disk of so many sectors.
    pub fn is_valid(&self, capacity: u64) -> bool {
        self.tag < DEPTH
            && (self.left > 0 || self.flushing)
            && self.lba.checked_add(self.left.into()).is_some_and(|end| end <= capacity)
    }
}

impl Failed {
    /// What the log says of a command that was never queued.
    pub fn of(frame: &Frame, status: u8, error: u8) -> Self {
        let (tag, count) = ((frame.count() >> 3) as u8 & 0x1f, frame.features());
        Self { tag, status, error, lba: frame.lba(), count, device: frame.device() }
    }
}

/// A page of a log (ATA8-ACS, A.7 and A.2); none if there is none.
pub fn log_page(log: u8, page: u16, failed: Option<&Failed>) -> Option<Vec<u8>> {
    /// There is no failed command of a queue.
    const NOT_QUEUED: u8 = 1 << 7;
    if page != 0 {
        return None;
    }
    let mut p = vec![0; SECTOR as usize];
    match log {
        LOG_DIRECTORY => {
            // Version 1; a page each.
            (p[0], p[2 * usize::from(LOG_QUEUE)]) = (1, 1);
        }
        LOG_QUEUE => {
            match failed {
                Some(f) => {
                    let lba = f.lba.to_le_bytes();
                    (p[0], p[2], p[3]) = (f.tag, f.status, f.error);
                    p[4..7].copy_from_slice(&lba[..3]);
                    p[7] = f.device;
                    p[8..11].copy_from_slice(&lba[3..6]);
                    p[12..14].copy_from_slice(&f.count.to_le_bytes());
                }
                None => p[0] = NOT_QUEUED,
            }
            // All bytes add up to zero.
            p[511] = p.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b));
        }
        _ => return None,
    }
    Some(p)
}
