//! The ICH9 (82801IR): what of it is not storage or USB.
//!
//! ```text
//!   lpc    00:1F.0  PIRQ routing, the places of what follows, reset control (CF9h), APM ports (B2h, B3h)
//!   pm              ACPI registers and the watchdog (TCO), in a block of 128 ports
//!   rcba            chip configuration registers, 16 KiB of memory
//!   smbus  00:1F.3  a host controller with nothing on its bus
//! ```
//!
//! Source: Intel I/O Controller Hub 9 (ICH9) Family data sheet (316972-004).
mod lpc;
mod pm;
mod rcba;
mod smbus;
#[cfg(test)]
mod tests;

pub use lpc::{DEVFN, Ich9Lpc, Ich9LpcV1, PM_BASE, RCBA_BASE, pirq};
pub use smbus::{BASE as SMBUS_BASE, Ich9Smbus, Ich9SmbusV1};

/// Written to the SMI command port: ACPI takes over.
pub const ACPI_ENABLE: u8 = 2;
/// Written to it: ACPI lets go.
pub const ACPI_DISABLE: u8 = 3;
/// The GPE0 block, from the power management base: 8 bytes of status, 8 of enables.
pub const GPE0: u16 = 0x20;
/// Bytes of the GPE0 block.
pub const GPE0_LEN: u8 = 16;
