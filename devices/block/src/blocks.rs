//! Formats that are one table of blocks: VDI and VHD. What they have in common is here, the layouts are in
//! [`crate::vdi`] and [`crate::vhd`].
//!
//! A block that is not there reads as zeros, and is made when something else is written to it: at the file's end, its
//! data first. The table's entry for it is written by the next flush, when the data are durable; so it is with what
//! the header counts. Locks: `growth`, then `table`.
use crate::image::{CheckReport, Details, Extent, Image, within};
use crate::ops::is_zero;
use crate::storage::{Storage, damaged};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Most entries of a table: 16 MiB of them.
pub const MAX_ENTRIES: u64 = 4 << 20;

/// Where what is in such an image's file.
pub trait Layout: Send + Sync {
    /// The format's name.
    fn format(&self) -> &'static str;

    /// What it has to say of itself.
    fn details(&self) -> Details;

    /// Where the data of a block with this table entry are; `None` if there are none.
    fn data(&self, entry: u32) -> Option<u64>;

    /// Makes block number `index` at the file's end, which is at `end`: its entry, and the new end.
    ///
    /// # Errors
    /// The host's; the file cannot be larger.
    fn grow(&self, storage: &dyn Storage, index: usize, end: u64) -> io::Result<(u32, u64)>;

    /// What of the file a block with this entry has, [`Layout::data`] and what belongs to it; `None` if nothing.
    fn taken(&self, entry: u32) -> Option<Range<u64>>;

    /// See [`Image::identity`].
    fn identity(&self) -> Option<[u8; 16]> {
        None
    }

    /// What of the file is the format's own.
    fn own(&self) -> Vec<Range<u64>>;

    /// How many blocks the header says there are, if it says so.
    ///
    /// # Errors
    /// The host's.
    fn counted(&self, _storage: &dyn Storage) -> io::Result<Option<u32>> {
        Ok(None)
    }

    /// Has the header count so many blocks.
    ///
    /// # Errors
    /// The host's.
    fn set_count(&self, _storage: &dyn Storage, _count: u32) -> io::Result<()> {
        Ok(())
    }

    /// Where the entry of block `index` is, and how it is written.
    fn entry(&self, index: usize, entry: u32) -> (u64, [u8; 4]);

    /// Writes the entries of the blocks `new`, whose data are durable, and what the header says of their number.
    ///
    /// # Errors
    /// The host's.
    fn link(&self, storage: &dyn Storage, table: &[u32], new: &BTreeSet<usize>) -> io::Result<()> {
        for index in new {
            let (at, bytes) = self.entry(*index, table[*index]);
            storage.write_at(at, &bytes)?;
        }
        Ok(())
    }
}

/// An image with one table of blocks.
pub struct Blocks {
    storage: Arc<dyn Storage>,
    layout: Box<dyn Layout>,
    read_only: bool,
    size: u64,
    block_size: u64,
    table: RwLock<Vec<u32>>,
    growth: Mutex<Growth>,
}

struct Growth {
    /// Where the next block goes.
    end: u64,
    /// Entries that are not yet in the file.
    dirty: BTreeSet<usize>,
}

impl Blocks {
    /// The image of `size` bytes with these blocks; the next one goes to `end`.
    pub fn new(
        storage: Arc<dyn Storage>,
        layout: Box<dyn Layout>,
        read_only: bool,
        size: u64,
        block_size: u64,
        table: Vec<u32>,
        end: u64,
    ) -> Self {
        let growth = Mutex::new(Growth { end, dirty: BTreeSet::new() });
        Self { storage, layout, read_only, size, block_size, table: RwLock::new(table), growth }
    }

    /// Where `at` is in the file, and how many bytes of `len` are there together.
    fn place(&self, at: u64, len: u64) -> io::Result<(Option<u64>, u64)> {
        let (index, within) = (at / self.block_size, at % self.block_size);
        let n = len.min(self.block_size - within);
        let table = self.table.read();
        let entry = *table.get(index as usize).ok_or_else(|| damaged("the table of blocks is too short"))?;
        let data = self.layout.data(entry).map(|data| data.saturating_add(within));
        if data.is_some_and(|at| at > 1 << 56) {
            return Err(damaged(format!("block {index} cannot be where the table has it")));
        }
        Ok((data, n))
    }

    /// Makes the block that has `at`, unless it is there.
    fn make(&self, at: u64) -> io::Result<()> {
        let index = (at / self.block_size) as usize;
        let mut growth = self.growth.lock();
        if self.place(at, 1)?.0.is_some() {
            return Ok(());
        }
        let (entry, end) = self.layout.grow(&*self.storage, index, growth.end)?;
        growth.end = end;
        growth.dirty.insert(index);
        if let Some(place) = self.table.write().get_mut(index) {
            *place = entry;
        }
        Ok(())
    }

    fn may_write(&self, at: u64, len: u64) -> io::Result<()> {
        within(self.size, at, len)?;
        if self.read_only {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the image is read-only"));
        }
        Ok(())
    }
}

impl Image for Blocks {
    fn format(&self) -> &'static str {
        self.layout.format()
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, mut at: u64, mut buf: &mut [u8]) -> io::Result<()> {
        within(self.size, at, buf.len() as u64)?;
        while !buf.is_empty() {
            let (place, n) = self.place(at, buf.len() as u64)?;
            let (part, rest) = buf.split_at_mut(n as usize);
            match place {
                Some(host) => self.storage.read_at(host, part)?,
                None => part.fill(0),
            }
            at += n;
            buf = rest;
        }
        Ok(())
    }

    fn write(&self, mut at: u64, mut data: &[u8]) -> io::Result<()> {
        self.may_write(at, data.len() as u64)?;
        while !data.is_empty() {
            let (mut place, n) = self.place(at, data.len() as u64)?;
            let part = &data[..n as usize];
            if place.is_none() && !is_zero(part) {
                self.make(at)?;
                place = self.place(at, n)?.0;
            }
            if let Some(host) = place {
                self.storage.write_at(host, part)?;
            }
            at += n;
            data = &data[n as usize..];
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        let mut growth = self.growth.lock();
        self.storage.flush()?;
        if growth.dirty.is_empty() {
            return Ok(());
        }
        self.layout.link(&*self.storage, &self.table.read(), &growth.dirty)?;
        self.storage.flush()?;
        growth.dirty.clear();
        Ok(())
    }

    fn zero(&self, mut at: u64, mut len: u64, unmap: bool) -> io::Result<()> {
        self.may_write(at, len)?;
        while len > 0 {
            let (place, n) = self.place(at, len)?;
            if let Some(host) = place {
                self.storage.zero_at(host, n, unmap)?;
            }
            at += n;
            len -= n;
        }
        Ok(())
    }

    fn extent(&self, at: u64) -> io::Result<Extent> {
        let left = self.size.saturating_sub(at);
        if left == 0 {
            return Ok(Extent { len: 0, data: false, allocated: false, host_offset: None });
        }
        let (place, mut len) = self.place(at, left)?;
        while len < left {
            let (next, n) = self.place(at + len, left - len)?;
            if next != place.map(|p| p + len) {
                break;
            }
            len += n;
        }
        Ok(Extent { len, data: place.is_some(), allocated: place.is_some(), host_offset: place })
    }

    fn details(&self) -> Details {
        self.layout.details()
    }

    fn identity(&self) -> Option<[u8; 16]> {
        self.layout.identity()
    }

    /// Two blocks that have a place in common, or one that stands where a table does: whatever is written to the one
    /// changes the other, and nobody can say whose the bytes are. A count that is wrong can be mended.
    fn check(&self, repair: bool) -> io::Result<CheckReport> {
        if repair {
            self.may_write(0, 0)?;
        }
        self.flush()?;
        let mut report = CheckReport::default();
        let table = self.table.read();
        let mut order: Vec<u32> = (0..table.len() as u32).collect();
        order.retain(|index| self.layout.taken(table[*index as usize]).is_some());
        order.sort_unstable_by_key(|index| table[*index as usize]);
        let own = self.layout.own();
        let mut before: Option<(u32, Range<u64>)> = None;
        for index in &order {
            let Some(place) = self.layout.taken(table[*index as usize]) else { continue };
            if own.iter().any(|own| own.start < place.end && place.start < own.end) {
                report.corruptions += 1;
                report.note(|| {
                    format!("ERROR: block {index} at {:#x} overlaps the image's own tables", place.start)
                });
            }
            if let Some((other, last)) = before.as_ref().filter(|(_, last)| place.start < last.end) {
                report.corruptions += 1;
                report.note(|| {
                    format!(
                        "ERROR: block {index} at {:#x} overlaps block {other} at {:#x}",
                        place.start, last.start
                    )
                });
            }
            before = Some((*index, place));
        }
        let there = order.len() as u32;
        if let Some(count) = self.layout.counted(&*self.storage)?.filter(|count| *count != there) {
            if repair {
                self.layout.set_count(&*self.storage, there)?;
                self.storage.flush()?;
                report.corruptions_fixed += 1;
            } else {
                report.corruptions += 1;
            }
            report.note(|| {
                let what = if repair { "Repairing" } else { "ERROR" };
                format!("{what}: the header counts {count} blocks, and there are {there}")
            });
        }
        Ok(report)
    }
}

impl Drop for Blocks {
    /// What is in memory goes to the file.
    fn drop(&mut self) {
        if let Err(e) = self.flush() {
            tracing::warn!("a {} image was closed without its last changes: {e}", self.format());
        }
    }
}

/// 16 bytes that nobody else has: a random UUID (RFC 9562, version 4).
pub fn uuid() -> [u8; 16] {
    use std::hash::{BuildHasher, RandomState};
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&RandomState::new().hash_one(1).to_le_bytes());
    bytes[8..].copy_from_slice(&RandomState::new().hash_one(2).to_le_bytes());
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}
