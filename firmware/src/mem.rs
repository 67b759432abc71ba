//! The guest's memory as loaders and table builders see it.
use mynah_mmu::{Gpa, PAGE_MASK, PAGE_SIZE, PhysMemory};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Where the part of RAM that is not below the PCI hole starts.
pub const FOUR_GIB: u64 = 1 << 32;

/// Guest RAM, to be read and written by physical address.
pub trait GuestMemory {
    /// Copies out of RAM; what is not RAM reads as 0xff.
    fn read(&self, gpa: Gpa, buf: &mut [u8]);
    /// Copies into RAM; what is not RAM ignores it.
    fn write(&self, gpa: Gpa, buf: &[u8]);
    /// Bytes of RAM from address 0 up.
    fn below_4g(&self) -> u64;
    /// Bytes of RAM from 4 GiB up.
    fn above_4g(&self) -> u64;
}

impl GuestMemory for PhysMemory {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) {
        PhysMemory::read(self, gpa, buf);
    }
    fn write(&self, gpa: Gpa, buf: &[u8]) {
        PhysMemory::write(self, gpa, buf);
    }
    fn below_4g(&self) -> u64 {
        PhysMemory::below_4g(self)
    }
    fn above_4g(&self) -> u64 {
        PhysMemory::above_4g(self)
    }
}

impl dyn GuestMemory + '_ {
    /// Writes `len` zero bytes.
    pub(crate) fn zero(&self, mut gpa: Gpa, mut len: u64) {
        static ZEROS: [u8; 16 * PAGE_SIZE as usize] = [0; 16 * PAGE_SIZE as usize];
        while len > 0 {
            let n = len.min(ZEROS.len() as u64);
            self.write(gpa, &ZEROS[..n as usize]);
            gpa = gpa.wrapping_add(n);
            len -= n;
        }
    }
}

/// RAM that holds only the pages that were written: for tests and fuzzing, where a guest of any size costs
/// nothing.
pub struct SparseMemory {
    below: u64,
    above: u64,
    pages: RefCell<BTreeMap<u64, Box<[u8; PAGE_SIZE as usize]>>>,
}

impl SparseMemory {
    /// RAM of `below` bytes from 0 and `above` bytes from 4 GiB (multiples of the page size), all zero.
    pub fn new(below: u64, above: u64) -> Self {
        SparseMemory { below, above, pages: RefCell::new(BTreeMap::new()) }
    }

    fn is_ram(&self, gpa: Gpa) -> bool {
        gpa < self.below || gpa.checked_sub(FOUR_GIB).is_some_and(|above| above < self.above)
    }

    /// Calls `f` for each page's part of `gpa .. gpa + len` with (page address, offset in page, range in the
    /// buffer).
    fn for_each_page(gpa: Gpa, len: usize, mut f: impl FnMut(u64, usize, std::ops::Range<usize>)) {
        let mut done = 0;
        while done < len {
            let at = gpa.wrapping_add(done as u64);
            let offset = (at & PAGE_MASK) as usize;
            let n = (len - done).min(PAGE_SIZE as usize - offset);
            f(at & !PAGE_MASK, offset, done..done + n);
            done += n;
        }
    }
}

impl GuestMemory for SparseMemory {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) {
        let pages = self.pages.borrow();
        Self::for_each_page(gpa, buf.len(), |page, offset, range| {
            let out = &mut buf[range];
            match pages.get(&page) {
                _ if !self.is_ram(page) => out.fill(0xff),
                Some(p) => out.copy_from_slice(&p[offset..offset + out.len()]),
                None => out.fill(0),
            }
        });
    }

    fn write(&self, gpa: Gpa, buf: &[u8]) {
        let mut pages = self.pages.borrow_mut();
        Self::for_each_page(gpa, buf.len(), |page, offset, range| {
            let data = &buf[range];
            if !self.is_ram(page) || (!pages.contains_key(&page) && data.iter().all(|&b| b == 0)) {
                return;
            }
            let p = pages.entry(page).or_insert_with(|| Box::new([0; PAGE_SIZE as usize]));
            p[offset..offset + data.len()].copy_from_slice(data);
        });
    }

    fn below_4g(&self) -> u64 {
        self.below
    }
    fn above_4g(&self) -> u64 {
        self.above
    }
}

/// Little-endian fields of a file that may end anywhere.
pub(crate) trait Fields {
    /// The `n` bytes at `offset`.
    fn bytes_at(&self, offset: usize, n: usize) -> Option<&[u8]>;
    /// The byte at `offset`.
    fn u8_at(&self, offset: usize) -> Option<u8> {
        Some(self.bytes_at(offset, 1)?[0])
    }
    /// The word at `offset`.
    fn u16_at(&self, offset: usize) -> Option<u16> {
        Some(u16::from_le_bytes(self.bytes_at(offset, 2)?.try_into().ok()?))
    }
    /// The doubleword at `offset`.
    fn u32_at(&self, offset: usize) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes_at(offset, 4)?.try_into().ok()?))
    }
    /// The quadword at `offset`.
    fn u64_at(&self, offset: usize) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes_at(offset, 8)?.try_into().ok()?))
    }
}

impl Fields for [u8] {
    fn bytes_at(&self, offset: usize, n: usize) -> Option<&[u8]> {
        self.get(offset..offset.checked_add(n)?)
    }
}
