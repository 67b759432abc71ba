//! The SMBus host controller, 8086:2930 at 00:1F.3 (18.1, 18.2), with nothing on its bus: every transaction ends at
//! once with DEV_ERR, and an interrupt if that is wanted.
use crate::bus::{PortIo, read_bytes, write_bytes};
use crate::device::{Device, Invalid, Reset};
use crate::pci::config::{command, reg};
use crate::pci::{BarKind, BarTarget, ConfigSpace, DevFn, Function, FunctionV1, PciBus, PciDevice};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};

/// Where the function is.
const DEVFN: DevFn = DevFn::new(0x1f, 3);
/// Where firmware puts its ports.
pub const BASE: u16 = 0x700;
/// The BAR of the ports (SMB_BASE), and how many there are.
const BAR: usize = 4;
const LEN: usize = 32;
/// Host configuration, in configuration space.
const HOSTC: u8 = 0x40;

/// Host status (18.2.1).
mod status {
    pub const DEV_ERR: u8 = 1 << 2;
    pub const INUSE: u8 = 1 << 6;
    /// Written as 1, they are cleared.
    pub const CLEARABLE: u8 = 0xfe;
    /// They interrupt.
    pub const CAUSES: u8 = 0xbe & !INUSE;
}
/// Host control (18.2.2).
mod control {
    pub const INTREN: u8 = 1 << 0;
    pub const START: u8 = 1 << 6;
}

/// The function.
pub struct Ich9Smbus {
    function: Function,
    registers: Mutex<[u8; LEN]>,
    me: Weak<Self>,
}

impl Ich9Smbus {
    /// The function at its place on `pci`.
    pub fn new(pci: &PciBus) -> Arc<Self> {
        let mut c = ConfigSpace::new(0x8086, 0x2930, 0x0c_0500, 0x02);
        c.allow16(reg::COMMAND, command::IO | command::INTERRUPT_DISABLE);
        c.set16(reg::STATUS, 0x0280);
        c.set8(reg::INTERRUPT_PIN, 1);
        c.set16(reg::SUBSYSTEM_VENDOR_ID, 0x1af4);
        c.set16(reg::SUBSYSTEM_ID, 0x1100);
        c.add_bar(BAR, BarKind::Io, LEN as u64);
        c.allow8(HOSTC, 0x07);
        let function = pci.function(DEVFN, c);
        let smbus = Arc::new_cyclic(|me| Self { function, registers: Mutex::default(), me: me.clone() });
        pci.attach(DEVFN, smbus.clone());
        smbus
    }

    /// What firmware leaves: its ports at [`BASE`], and enabled.
    pub fn like_firmware(&self, pci: &PciBus) {
        pci.config_write(0, DEVFN, 0x20, 4, BASE.into());
        pci.config_write(0, DEVFN, HOSTC.into(), 1, 1);
        pci.config_write(0, DEVFN, reg::COMMAND.into(), 2, 1);
    }

    fn settle(&self, r: &[u8; LEN]) {
        self.function.set_interrupt(r[2] & control::INTREN != 0 && r[0] & status::CAUSES != 0);
    }
}

impl PciDevice for Ich9Smbus {
    fn config(&self) -> &Mutex<ConfigSpace> {
        self.function.config()
    }

    fn function(&self) -> Option<&Function> {
        Some(&self.function)
    }

    fn bar(&self, _: usize) -> BarTarget {
        self.me.upgrade().map_or(BarTarget::Own, |me| BarTarget::Io(me))
    }
}

impl PortIo for Ich9Smbus {
    fn name(&self) -> &'static str {
        "smbus"
    }

    fn read(&self, offset: u16, size: u8) -> u32 {
        let mut r = self.registers.lock();
        read_bytes(size, |i| {
            let at = usize::from(offset + i);
            let value = r.get(at).copied().unwrap_or(0xff);
            if at == 0 {
                // Who reads INUSE_STS as 0 has it.
                r[0] |= status::INUSE;
            }
            value
        })
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        let mut r = self.registers.lock();
        write_bytes(size, value, |i, b| match usize::from(offset + i) {
            0 => r[0] &= !(b & status::CLEARABLE),
            2 => {
                r[2] = b & !control::START;
                if b & control::START != 0 {
                    r[0] |= status::DEV_ERR;
                }
            }
            at => {
                if let Some(register) = r.get_mut(at) {
                    *register = b;
                }
            }
        });
        self.settle(&r);
    }
}

/// What is saved of it.
#[derive(Serialize, Deserialize)]
pub struct Ich9SmbusV1 {
    function: FunctionV1,
    registers: [u8; LEN],
}

impl Device for Ich9Smbus {
    type State = Ich9SmbusV1;
    const KIND: &'static str = "ICH9-SMB";

    fn reset(&self, _: Reset) {
        *self.registers.lock() = [0; LEN];
        self.function.reset();
    }

    fn save(&self) -> Ich9SmbusV1 {
        Ich9SmbusV1 { function: self.function.save(), registers: *self.registers.lock() }
    }

    fn restore(&self, saved: Ich9SmbusV1) -> Result<(), Invalid> {
        *self.registers.lock() = saved.registers;
        self.function.restore(saved.function)
    }
}
