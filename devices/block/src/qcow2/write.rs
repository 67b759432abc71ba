//! What changes an image: writes, zeros, discards, size; and how changes get to the file.
use super::header::MAX_L1_BYTES;
use super::{COMPRESSED, COPIED, Mapping, Meta, OFFSET, Qcow2, ZERO, compress, header, write_numbers};
use crate::image::Image as _;
use crate::storage::{damaged, unsupported, write_zeros};
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

/// Most bytes that one allocation takes.
const ALLOCATION: u64 = 4 << 20;
/// Most references that wait for a flush, and bytes of changed tables: then there is one.
const PENDING: usize = 1 << 16;
const CHANGED: u64 = 8 << 20;
/// Bytes that tables or zeros may take to hide what a backing file has where an image has grown.
const MOST_HIDING: u64 = 1 << 30;

impl Qcow2 {
    /// As [`crate::Image::write`], for ranges that are within the image.
    pub(super) fn write_range(&self, mut at: u64, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let gate = self.gate.read();
            let (mapping, n) = self.run(at, data.len() as u64)?;
            let n = if let Mapping::Data { host, copied: true } = mapping {
                let host = host + (at & (self.cluster_size() - 1));
                self.guard(host, n)?;
                self.storage.write_at(host, &data[..n as usize])?;
                n
            } else {
                drop(gate);
                self.write_new(at, data)?
            };
            at += n;
            data = &data[n as usize..];
        }
        Ok(())
    }

    /// Refuses to write data over tables that a damaged image has mixed up with data.
    fn guard(&self, host: u64, len: u64) -> io::Result<()> {
        if host >= self.cluster_size() {
            return Ok(());
        }
        self.corrupt.store(true, Relaxed);
        Err(damaged(format!("data of {len} bytes would be written over the header ({host:#x})")))
    }

    /// Writes some of `data` to clusters that are new, and links them in. The number of bytes may be 0: somebody else
    /// has been at the same place, and it is looked at again.
    fn write_new(&self, at: u64, data: &[u8]) -> io::Result<u64> {
        let cluster = self.cluster_size();
        let first = at >> self.cluster_bits;
        let mut meta = self.meta.lock();
        if meta.in_flight.contains(&first) {
            self.ended.wait(&mut meta);
            return Ok(0);
        }
        self.limit_changes(&mut meta)?;
        let (mapping, alike) = self.run(at, data.len() as u64)?;
        if matches!(mapping, Mapping::Data { copied: true, .. }) {
            return Ok(0);
        }
        let last = (at + (data.len() as u64).min(ALLOCATION.max(cluster)) - 1) >> self.cluster_bits;
        let mut wanted = (last - first + 1).min(self.l2_entries() - (first & (self.l2_entries() - 1)));
        if let Some(busy) = meta.in_flight.range(first..first + wanted).next() {
            wanted = busy - first;
        }
        // A cluster that was set aside for zeros is used.
        let own = match mapping {
            Mapping::Zero { host, copied: true } if host != 0 => Some(host),
            _ => None,
        };
        let (host, n) = match own {
            Some(host) => {
                self.guard(host, cluster)?;
                (host, 1)
            }
            None => {
                self.own_l2(&mut meta, self.place(first).0)?;
                // What follows may be the image's own already; the next round writes it in place.
                let alike = ((at & (cluster - 1)) + alike).div_ceil(cluster);
                let wanted = if alike < wanted { self.not_own(first, alike, wanted)? } else { wanted };
                self.allocate_run(&mut meta, 1, wanted)?
            }
        };
        let range = first..first + n;
        meta.in_flight.extend(range.clone());
        drop(meta);
        let bytes = (n * cluster - (at & (cluster - 1))).min(data.len() as u64);
        let written = self.fill(host, range.clone(), at, &data[..bytes as usize]);
        let mut meta = self.meta.lock();
        let linked =
            written.and_then(|()| self.link(&mut meta, range.clone(), |i| (host + i * cluster) | COPIED));
        for cluster in range {
            meta.in_flight.remove(&cluster);
        }
        self.ended.notify_all();
        if linked.is_err() && own.is_none() {
            // Nothing has ever referred to them.
            for i in 0..n {
                self.drop_reference(&mut meta, (host >> self.cluster_bits) + i)?;
            }
        }
        linked.map(|()| bytes)
    }

    /// How many of `wanted` clusters from `first` on, of which `known` do, need a new place.
    fn not_own(&self, first: u64, known: u64, wanted: u64) -> io::Result<u64> {
        let (index, at) = self.place(first);
        self.with_l2(index, |entries| {
            let Some(entries) = entries else { return wanted };
            let own = |entry: u64| entry & COMPRESSED == 0 && entry & COPIED != 0 && entry & OFFSET != 0;
            (known..wanted).find(|i| own(entries[at + *i as usize])).unwrap_or(wanted)
        })
    }

    /// Writes `data` for the guest's `at`, and what stood around it, to new clusters from `host` on.
    fn fill(&self, host: u64, clusters: Range<u64>, at: u64, data: &[u8]) -> io::Result<()> {
        let start = clusters.start << self.cluster_bits;
        let end = clusters.end << self.cluster_bits;
        if at == start && at + data.len() as u64 == end {
            return self.storage.write_at(host, data);
        }
        let mut bytes = vec![0; (end - start) as usize];
        let head = (at - start) as usize;
        let tail = head + data.len();
        self.read_range(start, &mut bytes[..head])?;
        bytes[head..tail].copy_from_slice(data);
        self.read_range(at + data.len() as u64, &mut bytes[tail..])?;
        self.storage.write_at(host, &bytes)
    }

    /// Sets the entries of `clusters`, all in one L2 table that is the image's own.
    pub(super) fn link(
        &self,
        meta: &mut Meta,
        clusters: Range<u64>,
        entry: impl Fn(u64) -> u64,
    ) -> io::Result<()> {
        let (index, at) = self.place(clusters.start);
        let mut tables = self.tables.write();
        self.load(&mut tables, index)?;
        let l2 = tables.l2.get_mut(&index).ok_or_else(|| damaged("an L2 table is gone"))?;
        for i in 0..clusters.end - clusters.start {
            let place = at + i as usize;
            let (old, new) = (l2.entries[place], entry(i));
            if old == new {
                continue;
            }
            l2.set(place, new);
            if old & OFFSET != new & OFFSET || (old | new) & COMPRESSED != 0 {
                self.release(&mut meta.pending, old);
            }
        }
        Ok(())
    }

    /// Notes that `entry` does not refer to its clusters any more.
    fn release(&self, pending: &mut Vec<u64>, entry: u64) {
        pending.extend(self.clusters_of(entry));
    }

    /// The file's clusters (numbers) that an L2 entry refers to.
    pub(super) fn clusters_of(&self, entry: u64) -> Range<u64> {
        match self.mapping(entry) {
            Ok(Mapping::Data { host, .. } | Mapping::Zero { host, .. }) if host != 0 => {
                host >> self.cluster_bits..(host >> self.cluster_bits) + 1
            }
            Ok(Mapping::Compressed { host, len }) => {
                host >> self.cluster_bits..((host + len - 1) >> self.cluster_bits) + 1
            }
            _ => 0..0,
        }
    }

    /// Has the L2 table of L1 entry `index` be there and the image's own.
    pub(super) fn own_l2(&self, meta: &mut Meta, index: usize) -> io::Result<()> {
        let entry = match self.tables.read().l1.get(index) {
            Some(entry) => *entry,
            None => return Err(damaged("the L1 table is too small")),
        };
        let old = entry & OFFSET;
        if old != 0 && entry & COPIED != 0 {
            return Ok(());
        }
        let new = self.allocate(meta, 1)?;
        let mut tables = self.tables.write();
        let entries = if old == 0 {
            vec![0; self.l2_entries() as usize]
        } else {
            self.load(&mut tables, index)?;
            match tables.l2.remove(&index) {
                Some(l2) => l2.entries,
                None => return Err(damaged("an L2 table is gone")),
            }
        };
        let dirty = Some((0, entries.len()));
        self.keep(&mut tables, index, entries, dirty);
        tables.l1[index] = new | COPIED;
        tables.dirty_l1.insert(index);
        if old != 0 {
            meta.pending.push(old >> self.cluster_bits);
        }
        Ok(())
    }

    /// Takes `count` free clusters in a row, and gives their offset.
    pub(super) fn allocate(&self, meta: &mut Meta, count: u64) -> io::Result<u64> {
        Ok(self.allocate_run(meta, count, count)?.0)
    }

    /// Takes from `least` to `most` free clusters in a row: offset and number.
    fn allocate_run(&self, meta: &mut Meta, least: u64, most: u64) -> io::Result<(u64, u64)> {
        let storage = &*self.storage;
        let (first, count) = loop {
            if let Some(found) = meta.refs.find(storage, least, most)? {
                break found;
            }
            self.grow_refcounts(meta, least)?;
        };
        if (first + count) << self.cluster_bits >= header::MAX_OFFSET {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the image's file cannot grow any more"));
        }
        for cluster in first..first + count {
            meta.refs.set(storage, cluster, 1)?;
        }
        Ok((first << self.cluster_bits, count))
    }

    /// Makes a larger refcount table, after all that the old one covers, with the blocks that count itself.
    fn grow_refcounts(&self, meta: &mut Meta, room: u64) -> io::Result<()> {
        let bits = self.cluster_bits;
        let (start, per_block) = (meta.refs.covers(), meta.refs.per_block());
        let old_entries = meta.refs.table.len();
        let (mut blocks, mut clusters) = (1u64, 1u64);
        loop {
            let entries = ((start + blocks + clusters + room).div_ceil(per_block) + 1)
                .max(old_entries as u64 * 3 / 2)
                .max(old_entries as u64 + blocks);
            let more = (entries * 8).div_ceil(1 << bits);
            let need = (blocks + more).div_ceil(per_block);
            if (more, need) == (clusters, blocks) {
                break;
            }
            (clusters, blocks) = (more.max(clusters), need.max(blocks));
        }
        if clusters << bits > header::MAX_REFCOUNT_TABLE_BYTES.max(1 << bits) {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the image's file cannot grow any more: its refcount table would be too large",
            ));
        }
        // What is in memory counts for the old table: it goes there first.
        meta.refs.write_back(&*self.storage, true)?;
        let table_at = (start + blocks) << bits;
        meta.refs.moved(table_at, ((clusters << bits) / 8) as usize);
        for i in 0..blocks {
            meta.refs.make_block(old_entries + i as usize, Some(start + i))?;
        }
        for cluster in start..start + blocks + clusters {
            meta.refs.set(&*self.storage, cluster, 1)?;
        }
        let table: Vec<u8> = meta.refs.table.iter().flat_map(|e| e.to_be_bytes()).collect();
        self.storage.write_at(table_at, &table)?;
        meta.refs.write_back(&*self.storage, true)?;
        let old = (meta.header.refcount_offset >> bits, u64::from(meta.header.refcount_clusters));
        meta.header.refcount_offset = table_at;
        meta.header.refcount_clusters = clusters as u32;
        self.write_header(meta)?;
        for cluster in old.0..old.0 + old.1 {
            self.drop_reference(meta, cluster)?;
        }
        Ok(())
    }

    /// Counts `cluster` down. Nothing in the file refers to it for this count any more.
    pub(super) fn drop_reference(&self, meta: &mut Meta, cluster: u64) -> io::Result<()> {
        let count = meta.refs.get(&*self.storage, cluster)?;
        if count == 0 {
            tracing::warn!("a qcow2 image is damaged: cluster {cluster:#x} is used and counted as free");
            return Ok(());
        }
        meta.refs.set(&*self.storage, cluster, count - 1)?;
        if count == 1 {
            // Whatever was packed there may be something else soon.
            *self.inflated.lock() = None;
            if meta.packed >> self.cluster_bits == cluster {
                meta.packed = 0;
            }
        }
        Ok(())
    }

    /// Has the file get what waits for it, before that is too much.
    fn limit_changes(&self, meta: &mut Meta) -> io::Result<()> {
        let tables = self.tables.read().l2.values().filter(|t| t.dirty.is_some()).count() as u64;
        let blocks = meta.refs.changed();
        let most = (CHANGED >> self.cluster_bits).max(2);
        if tables >= most || blocks >= most.div_ceil(4).max(2) || meta.pending.len() >= PENDING {
            self.flush_meta(meta)?;
        }
        Ok(())
    }

    /// Writes all that has changed, and returns when it is durable; then what was given up can be used again.
    pub(super) fn flush_meta(&self, meta: &mut Meta) -> io::Result<()> {
        let storage = &*self.storage;
        let bits = self.cluster_bits;
        if meta.refs.is_dirty() {
            meta.refs.write_back(storage, false)?;
        }
        // Taken out of the lock, so that nobody waits for the disk to look something up. Nobody else changes tables.
        let mut changed = Vec::new();
        {
            let tables = self.tables.read();
            for (index, l2) in tables.l2.iter().filter(|(_, l2)| l2.dirty.is_some()) {
                let (from, to) = l2.dirty.unwrap_or_default();
                let (from, to) = (from & !63, to.next_multiple_of(64).min(l2.entries.len()));
                let bytes: Vec<u8> = l2.entries[from..to].iter().flat_map(|e| e.to_be_bytes()).collect();
                changed.push((*index, (tables.l1[*index] & OFFSET) + from as u64 * 8, bytes));
            }
        }
        let l1: Vec<(usize, u64)> = {
            let tables = self.tables.read();
            tables.dirty_l1.iter().map(|i| (*i, tables.l1[*i])).collect()
        };
        if !changed.is_empty() || !l1.is_empty() {
            storage.flush()?;
        }
        for (_, at, bytes) in &changed {
            self.guard(*at, bytes.len() as u64)?;
            storage.write_at(*at, bytes)?;
        }
        if !l1.is_empty() {
            storage.flush()?;
            for (index, entry) in &l1 {
                storage.write_at(meta.header.l1_offset + *index as u64 * 8, &entry.to_be_bytes())?;
            }
        }
        storage.flush()?;
        {
            let mut tables = self.tables.write();
            for (index, ..) in changed {
                if let Some(l2) = tables.l2.get_mut(&index) {
                    l2.dirty = None;
                }
            }
            tables.dirty_l1.clear();
        }
        if meta.pending.is_empty() {
            return Ok(());
        }
        // Whoever has looked a cluster up that is free now has done with it.
        drop(self.gate.write());
        let mut freed = Vec::new();
        for cluster in std::mem::take(&mut meta.pending) {
            self.drop_reference(meta, cluster)?;
            if meta.refs.get(storage, cluster)? == 0 {
                freed.push(cluster);
            }
        }
        meta.refs.write_back(storage, false)?;
        freed.sort_unstable();
        let len = storage.len()?;
        for run in freed.chunk_by(|a, b| a + 1 == *b) {
            let (at, bytes) = (run[0] << bits, (run.len() as u64) << bits);
            // Where they were is the host's again; if it does not want it, that is no harm.
            if at < len {
                let _ = storage.zero_at(at, bytes.min(len - at), true);
            }
        }
        Ok(())
    }

    /// As [`crate::Image::write_compressed`].
    pub(super) fn write_packed(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let cluster = self.cluster_size();
        let whole = data.len() as u64 == cluster || at + data.len() as u64 == self.size();
        if at & (cluster - 1) != 0 || data.len() as u64 > cluster || !whole {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "compressed is one whole cluster"));
        }
        let mut padded;
        let all = if data.len() as u64 == cluster {
            data
        } else {
            padded = data.to_vec();
            padded.resize(cluster as usize, 0);
            &padded
        };
        let Some(packed) = compress::pack(self.compression, all) else { return self.write_range(at, data) };
        let first = at >> self.cluster_bits;
        let mut meta = self.meta.lock();
        while meta.in_flight.contains(&first) {
            self.ended.wait(&mut meta);
        }
        self.limit_changes(&mut meta)?;
        self.own_l2(&mut meta, self.place(first).0)?;
        let len = packed.len() as u64;
        let host = self.room_for_packed(&mut meta, len)?;
        self.storage.write_at(host, &packed)?;
        let sectors = ((host & 511) + len - 1) / 512;
        let entry = COMPRESSED | sectors << (62 - (self.cluster_bits - 8)) | host;
        self.link(&mut meta, first..first + 1, |_| entry)
    }

    /// A place for `len` bytes of compressed data, counted for.
    fn room_for_packed(&self, meta: &mut Meta, len: u64) -> io::Result<u64> {
        let (bits, mask) = (self.cluster_bits, self.cluster_size() - 1);
        let storage = &*self.storage;
        let at = meta.packed;
        let left = if at & mask == 0 { 0 } else { self.cluster_size() - (at & mask) };
        let open = at >> bits;
        // An entry speaks of whole sectors, which must not reach into a cluster that is not counted for.
        let end_in_same = |host: u64| (host + len - 1) >> bits == host >> bits;
        if left > 0 {
            let count = meta.refs.get(storage, open)?;
            if count > 0 && count < meta.refs.max() {
                if end_in_same(at) {
                    meta.refs.set(storage, open, count + 1)?;
                    meta.packed = at + len;
                    return Ok(at);
                }
                let next = self.allocate(meta, 1)?;
                if next >> bits == open + 1 {
                    meta.refs.set(storage, open, count + 1)?;
                    meta.packed = at + len;
                    return Ok(at);
                }
                meta.packed = next + len;
                return Ok(next);
            }
        }
        let next = self.allocate(meta, 1)?;
        meta.packed = next + len;
        Ok(next)
    }

    /// As [`crate::Image::zero`], for ranges that are within the image.
    pub(super) fn zero_range(&self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.by_clusters(at, len, &mut |at, len| self.write_zeros(at, len), &mut |clusters| {
            self.zero_clusters(clusters, unmap)
        })
    }

    /// As [`crate::Image::discard`], for ranges that are within the image.
    pub(super) fn discard_range(&self, at: u64, len: u64) -> io::Result<()> {
        self.by_clusters(at, len, &mut |_, _| Ok(()), &mut |clusters| {
            let backed = self.is_backed(clusters.start << self.cluster_bits);
            if backed && !self.zeros {
                return Ok(());
            }
            self.change_entries(clusters, |_, backed| if backed { ZERO } else { 0 })
        })
    }

    /// Cuts a range into parts of clusters, and rows of whole ones that have one L2 table.
    fn by_clusters(
        &self,
        at: u64,
        len: u64,
        part: &mut dyn FnMut(u64, u64) -> io::Result<()>,
        whole: &mut dyn FnMut(Range<u64>) -> io::Result<()>,
    ) -> io::Result<()> {
        let (bits, cluster) = (self.cluster_bits, self.cluster_size());
        let (mut at, end) = (at, at + len);
        // The disk's last cluster is whole even if the disk is not.
        let disk_end = self.size();
        while at < end {
            let next = ((at >> bits) + 1) << bits;
            if at & (cluster - 1) != 0 || (next > end && end < disk_end) {
                let n = next.min(end) - at;
                part(at, n)?;
                at += n;
                continue;
            }
            let first = at >> bits;
            let last = if end == disk_end { end.div_ceil(cluster) } else { end >> bits };
            let span = self.l2_entries() - (first & (self.l2_entries() - 1));
            let n = (last - first).min(span);
            whole(first..first + n)?;
            at = ((first + n) << bits).min(end);
        }
        Ok(())
    }

    /// Writes zeros as data, unless they are there.
    fn write_zeros(&self, mut at: u64, mut len: u64) -> io::Result<()> {
        let zeros = vec![0; len.min(1 << 20) as usize];
        while len > 0 {
            let (mapping, n) = self.run(at, len.min(zeros.len() as u64))?;
            let are = match mapping {
                Mapping::Zero { .. } => true,
                Mapping::Hole => !self.is_backed(at),
                _ => false,
            };
            if !are {
                self.write_range(at, &zeros[..n as usize])?;
            }
            at += n;
            len -= n;
        }
        Ok(())
    }

    fn zero_clusters(&self, clusters: Range<u64>, unmap: bool) -> io::Result<()> {
        let bits = self.cluster_bits;
        if self.zeros {
            return self.change_entries(clusters, |old, backed| match old {
                Mapping::Data { host, copied: true } | Mapping::Zero { host, copied: true }
                    if !unmap && host != 0 =>
                {
                    host | COPIED | ZERO
                }
                Mapping::Hole if !backed => 0,
                _ => ZERO,
            });
        }
        let at = clusters.start << bits;
        if unmap && !self.is_backed(at) {
            return self.change_entries(clusters, |_, _| 0);
        }
        let end = (clusters.end << bits).min(self.size());
        self.write_zeros(at, end - at)
    }

    /// As [`crate::Image::make_empty`].
    pub(super) fn forget_all(&self) -> io::Result<()> {
        self.by_clusters(0, self.size(), &mut |_, _| Ok(()), &mut |clusters| {
            self.change_entries(clusters, |_, _| 0)
        })?;
        self.flush()
    }

    /// Whether the backing file may have other bytes than zeros for these clusters. Of what lies in many pieces that is
    /// said without a look at each.
    fn is_backed_by_data(&self, clusters: &Range<u64>) -> bool {
        let Some(backing) = &self.backing else { return false };
        let end = (clusters.end << self.cluster_bits).min(backing.size());
        let mut at = clusters.start << self.cluster_bits;
        for _ in 0..16 {
            if at >= end {
                return false;
            }
            match backing.extent(at) {
                Ok(extent) if !extent.data && extent.len > 0 => at += extent.len,
                _ => return true,
            }
        }
        true
    }

    /// Gives the entries of `clusters`, which have one L2 table, new values: by what they are now, and by whether
    /// the backing file has something there.
    pub(super) fn change_entries(
        &self,
        clusters: Range<u64>,
        new: impl Fn(Mapping, bool) -> u64,
    ) -> io::Result<()> {
        let (index, at) = self.place(clusters.start);
        let mut meta = self.meta.lock();
        while meta.in_flight.range(clusters.clone()).next().is_some() {
            self.ended.wait(&mut meta);
        }
        self.limit_changes(&mut meta)?;
        let count = (clusters.end - clusters.start) as usize;
        let backed = |i: usize| self.is_backed((clusters.start + i as u64) << self.cluster_bits);
        let old = self.with_l2(index, |l2| l2.map(|entries| entries[at..at + count].to_vec()))?;
        // Without a table there are holes, which may be all that is wanted: a disk may have a million such tables.
        let stays = |backed: bool| new(Mapping::Hole, backed) == 0;
        if old.is_none() && stays(false) && (stays(true) || !self.is_backed_by_data(&clusters)) {
            return Ok(());
        }
        let old = old.unwrap_or_else(|| vec![0; count]);
        let mut entries = Vec::with_capacity(count);
        for (i, entry) in old.iter().enumerate() {
            entries.push(new(self.mapping(*entry)?, backed(i)));
        }
        if entries == old {
            return Ok(());
        }
        self.own_l2(&mut meta, index)?;
        self.link(&mut meta, clusters, |i| entries[i as usize])
    }

    /// As [`crate::Image::resize`].
    pub(super) fn set_size(&self, size: u64) -> io::Result<()> {
        let old = self.size();
        if !self.zeros && !self.meta.lock().snapshots.is_empty() {
            return Err(unsupported(
                "a version 2 image that has snapshots keeps its size: a snapshot of it has no size of its own",
            ));
        }
        if size < old {
            self.shrink(size, old)?;
        }
        // What is left of the last cluster, and what the backing file has there, must not come to light.
        let backed = self.backing.as_ref().map_or(0, |b| b.size());
        let hidden = old..old.next_multiple_of(self.cluster_size()).max(backed).min(size);
        self.can_hide(&hidden)?;
        let mut meta = self.settle();
        self.flush_meta(&mut meta)?;
        let entries = meta.header.l1_entries_for(size);
        if entries * 8 > MAX_L1_BYTES || size > i64::MAX as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a disk of that size needs larger clusters (cluster_size=)",
            ));
        }
        if entries > u64::from(meta.header.l1_size) {
            let l1 = self.tables.read().l1.clone();
            self.new_l1(&mut meta, l1, entries as usize, size)?;
        } else {
            meta.header.size = size;
            self.write_header(&meta)?;
        }
        self.size.store(size, Relaxed);
        drop(meta);
        if hidden.end > hidden.start {
            self.zero_range(hidden.start, hidden.end - hidden.start, true)?;
        }
        self.flush_meta(&mut self.meta.lock())
    }

    /// Refuses to hide a stretch of the backing file if that takes more than [`MOST_HIDING`]: a damaged or forged one
    /// of petabytes would fill the host's disk.
    fn can_hide(&self, stretch: &Range<u64>) -> io::Result<()> {
        // Whole clusters: of the others there are two at most.
        let cluster = self.cluster_size();
        let (at, end) = (stretch.start.next_multiple_of(cluster), stretch.end & !(cluster - 1));
        let mut takes = 0;
        self.by_clusters(at, end.saturating_sub(at), &mut |_, _| Ok(()), &mut |clusters| {
            let has_table = self.tables.read().l1.get(self.place(clusters.start).0).is_some_and(|e| *e != 0);
            // Version 2 has data that is zeros in place of a table that says so.
            let count = if self.zeros { u64::from(!has_table) } else { clusters.end - clusters.start };
            if count > 0 && self.is_backed_by_data(&clusters) {
                takes += count << self.cluster_bits;
            }
            if takes > MOST_HIDING {
                return Err(unsupported(
                    "growing has to hide what the backing file has there, which takes more than a GiB: rebase or \
                     convert the image first",
                ));
            }
            Ok(())
        })
    }

    /// What is beyond the new end goes; what is left of the last cluster is zeros, should it grow again.
    fn shrink(&self, size: u64, old: u64) -> io::Result<()> {
        let edge = size.next_multiple_of(self.cluster_size()).min(old);
        let (first, _) = self.place(edge >> self.cluster_bits);
        self.check_tree(self.tables.read().l1.get(first..).unwrap_or_default())?;
        if edge > size {
            self.write_zeros(size, edge - size)?;
        }
        self.by_clusters(edge, old - edge, &mut |_, _| Ok(()), &mut |clusters| {
            // Not zeros, which would be there after it has grown: nothing of a backing file comes back either way,
            // as growing sees to that.
            self.change_entries(clusters, |_, _| 0)
        })
    }

    /// Has the L1 table elsewhere, with `entries` entries, and the disk another size, all at once. The old table's
    /// clusters are free then.
    pub(super) fn new_l1(
        &self,
        meta: &mut Meta,
        mut l1: Vec<u64>,
        entries: usize,
        size: u64,
    ) -> io::Result<()> {
        let bits = self.cluster_bits;
        l1.reserve_exact(entries.saturating_sub(l1.len()));
        l1.resize(entries.max(l1.len()), 0);
        let clusters = |entries: usize| (entries as u64 * 8).div_ceil(1 << bits);
        let count = clusters(l1.len()).max(1);
        let at = self.allocate(meta, count)?;
        write_numbers(&*self.storage, at, &l1)?;
        let end = at + l1.len() as u64 * 8;
        write_zeros(&*self.storage, end, at + (count << bits) - end)?;
        meta.refs.write_back(&*self.storage, true)?;
        let old = (meta.header.l1_offset >> bits, clusters(meta.header.l1_size as usize));
        meta.header.l1_offset = at;
        meta.header.l1_size = l1.len() as u32;
        meta.header.size = size;
        self.write_header(meta)?;
        let mut tables = self.tables.write();
        tables.l1 = l1;
        tables.dirty_l1.clear();
        drop(tables);
        for cluster in old.0..old.0 + old.1 {
            self.drop_reference(meta, cluster)?;
        }
        meta.refs.write_back(&*self.storage, false)
    }
}
