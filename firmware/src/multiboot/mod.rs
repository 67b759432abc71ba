//! Multiboot 1 and 2: kernels that carry a header near their start and are entered in flat 32-bit protected
//! mode.
//!
//! Both versions load the image by the same two ways, which stand here: by the load addresses in the
//! multiboot header (the "a.out kludge") or as ELF; and both take modules, page aligned, above the kernel.
//! Missing on purpose: video mode setting (the kernel finds no framebuffer), BIOS boot device, APM and VBE
//! data, EFI entries.
//!
//! Source: Multiboot Specification 0.6.96 and 2.0.
pub mod v1;
pub mod v2;

use crate::elf::{self, CMDLINE_MAX, ElfImage};
use crate::error::Reason;
use crate::mem::{FOUR_GIB, GuestMemory};
use crate::place::{LOW_END, ONE_MIB, Places};
use crate::request::{LoadRequest, Module};

/// What a kernel is told that loaded it.
pub const LOADER_NAME: &str = concat!("Mynah ", env!("CARGO_PKG_VERSION"));

/// The address fields of either header. All are physical addresses.
#[derive(Clone, Copy, Debug)]
struct LoadAddresses {
    header: u32,
    load: u32,
    /// Zero: all of the file.
    load_end: u32,
    /// Zero: no bss.
    bss_end: u32,
}

/// A loaded image.
struct Loaded<'a> {
    /// Where the image begins and ends in RAM.
    start: u64,
    end: u64,
    /// The entry point that the ELF header names.
    entry: Option<u64>,
    /// The ELF file, if it was loaded as one.
    elf: Option<ElfImage<'a>>,
}

impl LoadAddresses {
    /// Loads the file from where its header says that `load` is in it.
    fn load<'a>(
        &self,
        mem: &dyn GuestMemory,
        places: &mut Places,
        file: &'a [u8],
        header_offset: usize,
    ) -> Result<Loaded<'a>, Reason> {
        let bad = |why: String| Reason::bad("multiboot header", why);
        let before = self.header.checked_sub(self.load).map(|n| n as usize);
        let start = before.and_then(|n| header_offset.checked_sub(n)).ok_or_else(|| {
            bad(format!(
                "header_addr {:#x} and load_addr {:#x} point before the file",
                self.header, self.load
            ))
        })?;
        let rest = &file[start..];
        let load_len = match self.load_end {
            0 => rest.len(),
            end => end.checked_sub(self.load).ok_or_else(|| bad("load_end_addr is below load_addr".into()))?
                as usize,
        };
        let data = rest.get(..load_len).ok_or_else(|| Reason::Truncated {
            what: "load image",
            needed: (start + load_len) as u64,
            present: file.len() as u64,
        })?;
        let base = u64::from(self.load);
        let data_end = base + load_len as u64;
        let end = match self.bss_end {
            0 => data_end,
            bss if u64::from(bss) < data_end => {
                return Err(bad("bss_end_addr is below load_end_addr".into()));
            }
            bss => bss.into(),
        };
        places.claim_for("the kernel", base, end - base)?;
        mem.write(base, data);
        mem.zero(data_end, end - data_end);
        Ok(Loaded { start: base, end, entry: None, elf: None })
    }
}

/// Loads an ELF image, `delta` bytes (modulo 2^64) above where it wants to be.
fn load_elf<'a>(
    mem: &dyn GuestMemory,
    places: &mut Places,
    image: ElfImage<'a>,
    delta: u64,
) -> Result<Loaded<'a>, Reason> {
    let loadables = image.loadables()?;
    let entry = image.physical_entry(&loadables)?.wrapping_add(delta);
    elf::place_segments(mem, places, &loadables, delta)?;
    let (start, end) = span(&loadables);
    let (start, end) = (start.wrapping_add(delta), end.wrapping_add(delta));
    Ok(Loaded { start, end, entry: Some(entry), elf: Some(image) })
}

/// First address and end of segments in ascending order.
fn span(loadables: &[elf::Loadable<'_>]) -> (u64, u64) {
    let start = loadables.first().map_or(0, |s| s.paddr);
    (start, loadables.last().map_or(start, |s| s.paddr + s.mem_len))
}

/// A module in RAM.
struct PlacedModule<'a> {
    start: u32,
    end: u32,
    command: &'a str,
}

/// The modules of a request: those of `-initrd a,b`, or its one file as it is.
fn modules_of<'a>(req: &LoadRequest<'a>) -> Vec<Module<'a>> {
    match req.initrd {
        Some(data) if req.modules.is_empty() => vec![Module { command: "", data }],
        _ => req.modules.to_vec(),
    }
}

/// Puts modules above the kernel, each on a page of its own.
fn place_modules<'a>(
    mem: &dyn GuestMemory,
    places: &mut Places,
    modules: &[Module<'a>],
    kernel_end: u64,
) -> Result<Vec<PlacedModule<'a>>, Reason> {
    let min = kernel_end.max(ONE_MIB);
    let place = |m: &Module<'a>| {
        let len = m.data.len() as u64;
        let at = (places.lowest(len.max(1), 0x1000, min, FOUR_GIB))
            .or_else(|| places.lowest(len.max(1), 0x1000, ONE_MIB, FOUR_GIB))
            .ok_or_else(|| {
                places.does_not_fit(&format!("the module \"{}\"", m.command), len, ONE_MIB, FOUR_GIB)
            })?;
        mem.write(at, m.data);
        Ok(PlacedModule { start: at as u32, end: (at + len) as u32, command: m.command })
    };
    modules.iter().map(place).collect()
}

/// Puts ELF symbol and string tables above the kernel, if they fit.
fn place_sections(
    mem: &dyn GuestMemory,
    places: &mut Places,
    image: Option<&ElfImage<'_>>,
    kernel_end: u64,
) -> Vec<u8> {
    let Some(image) = image else { return Vec::new() };
    image.section_headers(mem, |len| places.lowest(len, 0x1000, kernel_end.max(ONE_MIB), FOUR_GIB))
}

/// The command line with the kernel's name as its first word. Kernels (Xen) expect it of every loader but
/// GRUB 2.
fn cmdline(req: &LoadRequest<'_>) -> Result<String, Reason> {
    let line = format!("{} {}", req.kernel_name, req.cmdline);
    if line.len() > CMDLINE_MAX {
        return Err(Reason::CmdlineTooLong { len: line.len(), max: CMDLINE_MAX });
    }
    Ok(line)
}

/// KiB of conventional memory, and of RAM from 1 MiB to the first hole.
fn basic_memory(tables: &crate::tables::Tables) -> (u32, u32) {
    ((LOW_END >> 10) as u32, (tables.e820.upper_memory() >> 10) as u32)
}

/// An entry must be in the loaded image or it runs into nothing.
fn check_entry(loaded: &Loaded<'_>, entry: u64) -> Result<u32, Reason> {
    if (loaded.start..loaded.end).contains(&entry) {
        return Ok(entry as u32);
    }
    let why = format!("the entry {entry:#x} is outside the image at {:#x}-{:#x}", loaded.start, loaded.end);
    Err(Reason::bad("multiboot header", why))
}
