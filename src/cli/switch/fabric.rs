//! The switch with its clock, and who sends what it has for each port.
//!
//! Locks: the switch's is a leaf, held for no call to anybody. A port's own may be held when it is taken, so that ports
//! are told of what waits for them ([`Fabric::flush`]) with no lock held at all.
use mynah_devices::event_loop::{EventLoop, TimedSource, Timer};
use mynah_net::switch::{PortConfig, Switch};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Who sends what the switch has for a port.
pub trait Outlet: Send + Sync {
    /// Sends what there is, as far as it can be sent now.
    fn drain(&self);
}

/// The switch and its ports.
pub struct Fabric {
    pub events: Arc<EventLoop>,
    switch: Mutex<Switch>,
    outlets: Mutex<Vec<Option<Arc<dyn Outlet>>>>,
    start: Instant,
    flushing: AtomicBool,
    posted: AtomicBool,
}

impl Fabric {
    /// One without ports.
    pub fn new(events: Arc<EventLoop>, stations: usize, ageing: Duration) -> Arc<Self> {
        Arc::new(Self {
            events,
            switch: Mutex::new(Switch::new(stations, ageing)),
            outlets: Mutex::default(),
            start: Instant::now(),
            flushing: AtomicBool::new(false),
            posted: AtomicBool::new(false),
        })
    }

    /// The switch's time.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// When that is for the host.
    pub fn at(&self, time: Duration) -> Instant {
        // What is further away than the host can say is never.
        self.start.checked_add(time).unwrap_or_else(|| self.start + Duration::from_secs(1 << 31))
    }

    /// Looks at the switch, or changes it. `work` calls nobody else.
    pub fn with<R>(&self, work: impl FnOnce(&mut Switch) -> R) -> R {
        work(&mut self.switch.lock())
    }

    /// Adds a port that nobody is at.
    pub fn add(&self, config: PortConfig) -> Result<usize, String> {
        let port = self.with(|s| s.add(config))?;
        self.outlets.lock().resize_with(port + 1, || None);
        Ok(port)
    }

    /// Somebody is at a port now, or nobody any more.
    pub fn connect(&self, port: usize, outlet: Option<Arc<dyn Outlet>>) {
        self.with(|s| s.connect(port, outlet.is_some()));
        let before = self.outlets.lock().get_mut(port).and_then(|o| std::mem::replace(o, outlet));
        drop(before);
    }

    /// Has each port send that has been given something. To be called with no lock held.
    pub fn flush(&self) {
        loop {
            if self.flushing.swap(true, Ordering::SeqCst) {
                // Whoever is at it sees to this as well.
                return;
            }
            loop {
                let woken = self.with(Switch::take_woken);
                if woken.is_empty() {
                    break;
                }
                for port in woken {
                    let outlet = self.outlets.lock().get(port).cloned().flatten();
                    if let Some(outlet) = outlet {
                        outlet.drain();
                    }
                }
            }
            self.flushing.store(false, Ordering::SeqCst);
            if self.with(|s| !s.has_woken()) {
                return;
            }
        }
    }

    /// The same from where locks are held: the loop does it when it is free.
    pub fn flush_later(self: &Arc<Self>) {
        if !self.posted.swap(true, Ordering::SeqCst) {
            let fabric = self.clone();
            self.events.post(move || {
                fabric.posted.store(false, Ordering::SeqCst);
                fabric.flush();
            });
        }
    }
}

/// Two deadlines on one timer: when more may come in, and when more may go out.
pub struct Waits {
    timer: Timer,
    times: Mutex<[Option<Duration>; 2]>,
}

/// Which of the two.
#[derive(Clone, Copy)]
pub enum Wait {
    /// More may come in.
    Input = 0,
    /// More may go out.
    Output = 1,
}

impl Waits {
    /// Those of `owner`.
    pub fn new(fabric: &Fabric, owner: Weak<dyn TimedSource>) -> Self {
        Self { timer: fabric.events.timer(owner), times: Mutex::default() }
    }

    /// Sets one of both.
    pub fn set(&self, fabric: &Fabric, which: Wait, at: Option<Duration>) {
        let mut times = self.times.lock();
        if times[which as usize] != at {
            times[which as usize] = at;
            let first = times.iter().flatten().min();
            self.timer.set(first.map(|at| fabric.at(*at)));
        }
    }

    /// Which of both have come, when the timer has run out. They are set no longer.
    pub fn take_due(&self, fabric: &Fabric) -> [bool; 2] {
        let now = fabric.now();
        let mut times = self.times.lock();
        let due = times.map(|at| at.is_some_and(|at| at <= now));
        for (time, due) in times.iter_mut().zip(due) {
            if due {
                *time = None;
            }
        }
        let first = times.iter().flatten().min();
        self.timer.set(first.map(|at| fabric.at(*at)));
        due
    }
}
