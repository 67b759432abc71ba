//! Virtio: devices made for virtual machines, whose requests lie in rings in guest memory.
//!
//! ```text
//!   pci.rs   legacy ports, modern capabilities, MSI-X  --+              +-- blk      disk on a `Drive`
//!   mmio.rs  registers of version 2, one pin           --+--> Virtio ---+-- rng      random numbers
//!                                                        |     |        +-- balloon  memory given back
//!                                                        |    Core      +-- console  lines of characters
//!                                                        |     |        +-- scsi     disks and CDs behind SCSI
//!                                                        |     |        +-- net      network cards
//!                                                        |     |
//!                                                        |     +-- ring.rs  split rings on `virtio-queue`; packed.rs
//!                                                        +-- Signal: how the transport interrupts
//! ```
//!
//! * A [`Model`] is what a device of one type does with its queues, and its configuration space.
//! * [`Core`] is what all have: features, status, rings, and who serves a queue at a time.
//! * A transport has the registers that a driver sees, and interrupts.
//!
//! A notification is served by the vCPU that makes it, which takes buffers out of the ring and hands them on; what
//! takes time is done elsewhere, and its end served where it comes. Who finds a queue being served leaves a note, and
//! waits for nothing. What a driver does against the rules in rings and descriptors stops the device, which then needs
//! a reset (DEVICE_NEEDS_RESET); a request that cannot be carried out ends with an error of its own.
//!
//! On purpose absent: VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_IN_ORDER, VIRTIO_F_NOTIFY_ON_EMPTY,
//! VIRTIO_F_NOTIFICATION_DATA, shared memory regions, big-endian legacy drivers.
//!
//! Locks: `Core::control`, then a queue's, then the registers' or the model's own; with a queue's lock held the
//! function's may be taken. None is held while a model waits for requests to end, so that these can.
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.2, cited by its chapters.
use crate::device::Invalid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

pub mod balloon;
pub mod blk;
mod chain;
pub mod console;
mod core;
pub mod mmio;
pub mod net;
mod packed;
pub mod pci;
#[cfg(any(windows, test))]
#[cfg_attr(not(windows), allow(dead_code, reason = "its test needs a part of it"))]
mod queue;
mod ring;
pub mod rng;
pub mod scsi;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use self::core::{Core, CoreV1, Served, Signal, Then};
pub use chain::{Broken, Chain, Piece};

/// Bits of the device status (2.1).
pub mod status {
    /// The guest has seen the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// It knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// It drives it.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed on.
    pub const FEATURES_OK: u8 = 8;
    /// The device has met something it cannot recover from.
    pub const NEEDS_RESET: u8 = 0x40;
    /// The guest has given up.
    pub const FAILED: u8 = 0x80;
}

/// Features that do not depend on the device's type (6), and one of before version 1 (6.3).
pub mod feature {
    /// Requests may lie in memory in any pieces; with version 1 they always may.
    pub const ANY_LAYOUT: u64 = 1 << 27;
    /// Descriptors may lead to tables of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Both sides say at which index they wish to hear.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// The device follows version 1, not what was before.
    pub const VERSION_1: u64 = 1 << 32;
    /// Rings are packed.
    pub const RING_PACKED: u64 = 1 << 34;
    /// Queues can be reset one by one.
    pub const RING_RESET: u64 = 1 << 40;
    /// The features of rings and transports, bits 24 to 49; all others are the type's.
    pub const COMMON: u64 = 0x3ff_ffff << 24;
}

/// What a device of one type does. Its methods are called from any thread.
pub trait Model: Send + Sync + 'static {
    /// The type's number (5).
    const ID: u16;
    /// QEMU's name of the type behind PCI.
    const PCI: &'static str;
    /// QEMU's name of the type by itself, as it is behind virtio-mmio.
    const MMIO: &'static str;
    /// What is saved of it beside registers and rings.
    type State: Serialize + DeserializeOwned;

    /// The features of its type that it offers.
    fn features(&self) -> u64;

    /// The most entries of each queue, a power of two.
    fn queue_sizes(&self) -> Vec<u16>;

    /// What it works on. Once, before anything else.
    fn connect(&self, core: &Arc<Core>);

    /// Its configuration space as it is now, always of the same length.
    fn config(&self) -> Vec<u8>;

    /// The driver writes to its configuration space: bytes that are within it.
    fn write_config(&self, at: usize, bytes: &[u8]) {
        let _ = (at, bytes);
    }

    /// The driver begins to drive it, with these features of its type and of rings.
    fn started(&self, features: u64) {
        let _ = features;
    }

    /// Takes what there is to do with a queue: buffers in the ring, ends of requests.
    ///
    /// # Errors
    /// The driver breaks the rules, and must reset the device.
    fn serve(&self, queue: usize, served: &mut Served<'_, '_>) -> Result<Then, Broken>;

    /// There may be buffers in a queue that is one of those out of which the model takes them when it has something for
    /// them, by [`Core::with_queue`]: false for all others, which are served. No queue's lock is held.
    fn available(&self, queue: usize) -> bool {
        let _ = queue;
        false
    }

    /// A queue is reset, or each of them in turn: waits until nothing of it is under way, and forgets it. Nobody
    /// serves the queue, and no lock is held.
    fn halt(&self, queue: usize) {
        let _ = queue;
    }

    /// The device is reset, when all its queues are halted.
    fn reset(&self) {}

    /// Waits until nothing is under way that ends by itself.
    fn drain(&self) {}

    /// The end of a pause, or the beginning after a restore: what was under way when the machine was saved goes on.
    fn resume(&self) {}

    /// What is saved of it.
    fn save(&self) -> Self::State;

    /// Takes on what was saved. Nothing goes out before [`Model::resume`].
    ///
    /// # Errors
    /// It is none that such a device can have.
    fn restore(&self, state: Self::State) -> Result<(), Invalid>;
}

/// A device of some type, behind some transport.
pub struct Virtio<M> {
    /// What all devices have.
    pub core: Arc<Core>,
    /// What this type does.
    pub model: Arc<M>,
}

impl<M: Model> Virtio<M> {
    /// The device of `model`. `common` are the features of rings and transport that are offered.
    pub fn new(model: Arc<M>, dma: crate::dma::Dma, signal: Arc<dyn Signal>, common: u64) -> Self {
        let offered = common & feature::COMMON | model.features() & !feature::COMMON;
        let served: Arc<dyn core::Serve> = model.clone();
        let core = Core::new(&model.queue_sizes(), dma, signal, offered, Arc::downgrade(&served));
        model.connect(&core);
        Self { core, model }
    }

    /// The driver writes the status: 0 resets the device.
    pub fn set_status(&self, status: u8) {
        let order = self.core.control();
        if status == 0 {
            self.core.stop();
            self.core.clear_signal();
            (0..self.core.queues()).for_each(|n| self.model.halt(n));
            self.model.reset();
            self.core.reset_registers();
            return;
        }
        if let Some(features) = self.core.begin(status) {
            self.model.started(features);
            self.core.start();
        }
        drop(order);
    }

    /// The driver resets one queue (2.6.1), which is then as after a reset of the device.
    pub fn reset_queue(&self, queue: usize) {
        let _order = self.core.control();
        self.core.stop_queue(queue);
        self.model.halt(queue);
    }

    /// Some bytes of the configuration space, zeros beyond its end.
    pub fn read_config(&self, at: u64, size: u8) -> u64 {
        let config = self.model.config();
        crate::bus::read_bytes64(size, |i| {
            let at = usize::try_from(at).ok().and_then(|at| at.checked_add(i.into()));
            at.and_then(|at| config.get(at)).copied().unwrap_or(0)
        })
    }

    /// The driver writes to the configuration space; what is beyond its end is ignored.
    pub fn write_config(&self, at: u64, size: u8, value: u64) {
        let len = self.model.config().len() as u64;
        let n = u64::from(size.min(8)).min(len.saturating_sub(at));
        if n > 0 {
            self.model.write_config(at as usize, &value.to_le_bytes()[..n as usize]);
        }
    }

    /// The machine is about to be saved: nothing is taken out of rings any more, and what is under way ends.
    pub fn pause(&self) {
        self.core.set_paused(true);
        self.model.drain();
    }

    /// The end of that.
    pub fn resume(&self) {
        self.core.set_paused(false);
        self.model.resume();
        self.core.kick_all();
    }

    /// What is saved of it.
    pub fn save(&self) -> VirtioV1<M::State> {
        VirtioV1 { core: self.core.save(), model: self.model.save() }
    }

    /// Takes on what was saved.
    ///
    /// # Errors
    /// It is another device's.
    pub fn restore(&self, saved: VirtioV1<M::State>) -> Result<(), Invalid> {
        let _order = self.core.control();
        self.core.stop();
        (0..self.core.queues()).for_each(|n| self.model.halt(n));
        self.core.restore(saved.core)?;
        self.model.restore(saved.model)
    }
}

/// What is saved of any virtio device, beside the transport's registers.
#[derive(Serialize, serde::Deserialize)]
pub struct VirtioV1<S> {
    core: CoreV1,
    model: S,
}
