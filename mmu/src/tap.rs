//! A second machine beside a first: the same map over RAM of its own, and a [`Tap`] through which all that is not RAM
//! or ROM goes, so that what the first one's devices answer can be written down and given to the second.
//!
//! With a tap, memory of devices is reached as their registers are, each access by itself. DMA takes turns with the
//! vCPU: [`PhysMemory::dma`] is held by who reaches for RAM, and the tap says when.
//!
//! Without one it costs nothing: it stands in the map in the place of devices, and a store that has to look who holds
//! code of its page finds it in the same word.
use crate::map::{Backing, Map, Segment};
use crate::phys::TAPPED;
use crate::{DeviceRam, Gpa, GuestRam, Mmio, PAGE_SIZE, PhysMemory};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Who sees accesses pass that are not to RAM or ROM.
pub trait Tap: Send + Sync {
    /// A device is about to reach for RAM; returns when it may.
    fn dma_begins(&self);
    /// It has done so.
    fn dma_ends(&self);
    /// Bytes of RAM were written otherwise than through a TLB: by a device, or by a vCPU's walk of page tables.
    fn ram_written(&self, gpa: Gpa, len: u64);
    /// A vCPU reads a device, which `read` does; the answer.
    fn mmio_read(&self, gpa: Gpa, size: u8, read: &mut dyn FnMut() -> u64) -> u64;
    /// A vCPU writes to a device, which `write` does.
    fn mmio_write(&self, gpa: Gpa, size: u8, value: u64, write: &mut dyn FnMut());
}

/// A device's turn to reach for RAM.
pub struct DmaTurn<'a>(Option<&'a dyn Tap>);

impl Drop for DmaTurn<'_> {
    fn drop(&mut self) {
        if let Some(tap) = self.0 {
            tap.dma_ends();
        }
    }
}

/// A device's registers with a tap before them.
struct Registers {
    tap: Arc<dyn Tap>,
    device: Arc<dyn Mmio>,
    /// What is added to an offset to make it an address.
    base: Gpa,
}

impl Mmio for Registers {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let gpa = self.base.wrapping_add(offset);
        self.tap.mmio_read(gpa, size, &mut || self.device.read(offset, size))
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        let gpa = self.base.wrapping_add(offset);
        self.tap.mmio_write(gpa, size, value, &mut || self.device.write(offset, size, value));
    }
    fn name(&self) -> &'static str {
        self.device.name()
    }
}

/// A device's memory with a tap before it.
struct Memory {
    tap: Arc<dyn Tap>,
    ram: Arc<DeviceRam>,
    base: Gpa,
}

impl Mmio for Memory {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.tap.mmio_read(self.base.wrapping_add(offset), size, &mut || {
            let mut bytes = [0; 8];
            self.ram.read(offset, &mut bytes[..usize::from(size.min(8))]);
            u64::from_le_bytes(bytes)
        })
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        self.tap.mmio_write(self.base.wrapping_add(offset), size, value, &mut || {
            self.ram.write(offset, &value.to_le_bytes()[..usize::from(size.min(8))]);
        });
    }
    fn memory(&self) -> Option<&DeviceRam> {
        Some(&self.ram)
    }
}

/// Puts a tap before what is in a segment, if that is a device.
pub(crate) fn stand_before(tap: &Arc<dyn Tap>, segment: &mut Segment) {
    let tap = tap.clone();
    let registers = |device: &Arc<dyn Mmio>, at: u64| -> Arc<dyn Mmio> {
        Arc::new(Registers { tap: tap.clone(), device: device.clone(), base: segment.first.wrapping_sub(at) })
    };
    segment.backing = match &segment.backing {
        Backing::Mmio(device, at) => Backing::Mmio(registers(device, *at), *at),
        Backing::RomDevice(ram, at, device, offset) => {
            Backing::RomDevice(ram.clone(), *at, registers(device, *offset), *offset)
        }
        Backing::Device(ram, at) => {
            let base = segment.first.wrapping_sub(*at);
            Backing::Mmio(Arc::new(Memory { tap: tap.clone(), ram: ram.clone(), base }), *at)
        }
        _ => return,
    };
}

/// The map of a machine's memory at one time.
#[derive(Clone)]
pub struct MapCopy(Map);

impl PhysMemory {
    /// From now on accesses pass by `tap`, as soon as vCPUs have flushed their TLBs, which they are told to. Once for
    /// a memory.
    pub fn set_tap(&self, tap: Arc<dyn Tap>) {
        if self.tap.set(tap.clone()).is_err() {
            return;
        }
        for count in &self.code {
            count.fetch_or(TAPPED, Ordering::SeqCst);
        }
        self.change(Some((0, u64::MAX)), |map| map.set_tap(Some(tap)));
    }

    /// A device's turn to reach for RAM, which it has until this is dropped. It may be had twice, but not waited for
    /// with a lock that a vCPU's access to a device takes.
    pub fn dma(&self) -> DmaTurn<'_> {
        let tap = self.tap.get().map(|tap| &**tap);
        if let Some(tap) = tap {
            tap.dma_begins();
        }
        DmaTurn(tap)
    }

    /// The map as it is.
    pub fn map_copy(&self) -> MapCopy {
        MapCopy(self.map.read().clone())
    }

    /// Takes on the map of a memory of the same size. RAM keeps its bytes, and the memory its tap.
    pub fn set_map(&self, copy: MapCopy) {
        self.change(Some((0, u64::MAX)), |map| map.take_on(copy.0));
    }

    /// A memory with the same map, over RAM of its own with the same bytes; ROM is shared.
    ///
    /// # Errors
    /// The host has no room for it.
    pub fn twin(&self) -> io::Result<Arc<Self>> {
        let twin = Self::new(GuestRam::new(self.ram.size())?, self.below);
        twin.set_map(self.map_copy());
        let mut page = [0; PAGE_SIZE as usize];
        for offset in (0..self.ram.size()).step_by(PAGE_SIZE as usize) {
            self.copy_page(offset, &mut page);
            if page != [0; PAGE_SIZE as usize] {
                // SAFETY: the page is in RAM, which was just made and nobody else has.
                unsafe { twin.host(offset).copy_from_nonoverlapping(page.as_ptr(), page.len()) };
            }
        }
        Ok(twin)
    }

    /// Copies out the page at an offset in RAM, whatever lies over it. Nothing happens beyond RAM's end.
    pub fn copy_page(&self, offset: u64, to: &mut [u8; PAGE_SIZE as usize]) {
        if offset.checked_add(PAGE_SIZE).is_some_and(|end| end <= self.ram.size()) {
            // SAFETY: the page is in RAM, which lives as long as `self`; others may write meanwhile.
            unsafe { crate::phys::copy_out(self.host(offset), to) };
        }
    }

    /// Copies in the page at an offset in RAM, whatever lies over it; it counts as written.
    pub fn set_page(&self, offset: u64, from: &[u8; PAGE_SIZE as usize]) {
        if offset.checked_add(PAGE_SIZE).is_some_and(|end| end <= self.ram.size()) {
            // SAFETY: as in `copy_page`.
            unsafe { crate::phys::copy_in(self.host(offset), from) };
            self.written(self.address_of(offset), PAGE_SIZE);
        }
    }

    /// Whether two memories of the same size have the same bytes in the page at an offset in RAM.
    pub fn same_page(&self, other: &Self, offset: u64) -> bool {
        let (mut a, mut b) = ([0; PAGE_SIZE as usize], [0; PAGE_SIZE as usize]);
        self.copy_page(offset, &mut a);
        other.copy_page(offset, &mut b);
        a == b
    }

    /// The guest's address of an offset in RAM.
    pub fn address_of(&self, offset: u64) -> Gpa {
        if offset < self.below { offset } else { offset - self.below + crate::map::FOUR_GIB }
    }

    /// The offset in RAM of a guest's address, whatever lies over it.
    pub fn offset_of(&self, gpa: Gpa) -> Option<u64> {
        self.ram_offset(gpa)
    }

    /// Whether a tap is set.
    pub fn is_tapped(&self) -> bool {
        self.tap.get().is_some()
    }

    /// The offsets in RAM of all pages marked dirty, whose marks go, with those that watchers know to be written.
    pub fn take_all_dirty(&self) -> Vec<u64> {
        let watchers = self.watchers.read().clone();
        for watcher in watchers.iter() {
            watcher.written_pages(self.ram.base(), self.ram.size(), &mut |offset| {
                self.dirty.set(offset / PAGE_SIZE);
            });
        }
        let pages: Vec<u64> = self.dirty.bits().iter_ones().map(|page| page as u64).collect();
        pages.iter().for_each(|&page| {
            self.dirty.clear(page);
        });
        pages.into_iter().map(|page| page * PAGE_SIZE).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeviceRam, Mmio, Page, Target};
    use parking_lot::Mutex;

    struct Chip;
    impl Mmio for Chip {
        fn read(&self, _: u64, _: u8) -> u64 {
            7
        }
        fn write(&self, _: u64, _: u8, _: u64) {
            panic!("the tap keeps it away");
        }
    }

    #[derive(Default)]
    struct Seen(Mutex<Vec<String>>);
    impl Tap for Seen {
        fn dma_begins(&self) {
            self.0.lock().push("dma".into());
        }
        fn dma_ends(&self) {
            self.0.lock().push("done".into());
        }
        fn ram_written(&self, gpa: Gpa, len: u64) {
            self.0.lock().push(format!("ram {gpa:x} {len}"));
        }
        fn mmio_read(&self, gpa: Gpa, size: u8, read: &mut dyn FnMut() -> u64) -> u64 {
            let v = read();
            self.0.lock().push(format!("read {gpa:x} {size} {v}"));
            v + 1
        }
        fn mmio_write(&self, gpa: Gpa, size: u8, value: u64, _: &mut dyn FnMut()) {
            self.0.lock().push(format!("write {gpa:x} {size} {value}"));
        }
    }

    #[test]
    fn a_twin_has_the_same_map_and_bytes_and_its_own_ram() {
        let memory = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
        memory.write(0x5000, &[1, 2, 3]);
        memory.map_rom(0xf_0000, &[9; 4096]);
        memory.map_mmio(0xfec0_0000, 4096, Arc::new(Chip));
        let twin = memory.twin().unwrap();
        assert_eq!((twin.read_u32(0x5000), twin.read_u8(0xf_0000)), (0x03_0201, 9));
        assert_eq!(twin.read_u8(0xfec0_0000), 7);
        twin.take_all_dirty();
        twin.write_u8(0x5001, 0);
        assert_eq!((memory.read_u8(0x5001), twin.take_all_dirty()), (2, vec![0x5000]));
        assert!(!memory.same_page(&twin, 0x5000) && memory.same_page(&twin, 0x6000));
        memory.map_hole(0x5000, 4096);
        twin.set_map(memory.map_copy());
        assert!(matches!(twin.lookup(0x5000), Target::None));
    }

    #[test]
    fn a_tap_sees_devices_their_memory_and_dma() {
        let memory = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
        let ram = DeviceRam::new(0x1000).unwrap();
        memory.map_device_ram(0xe000_0000, 0x1000, &ram, 0);
        memory.map_mmio(0xfec0_0000, 4096, Arc::new(Chip));
        let seen = Arc::new(Seen::default());
        memory.set_tap(seen.clone());
        assert!(matches!(memory.page_at(0xe000_0000, true), Page::Other));
        assert_eq!(memory.phys_read(0xfec0_0010, 4), 8);
        memory.phys_write(0xfec0_0000, 2, 5);
        assert_eq!(memory.phys_read(0xe000_0004, 4), 1);
        memory.phys_write(0xe000_0000, 1, 5);
        {
            let _turn = memory.dma();
            memory.write(0x1234, &[1]);
        }
        assert!(!memory.is_code(0x1234));
        // What is mapped later, too, but not what a device itself does.
        memory.map_mmio(0x8000, 4096, Arc::new(Chip));
        assert_eq!(memory.phys_read(0x8123, 1), 8);
        memory.write(0xe000_0002, &[6]);
        assert_eq!((memory.memory_run(0xe000_0ffe), memory.memory_run(0x8000)), (Some(2), None));
        let expected = [
            "read fec00010 4 7",
            "write fec00000 2 5",
            "read e0000004 4 0",
            "write e0000000 1 5",
            "dma",
            "ram 1234 1",
            "done",
            "read 8123 1 7",
        ];
        assert_eq!(*seen.0.lock(), expected);
    }
}
