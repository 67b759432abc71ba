//! The local APIC's timer as a function of time: one-shot and periodic counting at the bus frequency, and TSC
//! deadlines.
//! Source: Intel SDM vol. 3A, 11.5.4.
//!
//! Nothing counts: the instant at which the count reaches zero is kept, and the count is computed from it. A periodic
//! timer's instants are multiples of its period from its start, so that it does not drift; periods that a late host has
//! missed are counted.
use crate::clock::{Clock, LONGEST, Nanos, SECOND};
use crate::device::Invalid;
use serde::{Deserialize, Serialize};

/// Ticks of the timer's input clock (before the divider) per second.
pub const TIMER_HZ: u64 = 1_000_000_000;
/// The host is not asked for periodic interrupts more often than this; more are merged.
const MIN_HOST_PERIOD: Nanos = 20_000;

/// What registers need to know of time.
pub(super) struct Time<'a> {
    pub clock: &'a dyn Clock,
    pub tsc: &'a (dyn Fn() -> u64 + Send + Sync),
    pub tsc_hz: u64,
}

impl Time<'_> {
    pub fn now(&self) -> Nanos {
        self.clock.now()
    }

    /// The time at which the TSC will have reached `deadline`: never early.
    fn of_tsc(&self, deadline: u64) -> Nanos {
        let ticks = u128::from(deadline.saturating_sub((self.tsc)()));
        let ns = (ticks * u128::from(SECOND)).div_ceil(u128::from(self.tsc_hz.max(1)));
        self.now().saturating_add(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

/// Bits 18-17 of the LVT timer entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
    Reserved,
}

impl Mode {
    pub fn of(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }

    pub fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct ApicTimer {
    initial: u32,
    /// The divide configuration register.
    divide: u32,
    /// When the count will be zero or the TSC reach its deadline; none while stopped.
    expiry: Option<Nanos>,
    /// IA32_TSC_DEADLINE; 0 while disarmed.
    tsc_deadline: u64,
}

impl ApicTimer {
    /// Whether it is a timer that can be. A deadline of the TSC may be as far away as the guest likes.
    pub fn check(&self) -> Result<(), Invalid> {
        match self.expiry {
            Some(t) if self.tsc_deadline == 0 && t >= 2 * LONGEST => Err(Invalid("the timer's expiry")),
            _ => Ok(()),
        }
    }

    /// Whether it counts, or waits for its deadline.
    pub fn runs(&self) -> bool {
        self.expiry.is_some()
    }

    /// Initial count, current count and divider are these from now on. An initial count of 0 is that of a timer that
    /// has run out.
    pub fn take_on(&mut self, mode: Mode, count: (u32, u32, u32), tsc_deadline: u64, time: &Time) {
        let (initial, current, divide) = count;
        self.divide = divide & 0xB;
        self.expiry = None;
        self.tsc_deadline = 0;
        if mode == Mode::TscDeadline {
            self.set_tsc_deadline(mode, tsc_deadline, time);
        } else if initial != 0 {
            self.initial = initial;
            // A one-shot timer whose count is 0 has run out; a periodic one is about to.
            let runs = mode == Mode::Periodic || mode == Mode::OneShot && current != 0;
            self.expiry = runs.then(|| time.now().saturating_add(self.span(current)));
        }
    }

    pub fn initial(&self) -> u32 {
        self.initial
    }

    pub fn divide(&self) -> u32 {
        self.divide
    }

    pub fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// When the host should call, if the interrupt is wanted.
    pub fn wakeup(&self, mode: Mode, last_fired: Option<Nanos>) -> Option<Nanos> {
        let expiry = self.expiry?;
        match last_fired {
            Some(t) if mode == Mode::Periodic => Some(expiry.max(t.saturating_add(MIN_HOST_PERIOD))),
            _ => Some(expiry),
        }
    }

    /// The divisor: bits 3, 1, 0 are log2 less one, with 111b for 1.
    fn divisor(&self) -> u64 {
        let n = (self.divide >> 1 & 4) | (self.divide & 3);
        1 << ((n + 1) & 7)
    }

    /// Nanoseconds of `count` ticks.
    fn span(&self, count: u32) -> Nanos {
        // A tick of the input is a nanosecond at 1 GHz.
        const { assert!(TIMER_HZ == SECOND) };
        u64::from(count) * self.divisor()
    }

    /// How many periodic interrupts may be owed to a guest: what comes in a second, and no more than one at a period so
    /// short that the host is not asked for each.
    pub fn most_owed(&self) -> u64 {
        match self.span(self.initial) {
            period @ MIN_HOST_PERIOD.. => (SECOND / period).max(1),
            _ => 1,
        }
    }

    /// Takes account of the time that has passed; returns how often the timer has run out since the last call.
    pub fn expire(&mut self, mode: Mode, time: &Time) -> u64 {
        let Some(expiry) = self.expiry else { return 0 };
        match mode {
            Mode::OneShot | Mode::Periodic => {
                let now = time.now();
                if now < expiry {
                    return 0;
                }
                let period = self.span(self.initial);
                let times = match mode {
                    Mode::Periodic => ((now - expiry).checked_div(period)).map_or(1, |n| n.saturating_add(1)),
                    _ => 1,
                };
                self.expiry = (mode == Mode::Periodic && period != 0)
                    .then(|| expiry.saturating_add(times.saturating_mul(period)));
                times
            }
            Mode::TscDeadline => {
                if (time.tsc)() < self.tsc_deadline {
                    // The clock's idea of when that is may have been off by a rounding.
                    self.expiry = Some(time.of_tsc(self.tsc_deadline));
                    return 0;
                }
                self.expiry = None;
                self.tsc_deadline = 0;
                1
            }
            Mode::Reserved => {
                self.expiry = None;
                0
            }
        }
    }

    /// The current-count register.
    pub fn current(&self, mode: Mode, now: Nanos) -> u32 {
        match self.expiry {
            Some(expiry) if mode.counts() => {
                u32::try_from(expiry.saturating_sub(now).div_ceil(self.divisor())).unwrap_or(u32::MAX)
            }
            _ => 0,
        }
    }

    /// A write to the initial-count register: starts counting, or stops with 0. Ignored in TSC-deadline mode.
    pub fn set_initial(&mut self, mode: Mode, value: u32, now: Nanos) {
        if mode == Mode::TscDeadline {
            return;
        }
        self.initial = value;
        self.expiry = (value != 0 && mode.counts()).then(|| now.saturating_add(self.span(value)));
    }

    /// A write to the divide configuration register: the count stays, its pace changes.
    pub fn set_divide(&mut self, mode: Mode, value: u32, now: Nanos) {
        let current = self.current(mode, now);
        self.divide = value & 0xB;
        if mode.counts() && self.expiry.is_some() {
            self.expiry = Some(now.saturating_add(self.span(current)));
        }
    }

    /// The mode changes: into or out of TSC-deadline mode disarms (SDM vol. 3A, 11.5.4.1).
    pub fn set_mode(&mut self, from: Mode, to: Mode) {
        if from.counts() != to.counts() {
            self.expiry = None;
            self.tsc_deadline = 0;
        }
    }

    /// A write to IA32_TSC_DEADLINE: 0 disarms. Ignored in other modes.
    pub fn set_tsc_deadline(&mut self, mode: Mode, value: u64, time: &Time) {
        if mode == Mode::TscDeadline {
            self.tsc_deadline = value;
            self.expiry = (value != 0).then(|| time.of_tsc(value));
        }
    }

    /// The TSC was written: the same deadline is now at another time.
    pub fn tsc_changed(&mut self, mode: Mode, time: &Time) {
        self.set_tsc_deadline(mode, self.tsc_deadline, time);
    }
}
