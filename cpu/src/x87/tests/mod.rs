//! Tests of the x87 unit: against the chip itself where there is one ([`native`]), portable arithmetic against it ([`arithmetic`]), and what
//! a program on its own can see of exceptions, pointers and environments ([`behaviour`]).
#[cfg(target_arch = "x86_64")]
mod arithmetic;
mod behaviour;
#[cfg(all(target_arch = "x86_64", unix))]
mod native;
mod rig;
