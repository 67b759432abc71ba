//! The i440FX/PIIX chipset, as a PC of 1996 and its emulated descendants have it.
//!
//! ```text
//!   00:00.0  8086:1237  i440FX host bridge   memory map of the first MiB (PAM, SMRAM)
//!   00:01.0  8086:7000  PIIX3 ISA bridge     PIRQ routing, reset control (CF9h)
//!   00:01.3  8086:7113  PIIX4 power manager  ACPI registers, SMI command port (B2h), SMBus
//!            port 92h                        fast A20 and fast reset
//!            port F0h                        FERR#, IGNNE# and IRQ 13
//!            ports 0h, C0h, 81h              the 8237A pair, with page registers
//! ```
//!
//! The Q35/ICH9 chipset, of 2009, has PCI Express:
//!
//! ```text
//!   00:00.0  8086:29C0  Q35 host bridge (MCH)  memory map of the first MiB (PAM), configuration space in memory (ECAM)
//!   00:1F.0  8086:2918  ICH9 LPC bridge        PIRQ routing, ACPI registers, watchdog (TCO), reset control, RCBA
//!   00:1F.3  8086:2930  ICH9 SMBus
//! ```
//!
//! `acpi_ged` is the power management of boards without such a chipset.
//!
//! The IDE and USB functions of PIIX (00:01.1, 00:01.2) are storage's and USB's. Interrupt controllers,
//! timers and their ports are elsewhere too.

pub mod acpi_ged;
pub mod ferr;
pub mod i440fx;
pub mod i8237;
pub mod ich9;
pub mod pam;
pub mod piix3;
pub mod piix4_pm;
mod pm1;
pub mod port92;
pub mod q35;

pub use acpi_ged::AcpiGed;
pub use ferr::Ferr;
pub use i440fx::I440fx;
pub use i8237::IsaDma;
pub use ich9::{Ich9Lpc, Ich9Smbus};
pub use piix3::Piix3;
pub use piix4_pm::Piix4Pm;
pub use port92::Port92;
pub use q35::Q35Mch;

/// What a power button is wired to.
pub trait PowerButton: Send + Sync {
    /// It is pressed: what that means is the guest's business.
    fn press(&self);
}
