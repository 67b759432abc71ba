//! VMware's VMDK, read only: monolithicSparse, streamOptimized, and descriptors with extents that are flat, sparse or
//! zeros (monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat). Images that stand on another one (a parent), and
//! those of ESX (VMFS, COWD), are refused.
//!
//! Layout after VMware's "Virtual Disk Format 5.0": a descriptor, which is text, names extents; a sparse one is a
//! header, a directory of tables of 32-bit sector numbers, and grains, which may be compressed (a marker of 12 bytes
//! and zlib's format). All little-endian. The directory is held, of the tables one entry is read at a time.
use crate::image::{Details, Extent, Image, within};
use crate::storage::{Storage, damaged, le32, le64, unsupported};
use flate2::{Decompress, FlushDecompress};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

const SECTOR: u64 = 512;
/// Most bytes of a descriptor, entries of a directory, and extents.
const MAX_DESCRIPTOR: u64 = 1 << 20;
const MAX_DIRECTORY: u64 = 1 << 20;
const MAX_EXTENTS: usize = 4096;
/// `gdOffset` of a file whose footer has the right one.
const AT_END: u64 = u64::MAX;
const FLAG_ZERO_GRAINS: u32 = 1 << 2;
const FLAG_COMPRESSED: u32 = 1 << 16;

/// Opens the file of an extent, by the name that the descriptor has for it.
pub type OpenExtent<'a> = &'a dyn Fn(&str) -> io::Result<Arc<dyn Storage>>;

/// An open image.
pub struct Vmdk {
    extents: Vec<Part>,
    size: u64,
    grain: Option<u64>,
    kind: String,
}

struct Part {
    start: u64,
    len: u64,
    what: What,
}

enum What {
    Zero,
    Flat(Arc<dyn Storage>, u64),
    Sparse(Sparse),
}

struct Sparse {
    storage: Arc<dyn Storage>,
    grain: u64,
    per_table: u64,
    directory: Vec<u32>,
    flags: u32,
    /// The last grain that was uncompressed, and where it is.
    inflated: Mutex<Option<(u64, Arc<Vec<u8>>)>>,
}

impl Sparse {
    fn open(storage: Arc<dyn Storage>) -> io::Result<(Self, u64)> {
        let mut head = vec![0; 512];
        storage.read_at(0, &mut head)?;
        if le64(&head, 56) == AT_END {
            let len = storage.len()?;
            storage.read_at(len.saturating_sub(1024), &mut head)?;
        }
        if !head.starts_with(b"KDMV") || !(1..=3).contains(&le32(&head, 4)) {
            return Err(damaged("not a sparse extent of a version that is known"));
        }
        let flags = le32(&head, 8);
        let (capacity, grain, per_table) = (le64(&head, 12), le64(&head, 20), u64::from(le32(&head, 44)));
        let directory_at = le64(&head, 56);
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
        let entries = capacity.div_ceil(grain * per_table);
        let at = directory_at.saturating_mul(SECTOR);
        if entries > MAX_DIRECTORY || at.saturating_add(entries * 4) > storage.len()? {
            return Err(damaged("the grain directory cannot be there"));
        }
        let mut bytes = vec![0; entries as usize * 4];
        storage.read_at(at, &mut bytes)?;
        let directory = bytes.chunks_exact(4).map(|e| le32(e, 0)).collect();
        let grain = grain * SECTOR;
        let inflated = Mutex::new(None);
        Ok((Self { storage, grain, per_table, directory, flags, inflated }, capacity * SECTOR))
    }

    /// The sector of the grain that has `at`; `None` for zeros.
    fn entry(&self, at: u64) -> io::Result<Option<u64>> {
        let number = at / self.grain;
        let table = self.directory.get((number / self.per_table) as usize).copied().unwrap_or(0);
        if table == 0 {
            return Ok(None);
        }
        let mut entry = [0; 4];
        self.storage.read_at(u64::from(table) * SECTOR + number % self.per_table * 4, &mut entry)?;
        let entry = le32(&entry, 0);
        let zero = entry == 0 || entry == 1 && self.flags & FLAG_ZERO_GRAINS != 0;
        Ok((!zero).then_some(u64::from(entry)))
    }

    /// Reads what is in one grain.
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let within = at % self.grain;
        let Some(sector) = self.entry(at)? else {
            buf.fill(0);
            return Ok(());
        };
        let host = sector * SECTOR;
        if self.flags & FLAG_COMPRESSED == 0 {
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
}

/// Opens the image in `storage`; `open` opens the files that a descriptor names.
///
/// # Errors
/// It is none, is damaged, or asks for what is not there; it is to be written; the host's.
pub fn open(storage: Arc<dyn Storage>, read_only: bool, open: OpenExtent) -> io::Result<Vmdk> {
    if !read_only {
        return Err(unsupported(
            "VMDK images are only read: say readonly=on, or convert it to another format",
        ));
    }
    let mut head = vec![0; 512];
    storage.read_at(0, &mut head)?;
    if head.starts_with(b"COWD") {
        return Err(unsupported("a VMDK of ESX (COWD) is not supported"));
    }
    if !head.starts_with(b"KDMV") {
        let len = storage.len()?.min(MAX_DESCRIPTOR);
        let mut text = vec![0; len as usize];
        storage.read_at(0, &mut text)?;
        return described(&String::from_utf8_lossy(&text), open);
    }
    let (at, len) = (le64(&head, 28), le64(&head, 36));
    let mut kind = "monolithicSparse".to_string();
    if at > 0 && len > 0 && len <= MAX_DESCRIPTOR / SECTOR && at < 1 << 40 {
        let mut text = vec![0; (len * SECTOR) as usize];
        storage.read_at(at * SECTOR, &mut text)?;
        let text = String::from_utf8_lossy(&text).into_owned();
        no_parent(&text)?;
        kind = value(&text, "createType").unwrap_or(kind);
    }
    let (sparse, size) = Sparse::open(storage)?;
    let grain = Some(sparse.grain);
    Ok(Vmdk { extents: vec![Part { start: 0, len: size, what: What::Sparse(sparse) }], size, grain, kind })
}

/// The value of `name=` in a descriptor.
fn value(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find_map(|l| l.trim().strip_prefix(name)?.trim_start().strip_prefix('='))?;
    Some(line.trim().trim_end_matches('\0').trim_matches('"').to_string())
}

fn no_parent(text: &str) -> io::Result<()> {
    match value(text, "parentCID") {
        Some(id) if !id.eq_ignore_ascii_case("ffffffff") => {
            Err(unsupported("it stands on another image (a parent), which is not supported"))
        }
        _ => Ok(()),
    }
}

/// The image that a descriptor is.
fn described(text: &str, open: OpenExtent) -> io::Result<Vmdk> {
    no_parent(text)?;
    let (mut extents, mut size, mut grain, mut directories) = (Vec::new(), 0u64, None, 0);
    for line in text.lines().map(str::trim) {
        let Some((access, rest)) = line.split_once(' ') else { continue };
        if !matches!(access, "RW" | "RDONLY" | "NOACCESS") {
            continue;
        }
        let wrong = || damaged(format!("the extent '{line}' cannot be read"));
        let (sectors, rest) = rest.trim().split_once(' ').ok_or_else(wrong)?;
        let sectors: u64 = sectors.parse().map_err(|_| wrong())?;
        let len = sectors.checked_mul(SECTOR).filter(|n| *n < 1 << 56).ok_or_else(wrong)?;
        let (kind, rest) = rest.trim().split_once(' ').unwrap_or((rest.trim(), ""));
        let mut quoted = rest.trim().splitn(3, '"');
        let (_, name, after) = (quoted.next(), quoted.next(), quoted.next().unwrap_or_default());
        let name = || name.filter(|n| !n.is_empty()).ok_or_else(wrong);
        let what = match kind {
            "ZERO" => What::Zero,
            "FLAT" => {
                let at = after.trim();
                let at: u64 = if at.is_empty() { 0 } else { at.parse().map_err(|_| wrong())? };
                What::Flat(open(name()?)?, at.checked_mul(SECTOR).filter(|n| *n < 1 << 56).ok_or_else(wrong)?)
            }
            "SPARSE" => {
                let (sparse, capacity) = Sparse::open(open(name()?)?)?;
                if capacity < len {
                    return Err(damaged("an extent is smaller than the descriptor has it"));
                }
                directories += sparse.directory.len() as u64;
                if directories > 4 * MAX_DIRECTORY {
                    return Err(damaged("the grain directories are too large"));
                }
                grain = Some(sparse.grain);
                What::Sparse(sparse)
            }
            other => return Err(unsupported(format!("extents of type {other} are not supported"))),
        };
        if extents.len() >= MAX_EXTENTS {
            return Err(damaged("too many extents"));
        }
        extents.push(Part { start: size, len, what });
        size = size.checked_add(len).ok_or_else(wrong)?;
    }
    if extents.is_empty() {
        return Err(damaged("the descriptor names no extent"));
    }
    let kind = value(text, "createType").unwrap_or_default();
    Ok(Vmdk { extents, size, grain, kind })
}

impl Vmdk {
    /// The extent that has `at`, the place in it, and how many bytes are together there.
    fn part(&self, at: u64) -> io::Result<(&Part, u64, u64)> {
        let index = self.extents.partition_point(|p| p.start + p.len <= at);
        let part = self.extents.get(index).ok_or(io::ErrorKind::InvalidInput)?;
        let within = at - part.start;
        let mut n = part.len - within;
        if let What::Sparse(sparse) = &part.what {
            n = n.min(sparse.grain - within % sparse.grain);
        }
        Ok((part, within, n))
    }

    fn refused<T>() -> io::Result<T> {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "VMDK images are only read"))
    }
}

impl Image for Vmdk {
    fn format(&self) -> &'static str {
        "vmdk"
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read(&self, mut at: u64, mut buf: &mut [u8]) -> io::Result<()> {
        within(self.size, at, buf.len() as u64)?;
        while !buf.is_empty() {
            let (part, place, n) = self.part(at)?;
            let n = n.min(buf.len() as u64);
            let (now, rest) = buf.split_at_mut(n as usize);
            match &part.what {
                What::Zero => now.fill(0),
                What::Flat(storage, start) => storage.read_at(start + place, now)?,
                What::Sparse(sparse) => sparse.read(place, now)?,
            }
            at += n;
            buf = rest;
        }
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Self::refused()
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn zero(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Self::refused()
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Self::refused()
    }

    fn extent(&self, at: u64) -> io::Result<Extent> {
        if at >= self.size {
            return Ok(Extent { len: 0, data: false, allocated: false, host_offset: None });
        }
        let (part, place, len) = self.part(at)?;
        let data = match &part.what {
            What::Zero => false,
            What::Flat(..) => true,
            What::Sparse(sparse) => sparse.entry(place)?.is_some(),
        };
        Ok(Extent { len, data, allocated: data, host_offset: None })
    }

    fn resize(&self, _: u64) -> io::Result<()> {
        Self::refused()
    }

    fn details(&self) -> Details {
        let specific = vec![("create type", crate::image::Detail::Text(self.kind.clone()))];
        Details { cluster_size: self.grain, specific, ..Details::default() }
    }
}
