//! Whose elementary functions execute: the host's own on x86-64, portable ones elsewhere.

#[cfg(target_arch = "x86_64")]
pub use super::host::{f2xm1, fcos, fpatan, fptan, fsin, fsincos, fyl2x, fyl2xp1};
#[cfg(not(target_arch = "x86_64"))]
pub use super::soft::elementary::{f2xm1, fcos, fpatan, fptan, fsin, fsincos, fyl2x, fyl2xp1};
