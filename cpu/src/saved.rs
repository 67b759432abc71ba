//! A vCPU's state as it is saved and restored: between two runs, at an instruction boundary.
//!
//! Saved are the architectural state and the signals that wait at its pins. Not saved is what follows from these (TLB,
//! decoded blocks, compiled code, segment views), what the board holds (the local APIC, the A20 gate, where random
//! numbers come from), and what only counts (executed instructions).
use crate::board::EV_LATCHED;
use crate::cpu::Cpu;
use crate::state::{Shadow, State, gpr};
use serde::{Deserialize, Serialize};

/// What is saved of a vCPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CpuV2 {
    state: State,
    /// FERR# is asserted.
    ferr: bool,
    /// Signals of [`crate::Events`] that wait.
    signals: u32,
}

impl CpuV2 {
    /// The version of this form.
    pub const VERSION: u16 = 2;
    /// What it is the state of.
    pub const KIND: &'static str = "x86-cpu";

    /// The architectural state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What no vCPU's state can be, if this is none.
    fn fault(&self) -> Option<&'static str> {
        let s = &self.state;
        if s.gpr[gpr::ZERO] != 0 || s.gpr[gpr::RIP + 1..].iter().any(|r| *r != 0) {
            return Some("a register that there is not");
        }
        if s.cpl > 3 {
            return Some("the privilege level");
        }
        if s.fpu.top > 7 || s.fpu.sw & 0x3800 != 0 {
            return Some("the top of the x87 stack");
        }
        if (s.shadow == Shadow::Event) != s.pending.is_some() {
            return Some("the pending event");
        }
        (self.signals & !EV_LATCHED != 0).then_some("the signals")
    }
}

impl Cpu {
    /// The state to be saved. Not to be called in a run.
    pub fn save(&self) -> CpuV2 {
        CpuV2 { state: self.state.clone(), ferr: self.ferr, signals: self.events.pending() & EV_LATCHED }
    }

    /// Takes on what was saved of the vCPU with the same number on a machine of the same make. The board's part is
    /// restored already.
    ///
    /// # Errors
    /// What has a value that it cannot have.
    pub fn restore(&mut self, saved: CpuV2) -> Result<(), &'static str> {
        if let Some(what) = saved.fault() {
            return Err(what);
        }
        self.state = saved.state;
        self.board.tsc_moved(self.state.msr.tsc_offset);
        // The latch on the board knows of it.
        self.ferr = saved.ferr;
        self.events.take(EV_LATCHED);
        self.events.raise(saved.signals);
        self.sync_all();
        Ok(())
    }
}
