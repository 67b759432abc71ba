//! AHCI: SATA controllers as the ICH9 has one, with six ports.
//!
//! ```text
//!   BAR 5  4 KiB  registers: the controller's at 0, port n's at 100h + 80h * n         hba.rs
//!   BAR 4  ports  index (10h) and data (14h) of the same registers
//!   memory        command list -> command table: FIS, packet, regions of memory        port.rs, prdt.rs, fis.rs
//!                 received FISes
//! ```
//!
//! A port carries the task file of an [`crate::storage::ata::Device`], the same that is on an IDE cable: a command goes
//! into its registers, data between its buffer and memory, and what its registers hold then goes back in a FIS.
//! Commands of a queue (NCQ, queue.rs) are a port's own: each has up to [`queue::CHUNK`] bytes at the drive at a time.
//!
//! As on QEMU's controller: six ports, 32 slots, 1.5 Gbit/s, no port multipliers, no staggered spin-up, no enclosure
//! management, no power management of the link; one message.
//!
//! Errors. A device's error (TFES), a table of regions that is too short (OFS), a pointer to where no memory is (HBFS)
//! and a FIS that is none (IFS) stop the port until software clears ST, as the specification has it; PxCI and PxSACT
//! say what was not done, and log 10h which command of a queue has failed.
//!
//! Locks: a port's, which is held while memory is copied, before the controller's, before the function's. Ends of
//! requests are told on the drives' threads, which take the port's lock.
//!
//! Sources: Serial ATA AHCI Specification 1.3.1; Serial ATA Revision 2.6, 10.3 (FISes) and 13.6 (NCQ); ICH9 data sheet
//! (316972-004), chapter 15.
mod fis;
mod hba;
mod port;
mod prdt;
mod queue;
#[cfg(test)]
mod tests;

pub use hba::{Ahci, AhciV1};
