//! The ROM's code, by what it does.
//!
//! ```text
//!   entry:  out PORT, al      the service runs here
//!           iret
//!   wait:   sti; hlt; cli; jmp entry
//!   poll:   sti; nop; cli; jmp entry
//! ```
use super::super::PORT;
use super::Service;
use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};

/// INT 15h's AX: a device is waited for, and is ready; by what device it is.
const BUSY: u16 = 0x9000;
const READY: u16 = 0x9100;
const DISK: u16 = 0;
const FLOPPY: u16 = 1;
const KEYBOARD: u16 = 2;

/// Labels of one stub: behind its OUT, and its two ways round.
pub(super) struct Labels {
    pub service: Service,
    pub behind: CodeLabel,
    pub wait: CodeLabel,
    pub poll: CodeLabel,
}

/// What the assembler is to tell of.
pub(super) struct Plan {
    pub stubs: Vec<Labels>,
    pub handlers: Vec<(Vec<u8>, CodeLabel)>,
    pub nothing: CodeLabel,
    pub halt: CodeLabel,
    pub alarm: CodeLabel,
    pub control_break: CodeLabel,
    pub print_screen: CodeLabel,
    pub post: CodeLabel,
    pub start: CodeLabel,
    pub say: CodeLabel,
    pub boot: CodeLabel,
    pub boot_read: CodeLabel,
    pub rom_failed: CodeLabel,
    pub mouse_done: CodeLabel,
    pub protect: CodeLabel,
    pub pnp: CodeLabel,
    pub apm: CodeLabel,
    pub pmm: CodeLabel,
    pub pause: CodeLabel,
    pub system_request: CodeLabel,
    pub key_wait: CodeLabel,
    pub key_posted: CodeLabel,
    /// Of floppies, of disks.
    pub drive_wait: [CodeLabel; 2],
    pub drive_posted: CodeLabel,
    pub tick_posts: [CodeLabel; 2],
}

/// A call: OUT, then whatever the caller emits.
fn call(a: &mut CodeAssembler, plan: &mut Plan, service: Service) -> Result<(), IcedError> {
    let mut l = Labels { service, behind: a.create_label(), wait: a.create_label(), poll: a.create_label() };
    let (mut entry, mut on) = (a.create_label(), a.create_label());
    a.jmp(entry)?;
    a.set_label(&mut l.wait)?;
    a.sti()?;
    a.hlt()?;
    a.jmp(on)?;
    a.set_label(&mut l.poll)?;
    a.sti()?;
    a.nop()?;
    a.set_label(&mut on)?;
    a.cli()?;
    a.set_label(&mut entry)?;
    a.out(u32::from(PORT), al)?;
    a.set_label(&mut l.behind)?;
    // So that a caller may put a label of its own behind.
    a.nop()?;
    plan.stubs.push(l);
    Ok(())
}

/// Ends an interrupt of the master, or of slave and master, and returns.
fn end_of_interrupt(a: &mut CodeAssembler, slave: bool) -> Result<(), IcedError> {
    a.push(ax)?;
    a.mov(al, 0x20)?;
    if slave {
        a.out(0xa0, al)?;
    }
    a.out(0x20, al)?;
    a.pop(ax)?;
    a.iret()
}

/// All of the 16-bit code.
pub(super) fn program(a: &mut CodeAssembler) -> Result<Plan, IcedError> {
    let mut plan = Plan {
        stubs: Vec::new(),
        handlers: Vec::new(),
        nothing: a.create_label(),
        halt: a.create_label(),
        alarm: a.create_label(),
        control_break: a.create_label(),
        print_screen: a.create_label(),
        post: a.create_label(),
        start: a.create_label(),
        say: a.create_label(),
        boot: a.create_label(),
        boot_read: a.create_label(),
        rom_failed: a.create_label(),
        mouse_done: a.create_label(),
        protect: a.create_label(),
        pnp: a.create_label(),
        apm: a.create_label(),
        pmm: a.create_label(),
        pause: a.create_label(),
        system_request: a.create_label(),
        key_wait: a.create_label(),
        key_posted: a.create_label(),
        drive_wait: [a.create_label(), a.create_label()],
        drive_posted: a.create_label(),
        tick_posts: [a.create_label(), a.create_label()],
    };
    services(a, &mut plan)?;
    timer(a, &mut plan)?;
    keyboard(a, &mut plan)?;
    waits(a, &mut plan)?;
    slave(a, &mut plan)?;
    mouse(a, &mut plan)?;
    booting(a, &mut plan)?;
    protected_mode(a, &mut plan)?;
    managers(a, &mut plan)?;
    Ok(plan)
}

/// Software interrupts: a stub and an IRET each; and what does nothing.
fn services(a: &mut CodeAssembler, plan: &mut Plan) -> Result<(), IcedError> {
    for (vector, service) in [
        (0x10, Service::Video),
        (0x11, Service::Equipment),
        (0x12, Service::MemorySize),
        (0x13, Service::Disk),
        (0x14, Service::Serial),
        (0x15, Service::System),
        (0x16, Service::Keyboard),
        (0x17, Service::Printer),
        (0x18, Service::NoBoot),
        (0x19, Service::Boot),
        (0x1a, Service::Clock),
        (0x40, Service::Floppy),
    ] {
        let mut entry = a.create_label();
        a.set_label(&mut entry)?;
        call(a, plan, service)?;
        a.iret()?;
        plan.handlers.push((vec![vector], entry));
    }
    // Interrupts that nobody has asked for: of the master 2 to 7, of the slave.
    let mut entry = a.create_label();
    a.set_label(&mut entry)?;
    call(a, plan, Service::StrayInterrupt)?;
    a.iret()?;
    let stray = (0x0a..0x10).chain([0x72, 0x73, 0x76, 0x77]).collect();
    plan.handlers.push((stray, entry));
    a.set_label(&mut plan.nothing)?;
    a.iret()?;
    a.set_label(&mut plan.halt)?;
    a.sti()?;
    a.hlt()?;
    a.jmp(plan.halt)
}

/// IRQ 0, which may also tell INT 15h that a drive is ready.
fn timer(a: &mut CodeAssembler, plan: &mut Plan) -> Result<(), IcedError> {
    let (mut entry, mut on) = (a.create_label(), a.create_label());
    a.set_label(&mut entry)?;
    call(a, plan, Service::Tick)?;
    a.set_label(&mut on)?;
    a.int(0x1c)?;
    end_of_interrupt(a, false)?;
    plan.handlers.push((vec![0x08], entry));
    for (i, ready) in [READY | FLOPPY, READY | DISK].into_iter().enumerate() {
        a.set_label(&mut plan.tick_posts[i])?;
        a.push(ax)?;
        a.mov(ax, u32::from(ready))?;
        a.int(0x15)?;
        a.pop(ax)?;
        a.jmp(on)?;
    }
    Ok(())
}

/// IRQ 1, and what some keys do before its interrupt returns.
fn keyboard(a: &mut CodeAssembler, plan: &mut Plan) -> Result<(), IcedError> {
    // IRQ 1: INT 15h 4Fh may change or take the code.
    let (mut entry, mut taken, mut special) = (a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut entry)?;
    a.push(ax)?;
    a.in_(al, 0x60)?;
    a.mov(ah, 0x4f)?;
    a.stc()?;
    a.int(0x15)?;
    a.jnc(taken)?;
    call(a, plan, Service::Scancode)?;
    a.set_label(&mut taken)?;
    a.pop(ax)?;
    end_of_interrupt(a, false)?;
    a.set_label(&mut plan.control_break)?;
    a.int(0x1b)?;
    a.jmp(special)?;
    a.set_label(&mut plan.print_screen)?;
    a.int(0x05)?;
    a.set_label(&mut special)?;
    a.pop(ax)?;
    end_of_interrupt(a, false)?;
    plan.handlers.push((vec![0x09], entry));
    // Pause: other interrupts go on.
    a.set_label(&mut plan.pause)?;
    a.mov(al, 0x20)?;
    a.out(0x20, al)?;
    call(a, plan, Service::Pause)?;
    a.pop(ax)?;
    a.iret()?;
    // System request: AX is 8500h or 8501h.
    a.set_label(&mut plan.system_request)?;
    a.push(ax)?;
    a.mov(al, 0x20)?;
    a.out(0x20, al)?;
    a.pop(ax)?;
    a.sti()?;
    a.int(0x15)?;
    a.pop(ax)?;
    a.iret()?;
    a.set_label(&mut plan.key_posted)?;
    a.mov(al, 0x20)?;
    a.out(0x20, al)?;
    a.mov(ax, u32::from(READY | KEYBOARD))?;
    a.int(0x15)?;
    a.pop(ax)?;
    a.iret()
}

/// INT 15h 90h and 91h around what is waited for: a key (INT 09h calls 91h), a drive (IRQ 0 does, or it is done here).
fn waits(a: &mut CodeAssembler, plan: &mut Plan) -> Result<(), IcedError> {
    a.set_label(&mut plan.key_wait)?;
    a.push(ax)?;
    a.mov(ax, u32::from(BUSY | KEYBOARD))?;
    a.int(0x15)?;
    a.pop(ax)?;
    call(a, plan, Service::KeyWaited)?;
    a.iret()?;
    for (i, device) in [FLOPPY, DISK].into_iter().enumerate() {
        a.set_label(&mut plan.drive_wait[i])?;
        a.push(ax)?;
        a.mov(ax, u32::from(BUSY | device))?;
        a.int(0x15)?;
        // It goes on behind this if 91h was called.
        call(a, plan, Service::DriveWaited)?;
        a.mov(ax, u32::from(READY | device))?;
        a.int(0x15)?;
        a.jmp(plan.drive_posted)?;
    }
    a.set_label(&mut plan.drive_posted)?;
    a.pop(ax)?;
    call(a, plan, Service::DriveReady)?;
    a.iret()
}

/// IRQ 8, 9 and 13.
fn slave(a: &mut CodeAssembler, plan: &mut Plan) -> Result<(), IcedError> {
    // IRQ 8.
    let (mut entry, mut done) = (a.create_label(), a.create_label());
    a.set_label(&mut entry)?;
    call(a, plan, Service::RtcInterrupt)?;
    a.jmp(done)?;
    a.set_label(&mut plan.alarm)?;
    a.int(0x4a)?;
    a.set_label(&mut done)?;
    end_of_interrupt(a, true)?;
    plan.handlers.push((vec![0x70], entry));

    // IRQ 9 is what IRQ 2 was on a PC.
    let mut entry = a.create_label();
    a.set_label(&mut entry)?;
    a.push(ax)?;
    a.mov(al, 0x20)?;
    a.out(0xa0, al)?;
    a.pop(ax)?;
    a.int(0x0a)?;
    a.iret()?;
    plan.handlers.push((vec![0x71], entry));

    // IRQ 13: clears the x87's busy latch, and is the NMI that it was on a PC.
    let mut entry = a.create_label();
    a.set_label(&mut entry)?;
    a.push(ax)?;
    a.xor(al, al)?;
    a.out(0xf0, al)?;
    a.mov(al, 0x20)?;
    a.out(0xa0, al)?;
    a.out(0x20, al)?;
    a.pop(ax)?;
    a.int(0x02)?;
    a.iret()?;
    plan.handlers.push((vec![0x75], entry));
    Ok(())
}

/// IRQ 12: the service has a mouse handler called with four words on the stack.
fn mouse(a: &mut CodeAssembler, plan: &mut Plan) -> Result<(), IcedError> {
    let mut entry = a.create_label();
    let mut done = a.create_label();
    a.set_label(&mut entry)?;
    a.pushad()?;
    a.push(ds)?;
    a.push(es)?;
    call(a, plan, Service::Mouse)?;
    a.jmp(done)?;
    a.set_label(&mut plan.mouse_done)?;
    a.add(sp, 8)?;
    a.set_label(&mut done)?;
    a.cli()?;
    a.pop(es)?;
    a.pop(ds)?;
    a.popad()?;
    end_of_interrupt(a, true)?;
    plan.handlers.push((vec![0x74], entry));
    Ok(())
}

/// POST, and booting: a step after the other.
fn booting(a: &mut CodeAssembler, plan: &mut Plan) -> Result<(), IcedError> {
    a.set_label(&mut plan.post)?;
    call(a, plan, Service::Reset)?;
    a.jmp(plan.halt)?;

    a.set_label(&mut plan.start)?;
    call(a, plan, Service::Start)?;
    a.jmp(plan.start)?;
    a.set_label(&mut plan.say)?;
    a.int(0x10)?;
    a.jmp(plan.start)?;
    a.set_label(&mut plan.boot)?;
    a.int(0x19)?;
    a.jmp(plan.halt)?;
    a.set_label(&mut plan.rom_failed)?;
    a.int(0x18)?;
    a.jmp(plan.halt)?;
    // The flags that an INT 13h has returned, where a service looks for its caller's.
    a.set_label(&mut plan.boot_read)?;
    a.pushf()?;
    a.push(ax)?;
    a.push(ax)?;
    call(a, plan, Service::BootRead)?;
    a.jmp(plan.halt)
}

/// INT 15h 89h: tables and selectors as the GDT at ES:SI has them; it goes on behind its INT, in segment 30h.
fn protected_mode(a: &mut CodeAssembler, plan: &mut Plan) -> Result<(), IcedError> {
    a.set_label(&mut plan.protect)?;
    a.pop(cx)?;
    a.add(sp, 4)?;
    a.lgdt(word_ptr(si + 8).es())?;
    a.lidt(word_ptr(si + 0x10).es())?;
    a.mov(eax, cr0)?;
    a.or(al, 1)?;
    a.mov(cr0, eax)?;
    a.mov(ax, 0x18)?;
    a.mov(ds, ax)?;
    a.mov(ax, 0x20)?;
    a.mov(es, ax)?;
    a.mov(ax, 0x28)?;
    a.mov(ss, ax)?;
    a.push(0x30)?;
    a.push(cx)?;
    a.xor(ax, ax)?;
    a.retf()
}

/// The POST memory manager and APM, far calls; and Plug and Play, of which no function is there.
fn managers(a: &mut CodeAssembler, plan: &mut Plan) -> Result<(), IcedError> {
    a.set_label(&mut plan.pmm)?;
    call(a, plan, Service::Pmm)?;
    a.retf()?;

    // APM from 16-bit protected mode; carry is the service's.
    a.set_label(&mut plan.apm)?;
    call(a, plan, Service::Apm)?;
    a.retf()?;

    // Plug and Play: no function is there.
    a.set_label(&mut plan.pnp)?;
    a.mov(ax, 0x82)?;
    a.retf()
}

/// Where the 32-bit code is: of the PCI BIOS and APM the entry, and what is behind the OUT.
pub(super) struct At32 {
    pub directory: u16,
    pub pci: [u16; 2],
    pub apm: [u16; 2],
}

/// The 32-bit code: the BIOS32 service directory, the PCI BIOS and APM, position-independent.
pub(super) fn program32(at: u16) -> Result<(Vec<u8>, At32), IcedError> {
    // The directory tells the other entry's offset, which is known when it is assembled.
    let (_, known) = program32_with(at, 0)?;
    program32_with(at, known.pci[0])
}

fn program32_with(at: u16, pci_at: u16) -> Result<(Vec<u8>, At32), IcedError> {
    const PCI: u32 = u32::from_le_bytes(*b"$PCI");
    let mut a = CodeAssembler::new(32)?;
    let mut labels = [(); 6].map(|()| a.create_label());
    let [directory, pci, behind_pci, apm, behind_apm, out] = &mut labels;
    a.set_label(directory)?;
    a.cmp(eax, PCI)?;
    a.mov(al, 0x80)?; // no such service
    a.jne(*out)?;
    a.cmp(bl, 0)?;
    a.mov(al, 0x81)?; // no such function
    a.jne(*out)?;
    a.xor(eax, eax)?;
    a.mov(ebx, 0xf_0000)?;
    a.mov(ecx, 0x1_0000)?;
    a.mov(edx, u32::from(pci_at))?;
    a.set_label(out)?;
    a.retf()?;
    a.set_label(pci)?;
    a.out(u32::from(PORT), al)?;
    a.set_label(behind_pci)?;
    // Carry is set unless AH is 0.
    a.cmp(ah, 1)?;
    a.cmc()?;
    a.retf()?;
    a.set_label(apm)?;
    a.out(u32::from(PORT), al)?;
    a.set_label(behind_apm)?;
    a.retf()?;
    let done = a.assemble_options(at.into(), BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let mut offsets = [0; 5];
    for (o, l) in offsets.iter_mut().zip(&labels) {
        *o = done.label_ip(l)? as u16;
    }
    let [directory, pci, behind_pci, apm, behind_apm] = offsets;
    let known = At32 { directory, pci: [pci, behind_pci], apm: [apm, behind_apm] };
    Ok((done.inner.code_buffer, known))
}
