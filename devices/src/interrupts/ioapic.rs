//! The Intel 82093AA I/O APIC, with the version 20h of later chip sets (which has an EOI register).
//!
//! 24 pins, index/window registers at FEC00000h, redirection entries with all delivery modes, level and edge trigger,
//! remote IRR. A level-triggered pin asks again at EOI while it is up; an edge on a masked pin is lost (82093AA data
//! sheet, 3.2.4). Polarity is stored but inputs are logical levels: the board drives "asserted". Messages are delivered
//! at once, so the delivery status is always idle, and the arbitration ID is only a register.
//!
//! [`IoapicV1`] decides what is to be sent; [`Ioapic`] adds the lock and the bus. Source: Intel 82093AA data sheet
//! (290566-001); EOI register: ICH9 data sheet, 13.5.6.
//!
//! Lock: one, held while messages are delivered (the local APICs' locks come after it); so remote IRR is set before an
//! EOI can come back.
mod lent;

use crate::bus::{Edge, IrqSink, Mmio};
use crate::device::{Device, Invalid, Reset};
use crate::interrupts::EoiSink;
use crate::interrupts::lapic::{ApicBus, ApicMessage, DeliveryMode};
use mynah_mmu::interrupts::ChipKeeper;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Number of interrupt input pins.
pub const PINS: usize = 24;
/// Where a PC's first I/O APIC is mapped.
pub const IOAPIC_BASE: u64 = 0xFEC0_0000;
/// Where a second one is, as on QEMU's boards.
pub const SECOND_BASE: u64 = 0xFEC1_0000;
/// Version 20h; bits 23-16: the highest redirection entry.
const VERSION: u32 = 0x20 | (PINS as u32 - 1) << 16;

/// Register offsets in the MMIO window.
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOIR: u64 = 0x40;

/// Fields of a redirection entry (82093AA, 3.2.4).
const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// The bits that software may write: vector, delivery mode, destination mode, polarity, trigger, mask, destination.
const WRITABLE: u64 = 0xFF00_0000_0001_AFFF;

/// What is saved of an I/O APIC: its registers.
#[derive(Clone, Serialize, Deserialize)]
pub struct IoapicV1 {
    id: u32,
    index: u8,
    redirection: [u64; PINS],
    /// The pins as they are.
    lines: u32,
}

impl IoapicV1 {
    fn new() -> Self {
        Self { id: 0, index: 0, redirection: [MASKED; PINS], lines: 0 }
    }

    /// The message of `pin`, if it is to be sent now: for a level if it is up and not already being served; for an edge
    /// when it `rises`.
    fn message(&self, pin: usize, rises: bool) -> Option<ApicMessage> {
        let entry = *self.redirection.get(pin)?;
        let level = entry & LEVEL != 0;
        let wanted = if level { self.lines >> pin & 1 != 0 && entry & REMOTE_IRR == 0 } else { rises };
        if entry & MASKED != 0 || !wanted {
            return None;
        }
        Some(Self::message_of(entry))
    }

    /// What an entry has its pin send.
    fn message_of(entry: u64) -> ApicMessage {
        let logical = entry & LOGICAL != 0;
        ApicMessage {
            destination: ApicMessage::wide_destination((entry >> 56) as u8, logical),
            logical,
            mode: DeliveryMode::from_bits((entry >> 8) as u32),
            vector: entry as u8,
            level: entry & LEVEL != 0,
            assert: true,
        }
    }

    fn read_window(&self) -> u32 {
        match self.index {
            0 | 2 => self.id,
            1 => VERSION,
            n => self.entry_half(n).map_or(0, |(pin, shift)| (self.redirection[pin] >> shift) as u32),
        }
    }

    /// The redirection entry behind index register value `n`, and the shift of its half.
    fn entry_half(&self, n: u8) -> Option<(usize, u32)> {
        let n = usize::from(n).checked_sub(0x10)?;
        (n / 2 < PINS).then_some((n / 2, 32 * (n as u32 & 1)))
    }

    /// Writes the window; returns the pin whose entry has changed.
    fn write_window(&mut self, value: u32) -> Option<usize> {
        if self.index == 0 {
            self.id = value & 0x0F00_0000;
            return None;
        }
        let (pin, shift) = self.entry_half(self.index)?;
        let writable = WRITABLE & 0xFFFF_FFFF << shift;
        let entry = &mut self.redirection[pin];
        *entry = *entry & !writable | u64::from(value) << shift & writable;
        if *entry & LEVEL == 0 {
            // Software without an EOI register ends a level interrupt by making it an edge for a moment.
            *entry &= !REMOTE_IRR;
        }
        Some(pin)
    }
}

struct State {
    regs: IoapicV1,
    /// Who has the registers, if it is not us.
    keeper: Option<Arc<dyn ChipKeeper>>,
}

impl State {
    fn new() -> Mutex<Self> {
        Mutex::new(Self { regs: IoapicV1::new(), keeper: None })
    }
}

/// The I/O APIC: MMIO at FEC00000h, inputs by [`IrqSink`] lines 0-23.
pub struct Ioapic {
    state: Mutex<State>,
    bus: Arc<dyn ApicBus>,
    /// Its first pin's number among those of all I/O APICs.
    first: u32,
}

impl Ioapic {
    /// An I/O APIC with all pins masked that sends its messages to `bus`.
    pub fn new(bus: Arc<dyn ApicBus>) -> Arc<Self> {
        Arc::new(Self { state: State::new(), bus, first: 0 })
    }

    /// A second one.
    pub fn second(bus: Arc<dyn ApicBus>) -> Arc<Self> {
        Arc::new(Self { state: State::new(), bus, first: PINS as u32 })
    }

    /// Tells the bus what a pin sends.
    fn tell(&self, regs: &IoapicV1, pin: usize) {
        let Some(entry) = regs.redirection.get(pin) else { return };
        if entry & MASKED == 0 {
            self.bus.pin_sends(self.first + pin as u32, Some(IoapicV1::message_of(*entry)));
        }
    }

    /// Tells it of all of them, after a change of all.
    fn tell_all(&self, regs: &IoapicV1) {
        for pin in 0..PINS {
            self.bus.pin_sends(self.first + pin as u32, None);
            self.tell(regs, pin);
        }
    }

    /// Sets the APIC ID as firmware does (0-15).
    pub fn set_id(&self, id: u8) {
        self.state.lock().change(|state| state.regs.id = u32::from(id & 0xF) << 24);
    }

    /// Sends what is to be sent of a pin, unless a keeper does.
    fn send(&self, state: &mut State, pin: usize, rises: bool) {
        if state.keeper.is_some() {
            return;
        }
        let regs = &mut state.regs;
        let Some(message) = regs.message(pin, rises) else { return };
        let accepted = self.bus.deliver(message);
        let served_by_eoi = matches!(message.mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        if message.level && served_by_eoi && accepted {
            regs.redirection[pin] |= REMOTE_IRR;
        }
    }
}

impl IrqSink for Ioapic {
    fn set(&self, line: u32, level: bool) {
        if line as usize >= PINS {
            return;
        }
        let mut state = self.state.lock();
        let (bit, lines) = (1 << line, state.regs.lines);
        state.regs.lines = if level { lines | bit } else { lines & !bit };
        if let Some(keeper) = &state.keeper {
            keeper.set_ioapic_pin(line, level);
        } else if level {
            self.send(&mut state, line as usize, lines & bit == 0);
        }
    }

    fn edge(&self, line: u32) -> Edge {
        let state = self.state.lock();
        match state.regs.message(line as usize, true) {
            // A keeper does not say when its edges are taken.
            Some(m) if !m.level && state.keeper.is_none() => self.bus.edge(&m),
            _ => Edge::Uncounted,
        }
    }
}

impl EoiSink for Ioapic {
    fn eoi(&self, vector: u8) {
        self.state.lock().change(|state| {
            for pin in 0..PINS {
                let entry = &mut state.regs.redirection[pin];
                if *entry as u8 == vector && *entry & (LEVEL | REMOTE_IRR) == LEVEL | REMOTE_IRR {
                    *entry &= !REMOTE_IRR;
                    self.send(state, pin, false);
                }
            }
        });
    }
}

impl Mmio for Ioapic {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let value = self.state.lock().change(|state| match offset & 0xFF & !3 {
            IOREGSEL => u32::from(state.regs.index),
            IOWIN => state.regs.read_window(),
            _ => 0,
        });
        let value = u64::from(value) >> (8 * (offset & 3));
        match size {
            1 => value & 0xFF,
            2 => value & 0xFFFF,
            _ => value,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        match offset & 0xFF {
            IOREGSEL => self.state.lock().change(|state| state.regs.index = value as u8),
            // The window and the EOI register are 32 bits wide and know no part of themselves.
            IOWIN if size >= 4 => self.state.lock().change(|state| {
                if let Some(pin) = state.regs.write_window(value as u32) {
                    self.tell(&state.regs, pin);
                    self.send(state, pin, false);
                }
            }),
            EOIR if size >= 1 => self.eoi(value as u8),
            _ => {}
        }
    }
}

impl Device for Ioapic {
    type State = IoapicV1;
    const KIND: &'static str = "ioapic";

    /// The inputs stay as they are.
    fn reset(&self, _: Reset) {
        self.state.lock().change(|state| {
            state.regs = IoapicV1 { lines: state.regs.lines, ..IoapicV1::new() };
            self.tell_all(&state.regs);
        });
    }

    fn save(&self) -> IoapicV1 {
        let State { regs, keeper } = &*self.state.lock();
        keeper.as_ref().map_or_else(|| regs.clone(), |keeper| regs.seen_at(&**keeper))
    }

    fn restore(&self, regs: IoapicV1) -> Result<(), Invalid> {
        if regs.redirection.iter().any(|entry| entry & !(WRITABLE | REMOTE_IRR) != 0) {
            return Err(Invalid("a redirection entry"));
        }
        if regs.lines >> PINS != 0 {
            return Err(Invalid("the pins"));
        }
        let mut state = self.state.lock();
        // What a keeper has is void.
        *state = State { regs, keeper: None };
        self.tell_all(&state.regs);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Bus {
        sent: Mutex<Vec<ApicMessage>>,
        deaf: std::sync::atomic::AtomicBool,
    }

    impl ApicBus for Bus {
        fn deliver(&self, message: ApicMessage) -> bool {
            self.sent.lock().push(message);
            !self.deaf.load(std::sync::atomic::Ordering::SeqCst)
        }
    }

    impl Bus {
        fn vectors(&self) -> Vec<u8> {
            self.sent.lock().drain(..).map(|m| m.vector).collect()
        }
    }

    fn new() -> (Arc<Ioapic>, Arc<Bus>) {
        let bus = Arc::new(Bus::default());
        (Ioapic::new(bus.clone()), bus)
    }

    fn get(io: &Ioapic, index: u64) -> u64 {
        io.write(IOREGSEL, 4, index);
        io.read(IOWIN, 4)
    }

    fn put(io: &Ioapic, index: u64, value: u64) {
        io.write(IOREGSEL, 4, index);
        io.write(IOWIN, 4, value);
    }

    fn route(io: &Ioapic, pin: u64, entry: u64) {
        put(io, 0x11 + 2 * pin, entry >> 32);
        put(io, 0x10 + 2 * pin, entry);
    }

    #[test]
    fn identifies_itself_as_version_20h_with_24_masked_pins() {
        let (io, _) = new();
        assert_eq!(get(&io, 1), 0x0017_0020);
        for pin in 0..24 {
            assert_eq!((get(&io, 0x10 + 2 * pin), get(&io, 0x11 + 2 * pin)), (0x1_0000, 0));
        }
        put(&io, 0, 0xFFFF_FFFF);
        assert_eq!((get(&io, 0), get(&io, 2)), (0x0F00_0000, 0x0F00_0000));
    }

    #[test]
    fn an_edge_is_one_message_and_is_lost_while_masked() {
        let (io, bus) = new();
        io.set(4, true);
        io.set(4, false);
        route(&io, 4, 0x0300_0000_0000_0034);
        assert!(bus.vectors().is_empty());
        io.set(4, true);
        io.set(4, true);
        let sent = bus.sent.lock().clone();
        assert_eq!(sent.len(), 1);
        assert_eq!((sent[0].vector, sent[0].destination, sent[0].logical), (0x34, 3, false));
        assert_eq!((sent[0].mode, sent[0].level), (DeliveryMode::Fixed, false));
    }

    #[test]
    fn a_level_sets_remote_irr_and_asks_again_at_eoi_while_up() {
        let (io, bus) = new();
        route(&io, 10, 0xA03A | LEVEL);
        io.set(10, true);
        assert_eq!(bus.vectors(), [0x3A]);
        assert_eq!(get(&io, 0x10 + 20) & REMOTE_IRR, REMOTE_IRR);
        io.set(10, false);
        io.set(10, true);
        assert!(bus.vectors().is_empty(), "it is being served");
        io.eoi(0x3B);
        assert!(bus.vectors().is_empty());
        io.eoi(0x3A);
        assert_eq!(bus.vectors(), [0x3A]);
        io.set(10, false);
        io.write(EOIR, 4, 0x3A);
        assert!(bus.vectors().is_empty());
        assert_eq!(get(&io, 0x10 + 20) & REMOTE_IRR, 0);
    }

    #[test]
    fn a_level_that_is_up_is_sent_when_unmasked() {
        let (io, bus) = new();
        route(&io, 9, 0x39 | LEVEL | MASKED);
        io.set(9, true);
        assert!(bus.vectors().is_empty());
        route(&io, 9, 0x39 | LEVEL);
        assert_eq!(bus.vectors(), [0x39]);
        route(&io, 9, 0x39 | LEVEL | MASKED);
        io.eoi(0x39);
        assert!(bus.vectors().is_empty());
        route(&io, 9, 0x39 | LEVEL);
        assert_eq!(bus.vectors(), [0x39]);
    }

    #[test]
    fn turning_a_level_into_an_edge_ends_its_service() {
        let (io, bus) = new();
        route(&io, 9, 0x39 | LEVEL);
        io.set(9, true);
        put(&io, 0x10 + 18, 0x39 | MASKED);
        put(&io, 0x10 + 18, 0x39 | LEVEL);
        assert_eq!(bus.vectors(), [0x39, 0x39]);
    }

    #[test]
    fn a_level_that_nobody_accepts_is_not_in_service() {
        let (io, bus) = new();
        bus.deaf.store(true, std::sync::atomic::Ordering::SeqCst);
        route(&io, 9, 0x39 | LEVEL);
        io.set(9, true);
        assert_eq!(get(&io, 0x10 + 18) & REMOTE_IRR, 0);
    }

    #[test]
    fn delivery_modes_and_destinations_go_out_as_programmed() {
        let (io, bus) = new();
        for (bits, mode) in [
            (1, DeliveryMode::LowestPriority),
            (2, DeliveryMode::Smi),
            (4, DeliveryMode::Nmi),
            (5, DeliveryMode::Init),
            (7, DeliveryMode::ExtInt),
        ] {
            route(&io, 0, 0xFF00_0000_0000_0800 | bits << 8);
            io.set(0, true);
            io.set(0, false);
            let m = bus.sent.lock().pop().unwrap();
            assert_eq!((m.mode, m.logical, m.destination), (mode, true, 0xFF));
        }
        route(&io, 0, 0xFF00_0000_0000_0030);
        io.set(0, true);
        assert_eq!(bus.sent.lock().pop().unwrap().destination, u32::MAX, "physical FFh is everybody");
    }

    #[test]
    fn read_only_fields_stay() {
        let (io, _) = new();
        route(&io, 3, u64::MAX);
        assert_eq!(get(&io, 0x16), 0x1_AFFF);
        assert_eq!(get(&io, 0x17), 0xFF00_0000);
    }

    #[test]
    fn any_offset_at_any_width_is_harmless() {
        let (io, _) = new();
        let mut x = 7u64;
        for offset in (0..0x110).chain([0xFFF, u64::MAX]) {
            for size in [0, 1, 2, 3, 4, 8, 255] {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                io.write(IOREGSEL, 1, x >> 32);
                io.write(offset, size, x);
                io.read(offset, size);
                io.set((x >> 40) as u32 & 31, x >> 50 & 1 != 0);
            }
        }
        for index in 0..=255 {
            put(&io, index, u64::MAX);
            get(&io, index);
        }
        io.set(u32::MAX, true);
    }
}
