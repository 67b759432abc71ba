//! A program in protected mode that calls the BIOS: PCI BIOS, Plug and Play and APM from 16-bit code whose stack and
//! data have bases of their own, BIOS32, PCI BIOS and APM from 32-bit code; and INT 15h 89h, which begins protected
//! mode.
//!
//! ```text
//!   selectors  08h code  10h data, base 0  18h the BIOS  20h stack, base 20000h  28h ES, base 30000h
//!              30h flat data  38h flat code  40h Plug and Play  48h, 50h APM of 16 bits, code and data
//!              58h, 60h, 68h APM of 32 bits, code, 16-bit code and data, as its specification has them follow
//! ```
use super::*;

const NARROW: u16 = 0x9800;
const WIDE: u16 = 0xa000;
const TABLES: u16 = 0xb000;
/// Far pointers and what real mode has found.
const FARS: i32 = 0x7000;
const PNP: i32 = FARS + 8;
const APM16: i32 = FARS + 16;
const APM32: i32 = FARS + 24;
const DIRECTORY: i32 = FARS + 32;
const BRIDGE: i32 = FARS + 40;
const PCI_SIGNATURE: i32 = 0x2049_4350;

/// Far calls in 16-bit and in 32-bit code by a pointer in memory.
fn call16(a: &mut CodeAssembler, at: i32) -> Result {
    let [low, high] = (at as u16).to_le_bytes();
    a.db(&[0xff, 0x1e, low, high])
}
fn call32(a: &mut CodeAssembler, at: i32) -> Result {
    let [b0, b1, b2, b3] = at.to_le_bytes();
    a.db(&[0xff, 0x1d, b0, b1, b2, b3])
}

/// Goes on in code segment `selector`, with what is there as it was.
fn go_on_in(g: &mut Guest<'_>, selector: i32) -> Result {
    let (mut there, mut on) = (g.a.create_label(), g.a.create_label());
    g.a.push(selector)?;
    g.a.call(there)?;
    g.a.jmp(on)?;
    g.a.set_label(&mut there)?;
    g.a.retf()?;
    g.a.set_label(&mut on)?;
    g.a.nop()
}

/// ES:DI: a structure of this name on a paragraph of segment F000h.
fn find(g: &mut Guest<'_>, name: &[u8; 4]) -> Result {
    let (mut next, mut found) = (g.a.create_label(), g.a.create_label());
    g.a.mov(ax, 0xf000)?;
    g.a.mov(es, ax)?;
    g.a.xor(di, di)?;
    g.a.set_label(&mut next)?;
    g.a.cmp(dword_ptr(di).es(), u32::from_le_bytes(*name) as i32)?;
    g.a.je(found)?;
    g.a.add(di, 16)?;
    g.a.jnz(next)?;
    g.exit(0x7c)?;
    g.a.set_label(&mut found)?;
    g.a.nop()
}

/// Base EAX for a descriptor.
fn set_base(g: &mut Guest<'_>, selector: i32) -> Result {
    let at = i32::from(TABLES) + selector;
    g.a.mov(word_ptr(at + 2), ax)?;
    g.a.shr(eax, 16)?;
    g.a.mov(byte_ptr(at + 4), al)?;
    g.a.mov(byte_ptr(at + 7), ah)
}

fn real(g: &mut Guest<'_>) -> Result {
    g.a.cld()?;
    g.a.mov(ax, 0x2401)?;
    g.a.int(0x15)?;
    // What the host bridge is.
    g.a.mov(ax, 0xb10a)?;
    g.a.xor(bx, bx)?;
    g.a.xor(di, di)?;
    g.a.int(0x1a)?;
    g.no_carry()?;
    g.a.mov(dword_ptr(BRIDGE), ecx)?;
    g.a.mov(dword_ptr(FARS), 0x0018_fe6e)?;
    find(g, b"$PnP")?;
    g.a.mov(ax, word_ptr(di + 0x11).es())?;
    g.a.mov(word_ptr(PNP), ax)?;
    g.a.mov(word_ptr(PNP + 2), 0x40)?;
    g.a.mov(eax, dword_ptr(di + 0x13).es())?;
    set_base(g, 0x40)?;
    find(g, b"_32_")?;
    g.a.mov(eax, dword_ptr(di + 4).es())?;
    g.a.mov(dword_ptr(DIRECTORY), eax)?;
    g.a.mov(word_ptr(DIRECTORY + 4), 0x38)?;
    // APM, version 1.2 with both interfaces: connected to each in turn.
    g.a.mov(ax, 0x5300)?;
    g.a.xor(bx, bx)?;
    g.a.int(0x15)?;
    g.no_carry()?;
    g.a.and(cx, 3)?;
    g.a.cmp(cx, 3)?;
    g.equal()?;
    g.a.mov(ax, 0x5303)?;
    g.a.xor(bx, bx)?;
    g.a.int(0x15)?;
    g.a.mov(dword_ptr(APM32), ebx)?;
    g.a.mov(word_ptr(APM32 + 4), 0x58)?;
    g.a.movzx(eax, ax)?;
    g.a.shl(eax, 4)?;
    set_base(g, 0x58)?;
    g.a.mov(ax, 0x5304)?;
    g.a.xor(bx, bx)?;
    g.a.int(0x15)?;
    g.no_carry()?;
    g.a.mov(ax, 0x5302)?;
    g.a.xor(bx, bx)?;
    g.a.int(0x15)?;
    g.a.mov(word_ptr(APM16), bx)?;
    g.a.mov(word_ptr(APM16 + 2), 0x48)?;
    g.a.movzx(eax, ax)?;
    g.a.shl(eax, 4)?;
    set_base(g, 0x48)?;
    g.a.cli()?;
    g.a.lgdt(fword_ptr(TABLES + 0x80))?;
    g.a.mov(eax, cr0)?;
    g.a.or(al, 1)?;
    g.a.mov(cr0, eax)?;
    let [low, high] = NARROW.to_le_bytes();
    g.a.db(&[0xea, low, high, 8, 0])
}

fn narrow(g: &mut Guest<'_>) -> Result {
    g.check += 0x20;
    g.a.mov(ax, 0x10)?;
    g.a.mov(ds, ax)?;
    g.a.mov(ax, 0x20)?;
    g.a.mov(ss, ax)?;
    g.a.mov(sp, 0x1000)?;
    g.a.mov(ax, 0x28)?;
    g.a.mov(es, ax)?;
    go_on_in(g, 8)?;
    // INT 1Ah's entry, with the flags pushed.
    let pci = |g: &mut Guest<'_>, function: u32| -> Result {
        g.a.mov(ax, function)?;
        g.a.pushf()?;
        call16(g.a, FARS)
    };
    pci(g, 0xb101)?;
    g.no_carry()?;
    g.a.cmp(edx, PCI_SIGNATURE)?;
    g.equal()?;
    g.a.xor(bx, bx)?;
    g.a.xor(di, di)?;
    pci(g, 0xb10a)?;
    g.no_carry()?;
    g.a.cmp(ecx, dword_ptr(BRIDGE))?;
    g.equal()?;
    pci(g, 0xb1ff)?;
    g.a.mov(bp, ax)?;
    g.carry()?;
    g.a.and(bp, 0xff00_u32)?;
    g.a.cmp(bp, 0x8100)?;
    g.equal()?;
    // The routing table: a buffer at ES:DI that names its own segment; its first slot is of device 1.
    g.a.mov(di, 0x10)?;
    g.a.mov(word_ptr(di).es(), 0x400)?;
    g.a.mov(word_ptr(di + 2).es(), 0x100)?;
    g.a.mov(word_ptr(di + 4).es(), 0x28)?;
    pci(g, 0xb10e)?;
    g.no_carry()?;
    g.a.cmp(word_ptr(0x100).es(), 0x0800)?;
    g.equal()?;
    // Plug and Play: how many nodes there are. It has no function.
    for word in [0x40, 0x28, 0, 0x28, 2, 0] {
        g.a.push(word)?;
    }
    call16(g.a, PNP)?;
    g.a.add(sp, 12)?;
    g.a.cmp(ax, 0x82)?;
    g.equal()?;
    // APM: where the power comes from.
    g.a.mov(ax, 0x530a)?;
    g.a.mov(bx, 1)?;
    call16(g.a, APM16)?;
    g.no_carry()?;
    let [low, high] = WIDE.to_le_bytes();
    g.a.db(&[0x66, 0xea, low, high, 0, 0, 0x38, 0])
}

fn wide(a: &mut CodeAssembler) -> Result {
    let mut check = 0x60;
    let mut good = |a: &mut CodeAssembler| -> Result {
        check += 1;
        let mut on = a.create_label();
        a.jz(on)?;
        a.mov(al, check)?;
        a.out(real_mode::EXIT_PORT, al)?;
        a.set_label(&mut on)?;
        a.nop()
    };
    a.mov(eax, 0x30)?;
    a.mov(ds, ax)?;
    a.mov(es, ax)?;
    a.mov(ss, ax)?;
    a.mov(esp, 0x1_f000)?;
    // The directory, of what is there and what is not.
    for (service, code) in [(*b"$PCI", 0), (*b"$XYZ", 0x80)] {
        a.mov(eax, u32::from_le_bytes(service))?;
        a.xor(ebx, ebx)?;
        call32(a, DIRECTORY)?;
        a.cmp(al, code)?;
        good(a)?;
        if code == 0 {
            a.add(edx, ebx)?;
            a.mov(dword_ptr(FARS), edx)?;
            a.mov(word_ptr(FARS + 4), 0x38)?;
        }
    }
    a.mov(eax, 0xb101)?;
    call32(a, FARS)?;
    a.cmp(edx, PCI_SIGNATURE)?;
    good(a)?;
    a.mov(eax, 0xb10a)?;
    a.xor(ebx, ebx)?;
    a.xor(edi, edi)?;
    call32(a, FARS)?;
    a.sbb(eax, eax)?;
    good(a)?;
    a.cmp(ecx, dword_ptr(BRIDGE))?;
    good(a)?;
    a.mov(eax, 0xb1ff)?;
    call32(a, FARS)?;
    a.sbb(eax, eax)?;
    a.inc(eax)?;
    good(a)?;
    a.mov(eax, 0x530a)?;
    a.mov(ebx, 1)?;
    call32(a, APM32)?;
    a.sbb(eax, eax)?;
    good(a)?;
    a.mov(al, CONTENT)?;
    a.out(real_mode::EXIT_PORT, al)?;
    a.jmp(u64::from(WIDE))
}

#[test]
fn a_program_in_protected_mode_calls_pci_plug_and_play_and_apm() {
    let code = 0x0000_9a00_0000_ffff;
    let data = |base: u64| 0x0000_9200_0000_ffff | base << 16;
    let bios = 0xf_0000;
    let gdt: [u64; 14] = [
        0,
        code,
        data(0),
        code | bios << 16,
        data(0x2_0000),
        data(0x3_0000),
        0x00cf_9200_0000_ffff,
        0x00cf_9a00_0000_ffff,
        code,
        code,
        data(bios),
        code | 0x0040 << 48,
        code | bios << 16,
        data(bios),
    ];
    let mut tables = gdt.map(u64::to_le_bytes).concat();
    tables.resize(0x80, 0);
    tables.extend(0x6f_u16.to_le_bytes());
    tables.extend(u32::from(TABLES).to_le_bytes());
    let parts = [code16(AT, real), code16(NARROW, narrow), code32(WIDE, wide), (TABLES, tables)];
    check(&Folder::new("callers"), "protected", &hard_disk(&parts), "if=ide", true);
}

/// INT 15h 89h: it goes on behind the call, in segment 30h, with the descriptors of the caller's GDT.
fn begins(g: &mut Guest<'_>) -> Result {
    g.a.mov(si, u32::from(TABLES))?;
    g.a.mov(bx, 0x5070)?;
    g.a.mov(ax, 0x8900)?;
    g.a.int(0x15)?;
    g.a.mov(bx, cs)?;
    g.a.cmp(bx, 0x30)?;
    g.equal()?;
    g.a.mov(bx, ss)?;
    g.a.cmp(bx, 0x28)?;
    g.equal()?;
    g.a.cmp(ah, 0)?;
    g.equal()?;
    g.a.smsw(ax)?;
    g.a.and(ax, 1)?;
    g.a.cmp(ax, 1)?;
    g.equal()?;
    // DS is at 300000h, above 1 MiB, and ES at F0000h.
    g.a.mov(word_ptr(0), 0x4321)?;
    g.a.cmp(word_ptr(0), 0x4321)?;
    g.equal()?;
    g.a.cmp(byte_ptr(0xfff0_u32).es(), 0xea)?;
    g.equal()?;
    g.exit(CONTENT)
}

#[test]
fn int_15h_89h_goes_on_behind_the_call_in_protected_mode() {
    let data = |base: u64| 0x0000_9200_0000_ffff | (base & 0xff_ffff) << 16;
    let gdt: [u64; 8] = [
        0,
        data(u64::from(TABLES)) & !0xffff | 0x3f,
        0x0000_0000_0000_07ff | 0x1_0000 << 16,
        data(0x30_0000),
        data(0xf_0000),
        data(0),
        0x0000_9a00_0000_ffff,
        0,
    ];
    let parts = [code16(AT, begins), (TABLES, gdt.map(u64::to_le_bytes).concat())];
    // SeaBIOS has no such function.
    check(&Folder::new("callers"), "begins", &hard_disk(&parts), "if=ide", false);
}
