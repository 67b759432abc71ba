//! ACPI's PM1 registers, as every chipset with fixed ACPI hardware has them: events, their enables, control.
//!
//! ```text
//!   +0 PM1_STS   +2 PM1_EN   +4 PM1_CNT, of 32 bits on later chips, whose upper half is reserved
//! ```
//!
//! TMR_STS tells of changes of the PM timer's highest bit, bit 23: [`Pm1::look_at_timer`].
//!
//! Source: ACPI specification 5.0, 4.8.3.
use crate::clock::Nanos;
use crate::events::{MachineEvents, SleepState, WakeCause};
use crate::timers::pm_timer::{pm_timer_next_toggle, pm_timer_toggles};
use serde::{Deserialize, Serialize};

/// SLP_TYP of S5 (soft off).
pub const SLP_TYP_S5: u8 = 0;
/// SLP_TYP of S3 (suspend to RAM).
pub const SLP_TYP_S3: u8 = 1;
/// SLP_TYP of S4 (suspend to disk).
pub const SLP_TYP_S4: u8 = 2;

/// Status and enable bits (ACPI tables 4-16 and 4-17).
pub(super) mod bits {
    use crate::events::WakeCause;

    pub const TIMER: u16 = 1 << 0;
    pub const GLOBAL: u16 = 1 << 5;
    pub const POWER_BUTTON: u16 = 1 << 8;
    pub const RTC: u16 = 1 << 10;
    pub const WAKE: u16 = 1 << 15;
    /// Status bits there are: also the bus master's (4).
    pub const STATUS: u16 = TIMER | 1 << 4 | GLOBAL | POWER_BUTTON | RTC | WAKE;
    pub const ENABLE: u16 = TIMER | GLOBAL | POWER_BUTTON | RTC;

    /// The status of what has woken the machine.
    pub fn of(cause: WakeCause) -> u16 {
        match cause {
            WakeCause::RtcAlarm => RTC,
            WakeCause::PowerButton => POWER_BUTTON,
        }
    }
}

/// PM1 control bits (ACPI table 4-18).
mod control {
    pub const SCI_EN: u16 = 1 << 0;
    pub const SLP_EN: u16 = 1 << 13;
    /// SCI_EN, BM_RLD, SLP_TYP. GBL_RLS (2) and SLP_EN are for writing only.
    pub const KEPT: u16 = SCI_EN | 1 << 1 | 7 << 10;
}

/// The registers.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Pm1 {
    status: u16,
    enable: u16,
    control: u16,
    /// Changes of the timer's highest bit that TMR_STS has told of.
    toggles: u64,
}

impl Pm1 {
    /// TMR_STS tells of changes from now on.
    pub fn begin(&mut self, now: Nanos) {
        self.toggles = pm_timer_toggles(now);
    }

    /// Whether ACPI mode is on (SCI_EN).
    pub fn acpi_mode(&self) -> bool {
        self.control & control::SCI_EN != 0
    }

    /// Switches it on or off.
    pub fn set_acpi_mode(&mut self, on: bool) {
        self.control = self.control & !control::SCI_EN | if on { control::SCI_EN } else { 0 };
    }

    /// Whether an event has happened that is enabled.
    pub fn has_event(&self) -> bool {
        self.status & self.enable & bits::ENABLE != 0
    }

    /// Events have happened.
    pub fn raise(&mut self, events: u16) {
        self.status |= events;
    }

    /// The event, pending and enabled, that ends a sleep.
    pub fn wakes(&self) -> Option<WakeCause> {
        match self.status & self.enable {
            both if both & bits::RTC != 0 => Some(WakeCause::RtcAlarm),
            both if both & bits::POWER_BUTTON != 0 => Some(WakeCause::PowerButton),
            _ => None,
        }
    }

    /// Brings TMR_STS up to date.
    pub fn look_at_timer(&mut self, now: Nanos) {
        let toggles = pm_timer_toggles(now);
        if toggles != std::mem::replace(&mut self.toggles, toggles) {
            self.status |= bits::TIMER;
        }
    }

    /// When the timer's next carry raises the SCI, if it is to.
    pub fn next_event(&self, now: Nanos) -> Option<Nanos> {
        let wanted = self.acpi_mode() && self.enable & bits::TIMER != 0 && self.status & bits::TIMER == 0;
        wanted.then(|| pm_timer_next_toggle(now))
    }

    /// The byte at an offset; 0 where there is no register.
    pub fn read(&self, at: u16) -> u8 {
        let word = match at & !1 {
            0 => self.status,
            2 => self.enable,
            4 => self.control,
            _ => 0,
        };
        (word >> (8 * (at & 1))) as u8
    }

    /// A byte is written; the type of the sleep that it asks for, if it asks for one.
    pub fn write(&mut self, at: u16, value: u8) -> Option<u8> {
        let shift = 8 * (at & 1);
        let (value, lane) = (u16::from(value) << shift, 0xff << shift);
        match at & !1 {
            0 => self.status &= !(value & bits::STATUS),
            2 => self.enable = self.enable & !lane | value & bits::ENABLE,
            4 => {
                self.control = self.control & !lane | value & control::KEPT;
                return (value & control::SLP_EN != 0).then_some((self.control >> 10) as u8 & 7);
            }
            _ => {}
        }
        None
    }
}

/// Carries out what a write to SLP_EN asks for. No lock is held.
pub(super) fn go_to_sleep(kind: u8, events: &dyn MachineEvents, wakes: impl FnOnce() -> Option<WakeCause>) {
    match kind {
        SLP_TYP_S5 => events.power_off(),
        SLP_TYP_S3 => {
            events.sleep(SleepState::S3);
            // What was there before is no less a reason to wake.
            if let Some(cause) = wakes() {
                events.wake(cause);
            }
        }
        SLP_TYP_S4 => events.sleep(SleepState::S4),
        other => tracing::debug!("the guest asks for sleep type {other}, which does not exist"),
    }
}
