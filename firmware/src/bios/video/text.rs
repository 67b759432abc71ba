//! Characters: where they stand, on whatever mode's screen, and the cursor.
use super::graphics::Picture;
use super::tables::Layout;
use super::{Bios, Platform, bda, cursor_of, modes, position, size};

/// Rows and columns, both ends included.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub top: u8,
    pub left: u8,
    pub bottom: u8,
    pub right: u8,
}

/// The bytes that a text mode's memory has.
const MEMORY: u32 = 0x8000;

/// Where a cell is in the text mode's memory.
fn cell_at(pc: &mut dyn Platform, page: u8, row: u8, column: u8) -> u32 {
    let columns = pc.u16(bda::VIDEO_COLUMNS);
    let start = u32::from(pc.u16(bda::VIDEO_PAGE_SIZE)) * u32::from(page & 7);
    let at = start + 2 * (u32::from(row) * u32::from(columns) + u32::from(column));
    let base = if pc.u8(bda::VIDEO_MODE) == 7 { 0xb_0000 } else { 0xb_8000 };
    base + at % MEMORY
}

impl Bios {
    /// The layout of the mode that is on.
    pub(super) fn layout(&self, pc: &mut dyn Platform) -> Layout {
        // What is none of the VGA's is one of VBE.
        modes::current(pc).map_or(Layout::Bytes, |m| m.layout)
    }

    /// Whether what is written to a page goes to the terminal.
    fn is_shown(pc: &mut dyn Platform, page: u8) -> bool {
        pc.u8(bda::VIDEO_PAGE) & 7 == page & 7
    }

    /// AH 02h.
    pub(super) fn set_cursor(&mut self, pc: &mut dyn Platform, page: u8, row: u8, column: u8) {
        pc.set_u16(cursor_of(page), u16::from(row) << 8 | u16::from(column));
        if self.adapter.is_some() && Self::is_shown(pc, page) {
            self.show_cursor(pc);
        }
    }

    /// The CRTC's cursor goes where that of the page that shows is.
    pub(super) fn show_cursor(&mut self, pc: &mut dyn Platform) {
        if self.layout(pc) != Layout::Text {
            return;
        }
        let page = pc.u8(bda::VIDEO_PAGE);
        let at = pc.u16(cursor_of(page));
        let columns = pc.u16(bda::VIDEO_COLUMNS);
        let start = pc.u16(bda::VIDEO_PAGE_START) / 2;
        let at = start.wrapping_add((at >> 8).wrapping_mul(columns)).wrapping_add(at & 0xff);
        let crtc = modes::crtc_port(pc);
        modes::set(pc, crtc, 0x0e, (at >> 8) as u8);
        modes::set(pc, crtc, 0x0f, at as u8);
    }

    /// The CRTC's cursor takes the shape of the data area: what a CGA would show with its eight lines is stretched to
    /// the character's height, unless that is off.
    pub(super) fn show_cursor_shape(&mut self, pc: &mut dyn Platform) {
        if self.adapter.is_none() || self.layout(pc) != Layout::Text {
            return;
        }
        let shape = pc.u16(bda::CURSOR_SHAPE);
        let (mut start, mut end) = ((shape >> 8) as u8 & 0x3f, shape as u8 & 0x1f);
        let height = pc.u8(bda::CHAR_HEIGHT);
        let stretches = pc.u8(bda::VIDEO_CONTROL) & 1 == 0 && height > 8 && end < 8 && start < 0x20;
        if stretches {
            let scaled = |line: u8| (u16::from(line) + 1) * u16::from(height) / 8;
            let last = scaled(end).saturating_sub(1) as u8;
            // A cursor of two lines stays one of two.
            start =
                if end == start + 1 { last.saturating_sub(1) } else { scaled(start).saturating_sub(1) as u8 };
            end = last;
        }
        let crtc = modes::crtc_port(pc);
        modes::set(pc, crtc, 0x0a, start);
        modes::set(pc, crtc, 0x0b, end);
    }

    /// AH 05h.
    pub(super) fn show_page(&mut self, pc: &mut dyn Platform, page: u8) {
        let page = page & 7;
        let start = u32::from(pc.u16(bda::VIDEO_PAGE_SIZE)) * u32::from(page);
        let Ok(start) = u16::try_from(start) else { return };
        let layout = self.layout(pc);
        pc.set_u8(bda::VIDEO_PAGE, page);
        pc.set_u16(bda::VIDEO_PAGE_START, start);
        let address = if layout == Layout::Text { start / 2 } else { start };
        let crtc = modes::crtc_port(pc);
        modes::set(pc, crtc, 0x0c, (address >> 8) as u8);
        modes::set(pc, crtc, 0x0d, address as u8);
        self.show_cursor(pc);
    }

    /// AH 08h: character and attribute.
    pub(super) fn cell(&mut self, pc: &mut dyn Platform, page: u8, row: u8, column: u8) -> (u8, u8) {
        if self.adapter.is_none() {
            return self.screen.at(row, column);
        }
        match Picture::of(pc, self.adapter, page) {
            Some(picture) => picture.find(pc, row, column),
            None => {
                let at = cell_at(pc, page, row, column);
                let [c, attribute] = pc.u16(at).to_le_bytes();
                (c, attribute)
            }
        }
    }

    /// A character where it belongs; the cursor stays. `ink` is its colour where pixels are drawn.
    #[allow(clippy::too_many_arguments)] // a place, a character, and its colour in two kinds of modes
    pub(super) fn put(
        &mut self,
        pc: &mut dyn Platform,
        page: u8,
        row: u8,
        column: u8,
        c: u8,
        attribute: Option<u8>,
        ink: u8,
    ) {
        if Self::is_shown(pc, page) {
            self.fit_terminal(pc);
            self.put_terminal(pc, row, column, c, attribute);
        }
        if self.adapter.is_none() {
            return;
        }
        if let Some(picture) = Picture::of(pc, self.adapter, page) {
            picture.draw(pc, row, column, c, ink);
            return;
        }
        let at = cell_at(pc, page, row, column);
        match attribute {
            Some(attribute) => pc.set_u16(at, u16::from_le_bytes([c, attribute])),
            None => pc.set_u8(at, c),
        }
    }

    /// AH 0Eh: a character as on a teletype, with an attribute of its own if there is one.
    pub(super) fn teletype(
        &mut self,
        pc: &mut dyn Platform,
        page: u8,
        c: u8,
        attribute: Option<u8>,
        ink: u8,
    ) {
        let (columns, rows) = size(pc);
        let before = position(pc, page);
        let (mut row, mut column) = before;
        match c {
            7 => {
                self.terminal_out(pc, b"\x07");
                return;
            }
            8 => column = column.saturating_sub(1),
            b'\r' => column = 0,
            b'\n' => row += 1,
            _ => {
                self.put(pc, page, row, column, c, attribute, ink);
                column += 1;
                if column >= columns {
                    (row, column) = (row + 1, 0);
                }
            }
        }
        if Self::is_shown(pc, page) {
            self.fit_terminal(pc);
            self.terminal_moves(pc, c, before, (row, column));
        }
        if row >= rows {
            row = rows - 1;
            if self.adapter.is_some() {
                // The line that comes in has the colours of where the cursor was.
                let colours = match self.layout(pc) {
                    Layout::Text => self.cell(pc, page, before.0, before.1).1,
                    _ => 0,
                };
                let all = Window { top: 0, left: 0, bottom: row, right: columns - 1 };
                self.scroll_adapter(pc, page, all, 1, true, colours);
            }
        }
        self.set_cursor(pc, page, row, column);
    }

    /// AH 06h (up) and 07h (down): `lines`, 0 to clear.
    pub(super) fn scroll(
        &mut self,
        pc: &mut dyn Platform,
        page: u8,
        window: Window,
        lines: u8,
        up: bool,
        attribute: u8,
    ) {
        if window.top > window.bottom || window.left > window.right {
            return;
        }
        let height = window.bottom - window.top + 1;
        let lines = if lines == 0 || lines > height { height } else { lines };
        self.fit_terminal(pc);
        self.scroll_terminal(pc, window, lines, up, attribute);
        if self.adapter.is_some() {
            self.scroll_adapter(pc, page, window, lines, up, attribute);
        }
    }

    fn scroll_adapter(
        &mut self,
        pc: &mut dyn Platform,
        page: u8,
        window: Window,
        lines: u8,
        up: bool,
        attribute: u8,
    ) {
        if let Some(picture) = Picture::of(pc, self.adapter, page) {
            return picture.scroll(pc, window, lines, up, attribute);
        }
        let Window { top, left, bottom, right } = window;
        let mut row = vec![0; 2 * (usize::from(right - left) + 1)];
        let height = bottom - top + 1;
        for i in 0..height {
            let to = if up { top + i } else { bottom - i };
            if i + lines < height {
                let from = if up { to + lines } else { to - lines };
                let at = cell_at(pc, page, from, left);
                pc.read(at, &mut row);
            } else {
                row.chunks_exact_mut(2).for_each(|cell| cell.copy_from_slice(&[b' ', attribute]));
            }
            let at = cell_at(pc, page, to, left);
            pc.write(at, &row);
        }
    }
}
