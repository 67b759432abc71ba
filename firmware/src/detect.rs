//! What a kernel file is, and which boot protocol it gets.
//!
//! Order of preference, as QEMU's users know it: a Linux setup header, a multiboot 1 header, a PVH note, a
//! multiboot 2 header. [`LoadRequest::protocol`] overrides it. Files that are none of these are recognised by
//! their magic numbers (`foreign`) so that the error can say what was given.
use crate::elf::ElfImage;
use crate::entry::Entry;
use crate::error::{LoadError, Reason};
use crate::mem::GuestMemory;
use crate::request::{BootProtocol, LoadRequest};
use crate::tables::Tables;
use crate::{bzimage, elf, foreign, multiboot};

/// What a kernel file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Linux kernel with a setup header: bzImage or zImage.
    Linux,
    /// An ELF file with a PVH note.
    Pvh,
    /// Multiboot 1.
    Multiboot1,
    /// Multiboot 2.
    Multiboot2,
}

/// Tells what a kernel file is, so that the caller knows how `-initrd` is to be read; an error says what else
/// it is.
pub fn identify(name: &str, kernel: &[u8]) -> Result<Kind, LoadError> {
    kind_of(kernel).map_err(|reason| LoadError { name: name.to_owned(), reason })
}

fn kind_of(kernel: &[u8]) -> Result<Kind, Reason> {
    if kernel.is_empty() {
        return Err(Reason::Empty);
    }
    if bzimage::is_linux(kernel) {
        return Ok(Kind::Linux);
    }
    if multiboot::v1::find_header(kernel).is_some() {
        return Ok(Kind::Multiboot1);
    }
    let multiboot2 = multiboot::v2::find_header(kernel).is_some();
    if kernel.starts_with(b"\x7fELF") {
        let image = ElfImage::parse(kernel)?;
        return match (elf::pvh_entry(&image)?, multiboot2) {
            (Some(_), _) => Ok(Kind::Pvh),
            (None, true) => Ok(Kind::Multiboot2),
            (None, false) => Err(Reason::NoEntryNote),
        };
    }
    if multiboot2 {
        return Ok(Kind::Multiboot2);
    }
    Err(foreign::recognise(kernel))
}

/// Puts the kernel, its initrd and command line into RAM around what `tables` describes; returns the state to
/// start it in.
pub fn load(mem: &dyn GuestMemory, tables: &Tables, req: &LoadRequest<'_>) -> Result<Entry, LoadError> {
    let entry = load_kind(mem, tables, req);
    if let Ok(e) = &entry {
        let rip = format_args!("{:#x}", e.rip);
        tracing::debug!(kernel = req.kernel_name, mode = ?e.mode, rip, "kernel loaded");
    }
    entry.map_err(|reason| LoadError { name: req.kernel_name.to_owned(), reason })
}

fn load_kind(mem: &dyn GuestMemory, tables: &Tables, req: &LoadRequest<'_>) -> Result<Entry, Reason> {
    use BootProtocol as P;
    let lacks = |wanted, why| Err(Reason::Protocol { wanted, why });
    let found = kind_of(req.kernel);
    let kind = match (req.protocol, &found) {
        (_, Err(Reason::Empty)) | (P::Auto, _) => found?,
        (P::Linux16 | P::Linux32 | P::Linux64, Ok(Kind::Linux)) => Kind::Linux,
        (P::Linux16 | P::Linux32 | P::Linux64, _) => return lacks("Linux boot", "it has no setup header"),
        (P::Pvh, _) if req.kernel.starts_with(b"\x7fELF") => Kind::Pvh,
        (P::Pvh, _) => return lacks("PVH", "it is no ELF file"),
        (P::Multiboot1, _) if multiboot::v1::find_header(req.kernel).is_some() => Kind::Multiboot1,
        (P::Multiboot1, _) => return lacks("multiboot 1", "its first 8 KiB hold no multiboot header"),
        (P::Multiboot2, _) if multiboot::v2::find_header(req.kernel).is_some() => Kind::Multiboot2,
        (P::Multiboot2, _) => return lacks("multiboot 2", "its first 32 KiB hold no multiboot 2 header"),
    };
    match kind {
        Kind::Linux => bzimage::load(mem, tables, req),
        Kind::Pvh => elf::load_pvh(mem, tables, req),
        Kind::Multiboot1 => multiboot::v1::load(mem, tables, req),
        Kind::Multiboot2 => multiboot::v2::load(mem, tables, req),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{linux_image, multiboot1_flat, pvh_image};

    #[test]
    fn kernels_are_told_apart() {
        assert_eq!(identify("k", &linux_image()), Ok(Kind::Linux));
        assert_eq!(identify("k", &pvh_image().build()), Ok(Kind::Pvh));
        assert_eq!(identify("k", &multiboot1_flat(0x10_0000, 0x10_0000)), Ok(Kind::Multiboot1));
    }

    #[test]
    fn other_files_are_named_with_the_reason() {
        let with = |at: usize, magic: &[u8]| {
            let mut f = vec![0u8; 0x9000];
            f[at..at + magic.len()].copy_from_slice(magic);
            f
        };
        let pe = |machine: u16, subsystem: u16| {
            let mut f = with(0, b"MZ");
            f[0x3c] = 0x80;
            f[0x80..0x84].copy_from_slice(b"PE\0\0");
            f[0x84..0x86].copy_from_slice(&machine.to_le_bytes());
            f[0x98 + 68..0x98 + 70].copy_from_slice(&subsystem.to_le_bytes());
            f
        };
        for (file, want) in [
            (vec![], "kernel.img is empty"),
            (with(56, b"ARM\x64"), "kernel.img is an AArch64 Linux image; Mynah runs x86 guests"),
            (with(0x38, b"RSC\x05"), "kernel.img is a RISC-V Linux image; Mynah runs x86 guests"),
            (
                with(0, b"\x1f\x8b"),
                "kernel.img is a gzip file, which cannot be booted as a kernel: unpack it with gunzip",
            ),
            (
                with(0, b"070701"),
                "kernel.img is a cpio archive (an initrd), which cannot be booted as a kernel: give it as -initrd",
            ),
            (
                with(0x8001, b"CD001"),
                "kernel.img is an ISO 9660 image, which cannot be booted as a kernel: give it as -cdrom",
            ),
            (
                pe(0x8664, 10),
                "kernel.img is an EFI application, which cannot be booted as a kernel: boot it with UEFI firmware (-bios or pflash)",
            ),
            (pe(0xaa64, 10), "kernel.img is a PE file for AArch64; Mynah runs x86 guests"),
            (
                with(0, b"MZ"),
                "kernel.img is a DOS program, which cannot be booted as a kernel: boot DOS from a disk image with -drive",
            ),
            (
                with(0x1fe, &[0x55, 0xaa]),
                "kernel.img is a boot sector without a Linux setup header (or a Linux kernel older than 1.3.73), which cannot be booted as a kernel: boot it from a disk image with -drive",
            ),
            (
                with(0, b"hello"),
                "kernel.img is not a kernel that Mynah knows: it is no bzImage, ELF file or multiboot image",
            ),
            (
                vec![1; 10],
                "kernel.img is truncated: its header describes 518 bytes of the smallest kernel header, the file has 10",
            ),
        ] {
            assert_eq!(identify("kernel.img", &file).unwrap_err().to_string(), want);
        }
    }
}
