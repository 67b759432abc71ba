//! Keyboard layouts: which key has a character, for those who send characters. The guest has to have the same layout.
//!
//! A layout is written as it looks: four rows of keys, without, with Shift and with AltGr; a blank is a key without a
//! character. Accents that wait for a letter on the guest's side stand as themselves.
use crate::input::ps2::Key;

/// What is held for a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shift {
    /// Nothing.
    None,
    /// Shift.
    Shift,
    /// The right Alt.
    AltGr,
}

/// A row without, with Shift, with AltGr.
type Row = [&'static str; 3];

/// A layout.
#[derive(Debug)]
pub struct Layout {
    /// Its name, as QEMU's `-k` has it.
    pub name: &'static str,
    rows: [Row; 4],
}

/// Scan codes (set 1) of the rows' keys.
const CODES: [&[u8]; 4] = [
    &[0x29, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d],
    &[0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b],
    &[0x1e, 0x1f, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x2b],
    &[0x56, 0x2c, 0x2d, 0x2e, 0x2f, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35],
];

const QWERTY: Row = ["qwertyuiop[]", "QWERTYUIOP{}", ""];
const NORDIC: Row = ["qwertyuiopå¨", "QWERTYUIOPÅ^", "  €        ~"];
const BOTTOM: Row = ["<zxcvbnm,.-", ">ZXCVBNM;:_", "|      µ   "];
const SWEDISH: [Row; 4] = [
    ["§1234567890+´", "½!\"#¤%&/()=?`", "  @£$€ {[]}\\"],
    NORDIC,
    ["asdfghjklöä'", "ASDFGHJKLÖÄ*", ""],
    BOTTOM,
];
const AMERICAN: [Row; 4] = [
    ["`1234567890-=", "~!@#$%^&*()_+", ""],
    QWERTY,
    ["asdfghjkl;'\\", "ASDFGHJKL:\"|", ""],
    [" zxcvbnm,./", " ZXCVBNM<>?", ""],
];

/// All there are; the first is the usual one.
pub static LAYOUTS: &[Layout] = &[
    Layout { name: "en-us", rows: AMERICAN },
    Layout {
        name: "en-gb",
        rows: [
            ["`1234567890-=", "¬!\"£$%^&*()_+", "¦   €"],
            QWERTY,
            ["asdfghjkl;'#", "ASDFGHJKL:@~", ""],
            ["\\zxcvbnm,./", "|ZXCVBNM<>?", ""],
        ],
    },
    Layout {
        name: "da",
        rows: [
            ["½1234567890+´", "§!\"#¤%&/()=?`", "  @£$€ {[]}|"],
            NORDIC,
            ["asdfghjklæø'", "ASDFGHJKLÆØ*", ""],
            ["<zxcvbnm,.-", ">ZXCVBNM;:_", "\\"],
        ],
    },
    Layout {
        name: "de",
        rows: [
            ["^1234567890ß´", "°!\"§$%&/()=?`", "  ²³   {[]}\\"],
            ["qwertzuiopü+", "QWERTZUIOPÜ*", "@ €        ~"],
            ["asdfghjklöä#", "ASDFGHJKLÖÄ'", ""],
            ["<yxcvbnm,.-", ">YXCVBNM;:_", "|      µ"],
        ],
    },
    Layout {
        name: "de-ch",
        rows: [
            ["§1234567890'^", "°+\"*ç%&/()=?`", " ¦@#  ¬|¢  ´~"],
            ["qwertzuiopü¨", "QWERTZUIOPè!", "  €       []"],
            ["asdfghjklöä$", "ASDFGHJKLéà£", "          {}"],
            ["<yxcvbnm,.-", ">YXCVBNM;:_", "\\"],
        ],
    },
    Layout {
        name: "es",
        rows: [
            ["º1234567890'¡", "ª!\"·$%&/()=?¿", "\\|@#~€¬"],
            ["qwertyuiop`+", "QWERTYUIOP^*", "  €       []"],
            ["asdfghjklñ´ç", "ASDFGHJKLÑ¨Ç", "          {}"],
            ["<zxcvbnm,.-", ">ZXCVBNM;:_", ""],
        ],
    },
    Layout { name: "fi", rows: SWEDISH },
    Layout {
        name: "fr",
        rows: [
            ["²&é\"'(-è_çà)=", " 1234567890°+", "  ~#{[|`\\^@]}"],
            ["azertyuiop^$", "AZERTYUIOP¨£", "  €        ¤"],
            ["qsdfghjklmù*", "QSDFGHJKLM%µ", ""],
            ["<wxcvbn,;:!", ">WXCVBN?./§", ""],
        ],
    },
    Layout {
        name: "fr-be",
        rows: [
            ["²&é\"'(§è!çà)-", "³1234567890°_", " |@#  ^  {}"],
            ["azertyuiop^$", "AZERTYUIOP¨*", "  €       []"],
            ["qsdfghjklmùµ", "QSDFGHJKLM%£", "          ´`"],
            ["<wxcvbn,;:=", ">WXCVBN?./+", "\\         ~"],
        ],
    },
    Layout {
        name: "it",
        rows: [
            ["\\1234567890'ì", "|!\"£$%&/()=?^", ""],
            ["qwertyuiopè+", "QWERTYUIOPé*", "  €       []"],
            ["asdfghjklòàù", "ASDFGHJKLç°§", "         @#"],
            ["<zxcvbnm,.-", ">ZXCVBNM;:_", ""],
        ],
    },
    Layout {
        name: "nl",
        rows: [
            ["@1234567890/°", "§!\"#$%&_()'?~", ""],
            ["qwertyuiop¨*", "QWERTYUIOP^|", "  €"],
            ["asdfghjkl+´<", "ASDFGHJKL±`>", ""],
            ["]zxcvbnm,.-", "[ZXCVBNM;:=", ""],
        ],
    },
    Layout {
        name: "no",
        rows: [
            ["|1234567890+\\", "§!\"#¤%&/()=?`", "  @£$€ {[]} ´"],
            NORDIC,
            ["asdfghjkløæ'", "ASDFGHJKLØÆ*", ""],
            ["<zxcvbnm,.-", ">ZXCVBNM;:_", ""],
        ],
    },
    Layout {
        name: "pl",
        rows: [
            AMERICAN[0],
            ["qwertyuiop[]", "QWERTYUIOP{}", "  ę     ó"],
            ["asdfghjkl;'\\", "ASDFGHJKL:\"|", "ąś      ł"],
            [" zxcvbnm,./", " ZXCVBNM<>?", " żźć  ń"],
        ],
    },
    Layout {
        name: "pt",
        rows: [
            ["\\1234567890'«", "|!\"#$%&/()=?»", "  @£§€ {[]}"],
            ["qwertyuiop+´", "QWERTYUIOP*`", "          ¨"],
            ["asdfghjklçº~", "ASDFGHJKLÇª^", ""],
            ["<zxcvbnm,.-", ">ZXCVBNM;:_", ""],
        ],
    },
    Layout { name: "sv", rows: SWEDISH },
];

/// The American one.
pub fn usual() -> &'static Layout {
    &LAYOUTS[0]
}

/// The layout of a name.
pub fn named(name: &str) -> Option<&'static Layout> {
    LAYOUTS.iter().find(|l| l.name == name)
}

impl Layout {
    /// The key that has a character, and what is held with it.
    pub fn find(&self, c: char) -> Option<(Key, Shift)> {
        if c == ' ' {
            return Some((Key::new(0x39), Shift::None));
        }
        for (n, shift) in [Shift::None, Shift::Shift, Shift::AltGr].into_iter().enumerate() {
            for (row, codes) in self.rows.iter().zip(CODES) {
                if let Some(at) = row[n].chars().position(|k| k == c) {
                    return Some((Key::new(*codes.get(at)?), shift));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_as_many_characters_as_keys() {
        for layout in LAYOUTS {
            for (row, codes) in layout.rows.iter().zip(CODES) {
                let counts = row.map(|keys| keys.chars().count());
                assert_eq!(counts[..2], [codes.len(); 2], "{} {row:?}", layout.name);
                assert!(counts[2] <= codes.len(), "{} {row:?}", layout.name);
            }
            // Letters and digits are everywhere, and what a command line takes.
            for c in ('a'..='z').chain('A'..='Z').chain('0'..='9').chain("-/.,:_".chars()) {
                assert!(layout.find(c).is_some(), "{} {c}", layout.name);
            }
            assert!(LAYOUTS.iter().filter(|l| l.name == layout.name).count() == 1);
        }
    }

    #[test]
    fn characters_are_where_the_keyboards_have_them() {
        let at = |layout: &str, c| named(layout).unwrap().find(c).map(|(k, s)| (k.code, s));
        assert_eq!(at("en-us", '<'), Some((0x33, Shift::Shift)));
        assert_eq!(at("de", 'z'), Some((0x15, Shift::None)));
        assert_eq!(at("de", '@'), Some((0x10, Shift::AltGr)));
        assert_eq!(at("de", '<'), Some((0x56, Shift::None)));
        assert_eq!(at("fr", 'a'), Some((0x10, Shift::None)));
        assert_eq!(at("fr", '1'), Some((0x02, Shift::Shift)));
        assert_eq!(at("sv", 'Ö'), Some((0x27, Shift::Shift)));
        assert_eq!(at("en-gb", '#'), Some((0x2b, Shift::None)));
        assert_eq!((at("en-us", 'ä'), at("it", ' ')), (None, Some((0x39, Shift::None))));
        assert!(named("tlh").is_none());
    }
}
