//! Sizes and numbers as QEMU's options take them.

/// Parses a size: a number, perhaps with a fraction, and a suffix `B K M G T P E` (either case, powers of 1024).
/// Without a suffix the number counts units of `unit` bytes. A hexadecimal number takes no fraction and no suffix.
///
/// The error says what is wrong with the text; the caller knows which option it belongs to.
pub fn parse_size(text: &str, unit: u64) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size: give a number and, if you like, one of B K M G T P E");
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let n = u64::from_str_radix(hex, 16).map_err(|_| wrong())?;
        return n.checked_mul(unit).ok_or_else(|| too_large(text));
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
    let whole: u64 = whole.parse().map_err(|_| too_large(text))?;
    // Eighteen decimal places are finer than a byte for every unit.
    let places = fraction.len().min(18);
    let parts: u128 = fraction[..places].parse().unwrap_or(0);
    let size = u128::from(whole) * u128::from(unit) + parts * u128::from(unit) / 10u128.pow(places as u32);
    u64::try_from(size).map_err(|_| too_large(text))
}

fn too_large(text: &str) -> String {
    format!("{text} is more than any machine has")
}

/// Parses an unsigned number: decimal, `0x` hexadecimal, or `0` octal, as C's `strtoul` with base 0 reads it.
pub fn parse_number(text: &str) -> Result<u64, String> {
    let parsed = if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        u64::from_str_radix(hex, 16)
    } else if text.len() > 1 && text.starts_with('0') {
        u64::from_str_radix(&text[1..], 8)
    } else {
        text.parse()
    };
    // `from_str_radix` takes a sign, which is no part of a number here.
    match parsed {
        Ok(n) if !text.contains(['+', '-']) => Ok(n),
        _ => Err(format!("'{text}' is not a number")),
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
        assert!(parse_size("99999999999E", M).unwrap_err().contains("more than any machine"));
        assert!(parse_size("999999999999999999999", M).is_err());
        assert!(parse_size("0xFFFFFFFFFFFFFFFF", M).is_err());
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
    fn sizes_are_shown_in_their_own_unit() {
        assert_eq!(show_size(128 * M), "128 MiB");
        assert_eq!(show_size(3 << 29), "1.5 GiB");
        assert_eq!(show_size(1 << 42), "4 TiB");
        assert_eq!(show_size(12), "12 bytes");
    }
}
