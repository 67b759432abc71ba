//! Blocks are found, or decoded from the guest's memory.
use crate::block::{Block, wraps};
use crate::cpu::Cpu;
use crate::decode::{Run, decode_op};
use crate::enter::run_code;
use crate::event::Stop;
use crate::handler::{leave_op, run_straight};
use crate::mode::ModeKey;
use crate::op::{Flow, Op};
use crate::state::{gpr, seg};
use crate::sys::flags::sti_inside;
use crate::width::copy_out;
use iced_x86::Code;
use mynah_mmu::PAGE_MASK;

/// Instructions in a block.
const MAX_BLOCK: usize = 64;
/// Bytes that are copied at once to be decoded: most blocks are shorter.
const PIECE: usize = 64;

impl Cpu {
    /// Holds the page of a physical address, before bytes of it are decoded: from now on stores to it, by whomever,
    /// come to be known.
    fn hold_page(&mut self, gpa: u64) {
        let page = gpa & !PAGE_MASK;
        if self.blocks.page(page).is_some() {
            return;
        }
        self.blocks.add_page(page);
        self.mem.hold_code(page);
        if self.sole {
            self.protect_own(page);
            return;
        }
        let writers = self.mem.writers(page);
        if writers & self.writer_bit != 0 {
            self.protect_own(page);
        }
        let others = if self.world.len() > 64 { writers } else { writers & !self.writer_bit };
        if others != 0 {
            let world = self.world.clone();
            if self.is_tentative() {
                // Nobody else runs.
                world.ask_protect_alone(self.seat, others, page);
            } else {
                world.ask_protect(self.seat, others, page);
                self.serve_protect();
            }
        }
    }

    /// The block at the current RIP, decoded if need be. An error is a fault of the fetch (in `self.fault`).
    pub(crate) fn find_block(&mut self, key: u32) -> Result<*const Block, Stop> {
        let (lin, left) = self.fetch_address()?;
        let generation = self.tlb.exec_generation(lin);
        let known = self.blocks.jump(lin, key, generation);
        if !known.is_null() {
            // SAFETY: jump-cache entries are removed when their block dies.
            let len = unsafe { (*known).len };
            if u64::from(len) <= left {
                return Ok(known);
            }
        }
        let e = self.tlb.entry(lin);
        let (phys, host) = if e.exec == lin & !PAGE_MASK {
            let host = (lin & !PAGE_MASK).wrapping_add(e.addend) as *mut u8;
            match self.ram_address(host) {
                Some(p) => (p | (lin & PAGE_MASK), Some(host)),
                None => self.fetch_page(lin)?,
            }
        } else {
            self.fetch_page(lin)?
        };
        let known = match self.blocks.stale_jump(lin, key) {
            Some(b) if b.phys == phys => Some(b),
            _ => self.blocks.block_at(phys, key),
        };
        let mut found: *const Block = match known {
            Some(b) if u64::from(b.len) <= left => b,
            _ => std::ptr::null(),
        };
        // SAFETY: null, or just taken from the table.
        let second = unsafe { found.as_ref() }.and_then(Block::second_page);
        if let Some(second) = second {
            // The mapping of the next page may have changed since.
            let next = (lin & !PAGE_MASK).wrapping_add(PAGE_MASK + 1);
            if self.fetch_page(next)?.0 & !PAGE_MASK != second {
                self.kill_block(found);
                found = std::ptr::null();
            }
        }
        if found.is_null() {
            found = self.decode_block(lin, phys, host, key, left)?;
        }
        if !wraps(lin) {
            let generation = self.tlb.exec_generation(lin);
            self.blocks.set_jump(lin, generation, found, key);
        }
        Ok(found)
    }

    /// Decodes a block that is not about to run. Nothing that the guest can see changes.
    pub(crate) fn decode_ahead(&mut self, lin: u64, phys: u64, key: u32) -> Option<()> {
        // To make room is to drop all blocks, one of which may be executing.
        if self.blocks.is_full() || (lin ^ phys) & PAGE_MASK != 0 {
            return None;
        }
        let (host, _) = self.plain(phys)?;
        // An instruction across pages would be fetched from the next page: it is not for a block that is only guessed
        // at.
        let mut copy = [0u8; 15];
        let n = (PAGE_MASK + 1 - (phys & PAGE_MASK)).min(15) as usize;
        self.mem.read(phys, &mut copy[..n]);
        decode_op(&self.model, ModeKey(key), &copy[..n], 0)?;
        let (fault, cr2) = (self.fault, self.state.cr2);
        let block = self.decode_block(lin, phys, Some(host), key, u64::MAX);
        (self.fault, self.state.cr2) = (fault, cr2);
        block.ok().map(drop)
    }

    /// The linear address to fetch from, and how many bytes are left below the limit of CS.
    fn fetch_address(&mut self) -> Result<(u64, u64), Stop> {
        let ip = self.state.gpr[gpr::RIP];
        if self.state.is_long64() {
            return Ok((ip, u64::MAX));
        }
        let cs = &self.state.seg[seg::CS];
        if ip > u64::from(cs.limit) {
            return Err(self.gp(0));
        }
        Ok((cs.base.wrapping_add(ip) & 0xffff_ffff, u64::from(cs.limit) - ip + 1))
    }

    fn decode_block(
        &mut self,
        lin: u64,
        phys: u64,
        host: Option<*mut u8>,
        key: u32,
        left: u64,
    ) -> Result<*const Block, Stop> {
        let in_page = (PAGE_MASK + 1 - (lin & PAGE_MASK)).min(left) as usize;
        self.hold_page(phys);
        let mode = ModeKey(key);
        let limit = if mode.has(ModeKey::SINGLE) || host.is_none() { 1 } else { MAX_BLOCK };
        // A copy, as far as it is wanted: all of the decoding sees the same bytes, whatever others store meanwhile.
        let mut copy = [0u8; MAX_BLOCK * 15];
        let most = in_page.min(if host.is_some() { copy.len() } else { 15 });
        let mut have = 0;
        let mut crossing = [0u8; 15];
        let mut ops = std::mem::take(&mut self.blocks.scratch);
        ops.clear();
        let mut len = 0;
        let mut second_page = None;
        let mut ended = false;
        // A STI at the end of what there is so far, as it ends a block.
        let mut after_sti = None;
        let mut cut = false;
        'copied: loop {
            let more = most.min(have + PIECE);
            self.copy_code(host, phys + have as u64, &mut copy[have..more]);
            have = more;
            let mut run = Run::new(&self.model, mode, &copy[..have], len);
            loop {
                if have < most && len + 15 > have {
                    continue 'copied;
                }
                let (mut op, mut flow) = match run.next(&self.model, len) {
                    Some(x) => x,
                    None if !ops.is_empty() => break 'copied, // crosses the page: a block of its own
                    None => {
                        let (page, decoded) =
                            self.decode_crossing(lin, left, mode, &copy[..have], &mut crossing)?;
                        second_page = Some(page);
                        decoded
                    }
                };
                if op.code == Code::Sti as u16
                    && flow == Flow::Ends
                    && limit > 1
                    && second_page.is_none()
                    && after_sti.is_none()
                {
                    after_sti = Some(op);
                    (op.run, op.helper, flow) = (run_straight, sti_inside, Flow::Straight);
                } else {
                    // Events are looked at behind it.
                    cut = after_sti.take().is_some();
                }
                len += usize::from(op.len);
                ops.push(op);
                if flow == Flow::Ends {
                    ended = true;
                    break 'copied;
                }
                if cut || second_page.is_some() || ops.len() >= limit || len >= most {
                    break 'copied;
                }
            }
        }
        if let Some(sti) = after_sti {
            // Nothing follows here: it ends the block, and the next instruction is executed by itself.
            ops.pop();
            ops.push(sti);
            ended = true;
        }
        if !ended {
            ops.push(leave_op(len, self.marks_stores));
        }
        let bytes = if second_page.is_some() { &crossing[..len] } else { &copy[..len] };
        if self.trace.is_some() {
            self.trace_decoded(lin, bytes);
        }
        let ptr = self.add_block(phys, key, second_page, bytes, &ops);
        self.blocks.scratch = ops;
        Ok(ptr)
    }

    /// Puts a new block in the place of what there was.
    fn add_block(
        &mut self,
        phys: u64,
        key: u32,
        second: Option<u64>,
        bytes: &[u8],
        ops: &[Op],
    ) -> *const Block {
        if let Some(old) = self.blocks.block_at(phys, key).map(|b| (&raw const *b).cast_mut()) {
            self.kill(&[old]);
        }
        // Walking the page tables may have written to them, and so have killed the last block of one that holds code.
        self.hold_page(phys);
        if let Some(p) = second {
            self.hold_page(p);
        }
        let block = self.blocks.add(phys, key, second, bytes, ops);
        // SAFETY: it is new, and stays until it is killed and freed.
        if self.count_block(unsafe { &*block }) {
            self.blocks.note_young(phys, key);
        }
        block
    }

    /// Decodes a block's ops again from its bytes, behind what is in `ops`; false if that gives others.
    pub(crate) fn decode_ops_again(&self, block: &Block, ops: &mut Vec<Op>) -> bool {
        let (first, mode, bytes) = (ops.len(), ModeKey(block.key), block.bytes());
        let mut run = Run::new(&self.model, mode, bytes, 0);
        let (mut len, mut ended) = (0, false);
        while len < bytes.len() {
            let next = match block.second_page() {
                None => run.next(&self.model, len),
                Some(_) => decode_op(&self.model, mode, bytes, 0),
            };
            let Some((mut op, flow)) = next.filter(|(op, _)| op.len != 0) else { return false };
            len += usize::from(op.len);
            ended = flow == Flow::Ends;
            if ended && len < bytes.len() {
                // As a block goes on behind a STI only.
                (op.run, op.helper) = (run_straight, sti_inside);
            }
            ops.push(op);
        }
        if !ended {
            ops.push(leave_op(len, self.marks_stores));
        }
        len == bytes.len() && ops.len() == first + block.op_count()
    }

    /// Gives a block its ops back if it has none; false if they could not be decoded again.
    pub(crate) fn restore_ops(&mut self, block: &Block) -> bool {
        if block.has_ops() {
            return true;
        }
        let mut ops = std::mem::take(&mut self.blocks.scratch);
        ops.clear();
        let same = self.decode_ops_again(block, &mut ops);
        if same {
            self.blocks.put_ops(block, &ops);
            if block.tier.compiled().is_some() {
                block.set_first(run_code);
            }
        }
        self.blocks.scratch = ops;
        same
    }

    /// Copies bytes of a page of code, which begins at `host` if it is plain memory, from the physical address on. The
    /// page is held.
    fn copy_code(&self, host: Option<*mut u8>, phys: u64, to: &mut [u8]) {
        match host {
            // SAFETY: `fetch_page` vouches for the whole page. Guest stores may race with this read as on hardware;
            // what is decoded is then invalidated by the store, which sees that the page is held.
            Some(p) => unsafe { copy_out(p.wrapping_add((phys & PAGE_MASK) as usize), to) },
            None => {
                for (i, b) in to.iter_mut().enumerate() {
                    *b = self.mem.phys_read(phys + i as u64, 1) as u8;
                }
            }
        }
    }

    /// Decodes an instruction that needs more bytes than the `first`, all that its page (or the segment, which has
    /// `left`) has of it. Returns the page of the others as well; all its bytes are in `crossing`.
    fn decode_crossing(
        &mut self,
        lin: u64,
        left: u64,
        mode: ModeKey,
        first: &[u8],
        crossing: &mut [u8; 15],
    ) -> Result<(u64, (Op, Flow)), Stop> {
        let n = first.len().min(15);
        crossing[..n].copy_from_slice(&first[..n]);
        if (n as u64) >= left {
            return Err(self.gp(0));
        }
        let next = (lin & !PAGE_MASK).wrapping_add(PAGE_MASK + 1);
        let next = if self.state.is_long64() { next } else { next & 0xffff_ffff };
        let (phys, host) = self.fetch_page(next)?;
        self.hold_page(phys);
        let total = (left.min(15)) as usize;
        self.copy_code(host, phys, &mut crossing[n..total]);
        let decoded = decode_op(&self.model, mode, &crossing[..total], 0);
        // Longer than 15 bytes, or beyond the limit.
        Ok((phys & !PAGE_MASK, decoded.ok_or_else(|| self.gp(0))?))
    }

    /// The guest physical address of a host address in RAM.
    pub(crate) fn ram_address(&self, host: *const u8) -> Option<u64> {
        let offset = (host as u64).wrapping_sub(self.mem.ram().base() as u64);
        let below = self.mem.below_4g();
        if offset < below {
            Some(offset)
        } else if offset < self.mem.ram().size() {
            Some((1 << 32) + offset - below)
        } else {
            None
        }
    }
}
