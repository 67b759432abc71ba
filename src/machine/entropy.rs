//! Random numbers for devices: the host's, or, with `-seed`, sequences that are the same in every run.
use mynah_cpu::random::Random;
use mynah_devices::kind::Entropy;
use parking_lot::Mutex;
use std::sync::Arc;

/// The sequence of devices among those of a seed: vCPUs have those from 0 on.
const STREAM: u32 = u32::MAX;

/// The numbers of the host, or those of `seed`.
pub fn of(seed: Option<u64>) -> Entropy {
    match seed {
        Some(seed) => {
            let sequence = Mutex::new(Random::seeded(seed, STREAM));
            Arc::new(move |bytes| fill(&mut sequence.lock(), bytes))
        }
        None => Arc::new(|bytes| {
            if let Err(e) = getrandom::fill(bytes) {
                // Nothing that follows from such numbers is a secret.
                tracing::error!("the host gives no random numbers: {e}");
                fill(&mut Random::default(), bytes);
            }
        }),
    }
}

fn fill(sequence: &mut Random, bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&sequence.number().to_le_bytes()[..chunk.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(source: &Entropy) -> [u8; 20] {
        let mut bytes = [0; 20];
        source(&mut bytes);
        bytes
    }

    #[test]
    fn a_seed_gives_the_same_numbers_in_each_run_and_the_host_others() {
        let (a, b, c) = (of(Some(1)), of(Some(1)), of(Some(2)));
        let first = some(&a);
        assert_eq!(first, some(&b));
        assert_eq!(some(&a), some(&b), "the sequence goes on");
        assert_ne!(first, some(&a));
        assert_ne!(first, some(&c));
        assert_ne!(some(&of(None)), some(&of(None)));
    }
}
