//! From decoded blocks to compiled code and back: the handlers that count how often a block runs, enter its code, and
//! have its ops decoded again.
//!
//! [`run_code`] is the gate of a block with code. It goes on with other code as long as there is some, and leaves to
//! the interpreter what the code leaves.
use crate::block::{Block, Gates, wraps};
use crate::board::EV_SYNC;
use crate::cpu::Cpu;
use crate::handler::{gate, leave_dead};
use crate::mode::ModeKey;
use crate::op::Op;
use crate::state::{Activity, gpr};
use crate::tier::{CodeJump, CodePlace, Compiled, LEFT_HOT, LEFT_INTERPRET, LEFT_STOPPED, Recorded};
use mynah_mmu::PAGE_MASK;

/// Dead blocks that may wait to be freed before the dispatcher is asked to.
const GRAVES: usize = 64;

/// What stands for the ops of blocks that keep none.
pub(crate) static GATES: Gates =
    Gates { compiled: gate(run_code), forgotten: gate(restore_and_run), dead: gate(leave_dead) };

/// The handler of a first op that counts.
pub(crate) fn count(cpu: &mut Cpu, op: &Op) -> *const Op {
    let block = cpu.blocks.current;
    // SAFETY: `current` is the live block whose first op this is; it stays until the dispatcher is back.
    let block = unsafe { &*block };
    let tier = &block.tier;
    let heat = tier.heat.get() + 1;
    tier.heat.set(heat);
    let first = tier.first.get();
    if heat >= cpu.hot_after || heat == cpu.known_after {
        let hot = heat >= cpu.hot_after;
        if hot {
            block.set_first(first);
        }
        let (phys, key) = (block.phys, block.key);
        if let Some(mut t) = cpu.tier.take() {
            if hot {
                t.hot(cpu, phys, key);
            } else {
                t.known(cpu, phys, key);
            }
            cpu.tier = Some(t);
        }
        if tier.code.get().is_some() {
            // There was some, or it was compiled at once. The ops are gone.
            return run_code(cpu, op);
        }
    }
    first(cpu, op)
}

/// The gate of a block that has compiled code: enters it.
pub(crate) fn run_code(cpu: &mut Cpu, _: &Op) -> *const Op {
    if cpu.recording.is_some() {
        return record(cpu);
    }
    let next = run_regions(cpu);
    cpu.leave_host_float();
    next
}

/// The gate of a block whose code was taken away: the interpreter executes it again.
pub(crate) fn restore_and_run(cpu: &mut Cpu, _: &Op) -> *const Op {
    // SAFETY: `current` is the live block whose gate this is.
    let block = unsafe { &*cpu.blocks.current };
    if !restore(cpu, block) {
        return std::ptr::null();
    }
    cpu.count_block(block);
    let first = block.first();
    // SAFETY: ops that are there stay until the block has code or is freed; ops are changed by this thread only.
    let first = unsafe { &*first };
    (first.run)(cpu, first)
}

/// Gives the current block, which was just entered, its ops back. False if the dispatcher has to look for another one.
fn restore(cpu: &mut Cpu, block: &Block) -> bool {
    let done = cpu.restore_ops(block);
    if !done {
        cpu.icount -= block.op_count() as u64;
        cpu.kill_block(block);
    }
    done
}

/// Records the block and has the interpreter execute it, instead of its code.
#[cold]
fn record(cpu: &mut Cpu) -> *const Op {
    // SAFETY: `current` is the live block whose gate this is.
    let block = unsafe { &*cpu.blocks.current };
    let lin = cpu.code_linear();
    let full = cpu.recording.as_mut().is_none_or(|r| {
        r.blocks.push(Recorded { phys: block.phys, key: block.key, lin });
        r.blocks.len() >= r.most
    });
    if full
        && let Some(recording) = cpu.recording.take()
        && let Some(mut t) = cpu.tier.take()
    {
        for r in &recording.blocks {
            cpu.drop_restored(r.phys, r.key);
        }
        t.recorded(cpu, recording.blocks);
        cpu.tier = Some(t);
    }
    if !restore(cpu, block) {
        return std::ptr::null();
    }
    let first = block.first();
    // SAFETY: ops that are there stay until the block has code once more or is freed.
    (block.tier.first.get())(cpu, unsafe { &*first })
}

fn run_regions(cpu: &mut Cpu) -> *const Op {
    let mut block = cpu.blocks.current;
    // The code counts its instructions itself.
    // SAFETY: `current` is live.
    cpu.icount -= unsafe { &*block }.op_count() as u64;
    loop {
        // SAFETY: `current` is live, or has died in code that it left at once.
        let Some(code) = (unsafe { (*block).tier.code.get() }) else { return std::ptr::null() };
        cpu.faulted = false;
        if cpu.check.is_some() {
            return run_checked(cpu, block, &code);
        }
        let rip = cpu.state.gpr[gpr::RIP];
        // SAFETY: as above.
        cpu.note_code(unsafe { &*block }, &code, rip);
        let count = cpu.icount;
        // SAFETY: installed code is kept until it is uninstalled on this thread, which does not happen while it runs;
        // it accesses the vCPU through this reference alone. The table of code that it goes on to names installed code
        // only.
        let left = unsafe { (code.enter)(cpu, code.ops, rip, code.code) };
        cpu.left[left as usize & 7] += 1;
        cpu.in_code = cpu.in_code.wrapping_add(cpu.icount.wrapping_sub(count));
        match left {
            LEFT_HOT => tell_hotter(cpu),
            LEFT_INTERPRET => {
                cpu.leave_host_float();
                cpu.interpret_one();
                if cpu.blocks.is_full() {
                    return std::ptr::null();
                }
            }
            LEFT_STOPPED if cpu.faulted => cpu.deliver_fault(),
            _ => {}
        }
        let next = cpu.go_on();
        if next.is_null() {
            return std::ptr::null();
        }
        // SAFETY: `go_on` returns a live block.
        let n = unsafe { &*next };
        if n.tier.code.get().is_none() || cpu.recording.is_some() {
            cpu.enter(next);
            return n.first();
        }
        cpu.blocks.current = next;
        block = next;
    }
}

/// Enters code that may be checked, and no other.
#[cold]
fn run_checked(cpu: &mut Cpu, block: *const Block, code: &Compiled) -> *const Op {
    let count = cpu.icount;
    // SAFETY: `current` is live.
    let left = if cpu.wants_check(unsafe { &*block }) {
        let world = (!cpu.sole).then(|| cpu.world.clone());
        let _alone = world.as_ref().map(|w| cpu.alone(w));
        if world.is_some() {
            // It has just stood still for whoever asked it to.
            cpu.events.take(EV_SYNC);
            if cpu.events.pending() & cpu.event_mask != 0 {
                // Others may have changed the code meanwhile.
                return std::ptr::null();
            }
        }
        cpu.enter_checked(code)
    } else {
        let rip = cpu.state.gpr[gpr::RIP];
        // SAFETY: as in `run_code`.
        unsafe { (code.enter)(cpu, code.ops, rip, code.code) }
    };
    cpu.left[left as usize & 7] += 1;
    cpu.in_code = cpu.in_code.wrapping_add(cpu.icount.wrapping_sub(count));
    cpu.interpret_next = left == LEFT_INTERPRET;
    if left == LEFT_HOT {
        tell_hotter(cpu);
    }
    std::ptr::null()
}

/// Tells the tier of the block at RIP.
#[cold]
fn tell_hotter(cpu: &mut Cpu) {
    let Ok(block) = cpu.find_block(cpu.mode_key) else { return };
    // SAFETY: `find_block` returns a live block.
    let (phys, key) = unsafe { ((*block).phys, (*block).key) };
    if let Some(mut t) = cpu.tier.take() {
        t.hotter(cpu, phys, key);
        cpu.tier = Some(t);
    }
}

impl Cpu {
    /// The block at RIP, after what comes before its first instruction; null if the dispatcher has to look after
    /// something.
    #[inline]
    fn go_on(&mut self) -> *const Block {
        let next = if self.single_wanted() { std::ptr::null() } else { self.next_block() };
        if !next.is_null() && self.state.activity == Activity::Running {
            return next;
        }
        self.go_on_slowly()
    }

    fn go_on_slowly(&mut self) -> *const Block {
        if self.unchained {
            return std::ptr::null();
        }
        self.leave_host_float();
        loop {
            let pending = self.events.pending() & self.event_mask != 0;
            let wants_room = self.blocks.graves() > GRAVES || self.blocks.is_full();
            if pending || self.state.activity != Activity::Running || wants_room {
                return std::ptr::null();
            }
            if self.single_wanted() {
                self.step_once();
                continue;
            }
            match self.find_block(self.mode_key) {
                Ok(b) => return b,
                Err(_) => self.deliver_fault(),
            }
        }
    }

    /// Whether execution can go on at RIP with other code at once, when code has just executed an instruction that
    /// ended its block.
    #[inline]
    pub fn can_go_on(&self) -> bool {
        !self.faulted && !self.unchained && self.kept.is_none() && self.is_undisturbed()
    }

    /// Lets other code find the code of the block at RIP, which is about to be entered: the block is there under the
    /// present mappings.
    #[inline(always)]
    fn note_code(&mut self, block: &Block, code: &Compiled, rip: u64) {
        let tag = self.tlb.code_tag(rip);
        let at = CodeJump::index(rip);
        let jump = &mut self.blocks.code_jumps[at];
        if jump.lin == rip && jump.tag == tag && jump.code == code.code {
            return;
        }
        if self.unchained || wraps(rip) {
            return;
        }
        *jump = CodeJump { lin: rip, tag, code: code.code, ops: code.ops };
        let mut known = block.tier.jumps.get();
        known.add(at as u16);
        block.tier.jumps.set(known);
        self.note_place(block, code, rip);
    }

    /// Lets other code find the code of the block at RIP by where its bytes are, if they are in RAM, and on one page.
    fn note_place(&mut self, block: &Block, code: &Compiled, rip: u64) {
        let entry = self.tlb.entry(rip);
        if block.second_page().is_some() || entry.exec != rip & !PAGE_MASK {
            return;
        }
        let host = rip.wrapping_add(entry.addend);
        if self.ram_address(host as *const u8) != Some(block.phys) {
            return;
        }
        let at = CodePlace::index(host);
        let name = CodePlace::name(host, self.tlb.code_tag(rip) as u8);
        self.blocks.code_places[at] = CodePlace { name, ops: code.ops };
        block.tier.place.set(at as u32);
    }

    /// Starts to count a block, if there is a tier that may want it; whether there is.
    pub(crate) fn count_block(&self, block: &Block) -> bool {
        let key = ModeKey(block.key);
        let fits = key.has(ModeKey::LONG) || key.has(ModeKey::FLAT) && key.has(ModeKey::D32);
        // The tier itself is not in its place while it is told of a block.
        let counts = self.hot_after != u32::MAX && fits && !key.has(ModeKey::SINGLE);
        if counts {
            block.set_first(count);
        }
        counts
    }
}
