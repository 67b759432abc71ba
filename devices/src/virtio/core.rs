//! What all virtio devices have: features, status, queues, and who serves a queue.
//!
//! A queue is served by one thread at a time, with its lock held. Who has something for it (a notification, a request
//! that has ended) leaves a note and tries the lock: if it is taken, whoever has it comes to the note, at the latest
//! before it goes. A vCPU therefore never waits for a thread that copies, and interrupts are raised once for all that
//! was done in a turn. A turn is bounded; a driver that keeps the queue full all the time is served by a thread.
//!
//! Nothing is written to guest memory once [`Core::stop`] has returned, as it takes the queues' locks.
use super::chain::{Broken, Chain};
use super::ring::{AnyRing, AnyRingV1, Ring};
use super::{feature, status};
use crate::device::Invalid;
use crate::dma::{Dma, Session};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Weak};
use std::thread;

/// Turns that a thread that notifies serves before another one goes on.
const TURNS: usize = 16;

/// How a transport interrupts.
pub trait Signal: Send + Sync {
    /// Buffers of a queue were used.
    fn used(&self, queue: usize);
    /// The configuration space has changed.
    fn config(&self);
    /// No interrupt is asked for any more: the device was reset.
    fn clear(&self);
}

/// What is done with a queue: the part of a model that the core calls.
pub(super) trait Serve: Send + Sync {
    /// See [`super::Model::serve`].
    fn serve(&self, queue: usize, served: &mut Served<'_, '_>) -> Result<Then, Broken>;
    /// See [`super::Model::available`].
    fn available(&self, queue: usize) -> bool;
}

impl<M: super::Model> Serve for M {
    fn available(&self, queue: usize) -> bool {
        super::Model::available(self, queue)
    }

    fn serve(&self, queue: usize, served: &mut Served<'_, '_>) -> Result<Then, Broken> {
        super::Model::serve(self, queue, served)
    }
}

/// How it goes on with a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// All that was available was taken: the driver is to notify of more.
    Empty,
    /// Some may be left, for which the model comes back by itself ([`Core::kick`]).
    Later,
}

/// A queue while it is served.
pub struct Served<'s, 'm> {
    /// Guest memory.
    pub memory: &'s Session<'m>,
    ring: &'s mut AnyRing,
    /// Chains that may still be taken in this turn.
    left: usize,
    used: bool,
    paused: bool,
}

impl Served<'_, '_> {
    /// The machine is about to be saved: what has ended is given back, and nothing begun.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// The next chain, if there is one.
    ///
    /// # Errors
    /// It is none.
    pub fn pop(&mut self) -> Result<Option<Chain>, Broken> {
        if self.left == 0 {
            return Ok(None);
        }
        let chain = self.ring.pop(self.memory)?;
        self.left -= usize::from(chain.is_some());
        Ok(chain)
    }

    /// Gives a chain back, of which `len` bytes were written.
    ///
    /// # Errors
    /// The ring is not there.
    pub fn done(&mut self, head: u16, len: u32) -> Result<(), Broken> {
        self.used = true;
        self.ring.push(self.memory, head, len)
    }

    /// Gives chains back, by head, of which so many bytes were written. The driver sees all of them at once.
    ///
    /// # Errors
    /// The ring is not there.
    pub fn done_all(&mut self, used: &[(u16, u32)]) -> Result<(), Broken> {
        self.used |= !used.is_empty();
        self.ring.push_all(self.memory, used)
    }

    /// The last chains that were taken, in this turn and none of them given back, are available again.
    pub fn put_back(&mut self, heads: &[u16]) {
        self.left += heads.len();
        self.ring.unpop(heads);
    }

    /// Whether as many chains were taken as a ring can have.
    pub fn is_spent(&self) -> bool {
        self.left == 0
    }

    /// How many entries the ring has.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// For [`Core::with_queue`]: the driver is to notify of what it makes available from now on, behind what was taken.
    /// Whether there is something already.
    ///
    /// # Errors
    /// The ring is not there.
    pub fn ask_for_more(&mut self) -> Result<bool, Broken> {
        self.ring.enable_notifications(self.memory)
    }

    /// For [`Core::with_queue`]: the driver need not notify.
    ///
    /// # Errors
    /// The ring is not there.
    pub fn ask_for_no_more(&mut self) -> Result<(), Broken> {
        self.ring.disable_notifications(self.memory)
    }
}

struct Ringed {
    ring: AnyRing,
    /// The driver is at work (DRIVER_OK).
    running: bool,
    /// Nothing is taken out of the ring for now.
    paused: bool,
}

struct Queue {
    state: Mutex<Ringed>,
    /// Somebody has something for it.
    wanted: AtomicBool,
    /// A thread serves it.
    elsewhere: AtomicBool,
}

/// What the driver has set up.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Registers {
    status: u8,
    /// What the driver wants.
    features: u64,
    device_select: u32,
    driver_select: u32,
    queue_select: u16,
    generation: u8,
}

/// What is saved of it.
#[derive(Serialize, Deserialize)]
pub struct CoreV1 {
    registers: Registers,
    rings: Vec<AnyRingV1>,
}

/// What all virtio devices have.
pub struct Core {
    dma: Dma,
    signal: Arc<dyn Signal>,
    offered: u64,
    model: Weak<dyn Serve>,
    /// Held while status or queues are changed, which may wait for requests.
    control: Mutex<()>,
    registers: Mutex<Registers>,
    /// The driver has broken the rules: nothing is served until a reset.
    broken: AtomicBool,
    queues: Vec<Queue>,
}

/// Whether a turn has left something to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    More,
}

impl Core {
    /// Queues of these sizes, which `model` serves.
    pub(super) fn new(
        sizes: &[u16],
        dma: Dma,
        signal: Arc<dyn Signal>,
        offered: u64,
        model: Weak<dyn Serve>,
    ) -> Arc<Self> {
        let queue = |most: &u16| Queue {
            state: Mutex::new(Ringed { ring: AnyRing::new(*most), running: false, paused: false }),
            wanted: AtomicBool::new(false),
            elsewhere: AtomicBool::new(false),
        };
        Arc::new(Self {
            dma,
            signal,
            offered,
            model,
            control: Mutex::new(()),
            registers: Mutex::new(Registers::default()),
            broken: AtomicBool::new(false),
            queues: sizes.iter().map(queue).collect(),
        })
    }

    /// How many queues there are.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// The features that are offered.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// The device status.
    pub fn status(&self) -> u8 {
        self.registers.lock().status
    }

    /// The features that were agreed on, as far as they are.
    pub fn features(&self) -> u64 {
        self.registers.lock().features & self.offered
    }

    /// Whether a driver is at work.
    pub fn is_running(&self) -> bool {
        self.status() & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    /// The way into guest memory.
    pub fn dma(&self) -> &Dma {
        &self.dma
    }

    pub(super) fn control(&self) -> MutexGuard<'_, ()> {
        self.control.lock()
    }

    // Features, as both kinds of registers show them: 32 bits at a time.

    pub(super) fn select_device_features(&self, which: u32) {
        self.registers.lock().device_select = which;
    }

    pub(super) fn device_select(&self) -> u32 {
        self.registers.lock().device_select
    }

    /// The offered features that were selected, of which the driver sees those in `mask`.
    pub(super) fn device_features(&self, mask: u64) -> u32 {
        half(self.offered & mask, self.registers.lock().device_select)
    }

    pub(super) fn select_driver_features(&self, which: u32) {
        self.registers.lock().driver_select = which;
    }

    pub(super) fn driver_select(&self) -> u32 {
        self.registers.lock().driver_select
    }

    pub(super) fn driver_features(&self) -> u32 {
        let regs = self.registers.lock();
        half(regs.features, regs.driver_select)
    }

    pub(super) fn set_driver_features(&self, value: u32) {
        let which = self.registers.lock().driver_select;
        self.set_features(which, value);
    }

    /// The driver chooses 32 features, before it has said that it has chosen.
    pub(super) fn set_features(&self, which: u32, value: u32) {
        let mut regs = self.registers.lock();
        if regs.status & (status::FEATURES_OK | status::DRIVER_OK) == 0 && which < 2 {
            let shift = 32 * which;
            regs.features = regs.features & !(0xffff_ffff << shift) | u64::from(value) << shift;
        }
    }

    /// The configuration space's generation.
    pub(super) fn generation(&self) -> u8 {
        self.registers.lock().generation
    }

    /// The configuration space has changed: the driver is told of it.
    pub fn config_changed(&self) {
        let running = {
            let mut regs = self.registers.lock();
            regs.generation = regs.generation.wrapping_add(1);
            regs.status & status::DRIVER_OK != 0
        };
        if running {
            self.signal.config();
        }
    }

    // The queue that is selected.

    pub(super) fn select_queue(&self, queue: u16) {
        self.registers.lock().queue_select = queue;
    }

    pub(super) fn selected(&self) -> u16 {
        self.registers.lock().queue_select
    }

    /// Shows the ring of a queue, if there is such a queue.
    pub(super) fn ring<R>(self: &Arc<Self>, queue: usize, show: impl FnOnce(&mut AnyRing) -> R) -> Option<R> {
        let state = self.queues.get(queue)?.state.lock();
        Some(self.unlock(queue, state, |state| show(&mut state.ring)))
    }

    /// Changes the ring of a queue that the driver has not set up yet.
    pub(super) fn set_up(self: &Arc<Self>, queue: usize, change: impl FnOnce(&mut AnyRing)) {
        let packed = self.features() & feature::RING_PACKED != 0;
        self.ring(queue, |ring| {
            if !ring.is_ready() {
                ring.set_packed(packed);
                change(ring);
            }
        });
    }

    /// Uses the state of a queue, lets go of it, and sees to what somebody else wanted of it meanwhile.
    fn unlock<R>(
        self: &Arc<Self>,
        queue: usize,
        mut state: MutexGuard<'_, Ringed>,
        with: impl FnOnce(&mut Ringed) -> R,
    ) -> R {
        let result = with(&mut state);
        drop(state);
        fence(Ordering::SeqCst);
        if self.queues[queue].wanted.load(Ordering::SeqCst) {
            self.serve(queue);
        }
        result
    }

    fn each_queue(self: &Arc<Self>, change: impl Fn(&mut Ringed)) {
        for (n, q) in self.queues.iter().enumerate() {
            self.unlock(n, q.state.lock(), &change);
        }
    }

    // Status (3.1). The caller holds `control`.

    /// The driver writes a status that is no reset. What it has agreed on if it begins now.
    pub(super) fn begin(&self, value: u8) -> Option<u64> {
        let mut regs = self.registers.lock();
        let before = regs.status;
        let mut now = value & !status::NEEDS_RESET | before & status::NEEDS_RESET;
        if now & !before & status::FEATURES_OK != 0 && regs.features & !self.offered != 0 {
            tracing::debug!("a virtio driver wants features {:#x} of {:#x}", regs.features, self.offered);
            now &= !status::FEATURES_OK;
        }
        regs.status = now;
        let begins = now & !before & status::DRIVER_OK != 0 && now & status::NEEDS_RESET == 0;
        begins.then_some(regs.features & self.offered)
    }

    /// Queues are served from now on.
    pub(super) fn start(self: &Arc<Self>) {
        let event_idx = self.features() & feature::EVENT_IDX != 0;
        let packed = self.features() & feature::RING_PACKED != 0;
        self.each_queue(|state| {
            state.ring.set_packed(packed);
            state.ring.set_event_idx(event_idx);
            state.running = true;
        });
        self.kick_all();
    }

    /// Queues are as after a reset, and are not served any more.
    pub(super) fn stop(self: &Arc<Self>) {
        self.each_queue(|state| {
            state.running = false;
            state.ring.reset();
        });
        self.broken.store(false, Ordering::SeqCst);
    }

    /// No interrupt is asked for any more.
    pub(super) fn clear_signal(&self) {
        self.signal.clear();
    }

    /// The same for one queue; it is served again when it is set up.
    pub(super) fn stop_queue(self: &Arc<Self>, queue: usize) {
        let event_idx = self.features() & feature::EVENT_IDX != 0;
        self.ring(queue, |ring| {
            ring.reset();
            ring.set_event_idx(event_idx);
        });
    }

    /// All else is as after a reset.
    pub(super) fn reset_registers(&self) {
        *self.registers.lock() = Registers::default();
    }

    /// The driver has broken the rules (2.1.2).
    fn fail(&self, queue: usize, Broken(why): Broken) {
        self.broken.store(true, Ordering::SeqCst);
        let modern = {
            let mut regs = self.registers.lock();
            regs.status |= status::NEEDS_RESET;
            regs.features & feature::VERSION_1 != 0
        };
        tracing::warn!("a virtio device stops: queue {queue} has {why}");
        if modern {
            self.signal.config();
        }
    }

    // Service.

    /// There is something to do with a queue. Does not wait for anything.
    pub fn kick(self: &Arc<Self>, queue: usize) {
        let Some(q) = self.queues.get(queue) else { return };
        if self.model.upgrade().is_some_and(|model| model.available(queue)) {
            return;
        }
        q.wanted.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.serve(queue);
    }

    /// Works on a queue whose buffers the model takes when it has something for them ([`super::Model::available`]),
    /// with the queue's lock held, for which it waits. `work` gets none if the queue is not served now, as nobody
    /// drives the device or it is paused. None is returned if the driver has broken the rules.
    ///
    /// The caller may hold locks of its own that nobody waits for with the queue's lock held.
    pub fn with_queue<R>(
        self: &Arc<Self>,
        queue: usize,
        work: impl FnOnce(Option<&mut Served<'_, '_>>) -> Result<R, Broken>,
    ) -> Option<R> {
        let state = self.queues.get(queue)?.state.lock();
        let work = |state: &mut Ringed| {
            let open = state.running && !state.paused && state.ring.is_ready();
            let open = open && !self.broken.load(Ordering::SeqCst);
            let Some(memory) = open.then(|| self.dma.open().ok()).flatten() else { return work(None) };
            let left = usize::from(state.ring.size());
            let ring = &mut state.ring;
            let mut served = Served { memory: &memory, ring, left, used: false, paused: false };
            let result = work(Some(&mut served))?;
            if served.used && served.ring.wants_interrupt(&memory)? {
                self.signal.used(queue);
            }
            Ok(result)
        };
        self.unlock(queue, state, |state| work(state).map_err(|broken| self.fail(queue, broken)).ok())
    }

    /// There may be something to do with any queue.
    pub fn kick_all(self: &Arc<Self>) {
        (0..self.queues.len()).for_each(|n| self.kick(n));
    }

    fn serve(self: &Arc<Self>, queue: usize) {
        if self.turns(queue) == Left::Nothing || self.queues[queue].elsewhere.swap(true, Ordering::SeqCst) {
            return;
        }
        let core = Arc::downgrade(self);
        let on = move || {
            while let Some(core) = core.upgrade() {
                let q = &core.queues[queue];
                if core.turns(queue) == Left::Nothing {
                    q.elsewhere.store(false, Ordering::SeqCst);
                    fence(Ordering::SeqCst);
                    if !q.wanted.load(Ordering::SeqCst) || q.elsewhere.swap(true, Ordering::SeqCst) {
                        break;
                    }
                }
                thread::yield_now();
            }
        };
        let thread = thread::Builder::new().name("virtio queue".into()).stack_size(256 << 10);
        if let Err(e) = thread.spawn(on) {
            tracing::warn!("a virtio queue waits for its next notification: {e}");
            self.queues[queue].elsewhere.store(false, Ordering::SeqCst);
        }
    }

    /// Serves a queue for some turns, unless somebody else does.
    fn turns(&self, queue: usize) -> Left {
        let q = &self.queues[queue];
        for _ in 0..TURNS {
            let Some(mut state) = q.state.try_lock() else { return Left::Nothing };
            if q.wanted.swap(false, Ordering::SeqCst) && self.turn(queue, &mut state) == Left::More {
                q.wanted.store(true, Ordering::SeqCst);
            }
            drop(state);
            fence(Ordering::SeqCst);
            if !q.wanted.load(Ordering::SeqCst) {
                return Left::Nothing;
            }
        }
        Left::More
    }

    fn turn(&self, queue: usize, state: &mut Ringed) -> Left {
        if !state.running || !state.ring.is_ready() || self.broken.load(Ordering::SeqCst) {
            return Left::Nothing;
        }
        // It comes back when the function may master the bus again.
        let (Some(model), Ok(memory)) = (self.model.upgrade(), self.dma.open()) else { return Left::Nothing };
        let left = if state.paused { 0 } else { usize::from(state.ring.size()) };
        let paused = state.paused;
        let mut served = Served { memory: &memory, ring: &mut state.ring, left, used: false, paused };
        match Self::exchange(&*model, queue, &mut served) {
            Ok((left, interrupt)) => {
                if interrupt {
                    self.signal.used(queue);
                }
                left
            }
            Err(broken) => {
                self.fail(queue, broken);
                Left::Nothing
            }
        }
    }

    fn exchange(
        model: &dyn Serve,
        queue: usize,
        served: &mut Served<'_, '_>,
    ) -> Result<(Left, bool), Broken> {
        let memory = served.memory;
        let all = served.left;
        if all > 0 {
            served.ring.disable_notifications(memory)?;
        }
        let then = model.serve(queue, served)?;
        let mut left = Left::Nothing;
        if then == Then::Empty && all > 0 && served.ring.enable_notifications(memory)? {
            left = Left::More;
        }
        let interrupt = served.used && served.ring.wants_interrupt(memory)?;
        Ok((left, interrupt))
    }

    /// Takes nothing out of rings for now, or does again.
    pub(super) fn set_paused(self: &Arc<Self>, paused: bool) {
        self.each_queue(|state| state.paused = paused);
    }

    /// What is saved of it.
    pub(super) fn save(self: &Arc<Self>) -> CoreV1 {
        CoreV1 {
            rings: (0..self.queues.len()).filter_map(|n| self.ring(n, |ring| ring.save())).collect(),
            registers: self.registers.lock().clone(),
        }
    }

    /// Takes on what was saved.
    pub(super) fn restore(self: &Arc<Self>, saved: CoreV1) -> Result<(), Invalid> {
        if saved.rings.len() != self.queues.len() {
            return Err(Invalid("the number of virtqueues"));
        }
        let ok = saved.registers.status & status::DRIVER_OK != 0;
        let packed = saved.registers.features & self.offered & feature::RING_PACKED != 0;
        self.broken.store(saved.registers.status & status::NEEDS_RESET != 0, Ordering::SeqCst);
        for (q, ring) in self.queues.iter().zip(saved.rings) {
            let mut state = q.state.lock();
            state.ring.restore(ring, packed)?;
            state.running = ok;
            q.wanted.store(false, Ordering::SeqCst);
        }
        *self.registers.lock() = saved.registers;
        Ok(())
    }
}

/// Bits 0 to 31 or 32 to 63; none for other selectors.
fn half(all: u64, which: u32) -> u32 {
    match which {
        0 => all as u32,
        1 => (all >> 32) as u32,
        _ => 0,
    }
}
