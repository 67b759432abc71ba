//! What a Q35 + ICH9 board is, in the DSDT: a host bridge with PCI Express, eight interrupt links and the I/O APIC's
//! inputs behind them, configuration space in memory.
//!
//! `_PIC` says which of the two kinds of interrupts `_PRT` has. `_OSC` grants control of the PCI Express capability,
//! and nothing else: there is neither hot plug nor error reporting.
//!
//! Source: ACPI 6.5, 5.8.1 (_PIC), 6.2.11 (_OSC); PCI Firmware Specification 3.0, 4.5; ICH9 data sheet (316972-004),
//! 13.1.13 for the PIRQ registers.
use super::super::resources::SharedInterrupts;
use super::super::{Chipset, Config};
use super::{byte_field, interrupt_link, link_methods, resources};
use acpi_tables::aml::{
    And, Arg, CreateDWordField, Device, EISAName, Else, Equal, If, Local, Memory32Fixed, Method, Name,
    NotEqual, ONE, OpRegion, OpRegionSpace, Or, Package, PackageBuilder, Path, Return, Store, Uuid, ZERO,
};
use mynah_devices::aml::{STA_HIDDEN, crs, encode, hid, name};
use mynah_devices::chipset::q35::{ECAM_BASE, ECAM_LEN};

/// The links of PIRQA to PIRQH, and the field of each one's register.
const LINKS: [(&str, &str); 8] = [
    ("LNKA", "PRQA"),
    ("LNKB", "PRQB"),
    ("LNKC", "PRQC"),
    ("LNKD", "PRQD"),
    ("LNKE", "PRQE"),
    ("LNKF", "PRQF"),
    ("LNKG", "PRQG"),
    ("LNKH", "PRQH"),
];
/// The same as inputs of the I/O APIC, from this one on.
const GSI_LINKS: [&str; 8] = ["GSIA", "GSIB", "GSIC", "GSID", "GSIE", "GSIF", "GSIG", "GSIH"];
const FIRST_GSI: u32 = 16;

/// Which interrupts are in use, as `_PIC` was told: 0 the 8259s', 1 the I/O APIC's.
const MODE: &str = "\\PICF";

/// At the root: `_PIC`.
pub(super) fn interrupt_mode() -> Vec<u8> {
    let (mode, argument) = (Path::new(MODE), Arg(0));
    let store = Store::new(&mode, &argument);
    encode(&[&name("PICF", &ZERO), &Method::new("_PIC".into(), 1, false, vec![&store])])
}

/// The host bridge, without its routing.
pub(super) fn host_bridge(cfg: &Config) -> Vec<u8> {
    // From behind configuration space on.
    let resources = resources(cfg, (ECAM_BASE + ECAM_LEN) as u32);
    let compatible = name("_CID", &EISAName::new("PNP0A03"));
    let mut aml = encode(&[&hid("PNP0A08"), &compatible, &name("_UID", &ZERO)]);
    aml.extend(resources);
    aml.extend(osc());
    aml
}

/// `_OSC` (UUID, revision, count, capabilities).
fn osc() -> Vec<u8> {
    /// PCI Express capability structure control.
    const GRANTED: u32 = 1 << 4;
    /// Bits of the first word: failure of an unknown UUID, of an unknown revision, not all was granted.
    const UNKNOWN_UUID: u32 = 1 << 2;
    const UNKNOWN_REVISION: u32 = 1 << 3;
    const MASKED: u32 = 1 << 4;
    let (wanted, revision, words) = (Arg(0), Arg(1), Arg(3));
    let uuid = Uuid::new("33db4d5b-1ff7-401c-9657-7441c03dd766");
    let (status, control, granted) = (Path::new("CDW1"), Path::new("CDW3"), Local(0));
    let first = CreateDWordField::new(&status, &words, &ZERO);
    let third = CreateDWordField::new(&control, &words, &8u8);
    let grant = And::new(&granted, &control, &GRANTED);
    let unknown = NotEqual::new(&revision, &ONE);
    let note_revision = Or::new(&status, &status, &UNKNOWN_REVISION);
    let of_revision = If::new(&unknown, vec![&note_revision]);
    let differs = NotEqual::new(&control, &granted);
    let note_masked = Or::new(&status, &status, &MASKED);
    let of_masked = If::new(&differs, vec![&note_masked]);
    let answer = Store::new(&control, &granted);
    let ours = Equal::new(&wanted, &uuid);
    let known = If::new(&ours, vec![&third, &grant, &of_revision, &of_masked, &answer]);
    let note_uuid = Or::new(&status, &status, &UNKNOWN_UUID);
    let other = Else::new(vec![&note_uuid]);
    let result = Return::new(&words);
    encode(&[&Method::new("_OSC".into(), 4, false, vec![&first, &known, &other, &result])])
}

/// `_PRT`, by links while the 8259s are in use, and by those of the I/O APIC's inputs.
pub(super) fn pci_routing() -> Vec<u8> {
    let table = |links: [&str; 8]| {
        let mut routes = PackageBuilder::new();
        for (slot, pin) in (0..32u8).flat_map(|slot| (0..4u8).map(move |pin| (slot, pin))) {
            let link = Path::new(&format!("\\_SB_.{}", links[Chipset::Q35.pirq(slot, pin) & 7]));
            let address = u32::from(slot) << 16 | 0xffff;
            routes.add_element(&Package::new(vec![&address, &pin, &link, &ZERO]));
        }
        routes
    };
    let (pic, apic) = (table(LINKS.map(|(link, _)| link)), table(GSI_LINKS));
    let (mode, by_pic, by_apic) = (Path::new(MODE), Path::new("PRTP"), Path::new("PRTA"));
    let is_pic = Equal::new(&mode, &ZERO);
    let (return_pic, return_apic) = (Return::new(&by_pic), Return::new(&by_apic));
    let (if_pic, otherwise) = (If::new(&is_pic, vec![&return_pic]), Else::new(vec![&return_apic]));
    encode(&[
        &name("PRTP", &pic),
        &name("PRTA", &apic),
        &Method::new("_PRT".into(), 0, false, vec![&if_pic, &otherwise]),
    ])
}

/// The PIRQ registers in the LPC bridge's configuration space.
pub(super) fn pirq_registers() -> Vec<u8> {
    let region =
        |name: &str, at: u8| encode(&[&OpRegion::new(name.into(), OpRegionSpace::PCIConfig, &at, &4u8)]);
    [region("PIRQ", 0x60), region("PIRE", 0x68)].concat()
}

/// All links, and who claims the memory that configuration space is in.
pub(super) fn system_bus() -> Vec<u8> {
    let registers = LINKS.map(|(_, register)| register);
    let mut aml = encode(&[
        &byte_field("\\_SB_.PCI0.ISA_.PIRQ", &registers[..4]),
        &byte_field("\\_SB_.PCI0.ISA_.PIRE", &registers[4..]),
    ]);
    aml.extend(link_methods());
    for (n, (link, register)) in LINKS.into_iter().enumerate() {
        aml.extend(interrupt_link(n, link, &register.into()));
    }
    for (n, link) in GSI_LINKS.into_iter().enumerate() {
        aml.extend(gsi_link(n as u32, link));
    }
    let window = Memory32Fixed::new(true, ECAM_BASE as u32, ECAM_LEN as u32);
    let (id, resources) = (hid("PNP0C01"), crs(vec![&window]));
    aml.extend(encode(&[&Device::new("DRAC".into(), vec![&id, &resources])]));
    aml
}

/// The link of one of the I/O APIC's inputs, which cannot be routed.
fn gsi_link(n: u32, link: &str) -> Vec<u8> {
    let interrupt = [FIRST_GSI + n];
    let interrupt = SharedInterrupts(&interrupt);
    let uid: Name = name("_UID", &(FIRST_GSI + n));
    let set = Method::new("_SRS".into(), 1, false, vec![]);
    let disable = Method::new("_DIS".into(), 0, false, vec![]);
    encode(&[&Device::new(
        link.into(),
        vec![
            &hid("PNP0C0F"),
            &uid,
            &name("_PRS", &acpi_tables::aml::ResourceTemplate::new(vec![&interrupt])),
            &crs(vec![&interrupt]),
            &name("_STA", &STA_HIDDEN),
            &disable,
            &set,
        ],
    )])
}
