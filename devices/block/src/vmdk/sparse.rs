//! A sparse extent: a directory of tables of 32-bit sector numbers, and grains, which may be compressed.
//!
//! A grain that is not there is made at the file's end when something else than zeros is written to it: its entry
//! stays in memory until a flush, which has the data durable, then both copies of the table, then, where a table is
//! new, both copies of the directory. Locks: `growth`, then `changed`.
use crate::image::CheckReport;
use crate::ops::is_zero;
use crate::storage::{Storage, damaged, le32, le64, unsupported};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub const SECTOR: u64 = 512;
/// Most entries of a directory.
pub const MAX_DIRECTORY: u64 = 1 << 20;
/// `gdOffset` of a file whose footer has the right one.
const AT_END: u64 = u64::MAX;
pub const FLAG_NEWLINES: u32 = 1;
pub const FLAG_REDUNDANT: u32 = 1 << 1;
pub const FLAG_ZERO_GRAINS: u32 = 1 << 2;
pub const FLAG_COMPRESSED: u32 = 1 << 16;
pub const FLAG_MARKERS: u32 = 1 << 17;
/// Byte of the header that is 1 while somebody writes to the extent.
const UNCLEAN: u64 = 72;
/// Most changed entries that are held.
const MAX_CHANGED: usize = 65_536;

/// An open sparse extent.
pub struct Sparse {
    storage: Arc<dyn Storage>,
    /// Bytes.
    pub grain: u64,
    per_table: u64,
    directory: RwLock<Vec<u32>>,
    /// The copy's tables, if it is written and has one.
    redundant: RwLock<Vec<u32>>,
    /// Where the two directories are.
    places: (u64, u64),
    flags: u32,
    growth: Mutex<Growth>,
    /// [`Growth::end`] for who does not make anything.
    end: AtomicU64,
    /// Entries that are not yet in the file, by the grain's number.
    changed: RwLock<BTreeMap<u64, u32>>,
    /// The last grain that was uncompressed, and where it is.
    inflated: Mutex<Option<(u64, Arc<Vec<u8>>)>>,
}

struct Growth {
    /// Where the next grain goes, in bytes.
    end: u64,
    /// Entries of the directory that are not yet in the file.
    directory: BTreeSet<usize>,
}

impl Sparse {
    /// Opens the extent in `storage`, and tells its bytes.
    ///
    /// # Errors
    /// It is none, is damaged, or asks for what is not there; the host's.
    pub fn open(storage: Arc<dyn Storage>, read_only: bool) -> io::Result<(Self, u64)> {
        let mut head = vec![0; 512];
        storage.read_at(0, &mut head)?;
        if head.starts_with(b"COWD") {
            return Err(unsupported("a sparse extent of ESX (COWD, vmfsSparse) is not supported"));
        }
        let at_end = le64(&head, 56) == AT_END;
        let len = storage.len()?;
        if at_end {
            storage.read_at(len.saturating_sub(1024), &mut head)?;
        }
        if !head.starts_with(b"KDMV") || !(1..=3).contains(&le32(&head, 4)) {
            return Err(damaged("not a sparse extent of a version that is known"));
        }
        let flags = le32(&head, 8);
        let (capacity, grain, per_table) = (le64(&head, 12), le64(&head, 20), u64::from(le32(&head, 44)));
        if !grain.is_power_of_two() || !(8..=4096).contains(&grain) {
            return Err(damaged(format!("grains of {grain} sectors cannot be")));
        }
        if per_table == 0 || per_table > 512 || capacity > 1 << 52 {
            return Err(damaged("the header's numbers cannot be"));
        }
        let algorithm = u16::from_le_bytes([head[77], head[78]]);
        if flags & FLAG_COMPRESSED != 0 && algorithm != 1 {
            return Err(unsupported(format!("compression {algorithm} is unknown")));
        }
        if at_end && !read_only {
            return Err(unsupported("a streamOptimized image that ends with its tables is only read"));
        }
        let entries = capacity.div_ceil(grain * per_table);
        let read = |sector: u64| {
            let at = sector.saturating_mul(SECTOR);
            if entries > MAX_DIRECTORY || at.saturating_add(entries * 4) > len {
                return Err(damaged("the grain directory cannot be there"));
            }
            let mut bytes = vec![0; entries as usize * 4];
            storage.read_at(at, &mut bytes)?;
            Ok(bytes.chunks_exact(4).map(|e| le32(e, 0)).collect::<Vec<u32>>())
        };
        let places = (le64(&head, 56), le64(&head, 48));
        let directory = read(places.0)?;
        let has_copy = !read_only && flags & FLAG_REDUNDANT != 0 && places.1 != 0;
        let redundant = if has_copy { read(places.1)? } else { Vec::new() };
        let grain = grain * SECTOR;
        let unit = if flags & FLAG_COMPRESSED != 0 { SECTOR } else { grain };
        let overhead = le64(&head, 64).min(1 << 30) * SECTOR;
        let end = len.max(overhead).next_multiple_of(unit);
        let sparse = Self {
            growth: Mutex::new(Growth { end, directory: BTreeSet::new() }),
            end: AtomicU64::new(end),
            storage,
            grain,
            per_table,
            directory: RwLock::new(directory),
            redundant: RwLock::new(redundant),
            places: (places.0.saturating_mul(SECTOR), places.1.saturating_mul(SECTOR)),
            flags,
            changed: RwLock::default(),
            inflated: Mutex::new(None),
        };
        if !read_only && head[UNCLEAN as usize] != 0 {
            sparse.renew_copy()?;
        }
        Ok((sparse, capacity * SECTOR))
    }

    /// Entries of the directory.
    pub fn tables(&self) -> u64 {
        self.directory.read().len() as u64
    }

    /// Whether grains are compressed, and written once.
    pub fn compressed(&self) -> bool {
        self.flags & FLAG_COMPRESSED != 0
    }

    /// Says in the header whether somebody writes to it.
    pub fn mark(&self, unclean: bool) -> io::Result<()> {
        self.storage.write_at(UNCLEAN, &[u8::from(unclean)])
    }

    /// The copy of the tables is made the same as they are: who wrote to them has not come to it.
    fn renew_copy(&self) -> io::Result<()> {
        let (directory, redundant) = (self.directory.read(), self.redundant.read());
        let len = self.per_table as usize * 4;
        let (mut one, mut two) = (vec![0; len], vec![0; len]);
        for (table, copy) in directory.iter().zip(redundant.iter()).filter(|(t, c)| **t != 0 && **c != 0) {
            self.storage.read_at(u64::from(*table) * SECTOR, &mut one)?;
            self.storage.read_at(u64::from(*copy) * SECTOR, &mut two)?;
            if one != two {
                self.storage.write_at(u64::from(*copy) * SECTOR, &one)?;
            }
        }
        Ok(())
    }

    /// The sector of the grain that has `at`; `None` for zeros.
    pub fn entry(&self, at: u64) -> io::Result<Option<u64>> {
        let number = at / self.grain;
        let entry = match self.changed.read().get(&number) {
            Some(entry) => *entry,
            None => {
                let index = (number / self.per_table) as usize;
                let table = self.directory.read().get(index).copied().unwrap_or(0);
                if table == 0 {
                    return Ok(None);
                }
                let mut entry = [0; 4];
                self.storage.read_at(u64::from(table) * SECTOR + number % self.per_table * 4, &mut entry)?;
                le32(&entry, 0)
            }
        };
        let zero = entry == 0 || entry == 1 && self.flags & FLAG_ZERO_GRAINS != 0;
        Ok((!zero).then_some(u64::from(entry)))
    }

    /// Where the grain's bytes are in the file, if they are there as they are.
    pub fn host_offset(&self, at: u64) -> io::Result<Option<u64>> {
        let sector = if self.compressed() { None } else { self.entry(at)? };
        Ok(sector.map(|sector| sector * SECTOR + at % self.grain))
    }

    /// Reads what is in one grain.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let within = at % self.grain;
        let Some(sector) = self.entry(at)? else {
            buf.fill(0);
            return Ok(());
        };
        let host = sector * SECTOR;
        if !self.compressed() {
            return self.storage.read_at(host + within, buf);
        }
        let bytes = self.uncompressed(host)?;
        buf.copy_from_slice(&bytes[within as usize..within as usize + buf.len()]);
        Ok(())
    }

    fn uncompressed(&self, host: u64) -> io::Result<Arc<Vec<u8>>> {
        if let Some((at, bytes)) = &*self.inflated.lock()
            && *at == host
        {
            return Ok(bytes.clone());
        }
        let mut marker = [0; 12];
        self.storage.read_at(host, &mut marker)?;
        let len = u64::from(le32(&marker, 8));
        if len == 0 || len > self.grain * 2 {
            return Err(damaged(format!("a compressed grain of {len} bytes at {host:#x} cannot be")));
        }
        let mut packed = vec![0; len as usize];
        self.storage.read_at(host + 12, &mut packed)?;
        let mut bytes = vec![0; self.grain as usize];
        let mut inflate = Decompress::new(true);
        inflate
            .decompress(&packed, &mut bytes, FlushDecompress::Finish)
            .map_err(|e| damaged(format!("a compressed grain at {host:#x}: {e}")))?;
        // The last grain of a disk may be a short one.
        let bytes = Arc::new(bytes);
        *self.inflated.lock() = Some((host, bytes.clone()));
        Ok(bytes)
    }

    /// Writes to one grain.
    pub fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        if self.compressed() {
            if data.len() as u64 == self.grain && at.is_multiple_of(self.grain) {
                return self.write_compressed(at, data);
            }
            return Err(unsupported("a streamOptimized image is written once, by whole grains: convert it"));
        }
        let mut sector = self.entry(at)?;
        if sector.is_none() {
            if is_zero(data) {
                return Ok(());
            }
            sector = Some(self.make(at)?);
        }
        let host = self.checked(sector.unwrap_or_default())?;
        self.storage.write_at(host + at % self.grain, data)
    }

    /// Has zeros stand in one grain.
    pub fn zero(&self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        match self.entry(at)? {
            None => Ok(()),
            Some(_) if self.compressed() => {
                Err(unsupported("a streamOptimized image is written once: convert it"))
            }
            Some(sector) => self.storage.zero_at(self.checked(sector)? + at % self.grain, len, unmap),
        }
    }

    /// Where a grain that is written to is: not where it cannot be.
    fn checked(&self, sector: u64) -> io::Result<u64> {
        let host = sector * SECTOR;
        if host < SECTOR || host + self.grain > self.end.load(Relaxed).next_multiple_of(self.grain) {
            return Err(damaged(format!("a grain cannot be at {host:#x}")));
        }
        Ok(host)
    }

    /// Makes the grain that has `at`, unless somebody has; its sector.
    fn make(&self, at: u64) -> io::Result<u64> {
        let mut growth = self.growth.lock();
        if let Some(sector) = self.entry(at)? {
            return Ok(sector);
        }
        self.room(&mut growth, at)?;
        let sector = self.take(&mut growth, self.grain)?;
        self.changed.write().insert(at / self.grain, sector);
        Ok(u64::from(sector))
    }

    /// Sees to it that there is a table for `at`, and that not too much is only in memory.
    fn room(&self, growth: &mut Growth, at: u64) -> io::Result<()> {
        if self.changed.read().len() >= MAX_CHANGED {
            self.write_tables(growth)?;
        }
        let index = (at / self.grain / self.per_table) as usize;
        match self.directory.read().get(index) {
            None => return Err(damaged("the grain directory is too short")),
            Some(0) => {}
            Some(_) => return Ok(()),
        }
        // A new file's bytes are zeros.
        let len =
            (self.per_table * 4).next_multiple_of(SECTOR).max(if self.compressed() { 0 } else { self.grain });
        let table = self.take(growth, len)?;
        if !self.redundant.read().is_empty() {
            let copy = self.take(growth, len)?;
            if let Some(entry) = self.redundant.write().get_mut(index) {
                *entry = copy;
            }
        }
        if let Some(entry) = self.directory.write().get_mut(index) {
            *entry = table;
        }
        growth.directory.insert(index);
        Ok(())
    }

    /// Takes `len` bytes at the file's end: their sector.
    fn take(&self, growth: &mut Growth, len: u64) -> io::Result<u32> {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let sector = u32::try_from(growth.end / SECTOR).map_err(|_| full())?;
        self.storage.set_len(growth.end + len)?;
        growth.end += len;
        self.end.store(growth.end, Relaxed);
        Ok(sector)
    }

    /// Writes a grain that is not there yet, compressed; `data` is the whole of it, or what the disk has left.
    pub fn write_compressed(&self, at: u64, data: &[u8]) -> io::Result<()> {
        if !self.compressed() {
            return Err(unsupported("only a streamOptimized vmdk has compressed clusters"));
        }
        if !at.is_multiple_of(self.grain) || data.len() as u64 > self.grain {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no whole grain"));
        }
        let mut growth = self.growth.lock();
        if self.entry(at)?.is_some() {
            return Err(unsupported("a streamOptimized image is written once: convert it"));
        }
        if is_zero(data) {
            return Ok(());
        }
        let mut whole = data.to_vec();
        whole.resize(self.grain as usize, 0);
        let mut packed = Vec::with_capacity(whole.len() + whole.len() / 8 + 64);
        let mut deflate = Compress::new(Compression::default(), true);
        deflate.compress_vec(&whole, &mut packed, FlushCompress::Finish).map_err(io::Error::other)?;
        if deflate.total_in() != whole.len() as u64 {
            return Err(io::Error::other("a grain could not be compressed"));
        }
        let mut bytes = (at / SECTOR).to_le_bytes().to_vec();
        bytes.extend((packed.len() as u32).to_le_bytes());
        bytes.extend(packed);
        bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0);
        self.room(&mut growth, at)?;
        let sector = self.take(&mut growth, bytes.len() as u64)?;
        self.storage.write_at(u64::from(sector) * SECTOR, &bytes)?;
        self.changed.write().insert(at / self.grain, sector);
        Ok(())
    }

    /// Has everything that was written durable.
    pub fn flush(&self) -> io::Result<()> {
        let mut growth = self.growth.lock();
        if self.changed.read().is_empty() {
            return self.storage.flush();
        }
        self.write_tables(&mut growth)
    }

    /// Data, then tables, then directories.
    fn write_tables(&self, growth: &mut Growth) -> io::Result<()> {
        self.storage.flush()?;
        {
            let changed = self.changed.read();
            let entries: Vec<(u64, u32)> = changed.iter().map(|(n, e)| (*n, *e)).collect();
            let together = |a: &(u64, u32), b: &(u64, u32)| {
                b.0 == a.0 + 1 && b.0 / self.per_table == a.0 / self.per_table
            };
            let (directory, redundant) = (self.directory.read(), self.redundant.read());
            for run in entries.chunk_by(together) {
                let (index, place) = ((run[0].0 / self.per_table) as usize, run[0].0 % self.per_table * 4);
                let bytes: Vec<u8> = run.iter().flat_map(|(_, entry)| entry.to_le_bytes()).collect();
                for tables in [&redundant, &directory] {
                    if let Some(table) = tables.get(index).filter(|t| **t != 0) {
                        self.storage.write_at(u64::from(*table) * SECTOR + place, &bytes)?;
                    }
                }
            }
        }
        self.storage.flush()?;
        if !growth.directory.is_empty() {
            let (directory, redundant) = (self.directory.read(), self.redundant.read());
            for index in &growth.directory {
                for (tables, at) in [(&redundant, self.places.1), (&directory, self.places.0)] {
                    if let Some(entry) = tables.get(*index) {
                        self.storage.write_at(at + *index as u64 * 4, &entry.to_le_bytes())?;
                    }
                }
            }
            self.storage.flush()?;
            growth.directory.clear();
        }
        self.changed.write().clear();
        Ok(())
    }

    /// Looks for grains that are nowhere, or in two places.
    pub fn check(&self, report: &mut CheckReport) -> io::Result<()> {
        let growth = self.growth.lock();
        // One bit for each grain of the file, if these are not too many.
        let mut used = vec![0u64; (growth.end / self.grain / 64 + 1).min(2 << 20) as usize];
        let mut bytes = vec![0; self.per_table as usize * 4];
        for (index, table) in self.directory.read().iter().enumerate().filter(|(_, table)| **table != 0) {
            let at = u64::from(*table) * SECTOR;
            if at >= growth.end {
                report.corruptions += 1;
                report.note(|| format!("ERROR: grain table {index} cannot be at {at:#x}"));
                continue;
            }
            self.storage.read_at(at, &mut bytes)?;
            for (n, entry) in bytes.chunks_exact(4).map(|e| le32(e, 0)).enumerate() {
                if entry == 0 || entry == 1 && self.flags & FLAG_ZERO_GRAINS != 0 {
                    continue;
                }
                let (host, number) = (u64::from(entry) * SECTOR, index as u64 * self.per_table + n as u64);
                let place = host / self.grain;
                let mut twice = false;
                if let Some(word) = used.get_mut((place / 64) as usize).filter(|_| !self.compressed()) {
                    twice = *word >> (place % 64) & 1 != 0;
                    *word |= 1 << (place % 64);
                }
                if twice || host >= growth.end {
                    report.corruptions += 1;
                    report.note(|| format!("ERROR: grain {number} cannot be at {host:#x}"));
                }
            }
        }
        Ok(())
    }
}
