//! A mutex for what several threads want at the same moment, as a vCPU and the event loop do for each frame that is
//! answered at once.
use std::sync::{MutexGuard, PoisonError};

/// One that waits asleep, after it has tried for some microseconds. `parking_lot`'s gives way to other threads first
/// (sched_yield(2)), which on a host with other work costs a time slice of theirs.
///
/// A thread that panics with it leaves what is in it as it is, as with `parking_lot`'s.
#[derive(Debug, Default)]
pub struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// A mutex that nobody has.
    pub const fn new(inner: T) -> Self {
        Self(std::sync::Mutex::new(inner))
    }

    /// Waits until nobody else has it. A thread that has it already waits for ever.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
