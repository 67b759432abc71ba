//! The ACPI power management timer: a counter at 3.579545 MHz that software can only read (ACPI 6.5, 4.8.3.3).
//!
//! It is a function of the clock. The status bit TMR_STS, set whenever the counter's top bit changes, belongs to the PM
//! block of the chip set: it compares [`pm_timer_toggles`] with what it saw before, and asks [`pm_timer_next_toggle`]
//! when to raise an SCI.
use crate::clock::Nanos;
use crate::timers::{ticks_at, time_of_tick};

/// Frequency of the timer: three times the NTSC colour subcarrier's.
pub const PM_TIMER_HZ: u64 = 3_579_545;

/// The counter as a 24-bit timer shows it (TMR_VAL_EXT clear in the FADT).
pub fn pm_timer_value(now: Nanos) -> u32 {
    ticks_at(now, PM_TIMER_HZ) as u32 & 0x00FF_FFFF
}

/// The counter as a 32-bit timer shows it (TMR_VAL_EXT set in the FADT).
pub fn pm_timer_value_32(now: Nanos) -> u32 {
    ticks_at(now, PM_TIMER_HZ) as u32
}

/// How often bit 23 has changed since power-on, in either direction: each change sets TMR_STS of a 24-bit timer.
pub fn pm_timer_toggles(now: Nanos) -> u64 {
    ticks_at(now, PM_TIMER_HZ) >> 23
}

/// When bit 23 changes next after `now` (every 2.34 s).
pub fn pm_timer_next_toggle(now: Nanos) -> Nanos {
    time_of_tick((pm_timer_toggles(now) + 1) << 23, PM_TIMER_HZ)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SECOND;

    #[test]
    fn counts_exactly_its_frequency_each_second_and_wraps_at_24_bits() {
        assert_eq!(pm_timer_value(0), 0);
        assert_eq!(pm_timer_value(SECOND), 3_579_545);
        assert_eq!(pm_timer_value(5 * SECOND), (5 * 3_579_545) & 0xFF_FFFF);
        assert_eq!(pm_timer_value_32(5 * SECOND), 5 * 3_579_545);
        let year = 365 * 86_400 * SECOND;
        assert_eq!(u64::from(pm_timer_value_32(year)), (365 * 86_400 * PM_TIMER_HZ) & 0xFFFF_FFFF);
        pm_timer_value(u64::MAX);
    }

    #[test]
    fn the_top_bit_changes_exactly_at_the_announced_time() {
        let mut now = 0;
        for n in 1..10 {
            let next = pm_timer_next_toggle(now);
            assert_eq!(pm_timer_toggles(next - 1), n - 1);
            assert_eq!(pm_timer_toggles(next), n);
            assert_eq!(pm_timer_value(next) >> 23 & 1, (n & 1) as u32);
            now = next;
        }
        pm_timer_next_toggle(u64::MAX);
    }
}
