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

/// The program of the ROM: services and interrupts, and what they end in.
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
    };
    services(a, &mut plan)?;
    timer_interrupt(a, &mut plan)?;
    keyboard_interrupt(a, &mut plan)?;
    clock_interrupt(a, &mut plan)?;
    redirected_interrupts(a, &mut plan)?;
    stray_interrupts(a, &mut plan)?;
    a.set_label(&mut plan.nothing)?;
    a.iret()?;
    a.set_label(&mut plan.halt)?;
    a.sti()?;
    a.hlt()?;
    a.jmp(plan.halt)?;
    a.set_label(&mut plan.post)?;
    call(a, &mut plan, Service::Reset)?;
    a.jmp(plan.halt)?;
    Ok(plan)
}

/// A handler begins here.
fn handler(a: &mut CodeAssembler, plan: &mut Plan, vectors: Vec<u8>) -> Result<(), IcedError> {
    let mut entry = a.create_label();
    a.set_label(&mut entry)?;
    plan.handlers.push((vectors, entry));
    Ok(())
}

/// What programs call.
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
    ] {
        handler(a, plan, vec![vector])?;
        call(a, plan, service)?;
        a.iret()?;
    }
    Ok(())
}

/// IRQ 0.
fn timer_interrupt(a: &mut CodeAssembler, plan: &mut Plan) -> Result<(), IcedError> {
    handler(a, plan, vec![0x08])?;
    call(a, plan, Service::Tick)?;
    a.int(0x1c)?;
    end_of_interrupt(a, false)
}

/// IRQ 1: INT 15h 4Fh may change or take the code.
fn keyboard_interrupt(a: &mut CodeAssembler, plan: &mut Plan) -> Result<(), IcedError> {
    let (mut taken, mut special) = (a.create_label(), a.create_label());
    handler(a, plan, vec![0x09])?;
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
    end_of_interrupt(a, false)
}

/// IRQ 8.
fn clock_interrupt(a: &mut CodeAssembler, plan: &mut Plan) -> Result<(), IcedError> {
    let mut done = a.create_label();
    handler(a, plan, vec![0x70])?;
    call(a, plan, Service::RtcInterrupt)?;
    a.jmp(done)?;
    a.set_label(&mut plan.alarm)?;
    a.int(0x4a)?;
    a.set_label(&mut done)?;
    end_of_interrupt(a, true)
}

/// Interrupts that were others on a PC.
fn redirected_interrupts(a: &mut CodeAssembler, plan: &mut Plan) -> Result<(), IcedError> {
    // IRQ 9 is what IRQ 2 was.
    handler(a, plan, vec![0x71])?;
    a.push(ax)?;
    a.mov(al, 0x20)?;
    a.out(0xa0, al)?;
    a.pop(ax)?;
    a.int(0x0a)?;
    a.iret()?;

    // IRQ 13: clears the x87's busy latch, and is the NMI that it was.
    handler(a, plan, vec![0x75])?;
    a.push(ax)?;
    a.xor(al, al)?;
    a.out(0xf0, al)?;
    a.mov(al, 0x20)?;
    a.out(0xa0, al)?;
    a.out(0x20, al)?;
    a.pop(ax)?;
    a.int(0x02)?;
    a.iret()
}

/// The others: of the master 2 to 7, of the slave.
fn stray_interrupts(a: &mut CodeAssembler, plan: &mut Plan) -> Result<(), IcedError> {
    handler(a, plan, (0x0a..0x10).chain([0x72, 0x73, 0x74, 0x76, 0x77]).collect())?;
    call(a, plan, Service::StrayInterrupt)?;
    a.iret()
}

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
        Ok(Rom {
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
