//! Portable elementary functions against the host's own.
use super::rig::Random;
use crate::state::F80;
use crate::x87::host;
use crate::x87::soft::{Count, Kind, Out, elementary, is_number, kind};
use crate::x87::word::*;

/// Distance in units of the last place; signs and classes must agree.
fn distance(a: F80, b: F80) -> u64 {
    if a == b {
        return 0;
    }
    if (a.exp ^ b.exp) & 0x8000 != 0 || kind(a) != Kind::Finite || kind(b) != Kind::Finite {
        return u64::MAX;
    }
    let key = |x: F80| i128::from(x.exp & 0x7fff) << 63 | i128::from(x.mant & !(1 << 63));
    (key(a) - key(b)).unsigned_abs().min(u128::from(u64::MAX)) as u64
}

/// An operand in the interval where the function is defined.
fn argument(r: &mut Random, max_exp: u16, span: u64) -> F80 {
    F80 { mant: r.next() | 1 << 63, exp: (max_exp - r.below(span) as u16) | (r.next() as u16 & 0x8000) }
}

#[test]
fn portable_elementary_functions_agree_with_the_host_to_the_last_place() {
    let mut r = Random(0xabcd_5678_9abc_def1);
    let near = |what: &str, a: F80, b: F80, p: Out, h: Out| {
        assert!(distance(p.v, h.v) <= 1, "{what} {a:x?} {b:x?}\n portable {p:x?}\n host {h:x?}");
        assert_eq!(p.sw & !C1, h.sw & !C1, "{what} {a:x?} {b:x?}\n portable {p:x?}\n host {h:x?}");
    };
    for n in 0..8_000 {
        // All rounding modes.
        let cw = 0x37f | (n & 3) << 10;
        let x = argument(&mut r, 0x3ffe, 80);
        near("f2xm1", x, x, elementary::f2xm1(cw, x), host::f2xm1(cw, x));
        let x = argument(&mut r, 0x3ffd, 80);
        let y = argument(&mut r, 0x4020, 0x60);
        near("fyl2xp1", x, y, elementary::fyl2xp1(cw, x, y), host::fyl2xp1(cw, x, y));
        let x = argument(&mut r, 0x7ffe, 0x7ffe);
        let x = F80 { exp: x.exp & 0x7fff, ..x };
        near("fyl2x", x, y, elementary::fyl2x(cw, x, y), host::fyl2x(cw, x, y));
        let x = argument(&mut r, 0x3fff, 4);
        let x = F80 { exp: x.exp & 0x7fff, ..x };
        near("fyl2x", x, y, elementary::fyl2x(cw, x, y), host::fyl2x(cw, x, y));
        let (x, y) = (argument(&mut r, 0x4020, 0x40), argument(&mut r, 0x4020, 0x40));
        near("fpatan", x, y, elementary::fpatan(cw, x, y), host::fpatan(cw, x, y));
        // Up to 2^62: the reduction with 66 bits of pi is part of the result.
        let x = argument(&mut r, 0x403d, 130);
        near("fsin", x, x, elementary::fsin(cw, x), host::fsin(cw, x));
        near("fcos", x, x, elementary::fcos(cw, x), host::fcos(cw, x));
        let (p, h) = (elementary::fptan(cw, x), host::fptan(cw, x));
        near("fptan", x, x, Out { v: p.a, sw: p.sw }, Out { v: h.a, sw: h.sw });
        let (p, h) = (elementary::fsincos(cw, x), host::fsincos(cw, x));
        assert!(distance(p.a, h.a) <= 1 && distance(p.b, h.b) <= 1 && p.count == h.count);
    }
}

#[test]
fn special_operands_of_elementary_functions_are_treated_as_the_host_treats_them() {
    let mut r = Random(0x7777_5678_9abc_def1);
    let two = |f: fn(u16, F80, F80) -> Out, h: fn(u16, F80, F80) -> Out, what: &str, cw, a: F80, b: F80| {
        let (p, h) = (f(cw, a, b), h(cw, a, b));
        let faulted = h.sw & !cw & FAULTS != 0;
        let close = faulted || distance(p.v, h.v) <= 1;
        assert!(
            close && p.sw & (IE | DE | ZE) == h.sw & (IE | DE | ZE),
            "{what} cw {cw:04x} {a:x?} {b:x?}\n portable {p:x?}\n host {h:x?}"
        );
    };
    for _ in 0..20_000 {
        let (cw, a, b) = (0x340 | r.below(64) as u16, r.f80(), r.f80());
        let special = |x: F80| {
            !is_number(x)
                || x.exp & 0x7fff == 0
                || x.exp & 0x7fff == 0x7fff
                || x.exp & 0x7fff == 0x3fff && x.mant == 1 << 63
        };
        if !special(a) && !special(b) {
            continue;
        }
        let cw = cw | OE | UE;
        two(elementary::fpatan, host::fpatan, "fpatan", cw, a, b);
        two(elementary::fyl2x, host::fyl2x, "fyl2x", cw, a, b);
        if a.exp & 0x7fff < 0x3ffd {
            two(elementary::fyl2xp1, host::fyl2xp1, "fyl2xp1", cw, a, b);
        }
        if !special(a) {
            continue;
        }
        // The manual has no result for infinities here: AMD's chips have -1 and infinity.
        if kind(a) != Kind::Inf {
            two(|c, a, _| elementary::f2xm1(c, a), |c, a, _| host::f2xm1(c, a), "f2xm1", cw, a, b);
        }
        two(|c, a, _| elementary::fsin(c, a), |c, a, _| host::fsin(c, a), "fsin", cw, a, b);
        two(|c, a, _| elementary::fcos(c, a), |c, a, _| host::fcos(c, a), "fcos", cw, a, b);
        let (p, h) = (elementary::fptan(cw, a), host::fptan(cw, a));
        if h.sw & !cw & FAULTS == 0 {
            assert!(
                p.count == h.count && distance(p.a, h.a) <= 1 && (p.count == Count::One || p.b == h.b),
                "fptan {a:x?}\n portable {p:x?}\n host {h:x?}"
            );
        }
        let (p, h) = (elementary::fsincos(cw, a), host::fsincos(cw, a));
        if h.sw & !cw & FAULTS == 0 {
            assert!(
                p.count == h.count && distance(p.a, h.a) <= 1 && distance(p.b, h.b) <= 1,
                "fsincos {a:x?}\n{p:x?}\n{h:x?}"
            );
        }
    }
}
