//! What may come between two instructions, as data: the exceptions that one raises and why it stopped, the events that
//! are delivered through the IVT or the IDT, and why a run of the vCPU came back.
use serde::{Deserialize, Serialize};

/// Why an instruction did not complete. The details of a fault are in [`Cpu::fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It raised the exception in [`Cpu::fault`]; RIP is to be that of the instruction.
    Fault,
    /// It switched to another task, and raised the exception in [`Cpu::fault`] there: RIP is the new task's already.
    FaultInNewTask,
    /// Leave the block with RIP at this instruction: it will be executed (or go on, as REP) when it comes round again.
    Again,
}

/// An exception to be delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exception {
    /// Vector.
    pub vector: u8,
    /// Error code, for the vectors that push one.
    pub error: Option<u32>,
}

/// Exception vectors (SDM volume 3A, table 6-1).
pub mod vector {
    #![allow(missing_docs)]
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

/// Why [`Cpu::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Someone raised `EV_KICK`.
    Kick,
    /// HLT or MWAIT: nothing to do until an event.
    Halt,
    /// Triple fault.
    Shutdown,
    /// The instruction budget given to `run` is used up.
    Budget,
}

/// Where an event comes from: decides privilege checks, the EXT bit and how a second fault combines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// A maskable interrupt.
    External,
    /// NMI.
    Nmi,
    /// An exception that the processor raised.
    Exception,
    /// INT n.
    SoftInt,
    /// INT3 (opcode CC).
    SoftInt3,
    /// INTO.
    IntO,
    /// INT1 (opcode F1).
    IceBp,
}

impl EventKind {
    /// Raised by an instruction that asks for it: the gate's DPL is checked, errors have EXT clear.
    pub fn is_soft(self) -> bool {
        matches!(self, Self::SoftInt | Self::SoftInt3 | Self::IntO)
    }
}

/// An event to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Vector.
    pub vector: u8,
    /// Source.
    pub kind: EventKind,
    /// Error code to push.
    pub error: Option<u32>,
}

impl From<Exception> for Event {
    fn from(e: Exception) -> Self {
        Self { vector: e.vector, kind: EventKind::Exception, error: e.error }
    }
}
