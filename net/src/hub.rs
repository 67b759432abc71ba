//! A hub: what one port sends, all others receive.
use crate::{Backend, Frame, MAX_FRAME, Nic, Takes, offload};
use parking_lot::RwLock;
use std::sync::{Arc, OnceLock};

/// A hub with any number of ports.
#[derive(Default)]
pub struct Hub {
    nics: RwLock<Vec<(usize, Arc<dyn Nic>)>>,
    ports: RwLock<usize>,
}

impl Hub {
    /// A hub without ports.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Adds a port, for one card.
    pub fn port(self: &Arc<Self>) -> Arc<Port> {
        let mut ports = self.ports.write();
        *ports += 1;
        Arc::new(Port { hub: self.clone(), number: *ports, connected: OnceLock::new() })
    }
}

impl Hub {
    /// Puts another back end on a port of its own. One that has a lock of its own while it gives frames away, as the NAT
    /// has, may be there only once.
    pub fn join(self: &Arc<Self>, backend: &Arc<dyn Backend>) {
        let port = self.port();
        port.connect(Arc::new(Outward(backend.clone())));
        backend.connect(Arc::new(Inward(port)));
    }
}

/// A back end as a port sees it.
struct Outward(Arc<dyn Backend>);

impl Nic for Outward {
    fn can_receive(&self) -> bool {
        true
    }
    fn receive(&self, frame: &Frame<'_>) -> bool {
        self.0.send(frame);
        true
    }
    fn takes(&self) -> Takes {
        self.0.takes()
    }
}

/// A port as a back end sees it.
struct Inward(Arc<Port>);

impl Nic for Inward {
    fn can_receive(&self) -> bool {
        true
    }
    fn receive(&self, frame: &Frame<'_>) -> bool {
        self.0.send(frame);
        true
    }
    fn takes(&self) -> Takes {
        self.0.takes()
    }
}

/// A port of a [`Hub`].
pub struct Port {
    hub: Arc<Hub>,
    number: usize,
    connected: OnceLock<()>,
}

impl Backend for Port {
    fn connect(&self, nic: Arc<dyn Nic>) {
        if self.connected.set(()).is_ok() {
            self.hub.nics.write().push((self.number, nic));
        }
    }

    fn send(&self, frame: &Frame<'_>) {
        if frame.len() > MAX_FRAME {
            return;
        }
        // No lock is held while a card's handler runs: it may answer at once.
        let others: Vec<_> = self
            .hub
            .nics
            .read()
            .iter()
            .filter(|(n, _)| *n != self.number)
            .map(|(_, nic)| nic.clone())
            .collect();
        for nic in others {
            if nic.can_receive() {
                offload::deliver(frame, nic.takes(), &mut |frame| _ = nic.receive(frame));
            }
        }
    }

    fn takes(&self) -> Takes {
        Takes { partial: true, tso4: true, tso6: true, uso4: true, uso6: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::io::IoSlice;

    #[derive(Default)]
    struct Card {
        got: Mutex<Vec<Vec<u8>>>,
        full: bool,
    }
    impl Nic for Card {
        fn can_receive(&self) -> bool {
            !self.full
        }
        fn receive(&self, frame: &Frame<'_>) -> bool {
            self.got.lock().push(frame.to_vec());
            true
        }
    }

    #[test]
    fn a_frame_reaches_every_port_but_its_own() {
        let hub = Hub::new();
        let cards = [Card::default(), Card::default(), Card { full: true, ..Card::default() }].map(Arc::new);
        let ports: Vec<_> = cards
            .iter()
            .map(|c| {
                let p = hub.port();
                p.connect(c.clone());
                p
            })
            .collect();
        ports[0].send(&Frame::new(&[IoSlice::new(b"hello")]));
        assert!(cards[0].got.lock().is_empty());
        assert_eq!(*cards[1].got.lock(), [b"hello"]);
        assert!(cards[2].got.lock().is_empty(), "a card without room is passed over");
        ports[1].send(&Frame::new(&[IoSlice::new(&vec![0; MAX_FRAME + 1])]));
        assert!(cards[0].got.lock().is_empty(), "what is no frame goes nowhere");
    }
}
