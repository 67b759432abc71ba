//! Keyboard layouts: which key has a character, for those who send characters. The guest has to have the same layout.
//!
//! A layout is written as it looks: four rows of keys, without, with Shift, with AltGr and with both; a blank is a key
//! without a character, or one that it has without more being held. Accents that wait for a letter on the guest's side
//! stand as themselves. Layouts without Latin letters have them where an American keyboard does, as a guest that
//! switches between both.
//!
//! Source of the layouts from "ar" on: X's keyboard configuration data (xkb-data 2.35.1).
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
    /// Shift and the right Alt.
    Both,
}

/// A row without, with Shift, with AltGr, with both.
type Row = [&'static str; 4];

/// A layout.
#[derive(Debug)]
pub struct Layout {
    /// Its name, as QEMU's `-k` has it.
    pub name: &'static str,
    rows: [Row; 4],
}

/// Scan codes (set 1) of the rows' keys.
const CODES: [&[u8]; 4] = [
    // The last one is on Japanese keyboards.
    &[0x29, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x7d],
    &[0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b],
    &[0x1e, 0x1f, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x2b],
    // The last one is on Japanese and Brazilian keyboards.
    &[0x56, 0x2c, 0x2d, 0x2e, 0x2f, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x73],
];

const QWERTY: Row = ["qwertyuiop[]", "QWERTYUIOP{}", "", ""];
const NORDIC: Row = ["qwertyuiopå¨", "QWERTYUIOPÅ^", "  €        ~", ""];
const BOTTOM: Row = ["<zxcvbnm,.-", ">ZXCVBNM;:_", "|      µ   ", ""];
const SWEDISH: [Row; 4] = [
    ["§1234567890+´", "½!\"#¤%&/()=?`", "  @£$€ {[]}\\", ""],
    NORDIC,
    ["asdfghjklöä'", "ASDFGHJKLÖÄ*", "", ""],
    BOTTOM,
];
const AMERICAN: [Row; 4] = [
    ["`1234567890-=", "~!@#$%^&*()_+", "", ""],
    QWERTY,
    ["asdfghjkl;'\\", "ASDFGHJKL:\"|", "", ""],
    [" zxcvbnm,./", " ZXCVBNM<>?", "", ""],
];

/// All there are; the first is the usual one.
pub static LAYOUTS: &[Layout] = &[
    Layout { name: "en-us", rows: AMERICAN },
    Layout {
        name: "en-gb",
        rows: [
            ["`1234567890-=", "¬!\"£$%^&*()_+", "¦   €", ""],
            QWERTY,
            ["asdfghjkl;'#", "ASDFGHJKL:@~", "", ""],
            ["\\zxcvbnm,./", "|ZXCVBNM<>?", "", ""],
        ],
    },
    Layout {
        name: "da",
        rows: [
            ["½1234567890+´", "§!\"#¤%&/()=?`", "  @£$€ {[]}|", ""],
            NORDIC,
            ["asdfghjklæø'", "ASDFGHJKLÆØ*", "", ""],
            ["<zxcvbnm,.-", ">ZXCVBNM;:_", "\\", ""],
        ],
    },
    Layout {
        name: "de",
        rows: [
            ["^1234567890ß´", "°!\"§$%&/()=?`", "  ²³   {[]}\\", ""],
            ["qwertzuiopü+", "QWERTZUIOPÜ*", "@ €        ~", ""],
            ["asdfghjklöä#", "ASDFGHJKLÖÄ'", "", ""],
            ["<yxcvbnm,.-", ">YXCVBNM;:_", "|      µ", ""],
        ],
    },
    Layout {
        name: "de-ch",
        rows: [
            ["§1234567890'^", "°+\"*ç%&/()=?`", " ¦@#  ¬|¢  ´~", ""],
            ["qwertzuiopü¨", "QWERTZUIOPè!", "  €       []", ""],
            ["asdfghjklöä$", "ASDFGHJKLéà£", "          {}", ""],
            ["<yxcvbnm,.-", ">YXCVBNM;:_", "\\", ""],
        ],
    },
    Layout {
        name: "es",
        rows: [
            ["º1234567890'¡", "ª!\"·$%&/()=?¿", "\\|@#~€¬", ""],
            ["qwertyuiop`+", "QWERTYUIOP^*", "  €       []", ""],
            ["asdfghjklñ´ç", "ASDFGHJKLÑ¨Ç", "          {}", ""],
            ["<zxcvbnm,.-", ">ZXCVBNM;:_", "", ""],
        ],
    },
    Layout { name: "fi", rows: SWEDISH },
    Layout {
        name: "fr",
        rows: [
            ["²&é\"'(-è_çà)=", " 1234567890°+", "  ~#{[|`\\^@]}", ""],
            ["azertyuiop^$", "AZERTYUIOP¨£", "  €        ¤", ""],
            ["qsdfghjklmù*", "QSDFGHJKLM%µ", "", ""],
            ["<wxcvbn,;:!", ">WXCVBN?./§", "", ""],
        ],
    },
    Layout {
        name: "fr-be",
        rows: [
            ["²&é\"'(§è!çà)-", "³1234567890°_", " |@#  ^  {}", ""],
            ["azertyuiop^$", "AZERTYUIOP¨*", "  €       []", ""],
            ["qsdfghjklmùµ", "QSDFGHJKLM%£", "          ´`", ""],
            ["<wxcvbn,;:=", ">WXCVBN?./+", "\\         ~", ""],
        ],
    },
    Layout {
        name: "it",
        rows: [
            ["\\1234567890'ì", "|!\"£$%&/()=?^", "", ""],
            ["qwertyuiopè+", "QWERTYUIOPé*", "  €       []", ""],
            ["asdfghjklòàù", "ASDFGHJKLç°§", "         @#", ""],
            ["<zxcvbnm,.-", ">ZXCVBNM;:_", "", ""],
        ],
    },
    Layout {
        name: "nl",
        rows: [
            ["@1234567890/°", "§!\"#$%&_()'?~", "", ""],
            ["qwertyuiop¨*", "QWERTYUIOP^|", "  €", ""],
            ["asdfghjkl+´<", "ASDFGHJKL±`>", "", ""],
            ["]zxcvbnm,.-", "[ZXCVBNM;:=", "", ""],
        ],
    },
    Layout {
        name: "no",
        rows: [
            ["|1234567890+\\", "§!\"#¤%&/()=?`", "  @£$€ {[]} ´", ""],
            NORDIC,
            ["asdfghjkløæ'", "ASDFGHJKLØÆ*", "", ""],
            ["<zxcvbnm,.-", ">ZXCVBNM;:_", "", ""],
        ],
    },
    Layout {
        name: "pl",
        rows: [
            AMERICAN[0],
            ["qwertyuiop[]", "QWERTYUIOP{}", "  ę     ó", ""],
            ["asdfghjkl;'\\", "ASDFGHJKL:\"|", "ąś      ł", ""],
            [" zxcvbnm,./", " ZXCVBNM<>?", " żźć  ń", ""],
        ],
    },
    Layout {
        name: "pt",
        rows: [
            ["\\1234567890'«", "|!\"#$%&/()=?»", "  @£§€ {[]}", ""],
            ["qwertyuiop+´", "QWERTYUIOP*`", "          ¨", ""],
            ["asdfghjklçº~", "ASDFGHJKLÇª^", "", ""],
            ["<zxcvbnm,.-", ">ZXCVBNM;:_", "", ""],
        ],
    },
    Layout { name: "sv", rows: SWEDISH },
    Layout {
        name: "ar",
        rows: [
            ["ذ1234567890-=", "ّ!@#$%^&*)(_+", "٪١٢٣٤٥٦٧٨٩٠–≠", "؉    ‰     ‑≈"],
            ["ضصثقفغعهخحجد", "ًٌَُﻹإ`÷×؛<>", "    ڤ     چ", ""],
            ["شسيبلاتنمكط\\", "ٍِ][ﻷأـ،/:\"…", "   پ ٱ ٫ گ⟩⟨", ""],
            ["|ئءؤرﻻىةوزظ", "¦~ْ}{ﻵآ',.؟", " »«   ٰ ٬ژ٭", " ›‹"],
        ],
    },
    Layout {
        name: "bepo",
        rows: [
            ["$\"«»()@+-/*=%", "#1234567890°`", "–—<>[]^±−÷×≠‰", "¶„“”≤≥ ¬¼½¾′″"],
            ["bépoè^vdljzw", "BÉPOÈ!VDLJZW", "|´&œ`¡ˇð ĳə˘", "¦˝§Œ   Ð ĲƏ"],
            ["auie,ctsrnmç", "AUIE;CTSRNMÇ", "æù¨€’©þß®~¯¸", "ÆÙ˙  ſÞẞ™ º"],
            ["êàyx.k'qghf", "ÊÀYX:K?QGHF", "/\\{}…~¿° †˛", "¦ ‘’·    ‡ª"],
        ],
    },
    Layout {
        name: "cz",
        rows: [
            [";+ěščřžýáíé=´", "°1234567890%ˇ", "`!@#$%^&*{}\\¯", "~~ˇ^˘°˛`˙´˝¨¸"],
            ["qwertzuiopú)", "QWERTZUIOP/(", "\\|€¶ŧ←↓→øþ[]", "Ω§ ®Ŧ¥↑ıØÞ÷×"],
            ["asdfghjklů§¨", "ASDFGHJKL\"!'", "~đĐ[]`'łŁ$'\\", "ÆẞÐªŊĦ & ˝ß|"],
            ["\\yxcvbnm,.-", "|YXCVBNM?:_", "/°#&@{}^<>*", "¦<>©‚‘’º×÷˙"],
        ],
    },
    Layout {
        name: "et",
        rows: [
            ["ˇ1234567890+´", "~!\"#¤%&/()=?`", "¬¹@£$½¬{[]}\\", " ¡⅛  ⅜⅝⅞™±°¿'"],
            ["qwertyuiopüõ", "QWERTYUIOPÜÕ", "@ſ€¶ŧ←↓→øþ¨§", "Ω§¢®Ŧ¥↑ıØÞ°¯"],
            ["asdfghjklöä'", "ASDFGHJKLÖÄ*", "æšðđŋħ ĸł´^½", "ÆŠÐªŊĦ &Ł˝ˇ˘"],
            ["<zxcvbnm,.-", ">ZXCVBNM;:_", "|ž»¢„“”µ<>|", "¦Ž>©‚‘’º×÷˙"],
        ],
    },
    Layout {
        name: "fo",
        rows: [
            ["½1234567890+´", "§!\"#¤%&/()=?`", "¾¡@£$½¥{[]}±|", "¶¹²³¼¢⅝÷«»°¿¦"],
            ["qwertyuiopåð", "QWERTYUIOPÅÐ", "@ſ€®þ←↓→œþ¨~", "Ω§¢ Þ¥↑ıŒÞ^ˇ"],
            ["asdfghjklæø'", "ASDFGHJKLÆØ*", "ªßðđŋħ ĸł´^˝", "ºẞÐªŊĦ &Ł˝ˇ×"],
            ["<zxcvbnm,.-", ">ZXCVBNM;:_", "\\«»©„“”µ¸·", "¬<> ‚‘’º˛˙¯"],
        ],
    },
    Layout {
        name: "fr-ca",
        rows: [
            ["#1234567890-=", "|!\"/$%?&*()_+", "\\±@£¢¤¬¦²³¼½¾", ""],
            ["qwertyuiop^¸", "QWERTYUIOP ¨", "        §¶[]", ""],
            ["asdfghjkl;`<", "ASDFGHJKL: >", "         ~{}", ""],
            ["«zxcvbnm,.é", "»ZXCVBNM' É", "°      µ¯ ´", "¦"],
        ],
    },
    Layout {
        name: "fr-ch",
        rows: [
            ["§1234567890'^", "°+\"*ç%&/()=?`", "¬|@#¼½¬|¢]}´~", " ¡⅛£$⅜⅝⅞™±°¿˛"],
            ["qwertzuiopè¨", "QWERTZUIOPü!", "@ſ€¶ŧ←↓→œþ[]", "Ω§ ®Ŧ¥↑ıŒÞ°¯"],
            ["asdfghjkléà$", "ASDFGHJKLöä£", "æßðđŋħ ĸł´{}", "ÆẞÐªŊĦ &Ł˝ˇ˘"],
            ["<yxcvbnm,.-", ">YXCVBNM;:_", "\\«»¢„“”µ•·", "¦<>©‚‘’º×÷˙"],
        ],
    },
    Layout {
        name: "hr",
        rows: [
            ["`1234567890'+", "~!\"#$%&/()=?*", "¬~ˇ^˘°˛`˙´˝¨¸", "         '"],
            ["qwertzuiopšđ", "QWERTZUIOPŠĐ", "\\|€¶ŧ←↓→øþ÷×", "ΩŁ ®Ŧ¥↑ıØÞ°¯"],
            ["asdfghjklčćž", "ASDFGHJKLČĆŽ", "æ„”[]ħ łł´ß¤", "Æ»«ªŊĦ &Ł˝ˇ˘"],
            ["<yxcvbnm,.-", ">YXCVBNM;:_", "|‘’¢@{}§<>", "¦»«©`' º×÷˙"],
        ],
    },
    Layout {
        name: "hu",
        rows: [
            ["0123456789öüó", "§'\"+!%/=()ÖÜÓ", "¬~ˇ^˘°˛`˙´˝¨¸", ""],
            ["qwertzuiopőú", "QWERTZUIOPŐÚ", "\\|Ä¶ŧ–€Í„”÷×", "Ω§ ®Ŧ¥↑íØÞ°¯"],
            ["asdfghjkléáű", "ASDFGHJKLÉÁŰ", "äđĐ[]ħíłŁ$ß¤", "ÄẞÐªŊĦÍ& ¢ẞ˘"],
            ["íyxcvbnm,.-", "ÍYXCVBNM?:_", "<>#&@{}<;>*", "><>©‚‘’º×÷˙"],
        ],
    },
    Layout {
        name: "is",
        rows: [
            ["°1234567890ö-", "¨!\"#$%&/()=Ö_", "¬¹²³¼½¬{[]}\\¸", " ¡⅛£¤⅜⅝⅞™±°¿˛"],
            ["qwertyuiopð'", "QWERTYUIOPÐ?", "@ſ€¶ŧ←↓→ø|¨~", "Ω§¢®Ŧ¥↑ıØπ°¯"],
            ["asdfghjklæ´+", "ASDFGHJKLÆ *", "æß„đŋħ ĸł^^`", "Æẞ“ªŊĦ &Ł˝ˇ˘"],
            ["<zxcvbnm,.þ", ">ZXCVBNM;:Þ", "|«»¢„“”µ•·", "¦<>©‚‘’º×÷˙"],
        ],
    },
    Layout {
        name: "ja",
        rows: [
            [" 1234567890-^\\", " !\"#$%&'()~=~|", "", ""],
            ["qwertyuiop@[", "QWERTYUIOP`{", "", ""],
            ["asdfghjkl;:]", "ASDFGHJKL+*}", "", ""],
            ["<zxcvbnm,./\\", ">ZXCVBNM<>?_", "|", "¦"],
        ],
    },
    Layout {
        name: "lt",
        rows: [
            ["`ąčęėįšųū„“-ž", "~ĄČĘĖĮŠŲŪ()_Ž", "´1234567890–=", "¬!@#$%^&*  ¿+"],
            ["qwertyuiop[]", "QWERTYUIOP{}", "@ſ€¶ŧ←↓→øþ¨~", "Ω§£®Ŧ¥↑ıØÞ°¯"],
            ["asdfghjkl;'\\", "ASDFGHJKL:\"|", "æßðđŋħ ĸł´^`", "ÆẞÐªŊĦ &Ł˝ˇ˘"],
            ["–zxcvbnm,./", "€ZXCVBNM<>?", "|«»¢„“”µ•·", "¦<>©‚‘’º×÷˙"],
        ],
    },
    Layout {
        name: "lv",
        rows: [
            ["`1234567890-=", "~!@#$%^&*()_+", "´¹²³€½¾{[]}\\–", " ¡⅛£¢⅜⅝⅞™±°¿—"],
            ["qwertyuiop[]", "QWERTYUIOP{}", "  ēŗ  ūīō «»", "  ĒŖ  ŪĪŌ “”"],
            ["asdfghjkl;'\\", "ASDFGHJKL:\"|", "āš  ģ  ķļ “`", "ĀŠ  Ģ  ĶĻ „˘"],
            ["<zxcvbnm,./", ">ZXCVBNM<>?", "|ž č  ņ •·", "¦Ž Č  Ņ ×÷˙"],
        ],
    },
    Layout {
        name: "mk",
        rows: [
            ["`1234567890-=", "~!„“$%^&*()_+", "", ""],
            ["љњертѕуиопшѓ", "ЉЊЕРТЅУИОПШЃ", "", ""],
            ["асдфгхјклчќж", "АСДФГХЈКЛЧЌЖ", "", ""],
            ["<зџцвбнм,./", ">ЗЏЦВБНМ;:?", "|", "¦"],
        ],
    },
    Layout {
        name: "pt-br",
        rows: [
            ["'1234567890-=", "\"!@#$%¨&*()_+", "¬¹²³£¢¬{[]}\\§", " ¡½¾¼⅜ ⅞™±°¿˛"],
            ["qwertyuiop´[", "QWERTYUIOP`{", "/?°®ŧ←↓→øþ ª", "    Ŧ¥↑ıØÞ ¯"],
            ["asdfghjklç~]", "ASDFGHJKLÇ^}", "æßðđŋħ ĸł´ º", "ÆẞÐªŊĦ &Ł˝"],
            ["\\zxcvbnm,.;/", "|ZXCVBNM<>:?", "ˇ«»©„“”µ•· °", "˘<> ‚‘’ ×÷˙¿"],
        ],
    },
    Layout {
        name: "ru",
        rows: [
            ["ё1234567890-=", "Ё!\"№;%:?*()_+", "        ₽", ""],
            ["йцукенгшщзхъ", "ЙЦУКЕНГШЩЗХЪ", "", ""],
            ["фывапролджэ\\", "ФЫВАПРОЛДЖЭ/", "", ""],
            ["/ячсмитьбю.", "|ЯЧСМИТЬБЮ,", "", "¦"],
        ],
    },
    Layout {
        name: "sl",
        rows: [
            ["¸1234567890'+", "¨!\"#$%&/()=?*", " ~ˇ^˘°˛`˙´˝¨¸", "         '"],
            ["qwertzuiopšđ", "QWERTZUIOPŠĐ", "\\|€¶ŧ←↓→øþ÷×", "ΩŁ ®Ŧ¥↑ıØÞ°¯"],
            ["asdfghjklčćž", "ASDFGHJKLČĆŽ", "æ„“[]ħ łł´ß¤", "Æ»«ªŊĦ &Ł˝ˇ˘"],
            ["<yxcvbnm,.-", ">YXCVBNM;:_", "|‘’¢@{}§<>—", "¦»«©`' º×÷–"],
        ],
    },
    Layout {
        name: "th",
        rows: [
            ["_ๅ/-ภถุึคตจขช", "%+๑๒๓๔ู฿๕๖๗๘๙", "", ""],
            ["ๆไำพะัีรนยบล", "๐\"ฎฑธํ๊ณฯญฐ,", "", ""],
            ["ฟหกดเ้่าสวงฃ", "ฤฆฏโฌ็๋ษศซ.ฅ", "", ""],
            ["<ผปแอิืทมใฝ", ">()ฉฮฺ์?ฒฬฦ", "|", "¦"],
        ],
    },
    Layout {
        name: "tr",
        rows: [
            ["\"1234567890*-", "é!'^+%&/()=?_", "<>£#$½¾{[]}\\|", "°¡²³¼⅜   ±°¿"],
            ["qwertyuıopğü", "QWERTYUIOPĞÜ", "@ €¶₺←ûîô ¨~", "Ω  ® ¥ÛÎÔ °¯"],
            ["asdfghjklşi,", "ASDFGHJKLŞİ;", "âß ª     ´'`", "Â         ˇ"],
            ["<zxcvbnmöç.", ">ZXCVBNMÖÇ:", "|«»¢„“”µ×·˙", "¦<>©‚‘’º ÷"],
        ],
    },
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
        // Where the space bar has another one.
        if (self.name, c) == ("bepo", '_') {
            return Some((Key::new(0x39), Shift::AltGr));
        }
        if c == ' ' {
            return Some((Key::new(0x39), Shift::None));
        }
        self.own(c).or_else(|| if self.own('a').is_none() { usual().own(c) } else { None })
    }

    fn own(&self, c: char) -> Option<(Key, Shift)> {
        for (n, shift) in [Shift::None, Shift::Shift, Shift::AltGr, Shift::Both].into_iter().enumerate() {
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
                // The keys of other continents are none of theirs, and the last one may have nothing.
                assert!(counts.iter().all(|n| *n <= codes.len()), "{} {row:?}", layout.name);
                assert!(
                    counts[0] + 2 >= codes.len() && counts[1] + 2 >= codes.len(),
                    "{} {row:?}",
                    layout.name
                );
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
        assert_eq!((at("ru", 'я'), at("ru", 'z')), (Some((0x2c, Shift::None)), Some((0x2c, Shift::None))));
        assert_eq!(
            (at("ja", '_'), at("pt-br", '/')),
            (Some((0x73, Shift::Shift)), Some((0x73, Shift::None)))
        );
        assert_eq!((at("cz", 'ě'), at("cz", '2')), (Some((0x03, Shift::None)), Some((0x03, Shift::Shift))));
        assert_eq!((at("lv", 'Ā'), at("th", 'ก')), (Some((0x1e, Shift::Both)), Some((0x20, Shift::None))));
        assert_eq!((at("tr", 'ı'), at("bepo", 'é')), (Some((0x17, Shift::None)), Some((0x11, Shift::None))));
        assert!(named("tlh").is_none());
        // All that QEMU has.
        let names = "ar bepo cz da de de-ch en-gb en-us es et fi fo fr fr-be fr-ca fr-ch hr hu is it ja lt lv mk nl no pl pt \
                     pt-br ru sl sv th tr";
        for name in names.split_whitespace() {
            assert!(named(name).is_some(), "{name}");
        }
    }
}
