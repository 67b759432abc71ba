//! Scan code set 3: one code for each key, without prefixes; and for each key whether it repeats and tells of its
//! release.
//!
//! Source: IBM PS/2 Hardware Interface Technical Reference (1990), Keyboards, Scan Code Set 3.
use serde::{Deserialize, Serialize};

/// What a key sends, which can be chosen for each in set 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyType {
    /// When pressed, and again while it is held.
    Typematic,
    /// When pressed and when released.
    MakeBreak,
    /// When pressed.
    Make,
    /// When pressed, again while it is held, and when released.
    TypematicMakeBreak,
}

impl KeyType {
    /// It is sent again while it is held.
    pub fn repeats(self) -> bool {
        matches!(self, Self::Typematic | Self::TypematicMakeBreak)
    }

    /// Its release is sent.
    pub fn breaks(self) -> bool {
        matches!(self, Self::MakeBreak | Self::TypematicMakeBreak)
    }
}

/// Codes in set 3 of the keys with the codes 01h to 58h in set 1; 0 is none.
const PLAIN: [u8; 0x58] = [
    0x08, 0x16, 0x1e, 0x26, 0x25, 0x2e, 0x36, 0x3d, 0x3e, 0x46, 0x45, 0x4e, 0x55, 0x66, 0x0d,
    0x15, // 01-10
    0x1d, 0x24, 0x2d, 0x2c, 0x35, 0x3c, 0x43, 0x44, 0x4d, 0x54, 0x5b, 0x5a, 0x11, 0x1c, 0x1b,
    0x23, // 11-20
    0x2b, 0x34, 0x33, 0x3b, 0x42, 0x4b, 0x4c, 0x52, 0x0e, 0x12, 0x5c, 0x1a, 0x22, 0x21, 0x2a,
    0x32, // 21-30
    0x31, 0x3a, 0x41, 0x49, 0x4a, 0x59, 0x7e, 0x19, 0x29, 0x14, 0x07, 0x0f, 0x17, 0x1f, 0x27,
    0x2f, // 31-40
    0x37, 0x3f, 0x47, 0x4f, 0x76, 0x5f, 0x6c, 0x75, 0x7d, 0x84, 0x6b, 0x73, 0x74, 0x7c, 0x69,
    0x72, // 41-50
    0x7a, 0x70, 0x71, 0x57, 0x00, 0x13, 0x56, 0x5e, // 51-58
];

/// The same of keys with the prefix E0h.
const EXTENDED: [(u8, u8); 19] = [
    (0x1c, 0x79),
    (0x1d, 0x58),
    (0x35, 0x77),
    (0x37, 0x57),
    (0x38, 0x39),
    // Pause.
    (0x46, 0x62),
    (0x47, 0x6e),
    (0x48, 0x63),
    (0x49, 0x6f),
    (0x4b, 0x61),
    (0x4d, 0x6a),
    (0x4f, 0x65),
    (0x50, 0x60),
    (0x51, 0x6d),
    (0x52, 0x67),
    (0x53, 0x64),
    (0x5b, 0x8b),
    (0x5c, 0x8c),
    (0x5d, 0x8d),
];

/// The highest code.
pub const LAST: u8 = 0x8d;

/// The code of a key by that of set 1.
pub fn code(set1: u8, extended: bool) -> Option<u8> {
    if extended {
        return EXTENDED.iter().find(|(from, _)| *from == set1).map(|(_, to)| *to);
    }
    let n = usize::from(set1).checked_sub(1)?;
    PLAIN.get(n).copied().filter(|code| *code != 0)
}

/// Whether a key has this code.
pub fn is_key(code: u8) -> bool {
    PLAIN.contains(&code) && code != 0 || EXTENDED.iter().any(|(_, of)| *of == code)
}

/// What a key is after power-on.
pub fn usual(code: u8) -> KeyType {
    match code {
        // Both shifts, the left control and alternate keys, caps lock.
        0x11 | 0x12 | 0x14 | 0x19 | 0x59 => KeyType::MakeBreak,
        // Escape, functions, print screen, scroll lock, pause.
        0x07 | 0x08 | 0x0f | 0x17 | 0x1f | 0x27 | 0x2f | 0x37 | 0x3f | 0x47 | 0x4f | 0x56 | 0x57 | 0x5e
        | 0x5f | 0x62 => KeyType::Make,
        // The right control and alternate keys, those of later keyboards.
        0x39 | 0x58 | 0x8b..=0x8d => KeyType::Make,
        // Insert, home, end and pages; the keypad but for its plus.
        0x65 | 0x67 | 0x6d..=0x6f | 0x69 | 0x6b | 0x6c | 0x70..=0x77 | 0x79 | 0x7a | 0x7d | 0x7e | 0x84 => {
            KeyType::Make
        }
        _ => KeyType::Typematic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_a_code_of_its_own() {
        let plain = (1..=0x58).filter_map(|set1| code(set1, false));
        let mut all: Vec<u8> = plain.chain(EXTENDED.map(|(_, to)| to)).collect();
        let keys = all.len();
        all.sort();
        all.dedup();
        // Print screen and system request are one key.
        assert_eq!((keys, all.len()), (105 + 1, 105));
        assert!(all.iter().all(|code| is_key(*code) && *code <= LAST) && !is_key(0) && !is_key(0x8e));
        assert_eq!(
            (code(0, false), code(0x55, false), code(0x59, false), code(0x1e, true)),
            (None, None, None, None)
        );
    }

    #[test]
    fn keys_are_what_the_reference_says() {
        assert_eq!(
            [(0x1e, false), (0x2a, false), (0x1d, true)].map(|(c, e)| code(c, e).map(usual)),
            [Some(KeyType::Typematic), Some(KeyType::MakeBreak), Some(KeyType::Make)]
        );
        assert!(KeyType::TypematicMakeBreak.repeats() && KeyType::TypematicMakeBreak.breaks());
        assert!(!KeyType::Make.repeats() && !KeyType::Make.breaks() && !KeyType::Typematic.breaks());
    }
}
