//! Power management of a board without a chipset: ACPI's generic event device, and the registers of
//! hardware-reduced ACPI.
//!
//! ```text
//!   FEA00000h  events, 4 bytes   which have happened; a read takes them all
//!   FEA00200h  sleep control     SLP_EN with SLP_TYP 5: power off
//!   FEA00201h  sleep status      0: there is nothing to wake from
//!   FEA00202h  reset             42h: RESET
//! ```
//!
//! An event pulses the interrupt; the AML method _EVT reads which it was and notifies the device it is of. There is
//! one, the power button. Registers and values are those of QEMU's microvm, which guests see by the tables alone.
//!
//! Locks: `events` is held while the pin is driven. The machine's callbacks run with nothing locked.
//!
//! Source: ACPI 6.5, 4.8.3.7 (sleep control and status), 5.6.9 (generic event device).
use crate::aml::{Fragment, STA_ON, Under, hid, name};
use crate::bus::Irq;
use crate::device::{Device, Invalid, Reset};
use crate::events::{MachineEvents, ResetCause};
use acpi_tables::aml::{
    And, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Interrupt, Local, Method,
    Notify, OpRegion, OpRegionSpace, Path, ResourceTemplate, Store,
};
use mynah_mmu::Mmio;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Where the registers are.
pub const BASE: u64 = 0xfea0_0000;
/// Bytes that they take.
pub const LEN: u64 = 0x1000;
/// The interrupt of events.
pub const IRQ: u32 = 9;
/// The sleep control register, from the base.
pub const SLEEP_CONTROL: u64 = 0x200;
/// The sleep status register, from the base.
pub const SLEEP_STATUS: u64 = 0x201;
/// The reset register, from the base.
pub const RESET: u64 = 0x202;
/// Written to the reset register: RESET.
pub const RESET_VALUE: u8 = 0x42;
/// SLP_TYP of S5.
pub const SLP_TYP_S5: u8 = 5;

const SLP_EN: u8 = 1 << 5;
const POWER_BUTTON: u32 = 1 << 1;

/// The generic event device.
pub struct AcpiGed {
    events: Mutex<u32>,
    pin: Irq,
    machine: Arc<dyn MachineEvents>,
}

impl AcpiGed {
    /// One whose events come on `pin`.
    pub fn new(pin: Irq, machine: Arc<dyn MachineEvents>) -> Arc<Self> {
        Arc::new(Self { events: Mutex::new(0), pin, machine })
    }
}

impl super::PowerButton for AcpiGed {
    fn press(&self) {
        let mut events = self.events.lock();
        *events |= POWER_BUTTON;
        self.pin.set(true);
        self.pin.set(false);
    }
}

impl Mmio for AcpiGed {
    fn name(&self) -> &'static str {
        "acpi-ged"
    }

    fn read(&self, offset: u64, _: u8) -> u64 {
        match offset {
            0 => std::mem::take(&mut *self.events.lock()).into(),
            _ => 0,
        }
    }

    fn write(&self, offset: u64, _: u8, value: u64) {
        let value = value as u8;
        match offset {
            SLEEP_CONTROL if value & SLP_EN != 0 && value >> 2 & 7 == SLP_TYP_S5 => self.machine.power_off(),
            RESET if value == RESET_VALUE => self.machine.reset(ResetCause::ResetControl),
            _ => {}
        }
    }
}

/// What is saved of it.
#[derive(Serialize, Deserialize)]
pub struct AcpiGedV1 {
    events: u32,
}

impl Device for AcpiGed {
    type State = AcpiGedV1;
    const KIND: &'static str = "acpi-ged";

    fn aml(&self) -> Option<Fragment> {
        let selector = OpRegion::new("EREG".into(), OpRegionSpace::SystemMemory, &(BASE as u32), &4u8);
        let entry = FieldEntry::Named(*b"ESEL", 32);
        let (access, lock, update) =
            (FieldAccessType::DWord, FieldLockRule::NoLock, FieldUpdateRule::WriteAsZeroes);
        let field = Field::new("EREG".into(), access, lock, update, vec![entry]);
        let (events, selected, button) = (Local(0), Path::new("ESEL"), Path::new("\\_SB_.PWRB"));
        let read = Store::new(&events, &selected);
        let pressed = And::new(&acpi_tables::aml::ZERO, &events, &(POWER_BUTTON as u8));
        let notify = Notify::new(&button, &0x80u8);
        let if_pressed = If::new(&pressed, vec![&notify]);
        let method = Method::new("_EVT".into(), 1, true, vec![&read, &if_pressed]);
        let interrupt = Interrupt::new(true, true, false, false, IRQ);
        let crs = name("_CRS", &ResourceTemplate::new(vec![&interrupt]));
        let id = name("_HID", &"ACPI0013");
        let uid = name("_UID", &acpi_tables::aml::ZERO);
        let (ged, pwrb) = (Path::new("GED_"), Path::new("PWRB"));
        let button_id = hid("PNP0C0C");
        let (uid_b, sta) = (name("_UID", &acpi_tables::aml::ZERO), name("_STA", &STA_ON));
        Some(Fragment::new(
            Under::SystemBus,
            &[
                &acpi_tables::aml::Device::new(pwrb, vec![&button_id, &uid_b, &sta]),
                &acpi_tables::aml::Device::new(ged, vec![&id, &uid, &crs, &selector, &field, &method]),
            ],
        ))
    }

    fn reset(&self, _: Reset) {
        *self.events.lock() = 0;
    }

    fn save(&self) -> AcpiGedV1 {
        AcpiGedV1 { events: *self.events.lock() }
    }

    fn restore(&self, state: AcpiGedV1) -> Result<(), Invalid> {
        if state.events & !POWER_BUTTON != 0 {
            return Err(Invalid("events"));
        }
        *self.events.lock() = state.events;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::IrqSink;
    use crate::chipset::PowerButton;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    #[derive(Default)]
    struct Seen {
        edges: AtomicU32,
        off: AtomicU32,
        reset: AtomicU32,
    }

    impl IrqSink for Seen {
        fn set(&self, line: u32, level: bool) {
            assert_eq!(line, IRQ);
            self.edges.fetch_add(u32::from(level), Relaxed);
        }
    }

    impl MachineEvents for Seen {
        fn reset(&self, _: ResetCause) {
            self.reset.fetch_add(1, Relaxed);
        }
        fn power_off(&self) {
            self.off.fetch_add(1, Relaxed);
        }
        fn exit(&self, _: i32) {}
    }

    #[test]
    fn the_button_interrupts_and_is_read_once() {
        let seen = Arc::new(Seen::default());
        let ged = AcpiGed::new(Irq::new(seen.clone(), IRQ), seen.clone());
        assert_eq!(ged.read(0, 4), 0);
        ged.press();
        assert_eq!(seen.edges.load(Relaxed), 1);
        assert_eq!((ged.read(0, 4), ged.read(0, 4)), (2, 0));
    }

    #[test]
    fn off_and_reset_are_for_their_values_alone() {
        let seen = Arc::new(Seen::default());
        let ged = AcpiGed::new(Irq::unconnected(), seen.clone());
        for value in [0, 5 << 2, 1 << 5, 1 << 5 | 3 << 2, 0x42] {
            ged.write(SLEEP_CONTROL, 1, value);
        }
        ged.write(RESET, 1, 0x41);
        ged.write(SLEEP_STATUS, 1, 0xff);
        assert_eq!((seen.off.load(Relaxed), seen.reset.load(Relaxed)), (0, 0));
        ged.write(SLEEP_CONTROL, 1, 1 << 5 | 5 << 2);
        ged.write(RESET, 1, 0x42);
        assert_eq!((seen.off.load(Relaxed), seen.reset.load(Relaxed)), (1, 1));
    }
}
