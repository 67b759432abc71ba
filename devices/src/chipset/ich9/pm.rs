//! The power management block: ACPI's fixed registers, SMI's, which lead nowhere, and the watchdog's (13.8, 13.9).
//!
//! ```text
//!   +00 PM1_STS +02 PM1_EN +04 PM1_CNT +08 PM1_TMR +20 GPE0_STS +28 GPE0_EN +30 SMI_EN +34 SMI_STS
//!   +60 TCO_RLD +64 TCO1_STS +66 TCO2_STS +68 TCO1_CNT +6A TCO2_CNT +6C messages +70 TCO_WDCNT +72 TCO_TMR
//! ```
//!
//! A plain model: time is handed in, and what follows is told.
//!
//! SMI_EN begins with APMC_EN set, by which firmware finds that system management mode has been set up: there is none
//! to set up. TCO's timer counts 0.6 s at a time. When it has run out TIMEOUT is set and it runs again; at the second
//! time SECOND_TO_STS is, and the machine is reset unless GCS says NO_REBOOT.
use crate::chipset::pm1::Pm1;
use crate::clock::{Nanos, SECOND};
use serde::{Deserialize, Serialize};

/// Ports of the block.
pub const LEN: u32 = 128;
/// A tick of the watchdog.
const TICK: Nanos = 6 * SECOND / 10;
/// SMI_EN: writes to the APM port make an SMI.
const APMC_EN: u32 = 1 << 5;
/// TCO1_STS, TCO2_STS, TCO1_CNT.
const TIMEOUT: u16 = 1 << 3;
const SECOND_TO_STS: u16 = 1 << 1;
const TCO_TMR_HLT: u16 = 1 << 11;
const TCO_LOCK: u16 = 1 << 12;

/// The registers.
#[derive(Clone, Serialize, Deserialize)]
pub struct Pm {
    pub(in crate::chipset) pm1: Pm1,
    gpe_status: [u8; 8],
    gpe_enable: [u8; 8],
    processor_control: u32,
    smi_enable: u32,
    tco: Tco,
}

/// The watchdog.
#[derive(Clone, Serialize, Deserialize)]
struct Tco {
    /// When it runs out, while it runs.
    deadline: Option<Nanos>,
    /// What is left while it is halted, in ticks.
    left: u16,
    initial: u16,
    status1: u16,
    status2: u16,
    control1: u16,
    control2: u16,
    /// Messages, and the progress byte at their side.
    notes: [u8; 3],
}

impl Default for Tco {
    fn default() -> Self {
        Self {
            deadline: None,
            left: 4,
            initial: 4,
            status1: 0,
            status2: 0,
            control1: TCO_TMR_HLT,
            control2: 8,
            notes: [0; 3],
        }
    }
}

impl Tco {
    fn ticks(&self) -> Nanos {
        Nanos::from(self.initial & 0x3ff).max(2) * TICK
    }

    fn reload(&mut self, now: Nanos) {
        if self.control1 & TCO_TMR_HLT == 0 {
            self.deadline = Some(now.saturating_add(self.ticks()));
        } else {
            self.left = self.initial & 0x3ff;
        }
    }

    fn left(&self, now: Nanos) -> u16 {
        self.deadline.map_or(self.left, |at| (at.saturating_sub(now) / TICK).min(0x3ff) as u16)
    }

    fn set_control1(&mut self, value: u16, now: Nanos) {
        let locked = self.control1 & TCO_LOCK;
        self.control1 = value & 0x1b00 | locked;
        if self.control1 & TCO_TMR_HLT != 0 {
            self.left = self.left(now);
            self.deadline = None;
        } else if self.deadline.is_none() {
            self.deadline = Some(now.saturating_add(Nanos::from(self.left) * TICK));
        }
    }
}

/// What is to follow a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// A sleep is asked for, of this type.
    pub sleep: Option<u8>,
}

impl Default for Pm {
    fn default() -> Self {
        Self {
            pm1: Pm1::default(),
            gpe_status: [0; 8],
            gpe_enable: [0; 8],
            processor_control: 0,
            smi_enable: APMC_EN,
            tco: Tco::default(),
        }
    }
}

impl Pm {
    /// The SCI's level.
    pub fn sci(&self) -> bool {
        let gpe = self.gpe_status.iter().zip(self.gpe_enable).any(|(status, enable)| status & enable != 0);
        self.pm1.acpi_mode() && (self.pm1.has_event() || gpe)
    }

    /// General-purpose event `bit` has happened.
    pub fn raise_general(&mut self, bit: u8) {
        self.gpe_status[usize::from((bit / 8) & 7)] |= 1 << (bit & 7);
    }

    /// The byte at an offset, of which the timer's are not asked here.
    pub fn read(&self, at: u16, now: Nanos) -> u8 {
        let t = &self.tco;
        let word = |value: u16| value.to_le_bytes()[usize::from(at & 1)];
        let dword = |value: u32| value.to_le_bytes()[usize::from(at & 3)];
        match at {
            0..8 => self.pm1.read(at),
            0x10..0x14 => dword(self.processor_control),
            0x20..0x28 => self.gpe_status[usize::from(at - 0x20)],
            0x28..0x30 => self.gpe_enable[usize::from(at - 0x28)],
            0x30..0x34 => dword(self.smi_enable),
            0x60 | 0x61 => word(t.left(now)),
            0x64 | 0x65 => word(t.status1),
            0x66 | 0x67 => word(t.status2),
            0x68 | 0x69 => word(t.control1),
            0x6a | 0x6b => word(t.control2),
            0x6c | 0x6d => t.notes[usize::from(at - 0x6c)],
            0x70 => t.notes[2],
            0x72 | 0x73 => word(t.initial),
            _ => 0,
        }
    }

    /// A byte is written.
    pub fn write(&mut self, at: u16, value: u8, now: Nanos, effects: &mut Effects) {
        let t = &mut self.tco;
        let put = |old: u16| {
            let mut bytes = old.to_le_bytes();
            bytes[usize::from(at & 1)] = value;
            u16::from_le_bytes(bytes)
        };
        let bits = u16::from(value) << (8 * (at & 1));
        let put32 = |old: u32| {
            let mut bytes = old.to_le_bytes();
            bytes[usize::from(at & 3)] = value;
            u32::from_le_bytes(bytes)
        };
        match at {
            0..8 => effects.sleep = self.pm1.write(at, value).or(effects.sleep),
            0x10..0x14 => self.processor_control = put32(self.processor_control) & 0x0003_01fe,
            0x20..0x28 => self.gpe_status[usize::from(at - 0x20)] &= !value,
            0x28..0x30 => self.gpe_enable[usize::from(at - 0x28)] = value,
            // APMC_EN stays.
            0x30..0x34 => self.smi_enable = put32(self.smi_enable) | APMC_EN,
            0x60 => t.reload(now),
            0x64 | 0x65 => t.status1 &= !bits,
            0x66 | 0x67 => t.status2 &= !bits,
            0x68 | 0x69 => t.set_control1(put(t.control1), now),
            0x6a | 0x6b => t.control2 = put(t.control2) & 0x3c,
            0x6c | 0x6d => t.notes[usize::from(at - 0x6c)] = value,
            0x70 => t.notes[2] = value,
            0x72 | 0x73 => t.initial = put(t.initial) & 0x3ff,
            _ => {}
        }
    }

    /// When something is to happen.
    pub fn next_event(&self, now: Nanos) -> Option<Nanos> {
        [self.pm1.next_event(now), self.tco.deadline].into_iter().flatten().min()
    }

    /// Brings all up to date; whether the watchdog has run out for the second time.
    pub fn look_at_clock(&mut self, now: Nanos) -> bool {
        self.pm1.look_at_timer(now);
        let t = &mut self.tco;
        if t.deadline.is_none_or(|at| at > now) {
            return false;
        }
        // It runs again at once, from now on should this be late.
        t.deadline = Some(now.saturating_add(t.ticks()));
        if t.status1 & TIMEOUT == 0 {
            t.status1 |= TIMEOUT;
            return false;
        }
        t.status1 &= !TIMEOUT;
        t.status2 |= SECOND_TO_STS;
        true
    }

    /// Whether it is a state that the registers can have.
    pub fn is_valid(&self) -> bool {
        let t = &self.tco;
        self.smi_enable & APMC_EN != 0 && t.initial <= 0x3ff && t.left <= 0x3ff && t.control1 & !0x1b00 == 0
    }
}
