//! The raw sectors of a CD: sync, header, user data and error correction of mode 1.
//!
//! Source: ECMA-130, chapter 14 and annex A.
use super::cd::Parts;

/// User data of a sector.
pub const USER: usize = 2048;
/// A raw sector.
pub const RAW: usize = 2352;
/// Sync and header before the user data.
const LEAD: usize = 16;
/// Where the error correction codes are: P, then Q behind it.
const P: usize = 2076;
const Q: usize = 2248;

/// Address in minutes, seconds and frames, 2 seconds on (MMC-5, table 566).
pub fn msf(lba: u32) -> [u8; 3] {
    let frames = u64::from(lba) + 150;
    [(frames / 4500) as u8, (frames / 75 % 60) as u8, (frames % 75) as u8]
}

fn bcd(n: u8) -> u8 {
    ((n / 10 % 16) << 4) | (n % 10)
}

/// The 32-bit code of 14.3: x^32 + x^31 + x^16 + x^15 + x^4 + x^3 + x + 1, lowest bit first.
fn edc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |crc, b| {
        (0..8).fold(crc ^ u32::from(*b), |c, _| c >> 1 ^ if c & 1 != 0 { 0xd801_8001 } else { 0 })
    })
}

/// A product with the primitive element of GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1.
fn twice(n: u8) -> u8 {
    n << 1 ^ if n & 0x80 != 0 { 0x1d } else { 0 }
}

/// Its inverse plus one's: what divides by (1 + alpha).
fn divide(n: u8) -> u8 {
    // 1 + alpha is 3; its inverse is 0xf4 in this field.
    let (mut product, mut factor, mut n) = (0, 0xf4_u8, n);
    while factor != 0 {
        if factor & 1 != 0 {
            product ^= n;
        }
        n = twice(n);
        factor >>= 1;
    }
    product
}

/// One of the two codes of annex A: `vectors` vectors of `len` bytes each, whose first byte and whose step say where
/// in the sector, from its header on, they lie.
fn ecc(sector: &mut [u8], at: usize, vectors: usize, len: usize, place: impl Fn(usize, usize) -> usize) {
    for v in 0..vectors {
        let (mut a, mut b) = (0, 0);
        for i in 0..len {
            let byte = sector[12 + place(v, i)];
            a = twice(a ^ byte);
            b ^= byte;
        }
        let first = divide(twice(a) ^ b);
        sector[at + v] = first;
        sector[at + v + vectors] = first ^ b;
    }
}

/// All 2,352 bytes of a sector of mode 1 with this user data.
pub fn raw(lba: u32, user: &[u8]) -> Vec<u8> {
    let mut sector = vec![0; RAW];
    sector[1..11].fill(0xff);
    for (byte, n) in sector[12..15].iter_mut().zip(msf(lba)) {
        *byte = bcd(n);
    }
    sector[15] = 1;
    for (byte, from) in sector[LEAD..LEAD + USER].iter_mut().zip(user) {
        *byte = *from;
    }
    let code = edc(&sector[..LEAD + USER]);
    sector[LEAD + USER..LEAD + USER + 4].copy_from_slice(&code.to_le_bytes());
    ecc(&mut sector, P, 86, 24, |v, i| v + 86 * i);
    ecc(&mut sector, Q, 52, 43, |v, i| ((v / 2 * 43 + i * 44) % 1118) * 2 + v % 2);
    sector
}

/// What READ CD wants of a sector.
pub fn parts(parts: Parts, lba: u32, user: &[u8]) -> Vec<u8> {
    if parts == Parts::USER {
        return user.to_vec();
    }
    let sector = raw(lba, user);
    let ranges = [
        (parts.sync, 0..12),
        (parts.header, 12..16),
        (parts.user, LEAD..LEAD + USER),
        (parts.correction, LEAD + USER..RAW),
    ];
    ranges.into_iter().filter(|(wanted, _)| *wanted).flat_map(|(_, range)| sector[range].to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_two_seconds_on() {
        assert_eq!(
            [msf(0), msf(74), msf(4350), msf(359_849)],
            [[0, 2, 0], [0, 2, 74], [1, 0, 0], [79, 59, 74]]
        );
        assert_eq!([bcd(0), bcd(59), bcd(99)], [0, 0x59, 0x99]);
    }

    /// The syndromes of a code word are 0 (A.4): the sum of its bytes, and the sum weighted by powers of alpha.
    fn is_code_word(bytes: &[u8]) -> bool {
        let (mut sum, mut weighted) = (0, 0);
        for byte in bytes {
            sum ^= byte;
            weighted = twice(weighted) ^ byte;
        }
        sum == 0 && weighted == 0
    }

    #[test]
    fn a_raw_sector_is_made_of_code_words() {
        let user: Vec<u8> = (0..USER).map(|i| (i * 7 + i / 256) as u8).collect();
        let sector = raw(0x1234, &user);
        assert_eq!(edc(&sector[..LEAD + USER + 4]), 0, "the remainder of what has its code behind it");
        assert_eq!(
            (sector[0], sector[1], sector[11], &sector[12..16]),
            (0, 0xff, 0, &[0x01, 0x04, 0x10, 1][..])
        );
        let s = &sector[12..];
        for v in 0..86 {
            let word: Vec<u8> = (0..26).map(|i| s[v + 86 * i]).collect();
            assert!(is_code_word(&word), "P {v}");
        }
        for v in 0..52 {
            let mut word: Vec<u8> = (0..43).map(|i| s[((v / 2 * 43 + i * 44) % 1118) * 2 + v % 2]).collect();
            word.extend([s[2236 + v], s[2236 + 52 + v]]);
            assert!(is_code_word(&word), "Q {v}");
        }
    }
}
