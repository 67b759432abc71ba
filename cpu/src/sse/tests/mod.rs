//! Tests: operations against the host's own instructions (x86-64 hosts), portable code against known answers,
//! forms on a small machine.
mod machine;
#[cfg(target_arch = "x86_64")]
mod oracle_bits;
#[cfg(target_arch = "x86_64")]
mod oracle_float;
mod portable;
mod vex;

/// A small generator (xorshift64*), so that a failure repeats.
struct Random(u64);

impl Random {
    fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    /// A vector for integer operations: random, or made of few distinct bytes so that comparisons and
    /// saturation meet their edges.
    fn vector(&mut self) -> u128 {
        const EDGES: [u8; 8] = [0, 1, 0x7f, 0x80, 0x81, 0xff, 0xfe, 0x40];
        let byte = |edgy: bool, r: u64| if edgy { EDGES[(r & 7) as usize] } else { (r >> 8) as u8 };
        let edgy = self.below(3) != 0;
        u128::from_le_bytes(std::array::from_fn(|_| byte(edgy, self.next())))
    }
    /// A small number, or any: a shift count.
    fn count(&mut self) -> u128 {
        match self.below(4) {
            0 => self.vector(),
            1 => u128::from(self.next()) << 64 | u128::from(self.below(80)),
            _ => self.below(80).into(),
        }
    }
}
