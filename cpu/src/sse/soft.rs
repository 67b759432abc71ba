//! Portable IEEE 754 binary32 and binary64 arithmetic as SSE does it: rounding by MXCSR.RC, DAZ, FTZ,
//! denormal-operand exception, tininess detected after rounding, and x86's choice of NaN (the first operand
//! that is a NaN, made quiet; else the negative default NaN).
//!
//! A finite number is `sig * 2^exp` in integers; each operation computes its result exactly, or with a sticky
//! lowest bit, and [`round`] does the rest. It is the arithmetic of hosts other than x86-64, and on those of
//! underflow and overflow that are not masked: their flags depend on the result as it would be with an
//! exponent of any size, which a host does not tell without a trap.
use super::lanes::{LOW32, LOW64, of_u32s, of_u64s, u32s, u64s};
use super::mxcsr::{DAZ, DE, FLAGS, FTZ, IE, OE, OM, PE, RC, RC_SHIFT, UE, UM, ZE};

/// The environment of one instruction.
pub struct Env {
    /// Rounding control: 0 nearest, 1 down, 2 up, 3 towards zero.
    pub rc: u8,
    daz: bool,
    pub(super) ftz: bool,
    underflow_masked: bool,
    overflow_masked: bool,
    /// Exceptions found, at their places in MXCSR.
    pub flags: u32,
    /// Exceptions of earlier steps, which were all masked.
    pub earlier: u32,
    /// Exceptions that are not masked.
    unmasked: u32,
}

impl Env {
    /// Ends a step of an operation that has several: false if it has raised an exception that is not masked, which
    /// keeps the next steps from being taken.
    pub fn step(&mut self) -> bool {
        if self.flags & self.unmasked != 0 {
            return false;
        }
        self.earlier |= self.flags;
        self.flags = 0;
        true
    }

    /// The environment that `mxcsr` asks for. FTZ works only while underflow is masked (SDM volume 1,
    /// 10.2.3.3).
    pub fn new(mxcsr: u32) -> Self {
        let underflow_masked = mxcsr & UM != 0;
        Self {
            rc: ((mxcsr & RC) >> RC_SHIFT) as u8,
            daz: mxcsr & DAZ != 0,
            ftz: mxcsr & FTZ != 0 && underflow_masked,
            underflow_masked,
            overflow_masked: mxcsr & OM != 0,
            flags: 0,
            earlier: 0,
            unmasked: !(mxcsr >> 7) & FLAGS,
        }
    }
}

/// A binary interchange format whose encodings are held in the low bits of a `u64`.
pub trait Format: 'static {
    /// Bits of the fraction field.
    const FRACTION: u32;
    /// Bits of the exponent field.
    const EXPONENT: u32;
    /// All bits.
    const BITS: u32 = 1 + Self::EXPONENT + Self::FRACTION;
    /// The sign bit.
    const SIGN: u64 = 1 << (Self::BITS - 1);
    /// Infinity; also the mask of the exponent field.
    const INF: u64 = ((1 << Self::EXPONENT) - 1) << Self::FRACTION;
    /// The bit that makes a NaN quiet.
    const QUIET: u64 = 1 << (Self::FRACTION - 1);
    /// The NaN that invalid operations give.
    const DEFAULT_NAN: u64 = Self::SIGN | Self::INF | Self::QUIET;
    /// Exponent of the least normal number.
    const EMIN: i32 = 2 - (1 << (Self::EXPONENT - 1));
    /// Lane `n`.
    fn lane(v: u128, n: usize) -> u64;
    /// All lanes by `f` of their number.
    fn fill(f: impl FnMut(usize) -> u64) -> u128;
    /// `v` with lane 0 replaced.
    fn with_low(v: u128, x: u64) -> u128;
}

/// binary32.
pub struct Single;
impl Format for Single {
    const FRACTION: u32 = 23;
    const EXPONENT: u32 = 8;
    fn lane(v: u128, n: usize) -> u64 {
        u64::from(u32s(v)[n & 3])
    }
    fn fill(mut f: impl FnMut(usize) -> u64) -> u128 {
        of_u32s(std::array::from_fn(|k| f(k) as u32))
    }
    fn with_low(v: u128, x: u64) -> u128 {
        v & !LOW32 | u128::from(x as u32)
    }
}
/// binary64.
pub struct Double;
impl Format for Double {
    const FRACTION: u32 = 52;
    const EXPONENT: u32 = 11;
    fn lane(v: u128, n: usize) -> u64 {
        u64s(v)[n & 1]
    }
    fn fill(f: impl FnMut(usize) -> u64) -> u128 {
        of_u64s(std::array::from_fn(f))
    }
    fn with_low(v: u128, x: u64) -> u128 {
        v & !LOW64 | u128::from(x)
    }
}

/// `f` on all lanes.
pub fn packed<F: Format>(a: u128, b: u128, mut f: impl FnMut(u64, u64) -> u64) -> u128 {
    F::fill(|k| f(F::lane(a, k), F::lane(b, k)))
}
/// `f` on the lowest lanes; the rest of `a`.
pub fn scalar<F: Format>(a: u128, b: u128, f: impl FnOnce(u64, u64) -> u64) -> u128 {
    F::with_low(a, f(F::lane(a, 0), F::lane(b, 0)))
}

/// What an encoding stands for; NaNs are dealt with before.
#[derive(Clone, Copy)]
pub(super) struct Num {
    pub(super) negative: bool,
    pub(super) kind: Kind,
}
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Zero,
    Infinite,
    /// `sig * 2^exp`, `sig` not zero.
    Finite {
        sig: u64,
        exp: i32,
    },
}

/// Whether `x` is a NaN.
pub fn is_nan<F: Format>(x: u64) -> bool {
    x & !F::SIGN > F::INF
}
/// Whether `x` is a signalling NaN.
pub fn is_snan<F: Format>(x: u64) -> bool {
    is_nan::<F>(x) && x & F::QUIET == 0
}
fn is_denormal<F: Format>(x: u64) -> bool {
    x & F::INF == 0 && x & !F::SIGN != 0
}
/// `x`, or the zero of its sign if it is denormal and DAZ is on.
pub fn daz<F: Format>(x: u64, env: &Env) -> u64 {
    if env.daz && is_denormal::<F>(x) { x & F::SIGN } else { x }
}

/// Takes an encoding that is no NaN apart.
pub(super) fn open<F: Format>(x: u64) -> Num {
    let negative = x & F::SIGN != 0;
    let field = ((x & F::INF) >> F::FRACTION) as i32;
    let fraction = x & ((1 << F::FRACTION) - 1);
    let kind = if x & F::INF == F::INF {
        Kind::Infinite
    } else if field != 0 {
        Kind::Finite { sig: fraction | 1 << F::FRACTION, exp: field - 1 + F::EMIN - F::FRACTION as i32 }
    } else if fraction != 0 {
        Kind::Finite { sig: fraction, exp: F::EMIN - F::FRACTION as i32 }
    } else {
        Kind::Zero
    };
    Num { negative, kind }
}

pub(super) fn invalid<F: Format>(env: &mut Env) -> u64 {
    env.flags |= IE;
    F::DEFAULT_NAN
}
pub(super) fn signed<F: Format>(negative: bool, x: u64) -> u64 {
    if negative { x | F::SIGN } else { x }
}
/// A zero that is the exact sum of opposite numbers.
pub(super) fn cancelled<F: Format>(env: &Env) -> u64 {
    signed::<F>(env.rc == 1, 0)
}
pub(super) fn note_denormals<F: Format>(operands: &[u64], env: &mut Env) {
    if operands.iter().any(|&x| is_denormal::<F>(x)) {
        env.flags |= DE;
    }
}

/// Quiets the operand if it is a NaN.
pub(super) fn nan1<F: Format>(x: u64, env: &mut Env) -> Option<u64> {
    if is_snan::<F>(x) {
        env.flags |= IE;
    }
    is_nan::<F>(x).then_some(x | F::QUIET)
}
/// The NaN that results if an operand is one.
fn nan2<F: Format>(a: u64, b: u64, env: &mut Env) -> Option<u64> {
    if is_snan::<F>(a) || is_snan::<F>(b) {
        env.flags |= IE;
    }
    if is_nan::<F>(a) { Some(a | F::QUIET) } else { is_nan::<F>(b).then_some(b | F::QUIET) }
}

/// Whether a magnitude is rounded up: `rest` is what is cut off, `half` its half-way value, `odd` the lowest
/// bit kept.
fn rounds_up(rc: u8, negative: bool, odd: bool, rest: u128, half: u128) -> bool {
    match rc {
        0 => rest > half || rest == half && odd,
        1 => negative && rest != 0,
        2 => !negative && rest != 0,
        _ => false,
    }
}

/// Shifts right; what is lost is kept as a sticky lowest bit.
pub(super) fn shift_sticky(v: u128, n: u32) -> u128 {
    match n {
        0 => v,
        1..128 => v >> n | u128::from(v << (128 - n) != 0),
        _ => u128::from(v != 0),
    }
}

/// Rounds `sig * 2^exp` (`sig` not zero, its lowest bit possibly sticky if it has more than 60 bits) to the
/// format.
pub(super) fn round<F: Format>(negative: bool, sig: u128, exp: i32, env: &mut Env) -> u64 {
    let up = sig.leading_zeros();
    let sig = sig << up;
    // The number is 1.xxx * 2^e.
    let e = exp - up as i32 + 127;
    let precision = F::FRACTION + 1;
    let cut = |drop: u32| -> (u128, bool) {
        let kept = if drop >= 128 { 0 } else { sig >> drop };
        let (rest, half) = match drop {
            128 => (sig, 1 << 127),
            129.. => (1, 2),
            _ => (sig & ((1 << drop) - 1), 1 << (drop - 1)),
        };
        let carry = rounds_up(env.rc, negative, kept & 1 != 0, rest, half);
        (kept + u128::from(carry), rest != 0)
    };
    let (full, inexact) = cut(128 - precision);
    let carried = full >> precision != 0;
    // Tiny: below the least normal number when rounded as if the exponent had no bounds.
    if e < F::EMIN && !(carried && e + 1 == F::EMIN) {
        if env.ftz {
            env.flags |= UE | PE;
            return signed::<F>(negative, 0);
        }
        let (sub, lossy) = cut(128 - precision + (F::EMIN - e).min(1000) as u32);
        env.flags |= match (env.underflow_masked, lossy, inexact) {
            (true, true, _) => UE | PE,
            (true, false, _) => 0,
            // Unmasked, every tiny result underflows, and it is inexact only if more than the range is
            // lacking.
            (false, _, true) => UE | PE,
            (false, _, false) => UE,
        };
        // A carry into the exponent field makes the least normal number, as it should.
        return signed::<F>(negative, sub as u64);
    }
    if inexact {
        env.flags |= PE;
    }
    let (full, e) = if carried { (full >> 1, e + 1) } else { (full, e) };
    if e > 1 - F::EMIN {
        env.flags |= if inexact || env.overflow_masked { OE | PE } else { OE };
        let to_infinity = match env.rc {
            0 => true,
            1 => negative,
            2 => !negative,
            _ => false,
        };
        return signed::<F>(negative, if to_infinity { F::INF } else { F::INF - 1 });
    }
    let fraction = full as u64 & ((1 << F::FRACTION) - 1);
    signed::<F>(negative, ((e - F::EMIN + 1) as u64) << F::FRACTION | fraction)
}

/// a + b.
pub fn add<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    let (a, b) = (daz::<F>(a, env), daz::<F>(b, env));
    if let Some(n) = nan2::<F>(a, b, env) {
        return n;
    }
    let (x, y) = (open::<F>(a), open::<F>(b));
    if x.kind == Kind::Infinite && y.kind == Kind::Infinite && x.negative != y.negative {
        return invalid::<F>(env);
    }
    note_denormals::<F>(&[a, b], env);
    let ((xs, xe), (ys, ye)) = match (x.kind, y.kind) {
        (Kind::Infinite, _) => return a,
        (_, Kind::Infinite) => return b,
        (Kind::Zero, Kind::Zero) if x.negative == y.negative => return a,
        (Kind::Zero, Kind::Zero) => return cancelled::<F>(env),
        (Kind::Zero, Kind::Finite { sig, exp }) => return round::<F>(y.negative, sig.into(), exp, env),
        (Kind::Finite { sig, exp }, Kind::Zero) => return round::<F>(x.negative, sig.into(), exp, env),
        (Kind::Finite { sig: xs, exp: xe }, Kind::Finite { sig: ys, exp: ye }) => ((xs, xe), (ys, ye)),
    };
    // 66 bits of room below: the smaller number's lost bits fit into one sticky bit.
    let e = xe.max(ye) - 66;
    let wide = |sig: u64, exp: i32| shift_sticky(u128::from(sig) << 66, (xe.max(ye) - exp) as u32);
    let (xw, yw) = (wide(xs, xe), wide(ys, ye));
    if x.negative == y.negative {
        round::<F>(x.negative, xw + yw, e, env)
    } else if xw == yw {
        cancelled::<F>(env)
    } else if xw > yw {
        round::<F>(x.negative, xw - yw, e, env)
    } else {
        round::<F>(y.negative, yw - xw, e, env)
    }
}

/// a - b.
pub fn sub<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    // A NaN's sign is its own.
    if is_nan::<F>(b) { add::<F>(a, b, env) } else { add::<F>(a, b ^ F::SIGN, env) }
}

/// a * b.
pub fn mul<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    let (a, b) = (daz::<F>(a, env), daz::<F>(b, env));
    if let Some(n) = nan2::<F>(a, b, env) {
        return n;
    }
    let (x, y) = (open::<F>(a), open::<F>(b));
    let negative = x.negative != y.negative;
    match (x.kind, y.kind) {
        (Kind::Infinite, Kind::Zero) | (Kind::Zero, Kind::Infinite) => return invalid::<F>(env),
        _ => note_denormals::<F>(&[a, b], env),
    }
    match (x.kind, y.kind) {
        (Kind::Infinite, _) | (_, Kind::Infinite) => signed::<F>(negative, F::INF),
        (Kind::Finite { sig: xs, exp: xe }, Kind::Finite { sig: ys, exp: ye }) => {
            round::<F>(negative, u128::from(xs) * u128::from(ys), xe + ye, env)
        }
        _ => signed::<F>(negative, 0),
    }
}

/// a / b.
pub fn div<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    let (a, b) = (daz::<F>(a, env), daz::<F>(b, env));
    if let Some(n) = nan2::<F>(a, b, env) {
        return n;
    }
    let (x, y) = (open::<F>(a), open::<F>(b));
    let negative = x.negative != y.negative;
    match (x.kind, y.kind) {
        (Kind::Infinite, Kind::Infinite) | (Kind::Zero, Kind::Zero) => return invalid::<F>(env),
        (Kind::Finite { .. }, Kind::Zero) => {
            env.flags |= ZE;
            return signed::<F>(negative, F::INF);
        }
        _ => note_denormals::<F>(&[a, b], env),
    }
    match (x.kind, y.kind) {
        (Kind::Finite { sig: xs, exp: xe }, Kind::Finite { sig: ys, exp: ye }) => {
            // With the dividend's top bit at 127 and a divisor of at most 53 bits the quotient has at least
            // 74.
            let up = u128::from(xs).leading_zeros();
            let (n, d) = (u128::from(xs) << up, u128::from(ys));
            round::<F>(negative, (n / d) | u128::from(n % d != 0), xe - up as i32 - ye, env)
        }
        (Kind::Infinite, _) => signed::<F>(negative, F::INF),
        _ => signed::<F>(negative, 0),
    }
}

/// The square root of x.
pub fn sqrt<F: Format>(x: u64, env: &mut Env) -> u64 {
    let x = daz::<F>(x, env);
    if let Some(n) = nan1::<F>(x, env) {
        return n;
    }
    let n = open::<F>(x);
    match n.kind {
        Kind::Zero => x,
        _ if n.negative => invalid::<F>(env),
        Kind::Infinite => x,
        Kind::Finite { sig, exp } => {
            note_denormals::<F>(&[x], env);
            // An even exponent and a radicand of at least 126 bits.
            let up = u128::from(sig).leading_zeros() - 1;
            let up = if (exp - up as i32) & 1 != 0 { up - 1 } else { up };
            let v = u128::from(sig) << up;
            let r = v.isqrt();
            // One more bit for the remainder; a root of over 60 bits leaves it below the rounding position.
            round::<F>(false, r << 1 | u128::from(r * r != v), (exp - up as i32) / 2 - 1, env)
        }
    }
}

/// Relation of two numbers that are no NaNs, zeros being equal. DAZ applied by the caller.
fn less<F: Format>(a: u64, b: u64) -> bool {
    let order = |x: u64| {
        let m = (x & !F::SIGN) as i64;
        if x & F::SIGN != 0 { -m } else { m }
    };
    order(a) < order(b)
}

/// MIN: the second operand unless the first is less.
pub fn min<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    extreme::<F>(a, b, env, |a, b| less::<F>(a, b))
}
/// MAX: the second operand unless the first is greater.
pub fn max<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    extreme::<F>(a, b, env, |a, b| less::<F>(b, a))
}
fn extreme<F: Format>(a: u64, b: u64, env: &mut Env, first: impl Fn(u64, u64) -> bool) -> u64 {
    let (a, b) = (daz::<F>(a, env), daz::<F>(b, env));
    if is_nan::<F>(a) || is_nan::<F>(b) {
        env.flags |= IE;
        return b;
    }
    note_denormals::<F>(&[a, b], env);
    if first(a, b) { a } else { b }
}

/// How two numbers compare.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// a < b.
    Less,
    /// a = b.
    Equal,
    /// a > b.
    Greater,
    /// One is a NaN.
    Unordered,
}

/// Compares; a quiet NaN is invalid only if `signalling`.
pub fn compare<F: Format>(a: u64, b: u64, signalling: bool, env: &mut Env) -> Order {
    let (a, b) = (daz::<F>(a, env), daz::<F>(b, env));
    if is_nan::<F>(a) || is_nan::<F>(b) {
        if signalling || is_snan::<F>(a) || is_snan::<F>(b) {
            env.flags |= IE;
        }
        return Order::Unordered;
    }
    note_denormals::<F>(&[a, b], env);
    if less::<F>(a, b) {
        Order::Less
    } else if less::<F>(b, a) {
        Order::Greater
    } else {
        Order::Equal
    }
}

/// Converts between formats.
pub fn convert<F: Format, T: Format>(x: u64, env: &mut Env) -> u64 {
    let x = daz::<F>(x, env);
    if let Some(n) = nan1::<F>(x, env) {
        let fraction = n & ((1 << F::FRACTION) - 1);
        let moved = if T::FRACTION >= F::FRACTION {
            fraction << (T::FRACTION - F::FRACTION)
        } else {
            fraction >> (F::FRACTION - T::FRACTION)
        };
        return signed::<T>(x & F::SIGN != 0, T::INF | moved);
    }
    note_denormals::<F>(&[x], env);
    let n = open::<F>(x);
    match n.kind {
        Kind::Zero => signed::<T>(n.negative, 0),
        Kind::Infinite => signed::<T>(n.negative, T::INF),
        Kind::Finite { sig, exp } => round::<T>(n.negative, sig.into(), exp, env),
    }
}

/// Converts an integer.
pub fn from_int<F: Format>(x: i64, env: &mut Env) -> u64 {
    if x == 0 { 0 } else { round::<F>(x < 0, x.unsigned_abs().into(), 0, env) }
}

/// `sig * 2^exp` rounded to an integer's magnitude (`None` beyond 2^64), and whether that is inexact.
fn integral(negative: bool, sig: u64, exp: i32, rc: u8) -> Option<(u64, bool)> {
    if exp >= 0 {
        let fits = exp < 64 && sig.leading_zeros() >= exp as u32;
        return fits.then(|| (sig << exp, false));
    }
    let drop = (-exp).min(100) as u32;
    let (kept, rest) = (u128::from(sig) >> drop, u128::from(sig) & ((1 << drop) - 1));
    let up = rounds_up(rc, negative, kept & 1 != 0, rest, 1 << (drop - 1));
    Some((kept as u64 + u64::from(up), rest != 0))
}

/// Converts to a signed integer of `bits` bits: out of range, infinity and NaN give the most negative one and
/// are invalid.
pub fn to_int<F: Format>(x: u64, bits: u32, rc: u8, env: &mut Env) -> u64 {
    let indefinite = 1 << (bits - 1);
    let x = daz::<F>(x, env);
    let n = open::<F>(x);
    let (magnitude, inexact) = match n.kind {
        Kind::Zero => return 0,
        Kind::Infinite => (u64::MAX, false), // a NaN looks the same here
        Kind::Finite { sig, exp } => integral(n.negative, sig, exp, rc).unwrap_or((u64::MAX, false)),
    };
    if magnitude > indefinite - u64::from(!n.negative) {
        env.flags |= IE;
        return indefinite;
    }
    if inexact {
        env.flags |= PE;
    }
    let v = if n.negative { magnitude.wrapping_neg() } else { magnitude };
    v & (u64::MAX >> (64 - bits))
}

/// Rounds to an integral number (ROUNDPS and its kin): immediate bits 0-1 are the rounding mode unless bit 2
/// takes it from MXCSR; bit 3 suppresses the precision exception.
pub fn round_int<F: Format>(x: u64, imm: u8, env: &mut Env) -> u64 {
    let x = daz::<F>(x, env);
    if let Some(n) = nan1::<F>(x, env) {
        return n;
    }
    let n = open::<F>(x);
    let Kind::Finite { sig, exp } = n.kind else {
        return x;
    };
    if exp >= 0 {
        return x;
    }
    let rc = if imm & 4 != 0 { env.rc } else { imm & 3 };
    let (magnitude, inexact) = integral(n.negative, sig, exp, rc).unwrap_or((0, false));
    if inexact && imm & 8 == 0 {
        env.flags |= PE;
    }
    if magnitude == 0 {
        return signed::<F>(n.negative, 0);
    }
    // Exact: an integer that a number with a fraction rounds to fits the significand.
    round::<F>(n.negative, magnitude.into(), 0, env)
}

/// RCP: the reciprocal to 12 bits, with no exceptions. Denormals count as zero and tiny results become zero.
pub fn rcp(x: u32) -> u32 {
    let sign = x & 0x8000_0000;
    let x64 = u64::from(x);
    if is_nan::<Single>(x64) {
        return x | 0x40_0000;
    }
    match open::<Single>(x64).kind {
        Kind::Infinite => sign,
        Kind::Finite { sig, exp } if sig >> 23 != 0 => {
            // 2^47 / sig has 24 or 25 bits; 12 of them are kept, rounded.
            let q = (1u64 << 47) / sig;
            approximate(sign, q, -exp - 47)
        }
        _ => sign | 0x7f80_0000,
    }
}

/// RSQRT: the reciprocal of the square root to 12 bits, with no exceptions.
pub fn rsqrt(x: u32) -> u32 {
    let sign = x & 0x8000_0000;
    let x64 = u64::from(x);
    if is_nan::<Single>(x64) {
        return x | 0x40_0000;
    }
    match open::<Single>(x64).kind {
        Kind::Finite { sig, .. } if sig >> 23 == 0 => sign | 0x7f80_0000,
        Kind::Zero => sign | 0x7f80_0000,
        _ if sign != 0 => Single::DEFAULT_NAN as u32,
        Kind::Infinite => 0,
        Kind::Finite { sig, exp } => {
            let (sig, exp) = if exp & 1 != 0 { (sig << 1, exp - 1) } else { (sig, exp) };
            // 2^50 / sqrt(sig * 2^50) = 2^25 / sqrt(sig), taken 2^13 times as large.
            let root = (u128::from(sig) << 50).isqrt() as u64;
            let q = (1u64 << 63) / root;
            approximate(0, q, -exp / 2 - 38)
        }
    }
}

/// `q * 2^exp` rounded to 12 bits; zero if tiny.
fn approximate(sign: u32, q: u64, exp: i32) -> u32 {
    let top = 63 - q.leading_zeros();
    let mut m = (q >> (top - 12)).div_ceil(2);
    let mut e = exp + top as i32;
    if m >> 12 != 0 {
        m >>= 1;
        e += 1;
    }
    if e < Single::EMIN {
        return sign;
    }
    sign | ((e + 127) as u32) << 23 | ((m as u32) << 12) & 0x7f_ffff
}
