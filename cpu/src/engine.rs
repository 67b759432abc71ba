//! What another engine needs of the vCPU: to take its turn at an instruction boundary, to call back into the interpreter for single
//! instructions or blocks, and to know what is decoded and whether it still holds.
//!
//! An engine's loop is: [`Cpu::turn`] looks after events, traps and the fetch as the interpreter's own run loop does, and names the block at
//! RIP; the engine executes it in its own way, or has it interpreted with [`Cpu::interpret_block`]; [`Cpu::settle`] then delivers the fault that the
//! execution may have left. Code of an engine that was made from decoded blocks holds as long as [`Cpu::code_epoch`] stays the same; when it has
//! changed, [`Cpu::known_block`] tells whether a block is still there.
use crate::block::Block;
use crate::cpu::{Cpu, Exit};
use crate::op::Op;
use crate::state::Activity;
use mynah_mmu::PAGE_MASK;

/// What is to be done at an instruction boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Leave the run loop.
    Exit(Exit),
    /// Something was delivered or a single instruction was executed: look again.
    Done,
    /// Execute the block at RIP. Valid until the next call of [`Cpu::turn`] or [`Cpu::run`].
    Block(*const Block),
}

impl Cpu {
    /// Whether the next instruction may be executed as one of many: nothing is pending, the vCPU runs, and no trap or shadow wants instructions one
    /// at a time.
    #[inline(always)]
    pub fn is_undisturbed(&self) -> bool {
        self.events.pending() & self.event_mask == 0
            && self.state.activity == Activity::Running
            && !self.single_wanted()
    }

    /// Looks after what comes before an instruction: events, halts, traps, the fetch.
    pub fn turn(&mut self) -> Turn {
        self.tidy_blocks();
        self.from = (std::ptr::null(), 0);
        if self.events.pending() & self.event_mask != 0
            && let Some(exit) = self.handle_events()
        {
            return Turn::Exit(exit);
        }
        match self.state.activity {
            Activity::Running => {}
            Activity::Halted | Activity::WaitSipi => return Turn::Exit(Exit::Halt),
            Activity::Shutdown => return Turn::Exit(Exit::Shutdown),
        }
        if self.single_wanted() {
            self.step_once();
            return Turn::Done;
        }
        match self.find_block(self.mode_key) {
            Ok(b) => Turn::Block(b),
            Err(_) => {
                self.deliver_fault();
                Turn::Done
            }
        }
    }

    /// Interprets the block that [`Cpu::turn`] has just named, and no other; a fault is left for [`Cpu::settle`].
    ///
    /// # Safety
    /// `block` is what `turn` returned, and `turn` or `run` were not called since.
    pub unsafe fn interpret_block(&mut self, block: *const Block) {
        self.faulted = false;
        self.enter(block);
        // SAFETY: blocks stay allocated until `turn` or `run` free them, dead or not.
        let b = unsafe { &*block };
        if b.ops().is_none() && !self.restore_ops(b) {
            self.icount -= b.op_count() as u64;
            return self.kill_block(block);
        }
        let ops = b.ops().unwrap_or_default();
        for op in ops {
            let op = op.get();
            // SAFETY: as above; ops are changed by this thread only, and no reference to the handler is held across a call of it.
            let (o, run) = unsafe { (&*op, (*op).run) };
            let next = run(self, o);
            if next != o.next() || std::ptr::eq(op, ops[ops.len() - 1].get()) {
                if !next.is_null() {
                    // The last op has gone on to another block, which is not executed now.
                    // SAFETY: `current` is a live block.
                    let entered = unsafe { &*self.blocks.current };
                    self.icount -= entered.op_count() as u64;
                }
                break;
            }
        }
        self.from = (std::ptr::null(), 0);
    }

    /// Executes one op that falls through or ends its block, with its interpreter's handler; RIP is that of its block. Returns whether execution
    /// goes on behind it; if not, RIP says where, and a fault is left for [`Cpu::settle`].
    #[inline]
    pub fn run_op(&mut self, op: &Op) -> bool {
        self.faulted = false;
        self.leave_host_float();
        let next = (op.run)(self, op);
        // The current block is not the one that the op is in: nothing is to be linked to it, and what it is linked to is not entered.
        self.from = (std::ptr::null(), 0);
        if !next.is_null() && next != op.next() {
            // SAFETY: `current` is a live block, which the op's handler has just entered.
            self.icount -= unsafe { &*self.blocks.current }.op_count() as u64;
        }
        !next.is_null()
    }

    /// Delivers the fault that the last execution has left, if any; returns whether there was one.
    #[inline]
    pub fn settle(&mut self) -> bool {
        let faulted = self.faulted;
        if faulted {
            self.deliver_fault();
        }
        faulted
    }

    /// A number that changes whenever a decoded block dies.
    #[inline(always)]
    pub fn code_epoch(&self) -> u64 {
        self.blocks.invalidated
    }

    /// The live block decoded at a guest physical address under a mode key.
    pub fn known_block(&self, phys: u64, key: u32) -> Option<&Block> {
        self.blocks.block_at(phys, key)
    }

    /// Makes the bytes at a linear address ready for an access that bypasses the interpreter: translates and fills the TLB as the access would.
    /// Returns the host address, or null if the access cannot be made so (it faults, crosses a page, is checked for alignment, meets a device, ROM,
    /// or a page that is watched); then nothing that the guest can see has changed, and the interpreter does what has to be done.
    pub fn refill(&mut self, lin: u64, len: u64, write: bool) -> *mut u8 {
        let page = lin & !PAGE_MASK;
        if lin.wrapping_add(len.wrapping_sub(1)) & !PAGE_MASK != page {
            return std::ptr::null_mut();
        }
        let (cr2, fault) = (self.state.cr2, self.fault);
        if self.probe(lin, len, crate::state::seg::DS as u8, write).is_err() {
            self.state.cr2 = cr2;
            self.fault = fault;
            self.device_met = false;
            return std::ptr::null_mut();
        }
        let e = self.tlb.entry(lin);
        if (if write { e.write } else { e.read }) == page {
            lin.wrapping_add(e.addend) as *mut u8
        } else {
            std::ptr::null_mut()
        }
    }
}
