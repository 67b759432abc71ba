//! A bad line in front of a back end: frames are lost, late, doubled, out of order, corrupted, or come at a rate.
//!
//! ```text
//!   card --Backend::send--> [from the guest: dice, queue] --> back end
//!        <--Nic::receive--- [to the guest:   dice, queue] <--
//! ```
//!
//! What happens to a frame depends on the seed and on how many frames have gone the same way before, and on no clock.
//! Frames are those of a wire: nothing is left to the receiver, so that what is corrupted has a wrong checksum.
use crate::{Backend, Frame, Nic, Takes};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::str::FromStr;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

/// Frames that wait in each direction: more are lost, as in a switch.
const QUEUE: usize = 1000;
/// A chance of one.
const ALWAYS: u32 = 1_000_000;

/// A chance, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chance(u32);

impl FromStr for Chance {
    type Err = String;

    /// A percentage with up to four decimals, with or without its sign: `5`, `0.5%`.
    fn from_str(text: &str) -> Result<Self, String> {
        let number: f64 =
            text.strip_suffix('%').unwrap_or(text).parse().map_err(|_| "it is no percentage")?;
        if !(0.0..=100.0).contains(&number) {
            return Err("a percentage is from 0 to 100".into());
        }
        Ok(Self((number * f64::from(ALWAYS) / 100.0).round() as u32))
    }
}

/// What is wrong with the line.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// Frames that are lost.
    pub loss: Chance,
    /// Frames that come twice.
    pub duplicate: Chance,
    /// Frames of which one bit is another, behind the addresses.
    pub corrupt: Chance,
    /// Frames of which the end is missing, behind the addresses.
    pub cut: Chance,
    /// Frames that overtake those that are late.
    pub reorder: Chance,
    /// How late frames are.
    pub delay: Duration,
    /// How much later or earlier than that, at most.
    pub jitter: Duration,
    /// Bits in a second; 0 for as many as there are.
    pub rate: u64,
    /// Whether frames from the guest have it.
    pub from_guest: bool,
    /// Whether frames to the guest have it.
    pub to_guest: bool,
    /// What the dice begin with.
    pub seed: u64,
}

/// What has become of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames that came.
    pub seen: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Lost as too many waited.
    pub overrun: u64,
    /// Given twice.
    pub doubled: u64,
    /// Changed.
    pub corrupted: u64,
    /// Given without their end.
    pub cut: u64,
    /// Given before their time.
    pub reordered: u64,
}

/// Calls [`Fault::due`] at a time.
pub trait Alarm: Send + Sync {
    /// Sets the time, in place of an earlier one.
    fn set(&self, deadline: Option<Instant>);
}

#[derive(Default)]
struct Way {
    dice: u64,
    next: u64,
    /// When the line is free again, at its rate.
    free: Option<Instant>,
    waiting: BTreeMap<(Instant, u64), Vec<u8>>,
    /// The card has had no room.
    blocked: bool,
    tally: Tally,
}

/// The bad line.
pub struct Fault {
    faults: Faults,
    behind: Arc<dyn Backend>,
    nic: OnceLock<Arc<dyn Nic>>,
    alarm: OnceLock<Arc<dyn Alarm>>,
    /// From the guest, and to it.
    ways: [Mutex<Way>; 2],
}

const OUT: usize = 0;
const IN: usize = 1;

impl Fault {
    /// A line with these faults in front of `behind`.
    pub fn new(faults: Faults, behind: Arc<dyn Backend>) -> Arc<Self> {
        let way = |n: u64| Mutex::new(Way { dice: faults.seed ^ n << 63, ..Way::default() });
        Arc::new(Self {
            faults,
            behind,
            nic: OnceLock::new(),
            alarm: OnceLock::new(),
            ways: [way(0), way(1)],
        })
    }

    /// Whom to ask for a time; once. Without, nothing is late.
    pub fn set_alarm(&self, alarm: Arc<dyn Alarm>) {
        let _ = self.alarm.set(alarm);
    }

    /// What has become of frames from the guest, and to it.
    pub fn tally(&self) -> [Tally; 2] {
        [OUT, IN].map(|n| self.ways[n].lock().tally)
    }

    /// The time has come that the alarm was set to, or the card has room.
    pub fn due(&self) {
        let now = Instant::now();
        for n in [OUT, IN] {
            while let Some((key, bytes)) = self.pop(n, now) {
                if !self.give(n, &Frame::new(&[IoSlice::new(&bytes)])) {
                    let mut way = self.ways[n].lock();
                    way.waiting.insert(key, bytes);
                    way.blocked = true;
                    break;
                }
            }
        }
        self.set_next();
    }

    fn pop(&self, n: usize, now: Instant) -> Option<((Instant, u64), Vec<u8>)> {
        let mut way = self.ways[n].lock();
        let first = way.waiting.first_entry().filter(|e| e.key().0 <= now)?;
        Some(first.remove_entry())
    }

    fn set_next(&self) {
        let next = |n: usize| {
            let way = self.ways[n].lock();
            way.waiting.first_key_value().map(|(key, _)| key.0).filter(|_| !way.blocked)
        };
        if let Some(alarm) = self.alarm.get() {
            alarm.set([OUT, IN].into_iter().filter_map(next).min());
        }
    }

    fn give(&self, n: usize, frame: &Frame<'_>) -> bool {
        if n == OUT {
            self.behind.send(frame);
            return true;
        }
        self.nic.get().is_some_and(|nic| nic.receive(frame))
    }

    /// A frame comes; whether it is taken.
    fn pass(&self, n: usize, frame: &Frame<'_>) -> bool {
        if !(if n == OUT { self.faults.from_guest } else { self.faults.to_guest }) {
            return self.give(n, frame);
        }
        let f = &self.faults;
        let mut way = self.ways[n].lock();
        way.tally.seen += 1;
        let [lost, twice, corrupt, reorder] =
            [f.loss, f.duplicate, f.corrupt, f.reorder].map(|chance| roll(&mut way.dice) % ALWAYS < chance.0);
        let (place, jitter) = (roll(&mut way.dice), roll(&mut way.dice));
        if lost {
            way.tally.lost += 1;
            return true;
        }
        let mut bytes = frame.to_vec();
        if corrupt && bytes.len() > 12 {
            way.tally.corrupted += 1;
            let bit = place as usize % (8 * (bytes.len() - 12));
            bytes[12 + bit / 8] ^= 1 << (bit % 8);
        }
        // Only with it do the dice roll for it, so that a seed without it stays what it was.
        if f.cut.0 > 0 && roll(&mut way.dice) % ALWAYS < f.cut.0 && bytes.len() > 12 {
            way.tally.cut += 1;
            let kept = 12 + roll(&mut way.dice) as usize % (bytes.len() - 12);
            bytes.truncate(kept);
        }
        way.tally.doubled += u64::from(twice);
        let late = f.delay + f.jitter * 2 * (jitter >> 8) / (1 << 24);
        let late = late.saturating_sub(f.jitter);
        let now = Instant::now();
        let mut at = if reorder { now } else { now + late };
        way.tally.reordered += u64::from(reorder && !late.is_zero());
        let bits = bytes.len() as u64 * 8;
        if let Some(nanoseconds) = bits.saturating_mul(1_000_000_000).checked_div(f.rate) {
            let takes = Duration::from_nanos(nanoseconds);
            let free = way.free.unwrap_or(now).max(now) + takes;
            way.free = Some(free);
            at = at.max(free);
        }
        let waits = at > now || way.waiting.first_key_value().is_some_and(|(key, _)| key.0 <= at && !reorder);
        for _ in 0..if twice { 2 } else { 1 } {
            if !waits {
                drop(way);
                // A card that is full loses it: it was on the line.
                self.give(n, &Frame::new(&[IoSlice::new(&bytes)]));
                way = self.ways[n].lock();
            } else if way.waiting.len() >= QUEUE {
                way.tally.overrun += 1;
            } else {
                way.next += 1;
                let key = (at, way.next);
                way.waiting.insert(key, bytes.clone());
            }
        }
        drop(way);
        if waits {
            self.set_next();
        }
        true
    }
}

/// The next number (splitmix64, its upper half).
fn roll(dice: &mut u64) -> u32 {
    *dice = dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *dice;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ z >> 31) >> 32) as u32
}

/// The line as the back end sees it.
struct Inward(Weak<Fault>);

impl Nic for Inward {
    fn can_receive(&self) -> bool {
        self.0.upgrade().and_then(|f| f.nic.get().map(|nic| nic.can_receive())).unwrap_or(false)
    }
    fn receive(&self, frame: &Frame<'_>) -> bool {
        self.0.upgrade().is_some_and(|f| f.pass(IN, frame))
    }
}

/// The card's side of the line.
pub struct Line(pub Arc<Fault>);

impl Backend for Line {
    fn connect(&self, nic: Arc<dyn Nic>) {
        let _ = self.0.nic.set(nic);
        self.0.behind.connect(Arc::new(Inward(Arc::downgrade(&self.0))));
    }
    fn send(&self, frame: &Frame<'_>) {
        crate::offload::deliver(frame, Takes::default(), &mut |frame| _ = self.0.pass(OUT, frame));
    }
    fn wake(&self) {
        self.0.ways[IN].lock().blocked = false;
        self.0.due();
        self.0.behind.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Sink(Mutex<Vec<Vec<u8>>>);
    impl Nic for Sink {
        fn can_receive(&self) -> bool {
            true
        }
        fn receive(&self, frame: &Frame<'_>) -> bool {
            self.0.lock().push(frame.to_vec());
            true
        }
    }
    impl Backend for Sink {
        fn connect(&self, _: Arc<dyn Nic>) {}
        fn send(&self, frame: &Frame<'_>) {
            self.0.lock().push(frame.to_vec());
        }
    }

    fn sent(faults: Faults, count: u32) -> (Vec<Vec<u8>>, Tally) {
        let sink = Arc::new(Sink::default());
        let line = Line(Fault::new(Faults { from_guest: true, ..faults }, sink.clone()));
        (0..count).for_each(|n| {
            let mut frame = [0xaa; 64];
            frame[60..].copy_from_slice(&n.to_be_bytes());
            line.send(&Frame::new(&[IoSlice::new(&frame)]));
        });
        std::thread::sleep(faults.delay + faults.jitter);
        line.0.due();
        let got = sink.0.lock().clone();
        (got, line.0.tally()[OUT])
    }

    fn numbers(frames: &[Vec<u8>]) -> Vec<u32> {
        frames.iter().map(|f| u32::from_be_bytes([f[60], f[61], f[62], f[63]])).collect()
    }

    #[test]
    fn each_fault_has_its_share_and_the_same_seed_the_same_frames() {
        let chance = |text: &str| text.parse::<Chance>().unwrap();
        let faults = Faults {
            loss: chance("10%"),
            duplicate: chance("5"),
            corrupt: chance("2.5%"),
            seed: 7,
            ..Faults::default()
        };
        let (frames, tally) = sent(faults, 10_000);
        let near = |n: u64, expected: u64| n.abs_diff(expected) < expected / 4;
        assert!(
            near(tally.lost, 1000) && near(tally.doubled, 450) && near(tally.corrupted, 225),
            "{tally:?}"
        );
        assert_eq!(frames.len() as u64, tally.seen - tally.lost + tally.doubled);
        assert!(frames.iter().all(|f| f[..12] == [0xaa; 12]), "addresses stay");
        assert_eq!(frames, sent(faults, 10_000).0);
        assert_ne!(frames, sent(Faults { seed: 8, ..faults }, 10_000).0);
        let (cut, tally) = sent(Faults { cut: chance("10"), seed: 7, ..Faults::default() }, 10_000);
        assert!(near(tally.cut, 1000) && cut.iter().all(|f| (12..=64).contains(&f.len())), "{tally:?}");
        assert_eq!(cut.iter().filter(|f| f.len() < 64).count() as u64, tally.cut);
        for bad in ["101", "-1", "x", ""] {
            assert!(bad.parse::<Chance>().is_err(), "{bad}");
        }
    }

    #[test]
    fn late_frames_keep_their_order_unless_they_are_to_lose_it() {
        let faults = Faults { delay: Duration::from_millis(20), ..Faults::default() };
        let (frames, _) = sent(faults, 100);
        assert_eq!(numbers(&frames), (0..100).collect::<Vec<_>>());
        let (frames, tally) = sent(Faults { reorder: Chance(ALWAYS / 10), ..faults }, 100);
        let first = numbers(&frames)[..tally.reordered as usize].to_vec();
        assert!(tally.reordered > 0 && first.is_sorted() && !numbers(&frames).is_sorted(), "{tally:?}");
        let (frames, tally) = sent(faults, 2000);
        assert_eq!((frames.len(), tally.overrun), (QUEUE, 1000));
    }
}
