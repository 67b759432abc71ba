//! Free guest RAM while a guest is being set up: what a loader has placed is taken out, so that nothing can
//! overlap.
//!
//! Starts from the usable ranges of the E820 map less the first page, which holds the real-mode interrupt
//! vectors and the BIOS data area. All ranges are half open.
use crate::error::{Reason, Size};
use crate::tables::{E820Kind, E820Map};
use std::collections::BTreeMap;

/// End of conventional memory that is free to loaders (the EBDA stands above).
pub const LOW_END: u64 = crate::tables::EBDA;
/// First byte after the first mebibyte.
pub const ONE_MIB: u64 = 1 << 20;

/// Free RAM. Taking a piece costs the logarithm of the number of pieces, which a hostile kernel has tens of thousands
/// of.
#[derive(Clone, Debug)]
pub struct Places {
    /// Ends of free pieces by their starts.
    free: BTreeMap<u64, u64>,
    /// End of RAM below 4 GiB.
    ram_end: u64,
    /// End of all RAM.
    top: u64,
}

fn align_up(n: u64, align: u64) -> Option<u64> {
    Some(n.checked_add(align - 1)? & !(align - 1))
}

impl Places {
    /// The RAM that `map` calls usable.
    pub fn new(map: &E820Map) -> Self {
        let free: BTreeMap<u64, u64> = (map.entries().iter())
            .filter(|e| e.kind == E820Kind::Usable)
            .map(|e| (e.base.max(0x1000), e.base.saturating_add(e.len)))
            .filter(|(start, end)| start < end)
            .collect();
        let ram_end = free.values().copied().filter(|&e| e <= crate::mem::FOUR_GIB).max().unwrap_or(0);
        let top = free.values().next_back().copied().unwrap_or(0);
        Places { free, ram_end, top }
    }

    /// Takes exactly `start .. start + len`; false, and nothing taken, if any of it is not free.
    #[must_use]
    pub fn claim(&mut self, start: u64, len: u64) -> bool {
        let Some(end) = start.checked_add(len) else { return false };
        if len == 0 {
            return true;
        }
        let Some((&from, &to)) = self.free.range(..=start).next_back().filter(|(_, to)| end <= **to) else {
            return false;
        };
        self.free.remove(&from);
        for (start, end) in [(from, start), (end, to)] {
            if start < end {
                self.free.insert(start, end);
            }
        }
        true
    }

    /// Free pieces that have bytes at or behind `min`, in ascending order.
    fn from(&self, min: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let first = self.free.range(..=min).next_back().map_or(min, |(start, _)| *start);
        self.free.range(first..).map(|(start, end)| (*start, *end))
    }

    /// As `claim`, with an error that names `what`.
    pub fn claim_for(&mut self, what: &str, start: u64, len: u64) -> Result<(), Reason> {
        if self.claim(start, len) {
            return Ok(());
        }
        let end = start.saturating_add(len.saturating_sub(1));
        Err(Reason::NoRam { what: what.to_owned(), start, end, ram_end: self.ram_end })
    }

    /// Takes `len` bytes as low as possible in `min .. limit`. `align` is a power of two.
    pub fn lowest(&mut self, len: u64, align: u64, min: u64, limit: u64) -> Option<u64> {
        let start = self.from(min).take_while(|(start, _)| *start < limit).find_map(|(start, end)| {
            let start = align_up(start.max(min), align)?;
            (start.checked_add(len)? <= end.min(limit)).then_some(start)
        })?;
        self.claim(start, len).then_some(start)
    }

    /// Takes `len` bytes as high as possible in `min .. limit`. `align` is a power of two.
    pub fn highest(&mut self, len: u64, align: u64, min: u64, limit: u64) -> Option<u64> {
        let start = self.free.iter().rev().find_map(|(&start, &end)| {
            let at = end.min(limit).checked_sub(len)? & !(align - 1);
            (at >= start.max(min)).then_some(at)
        })?;
        self.claim(start, len).then_some(start)
    }

    /// The largest free piece in `min .. limit`.
    pub fn largest(&self, min: u64, limit: u64) -> u64 {
        (self.free.iter())
            .map(|(&start, &end)| end.min(limit).saturating_sub(start.max(min)))
            .max()
            .unwrap_or(0)
    }

    /// Takes `len` bytes of conventional memory for a structure that the kernel is handed.
    pub(crate) fn low(&mut self, what: &str, len: u64, align: u64) -> Result<u64, Reason> {
        self.lowest(len, align, 0x1000, LOW_END).ok_or_else(|| self.does_not_fit(what, len, 0x1000, LOW_END))
    }

    /// The error for something that found no place.
    pub(crate) fn does_not_fit(&self, what: &str, len: u64, min: u64, limit: u64) -> Reason {
        let limit = limit.min(self.top);
        let free = Size(self.largest(min, limit));
        Reason::DoesNotFit { what: what.to_owned(), size: Size(len), limit, free }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Places {
        let mut map = E820Map::default();
        map.set(0, 0x9fc00, E820Kind::Usable);
        map.set(0x10_0000, 0x70_0000, E820Kind::Usable);
        Places::new(&map)
    }

    #[test]
    fn nothing_is_given_out_twice() {
        let mut p = places();
        assert!(p.claim(0x20_0000, 0x1000));
        assert!(!p.claim(0x20_0fff, 1));
        assert!(p.claim(0x20_1000, 1));
        let a = p.highest(0x1000, 0x1000, 0, u64::MAX).unwrap();
        let b = p.highest(0x1000, 0x1000, 0, u64::MAX).unwrap();
        assert_eq!((a, b), (0x7f_f000, 0x7f_e000));
    }

    #[test]
    fn limits_and_alignment_are_kept() {
        let mut p = places();
        assert_eq!(p.highest(0x1001, 0x1000, 0x10_0000, 0x30_0000), Some(0x2f_e000));
        assert_eq!(p.lowest(0x10, 0x1000, 0x1001, LOW_END), Some(0x2000));
        assert_eq!(p.lowest(0x80_0000, 1, 0, u64::MAX), None);
        assert_eq!(p.largest(0, LOW_END), 0x9fc00 - 0x2010);
    }

    #[test]
    fn sizes_that_overflow_do_not_fit() {
        let mut p = places();
        assert!(!p.claim(u64::MAX - 4, 16));
        assert!(!p.claim(0x20_0000, u64::MAX));
        assert_eq!(p.lowest(u64::MAX, 0x1000, 0, u64::MAX), None);
        assert_eq!(p.highest(u64::MAX, 0x1000, 0, u64::MAX), None);
    }

    #[test]
    fn the_bios_data_area_is_never_given_out() {
        let mut p = places();
        assert!(!p.claim(0x400, 4));
        assert_eq!(p.lowest(16, 16, 0, u64::MAX), Some(0x1000));
    }
}
