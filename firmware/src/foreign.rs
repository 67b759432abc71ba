//! Files that people hand to `-kernel` and that are not x86 kernels, told by their magic numbers.
use crate::error::Reason;
use crate::mem::Fields;
use crate::request::has;

/// Formats that hold, or could be mistaken for, a kernel: (offset, magic, what, advice).
const NOT_KERNELS: &[(usize, &[u8], &str, &str)] = &[
    (0, b"\x1f\x8b", "a gzip file", "unpack it with gunzip"),
    (0, b"\xfd7zXZ\0", "an xz file", "unpack it with unxz"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file", "unpack it with unzstd"),
    (0, b"BZh", "a bzip2 file", "unpack it with bunzip2"),
    (0, b"\x02\x21\x4c\x18", "an lz4 file", "unpack it with unlz4"),
    (0, b"\x04\x22\x4d\x18", "an lz4 file", "unpack it with unlz4"),
    (0, b"\x5d\0\0", "an lzma file", "unpack it with unlzma"),
    (0, b"\x89LZO", "an lzop file", "unpack it with lzop -d"),
    (0, b"PK\x03\x04", "a zip archive", "unpack it first"),
    (0, b"070701", "a cpio archive (an initrd)", "give it as -initrd"),
    (0, b"070702", "a cpio archive (an initrd)", "give it as -initrd"),
    (0, b"hsqs", "a squashfs image", "give it as -drive"),
    (0, b"QFI\xfb", "a qcow2 disk image", "give it as -drive"),
    (0, b"KDMV", "a VMDK disk image", "give it as -drive"),
    (0, b"vhdxfile", "a VHDX disk image", "give it as -drive"),
    (0, b"#!", "a script", "give the kernel's own file"),
    (0, b"!<arch>\n", "an archive (a Debian package or a library)", "take the kernel's file out of it"),
    (0, b"\x27\x05\x19\x56", "a U-Boot uImage", "unpack it with dumpimage"),
    (0, b"\xd0\x0d\xfe\xed", "a flattened device tree or FIT image", "unpack it with dumpimage"),
    (0x8001, b"CD001", "an ISO 9660 image", "give it as -cdrom"),
    (257, b"ustar", "a tar archive", "take the kernel's file out of it"),
];

/// Says what a file is that has no boot protocol of ours.
pub fn recognise(file: &[u8]) -> Reason {
    let other = |what: &str| Reason::OtherArchitecture { what: what.to_owned() };
    let not = |what, advice| Reason::NotAKernel { what, advice };
    if has(file, 56, b"ARM\x64") {
        return other("an AArch64 Linux image");
    }
    if has(file, 0x24, &0x016f_2818u32.to_le_bytes()) || has(file, 0x24, &0x016f_2818u32.to_be_bytes()) {
        return other("an ARM Linux zImage");
    }
    if has(file, 0x38, b"RSC\x05") || has(file, 0x30, b"RISCV\0\0\0") {
        return other("a RISC-V Linux image");
    }
    if has(file, 8, b"LoongArch") || (has(file, 0, b"MZ") && has(file, 56, &0x8182_2323u32.to_le_bytes())) {
        return other("a LoongArch Linux image");
    }
    if has(file, 0, b"MZ") {
        return recognise_pe(file);
    }
    if let Some(&(_, _, what, advice)) = NOT_KERNELS.iter().find(|(at, magic, ..)| has(file, *at, magic)) {
        return not(what, advice);
    }
    if matches!(file.u32_at(0), Some(0xfeed_face | 0xfeed_facf | 0xbeba_feca)) {
        return not("a Mach-O file", "Mynah knows no boot protocol for it");
    }
    if file.u16_at(0x1fe) == Some(0xaa55) {
        return not(
            "a boot sector without a Linux setup header (or a Linux kernel older than 1.3.73)",
            "boot it from a disk image with -drive",
        );
    }
    if file.len() < 0x206 {
        let (needed, present) = (0x206, file.len() as u64);
        return Reason::Truncated { what: "the smallest kernel header", needed, present };
    }
    Reason::Unknown
}

/// A PE file that is no Linux kernel.
fn recognise_pe(file: &[u8]) -> Reason {
    let pe = file.u32_at(0x3c).map_or(usize::MAX, |at| at as usize);
    if !has(file, pe, b"PE\0\0") {
        return Reason::NotAKernel {
            what: "a DOS program",
            advice: "boot DOS from a disk image with -drive",
        };
    }
    let machine = file.u16_at(pe.saturating_add(4)).unwrap_or(0);
    // The optional header's Subsystem field: 10 to 13 are the kinds of EFI image (PE format, "Windows
    // Subsystem").
    let efi = matches!(file.u16_at(pe.saturating_add(24 + 68)), Some(10..=13));
    let other = |what: &str| Reason::OtherArchitecture { what: what.to_owned() };
    match (machine, efi) {
        (0x8664 | 0x014c, true) => Reason::NotAKernel {
            what: "an EFI application",
            advice: "boot it with UEFI firmware (-bios or pflash)",
        },
        (0x8664 | 0x014c, false) => Reason::NotAKernel {
            what: "a Windows program",
            advice: "boot Windows from a disk image with -drive",
        },
        (0xaa64, _) => other("a PE file for AArch64"),
        (0x01c0 | 0x01c2 | 0x01c4, _) => other("a PE file for ARM"),
        (0x5032 | 0x5064, _) => other("a PE file for RISC-V"),
        (m, _) => other(&format!("a PE file for machine type {m:#06x}")),
    }
}
