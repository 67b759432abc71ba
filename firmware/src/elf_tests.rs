use super::*;
use crate::entry::CpuMode;
use crate::error::LoadError;
use crate::mem::SparseMemory;
use crate::testing::{Counting, Elf64, crowded_elf, pvh_image, read_u32, read_u64, read_vec, small_tables};

const RAM: u64 = 128 << 20;

fn boot(mem: &SparseMemory, req: &LoadRequest<'_>) -> Result<Entry, LoadError> {
    crate::load(mem, &small_tables(mem), req)
}

#[test]
fn a_pvh_kernel_is_entered_through_its_note_with_start_info_in_ebx() {
    let mem = SparseMemory::new(RAM, 1 << 30);
    let kernel = pvh_image().build();
    let initrd = vec![9; 10_000];
    let req = LoadRequest { initrd: Some(&initrd), cmdline: "a b", ..LoadRequest::new("vmlinux", &kernel) };
    let tables = small_tables(&mem);
    let e = crate::load(&mem, &tables, &req).unwrap();
    assert_eq!((e.mode, e.rip, e.cr0 & crate::entry::CR0_PG, e.cr4), (CpuMode::Protected32, 0x20_0010, 0, 0));
    let info = e.gpr[reg::RBX];
    assert_eq!([0, 4, 8, 12].map(|at| read_u32(&mem, info + at)), [0x336e_c578, 1, 0, 1]);
    let [modlist, cmdline, rsdp, memmap] = [16, 24, 32, 40].map(|at| read_u64(&mem, info + at));
    assert_eq!(rsdp, tables.rsdp.unwrap());
    assert_eq!(read_vec(&mem, cmdline, 4), b"a b\0");
    let (at, len) = (read_u64(&mem, modlist), read_u64(&mem, modlist + 8));
    assert_eq!((at % 4096, read_vec(&mem, at, len as usize)), (0, initrd.clone()));
    assert_eq!(u64::from(read_u32(&mem, info + 48)), tables.e820.entries().len() as u64);
    for (i, e) in tables.e820.entries().iter().enumerate() {
        let at = memmap + i as u64 * 24;
        let got = (read_u64(&mem, at), read_u64(&mem, at + 8), read_u64(&mem, at + 16));
        assert_eq!(got, (e.base, e.len, e.kind as u64));
    }
}

#[test]
fn bss_is_zeroed_and_data_is_copied() {
    let mem = SparseMemory::new(RAM, 0);
    mem.write(0x20_0000, &[0xee; 0x3000]);
    boot(&mem, &LoadRequest::new("k", &pvh_image().build())).unwrap();
    let seen = read_vec(&mem, 0x20_0000, 0x3000);
    assert!(seen[..0x100].iter().all(|&b| b == 0xf4));
    assert!(seen[0x100..0x2000].iter().all(|&b| b == 0));
    assert_eq!(seen[0x2000], 0xee, "nothing is written behind the segment");
}

#[test]
fn a_plain_elf_file_is_refused_with_a_hint() {
    let mem = SparseMemory::new(RAM, 0);
    let kernel = Elf64 { note: None, ..pvh_image() }.build();
    let error = boot(&mem, &LoadRequest::new("vmlinux", &kernel)).unwrap_err().to_string();
    assert!(error.starts_with("vmlinux is an ELF file with neither a PVH note"), "{error}");
}

#[test]
fn elf_files_for_other_machines_are_named() {
    let mem = SparseMemory::new(RAM, 0);
    for (machine, name) in [(183, "AArch64"), (243, "RISC-V"), (40, "ARM"), (0xfff0, "machine type 65520")] {
        let kernel = Elf64 { machine, ..pvh_image() }.build();
        let error = boot(&mem, &LoadRequest::new("k", &kernel)).unwrap_err().to_string();
        assert_eq!(error, format!("k is an ELF file for {name}; Mynah runs x86 guests"));
    }
}

#[test]
fn hostile_segments_are_refused() {
    let mem = SparseMemory::new(RAM, 0);
    let why = |segments: Vec<[u64; 4]>| {
        let kernel = Elf64 { segments, ..pvh_image() }.build();
        boot(&mem, &LoadRequest::new("k", &kernel)).unwrap_err().to_string()
    };
    // paddr, vaddr, filesz, memsz
    let good = [0x20_0000, 0x20_0000, 0x100, 0x2000];
    let has = |error: String, part: &str| assert!(error.contains(part), "{error:?} does not say {part:?}");
    has(why(vec![[0x20_0000, 0, 1 << 40, 1 << 41]]), "beyond 4 GiB");
    has(why(vec![[0x20_0000, 0, 0x8000_0000, 0x8000_0000]]), "truncated");
    has(why(vec![good, [0x20_1000, 0, 0x10, 0x10]]), "overlap");
    has(why(vec![good, [0x30_0000, 0, 0, 0xf000_0000]]), "needs RAM at 0x300000");
    has(why(vec![good, [u64::MAX - 4, 0, 0, 0x1000]]), "beyond 4 GiB");
    has(why(vec![good, [0x40_0000, 0, 0x20, 0x10]]), "has 0x20 bytes for 0x10");
    has(why(vec![good, [0xa_0000, 0, 0x10, 0x10]]), "needs RAM at 0xa0000");
    has(why(vec![good, [0x400, 0, 0x10, 0x10]]), "needs RAM at 0x400");
    has(why(vec![[0x40_0000, 0, 0x10, 0x10]]), "is in no segment");
    has(why(vec![]), "no segment to load");
}

#[test]
fn odd_notes_do_not_hide_the_right_one() {
    let mem = SparseMemory::new(RAM, 0);
    let mut image = pvh_image();
    let right = image.note.take().unwrap();
    let mut notes = vec![];
    notes.extend([7u32, 3, 18].map(u32::to_le_bytes).as_flattened());
    notes.extend(b"Xenolo\0\0abc\0"); // another name, an odd length
    notes.extend(right);
    image.note = Some(notes);
    assert_eq!(boot(&mem, &LoadRequest::new("k", &image.build())).unwrap().rip, 0x20_0010);
}

#[test]
fn a_64_bit_kernel_needs_a_64_bit_cpu() {
    let mem = SparseMemory::new(RAM, 0);
    let kernel = pvh_image().build();
    let req = LoadRequest { cpu_is_64bit: false, ..LoadRequest::new("k", &kernel) };
    assert_eq!(boot(&mem, &req).unwrap_err().reason, Reason::Needs64Bit);
}

fn words(kind: u32, rest: [u64; 6]) -> Vec<u8> {
    let mut h = [kind, 7].map(u32::to_le_bytes).as_flattened().to_vec();
    h.extend(rest.map(u64::to_le_bytes).as_flattened());
    h
}

#[test]
fn notes_that_lie_on_each_other_are_refused_unread() {
    const LEN: u64 = 6 << 20;
    let kernel = crowded_elf(false, 56, LEN as usize, |_, at| words(4, [at, 0, 0, LEN, LEN, 4]));
    // The note that makes it a PVH kernel comes first; there is another name to look for.
    let image = ElfImage::parse(&kernel).unwrap();
    let error = format!("{:?}", image.note(b"other", 1).unwrap_err());
    assert!(error.contains("note segments lie on each other"), "{error}");
    let error = crate::identify("k", &kernel).unwrap_err().to_string();
    assert!(error.contains("note segments lie on each other"), "{error}");
}

#[test]
fn segments_that_lie_on_each_other_in_the_file_are_refused_unread() {
    const LEN: u64 = 64 << 10;
    let mem = Counting::new(0xe000_0000);
    let kernel = crowded_elf(false, 56, LEN as usize, |n, at| {
        let address = (16 << 20) + n * LEN;
        if n < 50_000 { words(1, [at, address, address, LEN, LEN, 4]) } else { words(0, [0; 6]) }
    });
    let tables = small_tables(&mem.memory);
    let error = crate::load(&mem, &tables, &LoadRequest::new("k", &kernel)).unwrap_err().to_string();
    assert!(error.contains("segments lie on each other"), "{error}");
    assert_eq!(mem.written.get(), 0);
}

#[test]
fn a_segment_for_each_few_bytes_is_no_more_work_than_one() {
    let mem = Counting::new(0xe000_0000);
    let kernel = crowded_elf(false, 56, 16 << 16, |n, at| {
        let address = (16 << 20) + n * 64;
        words(1, [at + n * 16, address, address, 16, 32, 4])
    });
    let tables = small_tables(&mem.memory);
    let start = std::time::Instant::now();
    crate::load(&mem, &tables, &LoadRequest::new("k", &kernel)).unwrap();
    assert!(mem.written.get() < 2 * kernel.len() as u64, "{}", mem.written.get());
    // A tenth of a second or so; with a list of free pieces that is searched from its start it was quadratic.
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
}
