//! The fixed ACPI tables: RSDP, RSDT, XSDT, FADT, FACS, MADT, HPET, WAET.
//!
//! The registers they describe are those of a PIIX4 power management function, with its I/O base where firmware has
//! put it (`Config::pm_base`), general purpose events at 0xAFE0 and the SMI command port at 0xB2, and of the reset
//! control register at 0xCF9.
//!
//! Source: ACPI 6.5 chapter 5.2; IA-PC HPET 1.0a 3.2.4; Windows ACPI Emulated Devices Table (WAET) 1.0.
use super::{Config, GPE0_BASE, HPET_BASE, IOAPIC_BASE, LAPIC_BASE, SCI_IRQ, SMI_CMD, dsdt};

const OEM_ID: &[u8; 6] = b"MYNAH ";
const OEM_TABLE_ID: &[u8; 8] = b"MYNAHPC ";
const CREATOR_ID: &[u8; 4] = b"MYNA";

/// Length of the FACS, which must be 64-byte aligned.
const FACS_LEN: usize = 64;

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
}

/// Makes the byte at `at` the one that brings the sum of `bytes` to zero.
pub(super) fn fix_checksum(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    let sum = bytes.iter().fold(0u8, |s, b| s.wrapping_add(*b));
    bytes[at] = sum.wrapping_neg();
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
    // FIRMWARE_CTRL, DSDT and X_DSDT of the FADT; then what RSDT and XSDT list.
    let mut pointers: Vec<_> = [(36, 4), (40, 4), (140, 8)].map(|(at, n)| (offsets[1] + at, n)).to_vec();
    for i in 0..count {
        pointers.push((offsets[count + 1] + 36 + 4 * i, 4));
        pointers.push((offsets[count + 2] + 36 + 8 * i, 8));
    }
    Some(Built { rsdp, tables, facs: facs(), parts, pointers })
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
    let mut f = vec![0; FACS_LEN];
    f[..4].copy_from_slice(b"FACS");
    f[4..8].copy_from_slice(&(FACS_LEN as u32).to_le_bytes());
    f[32] = 1;
    f
}

/// A generic address structure of an I/O port (5.2.3.2): space 1, width in bits, offset 0, access size (1
/// byte, 2 word, 3 dword).
fn gas_io(port: u16, bits: u8, access: u8) -> [u8; 12] {
    let mut g = [0; 12];
    (g[0], g[1], g[3]) = (1, bits, access);
    g[4..6].copy_from_slice(&port.to_le_bytes());
    g
}

/// 5.2.9, revision 3 (244 bytes). Offsets are those of the table, header included.
fn fadt(cfg: &Config, facs: u32, dsdt: u64) -> Vec<u8> {
    const WBINVD: u32 = 1 << 0;
    const PROC_C1: u32 = 1 << 2;
    const SLP_BUTTON: u32 = 1 << 5; // there is none; PWR_BUTTON clear means a fixed power button
    const RTC_S4: u32 = 1 << 7;
    const TMR_VAL_EXT: u32 = 1 << 8;
    const RESET_REG_SUP: u32 = 1 << 10;
    const USE_PLATFORM_CLOCK: u32 = 1 << 15;
    const LEGACY_DEVICES: u16 = 1 << 0;
    const HAS_8042: u16 = 1 << 1;
    const NO_VGA: u16 = 1 << 2;

    let mut body = vec![0u8; 244 - 36];
    let mut put = |at: usize, bytes: &[u8]| body[at - 36..at - 36 + bytes.len()].copy_from_slice(bytes);
    let (pm1_evt, pm1_cnt, pm_tmr) = (cfg.pm_base, cfg.pm_base + 4, cfg.pm_base + 8);
    put(36, &facs.to_le_bytes());
    put(40, &(dsdt as u32).to_le_bytes());
    put(44, &[1]); // INT_MODEL: ACPI 1.0's field, 1 for an APIC system
    put(46, &u16::from(SCI_IRQ).to_le_bytes());
    put(48, &u32::from(SMI_CMD).to_le_bytes());
    put(52, &[super::ACPI_ENABLE, super::ACPI_DISABLE]);
    put(56, &u32::from(pm1_evt).to_le_bytes());
    put(64, &u32::from(pm1_cnt).to_le_bytes());
    put(76, &u32::from(pm_tmr).to_le_bytes());
    put(80, &u32::from(GPE0_BASE).to_le_bytes());
    put(88, &[4, 2, 0, 4, 4]); // PM1_EVT_LEN, PM1_CNT_LEN, PM2_CNT_LEN, PM_TMR_LEN, GPE0_BLK_LEN
    put(96, &0x0fffu16.to_le_bytes()); // P_LVL2_LAT: no C2
    put(98, &0x0fffu16.to_le_bytes()); // P_LVL3_LAT: no C3
    put(108, &[0x32]); // CENTURY in CMOS
    let vga = if cfg.vga { 0 } else { NO_VGA };
    let kbd = if cfg.i8042 { HAS_8042 } else { 0 };
    put(109, &(LEGACY_DEVICES | kbd | vga).to_le_bytes());
    let timer = if cfg.pm_timer_32bit { TMR_VAL_EXT } else { 0 };
    let flags = WBINVD | PROC_C1 | SLP_BUTTON | RTC_S4 | timer | RESET_REG_SUP | USE_PLATFORM_CLOCK;
    put(112, &flags.to_le_bytes());
    put(116, &gas_io(super::RESET_PORT, 8, 1));
    put(128, &[super::RESET_VALUE]);
    put(140, &dsdt.to_le_bytes());
    put(148, &gas_io(pm1_evt, 32, 2));
    put(172, &gas_io(pm1_cnt, 16, 2));
    put(208, &gas_io(pm_tmr, 32, 3));
    put(220, &gas_io(GPE0_BASE, 32, 1));
    table(b"FACP", 3, &body)
}

/// 5.2.12. Processors first, the boot processor before all others; then the IOAPIC and how ISA interrupts
/// differ from the default.
fn madt(cfg: &Config) -> Vec<u8> {
    const ENABLED: u32 = 1;
    const ALL: u32 = u32::MAX;
    let mut m = Vec::new();
    m.extend(LAPIC_BASE.to_le_bytes());
    m.extend(1u32.to_le_bytes()); // PCAT_COMPAT: there are 8259s
    for (uid, &id) in cfg.apic_ids.iter().enumerate() {
        let uid = uid as u32;
        if id < 255 && uid < 255 {
            m.extend([0, 8, uid as u8, id as u8]);
            m.extend(ENABLED.to_le_bytes());
        } else {
            m.extend([9, 16, 0, 0]);
            m.extend([id, ENABLED, uid].map(u32::to_le_bytes).as_flattened());
        }
    }
    m.extend([1, 12, super::IOAPIC_ID, 0]);
    m.extend(IOAPIC_BASE.to_le_bytes());
    m.extend(0u32.to_le_bytes());
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
    for irq in super::LEVEL_IRQS {
        source_override(irq, irq.into(), LEVEL_HIGH);
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
