//! The translator: hot guest code turned into host code by Cranelift.
//!
//! An instruction's meaning is written once, in `mynah-cpu`, generic over the machine that executes it. Here
//! that machine is a [`Translator`], whose integers are Cranelift values: the very functions that the
//! interpreter runs emit code. What they do not say in those terms (helpers: long, rare or stateful
//! instructions) is called, by the interpreter's own handler, with the state in memory. So all of the
//! instruction set can be in a region from the first day.
//!
//! By stage:
//!
//! * `instructions`: what is known of each. `plan`: what is compiled together.
//! * [`clif`]: how it is emitted as Cranelift's intermediate representation, and compiled.
//! * `x64`: what is made for x86-64 hosts, byte by byte. The *baseline* is there: the tier between, the guest's own
//!   instructions on other registers. Another host's would be in a folder of its own; so far others have Cranelift's
//!   code alone, in which nothing of `x64` is.
//! * `abi`: what both emitters know of the vCPU's memory. `runtime`: what code calls. `code`: executable memory.
//! * `cache`: the regions of a machine, for all its vCPUs, and those on disk behind it. [`private`]: files that nobody
//!   else can have put there.
//! * [`tier`]: the translator as tiers above the interpreter of a vCPU, which compile in the background or at once.
//! * `inside`: what is told to those who look inside. [`perf`]: names of regions for `perf`. `listing`: their code as
//!   text.
//!
//! Hosts: x86-64 and arm64 ([`tier::Engine::new`] refuses others). On arm64, whose memory order is weaker than x86's,
//! code asks for that ([`clif`]'s accesses).
mod abi;
mod cache;
pub mod clif;
mod code;
mod inside;
mod instructions;
mod listing;
pub mod perf;
mod plan;
mod runtime;
pub mod tier;
mod x64;

/// The host that the baseline and primitives are for. So far there is one: on others they say that they are not there.
use x64 as host;

pub use abi::Left;
pub use cache::private;
pub use clif::Translator;
