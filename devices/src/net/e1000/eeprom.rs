//! The EEPROM: 64 words, read by EERD, or on the 82540EM bit by bit through EECD (317453, 5.2 to 5.6).
//!
//! The 82540EM's is a microwire chip (93C46): chip select, then on rising edges of SK a start bit, two bits of opcode
//! and six of address; data go out, or in, with the highest bit first. The 82574's is behind an SPI bus whose bits lead
//! nowhere here: its words are read by EERD and written by EEWR.
use super::Model;
use mynah_net::Mac;
use serde::{Deserialize, Serialize};

pub(super) const WORDS: usize = 64;
/// What all words come to (5.6.35).
pub(super) const SUM: u16 = 0xbaba;

/// Bits of EECD (13.4.3).
pub(super) mod eecd {
    pub const SK: u32 = 1 << 0;
    pub const CS: u32 = 1 << 1;
    pub const DI: u32 = 1 << 2;
    pub const DO: u32 = 1 << 3;
    pub const FWE: u32 = 3 << 4;
    pub const REQ: u32 = 1 << 6;
    pub const GNT: u32 = 1 << 7;
    pub const PRES: u32 = 1 << 8;
    /// The 82574's: words were read after the reset.
    pub const AUTO_RD: u32 = 1 << 9;
}

/// What the microwire chip is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    /// Waits for the start bit.
    #[default]
    Idle,
    /// So many bits of opcode and address have come.
    Command(u8),
    /// So many bits of a word have gone out.
    Read(u8),
    /// So many bits of a word have come in.
    Write(u8),
    /// Until the chip is selected anew.
    Done,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Eeprom {
    pub(super) words: Vec<u16>,
    /// What was written to EECD.
    control: u32,
    step: Step,
    shift: u32,
    address: u8,
    /// All words are written at once.
    all: bool,
    /// The level of DO.
    out: bool,
    writable: bool,
}

impl Eeprom {
    /// What the maker has written into it.
    pub(super) fn new(model: Model, mac: Mac) -> Self {
        let mut words = vec![0xffff; WORDS];
        for (word, pair) in words.iter_mut().zip(mac.0.as_chunks::<2>().0) {
            *word = u16::from_le_bytes(*pair);
        }
        // Compatibility words, image version, PBA number (5.6.2 to 5.6.5).
        words[0x03..0x0a].copy_from_slice(&[0x0420, 0xffff, 0x1000, 0xffff, 0xffff, 0x0001, 0x0001]);
        // Initialization control 1, subsystem and subsystem's vendor, device, vendor, initialization control 2.
        let ids = match model {
            Model::I82540em => [0x440a, 0x1100, 0x1af4, 0x100e, 0x8086, 0x3040],
            Model::I82574l => [0x026b, 0x0000, 0x8086, 0x10d3, 0x8086, 0x8058],
        };
        words[0x0a..0x10].copy_from_slice(&ids);
        if model == Model::I82574l {
            // Words 10h and 23h say that the checksum needs no repair (82574's errata).
            words[0x10] = 0x0000;
            words[0x23] = 0x8401;
        }
        // Nothing wakes (initialization control 3).
        words[0x24] = 0;
        words[0x30..0x33].copy_from_slice(&[0x0100, 0x4000, 0x120d]);
        let sum = words[..WORDS - 1].iter().fold(0_u16, |sum, w| sum.wrapping_add(*w));
        words[WORDS - 1] = SUM.wrapping_sub(sum);
        let (step, out) = (Step::Idle, true);
        Self { words, control: 0, step, shift: 0, address: 0, all: false, out, writable: false }
    }

    pub(super) fn is_valid(&self) -> bool {
        let below = |n: u8, most: u8| n < most;
        self.words.len() == WORDS
            && usize::from(self.address) < WORDS
            && match self.step {
                Step::Idle | Step::Done => true,
                Step::Command(n) => below(n, 8),
                Step::Read(n) | Step::Write(n) => below(n, 16),
            }
    }

    /// A word, by its number.
    pub(super) fn word(&self, n: u32) -> u16 {
        self.words.get(n as usize).copied().unwrap_or(0xffff)
    }

    pub(super) fn write_word(&mut self, n: u32, value: u16) {
        if let Some(word) = self.words.get_mut(n as usize) {
            *word = value;
        }
    }

    /// The card's own address.
    pub(super) fn mac(&self) -> [u8; 6] {
        let mut mac = [0; 6];
        for (pair, word) in mac.as_chunks_mut::<2>().0.iter_mut().zip(&self.words) {
            *pair = word.to_le_bytes();
        }
        mac
    }

    /// A reset of the card: the chip keeps its words.
    pub(super) fn reset(&mut self) {
        (self.control, self.step, self.out, self.writable) = (0, Step::Idle, true, false);
    }

    /// EECD is read.
    pub(super) fn read_control(&self, model: Model) -> u32 {
        use eecd::*;
        let grant = if self.control & REQ != 0 { GNT } else { 0 };
        let out = if self.out { DO } else { 0 };
        let read = if model == Model::I82574l { AUTO_RD } else { 0 };
        self.control & (SK | CS | DI | FWE | REQ) | grant | out | read | PRES
    }

    /// EECD is written.
    pub(super) fn write_control(&mut self, model: Model, value: u32) {
        use eecd::*;
        let before = std::mem::replace(&mut self.control, value & (SK | CS | DI | FWE | REQ));
        if model == Model::I82574l {
            return;
        }
        if value & CS == 0 {
            (self.step, self.out) = (Step::Idle, true);
        } else if value & SK != 0 && before & SK == 0 {
            self.clock(value & DI != 0);
        }
    }

    /// A rising edge of SK.
    fn clock(&mut self, bit: bool) {
        self.step = match self.step {
            Step::Idle if bit => {
                self.shift = 0;
                Step::Command(0)
            }
            Step::Idle => Step::Idle,
            Step::Command(n) => {
                self.shift = self.shift << 1 | u32::from(bit);
                if n < 7 { Step::Command(n + 1) } else { self.command() }
            }
            Step::Read(n) => {
                self.out = self.word(self.address.into()) >> (15 - n) & 1 != 0;
                if n == 15 {
                    self.address = (self.address + 1) % WORDS as u8;
                }
                Step::Read((n + 1) % 16)
            }
            Step::Write(n) => {
                self.shift = self.shift << 1 | u32::from(bit);
                if n < 15 {
                    Step::Write(n + 1)
                } else {
                    self.store(self.shift as u16);
                    Step::Done
                }
            }
            Step::Done => Step::Done,
        };
    }

    /// Two bits of opcode and six of address have come.
    fn command(&mut self) -> Step {
        self.address = self.shift as u8 & 0x3f;
        self.all = false;
        match (self.shift >> 6 & 3, self.address >> 4) {
            (2, _) => {
                // A zero goes before the data.
                self.out = false;
                Step::Read(0)
            }
            (1, _) => Step::Write(0),
            (3, _) => {
                self.store(0xffff);
                Step::Done
            }
            (_, 1) => {
                self.all = true;
                Step::Write(0)
            }
            (_, 2) => {
                self.all = true;
                self.store(0xffff);
                Step::Done
            }
            (_, on) => {
                self.writable = on == 3;
                Step::Done
            }
        }
    }

    fn store(&mut self, value: u16) {
        // Ready at once: DO is high.
        self.out = true;
        if self.writable {
            match self.all {
                true => self.words.fill(value),
                false => self.words[usize::from(self.address)] = value,
            }
        }
    }
}
