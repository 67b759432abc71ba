//! virtio-rng (5.4): random numbers, in each buffer as many as are asked for, up to 64 KiB at once.
//!
//! Where they come from is the board's matter (`kind::Site::entropy`); they are there at once, so buffers are filled by
//! the vCPU that brings them. A rate may be set as with QEMU: so many bytes in each period of guest time.
use super::chain::{self, Broken};
use super::mmio::{VirtioMmio, mmio_properties};
use super::pci::{PciOptions, VirtioPci, pci_properties};
use super::{Core, Model, Served, Then};
use crate::clock::{Clock, Nanos, Timer, TimerOwner};
use crate::device::Invalid;
use crate::kind::{Bus, KINDS, Kind, PlugError, Property, Site, Type, Values};
use crate::misc::entropy::{Asker, Entropy};
use linkme::distributed_slice;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, OnceLock, Weak};

/// Bytes that one buffer gets at most: the driver is told how many these are, and asks for more.
const MOST: u64 = 64 << 10;
const QUEUE_SIZE: u16 = 8;

/// How much of a period's bytes is left.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Rate {
    left: u64,
    /// When there are more, if somebody has found that there are none.
    again: Option<Nanos>,
}

/// A source of random numbers.
pub struct Rng {
    entropy: Arc<Entropy>,
    /// Bytes in each period.
    most: u64,
    period: Nanos,
    clock: Arc<dyn Clock>,
    timer: Arc<dyn Timer>,
    rate: Mutex<Rate>,
    core: OnceLock<Weak<Core>>,
}

macro_rules! own_properties {
    ($with:ident) => {
        $with![
            Property {
                name: "max-bytes",
                kind: Type::Number(1, i64::MAX as u64),
                default: Some(i64::MAX as u64),
                help: "bytes that the guest gets in each period",
            },
            Property {
                name: "period",
                kind: Type::Number(1, u32::MAX as u64),
                default: Some(1 << 16),
                help: "milliseconds of a period",
            },
        ]
    };
}

const PROPERTIES: &[Property] = own_properties!(pci_properties);

#[distributed_slice(KINDS)]
static KIND: Kind = Kind {
    name: "virtio-rng-pci",
    bus: Bus::Pci,
    about: "random numbers, virtio",
    properties: PROPERTIES,
    plug,
};

#[distributed_slice(KINDS)]
static ALIAS: Kind =
    Kind { name: "virtio-rng", bus: Bus::Pci, about: "virtio-rng-pci", properties: PROPERTIES, plug };

#[distributed_slice(KINDS)]
static MMIO: Kind = Kind {
    name: "virtio-rng-device",
    bus: Bus::VirtioMmio,
    about: "random numbers, virtio",
    properties: own_properties!(mmio_properties),
    plug: |site, values| VirtioMmio::plug(site, values, rng(site, values)).map(drop),
};

fn plug(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let options = PciOptions::of(values, 2)?;
    VirtioPci::plug(site, values, rng(site, values), 0x00_ff00, options).map(drop)
}

fn rng(site: &Site<'_>, values: &Values) -> Arc<Rng> {
    let most = values.number("max-bytes").unwrap_or(u64::MAX);
    let period = values.number("period").unwrap_or(1 << 16).saturating_mul(1_000_000);
    Rng::new(site.entropy.clone(), site.clock.clone(), most, period)
}

impl Rng {
    /// Numbers of `entropy`, `most` bytes in each `period` of guest time.
    pub fn new(entropy: Arc<Entropy>, clock: Arc<dyn Clock>, most: u64, period: Nanos) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            entropy,
            most,
            period: period.max(1),
            timer: clock.timer(me.clone()),
            clock,
            rate: Mutex::new(Rate { left: most, again: None }),
            core: OnceLock::new(),
        })
    }

    /// How many bytes a buffer of `len` gets now; none if it is to wait, for which the timer is set.
    fn allow(&self, len: u64) -> Option<usize> {
        let mut rate = self.rate.lock();
        let now = self.clock.now();
        if rate.again.is_some_and(|at| at <= now) {
            *rate = Rate { left: self.most, again: None };
        }
        if rate.again.is_none() && self.most < u64::MAX >> 1 {
            rate.again = Some(now.saturating_add(self.period));
        }
        if rate.left == 0 {
            self.timer.set(rate.again);
            return None;
        }
        let n = len.min(MOST).min(rate.left);
        if self.most < u64::MAX >> 1 {
            rate.left -= n;
        }
        Some(n as usize)
    }
}

impl TimerOwner for Rng {
    fn expired(&self) {
        if let Some(core) = self.core.get().and_then(Weak::upgrade) {
            core.kick_all();
        }
    }
}

/// What is saved of it: what is left of its period.
#[derive(Serialize, Deserialize)]
pub struct RngV1 {
    rate: Rate,
}

impl Model for Rng {
    const ID: u16 = 4;
    const PCI: &'static str = "virtio-rng-pci";
    const MMIO: &'static str = "virtio-rng-device";
    type State = RngV1;

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn connect(&self, core: &Arc<Core>) {
        let _ = self.core.set(Arc::downgrade(core));
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn serve(&self, _: usize, served: &mut Served<'_, '_>) -> Result<Then, Broken> {
        loop {
            // Whether there are any is known before a buffer is taken, which could not be put back.
            if served.is_paused() || self.allow(0).is_none() {
                return Ok(Then::Later);
            }
            let Some(chain) = served.pop()? else { return Ok(Then::Empty) };
            let mut bytes = vec![0; self.allow(chain::total(&chain.writable)).unwrap_or(0)];
            self.entropy.fill(Asker::Device, &mut bytes);
            if !chain::write(served.memory, &chain.writable, 0, &bytes) {
                return Err(Broken("a buffer that is not in memory"));
            }
            served.done(chain.head, bytes.len() as u32)?;
        }
    }

    fn reset(&self) {
        *self.rate.lock() = Rate { left: self.most, again: None };
        self.timer.set(None);
    }

    fn save(&self) -> RngV1 {
        RngV1 { rate: *self.rate.lock() }
    }

    fn restore(&self, RngV1 { rate }: RngV1) -> Result<(), Invalid> {
        if rate.left > self.most {
            return Err(Invalid("what is left of a period"));
        }
        *self.rate.lock() = rate;
        self.timer.set(rate.again.filter(|_| rate.left == 0));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Rig, WAYS, Way};
    use super::*;
    use crate::clock::ManualClock;

    fn rig(way: Way, most: u64) -> (Rig<Rng>, ManualClock) {
        let clock = ManualClock::new();
        (Rig::new(way, Rng::new(Entropy::new(Some(7), 1), Arc::new(clock.clone()), most, 1_000_000)), clock)
    }

    #[test]
    fn a_buffer_is_filled() {
        for way in WAYS {
            let (mut rig, _) = rig(way, u64::MAX);
            rig.start(0);
            let head = rig.add(0, &[(0x8_0000, 64, true), (0x8_1000, 1 << 17, true)]);
            rig.notify(0);
            assert_eq!(rig.used(0), [(head, 64 << 10)], "{way:?}");
            let source = Entropy::new(Some(7), 1);
            let words = [0x8_003e, 0x8_1000].map(|at| rig.word(at));
            let mut of_seed = [0; 64 << 10];
            source.fill(Asker::Device, &mut of_seed);
            let word = |at: usize| u16::from_le_bytes([of_seed[at], of_seed[at + 1]]);
            assert_eq!(words, [word(0x3e), word(0x40)], "{way:?}");
        }
    }

    #[test]
    fn a_rate_is_kept_in_guest_time() {
        let (mut rig, clock) = rig(Way::Modern, 100);
        rig.start(0);
        (0..3).for_each(|_| _ = rig.add(0, &[(0x8_0000, 64, true)]));
        rig.notify(0);
        assert_eq!(rig.used(0), [(0, 64), (1, 36)]);
        let (mut other, later) = self::rig(Way::Modern, 100);
        other.restore(rig.save(), &rig).unwrap();
        clock.advance(999_999);
        assert_eq!(rig.used(0), []);
        clock.advance(1);
        assert_eq!(rig.used(0), [(2, 64)]);
        other.resume();
        assert_eq!(other.used(0), []);
        later.advance(1_000_000);
        assert_eq!(other.used(0), [(2, 64)]);
    }
}
