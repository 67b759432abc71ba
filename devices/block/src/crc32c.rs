//! CRC-32C (Castagnoli, RFC 3720 appendix B.4): what VHDX's structures are checked by.

/// The table for one byte, of the polynomial 0x1EDC6F41 with its bits reversed.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let (mut value, mut bit) = (n as u32, 0);
        while bit < 8 {
            value = if value & 1 != 0 { value >> 1 ^ 0x82f6_3b78 } else { value >> 1 };
            bit += 1;
        }
        table[n] = value;
        n += 1;
    }
    table
};

/// A sum that is made piece by piece.
pub struct Crc(u32);

impl Crc {
    /// Of nothing yet.
    pub fn new() -> Self {
        Self(!0)
    }

    /// Adds bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0 =
            bytes.iter().fold(self.0, |sum, b| sum >> 8 ^ TABLE[((sum ^ u32::from(*b)) & 0xff) as usize]);
    }

    /// The sum.
    pub fn sum(&self) -> u32 {
        !self.0
    }
}

/// The sum of `bytes` as if the four bytes at `at`, which hold it, were zeros.
pub fn without_itself(bytes: &[u8], at: usize) -> u32 {
    let mut crc = Crc::new();
    crc.add(&bytes[..at]);
    crc.add(&[0; 4]);
    crc.add(&bytes[at + 4..]);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_rfc() {
        let of = |bytes: &[u8]| {
            let mut crc = Crc::new();
            crc.add(bytes);
            crc.sum()
        };
        assert_eq!(of(&[0; 32]), 0x8a91_36aa);
        assert_eq!(of(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(of(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(without_itself(&[[0; 28].as_slice(), &[9; 4]].concat(), 28), 0x8a91_36aa);
    }
}
