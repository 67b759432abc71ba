//! Virtual PC's VHD (`vpc`): fixed and dynamic images, read and write, and differencing ones, which are only read.
//!
//! Layout after Microsoft's "Virtual Hard Disk Image Format Specification", version 1.0: a footer of 512 bytes at the
//! end, and for dynamic images a copy of it at the start, a header, a table of 32-bit sector numbers, and blocks with
//! a bitmap of sectors before each. All big-endian.
//!
//! A program that computes with cylinders, heads and sectors takes the disk's size from these, others take it from the
//! footer: as QEMU does, we go by the program's name in it.
use crate::blocks::{Blocks, Layout, MAX_ENTRIES, uuid};
use crate::differencing::{self, Block, Differencing};
use crate::image::{Details, Extent, Image, within};
use crate::storage::{Storage, be32, be64, damaged};
use parking_lot::Mutex;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

const BLOCK: u64 = 2 << 20;
const UNUSED: u32 = 0xffff_ffff;
/// The most that cylinders, heads and sectors can say: 65535 x 16 x 255.
const MAX_GEOMETRY: u64 = 65_535 * 16 * 255;
/// 2040 GiB.
const MAX_SIZE: u64 = 0xff00_0000 * 512;
/// Seconds from 1970 to 2000.
const EPOCH: u64 = 946_684_800;

struct Vhd {
    table: u64,
    /// Bytes of the table, and where the header is.
    table_len: u64,
    header: u64,
    block_size: u64,
    footer: Vec<u8>,
}

impl Vhd {
    /// Bytes of a block's bitmap.
    fn bitmap(&self) -> u64 {
        (self.block_size / 512 / 8).next_multiple_of(512)
    }
}

impl Layout for Vhd {
    fn format(&self) -> &'static str {
        "vpc"
    }

    fn details(&self) -> Details {
        Details { cluster_size: Some(self.block_size), ..Details::default() }
    }

    fn data(&self, entry: u32) -> Option<u64> {
        (entry != UNUSED).then(|| u64::from(entry) * 512 + self.bitmap())
    }

    fn taken(&self, entry: u32) -> Option<Range<u64>> {
        self.data(entry).map(|at| at - self.bitmap()..at + self.block_size)
    }

    fn identity(&self) -> Option<[u8; 16]> {
        Some(unique(&self.footer))
    }

    fn own(&self) -> Vec<Range<u64>> {
        vec![0..512, self.header..self.header + 1024, self.table..self.table + self.table_len]
    }

    fn grow(&self, storage: &dyn Storage, _: usize, end: u64) -> io::Result<(u32, u64)> {
        let entry = u32::try_from(end / 512).map_err(|_| io::Error::from(io::ErrorKind::StorageFull))?;
        let new_end = end + self.bitmap() + self.block_size;
        // There is a footer at the end at all times; the old one's place is the bitmap's.
        let len = storage.len()?;
        storage.write_at(new_end, &self.footer)?;
        // What a block that was never linked in has left there is not this one's.
        if len > end + 512 {
            storage.zero_at(end, len.min(new_end) - end, false)?;
        }
        storage.write_at(end, &vec![0xff; self.bitmap() as usize])?;
        Ok((entry, new_end))
    }

    fn entry(&self, index: usize, entry: u32) -> (u64, [u8; 4]) {
        (self.table + index as u64 * 4, entry.to_be_bytes())
    }
}

/// The sum that a footer or a header has of itself: without the four bytes at `at`, which hold it.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let counted = bytes.iter().enumerate().filter(|(i, _)| !(at..at + 4).contains(i));
    !counted.fold(0u32, |sum, (_, b)| sum.wrapping_add(u32::from(*b)))
}

/// The number that an image has for those that stand on it.
fn unique(footer: &[u8]) -> [u8; 16] {
    footer[68..84].try_into().expect("sixteen bytes")
}

/// What a differencing image says of its parent.
pub struct Parent {
    /// Its name, relative to the image's folder.
    pub name: String,
    /// The number that it has.
    pub identity: [u8; 16],
}

/// Most bytes of a locator's text.
const LOCATOR: u64 = 4096;

/// The parent of the image in `storage`, if it has one. Its relative name is taken (`W2ru`); if there is none the last
/// part of the absolute one, or of the name in the header: those folders are of another machine.
///
/// # Errors
/// It is damaged; the host's.
pub fn parent(storage: &dyn Storage) -> io::Result<Option<Parent>> {
    let footer = footer(storage)?;
    if be32(&footer, 60) != DIFFERENCING {
        return Ok(None);
    }
    let (_, header) = header(storage, &footer)?;
    let wide = |bytes: &[u8], big: bool| {
        let units = bytes.chunks_exact(2).map(|b| {
            let pair = [b[0], b[1]];
            if big { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) }
        });
        char::decode_utf16(units.take_while(|c| *c != 0)).collect::<Result<String, _>>().ok()
    };
    let (mut relative, mut absolute) = (None, None);
    for locator in header[576..768].chunks_exact(24) {
        let (len, at) = (u64::from(be32(locator, 8)), be64(locator, 16));
        let place = match &locator[..4] {
            b"W2ru" => &mut relative,
            b"W2ku" => &mut absolute,
            _ => continue,
        };
        if len > LOCATOR {
            return Err(damaged(format!("a parent's name of {len} bytes cannot be")));
        }
        let mut text = vec![0; len as usize];
        storage.read_at(at, &mut text)?;
        *place = wide(&text, false).map(|name| name.replace('\\', "/")).filter(|name| !name.is_empty());
    }
    let last = |name: String| name.rsplit('/').next().map(str::to_owned).filter(|name| !name.is_empty());
    let in_header = || wide(&header[64..576], true).map(|name| name.replace('\\', "/"));
    let name = relative.or_else(|| absolute.or_else(in_header).and_then(last));
    let name = name.ok_or_else(|| damaged("it has a parent, and no name of it"))?;
    let identity = header[40..56].try_into().expect("sixteen bytes");
    Ok(Some(Parent { name: name.trim_start_matches("./").into(), identity }))
}

/// The footer, or its copy at the start.
fn footer(storage: &dyn Storage) -> io::Result<Vec<u8>> {
    let at_end = match storage.len()?.checked_sub(512) {
        Some(at) => read_footer(storage, at)?,
        None => None,
    };
    match at_end {
        Some(footer) => Ok(footer),
        None => {
            read_footer(storage, 0)?.ok_or_else(|| damaged("there is no VHD footer with a right checksum"))
        }
    }
}

/// The header of a dynamic or differencing image, and where it is.
fn header(storage: &dyn Storage, footer: &[u8]) -> io::Result<(u64, Vec<u8>)> {
    let at = be64(footer, 16);
    if at >= storage.len()? {
        return Err(damaged("the header is beyond the file's end"));
    }
    let mut header = vec![0; 1024];
    storage.read_at(at, &mut header)?;
    if !header.starts_with(b"cxsparse") || be32(&header, 36) != checksum(&header, 36) {
        return Err(damaged("the dynamic disk's header is not there, or its checksum is wrong"));
    }
    Ok((at, header))
}

fn read_footer(storage: &dyn Storage, at: u64) -> io::Result<Option<Vec<u8>>> {
    let mut footer = vec![0; 512];
    storage.read_at(at, &mut footer)?;
    let right = footer.starts_with(b"conectix") && be32(&footer, 64) == checksum(&footer, 64);
    Ok(right.then_some(footer))
}

/// A footer's type of disk.
const DIFFERENCING: u32 = 4;

/// Opens the image in `storage`; `parent` is what a differencing one stands on.
///
/// # Errors
/// It is none, is damaged, or asks for what is not there; the host's.
pub fn open(
    storage: Arc<dyn Storage>,
    read_only: bool,
    parent: Option<(String, Option<Arc<dyn Image>>)>,
) -> io::Result<Arc<dyn Image>> {
    let len = storage.len()?;
    let footer = footer(&*storage)?;
    match be32(&footer, 60) {
        2 => {
            let size = size_of(&footer).min(len.saturating_sub(512));
            return Ok(Arc::new(Fixed { storage, size, read_only, identity: unique(&footer) }));
        }
        3 => {}
        DIFFERENCING if read_only => {}
        DIFFERENCING => return Err(differencing::only_read()),
        n => return Err(damaged(format!("disk type {n} is unknown"))),
    }
    let (header_at, header) = header(&*storage, &footer)?;
    let (table_at, entries, block_size) =
        (be64(&header, 16), u64::from(be32(&header, 28)), u64::from(be32(&header, 32)));
    if !block_size.is_power_of_two() || !(4096..=256 << 20).contains(&block_size) {
        return Err(damaged(format!("blocks of {block_size} bytes cannot be")));
    }
    if entries > MAX_ENTRIES {
        return Err(damaged(format!("{entries} blocks are too many")));
    }
    if table_at >= len || table_at + entries * 4 > len {
        return Err(damaged("the table of blocks is beyond the file's end"));
    }
    let size = size_of(&footer);
    if size > entries * block_size {
        return Err(damaged("the table of blocks is too small for the disk"));
    }
    let mut bytes = vec![0; entries as usize * 4];
    storage.read_at(table_at, &mut bytes)?;
    let table: Vec<u32> = bytes.chunks_exact(4).map(|e| be32(e, 0)).collect();
    let layout = Vhd { table: table_at, table_len: entries * 4, header: header_at, block_size, footer };
    // After all blocks, whatever the file's length is: what a footer of a write that did not end has left.
    let last = table.iter().filter_map(|e| layout.data(*e)).max();
    let tables_end = (table_at + entries * 4).next_multiple_of(512).max(header_at + 1024);
    let end = last.map_or(0, |data| data + block_size).max(tables_end);
    if end > len.next_multiple_of(512) {
        return Err(damaged("a block is beyond the file's end"));
    }
    if let Some((name, parent)) = parent {
        let bitmap = layout.bitmap();
        return Ok(Arc::new(Differencing {
            storage,
            format: "vpc",
            size,
            block_size,
            bitmap,
            table,
            identity: layout.identity(),
            entry: Box::new(move |entry| layout.data(entry).map_or(Block::Parent, Block::Own)),
            parent,
            parent_name: Some(name),
            last: Mutex::default(),
        }));
    }
    Ok(Arc::new(Blocks::new(storage, Box::new(layout), read_only, size, block_size, table, end)))
}

/// The disk's bytes, as the program meant them that has made the image.
fn size_of(footer: &[u8]) -> u64 {
    let by_size = [b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS", b"wa\0\0"];
    let current = be64(footer, 48);
    let cylinders = u64::from(u16::from_be_bytes([footer[56], footer[57]]));
    let sectors = cylinders * u64::from(footer[58]) * u64::from(footer[59]);
    if by_size.iter().any(|app| footer[28..32] == app[..]) || sectors == MAX_GEOMETRY {
        return current & !511;
    }
    sectors * 512
}

/// Cylinders, heads and sectors for a disk, as the specification's appendix computes them.
fn geometry(sectors: u64) -> (u16, u8, u8) {
    let sectors = sectors.min(MAX_GEOMETRY);
    let (mut per_track, mut heads, mut tracks);
    if sectors >= 65_535 * 16 * 63 {
        (per_track, heads) = (255, 16);
        tracks = sectors / per_track;
    } else {
        per_track = 17;
        tracks = sectors / per_track;
        heads = tracks.div_ceil(1024).max(4);
        if tracks >= heads * 1024 || heads > 16 {
            (per_track, heads) = (31, 16);
            tracks = sectors / per_track;
        }
        if tracks >= heads * 1024 {
            (per_track, heads) = (63, 16);
            tracks = sectors / per_track;
        }
    }
    ((tracks / heads) as u16, heads as u8, per_track as u8)
}

/// Makes a new image in `storage`, which is empty.
///
/// # Errors
/// The disk is too large, or no multiple of a sector; the host's.
pub fn create(storage: &dyn Storage, size: u64, fixed: bool) -> io::Result<()> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text);
    if size > MAX_SIZE {
        return Err(invalid("a VHD image has at most 2040 GiB"));
    }
    if !size.is_multiple_of(512) {
        return Err(invalid("a VHD image has whole sectors of 512 bytes"));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let mut footer = vec![0; 512];
    footer[..8].copy_from_slice(b"conectix");
    footer[11] = 2;
    footer[13] = 1;
    footer[16..24].copy_from_slice(&if fixed { u64::MAX } else { 512 }.to_be_bytes());
    footer[24..28].copy_from_slice(&(now.saturating_sub(EPOCH) as u32).to_be_bytes());
    // A name that has readers go by the size below.
    footer[28..40].copy_from_slice(b"qem2\0\x05\0\x03Wi2k");
    footer[40..48].copy_from_slice(&size.to_be_bytes());
    footer[48..56].copy_from_slice(&size.to_be_bytes());
    let (cylinders, heads, per_track) = geometry(size / 512);
    footer[56..58].copy_from_slice(&cylinders.to_be_bytes());
    (footer[58], footer[59]) = (heads, per_track);
    footer[63] = if fixed { 2 } else { 3 };
    footer[68..84].copy_from_slice(&uuid());
    let sum = checksum(&footer, 64);
    footer[64..68].copy_from_slice(&sum.to_be_bytes());
    if fixed {
        return storage.write_at(size, &footer);
    }
    let entries = size.div_ceil(BLOCK);
    let mut header = vec![0; 1024];
    header[..16].copy_from_slice(b"cxsparse\xff\xff\xff\xff\xff\xff\xff\xff");
    header[16..24].copy_from_slice(&1536u64.to_be_bytes());
    header[25] = 1;
    header[28..32].copy_from_slice(&(entries as u32).to_be_bytes());
    header[32..36].copy_from_slice(&(BLOCK as u32).to_be_bytes());
    let sum = checksum(&header, 36);
    header[36..40].copy_from_slice(&sum.to_be_bytes());
    let table = vec![0xff; (entries as usize * 4).next_multiple_of(512)];
    storage.write_at(0, &footer)?;
    storage.write_at(512, &header)?;
    storage.write_at(1536, &table)?;
    storage.write_at(1536 + table.len() as u64, &footer)
}

/// A fixed image: the disk, and the footer after it.
struct Fixed {
    storage: Arc<dyn Storage>,
    size: u64,
    read_only: bool,
    identity: [u8; 16],
}

impl Fixed {
    fn may_write(&self, at: u64, len: u64) -> io::Result<()> {
        within(self.size, at, len)?;
        if self.read_only {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the image is read-only"));
        }
        Ok(())
    }
}

impl Image for Fixed {
    fn format(&self) -> &'static str {
        "vpc"
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        within(self.size, at, buf.len() as u64)?;
        self.storage.read_at(at, buf)
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.may_write(at, data.len() as u64)?;
        self.storage.write_at(at, data)
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.storage.flush() }
    }

    fn zero(&self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.may_write(at, len)?;
        self.storage.zero_at(at, len, unmap)
    }

    fn identity(&self) -> Option<[u8; 16]> {
        Some(self.identity)
    }

    fn extent(&self, at: u64) -> io::Result<Extent> {
        let (len, data) = self.storage.extent_at(at)?;
        let len = len.min(self.size.saturating_sub(at));
        Ok(Extent { len, data, allocated: true, host_offset: Some(at) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::CheckReport;
    use crate::testing::Fragile;

    #[test]
    fn blocks_that_overlap_each_other_or_a_table_are_found() {
        let storage = Arc::new(Fragile::new(Vec::new()));
        create(&*storage, 8 * BLOCK, false).expect("memory");
        let image = open(storage.clone(), false, None).expect("it is new");
        for n in [5, 2, 3] {
            image.write(n * BLOCK, &[7; 512]).expect("memory");
        }
        image.flush().expect("memory");
        assert_eq!(image.check(false).expect("it can be checked"), CheckReport::default());
        drop(image);
        let sound = storage.bytes();
        let entry = |bytes: &[u8], n: usize| be32(bytes, 1536 + n * 4);
        let found = |n: usize, new: u32| {
            let mut bytes = sound.clone();
            bytes[1536 + n * 4..][..4].copy_from_slice(&new.to_be_bytes());
            let image = open(Arc::new(Fragile::new(bytes)), true, None).expect("it can be read");
            image.check(false).expect("it can be checked")
        };
        // In the same place, or in part of it: as far as the last sector of the bitmap before it.
        let two = entry(&sound, 2);
        for (new, corruptions) in [(two, 1), (two + 1, 1), (two - 4096, 2)] {
            let report = found(3, new);
            assert_eq!(report.corruptions, corruptions, "{new}: {:?}", report.messages);
        }
        let report = found(5, 2);
        assert!(report.corruptions > 0 && report.messages[0].contains("own tables"), "{:?}", report.messages);
    }
}
