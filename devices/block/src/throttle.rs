//! `throttling.*`: how much a drive may do in a second. Leaky buckets, as QEMU's `util/throttle.c` computes them: what
//! is done fills a bucket that leaks at the chosen rate; who finds more in it than it holds waits until it does not.
//!
//! A burst of more than a second has a bucket of its own, which leaks at the burst's rate and holds a tenth of a
//! second: all that may be done in a burst is not done at once.
use crate::drive::Request;
use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// A rate, and what may be done at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// In the long run; 0 for any.
    pub per_second: u64,
    /// In a burst (`-max`); 0 for a tenth of a second's worth.
    pub max: u64,
    /// Seconds that a burst may last (`-max-length`); 0 is 1.
    pub max_length: u64,
}

/// The limits of a drive: in total, of reads, of writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes.
    pub bytes: [Rate; 3],
    /// Requests.
    pub requests: [Rate; 3],
    /// A request of more bytes counts as several; 0: as one.
    pub request_size: u64,
}

/// The largest number that there is, as in QEMU.
const MOST: u64 = 1_000_000_000_000_000;

impl Limits {
    /// Whether there are any.
    pub fn any(&self) -> bool {
        self.bytes.iter().chain(&self.requests).any(|rate| rate.per_second > 0)
    }

    /// Whether they can be.
    ///
    /// # Errors
    /// What contradicts what.
    pub fn validate(&self) -> Result<(), String> {
        for (what, rates) in [("bps", self.bytes), ("iops", self.requests)] {
            let [total, read, write] = rates;
            if total.per_second > 0 && (read.per_second > 0 || write.per_second > 0)
                || total.max > 0 && (read.max > 0 || write.max > 0)
            {
                return Err(format!("{what}-total excludes {what}-read and {what}-write"));
            }
            for (name, rate) in ["total", "read", "write"].into_iter().zip(rates) {
                let key = format!("{what}-{name}");
                if rate.per_second > MOST || rate.max > MOST || rate.max_length > 100_000 {
                    return Err(format!("{key}: the number is too large"));
                }
                if rate.max > 0 && rate.per_second == 0 {
                    return Err(format!("{key}-max wants {key}"));
                }
                if rate.max > 0 && rate.max < rate.per_second {
                    return Err(format!("{key}-max is less than {key}"));
                }
                if rate.max_length > 1 && rate.max == 0 {
                    return Err(format!("{key}-max-length wants {key}-max"));
                }
                if rate.max > 0 && rate.max_length > MOST / rate.max {
                    return Err(format!("{key}-max-length is too long for {key}-max"));
                }
            }
        }
        if self.request_size > 0 && self.requests.iter().all(|rate| rate.per_second == 0) {
            return Err("iops-size wants an iops limit".into());
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    level: f64,
    /// Of a burst that may last: see [`Rate::max_length`].
    burst: f64,
}

impl Bucket {
    fn leak(&mut self, rate: Rate, time: Duration) {
        self.level = (self.level - rate.per_second as f64 * time.as_secs_f64()).max(0.0);
        self.burst = (self.burst - rate.max as f64 * time.as_secs_f64()).max(0.0);
    }

    fn fill(&mut self, rate: Rate, units: f64) {
        self.level += units;
        if rate.max_length > 1 {
            self.burst += units;
        }
    }

    /// How long who comes now waits.
    fn wait(&self, rate: Rate) -> Duration {
        if rate.per_second == 0 {
            return Duration::ZERO;
        }
        let holds = match rate.max {
            0 => rate.per_second as f64 / 10.0,
            max => max as f64 * rate.max_length.max(1) as f64,
        };
        let mut seconds = (self.level - holds).max(0.0) / rate.per_second as f64;
        if rate.max_length > 1 {
            let max = rate.max as f64;
            seconds = seconds.max((self.burst - max / 10.0) / max);
        }
        // A guest that has asked for more than a day's worth asks again.
        Duration::from_secs_f64(seconds.min(86_400.0))
    }
}

/// Limits that drives share (`throttling.group`, `-object throttle-group`), or one has for itself: what any of them
/// does fills the same buckets, and they wait in the order in which they come.
#[derive(Debug)]
pub struct ThrottleGroup {
    began: Instant,
    throttle: Mutex<Throttle>,
}

impl ThrottleGroup {
    /// One that nobody has done anything in.
    pub fn new(limits: Limits) -> Self {
        Self { began: Instant::now(), throttle: Mutex::new(Throttle::new(limits)) }
    }

    /// Counts `request`, which comes now, and tells how long it has to wait.
    pub(crate) fn take(&self, request: &Request) -> Duration {
        self.throttle.lock().take(self.began.elapsed(), request)
    }
}

/// What was done of late.
#[derive(Debug)]
pub struct Throttle {
    limits: Limits,
    buckets: [[Bucket; 3]; 2],
    at: Duration,
}

impl Throttle {
    /// Nothing so far.
    pub fn new(limits: Limits) -> Self {
        Self { limits, buckets: Default::default(), at: Duration::ZERO }
    }

    /// Counts `request`, which comes `now` (since whenever), and tells how long it has to wait. Those that came before
    /// it have been counted: it waits for them.
    pub fn take(&mut self, now: Duration, request: &Request) -> Duration {
        let (direction, bytes) = match request {
            Request::Read { len, .. } => (1, *len as u64),
            Request::Write { data, .. } => (2, data.len() as u64),
            // As QEMU has it: what transfers nothing is free.
            Request::Zero { .. } | Request::Discard { .. } | Request::Flush => return Duration::ZERO,
        };
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        let requests = match self.limits.request_size {
            0 => 1.0,
            size => (bytes as f64 / size as f64).max(1.0),
        };
        let mut wait = Duration::ZERO;
        let units = [(self.limits.bytes, bytes as f64), (self.limits.requests, requests)];
        for (buckets, (rates, _)) in self.buckets.iter_mut().zip(units) {
            for (bucket, rate) in buckets.iter_mut().zip(rates) {
                bucket.leak(rate, passed);
            }
            for n in [0, direction] {
                wait = wait.max(buckets[n].wait(rates[n]));
            }
        }
        for (buckets, (rates, units)) in self.buckets.iter_mut().zip(units) {
            for n in [0, direction] {
                buckets[n].fill(rates[n], units);
            }
        }
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(len: usize) -> Request {
        Request::Read { at: 0, len }
    }

    /// When requests that come together are let through, in milliseconds.
    fn times(limits: Limits, request: impl Fn() -> Request, many: usize) -> Vec<u128> {
        let mut throttle = Throttle::new(limits);
        (0..many).map(|_| throttle.take(Duration::ZERO, &request()).as_millis()).collect()
    }

    #[test]
    fn what_comes_at_once_is_spread_over_the_seconds() {
        let mut limits = Limits::default();
        limits.requests[0].per_second = 10;
        // One may be in the bucket.
        assert_eq!(times(limits, || read(1), 5), [0, 0, 100, 200, 300]);
        limits.requests[0].max = 20;
        let burst = times(limits, || read(1), 24);
        assert_eq!(burst[..21], [0; 21]);
        assert_eq!(burst[21..], [100, 200, 300]);
        // Two seconds of 20 each: a tenth of a second's worth at once, then 20 a second, then 10.
        limits.requests[0].max_length = 2;
        let burst = times(limits, || read(1), 80);
        assert_eq!(burst[..6], [0, 0, 0, 50, 100, 150]);
        assert_eq!(burst[40..43], [1900, 1950, 2000]);
        assert_eq!(burst[78..], [3800, 3900]);
        let mut limits = Limits::default();
        limits.bytes[1] = Rate { per_second: 1000, ..Rate::default() };
        assert_eq!(times(limits, || read(600), 3), [0, 500, 1100]);
        assert_eq!(times(limits, || Request::Write { at: 0, data: vec![0; 600] }, 3), [0; 3]);
        limits.request_size = 100;
        limits.bytes[1].per_second = 0;
        limits.requests[1].per_second = 10;
        assert_eq!(times(limits, || read(1000), 3), [0, 900, 1900]);
    }

    #[test]
    fn a_burst_is_over_when_it_has_lasted() {
        // 10 a second, for three seconds 50: who asks as often as it may gets that, and 10 a second from then on.
        let mut limits = Limits::default();
        limits.requests[2] = Rate { per_second: 10, max: 50, max_length: 3 };
        let mut throttle = Throttle::new(limits);
        let (mut now, mut done) = (Duration::ZERO, [0; 10]);
        while now < Duration::from_secs(10) {
            let wait = throttle.take(now, &Request::Write { at: 0, data: vec![0; 512] });
            now += wait.max(Duration::from_millis(1));
            if let Some(count) = done.get_mut(now.as_secs() as usize) {
                *count += 1;
            }
        }
        // What leaks meanwhile is in it: the bucket of 150 is full after 150 / (50 - 10) seconds.
        assert!(done[..3].iter().all(|n| (48..=57).contains(n)), "{done:?}");
        assert!(done[5..].iter().all(|n| (9..=11).contains(n)), "{done:?}");
    }

    #[test]
    fn a_bucket_leaks() {
        let mut limits = Limits::default();
        limits.bytes[0].per_second = 1000;
        let mut throttle = Throttle::new(limits);
        assert_eq!(throttle.take(Duration::ZERO, &read(1100)), Duration::ZERO);
        assert_eq!(throttle.take(Duration::from_millis(500), &read(1)), Duration::from_millis(500));
        assert_eq!(throttle.take(Duration::from_secs(60), &read(1)), Duration::ZERO);
    }

    #[test]
    fn limits_that_contradict_are_refused() {
        let rate = |per_second, max, max_length| Rate { per_second, max, max_length };
        let wrong = |bytes| Limits { bytes, ..Limits::default() }.validate().unwrap_err();
        let none = Rate::default();
        assert!(wrong([rate(1, 0, 0), rate(1, 0, 0), none]).contains("excludes"));
        assert!(wrong([rate(0, 5, 0), none, none]).contains("bps-total-max wants bps-total"));
        assert!(wrong([none, rate(9, 5, 0), none]).contains("less"));
        assert!(wrong([none, rate(9, 0, 5), none]).contains("max-length wants"));
        assert_eq!(
            Limits { bytes: [none, rate(1, 2, 3), rate(4, 0, 0)], ..Limits::default() }.validate(),
            Ok(())
        );
    }
}
