//! The guest's physical address map.
//!
//! RAM lies at 0 up to the PCI hole and goes on at 4 GiB; ROMs and devices are laid over it, later ones over
//! earlier ones, at any byte granularity. Page-wise users (TLBs) ask `page_is_plain`; everybody else asks for
//! bytes.
//!
//! A bitmap says for each page of RAM whether anything lies over it, so that accesses to ordinary RAM take no
//! lock: that is one load. The rest looks in the flat map (`map.rs`) under a reader lock. Another bitmap holds
//! the dirty pages.
//!
//! Each page also has a count of the vCPUs that have decoded code from it, and a mask of those whose TLB may
//! let them store to it without further ado. A vCPU that wants to decode counts itself first and then asks the
//! ones in the mask to give that up; a vCPU that fills its TLB enters itself in the mask first and then looks at
//! the count. Both are sequentially consistent, so that one of the two sees the other.
//!
//! Locks: `map` and `watchers`, never held together, and neither is held while a device or a watcher runs.
//! Order within a store: the bytes, then the dirty mark, then the code count is looked at; `hold_code` is
//! called before the bytes are decoded. So either the decoder sees the new bytes or the writer sees the count.

use crate::bitmap::PageBitmap;
use crate::map::{Backing, FOUR_GIB, Map};
use crate::tap::Tap;
use crate::{DeviceRam, Gpa, GuestRam, PAGE_MASK, PAGE_SIZE};
use parking_lot::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};

/// What a device answers to on the physical address bus. `offset` counts from the start of the mapped range,
/// `size` is 1, 2, 4 or 8. Wider and page-crossing accesses are split by the caller.
pub trait Mmio: Send + Sync {
    /// Reads `size` bytes, zero-extended.
    fn read(&self, offset: u64, size: u8) -> u64;
    /// Writes the low `size` bytes of `value`.
    fn write(&self, offset: u64, size: u8, value: u64);
    /// Whether a write may come later than the guest makes it, but before whatever else its vCPU does outside of RAM. An
    /// engine that leaves the guest for each write collects such ones.
    fn posts_writes(&self) -> bool {
        false
    }
    /// Where a write wakes somebody and does no more. An engine may have the guest go on and another thread make the write.
    fn doorbells(&self) -> Vec<Doorbell> {
        Vec::new()
    }
    /// What it is, for people: the module that it is written in.
    fn name(&self) -> &'static str {
        module_of(std::any::type_name::<Self>())
    }
    /// The memory behind it, with the same offsets, if that is all that it is.
    fn memory(&self) -> Option<&DeviceRam> {
        None
    }
}

/// A register of a device's that wakes it, as virtio's notification of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// In the device's range.
    pub offset: u64,
    /// The value, 4 bytes wide, that has to be written; `None`: any, of any width.
    pub value: Option<u32>,
}

/// The module's own name in the path of a type.
pub fn module_of(path: &'static str) -> &'static str {
    let path = path.split('<').next().unwrap_or(path);
    path.rsplit("::").nth(1).unwrap_or(path)
}

/// Told when bytes on a page that someone holds with `hold_code` are written by anyone but its own vCPU's fast
/// path, and when the map changes.
pub trait CodeWatcher: Send + Sync {
    /// Bytes `gpa .. gpa + len` (within one page) have changed.
    fn code_written(&self, gpa: Gpa, len: u64);
    /// Something else stands at `first ..= last` now: what was translated to there or decoded from there no
    /// longer holds.
    fn map_changed(&self, _first: Gpa, _last: Gpa) {}
    /// Pages of RAM or of a device's memory, the `len` bytes at `_base`, were written in ways that only the watcher
    /// knows of since it was last asked: `_note` is told of the offset of each.
    fn written_pages(&self, _base: *const u8, _len: u64, _note: &mut dyn FnMut(u64)) {}
}

/// What stands at a physical address.
pub enum Target {
    /// RAM: the host address of that very byte; the rest of its 4 KiB page follows contiguously (where
    /// nothing else is mapped over it).
    Ram(*mut u8),
    /// ROM: as RAM, but writes are ignored: nobody may store through the pointer.
    Rom(*mut u8),
    /// A device and the offset in its range.
    Mmio(Arc<dyn Mmio>, u64),
    /// Memory of a device's own, as RAM. Who stores through the pointer has the device be told, by
    /// [`PhysMemory::page_at`].
    DeviceRam(*mut u8),
    /// Nothing: reads give all ones, writes vanish.
    None,
}

/// What a page is to a TLB.
pub enum Page {
    /// RAM or ROM: its host address, and whether it may be written.
    Plain(*mut u8, bool),
    /// Memory of a device, which may be written: its host address, and whether stores may go without further ado.
    /// Code there is not watched.
    Device(*mut u8, bool),
    /// Registers or nothing, if only in part.
    Other,
}

/// As `Target`, with RAM by its offset.
enum Found {
    Ram(u64),
    Rom(*mut u8),
    /// As `Rom`; writes go to RAM.
    RomOverRam(*mut u8, u64),
    Mmio(Arc<dyn Mmio>, u64),
    Device(Arc<DeviceRam>, u64),
    /// As `Rom`; the device is told of writes.
    RomDevice(Arc<DeviceRam>, u64, Arc<dyn Mmio>, u64),
    None,
}

/// In the count of who holds code of a page: a tap sees writes to it. So that a store looks at one word for both.
pub(crate) const TAPPED: u16 = 1 << 15;

/// The physical address space: RAM below and above the PCI hole, ROMs, devices.
pub struct PhysMemory {
    pub(crate) ram: GuestRam,
    pub(crate) below: u64,
    above: u64,
    pub(crate) map: RwLock<Map>,
    /// Pages of RAM over which something else lies, whole or in part. Conservative while the map changes.
    overlaid: PageBitmap,
    /// How many hold decoded code of each page, with [`TAPPED`].
    pub(crate) code: Box<[AtomicU16]>,
    /// Whose TLB may allow fast writes to each page.
    writers: Box<[AtomicU64]>,
    pub(crate) dirty: PageBitmap,
    dirty_log: AtomicBool,
    generation: AtomicU64,
    map_generation: AtomicU64,
    pub(crate) watchers: RwLock<Arc<[Arc<dyn CodeWatcher>]>>,
    /// Who sees accesses pass, if somebody does.
    pub(crate) tap: OnceLock<Arc<dyn Tap>>,
}

impl PhysMemory {
    /// RAM is mapped at 0 up to `below_4g`, the rest at 4 GiB. `below_4g` counts in whole pages, and no more
    /// than there is RAM.
    pub fn new(ram: GuestRam, below_4g: u64) -> Arc<Self> {
        let below = below_4g.min(ram.size()).min(FOUR_GIB) & !PAGE_MASK;
        let above = ram.size() - below;
        let pages = ram.size() / PAGE_SIZE;
        let count = pages as usize;
        // The words come from zeroed pages: they cost nothing before they are used.
        // SAFETY: all-zero bytes are valid atomics.
        let (code, writers) = unsafe {
            (Box::new_zeroed_slice(count).assume_init(), Box::new_zeroed_slice(count).assume_init())
        };
        Arc::new(Self {
            map: RwLock::new(Map::new(below, above)),
            overlaid: PageBitmap::new(pages),
            code,
            writers,
            dirty: PageBitmap::new(pages),
            dirty_log: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            map_generation: AtomicU64::new(0),
            watchers: RwLock::new(Arc::new([])),
            tap: OnceLock::new(),
            ram,
            below,
            above,
        })
    }

    /// The RAM.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Bytes of RAM below 4 GiB.
    pub fn below_4g(&self) -> u64 {
        self.below
    }

    /// Bytes of RAM from 4 GiB up.
    pub fn above_4g(&self) -> u64 {
        self.above
    }

    /// The offset in RAM of the byte that RAM has at `gpa`, whether or not something lies over it.
    #[inline(always)]
    pub(crate) fn ram_offset(&self, gpa: Gpa) -> Option<u64> {
        if gpa < self.below {
            return Some(gpa);
        }
        let above = gpa.wrapping_sub(FOUR_GIB);
        (above < self.above).then(|| self.below + above)
    }

    /// The offset in RAM of `gpa` if its whole page is RAM with nothing over it.
    #[inline(always)]
    fn plain_ram(&self, gpa: Gpa) -> Option<u64> {
        self.ram_offset(gpa).filter(|offset| !self.overlaid.get(offset / PAGE_SIZE))
    }

    /// The host address of an offset in RAM.
    #[inline(always)]
    pub(crate) fn host(&self, offset: u64) -> *mut u8 {
        self.ram.base().wrapping_add(offset as usize)
    }

    /// What stands at `gpa`, and for how many bytes (at least) it goes on.
    fn find(&self, gpa: Gpa) -> (Found, u64) {
        if let Some(offset) = self.plain_ram(gpa) {
            return (Found::Ram(offset), PAGE_SIZE - (gpa & PAGE_MASK));
        }
        let map = self.map.read();
        match map.find(gpa) {
            Err(gap) => (Found::None, gap),
            Ok(segment) => {
                let inside = gpa - segment.first;
                let found = match &segment.backing {
                    Backing::Ram(at) => Found::Ram(at + inside),
                    Backing::Rom(rom, at) => Found::Rom(rom.at(at + inside)),
                    Backing::RamReadOnly(at) => Found::Rom(self.host(at + inside)),
                    Backing::RomOverRam(rom, at, ram) => Found::RomOverRam(rom.at(at + inside), ram + inside),
                    Backing::Mmio(dev, at) => Found::Mmio(dev.clone(), at + inside),
                    Backing::Device(ram, at) => Found::Device(ram.clone(), at + inside),
                    Backing::RomDevice(ram, at, dev, offset) => {
                        Found::RomDevice(ram.clone(), at + inside, dev.clone(), offset + inside)
                    }
                    Backing::Hole => Found::None,
                };
                (found, (segment.last - gpa).saturating_add(1))
            }
        }
    }

    /// What stands at `gpa`.
    pub fn lookup(&self, gpa: Gpa) -> Target {
        match self.find(gpa).0 {
            Found::Ram(offset) => Target::Ram(self.host(offset)),
            Found::Rom(host) | Found::RomOverRam(host, _) => Target::Rom(host),
            Found::Mmio(dev, offset) => Target::Mmio(dev, offset),
            Found::Device(ram, offset) => Target::DeviceRam(ram.at(offset)),
            Found::RomDevice(ram, offset, ..) => Target::Rom(ram.at(offset)),
            Found::None => Target::None,
        }
    }

    /// The host address of the page of `gpa` and whether it may be written, if the whole 4 KiB page is RAM or
    /// ROM, so that a TLB may map it and code be decoded from it. `None` for pages that are devices, their memory too,
    /// or nothing, even in part.
    pub fn page_is_plain(&self, gpa: Gpa) -> Option<(*mut u8, bool)> {
        let page = gpa & !PAGE_MASK;
        match self.find(page) {
            (Found::Ram(offset), run) if run >= PAGE_SIZE => Some((self.host(offset), true)),
            (Found::Rom(host) | Found::RomOverRam(host, _), run) if run >= PAGE_SIZE => Some((host, false)),
            (Found::RomDevice(ram, at, ..), run) if run >= PAGE_SIZE && at & PAGE_MASK == 0 => {
                Some((ram.at(at), false))
            }
            _ => None,
        }
    }

    /// What a TLB may map of the page of `gpa`, which is about to be written if `write`: a device whose memory it is
    /// finds it written from now on.
    pub fn page_at(&self, gpa: Gpa, write: bool) -> Page {
        let page = gpa & !PAGE_MASK;
        match self.find(page) {
            (Found::Ram(offset), run) if run >= PAGE_SIZE => Page::Plain(self.host(offset), true),
            (Found::Rom(host) | Found::RomOverRam(host, _), run) if run >= PAGE_SIZE => {
                Page::Plain(host, false)
            }
            (Found::RomDevice(ram, at, ..), run) if run >= PAGE_SIZE && at & PAGE_MASK == 0 => {
                Page::Plain(ram.at(at), false)
            }
            (Found::Device(ram, offset), run) if run >= PAGE_SIZE && offset & PAGE_MASK == 0 => {
                Page::Device(ram.at(offset), ram.lend(offset / PAGE_SIZE, write))
            }
            _ => Page::Other,
        }
    }

    /// The map as it is: address, length and what answers there, sorted, without the gaps. For memory slots
    /// of an accelerator.
    pub fn regions(&self) -> Vec<(Gpa, u64, Target)> {
        let map = self.map.read();
        let region = |s: &crate::map::Segment| {
            let target = match &s.backing {
                Backing::Ram(at) => Target::Ram(self.host(*at)),
                Backing::Rom(rom, at) | Backing::RomOverRam(rom, at, _) => Target::Rom(rom.at(*at)),
                Backing::RamReadOnly(at) => Target::Rom(self.host(*at)),
                Backing::Mmio(dev, at) => Target::Mmio(dev.clone(), *at),
                Backing::Device(ram, at) => Target::DeviceRam(ram.at(*at)),
                Backing::RomDevice(ram, at, ..) => Target::Rom(ram.at(*at)),
                Backing::Hole => Target::None,
            };
            (s.first, (s.last - s.first).saturating_add(1), target)
        };
        map.segments().iter().map(region).collect()
    }

    /// Maps a device; later mappings hide earlier ones. Returns an id for `unmap`.
    pub fn map_mmio(&self, gpa: Gpa, len: u64, dev: Arc<dyn Mmio>) -> u64 {
        let range = range(gpa, len);
        self.change(range, |map| map.add(range, Backing::Mmio(dev, 0)))
    }

    /// Maps `len` bytes of a device's own memory from `offset` on, as RAM that the device shares: accesses are as fast
    /// as those to RAM. All counts in whole pages, and what is beyond the memory's end is not mapped.
    pub fn map_device_ram(&self, gpa: Gpa, len: u64, ram: &Arc<DeviceRam>, offset: u64) -> u64 {
        let range = range(gpa, len.min(ram.size().saturating_sub(offset)));
        self.change(range, |map| {
            map.keep(ram);
            map.add(range, Backing::Device(ram.clone(), offset))
        })
    }

    /// Maps `len` bytes of a device's own memory from `offset` on, to be read and executed as a ROM; writes go to
    /// `dev`, at offsets from the start of the range. The memory may change only while it is not mapped so: code that
    /// was decoded there is not looked at again before the map changes. All counts in whole pages, and what is beyond
    /// the memory's end is not mapped.
    pub fn map_rom_device(
        &self,
        gpa: Gpa,
        len: u64,
        ram: &Arc<DeviceRam>,
        offset: u64,
        dev: Arc<dyn Mmio>,
    ) -> u64 {
        let range = range(gpa, len.min(ram.size().saturating_sub(offset)));
        self.change(range, |map| {
            map.keep(ram);
            map.add(range, Backing::RomDevice(ram.clone(), offset, dev, 0))
        })
    }

    /// The pages of a device's memory that were written since the last call, a bit for each. A store of a vCPU that
    /// runs meanwhile may be told of by neither this call nor the next one: who needs the last byte looks at a page
    /// again when it is not written any more.
    pub fn take_written(&self, ram: &Arc<DeviceRam>) -> Vec<u64> {
        let watchers = self.watchers.read().clone();
        for watcher in watchers.iter() {
            ram.ask(&**watcher);
        }
        let (written, lent) = ram.take_written();
        if lent {
            // TLBs let stores pass that would not be noticed.
            let ranges = self.map.read().ranges_of(ram);
            self.generation.fetch_add(1, Ordering::SeqCst);
            for (first, last) in ranges {
                watchers.iter().for_each(|w| w.map_changed(first, last));
            }
        }
        written
    }

    /// Maps a ROM (length rounded up to pages, the rest reads 0xff); writes to it are ignored.
    pub fn map_rom(&self, gpa: Gpa, image: &[u8]) -> u64 {
        let range = range(gpa, (image.len() as u64).next_multiple_of(PAGE_SIZE));
        self.change(range, |map| {
            let rom = map.rom(image);
            map.add(range, Backing::Rom(rom, 0))
        })
    }

    /// Lets RAM be read and not written: shadowed firmware. `gpa` and `len` count in whole pages of RAM below 4 GiB;
    /// where there is no RAM there is nothing.
    pub fn map_ram_read_only(&self, gpa: Gpa, len: u64) -> u64 {
        let range = range(gpa, len);
        let backing = match self.low_ram(gpa, len) {
            true => Backing::RamReadOnly(gpa),
            false => Backing::Hole,
        };
        self.change(range, |map| map.add(range, backing))
    }

    /// Maps a ROM as `map_rom` does, but writes go to the RAM that lies below it: how firmware is copied to shadow RAM.
    pub fn map_rom_over_ram(&self, gpa: Gpa, image: &[u8]) -> u64 {
        let len = (image.len() as u64).next_multiple_of(PAGE_SIZE);
        if !self.low_ram(gpa, len) {
            return self.map_rom(gpa, image);
        }
        let range = range(gpa, len);
        self.change(range, |map| {
            let rom = map.rom(image);
            map.add(range, Backing::RomOverRam(rom, 0, gpa))
        })
    }

    /// Makes a hole: nothing answers there, whatever was mapped before.
    pub fn map_hole(&self, gpa: Gpa, len: u64) -> u64 {
        let range = range(gpa, len);
        self.change(range, |map| map.add(range, Backing::Hole))
    }

    /// Whether all of these addresses are RAM below the PCI hole, where offsets in RAM are addresses.
    fn low_ram(&self, gpa: Gpa, len: u64) -> bool {
        gpa.checked_add(len).is_some_and(|end| end <= self.below)
    }

    /// Takes a mapping away.
    pub fn unmap(&self, id: u64) {
        // Ids are not used twice, so the range cannot become another's between the two locks.
        let range = self.map.read().range_of(id);
        if range.is_some() {
            self.change(range, |map| map.remove(id));
        }
    }

    /// Takes all devices off the map, which may hold memory themselves: for the end of a machine.
    pub fn unmap_devices(&self) {
        while let Some(id) = { self.map.read().device() } {
            self.unmap(id);
        }
    }

    /// Changes the map in `range`. Meanwhile the pages there count as overlaid, which sends everybody to the
    /// lock.
    pub(crate) fn change<R>(&self, range: Option<(Gpa, Gpa)>, with: impl FnOnce(&mut Map) -> R) -> R {
        let mut map = self.map.write();
        let Some((first, last)) = range else { return with(&mut map) };
        let (first, last) = (first & !PAGE_MASK, last | PAGE_MASK);
        for (from, to) in self.ram_pages(first, last) {
            self.overlaid.fill(from, to, true);
        }
        let result = with(&mut map);
        for segment in map.segments().iter().filter(|s| matches!(s.backing, Backing::Ram(_))) {
            let (from, to) = (segment.first.max(first), segment.last.min(last));
            // Whole pages only: a page of which something hides a part stays marked.
            let from = from.next_multiple_of(PAGE_SIZE);
            let to = (to + 1) & !PAGE_MASK;
            if from < to {
                for (from, to) in self.ram_pages(from, to - 1) {
                    self.overlaid.fill(from, to, false);
                }
            }
        }
        self.map_generation.fetch_add(1, Ordering::SeqCst);
        self.generation.fetch_add(1, Ordering::SeqCst);
        drop(map);
        let watchers = self.watchers.read().clone();
        for watcher in watchers.iter() {
            watcher.map_changed(first, last);
        }
        result
    }

    /// The pages of RAM (by offset, the end excluded) between two guest addresses, below and above 4 GiB.
    fn ram_pages(&self, first: Gpa, last: Gpa) -> [(u64, u64); 2] {
        let part = |base: Gpa, len: u64, offset: u64| {
            let Some(rest) = len.checked_sub(1) else { return (0, 0) };
            let (from, to) = (first.max(base), last.min(base + rest));
            if from > to {
                return (0, 0);
            }
            ((from - base + offset) / PAGE_SIZE, (to - base + offset) / PAGE_SIZE + 1)
        };
        [part(0, self.below, 0), part(FOUR_GIB, self.above, self.below)]
    }

    /// Counts changes after which a TLB's entries are no longer right (the map, dirty logging): a vCPU whose
    /// TLB was filled under another generation flushes it.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Counts changes of the map alone: code that was decoded by physical address under another one may show
    /// other bytes now.
    #[inline]
    pub fn map_generation(&self) -> u64 {
        self.map_generation.load(Ordering::Acquire)
    }

    /// Copies from RAM/ROM (holes read as 0xff); what DMA uses. Never touches MMIO. Aligned reads of 1, 2, 4
    /// or 8 bytes are not torn.
    pub fn read(&self, mut gpa: Gpa, mut buf: &mut [u8]) {
        while !buf.is_empty() {
            let (found, run) = self.find(gpa);
            let n = run.min(PAGE_SIZE - (gpa & PAGE_MASK)).min(buf.len() as u64);
            let (chunk, rest) = buf.split_at_mut(n as usize);
            match found {
                // SAFETY: `find` says that `run` bytes from there are RAM, or ROM of the map, and neither
                // goes away while `self` lives.
                Found::Ram(offset) => unsafe { copy_out(self.host(offset), chunk) },
                // SAFETY: as above.
                Found::Rom(host) | Found::RomOverRam(host, _) => unsafe { copy_out(host, chunk) },
                Found::Device(ram, offset) | Found::RomDevice(ram, offset, ..) => ram.read(offset, chunk),
                Found::Mmio(dev, offset) => match dev.memory() {
                    Some(ram) => ram.read(offset, chunk),
                    None => chunk.fill(0xff),
                },
                Found::None => chunk.fill(0xff),
            }
            buf = rest;
            gpa = gpa.wrapping_add(n);
        }
    }

    /// Copies into RAM (ROM and holes ignore it), marks pages dirty, tells code watchers. Never touches MMIO.
    /// Aligned writes of 1, 2, 4 or 8 bytes are not torn.
    pub fn write(&self, mut gpa: Gpa, mut buf: &[u8]) {
        while !buf.is_empty() {
            let (found, run) = self.find(gpa);
            let n = run.min(PAGE_SIZE - (gpa & PAGE_MASK)).min(buf.len() as u64);
            let (chunk, rest) = buf.split_at(n as usize);
            match found {
                Found::Ram(offset) | Found::RomOverRam(_, offset) => {
                    // SAFETY: `find` says that `run` bytes from there are RAM, which lives as long as `self`.
                    unsafe { copy_in(self.host(offset), chunk) };
                    self.ram_written(offset, gpa, n);
                }
                Found::Device(ram, offset) => ram.write(offset, chunk),
                Found::Mmio(dev, offset) => {
                    if let Some(ram) = dev.memory() {
                        ram.write(offset, chunk);
                    }
                }
                Found::Rom(_) | Found::RomDevice(..) | Found::None => {}
            }
            buf = rest;
            gpa = gpa.wrapping_add(n);
        }
    }

    /// What follows stores to RAM at `gpa` through the pointer that [`PhysMemory::lookup`] gave: marks pages dirty,
    /// tells code watchers. `len` is no more than the run of RAM there.
    pub fn written(&self, mut gpa: Gpa, mut len: u64) {
        while len > 0 {
            let n = len.min(PAGE_SIZE - (gpa & PAGE_MASK));
            if let Some(offset) = self.ram_offset(gpa) {
                self.ram_written(offset, gpa, n);
            }
            gpa = gpa.wrapping_add(n);
            len -= n;
        }
    }

    /// The host address of RAM at `gpa`, and how many bytes of RAM follow there with nothing over them.
    pub fn ram_at(&self, gpa: Gpa) -> Option<(*mut u8, u64)> {
        match self.find(gpa) {
            (Found::Ram(offset), run) => Some((self.host(offset), run)),
            _ => None,
        }
    }

    /// Gives the host its memory of the whole pages of RAM among `len` bytes from `gpa` on back: they read as zeros
    /// then. How many bytes that were.
    pub fn discard(&self, gpa: Gpa, len: u64) -> u64 {
        let Some(end) = gpa.checked_add(len).map(|end| end & !PAGE_MASK) else { return 0 };
        let (Some(mut at), mut given) = (gpa.checked_next_multiple_of(PAGE_SIZE), 0) else { return 0 };
        while at < end {
            let (mut n, mut skip) = (0, PAGE_SIZE);
            let mut ram = None;
            // As much as lies together.
            while at + n < end {
                let (found, run) = self.find(at + n);
                let whole = run.min(end - at - n) & !PAGE_MASK;
                match found {
                    Found::Ram(offset) if whole > 0 && offset == *ram.get_or_insert(offset) + n => n += whole,
                    _ if n == 0 => {
                        skip = whole.max(PAGE_SIZE);
                        break;
                    }
                    _ => break,
                }
            }
            if let Some(offset) = ram.filter(|_| n > 0)
                && self.ram.discard(offset, n)
            {
                self.written(at, n);
                given += n;
            }
            at = at.saturating_add(if n > 0 { n } else { skip });
        }
        given
    }

    /// How many bytes of RAM, ROM or a device's memory follow from `gpa` on, if it is in one of these.
    pub fn memory_run(&self, gpa: Gpa) -> Option<u64> {
        match self.find(gpa) {
            (Found::None, _) => None,
            (Found::Mmio(dev, _), run) => dev.memory().map(|_| run),
            (_, run) => Some(run),
        }
    }

    /// What follows a store to RAM (within one page) that did not go through a TLB.
    #[inline]
    fn ram_written(&self, offset: u64, gpa: Gpa, len: u64) {
        self.dirty.set(offset / PAGE_SIZE);
        fence(Ordering::SeqCst);
        if self.is_noted(offset) {
            self.note_written(offset, gpa, len);
        }
    }

    /// Reads `size` (up to 8) bytes as the CPU does: RAM, ROM, devices; nothing reads as all ones. Split at
    /// page and range borders.
    #[inline]
    pub fn phys_read(&self, gpa: Gpa, size: u8) -> u64 {
        let size = size.min(8);
        if (gpa & PAGE_MASK) + u64::from(size) <= PAGE_SIZE
            && let Some(offset) = self.plain_ram(gpa)
        {
            let mut bytes = [0; 8];
            // SAFETY: the whole page is RAM, and the access stays on it.
            unsafe { copy_out(self.host(offset), &mut bytes[..usize::from(size)]) };
            return u64::from_le_bytes(bytes);
        }
        self.phys_read_split(gpa, size)
    }

    #[cold]
    fn phys_read_split(&self, gpa: Gpa, size: u8) -> u64 {
        let mut bytes = [0xff; 8];
        let mut done = 0;
        while done < size {
            let at = gpa.wrapping_add(done.into());
            let (found, run) = self.find(at);
            let n = run.min(PAGE_SIZE - (at & PAGE_MASK)).min((size - done).into()) as u8;
            let chunk = &mut bytes[usize::from(done)..usize::from(done + n)];
            match found {
                // SAFETY: `find` says that `run` bytes from there are RAM, or ROM of the map, and neither
                // goes away while `self` lives.
                Found::Ram(offset) => unsafe { copy_out(self.host(offset), chunk) },
                // SAFETY: as above.
                Found::Rom(host) | Found::RomOverRam(host, _) => unsafe { copy_out(host, chunk) },
                Found::Mmio(dev, offset) => {
                    for (i, width) in widths(n) {
                        let value = dev.read(offset.wrapping_add(i.into()), width);
                        let (i, width) = (usize::from(i), usize::from(width));
                        chunk[i..i + width].copy_from_slice(&value.to_le_bytes()[..width]);
                    }
                }
                Found::Device(ram, offset) | Found::RomDevice(ram, offset, ..) => ram.read(offset, chunk),
                Found::None => {}
            }
            done += n;
        }
        bytes[usize::from(size)..].fill(0);
        u64::from_le_bytes(bytes)
    }

    /// Writes the low `size` (up to 8) bytes of `value` as the CPU does: RAM (marked dirty, code watchers are
    /// told), devices; ROM and nothing ignore it. Split at page and range borders.
    #[inline]
    pub fn phys_write(&self, gpa: Gpa, size: u8, value: u64) {
        let size = size.min(8);
        if (gpa & PAGE_MASK) + u64::from(size) <= PAGE_SIZE
            && let Some(offset) = self.plain_ram(gpa)
        {
            // SAFETY: the whole page is RAM, and the access stays on it.
            unsafe { copy_in(self.host(offset), &value.to_le_bytes()[..usize::from(size)]) };
            self.ram_written(offset, gpa, size.into());
            return;
        }
        self.phys_write_split(gpa, size, value);
    }

    #[cold]
    fn phys_write_split(&self, gpa: Gpa, size: u8, value: u64) {
        let bytes = value.to_le_bytes();
        let mut done = 0;
        while done < size {
            let at = gpa.wrapping_add(done.into());
            let (found, run) = self.find(at);
            let n = run.min(PAGE_SIZE - (at & PAGE_MASK)).min((size - done).into()) as u8;
            let chunk = &bytes[usize::from(done)..usize::from(done + n)];
            match found {
                Found::Ram(offset) | Found::RomOverRam(_, offset) => {
                    // SAFETY: `find` says that `run` bytes from there are RAM, which lives as long as `self`.
                    unsafe { copy_in(self.host(offset), chunk) };
                    self.ram_written(offset, at, n.into());
                }
                Found::Mmio(dev, offset) | Found::RomDevice(_, _, dev, offset) => {
                    for (i, width) in widths(n) {
                        let mut part = [0; 8];
                        let (from, len) = (usize::from(i), usize::from(width));
                        part[..len].copy_from_slice(&chunk[from..from + len]);
                        dev.write(offset.wrapping_add(i.into()), width, u64::from_le_bytes(part));
                    }
                }
                Found::Device(ram, offset) => ram.write(offset, chunk),
                Found::Rom(_) | Found::None => {}
            }
            done += n;
        }
    }

    /// Reads a byte as the CPU does.
    #[inline]
    pub fn read_u8(&self, gpa: Gpa) -> u8 {
        self.phys_read(gpa, 1) as u8
    }

    /// Reads a word as the CPU does.
    #[inline]
    pub fn read_u16(&self, gpa: Gpa) -> u16 {
        self.phys_read(gpa, 2) as u16
    }

    /// Reads a doubleword as the CPU does.
    #[inline]
    pub fn read_u32(&self, gpa: Gpa) -> u32 {
        self.phys_read(gpa, 4) as u32
    }

    /// Reads a quadword as the CPU does.
    #[inline]
    pub fn read_u64(&self, gpa: Gpa) -> u64 {
        self.phys_read(gpa, 8)
    }

    /// Writes a byte as the CPU does.
    #[inline]
    pub fn write_u8(&self, gpa: Gpa, value: u8) {
        self.phys_write(gpa, 1, value.into());
    }

    /// Writes a word as the CPU does.
    #[inline]
    pub fn write_u16(&self, gpa: Gpa, value: u16) {
        self.phys_write(gpa, 2, value.into());
    }

    /// Writes a doubleword as the CPU does.
    #[inline]
    pub fn write_u32(&self, gpa: Gpa, value: u32) {
        self.phys_write(gpa, 4, value.into());
    }

    /// Writes a quadword as the CPU does.
    #[inline]
    pub fn write_u64(&self, gpa: Gpa, value: u64) {
        self.phys_write(gpa, 8, value);
    }

    /// The host address of `size` aligned bytes of RAM.
    fn atomic_ram(&self, gpa: Gpa, size: u64) -> Option<(*mut u8, u64)> {
        match self.find(gpa) {
            (Found::Ram(offset), run) if run >= size && gpa.is_multiple_of(size) => {
                Some((self.host(offset), offset))
            }
            _ => None,
        }
    }

    /// Replaces a doubleword of RAM by `new` if it is `old`, atomically; else gives what it is. Meant for
    /// flags in page tables: where there is no RAM, or at an address that is not aligned, nothing is stored
    /// and the exchange counts as done.
    pub fn compare_exchange_u32(&self, gpa: Gpa, old: u32, new: u32) -> Result<u32, u32> {
        let Some((host, offset)) = self.atomic_ram(gpa, 4) else { return Ok(old) };
        // SAFETY: four aligned bytes of RAM (the mapping is page-aligned), accessed by others through atomics
        // or as guest memory.
        let word = unsafe { AtomicU32::from_ptr(host.cast()) };
        let was = word
            .compare_exchange(old.to_le(), new.to_le(), Ordering::SeqCst, Ordering::SeqCst)
            .map_err(u32::from_le)?;
        self.ram_written(offset, gpa, 4);
        Ok(u32::from_le(was))
    }

    /// As `compare_exchange_u32`, for a quadword.
    pub fn compare_exchange_u64(&self, gpa: Gpa, old: u64, new: u64) -> Result<u64, u64> {
        let Some((host, offset)) = self.atomic_ram(gpa, 8) else { return Ok(old) };
        // SAFETY: eight aligned bytes of RAM (the mapping is page-aligned), accessed by others through
        // atomics or as guest memory.
        let word = unsafe { AtomicU64::from_ptr(host.cast()) };
        let was = word
            .compare_exchange(old.to_le(), new.to_le(), Ordering::SeqCst, Ordering::SeqCst)
            .map_err(u64::from_le)?;
        self.ram_written(offset, gpa, 8);
        Ok(u64::from_le(was))
    }

    /// An aligned entry of a paging structure, `SIZE` (4 or 8) bytes; all ones where there is neither RAM nor
    /// ROM. Never touches MMIO.
    #[inline(always)]
    pub(crate) fn table_entry<const SIZE: usize>(&self, gpa: Gpa) -> u64 {
        let gpa = gpa & !(SIZE as u64 - 1);
        let mut bytes = [0; 8];
        match self.plain_ram(gpa) {
            // SAFETY: the whole page is RAM, and an aligned entry stays on it.
            Some(offset) => unsafe { copy_out(self.host(offset), &mut bytes[..SIZE]) },
            None => self.read(gpa, &mut bytes[..SIZE]),
        }
        u64::from_le_bytes(bytes)
    }

    /// How many hold code of the page at an offset in RAM.
    #[inline(always)]
    fn holders(&self, offset: u64) -> u16 {
        self.code.get((offset / PAGE_SIZE) as usize).map_or(0, |n| n.load(Ordering::SeqCst) & !TAPPED)
    }

    /// Whether somebody is to be told of writes to the page at an offset in RAM.
    #[inline(always)]
    fn is_noted(&self, offset: u64) -> bool {
        self.code.get((offset / PAGE_SIZE) as usize).is_some_and(|n| n.load(Ordering::SeqCst) != 0)
    }

    /// Tells who is to be told of a write within one page.
    #[cold]
    fn note_written(&self, offset: u64, gpa: Gpa, len: u64) {
        if let Some(tap) = self.tap.get() {
            tap.ram_written(gpa, len);
        }
        if self.holders(offset) != 0 {
            self.notify_code_written(gpa, len, None);
        }
    }

    /// Whether anyone holds code of the page: stores to it must be told with `notify_code_written`. Never true
    /// of a page that has no RAM: what is decoded from ROM needs no watching.
    #[inline]
    pub fn is_code(&self, gpa: Gpa) -> bool {
        self.ram_offset(gpa).is_some_and(|offset| self.holders(offset) != 0)
    }

    /// One more vCPU will decode bytes of the page of `gpa`. Nothing happens where there is no RAM. Those in
    /// `writers` must give up their fast writes before the bytes are read.
    pub fn hold_code(&self, gpa: Gpa) {
        if let Some(n) = self.ram_offset(gpa).and_then(|o| self.code.get((o / PAGE_SIZE) as usize)) {
            n.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A vCPU that has called `hold_code` has no code of the page any more.
    pub fn release_code(&self, gpa: Gpa) {
        if let Some(n) = self.ram_offset(gpa).and_then(|o| self.code.get((o / PAGE_SIZE) as usize)) {
            let less = |n: u16| (n & !TAPPED != 0).then(|| n - 1);
            let _ = n.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        }
    }

    /// The vCPUs with these bits are about to fill their TLB so that it lets them write to the page without
    /// further ado. To be called before `is_code` is looked at.
    #[inline]
    pub fn note_writer(&self, gpa: Gpa, bits: u64) {
        if let Some(w) = self.ram_offset(gpa).and_then(|o| self.writers.get((o / PAGE_SIZE) as usize))
            && w.load(Ordering::SeqCst) & bits != bits
        {
            w.fetch_or(bits, Ordering::SeqCst);
        }
    }

    /// The bits of the vCPUs whose TLB may let them write to the page without further ado.
    pub fn writers(&self, gpa: Gpa) -> u64 {
        self.ram_offset(gpa)
            .and_then(|o| self.writers.get((o / PAGE_SIZE) as usize))
            .map_or(0, |w| w.load(Ordering::SeqCst))
    }

    /// The TLBs of the vCPUs with these bits do not allow fast writes to the page any more. Only for those vCPUs
    /// themselves to say.
    pub fn forget_writer(&self, gpa: Gpa, bits: u64) {
        if let Some(w) = self.ram_offset(gpa).and_then(|o| self.writers.get((o / PAGE_SIZE) as usize)) {
            w.fetch_and(!bits, Ordering::SeqCst);
        }
    }

    /// The host address of the RAM page that `gpa` is on, whatever lies over it.
    pub fn ram_page(&self, gpa: Gpa) -> Option<*mut u8> {
        self.ram_offset(gpa).map(|offset| self.host(offset & !PAGE_MASK))
    }

    /// Registers someone who is told of writes to code pages. Returns its number, for `notify_code_written`.
    pub fn watch_code(&self, w: Arc<dyn CodeWatcher>) -> usize {
        let mut watchers = self.watchers.write();
        let number = watchers.len();
        *watchers = watchers.iter().cloned().chain([w]).collect();
        number
    }

    /// Tells all watchers but number `except` (index of registration). A range over several pages is told
    /// page by page.
    #[cold]
    pub fn notify_code_written(&self, mut gpa: Gpa, mut len: u64, except: Option<usize>) {
        let watchers = self.watchers.read().clone();
        while len > 0 {
            let n = len.min(PAGE_SIZE - (gpa & PAGE_MASK));
            for (_, watcher) in watchers.iter().enumerate().filter(|&(i, _)| Some(i) != except) {
                watcher.code_written(gpa, n);
            }
            gpa = gpa.wrapping_add(n);
            len -= n;
        }
    }

    /// Marks the page dirty (migration, display).
    #[inline]
    pub fn mark_dirty(&self, gpa: Gpa) {
        if let Some(offset) = self.ram_offset(gpa) {
            self.dirty.set(offset / PAGE_SIZE);
        }
    }

    /// Whether the page is marked dirty: while pages are logged, a TLB may allow fast writes only then.
    #[inline]
    pub fn is_dirty(&self, gpa: Gpa) -> bool {
        self.ram_offset(gpa).is_some_and(|offset| self.dirty.get(offset / PAGE_SIZE))
    }

    /// Tests and clears the dirty mark. While pages are logged this makes a new `generation`, as TLBs may
    /// still allow fast writes; what a running vCPU writes before it notices is not seen.
    pub fn take_dirty(&self, gpa: Gpa) -> bool {
        let was = self.ram_offset(gpa).is_some_and(|offset| self.dirty.clear(offset / PAGE_SIZE));
        if was && self.dirty_log() {
            self.generation.fetch_add(1, Ordering::SeqCst);
        }
        was
    }

    /// The guest addresses of all pages marked dirty, ascending.
    pub fn dirty_pages(&self) -> Vec<Gpa> {
        let gpa = |page: usize| {
            let offset = page as u64 * PAGE_SIZE;
            if offset < self.below { offset } else { offset - self.below + FOUR_GIB }
        };
        self.dirty.bits().iter_ones().map(gpa).collect()
    }

    /// Switches dirty logging; while it is on, `dirty_log()` is true and TLBs must not allow fast writes to
    /// clean pages. All pages are clean when it is switched on. (While it is off, only stores that do not go
    /// through a TLB leave a mark.)
    pub fn set_dirty_log(&self, on: bool) {
        if self.dirty_log.swap(on, Ordering::SeqCst) != on {
            if on {
                self.dirty.fill(0, self.ram.size() / PAGE_SIZE, false);
            }
            self.generation.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Whether dirty pages are being logged.
    #[inline]
    pub fn dirty_log(&self) -> bool {
        self.dirty_log.load(Ordering::Acquire)
    }
}

/// The addresses of a mapping, cut off at the end of the address space; `None` if there are none.
fn range(gpa: Gpa, len: u64) -> Option<(Gpa, Gpa)> {
    (len > 0).then(|| (gpa, gpa.saturating_add(len - 1)))
}

/// Splits an access of `n` (up to 8) bytes into ones that a device takes: (offset, width), the widest first.
fn widths(n: u8) -> impl Iterator<Item = (u8, u8)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let width = 1 << (n - done).checked_ilog2()?;
        let at = done;
        done += width;
        Some((at, width))
    })
}

/// Copies guest bytes out; an aligned 1, 2, 4 or 8 in one access.
///
/// # Safety
/// `from` must be valid for reads of `to.len()` bytes of guest memory (others may change them meanwhile).
#[inline(always)]
pub(crate) unsafe fn copy_out(from: *const u8, to: &mut [u8]) {
    let at = from.cast_mut();
    // SAFETY: valid by the caller's promise; each atomic view is of an address aligned for it.
    unsafe {
        match to.len() {
            1 => to[0] = AtomicU8::from_ptr(at).load(Ordering::Acquire),
            2 if at.cast::<u16>().is_aligned() => {
                to.copy_from_slice(&AtomicU16::from_ptr(at.cast()).load(Ordering::Acquire).to_ne_bytes());
            }
            4 if at.cast::<u32>().is_aligned() => {
                to.copy_from_slice(&AtomicU32::from_ptr(at.cast()).load(Ordering::Acquire).to_ne_bytes());
            }
            8 if at.cast::<u64>().is_aligned() => {
                to.copy_from_slice(&AtomicU64::from_ptr(at.cast()).load(Ordering::Acquire).to_ne_bytes());
            }
            len => {
                std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), len);
                settle(to);
                // On x86 there is nothing to be done for it.
                fence(Ordering::Acquire);
            }
        }
    }
}

/// Has the compiler take it that a copy of guest bytes may differ from what stands in guest memory by now: what is
/// checked in the copy and then used is read from the copy both times.
#[inline(always)]
fn settle(copy: &mut [u8]) {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: there is no instruction; memory counts as changed.
    unsafe {
        std::arch::asm!("/* {0} */", in(reg) copy.as_mut_ptr(), options(nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        std::hint::black_box(copy);
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    }
}

/// Copies bytes into guest memory; an aligned 1, 2, 4 or 8 in one access.
///
/// # Safety
/// `to` must be valid for writes of `from.len()` bytes that are guest RAM (others may access them meanwhile).
#[inline(always)]
pub(crate) unsafe fn copy_in(to: *mut u8, from: &[u8]) {
    // SAFETY: valid by the caller's promise; each atomic view is of an address aligned for it.
    unsafe {
        match *from {
            [a] => AtomicU8::from_ptr(to).store(a, Ordering::Release),
            [a, b] if to.cast::<u16>().is_aligned() => {
                AtomicU16::from_ptr(to.cast()).store(u16::from_ne_bytes([a, b]), Ordering::Release);
            }
            [a, b, c, d] if to.cast::<u32>().is_aligned() => {
                AtomicU32::from_ptr(to.cast()).store(u32::from_ne_bytes([a, b, c, d]), Ordering::Release);
            }
            [a, b, c, d, e, f, g, h] if to.cast::<u64>().is_aligned() => {
                AtomicU64::from_ptr(to.cast())
                    .store(u64::from_ne_bytes([a, b, c, d, e, f, g, h]), Ordering::Release);
            }
            _ => {
                // Behind all earlier stores, as on x86, where there is nothing to be done for it.
                fence(Ordering::Release);
                std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len());
            }
        }
    }
}
