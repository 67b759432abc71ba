//! Bits of the status and control words (SDM volume 1, 8.1.3 and 8.1.5). Exceptions have the same places in
//! both.
#![allow(missing_docs)]

/// Invalid operation.
pub const IE: u16 = 1 << 0;
/// Denormal operand.
pub const DE: u16 = 1 << 1;
/// Division by zero.
pub const ZE: u16 = 1 << 2;
/// Overflow.
pub const OE: u16 = 1 << 3;
/// Underflow.
pub const UE: u16 = 1 << 4;
/// Precision: the result is inexact.
pub const PE: u16 = 1 << 5;
/// Stack fault (with IE; C1 says which).
pub const SF: u16 = 1 << 6;
/// Exception summary: an unmasked exception is pending.
pub const ES: u16 = 1 << 7;
pub const C0: u16 = 1 << 8;
pub const C1: u16 = 1 << 9;
pub const C2: u16 = 1 << 10;
/// TOP, 3 bits.
pub const TOP: u16 = 7 << 11;
pub const C3: u16 = 1 << 14;
/// Busy: follows ES.
pub const B: u16 = 1 << 15;
/// The six exceptions; the masks in the control word.
pub const EXCEPTIONS: u16 = 0x3f;
/// Those that, unmasked, leave the destination as it was.
pub const FAULTS: u16 = IE | DE | ZE;
/// The condition code.
pub const CC: u16 = C0 | C1 | C2 | C3;

/// Rounding control in the control word.
pub const RC: u16 = 3 << 10;
pub const RC_NEAREST: u16 = 0 << 10;
pub const RC_DOWN: u16 = 1 << 10;
pub const RC_UP: u16 = 2 << 10;
pub const RC_ZERO: u16 = 3 << 10;
/// Precision control in the control word.
pub const PC: u16 = 3 << 8;
