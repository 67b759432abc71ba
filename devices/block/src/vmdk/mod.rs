//! VMware's VMDK: monolithicSparse, monolithicFlat, twoGbMaxExtentSparse and twoGbMaxExtentFlat are read and written;
//! streamOptimized is read, and written once, as a whole. Images that stand on another one (a parent), and those of
//! ESX (VMFS, COWD), are refused by name.
//!
//! Layout after VMware's "Virtual Disk Format 5.0": a descriptor, which is text, names extents; a sparse one is a
//! header, two copies of a directory of tables of 32-bit sector numbers, and grains, which may be compressed (a marker
//! of 12 bytes and zlib's format). All little-endian. The directory is held, of the tables one entry is read at a time.
//!
//! With the first write the descriptor gets another content identifier (`CID`), and the headers of sparse extents say
//! that somebody writes to them, until the image is closed.
mod create;
mod sparse;
#[cfg(test)]
mod tests;

pub use create::{Kind, Options, create};

use crate::image::{CheckReport, Detail, Details, Extent, Image, within};
use crate::storage::{Storage, damaged, le64, unsupported};
use parking_lot::Mutex;
use sparse::{MAX_DIRECTORY, SECTOR, Sparse};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Most bytes of a descriptor, and extents.
const MAX_DESCRIPTOR: u64 = 1 << 20;
const MAX_EXTENTS: usize = 4096;

/// Opens the file of an extent, by the name that the descriptor has for it, to be read or written.
pub type OpenExtent<'a> = &'a dyn Fn(&str, bool) -> io::Result<Arc<dyn Storage>>;

/// An open image.
pub struct Vmdk {
    extents: Vec<Part>,
    size: u64,
    grain: Option<u64>,
    read_only: bool,
    descriptor: Mutex<Descriptor>,
    begun: AtomicBool,
}

/// The text that says what the image is made of.
struct Descriptor {
    storage: Arc<dyn Storage>,
    at: u64,
    /// Bytes that it may have.
    room: u64,
    text: String,
}

struct Part {
    start: u64,
    len: u64,
    writable: bool,
    name: String,
    what: What,
}

enum What {
    Zero,
    Flat(Arc<dyn Storage>, u64),
    Sparse(Sparse),
}

/// Opens the image in `storage`; `open` opens the files that a descriptor names.
///
/// # Errors
/// It is none, is damaged, or asks for what is not there; the host's.
pub fn open(storage: Arc<dyn Storage>, read_only: bool, open: OpenExtent) -> io::Result<Vmdk> {
    let mut head = vec![0; 512];
    storage.read_at(0, &mut head)?;
    if head.starts_with(b"COWD") {
        return Err(unsupported("a VMDK of ESX (COWD) is not supported"));
    }
    if !head.starts_with(b"KDMV") {
        let text = read_text(&*storage, 0, storage.len()?.min(MAX_DESCRIPTOR))?;
        let descriptor = Descriptor { storage, at: 0, room: MAX_DESCRIPTOR, text };
        return described(descriptor, read_only, open);
    }
    let (at, len) = (le64(&head, 28), le64(&head, 36));
    let there = at > 0 && len > 0 && len <= MAX_DESCRIPTOR / SECTOR && at < 1 << 40;
    let (at, room) = if there { (at * SECTOR, len * SECTOR) } else { (0, 0) };
    let text = read_text(&*storage, at, room)?;
    no_parent(&text)?;
    let (sparse, size) = Sparse::open(storage.clone(), read_only)?;
    let grain = Some(sparse.grain);
    let what = What::Sparse(sparse);
    Ok(Vmdk {
        extents: vec![Part { start: 0, len: size, writable: true, name: String::new(), what }],
        size,
        grain,
        read_only,
        descriptor: Mutex::new(Descriptor { storage, at, room, text }),
        begun: AtomicBool::new(false),
    })
}

fn read_text(storage: &dyn Storage, at: u64, len: u64) -> io::Result<String> {
    let mut text = vec![0; len as usize];
    storage.read_at(at, &mut text)?;
    Ok(String::from_utf8_lossy(&text).trim_end_matches('\0').to_string())
}

/// The value of `name=` in a descriptor.
fn value(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find_map(|l| l.trim().strip_prefix(name)?.trim_start().strip_prefix('='))?;
    Some(line.trim().trim_end_matches('\0').trim_matches('"').to_string())
}

/// An identifier in a descriptor.
fn id(text: &str, name: &str) -> Option<u64> {
    u32::from_str_radix(&value(text, name)?, 16).ok().map(u64::from)
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
fn described(descriptor: Descriptor, read_only: bool, open: OpenExtent) -> io::Result<Vmdk> {
    let text = &descriptor.text;
    no_parent(text)?;
    let (mut extents, mut size, mut grain, mut directories) = (Vec::new(), 0u64, None, 0);
    // Several extents may be parts of one file.
    let mut files: HashMap<(String, bool), Arc<dyn Storage>> = HashMap::new();
    for line in text.lines().map(str::trim) {
        let Some((access, rest)) = line.split_once(' ') else { continue };
        if !matches!(access, "RW" | "RDONLY" | "NOACCESS") {
            continue;
        }
        let writable = access == "RW" && !read_only;
        let wrong = || damaged(format!("the extent '{line}' cannot be read"));
        let (sectors, rest) = rest.trim().split_once(' ').ok_or_else(wrong)?;
        let sectors: u64 = sectors.parse().map_err(|_| wrong())?;
        let len = sectors.checked_mul(SECTOR).filter(|n| *n < 1 << 56).ok_or_else(wrong)?;
        let (kind, rest) = rest.trim().split_once(' ').unwrap_or((rest.trim(), ""));
        let mut quoted = rest.trim().splitn(3, '"');
        let (_, name, after) = (quoted.next(), quoted.next(), quoted.next().unwrap_or_default());
        let mut file = || {
            let name = name.filter(|n| !n.is_empty()).ok_or_else(wrong)?;
            if let Some(file) = files.get(&(name.to_string(), writable)) {
                return Ok(file.clone());
            }
            let file = open(name, writable)?;
            files.insert((name.to_string(), writable), file.clone());
            io::Result::Ok(file)
        };
        let what = match kind {
            "ZERO" => What::Zero,
            "FLAT" => {
                let at = after.trim();
                let at: u64 = if at.is_empty() { 0 } else { at.parse().map_err(|_| wrong())? };
                What::Flat(file()?, at.checked_mul(SECTOR).filter(|n| *n < 1 << 56).ok_or_else(wrong)?)
            }
            "SPARSE" => {
                let (sparse, capacity) = Sparse::open(file()?, !writable)?;
                if capacity < len {
                    return Err(damaged("an extent is smaller than the descriptor has it"));
                }
                directories += sparse.tables();
                if directories > 4 * MAX_DIRECTORY {
                    return Err(damaged("the grain directories are too large"));
                }
                grain = Some(sparse.grain);
                What::Sparse(sparse)
            }
            "VMFS" | "VMFSSPARSE" | "VMFSRDM" | "VMFSRAW" | "SESPARSE" => {
                return Err(unsupported(format!("extents of ESX ({kind}) are not supported")));
            }
            other => return Err(unsupported(format!("extents of type {other} are not supported"))),
        };
        if extents.len() >= MAX_EXTENTS {
            return Err(damaged("too many extents"));
        }
        let name = name.unwrap_or_default().to_string();
        extents.push(Part { start: size, len, writable, name, what });
        size = size.checked_add(len).ok_or_else(wrong)?;
    }
    if extents.is_empty() {
        return Err(damaged("the descriptor names no extent"));
    }
    let (descriptor, begun) = (Mutex::new(descriptor), AtomicBool::new(false));
    Ok(Vmdk { extents, size, grain, read_only, descriptor, begun })
}

impl Descriptor {
    /// Says that what the disk holds is something else now.
    fn renew_id(&mut self) -> io::Result<()> {
        let Some(at) = self.text.lines().find(|l| l.starts_with("CID=")).and_then(|l| self.text.find(l))
        else {
            return Ok(());
        };
        let end = self.text[at..].find(['\n', '\r']).map_or(self.text.len(), |n| at + n);
        let mut text = self.text.clone();
        text.replace_range(at..end, &format!("CID={:08x}", create::new_id()));
        if text.len() as u64 > self.room {
            return Ok(());
        }
        // In one write, with zeros where it has become shorter.
        let mut bytes = text.clone().into_bytes();
        bytes.resize(bytes.len().max(self.text.len()), 0);
        self.storage.write_at(self.at, &bytes)?;
        self.text = text;
        Ok(())
    }
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

    fn sparse(&self) -> impl Iterator<Item = &Sparse> {
        self.extents.iter().filter_map(|part| match &part.what {
            What::Sparse(sparse) if part.writable => Some(sparse),
            _ => None,
        })
    }

    /// Before anything changes the files say so.
    fn begin(&self, at: u64, len: u64) -> io::Result<()> {
        within(self.size, at, len)?;
        if self.read_only {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the image is read-only"));
        }
        if self.begun.load(Relaxed) {
            return Ok(());
        }
        let mut descriptor = self.descriptor.lock();
        if !self.begun.load(Relaxed) {
            descriptor.renew_id()?;
            self.sparse().try_for_each(|sparse| sparse.mark(true))?;
            self.begun.store(true, Relaxed);
        }
        Ok(())
    }

    /// Calls `then` for each extent's part of a range: the extent, the place in it, and which bytes these are.
    fn each(
        &self,
        at: u64,
        len: u64,
        mut then: impl FnMut(&What, u64, std::ops::Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.begin(at, len)?;
        let mut done = 0;
        while done < len {
            let (part, place, n) = self.part(at + done)?;
            let n = n.min(len - done);
            if !part.writable {
                let text = format!("the extent '{}' is read-only", part.name);
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
            }
            then(&part.what, place, done as usize..(done + n) as usize)?;
            done += n;
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        if self.begun.load(Relaxed) {
            self.flush()?;
            self.sparse().try_for_each(|sparse| sparse.mark(false))?;
        }
        Ok(())
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
        self.read_only
    }

    fn compressed_only(&self) -> bool {
        self.extents.iter().any(|part| matches!(&part.what, What::Sparse(sparse) if sparse.compressed()))
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

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.each(at, data.len() as u64, |what, place, range| match what {
            What::Zero if crate::ops::is_zero(&data[range.clone()]) => Ok(()),
            What::Zero => Err(unsupported("it has an extent of zeros, which cannot be written to")),
            What::Flat(storage, start) => storage.write_at(start + place, &data[range]),
            What::Sparse(sparse) => sparse.write(place, &data[range]),
        })
    }

    fn zero(&self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.each(at, len, |what, place, range| match what {
            What::Zero => Ok(()),
            What::Flat(storage, start) => storage.zero_at(start + place, range.len() as u64, unmap),
            What::Sparse(sparse) => sparse.zero(place, range.len() as u64, unmap),
        })
    }

    fn write_compressed(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.each(at, data.len() as u64, |what, place, range| match what {
            What::Sparse(sparse) => sparse.write_compressed(place, &data[range]),
            _ => Err(unsupported("only a streamOptimized vmdk has compressed clusters")),
        })
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        for part in self.extents.iter().filter(|part| part.writable) {
            match &part.what {
                What::Zero => {}
                What::Flat(storage, _) => storage.flush()?,
                What::Sparse(sparse) => sparse.flush()?,
            }
        }
        Ok(())
    }

    fn extent(&self, at: u64) -> io::Result<Extent> {
        if at >= self.size {
            return Ok(Extent { len: 0, data: false, allocated: false, host_offset: None });
        }
        let (part, place, len) = self.part(at)?;
        Ok(match &part.what {
            What::Zero => Extent { len, data: false, allocated: true, host_offset: None },
            What::Flat(storage, start) => {
                let (n, data) = storage.extent_at(start + place)?;
                let (len, data) = if n == 0 { (len, false) } else { (len.min(n), data) };
                Extent { len, data, allocated: true, host_offset: None }
            }
            What::Sparse(sparse) => {
                let data = sparse.entry(place)?.is_some();
                // Only the file itself is one that somebody could look into.
                let host_offset = if self.extents.len() == 1 && part.name.is_empty() {
                    sparse.host_offset(place)?
                } else {
                    None
                };
                Extent { len, data, allocated: data, host_offset }
            }
        })
    }

    fn details(&self) -> Details {
        let text = self.descriptor.lock().text.clone();
        let kind = value(&text, "createType").unwrap_or_else(|| "monolithicSparse".into());
        let mut specific = Vec::new();
        let extents = self.extents.iter().take(64).map(|part| {
            let mut all = vec![("virtual size", Detail::Number(part.len))];
            // Empty is the image's own file.
            all.push(("filename", Detail::Text(part.name.clone())));
            let mut form = "FLAT";
            if let What::Sparse(sparse) = &part.what {
                form = if part.name.is_empty() { "" } else { "SPARSE" };
                all.push(("cluster size", Detail::Number(sparse.grain)));
                if sparse.compressed() {
                    all.push(("compressed", Detail::Switch(true)));
                }
            }
            all.push(("format", Detail::Text(form.into())));
            all
        });
        if let (Some(id), Some(parent)) = (id(&text, "CID"), id(&text, "parentCID")) {
            specific.push(("cid", Detail::Number(id)));
            specific.push(("parent cid", Detail::Number(parent)));
        }
        specific.push(("create type", Detail::Text(kind)));
        specific.push(("extents", Detail::List(extents.collect())));
        Details { cluster_size: self.grain, specific, ..Details::default() }
    }

    fn check(&self, _repair: bool) -> io::Result<CheckReport> {
        let mut report = CheckReport::default();
        for part in &self.extents {
            if let What::Sparse(sparse) = &part.what {
                sparse.check(&mut report)?;
            }
        }
        Ok(report)
    }
}

impl Drop for Vmdk {
    /// What is in memory goes to the file.
    fn drop(&mut self) {
        if let Err(e) = self.close() {
            tracing::warn!("a vmdk image was closed without its last changes: {e}");
        }
    }
}
