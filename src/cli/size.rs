//! Sizes and numbers as QEMU's options take them.

use std::fmt;

/// Why a text is no number, or no size, that could be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// It has not the form of one.
    Form,
    /// It has the form, but is larger than all there are (2^64 - 1).
    TooLarge,
}

/// The bounds of a number, for messages: `a number from 1 to 255`.
pub struct NumberFrom(pub u64, pub u64);

impl fmt::Display for NumberFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a number from {} to {}", self.0, self.1)
    }
}

/// Parses a number from `least` to `most`. The error says what is wrong with the text, and what is accepted; the caller
/// knows which option it belongs to.
pub fn number_from(text: &str, least: u64, most: u64) -> Result<u64, String> {
    match parse_number(text) {
        Ok(n) if (least..=most).contains(&n) => Ok(n),
        Ok(_) | Err(NotTaken::TooLarge) => Err(format!("the number must be from {least} to {most}")),
        Err(NotTaken::Form) => Err(format!("'{text}' is not {}", NumberFrom(least, most))),
    }
}

/// Parses a size from `least` to `most` bytes; without a suffix it counts units of `unit` bytes. The error is as that
/// of [`number_from`].
pub fn size_from(text: &str, unit: u64, least: u64, most: u64) -> Result<u64, String> {
    let bounds = || format!("from {} to {}", show_size(least), show_size(most));
    match parse_size(text, unit) {
        Ok(n) if (least..=most).contains(&n) => Ok(n),
        Ok(_) | Err(NotTaken::TooLarge) => Err(format!("the size must be {}", bounds())),
        Err(NotTaken::Form) => Err(format!(
            "'{text}' is not a size {} (a number and, if you like, one of B K M G T P E)",
            bounds()
        )),
    }
}

/// Parses a size: a number, perhaps with a fraction, and a suffix `B K M G T P E` (either case, powers of 1024).
/// Without a suffix the number counts units of `unit` bytes. A hexadecimal number takes no fraction and no suffix.
pub fn parse_size(text: &str, unit: u64) -> Result<u64, NotTaken> {
    let wrong = || NotTaken::Form;
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let n = digits_of(hex, 16)?;
        return n.checked_mul(unit).ok_or(NotTaken::TooLarge);
    }
    let (number, unit) = match text.char_indices().last() {
        Some((at, suffix)) if suffix.is_ascii_alphabetic() => {
            let shift = match suffix.to_ascii_uppercase() {
                'B' => 0,
                'K' => 10,
                'M' => 20,
                'G' => 30,
                'T' => 40,
                'P' => 50,
                'E' => 60,
                _ => return Err(wrong()),
            };
            (&text[..at], 1u64 << shift)
        }
        _ => (text, unit),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty()
        || !digits(whole)
        || !digits(fraction)
        || (number.contains('.') && fraction.is_empty())
    {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| NotTaken::TooLarge)?;
    // Eighteen decimal places are finer than a byte for every unit.
    let places = fraction.len().min(18);
    let parts: u128 = fraction[..places].parse().unwrap_or(0);
    let size = u128::from(whole) * u128::from(unit) + parts * u128::from(unit) / 10u128.pow(places as u32);
    u64::try_from(size).map_err(|_| NotTaken::TooLarge)
}

/// Digits of the base alone: a sign is no part of a number here.
fn digits_of(text: &str, base: u32) -> Result<u64, NotTaken> {
    if text.is_empty() || !text.chars().all(|c| c.is_digit(base)) {
        return Err(NotTaken::Form);
    }
    u64::from_str_radix(text, base).map_err(|_| NotTaken::TooLarge)
}

/// Parses an unsigned number: decimal, `0x` hexadecimal, or `0` octal, as C's `strtoul` with base 0 reads it.
pub fn parse_number(text: &str) -> Result<u64, NotTaken> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        digits_of(hex, 16)
    } else if text.len() > 1 && text.starts_with('0') {
        digits_of(&text[1..], 8)
    } else {
        digits_of(text, 10)
    }
}

/// A size for people: the largest unit that divides it, or with one decimal.
pub fn show_size(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        let one = 1u64 << shift;
        if bytes >= one {
            return if bytes.is_multiple_of(one) {
                format!("{} {unit}", bytes >> shift)
            } else {
                format!("{:.1} {unit}", bytes as f64 / one as f64)
            };
        }
    }
    format!("{bytes} bytes")
}

/// Bytes of RAM the host has, if it tells.
#[cfg(windows)]
pub fn host_ram() -> Option<u64> {
    use windows_sys::Win32::System::SystemInformation as info;
    let mut status =
        info::MEMORYSTATUSEX { dwLength: size_of::<info::MEMORYSTATUSEX>() as u32, ..Default::default() };
    // SAFETY: the structure is writable, and has its length in it.
    (unsafe { info::GlobalMemoryStatusEx(&raw mut status) } != 0).then_some(status.ullTotalPhys)
}

/// Bytes of RAM the host has, if it tells.
#[cfg(unix)]
pub fn host_ram() -> Option<u64> {
    // SAFETY: sysconf takes a number, touches no memory of ours and may be called at any time.
    let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    u64::try_from(pages).ok()?.checked_mul(u64::try_from(size).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = 1 << 20;

    #[test]
    fn a_bare_number_counts_the_options_unit() {
        assert_eq!(parse_size("512", M), Ok(512 * M));
        assert_eq!(parse_size("0", M), Ok(0));
        assert_eq!(parse_size("0x10", M), Ok(16 * M));
        assert_eq!(parse_size("512", 1), Ok(512));
    }

    #[test]
    fn suffixes_are_powers_of_1024_in_either_case() {
        for (text, size) in
            [("7b", 7), ("3K", 3 << 10), ("3k", 3 << 10), ("2M", 2 * M), ("1g", 1 << 30), ("100T", 100 << 40)]
        {
            assert_eq!(parse_size(text, M), Ok(size), "{text}");
        }
    }

    #[test]
    fn fractions_are_exact_for_halves_and_rounded_down_otherwise() {
        assert_eq!(parse_size("1.5G", M), Ok(3 << 29));
        assert_eq!(parse_size("0.25", M), Ok(1 << 18));
        assert_eq!(parse_size("0.1K", M), Ok(102));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "-1", "+1", "1.", ".5", "1MM", "1 G", "1,5G", "0xZ", "many", "1X", "ü"] {
            assert!(parse_size(text, M).is_err(), "{text:?}");
        }
        for text in ["99999999999E", "999999999999999999999", "0xFFFFFFFFFFFFFFFF", "0x10000000000000000"] {
            assert_eq!(parse_size(text, M), Err(NotTaken::TooLarge), "{text:?}");
        }
    }

    #[test]
    fn numbers_have_cs_prefixes() {
        assert_eq!(parse_number("10"), Ok(10));
        assert_eq!(parse_number("0xf4"), Ok(0xF4));
        assert_eq!(parse_number("010"), Ok(8));
        assert_eq!(parse_number("0"), Ok(0));
        for text in ["", "0x", "-1", "+1", "0x-1", "1k", "08"] {
            assert!(parse_number(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn bounds_are_named_whatever_is_wrong() {
        assert_eq!(number_from("255", 1, 255), Ok(255));
        for text in ["0", "256", "18446744073709551616", "0x1ffffffffffffffff", "-1", "many", "", "1.5", "1k"]
        {
            assert!(number_from(text, 1, 255).unwrap_err().contains("from 1 to 255"), "{text:?}");
        }
        assert_eq!(size_from("1G", M, M, 4 << 40), Ok(1 << 30));
        for text in ["0", "1048575b", "5T", "99999999999E", "-1", "many", ""] {
            assert!(size_from(text, M, M, 4 << 40).unwrap_err().contains("from 1 MiB to 4 TiB"), "{text:?}");
        }
    }

    #[test]
    fn sizes_are_shown_in_their_own_unit() {
        assert_eq!(show_size(128 * M), "128 MiB");
        assert_eq!(show_size(3 << 29), "1.5 GiB");
        assert_eq!(show_size(1 << 42), "4 TiB");
        assert_eq!(show_size(12), "12 bytes");
    }
}
