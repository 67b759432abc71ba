//! Refcounts: how often each cluster of the file is referred to.
//!
//! A table of blocks of counters. The table is held whole (8 MiB at most), blocks in a cache. What is changed is
//! written by [`Refs::write_back`]: first blocks, then, when these are durable, the table's entries for new ones.
use crate::qcow2::header::Header;
use crate::storage::{Storage, damaged};
use std::collections::HashMap;
use std::io;
use std::ops::Range;

/// Most bytes of blocks that are held, unless more are changed.
const CACHE: u64 = 4 << 20;
/// Offset bits of a table's entry.
pub const TABLE_OFFSET: u64 = !511;

struct Block {
    bytes: Vec<u8>,
    /// The bytes that are not yet in the file.
    dirty: Option<(usize, usize)>,
    used: u64,
}

/// The counters of an image.
pub struct Refs {
    cluster_bits: u32,
    order: u32,
    /// Where the table is.
    pub offset: u64,
    /// The table: where blocks are, 0 for none.
    pub table: Vec<u64>,
    /// Entries of it that are not yet in the file.
    dirty_entries: Vec<usize>,
    blocks: HashMap<usize, Block>,
    tick: u64,
    /// What of the file was asked of the host last, and whether there are data: to ask costs more than the rest of a
    /// look-up. A hole is one until something is written.
    extent: (Range<u64>, bool),
    /// No cluster before it is free, as far as is known.
    pub hint: u64,
}

impl Refs {
    /// Reads the table of the image that `header` describes.
    ///
    /// # Errors
    /// The host's.
    pub fn read(storage: &dyn Storage, header: &Header) -> io::Result<Self> {
        let len = (u64::from(header.refcount_clusters) << header.cluster_bits) as usize;
        let table = super::read_numbers(storage, header.refcount_offset, len / 8)?;
        Ok(Self {
            cluster_bits: header.cluster_bits,
            order: header.refcount_order,
            offset: header.refcount_offset,
            table,
            dirty_entries: Vec::new(),
            blocks: HashMap::new(),
            tick: 0,
            extent: (0..0, false),
            hint: 0,
        })
    }

    /// Counters in a block.
    pub fn per_block(&self) -> u64 {
        (8u64 << self.cluster_bits) >> self.order
    }

    /// The largest count.
    pub fn max(&self) -> u64 {
        u64::MAX >> (64 - (1 << self.order))
    }

    fn cluster_size(&self) -> usize {
        1 << self.cluster_bits
    }

    /// Where block `index` is; 0 for none.
    fn block_offset(&self, index: usize) -> io::Result<u64> {
        let at = self.table.get(index).copied().unwrap_or(0) & TABLE_OFFSET;
        if !at.is_multiple_of(1 << self.cluster_bits) || at >> 56 != 0 {
            return Err(damaged(format!("refcount block {index} cannot be at {at:#x}")));
        }
        Ok(at)
    }

    /// Has block `index` in the cache: `false` if there is none.
    fn load(&mut self, storage: &dyn Storage, index: usize) -> io::Result<bool> {
        self.tick += 1;
        if let Some(block) = self.blocks.get_mut(&index) {
            block.used = self.tick;
            return Ok(true);
        }
        let at = self.block_offset(index)?;
        if at == 0 {
            return Ok(false);
        }
        let mut bytes = vec![0; self.cluster_size()];
        storage.read_at(at, &mut bytes)?;
        self.keep(index, Block { bytes, dirty: None, used: self.tick });
        Ok(true)
    }

    /// Puts a block into the cache, in place of the one that was not used for the longest time if that is full.
    fn keep(&mut self, index: usize, block: Block) {
        let most = (CACHE >> self.cluster_bits).max(4) as usize;
        super::make_room(&mut self.blocks, most, |b| b.dirty.is_none().then_some(b.used));
        self.blocks.insert(index, block);
    }

    /// Blocks that are changed: the caller writes them back before they are too many.
    pub fn changed(&self) -> u64 {
        self.blocks.values().filter(|b| b.dirty.is_some()).count() as u64
    }

    /// Whether so much is changed that it is to be written back.
    pub fn is_full(&self) -> bool {
        self.changed() << self.cluster_bits > CACHE || self.dirty_entries.len() > 1 << 16
    }

    /// The count of `cluster` (the offset's number, not the offset).
    ///
    /// # Errors
    /// The host's; the block's place is damaged.
    pub fn get(&mut self, storage: &dyn Storage, cluster: u64) -> io::Result<u64> {
        let index = cluster / self.per_block();
        let Ok(index) = usize::try_from(index) else { return Ok(0) };
        if !self.has_counts(storage, index)? || !self.load(storage, index)? {
            return Ok(0);
        }
        Ok(counter(&self.blocks[&index].bytes, self.order, cluster % self.per_block()))
    }

    /// Whether block `index` is there and not a hole of the file, which counts nothing.
    ///
    /// # Errors
    /// The block's place is damaged.
    pub fn has_counts(&mut self, storage: &dyn Storage, index: usize) -> io::Result<bool> {
        if self.blocks.contains_key(&index) {
            return Ok(true);
        }
        let at = self.block_offset(index)?;
        let end = at + self.cluster_size() as u64;
        if at == 0 {
            return Ok(false);
        }
        if !self.extent.0.contains(&at) {
            // What is not known is read.
            let (len, data) = storage.extent_at(at).unwrap_or((0, true));
            self.extent = (at..at.saturating_add(len), data);
        }
        let (range, data) = &self.extent;
        Ok(*data || end > range.end)
    }

    /// The counters of clusters in `range`, all of one block, that are not 0: the cluster, and its count. The range
    /// begins and ends with multiples of 64.
    ///
    /// # Errors
    /// As [`Refs::get`].
    pub fn counts(&mut self, storage: &dyn Storage, range: Range<u64>) -> io::Result<Vec<(u64, u64)>> {
        let (index, first) = ((range.start / self.per_block()) as usize, range.start % self.per_block());
        if !self.load(storage, index)? {
            return Ok(Vec::new());
        }
        let (bytes, order) = (&self.blocks[&index].bytes, self.order);
        let byte = |at: u64| ((at << order) / 8) as usize;
        let part = &bytes[byte(first)..byte(first + (range.end - range.start))];
        // Eight bytes at once: the counters of 1 to 64 clusters.
        let each = 64u64 >> order;
        let words = part.chunks_exact(8).zip(0u64..).filter(|(word, _)| word.iter().any(|b| *b != 0));
        Ok(words
            .flat_map(|(_, n)| n * each..(n + 1) * each)
            .map(|n| (range.start + n, counter(part, order, n)))
            .filter(|(_, count)| *count != 0)
            .collect())
    }

    /// Sets the count of `cluster`, whose block is there.
    fn put(&mut self, cluster: u64, count: u64) {
        let (index, at) = ((cluster / self.per_block()) as usize, cluster % self.per_block());
        let order = self.order;
        let Some(block) = self.blocks.get_mut(&index) else { return };
        set_counter(&mut block.bytes, order, at, count);
        let byte = ((at << order) / 8) as usize;
        let bytes = (1usize << order).div_ceil(8);
        let (from, to) = block.dirty.unwrap_or((byte, byte + bytes));
        block.dirty = Some((from.min(byte), to.max(byte + bytes)));
        if count == 0 {
            self.hint = self.hint.min(cluster);
        }
    }

    /// Sets the count of `cluster`, and makes its block if there is none: that takes a cluster of the file.
    ///
    /// # Errors
    /// The host's; the count is larger than these counters have room for.
    pub fn set(&mut self, storage: &dyn Storage, cluster: u64, count: u64) -> io::Result<()> {
        if count > self.max() {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("refcounts of {} bits have no room for {count}", 1 << self.order),
            ));
        }
        let index = (cluster / self.per_block()) as usize;
        if !self.load(storage, index)? {
            self.make_block(index, None)?;
        }
        self.put(cluster, count);
        Ok(())
    }

    /// Makes block `index`. All clusters that it counts are free, as there was none: its first one is its own place,
    /// unless the caller has one.
    ///
    /// # Errors
    /// The table has no room for it: [`Refs::covers`] tells before.
    pub fn make_block(&mut self, index: usize, at: Option<u64>) -> io::Result<()> {
        let first = index as u64 * self.per_block();
        // Cluster 0 is the header's.
        let own = at.unwrap_or(first.max(1));
        let entry = self.table.get_mut(index).ok_or_else(|| damaged("the refcount table is too small"))?;
        *entry = own << self.cluster_bits;
        self.dirty_entries.push(index);
        let bytes = vec![0; self.cluster_size()];
        self.keep(index, Block { dirty: Some((0, bytes.len())), bytes, used: self.tick });
        if own / self.per_block() == index as u64 {
            self.put(own, 1);
        }
        Ok(())
    }

    /// Clusters that the table has room for.
    pub fn covers(&self) -> u64 {
        self.table.len() as u64 * self.per_block()
    }

    /// From `least` to `most` free clusters in a row, the first there are at or after the hint: the first one and how
    /// many. They are within what [`Refs::covers`], or there are none.
    ///
    /// # Errors
    /// The host's; damaged blocks.
    pub fn find(&mut self, storage: &dyn Storage, least: u64, most: u64) -> io::Result<Option<(u64, u64)>> {
        let (end, per_block) = (self.covers(), self.per_block());
        let mut at = self.hint.max(1);
        let (mut run, mut first_free) = (0, None);
        let found = |at: u64, run: u64| Some((at - run, run.min(most)));
        while at < end {
            let index = (at / per_block) as usize;
            let block_end = (index as u64 + 1) * per_block;
            if !self.load(storage, index)? {
                // The block itself will take the first one.
                let own = (index as u64 * per_block).max(1);
                first_free = first_free.or(Some(own));
                if at <= own {
                    if run >= least {
                        break;
                    }
                    (run, at) = (0, own + 1);
                }
                run += block_end.saturating_sub(at);
                at = at.max(block_end);
            } else {
                let block = &self.blocks[&index];
                while at < block_end && run < most {
                    if counter(&block.bytes, self.order, at % per_block) == 0 {
                        run += 1;
                        first_free = first_free.or(Some(at));
                    } else if run >= least {
                        self.hint = first_free.unwrap_or(self.hint);
                        return Ok(found(at, run));
                    } else {
                        run = 0;
                    }
                    at += 1;
                }
            }
            if run >= most {
                break;
            }
        }
        self.hint = first_free.unwrap_or(at.max(self.hint));
        Ok(if run >= least.max(1) { found(at, run) } else { None })
    }

    /// Whether anything is to be written.
    pub fn is_dirty(&self) -> bool {
        !self.dirty_entries.is_empty() || self.changed() > 0
    }

    /// Writes what has changed; it is durable at the return if `durable`.
    ///
    /// # Errors
    /// The host's: what was not written is still held.
    pub fn write_back(&mut self, storage: &dyn Storage, durable: bool) -> io::Result<()> {
        self.extent = (0..0, false);
        let mut dirty: Vec<usize> =
            self.blocks.iter().filter(|(_, b)| b.dirty.is_some()).map(|(i, _)| *i).collect();
        dirty.sort_unstable();
        for index in dirty.iter().copied() {
            let at = self.block_offset(index)?;
            if let Some(block) = self.blocks.get(&index)
                && let Some((from, to)) = block.dirty
            {
                let (from, to) = (from & !511, to.next_multiple_of(512).min(block.bytes.len()));
                storage.write_at(at + from as u64, &block.bytes[from..to])?;
            }
        }
        if !self.dirty_entries.is_empty() {
            storage.flush()?;
            self.dirty_entries.sort_unstable();
            self.dirty_entries.dedup();
            for row in self.dirty_entries.chunk_by(|one, next| one + 1 == *next) {
                super::write_numbers(
                    storage,
                    self.offset + row[0] as u64 * 8,
                    &self.table[row[0]..=row[row.len() - 1]],
                )?;
            }
        }
        if durable {
            storage.flush()?;
        }
        self.dirty_entries.clear();
        for index in dirty {
            if let Some(block) = self.blocks.get_mut(&index) {
                block.dirty = None;
            }
        }
        Ok(())
    }

    /// Block `index` is none.
    pub fn forget(&mut self, index: usize) {
        self.blocks.remove(&index);
        if let Some(entry) = self.table.get_mut(index) {
            *entry = 0;
            self.dirty_entries.push(index);
        }
    }

    /// Another table, which the file has already: where, and its entries.
    pub fn moved(&mut self, offset: u64, entries: usize) {
        self.offset = offset;
        self.table.resize(entries, 0);
    }
}

/// Counter `at` of a block, each `1 << order` bits: bytes are big-endian, parts of a byte begin at its lowest bit.
fn counter(bytes: &[u8], order: u32, at: u64) -> u64 {
    let at = at as usize;
    if order < 3 {
        let bits = 1 << order;
        let shift = (at << order) % 8;
        return u64::from(bytes[(at << order) / 8] >> shift) & ((1 << bits) - 1);
    }
    let len = 1 << (order - 3);
    bytes[at * len..(at + 1) * len].iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

fn set_counter(bytes: &mut [u8], order: u32, at: u64, count: u64) {
    let at = at as usize;
    if order < 3 {
        let shift = (at << order) % 8;
        let mask = ((1u32 << (1 << order)) - 1) as u8;
        let byte = &mut bytes[(at << order) / 8];
        *byte = *byte & !(mask << shift) | (count as u8 & mask) << shift;
        return;
    }
    let len = 1 << (order - 3);
    bytes[at * len..(at + 1) * len].copy_from_slice(&count.to_be_bytes()[8 - len..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_all_widths_are_apart() {
        for order in 0..=6 {
            let mut bytes = vec![0; 512];
            let all = (512 * 8) >> order;
            let value = |i: u64| (i * 7 + 3) & (u64::MAX >> (64 - (1 << order)));
            (0..all).for_each(|i| set_counter(&mut bytes, order, i, value(i)));
            (0..all).for_each(|i| assert_eq!(counter(&bytes, order, i), value(i), "order {order}, {i}"));
        }
        let mut bytes = [0; 2];
        set_counter(&mut bytes, 0, 9, 1);
        assert_eq!(bytes, [0, 2]);
        set_counter(&mut bytes, 4, 0, 0x1234);
        assert_eq!(bytes, [0x12, 0x34]);
    }
}
