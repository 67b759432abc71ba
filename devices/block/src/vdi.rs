//! VirtualBox's VDI: dynamic and static images, read and write. Differencing ones are only read; other block
//! sizes are refused.
//!
//! Layout after VirtualBox's `VDICore.h` and QEMU's `block/vdi.c`: a header of 512 bytes, a map of 32-bit block
//! numbers, blocks of 1 MiB. All little-endian.
use crate::blocks::{Blocks, Layout, MAX_ENTRIES, uuid};
use crate::differencing::{self, Block, Differencing};
use crate::image::{Details, Image};
use crate::storage::{Storage, damaged, le32, le64, unsupported};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Bytes 64 to 67.
pub const SIGNATURE: u32 = 0xbeda_107f;
const BLOCK: u64 = 1 << 20;
/// A block that is not there, and one that is zeros: entries from the second on.
const FREE: u32 = 0xffff_ffff;
const ZERO: u32 = 0xffff_fffe;

/// Where the header has the number of blocks that are there.
const COUNT: u64 = 388;
/// Header and map are written together up to this many bytes: entries of 16 GiB of a disk.
const TOGETHER: u64 = 64 << 10;

/// How many blocks are there.
fn allocated(table: &[u32]) -> u32 {
    table.iter().filter(|entry| **entry < ZERO).count() as u32
}

/// The header's type of such an image.
const DIFFERENCING: u32 = 4;

struct Vdi {
    map: u64,
    data: u64,
    identity: Option<[u8; 16]>,
}

/// The number of the parent of the image in `storage`, if it has one: VirtualBox has no name of it in the file.
///
/// # Errors
/// The host's.
pub fn parent(storage: &dyn Storage) -> io::Result<Option<[u8; 16]>> {
    let mut head = vec![0; 512];
    storage.read_at(0, &mut head)?;
    Ok((le32(&head, 76) == DIFFERENCING).then(|| head[424..440].try_into().expect("sixteen bytes")))
}

impl Layout for Vdi {
    fn format(&self) -> &'static str {
        "vdi"
    }

    fn details(&self) -> Details {
        Details { cluster_size: Some(BLOCK), ..Details::default() }
    }

    fn data(&self, entry: u32) -> Option<u64> {
        (entry < ZERO).then(|| self.data + u64::from(entry) * BLOCK)
    }

    fn taken(&self, entry: u32) -> Option<Range<u64>> {
        self.data(entry).map(|at| at..at + BLOCK)
    }

    fn identity(&self) -> Option<[u8; 16]> {
        self.identity
    }

    /// Blocks are behind them by their numbers.
    fn own(&self) -> Vec<Range<u64>> {
        Vec::new()
    }

    fn counted(&self, storage: &dyn Storage) -> io::Result<Option<u32>> {
        let mut count = [0; 4];
        storage.read_at(COUNT, &mut count)?;
        Ok(Some(u32::from_le_bytes(count)))
    }

    fn set_count(&self, storage: &dyn Storage, count: u32) -> io::Result<()> {
        storage.write_at(COUNT, &count.to_le_bytes())
    }

    fn grow(&self, storage: &dyn Storage, _: usize, end: u64) -> io::Result<(u32, u64)> {
        let number = (end - self.data) / BLOCK;
        let entry = u32::try_from(number).ok().filter(|n| *n < ZERO);
        let entry = entry.ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))?;
        // What a block that was never linked in has left there is not this one's.
        let len = storage.len()?;
        storage.set_len(len.max(end + BLOCK))?;
        if len > end {
            storage.zero_at(end, len.min(end + BLOCK) - end, false)?;
        }
        Ok((entry, end + BLOCK))
    }

    fn entry(&self, index: usize, entry: u32) -> (u64, [u8; 4]) {
        (self.map + index as u64 * 4, entry.to_le_bytes())
    }

    /// QEMU and VirtualBox give a new block the number that the header counts, so an entry may never be in the file
    /// without being counted; and `qemu-img check` takes a count of too many for damage. Both stand in one write
    /// where the map is near enough, so that a process that is killed leaves neither; else the count comes first.
    fn link(&self, storage: &dyn Storage, table: &[u32], new: &BTreeSet<usize>) -> io::Result<()> {
        let Some(last) = new.last() else { return Ok(()) };
        let count = allocated(table).to_le_bytes();
        let len = self.map + (*last as u64 + 1) * 4 - COUNT;
        if len > TOGETHER {
            storage.write_at(COUNT, &count)?;
            storage.flush()?;
            for index in new {
                let (at, bytes) = self.entry(*index, table[*index]);
                storage.write_at(at, &bytes)?;
            }
            return Ok(());
        }
        let mut bytes = vec![0; len as usize];
        storage.read_at(COUNT, &mut bytes)?;
        bytes[..4].copy_from_slice(&count);
        for index in new {
            let (at, entry) = self.entry(*index, table[*index]);
            let at = (at - COUNT) as usize;
            bytes[at..at + 4].copy_from_slice(&entry);
        }
        storage.write_at(COUNT, &bytes)
    }
}

/// Opens the image in `storage`.
///
/// # Errors
/// It is none, is damaged, or asks for what is not there; the host's.
pub fn open(
    storage: Arc<dyn Storage>,
    read_only: bool,
    parent: Option<Arc<dyn Image>>,
) -> io::Result<Arc<dyn Image>> {
    let mut head = vec![0; 512];
    storage.read_at(0, &mut head)?;
    if le32(&head, 64) != SIGNATURE {
        return Err(damaged("not a VDI image"));
    }
    let version = le32(&head, 68);
    if version != 0x0001_0001 {
        return Err(unsupported(format!("VDI version {}.{}", version >> 16, version & 0xffff)));
    }
    match le32(&head, 76) {
        1 | 2 => {}
        3 => return Err(unsupported("an undo image (type 3) is not supported")),
        DIFFERENCING if read_only => {}
        DIFFERENCING => return Err(differencing::only_read()),
        n => return Err(damaged(format!("image type {n} is unknown"))),
    }
    let differs = le32(&head, 76) == DIFFERENCING;
    if !differs && head[424..456].iter().any(|b| *b != 0) {
        return Err(unsupported("it stands on another image, which is not supported"));
    }
    if le32(&head, 360) != 512 || u64::from(le32(&head, 376)) != BLOCK || le32(&head, 380) != 0 {
        return Err(unsupported("only sectors of 512 bytes and blocks of 1 MiB are supported"));
    }
    let (map, data) = (u64::from(le32(&head, 340)), u64::from(le32(&head, 344)));
    let (size, entries) = (le64(&head, 368), u64::from(le32(&head, 384)));
    if entries > MAX_ENTRIES {
        return Err(unsupported(format!("{entries} blocks are more than {MAX_ENTRIES}")));
    }
    if size > entries * BLOCK {
        return Err(damaged("the map of blocks is too small for the disk"));
    }
    if map < 400 || data < map + entries * 4 || !data.is_multiple_of(512) {
        return Err(damaged("the map of blocks and the blocks cannot be there"));
    }
    let len = storage.len()?;
    if map + entries * 4 > len {
        return Err(damaged("the file ends before its map does: it has been cut"));
    }
    let mut bytes = vec![0; entries as usize * 4];
    storage.read_at(map, &mut bytes)?;
    let table: Vec<u32> = bytes.chunks_exact(4).map(|e| le32(e, 0)).collect();
    let last = table.iter().filter(|e| **e < ZERO).max().map_or(0, |n| u64::from(*n) + 1);
    if last * BLOCK > len.saturating_sub(data).next_multiple_of(BLOCK) {
        return Err(damaged("a block is beyond the file's end"));
    }
    let identity = head[392..408].try_into().ok();
    if differs {
        let layout = Vdi { map, data, identity };
        let entry = move |entry| match layout.data(entry) {
            Some(at) => Block::Own(at),
            None if entry == ZERO => Block::Zero,
            None => Block::Parent,
        };
        return Ok(Arc::new(Differencing {
            storage,
            format: "vdi",
            size,
            block_size: BLOCK,
            bitmap: 0,
            table,
            entry: Box::new(entry),
            parent,
            parent_name: None,
            identity,
            last: Mutex::default(),
        }));
    }
    // Whoever wrote here last may have been killed between the count and the map.
    let count = allocated(&table);
    if !read_only && le32(&head, COUNT as usize) != count {
        storage.write_at(COUNT, &count.to_le_bytes())?;
    }
    let end = data + last * BLOCK;
    let layout = Box::new(Vdi { map, data, identity });
    Ok(Arc::new(Blocks::new(storage, layout, read_only, size, BLOCK, table, end)))
}

/// Makes a new image in `storage`, which is empty; `all` of it is there if it is static.
///
/// # Errors
/// The disk is too large; the host's.
pub fn create(storage: &dyn Storage, size: u64, all: bool) -> io::Result<()> {
    let blocks = size.div_ceil(BLOCK);
    if blocks > MAX_ENTRIES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a VDI image has at most 4 TiB"));
    }
    let data = (512 + blocks * 4).next_multiple_of(512);
    let mut head = vec![0; 512];
    let text = b"<<< Mynah VM Virtual Disk Image >>>\n";
    head[..text.len()].copy_from_slice(text);
    let mut put = |at: usize, n: u32| head[at..at + 4].copy_from_slice(&n.to_le_bytes());
    put(64, SIGNATURE);
    put(68, 0x0001_0001);
    put(72, 0x180);
    put(76, if all { 2 } else { 1 });
    put(340, 512);
    put(344, data as u32);
    put(360, 512);
    put(368, size as u32);
    put(372, (size >> 32) as u32);
    put(376, BLOCK as u32);
    put(384, blocks as u32);
    put(388, if all { blocks as u32 } else { 0 });
    head[392..408].copy_from_slice(&uuid());
    head[408..424].copy_from_slice(&uuid());
    storage.write_at(0, &head)?;
    let map: Vec<u8> = (0..blocks as u32).flat_map(|n| if all { n } else { FREE }.to_le_bytes()).collect();
    storage.write_at(512, &map)?;
    storage.set_len(data + if all { blocks * BLOCK } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fragile;

    /// Keeps what the head of the file was after each write: what a process that is killed there leaves.
    struct Killed {
        inner: Fragile,
        head: usize,
        left: Mutex<Vec<Vec<u8>>>,
    }

    impl Storage for Killed {
        fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
            self.inner.read_at(at, buf)
        }

        fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
            self.inner.write_at(at, data)?;
            let mut head = vec![0; self.head];
            self.inner.read_at(0, &mut head)?;
            self.left.lock().push(head);
            Ok(())
        }

        fn flush(&self) -> io::Result<()> {
            self.inner.flush()
        }

        fn len(&self) -> io::Result<u64> {
            self.inner.len()
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.inner.set_len(len)
        }

        fn zero_at(&self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
            self.inner.zero_at(at, len, unmap)
        }

        fn extent_at(&self, at: u64) -> io::Result<(u64, bool)> {
            self.inner.extent_at(at)
        }

        fn allocate(&self, at: u64, len: u64) -> io::Result<()> {
            self.inner.allocate(at, len)
        }
    }

    /// The number that the header has, and that of the map's entries.
    fn counts(head: &[u8], blocks: usize) -> (u32, u32) {
        let table: Vec<u32> = head[512..512 + blocks * 4].chunks_exact(4).map(|e| le32(e, 0)).collect();
        (le32(head, COUNT as usize), allocated(&table))
    }

    #[test]
    fn a_kill_after_any_write_leaves_as_many_blocks_as_the_header_counts() {
        for blocks in [8, 20_000] {
            let inner = Fragile::new(Vec::new());
            create(&inner, blocks * BLOCK, false).expect("memory");
            let blocks = blocks as usize;
            let storage = Arc::new(Killed { inner, head: 512 + blocks * 4, left: Mutex::default() });
            let image = open(storage.clone(), false, None).expect("it is new");
            for index in [3, 1, 6, blocks - 1] {
                image.write(index as u64 * BLOCK + 512, &[7; 512]).expect("memory");
                image.write((index as u64 - 1) * BLOCK, &[8; 512]).expect("memory");
                image.flush().expect("memory");
            }
            let left = storage.left.lock();
            assert_eq!(counts(left.last().expect("writes"), blocks).1, if blocks == 8 { 7 } else { 8 });
            for head in left.iter() {
                let (count, there) = counts(head, blocks);
                // Far from the header the map is written by itself: never more than are counted.
                assert!(count == there || blocks > 8 && count > there, "{blocks} blocks: {count}, {there}");
            }
        }
    }

    #[test]
    fn a_count_that_is_wrong_is_mended_by_who_writes() {
        let storage = Arc::new(Fragile::new(Vec::new()));
        create(&*storage, 4 * BLOCK, false).expect("memory");
        storage.write_at(COUNT, &3u32.to_le_bytes()).expect("memory");
        let count = || le32(&storage.bytes(), COUNT as usize);
        drop(open(storage.clone(), true, None).expect("it is sound"));
        assert_eq!(count(), 3);
        drop(open(storage.clone(), false, None).expect("it is sound"));
        assert_eq!(count(), 0);
    }
}
