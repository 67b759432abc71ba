//! Direct boot of Linux under a firmware of its own: an option ROM that takes the kernel from fw_cfg.
//!
//! ```text
//!   host:   Parts { setup, payload, initrd, command line } --> fw_cfg items 07h-18h, genroms/linuxboot.bin
//!   guest:  firmware runs the ROM's bootstrap entry --> each item to its address by fw_cfg DMA --> setup code
//! ```
//!
//! The ROM is a Plug and Play option ROM with a bootstrap entry vector (BEV), so that a firmware lists it with the
//! devices that can be booted; `bootorder` puts it first. The kernel is entered at its 16-bit entry, since its setup code asks
//! the firmware that is really there.
//!
//! Sources: Plug and Play BIOS Specification 1.0A, 3.2; BIOS Boot Specification 1.01, 3; QEMU's specification of fw_cfg.
use crate::bzimage;
use crate::detect::{BootProtocol, LoadRequest};
use crate::entry::reg;
use crate::error::LoadError;
use crate::mem::{Fields, GuestMemory};
use crate::tables::{E820Kind, E820Map, Tables};
use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};
use mynah_mmu::Gpa;
use std::cell::RefCell;

/// The ROM's name among the files of fw_cfg.
pub const ROM_FILE: &str = "genroms/linuxboot.bin";

/// The fw_cfg items of each part: address, size, data.
mod key {
    pub const KERNEL: [u16; 3] = [0x07, 0x08, 0x11];
    pub const INITRD: [u16; 3] = [0x0a, 0x0b, 0x12];
    pub const CMDLINE: [u16; 3] = [0x13, 0x14, 0x15];
    pub const SETUP: [u16; 3] = [0x16, 0x17, 0x18];
    /// The kernel's entry point; for our ROM the stack pointer at the setup code's entry.
    pub const ENTRY: u16 = 0x10;
}

/// RAM at the end of low memory that a firmware keeps for itself.
const FIRMWARE_RAM: u64 = 1 << 20;
/// Conventional memory that a firmware leaves alone.
const LOW_END: u64 = 0x9_b000;

/// A part of a kernel, and where it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Its physical address.
    pub address: u32,
    /// Its bytes.
    pub data: Vec<u8>,
}

/// A kernel in parts, ready to be copied to their addresses and entered at `setup` + 200h.
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
    /// The stack pointer in the setup code's segment.
    pub stack: u16,
}

/// Writes, in their order.
struct Recorder {
    below: u64,
    writes: RefCell<Vec<(Gpa, Vec<u8>)>>,
}

impl GuestMemory for Recorder {
    fn read(&self, _: Gpa, buf: &mut [u8]) {
        buf.fill(0);
    }
    fn write(&self, gpa: Gpa, buf: &[u8]) {
        self.writes.borrow_mut().push((gpa, buf.to_vec()));
    }
    fn below_4g(&self) -> u64 {
        self.below
    }
    fn above_4g(&self) -> u64 {
        0
    }
}

impl Recorder {
    /// Takes what was written at `at` and directly behind it.
    fn take(&self, at: u64) -> Part {
        let mut data: Vec<u8> = Vec::new();
        self.writes.borrow_mut().retain_mut(|(gpa, bytes)| {
            let end = at + data.len() as u64;
            if *gpa < at || *gpa > end || (data.is_empty() && *gpa != at) {
                return true;
            }
            let offset = (*gpa - at) as usize;
            if offset == data.len() {
                data.append(bytes);
            } else {
                let over = (data.len() - offset).min(bytes.len());
                data[offset..offset + over].copy_from_slice(&bytes[..over]);
                data.extend_from_slice(&bytes[over..]);
            }
            false
        });
        Part { address: at as u32, data }
    }
}

impl Parts {
    /// The parts of the Linux kernel of `req`, for a machine with `below_4g` bytes of RAM below 4 GiB.
    pub fn of(req: &LoadRequest<'_>, below_4g: u64) -> Result<Parts, LoadError> {
        let recorder = Recorder { below: below_4g, writes: RefCell::default() };
        let mut e820 = E820Map::default();
        e820.set(0, LOW_END, E820Kind::Usable);
        e820.set(1 << 20, below_4g.saturating_sub((1 << 20) + FIRMWARE_RAM), E820Kind::Usable);
        let tables = Tables { e820, rsdp: None, smbios: None, mp: None };
        let req = LoadRequest { protocol: BootProtocol::Linux16, bios_services: true, ..req.clone() };
        let named = |reason| LoadError { name: req.kernel_name.to_owned(), reason };
        let entry = bzimage::load(&recorder, &tables, &req).map_err(named)?;
        let setup = recorder.take(entry.ss.base);
        let at = |offset: usize| u64::from(setup.data.u32_at(offset).unwrap_or(0));
        let h = bzimage::header_fields(&setup.data);
        let payload = recorder.take(h.payload);
        let cmdline = recorder.take(h.cmdline);
        let initrd = if at(h.initrd_size) > 0 { recorder.take(at(h.initrd)) } else { Part::default() };
        Ok(Parts { setup, payload, initrd, cmdline, stack: entry.gpr[reg::RSP] as u16 })
    }

    /// The fw_cfg items that the ROM reads: key and bytes.
    pub fn into_items(self) -> Vec<(u16, Vec<u8>)> {
        let stack = (key::ENTRY, u32::from(self.stack).to_le_bytes().to_vec());
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
            .chain([stack])
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
    read_word(&mut a, key::SETUP[0], read)?;
    a.push(eax)?;
    read_word(&mut a, key::ENTRY, read)?;
    a.pop(esi)?;
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
        assert_eq!(p.payload.data, [0xa5; 0x4000]);
        assert_eq!(p.setup.data.u32_at(0x214), Some(p.payload.address));
        assert_eq!((p.initrd.data == initrd, p.initrd.data.len()), (true, 5000));
        assert_eq!(p.setup.data.u32_at(0x218), Some(p.initrd.address));
        assert!(u64::from(p.initrd.address) + 5000 <= (127 << 20), "the firmware's own RAM is left alone");
        assert_eq!(p.cmdline.data, b"console=ttyS0\0");
        assert_eq!(p.setup.data.u32_at(0x228), Some(p.cmdline.address));
        let items = p.into_items();
        assert_eq!(items.len(), 13);
        assert!(items.iter().any(|(k, v)| *k == 0x0b && *v == 5000u32.to_le_bytes()));
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
