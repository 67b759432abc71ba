//! What the monitor says of itself: a block of EDID with the preferred resolution.
//!
//! Source: VESA Enhanced Extended Display Identification Data Standard, release A, revision 2 (EDID 1.4), section 3.

/// Bytes of a block.
pub const LEN: usize = 128;
/// Bits of a resolution in a detailed timing.
pub const MOST: u32 = 4095;

/// Resolutions that the monitor has beside the preferred one: width, the aspect ratio's bits, at 60 Hz (3.9).
const STANDARD: [(u16, u8); 8] = [
    (2048, 0b11),
    (1920, 0b11),
    (1680, 0b00),
    (1600, 0b01),
    (1440, 0b00),
    (1280, 0b10),
    (1280, 0b01),
    (1280, 0b00),
];

/// The block of a monitor whose preferred resolution is this one.
pub fn block(xres: u32, yres: u32) -> [u8; LEN] {
    let (xres, yres) = (xres.clamp(8, MOST), yres.clamp(8, MOST));
    let mut e = [0; LEN];
    e[1..7].fill(0xff);
    // "MYN", five bits for each letter; product 1111h; model year 2026.
    e[8..10].copy_from_slice(&(13_u16 << 10 | 25 << 5 | 14).to_be_bytes());
    e[10..12].copy_from_slice(&0x1111_u16.to_le_bytes());
    (e[16], e[17]) = (0xff, 36);
    (e[18], e[19]) = (1, 4);
    // Digital, 8 bits for each colour; centimetres at 100 dots per inch; gamma 2.2; sRGB, the first timing is native.
    e[20] = 0xa5;
    let centimetres = |dots: u32| (dots * 254 / 10_000).clamp(1, 255) as u8;
    (e[21], e[22], e[23], e[24]) = (centimetres(xres), centimetres(yres), 120, 0x06);
    e[25..35].copy_from_slice(&[0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54]);
    // 640x480, 800x600 and 1024x768 at 60 Hz.
    (e[35], e[36]) = (0x21, 0x08);
    for (at, (width, aspect)) in e[38..54].chunks_exact_mut(2).zip(STANDARD) {
        at.copy_from_slice(&[(width / 8 - 31) as u8, aspect << 6]);
    }
    e[54..72].copy_from_slice(&detailed(xres, yres));
    // Range limits: 50 to 125 Hz, 30 to 160 kHz, up to 660 MHz, no formula.
    e[72..90].copy_from_slice(&text(0xfd, &[50, 125, 30, 160, 66, 1, 10, 32, 32, 32, 32, 32, 32]));
    e[90..108].copy_from_slice(&text(0xfc, b"Mynah\n       "));
    e[108..126].copy_from_slice(&text(0x10, &[0; 13]));
    e[127] = e.iter().fold(0, |sum: u8, b| sum.wrapping_sub(*b));
    e
}

/// A descriptor that is not a timing (3.10.3).
fn text(tag: u8, bytes: &[u8; 13]) -> [u8; 18] {
    let mut d = [0; 18];
    d[3] = tag;
    d[5..].copy_from_slice(bytes);
    d
}

/// A detailed timing with reduced blanking (3.10.2).
fn detailed(x: u32, y: u32) -> [u8; 18] {
    const H_BLANK: u32 = 160;
    const H_FRONT: u32 = 48;
    const H_SYNC: u32 = 32;
    const V_FRONT: u32 = 3;
    const V_SYNC: u32 = 6;
    let v_blank = (y * 4 / 100).max(V_FRONT + V_SYNC + 6);
    let clock = ((x + H_BLANK) * (y + v_blank) / 100 * 60 / 100).min(0xffff) as u16;
    let [low, high] = clock.to_le_bytes();
    let (width, height) = (x * 254 / 1000, y * 254 / 1000);
    let nibbles = |a: u32, b: u32| ((a >> 8) << 4 | b >> 8) as u8;
    [
        low,
        high,
        x as u8,
        H_BLANK as u8,
        nibbles(x, H_BLANK),
        y as u8,
        v_blank as u8,
        nibbles(y, v_blank),
        H_FRONT as u8,
        H_SYNC as u8,
        (V_FRONT << 4 | V_SYNC) as u8,
        0,
        width as u8,
        height as u8,
        nibbles(width, height),
        0,
        0,
        // Digital separate sync, horizontal positive.
        0x1a,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_is_whole_and_prefers_what_was_asked_for() {
        for (x, y) in [(1280, 800), (8, 8), (3840, 2160), (4095, 4095), (99_999, 1)] {
            let e = block(x, y);
            assert_eq!(e.iter().fold(0, |sum: u8, b| sum.wrapping_add(*b)), 0);
            assert_eq!(e[..8], [0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
            let wide = |low: usize, high: usize| u32::from(e[low]) | u32::from(e[high] >> 4) << 8;
            assert_eq!((wide(56, 58), wide(59, 61)), (x.clamp(8, 4095), y.clamp(8, 4095)));
        }
        let e = block(1280, 800);
        let clock = u32::from(u16::from_le_bytes([e[54], e[55]])) * 10_000;
        let rate = f64::from(clock) / (1440.0 * 832.0);
        assert!((rate - 60.0).abs() < 0.2, "{rate}");
    }
}
