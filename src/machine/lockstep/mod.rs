//! Two engines in step: `mynah compare --lockstep`.
//!
//! ```text
//!   machine -- leader (vCPU, RAM, all devices) --Recorder--> Log --Player--> follower (vCPU, RAM)
//!                  stretch of instructions                      the same ones, one at a time
//!                        \______________ compare: states, pages written ______________/
//!                               equal: a spare copy of RAM follows, and on
//!                               not:   both go back to it, and again in stretches of one block
//! ```
//!
//! The leader is an engine that stops where it likes: at a signal, which a ticker raises every [`TICK`]. The follower
//! is one that executes single instructions; the interpreter takes whole blocks up to the last of a stretch. The
//! leader's thread does both, in turns; devices run on, and wait with what they write to RAM while the leader is at it
//! ([`record`]).
//!
//! * [`compare`]: what differs. [`narrow`]: where it began. [`verdict`]: what is said of it. [`fault`]: faults on
//!   purpose.
//!
//! Flags that an instruction leaves undefined are made the same behind each stretch. A stretch of one block that
//! differs and looks at such flags (PUSHF does) is excused: the follower takes over the leader's state, which is counted.
pub mod compare;
pub mod fault;
mod narrow;
mod record;
pub mod verdict;

use compare::{Difference, Place};
use fault::Fault;
use mynah_cpu::board::{EV_STRETCH, Events};
use mynah_cpu::lockstep::{Followed, Point, Taken};
use mynah_cpu::state::{Activity, State, gpr};
use mynah_cpu::{Accelerator, Cpu, EngineError, Exit};
use mynah_mmu::{MapCopy, PAGE_SIZE, PhysMemory};
use record::{Log, Player, Recorder, Who};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use verdict::{Parting, Verdict};

/// How long a stretch is, roughly.
const TICK: Duration = Duration::from_micros(200);
/// How many instructions too many the leader may have counted: a repeated one that its code was left within.
const SLACK: u64 = 1;
/// Instructions at the end of a stretch that the follower executes one by one the first time.
const TAIL: u64 = 64;
/// Instructions that are shown before a divergence.
pub const SHOWN: usize = 50;
/// Iterations of one repeated instruction that the follower makes at most.
const MOST_ITERATIONS: u64 = 1 << 32;

/// Makes the engine that follows, for a vCPU with a memory of its own.
pub type MakeFollower = Box<dyn FnOnce(&Cpu) -> anyhow::Result<Box<dyn Accelerator>> + Send>;

/// What is compared.
pub struct Options {
    /// The leader's name, and the follower's.
    pub names: [String; 2],
    /// The follower's engine; the interpreter if there is none.
    pub follower: Option<MakeFollower>,
    /// It is over after so many instructions.
    pub instructions: Option<u64>,
    /// It is over after this time.
    pub time: Option<Duration>,
    /// Fails on purpose, for tests.
    pub fault: Option<Fault>,
}

/// Runs a vCPU by one engine, and another one beside it.
pub struct Lockstep {
    options: Options,
    twin: Option<Twin>,
    /// Told of the end.
    end: Box<dyn FnMut(&Verdict) + Send>,
    over: bool,
    until: Option<Instant>,
    counts: Counts,
    /// The count of instructions when it began.
    first: u64,
    /// An interrupt was lost on purpose here.
    lost_at: Option<u64>,
}

/// What has been compared so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Instructions.
    pub instructions: u64,
    /// Comparisons of whole states and of the pages that were written.
    pub comparisons: u64,
    /// Blocks that differed and looked at undefined flags.
    pub excused: u64,
    /// Stretches with other bytes in memory, which were the same when they ran once more.
    pub void: u64,
    /// Interrupts and other events from outside.
    pub events: u64,
}

/// The follower, and what goes with it.
struct Twin {
    cpu: Box<Cpu>,
    engine: Option<Box<dyn Accelerator>>,
    /// RAM as it was when both were compared last.
    spare: Arc<PhysMemory>,
    log: Arc<Log>,
    /// The map of devices, and how often it had changed then.
    map: Arc<MapCopy>,
    map_generation: u64,
    /// The leader's state when it was left.
    left: Option<State>,
    /// The last instructions.
    history: Vec<Followed>,
    ticker: Arc<Ticker>,
}

/// What one stretch has come to.
struct Stretch {
    begin: [Point; 2],
    taken: Taken,
    /// The leader's count behind it.
    end: u64,
    /// What devices have written since.
    between: Vec<(u64, Vec<u8>)>,
}

/// Ends stretches: every now and then, or at once.
struct Ticker {
    armed: AtomicBool,
    now: AtomicBool,
    hurried: AtomicBool,
}

impl Ticker {
    fn start(events: &Arc<Events>) -> std::io::Result<Arc<Self>> {
        let off = || AtomicBool::new(false);
        let this = Arc::new(Self { armed: off(), now: off(), hurried: off() });
        let (weak, events): (Weak<Self>, _) = (Arc::downgrade(&this), events.clone());
        let thread = std::thread::Builder::new().name("mynah-lockstep".into());
        thread.spawn(move || {
            while let Some(this) = weak.upgrade() {
                while this.hurried.load(Ordering::Relaxed) {
                    if this.now.load(Ordering::Acquire) {
                        events.raise(EV_STRETCH);
                        this.now.store(false, Ordering::Release);
                    }
                    std::hint::spin_loop();
                }
                if this.armed.load(Ordering::Relaxed) {
                    events.raise(EV_STRETCH);
                }
                drop(this);
                std::thread::sleep(TICK);
            }
        })?;
        Ok(this)
    }

    /// Ends what `run` does at once. While it is hurried.
    fn hurry(&self, run: impl FnOnce()) {
        self.now.store(true, Ordering::Release);
        run();
        while self.now.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
    }
}

impl Lockstep {
    /// Runs a vCPU by the engine that it has now; `end` is told when it is over: a divergence, or a limit.
    pub fn new(options: Options, end: Box<dyn FnMut(&Verdict) + Send>) -> Self {
        Self {
            options,
            twin: None,
            end,
            over: false,
            until: None,
            counts: Counts::default(),
            first: 0,
            lost_at: None,
        }
    }

    /// What has been compared so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The machine has ended by itself.
    pub fn finish(&mut self) {
        self.over(Verdict::Same(self.counts));
    }

    /// Whether the follower keeps parts of the state as a hypervisor does.
    fn loosely(&self) -> bool {
        self.twin.as_ref().is_some_and(|t| t.engine.is_some())
    }

    /// The follower comes to be, as a copy of the leader. On the leader's thread.
    fn set_up(&mut self, leader: &mut Cpu) -> anyhow::Result<()> {
        let log = Log::new();
        let memory = leader.mem.clone();
        let recorder = |board: Option<Arc<dyn mynah_cpu::Board>>| {
            let (log, events) = (log.clone(), leader.events.clone());
            Arc::new(Recorder { log, board, events, memory: Arc::downgrade(&memory) })
        };
        // From here on nothing that devices write is missed.
        memory.set_tap(recorder(None));
        log.close();
        let twin = memory.twin()?;
        let spare = memory.twin()?;
        memory.take_all_dirty();
        let player = Arc::new(Player { log: log.clone(), memory: Arc::downgrade(&twin) });
        twin.set_tap(player.clone());
        let _ = log.take_between();
        log.open();
        leader.board = recorder(Some(leader.board.clone()));
        // The last answers, which the follower begins with.
        let board = leader.board.clone();
        let _ = (board.cr8(), board.apic_page(), board.ignne());
        let _ = board.apic_msr_read(mynah_cpu::sys::msr::index::APIC_BASE);
        log.begin(memory.map_generation());
        log.end();
        leader.mark_stores(true);
        let mut cpu = Cpu::new(leader.index, twin, player, Arc::default(), leader.model.clone());
        let world = mynah_cpu::World::new([(cpu.events.clone(), cpu.inbox.clone())]);
        cpu.join(&world, 0);
        cpu.mark_stores(true);
        cpu.go_back(&leader.point());
        let engine = self.options.follower.take().map(|make| make(&cpu)).transpose()?;
        let map_generation = memory.map_generation();
        let ticker = Ticker::start(&leader.events)?;
        // A hypervisor takes long for an instruction: its stretches are as short as can be.
        ticker.hurried.store(engine.is_some(), Ordering::Relaxed);
        self.twin = Some(Twin {
            cpu,
            engine,
            spare,
            log,
            map: Arc::new(memory.map_copy()),
            map_generation,
            left: Some(leader.state.clone()),
            history: Vec::new(),
            ticker,
        });
        self.until = self.options.time.map(|t| Instant::now() + t);
        self.first = leader.icount;
        Ok(())
    }

    fn over(&mut self, verdict: Verdict) {
        if !std::mem::replace(&mut self.over, true) {
            (self.end)(&verdict);
        }
    }

    /// What comes between two instructions, on the leader; on purpose it may be lost.
    fn take_events(&mut self, leader: &mut Cpu) -> Taken {
        let before = leader.point();
        let taken = leader.take_events();
        if let Some(f) = self.options.fault
            && f.loses(taken, before.icount - self.first)
            && self.lost_at.is_none()
        {
            self.lost_at = Some(before.icount);
            if f.by_leader {
                leader.go_back(&before);
            }
        }
        taken
    }

    /// Delivers what was taken to one of them, once more to the leader.
    fn deliver(&self, cpu: &mut Cpu, taken: Taken, leader: bool) {
        let lost =
            self.lost_at == Some(cpu.icount) && self.options.fault.is_some_and(|f| f.by_leader == leader);
        if !lost {
            cpu.deliver_taken(taken);
        }
    }

    /// The leader runs; then it fails, on purpose.
    fn run_leader(&self, leader: &mut Cpu) {
        let before = leader.icount - self.first;
        leader.run_stretch();
        if self.loosely() {
            // A hypervisor may execute a repeated instruction as a whole.
            leader.events.take(EV_STRETCH);
            while leader.state.activity == Activity::Running
                && leader.repeats_itself()
                && !leader.follow_whole().1
            {}
        }
        if let Some(f) = self.options.fault.filter(|f| f.by_leader) {
            f.happen(leader, before, leader.icount - self.first);
        }
    }

    /// Has the follower go on to where the leader is, `count` instructions at most. Its instructions are added to
    /// `trail`, all of them if `each`, or else the last.
    fn follow(
        &mut self,
        leader: &State,
        count: u64,
        each: bool,
        trail: &mut Vec<Followed>,
    ) -> Result<(), EngineError> {
        let fault = self.options.fault.filter(|f| !f.by_leader);
        let first = self.first;
        let Some(twin) = &mut self.twin else { return Ok(()) };
        let begin = twin.cpu.icount;
        if !each && twin.engine.is_none() && count > TAIL {
            twin.cpu.follow_blocks(count - TAIL);
            if let Some(f) = fault {
                let now = twin.cpu.icount - first;
                f.happen(&mut twin.cpu, begin - first, now);
            }
        }
        let mut iterations = 0;
        let mut over = true;
        // Exceptions are not counted.
        let most = trail.len() as u64 + count.saturating_mul(2) + SHOWN as u64;
        loop {
            let steps = twin.cpu.icount - begin;
            if steps + SLACK >= count
                && twin.cpu.state.gpr[gpr::RIP] == leader.gpr[gpr::RIP]
                && compare::same_registers(leader, &twin.cpu.state)
                && twin.log.left().is_none()
                && twin.cpu.state.activity == leader.activity
            {
                let flags = leader.arith_flags() ^ twin.cpu.state.arith_flags();
                if flags == 0 || twin.cpu.undefined_behind(trail, flags) == flags {
                    return Ok(());
                }
            }
            // A repeated instruction may have been left within.
            let within = steps == count
                && twin.cpu.state.gpr[gpr::RIP] == leader.gpr[gpr::RIP]
                && twin.cpu.repeats_itself();
            if over && steps >= count && !within
                || iterations > MOST_ITERATIONS
                || trail.len() as u64 > most
                || twin.cpu.state.activity != Activity::Running
                || twin.log.wrong(Who::Follower).is_some()
            {
                return Ok(());
            }
            let before = twin.cpu.icount;
            // The last may have been left within.
            let (done, is_over) = twin.step(over && steps + 2 < count)?;
            if over {
                trail.push(done);
                iterations = 0;
            } else {
                iterations += 1;
            }
            over = is_over;
            if let Some(f) = fault {
                let now = twin.cpu.icount - first;
                f.happen(&mut twin.cpu, before - first, now);
            }
        }
    }

    /// What differs now, and the pages that were written meanwhile. Flags that are undefined behind `trail` are made
    /// the same. The stretch is over for the follower.
    fn differences(&mut self, leader: &Cpu, trail: &[Followed]) -> (Vec<Difference>, BTreeSet<u64>) {
        let Some(twin) = &self.twin else { return Default::default() };
        let left = twin.log.left();
        twin.log.finish(Who::Follower, &twin.cpu.mem);
        self.differences_with(leader, trail, left)
    }

    /// As [`Lockstep::differences`], while there may be more to come; `left` is what the follower has not asked for.
    fn differences_with(
        &mut self,
        leader: &Cpu,
        trail: &[Followed],
        left: Option<String>,
    ) -> (Vec<Difference>, BTreeSet<u64>) {
        let (mut all, written) = self.differences_but_log(leader, trail);
        if let (true, Some(left)) = (all.iter().all(|d| d.place != Place::Board), left) {
            let values = [left, "not this".into()];
            all.push(Difference { place: Place::Board, name: "requests".into(), values });
        }
        (all, written)
    }

    /// As [`Lockstep::differences`], whatever the log still has.
    fn differences_but_log(&mut self, leader: &Cpu, trail: &[Followed]) -> (Vec<Difference>, BTreeSet<u64>) {
        let loosely = self.loosely();
        let Some(twin) = &mut self.twin else { return Default::default() };
        let mut all = Vec::new();
        if let Some(wrong) = twin.log.wrong(Who::Follower) {
            let values = ["not this".into(), wrong];
            all.push(Difference { place: Place::Board, name: "requests".into(), values });
        }
        let flags = leader.state.arith_flags() ^ twin.cpu.state.arith_flags();
        if flags != 0 {
            let undefined = twin.cpu.undefined_behind(trail, flags) & flags;
            let now = twin.cpu.state.arith_flags() ^ undefined;
            twin.cpu.state.set_arith_flags(now);
        }
        all.extend(compare::states(&leader.state, &twin.cpu.state, loosely));
        let mut written: BTreeSet<u64> = leader.mem.take_all_dirty().into_iter().collect();
        written.extend(twin.cpu.mem.take_all_dirty());
        let offsets: Vec<u64> = written.iter().copied().collect();
        all.extend(compare::pages(&leader.mem, &twin.cpu.mem, &offsets));
        (all, written)
    }

    /// One stretch: `Some` when the run is over.
    fn stretch(&mut self, leader: &mut Cpu) -> Result<Option<Exit>, EngineError> {
        let Some(twin) = &mut self.twin else { return Ok(Some(Exit::Kick)) };
        let log = twin.log.clone();
        twin.catch_up(leader);
        let begin = [leader.point(), twin.cpu.point()];
        let ticker = twin.ticker.clone();
        log.begin(leader.mem.map_generation());
        leader.start_stretch();
        twin.cpu.start_stretch();
        let taken = self.take_events(leader);
        if let Some(twin) = &mut self.twin {
            twin.same_a20(leader);
        }
        if !matches!(taken, Taken::Leave(_) | Taken::Restarted) {
            match ticker.hurried.load(Ordering::Relaxed) {
                true => ticker.hurry(|| self.run_leader(leader)),
                false => {
                    ticker.armed.store(true, Ordering::Relaxed);
                    self.run_leader(leader);
                    ticker.armed.store(false, Ordering::Relaxed);
                }
            }
        }
        leader.events.take(EV_STRETCH);
        log.end();
        log.open();
        let mut trail = Vec::new();
        let count = leader.icount - begin[0].icount;
        if taken == Taken::Restarted {
            if let Some(twin) = &mut self.twin {
                twin.cpu.go_back(&leader.point());
            }
        } else if let Some(mut twin) = self.twin.take() {
            self.deliver(&mut twin.cpu, taken, false);
            self.twin = Some(twin);
            self.follow(&leader.state.clone(), count, false, &mut trail)?;
        }
        log.close();
        let between = match &mut self.twin {
            Some(twin) => twin.take_between(leader),
            None => Vec::new(),
        };
        let (mut differences, mut written) = self.differences(leader, &trail);
        self.counts.comparisons += 1;
        self.counts.events += u64::from(!matches!(taken, Taken::Nothing | Taken::Leave(_)));
        if !differences.is_empty() {
            let stretch = Stretch { begin, taken, end: leader.icount, between };
            match self.narrow(leader, &stretch, differences, &mut written, &trail)? {
                None => differences = Vec::new(),
                Some(parting) => {
                    log.open();
                    self.over(Verdict::Parted(Box::new(parting)));
                    return Ok(Some(Exit::Kick));
                }
            }
        }
        let _ = differences;
        let Some(twin) = &mut self.twin else { return Ok(Some(Exit::Kick)) };
        twin.keep_pages(leader, &written);
        twin.cpu.icount = leader.icount;
        twin.note_map(leader);
        twin.remember(&trail);
        self.counts.instructions = leader.icount - self.first;
        let late = self.until.is_some_and(|until| Instant::now() >= until);
        if late || self.options.instructions.is_some_and(|n| self.counts.instructions >= n) {
            log.open();
            self.over(Verdict::Same(self.counts));
            return Ok(Some(Exit::Kick));
        }
        Ok(match (taken, leader.state.activity) {
            (Taken::Leave(exit), _) => Some(exit),
            (_, Activity::Running) => None,
            (_, Activity::Halted | Activity::WaitSipi) => Some(Exit::Halt),
            (_, Activity::Shutdown) => Some(Exit::Shutdown),
        })
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        self.ticker.hurried.store(false, Ordering::Relaxed);
    }
}

impl Twin {
    /// The next instruction (if not `whole`, one iteration of it); whether it is over.
    fn step(&mut self, whole: bool) -> Result<(Followed, bool), EngineError> {
        let Some(engine) = &mut self.engine else {
            return Ok(if whole { self.cpu.follow_whole() } else { self.cpu.follow() });
        };
        self.cpu.settle_memory();
        let here = self.cpu.next_followed();
        if self.cpu.is_for_interpreter(&here) {
            return Ok(self.cpu.follow());
        }
        let count = self.cpu.icount;
        engine.step(&mut self.cpu)?;
        let over = self.cpu.ends(&here);
        // What the interpreter did in its place is counted already.
        self.cpu.icount = count.wrapping_add(over.into());
        Ok((here, over))
    }

    /// Before a stretch, with the gate closed: takes over what has changed by others' doing.
    fn catch_up(&mut self, leader: &Cpu) {
        self.log.take_between();
        // Devices, firmware's calls, a RESET: both were the same before.
        let mut page = [0; PAGE_SIZE as usize];
        for offset in leader.mem.take_all_dirty() {
            leader.mem.copy_page(offset, &mut page);
            self.cpu.mem.set_page(offset, &page);
            self.spare.set_page(offset, &page);
        }
        self.cpu.mem.take_all_dirty();
        if self.map_generation != leader.mem.map_generation() {
            self.cpu.mem.set_map(leader.mem.map_copy());
        }
        self.note_map(leader);
        self.same_a20(leader);
        // Firmware's calls, RESET.
        if self.left.as_ref().is_some_and(|left| *left != leader.state) {
            self.cpu.go_back(&leader.point());
            self.left = None;
        }
    }

    /// A20 is with both what it is with the leader.
    fn same_a20(&mut self, leader: &Cpu) {
        if self.cpu.a20_mask != leader.a20_mask {
            self.cpu.a20_mask = leader.a20_mask;
            self.cpu.sync_paging();
        }
    }

    /// Keeps the map, if it is a new one.
    fn note_map(&mut self, leader: &Cpu) {
        let generation = leader.mem.map_generation();
        if generation != self.map_generation {
            (self.map, self.map_generation) = (Arc::new(leader.mem.map_copy()), generation);
        }
    }

    /// What devices have written while the leader stood still, which the follower has now, too.
    fn take_between(&self, leader: &Cpu) -> Vec<(u64, Vec<u8>)> {
        let mut all = Vec::new();
        for (gpa, len) in self.log.take_between() {
            let mut bytes = vec![0; len as usize];
            leader.mem.read(gpa, &mut bytes);
            self.cpu.mem.write(gpa, &bytes);
            all.push((gpa, bytes));
        }
        all
    }

    /// Both have the same in these pages, which is kept.
    fn keep_pages(&self, leader: &Cpu, written: &BTreeSet<u64>) {
        let mut page = [0; PAGE_SIZE as usize];
        for &offset in written {
            leader.mem.copy_page(offset, &mut page);
            self.spare.set_page(offset, &page);
        }
    }

    /// Keeps the last instructions of a stretch.
    fn remember(&mut self, trail: &[Followed]) {
        let rest = &trail[trail.len().saturating_sub(SHOWN)..];
        let surplus = (self.history.len() + rest.len()).saturating_sub(SHOWN);
        self.history.drain(..surplus.min(self.history.len()));
        self.history.extend_from_slice(rest);
    }
}

impl Accelerator for Lockstep {
    fn name(&self) -> &'static str {
        "lockstep"
    }

    fn run(&mut self, leader: &mut Cpu) -> Result<Exit, EngineError> {
        if self.over {
            return Ok(Exit::Kick);
        }
        if self.twin.is_none() {
            self.set_up(leader).map_err(|e| EngineError(format!("--lockstep: {e:#}")))?;
        }
        let Some(log) = self.twin.as_ref().map(|t| t.log.clone()) else { return Ok(Exit::Kick) };
        log.close();
        let exit = loop {
            match self.stretch(leader) {
                Ok(None) => {}
                Ok(Some(exit)) => break Ok(exit),
                Err(e) => break Err(e),
            }
        };
        log.open();
        if let Some(twin) = &mut self.twin {
            twin.left = Some(leader.state.clone());
        }
        // Stores by others than the engine, firmware's calls, are to be seen.
        leader.start_stretch();
        exit
    }
}

/// What a comparison that has not ended by itself has come to.
impl Lockstep {
    /// The parting that these differences are, behind `trail`; `named` is the one that is to blame.
    fn parting(
        &mut self,
        leader: &Cpu,
        trail: &[Followed],
        named: Option<usize>,
        taken: Taken,
        differences: Vec<Difference>,
        note: Option<String>,
    ) -> Parting {
        let names = self.options.names.clone();
        let counts = self.counts;
        let executed = leader.icount - self.first;
        match &mut self.twin {
            Some(twin) => verdict::parting(
                names,
                counts,
                executed,
                leader,
                &mut twin.cpu,
                &twin.history,
                trail,
                named,
                taken,
                differences,
                note,
            ),
            None => Parting::default(),
        }
    }
}
