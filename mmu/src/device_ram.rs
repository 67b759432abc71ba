//! Memory that a device has of its own and shows in the physical address space: a framebuffer, say.
//!
//! A vCPU accesses it as RAM, at full speed, wherever [`crate::PhysMemory::map_device_ram`] has put it; the device
//! reads it and asks now and then which pages were written ([`crate::PhysMemory::take_written`]). For that, a page is
//! *lent* to TLBs at the first store to it, and taken back when the device asks: then all TLBs are flushed, and the
//! next store lends it again. Who stores in other ways marks the page by itself.
//!
//! Bytes are shared with vCPUs at all times: no reference to them is ever made.
use crate::bitmap::PageBitmap;
use crate::phys::{copy_in, copy_out};
use crate::{CodeWatcher, GuestRam, PAGE_SIZE};
use std::io;
use std::sync::Arc;

/// A device's memory, and which of its pages were written.
pub struct DeviceRam {
    ram: GuestRam,
    /// TLBs may let vCPUs store to these pages.
    lent: PageBitmap,
    /// Pages that were written in another way.
    written: PageBitmap,
}

impl DeviceRam {
    /// `size` bytes (a multiple of the page size), zero, that take memory when they are touched.
    ///
    /// # Errors
    /// The host has no room for them, or the size is none.
    pub fn new(size: u64) -> io::Result<Arc<Self>> {
        let pages = size / PAGE_SIZE;
        Ok(Arc::new(Self {
            ram: GuestRam::new(size)?,
            lent: PageBitmap::new(pages),
            written: PageBitmap::new(pages),
        }))
    }

    /// Bytes.
    #[inline]
    pub fn size(&self) -> u64 {
        self.ram.size()
    }

    /// The host address of byte `offset`, which is less than `size`.
    pub(crate) fn at(&self, offset: u64) -> *mut u8 {
        debug_assert!(offset < self.size());
        self.ram.base().wrapping_add(offset as usize)
    }

    /// How many of `len` bytes from `offset` on there are.
    #[inline(always)]
    fn inside(&self, offset: u64, len: usize) -> usize {
        self.size().saturating_sub(offset).min(len as u64) as usize
    }

    /// Copies bytes out; beyond the end all bits are ones.
    #[inline]
    pub fn read(&self, offset: u64, to: &mut [u8]) {
        let (inside, beyond) = to.split_at_mut(self.inside(offset, to.len()));
        if !inside.is_empty() {
            // SAFETY: that many bytes from `offset` on are in the mapping, which lives as long as `self`.
            unsafe { copy_out(self.at(offset), inside) };
        }
        beyond.fill(0xff);
    }

    /// Copies bytes in; nothing is beyond the end.
    #[inline]
    pub fn write(&self, offset: u64, from: &[u8]) {
        let inside = &from[..self.inside(offset, from.len())];
        if inside.is_empty() {
            return;
        }
        // SAFETY: that many bytes from `offset` on are in the mapping, which lives as long as `self`.
        unsafe { copy_in(self.at(offset), inside) };
        for page in offset / PAGE_SIZE..=(offset + inside.len() as u64 - 1) / PAGE_SIZE {
            self.written.set(page);
        }
    }

    /// Has `watcher` tell of pages that it knows to be written.
    pub(crate) fn ask(&self, watcher: &dyn CodeWatcher) {
        watcher.written_pages(self.ram.base(), self.size(), &mut |offset| {
            self.written.set(offset / PAGE_SIZE);
        });
    }

    /// Sets bytes to zero.
    pub fn clear(&self, offset: u64, len: u64) {
        const ZEROES: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
        let end = offset.saturating_add(len).min(self.size());
        let mut at = offset;
        while at < end {
            let n = (end - at).min(PAGE_SIZE - at % PAGE_SIZE) as usize;
            if !self.is_zero(at, n) {
                self.write(at, &ZEROES[..n]);
            }
            at += n as u64;
        }
    }

    /// Whether `len` bytes (at most a page) from `offset` on are zero.
    pub fn is_zero(&self, offset: u64, len: usize) -> bool {
        let mut bytes = [0; PAGE_SIZE as usize];
        let bytes = &mut bytes[..len.min(PAGE_SIZE as usize)];
        self.read(offset, bytes);
        bytes.iter().all(|&b| b == 0)
    }

    /// Whether stores to a page may go through a TLB, as they do from now on if one is about to.
    pub(crate) fn lend(&self, page: u64, store: bool) -> bool {
        if store {
            self.lent.set(page);
        }
        store || self.lent.get(page)
    }

    /// A bit for each page that was written, and whether any was by way of a TLB; all are clear afterwards.
    pub(crate) fn take_written(&self) -> (Vec<u64>, bool) {
        let pages = self.size() / PAGE_SIZE;
        let mut all = vec![0; pages.div_ceil(64) as usize];
        let mut any_lent = false;
        for (bitmap, lent) in [(&self.written, false), (&self.lent, true)] {
            let set: Vec<_> = bitmap.bits().iter_ones().collect();
            for page in set {
                bitmap.clear(page as u64);
                any_lent |= lent;
                if let Some(word) = all.get_mut(page / 64) {
                    *word |= 1 << (page % 64);
                }
            }
        }
        (all, any_lent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Gpa, Page, PhysMemory, Target};
    use std::sync::atomic::{AtomicU64, Ordering};

    const LFB: Gpa = 0xe000_0000;

    fn setup() -> (Arc<PhysMemory>, Arc<DeviceRam>) {
        let memory = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
        (memory, DeviceRam::new(64 << 10).unwrap())
    }

    #[test]
    fn it_is_memory_wherever_it_is_mapped() {
        let (memory, ram) = setup();
        let id = memory.map_device_ram(LFB, 64 << 10, &ram, 0);
        memory.map_device_ram(0xa_0000, 0x8000, &ram, 0x4000);
        memory.phys_write(LFB + 0x4004, 4, 0x1234_5678);
        assert_eq!(memory.phys_read(0xa_0004, 4), 0x1234_5678);
        memory.write(0xa_0ffe, &[1, 2, 3, 4]);
        let mut bytes = [0; 4];
        ram.read(0x4ffe, &mut bytes);
        assert_eq!(bytes, [1, 2, 3, 4]);
        assert!(matches!(memory.lookup(LFB), Target::DeviceRam(p) if p == ram.at(0)));
        assert_eq!(memory.memory_run(LFB + 0x1000), Some(0xf000));
        assert!(memory.page_is_plain(LFB).is_none(), "code is not decoded there");
        memory.unmap(id);
        assert_eq!(memory.phys_read(LFB, 4), 0xffff_ffff);
        assert_eq!(memory.phys_read(0xa_0004, 4), 0x1234_5678);
    }

    #[test]
    fn beyond_its_end_nothing_is_mapped_or_written() {
        let (memory, ram) = setup();
        memory.map_device_ram(LFB, 1 << 20, &ram, 0x8000);
        assert!(matches!(memory.lookup(LFB + 0x8000), Target::None));
        ram.write(u64::MAX, &[1]);
        ram.write(0xffff, &[7, 8]);
        let mut bytes = [0; 3];
        ram.read(0xffff, &mut bytes);
        assert_eq!(bytes, [7, 0xff, 0xff]);
        ram.clear(0, u64::MAX);
        assert!(ram.is_zero(0xf000, 4096));
    }

    #[test]
    fn pages_are_told_of_once_however_they_were_written() {
        struct Flushes(AtomicU64);
        impl CodeWatcher for Flushes {
            fn code_written(&self, _: Gpa, _: u64) {}
            fn map_changed(&self, first: Gpa, last: Gpa) {
                assert_eq!((first, last), (LFB, LFB + 0xffff));
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let (memory, ram) = setup();
        memory.map_device_ram(LFB, 64 << 10, &ram, 0);
        let flushes = Arc::new(Flushes(AtomicU64::new(0)));
        memory.watch_code(flushes.clone());
        assert_eq!(memory.take_written(&ram), [0]);
        assert!(matches!(memory.page_at(LFB + 0x1234, false), Page::Device(_, false)));
        ram.write(0x2fff, &[1, 1]);
        memory.phys_write(LFB + 0x8000, 1, 1);
        assert_eq!(memory.take_written(&ram), [0b1_0000_1100]);
        assert_eq!(flushes.0.load(Ordering::SeqCst), 0, "no TLB lets stores to it pass");
        assert!(matches!(memory.page_at(LFB + 0x1234, true), Page::Device(p, true) if p == ram.at(0x1000)));
        assert!(matches!(memory.page_at(LFB + 0x1000, false), Page::Device(_, true)));
        let before = memory.generation();
        assert_eq!(memory.take_written(&ram), [0b10]);
        assert_eq!(flushes.0.load(Ordering::SeqCst), 1);
        assert!(memory.generation() > before);
        assert!(matches!(memory.page_at(LFB + 0x1000, false), Page::Device(_, false)));
        assert_eq!(memory.take_written(&ram), [0]);
    }

    #[test]
    fn as_a_rom_it_is_read_and_executed_and_its_device_is_told_of_writes() {
        #[derive(Default)]
        struct Told(std::sync::Mutex<Vec<(u64, u8, u64)>>);
        impl crate::Mmio for Told {
            fn read(&self, _: u64, _: u8) -> u64 {
                panic!("it is not read by the device")
            }
            fn write(&self, offset: u64, size: u8, value: u64) {
                self.0.lock().unwrap().push((offset, size, value));
            }
        }
        let (memory, ram) = setup();
        let told = Arc::new(Told::default());
        ram.write(0x1000, &[1, 2, 3, 4]);
        let id = memory.map_rom_device(LFB, 64 << 10, &ram, 0, told.clone());
        assert_eq!(memory.phys_read(LFB + 0x1000, 4), 0x0403_0201);
        let page = memory.page_is_plain(LFB + 0x1000);
        assert!(page.is_some_and(|(p, writable)| p == ram.at(0x1000) && !writable), "code is decoded there");
        assert!(matches!(memory.page_at(LFB + 0x1000, true), Page::Plain(p, false) if p == ram.at(0x1000)));
        memory.phys_write(LFB + 0x1002, 2, 0x55aa);
        memory.write(LFB + 0x1000, &[9; 4]);
        assert_eq!(*told.0.lock().unwrap(), [(0x1002, 2, 0x55aa)], "and not of DMA");
        assert_eq!(memory.phys_read(LFB + 0x1000, 4), 0x0403_0201);
        memory.unmap(id);
        memory.map_rom_device(LFB, 64 << 10, &ram, 0, told);
        memory.unmap_devices();
        assert!(matches!(memory.lookup(LFB), Target::None));
    }
}
