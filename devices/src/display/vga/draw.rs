//! From registers and memory to pixels.
//!
//! A [`Look`] is all that the picture depends on beside the memory. It is drawn scan line by scan line, as the CRTC
//! walks: an address for each row of characters (or of pixels), a scan line within that, a split screen below the
//! line compare. A dot of the monitor is a pixel: modes of 320 columns are 640 wide, and those of 200 lines 400 high.
//!
//! Not there: skew, the overscan border, blinking pixels of graphics modes, and display addresses that count by two or
//! four characters.
use super::regs::{PALETTE_TO_SCREEN, Registers};
use super::vbe;
use crate::clock::Nanos;
use crate::display::{TextCell, TextScreen};
use mynah_mmu::DeviceRam;

/// Cells of four planes that the VGA's own modes reach.
const CELLS: u32 = 0x1_0000;

/// How the CRTC walks through memory, in cells of four planes.
#[derive(Clone, PartialEq, Eq)]
struct Scan {
    /// Characters, or cells, in a row.
    columns: u32,
    /// Scan lines.
    height: u32,
    start: u32,
    pitch: u32,
    /// Scan lines of a row, each shown `repeat` times.
    scans: u32,
    repeat: u32,
    /// Scan lines of the first row that are not shown.
    preset: u32,
    /// The last scan line above the split.
    compare: u32,
    /// Pixels of the first column that are not shown.
    panning: u32,
    /// Those below the split.
    panning_below: u32,
    /// Each pixel is two dots.
    wide: bool,
    /// Addresses go round after so many cells, a power of two.
    cells: u32,
}

/// Where a scan line comes from.
struct Place {
    /// The first cell.
    address: u32,
    /// The scan line in its row.
    scan: u32,
    panning: u32,
}

#[derive(Clone, PartialEq, Eq)]
struct Text {
    scan: Scan,
    /// Dots of a character.
    dots: usize,
    /// Where the fonts are in plane 2: of characters with attribute bit 3 clear, and set.
    fonts: [u32; 2],
    /// The address of the cursor and its scan lines, if it is on.
    cursor: Option<(u32, u32, u32)>,
    /// It is lit now.
    lit: bool,
    /// Attribute bit 7 is blinking, and characters with it are dark now.
    blink: bool,
    dark: bool,
    /// The scan line of an underline.
    underline: u32,
    /// The ninth dot of C0h to DFh is as the eighth.
    line_graphics: bool,
    colours: [u32; 16],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shift {
    /// A bit of each plane.
    Planes,
    /// Two bits at a time, of planes 0 and 2, then of 1 and 3.
    Interleaved,
    /// A byte for two dots.
    Bytes,
}

#[derive(Clone, PartialEq, Eq)]
struct Graphics {
    scan: Scan,
    shift: Shift,
    /// Address bits that are the lower two of the scan line: which bit, and whether.
    banks: [(u32, bool); 2],
    /// Planes that count.
    planes: u8,
    colours: [u32; 16],
    palette: Vec<u32>,
}

#[derive(Clone, PartialEq, Eq)]
struct Linear {
    width: u32,
    height: u32,
    bits: u16,
    start: u64,
    pitch: u64,
    big_endian: bool,
    palette: Vec<u32>,
}

#[derive(Clone, PartialEq, Eq)]
enum Picture {
    /// Nothing: a screen of this size is dark.
    Blank(u32, u32),
    Text(Text),
    Graphics(Graphics),
    Linear(Linear),
}

/// All that a picture depends on beside the memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Look(Picture);

impl Registers {
    fn scan(&self) -> Scan {
        let c = &self.crtc;
        let repeat = 1 + u32::from(c[9] >> 7);
        let pan = u32::from(self.ac[0x13] & 0x0f);
        let panning = if self.gc[6] & 1 == 0 && self.dots() == 9 {
            // 8 is none, and 0 is one.
            if pan >= 8 { 0 } else { pan + 1 }
        } else {
            pan & 7
        };
        let stops = self.ac[0x10] & 1 << 5 != 0;
        let high = |at: usize| u32::from(c[at]) << 8 | u32::from(c[at + 1]);
        Scan {
            columns: self.horizontal_displayed(),
            height: self.vertical_displayed(),
            start: high(0x0c) + u32::from(c[8] >> 5 & 3),
            pitch: u32::from(c[0x13]) * 2,
            scans: u32::from(c[9] & 0x1f) + 1,
            repeat,
            preset: u32::from(c[8] & 0x1f),
            compare: self.line_compare(),
            panning,
            panning_below: if stops { 0 } else { panning },
            wide: self.half_clock(),
            cells: CELLS,
        }
    }

    fn colours(&self, planes: u8) -> [u32; 16] {
        std::array::from_fn(|n| self.colour(self.attribute_colour(n as u8 & planes)))
    }

    fn palette(&self) -> Vec<u32> {
        (0..=255).map(|n| self.colour(n)).collect()
    }
}

impl Look {
    /// What shows at a time.
    pub fn of(r: &Registers, now: Nanos, memory: u64) -> Self {
        let vbe = &r.vbe;
        let (width, height) = (u32::from(vbe.get(vbe::XRES)), u32::from(vbe.get(vbe::YRES)));
        let planar = !vbe.enabled() || vbe.bits() == 4;
        let mut scan = r.scan();
        if vbe.enabled() {
            let cell = |bytes: u64| (bytes / 4) as u32;
            scan = Scan {
                columns: width / 8,
                height,
                start: cell(vbe.start()),
                pitch: cell(vbe.pitch()),
                scans: 1,
                repeat: 1,
                preset: 0,
                compare: u32::MAX,
                wide: false,
                cells: cell(memory),
                ..scan
            };
        }
        let dots = if r.gc[6] & 1 == 0 { r.dots() } else { 8 };
        let dark = r.ac_index & PALETTE_TO_SCREEN == 0
            || r.seq[1] & 1 << 5 != 0
            || !vbe.enabled() && r.crtc[0x17] & 1 << 7 == 0;
        if dark {
            let (width, height) = (scan.columns * dots * scan.factor(), scan.height);
            // Registers as RESET leaves them have no size to speak of.
            let usual = width < 64 || height < 64;
            return Self(if usual { Picture::Blank(720, 400) } else { Picture::Blank(width, height) });
        }
        if !planar {
            let bits = vbe.get(vbe::BPP);
            let palette = if bits == 8 { r.palette() } else { Vec::new() };
            let (start, pitch, big_endian) = (vbe.start(), vbe.pitch(), r.big_endian);
            return Self(Picture::Linear(Linear { width, height, bits, start, pitch, big_endian, palette }));
        }
        if r.gc[6] & 1 == 0 && !vbe.enabled() {
            return Self(Picture::Text(text(r, scan, now)));
        }
        let shift = match r.gc[5] >> 5 & 3 {
            0 => Shift::Planes,
            1 => Shift::Interleaved,
            _ => Shift::Bytes,
        };
        // In word mode addresses are one bit shorter here: see `window`.
        let word = u32::from(r.crtc[0x17] & 1 << 6 == 0);
        Self(Picture::Graphics(Graphics {
            scan,
            shift,
            banks: [0, 1].map(|n| (13 + n - word, r.crtc[0x17] >> n & 1 == 0 && !vbe.enabled())),
            planes: r.ac[0x12] & 0x0f,
            colours: r.colours(r.ac[0x12]),
            palette: if shift == Shift::Bytes { r.palette() } else { Vec::new() },
        }))
    }

    /// Width and height in pixels.
    pub fn size(&self) -> (usize, usize) {
        let (w, h) = match &self.0 {
            Picture::Blank(w, h) => (*w, *h),
            Picture::Text(t) => (t.scan.columns * t.dots as u32 * t.scan.factor(), t.scan.height),
            Picture::Graphics(g) => (g.scan.columns * 8 * g.scan.factor(), g.scan.height),
            Picture::Linear(l) => (l.width, l.height),
        };
        (w as usize, h as usize)
    }

    /// The bytes of memory that a scan line depends on: the first, and how many.
    pub fn memory_of(&self, y: usize) -> (u64, u64) {
        match &self.0 {
            Picture::Blank(..) => (0, 0),
            Picture::Linear(l) => (l.start + y as u64 * l.pitch, u64::from(l.width) * l.bytes() as u64),
            Picture::Text(t) => (0, u64::from(t.scan.cells) * 4),
            Picture::Graphics(g) => (0, u64::from(g.scan.cells) * 4),
        }
    }

    /// Draws scan line `y` to `line`, which has the screen's width.
    pub fn draw(&self, ram: &DeviceRam, y: usize, line: &mut [u32]) {
        match &self.0 {
            Picture::Blank(..) => line.fill(0),
            Picture::Text(t) => t.draw(ram, y as u32, line),
            Picture::Graphics(g) => g.draw(ram, y as u32, line),
            Picture::Linear(l) => l.draw(ram, y as u64, line),
        }
    }

    /// The characters, if it shows text.
    pub fn text(&self, ram: &DeviceRam) -> Option<TextScreen> {
        let Picture::Text(Text { scan, cursor, .. }) = &self.0 else { return None };
        let (columns, step) = (scan.columns as usize, (scan.scans * scan.repeat) as usize);
        let rows = (scan.height as usize / step).max(1);
        let mut screen = TextScreen { columns, cells: Vec::with_capacity(rows * columns), cursor: None };
        for row in 0..rows {
            let at = scan.place((row * step) as u32).address;
            for (column, cell) in scan.cells(ram, at, columns).into_iter().enumerate() {
                screen.cells.push(TextCell { code: cell[0], attribute: cell[1] });
                if cursor.is_some_and(|(c, ..)| c == (at + column as u32) % scan.cells) {
                    screen.cursor = Some((column, row));
                }
            }
        }
        Some(screen)
    }
}

impl Scan {
    fn factor(&self) -> u32 {
        1 + u32::from(self.wide)
    }

    fn place(&self, y: u32) -> Place {
        let (line, start, panning) = match y.checked_sub(self.compare.saturating_add(1)) {
            Some(below) => (below / self.repeat, 0, self.panning_below),
            None => (y / self.repeat + self.preset, self.start, self.panning),
        };
        let address = start.wrapping_add(line / self.scans * self.pitch);
        Place { address, scan: line % self.scans, panning }
    }

    /// The four planes of `count` cells.
    fn cells(&self, ram: &DeviceRam, address: u32, count: usize) -> Vec<[u8; 4]> {
        let mut bytes = vec![0; count * 4];
        let first = address % self.cells;
        let before_end = ((self.cells - first) as usize).min(count) * 4;
        let (head, rest) = bytes.split_at_mut(before_end);
        ram.read(u64::from(first) * 4, head);
        ram.read(0, rest);
        bytes.chunks_exact(4).map(|c| [c[0], c[1], c[2], c[3]]).collect()
    }

    /// Spreads pixels, of which the first `panning` are not seen, over a line.
    fn show(&self, pixels: &[u32], panning: u32, line: &mut [u32]) {
        let pixels = pixels.get(panning as usize..).unwrap_or_default();
        if self.wide {
            for (two, pixel) in line.chunks_mut(2).zip(pixels) {
                two.fill(*pixel);
            }
        } else {
            for (one, pixel) in line.iter_mut().zip(pixels) {
                *one = *pixel;
            }
        }
    }
}

fn text(r: &Registers, scan: Scan, now: Nanos) -> Text {
    let c = &r.crtc;
    // The cursor is lit for 8 frames of 16, blinking characters for 16 of 32.
    let frame = now / r.frame_time();
    let on = c[0x0a] & 1 << 5 == 0;
    let cursor =
        (u32::from(c[0x0e]) << 8 | u32::from(c[0x0f]), (c[0x0a] & 0x1f).into(), (c[0x0b] & 0x1f).into());
    // Bits 4 and 5 of the character map select are the lowest of the two fonts' numbers.
    let font = |low: u8, high: u8| {
        let number = u32::from(r.seq[3] >> high & 3) << 1 | u32::from(r.seq[3] >> low & 1);
        number << 13
    };
    Text {
        scan,
        dots: r.dots() as usize,
        fonts: [font(4, 0), font(5, 2)],
        cursor: on.then_some(cursor),
        lit: frame & 8 == 0,
        blink: r.ac[0x10] & 1 << 3 != 0,
        dark: r.ac[0x10] & 1 << 3 != 0 && frame & 16 != 0,
        underline: (c[0x14] & 0x1f).into(),
        line_graphics: r.ac[0x10] & 1 << 2 != 0,
        colours: r.colours(r.ac[0x12]),
    }
}

impl Text {
    fn draw(&self, ram: &DeviceRam, y: u32, line: &mut [u32]) {
        let Place { address, scan, panning } = self.scan.place(y);
        let columns = self.scan.columns as usize + 1;
        let mut pixels = Vec::with_capacity(columns * self.dots);
        let cells = self.scan.cells(ram, address, columns);
        for (at, [code, attribute, ..]) in (address..).zip(cells) {
            let font = self.fonts[usize::from(attribute >> 3 & 1)];
            let mut glyph = [0];
            ram.read(u64::from((font + u32::from(code) * 32 + scan) % CELLS) * 4 + 2, &mut glyph);
            let (mut ink, mut paper) = (attribute & 0x0f, attribute >> 4);
            if self.blink {
                paper &= 7;
                if self.dark && attribute & 0x80 != 0 {
                    ink = paper;
                }
            }
            let mut bits = u32::from(glyph[0]) << 1;
            if self.line_graphics && (0xc0..0xe0).contains(&code) {
                bits |= bits >> 1 & 1;
            }
            // White or bright on black with an underline, as the monochrome adapter has it.
            if attribute & 0x77 == 1 && scan == self.underline {
                bits = 0x1ff;
            }
            let lit = |(c, first, last): (u32, u32, u32)| {
                c == at % self.scan.cells && (first..=last).contains(&scan)
            };
            if self.lit && self.cursor.is_some_and(lit) {
                bits = 0x1ff;
            }
            let colour = |on: bool| self.colours[usize::from(if on { ink } else { paper })];
            pixels.extend((0..self.dots).map(|n| colour(bits >> (8 - n) & 1 != 0)));
        }
        self.scan.show(&pixels, panning, line);
    }
}

impl Graphics {
    fn draw(&self, ram: &DeviceRam, y: u32, line: &mut [u32]) {
        let Place { mut address, scan, panning } = self.scan.place(y);
        for (n, (bit, is_scan)) in self.banks.into_iter().enumerate() {
            if is_scan {
                address = address & !(1 << bit) | (scan >> n & 1) << bit;
            }
        }
        let columns = self.scan.columns as usize + 1;
        let mut pixels = Vec::with_capacity(columns * 8);
        for cell in self.scan.cells(ram, address, columns) {
            match self.shift {
                Shift::Planes => pixels.extend((0..8).rev().map(|bit| {
                    let pixel = (0..4).fold(0, |all, p| all | (cell[p] >> bit & 1) << p);
                    self.colours[usize::from(pixel & self.planes)]
                })),
                Shift::Interleaved => pixels.extend([0, 1].into_iter().flat_map(|p| {
                    (0..4).rev().map(move |n| {
                        let pixel = cell[p] >> (2 * n) & 3 | (cell[p + 2] >> (2 * n) & 3) << 2;
                        self.colours[usize::from(pixel & self.planes)]
                    })
                })),
                Shift::Bytes => pixels.extend(cell.iter().flat_map(|byte| {
                    let colour = self.palette[usize::from(*byte)];
                    [colour, colour]
                })),
            }
        }
        self.scan.show(&pixels, panning, line);
    }
}

impl Linear {
    /// Bytes of a pixel.
    fn bytes(&self) -> usize {
        usize::from(self.bits).div_ceil(8)
    }

    fn draw(&self, ram: &DeviceRam, y: u64, line: &mut [u32]) {
        let mut bytes = vec![0; line.len() * self.bytes()];
        ram.read(self.start + y * self.pitch, &mut bytes);
        // Bits of a colour widened to eight.
        let widen = |value: u32, bits: u32| value << (8 - bits) | value >> (2 * bits - 8);
        for (pixel, b) in line.iter_mut().zip(bytes.chunks_exact(self.bytes())) {
            *pixel = match (self.bits, b) {
                (8, [index]) => self.palette[usize::from(*index)],
                (15 | 16, [low, high]) => {
                    let (low, high) = if self.big_endian { (high, low) } else { (low, high) };
                    let v = u32::from(u16::from_le_bytes([*low, *high]));
                    let green = if self.bits == 15 { 5 } else { 6 };
                    let (red, blue) = (v >> (5 + green) & 0x1f, v & 0x1f);
                    widen(red, 5) << 16 | widen(v >> 5 & ((1 << green) - 1), green) << 8 | widen(blue, 5)
                }
                (24, [b, g, r]) | (32, [b, g, r, _]) if !self.big_endian => {
                    u32::from_le_bytes([*b, *g, *r, 0])
                }
                (24, [r, g, b]) | (32, [_, r, g, b]) => u32::from_le_bytes([*b, *g, *r, 0]),
                _ => 0,
            };
        }
    }
}
