//! What waits at a port: bounded, and fair between those whom it comes from.
//!
//! Each source has a lane, and lanes take turns by octets (deficit round robin: Shreedhar and Varghese, 1995). When
//! there is no more room the longest lane loses its newest frame: who sends too much loses his own.
use std::collections::VecDeque;
use std::sync::Arc;

/// A frame, shared by all ports that it waits at.
pub type Shared = Arc<[u8]>;

/// What a lane may send in its turn.
const QUANTUM: usize = 9_018;
/// What a frame takes beside its octets.
const OVERHEAD: usize = 64;

struct Lane {
    source: usize,
    frames: VecDeque<Shared>,
    /// With the overhead.
    octets: usize,
    credit: usize,
}

/// A port's queue.
pub struct Queue {
    lanes: VecDeque<Lane>,
    octets: usize,
    limit: usize,
}

impl Queue {
    /// One that holds at most `limit` octets, of which each frame takes some for itself.
    pub fn new(limit: usize) -> Self {
        Self { lanes: VecDeque::new(), octets: 0, limit }
    }

    /// Puts a frame at its source's end; how many were lost for want of room, this one or others.
    pub fn push(&mut self, source: usize, frame: Shared) -> u64 {
        let cost = frame.len() + OVERHEAD;
        if cost > self.limit {
            return 1;
        }
        let mut lost = 0;
        while self.octets + cost > self.limit {
            let own = self.lanes.iter().find(|l| l.source == source).map_or(0, |l| l.octets);
            let Some(longest) = self.lanes.iter_mut().max_by_key(|l| l.octets) else { break };
            // Of two that are as long, who is here already stays.
            if longest.octets <= own + cost {
                return lost + 1;
            }
            if let Some(gone) = longest.frames.pop_back() {
                longest.octets -= gone.len() + OVERHEAD;
                self.octets -= gone.len() + OVERHEAD;
                lost += 1;
            }
        }
        self.octets += cost;
        match self.lanes.iter_mut().find(|l| l.source == source) {
            Some(lane) => {
                lane.octets += cost;
                lane.frames.push_back(frame);
            }
            None => self.lanes.push_back(Lane {
                source,
                frames: VecDeque::from([frame]),
                octets: cost,
                credit: QUANTUM,
            }),
        }
        lost
    }

    /// The length of the frame that is next; it stays so until it is taken or one is put in.
    pub fn next_len(&mut self) -> Option<usize> {
        loop {
            let lane = self.lanes.front_mut()?;
            match lane.frames.front().map(|f| f.len()) {
                // It has lost all it had.
                None => _ = self.lanes.pop_front(),
                Some(len) if len <= lane.credit => return Some(len),
                Some(_) => {
                    lane.credit += QUANTUM;
                    self.lanes.rotate_left(1);
                }
            }
        }
    }

    /// Takes the next frame.
    pub fn pop(&mut self) -> Option<Shared> {
        let len = self.next_len()?;
        let lane = self.lanes.front_mut()?;
        let frame = lane.frames.pop_front()?;
        lane.credit = lane.credit.saturating_sub(len);
        lane.octets -= len + OVERHEAD;
        self.octets -= len + OVERHEAD;
        if lane.frames.is_empty() {
            self.lanes.pop_front();
        }
        Some(frame)
    }

    /// Throws all away.
    pub fn clear(&mut self) {
        self.lanes.clear();
        self.octets = 0;
    }

    /// Octets that wait, with what frames take for themselves.
    pub fn octets(&self) -> usize {
        self.octets
    }

    /// The most of them.
    pub fn limit(&self) -> usize {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(source: usize, n: u32, len: usize) -> Shared {
        let mut bytes = vec![source as u8; len];
        bytes[1..5].copy_from_slice(&n.to_be_bytes());
        bytes.into()
    }

    #[test]
    fn who_floods_loses_his_own_frames() {
        let mut queue = Queue::new(100_000);
        let mut lost = 0;
        for n in 0..1000 {
            lost += queue.push(0, frame(0, n, 1000));
        }
        assert_eq!(lost, 1000 - 100_000 / 1064);
        // One that sends little finds room, and does not wait for all of the other's.
        assert_eq!(queue.push(1, frame(1, 0, 1000)), 1);
        assert!(queue.octets() <= queue.limit());
        let order: Vec<u8> = std::iter::from_fn(|| queue.pop()).map(|f| f[0]).collect();
        let place = order.iter().position(|s| *s == 1).unwrap();
        assert!(place <= 10, "its turn comes after one of the other's: {place}");
        assert_eq!((queue.octets(), order.len()), (0, 93));
    }

    #[test]
    fn three_that_flood_share_alike_and_each_in_order() {
        let mut queue = Queue::new(1 << 20);
        for n in 0..3000 {
            for (source, len) in [(7, 60), (8, 1514), (9, 9000)] {
                queue.push(source, frame(source, n, len));
            }
        }
        let (mut octets, mut last) = ([0_usize; 3], [None; 3]);
        for _ in 0..400 {
            let f = queue.pop().unwrap();
            let of = usize::from(f[0]) - 7;
            octets[of] += f.len();
            let n = u32::from_be_bytes([f[1], f[2], f[3], f[4]]);
            assert!(last[of] < Some(n), "frames of a source stay in order");
            last[of] = Some(n);
        }
        let (least, most) = (octets.iter().min().unwrap(), octets.iter().max().unwrap());
        assert!(most - least <= 2 * QUANTUM, "{octets:?}");
    }

    #[test]
    fn a_queue_that_was_emptied_is_as_new() {
        let mut queue = Queue::new(5000);
        assert_eq!(queue.push(3, frame(3, 0, 6000)), 1, "it never fits");
        for n in 0..9 {
            queue.push(n % 2, frame(n, 0, 900));
        }
        queue.clear();
        assert_eq!((queue.octets(), queue.pop(), queue.next_len()), (0, None, None));
        assert_eq!(queue.push(3, frame(3, 0, 4000)), 0);
        assert_eq!(queue.next_len(), Some(4000));
    }
}
