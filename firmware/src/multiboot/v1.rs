//! Multiboot 1 (Multiboot Specification 0.6.96).
use super::{LoadAddresses, basic_memory, check_entry, load_elf, modules_of};
use crate::elf::ElfImage;
use crate::entry::{Entry, reg};
use crate::error::Reason;
use crate::mem::{Fields, GuestMemory};
use crate::place::Places;
use crate::request::LoadRequest;
use crate::tables::Tables;

/// The header's magic number.
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// EAX at the entry.
const LOADED_MAGIC: u64 = 0x2bad_b002;
/// How far into the file the header may stand.
const SEARCH: usize = 8192;

/// Header flag: the kernel must be told of video modes.
const WANTS_VIDEO: u32 = 1 << 2;
/// Header flags that a loader must understand; bits 0 to 2 are defined.
const REQUIRED_UNKNOWN: u32 = 0xfff8;
/// Header flag: the address fields are valid.
const HAS_ADDRESSES: u32 = 1 << 16;

/// Bits of the information structure's flags.
mod info {
    pub const MEMORY: u32 = 1 << 0;
    pub const CMDLINE: u32 = 1 << 2;
    pub const MODS: u32 = 1 << 3;
    pub const ELF_SHDR: u32 = 1 << 5;
    pub const MMAP: u32 = 1 << 6;
    pub const LOADER_NAME: u32 = 1 << 9;
    /// Bytes of the structure up to framebuffer_info.
    pub const SIZE: usize = 116;
}

/// The offset of the header, if the file has one.
pub fn find_header(file: &[u8]) -> Option<usize> {
    (0..file.len().min(SEARCH)).step_by(4).find(|&at| {
        let words = (file.u32_at(at), file.u32_at(at + 4), file.u32_at(at + 8));
        at + 12 <= SEARCH
            && matches!(words, (Some(HEADER_MAGIC), Some(flags), Some(sum))
                if HEADER_MAGIC.wrapping_add(flags).wrapping_add(sum) == 0)
    })
}

/// Loads a multiboot 1 kernel and its modules.
pub(crate) fn load(mem: &dyn GuestMemory, tables: &Tables, req: &LoadRequest<'_>) -> Result<Entry, Reason> {
    let file = req.kernel;
    let bad = |why: String| Reason::bad("multiboot header", why);
    let at = find_header(file).ok_or(Reason::Unknown)?;
    let flags = file.u32_at(at + 4).unwrap_or(0);
    if flags & REQUIRED_UNKNOWN != 0 {
        return Err(bad(format!(
            "it requires features {:#06x}, which Multiboot 1 does not define",
            flags & REQUIRED_UNKNOWN
        )));
    }
    if flags & WANTS_VIDEO != 0 {
        tracing::warn!(kernel = req.kernel_name, "the kernel asks for a video mode; it is started in none");
    }
    let cmdline = super::cmdline(req)?;

    let mut places = Places::new(&tables.e820);
    let (loaded, entry) = if flags & HAS_ADDRESSES != 0 {
        let field =
            |i: usize| file.u32_at(at + 12 + i * 4).ok_or_else(|| bad("its address fields are cut".into()));
        let addresses =
            LoadAddresses { header: field(0)?, load: field(1)?, load_end: field(2)?, bss_end: field(3)? };
        (addresses.load(mem, &mut places, file, at)?, u64::from(field(4)?))
    } else if file.starts_with(b"\x7fELF") {
        let loaded = load_elf(mem, &mut places, ElfImage::parse(file)?, 0)?;
        let entry = loaded.entry.unwrap_or(0);
        (loaded, entry)
    } else {
        return Err(bad("it has no load addresses, and the file is no ELF file".into()));
    };
    let entry = check_entry(&loaded, entry)?;
    let modules = super::place_modules(mem, &mut places, &modules_of(req), loaded.end)?;
    let sections = super::place_sections(mem, &mut places, loaded.elf.as_ref(), loaded.end);

    let string = |places: &mut Places, s: &str| -> Result<u32, Reason> {
        let at = places.low("a multiboot string", s.len() as u64 + 1, 1)?;
        mem.write(at, s.as_bytes());
        mem.write(at + s.len() as u64, &[0]);
        Ok(at as u32)
    };
    let mut i = Info([0; info::SIZE]);
    let (lower, upper) = basic_memory(tables);
    i.put(4, lower);
    i.put(8, upper);
    i.put(16, string(&mut places, &cmdline)?);
    let mut flags = info::MEMORY | info::CMDLINE | info::MODS | info::MMAP | info::LOADER_NAME;

    let mut list = Vec::new();
    for m in &modules {
        for word in [m.start, m.end, string(&mut places, m.command)?, 0] {
            list.extend(word.to_le_bytes());
        }
    }
    i.put(20, modules.len() as u32);
    i.put(24, blob(mem, &mut places, "the module list", &list)?);

    if let Some(elf) = loaded.elf.as_ref().filter(|_| !sections.is_empty()) {
        flags |= info::ELF_SHDR;
        i.put(28, u32::from(elf.header.e_shnum));
        i.put(32, u32::from(elf.header.e_shentsize));
        i.put(36, blob(mem, &mut places, "the section headers", &sections)?);
        i.put(40, u32::from(elf.header.e_shstrndx));
    }

    let mut mmap = Vec::new();
    for e in tables.e820.entries() {
        mmap.extend(20u32.to_le_bytes()); // the entry's size, which does not count itself
        mmap.extend(e.base.to_le_bytes());
        mmap.extend(e.len.to_le_bytes());
        mmap.extend((e.kind as u32).to_le_bytes());
    }
    i.put(44, mmap.len() as u32);
    i.put(48, blob(mem, &mut places, "the memory map", &mmap)?);
    i.put(64, string(&mut places, super::LOADER_NAME)?);
    i.put(0, flags);
    let info_at = blob(mem, &mut places, "the multiboot information", &i.0)?;

    let mut e = Entry::flat32(mem, &mut places, entry)?;
    e.gpr[reg::RAX] = LOADED_MAGIC;
    e.gpr[reg::RBX] = info_at.into();
    Ok(e)
}

/// The information structure. Offsets are the specification's.
struct Info([u8; info::SIZE]);

impl Info {
    fn put(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

fn blob(mem: &dyn GuestMemory, places: &mut Places, what: &str, data: &[u8]) -> Result<u32, Reason> {
    if data.is_empty() {
        return Ok(0);
    }
    let at = places.low(what, data.len() as u64, 16)?;
    mem.write(at, data);
    Ok(at as u32)
}

#[cfg(test)]
#[path = "v1_tests.rs"]
mod tests;
