//! The MultiProcessor Specification's tables, for guests that use IOAPICs and do not read ACPI.
//!
//! Consistent with the MADT and with the routes in [`super::PIRQ_ROUTES`]. Processors whose APIC id needs
//! x2APIC are left out: the format has eight bits for it.
//!
//! Source: Intel MultiProcessor Specification 1.4, chapter 4.
use super::acpi::fix_checksum;
use super::{Chipset, Config, IOAPIC_BASE, IOAPIC_ID, LAPIC_BASE, LEVEL_IRQS, SCI_IRQ};

const BUS_PCI: u8 = 0;
const BUS_ISA: u8 = 1;
/// Local interrupt entries for all processors.
const ALL_APICS: u8 = 0xff;
/// Interrupt types (table 4-11).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// Interrupt flags: active high, level triggered.
const LEVEL_HIGH: u16 = 0x0d;
/// Interrupt flags: as the bus has it.
const BUS_DEFAULT: u16 = 0;

/// The MP floating pointer of a configuration table at `table_at`.
pub(super) fn floating_pointer(table_at: u32) -> [u8; 16] {
    let mut p = [0; 16];
    p[..4].copy_from_slice(b"_MP_");
    p[4..8].copy_from_slice(&table_at.to_le_bytes());
    (p[8], p[9]) = (1, 4);
    fix_checksum(&mut p, 10);
    p
}

/// The MP configuration table.
pub(super) fn build(cfg: &Config) -> Vec<u8> {
    let mut e = Vec::new();
    let mut count = 0u16;
    let mut entry = |bytes: &[u8]| {
        e.extend_from_slice(bytes);
        count += 1;
    };
    for (i, &id) in cfg.apic_ids.iter().enumerate().filter(|(_, id)| **id < 255) {
        let mut p = [0; 20];
        p[1] = id as u8;
        p[2] = 0x14; // integrated APIC
        p[3] = if i == 0 { 3 } else { 1 }; // enabled; the boot processor
        p[4..8].copy_from_slice(&cfg.cpu.signature.to_le_bytes());
        p[8..12].copy_from_slice(&cfg.cpu.features.to_le_bytes());
        entry(&p);
    }
    let pci = cfg.chipset.has_pci();
    if pci {
        entry(&[&[1, BUS_PCI][..], b"PCI   "].concat());
    }
    entry(&[&[1, BUS_ISA][..], b"ISA   "].concat());
    entry(&[&[2, IOAPIC_ID, 0x11, 1][..], &IOAPIC_BASE.to_le_bytes()].concat());
    let interrupt = |class: u8, kind: u8, flags: u16, bus: u8, irq: u8, apic: u8, pin: u8| {
        let [low, high] = flags.to_le_bytes();
        [class, kind, low, high, bus, irq, apic, pin]
    };
    let slots = if pci { 0..32u8 } else { 0..0 };
    for (slot, pin) in slots.flat_map(|slot| (0..4u8).map(move |pin| (slot, pin))) {
        let of_pm = cfg.chipset == Chipset::I440fx && (slot, pin) == (1, 0);
        let irq = if of_pm { SCI_IRQ } else { cfg.chipset.pirq_route(slot, pin) };
        entry(&interrupt(3, INT, LEVEL_HIGH, BUS_PCI, slot << 2 | pin, IOAPIC_ID, irq));
    }
    for irq in (0..16u8).filter(|&irq| irq != 2) {
        let pin = if irq == 0 && cfg.irq0_override { 2 } else { irq };
        let flags = if pci && LEVEL_IRQS.contains(&irq) { LEVEL_HIGH } else { BUS_DEFAULT };
        entry(&interrupt(3, INT, flags, BUS_ISA, irq, IOAPIC_ID, pin));
    }
    entry(&interrupt(4, EXT_INT, BUS_DEFAULT, BUS_ISA, 0, ALL_APICS, 0));
    entry(&interrupt(4, NMI, BUS_DEFAULT, BUS_ISA, 0, ALL_APICS, 1));

    let mut t = Vec::with_capacity(44 + e.len());
    t.extend(b"PCMP");
    t.extend((44 + e.len() as u16).to_le_bytes());
    t.extend([4, 0]);
    t.extend(b"MYNAH   STANDARD PC ");
    t.extend(0u32.to_le_bytes()); // no OEM table
    t.extend(0u16.to_le_bytes());
    t.extend(count.to_le_bytes());
    t.extend(LAPIC_BASE.to_le_bytes());
    t.extend(0u32.to_le_bytes()); // no extended entries
    t.extend(e);
    fix_checksum(&mut t, 7);
    t
}
