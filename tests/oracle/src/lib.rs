//! The host's CPU as the oracle for Mynah's interpreter and translator.
//!
//! Random and corner-case instructions ([`generate`]) and small random programs ([`programs`]) run on the host's CPU
//! ([`native`]) and in Mynah ([`guest`], with each of the [`engines`]) from the same state, and what comes of them is
//! compared ([`compare`]): general registers, defined flags, selectors, memory, vectors, MXCSR, the x87 unit,
//! exceptions with their error codes and CR2. All cases run at privilege level 3 in 64-bit mode, compatibility mode and
//! 16-bit protected mode, in the address space of [`layout`]. Recorded outcomes ([`rows`]) run everywhere.
// Registers are numbered: an index says which. And a condition in an arm reads better on its own.
#![allow(clippy::needless_range_loop, clippy::collapsible_match)]

pub mod assemble;
pub mod background;
pub mod compare;
pub mod engines;
pub mod forms;
pub mod generate;
pub mod guest;
pub mod habits;
pub mod layout;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod native;
pub mod programs;
pub mod report;
pub mod rng;
pub mod rows;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod session;
pub mod values;
