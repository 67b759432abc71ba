//! `microvm`: no PCI and little else, for the shortest boot. Devices are virtio-mmio; power management is ACPI's
//! hardware-reduced one, by a generic event device.
//!
//! The 8259A pair, the 8254 and the RTC are there unless left out, as in QEMU without KVM. Linux leaves the 8254 alone
//! where ACPI is hardware-reduced, so there is ACPI's PM timer as well, which QEMU's board lacks. It measures its TSC
//! by that for some 50 us only, of which a part is spent in translating the code that does it: so it is told the rate.
use super::{Chips, Chipset, Description, Wiring, common, switch};
use crate::config::{Config, Machine};
use crate::machine::board::{Board, Firmware};
use crate::machine::engines::TSC_HZ;
use mynah_devices::bus::PortIo;
use mynah_devices::chipset::AcpiGed;
use mynah_devices::chipset::acpi_ged;
use mynah_devices::chipset::piix4_pm::PM_TIMER;
use mynah_devices::clock::Clock;
use mynah_devices::interrupts::ioapic::{Ioapic, PINS};
use mynah_devices::kind::Bus;
use mynah_devices::timers::pm_timer::pm_timer_value;
use mynah_devices::virtio::mmio;
use mynah_firmware::tables;
use std::sync::Arc;

/// The smallest.
pub static MICROVM: Description = Description {
    name: "microvm",
    versioned: &[],
    about: "no PCI, virtio-mmio devices, the shortest boot",
    product: "microvm",
    properties: &[
        switch("pic", true, "the 8259A pair"),
        switch("pit", true, "the 8254"),
        switch("rtc", true, "the real-time clock"),
        switch("isa-serial", true, "COM1"),
        switch("ioapic2", true, "with ACPI, a second I/O APIC, and 24 slots for virtio devices, not 8"),
        switch("auto-kernel-cmdline", true, "a Linux kernel's command line tells it what it cannot find out"),
    ],
    below_4g,
    serials: 1,
    pci: false,
    sata: false,
    floppies: false,
    nic: "",
    sleeps: false,
    command_line,
    mmio_slots,
    has_second_ioapic,
    tables: tables::Chipset::Reduced { ged: acpi_ged::BASE as u32, irq: acpi_ged::IRQ as u8 },
    chips,
};

/// The hole is the last GiB below 4 GiB.
fn below_4g(size: u64) -> u64 {
    const HOLE: u64 = 0xc000_0000;
    size.min(HOLE)
}

/// Without ACPI nothing would tell of it.
fn has_second_ioapic(machine: &Machine) -> bool {
    machine.acpi && machine.chosen.switch("ioapic2")
}

/// Slots of 512 bytes, of which the last is taken first, as in QEMU: one for each pin of the second I/O APIC; or eight,
/// whose interrupts are those behind the ISA bus's with ACPI, and some of these without.
fn mmio_slots(machine: &Machine) -> Vec<(usize, u64, u32)> {
    const BASE: u64 = 0xfeb0_0000;
    let (slots, first) = match machine.acpi {
        true if has_second_ioapic(machine) => (PINS, PINS as u32),
        true => (8, 16),
        false => (8, 5),
    };
    (0..slots).rev().map(|n| (n, BASE + mmio::SIZE * n as u64, first + n as u32)).collect()
}

fn command_line(cfg: &Config) -> String {
    let machine = &cfg.machine;
    if !machine.chosen.switch("auto-kernel-cmdline") {
        return String::new();
    }
    if machine.acpi {
        return format!(" tsc_early_khz={}", cfg.tsc_hz.unwrap_or(TSC_HZ) / 1000);
    }
    // Nothing else tells of them.
    let devices = cfg.devices.iter().filter(|d| d.kind.bus == Bus::VirtioMmio);
    let used = mmio_slots(machine).into_iter().zip(devices);
    used.map(|((_, at, gsi), _)| format!(" virtio_mmio.device=512@{at:#x}:{gsi}")).collect()
}

fn chips(w: &mut Wiring<'_>) -> Chips {
    common::interrupts(w);
    common::pit(w);
    if w.on("rtc") {
        common::rtc(w);
    }
    // Nothing changes what the first MiB shows: RAM, or the end of a firmware image.
    if matches!(w.firmware, Firmware::Image(_)) {
        common::shadows(w.memory, w.firmware);
    }
    let ged = AcpiGed::new(w.pin(acpi_ged::IRQ as usize), w.power.clone());
    w.memory.map_mmio(acpi_ged::BASE, acpi_ged::LEN, ged.clone());
    w.ports.map(tables::PM_BASE + PM_TIMER, 4, Arc::new(PmTimer(w.clock.clone())));
    w.ports.map(0x80, 1, Arc::new(common::Delay));
    w.plug("main-system-bus", "acpi-ged", ged.clone());
    Chips {
        pci: None,
        cables: Vec::new(),
        fdc: None,
        i8042: None,
        button: ged,
        ferr: None,
        chipset: Arc::new(Little { ioapic2: w.ioapic2.clone() }),
    }
}

/// ACPI's PM timer (ACPI 6.5, 4.8.3.3), of 24 bits and without an interrupt.
struct PmTimer(Arc<dyn Clock>);

impl PortIo for PmTimer {
    fn name(&self) -> &'static str {
        "pm-timer"
    }
    fn read(&self, offset: u16, size: u8) -> u32 {
        let value = pm_timer_value(self.0.now()) >> (8 * offset);
        if size < 4 { value & ((1 << (8 * size)) - 1) } else { value }
    }
    fn write(&self, _: u16, _: u8, _: u32) {}
}

/// There is no chipset to set up, but for the number of an I/O APIC.
struct Little {
    ioapic2: Option<Arc<Ioapic>>,
}

impl Chipset for Little {
    fn like_firmware(&self, _: &Board) {
        if let Some(second) = &self.ioapic2 {
            second.set_id(tables::SECOND_IOAPIC_ID);
        }
    }

    /// With hardware-reduced ACPI a kernel does not touch the 8259s, so nothing may come from them.
    fn before_kernel(&self, board: &Board) {
        for mask in [0x21, 0xa1] {
            board.ports.write(mask, 1, 0xff);
        }
    }
}
