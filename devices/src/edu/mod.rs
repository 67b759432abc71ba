//! edu: QEMU's teaching device, a PCI function with registers, an interrupt by pin or MSI, and DMA.
//!
//! ```text
//!   00h  RO identification 010000EDh     60h  WO raise bits of the interrupt status
//!   04h  RW liveness: reads as the inverse    64h  WO acknowledge bits of it
//!   08h  RW factorial of what is written      80h  RW DMA source      90h  RW DMA count
//!   20h  RW status                            88h  RW DMA destination 98h  RW DMA command
//!   24h  RO interrupt status                  40000h  4 KiB that DMA moves from and to
//! ```
//!
//! Registers below 80h are 32 bits wide, the others 32 or 64. Factorials and transfers take some guest time. A transfer
//! that leaves the buffer, or that the bus does not take, moves nothing and ends as others do.
//!
//! Source: QEMU's specification of the device (docs/specs/edu).
use crate::bus::Mmio;
use crate::clock::{Clock, Nanos, Timer, TimerOwner};
use crate::device::{Device, Invalid, Reset};
use crate::kind::{Bus, KINDS, Kind, PlugError, Property, Site, Type, Values};
use crate::pci::config::reg;
use crate::pci::{BarKind, BarTarget, ConfigSpace, Function, FunctionV1, PciDevice};
use linkme::distributed_slice;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};

#[cfg(test)]
mod tests;

const IDENTIFICATION: u32 = 0x0100_00ed;
const BAR_SIZE: u64 = 1 << 20;
/// Where in the device's own address space the buffer is.
const BUFFER: u64 = 0x4_0000;
const BUFFER_SIZE: usize = 4096;
/// How long the device takes for a factorial or a transfer.
const WORK: Nanos = 10_000;

/// Bits of the status register.
const COMPUTING: u32 = 1 << 0;
const INTERRUPT_AFTER: u32 = 1 << 7;
/// Bits of the DMA command.
const START: u64 = 1 << 0;
const TO_RAM: u64 = 1 << 1;
const DMA_INTERRUPT: u64 = 1 << 2;
/// Bits of the interrupt status.
const FACTORIAL_DONE: u32 = 1 << 0;
const DMA_DONE: u32 = 1 << 8;

/// The registers.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Registers {
    liveness: u32,
    factorial: u32,
    status: u32,
    interrupts: u32,
    source: u64,
    destination: u64,
    count: u64,
    command: u64,
    /// When the factorial is done.
    computed: Option<Nanos>,
    /// When the transfer is done.
    moved: Option<Nanos>,
}

struct State {
    regs: Registers,
    buffer: Vec<u8>,
}

/// The device.
pub struct Edu {
    function: Function,
    /// Before the function's locks.
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
    timer: Arc<dyn Timer>,
    /// The addresses that the device can put on the bus.
    mask: u64,
    me: Weak<Edu>,
}

#[distributed_slice(KINDS)]
static KIND: Kind = Kind {
    name: "edu",
    bus: Bus::Pci,
    about: "QEMU's teaching device: registers, an interrupt, DMA",
    properties: &[Property {
        name: "dma_mask",
        kind: Type::Number(0, u64::MAX),
        default: Some(0x0fff_ffff),
        help: "the addresses that its DMA reaches",
    }],
    plug,
};

fn plug(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let mask = values.number("dma_mask").unwrap_or(u64::MAX);
    site.plug_pci(values, config(), |function| Edu::new(function, site.clock.clone(), mask)).map(drop)
}

fn config() -> ConfigSpace {
    let mut c = ConfigSpace::new(0x1234, 0x11e8, 0x00_ff00, 0x10);
    c.set8(reg::INTERRUPT_PIN, 1);
    c.add_bar(0, BarKind::Memory32 { prefetchable: false }, BAR_SIZE);
    c.add_msi(1);
    c
}

impl Edu {
    /// A device on this function, which `config` is of.
    fn new(function: Function, clock: Arc<dyn Clock>, mask: u64) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            function,
            state: Mutex::new(State { regs: Registers::default(), buffer: vec![0; BUFFER_SIZE] }),
            timer: clock.timer(me.clone()),
            clock,
            mask,
            me: me.clone(),
        })
    }

    fn read_register(&self, offset: u64) -> u64 {
        let regs = &self.state.lock().regs;
        match offset {
            0x00 => IDENTIFICATION.into(),
            0x04 => (!regs.liveness).into(),
            0x08 => regs.factorial.into(),
            0x20 => regs.status.into(),
            0x24 => regs.interrupts.into(),
            0x80 => regs.source,
            0x88 => regs.destination,
            0x90 => regs.count,
            0x98 => regs.command,
            _ => u64::MAX,
        }
    }

    fn write_register(&self, offset: u64, value: u64) {
        let mut state = self.state.lock();
        let regs = &mut state.regs;
        let (idle, soon) = (regs.command & START == 0, Some(self.clock.now().saturating_add(WORK)));
        match offset {
            0x04 => regs.liveness = value as u32,
            0x08 if regs.status & COMPUTING == 0 => {
                regs.factorial = value as u32;
                regs.status |= COMPUTING;
                regs.computed = soon;
            }
            0x20 => regs.status = regs.status & !INTERRUPT_AFTER | value as u32 & INTERRUPT_AFTER,
            0x60 => self.raise(regs, value as u32),
            0x64 => {
                regs.interrupts &= !(value as u32);
                self.function.set_interrupt(regs.interrupts != 0);
            }
            0x80 if idle => regs.source = value,
            0x88 if idle => regs.destination = value,
            0x90 if idle => regs.count = value,
            0x98 if idle && value & START != 0 => {
                regs.command = value;
                regs.moved = soon;
            }
            _ => {}
        }
        self.set_timer(&state.regs);
    }

    fn set_timer(&self, regs: &Registers) {
        self.timer.set(regs.computed.into_iter().chain(regs.moved).min());
    }

    fn raise(&self, regs: &mut Registers, bits: u32) {
        regs.interrupts |= bits;
        if regs.interrupts != 0 {
            self.function.set_interrupt(true);
            self.function.notify(0);
        }
    }

    /// Moves what the command says. Nothing moves if a part of it is not in the buffer or not in memory.
    fn transfer(&self, state: &mut State) {
        let State { regs, buffer } = state;
        let to_ram = regs.command & TO_RAM != 0;
        let (inside, outside) =
            if to_ram { (regs.source, regs.destination) } else { (regs.destination, regs.source) };
        let part = inside.checked_sub(BUFFER).and_then(|first| {
            let end = first.checked_add(regs.count)?;
            buffer.get_mut(usize::try_from(first).ok()?..usize::try_from(end).ok()?)
        });
        let (Some(part), dma, at) = (part, self.function.dma(), outside & self.mask) else {
            tracing::debug!("edu: a transfer of {:#x} bytes at {inside:#x} leaves the buffer", regs.count);
            return;
        };
        let moved = if to_ram { dma.write(at, part) } else { dma.read(at, part) };
        if let Err(why) = moved {
            tracing::debug!("edu: a transfer of {:#x} bytes at {at:#x}: {why}", regs.count);
        }
    }
}

/// n! in 32 bits.
fn factorial(n: u32) -> u32 {
    // From 34 on 2 is in it 32 times or more.
    if n >= 34 { 0 } else { (1..=n).fold(1, u32::wrapping_mul) }
}

impl TimerOwner for Edu {
    fn expired(&self) {
        let mut state = self.state.lock();
        let now = self.clock.now();
        let due = |deadline: Option<Nanos>| deadline.is_some_and(|at| at <= now);
        if due(state.regs.computed) {
            let regs = &mut state.regs;
            regs.computed = None;
            regs.factorial = factorial(regs.factorial);
            regs.status &= !COMPUTING;
            if regs.status & INTERRUPT_AFTER != 0 {
                self.raise(regs, FACTORIAL_DONE);
            }
        }
        if due(state.regs.moved) {
            self.transfer(&mut state);
            let regs = &mut state.regs;
            regs.moved = None;
            regs.command &= !START;
            if regs.command & DMA_INTERRUPT != 0 {
                self.raise(regs, DMA_DONE);
            }
        }
        self.set_timer(&state.regs);
    }
}

impl Mmio for Edu {
    fn read(&self, offset: u64, size: u8) -> u64 {
        match (offset, size) {
            (..0x80, 4) | (0x80.., 4 | 8) => self.read_register(offset),
            _ => u64::MAX,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        if matches!((offset, size), (..0x80, 4) | (0x80.., 4 | 8)) {
            self.write_register(offset, value);
        }
    }
}

impl PciDevice for Edu {
    fn config(&self) -> &Mutex<ConfigSpace> {
        self.function.config()
    }

    fn function(&self) -> Option<&Function> {
        Some(&self.function)
    }

    fn bar(&self, _: usize) -> BarTarget {
        self.me.upgrade().map_or(BarTarget::Own, |me| BarTarget::Memory(me))
    }
}

/// What is saved of the device.
#[derive(Serialize, Deserialize)]
pub struct EduV1 {
    function: FunctionV1,
    regs: Registers,
    #[serde(with = "serde_bytes")]
    buffer: Vec<u8>,
}

impl Device for Edu {
    type State = EduV1;
    const KIND: &'static str = "edu";

    fn reset(&self, _: Reset) {
        // A transfer under way ends first; it may have the lock of the registers.
        self.function.reset();
        let mut state = self.state.lock();
        state.regs = Registers::default();
        state.buffer.fill(0);
        self.set_timer(&state.regs);
        self.function.set_interrupt(false);
    }

    fn save(&self) -> EduV1 {
        let State { regs, buffer } = &*self.state.lock();
        EduV1 { function: self.function.save(), regs: regs.clone(), buffer: buffer.clone() }
    }

    fn restore(&self, saved: EduV1) -> Result<(), Invalid> {
        let regs = &saved.regs;
        if saved.buffer.len() != BUFFER_SIZE {
            return Err(Invalid("the buffer"));
        }
        if regs.computed.is_some() != (regs.status & COMPUTING != 0)
            || regs.moved.is_some() != (regs.command & START != 0)
        {
            return Err(Invalid("what the device is doing"));
        }
        let mut state = self.state.lock();
        self.function.restore(saved.function)?;
        *state = State { regs: saved.regs, buffer: saved.buffer };
        self.set_timer(&state.regs);
        Ok(())
    }
}
