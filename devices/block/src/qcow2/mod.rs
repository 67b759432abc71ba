//! qcow2, versions 2 and 3.
//!
//! What there is: all cluster sizes and refcount widths, backing files, compressed clusters (zlib, zstd), zero
//! clusters, internal snapshots, check and repair, the dirty bit (an image that has it is repaired when it is opened
//! for writing), the corrupt bit (such an image is read only). What is not: encryption, external data files, extended
//! L2 entries; they are refused by name. Persistent bitmaps are kept, and marked as out of date when the image is
//! opened for writing. Lazy refcounts are a permission that is not made use of.
//!
//! ```text
//!   guest offset -> L1 table -> L2 table -> cluster of the file   (Tables: under a lock for moments)
//!   refcount table -> refcount block -> how often it is used      (Meta: under a lock while metadata change)
//! ```
//!
//! Order. Changes of metadata stay in memory until a flush, which writes refcounts, then L2 tables, then the L1 table,
//! and has each durable before the next. A cluster is linked in after its data are written. What is not referred to
//! any more is counted down, and may be used again, after a flush has made durable that nothing refers to it. So
//! whatever of the writes since the last flush is in the file after an end of any kind, it is a sound image with all
//! that was flushed; clusters may be leaked.
//!
//! Locks: `meta`, then `gate`, then `tables`, then `inflated`. Reads, and writes to clusters that are the image's own,
//! take `gate` shared while they do their I/O and `tables` for the look-up only: they run in parallel. Whoever makes
//! freed clusters usable takes `gate` alone for a moment, so that nobody still reads one that is written anew. A write
//! that allocates holds `meta` while it takes and links clusters, not while it writes data; the guest's clusters that
//! it is at are in `Meta::in_flight`, and whoever would change the same ones waits.
//!
//! The crate `imago` (0.2.6) was looked at first. It reads and writes plain images well, but knows no internal
//! snapshots (not even to count their clusters), no check or repair, no zstd, writes no compressed clusters, and takes
//! a refcount table's word for everything; these are most of the work here.
mod amend;
mod check;
mod compress;
mod create;
mod header;
mod refs;
mod snapshots;
mod write;

#[cfg(test)]
mod tests;

pub use create::{CreateOptions, Preallocation};
pub use header::Compression;

use crate::image::{CheckReport, Detail, Details, Extent, Image, Snapshot, within};
use crate::storage::{Storage, be64, damaged};
use header::Header;
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
use refs::Refs;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Of an L1 or L2 entry: nobody else refers to it.
const COPIED: u64 = 1 << 63;
/// Of an L2 entry.
const COMPRESSED: u64 = 1 << 62;
/// Of an L2 entry, in version 3: it reads as zeros.
const ZERO: u64 = 1;
/// The offset in an L1 or L2 entry.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Most bytes of L2 tables that are held, unless more are changed.
const L2_CACHE: u64 = 16 << 20;

/// What an L2 entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mapping {
    /// The backing file has it, or there are zeros.
    Hole,
    /// Zeros; a cluster may be set aside for it.
    Zero { host: u64, copied: bool },
    /// Here it is.
    Data { host: u64, copied: bool },
    /// So many bytes from there on hold it, perhaps with something else after it.
    Compressed { host: u64, len: u64 },
}

/// An open image.
pub struct Qcow2 {
    storage: Arc<dyn Storage>,
    backing: Option<Arc<dyn Image>>,
    read_only: bool,
    cluster_bits: u32,
    /// Zero clusters can be.
    zeros: bool,
    compression: Compression,
    size: AtomicU64,
    meta: Mutex<Meta>,
    /// Something has left [`Meta::in_flight`].
    ended: Condvar,
    gate: RwLock<()>,
    tables: RwLock<Tables>,
    tick: AtomicU64,
    /// The last cluster that was uncompressed: its entry's place and length, and the bytes.
    inflated: Mutex<Option<Inflated>>,
    /// Damage was found: nothing is written any more.
    corrupt: AtomicBool,
}

/// Place and length of a compressed cluster, and what is in it.
type Inflated = (u64, u64, Arc<Vec<u8>>);

/// What is needed to change the mapping.
struct Meta {
    header: Header,
    refs: Refs,
    snapshots: Vec<snapshots::Entry>,
    /// Clusters (numbers) of which a reference has gone since the last flush.
    pending: Vec<u64>,
    /// Clusters of the guest to which somebody is writing data that are not linked in yet.
    in_flight: BTreeSet<u64>,
    /// Where the next compressed data may be packed.
    packed: u64,
}

/// Makes room for one more in a cache of `most`, as far as what is in it may go: `used` tells when it was used last,
/// and nothing of what waits to be written.
fn make_room<T>(cache: &mut HashMap<usize, T>, most: usize, used: impl Fn(&T) -> Option<u64>) {
    while cache.len() >= most {
        let oldest = cache.iter().filter_map(|(n, held)| Some((used(held)?, *n))).min();
        let Some((_, oldest)) = oldest else { break };
        cache.remove(&oldest);
    }
}

struct Tables {
    l1: Vec<u64>,
    dirty_l1: BTreeSet<usize>,
    /// By the L1 entry's number.
    l2: HashMap<usize, L2>,
}

struct L2 {
    entries: Vec<u64>,
    /// The entries that are not yet in the file.
    dirty: Option<(usize, usize)>,
    used: AtomicU64,
}

impl L2 {
    fn set(&mut self, at: usize, entry: u64) {
        self.entries[at] = entry;
        let (from, to) = self.dirty.unwrap_or((at, at + 1));
        self.dirty = Some((from.min(at), to.max(at + 1)));
    }
}

/// How an image is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenMode {
    /// Nothing is written.
    pub read_only: bool,
    /// To check or repair it: what is damaged is no reason not to open it.
    pub check: bool,
}

/// What an image says of its backing file: name and format.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackingName {
    /// As the image names it.
    pub file: Option<String>,
    /// As the image names it.
    pub format: Option<String>,
}

impl Qcow2 {
    /// What the image in `storage` says of its backing file.
    ///
    /// # Errors
    /// As [`Qcow2::open`].
    pub fn backing_name(storage: &dyn Storage) -> io::Result<BackingName> {
        let header = Header::read(storage)?;
        Ok(BackingName { file: header.backing_file, format: header.backing_format })
    }

    /// Opens the image in `storage`, with the backing file that the caller has opened.
    ///
    /// # Errors
    /// It is none or is damaged ([`io::ErrorKind::InvalidData`]); it asks for what is not there
    /// ([`io::ErrorKind::Unsupported`]); the host's.
    pub fn open(
        storage: Arc<dyn Storage>,
        backing: Option<Arc<dyn Image>>,
        mode: OpenMode,
    ) -> io::Result<Self> {
        let header = Header::read(&*storage)?;
        let corrupt = header.incompatible & header::CORRUPT != 0;
        if corrupt && !mode.read_only && !mode.check {
            return Err(damaged("it is marked as corrupt: repair it, or open it with readonly=on"));
        }
        let l1_bytes = u64::from(header.l1_size) * 8;
        let len = storage.len()?;
        let table_end = header.refcount_offset + (u64::from(header.refcount_clusters) << header.cluster_bits);
        if !mode.check && (header.l1_offset.saturating_add(l1_bytes) > len || header.refcount_offset >= len) {
            return Err(damaged("the file ends before its tables do: it has been cut"));
        }
        if !mode.check && table_end > len.next_multiple_of(header.cluster_size()) {
            return Err(damaged("the file ends before its refcount table does: it has been cut"));
        }
        let l1 = read_numbers(&*storage, header.l1_offset, header.l1_size as usize)?;
        let snapshots = match snapshots::read(&*storage, &header) {
            Ok(list) => list,
            Err(_) if mode.check && !mode.read_only => Vec::new(),
            Err(e) => return Err(e),
        };
        let refs = Refs::read(&*storage, &header)?;
        let image = Self {
            storage,
            backing,
            read_only: mode.read_only,
            cluster_bits: header.cluster_bits,
            zeros: header.version >= 3,
            compression: header.compression,
            size: AtomicU64::new(header.size),
            meta: Mutex::new(Meta {
                header,
                refs,
                snapshots,
                pending: Vec::new(),
                in_flight: BTreeSet::new(),
                packed: 0,
            }),
            ended: Condvar::new(),
            gate: RwLock::new(()),
            tables: RwLock::new(Tables { l1, dirty_l1: BTreeSet::new(), l2: HashMap::new() }),
            tick: AtomicU64::new(0),
            inflated: Mutex::new(None),
            corrupt: AtomicBool::new(corrupt),
        };
        if !mode.read_only && !mode.check {
            image.prepare_to_write()?;
        }
        Ok(image)
    }

    /// Before the first write: an image that was left dirty is repaired, and features that we do not keep right go.
    fn prepare_to_write(&self) -> io::Result<()> {
        self.refuse_repeated_blocks()?;
        if self.meta.lock().header.incompatible & header::DIRTY != 0 {
            let report = self.check_image(true)?;
            tracing::warn!(
                "a qcow2 image was not closed properly: {} errors and {} leaked clusters were repaired",
                report.corruptions_fixed,
                report.leaks_fixed
            );
            if report.corruptions > 0 {
                return Err(damaged(format!("it has {} errors that were not repaired", report.corruptions)));
            }
        }
        let mut meta = self.meta.lock();
        if meta.header.autoclear != 0 {
            meta.header.autoclear = 0;
            self.write_header(&meta)?;
        }
        Ok(())
    }

    /// A refcount block that stands for two ranges would have a cluster seem free that is not.
    fn refuse_repeated_blocks(&self) -> io::Result<()> {
        if named_twice(self.meta.lock().refs.table.iter().copied()) {
            return Err(damaged("the refcount table names a block twice"));
        }
        Ok(())
    }

    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of an L2 table.
    fn l2_entries(&self) -> u64 {
        1 << (self.cluster_bits - 3)
    }

    /// Where the entry of the guest's `cluster` is: in which table, and there.
    fn place(&self, cluster: u64) -> (usize, usize) {
        ((cluster >> (self.cluster_bits - 3)) as usize, (cluster & (self.l2_entries() - 1)) as usize)
    }

    /// What `entry` says.
    fn mapping(&self, entry: u64) -> io::Result<Mapping> {
        if entry & COMPRESSED != 0 {
            let bits = 62 - (self.cluster_bits - 8);
            let host = entry & ((1 << bits) - 1);
            let sectors = (entry & (COMPRESSED - 1)) >> bits;
            if host == 0 || host >= header::MAX_OFFSET {
                return Err(damaged(format!("compressed data cannot be at {host:#x}")));
            }
            return Ok(Mapping::Compressed { host, len: (sectors + 1) * 512 - (host & 511) });
        }
        let (host, copied) = (entry & OFFSET, entry & COPIED != 0);
        if host & (self.cluster_size() - 1) != 0 {
            return Err(damaged(format!("a cluster cannot be at {host:#x}")));
        }
        Ok(match () {
            () if self.zeros && entry & ZERO != 0 => Mapping::Zero { host, copied },
            () if host == 0 => Mapping::Hole,
            () => Mapping::Data { host, copied },
        })
    }

    /// Calls `then` with the L2 table of L1 entry `index`, or `None` if there is none.
    fn with_l2<T>(&self, index: usize, then: impl FnOnce(Option<&[u64]>) -> T) -> io::Result<T> {
        let tables = self.tables.read();
        match tables.l1.get(index) {
            Some(entry) if entry & OFFSET != 0 => {}
            _ => return Ok(then(None)),
        }
        if let Some(l2) = tables.l2.get(&index) {
            l2.used.store(self.tick.fetch_add(1, Relaxed), Relaxed);
            return Ok(then(Some(&l2.entries)));
        }
        drop(tables);
        let mut tables = self.tables.write();
        self.load(&mut tables, index)?;
        Ok(then(tables.l2.get(&index).map(|l2| &l2.entries[..])))
    }

    /// Has the L2 table of L1 entry `index` in the cache, if there is one.
    fn load(&self, tables: &mut Tables, index: usize) -> io::Result<()> {
        let at = tables.l1.get(index).map_or(0, |e| e & OFFSET);
        if at == 0 || tables.l2.contains_key(&index) {
            return Ok(());
        }
        if at & (self.cluster_size() - 1) != 0 {
            return Err(damaged(format!("an L2 table cannot be at {at:#x}")));
        }
        let entries = self.read_table(at, self.l2_entries() as usize)?;
        self.keep(tables, index, entries, None);
        Ok(())
    }

    /// Puts an L2 table into the cache. Those that were not used for the longest time make room, if nothing in them
    /// waits to be written.
    fn keep(&self, tables: &mut Tables, index: usize, entries: Vec<u64>, dirty: Option<(usize, usize)>) {
        let most = (L2_CACHE >> self.cluster_bits).max(2) as usize;
        make_room(&mut tables.l2, most, |t| t.dirty.is_none().then(|| t.used.load(Relaxed)));
        let used = AtomicU64::new(self.tick.fetch_add(1, Relaxed));
        tables.l2.insert(index, L2 { entries, dirty, used });
    }

    /// Reads a table of `entries` numbers at `at`.
    fn read_table(&self, at: u64, entries: usize) -> io::Result<Vec<u64>> {
        read_numbers(&*self.storage, at, entries)
    }

    /// Has the entries of the L2 table at `at` be what `then` makes of them. Nobody has the table in memory.
    fn change_table(&self, at: u64, mut then: impl FnMut(u64) -> io::Result<u64>) -> io::Result<()> {
        each_piece(&*self.storage, at, self.l2_entries(), |_, piece| {
            let mut changed = false;
            for bytes in piece.chunks_exact_mut(8) {
                let entry = be64(bytes, 0);
                let new = then(entry)?;
                if new != entry {
                    bytes.copy_from_slice(&new.to_be_bytes());
                    changed = true;
                }
            }
            Ok(changed)
        })
    }

    /// What stands at `at`, and for how many bytes, at most `len`, it goes on so: one host cluster after the other.
    /// Compressed clusters end where they end.
    fn run(&self, at: u64, len: u64) -> io::Result<(Mapping, u64)> {
        let cluster = self.cluster_size();
        let (index, first) = self.place(at >> self.cluster_bits);
        let within = at & (cluster - 1);
        let span = (self.l2_entries() - first as u64) * cluster - within;
        let most = len.min(span);
        self.with_l2(index, |entries| {
            let Some(entries) = entries else { return Ok((Mapping::Hole, most)) };
            let mapping = self.mapping(entries[first])?;
            let mut bytes = cluster - within;
            for (i, entry) in entries.iter().enumerate().skip(first + 1) {
                if bytes >= most {
                    break;
                }
                let ahead = (i - first) as u64 * cluster;
                // A damaged entry ends the run; who comes to it hears of it.
                let Ok(next) = self.mapping(*entry) else { break };
                let goes_on = match (mapping, next) {
                    (Mapping::Data { host: a, copied: x }, Mapping::Data { host: b, copied: y }) => {
                        b == a.wrapping_add(ahead) && x == y
                    }
                    (Mapping::Zero { .. }, Mapping::Zero { .. }) => true,
                    (Mapping::Hole, Mapping::Hole) => true,
                    _ => false,
                };
                if !goes_on {
                    break;
                }
                bytes += cluster;
            }
            Ok((mapping, bytes.min(most)))
        })?
    }

    /// As [`Image::read`], for ranges that are within the image.
    fn read_range(&self, mut at: u64, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let gate = self.gate.read();
            let (mapping, n) = self.run(at, buf.len() as u64)?;
            let (part, rest) = buf.split_at_mut(n as usize);
            let within = at & (self.cluster_size() - 1);
            match mapping {
                Mapping::Hole => {
                    drop(gate);
                    self.read_backing(at, part)?;
                }
                Mapping::Zero { .. } => part.fill(0),
                Mapping::Data { host, .. } => self.storage.read_at(host + within, part)?,
                Mapping::Compressed { host, len } => {
                    let bytes = self.uncompressed(host, len)?;
                    part.copy_from_slice(&bytes[within as usize..within as usize + part.len()]);
                }
            }
            at += n;
            buf = rest;
        }
        Ok(())
    }

    /// What the backing file has; zeros after its end.
    fn read_backing(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let there = self.backing.as_ref().map_or(0, |b| b.size().saturating_sub(at));
        let (part, rest) = buf.split_at_mut((buf.len() as u64).min(there) as usize);
        rest.fill(0);
        match &self.backing {
            Some(backing) if !part.is_empty() => backing.read(at, part),
            _ => Ok(()),
        }
    }

    /// The bytes of the compressed cluster at `host`. The gate is held.
    fn uncompressed(&self, host: u64, len: u64) -> io::Result<Arc<Vec<u8>>> {
        if let Some((at, n, bytes)) = &*self.inflated.lock()
            && (*at, *n) == (host, len)
        {
            return Ok(bytes.clone());
        }
        let mut packed = vec![0; len as usize];
        self.storage.read_at(host, &mut packed)?;
        let mut bytes = vec![0; self.cluster_size() as usize];
        compress::unpack(self.compression, &packed, &mut bytes)
            .map_err(|why| damaged(format!("compressed data at {host:#x}: {why}")))?;
        let bytes = Arc::new(bytes);
        *self.inflated.lock() = Some((host, len, bytes.clone()));
        Ok(bytes)
    }

    fn may_write(&self) -> io::Result<()> {
        if self.read_only {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the image is read-only"));
        }
        if self.corrupt.load(Relaxed) {
            return Err(damaged("the image is corrupt, nothing is written to it any more"));
        }
        Ok(())
    }

    /// Waits until no write is between its data and its link.
    fn settle<'a>(&'a self) -> MutexGuard<'a, Meta> {
        let mut meta = self.meta.lock();
        while !meta.in_flight.is_empty() {
            self.ended.wait(&mut meta);
        }
        meta
    }

    /// Whether the backing file has anything from `at` on.
    fn is_backed(&self, at: u64) -> bool {
        self.backing.as_ref().is_some_and(|b| at < b.size())
    }

    /// Writes the header's numbers; names and extensions stay as they are.
    fn write_header(&self, meta: &Meta) -> io::Result<()> {
        let mut now = vec![0; if self.zeros { 104 } else { 72 }];
        self.storage.read_at(0, &mut now)?;
        let new = meta.header.to_bytes()?;
        let end = now.len();
        for range in [24..32, 36..72, 72..96].into_iter().filter(|r| r.end <= end) {
            now[range.clone()].copy_from_slice(&new[range]);
        }
        self.storage.write_at(0, &now)?;
        self.storage.flush()
    }

    /// Names another backing file, or none: for `rebase`, which has seen to what the guest reads. It takes effect when
    /// the image is opened again.
    ///
    /// # Errors
    /// The names are too long; the host's.
    pub fn set_backing(&self, name: &BackingName) -> io::Result<()> {
        self.may_write()?;
        let mut meta = self.settle();
        self.flush_meta(&mut meta)?;
        let mut header = meta.header.clone();
        header.backing_file.clone_from(&name.file);
        header.backing_format = name.format.clone().filter(|_| name.file.is_some());
        let mut bytes = header.to_bytes()?;
        bytes.resize(self.cluster_size() as usize, 0);
        meta.header = header;
        self.storage.write_at(0, &bytes)?;
        self.storage.flush()
    }

    /// Numbers of the image's file that `mynah image info` shows.
    fn format_details(&self) -> Details {
        let meta = self.meta.lock();
        let header = &meta.header;
        let v3 = header.version >= 3;
        let mut specific = vec![
            ("compat", Detail::Text(if v3 { "1.1" } else { "0.10" }.into())),
            (
                "compression type",
                Detail::Text(
                    match header.compression {
                        Compression::Zlib => "zlib",
                        Compression::Zstd => "zstd",
                    }
                    .into(),
                ),
            ),
        ];
        if v3 {
            let lazy = header.compatible & header::LAZY_REFCOUNTS != 0;
            specific.push(("lazy refcounts", Detail::Switch(lazy)));
        }
        specific.push(("refcount bits", Detail::Number(u64::from(header.refcount_bits()))));
        if v3 {
            let corrupt = header.incompatible & header::CORRUPT != 0;
            specific.push(("corrupt", Detail::Switch(corrupt)));
            specific.push(("extended l2", Detail::Switch(false)));
        }
        Details {
            cluster_size: Some(header.cluster_size()),
            backing_file: header.backing_file.clone(),
            backing_format: header.backing_format.clone(),
            dirty: header.incompatible & header::DIRTY != 0,
            specific,
        }
    }
}

/// Whether one of a table's places, which is not 0, stands twice in it.
fn named_twice(places: impl Iterator<Item = u64> + Clone) -> bool {
    let there = places.filter(|at| *at != 0);
    // What grows with an unknown length is held twice meanwhile.
    let mut sorted = Vec::with_capacity(there.clone().count());
    sorted.extend(there);
    sorted.sort_unstable();
    sorted.windows(2).any(|two| two[0] == two[1])
}

/// Reads `entries` numbers from `at` on, in pieces: a table is not held twice.
fn read_numbers(storage: &dyn Storage, at: u64, entries: usize) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::with_capacity(entries);
    let mut bytes = vec![0; (entries * 8).min(1 << 20)];
    while numbers.len() < entries {
        let piece = &mut bytes[..((entries - numbers.len()) * 8).min(1 << 20)];
        storage.read_at(at + numbers.len() as u64 * 8, piece)?;
        numbers.extend(piece.chunks_exact(8).map(|e| be64(e, 0)));
    }
    Ok(numbers)
}

/// Calls `then` with the pieces of the table of `entries` numbers at `at`, and the position of each's first number. A
/// piece that it has changed, as it says, is written. Holes of the file are passed over: nothing is there.
fn each_piece(
    storage: &dyn Storage,
    at: u64,
    entries: u64,
    mut then: impl FnMut(u64, &mut [u8]) -> io::Result<bool>,
) -> io::Result<()> {
    let mut bytes = vec![0; (entries * 8).min(64 << 10) as usize];
    let mut n = 0;
    while n < entries {
        if let Ok((len, false)) = storage.extent_at(at + n * 8) {
            // It has no length after the file's end.
            if len == 0 {
                break;
            }
            if len >= 8 {
                n += len / 8;
                continue;
            }
        }
        let piece = ((entries - n) * 8).min(bytes.len() as u64) as usize;
        storage.read_at(at + n * 8, &mut bytes[..piece])?;
        if then(n, &mut bytes[..piece])? {
            storage.write_at(at + n * 8, &bytes[..piece])?;
        }
        n += piece as u64 / 8;
    }
    Ok(())
}

/// Calls `then` with the position and the value of each number in the table of `entries` numbers at `at` that is not
/// 0.
fn each_number(
    storage: &dyn Storage,
    at: u64,
    entries: u64,
    then: &mut dyn FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    each_piece(storage, at, entries, |n, piece| {
        for (i, number) in (n..).zip(piece.chunks_exact(8).map(|e| be64(e, 0))) {
            if number != 0 {
                then(i, number)?;
            }
        }
        Ok(false)
    })
}

/// Writes numbers to `at`, some at a time: a table of them may be large.
fn write_numbers(storage: &dyn Storage, at: u64, numbers: &[u64]) -> io::Result<()> {
    for (n, part) in numbers.chunks(131_072).enumerate() {
        let mut bytes = Vec::with_capacity(part.len() * 8);
        part.iter().for_each(|e| bytes.extend(e.to_be_bytes()));
        storage.write_at(at + n as u64 * (1 << 20), &bytes)?;
    }
    Ok(())
}

impl Image for Qcow2 {
    fn format(&self) -> &'static str {
        "qcow2"
    }

    fn size(&self) -> u64 {
        self.size.load(Relaxed)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        within(self.size(), at, buf.len() as u64)?;
        self.read_range(at, buf)
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        within(self.size(), at, data.len() as u64)?;
        self.may_write()?;
        self.write_range(at, data)
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.flush_meta(&mut self.meta.lock())
    }

    fn zero(&self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        within(self.size(), at, len)?;
        self.may_write()?;
        self.zero_range(at, len, unmap)
    }

    fn discard(&self, at: u64, len: u64) -> io::Result<()> {
        within(self.size(), at, len)?;
        self.may_write()?;
        self.discard_range(at, len)
    }

    fn extent(&self, at: u64) -> io::Result<Extent> {
        let left = self.size().saturating_sub(at);
        if left == 0 {
            return Ok(Extent { len: 0, data: false, allocated: false, host_offset: None });
        }
        let (mapping, len) = self.run(at, left)?;
        let within = at & (self.cluster_size() - 1);
        Ok(match mapping {
            Mapping::Data { host, .. } => {
                Extent { len, data: true, allocated: true, host_offset: Some(host + within) }
            }
            Mapping::Compressed { .. } => Extent { len, data: true, allocated: true, host_offset: None },
            Mapping::Zero { .. } => Extent { len, data: false, allocated: true, host_offset: None },
            Mapping::Hole => Extent { len, data: self.is_backed(at), allocated: false, host_offset: None },
        })
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.may_write()?;
        self.set_size(size)
    }

    fn details(&self) -> Details {
        self.format_details()
    }

    fn backing(&self) -> Option<Arc<dyn Image>> {
        self.backing.clone()
    }

    fn set_backing_name(&self, file: Option<&str>, format: Option<&str>) -> io::Result<()> {
        self.set_backing(&BackingName { file: file.map(Into::into), format: format.map(Into::into) })
    }

    fn make_empty(&self) -> io::Result<()> {
        self.may_write()?;
        self.forget_all()
    }

    fn write_compressed(&self, at: u64, data: &[u8]) -> io::Result<()> {
        within(self.size(), at, data.len() as u64)?;
        self.may_write()?;
        self.write_packed(at, data)
    }

    fn snapshots(&self) -> io::Result<Vec<Snapshot>> {
        Ok(self.meta.lock().snapshots.iter().map(|s| s.info(self.size())).collect())
    }

    fn snapshot_create(&self, name: &str) -> io::Result<()> {
        self.may_write()?;
        self.create_snapshot(name)
    }

    fn snapshot_apply(&self, name: &str) -> io::Result<()> {
        self.may_write()?;
        self.apply_snapshot(name)
    }

    fn snapshot_delete(&self, name: &str) -> io::Result<()> {
        self.may_write()?;
        self.delete_snapshot(name)
    }

    fn amend(&self, options: &[(String, String)]) -> io::Result<()> {
        self.change_options(options)
    }

    fn check(&self, repair: bool) -> io::Result<CheckReport> {
        self.check_image(repair)
    }
}

impl Drop for Qcow2 {
    /// What is in memory goes to the file.
    fn drop(&mut self) {
        if !self.read_only
            && let Err(e) = self.flush()
        {
            tracing::warn!("a qcow2 image was closed without its last changes: {e}");
        }
    }
}
