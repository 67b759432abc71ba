//! The 16550A UART as a register machine: no lock, thread, or clock.
//!
//! Subset: everything software can see, except the time a character takes. The owner takes what is in the
//! transmitter as soon as it is written, if the line has room, so the holding register and the shift register
//! are then always found empty; the receiver takes bytes when it is given them. Line parameters (LCR) are kept, and set
//! the length of the receive time-out; they change no data. On the PC the interrupt pin passes through a buffer that
//! OUT2 opens; here it does too, so loop-back mode, in which OUT2 is off at the pin, interrupts nobody. On purpose
//! absent: the DMA signals TXRDY/RXRDY, and the parity and framing errors of a real line.
//!
//! Source: National Semiconductor PC16550D data sheet (June 1995), section 8, registers.
use crate::device::Invalid;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Depth of each FIFO.
pub(super) const FIFO: usize = 16;

/// Interrupt enable register, bits 0-3 (8.7).
mod ier {
    pub const RECEIVED_DATA: u8 = 1 << 0;
    pub const THR_EMPTY: u8 = 1 << 1;
    pub const LINE_STATUS: u8 = 1 << 2;
    pub const MODEM_STATUS: u8 = 1 << 3;
    pub const ALL: u8 = 0x0f;
}

/// Interrupt identification register (8.6), in order of priority.
mod iir {
    pub const LINE_STATUS: u8 = 0x06;
    pub const RECEIVED_DATA: u8 = 0x04;
    pub const TIMEOUT: u8 = 0x0c;
    pub const THR_EMPTY: u8 = 0x02;
    pub const MODEM_STATUS: u8 = 0x00;
    pub const NONE: u8 = 0x01;
    pub const FIFOS_ENABLED: u8 = 0xc0;
}

/// FIFO control register (8.5).
mod fcr {
    pub const ENABLE: u8 = 1 << 0;
    pub const CLEAR_RECEIVE: u8 = 1 << 1;
    pub const CLEAR_TRANSMIT: u8 = 1 << 2;
}

/// Line control register (8.1).
mod lcr {
    pub const WORD_LENGTH: u8 = 0x03;
    pub const STOP_BITS: u8 = 1 << 2;
    pub const PARITY: u8 = 1 << 3;
    pub const BREAK: u8 = 1 << 6;
    pub const DLAB: u8 = 1 << 7;
}

/// Modem control register (8.8).
mod mcr {
    pub const DTR: u8 = 1 << 0;
    pub const RTS: u8 = 1 << 1;
    pub const OUT1: u8 = 1 << 2;
    pub const OUT2: u8 = 1 << 3;
    pub const LOOP: u8 = 1 << 4;
    pub const ALL: u8 = 0x1f;
}

/// Line status register (8.4).
mod lsr {
    pub const DATA_READY: u8 = 1 << 0;
    pub const OVERRUN: u8 = 1 << 1;
    pub const BREAK: u8 = 1 << 4;
    pub const THR_EMPTY: u8 = 1 << 5;
    pub const TRANSMITTER_EMPTY: u8 = 1 << 6;
    pub const FIFO_ERROR: u8 = 1 << 7;
    /// Overrun, parity, framing, break: what the line status interrupt is for.
    pub const ERRORS: u8 = 0x1e;
}

/// Modem status register (8.9).
mod msr {
    pub const TERI: u8 = 1 << 2;
    pub const CTS: u8 = 1 << 4;
    pub const DSR: u8 = 1 << 5;
    pub const RI: u8 = 1 << 6;
    pub const DCD: u8 = 1 << 7;
    pub const DELTAS: u8 = 0x0f;
}

/// A 16550A.
#[derive(Clone, Serialize, Deserialize)]
pub struct Uart16550 {
    ier: u8,
    /// FCR bits that last: enable and trigger level.
    fcr: u8,
    lcr: u8,
    mcr: u8,
    /// Line inputs of the modem status register (CTS, DSR, RI, DCD), as they are at the pins.
    lines: u8,
    /// The inputs that the modem status shows (the pins, or in loop-back mode the modem control outputs).
    shown: u8,
    deltas: u8,
    scr: u8,
    divisor: u16,
    /// Received characters, each with its line status errors.
    fifo: VecDeque<(u8, u8)>,
    /// Characters that the line has not taken yet, in the FIFO or the holding register.
    transmitter: VecDeque<u8>,
    overrun: bool,
    /// The transmitter became empty and nobody has been told.
    thr_pending: bool,
    timeout: bool,
    /// What the owner of the clock should do: arm the time-out for so many nanoseconds, or (None) disarm it.
    #[serde(skip)]
    timeout_request: Option<Option<u64>>,
}

impl Default for Uart16550 {
    fn default() -> Self {
        Self::new()
    }
}

impl Uart16550 {
    /// A UART after power-on, its modem inputs CTS, DSR and DCD on, as a null modem has them.
    pub fn new() -> Self {
        let lines = msr::CTS | msr::DSR | msr::DCD;
        Self {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            lines,
            shown: lines,
            deltas: 0,
            scr: 0,
            // Undefined at power-on; 9,600 baud, as firmware leaves it.
            divisor: 12,
            fifo: VecDeque::with_capacity(FIFO),
            transmitter: VecDeque::with_capacity(FIFO),
            overrun: false,
            thr_pending: false,
            timeout: false,
            timeout_request: None,
        }
    }

    /// Whether it is a UART that can be.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if self.fifo.len() > FIFO || self.transmitter.len() > FIFO { Err(Invalid("a FIFO")) } else { Ok(()) }
    }

    /// Master reset (8.0, table III). The modem inputs stay as they are. Returns what was in the transmitter,
    /// which a line that is never held would have taken.
    #[must_use]
    pub fn reset(&mut self) -> Vec<u8> {
        let lines = self.lines;
        let left = self.transmitter.drain(..).collect();
        *self = Self { lines, shown: lines, timeout_request: Some(None), ..Self::new() };
        left
    }

    /// Reads register `reg` (0 to 7; higher ones mirror them).
    pub fn read(&mut self, reg: u16) -> u8 {
        let dlab = self.lcr & lcr::DLAB != 0;
        match reg & 7 {
            0 if dlab => self.divisor as u8,
            1 if dlab => (self.divisor >> 8) as u8,
            0 => self.read_rbr(),
            1 => self.ier,
            2 => {
                let id = self.pending();
                if id == iir::THR_EMPTY {
                    self.thr_pending = false;
                }
                id | if self.fifos() { iir::FIFOS_ENABLED } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let status = self.line_status();
                self.overrun = false;
                if let Some((_, errors)) = self.fifo.front_mut() {
                    *errors = 0;
                }
                status
            }
            6 => {
                let status = self.shown | self.deltas;
                self.deltas = 0;
                status
            }
            _ => self.scr,
        }
    }

    /// Writes register `reg` (0 to 7; higher ones mirror them). Returns characters that are pushed out of the
    /// transmitter by one more, or by clearing it. The chip loses them; but a line that is never held, which is
    /// what most programs rely on, would have taken them.
    #[must_use]
    pub fn write(&mut self, reg: u16, value: u8) -> Vec<u8> {
        let dlab = self.lcr & lcr::DLAB != 0;
        match reg & 7 {
            0 if dlab => self.divisor = self.divisor & 0xff00 | u16::from(value),
            1 if dlab => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            0 => return self.transmit(value),
            1 => {
                let enabled = !self.ier & value;
                self.ier = value & ier::ALL;
                // Enabling the interrupt while the register is empty requests it at once (8.7).
                if enabled & ier::THR_EMPTY != 0 && self.transmitter.is_empty() {
                    self.thr_pending = true;
                }
            }
            2 => return self.write_fcr(value),
            3 => self.lcr = value,
            4 => {
                self.mcr = value & mcr::ALL;
                self.update_modem();
            }
            7 => self.scr = value,
            // LSR and MSR are for reading.
            _ => {}
        }
        Vec::new()
    }

    fn fifos(&self) -> bool {
        self.fcr & fcr::ENABLE != 0
    }

    fn looped(&self) -> bool {
        self.mcr & mcr::LOOP != 0
    }

    fn transmit(&mut self, byte: u8) -> Vec<u8> {
        if self.looped() {
            // The byte is gone before the next instruction: the register is empty again.
            self.thr_pending = self.transmitter.is_empty();
            let byte = byte & self.word_mask();
            self.put(byte, 0);
        } else if self.lcr & lcr::BREAK != 0 {
            // SOUT is held low: the other side sees a break and no character.
            self.thr_pending = self.transmitter.is_empty();
        } else {
            self.thr_pending = false;
            let pushed_out =
                if self.transmitter.len() >= self.depth() { self.transmitter.pop_front() } else { None };
            self.transmitter.push_back(byte);
            return pushed_out.into_iter().collect();
        }
        Vec::new()
    }

    /// The characters that the line is to take, in their order.
    pub fn transmitting(&self) -> impl Iterator<Item = u8> {
        self.transmitter.iter().copied()
    }

    /// The line has taken the first `n` of them.
    pub fn transmitted(&mut self, n: usize) {
        self.transmitter.drain(..n.min(self.transmitter.len()));
        self.thr_pending |= n > 0 && self.transmitter.is_empty();
    }

    fn word_mask(&self) -> u8 {
        0xff >> (3 - (self.lcr & lcr::WORD_LENGTH))
    }

    fn read_rbr(&mut self) -> u8 {
        self.timeout = false;
        let byte = self.fifo.pop_front().map_or(0, |(byte, _)| byte);
        self.request_timeout();
        byte
    }

    fn write_fcr(&mut self, value: u8) -> Vec<u8> {
        // Changing bit 0 clears both FIFOs; the other bits count only while it is 1 (8.5).
        let switched = (self.fcr ^ value) & fcr::ENABLE != 0;
        self.fcr = if value & fcr::ENABLE != 0 { value & 0xc9 } else { 0 };
        if switched || (value & fcr::ENABLE != 0 && value & fcr::CLEAR_RECEIVE != 0) {
            self.fifo.clear();
            self.timeout = false;
            self.request_timeout();
        }
        if !self.transmitter.is_empty()
            && (switched || (value & fcr::ENABLE != 0 && value & fcr::CLEAR_TRANSMIT != 0))
        {
            self.thr_pending = true;
            return self.transmitter.drain(..).collect();
        }
        Vec::new()
    }

    /// Characters that the receiver takes before it overruns; none in loop-back mode, in which SIN is
    /// disconnected.
    pub fn receive_room(&self) -> usize {
        if self.looped() { 0 } else { self.depth().saturating_sub(self.fifo.len()) }
    }

    fn depth(&self) -> usize {
        if self.fifos() { FIFO } else { 1 }
    }

    /// A character comes in on the line. In loop-back mode it is lost, as SIN is disconnected.
    pub fn receive(&mut self, byte: u8) {
        if !self.looped() {
            self.put(byte, 0);
        }
    }

    /// A break comes in on the line: a character of zeroes with the break flag (8.4, bit 4).
    pub fn receive_break(&mut self) {
        if !self.looped() {
            self.put(0, lsr::BREAK);
        }
    }

    fn put(&mut self, byte: u8, errors: u8) {
        if self.fifo.len() >= self.depth() {
            self.overrun = true;
            // Without FIFOs the newcomer overwrites the old character; with them the newcomer is lost (8.4,
            // bit 1).
            if !self.fifos() {
                self.fifo.clear();
                self.fifo.push_back((byte, errors));
            }
        } else {
            self.fifo.push_back((byte, errors));
        }
        self.request_timeout();
    }

    /// Characters in the FIFO that raise the received-data interrupt.
    fn trigger(&self) -> usize {
        if self.fifos() { [1, 4, 8, 14][usize::from(self.fcr >> 6)] } else { 1 }
    }

    /// Four character times after the last one came or was read, if there are some left (8.10, FIFO interrupt
    /// mode).
    fn request_timeout(&mut self) {
        let wanted = self.fifos() && !self.fifo.is_empty();
        self.timeout_request = Some(wanted.then(|| 4 * self.character_nanos()));
    }

    /// The duration of a character: start, data, parity and stop bits at 1.8432 MHz / 16 / divisor.
    fn character_nanos(&self) -> u64 {
        let bits = 1
            + 5
            + u64::from(self.lcr & lcr::WORD_LENGTH)
            + u64::from(self.lcr & lcr::PARITY != 0)
            + 1
            + u64::from(self.lcr & lcr::STOP_BITS != 0);
        bits * u64::from(self.divisor.max(1)) * 1_000_000_000 / 115_200
    }

    /// What is to be done with the time-out's timer since the last call: nothing, arm it for so many
    /// nanoseconds, disarm it (`Some(None)`).
    pub fn take_timeout_request(&mut self) -> Option<Option<u64>> {
        self.timeout_request.take()
    }

    /// The time-out has passed.
    pub fn receive_timeout(&mut self) {
        self.timeout = self.fifos() && !self.fifo.is_empty();
    }

    fn line_status(&self) -> u8 {
        let mut status =
            if self.transmitter.is_empty() { lsr::THR_EMPTY | lsr::TRANSMITTER_EMPTY } else { 0 };
        if let Some((_, errors)) = self.fifo.front() {
            status |= lsr::DATA_READY | errors;
        }
        if self.overrun {
            status |= lsr::OVERRUN;
        }
        if self.fifos() && self.fifo.iter().any(|(_, errors)| *errors != 0) {
            status |= lsr::FIFO_ERROR;
        }
        status
    }

    /// Changes the modem inputs.
    pub fn set_modem_lines(&mut self, cts: bool, dsr: bool, ri: bool, dcd: bool) {
        let bit = |on, bit| if on { bit } else { 0 };
        self.lines = bit(cts, msr::CTS) | bit(dsr, msr::DSR) | bit(ri, msr::RI) | bit(dcd, msr::DCD);
        self.update_modem();
    }

    fn update_modem(&mut self) {
        let bit = |from, to| if self.mcr & from != 0 { to } else { 0 };
        let now = if self.looped() {
            bit(mcr::RTS, msr::CTS)
                | bit(mcr::DTR, msr::DSR)
                | bit(mcr::OUT1, msr::RI)
                | bit(mcr::OUT2, msr::DCD)
        } else {
            self.lines
        };
        let changed = self.shown ^ now;
        self.deltas |= changed >> 4 & (msr::DELTAS & !msr::TERI);
        // The ring indicator's flag marks its trailing edge only.
        if self.shown & !now & msr::RI != 0 {
            self.deltas |= msr::TERI;
        }
        self.shown = now;
    }

    /// The pending interrupt of the highest priority, or `iir::NONE`.
    fn pending(&self) -> u8 {
        if self.ier & ier::LINE_STATUS != 0 && self.line_status() & lsr::ERRORS != 0 {
            iir::LINE_STATUS
        } else if self.ier & ier::RECEIVED_DATA != 0 && self.fifo.len() >= self.trigger() {
            iir::RECEIVED_DATA
        } else if self.ier & ier::RECEIVED_DATA != 0 && self.timeout {
            iir::TIMEOUT
        } else if self.ier & ier::THR_EMPTY != 0 && self.thr_pending {
            iir::THR_EMPTY
        } else if self.ier & ier::MODEM_STATUS != 0 && self.deltas != 0 {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        }
    }

    /// The level of the PC's interrupt line: INTR, if OUT2 lets it pass.
    pub fn interrupt(&self) -> bool {
        self.mcr & (mcr::OUT2 | mcr::LOOP) == mcr::OUT2 && self.pending() != iir::NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(u: &mut Uart16550, reg: u16, value: u8) {
        assert!(u.write(reg, value).is_empty());
    }

    /// Has a character sent on a line that takes it.
    fn send(u: &mut Uart16550, byte: u8) {
        set(u, 0, byte);
        assert!(u.transmitting().eq([byte]));
        u.transmitted(1);
    }

    /// A UART with FIFOs on, all interrupts enabled and OUT2 on; the first THRE interrupt is taken.
    fn ready(fcr: u8) -> Uart16550 {
        let mut u = Uart16550::new();
        set(&mut u, 2, fcr);
        set(&mut u, 3, 0x03);
        set(&mut u, 4, 0x0b);
        set(&mut u, 1, 0x0f);
        assert_eq!(u.read(2) & 0x0f, iir::THR_EMPTY);
        u
    }

    #[test]
    fn linux_identifies_a_16550a() {
        // The steps of the 8250 driver's autoconfiguration.
        let mut u = Uart16550::new();
        set(&mut u, 1, 0);
        assert_eq!(u.read(1) & 0x0f, 0);
        set(&mut u, 1, 0x0f);
        assert_eq!(u.read(1) & 0x0f, 0x0f);
        set(&mut u, 1, 0);
        set(&mut u, 4, mcr::LOOP | 0x0a);
        assert_eq!(u.read(6) & 0xf0, 0x90, "loop-back shows RTS as CTS and OUT2 as DCD");
        set(&mut u, 4, 0);
        set(&mut u, 3, 0xbf);
        set(&mut u, 2, 0);
        set(&mut u, 3, 0);
        set(&mut u, 2, fcr::ENABLE);
        assert_eq!(u.read(2) >> 6, 3, "FIFOs, that work");
        // Neither a 16650 (no EFR behind DLAB), nor a 16750 (no 64-byte FIFO), nor an XScale port (no UUE).
        set(&mut u, 3, 0x80);
        assert_ne!(u.read(2), 0);
        set(&mut u, 2, fcr::ENABLE | 0x20);
        assert_eq!(u.read(2) >> 5, 6);
        set(&mut u, 3, 0);
        set(&mut u, 1, 0x40);
        assert_eq!(u.read(1) & 0x40, 0);
    }

    #[test]
    fn the_transmitter_interrupts_after_each_byte_and_when_enabled() {
        let mut u = ready(0x01);
        assert!(!u.interrupt());
        send(&mut u, b'x');
        assert!(u.interrupt());
        assert_eq!(u.read(2), 0xc2);
        assert!(!u.interrupt(), "reading the IIR answers it");
        // The driver's test: disable, enable, and the interrupt must be there again.
        set(&mut u, 1, 0);
        set(&mut u, 1, ier::THR_EMPTY);
        assert_eq!(u.read(2), 0xc2);
        set(&mut u, 1, 0);
        set(&mut u, 1, ier::THR_EMPTY);
        assert_eq!(u.read(2), 0xc2);
    }

    #[test]
    fn the_receiver_interrupts_at_its_trigger_level_and_on_timeout() {
        for (code, level) in [(0x00, 1), (0x40, 4), (0x80, 8), (0xc0, 14)] {
            let mut u = ready(code | 0x01);
            for i in 0..level {
                assert!(!u.interrupt(), "{i} of {level}");
                u.receive(i);
            }
            assert_eq!(u.read(2), 0xc4);
            assert_eq!(u.read(0), 0);
            assert_eq!(u.read(2), 0xc1);
            u.receive_timeout();
            assert_eq!(u.read(2), if level == 1 { 0xc1 } else { 0xcc });
            for i in 1..level {
                assert_eq!(u.read(0), i);
            }
            assert!(!u.interrupt());
            assert_eq!(u.read(5) & lsr::DATA_READY, 0);
        }
    }

    #[test]
    fn interrupts_come_in_the_order_of_their_priority() {
        let mut u = ready(0x01);
        u.set_modem_lines(false, true, false, true);
        send(&mut u, 0);
        u.receive_break();
        assert_eq!(u.read(2), 0xc6);
        assert_eq!(u.read(5), 0xf1, "data, break, transmitter empty, FIFO error");
        assert_eq!(u.read(2), 0xc4);
        u.read(0);
        assert_eq!(u.read(2), 0xc2);
        assert_eq!(u.read(2), 0xc0);
        assert_eq!(u.read(6), 0xa1);
        assert_eq!(u.read(2), 0xc1);
    }

    #[test]
    fn a_full_receiver_overruns_as_the_data_sheet_says() {
        let mut u = ready(0x01);
        for i in 0..17 {
            u.receive(i);
        }
        assert_eq!(u.receive_room(), 0);
        assert_eq!(u.read(5) & lsr::OVERRUN, lsr::OVERRUN);
        assert_eq!(u.read(5) & lsr::OVERRUN, 0, "reading clears it");
        assert_eq!((0..16).map(|_| u.read(0)).collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());

        let mut u = Uart16550::new();
        u.receive(1);
        u.receive(2);
        assert_eq!(u.read(5) & 0x03, 0x03);
        assert_eq!(u.read(0), 2, "without FIFOs the last one stays");
    }

    #[test]
    fn loop_back_returns_what_is_sent_and_hears_nothing_else() {
        let mut u = ready(0x01);
        set(&mut u, 4, mcr::LOOP | 0x0f);
        set(&mut u, 0, 0xa5);
        assert_eq!(u.transmitting().count(), 0);
        u.receive(b'!');
        assert_eq!((u.receive_room(), u.read(5) & 1, u.read(0), u.read(5) & 1), (0, 1, 0xa5, 0));
        assert_eq!(u.read(6) & 0xf0, 0xf0);
        set(&mut u, 4, mcr::LOOP | 0x0b);
        assert_eq!(u.read(6), 0xb0 | msr::TERI);
        assert!(!u.interrupt(), "OUT2 is off at the pin");
    }

    #[test]
    fn fifos_are_cleared_by_command_and_by_switching() {
        for clear in [0x03, 0x00] {
            let mut u = ready(0x01);
            u.receive(1);
            set(&mut u, 2, clear);
            assert_eq!(u.read(5) & lsr::DATA_READY, 0);
        }
        let mut u = ready(0x01);
        u.receive(1);
        set(&mut u, 2, 0x81);
        assert_eq!(u.read(5) & lsr::DATA_READY, 1, "a new trigger level clears nothing");
    }

    #[test]
    fn the_divisor_is_behind_dlab_and_the_scratch_register_is_not() {
        let mut u = Uart16550::new();
        set(&mut u, 3, 0x80);
        set(&mut u, 0, 0x34);
        set(&mut u, 1, 0x12);
        assert_eq!((u.read(0), u.read(1)), (0x34, 0x12));
        set(&mut u, 7, 0x5a);
        set(&mut u, 3, 0x03);
        assert_eq!((u.read(1), u.read(7)), (0, 0x5a));
    }

    #[test]
    fn out2_gates_the_interrupt() {
        let mut u = ready(0x01);
        u.receive(1);
        assert!(u.interrupt());
        set(&mut u, 4, 0x03);
        assert!(!u.interrupt());
        assert_eq!(u.read(2), 0xc4, "the chip itself still asks");
    }
}
