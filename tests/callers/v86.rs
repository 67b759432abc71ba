//! A program in virtual-8086 mode under a monitor of 32 bits, with paging: it calls the BIOS as in real mode. The
//! monitor reflects interrupts by the program's own table; where the program has no I/O privilege (IOPL 0) it
//! emulates what traps.
//!
//! ```text
//!   8000h  16-bit code: interrupts of the master to 50h, into protected mode
//!   9400h  the program         A000h  the monitor, where all stubs jump      AC00h  its start
//!   B000h  GDT and IDT's descriptors      C000h  stubs of 12 bytes           D000h  IDT
//!   7000h  what the monitor tells the program: accesses to port 80h, a word of memory at 350000h
//!   20000h TSS, 30000h page tables; linear 50000h is 350000h
//! ```
use super::*;

const TASK: u16 = 0x9400;
const MONITOR: u16 = 0xa000;
const START: u16 = 0xac00;
const TABLES: u16 = 0xb000;
const STUBS: u16 = 0xc000;
const IDT: u16 = 0xd000;
const TOLD: i32 = 0x7000;
const TSS: u32 = 0x2_0000;
const PAGES: u32 = 0x3_0000;
const FAR: u32 = 0x35_0000;

fn start16(g: &mut Guest<'_>) -> Result {
    g.a.mov(ax, 0x2401)?;
    g.a.int(0x15)?;
    g.a.cli()?;
    g.a.in_(al, 0x21)?;
    g.a.mov(bl, al)?;
    g.a.mov(al, 0x11)?;
    g.a.out(0x20, al)?;
    for word in [0x50, 4, 1] {
        g.a.mov(al, word)?;
        g.a.out(0x21, al)?;
    }
    g.a.mov(al, bl)?;
    g.a.out(0x21, al)?;
    g.a.lgdt(fword_ptr(TABLES + 0x80))?;
    g.a.mov(eax, cr0)?;
    g.a.or(al, 1)?;
    g.a.mov(cr0, eax)?;
    // JMP FAR 08h:START, 32 bits.
    let [low, high] = START.to_le_bytes();
    g.a.db(&[0x66, 0xea, low, high, 0, 0, 8, 0])
}

fn start32(a: &mut CodeAssembler, iopl: u32) -> Result {
    a.mov(eax, 0x10)?;
    a.mov(ds, ax)?;
    a.mov(es, ax)?;
    a.mov(ss, ax)?;
    a.mov(esp, 0x1_f000)?;
    a.cld()?;
    a.xor(eax, eax)?;
    a.mov(edi, TSS)?;
    a.mov(ecx, 0x1000)?;
    a.rep().stosd()?;
    a.mov(edi, PAGES)?;
    a.mov(ecx, 0x400)?;
    a.rep().stosd()?;
    a.mov(dword_ptr(PAGES), PAGES + 0x1007)?;
    a.mov(eax, 7)?;
    let mut page = a.create_label();
    a.set_label(&mut page)?;
    a.stosd()?;
    a.add(eax, 0x1000)?;
    a.cmp(eax, 0x40_0007)?;
    a.jne(page)?;
    a.mov(dword_ptr(PAGES + 0x1000 + 4 * 0x50), FAR | 7)?;
    a.mov(eax, PAGES)?;
    a.mov(cr3, eax)?;
    a.mov(eax, cr0)?;
    a.or(eax, 0x8000_0000_u32 as i32)?;
    a.mov(cr0, eax)?;
    // The TSS: the monitor's stack, and the bitmap, in which only port 80h is denied.
    a.mov(dword_ptr(TSS + 4), 0x1_f000)?;
    a.mov(dword_ptr(TSS + 8), 0x10)?;
    a.mov(word_ptr(TSS + 0x66), 0x68)?;
    a.mov(byte_ptr(TSS + 0x68 + 0x80 / 8), 1)?;
    a.mov(byte_ptr(TSS + 0x68 + 0x2000), 0xff)?;
    a.mov(dword_ptr(TOLD), 0)?;
    a.mov(ax, 0x18)?;
    a.ltr(ax)?;
    a.lidt(fword_ptr(TABLES + 0x90))?;
    for _ in 0..5 {
        a.push(0)?;
    }
    a.push(0x7c00)?;
    a.push((0x2_0202 | iopl << 12) as i32)?;
    a.push(0)?;
    a.push(i32::from(TASK))?;
    a.iretd()
}

/// Entered with the vector and an error code (or 0) below the frame of virtual-8086 mode.
fn monitor(a: &mut CodeAssembler) -> Result {
    const VECTOR: i32 = 32;
    const IP: i32 = 40;
    const CS: i32 = 44;
    const FLAGS: i32 = 48;
    const SP: i32 = 52;
    const SS: i32 = 56;
    /// What POPF and IRET change: arithmetic flags, IF, DF.
    const CHANGES: u32 = 0x0ed5;
    let mut labels = [(); 14].map(|()| a.create_label());
    let [gp, slave, reflect, failed, done, next, stack, flags, int, cli, sti, pushf, popf, iret] =
        &mut labels;
    let mut hlt = a.create_label();
    let mut out = a.create_label();
    a.pushad()?;
    a.mov(ebp, esp)?;
    a.mov(eax, 0x10)?;
    a.mov(ds, ax)?;
    a.mov(es, ax)?;
    a.mov(ebx, dword_ptr(ebp + VECTOR))?;
    a.cmp(ebx, 13)?;
    a.je(*gp)?;
    a.cmp(ebx, 0x50)?;
    a.jb(*failed)?;
    a.cmp(ebx, 0x58)?;
    a.jae(*slave)?;
    a.sub(ebx, 0x48)?;
    a.jmp(*reflect)?;
    a.set_label(slave)?;
    a.cmp(ebx, 0x70)?;
    a.jb(*failed)?;
    a.cmp(ebx, 0x78)?;
    a.jae(*failed)?;
    // Interrupt EBX of the program's table.
    a.set_label(reflect)?;
    a.sub(word_ptr(ebp + SP), 6)?;
    a.call(*stack)?;
    for (from, to) in [(IP, 0), (CS, 2), (FLAGS, 4)] {
        a.mov(ax, word_ptr(ebp + from))?;
        a.mov(word_ptr(ecx + to), ax)?;
    }
    a.movzx(eax, word_ptr(ebx * 4))?;
    a.mov(dword_ptr(ebp + IP), eax)?;
    a.movzx(eax, word_ptr(ebx * 4 + 2))?;
    a.mov(dword_ptr(ebp + CS), eax)?;
    a.and(dword_ptr(ebp + FLAGS), !0x300)?;
    a.jmp(*done)?;
    // ECX: where its stack is.
    a.set_label(stack)?;
    a.movzx(ecx, word_ptr(ebp + SS))?;
    a.shl(ecx, 4)?;
    a.movzx(eax, word_ptr(ebp + SP))?;
    a.add(ecx, eax)?;
    a.ret()?;
    // Flags from EAX.
    a.set_label(flags)?;
    a.and(eax, CHANGES as i32)?;
    a.and(dword_ptr(ebp + FLAGS), !(CHANGES as i32))?;
    a.or(dword_ptr(ebp + FLAGS), eax)?;
    a.ret()?;
    // A general protection fault: by the instruction.
    a.set_label(gp)?;
    a.movzx(esi, word_ptr(ebp + CS))?;
    a.shl(esi, 4)?;
    a.movzx(eax, word_ptr(ebp + IP))?;
    a.add(esi, eax)?;
    a.mov(al, byte_ptr(esi))?;
    let known = [
        (0xcd, *int),
        (0xfa, *cli),
        (0xfb, *sti),
        (0x9c, *pushf),
        (0x9d, *popf),
        (0xcf, *iret),
        (0xf4, hlt),
        (0xe6, out),
    ];
    for (opcode, label) in known {
        a.cmp(al, opcode)?;
        a.je(label)?;
    }
    a.jmp(*failed)?;
    a.set_label(int)?;
    a.movzx(ebx, byte_ptr(esi + 1))?;
    a.add(word_ptr(ebp + IP), 2)?;
    a.jmp(*reflect)?;
    a.set_label(cli)?;
    a.and(dword_ptr(ebp + FLAGS), !0x200)?;
    a.jmp(*next)?;
    // It waits by going round.
    a.set_label(&mut hlt)?;
    a.jmp(*next)?;
    a.set_label(sti)?;
    a.or(dword_ptr(ebp + FLAGS), 0x200)?;
    a.jmp(*next)?;
    a.set_label(pushf)?;
    a.sub(word_ptr(ebp + SP), 2)?;
    a.call(*stack)?;
    a.mov(ax, word_ptr(ebp + FLAGS))?;
    a.mov(word_ptr(ecx), ax)?;
    a.jmp(*next)?;
    a.set_label(popf)?;
    a.call(*stack)?;
    a.movzx(eax, word_ptr(ecx))?;
    a.call(*flags)?;
    a.add(word_ptr(ebp + SP), 2)?;
    a.set_label(next)?;
    a.inc(word_ptr(ebp + IP))?;
    a.set_label(done)?;
    a.popad()?;
    a.add(esp, 8)?;
    a.iretd()?;
    a.set_label(iret)?;
    a.call(*stack)?;
    for (from, to) in [(0, IP), (2, CS)] {
        a.movzx(eax, word_ptr(ecx + from))?;
        a.mov(dword_ptr(ebp + to), eax)?;
    }
    a.movzx(eax, word_ptr(ecx + 4))?;
    a.call(*flags)?;
    a.add(word_ptr(ebp + SP), 6)?;
    a.jmp(*done)?;
    // OUT 80h: counted, and the program is told what is in far memory.
    a.set_label(&mut out)?;
    a.cmp(byte_ptr(esi + 1), 0x80)?;
    a.jne(*failed)?;
    a.inc(dword_ptr(TOLD))?;
    a.mov(eax, dword_ptr(FAR))?;
    a.mov(dword_ptr(TOLD + 4), eax)?;
    a.add(word_ptr(ebp + IP), 2)?;
    a.jmp(*done)?;
    a.set_label(failed)?;
    a.mov(al, 0x7d)?;
    a.out(real_mode::EXIT_PORT, al)?;
    let mut here = a.create_label();
    a.set_label(&mut here)?;
    a.jmp(here)
}

/// The program.
fn task(g: &mut Guest<'_>) -> Result {
    const SMAP: i32 = 0x534d_4150;
    // The cursor moves.
    g.a.mov(ax, 0x0300)?;
    g.a.xor(bx, bx)?;
    g.a.int(0x10)?;
    g.a.mov(bp, dx)?;
    g.print("V")?;
    g.a.mov(ax, 0x0300)?;
    g.a.xor(bx, bx)?;
    g.a.int(0x10)?;
    g.a.sub(dx, bp)?;
    g.a.cmp(dx, 1)?;
    g.equal()?;
    // A sector goes where the page is.
    g.a.mov(ax, 0x5000)?;
    g.a.mov(es, ax)?;
    g.a.xor(bx, bx)?;
    g.a.mov(cx, 1)?;
    g.a.xor(dh, dh)?;
    g.a.mov(dl, byte_ptr(DRIVE))?;
    g.a.mov(ax, 0x0201)?;
    g.a.int(0x13)?;
    g.no_carry()?;
    g.a.cmp(word_ptr(510).es(), 0xaa55_u32)?;
    g.equal()?;
    g.a.out(0x80, al)?;
    g.a.mov(eax, dword_ptr(0).es())?;
    g.a.cmp(eax, dword_ptr(TOLD + 4))?;
    g.equal()?;
    g.a.cmp(dword_ptr(TOLD), 1)?;
    g.equal()?;
    g.a.cmp(eax, 0)?;
    g.a.setz(al)?;
    g.a.cmp(al, 0)?;
    g.equal()?;
    g.a.xor(ax, ax)?;
    g.a.mov(es, ax)?;
    // No key; then one, by the keyboard controller's command D2h.
    g.a.mov(ah, 1)?;
    g.a.int(0x16)?;
    g.equal()?;
    g.a.mov(al, 0xd2)?;
    g.a.out(0x64, al)?;
    g.a.mov(al, 0x1e)?;
    g.a.out(0x60, al)?;
    g.a.xor(ax, ax)?;
    g.a.int(0x16)?;
    g.a.cmp(ax, 0x1e61)?;
    g.equal()?;
    // Ticks.
    let mut same = g.a.create_label();
    g.a.xor(ax, ax)?;
    g.a.int(0x1a)?;
    g.a.mov(bp, dx)?;
    g.a.set_label(&mut same)?;
    g.a.xor(ax, ax)?;
    g.a.int(0x1a)?;
    g.a.cmp(dx, bp)?;
    g.a.je(same)?;
    // The memory map begins at 0 with RAM.
    g.a.mov(eax, 0xe820)?;
    g.a.xor(ebx, ebx)?;
    g.a.mov(ecx, 20)?;
    g.a.mov(edx, SMAP)?;
    g.a.mov(di, BUFFER)?;
    g.a.int(0x15)?;
    g.a.cmp(eax, SMAP)?;
    g.equal()?;
    g.a.cmp(dword_ptr(BUFFER), 0)?;
    g.equal()?;
    g.a.cmp(byte_ptr(BUFFER + 16), 1)?;
    g.equal()?;
    // A delay, in which the BIOS waits.
    g.a.mov(ax, 0x8600)?;
    g.a.mov(cx, 1)?;
    g.a.mov(dx, 0x8000)?;
    g.a.int(0x15)?;
    g.no_carry()?;
    g.a.mov(ax, 0xb101)?;
    g.a.int(0x1a)?;
    g.a.cmp(edx, 0x2049_4350)?;
    g.equal()?;
    g.exit(CONTENT)
}

fn tables() -> Vec<u8> {
    let tss = 0x0000_8900_0000_2068 | u64::from(TSS) << 16;
    let gdt = [0, 0x00cf_9a00_0000_ffff, 0x00cf_9200_0000_ffff, tss];
    let mut t = gdt.map(u64::to_le_bytes).concat();
    t.resize(0x80, 0);
    t.extend(31_u16.to_le_bytes());
    t.extend(u32::from(TABLES).to_le_bytes());
    t.resize(0x90, 0);
    t.extend(0x7ff_u16.to_le_bytes());
    t.extend(u32::from(IDT).to_le_bytes());
    t
}

fn stubs() -> Vec<u8> {
    let mut code = Vec::new();
    for vector in 0..256_u32 {
        // PUSH 0 where the processor pushes no error; PUSH vector; JMP.
        let error = matches!(vector, 8 | 10..=14 | 17);
        code.extend(if error { [0x90, 0x90] } else { [0x6a, 0] });
        code.push(0x68);
        code.extend(vector.to_le_bytes());
        let behind = i32::from(STUBS) + 12 * (vector as i32 + 1);
        code.push(0xe9);
        code.extend((i32::from(MONITOR) - behind).to_le_bytes());
    }
    code
}

fn idt() -> Vec<u8> {
    (0..256_u16).flat_map(|v| kit::gate(8, u32::from(STUBS + 12 * v), 0)).collect()
}

#[test]
fn a_program_under_a_v86_monitor_calls_as_in_real_mode() {
    let folder = Folder::new("callers");
    for iopl in [3, 0] {
        let parts = [
            code16(AT, start16),
            code16(TASK, task),
            code32(MONITOR, monitor),
            code32(START, |a| start32(a, iopl)),
            (TABLES, tables()),
            (STUBS, stubs()),
            (IDT, idt()),
        ];
        check(&folder, &format!("v86-{iopl}"), &hard_disk(&parts), "if=ide", iopl == 3);
    }
}
