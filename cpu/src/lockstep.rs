//! Two vCPUs in step: a leader that runs stretches of instructions by whatever engine it has, and a follower that
//! executes the same ones, one at a time.
//!
//! ```text
//!   leader:    take_events, run_stretch ............ to the next event, or EV_STRETCH
//!   follower:  deliver_taken, follow, follow, follow until it is where the leader is
//! ```
//!
//! The vCPUs have memories of their own, of which [`Cpu::mark_stores`] has each page marked dirty that is written. What
//! is compared, and what boards answer, is the caller's business.
use crate::accel::Signals;
use crate::board::{EV_INTR, EV_MEMORY, EV_NMI, EV_STRETCH};
use crate::check::{effect_on_flags, flags_of};
use crate::cpu::Cpu;
use crate::event::{Event, EventKind, Exit, vector};
use crate::mode::ModeKey;
use crate::state::{Activity, State, fl, gpr};
use iced_x86::{Decoder, Instruction};

/// What has come between two instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Nothing.
    Nothing,
    /// The run is over.
    Leave(Exit),
    /// INIT or a start-up IPI: the state is another.
    Restarted,
    /// An NMI was delivered.
    Nmi,
    /// An interrupt was delivered.
    Interrupt(u8),
}

/// What a vCPU goes back to.
#[derive(Clone)]
pub struct Point {
    /// The architectural state.
    pub state: State,
    /// The count of instructions.
    pub icount: u64,
    ferr: bool,
    time_put_off: bool,
    debug_hits: u64,
}

/// An instruction that was followed, or begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Followed {
    /// Its linear address.
    pub lin: u64,
    /// Mode bits that it was decoded under: see [`ModeKey`].
    pub key: u32,
    /// RCX before it.
    pub rcx: u64,
    /// It raised an exception.
    pub faulted: bool,
}

impl Cpu {
    /// Has the first store to a page, after each [`Cpu::start_stretch`], mark it dirty, and instructions be counted
    /// exactly.
    pub fn mark_stores(&mut self, on: bool) {
        self.marks_stores = on;
        self.flush_blocks();
        self.tlb.flush_all();
    }

    /// Pages that are written from now on are marked, also those that have been before.
    pub fn start_stretch(&mut self) {
        self.tlb.flush_all();
    }

    /// Where it is.
    pub fn point(&self) -> Point {
        Point {
            state: self.state.clone(),
            icount: self.icount,
            ferr: self.ferr,
            time_put_off: self.time_put_off,
            debug_hits: self.debug_hits,
        }
    }

    /// Goes back to where it, or another with the same board, was. What others have written to memory meanwhile is
    /// looked at.
    pub fn go_back(&mut self, point: &Point) {
        self.state.clone_from(&point.state);
        (self.icount, self.ferr) = (point.icount, point.ferr);
        (self.time_put_off, self.debug_hits) = (point.time_put_off, point.debug_hits);
        self.interpret_next = false;
        self.faulted = false;
        self.settle_memory();
        self.sync_all();
    }

    /// Acts on changes of memory that others have made, and on no other signal.
    pub fn settle_memory(&mut self) {
        if self.events.pending() & EV_MEMORY != 0 {
            self.events.take(EV_MEMORY);
            self.memory_changed();
        }
        self.tidy_blocks();
    }

    /// Acts on the signals that are pending, one at most that the guest can see, and says which.
    pub fn take_events(&mut self) -> Taken {
        self.events.take(EV_STRETCH);
        self.tidy_blocks();
        if self.events.pending() & self.event_mask == 0 {
            return Taken::Nothing;
        }
        match self.take_signals() {
            Signals::Leave(exit) => return Taken::Leave(exit),
            Signals::Changed => return Taken::Restarted,
            Signals::None => {}
        }
        if matches!(self.state.activity, Activity::WaitSipi | Activity::Shutdown) {
            return Taken::Nothing;
        }
        let pending = self.events.pending() & self.event_mask;
        let taken = if pending & EV_NMI != 0 {
            self.events.take_nmi();
            Taken::Nmi
        } else if pending & EV_INTR != 0
            && let Some(vector) = self.board.acknowledge()
        {
            Taken::Interrupt(vector)
        } else {
            Taken::Nothing
        };
        self.deliver_taken(taken);
        taken
    }

    /// Delivers what another vCPU in the same state has taken.
    pub fn deliver_taken(&mut self, taken: Taken) {
        let (vector, kind) = match taken {
            Taken::Nmi => (vector::NMI, EventKind::Nmi),
            Taken::Interrupt(vector) => (vector, EventKind::External),
            _ => return,
        };
        self.state.activity = Activity::Running;
        self.deliver(Event { vector, kind, error: None });
    }

    /// Runs to the next signal, [`EV_STRETCH`] for one, but at least one block. Signals are not acted upon.
    pub fn run_stretch(&mut self) {
        while self.state.activity == Activity::Running {
            self.tidy_blocks();
            if self.single_wanted() {
                self.step_once();
            } else if let Ok(block) = self.find_block(self.mode_key) {
                self.link(block);
                self.execute(block);
                if self.faulted {
                    self.deliver_fault();
                } else if std::mem::take(&mut self.interpret_next) {
                    self.interpret_one();
                }
            } else {
                self.deliver_fault();
            }
            if self.events.pending() & self.event_mask != 0 {
                break;
            }
        }
        self.leave_host_float();
    }

    /// Executes one instruction by the interpreter, or one iteration of a repeated one, with the trap or fault that
    /// follows from it; whether the instruction is over. The vCPU runs.
    pub fn follow(&mut self) -> (Followed, bool) {
        self.settle_memory();
        let mut next = self.next_followed();
        let (faults, count) = (self.faults, self.icount);
        self.step_once();
        next.faulted = self.faults != faults;
        // What repeats itself is counted when it is over.
        let over = next.faulted || self.icount != count || self.code_linear() != next.lin;
        (next, over)
    }

    /// As [`Cpu::follow`], with all iterations of a repeated instruction at once, if nothing is to be looked at between
    /// them.
    pub fn follow_whole(&mut self) -> (Followed, bool) {
        self.settle_memory();
        if self.single_wanted() || self.events.pending() & self.event_mask != 0 {
            return self.follow();
        }
        let mut next = self.next_followed();
        self.from = (std::ptr::null(), 0);
        match self.find_block(self.mode_key | ModeKey::SINGLE) {
            Ok(block) => {
                let was = std::mem::replace(&mut self.unchained, true);
                self.execute(block);
                self.unchained = was;
                self.from = (std::ptr::null(), 0);
                next.faulted = self.faulted;
            }
            Err(_) => next.faulted = true,
        }
        if next.faulted {
            self.deliver_fault();
        }
        (next, true)
    }

    /// Executes whole blocks by the interpreter, `most` instructions at most. Signals are not acted upon.
    pub fn follow_blocks(&mut self, most: u64) {
        let (begin, was) = (self.icount, std::mem::replace(&mut self.unchained, true));
        // Exceptions are not counted.
        for _ in 0..most.saturating_mul(2) {
            if self.state.activity != Activity::Running {
                break;
            }
            self.settle_memory();
            let left = most.saturating_sub(self.icount.wrapping_sub(begin));
            if self.single_wanted() {
                if left == 0 {
                    break;
                }
                self.follow();
                continue;
            }
            let Ok(block) = self.find_block(self.mode_key) else {
                self.deliver_fault();
                continue;
            };
            // SAFETY: `find_block` gives a live block.
            if unsafe { &*block }.op_count() as u64 > left {
                break;
            }
            self.execute(block);
            if self.faulted {
                self.deliver_fault();
            }
        }
        self.unchained = was;
        self.from = (std::ptr::null(), 0);
    }

    /// The instruction that comes next.
    pub fn next_followed(&self) -> Followed {
        let (lin, rcx) = (self.code_linear(), self.state.gpr[gpr::RCX]);
        Followed { lin, key: self.mode_key, rcx, faulted: false }
    }

    /// Whether the instruction that was next is over now: one that repeats itself may not be.
    pub fn ends(&mut self, was: &Followed) -> bool {
        self.code_linear() != was.lin || !self.is_repeated(was.lin, was.key)
    }

    /// Whether the next instruction is not for a hypervisor to execute, as it asks for what is different each time, or
    /// for what is between instructions.
    pub fn is_for_interpreter(&mut self, next: &Followed) -> bool {
        use iced_x86::{Mnemonic as M, Register};
        if self.single_wanted() || self.a20_mask != !0 {
            return true;
        }
        let Some((_, _, i)) = self.instruction_at(next.lin, next.key) else { return true };
        let of_board = matches!(
            i.mnemonic(),
            M::Rdtsc
                | M::Rdtscp
                | M::Rdrand
                | M::Rdseed
                | M::Rdpmc
                | M::Cpuid
                | M::Rdmsr
                | M::Wrmsr
                | M::Hlt
                | M::Monitor
                | M::Mwait
        );
        of_board || (0..i.op_count()).any(|n| i.op_register(n) == Register::CR8)
    }

    /// Whether the next instruction is one that repeats itself.
    pub fn repeats_itself(&mut self) -> bool {
        let next = self.next_followed();
        self.is_repeated(next.lin, next.key)
    }

    fn is_repeated(&mut self, lin: u64, key: u32) -> bool {
        self.instruction_at(lin, key).is_some_and(|(_, _, i)| {
            (i.has_rep_prefix() || i.has_repne_prefix()) && i.is_string_instruction()
        })
    }

    /// The instruction at a linear address under a mode key, with its physical address and bytes from there.
    pub fn instruction_at(&mut self, lin: u64, key: u32) -> Option<(u64, [u8; 15], Instruction)> {
        let mut bytes = [0; 15];
        let phys = self.peek_code(lin, &mut bytes).ok()?;
        let i = Decoder::with_ip(ModeKey(key).bitness(), &bytes, lin, self.model.decoder_options()).decode();
        Some((phys, bytes, i))
    }

    /// Which of `flags` the last of these instructions have left undefined.
    pub fn undefined_behind(&mut self, trail: &[Followed], flags: u64) -> u64 {
        let (mut open, mut undefined) = (flags & fl::ARITH, 0);
        for done in trail.iter().rev().filter(|d| !d.faulted) {
            if open == 0 {
                break;
            }
            if let Some((_, _, i)) = self.instruction_at(done.lin, done.key) {
                let (defines, leaves) = effect_on_flags(&i, done.rcx);
                undefined |= open & leaves;
                open &= !(defines | leaves);
            }
        }
        undefined
    }

    /// Whether one of these instructions, or what it raised, looks at flags that one before it has left undefined.
    pub fn looks_at_undefined(&mut self, trail: &[Followed]) -> bool {
        let mut undefined = 0;
        for done in trail {
            let Some((_, _, i)) = self.instruction_at(done.lin, done.key) else { continue };
            // An exception saves them all.
            let reads = if done.faulted { fl::ARITH } else { flags_of(i.rflags_read()) };
            if undefined & reads != 0 || undefined != 0 && saves_flags(&i) {
                return true;
            }
            if !done.faulted {
                let (defines, leaves) = effect_on_flags(&i, done.rcx);
                undefined = undefined & !defines | leaves;
            }
        }
        false
    }
}

/// Whether an instruction puts RFLAGS where they can be seen.
fn saves_flags(i: &Instruction) -> bool {
    use iced_x86::{FlowControl, Mnemonic};
    i.flow_control() == FlowControl::Interrupt
        || matches!(
            i.mnemonic(),
            Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq | Mnemonic::Syscall | Mnemonic::Lahf
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::NoBoard;
    use crate::model::CpuModel;
    use mynah_mmu::{GuestRam, PhysMemory};
    use std::sync::Arc;

    /// A vCPU in real mode at 0:1000h with these bytes there.
    fn cpu(code: &[u8]) -> Box<Cpu> {
        let mem = PhysMemory::new(GuestRam::new(0x10000).expect("RAM"), 0x10000);
        mem.write(0x1000, code);
        mem.take_all_dirty();
        let model = Arc::new(CpuModel::parse("max").expect("a model"));
        let mut cpu = Cpu::new(0, mem, Arc::new(NoBoard), Arc::default(), model);
        cpu.state.seg[crate::state::seg::CS].base = 0;
        cpu.state.seg[crate::state::seg::CS].sel = 0;
        cpu.state.gpr[gpr::RIP] = 0x1000;
        cpu.state.gpr[gpr::RSP] = 0x4000;
        cpu.sync_all();
        cpu.mark_stores(true);
        cpu
    }

    #[test]
    fn a_stretch_ends_at_its_signal_and_marks_what_it_writes() {
        // mov ax,[5000]; mov [5000],ax; jmp $
        let mut cpu = cpu(&[0xa1, 0x00, 0x50, 0xa3, 0x00, 0x50, 0xeb, 0xfe]);
        let start = cpu.point();
        cpu.events.mark(EV_STRETCH);
        cpu.run_stretch();
        assert_eq!((cpu.state.gpr[gpr::RIP], cpu.mem.take_all_dirty()), (0x1006, vec![0x5000]));
        // Again, with the page in the TLB.
        cpu.go_back(&start);
        cpu.run_stretch();
        assert_eq!(cpu.mem.take_all_dirty(), [0x5000]);
        assert_eq!(cpu.take_events(), Taken::Nothing);
        assert_eq!(cpu.events.pending(), 0);
    }

    #[test]
    fn a_repeated_instruction_is_followed_by_iterations_and_is_one() {
        // rep stosb; int3
        let mut cpu = cpu(&[0xf3, 0xaa, 0xcc]);
        cpu.state.gpr[gpr::RCX] = 3;
        cpu.state.gpr[gpr::RDI] = 0x3000;
        let over: Vec<bool> = (0..3).map(|_| cpu.follow().1).collect();
        assert_eq!((over, cpu.icount), (vec![false, false, true], 1));
        assert_eq!(cpu.state.gpr[gpr::RIP], 0x1002);
    }

    #[test]
    fn undefined_flags_are_known_and_who_looks_at_them() {
        // shl ax,2; pushf; and ax,ax; add ax,1
        let mut cpu = cpu(&[0xc1, 0xe0, 0x02, 0x9c, 0x21, 0xc0, 0x05, 0x01, 0x00]);
        let trail: Vec<Followed> = (0..4).map(|_| cpu.follow().0).collect();
        assert_eq!(cpu.undefined_behind(&trail[..1], fl::ARITH), fl::AF | fl::OF);
        assert_eq!(cpu.undefined_behind(&trail[..2], fl::CF), 0);
        assert!(cpu.looks_at_undefined(&trail[..2]) && !cpu.looks_at_undefined(&trail[..1]));
        assert_eq!(cpu.undefined_behind(&trail[..3], fl::ARITH), fl::AF);
        assert_eq!(cpu.undefined_behind(&trail, fl::ARITH), 0);
    }
}
