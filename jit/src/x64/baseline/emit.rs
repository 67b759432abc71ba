//! The guest's instructions as host instructions, one by one.
mod backward;
mod cold;
mod ends;
mod stack;
mod strings;
mod system;

use crate::abi::{BLOCK, CONTEXT, Context, FLOAT, WINDOWS, context, cpu, in_context, jumps, returns, tlb};
use crate::instructions::row;
use crate::x64::asm::{Asm, CPU, cc, host};
use crate::x64::features::on_host;
use crate::x64::forms::{
    HIGH, How, condition, general, how, is_aligned, is_second_byte, may_keep_flags, overwrites, vector_how,
    with_memory, writes,
};
use crate::x64::registers::MAP;
use crate::x64::stubs::{FLAGS, PAGE_RIP, STACK_ADDEND, STACK_PAGE, STACK_ROOM, Stubs, miss};
use crate::x64::x87::is_x87;
pub(super) use backward::Tests;
pub(super) use cold::Cold;
use iced_x86::{
    Code, Encoder, EncodingKind, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register,
};
use mynah_cpu::host_float::SSE;
use mynah_cpu::int::string::One;
use mynah_cpu::op::{CHECKED, LOCK, Op};
use mynah_cpu::state::{fl, gpr, seg};
use mynah_cpu::tier::BASELINE;
use mynah_mmu::{PAGE_MASK, PAGE_SIZE, PLACES, Place, WRITE_PLACES};
use stack::Window;

/// The six arithmetic flags as iced-x86 numbers them.
const ARITHMETIC: u32 = 0x3f;
/// Where a value waits while something else is looked up.
const ASIDE: i32 = in_context(context::ASIDE);

/// A jump to a known address of the guest's, which can be linked with code for it.
pub(super) struct DirectExit {
    /// Where its displacement is.
    pub site: usize,
    /// Where it goes as long as there is no code.
    pub stub: usize,
    /// Offset from the page's first byte.
    pub target: i64,
    /// Events are to be tested whichever way it goes: the block has enabled interrupts.
    pub tests: bool,
}

impl DirectExit {
    /// Whether its target is on its own page.
    pub fn is_in_page(&self) -> bool {
        is_in_page(self.target)
    }
}

fn is_in_page(target: i64) -> bool {
    (0..=PAGE_MASK as i64).contains(&target)
}

/// The last x87 instruction of a block, not yet stored.
#[derive(Clone, Copy)]
pub(super) struct LastX87 {
    /// Offset of the instruction in its page.
    pub here: i64,
    pub opcode: u16,
    /// Of the last one with a memory operand, if there was one since the last store: which of the context's
    /// `x87_data` has its effective address, and its segment.
    pub data: Option<(u8, u8)>,
}

/// Emits one block.
pub(super) struct Emitter<'a> {
    pub(super) a: Asm,
    encoder: &'a mut Encoder,
    info: &'a mut InstructionInfoFactory,
    stubs: &'a Stubs,
    places: &'a mut Places,
    /// The block's number, and which of its ops look into places.
    number: u32,
    placed: u64,
    /// See [`Stubs::chained`].
    chained: &'a [Vec<u8>; 2],
    /// Offset of the code from where offsets of stubs are counted.
    origin: usize,
    /// Where what stands apart begins, once that is known.
    split: usize,
    /// See [`Emitted::crossing`].
    crossing: Vec<usize>,
    /// Offset of the block's first byte in its page.
    first: i64,
    /// Offset of the current instruction in its page.
    pub(super) here: i64,
    /// Index of the current op, and how many instructions the block counts.
    pub(super) k: usize,
    count: usize,
    pub(super) long: bool,
    /// It is a program's, at CPL 3.
    user: bool,
    /// Offsets of the instructions in the page.
    offsets: Vec<i64>,
    /// With what is to be stored first of the last x87 instruction.
    cold: Vec<(Cold, Option<LastX87>)>,
    /// The host's flags are the guest's.
    live: bool,
    /// The saved flags are the guest's.
    saved: bool,
    /// Vector registers whose low 128 bits the host's registers of the same numbers hold.
    vectors: u16,
    /// The host's MXCSR is known to be the guest's; vectors of 256 bits are known to be allowed.
    float: bool,
    avx: bool,
    /// The host's x87 unit is known to hold the guest's.
    pub(super) x87: bool,
    /// x87 instructions are called.
    pub(super) soft_x87: bool,
    /// The last x87 instruction, if it is not yet stored.
    pub(super) last_x87: Option<LastX87>,
    /// The ops before this have their accesses to the stack in the block's window; 0 once that may be another page.
    windowed: usize,
    /// The op whose access to the window has left [`Context::stack_addend`] in R10.
    based: Option<usize>,
    /// There was a STI.
    enables: bool,
    /// See [`Emitted::narrow`].
    narrow: Option<usize>,
    /// An instruction that was encoded.
    encoded: Vec<u8>,
    #[expect(clippy::vec_box, reason = "code has their addresses")]
    called: Vec<Box<Op>>,
}

/// How an instruction's operands stand in its code.
struct Form {
    /// Registers of the host that those of the guest's are loaded to that are in memory.
    scratch: &'static [u8],
    /// Which these are (with [`HIGH`] the second byte), and whether they are written; so many.
    loaded: [(u8, bool); 3],
    used: usize,
    /// Operands that are registers of the guest's in memory, one bit each.
    spilled: u32,
    /// Vector registers, and whether they are written; some have 256 bits.
    vectors: Vec<(u8, bool)>,
    wide: bool,
    /// Length of the memory operand, and whether it is written.
    access: Option<(u64, bool)>,
    /// A second byte of a register is among the operands.
    second_bytes: bool,
}

impl Form {
    fn loaded(&self) -> &[(u8, bool)] {
        &self.loaded[..self.used]
    }
}

/// A finished block: its body, and behind that what is executed seldom, which may be moved away ([`Self::part`]).
#[derive(Default)]
pub(super) struct Emitted {
    pub code: Vec<u8>,
    /// Where it is to lie.
    pub origin: usize,
    /// Where the second part begins: there other tiers enter.
    pub split: usize,
    /// Offset of where it is entered from a jump backwards, if one is known ([`Tests`]).
    pub tested: Option<usize>,
    /// Offset of where it is entered from elsewhere.
    pub body: usize,
    pub exits: Vec<DirectExit>,
    /// Of a block with a window: the displacement of the jump that is to lead to code for it without one.
    pub narrow: Option<usize>,
    /// Displacements that lead from one of the two parts to the other, or from the second to a stub.
    crossing: Vec<usize>,
    /// The instructions that are called; code has their addresses.
    #[expect(clippy::vec_box, reason = "code has their addresses")]
    pub called: Vec<Box<Op>>,
    /// Offsets of each op's code, and of what lies behind all.
    pub places: Vec<usize>,
    /// Memory to be used again.
    cold: Vec<(Cold, Option<LastX87>)>,
    offsets: Vec<i64>,
    encoded: Vec<u8>,
}

impl Emitted {
    /// Bytes of its second part.
    pub fn seldom(&self) -> usize {
        self.code.len() - self.split
    }

    /// Makes the code fit for its second part to lie `away` bytes behind where it was emitted.
    pub fn part(&mut self, away: usize) {
        for &site in &self.crossing {
            let distance = if site < self.split { away as i32 } else { -(away as i32) };
            let bytes = &mut self.code[site..site + 4];
            let before = i32::from_le_bytes(bytes.try_into().unwrap_or_default());
            bytes.copy_from_slice(&before.wrapping_add(distance).to_le_bytes());
        }
    }
}

/// What the block is.
pub(super) struct Block<'a> {
    /// Ops, and what they were decoded from, with offsets in the page as addresses, and whether they are what that
    /// says; `None` for the end of a block that was cut.
    pub ops: &'a [(Op, Option<(Instruction, bool)>)],
    /// Offset of the first byte in its page.
    pub first: u16,
    pub long: bool,
    /// Number of its entry and counter.
    pub number: u32,
    /// Which of its first 64 ops look into places.
    pub placed: u64,
    /// It counts its executions.
    pub counts: bool,
    /// Jumps backwards are known that lead to it.
    pub loops: bool,
    /// It is a program's, at CPL 3.
    pub user: bool,
    /// x87 instructions are called: the host's unit was not to execute them.
    pub soft_x87: bool,
    /// It may have a window.
    pub may_window: bool,
}

/// Whose the vCPU's [`Place`]s are.
pub(super) struct Places {
    /// The entry and op that each was given to last.
    owners: Box<[(u32, u8)]>,
    /// How many of those of reads and of writes were given away.
    given: [usize; 2],
}

impl Default for Places {
    fn default() -> Self {
        Self { owners: vec![(u32::MAX, 0); PLACES].into_boxed_slice(), given: [0; 2] }
    }
}

/// Whether a place does not lie a multiple of 4 KiB from what code stores in the vCPU (see [`crate::abi::APART`] for
/// why).
fn is_apart(place: usize) -> bool {
    let at = tlb::PLACES + place * size_of::<Place>();
    let apart = |from: usize, len: usize| {
        (at.wrapping_sub(from) % PAGE_SIZE as usize) >= len
            && (from.wrapping_sub(at) % PAGE_SIZE as usize) >= size_of::<Place>()
    };
    apart(CONTEXT, size_of::<Context>()) && cpu::STORED.into_iter().all(|(from, len)| apart(from, len))
}

impl Places {
    /// Gives a place to an access of an op. When there are no more they are given again: they hold translations,
    /// whoever put them there.
    fn give(&mut self, number: u32, op: usize, write: bool) -> i32 {
        let (first, end) = if write { (WRITE_PLACES, PLACES) } else { (0, WRITE_PLACES) };
        let given = &mut self.given[usize::from(write)];
        let mut place = first;
        for _ in first..end {
            place = first + *given % (end - first);
            *given += 1;
            if is_apart(place) {
                break;
            }
        }
        self.owners[place] = (number, op as u8);
        (tlb::PLACES + place * size_of::<Place>()) as i32
    }

    /// The entry and op that the place at this offset in the vCPU was given to last.
    pub fn owner(&self, at: u64) -> Option<(u32, u8)> {
        let place = (at as usize).checked_sub(tlb::PLACES)? / size_of::<Place>();
        self.owners.get(place).copied().filter(|o| o.0 != u32::MAX)
    }
}

/// A general register of a size.
fn register(number: u8, size: usize) -> Register {
    let base = match size {
        8 => Register::RAX,
        4 => Register::EAX,
        2 => Register::AX,
        _ if number < 4 => Register::AL,
        _ => return Register::SPL + (u32::from(number) - 4),
    };
    base + u32::from(number)
}

impl<'a> Emitter<'a> {
    /// The code of a block that will lie behind `free`; `memory` of an earlier one is used again.
    pub fn emit(
        block: &Block,
        stubs: &'a Stubs,
        given: &'a mut Places,
        free: usize,
        encoder: &'a mut Encoder,
        info: &'a mut InstructionInfoFactory,
        memory: Emitted,
    ) -> Emitted {
        let count = block.ops.iter().filter(|o| o.1.is_some()).count();
        let first = i64::from(block.first);
        let Emitted {
            mut code,
            mut exits,
            mut called,
            mut places,
            mut cold,
            mut offsets,
            mut crossing,
            encoded,
            ..
        } = memory;
        code.clear();
        crossing.clear();
        exits.clear();
        called.clear();
        places.clear();
        cold.clear();
        offsets.clear();
        offsets.extend(block.ops.iter().map(|o| first + i64::from(o.0.off)));
        let mut e = Emitter {
            a: Asm { code },
            encoder,
            info,
            stubs,
            places: given,
            number: block.number,
            placed: block.placed,
            chained: &stubs.chained[usize::from(!block.user)],
            origin: free,
            split: usize::MAX,
            crossing,
            first,
            here: first,
            k: 0,
            count,
            long: block.long,
            user: block.user,
            offsets,
            cold,
            live: false,
            saved: true,
            vectors: 0,
            float: false,
            avx: false,
            x87: false,
            soft_x87: block.soft_x87,
            last_x87: None,
            windowed: 0,
            based: None,
            enables: false,
            narrow: None,
            encoded,
            called,
        };
        let tested = block.loops.then(|| e.tested(block.counts));
        let body = e.a.at();
        // By these bits the chain stub tells it from what is not the baseline's. No jump to a stub stands before it.
        e.origin = free + (BASELINE as usize).wrapping_sub(free + body) % 8;
        if let Some(window) = Window::of(block) {
            e.open(&window);
        }
        e.a.add_mem_imm(CPU, cpu::ICOUNT, count as i8);
        for (k, (op, i)) in block.ops.iter().enumerate() {
            places.push(e.a.at());
            e.k = k;
            e.here = first + i64::from(op.off);
            match i {
                Some((i, known)) => e.op(op, i, *known, k + 1 == block.ops.len()),
                None => {
                    e.flush_x87();
                    e.go_to(first + i64::from(op.off));
                }
            }
        }
        places.push(e.a.at());
        let split = e.a.at();
        e.split = split;
        let to_body = e.a.lea_rip(host::R11);
        e.lead(to_body, body);
        let site = e.a.jmp();
        e.patch_to_stub(site, stubs.load);
        e.finish(&mut exits);
        let Emitter { origin, cold, offsets, encoded, called, crossing, narrow, .. } = e;
        let code = e.a.code;
        Emitted {
            origin,
            code,
            split,
            body,
            tested,
            exits,
            narrow,
            crossing,
            called,
            places,
            cold,
            offsets,
            encoded,
        }
    }

    fn op(&mut self, op: &Op, i: &Instruction, known: bool, last: bool) {
        if last {
            self.based = self.based.filter(|_| self.last_x87.is_none());
            self.flush_x87();
        }
        let done = match (known, last) {
            (false, _) => None,
            (_, true) => self.ender(op, i),
            (_, false) => self.straight(op, i),
        };
        if done.is_none() {
            self.call(op, last);
        }
    }

    /// Puts something behind the code, out of line.
    pub(super) fn out_of_line(&mut self, c: Cold) {
        self.cold.push((c, self.last_x87));
    }

    // ---- flags
    // -------------------------------------------------------------------------------------------------------------

    /// The host's flags are about to be lost.
    pub(super) fn save_flags(&mut self) {
        if !self.saved {
            self.a.flags_to_ax();
            self.a.store_part(2, host::RAX, CPU, FLAGS);
            self.saved = true;
        }
    }

    /// The host's flags are to be the guest's.
    pub(super) fn want_flags(&mut self) {
        if !self.live {
            self.a.load16(host::RAX, CPU, FLAGS);
            self.a.flags_from_ax();
            self.live = true;
        }
    }

    pub(super) fn flags_written(&mut self) {
        self.live = true;
        self.saved = false;
    }

    pub(super) fn flags_lost(&mut self) {
        self.live = false;
    }

    // ---- memory
    // ------------------------------------------------------------------------------------------------------------

    /// Whether [`Self::address`] can compute the operand's address.
    pub(super) fn can_address(&self, op: &Op) -> bool {
        let plain = usize::from(op.base) >= gpr::ZERO && usize::from(op.index) == gpr::ZERO;
        let disp = if usize::from(op.base) == gpr::RIP {
            self.first.wrapping_add(op.disp as i64)
        } else {
            op.disp as i64
        };
        op.flags & CHECKED == 0
            && (op.ashift == 0 || op.ashift == 32)
            && (plain && usize::from(op.base) == gpr::ZERO
                || i32::try_from(disp).is_ok()
                || op.ashift == 32 && usize::from(op.base) != gpr::RIP)
    }

    /// The register that a guest's register is in, or is loaded to.
    fn in_register(&mut self, guest: u8, scratch: u8) -> u8 {
        MAP[usize::from(guest & 15)].unwrap_or_else(|| {
            self.a.load(scratch, CPU, cpu::gpr(usize::from(guest & 15)));
            scratch
        })
    }

    /// The operand's effective address, without its segment's base. R10 and R11 are lost; flags stay.
    pub(super) fn address(&mut self, op: &Op, to: u8) {
        let wide = op.ashift == 0;
        let disp = op.disp as i32;
        let index = (usize::from(op.index) != gpr::ZERO)
            .then(|| (self.in_register(op.index, host::R11), op.scale & 3));
        match (usize::from(op.base), index) {
            (gpr::ZERO, None) => {
                let at = if wide { op.disp } else { op.disp & 0xffff_ffff };
                self.a.imm(to, at);
            }
            (gpr::ZERO, Some(index)) => self.a.lea_scaled(wide, to, index, disp),
            (gpr::RIP, index) => {
                self.a.load(host::R10, CPU, PAGE_RIP);
                let disp = self.first.wrapping_add(op.disp as i64) as i32;
                self.a.lea(wide, to, host::R10, index, disp);
            }
            (_, index) => {
                let base = self.in_register(op.base, host::R10);
                self.a.lea(wide, to, base, index, disp);
            }
        }
    }

    /// The operand's linear address, in R10. R11 and flags are lost.
    fn linear(&mut self, op: &Op) {
        self.save_flags();
        self.address(op, host::R10);
        self.add_segment(op);
    }

    /// Adds the base of the operand's segment to its effective address, in R10.
    fn add_segment(&mut self, op: &Op) {
        let s = usize::from(op.seg & 7);
        if s >= seg::FS {
            self.a.add_mem(host::R10, CPU, cpu::segment_base(s));
            self.flags_lost();
        }
    }

    /// The host address, in R10, of `len` bytes of the memory operand. RAX, R11 and flags are lost.
    fn operand(&mut self, op: &Op, len: u64, write: bool) {
        if self.is_in_window(op) {
            self.in_window(op.disp as i32);
            return;
        }
        self.linear(op);
        self.look_up_operand(op, len, write);
    }

    /// As `operand`, of an effective address in R10.
    pub(super) fn operand_at(&mut self, op: &Op, len: u64, write: bool) {
        self.add_segment(op);
        self.look_up_operand(op, len, write);
    }

    fn look_up_operand(&mut self, op: &Op, len: u64, write: bool) {
        if usize::from(op.base) == gpr::RSP
            && usize::from(op.index) == gpr::ZERO
            && usize::from(op.seg & 7) < seg::FS
        {
            self.look_up_stack(len, write);
        } else {
            self.look_up(len, write);
        }
    }

    /// As `operand`; what is not aligned to its length is the interpreter's.
    fn operand_aligned(&mut self, op: &Op, len: u64, write: bool) {
        self.linear(op);
        self.flags_lost();
        self.a.test_low(host::R10, len as u8 - 1);
        let site = self.a.jcc(cc::NE);
        self.out_of_line(Cold::Interpret { site, k: self.k });
        if self.is_in_window(op) {
            self.a.add_mem(host::R10, CPU, STACK_ADDEND);
            return;
        }
        self.look_up(len, write);
    }

    /// Before an instruction on vectors: it may raise #NM or #UD, and works under the guest's MXCSR.
    fn want_vectors(&mut self, vex: bool) {
        // What has the host's MXCSR hold the guest's loses R10.
        self.based = None;
        if vex && !self.avx {
            self.save_flags();
            self.flags_lost();
            self.a.is_zero8(CPU, cpu::AVX_TRAP);
            let site = self.a.jcc(cc::NE);
            self.out_of_line(Cold::Interpret { site, k: self.k });
            self.avx = true;
        }
        if !self.float {
            self.save_flags();
            self.flags_lost();
            self.a.test_mem8(CPU, cpu::FLOAT_LIVE, SSE);
            let site = self.a.jcc(cc::E);
            let (back, k) = (self.a.at(), self.k);
            self.out_of_line(Cold::Float { site, back, k, which: SSE });
            self.float = true;
        }
    }

    /// VZEROUPPER.
    fn zero_upper(&mut self) -> Option<()> {
        self.want_vectors(true);
        self.a.zero_xmm0();
        for n in 0..if self.long { 16 } else { 8 } {
            self.a.movups(0, CPU, cpu::ymm_high(n), true);
        }
        self.vectors &= !1;
        Some(())
    }

    /// The host address, in R10, of `len` bytes at the linear address in R10. RAX, R11 and flags are lost.
    fn look_up(&mut self, len: u64, write: bool) {
        use host::{R10, R11};
        debug_assert!(self.saved);
        self.flags_lost();
        if let Some(kind) = miss(len, write).filter(|_| self.k < 64 && self.placed & 1 << self.k != 0) {
            return self.look_into_place(len, kind, write);
        }
        self.a.look_up(len, write);
        let site = self.a.jcc(cc::NE);
        self.a.add_mem(R10, R11, tlb::ADDEND);
        let (back, k) = (self.a.at(), self.k);
        self.out_of_line(match miss(len, write) {
            Some(kind) => Cold::Miss { site, back, stub: self.stubs.refill[kind], k, place: None },
            None => Cold::Interpret { site, k },
        });
    }

    /// As [`Self::look_up`], by a place of the op's own.
    fn look_into_place(&mut self, len: u64, kind: usize, write: bool) {
        use host::{R10, RAX};
        let place = self.places.give(self.number, self.k, write);
        let a = &mut self.a;
        a.mov(RAX, R10);
        a.and_imm(RAX, tlb::aligned_page(len) as i32);
        a.add_mem(RAX, CPU, tlb::PLACE_KEY);
        a.cmp_mem(RAX, CPU, place + tlb::PLACE_TAG);
        let site = a.jcc(cc::NE);
        a.add_mem(R10, CPU, place + tlb::PLACE_ADDEND);
        let (back, k) = (self.a.at(), self.k);
        self.out_of_line(Cold::Miss { site, back, stub: self.stubs.place[kind], k, place: Some(place) });
    }

    // ---- instructions
    // ------------------------------------------------------------------------------------------------------

    /// The instruction's bytes, in `encoded`.
    fn encode(&mut self, i: &Instruction) -> Option<()> {
        self.encoded.clear();
        self.encoder.set_buffer(std::mem::take(&mut self.encoded));
        let done = self.encoder.encode(i, 0);
        self.encoded = self.encoder.take_buffer();
        done.ok().map(drop)
    }

    fn straight(&mut self, op: &Op, i: &Instruction) -> Option<()> {
        self.enables |= i.mnemonic() == Mnemonic::Sti;
        if let Some(one) = One::of(i) {
            return self.string_op(op, one);
        }
        if let Some(one) = One::repeated(i) {
            return self.repeated_op(op, one);
        }
        match i.mnemonic() {
            Mnemonic::Cli => return self.interrupts_op(false),
            Mnemonic::Sti => return self.interrupts_op(true),
            Mnemonic::Pushfq => return self.push_flags_op(op),
            Mnemonic::Cmpxchg16b if on_host(i.code()) => return self.exchange_pair_op(op),
            Mnemonic::Push => return self.push_op(op, i),
            Mnemonic::Pop => return self.pop_op(op, i),
            Mnemonic::Lea => return self.lea_op(op, i),
            Mnemonic::Leave => return self.leave_op(op, i),
            Mnemonic::Div | Mnemonic::Idiv => return self.divide_op(op, i),
            Mnemonic::Vzeroupper if on_host(i.code()) => return self.zero_upper(),
            Mnemonic::Wait => return self.x87_op(op, i),
            _ if is_x87(i.code()) => return self.x87_op(op, i),
            _ => {}
        }
        let vector = (0..i.op_count()).any(|n| i.op_register(n).is_vector_register());
        let how = if vector { vector_how(i) } else { how(i) }?;
        if how == How::Nothing {
            return Some(());
        }
        // A locked access across its natural boundary is the interpreter's.
        let size = i.memory_size().size() as u64;
        let locked = size > 1 && (op.flags & LOCK != 0 || i.mnemonic() == Mnemonic::Xchg);
        let aligned = vector && is_aligned(i, size) || locked;
        let windowed = !aligned && self.is_in_window(op);
        let form = self.form(op, i, how, vector, windowed)?;
        let modified = i.rflags_modified() & ARITHMETIC;
        let wants =
            i.rflags_read() & ARITHMETIC != 0 || modified != 0 && modified != ARITHMETIC || may_keep_flags(i);
        if vector {
            self.want_vectors(i.encoding() == EncodingKind::VEX);
        }
        if form.second_bytes {
            // Their bytes are moved by shifts.
            self.save_flags();
        }
        if let Some((len, write)) = form.access {
            if aligned {
                self.operand_aligned(op, len, write);
            } else if windowed {
                self.base_window();
            } else {
                self.operand(op, len, write);
            }
        }
        self.load_operands(i, &form, wants);
        if how == How::AroundRax {
            self.a.mov(host::RAX, host::R13);
        }
        self.a.bytes(&self.encoded);
        if how == How::AroundRax {
            self.a.mov(host::R13, host::RAX);
        }
        self.store_operands(i, &form, modified != 0);
        Some(())
    }

    /// How an instruction's operands stand in its code; the instruction itself is in `encoded` then.
    ///
    /// The memory operand is at R10, or if it is in the window, from R10 on as far as the guest's is from 0.
    fn form(&mut self, op: &Op, i: &Instruction, how: How, vector: bool, windowed: bool) -> Option<Form> {
        let mut j = *i;
        j.set_code(general(i.code()));
        let memory = (0..i.op_count()).find(|&n| i.op_kind(n) == OpKind::Memory);
        if memory.is_some() && !self.can_address(op) {
            return None;
        }
        // Registers that are in memory are loaded into scratch ones.
        let second_bytes = (0..i.op_count()).any(|n| is_second_byte(i.op_register(n)));
        let scratch: &'static [u8] = match (memory.is_some(), how) {
            // Flags are fetched by RAX between.
            (true, _) if second_bytes => &[host::R11],
            (false, _) if second_bytes => &[host::R10, host::R11],
            (true, How::Same) => &[host::R11, host::RAX],
            (true, _) => &[host::R11],
            (false, How::Same) => &[host::R10, host::R11, host::RAX],
            (false, _) => &[host::R10, host::R11],
        };
        let mut loaded: [(u8, bool); 3] = [(0, false); 3];
        let mut used = 0;
        let mut spilled = 0;
        let mut vectors: Vec<(u8, bool)> = Vec::new();
        let mut wide = false;
        // Vectors that are not among the operands are read only.
        let implicit = row(i).implicit.iter().filter(|r| r.is_vector_register());
        vectors.extend(implicit.map(|r| (r.number() as u8, false)));
        for n in 0..i.op_count() {
            if i.op_kind(n) != OpKind::Register {
                continue;
            }
            let r = i.op_register(n);
            if r.is_xmm() || r.is_ymm() {
                vectors.push((r.number() as u8, writes(self.info.info(i).op_access(n))));
                wide |= r.is_ymm();
                continue;
            }
            if !r.is_gpr() {
                return None;
            }
            let guest = r.full_register().number() as u8;
            // A register's second byte is worked on in a register of its own.
            let guest = if is_second_byte(r) { guest | HIGH } else { guest };
            let on = match MAP.get(usize::from(guest)).copied().flatten() {
                Some(h) => h,
                None => {
                    let at = match loaded[..used].iter().position(|l| l.0 == guest) {
                        Some(at) => at,
                        None => {
                            if used == scratch.len() {
                                return None;
                            }
                            loaded[used].0 = guest;
                            used += 1;
                            used - 1
                        }
                    };
                    loaded[at].1 |= writes(self.info.info(i).op_access(n));
                    spilled |= 1 << n;
                    scratch[at]
                }
            };
            j.set_op_register(n, register(on, r.size()));
        }
        if memory.is_none()
            && how == How::Same
            && let Some(n) = Self::works_in_place(&mut j, spilled)
        {
            j.set_op_kind(n, OpKind::Memory);
            j.set_memory_base(register(CPU, 8));
            j.set_memory_displacement64(cpu::gpr(usize::from(loaded[0].0)) as u64);
            j.set_memory_displ_size(8);
            // One that was superfluous counts now.
            j.set_segment_prefix(Register::None);
            used = 0;
        }
        let mut access = None;
        if let Some(n) = memory {
            let size = i.memory_size().size() as u64;
            if size == 0 || size > if vector { 32 } else { 8 } {
                return None;
            }
            let write = writes(self.info.info(i).op_access(n));
            access = Some((size, write));
            j.set_op_kind(n, OpKind::Memory);
            j.set_memory_base(Register::R10);
            j.set_memory_index(if windowed { Register::R14 } else { Register::None });
            j.set_memory_index_scale(1);
            j.set_memory_displacement64(if windowed { op.disp } else { 0 });
            j.set_memory_displ_size(if windowed { 8 } else { 0 });
            j.set_segment_prefix(Register::None);
        }
        self.encode(&j)?;
        Some(Form { scratch, loaded, used, spilled, vectors, wide, access, second_bytes })
    }

    /// Loads what the instruction reads and has not in registers of the host; `wants` the guest's flags.
    fn load_operands(&mut self, i: &Instruction, form: &Form, wants: bool) {
        for (n, l) in form.loaded().iter().enumerate().filter(|(_, l)| l.0 & HIGH != 0) {
            self.a.mov(form.scratch[n], MAP[usize::from(l.0 & 3)].unwrap_or(host::RAX));
            self.a.shr(form.scratch[n], 8);
            self.flags_lost();
        }
        if wants {
            self.want_flags();
        }
        // The first operand comes first.
        let unread = usize::from(form.spilled & 1 != 0 && overwrites(i));
        for (n, l) in form.loaded().iter().enumerate().skip(unread).filter(|(_, l)| l.0 & HIGH == 0) {
            self.a.load(form.scratch[n], CPU, cpu::gpr(usize::from(l.0)));
        }
        for &(n, _) in &form.vectors {
            if form.wide {
                self.a.vmovups(n, cpu::xmm(n.into()), false);
            } else if self.vectors & 1 << n == 0 {
                self.a.movups(n, CPU, cpu::xmm(n.into()), false);
            }
            self.vectors |= 1 << n;
        }
    }

    /// Stores what the instruction has written and does not stay in registers of the host.
    fn store_operands(&mut self, i: &Instruction, form: &Form, modified: bool) {
        for &(n, written) in &form.vectors {
            if written && i.encoding() == EncodingKind::VEX {
                self.a.vmovups(n, cpu::xmm(n.into()), true);
            } else if written {
                self.a.movups(n, CPU, cpu::xmm(n.into()), true);
            }
        }
        if form.wide {
            // Legacy instructions follow.
            self.a.vzeroupper();
        }
        for (n, l) in form.loaded().iter().enumerate() {
            if l.1 && l.0 & HIGH == 0 {
                self.a.store(true, form.scratch[n], CPU, cpu::gpr(usize::from(l.0)));
            }
        }
        if modified {
            self.flags_written();
        }
        for (n, l) in form.loaded().iter().enumerate().filter(|(_, l)| l.1 && l.0 & HIGH != 0) {
            self.save_flags();
            self.flags_lost();
            let to = MAP[usize::from(l.0 & 3)].unwrap_or(host::RAX);
            self.a.rotate8(to, true);
            self.a.mov8(to, form.scratch[n]);
            self.a.rotate8(to, false);
        }
    }

    /// Which operand, and with which form, stays in the vCPU's memory: of `spilled`, those that are not in registers,
    /// if it is the only one.
    fn works_in_place(j: &mut Instruction, spilled: u32) -> Option<u32> {
        if spilled == 3
            && matches!(j.code(), Code::Test_rm64_r64 | Code::Test_rm32_r32)
            && j.op0_register() == j.op1_register()
        {
            // A comparison with 0 has the same flags.
            let wide = j.code() == Code::Test_rm64_r64;
            j.set_code(if wide { Code::Cmp_rm64_imm8 } else { Code::Cmp_rm32_imm8 });
            j.set_op1_kind(if wide { OpKind::Immediate8to64 } else { OpKind::Immediate8to32 });
            j.set_immediate8(0);
            return Some(0);
        }
        if spilled.count_ones() != 1 {
            return None;
        }
        let n = spilled.trailing_zeros();
        j.set_code(with_memory(j.code(), n)?);
        Some(n)
    }

    fn lea_op(&mut self, op: &Op, i: &Instruction) -> Option<()> {
        let r = i.op0_register();
        if r.size() < 4 || !(op.ashift == 0 || op.ashift == 32) || !self.can_address(&Op { flags: 0, ..*op })
        {
            return None;
        }
        let guest = usize::from(op.dst & 15);
        let to = MAP[guest].unwrap_or(host::R10);
        // A result of 32 bits is the same whichever the address's width.
        let narrow = Op { ashift: if r.size() == 4 { 32 } else { op.ashift }, ..*op };
        self.address(&narrow, to);
        if MAP[guest].is_none() {
            self.a.store(true, to, CPU, cpu::gpr(guest));
        }
        Some(())
    }

    /// DIV and IDIV, which leave the flags alone as the interpreter does. What the host might refuse is the
    /// interpreter's.
    fn divide_op(&mut self, op: &Op, i: &Instruction) -> Option<()> {
        let wide = match i.code() {
            Code::Div_rm64 | Code::Idiv_rm64 => true,
            Code::Div_rm32 | Code::Idiv_rm32 => false,
            _ => return None,
        };
        let len = if wide { 8 } else { 4 };
        self.save_flags();
        if i.op0_kind() == OpKind::Memory {
            if !self.can_address(op) {
                return None;
            }
            self.operand(op, len, false);
            if wide {
                self.a.load(host::R11, host::R10, 0);
            } else {
                self.a.load32(host::R11, host::R10, 0);
            }
        } else {
            match self.in_register(i.op0_register().full_register().number() as u8, host::R11) {
                host::R11 => {}
                r => self.a.mov(host::R11, r),
            }
        }
        self.flags_lost();
        let refuse = |e: &mut Self, condition: u8| {
            let site = e.a.jcc(condition);
            e.out_of_line(Cold::Interpret { site, k: e.k });
        };
        if i.mnemonic() == Mnemonic::Div {
            // The quotient fits if the upper half is below the divisor.
            self.a.cmp(wide, host::RDX, host::R11);
            refuse(self, cc::AE);
        } else {
            // The upper half is the lower one's sign;
            self.a.mov_width(wide, host::RAX, host::R13);
            self.a.sar(wide, host::RAX, if wide { 63 } else { 31 });
            self.a.cmp(wide, host::RAX, host::RDX);
            refuse(self, cc::NE);
            // and the divisor neither 0 nor -1.
            self.a.lea(wide, host::RAX, host::R11, None, 1);
            self.a.cmp_imm(wide, host::RAX, 1);
            refuse(self, cc::BE);
        }
        self.a.mov(host::RAX, host::R13);
        self.a.divide(wide, i.mnemonic() == Mnemonic::Idiv, host::R11);
        self.a.mov(host::R13, host::RAX);
        Some(())
    }
}
