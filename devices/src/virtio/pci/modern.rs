//! The registers of version 1 (4.1.4), in memory, and the capabilities by which they are found.
use super::{MODERN_BAR, NO_VECTOR, VirtioPci};
use crate::bus::read_bytes64;
use crate::pci::ConfigSpace;
use crate::virtio::ring::Part;
use crate::virtio::{Model, feature};
use mynah_mmu::Doorbell;

/// Bytes of the BAR.
pub(super) const SIZE: u64 = 0x4000;
/// Where the parts are in it.
const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const CONFIG: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const PART: u64 = 0x1000;
/// Bytes between the places at which queues are notified.
const NOTIFY_STEP: u64 = 4;
/// VIRTIO_PCI_CAP_PCI_CFG and the offsets in it (4.1.4.9).
const WINDOW: u8 = 5;
const WINDOW_BAR: u8 = 4;
const WINDOW_OFFSET: u8 = 8;
const WINDOW_LENGTH: u8 = 12;
const WINDOW_DATA: u8 = 16;
/// A vendor's capability, which those of virtio are (4.1.4).
const VENDOR: u8 = 9;
/// Features that the registers of version 1 show: without those of before.
const SHOWN: u64 = !feature::ANY_LAYOUT;

/// Adds the capabilities; where the one is that reaches the others' registers.
pub(super) fn add_capabilities(c: &mut ConfigSpace) -> u8 {
    // Type (cfg_type), where, and bytes behind the common part of the structure.
    let parts = [(1, COMMON, 0), (3, ISR, 0), (4, CONFIG, 0), (2, NOTIFY, 4), (WINDOW, 0, 4)];
    let mut at = 0;
    for (kind, offset, more) in parts {
        at = c.add_capability(VENDOR, 16 + more);
        c.set8(at + 2, 16 + more);
        c.set8(at + 3, kind);
        if kind == WINDOW {
            c.allow8(at + WINDOW_BAR, 0xff);
            c.allow32(at + WINDOW_OFFSET, u32::MAX);
            c.allow32(at + WINDOW_LENGTH, u32::MAX);
            c.allow32(at + WINDOW_DATA, u32::MAX);
            continue;
        }
        c.set8(at + WINDOW_BAR, MODERN_BAR as u8);
        c.set32(at + WINDOW_OFFSET, offset as u32);
        c.set32(at + WINDOW_LENGTH, PART as u32);
        if more > 0 {
            c.set32(at + 16, NOTIFY_STEP as u32);
        }
    }
    at
}

impl<M: Model> VirtioPci<M> {
    pub(super) fn modern_read(&self, offset: u64, size: u8) -> u64 {
        match offset / PART * PART {
            COMMON => {
                let registers = self.common();
                let at = |i| usize::try_from(offset).ok().map(|o| o + usize::from(i));
                read_bytes64(size, |i| at(i).and_then(|at| registers.get(at)).copied().unwrap_or(0))
            }
            ISR if offset == ISR => self.side.take_isr().into(),
            CONFIG => self.virtio.read_config(offset - CONFIG, size),
            _ => 0,
        }
    }

    pub(super) fn modern_write(&self, offset: u64, size: u8, value: u64) {
        match offset / PART * PART {
            COMMON => self.write_common(offset, size, value),
            CONFIG => self.virtio.write_config(offset - CONFIG, size, value),
            NOTIFY => self.virtio.core.kick(((offset - NOTIFY) / NOTIFY_STEP) as usize),
            _ => {}
        }
    }

    /// The queues' notifications: without NOTIFICATION_DATA what is written does not matter.
    pub(super) fn modern_doorbells(&self) -> Vec<Doorbell> {
        let queues = 0..self.virtio.core.queues() as u64;
        queues.map(|n| Doorbell { offset: NOTIFY + n * NOTIFY_STEP, value: None }).collect()
    }

    /// The common configuration structure (4.1.4.3).
    fn common(&self) -> [u8; 60] {
        let core = &self.virtio.core;
        let mut all = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| all[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &core.device_select().to_le_bytes());
        put(4, &core.device_features(SHOWN).to_le_bytes());
        put(8, &core.driver_select().to_le_bytes());
        put(12, &core.driver_features().to_le_bytes());
        put(16, &self.side.state.lock().config.to_le_bytes());
        put(18, &(core.queues() as u16).to_le_bytes());
        put(20, &[core.status(), core.generation()]);
        put(22, &core.selected().to_le_bytes());
        let queue = self.selected();
        let shown = core.ring(queue, |ring| {
            let parts = [Part::Descriptors, Part::Driver, Part::Device].map(|p| ring.part(p));
            (ring.size(), u16::from(ring.is_ready()), parts)
        });
        let (length, ready, parts) = shown.unwrap_or_default();
        put(24, &length.to_le_bytes());
        put(26, &self.queue_vector(queue).to_le_bytes());
        put(28, &ready.to_le_bytes());
        put(30, &(if queue < core.queues() { queue as u16 } else { 0 }).to_le_bytes());
        for (n, part) in parts.into_iter().enumerate() {
            put(32 + 8 * n, &part.to_le_bytes());
        }
        all
    }

    fn write_common(&self, offset: u64, size: u8, value: u64) {
        let core = &self.virtio.core;
        let queue = self.selected();
        match (offset, size) {
            (0, 4) => core.select_device_features(value as u32),
            (8, 4) => core.select_driver_features(value as u32),
            (12, 4) => core.set_driver_features(value as u32),
            (16, 2) => self.set_config_vector(value as u16),
            (20, 1) => self.virtio.set_status(value as u8),
            (22, 2) => core.select_queue(value as u16),
            (24, 2) => core.set_up(queue, |ring| ring.set_size(value as u16)),
            (26, 2) => self.set_queue_vector(queue, value as u16),
            (28, 2) if value as u16 == 1 => core.set_up(queue, |ring| ring.set_ready(true)),
            (32..56, 4 | 8) if offset.is_multiple_of(size.into()) => {
                let part = [Part::Descriptors, Part::Driver, Part::Device][(offset as usize - 32) / 8];
                let shift = 8 * (offset % 8);
                core.set_up(queue, |ring| {
                    let mask = if size == 8 { u64::MAX } else { 0xffff_ffff << shift };
                    ring.place(part, ring.part(part) & !mask | value << shift & mask);
                });
            }
            (58, 2) if value as u16 == 1 && core.features() & feature::RING_RESET != 0 => {
                self.set_queue_vector(queue, NO_VECTOR);
                self.virtio.reset_queue(queue);
            }
            _ => {}
        }
    }

    /// BAR, offset and length that the window shows, if they are of the registers.
    fn window(&self) -> Option<(u8, u64, u8)> {
        let at = self.window?;
        let c = self.side.function.config().lock();
        let (bar, offset) = (c.get8(at + WINDOW_BAR), u64::from(c.get32(at + WINDOW_OFFSET)));
        let len = c.get32(at + WINDOW_LENGTH);
        let fits = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len.into()) && offset < SIZE;
        (usize::from(bar) == MODERN_BAR && fits).then_some((at + WINDOW_DATA, offset, len as u8))
    }

    /// Whether an access is one of the window's data.
    fn in_window(&self, offset: u8, size: u8) -> bool {
        self.window.is_some_and(|at| {
            let data = u16::from(at + WINDOW_DATA);
            u16::from(offset) < data + 4 && u16::from(offset) + u16::from(size) > data
        })
    }

    /// A configuration read of the window's data reads a register first.
    pub(super) fn read_through_window(&self, offset: u8, size: u8) {
        if self.in_window(offset, size)
            && let Some((data, at, len)) = self.window()
        {
            let value = self.modern_read(at, len);
            let mut c = self.side.function.config().lock();
            for (i, byte) in (value as u32).to_le_bytes().into_iter().enumerate() {
                c.change8(data + i as u8, 0xff, byte);
            }
        }
    }

    /// A configuration write to the window's data writes a register.
    pub(super) fn write_through_window(&self, offset: u8, size: u8) {
        if self.in_window(offset, size)
            && let Some((data, at, len)) = self.window()
        {
            let value = self.side.function.config().lock().get32(data);
            let mask = u32::MAX >> (32 - 8 * u32::from(len));
            self.modern_write(at, len, (value & mask).into());
        }
    }
}
