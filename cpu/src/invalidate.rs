//! Decoded blocks die: their bytes have changed, something else stands at their addresses, or there is no room. And
//! what other threads have changed in memory comes to this vCPU.
use crate::block::Block;
use crate::cpu::Cpu;
use crate::width::copy_out;
use mynah_mmu::PAGE_MASK;
use smallvec::SmallVec;

impl Cpu {
    /// Bytes of guest RAM were stored to: blocks made of others than are there now die.
    pub fn invalidate_code(&mut self, gpa: u64, len: u64) {
        self.invalidate(gpa, len, Self::is_unchanged);
    }

    /// Blocks made of these bytes die, all on one page, but for those that are to be kept.
    fn invalidate(&mut self, gpa: u64, len: u64, kept: fn(&Self, &Block) -> bool) {
        let page = gpa & !PAGE_MASK;
        let Some(held) = self.blocks.page(page) else { return };
        if !held.may_hold(gpa, len) {
            self.blocks.release_if_empty(page);
            return;
        }
        let mut quiet = true;
        let hit: SmallVec<[*mut Block; 16]> = held
            .all()
            .filter(|&b| {
                // SAFETY: pages list live blocks only.
                let b = unsafe { &*b };
                let in_first = gpa < b.phys + u64::from(b.len) && b.phys < gpa + len;
                // Bytes of a crossing instruction on its second page: at most 14.
                let in_second = b.crosses_to(page) && gpa & PAGE_MASK < 15;
                quiet &= !in_first && !in_second;
                in_second || in_first && !kept(self, b)
            })
            .collect();
        if quiet {
            held.note_quiet(gpa, len);
        }
        self.kill(&hit);
        self.blocks.release_if_empty(page);
    }

    /// Whether the bytes of a block on one page of RAM are still those it was decoded from. Boot loaders write the same
    /// number into an INT instruction before each call of the BIOS.
    fn is_unchanged(&self, block: &Block) -> bool {
        let Some(host) = self.mem.ram_page(block.phys).filter(|_| block.second_page().is_none()) else {
            return false;
        };
        let mut now = [0; 256];
        let Some(now) = now.get_mut(..block.bytes().len()) else { return false };
        // SAFETY: the block lies on one page, which `ram_page` vouches for. Others may store meanwhile; each store is told
        // of when it is made.
        unsafe { copy_out(host.wrapping_add((block.phys & PAGE_MASK) as usize), now) };
        now == block.bytes()
    }

    /// Something else stands at these physical addresses now: blocks on their pages die.
    pub(crate) fn invalidate_range(&mut self, first: u64, last: u64) {
        let (first, last) = (first & !PAGE_MASK, last & !PAGE_MASK);
        let pages: Vec<u64> = self.blocks.held_pages().filter(|p| (first..=last).contains(p)).collect();
        for page in pages {
            self.invalidate(page, PAGE_MASK + 1, |_, _| false);
        }
    }

    /// Forgets all decoded blocks: the next instruction is decoded anew. For those who change guest memory behind the
    /// vCPU's back; not while it runs.
    pub fn forget_code(&mut self) {
        self.forget_returns();
        self.blocks.clear();
    }

    pub(crate) fn kill_block(&mut self, b: *const Block) {
        self.kill(&[b.cast_mut()]);
    }

    /// Kills live blocks.
    pub(crate) fn kill(&mut self, blocks: &[*mut Block]) {
        // SAFETY: callers pass live blocks.
        if blocks.iter().any(|&b| unsafe { &*b }.code().is_some()) {
            self.forget_returns();
        }
        let mut pages: SmallVec<[u64; 4]> = SmallVec::new();
        for &b in blocks {
            // SAFETY: callers pass live blocks.
            let b = unsafe { &*b };
            self.blocks.take_out(b);
            for page in [Some(b.phys & !PAGE_MASK), b.second_page()].into_iter().flatten() {
                if !pages.contains(&page) {
                    pages.push(page);
                }
            }
        }
        for page in pages {
            self.blocks.unlist_dead(page);
        }
        for &b in blocks {
            for (phys, key) in self.blocks.retire(b) {
                self.uninstall(phys, key);
            }
        }
    }

    /// Has decoded blocks take up to so many bytes of the host's memory, and at least 1 MiB; they are dropped. Not
    /// while the vCPU runs.
    pub fn bound_blocks(&mut self, bytes: usize) {
        self.flush_blocks();
        self.blocks.free_dead();
        self.blocks.bound(bytes);
    }

    /// Bytes of the host's memory that decoded blocks take.
    pub fn block_bytes(&self) -> usize {
        self.blocks.bytes()
    }

    /// Between two instructions: frees what has died, and makes room if there is none.
    #[inline(always)]
    pub(crate) fn tidy_blocks(&mut self) {
        if self.blocks.is_full() {
            self.flush_blocks();
        } else if self.blocks.wants_cooling() {
            self.blocks.cool_down();
        }
        if self.blocks.free_dead() {
            self.from = (std::ptr::null(), 0);
        }
    }

    /// The physical map, A20 or bytes of code changed.
    pub(crate) fn memory_changed(&mut self) {
        self.serve_protect();
        let changes = self.inbox.lock().take();
        if let Some(open) = changes.a20 {
            self.a20_mask = if open { !0 } else { !(1 << 20) };
            self.sync_paging();
        }
        if changes.flush {
            self.tlb.flush_all();
            self.sync_mode();
        }
        for (first, last) in changes.map {
            self.invalidate_range(first, last);
        }
        if changes.all_code {
            self.flush_blocks();
        }
        for (gpa, len) in changes.code {
            self.invalidate_code(gpa, len);
        }
    }

    /// Gives up fast writes to the pages that other vCPUs are about to decode. To be done whenever the vCPU has waited
    /// for others, before it uses its TLB again.
    pub(crate) fn serve_protect(&mut self) {
        let (pages, all, asked) = {
            let mut inbox = self.inbox.lock();
            let all = std::mem::take(&mut inbox.protect_all);
            (std::mem::take(&mut inbox.protect), all, inbox.asked)
        };
        if all {
            self.tlb.flush_all();
        } else if pages.is_empty() {
            return;
        }
        for gpa in pages {
            self.protect_own(gpa);
        }
        self.world.protected(self.seat, asked);
    }

    /// Gives up this vCPU's fast writes to a page.
    pub(crate) fn protect_own(&mut self, gpa: u64) {
        if let Some(host) = self.mem.ram_page(gpa) {
            self.tlb.protect_host_page(host);
        }
        // With more vCPUs than bits the bit may be another's, too.
        if self.world.len() <= 64 {
            self.mem.forget_writer(gpa, self.writer_bit);
        }
    }
}
