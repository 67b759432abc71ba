//! Elementary functions on the host's own x87 (x86-64 hosts): the results of a real chip, some five times
//! faster than the portable ones.
//!
//! The function runs with the guest's control word, masks included: an unmasked exception raises no trap as
//! long as no waiting instruction follows, and FNSAVE, which takes everything out and initialises the unit,
//! does not wait. The ABI has the register stack empty and the control word 37Fh at every call, which is what
//! FNSAVE leaves.
//!
//! Add, subtract, multiply and divide are not here. With loading operands, FNSTSW and FNCLEX an addition
//! takes 13-16 ns on the host's unit (Zen 5), with FLDCW for any control word but the host's own 120-155 ns;
//! portable code takes 10-13 ns, and both have the same results.
use super::soft::{Count, Out, Wide2};
use super::word::*;
use crate::state::F80;
use std::arch::asm;

/// The image that FNSAVE stores in 64-bit mode (SDM volume 1, figure 8-9 and 8.1.11).
#[repr(C)]
struct Image {
    cw: u32,
    sw: u32,
    tw: u32,
    fip: u32,
    fcs: u32,
    fdp: u32,
    fds: u32,
    st: [[u8; 10]; 8],
}

impl Image {
    fn st(&self, i: usize) -> F80 {
        let b = &self.st[i & 7];
        let mut m = [0; 8];
        m.copy_from_slice(&b[..8]);
        F80 { mant: u64::from_le_bytes(m), exp: u16::from_le_bytes([b[8], b[9]]) }
    }
}

/// An elementary function: ST(0) = `a`, ST(1) = `b`; everything after it as FNSAVE has it.
macro_rules! elementary {
    ($name:ident, $line:literal) => {
        fn $name(cw: u16, a: &F80, b: &F80) -> Image {
            let mut image = std::mem::MaybeUninit::<Image>::uninit();
            // SAFETY: reads the operands, writes the 108 bytes of `image`; FNSAVE leaves the unit as FNINIT
            // does, which is the state that the ABI demands, and does not wait for a pending exception. Every
            // x87 register is declared clobbered.
            unsafe {
                asm!(
                    "fninit",
                    "fldcw word ptr [{cw}]",
                    "fld tbyte ptr [{b}]",
                    "fld tbyte ptr [{a}]",
                    $line,
                    "fnsave [{image}]",
                    cw = in(reg) &raw const cw,
                    a = in(reg) std::ptr::from_ref(a),
                    b = in(reg) std::ptr::from_ref(b),
                    image = in(reg) image.as_mut_ptr(),
                    out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                    out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                    options(nostack),
                );
                image.assume_init()
            }
        }
    };
}
elementary!(raw_f2xm1, "f2xm1");
elementary!(raw_fyl2x, "fyl2x");
elementary!(raw_fyl2xp1, "fyl2xp1");
elementary!(raw_fpatan, "fpatan");
elementary!(raw_fsin, "fsin");
elementary!(raw_fcos, "fcos");
elementary!(raw_fsincos, "fsincos");
elementary!(raw_fptan, "fptan");

fn one(i: &Image) -> Out {
    Out { v: i.st(0), sw: i.sw as u16 & (EXCEPTIONS | C1 | C2) }
}

fn two(i: &Image) -> Wide2 {
    let sw = i.sw as u16 & (EXCEPTIONS | C1 | C2);
    // Two operands were pushed on an empty stack (TOP = 6); one more is TOP = 5.
    if i.sw as u16 & TOP == 5 << 11 {
        Wide2 { a: i.st(1), b: i.st(0), count: Count::Two, sw }
    } else {
        Wide2 { a: i.st(0), b: i.st(0), count: Count::One, sw }
    }
}

/// F2XM1.
pub fn f2xm1(cw: u16, a: F80) -> Out {
    one(&raw_f2xm1(cw, &a, &a))
}
/// FYL2X: b x log2(a).
pub fn fyl2x(cw: u16, a: F80, b: F80) -> Out {
    one(&raw_fyl2x(cw, &a, &b))
}
/// FYL2XP1: b x log2(a + 1).
pub fn fyl2xp1(cw: u16, a: F80, b: F80) -> Out {
    one(&raw_fyl2xp1(cw, &a, &b))
}
/// FPATAN: the angle of the point (a, b).
pub fn fpatan(cw: u16, a: F80, b: F80) -> Out {
    one(&raw_fpatan(cw, &a, &b))
}
/// FSIN.
pub fn fsin(cw: u16, a: F80) -> Out {
    one(&raw_fsin(cw, &a, &a))
}
/// FCOS.
pub fn fcos(cw: u16, a: F80) -> Out {
    one(&raw_fcos(cw, &a, &a))
}
/// FSINCOS.
pub fn fsincos(cw: u16, a: F80) -> Wide2 {
    two(&raw_fsincos(cw, &a, &a))
}
/// FPTAN.
pub fn fptan(cw: u16, a: F80) -> Wide2 {
    two(&raw_fptan(cw, &a, &a))
}
