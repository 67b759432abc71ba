//! Mutated kernels: loaders answer with an entry or an error, whatever the bytes.
use crate::detect::{identify, load};
use crate::mem::SparseMemory;
use crate::request::{BootProtocol, LoadRequest, Module};
use crate::testing::*;

struct XorShift(u64);

impl XorShift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

fn images() -> Vec<Vec<u8>> {
    let mut old = linux_image();
    old[0x206..0x208].copy_from_slice(&0x201u16.to_le_bytes());
    let pvh = Elf64 { symbols: true, ..pvh_image() };
    let mb1 = Elf64 {
        multiboot: Some(vec![0x1bad_b002, 0, 0u32.wrapping_sub(0x1bad_b002)]),
        note: None,
        ..pvh.clone()
    };
    let tags = [(10, 0, vec![0, u32::MAX, 0x1000, 0]), (1, 0, vec![3, 6])];
    let mb2 = Elf64 { multiboot: Some(multiboot2_header(&tags)), note: None, ..pvh.clone() };
    vec![linux_image(), old, pvh.build(), mb1.build(), mb2.build(), multiboot1_flat(0x10_0000, 0x10_0020)]
}

fn try_all(mem: &SparseMemory, kernel: &[u8]) -> usize {
    let tables = small_tables(mem);
    let modules = [Module { command: "a b", data: b"one" }];
    let _ = identify("k", kernel);
    let mut loaded = 0;
    use BootProtocol::*;
    for protocol in [Auto, Linux16, Linux32, Linux64, Pvh, Multiboot1, Multiboot2] {
        let mut req = LoadRequest::new("k", kernel);
        (req.protocol, req.modules, req.bios_services) = (protocol, &modules, true);
        match load(mem, &tables, &req) {
            Ok(_) => loaded += 1,
            Err(e) => assert!(e.to_string().starts_with("k "), "{e}"),
        }
    }
    loaded
}

#[test]
fn mutated_images_never_panic() {
    let mem = SparseMemory::new(64 << 20, 0);
    let mut rng = XorShift(0x9e37_79b9_7f4a_7c15);
    const ODD: [u64; 8] = [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, u64::MAX, 0xffff_fff0, 0x1000];
    for image in images() {
        assert!(try_all(&mem, &image) > 0, "the unchanged image must load");
        // Headers are where bytes matter: half of all changes go to the first few hundred bytes.
        for _ in 0..1500 {
            let mut f = image.clone();
            for _ in 0..=rng.below(4) {
                let at = match rng.below(3) {
                    0 => rng.below(f.len()),
                    1 => rng.below(0x100),
                    _ => 0x1f0 + rng.below(0x80),
                };
                let value = if rng.below(2) == 0 { ODD[rng.below(8)] } else { rng.next() };
                let width = (1 << rng.below(4)).min(f.len() - at);
                f[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            }
            if rng.below(4) == 0 {
                f.truncate(rng.below(f.len()));
            }
            try_all(&mem, &f);
        }
    }
}

#[test]
fn every_truncation_is_answered() {
    let mem = SparseMemory::new(64 << 20, 0);
    for image in images() {
        for len in (0..0x300).chain((0x300..image.len()).step_by(97)) {
            try_all(&mem, &image[..len]);
        }
    }
}
