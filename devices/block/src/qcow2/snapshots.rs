//! Internal snapshots: other L1 tables, whose clusters are counted once more.
//!
//! To make, apply or delete one is not one write, so the image is marked as dirty meanwhile: after an end in the midst
//! of it, whoever opens the image counts its clusters anew. Which disk it holds is switched at once, by the header.
use super::check::Counted;
use super::header::{self, Header};
use super::{COMPRESSED, COPIED, Mapping, Meta, OFFSET, Qcow2, each_number, named_twice, write_numbers};
use crate::image::{Image as _, Snapshot};
use crate::storage::{Storage, be32, be64, damaged, unsupported};
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

/// Most bytes of the snapshots' table, and of what one entry has beside its names.
const MAX_TABLE: u64 = 8 << 20;
const MAX_EXTRA: u32 = 1024;

/// An entry of the snapshots' table.
#[derive(Clone, Debug)]
pub struct Entry {
    pub l1_offset: u64,
    pub l1_size: u32,
    id: String,
    name: String,
    date_sec: u32,
    date_nsec: u32,
    vm_clock_nsec: u64,
    vm_state_size: u32,
    /// Large state size, disk size, icount, and what came after them.
    extra: Vec<u8>,
}

impl Entry {
    fn extra(&self, at: usize) -> Option<u64> {
        (self.extra.len() >= at + 8).then(|| be64(&self.extra, at))
    }

    fn disk_size(&self, now: u64) -> u64 {
        self.extra(8).unwrap_or(now)
    }

    /// What there is to know of it; `now` is the disk's size.
    pub fn info(&self, now: u64) -> Snapshot {
        Snapshot {
            id: self.id.clone(),
            name: self.name.clone(),
            date_sec: self.date_sec,
            date_nsec: self.date_nsec,
            vm_state_size: self.extra(0).unwrap_or(u64::from(self.vm_state_size)),
            vm_clock_nsec: self.vm_clock_nsec,
            icount: self.extra(16).filter(|n| *n != u64::MAX),
            disk_size: self.disk_size(now),
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.l1_offset.to_be_bytes());
        out.extend(self.l1_size.to_be_bytes());
        out.extend((self.id.len() as u16).to_be_bytes());
        out.extend((self.name.len() as u16).to_be_bytes());
        out.extend(self.date_sec.to_be_bytes());
        out.extend(self.date_nsec.to_be_bytes());
        out.extend(self.vm_clock_nsec.to_be_bytes());
        out.extend(self.vm_state_size.to_be_bytes());
        out.extend((self.extra.len() as u32).to_be_bytes());
        out.extend(&self.extra);
        out.extend(self.id.as_bytes());
        out.extend(self.name.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
        out
    }
}

/// Bytes of the snapshots' table, which [`read`] takes.
///
/// # Errors
/// It is damaged; the host's.
pub fn table_len(storage: &dyn Storage, header: &Header) -> io::Result<u64> {
    let mut len = 0;
    let mut head = [0; 40];
    for _ in 0..header.snapshots {
        if len > MAX_TABLE {
            return Err(damaged("the table of snapshots does not end"));
        }
        storage.read_at(header.snapshots_offset + len, &mut head)?;
        let names = (be32(&head, 12) >> 16) + (be32(&head, 12) & 0xffff);
        len += (40 + u64::from(names) + u64::from(be32(&head, 36))).next_multiple_of(8);
    }
    Ok(len)
}

/// Reads the snapshots' table.
///
/// # Errors
/// It is damaged; the host's.
pub fn read(storage: &dyn Storage, header: &Header) -> io::Result<Vec<Entry>> {
    let (mut at, mut list) = (header.snapshots_offset, Vec::new());
    let len = storage.len()?;
    for n in 0..header.snapshots {
        let wrong = |what: &str| damaged(format!("snapshot {n} of {}: {what}", header.snapshots));
        if at - header.snapshots_offset > MAX_TABLE || at >= len {
            return Err(wrong("the table of snapshots does not end"));
        }
        let mut head = [0; 40];
        storage.read_at(at, &mut head)?;
        let (id_len, name_len) = (be32(&head, 12) >> 16, be32(&head, 12) & 0xffff);
        let extra_len = be32(&head, 36);
        let (l1_offset, l1_size) = (be64(&head, 0), be32(&head, 8));
        if extra_len > MAX_EXTRA {
            return Err(wrong("too much extra data"));
        }
        if !l1_offset.is_multiple_of(header.cluster_size()) || l1_offset >= header::MAX_OFFSET {
            return Err(wrong("the L1 table cannot be there"));
        }
        if u64::from(l1_size) * 8 > header::MAX_L1_BYTES {
            return Err(wrong("the L1 table is too large"));
        }
        let mut rest = vec![0; (extra_len + id_len + name_len) as usize];
        storage.read_at(at + 40, &mut rest)?;
        let (extra, names) = rest.split_at(extra_len as usize);
        let (id, name) = names.split_at(id_len as usize);
        let entry = Entry {
            l1_offset,
            l1_size,
            id: String::from_utf8_lossy(id).into_owned(),
            name: String::from_utf8_lossy(name).into_owned(),
            date_sec: be32(&head, 16),
            date_nsec: be32(&head, 20),
            vm_clock_nsec: be64(&head, 24),
            vm_state_size: be32(&head, 32),
            extra: extra.to_vec(),
        };
        if entry.disk_size(0) > i64::MAX as u64
            || header.l1_entries_for(entry.disk_size(0)) > u64::from(l1_size)
        {
            return Err(wrong("the L1 table is too small for the disk"));
        }
        at += (40 + rest.len() as u64).next_multiple_of(8);
        list.push(entry);
    }
    Ok(list)
}

impl Qcow2 {
    /// Marks the image as dirty, or as clean again. Version 2 has no such mark.
    pub(super) fn mark(&self, meta: &mut Meta, dirty: bool) -> io::Result<()> {
        if !self.zeros {
            return Ok(());
        }
        if dirty {
            meta.header.incompatible |= header::DIRTY;
        } else {
            meta.header.incompatible &= !header::DIRTY;
        }
        self.write_header(meta)
    }

    /// Position of the snapshot with that identifier or name; an identifier goes first.
    fn find_snapshot(&self, meta: &Meta, name: &str) -> io::Result<usize> {
        let position = |wanted: &dyn Fn(&Entry) -> bool| meta.snapshots.iter().position(wanted);
        position(&|s| s.id == name).or_else(|| position(&|s| s.name == name)).ok_or_else(|| {
            let names: Vec<&str> = meta.snapshots.iter().map(|s| s.name.as_str()).collect();
            let there = if names.is_empty() { "none".into() } else { names.join(", ") };
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("there is no snapshot '{name}'; there are: {there}"),
            )
        })
    }

    /// Has this image, which is opened for reading, show what it held when `name` was made.
    ///
    /// # Errors
    /// There is no such snapshot; its table is damaged; the host's.
    pub fn show_snapshot(&self, name: &str) -> io::Result<()> {
        if !self.read_only {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "only what is not written shows a snapshot",
            ));
        }
        let meta = self.meta.lock();
        let entry = &meta.snapshots[self.find_snapshot(&meta, name)?];
        let l1 = self.read_table(entry.l1_offset, entry.l1_size as usize)?;
        let mut tables = self.tables.write();
        tables.l1 = l1;
        tables.l2.clear();
        self.size.store(entry.disk_size(self.size()), Relaxed);
        Ok(())
    }

    /// See [`crate::Image::snapshot_create`].
    pub(super) fn create_snapshot(&self, name: &str) -> io::Result<()> {
        let mut meta = self.settle();
        let _alone = self.gate.write();
        if meta.snapshots.iter().any(|s| s.name == name) {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("there is a snapshot '{name}' already"),
            ));
        }
        if name.len() > 255 || meta.snapshots.len() as u32 >= header::MAX_SNAPSHOTS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "too long a name, or too many snapshots",
            ));
        }
        self.flush_alone(&mut meta)?;
        let l1 = self.tables.read().l1.clone();
        self.check_room(&mut meta, &l1)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let last = meta.snapshots.iter().filter_map(|s| s.id.parse::<u64>().ok()).max();
        let mut extra = 0u64.to_be_bytes().to_vec();
        extra.extend(self.size().to_be_bytes());
        extra.extend(u64::MAX.to_be_bytes());
        let clusters = (l1.len() as u64 * 8).div_ceil(self.cluster_size()).max(1);
        self.mark(&mut meta, true)?;
        let l1_offset = self.allocate(&mut meta, clusters)?;
        write_numbers(&*self.storage, l1_offset, &l1)?;
        self.count_tree(&mut meta, &l1, true)?;
        meta.refs.write_back(&*self.storage, true)?;
        self.mark_copied(&mut meta)?;
        let mut list = meta.snapshots.clone();
        list.push(Entry {
            l1_offset,
            l1_size: l1.len() as u32,
            id: (last.unwrap_or(0) + 1).to_string(),
            name: name.into(),
            date_sec: now.as_secs() as u32,
            date_nsec: now.subsec_nanos(),
            vm_clock_nsec: 0,
            vm_state_size: 0,
            extra,
        });
        self.write_snapshots(&mut meta, list)?;
        self.mark(&mut meta, false)
    }

    /// See [`crate::Image::snapshot_apply`].
    pub(super) fn apply_snapshot(&self, name: &str) -> io::Result<()> {
        let mut meta = self.settle();
        let _alone = self.gate.write();
        let index = self.find_snapshot(&meta, name)?;
        self.flush_alone(&mut meta)?;
        let (l1_offset, l1_size) = (meta.snapshots[index].l1_offset, meta.snapshots[index].l1_size);
        let size = meta.snapshots[index].disk_size(self.size());
        if !self.zeros && size != self.size() {
            return Err(unsupported("the snapshot has another size, and version 2 images keep theirs"));
        }
        let new = self.read_table(l1_offset, l1_size as usize)?;
        let old = self.tables.read().l1.clone();
        self.check_room(&mut meta, &new)?;
        self.mark(&mut meta, true)?;
        self.count_tree(&mut meta, &new, true)?;
        let entries = meta.header.l1_entries_for(size).max(u64::from(l1_size)) as usize;
        self.new_l1(&mut meta, new, entries, size)?;
        self.size.store(size, Relaxed);
        self.tables.write().l2.clear();
        *self.inflated.lock() = None;
        self.count_tree(&mut meta, &old, false)?;
        meta.refs.write_back(&*self.storage, true)?;
        self.mark_copied(&mut meta)?;
        self.mark(&mut meta, false)
    }

    /// See [`crate::Image::snapshot_delete`].
    pub(super) fn delete_snapshot(&self, name: &str) -> io::Result<()> {
        let mut meta = self.settle();
        let _alone = self.gate.write();
        let index = self.find_snapshot(&meta, name)?;
        self.flush_alone(&mut meta)?;
        let entry = meta.snapshots[index].clone();
        let l1 = self.read_table(entry.l1_offset, entry.l1_size as usize)?;
        self.check_tree(&l1)?;
        self.mark(&mut meta, true)?;
        let mut list = meta.snapshots.clone();
        list.remove(index);
        self.write_snapshots(&mut meta, list)?;
        self.count_tree(&mut meta, &l1, false)?;
        let first = entry.l1_offset >> self.cluster_bits;
        let clusters = (u64::from(entry.l1_size) * 8).div_ceil(self.cluster_size()).max(1);
        for cluster in first..first + clusters {
            self.drop_reference(&mut meta, cluster)?;
        }
        meta.refs.write_back(&*self.storage, true)?;
        self.mark_copied(&mut meta)?;
        self.mark(&mut meta, false)
    }

    /// [`Qcow2::flush_meta`] for who holds the gate alone.
    fn flush_alone(&self, meta: &mut Meta) -> io::Result<()> {
        let pending = std::mem::take(&mut meta.pending);
        let flushed = self.flush_meta(meta);
        if flushed.is_err() {
            meta.pending = pending;
            return flushed;
        }
        for cluster in pending {
            self.drop_reference(meta, cluster)?;
        }
        meta.refs.write_back(&*self.storage, true)
    }

    /// Refuses a tree that no sound image has: a table that stands twice in it would be gone through for ever.
    pub(super) fn check_tree(&self, l1: &[u64]) -> io::Result<()> {
        let mut places = l1.iter().map(|e| e & OFFSET);
        if named_twice(places.clone()) {
            return Err(damaged("an L2 table stands twice in one L1 table"));
        }
        if places.any(|at| at & (self.cluster_size() - 1) != 0) {
            return Err(damaged("an L2 table is not at a cluster's start"));
        }
        Ok(())
    }

    /// Calls `then` with each cluster (number) that the tree of `l1` refers to: once for each reference.
    fn walk(&self, l1: &[u64], then: &mut dyn FnMut(u64) -> io::Result<()>) -> io::Result<()> {
        for entry in l1.iter().filter(|e| *e & OFFSET != 0) {
            let at = entry & OFFSET;
            then(at >> self.cluster_bits)?;
            each_number(&*self.storage, at, self.l2_entries(), &mut |_, entry| {
                self.clusters_of(entry).try_for_each(&mut *then)
            })?;
        }
        Ok(())
    }

    /// Makes sure before anything is changed that all clusters of a tree can be counted up.
    fn check_room(&self, meta: &mut Meta, l1: &[u64]) -> io::Result<()> {
        self.check_tree(l1)?;
        // Compressed clusters share clusters: several references of one tree may go to one of them.
        let mut more = Counted::new(u64::MAX);
        let few = meta.refs.max() < 1 << 16;
        self.walk(l1, &mut |cluster| {
            let add = if few {
                more.add(cluster..cluster + 1, 1);
                u64::from(more.get(cluster))
            } else {
                1
            };
            let count = meta.refs.get(&*self.storage, cluster)?;
            if count == 0 {
                return Err(damaged(format!("cluster {cluster:#x} is used and counted as free: repair it")));
            }
            if count.saturating_add(add) > meta.refs.max() {
                return Err(io::Error::new(
                    io::ErrorKind::StorageFull,
                    "the image's refcounts have no room for one more snapshot (refcount_bits=)",
                ));
            }
            Ok(())
        })
    }

    /// Counts all clusters of a tree up or down.
    fn count_tree(&self, meta: &mut Meta, l1: &[u64], up: bool) -> io::Result<()> {
        self.walk(l1, &mut |cluster| {
            if !up {
                return self.drop_reference(meta, cluster);
            }
            let count = meta.refs.get(&*self.storage, cluster)?;
            meta.refs.set(&*self.storage, cluster, count.saturating_add(1))
        })?;
        if meta.refs.changed() > 0 { meta.refs.write_back(&*self.storage, false) } else { Ok(()) }
    }

    /// Sets the mark of entries of the active tree by whether somebody else refers to their cluster.
    fn mark_copied(&self, meta: &mut Meta) -> io::Result<()> {
        let mut l1 = self.tables.read().l1.clone();
        let mut l1_changed = false;
        self.tables.write().l2.clear();
        let storage = &*self.storage;
        let marked = |refs: u64, entry: u64| if refs == 1 { entry | COPIED } else { entry & !COPIED };
        // Each table once, however often a damaged L1 table refers to it.
        let mut order: Vec<u32> = (0..l1.len() as u32).filter(|i| l1[*i as usize] & OFFSET != 0).collect();
        order.sort_by_key(|i| l1[*i as usize] & OFFSET);
        let mut last = 0;
        for index in order {
            let entry = &mut l1[index as usize];
            let at = *entry & OFFSET;
            if at & (self.cluster_size() - 1) != 0 {
                continue;
            }
            let refs = meta.refs.get(storage, at >> self.cluster_bits)?;
            l1_changed |= marked(refs, *entry) != *entry;
            *entry = marked(refs, *entry);
            if std::mem::replace(&mut last, at) == at {
                continue;
            }
            self.change_table(at, |entry| {
                Ok(match self.mapping(entry) {
                    Ok(Mapping::Data { host, .. } | Mapping::Zero { host, .. }) if host != 0 => {
                        marked(meta.refs.get(storage, host >> self.cluster_bits)?, entry)
                    }
                    // Of a compressed cluster nobody is the only owner.
                    Ok(Mapping::Compressed { .. }) => entry & !COPIED | COMPRESSED,
                    _ => entry,
                })
            })?;
        }
        if l1_changed {
            write_numbers(&*self.storage, meta.header.l1_offset, &l1)?;
        }
        self.tables.write().l1 = l1;
        self.storage.flush()
    }

    /// Writes the table of snapshots anew, and has the header name it.
    fn write_snapshots(&self, meta: &mut Meta, list: Vec<Entry>) -> io::Result<()> {
        let size = |list: &[Entry]| list.iter().map(|s| s.to_bytes().len() as u64).sum::<u64>();
        let old = (meta.header.snapshots_offset, size(&meta.snapshots));
        let bytes: Vec<u8> = list.iter().flat_map(Entry::to_bytes).collect();
        let at = if bytes.is_empty() {
            0
        } else {
            let at = self.allocate(meta, (bytes.len() as u64).div_ceil(self.cluster_size()))?;
            self.storage.write_at(at, &bytes)?;
            at
        };
        meta.refs.write_back(&*self.storage, true)?;
        meta.header.snapshots = list.len() as u32;
        meta.header.snapshots_offset = at;
        meta.snapshots = list;
        self.write_header(meta)?;
        if old.1 > 0 {
            let first = old.0 >> self.cluster_bits;
            for cluster in first..first + old.1.div_ceil(self.cluster_size()) {
                self.drop_reference(meta, cluster)?;
            }
        }
        Ok(())
    }
}
