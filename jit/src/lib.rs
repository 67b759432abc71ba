//! The translator: hot guest code turned into host code by Cranelift.
//!
//! An instruction's meaning is written once, in `mynah-cpu`, generic over the machine that executes it. Here
//! that machine is a [`Translator`], whose integers are Cranelift values: the very functions that the
//! interpreter runs emit code. What they do not say in those terms (helpers: long, rare or stateful
//! instructions) is called, by the interpreter's own handler, with the state in memory. So all of the
//! instruction set can be in a region from the first day.
//!
//! * `region`: what is compiled together. [`translate`], `exec`, `memory`, `vector`: how it is emitted.
//!   `compile`: Cranelift.
//! * `baseline`: the tier between: on x86-64 hosts, the guest's own instructions on other registers.
//! * [`perf`]: names of regions for `perf`. [`private`]: files that nobody else can have put there. `listing`: their code as text. `code`, `twice`: executable memory.
//!   `runtime`: what code calls.
//! * `store`: the regions of a machine, for all its vCPUs. `cache` and `pack`: those on disk behind it;
//!   `realm`: what they depend on.
//! * `pool`: the threads that compile. [`tier`]: the translator as tiers above the interpreter of a vCPU,
//!   which compile in the background or at once.
//!
//! Not here yet: hosts whose memory order is weaker than x86's ([`tier::Engine::new`] refuses them).
mod baseline;
mod cache;
mod code;
mod compile;
mod exec;
mod float;
mod listing;
mod memory;
mod pack;
pub mod perf;
mod pool;
mod primitive;
#[cfg(unix)]
pub mod private;
mod realm;
mod region;
mod runtime;
mod store;
pub mod tier;
pub mod translate;
mod twice;
mod vector;
mod x87;

pub use runtime::Left;
pub use translate::Translator;
