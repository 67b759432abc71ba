//! Registers (3.1): BAR 0 up to the doorbells.
//!
//! ```text
//!   00h CAP (64)   08h VS   0ch INTMS   10h INTMC   14h CC   1ch CSTS   20h NSSR   24h AQA   28h ASQ (64)   30h ACQ (64)
//!   1000h + 8n     tail of submission queue n (32), head of completion queue n (32)
//! ```
//!
//! They are read and written by 32 bits, or 64; what else is written is ignored.
use super::{Nvme, Options, layout};
use crate::bus::Mmio;
use crate::device::Invalid;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Where the doorbells begin.
pub const DOORBELLS: u64 = 0x1000;
/// The most entries of an I/O queue.
pub const MOST_ENTRIES: u32 = 2048;
/// The version: 1.4.
pub const VERSION: u32 = 0x0001_0400;
/// What is written to NSSR to reset the subsystem: "NVMe".
const RESET: u32 = 0x4e56_4d65;

/// Bits of CC.
pub mod cc {
    pub const ENABLE: u32 = 1 << 0;
    pub const SHUTDOWN: u32 = 3 << 14;
    /// All that have a meaning.
    pub const ALL: u32 = 0x00ff_fff1;
}

/// Bits of CSTS.
pub mod csts {
    pub const READY: u32 = 1 << 0;
    pub const FATAL: u32 = 1 << 1;
    pub const SHUTDOWN: u32 = 3 << 2;
    pub const SHUTTING_DOWN: u32 = 1 << 2;
    pub const SHUT_DOWN: u32 = 2 << 2;
    pub const SUBSYSTEM_RESET: u32 = 1 << 4;
}

/// What the host has written to the doorbells of a queue pair since they were looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rung {
    pub tail: Option<u32>,
    pub head: Option<u32>,
}

/// The registers, but for what queues have.
pub struct Registers {
    pub cc: u32,
    pub csts: u32,
    pub aqa: u32,
    pub asq: u64,
    pub acq: u64,
    /// Vectors that do not raise the pin.
    pub masked: u32,
    /// Vectors with something that the host has not seen.
    pub pending: u32,
    /// By queue.
    rung: Vec<Rung>,
    /// Those of which something was written.
    ringing: Vec<u16>,
}

/// What is saved of them.
#[derive(Serialize, Deserialize)]
pub struct RegistersV1 {
    cc: u32,
    csts: u32,
    aqa: u32,
    asq: u64,
    acq: u64,
    masked: u32,
    pending: u32,
    rung: Vec<Rung>,
}

impl Registers {
    pub fn new(options: &Options) -> Self {
        let rung = vec![Rung::default(); usize::from(options.pairs) + 1];
        Self { cc: 0, csts: 0, aqa: 0, asq: 0, acq: 0, masked: 0, pending: 0, rung, ringing: Vec::new() }
    }

    /// Something is written to the doorbells of queue `n`, if there are any.
    pub fn ring(&mut self, n: u64, write: impl FnOnce(&mut Rung)) {
        let Some(rung) = self.rung.get_mut(n as usize) else { return };
        if *rung == Rung::default() {
            self.ringing.push(n as u16);
        }
        write(rung);
    }

    /// Nothing was written to a doorbell of queue `n`, which comes to be.
    pub fn still(&mut self, n: u16, doorbell: impl FnOnce(&mut Rung)) {
        self.rung.get_mut(usize::from(n)).map(doorbell);
    }

    /// What was written to doorbells, and to those of which queues; they are still from now on.
    pub fn take_rung(&mut self) -> Vec<(u16, Rung)> {
        let Self { rung, ringing, .. } = self;
        ringing.drain(..).map(|n| (n, std::mem::take(&mut rung[usize::from(n)]))).collect()
    }

    /// Bytes of a page.
    pub fn page(&self) -> u64 {
        1 << (12 + (self.cc >> 7 & 0xf).min(MPSMAX))
    }

    /// Whether the host has set up what an enabled controller needs (3.1.5, 7.6.1).
    pub fn can_start(&self) -> bool {
        let (command_set, page_size, arbitration) = (self.cc >> 4 & 7, self.cc >> 7 & 0xf, self.cc >> 11 & 7);
        page_size <= MPSMAX
            && command_set == 0
            && arbitration == 0
            && self.aqa & 0xfff > 0
            && self.aqa >> 16 & 0xfff > 0
            && self.asq.is_multiple_of(self.page())
            && self.acq.is_multiple_of(self.page())
    }

    pub fn save(&self) -> RegistersV1 {
        let Self { cc, csts, aqa, asq, acq, masked, pending, .. } = *self;
        RegistersV1 { cc, csts, aqa, asq, acq, masked, pending, rung: self.rung.clone() }
    }

    pub fn restore(&mut self, saved: RegistersV1, options: &Options) -> Result<(), Invalid> {
        let RegistersV1 { cc, csts, aqa, asq, acq, masked, pending, rung } = saved;
        if rung.len() != usize::from(options.pairs) + 1 || cc & !cc::ALL != 0 || csts & !0x1f != 0 {
            return Err(Invalid("the registers"));
        }
        let rings = |(n, rung): (usize, &Rung)| (*rung != Rung::default()).then_some(n as u16);
        let ringing = rung.iter().enumerate().filter_map(rings).collect();
        *self = Self { cc, csts, aqa, asq, acq, masked, pending, rung, ringing };
        Ok(())
    }
}

/// CAP.MPSMAX: pages of up to 64 KiB.
const MPSMAX: u32 = 4;

/// CAP: queues of 2,048 entries, contiguous; ready within 7.5 s; subsystem reset; the NVM command set.
fn capabilities() -> u64 {
    u64::from(MOST_ENTRIES - 1) | 1 << 16 | 0xf << 24 | 1 << 36 | 1 << 37 | u64::from(MPSMAX) << 52
}

/// BAR 0.
pub struct Bar(pub Arc<Nvme>);

impl Bar {
    /// The aligned 32 bits at `at`.
    fn register(&self, at: u64) -> u32 {
        let regs = self.0.regs.lock();
        let half = |value: u64| (value >> (8 * (at & 4))) as u32;
        match at {
            0x00 | 0x04 => half(capabilities()),
            0x08 => VERSION,
            0x0c | 0x10 => regs.masked,
            0x14 => regs.cc,
            0x1c => regs.csts,
            0x24 => regs.aqa,
            0x28 | 0x2c => half(regs.asq),
            0x30 | 0x34 => half(regs.acq),
            _ => 0,
        }
    }

    fn set_register(&self, at: u64, value: u32) {
        let nvme = &self.0;
        let put = |old: u64, mask: u32| {
            let shift = 8 * (at & 4);
            old & !(0xffff_ffff << shift) | u64::from(value & mask) << shift
        };
        match at {
            0x0c => nvme.mask(|masked| masked | value),
            0x10 => nvme.mask(|masked| masked & !value),
            0x14 => nvme.configure(value),
            0x1c => nvme.regs.lock().csts &= !(value & csts::SUBSYSTEM_RESET),
            0x20 if value == RESET => nvme.subsystem_reset(),
            0x24 => nvme.regs.lock().aqa = value & 0x0fff_0fff,
            0x28 | 0x2c | 0x30 | 0x34 => {
                let mut regs = nvme.regs.lock();
                let mask = if at & 4 == 0 { !0xfff } else { !0 };
                if at < 0x30 {
                    regs.asq = put(regs.asq, mask);
                } else {
                    regs.acq = put(regs.acq, mask);
                }
            }
            _ => {}
        }
    }
}

impl Mmio for Bar {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let (table, pending) = layout(&self.0.options);
        match offset {
            at if at >= pending => self.0.function.pending_read(at - pending, size),
            at if at >= table => self.0.function.table_read(at - table, size),
            at => {
                let low = u64::from(self.register(at & !3)) >> (8 * (at & 3));
                // What is not aligned ends with its word.
                let high = if size == 8 && at & 3 == 0 { u64::from(self.register(at + 4)) } else { 0 };
                let all = low | high << 32;
                if size < 8 { all & ((1 << (8 * size)) - 1) } else { all }
            }
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let (table, pending) = layout(&self.0.options);
        if offset >= pending {
            return;
        }
        if offset >= table {
            return self.0.function.table_write(offset - table, size, value);
        }
        if !matches!(size, 4 | 8) || !offset.is_multiple_of(4) {
            tracing::debug!("nvme: a write of {size} bytes at {offset:#x} is ignored");
            return;
        }
        if offset >= DOORBELLS {
            return self.0.ring((offset - DOORBELLS) / 4, value as u32);
        }
        self.set_register(offset, value as u32);
        if size == 8 {
            self.set_register(offset + 4, (value >> 32) as u32);
        }
    }
}
