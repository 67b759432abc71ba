//! What all baseline code shares: entries, exits, calls.
//!
//! At an entry or exit registers and flags move between the vCPU's state and where baseline code has them (see
//! [`super::baseline`]).
use super::asm::Asm;
use super::registers::MAP;
use crate::abi::{
    Left, NO_PAGE, PLACED, WINDOWS, WRITE, context, cpu, in_context, jumps, places, stack_room, tlb,
};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use mynah_cpu::board::EV_TIER;
use mynah_cpu::tier::BASELINE;

pub(super) const PAGE_RIP: i32 = in_context(context::PAGE_RIP);
pub(super) const FLAGS: i32 = in_context(context::NATIVE_FLAGS);

/// Offsets of the stubs in the code.
#[derive(Clone, Default)]
pub(super) struct Stubs {
    /// Loads registers and flags and goes to R11: the body of a block whose RIP is in the context.
    pub load: usize,
    /// Leaves; EAX = offset in the page of the instruction to go on with, and from bit 16 the instructions counted too
    /// much.
    pub interpret: usize,
    pub event: usize,
    pub hot: usize,
    /// Executes the op at R11 of the block at page offset EAX by its interpreter's handler. EAX is then 0, or why to
    /// return, with the state in memory.
    pub call: usize,
    /// Returns EAX, with the state in memory; or goes on at RIP if EAX says so.
    pub out: usize,
    /// By [`miss`]: has the linear address in R10 translated, for an access that its look-up has not found. R10 is
    /// then its host address; or the instruction is interpreted, with EAX as in `interpret`. RAX is kept.
    pub refill: [usize; KINDS],
    /// As `refill`, for the stack, which has not been looked up but where it was written last. R11 is lost.
    pub stack: [usize; KINDS],
    /// As `refill`, for what was not found in its place ([`mynah_mmu::Place`]), whose address is in R11, and where the
    /// translation is put. R11 is lost.
    pub place: [usize; KINDS],
    /// Has the page of the linear address in R10 be the stack's, if the TLB knows that it may be written. RAX and R11
    /// are lost.
    pub window: usize,
    /// As `interpret`, of the block whose number is in R11: it is to have code without a window.
    pub narrow: usize,
    /// Has the host's MXCSR or x87 unit hold the guest's; R10 is 0 if it must not.
    pub float: usize,
    /// Goes on at the address in RAX.
    pub chain: usize,
    /// Goes on at the offset in RAX of the page.
    pub near: usize,
    /// What `chain` does first, for in front of a jump to it: where each place has a jump of its own, the host
    /// foresees where it leads. For programs, which stay in the lower half of the addresses, and for kernels; in the
    /// other half they find nothing.
    /// The first of each does not look at events.
    pub chained: [[Vec<u8>; 2]; 2],
}

/// Lengths of accesses; the last is that of an extended number.
const LENGTHS: [u64; 7] = [1, 2, 4, 8, 16, 32, 10];
/// Kinds of accesses: each length, to read and to write.
pub(super) const KINDS: usize = 2 * LENGTHS.len();

/// Which of the stubs an access of `len` bytes has that is not found.
pub(super) fn miss(len: u64, write: bool) -> Option<usize> {
    let n = LENGTHS.iter().position(|&l| l == len)?;
    Some(2 * n + usize::from(write))
}

const FAILED: i32 = in_context(context::FAILED);
pub(super) const STACK_PAGE: i32 = in_context(context::STACK_PAGE);
pub(super) const STACK_ADDEND: i32 = in_context(context::STACK_ADDEND);
/// For the first of the [`WINDOWS`].
pub(super) const STACK_ROOM: i32 = in_context(context::STACK_ROOM);
const NARROW: i32 = in_context(context::NARROW);

/// Nothing is known of the stack's page. XMM0 is lost.
fn forget_stack(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(qword_ptr(rdi + STACK_PAGE), NO_PAGE as i32)?;
    a.xorps(xmm0, xmm0)?;
    for n in (0..WINDOWS.len() as i32).step_by(2) {
        a.movups(xmmword_ptr(rdi + STACK_ROOM + 8 * n), xmm0)?;
    }
    Ok(())
}

/// See [`Stubs::refill`]; the return address is on top of the stack.
fn refill(a: &mut CodeAssembler, kind: usize, interpret: usize) -> Result<(), IcedError> {
    let mut failed = a.create_label();
    let asked = LENGTHS[kind / 2] | if kind & 1 != 0 { WRITE } else { 0 };
    a.mov(qword_ptr(rdi + in_context(context::LIN)), r10)?;
    a.mov(qword_ptr(rdi + in_context(context::KIND)), asked as i32)?;
    // The stack is aligned here.
    a.call(qword_ptr(rdi + in_context(context::REFILL_STUB)))?;
    a.mov(r10, qword_ptr(rdi + in_context(context::HOST)))?;
    a.test(r10, r10)?;
    a.je(failed)?;
    a.ret()?;
    a.set_label(&mut failed)?;
    a.add(rsp, 8)?;
    a.jmp(interpret as u64)
}

/// R11 = the TLB's entry for the address in R10, RAX = the page of the last byte; to `missed` if the entry does not
/// allow an access of that kind.
fn look_up(a: &mut CodeAssembler, kind: usize, missed: &mut CodeLabel) -> Result<(), IcedError> {
    let mut look_up = Asm::default();
    look_up.look_up(LENGTHS[kind / 2], kind & 1 != 0);
    for bytes in look_up.code.chunks(16) {
        a.db(bytes)?;
    }
    a.jne(*missed)
}

/// See [`Stubs::place`].
fn place(a: &mut CodeAssembler, kind: usize, interpret: usize) -> Result<(), IcedError> {
    let (mut missed, mut noted, mut note) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(qword_ptr(rdi + FAILED), rax)?;
    a.push(rcx)?;
    a.mov(rcx, r11)?;
    look_up(a, kind, &mut missed)?;
    a.mov(r11, qword_ptr(r11 + tlb::ADDEND))?;
    a.add(rax, qword_ptr(rdi + tlb::PLACE_KEY))?;
    a.mov(qword_ptr(rcx + tlb::PLACE_TAG), rax)?;
    a.mov(qword_ptr(rcx + tlb::PLACE_ADDEND), r11)?;
    a.add(r10, r11)?;
    a.sub(qword_ptr(rdi + in_context(context::PLACE_MISSES)), 1)?;
    a.je(note)?;
    a.set_label(&mut noted)?;
    a.pop(rcx)?;
    a.ret()?;
    a.set_label(&mut note)?;
    a.sub(rcx, rdi)?;
    a.mov(qword_ptr(rdi + in_context(context::PLACE_MISSED)), rcx)?;
    a.mov(rcx, qword_ptr(rdi + in_context(context::EVENTS)))?;
    a.lock().or(dword_ptr(rcx), EV_TIER as i32)?;
    a.jmp(noted)?;
    a.set_label(&mut missed)?;
    a.pop(rcx)?;
    a.mov(rax, qword_ptr(rdi + FAILED))?;
    refill(a, kind, interpret)
}

/// See [`Stubs::stack`].
fn stack(a: &mut CodeAssembler, kind: usize, interpret: usize) -> Result<(), IcedError> {
    let (mut missed, mut found) = (a.create_label(), a.create_label());
    a.mov(qword_ptr(rdi + FAILED), rax)?;
    look_up(a, kind, &mut missed)?;
    // Where it may be read only it is looked up each time.
    a.cmp(rax, qword_ptr(r11 + tlb::tag(true)))?;
    a.mov(r11, qword_ptr(r11 + tlb::ADDEND))?;
    a.jne(found)?;
    a.mov(qword_ptr(rdi + STACK_PAGE), rax)?;
    a.mov(qword_ptr(rdi + STACK_ADDEND), r11)?;
    a.set_label(&mut found)?;
    a.add(r10, r11)?;
    a.ret()?;
    a.set_label(&mut missed)?;
    a.mov(rax, qword_ptr(rdi + FAILED))?;
    refill(a, kind, interpret)
}

/// See [`Stubs::window`].
fn window(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut missed = a.create_label();
    // Of the page it is enough to know that it may be written.
    let to_write = miss(1, true).unwrap_or_default();
    look_up(a, to_write, &mut missed)?;
    a.mov(r11, qword_ptr(r11 + tlb::ADDEND))?;
    a.mov(qword_ptr(rdi + STACK_PAGE), rax)?;
    a.mov(qword_ptr(rdi + STACK_ADDEND), r11)?;
    for (n, len) in WINDOWS.into_iter().enumerate() {
        a.mov(qword_ptr(rdi + STACK_ROOM + 8 * n as i32), stack_room(len) as i32)?;
    }
    a.set_label(&mut missed)?;
    a.ret()
}

/// See [`Stubs::narrow`].
fn narrow(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(qword_ptr(rdi + NARROW), r11)?;
    a.mov(r10, qword_ptr(rdi + PAGE_RIP))?;
    a.mov(qword_ptr(rdi + NARROW + 8), r10)?;
    a.mov(r10, qword_ptr(rdi + in_context(context::EVENTS)))?;
    a.lock().or(dword_ptr(r10), EV_TIER as i32)?;
    leave(a, Left::Interpret)
}

fn pinned() -> impl Iterator<Item = (AsmRegister64, i32)> {
    const HOST: [AsmRegister64; 16] =
        [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
    MAP.iter().enumerate().filter_map(|(n, h)| h.map(|h| (HOST[usize::from(h)], cpu::gpr(n))))
}

fn spill(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for (r, at) in pinned() {
        a.mov(qword_ptr(rdi + at), r)?;
    }
    // The two words of flags that stand for the saved flags, from a table.
    a.movzx(eax, word_ptr(rdi + FLAGS))?;
    a.rol(ax, 8)?;
    a.shl(eax, 4)?;
    a.add(rax, qword_ptr(rdi + in_context(context::FLAG_WORDS)))?;
    a.movups(xmm0, xmmword_ptr(rax))?;
    a.movups(xmmword_ptr(rdi + cpu::RES), xmm0)
}

/// What a callee keeps, by the convention that regions have.
const KEPT: [AsmRegister64; 6] = [rbx, rbp, r12, r13, r14, r15];

fn pop_kept(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for r in KEPT.into_iter().rev() {
        a.pop(r)?;
    }
    Ok(())
}

/// Saved flags from the two words. All registers but RDI and R11 are free.
fn reload_flags(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(r8, qword_ptr(rdi + cpu::RES))?;
    a.mov(r9, qword_ptr(rdi + cpu::AUX))?;
    // CF
    a.mov(rax, r9)?;
    a.shr(rax, 63)?;
    // AF
    a.mov(ecx, r9d)?;
    a.and(ecx, 8)?;
    a.lea(eax, ptr(rax + rcx * 2))?;
    // ZF
    a.xor(ecx, ecx)?;
    a.test(r8, r8)?;
    a.sete(cl)?;
    a.shl(ecx, 6)?;
    a.or(eax, ecx)?;
    // PF
    a.mov(rdx, r9)?;
    a.shr(rdx, 8)?;
    a.xor(edx, r8d)?;
    a.xor(ecx, ecx)?;
    a.test(dl, dl)?;
    a.setp(cl)?;
    a.lea(eax, ptr(rax + rcx * 4 + 2))?;
    // SF
    a.lea(rdx, ptr(r9 * 4))?;
    a.xor(rdx, r8)?;
    a.shr(rdx, 63)?;
    a.shl(edx, 7)?;
    a.or(eax, edx)?;
    a.shl(eax, 8)?;
    // OF
    a.lea(rdx, ptr(r9 + r9))?;
    a.xor(rdx, r9)?;
    a.shr(rdx, 63)?;
    a.or(eax, edx)?;
    a.mov(word_ptr(rdi + FLAGS), ax)
}

fn load_registers(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for (r, at) in pinned() {
        a.mov(r, qword_ptr(rdi + at))?;
    }
    Ok(())
}

/// R11 = where the baseline's code for the address in RAX goes on; to `missed` if none is known at that address, and to
/// `other` if it is not the baseline's or an event is pending. R10 is lost. With a `half` only code in that half of the
/// addresses is found, or code of which both halves' tags say the same.
fn find(
    a: &mut CodeAssembler,
    half: Option<usize>,
    missed: CodeLabel,
    other: CodeLabel,
) -> Result<(), IcedError> {
    look_for(a, half, missed)?;
    take(a, other)
}

/// As [`find`], but R11 is the code's ops, whatever they are.
fn look_for(a: &mut CodeAssembler, half: Option<usize>, missed: CodeLabel) -> Result<(), IcedError> {
    a.mov(r10, rax)?;
    a.shr(r10, jumps::SHIFT)?;
    a.xor(r10, rax)?;
    a.and(r10d, jumps::MASK)?;
    a.shl(r10d, jumps::ENTRY_SHIFT)?;
    a.add(r10, qword_ptr(rdi + jumps::TABLE))?;
    a.cmp(qword_ptr(r10 + jumps::LIN), rax)?;
    a.jne(missed)?;
    tag(a, half)?;
    a.cmp(qword_ptr(r10 + jumps::TAG), r11)?;
    a.jne(missed)?;
    a.mov(r11, qword_ptr(r10 + jumps::OPS))
}

/// As [`find`], by where the bytes of the code are, behind a `find` that has left the entry that it looked at in R10.
/// Where that names the same code, found under mappings that have been flushed since, it holds once more.
fn find_placed(a: &mut CodeAssembler, other: CodeLabel) -> Result<(), IcedError> {
    let (mut new, mut found) = (a.create_label(), a.create_label());
    a.mov(qword_ptr(rdi + in_context(context::JUMP)), r10)?;
    a.mov(r10, rax)?;
    a.shr(r10, tlb::HASH_SHIFT)?;
    a.xor(r10, rax)?;
    a.shr(r10, tlb::ENTRY_SHIFT)?;
    a.and(r10, qword_ptr(rdi + tlb::MASK))?;
    a.add(r10, qword_ptr(rdi + tlb::TABLE))?;
    a.mov(r11, rax)?;
    a.and(r11, tlb::PAGE as i32)?;
    a.cmp(r11, qword_ptr(r10 + tlb::EXEC))?;
    a.jne(other)?;
    a.mov(r11, qword_ptr(r10 + tlb::ADDEND))?;
    a.add(r11, rax)?;
    a.movzx(r10d, byte_ptr(rdi + jumps::TAGS))?;
    a.shl(r10, places::KEY_SHIFT)?;
    a.or(r11, r10)?;
    a.mov(r10, r11)?;
    a.shr(r10, places::FOLD)?;
    a.xor(r10, r11)?;
    a.and(r10d, places::MASK)?;
    a.shl(r10d, places::SCALE)?;
    a.add(r10, qword_ptr(rdi + places::TABLE))?;
    a.cmp(qword_ptr(r10 + places::NAME), r11)?;
    a.jne(other)?;
    a.mov(r11, qword_ptr(r10 + places::OPS))?;
    take(a, other)?;
    a.mov(r10, qword_ptr(rdi + in_context(context::JUMP)))?;
    a.cmp(qword_ptr(r10 + jumps::LIN), rax)?;
    a.jne(new)?;
    a.cmp(qword_ptr(r10 + jumps::OPS), r11)?;
    a.jne(new)?;
    tag(a, None)?;
    a.mov(qword_ptr(r10 + jumps::TAG), r11)?;
    a.mov(r11, qword_ptr(r10 + jumps::OPS))?;
    a.jmp(found)?;
    a.set_label(&mut new)?;
    a.sub(qword_ptr(rdi + in_context(context::PLACED)), 1)?;
    a.jns(found)?;
    a.mov(qword_ptr(rdi + in_context(context::PLACED)), PLACED - 1)?;
    a.jmp(other)?;
    a.set_label(&mut found)?;
    a.zero_bytes()
}

/// Loads into R11 what code at the address in RAX has to be tagged with: of the half of the addresses that is named, or
/// of that which it is in.
fn tag(a: &mut CodeAssembler, half: Option<usize>) -> Result<(), IcedError> {
    let Some(half) = half else {
        a.mov(r11, rax)?;
        a.shr(r11, 63)?;
        return a.mov(r11, qword_ptr(rdi + r11 * 8 + jumps::TAGS));
    };
    a.mov(r11, qword_ptr(rdi + jumps::TAGS + 8 * half as i32))
}

/// To `other` if the code whose ops are in R11 is not the baseline's, or an event is pending. R10 is lost.
fn take(a: &mut CodeAssembler, other: CodeLabel) -> Result<(), IcedError> {
    is_baseline(a, other)?;
    a.mov(r10, qword_ptr(rdi + in_context(context::EVENTS)))?;
    a.mov(r10d, dword_ptr(r10))?;
    a.test(dword_ptr(rdi + cpu::EVENT_MASK), r10d)?;
    a.jne(other)
}

/// To `other` if the code whose ops are in R11 is not the baseline's.
fn is_baseline(a: &mut CodeAssembler, other: CodeLabel) -> Result<(), IcedError> {
    a.test(r11b, BASELINE as i32)?;
    a.je(other)
}

/// Goes on at the code that was found for the address in RAX.
fn go_on(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.and(rax, -4096)?;
    a.mov(qword_ptr(rdi + PAGE_RIP), rax)?;
    a.jmp(r11)
}

fn stub(
    code: &mut Vec<u8>,
    make: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<usize, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    make(&mut a)?;
    code.resize(code.len().next_multiple_of(16), 0xcc);
    let at = code.len();
    code.extend(a.assemble(at as u64)?);
    Ok(at)
}

fn leave(a: &mut CodeAssembler, why: Left) -> Result<(), IcedError> {
    a.movzx(r10d, ax)?;
    a.shr(eax, 16)?;
    a.sub(qword_ptr(rdi + cpu::ICOUNT), rax)?;
    a.add(r10, qword_ptr(rdi + PAGE_RIP))?;
    a.mov(qword_ptr(rdi + cpu::RIP), r10)?;
    spill(a)?;
    pop_kept(a)?;
    a.mov(eax, why as i32)?;
    a.ret()
}

/// See [`Stubs::load`].
fn enter(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for r in KEPT {
        a.push(r)?;
    }
    a.mov(rax, qword_ptr(rdi + in_context(context::RIP)))?;
    a.and(rax, -4096)?;
    a.mov(qword_ptr(rdi + PAGE_RIP), rax)?;
    forget_stack(a)?;
    reload_flags(a)?;
    load_registers(a)?;
    a.jmp(r11)
}

/// See [`Stubs::call`].
fn call(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.add(rax, qword_ptr(rdi + PAGE_RIP))?;
    a.mov(qword_ptr(rdi + cpu::RIP), rax)?;
    spill(a)?;
    // The stack is aligned here.
    a.push(rdi)?;
    a.push(rdi)?;
    a.mov(rsi, r11)?;
    a.call(qword_ptr(rdi + in_context(context::RUN_OP)))?;
    a.pop(rdi)?;
    a.pop(rdi)?;
    let mut out = a.create_label();
    a.mov(r11d, eax)?;
    a.test(eax, eax)?;
    a.jne(out)?;
    forget_stack(a)?;
    reload_flags(a)?;
    load_registers(a)?;
    a.set_label(&mut out)?;
    a.mov(eax, r11d)?;
    a.ret()
}

/// See [`Stubs::out`].
fn out(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut back, mut other) = (a.create_label(), a.create_label());
    let (mut missed, mut found) = (a.create_label(), a.create_label());
    a.cmp(eax, Left::Next as i32)?;
    a.jne(back)?;
    a.mov(rax, qword_ptr(rdi + cpu::RIP))?;
    find(a, None, missed, other)?;
    a.set_label(&mut found)?;
    a.and(rax, -4096)?;
    a.mov(qword_ptr(rdi + PAGE_RIP), rax)?;
    forget_stack(a)?;
    reload_flags(a)?;
    load_registers(a)?;
    a.jmp(r11)?;
    a.set_label(&mut missed)?;
    find_placed(a, other)?;
    a.jmp(found)?;
    a.set_label(&mut other)?;
    a.mov(rsi, rax)?;
    pop_kept(a)?;
    a.jmp(qword_ptr(rdi + in_context(context::CHAIN_STUB)))?;
    a.set_label(&mut back)?;
    pop_kept(a)?;
    a.ret()
}

/// See [`Stubs::float`].
fn float(a: &mut CodeAssembler) -> Result<(), IcedError> {
    // The stack is aligned here.
    a.call(qword_ptr(rdi + in_context(context::FILL_STUB)))?;
    a.mov(r10, qword_ptr(rdi + in_context(context::HOST)))?;
    a.ret()
}

/// See [`Stubs::chain`].
fn chain(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut missed, mut other) = (a.create_label(), a.create_label());
    find(a, None, missed, other)?;
    go_on(a)?;
    a.set_label(&mut missed)?;
    find_placed(a, other)?;
    go_on(a)?;
    a.set_label(&mut other)?;
    a.mov(r11, rax)?;
    spill(a)?;
    a.mov(rsi, r11)?;
    pop_kept(a)?;
    a.jmp(qword_ptr(rdi + in_context(context::CHAIN_STUB)))
}

impl Stubs {
    /// The stubs, to be placed at the start of the code.
    pub fn new(code: &mut Vec<u8>) -> Result<Self, IcedError> {
        let load = stub(code, enter)?;
        let interpret = stub(code, |a| leave(a, Left::Interpret))?;
        let event = stub(code, |a| leave(a, Left::Event))?;
        let hot = stub(code, |a| leave(a, Left::Hot))?;
        let call = stub(code, call)?;
        let out = stub(code, out)?;
        let (mut to_refill, mut to_stack, mut to_place) = ([0; KINDS], [0; KINDS], [0; KINDS]);
        for kind in 0..KINDS {
            to_refill[kind] = stub(code, |a| refill(a, kind, interpret))?;
            to_place[kind] = stub(code, |a| place(a, kind, interpret))?;
            to_stack[kind] = stub(code, |a| stack(a, kind, interpret))?;
        }
        let window = stub(code, window)?;
        let narrow = stub(code, narrow)?;
        let float = stub(code, float)?;
        let mut chained: [[Vec<u8>; 2]; 2] = Default::default();
        for (half, tests) in [(0, false), (0, true), (1, false), (1, true)] {
            let chained = &mut chained[half][usize::from(tests)];
            stub(chained, |a| {
                let mut other = a.create_label();
                look_for(a, Some(half), other)?;
                if tests {
                    take(a, other)?;
                } else {
                    is_baseline(a, other)?;
                }
                go_on(a)?;
                a.set_label(&mut other)?;
                a.nop()
            })?;
            chained.pop();
        }
        let chain = stub(code, chain)?;
        let near = stub(code, |a| {
            a.add(rax, qword_ptr(rdi + PAGE_RIP))?;
            a.jmp(chain as u64)
        })?;
        Ok(Self {
            load,
            interpret,
            event,
            hot,
            call,
            out,
            refill: to_refill,
            stack: to_stack,
            place: to_place,
            window,
            narrow,
            float,
            chain,
            near,
            chained,
        })
    }
}
