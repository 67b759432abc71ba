//! The folder of kept code, on hosts that can tell whose a file is: see [`super`].
use super::Counters;
use super::pack::{
    ALIGN, Entry, HEADER, Head, Id, Key, MAX_PACK, MAX_PARTS, MAX_RECORDS, MAX_REGION, Pack, RECORD, Record,
    SUM, View, front,
};
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Timespec, Timestamps};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

/// Regions with the same head that are looked at.
const CANDIDATES: usize = 64;
/// Packs of this key before the smallest are merged, and how many are left then.
const MANY: usize = 8;
const FEW: usize = 4;
/// Packs of this key that are opened, the latest ones: more are not there unless somebody else puts them there.
const MOST: usize = 8 * MANY;
/// Seconds after which a use is worth noting again.
const STALE: u32 = 3600;

/// Opens the folder, which is made if there is none, and checks that it is this user's own and nobody else's.
fn open_folder(path: &Path) -> io::Result<File> {
    if let Err(e) = rustix::fs::mkdirat(CWD, path, Mode::RWXU)
        && e != rustix::io::Errno::EXIST
    {
        // Its parents are those of any cache: with the usual permissions.
        let parent = path.parent().filter(|_| e == rustix::io::Errno::NOENT);
        let Some(parent) = parent else { return Err(e.into()) };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        match rustix::fs::mkdirat(CWD, path, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let denied = |what: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, what.to_owned()));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Ok(d) => File::from(d),
        Err(rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR) => {
            return denied("it is not a folder, but perhaps a link");
        }
        Err(e) => return Err(e.into()),
    };
    let m = dir.metadata()?;
    if m.uid() != rustix::process::geteuid().as_raw() {
        return denied("it belongs to another user");
    }
    if m.mode() & 0o077 != 0 {
        return denied("others may use it; it must have mode 0700");
    }
    Ok(dir)
}

fn now() -> u32 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs() as u32)
}

#[derive(Default)]
struct Index {
    packs: Vec<Pack>,
    /// Pack and record.
    places: FxHashMap<Head, Vec<(u32, u32)>>,
    ids: HashSet<Id>,
}

impl Index {
    fn add(&mut self, pack: Pack) {
        let number = self.packs.len() as u32;
        for (n, r) in pack.records.iter().enumerate().filter(|(_, r)| r.len != 0) {
            self.ids.insert(r.id);
            self.places.entry(r.head).or_default().push((number, n as u32));
        }
        self.packs.push(pack);
    }
}

/// A folder for compiled code, which is this user's own.
pub struct Folder {
    dir: File,
    path: PathBuf,
}

impl Folder {
    /// Opens the folder, which is made if there is none. An error says why it is not to be used: who else can
    /// use it could have code executed.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { dir: open_folder(path)?, path: path.to_owned() })
    }
}

/// The regions of one key on disk.
pub(crate) struct Cache {
    dir: File,
    path: PathBuf,
    key: Key,
    limit: u64,
    /// Bytes that the packs of this key may take.
    share: u64,
    index: RwLock<Index>,
    /// What this process has used, with the heads.
    used: Mutex<HashMap<Id, Record>>,
    /// A write has failed: no more of them.
    broken: AtomicBool,
    names: AtomicU64,
    pub counters: Counters,
}

impl Cache {
    /// The regions of `key` in a folder that may take up to `limit` bytes, of which `share` may be this key's.
    pub fn open(folder: Folder, key: Key, limit: u64, share: u64) -> io::Result<Self> {
        let Folder { dir, path } = folder;
        let counters = Counters::default();
        let mut index = Index::default();
        for name in latest(packs(&dir)?, &key).into_iter().map(|p| p.name) {
            match Pack::open(&dir, &name, &key) {
                Ok(pack) => index.add(pack),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => {
                    tracing::warn!("code cache: {}: {e}; it is not used", path.join(&name).display());
                    counters.refused.fetch_add(1, Ordering::Relaxed);
                    // The name is this key's alone, so there is nothing to be had from it. It is another
                    // matter if the host cannot read it now.
                    if is_verdict(&e) {
                        let _ = rustix::fs::unlinkat(&dir, name.as_str(), AtFlags::empty());
                    }
                }
            }
        }
        Ok(Self {
            dir,
            path,
            key,
            limit,
            share: share.min(limit),
            index: RwLock::new(index),
            used: Mutex::default(),
            broken: AtomicBool::new(false),
            names: AtomicU64::new(0),
            counters,
        })
    }

    /// The largest region with this head whose pieces `matches` finds to be the guest's.
    pub fn find(&self, head: Head, matches: impl Fn(&View) -> bool) -> Option<Entry<Vec<u8>>> {
        let index = self.index.read();
        let at = |(pack, record): (u32, u32)| {
            let pack = &index.packs[pack as usize];
            (pack, &pack.records[record as usize])
        };
        let mut found: Vec<(u32, (u32, u32))> = Vec::new();
        for &place in index.places.get(&head).into_iter().flatten().take(CANDIDATES) {
            let (pack, record) = at(place);
            let view = pack.bytes(record).and_then(|b| View::parse(&b[SUM..]));
            if let Some(view) = view.filter(|v| matches(v)) {
                found.push((view.instructions, place));
            }
        }
        found.sort_by_key(|f| std::cmp::Reverse(f.0));
        let mut damaged = Vec::new();
        let entry = found.into_iter().find_map(|(_, place)| {
            let (pack, record) = at(place);
            let Some(copy) = pack.checked(record, &self.key) else {
                pack.damaged.store(true, Ordering::Relaxed);
                damaged.push(place);
                return None;
            };
            // What was looked at above was not checked: only this is what was written.
            let view = View::parse(&copy[SUM..]).filter(|v| matches(v))?;
            pack.used.store(true, Ordering::Relaxed);
            self.used.lock().insert(record.id, *record);
            Some(view.entry())
        });
        drop(index);
        let c = &self.counters;
        match &entry {
            Some(e) => {
                c.hits.fetch_add(1, Ordering::Relaxed);
                c.read.fetch_add(e.code.len() as u64, Ordering::Relaxed);
            }
            None => {
                c.misses.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.forget(head, &damaged);
        entry
    }

    /// Whether a region is there and whole. It was not found when it was looked for, so it may well be
    /// damaged.
    fn has(&self, head: Head, id: Id) -> bool {
        let index = self.index.read();
        if !index.ids.contains(&id) {
            return false;
        }
        let mut damaged = Vec::new();
        let whole = index.places.get(&head).into_iter().flatten().any(|&(p, r)| {
            let pack = &index.packs[p as usize];
            let record = &pack.records[r as usize];
            let whole = record.id == id && pack.checked(record, &self.key).is_some();
            if record.id == id && !whole {
                pack.damaged.store(true, Ordering::Relaxed);
                damaged.push((p, r));
            }
            whole
        });
        drop(index);
        self.forget(head, &damaged);
        whole
    }

    /// Regions are not to be found at these places any more, so that they are compiled and written anew.
    fn forget(&self, head: Head, damaged: &[(u32, u32)]) {
        if damaged.is_empty() {
            return;
        }
        tracing::warn!("code cache: {} damaged regions in {}", damaged.len(), self.path.display());
        self.counters.damaged.fetch_add(damaged.len() as u64, Ordering::Relaxed);
        let Index { packs, places, ids } = &mut *self.index.write();
        let Some(places) = places.get_mut(&head) else { return };
        places.retain(|p| !damaged.contains(p));
        let id = |&(p, r): &(u32, u32)| packs[p as usize].records[r as usize].id;
        for d in damaged.iter().map(id).filter(|d| !places.iter().any(|p| id(p) == *d)) {
            ids.remove(&d);
        }
    }

    /// Writes regions, those that are not there yet, and notes what was used. What cannot be written is
    /// dropped.
    pub fn write<C: AsRef<[u8]>>(&self, entries: &[&Entry<C>]) {
        if self.broken.load(Ordering::Relaxed) {
            return;
        }
        if let Err(e) = self.try_write(entries) {
            tracing::info!("code cache: {} cannot be written: {e}", self.path.display());
            self.broken.store(true, Ordering::Relaxed);
        }
    }

    fn try_write<C: AsRef<[u8]>>(&self, entries: &[&Entry<C>]) -> io::Result<()> {
        let now = now();
        let (mut records, mut pieces) = (Vec::new(), Vec::new());
        let mut offset = 0;
        let mut new = HashSet::new();
        // The latest first, as far as there is room.
        for e in entries.iter().rev() {
            let id = e.id();
            if !new.insert(id) || self.has(e.head(), id) {
                continue;
            }
            let sealed = e.seal(&self.key);
            if sealed.len() as u64 > MAX_REGION || e.pieces.len() > MAX_PARTS {
                continue;
            }
            if offset + sealed.len() as u64 > (self.share / 2).min(MAX_PACK / 2)
                || records.len() as u64 >= MAX_RECORDS / 2
            {
                break;
            }
            records.push(Record { head: e.head(), id, offset, len: sealed.len() as u32, used: now });
            offset = (offset + sealed.len() as u64).next_multiple_of(ALIGN);
            pieces.push(sealed);
        }
        self.note_uses(now, &mut records);
        if records.is_empty() {
            return Ok(());
        }
        let name = self.write_pack(&mut records, pieces.iter().map(Vec::as_slice))?;
        let (count, bytes) = &self.counters.written;
        count.fetch_add(pieces.len() as u64, Ordering::Relaxed);
        bytes.fetch_add(offset, Ordering::Relaxed);
        // From now on they are found there, should the memory for code be too small for them.
        if let Ok(pack) = Pack::open(&self.dir, &name, &self.key) {
            self.index.write().add(pack);
        }
        self.repair()?;
        self.keep_bound(&name)
    }

    /// Writes packs anew in which there was a damaged region.
    fn repair(&self) -> io::Result<()> {
        let damaged: HashSet<String> = {
            let index = self.index.read();
            let list = index.packs.iter().filter(|p| p.damaged.swap(false, Ordering::Relaxed));
            list.map(|p| p.name.clone()).collect()
        };
        if damaged.is_empty() {
            return Ok(());
        }
        // Who has the lock may be at the very pack: it will be found damaged again.
        let Some(_lock) = self.lock() else { return Ok(()) };
        let list: Vec<Listed> = packs(&self.dir)?.into_iter().filter(|p| damaged.contains(&p.name)).collect();
        if list.is_empty() { Ok(()) } else { self.merge(&list, u64::MAX) }
    }

    /// Adds records of what was used, if the last note of it is old.
    fn note_uses(&self, now: u32, records: &mut Vec<Record>) {
        let is_old = |used: u32| now.saturating_sub(used) > STALE;
        let room = (MAX_RECORDS as usize).saturating_sub(records.len());
        for r in self.used.lock().values_mut().filter(|r| is_old(r.used)).take(room) {
            r.used = now;
            records.push(Record { offset: 0, len: 0, ..*r });
        }
        for pack in &self.index.read().packs {
            let age = pack.file.metadata().map_or(0, |m| m.mtime().max(0) as u32);
            if pack.used.load(Ordering::Relaxed) && is_old(age) {
                let stamp = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
                let _ = rustix::fs::futimens(
                    &pack.file,
                    &Timestamps { last_access: stamp, last_modification: stamp },
                );
            }
        }
    }

    /// Writes a pack under a name of its own and then gives it the name that is returned; places and lengths
    /// of the records are filled in.
    fn write_pack<'a>(
        &self,
        records: &mut [Record],
        regions: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> io::Result<String> {
        let mut data = 0;
        for (r, bytes) in records.iter_mut().zip(regions.clone()) {
            (r.offset, r.len) = (data, bytes.len() as u32);
            data = (data + bytes.len() as u64).next_multiple_of(ALIGN);
        }
        let start = HEADER as u64 + RECORD as u64 * records.len() as u64;
        records.iter_mut().filter(|r| r.len != 0).for_each(|r| r.offset += start);
        let front = front(records, data, &self.key);
        // Beyond the limit on file sizes there is not an error, but a signal that ends the process.
        let most = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
        if most.is_some_and(|m| start + data > m) {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the limit on file sizes is too low"));
        }
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        let temporary = format!("tmp-{}-{number}", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // What has this name was left by another process of this number, which has ended.
        let _ = rustix::fs::unlinkat(&self.dir, temporary.as_str(), AtFlags::empty());
        let file = rustix::fs::openat(&self.dir, temporary.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
        let write = || -> io::Result<String> {
            let mut out = BufWriter::with_capacity(1 << 16, File::from(file));
            out.write_all(&front)?;
            for bytes in regions {
                out.write_all(bytes)?;
                let gap = (bytes.len() as u64).next_multiple_of(ALIGN) - bytes.len() as u64;
                out.write_all(&[0; ALIGN as usize][..gap as usize])?;
            }
            out.flush()?;
            let name = format!("{}-{}.pack", hex(&self.key[..8]), hex(&blake3::hash(&front).as_bytes()[..8]));
            rustix::fs::renameat(&self.dir, temporary.as_str(), &self.dir, name.as_str())?;
            Ok(name)
        };
        write().inspect_err(|_| {
            let _ = rustix::fs::unlinkat(&self.dir, temporary.as_str(), AtFlags::empty());
        })
    }

    /// The folder's lock, if nobody else has it.
    fn lock(&self) -> Option<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, "lock", flags, Mode::RUSR | Mode::WUSR).ok()?;
        let file = File::from(file);
        file.try_lock().ok()?;
        Some(file)
    }

    /// Removes whole packs if they take more than this key's share, or more than the limit, but never `new`: first
    /// the longest unused ones of this key, as far as they are beyond its share, then those of the key that has not
    /// been used for longest.
    fn keep_bound(&self, new: &str) -> io::Result<()> {
        let (mut own, others) = self.sorted()?;
        let sum = |list: &[Listed]| list.iter().map(|p| p.len).sum::<u64>();
        let (mut own_total, mut total) = (sum(&own), sum(&own) + sum(&others));
        if own_total <= self.share && total <= self.limit {
            return Ok(());
        }
        // Who has the lock does the same.
        let Some(_lock) = self.lock() else { return Ok(()) };
        let remove = |p: &Listed| rustix::fs::unlinkat(&self.dir, p.name.as_str(), AtFlags::empty()).is_ok();
        own.retain(|p| {
            let goes = own_total > self.share && p.name != new && remove(p);
            if goes {
                (own_total, total) = (own_total - p.len, total - p.len);
            }
            !goes
        });
        for p in others.iter().chain(&own).filter(|p| p.name != new) {
            if total <= self.limit {
                break;
            }
            if remove(p) {
                total -= p.len;
            }
        }
        Ok(())
    }

    /// The folder's packs, this key's own and the others, in the order in which they are to go: own ones by their last
    /// use, others by the last use of anything of their key.
    fn sorted(&self) -> io::Result<(Vec<Listed>, Vec<Listed>)> {
        let (mut own, mut others): (Vec<_>, Vec<_>) =
            packs(&self.dir)?.into_iter().partition(|p| is_of(&p.name, &self.key));
        own.sort_by_key(|p| p.time);
        let mut used: HashMap<String, i64> = HashMap::new();
        for p in &others {
            let last = used.entry(key_of(&p.name).to_owned()).or_insert(p.time);
            *last = p.time.max(*last);
        }
        others.sort_by_cached_key(|p| {
            let key = key_of(&p.name);
            (used.get(key).copied(), key.to_owned(), p.time)
        });
        Ok((own, others))
    }

    /// Makes order: removes what was left unfinished, merges small packs, and leaves out what has not been
    /// used for longest if there is little room left. Takes its time.
    pub fn tidy(&self) {
        if self.broken.load(Ordering::Relaxed) {
            return;
        }
        if let Err(e) = self.try_tidy() {
            tracing::info!("code cache: {} cannot be tidied: {e}", self.path.display());
        }
    }

    fn try_tidy(&self) -> io::Result<()> {
        let Some(_lock) = self.lock() else { return Ok(()) };
        let hour_ago = i64::from(now()) - 3600;
        for f in files(&self.dir)?.iter().filter(|f| f.name.starts_with("tmp-") && f.time < hour_ago) {
            let _ = rustix::fs::unlinkat(&self.dir, f.name.as_str(), AtFlags::empty());
        }
        let remove = |p: &Listed| rustix::fs::unlinkat(&self.dir, p.name.as_str(), AtFlags::empty());
        let (mut own, others) = self.sorted()?;
        for p in own.drain(..own.len().saturating_sub(MOST)) {
            remove(&p)?;
        }
        let sum = |list: &[Listed]| list.iter().map(|p| p.len).sum::<u64>();
        let (mut total, room) = (sum(&own) + sum(&others), self.limit / 4 * 3);
        for p in &others {
            if total <= room {
                break;
            }
            remove(p)?;
            total -= p.len;
        }
        let room = self.share / 4 * 3;
        if sum(&own) > room {
            return self.merge(&own, room / 3 * 2);
        }
        if own.len() > MANY {
            own.sort_by_key(|p| p.len);
            own.truncate(own.len() + 1 - FEW);
            return self.merge(&own, u64::MAX);
        }
        Ok(())
    }

    /// Merges packs into one of up to `room` bytes: what was used last is kept.
    fn merge(&self, list: &[Listed], room: u64) -> io::Result<()> {
        let open = |p: &Listed| Pack::open(&self.dir, &p.name, &self.key).ok();
        let packs: Vec<Pack> = list.iter().filter_map(open).collect();
        let mut best: HashMap<Id, (Record, Option<&Pack>)> = HashMap::new();
        for pack in &packs {
            for r in &pack.records {
                let e = best.entry(r.id).or_insert((Record { len: 0, ..*r }, None));
                e.0.used = e.0.used.max(r.used);
                // A damaged one does not displace a sound one.
                if r.len != 0 && e.1.is_none() && pack.checked(r, &self.key).is_some() {
                    e.0 = Record { used: e.0.used, ..*r };
                    e.1 = Some(pack);
                }
            }
        }
        let mut all: Vec<(Record, Option<&Pack>)> = best.into_values().collect();
        // Uses without a region are notes on packs that are not merged; they come last in the file.
        all.sort_by_key(|(r, p)| (p.is_none(), std::cmp::Reverse(r.used), r.id.0));
        let mut taken = 0;
        all.retain(|(r, _)| {
            taken += u64::from(r.len).next_multiple_of(ALIGN) + RECORD as u64;
            taken <= room.min(MAX_PACK - HEADER as u64)
        });
        all.truncate(MAX_RECORDS as usize);
        let mut records: Vec<Record> = all.iter().map(|a| a.0).collect();
        let regions: Vec<&[u8]> = all.iter().filter_map(|(r, p)| p.as_ref()?.bytes(r)).collect();
        if regions.len() != all.iter().filter(|a| a.1.is_some()).count() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a pack has become shorter"));
        }
        let name = self.write_pack(&mut records, regions.iter().copied())?;
        for p in list.iter().filter(|p| p.name != name) {
            let _ = rustix::fs::unlinkat(&self.dir, p.name.as_str(), AtFlags::empty());
        }
        Ok(())
    }

    /// Regions that can be found.
    pub fn len(&self) -> usize {
        self.index.read().ids.len()
    }
}

/// Whether an error says that a file is not to be used, ever.
fn is_verdict(e: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, PermissionDenied, UnexpectedEof};
    matches!(e.kind(), InvalidData | PermissionDenied | UnexpectedEof)
        || e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// A file of the folder.
struct Listed {
    name: String,
    len: u64,
    /// Seconds of the last change.
    time: i64,
}

/// The folder's plain files and links.
fn files(dir: &File) -> io::Result<Vec<Listed>> {
    let mut list = Vec::new();
    for f in Dir::read_from(dir)? {
        let f = f?;
        let Ok(name) = f.file_name().to_str() else { continue };
        if matches!(f.file_type(), FileType::Directory) {
            continue;
        }
        let Ok(m) = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        list.push(Listed { name: name.to_owned(), len: m.st_size as u64, time: m.st_mtime });
    }
    Ok(list)
}

/// The packs in the folder, of all keys.
fn packs(dir: &File) -> io::Result<Vec<Listed>> {
    let is_pack = |n: &str| {
        n.strip_suffix(".pack").and_then(|n| n.split_once('-')).is_some_and(|(a, b)| {
            let hex = |s: &str| s.len() == 16 && s.bytes().all(|c| c.is_ascii_hexdigit());
            hex(a) && hex(b)
        })
    };
    let mut list = files(dir)?;
    list.retain(|f| is_pack(&f.name));
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}

/// The packs of a key that are opened: the latest.
fn latest(mut list: Vec<Listed>, key: &Key) -> Vec<Listed> {
    list.retain(|p| is_of(&p.name, key));
    list.sort_by_key(|p| std::cmp::Reverse(p.time));
    list.truncate(MOST);
    list
}

/// The part of a pack's name that stands for its key.
fn key_of(name: &str) -> &str {
    name.split_once('-').map_or(name, |n| n.0)
}

/// Whether a pack is of a key, by its name.
fn is_of(name: &str, key: &Key) -> bool {
    name.starts_with(&hex(&key[..8]))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::LIMIT;
    use crate::cache::pack::Piece;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("mynah-cache-{}-{name}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            Self(path)
        }
        fn open(&self, key: u8, limit: u64) -> Cache {
            self.open_share(key, limit, limit)
        }
        fn open_share(&self, key: u8, limit: u64, share: u64) -> Cache {
            Cache::open(Folder::open(&self.0).unwrap(), [key; 32], limit, share).unwrap()
        }
        fn size(&self) -> u64 {
            packs(&File::open(&self.0).unwrap()).unwrap().iter().map(|p| p.len).sum()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// Region `n`, of some 2,000 bytes.
    fn region(n: u32) -> Entry<Vec<u8>> {
        let piece = |delta: i64| Piece { delta, bytes: [n.to_le_bytes(), [delta as u8; 4]].concat().into() };
        Entry {
            mode: 7,
            instructions: 9,
            ops: 10,
            pieces: [piece(0), piece(64)].into(),
            code: vec![n as u8; 2000],
        }
    }

    fn has(c: &Cache, n: u32) -> bool {
        let want = region(n);
        let found = c.find(want.head(), |v| v.pieces().eq(want.pieces.iter().map(|p| (p.delta, &*p.bytes))));
        assert!(found.as_ref().is_none_or(|f| *f == want));
        found.is_some()
    }

    fn write(c: &Cache, list: impl Iterator<Item = u32>) {
        let list: Vec<_> = list.map(region).collect();
        c.write(&list.iter().collect::<Vec<_>>());
    }

    /// Sets the times of the last use of all that is in the folder, by number.
    fn age(dir: &Scratch, key: u8, age_of: impl Fn(&Entry<Vec<u8>>) -> u32) {
        let c = dir.open(key, LIMIT);
        for listed in packs(&c.dir).unwrap() {
            let pack = Pack::open(&c.dir, &listed.name, &c.key).unwrap();
            let copies: Vec<Vec<u8>> = pack.records.iter().map(|r| pack.bytes(r).unwrap().to_vec()).collect();
            let mut records = pack.records.clone();
            for (r, copy) in records.iter_mut().zip(&copies) {
                r.used = now() - age_of(&View::parse(&copy[SUM..]).unwrap().entry());
            }
            std::fs::remove_file(dir.0.join(&listed.name)).unwrap();
            c.write_pack(&mut records, copies.iter().map(Vec::as_slice)).unwrap();
        }
    }

    fn number(e: &Entry<Vec<u8>>) -> u32 {
        u32::from_le_bytes(e.pieces[0].bytes[..4].try_into().unwrap())
    }

    #[test]
    fn what_is_written_is_found_by_the_next_and_by_its_own_bytes_only() {
        let dir = Scratch::new("found");
        let c = dir.open(1, LIMIT);
        assert!(!has(&c, 1));
        write(&c, 0..20);
        assert!((0..20).all(|n| has(&c, n)), "by the writer itself");
        let c = dir.open(1, LIMIT);
        assert_eq!(c.len(), 20);
        assert!((0..20).all(|n| has(&c, n)) && !has(&c, 20));
        assert!(c.find(region(3).head(), |_| false).is_none());
        // Nothing is written twice.
        write(&c, 0..20);
        assert_eq!(packs(&c.dir).unwrap().len(), 1);
        assert_eq!(dir.open(2, LIMIT).len(), 0, "another key has nothing of it");
    }

    #[test]
    fn small_packs_are_merged() {
        let dir = Scratch::new("merged");
        for n in 0..30 {
            let c = dir.open(1, LIMIT);
            c.tidy();
            write(&c, n..n + 1);
        }
        let c = dir.open(1, LIMIT);
        assert!(packs(&c.dir).unwrap().len() <= MANY + 1);
        assert!((0..30).all(|n| has(&c, n)));
        // Who has the packs open goes on with them.
        write(&dir.open(1, LIMIT), 100..200);
        dir.open(1, LIMIT).tidy();
        assert!((0..30).all(|n| has(&c, n)));
    }

    #[test]
    fn what_was_not_used_for_longest_is_left_out_when_room_gets_short() {
        let dir = Scratch::new("lru");
        write(&dir.open(1, LIMIT), 0..100);
        age(&dir, 1, |e| number(e) * 86_400);
        // Region 80 is used now, which is noted.
        let c = dir.open(1, LIMIT);
        assert!(has(&c, 80));
        write(&c, 200..201);
        let before = dir.size();
        let c = dir.open(1, before);
        c.tidy();
        let (after, c) = (dir.size(), dir.open(1, LIMIT));
        assert!(after < before * 3 / 5 && after > before * 2 / 5, "{before} {after}");
        assert!((0..40).all(|n| has(&c, n)) && has(&c, 80) && has(&c, 200));
        assert!((60..80).chain(81..100).all(|n| !has(&c, n)));
    }

    #[test]
    fn the_bound_holds_at_once_and_other_keys_go_first() {
        let dir = Scratch::new("bound");
        let limit = 200 * 2200;
        write(&dir.open(9, limit), 0..90);
        for n in 0..5 {
            write(&dir.open(1, limit), 100 * n..100 * n + 50);
            assert!(dir.size() <= limit);
        }
        assert_eq!(dir.open(9, limit).len(), 0);
        let c = dir.open(1, limit);
        assert!(c.len() >= 100 && has(&c, 400), "{}", c.len());
        // One who has more than there is room for keeps the latest.
        write(&c, 1000..2000);
        assert!(dir.size() <= limit);
        assert!(has(&dir.open(1, limit), 1999));
    }

    /// Bytes of the packs of a key, and a time for all of them, in hours before now.
    fn used_ago(dir: &Scratch, key: u8, hours: Option<u64>) -> u64 {
        let list = packs(&File::open(&dir.0).unwrap()).unwrap();
        let own = list.iter().filter(|p| is_of(&p.name, &[key; 32]));
        for p in own.clone().filter(|_| hours.is_some()) {
            let at = SystemTime::now() - std::time::Duration::from_secs(hours.unwrap_or(0) * 3600);
            File::open(dir.0.join(&p.name)).unwrap().set_modified(at).unwrap();
        }
        own.map(|p| p.len).sum()
    }

    #[test]
    fn one_image_crowds_out_no_more_than_its_share() {
        let dir = Scratch::new("share");
        let (limit, share) = (400 * 2200, 100 * 2200);
        // Three guests of 90 regions each, used one after the other.
        for (key, hours) in [(2, 30), (3, 20), (4, 10)] {
            let c = dir.open_share(key, limit, share);
            write(&c, 0..45);
            write(&c, 45..90);
            used_ago(&dir, key, Some(hours));
        }
        // One that runs ever new code, in several runs and in long ones.
        for n in 0..20 {
            let c = dir.open_share(1, limit, share);
            c.tidy();
            for k in 0..5 {
                write(&c, 1000 * n + 100 * k..1000 * n + 100 * k + 45);
                assert!(used_ago(&dir, 1, None) <= share);
                assert!(dir.size() <= limit);
            }
        }
        assert!(used_ago(&dir, 1, None) > share / 4);
        let left: Vec<usize> = [2, 3, 4].iter().map(|&r| dir.open_share(r, limit, share).len()).collect();
        assert!(left[1..] == [90, 90], "the latest have all that they had: {left:?}");
        // Another one takes its room from whom nobody has used for longest, and not by the piece from everybody.
        used_ago(&dir, 1, Some(5));
        for n in 0..4 {
            write(&dir.open_share(5, limit, share), 45 * n..45 * n + 45);
        }
        assert_eq!(dir.open_share(4, limit, share).len(), 90);
        assert!(dir.open_share(5, limit, share).len() >= 45 && dir.size() <= limit);
    }

    #[test]
    fn an_image_in_use_keeps_its_old_packs() {
        let dir = Scratch::new("in-use");
        let limit = 150 * 2200;
        // Of one that is used now half was written long ago; another was used in between.
        write(&dir.open(2, limit), 0..45);
        used_ago(&dir, 2, Some(30));
        write(&dir.open(3, limit), 0..45);
        used_ago(&dir, 3, Some(10));
        write(&dir.open(2, limit), 45..90);
        write(&dir.open(1, limit), 0..45);
        assert!(dir.size() <= limit);
        assert_eq!([2, 3].map(|key| dir.open(key, limit).len()), [90, 0]);
    }

    #[test]
    fn a_damaged_region_does_not_outlive_a_sound_one_of_its_name() {
        let dir = Scratch::new("sound");
        write(&dir.open(1, LIMIT), 0..3);
        let old = dir.0.join(&packs(&File::open(&dir.0).unwrap()).unwrap()[0].name);
        let mut bytes = std::fs::read(&old).unwrap();
        let len = bytes.len();
        // In the code of the last region.
        bytes[len - 100] ^= 1;
        std::fs::write(&old, bytes).unwrap();
        let c = dir.open(1, LIMIT);
        let gone: Vec<u32> = (0..3).filter(|&n| !has(&c, n)).collect();
        assert_eq!(gone.len(), 1);
        write(&c, 0..3);
        let c = dir.open(1, LIMIT);
        assert!((0..3).all(|n| has(&c, n)));
        assert_eq!(c.counters.damaged.load(Ordering::Relaxed), 0);
        assert!(!old.exists());
    }

    /// The most memory that this process has had, in bytes.
    fn peak() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    #[test]
    fn a_pack_that_says_it_is_huge_costs_nothing() {
        let dir = Scratch::new("huge");
        write(&dir.open(1, LIMIT), 0..3);
        let good = packs(&File::open(&dir.0).unwrap()).unwrap().remove(0).name;
        let (key, own) = good.split_at(17);
        // All index, all data, an index as large as is allowed; and lengths that are no multiple of anything.
        let sizes =
            [(16u64 << 30, (16 << 30) / 40 - 2), (16 << 30, 0), (3 << 30, 1 << 20), (1 << 32, 3 << 20)];
        for (n, (len, count)) in sizes.into_iter().enumerate() {
            let name = format!("{key}{n:016x}.pack");
            assert_ne!(name, own);
            let file = File::create(dir.0.join(&name)).unwrap();
            file.set_len(len).unwrap();
            rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR).unwrap();
            let data = len - HEADER as u64 - count * RECORD as u64;
            let head = [&b"Mynah code   001"[..], &count.to_le_bytes(), &data.to_le_bytes()].concat();
            std::os::unix::fs::FileExt::write_all_at(&file, &head, 0).unwrap();
        }
        let before = peak();
        let c = dir.open(1, LIMIT);
        assert_eq!(c.counters.refused.load(Ordering::Relaxed), 4);
        assert!((0..3).all(|n| has(&c, n)), "the others are as good as ever");
        c.tidy();
        let more = peak().saturating_sub(before);
        assert!(more < 256 << 20, "{more} bytes");
        assert_eq!(packs(&c.dir).unwrap().len(), 1, "what is refused is removed");
    }

    #[test]
    fn of_too_many_packs_the_latest_are_opened_and_the_rest_is_tidied_away() {
        let dir = Scratch::new("many");
        // The oldest has what no other has.
        write(&dir.open(1, LIMIT), 9..10);
        used_ago(&dir, 1, Some(1));
        write(&dir.open(1, LIMIT), 0..3);
        let mut list = packs(&File::open(&dir.0).unwrap()).unwrap();
        list.sort_by_key(|p| p.time);
        let good = list.remove(1).name;
        let bytes = std::fs::read(dir.0.join(&good)).unwrap();
        for n in 0..3 * MOST {
            let path = dir.0.join(format!("{}{n:016x}.pack", &good[..17]));
            std::fs::write(&path, &bytes).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        }
        let c = dir.open(1, LIMIT);
        assert_eq!(c.index.read().packs.len(), MOST);
        c.tidy();
        assert!(packs(&c.dir).unwrap().len() <= MOST);
        let c = dir.open(1, LIMIT);
        assert!((0..3).all(|n| has(&c, n)));
        assert!(!has(&c, 9), "what is beyond is removed without being read");
    }

    #[test]
    fn what_others_left_unfinished_goes_after_an_hour() {
        let dir = Scratch::new("left");
        let c = dir.open(1, LIMIT);
        for (name, hours) in [("tmp-1-0", 2), ("tmp-2-0", 0), ("another", 2)] {
            let f = File::create(dir.0.join(name)).unwrap();
            f.set_modified(SystemTime::now() - std::time::Duration::from_secs(hours * 3600)).unwrap();
        }
        c.tidy();
        let left = |name: &str| dir.0.join(name).exists();
        assert!(!left("tmp-1-0") && left("tmp-2-0") && left("another"));
    }
}
