//! The CPU: architectural state, decoding, instruction semantics and the interpreter.
//!
//! * [`state`]: what a program can see. [`flags`]: lazy arithmetic flags.
//! * [`op`], [`block`]: decoded instructions and the cache of decoded blocks.
//! * [`exec`]: the machine as an instruction sees it; semantics generic over it are in [`int`] and [`sse`]; helpers (long, rare or stateful
//!   instructions, called by every engine) are in [`sys`], [`x87`] and [`int::string`].
//! * [`interp`]: the interpreter and the run loop. [`mem`]: memory accesses. [`world`]: the vCPUs among each other. [`tier`]: compiled code,
//!   [`check`]: its check on a running guest.

mod arena;
pub mod block;
pub mod board;
mod chains;
pub mod check;
pub mod cpu;
pub mod decode;
pub mod engine;
pub mod exec;
pub mod flags;
pub mod host_float;
pub mod int;
pub mod interp;
pub mod mem;
pub mod model;
pub mod op;
pub mod random;
pub mod saved;
pub mod sse;
pub mod state;
pub mod sys;
pub mod tier;
pub mod trace;
pub mod width;
pub mod world;
pub mod x87;

pub use board::{Board, Events};
pub use cpu::{Cpu, Exception, Exit, Stop, vector};
pub use exec::{Exec, Sem};
pub use model::CpuModel;
pub use op::{Flow, Helper, Op};
pub use saved::CpuV1;
pub use state::State;
pub use world::World;
