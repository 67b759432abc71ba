//! Rows of cells on a terminal: what of them differs from what it shows, as the bytes that change it.
use crate::chardev::stdio::window_size;
use std::fmt::Write;

/// A character and its colours, as the VGA has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    pub c: char,
    pub attribute: u8,
}

const BLANK: Cell = Cell { c: ' ', attribute: 7 };
/// The attribute of the line at the bottom: black on grey.
const STATUS: u8 = 0x70;
/// Columns and rows that are drawn at most, however large the terminal is.
const MOST: usize = 512;

/// What the terminal shows.
#[derive(Default)]
pub struct View {
    size: (usize, usize),
    shown: Vec<Cell>,
    cursor: Option<(usize, usize)>,
    /// The part of the screen that is shown begins there: column and row.
    origin: (usize, usize),
    known: bool,
}

/// Columns and rows of the terminal.
fn terminal_size() -> (usize, usize) {
    match window_size() {
        Some((columns, rows)) if columns > 0 && rows > 0 => (columns.min(MOST), rows.min(MOST)),
        _ => (80, 25),
    }
}

impl View {
    /// Nothing is known of the terminal: all is drawn anew.
    pub fn forget(&mut self) {
        self.known = false;
    }

    /// Whether nothing has been drawn yet.
    pub fn is_new(&self) -> bool {
        self.size == (0, 0)
    }

    /// The bytes that make the terminal show `cells`, of so many columns, and the cursor; with a row to spare, `status`
    /// below.
    pub fn update(
        &mut self,
        cells: &[Cell],
        columns: usize,
        cursor: Option<(usize, usize)>,
        status: &str,
    ) -> Vec<u8> {
        self.update_on(terminal_size(), cells, columns, cursor, status)
    }

    fn update_on(
        &mut self,
        size: (usize, usize),
        cells: &[Cell],
        columns: usize,
        cursor: Option<(usize, usize)>,
        status: &str,
    ) -> Vec<u8> {
        let (width, height) = size;
        let mut out = String::new();
        if !self.known || self.size != size {
            (self.size, self.known) = (size, true);
            self.shown = vec![BLANK; width * height];
            self.cursor = None;
            out += "\x1b[0m\x1b[2J\x1b[?25l";
        }
        let columns = columns.max(1);
        let rows = cells.len() / columns;
        // The part that has the cursor, moved no further than it takes.
        let follow = |origin: usize, at: Option<usize>, room: usize, all: usize| {
            let origin = origin.min(all.saturating_sub(room));
            at.map_or(origin, |at| origin.clamp((at + 1).saturating_sub(room), at))
        };
        self.origin = (
            follow(self.origin.0, cursor.map(|c| c.0), width, columns),
            follow(self.origin.1, cursor.map(|c| c.1), height, rows),
        );
        let mut wanted = vec![BLANK; width * height];
        for (y, row) in wanted.chunks_mut(width).enumerate() {
            let (left, from) = (self.origin.0, self.origin.1 + y);
            if from < rows {
                let line = &cells[from * columns..(from + 1) * columns];
                for (to, cell) in row.iter_mut().zip(line.iter().skip(left)) {
                    *to = *cell;
                }
            } else if y + 1 == height {
                let text = status.chars().chain(std::iter::repeat(' '));
                row.iter_mut().zip(text).for_each(|(to, c)| *to = Cell { c, attribute: STATUS });
            }
        }
        // The last cell of all would have some terminals scroll.
        let last = width * height - 1;
        wanted[last] = self.shown[last];
        self.draw(&wanted, &mut out);
        let cursor = cursor
            .map(|(x, y)| (x - self.origin.0.min(x), y - self.origin.1.min(y)))
            .filter(|(x, y)| *x < width && *y < height);
        if !out.is_empty() || cursor != self.cursor {
            match cursor {
                Some((x, y)) => _ = write!(out, "\x1b[{};{}H\x1b[?25h", y + 1, x + 1),
                None => out += "\x1b[?25l",
            }
            self.cursor = cursor;
        }
        out.into_bytes()
    }

    fn draw(&mut self, wanted: &[Cell], out: &mut String) {
        let width = self.size.0;
        let (mut at, mut attribute) = (None, None);
        for (n, (new, old)) in wanted.iter().zip(&mut self.shown).enumerate() {
            if new == old {
                continue;
            }
            if at != Some(n) {
                let _ = write!(out, "\x1b[{};{}H", n / width + 1, n % width + 1);
            }
            if attribute != Some(new.attribute) {
                *out += &colours(new.attribute);
                attribute = Some(new.attribute);
            }
            out.push(if new.c.is_control() { ' ' } else { new.c });
            *old = *new;
            // Behind the last column terminals differ.
            at = ((n + 1) % width != 0).then_some(n + 1);
        }
        if attribute.is_some() {
            *out += "\x1b[0m";
        }
    }
}

/// ECMA-48's colours for a VGA's attribute; bit 7 blinks.
fn colours(attribute: u8) -> String {
    // Red and blue are the other way round.
    let ansi = |c: u8| (c & 1) << 2 | c & 2 | c >> 2 & 1;
    let bright = if attribute & 8 != 0 { 90 } else { 30 };
    let blink = if attribute & 0x80 != 0 { "5;" } else { "" };
    format!("\x1b[0;{blink}{};{}m", bright + ansi(attribute & 7), 40 + ansi(attribute >> 4 & 7))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(rows: &[&str]) -> Vec<Cell> {
        rows.iter().flat_map(|r| r.chars().map(|c| Cell { c, attribute: 7 })).collect()
    }

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn only_what_differs_is_sent() {
        let mut view = View::default();
        let first = text(view.update_on((8, 4), &cells(&["ab  ", "  cd"]), 4, Some((1, 0)), "st"));
        assert!(first.starts_with("\x1b[0m\x1b[2J\x1b[?25l\x1b[1;1H\x1b[0;37;40mab\x1b[2;3Hcd"), "{first:?}");
        assert!(first.contains("\x1b[4;1H\x1b[0;30;47mst") && first.ends_with("\x1b[1;2H\x1b[?25h"));
        assert_eq!(text(view.update_on((8, 4), &cells(&["ab  ", "  cd"]), 4, Some((1, 0)), "st")), "");
        let moved = text(view.update_on((8, 4), &cells(&["ab  ", "  cd"]), 4, None, "st"));
        assert_eq!(moved, "\x1b[?25l");
        let mut blue = cells(&["ab  ", "  cd"]);
        blue[5] = Cell { c: '▒', attribute: 0x9c };
        let changed = text(view.update_on((8, 4), &blue, 4, None, "st"));
        assert_eq!(changed, "\x1b[2;2H\x1b[0;5;91;44m▒\x1b[0m\x1b[?25l");
        view.forget();
        assert!(text(view.update_on((8, 4), &blue, 4, None, "st")).contains("ab"));
    }

    #[test]
    fn a_small_terminal_shows_where_the_cursor_is() {
        let mut view = View::default();
        let screen = cells(&["a0", "b1", "c2", "d3"]);
        let out = text(view.update_on((2, 2), &screen, 2, Some((0, 3)), "st"));
        assert!(out.contains("c2") && out.contains('d') && !out.contains('b'), "{out:?}");
        assert!(out.ends_with("\x1b[2;1H\x1b[?25h"));
        let out = text(view.update_on((1, 1), &screen, 2, Some((1, 0)), "st"));
        assert!(out.ends_with("\x1b[1;1H\x1b[?25h"));
    }
}
