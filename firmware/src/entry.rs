//! The state a boot processor must be in when it enters a kernel.
//!
//! Plain values, to be put into the CPU by the machine; registers that are not named here are as after RESET.
//! Segment attributes have the layout of VMX access rights (SDM volume 3C, 25.4.1), which is bits 40-55 of a
//! descriptor: type 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13, D/B 14, G 15.
use crate::error::Reason;
use crate::mem::GuestMemory;
use crate::place::Places;

/// CR0.PE.
pub const CR0_PE: u64 = 1;
/// CR0.ET, which is always set.
pub const CR0_ET: u64 = 1 << 4;
/// CR0.PG.
pub const CR0_PG: u64 = 1 << 31;
/// CR4.PAE.
pub const CR4_PAE: u64 = 1 << 5;
/// EFER.LME.
pub const EFER_LME: u64 = 1 << 8;
/// EFER.LMA.
pub const EFER_LMA: u64 = 1 << 10;

/// Numbers of general registers in `Entry::gpr`, in the SDM's order of encoding.
pub mod reg {
    #![allow(missing_docs)]
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// The mode in which the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuMode {
    /// Real-address mode.
    Real,
    /// Protected mode, flat 32-bit segments, no paging.
    Protected32,
    /// 64-bit mode, with page tables that map the first 4 GiB to themselves.
    Long64,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The selector.
    pub selector: u16,
    /// Linear address of the segment.
    pub base: u64,
    /// Highest offset, in bytes.
    pub limit: u32,
    /// Access rights (see the module's head).
    pub attributes: u16,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Linear address.
    pub base: u64,
    /// Highest offset.
    pub limit: u16,
}

/// All that a boot protocol says about the processor. A20 is open in every mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What the control registers below amount to.
    pub mode: CpuMode,
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS; interrupts are off.
    pub rflags: u64,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8-R15.
    pub gpr: [u64; 16],
    /// CS.
    pub cs: Segment,
    /// DS, ES, FS, GS.
    pub ds_es_fs_gs: Segment,
    /// SS.
    pub ss: Segment,
    /// TR: a busy 32-bit TSS at 0, as after RESET.
    pub tr: Segment,
    /// LDTR: an empty LDT, as after RESET.
    pub ldtr: Segment,
    /// GDTR.
    pub gdt: DescriptorTable,
    /// IDTR; empty but in real mode.
    pub idt: DescriptorTable,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
}

/// Selector of Linux's flat code segment (`__BOOT_CS` of its boot protocol).
pub const BOOT_CS: u16 = 0x10;
/// Selector of Linux's flat data segment (`__BOOT_DS`).
pub const BOOT_DS: u16 = 0x18;
/// Selector of a Multiboot or PVH kernel's flat code segment. Their specifications leave it open; it is what QEMU has,
/// and kernels that load no GDT of their own before they load a segment register (xv6) rely on.
pub const FLAT_CS: u16 = 0x08;
/// Selector of a Multiboot or PVH kernel's flat data segment.
pub const FLAT_DS: u16 = 0x10;

const CODE32: u16 = 0xc09b;
const CODE64: u16 = 0xa09b;
const DATA: u16 = 0xc093;
const REAL_CODE: u16 = 0x009b;
const REAL_DATA: u16 = 0x0093;

/// The flat 4 GiB descriptor with these attributes (SDM volume 3A, 3.4.5).
const fn flat_descriptor(attributes: u16) -> u64 {
    0x000f_0000_0000_ffff | (attributes as u64) << 40
}

/// The 64 KiB descriptor at 0 with these attributes.
const fn real_descriptor(attributes: u16) -> u64 {
    0xffff | (attributes as u64) << 40
}

/// The GDT of a Linux kernel.
const fn linux_gdt(code: u16) -> [u64; 4] {
    [0, 0, flat_descriptor(code), flat_descriptor(DATA)]
}

/// The GDT of other kernels: flat code and data, and what leads back to real mode.
pub(crate) const FLAT_GDT: [u64; 5] = [
    0,
    flat_descriptor(CODE32),
    flat_descriptor(DATA),
    real_descriptor(REAL_CODE),
    real_descriptor(REAL_DATA),
];

const fn flat(selector: u16, attributes: u16) -> Segment {
    Segment { selector, base: 0, limit: u32::MAX, attributes }
}

impl Entry {
    fn flat(mode: CpuMode, code: Segment, data: Segment, gdt: DescriptorTable, rip: u64) -> Entry {
        Entry {
            mode,
            rip,
            rflags: 2,
            gpr: [0; 16],
            cs: code,
            ds_es_fs_gs: data,
            ss: data,
            tr: Segment { selector: 0, base: 0, limit: 0xffff, attributes: 0x008b },
            ldtr: Segment { selector: 0, base: 0, limit: 0xffff, attributes: 0x0082 },
            gdt,
            idt: DescriptorTable::default(),
            cr0: CR0_PE | CR0_ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
        }
    }

    /// Flat 32-bit protected mode at `rip` as Linux wants it, with a GDT written to conventional memory.
    pub(crate) fn linux32(mem: &dyn GuestMemory, places: &mut Places, rip: u32) -> Result<Entry, Reason> {
        let gdt = write_gdt(mem, places, &linux_gdt(CODE32))?;
        let (code, data) = (flat(BOOT_CS, CODE32), flat(BOOT_DS, DATA));
        Ok(Entry::flat(CpuMode::Protected32, code, data, gdt, rip.into()))
    }

    /// Flat 32-bit protected mode at `rip` for kernels that have no say in selectors, with a GDT written to
    /// conventional memory.
    pub(crate) fn flat32(mem: &dyn GuestMemory, places: &mut Places, rip: u32) -> Result<Entry, Reason> {
        let gdt = write_gdt(mem, places, &FLAT_GDT)?;
        Ok(Entry::woken32(gdt, rip))
    }

    /// The same, with a GDT that is there.
    pub(crate) fn woken32(gdt: DescriptorTable, rip: u32) -> Entry {
        let (code, data) = (flat(FLAT_CS, CODE32), flat(FLAT_DS, DATA));
        let mut e = Entry::flat(CpuMode::Protected32, code, data, gdt, rip.into());
        // Real mode's, as a loader that has come from there leaves it.
        e.idt = REAL_IDT;
        e
    }

    /// 64-bit mode at `rip`, with a GDT and identity page tables for the first 4 GiB in conventional memory.
    pub(crate) fn long64(mem: &dyn GuestMemory, places: &mut Places, rip: u64) -> Result<Entry, Reason> {
        let gdt = write_gdt(mem, places, &linux_gdt(CODE64))?;
        let cr3 = write_identity_map(mem, places)?;
        let (code, data) = (flat(BOOT_CS, CODE64), flat(BOOT_DS, DATA));
        let mut e = Entry::flat(CpuMode::Long64, code, data, gdt, rip);
        (e.cr0, e.cr3, e.cr4) = (CR0_PE | CR0_ET | CR0_PG, cr3, CR4_PAE);
        e.efer = EFER_LME | EFER_LMA;
        Ok(e)
    }

    /// Real mode at `cs:ip`, all data segments being `ds`.
    pub(crate) fn real(cs: u16, ip: u16, ds: u16, sp: u16) -> Entry {
        let segment = |selector: u16, attributes| Segment {
            selector,
            base: u64::from(selector) << 4,
            limit: 0xffff,
            attributes,
        };
        let gdt = DescriptorTable { base: 0, limit: 0xffff };
        let (code, data) = (segment(cs, REAL_CODE), segment(ds, REAL_DATA));
        let mut e = Entry::flat(CpuMode::Real, code, data, gdt, ip.into());
        e.gpr[reg::RSP] = sp.into();
        e.cr0 = CR0_ET;
        e.idt = REAL_IDT;
        e
    }
}

/// The interrupt vectors of real mode.
const REAL_IDT: DescriptorTable = DescriptorTable { base: 0, limit: 0x3ff };

fn write_gdt(mem: &dyn GuestMemory, places: &mut Places, table: &[u64]) -> Result<DescriptorTable, Reason> {
    let bytes: Vec<u8> = table.iter().flat_map(|d| d.to_le_bytes()).collect();
    let base = places.low("the boot GDT", bytes.len() as u64, 16)?;
    mem.write(base, &bytes);
    Ok(DescriptorTable { base, limit: bytes.len() as u16 - 1 })
}

/// 4-level tables that map 0-4 GiB to itself with 2 MiB pages: PML4, PDPT and four page directories.
fn write_identity_map(mem: &dyn GuestMemory, places: &mut Places) -> Result<u64, Reason> {
    const PRESENT_RW: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let pml4 = places.low("the boot page tables", 6 * 0x1000, 0x1000)?;
    let (pdpt, pds) = (pml4 + 0x1000, pml4 + 0x2000);
    mem.zero(pml4, 2 * 0x1000);
    mem.write(pml4, &(pdpt | PRESENT_RW).to_le_bytes());
    for i in 0..4 {
        mem.write(pdpt + i * 8, &((pds + i * 0x1000) | PRESENT_RW).to_le_bytes());
    }
    let pages: Vec<u8> = (0..4 * 512u64).flat_map(|i| (i << 21 | LARGE | PRESENT_RW).to_le_bytes()).collect();
    mem.write(pds, &pages);
    Ok(pml4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::SparseMemory;
    use crate::testing::{read_u64, small_tables};

    #[test]
    fn descriptors_in_memory_agree_with_the_hidden_parts() {
        let mem = SparseMemory::new(64 << 20, 0);
        let mut places = Places::new(&small_tables(&mem).e820);
        let linux64 = Entry::long64(&mem, &mut places, 0x10_0200).unwrap();
        let linux32 = Entry::linux32(&mem, &mut places, 0x10_0000).unwrap();
        let other = Entry::flat32(&mem, &mut places, 0x10_0000).unwrap();
        assert_eq!((linux64.cs.selector, linux64.ss.selector), (0x10, 0x18));
        assert_eq!((linux32.cs.selector, linux32.ss.selector), (0x10, 0x18));
        assert_eq!((other.cs.selector, other.ss.selector, other.gdt.limit), (0x08, 0x10, 0x27));
        for e in [linux64, linux32, other] {
            for s in [e.cs, e.ss, e.ds_es_fs_gs] {
                let d = read_u64(&mem, e.gdt.base + u64::from(s.selector));
                assert_eq!((d >> 40) as u16 & 0xf0ff, s.attributes, "attributes of {:#x}", s.selector);
                assert_eq!(d & 0xffff, 0xffff);
                assert_eq!(d >> 48 & 0xf, 0xf, "limit 19:16");
                assert_eq!((d >> 16) & 0xff_ffff, 0, "base 23:0");
            }
        }
    }

    #[test]
    fn the_first_four_gib_are_mapped_to_themselves() {
        let mem = SparseMemory::new(64 << 20, 0);
        let mut places = Places::new(&small_tables(&mem).e820);
        let e = Entry::long64(&mem, &mut places, 0x10_0200).unwrap();
        for lin in [0u64, 0x10_0200, 0x3fff_ffff, 0x4000_0000, 0xffff_ffff] {
            let pml4e = read_u64(&mem, e.cr3 + (lin >> 39 & 511) * 8);
            let pdpte = read_u64(&mem, (pml4e & !0xfff) + (lin >> 30 & 511) * 8);
            let pde = read_u64(&mem, (pdpte & !0xfff) + (lin >> 21 & 511) * 8);
            assert_eq!((pml4e & 0x83, pdpte & 0x83, pde & 0x83), (3, 3, 0x83));
            assert_eq!((pde & !0x1f_ffff) | (lin & 0x1f_ffff), lin);
        }
    }
}
