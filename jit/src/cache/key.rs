//! What compiled code depends on beside the guest's bytes and mode: a hash of it is the key of what is kept
//! on disk.
use crate::cache::pack::Key;
use crate::clif::compile::Optimize;
use crate::host::features;
use goblin::container::Ctx;
use goblin::elf::note::{NT_GNU_BUILD_ID, NoteDataIterator};
use goblin::elf::program_header::{PT_LOAD, PT_NOTE};
use goblin::elf::{Elf, ProgramHeader};
use mynah_cpu::CpuModel;
use std::fs::File;
use std::io;

/// The key of code made by this process. Reads the program's own file, of which all is hashed, in some ten
/// milliseconds, if its linker has left no build ID in it.
pub(crate) fn cache_key(model: &CpuModel, optimize: Optimize, isa: &str) -> io::Result<Key> {
    let mut h = blake3::Hasher::new_derive_key("Mynah 2026 key of compiled code");
    let mut part = |name: &str, bytes: &[u8]| {
        h.update(&(name.len() as u64).to_le_bytes());
        h.update(name.as_bytes());
        h.update(&(bytes.len() as u64).to_le_bytes());
        h.update(bytes);
    };
    part("build", &build()?);
    part("host", isa.as_bytes());
    part("host CPU", &features::identity());
    part("model", model_text(model).as_bytes());
    part("optimize", format!("{optimize:?}").as_bytes());
    Ok(*h.finalize().as_bytes())
}

/// The part of a key that belongs to the guests of one image, by the image's hash.
pub(crate) fn of_image(key: &Key, image: &[u8; 32]) -> Key {
    *blake3::Hasher::new_keyed(key).update(b"image").update(image).finalize().as_bytes()
}

/// What tells a guest from others: the contents that it is booted from. Two guests with the same are taken for one:
/// they share the code that is kept, so each could tell by the time that its code takes what the other has run.
pub struct Image(Box<Parts>);

/// Calls its argument with each part's name and contents.
type Parts = dyn FnOnce(&mut dyn FnMut(&str, &[u8])) + Send;

impl Image {
    /// An image whose parts `list` calls its argument with, each by its name and contents (or, of what changes as the
    /// guest runs, what stands for them: a disk's identity). It is called on another thread.
    pub fn new(list: impl FnOnce(&mut dyn FnMut(&str, &[u8])) + Send + 'static) -> Self {
        Self(Box::new(list))
    }

    /// A hash of all parts, their names and their order.
    pub(crate) fn hash(self) -> [u8; 32] {
        let mut h = blake3::Hasher::new_derive_key("Mynah 2026 image of a guest");
        (self.0)(&mut |name, contents| {
            for bytes in [name.as_bytes(), contents] {
                h.update(&(bytes.len() as u64).to_le_bytes());
                h.update(bytes);
            }
        });
        *h.finalize().as_bytes()
    }
}

/// What code can depend on of a CPU model: how many cores there are and what it is called are for CPUID
/// alone.
fn model_text(model: &CpuModel) -> String {
    let mut m = model.clone();
    m.set_topology(1, 1, 1);
    m.brand.clear();
    m.name = "";
    format!("{m:?}")
}

/// What tells this program from others: the build ID that its linker made of its contents, with its length; or else a
/// hash of what is loaded of its file, or of all of it.
fn build() -> io::Result<Vec<u8>> {
    let file = File::open("/proc/self/exe").or_else(|_| File::open(std::env::current_exe()?))?;
    let len = file.metadata()?.len();
    let headers = headers(&file);
    if let Some(mut id) = headers.as_ref().and_then(|(headers, context)| build_id(&file, headers, *context)) {
        id.extend(len.to_le_bytes());
        return Ok(id);
    }
    let parts = headers.and_then(|(headers, _)| loaded(&headers)).unwrap_or_else(|| vec![(0, len)]);
    hash(&file, &parts).map(Vec::from)
}

/// Reads some bytes from an offset on.
fn read_at(file: &File, to: &mut [u8], at: u64) -> io::Result<usize> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_at(file, to, at);
    #[cfg(windows)]
    return std::os::windows::fs::FileExt::seek_read(file, to, at);
}

/// Reads bytes from an offset on; `None` if there are not so many.
fn read_exact_at(file: &File, to: &mut [u8], at: u64) -> Option<()> {
    let mut done = 0;
    while done < to.len() {
        done += read_at(file, &mut to[done..], at.checked_add(done as u64)?).ok().filter(|&n| n > 0)?;
    }
    Some(())
}

/// A hash of parts of a file.
fn hash(file: &File, parts: &[(u64, u64)]) -> io::Result<[u8; 32]> {
    let mut h = blake3::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    for &(mut at, end) in parts {
        while at < end {
            let n = (end - at).min(buffer.len() as u64) as usize;
            let n = read_at(file, &mut buffer[..n], at)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            h.update(&buffer[..n]);
            at += n as u64;
        }
    }
    Ok(*h.finalize().as_bytes())
}

/// The program headers of an ELF file, and how it is to be read.
fn headers(file: &File) -> Option<(Vec<ProgramHeader>, Ctx)> {
    let mut header = [0; 64];
    read_exact_at(file, &mut header, 0)?;
    let header = Elf::parse_header(&header).ok()?;
    let context = Ctx::new(header.container().ok()?, header.endianness().ok()?);
    let count = usize::from(header.e_phnum);
    let mut table = vec![0; count * ProgramHeader::size(context)];
    read_exact_at(file, &mut table, header.e_phoff)?;
    Some((ProgramHeader::parse(&table, 0, count, context).ok()?, context))
}

/// The linker's build ID, if it is long enough to tell builds apart.
fn build_id(file: &File, headers: &[ProgramHeader], context: Ctx) -> Option<Vec<u8>> {
    const LONGEST: u64 = 64 << 10;
    headers.iter().filter(|h| h.p_type == PT_NOTE && h.p_filesz <= LONGEST).find_map(|h| {
        let mut data = vec![0; h.p_filesz as usize];
        read_exact_at(file, &mut data, h.p_offset)?;
        let alignment = if h.p_align == 8 { 8 } else { 4 };
        let mut notes =
            NoteDataIterator { data: &data, size: data.len(), offset: 0, ctx: (alignment, context) };
        let id =
            notes.find_map(|note| note.ok().filter(|n| n.n_type == NT_GNU_BUILD_ID && n.name == "GNU"))?;
        (id.desc.len() >= 16).then(|| id.desc.to_vec())
    })
}

/// The parts of a file that are loaded (PT_LOAD): places of their first bytes and of what follows their last ones.
fn loaded(headers: &[ProgramHeader]) -> Option<Vec<(u64, u64)>> {
    let mut parts = vec![(0, 64)];
    for h in headers.iter().filter(|h| h.p_type == PT_LOAD) {
        parts.push((h.p_offset, h.p_offset.checked_add(h.p_filesz)?));
    }
    // Where nothing is loaded something has been misread.
    (parts.len() > 1).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_that_of_features_and_not_of_the_number_of_cores() {
        let of = |text: &str, cores: u32, o: Optimize| {
            let mut m = CpuModel::parse(text).unwrap();
            m.set_topology(1, cores, 1);
            cache_key(&m, o, "host").unwrap()
        };
        let max = of("max", 1, Optimize::Speed);
        assert_eq!(max, of("max", 4, Optimize::Speed));
        assert_ne!(max, of("max", 1, Optimize::None));
        assert_ne!(max, of("max,-avx2", 1, Optimize::Speed));
        assert_ne!(max, of("qemu64", 1, Optimize::Speed));
        assert_ne!(
            max,
            cache_key(&CpuModel::parse("max").unwrap(), Optimize::Speed, "another host").unwrap()
        );
    }

    #[test]
    fn an_image_is_all_of_its_parts_in_their_order() {
        let of = |parts: &'static [(&'static str, &'static [u8])]| {
            Image::new(|add| parts.iter().for_each(|(name, bytes)| add(name, bytes))).hash()
        };
        let kernel = of(&[("kernel", b"abc"), ("initrd", b"def")]);
        assert_eq!(kernel, of(&[("kernel", b"abc"), ("initrd", b"def")]));
        for other in [
            of(&[]),
            of(&[("kernel", b"abc")]),
            of(&[("kernel", b"abd"), ("initrd", b"def")]),
            of(&[("kernel", b"abc"), ("initrd", b"deg")]),
            of(&[("kernel", b"abc"), ("firmware", b"def")]),
            of(&[("initrd", b"def"), ("kernel", b"abc")]),
            of(&[("kernel", b"abcdef"), ("initrd", b"")]),
            // The same bytes one behind the other, parted elsewhere.
            of(&[("kernel", b"abcinitrddef")]),
            of(&[("kernela", b"bc"), ("initrd", b"def")]),
        ] {
            assert_ne!(kernel, other);
        }
        let key = [7; 32];
        assert_ne!(of_image(&key, &kernel), of_image(&key, &of(&[])));
        assert_ne!(of_image(&key, &kernel), of_image(&[8; 32], &kernel));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_loaded_of_this_program_is_most_of_its_code() {
        let file = File::open("/proc/self/exe").unwrap();
        let (headers, context) = headers(&file).unwrap();
        let parts = loaded(&headers).unwrap();
        let bytes: u64 = parts.iter().map(|p| p.1 - p.0).sum();
        assert!(bytes > 1 << 20 && bytes <= file.metadata().unwrap().len() + 64, "{parts:?}");
        assert_eq!(hash(&file, &parts).unwrap(), hash(&file, &parts).unwrap());
        assert_eq!(build().unwrap(), build().unwrap());
        // A linker that is not asked for build IDs makes none.
        if let Some(id) = build_id(&file, &headers, context) {
            assert!(id.iter().any(|b| *b != id[0]), "{id:x?}");
            assert!(build().unwrap().starts_with(&id));
        }
    }
}
