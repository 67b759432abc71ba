//! Tight: a rectangle of one colour, of a few, or plain pixels, the latter two compressed. Without JPEG and gradients.
//!
//! ```text
//!   80h                   one colour
//!   n << 4                stream n, pixels as they are
//!   n << 4 | 40h, filter  1: a palette of two colours (a bit for each pixel) or up to 256 (a byte)
//! ```
//!
//! Less than 12 bytes are not compressed. Stream 0 has plain pixels, 1 bits, 2 bytes.
//!
//! Source: the community's rfbproto, "Tight Encoding".
use super::encode::{Zlib, head};
use super::protocol::{PixelFormat, encoding};
use crate::display::{Rect, Surface};

/// A rectangle has so many columns, and about so many pixels, at most.
const MOST_WIDTH: usize = 2048;
const MOST_PIXELS: usize = 1 << 16;
/// Bytes from which on data are compressed.
const COMPRESSED: usize = 12;
const FILL: u8 = 0x80;
const WITH_FILTER: u8 = 0x40;
const PALETTE_FILTER: u8 = 1;

/// One client's streams.
pub struct Tight([Zlib; 3]);

/// The rectangles that a larger one becomes.
pub fn parts(rect: Rect) -> Vec<Rect> {
    let mut parts = Vec::new();
    for x in (0..rect.width).step_by(MOST_WIDTH) {
        let width = MOST_WIDTH.min(rect.width - x);
        let rows = (MOST_PIXELS / width).max(1);
        for y in (0..rect.height).step_by(rows) {
            let height = rows.min(rect.height - y);
            parts.push(Rect { x: rect.x + x, y: rect.y + y, width, height });
        }
    }
    parts
}

/// A pixel: red, green and blue where these are all of it.
fn tpixel(to: &mut Vec<u8>, format: &PixelFormat, pixel: u32) {
    if format.bits == 32 && format.depth == 24 && format.max == [255; 3] && format.true_colour {
        to.extend([(pixel >> 16) as u8, (pixel >> 8) as u8, pixel as u8]);
    } else {
        format.put(format.pixel(pixel), to);
    }
}

impl Tight {
    pub fn new() -> Self {
        Self([Zlib::new(), Zlib::new(), Zlib::new()])
    }

    /// Adds a rectangle, one of [`parts`].
    pub fn rect(&mut self, to: &mut Vec<u8>, format: &PixelFormat, surface: &Surface, rect: Rect) {
        head(to, rect, encoding::TIGHT);
        let rows = || (rect.y..rect.y + rect.height).map(|y| &surface.row(y)[rect.x..rect.x + rect.width]);
        // Colours in the order in which they come; none if there are more than a palette has.
        let mut colours: Vec<u32> = Vec::new();
        let mut last = None;
        'all: for pixel in rows().flatten() {
            if last == Some(*pixel) || colours.contains(pixel) {
                last = Some(*pixel);
                continue;
            }
            last = Some(*pixel);
            colours.push(*pixel);
            if colours.len() > 256 {
                break 'all;
            }
        }
        let index = |p: &u32| colours.iter().position(|c| c == p).unwrap_or(0) as u8;
        let mut data = Vec::new();
        let stream = match colours.len() {
            1 => {
                to.push(FILL);
                tpixel(to, format, colours[0]);
                return;
            }
            n @ 2..=16 => {
                let stream = if n == 2 { 1 } else { 2 };
                to.extend([stream << 4 | WITH_FILTER, PALETTE_FILTER, n as u8 - 1]);
                colours.iter().for_each(|c| tpixel(to, format, *c));
                for row in rows() {
                    if n == 2 {
                        let byte =
                            |some: &[u32]| (0..8).fold(0, |byte, i| byte << 1 | some.get(i).map_or(0, index));
                        data.extend(row.chunks(8).map(byte));
                    } else {
                        data.extend(row.iter().map(index));
                    }
                }
                stream
            }
            // Looking up more colours costs more than it saves.
            _ => {
                to.push(0);
                rows().flatten().for_each(|p| tpixel(&mut data, format, *p));
                0
            }
        };
        if data.len() < COMPRESSED {
            to.extend(data);
            return;
        }
        let mut compressed = Vec::new();
        self.0[usize::from(stream)].add(&data, &mut compressed);
        let mut n = compressed.len();
        // Seven bits, seven bits, eight.
        for more in [true, true, false] {
            if more && n > 0x7f {
                to.push(n as u8 & 0x7f | 0x80);
                n >>= 7;
            } else {
                to.push(n as u8);
                break;
            }
        }
        to.extend(compressed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Decompress, FlushDecompress};

    /// The pixels of a rectangle in our own format, as a client decodes them; how many bytes it had.
    fn decode(b: &[u8], streams: &mut [Decompress; 3], rect: Rect) -> (Vec<u32>, usize) {
        let pixel = |at: usize| u32::from_be_bytes([0, b[at], b[at + 1], b[at + 2]]);
        let count = rect.width * rect.height;
        let mut at = 13;
        if b[12] == FILL {
            return (vec![pixel(at); count], at + 3);
        }
        let mut colours = Vec::new();
        if b[12] & WITH_FILTER != 0 {
            assert_eq!(b[at], PALETTE_FILTER);
            let n = usize::from(b[at + 1]) + 1;
            colours = (0..n).map(|i| pixel(at + 2 + 3 * i)).collect();
            at += 2 + 3 * n;
        }
        let len = match colours.len() {
            0 => 3 * count,
            2 => rect.width.div_ceil(8) * rect.height,
            _ => count,
        };
        let mut data = Vec::with_capacity(len + 1);
        if len < COMPRESSED {
            data.extend_from_slice(&b[at..at + len]);
            at += len;
        } else {
            let (mut n, mut shift) = (0, 0);
            loop {
                let byte = usize::from(b[at]);
                at += 1;
                n |= (if shift < 14 { byte & 0x7f } else { byte }) << shift;
                shift += 7;
                if shift > 14 || byte & 0x80 == 0 {
                    break;
                }
            }
            let stream = &mut streams[usize::from(b[12] >> 4 & 3)];
            stream.decompress_vec(&b[at..at + n], &mut data, FlushDecompress::Sync).unwrap();
            at += n;
        }
        assert_eq!(data.len(), len);
        let pixels = match colours.len() {
            0 => data.chunks(3).map(|c| u32::from_be_bytes([0, c[0], c[1], c[2]])).collect(),
            2 => (0..count)
                .map(|n| (n / rect.width * rect.width.div_ceil(8), n % rect.width))
                .map(|(row, x)| colours[usize::from(data[row + x / 8] >> (7 - x % 8) & 1)])
                .collect(),
            _ => data.iter().map(|i| colours[usize::from(*i)]).collect(),
        };
        (pixels, at)
    }

    #[test]
    fn rectangles_of_all_kinds_come_back_as_they_were() {
        let mut surface = Surface::new(2500, 90);
        for y in 0..90 {
            for (x, p) in surface.row_mut(y).iter_mut().enumerate() {
                let n = (x * 31 + y * 17) as u32;
                *p = match x / 100 {
                    0 => 0x0012_3456,
                    1 => 0x00ff_ff00 * (n % 2),
                    2 => n % 13 * 0x0001_0203,
                    _ => n.wrapping_mul(0x9e37_79b9) & 0x00ff_ffff,
                };
            }
        }
        let mut tight = Tight::new();
        let mut streams = [(); 3].map(|()| Decompress::new(true));
        let rect = |x, y, width, height| Rect { x, y, width, height };
        let wanted = [
            rect(0, 0, 100, 90),
            rect(103, 1, 45, 77),
            rect(101, 3, 3, 2),
            rect(200, 0, 99, 90),
            rect(298, 88, 2, 1),
            rect(0, 0, 2500, 90),
        ];
        for part in wanted.into_iter().flat_map(parts) {
            assert!(part.width <= MOST_WIDTH && part.width * part.height <= MOST_PIXELS);
            let mut bytes = Vec::new();
            tight.rect(&mut bytes, &PixelFormat::OWN, &surface, part);
            let (pixels, len) = decode(&bytes, &mut streams, part);
            let rows =
                (part.y..part.y + part.height).flat_map(|y| &surface.row(y)[part.x..part.x + part.width]);
            assert!(pixels.iter().eq(rows) && len == bytes.len(), "{part:?}");
        }
    }
}
