//! The host's monotonic time for those who ask often: a guest's RDTSC above all.
//!
//! Where Linux itself tells the time by the processor's time-stamp counter (`tsc` as its clock source: invariant, and
//! the same on all processors), most readings take the time of the last look at the clock and the counter's distance
//! from there. That look is never older than a millisecond, and the rate is taken a little too low, so that the time
//! read is ahead of the clock only while that is slowed down, and by what it loses in a millisecond (adjtimex allows
//! 0.5 us). On other hosts each reading asks the clock.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::Instant;

/// Nanoseconds after which the clock is looked at again.
const FRESH: u64 = 1_000_000;
/// Nanoseconds between the looks that the rate is taken from, at least.
const BASELINE: u64 = 20_000_000;
/// The rate is taken too low by one part in so many, which is more than the errors of the looks that it comes from.
const MARGIN: u64 = 20_000;
/// Counts between which the clock is read at most, and how often that is tried.
const CLOSE: u64 = 1000;
const TRIES: u32 = 8;
/// Bits behind the point in the rate.
const FRACTION: u32 = 32;

/// The host's monotonic time since this was made.
pub(crate) struct HostTime {
    start: Instant,
    counted: bool,
    /// Who looks at the clock.
    looking: AtomicBool,
    /// Odd while the fields below change.
    sequence: AtomicU64,
    /// The counter and the time at the last look.
    count: AtomicU64,
    nanos: AtomicU64,
    /// Nanoseconds per count, with [`FRACTION`] bits; 0 as long as it is not known.
    rate: AtomicU64,
    /// The counter's distance for which all this holds.
    reach: AtomicU64,
    /// A look some time before the last, and its time.
    base: (AtomicU64, AtomicU64),
}

impl HostTime {
    /// Time that begins now.
    pub fn new() -> Self {
        let counted = is_counted();
        let (start, count) = (Instant::now(), counter());
        Self {
            start,
            counted,
            looking: AtomicBool::new(false),
            sequence: AtomicU64::new(0),
            count: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            reach: AtomicU64::new(0),
            base: (AtomicU64::new(count), AtomicU64::new(0)),
        }
    }

    /// Nanoseconds since the start. Never less than what was returned before, by whichever thread.
    #[inline]
    pub fn nanos(&self) -> u64 {
        if !self.counted {
            return self.clock();
        }
        loop {
            let before = self.sequence.load(Ordering::Acquire);
            let [count, nanos, rate, reach] =
                [&self.count, &self.nanos, &self.rate, &self.reach].map(|v| v.load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            let distance = counter().wrapping_sub(count);
            if before & 1 == 0 && self.sequence.load(Ordering::Relaxed) == before && distance < reach {
                return nanos + along(distance, rate);
            }
            if let Some(now) = self.look() {
                return now;
            }
        }
    }

    fn clock(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX - 1)
    }

    /// Looks at the clock and takes note of it; `None` if another thread just does, for which it has waited.
    #[cold]
    fn look(&self) -> Option<u64> {
        if self.looking.swap(true, Ordering::Acquire) {
            while self.looking.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            return None;
        }
        // The clock first: as seen from the counter's later reading it is late, and never ahead.
        let (mut clock, mut count) = (0, 0);
        for _ in 0..TRIES {
            let before = counter();
            clock = self.clock();
            count = counter();
            if count.wrapping_sub(before) < CLOSE {
                break;
            }
        }
        let [last, nanos, mut rate, mut reach] =
            [&self.count, &self.nanos, &self.rate, &self.reach].map(|v| v.load(Ordering::Relaxed));
        // What others may have read by the last look: should the clock have slowed down, the time waits for it.
        let reached = nanos + along(count.wrapping_sub(last).min(reach), rate);
        let now = clock.max(reached);
        let (base, since) = (self.base.0.load(Ordering::Relaxed), self.base.1.load(Ordering::Relaxed));
        let (counts, passed) = (count.wrapping_sub(base), clock.saturating_sub(since));
        if passed >= BASELINE {
            // A counter that stood still or went back is asked no more before the next such time.
            rate = ((u128::from(passed) << FRACTION) / u128::from(counts.max(1))) as u64;
            rate = if counts < 1 << 40 && rate >> FRACTION < 100 { rate - rate / MARGIN } else { 0 };
            reach = if rate == 0 { 0 } else { ((u128::from(FRESH) << FRACTION) / u128::from(rate)) as u64 };
            self.base.0.store(count, Ordering::Relaxed);
            self.base.1.store(clock, Ordering::Relaxed);
        }
        self.sequence.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::Release);
        self.count.store(count, Ordering::Relaxed);
        self.nanos.store(now, Ordering::Relaxed);
        self.rate.store(rate, Ordering::Relaxed);
        self.reach.store(reach, Ordering::Relaxed);
        self.sequence.fetch_add(1, Ordering::Release);
        self.looking.store(false, Ordering::Release);
        Some(now)
    }
}

/// Nanoseconds of so many counts.
fn along(counts: u64, rate: u64) -> u64 {
    ((u128::from(counts) * u128::from(rate)) >> FRACTION) as u64
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn counter() -> u64 {
    // SAFETY: RDTSC has no operands. A kernel that forbids it to programs would not tell them the time by it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> u64 {
    0
}

/// Whether the host tells the time by the counter.
fn is_counted() -> bool {
    let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    cfg!(all(target_arch = "x86_64", target_os = "linux"))
        && std::fs::read_to_string(source).is_ok_and(|s| s.trim() == "tsc")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Reads for a while on some threads; returns how far time was from the clock at most, ahead and behind.
    fn distances(time: &HostTime, long: Duration) -> (u64, u64) {
        let worst = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    let mut last = 0;
                    while time.start.elapsed() < long {
                        let before = time.clock();
                        let now = time.nanos();
                        let after = time.clock();
                        assert!(now >= last, "time went back from {last} to {now}");
                        last = now;
                        worst.0.fetch_max(now.saturating_sub(after), Ordering::Relaxed);
                        worst.1.fetch_max(before.saturating_sub(now), Ordering::Relaxed);
                    }
                });
            }
        });
        (worst.0.into_inner(), worst.1.into_inner())
    }

    #[test]
    fn time_is_the_clocks_and_does_not_go_back() {
        let time = HostTime::new();
        let (ahead, behind) = distances(&time, Duration::from_millis(300));
        // The clock's own rate may change by 1 in 2,000 (adjtimex), for the millisecond of a look's age.
        assert!(ahead <= 1000, "{ahead} ns ahead of the clock");
        assert!(behind <= 20_000, "{behind} ns behind the clock");
        assert_eq!(
            time.rate.load(Ordering::Relaxed) != 0,
            time.counted,
            "the rate is found where it is wanted"
        );
    }

    #[test]
    fn without_a_counter_the_clock_is_asked() {
        let time = HostTime { counted: false, ..HostTime::new() };
        let (ahead, behind) = distances(&time, Duration::from_millis(30));
        assert_eq!((ahead, behind), (0, 0));
        assert_eq!(time.rate.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_counter_that_jumps_is_left_for_the_clock() {
        let time = HostTime::new();
        distances(&time, Duration::from_millis(50));
        if !time.counted {
            return;
        }
        // As if the machine had been asleep, or moved to another host. What may have been read before is not taken
        // back.
        for jump in [1 << 50, 0u64.wrapping_sub(1 << 50)] {
            time.count.fetch_add(jump, Ordering::Relaxed);
            let before = time.clock();
            let now = time.nanos();
            assert!(now >= before && now <= time.clock() + 2 * FRESH, "{before} {now}");
        }
    }
}
