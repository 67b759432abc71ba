//! The E820 map: which physical addresses are RAM, and whose.

/// What a range is for (ACPI 6.5, table 15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    /// RAM that the operating system may use.
    Usable = 1,
    /// Not to be touched.
    Reserved = 2,
    /// ACPI tables: RAM once they have been read.
    Acpi = 3,
    /// Memory that firmware needs across sleep (the FACS).
    Nvs = 4,
}

/// One range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// First address.
    pub base: u64,
    /// Bytes.
    pub len: u64,
    /// What it is for.
    pub kind: E820Kind,
}

/// Ranges in ascending order, none overlapping, neighbours of one kind merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct E820Map {
    entries: Vec<E820Entry>,
}

impl E820Map {
    /// The ranges.
    pub fn entries(&self) -> &[E820Entry] {
        &self.entries
    }

    /// Makes `base .. base + len` of this kind, whatever it was before.
    pub fn set(&mut self, base: u64, len: u64, kind: E820Kind) {
        let end = base.saturating_add(len);
        if base == end {
            return;
        }
        let mut parts = Vec::with_capacity(self.entries.len() + 2);
        for e in &self.entries {
            let e_end = e.base + e.len;
            if e.base < base {
                parts.push(E820Entry { len: e_end.min(base) - e.base, ..*e });
            }
            if e_end > end {
                let from = e.base.max(end);
                parts.push(E820Entry { base: from, len: e_end - from, ..*e });
            }
        }
        parts.push(E820Entry { base, len: end - base, kind });
        parts.sort_by_key(|e| e.base);
        self.entries.clear();
        for e in parts {
            match self.entries.last_mut() {
                Some(last) if last.kind == e.kind && last.base + last.len == e.base => last.len += e.len,
                _ => self.entries.push(e),
            }
        }
    }

    /// The length of the usable range that starts at 1 MiB: the "upper memory" of multiboot and INT 15h.
    pub fn upper_memory(&self) -> u64 {
        let at = |e: &&E820Entry| e.kind == E820Kind::Usable && e.base == 1 << 20;
        self.entries.iter().find(at).map_or(0, |e| e.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use E820Kind::*;

    #[test]
    fn later_ranges_cut_earlier_ones() {
        let mut m = E820Map::default();
        m.set(0, 0x10000, Usable);
        m.set(0x4000, 0x1000, Acpi);
        m.set(0x4800, 0x1000, Reserved);
        let got: Vec<_> = m.entries().iter().map(|e| (e.base, e.len, e.kind)).collect();
        assert_eq!(
            got,
            [
                (0, 0x4000, Usable),
                (0x4000, 0x800, Acpi),
                (0x4800, 0x1000, Reserved),
                (0x5800, 0xa800, Usable)
            ]
        );
    }

    #[test]
    fn neighbours_of_one_kind_become_one() {
        let mut m = E820Map::default();
        m.set(0x1000, 0x1000, Usable);
        m.set(0, 0x1000, Usable);
        assert_eq!(m.entries(), [E820Entry { base: 0, len: 0x2000, kind: Usable }]);
        m.set(0, 0, Reserved);
        assert_eq!(m.entries().len(), 1);
    }
}
