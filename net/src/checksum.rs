//! The Internet checksum (RFC 1071).

/// The sum of a slice's 16-bit words, in the host's byte order, folded to 16 bits (RFC 1071, 2).
fn words(bytes: &[u8]) -> u16 {
    // Longer words have the same sum (RFC 1071, 2 C); four that do not wait for one another are the host's best.
    let mut sums = [0u128; 4];
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        for (sum, word) in sums.iter_mut().zip(block.as_chunks::<8>().0) {
            *sum += u128::from(u64::from_ne_bytes(*word));
        }
    }
    let (chunks, rest) = rest.as_chunks::<8>();
    for chunk in chunks {
        sums[0] += u128::from(u64::from_ne_bytes(*chunk));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let sum = sums.iter().sum::<u128>() + u128::from(u64::from_ne_bytes(last));
    // 2^32 is 1 modulo 2^16 - 1, so that parts of 32 bits may be added.
    fold((0..4).map(|n| (sum >> (32 * n)) as u64 & 0xffff_ffff).sum())
}

/// A sum of words with its carries added to it.
pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The checksum over slices as if they were one, and `start`, a sum of words. Zero for what has a right one in it.
pub fn checksum(parts: &[&[u8]], start: u64) -> u16 {
    !sum(parts, start)
}

/// The same, not inverted.
pub(crate) fn sum(parts: &[&[u8]], start: u64) -> u16 {
    let (mut total, mut odd) = (start, false);
    for part in parts {
        let one = u16::from_be(words(part));
        total += u64::from(if odd { one.swap_bytes() } else { one });
        odd ^= part.len() % 2 == 1;
    }
    fold(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_does_not_depend_on_how_bytes_are_cut() {
        // RFC 1071, 3: the sum of these is ddf2.
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&[&data], 0), !0xddf2);
        for cut in 0..data.len() {
            let (a, b) = data.split_at(cut);
            assert_eq!(checksum(&[a, b], 0), !0xddf2, "cut at {cut}");
        }
    }

    #[test]
    fn long_ones_are_the_sum_of_their_words() {
        for len in [0, 1, 2, 31, 32, 33, 63, 64, 1459, 1460, 65_535] {
            let data: Vec<u8> =
                (0..len).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8 | 0x80).collect();
            let word = |c: &[u8]| u64::from(c[0]) << 8 | u64::from(c.get(1).copied().unwrap_or(0));
            let plain: u64 = data.chunks(2).map(word).sum();
            assert_eq!(sum(&[&data], 0xfffe), fold(plain + 0xfffe), "{len} bytes");
            for cut in [0, 1, 7, 32, len as usize / 2] {
                let (a, b) = data.split_at(cut.min(data.len()));
                assert_eq!(sum(&[a, b], 0xfffe), fold(plain + 0xfffe), "{len} bytes, cut at {cut}");
            }
        }
    }
}
