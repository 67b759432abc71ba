//! Check and repair: all references are counted anew, and compared with the refcounts.
//!
//! What an image claims must cost neither memory nor time that its file does not account for. Counts are held of a
//! range of clusters at a time ([`MOST_HELD`]): an image that refers to more is gone through again for the next range.
//! An L2 table is read once in each pass, however often it is referred to, and holes of the file are passed over.
//! What no file of that size can hold is refused, and so is a repair that would make the file much larger than it is.
use super::header::{self, EXT_BITMAPS};
use super::refs::TABLE_OFFSET;
use super::{COPIED, Mapping, Meta, OFFSET, Qcow2, each_number, write_numbers};
use crate::image::{CheckReport, Image as _};
use crate::storage::{be32, be64, damaged};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

/// log2 of the clusters that are counted in one block.
const BLOCK: u32 = 4;
/// Bytes that a block takes, with its share of the tree that it is in.
const BLOCK_HELD: u64 = 36;
/// Most bytes of counts that are held, at least: [`most_held`].
const MOST_HELD: u64 = 12 << 20;
/// Most passes. A file whose references are in the places of real data needs one or two.
const MOST_PASSES: u32 = 64;
/// Refcounts that are held because they are wrong.
const MOST_DIFFER: usize = 1 << 16;
/// Clusters that are compared at once.
const WINDOW: u64 = 1 << 14;
/// Most bytes of L1 tables of snapshots, and of bitmaps' tables, unless the file has more: in a sound image no two of
/// these tables are in the same place.
const MOST_TABLES: u64 = 1 << 28;
/// Most L2 tables that are referred to, unless the file has room for more.
const MOST_L2: u64 = 1 << 19;
/// Most bytes that the file may grow by on the host's disk for refcounts that a repair writes, unless it has more
/// there: in a sound image what is referred to takes more than what counts it.
const MOST_MADE: u64 = 64 << 20;
/// What one byte that is written into a hole takes on the disks of most hosts.
const HOST_BLOCK: u64 = 4096;

/// Bytes of counts that are held of an image whose file has `used` bytes on the host's disk: a cluster that is really
/// there takes at most three.
fn most_held(used: u64, cluster: u64) -> u64 {
    MOST_HELD.max(used / cluster * 3)
}

/// References that were counted, of a range of clusters.
pub(super) struct Counted {
    /// Counts of clusters that are in a row; 255 if `more` has the count.
    blocks: BTreeMap<u64, [u8; 1 << BLOCK]>,
    more: BTreeMap<u64, u32>,
    range: Range<u64>,
    most: u64,
}

impl Counted {
    pub fn new(most: u64) -> Self {
        Self { blocks: BTreeMap::new(), more: BTreeMap::new(), range: 0..u64::MAX, most }
    }

    /// Counts each cluster in `clusters`, as far as it is in the range, `n` times. If that is more than can be held,
    /// the range becomes smaller.
    pub fn add(&mut self, clusters: Range<u64>, n: u32) {
        for block in clusters.start >> BLOCK..=clusters.end.saturating_sub(1) >> BLOCK {
            let first = block << BLOCK;
            let here = clusters.start.max(first).max(self.range.start)
                ..clusters.end.min(first + (1 << BLOCK)).min(self.range.end);
            if here.is_empty() {
                if first >= self.range.end {
                    return;
                }
                continue;
            }
            let counts = self.blocks.entry(block).or_default();
            for cluster in here {
                let count = &mut counts[(cluster - first) as usize];
                match u32::from(*count).saturating_add(n) {
                    sum if *count < u8::MAX && sum < u32::from(u8::MAX) => *count = sum as u8,
                    sum if *count < u8::MAX => {
                        *count = u8::MAX;
                        self.more.insert(cluster, sum);
                    }
                    _ => {
                        let more = self.more.entry(cluster).or_default();
                        *more = more.saturating_add(n);
                    }
                }
            }
            if self.held() > self.most {
                self.halve();
            }
        }
    }

    fn held(&self) -> u64 {
        (self.blocks.len() + self.more.len()) as u64 * BLOCK_HELD
    }

    /// Forgets the upper half. Ranges end between words of the refcounts: [`super::refs::Refs::counts`].
    fn halve(&mut self) {
        let Some(middle) = self.blocks.keys().nth(self.blocks.len() / 2).map(|b| b & !3) else { return };
        if middle << BLOCK <= self.range.start {
            return;
        }
        self.range.end = middle << BLOCK;
        self.blocks.split_off(&middle);
        self.more.split_off(&self.range.end);
    }

    /// The clusters whose counts are held.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Goes on to what is after the range: whether there is anything.
    pub fn next(&mut self) -> bool {
        if self.range.end == u64::MAX {
            return false;
        }
        self.restart(self.range.end);
        true
    }

    fn restart(&mut self, from: u64) {
        self.blocks.clear();
        self.more.clear();
        self.range = from..u64::MAX;
    }

    fn of(&self, cluster: u64, count: u8) -> u32 {
        if count < u8::MAX { u32::from(count) } else { self.more.get(&cluster).copied().unwrap_or(0) }
    }

    pub fn get(&self, cluster: u64) -> u32 {
        let counts = self.blocks.get(&(cluster >> BLOCK));
        counts.map_or(0, |b| self.of(cluster, b[(cluster & ((1 << BLOCK) - 1)) as usize]))
    }

    /// The clusters in `range`, whole blocks, that were counted, and how often.
    fn within(&self, range: Range<u64>) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.blocks
            .range(range.start >> BLOCK..range.end >> BLOCK)
            .flat_map(|(block, counts)| (block << BLOCK..).zip(counts.iter().copied()))
            .filter(|(_, count)| *count > 0)
            .map(|(cluster, count)| (cluster, self.of(cluster, count)))
    }
}

/// An L2 table's cluster, and in the lowest bits how often it is referred to: by 65,537 L1 tables at most.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Table(u64);

impl Table {
    const TIMES: u64 = (1 << 17) - 1;

    /// Referred to once. No file has more clusters: [`header::MAX_OFFSET`].
    fn new(cluster: u64) -> Self {
        Self(cluster << 17 | 1)
    }

    fn cluster(self) -> u64 {
        self.0 >> 17
    }

    fn times(self) -> u32 {
        (self.0 & Self::TIMES) as u32
    }

    fn add(&mut self, other: Self) {
        let times = (u64::from(self.times()) + u64::from(other.times())).min(Self::TIMES);
        self.0 = self.0 & !Self::TIMES | times;
    }
}

/// A check under way.
struct Check<'a> {
    image: &'a Qcow2,
    counted: Counted,
    report: CheckReport,
    /// Clusters of the file.
    clusters: u64,
    /// Bytes that the file has on the host's disk.
    on_disk: u64,
    /// The L2 tables, in their order in the file, and how often each is referred to.
    tables: Vec<Table>,
    /// Of each refcount block whether it is outside of the file, or used for something else too.
    bad: Vec<bool>,
    /// Of each refcount block whether it has something to count.
    wanted: Vec<bool>,
    /// After the last cluster that is referred to.
    end: u64,
    /// Clusters from here on are nobody's: a repair makes refcount blocks there.
    free: u64,
    /// Those that it made and that are not counted yet.
    made: Vec<u64>,
    /// Refcounts in the range that are not what was counted, the first of them.
    differ: BTreeMap<u64, u64>,
    /// A mark in the L1 table was repaired.
    l1_changed: bool,
    /// What is wrong has been told.
    told: bool,
    passes: u32,
}

impl Qcow2 {
    /// See [`Image::check`].
    pub(super) fn check_image(&self, repair: bool) -> io::Result<CheckReport> {
        self.check_holding(repair, most_held(self.storage.disk_usage()?, self.cluster_size()))
    }

    /// See [`Image::check`]; it holds `most` bytes of counts.
    pub(super) fn check_holding(&self, repair: bool, most: u64) -> io::Result<CheckReport> {
        if repair && self.read_only {
            self.may_write()?;
        }
        let mut meta = self.settle();
        if !self.read_only {
            self.flush_meta(&mut meta)?;
        }
        // Memory is for counts now.
        self.tables.write().l2.retain(|_, l2| l2.dirty.is_some());
        let mut check = Check {
            image: self,
            counted: Counted::new(most),
            report: CheckReport::default(),
            clusters: self.storage.len()?.div_ceil(self.cluster_size()),
            on_disk: self.storage.disk_usage()?,
            tables: Vec::with_capacity(self.tables.read().l1.len().min(MOST_L2 as usize)),
            bad: vec![false; meta.refs.table.len()],
            wanted: vec![false; meta.refs.table.len()],
            end: 0,
            free: 0,
            made: Vec::new(),
            differ: BTreeMap::new(),
            l1_changed: false,
            told: false,
            passes: 0,
        };
        check.find_tables(&meta)?;
        check.activity()?;
        check.pass(&mut meta, |check, meta| {
            check.find_bad_blocks(meta);
            check.find_wanted_blocks(meta);
            Ok(())
        })?;
        let broken = check.report.corruptions;
        check.free = check.end.max(check.clusters);
        if repair {
            check.may_make_blocks(&mut meta)?;
        }
        // Nobody reads from clusters that a repair frees, or tables that it changes.
        let _alone = repair.then(|| self.gate.write());
        let repaired = repair && check.repair_table(&mut meta)?;
        if repaired || check.passes > 1 {
            check.counted.restart(0);
            check.pass(&mut meta, |check, meta| check.compare(meta, repair))?;
        } else {
            check.compare(&mut meta, repair)?;
        }
        if repair {
            check.count_made(&mut meta)?;
            meta.refs.write_back(&*self.storage, true)?;
            if check.l1_changed {
                let l1 = self.tables.read();
                write_numbers(&*self.storage, meta.header.l1_offset, &l1.l1)?;
            }
            self.tables.write().l2.clear();
            self.storage.flush()?;
            let left = broken.saturating_sub(check.report.corruptions_fixed.min(broken));
            if left == 0 && check.report.corruptions == 0 {
                meta.header.incompatible &= !(header::DIRTY | header::CORRUPT);
                self.corrupt.store(false, std::sync::atomic::Ordering::Relaxed);
                self.write_header(&meta)?;
            }
        }
        Ok(check.report)
    }
}

impl Check<'_> {
    fn wrong(&mut self, text: impl FnOnce() -> String) {
        if !self.told {
            self.report.corruptions += 1;
            self.report.note(|| format!("ERROR {}", text()));
        }
    }

    /// Counts all references, range by range, and calls `then` after each.
    fn pass(
        &mut self,
        meta: &mut Meta,
        then: impl Fn(&mut Self, &mut Meta) -> io::Result<()>,
    ) -> io::Result<()> {
        self.passes = 0;
        loop {
            self.passes += 1;
            if self.passes > MOST_PASSES {
                return Err(damaged("it refers to more clusters than a file of its size has"));
            }
            self.count(meta)?;
            self.told = true;
            then(self, meta)?;
            if !self.counted.next() {
                return Ok(());
            }
        }
    }

    /// Counts `len` bytes from `at` on, `times` times.
    fn used(&mut self, at: u64, len: u64, times: u32, what: &str) {
        let bits = self.image.cluster_bits;
        if len == 0 {
            return;
        }
        let end = (at.saturating_add(len) - 1) >> bits;
        if end >= self.clusters {
            self.wrong(|| format!("{what} at {at:#x} is beyond the file's end"));
            return;
        }
        self.counted.add(at >> bits..end + 1, times);
    }

    /// Adds the bytes of one more table to what has been `read` of its kind: [`MOST_TABLES`].
    fn may_read(&self, read: &mut u64, bytes: u64, what: &str) -> io::Result<()> {
        *read += bytes;
        if *read > MOST_TABLES.max(self.on_disk) {
            return Err(damaged(format!("{what} are larger than its file, so they are in the same places")));
        }
        Ok(())
    }

    /// Finds the L2 tables.
    fn find_tables(&mut self, meta: &Meta) -> io::Result<()> {
        let image = self.image;
        for (index, entry) in (0..).zip(&image.tables.read().l1) {
            self.l2_at(index, *entry)?;
        }
        let mut read = 0;
        for snapshot in &meta.snapshots {
            let (at, len) = (snapshot.l1_offset, u64::from(snapshot.l1_size) * 8);
            if at + len <= self.clusters << self.image.cluster_bits {
                self.may_read(&mut read, len, "the snapshots' L1 tables")?;
                let storage = &*self.image.storage;
                each_number(storage, at, len / 8, &mut |index, entry| self.l2_at(index, entry))?;
            }
        }
        self.sort_tables();
        Ok(())
    }

    /// An L1 entry.
    fn l2_at(&mut self, index: u64, entry: u64) -> io::Result<()> {
        let (at, bits) = (entry & OFFSET, self.image.cluster_bits);
        if at == 0 {
            return Ok(());
        }
        if at & (self.image.cluster_size() - 1) != 0 {
            self.wrong(|| format!("L2 table {index} is not at a cluster's start ({at:#x})"));
        } else if at >> bits >= self.clusters {
            self.wrong(|| format!("L2 table {index} at {at:#x} is beyond the file's end"));
        } else {
            let most = MOST_L2.max(self.on_disk >> bits);
            if self.tables.len() as u64 == most {
                self.sort_tables();
                // Half of the room is for those that come next.
                if self.tables.len() as u64 > most / 2 {
                    return Err(damaged("it refers to more L2 tables than a file of its size has"));
                }
            }
            self.tables.push(Table::new(at >> bits));
        }
        Ok(())
    }

    fn sort_tables(&mut self) {
        self.tables.sort_unstable();
        self.tables.dedup_by(|next, one| {
            let same = next.cluster() == one.cluster();
            if same {
                one.add(*next);
            }
            same
        });
    }

    fn count(&mut self, meta: &Meta) -> io::Result<()> {
        let image = self.image;
        let cluster = image.cluster_size();
        self.report.total_clusters = image.size().div_ceil(cluster);
        self.used(0, cluster, 1, "the header");
        self.used(meta.header.l1_offset, u64::from(meta.header.l1_size) * 8, 1, "the L1 table");
        for snapshot in &meta.snapshots {
            self.used(snapshot.l1_offset, u64::from(snapshot.l1_size) * 8, 1, "a snapshot's L1 table");
        }
        match super::snapshots::table_len(&*image.storage, &meta.header) {
            Ok(len) => self.used(meta.header.snapshots_offset, len, 1, "the snapshots' table"),
            Err(e) => self.wrong(|| e.to_string()),
        }
        self.bitmaps(meta)?;
        let tables = std::mem::take(&mut self.tables);
        for table in &tables {
            let (at, times) = (table.cluster() << image.cluster_bits, table.times());
            self.used(at, cluster, times, "an L2 table");
            self.l2(at, times)?;
        }
        self.tables = tables;
        self.used(
            meta.header.refcount_offset,
            u64::from(meta.header.refcount_clusters) * cluster,
            1,
            "the refcount table",
        );
        for (index, entry) in meta.refs.table.iter().enumerate() {
            let at = entry & TABLE_OFFSET;
            if at == 0 {
                continue;
            }
            if !at.is_multiple_of(cluster) {
                self.wrong(|| format!("refcount block {index} is not at a cluster's start ({at:#x})"));
            } else {
                self.used(at, cluster, 1, "a refcount block");
            }
        }
        Ok(())
    }

    /// Finds refcount blocks that cannot be ones, as far as they are in the range.
    fn find_bad_blocks(&mut self, meta: &Meta) {
        let (cluster, bits) = (self.image.cluster_size(), self.image.cluster_bits);
        for (index, entry) in meta.refs.table.iter().enumerate() {
            let at = entry & TABLE_OFFSET;
            if at == 0 {
                continue;
            }
            if at & (cluster - 1) != 0 || at >> bits >= self.clusters {
                self.bad[index] = true;
            } else if self.counted.get(at >> bits) > 1 {
                self.bad[index] = true;
                self.report.corruptions += 1;
                self.report.note(|| {
                    format!("ERROR refcount block {index} at {at:#x} is used for something else too")
                });
            }
        }
        if let Some(block) = self.counted.blocks.keys().next_back() {
            self.end = (block + 1) << BLOCK;
        }
    }

    /// Finds refcount blocks that something in the range is counted in.
    fn find_wanted_blocks(&mut self, meta: &Meta) {
        for block in self.counted.blocks.keys() {
            let place = (block << BLOCK) / meta.refs.per_block();
            if let Some(wanted) = self.wanted.get_mut(place as usize) {
                *wanted = true;
            }
        }
    }

    /// Refuses a repair that would make the file larger than [`MOST_MADE`] allows, before it writes anything. One
    /// reference may take a block that is made for it, or one that is in a hole of the file: 8 bytes of a forged table
    /// would become kilobytes on the host's disk.
    fn may_make_blocks(&self, meta: &mut Meta) -> io::Result<()> {
        let (bits, cluster) = (self.image.cluster_bits, self.image.cluster_size());
        let (mut made, mut filled, mut last) = (0, 0, None);
        for index in (0..self.wanted.len()).filter(|index| self.wanted[*index]) {
            let at = meta.refs.table[index] & TABLE_OFFSET;
            if self.bad[index] || at == 0 {
                made += 1;
            } else if !meta.refs.has_counts(&*self.image.storage, index)? {
                // Small blocks in a row share what the host keeps.
                let host = at / HOST_BLOCK;
                if last.replace(host) != Some(host) {
                    filled += cluster.max(HOST_BLOCK);
                }
            }
        }
        // Those that are made are in a row, as far as the table covers them.
        let made = made.min(meta.refs.covers().saturating_sub(self.free)) << bits;
        if made + filled > MOST_MADE.max(self.on_disk) {
            return Err(damaged(format!(
                "a repair would write {} MiB of refcounts, more than its file has: convert it, which only reads it",
                (made + filled) >> 20
            )));
        }
        Ok(())
    }

    fn l2(&mut self, at: u64, times: u32) -> io::Result<()> {
        let image = self.image;
        // Clusters in a row are counted together.
        let mut row = 0..0;
        let bits = image.cluster_bits;
        each_number(&*image.storage, at, image.l2_entries(), &mut |i, entry| {
            match image.mapping(entry) {
                Err(e) => self.wrong(|| format!("L2 table {at:#x}, entry {i}: {e}")),
                Ok(Mapping::Compressed { host, len }) => {
                    if entry & COPIED != 0 {
                        self.wrong(|| {
                            format!("L2 table {at:#x}, entry {i}: compressed, and marked as its own")
                        });
                    }
                    self.used(host, len, times, "compressed data");
                }
                Ok(Mapping::Data { host, .. } | Mapping::Zero { host, .. }) if host != 0 => {
                    let cluster = host >> bits;
                    if cluster >= self.clusters {
                        self.wrong(|| format!("a data cluster at {host:#x} is beyond the file's end"));
                    } else if cluster == row.end {
                        row.end += 1;
                    } else {
                        if !row.is_empty() {
                            self.counted.add(row.clone(), times);
                        }
                        row = cluster..cluster + 1;
                    }
                }
                Ok(_) => {}
            }
            Ok(())
        })?;
        if !row.is_empty() {
            self.counted.add(row, times);
        }
        Ok(())
    }

    /// What the active tree has: numbers for people.
    fn activity(&mut self) -> io::Result<()> {
        let image = self.image;
        let mut next = 0;
        self.each_table(&mut |check, at| {
            each_number(&*image.storage, at, image.l2_entries(), &mut |_, entry| {
                let report = &mut check.report;
                match image.mapping(entry) {
                    Ok(Mapping::Compressed { .. }) => {
                        report.allocated_clusters += 1;
                        report.compressed_clusters += 1;
                        report.fragmented_clusters += 1;
                    }
                    Ok(Mapping::Data { host, .. } | Mapping::Zero { host, .. }) if host != 0 => {
                        report.allocated_clusters += 1;
                        if next != 0 && host != next {
                            report.fragmented_clusters += 1;
                        }
                        next = host + image.cluster_size();
                    }
                    _ => {}
                }
                Ok(())
            })
        })
    }

    /// Calls `then` with the place of each L2 table of the active tree, in the guest's order, once.
    fn each_table(&mut self, then: &mut dyn FnMut(&mut Self, u64) -> io::Result<()>) -> io::Result<()> {
        let image = self.image;
        let mut seen = vec![false; self.tables.len()];
        for index in 0.. {
            let Some(entry) = image.tables.read().l1.get(index).copied() else { break };
            let (at, cluster) = (entry & OFFSET, (entry & OFFSET) >> image.cluster_bits);
            if at & (image.cluster_size() - 1) != 0 {
                continue;
            }
            let Ok(place) = self.tables.binary_search_by_key(&cluster, |t| t.cluster()) else { continue };
            if !std::mem::replace(&mut seen[place], true) {
                then(self, at)?;
            }
        }
        Ok(())
    }

    /// Clusters of the bitmaps extension: the directory, and each bitmap's table and data.
    fn bitmaps(&mut self, meta: &Meta) -> io::Result<()> {
        if meta.header.autoclear & header::BITMAPS == 0 {
            return Ok(());
        }
        let image = self.image;
        let Some((_, data)) = meta.header.extensions.iter().find(|(kind, _)| *kind == EXT_BITMAPS) else {
            return Ok(());
        };
        if data.len() < 24 {
            self.wrong(|| "the bitmaps extension is too short".into());
            return Ok(());
        }
        let (count, size, at) = (be32(data, 0), be64(data, 8), be64(data, 16));
        if size > 64 << 20 || count > 65_535 {
            self.wrong(|| "the bitmaps' directory is too large".into());
            return Ok(());
        }
        if at.saturating_add(size) > self.clusters << image.cluster_bits {
            self.wrong(|| format!("the bitmaps' directory at {at:#x} is beyond the file's end"));
            return Ok(());
        }
        self.used(at, size, 1, "the bitmaps' directory");
        let (mut here, mut read) = (at, 0);
        for _ in 0..count {
            let mut head = [0; 24];
            if here + 24 > at.saturating_add(size) {
                break;
            }
            image.storage.read_at(here, &mut head)?;
            let (table, entries) = (be64(&head, 0), u64::from(be32(&head, 8)));
            if entries > 1 << 20 {
                self.wrong(|| format!("a bitmap's table of {entries} entries is too large"));
            } else {
                self.used(table, entries * 8, 1, "a bitmap's table");
                if table.saturating_add(entries * 8) <= self.clusters << image.cluster_bits {
                    self.may_read(&mut read, entries * 8, "the bitmaps' tables")?;
                    each_number(&*image.storage, table, entries, &mut |_, entry| {
                        if entry & OFFSET != 0 {
                            self.used(entry & OFFSET, image.cluster_size(), 1, "a bitmap");
                        }
                        Ok(())
                    })?;
                }
            }
            let (name, extra) = (u64::from(be32(&head, 16) & 0xffff), u64::from(be32(&head, 20)));
            here += (24 + name + extra).next_multiple_of(8);
        }
        Ok(())
    }

    /// Takes blocks out of the refcount table that cannot be ones: those that are needed are made anew. Whether there
    /// were any.
    fn repair_table(&mut self, meta: &mut Meta) -> io::Result<bool> {
        let mut any = false;
        for index in 0..self.bad.len() {
            if !std::mem::take(&mut self.bad[index]) {
                continue;
            }
            any = true;
            meta.refs.forget(index);
            if meta.refs.is_full() {
                meta.refs.write_back(&*self.image.storage, false)?;
            }
            self.report.corruptions = self.report.corruptions.saturating_sub(1);
            self.report.corruptions_fixed += 1;
        }
        Ok(any)
    }

    /// Compares what was counted in the range with the refcounts. The time goes with what was counted and with what
    /// of the refcounts' blocks is not zero: a block that is used for something else too counts nothing, and is passed
    /// over.
    fn compare(&mut self, meta: &mut Meta, repair: bool) -> io::Result<()> {
        let image = self.image;
        let storage = &*image.storage;
        let per_block = meta.refs.per_block();
        let within = self.counted.range();
        let is_own = |check: &Self, place: u64, entry: u64| {
            entry & TABLE_OFFSET != 0 && !check.bad.get(place as usize).copied().unwrap_or(true)
        };
        // Where the refcounts have blocks, or something was counted; each of our blocks is in one of theirs.
        let theirs = (0..).zip(&meta.refs.table).filter(|(place, entry)| is_own(self, *place, **entry));
        let theirs = theirs.map(|(place, _)| place);
        let mut places: Vec<u64> = theirs.collect();
        let mut last = None;
        for place in self.counted.blocks.keys().map(|b| (b << BLOCK) / per_block) {
            if last.replace(place) != Some(place) {
                places.push(place);
            }
        }
        places.sort_unstable();
        places.dedup();
        self.differ.clear();
        let mut end = 0;
        for place in places {
            let (first, last) =
                ((place * per_block).max(within.start), ((place + 1) * per_block).min(within.end));
            if first >= last {
                continue;
            }
            let own = meta.refs.table.get(place as usize).is_some_and(|entry| is_own(self, place, *entry));
            let has_counts = own && meta.refs.has_counts(storage, place as usize).unwrap_or(false);
            for from in (first..last).step_by(WINDOW as usize) {
                let range = from..(from + WINDOW).min(last);
                let counted = self.counted.within(range.clone()).next().is_some();
                if has_counts || counted {
                    end = end.max(self.compare_window(meta, repair, range, has_counts)?);
                }
            }
        }
        self.report.image_end_offset = self.report.image_end_offset.max(end << image.cluster_bits);
        if repair {
            meta.refs.write_back(storage, true)?;
        }
        self.marks(repair)
    }

    /// [`Self::compare`] of the clusters in `range`, all of one of the refcounts' blocks. The end of what is used
    /// there.
    fn compare_window(
        &mut self,
        meta: &mut Meta,
        repair: bool,
        range: Range<u64>,
        has_counts: bool,
    ) -> io::Result<u64> {
        let storage = &*self.image.storage;
        let counts = if has_counts {
            meta.refs.counts(storage, range.clone()).unwrap_or_default()
        } else {
            Vec::new()
        };
        // By cluster: what is wanted, and what is there.
        let mut both: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let mut end = 0;
        for (cluster, wanted) in self.counted.within(range) {
            both.insert(cluster, (u64::from(wanted), 0));
            end = end.max(cluster + 1);
        }
        for (cluster, count) in counts {
            both.entry(cluster).or_default().1 = count;
        }
        // Blocks that this repair has made for other ranges are counted last.
        let made = self.made.first().map_or(0..0, |first| *first..self.free);
        for (cluster, (wanted, count)) in both {
            if count == wanted || made.contains(&cluster) {
                continue;
            }
            let fixed = repair && self.set(meta, cluster, wanted);
            if !fixed && self.differ.len() < MOST_DIFFER {
                self.differ.insert(cluster, count);
            }
            if count > wanted {
                self.report.note(|| format!("Leaked cluster {cluster} refcount={count} reference={wanted}"));
                if fixed { self.report.leaks_fixed += 1 } else { self.report.leaks += 1 }
            } else {
                self.report.note(|| format!("ERROR cluster {cluster} refcount={count} reference={wanted}"));
                if fixed { self.report.corruptions_fixed += 1 } else { self.report.corruptions += 1 }
            }
        }
        if repair && meta.refs.is_full() {
            meta.refs.write_back(storage, false)?;
        }
        Ok(end)
    }

    /// Sets a count. If there is no block for it one is made where nobody is: clusters that it counts may be used.
    fn set(&mut self, meta: &mut Meta, cluster: u64, count: u64) -> bool {
        let (refs, storage) = (&mut meta.refs, &*self.image.storage);
        let index = (cluster / refs.per_block()) as usize;
        if refs.table.get(index).is_some_and(|entry| entry & TABLE_OFFSET == 0) {
            if self.free / refs.per_block() >= refs.table.len() as u64
                || refs.make_block(index, Some(self.free)).is_err()
            {
                return false;
            }
            self.made.push(self.free);
            self.free += 1;
        }
        refs.set(storage, cluster, count).is_ok()
    }

    /// Counts the blocks that a repair has made, which may take more of them.
    fn count_made(&mut self, meta: &mut Meta) -> io::Result<()> {
        while let Some(cluster) = self.made.pop() {
            if !self.set(meta, cluster, 1) {
                self.report.corruptions += 1;
            }
            if meta.refs.is_full() {
                meta.refs.write_back(&*self.image.storage, false)?;
            }
        }
        Ok(())
    }

    /// Compares the marks of own clusters, as far as these are in the range, with the refcounts, and repairs them.
    fn marks(&mut self, repair: bool) -> io::Result<()> {
        let image = self.image;
        let (bits, range) = (image.cluster_bits, self.counted.range());
        self.told = false;
        let wrong = |check: &mut Self, text: &dyn Fn() -> String| {
            if repair {
                check.report.corruptions_fixed += 1;
                check.report.note(|| format!("ERROR {}", text()));
            } else {
                check.wrong(text);
            }
        };
        for index in 0.. {
            let Some(entry) = image.tables.read().l1.get(index).copied() else { break };
            let (at, cluster) = (entry & OFFSET, (entry & OFFSET) >> bits);
            if at == 0 || at & (image.cluster_size() - 1) != 0 || cluster >= self.clusters {
                continue;
            }
            let refs = self.refs(cluster);
            if range.contains(&cluster) && (refs == 1) != (entry & COPIED != 0) {
                wrong(self, &|| format!("L1 entry {index}: its mark as own is wrong, refcount={refs}"));
                if repair {
                    image.tables.write().l1[index] ^= COPIED;
                    self.l1_changed = true;
                }
            }
        }
        self.each_table(&mut |check, at| {
            image.change_table(at, |entry| {
                match image.mapping(entry) {
                    Ok(Mapping::Data { host, copied } | Mapping::Zero { host, copied })
                        if host != 0 && range.contains(&(host >> bits)) =>
                    {
                        let refs = check.refs(host >> bits);
                        if (refs == 1) == copied {
                            return Ok(entry);
                        }
                        wrong(check, &|| {
                            format!("data cluster {host:#x}: its mark as own is wrong, refcount={refs}")
                        });
                    }
                    // Of a compressed cluster nobody is the only owner: that was told.
                    Ok(Mapping::Compressed { .. }) if entry & COPIED != 0 && repair => {
                        check.report.corruptions = check.report.corruptions.saturating_sub(1);
                        check.report.corruptions_fixed += 1;
                    }
                    _ => return Ok(entry),
                }
                Ok(if repair { entry ^ COPIED } else { entry })
            })
        })?;
        self.told = true;
        Ok(())
    }

    /// The refcount of a cluster in the range: a comparison or a repair was there before.
    fn refs(&self, cluster: u64) -> u64 {
        self.differ.get(&cluster).copied().unwrap_or(u64::from(self.counted.get(cluster)))
    }
}
