//! The machine that executes an instruction, as the instruction sees it.
//!
//! Semantics are written once, as implementations of [`Sem`] generic over [`Exec`]. With `Int = u64` (the
//! implementation for [`crate::Cpu`]) they run: that is the interpreter, monomorphised per width and operand kind.
//! With `Int` = a value of the translator's intermediate representation they emit code. An `Int` of width `W` is
//! zero-extended: bits above the width are zero.
use crate::event::Stop;
use crate::op::{Helper, Op};
use crate::width::Width;

/// Conditions of Jcc, SETcc, CMOVcc: the low four bits of the opcode.
pub mod cc {
    #![allow(missing_docs)]
    pub const O: u8 = 0;
    pub const NO: u8 = 1;
    pub const B: u8 = 2;
    pub const AE: u8 = 3;
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const BE: u8 = 6;
    pub const A: u8 = 7;
    pub const S: u8 = 8;
    pub const NS: u8 = 9;
    pub const P: u8 = 10;
    pub const NP: u8 = 11;
    pub const L: u8 = 12;
    pub const GE: u8 = 13;
    pub const LE: u8 = 14;
    pub const G: u8 = 15;
}

/// A machine that executes (or translates) instructions.
pub trait Exec: Sized {
    /// An integer of up to 64 bits.
    type Int: Copy;
    /// A truth value.
    type Bool: Copy;
    /// What a handler yields: how to go on.
    type Next;
    /// A finished handler for one operation, width and operand kind.
    type Handler: Copy;

    /// The handler for semantics `S`.
    fn handler<S: Sem<Self>>() -> Self::Handler;
    /// The handler that calls a helper.
    fn helper(h: Helper) -> Self::Handler;

    // ---- constants, registers, memory
    // ----------------------------------------------------------------------------------

    /// A constant.
    fn imm<W: Width>(&mut self, v: u64) -> Self::Int;
    /// Reads a general register (8-bit registers as coded in [`Op::dst`]).
    fn reg<W: Width>(&mut self, r: u8) -> Self::Int;
    /// Writes a general register: 32-bit writes clear the upper half, 8- and 16-bit writes keep the rest.
    fn set_reg<W: Width>(&mut self, r: u8, v: Self::Int);
    /// The effective address of the memory operand (64 bits wide).
    fn ea(&mut self, op: &Op) -> Self::Int;
    /// Loads the memory operand.
    fn load<W: Width>(&mut self, op: &Op) -> Result<Self::Int, Stop>;
    /// Stores the memory operand.
    fn store<W: Width>(&mut self, op: &Op, v: Self::Int) -> Result<(), Stop>;
    /// Reads, modifies and writes the memory operand (atomically with a LOCK prefix or `lock`); returns old and new.
    /// `f` must be pure.
    fn modify<W: Width>(
        &mut self,
        op: &Op,
        lock: bool,
        f: impl FnMut(&mut Self, Self::Int) -> Self::Int,
    ) -> Result<(Self::Int, Self::Int), Stop>;
    /// Loads from `offset` bytes behind the memory operand (the sum wraps in the address size).
    fn load_at<W: Width>(&mut self, op: &Op, offset: Self::Int) -> Result<Self::Int, Stop>;
    /// As `modify`, `offset` bytes behind the memory operand.
    fn modify_at<W: Width>(
        &mut self,
        op: &Op,
        offset: Self::Int,
        f: impl FnMut(&mut Self, Self::Int) -> Self::Int,
    ) -> Result<(Self::Int, Self::Int), Stop>;
    /// Pushes (RSP changes only if the store did not fault).
    fn push<W: Width>(&mut self, op: &Op, v: Self::Int) -> Result<(), Stop>;
    /// Loads the top of the stack without popping it.
    fn peek<W: Width>(&mut self, op: &Op) -> Result<Self::Int, Stop>;
    /// Adds to the stack pointer in its own width.
    fn drop_stack(&mut self, op: &Op, bytes: u64);
    /// Moves an index register of a string instruction by `bytes`, in the address size, to where DF says.
    fn step_index(&mut self, op: &Op, r: usize, bytes: u64);

    // ---- arithmetic on values of width W
    // -------------------------------------------------------------------------------

    /// a + b.
    fn add<W: Width>(&mut self, a: Self::Int, b: Self::Int) -> Self::Int;
    /// a - b.
    fn sub<W: Width>(&mut self, a: Self::Int, b: Self::Int) -> Self::Int;
    /// a & b.
    fn and<W: Width>(&mut self, a: Self::Int, b: Self::Int) -> Self::Int;
    /// a | b.
    fn or<W: Width>(&mut self, a: Self::Int, b: Self::Int) -> Self::Int;
    /// a ^ b.
    fn xor<W: Width>(&mut self, a: Self::Int, b: Self::Int) -> Self::Int;
    /// !a.
    fn not<W: Width>(&mut self, a: Self::Int) -> Self::Int;
    /// a << n for n < BITS (n has width W too); counts from BITS up give 0.
    fn shl<W: Width>(&mut self, a: Self::Int, n: Self::Int) -> Self::Int;
    /// a >> n, zeros shifted in; counts from BITS up give 0.
    fn shr<W: Width>(&mut self, a: Self::Int, n: Self::Int) -> Self::Int;
    /// a >> n, sign shifted in; counts from BITS up give all signs.
    fn sar<W: Width>(&mut self, a: Self::Int, n: Self::Int) -> Self::Int;
    /// Rotates left by n modulo BITS.
    fn rotl<W: Width>(&mut self, a: Self::Int, n: Self::Int) -> Self::Int;
    /// Low half of the product.
    fn mul<W: Width>(&mut self, a: Self::Int, b: Self::Int) -> Self::Int;
    /// High half of the unsigned product.
    fn umulh<W: Width>(&mut self, a: Self::Int, b: Self::Int) -> Self::Int;
    /// High half of the signed product.
    fn smulh<W: Width>(&mut self, a: Self::Int, b: Self::Int) -> Self::Int;
    /// Divides the 2 x W bits `hi:lo` by `d`: quotient and remainder. #DE if the quotient does not fit, or `d` is 0.
    fn divide<W: Width>(
        &mut self,
        hi: Self::Int,
        lo: Self::Int,
        d: Self::Int,
        signed: bool,
    ) -> Result<(Self::Int, Self::Int), Stop>;
    /// The low bits of `a` put, in order, where `mask` has ones (PDEP).
    fn deposit<W: Width>(&mut self, a: Self::Int, mask: Self::Int) -> Self::Int;
    /// The bits of `a` where `mask` has ones, put together (PEXT).
    fn gather<W: Width>(&mut self, a: Self::Int, mask: Self::Int) -> Self::Int;
    /// Sign-extends from F to T (T the wider).
    fn sext<F: Width, T: Width>(&mut self, a: Self::Int) -> Self::Int;
    /// Zero-extends from F to T.
    fn zext<F: Width, T: Width>(&mut self, a: Self::Int) -> Self::Int;
    /// The low bits.
    fn trunc<F: Width, T: Width>(&mut self, a: Self::Int) -> Self::Int;
    /// Bytes reversed.
    fn bswap<W: Width>(&mut self, a: Self::Int) -> Self::Int;
    /// Count of ones.
    fn popcnt<W: Width>(&mut self, a: Self::Int) -> Self::Int;
    /// Leading zeros; BITS for zero.
    fn clz<W: Width>(&mut self, a: Self::Int) -> Self::Int;
    /// Trailing zeros; BITS for zero.
    fn ctz<W: Width>(&mut self, a: Self::Int) -> Self::Int;

    // ---- truth values
    // --------------------------------------------------------------------------------------------------

    /// a == b.
    fn eq<W: Width>(&mut self, a: Self::Int, b: Self::Int) -> Self::Bool;
    /// a < b, unsigned.
    fn ult<W: Width>(&mut self, a: Self::Int, b: Self::Int) -> Self::Bool;
    /// Bit `n` (a constant) of `a`.
    fn bit<W: Width>(&mut self, a: Self::Int, n: u32) -> Self::Bool;
    /// x and y.
    fn both(&mut self, x: Self::Bool, y: Self::Bool) -> Self::Bool;
    /// x xor y.
    fn differ(&mut self, x: Self::Bool, y: Self::Bool) -> Self::Bool;
    /// 1 or 0.
    fn int_of<W: Width>(&mut self, x: Self::Bool) -> Self::Int;
    /// `if x { a } else { b }`.
    fn select<W: Width>(&mut self, x: Self::Bool, a: Self::Int, b: Self::Int) -> Self::Int;

    // ---- flags
    // ---------------------------------------------------------------------------------------------------------

    /// Flags of a + b (+ carry) = r.
    fn flags_add<W: Width>(&mut self, a: Self::Int, b: Self::Int, r: Self::Int);
    /// Flags of a - b (- borrow) = r.
    fn flags_sub<W: Width>(&mut self, a: Self::Int, b: Self::Int, r: Self::Int);
    /// Flags of a logical operation: CF = OF = AF = 0.
    fn flags_logic<W: Width>(&mut self, r: Self::Int);
    /// Flags of a + 1 = r (CF stays).
    fn flags_inc<W: Width>(&mut self, r: Self::Int);
    /// Flags of a - 1 = r (CF stays).
    fn flags_dec<W: Width>(&mut self, r: Self::Int);
    /// ZF, SF, PF of `r`, CF and OF as given, AF = 0.
    fn flags_result<W: Width>(&mut self, r: Self::Int, cf: Self::Bool, of: Self::Bool);
    /// As `flags_result` if `n != 0`, else none changes (shifts by CL).
    fn flags_shift<W: Width>(&mut self, n: Self::Int, r: Self::Int, cf: Self::Bool, of: Self::Bool);
    /// CF and OF as given if `n != 0`, the others stay (rotates).
    fn flags_rotate<W: Width>(&mut self, n: Self::Int, cf: Self::Bool, of: Self::Bool);
    /// ZF of `v`; the other flags are cleared.
    fn flags_zero_only<W: Width>(&mut self, v: Self::Int);
    /// CF as given, the others stay.
    fn set_cf(&mut self, cf: Self::Bool);
    /// OF as given, the others stay.
    fn set_of(&mut self, of: Self::Bool);
    /// CF.
    fn cf(&mut self) -> Self::Bool;
    /// Whether the condition holds.
    fn cond(&mut self, cc: u8) -> Self::Bool;

    // ---- control
    // -------------------------------------------------------------------------------------------------------

    /// Goes on with the next instruction of the block.
    fn next(&mut self, op: &Op) -> Self::Next;
    /// Ends the block at the following instruction.
    fn fall(&mut self, op: &Op) -> Self::Next;
    /// Jumps to `op.imm` (relative to the block).
    fn jump(&mut self, op: &Op) -> Self::Next;
    /// Jumps to `op.imm` if `x`, else falls through.
    fn branch(&mut self, op: &Op, x: Self::Bool) -> Self::Next;
    /// Jumps to an address of the operand size. #GP(0) if it is not canonical or is beyond the limit of CS.
    fn jump_to(&mut self, op: &Op, target: Self::Int) -> Result<Self::Next, Stop>;
    /// #GP(0) if `target` may not be jumped to.
    fn check_target(&mut self, target: Self::Int) -> Result<(), Stop>;
    /// #GP(0) if `op`'s relative target is beyond the limit of CS.
    fn check_relative(&mut self, op: &Op) -> Result<(), Stop>;
    /// The address after `op` (what CALL pushes).
    fn return_address(&mut self, op: &Op) -> Self::Int;
}

/// The semantics of one operation at one width and operand kind.
pub trait Sem<E: Exec> {
    /// Executes `op`.
    fn exec(e: &mut E, op: &Op) -> Result<E::Next, Stop>;
}
