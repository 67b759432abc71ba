//! What the state of a vCPU makes of an instruction's bytes and addresses: the mode that it is decoded for, and its
//! segments as accesses see them.
use crate::state::{Segment, State, cr0, fl, seg};

/// Segment as the address path sees it: base in effect, and the offsets that may be read and written (empty ranges
/// have `lo > hi`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SegView {
    /// Base to add: 0 for ES, CS, SS, DS in 64-bit mode.
    pub base: u64,
    /// First readable offset.
    pub read_lo: u64,
    /// Last readable offset.
    pub read_hi: u64,
    /// First writable offset.
    pub write_lo: u64,
    /// Last writable offset.
    pub write_hi: u64,
}

/// The mode bits that decoding and handlers depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeKey(pub u32);

impl ModeKey {
    /// CS.D: 32-bit operands and addresses by default.
    pub const D32: u32 = 1;
    /// 64-bit mode.
    pub const LONG: u32 = 2;
    /// SS.B: 32-bit stack pointer.
    pub const STACK32: u32 = 4;
    /// CR0.PE.
    pub const PE: u32 = 8;
    /// Virtual-8086 mode.
    pub const VM: u32 = 16;
    /// ES, CS, SS and DS are readable (DS, ES, SS writable), with base 0 and limit 4 GiB.
    pub const FLAT: u32 = 32;
    /// Blocks of a single instruction.
    pub const SINGLE: u32 = 64;
    /// CPL 3: what the jump cache knows to be executable at one level may not be at the other.
    pub const USER: u32 = 128;
    /// A change of one of these changes how segments are applied.
    pub const SEGMENTED: u32 = Self::LONG | Self::PE | Self::VM;

    /// The key of a state, without `FLAT` and `SINGLE`.
    pub fn of(s: &State) -> Self {
        let mut k = if s.cpl == 3 { Self::USER } else { 0 };
        if s.cr0 & cr0::PE != 0 {
            k |= Self::PE;
        }
        if s.rflags & fl::VM != 0 {
            k |= Self::VM;
        }
        if s.is_long64() {
            return Self(k | Self::LONG);
        }
        if s.seg[seg::CS].attr & Segment::DB != 0 {
            k |= Self::D32;
        }
        if s.seg[seg::SS].attr & Segment::DB != 0 {
            k |= Self::STACK32;
        }
        Self(k)
    }

    /// `FLAT` if it holds.
    pub fn flat(v: &[SegView; 8], s: &State) -> u32 {
        if s.is_long64() {
            return Self::FLAT;
        }
        let full = |lo: u64, hi: u64| lo == 0 && hi == 0xffff_ffff;
        let ok = (0..4).all(|i| {
            let v = &v[i];
            v.base == 0 && full(v.read_lo, v.read_hi) && (i == seg::CS || full(v.write_lo, v.write_hi))
        });
        if ok { Self::FLAT } else { 0 }
    }

    /// Whether `bit` is set.
    pub fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }

    /// Bits of addresses and operands by default: 16, 32 or 64.
    pub fn bitness(self) -> u32 {
        if self.has(Self::LONG) {
            64
        } else if self.has(Self::D32) {
            32
        } else {
            16
        }
    }
}
