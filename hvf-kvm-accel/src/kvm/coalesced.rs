//! Coalesced MMIO: writes that KVM collects in a ring, so that not each is an exit.
//!
//! The ring is one page of a virtual machine's, which each of its vCPUs shows. KVM writes entries at `last`; whoever
//! takes them moves `first`. What is in it was written before anything that a vCPU exits for, and is done first.
use super::failed;
use crate::AccelError;
use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::VcpuFd;
use memmap2::{MmapOptions, MmapRaw};
use mynah_mmu::PhysMemory;
use parking_lot::Mutex;
use std::mem::size_of;
use std::sync::atomic::{AtomicU32, Ordering};

const PAGE: usize = 4096;
/// Entries that it has room for.
const ENTRIES: u32 = ((PAGE - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>()) as u32;

/// The ring.
pub(super) struct Ring {
    page: MmapRaw,
    /// Entries are taken and done one after the other.
    turn: Mutex<()>,
}

impl Ring {
    /// The ring of the virtual machine that this vCPU is of.
    pub fn new(vcpu: &VcpuFd) -> Result<Self, AccelError> {
        let offset = u64::from(KVM_COALESCED_MMIO_PAGE_OFFSET) * PAGE as u64;
        let page = MmapOptions::new().offset(offset).len(PAGE).map_raw(vcpu);
        let page = page.map_err(|e| failed("map its ring of writes")(kvm_ioctls::Error::from(e)))?;
        Ok(Self { page, turn: Mutex::new(()) })
    }

    fn index(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: an aligned number within the page, which is mapped as long as `self`; the kernel writes it atomically.
        unsafe { &*self.page.as_mut_ptr().add(offset).cast::<AtomicU32>() }
    }

    fn first(&self) -> &AtomicU32 {
        self.index(std::mem::offset_of!(kvm_coalesced_mmio_ring, first))
    }

    fn last(&self) -> &AtomicU32 {
        self.index(std::mem::offset_of!(kvm_coalesced_mmio_ring, last))
    }

    /// Does the writes that are in it. Those of this vCPU are all done behind it.
    pub fn drain(&self, memory: &PhysMemory) {
        // `first` moves when an entry is done, so an empty ring has nothing under way.
        if self.first().load(Ordering::Acquire) == self.last().load(Ordering::Acquire) {
            return;
        }
        let _turn = self.turn.lock();
        // No more than the ring holds: other vCPUs may write on and on.
        for _ in 0..ENTRIES {
            let first = self.first().load(Ordering::Relaxed) % ENTRIES;
            if first == self.last().load(Ordering::Acquire) % ENTRIES {
                return;
            }
            let at = size_of::<kvm_coalesced_mmio_ring>() + first as usize * size_of::<kvm_coalesced_mmio>();
            // SAFETY: the entry is within the page, aligned to its numbers' 8 bytes, and the kernel's no more until
            // `first` is behind it.
            let entry = unsafe { self.page.as_ptr().add(at).cast::<kvm_coalesced_mmio>().read() };
            let len = entry.len.min(8) as u8;
            let value = u64::from_le_bytes(entry.data);
            match len {
                1 | 2 | 4 | 8 => memory.phys_write(entry.phys_addr, len, value),
                // A part of an access that crosses a page.
                _ => (0..len)
                    .for_each(|n| memory.phys_write(entry.phys_addr + u64::from(n), 1, value >> (8 * n))),
            }
            self.first().store((first + 1) % ENTRIES, Ordering::Release);
        }
    }
}
