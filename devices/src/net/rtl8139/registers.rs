//! What reads and writes of registers do.
use super::Adapter;
use super::regs::*;
use crate::clock::Nanos;
use crate::net::microwire::{Microwire, WORDS};
use mynah_net::Mac;
use serde::{Deserialize, Serialize};

/// A tick of TCTR: of the PCI bus's clock, 33 MHz.
const TICK: Nanos = 30;
/// What the partner can do: 100 and 10 Mb/s, either duplex, flow control; it has acknowledged.
const PARTNER: u16 = 0x45e1;

/// Bits of BMCR (802.3, 22.2.4.1).
mod bmcr {
    pub const RESET: u16 = 1 << 15;
    pub const SPEED_100: u16 = 1 << 13;
    pub const NEGOTIATE: u16 = 1 << 12;
    pub const FULL_DUPLEX: u16 = 1 << 8;
    pub const WRITABLE: u16 = SPEED_100 | NEGOTIATE | FULL_DUPLEX;
}
/// Bits of BMSR: the modes that there are, and what is true with a link.
const BMSR_MODES: u16 = 0x7809;
const BMSR_NEGOTIATED: u16 = 1 << 5;
const BMSR_LINK: u16 = 1 << 2;
/// Bits of MSR.
mod msr {
    pub const LINK_BAD: u8 = 1 << 2;
    pub const SPEED_10: u8 = 1 << 3;
    pub const AUXILIARY: u8 = 1 << 4;
    pub const FLOW: u8 = 3 << 6;
}

/// Registers that belong to neither direction nor to interrupts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Control {
    pub(super) eeprom: Microwire,
    /// 9346CR, as it was written.
    eecr: u8,
    config1: u8,
    config3: u8,
    config4: u8,
    config5: u8,
    flow: u8,
    mulint: u16,
    bmcr: u16,
    anar: u16,
    /// DTCCR.
    dtccr: [u32; 2],
    /// When TCTR was 0.
    counted_from: Nanos,
    timer_int: u32,
    /// When TCTR comes to TimerInt.
    pub(super) timer_due: Option<Nanos>,
    /// The link is up, as software was told of it.
    pub(super) link: bool,
    #[serde(with = "serde_bytes")]
    plain: Vec<u8>,
}

impl Control {
    /// As after power-on.
    pub(super) fn new(mac: Mac, link: bool, now: Nanos) -> Self {
        let mut control = Self {
            eeprom: Microwire::new(eeprom(mac)),
            eecr: 0,
            config1: 0,
            config3: 0,
            config4: 0,
            config5: 0,
            flow: msr::FLOW,
            mulint: 0,
            bmcr: bmcr::WRITABLE,
            anar: 0x05e1,
            dtccr: [0; 2],
            counted_from: now,
            timer_int: 0,
            timer_due: None,
            link,
            plain: vec![0; 256],
        };
        control.load();
        control
    }

    /// The configuration registers as the EEPROM has them.
    fn load(&mut self) {
        let [config0_1, config3_4] = [10, 6].map(|n| self.eeprom.word(n));
        self.config1 = (config0_1 >> 8) as u8 & 0xf3 | MAPPED;
        self.config3 = (config3_4 >> 8) as u8;
        (self.config4, self.config5) = (0, 0);
    }

    /// CR.RST: EEPROM, configuration and PHY go on.
    fn reset(&mut self, now: Nanos) {
        (self.eecr, self.mulint, self.dtccr) = (0, 0, [0; 2]);
        self.eeprom.drive(false, false, false);
        (self.counted_from, self.timer_int, self.timer_due) = (now, 0, None);
    }

    pub(super) fn is_valid(&self) -> bool {
        self.eeprom.is_valid() && self.plain.len() == 256
    }

    /// The address in the EEPROM.
    pub(super) fn mac(&self) -> [u8; 6] {
        let mut mac = [0; 6];
        for (n, pair) in mac.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *pair = self.eeprom.word(MAC_AT + n).to_le_bytes();
        }
        mac
    }

    fn negotiated(&self) -> bool {
        self.link && self.bmcr & bmcr::NEGOTIATE != 0
    }

    /// BMCR, with the speed and duplex that were agreed upon.
    fn bmcr(&self) -> u16 {
        if !self.negotiated() {
            return self.bmcr;
        }
        let both = self.anar & PARTNER;
        bmcr::NEGOTIATE
            | match () {
                () if both & 0x100 != 0 => bmcr::SPEED_100 | bmcr::FULL_DUPLEX,
                () if both & 0x80 != 0 => bmcr::SPEED_100,
                () if both & 0x40 != 0 => bmcr::FULL_DUPLEX,
                () => 0,
            }
    }

    /// BMCR is written: what is locked stays.
    fn write_bmcr(&mut self, value: u16) {
        if value & bmcr::RESET != 0 {
            (self.bmcr, self.anar) = (bmcr::WRITABLE, 0x05e1);
        } else if self.is_open() {
            self.bmcr = value & bmcr::WRITABLE;
        }
    }

    fn msr(&self) -> u8 {
        let mut value = self.flow | msr::AUXILIARY;
        if !self.link {
            value |= msr::LINK_BAD;
        }
        if self.bmcr() & bmcr::SPEED_100 == 0 {
            value |= msr::SPEED_10;
        }
        value
    }

    /// Whether configuration registers can be written.
    fn is_open(&self) -> bool {
        self.eecr & eecr::EEM == eecr::CONFIG
    }

    fn read_eecr(&self) -> u8 {
        let out = self.eecr & eecr::EEM == eecr::PROGRAM && self.eeprom.out();
        self.eecr | if out { eecr::EEDO } else { 0 }
    }

    /// 9346CR is written; whether all is to be loaded from the EEPROM.
    fn write_eecr(&mut self, value: u8) -> bool {
        use eecr::{AUTO_LOAD, EECS, EEDI, EEM, EESK, PROGRAM};
        self.eecr = value & (EEM | EECS | EESK | EEDI);
        let select = value & EEM == PROGRAM && value & EECS != 0;
        self.eeprom.drive(select, value & EESK != 0, value & EEDI != 0);
        if value & EEM != AUTO_LOAD {
            return false;
        }
        self.eecr = 0;
        self.load();
        true
    }

    fn ticks(&self, now: Nanos) -> u64 {
        now.saturating_sub(self.counted_from) / TICK
    }

    /// When TCTR comes to TimerInt next.
    fn set_timer(&mut self, now: Nanos) {
        let ticks = self.ticks(now);
        let ahead = match self.timer_int.wrapping_sub(ticks as u32) {
            0 => 1 << 32,
            n => u64::from(n),
        };
        let at = self.counted_from.saturating_add((ticks + ahead).saturating_mul(TICK));
        self.timer_due = (self.timer_int != 0).then_some(at);
    }

    /// Whether TCTR has come to TimerInt.
    fn timer_expired(&mut self, now: Nanos) -> bool {
        let due = self.timer_due.is_some_and(|at| at <= now);
        if due {
            self.set_timer(now);
        }
        due
    }

    fn read(&self, at: u32, now: Nanos) -> u32 {
        match at {
            TCTR => self.ticks(now) as u32,
            EECR => self.read_eecr().into(),
            // A boot ROM may be there, of no size that this tells.
            CONFIG0 => 0,
            CONFIG1 => self.config1.into(),
            CONFIG3 => self.config3.into(),
            CONFIG4 => self.config4.into(),
            CONFIG5 => self.config5.into(),
            TIMER_INT => self.timer_int,
            MSR => self.msr().into(),
            MULINT => self.mulint.into(),
            RERID => super::REVISION.into(),
            BMCR => self.bmcr().into(),
            BMSR => {
                let link = if self.link { BMSR_LINK } else { 0 };
                let done = if self.negotiated() { BMSR_NEGOTIATED } else { 0 };
                (BMSR_MODES | link | done).into()
            }
            ANAR => self.anar.into(),
            ANLPAR if self.negotiated() => PARTNER.into(),
            // The partner negotiates.
            ANER if self.negotiated() => 1,
            _ => {
                let bytes = (0..register(at).1).map(|n| at + n).filter(|n| is_plain(*n));
                bytes.fold(0, |v, n| v | u32::from(self.plain[n as usize]) << (8 * (n - at)))
            }
        }
    }

    /// A write; whether all is to be loaded from the EEPROM.
    fn write(&mut self, at: u32, value: u32, now: Nanos) -> bool {
        let byte = value as u8;
        match at {
            TCTR => {
                self.counted_from = now;
                self.set_timer(now);
            }
            TIMER_INT => {
                self.timer_int = value;
                self.set_timer(now);
            }
            EECR => return self.write_eecr(byte),
            CONFIG1 if self.is_open() => self.config1 = byte & 0xf3 | MAPPED,
            CONFIG3 if self.is_open() => self.config3 = byte & 0x70 | self.config3 & !0x70,
            CONFIG4 if self.is_open() => self.config4 = byte,
            CONFIG5 => self.config5 = byte & 0x7f,
            MSR => self.flow = byte & msr::FLOW,
            MULINT => self.mulint = value as u16,
            BMCR => self.write_bmcr(value as u16),
            ANAR => self.anar = value as u16 & 0x2fe0 | 1,
            _ => {
                for n in (0..register(at).1).filter(|n| is_plain(at + n)) {
                    self.plain[(at + n) as usize] = (value >> (8 * n)) as u8;
                }
            }
        }
        false
    }
}

/// CONFIG1: the registers are mapped to memory and to ports.
const MAPPED: u8 = 0x0c;
/// The EEPROM's words of the address.
const MAC_AT: usize = 7;

/// What the maker has written into the EEPROM of the card.
fn eeprom(mac: Mac) -> [u16; WORDS] {
    let mut words = [0; WORDS];
    // Its id, vendor, device, those of the subsystem, latencies.
    words[..6].copy_from_slice(&[0x8129, 0x10ec, 0x8139, 0x10ec, 0x8139, 0x4020]);
    // MSR and CONFIG3: fast back-to-back transfers.
    words[6] = 0x0110;
    for (word, pair) in words[MAC_AT..].iter_mut().zip(mac.0.as_chunks::<2>().0) {
        *word = u16::from_le_bytes(*pair);
    }
    // CONFIG0 and CONFIG1.
    words[10] = 0x0c10;
    words
}

/// Little-endian bytes of a counter of DTCCR's table, one after the other.
struct Table(Vec<u8>);

impl Table {
    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

impl Adapter {
    /// A read of so many bytes, as many registers as they are in.
    pub(super) fn read(&self, offset: u32, size: u32) -> u32 {
        let mut value = 0;
        let mut at = offset;
        while at < offset + size && at < 0x100 {
            let (base, width) = register(at);
            let end = (base + width).min(offset + size);
            let here = u64::from(self.read_register(base)) >> (8 * (at - base));
            let mask = (1_u64 << (8 * (end - at))) - 1;
            value |= (here & mask) << (8 * (at - offset));
            at = end;
        }
        value as u32
    }

    /// A write of so many bytes.
    pub(super) fn write(&self, offset: u32, size: u32, value: u32) {
        let mut at = offset;
        while at < offset + size && at < 0x100 {
            let (base, width) = register(at);
            let end = (base + width).min(offset + size);
            let mask = ((1_u64 << (8 * (end - at))) - 1) as u32;
            let shift = 8 * (at - base);
            let mut here = (value >> (8 * (at - offset)) & mask) << shift;
            // Of a register that is written in part the rest stays; nothing is acknowledged by that.
            if end - at < width && base != ISR {
                here |= self.read_register(base) & !(mask << shift);
            }
            self.write_register(base, here);
            at = end;
        }
    }

    fn is_cplus(&self) -> bool {
        self.tx.lock().cpcr & (cpcr::TE | cpcr::RE) != 0
    }

    fn read_register(&self, at: u32) -> u32 {
        let entry = |first: u32| ((at - first) / 4) as usize;
        match at {
            IDR..IDR_END => self.rx.lock().idr[at as usize].into(),
            MAR..MAR_END => self.rx.lock().mar[(at - MAR) as usize].into(),
            DTCCR | DTCCR_HIGH if self.is_cplus() => self.control.lock().dtccr[entry(DTCCR)],
            TSD..TSD_END => self.tx.lock().tsd[entry(TSD)],
            TSAD..TSAD_END => self.tx.lock().tsad[entry(TSAD)],
            RBSTART => self.rx.lock().rbstart,
            CR => {
                let tx = if self.tx.lock().enabled { cr::TE } else { 0 };
                let rx = self.rx.lock();
                let value =
                    tx | if rx.enabled { cr::RE } else { 0 } | if rx.is_empty() { cr::BUFE } else { 0 };
                value.into()
            }
            CAPR => self.rx.lock().capr.into(),
            CBR => self.rx.lock().cbr.into(),
            IMR => self.irq.lock().imr.into(),
            ISR => self.irq.lock().isr.into(),
            TCR => self.tx.lock().tcr | tcr::HWVERID,
            RCR => self.rx.lock().rcr,
            MPC => self.rx.lock().mpc,
            TSAD_ALL => self.tx.lock().summary().into(),
            CPCR => self.tx.lock().cpcr.into(),
            RDSAR => self.rx.lock().rdsar as u32,
            RDSAR_HIGH => (self.rx.lock().rdsar >> 32) as u32,
            _ => self.control.lock().read(at, self.clock.now()),
        }
    }

    fn write_register(&self, at: u32, value: u32) {
        let (byte, word) = (value as u8, value as u16);
        match at {
            DTCCR | DTCCR_HIGH if self.is_cplus() => self.write_dtccr(at, value),
            CR => self.write_cr(byte),
            IMR | ISR => {
                self.change_irq(|irq| match at {
                    IMR => irq.imr = word & isr::ALL,
                    _ => irq.isr &= !word,
                });
                self.wake();
            }
            TPPOLL => {
                if byte & tppoll::FSW_INT != 0 {
                    self.raise(isr::SW_INT);
                }
                let mut tx = self.tx.lock();
                for (ring, bit) in [(1, tppoll::HPQ), (0, tppoll::NPQ)] {
                    if byte & bit != 0 {
                        self.poll(&mut tx, ring);
                    }
                }
            }
            CPCR => {
                let value = word & cpcr::WRITABLE;
                self.tx.lock().cpcr = value;
                self.rx.lock().cpcr = value;
                self.wake();
            }
            TSD..TSD_END | TSAD..TSAD_END | TCR => self.write_tx(at, value),
            IDR..IDR_END | MAR..MAR_END | RBSTART | CAPR | RCR | MPC | RDSAR | RDSAR_HIGH => {
                self.write_rx(at, value);
            }
            CBR | TSAD_ALL => {}
            _ => self.write_control(at, value),
        }
    }

    fn write_tx(&self, at: u32, value: u32) {
        let mut guard = self.tx.lock();
        let tx = &mut *guard;
        match at {
            TCR => {
                tx.tcr = value & tcr::WRITABLE;
                self.rx.lock().looped = tx.loops();
            }
            TSD..TSD_END => {
                tx.set_status(((at - TSD) / 4) as usize, value);
                self.transmit(tx);
            }
            _ => {
                tx.tsad[((at - TSAD) / 4) as usize] = value;
                // The ring's low half begins it anew.
                match at {
                    TNPDS => tx.restart(0),
                    THPDS => tx.restart(1),
                    _ => {}
                }
            }
        }
    }

    fn write_rx(&self, at: u32, value: u32) {
        {
            let mut rx = self.rx.lock();
            match at {
                IDR..IDR_END => rx.idr[at as usize] = value as u8,
                MAR..MAR_END => rx.mar[(at - MAR) as usize] = value as u8,
                RBSTART => {
                    rx.rbstart = value;
                    rx.restart_buffer();
                }
                CAPR => rx.capr = value as u16,
                RCR => rx.set_rcr(value),
                MPC => rx.mpc = 0,
                RDSAR => {
                    rx.rdsar = rx.rdsar >> 32 << 32 | u64::from(value & !0xff);
                    rx.restart_ring();
                }
                _ => rx.rdsar = rx.rdsar & 0xffff_ffff | u64::from(value) << 32,
            }
        }
        if at >= RBSTART {
            self.wake();
        }
    }

    fn write_control(&self, at: u32, value: u32) {
        let mut control = self.control.lock();
        let now = self.clock.now();
        let loads = control.write(at, value, now);
        if loads {
            self.rx.lock().idr = control.mac();
        }
        if matches!(at, TCTR | TIMER_INT) {
            self.timer.set(control.timer_due);
        }
    }

    fn write_cr(&self, value: u8) {
        if value & cr::RST != 0 {
            let mut control = self.control.lock();
            control.reset(self.clock.now());
            self.timer.set(None);
            self.tx.lock().reset();
            self.rx.lock().reset();
            self.change_irq(|irq| (irq.isr, irq.imr) = (0, 0));
            return;
        }
        {
            let mut tx = self.tx.lock();
            tx.enable(value & cr::TE != 0);
            self.transmit(&mut tx);
        }
        self.rx.lock().enable(value & cr::RE != 0);
        self.wake();
    }

    /// DTCCR: statistics go to memory at once.
    fn write_dtccr(&self, at: u32, value: u32) {
        let mut control = self.control.lock();
        if at == DTCCR_HIGH {
            control.dtccr[1] = value;
            return;
        }
        control.dtccr[0] = value & !0x3f;
        if value & DTCCR_CMD == 0 {
            return;
        }
        let address = u64::from(control.dtccr[0]) | u64::from(control.dtccr[1]) << 32;
        let (sent, errors) = {
            let tx = self.tx.lock();
            (tx.sent, tx.errors)
        };
        let stats = self.rx.lock().stats.clone();
        let mut table = Table(Vec::with_capacity(64));
        table.put(&sent.to_le_bytes());
        table.put(&stats.frames.to_le_bytes());
        table.put(&errors.to_le_bytes());
        // Errors of reception.
        table.put(&[0; 4]);
        table.put(&stats.missed.to_le_bytes());
        // Alignment errors, one collision, several of them.
        table.put(&[0; 10]);
        table.put(&stats.own.to_le_bytes());
        table.put(&stats.broadcast.to_le_bytes());
        table.put(&stats.multicast.to_le_bytes());
        // Aborts and underruns.
        table.put(&[0; 4]);
        let _ = self.function.dma().write(address, &table.0);
    }

    /// TCTR may have come to TimerInt.
    pub(super) fn timer_expired(&self) {
        let expired = {
            let mut control = self.control.lock();
            let expired = control.timer_expired(self.clock.now());
            if expired {
                self.timer.set(control.timer_due);
            }
            expired
        };
        if expired {
            self.raise(isr::TIMEOUT);
        }
    }
}
