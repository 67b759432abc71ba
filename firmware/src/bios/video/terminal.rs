//! The text screen on a serial terminal, and on debug ports.
//!
//! What is on it is kept here, page 0 only where there is no adapter, else of the page that shows. A terminal gets the
//! characters (code page 437 as UTF-8) and, where a program moves the cursor about, ANSI escape sequences; plain output
//! makes a plain log. What a terminal shows already is not sent again, so that a character that is written with its
//! attribute (AH 09h) and then as on a teletype (AH 0Eh) comes once; but where output goes on behind the last character
//! it is sent whatever was there. Debug ports get the characters alone.
use super::text::Window;
use super::{Bios, Platform, size};
use serde::{Deserialize, Serialize};

pub(super) const BLANK: (u8, u8) = (b' ', 7);

/// The upper half of code page 437.
const CP437: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// The text screen.
#[derive(Clone, Serialize, Deserialize)]
pub(in super::super) struct Screen {
    columns: u8,
    rows: u8,
    /// Characters and attributes, by row. A terminal shows the same characters.
    cells: Vec<(u8, u8)>,
    /// Where the terminal's cursor is: row and column. Unknown behind the last column, where terminals differ in what
    /// they do.
    terminal: Option<(u8, u8)>,
    /// Where output goes on that follows the last character.
    next: (u8, u8),
    /// Something was shown since the screen was last empty.
    used: bool,
}

impl Default for Screen {
    fn default() -> Self {
        let (columns, rows) = (80, 25);
        Screen {
            columns,
            rows,
            cells: vec![BLANK; usize::from(columns) * usize::from(rows)],
            terminal: Some((0, 0)),
            next: (0, 0),
            used: false,
        }
    }
}

impl Screen {
    /// Whether it has the cells that a screen has.
    pub fn is_whole(&self) -> bool {
        self.columns > 0 && self.rows > 0 && self.cells.len() == self.len()
    }

    fn len(&self) -> usize {
        usize::from(self.columns) * usize::from(self.rows)
    }

    pub(super) fn cell(&mut self, row: u8, column: u8) -> Option<&mut (u8, u8)> {
        if column >= self.columns {
            return None;
        }
        self.cells.get_mut(usize::from(row) * usize::from(self.columns) + usize::from(column))
    }

    /// What stands in a cell.
    pub fn at(&mut self, row: u8, column: u8) -> (u8, u8) {
        self.cell(row, column).map_or(BLANK, |c| *c)
    }
}

impl Bios {
    /// The screen has as many columns and rows as the data area says; what was on it is not, if it had others.
    pub(super) fn fit_terminal(&mut self, pc: &mut dyn Platform) {
        let (columns, rows) = size(pc);
        let screen = &mut self.screen;
        if (screen.columns, screen.rows) != (columns, rows) {
            (screen.columns, screen.rows) = (columns, rows);
            screen.cells = vec![BLANK; screen.len()];
        }
    }

    pub(super) fn clear_terminal(&mut self, pc: &mut dyn Platform) {
        self.screen.cells.fill(BLANK);
        if std::mem::take(&mut self.screen.used) {
            self.terminal_out(pc, b"\x1b[2J\x1b[H");
            (self.screen.terminal, self.screen.next) = (Some((0, 0)), (0, 0));
        }
    }

    /// A window has moved by so many lines; what comes in has this attribute.
    pub(super) fn scroll_terminal(
        &mut self,
        pc: &mut dyn Platform,
        window: Window,
        lines: u8,
        up: bool,
        attribute: u8,
    ) {
        let Window { top, left, bottom, right } = window;
        let height = bottom - top + 1;
        let whole =
            (top, left) == (0, 0) && (bottom + 1, right + 1) == (self.screen.rows, self.screen.columns);
        if whole && lines == height {
            self.clear_terminal(pc);
            return;
        }
        for i in 0..height {
            let to = if up { top + i } else { bottom - i };
            let from = (i + lines < height).then(|| if up { to + lines } else { to - lines });
            for column in left..=right {
                let cell = match from {
                    Some(row) => self.screen.at(row, column),
                    None => (b' ', attribute),
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
            for column in 0..self.screen.columns {
                let (c, _) = self.screen.at(row, column);
                self.show(pc, row, column, c);
            }
        }
    }

    /// A character into the screen, shown where it stands if it is not there yet; the cursor stays.
    pub(super) fn put_terminal(
        &mut self,
        pc: &mut dyn Platform,
        row: u8,
        column: u8,
        c: u8,
        attribute: Option<u8>,
    ) {
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
        let last = column + 1 >= self.screen.columns;
        self.screen.terminal = (!last).then(|| (row, column + 1));
        self.screen.next = if last { (row + 1, 0) } else { (row, column + 1) };
    }

    fn move_terminal(&mut self, pc: &mut dyn Platform, row: u8, column: u8) {
        if self.screen.terminal != Some((row, column)) {
            self.terminal_out(
                pc,
                format!("\x1b[{};{}H", u16::from(row) + 1, u16::from(column) + 1).as_bytes(),
            );
            self.screen.terminal = Some((row, column));
        }
    }

    /// What a teletype does with `c` beside a character: the cursor was at `before` and is at `after`, which may be
    /// below the last row; then the screen scrolls.
    pub(super) fn terminal_moves(&mut self, pc: &mut dyn Platform, c: u8, before: (u8, u8), after: (u8, u8)) {
        let (row, column) = after;
        let rows = self.screen.rows;
        let mut sent = false;
        if matches!(c, 8 | b'\r' | b'\n') {
            // The terminal does the same if its cursor is where the screen's is; if not, it is told with the next
            // character.
            sent = self.screen.terminal == Some(before);
            if sent {
                self.terminal_out(pc, &[c]);
                self.screen.terminal = Some((row.min(rows - 1), column));
            }
            if c == b'\n' {
                self.debug_out(pc, c);
            }
            self.screen.next = (row, column);
        }
        if row >= rows {
            let len = self.screen.len();
            self.screen.cells.drain(..usize::from(self.screen.columns));
            self.screen.cells.resize(len, BLANK);
            let row = rows - 1;
            if !sent {
                // The terminal is to scroll as well; behind a full last line a line feed is all that it takes.
                if self.screen.terminal.is_some() || self.screen.next != (rows, 0) {
                    self.move_terminal(pc, row, 0);
                }
                self.terminal_out(pc, b"\r\n");
                self.screen.terminal = Some((row, 0));
            }
            self.screen.next = (row, column);
        }
    }

    pub(super) fn terminal_out(&self, pc: &mut dyn Platform, bytes: &[u8]) {
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
