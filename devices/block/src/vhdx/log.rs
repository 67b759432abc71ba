//! The log (MS-VHDX 2.3): pieces of 4 KiB of the file's metadata that are to stand somewhere. They are written here
//! first, and replayed when the image is opened and the last header says that there are some.
//!
//! What we write are entries that stand each for themselves (`Tail` is the entry's own place): what the one before
//! has is in place and durable when the next is begun. What others write may go on over several entries.
use super::format::{Guid, HEADERS, MAX_OFFSET, Region};
use crate::crc32c::{Crc, without_itself};
use crate::storage::{Storage, damaged, le32, le64, unsupported};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// What the log's things are multiples of.
pub const SECTOR: usize = 4096;
/// Descriptors that are in an entry's first 4 KiB.
pub const MAX_SECTORS: usize = (SECTOR - 64) / 32;
/// Most bytes of a log that is replayed.
const MAX_LOG: u64 = 256 << 20;
/// Most zeros that one descriptor stands for.
const MAX_ZEROS: u64 = 1 << 30;
/// Most pieces that are kept in memory of an image that is only read: 64 KiB of descriptors, 16 MiB of data.
const MAX_KEPT: usize = 4096;

/// A piece of the file, and where it is to stand.
pub type Piece = (u64, [u8; SECTOR]);

/// An entry that has these pieces, at most [`MAX_SECTORS`].
pub fn entry(pieces: &[Piece], at: u64, sequence: u64, guid: Guid, file_len: u64) -> Vec<u8> {
    debug_assert!(pieces.len() <= MAX_SECTORS);
    let len = SECTOR * (1 + pieces.len());
    let mut bytes = vec![0; len];
    bytes[..4].copy_from_slice(b"loge");
    bytes[8..12].copy_from_slice(&(len as u32).to_le_bytes());
    bytes[12..16].copy_from_slice(&(at as u32).to_le_bytes());
    bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
    bytes[24..28].copy_from_slice(&(pieces.len() as u32).to_le_bytes());
    bytes[32..48].copy_from_slice(&guid);
    bytes[48..56].copy_from_slice(&file_len.to_le_bytes());
    bytes[56..64].copy_from_slice(&file_len.to_le_bytes());
    let (descriptors, data) = bytes.split_at_mut(SECTOR);
    for (n, (place, piece)) in pieces.iter().enumerate() {
        let descriptor = &mut descriptors[64 + n * 32..][..32];
        descriptor[..4].copy_from_slice(b"desc");
        descriptor[4..8].copy_from_slice(&piece[SECTOR - 4..]);
        descriptor[8..16].copy_from_slice(&piece[..8]);
        descriptor[16..24].copy_from_slice(&place.to_le_bytes());
        descriptor[24..32].copy_from_slice(&sequence.to_le_bytes());
        let sector = &mut data[n * SECTOR..][..SECTOR];
        sector.copy_from_slice(piece);
        sector[..4].copy_from_slice(b"data");
        sector[4..8].copy_from_slice(&((sequence >> 32) as u32).to_le_bytes());
        sector[SECTOR - 4..].copy_from_slice(&(sequence as u32).to_le_bytes());
    }
    let sum = without_itself(&bytes, 4);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The log of an image, as it is read.
pub struct Log<'a> {
    storage: &'a dyn Storage,
    region: Region,
    guid: Guid,
    /// Bytes that may still be summed up: entries that lie about their length must not take for ever.
    budget: u64,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    at: u64,
    len: u64,
    tail: u64,
    sequence: u64,
    descriptors: u64,
    flushed: u64,
    last: u64,
}

/// What becomes of the pieces of a log.
pub trait Target {
    /// The file has so many bytes at least.
    fn grow(&mut self, len: u64) -> io::Result<()>;
    /// This stands there.
    fn data(&mut self, at: u64, bytes: &[u8; SECTOR]) -> io::Result<()>;
    /// Zeros stand there.
    fn zeros(&mut self, at: u64, len: u64) -> io::Result<()>;
}

impl<'a> Log<'a> {
    /// The log that the header speaks of.
    pub fn new(storage: &'a dyn Storage, region: Region, guid: Guid) -> io::Result<Self> {
        if region.len > MAX_LOG {
            return Err(unsupported(format!("its log of {} bytes is too long to be replayed", region.len)));
        }
        Ok(Self { storage, region, guid, budget: region.len.saturating_mul(4) })
    }

    /// Has all that is to be replayed done to `target`; `false` if there is nothing.
    pub fn replay(&mut self, target: &mut dyn Target) -> io::Result<bool> {
        let Some(entries) = self.active()? else { return Ok(false) };
        let len = self.storage.len()?;
        for entry in &entries {
            if entry.flushed > len {
                return Err(damaged("the file is shorter than its log has it: it has been cut"));
            }
            if entry.last > MAX_OFFSET {
                return Err(damaged("its log has the file longer than files are"));
            }
        }
        let last = entries.last().map_or(0, |e| e.last).max(len);
        if last > len {
            target.grow(last)?;
        }
        for entry in &entries {
            self.apply(entry, last, target)?;
        }
        Ok(true)
    }

    /// The entries of the active sequence (MS-VHDX 2.3.3): the one that ends with the largest sequence number.
    fn active(&mut self) -> io::Result<Option<Vec<Found>>> {
        let mut best: Option<Vec<Found>> = None;
        let mut at = 0;
        while at < self.region.len {
            let (mut sequence, mut head): (Vec<Found>, u64) = (Vec::new(), at);
            // Once around at most.
            let mut left = self.region.len;
            while let Some(entry) = self.entry_at(head)? {
                let follows =
                    sequence.last().is_none_or(|last| entry.sequence == last.sequence.wrapping_add(1));
                if !follows || entry.len > left {
                    break;
                }
                left -= entry.len;
                head = (head + entry.len) % self.region.len;
                sequence.push(entry);
            }
            at = match sequence.last() {
                Some(_) if head > at => head,
                Some(_) => self.region.len,
                None => at + SECTOR as u64,
            };
            let Some(last) = sequence.last().copied() else { continue };
            let Some(first) = sequence.iter().position(|e| e.at == last.tail) else { continue };
            let newest = best.as_ref().and_then(|b| b.last()).map_or(0, |e| e.sequence);
            if last.sequence > newest {
                best = Some(sequence.split_off(first));
            }
        }
        Ok(best)
    }

    /// Reads bytes of the log, around its end.
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let first = (self.region.len - at).min(buf.len() as u64) as usize;
        let (one, two) = buf.split_at_mut(first);
        self.storage.read_at(self.region.at + at, one)?;
        if two.is_empty() { Ok(()) } else { self.storage.read_at(self.region.at, two) }
    }

    /// The entry at `at`, if one is there and is whole.
    fn entry_at(&mut self, at: u64) -> io::Result<Option<Found>> {
        let mut head = [0; 64];
        self.read(at, &mut head)?;
        let found = Found {
            at,
            len: u64::from(le32(&head, 8)),
            tail: u64::from(le32(&head, 12)),
            sequence: le64(&head, 16),
            descriptors: u64::from(le32(&head, 24)),
            flushed: le64(&head, 48),
            last: le64(&head, 56),
        };
        let whole = head.starts_with(b"loge")
            && found.len >= SECTOR as u64
            && found.len.is_multiple_of(SECTOR as u64)
            && found.len <= self.region.len
            && found.tail < self.region.len
            && found.tail.is_multiple_of(SECTOR as u64)
            && found.sequence > 0
            && head[32..48] == self.guid
            && found.descriptors <= (found.len - 64) / 32;
        if !whole {
            return Ok(None);
        }
        let Some(left) = self.budget.checked_sub(found.len) else {
            return Err(damaged("its log is full of entries that are none"));
        };
        self.budget = left;
        let (mut crc, mut part) = (Crc::new(), vec![0; SECTOR * 16]);
        let mut done = 0;
        while done < found.len {
            let n = (found.len - done).min(part.len() as u64);
            let part = &mut part[..n as usize];
            self.read((at + done) % self.region.len, part)?;
            if done == 0 {
                part[4..8].fill(0);
            }
            crc.add(part);
            done += n;
        }
        Ok((crc.sum() == le32(&head, 4)).then_some(found))
    }

    /// Does what an entry says to `target`; the file has `file_len` bytes.
    fn apply(&self, entry: &Found, file_len: u64, target: &mut dyn Target) -> io::Result<()> {
        let wrong = |what: &str| Err(damaged(format!("an entry of its log {what}")));
        let mut data = entry.at + (64 + entry.descriptors * 32).next_multiple_of(SECTOR as u64);
        for n in 0..entry.descriptors {
            let mut descriptor = [0; 32];
            self.read((entry.at + 64 + n * 32) % self.region.len, &mut descriptor)?;
            let (at, sequence) = (le64(&descriptor, 16), le64(&descriptor, 24));
            if sequence != entry.sequence {
                return wrong("has descriptors of another one");
            }
            let zeros = descriptor.starts_with(b"zero");
            let len = if zeros { le64(&descriptor, 8) } else { SECTOR as u64 };
            let end = at.checked_add(len).filter(|end| *end <= file_len);
            if !at.is_multiple_of(SECTOR as u64) || !len.is_multiple_of(SECTOR as u64) || end.is_none() {
                return wrong("writes beyond the file's end");
            }
            // Not to the headers, and not to the log itself.
            if at < HEADERS[1] + 65_536 || self.region.overlaps(at, len) {
                return wrong("writes to where the log must not");
            }
            if zeros {
                if len > MAX_ZEROS {
                    return wrong("has more zeros than can be");
                }
                target.zeros(at, len)?;
                continue;
            }
            if !descriptor.starts_with(b"desc") || data + SECTOR as u64 > entry.at + entry.len {
                return wrong("cannot be read");
            }
            let mut sector = [0; SECTOR];
            self.read(data % self.region.len, &mut sector)?;
            let high = u64::from(le32(&sector, 4)) << 32;
            if !sector.starts_with(b"data") || high | u64::from(le32(&sector, SECTOR - 4)) != sequence {
                return wrong("has data of another one");
            }
            sector[..8].copy_from_slice(&descriptor[8..16]);
            sector[SECTOR - 4..].copy_from_slice(&descriptor[4..8]);
            target.data(at, &sector)?;
            data += SECTOR as u64;
        }
        Ok(())
    }
}

/// The file itself.
pub struct InPlace<'a>(pub &'a dyn Storage);

impl Target for InPlace<'_> {
    fn grow(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn data(&mut self, at: u64, bytes: &[u8; SECTOR]) -> io::Result<()> {
        self.0.write_at(at, bytes)
    }

    fn zeros(&mut self, at: u64, len: u64) -> io::Result<()> {
        self.0.zero_at(at, len, false)
    }
}

/// A file that is only read, as it would be after its log was replayed.
pub struct Replayed {
    below: Arc<dyn Storage>,
    len: u64,
    /// By offset; zeros are not kept.
    pieces: BTreeMap<u64, Option<Box<[u8; SECTOR]>>>,
}

impl Replayed {
    /// The file as it is.
    pub fn new(below: Arc<dyn Storage>) -> io::Result<Self> {
        Ok(Self { len: below.len()?, below, pieces: BTreeMap::new() })
    }

    fn keep(&mut self, at: u64, piece: Option<Box<[u8; SECTOR]>>) -> io::Result<()> {
        if self.pieces.len() >= MAX_KEPT {
            return Err(unsupported("its log is too long to be read only: open it for writing once"));
        }
        self.pieces.insert(at, piece);
        Ok(())
    }

    fn refused<T>() -> io::Result<T> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

impl Target for Replayed {
    fn grow(&mut self, len: u64) -> io::Result<()> {
        self.len = len;
        Ok(())
    }

    fn data(&mut self, at: u64, bytes: &[u8; SECTOR]) -> io::Result<()> {
        self.keep(at, Some(Box::new(*bytes)))
    }

    fn zeros(&mut self, at: u64, len: u64) -> io::Result<()> {
        (at..at + len).step_by(SECTOR).try_for_each(|at| self.keep(at, None))
    }
}

impl Storage for Replayed {
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.below.read_at(at, buf)?;
        let end = at.saturating_add(buf.len() as u64);
        let first = at.saturating_sub(SECTOR as u64 - 1);
        for (place, piece) in self.pieces.range(first..end) {
            let from = (*place).max(at);
            let to = (place + SECTOR as u64).min(end);
            let room = &mut buf[(from - at) as usize..(to - at) as usize];
            match piece {
                Some(bytes) => room.copy_from_slice(&bytes[(from - place) as usize..(to - place) as usize]),
                None => room.fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Self::refused()
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Self::refused()
    }

    fn zero_at(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Self::refused()
    }

    fn extent_at(&self, at: u64) -> io::Result<(u64, bool)> {
        Ok((self.len.saturating_sub(at), true))
    }

    fn disk_usage(&self) -> io::Result<u64> {
        self.below.disk_usage()
    }

    fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
        Self::refused()
    }
}
