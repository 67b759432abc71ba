//! The registers of before version 1 (4.1.4.10), in I/O ports.
//!
//! ```text
//!   00h RO features   08h RW queue's page    0eh RW queue selected   12h RW status   14h RW configuration's vector
//!   04h RW accepted   0ch RO queue's size    10h WO notify           13h RC ISR      16h RW queue's vector
//! ```
//!
//! The vectors are there while MSI-X is on; the configuration space follows. A queue's parts lie together, at a page
//! that the driver gives, in the size that the device gives (2.7.2).
use super::{NO_VECTOR, VirtioPci};
use crate::bus::read_bytes;
use crate::virtio::ring::Part;
use crate::virtio::{Model, status};

/// The configuration space's offset without and with vectors.
const CONFIG: u16 = 20;
const CONFIG_BEHIND_VECTORS: u16 = 24;
/// Bytes of the pages that queues are given in, and the used ring's alignment.
const PAGE: u64 = 4096;

/// How many ports there are, with a configuration space of `config` bytes.
pub(super) fn ports(config: usize, msix: bool) -> u64 {
    let first = if msix { CONFIG_BEHIND_VECTORS } else { CONFIG };
    (u64::from(first) + config as u64).next_power_of_two()
}

impl<M: Model> VirtioPci<M> {
    fn config_offset(&self) -> u16 {
        if self.side.has_msix() { CONFIG_BEHIND_VECTORS } else { CONFIG }
    }

    pub(super) fn legacy_read(&self, offset: u16, size: u8) -> u32 {
        let config = self.config_offset();
        if offset >= config {
            return self.virtio.read_config((offset - config).into(), size) as u32;
        }
        read_bytes(size, |i| {
            let at = offset + i;
            // Each register where it begins, and the byte of it.
            let (value, byte) = match at {
                0..4 => (self.virtio.core.offered() as u32, at),
                4..8 => (self.virtio.core.features() as u32, at - 4),
                8..12 => (self.page_of_queue(), at - 8),
                12..14 => (self.legacy_size().into(), at - 12),
                14..16 => (self.virtio.core.selected().into(), at - 14),
                18 => (self.virtio.core.status().into(), 0),
                19 => (self.side.take_isr().into(), 0),
                20..22 if config > CONFIG => (self.side.state.lock().config.into(), at - 20),
                22..24 if config > CONFIG => (self.queue_vector(self.selected()).into(), at - 22),
                _ => (0, 0),
            };
            value.to_le_bytes()[usize::from(byte) & 3]
        })
    }

    pub(super) fn legacy_write(&self, offset: u16, size: u8, value: u32) {
        let config = self.config_offset();
        let core = &self.virtio.core;
        match offset {
            _ if offset >= config => self.virtio.write_config((offset - config).into(), size, value.into()),
            4 if size == 4 => core.set_features(0, value),
            8 if size == 4 => self.set_page(value),
            14 => core.select_queue(value as u16),
            16 => core.kick(usize::from(value as u16)),
            18 => {
                let status = value as u8;
                self.virtio.set_status(status);
                if status & (status::ACKNOWLEDGE | status::DRIVER) == status::ACKNOWLEDGE | status::DRIVER {
                    self.master_the_bus();
                }
            }
            20 if size > 1 => self.set_config_vector(value as u16),
            22 if size > 1 => self.set_queue_vector(self.selected(), value as u16),
            _ => {}
        }
    }

    fn legacy_size(&self) -> u16 {
        self.virtio.core.ring(self.selected(), |ring| ring.size()).unwrap_or(0)
    }

    fn page_of_queue(&self) -> u32 {
        let part =
            |ring: &mut crate::virtio::ring::AnyRing| ring.is_ready().then(|| ring.part(Part::Descriptors));
        let at = self.virtio.core.ring(self.selected(), part).flatten().unwrap_or(0);
        (at / PAGE) as u32
    }

    /// The driver gives the selected queue its page, or takes it away with 0.
    fn set_page(&self, page: u32) {
        let queue = self.selected();
        if page == 0 {
            self.set_queue_vector(queue, NO_VECTOR);
            return self.virtio.reset_queue(queue);
        }
        self.virtio.core.set_up(queue, |ring| {
            let descriptors = u64::from(page) * PAGE;
            let driver = descriptors + 16 * u64::from(ring.size());
            let end = driver + 6 + 2 * u64::from(ring.size());
            ring.place(Part::Descriptors, descriptors);
            ring.place(Part::Driver, driver);
            ring.place(Part::Device, end.next_multiple_of(PAGE));
            ring.set_ready(true);
        });
    }
}
