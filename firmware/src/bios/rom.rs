//! The ROM: stubs that call the services, hardware interrupt handlers around them, and the few bytes that programs look
//! for at fixed places.
//!
//! ```text
//!   entry:  out PORT, al      the service runs here
//!           iret
//!   wait:   sti; hlt; cli; jmp entry
//!   poll:   sti; nop; cli; jmp entry
//! ```
//!
//! Offsets are in segment F000h. The image is 8 KiB, at FE000h, and ends with the reset vector, the date and the model
//! byte (IBM BIOS Interface Technical Reference, "BIOS data areas and ROM tables").
use super::PORT;
use crate::entry::{DescriptorTable, FLAT_GDT};
use crate::tables::Chipset;
use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};
use std::collections::BTreeMap;

/// Offset of the image in its segment.
pub const START: u16 = 0xe000;
/// Bytes of the image.
pub const LEN: usize = 0x2000;
/// Where POST starts on every PC since the first.
const POST: u16 = 0xe05b;
/// The reset vector.
pub const RESET: u16 = 0xfff0;
/// The GDT with which a system is woken in protected mode.
const GDT: u16 = 0xe800;
/// The table that INT 15h C0h points to.
pub const CONFIG_TABLE: u16 = 0xe6f5;
/// The model byte of an AT.
const MODEL: u8 = 0xfc;
/// The Plug and Play installation check structure.
pub const PNP: u16 = 0xe100;
/// The POST memory manager's structure.
pub const PMM: u16 = 0xe140;
/// The BIOS32 service directory's header.
const BIOS32: u16 = 0xe130;
/// The PCI interrupt routing table.
pub const IRQ_TABLE: u16 = 0xe200;
/// The floppy parameter table, where INT 1Eh points.
pub const FLOPPY_TABLE: u16 = 0xefc7;

/// The GDT in the ROM.
pub fn gdt() -> DescriptorTable {
    let base = u64::from(super::linear(super::SEGMENT, GDT));
    DescriptorTable { base, limit: size_of_val(&FLAT_GDT) as u16 - 1 }
}

/// What a stub calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// INT 10h.
    Video,
    /// INT 11h.
    Equipment,
    /// INT 12h.
    MemorySize,
    /// INT 13h.
    Disk,
    /// INT 40h.
    Floppy,
    /// INT 14h.
    Serial,
    /// INT 15h.
    System,
    /// INT 16h.
    Keyboard,
    /// INT 17h.
    Printer,
    /// INT 18h.
    NoBoot,
    /// INT 19h.
    Boot,
    /// INT 1Ah.
    Clock,
    /// IRQ 0, before INT 1Ch.
    Tick,
    /// IRQ 1, with the scan code in AL.
    Scancode,
    /// IRQ 8.
    RtcInterrupt,
    /// An interrupt that nobody has asked for.
    StrayInterrupt,
    /// A jump to the reset vector.
    Reset,
    /// A step of booting.
    Start,
    /// The INT 13h that was to load a boot sector has returned.
    BootRead,
    /// IRQ 12.
    Mouse,
    /// The POST memory manager.
    Pmm,
    /// The 32-bit PCI BIOS.
    Pci32,
}

/// Where a stub goes on.
#[derive(Clone, Copy, Debug)]
pub struct Stub {
    /// The service.
    pub service: Service,
    /// Halts, and calls again.
    pub wait: u16,
    /// Lets interrupts in, and calls again.
    pub poll: u16,
}

/// The assembled ROM.
pub struct Rom {
    /// The image, `LEN` bytes for `START`.
    pub image: Vec<u8>,
    /// Offsets of the handlers of all 256 interrupts.
    pub vectors: [u16; 256],
    /// Stubs by the offset behind their OUT.
    pub stubs: BTreeMap<u16, Stub>,
    /// Waits for ever with interrupts on.
    pub halt: u16,
    /// The stub of [`Service::Start`].
    pub start: u16,
    /// Shows AL by INT 10h, then goes on there.
    pub say: u16,
    /// Calls INT 19h.
    pub boot: u16,
    /// The stub of [`Service::BootRead`], for an INT 13h to return to.
    pub boot_read: u16,
    /// Calls INT 18h: an option ROM that was to boot has returned.
    pub rom_failed: u16,
    /// An IRET.
    pub iret: u16,
    /// Behind a far call of a mouse handler, whose arguments are on the stack.
    pub mouse_done: u16,
    /// Enters protected mode as INT 15h 89h does.
    pub protect: u16,
    /// Calls INT 4Ah and ends the interrupt of the clock.
    pub alarm: u16,
    /// Calls INT 1Bh and ends the interrupt of the keyboard.
    pub control_break: u16,
    /// Calls INT 05h and ends the interrupt of the keyboard.
    pub print_screen: u16,
}

/// Labels of one stub: behind its OUT, and its two ways round.
struct Labels {
    service: Service,
    behind: CodeLabel,
    wait: CodeLabel,
    poll: CodeLabel,
}

/// What the assembler is to tell of.
struct Plan {
    stubs: Vec<Labels>,
    handlers: Vec<(Vec<u8>, CodeLabel)>,
    nothing: CodeLabel,
    halt: CodeLabel,
    alarm: CodeLabel,
    control_break: CodeLabel,
    print_screen: CodeLabel,
    post: CodeLabel,
    start: CodeLabel,
    say: CodeLabel,
    boot: CodeLabel,
    boot_read: CodeLabel,
    rom_failed: CodeLabel,
    mouse_done: CodeLabel,
    protect: CodeLabel,
    pnp: CodeLabel,
    pmm: CodeLabel,
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

fn program(a: &mut CodeAssembler) -> Result<Plan, IcedError> {
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
        pmm: a.create_label(),
    };
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
        call(a, &mut plan, service)?;
        a.iret()?;
        plan.handlers.push((vec![vector], entry));
    }

    let mut entry = a.create_label();
    a.set_label(&mut entry)?;
    call(a, &mut plan, Service::Tick)?;
    a.int(0x1c)?;
    end_of_interrupt(a, false)?;
    plan.handlers.push((vec![0x08], entry));

    // IRQ 1: INT 15h 4Fh may change or take the code.
    let (mut entry, mut taken, mut special) = (a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut entry)?;
    a.push(ax)?;
    a.in_(al, 0x60)?;
    a.mov(ah, 0x4f)?;
    a.stc()?;
    a.int(0x15)?;
    a.jnc(taken)?;
    call(a, &mut plan, Service::Scancode)?;
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

    // IRQ 8.
    let (mut entry, mut done) = (a.create_label(), a.create_label());
    a.set_label(&mut entry)?;
    call(a, &mut plan, Service::RtcInterrupt)?;
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

    // The others: of the master 2 to 7, of the slave.
    let mut entry = a.create_label();
    a.set_label(&mut entry)?;
    call(a, &mut plan, Service::StrayInterrupt)?;
    a.iret()?;
    let stray = (0x0a..0x10).chain([0x72, 0x73, 0x76, 0x77]).collect();
    plan.handlers.push((stray, entry));

    a.set_label(&mut plan.nothing)?;
    a.iret()?;
    a.set_label(&mut plan.halt)?;
    a.sti()?;
    a.hlt()?;
    a.jmp(plan.halt)?;
    a.set_label(&mut plan.post)?;
    call(a, &mut plan, Service::Reset)?;
    a.jmp(plan.halt)?;

    // Booting: a step after the other.
    a.set_label(&mut plan.start)?;
    call(a, &mut plan, Service::Start)?;
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
    call(a, &mut plan, Service::BootRead)?;
    a.jmp(plan.halt)?;

    // IRQ 12: the service has a mouse handler called with four words on the stack.
    let mut entry = a.create_label();
    let mut done = a.create_label();
    a.set_label(&mut entry)?;
    a.pushad()?;
    a.push(ds)?;
    a.push(es)?;
    call(a, &mut plan, Service::Mouse)?;
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

    // INT 15h 89h: tables and selectors as the GDT at ES:SI has them; it goes on behind its INT, in segment 30h.
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
    a.retf()?;

    // The POST memory manager: a far call.
    a.set_label(&mut plan.pmm)?;
    call(a, &mut plan, Service::Pmm)?;
    a.retf()?;

    // Plug and Play: no function is there.
    a.set_label(&mut plan.pnp)?;
    a.mov(ax, 0x82)?;
    a.retf()?;
    Ok(plan)
}

/// The 32-bit code: the BIOS32 service directory and the PCI BIOS, position-independent. Offsets of the two entries,
/// and the one behind the OUT.
fn program32(at: u16) -> Result<(Vec<u8>, [u16; 3]), IcedError> {
    // The directory tells the other entry's offset, which is known when it is assembled.
    let (_, [_, pci, _]) = program32_with(at, 0)?;
    program32_with(at, pci)
}

fn program32_with(at: u16, pci_at: u16) -> Result<(Vec<u8>, [u16; 3]), IcedError> {
    const PCI: u32 = u32::from_le_bytes(*b"$PCI");
    let mut a = CodeAssembler::new(32)?;
    let (mut directory, mut pci, mut behind, mut out) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut directory)?;
    a.cmp(eax, PCI)?;
    a.mov(al, 0x80)?; // no such service
    a.jne(out)?;
    a.cmp(bl, 0)?;
    a.mov(al, 0x81)?; // no such function
    a.jne(out)?;
    a.xor(eax, eax)?;
    a.mov(ebx, 0xf_0000)?;
    a.mov(ecx, 0x1_0000)?;
    a.mov(edx, u32::from(pci_at))?;
    a.set_label(&mut out)?;
    a.retf()?;
    a.set_label(&mut pci)?;
    a.out(u32::from(PORT), al)?;
    a.set_label(&mut behind)?;
    // Carry is set unless AH is 0.
    a.cmp(ah, 1)?;
    a.cmc()?;
    a.retf()?;
    let done = a.assemble_options(at.into(), BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let mut offsets = [0; 3];
    for (o, l) in offsets.iter_mut().zip([directory, pci, behind]) {
        *o = done.label_ip(&l)? as u16;
    }
    Ok((done.inner.code_buffer, offsets))
}

/// The PCI interrupt routing table (`$PIR`, PCI IRQ Routing Table Specification 1.0): the wires of the PIIX3 or ICH9.
pub fn irq_routing(chipset: Chipset) -> Vec<u8> {
    let (router, id): (u8, u32) = match chipset {
        Chipset::Q35 => (0x1f << 3, 0x2918_8086),
        _ => (1 << 3, 0x7000_8086),
    };
    let mut t = Vec::new();
    t.extend(b"$PIR\x00\x01");
    t.extend([0, 0]); // the length, below
    t.extend([0, router]); // on bus 0
    t.extend([0, 0]); // no interrupt is PCI's alone
    t.extend(id.to_le_bytes());
    t.extend([0; 16]); // no miniport data, reserved, checksum
    for device in 1..32u8 {
        t.extend(slot(chipset, device));
    }
    let length = (t.len() as u16).to_le_bytes();
    t[6..8].copy_from_slice(&length);
    t[31] = t.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b));
    t
}

/// The register of the chipset that routes a wire: 60h to 63h, and on the ICH9 68h to 6Bh.
pub fn link(chipset: Chipset, device: u8, pin: u8) -> u8 {
    let wire = chipset.pirq(device, pin) as u8 & 7;
    if wire < 4 { 0x60 + wire } else { 0x64 + wire }
}

/// A slot of the routing table: links are the registers of the wires.
pub fn slot(chipset: Chipset, device: u8) -> [u8; 16] {
    let mut s = [0; 16];
    s[1] = device << 3;
    for pin in 0..4u8 {
        let at = 2 + 3 * usize::from(pin);
        s[at] = link(chipset, device, pin);
        s[at + 1..at + 3].copy_from_slice(&ROUTABLE.to_le_bytes());
    }
    s[14] = device;
    s
}

/// Interrupts that PCI may be routed to.
pub const ROUTABLE: u16 = 0xdef8;

impl Rom {
    /// Assembles it.
    ///
    /// # Panics
    /// If the program above does not assemble or has outgrown its room: a mistake in this file.
    pub fn assemble() -> Rom {
        Self::try_assemble().expect("the BIOS ROM assembles")
    }

    fn try_assemble() -> Result<Rom, IcedError> {
        // Behind the tables that have places of their own.
        const CODE: u16 = 0xf000;
        let mut a = CodeAssembler::new(16)?;
        let plan = program(&mut a)?;
        let out = a.assemble_options(CODE.into(), BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
        let at = |l: &CodeLabel| out.label_ip(l).map(|ip| ip as u16);
        let code = &out.inner.code_buffer;
        let mut image = vec![0xf4; LEN];
        let mut put = |offset: u16, bytes: &[u8]| {
            let at = usize::from(offset - START);
            image[at..at + bytes.len()].copy_from_slice(bytes);
        };
        assert!(code.len() < usize::from(RESET - CODE), "the ROM's code has no room");
        put(CODE, code);
        let far_jump = |to: u16| [0xea, to as u8, (to >> 8) as u8, 0x00, 0xf0];
        put(POST, &far_jump(at(&plan.post)?));
        put(RESET, &far_jump(POST));
        put(GDT, FLAT_GDT.map(u64::to_le_bytes).as_flattened());
        put(RESET + 5, b"01/01/99");
        put(RESET + 14, &[MODEL, 0]);
        // Length, model, submodel, revision; features: slave 8259 and clock, INT 15h 4Fh is called, EBDA.
        put(CONFIG_TABLE, &[8, 0, MODEL, 1, 0, 0x74, 0, 0, 0, 0]);
        // 1.44 MB: step rate, DMA, motor off delay, 512 bytes, 18 sectors, gaps, fill byte, settle, motor start.
        let (code32, [directory, _, behind32]) = program32(at(&plan.pnp)? + 0x10)?;
        put(at(&plan.pnp)? + 0x10, &code32);
        // "$PnP" 1.0: 33 bytes, no event notification; entries of real and protected mode, both in this segment.
        let [low, high] = at(&plan.pnp)?.to_le_bytes();
        let mut pnp = [0; 33];
        pnp[..6].copy_from_slice(b"$PnP\x10\x21");
        pnp[0x0d..0x11].copy_from_slice(&[low, high, 0x00, 0xf0]);
        pnp[0x11..0x17].copy_from_slice(&[low, high, 0x00, 0x00, 0x0f, 0x00]);
        pnp[0x1b..0x1d].copy_from_slice(&[0x00, 0xf0]);
        pnp[8] = pnp.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b));
        put(PNP, &pnp);
        // "$PMM" 1.0: 16 bytes, the entry.
        let [low, high] = at(&plan.pmm)?.to_le_bytes();
        let mut pmm = [0; 16];
        pmm[..6].copy_from_slice(b"$PMM\x01\x10");
        pmm[7..11].copy_from_slice(&[low, high, 0x00, 0xf0]);
        pmm[6] = pmm.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b));
        put(PMM, &pmm);
        // "_32_": the entry, revision 0, one paragraph.
        let mut header = [0; 16];
        header[..4].copy_from_slice(b"_32_");
        header[4..8].copy_from_slice(&super::linear(super::SEGMENT, directory).to_le_bytes());
        header[9] = 1;
        header[10] = header.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b));
        put(BIOS32, &header);
        put(IRQ_TABLE, &irq_routing(Chipset::I440fx));
        put(FLOPPY_TABLE, &[0xaf, 0x02, 0x25, 0x02, 18, 0x1b, 0xff, 0x6c, 0xf6, 0x0f, 0x08]);

        let mut vectors = [at(&plan.nothing)?; 256];
        for (numbers, label) in &plan.handlers {
            for n in numbers {
                vectors[usize::from(*n)] = at(label)?;
            }
        }
        vectors[0x1e] = FLOPPY_TABLE;
        let mut stubs = BTreeMap::new();
        for s in &plan.stubs {
            let stub = Stub { service: s.service, wait: at(&s.wait)?, poll: at(&s.poll)? };
            stubs.insert(at(&s.behind)?, stub);
        }
        // Of the 32-bit stub nothing waits.
        stubs.insert(behind32, Stub { service: Service::Pci32, wait: behind32, poll: behind32 });
        Ok(Rom {
            start: at(&plan.start)?,
            say: at(&plan.say)?,
            boot: at(&plan.boot)?,
            boot_read: at(&plan.boot_read)?,
            rom_failed: at(&plan.rom_failed)?,
            iret: at(&plan.nothing)?,
            mouse_done: at(&plan.mouse_done)?,
            protect: at(&plan.protect)?,
            vectors,
            stubs,
            halt: at(&plan.halt)?,
            alarm: at(&plan.alarm)?,
            control_break: at(&plan.control_break)?,
            print_screen: at(&plan.print_screen)?,
            image,
        })
    }
}
