//! RFB's messages: what a client sends, taken from its bytes, and pixel formats.
//!
//! Source: RFC 6143; the community's rfbproto for pseudo-encodings and the QEMU extended key event.

/// Encodings and pseudo-encodings that are known here.
pub mod encoding {
    pub const RAW: i32 = 0;
    pub const TIGHT: i32 = 7;
    pub const ZRLE: i32 = 16;
    /// The size of the screen changes.
    pub const DESKTOP_SIZE: i32 = -223;
    /// Keys come with their scan codes.
    pub const QEMU_KEYS: i32 = -258;
    /// The pointer is relative.
    pub const POINTER: i32 = -257;
    /// The size of the screen changes, or the client may ask for that.
    pub const EXTENDED_DESKTOP_SIZE: i32 = -308;
    pub const KNOWN: [i32; 7] = [RAW, TIGHT, ZRLE, DESKTOP_SIZE, QEMU_KEYS, POINTER, EXTENDED_DESKTOP_SIZE];
}

/// Longest text that is passed over in a cut buffer, and most encodings of a list, are what their fields hold.
const HEADER: usize = 8;

/// How a client wants its pixels (7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelFormat {
    /// 8, 16 or 32.
    pub bits: u8,
    pub depth: u8,
    pub big_endian: bool,
    pub true_colour: bool,
    /// The most that red, green and blue have.
    pub max: [u16; 3],
    /// By how much each is shifted.
    pub shift: [u8; 3],
}

impl PixelFormat {
    /// That of a surface: 0RGB in 32 bits.
    pub const OWN: Self =
        Self { bits: 32, depth: 24, big_endian: false, true_colour: true, max: [255; 3], shift: [16, 8, 0] };

    pub fn to_bytes(self) -> [u8; 16] {
        let [r, g, b] = self.max.map(u16::to_be_bytes);
        let [rs, gs, bs] = self.shift;
        let flags = [self.big_endian.into(), self.true_colour.into()];
        let [big, true_colour] = flags;
        [self.bits, self.depth, big, true_colour, r[0], r[1], g[0], g[1], b[0], b[1], rs, gs, bs, 0, 0, 0]
    }

    /// A format that can be served. With a map of colours it is ours: three bits of blue and green, two of red.
    fn from_bytes(b: &[u8; 16]) -> Option<Self> {
        let wide = |at: usize| u16::from_be_bytes([b[at], b[at + 1]]);
        let format = Self {
            bits: b[0],
            depth: b[1],
            big_endian: b[2] != 0,
            true_colour: b[3] != 0,
            max: [wide(4), wide(6), wide(8)],
            shift: [b[10], b[11], b[12]],
        };
        if !matches!(format.bits, 8 | 16 | 32) || format.shift.iter().any(|s| *s >= format.bits) {
            return None;
        }
        if !format.true_colour {
            let mapped = Self { max: [3, 7, 7], shift: [6, 3, 0], ..format };
            return (format.bits == 8).then_some(mapped);
        }
        Some(format)
    }

    /// Bytes of a pixel.
    pub fn bytes(&self) -> usize {
        usize::from(self.bits / 8)
    }

    /// A pixel of a surface in this format.
    #[inline]
    pub fn pixel(&self, pixel: u32) -> u32 {
        if self.max == [255; 3] && self.shift == [16, 8, 0] {
            return pixel;
        }
        let part = |n: usize| {
            let value = pixel >> (16 - 8 * n) & 0xff;
            ((value * u32::from(self.max[n]) + 127) / 255) << self.shift[n]
        };
        part(0) | part(1) | part(2)
    }

    /// The bytes of such a pixel.
    #[inline]
    pub fn put(&self, pixel: u32, to: &mut Vec<u8>) {
        let at = 4 - self.bytes();
        match self.big_endian {
            true => to.extend_from_slice(&pixel.to_be_bytes()[at..]),
            false => to.extend_from_slice(&pixel.to_le_bytes()[..4 - at]),
        }
    }

    /// Of four bytes of a pixel the three that are not always zero (7.7.5), if that is so.
    pub fn three_bytes(&self) -> Option<usize> {
        let used = (0..3).fold(0_u32, |all, n| all | u32::from(self.max[n]) << self.shift[n]);
        if self.bits != 32 || self.depth > 24 || !self.true_colour {
            return None;
        }
        // The place of the first of three in the order of bytes.
        match (used >> 24 == 0, used & 0xff == 0) {
            (true, _) => Some(usize::from(self.big_endian)),
            (_, true) => Some(usize::from(!self.big_endian)),
            _ => None,
        }
    }
}

/// What a client asks for after the handshake (7.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    SetPixelFormat(PixelFormat),
    SetEncodings(Vec<i32>),
    /// Incrementally, or all of it.
    UpdateRequest(bool),
    /// A keysym goes down, or up; with its scan code, if the client knows that.
    Key {
        pressed: bool,
        keysym: u32,
        code: Option<u32>,
    },
    /// Buttons, from the left one in bit 0; the place.
    Pointer {
        buttons: u8,
        x: u16,
        y: u16,
    },
    /// The screen is to have another size.
    SetDesktopSize,
    /// Text that was cut, of so many bytes, which follow.
    CutText(u32),
}

/// What is in a client's bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A message of so many bytes.
    Message(Message, usize),
    /// More bytes have to come.
    Incomplete,
    /// None that there is: the client is to be left.
    Bad(&'static str),
}

/// Takes a message from the beginning of `b`.
pub fn parse(b: &[u8]) -> Parsed {
    let wide = |at: usize| u16::from_be_bytes([b[at], b[at + 1]]);
    let long = |at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    let Some(kind) = b.first() else { return Parsed::Incomplete };
    let len = match kind {
        0 => 20,
        2 if b.len() < 4 => return Parsed::Incomplete,
        2 => 4 + 4 * usize::from(wide(2)),
        3 => 10,
        4 | 6 => HEADER,
        5 => 6,
        251 if b.len() < 8 => return Parsed::Incomplete,
        251 => 8 + 16 * usize::from(b[6]),
        255 if b.get(1).is_some_and(|sub| *sub != 0) => return Parsed::Bad("an unknown message of QEMU's"),
        255 => 12,
        _ => return Parsed::Bad("an unknown message"),
    };
    if b.len() < len {
        return Parsed::Incomplete;
    }
    let message = match kind {
        0 => {
            let mut format = [0; 16];
            format.copy_from_slice(&b[4..20]);
            match PixelFormat::from_bytes(&format) {
                Some(format) => Message::SetPixelFormat(format),
                None => return Parsed::Bad("a pixel format that does not exist"),
            }
        }
        2 => Message::SetEncodings((4..len).step_by(4).map(|at| long(at) as i32).collect()),
        3 => Message::UpdateRequest(b[1] != 0),
        4 => Message::Key { pressed: b[1] != 0, keysym: long(4), code: None },
        5 => Message::Pointer { buttons: b[1], x: wide(2), y: wide(4) },
        251 => Message::SetDesktopSize,
        // A negative length is one of an extended clipboard, which nobody was offered.
        6 => match i32::try_from(long(4)) {
            Ok(n) => Message::CutText(n as u32),
            Err(_) => return Parsed::Bad("a clipboard that was not offered"),
        },
        _ => Message::Key { pressed: wide(2) != 0, keysym: long(4), code: Some(long(8)) },
    };
    Parsed::Message(message, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_once_they_are_whole() {
        let one_screen = [&[251, 0, 3, 0, 2, 0, 1, 0][..], &[0; 16]].concat();
        let cases: [(&[u8], Message); 7] = [
            (&one_screen, Message::SetDesktopSize),
            (&[2, 0, 0, 2, 0, 0, 0, 16, 0xff, 0xff, 0xff, 0x21], Message::SetEncodings(vec![16, -223])),
            (&[3, 1, 0, 0, 0, 0, 1, 0, 1, 0], Message::UpdateRequest(true)),
            (&[4, 1, 0, 0, 0, 0, 0xff, 0x0d], Message::Key { pressed: true, keysym: 0xff0d, code: None }),
            (&[5, 4, 1, 2, 0, 9], Message::Pointer { buttons: 4, x: 0x102, y: 9 }),
            (&[6, 0, 0, 0, 0, 0, 1, 0], Message::CutText(256)),
            (
                &[255, 0, 0, 1, 0, 0, 0xff, 0xe3, 0, 0, 0, 0x1d],
                Message::Key { pressed: true, keysym: 0xffe3, code: Some(0x1d) },
            ),
        ];
        for (bytes, message) in cases {
            for n in 0..bytes.len() {
                assert_eq!(parse(&bytes[..n]), Parsed::Incomplete);
            }
            let more = [bytes, &[9, 9]].concat();
            assert_eq!(parse(&more), Parsed::Message(message, bytes.len()));
        }
        assert!(matches!(parse(&[7]), Parsed::Bad(_)));
        assert!(matches!(parse(&[6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), Parsed::Bad(_)));
    }

    #[test]
    fn formats_are_those_that_can_be_served() {
        let set = |format: [u8; 16]| parse(&[&[0, 0, 0, 0], format.as_slice()].concat());
        let own = PixelFormat::OWN;
        assert_eq!(set(own.to_bytes()), Parsed::Message(Message::SetPixelFormat(own), 20));
        for (at, value) in [(0, 24), (0, 0), (10, 32), (3, 0)] {
            let mut format = own.to_bytes();
            format[at] = value;
            assert!(matches!(set(format), Parsed::Bad(_)), "{at}");
        }
        let rgb565 = PixelFormat {
            bits: 16,
            depth: 16,
            max: [31, 63, 31],
            shift: [11, 5, 0],
            big_endian: true,
            ..own
        };
        let mut bytes = Vec::new();
        rgb565.put(rgb565.pixel(0x00ff_8000), &mut bytes);
        assert_eq!((bytes, rgb565.three_bytes(), own.three_bytes()), (vec![0xfc, 0x00], None, Some(0)));
        let high = PixelFormat { shift: [24, 16, 8], big_endian: true, ..own };
        assert_eq!(
            (high.three_bytes(), PixelFormat { big_endian: true, ..own }.three_bytes()),
            (Some(0), Some(1))
        );
    }
}
