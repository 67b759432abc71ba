//! Virtio over memory-mapped registers (4.2), version 2: for boards without a PCI bus.
//!
//! ```text
//!   000h RO "virt"    010h RO features      030h WO queue selected   050h WO notify        0a0h WO device's part
//!   004h RO version   014h WO which 32      034h RO most entries     060h RO interrupts    0c0h RW reset a queue
//!   008h RO type      020h WO accepted      038h WO entries          064h WO acknowledge   0fch RO generation
//!   00ch RO vendor    024h WO which 32      044h RW ready            070h RW status        100h    configuration
//!                                           080h WO descriptors      090h WO driver's part
//! ```
//!
//! Where it is and which interrupt it has stands in no register: the board says so, to Linux by
//! `virtio_mmio.device=512@ADDRESS:IRQ` on its command line.
use super::ring::Part;
use super::{Model, Signal, Virtio, VirtioV1, feature};
use crate::aml::{self, Fragment, Under};
use crate::bus::{Irq, Mmio};
use crate::device::{Device, Invalid, Reset};
use crate::dma::Dma;
use crate::kind::{PlugError, Site, Values};
use acpi_tables::aml::{Interrupt, Memory32Fixed};
use mynah_mmu::{Doorbell, PhysMemory};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, OnceLock};

/// Bytes that the registers take.
pub const SIZE: u64 = 0x200;
/// Where the configuration space begins.
const NOTIFY: u64 = 0x050;
const CONFIG: u64 = 0x100;
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// As QEMU has it.
const VENDOR: u32 = u32::from_le_bytes(*b"QEMU");
/// Bits of the interrupt status.
const QUEUE: u8 = 1;
const CHANGED: u8 = 2;

/// The pin, and why it is up.
struct Pin {
    irq: Irq,
    status: Mutex<u8>,
}

impl Pin {
    fn change(&self, change: impl FnOnce(&mut u8)) {
        let mut status = self.status.lock();
        change(&mut status);
        self.irq.set(*status != 0);
    }

    /// What is left of the status interrupts once more: the line may be edge-triggered.
    fn acknowledge(&self, bits: u8) {
        let mut status = self.status.lock();
        let before = *status;
        *status &= !bits;
        if *status != before {
            self.irq.set(false);
            self.irq.set(*status != 0);
        }
    }
}

impl Signal for Pin {
    fn used(&self, _: usize) {
        self.change(|status| *status |= QUEUE);
    }

    fn config(&self) {
        self.change(|status| *status |= CHANGED);
    }

    fn clear(&self) {
        self.change(|status| *status = 0);
    }
}

/// A place for such registers on a board.
pub struct MmioSlot {
    /// Its number.
    pub number: usize,
    /// The first register's address, below 4 GiB.
    pub at: u64,
    /// The interrupt's number (GSI).
    pub gsi: u32,
    /// Its pin.
    pub irq: Irq,
    /// What the device reaches.
    pub memory: Arc<PhysMemory>,
}

/// Properties that all virtio devices behind memory-mapped registers have, behind those of their own.
macro_rules! mmio_properties {
    ($($own:expr),* $(,)?) => {
        &[
            $($own,)*
            $crate::kind::Property {
                name: "indirect_desc",
                kind: $crate::kind::Type::Switch,
                default: Some(1),
                help: "descriptors may lead to tables of descriptors",
            },
            $crate::kind::Property {
                name: "event_idx",
                kind: $crate::kind::Type::Switch,
                default: Some(1),
                help: "driver and device say at which index they wish to hear",
            },
            $crate::kind::Property {
                name: "queue_reset",
                kind: $crate::kind::Type::Switch,
                default: Some(1),
                help: "queues can be reset one by one",
            },
            $crate::kind::Property {
                name: "packed",
                kind: $crate::kind::Type::Switch,
                default: Some(0),
                help: "rings may be packed",
            },
        ]
    };
}
pub(super) use mmio_properties;

/// Features of rings, as they were chosen.
pub(super) fn ring_features(values: &Values) -> u64 {
    let mut common = 0;
    for (name, bit, usual) in [
        ("indirect_desc", feature::INDIRECT_DESC, true),
        ("event_idx", feature::EVENT_IDX, true),
        ("queue_reset", feature::RING_RESET, true),
        ("packed", feature::RING_PACKED, false),
    ] {
        // A device that is made without any properties has those that are usual.
        if values.switch(name) || usual && !values.values.contains_key(name) {
            common |= bit;
        }
    }
    common
}

/// A virtio device behind such registers.
pub struct VirtioMmio<M: Model> {
    virtio: Virtio<M>,
    pin: Arc<Pin>,
    /// Its slot, address and interrupt, if the board's tables are to tell of it.
    place: OnceLock<(usize, u64, u32)>,
}

impl<M: Model> VirtioMmio<M> {
    /// A device of `model` with this interrupt, that reaches all of `memory`.
    pub fn new(model: Arc<M>, memory: Arc<PhysMemory>, irq: Irq, rings: u64) -> Arc<Self> {
        let pin = Arc::new(Pin { irq, status: Mutex::new(0) });
        let virtio = Virtio::new(model, Dma::always(memory), pin.clone(), rings | feature::VERSION_1);
        Arc::new(Self { virtio, pin, place: OnceLock::new() })
    }

    /// Plugs a device of `model` into the board's next slot.
    ///
    /// # Errors
    /// There is none.
    pub fn plug(site: &Site<'_>, values: &Values, model: Arc<M>) -> Result<Arc<Self>, PlugError> {
        let slot = (site.mmio_slot.borrow_mut())();
        let slot = slot.ok_or_else(|| PlugError::Value("the board has no virtio-mmio slot for it".into()))?;
        let device = Self::new(model, slot.memory.clone(), slot.irq, ring_features(values));
        device.attach(&slot.memory, slot.at);
        let _ = device.place.set((slot.number, slot.at, slot.gsi));
        let name = values.id.clone().unwrap_or_else(|| format!("{}@{}", M::MMIO, slot.number));
        site.registry.plug("virtio-mmio", name, device.clone());
        Ok(device)
    }

    /// Puts the registers at this address.
    pub fn attach(self: &Arc<Self>, memory: &PhysMemory, at: u64) {
        memory.map_mmio(at, SIZE, self.clone());
    }

    /// What it does.
    pub fn model(&self) -> &Arc<M> {
        &self.virtio.model
    }

    #[cfg(test)]
    pub(super) fn virtio(&self) -> &Virtio<M> {
        &self.virtio
    }

    fn register(&self, at: u64) -> u32 {
        let core = &self.virtio.core;
        let queue = usize::from(core.selected());
        match at {
            0x000 => MAGIC,
            0x004 => VERSION,
            0x008 => M::ID.into(),
            0x00c => VENDOR,
            0x010 => core.device_features(u64::MAX),
            0x034 => core.ring(queue, |ring| ring.most()).unwrap_or(0).into(),
            0x044 => core.ring(queue, |ring| ring.is_ready()).unwrap_or(false).into(),
            0x060 => (*self.pin.status.lock()).into(),
            0x070 => core.status().into(),
            // There is no memory to share.
            0x0b0..0x0c0 => u32::MAX,
            0x0fc => core.generation().into(),
            _ => 0,
        }
    }

    fn set_register(&self, at: u64, value: u32) {
        let core = &self.virtio.core;
        let queue = usize::from(core.selected());
        match at {
            0x014 => core.select_device_features(value),
            0x020 => core.set_driver_features(value),
            0x024 => core.select_driver_features(value),
            0x030 => core.select_queue(value as u16),
            0x038 => core.set_up(queue, |ring| ring.set_size(u16::try_from(value).unwrap_or(0))),
            0x044 if value & 1 != 0 => core.set_up(queue, |ring| ring.set_ready(true)),
            0x044 => self.virtio.reset_queue(queue),
            NOTIFY => core.kick(value as usize),
            0x064 => self.pin.acknowledge(value as u8),
            0x070 => self.virtio.set_status(value as u8),
            0x080 | 0x084 => self.place(queue, Part::Descriptors, at, value),
            0x090 | 0x094 => self.place(queue, Part::Driver, at, value),
            0x0a0 | 0x0a4 => self.place(queue, Part::Device, at, value),
            0x0c0 if value & 1 != 0 && core.features() & feature::RING_RESET != 0 => {
                self.virtio.reset_queue(queue);
            }
            _ => {}
        }
    }

    fn place(&self, queue: usize, part: Part, at: u64, value: u32) {
        let shift = 8 * (at & 4);
        self.virtio.core.set_up(queue, |ring| {
            ring.place(part, ring.part(part) & !(0xffff_ffff << shift) | u64::from(value) << shift);
        });
    }
}

impl<M: Model> Mmio for VirtioMmio<M> {
    fn read(&self, offset: u64, size: u8) -> u64 {
        match offset.checked_sub(CONFIG) {
            Some(at) => self.virtio.read_config(at, size),
            None if size == 4 && offset.is_multiple_of(4) => self.register(offset).into(),
            None => 0,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        match offset.checked_sub(CONFIG) {
            Some(at) => self.virtio.write_config(at, size, value),
            None if size == 4 && offset.is_multiple_of(4) => self.set_register(offset, value as u32),
            None => {}
        }
    }

    fn doorbells(&self) -> Vec<Doorbell> {
        let queues = 0..self.virtio.core.queues() as u32;
        queues.map(|n| Doorbell { offset: NOTIFY, value: Some(n) }).collect()
    }
}

/// What is saved of a virtio device behind memory-mapped registers.
#[derive(Serialize, Deserialize)]
pub struct VirtioMmioV1<S> {
    interrupts: u8,
    virtio: VirtioV1<S>,
}

impl<M: Model> Device for VirtioMmio<M> {
    type State = VirtioMmioV1<M::State>;
    const KIND: &'static str = M::MMIO;

    /// As QEMU's boards tell of it: operating systems know it by that id.
    fn aml(&self) -> Option<Fragment> {
        let (slot, at, gsi) = *self.place.get()?;
        let memory = Memory32Fixed::new(true, at as u32, SIZE as u32);
        let interrupt = Interrupt::new(true, false, false, false, gsi);
        let path = format!("VR{slot:02}");
        let id = aml::name("_HID", &"LNRO0005");
        let uid = aml::name("_UID", &(slot as u32));
        let coherent = aml::name("_CCA", &1_u8);
        let crs = aml::crs(vec![&memory, &interrupt]);
        Some(Fragment::device(Under::SystemBus, &path, vec![&id, &uid, &coherent, &crs]))
    }

    fn reset(&self, _: Reset) {
        self.virtio.set_status(0);
    }

    fn pause(&self) {
        self.virtio.pause();
    }

    fn resume(&self) {
        self.virtio.resume();
    }

    fn save(&self) -> Self::State {
        VirtioMmioV1 { virtio: self.virtio.save(), interrupts: *self.pin.status.lock() }
    }

    fn restore(&self, saved: Self::State) -> Result<(), Invalid> {
        if saved.interrupts & !(QUEUE | CHANGED) != 0 {
            return Err(Invalid("the interrupt status"));
        }
        self.virtio.restore(saved.virtio)?;
        let mut status = self.pin.status.lock();
        *status = saved.interrupts;
        self.pin.irq.restore(*status != 0);
        Ok(())
    }
}
