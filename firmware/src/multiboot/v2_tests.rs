use super::*;
use crate::error::LoadError;
use crate::mem::SparseMemory;
use crate::testing::{Elf64, multiboot2_header, pvh_image, read_u32, read_vec, small_tables};

const RAM: u64 = 64 << 20;

fn boot(mem: &SparseMemory, req: &LoadRequest<'_>) -> Result<Entry, LoadError> {
    crate::load(mem, &small_tables(mem), req)
}

/// An ELF kernel whose segment starts with a multiboot 2 header of these tags.
fn elf(tags: &[(u16, u16, Vec<u32>)]) -> Vec<u8> {
    Elf64 { note: None, symbols: true, multiboot: Some(multiboot2_header(tags)), ..pvh_image() }.build()
}

fn info_tags(mem: &SparseMemory, info: u64) -> Vec<(u32, Vec<u8>)> {
    assert_eq!(info % 8, 0);
    let all = read_vec(mem, info, read_u32(mem, info) as usize);
    let (mut at, mut tags) = (8, vec![]);
    loop {
        let (kind, size) = (all.u32_at(at).unwrap(), all.u32_at(at + 4).unwrap() as usize);
        tags.push((kind, all[at + 8..at + size].to_vec()));
        if kind == 0 {
            assert_eq!(at + size, all.len());
            return tags;
        }
        at += size.next_multiple_of(8);
    }
}

#[test]
fn the_information_has_all_tags() {
    let mem = SparseMemory::new(RAM, 0);
    let kernel = elf(&[(1, 0, vec![3, 6, 14])]);
    let modules = [Module { command: "m1 arg", data: &[7; 9] }];
    let req = LoadRequest { cmdline: "-v", modules: &modules, ..LoadRequest::new("k", &kernel) };
    let tables = small_tables(&mem);
    let e = crate::load(&mem, &tables, &req).unwrap();
    assert_eq!((e.rip, e.gpr[reg::RAX]), (0x20_0010, 0x36d7_6289));
    assert_eq!((e.cs.selector, e.ss.selector), (0x08, 0x10));
    let tags = info_tags(&mem, e.gpr[reg::RBX]);
    let kinds: Vec<u32> = tags.iter().map(|t| t.0).collect();
    assert_eq!(kinds, [1, 2, 4, 3, 6, 9, 14, 15, 0]);
    let body = |kind: u32| &tags.iter().find(|t| t.0 == kind).unwrap().1;
    assert_eq!(body(1), b"k -v\0");
    let (start, end) = (body(3).u32_at(0).unwrap(), body(3).u32_at(4).unwrap());
    assert_eq!(read_vec(&mem, start.into(), (end - start) as usize), [7; 9]);
    assert_eq!(&body(3)[8..], b"m1 arg\0");
    assert_eq!(body(6).len(), 8 + 24 * tables.e820.entries().len());
    assert_eq!((body(9).u32_at(0), body(9).u32_at(4)), (Some(2), Some(64)));
    assert_eq!((&body(14)[..8], body(14).len(), body(15).len()), (&b"RSD PTR "[..], 20, 36));
}

#[test]
fn a_relocatable_kernel_moves_only_if_it_must() {
    let mem = SparseMemory::new(RAM, 0);
    let load = |min: u32, max: u32, preference: u32| {
        let kernel = elf(&[(10, 0, vec![min, max, 0x10_0000, preference])]);
        let e = boot(&mem, &LoadRequest::new("k", &kernel)).unwrap();
        let tags = info_tags(&mem, e.gpr[reg::RBX]);
        let base = tags.iter().find(|t| t.0 == 21).unwrap().1.u32_at(0).unwrap();
        assert_eq!(e.rip, u64::from(base) + 0x10);
        assert_eq!(read_vec(&mem, u64::from(base) + 0xf0, 4), [0xf4; 4]);
        base
    };
    assert_eq!(load(0, u32::MAX, 0), 0x20_0000);
    assert_eq!(load(0x80_0000, u32::MAX, 0), 0x80_0000);
    assert_eq!(load(0, u32::MAX, 1), 0x10_0000);
    assert_eq!(load(0, 0x1ff_ffff, 2), 0x1f0_0000);
}

#[test]
fn address_and_entry_tags_load_a_flat_image() {
    let mem = SparseMemory::new(RAM, 0);
    let words =
        multiboot2_header(&[(2, 0, vec![0x30_0000, 0x30_0000, 0, 0x30_4000]), (3, 0, vec![0x30_0040])]);
    let mut kernel: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    kernel.resize(0x80, 0x90);
    let e = boot(&mem, &LoadRequest::new("k", &kernel)).unwrap();
    assert_eq!((e.rip, read_vec(&mem, 0x30_007f, 2)), (0x30_0040, vec![0x90, 0]));
}

#[test]
fn what_a_kernel_requires_and_cannot_have_is_refused() {
    let mem = SparseMemory::new(RAM, 0);
    let why =
        |kernel: &[u8]| boot(&mem, &LoadRequest::new("k", kernel)).map(|e| e.rip).map_err(|e| e.to_string());
    let has = |r: Result<u64, String>, part: &str| {
        let error = r.unwrap_err();
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    };
    has(why(&elf(&[(99, 0, vec![])])), "requires the unknown tag 99");
    assert_eq!(why(&elf(&[(99, 1, vec![])])), Ok(0x20_0010));
    has(why(&elf(&[(1, 0, vec![77])])), "unknown type 77");
    assert_eq!(why(&elf(&[(1, 1, vec![77])])), Ok(0x20_0010));
    assert_eq!(why(&elf(&[(5, 0, vec![1024, 768, 32])])), Ok(0x20_0010));
    has(why(&elf(&[(2, 0, vec![0x20_0000])])), "tag 2 is too short");
    has(why(&elf(&[(10, 0, vec![0, u32::MAX, 3, 0])])), "no power of two");
    has(why(&elf(&[(10, 0, vec![0, 0x1000, 1, 0])])), "does not fit");
    has(why(&elf(&[(3, 0, vec![0x1000])])), "is outside the image");
}
