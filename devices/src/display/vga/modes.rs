//! The registers of the BIOS' video modes, for tests.
//!
//! Source: IBM PS/2 and PC BIOS Interface Technical Reference, video parameter table.

/// Miscellaneous output; sequencer 1 to 4; CRTC; attribute controller 10h to 13h; graphics controller 5 and 6.
type Row = (u8, [u8; 4], [u8; 25], [u8; 4], [u8; 2]);

const CRTC_TEXT: [u8; 25] = [
    0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00, 0x4f, 0x0d, 0x0e, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f,
    0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff,
];

fn row(mode: u8) -> Row {
    // The timing of 200 and 400 lines.
    let crtc = |start: [u8; 6], scan: u8, pitch: u8, underline: u8, mode: u8| {
        let mut c = CRTC_TEXT;
        c[..6].copy_from_slice(&start);
        (c[9], c[0x0a], c[0x0b], c[0x13], c[0x14], c[0x17]) = (scan, 0, 0, pitch, underline, mode);
        c
    };
    let (wide, narrow) = ([0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80], [0x2d, 0x27, 0x28, 0x90, 0x2b, 0x80]);
    match mode {
        1 => {
            let mut c = crtc(narrow, 0x4f, 0x14, 0x1f, 0xa3);
            (c[4], c[5], c[0x0a], c[0x0b]) = (0x2b, 0xa0, 0x0d, 0x0e);
            (0x67, [0x08, 3, 0, 2], c, [0x0c, 0, 0x0f, 8], [0x10, 0x0e])
        }
        3 => (0x67, [0x00, 3, 0, 2], CRTC_TEXT, [0x0c, 0, 0x0f, 8], [0x10, 0x0e]),
        4 => (0x63, [0x09, 3, 0, 2], crtc(narrow, 0xc1, 0x14, 0, 0xa2), [1, 0, 3, 0], [0x30, 0x0f]),
        6 => (0x63, [0x01, 1, 0, 6], crtc(wide, 0xc1, 0x28, 0, 0xc2), [1, 0, 1, 0], [0x00, 0x0d]),
        7 => {
            let mut c = CRTC_TEXT;
            c[0x14] = 0x0d;
            (0x66, [0x00, 3, 0, 2], c, [0x0e, 0, 0x0f, 8], [0x10, 0x0a])
        }
        0x0d => (0x63, [0x09, 15, 0, 6], crtc(narrow, 0xc0, 0x14, 0, 0xe3), [1, 0, 15, 0], [0x00, 0x05]),
        0x12 => {
            let mut c = crtc(wide, 0x40, 0x28, 0, 0xe3);
            (c[6], c[7], c[0x10], c[0x11]) = (0x0b, 0x3e, 0xea, 0x8c);
            (c[0x12], c[0x15], c[0x16]) = (0xdf, 0xe7, 0x04);
            (0xe3, [0x01, 15, 0, 6], c, [1, 0, 15, 0], [0x00, 0x05])
        }
        // 320 by 200 in 256 colours; 14h for the same with planes (Mode X's way of addressing).
        0x13 => (0x63, [0x01, 15, 0, 14], crtc(wide, 0x41, 0x28, 0x40, 0xa3), [0x41, 0, 15, 0], [0x40, 0x05]),
        _ => (0x63, [0x01, 15, 0, 6], crtc(wide, 0x41, 0x28, 0, 0xe3), [0x41, 0, 15, 0], [0x40, 0x05]),
    }
}

/// What to write to ports, in this order, for a mode with the colours of the PC.
pub fn writes(mode: u8) -> Vec<(u16, u8)> {
    let (misc, seq, crtc, ac, gc) = row(mode);
    let base = if misc & 1 != 0 { 0x3d4 } else { 0x3b4 };
    let mut w = vec![(0x3c2, misc), (0x3c4, 0), (0x3c5, 3)];
    let mut indexed = |port: u16, index: usize, value: u8| w.extend([(port, index as u8), (port + 1, value)]);
    seq.iter().enumerate().for_each(|(n, v)| indexed(0x3c4, n + 1, *v));
    indexed(base, 0x11, 0);
    crtc.iter().enumerate().for_each(|(n, v)| indexed(base, n, *v));
    [0, 0, 0, 0, 0, gc[0], gc[1], 0x0f, 0xff].iter().enumerate().for_each(|(n, v)| indexed(0x3ce, n, *v));
    let colours = match mode {
        4 => [0, 0x13, 0x15, 0x17].repeat(4),
        6 => [0, 0x17].repeat(8),
        7 => (0..16)
            .map(|n| [0, 8, 8, 8, 8, 8, 8, 8, 0x10, 0x18, 0x18, 0x18, 0x18, 0x18, 0x18, 0x18][n])
            .collect(),
        0x13.. => (0..16).collect(),
        0x0d => (0..16).map(|n: u8| n & 7 | (n & 8) << 1).collect(),
        _ => vec![0, 1, 2, 3, 4, 5, 0x14, 7, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f],
    };
    for (n, v) in (0..).zip(colours.iter().chain(&ac)) {
        w.extend([(0x3c0, n), (0x3c0, *v)]);
    }
    w.push((0x3c0, 0x20));
    w.push((0x3c6, 0xff));
    w.push((0x3c8, 0));
    for n in 0..=255_u8 {
        // The 64 colours of the EGA, or a cube of colours where there are 256.
        let rgb = match (mode, n) {
            (7, _) => [if n & 0x08 != 0 { 0x2a } else { 0 } + if n & 0x10 != 0 { 0x15 } else { 0 }; 3],
            (4 | 6 | 0x0d | 0x13.., 0..=0x1f) => [4, 2, 1]
                .map(|bit| (if n & bit != 0 { 0x2a } else { 0 }) + if n & 0x18 != 0 { 0x15 } else { 0 }),
            (0x13.., _) => [n >> 5 << 3, (n >> 2 & 7) << 3, (n & 3) << 4],
            _ => [2, 1, 0].map(|bit| {
                (if n >> bit & 1 != 0 { 0x2a } else { 0 }) + if n >> (bit + 3) & 1 != 0 { 0x15 } else { 0 }
            }),
        };
        w.extend(rgb.map(|c| (0x3c9, c)));
    }
    w
}
