//! x86-64 hosts: all that knows their instructions' bytes.
//!
//! * `baseline`: blocks as host code of the same instructions; `asm`, `registers`, `stubs`: what it is made with.
//! * [`forms`], [`x87`]: of which form instructions are there, and which are not. [`features`]: what the host's CPU
//!   has.
//! * [`primitives`]: the host's instructions in Cranelift's code.
mod asm;
pub(crate) mod baseline;
pub(crate) mod features;
pub(crate) mod forms;
pub(crate) mod primitives;
mod registers;
mod stubs;
pub(crate) mod x87;

use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};

/// The instructions of code at an address: offset, length and text of each. Code for another processor is words.
pub(crate) fn disassemble(at: u64, code: &[u8]) -> Vec<(usize, usize, String)> {
    if !primitives::HERE {
        let words = code.as_chunks::<4>().0.iter().enumerate();
        return words.map(|(n, w)| (4 * n, 4, format!(".word {:#010x}", u32::from_le_bytes(*w)))).collect();
    }
    let mut formatter = NasmFormatter::new();
    let text = |i: iced_x86::Instruction| {
        let mut text = String::new();
        formatter.format(&i, &mut text);
        ((i.ip() - at) as usize, i.len(), text)
    };
    Decoder::with_ip(64, code, at, DecoderOptions::NONE).into_iter().map(text).collect()
}
