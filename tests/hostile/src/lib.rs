//! A fuzzer of whole machines: guests of random privileged code, made to kill the process, hang it or fill the host's
//! memory.
//!
//! ```text
//!   parent --one process for some hundred cases--> worker: guest (seed, case) --> machine: board, vCPU threads --kick--> joined?
//!     ^                                               |
//!     +------------ "case N" before each -------------+     a signal, a panic, silence, or a size beyond the limit is a finding
//! ```
//!
//! A case is named by seed and number and is the same on any machine, but for time and for what vCPUs do to each other.
//! Six profiles:
//! [`Profile::Hostile`] is everything at once, [`Profile::Race`] has one vCPU read, in hot loops, what another one
//! rewrites meanwhile: control words, state images, descriptors, page tables, code. [`Profile::Saved`] restores saved
//! machines that somebody has changed,
//! [`Profile::Images`] opens disk images of all formats that somebody has changed, without a machine,
//! [`Profile::Devices`] has drivers of all devices that know their registers and mean harm, [`Profile::Network`] those of
//! network cards, with what is in their rings and frames.
//!
//! A fault does not end a guest: its handlers go on at the next piece of code. What does (a triple fault, a power-off,
//! a broken gate) ends the case.
mod cards;
pub mod devices;
pub mod emit;
pub mod guest;
pub mod images;
pub mod machine;
pub mod parent;
pub mod saved;

/// What guests are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// All that a guest can do.
    Hostile,
    /// What is read once by one vCPU and changed by another.
    Race,
    /// Files of saved machines that somebody has changed.
    Saved,
    /// Disk images that somebody has changed.
    Images,
    /// Drivers that know a device's registers.
    Devices,
    /// The same of network cards alone.
    Network,
}

/// What executes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// The interpreter.
    Interp,
    /// The translator, which compiles on the spot what has run a few times.
    Jit,
}
