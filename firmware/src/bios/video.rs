//! INT 10h without a video adapter: a text screen of 80 by 25 that is kept here and shown on a serial terminal.
//!
//! Text modes 0 to 3 and 7 can be set; the cursor, scrolling, reading and writing of characters work as on a screen,
//! page 0 only. A terminal gets the characters (code page 437 as UTF-8) and, where a program moves the cursor about,
//! ANSI escape sequences; plain output makes a plain log. What a terminal shows already is not sent again, so that a
//! character that is written with its attribute (AH 09h) and then as on a teletype (AH 0Eh) comes once; but where
//! output goes on behind the last character it is sent whatever was there. Debug ports get the characters alone.
//! Palettes, fonts and graphics are accepted and do nothing; VBE (4Fxx) and the display combination code (1Axx) say that they are not there.
use super::{Bios, Outcome, Platform, Regs, bda, linear};
use serde::{Deserialize, Serialize};

const COLUMNS: u8 = 80;
const ROWS: u8 = 25;
const BLANK: (u8, u8) = (b' ', 7);

/// The upper half of code page 437.
const CP437: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// The text screen.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Screen {
    /// Characters and attributes, by row. A terminal shows the same characters.
    cells: Vec<(u8, u8)>,
    /// Where the terminal's cursor is: row and column. Unknown behind the last column, where terminals differ in what they do.
    terminal: Option<(u8, u8)>,
    /// Where output goes on that follows the last character.
    next: (u8, u8),
    /// Something was shown since the screen was last empty.
    used: bool,
}

impl Default for Screen {
    fn default() -> Self {
        let cells = vec![BLANK; usize::from(COLUMNS) * usize::from(ROWS)];
        Screen { cells, terminal: Some((0, 0)), next: (0, 0), used: false }
    }
}

impl Screen {
    /// Whether it has the cells that a screen has.
    pub(super) fn is_whole(&self) -> bool {
        self.cells.len() == usize::from(COLUMNS) * usize::from(ROWS)
    }

    fn cell(&mut self, row: u8, column: u8) -> Option<&mut (u8, u8)> {
        if column >= COLUMNS {
            return None;
        }
        self.cells.get_mut(usize::from(row) * usize::from(COLUMNS) + usize::from(column))
    }

    /// What stands in a cell.
    #[cfg(test)]
    pub(super) fn at(&mut self, row: u8, column: u8) -> (u8, u8) {
        self.cell(row, column).map_or(BLANK, |c| *c)
    }
}

/// What a mode set leaves in the data area, for mode 3.
pub(super) fn initial_bda() -> Vec<(u32, Vec<u8>)> {
    vec![
        (bda::VIDEO_MODE, vec![3]),
        (bda::VIDEO_COLUMNS, vec![COLUMNS, 0]),
        (bda::VIDEO_PAGE_SIZE, 0x1000u16.to_le_bytes().to_vec()),
        (bda::VIDEO_PAGE_START, vec![0; 2]),
        (bda::CURSORS, vec![0; 16]),
        (bda::CURSOR_SHAPE, vec![0x07, 0x06]),
        (bda::VIDEO_PAGE, vec![0]),
        (bda::CRTC_PORT, 0x3d4u16.to_le_bytes().to_vec()),
        (bda::VIDEO_ROWS, vec![ROWS - 1]),
        (bda::CHAR_HEIGHT, vec![16, 0]),
    ]
}

impl Bios {
    /// INT 10h.
    pub(super) fn video(&mut self, r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
        match r.ah() {
            0x00 => self.set_mode(r, pc),
            0x01 => pc.set_u16(bda::CURSOR_SHAPE, r.cx()),
            0x02 => pc.set_u16(cursor_of(r.bh()), r.dx()),
            0x03 => {
                let (at, shape) = (pc.u16(cursor_of(r.bh())), pc.u16(bda::CURSOR_SHAPE));
                r.set_dx(at);
                r.set_cx(shape);
            }
            0x06 | 0x07 => self.scroll(r, pc),
            0x08 => {
                let (row, column) = position(pc);
                let (c, attribute) = self.screen.cell(row, column).map_or(BLANK, |c| *c);
                r.set_al(c);
                r.set_ah(attribute);
            }
            0x09 | 0x0a => {
                let (row, column) = position(pc);
                let attribute = (r.ah() == 9).then(|| r.bl());
                for i in 0..r.cx().min(u16::from(COLUMNS) * u16::from(ROWS)) {
                    let at = u16::from(row) * u16::from(COLUMNS) + u16::from(column) + i;
                    let (row, column) = (at / u16::from(COLUMNS), at % u16::from(COLUMNS));
                    if row < u16::from(ROWS) {
                        self.put(pc, row as u8, column as u8, r.al(), attribute);
                    }
                }
            }
            0x0e => self.teletype(pc, r.al()),
            0x0f => {
                r.set_al(pc.u8(bda::VIDEO_MODE));
                r.set_ah(pc.u16(bda::VIDEO_COLUMNS) as u8);
                r.set_bh(pc.u8(bda::VIDEO_PAGE));
            }
            // Fonts: information is that of a 16-line font, whose bits there are not.
            0x11 if r.al() == 0x30 => {
                r.set_cx(16);
                r.set_dl(ROWS - 1);
            }
            0x13 => self.write_string(r, pc),
            _ => {}
        }
        Outcome::Return
    }

    /// AH 00h.
    fn set_mode(&mut self, r: &mut Regs, pc: &mut dyn Platform) {
        let (mode, keep) = (r.al() & 0x7f, r.al() & 0x80 != 0);
        if !matches!(mode, 0..=3 | 7) {
            tracing::debug!(mode, "INT 10h: no such video mode without an adapter");
            return;
        }
        for (at, bytes) in initial_bda() {
            pc.write(at, &bytes);
        }
        pc.set_u8(bda::VIDEO_MODE, mode);
        if mode < 2 {
            pc.set_u16(bda::VIDEO_COLUMNS, 40);
        }
        if !keep {
            self.clear(pc);
        }
        r.set_al(0x30);
    }

    fn clear(&mut self, pc: &mut dyn Platform) {
        self.screen.cells.fill(BLANK);
        if std::mem::take(&mut self.screen.used) {
            self.terminal_out(pc, b"\x1b[2J\x1b[H");
            (self.screen.terminal, self.screen.next) = (Some((0, 0)), (0, 0));
        }
    }

    /// AH 06h (up) and 07h (down): AL rows, 0 to clear; CX to DX the window, BH the attribute.
    fn scroll(&mut self, r: &Regs, pc: &mut dyn Platform) {
        let (top, left) = (r.ch(), r.cl());
        let (bottom, right) = (r.dh().min(ROWS - 1), r.dl().min(COLUMNS - 1));
        if top > bottom || left > right {
            return;
        }
        let height = bottom - top + 1;
        let lines = if r.al() == 0 || r.al() > height { height } else { r.al() };
        let whole = (top, left, bottom, right) == (0, 0, ROWS - 1, COLUMNS - 1);
        if whole && lines == height {
            self.clear(pc);
            return;
        }
        for i in 0..height {
            let up = r.ah() == 6;
            let to = if up { top + i } else { bottom - i };
            let from = (i + lines < height).then(|| if up { to + lines } else { to - lines });
            for column in left..=right {
                let cell = match from {
                    Some(row) => self.screen.cell(row, column).map_or(BLANK, |c| *c),
                    None => (b' ', r.bh()),
                };
                if let Some(to) = self.screen.cell(to, column) {
                    *to = cell;
                }
            }
        }
        self.redraw(pc, top, bottom);
    }

    /// Shows rows anew.
    fn redraw(&mut self, pc: &mut dyn Platform, top: u8, bottom: u8) {
        if self.cfg.console.is_none() || !self.screen.used {
            return;
        }
        for row in top..=bottom {
            for column in 0..COLUMNS {
                let (c, _) = self.screen.cell(row, column).map_or(BLANK, |c| *c);
                self.show(pc, row, column, c);
            }
        }
    }

    /// A character into the screen, shown where it stands if it is not there yet; the cursor stays.
    fn put(&mut self, pc: &mut dyn Platform, row: u8, column: u8, c: u8, attribute: Option<u8>) {
        let Some(cell) = self.screen.cell(row, column) else { return };
        let before = std::mem::replace(cell, (c, attribute.unwrap_or(cell.1)));
        if before.0 != c || self.screen.next == (row, column) {
            self.show(pc, row, column, c);
        }
    }

    /// A character on the terminal, moving its cursor there if it is elsewhere.
    fn show(&mut self, pc: &mut dyn Platform, row: u8, column: u8, c: u8) {
        self.move_terminal(pc, row, column);
        self.screen.used = true;
        let mut utf8 = [0; 4];
        let shown = match c {
            0x20..=0x7e => char::from(c),
            0x80.. => CP437.chars().nth(usize::from(c) - 0x80).unwrap_or(' '),
            _ => ' ',
        };
        self.terminal_out(pc, shown.encode_utf8(&mut utf8).as_bytes());
        self.debug_out(pc, c);
        let last = column + 1 == COLUMNS;
        self.screen.terminal = (!last).then_some((row, column + 1));
        self.screen.next = if last { (row + 1, 0) } else { (row, column + 1) };
    }

    fn move_terminal(&mut self, pc: &mut dyn Platform, row: u8, column: u8) {
        if self.screen.terminal != Some((row, column)) {
            self.terminal_out(pc, format!("\x1b[{};{}H", row + 1, column + 1).as_bytes());
            self.screen.terminal = Some((row, column));
        }
    }

    /// AH 0Eh: a character as on a teletype.
    pub(super) fn teletype(&mut self, pc: &mut dyn Platform, c: u8) {
        let (mut row, mut column) = position(pc);
        match c {
            7 => {
                self.terminal_out(pc, b"\x07");
                return;
            }
            8 => column = column.saturating_sub(1),
            b'\r' => column = 0,
            b'\n' => row += 1,
            _ => {
                self.put(pc, row, column, c, None);
                column += 1;
                if column >= COLUMNS {
                    (row, column) = (row + 1, 0);
                }
            }
        }
        let mut sent = false;
        if matches!(c, 8 | b'\r' | b'\n') {
            // The terminal does the same if its cursor is where the screen's is; if not, it is told with the next character.
            sent = self.screen.terminal == Some(position(pc));
            if sent {
                self.terminal_out(pc, &[c]);
                self.screen.terminal = Some((row.min(ROWS - 1), column));
            }
            if c == b'\n' {
                self.debug_out(pc, c);
            }
            self.screen.next = (row, column);
        }
        if row >= ROWS {
            self.screen.cells.drain(..usize::from(COLUMNS));
            self.screen.cells.resize(usize::from(COLUMNS) * usize::from(ROWS), BLANK);
            row = ROWS - 1;
            if !sent {
                // The terminal is to scroll as well; behind a full last line a line feed is all that it takes.
                if self.screen.terminal.is_some() || self.screen.next != (ROWS, 0) {
                    self.move_terminal(pc, row, 0);
                }
                self.terminal_out(pc, b"\r\n");
                self.screen.terminal = Some((row, 0));
            }
            self.screen.next = (row, column);
        }
        pc.set_u16(bda::CURSORS, u16::from(row) << 8 | u16::from(column));
    }

    /// AH 13h: AL bit 0 moves the cursor, bit 1 has attributes between the characters.
    fn write_string(&mut self, r: &Regs, pc: &mut dyn Platform) {
        let before = pc.u16(bda::CURSORS);
        pc.set_u16(bda::CURSORS, r.dx());
        let mut at = r.ebp as u16;
        for _ in 0..r.cx() {
            let c = pc.u8(linear(r.es, at));
            at = at.wrapping_add(if r.al() & 2 != 0 { 2 } else { 1 });
            self.teletype(pc, c);
        }
        if r.al() & 1 == 0 {
            pc.set_u16(bda::CURSORS, before);
        }
    }

    /// Prints a text as the firmware itself does.
    pub(super) fn print(&mut self, pc: &mut dyn Platform, text: &str) {
        for c in text.bytes() {
            if c == b'\n' {
                self.teletype(pc, b'\r');
            }
            self.teletype(pc, c);
        }
    }

    fn terminal_out(&self, pc: &mut dyn Platform, bytes: &[u8]) {
        const TX_EMPTY: u8 = 1 << 5;
        let Some(base) = self.cfg.console else { return };
        for b in bytes {
            // A port that takes nothing loses the character, as a cable that is not plugged in.
            for _ in 0..1000 {
                if pc.inb(base + 5) & TX_EMPTY != 0 {
                    break;
                }
            }
            pc.outb(base, *b);
        }
    }

    fn debug_out(&self, pc: &mut dyn Platform, c: u8) {
        for i in 0..self.cfg.debug_ports.len() {
            pc.outb(self.cfg.debug_ports[i], c);
        }
    }
}

/// The cursor of page 0: row and column, on the screen.
fn position(pc: &mut dyn Platform) -> (u8, u8) {
    let at = pc.u16(bda::CURSORS);
    (((at >> 8) as u8).min(ROWS - 1), (at as u8).min(COLUMNS - 1))
}

fn cursor_of(page: u8) -> u32 {
    bda::CURSORS + 2 * u32::from(page & 7)
}
