//! Code page 437: the characters of the PC's own font.

/// The 256 characters, 32 in a row. Codes 00h and FFh are blank.
const ROWS: [&str; 8] = [
    " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼",
    " !\"#$%&'()*+,-./0123456789:;<=>?",
    "@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_",
    "`abcdefghijklmnopqrstuvwxyz{|}~⌂",
    "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒ",
    "áíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐",
    "└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀",
    "αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■ ",
];

/// The character that the font shows for a code.
pub(super) fn to_char(code: u8) -> char {
    ROWS[usize::from(code / 32)].chars().nth(usize::from(code % 32)).unwrap_or(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_codes_have_characters() {
        assert!(ROWS.iter().all(|r| r.chars().count() == 32));
        assert_eq!(
            [0x00, 0x41, 0x5c, 0x7f, 0xdb, 0xe1, 0xff].map(to_char),
            [' ', 'A', '\\', '⌂', '█', 'ß', ' ']
        );
    }
}
