//! The translator: hot guest code turned into host code by Cranelift.
//!
//! An instruction's meaning is written once, in `mynah-cpu`, generic over the machine that executes it. Here that machine is a
//! [`Translator`], whose integers are Cranelift values: the very functions that the interpreter runs emit code. What they do not say in those terms
//! (helpers: long, rare or stateful instructions) is called, by the interpreter's own handler, with the state in memory. So all of the
//! instruction set can be in a region from the first day.
//!
//! * `region`: what is compiled together. [`translate`], `exec`, `memory`, `vector`: how it is emitted. `compile`: Cranelift.
//! * `baseline`: the tier between: on x86-64 hosts, the guest's own instructions on other registers.
//! * [`perf`]: names of regions for `perf`. `listing`: their code as text. `code`, `twice`: executable memory. `runtime`: what code calls.
//! * [`tier`]: the translator as a tier above the interpreter of one vCPU, which compiles in the background or at once.
//!
//! Not here yet: code kept on disk, and hosts whose memory order is weaker than x86's ([`tier::Translating::new`] refuses them).
mod baseline;
mod code;
mod compile;
mod exec;
mod float;
mod listing;
mod memory;
pub mod perf;
mod primitive;
mod region;
mod runtime;
pub mod tier;
pub mod translate;
mod twice;
mod vector;
mod x87;

pub use runtime::Left;
pub use translate::Translator;
