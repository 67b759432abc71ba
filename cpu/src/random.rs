//! The random numbers of RDRAND and RDSEED: the host's, or, with a seed, a sequence that is the same in every run.
//!
//! Each vCPU has a sequence of its own, so that none depends on how the host schedules their threads. It goes on over
//! a reset, as QEMU's does.
//!
//! Source of the seeded generator: SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators,
//! 2014).
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::{SystemTime, UNIX_EPOCH};

/// A source of random numbers.
#[derive(Clone, Debug, Default)]
pub struct Random {
    /// The seeded generator's state; the host's numbers without.
    state: Option<u64>,
}

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(z: u64) -> u64 {
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

impl Random {
    /// Sequence number `stream` of `seed`.
    pub fn seeded(seed: u64, stream: u32) -> Self {
        Self { state: Some(mix(mix(seed.wrapping_add(GAMMA)) ^ u64::from(stream))) }
    }

    /// Where the seeded sequence is; none of the host's numbers.
    pub(crate) fn position(&self) -> Option<u64> {
        self.state
    }

    /// The sequence from that position on.
    pub(crate) fn at(position: Option<u64>) -> Self {
        Self { state: position }
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        match &mut self.state {
            Some(state) => {
                *state = state.wrapping_add(GAMMA);
                mix(*state)
            }
            None => of_host(),
        }
    }
}

/// From the standard library's per-process seeds: each `RandomState` hashes differently.
fn of_host() -> u64 {
    let mut h = RandomState::new().build_hasher();
    h.write_u128(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos()));
    h.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(mut r: Random) -> [u64; 4] {
        std::array::from_fn(|_| r.number())
    }

    #[test]
    fn a_seed_gives_the_same_numbers_each_time_and_others_for_each_vcpu() {
        let of = |seed, stream| first(Random::seeded(seed, stream));
        assert_eq!(of(7, 0), of(7, 0));
        let different = [of(7, 0), of(7, 1), of(8, 0), of(0, 0), of(8, 1), first(Random::default())];
        let mut numbers: Vec<u64> = different.concat();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 24);
    }
}
