//! The run loop: the dispatcher looks at events, delivers faults and interrupts, finds or decodes blocks, and has
//! handlers go from op to op.
use crate::accel::Signals;
use crate::block::Block;
use crate::board::{EV_INIT, EV_INTR, EV_KICK, EV_MEMORY, EV_NMI, EV_SIPI, EV_SIPI_VECTOR, EV_SYNC, EV_TIER};
use crate::cpu::Cpu;
use crate::event::{Event, EventKind, Exit, vector};
use crate::mode::ModeKey;
use crate::state::{Activity, Shadow, fl, gpr, seg};

impl Cpu {
    /// Runs until something has to be done outside. The other vCPUs may count on this one to come to instruction
    /// boundaries until then.
    pub fn run(&mut self) -> Exit {
        self.among_others(Self::run_inside)
    }

    fn run_inside(&mut self) -> Exit {
        loop {
            self.tidy_blocks();
            if self.events.pending() & self.event_mask != 0
                && let Some(exit) = self.handle_events()
            {
                return exit;
            }
            match self.state.activity {
                Activity::Running => {}
                Activity::Halted | Activity::WaitSipi => return Exit::Halt,
                Activity::Shutdown => return Exit::Shutdown,
            }
            if self.single_wanted() {
                self.step_once();
                continue;
            }
            let block = match self.find_block(self.mode_key) {
                Ok(b) => b,
                Err(_) => {
                    self.deliver_fault();
                    continue;
                }
            };
            self.link(block);
            self.execute(block);
            if self.faulted {
                self.deliver_fault();
            } else if std::mem::take(&mut self.interpret_next) {
                self.interpret_one();
            }
        }
    }

    /// Interprets the instruction at RIP: what compiled code would not do itself.
    pub(crate) fn interpret_one(&mut self) {
        self.from = (std::ptr::null(), 0);
        match self.find_block(self.mode_key | ModeKey::SINGLE) {
            Ok(block) => {
                self.single = true;
                self.execute(block);
                self.single = false;
                self.from = (std::ptr::null(), 0);
                if self.faulted {
                    self.deliver_fault();
                }
            }
            Err(_) => self.deliver_fault(),
        }
    }

    /// Executes one instruction (or one iteration of a repeated one), with the interrupt, trap or fault that follows
    /// from it. Events are looked at first, as `run` does.
    pub fn step(&mut self) -> Option<Exit> {
        self.tidy_blocks();
        if self.events.pending() & self.event_mask != 0
            && let Some(exit) = self.handle_events()
        {
            return Some(exit);
        }
        match self.state.activity {
            Activity::Running => {}
            Activity::Halted | Activity::WaitSipi => return Some(Exit::Halt),
            Activity::Shutdown => return Some(Exit::Shutdown),
        }
        self.step_once();
        None
    }

    pub(crate) fn single_wanted(&self) -> bool {
        self.state.rflags & (fl::TF | fl::RF) != 0 || self.state.shadow != Shadow::None || self.debug_armed()
    }

    pub(crate) fn execute(&mut self, block: *const Block) {
        if self.trace.is_some() {
            // SAFETY: callers pass a live block.
            self.trace_block(unsafe { &*block });
        }
        self.enter(block);
        self.faulted = false;
        // SAFETY: `find_block` gives a live block, and blocks stay allocated until `free_dead`. A handler returns
        // null, the op after `op` in its block (there is one: the last op of a block never falls through), or the
        // first op of a live block.
        let mut op = unsafe { (*block).first() };
        while !op.is_null() {
            // SAFETY: as above.
            let o = unsafe { &*op };
            op = (o.run)(self, o);
        }
    }

    pub(crate) fn link(&mut self, to: *const Block) {
        let (from, slot) = std::mem::replace(&mut self.from, (std::ptr::null(), 0));
        if from.is_null() || self.unchained {
            return;
        }
        // SAFETY: `from` was the current block when the dispatcher was entered; if it died since, it is marked so, and
        // it is freed only by `free_dead` at the head of the loop, which clears `from`.
        let (f, t) = unsafe { (&*from, &*to) };
        // A link must hold wherever the page is mapped: both blocks on one page, at the distance that the branch has.
        let same_page = f.phys >> 12 == t.phys >> 12 && f.phys.wrapping_add(self.from_relative) == t.phys;
        let whole = f.second_page().is_none() && t.second_page().is_none();
        if same_page && whole && f.key == t.key && !f.is_dead() {
            f.link[slot].set(to);
        }
    }

    pub(crate) fn step_once(&mut self) {
        self.from = (std::ptr::null(), 0);
        let trap = self.state.rflags & fl::TF != 0;
        let resumed = self.state.rflags & fl::RF != 0;
        let shadow = std::mem::replace(&mut self.state.shadow, Shadow::None);
        if let Some(ev) = self.state.pending.take() {
            self.deliver(ev);
            return;
        }
        let armed = self.debug_armed();
        // Data breakpoints that MOV SS met are reported behind the instruction that follows it.
        self.debug_hits = if shadow == Shadow::MovSs { self.debug_hits } else { 0 };
        if armed && self.state.rflags & fl::RF == 0 && shadow != Shadow::MovSs {
            let lin = self.state.gpr[gpr::RIP].wrapping_add(if self.state.is_long64() {
                0
            } else {
                self.state.seg[seg::CS].base
            });
            let hit = self.instruction_breakpoint(lin);
            if hit != 0 {
                self.debug_exception(hit);
                return;
            }
        }
        let block = match self.find_block(self.mode_key | ModeKey::SINGLE) {
            Ok(b) => b,
            Err(_) => {
                self.deliver_fault();
                return;
            }
        };
        let from = self.state.gpr[gpr::RIP];
        self.single = true;
        self.watch = armed;
        self.untraced = false;
        self.execute(block);
        self.watch = false;
        self.single = false;
        self.from = (std::ptr::null(), 0);
        if self.faulted {
            self.deliver_fault();
            return;
        }
        if resumed {
            self.state.rflags &= !fl::RF;
        }
        let mut hits = self.debug_hits;
        // SAFETY: blocks stay allocated until `free_dead`, dead or not, and a block has an op.
        if trap && !self.untraced && self.step_traps(unsafe { &*(*block).first() }, from) {
            hits |= 1 << 14;
        }
        if hits != 0 && self.state.shadow != Shadow::MovSs {
            if self.state.pending.is_some() {
                // The trap of a task switch, which reports the instruction's as well.
                self.note_debug_hits(hits);
            } else {
                self.debug_exception(hits);
            }
        }
        self.sync_events();
    }

    /// Delivers #DB at RIP, with `hits` added to DR6.
    fn debug_exception(&mut self, hits: u64) {
        self.note_debug_hits(hits);
        self.deliver(Event { vector: vector::DB, kind: EventKind::Exception, error: None });
    }

    pub(crate) fn deliver_fault(&mut self) {
        self.faulted = false;
        self.faults = self.faults.wrapping_add(1);
        let e = self.fault;
        self.deliver(Event { vector: e.vector, kind: EventKind::Exception, error: e.error });
    }

    #[inline(never)]
    pub(crate) fn handle_events(&mut self) -> Option<Exit> {
        match self.take_signals() {
            Signals::Leave(exit) => return Some(exit),
            Signals::Changed => return None,
            Signals::None => {}
        }
        let pending = self.events.pending() & self.event_mask;
        if matches!(self.state.activity, Activity::WaitSipi | Activity::Shutdown) {
            return None;
        }
        if pending & EV_NMI != 0 {
            self.events.take_nmi();
            self.state.activity = Activity::Running;
            self.deliver(Event { vector: vector::NMI, kind: EventKind::Nmi, error: None });
            return None;
        }
        if pending & EV_INTR != 0
            && let Some(v) = self.board.acknowledge()
        {
            self.state.activity = Activity::Running;
            self.deliver(Event { vector: v, kind: EventKind::External, error: None });
        }
        None
    }

    /// Acts on the signals that are the same for all engines: all but NMI and the interrupt pin. Between two
    /// instructions, with the state at hand.
    pub fn take_signals(&mut self) -> Signals {
        self.from = (std::ptr::null(), 0);
        let mut pending = self.events.pending() & self.event_mask;
        if pending & EV_KICK != 0 {
            self.events.take(EV_KICK);
            return Signals::Leave(Exit::Kick);
        }
        if pending & EV_SYNC != 0 {
            self.events.take(EV_SYNC);
            self.world.leave(self.seat);
            self.world.enter(self.seat);
            pending = self.events.pending() & self.event_mask;
        }
        if pending & EV_MEMORY != 0 {
            self.events.take(EV_MEMORY);
            self.memory_changed();
        }
        if pending & EV_TIER != 0 {
            self.events.take(EV_TIER);
            if let Some(mut t) = self.tier.take() {
                t.ready(self);
                self.tier = Some(t);
            }
        }
        if pending & EV_INIT != 0 {
            self.events.take(EV_INIT);
            self.init();
            return Signals::Changed;
        }
        if pending & EV_SIPI != 0 {
            let bits = self.events.take(EV_SIPI | EV_SIPI_VECTOR);
            if self.state.activity == Activity::WaitSipi {
                self.sipi((bits >> 24) as u8);
            }
            return Signals::Changed;
        }
        Signals::None
    }
}
