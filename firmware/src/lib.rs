//! Firmware of a PC that starts without a BIOS: boot protocols and the tables an operating system looks for.
//!
//! ```text
//!   build_tables(mem, Config)      -> Tables { e820, rsdp, .. }  ACPI, SMBIOS, MP table, BDA in guest RAM
//!   load(mem, Tables, LoadRequest) -> Entry                      kernel, initrd, command line in guest RAM
//! ```
//!
//! The machine builds the tables first, because a kernel must be placed around them, then loads the kernel
//! and puts the returned [`Entry`] into its boot processor. Both steps are repeated when the guest resets. No
//! BIOS ROM is mapped: what a BIOS leaves in 0xF0000-0xFFFFF is written to the RAM that lies there.
//!
//! Kernels, their headers and the guest's RAM size are untrusted: whatever does not fit is a [`LoadError`]
//! that names the file and the reason, never a panic. Nothing here holds a lock or a thread.

pub mod bios;
pub mod bzimage;
pub mod detect;
pub mod elf;
pub mod entry;
pub mod error;
mod foreign;
#[cfg(test)]
mod fuzz_tests;
pub mod linuxboot;
pub mod mem;
pub mod multiboot;
pub mod place;
pub mod request;
pub mod tables;
#[cfg(test)]
mod testing;

pub use bios::{Bios, BiosConfig};
pub use detect::{Kind, identify, load};
pub use entry::{CpuMode, DescriptorTable, Entry, Segment};
pub use error::{LoadError, Reason};
pub use mem::{GuestMemory, SparseMemory};
pub use request::{BootProtocol, LoadRequest, Module};
pub use tables::{Config, CpuInfo, E820Entry, E820Kind, E820Map, Tables, TablesError, build_tables};
