//! `q35`: a PC with PCI Express and SATA, the Q35 host bridge and the ICH9.
use super::common::{self, Legacy};
use super::{Chips, Chipset, Description, Wiring, switch};
use crate::machine::board::Board;
use mynah_devices::bus::PortBus;
use mynah_devices::chipset::ich9::{self, Ich9Lpc, Ich9Smbus};
use mynah_devices::chipset::q35::{self, Q35Mch};
use mynah_devices::events::WakeCause;
use mynah_devices::pci::{ConfigPorts, DevFn, PciBus};
use mynah_devices::storage::ahci::Ahci;
use mynah_devices::timers::rtc::Rtc;
use mynah_firmware::tables;
use std::sync::Arc;

/// Where the SATA controller is.
const AHCI: DevFn = DevFn::new(0x1f, 2);

/// With PCI Express.
pub static Q35: Description = Description {
    name: "q35",
    versioned: &["pc-q35"],
    about: "Q35 + ICH9, 2009: PCI Express, SATA",
    product: "Standard PC (Q35 + ICH9, 2009)",
    properties: &[
        switch("hpet", true, "an HPET"),
        switch("pic", true, "the 8259A pair"),
        switch("pit", true, "the 8254"),
        switch("sata", true, "the SATA controller of the ICH9"),
        switch("smbus", true, "the SMBus controller of the ICH9"),
    ],
    below_4g,
    serials: 4,
    pci: true,
    sata: true,
    floppies: false,
    mmio_slots: |_| Vec::new(),
    has_second_ioapic: |_| false,
    nic: "e1000e",
    sleeps: true,
    command_line: |_| String::new(),
    tables: tables::Chipset::Q35,
    chips,
};

/// RAM below the PCI hole: with 2.75 GiB or more 2 GiB of it, as on QEMU's board. Configuration space is at 2.75 GiB.
fn below_4g(size: u64) -> u64 {
    const HOLE_WITH_MORE: u64 = 0x8000_0000;
    if size >= q35::ECAM_BASE { HOLE_WITH_MORE } else { size }
}

fn chips(w: &mut Wiring<'_>) -> Chips {
    common::interrupts(w);
    let pit = common::pit(w);
    let rtc = common::rtc(w);
    let hpet = w.on("hpet").then(|| common::hpet(w, pit, &rtc));

    let pci = PciBus::root("pcie.0", true, w.ports.clone(), w.memory.clone());
    let lines = std::array::from_fn(|n| w.pin(n));
    let lpc = Ich9Lpc::new(lines, w.ports.clone(), w.memory.clone(), w.clock.clone(), w.power.clone());
    let alarm = lpc.clone();
    rtc.on_alarm(move || alarm.rtc_alarm());
    let wires = lpc.clone();
    pci.connect(w.apic_bus.clone(), Box::new(move |devfn, pin| wires.intx(devfn, pin)));
    let shadows = common::shadows(w.memory, w.firmware);
    let mch = Q35Mch::new(&pci, move |region| shadows.show(region));
    pci.attach(q35::DEVFN, mch.clone());
    pci.attach(ich9::DEVFN, lpc.clone());
    let ahci = w.on("sata").then(|| Ahci::at(&pci, AHCI, "ide"));
    let smbus = w.on("smbus").then(|| Ich9Smbus::new(&pci));
    let (dma, fdc) = common::floppies(w);
    let config_ports = ConfigPorts::new(pci.clone(), lpc.clone());
    config_ports.attach(w.ports);
    let Legacy { i8042, ferr } = common::legacy(w);
    w.ports.map(0x80, 1, Arc::new(common::Delay));

    w.plug("main-system-bus", "pcihost", config_ports);
    w.plug("isa.0", "i8257", dma);
    w.plug("isa.0", "isa-fdc", fdc.clone());
    w.plug("pcie.0", "mch", mch.clone());
    w.plug("pcie.0", "ICH9-LPC", lpc.clone());
    let mut cables = Vec::new();
    if let Some(ahci) = ahci {
        cables = ahci.cables();
        w.plug("pcie.0", "ich9-ahci", ahci);
    }
    if let Some(smbus) = &smbus {
        w.plug("pcie.0", "ICH9-SMB", smbus.clone());
    }
    if let Some(hpet) = hpet {
        w.plug("main-system-bus", "hpet", hpet);
    }
    let chipset = Ich9 { pci: pci.clone(), mch, lpc: lpc.clone(), smbus, rtc, ports: w.ports.clone() };
    Chips {
        pci: Some(pci),
        cables,
        fdc: Some(fdc),
        i8042: Some(i8042),
        button: lpc,
        ferr: Some(ferr),
        chipset: Arc::new(chipset),
    }
}

struct Ich9 {
    pci: Arc<PciBus>,
    mch: Arc<Q35Mch>,
    lpc: Arc<Ich9Lpc>,
    smbus: Option<Arc<Ich9Smbus>>,
    rtc: Arc<Rtc>,
    ports: Arc<PortBus>,
}

impl Chipset for Ich9 {
    /// All of the first MiB RAM, configuration space in memory, power management enabled, PCI interrupts routed.
    fn like_firmware(&self, _: &Board) {
        self.mch.like_firmware();
        self.lpc.like_firmware(tables::PIRQ_ROUTES);
        if let Some(smbus) = &self.smbus {
            smbus.like_firmware(&self.pci);
        }
        common::level_triggered(&self.ports);
    }

    fn follow(&self) {
        self.pci.follow();
    }

    fn acpi_mode(&self) -> bool {
        self.lpc.acpi_mode()
    }

    /// A firmware image is told by CMOS 0Fh; the built-in one goes back to ACPI mode if that was on.
    fn woken(&self, board: &Board, cause: WakeCause, acpi_mode: bool) {
        self.lpc.wake(cause);
        board.like_firmware();
        if !board.built_in() {
            common::tell_of_wake(&self.rtc);
        } else if acpi_mode {
            self.ports.write(tables::SMI_CMD, 1, ich9::ACPI_ENABLE.into());
        }
    }

    fn general_event(&self, bit: u8) {
        self.lpc.general_event(bit);
    }

    fn pm_base(&self) -> Option<u16> {
        self.lpc.base()
    }
}
