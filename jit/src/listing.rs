//! Code as text, for `-d out_asm`: host code, with the guest's instructions that it was made from.
use crate::host::disassemble;
use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
use std::fmt::Write;

/// From an offset on, host code was made from a guest instruction.
pub(crate) struct Mark {
    pub offset: usize,
    /// Its linear address.
    pub lin: u64,
    /// Its bytes; none for what belongs to no single instruction.
    pub bytes: Vec<u8>,
}

/// Host code at an address; `what` says what it is.
pub(crate) fn host_code(at: *const u8, code: &[u8], what: &str, bitness: u32, marks: &[Mark]) -> String {
    let mut s = format!("OUT: [size={}] guest {what}\n", code.len());
    let mut formatter = NasmFormatter::new();
    let mut marks = marks.iter().peekable();
    let mut mark = |s: &mut String, n: usize, formatter: &mut NasmFormatter| {
        while let Some(m) = marks.next_if(|m| m.offset <= n) {
            if m.bytes.is_empty() {
                s.push_str("  -- side exits\n");
                continue;
            }
            let i = Decoder::with_ip(bitness, &m.bytes, m.lin, DecoderOptions::AMD).decode();
            let mut text = String::new();
            formatter.format(&i, &mut text);
            let _ = writeln!(s, "  -- guest {:#x}: {text}", m.lin);
        }
    };
    let line = |s: &mut String, n: usize, bytes: &[u8], text: &str| {
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let _ = writeln!(s, "0x{:x}:  {hex:<24} {text}", at.addr() + n);
    };
    for (n, len, text) in disassemble(at.addr() as u64, code) {
        mark(&mut s, n, &mut formatter);
        line(&mut s, n, &code[n..n + len], &text);
    }
    s.push('\n');
    s
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn host_code_stands_below_the_guest_instruction_that_it_was_made_from() {
        let marks = [
            Mark { offset: 1, lin: 0x40_0000, bytes: vec![0x40] },
            Mark { offset: 3, lin: 0x40_0001, bytes: vec![0xf4] },
        ];
        let code = [0x55, 0xff, 0xc0, 0xc3];
        let text = host_code(std::ptr::without_provenance(0x1000), &code, "0x400000 f", 32, &marks);
        let words: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(
            words,
            [
                vec!["OUT:", "[size=4]", "guest", "0x400000", "f"],
                vec!["0x1000:", "55", "push", "rbp"],
                vec!["--", "guest", "0x400000:", "inc", "eax"],
                vec!["0x1001:", "ffc0", "inc", "eax"],
                vec!["--", "guest", "0x400001:", "hlt"],
                vec!["0x1003:", "c3", "ret"],
                vec![],
            ]
        );
    }
}
