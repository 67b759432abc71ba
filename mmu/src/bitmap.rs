//! One bit for each page of RAM, set and tested by many threads.
//!
//! Storage is bitvec's atomic `BitBox`. bitvec's own single-bit operations are relaxed; the marks of this
//! crate order memory accesses ("the page is marked before its bytes are decoded"), so those here work on the
//! words, sequentially consistent where they change a bit. Scans go through bitvec. The words come from
//! zeroed pages: a bitmap of a large RAM costs nothing before it is used.

use bitvec::{boxed::BitBox, order::Lsb0, slice::BitSlice};
use std::sync::atomic::{AtomicU64, Ordering};

/// A bit for each page.
pub(crate) struct PageBitmap {
    bits: BitBox<AtomicU64, Lsb0>,
}

impl PageBitmap {
    /// All clear, for `pages` pages.
    pub fn new(pages: u64) -> Self {
        let words = pages.div_ceil(64) as usize;
        // SAFETY: all-zero bytes are a valid `AtomicU64`.
        let words = unsafe { Box::<[AtomicU64]>::new_zeroed_slice(words).assume_init() };
        Self { bits: BitBox::from_boxed_slice(words) }
    }

    /// The bits, for scans. May be a few longer than there are pages.
    pub fn bits(&self) -> &BitSlice<AtomicU64, Lsb0> {
        &self.bits
    }

    /// The word and the mask of a page's bit; `None` past the end.
    #[inline]
    fn word(&self, page: u64) -> Option<(&AtomicU64, u64)> {
        let word = self.bits.as_raw_slice().get((page >> 6) as usize)?;
        Some((word, 1 << (page & 63)))
    }

    /// Whether the bit is set.
    #[inline]
    pub fn get(&self, page: u64) -> bool {
        self.word(page).is_some_and(|(word, mask)| word.load(Ordering::Acquire) & mask != 0)
    }

    /// Sets the bit; true if it was clear. No write to memory if it is set already.
    #[inline]
    pub fn set(&self, page: u64) -> bool {
        let Some((word, mask)) = self.word(page) else { return false };
        word.load(Ordering::SeqCst) & mask == 0 && word.fetch_or(mask, Ordering::SeqCst) & mask == 0
    }

    /// Clears the bit; true if it was set.
    #[inline]
    pub fn clear(&self, page: u64) -> bool {
        let Some((word, mask)) = self.word(page) else { return false };
        word.load(Ordering::SeqCst) & mask != 0 && word.fetch_and(!mask, Ordering::SeqCst) & mask != 0
    }

    /// Sets or clears pages `first .. end`, a word at a time.
    pub fn fill(&self, first: u64, end: u64, value: bool) {
        let mut page = first;
        while page < end {
            let Some((word, _)) = self.word(page) else { return };
            let low = page & 63;
            let count = (64 - low).min(end - page);
            let mask = (u64::MAX >> (64 - count)) << low;
            if value {
                word.fetch_or(mask, Ordering::SeqCst);
            } else if word.load(Ordering::SeqCst) & mask != 0 {
                word.fetch_and(!mask, Ordering::SeqCst);
            }
            page += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_and_clear_tell_whether_they_changed_anything() {
        let map = PageBitmap::new(130);
        assert!(map.set(129) && !map.set(129) && map.get(129) && !map.get(128));
        assert!(map.clear(129) && !map.clear(129) && !map.get(129));
        assert!(!map.set(u64::MAX) && !map.get(u64::MAX) && !map.clear(u64::MAX));
    }

    #[test]
    fn fill_touches_exactly_its_range() {
        let map = PageBitmap::new(256);
        map.fill(60, 200, true);
        assert_eq!(map.bits().iter_ones().collect::<Vec<_>>(), (60..200).collect::<Vec<_>>());
        map.fill(64, 128, false);
        assert_eq!(map.bits().count_ones(), 4 + 72);
        map.fill(10, 10, true);
        assert!(!map.get(10));
    }
}
