//! The MC146818 real-time clock with its 128 bytes of CMOS RAM, at ports 70h and 71h.
//!
//! Time of day, date and century (register 32h), binary or BCD, 12 or 24 hours, update-in-progress, SET, divider reset;
//! periodic, alarm and update-ended interrupts on IRQ 8; port 70h's NMI mask. The other bytes are RAM, which the board
//! fills. On purpose missing: daylight saving (the bit is kept, as in modern chips), the square wave pin, and a weekday
//! of its own: it follows from the date.
//!
//! `Registers` is a function of the time: the divider chain has a phase on the virtual clock, and seconds are counted
//! from an epoch that changes when the guest sets the time. Flags are computed when somebody looks; the host is asked
//! to call only for interrupts that are enabled. Periodic interrupts that fall due while the guest has not read
//! register C, be it that the host was late, come one by one as it does.
//!
//! Source: Motorola MC146818 data sheet (ADI1018); 82371AB (PIIX4) data sheet, 11.1; register 32h by the convention of
//! PC BIOSes and the FADT.
//!
//! Lock: one, held while IRQ 8 is driven. Who listens to the alarm is called with nothing locked.
use crate::aml::{Fragment, IrqNoFlags, io};
use crate::bus::{Irq, PortIo};
use crate::bytewise;
use crate::clock::{Clock, LONGEST, Nanos, Timer, TimerOwner};
use crate::device::{Device, Invalid, Reset};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, OnceLock, Weak};

/// Size of the CMOS RAM, clock registers included.
pub const CMOS_SIZE: usize = 128;
/// The divider chain's frequency.
const DIVIDER_HZ: i128 = 32_768;
const SECOND: i128 = 1_000_000_000;
/// Update-in-progress is shown from 244 us (tBUC) before the 1984 us of an update (tUC), which ends with the second.
const UPDATE: i128 = 244_000 + 1_984_000;
/// After the divider's reset ends, the first update comes half a second later.
const AFTER_RESET: i128 = SECOND / 2;

/// Register numbers.
const SECONDS: usize = 0x00;
const SECONDS_ALARM: usize = 0x01;
const MINUTES: usize = 0x02;
const MINUTES_ALARM: usize = 0x03;
const HOURS: usize = 0x04;
const HOURS_ALARM: usize = 0x05;
const DAY_OF_WEEK: usize = 0x06;
const DAY_OF_MONTH: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
const REG_A: usize = 0x0A;
const REG_B: usize = 0x0B;
const REG_C: usize = 0x0C;
const REG_D: usize = 0x0D;
const CENTURY: usize = 0x32;

/// Register A: update in progress; divider; rate select.
const A_UIP: u8 = 0x80;
const A_DV: u8 = 0x70;
const A_DV_32768: u8 = 0x20;
const A_RS: u8 = 0x0F;
/// Register B. The interrupt enables stand where register C has the flags.
const B_SET: u8 = 0x80;
const B_DM: u8 = 0x04;
const B_24H: u8 = 0x02;
/// Register C: interrupt request, periodic, alarm and update-ended flags.
const C_IRQF: u8 = 0x80;
const C_PF: u8 = 0x40;
const C_AF: u8 = 0x20;
const C_UF: u8 = 0x10;
/// Register D: valid RAM and time.
const D_VRT: u8 = 0x80;
/// The PM bit of a 12-hour hour.
const PM: u8 = 0x80;
/// An alarm byte from here on matches anything.
const ALARM_ANY: u8 = 0xC0;

#[derive(Clone, Serialize, Deserialize)]
struct Registers {
    #[serde(with = "serde_bytes")]
    cmos: [u8; CMOS_SIZE],
    /// What was written to port 70h: index, NMI mask.
    index: u8,
    /// Seconds since 1970 at phase 0.
    epoch: i64,
    /// The clock's time at which the divider chain was at phase 0.
    origin: i128,
    /// The phase up to which flags have been computed.
    seen: i128,
    /// Periodic interrupts that are still to come.
    owed: i128,
    /// One of them comes now: IRQ 8 rises anew.
    again: bool,
    /// The alarm has rung, with its interrupt enabled.
    rung: bool,
}

impl Registers {
    fn new(unix_nanos: u64, now: Nanos) -> Self {
        let unix = i128::from(unix_nanos);
        let mut cmos = [0; CMOS_SIZE];
        cmos[REG_A] = A_DV_32768 | 6;
        cmos[REG_B] = B_24H;
        cmos[REG_D] = D_VRT;
        let (origin, phase) = (i128::from(now) - unix % SECOND, unix % SECOND);
        Self {
            cmos,
            index: 0,
            epoch: (unix / SECOND) as i64,
            origin,
            seen: phase,
            owed: 0,
            again: false,
            rung: false,
        }
    }

    fn phase(&self, now: Nanos) -> i128 {
        i128::from(now) - self.origin
    }

    fn divider_runs(&self) -> bool {
        self.cmos[REG_A] & A_DV == A_DV_32768
    }

    /// Whether seconds are counted; otherwise the registers stand as they are in `cmos`.
    fn updates(&self) -> bool {
        self.divider_runs() && self.cmos[REG_B] & B_SET == 0
    }

    fn seconds_at(&self, phase: i128) -> i64 {
        self.epoch.wrapping_add(phase.div_euclid(SECOND) as i64)
    }

    // Formats.

    fn encode(&self, v: u8) -> u8 {
        if self.cmos[REG_B] & B_DM != 0 { v } else { (v / 10 % 10) << 4 | (v % 10) }
    }

    fn decode(&self, v: u8) -> u8 {
        if self.cmos[REG_B] & B_DM != 0 { v } else { (v >> 4).wrapping_mul(10).wrapping_add(v & 0xF) }
    }

    fn encode_hour(&self, h: u8) -> u8 {
        if self.cmos[REG_B] & B_24H != 0 {
            return self.encode(h);
        }
        let twelve = if h.is_multiple_of(12) { 12 } else { h % 12 };
        self.encode(twelve) | if h >= 12 { PM } else { 0 }
    }

    fn decode_hour(&self, v: u8) -> u8 {
        if self.cmos[REG_B] & B_24H != 0 {
            return self.decode(v);
        }
        self.decode(v & !PM) % 12 + if v & PM != 0 { 12 } else { 0 }
    }

    /// Writes the time of `seconds` into the registers.
    fn show(&mut self, seconds: i64) {
        let (days, in_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let (year, month, day) = date_of(days);
        self.cmos[SECONDS] = self.encode((in_day % 60) as u8);
        self.cmos[MINUTES] = self.encode((in_day / 60 % 60) as u8);
        self.cmos[HOURS] = self.encode_hour((in_day / 3600) as u8);
        // 1970-01-01 was a Thursday; Sunday is 1.
        self.cmos[DAY_OF_WEEK] = self.encode((days + 4).rem_euclid(7) as u8 + 1);
        self.cmos[DAY_OF_MONTH] = self.encode(day);
        self.cmos[MONTH] = self.encode(month);
        self.cmos[YEAR] = self.encode(year.rem_euclid(100) as u8);
        self.cmos[CENTURY] = self.encode(year.div_euclid(100).rem_euclid(100) as u8);
    }

    /// The time that the registers show. What is no date is taken for the nearest one or the one it overflows to.
    fn shown(&self) -> i64 {
        let field = |i: usize| i64::from(self.decode(self.cmos[i]));
        let year = field(CENTURY) * 100 + field(YEAR);
        let days = days_of(year, field(MONTH).clamp(1, 12), field(DAY_OF_MONTH).clamp(1, 31));
        let hour = i64::from(self.decode_hour(self.cmos[HOURS]));
        days * 86_400 + hour * 3600 + field(MINUTES) * 60 + field(SECONDS)
    }

    /// Counting goes on from what the registers show.
    fn start_from_shown(&mut self, phase: i128) {
        self.epoch = self.shown().wrapping_sub(phase.div_euclid(SECOND) as i64);
        self.seen = phase;
    }

    // Interrupts.

    /// The period of the periodic interrupt in ticks of the divider chain.
    fn period(&self) -> Option<i128> {
        match self.cmos[REG_A] & A_RS {
            0 => None,
            // 3.9 ms and 7.8 ms, as rates 8 and 9.
            rs @ 1..=2 => Some(1 << (rs + 6)),
            rs => Some(1 << (rs - 1)),
        }
    }

    /// The first second after `after` that the alarm matches.
    fn next_alarm(&self, after: i64) -> Option<i64> {
        let want = |i: usize, v: u8| (self.cmos[i] < ALARM_ANY).then_some(i64::from(v));
        let hour = want(HOURS_ALARM, self.decode_hour(self.cmos[HOURS_ALARM]));
        let minute = want(MINUTES_ALARM, self.decode(self.cmos[MINUTES_ALARM]));
        let second = want(SECONDS_ALARM, self.decode(self.cmos[SECONDS_ALARM]));
        let mut t = after.checked_add(1)?;
        let end = t.checked_add(86_400)?;
        while t < end {
            if hour.is_some_and(|h| t.rem_euclid(86_400) / 3600 != h) {
                t += 3600 - t.rem_euclid(3600);
            } else if minute.is_some_and(|m| t.rem_euclid(3600) / 60 != m) {
                t += 60 - t.rem_euclid(60);
            } else if second.is_some_and(|s| t.rem_euclid(60) != s) {
                t += 1;
            } else {
                return Some(t);
            }
        }
        None
    }

    /// Computes the flags of what has happened since the last call.
    fn settle(&mut self, now: Nanos) {
        let phase = self.phase(now);
        let seen = std::mem::replace(&mut self.seen, phase);
        if phase <= seen || !self.divider_runs() {
            return;
        }
        let tick = |phase: i128| (phase * DIVIDER_HZ).div_euclid(SECOND);
        if let Some(period) = self.period() {
            let times = tick(phase).div_euclid(period) - tick(seen).div_euclid(period);
            if times > 0 {
                let waiting = i128::from(self.cmos[REG_C] & C_PF != 0);
                let wanted = self.cmos[REG_B] & C_PF != 0;
                // No more than comes in a second.
                let most = if wanted { DIVIDER_HZ / period } else { 0 };
                self.owed = (self.owed + times - 1 + waiting).min(most);
                self.cmos[REG_C] |= C_PF;
            }
        }
        if self.updates() {
            let (before, after) = (self.seconds_at(seen), self.seconds_at(phase));
            if before != after {
                self.cmos[REG_C] |= C_UF;
                if self.next_alarm(before).is_some_and(|alarm| alarm <= after) {
                    self.cmos[REG_C] |= C_AF;
                    self.rung |= self.cmos[REG_B] & C_AF != 0;
                }
            }
        }
        self.set_irqf();
    }

    fn set_irqf(&mut self) {
        let asked = self.cmos[REG_C] & self.cmos[REG_B] & (C_PF | C_AF | C_UF) != 0;
        self.cmos[REG_C] = self.cmos[REG_C] & !C_IRQF | if asked { C_IRQF } else { 0 };
    }

    fn irq(&self) -> bool {
        self.cmos[REG_C] & C_IRQF != 0
    }

    /// When an enabled interrupt comes that is not yet pending.
    fn wakeup(&self, now: Nanos) -> Option<Nanos> {
        let phase = self.phase(now);
        let awaited = self.cmos[REG_B] & !self.cmos[REG_C];
        let periodic = self.period().filter(|_| awaited & C_PF != 0 && self.divider_runs()).map(|period| {
            let tick = (phase * DIVIDER_HZ).div_euclid(SECOND);
            let next = (tick.div_euclid(period) + 1) * period;
            -(-next * SECOND).div_euclid(DIVIDER_HZ)
        });
        let of_second = |s: i64| (i128::from(s) - i128::from(self.epoch)) * SECOND;
        let this = self.seconds_at(phase);
        let update = (awaited & C_UF != 0 && self.updates()).then(|| of_second(this.wrapping_add(1)));
        // An alarm wakes a sleeping machine even if nobody has looked at the one before.
        let ringing = self.cmos[REG_B] & C_AF != 0 && self.updates();
        let alarm = if ringing { self.next_alarm(this) } else { None };
        let next = [periodic, update, alarm.map(of_second)].into_iter().flatten().min()?;
        u64::try_from(next + self.origin).ok()
    }

    // Registers.

    fn read(&mut self, now: Nanos) -> u8 {
        let i = usize::from(self.index) & (CMOS_SIZE - 1);
        let phase = self.phase(now);
        match i {
            SECONDS | MINUTES | HOURS | DAY_OF_WEEK..=YEAR | CENTURY if self.updates() => {
                self.show(self.seconds_at(phase));
                self.cmos[i]
            }
            REG_A => {
                let updating = self.updates() && phase.rem_euclid(SECOND) >= SECOND - UPDATE;
                self.cmos[REG_A] | if updating { A_UIP } else { 0 }
            }
            REG_C => {
                let flags = std::mem::take(&mut self.cmos[REG_C]);
                if self.owed > 0 {
                    self.owed -= 1;
                    self.again = true;
                    self.cmos[REG_C] = C_PF;
                    self.set_irqf();
                }
                flags
            }
            _ => self.cmos[i],
        }
    }

    fn write(&mut self, value: u8, now: Nanos) {
        let i = usize::from(self.index) & (CMOS_SIZE - 1);
        let phase = self.phase(now);
        match i {
            SECONDS | MINUTES | HOURS | DAY_OF_WEEK..=YEAR | CENTURY => {
                let updates = self.updates();
                if updates {
                    self.show(self.seconds_at(phase));
                }
                self.cmos[i] = value;
                if updates {
                    self.start_from_shown(phase);
                }
            }
            REG_A | REG_B => {
                let (updated, ran) = (self.updates(), self.divider_runs());
                if updated {
                    self.show(self.seconds_at(phase));
                }
                self.cmos[i] = if i == REG_A { value & !A_UIP } else { value };
                self.owed = 0;
                let mut phase = phase;
                if self.divider_runs() && !ran {
                    self.origin = i128::from(now) - AFTER_RESET;
                    phase = AFTER_RESET;
                    self.seen = phase;
                }
                if self.updates() && !updated {
                    self.start_from_shown(phase);
                }
                if value & B_SET != 0 && i == REG_B {
                    // SET clears the update-ended interrupt's enable.
                    self.cmos[REG_B] &= !C_UF;
                }
                self.set_irqf();
            }
            REG_C | REG_D => {}
            _ => self.cmos[i] = value,
        }
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Years are taken to begin in March, so that the leap day is
/// the last.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // Months from March have 31, 30, 31, 30, 31 days, over and over.
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

/// The date (year, month, day) that is so many days after 1970-01-01.
fn date_of(days: i64) -> (i64, u8, u8) {
    // 400 years have 146097 days: guess the year (of March), and correct by one if its first day is later.
    let guess = (days + 719_468).wrapping_mul(400).div_euclid(146_097);
    let year = if days_of(guess, 3, 1) > days { guess - 1 } else { guess };
    let year = if days_of(year + 1, 3, 1) <= days { year + 1 } else { year };
    let in_year = days - days_of(year, 3, 1);
    let month = (5 * in_year + 2) / 153;
    let day = in_year - (153 * month + 2) / 5 + 1;
    if month < 10 { (year, month as u8 + 3, day as u8) } else { (year + 1, month as u8 - 9, day as u8) }
}

#[derive(Clone, Serialize, Deserialize)]
struct State {
    regs: Registers,
    /// Whether the RTC is connected to IRQ 8 (the HPET may have taken it).
    irq_enabled: bool,
}

/// The real-time clock and CMOS RAM.
pub struct Rtc {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
    timer: Arc<dyn Timer>,
    irq: Irq,
    on_alarm: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Rtc {
    /// A clock that shows `unix_nanos` (nanoseconds since 1970-01-01 00:00, in the time zone that the guest is to see:
    /// UTC as a rule;
    /// [`crate::clock::host_unix_nanos`]) now, and goes on with `clock`. It drives `irq8`.
    pub fn new(clock: Arc<dyn Clock>, irq8: Irq, unix_nanos: u64) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| {
            let timer = clock.timer(me.clone());
            let state = State { regs: Registers::new(unix_nanos, clock.now()), irq_enabled: true };
            Self { state: Mutex::new(state), clock, timer, irq: irq8, on_alarm: OnceLock::new() }
        })
    }

    /// Has `f` called when the alarm rings with its interrupt enabled: the pin is wired to the power manager, too.
    /// Once.
    pub fn on_alarm(&self, f: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_alarm.set(Box::new(f));
    }

    /// The two ports at 70h.
    pub fn ports(self: &Arc<Self>) -> Arc<dyn PortIo> {
        Arc::new(Ports(self.clone()))
    }

    /// Sets a byte of CMOS RAM (index 0-127), as firmware or a board does; the clock's registers too, by their rules.
    pub fn set_cmos(&self, index: u8, value: u8) {
        self.with(|regs, now| {
            let selected = std::mem::replace(&mut regs.index, index & 0x7F);
            regs.write(value, now);
            regs.index = selected;
        });
    }

    /// A byte of CMOS RAM or a clock register, without the effects that a guest's read has.
    pub fn cmos(&self, index: u8) -> u8 {
        self.with(|regs, now| {
            if usize::from(index & 0x7F) == REG_C {
                return regs.cmos[REG_C];
            }
            let selected = std::mem::replace(&mut regs.index, index & 0x7F);
            let value = regs.read(now);
            regs.index = selected;
            value
        })
    }

    /// Whether port 70h's bit 7 keeps non-maskable interrupts from the processor.
    pub fn nmi_masked(&self) -> bool {
        self.state.lock().regs.index & 0x80 != 0
    }

    /// Connects the interrupt to IRQ 8, or not (the HPET's legacy replacement route).
    pub fn set_irq_enabled(&self, enabled: bool) {
        let mut state = self.state.lock();
        state.irq_enabled = enabled;
        self.irq.set(enabled && state.regs.irq());
    }

    fn with<R>(&self, f: impl FnOnce(&mut Registers, Nanos) -> R) -> R {
        let mut state = self.state.lock();
        let now = self.clock.now();
        state.regs.settle(now);
        let result = f(&mut state.regs, now);
        if std::mem::take(&mut state.regs.again) {
            self.irq.set(false);
        }
        self.irq.set(state.irq_enabled && state.regs.irq());
        self.timer.set(state.regs.wakeup(now));
        let rung = std::mem::take(&mut state.regs.rung);
        drop(state);
        if let Some(on_alarm) = self.on_alarm.get().filter(|_| rung) {
            on_alarm();
        }
        result
    }
}

impl TimerOwner for Rtc {
    fn expired(&self) {
        self.with(|_, _| ());
    }
}

struct Ports(Arc<Rtc>);

impl PortIo for Ports {
    fn read(&self, offset: u16, size: u8) -> u32 {
        bytewise::read(offset, size, |port| match port {
            1 => self.0.with(|regs, now| regs.read(now)),
            // The index cannot be read.
            _ => 0xFF,
        })
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        bytewise::write(offset, size, value, |port, byte| match port {
            0 => self.0.state.lock().regs.index = byte,
            1 => self.0.with(|regs, now| regs.write(byte, now)),
            _ => {}
        });
    }
}

/// What is saved of a real-time clock.
#[derive(Serialize, Deserialize)]
pub struct RtcV1 {
    state: State,
    timer: Option<Nanos>,
    irq8: bool,
}

impl Device for Rtc {
    type State = RtcV1;
    const KIND: &'static str = "mc146818rtc";

    fn aml(&self) -> Option<Fragment> {
        Some(Fragment::isa("RTC_", "PNP0B00", vec![&io(0x70, 2), &IrqNoFlags(8)]))
    }

    /// Interrupts off, flags and NMI mask cleared; time and RAM go on (MC146818, "RESET").
    fn reset(&self, _: Reset) {
        self.with(|regs, _| {
            regs.cmos[REG_B] &= !(C_PF | C_AF | C_UF | 0x08);
            regs.cmos[REG_C] = 0;
            regs.owed = 0;
            regs.index = 0;
        });
    }

    fn save(&self) -> RtcV1 {
        let state = self.state.lock().clone();
        RtcV1 { state, timer: self.timer.deadline(), irq8: self.irq.level() }
    }

    fn restore(&self, RtcV1 { state, timer, irq8 }: RtcV1) -> Result<(), Invalid> {
        let Registers { origin, seen, owed, epoch, .. } = state.regs;
        if [origin, seen, owed].iter().any(|t| t.unsigned_abs() >= 8 * u128::from(LONGEST)) || owed < 0 {
            return Err(Invalid("a time"));
        }
        // The year 32000000 or so.
        if epoch.unsigned_abs() >= 1 << 50 {
            return Err(Invalid("the date"));
        }
        let mut now = self.state.lock();
        *now = state;
        self.timer.set(timer);
        self.irq.restore(irq8);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::IrqSink;
    use crate::clock::{ManualClock, SECOND};

    /// 2024-02-28 23:59:58.5 UTC, a Wednesday.
    const START: u64 = 1_709_164_798_500_000_000;

    struct Rises(ManualClock, Mutex<Vec<Nanos>>);

    impl IrqSink for Rises {
        fn set(&self, _: u32, level: bool) {
            if level {
                self.1.lock().push(self.0.now());
            }
        }
    }

    struct Board {
        clock: ManualClock,
        rises: Arc<Rises>,
        rtc: Arc<Rtc>,
        io: Arc<dyn PortIo>,
    }

    impl Board {
        fn at(unix_nanos: u64) -> Self {
            let clock = ManualClock::new();
            let rises = Arc::new(Rises(clock.clone(), Mutex::default()));
            let rtc = Rtc::new(Arc::new(clock.clone()), Irq::new(rises.clone(), 8), unix_nanos);
            Self { io: rtc.ports(), clock, rises, rtc }
        }

        fn get(&self, i: usize) -> u8 {
            self.io.write(0, 1, i as u32);
            self.io.read(1, 1) as u8
        }

        fn put(&self, i: usize, value: u8) {
            self.io.write(0, 1, i as u32);
            self.io.write(1, 1, value.into());
        }

        /// Century, year, month, day, weekday, hour, minute, second.
        fn time(&self) -> [u8; 8] {
            [CENTURY, YEAR, MONTH, DAY_OF_MONTH, DAY_OF_WEEK, HOURS, MINUTES, SECONDS].map(|i| self.get(i))
        }

        fn rises(&self) -> Vec<Nanos> {
            std::mem::take(&mut *self.rises.1.lock())
        }
    }

    #[test]
    fn shows_the_given_time_and_goes_on_over_a_leap_day() {
        let b = Board::at(START);
        assert_eq!(b.time(), [0x20, 0x24, 0x02, 0x28, 4, 0x23, 0x59, 0x58]);
        b.clock.advance(SECOND / 2);
        assert_eq!(b.get(SECONDS), 0x59);
        b.clock.advance(SECOND);
        assert_eq!(b.time(), [0x20, 0x24, 0x02, 0x29, 5, 0, 0, 0]);
        b.clock.advance(86_400 * SECOND);
        assert_eq!(b.time(), [0x20, 0x24, 0x03, 0x01, 6, 0, 0, 0]);
    }

    #[test]
    fn dates_and_days_agree_for_a_thousand_years() {
        let mut days = days_of(1600, 1, 1);
        for year in 1600..2600 {
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            for (m, len) in
                [31, 28 + i64::from(leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31].iter().enumerate()
            {
                for day in 1..=*len {
                    assert_eq!(days_of(year, m as i64 + 1, day), days);
                    assert_eq!(date_of(days), (year, m as u8 + 1, day as u8));
                    days += 1;
                }
            }
        }
        assert_eq!(days_of(1970, 1, 1), 0);
    }

    #[test]
    fn binary_and_twelve_hour_formats() {
        let b = Board::at(START);
        b.put(REG_B, B_DM);
        assert_eq!(b.time(), [20, 24, 2, 28, 4, 11 | PM, 59, 58]);
        b.clock.advance(2 * SECOND);
        assert_eq!(b.get(HOURS), 12, "midnight is 12 AM");
        b.put(REG_B, 0);
        b.clock.advance(12 * 3600 * SECOND);
        assert_eq!(b.get(HOURS), 0x12 | PM, "noon is 12 PM");
        b.put(REG_B, B_24H);
        assert_eq!(b.get(HOURS), 0x12);
    }

    #[test]
    fn a_time_set_under_set_starts_when_set_ends() {
        let b = Board::at(START);
        b.put(REG_B, B_SET | B_24H);
        for (i, v) in [(CENTURY, 0x19), (YEAR, 0x99), (MONTH, 0x12), (DAY_OF_MONTH, 0x31)] {
            b.put(i, v);
        }
        for (i, v) in [(HOURS, 0x23), (MINUTES, 0x59), (SECONDS, 0x59)] {
            b.put(i, v);
        }
        b.clock.advance(10 * SECOND);
        assert_eq!(b.get(SECONDS), 0x59, "stands still");
        b.put(REG_B, B_24H);
        assert_eq!(b.get(SECONDS), 0x59);
        b.clock.advance(SECOND / 2);
        assert_eq!(b.time(), [0x20, 0x00, 0x01, 0x01, 7, 0, 0, 0], "the divider's phase went on");
    }

    #[test]
    fn a_single_register_can_be_set_while_running() {
        let b = Board::at(START);
        b.put(HOURS, 0x05);
        b.clock.advance(SECOND);
        assert_eq!(b.time()[5..], [0x05, 0x59, 0x59]);
    }

    #[test]
    fn the_divider_reset_stops_time_and_restarts_half_a_second_before_an_update() {
        let b = Board::at(START);
        b.put(REG_A, 0x76);
        b.clock.advance(5 * SECOND);
        assert_eq!(b.get(SECONDS), 0x58);
        b.put(REG_A, 0x26);
        b.clock.advance(SECOND / 2 - 1);
        assert_eq!(b.get(SECONDS), 0x58);
        b.clock.advance(1);
        assert_eq!(b.get(SECONDS), 0x59);
    }

    #[test]
    fn update_in_progress_is_shown_just_before_the_second_changes() {
        let b = Board::at(START);
        b.clock.advance(SECOND / 2 - UPDATE as u64 - 1);
        assert_eq!(b.get(REG_A), 0x26);
        b.clock.advance(1);
        assert_eq!(b.get(REG_A), 0xA6);
        b.clock.advance(UPDATE as u64);
        assert_eq!(b.get(REG_A), 0x26);
        assert_eq!(b.get(SECONDS), 0x59);
    }

    #[test]
    fn each_alarm_with_its_interrupt_enabled_is_told_of() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let b = Board::at(START);
        let rung = Arc::new(AtomicU32::new(0));
        let theirs = rung.clone();
        b.rtc.on_alarm(move || {
            theirs.fetch_add(1, Ordering::Relaxed);
        });
        // At any hour and minute.
        b.put(HOURS_ALARM, 0xff);
        b.put(MINUTES_ALARM, 0xff);
        b.put(SECONDS_ALARM, 0x03);
        b.clock.advance(60 * SECOND);
        assert_eq!(rung.load(Ordering::Relaxed), 0, "nobody wants it");
        b.put(REG_B, B_24H | C_AF);
        for n in 1..=3 {
            b.clock.advance(60 * SECOND);
            assert_eq!(rung.load(Ordering::Relaxed), n, "though register C was not read");
        }
    }

    #[test]
    fn the_update_ended_interrupt_comes_each_second_and_waits_for_register_c() {
        // An hour earlier, since at midnight the alarm, which is all zero, would match.
        let b = Board::at(START - 3600 * SECOND);
        b.put(REG_B, B_24H | C_UF);
        b.clock.advance(3 * SECOND);
        assert_eq!(b.rises(), [SECOND / 2], "the line stays up until register C is read");
        assert_eq!(b.get(REG_C), C_IRQF | C_PF | C_UF);
        assert_eq!(b.get(REG_C), 0);
        b.clock.advance(SECOND);
        assert_eq!(b.rises(), [3 * SECOND + SECOND / 2]);
    }

    #[test]
    fn the_periodic_interrupt_has_the_selected_rate() {
        let b = Board::at(0);
        b.put(REG_B, B_24H | C_PF);
        let mut rises = Vec::new();
        for _ in 0..10_240 {
            b.clock.advance(SECOND / 10_240 + 1);
            if b.get(REG_C) & C_PF != 0 {
                rises.extend(b.rises());
            }
        }
        assert_eq!(rises.len(), 1024);
        assert!(rises.iter().zip(1..).all(|(&at, n)| at == (n * SECOND).div_ceil(1024)));
    }

    #[test]
    fn the_alarm_rings_at_its_time_with_wildcards_and_over_midnight() {
        let b = Board::at(START);
        b.put(SECONDS_ALARM, 0x01);
        b.put(MINUTES_ALARM, 0x00);
        b.put(HOURS_ALARM, 0x00);
        b.put(REG_B, B_24H | C_AF);
        b.clock.advance(10 * SECOND);
        assert_eq!(b.rises(), [2 * SECOND + SECOND / 2]);
        assert_eq!(b.get(REG_C) & (C_IRQF | C_AF), C_IRQF | C_AF);
        b.put(HOURS_ALARM, 0xFF);
        b.put(MINUTES_ALARM, 0xC0);
        b.clock.advance(60 * SECOND);
        assert_eq!(b.rises(), [62 * SECOND + SECOND / 2]);
    }

    #[test]
    fn an_alarm_that_never_matches_is_no_alarm() {
        let b = Board::at(START);
        b.put(HOURS_ALARM, 0x77);
        b.put(REG_B, B_24H | C_AF);
        assert_eq!(b.clock.next_deadline(), None);
        b.clock.advance(2 * 86_400 * SECOND);
        assert!(b.rises().is_empty());
    }

    #[test]
    fn nothing_wakes_the_host_while_no_interrupt_is_enabled() {
        let b = Board::at(START);
        b.get(REG_C);
        b.get(SECONDS);
        assert_eq!(b.clock.next_deadline(), None);
    }

    #[test]
    fn ram_the_nmi_mask_and_the_read_only_registers() {
        let b = Board::at(START);
        b.rtc.set_cmos(0x34, 0xAB);
        assert_eq!(b.get(0x34), 0xAB);
        assert!(!b.rtc.nmi_masked());
        b.put(0x7F | 0x80, 0x5A);
        assert!(b.rtc.nmi_masked());
        assert_eq!(b.rtc.cmos(0x7F), 0x5A);
        b.put(REG_D, 0);
        assert_eq!(b.get(REG_D), D_VRT);
        assert_eq!(b.io.read(0, 1), 0xFF);
    }

    #[test]
    fn irq_8_is_silent_while_the_hpet_has_it() {
        let b = Board::at(START);
        b.rtc.set_irq_enabled(false);
        b.put(REG_B, B_24H | C_UF);
        b.clock.advance(SECOND);
        assert!(b.rises().is_empty());
        b.rtc.set_irq_enabled(true);
        assert_eq!(b.rises().len(), 1, "the request is still there");
    }

    #[test]
    fn any_port_at_any_width_with_any_value_is_harmless() {
        let b = Board::at(u64::MAX);
        let mut x = 9u64;
        for _ in 0..20_000 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (offset, size) = ((x >> 33) as u16 % 4, [0u8, 1, 1, 2, 4, 8, 1, 255][(x >> 40) as usize & 7]);
            b.io.write(offset, size, (x >> 20) as u32);
            b.io.read(offset, size);
            b.clock.advance(x >> 38);
        }
    }
}
