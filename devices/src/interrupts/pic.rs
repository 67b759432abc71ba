//! The two Intel 8259A interrupt controllers of a PC, cascaded on the master's IR2, with the PIIX ELCR.
//!
//! Implemented: ICW1-4 (single, level, auto-EOI, special fully nested), OCW1-3 (mask, all EOI and rotation commands,
//! special mask mode, poll, IRR/ISR read-back), edge and level inputs by LTIM or ELCR, spurious IRQ 7 and 15.
//! On purpose missing: MCS-80/85 mode (ICW4 bit 0 clear is taken for 8086 mode), buffered mode, cascading elsewhere
//! than on IR2. An edge stays latched when its input falls before the acknowledge (so that a pulse is never lost); a
//! level does not.
//!
//! `Chip` and `Pair` are the registers; [`Pic`] adds the lock, the INT output pin and the ports. Source: Intel 8259A
//! data sheet (order 231468-003); ELCR: 82371AB (PIIX4) data sheet, 4.2.5.5.
//!
//! Lock: one; the INT pin is driven with it held (see the module `interrupts`).
mod lent;

use crate::aml::{Fragment, IrqNoFlags, io};
use crate::bus::{Edge, Irq, IrqSink, PortIo};
use crate::bytewise;
use crate::device::{Device, Invalid, Reset};
use mynah_mmu::interrupts::ChipKeeper;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// ICW1: ICW4 follows.
const ICW1_IC4: u8 = 1 << 0;
/// ICW1: no cascade, no ICW3.
const ICW1_SNGL: u8 = 1 << 1;
/// ICW1: all inputs are level triggered.
const ICW1_LTIM: u8 = 1 << 3;
/// Marks ICW1 among writes to the even port.
const ICW1: u8 = 1 << 4;
/// Marks OCW3 (against OCW2) among writes to the even port.
const OCW3: u8 = 1 << 3;
const ICW4_AEOI: u8 = 1 << 1;
const ICW4_SFNM: u8 = 1 << 4;
/// The master's input for the slave.
const CASCADE: u8 = 2;
/// The inputs whose trigger the ELCR may change (IRQ 0, 1, 2, 8 and 13 are edges for ever).
const ELCR_MASK: [u8; 2] = [0xF8, 0xDE];

/// What the next write to the odd port is.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Expect {
    Ocw1,
    Icw2,
    Icw3,
    Icw4,
}

/// The registers of one 8259A.
#[derive(Clone, Serialize, Deserialize)]
struct Chip {
    is_master: bool,
    irr: u8,
    isr: u8,
    imr: u8,
    elcr: u8,
    /// The inputs as they are.
    lines: u8,
    icw1: u8,
    icw4: u8,
    vector: u8,
    expect: Expect,
    special_mask: bool,
    rotate_on_aeoi: bool,
    poll: bool,
    read_isr: bool,
    /// The input with the highest priority (one after the "bottom" one).
    top: u8,
}

impl Chip {
    fn new(is_master: bool) -> Self {
        Self {
            is_master,
            irr: 0,
            isr: 0,
            imr: 0,
            elcr: 0,
            lines: 0,
            icw1: 0,
            icw4: 0,
            vector: 0,
            expect: Expect::Ocw1,
            special_mask: false,
            rotate_on_aeoi: false,
            poll: false,
            read_isr: false,
            top: 0,
        }
    }

    /// The inputs that are level triggered.
    fn level(&self) -> u8 {
        if self.icw1 & ICW1_LTIM != 0 { 0xFF } else { self.elcr }
    }

    fn set_line(&mut self, n: u8, level: bool) {
        let bit = 1 << (n & 7);
        let rises = level && self.lines & bit == 0;
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
        if self.level() & bit != 0 {
            self.irr = if level { self.irr | bit } else { self.irr & !bit };
        } else if rises {
            self.irr |= bit;
        }
    }

    /// The rank of the most urgent bit of `set`: 0 is the highest priority, 8 is none.
    fn rank(&self, set: u8) -> u8 {
        set.rotate_right(u32::from(self.top)).trailing_zeros().min(8) as u8
    }

    fn input_of_rank(&self, rank: u8) -> u8 {
        rank.wrapping_add(self.top) & 7
    }

    /// The input that asks for service and may have it now.
    fn request(&self) -> Option<u8> {
        let request = self.rank(self.irr & !self.imr);
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if self.is_master && self.icw4 & ICW4_SFNM != 0 {
            in_service &= !(1 << CASCADE);
        }
        (request < self.rank(in_service)).then(|| self.input_of_rank(request))
    }

    /// The acknowledge of input `n`.
    fn accept(&mut self, n: u8) {
        let bit = 1 << n;
        if self.icw4 & ICW4_AEOI == 0 {
            self.isr |= bit;
        } else if self.rotate_on_aeoi {
            self.top = (n + 1) & 7;
        }
        self.irr &= !bit | (self.level() & self.lines);
    }

    fn write_command(&mut self, value: u8) {
        if value & ICW1 != 0 {
            self.icw1 = value;
            self.expect = Expect::Icw2;
            self.imr = 0;
            self.isr = 0;
            self.irr = self.lines & self.level();
            self.top = 0;
            self.special_mask = false;
            self.rotate_on_aeoi = false;
            self.poll = false;
            self.read_isr = false;
            self.icw4 = 0;
        } else if value & OCW3 != 0 {
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
            if value & 0x02 != 0 {
                self.read_isr = value & 0x01 != 0;
            }
            self.poll = value & 0x04 != 0;
        } else {
            self.write_ocw2(value);
        }
    }

    /// OCW2: R, SL and EOI in bits 7-5, a level in bits 2-0.
    fn write_ocw2(&mut self, value: u8) {
        let n = value & 7;
        match value >> 5 {
            // Rotate in automatic EOI mode: clear, set.
            0b000 => self.rotate_on_aeoi = false,
            0b100 => self.rotate_on_aeoi = true,
            // Non-specific EOI, without and with rotation. It does not see masked levels in special mask mode.
            op @ (0b001 | 0b101) => {
                let visible = if self.special_mask { self.isr & !self.imr } else { self.isr };
                let rank = self.rank(visible);
                if rank < 8 {
                    let n = self.input_of_rank(rank);
                    self.isr &= !(1 << n);
                    if op == 0b101 {
                        self.top = (n + 1) & 7;
                    }
                }
            }
            // Specific EOI, without and with rotation.
            0b011 => self.isr &= !(1 << n),
            0b111 => {
                self.isr &= !(1 << n);
                self.top = (n + 1) & 7;
            }
            0b110 => self.top = (n + 1) & 7,
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        let after_icw3 = if self.icw1 & ICW1_IC4 != 0 { Expect::Icw4 } else { Expect::Ocw1 };
        self.expect = match self.expect {
            Expect::Ocw1 => {
                self.imr = value;
                Expect::Ocw1
            }
            Expect::Icw2 => {
                self.vector = value & 0xF8;
                if self.icw1 & ICW1_SNGL != 0 { after_icw3 } else { Expect::Icw3 }
            }
            // The wiring is what it is.
            Expect::Icw3 => after_icw3,
            Expect::Icw4 => {
                self.icw4 = value;
                Expect::Ocw1
            }
        };
    }

    fn write_elcr(&mut self, value: u8) {
        let before = self.level();
        self.elcr = value & ELCR_MASK[usize::from(!self.is_master)];
        // An input that becomes a level follows its line; one that becomes an edge waits for the next.
        let changed = before ^ self.level();
        self.irr = (self.irr & !changed) | (self.lines & self.level());
    }

    fn read(&mut self, odd: bool) -> u8 {
        if std::mem::take(&mut self.poll) {
            let Some(n) = self.request() else { return 0 };
            self.accept(n);
            0x80 | n
        } else if odd {
            self.imr
        } else if self.read_isr {
            self.isr
        } else {
            self.irr
        }
    }
}

/// Both chips with the wire between them.
#[derive(Clone, Serialize, Deserialize)]
struct Pair {
    master: Chip,
    slave: Chip,
}

impl Pair {
    fn chip(&mut self, bank: Bank) -> &mut Chip {
        if bank == Bank::Slave { &mut self.slave } else { &mut self.master }
    }

    /// The cascade wire follows the slave's INT output. It is seen as a level: the slave drops INT at each acknowledge,
    /// which makes the edge that the master's latch wants.
    fn cascade(&mut self) {
        let level = self.slave.request().is_some();
        self.master.set_line(CASCADE, level);
        if !level {
            self.master.irr &= !(1 << CASCADE);
        } else {
            self.master.irr |= 1 << CASCADE;
        }
    }

    /// Two INTA cycles.
    fn acknowledge(&mut self) -> u8 {
        let Some(n) = self.master.request() else { return self.master.vector | 7 };
        self.master.accept(n);
        if n != CASCADE {
            return self.master.vector | n;
        }
        let vector = match self.slave.request() {
            Some(n) => {
                self.slave.accept(n);
                self.slave.vector | n
            }
            None => self.slave.vector | 7,
        };
        self.cascade();
        vector
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bank {
    Master,
    Slave,
    Elcr,
}

struct State {
    pair: Pair,
    /// Who has the registers, if it is not us.
    keeper: Option<Arc<dyn ChipKeeper>>,
}

/// The interrupt controller pair: inputs by [`IrqSink`] lines 0-15, its INT output by an [`Irq`].
pub struct Pic {
    state: Mutex<State>,
    out: Irq,
}

impl Pic {
    /// A pair with nothing programmed, whose INT output drives `out`.
    pub fn new(out: Irq) -> Arc<Self> {
        let pair = Pair { master: Chip::new(true), slave: Chip::new(false) };
        Arc::new(Self { state: Mutex::new(State { pair, keeper: None }), out })
    }

    /// The processor's interrupt acknowledge: returns the vector of the most urgent request, which is now in service,
    /// or the master's (slave's) spurious vector for IRQ 7 (15) if the request is gone. No local APIC may be locked.
    pub fn acknowledge(&self) -> u8 {
        let State { pair, keeper } = &mut *self.state.lock();
        if let Some(keeper) = keeper {
            return pair.at_keeper(&**keeper, Pair::acknowledge);
        }
        let vector = pair.acknowledge();
        // INT falls during INTA, so that an edge-sensitive receiver sees the next request.
        self.out.set(false);
        self.out.set(pair.master.request().is_some());
        vector
    }

    /// Whether INT is asserted.
    pub fn has_interrupt(&self) -> bool {
        self.state.lock().pair.master.request().is_some()
    }

    /// The master's two ports, at 20h.
    pub fn master_ports(self: &Arc<Self>) -> Arc<dyn PortIo> {
        Arc::new(Ports { pic: self.clone(), bank: Bank::Master })
    }

    /// The slave's two ports, at A0h.
    pub fn slave_ports(self: &Arc<Self>) -> Arc<dyn PortIo> {
        Arc::new(Ports { pic: self.clone(), bank: Bank::Slave })
    }

    /// The two edge/level control registers, at 4D0h.
    pub fn elcr_ports(self: &Arc<Self>) -> Arc<dyn PortIo> {
        Arc::new(Ports { pic: self.clone(), bank: Bank::Elcr })
    }

    fn change<R>(&self, f: impl FnOnce(&mut Pair) -> R) -> R {
        let State { pair, keeper } = &mut *self.state.lock();
        if let Some(keeper) = keeper {
            return pair.at_keeper(&**keeper, f);
        }
        let r = f(pair);
        self.settle(pair);
        r
    }

    /// The wires follow the registers.
    fn settle(&self, pair: &mut Pair) {
        pair.cascade();
        self.out.set(pair.master.request().is_some());
    }

    fn read(&self, bank: Bank, port: u16) -> u8 {
        self.change(|pair| match (bank, port) {
            (Bank::Elcr, 0) => pair.master.elcr,
            (Bank::Elcr, 1) => pair.slave.elcr,
            (_, 0 | 1) => pair.chip(bank).read(port == 1),
            _ => 0xFF,
        })
    }

    fn write(&self, bank: Bank, port: u16, value: u8) {
        self.change(|pair| match (bank, port) {
            (Bank::Elcr, 0) => pair.master.write_elcr(value),
            (Bank::Elcr, 1) => pair.slave.write_elcr(value),
            (_, 0) => pair.chip(bank).write_command(value),
            (_, 1) => pair.chip(bank).write_data(value),
            _ => {}
        });
    }
}

impl IrqSink for Pic {
    fn set(&self, line: u32, level: bool) {
        if line >= 16 || line == u32::from(CASCADE) {
            return;
        }
        let State { pair, keeper } = &mut *self.state.lock();
        if let Some(keeper) = keeper {
            pair.note_line(line, level);
            keeper.set_pic_line(line, level);
            return;
        }
        match line {
            0..=7 => pair.master.set_line(line as u8, level),
            _ => pair.slave.set_line(line as u8 - 8, level),
        }
        self.settle(pair);
    }

    fn edge(&self, line: u32) -> Edge {
        let State { pair, keeper } = &*self.state.lock();
        // A keeper does not say when its edges are taken.
        if keeper.is_some() {
            return Edge::Uncounted;
        }
        let masked = |chip: &Chip, n: u8| chip.imr >> n & 1 != 0;
        let (chip, n) = match line {
            0..=7 => (&pair.master, line as u8),
            8..=15 if masked(&pair.master, CASCADE) => return Edge::Uncounted,
            8..=15 => (&pair.slave, line as u8 - 8),
            _ => return Edge::Uncounted,
        };
        if masked(chip, n) {
            Edge::Uncounted
        } else if chip.irr >> n & 1 != 0 {
            Edge::Merged
        } else {
            Edge::Counted
        }
    }
}

struct Ports {
    pic: Arc<Pic>,
    bank: Bank,
}

impl PortIo for Ports {
    fn read(&self, offset: u16, size: u8) -> u32 {
        bytewise::read(offset, size, |port| self.pic.read(self.bank, port))
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        bytewise::write(offset, size, value, |port, byte| self.pic.write(self.bank, port, byte));
    }
}

/// What is saved of a pair.
#[derive(Serialize, Deserialize)]
pub struct PicV1 {
    pair: Pair,
    int: bool,
}

impl Device for Pic {
    type State = PicV1;
    const KIND: &'static str = "isa-i8259";

    fn aml(&self) -> Option<Fragment> {
        Some(Fragment::isa(
            "PIC_",
            "PNP0000",
            vec![&io(0x20, 2), &io(0xa0, 2), &io(0x4d0, 2), &IrqNoFlags(2)],
        ))
    }

    /// The inputs stay as they are.
    fn reset(&self, _: Reset) {
        self.change(|pair| {
            let lines = (pair.master.lines, pair.slave.lines);
            *pair = Pair { master: Chip::new(true), slave: Chip::new(false) };
            (pair.master.lines, pair.slave.lines) = lines;
        });
    }

    fn save(&self) -> PicV1 {
        let state = self.state.lock();
        match &state.keeper {
            None => PicV1 { pair: state.pair.clone(), int: self.out.level() },
            Some(keeper) => {
                let pair = state.pair.seen_at(&**keeper);
                PicV1 { int: pair.master.request().is_some(), pair }
            }
        }
    }

    fn restore(&self, PicV1 { pair, int }: PicV1) -> Result<(), Invalid> {
        if !pair.master.is_master || pair.slave.is_master {
            return Err(Invalid("which chip is which"));
        }
        if pair.master.top > 7 || pair.slave.top > 7 {
            return Err(Invalid("the highest priority"));
        }
        // What a keeper has is void.
        *self.state.lock() = State { pair, keeper: None };
        self.out.restore(int);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records the INT output.
    #[derive(Default)]
    struct Int(Mutex<Vec<bool>>);

    impl IrqSink for Int {
        fn set(&self, _: u32, level: bool) {
            self.0.lock().push(level);
        }
    }

    struct Board {
        pic: Arc<Pic>,
        int: Arc<Int>,
        master: Arc<dyn PortIo>,
        slave: Arc<dyn PortIo>,
        elcr: Arc<dyn PortIo>,
    }

    impl Board {
        fn new() -> Self {
            let int = Arc::new(Int::default());
            let pic = Pic::new(Irq::new(int.clone(), 0));
            Self { master: pic.master_ports(), slave: pic.slave_ports(), elcr: pic.elcr_ports(), pic, int }
        }

        /// Vectors 30h and 38h, nothing masked, as Linux does it.
        fn programmed(icw4: u32) -> Self {
            let b = Self::new();
            for (ports, icw2, icw3) in [(&b.master, 0x30, 4), (&b.slave, 0x38, 2)] {
                ports.write(0, 1, 0x11);
                ports.write(1, 1, icw2);
                ports.write(1, 1, icw3);
                ports.write(1, 1, icw4);
            }
            b
        }

        fn pulse(&self, line: u32) {
            self.pic.set(line, true);
            self.pic.set(line, false);
        }

        fn isr(&self) -> (u32, u32) {
            self.master.write(0, 1, 0x0B);
            self.slave.write(0, 1, 0x0B);
            (self.master.read(0, 1), self.slave.read(0, 1))
        }

        fn irr(&self) -> (u32, u32) {
            self.master.write(0, 1, 0x0A);
            self.slave.write(0, 1, 0x0A);
            (self.master.read(0, 1), self.slave.read(0, 1))
        }
    }

    #[test]
    fn an_edge_interrupts_once_until_the_next_edge() {
        let b = Board::programmed(1);
        b.pic.set(4, true);
        assert!(b.pic.has_interrupt());
        assert_eq!(b.pic.acknowledge(), 0x34);
        assert_eq!(b.isr(), (0x10, 0));
        b.master.write(0, 1, 0x20);
        assert_eq!(b.isr(), (0, 0));
        assert!(!b.pic.has_interrupt(), "the line is still up, but that is no new edge");
        b.pic.set(4, false);
        b.pic.set(4, true);
        assert!(b.pic.has_interrupt());
    }

    #[test]
    fn a_level_interrupts_for_as_long_as_it_is_up() {
        let b = Board::programmed(1);
        b.elcr.write(0, 2, 0x0C20);
        assert_eq!(b.elcr.read(0, 2), 0x0C20);
        b.pic.set(10, true);
        assert_eq!(b.pic.acknowledge(), 0x3A);
        assert!(!b.pic.has_interrupt());
        b.slave.write(0, 1, 0x20);
        b.master.write(0, 1, 0x20);
        assert_eq!(b.pic.acknowledge(), 0x3A, "not served, so asked again");
        b.pic.set(10, false);
        b.slave.write(0, 1, 0x20);
        b.master.write(0, 1, 0x20);
        assert!(!b.pic.has_interrupt());
        assert_eq!(b.irr(), (0, 0));
    }

    #[test]
    fn elcr_keeps_the_timer_keyboard_cascade_and_rtc_as_edges() {
        let b = Board::programmed(1);
        b.elcr.write(0, 2, 0xFFFF);
        assert_eq!(b.elcr.read(0, 2), 0xDEF8);
    }

    #[test]
    fn higher_priority_preempts_and_lower_waits_for_eoi() {
        let b = Board::programmed(1);
        b.pulse(4);
        assert_eq!(b.pic.acknowledge(), 0x34);
        b.pulse(6);
        assert!(!b.pic.has_interrupt());
        b.pulse(1);
        assert_eq!(b.pic.acknowledge(), 0x31);
        b.master.write(0, 1, 0x20);
        assert_eq!(b.isr(), (0x10, 0), "the non-specific EOI ends the most urgent one");
        assert!(!b.pic.has_interrupt());
        b.master.write(0, 1, 0x64);
        assert_eq!(b.pic.acknowledge(), 0x36);
    }

    #[test]
    fn slave_requests_rank_between_irq_1_and_irq_3() {
        let b = Board::programmed(1);
        b.pulse(3);
        b.pulse(15);
        b.pulse(8);
        assert_eq!(b.pic.acknowledge(), 0x38);
        assert_eq!(b.isr(), (4, 1));
        assert!(!b.pic.has_interrupt());
        b.slave.write(0, 1, 0x20);
        b.master.write(0, 1, 0x62);
        assert_eq!(b.pic.acknowledge(), 0x3F);
        b.slave.write(0, 1, 0x20);
        b.master.write(0, 1, 0x62);
        assert_eq!(b.pic.acknowledge(), 0x33);
    }

    #[test]
    fn special_fully_nested_mode_lets_the_slave_interrupt_itself() {
        let b = Board::programmed(0x11);
        b.pulse(12);
        assert_eq!(b.pic.acknowledge(), 0x3C);
        b.pulse(9);
        assert_eq!(b.pic.acknowledge(), 0x39);
    }

    #[test]
    fn masked_requests_wait_in_irr() {
        let b = Board::programmed(1);
        b.master.write(1, 1, 0xFB);
        b.slave.write(1, 1, 0xFF);
        b.pulse(5);
        b.pulse(14);
        assert!(!b.pic.has_interrupt());
        assert_eq!(b.irr(), (0x20, 0x40));
        b.slave.write(1, 1, 0);
        assert_eq!(b.pic.acknowledge(), 0x3E);
        assert_eq!((b.master.read(1, 1), b.slave.read(1, 1)), (0xFB, 0));
    }

    #[test]
    fn a_vanished_level_is_acknowledged_as_spurious_7_or_15() {
        let b = Board::programmed(1);
        b.elcr.write(0, 2, 0x0820);
        b.pic.set(5, true);
        b.pic.set(5, false);
        assert_eq!(b.pic.acknowledge(), 0x37);
        assert_eq!(b.isr(), (0, 0));
        // The slave's request vanishes between the master's cycle and its own: seen when the slave alone is masked
        // late.
        let State { pair, .. } = &mut *b.pic.state.lock();
        pair.slave.irr = 0;
        pair.master.irr = 1 << CASCADE;
        assert_eq!(pair.acknowledge(), 0x3F);
        assert_eq!((pair.master.isr, pair.slave.isr), (4, 0));
    }

    #[test]
    fn auto_eoi_leaves_nothing_in_service_and_rotates_when_told() {
        let b = Board::programmed(3);
        b.pulse(0);
        b.pulse(1);
        assert_eq!(b.pic.acknowledge(), 0x30);
        assert_eq!(b.isr(), (0, 0));
        b.master.write(0, 1, 0x80);
        assert_eq!(b.pic.acknowledge(), 0x31);
        b.pulse(1);
        b.pulse(7);
        assert_eq!(b.pic.acknowledge(), 0x37, "after rotation IRQ 1 is the least urgent");
        assert_eq!(b.pic.acknowledge(), 0x31);
    }

    #[test]
    fn rotation_makes_the_served_level_the_least_urgent() {
        let b = Board::programmed(1);
        b.pulse(3);
        assert_eq!(b.pic.acknowledge(), 0x33);
        b.master.write(0, 1, 0xA0);
        b.pulse(3);
        b.pulse(4);
        b.pulse(0);
        assert_eq!(b.pic.acknowledge(), 0x34);
        b.master.write(0, 1, 0x20);
        assert_eq!(b.pic.acknowledge(), 0x30);
        b.master.write(0, 1, 0xE0);
        assert_eq!(b.pic.acknowledge(), 0x33);
        b.master.write(0, 1, 0x63);
        b.master.write(0, 1, 0xC4);
        b.pulse(5);
        b.pulse(0);
        assert_eq!(b.pic.acknowledge(), 0x35, "set priority: 4 is the bottom, so 5 the top");
    }

    #[test]
    fn special_mask_mode_lets_lower_levels_in() {
        let b = Board::programmed(1);
        b.pulse(1);
        assert_eq!(b.pic.acknowledge(), 0x31);
        b.pulse(6);
        assert!(!b.pic.has_interrupt());
        b.master.write(1, 1, 0x02);
        b.master.write(0, 1, 0x68);
        assert_eq!(b.pic.acknowledge(), 0x36);
        b.master.write(0, 1, 0x20);
        assert_eq!(b.isr(), (2, 0), "the non-specific EOI passes over the masked level");
        b.master.write(0, 1, 0x48);
        b.pulse(7);
        assert!(!b.pic.has_interrupt());
    }

    #[test]
    fn poll_acknowledges_by_a_read() {
        let b = Board::programmed(1);
        b.pulse(4);
        b.master.write(0, 1, 0x0C);
        assert_eq!(b.master.read(0, 1), 0x84);
        assert_eq!(b.isr().0, 0x10);
        b.master.write(0, 1, 0x0C);
        assert_eq!(b.master.read(0, 1), 0);
    }

    #[test]
    fn icw1_forgets_edges_and_the_mask() {
        let b = Board::programmed(1);
        b.master.write(1, 1, 0xFF);
        b.pic.set(4, true);
        b.master.write(0, 1, 0x11);
        b.master.write(1, 1, 0x40);
        b.master.write(1, 1, 4);
        b.master.write(1, 1, 1);
        assert_eq!(b.master.read(1, 1), 0);
        assert!(!b.pic.has_interrupt());
        b.pic.set(4, false);
        b.pic.set(4, true);
        assert_eq!(b.pic.acknowledge(), 0x44);
    }

    #[test]
    fn int_falls_at_each_acknowledge_so_that_every_request_is_an_edge() {
        let b = Board::programmed(3);
        b.pulse(0);
        b.pulse(1);
        b.int.0.lock().clear();
        b.pic.acknowledge();
        b.pic.acknowledge();
        assert_eq!(*b.int.0.lock(), [false, true, false]);
    }

    #[test]
    fn any_port_at_any_width_with_any_value_is_harmless() {
        let b = Board::new();
        let mut x = 1u32;
        for ports in [&b.master, &b.slave, &b.elcr] {
            for offset in [0, 1, 2, 3, u16::MAX] {
                for size in [0, 1, 2, 4, 8, 255] {
                    for _ in 0..50 {
                        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        ports.write(offset, size, x >> 3);
                        ports.read(offset, size);
                        b.pic.set(x >> 20 & 31, x & 1 != 0);
                        b.pic.acknowledge();
                    }
                }
            }
        }
        b.pic.set(u32::MAX, true);
    }
}
