//! What generated code knows of memory, whoever makes it: where the vCPU has what, how code says why it is left, what
//! it asks stubs for, and how an address is looked up. Both emitters follow this.
//!
//! Code has no absolute addresses but those of ops: it is entered with the vCPU's address, and everything is at an
//! offset from that. What the engine needs beside the vCPU's own is the [`Context`], in the vCPU's [`TierMemory`].
//!
//! **The look-up in the TLB** of `len` bytes at the linear address `lin` ([`tlb`] has the numbers):
//!
//! ```text
//!   offset = (lin >> ENTRY_SHIFT ^ lin >> ENTRY_SHIFT + HASH_SHIFT) & [MASK]
//!   entry  = [TABLE] + offset
//!   hit    = [entry + tag(write)] == (lin + len - 1) & PAGE
//!   host   = lin + [entry + ADDEND]
//! ```
//!
//! As the entry is that of the page of `lin`, comparing it with the page of the last byte finds accesses across two
//! pages as well. What misses asks the refill stub ([`Context::refill_stub`]).
//!
//! **A place** ([`mynah_mmu::Place`], or the stack's page in the context) is asked by `lin & aligned_page(len)`: page
//! and the low bits that an aligned access has not. So what is not aligned misses, and nothing lies on two pages.
//!
//! **A window on the stack**, of the `n`th of the [`WINDOWS`]' lengths from the linear address `lin` on, may be used if
//! `lin - [STACK_PAGE] < [STACK_ROOM + 8 * n]`, as numbers without a sign: no page is known if there is no room. All that
//! is in it is `[STACK_ADDEND]` from its linear address.
//!
//! **The table of compiled code** ([`jumps`]) is looked into where code leaves for an address:
//!
//! ```text
//!   jump = [CODE_JUMPS] + ((rip ^ rip >> SHIFT) & MASK) << ENTRY_SHIFT
//!   hit  = [jump + LIN] == rip && [jump + TAG] == [TAGS + 8 * (rip >> 63)]
//! ```
//!
//! and no event that is not masked is pending: `[[EVENTS]] & [EVENT_MASK] == 0`.
//!
//! After a flush no tag there is right. So what misses looks into another table ([`places`]), by where the bytes of the
//! code are:
//!
//! ```text
//!   entry = that of the TLB for rip                    [entry + EXEC] == rip & PAGE
//!   host  = rip + [entry + ADDEND]
//!   place = [CODE_PLACES] + ((host ^ host >> FOLD) & MASK) << SCALE
//!   hit   = [place + NAME] == host | the lowest byte of the tags << KEY_SHIFT
//! ```
//!
//! If the entry of the first table names that code it gets the present tag, and is right once more. If it names another,
//! each [`PLACED`]th time is taken for a miss, so that what comes often gets a new entry in the first.
use mynah_cpu::mode::SegView;
use mynah_cpu::state::{Fpu, Segment, State, Vector, gpr};
use mynah_cpu::tier::{LEFT_HOT, Returns, TierMemory};
use mynah_cpu::{Cpu, Op, code_abi};
use mynah_mmu::{PAGE_SIZE, Tlb, TlbView};
use std::mem::{offset_of, size_of};

/// Why a region was left. In each case the state in memory is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Left {
    /// Not left: the value of a call that lets the region go on.
    Stay = 0,
    /// Execution goes on at RIP, outside the region.
    Next = 1,
    /// An event is pending; execution goes on at RIP.
    Event = 2,
    /// The interpreter must execute the instruction at RIP, which has not begun.
    Interpret = 3,
    /// A call has ended the block, or has stopped at RIP, perhaps with a fault to be settled.
    Stopped = 4,
    /// Decoded code has changed under the region; execution goes on at RIP.
    Code = 5,
    /// The block at RIP, of the baseline, has run often.
    Hot = LEFT_HOT,
}

/// Words left free so that what code stores in the context (saved flags above all) does not lie a multiple of 4 KiB
/// from what every look-up loads: the host takes a load for one of what was just stored if the low 12 bits of the
/// addresses are the same, and has it wait (int-interp took four times as long).
pub(crate) const APART: usize = {
    let view = offset_of!(Cpu, tlb) + offset_of!(Tlb, view);
    // Bytes from the view's place to the context's, round the 4 KiB.
    let behind = (CONTEXT + 4096 - view % 4096) % 4096;
    let (view, context) = (size_of::<TlbView>(), MOST);
    if behind < view {
        (view - behind).div_ceil(8)
    } else if behind + context > 4096 {
        (4096 - behind + view).div_ceil(8)
    } else {
        0
    }
};

/// Bytes that the context's fields take at most.
const MOST: usize = 312;

/// What code finds in the vCPU's [`TierMemory`]; it addresses the fields by offset.
#[repr(C)]
pub(crate) struct Context {
    /// See [`APART`].
    pub apart: [u64; APART],
    /// The stub that finds an address in the TLB, or by `fill_stub`, and keeps all registers; it leaves the answer in
    /// `host`.
    pub refill_stub: *const u8,
    /// The stub that calls [`refill`](crate::runtime::refill).
    pub fill_stub: *const u8,
    /// Where a region goes that leaves for an address: the stub that looks for other code there.
    pub chain_stub: *const u8,
    /// [`refill`](crate::runtime::refill).
    pub refill: code_abi! { fn(*mut Cpu) -> *mut u8 },
    /// [`run_op`](crate::runtime::run_op).
    pub run_op: code_abi! { fn(*mut Cpu, *const Op) -> u32 },
    /// The word of pending events.
    pub events: *const u32,
    /// What `refill_stub` is asked: a linear address (with [`BLOCK`] the number of a block), and the kind of access.
    pub lin: u64,
    /// See [`WRITE`].
    pub kind: u64,
    /// Answer of the last `refill_stub`.
    pub host: *mut u8,
    /// Where a load that was asked for with [`ACROSS`] finds its bytes: at `host`, or in `scratch` if they lie on two
    /// pages.
    pub data: *const u8,
    /// Room for an operand.
    pub scratch: [u8; 32],
    /// The ops of the region that runs.
    pub ops: *const Op,
    /// RIP where it was entered.
    pub rip: u64,
    /// The baseline's: RIP of the first byte of the page that its code is on.
    pub page_rip: u64,
    /// The baseline's: OF, and in the second byte the other flags as LAHF has them.
    pub native_flags: u64,
    /// The baseline's: room for a value.
    pub aside: u64,
    /// The baseline's: `res` and `aux` for each of the 512 values of OF and LAHF's byte.
    pub flag_words: *const u64,
    /// The baseline's: what is left of each block's executions until it is hot.
    pub counters: *const u32,
    /// The baseline's: where to go on if a look-up fails.
    pub failed: u64,
    /// The baseline's: the page that the stack was written on last, or [`NO_PAGE`], and what is added to a linear
    /// address there. They hold until something is called.
    pub stack_page: u64,
    pub stack_addend: u64,
    /// The baseline's: for windows of each of the [`WINDOWS`], the offsets in that page where one may begin, counted
    /// from 1; 0 if no page is known.
    pub stack_room: [u64; WINDOWS.len()],
    /// The baseline's: misses of places until one of them is looked at, and the offset in the vCPU of the place that
    /// has missed then, or 0.
    pub place_misses: u64,
    pub place_missed: u64,
    /// The baseline's: how often code may yet be found by where its bytes are until that is a miss; see [`PLACED`].
    pub placed: u64,
    /// The baseline's: the entry of the table of [`mynah_cpu::tier::CodeJump`]s that was looked at last in vain.
    pub jump: u64,
    /// The baseline's: effective addresses of the last operands of x87 instructions, in turns.
    pub x87_data: [u64; 2],
    /// The baseline's: the block whose x87 instructions the host must not execute, as an exception is unmasked, or
    /// [`NO_BLOCK`]; and `page_rip` there.
    pub refused: [u64; 2],
    /// The baseline's: the block that is to have code without a window, as its stack lies on two pages or is not to be
    /// written, or [`NO_BLOCK`]; and `page_rip` there.
    pub narrow: [u64; 2],
}

/// Where the context is in the vCPU.
pub(crate) const CONTEXT: usize = offset_of!(Cpu, tier_memory);
const _: () =
    assert!(size_of::<Context>() <= size_of::<TierMemory>() && size_of::<Context>() <= MOST + 8 * APART);

/// In place of the number of a block.
pub(crate) const NO_BLOCK: u64 = u64::MAX;

/// Of so many times that code is found by where its bytes are alone one is a miss.
pub(crate) const PLACED: i32 = 64;

/// Misses of places after which one of them is looked at.
pub(crate) const PLACE_MISSES: u64 = 256;

/// In place of a page: no address aligned to up to 16 bytes gives this if the other bits below the page are cleared.
pub(crate) const NO_PAGE: i64 = 1 << 11;

/// Lengths of windows on the stack in bytes: what a block accesses there may lie in one, and is asked for once.
pub(crate) const WINDOWS: [u64; 4] = [32, 64, 128, 256];

/// Offsets in the stack's page where a window of `len` bytes may begin, counted from 1.
pub(crate) const fn stack_room(len: u64) -> u64 {
    PAGE_SIZE - len + 1
}

/// The bit of `refill`'s `kind` that says that the access writes; the bits below are its length.
pub(crate) const WRITE: u64 = 0x100;

/// The bit of `refill`'s `kind` that says that a load will take its bytes from `data`, so that they may lie on two
/// pages.
pub(crate) const ACROSS: u64 = 0x400;

/// The bit of `refill`'s `kind` that asks for [`Cpu::enter_host_float`] instead, with what the low bits say.
pub(crate) const FLOAT: u64 = 0x200;

/// The bit of `refill`'s `kind` beside [`FLOAT`] that says that a block of the baseline asks, whose number is in
/// `lin`.
pub(crate) const BLOCK: u64 = 0x800;

/// Offset in the vCPU of a field of the context.
pub(crate) const fn in_context(field: i32) -> i32 {
    CONTEXT as i32 + field
}

/// Offsets in the context.
pub(crate) mod context {
    use super::{Context, offset_of};
    pub const REFILL_STUB: i32 = offset_of!(Context, refill_stub) as i32;
    pub const FILL_STUB: i32 = offset_of!(Context, fill_stub) as i32;
    pub const CHAIN_STUB: i32 = offset_of!(Context, chain_stub) as i32;
    pub const REFILL: i32 = offset_of!(Context, refill) as i32;
    pub const RUN_OP: i32 = offset_of!(Context, run_op) as i32;
    pub const EVENTS: i32 = offset_of!(Context, events) as i32;
    pub const LIN: i32 = offset_of!(Context, lin) as i32;
    pub const KIND: i32 = offset_of!(Context, kind) as i32;
    pub const HOST: i32 = offset_of!(Context, host) as i32;
    pub const DATA: i32 = offset_of!(Context, data) as i32;
    pub const SCRATCH: i32 = offset_of!(Context, scratch) as i32;
    pub const OPS: i32 = offset_of!(Context, ops) as i32;
    pub const RIP: i32 = offset_of!(Context, rip) as i32;
    pub const PAGE_RIP: i32 = offset_of!(Context, page_rip) as i32;
    pub const NATIVE_FLAGS: i32 = offset_of!(Context, native_flags) as i32;
    pub const ASIDE: i32 = offset_of!(Context, aside) as i32;
    pub const FLAG_WORDS: i32 = offset_of!(Context, flag_words) as i32;
    pub const COUNTERS: i32 = offset_of!(Context, counters) as i32;
    pub const FAILED: i32 = offset_of!(Context, failed) as i32;
    pub const STACK_PAGE: i32 = offset_of!(Context, stack_page) as i32;
    pub const STACK_ADDEND: i32 = offset_of!(Context, stack_addend) as i32;
    pub const STACK_ROOM: i32 = offset_of!(Context, stack_room) as i32;
    pub const NARROW: i32 = offset_of!(Context, narrow) as i32;
    pub const PLACE_MISSES: i32 = offset_of!(Context, place_misses) as i32;
    pub const PLACE_MISSED: i32 = offset_of!(Context, place_missed) as i32;
    pub const PLACED: i32 = offset_of!(Context, placed) as i32;
    pub const JUMP: i32 = offset_of!(Context, jump) as i32;
    pub const X87_DATA: i32 = offset_of!(Context, x87_data) as i32;
}

/// Offsets in the vCPU.
pub(crate) mod cpu {
    use super::*;

    pub const ICOUNT: i32 = offset_of!(Cpu, icount) as i32;
    pub const EVENT_MASK: i32 = offset_of!(Cpu, event_mask) as i32;
    pub const SSE_TRAP: i32 = offset_of!(Cpu, sse_trap) as i32;
    pub const AVX_TRAP: i32 = offset_of!(Cpu, avx_trap) as i32;
    pub const FLOAT_LIVE: i32 = offset_of!(Cpu, float_live) as i32;
    pub const RIP: i32 = gpr(gpr::RIP);
    /// RFLAGS but for the arithmetic flags.
    pub const RFLAGS: i32 = in_state(offset_of!(State, rflags));
    pub const CPL: i32 = in_state(offset_of!(State, cpl));
    /// The two words of flags; `AUX` is behind `RES`.
    pub const RES: i32 = in_state(offset_of!(State, res));
    pub const AUX: i32 = in_state(offset_of!(State, aux));
    const _: () = assert!(AUX == RES + 8);

    const fn in_state(field: usize) -> i32 {
        (offset_of!(Cpu, state) + field) as i32
    }

    /// A general register, or RIP.
    pub const fn gpr(n: usize) -> i32 {
        in_state(offset_of!(State, gpr) + 8 * n)
    }

    /// The low half of a vector register.
    pub const fn xmm(n: usize) -> i32 {
        in_state(offset_of!(State, xmm) + n * size_of::<Vector>())
    }

    /// Bits 128-255 of a vector register.
    pub const fn ymm_high(n: usize) -> i32 {
        xmm(n) + 16
    }

    /// A field of the x87 unit.
    pub const fn fpu(field: usize) -> i32 {
        in_state(offset_of!(State, fpu) + field)
    }
    pub const FIP: i32 = fpu(offset_of!(Fpu, fip));
    pub const FCS: i32 = fpu(offset_of!(Fpu, fcs));
    pub const FOP: i32 = fpu(offset_of!(Fpu, fop));
    pub const FDP: i32 = fpu(offset_of!(Fpu, fdp));
    pub const FDS: i32 = fpu(offset_of!(Fpu, fds));

    /// A segment's selector.
    pub fn selector(segment: u8) -> i32 {
        let at = offset_of!(State, seg) + usize::from(segment.min(5)) * size_of::<Segment>();
        in_state(at + offset_of!(Segment, sel))
    }

    /// A segment's base, and the first and last offsets that may be accessed, to read or to write.
    pub fn segment_base(segment: usize) -> i32 {
        in_view(segment, offset_of!(SegView, base))
    }
    pub fn segment_bounds(segment: usize, write: bool) -> (i32, i32) {
        let (lo, hi) = if write {
            (offset_of!(SegView, write_lo), offset_of!(SegView, write_hi))
        } else {
            (offset_of!(SegView, read_lo), offset_of!(SegView, read_hi))
        };
        (in_view(segment, lo), in_view(segment, hi))
    }
    fn in_view(segment: usize, field: usize) -> i32 {
        (offset_of!(Cpu, view) + segment * size_of::<SegView>() + field) as i32
    }

    /// Where code stores in the vCPU, beside the context: first bytes and lengths.
    pub const STORED: [(usize, usize); 7] = [
        (ICOUNT as usize, 8),
        (EVENT_MASK as usize, 4),
        (RFLAGS as usize, 8),
        (gpr(0) as usize, 8 * 18),
        (xmm(0) as usize, 16 * size_of::<Vector>()),
        (fpu(0) as usize, size_of::<Fpu>()),
        (offset_of!(Cpu, returns), size_of::<Returns>()),
    ];
}

/// The numbers of the look-up in the TLB.
pub(crate) mod tlb {
    use super::*;
    pub use mynah_mmu::{ENTRY_SHIFT, HASH_SHIFT};
    use mynah_mmu::{PAGE_MASK, Place, TlbEntry};

    const VIEW: usize = offset_of!(Cpu, tlb) + offset_of!(Tlb, view);
    /// Offsets in the vCPU.
    pub const TABLE: i32 = (VIEW + offset_of!(TlbView, table)) as i32;
    pub const MASK: i32 = (VIEW + offset_of!(TlbView, mask)) as i32;
    pub const PLACE_KEY: i32 = (VIEW + offset_of!(TlbView, place_key)) as i32;
    pub const PLACES: usize = offset_of!(Cpu, tlb) + offset_of!(Tlb, places);
    /// Offsets in an entry.
    pub const ADDEND: i32 = offset_of!(TlbEntry, addend) as i32;
    pub const EXEC: i32 = offset_of!(TlbEntry, exec) as i32;
    pub const fn tag(write: bool) -> i32 {
        (if write { offset_of!(TlbEntry, write) } else { offset_of!(TlbEntry, read) }) as i32
    }
    /// Offsets in a place. Its tag is the page and the key.
    pub const PLACE_TAG: i32 = offset_of!(Place, tag) as i32;
    pub const PLACE_ADDEND: i32 = offset_of!(Place, addend) as i32;
    /// What is left of an address: its page.
    pub const PAGE: i64 = !PAGE_MASK as i64;

    /// The page, and the bits that an aligned access has not.
    pub const fn aligned_page(len: u64) -> i64 {
        (!PAGE_MASK | (len.next_power_of_two() - 1)) as i64
    }
}

/// The numbers of the look-up of compiled code.
pub(crate) mod jumps {
    use super::*;
    use mynah_cpu::tier::CodeJump;

    /// Offsets in the vCPU: the table's address, and the tags of the two halves of the addresses.
    pub const TABLE: i32 = offset_of!(Cpu, code_jumps) as i32;
    pub const TAGS: i32 =
        (offset_of!(Cpu, tlb) + offset_of!(Tlb, view) + offset_of!(TlbView, code_tags)) as i32;
    pub const SHIFT: u32 = 12;
    pub const MASK: i32 = mynah_cpu::tier::CODE_JUMPS as i32 - 1;
    pub const ENTRY_SHIFT: u32 = size_of::<CodeJump>().trailing_zeros();
    /// Offsets in an entry.
    pub const LIN: i32 = offset_of!(CodeJump, lin) as i32;
    pub const TAG: i32 = offset_of!(CodeJump, tag) as i32;
    pub const CODE: i32 = offset_of!(CodeJump, code) as i32;
    pub const OPS: i32 = offset_of!(CodeJump, ops) as i32;
}

/// The numbers of the returns that are to be expected.
pub(crate) mod returns {
    use super::*;
    use mynah_cpu::tier::Return;

    /// Offsets in the vCPU.
    pub const LATEST: i32 = (offset_of!(Cpu, returns) + offset_of!(Returns, latest)) as i32;
    const SLOTS: usize = offset_of!(Cpu, returns) + offset_of!(Returns, slots);
    /// Offsets in the vCPU of fields of the first slot.
    pub const LIN: i32 = (SLOTS + offset_of!(Return, lin)) as i32;
    pub const TAG: i32 = (SLOTS + offset_of!(Return, tag)) as i32;
    pub const CODE: i32 = (SLOTS + offset_of!(Return, code)) as i32;
    pub const STEP: u8 = Returns::STEP;
    /// From a slot's number, as `LATEST` has it, to its offset, as a power of two.
    pub const SCALE: u8 = (size_of::<Return>() / STEP as usize).trailing_zeros() as u8;
    const _: () = assert!((STEP as usize) << SCALE == size_of::<Return>());
    // What is stored here does not lie a multiple of 4 KiB from what each look-up loads: see `APART`.
    const _: () = {
        let view = offset_of!(Cpu, tlb) + offset_of!(Tlb, view);
        let behind = (offset_of!(Cpu, returns) + 4096 - view % 4096) % 4096;
        assert!(behind >= size_of::<TlbView>() && behind + size_of::<Returns>() <= 4096);
    };
}

/// The numbers of the look-up of compiled code by where its bytes are.
pub(crate) mod places {
    use super::*;
    use mynah_cpu::tier::{CODE_PLACES, CodePlace, PLACE_FOLD, PLACE_GRAIN, PLACE_KEY_SHIFT};

    /// Offset in the vCPU: the table's address.
    pub const TABLE: i32 = offset_of!(Cpu, code_places) as i32;
    /// How an entry is chosen: the bits of an address that do, and by how much more these are shifted.
    pub const FOLD: u32 = PLACE_FOLD;
    pub const MASK: i32 = (CODE_PLACES as i32 - 1) << PLACE_GRAIN;
    pub const SCALE: u32 = size_of::<CodePlace>().trailing_zeros() - PLACE_GRAIN;
    const _: () = assert!(size_of::<CodePlace>().is_power_of_two());
    pub const KEY_SHIFT: u32 = PLACE_KEY_SHIFT;
    /// Offsets in an entry.
    pub const NAME: i32 = offset_of!(CodePlace, name) as i32;
    pub const OPS: i32 = offset_of!(CodePlace, ops) as i32;
}
