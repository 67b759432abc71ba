//! Where all random numbers come from that a guest can see: RDRAND and RDSEED of each vCPU, devices, the seed that a
//! kernel is booted with. They are the host's, or, with a seed, sequences that are the same in every run.
//!
//! Each that asks has a sequence of its own, so that none depends on how the host schedules threads. Sequences go on
//! over a reset, and a restored machine goes on where the saved one was.
//!
//! Source of the seeded generator: SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators,
//! 2014).
use crate::device::{Device, Invalid, Reset};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Who asks for random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// RDRAND and RDSEED of the vCPU with this number.
    Vcpu(usize),
    /// A device: virtio-rng.
    Device,
    /// The seed that a kernel is booted with.
    Boot,
}

/// The source.
pub struct Entropy {
    /// One of each vCPU; the devices'; the boots'.
    sequences: Vec<Mutex<Sequence>>,
}

/// The numbers of one that asks.
enum Sequence {
    /// The host's, fetched in advance.
    Host { fetched: Box<[u8; 256]>, used: usize },
    /// The state of the seeded generator.
    Seeded(u64),
}

impl Entropy {
    /// The source of a machine with so many vCPUs: the host's numbers, or those of `seed`.
    pub fn new(seed: Option<u64>, vcpus: usize) -> Arc<Self> {
        // By the number of the stream: vCPUs have those from 0 on, and keep them whatever else asks.
        let streams = (0..vcpus as u64).chain([Self::DEVICE, Self::BOOT]);
        let sequence = |stream| match seed {
            Some(seed) => Sequence::Seeded(mix(mix(seed.wrapping_add(GAMMA)) ^ stream)),
            None => Sequence::host(),
        };
        Arc::new(Self { sequences: streams.map(|stream| Mutex::new(sequence(stream))).collect() })
    }

    const DEVICE: u64 = u32::MAX as u64;
    const BOOT: u64 = Self::DEVICE - 1;

    /// Fills `bytes` with random numbers, without waiting.
    ///
    /// # Panics
    /// There is no such vCPU.
    pub fn fill(&self, asker: Asker, bytes: &mut [u8]) {
        let n = match asker {
            Asker::Vcpu(n) => n,
            Asker::Device => self.sequences.len() - 2,
            Asker::Boot => self.sequences.len() - 1,
        };
        self.sequences[n].lock().fill(bytes);
    }

    /// 64 random bits.
    ///
    /// # Panics
    /// There is no such vCPU.
    pub fn number(&self, asker: Asker) -> u64 {
        let mut bytes = [0; 8];
        self.fill(asker, &mut bytes);
        u64::from_le_bytes(bytes)
    }
}

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(z: u64) -> u64 {
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

impl Sequence {
    fn host() -> Self {
        Self::Host { fetched: Box::new([0; 256]), used: 256 }
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        match self {
            Self::Seeded(state) => {
                for chunk in bytes.chunks_mut(8) {
                    *state = state.wrapping_add(GAMMA);
                    chunk.copy_from_slice(&mix(*state).to_le_bytes()[..chunk.len()]);
                }
            }
            Self::Host { fetched, used } => {
                if bytes.len() > fetched.len() {
                    return of_host(bytes);
                }
                if fetched.len() - *used < bytes.len() {
                    of_host(&mut fetched[..]);
                    *used = 0;
                }
                let given = &mut fetched[*used..*used + bytes.len()];
                bytes.copy_from_slice(given);
                // What a guest has taken for a key stands nowhere else.
                given.fill(0);
                *used += bytes.len();
            }
        }
    }
}

/// The host's random numbers; where it has none, such as nobody can guess easily.
fn of_host(bytes: &mut [u8]) {
    let Err(e) = getrandom::fill(bytes) else { return };
    tracing::error!("the host gives no random numbers: {e}");
    for chunk in bytes.chunks_mut(8) {
        // Each `RandomState` hashes differently.
        let mut h = RandomState::new().build_hasher();
        h.write_u128(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos()));
        chunk.copy_from_slice(&h.finish().to_le_bytes()[..chunk.len()]);
    }
}

/// Where the seeded sequences are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntropyV1 {
    /// One state for each that asks; none of the host's numbers.
    sequences: Vec<Option<u64>>,
}

impl Device for Entropy {
    type State = EntropyV1;
    const KIND: &'static str = "entropy";

    fn reset(&self, _: Reset) {}

    fn save(&self) -> EntropyV1 {
        let state = |s: &Mutex<Sequence>| match *s.lock() {
            Sequence::Seeded(state) => Some(state),
            Sequence::Host { .. } => None,
        };
        EntropyV1 { sequences: self.sequences.iter().map(state).collect() }
    }

    fn restore(&self, saved: EntropyV1) -> Result<(), Invalid> {
        if saved.sequences.len() != self.sequences.len() {
            return Err(Invalid("the number of sequences"));
        }
        for (sequence, state) in self.sequences.iter().zip(saved.sequences) {
            *sequence.lock() = state.map_or_else(Sequence::host, Sequence::Seeded);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKERS: [Asker; 4] = [Asker::Vcpu(0), Asker::Vcpu(1), Asker::Device, Asker::Boot];

    fn first(e: &Entropy, asker: Asker) -> [u64; 4] {
        std::array::from_fn(|_| e.number(asker))
    }

    #[test]
    fn a_seed_gives_each_that_asks_the_same_numbers_in_each_run_and_the_host_others() {
        let all = |seed| ASKERS.map(|asker| first(&Entropy::new(seed, 2), asker));
        assert_eq!(all(Some(7)), all(Some(7)));
        let mut numbers = [all(Some(7)), all(Some(8)), all(Some(0)), all(None), all(None)].concat().concat();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 5 * 4 * 4, "all differ");
        // Who else asks, and how many vCPUs there are, changes nothing for one.
        assert_eq!(first(&Entropy::new(Some(7), 1), Asker::Vcpu(0)), all(Some(7))[0]);
    }

    #[test]
    fn numbers_of_any_length_are_random() {
        for seed in [None, Some(3)] {
            let e = Entropy::new(seed, 1);
            for len in [1, 7, 8, 64, 250, 256, 257, 1000] {
                let mut bytes = vec![0; len];
                // That 40 fills leave a byte zero each time does not happen.
                let mut seen = vec![0; len];
                for _ in 0..40 {
                    e.fill(Asker::Device, &mut bytes);
                    seen.iter_mut().zip(&bytes).for_each(|(s, b)| *s |= b);
                }
                assert!(seen.iter().all(|b| *b != 0), "{seed:?} {len}");
            }
        }
    }

    #[test]
    fn a_restored_machine_goes_on_where_the_saved_one_was() {
        let (a, b) = (Entropy::new(Some(7), 2), Entropy::new(None, 2));
        for asker in ASKERS {
            first(&a, asker);
        }
        Device::restore(&*b, Device::save(&*a)).unwrap();
        assert_eq!(ASKERS.map(|asker| first(&a, asker)), ASKERS.map(|asker| first(&b, asker)));
        assert!(Device::restore(&*Entropy::new(None, 1), Device::save(&*a)).is_err());
    }
}
