//! x86-64 hosts: all that knows their instructions' bytes.
//!
//! * [`asm`], [`registers`]: the assembler, and where the guest's registers are.
//! * [`baseline`]: blocks as host code of the same instructions; `stubs`: what all of them share.
//! * [`instructions`]: what is known of each instruction.
mod asm;
pub(crate) mod baseline;
pub(crate) mod instructions;
mod registers;
mod stubs;
