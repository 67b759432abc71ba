//! The CPU: architectural state, decoding, instruction semantics and the interpreter.
//!
//! Imports go one way, from the last of these layers to the first:
//!
//! * Plain data: [`state`], what a program can see, and [`flags`], lazy arithmetic flags; [`event`], what comes
//!   between instructions; [`mode`], what the state makes of bytes and addresses; [`model`], [`board`], [`world`],
//!   [`width`].
//! * [`cpu`], [`op`], [`block`], [`tier`]: the vCPU, its decoded instructions and the cache of their blocks, and what
//!   compiles them. These four know one another: a vCPU owns blocks, a block ops, an op is a function of a vCPU.
//! * [`mem`]: memory accesses. [`exec`]: the machine as an instruction sees it.
//! * Semantics generic over it are in [`int`] and [`sse`]; helpers (long, rare or stateful instructions, called by
//!   every engine) are in [`sys`], [`x87`] and [`int::string`].
//! * `handler`, `interp`: how ops follow one another; the interpreter. [`decode`]: from bytes to ops.
//! * `enter`, `install`: compiled code. `fetch`, `invalidate`: blocks are decoded, and die. `run`: the run loop.
//!   `reset`: where it begins.
//! * [`engine`], [`check`], [`lockstep`], [`trace`], [`saved`]: what others want of a vCPU. [`accel`]: the seam between
//!   it and what executes it.

pub mod accel;
mod arena;
pub mod block;
pub mod board;
mod chains;
pub mod check;
pub mod cpu;
pub mod decode;
pub mod engine;
mod enter;
pub mod event;
pub mod exec;
mod fetch;
pub mod flags;
mod handler;
pub mod host_float;
mod install;
pub mod int;
mod interp;
mod invalidate;
pub mod lockstep;
pub mod mem;
pub mod mode;
pub mod model;
pub mod op;
mod reset;
mod run;
pub mod saved;
pub mod sse;
pub mod state;
pub mod sys;
pub mod tier;
pub mod trace;
pub mod width;
pub mod world;
pub mod x87;

pub use accel::{Accelerator, EngineError};
pub use board::{Board, Events};
pub use cpu::Cpu;
pub use event::{Exception, Exit, Stop, vector};
pub use exec::{Exec, Sem};
pub use model::CpuModel;
pub use op::{Flow, Helper, Op};
pub use saved::CpuV2;
pub use state::State;
pub use world::World;
