//! `-handoff`: the guest is handed to another engine at a moment that is known beforehand.
//!
//! When the moment comes the machine is paused where it is: a port write or a byte on the console ends the vCPU's run
//! behind the instruction that made it. A thread of its own then has the vCPUs run by the other engine.
use super::handle::Handle;
use super::power::{Pause, Power};
use crate::config::{Handoff, HandoffAt};
use mynah_cpu::Cpu;
use mynah_devices::chardev::{Chardev, Receiver};
use mynah_devices::clock::{Clock, HostClock, Timer, TimerOwner};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Instructions before the wanted one from which on the vCPU executes them one by one.
const ONE_BY_ONE: u64 = 20_000_000;
/// How often a vCPU that is further away is looked at.
const LOOK: Duration = Duration::from_millis(1);

/// One that is to come.
struct Planned {
    what: Handoff,
    come: AtomicBool,
}

/// A timer, and whom it calls.
type Alarm = (Arc<dyn Timer>, Arc<dyn TimerOwner>);

/// The hand-overs that the user has planned.
pub struct Handoffs {
    all: Vec<Planned>,
    power: Arc<Power>,
    due: Mutex<mpsc::Sender<usize>>,
    /// Timers, and whom they call, which the clock holds weakly.
    timers: Mutex<Vec<Alarm>>,
}

struct Moment {
    plans: Weak<Handoffs>,
    n: usize,
}

impl TimerOwner for Moment {
    fn expired(&self) {
        if let Some(plans) = self.plans.upgrade() {
            plans.come(self.n);
        }
    }
}

impl Handoffs {
    /// Those of the configuration; nothing if there are none. `program` is what messages begin with.
    pub fn new(
        program: &str,
        plans: &[Handoff],
        machine: &Handle,
        clock: &Arc<HostClock>,
    ) -> Option<Arc<Self>> {
        if plans.is_empty() {
            return None;
        }
        let (due, come) = mpsc::channel();
        let all: Vec<_> =
            plans.iter().map(|p| Planned { what: p.clone(), come: AtomicBool::new(false) }).collect();
        let this = Arc::new(Self {
            all,
            power: machine.power().clone(),
            due: Mutex::new(due),
            timers: Mutex::default(),
        });
        for (n, plan) in plans.iter().enumerate() {
            if let HandoffAt::Time(at) = plan.at {
                let owner: Arc<dyn TimerOwner> = Arc::new(Moment { plans: Arc::downgrade(&this), n });
                let timer = clock.timer(Arc::downgrade(&owner));
                timer.arm(at.as_nanos() as u64);
                this.timers.lock().push((timer, owner));
            }
        }
        let (machine, plans, program) = (machine.clone(), plans.to_vec(), program.to_owned());
        let counts = Arc::downgrade(&this);
        // It ends with `due`.
        let thread = std::thread::Builder::new().name("mynah-handoff".into()).spawn(move || {
            loop {
                let n = if counts.upgrade().is_some_and(|this| this.next_count().is_some()) {
                    match come.recv_timeout(LOOK) {
                        Err(RecvTimeoutError::Timeout) => {
                            machine.power().kick(0);
                            continue;
                        }
                        n => n.ok(),
                    }
                } else {
                    come.recv().ok()
                };
                let Some(n) = n else { return };
                let Some(plan) = plans.get(n) else { continue };
                if let Err(e) = machine.hand_over(plan.kind) {
                    crate::cli::say(&program, &format!("-{e:#}; it goes on as before"));
                }
                let _ = machine.resume();
            }
        });
        if let Err(e) = thread {
            tracing::warn!("-handoff: no thread: {e}");
        }
        Some(this)
    }

    /// The moment of the `n`th has come, if it has not before.
    fn come(&self, n: usize) {
        if !self.all[n].come.swap(true, Ordering::SeqCst) {
            self.power.pause(Pause::User);
            let _ = self.due.lock().send(n);
        }
    }

    fn which(&self, is: impl Fn(&HandoffAt) -> bool) {
        for (n, plan) in self.all.iter().enumerate() {
            if is(&plan.what.at) {
                self.come(n);
            }
        }
    }

    /// A vCPU has written a port.
    pub fn port_written(&self, port: u16, value: u32) {
        self.which(|at| matches!(at, HandoffAt::Port(p, v) if *p == port && v.is_none_or(|v| v == value)));
    }

    /// The count of the boot processor's instructions that it is to be stopped at next, if there is one.
    pub fn next_count(&self) -> Option<u64> {
        let counts = self.all.iter().filter(|p| !p.come.load(Ordering::Relaxed));
        counts.filter_map(|p| if let HandoffAt::Instructions(n) = p.what.at { Some(n) } else { None }).min()
    }

    /// Brings the vCPU nearer to the next such count: whether it has executed instructions here, and is to be asked
    /// again before it runs on.
    pub fn count(&self, cpu: &mut Cpu) -> bool {
        let Some(next) = self.next_count() else { return false };
        if cpu.icount + ONE_BY_ONE < next {
            // Far away: somebody kicks it now and then.
            return false;
        }
        while cpu.icount < next {
            if cpu.step().is_some() {
                return true;
            }
        }
        self.which(|at| matches!(at, HandoffAt::Instructions(n) if *n <= next));
        false
    }

    /// The console that the guest writes to, watched for texts.
    pub fn watch(self: &Arc<Self>, line: Arc<dyn Chardev>) -> Arc<dyn Chardev> {
        if self.all.iter().all(|p| !matches!(p.what.at, HandoffAt::Text(_))) {
            return line;
        }
        Arc::new(Watched { line, plans: self.clone(), last: Mutex::default() })
    }
}

/// Bytes of a text that are looked for, at most.
pub const LONGEST_TEXT: usize = 256;

/// A console whose output is looked at.
struct Watched {
    line: Arc<dyn Chardev>,
    plans: Arc<Handoffs>,
    /// The last bytes that were written.
    last: Mutex<Vec<u8>>,
}

impl Watched {
    fn look(&self, bytes: &[u8]) {
        let mut last = self.last.lock();
        for &byte in bytes {
            if last.len() == LONGEST_TEXT {
                last.remove(0);
            }
            last.push(byte);
            self.plans.which(|at| matches!(at, HandoffAt::Text(text) if last.ends_with(text.as_bytes())));
        }
    }
}

impl Chardev for Watched {
    fn write(&self, bytes: &[u8]) -> usize {
        let taken = self.line.write(bytes);
        self.look(&bytes[..taken]);
        taken
    }
    fn write_all(&self, bytes: &[u8], patience: Duration) {
        self.line.write_all(bytes, patience);
        self.look(bytes);
    }
    fn room(&self) -> usize {
        self.line.room()
    }
    fn set_receiver(&self, receiver: Arc<dyn Receiver>) {
        self.line.set_receiver(receiver);
    }
    fn flush(&self, until: Instant) {
        self.line.flush(until);
    }
    fn hurry(&self) {
        self.line.hurry();
    }
    fn unsent(&self) -> u64 {
        self.line.unsent()
    }
    fn name(&self) -> String {
        self.line.name()
    }
    fn is_terminal(&self) -> bool {
        self.line.is_terminal()
    }
    fn accept_input(&self) {
        self.line.accept_input();
    }
}
