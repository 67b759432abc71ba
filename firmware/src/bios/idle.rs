//! Programs that wait for a key by asking whether there is one, again and again: the menu and prompt of a boot loader,
//! DOS. On a PC they kept the processor busy; here they may leave it to the host.
//!
//! What is told from a program that works and looks for a key now and then: it asks with the same registers each time,
//! calls nothing else of the BIOS meanwhile, and does so for a while with hardly anything between two questions.
use super::Regs;
use super::rom::Service;
use std::time::Duration;

/// Questions in a row, after which the program is waiting.
const TIMES: u32 = 64;
/// What may lie between the answer and the next question, in nanoseconds of guest time.
const BETWEEN: u64 = 100_000;
/// Of the time that passes the program gets one part in so many: a program that works after all is slowed no further.
const SHARE: u64 = 16;
/// Rests that are shorter are none for the host, and longer ones would be felt.
const REST: std::ops::RangeInclusive<u64> = 50_000..=1_000_000;

/// Whether a call says nothing of what its program does: interrupts, and what is asked in the same breath as for a key,
/// the shift keys and the time.
pub(super) fn is_neutral(service: Service, call: &Regs) -> bool {
    match service {
        Service::Tick | Service::RtcInterrupt | Service::StrayInterrupt | Service::Mouse => true,
        Service::Keyboard => matches!(call.ah(), 0x02 | 0x12),
        Service::Clock => matches!(call.ah(), 0x00 | 0x02 | 0x04),
        _ => false,
    }
}

/// The questions that were asked last. Not saved: a program that waits goes on asking.
#[derive(Default)]
pub struct Polls {
    asked: Regs,
    times: u32,
    /// When the last answer was given, and the rest after it was over.
    answered: u64,
    /// Whether the present call is such a question, of which the answer is that there is none.
    none: bool,
}

impl Polls {
    /// INT 16h has told that there is no key.
    pub(super) fn no_key(&mut self) {
        self.none = true;
    }

    /// A call with these registers has ended: how long the vCPU may rest, unless an interrupt or somebody else wants
    /// it. [`Polls::rested`] is to be called then.
    pub(super) fn ended(&mut self, asked: &Regs, now: u64) -> Option<Duration> {
        let between = now.saturating_sub(self.answered);
        self.answered = now;
        if !std::mem::take(&mut self.none) {
            self.times = 0;
            return None;
        }
        // Flags are the frame's, and the clock's and others' interrupts change nothing of the rest.
        let asked = Regs { flags: 0, ..*asked };
        if asked != self.asked {
            (self.asked, self.times) = (asked, 0);
            return None;
        }
        if between > BETWEEN {
            // Or the host had something else to do.
            self.times /= 2;
            return None;
        }
        self.times = self.times.saturating_add(1).min(2 * TIMES);
        let rest = (between * SHARE).clamp(*REST.start(), *REST.end());
        (self.times > TIMES).then(|| Duration::from_nanos(rest))
    }

    /// The vCPU has rested.
    pub(super) fn rested(&mut self, now: u64) {
        self.answered = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Regs = Regs { eax: 0x100, esp: 0x1ff0, ..ZERO };
    const ZERO: Regs = Regs {
        eax: 0,
        ebx: 0,
        ecx: 0,
        edx: 0,
        esi: 0,
        edi: 0,
        ebp: 0,
        esp: 0,
        ip: 0,
        cs: 0,
        ds: 0,
        es: 0,
        ss: 0,
        flags: 0,
    };

    /// Asks so often for a key, `between` apart; how often the vCPU rested.
    fn asks(polls: &mut Polls, times: u32, between: u64, regs: impl Fn(u32) -> Regs) -> u32 {
        let mut rests = 0;
        for n in 0..times {
            polls.no_key();
            let now = polls.answered + between;
            if let Some(rest) = polls.ended(&regs(n), now) {
                assert!(REST.contains(&(rest.as_nanos() as u64)));
                polls.rested(now + rest.as_nanos() as u64);
                rests += 1;
            }
        }
        rests
    }

    #[test]
    fn a_program_that_only_asks_for_a_key_lets_the_processor_rest() {
        let mut polls = Polls::default();
        assert_eq!(asks(&mut polls, TIMES, 10_000, |_| POLL), 0);
        assert_eq!(asks(&mut polls, 1000, 10_000, |n| Regs { flags: n as u16, ..POLL }), 999);
        // The host was busy for once.
        assert_eq!(asks(&mut polls, 1, 10 * BETWEEN, |_| POLL), 0);
        assert_eq!(asks(&mut polls, 10, 10_000, |_| POLL), 10);
    }

    #[test]
    fn a_program_that_works_between_two_questions_does_not() {
        let mut polls = Polls::default();
        assert_eq!(asks(&mut polls, 10 * TIMES, 10_000, |n| Regs { ecx: n, ..POLL }), 0);
        assert_eq!(asks(&mut polls, 10 * TIMES, BETWEEN + 1, |_| POLL), 0);
    }

    #[test]
    fn another_call_begins_the_wait_anew() {
        let mut polls = Polls::default();
        assert_eq!(asks(&mut polls, TIMES + 10, 10_000, |_| POLL), 9);
        assert_eq!(polls.ended(&Regs { eax: 0x0e41, ..ZERO }, polls.answered + 10_000), None);
        assert_eq!(asks(&mut polls, TIMES, 10_000, |_| POLL), 0);
    }
}
