//! Who serves a controller's queues.
use super::command::{COMMAND_LEN, Command, Status};
use super::features::Features;
use super::log::Counters;
use super::queue::{Completion, End, Submission};
use super::registers::{MOST_ENTRIES, Registers, Rung, cc, csts};
use super::task::{Next, Origin, Task, What};
use super::{IN_FLIGHT, Me, Namespace, Options};
use crate::clock::Clock;
use crate::device::Invalid;
use crate::dma::Session;
use crate::pci::Function;
use mynah_block::{Reply, Request};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread;
use vm_memory::{Bytes, GuestAddress};

/// Turns that a thread that rings serves before another one goes on.
const TURNS: usize = 16;
/// Commands that are taken out of a queue in a turn.
const BURST: usize = 64;

/// An NVMe controller.
pub struct Nvme {
    pub(super) function: Function,
    pub(super) options: Options,
    pub(super) clock: Arc<dyn Clock>,
    /// By number.
    namespaces: RwLock<Vec<Namespace>>,
    /// Held while the controller is configured, which may wait for requests.
    control: Mutex<()>,
    pub(super) inner: Mutex<Inner>,
    pub(super) regs: Mutex<Registers>,
    /// Ends of requests that nobody has looked at.
    ended: Mutex<Vec<(u64, Reply)>>,
    /// There is something to do.
    wanted: AtomicBool,
    /// A thread serves the queues.
    elsewhere: AtomicBool,
    pub(super) me: Me,
}

/// What is known while it is enabled.
#[derive(Default)]
pub(super) struct Inner {
    pub paused: bool,
    pub submissions: BTreeMap<u16, Submission>,
    pub completions: BTreeMap<u16, Completion>,
    /// The next request's number.
    pub next: u64,
    /// With drives, by number.
    under_way: BTreeMap<u64, Task>,
    /// Not handed on yet.
    pub waiting: VecDeque<Task>,
    /// What those under way take.
    held: u64,
    /// Asynchronous event requests.
    pub event_requests: Vec<u16>,
    /// What happened that no request was there for: type, information, log page.
    pub events: Vec<Event>,
    /// Types of events that were told and whose log page was not read yet.
    pub told: u8,
    pub features: Features,
    pub counters: Counters,
    /// The queue of the last command that was taken.
    last: u16,
}

/// An asynchronous event (5.2): its type, what it is, and the log page that says more.
pub type Event = (u8, u8, u8);

/// What is saved of it.
#[derive(Serialize, Deserialize)]
pub struct InnerV1 {
    submissions: Vec<(u16, Submission)>,
    completions: Vec<(u16, Completion)>,
    tasks: Vec<Task>,
    event_requests: Vec<u16>,
    events: Vec<Event>,
    told: u8,
    features: Features,
    counters: Counters,
    last: u16,
}

impl Inner {
    pub fn save(&self) -> InnerV1 {
        InnerV1 {
            submissions: self.submissions.iter().map(|(n, q)| (*n, q.clone())).collect(),
            completions: self.completions.iter().map(|(n, q)| (*n, q.clone())).collect(),
            tasks: self.under_way.values().chain(&self.waiting).cloned().collect(),
            event_requests: self.event_requests.clone(),
            events: self.events.clone(),
            told: self.told,
            features: self.features.clone(),
            counters: self.counters.clone(),
            last: self.last,
        }
    }

    pub fn restored(saved: InnerV1, options: &Options, namespaces: &[Namespace]) -> Result<Self, Invalid> {
        let InnerV1 {
            submissions,
            completions,
            tasks,
            event_requests,
            events,
            told,
            features,
            counters,
            last,
        } = saved;
        let (submissions, completions): (BTreeMap<_, _>, BTreeMap<_, _>) =
            (submissions.into_iter().collect(), completions.into_iter().collect());
        let number = |n: u16| n <= options.pairs;
        // The admin queues may be larger.
        let most = MOST_ENTRIES.max(4096);
        let vectors = options.vectors.max(1);
        if submissions
            .iter()
            .any(|(n, q)| !number(*n) || !q.is_sound(most) || !completions.contains_key(&q.completion))
            || completions.iter().any(|(n, q)| !number(*n) || !q.is_sound(most, vectors))
        {
            return Err(Invalid("a queue of NVMe"));
        }
        if tasks.iter().any(|t| !t.is_sound(namespaces)) {
            return Err(Invalid("commands under way"));
        }
        if event_requests.len() > usize::from(options.aerl) + 1 || events.len() > 64 || !features.is_sound() {
            return Err(Invalid("asynchronous events"));
        }
        Ok(Self {
            submissions,
            completions,
            waiting: tasks.into(),
            event_requests,
            events,
            told,
            features,
            counters,
            last,
            ..Self::default()
        })
    }
}

impl Nvme {
    /// A controller without namespaces.
    pub(super) fn new(function: Function, options: Options, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            function,
            clock,
            namespaces: RwLock::default(),
            control: Mutex::new(()),
            inner: Mutex::new(Inner::default()),
            regs: Mutex::new(Registers::new(&options)),
            ended: Mutex::default(),
            wanted: AtomicBool::new(false),
            elsewhere: AtomicBool::new(false),
            me: me.clone(),
            options,
        })
    }

    /// The namespaces, by number.
    pub(super) fn namespaces(&self) -> Vec<Namespace> {
        self.namespaces.read().clone()
    }

    pub(super) fn namespace(&self, nsid: u32) -> Option<Namespace> {
        self.namespaces.read().iter().find(|n| n.nsid == nsid).cloned()
    }

    /// The first number that no namespace has.
    pub(super) fn free_nsid(&self) -> Option<u32> {
        let all = self.namespaces.read();
        (1..=super::NAMESPACES).find(|n| all.iter().all(|have| have.nsid != *n))
    }

    /// Adds a namespace, before the machine runs.
    pub(super) fn add(&self, namespace: Namespace) -> Result<(), String> {
        let mut all = self.namespaces.write();
        if all.iter().any(|n| n.nsid == namespace.nsid) {
            return Err(format!("nsid={}: there is another namespace", namespace.nsid));
        }
        all.push(namespace);
        all.sort_by_key(|n| n.nsid);
        Ok(())
    }

    // Configuration.

    /// CC is written.
    pub(super) fn configure(&self, value: u32) {
        let order = self.control.lock();
        let value = value & cc::ALL;
        let before = {
            let mut regs = self.regs.lock();
            std::mem::replace(&mut regs.cc, value)
        };
        let (was, is) = (before & cc::ENABLE != 0, value & cc::ENABLE != 0);
        if was && !is {
            self.disable();
        }
        if !was && is {
            self.enable();
        }
        let (was, is) = (before & cc::SHUTDOWN, value & cc::SHUTDOWN);
        if was == 0 && is != 0 {
            self.shut_down();
        } else if was != 0 && is == 0 {
            self.regs.lock().csts &= !csts::SHUTDOWN;
        }
        drop(order);
        self.kick();
    }

    fn enable(&self) {
        let mut inner = self.inner.lock();
        let mut regs = self.regs.lock();
        regs.csts &= !csts::SHUTDOWN;
        if !regs.can_start() {
            tracing::warn!("nvme: the driver enables it with CC {:#x}, AQA {:#x}", regs.cc, regs.aqa);
            regs.csts |= csts::FATAL;
            return;
        }
        let (submissions, completions) = ((regs.aqa & 0xfff) + 1, (regs.aqa >> 16 & 0xfff) + 1);
        inner.submissions.insert(0, Submission::new(regs.asq, submissions, 0));
        inner.completions.insert(0, Completion::new(regs.acq, completions, Some(0)));
        regs.take_rung();
        regs.csts |= csts::READY;
    }

    /// All is as after a reset, but AQA, ASQ and ACQ (7.3.2).
    fn disable(&self) {
        {
            let mut inner = self.inner.lock();
            let fresh = Inner {
                paused: inner.paused,
                // Numbers go on: a late end is of nobody.
                next: inner.next,
                counters: inner.counters.clone(),
                ..Inner::default()
            };
            *inner = fresh;
        }
        for namespace in self.namespaces() {
            namespace.drive.reset();
        }
        self.ended.lock().clear();
        let mut regs = self.regs.lock();
        regs.csts &= csts::SUBSYSTEM_RESET;
        regs.take_rung();
        (regs.masked, regs.pending) = (0, 0);
        self.function.set_interrupt(false);
    }

    /// Flushes all that there is (7.6.2).
    fn shut_down(&self) {
        let all = self.namespaces();
        let flush = What::Flush(all.iter().map(|n| n.nsid).collect());
        let mut inner = self.inner.lock();
        self.regs.lock().csts |= csts::SHUTTING_DOWN;
        inner.waiting.push_back(Task::new(Origin::Shutdown, 0, flush, Vec::new(), false));
    }

    /// NSSR (7.3.1).
    pub(super) fn subsystem_reset(&self) {
        let _order = self.control.lock();
        self.disable();
        let mut regs = self.regs.lock();
        *regs = Registers::new(&self.options);
        regs.csts = csts::SUBSYSTEM_RESET;
    }

    /// As after power-on.
    pub(super) fn power_on(&self) {
        let _order = self.control.lock();
        self.disable();
        self.inner.lock().counters = Counters::default();
        *self.regs.lock() = Registers::new(&self.options);
    }

    pub(super) fn set_paused(&self, paused: bool) {
        self.inner.lock().paused = paused;
    }

    /// INTMS and INTMC.
    pub(super) fn mask(&self, change: impl FnOnce(u32) -> u32) {
        let mut regs = self.regs.lock();
        regs.masked = change(regs.masked);
        self.drive_pin(&regs);
    }

    fn drive_pin(&self, regs: &Registers) {
        self.function.set_interrupt(regs.pending & !regs.masked != 0);
    }

    /// Doorbell `n` is written.
    pub(super) fn ring(&self, n: u64, value: u32) {
        {
            let mut regs = self.regs.lock();
            if regs.csts & csts::READY == 0 {
                return;
            }
            regs.ring(
                n / 2,
                |rung| if n & 1 == 0 { rung.tail = Some(value) } else { rung.head = Some(value) },
            );
        }
        self.kick();
    }

    // Service.

    /// There is something to do. Does not wait for anything.
    pub(super) fn kick(&self) {
        self.wanted.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if !self.turns() || self.elsewhere.swap(true, Ordering::SeqCst) {
            return;
        }
        let me = self.me.clone();
        let on = move || {
            while let Some(nvme) = me.upgrade() {
                if !nvme.turns() {
                    nvme.elsewhere.store(false, Ordering::SeqCst);
                    fence(Ordering::SeqCst);
                    if !nvme.wanted.load(Ordering::SeqCst) || nvme.elsewhere.swap(true, Ordering::SeqCst) {
                        break;
                    }
                }
                thread::yield_now();
            }
        };
        let thread = thread::Builder::new().name("nvme queues".into()).stack_size(256 << 10);
        if let Err(e) = thread.spawn(on) {
            tracing::warn!("nvme: queues wait for the next doorbell: {e}");
            self.elsewhere.store(false, Ordering::SeqCst);
        }
    }

    /// Serves for some turns, unless somebody else does; whether something is left.
    fn turns(&self) -> bool {
        for _ in 0..TURNS {
            let Some(mut inner) = self.inner.try_lock() else { return false };
            if self.wanted.swap(false, Ordering::SeqCst) && self.turn(&mut inner) {
                self.wanted.store(true, Ordering::SeqCst);
            }
            drop(inner);
            fence(Ordering::SeqCst);
            if !self.wanted.load(Ordering::SeqCst) {
                return false;
            }
        }
        true
    }

    fn turn(&self, inner: &mut Inner) -> bool {
        let (ready, fatal, page) = {
            let regs = self.regs.lock();
            (regs.csts & csts::READY != 0, regs.csts & csts::FATAL != 0, regs.page())
        };
        let shutdown = inner.waiting.iter().any(|t| t.origin == Origin::Shutdown);
        if fatal || !ready && !shutdown && inner.under_way.is_empty() {
            self.ended.lock().clear();
            return false;
        }
        // It comes back when the function may master the bus again.
        let Ok(memory) = self.function.dma().open() else { return false };
        let mut turn = Turn { nvme: self, inner, memory: &memory, page };
        match turn.serve() {
            Ok(left) => left,
            Err(Fatal) => {
                tracing::warn!("nvme: a queue is not in memory; the controller needs a reset");
                self.regs.lock().csts |= csts::FATAL;
                false
            }
        }
    }

    fn submit(&self, number: u64, namespace: &Namespace, request: Request) {
        let me = self.me.clone();
        namespace.drive.submit(request, move |reply| {
            let Some(me) = me.upgrade() else { return };
            me.ended.lock().push((number, reply));
            me.kick();
        });
    }
}

/// A queue is not in memory (3.1.6, CFS).
pub(super) struct Fatal;

/// The queues while they are served.
pub(super) struct Turn<'t, 'm> {
    pub nvme: &'t Nvme,
    pub inner: &'t mut Inner,
    pub memory: &'t Session<'m>,
    /// Bytes of a page.
    pub page: u64,
}

impl Turn<'_, '_> {
    /// Whether something is left.
    fn serve(&mut self) -> Result<bool, Fatal> {
        self.doorbells();
        let ended = std::mem::take(&mut *self.nvme.ended.lock());
        for (number, reply) in ended {
            let Some(mut task) = self.inner.under_way.remove(&number) else { continue };
            self.inner.held = self.inner.held.saturating_sub(task.cost());
            match task.advance(self.memory, reply) {
                Ok(()) => self.submit(task, true),
                Err(status) => self.end(&task, status),
            }
        }
        let mut left = false;
        if !self.inner.paused {
            for _ in 0..self.inner.waiting.len() {
                let Some(task) = self.inner.waiting.pop_front() else { break };
                self.submit(task, false);
            }
            left = self.fetch()?;
        }
        self.deletions();
        self.events();
        self.post()?;
        if self.deletions() {
            self.post()?;
        }
        Ok(left)
    }

    /// What the host has written to doorbells.
    fn doorbells(&mut self) {
        let rung = self.nvme.regs.lock().take_rung();
        for (n, Rung { tail, head }) in rung {
            if let Some(tail) = tail {
                match self.inner.submissions.get_mut(&n) {
                    Some(queue) if tail < queue.size => queue.tail = tail,
                    queue => {
                        let there = queue.is_some();
                        self.invalid_doorbell(there);
                    }
                }
            }
            if let Some(head) = head {
                match self.inner.completions.get_mut(&n) {
                    Some(queue) if head < queue.size => queue.head = head,
                    queue => {
                        let there = queue.is_some();
                        self.invalid_doorbell(there);
                    }
                }
            }
        }
    }

    /// Of a queue that is not there, or with a value that is none (figure 50).
    fn invalid_doorbell(&mut self, there: bool) {
        tracing::debug!("nvme: an invalid doorbell write");
        self.inner.event((0, u8::from(there), 1));
    }

    /// Takes commands out of the queues, in turn (4.13.1).
    fn fetch(&mut self) -> Result<bool, Fatal> {
        if !self.inner.submissions.values().any(Submission::has_more) {
            return Ok(false);
        }
        let last = self.inner.last;
        let mut queues: Vec<u16> = self.inner.submissions.keys().copied().collect();
        let first = queues.iter().position(|id| *id > last).unwrap_or(0);
        queues.rotate_left(first);
        for id in &queues {
            for _ in 0..BURST {
                // What has no room waits in its queue; admin commands seldom need any.
                if !self.inner.waiting.is_empty() {
                    break;
                }
                let Some(queue) = self.inner.submissions.get_mut(id).filter(|q| q.has_more()) else { break };
                let at = queue.base.wrapping_add(u64::from(queue.head) * COMMAND_LEN as u64);
                let mut bytes = [0; COMMAND_LEN];
                self.memory.read_slice(&mut bytes, GuestAddress(at)).map_err(|_| Fatal)?;
                queue.head = (queue.head + 1) % queue.size;
                queue.outstanding += 1;
                let command = Command::parse(&bytes);
                self.inner.last = *id;
                if *id == 0 { self.admin(&command) } else { self.io(*id, &command) }
            }
        }
        let more = self.inner.submissions.values().any(Submission::has_more);
        Ok(more && self.inner.waiting.is_empty())
    }

    /// Asks a drive for what follows of a task; if there is no room for it, it waits.
    pub fn submit(&mut self, task: Task, first: bool) {
        let cost = task.cost();
        if self.inner.paused || self.inner.held > 0 && self.inner.held + cost > IN_FLIGHT {
            if first {
                self.inner.waiting.push_front(task);
            } else {
                self.inner.waiting.push_back(task);
            }
            return;
        }
        let (nsid, request) = match task.next(self.memory) {
            Next::Ask(nsid, request) => (nsid, request),
            Next::End(status) => return self.end(&task, status),
        };
        let Some(namespace) = self.nvme.namespace(nsid) else { return self.end(&task, Status::NOT_READY) };
        let number = self.inner.next;
        self.inner.next += 1;
        self.inner.held += cost;
        self.inner.under_way.insert(number, task);
        self.nvme.submit(number, &namespace, request);
    }

    /// A task has ended.
    fn end(&mut self, task: &Task, status: Status) {
        self.inner.counters.count(task, status);
        match task.origin {
            Origin::Command(queue, command) => self.inner.end(queue, command, 0, status),
            Origin::Shutdown => {
                let mut regs = self.nvme.regs.lock();
                if regs.csts & csts::SHUTDOWN == csts::SHUTTING_DOWN {
                    regs.csts = regs.csts & !csts::SHUTDOWN | csts::SHUT_DOWN;
                }
            }
        }
    }

    /// Queues that are deleted and of which nothing is under way any more are gone.
    fn deletions(&mut self) -> bool {
        let mut ended = false;
        let gone: Vec<(u16, u16)> =
            self.inner.submissions.iter().filter_map(|(id, q)| Some((*id, q.deleted_by?))).collect();
        for (id, command) in gone {
            let aborted: Vec<_> = self
                .inner
                .waiting
                .iter()
                .filter_map(|t| match t.origin {
                    Origin::Command(queue, command) if queue == id => Some(command),
                    _ => None,
                })
                .collect();
            self.inner.waiting.retain(|t| !matches!(t.origin, Origin::Command(queue, _) if queue == id));
            for command in aborted {
                self.inner.end(id, command, 0, Status::SQ_DELETED);
            }
            // Its ends are to be told, too, so that no more of them wait than a queue has entries.
            if self.inner.submissions.get(&id).is_some_and(|q| q.outstanding == 0) {
                self.inner.submissions.remove(&id);
                self.inner.end(0, command, 0, Status::SUCCESS);
                ended = true;
            }
        }
        ended
    }

    /// Ends requests for events with what has happened.
    fn events(&mut self) {
        while !self.inner.event_requests.is_empty() {
            let told = self.inner.told;
            let Some(n) = self.inner.events.iter().position(|(kind, ..)| told >> (kind & 7) & 1 == 0) else {
                return;
            };
            let (kind, what, page) = self.inner.events.remove(n);
            self.inner.told |= 1 << (kind & 7);
            let command = self.inner.event_requests.remove(0);
            // It was not counted while it waited.
            if let Some(queue) = self.inner.submissions.get_mut(&0) {
                queue.outstanding += 1;
            }
            let result = u32::from(kind) | u32::from(what) << 8 | u32::from(page) << 16;
            self.inner.end(0, command, result, Status::SUCCESS);
        }
    }

    /// Fills the completion queues, and interrupts.
    fn post(&mut self) -> Result<(), Fatal> {
        let mut vectors = Vec::new();
        let mut pending = 0;
        for queue in self.inner.completions.values_mut() {
            let mut posted = false;
            while !queue.waiting.is_empty() && !queue.is_full() {
                let Some(end) = queue.waiting.pop_front() else { break };
                let mut head = 0;
                if let Some(from) = self.inner.submissions.get_mut(&end.queue) {
                    from.outstanding = from.outstanding.saturating_sub(1);
                    head = from.head;
                }
                let phase = queue.phase;
                let dwords = [
                    end.result,
                    0,
                    head | u32::from(end.queue) << 16,
                    u32::from(end.command) | u32::from(phase) << 16 | u32::from(end.status.0) << 17,
                ];
                let at = queue.advance();
                // The phase is what the host looks at: it comes last.
                let bytes = dwords.map(u32::to_le_bytes).concat();
                let body = self.memory.write_slice(&bytes[..12], GuestAddress(at));
                body.map_err(|_| Fatal)?;
                self.memory
                    .store(dwords[3].to_le(), GuestAddress(at + 12), Ordering::Release)
                    .map_err(|_| Fatal)?;
                posted = true;
            }
            if let Some(vector) = queue.vector {
                if queue.is_unseen() && vector < 32 {
                    pending |= 1 << vector;
                }
                if posted && !vectors.contains(&vector) {
                    vectors.push(vector);
                }
            }
        }
        if self.nvme.function.has_messages() {
            for vector in vectors {
                self.nvme.function.notify(vector);
            }
        }
        let mut regs = self.nvme.regs.lock();
        regs.pending = pending;
        self.nvme.drive_pin(&regs);
        Ok(())
    }
}

impl Inner {
    /// A command has ended.
    pub fn end(&mut self, queue: u16, command: u16, result: u32, status: Status) {
        let Some(completion) = self.submissions.get(&queue).map(|q| q.completion) else { return };
        if let Some(completion) = self.completions.get_mut(&completion) {
            completion.waiting.push_back(End { result, queue, command, status });
        }
    }

    /// Something has happened that the host is told of when it asks for events; once.
    pub fn event(&mut self, event: Event) {
        if !self.events.contains(&event) && self.events.len() < 64 {
            self.events.push(event);
        }
    }

    /// Forgets a command that a drive has not got yet; whether there was such a one.
    pub fn abort(&mut self, queue: u16, command: u16) -> bool {
        let origin = Origin::Command(queue, command);
        let before = self.waiting.len();
        self.waiting.retain(|t| t.origin != origin);
        let mut found = self.waiting.len() != before;
        if queue == 0
            && let Some(n) = self.event_requests.iter().position(|id| *id == command)
        {
            self.event_requests.remove(n);
            if let Some(queue) = self.submissions.get_mut(&0) {
                queue.outstanding += 1;
            }
            found = true;
        }
        if found {
            self.end(queue, command, 0, Status::ABORT_REQUESTED);
        }
        found
    }
}
