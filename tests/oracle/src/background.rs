//! What data memory holds before the patches of a case.

use crate::layout::DATA_LEN;
use crate::rng::Rng;
use crate::values::{self, Kind};

/// The background of the batch that starts with case `first` of run `seed`.
pub fn random(seed: u64, first: u64) -> Vec<u8> {
    let mut rng = Rng::new(!seed, first);
    let mut m = vec![0; DATA_LEN];
    for piece in m.chunks_mut(64) {
        let kind = rng.pick(&[Kind::Int, Kind::Int, Kind::F32, Kind::F64]);
        values::fill(&mut rng, kind, piece);
    }
    m
}

/// The background of recorded rows: the byte at offset `n` of data memory is 37 n + (n >> 8) * 11, modulo 256.
pub fn pattern() -> Vec<u8> {
    (0..DATA_LEN).map(|n| (n * 37 + (n >> 8) * 11) as u8).collect()
}
