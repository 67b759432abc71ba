//! The seam between a machine and what executes its guest: an [`Accelerator`] runs a vCPU to its next exit.
//!
//! The vCPU ([`Cpu`]) holds the whole architectural state before each run and after it, whoever ran it, so a guest moves
//! from one accelerator to another between two runs. Ports, local APIC and MSRs of the board are asked for by
//! [`crate::Board`], memory by [`mynah_mmu::PhysMemory`], and signals come by [`crate::Events`], in all of them: none
//! has exits of its own to be handled outside.
use crate::board::{EV_INIT, EV_KICK, EV_MEMORY, EV_SIPI, EV_SYNC, EV_TIER};
use crate::cpu::Cpu;
use crate::event::Exit;
use crate::state::{Activity, Shadow, seg};
use crate::world::World;
use mynah_mmu::Gpa;
use std::sync::Arc;

/// An engine cannot go on: the host's fault, not the guest's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EngineError(pub String);

/// What executes a vCPU's instructions.
pub trait Accelerator: Send {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// Runs until something has to be done outside. The vCPU's state is whole before and after, at an instruction
    /// boundary.
    ///
    /// # Errors
    /// The host's part does not work.
    fn run(&mut self, cpu: &mut Cpu) -> Result<Exit, EngineError>;

    /// Executes one instruction, or one iteration of a repeated one, with the trap or fault that follows from it, and
    /// nothing that is pending before it. The vCPU's state is whole before and after.
    ///
    /// # Errors
    /// As with [`Accelerator::run`]; the engine cannot stop at each instruction.
    fn step(&mut self, _cpu: &mut Cpu) -> Result<(), EngineError> {
        Err(EngineError(format!("-accel {}: it does not execute single instructions", self.name())))
    }

    /// How often the host's hypervisor has come back with something to be done; 0 where there is none.
    fn exits(&self) -> u64 {
        0
    }
}

/// The interpreter, with the tier above it that the vCPU has, if it has one: [`Cpu::run`].
pub struct Software;

impl Accelerator for Software {
    fn name(&self) -> &'static str {
        "software"
    }

    fn run(&mut self, cpu: &mut Cpu) -> Result<Exit, EngineError> {
        Ok(cpu.run())
    }
}

/// What [`Cpu::take_signals`] has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signals {
    /// Nothing that changes the state.
    None,
    /// INIT or a start-up IPI: the state is another.
    Changed,
    /// The run is over.
    Leave(Exit),
}

/// The signals that need the state at hand: what [`Cpu::take_signals`] acts on.
pub const SIGNALS: u32 = EV_KICK | EV_SYNC | EV_MEMORY | EV_TIER | EV_INIT | EV_SIPI;

/// For accelerators outside of this crate.
impl Cpu {
    /// The vCPUs of the machine.
    pub fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// Its place among them.
    pub fn seat(&self) -> usize {
        self.seat
    }

    /// Runs guest code by `run`, which looks at signals between instructions: the other vCPUs count on this one to come
    /// to instruction boundaries until it returns.
    #[inline(always)]
    pub fn among_others<R>(&mut self, run: impl FnOnce(&mut Self) -> R) -> R {
        self.world.enter(self.seat);
        let result = run(self);
        self.world.leave(self.seat);
        result
    }

    /// It has executed HLT, and RIP is behind that: what STI held off is not any more, whatever the host says.
    pub fn halted(&mut self) {
        self.state.activity = Activity::Halted;
        if self.state.shadow != Shadow::Event {
            self.state.shadow = Shadow::None;
            self.sync_events();
        }
    }

    /// Forgets all decoded code: memory may change behind the vCPU's back from now on. Cheap if there is little.
    pub fn drop_code(&mut self) {
        /// With more pages all tables are cleared at once.
        const FEW: usize = 64;
        match self.blocks.held_pages().take(FEW + 1).count() {
            0 => {}
            n if n <= FEW => {
                self.invalidate_range(0, u64::MAX);
                self.tidy_blocks();
            }
            _ => self.flush_blocks(),
        }
        self.tlb.flush_all();
        self.sync_mode();
    }

    /// The state was replaced as a whole by one who has kept no account of changes: what is derived from the state is
    /// made anew. There is no decoded code ([`Self::drop_code`]).
    pub fn taken_over(&mut self) {
        self.state.cpl = self.state.seg[seg::SS].dpl();
        self.sync_all();
    }

    /// Where this vCPU's local APIC answers, if `gpa` is there: the offset in its page.
    pub fn apic_offset(&self, gpa: Gpa) -> Option<u32> {
        (gpa & !mynah_mmu::PAGE_MASK == self.apic_page).then_some((gpa & mynah_mmu::PAGE_MASK) as u32)
    }

    /// A debug log or a check wants to see each instruction, which only the interpreter shows.
    pub fn is_logged(&self) -> bool {
        self.trace.is_some() || self.check.is_some()
    }
}
