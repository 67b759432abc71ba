//! Names of translated code for `perf`: a line `START SIZE NAME` for each region in `/tmp/perf-PID.map`, the file that perf reads for code that
//! is in no ELF file.
//!
//! A region is called after the guest address that it was entered at when it was compiled, or after the guest's function there, if an ELF file's symbols
//! were given. Regions that are thrown away stay in the file, as perf knows no end of a name; a later one at the same place comes later.
use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::Arc;

/// The names of the guest's functions, by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbols {
    /// Address, size and name, in order of addresses.
    list: Vec<(u64, u64, String)>,
}

impl Symbols {
    /// Of functions given by address, size (0: up to the next one) and name.
    pub fn new(mut list: Vec<(u64, u64, String)>) -> Self {
        list.sort();
        list.dedup_by_key(|s| s.0);
        Self { list }
    }

    /// What stands at an address: the function's name, and the distance from its start if there is one.
    pub fn name(&self, address: u64) -> Option<String> {
        let n = self.list.partition_point(|s| s.0 <= address).checked_sub(1)?;
        let (start, size, name) = &self.list[n];
        let distance = address - start;
        if *size != 0 && distance >= *size {
            return None;
        }
        Some(if distance == 0 { name.clone() } else { format!("{name}+{distance:#x}") })
    }
}

/// The file.
pub struct PerfMap {
    out: BufWriter<File>,
    symbols: Arc<Symbols>,
}

impl PerfMap {
    /// The file that perf reads for this process.
    pub fn create(symbols: Arc<Symbols>) -> std::io::Result<Self> {
        let file = File::create(format!("/tmp/perf-{}.map", std::process::id()))?;
        Ok(Self { out: BufWriter::new(file), symbols })
    }

    /// Adds a region of `size` bytes at `code`, entered at the linear guest address `lin`.
    pub(crate) fn add(&mut self, code: *const u8, size: usize, lin: u64) {
        let name = self.symbols.name(lin).unwrap_or_else(|| format!("{lin:#x}"));
        // Who cannot write the file loses names, not the guest.
        let _ = writeln!(self.out, "{:x} {size:x} guest {name}", code.addr());
        let _ = self.out.flush();
    }
}

/// Host code as text.
pub(crate) fn host_code(at: *const u8, code: &[u8], lin: u64) -> String {
    let mut s = format!("OUT: guest {lin:#x}, {} bytes\n", code.len());
    let line = |s: &mut String, n: usize, bytes: &[u8], text: &str| {
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        s.push_str(&format!("0x{:x}:  {hex:<24} {text}\n", at.addr() + n));
    };
    if !cfg!(target_arch = "x86_64") {
        code.chunks(16).enumerate().for_each(|(n, c)| line(&mut s, 16 * n, c, ""));
        return s;
    }
    let mut formatter = NasmFormatter::new();
    for i in &mut Decoder::with_ip(64, code, at.addr() as u64, DecoderOptions::NONE) {
        let n = (i.ip() - at.addr() as u64) as usize;
        let mut text = String::new();
        formatter.format(&i, &mut text);
        line(&mut s, n, &code[n..n + i.len()], &text);
    }
    s.push('\n');
    s
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_name_of_the_function_around_it() {
        let s = Symbols::new(vec![(0x2000, 0x10, "second".into()), (0x1000, 0, "first".into())]);
        assert_eq!(s.name(0x1000).as_deref(), Some("first"));
        assert_eq!(s.name(0x1fff).as_deref(), Some("first+0xfff"));
        assert_eq!(s.name(0x200f).as_deref(), Some("second+0xf"));
        assert_eq!((s.name(0x2010), s.name(0xfff)), (None, None));
    }
}
