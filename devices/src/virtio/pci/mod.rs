//! Virtio over PCI (4.1): a transitional device, as QEMU's are on i440FX, or one of the old or new kind alone.
//!
//! ```text
//!   BAR 0  I/O     registers of before version 1, and the configuration space     legacy.rs   not with disable-legacy
//!   BAR 1  memory  MSI-X table at 0, pending bits behind it                                   not with vectors=0
//!   BAR 4  memory  common 0, ISR 1000h, configuration 2000h, notify 3000h + 4n    modern.rs   not with disable-modern
//! ```
//!
//! The capabilities in configuration space say where the parts of BAR 4 are; one more reaches them by configuration
//! accesses alone. A queue's interrupt is the message of its vector, or a bit of the ISR status and the INTx pin.
use super::mmio::ring_features;
use super::{Model, Signal, Virtio, VirtioV1, feature};
use crate::bus::{Mmio, PortIo};
use crate::device::{Device, Invalid, Reset};
use crate::kind::{PlugError, Site, Values};
use crate::pci::config::{command, reg};
use crate::pci::{BarKind, BarTarget, ConfigSpace, Function, FunctionV1, PciDevice};
#[cfg(test)]
use crate::pci::{DevFn, PciBus};
use mynah_mmu::Doorbell;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};

mod legacy;
mod modern;

/// VIRTIO_MSI_NO_VECTOR: no message.
const NO_VECTOR: u16 = 0xffff;
/// Bits of the ISR status (4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;
/// The BARs.
const LEGACY_BAR: usize = 0;
const MSIX_BAR: usize = 1;
const MODERN_BAR: usize = 4;

/// What was chosen of a device behind PCI.
#[derive(Clone, Copy, Debug)]
pub struct PciOptions {
    /// There are registers of before version 1.
    pub legacy: bool,
    /// There are those of version 1.
    pub modern: bool,
    /// Vectors of MSI-X; none: no MSI-X.
    pub vectors: u16,
    /// Features of rings that are offered.
    pub common: u64,
}

/// Properties that all virtio devices behind PCI have, behind those of their own.
macro_rules! pci_properties {
    ($($own:expr),* $(,)?) => {
        &[
            $($own,)*
            $crate::kind::Property {
                name: "disable-legacy",
                kind: $crate::kind::Type::Text,
                default: None,
                help: "on: without the registers of before version 1 (auto, off: with them)",
            },
            $crate::kind::Property {
                name: "disable-modern",
                kind: $crate::kind::Type::Switch,
                default: Some(0),
                help: "without the registers of version 1",
            },
            $crate::kind::Property {
                name: "vectors",
                kind: $crate::kind::Type::Number(0, 2048),
                default: None,
                help: "messages of MSI-X, 0 for none (default: as many as it has a use for)",
            },
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
pub(super) use pci_properties;

impl PciOptions {
    /// What was chosen; a device has a use for `vectors`.
    ///
    /// # Errors
    /// A value is none, or nothing of the device is left.
    pub fn of(values: &Values, vectors: u16) -> Result<Self, PlugError> {
        let legacy = match values.text("disable-legacy") {
            None | Some("off" | "auto") => true,
            Some("on") => false,
            Some(other) => {
                return Err(PlugError::Value(format!("disable-legacy={other}: it is on, off or auto")));
            }
        };
        let modern = !values.switch("disable-modern");
        if !legacy && !modern {
            let why = "disable-legacy=on,disable-modern=on: nothing is left of the device";
            return Err(PlugError::Value(why.into()));
        }
        let mut common = feature::ANY_LAYOUT;
        common |= ring_features(values);
        // Rings of before version 1 are split ones.
        if !modern {
            common &= !feature::RING_PACKED;
        }
        if modern {
            common |= feature::VERSION_1;
        }
        let vectors = values.number("vectors").map_or(vectors, |n| n as u16);
        Ok(Self { legacy, modern, vectors, common })
    }
}

/// What is chosen by the driver of how it is interrupted.
#[derive(Clone, Serialize, Deserialize)]
struct Interrupts {
    /// Bits of the ISR status.
    isr: u8,
    /// The vector of changes of the configuration space.
    config: u16,
    /// Those of the queues.
    queues: Vec<u16>,
}

impl Interrupts {
    fn new(queues: usize) -> Self {
        Self { isr: 0, config: NO_VECTOR, queues: vec![NO_VECTOR; queues] }
    }
}

/// The function, and how it interrupts. The lock comes before the function's.
struct Side {
    function: Function,
    vectors: u16,
    state: Mutex<Interrupts>,
}

impl Side {
    fn raise(&self, bit: u8, vector: impl FnOnce(&Interrupts) -> u16) {
        let mut state = self.state.lock();
        state.isr |= bit;
        if !self.function.has_messages() {
            self.function.set_interrupt(true);
        } else if let vector = vector(&state)
            && vector != NO_VECTOR
        {
            self.function.notify(vector);
        }
    }

    /// The ISR status, which is clear then.
    fn take_isr(&self) -> u8 {
        let mut state = self.state.lock();
        self.function.set_interrupt(false);
        std::mem::take(&mut state.isr)
    }

    /// A vector that there is.
    fn vector(&self, vector: u16) -> u16 {
        if vector < self.vectors { vector } else { NO_VECTOR }
    }

    fn has_msix(&self) -> bool {
        self.vectors > 0 && self.function.has_messages()
    }

    /// Bytes of the MSI-X table, behind which are the pending bits.
    fn table_size(&self) -> u64 {
        table_size(self.vectors)
    }
}

/// As QEMU has it: half a page unless that is too little.
fn table_size(vectors: u16) -> u64 {
    (u64::from(vectors) * 16).next_power_of_two().max(0x800)
}

impl Signal for Side {
    fn used(&self, queue: usize) {
        self.raise(ISR_QUEUE, |state| state.queues.get(queue).copied().unwrap_or(NO_VECTOR));
    }

    fn config(&self) {
        self.raise(ISR_CONFIG, |state| state.config);
    }

    fn clear(&self) {
        let mut state = self.state.lock();
        *state = Interrupts::new(state.queues.len());
        self.function.set_interrupt(false);
    }
}

/// BAR 1.
struct Table(Arc<Side>);

impl Mmio for Table {
    fn read(&self, offset: u64, size: u8) -> u64 {
        match offset.checked_sub(self.0.table_size()) {
            None => self.0.function.table_read(offset, size),
            Some(offset) => self.0.function.pending_read(offset, size),
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        if offset < self.0.table_size() {
            self.0.function.table_write(offset, size, value);
        }
    }
}

/// A virtio device behind PCI.
pub struct VirtioPci<M: Model> {
    virtio: Virtio<M>,
    side: Arc<Side>,
    /// Where the capability of configuration accesses is, if it is there.
    window: Option<u8>,
    me: Weak<Self>,
}

/// The configuration space, and where the capability of configuration accesses is in it.
fn config_space<M: Model>(model: &M, class: u32, options: PciOptions) -> (ConfigSpace, Option<u8>) {
    // Types of before version 1 have ids of their own (4.1.2.1).
    let old = match M::ID {
        1 => 0,
        2 => 1,
        5 => 2,
        3 => 3,
        8 => 4,
        4 => 5,
        9 => 9,
        n => n,
    };
    let (device, revision, subsystem) =
        if options.legacy { (0x1000 + old, 0, M::ID) } else { (0x1040 + M::ID, 1, 0x1100) };
    let mut c = ConfigSpace::new(0x1af4, device, class, revision);
    c.set16(reg::SUBSYSTEM_VENDOR_ID, 0x1af4);
    c.set16(reg::SUBSYSTEM_ID, subsystem);
    c.set8(reg::INTERRUPT_PIN, 1);
    if options.legacy {
        c.add_bar(LEGACY_BAR, BarKind::Io, legacy::ports(model.config().len(), options.vectors > 0));
    }
    if options.vectors > 0 {
        let table = table_size(options.vectors);
        c.add_bar(MSIX_BAR, BarKind::Memory32 { prefetchable: false }, (2 * table).max(0x1000));
        c.add_msix(options.vectors, MSIX_BAR as u8, 0, table as u32);
    }
    let window = options.modern.then(|| {
        c.add_bar(MODERN_BAR, BarKind::Memory64 { prefetchable: true }, modern::SIZE);
        modern::add_capabilities(&mut c)
    });
    (c, window)
}

impl<M: Model> VirtioPci<M> {
    /// Plugs a device of `model` in. `class` is class, subclass and programming interface.
    ///
    /// # Errors
    /// There is no place for it.
    pub fn plug(
        site: &Site<'_>,
        values: &Values,
        model: Arc<M>,
        class: u32,
        mut options: PciOptions,
    ) -> Result<Arc<Self>, PlugError> {
        // Behind a port of PCI Express, where there are no I/O ports to spare, a device is a modern one by itself.
        let express = site.pci_bus(values)?.is_port();
        if express && options.modern && matches!(values.text("disable-legacy"), None | Some("auto")) {
            options.legacy = false;
        }
        let (mut config, window) = config_space(&*model, class, options);
        if express && options.modern {
            config.add_express(0, None);
        }
        site.plug_pci(values, config, |function| Self::new(function, model, options, window))
    }

    fn new(function: Function, model: Arc<M>, options: PciOptions, window: Option<u8>) -> Arc<Self> {
        let dma = function.dma().clone();
        let state = Mutex::new(Interrupts::new(model.queue_sizes().len()));
        let side = Arc::new(Side { function, vectors: options.vectors, state });
        let virtio = Virtio::new(model, dma, side.clone(), options.common);
        Arc::new_cyclic(|me| Self { virtio, side, window, me: me.clone() })
    }

    /// What it does.
    pub fn model(&self) -> &Arc<M> {
        &self.virtio.model
    }

    /// A device on a bus that has nothing but it.
    #[cfg(test)]
    pub(super) fn on(bus: &PciBus, at: DevFn, model: Arc<M>, options: PciOptions) -> Arc<Self> {
        let (config, window) = config_space(&*model, 0x01_0000, options);
        let device = Self::new(bus.function(at, config), model, options, window);
        bus.attach(at, device.clone());
        device
    }

    #[cfg(test)]
    pub(super) fn virtio(&self) -> &Virtio<M> {
        &self.virtio
    }

    /// Bus mastering as firmware or driver has set it up; queues that waited for it are looked at.
    fn follow(&self) {
        let before = self.side.function.dma().is_enabled();
        self.side.function.follow();
        if !before && self.side.function.dma().is_enabled() {
            self.virtio.core.kick_all();
        }
    }

    /// A driver of before version 1 may forget to let the device master the bus: Linux did so until 2.6.34, and such
    /// drivers work everywhere else.
    fn master_the_bus(&self) {
        let mut config = self.side.function.config().lock();
        if config.get16(reg::COMMAND) & command::MASTER == 0 {
            config.change8(reg::COMMAND, command::MASTER as u8, command::MASTER as u8);
            drop(config);
            self.follow();
        }
    }

    fn selected(&self) -> usize {
        self.virtio.core.selected().into()
    }

    fn set_queue_vector(&self, queue: usize, vector: u16) {
        let vector = self.side.vector(vector);
        if let Some(v) = self.side.state.lock().queues.get_mut(queue) {
            *v = vector;
        }
    }

    fn queue_vector(&self, queue: usize) -> u16 {
        self.side.state.lock().queues.get(queue).copied().unwrap_or(NO_VECTOR)
    }

    fn set_config_vector(&self, vector: u16) {
        self.side.state.lock().config = self.side.vector(vector);
    }
}

/// BAR 0.
struct Legacy<M: Model>(Arc<VirtioPci<M>>);

impl<M: Model> PortIo for Legacy<M> {
    fn read(&self, offset: u16, size: u8) -> u32 {
        self.0.legacy_read(offset, size)
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        self.0.legacy_write(offset, size, value);
    }
}

/// BAR 4.
struct Modern<M: Model>(Arc<VirtioPci<M>>);

impl<M: Model> Mmio for Modern<M> {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.0.modern_read(offset, size)
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        self.0.modern_write(offset, size, value);
    }

    fn doorbells(&self) -> Vec<Doorbell> {
        self.0.modern_doorbells()
    }
}

impl<M: Model> PciDevice for VirtioPci<M> {
    fn config(&self) -> &Mutex<ConfigSpace> {
        self.side.function.config()
    }

    fn function(&self) -> Option<&Function> {
        Some(&self.side.function)
    }

    fn config_read(&self, offset: u8, size: u8) -> u32 {
        self.read_through_window(offset, size);
        self.config().lock().read(offset, size)
    }

    fn config_write(&self, offset: u8, size: u8, value: u32) {
        self.config().lock().write(offset, size, value);
        self.write_through_window(offset, size);
        self.follow();
    }

    fn bar(&self, index: usize) -> BarTarget {
        match (index, self.me.upgrade()) {
            (LEGACY_BAR, Some(me)) => BarTarget::Io(Arc::new(Legacy(me))),
            (MSIX_BAR, _) => BarTarget::Memory(Arc::new(Table(self.side.clone()))),
            (MODERN_BAR, Some(me)) => BarTarget::Memory(Arc::new(Modern(me))),
            _ => BarTarget::Own,
        }
    }
}

/// What is saved of a virtio device behind PCI.
#[derive(Serialize, Deserialize)]
pub struct VirtioPciV1<S> {
    function: FunctionV1,
    interrupts: Interrupts,
    virtio: VirtioV1<S>,
}

impl<M: Model> Device for VirtioPci<M> {
    type State = VirtioPciV1<M::State>;
    const KIND: &'static str = M::PCI;
    const VERSION: u16 = 2;

    fn reset(&self, _: Reset) {
        // Transfers under way end first; they may have a queue's lock.
        self.side.function.reset();
        self.virtio.set_status(0);
        self.virtio.core.select_queue(0);
    }

    fn pause(&self) {
        self.virtio.pause();
    }

    fn resume(&self) {
        self.virtio.resume();
    }

    fn save(&self) -> Self::State {
        let virtio = self.virtio.save();
        let interrupts = self.side.state.lock().clone();
        VirtioPciV1 { function: self.side.function.save(), interrupts, virtio }
    }

    fn restore(&self, saved: Self::State) -> Result<(), Invalid> {
        let mut state = self.side.state.lock();
        let vectors = saved.interrupts.queues.iter().chain([&saved.interrupts.config]);
        if saved.interrupts.queues.len() != state.queues.len()
            || vectors.into_iter().any(|v| self.side.vector(*v) != *v)
        {
            return Err(Invalid("a vector of virtio"));
        }
        drop(std::mem::replace(&mut *state, saved.interrupts.clone()));
        drop(state);
        self.virtio.restore(saved.virtio)?;
        // What stopping the queues has let go of.
        *self.side.state.lock() = saved.interrupts;
        self.side.function.restore(saved.function)
    }
}
