//! The high precision event timer: a 64-bit counter at 100 MHz and three comparators.
//!
//! Implemented: one-shot and periodic comparators, 32-bit mode, edge and level interrupts, routing to I/O APIC pins,
//! the legacy replacement route (timer 0 to IRQ 0, timer 1 to IRQ 8, whose owners are told to be silent), accesses of
//! 32 and 64 bits (narrower ones read a part, and are not written).
//! On purpose missing: FSB (MSI) delivery, which the capability bits say.
//!
//! `Registers` is a function of the time in ticks. A comparator's matches are counted from the last one, so a periodic
//! timer does not drift. When the host is late, each period of an edge-triggered timer is an interrupt all the same:
//! the next one when the processor has taken the one before (`Hpet::redeliver`).
//!
//! Source: IA-PC HPET specification 1.0a, 2.3.
//!
//! Lock: one, held while interrupts are driven and while the 8254 and RTC are told of the legacy route.
use crate::aml::{Fragment, Under, crs, hid, name};
use crate::bus::{Edge, Irq, IrqSink, Mmio};
use crate::clock::{Clock, LONGEST, Nanos, Timer, TimerOwner};
use crate::device::{Device, Invalid, Reset};
use crate::interrupts::lapic::Redeliver;
use acpi_tables::aml::{Memory32Fixed, ZERO};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

/// Where a PC's HPET is mapped; its registers take 1 KiB.
pub const HPET_BASE: u64 = 0xFED0_0000;
/// The counter's period in femtoseconds: 100 MHz.
pub const PERIOD_FS: u32 = 10_000_000;
/// The counter's period in nanoseconds.
const PERIOD_NS: u64 = 10;
/// Number of comparators.
pub const TIMERS: usize = 3;
/// I/O APIC pins to which any comparator may be routed: 2, 8, 16-23.
pub const ROUTE_CAP: u32 = 0x00FF_0104;
/// The host is not asked to call more often than this: 20 us.
const MIN_HOST_TICKS: u64 = 2_000;

/// Interrupts are owed for so many ticks at most: one second.
const MOST_OWED_TICKS: u64 = 1_000_000_000 / PERIOD_NS;

/// Register offsets (table 2).
const GCAP_ID: u64 = 0x000;
const GEN_CONF: u64 = 0x010;
const GINTR_STA: u64 = 0x020;
const MAIN_CNT: u64 = 0x0F0;
const TIMER0: u64 = 0x100;

/// Revision 1, the number of timers, 64-bit counter, legacy route, vendor 8086h, the period.
const CAPABILITIES: u64 =
    0x01 | (TIMERS as u64 - 1) << 8 | 1 << 13 | 1 << 15 | 0x8086 << 16 | (PERIOD_FS as u64) << 32;

/// Fields of GEN_CONF.
const ENABLE_CNF: u64 = 1 << 0;
const LEG_RT_CNF: u64 = 1 << 1;

/// Fields of a timer's configuration (2.3.8).
const INT_TYPE_LEVEL: u64 = 1 << 1;
const INT_ENB: u64 = 1 << 2;
const TYPE_PERIODIC: u64 = 1 << 3;
const PER_INT_CAP: u64 = 1 << 4;
const SIZE_CAP: u64 = 1 << 5;
const VAL_SET: u64 = 1 << 6;
const MODE_32: u64 = 1 << 8;
const INT_ROUTE_SHIFT: u32 = 9;
const CONF_WRITABLE: u64 =
    INT_TYPE_LEVEL | INT_ENB | TYPE_PERIODIC | VAL_SET | MODE_32 | 0x1F << INT_ROUTE_SHIFT;

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Comparator {
    conf: u64,
    /// The comparator register; in periodic mode the accumulator, which moves on at each match.
    value: u64,
    period: u64,
    /// When the counter (unwrapped, in ticks of [`Registers::ticks`]) meets the comparator.
    next: Option<u64>,
    /// When an interrupt was made last, in ticks.
    fired: Option<u64>,
    /// Edges that are still to be delivered.
    owed: u64,
}

impl Comparator {
    const RESET: Self = Self {
        conf: PER_INT_CAP | SIZE_CAP | (ROUTE_CAP as u64) << 32,
        value: u64::MAX,
        period: 0,
        next: None,
        fired: None,
        owed: 0,
    };

    fn is(&self, flag: u64) -> bool {
        self.conf & flag != 0
    }

    fn mask(&self) -> u64 {
        if self.is(MODE_32) { u64::from(u32::MAX) } else { u64::MAX }
    }

    fn route(&self) -> u32 {
        (self.conf >> INT_ROUTE_SHIFT) as u32 & 0x1F
    }

    /// Looks for the next match, when the counter shows `counter` at tick `t`.
    fn rearm(&mut self, counter: u64, t: u64) {
        let distance = self.value.wrapping_sub(counter) & self.mask();
        self.next = t.checked_add(distance);
    }

    /// How many edges may be owed to a guest: what comes in a second, and no more than one at a period so short that
    /// the host is not asked for each.
    fn most_owed(&self) -> u64 {
        match self.period & self.mask() {
            period @ MIN_HOST_TICKS.. if self.is(TYPE_PERIODIC) => (MOST_OWED_TICKS / period).max(1),
            _ => 1,
        }
    }

    /// Takes account of the time up to tick `t`; returns how often there was a match.
    fn settle(&mut self, t: u64) -> u64 {
        let Some(next) = self.next.filter(|&next| next <= t) else { return 0 };
        let mut times = 1;
        let step = if self.is(TYPE_PERIODIC) { self.period & self.mask() } else { 0 };
        if self.is(TYPE_PERIODIC) {
            // A period of 0 never comes again.
            let missed = (t - next).checked_div(step);
            times = missed.map_or(1, |n| n.saturating_add(1));
            self.next = missed.and_then(|n| (n + 1).checked_mul(step)).and_then(|d| next.checked_add(d));
            if let Some(new) = self.next {
                self.value = self.value.wrapping_add(new - next) & self.mask();
            }
        } else {
            // The counter meets it again when it has gone round.
            let round = self.mask().wrapping_add(1);
            self.next = (t - next)
                .checked_div(round)
                .and_then(|n| (n + 1).checked_mul(round))
                .and_then(|d| next.checked_add(d));
        }
        times
    }
}

/// The registers; `t` is the time in ticks since power-on.
#[derive(Clone, Serialize, Deserialize)]
struct Registers {
    conf: u64,
    status: u64,
    /// The counter while halted; while it runs, what is to be added to `t`.
    counter: u64,
    timers: [Comparator; TIMERS],
}

impl Registers {
    fn new() -> Self {
        Self { conf: 0, status: 0, counter: 0, timers: [Comparator::RESET; TIMERS] }
    }

    fn runs(&self) -> bool {
        self.conf & ENABLE_CNF != 0
    }

    fn legacy(&self) -> bool {
        self.conf & (ENABLE_CNF | LEG_RT_CNF) == ENABLE_CNF | LEG_RT_CNF
    }

    fn counter(&self, t: u64) -> u64 {
        if self.runs() { self.counter.wrapping_add(t) } else { self.counter }
    }

    fn rearm(&mut self, i: usize, t: u64) {
        let (runs, counter) = (self.runs(), self.counter(t));
        let timer = &mut self.timers[i];
        // What is owed belongs to what was set before.
        timer.owed = 0;
        timer.next = None;
        if runs {
            timer.rearm(counter, t);
        }
    }

    /// Takes account of matches up to `t`.
    fn settle(&mut self, t: u64) {
        for (i, timer) in self.timers.iter_mut().enumerate() {
            let times = timer.settle(t);
            if times == 0 {
                continue;
            }
            if timer.is(INT_TYPE_LEVEL) {
                self.status |= 1 << i;
            } else if timer.is(INT_ENB) {
                timer.owed = timer.owed.saturating_add(times).min(timer.most_owed());
            }
            if timer.is(INT_ENB) {
                timer.fired = Some(t);
            }
        }
    }

    /// The tick at which a timer interrupts next.
    fn wakeup(&self) -> Option<u64> {
        let wanted = self.timers.iter().filter(|timer| timer.is(INT_ENB));
        let at = |timer: &Comparator| {
            let next = timer.next?;
            let gap =
                timer.fired.filter(|_| timer.is(TYPE_PERIODIC)).map(|t| t.saturating_add(MIN_HOST_TICKS));
            Some(gap.map_or(next, |gap| next.max(gap)))
        };
        wanted.filter_map(at).min()
    }

    /// Whether the level-triggered timer `i` asserts its line.
    fn level(&self, i: usize) -> bool {
        let timer = &self.timers[i];
        self.runs() && self.status >> i & 1 != 0 && timer.is(INT_ENB) && timer.is(INT_TYPE_LEVEL)
    }

    fn read(&self, offset: u64, t: u64) -> u64 {
        if let Some((i, field)) = timer_register(offset) {
            return match field {
                0 => self.timers[i].conf,
                8 => self.timers[i].value,
                _ => 0,
            };
        }
        match offset {
            GCAP_ID => CAPABILITIES,
            GEN_CONF => self.conf,
            GINTR_STA => self.status,
            MAIN_CNT => self.counter(t),
            _ => 0,
        }
    }

    /// Writes the bits of `mask` in the register at `offset`.
    fn write(&mut self, offset: u64, mask: u64, value: u64, t: u64) {
        let merge = |old: u64, writable: u64| old & !(mask & writable) | value & mask & writable;
        if let Some((i, field)) = timer_register(offset) {
            let timer = &mut self.timers[i];
            match field {
                0 => {
                    timer.conf = merge(timer.conf, CONF_WRITABLE);
                    if timer.is(MODE_32) {
                        timer.value &= timer.mask();
                        timer.period &= timer.mask();
                    }
                    if !timer.is(INT_TYPE_LEVEL) {
                        self.status &= !(1 << i);
                    }
                }
                8 => {
                    let periodic = timer.is(TYPE_PERIODIC);
                    if periodic {
                        timer.period = merge(timer.period, u64::MAX) & timer.mask();
                    }
                    if !periodic || timer.is(VAL_SET) {
                        timer.value = merge(timer.value, u64::MAX) & timer.mask();
                    } else {
                        // Only the period changes; the match that is pending stays.
                        return;
                    }
                    timer.conf &= !VAL_SET;
                    timer.fired = None;
                }
                _ => return,
            }
            self.rearm(i, t);
            return;
        }
        match offset {
            GEN_CONF => {
                let counter = self.counter(t);
                self.conf = merge(self.conf, ENABLE_CNF | LEG_RT_CNF);
                self.counter = if self.runs() { counter.wrapping_sub(t) } else { counter };
            }
            // Ones clear.
            GINTR_STA => {
                self.status &= !(value & mask);
                return;
            }
            MAIN_CNT => {
                let counter = merge(self.counter(t), u64::MAX);
                self.counter = if self.runs() { counter.wrapping_sub(t) } else { counter };
            }
            _ => return,
        }
        for i in 0..TIMERS {
            self.rearm(i, t);
        }
    }
}

/// The timer and the offset in its registers of an offset.
fn timer_register(offset: u64) -> Option<(usize, u64)> {
    let offset = offset.checked_sub(TIMER0)?;
    let i = (offset >> 5) as usize;
    (i < TIMERS).then_some((i, offset & 0x18))
}

#[derive(Clone, Serialize, Deserialize)]
struct State {
    regs: Registers,
    /// The line that each timer holds up.
    driven: [Option<Line>; TIMERS],
    legacy: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Line {
    Irq0,
    Irq8,
    Pin(u32),
}

/// What the HPET is wired to.
pub struct HpetWires {
    /// The I/O APIC's pins.
    pub pins: Arc<dyn IrqSink>,
    /// IRQ 0 and 8, on which timers 0 and 1 are while the legacy replacement route is on.
    pub irq0: Irq,
    /// See `irq0`.
    pub irq8: Irq,
    /// Told when the legacy replacement route goes on and off: the 8254 and the RTC must then be silent, or may
    /// interrupt again. It is called with the HPET locked and must not call it.
    pub legacy_route: Box<dyn Fn(bool) + Send + Sync>,
}

/// The HPET: MMIO at FED00000h.
pub struct Hpet {
    state: Mutex<State>,
    /// Whether edges are owed, for those who do not want to wait for the lock.
    owes: AtomicBool,
    wires: HpetWires,
    clock: Arc<dyn Clock>,
    timer: Arc<dyn Timer>,
}

impl Hpet {
    /// A halted HPET.
    pub fn new(clock: Arc<dyn Clock>, wires: HpetWires) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| {
            let timer = clock.timer(me.clone());
            let state = State { regs: Registers::new(), driven: [None; TIMERS], legacy: false };
            Self { state: Mutex::new(state), owes: AtomicBool::new(false), wires, clock, timer }
        })
    }

    fn line(&self, regs: &Registers, i: usize) -> Line {
        match i {
            0 if regs.legacy() => Line::Irq0,
            1 if regs.legacy() => Line::Irq8,
            _ => Line::Pin(regs.timers[i].route()),
        }
    }

    fn drive(&self, line: Line, level: bool) {
        match line {
            Line::Irq0 => self.wires.irq0.set(level),
            Line::Irq8 => self.wires.irq8.set(level),
            // A pin outside of the capability is connected to nothing.
            Line::Pin(n) if ROUTE_CAP >> n & 1 != 0 => self.wires.pins.set(n, level),
            Line::Pin(_) => {}
        }
    }

    /// Brings everything up to now, lets `f` use it, and lets the lines and the host timer follow.
    fn with<R>(&self, f: impl FnOnce(&mut Registers, u64) -> R) -> R {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let t = self.clock.now() / PERIOD_NS;
        self.interrupt(state, t);
        let result = f(&mut state.regs, t);
        // A comparator that was set to what the counter shows matches at once.
        self.interrupt(state, t);
        if state.regs.legacy() != state.legacy {
            state.legacy = !state.legacy;
            (self.wires.legacy_route)(state.legacy);
        }
        for i in 0..TIMERS {
            let wanted = state.regs.level(i).then(|| self.line(&state.regs, i));
            let driven = std::mem::replace(&mut state.driven[i], wanted);
            if driven != wanted {
                if let Some(line) = driven {
                    self.drive(line, false);
                }
                if let Some(line) = wanted {
                    self.drive(line, true);
                }
            }
        }
        self.timer.set(state.regs.wakeup().and_then(|tick| tick.checked_mul(PERIOD_NS)));
        result
    }

    fn edge(&self, line: Line) -> Edge {
        match line {
            Line::Irq0 => self.wires.irq0.edge(),
            Line::Irq8 => self.wires.irq8.edge(),
            Line::Pin(n) => self.wires.pins.edge(n),
        }
    }

    /// Takes account of matches up to `t`, and delivers edges as far as they would not be lost in the one before.
    fn interrupt(&self, state: &mut State, t: u64) {
        state.regs.settle(t);
        for i in 0..TIMERS {
            let line = self.line(&state.regs, i);
            while state.regs.timers[i].owed > 0 {
                let edge = self.edge(line);
                if edge == Edge::Merged {
                    break;
                }
                let owed = &mut state.regs.timers[i].owed;
                *owed = if edge == Edge::Counted { *owed - 1 } else { 0 };
                self.drive(line, true);
                self.drive(line, false);
            }
        }
        self.owes.store(state.regs.timers.iter().any(|timer| timer.owed > 0), Ordering::Relaxed);
    }
}

impl Redeliver for Hpet {
    fn redeliver(&self) {
        if self.owes.load(Ordering::Relaxed) {
            self.with(|_, _| ());
        }
    }
}

impl TimerOwner for Hpet {
    fn expired(&self) {
        self.with(|_, _| ());
    }
}

impl Mmio for Hpet {
    fn read(&self, offset: u64, size: u8) -> u64 {
        // Who reads the time sees that timers of before then have run out.
        self.clock.catch_up();
        let value = self.with(|regs, t| regs.read(offset & !7, t)) >> (8 * (offset & 7));
        match size {
            0 => 0,
            1..=7 => value & ((1 << (8 * u32::from(size))) - 1),
            _ => value,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let (mask, value) = match (size, offset & 7) {
            (8, 0) => (u64::MAX, value),
            (4, 0) => (0xFFFF_FFFF, value),
            (4, 4) => (0xFFFF_FFFF << 32, value << 32),
            _ => return,
        };
        self.with(|regs, t| regs.write(offset & !7, mask, value, t));
    }
}

/// What is saved of an HPET.
#[derive(Serialize, Deserialize)]
pub struct HpetV1 {
    state: State,
    timer: Option<Nanos>,
    irq0: bool,
    irq8: bool,
}

impl Device for Hpet {
    type State = HpetV1;
    const KIND: &'static str = "hpet";

    fn aml(&self) -> Option<Fragment> {
        let crs = crs(vec![&Memory32Fixed::new(false, HPET_BASE as u32, 0x400)]);
        Some(Fragment::device(Under::SystemBus, "HPET", vec![&hid("PNP0103"), &name("_UID", &ZERO), &crs]))
    }

    fn reset(&self, _: Reset) {
        self.with(|regs, _| *regs = Registers::new());
    }

    fn save(&self) -> HpetV1 {
        let state = self.state.lock().clone();
        let HpetWires { irq0, irq8, .. } = &self.wires;
        HpetV1 { state, timer: self.timer.deadline(), irq0: irq0.level(), irq8: irq8.level() }
    }

    /// The 8254 and the RTC know by themselves whether the legacy replacement route has taken their lines.
    fn restore(&self, HpetV1 { state, timer, irq0, irq8 }: HpetV1) -> Result<(), Invalid> {
        for timer in &state.regs.timers {
            if (timer.conf ^ Comparator::RESET.conf) & !CONF_WRITABLE != 0 {
                return Err(Invalid("a timer's configuration"));
            }
            if timer.owed > MOST_OWED_TICKS || timer.fired.is_some_and(|t| t >= LONGEST) {
                return Err(Invalid("an edge's time"));
            }
        }
        if state.driven.iter().any(|line| matches!(line, Some(Line::Pin(32..)))) {
            return Err(Invalid("a line"));
        }
        let mut now = self.state.lock();
        self.owes.store(state.regs.timers.iter().any(|timer| timer.owed > 0), Ordering::Relaxed);
        *now = state;
        self.timer.set(timer);
        self.wires.irq0.restore(irq0);
        self.wires.irq8.restore(irq8);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{ManualClock, SECOND};

    /// Records (line, level, time); IRQ 0 and 8 as lines 100 and 108.
    struct Lines(ManualClock, Mutex<Vec<(u32, bool, Nanos)>>);

    impl IrqSink for Lines {
        fn set(&self, line: u32, level: bool) {
            self.1.lock().push((line, level, self.0.now()));
        }
    }

    struct Board {
        clock: ManualClock,
        lines: Arc<Lines>,
        hpet: Arc<Hpet>,
        legacy: Arc<Mutex<Vec<bool>>>,
    }

    impl Board {
        fn new() -> Self {
            let clock = ManualClock::new();
            let lines = Arc::new(Lines(clock.clone(), Mutex::default()));
            let legacy: Arc<Mutex<Vec<bool>>> = Arc::default();
            let told = legacy.clone();
            let wires = HpetWires {
                pins: lines.clone(),
                irq0: Irq::new(lines.clone(), 100),
                irq8: Irq::new(lines.clone(), 108),
                legacy_route: Box::new(move |on| told.lock().push(on)),
            };
            let hpet = Hpet::new(Arc::new(clock.clone()), wires);
            Self { clock, lines, hpet, legacy }
        }

        fn conf(&self, i: u64, value: u64) {
            self.hpet.write(TIMER0 + 0x20 * i, 8, value);
        }

        fn comparator(&self, i: u64, value: u64) {
            self.hpet.write(TIMER0 + 0x20 * i + 8, 8, value);
        }

        fn rises(&self) -> Vec<(u32, Nanos)> {
            self.lines.1.lock().drain(..).filter(|l| l.1).map(|l| (l.0, l.2)).collect()
        }
    }

    #[test]
    fn says_what_it_is_and_counts_at_100_mhz_while_enabled() {
        let b = Board::new();
        assert_eq!(b.hpet.read(0, 8), 0x0098_9680_8086_A201);
        assert_eq!(b.hpet.read(4, 4), 10_000_000);
        b.clock.advance(SECOND);
        assert_eq!(b.hpet.read(MAIN_CNT, 8), 0);
        b.hpet.write(MAIN_CNT, 8, 0xFFFF_FFFF);
        b.hpet.write(GEN_CONF, 4, 1);
        b.clock.advance(20);
        assert_eq!(b.hpet.read(MAIN_CNT, 8), 0x1_0000_0001);
        assert_eq!((b.hpet.read(MAIN_CNT, 4), b.hpet.read(MAIN_CNT + 4, 4)), (1, 1));
        b.clock.advance(SECOND);
        b.hpet.write(GEN_CONF, 4, 0);
        b.clock.advance(SECOND);
        assert_eq!(b.hpet.read(MAIN_CNT, 8), 0x1_0000_0001 + 100_000_000);
    }

    #[test]
    fn a_one_shot_interrupts_once_when_the_counter_meets_it() {
        let b = Board::new();
        b.hpet.write(GEN_CONF, 8, 1);
        b.conf(2, INT_ENB | 16 << 9);
        b.comparator(2, 5000);
        b.clock.advance(49_999);
        assert!(b.rises().is_empty());
        b.clock.advance(SECOND);
        assert_eq!(b.rises(), [(16, 50_000)]);
    }

    #[test]
    fn a_comparator_behind_the_counter_waits_for_the_counter_to_go_round() {
        let b = Board::new();
        b.hpet.write(GEN_CONF, 8, 1);
        b.clock.advance(1000);
        b.conf(0, INT_ENB | MODE_32 | 2 << 9);
        b.comparator(0, 99);
        b.clock.advance(10 * ((1 << 32) - 2));
        assert!(b.rises().is_empty());
        b.clock.advance(10);
        assert_eq!(b.rises(), [(2, 1000 + 10 * ((1 << 32) - 1))]);
        b.clock.advance(10 << 32);
        assert_eq!(b.rises().len(), 1, "a 32-bit timer matches in each round");
    }

    #[test]
    fn a_periodic_timer_keeps_its_rhythm() {
        let b = Board::new();
        // As Linux sets it: the first match, then the period.
        b.hpet.write(GEN_CONF, 8, 3);
        b.conf(0, INT_ENB | TYPE_PERIODIC | VAL_SET | MODE_32);
        b.comparator(0, 10_000);
        b.comparator(0, 100_000);
        b.clock.advance(10_100_000);
        let expected: Vec<_> = (0..11).map(|i| (100, 100_000 + i * 1_000_000)).collect();
        assert_eq!(b.rises(), expected);
        assert_eq!(b.hpet.read(TIMER0 + 8, 8), 10_000 + 11 * 100_000);
    }

    #[test]
    fn periods_missed_are_one_interrupt_and_the_rhythm_stays() {
        let b = Board::new();
        b.hpet.write(GEN_CONF, 8, 1);
        b.conf(0, INT_ENB | TYPE_PERIODIC | VAL_SET | 2 << 9);
        b.comparator(0, 100_000);
        b.hpet.timer.cancel();
        b.clock.advance(5_500_000);
        b.hpet.read(0, 4);
        assert_eq!(b.rises(), [(2, 5_500_000)]);
        b.clock.advance(1_000_000);
        assert_eq!(b.rises(), [(2, 6_000_000)]);
    }

    #[test]
    fn the_legacy_route_takes_irq_0_and_8_and_gives_them_back() {
        let b = Board::new();
        b.hpet.write(GEN_CONF, 8, 2);
        assert!(b.legacy.lock().is_empty(), "not before the counter is enabled");
        b.hpet.write(GEN_CONF, 8, 3);
        b.conf(0, INT_ENB | 16 << 9);
        b.comparator(0, 100);
        b.conf(1, INT_ENB | 17 << 9);
        b.comparator(1, 200);
        b.clock.advance(5000);
        assert_eq!(b.rises(), [(100, 1000), (108, 2000)]);
        b.hpet.write(GEN_CONF, 8, 1);
        assert_eq!(*b.legacy.lock(), [true, false]);
    }

    #[test]
    fn a_level_interrupt_stays_up_until_its_status_is_cleared() {
        let b = Board::new();
        b.hpet.write(GEN_CONF, 8, 1);
        b.conf(1, INT_ENB | INT_TYPE_LEVEL | 20 << 9);
        b.comparator(1, 100);
        b.clock.advance(5000);
        assert_eq!(b.hpet.read(GINTR_STA, 8), 2);
        assert_eq!(*b.lines.1.lock(), [(20, true, 1000)]);
        b.hpet.write(GINTR_STA, 8, 1);
        assert_eq!(b.lines.1.lock().len(), 1);
        b.hpet.write(GINTR_STA, 8, 2);
        assert_eq!(b.lines.1.lock()[1], (20, false, 5000));
        assert_eq!(b.hpet.read(GINTR_STA, 8), 0);
    }

    #[test]
    fn a_level_moves_with_its_route() {
        let b = Board::new();
        b.hpet.write(GEN_CONF, 8, 1);
        b.conf(2, INT_ENB | INT_TYPE_LEVEL | 20 << 9);
        b.comparator(2, 0);
        b.lines.1.lock().clear();
        b.conf(2, INT_ENB | INT_TYPE_LEVEL | 21 << 9);
        let moved: Vec<_> = b.lines.1.lock().iter().map(|l| (l.0, l.1)).collect();
        assert_eq!(moved, [(20, false), (21, true)]);
    }

    #[test]
    fn a_disabled_interrupt_still_shows_its_level_status() {
        let b = Board::new();
        b.hpet.write(GEN_CONF, 8, 1);
        b.conf(2, INT_TYPE_LEVEL | 20 << 9);
        b.comparator(2, 10);
        b.clock.advance(1000);
        assert_eq!(b.hpet.read(GINTR_STA, 4), 4);
        assert!(b.rises().is_empty());
    }

    #[test]
    fn capability_bits_and_unimplemented_timers_cannot_be_written() {
        let b = Board::new();
        b.conf(0, u64::MAX);
        assert_eq!(b.hpet.read(TIMER0, 8), u64::from(ROUTE_CAP) << 32 | 0x3F7E);
        b.hpet.write(0, 8, 0);
        assert_eq!(b.hpet.read(0, 4), 0x8086_A201);
        b.conf(3, u64::MAX);
        assert_eq!(b.hpet.read(TIMER0 + 0x60, 8), 0);
    }

    #[test]
    fn a_64_bit_comparator_can_be_written_in_halves() {
        let b = Board::new();
        b.hpet.write(GEN_CONF, 4, 1);
        b.hpet.write(TIMER0 + 0x20 + 12, 4, 1);
        b.hpet.write(TIMER0 + 0x20 + 8, 4, 5);
        assert_eq!(b.hpet.read(TIMER0 + 0x20 + 8, 8), 0x1_0000_0005);
    }

    #[test]
    fn any_offset_at_any_width_with_any_value_is_harmless() {
        let b = Board::new();
        let mut x = 3u64;
        for _ in 0..20_000 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let size = [0u8, 1, 2, 4, 4, 8, 8, 255][(x >> 40) as usize & 7];
            let offset = [x >> 33 & 0x3FF, x >> 33 & 0x1F8, u64::MAX - (x & 7)][(x >> 60) as usize % 3];
            b.hpet.write(offset, size, x >> (x & 63));
            b.hpet.read(offset, size);
            b.clock.advance(x >> 50);
        }
        for i in 0..3 {
            b.conf(i, 0);
        }
        b.clock.advance(u64::MAX);
        b.hpet.read(MAIN_CNT, 8);
    }
}
