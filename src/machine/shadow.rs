//! What the first MiB shows: RAM, the firmware's ROM, or nothing, as the host bridge's PAM registers say.
use mynah_devices::chipset::pam::{self, Shadow};
use mynah_mmu::PhysMemory;
use parking_lot::Mutex;
use std::sync::Arc;

/// The video window, which is nobody's while there is no adapter.
const VIDEO: (u64, u64) = (0xa_0000, 0x2_0000);
/// Where the end of a firmware image shows.
const TOP: u64 = 0x10_0000;
/// How much of it shows.
const SHOWN: usize = 0x2_0000;

/// A firmware image in the address space, below 4 GiB, and its end below 1 MiB.
pub struct Rom {
    image: Arc<Vec<u8>>,
}

impl Rom {
    /// Maps `image`, whole pages of at most 16 MiB, below 4 GiB.
    pub fn map(memory: &PhysMemory, image: Arc<Vec<u8>>) -> Rom {
        memory.map_rom((1 << 32) - image.len() as u64, &image);
        Rom { image }
    }

    /// The bytes that show at `base` below 1 MiB.
    fn shown(&self, base: u64, len: u64) -> Option<&[u8]> {
        let end = &self.image[self.image.len() - self.image.len().min(SHOWN)..];
        let first = base.checked_sub(TOP - end.len() as u64)? as usize;
        end.get(first..first.checked_add(len as usize)?)
    }
}

/// The regions between C0000h and FFFFFh.
pub struct Shadows {
    memory: Arc<PhysMemory>,
    rom: Option<Rom>,
    /// The mapping over each region, and what it shows.
    mapped: Mutex<Vec<(Shadow, Option<u64>)>>,
}

impl Shadows {
    /// The map at power-on: ROM, or nothing.
    pub fn new(memory: Arc<PhysMemory>, rom: Option<Rom>) -> Arc<Self> {
        memory.map_hole(VIDEO.0, VIDEO.1);
        let shadows = Arc::new(Shadows { memory, rom, mapped: Mutex::default() });
        for region in pam::power_on() {
            shadows.show(region);
        }
        shadows
    }

    /// A region's attributes have changed.
    pub fn show(&self, region: Shadow) {
        let mut mapped = self.mapped.lock();
        let (base, len) = (u64::from(region.base), u64::from(region.len));
        let rom = self.rom.as_ref().and_then(|r| r.shown(base, len));
        let id = match (region.read_ram, region.write_ram, rom) {
            (true, true, _) => None,
            (true, false, _) => Some(self.memory.map_ram_read_only(base, len)),
            (false, true, Some(rom)) => Some(self.memory.map_rom_over_ram(base, rom)),
            (false, false, Some(rom)) => Some(self.memory.map_rom(base, rom)),
            // Writes that reach RAM which nobody can read yet.
            (false, true, None) => Some(self.memory.map_rom_over_ram(base, &vec![0xff; len as usize])),
            (false, false, None) => Some(self.memory.map_hole(base, len)),
        };
        // The new mapping is over the old one already: nothing shows through in between.
        if let Some(old) = mapped.iter_mut().find(|(s, _)| s.base == region.base) {
            let (_, before) = std::mem::replace(old, (region, id));
            if let Some(before) = before {
                self.memory.unmap(before);
            }
        } else {
            mapped.push((region, id));
        }
    }
}
