//! Direct boot of Linux under a firmware of its own: an option ROM that takes the kernel from fw_cfg.
//!
//! ```text
//!   host:   Parts { setup, payload, initrd, command line } --> fw_cfg items 07h-18h, genroms/linuxboot.bin
//!   guest:  firmware runs the ROM's bootstrap entry --> each item to its address by fw_cfg DMA --> setup code
//! ```
//!
//! The ROM is a Plug and Play option ROM with a bootstrap entry vector (BEV), so that a firmware lists it with the
//! devices that can be booted; `bootorder` puts it first. The kernel is entered at its 16-bit entry, since its setup
//! code asks the firmware that is really there.
//!
//! Sources: Plug and Play BIOS Specification 1.0A, 3.2; BIOS Boot Specification 1.01, 3; QEMU's specification of
//! fw_cfg.
use crate::bzimage::{Image, MIN_STACK, mem_option};
use crate::error::{LoadError, Reason, Size};
use crate::place::{ONE_MIB, Places};
use crate::request::LoadRequest;
use crate::tables::{E820Kind, E820Map};
use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};

/// The ROM's name among the files of fw_cfg.
pub const ROM_FILE: &str = "genroms/linuxboot.bin";

/// The fw_cfg items of each part: address, size, data.
mod key {
    pub const KERNEL: [u16; 3] = [0x07, 0x08, 0x11];
    pub const INITRD: [u16; 3] = [0x0a, 0x0b, 0x12];
    pub const CMDLINE: [u16; 3] = [0x13, 0x14, 0x15];
    pub const SETUP: [u16; 3] = [0x16, 0x17, 0x18];
}

/// RAM at the end of low memory that a firmware keeps for itself.
const FIRMWARE_RAM: u64 = 1 << 20;
/// Conventional memory that a firmware leaves alone.
const LOW_END: u64 = 0x9_b000;
/// type_of_loader of QEMU, whose firmware interface this is.
const LOADER_QEMU: u8 = 0xb0;
/// What is left free between the command line and the stack below it.
const STACK_GAP: i32 = 16;

/// A part of a kernel, and where it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Its physical address.
    pub address: u32,
    /// Its bytes.
    pub data: Vec<u8>,
}

/// A kernel in parts, ready to be copied to their addresses and entered at `setup` + 200h. Where they go is what QEMU
/// chooses, as some firmware (qboot) knows these addresses and does not ask for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Boot sector and setup code with the header filled in.
    pub setup: Part,
    /// The protected-mode kernel.
    pub payload: Part,
    /// The initial RAM disk; empty if there is none.
    pub initrd: Part,
    /// The command line with its closing zero.
    pub cmdline: Part,
}

impl Parts {
    /// The parts of the Linux kernel of `req`, for a machine with `below_4g` bytes of RAM below 4 GiB.
    pub fn of(req: &LoadRequest<'_>, below_4g: u64) -> Result<Parts, LoadError> {
        Self::take_apart(req, below_4g)
            .map_err(|reason| LoadError { name: req.kernel_name.to_owned(), reason })
    }

    fn take_apart(req: &LoadRequest<'_>, below_4g: u64) -> Result<Parts, Reason> {
        let image = Image::parse(req.kernel)?;
        if image.needs_64bit() && !req.cpu_is_64bit {
            return Err(Reason::Needs64Bit);
        }
        image.check_cmdline(req.cmdline)?;
        let mut cmdline = req.cmdline.as_bytes().to_vec();
        cmdline.push(0);
        // Before 2.02 the command line is in the setup code's segment, and both are at 90000h.
        let recent = image.version >= 0x202 && image.loaded_high();
        let (setup_at, cmdline_at) = match recent {
            true => (0x1_0000, 0x2_0000),
            false => (0x9_0000, 0x9_a000 - cmdline.len().next_multiple_of(16) as u64),
        };
        let payload_at = if image.loaded_high() { ONE_MIB } else { 0x1_0000 };

        let mut e820 = E820Map::default();
        e820.set(0, LOW_END, E820Kind::Usable);
        e820.set(ONE_MIB, below_4g.saturating_sub(ONE_MIB + FIRMWARE_RAM), E820Kind::Usable);
        let mut places = Places::new(&e820);
        let cmdline_end = cmdline_at + cmdline.len() as u64;
        places.claim_for("the kernel's setup code", setup_at, cmdline_end - setup_at)?;
        let stack = image.setup.len() as u64 + MIN_STACK;
        if setup_at + stack > cmdline_at {
            let why = format!("{} of setup code leave no room for its stack", Size(image.setup.len() as u64));
            return Err(Reason::bad("Linux setup header", why));
        }
        places.claim_for("the Linux kernel", payload_at, image.payload.len() as u64)?;
        // Where it will unpack itself, as far as that is known and free.
        if let Some((preferred, size)) = image.runtime {
            let (from, to) = (preferred, preferred.saturating_add(size));
            let from = from.max(payload_at + image.payload.len() as u64);
            let _ = places.claim(from, to.saturating_sub(from));
        }

        let mut header = image.filled_in(LOADER_QEMU, req.cmdline);
        header.set_heap(&image, (cmdline_at - setup_at - 0x200) as u16);
        header.set_cmdline(&image, setup_at, cmdline_at, cmdline_end);
        let mut initrd = Part::default();
        if let Some(data) = req.one_initrd()? {
            let len = data.len() as u64;
            let limit = image.initrd_limit().min(mem_option(req.cmdline).unwrap_or(u64::MAX));
            let at = places.highest(len, 0x1000, ONE_MIB, limit);
            let at = at.ok_or_else(|| places.does_not_fit("the initrd", len, ONE_MIB, limit))?;
            header.set_initrd(at, len);
            initrd = Part { address: at as u32, data: data.to_vec() };
        }
        Ok(Parts {
            setup: Part { address: setup_at as u32, data: header.setup(&image) },
            payload: Part { address: payload_at as u32, data: image.payload.to_vec() },
            initrd,
            cmdline: Part { address: cmdline_at as u32, data: cmdline },
        })
    }

    /// The fw_cfg items: key and bytes.
    pub fn into_items(self) -> Vec<(u16, Vec<u8>)> {
        let parts = [
            (key::SETUP, self.setup),
            (key::KERNEL, self.payload),
            (key::INITRD, self.initrd),
            (key::CMDLINE, self.cmdline),
        ];
        parts
            .into_iter()
            .flat_map(|([address, size, data], part)| {
                let len = part.data.len() as u32;
                [
                    (address, part.address.to_le_bytes().to_vec()),
                    (size, len.to_le_bytes().to_vec()),
                    (data, part.data),
                ]
            })
            .collect()
    }
}

/// Length of the headers before the code.
const CODE: usize = 0x60;
/// Where the Plug and Play header stands.
const PNP: usize = 0x20;
/// Where the product's name stands.
const PRODUCT: usize = 0x40;

/// Emits a routine: item AX, ECX bytes of it, to the physical address EDI. Spoils EAX, EBX, EDX.
fn read_item(a: &mut CodeAssembler) -> Result<(), IcedError> {
    const READ_SELECTED: i32 = 0x0a;
    let mut wait = a.create_label();
    a.push(ebp)?;
    a.sub(sp, 16)?;
    a.movzx(ebp, sp)?;
    // The descriptor, big-endian: control with the key above it, length, address.
    a.movzx(eax, ax)?;
    a.shl(eax, 16)?;
    a.or(eax, READ_SELECTED)?;
    a.bswap(eax)?;
    a.mov(dword_ptr(ebp), eax)?;
    a.mov(eax, ecx)?;
    a.bswap(eax)?;
    a.mov(dword_ptr(ebp + 4), eax)?;
    a.mov(dword_ptr(ebp + 8), 0)?;
    a.mov(eax, edi)?;
    a.bswap(eax)?;
    a.mov(dword_ptr(ebp + 12), eax)?;
    // Its own physical address: SS * 16 + SP.
    a.xor(ebx, ebx)?;
    a.mov(bx, ss)?;
    a.shl(ebx, 4)?;
    a.add(ebx, ebp)?;
    a.bswap(ebx)?;
    a.xor(eax, eax)?;
    a.mov(dx, 0x514)?;
    a.out(dx, eax)?;
    a.mov(dx, 0x518)?;
    a.mov(eax, ebx)?;
    a.out(dx, eax)?;
    // Done when control is zero, or says error (bit 24 as it lies in memory).
    a.set_label(&mut wait)?;
    a.mov(eax, dword_ptr(ebp))?;
    a.and(eax, !0x0100_0000)?;
    a.jnz(wait)?;
    a.add(sp, 16)?;
    a.pop(ebp)?;
    a.ret()
}

/// Emits: the 32-bit item `key` into EAX.
fn read_word(a: &mut CodeAssembler, key: u16, read: CodeLabel) -> Result<(), IcedError> {
    a.push(0)?;
    a.push(0)?;
    a.xor(edi, edi)?;
    a.mov(di, ss)?;
    a.shl(edi, 4)?;
    a.movzx(eax, sp)?;
    a.add(edi, eax)?;
    a.mov(ax, i32::from(key))?;
    a.mov(ecx, 4)?;
    a.call(read)?;
    a.pop(eax)
}

/// The code: init at its start, then the bootstrap entry. Gives the entry's offset in the ROM, and the bytes.
fn code() -> Result<(u16, Vec<u8>), IcedError> {
    let mut a = CodeAssembler::new(16)?;
    let (mut read, mut boot) = (a.create_label(), a.create_label());
    // Init: nothing to do but to say that there is a boot device here.
    a.mov(ax, 0x20)?;
    a.retf()?;
    a.set_label(&mut boot)?;
    a.cli()?;
    a.cld()?;
    for [address, size, data] in [key::INITRD, key::KERNEL, key::CMDLINE, key::SETUP] {
        let mut next = a.create_label();
        read_word(&mut a, size, read)?;
        a.test(eax, eax)?;
        a.jz(next)?;
        a.push(eax)?;
        read_word(&mut a, address, read)?;
        a.mov(edi, eax)?;
        a.pop(ecx)?;
        a.mov(ax, i32::from(data))?;
        a.call(read)?;
        a.set_label(&mut next)?;
        a.nop()?;
    }
    // The stack is below the command line, in the setup code's segment.
    read_word(&mut a, key::SETUP[0], read)?;
    a.push(eax)?;
    read_word(&mut a, key::CMDLINE[0], read)?;
    a.pop(esi)?;
    a.sub(eax, esi)?;
    a.sub(eax, STACK_GAP)?;
    a.shr(esi, 4)?;
    for segment in [ds, es, fs, gs, ss] {
        a.mov(segment, si)?;
    }
    a.mov(esp, eax)?;
    a.add(si, 0x20)?;
    a.push(si)?;
    a.push(0)?;
    a.xor(ebx, ebx)?;
    a.retf()?;
    a.set_label(&mut read)?;
    read_item(&mut a)?;
    let out = a.assemble_options(CODE as u64, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    Ok((out.label_ip(&boot)? as u16, out.inner.code_buffer))
}

/// The option ROM.
///
/// # Panics
/// If the program above does not assemble: a mistake in this file.
pub fn option_rom() -> Vec<u8> {
    let (boot, code) = code().expect("the option ROM assembles");
    let mut rom = vec![0; CODE];
    rom.extend(code);
    rom.resize(rom.len().next_multiple_of(512), 0);
    let blocks = (rom.len() / 512) as u8;
    rom[..3].copy_from_slice(&[0x55, 0xaa, blocks]);
    // A near jump to the init code; the place of the Plug and Play header.
    rom[3] = 0xe9;
    rom[4..6].copy_from_slice(&((CODE - 6) as u16).to_le_bytes());
    rom[0x1a..0x1c].copy_from_slice(&(PNP as u16).to_le_bytes());
    let mut pnp = [0; 32];
    pnp[..6].copy_from_slice(b"$PnP\x01\x02");
    pnp[0x10..0x12].copy_from_slice(&(PRODUCT as u16).to_le_bytes());
    pnp[0x1a..0x1c].copy_from_slice(&boot.to_le_bytes());
    let sum = |b: &[u8]| b.iter().fold(0u8, |s, b| s.wrapping_add(*b));
    pnp[9] = sum(&pnp).wrapping_neg();
    rom[PNP..PNP + 32].copy_from_slice(&pnp);
    rom[PRODUCT..PRODUCT + 15].copy_from_slice(b"Linux loader\0\0\0");
    rom[6] = sum(&rom).wrapping_neg();
    rom
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Fields;
    use crate::testing::linux_image;

    #[test]
    fn a_kernel_comes_apart_into_what_a_loader_copies() {
        let kernel = linux_image();
        let initrd = vec![0x77; 5000];
        let req = LoadRequest {
            initrd: Some(&initrd),
            cmdline: "console=ttyS0",
            ..LoadRequest::new("vmlinuz", &kernel)
        };
        let p = Parts::of(&req, 128 << 20).unwrap();
        assert_eq!((p.setup.address, p.setup.data.len()), (0x1_0000, 0x1000));
        assert_eq!((p.payload.address, p.cmdline.address), (0x10_0000, 0x2_0000), "where QEMU has them");
        assert_eq!(p.payload.data, [0xa5; 0x4000]);
        // Nothing but the header's fields is changed: EFI stubs and checksums are in there, too.
        let differs = |(a, b): (&u8, &u8)| a != b;
        let changed: Vec<usize> =
            p.setup.data.iter().zip(&kernel).map(differs).enumerate().filter(|c| c.1).map(|c| c.0).collect();
        assert!(changed.iter().all(|at| (0x210..0x22c).contains(at)), "{changed:x?}");
        assert_eq!(p.setup.data[0x210..0x212], [0xb0, 0x81], "QEMU's loader; a heap, and loaded high");
        assert_eq!(p.setup.data[0x224..0x226], 0xfe00u16.to_le_bytes());
        assert_eq!(p.setup.data.u32_at(0x214), Some(p.payload.address));
        assert_eq!((p.initrd.data == initrd, p.initrd.data.len()), (true, 5000));
        assert_eq!(p.setup.data.u32_at(0x218), Some(p.initrd.address));
        assert!(u64::from(p.initrd.address) + 5000 <= (127 << 20), "the firmware's own RAM is left alone");
        assert_eq!(p.cmdline.data, b"console=ttyS0\0");
        assert_eq!(p.setup.data.u32_at(0x228), Some(p.cmdline.address));
        let items = p.into_items();
        assert_eq!(items.len(), 12);
        assert!(items.iter().any(|(k, v)| *k == 0x0b && *v == 5000u32.to_le_bytes()));
    }

    #[test]
    fn an_old_kernel_s_command_line_is_in_its_setup_code_s_segment() {
        let mut kernel = linux_image();
        kernel[0x206..0x208].copy_from_slice(&0x200u16.to_le_bytes());
        kernel[0x211] = 0;
        let p = Parts::of(&LoadRequest { cmdline: "quiet", ..LoadRequest::new("zImage", &kernel) }, 32 << 20);
        let p = p.unwrap();
        assert_eq!([p.setup.address, p.payload.address, p.cmdline.address], [0x9_0000, 0x1_0000, 0x9_9ff0]);
        assert_eq!((p.setup.data.u16_at(0x20), p.setup.data.u16_at(0x22)), (Some(0xa33f), Some(0x9ff0)));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let kernel = linux_image();
        let (long, line) = (vec![0; 30 << 20], "x".repeat(3000));
        let why = |initrd, cmdline, ram| {
            let req = LoadRequest { initrd, cmdline, ..LoadRequest::new("k", &kernel) };
            Parts::of(&req, ram).unwrap_err().to_string()
        };
        assert!(why(Some(&long[..]), "", 31 << 20).contains("the initrd of 30.0 MiB does not fit"));
        assert!(why(Some(&long[..]), "mem=16M", 64 << 20).contains("does not fit"));
        assert!(why(None, &line, 64 << 20).contains("at most 2047 bytes"));
        assert!(why(None, "", 2 << 20).contains("needs RAM"));
    }

    #[test]
    fn the_option_rom_is_one_that_firmware_takes() {
        let rom = option_rom();
        assert_eq!(rom.len(), usize::from(rom[2]) * 512);
        let sum = |b: &[u8]| b.iter().fold(0u8, |s, b| s.wrapping_add(*b));
        assert_eq!((&rom[..2], sum(&rom), sum(&rom[PNP..PNP + 32])), (&[0x55, 0xaa][..], 0, 0));
        let bev = usize::from(u16::from_le_bytes([rom[PNP + 0x1a], rom[PNP + 0x1b]]));
        assert_eq!(rom[bev], 0xfa, "the bootstrap entry starts with CLI");
    }
}
