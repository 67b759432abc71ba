//! ELF kernels: segments into RAM, section headers for multiboot, and the PVH entry.
//!
//! goblin reads the file header, program headers and section headers; everything they say is checked here
//! before it is used: ranges of the file, ranges of RAM, overlaps, the machine. PVH is the protocol by which
//! Xen and QEMU start `vmlinux`: an ELF note holds the physical address of a 32-bit entry, which is given a
//! `hvm_start_info` in EBX.
//!
//! Source: Xen docs/misc/pvh.pandoc, xen/include/public/arch-x86/hvm/start_info.h (layout version 1),
//! xen/include/public/elfnote.h.
use crate::entry::{Entry, reg};
use crate::error::Reason;
use crate::mem::{FOUR_GIB, Fields, GuestMemory};
use crate::place::{ONE_MIB, Places};
use crate::request::LoadRequest;
use crate::tables::Tables;
use goblin::container::{Container, Ctx, Endian};
use goblin::elf::header::{EI_CLASS, EI_DATA, ELFCLASS32, ELFCLASS64, ELFDATA2MSB, ET_DYN, ET_EXEC};
use goblin::elf::header::{EM_386, EM_X86_64, machine_to_str};
use goblin::elf::program_header::{PT_LOAD, PT_NOTE};
use goblin::elf::section_header::{SHT_STRTAB, SHT_SYMTAB};
use goblin::elf::{Elf, Header, ProgramHeader, SectionHeader};

/// The note type that holds the 32-bit entry of a PVH kernel.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// `hvm_start_info.magic`.
const HVM_START_MAGIC: u32 = 0x336e_c578;
/// The longest command line that PVH and multiboot kernels are given; neither protocol names a limit.
pub(crate) const CMDLINE_MAX: usize = 0xffff;
/// How often the bytes of a file may be loaded, all segments together: linkers let segments share a page or the
/// headers, no more.
const SEGMENTS_SHARE: u64 = 4;
/// The highest initrd byte that a 32-bit Linux reaches without highmem.
const INITRD_MAX_32: u64 = 0x3800_0000;

/// A piece of the kernel in RAM.
#[derive(Clone, Debug)]
pub(crate) struct Loadable<'a> {
    /// Physical address that the file asks for.
    pub paddr: u64,
    /// Linked (virtual) address.
    pub vaddr: u64,
    /// Bytes in RAM; what is beyond `data` is zero.
    pub mem_len: u64,
    /// Bytes from the file.
    pub data: &'a [u8],
}

/// An ELF file for x86 with checked headers.
pub(crate) struct ElfImage<'a> {
    pub file: &'a [u8],
    pub header: Header,
    pub program_headers: Vec<ProgramHeader>,
    ctx: Ctx,
}

fn bad(why: impl Into<String>) -> Reason {
    Reason::bad("ELF header", why)
}

impl<'a> ElfImage<'a> {
    /// Reads the headers of a file that starts with ELF's magic number.
    pub fn parse(file: &'a [u8]) -> Result<Self, Reason> {
        let class = file.u8_at(EI_CLASS).unwrap_or(0);
        let (container, header_len) = match class {
            ELFCLASS32 => (Container::Little, 52),
            ELFCLASS64 => (Container::Big, 64),
            n => return Err(bad(format!("class {n} is neither 32-bit nor 64-bit"))),
        };
        if file.len() < header_len {
            let (needed, present) = (header_len as u64, file.len() as u64);
            return Err(Reason::Truncated { what: "ELF header", needed, present });
        }
        let header = Elf::parse_header(file).map_err(|e| bad(e.to_string()))?;
        if header.e_ident[EI_DATA] == ELFDATA2MSB || !matches!(header.e_machine, EM_386 | EM_X86_64) {
            let what = format!("an ELF file for {}", machine_name(header.e_machine));
            return Err(Reason::OtherArchitecture { what });
        }
        if !matches!(header.e_type, ET_EXEC | ET_DYN) {
            return Err(bad(format!("type {} is not executable", header.e_type)));
        }
        let ctx = Ctx::new(container, Endian::Little);
        let entry_len = if container == Container::Big { 56 } else { 32 };
        let count = usize::from(header.e_phnum);
        if count > 0 && header.e_phentsize != entry_len {
            return Err(bad(format!(
                "program headers of {} bytes instead of {entry_len}",
                header.e_phentsize
            )));
        }
        let end = header.e_phoff.saturating_add(u64::from(entry_len) * count as u64);
        if end > file.len() as u64 {
            let (needed, present) = (end, file.len() as u64);
            return Err(Reason::Truncated { what: "program headers", needed, present });
        }
        let program_headers = ProgramHeader::parse(file, header.e_phoff as usize, count, ctx)
            .map_err(|e| bad(format!("program headers: {e}")))?;
        Ok(ElfImage { file, header, program_headers, ctx })
    }

    /// Whether the kernel runs in long mode in the end.
    pub fn is_64bit(&self) -> bool {
        self.header.e_machine == EM_X86_64
    }

    /// Pieces that lie on each other would have the same bytes looked at again and again: together they may have the
    /// file's length, `times` over.
    fn within_file(
        &self,
        what: &'static str,
        mut lens: impl Iterator<Item = u64>,
        times: u64,
    ) -> Result<(), Reason> {
        let room = (self.file.len() as u64).saturating_mul(times);
        match lens.try_fold(0u64, |sum, len| sum.checked_add(len).filter(|sum| *sum <= room)) {
            Some(_) => Ok(()),
            None => Err(bad(format!("its {what} lie on each other: they have more bytes than the file"))),
        }
    }

    fn file_range(&self, what: &'static str, offset: u64, len: u64) -> Result<&'a [u8], Reason> {
        let range = offset.checked_add(len).and_then(|end| self.file.get(offset as usize..end as usize));
        range.ok_or_else(|| Reason::Truncated {
            what,
            needed: offset.saturating_add(len),
            present: self.file.len() as u64,
        })
    }

    /// The PT_LOAD segments that occupy memory, checked against the file and against each other.
    pub fn loadables(&self) -> Result<Vec<Loadable<'a>>, Reason> {
        let mut list = Vec::new();
        for (i, p) in self.program_headers.iter().enumerate() {
            if p.p_type != PT_LOAD || p.p_memsz == 0 {
                continue;
            }
            if p.p_filesz > p.p_memsz {
                return Err(bad(format!(
                    "segment {i} has {:#x} bytes for {:#x} of memory",
                    p.p_filesz, p.p_memsz
                )));
            }
            if p.p_paddr.checked_add(p.p_memsz).is_none_or(|end| end > FOUR_GIB) {
                return Err(bad(format!(
                    "segment {i} at {:#x}+{:#x} ends beyond 4 GiB",
                    p.p_paddr, p.p_memsz
                )));
            }
            let data = self.file_range("a segment", p.p_offset, p.p_filesz)?;
            list.push(Loadable { paddr: p.p_paddr, vaddr: p.p_vaddr, mem_len: p.p_memsz, data });
        }
        self.within_file("segments", list.iter().map(|s| s.data.len() as u64), SEGMENTS_SHARE)?;
        list.sort_by_key(|s| s.paddr);
        if let Some(w) = list.windows(2).find(|w| w[0].paddr + w[0].mem_len > w[1].paddr) {
            return Err(bad(format!("segments at {:#x} and {:#x} overlap", w[0].paddr, w[1].paddr)));
        }
        if list.is_empty() {
            return Err(bad("no segment to load"));
        }
        Ok(list)
    }

    /// The physical address of the entry point: as it stands, or through the segment that holds it as a
    /// virtual address.
    pub fn physical_entry(&self, loadables: &[Loadable<'_>]) -> Result<u64, Reason> {
        let entry = self.header.e_entry;
        let within = |start: u64, s: &&Loadable<'_>| entry.wrapping_sub(start) < s.mem_len;
        if let Some(s) = loadables.iter().find(|s| within(s.vaddr, s)) {
            return Ok(entry.wrapping_sub(s.vaddr).wrapping_add(s.paddr));
        }
        match loadables.iter().any(|s| within(s.paddr, &s)) {
            true => Ok(entry),
            false => Err(bad(format!("the entry {entry:#x} is in no segment"))),
        }
    }

    /// The descriptor of the first note by `name` with this type.
    fn note(&self, name: &[u8], kind: u32) -> Result<Option<&'a [u8]>, Reason> {
        let notes = || self.program_headers.iter().filter(|p| p.p_type == PT_NOTE);
        self.within_file("note segments", notes().map(|p| p.p_filesz), 1)?;
        for p in notes() {
            let align = if p.p_align == 8 { 8 } else { 4usize };
            let mut rest = self.file_range("a note segment", p.p_offset, p.p_filesz)?;
            while rest.len() >= 12 {
                let field = |at| rest.u32_at(at).unwrap_or(0) as usize;
                let (name_len, desc_len, n_type) = (field(0), field(4), field(8) as u32);
                let desc_at = (12usize.saturating_add(name_len)).checked_next_multiple_of(align);
                let Some(desc) = desc_at.and_then(|at| rest.bytes_at(at, desc_len)) else { break };
                if n_type == kind && rest.bytes_at(12, name_len) == Some(name) {
                    return Ok(Some(desc));
                }
                let next = desc_at.unwrap_or(0).saturating_add(desc_len).checked_next_multiple_of(align);
                rest = next.and_then(|n| rest.get(n..)).unwrap_or(&[]);
            }
        }
        Ok(None)
    }

    /// Section headers as raw bytes, with the addresses of symbol and string tables, which are put into RAM in one
    /// piece at what `place` gives for their length. Headers are empty if the file has none that can be read; tables
    /// are left out if there is no place for them, or if they lie on each other and so have more bytes than the file.
    pub fn section_headers(&self, mem: &dyn GuestMemory, place: impl FnOnce(u64) -> Option<u64>) -> Vec<u8> {
        const ALIGN: u64 = 16;
        let h = &self.header;
        let entry_len = SectionHeader::size(self.ctx);
        let raw = (h.e_shoff != 0 && usize::from(h.e_shentsize) == entry_len)
            .then(|| self.file.bytes_at(h.e_shoff as usize, entry_len * usize::from(h.e_shnum)))
            .flatten();
        let Some(raw) = raw else { return Vec::new() };
        let mut raw = raw.to_vec();
        let is_64 = entry_len == 64;
        // Offsets of sh_addr, sh_offset and sh_size in either format (System V gABI, chapter 4).
        let (addr_at, offset_at, size_at) = if is_64 { (16, 24, 32) } else { (12, 16, 20) };
        let word = |s: &[u8], at| if is_64 { s.u64_at(at) } else { s.u32_at(at).map(u64::from) }.unwrap_or(0);
        let mut tables = Vec::new();
        let mut len = 0;
        for (i, s) in raw.chunks_exact(entry_len).enumerate() {
            if !matches!(s.u32_at(4), Some(SHT_SYMTAB | SHT_STRTAB)) || word(s, addr_at) != 0 {
                continue;
            }
            let data = self.file.bytes_at(word(s, offset_at) as usize, word(s, size_at) as usize);
            let Some(data) = data.filter(|d| !d.is_empty()) else { continue };
            tables.push((i, len, data));
            len += (data.len() as u64).next_multiple_of(ALIGN);
            if len > (self.file.len() as u64).next_multiple_of(ALIGN) {
                tracing::debug!("the ELF file's symbol tables lie on each other; they are left out");
                return raw;
            }
        }
        let Some(base) = (len > 0).then(|| place(len)).flatten() else { return raw };
        for (i, offset, data) in tables {
            mem.write(base + offset, data);
            let s = &mut raw[i * entry_len..];
            s[addr_at..addr_at + 4].copy_from_slice(&((base + offset) as u32).to_le_bytes());
        }
        raw
    }
}

fn machine_name(machine: u16) -> String {
    match machine_to_str(machine) {
        "EM_UNKNOWN" | "UNKNOWN_EM" => format!("machine type {machine}"),
        name => match name.trim_start_matches("EM_") {
            "AARCH64" => "AArch64".to_owned(),
            "RISCV" => "RISC-V".to_owned(),
            "386" | "X86_64" => "a big-endian x86, which does not exist".to_owned(),
            other => other.to_owned(),
        },
    }
}

/// Takes the RAM of all segments and fills it.
pub(crate) fn place_segments(
    mem: &dyn GuestMemory,
    places: &mut Places,
    loadables: &[Loadable<'_>],
    delta: u64,
) -> Result<(), Reason> {
    for s in loadables {
        places.claim_for("an ELF segment", s.paddr.wrapping_add(delta), s.mem_len)?;
    }
    for s in loadables {
        let (at, len) = (s.paddr.wrapping_add(delta), s.data.len() as u64);
        mem.write(at, s.data);
        mem.zero(at + len, s.mem_len - len);
    }
    Ok(())
}

/// The 32-bit physical entry of a PVH kernel, if it has the note.
pub(crate) fn pvh_entry(image: &ElfImage<'_>) -> Result<Option<u32>, Reason> {
    let Some(desc) = image.note(b"Xen\0", XEN_ELFNOTE_PHYS32_ENTRY)? else { return Ok(None) };
    match desc.u32_at(0) {
        Some(entry) if desc.u32_at(4).unwrap_or(0) == 0 => Ok(Some(entry)),
        _ => Err(Reason::bad("PVH note", format!("{} bytes are no 32-bit address", desc.len()))),
    }
}

/// Loads a PVH kernel.
pub(crate) fn load_pvh(
    mem: &dyn GuestMemory,
    tables: &Tables,
    req: &LoadRequest<'_>,
) -> Result<Entry, Reason> {
    let image = ElfImage::parse(req.kernel)?;
    let entry = pvh_entry(&image)?.ok_or(Reason::NoEntryNote)?;
    if image.is_64bit() && !req.cpu_is_64bit {
        return Err(Reason::Needs64Bit);
    }
    if req.cmdline.len() > CMDLINE_MAX {
        return Err(Reason::CmdlineTooLong { len: req.cmdline.len(), max: CMDLINE_MAX });
    }
    let loadables = image.loadables()?;
    if !loadables.iter().any(|s| u64::from(entry).wrapping_sub(s.paddr) < s.mem_len) {
        return Err(Reason::bad("PVH note", format!("its entry {entry:#x} is in no segment")));
    }
    let mut places = Places::new(&tables.e820);
    place_segments(mem, &mut places, &loadables, 0)?;

    let cmdline_at = places.low("the command line", req.cmdline.len() as u64 + 1, 16)?;
    mem.write(cmdline_at, req.cmdline.as_bytes());
    mem.write(cmdline_at + req.cmdline.len() as u64, &[0]);
    let initrd = match req.one_initrd()? {
        Some(data) => Some((place_initrd(mem, &mut places, data, image.is_64bit())?, data.len() as u64)),
        None => None,
    };

    let entries = tables.e820.entries();
    let memmap: Vec<u8> = (entries.iter())
        .flat_map(|e| [e.base, e.len, e.kind as u64].map(u64::to_le_bytes).into_iter().flatten())
        .collect();
    let memmap_at = places.low("the memory map", memmap.len() as u64, 16)?;
    mem.write(memmap_at, &memmap);
    let modlist_at = match initrd {
        Some((at, len)) => {
            let list = places.low("the module list", 32, 16)?;
            mem.write(list, [at, len, 0, 0].map(u64::to_le_bytes).as_flattened());
            list
        }
        None => 0,
    };

    // hvm_start_info, version 1: magic, version, flags, nr_modules; modlist, cmdline, rsdp, memmap; memmap
    // entries, reserved.
    let mut info = Vec::with_capacity(56);
    for word in [HVM_START_MAGIC, 1, 0, u32::from(initrd.is_some())] {
        info.extend(word.to_le_bytes());
    }
    for address in [modlist_at, cmdline_at, tables.rsdp.unwrap_or(0), memmap_at] {
        info.extend(address.to_le_bytes());
    }
    info.extend((entries.len() as u64).to_le_bytes());
    let info_at = places.low("hvm_start_info", info.len() as u64, 16)?;
    mem.write(info_at, &info);

    let mut e = Entry::flat32(mem, &mut places, entry)?;
    e.gpr[reg::RBX] = info_at;
    Ok(e)
}

/// As high as possible below 4 GiB, for a 32-bit kernel in its directly mapped memory if there is room.
fn place_initrd(
    mem: &dyn GuestMemory,
    places: &mut Places,
    data: &[u8],
    is_64bit: bool,
) -> Result<u64, Reason> {
    let len = data.len() as u64;
    let limits: &[u64] = if is_64bit { &[FOUR_GIB] } else { &[INITRD_MAX_32, FOUR_GIB] };
    let at = limits.iter().find_map(|&limit| places.highest(len, 0x1000, ONE_MIB, limit));
    let at = at.ok_or_else(|| places.does_not_fit("the initrd", len, ONE_MIB, FOUR_GIB))?;
    mem.write(at, data);
    Ok(at)
}

#[cfg(test)]
#[path = "elf_tests.rs"]
mod tests;
