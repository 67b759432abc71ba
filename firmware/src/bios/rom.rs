//! The ROM: stubs that call the services, hardware interrupt handlers around them, and the few bytes that programs look
//! for at fixed places.
//!
//! Offsets are in segment F000h. The image is 8 KiB, at FE000h, and ends with the reset vector, the date and the model
//! byte (IBM BIOS Interface Technical Reference, "BIOS data areas and ROM tables").
mod code;
mod places;

pub use places::{FLOPPY_TABLE, floppy_table};

use crate::entry::{DescriptorTable, FLAT_GDT};
use crate::tables::Chipset;
use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};
use places::{ENTRIES, OFFSETS, RETURN, VIDEO_PARAMETERS};
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
pub const IRQ_TABLE: u16 = 0xf110;

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
    /// APM, from protected mode of 16 bits or 32.
    Apm,
    /// INT 16h waits for a key, of which INT 15h knows.
    KeyWaited,
    /// Pause was pressed.
    Pause,
    /// INT 15h knows that a drive is waited for.
    DriveWaited,
    /// INT 13h, INT 15h having been told.
    DriveReady,
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
    /// APM's entries for 16 bits and 32.
    pub apm: [u16; 2],
    /// Calls INT 4Ah and ends the interrupt of the clock.
    pub alarm: u16,
    /// Calls INT 1Bh and ends the interrupt of the keyboard.
    pub control_break: u16,
    /// Calls INT 05h and ends the interrupt of the keyboard.
    pub print_screen: u16,
    /// Ends the interrupt of the keyboard and calls [`Service::Pause`].
    pub pause: u16,
    /// Ends the interrupt of the keyboard and calls INT 15h with AX.
    pub system_request: u16,
    /// Calls INT 15h 9002h, then INT 16h again.
    pub key_wait: u16,
    /// Ends the interrupt of the keyboard and calls INT 15h 9102h.
    pub key_posted: u16,
    /// Calls INT 15h 90h for a floppy, a disk; then INT 13h again.
    pub drive_wait: [u16; 2],
    /// Goes on behind that, where INT 15h 91h was called.
    pub drive_posted: u16,
    /// Calls INT 15h 91h for a floppy, a disk, and goes on with the interrupt of the timer.
    pub tick_posts: [u16; 2],
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
        // Where nothing has a place of its own: behind the routing table, and before INT 12h.
        const CODE: u16 = 0xf330;
        const END: u16 = 0xf841;
        let mut a = CodeAssembler::new(16)?;
        let plan = code::program(&mut a)?;
        let out = a.assemble_options(CODE.into(), BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
        let at = |l: &CodeLabel| out.label_ip(l).map(|ip| ip as u16);
        let code = &out.inner.code_buffer;
        let next = CODE + code.len() as u16;
        let mut image = vec![0xf4; LEN];
        let mut put = |offset: u16, bytes: &[u8]| {
            let at = usize::from(offset - START);
            image[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(CODE, code);
        let far_jump = |to: u16| [0xea, to as u8, (to >> 8) as u8, 0x00, 0xf0];
        put(POST, &far_jump(at(&plan.post)?));
        put(RESET, &far_jump(POST));
        put(GDT, FLAT_GDT.map(u64::to_le_bytes).as_flattened());
        put(RESET + 5, b"01/01/99");
        put(RESET + 14, &[MODEL, 0]);
        // Length, model, submodel, revision; features: slave 8259 and clock, INT 15h 4Fh is called, EBDA; INT 16h
        // AH 09h.
        put(CONFIG_TABLE, &[8, 0, MODEL, 1, 0, 0x74, 0x40, 0, 0, 0]);
        let (code32, at32) = code::program32(next)?;
        put(next, &code32);
        assert!(usize::from(next) + code32.len() < usize::from(END), "the ROM's code has no room");
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
        header[4..8].copy_from_slice(&super::linear(super::SEGMENT, at32.directory).to_le_bytes());
        header[9] = 1;
        header[10] = header.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b));
        put(BIOS32, &header);
        put(IRQ_TABLE, &irq_routing(Chipset::I440fx));
        let mut vectors = [at(&plan.nothing)?; 256];
        for (numbers, label) in &plan.handlers {
            for n in numbers {
                vectors[usize::from(*n)] = at(label)?;
            }
        }
        for (offset, bytes) in places::tables() {
            put(offset, &bytes);
        }
        put(RETURN, &[0xcf]);
        for (offset, number) in ENTRIES {
            // A near jump to the handler; the vector is the entry's from here on.
            let there = std::mem::replace(&mut vectors[usize::from(number)], offset);
            let [low, high] = there.wrapping_sub(offset + 3).to_le_bytes();
            put(offset, &[0xe9, low, high]);
        }
        (vectors[0x1d], vectors[0x1e]) = (VIDEO_PARAMETERS, FLOPPY_TABLE);
        put(OFFSETS, vectors[0x08..0x20].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>().as_slice());
        let mut stubs = BTreeMap::new();
        for s in &plan.stubs {
            let stub = Stub { service: s.service, wait: at(&s.wait)?, poll: at(&s.poll)? };
            stubs.insert(at(&s.behind)?, stub);
        }
        // Of the 32-bit stubs nothing waits.
        for (service, [_, behind]) in [(Service::Pci32, at32.pci), (Service::Apm, at32.apm)] {
            stubs.insert(behind, Stub { service, wait: behind, poll: behind });
        }
        Ok(Rom {
            start: at(&plan.start)?,
            say: at(&plan.say)?,
            boot: at(&plan.boot)?,
            boot_read: at(&plan.boot_read)?,
            rom_failed: at(&plan.rom_failed)?,
            iret: at(&plan.nothing)?,
            mouse_done: at(&plan.mouse_done)?,
            protect: at(&plan.protect)?,
            apm: [at(&plan.apm)?, at32.apm[0]],
            vectors,
            stubs,
            halt: at(&plan.halt)?,
            alarm: at(&plan.alarm)?,
            control_break: at(&plan.control_break)?,
            print_screen: at(&plan.print_screen)?,
            pause: at(&plan.pause)?,
            system_request: at(&plan.system_request)?,
            key_wait: at(&plan.key_wait)?,
            key_posted: at(&plan.key_posted)?,
            drive_wait: [at(&plan.drive_wait[0])?, at(&plan.drive_wait[1])?],
            drive_posted: at(&plan.drive_posted)?,
            tick_posts: [at(&plan.tick_posts[0])?, at(&plan.tick_posts[1])?],
            image,
        })
    }
}
