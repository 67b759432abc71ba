//! The PCI bus: functions, their configuration spaces and BARs, and configuration mechanism #1.
//!
//! ```text
//!   port CF8h  address --+
//!   port CFCh  data -----+--> PciBus --config_read/write--> PciDevice { ConfigSpace }
//!                               |
//!                               +-- after each write: BARs that moved are mapped anew
//!                                     on the port bus or the physical address map
//! ```
//!
//! Bus 0 is the board's; others are behind bridges ([`bridge`]), which number them. A device brings a `ConfigSpace`
//! and, for each BAR, what answers there; the bus maps it where software puts it, as far as the windows of all bridges
//! on the way let through. One that masters the bus or interrupts has a [`Function`], in which that is written once.
//! INTx pins lead to the chipset's router (`chipset::piix3`, `chipset::ich9`), messages to the local APICs. Where the
//! host bridge has mechanism ECAM ([`ecam`]), a PCI Express function has 4096 bytes of configuration space.
//!
//! On purpose absent: special cycles, and what bridges do to transfers of the devices behind them: their Bus Master
//! bits close nothing, as on QEMU's.
//!
//! Locks: a slot's `mapped` is held while its BARs are moved, which keeps two vCPUs that write to one BAR in
//! order. No lock of the bus is held while a device's `config_read` or `config_write` runs.
//!
//! Source: PCI Local Bus Specification 2.1, chapters 3.7.4 (mechanism #1) and 6.
use crate::bus::{Irq, PortBus, PortIo, PortMapping, open_bus, read_bytes};
use crate::device::{Device, Invalid, Reset};
use mynah_mmu::{DeviceRam, Mmio, PhysMemory};
use parking_lot::{Mutex, MutexGuard, RwLock};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};

pub mod bridge;
pub mod config;
pub mod ecam;
mod function;

use bridge::Windows;
use config::reg;

pub use config::{BarKind, ConfigSpace};
pub use function::{Function, FunctionV1, MsiSink, OptionRom};

/// First port of configuration mechanism #1: address at +0, data at +4.
pub const CONFIG_PORTS: u16 = 0xcf8;

/// A device (0 to 31) and function (0 to 7) on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DevFn(u8);

impl DevFn {
    /// Function `function` of device `device`.
    pub const fn new(device: u8, function: u8) -> Self {
        Self((device & 0x1f) << 3 | function & 7)
    }

    /// The device number.
    pub const fn device(self) -> u8 {
        self.0 >> 3
    }

    /// The function number.
    pub const fn function(self) -> u8 {
        self.0 & 7
    }
}

impl fmt::Display for DevFn {
    /// As QEMU's `addr=` has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{}", self.device(), self.function())
    }
}

/// What answers in a BAR's range.
pub enum BarTarget {
    /// I/O ports.
    Io(Arc<dyn PortIo>),
    /// Memory-mapped registers.
    Memory(Arc<dyn Mmio>),
    /// Memory that the device shares, from its beginning on.
    Ram(Arc<DeviceRam>),
    /// The device maps it itself, in `bar_moved`.
    Own,
}

/// A PCI function.
pub trait PciDevice: Send + Sync {
    /// Its configuration space. Hooks below may lock it; the bus never holds it while it calls.
    fn config(&self) -> &Mutex<ConfigSpace>;

    /// What it has of a function that masters the bus or interrupts: the bus has it follow its configuration space.
    fn function(&self) -> Option<&Function> {
        None
    }

    /// A configuration read, within an aligned 32-bit word.
    fn config_read(&self, offset: u8, size: u8) -> u32 {
        self.config().lock().read(offset, size)
    }

    /// A configuration write, within an aligned 32-bit word. A device whose registers do something overrides
    /// it.
    fn config_write(&self, offset: u8, size: u8, value: u32) {
        self.config().lock().write(offset, size, value);
    }

    /// The bus behind it, if it is a bridge.
    fn secondary(&self) -> Option<&Arc<PciBus>> {
        None
    }

    /// What answers in BAR `index`.
    fn bar(&self, index: usize) -> BarTarget {
        let _ = index;
        BarTarget::Own
    }

    /// BAR `index` is decoded at `address` now, or nowhere.
    fn bar_moved(&self, index: usize, address: Option<u64>) {
        let _ = (index, address);
    }
}

enum Mapping {
    Io(PortMapping),
    Memory(u64),
    Own,
}

struct Slot {
    devfn: DevFn,
    dev: Arc<dyn PciDevice>,
    /// Where each BAR is mapped.
    mapped: Mutex<[Option<(u64, Mapping)>; config::BARS]>,
}

/// Gives the wire that pin `n` (0 INTA# to 3 INTD#) of a function leads to.
pub type IntxWires = Box<dyn Fn(DevFn, u8) -> Irq + Send + Sync>;

/// Where the interrupts of functions lead.
struct Wires {
    messages: Arc<dyn MsiSink>,
    intx: IntxWires,
}

/// A bus: the board's bus 0, or one behind a bridge.
pub struct PciBus {
    name: String,
    /// Links of PCI Express, not wires: that of a board with ECAM, and those behind its ports.
    express: bool,
    slots: RwLock<Vec<Arc<Slot>>>,
    ports: Arc<PortBus>,
    memory: Arc<PhysMemory>,
    wires: OnceLock<Wires>,
    /// Of a bus behind a bridge.
    up: Option<Up>,
    me: Weak<PciBus>,
}

/// The way from a bus towards the processor.
struct Up {
    /// The bus that the bridge is on.
    bus: Weak<PciBus>,
    /// What the bridge lets through.
    windows: RwLock<Windows>,
    /// It is a port: there is one device, number 0.
    port: bool,
}

impl PciBus {
    /// An empty bus 0, "pci.0", whose BARs appear on `ports` and in `memory`.
    pub fn new(ports: Arc<PortBus>, memory: Arc<PhysMemory>) -> Arc<Self> {
        Self::root("pci.0", false, ports, memory)
    }

    /// An empty bus 0 of this name.
    pub fn root(name: &str, express: bool, ports: Arc<PortBus>, memory: Arc<PhysMemory>) -> Arc<Self> {
        Self::make(name.into(), express, ports, memory, None)
    }

    fn make(
        name: String,
        express: bool,
        ports: Arc<PortBus>,
        memory: Arc<PhysMemory>,
        up: Option<Up>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            name,
            express,
            slots: RwLock::default(),
            ports,
            memory,
            wires: OnceLock::new(),
            up,
            me: me.clone(),
        })
    }

    /// The bus behind a bridge at `devfn` on this one, or behind a port of PCI Express, with nothing on it. Its pins
    /// come out at the bridge's, rotated by the device (PCI-to-PCI Bridge Architecture 1.1, 9.1).
    pub fn behind(&self, devfn: DevFn, name: String, port: bool) -> Arc<Self> {
        let up = Up { bus: self.me.clone(), windows: RwLock::default(), port };
        let bus = Self::make(name, port, self.ports.clone(), self.memory.clone(), Some(up));
        let parent = self.me.clone();
        let intx = move |at: DevFn, pin: u8| {
            let pin = pin.wrapping_add(at.device()) & 3;
            parent.upgrade().map_or_else(Irq::unconnected, |bus| bus.intx(devfn, pin))
        };
        bus.connect(self.messages(), Box::new(intx));
        bus
    }

    /// Its name, as `bus=` has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is bus 0.
    pub fn is_root(&self) -> bool {
        self.up.is_none()
    }

    /// Whether its devices are on PCI Express.
    pub fn is_express(&self) -> bool {
        self.express
    }

    /// Whether it is the link behind a port, with room for device 0 alone.
    pub fn is_port(&self) -> bool {
        self.up.as_ref().is_some_and(|up| up.port)
    }

    /// The bus of this name, from this one on.
    pub fn find(&self, name: &str) -> Option<Arc<PciBus>> {
        if self.name == name {
            return self.me.upgrade();
        }
        self.children().iter().find_map(|bus| bus.find(name))
    }

    /// The buses behind bridges on this one.
    fn children(&self) -> Vec<Arc<PciBus>> {
        self.slots.read().iter().filter_map(|s| s.dev.secondary().cloned()).collect()
    }

    /// Calls `see` for each function from this bus on, which has this number, with its bus, its place there and its
    /// configuration space; what is behind a bridge follows it.
    pub fn visit(&self, number: u8, see: &mut dyn FnMut(u8, DevFn, &ConfigSpace)) {
        let mut slots = self.slots.read().clone();
        slots.sort_by_key(|slot| slot.devfn.0);
        for slot in slots {
            let config = slot.dev.config().lock().clone();
            see(number, slot.devfn, &config);
            if let Some(behind) = slot.dev.secondary() {
                behind.visit(config.get8(config::reg::SECONDARY_BUS), see);
            }
        }
    }

    /// The address space that memory BARs appear in, for a device that answers elsewhere, too.
    pub fn memory(&self) -> &Arc<PhysMemory> {
        &self.memory
    }

    /// Says where interrupts lead, before functions are made. Once.
    pub fn connect(&self, messages: Arc<dyn MsiSink>, intx: IntxWires) {
        let _ = self.wires.set(Wires { messages, intx });
    }

    fn messages(&self) -> Arc<dyn MsiSink> {
        self.wires.get().map_or_else(|| Arc::new(function::NoMessages) as _, |w| w.messages.clone())
    }

    fn intx(&self, devfn: DevFn, pin: u8) -> Irq {
        self.wires.get().map_or_else(Irq::unconnected, |w| (w.intx)(devfn, pin))
    }

    /// Plugs a function in, in place of what was there.
    pub fn attach(&self, devfn: DevFn, dev: Arc<dyn PciDevice>) {
        self.detach(devfn);
        let slot = Arc::new(Slot { devfn, dev, mapped: Mutex::new([const { None }; config::BARS]) });
        self.slots.write().push(slot.clone());
        self.move_bars(&slot);
    }

    /// Takes a function out.
    pub fn detach(&self, devfn: DevFn) {
        let Some(slot) = self.slot(devfn) else { return };
        self.slots.write().retain(|s| s.devfn != devfn);
        let mut mapped = slot.mapped.lock();
        for index in 0..config::BARS {
            self.place(&slot, &mut mapped, index, None);
        }
    }

    /// The function at `devfn`.
    pub fn device(&self, devfn: DevFn) -> Option<Arc<dyn PciDevice>> {
        self.slot(devfn).map(|s| s.dev.clone())
    }

    /// The lowest device number from `from` with no function at all.
    pub fn free_device(&self, from: u8) -> Option<u8> {
        let slots = self.slots.read();
        let numbers = if self.is_port() { 0..1 } else { from..32 };
        numbers.into_iter().find(|d| slots.iter().all(|s| s.devfn.device() != *d))
    }

    /// Maps all BARs where the functions' configuration spaces have them: to be called after these were changed by
    /// other ways than through the bus (by a reset, say).
    pub fn follow(&self) {
        let slots = self.slots.read().clone();
        for slot in &slots {
            self.move_bars(slot);
            if let Some(f) = slot.dev.function() {
                f.follow();
            }
            if let Some(bus) = slot.dev.secondary() {
                bus.open(Windows::of(&slot.dev.config().lock()));
                bus.follow();
            }
        }
    }

    /// The bridge to this bus has these windows.
    fn open(&self, windows: Windows) {
        if let Some(up) = &self.up {
            *up.windows.write() = windows;
        }
    }

    /// Whether an access to a BAR comes through all bridges.
    fn is_reached(&self, io: bool, address: u64, size: u64) -> bool {
        let Some(up) = &self.up else { return true };
        up.windows.read().have(io, address, size)
            && up.bus.upgrade().is_some_and(|bus| bus.is_reached(io, address, size))
    }

    /// Maps anew what is behind a bridge.
    fn move_behind(&self) {
        let slots = self.slots.read().clone();
        for slot in &slots {
            self.move_bars(slot);
            if let Some(bus) = slot.dev.secondary() {
                bus.move_behind();
            }
        }
    }

    fn slot(&self, devfn: DevFn) -> Option<Arc<Slot>> {
        self.slots.read().iter().find(|s| s.devfn == devfn).cloned()
    }

    /// The bus of this number behind one of this bus's bridges, as they are numbered.
    fn numbered(&self, number: u8) -> Option<Arc<PciBus>> {
        let bridges = self.slots.read().clone();
        for slot in &bridges {
            let Some(bus) = slot.dev.secondary() else { continue };
            let (first, last) = {
                let c = slot.dev.config().lock();
                (c.get8(reg::SECONDARY_BUS), c.get8(reg::SUBORDINATE_BUS))
            };
            if first == 0 || !(first..=last).contains(&number) {
                continue;
            }
            return if number == first { Some(bus.clone()) } else { bus.numbered(number) };
        }
        None
    }

    /// The bus of this number, as bus 0 finds it, and the function on it.
    fn target(&self, number: u8, devfn: DevFn) -> Option<(Arc<PciBus>, Arc<Slot>)> {
        let bus = if number == 0 { self.me.upgrade()? } else { self.numbered(number)? };
        let slot = bus.slot(devfn)?;
        Some((bus, slot))
    }

    /// A configuration read on any bus, asked of bus 0; all ones where there is nothing.
    pub fn config_read(&self, bus: u8, devfn: DevFn, offset: u16, size: u8) -> u32 {
        match self.target(bus, devfn) {
            Some((_, slot)) => match u8::try_from(offset) {
                Ok(offset) => slot.dev.config_read(offset, size) & open_bus(size),
                // No function here has extended capabilities.
                Err(_) if slot.dev.config().lock().is_express() => 0,
                Err(_) => open_bus(size),
            },
            _ => open_bus(size),
        }
    }

    /// A configuration write on any bus, asked of bus 0; ignored where there is nothing.
    pub fn config_write(&self, bus: u8, devfn: DevFn, offset: u16, size: u8, value: u32) {
        let (Some((bus, slot)), Ok(offset)) = (self.target(bus, devfn), u8::try_from(offset)) else { return };
        slot.dev.config_write(offset, size, value & open_bus(size));
        // The command register, the BARs and a bridge's windows; a device may move a BAR of its own accord elsewhere,
        // but none here does.
        if offset < 0x34 {
            bus.move_bars(&slot);
            if let Some(behind) = slot.dev.secondary() {
                behind.open(Windows::of(&slot.dev.config().lock()));
                behind.move_behind();
            }
        }
        if let Some(f) = slot.dev.function() {
            f.follow();
        }
    }

    /// Maps the BARs of a function where its configuration space has them.
    fn move_bars(&self, slot: &Slot) {
        let mut mapped = slot.mapped.lock();
        for index in 0..config::BARS {
            let wanted = {
                let config = slot.dev.config().lock();
                let bar = config.bar(index);
                config.bar_address(index).filter(|at| {
                    bar.is_some_and(|(kind, size)| self.is_reached(kind == BarKind::Io, *at, size))
                })
            };
            self.place(slot, &mut mapped, index, wanted);
        }
    }

    fn place(
        &self,
        slot: &Slot,
        mapped: &mut MutexGuard<'_, [Option<(u64, Mapping)>; config::BARS]>,
        index: usize,
        wanted: Option<u64>,
    ) {
        if mapped[index].as_ref().map(|(address, _)| *address) == wanted {
            return;
        }
        match mapped[index].take() {
            Some((_, Mapping::Io(id))) => self.ports.unmap(id),
            Some((_, Mapping::Memory(id))) => self.memory.unmap(id),
            Some((_, Mapping::Own)) | None => {}
        }
        let bar = slot.dev.config().lock().bar(index);
        if let (Some(address), Some((kind, size))) = (wanted, bar) {
            let rom = slot.dev.function().and_then(|f| f.rom()).filter(|_| index == config::ROM_BAR);
            let mapping = match (slot.dev.bar(index), kind) {
                _ if let Some(rom) = rom => {
                    Mapping::Memory(self.memory.map_rom_device(address, size, rom.memory(), 0, rom.clone()))
                }
                (BarTarget::Io(dev), BarKind::Io) => {
                    Mapping::Io(self.ports.map(address as u16, size as u32, dev))
                }
                (BarTarget::Memory(dev), BarKind::Memory32 { .. } | BarKind::Memory64 { .. }) => {
                    Mapping::Memory(self.memory.map_mmio(address, size, dev))
                }
                (BarTarget::Ram(ram), BarKind::Memory32 { .. } | BarKind::Memory64 { .. }) => {
                    Mapping::Memory(self.memory.map_device_ram(address, size, &ram, 0))
                }
                _ => Mapping::Own,
            };
            mapped[index] = Some((address, mapping));
        }
        slot.dev.bar_moved(index, wanted);
    }
}

/// Ports CF8h to CFFh: configuration mechanism #1, and in its middle (CF9h, bytes only) the chipset's reset
/// control register.
pub struct ConfigPorts {
    bus: Arc<PciBus>,
    address: AtomicU32,
    reset_control: Arc<dyn PortIo>,
}

impl ConfigPorts {
    /// Bits of the address register that exist: enable, bus, device, function, register (3.7.4.1).
    const ADDRESS: u32 = 0x80ff_fffc;

    /// The ports of `bus`; byte accesses to CF9h go to `reset_control` (at its offset 0).
    pub fn new(bus: Arc<PciBus>, reset_control: Arc<dyn PortIo>) -> Arc<Self> {
        Arc::new(Self { bus, address: AtomicU32::new(0), reset_control })
    }

    /// Puts the ports on the bus.
    pub fn attach(self: &Arc<Self>, ports: &PortBus) {
        ports.map(CONFIG_PORTS, 8, self.clone());
    }

    /// Bus, function and register that the data port shows at `lane`, if the address is enabled.
    fn selected(&self, lane: u8) -> Option<(u8, DevFn, u8)> {
        let a = self.address.load(Ordering::Relaxed);
        (a >> 31 != 0).then_some(((a >> 16) as u8, DevFn((a >> 8) as u8), a as u8 & 0xfc | lane & 3))
    }
}

impl PortIo for ConfigPorts {
    fn read(&self, offset: u16, size: u8) -> u32 {
        match (offset, size) {
            (0, 4) => self.address.load(Ordering::Relaxed),
            (1, 1) => self.reset_control.read(0, 1),
            (4..8, _) if offset as u8 % 4 + size <= 4 => match self.selected(offset as u8) {
                Some((bus, devfn, reg)) => self.bus.config_read(bus, devfn, reg.into(), size),
                None => open_bus(size),
            },
            // Across the end of a register: byte by byte. Anything but a word to the address register passes
            // it by.
            (0..8, 2..) if offset + u16::from(size) > 4 => {
                read_bytes(size, |i| self.read(offset + i, 1) as u8)
            }
            _ => open_bus(size),
        }
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        match (offset, size) {
            (0, 4) => self.address.store(value & Self::ADDRESS, Ordering::Relaxed),
            (1, 1) => self.reset_control.write(0, 1, value),
            (4..8, _) if offset as u8 % 4 + size <= 4 => {
                if let Some((bus, devfn, reg)) = self.selected(offset as u8) {
                    self.bus.config_write(bus, devfn, reg.into(), size, value);
                }
            }
            (0..8, 2..) if offset + u16::from(size) > 4 => {
                crate::bus::write_bytes(size, value, |i, b| self.write(offset + i, 1, b.into()));
            }
            _ => {}
        }
    }
}

/// What is saved of a bus and its ports, without the functions: the address register.
#[derive(Serialize, Deserialize)]
pub struct ConfigPortsV1 {
    address: u32,
}

/// The bus follows its functions: it is plugged in behind them.
impl Device for ConfigPorts {
    type State = ConfigPortsV1;
    const KIND: &'static str = "i440FX-pcihost";

    fn reset(&self, _: Reset) {
        self.address.store(0, Ordering::Relaxed);
        self.bus.follow();
    }

    fn save(&self) -> ConfigPortsV1 {
        ConfigPortsV1 { address: self.address.load(Ordering::Relaxed) }
    }

    fn restore(&self, ConfigPortsV1 { address }: ConfigPortsV1) -> Result<(), Invalid> {
        if address & !Self::ADDRESS != 0 {
            return Err(Invalid("the address register"));
        }
        self.address.store(address, Ordering::Relaxed);
        self.bus.follow();
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::bus::IrqSink;
    use mynah_mmu::GuestRam;

    /// A bus with its ports and memory, and a configuration access by ports.
    pub(crate) struct Pc {
        pub(crate) ports: Arc<PortBus>,
        pub(crate) memory: Arc<PhysMemory>,
        pub(crate) bus: Arc<PciBus>,
    }

    /// What comes out of a bus's functions: levels of their pins (address 0), and messages.
    #[derive(Default)]
    pub(crate) struct Wires(Mutex<Vec<(u64, u32)>>);

    impl Wires {
        /// Takes all that comes out of `bus`.
        pub(crate) fn on(bus: &PciBus) -> Arc<Self> {
            let wires = Arc::new(Self::default());
            let pins = wires.clone();
            bus.connect(wires.clone(), Box::new(move |_, _| Irq::new(pins.clone(), 0)));
            wires
        }

        /// What has come since the last call.
        pub(crate) fn take(&self) -> Vec<(u64, u32)> {
            std::mem::take(&mut self.0.lock())
        }
    }

    impl IrqSink for Wires {
        fn set(&self, _: u32, level: bool) {
            self.0.lock().push((0, level.into()));
        }
    }

    impl MsiSink for Wires {
        fn msi(&self, address: u64, data: u32) {
            self.0.lock().push((address, data));
        }
    }

    struct NoReset;
    impl PortIo for NoReset {
        fn read(&self, _: u16, _: u8) -> u32 {
            0x5a
        }
        fn write(&self, _: u16, _: u8, _: u32) {}
    }

    impl Pc {
        pub(crate) fn new() -> Self {
            let ports = Arc::new(PortBus::new());
            let memory = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
            let bus = PciBus::new(ports.clone(), memory.clone());
            ConfigPorts::new(bus.clone(), Arc::new(NoReset)).attach(&ports);
            Self { ports, memory, bus }
        }
        pub(crate) fn select(&self, devfn: DevFn, reg: u8) {
            let address = 0x8000_0000 | u32::from(devfn.0) << 8 | u32::from(reg & 0xfc);
            self.ports.write(CONFIG_PORTS, 4, address);
        }
        pub(crate) fn read(&self, devfn: DevFn, reg: u8, size: u8) -> u32 {
            self.select(devfn, reg);
            self.ports.read(CONFIG_PORTS + 4 + u16::from(reg & 3), size)
        }
        pub(crate) fn write(&self, devfn: DevFn, reg: u8, size: u8, value: u32) {
            self.select(devfn, reg);
            self.ports.write(CONFIG_PORTS + 4 + u16::from(reg & 3), size, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Pc;
    use super::*;
    use crate::events::testing::hammer;
    use mynah_mmu::Target;

    struct Card {
        config: Mutex<ConfigSpace>,
        moves: Mutex<Vec<(usize, Option<u64>)>>,
    }

    struct Registers;
    impl PortIo for Registers {
        fn read(&self, offset: u16, _: u8) -> u32 {
            0xa0 + u32::from(offset)
        }
        fn write(&self, _: u16, _: u8, _: u32) {}
    }
    impl Mmio for Registers {
        fn read(&self, offset: u64, _: u8) -> u64 {
            offset
        }
        fn write(&self, _: u64, _: u8, _: u64) {}
    }

    impl PciDevice for Card {
        fn config(&self) -> &Mutex<ConfigSpace> {
            &self.config
        }
        fn bar(&self, index: usize) -> BarTarget {
            if index == 0 {
                BarTarget::Io(Arc::new(Registers))
            } else {
                BarTarget::Memory(Arc::new(Registers))
            }
        }
        fn bar_moved(&self, index: usize, address: Option<u64>) {
            self.moves.lock().push((index, address));
        }
    }

    const AT: DevFn = DevFn::new(3, 0);

    fn setup() -> (Pc, Arc<Card>) {
        let pc = Pc::new();
        let mut config = ConfigSpace::new(0x1234, 0x5678, 0xff_0000, 0);
        config.add_bar(0, BarKind::Io, 16);
        config.add_bar(1, BarKind::Memory32 { prefetchable: false }, 0x1000);
        let card = Arc::new(Card { config: Mutex::new(config), moves: Mutex::new(Vec::new()) });
        pc.bus.attach(AT, card.clone());
        (pc, card)
    }

    #[test]
    fn configuration_is_read_at_every_width_and_sub_offset() {
        let (pc, _) = setup();
        assert_eq!(pc.read(AT, 0, 4), 0x5678_1234);
        assert_eq!((pc.read(AT, 0, 2), pc.read(AT, 2, 2)), (0x1234, 0x5678));
        assert_eq!((pc.read(AT, 1, 1), pc.read(AT, 3, 1)), (0x12, 0x56));
    }

    #[test]
    fn nothing_answers_where_nothing_is() {
        let (pc, _) = setup();
        assert_eq!(pc.read(DevFn::new(3, 1), 0, 4), u32::MAX);
        assert_eq!(pc.read(DevFn::new(4, 0), 0, 2), 0xffff);
        pc.ports.write(CONFIG_PORTS, 4, 0x8001_1800);
        assert_eq!(pc.ports.read(0xcfc, 4), u32::MAX, "another bus");
        pc.ports.write(CONFIG_PORTS, 4, 0x0000_1800);
        assert_eq!(pc.ports.read(0xcfc, 4), u32::MAX, "not enabled");
    }

    #[test]
    fn the_address_register_takes_whole_words_only() {
        let (pc, _) = setup();
        pc.ports.write(CONFIG_PORTS, 4, 0xffff_ffff);
        assert_eq!(pc.ports.read(CONFIG_PORTS, 4), 0x80ff_fffc);
        pc.ports.write(CONFIG_PORTS, 1, 0);
        pc.ports.write(CONFIG_PORTS, 2, 0);
        assert_eq!(pc.ports.read(CONFIG_PORTS, 4), 0x80ff_fffc);
        assert_eq!(pc.ports.read(0xcf9, 1), 0x5a, "a byte there is the reset control register");
    }

    #[test]
    fn bars_are_mapped_where_software_puts_them() {
        let (pc, card) = setup();
        pc.write(AT, 0x10, 4, 0xc000);
        pc.write(AT, 0x14, 4, 0xfebf_0000);
        assert_eq!(pc.ports.read(0xc002, 1), 0xff, "not before decoding is enabled");
        pc.write(AT, 0x04, 2, 3);
        assert_eq!(pc.ports.read(0xc002, 1), 0xa2);
        assert!(matches!(pc.memory.lookup(0xfebf_0010), Target::Mmio(_, 0x10)));
        pc.write(AT, 0x11, 1, 0xd0);
        assert_eq!((pc.ports.read(0xc002, 1), pc.ports.read(0xd002, 1)), (0xff, 0xa2));
        card.config.lock().reset();
        pc.bus.follow();
        assert_eq!(pc.ports.read(0xd002, 1), 0xff);
        assert!(matches!(pc.memory.lookup(0xfebf_0010), Target::None));
        assert_eq!(
            *card.moves.lock(),
            [(0, Some(0xc000)), (1, Some(0xfebf_0000)), (0, Some(0xd000)), (0, None), (1, None)]
        );
    }

    #[test]
    fn a_function_that_is_taken_out_leaves_nothing_behind() {
        let (pc, _) = setup();
        pc.write(AT, 0x10, 4, 0xc000);
        pc.write(AT, 0x04, 2, 1);
        pc.bus.detach(AT);
        assert_eq!((pc.ports.read(0xc000, 1), pc.read(AT, 0, 4)), (0xff, u32::MAX));
        assert_eq!(pc.bus.free_device(0), Some(0));
    }

    #[test]
    fn no_access_of_any_width_panics() {
        let (pc, _) = setup();
        let ports = ConfigPorts::new(pc.bus.clone(), Arc::new(Registers));
        hammer(&*ports, 8);
        ports.write(0, 4, 0x8000_1800);
        for reg in 0..64 {
            ports.write(0, 4, 0x8000_1800 | reg << 2);
            hammer(&PortWindow(ports.clone()), 8);
        }
    }

    /// Keeps the hammer off the address register.
    struct PortWindow(Arc<ConfigPorts>);
    impl PortIo for PortWindow {
        fn read(&self, offset: u16, size: u8) -> u32 {
            self.0.read(offset | 4, size)
        }
        fn write(&self, offset: u16, size: u8, value: u32) {
            self.0.write(offset | 4, size, value);
        }
    }
}
