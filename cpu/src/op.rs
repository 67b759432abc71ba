//! `Op`: one decoded instruction, operands resolved and widths fixed, ready for an engine.
use crate::cpu::Cpu;
use crate::event::Stop;

/// An interpreter's handler: executes `op` and returns the op to execute next, or null to leave to the dispatcher.
pub type Handler = fn(&mut Cpu, &Op) -> *const Op;

/// What is long, rare or stateful: a function over the whole CPU that every engine calls with the state synced. It
/// must leave the architectural state untouched when it returns an error (but for what the manual says is changed).
pub type HelperFn = fn(&mut Cpu, &Op) -> Result<(), Stop>;

/// How an instruction relates to its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Falls through to the next instruction and changes neither mode nor control.
    Straight,
    /// Ends the block: it may change RIP (through [`Cpu::set_next_ip`]), the mode, interrupt masks or mappings.
    /// Without a jump the block's successor is the next instruction.
    Ends,
}

/// A helper instruction as a lookup table yields it.
#[derive(Clone, Copy)]
pub struct Helper {
    /// The function.
    pub run: HelperFn,
    /// Whether the block ends with it.
    pub flow: Flow,
}

impl Helper {
    /// A helper that falls through.
    pub const fn straight(run: HelperFn) -> Option<Self> {
        Some(Self { run, flow: Flow::Straight })
    }
    /// A helper that ends its block.
    pub const fn ends(run: HelperFn) -> Option<Self> {
        Some(Self { run, flow: Flow::Ends })
    }
}

/// LOCK prefix.
pub const LOCK: u8 = 1;
/// REP/REPE prefix on a string instruction.
pub const REP: u8 = 2;
/// REPNE prefix on a string instruction.
pub const REPNE: u8 = 4;
/// The instruction has a memory operand.
pub const MEM: u8 = 8;
/// Segment limits and rights must be checked (not 64-bit, and not known flat); the linear address wraps at 4 GiB.
pub const CHECKED: u8 = 16;
/// Executed in 64-bit mode.
pub const LONG: u8 = 32;

/// VEX.L = 1: the operation is on 256 bits.
pub const WIDE: u8 = 64;
/// It is a helper's, or undefined: its handler calls [`Op::helper`].
pub const HELPER: u8 = 128;

/// A decoded instruction.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Op {
    /// The interpreter's handler.
    pub run: Handler,
    /// What the handler calls if it is the one for helpers.
    pub helper: HelperFn,
    /// Immediate, sign-extended to 64 bits; for near branches the target relative to the block's first byte; for far
    /// pointers `selector << 32 | offset`; for moffs the address; two immediates (ENTER, EXTRQ) as `second << 32 |
    /// first`.
    pub imm: u64,
    /// Displacement of the memory operand, sign-extended (RIP-relative: from the block's first byte, with `base` =
    /// RIP).
    pub disp: u64,
    /// Base register of the memory operand ([`crate::state::gpr::ZERO`] if none).
    pub base: u8,
    /// Index register (ZERO if none).
    pub index: u8,
    /// log2 of the scale.
    pub scale: u8,
    /// Segment register index.
    pub seg: u8,
    /// Address size: offset = sum << ashift >> ashift (0: 64 bits, 32: 32 bits, 48: 16 bits).
    pub ashift: u8,
    /// Destination register (first operand). 8-bit registers: number of the 64-bit register, plus 0x20 for AH, CH, DH,
    /// BH. Segment, control, debug, XMM, MMX and ST registers: their own number.
    pub dst: u8,
    /// Source register (second operand), coded as `dst`.
    pub src: u8,
    /// Third operand's register (a fourth's number is in `imm`).
    pub src2: u8,
    /// Operand size in bytes (of the effective operand size for those instructions that have one).
    pub width: u8,
    /// Instruction length in bytes.
    pub len: u8,
    /// LOCK, REP, REPNE, MEM, CHECKED, LONG, WIDE, HELPER.
    pub flags: u8,
    /// Number of the fixed stack width in bytes: 2, 4 or 8 (SS.B or 64-bit mode).
    pub stack: u8,
    /// Offset of the first byte from the block's first byte.
    pub off: u16,
    /// `iced_x86::Code` as a number.
    pub code: u16,
}

impl Op {
    /// The op that follows in the block. Every block ends with an op that does not call this.
    #[inline(always)]
    pub fn next(&self) -> *const Op {
        // One past `self`: blocks are slices that end with a terminator, so this is in the slice for every op that
        // falls through.
        (self as *const Op).wrapping_add(1)
    }
    /// Whether the instruction has a memory operand.
    #[inline(always)]
    pub fn is_mem(&self) -> bool {
        self.flags & MEM != 0
    }
    /// Whether the operation is on 256 bits.
    #[inline(always)]
    pub fn is_wide(&self) -> bool {
        self.flags & WIDE != 0
    }
    /// Whether it was decoded in 64-bit mode.
    #[inline(always)]
    pub fn is_long(&self) -> bool {
        self.flags & LONG != 0
    }
    /// The iced-x86 code.
    pub fn code(&self) -> iced_x86::Code {
        iced_x86::Code::try_from(self.code as usize).unwrap_or(iced_x86::Code::INVALID)
    }
}
