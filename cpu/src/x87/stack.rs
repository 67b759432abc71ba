//! The register stack: TOP, tags, pushing and popping, stack faults, and what becomes of raised exceptions.
use super::soft::{INDEFINITE, Out};
use super::word::*;
use crate::state::{F80, Fpu};

impl Fpu {
    /// The physical register that is ST(`i`).
    #[inline(always)]
    pub fn phys(&self, i: u8) -> usize {
        usize::from(self.top.wrapping_add(i) & 7)
    }
    /// ST(`i`), whatever its tag.
    #[inline(always)]
    pub fn st(&self, i: u8) -> F80 {
        self.r[self.phys(i)]
    }
    /// Whether ST(`i`) is empty.
    #[inline(always)]
    pub fn is_empty(&self, i: u8) -> bool {
        self.empty >> self.phys(i) & 1 != 0
    }
    /// Writes ST(`i`), which is then not empty.
    #[inline(always)]
    pub fn set_st(&mut self, i: u8, v: F80) {
        let p = self.phys(i);
        self.r[p] = v;
        self.empty &= !(1 << p);
    }
    /// Pushes.
    #[inline(always)]
    pub fn push(&mut self, v: F80) {
        self.top = self.top.wrapping_sub(1) & 7;
        self.set_st(0, v);
    }
    /// Pops.
    #[inline(always)]
    pub fn pop(&mut self) {
        self.empty |= 1 << (self.top & 7);
        self.top = self.top.wrapping_add(1) & 7;
    }
    /// The status word with TOP.
    #[inline(always)]
    pub fn status(&self) -> u16 {
        self.sw & !TOP | u16::from(self.top & 7) << 11
    }
    /// Replaces the status word and TOP; ES and B follow from the exceptions and masks.
    pub fn set_status(&mut self, v: u16) {
        self.top = (v >> 11 & 7) as u8;
        self.sw = v & !TOP;
        self.sync_summary();
    }
    /// Replaces the control word. Bit 6 reads as one, the other reserved bits as zero.
    pub fn set_control(&mut self, v: u16) {
        self.cw = v & 0x1f3f | 0x40;
        self.sync_summary();
    }
    /// Recomputes ES and B (after a change of masks or exceptions).
    #[inline(always)]
    pub fn sync_summary(&mut self) {
        let pending = self.sw & !self.cw & EXCEPTIONS != 0;
        self.sw = self.sw & !(ES | B) | if pending { ES | B } else { 0 };
    }
    /// The full tag word: 00 valid, 01 zero, 10 special, 11 empty for each physical register (SDM volume 1,
    /// 8.1.7).
    pub fn tag_word(&self) -> u16 {
        (0..8).fold(0, |w, p| {
            let x = self.r[p];
            let e = x.exp & 0x7fff;
            let tag = if self.empty >> p & 1 != 0 {
                3
            } else if e == 0 && x.mant == 0 {
                1
            } else if e == 0 || e == 0x7fff || x.mant >> 63 == 0 {
                2
            } else {
                0
            };
            w | tag << (2 * p)
        })
    }
    /// Replaces the tags: 11 is empty; the others follow from the contents.
    pub fn set_tag_word(&mut self, v: u16) {
        self.empty = (0..8).fold(0, |m, p| m | u8::from(v >> (2 * p) & 3 == 3) << p);
    }
    /// FNINIT.
    pub fn init(&mut self) {
        (self.cw, self.sw, self.top, self.empty) = (0x37f, 0, 0, 0xff);
        (self.fop, self.fip, self.fdp, self.fcs, self.fds) = (0, 0, 0, 0, 0);
    }

    // ---- exceptions
    // ----------------------------------------------------------------------------------------------------

    /// Raises the exceptions in `sw` and sets C1 from it. True if the destination is to be written: no
    /// unmasked IE, DE or ZE among them.
    #[inline(always)]
    pub fn post(&mut self, sw: u16) -> bool {
        self.post_cc(sw, C1)
    }
    /// As `post`, for instructions that set more of the condition code: the bits of `cc`.
    #[inline(always)]
    pub fn post_cc(&mut self, sw: u16, cc: u16) -> bool {
        self.sw = self.sw & !cc | sw & (cc | EXCEPTIONS | SF);
        let unmasked = sw & !self.cw & EXCEPTIONS;
        if unmasked == 0 {
            return true;
        }
        self.sw |= ES | B;
        unmasked & FAULTS == 0
    }
    /// An operand is an empty register. True if the masked response (the indefinite) is to be stored.
    #[cold]
    pub fn underflow(&mut self) -> bool {
        self.post(IE | SF)
    }
    /// As `underflow`, for instructions whose C2 says "incomplete": it is cleared too.
    #[cold]
    pub fn underflow_c2(&mut self) -> bool {
        self.post_cc(IE | SF, C1 | C2)
    }
    /// A push found its register in use. True if the masked response is to be pushed.
    #[cold]
    pub fn overflow(&mut self) -> bool {
        self.post(IE | SF | C1)
    }
    /// Pushes a result, with its exceptions; a stack overflow comes before them.
    #[inline(always)]
    pub fn push_result(&mut self, o: Out) {
        if self.is_empty(7) {
            if self.post(o.sw) {
                self.push(o.v);
            }
        } else if self.overflow() {
            self.push(INDEFINITE);
        }
    }
}
