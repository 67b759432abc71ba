//! The vCPU: state, TLB, decoded blocks and its ties to the board; what is derived from its state; raising faults.
//!
//! This file, [`crate::op`], [`crate::block`] and [`crate::tier`] know one another, and nothing above them: a vCPU
//! owns blocks, a block ops, an op is a function of a vCPU, and a tier compiles blocks for one.
use crate::block::{Block, BlockCache};
use crate::board::{Board, EV_INTR, EV_NMI, EV_NMI_AGAIN, Events};
use crate::check::kept::{Check, Kept};
use crate::event::{Exception, Stop, vector};
use crate::mode::{ModeKey, SegView};
use crate::model::CpuModel;
use crate::op::Op;
use crate::state::{Segment, Shadow, State, cr0, cr4, fl, gpr, seg};
use crate::tier::{CodeJump, CodePlace, Recording, Returns, Tier, TierMemory};
use crate::trace::log::Trace;
use crate::world::{MemoryChanges, World};
use mynah_mmu::{Mode, Paging, PhysMemory, Tlb};
use parking_lot::Mutex;
use std::sync::Arc;

/// One vCPU.
#[repr(C)]
pub struct Cpu {
    /// Architectural state; first, so that engines address it from the vCPU's own pointer.
    pub state: State,
    /// The TLB.
    pub tlb: Tlb,
    /// Segments as the address path sees them (6 used).
    pub view: [SegView; 8],
    /// Which of [`Events`] end the block at its end.
    pub event_mask: u32,
    /// Mode bits that select decoded blocks: see [`ModeKey`].
    pub mode_key: u32,
    /// Vector that every SSE instruction raises now (#UD without CR4.OSFXSR or with CR0.EM, #NM with CR0.TS), 0 if
    /// none; kept by `sync_mode`.
    pub sse_trap: u8,
    /// What of the guest's floating-point state is in the host's registers: see [`crate::host_float`].
    pub float_live: u8,
    /// Vector that every AVX instruction raises now (#UD without CR4.OSXSAVE or XCR0[2:1] = 11b, #NM with CR0.TS), 0
    /// if none; kept by `sync_mode`.
    pub avx_trap: u8,
    /// Floating point and vectors are computed by portable code: see [`Cpu::use_portable_code`].
    pub(crate) portable: bool,
    /// The guest's MXCSR, without flags, under which the host's own may do: that of the host, or none.
    pub(crate) quick_mxcsr: u32,
    /// RIP after the current block-ending instruction.
    pub next_ip: u64,
    /// The exception behind `Err(Stop::Fault)`.
    pub fault: Exception,
    /// Signals from outside.
    pub events: Arc<Events>,
    /// Physical memory.
    pub mem: Arc<PhysMemory>,
    /// The board.
    pub board: Arc<dyn Board>,
    /// The CPU model: CPUID, feature checks.
    pub model: Arc<CpuModel>,
    /// Registers that paging depends on; kept by `sync_mode`.
    pub paging: Paging,
    /// A20 mask.
    pub a20_mask: u64,
    /// Physical address of the page where this vCPU's local APIC answers, or [`Self::NO_APIC_PAGE`]; kept by
    /// `sync_apic`.
    pub(crate) apic_page: u64,
    /// Debug conditions met by the current instruction: bits of DR6 to be delivered as a trap after it.
    pub debug_hits: u64,
    /// The current instruction was a software interrupt: it has cleared TF, and no single-step trap follows it (SDM
    /// volume 3B, 18.3.1.4).
    pub(crate) untraced: bool,
    /// Executed instructions, counted at block ends.
    pub icount: u64,
    /// vCPU number (initial APIC id).
    pub index: u32,
    /// Whether the translations of user pages were made with alignment checking on: see `track_alignment`.
    pub(crate) alignment_traced: bool,
    /// What other threads have changed in memory.
    pub inbox: Arc<Mutex<MemoryChanges>>,
    /// The vCPUs of the machine, and this one's place among them.
    pub(crate) world: Arc<World>,
    pub(crate) seat: usize,
    /// Its bit in the masks of those who may write to a page.
    pub(crate) writer_bit: u64,
    /// Its number among those who are told of writes to code.
    pub(crate) watcher: Option<usize>,
    /// PAUSEs executed with few other instructions between them, and the count of instructions at the last.
    pub(crate) pauses: u32,
    pub(crate) paused_at: u64,
    /// Executing a single instruction: handlers must not go on to another block.
    pub(crate) single: bool,
    /// Data breakpoints are to be looked for.
    pub(crate) watch: bool,
    /// The branch distance of `from`: from the first byte of its block.
    pub(crate) from_relative: u64,
    /// The log of `-d`.
    pub(crate) trace: Option<Arc<Trace>>,
    /// Blocks are not to be linked: the log wants to see each.
    pub(crate) unchained: bool,
    /// What compiles hot blocks.
    pub(crate) tier: Option<Box<dyn Tier>>,
    /// Executions after which a block is hot.
    pub(crate) hot_after: u32,
    /// Blocks with code that are being recorded.
    pub(crate) recording: Option<Box<Recording>>,
    /// Executions after which the tier is asked whether it has code for a block.
    pub(crate) known_after: u32,
    /// Compiled code has left the instruction at RIP to the interpreter.
    pub(crate) interpret_next: bool,
    /// How often compiled code was left, by what it said of why ([`crate::tier::Enter`]).
    pub left: [u64; 8],
    /// Instructions executed in compiled code.
    pub in_code: u64,
    /// This is the only vCPU of the machine.
    pub(crate) sole: bool,
    /// A handler has left a fault in `fault` for the dispatcher.
    pub(crate) faulted: bool,
    /// The last reading of the time was put off for an interrupt: the next one is not, whatever the board says.
    pub(crate) time_put_off: bool,
    /// The link to fill in once the next block is known: a block and one of its successors.
    pub(crate) from: (*const Block, usize),
    /// CR0.EM or CR0.TS: x87 instructions raise #NM. Kept by `sync_mode`.
    pub x87_trap: u8,
    /// FERR#: an x87 exception is pending while CR0.NE is clear (the board was told, see [`Board::ferr`]).
    pub ferr: bool,
    /// Compiled code by linear address, for generated code: [`crate::tier::CODE_JUMPS`] entries, which `blocks` owns.
    pub code_jumps: *const CodeJump,
    /// Compiled code by where its bytes are: [`crate::tier::CODE_PLACES`] entries, which `blocks` owns.
    pub code_places: *const CodePlace,
    /// The tier's memory.
    pub tier_memory: TierMemory,
    /// Where the tier's code is expected to return to.
    pub returns: Returns,
    /// Compiled code is checked against the interpreter: see [`crate::check`].
    pub(crate) check: Option<Box<Check>>,
    /// Pages as they were, while what is done may have to be taken back.
    pub(crate) kept: Option<Vec<Kept>>,
    /// The first store to a page, after a flush of the TLB, is to mark it dirty: see [`crate::lockstep`].
    pub(crate) marks_stores: bool,
    /// Exceptions that were delivered by the run loop.
    pub(crate) faults: u64,
    /// Meanwhile an access has met a device, and was not made.
    pub(crate) device_met: bool,
    pub(crate) blocks: BlockCache,
}

// SAFETY: raw pointers in a vCPU point to what it owns itself (decoded blocks, TLB tables) or to guest RAM that `mem`
// keeps alive; one thread at a time uses a vCPU.
unsafe impl Send for Cpu {}

impl Cpu {
    /// In place of the address of a page: none has it.
    pub(crate) const NO_APIC_PAGE: u64 = u64::MAX;

    // ---- derived state
    // -------------------------------------------------------------------------------------------------

    /// Recomputes all that is derived from the state: call it after replacing the state as a whole.
    pub fn sync_all(&mut self) {
        for i in 0..6 {
            self.sync_segment(i);
        }
        self.sync_apic();
        self.sync_paging();
        self.tlb.flush_all();
        self.sync_mode();
    }

    /// Call after a change of IA32_APIC_BASE: the local APIC's page may be another, or none. What was translated to
    /// either page, or decoded from it, no longer holds.
    pub(crate) fn sync_apic(&mut self) {
        let page = self.board.apic_page().map_or(Self::NO_APIC_PAGE, |at| at & !mynah_mmu::PAGE_MASK);
        let before = std::mem::replace(&mut self.apic_page, page);
        if page != before {
            self.tlb.flush_all();
            self.invalidate_range(before, before);
            self.invalidate_range(page, page);
        }
    }

    /// Call after a change of segment register `i` (and `sync_mode` if it was CS or SS).
    pub fn sync_segment(&mut self, i: usize) {
        let s = self.state.seg[i];
        let v = &mut self.view[i];
        if self.state.is_long64() {
            let base = if i >= seg::FS { s.base } else { 0 };
            *v = SegView { base, read_lo: 0, read_hi: u64::MAX, write_lo: 0, write_hi: u64::MAX };
            return;
        }
        *v = SegView { base: s.base & 0xffff_ffff, read_lo: 1, read_hi: 0, write_lo: 1, write_hi: 0 };
        let real = self.state.cr0 & cr0::PE == 0 || self.state.rflags & fl::VM != 0;
        if !real && (!s.usable() || s.attr & Segment::P == 0) {
            return;
        }
        let kind = s.kind();
        let code = kind & 8 != 0;
        let (lo, hi) = if !code && kind & 4 != 0 {
            (u64::from(s.limit) + 1, if s.attr & Segment::DB != 0 { 0xffff_ffff } else { 0xffff })
        } else {
            (0, u64::from(s.limit))
        };
        if real || !code || kind & 2 != 0 {
            (v.read_lo, v.read_hi) = (lo, hi);
        }
        if real || (!code && kind & 2 != 0) {
            (v.write_lo, v.write_hi) = (lo, hi);
        }
    }

    /// Call after a change of CR0, CR3, CR4, EFER, PKRU, PDPTEs or A20. Does not flush the TLB: the caller knows what
    /// the change demands.
    pub fn sync_paging(&mut self) {
        let s = &self.state;
        self.paging = Paging {
            cr0: s.cr0,
            cr3: s.cr3,
            cr4: s.cr4,
            efer: s.msr.efer,
            pkru: s.pkru,
            pdpte: s.pdpte,
            phys_bits: self.model.phys_bits(),
            a20_mask: self.a20_mask,
        };
    }

    /// The mode in which this vCPU's data accesses are made now.
    pub fn access_mode(&self) -> Mode {
        let s = &self.state;
        if s.cpl == 3 {
            Mode::User
        } else if s.cr4 & cr4::SMAP != 0 && s.rflags & fl::AC == 0 {
            Mode::Super
        } else {
            Mode::SuperAc
        }
    }

    /// Call after a change of CS, SS, CPL, CR0, CR4, XCR0, EFER, IF, TF, VM, AC, VIF, the shadow or DR7: selects the
    /// TLB's table, the block key and the event mask. Segment views are refreshed too if 64-bit mode was entered or
    /// left.
    pub fn sync_mode(&mut self) {
        let key = ModeKey::of(&self.state).0;
        if (key ^ self.mode_key) & ModeKey::SEGMENTED != 0 {
            for i in 0..6 {
                self.sync_segment(i);
            }
        }
        let flat = ModeKey::flat(&self.view, &self.state);
        self.mode_key = key | flat;
        self.tlb.set_code_key(self.mode_key as u8);
        self.x87_trap = u8::from(self.state.cr0 & (cr0::EM | cr0::TS) != 0);
        let mode = self.access_mode();
        self.tlb.select(mode);
        self.track_alignment();
        let s = &self.state;
        self.sse_trap = if s.cr0 & cr0::EM != 0 || s.cr4 & cr4::OSFXSR == 0 {
            vector::UD
        } else if s.cr0 & cr0::TS != 0 {
            vector::NM
        } else {
            0
        };
        self.avx_trap = if s.cr4 & cr4::OSXSAVE == 0 || s.xcr0 & 6 != 6 {
            vector::UD
        } else if s.cr0 & cr0::TS != 0 {
            vector::NM
        } else {
            0
        };
        self.sync_events();
    }

    /// Call after a change of IF or the shadow alone.
    pub fn sync_events(&mut self) {
        let s = &self.state;
        let mut mask = !EV_NMI_AGAIN;
        if s.rflags & fl::IF == 0 || s.shadow != Shadow::None {
            mask &= !EV_INTR;
        }
        if s.nmi_blocked || matches!(s.shadow, Shadow::MovSs | Shadow::Event) {
            mask &= !EV_NMI;
        }
        self.event_mask = mask;
    }

    // ---- instruction pointers
    // ------------------------------------------------------------------------------------------

    /// The mask of RIP in the current code segment: 64, 32 or (for the arithmetic of 16-bit code) 32 bits.
    #[inline(always)]
    pub fn ip_mask(&self) -> u64 {
        if self.state.is_long64() { u64::MAX } else { 0xffff_ffff }
    }
    /// RIP of `op`.
    #[inline(always)]
    pub fn ip(&self, op: &Op) -> u64 {
        self.state.gpr[gpr::RIP].wrapping_add(u64::from(op.off)) & self.ip_mask()
    }
    /// RIP after `op` (what CALL pushes).
    #[inline(always)]
    pub fn ip_after(&self, op: &Op) -> u64 {
        let ip = self.state.gpr[gpr::RIP].wrapping_add(u64::from(op.off) + u64::from(op.len));
        ip & if self.state.is_long64() {
            u64::MAX
        } else if self.state.seg[seg::CS].attr & Segment::DB != 0 {
            0xffff_ffff
        } else {
            0xffff
        }
    }
    /// For helpers that end a block: where execution goes on.
    #[inline(always)]
    pub fn set_next_ip(&mut self, ip: u64) {
        self.next_ip = ip;
    }

    // ---- raising faults
    // ------------------------------------------------------------------------------------------------

    /// Raises an exception without an error code: `return Err(cpu.raise(vector::UD))`.
    #[cold]
    pub fn raise(&mut self, vector: u8) -> Stop {
        self.fault = Exception { vector, error: None };
        Stop::Fault
    }
    /// Raises an exception with an error code.
    #[cold]
    pub fn raise_ec(&mut self, vector: u8, error: u32) -> Stop {
        self.fault = Exception { vector, error: Some(error) };
        Stop::Fault
    }
    /// #GP(error).
    #[cold]
    pub fn gp(&mut self, error: u32) -> Stop {
        self.raise_ec(vector::GP, error)
    }
    /// #UD.
    #[cold]
    pub fn ud(&mut self) -> Stop {
        self.raise(vector::UD)
    }
}
