//! What stands behind a command: words, numbers as QEMU's monitor counts them, and formats (`/4xw`).
//!
//! ```text
//!   sum     := logic { (+|-) logic }          value := number | 'c' | $register | (sum) | (-|+|~) value
//!   logic   := product { (& | | | ^) product }
//!   product := value { (*|/|%) value }        number: decimal, 0x.., 0.. (octal)
//! ```
//!
//! Numbers have 64 bits and wrap.
use std::fmt;

/// Why a command is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not written as it has to be.
    Form,
    /// What is said of it.
    Said(String),
}

impl<E: fmt::Display> From<E> for Fault {
    fn from(e: E) -> Self {
        // With its causes, if it has any.
        Self::Said(format!("Error: {e:#}"))
    }
}

/// The value of a register by its name, without the `$`.
pub type Registers<'a> = &'a dyn Fn(&str) -> Result<u64, String>;

/// What is left of a line.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a>(pub &'a str);

/// Levels of parentheses and signs.
const DEEPEST: usize = 64;

impl<'a> Args<'a> {
    /// The next word.
    pub fn next(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start();
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        self.0 = rest;
        (!word.is_empty()).then_some(word)
    }

    /// The next word, which there has to be.
    ///
    /// # Errors
    /// There is none.
    pub fn word(&mut self) -> Result<&'a str, Fault> {
        self.next().ok_or(Fault::Form)
    }

    /// The next word, or one in quotation marks, which may have spaces, \" and \\ in it.
    ///
    /// # Errors
    /// There is none, or no end of it.
    pub fn file(&mut self) -> Result<String, Fault> {
        let Some(quoted) = self.0.trim_start().strip_prefix('"') else { return self.word().map(Into::into) };
        let (mut name, mut characters) = (String::new(), quoted.char_indices());
        while let Some((at, c)) = characters.next() {
            match c {
                '"' => {
                    self.0 = &quoted[at + 1..];
                    return Ok(name);
                }
                '\\' => name.extend(characters.next().map(|(_, c)| c)),
                c => name.push(c),
            }
        }
        Err(Fault::Form)
    }

    /// All that is left, without blanks around it.
    pub fn rest(&mut self) -> &'a str {
        std::mem::take(&mut self.0).trim()
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.trim().is_empty()
    }

    /// There is nothing more.
    ///
    /// # Errors
    /// There is.
    pub fn end(&self) -> Result<(), Fault> {
        if self.is_empty() { Ok(()) } else { Err(Fault::Form) }
    }

    /// Whether this word is next; it is then taken.
    pub fn takes(&mut self, word: &str) -> bool {
        let mut ahead = *self;
        let is_next = ahead.next() == Some(word);
        if is_next {
            *self = ahead;
        }
        is_next
    }

    /// A number.
    ///
    /// # Errors
    /// There is none, or what is wrong with it.
    pub fn number(&mut self, registers: Registers<'_>) -> Result<u64, Fault> {
        if self.is_empty() {
            return Err(Fault::Form);
        }
        let mut parser = Parser { left: self.0, registers, depth: 0 };
        let value = parser.sum().map_err(Fault::Said)?;
        self.0 = parser.left;
        Ok(value)
    }

    /// The format in front, if there is one (`/4xw`): what is not told is as in `usual`.
    ///
    /// # Errors
    /// A letter that means nothing.
    pub fn format(&mut self, usual: Format) -> Result<Format, Fault> {
        let Some(text) = self.0.trim_start().strip_prefix('/') else {
            return Ok(Format { count: 1, ..usual });
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (count, letters) = text.split_at(digits);
        let count = if count.is_empty() { 1 } else { count.parse().unwrap_or(usize::MAX) };
        let mut format = Format { count, ..usual };
        let end = letters.find(char::is_whitespace).unwrap_or(letters.len());
        for letter in letters[..end].chars() {
            match letter {
                'x' | 'd' | 'u' | 'o' | 'c' | 'i' => format.kind = letter,
                'b' => format.size = 1,
                'h' => format.size = 2,
                'w' => format.size = 4,
                'g' | 'L' => format.size = 8,
                c => return Err(Fault::Said(format!("invalid char in format: '{c}'"))),
            }
        }
        self.0 = &letters[end..];
        Ok(format)
    }
}

/// How values are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// How many.
    pub count: usize,
    /// As x, d, u, o, c, or i (instructions).
    pub kind: char,
    /// Bytes of one.
    pub size: usize,
}

impl Format {
    /// What there is before anything was chosen.
    pub const USUAL: Self = Self { count: 1, kind: 'x', size: 4 };
}

/// A character as C writes it.
pub fn character(value: u64) -> String {
    match value as u8 {
        b'\'' => "'\\''".into(),
        b'\\' => "'\\\\'".into(),
        b'\n' => "'\\n'".into(),
        b'\r' => "'\\r'".into(),
        c @ 32..=126 => format!("'{}'", char::from(c)),
        c => format!("'\\x{c:02x}'"),
    }
}

/// An expression.
struct Parser<'a, 'r> {
    left: &'a str,
    registers: Registers<'r>,
    depth: usize,
}

impl Parser<'_, '_> {
    fn peek(&mut self) -> Option<char> {
        self.left = self.left.trim_start();
        self.left.chars().next()
    }

    /// The next character, if it is one of these.
    fn takes(&mut self, any: &[char]) -> Option<char> {
        let c = self.peek().filter(|c| any.contains(c))?;
        self.left = &self.left[c.len_utf8()..];
        Some(c)
    }

    fn sum(&mut self) -> Result<u64, String> {
        let mut value = self.logic()?;
        while let Some(sign) = self.takes(&['+', '-']) {
            let other = self.logic()?;
            value = if sign == '+' { value.wrapping_add(other) } else { value.wrapping_sub(other) };
        }
        Ok(value)
    }

    fn logic(&mut self) -> Result<u64, String> {
        let mut value = self.product()?;
        while let Some(sign) = self.takes(&['&', '|', '^']) {
            let other = self.product()?;
            value = match sign {
                '&' => value & other,
                '|' => value | other,
                _ => value ^ other,
            };
        }
        Ok(value)
    }

    fn product(&mut self) -> Result<u64, String> {
        let mut value = self.value()?;
        while let Some(sign) = self.takes(&['*', '/', '%']) {
            let (a, b) = (value.cast_signed(), self.value()?.cast_signed());
            let result = match sign {
                '*' => Some(a.wrapping_mul(b)),
                _ if b == 0 => None,
                '/' => Some(a.wrapping_div(b)),
                _ => Some(a.wrapping_rem(b)),
            };
            value = result.ok_or("division by zero")?.cast_unsigned();
        }
        Ok(value)
    }

    fn value(&mut self) -> Result<u64, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err("the expression is too deep".into());
        }
        let value = match self.takes(&['+', '-', '~', '(', '\'', '$']) {
            Some('+') => self.value()?,
            Some('-') => self.value()?.wrapping_neg(),
            Some('~') => !self.value()?,
            Some('(') => {
                let value = self.sum()?;
                self.takes(&[')']).ok_or("')' expected")?;
                value
            }
            Some('\'') => self.character()?,
            Some(_) => {
                let end = self.left.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.');
                let (name, left) = self.left.split_at(end.unwrap_or(self.left.len()));
                self.left = left;
                (self.registers)(name)?
            }
            None => self.digits()?,
        };
        self.depth -= 1;
        Ok(value)
    }

    /// A character behind its quotation mark. The next one is the character itself, a blank as well.
    fn character(&mut self) -> Result<u64, String> {
        let mut characters = self.left.chars();
        let c = characters.next().ok_or("character constant expected")?;
        let left = characters.as_str().strip_prefix('\'').ok_or("missing terminating ' character")?;
        self.left = left;
        Ok(u32::from(c).into())
    }

    fn digits(&mut self) -> Result<u64, String> {
        let Some(c) = self.peek() else { return Err("unexpected end of expression".into()) };
        let end = self.left.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(self.left.len());
        let (text, left) = self.left.split_at(end);
        self.left = left;
        let (digits, radix) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
            Some(digits) => (digits, 16),
            None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
            None => (text, 10),
        };
        if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
            let what = if text.is_empty() { c.to_string() } else { text.to_owned() };
            return Err(format!("invalid char '{what}' in expression"));
        }
        u64::from_str_radix(digits, radix).map_err(|_| "number too large".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Result<(u64, String), Fault> {
        let mut args = Args(text);
        let registers =
            |name: &str| if name == "eip" { Ok(0x100) } else { Err(format!("no register '{name}'")) };
        let value = args.number(&registers)?;
        Ok((value, args.rest().to_owned()))
    }

    #[test]
    fn expressions_are_counted_as_qemu_does() {
        for (text, value, rest) in [
            ("1+2*3", 7, ""),
            ("(1 + 2) * 3", 9, ""),
            // Logic binds tighter than a sum.
            ("1 + 2 | 4", 7, ""),
            ("2 | 1 + 1", 4, ""),
            ("-1", u64::MAX, ""),
            ("~0 - 1", u64::MAX - 1, ""),
            ("7 / -2", (-3i64).cast_unsigned(), ""),
            ("$eip+0x10 256 file", 0x110, "256 file"),
            ("010", 8, ""),
            ("'a' + ' '", 0x81, ""),
            ("0xffffffffffffffff + 2", 1, ""),
            ("6 % 4", 2, ""),
        ] {
            assert_eq!(number(text), Ok((value, rest.into())), "{text}");
        }
        for (text, what) in [
            ("1/0", "division by zero"),
            ("(1", "')' expected"),
            ("0xg", "invalid char '0xg' in expression"),
            ("1+", "unexpected end of expression"),
            ("@", "invalid char '@' in expression"),
            ("$nothing", "no register 'nothing'"),
            ("0x10000000000000000", "number too large"),
            ("'a", "missing terminating ' character"),
            ("é", "invalid char 'é' in expression"),
        ] {
            assert_eq!(number(text), Err(Fault::Said(what.into())), "{text}");
        }
        assert_eq!(number(" "), Err(Fault::Form));
        for c in ["(", "-", "~"] {
            assert_eq!(number(&c.repeat(100_000)), Err(Fault::Said("the expression is too deep".into())));
        }
    }

    #[test]
    fn formats_are_read_and_what_they_do_not_tell_stays() {
        let of = |text| Args(text).format(Format { count: 3, kind: 'd', size: 2 });
        let format = |count, kind, size| Ok(Format { count, kind, size });
        assert_eq!(of(" 0x10"), format(1, 'd', 2));
        assert_eq!(of("/4xw 0"), format(4, 'x', 4));
        assert_eq!(of("/g 0"), format(1, 'd', 8));
        assert_eq!(of("/99999999999999999999bc 0"), format(usize::MAX, 'c', 1));
        assert_eq!(of("/4xq 0"), Err(Fault::Said("invalid char in format: 'q'".into())));
        let mut args = Args("/2i $eip");
        args.format(Format::USUAL).unwrap();
        assert_eq!(args.rest(), "$eip");
    }

    #[test]
    fn files_may_have_spaces_in_quotation_marks() {
        let mut args = Args(r#" "a \"b\" \\" c"#);
        assert_eq!((args.file(), args.file()), (Ok(r#"a "b" \"#.into()), Ok("c".into())));
        assert_eq!((args.file(), Args("\"a").file()), (Err(Fault::Form), Err(Fault::Form)));
    }

    #[test]
    fn characters_are_shown_as_in_c() {
        let all = [0x41, 0x27, 0x5c, 10, 13, 0, 0x1ff].map(character);
        assert_eq!(all, ["'A'", "'\\''", "'\\\\'", "'\\n'", "'\\r'", "'\\x00'", "'\\xff'"]);
    }
}
