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

/// Selector of the flat code segment (Linux calls it `__BOOT_CS`).
pub const BOOT_CS: u16 = 0x10;
/// Selector of the flat data segment (`__BOOT_DS`).
pub const BOOT_DS: u16 = 0x18;

const CODE32: u16 = 0xc09b;
const CODE64: u16 = 0xa09b;
const DATA: u16 = 0xc093;
const REAL_CODE: u16 = 0x009b;
const REAL_DATA: u16 = 0x0093;

/// The flat 4 GiB descriptor with these attributes (SDM volume 3A, 3.4.5).
const fn flat_descriptor(attributes: u16) -> u64 {
    0x000f_0000_0000_ffff | (attributes as u64) << 40
}

const fn flat(selector: u16, attributes: u16) -> Segment {
    Segment { selector, base: 0, limit: u32::MAX, attributes }
}

impl Entry {
    fn flat(mode: CpuMode, code: u16, gdt: u64, rip: u64) -> Entry {
        Entry {
            mode,
            rip,
            rflags: 2,
            gpr: [0; 16],
            cs: flat(BOOT_CS, code),
            ds_es_fs_gs: flat(BOOT_DS, DATA),
            ss: flat(BOOT_DS, DATA),
            tr: Segment { selector: 0, base: 0, limit: 0xffff, attributes: 0x008b },
            ldtr: Segment { selector: 0, base: 0, limit: 0xffff, attributes: 0x0082 },
            gdt: DescriptorTable { base: gdt, limit: 4 * 8 - 1 },
            idt: DescriptorTable::default(),
            cr0: CR0_PE | CR0_ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
        }
    }

    /// Flat 32-bit protected mode at `rip`, with a GDT written to conventional memory.
    pub(crate) fn protected32(mem: &dyn GuestMemory, places: &mut Places, rip: u32) -> Result<Entry, Reason> {
        let gdt = write_gdt(mem, places, CODE32)?;
        Ok(Entry::flat(CpuMode::Protected32, CODE32, gdt, rip.into()))
    }

    /// 64-bit mode at `rip`, with a GDT and identity page tables for the first 4 GiB in conventional memory.
    pub(crate) fn long64(mem: &dyn GuestMemory, places: &mut Places, rip: u64) -> Result<Entry, Reason> {
        let gdt = write_gdt(mem, places, CODE64)?;
        let cr3 = write_identity_map(mem, places)?;
        let mut e = Entry::flat(CpuMode::Long64, CODE64, gdt, rip);
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
        let mut e = Entry::flat(CpuMode::Real, REAL_CODE, 0, ip.into());
        e.cs = segment(cs, REAL_CODE);
        e.ds_es_fs_gs = segment(ds, REAL_DATA);
        e.ss = segment(ds, REAL_DATA);
        e.gpr[reg::RSP] = sp.into();
        e.cr0 = CR0_ET;
        e.gdt = DescriptorTable { base: 0, limit: 0xffff };
        e.idt = DescriptorTable { base: 0, limit: 0x3ff };
        e
    }
}

fn write_gdt(mem: &dyn GuestMemory, places: &mut Places, code: u16) -> Result<u64, Reason> {
    let gdt = places.low("the boot GDT", 4 * 8, 16)?;
    let table = [0, 0, flat_descriptor(code), flat_descriptor(DATA)];
    mem.write(gdt, table.map(u64::to_le_bytes).as_flattened());
    Ok(gdt)
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
        let e = Entry::long64(&mem, &mut places, 0x10_0200).unwrap();
        for s in [e.cs, e.ss] {
            let d = read_u64(&mem, e.gdt.base + u64::from(s.selector));
            assert_eq!((d >> 40) as u16 & 0xf0ff, s.attributes, "attributes of {:#x}", s.selector);
            assert_eq!(d & 0xffff, 0xffff);
            assert_eq!(d >> 48 & 0xf, 0xf, "limit 19:16");
            assert_eq!((d >> 16) & 0xff_ffff, 0, "base 23:0");
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
