//! The Internet checksum (RFC 1071).

/// The sum of a slice's 16-bit words, in the host's byte order, folded to 16 bits (RFC 1071, 2).
fn words(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    let (chunks, rest) = bytes.as_chunks::<4>();
    for chunk in chunks {
        // 64 KiB of 32-bit words are far from 64 bits.
        sum = sum.wrapping_add(u64::from(u32::from_ne_bytes(*chunk)));
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    fold(sum.wrapping_add(u64::from(u32::from_ne_bytes(last))))
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
}
