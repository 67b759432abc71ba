//! The PS/2 keyboard and the PS/2 mouse: what travels over their wires, byte by byte.
//!
//! The mouse is a standard three-button one that becomes an IntelliMouse (wheel) after the knock of sample rates 200,
//! 100, 80, and then an IntelliMouse Explorer (five buttons) after 200, 200, 80. What the keyboard does is in
//! [`keyboard`].
//!
//! Sources: IBM PS/2 Hardware Interface Technical Reference (1990), Keyboards, and Mouse; Microsoft,
//! IntelliMouse wheel protocol.
pub mod keyboard;
mod set3;

pub use keyboard::Keyboard;

use crate::device::Invalid;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const BAT_PASSED: u8 = 0xaa;

/// A key, by its make code in scan code set 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The make code, 01h to 7Fh.
    pub code: u8,
    /// Whether the code has the prefix E0h.
    pub extended: bool,
}

impl Key {
    /// Pause, which sends E1h 1Dh 45h E1h 9Dh C5h when pressed and nothing when released.
    pub const PAUSE: Key = Key { code: 0x46, extended: true };
    /// Print screen, whose codes have fake shifts around them.
    pub const PRINT_SCREEN: Key = Key { code: 0x37, extended: true };

    /// An ordinary key.
    pub const fn new(code: u8) -> Self {
        Self { code, extended: false }
    }

    /// A key with the prefix E0h.
    pub const fn extended(code: u8) -> Self {
        Self { code, extended: true }
    }
}

/// What the controller turns each byte of set 2 into; a make code in set 1 for those that are codes of keys.
///
/// Codes from 85h up are left alone, so that replies pass.
#[rustfmt::skip]
pub(super) const TO_SET1: [u8; 0x85] = [
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
    0x80, 0x81, 0x82, 0x41, 0x54,
];

/// The make code in set 2 of a set 1 make code; 00h if there is none.
fn to_set2(code: u8) -> u8 {
    match code {
        // F7 and SysRq have two places in the table; these are the ones of the keyboard.
        0x41 => 0x83,
        0x54 => 0x84,
        _ => TO_SET1.iter().position(|c| *c == code).map_or(0, |i| i as u8),
    }
}

/// Bytes on their way to the controller: replies before keys.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Outbox {
    replies: VecDeque<u8>,
    data: VecDeque<u8>,
    last: u8,
}

impl Outbox {
    /// Whether no more waits than can: `most` bytes of keys or movements.
    fn check(&self, most: usize) -> Result<(), Invalid> {
        if self.replies.len() > 16 || self.data.len() > most {
            Err(Invalid("what is to be sent"))
        } else {
            Ok(())
        }
    }

    fn reply(&mut self, bytes: &[u8]) {
        // No command has a longer reply, and a new command cancels the old one's.
        self.replies.extend(bytes);
        self.replies.truncate(16);
    }

    fn take(&mut self) -> Option<u8> {
        let byte = self.replies.pop_front().or_else(|| self.data.pop_front())?;
        self.last = byte;
        Some(byte)
    }
}

/// Buttons of a mouse that are down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MouseButtons {
    /// The left one.
    pub left: bool,
    /// The right one.
    pub right: bool,
    /// The middle one.
    pub middle: bool,
    /// The fourth, on an IntelliMouse Explorer: back.
    pub back: bool,
    /// The fifth: forward.
    pub forward: bool,
}

impl MouseButtons {
    fn bits(self) -> u8 {
        let [left, right, middle] = [self.left, self.right, self.middle].map(u8::from);
        left | right << 1 | middle << 2 | u8::from(self.back) << 3 | u8::from(self.forward) << 4
    }
}

/// A PS/2 mouse.
#[derive(Clone, Serialize, Deserialize)]
pub struct Mouse {
    out: Outbox,
    reporting: bool,
    remote: bool,
    wrap: bool,
    scaling: bool,
    resolution: u8,
    rate: u8,
    /// 0, 3 for an IntelliMouse, or 4 for an IntelliMouse Explorer.
    id: u8,
    /// The last sample rates set, for the knock.
    knock: [u8; 3],
    buttons: u8,
    /// Movement that no packet has told of yet.
    moved: (i32, i32, i32),
    command: Option<u8>,
}

impl Default for Mouse {
    fn default() -> Self {
        Self::new()
    }
}

impl Mouse {
    /// Packets that wait at most; movement beyond is added up.
    const PACKETS: usize = 4;

    /// A mouse that has passed its power-on test.
    pub fn new() -> Self {
        Self {
            out: Outbox::default(),
            reporting: false,
            remote: false,
            wrap: false,
            scaling: false,
            resolution: 2,
            rate: 100,
            id: 0,
            knock: [0; 3],
            buttons: 0,
            moved: (0, 0, 0),
            command: None,
        }
    }

    /// Whether it is a mouse that can be.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let (x, y, z) = self.moved;
        if [x, y, z].iter().any(|d| d.unsigned_abs() > 0x7fff) {
            return Err(Invalid("the movement"));
        }
        self.out.check(4 * (Self::PACKETS + 1))
    }

    /// The byte that comes next over the wire.
    pub fn take(&mut self) -> Option<u8> {
        let byte = self.out.take();
        if self.out.data.is_empty() && self.moved != (0, 0, 0) {
            self.report();
        }
        byte
    }

    /// The buttons that are down.
    pub fn buttons(&self) -> MouseButtons {
        let [left, right, middle, back, forward] = [0, 1, 2, 3, 4].map(|bit| self.buttons >> bit & 1 != 0);
        MouseButtons { left, right, middle, back, forward }
    }

    /// The mouse moves by `dx` to the right, `dy` up, and `dz` wheel steps towards the user.
    pub fn moved(&mut self, dx: i32, dy: i32, dz: i32, buttons: MouseButtons) {
        let far = |sum: i32, d: i32| sum.saturating_add(d).clamp(-0x7fff, 0x7fff);
        self.moved = (far(self.moved.0, dx), far(self.moved.1, dy), far(self.moved.2, dz));
        let changed = std::mem::replace(&mut self.buttons, buttons.bits()) != buttons.bits();
        if changed || self.moved != (0, 0, 0) {
            self.report();
        }
    }

    /// In stream mode: queues a packet if there is room.
    fn report(&mut self) {
        if self.remote {
            // Movement adds up until it is asked for.
            return;
        }
        if !self.reporting || self.wrap {
            self.moved = (0, 0, 0);
            return;
        }
        if self.out.data.len() < Self::PACKETS * 4 - 3 {
            let (packet, n) = self.packet();
            self.out.data.extend(&packet[..n]);
        }
    }

    /// A movement packet; what does not fit its nine bits is left for the next.
    fn packet(&mut self) -> ([u8; 4], usize) {
        let take = |sum: &mut i32, limit: i32| {
            let d = (*sum).clamp(-limit, limit - 1);
            *sum -= d;
            d
        };
        let dx = take(&mut self.moved.0, 256);
        let dy = take(&mut self.moved.1, 256);
        let head = self.buttons & 7 | 0x08 | u8::from(dx < 0) << 4 | u8::from(dy < 0) << 5;
        if self.id >= 3 {
            let dz = take(&mut self.moved.2, 8) as u8;
            // An Explorer has buttons above four bits of the wheel.
            let last = if self.id == 4 { dz & 0x0f | (self.buttons & 0x18) << 1 } else { dz };
            ([head, dx as u8, dy as u8, last], 4)
        } else {
            self.moved.2 = 0;
            ([head, dx as u8, dy as u8, 0], 3)
        }
    }

    fn defaults(&mut self) {
        self.out.data.clear();
        self.moved = (0, 0, 0);
        (self.reporting, self.remote, self.scaling, self.resolution, self.rate) =
            (false, false, false, 2, 100);
    }

    /// A byte from the computer.
    pub fn write(&mut self, byte: u8) {
        if let Some(command) = self.command.take() {
            match command {
                0xe8 => self.resolution = byte & 3,
                _ => {
                    self.rate = byte;
                    self.knock = [self.knock[1], self.knock[2], byte];
                    match self.knock {
                        [200, 100, 80] => self.id = 3,
                        // An Explorer is an IntelliMouse first.
                        [200, 200, 80] if self.id == 3 => self.id = 4,
                        _ => {}
                    }
                }
            }
            return self.out.reply(&[ACK]);
        }
        if self.wrap && byte != 0xec && byte != 0xff {
            return self.out.reply(&[byte]);
        }
        if byte != RESEND {
            self.out.replies.clear();
        }
        match byte {
            0xe6 | 0xe7 => self.scaling = byte == 0xe7,
            0xe8 | 0xf3 => self.command = Some(byte),
            0xe9 => {
                // The status shows the buttons in another order than a packet: right, middle, left.
                let b = self.buttons;
                let status = (b >> 1 & 1)
                    | (b >> 2 & 1) << 1
                    | (b & 1) << 2
                    | u8::from(self.scaling) << 4
                    | u8::from(self.reporting) << 5
                    | u8::from(self.remote) << 6;
                return self.out.reply(&[ACK, status, self.resolution, self.rate]);
            }
            0xea => self.remote = false,
            0xeb => {
                let (packet, n) = self.packet();
                self.out.reply(&[ACK]);
                return self.out.reply(&packet[..n]);
            }
            0xec => self.wrap = false,
            0xee => self.wrap = true,
            0xf0 => {
                self.out.data.clear();
                self.remote = true;
            }
            0xf2 => return self.out.reply(&[ACK, self.id]),
            0xf4 => self.reporting = true,
            0xf5 => {
                self.reporting = false;
                self.out.data.clear();
            }
            0xf6 => self.defaults(),
            RESEND => {
                self.out.replies.push_front(self.out.last);
                return self.out.replies.truncate(16);
            }
            0xff => {
                self.defaults();
                (self.wrap, self.id, self.knock) = (false, 0, [0; 3]);
                return self.out.reply(&[ACK, BAT_PASSED, 0x00]);
            }
            _ => return self.out.reply(&[RESEND]),
        }
        self.out.reply(&[ACK]);
    }
}

#[cfg(test)]
mod tests;
