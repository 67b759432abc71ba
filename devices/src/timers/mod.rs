//! Timers of the PC: 8254, MC146818 with CMOS, HPET, ACPI PM timer.
//!
//! None of them counts: each computes its registers from the virtual clock, in exact integer arithmetic from a starting
//! point, so that nothing drifts, and asks the clock for a call when an output is to change.
//!
//! Locks: each timer has one, outermost in the order of the module `interrupts`; its pins are driven with it held. The
//! HPET calls the 8254 and the RTC (to take over their interrupts) with its own held; never the other way round.
pub mod hpet;
pub mod pit;
pub mod pm_timer;
pub mod rtc;

use crate::clock::{Nanos, SECOND};

/// How many ticks of a clock of `hz` have passed at `now`.
pub(crate) fn ticks_at(now: Nanos, hz: u64) -> u64 {
    (u128::from(now) * u128::from(hz) / u128::from(SECOND)) as u64
}

/// The earliest time at which `tick` ticks of a clock of `hz` have passed; never early.
pub(crate) fn time_of_tick(tick: u64, hz: u64) -> Nanos {
    let ns = (u128::from(tick) * u128::from(SECOND)).div_ceil(u128::from(hz.max(1)));
    u64::try_from(ns).unwrap_or(u64::MAX)
}
