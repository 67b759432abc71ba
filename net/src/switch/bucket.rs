//! A token bucket: how much may pass, by a clock that is told it (RFC 2697's single rate, whose bucket may be overdrawn
//! by one frame, so that frames longer than the burst pass too and the rate is exact in the long run).
use std::time::Duration;

/// Tokens are billionths of a bit, so that a nanosecond's worth is the rate itself.
const BIT: i128 = 1_000_000_000;

/// What has passed a bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Octets.
    pub octets: u64,
    /// From the first frame to the last look at the clock.
    pub clock: Duration,
    /// Of that, the time whose tokens nobody has used: the bucket was full.
    pub idle: Duration,
}

/// A bucket.
#[derive(Clone, Debug)]
pub struct Bucket {
    rate: u64,
    /// In octets.
    burst: u64,
    tokens: i128,
    first: Option<Duration>,
    last: Duration,
    octets: u64,
    unused: i128,
}

impl Bucket {
    /// `rate` in bits in a second, at least one; `burst` in octets.
    pub fn new(rate: u64, burst: u64) -> Self {
        let (rate, burst) = (rate.max(1), burst.max(1));
        let tokens = i128::from(burst) * 8 * BIT;
        Self { rate, burst, tokens, first: None, last: Duration::ZERO, octets: 0, unused: 0 }
    }

    /// The burst that a rate has if nobody names one: what passes in 50 ms, and two frames at least.
    pub fn usual_burst(rate: u64) -> u64 {
        (rate / 8 / 20).max(2 * 1514)
    }

    /// Lets a frame pass, or tells when to ask again.
    ///
    /// # Errors
    /// The time when there are tokens again.
    pub fn take(&mut self, octets: usize, now: Duration) -> Result<(), Duration> {
        self.refill(now);
        if self.tokens <= 0 {
            let rate = i128::from(self.rate);
            let wait = (-self.tokens + rate) / rate;
            return Err(self
                .last
                .saturating_add(Duration::from_nanos(wait.min(i128::from(u64::MAX)) as u64)));
        }
        self.tokens -= octets as i128 * 8 * BIT;
        self.octets += octets as u64;
        Ok(())
    }

    /// What has passed by now.
    pub fn passed(&self) -> Passed {
        let idle = (self.unused / i128::from(self.rate)).min(i128::from(u64::MAX)) as u64;
        let clock = self.first.map_or(Duration::ZERO, |first| self.last - first);
        Passed { octets: self.octets, clock, idle: Duration::from_nanos(idle) }
    }

    /// Bits in a second.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// Octets that may pass at once.
    pub fn burst(&self) -> u64 {
        self.burst
    }

    fn refill(&mut self, now: Duration) {
        if self.first.is_none() {
            (self.first, self.last) = (Some(now), now);
        }
        let elapsed = now.saturating_sub(self.last).as_nanos().min(u128::from(u64::MAX)) as i128;
        self.last = self.last.max(now);
        let full = i128::from(self.burst) * 8 * BIT;
        self.tokens += elapsed * i128::from(self.rate);
        if self.tokens > full {
            self.unused += self.tokens - full;
            self.tokens = full;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_whatever_the_frames() {
        for rate in [64_000, 1_000_000, 10_000_000, 999_999_937, 40_000_000_000_u64] {
            for len in [60, 590, 1514, 65_600_usize] {
                let mut bucket = Bucket::new(rate, Bucket::usual_burst(rate).min(100 * len as u64));
                let mut now = Duration::from_secs(77);
                let start = now;
                let frames = (rate / 8 * 3 / len as u64).clamp(500, 20_000);
                for _ in 0..frames {
                    while let Err(at) = bucket.take(len, now) {
                        assert!(at > now, "who waits until then is not early");
                        now = at;
                    }
                }
                let passed = bucket.passed();
                assert_eq!(passed.octets, frames * len as u64);
                assert_eq!(passed.clock, now - start);
                // What has passed is the burst, what came in since, and a part of the last frame.
                let may = bucket.burst() as f64 + rate as f64 / 8.0 * (now - start).as_secs_f64();
                let over = passed.octets as f64 - may;
                assert!((-1.0..=len as f64).contains(&over), "{rate} {len}: {over}");
            }
        }
    }

    #[test]
    fn what_nobody_has_used_is_lost_and_known() {
        let mut bucket = Bucket::new(8_000, 1_000);
        assert!(bucket.take(1_000, Duration::ZERO).is_ok());
        assert_eq!(bucket.take(1, Duration::ZERO), Err(Duration::from_nanos(1)));
        // Ten seconds later there is one burst, no more.
        let later = Duration::from_secs(10);
        assert!(bucket.take(1_000, later).is_ok());
        assert!(bucket.take(1, later).is_err());
        assert_eq!(bucket.passed().idle, Duration::from_secs(9));
        // A clock that goes back changes nothing.
        assert!(bucket.take(1, Duration::from_secs(3)).is_err());
        assert_eq!(bucket.passed().clock, later);
    }
}
