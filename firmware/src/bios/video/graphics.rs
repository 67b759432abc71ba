//! Pixels: characters drawn in graphics modes, scrolling, and single pixels.
//!
//! All of it works on lines of bytes, plane by plane; how bits become bytes is the layout's.
use super::modes::{self, GRAPHICS, SEQUENCER, set};
use super::tables::{self, Layout};
use super::text::Window;
use super::{Bios, Platform, Regs, bda, vbe};

/// How a picture's memory is laid out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Cga(u8),
    /// Planes; in a mode of VBE the window has banks.
    Planar {
        banks: bool,
    },
    /// A byte a pixel, in the window.
    Bytes,
    /// So many bytes a pixel, at the physical address of the framebuffer.
    Linear {
        bytes: u32,
        at: u64,
        bits: u16,
    },
}

/// What a graphics mode shows.
pub(super) struct Picture {
    kind: Kind,
    /// The window's linear address.
    base: u32,
    /// Bytes that it has, in a plane.
    memory: u32,
    /// Where the page starts.
    start: u32,
    /// Bytes from line to line.
    pitch: u32,
    /// Scan lines of a character.
    height: u8,
    /// Characters in a row.
    columns: u32,
}

impl Picture {
    /// Of the mode that is on; none if it shows text.
    pub fn of(pc: &mut dyn Platform, adapter: Option<u16>, page: u8) -> Option<Self> {
        let adapter = adapter?;
        let height = pc.u8(bda::CHAR_HEIGHT).clamp(1, 32);
        let columns = u32::from(pc.u16(bda::VIDEO_COLUMNS)).clamp(1, 255);
        let Some(mode) = modes::current(pc) else {
            let (bits, pitch, memory) = vbe::linear(pc)?;
            let kind = match bits {
                4 => Kind::Planar { banks: true },
                _ => {
                    let at = vbe::framebuffer(pc, adapter);
                    Kind::Linear { bytes: u32::from(bits).div_ceil(8), at, bits }
                }
            };
            let memory = if bits == 4 { memory / 4 } else { memory };
            return Some(Self { kind, base: 0xa_0000, memory, start: 0, pitch, height, columns });
        };
        let page = u32::from(page & 7) * u32::from(pc.u16(bda::VIDEO_PAGE_SIZE));
        let (kind, pitch, start) = match mode.layout {
            Layout::Text => return None,
            Layout::Cga(bits) => (Kind::Cga(bits), 80, 0),
            Layout::Planar => (Kind::Planar { banks: false }, columns, page),
            Layout::Bytes => (Kind::Bytes, 320, 0),
        };
        let memory = if matches!(kind, Kind::Cga(_)) { 0x4000 } else { 0x1_0000 };
        Some(Self { kind, base: mode.base(), memory, start, pitch, height, columns })
    }

    fn planes(&self) -> u8 {
        if matches!(self.kind, Kind::Planar { .. }) { 4 } else { 1 }
    }

    /// Bytes of eight pixels.
    fn cell(&self) -> u32 {
        match self.kind {
            Kind::Cga(bits) => bits.into(),
            Kind::Planar { .. } => 1,
            Kind::Bytes => 8,
            Kind::Linear { bytes, .. } => 8 * bytes,
        }
    }

    /// The first byte of a scan line.
    fn line(&self, y: u32) -> u32 {
        match self.kind {
            Kind::Cga(_) => (y & 1) * 0x2000 + (y >> 1) * self.pitch,
            _ => self.start.wrapping_add(y.wrapping_mul(self.pitch)),
        }
    }

    /// Makes the graphics controller pass bytes as they are, to and from one plane.
    fn select(&self, pc: &mut dyn Platform, plane: u8) {
        if self.planes() == 1 {
            return;
        }
        for (index, value) in [(0, 0), (1, 0), (3, 0), (5, 0), (8, 0xff), (4, plane)] {
            set(pc, GRAPHICS, index, value);
        }
        set(pc, SEQUENCER, 2, 1 << plane);
    }

    /// All planes again.
    fn done(&self, pc: &mut dyn Platform) {
        if self.planes() > 1 {
            set(pc, SEQUENCER, 2, 0x0f);
            set(pc, GRAPHICS, 4, 0);
            if matches!(self.kind, Kind::Planar { banks: true }) {
                vbe::set_bank(pc, 0);
            }
        }
    }

    /// The parts of a range that lie in one bank each, within the memory that there is.
    fn parts(&self, at: u32, len: usize) -> Vec<(u32, std::ops::Range<usize>)> {
        let mut parts = Vec::new();
        let mut done = 0;
        while done < len {
            let here = at.saturating_add(done as u32);
            if here >= self.memory {
                break;
            }
            let bank_end =
                if matches!(self.kind, Kind::Linear { .. }) { self.memory } else { (here | 0xffff) + 1 };
            let n = (bank_end.min(self.memory) - here).min((len - done) as u32) as usize;
            parts.push((here, done..done + n));
            done += n;
        }
        parts
    }

    fn load(&self, pc: &mut dyn Platform, at: u32, bytes: &mut [u8]) {
        for (at, part) in self.parts(at, bytes.len()) {
            match self.kind {
                Kind::Linear { at: base, .. } => pc.read_physical(base + u64::from(at), &mut bytes[part]),
                _ => {
                    self.bank(pc, at);
                    pc.read(self.base + (at & 0xffff), &mut bytes[part]);
                }
            }
        }
    }

    fn store(&self, pc: &mut dyn Platform, at: u32, bytes: &[u8]) {
        for (at, part) in self.parts(at, bytes.len()) {
            match self.kind {
                Kind::Linear { at: base, .. } => pc.write_physical(base + u64::from(at), &bytes[part]),
                _ => {
                    self.bank(pc, at);
                    pc.write(self.base + (at & 0xffff), &bytes[part]);
                }
            }
        }
    }

    fn bank(&self, pc: &mut dyn Platform, at: u32) {
        if matches!(self.kind, Kind::Planar { banks: true }) {
            vbe::set_bank(pc, (at >> 16) as u16);
        }
    }

    /// The bytes of eight pixels of which the set bits have this colour and the others another, in one plane.
    fn pixels(&self, bits: u8, plane: u8, ink: u8, paper: u8) -> Vec<u8> {
        let colours = |n: u8| if bits >> n & 1 != 0 { ink } else { paper };
        match self.kind {
            Kind::Planar { .. } => {
                vec![(0..8).fold(0, |byte, n| byte | (colours(n) >> plane & 1) << n)]
            }
            Kind::Cga(1) => vec![(0..8).fold(0, |byte, n| byte | (colours(n) & 1) << n)],
            Kind::Cga(_) => [4, 0]
                .map(|first| (0..4).fold(0, |byte, n| byte | (colours(first + n) & 3) << (2 * n)))
                .to_vec(),
            Kind::Bytes => (0..8).rev().map(colours).collect(),
            Kind::Linear { bytes, bits, .. } => (0..8)
                .rev()
                .flat_map(|n| vbe::pixel(bits, colours(n)).to_le_bytes().into_iter().take(bytes as usize))
                .collect(),
        }
    }

    /// Draws a character. Bit 7 of the colour has it drawn by exclusive or where there are no more than 16 colours.
    pub fn draw(&self, pc: &mut dyn Platform, row: u8, column: u8, c: u8, colour: u8) {
        if u32::from(column) >= self.columns {
            return;
        }
        let mixes = colour & 0x80 != 0 && !matches!(self.kind, Kind::Bytes | Kind::Linear { .. });
        let ink = if mixes { colour & 0x7f } else { colour };
        let glyph = self.glyph(pc, c);
        let top = u32::from(row) * u32::from(self.height);
        for plane in 0..self.planes() {
            self.select(pc, plane);
            for (y, bits) in (top..).zip(&glyph) {
                let at = self.line(y).wrapping_add(u32::from(column) * self.cell());
                let mut bytes = self.pixels(*bits, plane, ink, 0);
                if mixes {
                    let mut old = vec![0; bytes.len()];
                    self.load(pc, at, &mut old);
                    bytes.iter_mut().zip(old).for_each(|(new, old)| *new ^= old);
                }
                self.store(pc, at, &bytes);
            }
        }
        self.done(pc);
    }

    /// The lines of a character, in the font of INT 43h; a CGA's upper half is at INT 1Fh.
    fn glyph(&self, pc: &mut dyn Platform, c: u8) -> Vec<u8> {
        let (vector, n) = match self.kind {
            Kind::Cga(_) if c >= 0x80 => (0x1f, c & 0x7f),
            _ => (0x43, c),
        };
        let at = super::linear(pc.u16(4 * vector + 2), pc.u16(4 * vector));
        let mut glyph = vec![0; usize::from(self.height)];
        pc.read(at + u32::from(n) * u32::from(self.height), &mut glyph);
        glyph
    }

    /// The character that stands somewhere, by its pixels that are not black, and its colour; 0 if it is none.
    pub fn find(&self, pc: &mut dyn Platform, row: u8, column: u8) -> (u8, u8) {
        let top = u32::from(row) * u32::from(self.height);
        let mut seen = vec![0_u8; usize::from(self.height)];
        for plane in 0..self.planes() {
            self.select(pc, plane);
            for (y, bits) in (top..).zip(&mut seen) {
                let at = self.line(y).wrapping_add(u32::from(column) * self.cell());
                let mut bytes = vec![0; self.cell() as usize];
                self.load(pc, at, &mut bytes);
                *bits |= match self.kind {
                    Kind::Planar { .. } | Kind::Cga(1) => bytes[0],
                    Kind::Cga(_) => {
                        let all = u16::from_be_bytes([bytes[0], bytes[1]]);
                        (0..8).fold(0, |bits, n| bits | u8::from(all >> (2 * n) & 3 != 0) << n)
                    }
                    _ => bytes
                        .chunks(bytes.len() / 8)
                        .fold(0, |bits, pixel| bits << 1 | u8::from(pixel.iter().any(|b| *b != 0))),
                };
            }
        }
        self.done(pc);
        let lit = (top..).zip(&seen).find(|(_, bits)| **bits != 0);
        let colour =
            lit.map_or(0, |(y, bits)| self.pixel(pc, u32::from(column) * 8 + bits.leading_zeros(), y));
        ((0..=255).find(|c| self.glyph(pc, *c) == seen).unwrap_or(0), colour)
    }

    /// A window of characters moves by so many lines of them; what comes in has this colour.
    pub fn scroll(&self, pc: &mut dyn Platform, window: Window, lines: u8, up: bool, colour: u8) {
        let height = u32::from(self.height);
        let (top, all) =
            (u32::from(window.top) * height, (u32::from(window.bottom - window.top) + 1) * height);
        let step = u32::from(lines) * height;
        let cells = usize::from(window.right - window.left) + 1;
        let left = u32::from(window.left) * self.cell();
        for plane in 0..self.planes() {
            self.select(pc, plane);
            let blank = self.pixels(0, plane, 0, colour).repeat(cells);
            let mut line = blank.clone();
            for i in 0..all {
                let to = if up { top + i } else { top + all - 1 - i };
                let bytes = if i + step < all {
                    let from = if up { to + step } else { to - step };
                    self.load(pc, self.line(from).wrapping_add(left), &mut line);
                    &line
                } else {
                    &blank
                };
                self.store(pc, self.line(to).wrapping_add(left), bytes);
            }
        }
        self.done(pc);
    }

    /// A pixel's place: the byte, and how far its bits are from bit 0.
    fn place(&self, x: u32, y: u32) -> (u32, u32) {
        let line = self.line(y);
        match self.kind {
            Kind::Planar { .. } | Kind::Cga(1) => (line.wrapping_add(x / 8), 7 - x % 8),
            Kind::Cga(_) => (line.wrapping_add(x / 4), 6 - 2 * (x % 4)),
            Kind::Bytes => (line.wrapping_add(x), 0),
            Kind::Linear { bytes, .. } => (line.wrapping_add(x * bytes), 0),
        }
    }

    fn bits(&self) -> u32 {
        match self.kind {
            Kind::Cga(bits) => bits.into(),
            Kind::Planar { .. } => 1,
            Kind::Bytes => 8,
            Kind::Linear { bytes, .. } => 8 * bytes,
        }
    }

    fn set_pixel(&self, pc: &mut dyn Platform, x: u32, y: u32, colour: u8) {
        let (at, shift) = self.place(x, y);
        if let Kind::Linear { bytes, bits, .. } = self.kind {
            let pixel = vbe::pixel(bits, colour).to_le_bytes();
            return self.store(pc, at, &pixel[..bytes as usize]);
        }
        let bits = self.bits();
        let mask = ((1_u32 << bits) - 1) as u8;
        let mixes = colour & 0x80 != 0 && bits < 8;
        for plane in 0..self.planes() {
            self.select(pc, plane);
            let mut byte = [0];
            self.load(pc, at, &mut byte);
            let value = (colour >> plane & mask) << shift;
            byte[0] = if mixes { byte[0] ^ value } else { byte[0] & !(mask << shift) | value };
            self.store(pc, at, &byte);
        }
        self.done(pc);
    }

    fn pixel(&self, pc: &mut dyn Platform, x: u32, y: u32) -> u8 {
        let (at, shift) = self.place(x, y);
        let mask = ((1_u32 << self.bits().min(8)) - 1) as u8;
        let mut colour = 0;
        for plane in 0..self.planes() {
            self.select(pc, plane);
            let mut byte = [0];
            self.load(pc, at, &mut byte);
            colour |= (byte[0] >> shift & mask) << plane;
        }
        self.done(pc);
        colour
    }
}

impl Bios {
    /// AH 0Ch.
    pub(super) fn set_pixel(&self, r: &Regs, pc: &mut dyn Platform) {
        if let Some(picture) = Picture::of(pc, self.adapter, r.bh()) {
            picture.set_pixel(pc, r.cx().into(), r.dx().into(), r.al());
        }
    }

    /// AH 0Dh.
    pub(super) fn get_pixel(&self, r: &mut Regs, pc: &mut dyn Platform) {
        if let Some(picture) = Picture::of(pc, self.adapter, r.bh()) {
            let colour = picture.pixel(pc, r.cx().into(), r.dx().into());
            r.set_al(colour);
        }
    }
}

/// One of the 16 colours, eight bits each: red, green, blue.
pub(super) fn rgb(colour: u8) -> [u8; 3] {
    let [r, g, b] = tables::dac(tables::Palette::Cga)[usize::from(colour & 7 | (colour & 8) << 1)];
    [r, g, b].map(|c| c << 2 | c >> 4)
}
