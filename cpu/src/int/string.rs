//! String instructions: MOVS, STOS, LODS, CMPS, SCAS, INS, OUTS, with REP, REPE and REPNE.
//!
//! Repeated moves and stores work on as many elements as lie on one page (source and destination), with one look-up
//! each; between such runs, and every so many elements, pending events are looked at, and the instruction is left with
//! its registers telling how far it came, to be started again. Under single-step each iteration traps.
use super::operand::{by_width, sem};
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::exec::Exec;
use crate::model::Vendor;
use crate::op::{CHECKED, Helper, Op, REP, REPNE};
use crate::state::{fl, gpr, seg};
use crate::width::{W8, W16, W32, W64, Width, before_store, loaded};
use iced_x86::{Code, Instruction};
use mynah_mmu::PAGE_MASK;

/// Iterations of a slow element loop between looks at pending events.
const BATCH: u64 = 256;

fn mask(op: &Op) -> u64 {
    u64::MAX >> (op.ashift & 63)
}

fn index(cpu: &Cpu, op: &Op, r: usize) -> u64 {
    cpu.state.gpr[r] & mask(op)
}

/// Writes an index or count register in the address size.
fn set_index(cpu: &mut Cpu, op: &Op, r: usize, v: u64) {
    let p = &mut cpu.state.gpr[r];
    *p = match op.ashift {
        0 => v,
        32 => v & 0xffff_ffff,
        _ => *p & !0xffff | v & 0xffff,
    };
}

#[inline(always)]
pub(crate) fn advance(cpu: &mut Cpu, op: &Op, r: usize, bytes: u64) {
    let v = cpu.state.gpr[r];
    let v = if cpu.state.rflags & fl::DF != 0 { v.wrapping_sub(bytes) } else { v.wrapping_add(bytes) };
    set_index(cpu, op, r, v);
}

fn source<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<u64, Stop> {
    let off = index(cpu, op, gpr::RSI);
    address(cpu, op, usize::from(op.seg & 7), off, W::BYTES, false)
}

fn dest<W: Width>(cpu: &mut Cpu, op: &Op, write: bool) -> Result<u64, Stop> {
    let off = index(cpu, op, gpr::RDI);
    address(cpu, op, seg::ES, off, W::BYTES, write)
}

#[inline(always)]
fn address(cpu: &mut Cpu, op: &Op, s: usize, off: u64, len: u64, write: bool) -> Result<u64, Stop> {
    if op.flags & CHECKED == 0 {
        return Ok(cpu.view[s].base.wrapping_add(off));
    }
    cpu.linear(s, off, len, write)
}

fn repeated(op: &Op) -> bool {
    op.flags & (REP | REPNE) != 0
}

/// Whether a repeated instruction should stop between iterations.
fn interrupted(cpu: &Cpu) -> bool {
    cpu.events.pending() & cpu.event_mask != 0 || cpu.single
}

/// Counts the elements that are handled one by one, devices and ROM among them, and says when it is time to look at
/// events.
#[derive(Default)]
struct Pace(u64);

impl Pace {
    /// One more element is done: whether the instruction, if it is not at its end, is to be left.
    fn interrupts(&mut self, cpu: &Cpu) -> bool {
        self.0 += 1;
        self.0.is_multiple_of(BATCH) && interrupted(cpu)
    }
}

/// What Intel's processors do before a repeated instruction of 64-bit mode with 32-bit addresses: RCX and `pointers`,
/// which are those of MOVS and STOS, are cut to 32 bits, even if RCX is zero or the first element faults. AMD's leave
/// them until they change.
fn cut_registers(cpu: &mut Cpu, op: &Op, pointers: &[usize]) {
    if op.ashift == 32 && repeated(op) && cpu.model.vendor == Vendor::Intel && cpu.state.is_long64() {
        for &r in [gpr::RCX].iter().chain(pointers) {
            cpu.state.gpr[r] &= 0xffff_ffff;
        }
    }
}

/// Runs `step` once, or RCX times: `step` does one element and says whether to go on.
fn repeat(cpu: &mut Cpu, op: &Op, mut step: impl FnMut(&mut Cpu) -> Result<bool, Stop>) -> Result<(), Stop> {
    if !repeated(op) {
        return step(cpu).map(|_| ());
    }
    cut_registers(cpu, op, &[]);
    let mut pace = Pace::default();
    loop {
        let n = index(cpu, op, gpr::RCX);
        if n == 0 {
            return Ok(());
        }
        let more = step(cpu)?;
        set_index(cpu, op, gpr::RCX, n - 1);
        if n == 1 || !more {
            return Ok(());
        }
        if pace.interrupts(cpu) || cpu.single {
            return Err(Stop::Again);
        }
    }
}

/// How many whole elements, of at most `n`, lie on `lin`'s page in the direction of DF.
fn on_page<W: Width>(lin: u64, n: u64, down: bool) -> u64 {
    let at = lin & PAGE_MASK;
    if down {
        if at + W::BYTES > PAGE_MASK + 1 { 0 } else { (at / W::BYTES + 1).min(n) }
    } else {
        ((PAGE_MASK + 1 - at) / W::BYTES).min(n)
    }
}

/// How many elements of at most `n` come before the offset `off` wraps in the address size: behind the wrap they lie
/// elsewhere, and on another page only if the segment's base is aligned.
fn before_wrap<W: Width>(op: &Op, off: u64, n: u64, down: bool) -> u64 {
    let left = if down { off } else { mask(op) - off };
    (left / W::BYTES).saturating_add(1).min(n)
}

/// Elements that may be handled at once: bounded by the index registers not wrapping in the address size, and by
/// segment limits (which are left to the element-wise path unless addresses are unchecked).
fn bulk(cpu: &Cpu, op: &Op, n: u64) -> u64 {
    if op.flags & CHECKED != 0 || op.ashift == 48 || cpu.single || cpu.watch { 0 } else { n }
}

fn movs<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cut_registers(cpu, op, &[gpr::RSI, gpr::RDI]);
    let down = cpu.state.rflags & fl::DF != 0;
    let mut pace = Pace::default();
    while repeated(op) {
        let n = bulk(cpu, op, index(cpu, op, gpr::RCX));
        if n < 2 {
            break;
        }
        let (from, to) = (source::<W>(cpu, op)?, dest::<W>(cpu, op, true)?);
        let n = before_wrap::<W>(op, index(cpu, op, gpr::RSI), n, down);
        let k = on_page::<W>(from, on_page::<W>(to, n, down), down);
        // The first element through the ordinary path: it faults as it must, and fills the TLB for both pages.
        one_movs::<W>(cpu, op)?;
        count_down(cpu, op, 1);
        if pace.interrupts(cpu) {
            return Err(Stop::Again);
        }
        if k < 2 {
            continue;
        }
        let (from, to) = (source::<W>(cpu, op)?, dest::<W>(cpu, op, true)?);
        let (Some(src), Some(dst)) = (cpu.fast_read(from), cpu.fast_write(to)) else {
            continue;
        };
        let k = k - 1;
        let bytes = (k * W::BYTES) as usize;
        let distance = (dst as usize).wrapping_sub(src as usize);
        if down {
            let start = bytes - W::BYTES as usize;
            let (s, d) = (src.wrapping_sub(start), dst.wrapping_sub(start).cast_mut());
            // SAFETY: `on_page` keeps all `k` elements on the pages whose TLB entries gave these pointers.
            unsafe { copy_down::<W>(s, d, k) };
        } else if distance >= bytes {
            before_store();
            // SAFETY: as above; the destination does not start inside the source, so a plain forward copy gives what
            // element-wise copying gives (the source may start inside the destination: `copy` is a memmove).
            unsafe { std::ptr::copy(src, dst.cast_mut(), bytes) };
            loaded();
        } else {
            // SAFETY: as above; overlapping forward copies repeat the pattern, element by element.
            unsafe { copy_up::<W>(src, dst.cast_mut(), k) };
        }
        advance(cpu, op, gpr::RSI, bytes as u64);
        advance(cpu, op, gpr::RDI, bytes as u64);
        count_down(cpu, op, k);
        if index(cpu, op, gpr::RCX) != 0 && interrupted(cpu) {
            return Err(Stop::Again);
        }
    }
    repeat(cpu, op, |cpu| one_movs::<W>(cpu, op).map(|()| true))
}

fn one_movs<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let from = source::<W>(cpu, op)?;
    let v = cpu.load::<W>(from, op.seg)?;
    let to = dest::<W>(cpu, op, true)?;
    cpu.store::<W>(to, v, seg::ES as u8)?;
    advance(cpu, op, gpr::RSI, W::BYTES);
    advance(cpu, op, gpr::RDI, W::BYTES);
    Ok(())
}

fn count_down(cpu: &mut Cpu, op: &Op, n: u64) {
    let c = index(cpu, op, gpr::RCX);
    set_index(cpu, op, gpr::RCX, c.wrapping_sub(n));
}

/// # Safety
/// `k` elements from `s` and `d` upward must be valid.
unsafe fn copy_up<W: Width>(mut s: *const u8, mut d: *mut u8, k: u64) {
    for _ in 0..k {
        // SAFETY: the caller's promise.
        unsafe { W::write(d, W::read(s)) };
        s = s.wrapping_add(W::BYTES as usize);
        d = d.wrapping_add(W::BYTES as usize);
    }
}

/// # Safety
/// `k` elements from `s` and `d` (the lowest ones) upward must be valid.
unsafe fn copy_down<W: Width>(s: *const u8, d: *mut u8, k: u64) {
    for n in (0..k as usize).rev() {
        let o = n * W::BYTES as usize;
        // SAFETY: the caller's promise.
        unsafe { W::write(d.wrapping_add(o), W::read(s.wrapping_add(o))) };
    }
}

fn stos<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cut_registers(cpu, op, &[gpr::RDI]);
    let down = cpu.state.rflags & fl::DF != 0;
    let v = cpu.reg::<W>(0);
    let mut pace = Pace::default();
    while repeated(op) {
        let n = bulk(cpu, op, index(cpu, op, gpr::RCX));
        if n < 2 {
            break;
        }
        let to = dest::<W>(cpu, op, true)?;
        let k = on_page::<W>(to, n, down);
        one_stos::<W>(cpu, op, v)?;
        count_down(cpu, op, 1);
        if pace.interrupts(cpu) {
            return Err(Stop::Again);
        }
        if k < 2 {
            continue;
        }
        let to = dest::<W>(cpu, op, true)?;
        let Some(dst) = cpu.fast_write(to) else {
            continue;
        };
        let k = k - 1;
        let bytes = (k * W::BYTES) as usize;
        let low = if down { dst.wrapping_sub(bytes - W::BYTES as usize) } else { dst }.cast_mut();
        let byte = v as u8;
        if v == u64::from(byte) * (0x0101_0101_0101_0101 & W::MASK) {
            before_store();
            // SAFETY: `on_page` keeps all `k` elements on the page whose TLB entry gave the pointer.
            unsafe { std::ptr::write_bytes(low, byte, bytes) };
        } else {
            for n in 0..k as usize {
                // SAFETY: as above.
                unsafe { W::write(low.wrapping_add(n * W::BYTES as usize), v) };
            }
        }
        advance(cpu, op, gpr::RDI, bytes as u64);
        count_down(cpu, op, k);
        if index(cpu, op, gpr::RCX) != 0 && interrupted(cpu) {
            return Err(Stop::Again);
        }
    }
    repeat(cpu, op, |cpu| one_stos::<W>(cpu, op, v).map(|()| true))
}

fn one_stos<W: Width>(cpu: &mut Cpu, op: &Op, v: u64) -> Result<(), Stop> {
    let to = dest::<W>(cpu, op, true)?;
    cpu.store::<W>(to, v, seg::ES as u8)?;
    advance(cpu, op, gpr::RDI, W::BYTES);
    Ok(())
}

fn lods<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    repeat(cpu, op, |cpu| {
        let from = source::<W>(cpu, op)?;
        let v = cpu.load::<W>(from, op.seg)?;
        cpu.set_reg::<W>(0, v);
        advance(cpu, op, gpr::RSI, W::BYTES);
        Ok(true)
    })
}

/// Whether REPE/REPNE goes on after a comparison.
fn more(cpu: &Cpu, op: &Op) -> bool {
    if op.flags & REPNE != 0 { !cpu.state.zf() } else { cpu.state.zf() }
}

/// [`repeat`] of a comparison. Where it stops before its end, for a fault, a trap or an interrupt, the flags are those
/// before the instruction with Intel (SDM volume 2, REP), and those of the last element with AMD.
fn repeat_comparison(
    cpu: &mut Cpu,
    op: &Op,
    step: impl FnMut(&mut Cpu) -> Result<bool, Stop>,
) -> Result<(), Stop> {
    if !repeated(op) || cpu.model.vendor != Vendor::Intel {
        return repeat(cpu, op, step);
    }
    let before = cpu.state.rflags();
    let r = repeat(cpu, op, step);
    if r.is_err() {
        cpu.replace_flags(before, fl::ARITH);
    }
    r
}

fn cmps<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    repeat_comparison(cpu, op, |cpu| {
        let from = source::<W>(cpu, op)?;
        let a = cpu.load::<W>(from, op.seg)?;
        let to = dest::<W>(cpu, op, false)?;
        let b = cpu.load::<W>(to, seg::ES as u8)?;
        let r = cpu.sub::<W>(a, b);
        cpu.flags_sub::<W>(a, b, r);
        advance(cpu, op, gpr::RSI, W::BYTES);
        advance(cpu, op, gpr::RDI, W::BYTES);
        Ok(more(cpu, op))
    })
}

fn scas<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    repeat_comparison(cpu, op, |cpu| {
        let to = dest::<W>(cpu, op, false)?;
        let b = cpu.load::<W>(to, seg::ES as u8)?;
        let a = cpu.reg::<W>(0);
        let r = cpu.sub::<W>(a, b);
        cpu.flags_sub::<W>(a, b, r);
        advance(cpu, op, gpr::RDI, W::BYTES);
        Ok(more(cpu, op))
    })
}

fn ins<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let port = cpu.state.gpr[gpr::RDX] as u16;
    crate::sys::check_io(cpu, port, W::BYTES as u32)?;
    repeat(cpu, op, |cpu| {
        let to = dest::<W>(cpu, op, true)?;
        cpu.probe_write(to, W::BYTES, seg::ES as u8)?;
        let v = u64::from(cpu.board.port_read(port, W::BYTES as u8)) & W::MASK;
        cpu.store::<W>(to, v, seg::ES as u8)?;
        advance(cpu, op, gpr::RDI, W::BYTES);
        Ok(true)
    })
}

fn outs<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let port = cpu.state.gpr[gpr::RDX] as u16;
    crate::sys::check_io(cpu, port, W::BYTES as u32)?;
    repeat(cpu, op, |cpu| {
        let from = source::<W>(cpu, op)?;
        let v = cpu.load::<W>(from, op.seg)?;
        cpu.board.port_write(port, W::BYTES as u8, v as u32);
        advance(cpu, op, gpr::RSI, W::BYTES);
        Ok(true)
    })
}

impl Cpu {
    /// The host address of a byte that the TLB lets be read fast.
    fn fast_read(&self, lin: u64) -> Option<*const u8> {
        let e = self.tlb.entry(lin);
        (e.read == lin & !PAGE_MASK).then(|| lin.wrapping_add(e.addend) as *const u8)
    }
    /// The host address of a byte that the TLB lets be written fast.
    fn fast_write(&self, lin: u64) -> Option<*const u8> {
        let e = self.tlb.entry(lin);
        (e.write == lin & !PAGE_MASK).then(|| lin.wrapping_add(e.addend) as *const u8)
    }
}

/// The operand of one element, at RSI or RDI.
#[inline(always)]
fn element(op: &Op, r: usize) -> Op {
    let seg = if r == gpr::RDI { seg::ES as u8 } else { op.seg };
    Op { base: r as u8, index: gpr::ZERO as u8, disp: 0, seg, ..*op }
}

sem!(
    /// MOVS of one element.
    Movs[W: Width][] |e, op| {
        let v = e.load::<W>(&element(op, gpr::RSI))?;
        e.store::<W>(&element(op, gpr::RDI), v)?;
        e.step_index(op, gpr::RSI, W::BYTES);
        e.step_index(op, gpr::RDI, W::BYTES);
        Ok(e.next(op))
    }
);
sem!(
    /// STOS of one element.
    Stos[W: Width][] |e, op| {
        let v = e.reg::<W>(gpr::RAX as u8);
        e.store::<W>(&element(op, gpr::RDI), v)?;
        e.step_index(op, gpr::RDI, W::BYTES);
        Ok(e.next(op))
    }
);
sem!(
    /// LODS of one element.
    Lods[W: Width][] |e, op| {
        let v = e.load::<W>(&element(op, gpr::RSI))?;
        e.set_reg::<W>(gpr::RAX as u8, v);
        e.step_index(op, gpr::RSI, W::BYTES);
        Ok(e.next(op))
    }
);

/// What one element of a string instruction is moved by, and how many bytes it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum One {
    /// MOVS: from RSI to RDI.
    Movs(usize),
    /// STOS: from RAX to RDI.
    Stos(usize),
    /// LODS: from RSI to RAX.
    Lods(usize),
}

impl One {
    /// What `i` moves, if it is MOVS, STOS or LODS and has no REP prefix.
    pub fn of(i: &Instruction) -> Option<Self> {
        Self::each(i).filter(|_| !i.has_rep_prefix() && !i.has_repne_prefix())
    }

    /// What `i` moves each time, if it is MOVS, STOS or LODS and has a REP prefix, but not REPNE.
    pub fn repeated(i: &Instruction) -> Option<Self> {
        Self::each(i).filter(|_| i.has_rep_prefix() && !i.has_repne_prefix())
    }

    /// What each repetition of `i` moves, if it is MOVS, STOS or LODS.
    fn each(i: &Instruction) -> Option<Self> {
        Some(match i.code() {
            Code::Movsb_m8_m8 => Self::Movs(1),
            Code::Movsw_m16_m16 => Self::Movs(2),
            Code::Movsd_m32_m32 => Self::Movs(4),
            Code::Movsq_m64_m64 => Self::Movs(8),
            Code::Stosb_m8_AL => Self::Stos(1),
            Code::Stosw_m16_AX => Self::Stos(2),
            Code::Stosd_m32_EAX => Self::Stos(4),
            Code::Stosq_m64_RAX => Self::Stos(8),
            Code::Lodsb_AL_m8 => Self::Lods(1),
            Code::Lodsw_AX_m16 => Self::Lods(2),
            Code::Lodsd_EAX_m32 => Self::Lods(4),
            Code::Lodsq_RAX_m64 => Self::Lods(8),
            _ => return None,
        })
    }
}

/// The handler of what moves one element.
pub(crate) fn select<E: Exec>(i: &Instruction, _: &Op) -> Option<E::Handler> {
    Some(match One::of(i)? {
        One::Movs(n) => by_width!(n, W => E::handler::<Movs<W>>()),
        One::Stos(n) => by_width!(n, W => E::handler::<Stos<W>>()),
        One::Lods(n) => by_width!(n, W => E::handler::<Lods<W>>()),
    })
}

pub(crate) fn lookup(i: &Instruction) -> Option<Helper> {
    match One::each(i) {
        Some(One::Movs(n)) => return by_width!(n, W => Helper::straight(movs::<W>)),
        Some(One::Stos(n)) => return by_width!(n, W => Helper::straight(stos::<W>)),
        Some(One::Lods(n)) => return by_width!(n, W => Helper::straight(lods::<W>)),
        None => {}
    }
    match i.code() {
        Code::Cmpsb_m8_m8 => Helper::straight(cmps::<W8>),
        Code::Cmpsw_m16_m16 => Helper::straight(cmps::<W16>),
        Code::Cmpsd_m32_m32 => Helper::straight(cmps::<W32>),
        Code::Cmpsq_m64_m64 => Helper::straight(cmps::<W64>),
        Code::Scasb_AL_m8 => Helper::straight(scas::<W8>),
        Code::Scasw_AX_m16 => Helper::straight(scas::<W16>),
        Code::Scasd_EAX_m32 => Helper::straight(scas::<W32>),
        Code::Scasq_RAX_m64 => Helper::straight(scas::<W64>),
        Code::Insb_m8_DX => Helper::straight(ins::<W8>),
        Code::Insw_m16_DX => Helper::straight(ins::<W16>),
        Code::Insd_m32_DX => Helper::straight(ins::<W32>),
        Code::Outsb_DX_m8 => Helper::straight(outs::<W8>),
        Code::Outsw_DX_m16 => Helper::straight(outs::<W16>),
        Code::Outsd_DX_m32 => Helper::straight(outs::<W32>),
        _ => None,
    }
}
