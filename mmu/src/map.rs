//! The flat view of the physical address space: what is visible where, after every overlay has hidden what
//! lies below it.
//!
//! Overlays (ROMs and devices) are kept in the order they were mapped; the flat list of segments is made anew
//! from them at each change, which is rare, so that a look-up is one binary search. Segments are sorted,
//! disjoint, and of any length and alignment.

use crate::tap::Tap;
use crate::{DeviceRam, Gpa, Mmio, PAGE_SIZE};
use std::sync::Arc;

/// Where RAM that does not fit below the PCI hole goes on.
pub(crate) const FOUR_GIB: u64 = 1 << 32;

/// A page of ROM, aligned so that it can stand in a host page table (KVM memory slots, direct TLB entries).
#[derive(Clone)]
#[repr(C, align(4096))]
struct RomPage([u8; PAGE_SIZE as usize]);

/// The host memory of a ROM. It is never written after it was made: vCPUs read it through raw pointers at any
/// time.
pub(crate) struct RomImage(Box<[RomPage]>);

impl RomImage {
    /// Copies `image` and fills the last page up with 0xff, as erased flash reads.
    pub fn new(image: &[u8]) -> Self {
        let mut pages = vec![RomPage([0xff; PAGE_SIZE as usize]); image.len().div_ceil(PAGE_SIZE as usize)];
        for (page, chunk) in pages.iter_mut().zip(image.chunks(PAGE_SIZE as usize)) {
            page.0[..chunk.len()].copy_from_slice(chunk);
        }
        Self(pages.into_boxed_slice())
    }

    /// Bytes, a multiple of the page size.
    pub fn len(&self) -> u64 {
        self.0.len() as u64 * PAGE_SIZE
    }

    /// The host address of byte `offset`. Nobody may write through it.
    pub fn at(&self, offset: u64) -> *mut u8 {
        debug_assert!(offset < self.len());
        self.0.as_ptr().cast::<u8>().cast_mut().wrapping_add(offset as usize)
    }

    /// Whether `self` was made from an image with the same bytes.
    pub fn holds(&self, image: &[u8]) -> bool {
        self.0.len() == image.len().div_ceil(PAGE_SIZE as usize)
            && self.0.iter().zip(image.chunks(PAGE_SIZE as usize)).all(|(page, chunk)| {
                page.0[..chunk.len()] == *chunk && page.0[chunk.len()..].iter().all(|&b| b == 0xff)
            })
    }
}

/// What answers in a segment; the number is that of the segment's first byte within RAM, the ROM, or the
/// device's range.
#[derive(Clone)]
pub(crate) enum Backing {
    Ram(u64),
    Rom(Arc<RomImage>, u64),
    /// RAM that is read and not written.
    RamReadOnly(u64),
    /// A ROM is read; what is written goes to RAM (the last number).
    RomOverRam(Arc<RomImage>, u64, u64),
    Mmio(Arc<dyn Mmio>, u64),
    /// Memory of a device's own.
    Device(Arc<DeviceRam>, u64),
    /// Memory of a device's own that is read and executed as a ROM; the device (with the offset in its range) is told
    /// of writes.
    RomDevice(Arc<DeviceRam>, u64, Arc<dyn Mmio>, u64),
    /// Nothing answers.
    Hole,
}

impl Backing {
    /// The same, `by` bytes further on.
    pub fn advanced(&self, by: u64) -> Self {
        match self {
            Self::Ram(at) => Self::Ram(at + by),
            Self::Rom(rom, at) => Self::Rom(rom.clone(), at + by),
            Self::RamReadOnly(at) => Self::RamReadOnly(at + by),
            Self::RomOverRam(rom, at, ram) => Self::RomOverRam(rom.clone(), at + by, ram + by),
            Self::Hole => Self::Hole,
            Self::Mmio(dev, at) => Self::Mmio(dev.clone(), at + by),
            Self::Device(ram, at) => Self::Device(ram.clone(), at + by),
            Self::RomDevice(ram, at, dev, offset) => {
                Self::RomDevice(ram.clone(), at + by, dev.clone(), offset + by)
            }
        }
    }
}

/// A stretch of addresses, `first ..= last`, answered by one thing.
#[derive(Clone)]
pub(crate) struct Segment {
    pub first: Gpa,
    pub last: Gpa,
    pub backing: Backing,
}

/// A mapping that hides what was mapped before it.
#[derive(Clone)]
struct Overlay {
    id: u64,
    segment: Segment,
}

/// All mappings, and the flat view of them.
#[derive(Clone)]
pub(crate) struct Map {
    base: Vec<Segment>,
    overlays: Vec<Overlay>,
    segments: Vec<Segment>,
    next_id: u64,
    /// ROMs that were unmapped. A vCPU that has not flushed its TLB yet may still read them, so they live as
    /// long as the map; mapping the same bytes again takes them from here, so that a guest that switches
    /// shadow RAM on and off costs no memory.
    retired: Vec<Arc<RomImage>>,
    /// All memory of devices that was ever mapped, for the same reason.
    device_rams: Vec<Arc<DeviceRam>>,
    /// Who stands before all devices in the flat view.
    tap: Option<Arc<dyn Tap>>,
}

impl Map {
    /// RAM only: `below` bytes at 0, `above` at 4 GiB.
    pub fn new(below: u64, above: u64) -> Self {
        let mut base = Vec::new();
        if below > 0 {
            base.push(Segment { first: 0, last: below - 1, backing: Backing::Ram(0) });
        }
        if above > 0 {
            base.push(Segment {
                first: FOUR_GIB,
                last: FOUR_GIB + (above - 1),
                backing: Backing::Ram(below),
            });
        }
        Self {
            segments: base.clone(),
            base,
            overlays: Vec::new(),
            next_id: 1,
            retired: Vec::new(),
            device_rams: Vec::new(),
            tap: None,
        }
    }

    /// Puts a tap before all devices, these and later ones.
    pub fn set_tap(&mut self, tap: Option<Arc<dyn Tap>>) {
        self.tap = tap;
        self.flatten();
    }

    /// Takes on the mappings of another one, and keeps its own tap.
    pub fn take_on(&mut self, other: Self) {
        let tap = self.tap.take();
        *self = other;
        self.set_tap(tap);
    }

    /// All segments, sorted.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The segment that holds `gpa`, or how many bytes of nothing follow from there.
    pub fn find(&self, gpa: Gpa) -> Result<&Segment, u64> {
        let next = self.segments.partition_point(|s| s.first <= gpa);
        match next.checked_sub(1).and_then(|i| self.segments.get(i)) {
            Some(segment) if segment.last >= gpa => Ok(segment),
            _ => Err(self.segments.get(next).map_or(u64::MAX, |s| s.first - gpa)),
        }
    }

    /// ROM memory with the bytes of `image`: one that is out of use, or a new one.
    pub fn rom(&mut self, image: &[u8]) -> Arc<RomImage> {
        match self.retired.iter().position(|rom| rom.holds(image)) {
            Some(i) => self.retired.swap_remove(i),
            None => Arc::new(RomImage::new(image)),
        }
    }

    /// Puts `backing` on top at `first ..= last` (`None`: an empty range); returns the mapping's id.
    pub fn add(&mut self, range: Option<(Gpa, Gpa)>, backing: Backing) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        if let Some((first, last)) = range {
            self.overlays.push(Overlay { id, segment: Segment { first, last, backing } });
            self.flatten();
        }
        id
    }

    /// The addresses of mapping `id`.
    pub fn range_of(&self, id: u64) -> Option<(Gpa, Gpa)> {
        self.overlays.iter().find(|o| o.id == id).map(|o| (o.segment.first, o.segment.last))
    }

    /// Keeps a device's memory as long as the map lives.
    pub fn keep(&mut self, ram: &Arc<DeviceRam>) {
        if !self.device_rams.iter().any(|r| Arc::ptr_eq(r, ram)) {
            self.device_rams.push(ram.clone());
        }
    }

    /// The addresses at which a device's memory is mapped, seen or hidden.
    pub fn ranges_of(&self, ram: &Arc<DeviceRam>) -> Vec<(Gpa, Gpa)> {
        let is = |o: &&Overlay| matches!(&o.segment.backing, Backing::Device(r, _) if Arc::ptr_eq(r, ram));
        self.overlays.iter().filter(is).map(|o| (o.segment.first, o.segment.last)).collect()
    }

    /// Takes mapping `id` away; what it hid comes to light.
    pub fn remove(&mut self, id: u64) {
        let Some(i) = self.overlays.iter().position(|o| o.id == id) else { return };
        if let Backing::Rom(rom, _) | Backing::RomOverRam(rom, ..) = self.overlays.remove(i).segment.backing {
            self.retired.push(rom);
        }
        self.flatten();
    }

    /// The mapping of a device, if there is any.
    pub fn device(&self) -> Option<u64> {
        let is = |o: &&Overlay| matches!(o.segment.backing, Backing::Mmio(..) | Backing::RomDevice(..));
        self.overlays.iter().find(is).map(|o| o.id)
    }

    fn flatten(&mut self) {
        let mut flat = self.base.clone();
        for Overlay { segment: top, .. } in &self.overlays {
            let mut next = Vec::with_capacity(flat.len() + 2);
            for s in flat {
                if s.last < top.first || s.first > top.last {
                    next.push(s);
                    continue;
                }
                if s.last > top.last {
                    let first = top.last + 1;
                    next.push(Segment { first, last: s.last, backing: s.backing.advanced(first - s.first) });
                }
                if s.first < top.first {
                    next.push(Segment { last: top.first - 1, ..s });
                }
            }
            next.push(top.clone());
            flat = next;
        }
        flat.sort_unstable_by_key(|s| s.first);
        if let Some(tap) = &self.tap {
            flat.iter_mut().for_each(|s| crate::tap::stand_before(tap, s));
        }
        self.segments = flat;
    }
}
