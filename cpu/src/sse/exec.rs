//! Vector operations as types, and what they ask of an engine.
#[cfg(target_arch = "x86_64")]
use super::mxcsr::Csr;
use super::soft::Env;
use crate::event::Stop;
use crate::exec::Exec;
use crate::op::Op;
use crate::width::Width;

/// What names an operation: the mnemonic of its legacy instruction, or of its VEX instruction if it has no other.
pub type VecId = iced_x86::Mnemonic;

/// An operation from two vectors (and an immediate) to one: pure, with no flags and no exceptions.
pub trait VecOp: 'static {
    /// Its name, for translators.
    const ID: VecId;
    /// Whether `eval` is the host's own instruction on some hosts.
    const BY_HOST: bool = false;
    /// The result for the destination's old value `a`, source `b`, immediate `imm`, in portable code.
    /// Operations of one source ignore `a`.
    fn portable(a: u128, b: u128, imm: u8) -> u128;
    /// The same by whatever is quickest on this host.
    #[inline(always)]
    fn eval(a: u128, b: u128, imm: u8) -> u128 {
        Self::portable(a, b, imm)
    }
    /// `portable` on MMX registers.
    #[inline(always)]
    fn portable64(a: u64, b: u64, imm: u8) -> u64 {
        Self::portable(u128::from(a), u128::from(b), imm) as u64
    }
    /// `eval` on MMX registers.
    #[inline(always)]
    fn eval64(a: u64, b: u64, imm: u8) -> u64 {
        Self::eval(u128::from(a), u128::from(b), imm) as u64
    }
}

/// An operation on three vectors (the third is XMM0 in the legacy forms, the fourth operand in VEX forms).
pub trait VecOp3: 'static {
    /// Its name, for translators.
    const ID: VecId;
    /// The result for the destination's old value `a`, source `b` and selector `c`, in portable code.
    fn portable(a: u128, b: u128, c: u128) -> u128;
    /// The same by whatever is quickest on this host.
    #[inline(always)]
    fn eval(a: u128, b: u128, c: u128) -> u128 {
        Self::portable(a, b, c)
    }
}

/// An operation from a vector to an integer (sign masks).
pub trait VecToInt: 'static {
    /// Its name, for translators.
    const ID: VecId;
    /// The result, zero-extended.
    fn eval(b: u128) -> u64;
}

/// An operation from two 256-bit vectors to one in which a lane may depend on both lanes of an operand.
pub trait PairOp: 'static {
    /// Its name, for translators.
    const ID: VecId;
    /// The result for the second operand `a` and the third operand `b`.
    fn eval(a: [u128; 2], b: [u128; 2]) -> [u128; 2];
}

/// An operation from two vectors to the arithmetic flags. The flags of 256-bit vectors are those that both lanes
/// give.
pub trait VecFlags: 'static {
    /// Its name, for translators.
    const ID: VecId;
    /// All six arithmetic flags at their places in RFLAGS.
    fn eval(a: u128, b: u128) -> u64;
}

/// A floating-point operation under MXCSR. Operands and result are vectors, or integers or RFLAGS in the low
/// 64 bits, as the form has it.
pub trait FloatOp: 'static {
    /// Its name, for translators.
    const ID: VecId;
    /// It is made of steps, each of which raises its exceptions before the next is taken.
    const STAGED: bool = false;
    /// Whether this host has the instruction.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn on_host() -> bool {
        true
    }
    /// Runs the instruction itself between accesses to MXCSR; see [`super::host`].
    ///
    /// # Safety
    /// `on_host()` must be true, and `c` valid for reads and writes.
    #[cfg(target_arch = "x86_64")]
    unsafe fn host<const FAST: bool>(a: u128, b: u128, imm: u8, c: *mut Csr) -> u128;
    /// Portable arithmetic: the masked result, and in `env` the exceptions found.
    fn soft(a: u128, b: u128, imm: u8, env: &mut Env) -> u128;
    /// The same on both lanes of 256-bit vectors.
    fn soft_pair(a: [u128; 2], b: [u128; 2], imm: u8, env: &mut Env) -> [u128; 2] {
        [Self::soft(a[0], b[0], imm, env), Self::soft(a[1], b[1], imm, env)]
    }
}

/// A fused multiplication and addition: a [`FloatOp`] on three vectors, in the order of the instruction's operands
/// (the first is the destination's old value).
pub trait FusedOp: 'static {
    /// Its name, for translators.
    const ID: VecId;
    /// Runs the instruction itself between accesses to MXCSR; see [`super::host`].
    ///
    /// # Safety
    /// The host must have FMA, and `csr` be valid for reads and writes.
    #[cfg(target_arch = "x86_64")]
    unsafe fn host<const FAST: bool>(a: u128, b: u128, c: u128, csr: *mut Csr) -> u128;
    /// Portable arithmetic, rounded once: the masked result, and in `env` the exceptions found.
    fn soft(a: u128, b: u128, c: u128, env: &mut Env) -> u128;
}

/// What vector instructions ask of an engine.
pub trait VecExec: Exec {
    /// 128 bits.
    type Vec: Copy;

    // ---- state --------------------------------------------------------------------------------------------

    /// #UD if CR0.EM is set or CR4.OSFXSR clear, #NM if CR0.TS is set: what every SSE instruction checks
    /// first.
    fn sse_check(&mut self) -> Result<(), Stop>;
    /// #UD if CR0.EM is set, #NM if CR0.TS is set, then `x87_check`: what every MMX instruction checks first.
    fn mmx_check(&mut self) -> Result<(), Stop>;
    /// #MF (or FERR#) if an x87 exception is pending (alone: instructions on both register files, after
    /// `sse_check`).
    fn x87_check(&mut self) -> Result<(), Stop>;
    /// What every MMX instruction but EMMS does to the x87 unit once it cannot fault: TOP = 0, all registers
    /// valid.
    fn enter_mmx(&mut self);
    /// #UD unless CR4.OSXSAVE is set and XCR0 has SSE and AVX enabled, #NM if CR0.TS is set: what every
    /// instruction of this module with a VEX prefix checks first.
    fn avx_check(&mut self) -> Result<(), Stop>;
    /// Reads XMM register `r`.
    fn xmm(&mut self, r: u8) -> Self::Vec;
    /// Writes bits 0-127 of a vector register; the rest stays.
    fn set_xmm(&mut self, r: u8, v: Self::Vec);
    /// Reads bits 128-255 of a vector register.
    fn ymm_high(&mut self, r: u8) -> Self::Vec;
    /// Writes bits 128-255 of a vector register.
    fn set_ymm_high(&mut self, r: u8, v: Self::Vec);
    /// Reads MMX register `r`.
    fn mm(&mut self, r: u8) -> Self::Int;
    /// Writes MMX register `r`, and all ones to the exponent of the x87 register it lies in.
    fn set_mm(&mut self, r: u8, v: Self::Int);
    /// Loads a 128-bit memory operand; with `aligned`, #GP(0) unless it is 16-byte aligned.
    fn load_vec(&mut self, op: &Op, aligned: bool) -> Result<Self::Vec, Stop>;
    /// Loads a memory operand of width W, zero-extended to a vector.
    #[inline(always)]
    fn load_low<W: Width>(&mut self, op: &Op) -> Result<Self::Vec, Stop> {
        let v = self.load::<W>(op)?;
        Ok(self.vec_of::<W>(v))
    }
    /// Stores a 128-bit memory operand.
    fn store_vec(&mut self, op: &Op, v: Self::Vec, aligned: bool) -> Result<(), Stop>;
    /// Loads a 256-bit memory operand; with `aligned`, #GP(0) unless it is 32-byte aligned.
    fn load_pair(&mut self, op: &Op, aligned: bool) -> Result<[Self::Vec; 2], Stop>;
    /// Stores a 256-bit memory operand.
    fn store_pair(&mut self, op: &Op, v: [Self::Vec; 2], aligned: bool) -> Result<(), Stop>;

    // ---- between integers and vectors ---------------------------------------------------------------------

    /// An integer zero-extended to a vector.
    fn vec_of<W: Width>(&mut self, v: Self::Int) -> Self::Vec;
    /// Lane `n` (a constant, modulo the number of lanes) of width W.
    fn lane<W: Width>(&mut self, v: Self::Vec, n: u8) -> Self::Int;
    /// `v` with lane `n` (a constant, modulo the number of lanes) of width W replaced.
    fn with_lane<W: Width>(&mut self, v: Self::Vec, n: u8, x: Self::Int) -> Self::Vec;

    // ---- operations ---------------------------------------------------------------------------------------

    /// Evaluates a vector operation.
    fn vec<O: VecOp>(&mut self, a: Self::Vec, b: Self::Vec, imm: u8) -> Self::Vec;
    /// Evaluates a vector operation on MMX values.
    fn vec64<O: VecOp>(&mut self, a: Self::Int, b: Self::Int, imm: u8) -> Self::Int;
    /// Evaluates an operation on three vectors.
    fn vec3<O: VecOp3>(&mut self, a: Self::Vec, b: Self::Vec, c: Self::Vec) -> Self::Vec;
    /// Evaluates an operation across lanes.
    fn pair<O: PairOp>(&mut self, a: [Self::Vec; 2], b: [Self::Vec; 2]) -> [Self::Vec; 2];
    /// Evaluates an operation that yields an integer.
    fn vec_int<O: VecToInt>(&mut self, b: Self::Vec) -> Self::Int;
    /// Sets the arithmetic flags.
    fn vec_flags<O: VecFlags>(&mut self, a: Self::Vec, b: Self::Vec);
    /// Sets the arithmetic flags to those that both lanes give.
    fn vec_flags_pair<O: VecFlags>(&mut self, a: [Self::Vec; 2], b: [Self::Vec; 2]);
    /// Evaluates a floating-point operation; #XM (or #UD) if it raises an unmasked exception.
    fn float<O: FloatOp>(&mut self, a: Self::Vec, b: Self::Vec, imm: u8) -> Result<Self::Vec, Stop>;
    /// The same for an operation whose result is an integer of up to 64 bits.
    fn float_int<O: FloatOp>(&mut self, b: Self::Vec) -> Result<Self::Int, Stop>;
    /// The same for an operation whose second operand is an integer of up to 64 bits.
    fn int_float<O: FloatOp>(&mut self, a: Self::Vec, b: Self::Int) -> Result<Self::Vec, Stop>;
    /// The same for an operation whose results are the arithmetic flags.
    fn float_flags<O: FloatOp>(&mut self, a: Self::Vec, b: Self::Vec) -> Result<(), Stop>;
    /// As `float`, on both lanes at once: exceptions of either keep both from having a result.
    fn float_pair<O: FloatOp>(
        &mut self,
        a: [Self::Vec; 2],
        b: [Self::Vec; 2],
        imm: u8,
    ) -> Result<[Self::Vec; 2], Stop>;
    /// Evaluates a fused operation; #XM (or #UD) if it raises an unmasked exception.
    fn fused<O: FusedOp>(&mut self, a: Self::Vec, b: Self::Vec, c: Self::Vec) -> Result<Self::Vec, Stop>;
    /// The same on both lanes at once.
    fn fused_pair<O: FusedOp>(
        &mut self,
        a: [Self::Vec; 2],
        b: [Self::Vec; 2],
        c: [Self::Vec; 2],
    ) -> Result<[Self::Vec; 2], Stop>;
}
