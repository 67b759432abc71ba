//! The keyboard: an MF2 one with 105 keys and scan code sets 1, 2 (after power-on) and 3.
//!
//! In sets 1 and 2 every key repeats while it is held, but Pause, and sends its release. In set 3 that is chosen for
//! each key (commands F7h to FDh). The keyboard repeats by itself, after the delay and at the rate that F3h sets, so a
//! key that the host presses again without having released it is no news: [`Keyboard::due`] says when the next code
//! is to be made. A computer that does not read has no repeated codes waiting for it.
//!
//! Source: IBM PS/2 Hardware Interface Technical Reference (1990), Keyboards.
use super::set3::{self, KeyType};
use super::{ACK, BAT_PASSED, Key, Outbox, RESEND, to_set2};
use crate::clock::Nanos;
use crate::device::Invalid;
use serde::{Deserialize, Serialize};

const ECHO: u8 = 0xee;
/// Scan codes that a keyboard keeps for a computer that does not read them; one more overruns.
const KEYS: usize = 16;
/// What takes the place of keys that did not fit: in sets 2 and 3, and in set 1.
pub(super) const OVERRUN: u8 = 0x00;
const OVERRUN_SET1: u8 = 0xff;
/// 500 ms, 10.9 characters in a second.
const TYPEMATIC: u8 = 0x2b;
/// Keys that are down at once, as far as that is kept.
const HELD: usize = 128;

/// A key that repeats.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Repeat {
    key: Key,
    /// When its code is sent again.
    at: Nanos,
}

/// A PS/2 keyboard.
#[derive(Clone, Serialize, Deserialize)]
pub struct Keyboard {
    pub(super) out: Outbox,
    /// Sends keys.
    scanning: bool,
    /// Scan code set in use: 1 to 3.
    set: u8,
    leds: u8,
    typematic: u8,
    /// A command that waits for its argument.
    command: Option<u8>,
    /// What keys are in set 3, where they are not as after power-on: codes and types.
    types: Vec<(u8, KeyType)>,
    /// What all are, if that was chosen.
    all: Option<KeyType>,
    /// Keys that are down.
    held: Vec<Key>,
    repeat: Option<Repeat>,
}

impl Default for Keyboard {
    fn default() -> Self {
        Self::new()
    }
}

/// The bytes of a sequence.
#[derive(Default)]
struct Codes {
    bytes: [u8; KEYS],
    len: usize,
}

impl Codes {
    fn put(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if let Some(slot) = self.bytes.get_mut(self.len) {
                *slot = *byte;
                self.len += 1;
            }
        }
    }

    /// What one key sends in set 1 or 2.
    fn key(&mut self, set: u8, key: Key, pressed: bool) {
        if key.extended {
            self.put(&[0xe0]);
        }
        match (set, pressed) {
            (1, true) => self.put(&[key.code & 0x7f]),
            (1, false) => self.put(&[key.code | 0x80]),
            (_, true) => self.put(&[to_set2(key.code)]),
            (_, false) => self.put(&[0xf0, to_set2(key.code)]),
        }
    }
}

impl Keyboard {
    /// Identification of an MF2 keyboard.
    pub const ID: [u8; 2] = [0xab, 0x83];

    /// A keyboard that has passed its power-on test.
    pub fn new() -> Self {
        Self {
            out: Outbox::default(),
            scanning: true,
            set: 2,
            leds: 0,
            typematic: TYPEMATIC,
            command: None,
            types: Vec::new(),
            all: None,
            held: Vec::new(),
            repeat: None,
        }
    }

    /// Whether it is a keyboard that can be.
    pub(in crate::input) fn check(&self) -> Result<(), Invalid> {
        if !(1..=3).contains(&self.set) {
            return Err(Invalid("the scan code set"));
        }
        if self.types.len() > usize::from(set3::LAST) || self.types.iter().any(|(c, _)| !set3::is_key(*c)) {
            return Err(Invalid("the types of keys"));
        }
        if self.held.len() > HELD {
            return Err(Invalid("the keys that are down"));
        }
        // Whole sequences are added while there is room for one byte.
        self.out.check(2 * KEYS)
    }

    /// The LEDs that are lit: bit 0 scroll lock, bit 1 num lock, bit 2 caps lock.
    pub fn leds(&self) -> u8 {
        self.leds
    }

    /// The byte that comes next over the wire.
    pub fn take(&mut self) -> Option<u8> {
        self.out.take()
    }

    /// When the key that is held is to be sent again: [`Keyboard::repeat`].
    pub fn due(&self) -> Option<Nanos> {
        self.repeat.map(|repeat| repeat.at)
    }

    /// Sends the key that is held again, if it is time to.
    pub fn repeat(&mut self, now: Nanos) {
        let Some(repeat) = self.repeat.filter(|repeat| repeat.at <= now) else { return };
        // Those that were not read are as many as there can be.
        if self.out.data.is_empty() {
            self.send(repeat.key, true);
        }
        self.repeat = Some(Repeat { at: now.saturating_add(self.period()), ..repeat });
    }

    /// A key goes down or up.
    pub fn key(&mut self, key: Key, pressed: bool, now: Nanos) {
        if matches!(key.code, 0 | 0x80..) {
            return;
        }
        let was = self.held.iter().position(|held| *held == key);
        match (pressed, was) {
            // The host repeats, and so does the keyboard.
            (true, Some(_)) => return,
            // What goes down unseen is news when it is pressed again.
            (true, None) if self.scanning && self.held.len() < HELD => self.held.push(key),
            (false, Some(at)) => _ = self.held.swap_remove(at),
            _ => {}
        }
        if pressed || self.repeat.is_some_and(|repeat| repeat.key == key) {
            self.repeat = None;
        }
        if !self.scanning {
            return;
        }
        if pressed && self.kind(key).repeats() {
            self.repeat = Some(Repeat { key, at: now.saturating_add(self.delay()) });
        }
        if pressed || self.kind(key).breaks() {
            self.send(key, pressed);
        }
    }

    /// What a key is in the set in use.
    fn kind(&self, key: Key) -> KeyType {
        match set3::code(key.code, key.extended) {
            Some(code) if self.set == 3 => {
                let chosen = self.types.iter().find(|(c, _)| *c == code).map(|(_, kind)| *kind);
                chosen.or(self.all).unwrap_or_else(|| set3::usual(code))
            }
            _ if key == Key::PAUSE => KeyType::Make,
            _ => KeyType::TypematicMakeBreak,
        }
    }

    fn send(&mut self, key: Key, pressed: bool) {
        let mut codes = Codes::default();
        match (self.set, key) {
            (3, _) => match (set3::code(key.code, key.extended), pressed) {
                (None, _) => return,
                (Some(code), true) => codes.put(&[code]),
                (Some(code), false) => codes.put(&[0xf0, code]),
            },
            (1, Key::PAUSE) => codes.put(&[0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5]),
            (_, Key::PAUSE) => codes.put(&[0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77]),
            (set, Key::PRINT_SCREEN) => {
                let shift = Key::extended(0x2a);
                let order = if pressed { [shift, key] } else { [key, shift] };
                order.into_iter().for_each(|k| codes.key(set, k, pressed));
            }
            (set, _) => codes.key(set, key, pressed),
        }
        // A key fits as a whole or not at all.
        let overrun = if self.set == 1 { OVERRUN_SET1 } else { OVERRUN };
        let data = &mut self.out.data;
        if data.len() + codes.len <= KEYS {
            data.extend(&codes.bytes[..codes.len]);
        } else if data.back() != Some(&overrun) {
            data.push_back(overrun);
        }
    }

    /// How long a key is held before it repeats: bits 6-5 of the rate, 250 ms each.
    fn delay(&self) -> Nanos {
        Nanos::from(1 + (self.typematic >> 5 & 3)) * 250_000_000
    }

    /// Between two codes: (8 + bits 2-0) * 2 ^ bits 4-3 / 240 s.
    fn period(&self) -> Nanos {
        (Nanos::from(8 + (self.typematic & 7)) << (self.typematic >> 3 & 3)) * 1_000_000_000 / 240
    }

    fn defaults(&mut self) {
        self.out.data.clear();
        self.typematic = TYPEMATIC;
        self.set = 2;
        self.repeat = None;
        self.types.clear();
        self.all = None;
    }

    fn scan(&mut self, on: bool) {
        self.scanning = on;
        self.repeat = None;
    }

    /// A byte from the computer.
    pub fn write(&mut self, byte: u8) {
        if let Some(command) = self.command.take() {
            // A byte from EDh up is a command, not the argument it takes the place of.
            if byte < 0xed {
                return self.argument(command, byte);
            }
        }
        if byte != RESEND {
            self.out.replies.clear();
        }
        match byte {
            // LEDs, scan code set, typematic rate: an argument follows.
            0xed | 0xf0 | 0xf3 => {
                self.command = Some(byte);
                self.out.reply(&[ACK]);
            }
            // The types of single keys, by their codes in set 3 until another command comes. Nothing is scanned until
            // that is enabled again.
            0xfb..=0xfd => {
                self.command = Some(byte);
                self.out.data.clear();
                self.scan(false);
                self.out.reply(&[ACK]);
            }
            ECHO => self.out.reply(&[ECHO]),
            0xf2 => self.out.reply(&[ACK, Self::ID[0], Self::ID[1]]),
            0xf4 => {
                self.out.data.clear();
                self.scan(true);
                self.out.reply(&[ACK]);
            }
            0xf5 | 0xf6 => {
                self.defaults();
                self.scan(byte == 0xf6);
                self.out.reply(&[ACK]);
            }
            0xf7..=0xfa => {
                self.out.data.clear();
                self.repeat = None;
                self.types.clear();
                self.all = Some(match byte {
                    0xf7 => KeyType::Typematic,
                    0xf8 => KeyType::MakeBreak,
                    0xf9 => KeyType::Make,
                    _ => KeyType::TypematicMakeBreak,
                });
                self.out.reply(&[ACK]);
            }
            RESEND => self.out.replies.push_front(self.out.last),
            0xff => {
                self.defaults();
                self.scan(true);
                self.leds = 0;
                self.out.reply(&[ACK, BAT_PASSED]);
            }
            _ => self.out.reply(&[RESEND]),
        }
        self.out.replies.truncate(16);
    }

    fn argument(&mut self, command: u8, byte: u8) {
        match (command, byte) {
            (0xed, _) => self.leds = byte & 7,
            (0xf0, 0) => return self.out.reply(&[ACK, self.set]),
            (0xf0, 1..=3) => {
                self.out.data.clear();
                self.repeat = None;
                self.set = byte;
            }
            (0xf0, _) => return self.out.reply(&[RESEND]),
            (0xf3, _) => self.typematic = byte & 0x7f,
            (0xfb..=0xfd, code) => {
                // More may follow.
                self.command = Some(command);
                if !set3::is_key(code) {
                    return self.out.reply(&[RESEND]);
                }
                let kind = match command {
                    0xfb => KeyType::Typematic,
                    0xfc => KeyType::MakeBreak,
                    _ => KeyType::Make,
                };
                self.types.retain(|(c, _)| *c != code);
                self.types.push((code, kind));
            }
            _ => {}
        }
        self.out.reply(&[ACK]);
    }
}
