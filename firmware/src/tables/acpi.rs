//! The fixed ACPI tables: RSDP, RSDT, XSDT, FADT, FACS, MADT, HPET, MCFG, WAET.
//!
//! The registers they describe are those of a PIIX4 power management function, with its I/O base where firmware has
//! put it (`Config::pm_base`), general purpose events at 0xAFE0 and the SMI command port at 0xB2, and of the reset
//! control register at 0xCF9; or those of an ICH9, which has its general purpose events behind the base.
//!
//! Source: ACPI 6.5 chapter 5.2; IA-PC HPET 1.0a 3.2.4; Windows ACPI Emulated Devices Table (WAET) 1.0.
//!
//! `acpi_tables` has the FADT, the FACS and some of the MADT's entries; its RSDP has no room for an RSDT, which ACPI
//! 1.0 reads, and its MADT neither flags nor interrupt source overrides.
use super::{Chipset, Config, HPET_BASE, IOAPIC_BASE, LAPIC_BASE, SCI_IRQ, SMI_CMD, dsdt};
use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags::*};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use mynah_devices::chipset::{acpi_ged, q35};
use mynah_devices::misc::vmgenid;

const OEM_ID: &[u8; 6] = b"MYNAH ";
const OEM_TABLE_ID: &[u8; 8] = b"MYNAHPC ";
const CREATOR_ID: &[u8; 4] = b"MYNA";

/// Tables with their addresses.
pub(super) struct Built {
    /// Root pointer, to be put into the BIOS area.
    pub rsdp: [u8; 36],
    /// All other tables but the FACS, to be put where `build` was told.
    pub tables: Vec<u8>,
    /// The FACS, to be put where `build` was told.
    pub facs: Vec<u8>,
    /// Offset in `tables`, and length, of each table.
    pub parts: Vec<(usize, usize)>,
    /// Offset in `tables`, and bytes, of each pointer.
    pub pointers: Vec<(usize, u8)>,
    /// Offset in `tables` of the place of the generation id, which is four bytes, if there is one.
    pub vmgenid: Option<usize>,
}

/// Makes the byte at `at` the one that brings the sum of `bytes` to zero.
pub(super) fn fix_checksum(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    let sum = bytes.iter().fold(0u8, |s, b| s.wrapping_add(*b));
    bytes[at] = sum.wrapping_neg();
}

fn bytes(part: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    part.to_aml_bytes(&mut bytes);
    bytes
}

/// A table: the 36-byte header of chapter 5.2.6, then `body`.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut t = Vec::with_capacity(36 + body.len());
    t.extend(signature);
    t.extend((36 + body.len() as u32).to_le_bytes());
    t.extend([revision, 0]);
    t.extend(OEM_ID);
    t.extend(OEM_TABLE_ID);
    t.extend(1u32.to_le_bytes());
    t.extend(CREATOR_ID);
    t.extend(1u32.to_le_bytes());
    t.extend(body);
    fix_checksum(&mut t, 9);
    t
}

/// Builds all tables. `place` is asked, once, where they go: it gets the length of all but the FACS and says
/// where they and the FACS start (below 4 GiB).
pub(super) fn build(
    cfg: &Config,
    below_4g: u64,
    place: impl FnOnce(u64) -> Option<(u64, u64)>,
) -> Option<Built> {
    let dsdt = table(b"DSDT", 2, &dsdt::definition_block(cfg, below_4g));
    let mut others = vec![madt(cfg)];
    if cfg.hpet {
        others.push(hpet());
    }
    if cfg.chipset == Chipset::Q35 {
        others.push(mcfg());
    }
    others.push(table(b"WAET", 1, &(1u32 << 1).to_le_bytes())); // bit 1: one read of the PM timer is enough

    // The FADT's length does not depend on addresses, so that all places are known before it is filled in.
    let fadt_len = fadt(cfg, 0, 0).len();
    let count = others.len() + 1;
    let lens = [dsdt.len(), fadt_len].into_iter().chain(others.iter().map(Vec::len));
    let mut offsets = Vec::new();
    let mut len = 0usize;
    for l in lens.chain([36 + 4 * count, 36 + 8 * count]) {
        offsets.push(len);
        len = (len + l).next_multiple_of(16);
    }
    let (base, facs_at) = place(len as u64)?;
    let address = |i: usize| base + offsets[i] as u64;

    let pointed: Vec<u64> = (1..=count).map(address).collect();
    let rsdt: Vec<u8> = pointed.iter().flat_map(|&p| (p as u32).to_le_bytes()).collect();
    let xsdt: Vec<u8> = pointed.iter().flat_map(|&p| p.to_le_bytes()).collect();
    let mut all = vec![dsdt, fadt(cfg, facs_at as u32, address(0))];
    all.extend(others);
    all.push(table(b"RSDT", 1, &rsdt));
    all.push(table(b"XSDT", 1, &xsdt));
    let mut tables = vec![0; len];
    for (t, &at) in all.iter().zip(&offsets) {
        tables[at..at + t.len()].copy_from_slice(t);
    }
    let rsdp = rsdp(address(count + 1) as u32, address(count + 2));
    let parts: Vec<_> = offsets.iter().copied().zip(all.iter().map(Vec::len)).collect();
    // FIRMWARE_CTRL, DSDT and X_DSDT of the FADT; then what RSDT and XSDT list. Hardware-reduced ACPI has no FACS.
    let in_fadt: &[_] = match cfg.chipset {
        Chipset::I440fx | Chipset::Q35 => &[(36, 4), (40, 4), (140, 8)],
        Chipset::Reduced { .. } => &[(40, 4), (140, 8)],
    };
    let mut pointers: Vec<_> = in_fadt.iter().map(|&(at, n)| (offsets[1] + at, n)).collect();
    for i in 0..count {
        pointers.push((offsets[count + 1] + 36 + 4 * i, 4));
        pointers.push((offsets[count + 2] + 36 + 8 * i, 8));
    }
    // The DSDT comes first.
    let name = tables.windows(vmgenid::PLACE.len()).position(|w| w == vmgenid::PLACE);
    let vmgenid = name.map(|at| at + vmgenid::PLACE.len() - 4);
    Some(Built { rsdp, tables, facs: facs(), parts, pointers, vmgenid })
}

/// 5.2.5.3. The first 20 bytes are ACPI 1.0's structure with a checksum of their own.
fn rsdp(rsdt: u32, xsdt: u64) -> [u8; 36] {
    let mut r = [0; 36];
    r[..8].copy_from_slice(b"RSD PTR ");
    r[9..15].copy_from_slice(OEM_ID);
    r[15] = 2;
    r[16..20].copy_from_slice(&rsdt.to_le_bytes());
    r[20..24].copy_from_slice(&36u32.to_le_bytes());
    r[24..32].copy_from_slice(&xsdt.to_le_bytes());
    fix_checksum(&mut r[..20], 8);
    fix_checksum(&mut r, 32);
    r
}

/// 5.2.10, version 1. No checksum; nothing is suspended yet.
fn facs() -> Vec<u8> {
    bytes(&FACS::new())
}

/// The register at a port, `bits` wide (5.2.3.2).
fn register(port: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into())
}

/// 5.2.9 in the form of revision 3, which has no more than `FADT_LEN` bytes of the library's.
fn fadt(cfg: &Config, facs: u32, dsdt: u64) -> Vec<u8> {
    const FADT_LEN: usize = 244;
    const INT_MODEL: usize = 44;
    const LEGACY_DEVICES: u16 = 1 << 0;
    const HAS_8042: u16 = 1 << 1;
    const NO_VGA: u16 = 1 << 2;

    if let Chipset::Reduced { ged, .. } = cfg.chipset {
        return reduced_fadt(cfg, dsdt, ged);
    }
    let mut f = FADTBuilder::new(*OEM_ID, *OEM_TABLE_ID, 1);
    let (pm1_evt, pm1_cnt, pm_tmr) = (cfg.pm_base, cfg.pm_base + 4, cfg.pm_base + 8);
    f.firmware_ctrl = facs.into();
    f.dsdt = (dsdt as u32).into();
    f.x_dsdt = dsdt.into();
    f.sci_int = u16::from(SCI_IRQ).into();
    f.smi_cmd = u32::from(SMI_CMD).into();
    (f.acpi_enable, f.acpi_disable) = cfg.chipset.acpi_commands();
    let (gpe0, gpe0_len) = cfg.chipset.gpe0(cfg.pm_base);
    f.pm1a_evt_blk = u32::from(pm1_evt).into();
    f.pm1a_cnt_blk = u32::from(pm1_cnt).into();
    f.pm_tmr_blk = u32::from(pm_tmr).into();
    f.gpe0_blk = u32::from(gpe0).into();
    (f.pm1_evt_len, f.pm1_cnt_len, f.pm_tmr_len, f.gpe0_blk_len) = (4, 2, 4, gpe0_len);
    // Neither C2 nor C3.
    (f.p_lvl2_lat, f.p_lvl3_lat) = (0x0fff.into(), 0x0fff.into());
    f.century = 0x32; // in CMOS
    let vga = if cfg.vga { 0 } else { NO_VGA };
    let kbd = if cfg.i8042 { HAS_8042 } else { 0 };
    f.iapc_boot_arch = (LEGACY_DEVICES | kbd | vga).into();
    // There is no sleep button; PwrButton clear means a fixed power button.
    for flag in [Wbinvd, ProcC1, SlpButton, RtcS4, ResetRegSup, UsePlatformClock] {
        f = f.flag(flag);
    }
    if cfg.pm_timer_32bit {
        f = f.flag(TmrValExt);
    }
    f.reset_reg = register(super::RESET_PORT, 8, AccessSize::ByteAccess);
    f.reset_value = super::RESET_VALUE;
    f.fadt_minor_version = 0;
    f.x_pm1a_evt_blk = register(pm1_evt, 32, AccessSize::WordAccess);
    f.x_pm1a_cnt_blk = register(pm1_cnt, 16, AccessSize::WordAccess);
    f.x_pm_tmr_blk = register(pm_tmr, 32, AccessSize::DwordAccess);
    f.x_gpe0_blk = register(gpe0, 8 * gpe0_len, AccessSize::ByteAccess);
    let mut all = bytes(&f.finalize());
    all[INT_MODEL] = 1; // ACPI 1.0's field, for which the library has no name: an APIC system
    table(b"FACP", 3, &all[36..FADT_LEN])
}

/// The FADT of hardware-reduced ACPI (4.1): power off and reset by memory-mapped registers, and the PM timer.
fn reduced_fadt(cfg: &Config, dsdt: u64, ged: u32) -> Vec<u8> {
    const LEGACY_DEVICES: u16 = 1 << 0;
    const NO_VGA: u16 = 1 << 2;
    let register = |offset: u64| {
        let address = u64::from(ged) + offset;
        GAS::new(AddressSpace::SystemMemory, 8, 0, AccessSize::ByteAccess, address)
    };
    let mut f = FADTBuilder::new(*OEM_ID, *OEM_TABLE_ID, 1);
    f.dsdt = (dsdt as u32).into();
    f.x_dsdt = dsdt.into();
    f.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA).into();
    for flag in [Wbinvd, ProcC1, ResetRegSup, HwReducedAcpi] {
        f = f.flag(flag);
    }
    f.reset_reg = register(acpi_ged::RESET);
    f.reset_value = acpi_ged::RESET_VALUE;
    f.sleep_control_reg = register(acpi_ged::SLEEP_CONTROL);
    f.sleep_status_reg = register(acpi_ged::SLEEP_STATUS);
    // A clock that needs no interrupt: what a kernel measures its processor by.
    let timer = cfg.pm_base + 8;
    (f.pm_tmr_blk, f.pm_tmr_len) = (u32::from(timer).into(), 4);
    f.x_pm_tmr_blk = self::register(timer, 32, AccessSize::DwordAccess);
    table(b"FACP", 6, &bytes(&f.finalize())[36..])
}

/// 5.2.12. Processors first, the boot processor before all others; then the IOAPIC and how ISA interrupts
/// differ from the default.
fn madt(cfg: &Config) -> Vec<u8> {
    const ALL: u32 = u32::MAX;
    let mut m = Vec::new();
    m.extend(LAPIC_BASE.to_le_bytes());
    m.extend(u32::from(cfg.pic).to_le_bytes()); // PCAT_COMPAT: there are 8259s
    for (uid, &id) in cfg.apic_ids.iter().enumerate() {
        let uid = uid as u32;
        if id < 255 && uid < 255 {
            ProcessorLocalApic::new(uid as u8, id as u8, EnabledStatus::Enabled).to_aml_bytes(&mut m);
        } else {
            m.extend([9, 16, 0, 0]);
            m.extend([id, EnabledStatus::Enabled as u32, uid].map(u32::to_le_bytes).as_flattened());
        }
    }
    IoApic::new(super::IOAPIC_ID, IOAPIC_BASE, 0).to_aml_bytes(&mut m);
    if cfg.second_ioapic {
        let (id, base) = (super::SECOND_IOAPIC_ID, super::SECOND_IOAPIC_BASE);
        IoApic::new(id, base, super::SECOND_IOAPIC_GSI).to_aml_bytes(&mut m);
    }
    // Interrupt source overrides: bus 0, ISA IRQ, GSI, flags.
    let mut source_override = |irq: u8, gsi: u32, flags: u16| {
        m.extend([2, 10, 0, irq]);
        m.extend(gsi.to_le_bytes());
        m.extend(flags.to_le_bytes());
    };
    if cfg.irq0_override {
        source_override(0, 2, 0);
    }
    const LEVEL_HIGH: u16 = 0x0d;
    if cfg.chipset.has_pci() {
        for irq in super::LEVEL_IRQS {
            source_override(irq, irq.into(), LEVEL_HIGH);
        }
    }
    m.extend([4, 6, 0xff, 0, 0, 1]); // NMI on LINT1 of every local APIC
    if cfg.apic_ids.iter().any(|&id| id >= 255) || cfg.apic_ids.len() > 255 {
        m.extend([0x0a, 12, 0, 0]);
        m.extend(ALL.to_le_bytes());
        m.extend([1, 0, 0, 0]);
    }
    table(b"APIC", 3, &m)
}

/// IA-PC HPET 3.2.4: the hardware id is the low half of the capabilities register (three comparators, 64-bit
/// counter, legacy routing).
fn hpet() -> Vec<u8> {
    let mut h = Vec::new();
    h.extend(super::HPET_ID.to_le_bytes());
    h.extend([0, 64, 0, 0]); // memory space
    h.extend(u64::from(HPET_BASE).to_le_bytes());
    h.extend([0, 0, 0, 0]); // number 0, minimum tick 0, no page protection
    table(b"HPET", 1, &h)
}

/// PCI Firmware Specification 3.0, 4.1.2: configuration space of segment 0, buses 0 to 255, in memory.
fn mcfg() -> Vec<u8> {
    let mut m = vec![0; 8];
    m.extend(q35::ECAM_BASE.to_le_bytes());
    m.extend([0, 0, 0, 255, 0, 0, 0, 0]);
    table(b"MCFG", 1, &m)
}
