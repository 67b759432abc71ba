//! What reads and writes of registers do.
use super::eeprom::Eeprom;
use super::irq::Interrupts;
use super::phy::Phy;
use super::regs::*;
use super::rx::Rx;
use super::tx::Tx;
use super::{Adapter, Model, VME};
use crate::clock::Nanos;
use mynah_net::Mac;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;

/// Registers that belong neither to a ring nor to interrupts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Control {
    ctrl: u32,
    ctrl_ext: u32,
    mdic: u32,
    eerd: u32,
    vet: u32,
    pba: u32,
    swsm: u32,
    timinca: u32,
    /// SYSTIM less what guest time makes of it.
    time_offset: u64,
    /// IOADDR.
    pub(super) io_address: u32,
    pub(super) eeprom: Eeprom,
    pub(super) phy: Phy,
    /// STATUS.LU, as software was told of it.
    link: bool,
    plain: Vec<u32>,
}

/// Bits of MDIC (13.4.7).
mod mdic {
    pub const WRITE: u32 = 1 << 26;
    pub const READ: u32 = 2 << 26;
    pub const READY: u32 = 1 << 28;
    pub const INTERRUPT: u32 = 1 << 29;
    pub const ERROR: u32 = 1 << 30;
}
/// Where the PHY is.
const PHY_ADDRESS: u32 = 1;
/// SWSM.SMBI: who reads it as clear has it.
const SMBI: u32 = 1;

impl Control {
    /// As after power-on.
    pub(super) fn new(model: Model, mac: Mac, cable: bool) -> Self {
        let eeprom = Eeprom::new(model, mac);
        let phy = Phy::new(model, cable);
        let mut control = Self {
            ctrl: 0,
            ctrl_ext: 0,
            mdic: 0,
            eerd: 0,
            vet: 0,
            pba: 0,
            swsm: 0,
            timinca: 0,
            time_offset: 0,
            io_address: 0,
            link: phy.link(),
            eeprom,
            phy,
            plain: Vec::new(),
        };
        control.reset(model);
        control
    }

    /// CTRL.RST: EEPROM and PHY go on.
    fn reset(&mut self, model: Model) {
        self.ctrl = ctrl::FD | ctrl::SLU | ctrl::SPEED_1000;
        (self.ctrl_ext, self.mdic, self.eerd, self.vet, self.swsm) = (0, mdic::READY, 0, 0x8100, 0);
        self.pba = match model {
            Model::I82540em => 0x0010_0030,
            Model::I82574l => 0x0014_0014,
        };
        (self.timinca, self.time_offset) = (0, 0);
        self.eeprom.reset();
        self.plain = plain_reset();
    }

    pub(super) fn is_valid(&self) -> bool {
        self.plain.len() == plain_reset().len() && self.eeprom.is_valid() && self.phy.is_valid()
    }

    /// CTRL.VME and VET, as both directions look at them.
    pub(super) fn vlan(&self) -> u32 {
        self.vet & 0xffff | if self.ctrl & ctrl::VME != 0 { VME } else { 0 }
    }

    /// SYSTIM by TIMINCA alone (316080, 10.2.11).
    fn ticks(&self, now: Nanos) -> u64 {
        let period = u64::from(self.timinca >> 24).max(1) * 40;
        (now / period).wrapping_mul((self.timinca & 0xff_ffff).into())
    }

    fn status(&self, model: Model) -> u32 {
        let (mut speed, mut full) = self.phy.speed();
        if self.ctrl & ctrl::FRCSPD != 0 {
            speed = (self.ctrl >> 8 & 3) as u16;
        }
        if self.ctrl & ctrl::FRCDPX != 0 {
            full = self.ctrl & ctrl::FD != 0;
        }
        let speed = u32::from(speed);
        let mut value = status::MTXCKOK | speed << 6 | speed << 8;
        if full {
            value |= status::FD;
        }
        if self.link {
            value |= status::LU;
        }
        if model == Model::I82574l && self.ctrl & ctrl::GIO_MASTER_DISABLE == 0 {
            value |= status::GIO_MASTER_ENABLE;
        }
        value
    }

    /// MDIC is written: it is done at once. Whether an interrupt is wanted.
    fn write_mdic(&mut self, model: Model, value: u32, now: Nanos) -> bool {
        let register = value >> 16 & 0x1f;
        self.mdic = value & !(mdic::READY | mdic::ERROR) | mdic::READY;
        match value & (3 << 26) {
            _ if value >> 21 & 0x1f != PHY_ADDRESS => self.mdic |= mdic::ERROR,
            mdic::WRITE => self.phy.write(model, register, value as u16, now),
            mdic::READ => self.mdic = self.mdic & !0xffff | u32::from(self.phy.read(register)),
            _ => self.mdic |= mdic::ERROR,
        }
        value & mdic::INTERRUPT != 0
    }

    fn read_eerd(&mut self, model: Model, value: u32) {
        let (done, at) = match model {
            Model::I82540em => (1 << 4, value >> 8 & 0xff),
            Model::I82574l => (1 << 1, value >> 2 & 0x3fff),
        };
        self.eerd = value & 0xfffc;
        if value & 1 != 0 {
            self.eerd = value & 0xfffc & !done | done | u32::from(self.eeprom.word(at)) << 16;
        }
    }
}

/// A counter, which is cleared.
fn take(counter: &mut u32) -> u32 {
    std::mem::take(counter)
}

/// Half of a long one, which is cleared with the high half (13.7).
fn half(counter: &mut u64, high: bool) -> u32 {
    if high { (std::mem::take(counter) >> 32) as u32 } else { *counter as u32 }
}

impl Adapter {
    /// A read of a register.
    pub(super) fn read_register(&self, at: u32) -> u32 {
        let at = alias(at);
        match at {
            ICR => self.read_icr(|| self.control.lock().ctrl_ext),
            ITR | IMS | EIAC | IAM | IVAR | EITR..EITR_END => self.read_irq(at),
            _ if self.queue_of(at, RDBAL).is_some() => self.read_rx(at),
            RCTL | PSRCTL | RXCSUM | RFCTL | MRQC | MTA..0x5480 | VFTA..0x5800 => self.read_rx(at),
            TCTL => self.tx.lock().control,
            TIDV => self.tx.lock().tidv,
            TADV => self.tx.lock().tadv,
            STATISTICS..STATISTICS_END => self.read_statistic(at),
            _ => match self.queue_of(at, TDBAL) {
                Some((queue, register)) => self.tx.lock().queues[queue].ring.read(register),
                None => self.read_control(at),
            },
        }
    }

    /// Queue and offset of a ring's register.
    fn queue_of(&self, at: u32, base: u32) -> Option<(usize, u32)> {
        let offset = at.checked_sub(base)?;
        let queue = (offset >> 8) as usize;
        let register = offset & 0xff;
        (queue < self.model.queues() && matches!(register, 0..=0x28) && register != 0x20)
            .then_some((queue, register))
    }

    fn read_irq(&self, at: u32) -> u32 {
        let irq = self.irq.lock();
        let express = self.model == Model::I82574l;
        match at {
            IMS => irq.ims,
            ITR => irq.itr,
            EIAC if express => irq.eiac,
            IAM if express => irq.iam,
            IVAR if express => irq.ivar,
            _ if express => irq.eitr.get((at.wrapping_sub(EITR) / 4) as usize).copied().unwrap_or(0),
            _ => 0,
        }
    }

    fn read_rx(&self, at: u32) -> u32 {
        let rx = self.rx.lock();
        let entry = |first: u32, of: &[u32]| of.get(((at - first) / 4) as usize).copied().unwrap_or(0);
        match at {
            RCTL => rx.control,
            RDTR => rx.rdtr,
            RADV => rx.radv,
            RXCSUM => rx.rxcsum,
            RFCTL => rx.rfctl,
            PSRCTL => rx.psrctl,
            MRQC => rx.mrqc,
            MTA..RAL => entry(MTA, &rx.multicast),
            RAL..0x5480 => entry(RAL, &rx.addresses),
            VFTA..0x5800 => entry(VFTA, &rx.vlans),
            _ => self.queue_of(at, RDBAL).map_or(0, |(queue, register)| rx.rings[queue].read(register)),
        }
    }

    fn read_control(&self, at: u32) -> u32 {
        let mut control = self.control.lock();
        let express = self.model == Model::I82574l;
        match at {
            CTRL | CTRL_DUP => control.ctrl,
            STATUS => control.status(self.model),
            EECD => control.eeprom.read_control(self.model),
            EERD => control.eerd,
            CTRL_EXT => control.ctrl_ext,
            MDIC => control.mdic,
            VET => control.vet,
            PBA => control.pba,
            // The PHY is set up, writes are done.
            EEMNGCTL if express => 1 << 31 | 1 << 18,
            EEWR if express => 1 << 1,
            TIMINCA if express => control.timinca,
            SYSTIML | SYSTIMH if express => {
                let time = control.ticks(self.clock.now()).wrapping_add(control.time_offset);
                (time >> (8 * (at - SYSTIML))) as u32
            }
            SWSM => {
                let before = control.swsm;
                if express {
                    control.swsm |= SMBI;
                }
                before
            }
            _ => plain(at).map_or(0, |(n, _)| control.plain[n]),
        }
    }

    fn read_statistic(&self, at: u32) -> u32 {
        // Those that are not here count what does not happen.
        match at {
            0x4010 | 0x405c..=0x407c | 0x4088 | 0x408c | 0x40a0 | 0x40ac | 0x40c0 | 0x40c4 | 0x40d0 => {
                let stats = &mut self.rx.lock().stats;
                match at {
                    0x4010 => take(&mut stats.missed),
                    0x405c..=0x4070 => take(&mut stats.by_size[((at - 0x405c) / 4) as usize % 6]),
                    0x4074 => take(&mut stats.frames),
                    0x4078 => take(&mut stats.broadcast),
                    0x407c => take(&mut stats.multicast),
                    0x4088 | 0x408c => half(&mut stats.octets, at == 0x408c),
                    0x40a0 => take(&mut stats.no_buffers),
                    0x40ac => take(&mut stats.oversize),
                    0x40d0 => take(&mut stats.total),
                    _ => half(&mut stats.total_octets, at == 0x40c4),
                }
            }
            0x4080 | 0x4090 | 0x4094 | 0x40c8 | 0x40cc | 0x40d4..=0x40f8 => {
                let stats = &mut self.tx.lock().stats;
                match at {
                    0x4080 => take(&mut stats.frames),
                    0x4090 | 0x4094 => half(&mut stats.octets, at == 0x4094),
                    0x40c8 | 0x40cc => half(&mut stats.total_octets, at == 0x40cc),
                    0x40d4 => take(&mut stats.total),
                    0x40d8..=0x40ec => take(&mut stats.by_size[((at - 0x40d8) / 4) as usize % 6]),
                    0x40f0 => take(&mut stats.multicast),
                    0x40f4 => take(&mut stats.broadcast),
                    _ => take(&mut stats.segmented),
                }
            }
            _ => 0,
        }
    }

    /// A write of a register.
    pub(super) fn write_register(&self, at: u32, value: u32) {
        let at = alias(at);
        match at {
            ICR => self.write_icr(value, || self.control.lock().ctrl_ext),
            ICS => self.raise(value),
            ITR | IMS | IMC | EIAC | IAM | IVAR | EITR..EITR_END => self.write_irq(at, value),
            RDTR | RADV => self.write_rx(at, value),
            _ if self.queue_of(at, RDBAL).is_some() => self.write_rx(at, value),
            RCTL | PSRCTL | RXCSUM | RFCTL | MRQC | MTA..0x5480 | VFTA..0x5800 => self.write_rx(at, value),
            TCTL | TIDV | TADV => self.write_tx(at, value),
            STATISTICS..STATISTICS_END => {}
            _ if self.queue_of(at, TDBAL).is_some() => self.write_tx(at, value),
            _ => self.write_control(at, value),
        }
    }

    fn write_irq(&self, at: u32, value: u32) {
        let causes = self.model.causes();
        let express = self.model == Model::I82574l;
        self.change_irq(|irq: &mut Interrupts| match at {
            IMS => irq.ims |= value & causes,
            IMC => irq.ims &= !value,
            ITR => irq.itr = value & 0xffff,
            EIAC if express => irq.eiac = value & cause::VECTORS,
            IAM if express => irq.iam = value & causes,
            IVAR if express => irq.ivar = value & 0x800f_ffff,
            EITR..EITR_END if express => irq.eitr[((at - EITR) / 4) as usize] = value & 0xffff,
            _ => {}
        });
    }

    fn write_rx(&self, at: u32, value: u32) {
        let mut guard = self.rx.lock();
        let rx = &mut *guard;
        match at {
            RCTL => {
                rx.control = value;
                self.set_loopback(super::LOOPBACK_MAC, rx.loops());
            }
            RDTR => {
                rx.rdtr = value & 0xffff;
                if value >> 31 != 0 {
                    self.change_irq(Interrupts::flush_received);
                }
            }
            RADV => rx.radv = value & 0xffff,
            RXCSUM => rx.rxcsum = value & 0x3fff,
            RFCTL => rx.rfctl = value,
            PSRCTL => rx.psrctl = value & 0x3f3f_3f7f,
            MRQC => rx.mrqc = value,
            MTA..RAL => rx.multicast[((at - MTA) / 4) as usize] = value,
            RAL..0x5480 => {
                let n = ((at - RAL) / 4) as usize;
                // AV, ASEL and two bytes of RAH.
                rx.addresses[n] = if n % 2 == 1 { value & 0x8003_ffff } else { value };
            }
            VFTA..0x5800 => rx.vlans[((at - VFTA) / 4) as usize] = value,
            _ => {
                if let Some((queue, register)) = self.queue_of(at, RDBAL) {
                    rx.rings[queue].write(register, value);
                }
            }
        }
        let woken = rx.starved && (at == RCTL || at & 0xff == ring::TAIL);
        drop(guard);
        if woken {
            self.wake();
        }
    }

    fn write_tx(&self, at: u32, value: u32) {
        let mut guard = self.tx.lock();
        let tx: &mut Tx = &mut guard;
        match at {
            TCTL => {
                tx.control = value;
                (0..self.model.queues()).for_each(|queue| self.transmit(tx, queue));
            }
            TIDV => {
                tx.tidv = value & 0xffff;
                if value >> 31 != 0 {
                    self.change_irq(Interrupts::flush_sent);
                }
            }
            TADV => tx.tadv = value & 0xffff,
            _ => {
                if let Some((queue, register)) = self.queue_of(at, TDBAL) {
                    tx.queues[queue].ring.write(register, value);
                    if register == ring::TAIL {
                        self.transmit(tx, queue);
                    }
                }
            }
        }
    }

    fn write_control(&self, at: u32, value: u32) {
        let mut guard = self.control.lock();
        let control = &mut *guard;
        let express = self.model == Model::I82574l;
        let now = self.clock.now();
        let mut causes = 0;
        match at {
            CTRL | CTRL_DUP => {
                control.ctrl = value & !ctrl::RST;
                if value & ctrl::PHY_RST != 0 {
                    control.phy.reset(self.model, now);
                }
                if value & ctrl::RST != 0 {
                    self.reset_mac(control);
                }
            }
            EECD => control.eeprom.write_control(self.model, value),
            EERD => control.read_eerd(self.model, value),
            CTRL_EXT => {
                control.ctrl_ext = value & !(ctrl_ext::EE_RST | ctrl_ext::PBA_CLR);
                if value & ctrl_ext::EE_RST != 0 {
                    self.rx.lock().set_address(control.eeprom.mac());
                }
            }
            MDIC => {
                if control.write_mdic(self.model, value, now) {
                    causes |= cause::MDAC;
                }
            }
            VET => control.vet = value & 0xffff,
            PBA => {
                let all: u32 = if express { 40 } else { 64 };
                let received = value & 0xffff;
                control.pba = received | (all - received.min(all)) << 16;
            }
            EEWR if express => {
                if value & 1 != 0 {
                    control.eeprom.write_word(value >> 2 & 0x3fff, (value >> 16) as u16);
                }
            }
            // Drivers of the whole family ask it of the 82540EM too, which has nobody to share its EEPROM with.
            SWSM => control.swsm = value & 0xf,
            TIMINCA | SYSTIML | SYSTIMH if express => {
                let before = control.ticks(now).wrapping_add(control.time_offset);
                let value_64 = u64::from(value);
                let time = match at {
                    SYSTIML => before >> 32 << 32 | value_64,
                    SYSTIMH => before & 0xffff_ffff | value_64 << 32,
                    _ => {
                        control.timinca = value;
                        before
                    }
                };
                control.time_offset = time.wrapping_sub(control.ticks(now));
            }
            _ => {
                if let Some((n, mask)) = plain(at) {
                    control.plain[n] = value & mask;
                    if let RETA..RSSRK_END = at {
                        self.rx.lock().rss.write(at, value);
                    }
                }
            }
        }
        let came_up = self.follow(control, causes);
        drop(guard);
        if came_up {
            self.wake();
        }
    }

    /// CTRL.RST.
    fn reset_mac(&self, control: &mut Control) {
        control.reset(self.model);
        let mut rx = Rx::new();
        rx.set_address(control.eeprom.mac());
        {
            let mut now = self.rx.lock();
            rx.starved = now.starved;
            *now = rx;
        }
        self.tx.lock().reset();
        self.set_loopback(super::LOOPBACK_MAC, false);
        self.reset_irq();
    }

    /// Has all follow what PHY and registers say now; whether the link has come up.
    pub(super) fn follow(&self, control: &mut Control, mut causes: u32) -> bool {
        control.phy.catch_up(self.clock.now());
        self.vlan.store(control.vlan(), Ordering::Relaxed);
        self.set_loopback(super::LOOPBACK_PHY, control.phy.loopback());
        let link = control.phy.link();
        let changed = std::mem::replace(&mut control.link, link) != link;
        self.up.store(link, Ordering::Relaxed);
        if changed {
            causes |= cause::LSC;
        }
        self.phy_timer.set(control.phy.negotiated_at);
        self.raise(causes);
        changed && link
    }

    /// The same after a state was restored: nothing is raised.
    pub(super) fn restore_followers(&self, control: &Control) {
        self.vlan.store(control.vlan(), Ordering::Relaxed);
        self.up.store(control.link, Ordering::Relaxed);
        self.set_loopback(super::LOOPBACK_PHY, control.phy.loopback());
        {
            let mut rx = self.rx.lock();
            for at in (RETA..RSSRK_END).step_by(4) {
                if let Some((n, _)) = plain(at) {
                    rx.rss.write(at, control.plain[n]);
                }
            }
            self.set_loopback(super::LOOPBACK_MAC, rx.loops());
        }
        self.phy_timer.set(control.phy.negotiated_at);
    }

    fn set_loopback(&self, which: u8, on: bool) {
        if on {
            self.loopback.fetch_or(which, Ordering::Relaxed);
        } else {
            self.loopback.fetch_and(!which, Ordering::Relaxed);
        }
    }

    /// There may be room again: whoever has been refused is told. No lock is held.
    pub(super) fn wake(&self) {
        let room = {
            let mut rx = self.rx.lock();
            let room = self.up.load(Ordering::Relaxed) && rx.has_room(self.model);
            room && std::mem::take(&mut rx.starved)
        };
        if room {
            self.link.wake();
        }
    }
}
