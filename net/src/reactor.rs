//! What back ends need of an event loop: to be told when a socket is ready and when a time has come.
//!
//! A machine has one loop for all its devices, in a crate above this one, and implements [`Reactor`] on it, one for each
//! back end.
use socket2::Socket;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// Which of a back end's sockets it is: passed to [`Handler::ready`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// An event loop as a back end sees it.
pub trait Reactor: Send + Sync {
    /// The time.
    fn now(&self) -> Instant;
    /// Prepares to wait for `socket`, for nothing yet. What is ready is told by [`Handler::ready`], never from within a
    /// call of the back end's.
    fn register(&self, socket: &Arc<Socket>, token: Token) -> io::Result<Box<dyn Interest>>;
    /// Calls [`Handler::due`] at `deadline`, in place of what was set before.
    fn set_timer(&self, deadline: Option<Instant>);
}

/// A socket that is waited for, until this is dropped.
pub trait Interest: Send {
    /// What is waited for from now on, for one call.
    fn want(&self, read: bool, write: bool) -> io::Result<()>;
}

/// Who is told.
pub trait Handler: Send + Sync {
    /// A socket is ready, which the loop was asked to wait for.
    fn ready(&self, token: Token, read: bool, write: bool);
    /// The time has come that was set with [`Reactor::set_timer`].
    fn due(&self);
}
