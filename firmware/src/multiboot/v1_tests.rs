use super::*;
use crate::entry::CpuMode;
use crate::error::LoadError;
use crate::mem::SparseMemory;
use crate::request::Module;
use crate::testing::{
    Elf64, crowded_elf, multiboot1_flat, pvh_image, read_u32, read_u64, read_vec, small_tables,
};

const RAM: u64 = 64 << 20;

fn boot(mem: &SparseMemory, req: &LoadRequest<'_>) -> Result<Entry, LoadError> {
    crate::load(mem, &small_tables(mem), req)
}

fn string(mem: &SparseMemory, gpa: u32) -> String {
    let bytes = read_vec(mem, gpa.into(), 64);
    String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap()).into_owned()
}

#[test]
fn a_flat_kernel_gets_modules_memory_map_and_command_line() {
    let mem = SparseMemory::new(RAM, 0);
    let kernel = multiboot1_flat(0x10_0000, 0x10_0020);
    let modules =
        [Module { command: "one x=1", data: &[1; 5000] }, Module { command: "two", data: &[2; 10] }];
    let req = LoadRequest { modules: &modules, cmdline: "debug", ..LoadRequest::new("os.bin", &kernel) };
    let tables = small_tables(&mem);
    let e = crate::load(&mem, &tables, &req).unwrap();
    assert_eq!((e.mode, e.rip, e.gpr[reg::RAX]), (CpuMode::Protected32, 0x10_0020, 0x2bad_b002));
    assert_eq!((e.cs.selector, e.ss.selector, e.ds_es_fs_gs.selector), (0x08, 0x10, 0x10));
    let info = e.gpr[reg::RBX];
    let field = |at: u64| read_u32(&mem, info + at);
    assert_eq!(field(0), 1 | 4 | 8 | 0x40 | 0x200);
    assert_eq!(field(4), 639);
    assert_eq!(u64::from(field(8)), tables.e820.upper_memory() >> 10);
    assert_eq!(string(&mem, field(16)), "os.bin debug");
    assert_eq!(string(&mem, field(64)), super::super::LOADER_NAME);
    assert_eq!(field(20), 2);
    for (i, m) in modules.iter().enumerate() {
        let at = u64::from(field(24)) + i as u64 * 16;
        let (start, end) = (read_u32(&mem, at), read_u32(&mem, at + 4));
        assert_eq!(start % 4096, 0);
        assert!(start >= 0x10_0000 + kernel.len() as u32);
        assert_eq!(read_vec(&mem, start.into(), (end - start) as usize), m.data);
        assert_eq!(string(&mem, read_u32(&mem, at + 8)), m.command);
    }
    let (len, at) = (u64::from(field(44)), u64::from(field(48)));
    let mut p = at;
    for e in tables.e820.entries() {
        assert_eq!((read_u64(&mem, p + 4), read_u64(&mem, p + 12)), (e.base, e.len));
        assert_eq!(read_u32(&mem, p + 20), e.kind as u32);
        p += u64::from(read_u32(&mem, p)) + 4;
    }
    assert_eq!(p, at + len);
}

#[test]
fn an_elf_kernel_is_entered_at_the_physical_address_of_its_entry() {
    let mem = SparseMemory::new(RAM, 0);
    let image = Elf64 {
        note: None,
        entry: 0xffff_8000_0020_0010,
        segments: vec![[0x20_0000, 0xffff_8000_0020_0000, 0x100, 0x2000]],
        multiboot: Some(vec![0x1bad_b002, 0, 0u32.wrapping_sub(0x1bad_b002)]),
        symbols: true,
        ..pvh_image()
    };
    let e = boot(&mem, &LoadRequest::new("k", &image.build())).unwrap();
    assert_eq!(e.rip, 0x20_0010);
    let field = |at: u64| read_u32(&mem, e.gpr[reg::RBX] + at);
    assert_ne!(field(0) & info::ELF_SHDR, 0);
    assert_eq!((field(28), field(32), field(40)), (2, 64, 1));
    // The string table's header now has an address, where its bytes are.
    let header = u64::from(field(36)) + 64;
    assert_eq!(read_vec(&mem, read_u64(&mem, header + 16), 6), b"\0main\0");
}

#[test]
fn an_initrd_without_module_list_is_the_one_module() {
    let mem = SparseMemory::new(RAM, 0);
    let kernel = multiboot1_flat(0x10_0000, 0x10_0020);
    let req = LoadRequest { initrd: Some(b"data"), ..LoadRequest::new("k", &kernel) };
    let e = boot(&mem, &req).unwrap();
    assert_eq!(read_u32(&mem, e.gpr[reg::RBX] + 20), 1);
}

#[test]
fn bad_headers_are_refused() {
    let mem = SparseMemory::new(RAM, 0);
    let why = |kernel: &[u8]| boot(&mem, &LoadRequest::new("k", kernel)).unwrap_err().to_string();
    let has = |error: String, part: &str| assert!(error.contains(part), "{error:?} does not say {part:?}");
    has(why(&multiboot1_flat(0x10_0000, 0x50_0000)), "entry 0x500000 is outside");
    has(why(&multiboot1_flat(0xb_8000, 0xb_8020)), "needs RAM at 0xb8000");
    let patch = |at: usize, value: u32| {
        let mut k = multiboot1_flat(0x10_0000, 0x10_0020);
        k[at..at + 4].copy_from_slice(&value.to_le_bytes());
        k
    };
    has(why(&patch(12, 0x1000)), "point before the file");
    has(why(&patch(20, 0x1000)), "load_end_addr is below");
    has(why(&patch(20, 0x20_0000)), "truncated");
    has(why(&patch(24, 0x10_0001)), "bss_end_addr is below");
    has(why(&patch(24, 0xffff_ffff)), "needs RAM at 0x100000");
    let mut k = vec![0; 64];
    for (i, w) in [0x1bad_b002u32, 0x40, 0u32.wrapping_sub(0x1bad_b042)].into_iter().enumerate() {
        k[i * 4..i * 4 + 4].copy_from_slice(&w.to_le_bytes());
    }
    has(why(&k), "requires features 0x0040");
    k[4] = 0;
    k[8..12].copy_from_slice(&0u32.wrapping_sub(0x1bad_b002).to_le_bytes());
    has(why(&k), "no load addresses");
}

/// Section headers of string tables: `len` bytes each, `step` apart.
fn string_tables(extra: usize, len: u64, step: u64) -> Vec<u8> {
    let mut kernel = crowded_elf(true, 64, extra, |n, at| {
        let mut h = [1u32, 3].map(u32::to_le_bytes).as_flattened().to_vec();
        h.extend([0, 0, at + n * step, len].map(u64::to_le_bytes).as_flattened());
        h
    });
    let at = kernel.len() - extra;
    kernel[at..].fill(b'x');
    for (i, word) in [0x1bad_b002, 0, 0u32.wrapping_sub(0x1bad_b002)].into_iter().enumerate() {
        kernel[0x800 + 4 * i..0x804 + 4 * i].copy_from_slice(&word.to_le_bytes());
    }
    kernel
}

#[test]
fn string_tables_take_no_more_memory_than_the_file() {
    use crate::testing::{Counting, small_tables};
    // All over the same bytes: they are left out. One for each few bytes: they are all there.
    for (kernel, placed) in
        [(string_tables(48 << 10, 48 << 10, 0), false), (string_tables(1 << 20, 16, 16), true)]
    {
        let mem = Counting::new(0xe000_0000);
        let image = ElfImage::parse(&kernel).unwrap();
        let mut places = Places::new(&small_tables(&mem.memory).e820);
        let start = std::time::Instant::now();
        let headers = super::super::place_sections(&mem, &mut places, Some(&image), 1 << 20);
        assert_eq!(headers.len(), 0xffff * 64);
        assert_eq!(headers.u64_at(0xfffe * 64 + 16) != Some(0), placed);
        assert!(mem.written.get() <= kernel.len() as u64, "{}", mem.written.get());
        assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
    }
}
