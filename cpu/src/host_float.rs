//! The guest's floating-point state in the host's own registers, while translated code runs.
//!
//! Translated code executes the guest's floating-point instructions themselves. For that the host's MXCSR must hold
//! the guest's rounding control, FTZ, DAZ and (at most) its sticky flags, and for x87 and MMX instructions the host's
//! x87 unit must hold the guest's. [`Cpu::enter_host_float`] arranges it when the first such instruction is met, and
//! [`Cpu::leave_host_float`] takes everything back before anything else looks at [`crate::State`]: so the cost falls
//! on code that uses it, once for many regions. [`Cpu::float_live`] says what is in the host's registers.
//!
//! On the host all exceptions stay masked. A guest that has one unmasked, or an x87 exception pending, is interpreted.
//! Rust code may run between: it neither uses the x87 unit nor, as far as a TLB is refilled, computes with
//! floating-point numbers.
use crate::cpu::Cpu;
#[cfg(target_arch = "x86_64")]
use crate::sse::mxcsr;
#[cfg(target_arch = "x86_64")]
use crate::state::F80;

/// The host's MXCSR is the guest's.
pub const SSE: u8 = 1;
/// The host's x87 unit is the guest's.
pub const X87: u8 = 2;

/// MXCSR: the six sticky flags.
const FLAGS: u32 = 0x3f;
/// MXCSR: the six masks.
const MASKS: u32 = FLAGS << 7;
/// MXCSR as compiled Rust expects its control bits.
#[cfg(target_arch = "x86_64")]
const DEFAULT: u32 = MASKS;
/// x87 control word: the six masks.
const X87_MASKS: u16 = 0x3f;
/// x87 status word: an unmasked exception is pending.
const ES: u16 = 1 << 7;
/// x87 status word: TOP.
#[cfg(target_arch = "x86_64")]
const TOP: u16 = 7 << 11;

/// The x87 unit as FNSAVE and FRSTOR have it in 32-bit format (SDM volume 1, figure 8-9), its registers in stack
/// order.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Image {
    cw: u32,
    sw: u32,
    tw: u32,
    pointers: [u32; 4],
    st: [[u8; 10]; 8],
}
const _: () = assert!(size_of::<Image>() == 108);

impl Cpu {
    /// Puts the guest's MXCSR ([`SSE`]) or x87 unit ([`X87`]) into the host's. False if its instructions must be
    /// interpreted now.
    pub fn enter_host_float(&mut self, which: u8) -> bool {
        let done = match which {
            SSE => self.sse_trap == 0 && self.state.mxcsr & MASKS == MASKS && self.load_mxcsr(),
            X87 => self.x87_trap == 0 && !self.x87_unmasked() && self.load_x87(),
            _ => false,
        };
        if done {
            self.float_live |= which;
        }
        done
    }

    /// Whether an exception of the x87 unit is unmasked or pending: the host must not execute its instructions.
    pub fn x87_unmasked(&self) -> bool {
        let f = &self.state.fpu;
        f.sw & ES != 0 || f.cw & X87_MASKS != X87_MASKS
    }

    /// Takes back what [`Cpu::enter_host_float`] has put into the host's registers.
    #[inline]
    pub fn leave_host_float(&mut self) {
        if self.float_live != 0 {
            self.take_back();
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn load_mxcsr(&mut self) -> bool {
        false
    }
    #[cfg(not(target_arch = "x86_64"))]
    fn load_x87(&mut self) -> bool {
        false
    }
    #[cfg(not(target_arch = "x86_64"))]
    fn take_back(&mut self) {
        self.float_live = 0;
    }

    #[cfg(target_arch = "x86_64")]
    fn load_mxcsr(&mut self) -> bool {
        let guest = self.state.mxcsr & mxcsr::MXCSR_MASK;
        // LDMXCSR is slow. The host's sticky flags may be anyone's; a subset of the guest's does no harm, as they are
        // added to them.
        if (host_mxcsr() ^ guest) & !(guest & FLAGS) != 0 {
            set_host_mxcsr(guest);
        }
        true
    }

    #[cfg(target_arch = "x86_64")]
    fn load_x87(&mut self) -> bool {
        let f = &self.state.fpu;
        let tw = (0..8).fold(0, |w, p| w | ((u32::from(f.empty >> p & 1) * 3) << (2 * p)));
        let mut image =
            Image { cw: f.cw.into(), sw: f.status().into(), tw, pointers: [0; 4], st: [[0; 10]; 8] };
        for (n, to) in image.st.iter_mut().enumerate() {
            *to = crate::x87::load_store::f80_bytes(f.st(n as u8));
        }
        // SAFETY: reads the 108 bytes of a local; every exception is masked and none pending. No compiled Rust code
        // uses the x87 unit, so its contents matter to nobody until `take_back`.
        unsafe {
            std::arch::asm!("frstor [{}]", in(reg) &raw const image, options(nostack, readonly, preserves_flags));
        }
        true
    }

    #[cfg(target_arch = "x86_64")]
    #[cold]
    fn take_back(&mut self) {
        if self.float_live & SSE != 0 {
            let now = host_mxcsr();
            self.state.mxcsr |= now & FLAGS;
            if now & !FLAGS != DEFAULT {
                set_host_mxcsr(DEFAULT);
            }
        }
        if self.float_live & X87 != 0 {
            let mut image = std::mem::MaybeUninit::<Image>::uninit();
            // SAFETY: FNSAVE writes the 108 bytes of a local and leaves the unit as FNINIT does, which is what the ABI
            // demands.
            let image = unsafe {
                std::arch::asm!("fnsave [{}]", in(reg) image.as_mut_ptr(), options(nostack, preserves_flags));
                image.assume_init()
            };
            let f = &mut self.state.fpu;
            f.cw = image.cw as u16;
            f.top = (image.sw >> 11 & 7) as u8;
            f.sw = image.sw as u16 & !TOP;
            f.set_tag_word(image.tw as u16);
            for (n, b) in { image.st }.iter().enumerate() {
                let v: F80 = crate::x87::load_store::f80_of(b);
                let p = f.phys(n as u8);
                f.r[p] = v;
            }
        }
        self.float_live = 0;
    }
}

#[cfg(target_arch = "x86_64")]
fn host_mxcsr() -> u32 {
    let mut v = 0u32;
    // SAFETY: stores four bytes into a local.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut v, options(nostack, preserves_flags)) };
    v
}

#[cfg(target_arch = "x86_64")]
fn set_host_mxcsr(v: u32) {
    // SAFETY: reads four bytes of a local, with no reserved bit set (callers). Control bits other than the default are
    // in force only until `take_back`, while translated code runs, and no Rust code that computes with floating-point
    // numbers.
    unsafe {
        std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const v, options(nostack, readonly, preserves_flags))
    };
}
