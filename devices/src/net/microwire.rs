//! A microwire EEPROM of 64 words (93C46), as cards have one for their address (Microchip, 93C46B, 2.0).
//!
//! Chip select, then on rising edges of SK a start bit, two bits of opcode and six of address; data go out, or in, with
//! the highest bit first.
use serde::{Deserialize, Serialize};

/// Words of the chip.
pub const WORDS: usize = 64;

/// What the chip is about.
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

/// The chip, and what its pins are at.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Microwire {
    words: Vec<u16>,
    step: Step,
    shift: u32,
    address: u8,
    /// All words are written at once.
    all: bool,
    /// SK was high.
    clock: bool,
    /// The level of DO.
    out: bool,
    writable: bool,
}

impl Microwire {
    /// A chip with these words.
    pub fn new(words: [u16; WORDS]) -> Self {
        Self {
            words: words.to_vec(),
            step: Step::Idle,
            shift: 0,
            address: 0,
            all: false,
            clock: false,
            out: true,
            writable: false,
        }
    }

    /// Whether a guest could have brought this about.
    pub fn is_valid(&self) -> bool {
        self.words.len() == WORDS
            && usize::from(self.address) < WORDS
            && match self.step {
                Step::Idle | Step::Done => true,
                Step::Command(n) => n < 8,
                Step::Read(n) | Step::Write(n) => n < 16,
            }
    }

    /// A word, by its number.
    pub fn word(&self, n: usize) -> u16 {
        self.words.get(n).copied().unwrap_or(0xffff)
    }

    /// The level of DO.
    pub fn out(&self) -> bool {
        self.out
    }

    /// CS, SK and DI are driven to these levels.
    pub fn drive(&mut self, select: bool, clock: bool, bit: bool) {
        let before = std::mem::replace(&mut self.clock, clock);
        if !select {
            (self.step, self.out) = (Step::Idle, true);
        } else if clock && !before {
            self.clock(bit);
        }
    }

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
