//! Check and repair: all references are counted anew, and compared with the refcounts.
//!
//! An L2 table is read once, however often it is referred to: the time that a check takes goes with the file's size
//! and not with what its tables claim. Only clusters that something refers to are held, in blocks.
use super::header::{self, EXT_BITMAPS};
use super::refs::TABLE_OFFSET;
use super::{COMPRESSED, COPIED, Mapping, Meta, OFFSET, Qcow2};
use crate::image::{CheckReport, Image as _};
use crate::storage::{be32, be64};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::ops::Range;

/// log2 of the clusters that are counted in one block.
const BLOCK: u32 = 6;
/// Clusters that are compared at once.
const WINDOW: u64 = 1 << 14;

/// References that were counted.
#[derive(Default)]
struct Counted {
    blocks: HashMap<u64, Box<[u32; 1 << BLOCK]>>,
}

impl Counted {
    fn add(&mut self, cluster: u64, n: u32) {
        let block = self.blocks.entry(cluster >> BLOCK).or_insert_with(|| Box::new([0; 1 << BLOCK]));
        let count = &mut block[(cluster & ((1 << BLOCK) - 1)) as usize];
        *count = count.saturating_add(n);
    }

    fn get(&self, cluster: u64) -> u32 {
        self.blocks.get(&(cluster >> BLOCK)).map_or(0, |b| b[(cluster & ((1 << BLOCK) - 1)) as usize])
    }
}

/// A check under way.
struct Check<'a> {
    image: &'a Qcow2,
    counted: Counted,
    report: CheckReport,
    /// Clusters of the file.
    clusters: u64,
}

impl Qcow2 {
    /// See [`Image::check`].
    pub(super) fn check_image(&self, repair: bool) -> io::Result<CheckReport> {
        if repair && self.read_only {
            self.may_write()?;
        }
        let mut meta = self.settle();
        if !self.read_only {
            self.flush_meta(&mut meta)?;
        }
        let mut check = Check {
            image: self,
            counted: Counted::default(),
            report: CheckReport::default(),
            clusters: self.storage.len()?.div_ceil(self.cluster_size()),
        };
        check.count(&mut meta)?;
        let broken = check.report.corruptions;
        if repair {
            check.repair_table(&mut meta)?;
        }
        check.compare(&mut meta, repair)?;
        if repair {
            meta.refs.write_back(&*self.storage, true)?;
            check.copied(&mut meta, true)?;
            let _alone = self.gate.write();
            self.mark_copied(&mut meta)?;
            let left = broken.saturating_sub(check.report.corruptions_fixed.min(broken));
            if left == 0 && check.report.corruptions == 0 {
                meta.header.incompatible &= !(header::DIRTY | header::CORRUPT);
                self.corrupt.store(false, std::sync::atomic::Ordering::Relaxed);
                self.write_header(&meta)?;
            }
        } else {
            check.copied(&mut meta, false)?;
        }
        Ok(check.report)
    }
}

impl Check<'_> {
    fn wrong(&mut self, text: impl FnOnce() -> String) {
        self.report.corruptions += 1;
        self.report.note(|| format!("ERROR {}", text()));
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
        for cluster in at >> bits..=end {
            self.counted.add(cluster, times);
        }
    }

    fn count(&mut self, meta: &mut Meta) -> io::Result<()> {
        let image = self.image;
        let cluster = image.cluster_size();
        let size = image.size();
        self.report.total_clusters = size.div_ceil(cluster);
        self.used(0, cluster, 1, "the header");
        // How often each L2 table is referred to.
        let mut tables: BTreeMap<u64, u32> = BTreeMap::new();
        let active = image.tables.read().l1.clone();
        self.used(meta.header.l1_offset, active.len() as u64 * 8, 1, "the L1 table");
        self.l1(&active, &mut tables);
        let places: Vec<(u64, u32)> = meta.snapshots.iter().map(|s| (s.l1_offset, s.l1_size)).collect();
        for (at, entries) in places {
            self.used(at, u64::from(entries) * 8, 1, "a snapshot's L1 table");
            if at + u64::from(entries) * 8 <= self.clusters << image.cluster_bits {
                let l1 = image.read_table(at, entries as usize)?;
                self.l1(&l1, &mut tables);
            }
        }
        let list_len = super::snapshots::read(&*image.storage, &meta.header)
            .map(|list| list.iter().map(super::snapshots::Entry::len).sum::<u64>());
        match list_len {
            Ok(len) => self.used(meta.header.snapshots_offset, len, 1, "the snapshots' table"),
            Err(e) => self.wrong(|| e.to_string()),
        }
        self.bitmaps(meta)?;
        for (at, times) in tables {
            self.used(at, cluster, times, "an L2 table");
            if at >> image.cluster_bits < self.clusters {
                self.l2(at, times)?;
            }
        }
        self.activity(&active)?;
        self.used(
            meta.header.refcount_offset,
            u64::from(meta.header.refcount_clusters) * cluster,
            1,
            "the refcount table",
        );
        for (index, entry) in meta.refs.table.clone().into_iter().enumerate() {
            let at = entry & TABLE_OFFSET;
            if at == 0 {
                continue;
            }
            if !at.is_multiple_of(cluster) {
                self.wrong(|| format!("refcount block {index} is not at a cluster's start ({at:#x})"));
            } else {
                self.used(at, cluster, 1, "a refcount block");
                if self.counted.get(at >> image.cluster_bits) > 1 {
                    self.wrong(|| {
                        format!("refcount block {index} at {at:#x} is used for something else too")
                    });
                }
            }
        }
        Ok(())
    }

    fn l1(&mut self, l1: &[u64], tables: &mut BTreeMap<u64, u32>) {
        for (index, entry) in l1.iter().enumerate() {
            let at = entry & OFFSET;
            if at == 0 {
                continue;
            }
            if at & (self.image.cluster_size() - 1) != 0 {
                self.wrong(|| format!("L2 table {index} is not at a cluster's start ({at:#x})"));
            } else if at >> self.image.cluster_bits >= self.clusters {
                self.wrong(|| format!("L2 table {index} at {at:#x} is beyond the file's end"));
            } else {
                let times = tables.entry(at).or_default();
                *times = times.saturating_add(1);
            }
        }
    }

    fn l2(&mut self, at: u64, times: u32) -> io::Result<()> {
        let image = self.image;
        // A hole of the file is a table of zeros.
        if let Ok((len, false)) = image.storage.extent_at(at)
            && len >= image.cluster_size()
        {
            return Ok(());
        }
        for (i, entry) in image.read_table(at, image.l2_entries() as usize)?.into_iter().enumerate() {
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
                    self.used(host, image.cluster_size(), times, "a data cluster");
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// What the active tree has: numbers for people.
    fn activity(&mut self, l1: &[u64]) -> io::Result<()> {
        let image = self.image;
        let mut next = 0;
        let mut seen = HashSet::new();
        for at in l1.iter().map(|e| e & OFFSET).filter(|at| *at != 0) {
            if at & (image.cluster_size() - 1) != 0
                || at >> image.cluster_bits >= self.clusters
                || !seen.insert(at)
            {
                continue;
            }
            for entry in image.read_table(at, image.l2_entries() as usize)? {
                match image.mapping(entry) {
                    Ok(Mapping::Compressed { .. }) => {
                        self.report.allocated_clusters += 1;
                        self.report.compressed_clusters += 1;
                        self.report.fragmented_clusters += 1;
                    }
                    Ok(Mapping::Data { host, .. } | Mapping::Zero { host, .. }) if host != 0 => {
                        self.report.allocated_clusters += 1;
                        if next != 0 && host != next {
                            self.report.fragmented_clusters += 1;
                        }
                        next = host + image.cluster_size();
                    }
                    _ => {}
                }
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
        let mut here = at;
        for _ in 0..count {
            let mut head = [0; 24];
            if here + 24 > at.saturating_add(size) {
                break;
            }
            image.storage.read_at(here, &mut head)?;
            let (table, entries) = (be64(&head, 0), be32(&head, 8));
            self.used(table, u64::from(entries) * 8, 1, "a bitmap's table");
            if table.saturating_add(u64::from(entries) * 8) <= self.clusters << image.cluster_bits
                && entries <= 1 << 20
            {
                for entry in image.read_table(table, entries as usize)? {
                    if entry & OFFSET != 0 {
                        self.used(entry & OFFSET, image.cluster_size(), 1, "a bitmap");
                    }
                }
            }
            let (name, extra) = (u64::from(be32(&head, 16) & 0xffff), u64::from(be32(&head, 20)));
            here += (24 + name + extra).next_multiple_of(8);
        }
        Ok(())
    }

    /// Takes blocks out of the refcount table that cannot be ones: their counters are made anew.
    fn repair_table(&mut self, meta: &mut Meta) -> io::Result<()> {
        let image = self.image;
        let bits = image.cluster_bits;
        let mut bad = Vec::new();
        for (index, entry) in meta.refs.table.iter().enumerate() {
            let at = entry & TABLE_OFFSET;
            if at == 0 {
                continue;
            }
            let outside = at & (image.cluster_size() - 1) != 0 || at >> bits >= self.clusters;
            if outside || self.counted.get(at >> bits) > 1 {
                bad.push(index);
            }
        }
        if bad.is_empty() {
            return Ok(());
        }
        // Blocks in places that are free in truth: after all that is used.
        let last = self.counted.blocks.keys().max().map_or(1, |b| (b + 1) << BLOCK);
        let free = last.max(self.clusters)..;
        for (next, index) in free.zip(bad) {
            let at = (meta.refs.table[index] & TABLE_OFFSET) >> bits;
            meta.refs.forget(index);
            if self.counted.get(at) > 1 {
                let block = self.counted.blocks.get_mut(&(at >> BLOCK));
                if let Some(block) = block {
                    block[(at & ((1 << BLOCK) - 1)) as usize] -= 1;
                }
            }
            if next / meta.refs.per_block() >= meta.refs.table.len() as u64 {
                return Ok(());
            }
            meta.refs.make_block(index, Some(next))?;
            self.counted.add(next, 1);
            self.clusters = self.clusters.max(next + 1);
            if meta.refs.changed() > 16 {
                meta.refs.write_back(&*image.storage, false)?;
            }
            self.report.corruptions = self.report.corruptions.saturating_sub(1);
            self.report.corruptions_fixed += 1;
        }
        Ok(())
    }

    /// Compares what was counted with the refcounts. The time goes with what was counted and with what of the
    /// refcounts' blocks is not zero: a block that is used for something else too counts nothing, and is passed over.
    fn compare(&mut self, meta: &mut Meta, repair: bool) -> io::Result<()> {
        let image = self.image;
        let storage = &*image.storage;
        let per_block = meta.refs.per_block();
        let mut blocks: Vec<u64> = self.counted.blocks.keys().copied().collect();
        blocks.sort_unstable();
        // Where the refcounts have blocks, or something was counted; each of our blocks is in one of theirs.
        let is_own = |check: &Self, entry: u64| {
            let at = (entry & TABLE_OFFSET) >> image.cluster_bits;
            at != 0 && check.counted.get(at) == 1
        };
        let theirs =
            (0..).zip(&meta.refs.table).filter(|(_, entry)| is_own(self, **entry)).map(|(place, _)| place);
        let mut places: Vec<u64> = blocks.iter().map(|b| (b << BLOCK) / per_block).chain(theirs).collect();
        places.sort_unstable();
        places.dedup();
        let mut end = 0;
        for place in places {
            let own = meta.refs.table.get(place as usize).is_some_and(|entry| is_own(self, *entry));
            let has_counts = own && meta.refs.has_counts(storage, place as usize).unwrap_or(false);
            let (first, last) = (place * per_block, (place + 1) * per_block);
            for from in (first..last).step_by(WINDOW as usize) {
                let range = from..(from + WINDOW).min(last);
                let before = |at: u64| blocks.partition_point(|b| *b < at >> BLOCK);
                let counted = &blocks[before(range.start)..before(range.end)];
                if has_counts || !counted.is_empty() {
                    end = end.max(self.compare_window(meta, repair, range, counted, has_counts)?);
                }
            }
        }
        self.report.image_end_offset = end << image.cluster_bits;
        Ok(())
    }

    /// [`Self::compare`] of the clusters in `range`, all of one of the refcounts' blocks, of which `blocks` are
    /// counted. The end of what is used there.
    fn compare_window(
        &mut self,
        meta: &mut Meta,
        repair: bool,
        range: Range<u64>,
        blocks: &[u64],
        has_counts: bool,
    ) -> io::Result<u64> {
        let storage = &*self.image.storage;
        let counts =
            if has_counts { meta.refs.counts(storage, range).unwrap_or_default() } else { Vec::new() };
        // By cluster: what is wanted, and what is there.
        let mut both: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let mut end = 0;
        for block in blocks {
            let counted = self.counted.blocks.get(block).into_iter().flat_map(|b| b.iter());
            for (cluster, wanted) in (block << BLOCK..).zip(counted).filter(|(_, wanted)| **wanted > 0) {
                both.insert(cluster, (u64::from(*wanted), 0));
                end = end.max(cluster + 1);
            }
        }
        for (cluster, count) in counts {
            both.entry(cluster).or_default().1 = count;
        }
        for (cluster, (wanted, count)) in both {
            if count == wanted {
                continue;
            }
            let fixed = repair && self.set(meta, cluster, wanted);
            if count > wanted {
                self.report.note(|| format!("Leaked cluster {cluster} refcount={count} reference={wanted}"));
                if fixed { self.report.leaks_fixed += 1 } else { self.report.leaks += 1 }
            } else {
                self.report.note(|| format!("ERROR cluster {cluster} refcount={count} reference={wanted}"));
                if fixed { self.report.corruptions_fixed += 1 } else { self.report.corruptions += 1 }
            }
        }
        if repair && meta.refs.changed() > 16 {
            meta.refs.write_back(storage, false)?;
        }
        Ok(end)
    }

    fn set(&mut self, meta: &mut Meta, cluster: u64, count: u64) -> bool {
        meta.refs.set(&*self.image.storage, cluster, count).is_ok()
    }

    /// Compares the marks of own clusters with the refcounts; `repair` only counts them as repaired.
    fn copied(&mut self, meta: &mut Meta, repair: bool) -> io::Result<()> {
        let image = self.image;
        let l1 = image.tables.read().l1.clone();
        let mut wrong = Vec::new();
        let mut seen = HashSet::new();
        for (index, entry) in l1.iter().enumerate() {
            let at = entry & OFFSET;
            let outside = at & (image.cluster_size() - 1) != 0 || at >> image.cluster_bits >= self.clusters;
            if at == 0 || outside || !seen.insert(at) {
                continue;
            }
            let refs = meta.refs.get(&*image.storage, at >> image.cluster_bits).unwrap_or(0);
            if (refs == 1) != (entry & COPIED != 0) {
                wrong.push(format!("L1 entry {index}: its mark as own is wrong, refcount={refs}"));
            }
            if let Ok((len, false)) = image.storage.extent_at(at)
                && len >= image.cluster_size()
            {
                continue;
            }
            for entry in image.read_table(at, image.l2_entries() as usize)? {
                if let Ok(Mapping::Data { host, copied } | Mapping::Zero { host, copied }) =
                    image.mapping(entry)
                    && host != 0
                    && entry & COMPRESSED == 0
                {
                    let refs = meta.refs.get(&*image.storage, host >> image.cluster_bits).unwrap_or(0);
                    if (refs == 1) != copied && wrong.len() < 1 << 16 {
                        wrong.push(format!(
                            "data cluster {host:#x}: its mark as own is wrong, refcount={refs}"
                        ));
                    }
                }
            }
        }
        for text in wrong {
            if repair {
                self.report.corruptions_fixed += 1;
                self.report.note(|| format!("ERROR {text}"));
            } else {
                self.wrong(|| text);
            }
        }
        Ok(())
    }
}
