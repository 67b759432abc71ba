//! What generated code and the engine share: the context that code reaches the engine through, and the functions that it calls.
//!
//! Code has no absolute addresses: it takes the addresses of these functions from the [`Context`], whose address it is entered with.
use crate::clif::compile::Compiler;
use mynah_cpu::board::EV_TIER;
use mynah_cpu::host_float::X87;
use mynah_cpu::tier::{Enter, LEFT_HOT, TierMemory};
use mynah_cpu::{Cpu, Op};
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

/// Words left free so that what code stores in the context (saved flags above all) does not lie a multiple of 4 KiB from what every look-up loads: the
/// host takes a load for one of what was just stored if the low 12 bits of the addresses are the same, and has it wait (int-interp took four times as
/// long).
const APART: usize = {
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
const MOST: usize = 256;

/// What code finds in the vCPU's [`TierMemory`]; it addresses the fields by offset.
#[repr(C)]
pub(crate) struct Context {
    /// See [`APART`].
    pub apart: [u64; APART],
    /// The stub that finds an address in the TLB, or by `fill_stub`, and keeps all registers; it leaves the answer in `host`.
    pub refill_stub: *const u8,
    /// The stub that calls [`refill`].
    pub fill_stub: *const u8,
    /// Where a region goes that leaves for an address: the stub that looks for other code there.
    pub chain_stub: *const u8,
    /// [`refill`].
    pub refill: unsafe extern "C" fn(*mut Cpu) -> *mut u8,
    /// [`run_op`].
    pub run_op: unsafe extern "C" fn(*mut Cpu, *const Op) -> u32,
    /// The word of pending events.
    pub events: *const u32,
    /// What `refill_stub` is asked: a linear address (with [`BLOCK`] the number of a block), and the kind of access.
    pub lin: u64,
    /// See [`WRITE`].
    pub kind: u64,
    /// Answer of the last `refill_stub`.
    pub host: *mut u8,
    /// Where a load that was asked for with [`ACROSS`] finds its bytes: at `host`, or in `scratch` if they lie on two pages.
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
    /// The baseline's: the page that the stack was written on last, or [`NO_PAGE`], and what is added to a linear address there. They hold until
    /// something is called.
    pub stack_page: u64,
    pub stack_addend: u64,
    /// The baseline's: misses of places until one of them is looked at, and the offset in the vCPU of the place that has missed then, or 0.
    pub place_misses: u64,
    pub place_missed: u64,
    /// The baseline's: effective addresses of the last operands of x87 instructions, in turns.
    pub x87_data: [u64; 2],
    /// The baseline's: the block whose x87 instructions the host must not execute, as an exception is unmasked, or
    /// [`NO_BLOCK`]; and `page_rip` there.
    pub refused: [u64; 2],
}

/// A stub, for who looks inside.
pub(crate) struct Stub {
    pub name: &'static str,
    pub address: *const u8,
    pub code: Vec<u8>,
}

/// Where the context is in the vCPU.
pub(crate) const CONTEXT: usize = offset_of!(Cpu, tier_memory);
const _: () =
    assert!(size_of::<Context>() <= size_of::<TierMemory>() && size_of::<Context>() <= MOST + 8 * APART);

impl Context {
    /// A context with its stubs, which `put` gives places to, and what regions are entered by; without events as
    /// yet. The stubs' names and code are added to `stubs`. An error says what there is not.
    pub(crate) fn new(
        compiler: &mut Compiler,
        put: &mut dyn FnMut(&[u8]) -> Option<*const u8>,
        stubs: &mut Vec<Stub>,
    ) -> Result<(Self, Enter), String> {
        let mut place = |code: Option<Vec<u8>>, name: &'static str| {
            let code = code.ok_or_else(|| format!("the {name} stub does not compile"))?;
            let address = put(&code).ok_or_else(|| format!("no room for the {name} stub"))?;
            stubs.push(Stub { name, address, code });
            Ok::<_, String>(address)
        };
        let enter = place(compiler.enter_stub(), "entry")?;
        let context = Self {
            apart: [0; APART],
            refill_stub: place(compiler.refill_stub(), "refill")?,
            fill_stub: place(compiler.fill_stub(), "fill")?,
            chain_stub: place(compiler.chain_stub(), "chain")?,
            refill,
            run_op,
            events: std::ptr::null(),
            lin: 0,
            kind: 0,
            host: std::ptr::null_mut(),
            data: std::ptr::null(),
            scratch: [0; 32],
            ops: std::ptr::null(),
            rip: 0,
            page_rip: 0,
            native_flags: 0,
            aside: 0,
            flag_words: std::ptr::null(),
            counters: std::ptr::null(),
            failed: 0,
            stack_page: NO_PAGE as u64,
            stack_addend: 0,
            place_misses: PLACE_MISSES,
            place_missed: 0,
            x87_data: [0; 2],
            refused: [NO_BLOCK, 0],
        };
        // SAFETY: the stub was made with this signature.
        let enter = unsafe { std::mem::transmute::<*const u8, Enter>(enter) };
        Ok((context, enter))
    }

    /// The same for a vCPU with these events.
    pub(crate) fn with_events(&self, events: *const u32) -> Self {
        Self { events, ..*self }
    }
}

/// In place of the number of a block.
pub(crate) const NO_BLOCK: u64 = u64::MAX;

/// Misses of places after which one of them is looked at.
pub(crate) const PLACE_MISSES: u64 = 256;

/// In place of a page: no address aligned to up to 16 bytes gives this if the other bits below the page are cleared.
pub(crate) const NO_PAGE: i64 = 1 << 11;

/// The bit of `refill`'s `kind` that says that the access writes; the bits below are its length.
pub(crate) const WRITE: u64 = 0x100;

/// The bit of `refill`'s `kind` that says that a load will take its bytes from `data`, so that they may lie on two pages.
pub(crate) const ACROSS: u64 = 0x400;

/// The bit of `refill`'s `kind` that asks for [`Cpu::enter_host_float`] instead, with what the low bits say.
pub(crate) const FLOAT: u64 = 0x200;

/// The bit of `refill`'s `kind` beside [`FLOAT`] that says that a block of the baseline asks, whose number is in `lin`.
pub(crate) const BLOCK: u64 = 0x800;

/// See [`Cpu::refill`]; `kind` is the length, and [`WRITE`] or not. With [`FLOAT`] the answer is null if the instruction must be interpreted.
///
/// # Safety
/// `cpu` is the vCPU that the calling region was entered with, with a context in its memory.
pub(crate) unsafe extern "C" fn refill(cpu: *mut Cpu) -> *mut u8 {
    // SAFETY: the engine entered the region with an exclusive reference, of which this is a copy; generated code keeps no other.
    let cpu = unsafe { &mut *cpu };
    // SAFETY: `attach` has put a context there.
    let (lin, kind) = unsafe {
        let c = cpu.tier_memory.0.as_ptr().cast::<Context>();
        ((*c).lin, (*c).kind)
    };
    if kind & FLOAT != 0 {
        let done = cpu.enter_host_float(kind as u8);
        if !done && kind & BLOCK != 0 && kind as u8 == X87 && cpu.x87_unmasked() {
            // SAFETY: as above.
            unsafe {
                let c = cpu.tier_memory.0.as_mut_ptr().cast::<Context>();
                (*c).refused = [lin, (*c).page_rip];
            }
            cpu.events.mark(EV_TIER);
        }
        return std::ptr::without_provenance_mut(usize::from(done));
    }
    let (len, write) = (kind & 0xff, kind & WRITE != 0);
    let scratch = (kind & ACROSS != 0).then(|| load_across(cpu, lin, len)).flatten();
    let host = match scratch {
        Some((host, _)) => host,
        None => cpu.refill(lin, len, write),
    };
    // SAFETY: as above; the context is not referred to otherwise.
    unsafe {
        let c = cpu.tier_memory.0.as_mut_ptr().cast::<Context>();
        (*c).data = host;
        if let Some((_, bytes)) = scratch {
            (*c).scratch = bytes;
            (*c).data = (&raw const (*c).scratch).cast();
        }
    }
    host
}

/// The bytes of a load that lies on two pages, and the host address of its first byte; `None` if it lies on one, or is not plain.
fn load_across(cpu: &mut Cpu, lin: u64, len: u64) -> Option<(*mut u8, [u8; 32])> {
    let first = PAGE_SIZE - (lin & (PAGE_SIZE - 1));
    let second = lin.wrapping_add(first);
    // Not where addresses wrap.
    if len <= first || len > 32 || (lin ^ second) >> 32 != 0 {
        return None;
    }
    let (a, b) = (cpu.refill(lin, first, false), cpu.refill(second, len - first, false));
    if a.is_null() || b.is_null() {
        return None;
    }
    let mut bytes = [0; 32];
    // SAFETY: `refill` has given the addresses of so many bytes of guest memory, which stays mapped; `len` is at most 32. Other vCPUs may write them
    // meanwhile, as with any load of generated code.
    unsafe {
        bytes.as_mut_ptr().copy_from(a, first as usize);
        bytes.as_mut_ptr().add(first as usize).copy_from(b, (len - first) as usize);
    }
    Some((a, bytes))
}

/// Executes one op by its interpreter's handler, with the state in memory complete and RIP that of the op's block.
///
/// # Safety
/// As for [`refill`]; `op` is one of the region's own ops.
pub(crate) unsafe extern "C" fn run_op(cpu: *mut Cpu, op: *const Op) -> u32 {
    // SAFETY: see `refill`; a region's ops live as long as its code.
    let (cpu, op) = unsafe { (&mut *cpu, &*op) };
    if cpu.is_tentative() && !mynah_cpu::check::is_repeatable(op.code()) {
        cpu.state.gpr[mynah_cpu::state::gpr::RIP] = cpu.ip(op);
        // The code counts the instruction, which has not been executed.
        cpu.icount = cpu.icount.wrapping_sub(1);
        return Left::Interpret as u32;
    }
    let epoch = cpu.code_epoch();
    if !cpu.run_op(op) {
        let left = if cpu.can_go_on() { Left::Next } else { Left::Stopped };
        left as u32
    } else if cpu.code_epoch() != epoch {
        cpu.state.gpr[mynah_cpu::state::gpr::RIP] = cpu.ip_after(op);
        Left::Code as u32
    } else {
        Left::Stay as u32
    }
}
