//! The adapter's ROM at C0000h: what programs look for there, and data that they are given pointers to. It has no code
//! but a far return, the window function of VBE and the protected-mode functions: INT 10h leads to the BIOS' own ROM.
use super::{Platform, glyphs, tables, vbe};
use crate::bios::pci;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

const SEGMENT: u32 = 0xc000;
/// Bytes.
pub(in super::super) const LEN: usize = 0x4000;

const PCI_DATA: usize = 0x20;
pub(super) const WINDOW_FUNCTION: usize = 0x40;
pub(super) const OEM: usize = 0x50;
pub(super) const VENDOR: usize = 0x60;
pub(super) const PRODUCT: usize = 0x70;
pub(super) const REVISION: usize = 0x80;
const FUNCTIONALITY: usize = 0x90;
const ALTERNATE: usize = 0xa0;
const SAVE_POINTER: usize = 0xb0;
const SAVE_POINTER_2: usize = 0xd0;
const COMBINATIONS: usize = 0xf0;
/// The protected-mode interface of VBE.
pub(super) const PROTECTED: usize = 0x100;
const PROTECTED_ROOM: usize = 0x100;
const PARAMETERS: usize = 0x200;
const FONT_8: usize = 0x1000;
const FONT_14: usize = 0x1800;
const FONT_16: usize = 0x2800;

/// Vendor and device of the adapter.
const ID: u32 = 0x1111_1234;

/// The PCI function of the adapter, if there is one.
pub(in super::super) fn adapter(pc: &mut dyn Platform) -> Option<u16> {
    pci::functions(pc).into_iter().find(|bdf| pci::read(pc, *bdf, 0, 4) == ID)
}

/// A far pointer into the ROM.
pub(super) fn pointer(at: usize) -> u32 {
    SEGMENT << 16 | at as u32
}

pub(super) fn font_pointer(height: u8) -> u32 {
    pointer(match height {
        8 => FONT_8,
        14 => FONT_14,
        _ => FONT_16,
    })
}

/// Characters 80h and up of eight lines.
pub(super) fn upper_font_pointer() -> u32 {
    pointer(FONT_8 + 128 * 8)
}

/// What is to be changed in a font for nine dots: nothing.
pub(super) fn alternate_font_pointer() -> u32 {
    pointer(ALTERNATE)
}

pub(super) fn save_pointer() -> u32 {
    pointer(SAVE_POINTER)
}

pub(super) fn functionality() -> u32 {
    pointer(FUNCTIONALITY)
}

/// The image.
pub(in super::super) fn image() -> Vec<u8> {
    let mut rom = vec![0; LEN];
    let mut put = |at: usize, bytes: &[u8]| rom[at..at + bytes.len()].copy_from_slice(bytes);
    // 55 AA, the length, a far return for who starts it; "IBM" where old programs look for a VGA.
    put(0, &[0x55, 0xaa, (LEN / 512) as u8, 0xcb]);
    put(0x18, &(PCI_DATA as u16).to_le_bytes());
    put(0x1e, b"IB");
    // PCI Firmware Specification 3.0, 5.1.2: ids, length 18h, revision 0, class 030000h, for a PC, the last.
    put(PCI_DATA, b"PCIR");
    put(PCI_DATA + 4, &ID.to_le_bytes());
    put(PCI_DATA + 0x0a, &[0x18, 0, 0, 0, 0, 3, (LEN / 512) as u8, 0, 0, 1, 0, 0x80]);
    // mov ax, 4f05h; int 10h; retf
    put(WINDOW_FUNCTION, &[0xb8, 0x05, 0x4f, 0xcd, 0x10, 0xcb]);
    put(OEM, b"Mynah VBE\0");
    put(VENDOR, b"Mynah\0");
    put(PRODUCT, b"Standard VGA\0");
    put(REVISION, b"1.0\0");
    // Static functionality: modes 0 to 7, 0Dh to 13h; 200, 350 and 400 lines; 2 of 8 fonts; all functions; no save
    // areas.
    put(FUNCTIONALITY, &[0xff, 0xe0, 0x0f, 0, 0, 0, 0, 0x07, 0x02, 0x08, 0xff, 0x0e, 0, 0, 0, 0]);
    put(SAVE_POINTER, &pointer(PARAMETERS).to_le_bytes());
    put(SAVE_POINTER + 16, &pointer(SAVE_POINTER_2).to_le_bytes());
    // 26 bytes: its length, and the table of combinations, of which there is a VGA with either monitor.
    put(SAVE_POINTER_2, &[26, 0]);
    put(SAVE_POINTER_2 + 2, &pointer(COMBINATIONS).to_le_bytes());
    put(COMBINATIONS, &[3, 1, 8, 0, 0, 0, 0, 7, 0, 8]);
    let functions = protected().unwrap_or_default();
    debug_assert!(!functions.is_empty() && functions.len() <= PROTECTED_ROOM);
    put(PROTECTED, &functions);
    put(PARAMETERS, &tables::parameters());
    put(FONT_8, &glyphs::FONT_8);
    put(FONT_14, &glyphs::FONT_14);
    put(FONT_16, &glyphs::FONT_16);
    rom[LEN - 1] = rom.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b));
    rom
}

/// Writes it, if nothing else has a ROM there.
pub(super) fn install(pc: &mut dyn Platform) {
    let at = SEGMENT << 4;
    if pc.u16(at) != 0xaa55 {
        pc.write_physical(at.into(), &image());
    }
}

/// The protected-mode interface (VBE 3.0, 4F0Ah): a table of three offsets and no list of ports, then 32-bit code that
/// works wherever it is copied to.
fn protected() -> Result<Vec<u8>, IcedError> {
    let window = {
        let mut a = CodeAssembler::new(32)?;
        // DX is the window's place, in 64 KiB.
        a.push(eax)?;
        a.push(edx)?;
        a.mov(ax, u32::from(vbe::BANK))?;
        a.push(edx)?;
        a.mov(dx, u32::from(vbe::INDEX))?;
        a.out(dx, ax)?;
        a.pop(eax)?;
        a.inc(edx)?;
        a.out(dx, ax)?;
        a.pop(edx)?;
        a.pop(eax)?;
        a.ret()?;
        a.assemble(0)?
    };
    let start = {
        let mut a = CodeAssembler::new(32)?;
        let mut pixels = a.create_label();
        for register in [eax, ebx, ecx, edx, esi] {
            a.push(register)?;
        }
        // DX:CX is the picture's first byte, in fours.
        a.shl(edx, 16)?;
        a.mov(dx, cx)?;
        a.shl(edx, 2)?;
        a.mov(esi, edx)?;
        let read = |a: &mut CodeAssembler, register: u16| -> Result<(), IcedError> {
            a.mov(dx, u32::from(vbe::INDEX))?;
            a.mov(ax, u32::from(register))?;
            a.out(dx, ax)?;
            a.inc(edx)?;
            a.xor(eax, eax)?;
            a.in_(ax, dx)
        };
        read(&mut a, vbe::BPP)?;
        a.add(eax, 7)?;
        a.shr(eax, 3)?;
        a.mov(ebx, eax)?;
        read(&mut a, vbe::VIRT_WIDTH)?;
        a.imul_2(eax, ebx)?;
        a.mov(ecx, eax)?;
        a.xor(edx, edx)?;
        a.mov(eax, esi)?;
        a.test(ecx, ecx)?;
        a.jz(pixels)?;
        a.div(ecx)?;
        // Rows in EAX; pixels are what is left.
        a.mov(ecx, eax)?;
        a.mov(eax, edx)?;
        a.xor(edx, edx)?;
        a.div(ebx)?;
        a.mov(ebx, eax)?;
        for (register, value) in [(vbe::Y_OFFSET, ecx), (vbe::X_OFFSET, ebx)] {
            a.mov(dx, u32::from(vbe::INDEX))?;
            a.mov(ax, u32::from(register))?;
            a.out(dx, ax)?;
            a.inc(edx)?;
            a.mov(eax, value)?;
            a.out(dx, ax)?;
        }
        a.set_label(&mut pixels)?;
        for register in [esi, edx, ecx, ebx, eax] {
            a.pop(register)?;
        }
        a.ret()?;
        a.assemble(0)?
    };
    let palette = {
        let mut a = CodeAssembler::new(32)?;
        let (mut next, mut end) = (a.create_label(), a.create_label());
        for register in [eax, ecx, edx, edi] {
            a.push(register)?;
        }
        // CX colours from DX on, at ES:EDI: blue, green, red and nothing.
        a.movzx(ecx, cx)?;
        a.mov(eax, edx)?;
        a.mov(dx, 0x3c8u32)?;
        a.out(dx, al)?;
        a.inc(edx)?;
        a.set_label(&mut next)?;
        a.jecxz(end)?;
        for at in [2, 1, 0] {
            a.mov(al, byte_ptr(edi + at).es())?;
            a.out(dx, al)?;
        }
        a.add(edi, 4)?;
        a.dec(ecx)?;
        a.jmp(next)?;
        a.set_label(&mut end)?;
        for register in [edi, edx, ecx, eax] {
            a.pop(register)?;
        }
        a.ret()?;
        a.assemble(0)?
    };
    let mut all = vec![0; 8];
    for (n, code) in [window, start, palette].into_iter().enumerate() {
        let at = (all.len() as u16).to_le_bytes();
        all[2 * n..2 * n + 2].copy_from_slice(&at);
        all.extend(code);
    }
    Ok(all)
}

/// Bytes of the protected-mode interface.
pub(super) fn protected_len(pc: &mut dyn Platform) -> u16 {
    let mut all = [0; PROTECTED_ROOM];
    pc.read((SEGMENT << 4) + PROTECTED as u32, &mut all);
    (all.iter().rposition(|b| *b != 0).unwrap_or(0) + 1) as u16
}
