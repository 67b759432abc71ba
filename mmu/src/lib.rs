//! Guest memory: RAM, the physical address map, page walks and the TLB.
//!
//! ```text
//!   linear address --Tlb--> host pointer                   (hit: a compare and an add, inlined by engines)
//!        |  miss
//!        v
//!   walk(Paging) --> physical address --PhysMemory--> Ram | Rom | Mmio | nothing
//! ```
//!
//! `PhysMemory` is shared by all vCPUs, devices (DMA) and accelerators; a `Tlb` belongs to one vCPU. Devices and
//! engines meet here alone, so what else they hand each other is here as well: [`Mmio`] and its doorbells,
//! [`interrupts`].

mod bitmap;
pub mod device_ram;
pub mod interrupts;
mod map;
pub mod phys;
pub mod ram;
pub mod tables;
pub mod tap;
pub mod tlb;
pub mod walk;

pub use device_ram::DeviceRam;
pub use phys::{CodeWatcher, Doorbell, Mmio, Page, PhysMemory, Target, module_of};
pub use ram::{GuestRam, MAX_RAM};
pub use tables::{Leaf, Tables};
pub use tap::{DmaTurn, MapCopy, Tap};
pub use tlb::{
    ENTRY_SHIFT, HASH_SHIFT, Mode, NEVER, PLACES, Place, Tlb, TlbEntry, TlbView, WRITE_PLACES,
    shares_entry_with_previous,
};
pub use walk::{Access, PageFault, Paging, Translation, load_pdptes, walk};

/// A guest physical address.
pub type Gpa = u64;

/// Bytes in the smallest page.
pub const PAGE_SIZE: u64 = 4096;
/// The bits of an address that select a byte in a page.
pub const PAGE_MASK: u64 = PAGE_SIZE - 1;
