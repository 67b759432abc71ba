//! What a jump backwards passes before the body: events are tested, and executions counted, as only loops are worth the
//! next tier. It stands in front of the body if such a jump is known when the block is compiled, else by itself, and is
//! made when the first is linked.
use super::*;

/// What is tested.
pub(in super::super) struct Tests {
    /// Number of the block's entry and counter.
    pub number: u32,
    /// It counts its executions.
    pub counts: bool,
    /// Offset of its first byte in its page.
    pub first: i64,
}

/// Where the tests lead if they fail.
struct Failed {
    /// Events are pending, and where it goes on if they are not to be looked at now.
    event: usize,
    back: usize,
    /// The block has run often.
    hot: Option<usize>,
}

impl Tests {
    /// Bytes of their code at most, apart from the body.
    pub const MOST: usize = 96;

    /// The tests as code of its own, to lie at an offset where code lies, and to go on at another.
    pub fn apart(&self, stubs: &Stubs, at: usize, body: usize) -> Vec<u8> {
        let mut a = Asm::default();
        let failed = self.emit(&mut a);
        let lead = |a: &mut Asm, site: usize, to: usize| a.patch(site, to as i64 - at as i64);
        let leave = |a: &mut Asm, stub: usize| {
            a.imm(host::RAX, self.first as u64);
            let site = a.jmp();
            lead(a, site, stub);
        };
        let on = a.jmp();
        lead(&mut a, on, body);
        a.patch(failed.event, a.at() as i64);
        test_events(&mut a, host::RAX);
        let masked = a.jcc(cc::E);
        a.patch(masked, failed.back as i64);
        leave(&mut a, stubs.event);
        if let Some(hot) = failed.hot {
            a.patch(hot, a.at() as i64);
            leave(&mut a, stubs.hot);
        }
        a.code
    }

    fn emit(&self, a: &mut Asm) -> Failed {
        a.load(host::RAX, CPU, in_context(context::EVENTS));
        a.is_zero32(host::RAX, 0);
        let event = a.jcc(cc::NE);
        let back = a.at();
        let hot = self.counts.then(|| {
            a.load(host::RAX, CPU, in_context(context::COUNTERS));
            a.count_down(host::RAX, 4 * self.number as i32);
            a.jcc(cc::S)
        });
        Failed { event, back, hot }
    }
}

/// Equal if no event is to be looked at now; their word is at the address in the register, which is lost.
pub(super) fn test_events(a: &mut Asm, at: u8) {
    a.load32(at, at, 0);
    a.test_mem32(at, CPU, cpu::EVENT_MASK);
}

impl Emitter<'_> {
    /// The tests in front of the body. Returns where they begin.
    pub(super) fn tested(&mut self, counts: bool) -> usize {
        let at = self.a.at();
        let tests = Tests { number: self.number, counts, first: self.first };
        let Failed { event, back, hot } = tests.emit(&mut self.a);
        self.out_of_line(Cold::Event { site: event, back });
        if let Some(site) = hot {
            self.out_of_line(Cold::Hot { site });
        }
        at
    }
}
