//! To the guest: a frame goes into as many of the driver's buffers as it takes, when it comes.
//!
//! A frame for which there are no buffers is refused: its pair is starved then, the driver is asked to notify of
//! buffers, and when it does so what is behind the card is told. The driver is not asked as long as there are some. All
//! of that is decided with the queue's lock held, so that no buffer goes unnoticed.
use super::super::Served;
use super::super::chain::{self, Broken, Chain};
use super::{Net, feature, filter, header};
use crate::dma::Session;
use mynah_net::{Frame, MAX_FRAME, Nic, Takes, offload};
use smallvec::SmallVec;
use std::sync::atomic::{AtomicBool, Ordering};

/// Buffers of a frame, by head, and bytes in each. 64 KiB in buffers of 4 KiB need no memory of their own.
type Used = SmallVec<[(u16, u32); 20]>;

/// How one frame goes.
struct Delivery<'a> {
    frame: &'a Frame<'a>,
    /// Bytes of the header.
    head: usize,
    /// What the driver takes.
    offloads: u64,
    mergeable: bool,
}

impl Delivery<'_> {
    /// Puts the frame into buffers; whether it is seen to. What is too long for the buffers that the driver has is
    /// dropped.
    fn run(&self, served: &mut Served<'_, '_>, starved: &AtomicBool) -> Result<bool, Broken> {
        let need = self.head + self.frame.len();
        let (mut used, mut done, mut pieces) = (Used::new(), 0, 0);
        let mut first = None;
        while done < need {
            let Some(chain) = served.pop()? else {
                let full = served.is_spent() || pieces >= usize::from(served.size());
                if !full {
                    starved.store(true, Ordering::SeqCst);
                    if served.ask_for_more()? {
                        starved.store(false, Ordering::SeqCst);
                        served.ask_for_no_more()?;
                        continue;
                    }
                }
                put_back(served, &used);
                return Ok(full);
            };
            let room = chain::total(&chain.writable);
            if room < if done == 0 { self.head as u64 } else { 1 } {
                return Err(Broken("a buffer for frames without room for one"));
            }
            let n = room.min((need - done) as u64) as usize;
            used.push((chain.head, n as u32));
            if n < need - done && !self.mergeable {
                put_back(served, &used);
                return Ok(true);
            }
            self.fill(served.memory, &chain, done, n)?;
            pieces += chain.writable.len() + chain.readable.len();
            done += n;
            first.get_or_insert(chain);
        }
        let header = header::build(self.frame, self.offloads, used.len() as u16);
        if let Some(chain) = first {
            write(served.memory, &chain, 0, &header[..self.head])?;
        }
        served.done_all(&used)?;
        Ok(true)
    }

    /// Writes `n` bytes of header and frame, from the one at `from` on, to a buffer. The header's come last of all.
    fn fill(&self, memory: &Session<'_>, chain: &Chain, from: usize, n: usize) -> Result<(), Broken> {
        let skip = if from == 0 { self.head } else { 0 };
        let mut at = skip as u64;
        for bytes in self.frame.slices(from + skip - self.head, n - skip) {
            write(memory, chain, at, bytes)?;
            at += bytes.len() as u64;
        }
        Ok(())
    }
}

fn write(memory: &Session<'_>, chain: &Chain, at: u64, bytes: &[u8]) -> Result<(), Broken> {
    let written = chain::write(memory, &chain.writable, at, bytes);
    if written { Ok(()) } else { Err(Broken("a buffer that is not in memory")) }
}

fn put_back(served: &mut Served<'_, '_>, used: &Used) {
    let heads: SmallVec<[u16; 20]> = used.iter().map(|(head, _)| *head).collect();
    served.put_back(&heads);
}

impl Net {
    /// Gives the driver a frame that is as it takes it, into a pair's queue; whether it is seen to.
    fn deliver(&self, pair: usize, frame: &Frame<'_>, offloads: u64) -> bool {
        let (Some(core), Some(to)) = (self.core(), self.pairs.get(pair)) else { return false };
        let features = self.features();
        let delivery = Delivery {
            frame,
            head: header::len(features),
            offloads,
            mergeable: features & feature::MRG_RXBUF != 0,
        };
        let seen_to = core.with_queue(2 * pair, |served| {
            let Some(served) = served else {
                to.starved.store(true, Ordering::SeqCst);
                return Ok(false);
            };
            delivery.run(served, &to.starved)
        });
        // A device that its driver has broken takes everything.
        seen_to.unwrap_or(true)
    }

    /// There may be buffers in a pair's queue.
    pub(super) fn replenished(&self, pair: usize) {
        let (Some(core), Some(to)) = (self.core(), self.pairs.get(pair)) else { return };
        let waited = core.with_queue(2 * pair, |served| {
            // One that is not served goes on as it is: there is another call when it is.
            let Some(served) = served else { return Ok(false) };
            served.ask_for_no_more()?;
            Ok(to.starved.swap(false, Ordering::SeqCst))
        });
        if waited == Some(true) {
            self.link.wake();
        }
    }

    /// Whoever has a frame for a pair tries again.
    pub(super) fn wake(&self) {
        let waited = self.pairs.iter().filter(|p| p.starved.swap(false, Ordering::SeqCst)).count();
        if waited > 0 {
            self.link.wake();
        }
    }
}

/// What a driver takes that has these offloads on.
fn takes(offloads: u64) -> Takes {
    let has = |bits: u64| offloads & bits == bits;
    let with_sums = |bit: u64| has(feature::GUEST_CSUM | bit);
    Takes {
        partial: has(feature::GUEST_CSUM),
        tso4: with_sums(feature::GUEST_TSO4),
        tso6: with_sums(feature::GUEST_TSO6),
        uso4: with_sums(feature::GUEST_USO4),
        uso6: with_sums(feature::GUEST_USO6),
    }
}

impl Nic for Net {
    fn can_receive(&self) -> bool {
        let pairs = self.settings.lock().listening();
        self.pairs.iter().take(pairs).all(|p| !p.starved.load(Ordering::SeqCst))
    }

    fn receive(&self, frame: &Frame<'_>) -> bool {
        let (offloads, pair) = {
            let settings = self.settings.lock();
            if frame.len() > MAX_FRAME || !settings.filter.passes(frame, settings.mac) {
                return true;
            }
            let pair = match (&settings.rss, settings.pairs) {
                (Some(rss), _) => rss.pair(frame),
                (None, 0 | 1) => 0,
                (None, n) => self.flows[usize::from(filter::flow(frame))].load(Ordering::Relaxed) % n,
            };
            (settings.offloads, pair)
        };
        let (pair, takes) = (usize::from(pair), takes(offloads));
        if takes.includes(&frame.offload) {
            return self.deliver(pair, frame, offloads);
        }
        // The driver has changed its mind since this was made.
        let mut first = None;
        offload::deliver(frame, takes, &mut |frame| {
            if first != Some(false) {
                let seen_to = self.deliver(pair, frame, offloads);
                first.get_or_insert(seen_to);
            }
        });
        first.unwrap_or(true)
    }

    fn takes(&self) -> Takes {
        takes(self.settings.lock().offloads)
    }
}
