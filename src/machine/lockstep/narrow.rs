//! Where a divergence began: both go back to the stretch's start, and run again in stretches of one block, by the log.
use super::compare::{self, Difference, Place};
use super::record::Who;
use super::verdict::Parting;
use super::{Lockstep, Stretch, Twin};
use iced_x86::{Instruction, InstructionInfoFactory, OpAccess, Register};
use mynah_cpu::board::{EV_INTR, EV_NMI, EV_STRETCH};
use mynah_cpu::lockstep::{Followed, Point, Taken};
use mynah_cpu::state::{fl, gpr};
use mynah_cpu::{Cpu, EngineError};
use mynah_mmu::{PAGE_SIZE, PhysMemory};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

/// A piece of so many instructions is short enough to look for one of them.
const SHORT: u64 = 16;
/// How often a piece that differs is executed at most, in the hope of a shorter one; and by a hypervisor, which takes
/// long.
const ATTEMPTS: [u32; 2] = [100, 6];

impl Lockstep {
    /// A stretch has come out differently: `None` if that is excused, and both are the same again.
    ///
    /// `written` has the pages that were written in it, as it has afterwards.
    pub(super) fn narrow(
        &mut self,
        leader: &mut Cpu,
        stretch: &Stretch,
        differences: Vec<Difference>,
        written: &mut BTreeSet<u64>,
        trail: &[Followed],
    ) -> Result<Option<Parting>, EngineError> {
        let Some(twin) = &self.twin else { return Ok(None) };
        let log = twin.log.clone();
        let (whole, excused) = (leader.state.clone(), self.counts.excused);
        // What is pending by now was not then.
        let waiting = leader.events.take(EV_INTR | EV_NMI);
        log.again(true);
        let new_map = log.has_new_map().then(|| leader.mem.map_copy());
        if new_map.is_some() {
            // Devices themselves stay as they are: they are not asked.
            leader.mem.set_map((*twin.map).clone());
            twin.cpu.mem.set_map((*twin.map).clone());
        }
        twin.restore(leader, written);
        let mut written_again = BTreeSet::new();
        let ticker = twin.ticker.clone();
        let was = ticker.hurried.swap(true, Ordering::Relaxed);
        let found = self.again(leader, stretch, &mut written_again);
        ticker.hurried.store(was, Ordering::Relaxed);
        let found = found?;
        if waiting != 0 {
            leader.events.raise(waiting);
        }
        written.append(&mut written_again);
        if let (Some(map), Some(twin)) = (new_map, &self.twin) {
            leader.mem.set_map(map.clone());
            twin.cpu.mem.set_map(map);
        }
        if let Some(parting) = found {
            log.again(false);
            return Ok(Some(parting));
        }
        let Some(twin) = &mut self.twin else { return Ok(None) };
        log.finish(Who::Leader, &leader.mem);
        for (gpa, bytes) in &stretch.between {
            leader.mem.write(*gpa, bytes);
            twin.cpu.mem.write(*gpa, bytes);
        }
        log.again(false);
        leader.mem.take_all_dirty();
        twin.cpu.mem.take_all_dirty();
        let same =
            compare::states(&whole, &leader.state, true).iter().all(|d| matches!(d.place, Place::Flags(_)));
        if same && self.counts.excused != excused {
            return Ok(None);
        }
        if same && differences.iter().all(|d| matches!(d.place, Place::Memory(_))) {
            self.counts.void += 1;
            return Ok(None);
        }
        // They were undefined for long.
        if same && differences.iter().all(|d| matches!(d.place, Place::Flags(_))) {
            self.counts.excused += 1;
            return Ok(None);
        }
        let note = "run again block by block, both come out the same: it is in what leads from one block to another, \
                    or in a device that writes to memory behind the map";
        let named = self.blame(trail, &differences, None);
        Ok(Some(self.parting(leader, trail, named, stretch.taken, differences, Some(note.into()))))
    }

    /// The stretch once more; the parting, if it is found. Otherwise both are the same at its end.
    fn again(
        &mut self,
        leader: &mut Cpu,
        stretch: &Stretch,
        all_written: &mut BTreeSet<u64>,
    ) -> Result<Option<Parting>, EngineError> {
        let Some(twin) = &mut self.twin else { return Ok(None) };
        let log = twin.log.clone();
        leader.go_back(&stretch.begin[0]);
        twin.cpu.go_back(&stretch.begin[1]);
        leader.start_stretch();
        self.deliver(leader, stretch.taken, true);
        if let Some(mut twin) = self.twin.take() {
            self.deliver(&mut twin.cpu, stretch.taken, false);
            self.twin = Some(twin);
        }
        if stretch.taken != Taken::Nothing {
            let (differences, written) = self.differences_so_far(leader, &[]);
            if !differences.is_empty() {
                return Ok(Some(self.parting(leader, &[], None, stretch.taken, differences, None)));
            }
            self.keep(leader, &written, all_written);
        }
        // A piece that differs is tried again, until it is a short one.
        let (mut attempts, mut shortest) = (0, u64::MAX);
        while leader.icount < stretch.end && leader.state.activity == mynah_cpu::state::Activity::Running {
            let Some(twin) = &mut self.twin else { return Ok(None) };
            let begin = [leader.point(), twin.cpu.point()];
            let places = [log.place(Who::Leader), log.place(Who::Follower)];
            let ticker = twin.ticker.clone();
            leader.settle_memory();
            leader.start_stretch();
            twin.cpu.start_stretch();
            leader.events.mark(EV_STRETCH);
            self.run_leader(leader);
            if leader.icount == begin[0].icount && leader.state.gpr[gpr::RIP] == begin[0].state.gpr[gpr::RIP]
            {
                // Its code looks at signals before it does anything.
                leader.events.take(EV_STRETCH);
                ticker.hurry(|| self.run_leader(leader));
            }
            leader.events.take(EV_STRETCH);
            let mut trail = Vec::new();
            let count = leader.icount - begin[0].icount;
            self.follow(&leader.state.clone(), count, true, &mut trail)?;
            let (differences, written) = self.differences_so_far(leader, &trail);
            if differences.is_empty() {
                self.keep(leader, &written, all_written);
                let Some(twin) = &mut self.twin else { return Ok(None) };
                twin.remember(&trail);
                (attempts, shortest) = (0, u64::MAX);
                if log.wrong(Who::Leader).is_some() {
                    break;
                }
                continue;
            }
            let Some(twin) = &mut self.twin else { return Ok(None) };
            shortest = shortest.min(count);
            attempts += 1;
            let most = ATTEMPTS[usize::from(twin.engine.is_some())];
            if count > SHORT && attempts < most && (attempts < most / 2 || count > shortest * 2) {
                twin.restore(leader, &written);
                leader.go_back(&begin[0]);
                twin.cpu.go_back(&begin[1]);
                log.set_place(Who::Leader, places[0]);
                log.set_place(Who::Follower, places[1]);
                continue;
            }
            if twin.cpu.looks_at_undefined(&trail) {
                self.counts.excused += 1;
                twin.take_over(leader, &written);
                log.set_place(Who::Follower, log.place(Who::Leader));
                self.keep(leader, &written, all_written);
                continue;
            }
            let named = self.blame(&trail, &differences, Some((&begin[1], places[1], &written)));
            return Ok(Some(self.parting(leader, &trail, named, Taken::Nothing, differences, None)));
        }
        Ok(None)
    }

    /// As [`Lockstep::differences`], with more of the log to come.
    fn differences_so_far(&mut self, leader: &Cpu, trail: &[Followed]) -> (Vec<Difference>, BTreeSet<u64>) {
        let left = self.twin.as_ref().and_then(|twin| twin.log.left());
        self.differences_with(leader, trail, left)
    }

    fn keep(&self, leader: &Cpu, written: &BTreeSet<u64>, all: &mut BTreeSet<u64>) {
        if let Some(twin) = &self.twin {
            twin.keep_pages(leader, written);
        }
        all.extend(written);
    }

    /// Which of these instructions is the first whose result differs, as far as that can be said: of what each
    /// difference was written by last, the first. With where the follower began, memory is looked at as well.
    fn blame(
        &mut self,
        trail: &[Followed],
        differences: &[Difference],
        from: Option<(&Point, usize, &BTreeSet<u64>)>,
    ) -> Option<usize> {
        let twin = self.twin.as_mut()?;
        let mut factory = InstructionInfoFactory::new();
        let mut writer = |cpu: &mut Cpu, place: Place| {
            trail.iter().rposition(|done| {
                let found = cpu.instruction_at(done.lin, done.key);
                found.is_some_and(|(_, _, i)| writes(&mut factory, &i, place))
            })
        };
        let mut first: Option<usize> = None;
        for d in differences {
            let at = match d.place {
                Place::Memory(offset) => {
                    let seen = from.and_then(|(point, place, written)| {
                        twin.last_store(point, place, written, offset, trail.len())
                    });
                    seen.or_else(|| writer(&mut twin.cpu, d.place))
                }
                Place::Rip | Place::Board => trail.len().checked_sub(1),
                place => writer(&mut twin.cpu, place),
            };
            first = match (first, at) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        first.or_else(|| trail.len().checked_sub(1))
    }
}

impl Twin {
    /// Both memories are as they were when they were compared last.
    fn restore(&self, leader: &Cpu, written: &BTreeSet<u64>) {
        let mut page = [0; PAGE_SIZE as usize];
        for &offset in written {
            self.spare.copy_page(offset, &mut page);
            leader.mem.set_page(offset, &page);
            self.cpu.mem.set_page(offset, &page);
        }
        leader.mem.take_all_dirty();
        self.cpu.mem.take_all_dirty();
    }

    /// The follower becomes what the leader is.
    fn take_over(&mut self, leader: &Cpu, written: &BTreeSet<u64>) {
        let mut page = [0; PAGE_SIZE as usize];
        for &offset in written {
            leader.mem.copy_page(offset, &mut page);
            self.cpu.mem.set_page(offset, &page);
        }
        self.cpu.mem.take_all_dirty();
        self.cpu.go_back(&leader.point());
    }

    /// The last of the instructions behind `point` by which the follower changes the eight bytes at an offset in RAM.
    /// The follower is as it was afterwards.
    fn last_store(
        &mut self,
        point: &Point,
        place: usize,
        written: &BTreeSet<u64>,
        offset: u64,
        count: usize,
    ) -> Option<usize> {
        let (after, after_place) = (self.cpu.point(), self.log.place(Who::Follower));
        let mut page = [0; PAGE_SIZE as usize];
        let mut kept = Vec::new();
        for &offset in written {
            self.cpu.mem.copy_page(offset, &mut page);
            kept.push((offset, page));
            self.spare.copy_page(offset, &mut page);
            self.cpu.mem.set_page(offset, &page);
        }
        self.cpu.go_back(point);
        self.log.set_place(Who::Follower, place);
        let mut last = None;
        let mut now = bytes_at(&self.cpu.mem, offset);
        for n in 0..count {
            let mut over = false;
            // Bounded as the first time: iterations of one instruction.
            for _ in 0..u32::MAX {
                over = self.cpu.follow().1;
                if over {
                    break;
                }
            }
            let then = bytes_at(&self.cpu.mem, offset);
            if then != now {
                last = Some(n);
            }
            now = then;
            if !over {
                break;
            }
        }
        for (offset, page) in &kept {
            self.cpu.mem.set_page(*offset, page);
        }
        self.cpu.go_back(&after);
        self.log.set_place(Who::Follower, after_place);
        last
    }
}

fn bytes_at(memory: &PhysMemory, offset: u64) -> [u8; 8] {
    let mut page = [0; PAGE_SIZE as usize];
    memory.copy_page(offset & !(PAGE_SIZE - 1), &mut page);
    let mut bytes = [0; 8];
    let at = (offset % PAGE_SIZE) as usize & !7;
    bytes.copy_from_slice(&page[at..at + 8]);
    bytes
}

/// Whether an instruction writes there, as far as that is known without executing it.
fn writes(factory: &mut InstructionInfoFactory, i: &Instruction, place: Place) -> bool {
    let stores = |access: OpAccess| {
        matches!(
            access,
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        )
    };
    let flags = |mask: u64| mynah_cpu::check::flags_of(i.rflags_modified()) & mask & fl::ARITH != 0;
    let info = factory.info(i);
    let register = |is: &dyn Fn(Register) -> bool| {
        info.used_registers().iter().any(|r| stores(r.access()) && is(r.register()))
    };
    match place {
        Place::Register(n) => register(&|r| r.is_gpr() && r.full_register().number() == n),
        Place::Vector(n) => register(&|r| r.is_vector_register() && r.number() == n),
        Place::Flags(mask) => flags(mask),
        Place::Fpu => i.fpu_stack_increment_info().writes_top() || register(&|r| r.is_st() || r.is_mm()),
        Place::Memory(_) => info.used_memory().iter().any(|m| stores(m.access())),
        Place::Rip | Place::Board | Place::Other => false,
    }
}
