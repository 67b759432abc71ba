//! Ethernet addresses.
use std::fmt;
use std::str::FromStr;

/// An Ethernet address (EUI-48), written as six pairs of hexadecimal digits with colons between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All stations on the link.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it is a group's, all stations' among them.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let why = || format!("'{text}' is not an Ethernet address such as 52:54:00:12:34:56");
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let is_one = |p: &&str| (1..=2).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_hexdigit());
            let part = parts.next().filter(is_one).ok_or_else(why)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| why())?;
        }
        if parts.next().is_some() { Err(why()) } else { Ok(Self(bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        let mac: Mac = "52:54:00:12:34:5A".parse().unwrap();
        assert_eq!((mac.0, mac.to_string()), ([0x52, 0x54, 0, 0x12, 0x34, 0x5a], "52:54:00:12:34:5a".into()));
        for bad in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:g0",
            "52:54:00:12:34:+1",
            "525400123456",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
