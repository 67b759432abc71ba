//! Where the beam is: input status 1, from the CRTC's registers and guest time.
//!
//! A frame has as many scan lines, and a scan line as many dots, as the CRTC's totals say, at the dot clock of the
//! miscellaneous output register. Where these make no sense, and in the linear modes of the Bochs interface, which have
//! no timing of their own, a frame takes 1/60 s, of which the last twentieth is the vertical retrace.
use super::regs::Registers;
use crate::clock::{Nanos, SECOND};

/// Display enable, inverted: the beam is not in the picture.
const NOT_DISPLAYED: u8 = 1 << 0;
/// Vertical retrace.
const RETRACE: u8 = 1 << 3;

/// Where the beam is in a frame.
struct Timing {
    /// Picoseconds that a scan line takes, and how many of them are displayed.
    line: u64,
    displayed_line: u64,
    /// Scan lines, and how many are displayed.
    lines: u32,
    displayed: u32,
    /// The first scan line of the retrace, and how many it has.
    retrace: (u32, u32),
}

const FALLBACK: Timing =
    Timing { line: 31_746_000, displayed_line: 25_397_000, lines: 525, displayed: 480, retrace: (499, 26) };

impl Registers {
    fn timing(&self) -> Timing {
        let (total, displayed) = (self.vertical_total(), self.vertical_displayed());
        let retrace = self.vertical_retrace();
        if self.vbe.enabled() || displayed >= total || retrace.0 >= total {
            return FALLBACK;
        }
        let clock = self.dot_clock() / if self.half_clock() { 2 } else { 1 };
        let picos = |characters: u32| u64::from(characters * self.dots()) * 1_000_000_000_000 / clock;
        Timing {
            line: picos(self.horizontal_total()),
            displayed_line: picos(self.horizontal_displayed()),
            lines: total,
            displayed,
            retrace,
        }
    }

    /// Nanoseconds that a frame takes.
    pub fn frame_time(&self) -> Nanos {
        let t = self.timing();
        (t.line * u64::from(t.lines) / 1000).clamp(1, SECOND)
    }

    /// Input status 1 at a time.
    pub fn beam(&self, now: Nanos) -> u8 {
        let t = self.timing();
        let frame = u128::from(t.line) * u128::from(t.lines);
        let at = u128::from(now) * 1000 % frame.max(1);
        let line = (at / u128::from(t.line.max(1))) as u32;
        let along = (at % u128::from(t.line.max(1))) as u64;
        let mut status = 0;
        if line >= t.displayed || along >= t.displayed_line {
            status |= NOT_DISPLAYED;
        }
        if (t.retrace.0..t.retrace.0 + t.retrace.1).contains(&line) {
            status |= RETRACE;
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::super::modes;
    use super::*;

    /// The registers after these writes.
    fn registers(mode: u8) -> Registers {
        let mut r = Registers::default();
        for (port, value) in modes::writes(mode) {
            if port == 0x3c0 && value == 0 {
                r.read(if r.misc & 1 != 0 { 0x3da } else { 0x3ba }, |_| 0);
            }
            r.write(port, value);
        }
        r
    }

    #[test]
    fn a_text_screen_has_70_frames_in_a_second_of_449_lines() {
        let r = registers(3);
        let rate = SECOND as f64 / r.frame_time() as f64;
        assert!((rate - 70.08).abs() < 0.05, "{rate}");
        let line = r.frame_time() as f64 / 449.0;
        let at = |n: f64| r.beam((n * line) as u64);
        // 400 lines of picture; the retrace has lines 412 and 413.
        assert_eq!([0.3, 399.3, 400.3, 411.9, 412.5, 413.5, 414.5, 448.5].map(at), [0, 0, 1, 1, 9, 9, 1, 1]);
        // 720 of 900 dots of a line are displayed.
        assert_eq!([100.75, 100.85].map(at), [0, 1]);
    }

    #[test]
    fn registers_that_make_no_sense_still_have_a_beam() {
        let mut r = Registers::default();
        for seed in 0..2000_u32 {
            let mut n = seed.wrapping_mul(0x9e37_79b9);
            for reg in &mut r.crtc {
                n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *reg = (n >> 24) as u8;
            }
            (r.misc, r.seq[1]) = (n as u8, (n >> 8) as u8);
            let frame = r.frame_time();
            assert!((1000..SECOND).contains(&frame), "{frame}");
            let seen = (0..4000).fold(0, |all, i| all | r.beam(i * frame / 4000));
            assert_eq!(seen & RETRACE, RETRACE, "{:x?}", r.crtc);
        }
    }
}
