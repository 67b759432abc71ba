//! Causes of interrupts, their masks, and when they are told of (317453, 3.2.7, 13.4.17 to 13.4.22; 316080, 7.4 and
//! 10.2.4).
//!
//! ```text
//!   cause --delay (RDTR, RADV, TIDV, TADV)--> ICR --IMS--> throttle (ITR, EITR) --> pin, MSI, or a vector of MSI-X
//! ```
//!
//! A delay that runs out while nobody would hear of it has no timer: whoever reads or unmasks causes brings them up to
//! date first.
//!
//! What was sent often has an answer a moment later. Where one interrupt is for all, one for what was sent alone would
//! have the answer wait for the throttle. So TIDV is when it is told of with something else, and TADV, which is what the
//! driver bears, when it is told of alone; with a throttle, [`PATIENCE`] later.
use super::regs::{cause, ctrl_ext};
use super::{Adapter, Model};
use crate::clock::Nanos;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;

/// Vectors of MSI-X.
pub(super) const VECTORS: usize = 5;
/// A unit of ITR and EITR.
const INTERVAL: Nanos = 256;
/// A unit of the delays.
const DELAY: Nanos = 1024;

/// So long what was sent waits for its answer beyond TADV where a driver has interrupts keep a distance: within it one
/// comes by way of the host's sockets and scheduler.
const PATIENCE: Nanos = 100_000;

/// Causes that wait: for a time in which no further packet comes, at most until another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Delayed {
    causes: u32,
    due: Nanos,
    latest: Nanos,
}

impl Delayed {
    /// Adds causes that wait for `packet`, at most for `absolute` (0: for ever), in their units, from `now` on.
    fn add(&mut self, causes: u32, packet: u32, absolute: u32, now: Nanos) {
        let after = |units: u32| now.saturating_add(Nanos::from(units) * DELAY);
        if self.causes == 0 {
            self.latest = if absolute == 0 { Nanos::MAX } else { after(absolute) };
        }
        self.causes |= causes;
        self.due = after(packet);
    }

    fn deadline(&self) -> Option<Nanos> {
        (self.causes != 0).then(|| self.due.min(self.latest))
    }

    /// When they are told of if there is nothing else to tell: as late as may be.
    fn alone(&self, throttled: bool) -> Option<Nanos> {
        let patience = if throttled { PATIENCE } else { 0 };
        (self.causes != 0).then_some(match self.latest {
            // They are flushed.
            0 => 0,
            Nanos::MAX => self.due,
            latest => latest.saturating_add(patience),
        })
    }

    /// The causes whose time has come.
    fn take(&mut self, now: Nanos) -> u32 {
        match self.deadline() {
            Some(at) if at <= now => std::mem::take(self).causes,
            _ => 0,
        }
    }
}

/// What is saved of the interrupts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Interrupts {
    pub(super) icr: u32,
    pub(super) ims: u32,
    pub(super) iam: u32,
    pub(super) eiac: u32,
    pub(super) ivar: u32,
    pub(super) itr: u32,
    pub(super) eitr: [u32; VECTORS],
    received: Delayed,
    sent: Delayed,
    /// The pin is up, or its message was sent.
    asserted: bool,
    /// Causes whose vectors were sent.
    told: u32,
    /// When the pin may be raised again.
    next: Nanos,
    /// When vectors may be sent again.
    next_of: [Nanos; VECTORS],
    /// What the timer is armed for.
    #[serde(skip)]
    armed: Option<Nanos>,
}

impl Interrupts {
    /// What waits does not any more (RDTR's and TIDV's FPD).
    pub(super) fn flush_received(&mut self) {
        self.received.due = 0;
    }

    pub(super) fn flush_sent(&mut self) {
        (self.sent.due, self.sent.latest) = (0, 0);
    }

    /// The vector of a cause, if it has one.
    fn vector(&self, n: u32) -> Option<usize> {
        let entry = self.ivar >> (4 * n);
        (entry & 8 != 0 && (entry & 7) < VECTORS as u32).then_some((entry & 7) as usize)
    }
}

impl Adapter {
    /// Causes come up now.
    pub(super) fn raise(&self, causes: u32) {
        if causes != 0 {
            let mut irq = self.irq.lock();
            self.add(&mut irq, causes);
            self.settle(&mut irq, self.clock.now());
        }
    }

    /// Causes of reception: at once, or after the delays of RDTR and RADV.
    pub(super) fn raise_received(&self, causes: u32, delays: Option<(u32, u32)>) {
        let mut irq = self.irq.lock();
        let now = self.clock.now();
        match delays {
            Some((packet, absolute)) => irq.received.add(causes, packet, absolute, now),
            None => self.add(&mut irq, causes),
        }
        self.settle(&mut irq, now);
    }

    /// Causes of transmission: some now, some after the delays of TIDV and TADV.
    pub(super) fn raise_sent(&self, causes: u32, delayed: u32, packet: u32, absolute: u32) {
        let mut irq = self.irq.lock();
        let now = self.clock.now();
        self.add(&mut irq, causes);
        if delayed != 0 {
            irq.sent.add(delayed, packet, absolute, now);
        }
        self.settle(&mut irq, now);
    }

    /// Whether interrupts keep a distance.
    pub(super) fn is_throttled(&self) -> bool {
        let irq = self.irq.lock();
        if self.msix.load(Ordering::Relaxed) { irq.eitr != [0; VECTORS] } else { irq.itr != 0 }
    }

    fn add(&self, irq: &mut Interrupts, causes: u32) {
        irq.icr |= causes & self.model.causes();
        if self.model == Model::I82574l && causes & cause::OTHERS != 0 {
            irq.icr |= cause::OTHER;
        }
    }

    /// Brings what comes of the causes up to date.
    fn settle(&self, irq: &mut Interrupts, now: Nanos) {
        let mut due = irq.received.take(now);
        let told = self.msix.load(Ordering::Relaxed) || (irq.icr | due) & irq.ims != 0;
        if told || irq.sent.alone(irq.itr != 0).is_some_and(|at| at <= now) {
            due |= irq.sent.take(now);
        }
        if due != 0 {
            self.add(irq, due);
        }
        if self.msix.load(Ordering::Relaxed) {
            self.settle_vectors(irq, now);
        } else if irq.icr & irq.ims == 0 {
            if std::mem::take(&mut irq.asserted) {
                self.function.set_interrupt(false);
            }
        } else if !irq.asserted && (irq.itr == 0 || irq.next <= now) {
            irq.asserted = true;
            irq.next = now.saturating_add(Nanos::from(irq.itr) * INTERVAL);
            self.function.set_interrupt(true);
            self.function.notify(0);
        }
        self.arm(irq);
    }

    /// With MSI-X each cause from bit 20 on has a vector (316080, 7.4.2).
    fn settle_vectors(&self, irq: &mut Interrupts, now: Nanos) {
        if std::mem::take(&mut irq.asserted) {
            self.function.set_interrupt(false);
        }
        irq.told &= irq.icr & irq.ims;
        for n in 0..VECTORS as u32 {
            let bit = cause::RXQ0 << n;
            if irq.icr & irq.ims & !irq.told & bit == 0 {
                continue;
            }
            let Some(vector) = irq.vector(n) else { continue };
            if irq.eitr[vector] != 0 && irq.next_of[vector] > now {
                continue;
            }
            irq.next_of[vector] = now.saturating_add(Nanos::from(irq.eitr[vector]) * INTERVAL);
            irq.told |= bit;
            if irq.eiac & bit != 0 {
                irq.icr &= !bit;
                irq.ims &= !bit;
                irq.told &= !bit;
            }
            self.function.notify(vector as u16);
        }
    }

    /// Arms the timer for what comes next, if it is to be heard.
    fn arm(&self, irq: &mut Interrupts) {
        let mut first: Option<Nanos> = None;
        let mut at = |when: Nanos| first = Some(first.map_or(when, |f| f.min(when)));
        let heard = |d: &Delayed| d.causes & irq.ims != 0;
        let (received, sent) = (Some(irq.received).filter(heard), Some(irq.sent).filter(heard));
        let apart = self.msix.load(Ordering::Relaxed);
        let sent = sent.and_then(|d| if apart { d.deadline() } else { d.alone(irq.itr != 0) });
        let delays = received.and_then(|d| d.deadline()).into_iter().chain(sent);
        if apart {
            delays.for_each(&mut at);
            for n in 0..VECTORS as u32 {
                if irq.icr & irq.ims & !irq.told & cause::RXQ0 << n != 0
                    && let Some(vector) = irq.vector(n)
                {
                    at(irq.next_of[vector]);
                }
            }
        } else if !irq.asserted {
            let next = if irq.itr == 0 { 0 } else { irq.next };
            delays.map(|d| d.max(next)).for_each(&mut at);
            if irq.icr & irq.ims != 0 {
                at(next);
            }
        }
        // A timer that comes too early is armed anew when it does.
        if let Some(first) = first
            && irq.armed.is_none_or(|at| first < at)
        {
            irq.armed = Some(first);
            self.irq_timer.arm(first);
        }
    }

    /// A timer has run out.
    pub(super) fn irq_expired(&self) {
        let now = self.clock.now();
        let mut irq = self.irq.lock();
        if irq.armed.is_some_and(|at| at <= now) {
            irq.armed = None;
            self.settle(&mut irq, now);
        }
    }

    /// After a state was restored, of which nothing is to be told anew.
    pub(super) fn restore_irq(&self, saved: Interrupts) {
        let mut irq = self.irq.lock();
        *irq = saved;
        self.arm(&mut irq);
    }

    /// All is as after a reset. What is kept: from when on an interrupt may come.
    pub(super) fn reset_irq(&self) {
        let mut irq = self.irq.lock();
        let asserted = irq.asserted;
        *irq = Interrupts { asserted, armed: irq.armed, ..Interrupts::default() };
        self.settle(&mut irq, self.clock.now());
    }

    /// MSI-X was switched on or off.
    pub(super) fn messages_changed(&self) {
        let mut irq = self.irq.lock();
        self.settle(&mut irq, self.clock.now());
    }

    /// ICR is read, which clears it: on the 82540EM always, on the 82574 if nothing is unmasked or an interrupt is
    /// asserted (316080, 10.2.4.1).
    pub(super) fn read_icr(&self, control_ext: impl FnOnce() -> u32) -> u32 {
        let auto_mask = if self.model == Model::I82574l { control_ext() } else { 0 } & ctrl_ext::IAME != 0;
        let now = self.clock.now();
        let mut irq = self.irq.lock();
        let due = irq.received.take(now) | irq.sent.take(now);
        self.add(&mut irq, due);
        let heard = irq.icr & irq.ims != 0;
        let value = irq.icr | if heard && self.model == Model::I82574l { cause::INT_ASSERTED } else { 0 };
        if self.model == Model::I82540em || heard || irq.ims == 0 {
            irq.icr = 0;
            if heard && auto_mask {
                irq.ims &= !irq.iam;
            }
        }
        self.settle(&mut irq, now);
        value
    }

    /// Ones clear causes.
    pub(super) fn write_icr(&self, value: u32, control_ext: impl FnOnce() -> u32) {
        let auto_mask = if self.model == Model::I82574l { control_ext() } else { 0 } & ctrl_ext::IAME != 0;
        let mut irq = self.irq.lock();
        if auto_mask && irq.icr & irq.ims != 0 {
            irq.ims &= !irq.iam;
        }
        irq.icr &= !value;
        self.settle(&mut irq, self.clock.now());
    }

    /// Changes what `change` does, and what comes of it.
    pub(super) fn change_irq(&self, change: impl FnOnce(&mut Interrupts)) {
        let mut irq = self.irq.lock();
        change(&mut irq);
        self.settle(&mut irq, self.clock.now());
    }
}
