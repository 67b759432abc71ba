//! Keysyms of X, as VNC has keys, to keys of the PC's keyboard, by their places in a layout.
//!
//! A client that knows scan codes sends these, which needs no layout: [`from_code`].
use crate::display::layout::{Layout, Shift};
use crate::input::ps2::Key;

/// Keysyms that are no characters, and their scan codes; with 100h for those with the prefix E0h.
const NAMED: [(u32, u16); 75] = [
    (0xff08, 0x0e),
    (0xff09, 0x0f),
    (0xfe20, 0x0f),
    (0xff0d, 0x1c),
    (0xff13, 0x146),
    (0xff14, 0x46),
    (0xff15, 0x54),
    (0xff1b, 0x01),
    (0xff50, 0x147),
    (0xff51, 0x14b),
    (0xff52, 0x148),
    (0xff53, 0x14d),
    (0xff54, 0x150),
    (0xff55, 0x149),
    (0xff56, 0x151),
    (0xff57, 0x14f),
    (0xff61, 0x137),
    (0xff63, 0x152),
    (0xff67, 0x15d),
    (0xff6b, 0x146),
    (0xff7e, 0x138),
    (0xff7f, 0x45),
    (0xff8d, 0x11c),
    (0xff95, 0x47),
    (0xff96, 0x4b),
    (0xff97, 0x48),
    (0xff98, 0x4d),
    (0xff99, 0x50),
    (0xff9a, 0x49),
    (0xff9b, 0x51),
    (0xff9c, 0x4f),
    (0xff9d, 0x4c),
    (0xff9e, 0x52),
    (0xff9f, 0x53),
    (0xffaa, 0x37),
    (0xffab, 0x4e),
    (0xffac, 0x53),
    (0xffad, 0x4a),
    (0xffae, 0x53),
    (0xffaf, 0x135),
    (0xffb0, 0x52),
    (0xffb1, 0x4f),
    (0xffb2, 0x50),
    (0xffb3, 0x51),
    (0xffb4, 0x4b),
    (0xffb5, 0x4c),
    (0xffb6, 0x4d),
    (0xffb7, 0x47),
    (0xffb8, 0x48),
    (0xffb9, 0x49),
    (0xffbe, 0x3b),
    (0xffbf, 0x3c),
    (0xffc0, 0x3d),
    (0xffc1, 0x3e),
    (0xffc2, 0x3f),
    (0xffc3, 0x40),
    (0xffc4, 0x41),
    (0xffc5, 0x42),
    (0xffc6, 0x43),
    (0xffc7, 0x44),
    (0xffc8, 0x57),
    (0xffc9, 0x58),
    (0xffe1, 0x2a),
    (0xffe2, 0x36),
    (0xffe3, 0x1d),
    (0xffe4, 0x11d),
    (0xffe5, 0x3a),
    (0xffe7, 0x38),
    (0xffe8, 0x138),
    (0xffe9, 0x38),
    (0xffea, 0x138),
    (0xffeb, 0x15b),
    (0xffec, 0x15c),
    (0xffff, 0x153),
    (0xfe03, 0x138),
];

fn key(code: u16) -> Key {
    if code & 0x100 != 0 { Key::extended(code as u8) } else { Key::new(code as u8) }
}

/// Accents that wait for a letter, and the characters by which layouts know them.
const DEAD: [(u32, char); 13] = [
    (0xfe50, '`'),
    (0xfe51, '´'),
    (0xfe52, '^'),
    (0xfe53, '~'),
    (0xfe54, '¯'),
    (0xfe55, '˘'),
    (0xfe56, '˙'),
    (0xfe57, '¨'),
    (0xfe58, '°'),
    (0xfe59, '˝'),
    (0xfe5a, 'ˇ'),
    (0xfe5b, '¸'),
    (0xfe5c, '˛'),
];

/// Characters that have keysyms of their own beside Unicode's: the first one's, and those that follow it. Source: X's
/// keysymdef.h, as far as the layouts have them.
#[rustfmt::skip]
const OLDER: &[(u32, &str)] = &[
    (0x01a1, "Ą˘Ł"),
    (0x01a9, "ŠŞ"),
    (0x01ae, "Ž"),
    (0x01b1, "ą˛ł"),
    (0x01b7, "ˇ"),
    (0x01b9, "šş"),
    (0x01bd, "˝ž"),
    (0x01c6, "Ć"),
    (0x01c8, "Č"),
    (0x01ca, "Ę"),
    (0x01d0, "Đ"),
    (0x01d5, "Ő"),
    (0x01db, "Ű"),
    (0x01e6, "ć"),
    (0x01e8, "č"),
    (0x01ea, "ę"),
    (0x01ec, "ě"),
    (0x01f0, "đ"),
    (0x01f5, "ő"),
    (0x01f8, "řů"),
    (0x01fb, "ű"),
    (0x01ff, "˙"),
    (0x02a1, "Ħ"),
    (0x02a9, "İ"),
    (0x02ab, "Ğ"),
    (0x02b1, "ħ"),
    (0x02b9, "ı"),
    (0x02bb, "ğ"),
    (0x03a2, "ĸŖ"),
    (0x03a6, "Ļ"),
    (0x03aa, "ĒĢŦ"),
    (0x03b3, "ŗ"),
    (0x03b6, "ļ"),
    (0x03ba, "ēģŧŊ"),
    (0x03bf, "ŋĀ"),
    (0x03c7, "Į"),
    (0x03cc, "Ė"),
    (0x03cf, "Ī"),
    (0x03d1, "ŅŌĶ"),
    (0x03d9, "Ų"),
    (0x03de, "Ū"),
    (0x03e0, "ā"),
    (0x03e7, "į"),
    (0x03ec, "ė"),
    (0x03ef, "ī"),
    (0x03f1, "ņōķ"),
    (0x03f9, "ų"),
    (0x03fe, "ū"),
    (0x05ac, "،"),
    (0x05bb, "؛"),
    (0x05bf, "؟"),
    (0x05c1, "ءآأؤإئابةتثجحخدذرزسشصضطظعغ"),
    (0x05e0, "ـفقكلمنهوىيًٌٍَُِّْ"),
    (0x06a2, "ѓё"),
    (0x06a5, "ѕ"),
    (0x06a8, "јљњ"),
    (0x06ac, "ќ"),
    (0x06af, "џ№"),
    (0x06b2, "ЃЁ"),
    (0x06b5, "Ѕ"),
    (0x06b8, "ЈЉЊ"),
    (0x06bc, "Ќ"),
    (0x06bf, "ЏюабцдефгхийклмнопярстужвьызшэщчъЮАБЦДЕФГХИЙКЛМНОПЯРСТУЖВЬЫЗШЭЩЧЪ"),
    (0x07d9, "Ω"),
    (0x07f0, "π"),
    (0x08bc, "≤≠≥"),
    (0x08fb, "←↑→↓"),
    (0x0aa9, "—–"),
    (0x0aae, "…"),
    (0x0ac3, "⅛⅜⅝⅞"),
    (0x0ac9, "™"),
    (0x0ad0, "‘’“”"),
    (0x0ad5, "‰′″"),
    (0x0af1, "†‡"),
    (0x0afd, "‚„"),
    (0x0da1, "กขฃคฅฆงจฉชซฌญฎฏฐฑฒณดตถทธนบปผฝพฟภมยรฤลฦวศษสหฬอฮฯะัาำิีึืฺุู"),
    (0x0ddf, "฿เแโใไๅๆ็่้๊๋์ํ"),
    (0x0df0, "๐๑๒๓๔๕๖๗๘๙"),
    (0x13bc, "Œœ"),
];

fn older(keysym: u32) -> Option<char> {
    OLDER.iter().find_map(|(first, row)| row.chars().nth(usize::try_from(keysym.checked_sub(*first)?).ok()?))
}

/// Caps Lock.
pub const CAPS_LOCK: u32 = 0xffe5;

/// Keys that change what others mean: both Shifts, Controls, Alts and Windows keys.
pub const MODIFIERS: [Key; 8] = [
    Key::new(0x2a),
    Key::new(0x36),
    Key::new(0x1d),
    Key::extended(0x1d),
    Key::new(0x38),
    Key::extended(0x38),
    Key::extended(0x5b),
    Key::extended(0x5c),
];

/// The character of a keysym.
fn character(keysym: u32) -> Option<char> {
    // Latin-1 is as it is, the euro has a number of its own, others are Unicode's.
    match keysym {
        0x20..=0xff | 0x20ac => char::from_u32(keysym),
        0x0100_0000..0x0111_0000 => char::from_u32(keysym & 0x00ff_ffff),
        0x0100..0xfe00 => older(keysym),
        _ => DEAD.iter().find(|(k, _)| *k == keysym).map(|(_, c)| *c),
    }
}

/// The key that has a keysym.
pub fn from_keysym(keysym: u32, layout: &Layout) -> Option<Key> {
    if let Some((_, code)) = NAMED.iter().find(|(k, _)| *k == keysym) {
        return Some(key(*code));
    }
    layout.find(character(keysym)?).map(|(key, _)| key)
}

/// What a keyboard of this layout has held for a keysym's character.
pub fn held_for(keysym: u32, layout: &Layout) -> &'static [Key] {
    const SHIFT: Key = Key::new(0x2a);
    const ALT_GR: Key = Key::extended(0x38);
    if NAMED.iter().any(|(k, _)| *k == keysym) {
        return &[];
    }
    match character(keysym).and_then(|c| layout.find(c)) {
        Some((_, Shift::Shift)) => &[SHIFT],
        Some((_, Shift::AltGr)) => &[ALT_GR],
        Some((_, Shift::Both)) => &[SHIFT, ALT_GR],
        Some((_, Shift::None)) | None => &[],
    }
}

/// Whether Caps Lock stands for Shift here.
pub fn is_letter(keysym: u32) -> bool {
    character(keysym).is_some_and(char::is_alphabetic)
}

/// The key of a scan code as QEMU's clients send it: set 1, with bit 7 for those with the prefix E0h.
pub fn from_code(code: u32) -> Option<Key> {
    match code {
        0x01..=0x7f => Some(Key::new(code as u8)),
        0x81..=0xff => Some(Key::extended(code as u8 & 0x7f)),
        0xe001..=0xe07f => Some(Key::extended(code as u8)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::display::layout::{named, usual};

    #[test]
    fn keysyms_are_keys_of_an_american_keyboard() {
        for (keysym, code) in [
            ('a' as u32, 0x1e),
            ('A' as u32, 0x1e),
            ('~' as u32, 0x29),
            ('\\' as u32, 0x2b),
            ('?' as u32, 0x35),
            (' ' as u32, 0x39),
            ('0' as u32, 0x0b),
            (0xff0d, 0x1c),
            (0xffbe, 0x3b),
            (0xffb6, 0x4d),
        ] {
            assert_eq!(from_keysym(keysym, usual()), Some(Key::new(code)), "{keysym:#x}");
        }
        assert_eq!(from_keysym(0xff51, usual()), Some(Key::extended(0x4b)));
        assert_eq!(from_keysym(0xffff, usual()), Some(Key::extended(0x53)));
        assert_eq!((from_keysym(0x20ac, usual()), from_keysym(u32::MAX, usual())), (None, None));
        let german = named("de").unwrap();
        let keys = [0x20ac, 0xe4, 0x7a, 0xfe51, 0x0100_20ac].map(|k| from_keysym(k, german));
        assert_eq!(keys, [0x12, 0x28, 0x15, 0x0d, 0x12].map(|code| Some(Key::new(code))));
        let russian = named("ru").unwrap();
        let keys = [0x6c6, 0x0100_0444, 0x66, 0x6e6].map(|k| from_keysym(k, russian));
        assert_eq!(
            keys,
            [Some(Key::new(0x1e)), Some(Key::new(0x1e)), Some(Key::new(0x21)), Some(Key::new(0x1e))]
        );
        let codes = [0x1e, 0xcb, 0xe04b, 0, 0x80, 0x1_0000].map(from_code);
        let left = Some(Key::extended(0x4b));
        assert_eq!(codes, [Some(Key::new(0x1e)), left, left, None, None, None]);
    }
}
