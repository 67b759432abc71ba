//! Memory slots: what of the guest's physical memory KVM reaches by itself.
//!
//! A slot is a run of whole pages of RAM, ROM (read-only) or a device's memory (whose writes are logged; those to RAM
//! too, where a [`mynah_mmu::Tap`] wants to know them). All other
//! addresses are exits. The slots follow the map: [`Slots`] is told of each change, on the thread that makes it and
//! before that goes on. While slots are exchanged vCPUs may meet the gap: that is an exit too, and what answers it
//! looks in the map, where RAM is RAM.
use super::bells::Bells;
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, VmFd};
use mynah_mmu::{CodeWatcher, Gpa, PAGE_MASK, PAGE_SIZE, PhysMemory, Target};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

/// What is below changes often (shadow RAM, the video window), what is above hardly ever: no slot is on both sides.
const BORDER: Gpa = 1 << 20;

/// A run of pages, and how the guest may use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    len: u64,
    host: u64,
    flags: u32,
}

/// The slots of a virtual machine.
pub(super) struct Slots {
    fd: Arc<VmFd>,
    // The memory knows this as one of its watchers.
    memory: Weak<PhysMemory>,
    /// KVM can collect writes.
    collects: bool,
    bells: Option<Arc<Bells>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By address: the slot and its number.
    slots: BTreeMap<Gpa, (Slot, u32)>,
    /// Where KVM collects writes: address and length.
    zones: BTreeSet<(Gpa, u64)>,
    /// Numbers that were used and are not.
    free: Vec<u32>,
    /// Host addresses of pages of devices that were written through slots that are gone.
    written: Vec<u64>,
    /// A slot could not be had, which was said.
    refused: bool,
}

impl Slots {
    /// No slots yet, for this memory.
    pub fn new(
        fd: Arc<VmFd>,
        memory: &Arc<PhysMemory>,
        collects: bool,
        bells: Option<Arc<Bells>>,
    ) -> Arc<Self> {
        Arc::new(Self { fd, memory: Arc::downgrade(memory), collects, bells, state: Mutex::default() })
    }

    /// The slots that the map asks for.
    fn wanted(memory: &PhysMemory) -> BTreeMap<Gpa, Slot> {
        let mut all: BTreeMap<Gpa, Slot> = BTreeMap::new();
        let mut add = |gpa: Gpa, slot: Slot| {
            if let Some((&at, last)) = all.iter_mut().next_back()
                && gpa != BORDER
                && at + last.len == gpa
                && last.host + last.len == slot.host
                && last.flags == slot.flags
            {
                last.len += slot.len;
                return;
            }
            all.insert(gpa, slot);
        };
        let logged = if memory.is_tapped() { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        for (gpa, len, target) in memory.regions() {
            let (host, flags) = match target {
                Target::Ram(p) => (p, logged),
                Target::DeviceRam(p) => (p, KVM_MEM_LOG_DIRTY_PAGES),
                Target::Rom(p) => (p, KVM_MEM_READONLY),
                Target::Mmio(..) | Target::None => continue,
            };
            // Whole pages; what is left at the ends is for exits.
            let Some(first) = gpa.checked_next_multiple_of(PAGE_SIZE) else { continue };
            let end = gpa.saturating_add(len) & !PAGE_MASK;
            let host = (host as u64).wrapping_add(first - gpa);
            if first >= end || host & PAGE_MASK != 0 {
                continue;
            }
            for (from, to) in [(first, end.min(BORDER)), (first.max(BORDER), end)] {
                if from < to {
                    add(from, Slot { len: to - from, host: host + (from - first), flags });
                }
            }
        }
        all
    }

    fn set(&self, number: u32, gpa: Gpa, slot: Slot) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot: number,
            flags: slot.flags,
            guest_phys_addr: gpa,
            memory_size: slot.len,
            userspace_addr: slot.host,
        };
        // SAFETY: the bytes are guest RAM, a ROM or a device's memory, all of which live as long as the `PhysMemory`,
        // which every vCPU of this virtual machine keeps; slots do not overlap, as regions do not.
        unsafe { self.fd.set_user_memory_region(region) }
    }

    /// Has the slots be what the map asks for.
    pub fn update(&self) -> Result<(), kvm_ioctls::Error> {
        let Some(memory) = self.memory.upgrade() else { return Ok(()) };
        if let Some(bells) = &self.bells {
            bells.update();
        }
        let mut state = self.state.lock();
        // Under the lock, or an older map could come after a newer one.
        let wanted = Self::wanted(&memory);
        if self.collects {
            self.update_zones(&memory, &mut state.zones);
        }
        let gone: Vec<_> = state
            .slots
            .iter()
            .filter(|(gpa, (slot, _))| wanted.get(gpa) != Some(slot))
            .map(|(gpa, (slot, number))| (*gpa, *slot, *number))
            .collect();
        for (gpa, slot, number) in gone {
            if slot.flags & KVM_MEM_LOG_DIRTY_PAGES != 0 {
                let written = self.log(number, slot);
                state.written.extend(written);
            }
            self.set(number, gpa, Slot { len: 0, flags: 0, ..slot })?;
            state.slots.remove(&gpa);
            state.free.push(number);
        }
        for (gpa, slot) in wanted {
            if state.slots.contains_key(&gpa) {
                continue;
            }
            let number = state.free.pop().unwrap_or(state.slots.len() as u32);
            if let Err(e) = self.set(number, gpa, slot) {
                state.free.push(number);
                return Err(e);
            }
            state.slots.insert(gpa, (slot, number));
        }
        Ok(())
    }

    /// Has KVM collect writes to devices that permit that. Where it does not they are exits, as all others.
    fn update_zones(&self, memory: &PhysMemory, zones: &mut BTreeSet<(Gpa, u64)>) {
        let wanted: BTreeSet<_> = memory
            .regions()
            .into_iter()
            .filter(|(_, _, target)| matches!(target, Target::Mmio(device, _) if device.posts_writes()))
            .map(|(gpa, len, _)| (gpa, len))
            .collect();
        let size = |len: u64| u32::try_from(len).unwrap_or(u32::MAX);
        for (gpa, len) in zones.difference(&wanted) {
            let _ = self.fd.unregister_coalesced_mmio(IoEventAddress::Mmio(*gpa), size(*len));
        }
        for (gpa, len) in wanted.difference(zones) {
            if let Err(e) = self.fd.register_coalesced_mmio(IoEventAddress::Mmio(*gpa), size(*len)) {
                tracing::debug!("KVM does not collect writes to {gpa:#x}: {e}");
            }
        }
        *zones = wanted;
    }

    /// The host addresses of the pages that were written through a slot since this was asked last.
    fn log(&self, number: u32, slot: Slot) -> Vec<u64> {
        let Ok(words) = self.fd.get_dirty_log(number, slot.len as usize) else {
            // Not known: all of them.
            return (0..slot.len / PAGE_SIZE).map(|page| slot.host + page * PAGE_SIZE).collect();
        };
        let pages = words.iter().enumerate().filter(|(_, word)| **word != 0);
        pages
            .flat_map(|(n, &word)| {
                (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| (n as u64) * 64 + bit)
            })
            .map(|page| slot.host + page * PAGE_SIZE)
            .collect()
    }
}

impl CodeWatcher for Slots {
    fn code_written(&self, _: Gpa, _: u64) {}

    fn map_changed(&self, _: Gpa, _: Gpa) {
        if let Err(e) = self.update()
            && !std::mem::replace(&mut self.state.lock().refused, true)
        {
            tracing::warn!("KVM takes no memory slot: {e}; what is there is reached by exits, which is slow");
        }
    }

    fn written_pages(&self, base: *const u8, len: u64, note: &mut dyn FnMut(u64)) {
        let base = base as u64;
        let mut state = self.state.lock();
        let mut pages = std::mem::take(&mut state.written);
        for (slot, number) in state.slots.values() {
            if slot.flags & KVM_MEM_LOG_DIRTY_PAGES != 0 && (base..base + len).contains(&slot.host) {
                pages.extend(self.log(*number, *slot));
            }
        }
        for page in pages {
            match page.checked_sub(base).filter(|offset| *offset < len) {
                Some(offset) => note(offset),
                // Another device's.
                None => state.written.push(page),
            }
        }
    }
}
