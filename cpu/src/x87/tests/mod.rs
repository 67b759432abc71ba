//! Tests of the x87 unit: against the chip itself where there is one ([`native`]), portable elementary
//! functions against its own ([`elementary`]), and what a program on its own can see of exceptions, pointers
//! and environments ([`behaviour`]).
mod behaviour;
#[cfg(target_arch = "x86_64")]
mod elementary;
#[cfg(all(target_arch = "x86_64", unix))]
mod native;
mod rig;
