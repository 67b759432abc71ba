use super::*;
use crate::bus::{Irq, IrqSink};
use crate::chipset::PowerButton;
use crate::clock::{Clock, ManualClock, SECOND};
use crate::device::{Device, Reset};
use crate::events::testing::{Recorder, hammer};
use crate::pci::testing::Pc;
use crate::pci::{DevFn, PciDevice};
use parking_lot::Mutex;
use std::sync::Arc;

#[derive(Default)]
struct Log(Mutex<Vec<(u32, bool)>>);

impl IrqSink for Log {
    fn set(&self, line: u32, level: bool) {
        self.0.lock().push((line, level));
    }
}

impl Log {
    fn take(&self) -> Vec<(u32, bool)> {
        std::mem::take(&mut self.0.lock())
    }
}

struct Test {
    pc: Pc,
    chip: Arc<Ich9Lpc>,
    clock: ManualClock,
    log: Arc<Log>,
    events: Arc<Recorder>,
}

fn setup() -> Test {
    let (pc, log, events, clock) = (Pc::new(), Arc::new(Log::default()), Recorder::new(), ManualClock::new());
    let lines = std::array::from_fn(|n| Irq::new(log.clone(), n as u32));
    let dyn_clock: Arc<dyn Clock> = Arc::new(clock.clone());
    let chip = Ich9Lpc::new(lines, pc.ports.clone(), pc.memory.clone(), dyn_clock, events.clone());
    pc.bus.attach(DEVFN, chip.clone());
    Test { pc, chip, clock, log, events }
}

#[test]
fn pins_of_devices_are_wired_as_on_qemus_board() {
    let wires = |device| [0, 1, 2, 3].map(|pin| pirq(device, pin));
    assert_eq!(wires(0), [4, 5, 6, 7]);
    assert_eq!(wires(3), [7, 4, 5, 6]);
    assert_eq!(wires(0x18), [4, 5, 6, 7]);
    assert_eq!(wires(0x1d), [0, 1, 2, 3]);
    assert_eq!(wires(0x1e), [4, 5, 6, 7]);
    assert_eq!(wires(0x1f), [0, 1, 2, 3]);
}

#[test]
fn a_wire_leads_to_the_io_apic_and_where_it_is_routed() {
    let t = setup();
    let pin = t.chip.intx(DevFn::new(2, 0), 0); // PIRQG#
    pin.set(true);
    assert_eq!(t.log.take(), [(22, true)]);
    t.pc.write(DEVFN, 0x6a, 1, 0x0b);
    assert_eq!(t.log.take(), [(11, true)]);
    t.pc.write(DEVFN, 0x6a, 1, 0x0a);
    assert_eq!(t.log.take(), [(11, false), (10, true)]);
    pin.set(false);
    assert_eq!(t.log.take(), [(10, false), (22, false)]);
}

#[test]
fn registers_are_where_firmware_puts_them() {
    let t = setup();
    assert_eq!((t.pc.read(DEVFN, 0, 4), t.pc.read(DEVFN, 8, 4)), (0x2918_8086, 0x0601_0002));
    assert_eq!(t.pc.ports.read(PM_BASE, 4), u32::MAX);
    t.chip.like_firmware([10, 10, 11, 11]);
    t.clock.advance(SECOND);
    assert_eq!(t.pc.ports.read(PM_BASE + 8, 4), 3_579_545);
    assert_eq!(t.pc.ports.read(PM_BASE + 0x30, 4), 0x20, "APMC_EN: there is no SMM to be set up");
    assert_eq!(t.pc.memory.phys_read(u64::from(RCBA_BASE) + 0x3140, 2), 0x3210);
    t.pc.write(DEVFN, 0x40, 4, 0xb000);
    assert_eq!((t.pc.ports.read(PM_BASE, 4), t.pc.ports.read(0xb030, 1)), (u32::MAX, 0x20));
    t.chip.reset(Reset::Board);
    assert_eq!(t.pc.ports.read(0xb030, 1), 0xff);
}

#[test]
fn the_power_button_raises_the_sci_in_acpi_mode() {
    let t = setup();
    t.chip.like_firmware([10, 10, 11, 11]);
    t.pc.ports.write(PM_BASE + 2, 2, 0x100);
    t.chip.press();
    assert_eq!(t.log.take(), []);
    t.pc.ports.write(0xb2, 1, ACPI_ENABLE.into());
    assert_eq!((t.log.take(), t.chip.acpi_mode()), (vec![(9, true)], true));
    t.pc.ports.write(PM_BASE, 2, 0x100);
    assert_eq!(t.log.take(), [(9, false)]);
}

#[test]
fn sleep_and_reset_are_told_to_the_machine() {
    let t = setup();
    t.chip.like_firmware([10, 10, 11, 11]);
    t.pc.ports.write(PM_BASE + 4, 2, 0x2000);
    assert_eq!(t.events.take(), ["power off"]);
    t.pc.ports.write(0xcf9, 1, 2);
    let control: &dyn crate::bus::PortIo = &*t.chip;
    control.write(0, 1, 2);
    assert!(t.events.take().is_empty());
    control.write(0, 1, 6);
    assert_eq!(t.events.take().len(), 1);
}

#[test]
fn the_watchdog_resets_the_machine_when_it_has_run_out_twice() {
    let t = setup();
    t.chip.like_firmware([10, 10, 11, 11]);
    let tco = PM_BASE + 0x60;
    t.pc.ports.write(tco + 0x12, 2, 10);
    t.pc.ports.write(tco, 2, 1);
    t.pc.ports.write(tco + 8, 2, 0);
    t.pc.ports.write(tco, 2, 1);
    t.clock.advance(5 * SECOND);
    assert_eq!(t.pc.ports.read(tco, 2), 1);
    t.clock.advance(2 * SECOND);
    assert_eq!(t.pc.ports.read(tco + 4, 2), 8, "TIMEOUT");
    // NO_REBOOT is set, then it is not.
    t.clock.advance(7 * SECOND);
    assert_eq!((t.pc.ports.read(tco + 6, 2), t.events.take().len()), (2, 0));
    t.pc.memory.phys_write(u64::from(RCBA_BASE) + 0x3410, 4, 0);
    t.clock.advance(14 * SECOND);
    assert_eq!(t.events.take().len(), 1);
}

#[test]
fn no_access_of_any_width_panics() {
    let t = setup();
    t.chip.like_firmware([10, 10, 11, 11]);
    hammer(&*t.chip, 1);
    for offset in 0..=255 {
        t.chip.config_write(offset, 1, 0xff);
    }
    t.chip.like_firmware([10, 10, 11, 11]);
    for at in 0..128 {
        t.pc.ports.write(PM_BASE + at, 4, 0xffff_dfff);
        t.pc.ports.read(PM_BASE + at, 4);
    }
}

#[test]
fn smbus_has_nobody_to_talk_to() {
    let pc = Pc::new();
    let wires = crate::pci::testing::Wires::on(&pc.bus);
    let smbus = Ich9Smbus::new(&pc.bus);
    smbus.like_firmware(&pc.bus);
    assert_eq!(pc.ports.read(SMBUS_BASE, 1), 0);
    assert_eq!(pc.ports.read(SMBUS_BASE, 1), 0x40, "in use");
    pc.ports.write(SMBUS_BASE + 2, 1, 0x49);
    assert_eq!((pc.ports.read(SMBUS_BASE, 1), wires.take()), (0x44, vec![(0, 1)]));
    pc.ports.write(SMBUS_BASE, 1, 0x44);
    assert_eq!((pc.ports.read(SMBUS_BASE, 1), wires.take()), (0, vec![(0, 0)]));
}
