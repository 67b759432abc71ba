//! A small driver, for tests: any transport, split rings in the first MiB.
use super::mmio::VirtioMmio;
use super::pci::{PciOptions, VirtioPci};
use super::{Model, Virtio, feature, status};
use crate::bus::Irq;
use crate::device::{Device, Plugged as Erased, Reset, RestoreError, Saved};
use crate::pci::config::{command, reg};
use crate::pci::testing::{Pc, Wires};
use crate::pci::{DevFn, PciDevice};
use std::sync::Arc;

pub(super) const AT: DevFn = DevFn::new(4, 0);
const PORTS: u16 = 0xc000;
const TABLE: u64 = 0xfea0_0000;
const REGISTERS: u64 = 0xfeb0_0000;
/// Queue `n`'s descriptors, and behind them the other parts.
const RINGS: u64 = 0x1_0000;
const RING: u64 = 0x4000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Entries of each queue, if the driver may choose.
pub(super) const SIZE: u16 = 64;

/// Where the driver finds its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Legacy,
    Modern,
    Mmio,
}

pub(super) const WAYS: [Way; 3] = [Way::Legacy, Way::Modern, Way::Mmio];

enum Plugged<M: Model> {
    Pci(Arc<VirtioPci<M>>),
    Mmio(Arc<VirtioMmio<M>>),
}

/// What a queue's driver knows.
#[derive(Clone, Copy, Default)]
struct Cursor {
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    next: u16,
    free: u16,
    seen: u16,
}

/// One descriptor: address, bytes, whether the device writes it.
pub(super) type Buffer = (u64, u32, bool);

pub(super) struct Rig<M: Model> {
    pub(super) pc: Pc,
    pub(super) way: Way,
    wires: Arc<Wires>,
    plugged: Plugged<M>,
    cursors: Vec<Cursor>,
}

pub(super) fn options(vectors: u16) -> PciOptions {
    let rings = feature::INDIRECT_DESC | feature::EVENT_IDX | feature::RING_RESET;
    let common = rings | feature::ANY_LAYOUT | feature::VERSION_1;
    PciOptions { legacy: true, modern: true, vectors, common }
}

impl<M: Model> Rig<M> {
    /// A device that firmware has set up.
    pub(super) fn new(way: Way, model: Arc<M>) -> Self {
        Self::with(way, model, options(3))
    }

    pub(super) fn with(way: Way, model: Arc<M>, options: PciOptions) -> Self {
        let pc = Pc::new();
        let wires = Wires::on(&pc.bus);
        let cursors = vec![Cursor::default(); model.queue_sizes().len()];
        let plugged = if way == Way::Mmio {
            let device = VirtioMmio::new(
                model,
                pc.memory.clone(),
                Irq::new(wires.clone(), 0),
                options.common & !feature::ANY_LAYOUT,
            );
            device.attach(&pc.memory, REGISTERS);
            Plugged::Mmio(device)
        } else {
            Plugged::Pci(VirtioPci::on(&pc.bus, AT, model, options))
        };
        let rig = Self { pc, way, wires, plugged, cursors };
        rig.power_on();
        rig
    }

    fn power_on(&self) {
        if let Plugged::Pci(device) = &self.plugged {
            let write = |at: u8, size, value| self.pc.write(AT, at, size, value);
            write(reg::BAR0, 4, PORTS.into());
            write(reg::BAR0 + 4, 4, TABLE as u32);
            write(reg::BAR0 + 16, 4, REGISTERS as u32);
            write(reg::COMMAND, 2, (command::IO | command::MEMORY | command::MASTER).into());
            assert!(device.config().lock().bar_address(4).is_some() || self.way == Way::Legacy);
        }
    }

    pub(super) fn virtio(&self) -> &Virtio<M> {
        match &self.plugged {
            Plugged::Pci(device) => device.virtio(),
            Plugged::Mmio(device) => device.virtio(),
        }
    }

    pub(super) fn model(&self) -> Arc<M> {
        self.virtio().model.clone()
    }

    /// Pins (address 0) and messages since the last call.
    pub(super) fn took(&self) -> Vec<(u64, u32)> {
        self.wires.take()
    }

    pub(super) fn read(&self, at: u64, size: u8) -> u64 {
        self.pc.memory.phys_read(REGISTERS + at, size)
    }

    pub(super) fn write(&self, at: u64, size: u8, value: u64) {
        self.pc.memory.phys_write(REGISTERS + at, size, value);
    }

    pub(super) fn port(&self, at: u16, size: u8) -> u32 {
        self.pc.ports.read(PORTS + at, size)
    }

    pub(super) fn set_port(&self, at: u16, size: u8, value: u32) {
        self.pc.ports.write(PORTS + at, size, value);
    }

    pub(super) fn status(&self) -> u8 {
        match self.way {
            Way::Legacy => self.port(18, 1) as u8,
            Way::Modern => self.read(20, 1) as u8,
            Way::Mmio => self.read(0x70, 4) as u8,
        }
    }

    pub(super) fn set_status(&self, value: u8) {
        match self.way {
            Way::Legacy => self.set_port(18, 1, value.into()),
            Way::Modern => self.write(20, 1, value.into()),
            Way::Mmio => self.write(0x70, 4, value.into()),
        }
    }

    /// The interrupt status, which is acknowledged.
    pub(super) fn isr(&self) -> u8 {
        match self.way {
            Way::Legacy => self.port(19, 1) as u8,
            Way::Modern => self.read(0x1000, 1) as u8,
            Way::Mmio => {
                let status = self.read(0x60, 4);
                self.write(0x64, 4, status);
                status as u8
            }
        }
    }

    pub(super) fn config(&self, at: u64, size: u8) -> u64 {
        match self.way {
            Way::Legacy => self.port(self.config_port() + at as u16, size).into(),
            Way::Modern => self.read(0x2000 + at, size),
            Way::Mmio => self.read(0x100 + at, size),
        }
    }

    pub(super) fn set_config(&self, at: u64, size: u8, value: u64) {
        match self.way {
            Way::Legacy => self.set_port(self.config_port() + at as u16, size, value as u32),
            Way::Modern => self.write(0x2000 + at, size, value),
            Way::Mmio => self.write(0x100 + at, size, value),
        }
    }

    fn config_port(&self) -> u16 {
        let Plugged::Pci(device) = &self.plugged else { return 20 };
        if device.function().is_some_and(|f| f.has_messages()) { 24 } else { 20 }
    }

    pub(super) fn offered(&self) -> u64 {
        let half = |which: u64| match self.way {
            Way::Legacy => u64::from(self.port(0, 4)) * (1 - which),
            Way::Modern => {
                self.write(0, 4, which);
                self.read(4, 4)
            }
            Way::Mmio => {
                self.write(0x14, 4, which);
                self.read(0x10, 4)
            }
        };
        half(0) | half(1) << 32
    }

    pub(super) fn accept(&self, features: u64) {
        let (select, value) = if self.way == Way::Modern { (8, 12) } else { (0x24, 0x20) };
        if self.way == Way::Legacy {
            return self.set_port(4, 4, features as u32);
        }
        for which in 0..2 {
            self.write(select, 4, which);
            self.write(value, 4, features >> (32 * which) & 0xffff_ffff);
        }
    }

    /// What a driver does before it begins: all queues, and the features that are both offered and in `wanted`.
    pub(super) fn start(&mut self, wanted: u64) {
        self.set_status(0);
        self.set_status(status::ACKNOWLEDGE);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        self.accept(self.offered() & (wanted | feature::VERSION_1));
        let mut up = status::ACKNOWLEDGE | status::DRIVER;
        if self.way != Way::Legacy {
            up |= status::FEATURES_OK;
            self.set_status(up);
            assert_eq!(self.status(), up, "the features are accepted");
        }
        (0..self.cursors.len()).for_each(|n| self.set_up(n));
        self.set_status(up | status::DRIVER_OK);
    }

    pub(super) fn set_up(&mut self, queue: usize) {
        let at = RINGS + RING * queue as u64;
        // Nothing is available, nothing used.
        self.pc.memory.write(at, &[0; RING as usize]);
        let mut c = Cursor {
            size: SIZE,
            descriptors: at,
            available: at + AVAILABLE,
            used: at + USED,
            ..Cursor::default()
        };
        let n = queue as u64;
        match self.way {
            Way::Legacy => {
                self.set_port(14, 2, queue as u32);
                c.size = self.port(12, 2) as u16;
                c.available = at + 16 * u64::from(c.size);
                c.used = (c.available + 6 + 2 * u64::from(c.size)).next_multiple_of(4096);
                assert!(c.used + 6 + 8 * u64::from(c.size) <= at + RING, "{} entries", c.size);
                self.set_port(8, 4, (at / 4096) as u32);
                assert_eq!(u64::from(self.port(8, 4)), at / 4096);
            }
            Way::Modern => {
                self.write(22, 2, n);
                c.size = SIZE.min(self.read(24, 2) as u16);
                self.write(24, 2, c.size.into());
                for (register, part) in [(32, c.descriptors), (40, c.available), (48, c.used)] {
                    self.write(register, 4, part);
                    self.write(register + 4, 4, 0);
                }
                self.write(28, 2, 1);
                assert_eq!((self.read(24, 2), self.read(28, 2)), (c.size.into(), 1));
            }
            Way::Mmio => {
                self.write(0x30, 4, n);
                c.size = SIZE.min(self.read(0x34, 4) as u16);
                self.write(0x38, 4, c.size.into());
                for (register, part) in [(0x80, c.descriptors), (0x90, c.available), (0xa0, c.used)] {
                    self.write(register, 4, part);
                    self.write(register + 4, 4, 0);
                }
                self.write(0x44, 4, 1);
                assert_eq!(self.read(0x44, 4), 1);
            }
        }
        self.cursors[queue] = c;
    }

    pub(super) fn word(&self, at: u64) -> u16 {
        self.pc.memory.read_u16(at)
    }

    pub(super) fn descriptor(&self, table: u64, n: u16, at: u64, len: u32, flags: u16, next: u16) {
        let place = table + 16 * u64::from(n);
        self.pc.memory.write_u64(place, at);
        self.pc.memory.write_u32(place + 8, len);
        self.pc.memory.write_u16(place + 12, flags);
        self.pc.memory.write_u16(place + 14, next);
    }

    /// Writes a chain to a table, from entry `first` on.
    pub(super) fn chain(&self, table: u64, first: u16, buffers: &[Buffer]) {
        for (i, (at, len, device_writes)) in buffers.iter().enumerate() {
            let n = first + i as u16;
            let more = u16::from(i + 1 < buffers.len());
            self.descriptor(table, n, *at, *len, more | u16::from(*device_writes) << 1, n + 1);
        }
    }

    /// Makes a chain available, which begins at a descriptor, and tells nobody.
    pub(super) fn make_available(&mut self, queue: usize, head: u16) {
        let c = &mut self.cursors[queue];
        self.pc.memory.write_u16(c.available + 4 + 2 * u64::from(c.next % c.size), head);
        c.next = c.next.wrapping_add(1);
        self.pc.memory.write_u16(c.available + 2, c.next);
    }

    /// Makes buffers available; the chain's head.
    pub(super) fn add(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let (table, first, size) = {
            let c = &self.cursors[queue];
            (c.descriptors, c.free, c.size)
        };
        let first = if first + buffers.len() as u16 > size { 0 } else { first };
        self.chain(table, first, buffers);
        self.cursors[queue].free = first + buffers.len() as u16;
        self.make_available(queue, first);
        first
    }

    /// The same by a table of its own at `table`.
    pub(super) fn add_indirect(&mut self, queue: usize, table: u64, buffers: &[Buffer]) -> u16 {
        self.chain(table, 0, buffers);
        let (own, n, size) = {
            let c = &self.cursors[queue];
            (c.descriptors, c.free, c.size)
        };
        let n = if n >= size { 0 } else { n };
        self.descriptor(own, n, table, 16 * buffers.len() as u32, 4, 0);
        self.cursors[queue].free = n + 1;
        self.make_available(queue, n);
        n
    }

    pub(super) fn notify(&self, queue: usize) {
        match self.way {
            Way::Legacy => self.set_port(16, 2, queue as u32),
            Way::Modern => self.write(0x3000 + 4 * queue as u64, 2, queue as u64),
            Way::Mmio => self.write(0x50, 4, queue as u64),
        }
    }

    /// Chains that were given back since the last call: heads, and bytes written.
    pub(super) fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let c = &mut self.cursors[queue];
        let mut all = Vec::new();
        while c.seen != self.pc.memory.read_u16(c.used + 2) {
            let at = c.used + 4 + 8 * u64::from(c.seen % c.size);
            all.push((self.pc.memory.read_u32(at) as u16, self.pc.memory.read_u32(at + 4)));
            c.seen = c.seen.wrapping_add(1);
        }
        all
    }

    /// Where a queue's parts are: descriptors, available, used.
    pub(super) fn parts(&self, queue: usize) -> (u64, u64, u64) {
        let c = &self.cursors[queue];
        (c.descriptors, c.available, c.used)
    }

    pub(super) fn entries(&self, queue: usize) -> u16 {
        self.cursors[queue].size
    }

    /// VIRTQ_AVAIL_F_NO_INTERRUPT.
    pub(super) fn set_quiet(&self, queue: usize, quiet: bool) {
        self.pc.memory.write_u16(self.cursors[queue].available, quiet.into());
    }

    /// Asks for an interrupt when the used index has passed this.
    pub(super) fn set_used_event(&self, queue: usize, index: u16) {
        let c = &self.cursors[queue];
        self.pc.memory.write_u16(c.available + 4 + 2 * u64::from(c.size), index);
    }

    /// The index at which the device wishes to be notified.
    pub(super) fn available_event(&self, queue: usize) -> u16 {
        let c = &self.cursors[queue];
        self.word(c.used + 4 + 8 * u64::from(c.size))
    }

    /// Messages for the configuration and each queue, with these data.
    pub(super) fn set_messages(&self, data: &[u32]) {
        for (n, data) in data.iter().enumerate() {
            let entry = TABLE + 16 * n as u64;
            self.pc.memory.phys_write(entry, 8, 0xfee0_0000);
            self.pc.memory.phys_write(entry + 8, 8, (*data).into());
        }
        let at = self.pc.read(AT, reg::CAPABILITIES, 1) as u8;
        let mut at = at;
        while self.pc.read(AT, at, 1) != 0x11 {
            at = self.pc.read(AT, at + 1, 1) as u8;
        }
        self.pc.write(AT, at + 2, 2, 0x8000);
        for n in 0..self.cursors.len() {
            let vector = n as u32 + 1;
            if self.way == Way::Legacy {
                self.set_port(14, 2, n as u32);
                self.set_port(22, 2, vector);
                self.set_port(20, 2, 0);
            } else {
                self.write(22, 2, n as u64);
                self.write(26, 2, vector.into());
                self.write(16, 2, 0);
            }
        }
    }

    pub(super) fn save(&self) -> Vec<u8> {
        match &self.plugged {
            Plugged::Pci(device) => Erased::save(&**device, "it").state,
            Plugged::Mmio(device) => Erased::save(&**device, "it").state,
        }
    }

    pub(super) fn restore(&mut self, state: Vec<u8>, other: &Self) -> Result<(), RestoreError> {
        let (kind, version) = match &self.plugged {
            Plugged::Pci(_) => (M::PCI, VirtioPci::<M>::VERSION),
            Plugged::Mmio(_) => (M::MMIO, VirtioMmio::<M>::VERSION),
        };
        let saved = Saved { name: "it".into(), kind: kind.into(), version, state };
        let mut ram = vec![0; 1 << 20];
        other.pc.memory.read(0, &mut ram);
        self.pc.memory.write(0, &ram);
        self.cursors = other.cursors.clone();
        match &self.plugged {
            Plugged::Pci(device) => Erased::restore(&**device, &saved)?,
            Plugged::Mmio(device) => Erased::restore(&**device, &saved)?,
        }
        self.pc.bus.follow();
        Ok(())
    }

    pub(super) fn pause(&self) {
        self.virtio().pause();
    }

    pub(super) fn resume(&self) {
        self.virtio().resume();
    }

    /// The board's reset, and firmware again.
    pub(super) fn reset(&self) {
        match &self.plugged {
            Plugged::Pci(device) => Device::reset(&**device, Reset::Board),
            Plugged::Mmio(device) => Device::reset(&**device, Reset::Board),
        }
        self.pc.bus.follow();
        self.power_on();
    }
}
