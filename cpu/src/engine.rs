//! What compiled code's engine needs of the vCPU: to have single instructions interpreted, to know what is decoded and
//! whether it still holds, and to fill the TLB.
//!
//! Code that was made from decoded blocks holds as long as [`Cpu::code_epoch`] stays the same; when it has changed,
//! [`Cpu::known_block`] tells whether a block is still there.
use crate::block::Block;
use crate::cpu::Cpu;
use crate::op::Op;
use crate::state::Activity;
use mynah_mmu::PAGE_MASK;

impl Cpu {
    /// Whether the next instruction may be executed as one of many: nothing is pending, the vCPU runs, and no trap or
    /// shadow wants instructions one at a time.
    #[inline(always)]
    pub fn is_undisturbed(&self) -> bool {
        self.events.pending() & self.event_mask == 0
            && self.state.activity == Activity::Running
            && !self.single_wanted()
    }

    /// Executes one op that falls through or ends its block, with its interpreter's handler; RIP is that of its block.
    /// Returns whether execution goes on behind it; if not, RIP says where, and a fault may be left to be delivered.
    #[inline]
    pub fn run_op(&mut self, op: &Op) -> bool {
        self.faulted = false;
        self.leave_host_float();
        let next = (op.run)(self, op);
        // The current block is not the one that the op is in: nothing is to be linked to it, and what it is linked to
        // is not entered.
        self.from = (std::ptr::null(), 0);
        if !next.is_null() && next != op.next() {
            // SAFETY: `current` is a live block, which the op's handler has just entered.
            self.icount -= unsafe { &*self.blocks.current }.op_count() as u64;
        }
        !next.is_null()
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

    /// Makes the bytes at a linear address ready for an access that bypasses the interpreter: translates and fills the
    /// TLB as the access would. Returns the host address, or null if the access cannot be made so (it faults, crosses
    /// a page, is checked for alignment, meets a device, ROM, or a page that is watched); then nothing that the guest
    /// can see has changed, and the interpreter does what has to be done.
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
