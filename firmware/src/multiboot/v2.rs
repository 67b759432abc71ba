//! Multiboot 2 (Multiboot2 Specification version 2.0): a header and an information structure made of tags.
use super::{LoadAddresses, Loaded, basic_memory, check_entry, load_elf, modules_of};
use crate::elf::ElfImage;
use crate::entry::{Entry, reg};
use crate::error::Reason;
use crate::mem::{FOUR_GIB, Fields, GuestMemory};
use crate::place::{ONE_MIB, Places};
use crate::request::{LoadRequest, Module};
use crate::tables::Tables;

/// The header's magic number.
const HEADER_MAGIC: u32 = 0xe852_50d6;
/// EAX at the entry.
const LOADED_MAGIC: u64 = 0x36d7_6289;
/// How far into the file the header may stand.
const SEARCH: usize = 32768;
/// Header architecture: 32-bit protected mode of i386.
const ARCHITECTURE_I386: u32 = 0;

/// Types of header tags.
mod request {
    pub const END: u16 = 0;
    pub const INFORMATION: u16 = 1;
    pub const ADDRESS: u16 = 2;
    pub const ENTRY_ADDRESS: u16 = 3;
    pub const CONSOLE_FLAGS: u16 = 4;
    pub const FRAMEBUFFER: u16 = 5;
    pub const MODULE_ALIGN: u16 = 6;
    pub const EFI_BOOT_SERVICES: u16 = 7;
    pub const ENTRY_EFI32: u16 = 8;
    pub const ENTRY_EFI64: u16 = 9;
    pub const RELOCATABLE: u16 = 10;
}

/// Types of information tags.
mod info {
    pub const END: u32 = 0;
    pub const CMDLINE: u32 = 1;
    pub const LOADER_NAME: u32 = 2;
    pub const MODULE: u32 = 3;
    pub const BASIC_MEMINFO: u32 = 4;
    pub const MMAP: u32 = 6;
    pub const ELF_SECTIONS: u32 = 9;
    pub const ACPI_OLD: u32 = 14;
    pub const ACPI_NEW: u32 = 15;
    pub const LOAD_BASE_ADDR: u32 = 21;
    /// The last type that the specification defines.
    pub const LAST: u32 = 21;
}

/// The offset of the header, if the file has one.
pub fn find_header(file: &[u8]) -> Option<usize> {
    (0..file.len().min(SEARCH)).step_by(8).find(|&at| {
        let word = |i: usize| file.u32_at(at + i * 4);
        matches!((word(0), word(1), word(2), word(3)), (Some(HEADER_MAGIC), Some(arch), Some(len), Some(sum))
            if HEADER_MAGIC.wrapping_add(arch).wrapping_add(len).wrapping_add(sum) == 0)
    })
}

/// Where a relocatable image may be put.
#[derive(Clone, Copy)]
struct Relocation {
    /// Lowest address.
    min: u32,
    /// Highest address of the image's last byte.
    max: u32,
    align: u32,
    /// 1: as low as possible, 2: as high as possible.
    preference: u32,
}

/// What the header asks for.
#[derive(Default)]
struct Header {
    addresses: Option<LoadAddresses>,
    entry: Option<u32>,
    relocation: Option<Relocation>,
}

fn bad(why: impl Into<String>) -> Reason {
    Reason::bad("multiboot 2 header", why)
}

impl Header {
    fn parse(file: &[u8], at: usize) -> Result<Self, Reason> {
        let arch = file.u32_at(at + 4).unwrap_or(0);
        if arch != ARCHITECTURE_I386 {
            let name = if arch == 4 { "MIPS".to_owned() } else { format!("architecture {arch}") };
            return Err(Reason::OtherArchitecture { what: format!("a multiboot 2 kernel for {name}") });
        }
        let len = file.u32_at(at + 8).unwrap_or(0) as usize;
        let whole = file.bytes_at(at, len).filter(|h| h.len() >= 16 && at + len <= SEARCH);
        let header =
            whole.ok_or_else(|| bad(format!("its length {len} does not fit the file's first 32 KiB")))?;
        let mut h = Header::default();
        let mut at = 16;
        while at < header.len() {
            let fields = (header.u16_at(at), header.u16_at(at + 2), header.u32_at(at + 4));
            let (Some(kind), Some(flags), Some(size)) = fields else { return Err(bad("a tag is cut")) };
            let tag = header.bytes_at(at, size as usize).filter(|t| t.len() >= 8);
            let tag = tag.ok_or_else(|| bad(format!("tag {kind} has the impossible size {size}")))?;
            if kind == request::END {
                break;
            }
            h.take(kind, flags & 1 != 0, tag)?;
            at += (size as usize).next_multiple_of(8);
        }
        Ok(h)
    }

    fn take(&mut self, kind: u16, optional: bool, tag: &[u8]) -> Result<(), Reason> {
        let word = |i: usize| tag.u32_at(8 + i * 4).ok_or_else(|| bad(format!("tag {kind} is too short")));
        match kind {
            request::INFORMATION => {
                let asked = tag[8..].chunks_exact(4).filter_map(|c| c.u32_at(0));
                if let Some(unknown) = asked.into_iter().find(|&t| t > info::LAST && !optional) {
                    return Err(bad(format!("it requires information of the unknown type {unknown}")));
                }
            }
            request::ADDRESS => {
                let a =
                    LoadAddresses { header: word(0)?, load: word(1)?, load_end: word(2)?, bss_end: word(3)? };
                self.addresses = Some(a);
            }
            request::ENTRY_ADDRESS => self.entry = Some(word(0)?),
            request::RELOCATABLE => {
                let r = Relocation { min: word(0)?, max: word(1)?, align: word(2)?, preference: word(3)? };
                self.relocation = Some(r);
            }
            request::FRAMEBUFFER | request::CONSOLE_FLAGS => {
                tracing::debug!(tag = kind, "the kernel's wishes for a screen are not followed");
            }
            // Modules are always page aligned; the EFI tags speak to loaders on EFI.
            request::MODULE_ALIGN
            | request::EFI_BOOT_SERVICES
            | request::ENTRY_EFI32
            | request::ENTRY_EFI64 => {}
            _ if optional => {}
            _ => return Err(bad(format!("it requires the unknown tag {kind}"))),
        }
        Ok(())
    }

    /// How far to move an ELF image (modulo 2^64), and nothing if it may not or need not move.
    fn delta(&self, places: &Places, image: &ElfImage<'_>) -> Result<u64, Reason> {
        let Some(r) = self.relocation else { return Ok(0) };
        let loadables = image.loadables()?;
        let (start, end) = super::span(&loadables);
        let (len, align) = (end - start, u64::from(r.align.max(1)));
        if !align.is_power_of_two() {
            return Err(bad(format!("its alignment {align} is no power of two")));
        }
        let (min, limit) = (u64::from(r.min), u64::from(r.max).saturating_add(1).min(FOUR_GIB));
        let allowed = start >= min && end <= limit && start % align == 0;
        let mut scratch = places.clone();
        if r.preference == 0 && allowed && scratch.claim(start, len) {
            return Ok(0);
        }
        let mut scratch = places.clone();
        let at = match r.preference {
            2 => scratch.highest(len, align, min, limit),
            _ => scratch
                .lowest(len, align, min.max(ONE_MIB), limit)
                .or_else(|| scratch.lowest(len, align, min, limit)),
        };
        let at = at.ok_or_else(|| places.does_not_fit("the relocatable kernel", len, min, limit))?;
        Ok(at.wrapping_sub(start))
    }
}

/// The information structure while it grows.
struct Info(Vec<u8>);

impl Info {
    /// Appends a tag: its type, its size, and the parts of its body.
    fn tag(&mut self, kind: u32, body: &[&[u8]]) {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        let size = 8 + body.iter().map(|b| b.len()).sum::<usize>();
        self.words(&[kind, size as u32]);
        for part in body {
            self.0.extend_from_slice(part);
        }
    }

    fn words(&mut self, words: &[u32]) {
        self.0.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    }
}

fn words<const N: usize>(w: [u32; N]) -> Vec<u8> {
    w.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Loads a multiboot 2 kernel and its modules.
pub(crate) fn load(mem: &dyn GuestMemory, tables: &Tables, req: &LoadRequest<'_>) -> Result<Entry, Reason> {
    let file = req.kernel;
    let at = find_header(file).ok_or(Reason::Unknown)?;
    let header = Header::parse(file, at)?;
    let cmdline = super::cmdline(req)?;
    let mut places = Places::new(&tables.e820);
    let loaded = match header.addresses {
        Some(a) => a.load(mem, &mut places, file, at)?,
        None if file.starts_with(b"\x7fELF") => {
            let image = ElfImage::parse(file)?;
            let delta = header.delta(&places, &image)?;
            let mut loaded = load_elf(mem, &mut places, image, delta)?;
            if let Some(entry) = header.entry {
                loaded.entry = Some(u64::from(entry).wrapping_add(delta));
            }
            loaded
        }
        None => return Err(bad("it has no address tag, and the file is no ELF file")),
    };
    let entry = loaded.entry.or(header.entry.map(u64::from));
    let entry =
        check_entry(&loaded, entry.ok_or_else(|| bad("it has an address tag but no entry address tag"))?)?;
    let info_at = write_info(mem, &mut places, tables, (&cmdline, &modules_of(req)), &header, &loaded)?;

    let mut e = Entry::flat32(mem, &mut places, entry)?;
    e.gpr[reg::RAX] = LOADED_MAGIC;
    e.gpr[reg::RBX] = info_at;
    Ok(e)
}

fn write_info(
    mem: &dyn GuestMemory,
    places: &mut Places,
    tables: &Tables,
    (cmdline, modules): (&str, &[Module<'_>]),
    header: &Header,
    loaded: &Loaded<'_>,
) -> Result<u64, Reason> {
    let modules = super::place_modules(mem, places, modules, loaded.end)?;
    let sections = super::place_sections(mem, places, loaded.elf.as_ref(), loaded.end);
    let mut i = Info(vec![0; 8]);
    i.tag(info::CMDLINE, &[cmdline.as_bytes(), &[0]]);
    i.tag(info::LOADER_NAME, &[super::LOADER_NAME.as_bytes(), &[0]]);
    let (lower, upper) = basic_memory(tables);
    i.tag(info::BASIC_MEMINFO, &[&words([lower, upper])]);
    for m in &modules {
        i.tag(info::MODULE, &[&words([m.start, m.end]), m.command.as_bytes(), &[0]]);
    }
    let mut mmap = words([24, 0]);
    for e in tables.e820.entries() {
        mmap.extend([e.base, e.len, e.kind as u64].map(u64::to_le_bytes).as_flattened());
    }
    i.tag(info::MMAP, &[&mmap]);
    if let Some(elf) = loaded.elf.as_ref().filter(|_| !sections.is_empty()) {
        let h = &elf.header;
        i.tag(
            info::ELF_SECTIONS,
            &[&words([h.e_shnum, h.e_shentsize, h.e_shstrndx].map(u32::from)), &sections],
        );
    }
    if let Some(rsdp) = tables.rsdp {
        let mut copy = [0; 36];
        mem.read(rsdp, &mut copy);
        i.tag(info::ACPI_OLD, &[&copy[..20]]);
        i.tag(info::ACPI_NEW, &[&copy]);
    }
    if header.relocation.is_some() {
        i.tag(info::LOAD_BASE_ADDR, &[&words([loaded.start as u32])]);
    }
    i.tag(info::END, &[]);
    let len = i.0.len() as u32;
    i.0[..4].copy_from_slice(&len.to_le_bytes());
    let at = places.low("the multiboot information", len.into(), 16)?;
    mem.write(at, &i.0);
    Ok(at)
}

#[cfg(test)]
#[path = "v2_tests.rs"]
mod tests;
