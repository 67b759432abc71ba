//! What an operating system expects a PC's firmware to have left in memory: E820 map, ACPI, SMBIOS, MP table,
//! BIOS data area.
//!
//! ```text
//!   0x00400            BIOS data area: COM ports, EBDA segment, 639 KiB of conventional memory
//!   0x9fc00            EBDA, 1 KiB
//!   0xf0000            RSDP, SMBIOS entry point, MP floating pointer, MP table, SMBIOS structures
//!   end of low RAM     ACPI tables ("ACPI data"), FACS in the last page ("ACPI NVS")
//! ```
//!
//! The port and MMIO addresses here are the board's fixed ones: the machine maps its devices there. Nothing
//! is read from devices; what differs between machines is in [`Config`].
mod acpi;
mod dsdt;
pub mod e820;
mod loader;
mod mptable;
mod resources;
mod smbios;

pub use e820::{E820Entry, E820Kind, E820Map};
pub use loader::{
    VMGENID as VMGENID_FILE, VMGENID_ADDRESS as VMGENID_ADDRESS_FILE, acpi_files, firmware_files,
};

use crate::mem::{FOUR_GIB, GuestMemory};
use mynah_devices::aml::Fragment;
use mynah_devices::chipset::{ich9, q35};
use mynah_devices::misc::vmgenid;
use mynah_mmu::Gpa;

/// Where a PC's firmware puts the PIIX4 power management registers: PM1a_EVT, +4 PM1a_CNT, +8 PM_TMR.
pub const PM_BASE: u16 = 0x600;
/// General purpose event block 0: two bytes of status, two of enable.
pub const GPE0_BASE: u16 = 0xafe0;
/// The SMI command port.
pub const SMI_CMD: u16 = 0xb2;
/// Written to `SMI_CMD`, turns ACPI mode on.
pub const ACPI_ENABLE: u8 = 0xf1;
/// Written to `SMI_CMD`, turns ACPI mode off.
pub const ACPI_DISABLE: u8 = 0xf0;
/// The interrupt of ACPI events.
pub const SCI_IRQ: u8 = 9;
/// The reset control register.
pub const RESET_PORT: u16 = 0xcf9;
/// Written to `RESET_PORT`, resets the machine (PIIX3 RC: a hard reset, now).
pub const RESET_VALUE: u8 = 6;
/// The local APICs' registers.
pub const LAPIC_BASE: u32 = 0xfee0_0000;
/// The IOAPIC's registers.
pub const IOAPIC_BASE: u32 = 0xfec0_0000;
/// The IOAPIC's id.
pub const IOAPIC_ID: u8 = 0;
/// A second one's registers, id and first interrupt.
pub const SECOND_IOAPIC_BASE: u32 = 0xfec1_0000;
/// See [`SECOND_IOAPIC_BASE`].
pub const SECOND_IOAPIC_ID: u8 = 1;
/// See [`SECOND_IOAPIC_BASE`].
pub const SECOND_IOAPIC_GSI: u32 = 24;
/// The HPET's registers.
pub const HPET_BASE: u32 = 0xfed0_0000;
/// Low half of the HPET's capabilities register: vendor 8086h, legacy routing, 64 bits, three comparators,
/// revision 1.
pub const HPET_ID: u32 = 0x8086_a201;
/// Ports and interrupts of COM1 to COM4.
pub const COM_PORTS: [(u16, u8); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];
/// ISA interrupts that are level triggered and active high: the SCI and those that PCI is routed to.
pub const LEVEL_IRQS: [u8; 4] = [5, 9, 10, 11];
/// The interrupts to which PIRQA-D must be routed (PIIX3 configuration registers 60h-63h; ICH9: PIRQE-H too) before a
/// guest starts that does not route them itself; the MP table says so.
pub const PIRQ_ROUTES: [u8; 4] = [10, 10, 11, 11];
/// The extended BIOS data area, where conventional memory ends.
pub const EBDA: u64 = 0x9_fc00;
/// Who makes the machine, according to SMBIOS.
pub const MANUFACTURER: &str = "Mynah";

/// The BIOS area, as far as tables may fill it (the rest is for real-mode code).
const BIOS_TABLES: std::ops::Range<u64> = 0xf_0000..0xf_c000;
const PAGE: u64 = 0x1000;
/// Where the generation id's part of the FACS's page begins.
const VMGENID: u64 = 0x800;
/// As many as the DSDT has names for.
const MAX_PROCESSORS: usize = 0x1000;

/// What SMBIOS and the MP table say about the processors.
#[derive(Clone, Debug, Default)]
pub struct CpuInfo {
    /// CPUID.1:EAX.
    pub signature: u32,
    /// CPUID.1:EDX.
    pub features: u32,
    /// CPUID.0's vendor string.
    pub vendor: String,
    /// The brand string.
    pub name: String,
    /// Frequency in MHz.
    pub mhz: u16,
    /// Whether it has long mode.
    pub long_mode: bool,
}

/// What a board's power management and buses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chipset {
    /// PIIX4's registers at [`Config::pm_base`]; PCI with PIIX3's interrupt routing.
    I440fx,
    /// ICH9's registers at [`Config::pm_base`]; PCI Express with the interrupt routing of QEMU's Q35, and configuration
    /// space in memory (see `mynah_devices::chipset::q35`).
    Q35,
    /// Hardware-reduced ACPI with a generic event device (see `mynah_devices::chipset::acpi_ged`); no PCI.
    Reduced {
        /// Where its registers are.
        ged: u32,
        /// Its interrupt.
        irq: u8,
    },
}

impl Chipset {
    /// Whether there is PCI.
    pub fn has_pci(self) -> bool {
        !matches!(self, Self::Reduced { .. })
    }

    /// Which PIRQ (0: A) the pin (0: INTA#) of a slot on bus 0 is wired to.
    pub fn pirq(self, slot: u8, pin: u8) -> usize {
        match self {
            Self::Q35 => ich9::pirq(slot, pin).into(),
            // Slots are rotated, and device 1's INTA# is PIRQA#.
            _ => usize::from(slot.wrapping_add(pin).wrapping_sub(1) & 3),
        }
    }

    /// The ISA interrupt that it is routed to before a guest starts that does not route it itself.
    pub fn pirq_route(self, slot: u8, pin: u8) -> u8 {
        PIRQ_ROUTES[self.pirq(slot, pin) & 3]
    }

    /// Written to [`SMI_CMD`], they turn ACPI mode on and off.
    fn acpi_commands(self) -> (u8, u8) {
        match self {
            Self::Q35 => (ich9::ACPI_ENABLE, ich9::ACPI_DISABLE),
            _ => (ACPI_ENABLE, ACPI_DISABLE),
        }
    }

    /// Where general purpose event block 0 is, and its length.
    fn gpe0(self, pm_base: u16) -> (u16, u8) {
        match self {
            Self::Q35 => (pm_base.wrapping_add(ich9::GPE0), ich9::GPE0_LEN),
            _ => (GPE0_BASE, 4),
        }
    }
}

/// The machine that the tables describe. RAM is taken from the guest memory itself.
#[derive(Clone, Debug)]
pub struct Config {
    /// Local APIC ids of all processors; the boot processor's first.
    pub apic_ids: Vec<u32>,
    /// The processors' model.
    pub cpu: CpuInfo,
    /// Which of COM1 to COM4 exist.
    pub com_ports: [bool; 4],
    /// ACPI tables are made; without them the guest has the MP table.
    pub acpi: bool,
    /// What power management and buses are.
    pub chipset: Chipset,
    /// What the machine is, according to SMBIOS.
    pub product: &'static str,
    /// There is an HPET.
    pub hpet: bool,
    /// There are 8259s.
    pub pic: bool,
    /// There is a second IOAPIC.
    pub second_ioapic: bool,
    /// ISA IRQ 0 arrives at pin 2 of the IOAPIC.
    pub irq0_override: bool,
    /// Base of the power management registers.
    pub pm_base: u16,
    /// The PM timer counts 32 bits, not 24.
    pub pm_timer_32bit: bool,
    /// There is a keyboard controller.
    pub i8042: bool,
    /// What devices say of themselves in the DSDT.
    pub devices: Vec<Fragment>,
    /// There is a VGA.
    pub vga: bool,
    /// Suspend to RAM is offered.
    pub s3: bool,
    /// Suspend to disk is offered.
    pub s4: bool,
    /// A window for PCI memory above RAM above 4 GiB: first and last byte.
    pub pci_window_64: Option<(u64, u64)>,
    /// The machine's UUID, in the order in which it is written.
    pub uuid: [u8; 16],
}

impl Default for Config {
    /// One processor, COM1, HPET, keyboard controller; IRQ 0 at pin 2; neither VGA nor sleep.
    fn default() -> Self {
        Config {
            apic_ids: vec![0],
            cpu: CpuInfo::default(),
            com_ports: [true, false, false, false],
            acpi: true,
            chipset: Chipset::I440fx,
            product: "Standard PC (i440FX + PIIX, 1996)",
            hpet: true,
            pic: true,
            second_ioapic: false,
            irq0_override: true,
            pm_base: PM_BASE,
            pm_timer_32bit: false,
            i8042: true,
            devices: Vec::new(),
            vga: false,
            s3: false,
            s4: false,
            pci_window_64: None,
            uuid: [0; 16],
        }
    }
}

/// What was built, and where.
#[derive(Clone, Debug)]
pub struct Tables {
    /// The memory map to hand to the guest.
    pub e820: E820Map,
    /// The ACPI root pointer (none without ACPI).
    pub rsdp: Option<Gpa>,
    /// The FACS, where a system that sleeps says what it wakes at (none without ACPI).
    pub facs: Option<Gpa>,
    /// Where the generation id is to be, if the devices have one.
    pub vmgenid: Option<Gpa>,
    /// The SMBIOS entry point.
    pub smbios: Option<Gpa>,
    /// The MP floating pointer.
    pub mp: Option<Gpa>,
    /// What power management and buses are.
    pub chipset: Chipset,
}

/// Too little RAM, or too many processors, for the tables.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TablesError {
    /// The guest's RAM does not hold them.
    #[error("the guest has {0} bytes of RAM below 4 GiB; a PC needs at least 2 MiB for its firmware tables")]
    TooLittleRam(u64),
    /// The MP table and SMBIOS overflow the BIOS area.
    #[error("the firmware tables of {0} processors have no room in the BIOS area or no name in the DSDT")]
    TooManyProcessors(usize),
}

/// Builds all tables for the machine and writes them to its RAM.
pub fn build_tables(mem: &dyn GuestMemory, cfg: &Config) -> Result<Tables, TablesError> {
    let (below, above) = (mem.below_4g() & !(PAGE - 1), mem.above_4g());
    if below < 2 << 20 {
        return Err(TablesError::TooLittleRam(mem.below_4g()));
    }
    if cfg.apic_ids.len() > MAX_PROCESSORS {
        return Err(TablesError::TooManyProcessors(cfg.apic_ids.len()));
    }
    let mut e820 = base_map(below, above);
    if cfg.chipset == Chipset::Q35 {
        e820.set(q35::ECAM_BASE, q35::ECAM_LEN, E820Kind::Reserved);
    }
    write_bios_data(mem, cfg);

    let mut area = BIOS_TABLES.start;
    let mut put = |bytes: &[u8]| {
        let at = area;
        area = (at + bytes.len() as u64).next_multiple_of(16);
        if area > BIOS_TABLES.end {
            return Err(TablesError::TooManyProcessors(cfg.apic_ids.len()));
        }
        mem.write(at, bytes);
        Ok(at)
    };
    let (mut rsdp, mut facs, mut id_at) = (None, None, None);
    if cfg.acpi {
        let facs_at = below - PAGE;
        let mut start = facs_at;
        let built = acpi::build(cfg, below, |len| {
            start = facs_at.checked_sub(len)? & !(PAGE - 1);
            (start >= 1 << 20).then_some((start, facs_at))
        });
        let mut built = built.ok_or(TablesError::TooLittleRam(below))?;
        if let Some(at) = built.vmgenid {
            let place = facs_at + VMGENID;
            built.tables[at..at + 4].copy_from_slice(&(place as u32).to_le_bytes());
            let dsdt = built.parts.first().map_or(0, |(_, len)| *len);
            acpi::fix_checksum(&mut built.tables[..dsdt], 9);
            id_at = Some(place + vmgenid::OFFSET as u64);
        }
        mem.write(start, &built.tables);
        mem.zero(facs_at, PAGE);
        mem.write(facs_at, &built.facs);
        e820.set(start, facs_at - start, E820Kind::Acpi);
        e820.set(facs_at, PAGE, E820Kind::Nvs);
        (rsdp, facs) = (Some(put(&built.rsdp)?), Some(facs_at));
    }
    let smbios = smbios::build(cfg, below, above);
    let smbios_table = put(&smbios.table)?;
    let smbios_entry = put(&smbios.entry_point(smbios_table as u32))?;
    let mp_table = put(&mptable::build(cfg))?;
    let mp = put(&mptable::floating_pointer(mp_table as u32))?;
    tracing::debug!(?rsdp, smbios = smbios_entry, mp, "firmware tables built");
    Ok(Tables {
        e820,
        rsdp,
        facs,
        vmgenid: id_at,
        smbios: Some(smbios_entry),
        mp: Some(mp),
        chipset: cfg.chipset,
    })
}

/// RAM less the legacy holes, and the top of the 32-bit space: pages that hypervisors keep, and the ROM.
fn base_map(below: u64, above: u64) -> E820Map {
    use E820Kind::*;
    let mut m = E820Map::default();
    m.set(0, EBDA, Usable);
    m.set(EBDA, 0xa_0000 - EBDA, Reserved);
    m.set(0xf_0000, 0x1_0000, Reserved);
    m.set(1 << 20, below - (1 << 20), Usable);
    m.set(0xfeff_c000, 0x4000, Reserved);
    m.set(0xfffc_0000, 0x4_0000, Reserved);
    m.set(FOUR_GIB, above, Usable);
    m
}

/// The parts of the BIOS data area that operating systems read, and the EBDA's length.
fn write_bios_data(mem: &dyn GuestMemory, cfg: &Config) {
    let ports =
        COM_PORTS.iter().zip(cfg.com_ports).filter(|(_, present)| *present).map(|(&(port, _), _)| port);
    let mut com = [0u16; 4];
    let mut count = 0u16;
    for (slot, port) in com.iter_mut().zip(ports) {
        *slot = port;
        count += 1;
    }
    mem.zero(0x400, 0x100);
    mem.write(0x400, com.map(u16::to_le_bytes).as_flattened());
    mem.write(0x40e, &((EBDA >> 4) as u16).to_le_bytes());
    // Equipment word: x87, pointing device, 80x25 colour, serial ports.
    let mouse = u16::from(cfg.i8042) << 2;
    let video = u16::from(cfg.vga) << 5;
    mem.write(0x410, &(1 << 1 | mouse | video | count << 9).to_le_bytes());
    mem.write(0x413, &((EBDA >> 10) as u16).to_le_bytes());
    mem.zero(EBDA, 0x400);
    mem.write(EBDA, &[1]);
}

#[cfg(test)]
mod tests;
