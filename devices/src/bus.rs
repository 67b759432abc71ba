//! The traits by which a device meets the board: port I/O, MMIO (from `mynah_mmu`), interrupt pins; and the
//! I/O port bus.
//!
//! `PortBus` looks a port up in a flat table of 65,536 slot numbers, takes the device out and calls it with
//! no lock held, so that a handler may remap ports (a BAR, say). An access that two ranges share is split
//! into bytes, as the ISA bus does.
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use mynah_mmu::Mmio;

/// What a device answers to on the I/O port bus. `offset` counts from the first port of the mapped range,
/// `size` is 1, 2 or 4.
pub trait PortIo: Send + Sync {
    /// Reads `size` bytes, zero-extended.
    fn read(&self, offset: u16, size: u8) -> u32;
    /// Writes the low `size` bytes of `value`.
    fn write(&self, offset: u16, size: u8, value: u32);
    /// What it is, for people: the module that it is written in.
    fn name(&self) -> &'static str {
        mynah_mmu::module_of(std::any::type_name::<Self>())
    }
}

/// An input of an interrupt controller (or any other wire).
pub trait IrqSink: Send + Sync {
    /// The wire number `line` changes to `level`.
    fn set(&self, line: u32, level: bool);

    /// What would become of a rising edge on the wire number `line` now.
    fn edge(&self, line: u32) -> Edge {
        let _ = line;
        Edge::Uncounted
    }
}

/// What becomes of a rising edge on a wire. If several controllers listen the greatest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Edge {
    /// Nobody keeps count of edges: the wire is masked, or leads to no interrupt controller.
    Uncounted,
    /// The edge before still waits for the processor, and this one would be lost in it.
    Merged,
    /// It is an interrupt of its own.
    Counted,
}

/// A device's interrupt output pin: a wire to an input of some controller. Clones are the same pin.
#[derive(Clone)]
pub struct Irq {
    sink: Arc<dyn IrqSink>,
    line: u32,
    /// How many devices hold a shared line up, locked while the line changes, so that its last change is the true one;
    /// none for an unshared pin.
    holders: Option<Arc<Mutex<usize>>>,
    level: Arc<Mutex<bool>>,
}

impl Irq {
    /// A pin on input `line` of `sink`.
    pub fn new(sink: Arc<dyn IrqSink>, line: u32) -> Self {
        Self { sink, line, holders: None, level: Arc::new(Mutex::new(false)) }
    }

    /// A pin that is connected to nothing.
    pub fn unconnected() -> Self {
        struct Nowhere;
        impl IrqSink for Nowhere {
            fn set(&self, _: u32, _: bool) {}
        }
        Self::new(Arc::new(Nowhere), 0)
    }

    /// Another device's pin on the same level-triggered wire: the wire is up while any of its pins is.
    pub fn share(&mut self) -> Self {
        let holders = self.holders.get_or_insert_with(|| Arc::new(Mutex::new(0))).clone();
        Self {
            sink: self.sink.clone(),
            line: self.line,
            holders: Some(holders),
            level: Arc::new(Mutex::new(false)),
        }
    }

    /// The number of the wire.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// Drives the pin.
    pub fn set(&self, level: bool) {
        let mut now = self.level.lock();
        if *now == level {
            return;
        }
        *now = level;
        let Some(holders) = &self.holders else {
            self.sink.set(self.line, level);
            return;
        };
        let mut holders = holders.lock();
        let before = *holders;
        *holders = if level { before + 1 } else { before.saturating_sub(1) };
        if (before == 0) != (*holders == 0) {
            self.sink.set(self.line, level);
        }
    }

    /// Takes the pin for one that drives `level`, as it did when the machine was saved. No edge goes out: what is at
    /// the other end of the wire is restored by itself.
    pub fn restore(&self, level: bool) {
        let mut now = self.level.lock();
        if std::mem::replace(&mut *now, level) == level {
            return;
        }
        if let Some(holders) = &self.holders {
            let mut holders = holders.lock();
            *holders = if level { *holders + 1 } else { holders.saturating_sub(1) };
        }
    }

    /// Up and down again: one edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }

    /// What would become of a rising edge now.
    pub fn edge(&self) -> Edge {
        self.sink.edge(self.line)
    }

    /// Whether this pin is up.
    pub fn level(&self) -> bool {
        *self.level.lock()
    }
}

/// Composes a little-endian read of `size` bytes from single bytes: for devices whose registers are one byte
/// wide.
pub fn read_bytes(size: u8, byte: impl FnMut(u16) -> u8) -> u32 {
    read_bytes64(size.min(4), byte) as u32
}

/// The same for reads of up to 64 bits.
pub fn read_bytes64(size: u8, mut byte: impl FnMut(u16) -> u8) -> u64 {
    (0..u16::from(size.min(8))).fold(0, |v, i| v | u64::from(byte(i)) << (8 * i))
}

/// Hands the bytes of a write over one by one, lowest first: for devices whose registers are one byte wide.
pub fn write_bytes(size: u8, value: u32, mut byte: impl FnMut(u16, u8)) {
    for i in 0..u16::from(size.min(4)) {
        byte(i, (value >> (8 * i)) as u8);
    }
}

/// All ones in the low `size` bytes: what a read gives that nobody answers.
pub const fn open_bus(size: u8) -> u32 {
    if size >= 4 { u32::MAX } else { (1 << (8 * size)) - 1 }
}

/// Names a mapping of a `PortBus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortMapping(u64);

struct PortRange {
    id: u64,
    base: u16,
    len: u32,
    dev: Arc<dyn PortIo>,
}

struct PortMap {
    /// For each port, 1 + its index in `ranges`, or 0.
    slot: Box<[u16]>,
    /// In the order of mapping; later ranges hide earlier ones.
    ranges: Vec<PortRange>,
    next_id: u64,
}

impl PortMap {
    fn paint(slot: &mut [u16], index: usize, range: &PortRange) {
        let base = usize::from(range.base);
        slot[base..base + range.len as usize].fill(index as u16 + 1);
    }

    fn at(&self, port: u16) -> Option<&PortRange> {
        match self.slot[usize::from(port)] {
            0 => None,
            n => self.ranges.get(usize::from(n) - 1),
        }
    }
}

/// The I/O port bus: 65,536 ports and the devices that answer to them.
pub struct PortBus {
    map: RwLock<PortMap>,
    /// One bit for each port: an unclaimed access to it has been logged.
    logged: Box<[AtomicU64]>,
}

impl Default for PortBus {
    fn default() -> Self {
        Self::new()
    }
}

impl PortBus {
    /// Ports there are.
    pub const PORTS: u32 = 0x1_0000;

    /// A bus with nothing on it.
    pub fn new() -> Self {
        let map = PortMap { slot: vec![0; Self::PORTS as usize].into(), ranges: Vec::new(), next_id: 0 };
        Self { map: RwLock::new(map), logged: (0..Self::PORTS / 64).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Maps `len` ports from `port` (cut off at the last port) to `dev`; hides earlier mappings of these
    /// ports until it is unmapped.
    pub fn map(&self, port: u16, len: u32, dev: Arc<dyn PortIo>) -> PortMapping {
        let mut map = self.map.write();
        let id = map.next_id;
        map.next_id += 1;
        let range = PortRange { id, base: port, len: len.min(Self::PORTS - u32::from(port)), dev };
        if map.ranges.len() >= usize::from(u16::MAX) {
            tracing::error!("the port bus is full: {len} ports at {port:#06x} are not mapped");
            return PortMapping(id);
        }
        let index = map.ranges.len();
        PortMap::paint(&mut map.slot, index, &range);
        map.ranges.push(range);
        PortMapping(id)
    }

    /// Takes a mapping away; what it hid shows again. An unknown mapping is ignored.
    pub fn unmap(&self, mapping: PortMapping) {
        let mut map = self.map.write();
        let Some(index) = map.ranges.iter().position(|r| r.id == mapping.0) else { return };
        let map = &mut *map;
        map.ranges.remove(index);
        map.slot.fill(0);
        for (i, range) in map.ranges.iter().enumerate() {
            PortMap::paint(&mut map.slot, i, range);
        }
    }

    /// First and last port of each range, and what answers there.
    pub fn ranges(&self) -> Vec<(u16, u16, &'static str)> {
        let map = self.map.read();
        let mut all: Vec<(u16, u16, &'static str)> = Vec::new();
        for (port, slot) in map.slot.iter().enumerate() {
            let Some(range) = usize::from(*slot).checked_sub(1).and_then(|n| map.ranges.get(n)) else {
                continue;
            };
            let (port, name) = (port as u16, range.dev.name());
            match all.last_mut() {
                Some((first, last, what)) if *last + 1 == port && *what == name && range.base <= *first => {
                    *last = port;
                }
                _ => all.push((port, port, name)),
            }
        }
        all
    }

    /// Takes all devices off the bus, which may hold the bus themselves: for the end of a machine.
    pub fn clear(&self) {
        let mut map = self.map.write();
        map.slot.fill(0);
        let _devices = std::mem::take(&mut map.ranges);
        // They go when the map is not locked any more.
        drop(map);
    }

    /// The device that answers all of `size` bytes at `port`, and the offset in its range; false if several
    /// do, or a part is unclaimed.
    fn whole(&self, port: u16, size: u8) -> Result<(Arc<dyn PortIo>, u16), bool> {
        let map = self.map.read();
        let found = map.at(port);
        let mut claimed = found.is_some();
        let mut whole = true;
        for i in 1..u16::from(size) {
            let next = port.checked_add(i).and_then(|p| map.at(p));
            claimed |= next.is_some();
            whole &= next.map(|r| r.id) == found.map(|r| r.id);
        }
        match found {
            Some(r) if whole => Ok((r.dev.clone(), port.wrapping_sub(r.base))),
            _ => Err(claimed),
        }
    }

    /// Reads `size` (1, 2 or 4) bytes at `port`. Ports that nobody answers read as all ones.
    pub fn read(&self, port: u16, size: u8) -> u32 {
        match self.whole(port, size) {
            Ok((dev, offset)) => dev.read(offset, size) & open_bus(size),
            Err(true) if size > 1 => {
                read_bytes(size, |i| port.checked_add(i).map_or(0xff, |p| self.read(p, 1) as u8))
            }
            Err(_) => {
                self.unclaimed(port, size, None);
                open_bus(size)
            }
        }
    }

    /// Writes the low `size` (1, 2 or 4) bytes of `value` to `port`. Ports that nobody answers ignore it.
    pub fn write(&self, port: u16, size: u8, value: u32) {
        match self.whole(port, size) {
            Ok((dev, offset)) => dev.write(offset, size, value & open_bus(size)),
            Err(true) if size > 1 => write_bytes(size, value, |i, b| {
                if let Some(p) = port.checked_add(i) {
                    self.write(p, 1, u32::from(b));
                }
            }),
            Err(_) => self.unclaimed(port, size, Some(value)),
        }
    }

    fn unclaimed(&self, port: u16, size: u8, value: Option<u32>) {
        let bit = 1 << (port % 64);
        if self.logged[usize::from(port / 64)].fetch_or(bit, Ordering::Relaxed) & bit != 0 {
            return;
        }
        match value {
            Some(v) => {
                tracing::debug!("write of {v:#x} ({size} bytes) to port {port:#06x}, which nobody answers")
            }
            None => tracing::debug!("read of {size} bytes from port {port:#06x}, which nobody answers"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers bytes written, answers with `base + offset` in each byte.
    struct Echo {
        base: u8,
        seen: Mutex<Vec<(u16, u8, u32)>>,
    }

    impl Echo {
        fn new(base: u8) -> Arc<Self> {
            Arc::new(Self { base, seen: Mutex::new(Vec::new()) })
        }
    }

    impl PortIo for Echo {
        fn read(&self, offset: u16, size: u8) -> u32 {
            read_bytes(size, |i| self.base.wrapping_add((offset + i) as u8))
        }
        fn write(&self, offset: u16, size: u8, value: u32) {
            self.seen.lock().push((offset, size, value));
        }
    }

    #[test]
    fn an_access_inside_one_device_reaches_it_whole() {
        let bus = PortBus::new();
        let dev = Echo::new(0x10);
        bus.map(0x300, 8, dev.clone());
        assert_eq!(bus.read(0x302, 4), 0x1514_1312);
        bus.write(0x306, 2, 0xdead_beef);
        assert_eq!(*dev.seen.lock(), [(6, 2, 0xbeef)]);
    }

    #[test]
    fn ports_that_nobody_answers_read_as_all_ones() {
        let bus = PortBus::new();
        assert_eq!((bus.read(0x80, 1), bus.read(0x80, 2), bus.read(0x80, 4)), (0xff, 0xffff, u32::MAX));
        bus.write(0x80, 4, 0);
        assert_eq!(bus.read(0xffff, 4), u32::MAX);
    }

    #[test]
    fn an_access_that_spans_devices_is_split_into_bytes() {
        let bus = PortBus::new();
        let (a, b) = (Echo::new(0x10), Echo::new(0x20));
        bus.map(0x60, 1, a.clone());
        bus.map(0x61, 1, b.clone());
        assert_eq!(bus.read(0x60, 4), 0xffff_2010);
        bus.write(0x60, 2, 0x0201);
        assert_eq!((a.seen.lock()[0], b.seen.lock()[0]), ((0, 1, 1), (0, 1, 2)));
    }

    #[test]
    fn an_access_past_the_last_port_is_cut_off() {
        let bus = PortBus::new();
        let dev = Echo::new(0x40);
        bus.map(0xfffe, 100, dev.clone());
        assert_eq!(bus.read(0xffff, 4), 0xffff_ff41);
        bus.write(0xffff, 4, 0x0403_0201);
        assert_eq!(*dev.seen.lock(), [(1, 1, 1)]);
    }

    #[test]
    fn a_later_mapping_hides_an_earlier_one_until_it_is_unmapped() {
        let bus = PortBus::new();
        bus.map(0x100, 4, Echo::new(0x10));
        let over = bus.map(0x102, 4, Echo::new(0x20));
        assert_eq!((bus.read(0x101, 1), bus.read(0x102, 1), bus.read(0x105, 1)), (0x11, 0x20, 0x23));
        bus.unmap(over);
        bus.unmap(over);
        assert_eq!((bus.read(0x102, 1), bus.read(0x105, 1)), (0x12, 0xff));
    }

    #[test]
    fn a_shared_wire_is_up_while_any_of_its_pins_is() {
        struct Log(Mutex<Vec<(u32, bool)>>);
        impl IrqSink for Log {
            fn set(&self, line: u32, level: bool) {
                self.0.lock().push((line, level));
            }
        }
        let log = Arc::new(Log(Mutex::new(Vec::new())));
        let mut a = Irq::new(log.clone(), 11);
        let b = a.share();
        a.set(true);
        b.set(true);
        a.set(false);
        assert_eq!(*log.0.lock(), [(11, true)]);
        b.set(false);
        assert_eq!(*log.0.lock(), [(11, true), (11, false)]);
    }
}
