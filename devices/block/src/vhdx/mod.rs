//! Hyper-V's VHDX: dynamic and fixed images, read and write. Differencing ones are refused by name.
//!
//! Layout after Microsoft's "[MS-VHDX]: Virtual Hard Disk v2 (VHDX) File Format": two headers and two region tables in
//! the first MiB, a log, metadata, and a table of 64-bit entries (BAT), one for each block of 1 to 256 MiB and one for
//! a bitmap after as many blocks as a bitmap covers; the bitmaps' entries are of use to differencing images only.
//!
//! Order. A block that is not there reads as zeros, and is made at the file's end when something else is written to
//! it. Its entry stays in memory until a flush: data first, then the changed pieces of the table to the log, then,
//! when these are durable, to the table. The next flush has the table durable before the log is written again, so
//! whatever of the writes is in the file after an end of any kind, table or log have all that was flushed. An image
//! that is opened for writing has a log's identifier in its headers from the first change to its close; whoever finds
//! it there replays the log. For an image that is only read this is done in memory.
//!
//! Locks: `growth`, then `bat`.
mod create;
mod format;
mod log;
#[cfg(test)]
mod tests;

pub use create::{Options, create};

use crate::blocks::uuid;
use crate::image::{CheckReport, Details, Extent, Image, within};
use crate::ops::is_zero;
use crate::storage::{Storage, damaged, le64};
use format::{Guid, Header, MAX_OFFSET, MIB, Metadata, Region, Regions};
use log::{InPlace, Log, Piece, Replayed, SECTOR};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// States of a block (MS-VHDX 2.5.1.1): the lower three bits of its entry.
const NOT_PRESENT: u64 = 0;
const ZERO: u64 = 2;
const UNMAPPED: u64 = 3;
const FULLY_PRESENT: u64 = 6;
const PARTIALLY_PRESENT: u64 = 7;
/// The bits of an entry that are the block's place.
const PLACE: u64 = !(MIB - 1);

const PAGE_ENTRIES: u64 = SECTOR as u64 / 8;
/// Most pages of the table that are held, 8 MiB, and most that are changed and not written.
const MAX_PAGES: usize = 2048;
const MAX_DIRTY: usize = 1024;

/// An open image.
pub struct Vhdx {
    storage: Arc<dyn Storage>,
    read_only: bool,
    metadata: Metadata,
    regions: Regions,
    log: Region,
    /// Where the next block goes: the file's end.
    end: AtomicU64,
    bat: RwLock<HashMap<u64, Page>>,
    growth: Mutex<Growth>,
    /// The headers say that somebody writes to it.
    begun: AtomicBool,
}

/// 4 KiB of the table.
struct Page {
    entries: Box<[u64]>,
    dirty: bool,
}

struct Growth {
    header: Header,
    /// Where the next entry of the log goes, and its number.
    log_at: u64,
    sequence: u64,
    dirty: usize,
}

/// Opens the image in `storage`.
///
/// # Errors
/// It is none, is damaged, or asks for what is not there; the host's.
pub fn open(storage: Arc<dyn Storage>, read_only: bool) -> io::Result<Vhdx> {
    let mut signature = [0; 8];
    storage.read_at(0, &mut signature)?;
    if signature != *format::SIGNATURE {
        return Err(damaged("not a VHDX image"));
    }
    let mut header = Header::read(&*storage)?;
    let log = header.log;
    let mut storage = storage;
    if header.log_guid != Guid::default() {
        let below = storage.clone();
        let mut entries = Log::new(&*below, log, header.log_guid)?;
        if read_only {
            let mut replayed = Replayed::new(below.clone())?;
            if entries.replay(&mut replayed)? {
                storage = Arc::new(replayed);
            }
        } else {
            if entries.replay(&mut InPlace(&*below))? {
                tracing::info!("a VHDX image was not closed properly: its log is replayed");
                storage.flush()?;
            }
            header.log_guid = Guid::default();
            header.write(&*storage)?;
        }
    }
    let regions = Regions::read(&*storage, log)?;
    let metadata = Metadata::read(&*storage, regions.metadata)?;
    if metadata.entries() * 8 > regions.bat.len {
        return Err(damaged("the block allocation table is too small for the disk"));
    }
    let len = storage.len()?;
    if regions.bat.at + metadata.entries() * 8 > len {
        return Err(damaged("the file ends before its block allocation table does: it has been cut"));
    }
    if !read_only && log.len < MIB {
        return Err(damaged("it has no log, and cannot be written to"));
    }
    let ends = [len, regions.bat.end(), regions.metadata.end(), log.end()];
    let end = ends.into_iter().max().unwrap_or(len).next_multiple_of(MIB);
    Ok(Vhdx {
        storage,
        read_only,
        metadata,
        regions,
        log,
        end: AtomicU64::new(end),
        bat: RwLock::default(),
        growth: Mutex::new(Growth { header, log_at: 0, sequence: 1, dirty: 0 }),
        begun: AtomicBool::new(false),
    })
}

impl Vhdx {
    /// Calls `then` with the page of the table that has entry `index`, and where in it that is.
    fn with_page<T>(&self, index: u64, then: impl FnOnce(&mut Page, usize) -> T) -> io::Result<T> {
        let (number, place) = (index / PAGE_ENTRIES, (index % PAGE_ENTRIES) as usize);
        let mut bat = self.bat.write();
        if !bat.contains_key(&number) {
            if bat.len() >= MAX_PAGES {
                bat.retain(|_, page| page.dirty);
            }
            let entries = self.read_page(number)?;
            bat.insert(number, Page { entries, dirty: false });
        }
        let page = bat.get_mut(&number).ok_or_else(|| damaged("a page of the table is gone"))?;
        Ok(then(page, place))
    }

    fn read_page(&self, number: u64) -> io::Result<Box<[u64]>> {
        let mut bytes = vec![0; SECTOR];
        self.storage.read_at(self.regions.bat.at + number * SECTOR as u64, &mut bytes)?;
        Ok(bytes.chunks_exact(8).map(|e| le64(e, 0)).collect())
    }

    fn entry(&self, index: u64) -> io::Result<u64> {
        let (number, place) = (index / PAGE_ENTRIES, (index % PAGE_ENTRIES) as usize);
        if let Some(page) = self.bat.read().get(&number) {
            return Ok(page.entries[place]);
        }
        self.with_page(index, |page, place| page.entries[place])
    }

    /// Bytes of a block that are the disk's: of the last one, some programs make no more.
    fn used(&self, block: u64) -> u64 {
        let start = block * self.metadata.block_size;
        self.metadata.size.saturating_sub(start).min(self.metadata.block_size)
    }

    /// Where the data of a block with this entry are; `None` if it reads as zeros.
    fn data(&self, block: u64, entry: u64) -> io::Result<Option<u64>> {
        match entry & 7 {
            NOT_PRESENT..=UNMAPPED => return Ok(None),
            FULLY_PRESENT => {}
            PARTIALLY_PRESENT => return Err(damaged(format!("block {block} is half another image's"))),
            state => return Err(damaged(format!("block {block} is in state {state}, which cannot be"))),
        }
        let (at, len) = (entry & PLACE, self.used(block));
        let within = (MIB..=MAX_OFFSET).contains(&at) && at + len <= self.end.load(Relaxed);
        let taken = [self.log, self.regions.bat, self.regions.metadata];
        if !within || taken.iter().any(|region| region.overlaps(at, len)) {
            return Err(damaged(format!("block {block} cannot be at {at:#x}")));
        }
        Ok(Some(at))
    }

    /// Where `at` is in the file, and how many bytes of `len` are there together.
    fn place(&self, at: u64, len: u64) -> io::Result<(Option<u64>, u64)> {
        let (block, within) = (at / self.metadata.block_size, at % self.metadata.block_size);
        let entry = self.entry(self.metadata.index(block))?;
        let data = self.data(block, entry)?;
        Ok((data.map(|data| data + within), len.min(self.metadata.block_size - within)))
    }

    /// Makes the block that has `at`, unless it is there.
    fn make(&self, at: u64) -> io::Result<()> {
        let mut growth = self.growth.lock();
        if self.place(at, 1)?.0.is_some() {
            return Ok(());
        }
        let start = self.end.load(Relaxed);
        let end = start + self.metadata.block_size;
        if end > MAX_OFFSET {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if growth.dirty >= MAX_DIRTY {
            self.storage.flush()?;
            self.write_table(&mut growth)?;
        }
        self.storage.set_len(end)?;
        self.end.store(end, Relaxed);
        let index = self.metadata.index(at / self.metadata.block_size);
        let was_dirty = self.with_page(index, |page, place| {
            page.entries[place] = start | FULLY_PRESENT;
            std::mem::replace(&mut page.dirty, true)
        })?;
        growth.dirty += usize::from(!was_dirty);
        Ok(())
    }

    /// Writes the table's changed pages: to the log, then to their places. What they refer to is durable.
    fn write_table(&self, growth: &mut Growth) -> io::Result<()> {
        let mut dirty: Vec<u64> =
            self.bat.read().iter().filter(|(_, page)| page.dirty).map(|(number, _)| *number).collect();
        dirty.sort_unstable();
        let most = log::MAX_SECTORS.min((self.log.len / SECTOR as u64) as usize - 1);
        for (n, part) in dirty.chunks(most).enumerate() {
            // What the log's entry before this one has must be in place.
            if n > 0 {
                self.storage.flush()?;
            }
            let pieces: Vec<Piece> = {
                let bat = self.bat.read();
                let bytes = |number: &u64| {
                    let mut piece = [0; SECTOR];
                    let page = bat.get(number)?;
                    for (room, entry) in piece.chunks_exact_mut(8).zip(&page.entries) {
                        room.copy_from_slice(&entry.to_le_bytes());
                    }
                    Some((self.regions.bat.at + number * SECTOR as u64, piece))
                };
                part.iter().filter_map(bytes).collect()
            };
            let len = (1 + pieces.len() as u64) * SECTOR as u64;
            if growth.log_at + len > self.log.len {
                growth.log_at = 0;
            }
            let file_len = self.end.load(Relaxed);
            let entry = log::entry(&pieces, growth.log_at, growth.sequence, growth.header.log_guid, file_len);
            self.storage.write_at(self.log.at + growth.log_at, &entry)?;
            self.storage.flush()?;
            growth.log_at = (growth.log_at + len) % self.log.len;
            growth.sequence += 1;
            for (at, piece) in &pieces {
                self.storage.write_at(*at, piece)?;
            }
            let mut bat = self.bat.write();
            for number in part {
                if let Some(page) = bat.get_mut(number) {
                    page.dirty = false;
                }
            }
            growth.dirty = growth.dirty.saturating_sub(part.len());
        }
        Ok(())
    }

    /// Before anything changes the headers say so: other identifiers, and one of the log.
    fn begin(&self, at: u64, len: u64) -> io::Result<()> {
        within(self.metadata.size, at, len)?;
        if self.read_only {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the image is read-only"));
        }
        if self.begun.load(Relaxed) {
            return Ok(());
        }
        let mut growth = self.growth.lock();
        if !self.begun.load(Relaxed) {
            let mut header = growth.header.clone();
            (header.file_write, header.data_write, header.log_guid) = (uuid(), uuid(), uuid());
            header.write(&*self.storage)?;
            growth.header = header;
            self.begun.store(true, Relaxed);
        }
        Ok(())
    }

    /// Everything is in its place, and the headers say so.
    fn close(&self) -> io::Result<()> {
        if !self.begun.load(Relaxed) {
            return Ok(());
        }
        self.flush()?;
        self.storage.flush()?;
        let mut growth = self.growth.lock();
        growth.header.log_guid = Guid::default();
        let header = &mut growth.header;
        header.write(&*self.storage)?;
        self.begun.store(false, Relaxed);
        Ok(())
    }
}

impl Image for Vhdx {
    fn format(&self) -> &'static str {
        "vhdx"
    }

    fn size(&self) -> u64 {
        self.metadata.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, mut at: u64, mut buf: &mut [u8]) -> io::Result<()> {
        within(self.metadata.size, at, buf.len() as u64)?;
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
        self.begin(at, data.len() as u64)?;
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
        self.write_table(&mut growth)
    }

    fn zero(&self, mut at: u64, mut len: u64, unmap: bool) -> io::Result<()> {
        self.begin(at, len)?;
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
        let left = self.metadata.size.saturating_sub(at);
        if left == 0 {
            return Ok(Extent { len: 0, data: false, allocated: false, host_offset: None });
        }
        let (place, mut len) = self.place(at, left)?;
        // So far that a disk of many blocks is not gone through at once.
        let most = left.min(self.metadata.block_size << 10);
        while len < most {
            match self.place(at + len, left - len) {
                Ok((next, n)) if next == place.map(|p| p + len) => len += n,
                _ => break,
            }
        }
        Ok(Extent { len, data: place.is_some(), allocated: place.is_some(), host_offset: place })
    }

    fn details(&self) -> Details {
        Details { cluster_size: Some(self.metadata.block_size), ..Details::default() }
    }

    fn check(&self, _repair: bool) -> io::Result<CheckReport> {
        let mut report = CheckReport::default();
        // One bit for each MiB of the file.
        let mut used = vec![0u64; (self.end.load(Relaxed).min(128 << 40) / MIB / 64 + 1) as usize];
        let mut page = (u64::MAX, Box::default());
        for block in 0..self.metadata.blocks() {
            let index = self.metadata.index(block);
            if page.0 != index / PAGE_ENTRIES {
                page = (index / PAGE_ENTRIES, self.read_page(index / PAGE_ENTRIES)?);
            }
            let entry = page.1[(index % PAGE_ENTRIES) as usize];
            let at = match self.data(block, entry) {
                Ok(None) => continue,
                Ok(Some(at)) => at,
                Err(e) => {
                    report.corruptions += 1;
                    report.note(|| format!("ERROR: {e}"));
                    continue;
                }
            };
            let mut twice = false;
            for n in at / MIB..(at + self.used(block)).div_ceil(MIB) {
                if let Some(word) = used.get_mut((n / 64) as usize) {
                    twice |= *word >> (n % 64) & 1 != 0;
                    *word |= 1 << (n % 64);
                }
            }
            if twice {
                report.corruptions += 1;
                report.note(|| format!("ERROR: block {block} has its place in common with another one"));
            }
        }
        Ok(report)
    }
}

impl Drop for Vhdx {
    /// What is in memory goes to the file.
    fn drop(&mut self) {
        if let Err(e) = self.close() {
            tracing::warn!("a vhdx image was closed without its last changes: {e}");
        }
    }
}
