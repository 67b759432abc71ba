//! What a tier is given of the vCPU: blocks to compile, code to install and to take away, and who has died.
use crate::block::Block;
use crate::cpu::Cpu;
use crate::op::Op;
use crate::tier::{Compiled, Link, Recording, Tier};

impl Cpu {
    /// Has the interpreter execute the next blocks that have code, and tells the tier which they were
    /// ([`Tier::recorded`]).
    pub fn record(&mut self, blocks: usize) {
        self.recording = Some(Box::new(Recording { blocks: Vec::with_capacity(blocks), most: blocks }));
    }

    /// Gives the vCPU a tier above the interpreter, which is told of blocks that have run `hot_after` times.
    pub fn set_tier(&mut self, mut tier: Box<dyn Tier>, hot_after: u32) {
        tier.attach(self);
        self.known_after = tier.known_after();
        self.tier = Some(tier);
        self.hot_after = hot_after.clamp(1, u32::MAX - 1);
        self.flush_blocks();
    }

    /// Takes the tier away, with how often a block had to run for it; the interpreter goes on alone. The tier may be
    /// given to this vCPU again.
    pub fn take_tier(&mut self) -> Option<(Box<dyn Tier>, u32)> {
        let tier = self.tier.take()?;
        self.recording = None;
        self.known_after = u32::MAX;
        let hot_after = std::mem::replace(&mut self.hot_after, u32::MAX);
        self.flush_blocks();
        Some((tier, hot_after))
    }

    /// Has a hot block counted again from the start: the tier could not take it now.
    pub fn cool(&self, phys: u64, key: u32) {
        if let Some(b) = self.blocks.block_at(phys, key)
            && b.tier.code.get().is_none()
        {
            b.tier.heat.set(0);
            self.count_block(b);
        }
    }

    /// Installs code for the block at `phys`, made from the blocks `parts`; false if one of them is gone.
    ///
    /// # Safety
    /// The code must be valid until it is uninstalled, and do what the blocks' instructions do.
    pub unsafe fn install(&mut self, phys: u64, key: u32, parts: &[u64], code: Compiled) -> bool {
        let Some(head) = self.blocks.block_at(phys, key) else { return false };
        if parts.iter().any(|&p| self.blocks.block_at(p, key).is_none()) {
            return false;
        }
        let block: *const Block = head;
        for &p in parts {
            let part: Option<*const Block> = self.blocks.block_at(p, key).map(|b| b as _);
            // SAFETY: it was just found, and nothing here takes blocks out.
            if let Some(b) = part.map(|b| unsafe { &*b })
                && !b.tier.heads.iter().any(|head| head == (phys, key))
            {
                b.tier.heads.push(self.blocks.arena(), (phys, key));
            }
        }
        // SAFETY: `block_at` returns a live block; for the code the caller vouches.
        unsafe { self.install_block(block, code) };
        true
    }

    /// As [`Self::install`], of code that was made from the block alone.
    ///
    /// # Safety
    /// As there; the block must be live.
    pub unsafe fn install_block(&mut self, block: *const Block, code: Compiled) {
        // SAFETY: the block stays in the cache: nothing below takes blocks out.
        let head = unsafe { &*block };
        if head.code().is_some() {
            self.forget_returns();
        }
        self.blocks.forget_code_jumps(&head.tier);
        head.tier.sever(self.blocks.arena());
        head.tier.code.set(Some(code));
        self.blocks.has_code(head);
    }

    /// The numbers of blocks that have died since this was asked last; `None` if all have.
    pub fn take_dead(&mut self) -> Option<Vec<u32>> {
        let dead = std::mem::take(&mut self.blocks.dead_numbers);
        (!std::mem::take(&mut self.blocks.all_died)).then_some(dead)
    }

    /// Whether [`Self::take_dead`] has something to tell.
    #[inline]
    pub fn has_dead(&self) -> bool {
        self.blocks.all_died || !self.blocks.dead_numbers.is_empty()
    }

    /// Takes a block's code away, if it has any.
    pub fn uninstall(&mut self, phys: u64, key: u32) {
        let Some(b) = self.blocks.block_at(phys, key) else { return };
        if b.tier.code.get().is_none() {
            return;
        }
        let block: *const Block = b;
        // SAFETY: the block stays in the cache: nothing below takes blocks out.
        let block = unsafe { &*block };
        let tier = &block.tier;
        self.forget_returns();
        self.blocks.forget_code_jumps(tier);
        tier.sever(self.blocks.arena());
        tier.code.set(None);
        self.blocks.lost_code(block, tier.first.get());
        // The block itself is still there, and may well be hot.
        self.cool(phys, key);
    }

    /// Whether code may lead straight to other code.
    pub fn links_code(&self) -> bool {
        !self.unchained && self.check.is_none()
    }

    /// Has a jump of the tier's lead straight to the code of a block by a displacement, until that code is taken away.
    ///
    /// # Safety
    /// The block is live. `link.at` is the displacement of a jump in the tier's code, mapped as long as the vCPU has
    /// the tier, which may lead to the block's code with `to` and anywhere with `link.back`; no code of this vCPU's
    /// executes.
    pub unsafe fn link_code(&mut self, block: *const Block, link: Link, to: i32) {
        // SAFETY: as the caller vouches.
        let tier = unsafe {
            link.at.cast::<i32>().write_unaligned(to);
            &(*block).tier
        };
        if !tier.links.iter().any(|l| l.at == link.at) {
            tier.links.push(self.blocks.arena(), link);
        }
    }

    /// No code is expected to be returned to: for a tier whose code goes.
    pub fn forget_returns(&mut self) {
        self.returns.forget();
    }

    /// Forgets all decoded blocks (and their code).
    pub fn flush_blocks(&mut self) {
        self.forget_returns();
        self.blocks.clear();
        self.from = (std::ptr::null(), 0);
    }

    /// Adds a block's ops with the handlers that the interpreter has for them, whatever tier it is in. False if they
    /// are not there and cannot be decoded again.
    pub fn plain_ops(&self, block: &Block, to: &mut Vec<Op>) -> bool {
        let Some(ops) = block.ops() else { return self.decode_ops_again(block, to) };
        let first = to.len();
        // SAFETY: ops are changed by the vCPU's own thread only, which is this one.
        to.extend(ops.iter().map(|op| unsafe { *op.get() }));
        to[first].run = block.tier.first.get();
        true
    }

    /// The ops of a block with code that were restored while it was recorded are of no more use.
    pub(crate) fn drop_restored(&mut self, phys: u64, key: u32) {
        let Some(block) = self.blocks.block_at(phys, key) else { return };
        let block: *const Block = block;
        // SAFETY: it was just found; none of its ops executes, as this is asked where a gate is.
        let block = unsafe { &*block };
        if block.tier.code.get().is_some() {
            self.blocks.has_code(block);
        }
    }

    /// The block at a physical address of RAM under a mode key, decoded if need be; `lin` is where the guest has it,
    /// for the log. `None` if it is not on one page of plain memory, or if there is no room for it now.
    pub fn know_block(&mut self, lin: u64, phys: u64, key: u32) -> Option<&Block> {
        if self.blocks.block_at(phys, key).is_none() {
            self.decode_ahead(lin, phys, key)?;
        }
        self.blocks.block_at(phys, key).filter(|b| b.second_page().is_none())
    }
}
