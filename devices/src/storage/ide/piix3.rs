//! The PIIX3's IDE function, 8086:7010 at 00:01.1: two channels in compatibility mode.
//!
//! Timings are storage. Ports are decoded whatever IDETIM's enable bits say, as on QEMU's board; firmware sets them,
//! and operating systems look. On purpose absent: native mode, which this chip has not.
//!
//! Source: Intel 82371FB/82371SB (PIIX/PIIX3) data sheet (290550-002), 2.3 (configuration) and 2.7 (bus master).
use super::channel::{CableV1, Channel, Control};
use crate::bus::{Irq, PortBus, PortIo, read_bytes, write_bytes};
use crate::device::{Device, Invalid, Reset};
use crate::pci::config::{command, reg};
use crate::pci::{BarKind, BarTarget, ConfigSpace, DevFn, Function, FunctionV1, PciBus, PciDevice};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};

/// Where the function is.
pub const DEVFN: DevFn = DevFn::new(1, 1);

/// First ports of the command and control blocks.
const PORTS: [(u16, u16); 2] = [(0x1f0, 0x3f6), (0x170, 0x376)];
/// The BAR of the bus masters.
const BUS_MASTERS: usize = 4;
/// IDE timing of the primary channel; the secondary's follows.
const IDETIM: u8 = 0x40;
/// IDE decode enable.
const DECODE: u32 = 1 << 15;

/// The function.
pub struct Piix3Ide {
    function: Function,
    channels: [Arc<Channel>; 2],
    me: Weak<Piix3Ide>,
}

impl Piix3Ide {
    /// The function at its place on `pci`, its channels on `ports` and these pins (ISA interrupts 14 and 15).
    pub fn new(pci: &PciBus, ports: &PortBus, pins: [Irq; 2]) -> Arc<Self> {
        let mut c = ConfigSpace::new(0x8086, 0x7010, 0x01_0180, 0);
        c.allow16(reg::COMMAND, command::IO | command::MASTER);
        c.set16(reg::STATUS, 0x0280);
        c.allow8(reg::CACHE_LINE_SIZE, 0);
        c.allow8(reg::LATENCY_TIMER, 0xf0);
        c.allow8(reg::INTERRUPT_LINE, 0);
        c.set16(reg::SUBSYSTEM_VENDOR_ID, 0x1af4);
        c.set16(reg::SUBSYSTEM_ID, 0x1100);
        c.add_bar(BUS_MASTERS, BarKind::Io, 16);
        // Timings of both channels, of their second devices, and what later chips of the line have there.
        for at in (IDETIM..0x4c).step_by(4) {
            c.allow32(at, u32::MAX);
        }
        let function = pci.function(DEVFN, c);
        let mut number = 0;
        let channels = pins.map(|pin| {
            let channel = Channel::new(number, pin, function.dma().clone());
            let (command, control) = PORTS[usize::from(number)];
            ports.map(command, 8, channel.clone());
            ports.map(control, 1, Arc::new(Control(channel.clone())));
            number += 1;
            channel
        });
        let ide = Arc::new_cyclic(|me| Self { function, channels, me: me.clone() });
        pci.attach(DEVFN, ide.clone());
        ide
    }

    /// The channels, "ide.0" and "ide.1".
    pub fn channels(&self) -> &[Arc<Channel>; 2] {
        &self.channels
    }

    /// What firmware leaves: both channels are decoded.
    pub fn like_firmware(&self) {
        self.config_write(IDETIM, 4, DECODE << 16 | DECODE);
    }
}

impl PciDevice for Piix3Ide {
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

/// The registers of the bus masters.
impl PortIo for Piix3Ide {
    fn name(&self) -> &'static str {
        "ide-bus-master"
    }

    fn read(&self, offset: u16, size: u8) -> u32 {
        read_bytes(size, |i| {
            let at = offset + i;
            self.channels.get(usize::from(at / 8)).map_or(0xff, |c| c.master_read(at % 8))
        })
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        write_bytes(size, value, |i, byte| {
            let at = offset + i;
            if let Some(channel) = self.channels.get(usize::from(at / 8)) {
                channel.master_write(at % 8, byte);
            }
        });
    }
}

/// What is saved of the function; its drives are saved by themselves.
#[derive(Serialize, Deserialize)]
pub struct Piix3IdeV1 {
    function: FunctionV1,
    channels: [CableV1; 2],
}

impl Device for Piix3Ide {
    type State = Piix3IdeV1;
    const KIND: &'static str = "piix3-ide";

    fn reset(&self, _: Reset) {
        self.function.reset();
        self.channels.iter().for_each(|c| c.reset());
    }

    fn save(&self) -> Piix3IdeV1 {
        let [a, b] = &self.channels;
        Piix3IdeV1 { function: self.function.save(), channels: [a.save(), b.save()] }
    }

    fn restore(&self, saved: Piix3IdeV1) -> Result<(), Invalid> {
        self.function.restore(saved.function)?;
        self.channels.iter().zip(saved.channels).try_for_each(|(channel, state)| channel.restore(state))
    }
}
