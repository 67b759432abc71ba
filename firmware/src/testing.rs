//! Helpers of this crate's tests.
use crate::mem::{GuestMemory, SparseMemory};
use crate::tables::{Config, Tables, build_tables};

pub fn small_tables(mem: &SparseMemory) -> Tables {
    build_tables(mem, &Config::default()).unwrap()
}
pub fn read_vec(mem: &dyn GuestMemory, gpa: u64, len: usize) -> Vec<u8> {
    let mut b = vec![0; len];
    mem.read(gpa, &mut b);
    b
}
pub fn read_u64(mem: &dyn GuestMemory, gpa: u64) -> u64 {
    u64::from_le_bytes(read_vec(mem, gpa, 8).try_into().unwrap())
}
pub fn read_u32(mem: &dyn GuestMemory, gpa: u64) -> u32 {
    read_u64(mem, gpa) as u32
}

/// RAM that counts the bytes that are written to it.
pub struct Counting {
    pub memory: SparseMemory,
    pub written: std::cell::Cell<u64>,
}
impl Counting {
    pub fn new(below: u64) -> Self {
        Counting { memory: SparseMemory::new(below, 0), written: Default::default() }
    }
}
impl GuestMemory for Counting {
    fn read(&self, gpa: u64, buf: &mut [u8]) {
        self.memory.read(gpa, buf);
    }
    fn write(&self, gpa: u64, buf: &[u8]) {
        self.written.set(self.written.get() + buf.len() as u64);
        self.memory.write(gpa, buf);
    }
    fn below_4g(&self) -> u64 {
        self.memory.below_4g()
    }
    fn above_4g(&self) -> u64 {
        self.memory.above_4g()
    }
}

/// A little ELF64 kernel with as many of a kind of header as its fields can count, and `extra` bytes behind them.
/// `header` makes each, of its number and of where the extra bytes start.
pub fn crowded_elf(
    sections: bool,
    entry_len: usize,
    extra: usize,
    header: impl Fn(u64, u64) -> Vec<u8>,
) -> Vec<u8> {
    const COUNT: usize = 0xffff;
    let mut f = pvh_image().build();
    let at = f.len().next_multiple_of(16);
    let extra_at = at + COUNT * entry_len;
    f.resize(extra_at + extra, 0);
    let (offset_field, count_field) = if sections { (40, 60) } else { (32, 56) };
    let first: Vec<Vec<u8>> = match sections {
        true => Vec::new(),
        // The program headers there were come first.
        false => f[64..64 + 2 * 56].chunks(56).map(<[u8]>::to_vec).collect(),
    };
    for n in 0..COUNT {
        let bytes = first.get(n).cloned().unwrap_or_else(|| header(n as u64, extra_at as u64));
        f[at + n * entry_len..at + n * entry_len + bytes.len()].copy_from_slice(&bytes);
    }
    f[offset_field..offset_field + 8].copy_from_slice(&(at as u64).to_le_bytes());
    f[count_field..count_field + 2].copy_from_slice(&(COUNT as u16).to_le_bytes());
    f
}

/// A Linux image of protocol 2.15: relocatable, 64-bit, 16 MiB wanted at 16 MiB; its payload is 0xa5
/// throughout.
pub fn linux_image() -> Vec<u8> {
    let mut f = vec![0; 0x1000 + 0x4000];
    let mut put = |at: usize, bytes: &[u8]| f[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[7]);
    put(0x1f4, &0x400u32.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000u32.to_le_bytes());
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1, 21, 3, 0]);
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x100_0000u32.to_le_bytes());
    put(0x1000, &[0xa5; 0x4000]);
    f
}

/// An ELF64 file in the making.
#[derive(Clone)]
pub struct Elf64 {
    pub machine: u16,
    pub entry: u64,
    /// paddr, vaddr, filesz, memsz. All segments share the file's bytes from 0x1000 on: 0x100 times 0xf4.
    pub segments: Vec<[u64; 4]>,
    /// A PT_NOTE segment.
    pub note: Option<Vec<u8>>,
    /// Words of a multiboot header, put at 0x800.
    pub multiboot: Option<Vec<u32>>,
    /// Two section headers: none, and a string table.
    pub symbols: bool,
}

/// A PVH kernel with its entry at 0x200010.
pub fn pvh_image() -> Elf64 {
    let mut note = [4u32, 4, 18].map(u32::to_le_bytes).as_flattened().to_vec();
    note.extend(b"Xen\0");
    note.extend(0x20_0010u32.to_le_bytes());
    Elf64 {
        machine: 62,
        entry: 0x20_0010,
        segments: vec![[0x20_0000, 0x20_0000, 0x100, 0x2000]],
        note: Some(note),
        multiboot: None,
        symbols: false,
    }
}

impl Elf64 {
    pub fn build(&self) -> Vec<u8> {
        let mut f = vec![0; 0x1000];
        let count = self.segments.len() + usize::from(self.note.is_some());
        let mut put = |at: usize, bytes: &[u8]| f[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01");
        put(16, &2u16.to_le_bytes());
        put(18, &self.machine.to_le_bytes());
        put(20, &1u32.to_le_bytes());
        put(24, &self.entry.to_le_bytes());
        put(32, &64u64.to_le_bytes());
        put(52, &[64, 0, 56, 0, count as u8, 0, 64, 0]);
        let header = |kind: u32, offset: u64, [paddr, vaddr, filesz, memsz]: [u64; 4]| {
            let mut h = [kind, 7].map(u32::to_le_bytes).as_flattened().to_vec();
            h.extend([offset, vaddr, paddr, filesz, memsz, 4].map(u64::to_le_bytes).as_flattened());
            h
        };
        for (i, s) in self.segments.iter().enumerate() {
            put(64 + i * 56, &header(1, 0x1000, *s));
        }
        if let Some(note) = &self.note {
            put(64 + (count - 1) * 56, &header(4, 0x400, [0, 0, note.len() as u64, note.len() as u64]));
            put(0x400, note);
        }
        if let Some(words) = &self.multiboot {
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            put(0x800, &bytes);
        }
        if self.symbols {
            put(0x600, b"\0main\0");
            put(40, &0x700u64.to_le_bytes());
            put(60, &[2, 0, 1, 0]);
            put(0x740 + 4, &3u32.to_le_bytes());
            put(0x740 + 24, &0x600u64.to_le_bytes());
            put(0x740 + 32, &6u64.to_le_bytes());
        }
        f.resize(0x1100, 0xf4);
        f
    }
}

/// A multiboot 1 kernel with load addresses, its header at the file's start.
pub fn multiboot1_flat(load: u32, entry: u32) -> Vec<u8> {
    let (magic, flags) = (0x1bad_b002u32, 0x1_0003);
    let sum = 0u32.wrapping_sub(magic + flags);
    let words = [magic, flags, sum, load, load, load + 0x400, load + 0x800, entry];
    let mut f: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    f.resize(0x400, 0xf4);
    f
}

/// A multiboot 2 header of (type, flags, words of the body), with its end tag.
pub fn multiboot2_header(tags: &[(u16, u16, Vec<u32>)]) -> Vec<u32> {
    let mut words = vec![0xe852_50d6, 0, 0, 0];
    for (kind, flags, body) in tags {
        words.extend([u32::from(*kind) | u32::from(*flags) << 16, 8 + 4 * body.len() as u32]);
        words.extend(body);
        words.resize(words.len().next_multiple_of(2), 0);
    }
    words.extend([0, 8]);
    words[2] = words.len() as u32 * 4;
    words[3] = 0u32.wrapping_sub(words[0]).wrapping_sub(words[2]);
    words
}
