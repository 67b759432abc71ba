//! What generated code calls. It finds the addresses of these functions in the [`Context`].
use crate::abi::{
    ACROSS, APART, BLOCK, Context, FLOAT, Left, NO_BLOCK, NO_PAGE, PLACE_MISSES, WINDOWS, WRITE,
};
use crate::clif::stubs::Stubs;
use mynah_cpu::board::EV_TIER;
use mynah_cpu::host_float::X87;
use mynah_cpu::tier::Enter;
use mynah_cpu::{Cpu, Op, code_abi};
use mynah_mmu::PAGE_SIZE;

impl Context {
    /// A context with these stubs, and what regions are entered by; without events as yet.
    pub(crate) fn new(stubs: &Stubs) -> (Self, Enter) {
        let context = Self {
            apart: [0; APART],
            refill_stub: stubs.refill.address,
            fill_stub: stubs.fill.address,
            chain_stub: stubs.chain.address,
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
            stack_room: [0; WINDOWS.len()],
            place_misses: PLACE_MISSES,
            place_missed: 0,
            placed: 0,
            jump: 0,
            x87_data: [0; 2],
            refused: [NO_BLOCK, 0],
            narrow: [NO_BLOCK, 0],
        };
        // SAFETY: the stub was made with this signature.
        let enter = unsafe { std::mem::transmute::<*const u8, Enter>(stubs.entry.address) };
        (context, enter)
    }

    /// The same for a vCPU with these events.
    pub(crate) fn with_events(&self, events: *const u32) -> Self {
        Self { events, ..*self }
    }
}

code_abi! {
    /// See [`Cpu::refill`]; `kind` is the length, and [`WRITE`] or not. With [`FLOAT`] the answer is null if the
    /// instruction must be interpreted.
    ///
    /// # Safety
    /// `cpu` is the vCPU that the calling region was entered with, with a context in its memory.
    pub(crate) fn refill(cpu: *mut Cpu) -> *mut u8 {
        // SAFETY: the engine entered the region with an exclusive reference, of which this is a copy; generated code
        // keeps no other.
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
}

/// The bytes of a load that lies on two pages, and the host address of its first byte; `None` if it lies on one, or is
/// not plain.
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
    // SAFETY: `refill` has given the addresses of so many bytes of guest memory, which stays mapped; `len` is at most
    // 32. Other vCPUs may write them meanwhile, as with any load of generated code.
    unsafe {
        bytes.as_mut_ptr().copy_from(a, first as usize);
        bytes.as_mut_ptr().add(first as usize).copy_from(b, (len - first) as usize);
    }
    Some((a, bytes))
}

code_abi! {
    /// Executes one op by its interpreter's handler, with the state in memory complete and RIP that of the op's block.
    ///
    /// # Safety
    /// As for [`refill`]; `op` is one of the region's own ops.
    pub(crate) fn run_op(cpu: *mut Cpu, op: *const Op) -> u32 {
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
}
