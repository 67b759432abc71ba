//! Rectangles as bytes: raw, and ZRLE (RFC 6143, 7.7.1 and 7.7.6).
use super::protocol::{PixelFormat, encoding};
use crate::display::{Rect, Surface};
use flate2::{Compress, Compression, FlushCompress};

/// Pixels along a tile's side.
const TILE: usize = 64;
/// Most colours of a tile that has a palette.
const PALETTE: usize = 16;

/// Compresses what one client gets: one stream from its first rectangle to its last.
pub struct Zlib(Compress);

impl Zlib {
    pub fn new() -> Self {
        Self(Compress::new(Compression::new(3), true))
    }

    /// What `bytes` add to the stream.
    pub fn add(&mut self, mut bytes: &[u8], to: &mut Vec<u8>) {
        loop {
            to.reserve(bytes.len() / 4 + 1024);
            let (before_in, before_out) = (self.0.total_in(), to.len());
            let free = to.capacity() - to.len();
            // Memory is all that it could lack, and it has that.
            let _ = self.0.compress_vec(bytes, to, FlushCompress::Sync);
            bytes = &bytes[(self.0.total_in() - before_in) as usize..];
            if bytes.is_empty() && to.len() - before_out < free {
                return;
            }
        }
    }
}

/// A rectangle's head.
pub fn head(to: &mut Vec<u8>, rect: Rect, encoding: i32) {
    for n in [rect.x, rect.y, rect.width, rect.height] {
        to.extend((n as u16).to_be_bytes());
    }
    to.extend(encoding.to_be_bytes());
}

/// The screen's size, as a rectangle: it has changed by itself, or a client that wants another one is refused.
pub fn extended_size(to: &mut Vec<u8>, (width, height): (usize, usize), refused: bool) {
    // The reason is the client's, and the answer that it is prohibited.
    let because = usize::from(refused);
    head(to, Rect { x: because, y: because, width, height }, encoding::EXTENDED_DESKTOP_SIZE);
    // One screen, with the number 0, at the upper left, without flags.
    to.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    to.extend((width as u16).to_be_bytes());
    to.extend((height as u16).to_be_bytes());
    to.extend([0; 4]);
}

/// A rectangle's pixels as they are.
pub fn raw(to: &mut Vec<u8>, format: &PixelFormat, surface: &Surface, rect: Rect) {
    head(to, rect, encoding::RAW);
    for y in rect.y..rect.y + rect.height {
        let row = &surface.row(y)[rect.x..rect.x + rect.width];
        row.iter().for_each(|p| format.put(format.pixel(*p), to));
    }
}

/// A rectangle's pixels in compressed tiles.
pub fn zrle(to: &mut Vec<u8>, zlib: &mut Zlib, format: &PixelFormat, surface: &Surface, rect: Rect) {
    head(to, rect, encoding::ZRLE);
    let mut tiles = Vec::new();
    let mut pixels = Vec::with_capacity(TILE * TILE);
    for y in (rect.y..rect.y + rect.height).step_by(TILE) {
        for x in (rect.x..rect.x + rect.width).step_by(TILE) {
            let (width, height) = (TILE.min(rect.x + rect.width - x), TILE.min(rect.y + rect.height - y));
            pixels.clear();
            (y..y + height).for_each(|y| pixels.extend_from_slice(&surface.row(y)[x..x + width]));
            tile(&mut tiles, format, &pixels, width);
        }
    }
    let length = to.len();
    to.extend([0; 4]);
    zlib.add(&tiles, to);
    let compressed = (to.len() - length - 4) as u32;
    to[length..length + 4].copy_from_slice(&compressed.to_be_bytes());
}

/// A pixel of a tile: three bytes where these have all of it.
fn cpixel(to: &mut Vec<u8>, format: &PixelFormat, pixel: u32) {
    let at = to.len();
    format.put(format.pixel(pixel), to);
    if let Some(first) = format.three_bytes() {
        to.copy_within(at + first..at + first + 3, at);
        to.truncate(at + 3);
    }
}

fn tile(to: &mut Vec<u8>, format: &PixelFormat, pixels: &[u32], width: usize) {
    let mut colours: Vec<u32> = Vec::with_capacity(PALETTE + 1);
    let mut runs = 0;
    let mut last = None;
    for pixel in pixels {
        if last == Some(*pixel) {
            continue;
        }
        last = Some(*pixel);
        runs += 1;
        if colours.len() <= PALETTE && !colours.contains(pixel) {
            colours.push(*pixel);
        }
    }
    match colours.len() {
        1 => {
            to.push(1);
            cpixel(to, format, colours[0]);
        }
        n if n <= PALETTE => {
            to.push(n as u8);
            colours.iter().for_each(|c| cpixel(to, format, *c));
            let bits = match n {
                2 => 1,
                3..=4 => 2,
                _ => 4,
            };
            for row in pixels.chunks(width) {
                for some in row.chunks(8 / bits) {
                    let index = |p: &u32| colours.iter().position(|c| c == p).unwrap_or(0) as u8;
                    let byte = some.iter().fold(0, |byte, p| byte << bits | index(p));
                    to.push(byte << (bits * (8 / bits - some.len())));
                }
            }
        }
        // Plain runs, where these are fewer than half of the pixels.
        _ if runs * 2 < pixels.len() => {
            to.push(128);
            for run in pixels.chunk_by(|a, b| a == b) {
                cpixel(to, format, run[0]);
                let mut left = run.len() - 1;
                while left >= 255 {
                    to.push(255);
                    left -= 255;
                }
                to.push(left as u8);
            }
        }
        _ => {
            to.push(0);
            pixels.iter().for_each(|p| cpixel(to, format, *p));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Decompress, FlushDecompress};

    /// The pixels of a ZRLE rectangle in our own format, as a client decodes them.
    fn decode(bytes: &[u8], zlib: &mut Decompress, rect: Rect) -> Vec<u32> {
        assert_eq!(bytes[8..12], encoding::ZRLE.to_be_bytes());
        assert_eq!(u32::from_be_bytes(bytes[12..16].try_into().unwrap()) as usize, bytes.len() - 16);
        let mut tiles = Vec::with_capacity(rect.width * rect.height * 8 + 1024);
        zlib.decompress_vec(&bytes[16..], &mut tiles, FlushDecompress::Sync).unwrap();
        let mut b = tiles.into_iter();
        let mut out = vec![0; rect.width * rect.height];
        for y in (0..rect.height).step_by(TILE) {
            for x in (0..rect.width).step_by(TILE) {
                let (w, h) = (TILE.min(rect.width - x), TILE.min(rect.height - y));
                let kind = b.next().unwrap();
                let mut pixel =
                    || u32::from_le_bytes([b.next().unwrap(), b.next().unwrap(), b.next().unwrap(), 0]);
                let mut pixels = Vec::new();
                match kind {
                    0 => pixels.extend((0..w * h).map(|_| pixel())),
                    1 => pixels = vec![pixel(); w * h],
                    2..=16 => {
                        let colours: Vec<_> = (0..kind).map(|_| pixel()).collect();
                        let bits = [0, 0, 1, 2, 2, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4][usize::from(kind)];
                        for _ in 0..h {
                            let row: Vec<_> = (0..w.div_ceil(8 / bits)).map(|_| b.next().unwrap()).collect();
                            let index =
                                |i: usize| row[i * bits / 8] >> (8 - bits - i * bits % 8) & ((1 << bits) - 1);
                            pixels.extend((0..w).map(|i| colours[usize::from(index(i))]));
                        }
                    }
                    128 => {
                        while pixels.len() < w * h {
                            let colour = u32::from_le_bytes([
                                b.next().unwrap(),
                                b.next().unwrap(),
                                b.next().unwrap(),
                                0,
                            ]);
                            let mut n = 1;
                            loop {
                                let more = b.next().unwrap();
                                n += usize::from(more);
                                if more != 255 {
                                    break;
                                }
                            }
                            pixels.extend(std::iter::repeat_n(colour, n));
                        }
                    }
                    other => panic!("{other}"),
                }
                assert_eq!(pixels.len(), w * h);
                pixels.chunks(w).enumerate().for_each(|(n, row)| {
                    let at = (y + n) * rect.width + x;
                    out[at..at + w].copy_from_slice(row);
                });
            }
        }
        assert_eq!(b.next(), None);
        out
    }

    #[test]
    fn tiles_of_all_kinds_come_back_as_they_were() {
        // From left to right: one colour, two, four, sixteen, runs of many, and no two pixels alike.
        let mut surface = Surface::new(64 * 6 + 7, 130);
        for y in 0..130 {
            for (x, p) in surface.row_mut(y).iter_mut().enumerate() {
                let n = (x * 31 + y * 17) as u32;
                *p = match x / 64 {
                    0 => 0x0012_3456,
                    1 => 0x00ff_ffff * (n % 2),
                    2 => n % 4 * 0x40,
                    3 => n % 16 * 0x0001_0203,
                    4 => y as u32 * 0x0101 + (x as u32 / 32) * 5,
                    _ => n.wrapping_mul(0x9e37_79b9) & 0x00ff_ffff,
                };
            }
        }
        let (mut zlib, mut other) = (Zlib::new(), Decompress::new(true));
        for rect in [
            Rect { x: 0, y: 0, width: surface.width(), height: 130 },
            Rect { x: 63, y: 5, width: 259, height: 66 },
            Rect { x: 390, y: 129, width: 1, height: 1 },
        ] {
            let mut bytes = Vec::new();
            zrle(&mut bytes, &mut zlib, &PixelFormat::OWN, &surface, rect);
            let rows =
                (rect.y..rect.y + rect.height).flat_map(|y| &surface.row(y)[rect.x..rect.x + rect.width]);
            assert!(decode(&bytes, &mut other, rect).iter().eq(rows), "{rect:?}");
        }
    }
}
