//! The registers of one local APIC: no lock, no thread, no wire. What a change makes the outside do is left in
//! [`Outcome`].
//! Source: Intel SDM vol. 3A, chapter 11 (the older numbering: 10).
use super::message::{ApicMessage, DeliveryMode, Shorthand};
use super::timer::{ApicTimer, Mode, Time};
use crate::bus::Edge;
use crate::clock::{LONGEST, Nanos, SECOND};
use crate::device::Invalid;
use mynah_mmu::interrupts::ApicImage;
use serde::{Deserialize, Serialize};

/// Register numbers: the MMIO offset / 16, and the x2APIC MSR less 800h (SDM vol. 3A, tables 11-1 and 11-6).
pub(super) mod reg {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const APR: u32 = 0x09;
    pub const PPR: u32 = 0x0A;
    pub const EOI: u32 = 0x0B;
    pub const RRD: u32 = 0x0C;
    pub const LDR: u32 = 0x0D;
    pub const DFR: u32 = 0x0E;
    pub const SVR: u32 = 0x0F;
    pub const ISR: u32 = 0x10;
    pub const TMR: u32 = 0x18;
    pub const IRR: u32 = 0x20;
    pub const ESR: u32 = 0x28;
    pub const ICR: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_ERROR: u32 = 0x37;
    pub const TIMER_INITIAL: u32 = 0x38;
    pub const TIMER_CURRENT: u32 = 0x39;
    pub const TIMER_DIVIDE: u32 = 0x3E;
    pub const SELF_IPI: u32 = 0x3F;
}

/// Version 14h (an integrated APIC), the highest LVT entry, and that EOI broadcasts can be suppressed.
const VERSION: u32 = 0x14 | (LVTS as u32 - 1) << 16 | 1 << 24;

/// Fields of IA32_APIC_BASE.
const BASE_BSP: u64 = 1 << 8;
const BASE_EXTD: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
/// Where the registers are after a reset.
pub const LAPIC_BASE: u64 = 0xFEE0_0000;

/// Fields of the spurious-interrupt vector register.
const SVR_ENABLE: u32 = 1 << 8;
const SVR_NO_EOI_BROADCAST: u32 = 1 << 12;
const SVR_WRITABLE: u32 = 0xFF | SVR_ENABLE | SVR_NO_EOI_BROADCAST;

/// Fields of LVT entries.
const LVT_REMOTE_IRR: u32 = 1 << 14;
const LVT_LEVEL: u32 = 1 << 15;
const LVT_MASKED: u32 = 1 << 16;
/// Delivery status and remote IRR: read-only, but no fault to write.
const LVT_READ_ONLY: u32 = 1 << 12 | LVT_REMOTE_IRR;
/// Number of LVT entries: timer, thermal, performance, LINT0, LINT1, error.
const LVTS: usize = 6;
const LVT_WRITABLE: [u32; LVTS] = [0x700FF, 0x107FF, 0x107FF, 0x1A7FF, 0x1A7FF, 0x100FF];
const TIMER: usize = 0;
const PERFORMANCE: usize = 2;
const LINT0: usize = 3;
const ERROR: usize = 5;

/// Bits of the error status register.
const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const ESR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// ICR bits that software may write: vector, delivery mode, destination mode, level, trigger, shorthand.
const ICR_WRITABLE: u32 = 0x000C_CFFF;

/// A set of vectors, as ISR, IRR and TMR show it.
#[derive(Default, Clone, Copy, Serialize, Deserialize)]
struct VectorSet([u32; 8]);

impl VectorSet {
    fn set(&mut self, v: u8) {
        self.0[usize::from(v >> 5)] |= 1 << (v & 31);
    }

    fn clear(&mut self, v: u8) {
        self.0[usize::from(v >> 5)] &= !(1 << (v & 31));
    }

    fn has(&self, v: u8) -> bool {
        self.0[usize::from(v >> 5)] >> (v & 31) & 1 != 0
    }

    fn highest(&self) -> Option<u8> {
        let i = self.0.iter().rposition(|&w| w != 0)?;
        Some((i as u32 * 32 + self.0[i].ilog2()) as u8)
    }

    fn word(&self, i: u32) -> u32 {
        self.0[(i & 7) as usize]
    }
}

/// What the outside must do after a register changed. Collected by [`Registers`], taken by the adapter.
#[derive(Clone, Default)]
pub(super) struct Outcome {
    pub ipi: Option<(Shorthand, ApicMessage)>,
    /// A level-triggered vector that was ended.
    pub eoi: Option<u8>,
    pub nmi: bool,
    pub smi: bool,
    pub init: bool,
    pub sipi: Option<u8>,
}

/// What [`Registers::acknowledge`] found.
pub(super) enum Acknowledge {
    Vector(u8),
    /// The 8259A has the vector.
    ExtInt,
    Nothing,
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Registers {
    id: u32,
    base: u64,
    tpr: u8,
    svr: u32,
    ldr: u32,
    dfr: u32,
    /// What ESR shows, and what has happened since it was last written.
    esr: u32,
    errors: u32,
    icr: u64,
    lvt: [u32; LVTS],
    isr: VectorSet,
    irr: VectorSet,
    tmr: VectorSet,
    timer: ApicTimer,
    timer_fired: Option<Nanos>,
    /// Periodic interrupts of the timer that fell due while the one before was waiting for the processor.
    timer_owed: u64,
    /// The LINT pins as they are.
    lint: [bool; 2],
    /// An ExtINT message that was not acknowledged yet.
    ext_int: bool,
    /// Empty but while a register changes.
    #[serde(skip)]
    pub out: Outcome,
}

impl Registers {
    /// The state after power-on of the APIC with this ID.
    pub fn new(id: u32, bsp: bool) -> Self {
        let base = LAPIC_BASE | BASE_ENABLE | if bsp { BASE_BSP } else { 0 };
        Self {
            id,
            base,
            tpr: 0,
            svr: 0xFF,
            ldr: 0,
            dfr: u32::MAX,
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [LVT_MASKED; LVTS],
            isr: VectorSet::default(),
            irr: VectorSet::default(),
            tmr: VectorSet::default(),
            timer: ApicTimer::default(),
            timer_fired: None,
            timer_owed: 0,
            lint: [false; 2],
            ext_int: false,
            out: Outcome::default(),
        }
    }

    /// Whether these can be the registers of the APIC with this ID.
    pub fn check(&self, id: u32) -> Result<(), Invalid> {
        let both = BASE_ENABLE | BASE_EXTD;
        if self.id != id
            || self.base & !(BASE_ADDRESS | both | BASE_BSP) != 0
            || self.base & both == BASE_EXTD
        {
            return Err(Invalid("the APIC's base"));
        }
        if self.timer_fired.is_some_and(|t| t >= LONGEST) || self.timer_owed > SECOND {
            return Err(Invalid("the timer's interrupts"));
        }
        self.timer.check()
    }

    /// What INIT does: all as after power-on but for IA32_APIC_BASE (SDM vol. 3A, 11.4.7.3). The pins are not ours.
    pub fn init(&mut self) {
        let fresh = Self::new(self.id, false);
        *self = Self { base: self.base, lint: self.lint, out: std::mem::take(&mut self.out), ..fresh };
    }

    /// RESET: INIT, and the base back to its place; which processor boots is decided anew, whatever the guest has
    /// written.
    pub fn reset(&mut self, bsp: bool) {
        self.init();
        self.base = Self::new(self.id, bsp).base;
    }

    pub fn base(&self) -> u64 {
        self.base
    }

    pub fn is_enabled(&self) -> bool {
        self.base & BASE_ENABLE != 0
    }

    pub fn is_x2apic(&self) -> bool {
        self.base & (BASE_ENABLE | BASE_EXTD) == BASE_ENABLE | BASE_EXTD
    }

    fn software_enabled(&self) -> bool {
        self.svr & SVR_ENABLE != 0
    }

    /// A write to IA32_APIC_BASE by the state machine of SDM vol. 3A, figure 11-27. Err is #GP.
    pub fn set_base(&mut self, value: u64) -> Result<(), ()> {
        let state = |v: u64| (v & BASE_ENABLE != 0, v & BASE_EXTD != 0);
        if value & !(BASE_ADDRESS | BASE_ENABLE | BASE_EXTD | BASE_BSP) != 0 {
            return Err(());
        }
        match (state(self.base), state(value)) {
            (_, (false, true)) => return Err(()),
            ((false, _), (true, true)) => return Err(()),
            ((true, true), (true, false)) => return Err(()),
            ((true, _), (false, false)) => self.init(),
            ((true, false), (true, true)) => self.icr &= 0xFFFF_FFFF,
            _ => {}
        }
        self.base = value;
        Ok(())
    }

    /// The state in which PC firmware leaves the boot processor: enabled, LINT0 passes the 8259A through, LINT1 is NMI.
    pub fn virtual_wire(&mut self) {
        self.svr = SVR_ENABLE | 0xFF;
        self.lvt[LINT0] = 0x700;
        self.lvt[LINT0 + 1] = 0x400;
    }

    // Priorities and acknowledge.

    pub fn ppr(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0);
        if self.tpr >> 4 >= in_service >> 4 { self.tpr } else { in_service & 0xF0 }
    }

    pub fn tpr(&self) -> u8 {
        self.tpr
    }

    pub fn set_tpr(&mut self, value: u8) {
        self.tpr = value;
    }

    fn deliverable(&self) -> Option<u8> {
        self.irr.highest().filter(|v| self.is_enabled() && v >> 4 > self.ppr() >> 4)
    }

    /// Whether the 8259A's request gets through to the processor.
    pub fn ext_int_pending(&self) -> bool {
        if !self.is_enabled() {
            return self.lint[0];
        }
        let passes = |i: usize| {
            let lvt = self.lvt[LINT0 + i];
            self.lint[i] && lvt & LVT_MASKED == 0 && DeliveryMode::from_bits(lvt >> 8) == DeliveryMode::ExtInt
        };
        self.ext_int || passes(0) || passes(1)
    }

    pub fn interrupt_pending(&self) -> bool {
        self.ext_int_pending() || self.deliverable().is_some()
    }

    /// The processor takes the interrupt.
    pub fn acknowledge(&mut self) -> Acknowledge {
        if self.ext_int_pending() {
            self.ext_int = false;
            return Acknowledge::ExtInt;
        }
        let Some(v) = self.deliverable() else { return Acknowledge::Nothing };
        self.irr.clear(v);
        self.isr.set(v);
        self.deliver_timer();
        Acknowledge::Vector(v)
    }

    fn eoi(&mut self) {
        let Some(v) = self.isr.highest() else { return };
        self.isr.clear(v);
        if self.tmr.has(v) && self.svr & SVR_NO_EOI_BROADCAST == 0 {
            self.out.eoi = Some(v);
        }
        for i in [LINT0, LINT0 + 1] {
            if self.lvt[i] & LVT_REMOTE_IRR != 0 && self.lvt[i] as u8 == v {
                self.lvt[i] &= !LVT_REMOTE_IRR;
                self.lint_level(i);
            }
        }
    }

    // What comes in.

    /// Whether a logical destination means this APIC (SDM vol. 3A, 11.6.2.2 and 11.12.10).
    pub fn matches_logical(&self, destination: u32) -> bool {
        let ldr = self.ldr();
        if destination == u32::MAX {
            return true;
        }
        if self.is_x2apic() {
            return destination >> 16 == ldr >> 16 && destination & ldr & 0xFFFF != 0;
        }
        if destination > 0xFF {
            return false;
        }
        let mine = ldr >> 24;
        match self.dfr >> 28 {
            0xF => destination & mine != 0,
            0 => (destination >> 4 == mine >> 4 || destination >> 4 == 0xF) && destination & mine & 0xF != 0,
            _ => false,
        }
    }

    /// Whether a lowest-priority message may be given to this APIC.
    pub fn can_arbitrate(&self) -> bool {
        self.is_enabled() && self.software_enabled()
    }

    /// Takes a message from the bus that is addressed to this APIC; returns whether it was accepted.
    pub fn accept(&mut self, message: &ApicMessage) -> bool {
        if !self.is_enabled() {
            return false;
        }
        match message.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                message.assert && self.software_enabled() && self.accept_vector(message.vector, message.level)
            }
            DeliveryMode::Init => {
                // INIT level de-assert only synchronised arbitration IDs of old.
                if message.assert {
                    self.init();
                    self.out.init = true;
                }
                true
            }
            DeliveryMode::StartUp => {
                self.out.sipi = Some(message.vector);
                true
            }
            DeliveryMode::Smi => {
                self.out.smi = true;
                true
            }
            DeliveryMode::Nmi => {
                self.out.nmi = true;
                true
            }
            DeliveryMode::ExtInt => {
                self.ext_int = true;
                true
            }
            DeliveryMode::Reserved => false,
        }
    }

    /// What would become of an edge that is interrupt `v`.
    pub fn edge(&self, v: u8) -> Edge {
        if !self.can_arbitrate() || v < 16 {
            Edge::Uncounted
        } else if self.irr.has(v) {
            Edge::Merged
        } else {
            Edge::Counted
        }
    }

    fn accept_vector(&mut self, v: u8, level: bool) -> bool {
        if v < 16 {
            self.error(ESR_RECEIVE_ILLEGAL_VECTOR);
            return false;
        }
        self.irr.set(v);
        if level {
            self.tmr.set(v)
        } else {
            self.tmr.clear(v)
        }
        true
    }

    fn error(&mut self, bit: u32) {
        self.errors |= bit;
        let lvt = self.lvt[ERROR];
        if lvt & LVT_MASKED == 0 {
            if lvt as u8 >= 16 {
                self.accept_vector(lvt as u8, false);
            } else {
                self.errors |= ESR_RECEIVE_ILLEGAL_VECTOR;
            }
        }
    }

    /// An LVT entry's event happens, as an edge.
    fn local_event(&mut self, i: usize) {
        let lvt = self.lvt[i];
        if lvt & LVT_MASKED != 0 {
            return;
        }
        match DeliveryMode::from_bits(lvt >> 8) {
            DeliveryMode::Fixed => {
                self.accept_vector(lvt as u8, false);
            }
            DeliveryMode::Smi => self.out.smi = true,
            DeliveryMode::Nmi => self.out.nmi = true,
            DeliveryMode::Init => {
                self.init();
                self.out.init = true;
            }
            // ExtINT is a level, looked at where the processor is told.
            _ => {}
        }
        if i == PERFORMANCE {
            // The processor masks the entry when it delivers a counter overflow (SDM vol. 3B, 20.6.2.2).
            self.lvt[i] |= LVT_MASKED;
        }
    }

    /// The performance counters overflow.
    pub fn performance_event(&mut self) {
        self.local_event(PERFORMANCE);
    }

    /// Delivers a level-triggered LINT entry whose pin is up and which is not being served.
    fn lint_level(&mut self, i: usize) {
        let lvt = self.lvt[i];
        let level = lvt & LVT_LEVEL != 0 && DeliveryMode::from_bits(lvt >> 8) == DeliveryMode::Fixed;
        let free = lvt & (LVT_MASKED | LVT_REMOTE_IRR) == 0;
        if level && free && self.lint[i - LINT0] && self.accept_vector(lvt as u8, true) {
            self.lvt[i] |= LVT_REMOTE_IRR;
        }
    }

    /// A LINT pin (0 or 1) changes.
    pub fn set_lint(&mut self, n: usize, level: bool) {
        let Some(pin) = self.lint.get_mut(n) else { return };
        let rises = level && !*pin;
        *pin = level;
        if !self.is_enabled() {
            self.out.nmi |= n == 1 && rises;
            return;
        }
        let i = LINT0 + n;
        let fixed_level =
            self.lvt[i] & LVT_LEVEL != 0 && DeliveryMode::from_bits(self.lvt[i] >> 8) == DeliveryMode::Fixed;
        if fixed_level {
            self.lint_level(i);
        } else if rises {
            self.local_event(i);
        }
    }

    // The timer.

    /// Takes account of the time that has passed.
    pub fn settle_timer(&mut self, time: &Time) {
        let times = self.timer.expire(self.timer_mode(), time);
        if times != 0 && self.lvt[TIMER] & LVT_MASKED == 0 {
            self.timer_fired = Some(time.now());
            if self.timer_mode() != Mode::Periodic {
                self.accept_vector(self.lvt[TIMER] as u8, false);
                return;
            }
            self.timer_owed = self.timer_owed.saturating_add(times).min(self.timer.most_owed());
            self.deliver_timer();
        }
    }

    /// Delivers a timer interrupt that is owed, if it would not be lost in the one before.
    fn deliver_timer(&mut self) {
        if self.timer_owed == 0 {
            return;
        }
        let vector = self.lvt[TIMER] as u8;
        match self.edge(vector) {
            Edge::Merged => {}
            Edge::Counted => {
                self.timer_owed -= 1;
                self.accept_vector(vector, false);
            }
            Edge::Uncounted => {
                self.timer_owed = 0;
                self.accept_vector(vector, false);
            }
        }
    }

    /// When [`Registers::settle_timer`] should be called next.
    pub fn timer_wakeup(&self) -> Option<Nanos> {
        let masked = self.lvt[TIMER] & LVT_MASKED != 0 || !self.is_enabled();
        if masked { None } else { self.timer.wakeup(self.timer_mode(), self.timer_fired) }
    }

    fn timer_mode(&self) -> Mode {
        Mode::of(self.lvt[TIMER])
    }

    /// The deadline as of when account was last taken of the time.
    pub fn deadline(&self) -> u64 {
        self.timer.tsc_deadline()
    }

    pub fn tsc_deadline(&mut self, time: &Time) -> u64 {
        self.settle_timer(time);
        self.timer.tsc_deadline()
    }

    pub fn set_tsc_deadline(&mut self, value: u64, time: &Time) {
        self.settle_timer(time);
        self.timer.set_tsc_deadline(self.timer_mode(), value, time);
        self.settle_timer(time);
    }

    pub fn tsc_changed(&mut self, time: &Time) {
        self.timer.tsc_changed(self.timer_mode(), time);
        self.settle_timer(time);
    }

    // Registers.

    fn ldr(&self) -> u32 {
        if self.is_x2apic() { (self.id >> 4) << 16 | 1 << (self.id & 0xF) } else { self.ldr }
    }

    /// A register's value, whichever mode it is of; 0 if there is none of this number.
    pub fn peek(&mut self, n: u32, time: &Time) -> u32 {
        match n {
            reg::DFR => self.dfr,
            reg::ICR_HIGH => (self.icr >> 32) as u32,
            _ => self.read(n, time).unwrap_or(0),
        }
    }

    /// Whether the timer counts or waits.
    pub fn timer_runs(&self) -> bool {
        self.timer.runs()
    }

    /// Registers become those of the image, but for the timer's counts.
    pub fn take_on_registers(&mut self, image: &ApicImage) {
        let at = |n: u32| image.page[n as usize];
        self.base = image.base & (BASE_ADDRESS | BASE_ENABLE | BASE_EXTD | BASE_BSP);
        self.tpr = at(reg::TPR) as u8;
        self.svr = at(reg::SVR) & SVR_WRITABLE;
        if !self.is_x2apic() {
            self.ldr = at(reg::LDR) & 0xFF00_0000;
        }
        self.dfr = at(reg::DFR) | 0x0FFF_FFFF;
        self.esr = at(reg::ESR);
        self.icr = u64::from(at(reg::ICR_HIGH)) << 32 | u64::from(at(reg::ICR) & ICR_WRITABLE);
        for (n, lvt) in (reg::LVT_TIMER..).zip(&mut self.lvt) {
            *lvt = at(n) & (LVT_WRITABLE[(n - reg::LVT_TIMER) as usize] | LVT_REMOTE_IRR);
        }
        for (n, set) in [(reg::ISR, &mut self.isr), (reg::TMR, &mut self.tmr), (reg::IRR, &mut self.irr)] {
            *set = VectorSet(std::array::from_fn(|i| at(n + i as u32)));
        }
    }

    /// So do these: initial count, current count, divider; and the deadline.
    pub fn take_on_timer(&mut self, count: (u32, u32, u32), tsc_deadline: u64, time: &Time) {
        self.timer.take_on(self.timer_mode(), count, tsc_deadline, time);
    }

    /// A LINT pin changes of an APIC that is kept elsewhere.
    pub fn note_lint(&mut self, n: usize, level: bool) {
        if let Some(pin) = self.lint.get_mut(n) {
            *pin = level;
        }
    }

    /// Whether the 8259A asks, whatever the registers make of it.
    pub fn is_asked_by_pic(&self) -> bool {
        self.lint[0]
    }

    /// Reads a register that xAPIC and x2APIC share; none if there is none of this number.
    fn read(&mut self, n: u32, time: &Time) -> Option<u32> {
        Some(match n {
            reg::ID if self.is_x2apic() => self.id,
            reg::ID => self.id << 24,
            reg::VERSION => VERSION,
            reg::TPR => self.tpr.into(),
            reg::PPR => self.ppr().into(),
            reg::LDR => self.ldr(),
            reg::SVR => self.svr,
            0x10..=0x17 => self.isr.word(n - reg::ISR),
            0x18..=0x1F => self.tmr.word(n - reg::TMR),
            0x20..=0x27 => self.irr.word(n - reg::IRR),
            reg::ESR => self.esr,
            reg::ICR => self.icr as u32,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt[(n - reg::LVT_TIMER) as usize],
            reg::TIMER_INITIAL => self.timer.initial(),
            reg::TIMER_CURRENT => {
                self.settle_timer(time);
                self.timer.current(self.timer_mode(), time.now())
            }
            reg::TIMER_DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// Writes a register that xAPIC and x2APIC share; returns whether there is one of this number that can be written.
    fn write(&mut self, n: u32, value: u32, time: &Time) -> bool {
        match n {
            reg::TPR => self.tpr = value as u8,
            reg::EOI => self.eoi(),
            reg::SVR => {
                self.svr = value & SVR_WRITABLE;
                if !self.software_enabled() {
                    self.settle_timer(time);
                    self.timer_owed = 0;
                    self.lvt.iter_mut().for_each(|lvt| *lvt |= LVT_MASKED);
                }
            }
            reg::ESR => self.esr = std::mem::take(&mut self.errors),
            reg::LVT_TIMER..=reg::LVT_ERROR => self.write_lvt((n - reg::LVT_TIMER) as usize, value, time),
            reg::TIMER_INITIAL => {
                self.settle_timer(time);
                self.timer_owed = 0;
                self.timer.set_initial(self.timer_mode(), value, time.now());
            }
            reg::TIMER_DIVIDE => {
                self.settle_timer(time);
                self.timer.set_divide(self.timer_mode(), value, time.now());
            }
            _ => return false,
        }
        true
    }

    fn write_lvt(&mut self, i: usize, value: u32, time: &Time) {
        let mut lvt = value & LVT_WRITABLE[i];
        if !self.software_enabled() {
            lvt |= LVT_MASKED;
        }
        if i == TIMER {
            self.settle_timer(time);
            self.timer_owed = 0;
            self.timer.set_mode(self.timer_mode(), Mode::of(lvt));
        }
        if lvt & LVT_LEVEL != 0 {
            lvt |= self.lvt[i] & LVT_REMOTE_IRR;
        }
        self.lvt[i] = lvt;
        if i == LINT0 || i == LINT0 + 1 {
            self.lint_level(i);
        }
    }

    /// The command in ICR is sent (SDM vol. 3A, 11.6.1).
    fn send_ipi(&mut self) {
        let low = self.icr as u32;
        let mode = DeliveryMode::from_bits(low >> 8);
        let logical = low & 1 << 11 != 0;
        let high = (self.icr >> 32) as u32;
        let destination =
            if self.is_x2apic() { high } else { ApicMessage::wide_destination((high >> 24) as u8, logical) };
        let level = low & 1 << 15 != 0;
        let has_vector = matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        if has_vector && low as u8 <= 15 {
            self.error(ESR_SEND_ILLEGAL_VECTOR);
            return;
        }
        if matches!(mode, DeliveryMode::Reserved | DeliveryMode::ExtInt) {
            return;
        }
        let message = ApicMessage {
            destination,
            logical,
            mode,
            vector: low as u8,
            // IPIs are edges, whatever the trigger bit says, but for the INIT de-assert.
            level: false,
            assert: !(mode == DeliveryMode::Init && level && low & 1 << 14 == 0),
        };
        self.out.ipi = Some((Shorthand::from_bits(low >> 18), message));
    }

    /// A 32-bit read of the xAPIC page, of register `n`.
    pub fn mmio_read(&mut self, n: u32, time: &Time) -> u32 {
        match n {
            reg::EOI => 0,
            reg::APR => self.ppr().into(),
            reg::RRD => 0,
            reg::DFR => self.dfr,
            reg::ICR_HIGH => (self.icr >> 32) as u32,
            _ => self.read(n, time).unwrap_or_else(|| {
                self.error(ESR_ILLEGAL_REGISTER);
                0
            }),
        }
    }

    /// A 32-bit write to the xAPIC page, to register `n`.
    pub fn mmio_write(&mut self, n: u32, value: u32, time: &Time) {
        match n {
            reg::LDR => self.ldr = value & 0xFF00_0000,
            reg::DFR => self.dfr = value | 0x0FFF_FFFF,
            reg::ICR => {
                self.icr = self.icr & !0xFFFF_FFFF | u64::from(value & ICR_WRITABLE);
                self.send_ipi();
            }
            reg::ICR_HIGH => {
                self.icr = self.icr & 0xFFFF_FFFF | u64::from(value & 0xFF00_0000) << 32;
            }
            // Registers that can only be read.
            reg::ID | reg::VERSION | reg::APR | reg::PPR | reg::RRD | 0x10..=0x27 | reg::TIMER_CURRENT => {}
            _ => {
                if !self.write(n, value, time) {
                    self.error(ESR_ILLEGAL_REGISTER);
                }
            }
        }
    }

    /// RDMSR of 800h + `n`. Err is #GP.
    pub fn msr_read(&mut self, n: u32, time: &Time) -> Result<u64, ()> {
        if !self.is_x2apic() {
            return Err(());
        }
        match n {
            reg::ICR => Ok(self.icr),
            _ => self.read(n, time).map(u64::from).ok_or(()),
        }
    }

    /// WRMSR of 800h + `n`. Err is #GP.
    pub fn msr_write(&mut self, n: u32, value: u64, time: &Time) -> Result<(), ()> {
        if !self.is_x2apic() {
            return Err(());
        }
        let allowed: u64 = match n {
            reg::TPR | reg::SELF_IPI => 0xFF,
            reg::EOI | reg::ESR => 0,
            reg::SVR => SVR_WRITABLE.into(),
            reg::ICR => 0xFFFF_FFFF_0000_0000 | u64::from(ICR_WRITABLE | 1 << 12),
            reg::LVT_TIMER..=reg::LVT_ERROR => {
                (LVT_WRITABLE[(n - reg::LVT_TIMER) as usize] | LVT_READ_ONLY).into()
            }
            reg::TIMER_INITIAL => 0xFFFF_FFFF,
            reg::TIMER_DIVIDE => 0xB,
            _ => return Err(()),
        };
        if value & !allowed != 0 {
            return Err(());
        }
        match n {
            reg::ICR => {
                self.icr = value & (0xFFFF_FFFF_0000_0000 | u64::from(ICR_WRITABLE));
                self.send_ipi();
            }
            reg::SELF_IPI => {
                // Taken at once: a self IPI passes over no bus.
                if value < 16 {
                    self.error(ESR_SEND_ILLEGAL_VECTOR);
                } else if self.software_enabled() {
                    self.accept_vector(value as u8, false);
                }
            }
            _ => {
                self.write(n, value as u32, time);
            }
        }
        Ok(())
    }
}
