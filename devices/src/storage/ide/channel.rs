//! A cable: its ports, its bus master, its interrupt, and up to two devices.
//!
//! What is written to the command block reaches both devices; the selected one answers. Of one that is not there
//! status and error read as 0, and the others as they were written, or as its signature after a reset. A cable with no
//! device at all reads as 0.
use super::Cable;
use super::bus_master::{BusMaster, INTERRUPT};
use crate::bus::{Irq, PortIo, open_bus, read_bytes, write_bytes};
use crate::device::Invalid;
use crate::dma::Dma;
use crate::storage::ata::{Device, DeviceV1, Register, ResetKind, command, device_bits, status};
use mynah_block::Reply;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};

/// Bits of the device control register (ATA/ATAPI-6, 7.8).
const NIEN: u8 = 1 << 1;
const SRST: u8 = 1 << 2;
const HOB: u8 = 1 << 7;

/// Devices that a cable has.
pub const UNITS: usize = 2;

struct Unit {
    device: Device,
    /// Ends of requests of an older one are of no interest: the device has been reset or restored.
    generation: u64,
}

/// What is saved of a cable beside its devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CableV1 {
    selected: u8,
    control: u8,
    /// What count, low, mid and high read as for a device that is not there.
    nobody: [u8; 4],
    pub(super) master: BusMaster,
}

/// What a device that is not there has for a signature.
const NOBODY: [u8; 4] = [1, 1, 0xff, 0xff];

impl Default for CableV1 {
    fn default() -> Self {
        Self { selected: 0, control: 0, nobody: NOBODY, master: BusMaster::default() }
    }
}

#[derive(Default)]
struct Wired {
    units: [Option<Unit>; UNITS],
    state: CableV1,
}

/// A channel.
pub struct Channel {
    number: u8,
    cable: Mutex<Wired>,
    pin: Irq,
    dma: Dma,
    me: Weak<Channel>,
}

impl Wired {
    fn device(&mut self) -> Option<&mut Device> {
        self.units[usize::from(self.state.selected & 1)].as_mut().map(|u| &mut u.device)
    }

    fn devices(&mut self) -> impl Iterator<Item = &mut Device> {
        self.units.iter_mut().flatten().map(|u| &mut u.device)
    }

    fn level(&self) -> bool {
        let selected = self.units[usize::from(self.state.selected & 1)].as_ref();
        self.state.control & NIEN == 0 && selected.is_some_and(|u| u.device.regs.interrupt)
    }

    fn status(&mut self) -> u8 {
        let in_reset = self.state.control & SRST != 0;
        self.device().map_or(0, |d| if in_reset { status::BSY } else { d.regs.status })
    }

    fn read(&mut self, register: Register) -> u8 {
        let (selected, high_order) = (self.state.selected, self.state.control & HOB != 0);
        if let Some(device) = self.device() {
            return device.read(register, high_order);
        }
        match register {
            _ if self.units.iter().all(Option::is_none) => 0,
            Register::Features => 0,
            Register::Device => device_bits::OBSOLETE | selected << 4,
            Register::Count | Register::Low | Register::Mid | Register::High => {
                self.state.nobody[register as usize - Register::Count as usize]
            }
        }
    }

    fn command(&mut self, code: u8) {
        if self.state.control & SRST != 0 {
            return;
        }
        self.state.master.command_begins();
        if code == command::EXECUTE_DEVICE_DIAGNOSTIC {
            self.devices().for_each(|d| d.command(code));
            (self.state.selected, self.state.nobody) = (0, NOBODY);
        } else if let Some(device) = self.device() {
            device.command(code);
        }
    }

    fn control(&mut self, value: u8) {
        let began = value & !self.state.control & SRST != 0;
        self.state.control = value;
        if began {
            self.devices().for_each(|d| d.reset(ResetKind::Soft));
            (self.state.selected, self.state.nobody) = (0, NOBODY);
        }
    }
}

impl Channel {
    /// Channel `number` with nothing on its cable.
    pub(super) fn new(number: u8, pin: Irq, dma: Dma) -> Arc<Self> {
        Arc::new_cyclic(|me| Self { number, cable: Mutex::default(), pin, dma, me: me.clone() })
    }

    /// Has follow what an access, or the end of a request, has changed.
    fn settle(&self, mut cable: MutexGuard<'_, Wired>) {
        let Wired { units, state } = &mut *cable;
        // The selected device goes first, if both want data.
        let first = usize::from(state.selected & 1);
        for n in [first, 1 - first] {
            let Some(unit) = &mut units[n] else { continue };
            state.master.run(&self.dma, &mut unit.device);
            if let Some(request) = unit.device.take_request() {
                let (me, generation) = (self.me.clone(), unit.generation);
                let drive = unit.device.drive().clone();
                drive.submit(request, move |reply| {
                    if let Some(channel) = me.upgrade() {
                        channel.answered(n, generation, reply);
                    }
                });
            }
        }
        let level = cable.level();
        if level && !self.pin.level() {
            cable.state.master.status |= INTERRUPT;
        }
        self.pin.set(level);
    }

    /// A request of a device has ended.
    fn answered(&self, n: usize, generation: u64, reply: Reply) {
        let mut cable = self.cable.lock();
        if let Some(unit) = cable.units[n].as_mut().filter(|u| u.generation == generation) {
            unit.device.answered(reply);
            self.settle(cable);
        }
    }

    pub(super) fn reset(&self) {
        let mut cable = self.cable.lock();
        cable.state = CableV1::default();
        self.settle(cable);
    }

    pub(super) fn save(&self) -> CableV1 {
        self.cable.lock().state.clone()
    }

    pub(super) fn restore(&self, saved: CableV1) -> Result<(), Invalid> {
        if saved.selected > 1 {
            return Err(Invalid("the selected device"));
        }
        let mut cable = self.cable.lock();
        cable.state = saved;
        self.pin.restore(cable.level());
        Ok(())
    }

    pub(super) fn master_read(&self, offset: u16) -> u8 {
        self.cable.lock().state.master.read(offset)
    }

    pub(super) fn master_write(&self, offset: u16, value: u8) {
        let mut cable = self.cable.lock();
        cable.state.master.write(offset, value);
        self.settle(cable);
    }

    fn data_read(&self, size: u8) -> u32 {
        let mut cable = self.cable.lock();
        let Some(device) = cable.device() else { return 0 };
        let mut value = device.read_data().into();
        if size == 4 {
            value |= u32::from(device.read_data()) << 16;
        }
        self.settle(cable);
        value
    }

    fn data_write(&self, size: u8, value: u32) {
        let mut cable = self.cable.lock();
        let Some(device) = cable.device() else { return };
        device.write_data(value as u16);
        if size == 4 {
            device.write_data((value >> 16) as u16);
        }
        self.settle(cable);
    }

    fn register_read(&self, offset: u16) -> u8 {
        let mut cable = self.cable.lock();
        if let Some(register) = Register::at(offset) {
            return cable.read(register);
        }
        if offset != 7 {
            // The data port is 16 or 32 bits wide.
            return 0xff;
        }
        let status = cable.status();
        if let Some(device) = cable.device() {
            device.regs.interrupt = false;
        }
        self.settle(cable);
        status
    }

    fn register_write(&self, offset: u16, value: u8) {
        let mut cable = self.cable.lock();
        cable.state.control &= !HOB;
        match Register::at(offset) {
            Some(register) => {
                match register {
                    Register::Device => cable.state.selected = value >> 4 & 1,
                    Register::Features => {}
                    kept => cable.state.nobody[kept as usize - Register::Count as usize] = value,
                }
                cable.devices().for_each(|d| d.write(register, value));
            }
            None if offset == 7 => cable.command(value),
            None => {}
        }
        self.settle(cable);
    }
}

impl Cable for Channel {
    fn name(&self) -> String {
        format!("ide.{}", self.number)
    }

    fn number(&self) -> u8 {
        self.number
    }

    fn units(&self) -> usize {
        UNITS
    }

    fn is_free(&self, unit: usize) -> bool {
        self.cable.lock().units.get(unit).is_some_and(Option::is_none)
    }

    fn plug(&self, unit: usize, device: Device) -> bool {
        let mut cable = self.cable.lock();
        let Some(place @ None) = cable.units.get_mut(unit) else { return false };
        *place = Some(Unit { device, generation: 0 });
        true
    }

    fn with(&self, n: usize, what: &mut dyn FnMut(&mut Device)) {
        let mut cable = self.cable.lock();
        if let Some(unit) = cable.units.get_mut(n).and_then(Option::as_mut) {
            what(&mut unit.device);
        }
        self.settle(cable);
    }

    fn forget_requests(&self, n: usize) {
        if let Some(unit) = &mut self.cable.lock().units[n] {
            unit.generation += 1;
        }
    }

    fn save_device(&self, n: usize) -> DeviceV1 {
        self.cable.lock().units[n].as_ref().expect("a device was plugged in here").device.save()
    }

    fn restore_device(&self, n: usize, saved: DeviceV1) -> Result<(), Invalid> {
        let mut cable = self.cable.lock();
        if let Some(unit) = &mut cable.units[n] {
            unit.generation += 1;
            unit.device.restore(saved)?;
        }
        self.pin.restore(cable.level());
        Ok(())
    }
}

/// The command block, 8 ports.
impl PortIo for Channel {
    fn name(&self) -> &'static str {
        "ide"
    }

    fn read(&self, offset: u16, size: u8) -> u32 {
        match (offset, size) {
            (0, 2 | 4) => self.data_read(size),
            (_, 1) => self.register_read(offset).into(),
            _ => read_bytes(size, |i| self.register_read(offset + i)),
        }
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        match (offset, size) {
            (0, 2 | 4) => self.data_write(size, value),
            _ => write_bytes(size, value, |i, b| self.register_write(offset + i, b)),
        }
    }
}

/// The control block: the one port of it that there is.
pub(super) struct Control(pub Arc<Channel>);

impl PortIo for Control {
    fn name(&self) -> &'static str {
        "ide"
    }

    /// Alternate status: no interrupt is acknowledged.
    fn read(&self, _: u16, size: u8) -> u32 {
        open_bus(size) & !0xff | u32::from(self.0.cable.lock().status())
    }

    fn write(&self, _: u16, _: u8, value: u32) {
        let mut cable = self.0.cable.lock();
        cable.control(value as u8);
        self.0.settle(cable);
    }
}
