//! What a terminal sends for keys, as keys of the PC's keyboard.
//!
//! Characters are looked up in the keyboard's layout; others are control characters, sequences of ECMA-48 terminals
//! (cursor keys, functions, with modifiers), and ESC before a character, which is Alt. Alt with a digit is no key: it
//! chooses what is shown.
use super::super::layout::{self, Layout, Shift};
use crate::input::ps2::Key;

/// Keys that go down and up, in their order.
pub type Stroke = Vec<(Key, bool)>;

/// Something was typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Typed {
    /// As keys.
    pub stroke: Stroke,
    /// As it came, for a text console.
    pub bytes: Vec<u8>,
    /// Alt and a digit: what is to be shown.
    pub console: Option<usize>,
}

const SHIFT: Key = Key::new(0x2a);
const CTRL: Key = Key::new(0x1d);
const ALT: Key = Key::new(0x38);
const ALT_GR: Key = Key::extended(0x38);
const ESCAPE: Key = Key::new(0x01);
const ENTER: Key = Key::new(0x1c);
const TAB: Key = Key::new(0x0f);
const BACKSPACE: Key = Key::new(0x0e);

/// Sequences of at most so many bytes.
const MOST: usize = 16;

/// Bytes to keys.
pub struct Decoder {
    layout: &'static Layout,
    /// What has come of a sequence or a character.
    waiting: Vec<u8>,
}

/// A key with others held.
fn stroke(modifiers: &[Key], key: Key) -> Stroke {
    let down = modifiers.iter().chain([&key]).map(|k| (*k, true));
    let up = [&key].into_iter().chain(modifiers.iter().rev()).map(|k| (*k, false));
    down.chain(up).collect()
}

impl Decoder {
    /// For a keyboard of this layout.
    pub fn new(layout: &'static Layout) -> Self {
        Self { layout, waiting: Vec::new() }
    }

    /// Whether what has come may be the beginning of more.
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// What has come is all.
    pub fn nothing_came(&mut self) -> Vec<Typed> {
        let bytes = std::mem::take(&mut self.waiting);
        match bytes.as_slice() {
            [] => Vec::new(),
            [0x1b] => vec![Typed { stroke: stroke(&[], ESCAPE), bytes, console: None }],
            // Alt with [ or O.
            [0x1b, c] => vec![Typed { stroke: self.character(char::from(*c), &[ALT]), bytes, console: None }],
            _ => Vec::new(),
        }
    }

    /// Takes bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> Vec<Typed> {
        let mut typed = Vec::new();
        for b in bytes {
            self.waiting.push(*b);
            if let Some(what) = self.whole() {
                let bytes = std::mem::take(&mut self.waiting);
                typed.push(Typed { bytes, ..what });
            } else if self.waiting.len() >= MOST {
                self.waiting.clear();
            }
        }
        typed
    }

    /// What waits as keys, if it is whole; what is none has no keys.
    fn whole(&self) -> Option<Typed> {
        let keys = |stroke: Stroke| Some(Typed { stroke, ..Typed::default() });
        match self.waiting.as_slice() {
            [] | [0x1b] | [0x1b, b'[' | b'O'] => None,
            [0x1b, b'O', c] => keys(function(*c, &[])),
            // The Linux console's F1 to F5.
            [0x1b, b'[', b'['] => None,
            [0x1b, b'[', b'[', c @ b'A'..=b'E'] => keys(stroke(&[], Key::new(0x3b + c - b'A'))),
            [0x1b, b'[', parameters @ .., end] => {
                if !(0x40..=0x7e).contains(end) {
                    return None;
                }
                keys(sequence(parameters, *end))
            }
            [0x1b, c @ b'1'..=b'9'] => {
                Some(Typed { console: Some(usize::from(c - b'1')), ..Typed::default() })
            }
            [0x1b, 0x1b] => keys(stroke(&[ALT], ESCAPE)),
            [0x1b, rest @ ..] => self.text(rest, &[ALT]).and_then(keys),
            all => self.text(all, &[]).and_then(keys),
        }
    }

    /// A character in UTF-8, if it is whole.
    fn text(&self, bytes: &[u8], modifiers: &[Key]) -> Option<Stroke> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Some(text.chars().flat_map(|c| self.character(c, modifiers)).collect()),
            Err(e) if e.error_len().is_none() => None,
            Err(_) => Some(Vec::new()),
        }
    }

    fn character(&self, c: char, modifiers: &[Key]) -> Stroke {
        let with = |more: &[Key], key| stroke(&[modifiers, more].concat(), key);
        match c {
            '\r' | '\n' => with(&[], ENTER),
            '\t' => with(&[], TAB),
            '\x7f' | '\x08' => with(&[], BACKSPACE),
            '\0' => with(&[CTRL], Key::new(0x39)),
            '\x01'..='\x1a' => {
                let letter = char::from(c as u8 - 1 + b'a');
                self.layout.find(letter).map_or_else(Vec::new, |(key, _)| with(&[CTRL], key))
            }
            // Ctrl with \ ] ^ _, at their American places.
            '\x1c' => with(&[CTRL], Key::new(0x2b)),
            '\x1d' => with(&[CTRL], Key::new(0x1b)),
            '\x1e' => with(&[CTRL, SHIFT], Key::new(0x07)),
            '\x1f' => with(&[CTRL, SHIFT], Key::new(0x0c)),
            _ => match self.layout.find(c) {
                Some((key, Shift::None)) => with(&[], key),
                Some((key, Shift::Shift)) => with(&[SHIFT], key),
                Some((key, Shift::AltGr)) => with(&[ALT_GR], key),
                Some((key, Shift::Both)) => with(&[SHIFT, ALT_GR], key),
                None => Vec::new(),
            },
        }
    }
}

/// Keys of the last letter of a sequence.
fn function(c: u8, modifiers: &[Key]) -> Stroke {
    let key = match c {
        b'A' => Key::extended(0x48),
        b'B' => Key::extended(0x50),
        b'C' => Key::extended(0x4d),
        b'D' => Key::extended(0x4b),
        b'F' => Key::extended(0x4f),
        b'H' => Key::extended(0x47),
        b'E' => Key::new(0x4c),
        b'P'..=b'S' => Key::new(0x3b + c - b'P'),
        b'M' => Key::extended(0x1c),
        b'Z' => return stroke(&[SHIFT], TAB),
        _ => return Vec::new(),
    };
    stroke(modifiers, key)
}

/// `CSI number ; modifiers final`.
fn sequence(parameters: &[u8], end: u8) -> Stroke {
    let text = std::str::from_utf8(parameters).unwrap_or_default();
    let mut numbers = text.split(';').map(|n| n.parse::<u8>().unwrap_or(0));
    let (number, modifiers) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(1));
    let held = modifiers.saturating_sub(1);
    let held: Vec<Key> = [(1, SHIFT), (2, ALT), (4, CTRL)]
        .into_iter()
        .filter(|(bit, _)| held & bit != 0)
        .map(|(_, k)| k)
        .collect();
    if end != b'~' {
        return function(end, &held);
    }
    let key = match number {
        1 | 7 => Key::extended(0x47),
        2 => Key::extended(0x52),
        3 => Key::extended(0x53),
        4 | 8 => Key::extended(0x4f),
        5 => Key::extended(0x49),
        6 => Key::extended(0x51),
        11..=15 => Key::new(0x3b + number - 11),
        17..=21 => Key::new(0x40 + number - 17),
        23 | 24 => Key::new(0x57 + number - 23),
        _ => return Vec::new(),
    };
    stroke(&held, key)
}

/// The American layout, for tests and as the usual one.
pub fn usual() -> &'static Layout {
    layout::usual()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(bytes: &[u8]) -> Vec<(u8, bool)> {
        let mut d = Decoder::new(usual());
        let mut typed: Vec<Typed> = bytes.iter().flat_map(|b| d.bytes(&[*b])).collect();
        typed.extend(d.nothing_came());
        typed.iter().flat_map(|t| &t.stroke).map(|(k, down)| (k.code, *down)).collect()
    }

    #[test]
    fn bytes_of_a_terminal_are_keys() {
        assert_eq!(codes(b"a"), [(0x1e, true), (0x1e, false)]);
        assert_eq!(codes(b"A"), [(0x2a, true), (0x1e, true), (0x1e, false), (0x2a, false)]);
        assert_eq!(codes(b"\x03"), [(0x1d, true), (0x2e, true), (0x2e, false), (0x1d, false)]);
        assert_eq!(codes(b"\r\x7f\t")[..3], [(0x1c, true), (0x1c, false), (0x0e, true)]);
        assert_eq!(codes(b"\x1b"), [(0x01, true), (0x01, false)]);
        assert_eq!(codes(b"\x1b[A\x1bOD").iter().map(|c| c.0).collect::<Vec<_>>(), [0x48, 0x48, 0x4b, 0x4b]);
        assert_eq!(codes(b"\x1b[24~"), [(0x58, true), (0x58, false)]);
        assert_eq!(codes(b"\x1b[3;5~"), [(0x1d, true), (0x53, true), (0x53, false), (0x1d, false)]);
        assert_eq!(codes(b"\x1bx"), [(0x38, true), (0x2d, true), (0x2d, false), (0x38, false)]);
        assert_eq!(codes(b"\x1b[999999;;;Q\xff\xfe"), [(0x3c, true), (0x3c, false)]);
        assert_eq!(codes(&[b"\x1b[".as_slice(), &[b'1'; 100]].concat()), [(2, true), (2, false)].repeat(86));
    }

    #[test]
    fn alt_and_a_digit_choose_what_is_shown() {
        let mut d = Decoder::new(usual());
        assert_eq!(d.bytes(b"\x1b2")[0].console, Some(1));
        assert_eq!(d.bytes(b"\x1b1")[0].console, Some(0));
        assert_eq!(d.bytes("ä".as_bytes())[0].bytes, "ä".as_bytes());
        let typed = d.bytes(b"qu");
        assert_eq!(typed.iter().map(|t| t.bytes.as_slice()).collect::<Vec<_>>(), [b"q", b"u"]);
    }
}
