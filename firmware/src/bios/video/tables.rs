//! The modes of the VGA: their registers, colours, and how their memory is laid out.
//!
//! The registers are those of the video parameter table, which programs find in the ROM as well (`Mode::block` is one
//! of its rows).
//!
//! Sources: IBM PS/2 and PC BIOS Interface Technical Reference, "Video parameter table"; IBM PS/2 Video Subsystem
//! Technical Reference, "BIOS video modes".

/// How a mode's memory is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Characters and attributes.
    Text,
    /// So many bits a pixel; odd scan lines are 8 KiB behind the even ones.
    Cga(u8),
    /// Four planes.
    Planar,
    /// A byte a pixel.
    Bytes,
}

/// Which colours the DAC has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Palette {
    /// Black, white and bright.
    Mono,
    /// The 16 of a CGA.
    Cga,
    /// The 64 of an EGA.
    Ega,
    /// The 256 of mode 13h.
    Vga,
}

/// A mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mode {
    pub number: u8,
    pub layout: Layout,
    pub palette: Palette,
    /// Characters in a row.
    pub columns: u8,
    /// Rows of characters.
    pub rows: u8,
    /// Scan lines of a character.
    pub height: u8,
    /// Bytes of a page.
    pub page: u16,
    pub misc: u8,
    /// Sequencer 1 to 4.
    pub seq: [u8; 4],
    pub crtc: [u8; 25],
    /// Attribute controller 10h to 13h.
    pub ac: [u8; 4],
    pub colours: Colours,
    /// Graphics controller 5 and 6.
    pub gc: [u8; 2],
}

/// The attribute controller's palette.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colours {
    Ega,
    Cga,
    Plain,
    Mono,
    Two,
    /// Mode 4: the colours of its palette.
    Four,
    /// Mode 6: black and white.
    White,
    /// Mode 0Fh.
    MonoGraphics,
}

impl Colours {
    pub fn registers(self) -> [u8; 16] {
        match self {
            Self::Ega => [0, 1, 2, 3, 4, 5, 0x14, 7, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f],
            Self::Cga => [0, 1, 2, 3, 4, 5, 6, 7, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17],
            Self::Plain => std::array::from_fn(|n| n as u8),
            Self::Mono => {
                std::array::from_fn(|n| [0, 0x08, 0x10, 0x18][2 * (n / 8) + usize::from(n % 8 != 0)])
            }
            Self::Two => std::array::from_fn(|n| if n % 2 == 0 { 0 } else { 0x3f }),
            Self::Four => [0, 0x13, 0x15, 0x17, 2, 4, 6, 7, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17],
            Self::White => std::array::from_fn(|n| if n == 0 { 0 } else { 0x17 }),
            Self::MonoGraphics => [0, 8, 0, 0, 0x18, 0x18, 0, 0, 0, 8, 0, 0, 0, 0x18, 0, 0],
        }
    }
}

/// Horizontal timing: CRTC 0 to 5.
const WIDE: [u8; 6] = [0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80];
const WIDE_TEXT: [u8; 6] = [0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81];
const NARROW: [u8; 6] = [0x2d, 0x27, 0x28, 0x90, 0x2b, 0x80];
const NARROW_TEXT: [u8; 6] = [0x2d, 0x27, 0x28, 0x90, 0x2b, 0xa0];

/// Vertical timing: CRTC 6 and 7, 10h to 12h, 15h and 16h.
type Vertical = [u8; 7];
const LINES_400: Vertical = [0xbf, 0x1f, 0x9c, 0x8e, 0x8f, 0x96, 0xb9];
const LINES_350: Vertical = [0xbf, 0x1f, 0x83, 0x85, 0x5d, 0x63, 0xba];
const LINES_480: Vertical = [0x0b, 0x3e, 0xea, 0x8c, 0xdf, 0xe7, 0x04];

/// `scan` and `cursor`: CRTC 9, 0Ah and 0Bh; `end`: offset, underline, mode (13h, 14h, 17h).
fn crtc(horizontal: [u8; 6], v: Vertical, scan: u8, cursor: [u8; 2], end: [u8; 3]) -> [u8; 25] {
    let mut c = [0; 25];
    c[..6].copy_from_slice(&horizontal);
    (c[6], c[7], c[0x10], c[0x11], c[0x12], c[0x15], c[0x16]) = v.into();
    (c[9], c[0x0a], c[0x0b]) = (scan, cursor[0], cursor[1]);
    (c[0x13], c[0x14], c[0x17], c[0x18]) = (end[0], end[1], end[2], 0xff);
    c
}

/// Scan lines of a text mode, as INT 10h AX=12xxh BL=30h chooses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lines {
    L200,
    L350,
    L400,
}

/// A mode by its number; `lines` is for text modes.
pub(super) fn mode(number: u8, lines: Lines) -> Option<Mode> {
    let graphics = |layout, palette, colours, columns: u8, rows: u8, height: u8, page: u16| Mode {
        number,
        layout,
        palette,
        columns,
        rows,
        height,
        page,
        misc: 0x63,
        seq: [0x01, 0x0f, 0, 0x06],
        crtc: crtc(WIDE, LINES_400, 0xc0, [0, 0], [0x28, 0, 0xe3]),
        ac: [0x01, 0, 0x0f, 0],
        colours,
        gc: [0x00, 0x05],
    };
    let narrow = |m: Mode, scan: u8, end: [u8; 3]| Mode {
        seq: [m.seq[0] | 0x08, m.seq[1], m.seq[2], m.seq[3]],
        crtc: crtc(NARROW, LINES_400, scan, [0, 0], end),
        ..m
    };
    Some(match number {
        0..=3 | 7 => text(number, lines),
        4 | 5 => {
            let m = graphics(Layout::Cga(2), Palette::Cga, Colours::Four, 40, 25, 8, 0x4000);
            let m = Mode { seq: [0x01, 0x03, 0, 0x02], ac: [0x01, 0, 0x03, 0], gc: [0x30, 0x0f], ..m };
            narrow(m, 0xc1, [0x14, 0, 0xa2])
        }
        6 => Mode {
            seq: [0x01, 0x01, 0, 0x06],
            crtc: crtc(WIDE, LINES_400, 0xc1, [0, 0], [0x28, 0, 0xc2]),
            ac: [0x01, 0, 0x01, 0],
            gc: [0x00, 0x0d],
            ..graphics(Layout::Cga(1), Palette::Cga, Colours::White, 80, 25, 8, 0x4000)
        },
        0x0d => narrow(
            graphics(Layout::Planar, Palette::Cga, Colours::Cga, 40, 25, 8, 0x2000),
            0xc0,
            [0x14, 0, 0xe3],
        ),
        0x0e => graphics(Layout::Planar, Palette::Cga, Colours::Cga, 80, 25, 8, 0x4000),
        0x0f | 0x10 => {
            let (palette, colours) = match number {
                0x0f => (Palette::Mono, Colours::MonoGraphics),
                _ => (Palette::Ega, Colours::Ega),
            };
            Mode {
                misc: 0xa3,
                crtc: crtc(WIDE, LINES_350, 0x40, [0, 0], [0x28, 0x0f, 0xe3]),
                ac: if number == 0x0f { [0x0b, 0, 0x05, 0] } else { [0x01, 0, 0x0f, 0] },
                ..graphics(Layout::Planar, palette, colours, 80, 25, 14, 0x8000)
            }
        }
        0x11 | 0x12 => {
            let colours = if number == 0x11 { Colours::Two } else { Colours::Ega };
            Mode {
                misc: 0xe3,
                crtc: crtc(WIDE, LINES_480, 0x40, [0, 0], [0x28, 0, 0xe3]),
                ..graphics(Layout::Planar, Palette::Ega, colours, 80, 30, 16, 0xa000)
            }
        }
        0x13 => Mode {
            seq: [0x01, 0x0f, 0, 0x0e],
            crtc: crtc(WIDE, LINES_400, 0x41, [0, 0], [0x28, 0x40, 0xa3]),
            ac: [0x41, 0, 0x0f, 0],
            gc: [0x40, 0x05],
            ..graphics(Layout::Bytes, Palette::Vga, Colours::Plain, 40, 25, 8, 0x2000)
        },
        _ => return None,
    })
}

fn text(number: u8, lines: Lines) -> Mode {
    let narrow = number < 2;
    let mono = number == 7;
    // The monochrome mode has no 200 lines.
    let lines = if mono && lines == Lines::L200 { Lines::L350 } else { lines };
    let horizontal = if narrow { NARROW_TEXT } else { WIDE_TEXT };
    let end = [if narrow { 0x14 } else { 0x28 }, if mono { 0x0d } else { 0x1f }, 0xa3];
    let nine_dots = lines == Lines::L400 || mono;
    let (misc, vertical, scan, cursor, height) = match lines {
        Lines::L400 => (0x67, LINES_400, 0x4f, [0x0d, 0x0e], 16),
        Lines::L350 => (if mono { 0xa7 } else { 0xa3 }, LINES_350, 0x4d, [0x0b, 0x0c], 14),
        Lines::L200 => (0x63, LINES_400, 0xc7, [0x06, 0x07], 8),
    };
    Mode {
        number,
        layout: Layout::Text,
        palette: match (mono, lines) {
            (true, _) => Palette::Mono,
            (_, Lines::L200) => Palette::Cga,
            _ => Palette::Ega,
        },
        columns: if narrow { 40 } else { 80 },
        rows: 25,
        height,
        page: if narrow { 0x0800 } else { 0x1000 },
        misc: if mono { misc & !1 } else { misc },
        seq: [u8::from(!nine_dots) | if narrow { 0x08 } else { 0 }, 0x03, 0, 0x02],
        crtc: crtc(horizontal, vertical, scan, cursor, end),
        ac: match (mono, nine_dots) {
            (true, _) => [0x0e, 0, 0x0f, 8],
            (_, true) => [0x0c, 0, 0x0f, 8],
            _ => [0x08, 0, 0x0f, 0],
        },
        colours: match (mono, lines) {
            (true, _) => Colours::Mono,
            (_, Lines::L200) => Colours::Cga,
            _ => Colours::Ega,
        },
        gc: [0x10, if mono { 0x0a } else { 0x0e }],
    }
}

impl Mode {
    /// The attribute controller's 21 registers.
    pub fn attribute(&self) -> [u8; 21] {
        let mut a = [0; 21];
        a[..16].copy_from_slice(&self.colours.registers());
        a[16..20].copy_from_slice(&self.ac);
        a
    }

    /// The graphics controller's nine registers.
    pub fn graphics(&self) -> [u8; 9] {
        [0, 0, 0, 0, 0, self.gc[0], self.gc[1], 0x0f, 0xff]
    }

    /// The first linear address of its memory.
    pub fn base(&self) -> u32 {
        match self.gc[1] >> 2 & 3 {
            2 => 0xb_0000,
            3 => 0xb_8000,
            _ => 0xa_0000,
        }
    }

    /// Its row of the video parameter table.
    pub fn block(&self) -> [u8; 64] {
        let mut b = [0; 64];
        b[..3].copy_from_slice(&[self.columns, self.rows - 1, self.height]);
        b[3..5].copy_from_slice(&self.page.to_le_bytes());
        b[5..9].copy_from_slice(&self.seq);
        b[9] = self.misc;
        b[10..35].copy_from_slice(&self.crtc);
        b[35..55].copy_from_slice(&self.attribute()[..20]);
        b[55..64].copy_from_slice(&self.graphics());
        b
    }
}

/// The video parameter table: 29 rows, in the order that IBM's has them; those of modes that no VGA has are empty.
pub(super) fn parameters() -> Vec<u8> {
    use Lines::{L200, L350, L400};
    let rows = (0..4).map(|n| (n, L200));
    let rows = rows.chain((4..7).map(|n| (n, L400))).chain([(7, L350)]);
    // 08h to 0Ch; then graphics; 0Fh and 10h stand twice, for little memory and much.
    let rows =
        rows.chain([8, 9, 10, 11, 12].map(|n| (n, L400))).chain([0x0d, 0x0e, 0x0f, 0x10].map(|n| (n, L400)));
    let rows = rows.chain([(0x0f, L400), (0x10, L400)]).chain((0..4).map(|n| (n, L350)));
    // 0 and 1, 2 and 3, 7 with 400 lines, 11h to 13h.
    let rows = rows.chain([0, 3, 7, 0x11, 0x12, 0x13].map(|n| (n, L400)));
    rows.flat_map(|(n, lines)| mode(n, lines).map_or([0; 64], |m| m.block())).collect()
}

/// Red, green and blue of 256 colours, six bits each.
pub(super) fn dac(palette: Palette) -> Vec<[u8; 3]> {
    let mut all: Vec<[u8; 3]> = match palette {
        Palette::Mono => (0..64).map(|n| [[0, 0x2a, 0x2a, 0x3f][n / 8 % 4]; 3]).collect(),
        Palette::Cga => (0..64).map(|n: u8| cga(n & 7 | n >> 1 & 8)).collect(),
        Palette::Ega => (0..64_u8)
            .map(|n| [2, 1, 0].map(|bit| 0x2a * (n >> bit & 1) + 0x15 * (n >> (bit + 3) & 1)))
            .collect(),
        Palette::Vga => vga(),
    };
    all.resize(256, [0; 3]);
    all
}

/// One of 16 colours: blue, green, red, bright; dark yellow is brown.
fn cga(n: u8) -> [u8; 3] {
    let bright = 0x15 * (n >> 3);
    let mut rgb = [2, 1, 0].map(|bit| 0x2a * (n >> bit & 1) + bright);
    if n == 6 {
        rgb[1] = 0x15;
    }
    rgb
}

/// Sixteen colours, sixteen greys, and 24 hues in three intensities of three saturations.
fn vga() -> Vec<[u8; 3]> {
    const GREYS: [u8; 16] = [0, 5, 8, 11, 14, 17, 20, 24, 28, 32, 36, 40, 45, 50, 56, 63];
    // From the weakest to the strongest part of a hue.
    const STEPS: [[u8; 5]; 9] = [
        [0, 16, 31, 47, 63],
        [31, 39, 47, 55, 63],
        [45, 49, 54, 58, 63],
        [0, 7, 14, 21, 28],
        [14, 17, 21, 24, 28],
        [20, 22, 24, 26, 28],
        [0, 4, 8, 12, 16],
        [8, 10, 12, 14, 16],
        [11, 12, 13, 15, 16],
    ];
    let mut all: Vec<_> = (0..16).map(cga).collect();
    all.extend(GREYS.map(|g| [g; 3]));
    for steps in STEPS {
        let rising = |n: usize| steps[n];
        let falling = |n: usize| steps[4 - n];
        // Blue to magenta, red, yellow, green, cyan and back.
        for n in 0..24 {
            let k = n % 4;
            let (low, high) = (steps[0], steps[4]);
            all.push(match n / 4 {
                0 => [rising(k), low, high],
                1 => [high, low, falling(k)],
                2 => [high, rising(k), low],
                3 => [falling(k), high, low],
                4 => [low, high, rising(k)],
                _ => [low, falling(k), high],
            });
        }
    }
    all
}
