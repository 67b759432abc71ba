//! A thread for what may wait, as the event loop must not: writes to standard output and to files.
//!
//! Jobs come one after another; one that has more to do asks for another turn, so that several can share the thread.
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    started: bool,
    quit: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

/// The thread, which is started when it is first needed. One that hangs in a job when this is dropped is left behind.
pub(super) struct Worker {
    name: &'static str,
    shared: Arc<Shared>,
}

impl Worker {
    /// A thread of this name, not started yet.
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, shared: Arc::default() }
    }

    /// Starts the thread, unless that has been done.
    pub(super) fn start(&self) -> io::Result<()> {
        let mut queue = self.shared.queue.lock();
        if !queue.started {
            let theirs = self.shared.clone();
            thread::Builder::new().name(self.name.to_owned()).spawn(move || theirs.run())?;
            queue.started = true;
        }
        Ok(())
    }

    /// Has the thread call `job`, after what it has been given before.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        self.shared.queue.lock().jobs.push_back(Box::new(job));
        self.shared.wake.notify_one();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.queue.lock().quit = true;
        self.shared.wake.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let job = {
                let mut queue = self.queue.lock();
                loop {
                    match queue.jobs.pop_front() {
                        Some(job) => break job,
                        None if queue.quit => return,
                        None => self.wake.wait(&mut queue),
                    }
                }
            };
            // The panic's hook has ended the machine; others may still have something to write.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    }
}
