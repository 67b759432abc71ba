//! Values that find faults: zeros, ones, powers of two and their neighbours, the edges of every floating-point format.

use crate::rng::Rng;

/// What the bits of a value stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Integers.
    Int,
    /// 16-bit floats.
    F16,
    /// 32-bit floats near the range of 16-bit ones.
    NearF16,
    /// 32-bit floats.
    F32,
    /// 64-bit floats.
    F64,
    /// 80-bit floats.
    F80,
}

/// An integer of up to 64 bits.
pub fn int(rng: &mut Rng) -> u64 {
    match rng.below(12) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => rng.pick(&[
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            1 << 63,
            !0 >> 1,
        ]),
        4 => (1u64 << rng.below(64)).wrapping_add(rng.below(3)).wrapping_sub(1),
        5 => !(1u64 << rng.below(64)),
        6 => rng.below(256),
        7 => rng.below(256).wrapping_neg(),
        8 => rng.u64() >> rng.below(64),
        9 => (rng.u64() as i64 >> rng.below(64)) as u64,
        _ => rng.u64(),
    }
}

/// Exponent field and fraction for a format with `eb` exponent bits and `fb` fraction bits.
fn float(rng: &mut Rng, eb: u32, fb: u32) -> (u64, u64, u64) {
    let sign = rng.below(2);
    let top = (1u64 << eb) - 1;
    let bias = top >> 1;
    let ones = (1u64 << fb) - 1;
    let fraction = match rng.below(8) {
        0 => 0,
        1 => ones,
        2 => 1,
        3 => 1 << (fb - 1),
        4 => ones & !rng.below(256),
        5 => ones & rng.u64() << rng.below(u64::from(fb)),
        _ => rng.u64() & ones,
    };
    let exp = match rng.below(16) {
        0 => return (sign, 0, 0),
        1 => return (sign, top, 0),
        2 => return (sign, top, (1 << (fb - 1)) | fraction),
        3 => return (sign, top, (fraction & (ones >> 1)) | 1),
        4 => 0,
        5 => 1 + rng.below(3),
        6 => top - 1 - rng.below(3),
        7 => rng.below(top),
        8 => bias + u64::from(fb) - 2 + rng.below(5),
        9 => (bias + 29 + rng.below(6)).min(top - 1),
        10 => (bias + 61 + rng.below(5)).min(top - 1),
        11 => bias / 2 + rng.below(bias),
        12 => return (sign, bias + rng.below(5), fraction & (ones << (fb - 3))),
        _ => bias - 4 + rng.below(9),
    };
    (sign, exp, fraction)
}

/// The bits of a 16-bit float.
pub fn f16(rng: &mut Rng) -> u16 {
    let (s, e, f) = float(rng, 5, 10);
    (s << 15 | e << 10 | f) as u16
}

/// The bits of a 32-bit float whose rounding to 16 bits is often denormal, tied or beyond the range.
pub fn near_f16(rng: &mut Rng) -> u32 {
    if rng.chance(20) {
        return f32(rng);
    }
    let exp = 127 - 27 + rng.below(46);
    let fraction = match rng.below(4) {
        0 => rng.u64() << 12,
        1 => (rng.u64() << 13).wrapping_sub(1 + rng.below(2)),
        2 => rng.u64() << rng.below(23),
        _ => rng.u64(),
    };
    (rng.below(2) << 31 | exp << 23 | fraction & 0x7f_ffff) as u32
}

/// The bits of a 32-bit float.
pub fn f32(rng: &mut Rng) -> u32 {
    let (s, e, f) = float(rng, 8, 23);
    (s << 31 | e << 23 | f) as u32
}

/// The bits of a 64-bit float.
pub fn f64(rng: &mut Rng) -> u64 {
    let (s, e, f) = float(rng, 11, 52);
    s << 63 | e << 52 | f
}

/// An 80-bit float: sign and exponent, significand; some of them in formats that are not supported any more.
pub fn f80(rng: &mut Rng) -> (u16, u64) {
    match rng.below(20) {
        0 => return (rng.u64() as u16, rng.u64()),
        1 => {
            // Unnormals, pseudo-denormals, pseudo-infinities, pseudo-NaNs.
            let e = rng.pick(&[0, 1, 0x3fff, 0x7ffe, 0x7fff]);
            let m = rng.pick(&[0, 1, 1 << 62, 1 << 63, !0, !0 >> 1]);
            return ((rng.below(2) << 15 | e) as u16, m);
        }
        2 => {
            // Small integers, and those near the limits of the integer formats.
            let v = rng.pick(&[1u64, 2, 3, 7, 10, 0x7fff, 0x8000, 0x8001, 0xffff, 0x7fff_ffff, 0x8000_0000]);
            let shift = v.leading_zeros();
            return ((rng.below(2) << 15) as u16 | (0x3fff + 63 - shift) as u16, v << shift);
        }
        3 => {
            // Doubles and singles seen as extended: rounding to them is exact or a tie.
            let keep = rng.pick(&[24u32, 25, 53, 54, 12]);
            let e = 0x3fff - 70 + rng.below(140);
            return ((rng.below(2) << 15 | e) as u16, (1 << 63 | rng.u64()) & !0 << (64 - keep));
        }
        4 => {
            // Near the exponent limits of single and double.
            let e = rng.pick(&[
                0x3fff - 127,
                0x3fff + 127,
                0x3fff - 1023,
                0x3fff + 1023,
                0x3fff - 149,
                0x3fff - 1074,
            ]);
            return ((rng.below(2) << 15 | (e - 2 + rng.below(5))) as u16, 1 << 63 | rng.u64());
        }
        _ => {}
    }
    let (s, e, f) = float(rng, 15, 63);
    let integer = u64::from(e != 0) << 63;
    ((s << 15 | e) as u16, integer | f)
}

/// Fills `out` with values of a kind.
pub fn fill(rng: &mut Rng, kind: Kind, out: &mut [u8]) {
    match kind {
        Kind::Int => match rng.below(8) {
            0 => out.fill(rng.pick(&[0, 0xff, 0x80, 0x7f])),
            1 => rng.fill(out),
            n => {
                let step = if n < 3 {
                    1
                } else if n < 5 {
                    2
                } else {
                    8
                };
                for c in out.chunks_mut(step) {
                    let v = int(rng).to_le_bytes();
                    c.copy_from_slice(&v[..c.len()]);
                }
            }
        },
        Kind::F16 => {
            for c in out.chunks_mut(2) {
                c.copy_from_slice(&f16(rng).to_le_bytes()[..c.len()]);
            }
        }
        Kind::NearF16 => {
            for c in out.chunks_mut(4) {
                c.copy_from_slice(&near_f16(rng).to_le_bytes()[..c.len()]);
            }
        }
        Kind::F32 => {
            for c in out.chunks_mut(4) {
                c.copy_from_slice(&f32(rng).to_le_bytes()[..c.len()]);
            }
        }
        Kind::F64 => {
            for c in out.chunks_mut(8) {
                c.copy_from_slice(&f64(rng).to_le_bytes()[..c.len()]);
            }
        }
        Kind::F80 => {
            for c in out.chunks_mut(10) {
                let (e, m) = f80(rng);
                let mut b = [0; 10];
                b[..8].copy_from_slice(&m.to_le_bytes());
                b[8..].copy_from_slice(&e.to_le_bytes());
                c.copy_from_slice(&b[..c.len()]);
            }
        }
    }
}
