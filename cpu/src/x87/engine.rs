//! Whose elementary functions execute: the host's own on x86-64, portable ones elsewhere, or where they are asked for.
#[cfg(target_arch = "x86_64")]
use super::host;
use super::soft::{Out, Wide2, elementary};
use crate::cpu::Cpu;
use crate::state::F80;

/// The elementary functions by their instructions: control word, ST(0), and ST(1) where there are two operands.
pub struct Elementary {
    /// F2XM1.
    pub f2xm1: fn(u16, F80) -> Out,
    /// FYL2X.
    pub fyl2x: fn(u16, F80, F80) -> Out,
    /// FYL2XP1.
    pub fyl2xp1: fn(u16, F80, F80) -> Out,
    /// FPATAN.
    pub fpatan: fn(u16, F80, F80) -> Out,
    /// FSIN.
    pub fsin: fn(u16, F80) -> Out,
    /// FCOS.
    pub fcos: fn(u16, F80) -> Out,
    /// FSINCOS.
    pub fsincos: fn(u16, F80) -> Wide2,
    /// FPTAN.
    pub fptan: fn(u16, F80) -> Wide2,
}

macro_rules! elementary {
    ($from:ident) => {
        Elementary {
            f2xm1: $from::f2xm1,
            fyl2x: $from::fyl2x,
            fyl2xp1: $from::fyl2xp1,
            fpatan: $from::fpatan,
            fsin: $from::fsin,
            fcos: $from::fcos,
            fsincos: $from::fsincos,
            fptan: $from::fptan,
        }
    };
}
static PORTABLE: Elementary = elementary!(elementary);
#[cfg(target_arch = "x86_64")]
static HOST: Elementary = elementary!(host);

/// Those that `cpu` executes.
pub fn of(cpu: &Cpu) -> &'static Elementary {
    #[cfg(target_arch = "x86_64")]
    if !cpu.portable {
        return &HOST;
    }
    let _ = cpu;
    &PORTABLE
}
