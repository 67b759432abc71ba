//! Lazy arithmetic flags without a dynamic operation code.
//!
//! An instruction that sets flags stores two words, and every flag is a few bit operations away, with no branch and no
//! table of operations:
//!
//! * `res`: the result sign-extended to 64 bits.
//! * `aux`: bit 63 = CF; bit 62 = CF xor OF (that is, the carry into the sign bit); bit 61 = correction of SF; bits
//!   8-15 = correction of the parity byte; bit 3 = AF.
//!
//! ZF = (res == 0); SF = bit 63 of res xor bit 61 of aux; PF = even parity of (res xor aux >> 8) & 0xff; CF = bit 63
//! of aux; OF = bit 63 xor bit 62 of aux; AF = bit 3 of aux. The corrections are zero but after instructions that load
//! flags directly.
//!
//! For add and subtract the wanted bits are all in the *carry vector* (carry or borrow out of each bit position),
//! shifted up so that the operand's top bit is bit 63.
use crate::state::{State, fl};

/// Bits of `aux` that come from the top of a carry vector.
pub const AUX_TOP: u64 = 3 << 62;
/// The CF bit of `aux`.
pub const AUX_CF: u64 = 1 << 63;
/// The CF xor OF bit of `aux`.
pub const AUX_PO: u64 = 1 << 62;
/// The SF correction of `aux`.
pub const AUX_SF: u64 = 1 << 61;
/// The AF bit of `aux`.
pub const AUX_AF: u64 = 1 << 3;

/// `aux` for a carry vector of `bits` width.
#[inline(always)]
pub const fn aux_of_carries(carries: u64, bits: u32) -> u64 {
    ((carries << (64 - bits)) & AUX_TOP) | (carries & AUX_AF)
}

/// The carry vector of `a + b (+ carry) = r`.
#[inline(always)]
pub const fn add_carries(a: u64, b: u64, r: u64) -> u64 {
    (a & b) | ((a | b) & !r)
}

/// The borrow vector of `a - b (- borrow) = r`.
#[inline(always)]
pub const fn sub_borrows(a: u64, b: u64, r: u64) -> u64 {
    (!a & b) | ((!a | b) & r)
}

/// Builds `(res, aux)` that stand for exactly the arithmetic flags in `rflags`.
pub const fn pack(rflags: u64) -> (u64, u64) {
    let zf = rflags & fl::ZF != 0;
    let res = if zf { 0 } else { 1 };
    // Parity of the byte: 0 is even (PF = 1), 1 is odd (PF = 0).
    let want_pf = rflags & fl::PF != 0;
    let fix = if want_pf == zf { 0 } else { 0x100 };
    let cf = rflags & fl::CF != 0;
    let of = rflags & fl::OF != 0;
    let mut aux = fix;
    if cf {
        aux |= AUX_CF;
    }
    if cf != of {
        aux |= AUX_PO;
    }
    if rflags & fl::SF != 0 {
        aux |= AUX_SF;
    }
    if rflags & fl::AF != 0 {
        aux |= AUX_AF;
    }
    (res, aux)
}

impl State {
    /// CF.
    #[inline(always)]
    pub fn cf(&self) -> bool {
        self.aux >> 63 != 0
    }
    /// PF.
    #[inline(always)]
    pub fn pf(&self) -> bool {
        ((self.res ^ (self.aux >> 8)) as u8).count_ones() & 1 == 0
    }
    /// AF.
    #[inline(always)]
    pub fn af(&self) -> bool {
        self.aux & AUX_AF != 0
    }
    /// ZF.
    #[inline(always)]
    pub fn zf(&self) -> bool {
        self.res == 0
    }
    /// SF.
    #[inline(always)]
    pub fn sf(&self) -> bool {
        ((self.res ^ (self.aux << 2)) >> 63) != 0
    }
    /// OF.
    #[inline(always)]
    pub fn of(&self) -> bool {
        ((self.aux ^ (self.aux << 1)) >> 63) != 0
    }
    /// The six arithmetic flags at their places in RFLAGS.
    pub fn arith_flags(&self) -> u64 {
        u64::from(self.cf())
            | u64::from(self.pf()) << 2
            | u64::from(self.af()) << 4
            | u64::from(self.zf()) << 6
            | u64::from(self.sf()) << 7
            | u64::from(self.of()) << 11
    }
    /// Replaces the arithmetic flags by those in `rflags`.
    pub fn set_arith_flags(&mut self, rflags: u64) {
        (self.res, self.aux) = pack(rflags);
    }
    /// The state with its arithmetic flags in the form that [`pack`] gives them: several forms stand for the same
    /// flags.
    pub fn with_packed_flags(&self) -> Self {
        let mut s = self.clone();
        s.set_arith_flags(self.arith_flags());
        s
    }
    /// The whole RFLAGS.
    pub fn rflags(&self) -> u64 {
        self.rflags | self.arith_flags()
    }
    /// Replaces the whole RFLAGS (no checks; bit 1 is set).
    pub fn set_rflags(&mut self, v: u64) {
        self.rflags = (v & !fl::ARITH) | 2;
        self.set_arith_flags(v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_flags_survives_packing() {
        let mut s = State::default();
        for n in 0..64u64 {
            let f = (n & 1) | (n & 2) << 1 | (n & 4) << 2 | (n & 8) << 3 | (n & 16) << 3 | (n & 32) << 6;
            s.set_arith_flags(f);
            assert_eq!(s.arith_flags(), f);
        }
    }

    #[test]
    fn byte_addition_and_subtraction_set_flags_as_the_definition_says() {
        let mut s = State::default();
        for a in 0..256u64 {
            for b in 0..256u64 {
                let r = (a + b) & 0xff;
                s.res = r as i8 as u64;
                s.aux = aux_of_carries(add_carries(a, b, r), 8);
                assert_eq!(s.cf(), a + b > 255);
                assert_eq!(s.of(), (a as i8).checked_add(b as i8).is_none());
                assert_eq!(s.af(), (a & 15) + (b & 15) > 15);
                let r = a.wrapping_sub(b) & 0xff;
                s.res = r as i8 as u64;
                s.aux = aux_of_carries(sub_borrows(a, b, r), 8);
                assert_eq!(s.cf(), a < b);
                assert_eq!(s.of(), (a as i8).checked_sub(b as i8).is_none());
                assert_eq!(s.af(), (a & 15) < (b & 15));
                assert_eq!(s.zf(), a == b);
                assert_eq!(s.sf(), r > 127);
            }
        }
    }
}
