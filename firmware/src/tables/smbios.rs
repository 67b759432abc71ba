//! SMBIOS 2.8: what the machine calls itself, for `dmidecode` and for installers that look.
//!
//! A 32-bit entry point in the BIOS area and structures 0, 1, 3, 4, 16, 17, 19, 32 and 127.
//!
//! Source: DMTF DSP0134, version 2.8.0.
use super::acpi::fix_checksum;
use super::{Config, MANUFACTURER};

/// A structure that holds "see the 64-bit field" in its old 32-bit one.
const SEE_EXTENDED: u32 = u32::MAX;
/// Linux turns features on by this date (ACPI at 2001, the ACPI alarm instead of the HPET's at 2015, other
/// PCI window rules at 2023); this one, which other emulated PCs have, means a board with everything here and
/// nothing newer.
const RELEASE_DATE: &str = "04/01/2014";
/// No structure has this handle.
const NO_HANDLE: u16 = 0xffff;
const MEMORY_ARRAY: u16 = 0x1000;

/// The structures in the making.
#[derive(Default)]
struct Structures {
    bytes: Vec<u8>,
    count: u16,
    longest: usize,
}

/// The formatted part of a structure and its strings.
struct Structure {
    bytes: Vec<u8>,
    strings: Vec<String>,
}

impl Structure {
    fn new(kind: u8, handle: u16) -> Self {
        let [low, high] = handle.to_le_bytes();
        Structure { bytes: vec![kind, 0, low, high], strings: Vec::new() }
    }
    fn u8(mut self, n: u8) -> Self {
        self.bytes.push(n);
        self
    }
    fn u16(mut self, n: u16) -> Self {
        self.bytes.extend(n.to_le_bytes());
        self
    }
    fn u32(mut self, n: u32) -> Self {
        self.bytes.extend(n.to_le_bytes());
        self
    }
    fn u64(mut self, n: u64) -> Self {
        self.bytes.extend(n.to_le_bytes());
        self
    }
    fn raw(mut self, b: &[u8]) -> Self {
        self.bytes.extend_from_slice(b);
        self
    }
    /// A string: its number in the list that follows, 0 for none.
    fn string(self, s: &str) -> Self {
        let clean: String = s.chars().filter(|c| c.is_ascii() && *c != '\0').take(64).collect();
        if clean.is_empty() {
            return self.u8(0);
        }
        let mut t = self;
        t.strings.push(clean);
        let n = t.strings.len() as u8;
        t.u8(n)
    }
}

impl Structures {
    fn add(&mut self, mut s: Structure) {
        let start = self.bytes.len();
        s.bytes[1] = s.bytes.len() as u8;
        self.bytes.extend(s.bytes);
        for string in &s.strings {
            self.bytes.extend(string.as_bytes());
            self.bytes.push(0);
        }
        if s.strings.is_empty() {
            self.bytes.push(0);
        }
        self.bytes.push(0);
        self.count += 1;
        self.longest = self.longest.max(self.bytes.len() - start);
    }
}

/// The table and what its entry point must say of it.
pub(super) struct Built {
    pub table: Vec<u8>,
    count: u16,
    longest: u16,
}

impl Built {
    /// The entry point (5.2.1) of a table that was put at `table_at`.
    pub fn entry_point(&self, table_at: u32) -> [u8; 31] {
        let mut e = [0; 31];
        e[..4].copy_from_slice(b"_SM_");
        e[5..8].copy_from_slice(&[31, 2, 8]);
        e[8..10].copy_from_slice(&self.longest.to_le_bytes());
        e[16..21].copy_from_slice(b"_DMI_");
        e[22..24].copy_from_slice(&(self.table.len() as u16).to_le_bytes());
        e[24..28].copy_from_slice(&table_at.to_le_bytes());
        e[28..30].copy_from_slice(&self.count.to_le_bytes());
        e[30] = 0x28;
        fix_checksum(&mut e[16..], 5);
        fix_checksum(&mut e, 4);
        e
    }
}

/// Builds the structures for this machine.
pub(super) fn build(cfg: &Config, below_4g: u64, above_4g: u64) -> Built {
    let mut all = Structures::default();
    bios(&mut all);
    system(&mut all, cfg);
    processor(&mut all, cfg);
    memory(&mut all, below_4g, above_4g);
    all.add(Structure::new(32, 0x2000).raw(&[0; 6]).u8(0)); // no boot error
    all.add(Structure::new(127, 0x7f00));
    Built { longest: all.longest as u16, count: all.count, table: all.bytes }
}

fn bios(all: &mut Structures) {
    const NO_CHARACTERISTICS: u64 = 1 << 3;
    const VIRTUAL_MACHINE: u8 = 1 << 4;
    let version = |n: &str| n.parse().unwrap_or(0u8);
    let s = Structure::new(0, 0)
        .string(MANUFACTURER)
        .string(env!("CARGO_PKG_VERSION"))
        .u16(0xf000)
        .string(RELEASE_DATE)
        .u8(0) // 64 KiB
        .u64(NO_CHARACTERISTICS)
        .u8(0)
        .u8(VIRTUAL_MACHINE)
        .u8(version(env!("CARGO_PKG_VERSION_MAJOR")))
        .u8(version(env!("CARGO_PKG_VERSION_MINOR")))
        .u16(0xffff); // no embedded controller
    all.add(s);
}

fn system(all: &mut Structures, cfg: &Config) {
    // 7.2.1: the first three fields of a UUID are little endian.
    let u = cfg.uuid;
    let uuid = [
        u[3], u[2], u[1], u[0], u[5], u[4], u[7], u[6], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15],
    ];
    let s = Structure::new(1, 0x100)
        .string(MANUFACTURER)
        .string(cfg.product)
        .string(env!("CARGO_PKG_VERSION"))
        .u8(0)
        .raw(&uuid)
        .u8(6) // woken by the power switch
        .u8(0)
        .u8(0);
    all.add(s);
    let chassis = Structure::new(3, 0x300)
        .string(MANUFACTURER)
        .u8(1) // other
        .string(env!("CARGO_PKG_VERSION"))
        .u8(0)
        .u8(0)
        .raw(&[3, 3, 3, 2]) // boot-up, power and thermal state safe; security unknown
        .u32(0)
        .raw(&[0, 0, 0, 0]) // height, power cords, no elements
        .u8(0);
    all.add(chassis);
}

fn processor(all: &mut Structures, cfg: &Config) {
    const POPULATED_ENABLED: u8 = 0x41;
    let cores = cfg.apic_ids.len().min(255) as u8;
    let s = Structure::new(4, 0x400)
        .string("CPU 0")
        .u8(3) // central processor
        .u8(1) // family: other
        .string(&cfg.cpu.vendor)
        .u32(cfg.cpu.signature)
        .u32(cfg.cpu.features)
        .string(&cfg.cpu.name)
        .u8(0) // voltage
        .u16(0) // external clock
        .u16(cfg.cpu.mhz)
        .u16(cfg.cpu.mhz)
        .u8(POPULATED_ENABLED)
        .u8(1) // upgrade: other
        .u16(NO_HANDLE)
        .u16(NO_HANDLE)
        .u16(NO_HANDLE)
        .raw(&[0, 0, 0])
        .raw(&[cores, cores, cores])
        .u16(if cfg.cpu.long_mode { 1 << 2 } else { 1 << 1 }) // 64-bit capable, or unknown
        .u16(1);
    all.add(s);
}

fn memory(all: &mut Structures, below_4g: u64, above_4g: u64) {
    let total = below_4g.saturating_add(above_4g);
    // Modules of 16 GiB, or larger ones where that would be too many.
    let module = (16u64 << 30).max((total / 64).next_power_of_two());
    let count = total.div_ceil(module).max(1);
    let kib = total >> 10;
    let array = Structure::new(16, MEMORY_ARRAY)
        .raw(&[1, 3, 6]) // location other, system memory, multi-bit ECC
        .u32(if kib < 0x8000_0000 { kib as u32 } else { 0x8000_0000 })
        .u16(0xfffe)
        .u16(count as u16)
        .u64(if kib < 0x8000_0000 { 0 } else { total });
    all.add(array);
    for i in 0..count {
        let mib = (total - i * module).min(module) >> 20;
        let s = Structure::new(17, 0x1100 + i as u16)
            .u16(MEMORY_ARRAY)
            .u16(0xfffe)
            .u16(0xffff)
            .u16(0xffff) // widths unknown
            .u16(if mib < 0x7fff { mib as u16 } else { 0x7fff })
            .raw(&[9, 0]) // DIMM, no set
            .string(&format!("DIMM {i}"))
            .u8(0)
            .u8(7) // RAM
            .u16(1 << 1)
            .u16(0)
            .string(MANUFACTURER)
            .raw(&[0, 0, 0, 0])
            .u32(if mib < 0x7fff { 0 } else { mib as u32 })
            .raw(&[0; 8]); // clock and voltages unknown
        all.add(s);
    }
    let ranges = [(0, below_4g), (crate::mem::FOUR_GIB, above_4g)];
    for (i, (base, len)) in ranges.into_iter().filter(|&(_, len)| len > 0).enumerate() {
        let last = base + (len - 1);
        let fits = last >> 10 < u64::from(SEE_EXTENDED);
        let s = Structure::new(19, 0x1300 + i as u16)
            .u32(if fits { (base >> 10) as u32 } else { SEE_EXTENDED })
            .u32(if fits { (last >> 10) as u32 } else { SEE_EXTENDED })
            .u16(MEMORY_ARRAY)
            .u8(1)
            .u64(if fits { 0 } else { base })
            .u64(if fits { 0 } else { last });
        all.add(s);
    }
}
