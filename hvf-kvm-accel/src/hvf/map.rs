//! Guest memory as the framework maps it: whole pages of RAM, of ROM to be read, and of devices' memory to be read.
//!
//! All else exits, a write to ROM or to a device's memory too: the interpreter makes it, so that who draws a screen
//! sees it. The mapping follows [`PhysMemory`]'s map.
use super::HvError;
use mynah_mmu::{CodeWatcher, Gpa, PAGE_MASK, PAGE_SIZE, PhysMemory, Target};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Weak};

/// What maps guest memory: `hv_vm_map`.
pub trait GuestMap: Send + Sync {
    /// Maps `len` bytes at `host` to `gpa`.
    ///
    /// # Errors
    /// The framework refuses.
    ///
    /// # Safety
    /// The bytes are the caller's to give, and stay as long as they are mapped.
    unsafe fn map(&self, host: u64, gpa: Gpa, len: u64, writable: bool) -> Result<(), HvError>;
    /// Takes a mapping away.
    ///
    /// # Errors
    /// As above.
    fn unmap(&self, gpa: Gpa, len: u64) -> Result<(), HvError>;
}

/// Host address, length and whether the guest writes there.
type Piece = (u64, u64, bool);

/// The mapping of a virtual machine's memory.
pub struct Map {
    by: Arc<dyn GuestMap>,
    memory: Weak<PhysMemory>,
    pieces: Mutex<BTreeMap<Gpa, Piece>>,
}

impl Map {
    /// Maps this memory, and follows its map from now on.
    ///
    /// # Errors
    /// The framework refuses.
    pub fn new(by: Arc<dyn GuestMap>, memory: &Arc<PhysMemory>) -> Result<Arc<Self>, HvError> {
        let map = Arc::new(Self { by, memory: Arc::downgrade(memory), pieces: Mutex::default() });
        map.update()?;
        memory.watch_code(map.clone());
        Ok(map)
    }

    fn wanted(memory: &PhysMemory) -> BTreeMap<Gpa, Piece> {
        let piece = |(gpa, len, target): (Gpa, u64, Target)| {
            let (host, writable) = match target {
                Target::Ram(p) => (p, true),
                Target::DeviceRam(p) | Target::Rom(p) => (p, false),
                Target::Mmio(..) | Target::None => return None,
            };
            let first = gpa.checked_next_multiple_of(PAGE_SIZE)?;
            let end = gpa.saturating_add(len) & !PAGE_MASK;
            let host = (host as u64).wrapping_add(first - gpa);
            (first < end && host & PAGE_MASK == 0).then_some((first, (host, end - first, writable)))
        };
        memory.regions().into_iter().filter_map(piece).collect()
    }

    fn update(&self) -> Result<(), HvError> {
        let Some(memory) = self.memory.upgrade() else { return Ok(()) };
        let mut pieces = self.pieces.lock();
        // Under the lock, or an older map could come after a newer one.
        let wanted = Self::wanted(&memory);
        let gone: Vec<_> =
            pieces.iter().filter(|(gpa, p)| wanted.get(gpa) != Some(p)).map(|(gpa, p)| (*gpa, p.1)).collect();
        for (gpa, len) in gone {
            self.by.unmap(gpa, len)?;
            pieces.remove(&gpa);
        }
        for (gpa, (host, len, writable)) in wanted {
            if let Entry::Vacant(free) = pieces.entry(gpa) {
                // SAFETY: the bytes are guest RAM, a ROM or a device's memory, which live as long as the `PhysMemory`;
                // and that is kept by every vCPU that could reach them.
                unsafe { self.by.map(host, gpa, len, writable) }?;
                free.insert((host, len, writable));
            }
        }
        Ok(())
    }
}

impl CodeWatcher for Map {
    fn code_written(&self, _: Gpa, _: u64) {}

    fn map_changed(&self, _: Gpa, _: Gpa) {
        if let Err(e) = self.update() {
            tracing::warn!("{e}; what is there is reached by exits, which is slow");
        }
    }
}
