//! What firmware does to PCI functions at power-on: bus numbers, address windows, interrupt lines, decoding, option
//! ROMs.
//!
//! Windows: I/O from C000h, memory from C0000000h or the end of RAM below 4 GiB, whichever is higher, to FEBFFFFFh.
//! BARs are given addresses bus by bus, the largest first, and a bridge's window is what its bus has taken. What finds
//! no room there goes above RAM, if its BAR has 64 bits and is prefetchable (bridges have no such window for others);
//! what finds none at all is left without an address and does not decode.
//!
//! Sources: PCI Local Bus Specification 2.1, 6.2.5; PCI-to-PCI Bridge Architecture 1.1; 82371SB (PIIX3) data sheet,
//! 2.2.9.
use super::pci::{read, write};
use super::{Platform, optionrom};
use crate::tables::{Chipset, PIRQ_ROUTES, SCI_IRQ};

/// Offsets in configuration space.
mod reg {
    pub const COMMAND: u8 = 0x04;
    pub const CLASS: u8 = 0x0a;
    pub const HEADER: u8 = 0x0e;
    pub const BARS: u8 = 0x10;
    pub const BUSES: u8 = 0x18;
    pub const IO_WINDOW: u8 = 0x1c;
    pub const MEMORY_WINDOW: u8 = 0x20;
    pub const PREFETCH_WINDOW: u8 = 0x24;
    pub const ROM: u8 = 0x30;
    pub const IO_WINDOW_HIGH: u8 = 0x30;
    pub const BRIDGE_ROM: u8 = 0x38;
    pub const LINE: u8 = 0x3c;
    pub const PIN: u8 = 0x3d;
    /// PIIX: timing of the two IDE channels.
    pub const IDE_TIMING: u8 = 0x40;
    /// A bridge's window of prefetchable memory: the upper halves of its base and of its limit.
    pub const PREFETCH_BASE_HIGH: u8 = 0x28;
    pub const PREFETCH_LIMIT_HIGH: u8 = 0x2c;
    /// What the first MiB shows, C0000h up: i440FX, Q35.
    pub const PAM1: u8 = 0x5a;
    pub const Q35_PAM1: u8 = 0x91;
    /// Routes of the PCI interrupts: four, and on the ICH9 another four.
    pub const PIRQ_A: u8 = 0x60;
    pub const PIRQ_E: u8 = 0x68;
}

/// Bits of the command register.
const IO: u32 = 1;
const MEMORY: u32 = 2;
const MASTER: u32 = 4;
/// Classes, without the interface.
const IDE: u32 = 0x0101;
const VGA: u32 = 0x0300;
/// Ids of the chips that are known here.
const I440FX: u32 = 0x1237_8086;
const Q35: u32 = 0x29c0_8086;
const ICH9: u32 = 0x2918_8086;
const PIIX3_IDE: u32 = 0x7010_8086;
const PIIX4_PM: u32 = 0x7113_8086;

const IO_START: u64 = 0xc000;
const IO_END: u64 = 0x1_0000;
const MEMORY_START: u64 = 0xc000_0000;
const MEMORY_END: u64 = 0xfec0_0000;
/// Granularity of a bridge's windows.
const BRIDGE_IO: u64 = 0x1000;
const BRIDGE_MEMORY: u64 = 0x10_0000;
/// Buses that are looked at one behind the other.
const DEPTH: u8 = 8;

/// What was given away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciSetup {
    /// The highest bus.
    pub last_bus: u8,
    /// The first address behind the PCI functions' memory below 4 GiB.
    pub memory_end: u64,
    /// The first one behind what of it is above RAM.
    pub high_end: u64,
    /// The first port behind theirs.
    pub io_end: u64,
    /// Where an option ROM of the machine's own may lie: behind those of PCI functions, up to E0000h.
    pub rom_end: u64,
}

/// A range that a function wants.
struct Want {
    bdf: u16,
    register: u8,
    size: u64,
    io: bool,
    wide: bool,
    prefetchable: bool,
}

struct Setup<'a> {
    pc: &'a mut dyn Platform,
    chipset: Chipset,
    memory: u64,
    /// What is free above RAM: from here to there.
    high: u64,
    high_end: u64,
    io: u64,
    last_bus: u8,
    /// Functions with an option ROM: whether it is a VGA, which, its ROM's register.
    roms: Vec<(bool, u16, u8)>,
}

/// Sets up all PCI functions, as after power-on; `below_4g` is where RAM ends, and `above` the window for PCI memory
/// above 4 GiB, first and last byte, if there is one. Option ROMs of functions are copied to
/// C0000h and up, which is RAM from then on; [`super::Bios::boot_entry`] starts them.
pub fn set_up_pci(pc: &mut dyn Platform, below_4g: u64, above: Option<(u64, u64)>) -> PciSetup {
    let memory = below_4g.next_multiple_of(BRIDGE_MEMORY).max(MEMORY_START);
    let (high, high_end) = above.map_or((0, 0), |(first, last)| (first, last.saturating_add(1)));
    let chipset = super::pci::chipset(pc);
    let (io, last_bus, roms) = (IO_START, 0, Vec::new());
    let mut setup = Setup { pc, chipset, memory, high, high_end, io, last_bus, roms };
    setup.route();
    setup.bus(0, &[]);
    let rom_end = setup.copy_roms();
    let Setup { last_bus, memory: memory_end, high: high_end, io: io_end, .. } = setup;
    PciSetup { last_bus, memory_end, high_end, io_end, rom_end }
}

/// The next multiple of `size` from `at` on, if as much is there before `end`.
fn fit(at: u64, size: u64, end: u64) -> Option<u64> {
    let start = at.checked_next_multiple_of(size)?;
    (start.checked_add(size)? <= end).then_some(start)
}

impl Setup<'_> {
    /// PIRQA to PIRQD, and PIRQE to PIRQH, go where the tables say, level-triggered.
    fn route(&mut self) {
        for bdf in super::pci::functions(self.pc) {
            let id = read(self.pc, bdf, 0, 4);
            if !super::pci::ROUTERS.contains(&id) {
                continue;
            }
            for (i, irq) in (0u8..).zip(PIRQ_ROUTES) {
                write(self.pc, bdf, reg::PIRQ_A + i, 1, irq.into());
                if id == ICH9 {
                    write(self.pc, bdf, reg::PIRQ_E + i, 1, irq.into());
                }
                let (port, bit) = (0x4d0 + u16::from(irq >> 3), irq & 7);
                let level = self.pc.inb(port);
                self.pc.outb(port, level | 1 << bit);
            }
        }
    }

    /// Sets up a bus that is behind the bridges of these slots.
    fn bus(&mut self, bus: u8, bridges: &[u8]) {
        let mut wants = Vec::new();
        let functions = super::pci::functions_of(self.pc, bus);
        for &bdf in &functions {
            self.measure(bdf, &mut wants);
        }
        wants.sort_by_key(|w| std::cmp::Reverse(w.size));
        let mut poor = Vec::new();
        for want in &wants {
            if !self.place(want) {
                poor.push((want.bdf, want.io));
            }
        }
        for &bdf in &functions {
            self.interrupt(bdf, bridges);
            let class = read(self.pc, bdf, reg::CLASS, 2);
            let mut command = read(self.pc, bdf, reg::COMMAND, 2) & !(IO | MEMORY);
            for (io, bit) in [(true, IO), (false, MEMORY)] {
                if !poor.contains(&(bdf, io)) {
                    command |= bit;
                }
            }
            let bridge = read(self.pc, bdf, reg::HEADER, 1) & 0x7f == 1;
            if bridge || matches!(class, IDE | VGA) {
                command |= MASTER;
            }
            if bridge {
                self.bridge(bdf, bridges);
            }
            match read(self.pc, bdf, 0, 4) {
                // Both channels answer at their old ports.
                PIIX3_IDE => write(self.pc, bdf, reg::IDE_TIMING, 4, 0x8000_8000),
                PIIX4_PM => write(self.pc, bdf, reg::LINE, 1, SCI_IRQ.into()),
                _ => {}
            }
            write(self.pc, bdf, reg::COMMAND, 2, command);
        }
    }

    /// What a function's BARs want. It decodes nothing until it has its addresses.
    fn measure(&mut self, bdf: u16, wants: &mut Vec<Want>) {
        let command = read(self.pc, bdf, reg::COMMAND, 2);
        write(self.pc, bdf, reg::COMMAND, 2, command & !(IO | MEMORY));
        let (bars, rom) = match read(self.pc, bdf, reg::HEADER, 1) & 0x7f {
            0 => (6, reg::ROM),
            1 => (2, reg::BRIDGE_ROM),
            _ => return,
        };
        let mut i = 0;
        while i < bars {
            let register = reg::BARS + 4 * i;
            i += 1;
            let old = read(self.pc, bdf, register, 4);
            write(self.pc, bdf, register, 4, u32::MAX);
            let mask = read(self.pc, bdf, register, 4);
            write(self.pc, bdf, register, 4, old);
            if mask == 0 || mask == u32::MAX && old == u32::MAX {
                continue;
            }
            if mask & 1 != 0 {
                // The upper half may be fixed at zero.
                let size = u64::from(!(mask & !3 | 0xffff_0000)) + 1;
                wants.push(Want {
                    bdf,
                    register,
                    size: size & 0x1_ffff,
                    io: true,
                    wide: false,
                    prefetchable: false,
                });
                continue;
            }
            let wide = mask & 6 == 4 && i < bars;
            let mut all = u64::from(mask & !0xf) | 0xffff_ffff << 32;
            if wide {
                let old = read(self.pc, bdf, register + 4, 4);
                write(self.pc, bdf, register + 4, 4, u32::MAX);
                all = u64::from(mask & !0xf) | u64::from(read(self.pc, bdf, register + 4, 4)) << 32;
                write(self.pc, bdf, register + 4, 4, old);
                i += 1;
            }
            // The lowest bit that can be written.
            let size = all & all.wrapping_neg();
            if size != 0 {
                let prefetchable = mask & 8 != 0;
                wants.push(Want { bdf, register, size, io: false, wide, prefetchable });
            }
        }
        write(self.pc, bdf, rom, 4, 0xffff_f800);
        let mask = read(self.pc, bdf, rom, 4) & 0xffff_f800;
        write(self.pc, bdf, rom, 4, 0);
        if mask != 0 && mask != 0xffff_f800 {
            let size = u64::from(mask & mask.wrapping_neg());
            wants.push(Want { bdf, register: rom, size, io: false, wide: false, prefetchable: false });
        }
    }

    /// Gives a range its address.
    fn place(&mut self, want: &Want) -> bool {
        let (next, end) = if want.io { (&mut self.io, IO_END) } else { (&mut self.memory, MEMORY_END) };
        let rom = matches!(want.register, reg::ROM | reg::BRIDGE_ROM);
        // A page of its own for each, as systems map them by pages.
        let low = fit(*next, if want.io { want.size } else { want.size.max(0x1000) }, end);
        if low.is_none() && self.place_high(want) {
            return true;
        }
        let (next, _) = if want.io { (&mut self.io, IO_END) } else { (&mut self.memory, MEMORY_END) };
        let Some(at) = low else {
            let (bdf, bar, size) = (want.bdf, want.register, want.size);
            tracing::warn!("PCI function {bdf:#06x}: no room for the {size:#x} bytes of the BAR at {bar:#x}");
            write(self.pc, want.bdf, want.register, 4, 0);
            return rom;
        };
        *next = at + want.size;
        write(self.pc, want.bdf, want.register, 4, at as u32);
        if want.wide {
            write(self.pc, want.bdf, want.register + 4, 4, (at >> 32) as u32);
        }
        if rom {
            let vga = read(self.pc, want.bdf, reg::CLASS, 2) == VGA;
            self.roms.push((vga, want.bdf, want.register));
        }
        true
    }

    /// Gives a range an address above RAM, if it can have one there.
    fn place_high(&mut self, want: &Want) -> bool {
        if !want.wide || !want.prefetchable {
            return false;
        }
        let Some(at) = fit(self.high, want.size.max(0x1000), self.high_end).filter(|at| *at != 0) else {
            return false;
        };
        self.high = at + want.size;
        write(self.pc, want.bdf, want.register, 4, at as u32);
        write(self.pc, want.bdf, want.register + 4, 4, (at >> 32) as u32);
        true
    }

    /// The interrupt line, by the pin and, behind bridges, the slots on the way.
    fn interrupt(&mut self, bdf: u16, bridges: &[u8]) {
        let pin = read(self.pc, bdf, reg::PIN, 1) as u8;
        if !(1..=4).contains(&pin) {
            return;
        }
        let mut pin = pin - 1;
        let mut slot = (bdf >> 3 & 31) as u8;
        for bridge in bridges.iter().rev() {
            pin = (pin + slot) & 3;
            slot = *bridge;
        }
        write(self.pc, bdf, reg::LINE, 1, self.chipset.pirq_route(slot, pin).into());
    }

    /// Numbers the bus behind a bridge, sets it up, and opens windows to it.
    fn bridge(&mut self, bdf: u16, bridges: &[u8]) {
        if bridges.len() >= DEPTH.into() || self.last_bus == u8::MAX {
            return;
        }
        let (primary, secondary) = ((bdf >> 8) as u8, self.last_bus + 1);
        self.last_bus = secondary;
        let numbers = |subordinate: u8| u32::from_le_bytes([primary, secondary, subordinate, 0]);
        write(self.pc, bdf, reg::BUSES, 4, numbers(0xff));
        let aligned = |at: u64, unit, end: u64| at.next_multiple_of(unit).min(end);
        self.io = aligned(self.io, BRIDGE_IO, IO_END);
        self.memory = aligned(self.memory, BRIDGE_MEMORY, MEMORY_END);
        self.high = aligned(self.high, BRIDGE_MEMORY, self.high_end);
        let (io, memory, high) = (self.io, self.memory, self.high);
        self.bus(secondary, &[bridges, &[(bdf >> 3 & 31) as u8]].concat());
        self.io = aligned(self.io, BRIDGE_IO, IO_END);
        self.memory = aligned(self.memory, BRIDGE_MEMORY, MEMORY_END);
        self.high = aligned(self.high, BRIDGE_MEMORY, self.high_end);
        write(self.pc, bdf, reg::BUSES, 4, numbers(self.last_bus));
        // A window whose limit is below its base is closed.
        let (io, io_last) = if self.io > io { (io, self.io - 1) } else { (0xf000, 0) };
        let window = (io >> 8 & 0xf0) | (io_last >> 8 & 0xf0) << 8;
        write(self.pc, bdf, reg::IO_WINDOW, 2, window as u32);
        write(self.pc, bdf, reg::IO_WINDOW_HIGH, 4, 0);
        let (memory, last) = if self.memory > memory { (memory, self.memory - 1) } else { (0xfff0_0000, 0) };
        let window = (memory >> 16 & 0xfff0) | (last >> 16 & 0xfff0) << 16;
        write(self.pc, bdf, reg::MEMORY_WINDOW, 4, window as u32);
        let (high, last) = if self.high > high { (high, self.high - 1) } else { (0xfff0_0000, 0) };
        let window = (high >> 16 & 0xfff0) | (last >> 16 & 0xfff0) << 16;
        write(self.pc, bdf, reg::PREFETCH_WINDOW, 4, window as u32);
        write(self.pc, bdf, reg::PREFETCH_BASE_HIGH, 4, (high >> 32) as u32);
        write(self.pc, bdf, reg::PREFETCH_LIMIT_HIGH, 4, (last >> 32) as u32);
    }

    /// Copies the option ROMs of functions to C0000h and up, that of a VGA first; where they end.
    fn copy_roms(&mut self) -> u64 {
        let area = optionrom::AREA;
        let pam = match read(self.pc, 0, 0, 4) {
            I440FX => Some(reg::PAM1),
            Q35 => Some(reg::Q35_PAM1),
            _ => None,
        };
        for pam in pam.into_iter().flat_map(|first| first..first + 6) {
            write(self.pc, 0, pam, 1, 0x33);
        }
        // Nothing of an earlier start is left there.
        self.pc.write_physical(area.start.into(), &vec![0; area.len()]);
        self.roms.sort_by_key(|(vga, bdf, _)| (!vga, *bdf));
        let mut at = u64::from(area.start);
        if super::video::rom::adapter(self.pc).is_some() && !self.roms.iter().any(|(vga, ..)| *vga) {
            // The VGA has no ROM of its own: ours.
            let image = super::video::rom::image();
            self.pc.write_physical(at, &image);
            at += image.len() as u64;
        }
        for (_, bdf, register) in std::mem::take(&mut self.roms) {
            let address = read(self.pc, bdf, register, 4) & !0x7ff;
            let command = read(self.pc, bdf, reg::COMMAND, 2);
            write(self.pc, bdf, register, 4, address | 1);
            write(self.pc, bdf, reg::COMMAND, 2, command | MEMORY);
            let image = self.rom_image(address.into());
            write(self.pc, bdf, register, 4, address);
            write(self.pc, bdf, reg::COMMAND, 2, command);
            let Some(image) = image else { continue };
            if at + image.len() as u64 > area.end.into() {
                tracing::warn!(
                    "PCI function {bdf:#06x}: no room for the {} bytes of its option ROM",
                    image.len()
                );
                continue;
            }
            self.pc.write_physical(at, &image);
            at = (at + image.len() as u64).next_multiple_of(0x800);
        }
        at
    }

    /// The image for a PC among those of a ROM at this address.
    fn rom_image(&mut self, mut at: u64) -> Option<Vec<u8>> {
        for _ in 0..8 {
            let mut header = [0; 0x1a];
            self.pc.read_physical(at, &mut header);
            if header[..2] != [0x55, 0xaa] {
                return None;
            }
            let mut data = [0; 0x16];
            self.pc
                .read_physical(at + u64::from(u16::from_le_bytes([header[0x18], header[0x19]])), &mut data);
            if &data[..4] != b"PCIR" {
                return None;
            }
            let len = usize::from(u16::from_le_bytes([data[0x10], data[0x11]])) * 512;
            if data[0x14] == 0 {
                // Its own length is what is to stay, and no more than it says of the image.
                let len = if header[2] != 0 { usize::from(header[2]) * 512 } else { len };
                let mut image = vec![0; len.min(optionrom::AREA.len())];
                self.pc.read_physical(at, &mut image);
                return (!image.is_empty()).then_some(image);
            }
            if data[0x15] & 0x80 != 0 || len == 0 {
                return None;
            }
            at += len as u64;
        }
        None
    }
}
