//! Debug registers and breakpoints (SDM volume 3B, chapter 17): MOV DRn, matching, what #DB does to the registers.
use super::privilege::ring0;
use crate::cpu::Cpu;
use crate::event::{Stop, vector};
use crate::exec::Exec;
use crate::op::{Helper, Op};
use crate::state::{cr4, gpr};
use crate::width::W64;
use iced_x86::{Code, FlowControl, Instruction};
use mynah_mmu::PAGE_SIZE;

/// DR6: a MOV DR was met while DR7.GD was set.
pub const DR6_BD: u64 = 1 << 13;
/// DR6: single step.
pub const DR6_BS: u64 = 1 << 14;
/// DR6: the T flag of a new task's TSS.
pub const DR6_BT: u64 = 1 << 15;
/// Bits of DR6 that read one (BLD and RTM are "not this", active low).
pub const DR6_ONES: u64 = 0xffff_0ff0;
/// Bits of DR6 that can be written.
const DR6_BITS: u64 = 0xe00f;
/// DR7: general detect.
pub const DR7_GD: u64 = 1 << 13;
/// Bits of DR7 that can be written; bit 10 reads one.
const DR7_BITS: u64 = 0xffff_23ff;
/// IA32_DEBUGCTL: single-step on branches.
const DEBUGCTL_BTF: u64 = 1 << 1;

/// What a breakpoint waits for (DR7.R/Wn).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    Execution = 0,
    Write = 1,
    Io = 2,
    Access = 3,
}

impl Cpu {
    /// Whether any breakpoint is enabled in DR7.
    #[inline]
    pub fn debug_armed(&self) -> bool {
        self.state.dr[7] & 0xff != 0
    }

    /// The breakpoints that wait for one of `kinds` and overlap `len` bytes from `at`, as bits 0-3 of DR6.
    fn matches(&self, kinds: &[Wait], at: u64, len: u64) -> u64 {
        let dr7 = self.state.dr[7];
        let mask = if self.state.is_long() { u64::MAX } else { 0xffff_ffff };
        let mut hit = 0;
        for n in 0..4 {
            let enabled = dr7 >> (2 * n) & 3 != 0;
            let field = dr7 >> (16 + 4 * n);
            if !enabled || !kinds.iter().any(|k| *k as u64 == field & 3) {
                continue;
            }
            let size = [1, 2, 8, 4][(field >> 2 & 3) as usize];
            let start = self.state.dr[n] & mask & !(size - 1);
            // Overlap, with addresses that may wrap.
            let at = at & mask;
            if start.wrapping_sub(at) & mask < len || at.wrapping_sub(start) & mask < size {
                hit |= 1 << n;
            }
        }
        hit
    }

    /// The instruction breakpoints at linear address `lin`, as bits of DR6.
    pub fn instruction_breakpoint(&self, lin: u64) -> u64 {
        self.matches(&[Wait::Execution], lin, 1)
    }

    /// Notes the data breakpoints that an access meets, in `debug_hits`: they trap after the instruction.
    pub fn data_breakpoint(&mut self, lin: u64, len: u64, write: bool) {
        let kinds: &[Wait] = if write { &[Wait::Write, Wait::Access] } else { &[Wait::Access] };
        self.debug_hits |= self.matches(kinds, lin, len);
    }

    /// Whether a data breakpoint lies on this page: its accesses must not go fast.
    #[inline]
    pub(crate) fn watches_page(&self, page: u64) -> bool {
        self.debug_armed() && self.matches(&[Wait::Write, Wait::Access], page, PAGE_SIZE) != 0
    }

    /// Notes the I/O breakpoints (CR4.DE) that a port access meets.
    pub fn io_breakpoint(&mut self, port: u16, size: u32) {
        if self.state.cr4 & cr4::DE != 0 && self.debug_armed() {
            self.debug_hits |= self.matches(&[Wait::Io], u64::from(port), u64::from(size));
        }
    }

    /// Whether a single-step trap follows `op`, which was at `from` and has been executed: with DEBUGCTL.BTF only
    /// taken branches trap (SDM volume 3B, 17.4.3).
    pub(crate) fn step_traps(&self, op: &Op, from: u64) -> bool {
        if self.state.msr.debugctl & DEBUGCTL_BTF == 0 {
            return true;
        }
        match op.code().flow_control() {
            FlowControl::Next | FlowControl::Exception => false,
            // One that leads to the instruction behind it shows nothing: it counts as not taken.
            FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend => {
                self.state.gpr[gpr::RIP] != from.wrapping_add(u64::from(op.len)) & self.ip_mask()
            }
            _ => true,
        }
    }

    /// Adds what a debug exception reports to DR6.
    pub(crate) fn note_debug_hits(&mut self, hits: u64) {
        // The condition bits are those of this exception alone (SDM volume 3B, 17.2.3: the processor may clear them).
        self.state.dr[6] = self.state.dr[6] & !0xf | hits;
    }

    /// What the processor clears when it enters the handler of #DB: DR7.GD, and LBR and BTF in IA32_DEBUGCTL.
    pub(super) fn entered_debug_handler(&mut self) {
        self.state.dr[7] &= !DR7_GD;
        self.state.msr.debugctl &= !3;
    }
}

/// The register that `n` means: DR4 and DR5 are DR6 and DR7, or do not exist with CR4.DE.
fn resolve(cpu: &mut Cpu, n: u8) -> Result<usize, Stop> {
    let n = usize::from(n);
    if n > 7 {
        return Err(cpu.ud());
    }
    ring0(cpu)?;
    if n & !1 == 4 && cpu.state.cr4 & cr4::DE != 0 {
        return Err(cpu.ud());
    }
    if cpu.state.dr[7] & DR7_GD != 0 {
        cpu.state.dr[6] |= DR6_BD;
        return Err(cpu.raise(vector::DB));
    }
    Ok(if n & !1 == 4 { n + 2 } else { n })
}

fn mov_from_dr(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let n = resolve(cpu, op.src)?;
    let v = cpu.state.dr[n & 7];
    let v = if op.is_long() { v } else { v & 0xffff_ffff };
    cpu.set_reg::<W64>(op.dst, v);
    Ok(())
}

fn mov_to_dr(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    super::cache::serialise();
    let n = resolve(cpu, op.dst)?;
    let v = cpu.state.gpr[usize::from(op.src & 31)];
    let v = if op.is_long() { v } else { v & 0xffff_ffff };
    if n >= 6 && v >> 32 != 0 {
        return Err(cpu.gp(0));
    }
    cpu.state.dr[n & 7] = match n {
        6 => v & DR6_BITS | DR6_ONES,
        7 => v & DR7_BITS | 0x400,
        _ => v,
    };
    if n != 6 {
        // Translations that were made while nothing was watched allow accesses that nobody looks at.
        cpu.tlb.flush_all();
    }
    cpu.sync_mode();
    Ok(())
}

/// The helper for an instruction of this group.
pub(super) fn lookup(i: &Instruction) -> Option<Helper> {
    match i.code() {
        Code::Mov_r32_dr | Code::Mov_r64_dr => Helper::straight(mov_from_dr),
        Code::Mov_dr_r32 | Code::Mov_dr_r64 => Helper::ends(mov_to_dr),
        _ => None,
    }
}
