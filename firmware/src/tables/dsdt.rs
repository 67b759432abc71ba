//! The DSDT: the devices of a board that an operating system cannot find by itself; here those of an i440FX + PIIX3, in
//! [`q35`] those of a Q35 + ICH9.
//!
//! Each device brings its own fragment of AML (`mynah_devices::aml`); here is what the board is. [`fragments`] has all,
//! with the scope under which each goes, and [`definition_block`] puts them there.
//!
//! Missing on purpose: hot plug of PCI devices and CPUs (no GPE has a method), parallel ports (the board
//! has none), thermal and battery objects.
//!
//! Source: ACPI 6.5 chapters 5-7; PIIX3 data sheet (290550-002) 2.2 for the PIRQRC registers.
mod q35;

use super::resources::SharedInterrupts;
use super::{Chipset, Config, SCI_IRQ};
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Field,
    FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, LessThan, Method, MethodCall, OpRegion,
    OpRegionSpace, Or, Package, PackageBuilder, Path, ResourceTemplate, Return, Scope, Store, ZERO,
};
use acpi_tables::{Aml, AmlSink};
use mynah_devices::aml::{Fragment, STA_HIDDEN, STA_ON, Under, crs, encode, hid, io, name};
use mynah_devices::chipset::acpi_ged;

/// The PIRQ registers' "no interrupt" bit (PIIX3, PIRQRC bit 7).
const PIRQ_DISABLED: u8 = 0x80;
/// ISA interrupts that PCI may be routed to.
const PCI_IRQS: [u32; 3] = [5, 10, 11];
/// _STA of an interrupt link that is off.
const STA_LINK_OFF: u8 = 0x09;

/// The interrupt links, and the field for the register of each.
const LINKS: [(&str, &str); 4] = [("LNKA", "PRQ0"), ("LNKB", "PRQ1"), ("LNKC", "PRQ2"), ("LNKD", "PRQ3")];

/// AML as it is.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// The AML of the DSDT, without the table header.
pub(super) fn definition_block(cfg: &Config, below_4g: u64) -> Vec<u8> {
    let all = fragments(cfg, below_4g);
    let under = |place| Raw(all.iter().filter(|f| f.under == place).flat_map(|f| &f.aml).copied().collect());
    if !cfg.chipset.has_pci() {
        // Without PCI what is on the ISA bus stands by itself.
        let (isa, system_bus) = (under(Under::Isa), under(Under::SystemBus));
        let system_bus = Scope::new("\\_SB_".into(), vec![&isa, &system_bus]);
        return encode(&[&system_bus, &under(Under::Root)]);
    }
    let place = if cfg.chipset == Chipset::Q35 { 0x001f_0000u32 } else { 0x0001_0000 };
    let (isa_address, isa_devices, pci_devices) =
        (name("_ADR", &place), under(Under::Isa), under(Under::Pci));
    let isa = Device::new("ISA_".into(), vec![&isa_address, &isa_devices]);
    let pci = Device::new("PCI0".into(), vec![&pci_devices, &isa]);
    encode(&[&Scope::new("\\_SB_".into(), vec![&pci, &under(Under::SystemBus)]), &under(Under::Root)])
}

/// What is in the DSDT of this machine: what the board is, and what its devices say of themselves.
fn fragments(cfg: &Config, below_4g: u64) -> Vec<Fragment> {
    let board = |under, aml| Fragment { under, aml };
    let mut all = Vec::new();
    if !cfg.chipset.has_pci() {
        all.extend(cfg.devices.iter().cloned());
        all.push(board(Under::SystemBus, processors(cfg)));
        all.push(board(Under::Root, soft_off(acpi_ged::SLP_TYP_S5)));
        return all;
    }
    let express = cfg.chipset == Chipset::Q35;
    if express {
        all.extend([
            board(Under::Pci, q35::host_bridge(cfg)),
            board(Under::Pci, q35::pci_routing()),
            board(Under::Isa, q35::pirq_registers()),
        ]);
    } else {
        all.extend([
            board(Under::Pci, host_bridge(cfg, below_4g)),
            board(Under::Pci, pci_routing()),
            board(Under::Isa, pirq_registers()),
        ]);
    }
    all.extend(cfg.devices.iter().cloned());
    if express {
        all.push(board(Under::SystemBus, q35::system_bus()));
        all.push(board(Under::Root, q35::interrupt_mode()));
    } else {
        all.push(board(Under::SystemBus, interrupt_links()));
    }
    all.push(board(Under::SystemBus, processors(cfg)));
    all.push(board(Under::Root, sleep_states(cfg)));
    all
}

/// `Field (region, ByteAcc, NoLock, Preserve) {..}` of bytes.
fn byte_field(region: &str, names: &[&str]) -> Field {
    let named = |n: &&str| FieldEntry::Named(std::array::from_fn(|i| n.as_bytes()[i]), 8);
    let (access, lock, update) = (FieldAccessType::Byte, FieldLockRule::NoLock, FieldUpdateRule::Preserve);
    Field::new(region.into(), access, lock, update, names.iter().map(named).collect())
}

fn host_bridge(cfg: &Config, below_4g: u64) -> Vec<u8> {
    let mut aml = encode(&[&hid("PNP0A03"), &name("_UID", &ZERO)]);
    aml.extend(resources(cfg, below_4g.min(0xfeb0_0000) as u32));
    aml
}

/// `_CRS` of a host bridge: buses, ports and memory that it leads to, from `first` on below 4 GiB.
fn resources(cfg: &Config, first: u32) -> Vec<u8> {
    use AddressSpaceCacheable::{Cacheable, NotCacheable};
    let hole = (first, super::IOAPIC_BASE - 1);
    let memory_64 = cfg.pci_window_64.filter(|(first, last)| first < last);
    let memory_64 =
        memory_64.map(|(first, last)| AddressSpace::new_memory(Cacheable, true, first, last, None));
    let (bus, address) = (AddressSpace::new_bus_number(0u16, 255), io(0x0cf8, 8));
    let ports =
        [(0u16, 0x0cf7), (0x0d00, 0xffff)].map(|(first, last)| AddressSpace::new_io(first, last, None));
    let vga = AddressSpace::new_memory(Cacheable, true, 0xa_0000u32, 0xb_ffff, None);
    let memory = AddressSpace::new_memory(NotCacheable, true, hole.0, hole.1, None);
    let mut windows: Vec<&dyn Aml> = vec![&bus, &address, &ports[0], &ports[1], &vga, &memory];
    windows.extend(memory_64.as_ref().map(|w| w as &dyn Aml));
    encode(&[&crs(windows)])
}

/// Pin p of slot s is wired to PIRQ (s + p - 1) mod 4; the PM function in slot 1 signals on the SCI instead.
fn pci_routing() -> Vec<u8> {
    let mut routes = PackageBuilder::new();
    for (slot, pin) in (0..32u8).flat_map(|slot| (0..4u8).map(move |pin| (slot, pin))) {
        let link = if (slot, pin) == (1, 0) { "LNKS" } else { LINKS[cfg_pirq(slot, pin)].0 };
        let (address, link) = (u32::from(slot) << 16 | 0xffff, Path::new(&format!("\\_SB_.{link}")));
        routes.add_element(&Package::new(vec![&address, &pin, &link, &ZERO]));
    }
    encode(&[&name("_PRT", &routes)])
}

fn cfg_pirq(slot: u8, pin: u8) -> usize {
    Chipset::I440fx.pirq(slot, pin) & 3
}

/// PIRQRCA-D in the ISA bridge's configuration space.
fn pirq_registers() -> Vec<u8> {
    encode(&[&OpRegion::new("P40C".into(), OpRegionSpace::PCIConfig, &0x60u8, &4u8)])
}

/// LNKA-LNKD: what PIRQRCA-D say. LNKS: the SCI.
fn interrupt_links() -> Vec<u8> {
    let mut aml = encode(&[&byte_field("\\_SB_.PCI0.ISA_.P40C", &LINKS.map(|(_, register)| register))]);
    aml.extend(link_methods());
    for (n, (link, register)) in LINKS.into_iter().enumerate() {
        aml.extend(interrupt_link(n, link, &register.into()));
    }
    aml.extend(sci_link());
    aml
}

/// What links have in common.
fn link_methods() -> Vec<u8> {
    let argument = Arg(0);
    // IQST: a link's _STA, of its register. IQCR: its _CRS.
    let masked = And::new(&ZERO, &argument, &PIRQ_DISABLED);
    let off = Return::new(&STA_LINK_OFF);
    let (if_off, on) = (If::new(&masked, vec![&off]), Return::new(&STA_HIDDEN));
    let (template, number) = (Path::new("PRR0"), Path::new("PRRI"));
    let none = Store::new(&number, &ZERO);
    let routed = LessThan::new(&argument, &PIRQ_DISABLED);
    let set = Store::new(&number, &argument);
    let (if_routed, result) = (If::new(&routed, vec![&set]), Return::new(&template));
    encode(&[
        &Method::new("IQST".into(), 1, false, vec![&if_off, &on]),
        &name("PRR0", &ResourceTemplate::new(vec![&SharedInterrupts(&[0])])),
        &CreateDWordField::new(&number, &template, &5u8),
        &Method::new("IQCR".into(), 1, true, vec![&none, &if_routed, &result]),
    ])
}

fn interrupt_link(n: usize, link: &str, register: &Path) -> Vec<u8> {
    let status = MethodCall::new("IQST".into(), vec![register]);
    let resources = MethodCall::new("IQCR".into(), vec![register]);
    let (status, resources) = (Return::new(&status), Return::new(&resources));
    let disable = Or::new(register, register, &PIRQ_DISABLED);
    let (wanted, argument) = (Path::new("IRQN"), Arg(0));
    let (field, route) = (CreateDWordField::new(&wanted, &argument, &5u8), Store::new(register, &wanted));
    encode(&[&Device::new(
        link.into(),
        vec![
            &hid("PNP0C0F"),
            &name("_UID", &n),
            &name("_PRS", &ResourceTemplate::new(vec![&SharedInterrupts(&PCI_IRQS)])),
            &Method::new("_STA".into(), 0, false, vec![&status]),
            &Method::new("_DIS".into(), 0, false, vec![&disable]),
            &Method::new("_CRS".into(), 0, false, vec![&resources]),
            &Method::new("_SRS".into(), 1, true, vec![&field, &route]),
        ],
    )])
}

/// The link of the SCI, which cannot be routed.
fn sci_link() -> Vec<u8> {
    let sci = [SCI_IRQ.into()];
    let sci = SharedInterrupts(&sci);
    encode(&[&Device::new(
        "LNKS".into(),
        vec![
            &hid("PNP0C0F"),
            &name("_UID", &4u8),
            &name("_PRS", &ResourceTemplate::new(vec![&sci])),
            &crs(vec![&sci]),
            &name("_STA", &STA_HIDDEN),
            &Method::new("_DIS".into(), 0, false, vec![]),
            &Method::new("_SRS".into(), 1, false, vec![]),
        ],
    )])
}

/// One processor device per vCPU, tied to the MADT by its _UID.
fn processors(cfg: &Config) -> Vec<u8> {
    let processor = |uid: usize| {
        let (hid, number, sta) = (name("_HID", &"ACPI0007"), name("_UID", &uid), name("_STA", &STA_ON));
        encode(&[&Device::new(format!("C{uid:03X}").as_str().into(), vec![&hid, &number, &sta])])
    };
    let all = (0..cfg.apic_ids.len()).flat_map(processor).collect();
    let (hid, cid) = (name("_HID", &"ACPI0010"), name("_CID", &EISAName::new("PNP0A05")));
    encode(&[&Device::new("CPUS".into(), vec![&hid, &cid, &Raw(all)])])
}

/// SLP_TYP values of PM1a_CNT (PIIX4 data sheet, 7.1.3): 0 soft off, 1 suspend to RAM, 2 suspend to disk.
fn sleep_states(cfg: &Config) -> Vec<u8> {
    let mut aml = Vec::new();
    if cfg.s3 {
        aml.extend(sleep_state("\\_S3_", 1));
    }
    if cfg.s4 {
        aml.extend(sleep_state("\\_S4_", 2));
    }
    aml.extend(soft_off(0));
    aml
}

fn soft_off(slp_typ: u8) -> Vec<u8> {
    sleep_state("\\_S5_", slp_typ)
}

fn sleep_state(path: &str, slp_typ: u8) -> Vec<u8> {
    encode(&[&name(path, &Package::new(vec![&slp_typ, &slp_typ, &ZERO, &ZERO]))])
}
