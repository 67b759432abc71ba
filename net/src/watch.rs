//! What stands between a card and a back end and looks at each frame, both ways.
use crate::{Backend, Frame, Nic, Takes};
use parking_lot::Mutex;
use std::sync::Arc;

/// What is done with a frame that passes.
pub trait Record: Send {
    /// A frame passes, from the guest or to it.
    fn record(&mut self, from_guest: bool, frame: &Frame<'_>);
}

/// Shows a recorder what passes between a card and a back end.
pub struct Watch<R> {
    behind: Arc<dyn Backend>,
    record: Arc<Mutex<R>>,
}

impl<R: Record + 'static> Watch<R> {
    /// Puts a recorder in front of `behind`.
    pub fn new(behind: Arc<dyn Backend>, record: R) -> Arc<Self> {
        Arc::new(Self { behind, record: Arc::new(Mutex::new(record)) })
    }
}

struct Tap<R> {
    nic: Arc<dyn Nic>,
    record: Arc<Mutex<R>>,
}

impl<R: Record> Nic for Tap<R> {
    fn can_receive(&self) -> bool {
        self.nic.can_receive()
    }
    fn receive(&self, frame: &Frame<'_>) -> bool {
        let taken = self.nic.receive(frame);
        if taken {
            self.record.lock().record(false, frame);
        }
        taken
    }
    fn takes(&self) -> Takes {
        self.nic.takes()
    }
    fn paces(&self) -> bool {
        self.nic.paces()
    }
}

impl<R: Record + 'static> Backend for Watch<R> {
    fn connect(&self, nic: Arc<dyn Nic>) {
        self.behind.connect(Arc::new(Tap { nic, record: self.record.clone() }));
    }
    fn send(&self, frame: &Frame<'_>) {
        self.record.lock().record(true, frame);
        self.behind.send(frame);
    }
    fn wake(&self) {
        self.behind.wake();
    }
    fn takes(&self) -> Takes {
        self.behind.takes()
    }
}
