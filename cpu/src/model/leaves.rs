//! The CPUID leaves of a model.
//!
//! Sources: Intel SDM volume 2A, CPUID; AMD APM volume 3 (24594), appendix E. Leaf 4000_0000h is what hypervisors
//! agree on.
use super::{CpuModel, Feature as F, Vendor, Word};

/// What CPUID takes from the vCPU that executes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// (x2)APIC id.
    pub apic_id: u32,
    /// IA32_APIC_BASE.EN: the APIC feature bit follows it.
    pub apic_enabled: bool,
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// CR4.PKE.
    pub pke: bool,
    /// EFER.LMA and CS.L: Intel shows SYSCALL only then.
    pub long64: bool,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_XSS.
    pub xss: u64,
}

/// A component of the XSAVE area behind the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XComponent {
    /// Bit in XCR0.
    pub bit: u32,
    /// Bytes.
    pub size: u32,
    /// Offset in the standard format.
    pub offset: u32,
}

/// The components behind the legacy area that exist, by rising bit number. None of them wants 64-byte alignment in the
/// compacted format.
pub const COMPONENTS: &[XComponent] =
    &[XComponent { bit: 2, size: 256, offset: 576 }, XComponent { bit: 9, size: 8, offset: 0xa80 }];

/// Bytes of the legacy area and the header.
pub const XSAVE_HEADER_END: u32 = 576;

impl CpuModel {
    /// The bits that XCR0 may have.
    pub fn xcr0_mask(&self) -> u64 {
        if !self.has(F::XSAVE) {
            return 0;
        }
        let avx = if self.has(F::AVX) { 1 << 2 } else { 0 };
        let pku = if self.has(F::PKU) { 1 << 9 } else { 0 };
        3 | avx | pku
    }

    /// The bits that IA32_XSS may have.
    pub fn xss_mask(&self) -> u64 {
        0
    }

    /// CPUID with `leaf` in EAX and `sub` in ECX: EAX, EBX, ECX, EDX.
    pub fn cpuid(&self, d: &Dynamic, leaf: u32, sub: u32) -> [u32; 4] {
        let word = |w: Word| self.words[w as usize];
        let leaf = match leaf {
            0x4000_0000..=0x4000_ffff if self.has(F::HYPERVISOR) => leaf,
            0x8000_0000..=0x8000_ffff if leaf <= self.xlevel => leaf,
            _ if leaf <= self.level => leaf,
            // Beyond the levels Intel's processors answer with the highest basic leaf, AMD's with zeros.
            _ if self.vendor == Vendor::Amd => return [0; 4],
            _ => self.level,
        };
        match leaf {
            0 => {
                let v = text(self.vendor.id());
                [self.level, v[0], v[2], v[1]]
            }
            1 => {
                let mut c = word(Word::L1Ecx);
                let mut e = word(Word::L1Edx);
                if d.osxsave && self.has(F::XSAVE) {
                    c |= 1 << 27;
                }
                if !d.apic_enabled {
                    e &= !F::APIC.mask();
                }
                let logical = self.logical_processors().next_power_of_two().min(255);
                let count = if self.has(F::HT) { logical << 16 } else { 0 };
                let line = if self.has(F::CLFLUSH) { 8 << 8 } else { 0 };
                [self.signature(), d.apic_id << 24 | count | line, c, e]
            }
            // Cache descriptors: 2 MiB 8-way L2, 32 KiB L1 instruction and data caches.
            2 if self.vendor == Vendor::Intel => [0x01, 0, 0x4d, 0x002c_307d],
            4 if self.vendor == Vendor::Intel => self.deterministic_cache(sub),
            5 => [0, 0, 3, 0],
            6 => [word(Word::L6Eax), 0, 0, 0],
            7 if sub == 0 => {
                let ospke = u32::from(d.pke && self.has(F::PKU)) << 4;
                [0, word(Word::L7Ebx), word(Word::L7Ecx) | ospke, word(Word::L7Edx)]
            }
            0xb => self.topology(d, sub),
            0x1f if self.dies > 1 => self.topology_with_dies(d, sub),
            0xd if self.has(F::XSAVE) => self.xsave_leaf(d, sub),
            0x4000_0000 => {
                let v = text(b"MynahMynahMy");
                [0x4000_0001, v[0], v[1], v[2]]
            }
            0x8000_0000 => {
                let v = text(self.vendor.id());
                [self.xlevel, v[0], v[2], v[1]]
            }
            0x8000_0001 => {
                let mut e = word(Word::X1Edx);
                if self.vendor == Vendor::Amd {
                    // AMD repeats the bits that both vendors have at the same places.
                    e |= word(Word::L1Edx) & 0x0183_f3ff;
                    if !d.apic_enabled {
                        e &= !F::APIC.mask();
                    }
                } else if !d.long64 {
                    e &= !F::SYSCALL.mask();
                }
                [self.signature(), 0, word(Word::X1Ecx), e]
            }
            0x8000_0002..=0x8000_0004 => {
                let mut b = [0; 48];
                let n = self.brand.len().min(48);
                b[..n].copy_from_slice(&self.brand.as_bytes()[..n]);
                let at = (leaf - 0x8000_0002) as usize * 16;
                let r =
                    |i: usize| u32::from_le_bytes([b[at + i], b[at + i + 1], b[at + i + 2], b[at + i + 3]]);
                [r(0), r(4), r(8), r(12)]
            }
            // L1: 64 KiB data and instruction caches, 2-way; L2: 512 KiB 16-way; L3: 16 MiB. TLB figures as QEMU's.
            0x8000_0005 if self.vendor == Vendor::Amd => [0x01ff_01ff, 0x01ff_01ff, 0x4002_0140, 0x4002_0140],
            0x8000_0006 if self.vendor == Vendor::Amd => [0, 0x4200_4200, 0x0200_8140, 0x0080_8140],
            0x8000_0006 => [0, 0, 0x0200_8140, 0],
            0x8000_0007 => [0, 0, 0, word(Word::X7Edx)],
            0x8000_0008 => {
                let bits = u32::from(self.phys_bits()) | u32::from(self.linear_bits()) << 8;
                // ApicIdCoreIdSize: how many bits of the APIC id number what is in a package.
                let [_, _, package] = self.id_fields();
                let count = if self.has(F::HT) { (self.logical_processors() - 1) | package << 12 } else { 0 };
                [bits, word(Word::X8Ebx), count, 0]
            }
            0x8000_001d if self.has(F::TOPOEXT) => self.cache_properties(sub),
            0x8000_001e if self.has(F::TOPOEXT) => {
                [d.apic_id, ((self.threads - 1) << 8) | d.apic_id >> self.id_fields()[0], 0, 0]
            }
            _ => [0; 4],
        }
    }

    /// Leaf 4 of Intel's models.
    fn deterministic_cache(&self, sub: u32) -> [u32; 4] {
        let shared = (self.logical_processors().next_power_of_two() - 1) << 26 & 0xfc00_0000;
        let threads = (self.threads.next_power_of_two() - 1) << 14;
        match sub {
            0 => [0x121 | shared | threads, 0x01c0_003f, 0x3f, 1],
            1 => [0x122 | shared | threads, 0x01c0_003f, 0x3f, 1],
            2 => [0x143 | shared | threads, 0x03c0_003f, 0xfff, 1],
            3 => [0x163 | shared | shared >> 12 & 0x03ff_c000, 0x03c0_003f, 0x3fff, 6],
            _ => [0; 4],
        }
    }

    /// Leaf 8000_001Dh of AMD's models with TOPOEXT: the same caches as leaves 8000_0005h and 8000_0006h tell of.
    fn cache_properties(&self, sub: u32) -> [u32; 4] {
        let sharing = (self.threads - 1) << 14;
        let all = (self.logical_processors() - 1) << 14;
        match sub {
            0 => [0x121 | sharing, 0x0040_003f, 511, 1],
            1 => [0x122 | sharing, 0x0040_003f, 511, 1],
            2 => [0x143 | sharing, 0x03c0_003f, 511, 0],
            3 => [0x163 | all, 0x03c0_003f, 0x3fff, 6],
            _ => [0; 4],
        }
    }

    /// Leaf 0Bh: threads and cores.
    fn topology(&self, d: &Dynamic, sub: u32) -> [u32; 4] {
        let [core, _, package] = self.id_fields();
        match sub {
            0 => [core, self.threads, 0x100, d.apic_id],
            1 => [package, self.logical_processors(), 0x201, d.apic_id],
            _ => [0, 0, sub & 0xff, d.apic_id],
        }
    }

    /// Leaf 1Fh: threads, cores and dies.
    fn topology_with_dies(&self, d: &Dynamic, sub: u32) -> [u32; 4] {
        let [core, die, package] = self.id_fields();
        match sub {
            0 => [core, self.threads, 0x100, d.apic_id],
            1 => [die, self.cores * self.threads, 0x201, d.apic_id],
            2 => [package, self.logical_processors(), 0x502, d.apic_id],
            _ => [0, 0, sub & 0xff, d.apic_id],
        }
    }

    /// Leaf 0Dh: sizes and offsets of the XSAVE area.
    fn xsave_leaf(&self, d: &Dynamic, sub: u32) -> [u32; 4] {
        let mask = self.xcr0_mask();
        match sub {
            0 => [mask as u32, standard_size(d.xcr0), standard_size(mask), (mask >> 32) as u32],
            1 => {
                let bits = self.words[Word::D1Eax as usize];
                let compact = bits & (F::XSAVEC.mask() | F::XSAVES.mask()) != 0;
                let size = if compact { compacted_size(d.xcr0 | d.xss) } else { 0 };
                let xss = self.xss_mask();
                [bits, size, xss as u32, (xss >> 32) as u32]
            }
            2..=62 if mask >> sub & 1 != 0 => match COMPONENTS.iter().find(|c| c.bit == sub) {
                Some(c) => [c.size, c.offset, 0, 0],
                None => [0; 4],
            },
            _ => [0; 4],
        }
    }
}

/// Bytes of a standard-format XSAVE area with these components.
pub fn standard_size(mask: u64) -> u32 {
    let on = |c: &&XComponent| mask >> c.bit & 1 != 0;
    COMPONENTS.iter().filter(on).map(|c| c.offset + c.size).fold(XSAVE_HEADER_END, u32::max)
}

/// Bytes of a compacted XSAVE area with these components.
pub fn compacted_size(mask: u64) -> u32 {
    XSAVE_HEADER_END + COMPONENTS.iter().filter(|c| mask >> c.bit & 1 != 0).map(|c| c.size).sum::<u32>()
}

/// Twelve characters as three registers.
fn text(s: &[u8; 12]) -> [u32; 3] {
    let r = |i: usize| u32::from_le_bytes([s[i], s[i + 1], s[i + 2], s[i + 3]]);
    [r(0), r(4), r(8)]
}
