//! The DSDT: the devices of an i440FX + PIIX3 board that an operating system cannot find by itself.
//!
//! Each device is a function that makes a fragment of AML; [`fragments`] says which there are and under which scope each
//! goes, and [`definition_block`] puts them there.
//!
//! Missing on purpose: hot plug of PCI devices and CPUs (no GPE has a method), floppy and parallel ports (the
//! board has none), thermal and battery objects.
//!
//! Source: ACPI 6.5 chapters 5-7; PIIX3 data sheet (290550-002) 2.2 for the PIRQRC registers.
use super::resources::{Dma, IrqNoFlags, SharedInterrupts};
use super::{Config, PVPANIC_PORT, SCI_IRQ};
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Field,
    FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, LessThan, Memory32Fixed, Method,
    MethodCall, Name, OpRegion, OpRegionSpace, Or, Package, PackageBuilder, Path, ResourceTemplate, Return,
    Scope, Store, ZERO,
};
use acpi_tables::{Aml, AmlSink};

/// The PIRQ registers' "no interrupt" bit (PIIX3, PIRQRC bit 7).
const PIRQ_DISABLED: u8 = 0x80;
/// ISA interrupts that PCI may be routed to.
const PCI_IRQS: [u32; 3] = [5, 10, 11];
/// _STA: present, decoding, shown, working.
const STA_ON: u8 = 0x0f;
/// _STA of what is on and not shown: an interrupt link that is routed.
const STA_HIDDEN: u8 = 0x0b;
/// _STA of an interrupt link that is off.
const STA_LINK_OFF: u8 = 0x09;

/// The interrupt links, and the field for the register of each.
const LINKS: [(&str, &str); 4] = [("LNKA", "PRQ0"), ("LNKB", "PRQ1"), ("LNKC", "PRQ2"), ("LNKD", "PRQ3")];

/// Where in the name space a fragment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Under {
    /// `\`.
    Root,
    /// `\_SB`.
    SystemBus,
    /// `\_SB.PCI0`.
    Pci,
    /// `\_SB.PCI0.ISA`.
    Isa,
}

/// AML as it is.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn encode(terms: &[&dyn Aml]) -> Vec<u8> {
    let mut bytes = Vec::new();
    terms.iter().for_each(|t| t.to_aml_bytes(&mut bytes));
    bytes
}

/// The AML of the DSDT, without the table header.
pub(super) fn definition_block(cfg: &Config, below_4g: u64) -> Vec<u8> {
    let all = fragments(cfg, below_4g);
    let under = |place| {
        Raw(all.iter().filter(|(under, _)| *under == place).flat_map(|(_, aml)| aml).copied().collect())
    };
    let (isa_address, isa_devices, pci_devices) =
        (name("_ADR", &0x0001_0000u32), under(Under::Isa), under(Under::Pci));
    let isa = Device::new("ISA_".into(), vec![&isa_address, &isa_devices]);
    let pci = Device::new("PCI0".into(), vec![&pci_devices, &isa]);
    encode(&[&Scope::new("\\_SB_".into(), vec![&pci, &under(Under::SystemBus)]), &under(Under::Root)])
}

/// What is in the DSDT of this machine.
fn fragments(cfg: &Config, below_4g: u64) -> Vec<(Under, Vec<u8>)> {
    use Under::*;
    let some = |there: bool, under: Under, make: fn() -> Vec<u8>| there.then(|| (under, make()));
    let mut all = vec![
        (Pci, host_bridge(cfg, below_4g)),
        (Pci, pci_routing()),
        (Isa, pirq_registers()),
        (Isa, interrupt_controllers()),
        (Isa, interval_timer()),
        (Isa, real_time_clock()),
        (Isa, speaker()),
        (Isa, fpu()),
    ];
    all.extend(some(cfg.isa_dma, Isa, dma_controllers));
    all.extend(some(cfg.i8042, Isa, keyboard_controller));
    let ports = super::COM_PORTS.iter().zip(cfg.com_ports).enumerate();
    all.extend(
        ports.filter(|(_, (_, there))| *there).map(|(n, (&(port, irq), _))| (Isa, serial(n, port, irq))),
    );
    all.extend(some(cfg.pvpanic, Isa, pvpanic));
    all.extend(some(cfg.fw_cfg, Pci, fw_cfg));
    all.push((SystemBus, interrupt_links()));
    all.extend(some(cfg.hpet, SystemBus, hpet));
    all.push((SystemBus, processors(cfg)));
    all.push((Root, sleep_states(cfg)));
    all
}

fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(path.into(), value)
}

/// `Name (_HID, EisaId (id))`.
fn hid(id: &str) -> Name {
    name("_HID", &EISAName::new(id))
}

/// `Name (_CRS, ResourceTemplate () {..})`.
fn crs(resources: Vec<&dyn Aml>) -> Name {
    name("_CRS", &ResourceTemplate::new(resources))
}

/// `len` ports from `base` on.
fn io(base: u16, len: u8) -> IO {
    IO::new(base, base, 1, len)
}

/// `Field (region, ByteAcc, NoLock, Preserve) {..}` of bytes.
fn byte_field(region: &str, names: &[&str]) -> Field {
    let named = |n: &&str| FieldEntry::Named(std::array::from_fn(|i| n.as_bytes()[i]), 8);
    let (access, lock, update) = (FieldAccessType::Byte, FieldLockRule::NoLock, FieldUpdateRule::Preserve);
    Field::new(region.into(), access, lock, update, names.iter().map(named).collect())
}

/// A device of the ISA bus that has resources and nothing else.
fn isa_device(path: &str, id: &str, resources: Vec<&dyn Aml>) -> Vec<u8> {
    encode(&[&Device::new(path.into(), vec![&hid(id), &crs(resources)])])
}

fn host_bridge(cfg: &Config, below_4g: u64) -> Vec<u8> {
    use AddressSpaceCacheable::{Cacheable, NotCacheable};
    let hole = (below_4g.min(0xfeb0_0000) as u32, super::IOAPIC_BASE - 1);
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
    encode(&[&hid("PNP0A03"), &name("_UID", &ZERO), &crs(windows)])
}

/// Pin p of slot s is wired to PIRQ (s + p - 1) mod 4; the PM function in slot 1 signals on the SCI instead.
fn pci_routing() -> Vec<u8> {
    let mut routes = PackageBuilder::new();
    for (slot, pin) in (0..32u8).flat_map(|slot| (0..4u8).map(move |pin| (slot, pin))) {
        let link = if (slot, pin) == (1, 0) { "LNKS" } else { LINKS[pirq(slot, pin)].0 };
        let (address, link) = (u32::from(slot) << 16 | 0xffff, Path::new(&format!("\\_SB_.{link}")));
        routes.add_element(&Package::new(vec![&address, &pin, &link, &ZERO]));
    }
    encode(&[&name("_PRT", &routes)])
}

/// Which PIRQ the pin (0: INTA#) of a slot on bus 0 is wired to.
pub(super) fn pirq(slot: u8, pin: u8) -> usize {
    usize::from(slot.wrapping_add(pin).wrapping_sub(1) & 3)
}

/// PIRQRCA-D in the ISA bridge's configuration space.
fn pirq_registers() -> Vec<u8> {
    encode(&[&OpRegion::new("P40C".into(), OpRegionSpace::PCIConfig, &0x60u8, &4u8)])
}

fn interrupt_controllers() -> Vec<u8> {
    isa_device("PIC_", "PNP0000", vec![&io(0x20, 2), &io(0xa0, 2), &io(0x4d0, 2), &IrqNoFlags(2)])
}

fn interval_timer() -> Vec<u8> {
    isa_device("PIT_", "PNP0100", vec![&io(0x40, 4), &IrqNoFlags(0)])
}

fn real_time_clock() -> Vec<u8> {
    isa_device("RTC_", "PNP0B00", vec![&io(0x70, 2), &IrqNoFlags(8)])
}

fn speaker() -> Vec<u8> {
    isa_device("SPKR", "PNP0800", vec![&io(0x61, 1)])
}

fn fpu() -> Vec<u8> {
    isa_device("FPU_", "PNP0C04", vec![&io(0xf0, 16), &IrqNoFlags(13)])
}

fn dma_controllers() -> Vec<u8> {
    isa_device("DMAC", "PNP0200", vec![&io(0, 16), &io(0x81, 15), &io(0xc0, 32), &Dma(4)])
}

/// The 8042: keyboard and mouse.
fn keyboard_controller() -> Vec<u8> {
    let mut aml = isa_device("KBD_", "PNP0303", vec![&io(0x60, 1), &io(0x64, 1), &IrqNoFlags(1)]);
    aml.extend(isa_device("MOU_", "PNP0F13", vec![&IrqNoFlags(12)]));
    aml
}

/// COM`n + 1`.
fn serial(n: usize, port: u16, irq: u8) -> Vec<u8> {
    let (path, number) = (Path::new(&format!("COM{}", n + 1)), n + 1);
    let crs = crs(vec![&io(port, 8), &IrqNoFlags(irq)]);
    encode(&[&Device::new(path, vec![&hid("PNP0501"), &name("_UID", &number), &crs])])
}

fn pvpanic() -> Vec<u8> {
    let (hid, sta, crs) = (name("_HID", &"QEMU0001"), name("_STA", &STA_ON), crs(vec![&io(PVPANIC_PORT, 1)]));
    let region = OpRegion::new("PEOR".into(), OpRegionSpace::SystemIO, &PVPANIC_PORT, &1u8);
    let (field, port, value) = (byte_field("PEOR", &["PEPT"]), Path::new("PEPT"), Arg(0));
    let (get, set) = (Return::new(&port), Store::new(&port, &value));
    let read = Method::new("RDPT".into(), 0, false, vec![&get]);
    let write = Method::new("WRPT".into(), 1, false, vec![&set]);
    encode(&[&Device::new("PEVT".into(), vec![&hid, &sta, &crs, &region, &field, &read, &write])])
}

fn fw_cfg() -> Vec<u8> {
    let (hid, sta) = (name("_HID", &"QEMU0002"), name("_STA", &STA_HIDDEN));
    encode(&[&Device::new("FWCF".into(), vec![&hid, &sta, &crs(vec![&io(super::FW_CFG_PORT, 12)])])])
}

fn hpet() -> Vec<u8> {
    let crs = crs(vec![&Memory32Fixed::new(false, super::HPET_BASE, 0x400)]);
    encode(&[&Device::new("HPET".into(), vec![&hid("PNP0103"), &name("_UID", &ZERO), &crs])])
}

/// LNKA-LNKD: what PIRQRCA-D say. LNKS: the SCI.
fn interrupt_links() -> Vec<u8> {
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
    let mut aml = encode(&[
        &byte_field("\\_SB_.PCI0.ISA_.P40C", &LINKS.map(|(_, register)| register)),
        &Method::new("IQST".into(), 1, false, vec![&if_off, &on]),
        &name("PRR0", &ResourceTemplate::new(vec![&SharedInterrupts(&[0])])),
        &CreateDWordField::new(&number, &template, &5u8),
        &Method::new("IQCR".into(), 1, true, vec![&none, &if_routed, &result]),
    ]);
    for (n, (link, register)) in LINKS.into_iter().enumerate() {
        aml.extend(interrupt_link(n, link, &register.into()));
    }
    aml.extend(sci_link());
    aml
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
    let state = |path: &str, slp_typ: u8| {
        encode(&[&name(path, &Package::new(vec![&slp_typ, &slp_typ, &ZERO, &ZERO]))])
    };
    let mut aml = Vec::new();
    if cfg.s3 {
        aml.extend(state("\\_S3_", 1));
    }
    if cfg.s4 {
        aml.extend(state("\\_S4_", 2));
    }
    aml.extend(state("\\_S5_", 0));
    aml
}
