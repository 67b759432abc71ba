//! Disks and CD-ROM drives, on the cables and command sets by which guests reach them.
//!
//! ```text
//!   scsi   command sets as pure models: what a command descriptor block means, whatever brought it
//!   ata    a device on an ATA cable as a pure model: task file, commands of disks, the packet protocol
//!   atapi  the packet protocol's side of that
//!   nvme   a controller on PCI whose commands lie in rings in guest memory, and its namespaces
//!   ide    two cables on a PIIX3's IDE function: ports, bus master, interrupts, and the drives behind
//!   ahci   SATA controllers: the same devices on ports, commands and data in memory
//!   floppy an 82077AA with its drives
//!   pflash flash chips in the address space, each with a drive for its contents
//! ```
//!
//! A model says what it wants of its drive ([`mynah_block::Drive`]) and is told how that ended; who has it holds the
//! lock, submits, and moves data by DMA.
pub mod ahci;
pub mod ata;
pub mod atapi;
pub mod floppy;
pub mod ide;
pub mod nvme;
pub mod pflash;
pub mod scsi;
