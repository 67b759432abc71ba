//! `pc`: i440FX host bridge, PIIX3 south bridge and PIIX4 power management, ISA devices.
use super::common::Legacy;
use super::{Chips, Chipset, Description, Wiring, common, switch};
use crate::machine::board::{Board, Firmware};
use mynah_devices::bus::PortBus;
use mynah_devices::chipset::i440fx::PAM0;
use mynah_devices::chipset::{I440fx, Piix3, Piix4Pm, i440fx, piix3, piix4_pm};
use mynah_devices::events::WakeCause;
use mynah_devices::pci::{ConfigPorts, PciBus, PciDevice};
use mynah_devices::storage::ide::{Cable, Piix3Ide};
use mynah_devices::timers::pm_timer::pm_timer_value;
use mynah_devices::timers::rtc::Rtc;
use mynah_firmware::tables;
use mynah_mmu::PhysMemory;
use std::sync::Arc;

/// The default.
pub static PC: Description = Description {
    name: "pc",
    versioned: &["pc-i440fx"],
    about: "i440FX + PIIX3/PIIX4, 1996 (default)",
    product: "Standard PC (i440FX + PIIX, 1996)",
    properties: &[
        switch("hpet", true, "an HPET"),
        switch("pic", true, "the 8259A pair"),
        switch("pit", true, "the 8254"),
    ],
    below_4g,
    serials: 4,
    pci: true,
    sata: false,
    floppies: true,
    nic: "e1000",
    sleeps: true,
    command_line: |_| String::new(),
    mmio_slots: |_| Vec::new(),
    has_second_ioapic: |_| false,
    tables: tables::Chipset::I440fx,
    chips,
};

/// RAM below the PCI hole when there is more than fits: the hole starts at 3.5 GiB with less RAM, else at 3 GiB, as
/// on QEMU's board.
fn below_4g(size: u64) -> u64 {
    const HOLE: u64 = 0xe000_0000;
    const HOLE_WITH_MORE: u64 = 0xc000_0000;
    if size > HOLE { HOLE_WITH_MORE } else { size }
}

fn chips(w: &mut Wiring<'_>) -> Chips {
    common::interrupts(w);
    let pit = common::pit(w);
    let rtc = common::rtc(w);
    let hpet = w.on("hpet").then(|| common::hpet(w, pit, &rtc));

    let pci = PciBus::new(w.ports.clone(), w.memory.clone());
    let piix3 = Piix3::new(std::array::from_fn(|n| w.pin(n)), w.power.clone());
    let pm_clock = w.clock.clone();
    let pm = Piix4Pm::new(w.pin(9), move || pm_timer_value(pm_clock.now()), w.ports.clone(), w.power.clone());
    pm.follow(&w.clock);
    let alarm = pm.clone();
    rtc.on_alarm(move || alarm.rtc_alarm());
    let wires = piix3.clone();
    pci.connect(w.apic_bus.clone(), Box::new(move |devfn, pin| wires.intx(devfn, pin)));
    let bridge = host_bridge(w.memory, w.firmware);
    pci.attach(i440fx::DEVFN, bridge.clone());
    pci.attach(piix3::DEVFN, piix3.clone());
    pci.attach(piix4_pm::DEVFN, pm.clone());
    let ide = Piix3Ide::new(&pci, w.ports, [w.pin(14), w.pin(15)]);
    let (dma, fdc) = common::floppies(w);
    let config_ports = ConfigPorts::new(pci.clone(), piix3.clone());
    config_ports.attach(w.ports);
    let Legacy { i8042, ferr } = common::legacy(w);
    w.ports.map(0x80, 1, Arc::new(common::Delay));

    w.plug("main-system-bus", "pcihost", config_ports);
    w.plug("isa.0", "i8257", dma);
    w.plug("isa.0", "isa-fdc", fdc.clone());
    w.plug("pci.0", "i440fx", bridge);
    w.plug("pci.0", "piix3", piix3.clone());
    w.plug("pci.0", "piix4-pm", pm.clone());
    w.plug("pci.0", "piix3-ide", ide.clone());
    if let Some(hpet) = hpet {
        w.plug("main-system-bus", "hpet", hpet);
    }
    let cables = ide.channels().iter().map(|c| c.clone() as Arc<dyn Cable>).collect();
    let chipset =
        Piix { pci: pci.clone(), piix3, ide: ide.clone(), pm: pm.clone(), rtc, ports: w.ports.clone() };
    Chips {
        pci: Some(pci),
        cables,
        fdc: Some(fdc),
        i8042: Some(i8042),
        button: pm,
        ferr: Some(ferr),
        chipset: Arc::new(chipset),
    }
}

/// The i440FX, and what its PAM registers change.
fn host_bridge(memory: &Arc<PhysMemory>, firmware: &Firmware) -> Arc<I440fx> {
    let shadows = common::shadows(memory, firmware);
    Arc::new(I440fx::new(move |region| shadows.show(region)))
}

struct Piix {
    pci: Arc<PciBus>,
    piix3: Arc<Piix3>,
    ide: Arc<Piix3Ide>,
    pm: Arc<Piix4Pm>,
    rtc: Arc<Rtc>,
    ports: Arc<PortBus>,
}

impl Chipset for Piix {
    /// All of the first MiB RAM, power management enabled, PCI interrupts routed.
    fn like_firmware(&self, _: &Board) {
        for i in 0..7 {
            self.pci.config_write(0, i440fx::DEVFN, (PAM0 + i).into(), 1, 0x33);
        }
        self.pm.enable_at(piix4_pm::PM_BASE);
        self.ide.like_firmware();
        for (n, irq) in tables::PIRQ_ROUTES.into_iter().enumerate() {
            self.piix3.config_write(0x60 + n as u8, 1, u32::from(irq));
        }
        common::level_triggered(&self.ports);
    }

    fn follow(&self) {
        self.pci.follow();
    }

    fn acpi_mode(&self) -> bool {
        self.pm.acpi_mode()
    }

    /// A firmware image is told by CMOS 0Fh; the built-in one goes back to ACPI mode if that was on.
    fn woken(&self, board: &Board, cause: WakeCause, acpi_mode: bool) {
        self.pm.wake(cause);
        board.like_firmware();
        if !board.built_in() {
            common::tell_of_wake(&self.rtc);
        } else if acpi_mode {
            self.ports.write(piix4_pm::SMI_COMMAND, 1, piix4_pm::ACPI_ENABLE.into());
        }
    }

    fn general_event(&self, bit: u8) {
        self.pm.general_event(bit);
    }

    fn pm_base(&self) -> Option<u16> {
        self.pm.base()
    }
}
