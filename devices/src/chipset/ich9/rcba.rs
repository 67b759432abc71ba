//! The chip configuration registers (10.1), 16 KiB of memory at RCBA.
//!
//! Interrupt pins and routes of the chip's functions are fixed as they are after a reset: pins A to D of devices 25 to
//! 29 and 31 lead to PIRQA to PIRQD (`lpc::pirq`). GCS has NO_REBOOT, which the watchdog heeds. Others that firmware
//! writes are kept; what is not listed reads as 0.
use serde::{Deserialize, Serialize};

/// Bytes of the window.
pub const LEN: u64 = 0x4000;

/// GCS: the watchdog does not reset the machine.
const NO_REBOOT: u32 = 1 << 5;

/// Offset, value after a reset, and bits that can be written.
const REGISTERS: [(u16, u32, u32); 20] = [
    // V0CTL, V1CTL, RCTCL.
    (0x0014, 0x8000_0001, 0),
    (0x0020, 0, 0),
    (0x0100, 0x0001_0410, 0),
    // D31IP to D25IP: which pin each function has.
    (0x3100, 0x0324_3200, 0),
    (0x3104, 0, 0),
    (0x3108, 0x1000_4321, 0),
    (0x310c, 0x0021_4321, 0),
    (0x3110, 0x0000_0001, 0),
    (0x3114, 0x3000_0321, 0),
    (0x3118, 0x0000_0001, 0),
    // D31IR, D29IR with D28IR's upper neighbour, D27IR, D26IR, D25IR: where each pin leads.
    (0x3140, 0x3210_3210, 0),
    (0x3144, 0x3210_3210, 0),
    (0x3148, 0x0000_3210, 0),
    (0x314c, 0x0000_3210, 0),
    (0x3150, 0x0000_3210, 0),
    // OIC, RC, HPTC, GCS, BUC, FD.
    (0x31ff & !3, 0, 0xff00_0000),
    (0x3400, 0, 0x1f),
    (0x3404, 0x80, 0x83),
    (GCS, NO_REBOOT, 0x0000_0fff),
    (0x3418, 0, u32::MAX),
];
const GCS: u16 = 0x3410;

/// The registers that software has written, in the order of the table.
#[derive(Clone, Serialize, Deserialize)]
pub struct Rcba(Vec<u32>);

impl Default for Rcba {
    fn default() -> Self {
        Self(REGISTERS.iter().map(|(_, value, _)| *value).collect())
    }
}

impl Rcba {
    fn find(at: u64) -> Option<usize> {
        REGISTERS.iter().position(|(offset, ..)| u64::from(*offset) == at & !3)
    }

    /// The byte at an offset.
    pub fn read(&self, at: u64) -> u8 {
        let word = Self::find(at).and_then(|n| self.0.get(n)).copied().unwrap_or(0);
        word.to_le_bytes()[(at & 3) as usize]
    }

    /// A byte is written.
    pub fn write(&mut self, at: u64, value: u8) {
        let Some(n) = Self::find(at) else { return };
        let Some(word) = self.0.get_mut(n) else { return };
        let shift = 8 * (at & 3);
        let mask = REGISTERS[n].2 & 0xff << shift;
        *word = *word & !mask | u32::from(value) << shift & mask;
    }

    /// Whether the watchdog resets the machine.
    pub fn reboots(&self) -> bool {
        Self::find(GCS.into()).and_then(|n| self.0.get(n)).is_some_and(|gcs| gcs & NO_REBOOT == 0)
    }

    /// Whether it is a state that the registers can have.
    pub fn is_valid(&self) -> bool {
        self.0.len() == REGISTERS.len()
    }
}
