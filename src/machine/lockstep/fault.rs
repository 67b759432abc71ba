//! Faults on purpose: a test sees by them that what goes wrong is found.
use mynah_cpu::Cpu;
use mynah_cpu::lockstep::Taken;
use mynah_cpu::state::fl;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// CF is the other one.
    Carry,
    /// A bit of a register is the other one.
    Register(usize),
    /// A bit of the byte at this address is the other one.
    Memory(u64),
    /// An interrupt is not delivered.
    Interrupt,
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// It is the leader's, and not the follower's.
    pub by_leader: bool,
    /// The instruction, as a count from 1, behind which it happens; the leader's happens behind the block of that one.
    pub at: u64,
    /// What goes wrong.
    pub what: What,
}

impl Fault {
    /// An engine has come from instruction `before` to `now`.
    pub(super) fn happen(&self, cpu: &mut Cpu, before: u64, now: u64) {
        if !(before < self.at && self.at <= now) {
            return;
        }
        match self.what {
            What::Carry => {
                let flags = cpu.state.arith_flags() ^ fl::CF;
                cpu.state.set_arith_flags(flags);
            }
            What::Register(n) => cpu.state.gpr[n & 15] ^= 1,
            What::Memory(gpa) => cpu.mem.write_u8(gpa, cpu.mem.read_u8(gpa) ^ 1),
            What::Interrupt => {}
        }
    }

    /// Whether this event, behind so many instructions, is to be lost.
    pub(super) fn loses(&self, taken: Taken, count: u64) -> bool {
        self.what == What::Interrupt && matches!(taken, Taken::Interrupt(_)) && count >= self.at
    }
}
