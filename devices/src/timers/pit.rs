//! The Intel 8254 programmable interval timer, and port 61h, which gates its third channel and the speaker.
//!
//! Three channels, all six modes, binary and BCD, counter latch, read-back, low/high/both access. Channel 0 drives IRQ
//! 0; channel 1 (refresh) is only seen in port 61h's toggle bit; channel 2 has its gate and output in port 61h.
//!
//! `Channel` is a function of time in ticks of 1193182 Hz: a count starts at one tick, and output and count follow from
//! the distance.
//! [`Pit`] adds lock, clock, pin and ports. Edges come at ticks counted from the start of the count, so a periodic
//! timer does not drift. Where the output is low for one tick only (modes 2, 4, 5), the fall and the rise are delivered
//! together at the rise. When the host is late, each period's edge is delivered all the same: the next one when the
//! processor has taken the one before (`Pit::redeliver`). On purpose missing: the count of 1 in modes 2 and 3, which
//! the data sheet forbids, is taken for 2.
//!
//! Source: Intel 8254 data sheet (231164-005); port 61h: 82371SB (PIIX3) data sheet, 2.5.3.1 (NMISC).
//!
//! Lock: one, held while IRQ 0 is driven.
use crate::aml::{Fragment, IrqNoFlags, io};
use crate::bus::{Edge, Irq, PortIo};
use crate::bytewise;
use crate::clock::{Clock, LONGEST, Nanos, Timer, TimerOwner};
use crate::device::{Device, Invalid, Reset};
use crate::interrupts::lapic::Redeliver;
use crate::timers::{ticks_at, time_of_tick};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Frequency of the 8254's clock input in a PC.
pub const PIT_HZ: u64 = 1_193_182;
/// The refresh request, whose toggle port 61h shows, comes each 18 ticks.
const REFRESH_TICKS: u64 = 18;

/// The host is not asked to call sooner than this after an edge (20 us); shorter periods are merged.
const MIN_HOST_TICKS: i64 = 24;

/// Edges are owed for so many ticks at most: one second.
const MOST_OWED_TICKS: i64 = PIT_HZ as i64;

/// Bits of port 61h.
const GATE2: u8 = 1 << 0;
const SPEAKER_DATA: u8 = 1 << 1;
const PORT61_WRITABLE: u8 = 0x0F;
const REFRESH_TOGGLE: u8 = 1 << 4;
const OUT2: u8 = 1 << 5;

/// What a counting element does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Counting {
    /// Nothing: no count written, or a trigger or the gate awaited. The count that reads back.
    Idle { count: u32 },
    /// The count was (will be) loaded at this tick and falls since.
    Since(i64),
    /// The gate is low (modes 0 and 4): this many ticks were counted.
    Held(i64),
}

/// A count that takes effect at the end of the period (mode 2) or half period (mode 3) that was running when it was
/// written.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Reload {
    n: u32,
    /// When; none for the next trigger or gate.
    at: Option<i64>,
}

/// One of the three counters. All times are in ticks.
#[derive(Clone, Serialize, Deserialize)]
struct Channel {
    mode: u8,
    bcd: bool,
    /// 1: low byte only, 2: high byte only, 3: low, then high.
    access: u8,
    gate: bool,
    /// The count in use; 0 before one was written.
    n: u32,
    counting: Counting,
    reload: Option<Reload>,
    /// The low byte, when the high one is still to be written.
    low: Option<u8>,
    /// The next read gives the high byte.
    read_high: bool,
    latch: Option<u16>,
    status_latch: Option<u8>,
}

impl Channel {
    fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            bcd: false,
            access: 3,
            gate,
            n: 0,
            counting: Counting::Idle { count: 0 },
            reload: None,
            low: None,
            read_high: false,
            latch: None,
            status_latch: None,
        }
    }

    /// Whether it is a counter that can be.
    fn check(&self) -> Result<(), Invalid> {
        let times = [
            match self.counting {
                Counting::Idle { .. } => None,
                Counting::Since(t) | Counting::Held(t) => Some(t),
            },
            self.reload.and_then(|r| r.at),
        ];
        if times.into_iter().flatten().any(|t| t.unsigned_abs() >= LONGEST) {
            return Err(Invalid("a count's time"));
        }
        let longest = self.n.max(self.reload.map_or(0, |r| r.n));
        if self.mode > 5 || !(1..=3).contains(&self.access) || longest > 0x1_0000 {
            return Err(Invalid("a counter"));
        }
        Ok(())
    }

    fn modulus(&self) -> i64 {
        if self.bcd { 10_000 } else { 65_536 }
    }

    fn period(&self) -> i64 {
        i64::from(self.n).max(2)
    }

    /// Ticks for which mode 3 is high: the longer half.
    fn high_half(n: i64) -> i64 {
        (n + 1) / 2
    }

    /// Ticks since the count was loaded; negative while it is not yet.
    fn elapsed(&self, t: i64) -> Option<i64> {
        match self.counting {
            Counting::Idle { .. } => None,
            Counting::Since(start) => Some(t.wrapping_sub(start)),
            Counting::Held(e) => Some(e),
        }
    }

    /// Puts a count that was waiting for the end of a period in use.
    fn settle(&mut self, t: i64) {
        let Some(Reload { n, at: Some(at) }) = self.reload else { return };
        if t < at {
            return;
        }
        self.reload = None;
        // The end of mode 3's high half starts the low half of the new count.
        let low_half = self.mode == 3 && {
            let e = self.elapsed(at).unwrap_or(0);
            e.rem_euclid(self.period()) != 0
        };
        self.n = n;
        let into = if low_half { Self::high_half(self.period()) } else { 0 };
        self.counting = Counting::Since(at - into);
    }

    /// The OUT pin.
    fn out(&self, t: i64) -> bool {
        let Some(e) = self.elapsed(t) else { return self.mode != 0 };
        let n = i64::from(self.n);
        match self.mode {
            0 => e >= n,
            1 => e < 0 || e >= n,
            2 => e < 0 || e % self.period() != self.period() - 1,
            3 => e < 0 || e % self.period() < Self::high_half(self.period()),
            _ => e != n,
        }
    }

    /// How often OUT has risen after tick `a`, up to tick `b`.
    fn rises(&self, a: i64, b: i64) -> i64 {
        let Counting::Since(start) = self.counting else { return 0 };
        let (a, b, n) = (a.wrapping_sub(start), b.wrapping_sub(start), i64::from(self.n));
        match self.mode {
            0 | 1 => (a < n && n <= b).into(),
            2 | 3 if b > 0 => b / self.period() - a.max(0) / self.period(),
            2 | 3 => 0,
            _ => (a <= n && n < b).into(),
        }
    }

    /// How many edges of a periodic output may be owed to a guest: what comes in a second, and no more than one at a
    /// period so short that the host is not asked for each.
    fn most_owed(&self) -> i64 {
        match self.period() {
            period @ MIN_HOST_TICKS.. if matches!(self.mode, 2 | 3) => MOST_OWED_TICKS / period,
            _ => 1,
        }
    }

    /// The next tick after `t` at which the pin must be looked at.
    fn next_change(&self, t: i64) -> Option<i64> {
        let Counting::Since(start) = self.counting else { return None };
        let (e, n, period) = (t.wrapping_sub(start), i64::from(self.n), self.period());
        let at = match self.mode {
            0 | 1 if e < 0 => 0,
            0 | 1 if e < n => n,
            2 => (e.max(0) / period + 1) * period,
            3 => {
                let e = e.max(0);
                let high = Self::high_half(period);
                if e % period < high { e - e % period + high } else { e - e % period + period }
            }
            4 | 5 if e <= n => n + 1,
            _ => return None,
        };
        Some(start.wrapping_add(at))
    }

    /// The counting element, as a number.
    fn count(&self, t: i64) -> u16 {
        let n = i64::from(self.n);
        let value = match self.elapsed(t).map(|e| e.max(0)) {
            None => match self.counting {
                Counting::Idle { count } => i64::from(count),
                _ => 0,
            },
            Some(e) => match self.mode {
                2 => self.period() - e % self.period(),
                3 => {
                    let (e, high) = (e % self.period(), Self::high_half(self.period()));
                    let even = self.period() & !1;
                    even - 2 * if e < high { e } else { e - high }
                }
                _ => n - e,
            },
        };
        let value = value.rem_euclid(self.modulus()) as u16;
        if self.bcd { to_bcd(value) } else { value }
    }

    /// Whether a count was written that is not counted down yet.
    fn null_count(&self, t: i64) -> bool {
        self.n == 0 || self.reload.is_some() || self.elapsed(t).is_some_and(|e| e < 0)
    }

    fn status(&self, t: i64) -> u8 {
        u8::from(self.out(t)) << 7
            | u8::from(self.null_count(t)) << 6
            | self.access << 4
            | self.mode << 1
            | u8::from(self.bcd)
    }

    /// A control word for this channel, but not a latch command.
    fn control(&mut self, value: u8, t: i64) {
        let count = self.count(t).into();
        self.access = value >> 4 & 3;
        // Bit 2 of the mode is not looked at in modes 2 and 3.
        self.mode = match value >> 1 & 7 {
            m @ 6..=7 => m - 4,
            m => m,
        };
        self.bcd = value & 1 != 0;
        self.n = 0;
        self.counting = Counting::Idle { count };
        self.reload = None;
        self.low = None;
        self.read_high = false;
        self.latch = None;
        self.status_latch = None;
    }

    fn latch_count(&mut self, t: i64) {
        if self.latch.is_none() {
            self.latch = Some(self.count(t));
        }
    }

    fn latch_status(&mut self, t: i64) {
        if self.status_latch.is_none() {
            self.status_latch = Some(self.status(t));
        }
    }

    fn read(&mut self, t: i64) -> u8 {
        if let Some(status) = self.status_latch.take() {
            return status;
        }
        let value = self.latch.unwrap_or_else(|| self.count(t));
        let high = match self.access {
            1 => false,
            2 => true,
            _ => {
                self.read_high = !self.read_high;
                !self.read_high
            }
        };
        if self.access != 3 || high {
            self.latch = None;
        }
        if high { (value >> 8) as u8 } else { value as u8 }
    }

    fn write(&mut self, value: u8, t: i64) {
        match self.access {
            1 => self.load(value.into(), t),
            2 => self.load(u16::from(value) << 8, t),
            _ => match self.low.take() {
                None => {
                    self.low = Some(value);
                    if self.mode == 0 {
                        // The first byte stops mode 0 and sets OUT low at once.
                        self.counting = Counting::Idle { count: self.count(t).into() };
                    }
                }
                Some(low) => self.load(u16::from_le_bytes([low, value]), t),
            },
        }
    }

    /// A whole count was written.
    fn load(&mut self, value: u16, t: i64) {
        let n = if self.bcd { from_bcd(value) } else { value.into() };
        let n = if n == 0 { self.modulus() as u32 } else { n };
        let reload = |at| Some(Reload { n, at });
        match self.mode {
            0 | 4 => {
                self.n = n;
                // Loaded by the next clock pulse; counted down by the ones after it while the gate is high.
                self.counting = if self.gate { Counting::Since(t + 1) } else { Counting::Held(0) };
            }
            2 | 3 => match self.counting {
                Counting::Since(start) => {
                    let e = (t - start).max(0);
                    let (period, high) = (self.period(), Self::high_half(self.period()));
                    let into = if self.mode == 3 && e % period < high { high } else { period };
                    self.reload = reload(Some(start + e - e % period + into));
                }
                _ if self.gate => {
                    self.n = n;
                    self.reload = None;
                    self.counting = Counting::Since(t + 1);
                }
                _ => self.reload = reload(None),
            },
            _ => self.reload = reload(None),
        }
    }

    fn set_gate(&mut self, gate: bool, t: i64) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        match (self.mode, gate, self.counting) {
            (0 | 4, false, Counting::Since(start)) => self.counting = Counting::Held((t - start).max(0)),
            (0 | 4, true, Counting::Held(e)) => self.counting = Counting::Since(t - e),
            (2 | 3, false, Counting::Since(_)) => {
                let count = self.count(t).into();
                self.counting = Counting::Idle { count };
                if let Some(reload) = &mut self.reload {
                    reload.at = None;
                }
            }
            (1 | 2 | 3 | 5, true, _) => {
                // The trigger: the count is loaded by the next clock pulse.
                if let Some(reload) = self.reload.take() {
                    self.n = reload.n;
                }
                if self.n != 0 {
                    self.counting = Counting::Since(t + 1);
                }
            }
            _ => {}
        }
    }
}

/// The value of four BCD digits; digits above 9 count as they are.
fn from_bcd(v: u16) -> u32 {
    (0..4).rev().fold(0, |n, i| n * 10 + u32::from(v >> (4 * i) & 0xF))
}

fn to_bcd(v: u16) -> u16 {
    (v / 1000 % 10) << 12 | (v / 100 % 10) << 8 | (v / 10 % 10) << 4 | (v % 10)
}

#[derive(Clone, Serialize, Deserialize)]
struct State {
    channels: [Channel; 3],
    /// Port 61h's bits 3-0.
    port61: u8,
    /// The tick up to which channel 0's edges have been delivered.
    seen: i64,
    /// When IRQ 0 rose last by the channel's counting.
    risen: Option<i64>,
    /// Edges of channel 0 that are still to be delivered.
    owed: i64,
    /// Whether channel 0 is connected to IRQ 0 (the HPET may have taken it).
    irq_enabled: bool,
}

/// The 8254 with port 61h.
pub struct Pit {
    state: Mutex<State>,
    /// Whether edges are owed, for those who do not want to wait for the lock.
    owes: AtomicBool,
    clock: Arc<dyn Clock>,
    timer: Arc<dyn Timer>,
    irq: Irq,
}

impl Pit {
    /// A timer with nothing programmed, whose channel 0 drives `irq0`.
    pub fn new(clock: Arc<dyn Clock>, irq0: Irq) -> Arc<Self> {
        Arc::new_cyclic(|me: &std::sync::Weak<Self>| {
            let timer = clock.timer(me.clone());
            let channels = [Channel::new(true), Channel::new(true), Channel::new(false)];
            let state =
                Mutex::new(State { channels, port61: 0, seen: 0, risen: None, owed: 0, irq_enabled: true });
            Self { state, owes: AtomicBool::new(false), clock, timer, irq: irq0 }
        })
    }

    /// The four ports at 40h.
    pub fn ports(self: &Arc<Self>) -> Arc<dyn PortIo> {
        Arc::new(CounterPorts(self.clone()))
    }

    /// The port 61h.
    pub fn port61(self: &Arc<Self>) -> Arc<dyn PortIo> {
        Arc::new(Port61(self.clone()))
    }

    /// Connects channel 0 to IRQ 0, or not (the HPET's legacy replacement route).
    pub fn set_irq_enabled(&self, enabled: bool) {
        self.with(|state, _| {
            state.irq_enabled = enabled;
            state.owed = 0;
        });
    }

    /// What the speaker sounds: the frequency of channel 2 in Hz while it is gated on and let through; none when it is
    /// silent.
    pub fn speaker_tone(&self) -> Option<u32> {
        let state = self.state.lock();
        let channel = &state.channels[2];
        let on = state.port61 & (GATE2 | SPEAKER_DATA) == GATE2 | SPEAKER_DATA;
        let square = channel.mode == 3 && channel.n != 0;
        (on && square).then(|| (PIT_HZ / channel.period() as u64) as u32)
    }

    /// Delivers the edges that are owed as far as they would not be lost in the one before.
    fn deliver(&self, state: &mut State) {
        while state.owed > 0 {
            let edge = self.irq.edge();
            if edge == Edge::Merged {
                break;
            }
            state.owed = if edge == Edge::Counted { state.owed - 1 } else { 0 };
            self.irq.set(false);
            self.irq.set(true);
        }
        self.owes.store(state.owed > 0, Ordering::Relaxed);
    }

    /// Brings everything up to now, lets `f` use it, and lets the pin and the timer follow.
    fn with<R>(&self, f: impl FnOnce(&mut State, i64) -> R) -> R {
        let mut state = self.state.lock();
        let t = ticks_at(self.clock.now(), PIT_HZ) as i64;
        let seen = std::mem::replace(&mut state.seen, t);
        let channel = &mut state.channels[0];
        // Up to the end of the period at which a new count took effect, then from there.
        let end = channel.reload.and_then(|r| r.at).filter(|&at| at <= t);
        let mut risen = channel.rises(seen, end.unwrap_or(t));
        for channel in &mut state.channels {
            channel.settle(t);
        }
        if let Some(end) = end {
            risen += state.channels[0].rises(end, t);
        }
        if risen > 0 && state.irq_enabled {
            state.risen = Some(t);
            state.owed = state.owed.saturating_add(risen).min(state.channels[0].most_owed());
        }
        self.deliver(&mut state);
        let result = f(&mut state, t);
        self.owes.store(state.owed > 0, Ordering::Relaxed);
        let channel = &state.channels[0];
        self.irq.set(state.irq_enabled && channel.out(t));
        let reload = channel.reload.and_then(|r| r.at);
        let next = channel.next_change(t).map(|next| reload.map_or(next, |at| next.min(at)));
        let pause = state.risen.map_or(0, |at| at + MIN_HOST_TICKS);
        let next = next.filter(|_| state.irq_enabled).map(|next| next.max(pause));
        self.timer.set(next.map(|next| time_of_tick(next.max(0) as u64, PIT_HZ)));
        result
    }

    fn read_counter(&self, port: u16) -> u8 {
        let n = usize::from(port);
        self.with(|state, t| state.channels.get_mut(n).map_or(0, |channel| channel.read(t)))
    }

    fn write_counter(&self, port: u16, value: u8) {
        self.with(|state, t| {
            // What is owed belongs to the count before.
            if port == 0 || (port == 3 && value >> 6 == 0 && value & 0x30 != 0) {
                state.owed = 0;
            }
            if port != 3 {
                if let Some(channel) = state.channels.get_mut(usize::from(port)) {
                    channel.write(value, t);
                }
            } else if value >> 6 == 3 {
                // Read-back: bit 5 clear latches counts, bit 4 clear latches status, of the channels in bits 3-1.
                for (i, channel) in state.channels.iter_mut().enumerate() {
                    if value >> (i + 1) & 1 == 0 {
                        continue;
                    }
                    if value & 0x20 == 0 {
                        channel.latch_count(t);
                    }
                    if value & 0x10 == 0 {
                        channel.latch_status(t);
                    }
                }
            } else if let Some(channel) = state.channels.get_mut(usize::from(value >> 6)) {
                if value & 0x30 == 0 { channel.latch_count(t) } else { channel.control(value, t) }
            }
        });
    }

    fn read_port61(&self) -> u8 {
        self.with(|state, t| {
            let refresh = (t as u64 / REFRESH_TICKS) & 1 != 0;
            state.port61
                | if refresh { REFRESH_TOGGLE } else { 0 }
                | if state.channels[2].out(t) { OUT2 } else { 0 }
        })
    }

    fn write_port61(&self, value: u8) {
        self.with(|state, t| {
            state.port61 = value & PORT61_WRITABLE;
            state.channels[2].set_gate(value & GATE2 != 0, t);
        });
    }
}

impl Redeliver for Pit {
    fn redeliver(&self) {
        if self.owes.load(Ordering::Relaxed) {
            self.with(|_, _| ());
        }
    }
}

impl TimerOwner for Pit {
    fn expired(&self) {
        self.with(|_, _| ());
    }
}

struct CounterPorts(Arc<Pit>);

impl PortIo for CounterPorts {
    fn read(&self, offset: u16, size: u8) -> u32 {
        bytewise::read(offset, size, |port| self.0.read_counter(port))
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        bytewise::write(offset, size, value, |port, byte| self.0.write_counter(port, byte));
    }
}

struct Port61(Arc<Pit>);

impl PortIo for Port61 {
    fn read(&self, offset: u16, size: u8) -> u32 {
        bytewise::read(offset, size, |port| if port == 0 { self.0.read_port61() } else { 0xFF })
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        bytewise::write(offset, size, value, |port, byte| {
            if port == 0 {
                self.0.write_port61(byte);
            }
        });
    }
}

/// What is saved of an 8254.
#[derive(Serialize, Deserialize)]
pub struct PitV1 {
    state: State,
    timer: Option<Nanos>,
    irq0: bool,
}

impl Device for Pit {
    type State = PitV1;
    const KIND: &'static str = "isa-pit";

    fn aml(&self) -> Option<Fragment> {
        let mut pit = Fragment::isa("PIT_", "PNP0100", vec![&io(0x40, 4), &IrqNoFlags(0)]);
        pit.aml.extend(Fragment::isa("SPKR", "PNP0800", vec![&io(0x61, 1)]).aml);
        Some(pit)
    }

    fn reset(&self, _: Reset) {
        self.with(|state, _| {
            state.channels = [Channel::new(true), Channel::new(true), Channel::new(false)];
            (state.port61, state.risen, state.owed) = (0, None, 0);
        });
    }

    fn save(&self) -> PitV1 {
        let state = self.state.lock().clone();
        PitV1 { state, timer: self.timer.deadline(), irq0: self.irq.level() }
    }

    fn restore(&self, PitV1 { state, timer, irq0 }: PitV1) -> Result<(), Invalid> {
        let is_time = |t: i64| t.unsigned_abs() < LONGEST;
        for channel in &state.channels {
            channel.check()?;
        }
        if !is_time(state.seen)
            || !state.risen.is_none_or(is_time)
            || !(0..=MOST_OWED_TICKS).contains(&state.owed)
        {
            return Err(Invalid("an edge's time"));
        }
        let mut now = self.state.lock();
        self.owes.store(state.owed > 0, Ordering::Relaxed);
        *now = state;
        self.timer.set(timer);
        self.irq.restore(irq0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::IrqSink;
    use crate::clock::{ManualClock, Nanos, SECOND};

    /// Records when IRQ 0 rises.
    struct Rises(ManualClock, Mutex<Vec<Nanos>>);

    impl IrqSink for Rises {
        fn set(&self, _: u32, level: bool) {
            if level {
                self.1.lock().push(self.0.now());
            }
        }
    }

    struct Board {
        clock: ManualClock,
        rises: Arc<Rises>,
        pit: Arc<Pit>,
        io: Arc<dyn PortIo>,
        p61: Arc<dyn PortIo>,
    }

    impl Board {
        fn new() -> Self {
            let clock = ManualClock::new();
            let rises = Arc::new(Rises(clock.clone(), Mutex::default()));
            let irq = Irq::new(rises.clone(), 0);
            let pit = Pit::new(Arc::new(clock.clone()), irq);
            Self { io: pit.ports(), p61: pit.port61(), clock, rises, pit }
        }

        fn program(&self, channel: u16, mode: u32, count: u32) {
            self.io.write(3, 1, u32::from(channel) << 6 | 0x30 | mode << 1);
            self.io.write(channel, 1, count & 0xFF);
            self.io.write(channel, 1, count >> 8);
        }

        fn tick_to(&self, tick: u64) {
            let to = time_of_tick(tick, PIT_HZ);
            self.clock.advance(to - self.clock.now());
        }

        fn latched(&self, channel: u16) -> u32 {
            self.io.write(3, 1, u32::from(channel) << 6);
            self.io.read(channel, 1) | self.io.read(channel, 1) << 8
        }

        fn out2(&self) -> bool {
            self.p61.read(0, 1) & 0x20 != 0
        }

        fn rises(&self) -> Vec<u64> {
            self.rises.1.lock().drain(..).map(|ns| ticks_at(ns, PIT_HZ)).collect()
        }
    }

    #[test]
    fn mode_2_interrupts_at_exact_multiples_of_its_period_without_drift() {
        let b = Board::new();
        b.program(0, 2, 11_932);
        b.rises();
        b.clock.advance(100 * SECOND);
        let rises = b.rises();
        assert_eq!(rises.len() as u64, (100 * PIT_HZ - 1) / 11_932);
        assert!(rises.iter().enumerate().all(|(i, &t)| t == 1 + (i as u64 + 1) * 11_932));
    }

    #[test]
    fn mode_0_interrupts_once_n_plus_1_ticks_after_the_count() {
        let b = Board::new();
        b.program(0, 0, 1000);
        b.clock.advance(SECOND);
        assert_eq!(b.rises(), [1001]);
        b.program(0, 0, 10);
        b.clock.advance(SECOND);
        assert_eq!(b.rises().len(), 1, "each count written is one more");
    }

    #[test]
    fn mode_4_strobes_once_after_n_plus_1_ticks() {
        let b = Board::new();
        b.program(0, 4, 500);
        b.rises();
        b.clock.advance(SECOND);
        assert_eq!(b.rises(), [502], "low at tick 501, high again at 502");
    }

    #[test]
    fn mode_3_is_high_for_the_longer_half() {
        let b = Board::new();
        b.p61.write(0, 1, 1);
        b.program(2, 3, 5);
        let wave: Vec<bool> = (1..=11)
            .map(|t| {
                b.tick_to(t);
                b.out2()
            })
            .collect();
        assert_eq!(wave, [true, true, true, false, false, true, true, true, false, false, true]);
    }

    #[test]
    fn mode_3_counts_down_by_two() {
        let b = Board::new();
        b.program(0, 3, 8);
        let counts: Vec<u32> = (1..=9)
            .map(|t| {
                b.tick_to(t);
                b.latched(0)
            })
            .collect();
        assert_eq!(counts, [8, 6, 4, 2, 8, 6, 4, 2, 8]);
    }

    #[test]
    fn mode_3_interrupts_each_period() {
        let b = Board::new();
        b.program(0, 3, 0);
        b.rises();
        b.clock.advance(SECOND);
        assert_eq!(b.rises(), (1..=18).map(|i| 1 + i * 65_536).collect::<Vec<_>>());
    }

    #[test]
    fn mode_1_is_low_for_n_ticks_after_each_trigger() {
        let b = Board::new();
        b.program(2, 1, 10);
        b.tick_to(5);
        assert!(b.out2());
        b.p61.write(0, 1, 1);
        b.tick_to(6);
        assert!(!b.out2());
        b.tick_to(10);
        b.p61.write(0, 1, 0);
        b.p61.write(0, 1, 1);
        b.tick_to(20);
        assert!(!b.out2(), "retriggered at 10");
        b.tick_to(21);
        assert!(b.out2());
    }

    #[test]
    fn mode_5_strobes_after_the_trigger_only() {
        let b = Board::new();
        b.program(2, 5, 4);
        b.tick_to(50);
        assert!(b.out2());
        b.p61.write(0, 1, 1);
        let low: Vec<u64> = (51..60)
            .filter(|&t| {
                b.tick_to(t);
                !b.out2()
            })
            .collect();
        assert_eq!(low, [55]);
    }

    #[test]
    fn channel_2_counts_only_while_its_gate_is_high() {
        // What a kernel does to calibrate its TSC: mode 0 on channel 2, waiting for OUT2.
        let b = Board::new();
        b.p61.write(0, 1, 0);
        b.program(2, 0, 100);
        b.tick_to(500);
        assert!(!b.out2());
        assert_eq!(b.latched(2), 100);
        b.p61.write(0, 1, 1);
        b.tick_to(550);
        assert_eq!(b.latched(2), 50);
        b.p61.write(0, 1, 0);
        b.tick_to(600);
        assert_eq!(b.latched(2), 50);
        b.p61.write(0, 1, 1);
        b.tick_to(649);
        assert!(!b.out2());
        b.tick_to(650);
        assert!(b.out2());
        b.tick_to(652);
        assert_eq!(b.latched(2), 0xFFFE, "it goes on counting through zero");
    }

    #[test]
    fn a_new_count_in_mode_2_waits_for_the_end_of_the_period() {
        let b = Board::new();
        b.program(0, 2, 1000);
        b.tick_to(501);
        b.rises();
        b.io.write(0, 1, 100);
        b.io.write(0, 1, 0);
        b.tick_to(1250);
        assert_eq!(b.rises(), [1001, 1101, 1201]);
    }

    #[test]
    fn a_new_count_in_mode_3_waits_for_the_end_of_the_half() {
        let b = Board::new();
        b.program(0, 3, 1000);
        b.tick_to(101);
        b.rises();
        b.io.write(0, 1, 100);
        b.io.write(0, 1, 0);
        b.tick_to(700);
        assert_eq!(b.rises(), [551, 651], "high to 501, low for 50, then periods of 100");
    }

    #[test]
    fn bcd_counts_in_decimal() {
        let b = Board::new();
        b.io.write(3, 1, 0x31);
        b.io.write(0, 1, 0x34);
        b.io.write(0, 1, 0x12);
        b.tick_to(36);
        assert_eq!(b.latched(0), 0x1199);
        b.tick_to(1 + 1234 + 1);
        assert_eq!(b.latched(0), 0x9999);
    }

    #[test]
    fn a_latched_count_stays_until_it_is_read() {
        let b = Board::new();
        b.program(0, 2, 1000);
        b.tick_to(101);
        b.io.write(3, 1, 0);
        b.tick_to(301);
        b.io.write(3, 1, 0);
        assert_eq!(b.io.read(0, 1) | b.io.read(0, 1) << 8, 900);
        assert_eq!(b.io.read(0, 1) | b.io.read(0, 1) << 8, 700);
    }

    #[test]
    fn read_back_latches_status_before_count() {
        let b = Board::new();
        b.program(0, 2, 1000);
        b.io.write(3, 1, 0xE2);
        assert_eq!(b.io.read(0, 1), 0xF4, "out high, null count, both bytes, mode 2");
        b.tick_to(11);
        b.io.write(3, 1, 0xC2);
        assert_eq!(b.io.read(0, 1), 0xB4);
        assert_eq!(b.io.read(0, 1) | b.io.read(0, 1) << 8, 990);
    }

    #[test]
    fn single_byte_access_leaves_the_other_byte_zero() {
        let b = Board::new();
        b.io.write(3, 1, 0x14);
        b.io.write(0, 1, 0x80);
        b.tick_to(9);
        assert_eq!(b.io.read(0, 1), 0x78);
        b.io.write(3, 1, 0x24);
        b.io.write(0, 1, 0x80);
        b.tick_to(9 + 1 + 0x100);
        assert_eq!(b.io.read(0, 1), 0x7F);
    }

    #[test]
    fn missed_periods_are_one_edge() {
        let b = Board::new();
        b.program(0, 2, 1193);
        b.rises();
        b.pit.timer.cancel();
        b.clock.advance(SECOND);
        b.io.read(0, 1);
        assert_eq!(b.rises().len(), 1);
        b.tick_to(1 + 1002 * 1193);
        assert_eq!(b.rises(), [1 + 1001 * 1193, 1 + 1002 * 1193], "and the next ones are in step again");
    }

    #[test]
    fn a_timer_disconnected_by_the_hpet_is_silent() {
        let b = Board::new();
        b.program(0, 2, 1000);
        b.pit.set_irq_enabled(false);
        b.rises();
        b.tick_to(10_000);
        assert!(b.rises().is_empty());
        b.pit.set_irq_enabled(true);
        b.rises();
        b.tick_to(12_001);
        assert_eq!(b.rises(), [10_001, 11_001, 12_001]);
    }

    #[test]
    fn the_refresh_bit_toggles_and_the_speaker_sounds_channel_2() {
        let b = Board::new();
        let seen: Vec<u32> = (0..4)
            .map(|i| {
                b.tick_to(18 * i);
                b.p61.read(0, 1) & 0x10
            })
            .collect();
        assert_eq!(seen, [0, 0x10, 0, 0x10]);
        b.p61.write(0, 1, 0xFF);
        assert_eq!(b.p61.read(0, 1) & 0x0F, 0x0F);
        assert_eq!(b.pit.speaker_tone(), None);
        b.program(2, 3, 1193);
        assert_eq!(b.pit.speaker_tone(), Some(1000));
        b.p61.write(0, 1, 1);
        assert_eq!(b.pit.speaker_tone(), None);
    }

    #[test]
    fn any_port_at_any_width_with_any_value_is_harmless() {
        let b = Board::new();
        let mut x = 1u64;
        for round in 0..20_000u64 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (offset, size) = ((x >> 33) as u16 % 6, [0u8, 1, 1, 1, 2, 4, 8, 255][(x >> 40) as usize & 7]);
            b.io.write(offset, size, (x >> 20) as u32);
            b.io.read(offset, size);
            b.p61.write(offset & 1, size, (x >> 50) as u32);
            b.p61.read(offset & 1, size);
            // In steps, since a short period makes many timers.
            b.clock.advance(if round % 1000 == 0 { 20_000 } else { x >> 52 });
        }
    }
}
