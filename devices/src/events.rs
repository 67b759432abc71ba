//! What devices ask of the machine they are in: reset, power-off, exit, the A20 gate.
//!
//! A device is given an `Arc<dyn MachineEvents>` and calls it from whatever thread touched its registers
//! (mostly a vCPU's), with none of its own locks held. The machine is expected to note the request and
//! return; it acts on it once the access has completed. The A20 gate alone calls with its lock held, so that
//! openings and closings are heard in their order: `a20` must not touch the gate.
use crate::device::{Device, Invalid, Reset};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Who asked for a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetCause {
    /// The 8042's output port bit 0 or one of its pulse commands (0xFE).
    Keyboard,
    /// Port 92h bit 0 (fast INIT).
    Port92,
    /// The chipset's reset control register (CF9h).
    ResetControl,
    /// The chipset's watchdog.
    Watchdog,
    /// A CPU shut down (triple fault).
    TripleFault,
    /// The user or a tool asked.
    Host,
}

/// ACPI sleeping states other than S5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SleepState {
    /// Suspend to RAM.
    S3,
    /// Suspend to disk: the machine's power goes off, the guest has saved its state itself.
    S4,
}

/// What wakes a machine that sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WakeCause {
    /// The real-time clock's alarm.
    RtcAlarm,
    /// The power button.
    PowerButton,
}

/// What the machine does on behalf of its devices. All but `reset`, `power_off` and `exit` have defaults that
/// ignore the event.
pub trait MachineEvents: Send + Sync {
    /// The machine is to be reset.
    fn reset(&self, cause: ResetCause);
    /// The machine's power goes off (ACPI S5).
    fn power_off(&self);
    /// The process is to end with this status (isa-debug-exit).
    fn exit(&self, code: i32);
    /// The guest goes to sleep; S4 is a power-off unless the machine does better.
    fn sleep(&self, state: SleepState) {
        if state == SleepState::S4 {
            self.power_off();
        }
    }
    /// Something has happened that wakes a machine in S3; it is nothing to one that does not sleep.
    fn wake(&self, cause: WakeCause) {
        let _ = cause;
    }
    /// The A20 gate opens (address bit 20 passes) or closes (it is forced to 0).
    fn a20(&self, open: bool) {
        let _ = open;
    }
    /// A watchdog has expired.
    fn watchdog(&self) {
        self.reset(ResetCause::Watchdog);
    }
    /// The guest says that it has panicked (pvpanic bit 0).
    fn guest_panicked(&self) {}
    /// The guest says that it has panicked and goes on with a crash kernel (pvpanic bit 1).
    fn guest_crash_loaded(&self) {}
    /// The guest says that it is about to shut down (pvpanic bit 2).
    fn guest_shutdown(&self) {}
}

/// A machine that ignores everything.
pub struct NoEvents;

impl MachineEvents for NoEvents {
    fn reset(&self, _: ResetCause) {}
    fn power_off(&self) {}
    fn exit(&self, _: i32) {}
}

/// The A20 gate, which the 8042's output port and port 92h both operate; each shows what the other has done.
pub struct A20Gate {
    open: Mutex<bool>,
    events: Arc<dyn MachineEvents>,
}

impl A20Gate {
    /// A gate in the given position. The machine is told of changes only.
    pub fn new(open: bool, events: Arc<dyn MachineEvents>) -> Arc<Self> {
        Arc::new(Self { open: Mutex::new(open), events })
    }

    /// Opens or closes the gate.
    pub fn set(&self, open: bool) {
        let mut now = self.open.lock();
        if *now != open {
            *now = open;
            self.events.a20(open);
        }
    }

    /// Whether address bit 20 passes.
    pub fn is_open(&self) -> bool {
        *self.open.lock()
    }
}

/// What is saved of the gate.
#[derive(Serialize, Deserialize)]
pub struct A20GateV1 {
    open: bool,
}

impl Device for A20Gate {
    type State = A20GateV1;
    const KIND: &'static str = "a20";

    /// A processor that comes out of RESET must reach its first instruction, which is at an odd megabyte.
    fn reset(&self, _: Reset) {
        self.set(true);
    }

    fn save(&self) -> A20GateV1 {
        A20GateV1 { open: self.is_open() }
    }

    fn restore(&self, A20GateV1 { open }: A20GateV1) -> Result<(), Invalid> {
        self.set(open);
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Writes down what it is told.
    #[derive(Default)]
    pub(crate) struct Recorder(pub(crate) Mutex<Vec<String>>);

    impl Recorder {
        pub(crate) fn new() -> Arc<Self> {
            Arc::new(Self::default())
        }

        /// What was told since the last call.
        pub(crate) fn take(&self) -> Vec<String> {
            std::mem::take(&mut self.0.lock())
        }

        fn note(&self, what: impl Into<String>) {
            self.0.lock().push(what.into());
        }
    }

    impl MachineEvents for Recorder {
        fn reset(&self, cause: ResetCause) {
            self.note(format!("reset {cause:?}"));
        }
        fn power_off(&self) {
            self.note("power off");
        }
        fn exit(&self, code: i32) {
            self.note(format!("exit {code}"));
        }
        fn sleep(&self, state: SleepState) {
            self.note(format!("sleep {state:?}"));
        }
        fn wake(&self, cause: WakeCause) {
            self.note(format!("wake {cause:?}"));
        }
        fn a20(&self, open: bool) {
            self.note(format!("a20 {open}"));
        }
        fn guest_panicked(&self) {
            self.note("panicked");
        }
        fn guest_crash_loaded(&self) {
            self.note("crash loaded");
        }
        fn guest_shutdown(&self) {
            self.note("shutdown");
        }
    }

    /// Touches every offset of a range at every width with all kinds of values; a device that panics fails
    /// its test.
    pub(crate) fn hammer(dev: &dyn crate::bus::PortIo, ports: u16) {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for round in 0..20_000_u32 {
            let r = next();
            let offset = (r >> 32) as u16 % ports.max(1);
            let size = [1, 2, 4][(r >> 8) as usize % 3];
            let value = match round % 4 {
                0 => 0,
                1 => u32::MAX,
                2 => (r >> 40) as u32 & 0xff,
                _ => next() as u32,
            };
            if r & 1 == 0 {
                dev.write(offset, size, value);
            } else {
                dev.read(offset, size);
            }
        }
    }
}
