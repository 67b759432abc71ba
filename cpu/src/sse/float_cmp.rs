//! Floating-point comparison: CMPPS and its kin by the eight legacy predicates, VCMPPS and its kin by the 32 of VEX
//! forms, COMISS, UCOMISS and their double forms.
use super::exec::{FloatOp, VecExec, VecId};
use super::forms::{FloatFlags, Mem, Xmm, float_packed, float32, float64, source_in_memory};
use super::soft::{self, Double, Env, Order, Single};
use crate::state::fl;
use crate::width::{W32, W64, Width};
use iced_x86::{Instruction, Mnemonic, Register};

/// Whether predicate `imm & 7` (EQ, LT, LE, UNORD and their negations) holds: all ones or zero.
fn predicate<F: soft::Format>(a: u64, b: u64, imm: u8, env: &mut Env) -> u64 {
    // LT, LE and their negations signal quiet NaNs.
    let order = soft::compare::<F>(a, b, matches!(imm & 3, 1 | 2), env);
    let holds = match imm & 3 {
        0 => order == Order::Equal,
        1 => order == Order::Less,
        2 => matches!(order, Order::Less | Order::Equal),
        _ => order == Order::Unordered,
    };
    if holds != (imm & 4 != 0) { u64::MAX } else { 0 }
}

macro_rules! compare_op {
    ($($name:ident, $text:literal, $shape:ident, $format:ident;)*) => {$(
        #[doc = concat!("The operation of `", stringify!($name), "`.")]
        pub struct $name;
        impl FloatOp for $name {
            const ID: VecId = VecId::$name;
            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn host<const FAST: bool>(a: u128, b: u128, imm: u8, c: *mut super::mxcsr::Csr) -> u128 {
                super::host::by_immediate!(
                    FAST, c, concat!($text, " {a}, {b}"), a, b, imm & 7; 0 1 2 3 4 5 6, 7
                )
            }
            fn soft(a: u128, b: u128, imm: u8, env: &mut Env) -> u128 {
                soft::$shape::<$format>(a, b, |x, y| predicate::<$format>(x, y, imm, env))
            }
        }
    )*};
}
compare_op! {
    Cmpps, "cmpps", packed, Single;
    Cmpss, "cmpss", scalar, Single;
    Cmppd, "cmppd", packed, Double;
    Cmpsd, "cmpsd", scalar, Double;
}

/// Whether predicate `imm & 31` of the VEX forms holds: all ones or zero (SDM volume 2, CMPPD, table 3-1).
fn wide_predicate<F: soft::Format>(a: u64, b: u64, imm: u8, env: &mut Env) -> u64 {
    // Bit 4 turns signalling predicates into quiet ones and the other way round.
    let signalling = matches!(imm & 7, 1 | 2 | 5 | 6) != (imm & 16 != 0);
    let order = soft::compare::<F>(a, b, signalling, env);
    let holds = match imm & 15 {
        0 => order == Order::Equal,
        1 => order == Order::Less,
        2 => matches!(order, Order::Less | Order::Equal),
        3 => order == Order::Unordered,
        4 => order != Order::Equal,
        5 => order != Order::Less,
        6 => matches!(order, Order::Greater | Order::Unordered),
        7 => order != Order::Unordered,
        8 => matches!(order, Order::Equal | Order::Unordered),
        9 => matches!(order, Order::Less | Order::Unordered),
        10 => order != Order::Greater,
        11 => false,
        12 => matches!(order, Order::Less | Order::Greater),
        13 => matches!(order, Order::Greater | Order::Equal),
        14 => order == Order::Greater,
        _ => true,
    };
    if holds { u64::MAX } else { 0 }
}

macro_rules! wide_compare_op {
    ($($name:ident, $text:literal, $shape:ident, $format:ident;)*) => {$(
        #[doc = concat!("The operation of `", stringify!($name), "`.")]
        pub struct $name;
        impl FloatOp for $name {
            const ID: VecId = VecId::$name;
            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            fn on_host() -> bool {
                is_x86_feature_detected!("avx")
            }
            #[cfg(target_arch = "x86_64")]
            unsafe fn host<const FAST: bool>(a: u128, b: u128, imm: u8, c: *mut super::mxcsr::Csr) -> u128 {
                super::host::by_immediate!(
                    FAST, c, concat!($text, " {a}, {a}, {b}"), a, b, imm & 31;
                    0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30, 31
                )
            }
            fn soft(a: u128, b: u128, imm: u8, env: &mut Env) -> u128 {
                soft::$shape::<$format>(a, b, |x, y| wide_predicate::<$format>(x, y, imm, env))
            }
        }
    )*};
}
wide_compare_op! {
    Vcmpps, "vcmpps", packed, Single;
    Vcmpss, "vcmpss", scalar, Single;
    Vcmppd, "vcmppd", packed, Double;
    Vcmpsd, "vcmpsd", scalar, Double;
}

macro_rules! flags_op {
    ($($name:ident, $text:literal, $format:ident, $signalling:literal;)*) => {$(
        #[doc = concat!("The operation of `", stringify!($name), "`: ZF, PF and CF; the other flags are cleared.")]
        pub struct $name;
        impl FloatOp for $name {
            const ID: VecId = VecId::$name;
            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn host<const FAST: bool>(a: u128, b: u128, _: u8, c: *mut super::mxcsr::Csr) -> u128 {
                let (a, b) = (super::host::vec(a), super::host::vec(b));
                let (zf, pf, cf): (u8, u8, u8);
                super::host::frame!(
                    FAST, c, concat!($text, " {a}, {b}\nsetz {z}\nsetp {p}\nsetc {k}"),
                    a = in(xmm_reg) a, b = in(xmm_reg) b, z = out(reg_byte) zf, p = out(reg_byte) pf, k = out(reg_byte) cf
                );
                u128::from(u64::from(zf) * fl::ZF | u64::from(pf) * fl::PF | u64::from(cf) * fl::CF)
            }
            fn soft(a: u128, b: u128, _: u8, env: &mut Env) -> u128 {
                use soft::Format;
                let (x, y) = ($format::lane(a, 0), $format::lane(b, 0));
                u128::from(match soft::compare::<$format>(x, y, $signalling, env) {
                    Order::Less => fl::CF,
                    Order::Equal => fl::ZF,
                    Order::Greater => 0,
                    Order::Unordered => fl::ZF | fl::PF | fl::CF,
                })
            }
        }
    )*};
}
flags_op! {
    Comiss, "comiss", Single, true;
    Comisd, "comisd", Double, true;
    Ucomiss, "ucomiss", Single, false;
    Ucomisd, "ucomisd", Double, false;
}

/// Handlers of this module's instructions.
pub(super) fn select<E: VecExec>(i: &Instruction) -> Option<E::Handler> {
    fn flags<E: VecExec, O: FloatOp, W: Width>(i: &Instruction) -> E::Handler {
        if source_in_memory(i) {
            E::handler::<FloatFlags<O, Mem<W>>>()
        } else {
            E::handler::<FloatFlags<O, Xmm>>()
        }
    }
    Some(match i.mnemonic() {
        Mnemonic::Cmpps => float_packed::<E, Cmpps>(i),
        Mnemonic::Cmppd => float_packed::<E, Cmppd>(i),
        Mnemonic::Cmpss => float32::<E, Cmpss>(i),
        // The string instruction CMPSD has the same mnemonic.
        Mnemonic::Cmpsd if i.op0_register() != Register::None => float64::<E, Cmpsd>(i),
        Mnemonic::Comiss => flags::<E, Comiss, W32>(i),
        Mnemonic::Comisd => flags::<E, Comisd, W64>(i),
        Mnemonic::Ucomiss => flags::<E, Ucomiss, W32>(i),
        Mnemonic::Ucomisd => flags::<E, Ucomisd, W64>(i),
        _ => return None,
    })
}
