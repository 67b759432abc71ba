//! Waking from S3: where the system that sleeps has said that it goes on, in the FACS.
//!
//! A system gives one of two vectors (ACPI 6.5, 5.2.10): the one of 32 bits, at which it is entered in real mode, or
//! the extended one, in 32-bit protected mode. Entry in 64-bit mode is not offered (64BIT_WAKE_SUPPORTED_F is clear). A
//! system that gives none, or none that can be entered, is started anew, as a PC does that has lost its memory.
//!
//! The FACS is in memory that is the guest's to write: all of it is looked at here before it is used.
use super::{Platform, rom};
use crate::entry::Entry;

/// Offsets in the FACS.
const WAKING_VECTOR: usize = 12;
const X_WAKING_VECTOR: usize = 24;
const VERSION: usize = 32;
/// Bytes of it that are read.
const LEN: usize = 33;
/// Top of the stack: below the boot sector's place, as of SeaBIOS.
const STACK: u16 = 0x7000;
/// Addresses from here on cannot be reached from real mode.
const REAL_END: u32 = 0x10_0000;

/// The boot processor's state, by the FACS at `facs`.
pub(super) fn entry(pc: &mut dyn Platform, facs: Option<u64>) -> Entry {
    let mut bytes = [0; LEN];
    if let Some(at) = facs {
        pc.read_physical(at, &mut bytes);
    }
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (vector, extended, high) = (word(WAKING_VECTOR), word(X_WAKING_VECTOR), word(X_WAKING_VECTOR + 4));
    match (bytes.starts_with(b"FACS"), vector, extended) {
        (true, _, 1..) if high == 0 && bytes[VERSION] >= 1 => Entry::woken32(rom::gdt(), extended),
        (true, 1..REAL_END, _) => Entry::real((vector >> 4) as u16, vector as u16 & 0xf, 0, STACK),
        _ => {
            tracing::warn!("the guest has woken, but said nowhere to go on at; it is started anew");
            Entry::real(super::SEGMENT, rom::RESET, 0, STACK)
        }
    }
}
