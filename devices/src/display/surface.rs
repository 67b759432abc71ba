//! A picture in memory, and what is known of the adapter that it was drawn from.
use super::cp437;
use std::fmt;

/// Pixels, row by row from the top, 0RGB with 8 bits each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surface {
    width: usize,
    height: usize,
    pixels: Vec<u32>,
}

impl Surface {
    /// A black one.
    pub fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![0; width * height] }
    }

    /// Pixels in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// All pixels.
    pub fn pixels(&self) -> &[u32] {
        &self.pixels
    }

    /// A row of pixels; none below the last one.
    pub fn row(&self, y: usize) -> &[u32] {
        self.pixels.chunks_exact(self.width.max(1)).nth(y).unwrap_or_default()
    }

    pub(super) fn row_mut(&mut self, y: usize) -> &mut [u32] {
        let at = y * self.width;
        self.pixels.get_mut(at..at + self.width).unwrap_or_default()
    }

    /// Red, green and blue of all pixels.
    pub fn rgb(&self) -> Vec<u8> {
        self.pixels.iter().flat_map(|p| [(p >> 16) as u8, (p >> 8) as u8, *p as u8]).collect()
    }
}

/// A part of a surface, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    /// The left edge.
    pub x: usize,
    /// The upper edge.
    pub y: usize,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// What somebody shows of an adapter.
#[derive(Default)]
pub struct Screen {
    pub(super) surface: Surface,
    /// What of the adapter's registers it was drawn by.
    pub(super) drawn: Option<super::vga::Look>,
    /// The adapter's count of looks at its memory, at the last refresh.
    pub(super) round: u64,
    /// How often it was refreshed.
    pub(super) looks: u64,
}

impl Screen {
    /// The picture, as it was at the last refresh.
    pub fn surface(&self) -> &Surface {
        &self.surface
    }

    /// Puts `line` in place of row `y`; the columns that changed.
    pub(super) fn put(&mut self, y: usize, line: &[u32]) -> Option<(usize, usize)> {
        let row = self.surface.row_mut(y);
        let first = row.iter().zip(line).position(|(a, b)| a != b)?;
        let last = row.iter().zip(line).rposition(|(a, b)| a != b).unwrap_or(first);
        row[first..=last].copy_from_slice(&line[first..=last]);
        Some((first, last + 1))
    }
}

/// Collects rows that changed as rectangles.
#[derive(Default)]
pub(super) struct Damage {
    rects: Vec<Rect>,
}

impl Damage {
    /// Columns `from..to` of row `y` have changed. Rows come in order.
    pub fn add(&mut self, y: usize, (from, to): (usize, usize)) {
        if let Some(last) = self.rects.last_mut()
            && last.y + last.height == y
        {
            let end = (last.x + last.width).max(to);
            last.x = last.x.min(from);
            last.width = end - last.x;
            last.height += 1;
            return;
        }
        self.rects.push(Rect { x: from, y, width: to - from, height: 1 });
    }

    /// The rectangles.
    pub fn take(self) -> Vec<Rect> {
        self.rects
    }
}

/// A character on the screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextCell {
    /// Its code, in the adapter's font.
    pub code: u8,
    /// Colours, as the adapter has them: background in the upper half.
    pub attribute: u8,
}

/// A screen of characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextScreen {
    /// Characters in a row.
    pub columns: usize,
    /// Row by row.
    pub cells: Vec<TextCell>,
    /// Column and row of the cursor, if it is on and on the screen.
    pub cursor: Option<(usize, usize)>,
}

impl TextScreen {
    /// The rows, as the font of the PC (code page 437) has the characters, without blanks at their ends.
    pub fn rows(&self) -> impl Iterator<Item = String> + '_ {
        self.cells.chunks(self.columns.max(1)).map(|row| {
            let row: String = row.iter().map(|c| cp437::to_char(c.code)).collect();
            row.trim_end_matches(' ').to_owned()
        })
    }
}

impl fmt::Display for TextScreen {
    /// The rows, each with its end of line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rows().try_for_each(|row| writeln!(f, "{row}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_follow_each_other_are_one_rectangle() {
        let mut damage = Damage::default();
        for (y, columns) in [(3, (8, 16)), (4, (4, 9)), (5, (12, 20)), (9, (0, 1))] {
            damage.add(y, columns);
        }
        let rects = [Rect { x: 4, y: 3, width: 16, height: 3 }, Rect { x: 0, y: 9, width: 1, height: 1 }];
        assert_eq!(damage.take(), rects);
    }

    #[test]
    fn characters_are_those_of_the_pcs_font() {
        let cells = [0x48, 0x81, 0xb0, 0x00, 0x20, 0x20].map(|code| TextCell { code, attribute: 7 }).to_vec();
        let screen = TextScreen { columns: 3, cells, cursor: None };
        assert_eq!(screen.to_string(), "Hü░\n\n");
    }
}
