//! Our NAT behind the guest's card, on the guest's thread.
use crate::guest::{HEADERS, Link, parts};
use mynah_net::user::{Config, Poll, User};
use mynah_net::{Backend, Frame, Gso, Nic, Offload, Partial, Takes};
use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Default)]
struct Came {
    /// Where a frame is put, as a guest's memory.
    memory: Vec<u8>,
    heads: Vec<([u8; HEADERS + 8], usize)>,
}

struct Card {
    came: Mutex<Came>,
    long: bool,
}

impl Nic for Card {
    fn can_receive(&self) -> bool {
        true
    }

    fn receive(&self, frame: &Frame<'_>) -> bool {
        let came = &mut *self.came.lock().unwrap();
        came.memory.clear();
        frame.parts.iter().for_each(|p| came.memory.extend_from_slice(p));
        black_box(&came.memory);
        let mut head = [0; HEADERS + 8];
        let n = came.memory.len().min(head.len());
        head[..n].copy_from_slice(&came.memory[..n]);
        came.heads.push((head, came.memory.len()));
        true
    }

    fn takes(&self) -> Takes {
        Takes { partial: self.long, tso4: self.long, tso6: self.long, ..Takes::default() }
    }
}

/// The NAT.
pub struct Nat {
    user: Arc<User>,
    poll: Poll,
    card: Arc<Card>,
}

impl Nat {
    /// One whose card takes long segments, or frames of 1,500 bytes with their checksums.
    pub fn new(long: bool) -> Self {
        let poll = Poll::new();
        let user = User::new(Config::default(), Arc::new(poll.clone())).unwrap();
        let card = Arc::new(Card { came: Mutex::default(), long });
        user.connect(card.clone());
        Self { user, poll, card }
    }
}

impl Link for Nat {
    fn gateway(&self) -> ([u8; 6], [u8; 4]) {
        ([0x52, 0x55, 10, 0, 2, 2], [10, 0, 2, 2])
    }

    fn mss(&self) -> (usize, u16) {
        (if self.card.long { 44 * 1460 } else { 1460 }, 1460)
    }

    fn send(&mut self, head: &[u8], data: &[u8]) {
        let gso = (data.len() > 1460).then_some(Gso { v6: false, size: 1460 });
        let partial = Some(Partial { start: 34, offset: 16 });
        self.user.send(&Frame { offload: Offload { partial, gso, valid: false }, parts: &parts(head, data) });
    }

    fn turn(&mut self, most: Duration, frame: &mut dyn FnMut(&[u8], usize)) {
        // What has come already as an answer to a frame is not waited for.
        if !most.is_zero() && self.card.came.lock().unwrap().heads.is_empty() {
            self.poll.turn(&self.user, most);
        }
        for (head, len) in self.card.came.lock().unwrap().heads.drain(..) {
            frame(&head, len);
        }
    }

    fn cpu(&self) -> Duration {
        Duration::ZERO
    }
}
