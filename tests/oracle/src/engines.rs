//! Mynah's engines side by side: the interpreter, and the translator with every case run until its blocks are compiled.
//! Each is compared with the oracle; with each other they are compared to the last bit, undefined flags included.

use crate::compare::Difference;
use crate::guest::{Guest, NoException};
use crate::layout::*;
use mynah_cpu::board::{EV_KICK, Events};
use mynah_cpu::{CpuModel, State};
use mynah_jit::tier::Optimize;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Which engines run the cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The interpreter.
    Interpreter,
    /// The translator.
    Translator,
    /// Both, where this host has a translator.
    #[default]
    Both,
    /// The interpreter with the portable floating point and vectors of hosts other than x86-64.
    Portable,
}

/// The guests that run cases.
pub struct Engines {
    plain: Option<Guest>,
    fast: Option<Guest>,
    times: u32,
}

/// What the translator has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translated {
    /// Cases that were compiled code at the end.
    pub cases: u64,
    /// Regions compiled.
    pub regions: u64,
    /// Blocks that could not be.
    pub refused: u64,
}

impl Engines {
    /// Guests of a CPU model. Blocks are compiled when they have run `hot_after` times, with this much optimisation.
    pub fn new(model: &str, choice: Choice, optimize: Optimize, hot_after: u32) -> Result<Self, String> {
        let mut plain = if choice == Choice::Translator { None } else { Some(Guest::new(model)?) };
        if let (Choice::Portable, Some(g)) = (choice, &mut plain) {
            g.use_portable_code();
        }
        let fast = match choice {
            Choice::Interpreter | Choice::Portable => None,
            Choice::Translator => Some(Guest::translated(model, optimize, hot_after)?),
            Choice::Both => Guest::translated(model, optimize, hot_after).ok(),
        };
        Ok(Self { plain, fast, times: hot_after + 1 })
    }

    /// The guests that run each case.
    pub fn guests(&mut self) -> impl Iterator<Item = &mut Guest> {
        self.plain.iter_mut().chain(self.fast.iter_mut())
    }

    /// The CPU model.
    pub fn model(&self) -> Arc<CpuModel> {
        self.plain.as_ref().or(self.fast.as_ref()).map(Guest::shared_model).unwrap_or_default()
    }

    /// What ends runs that hang.
    pub fn kicker(&mut self) -> impl Fn() + Send + Sync + use<> {
        let events: Vec<Arc<Events>> = self.guests().map(|g| g.events()).collect();
        move || events.iter().for_each(|e| e.raise(EV_KICK))
    }

    /// Replaces the background.
    pub fn set_background(&mut self, background: &[u8]) {
        self.guests().for_each(|g| g.set_background(background));
    }

    /// Replaces all code.
    pub fn set_code(&mut self, code: &[u8]) {
        self.guests().for_each(|g| g.set_code(code));
    }

    /// Forgets the code of the cases before.
    pub fn new_batch(&mut self) {
        self.guests().for_each(Guest::new_batch);
    }

    /// What the translator has done.
    pub fn translated(&self) -> Translated {
        let Some((g, c)) = self.fast.as_ref().and_then(|g| Some((g, g.counters()?))) else {
            return Translated::default();
        };
        let n = |v: &std::sync::atomic::AtomicU64| v.load(Ordering::Relaxed);
        Translated { cases: g.translated_cases(), regions: n(&c.compiled), refused: n(&c.refused) }
    }

    /// Runs a case with each engine; `judge` compares an outcome with the oracle's. Returns all differences.
    pub fn run(
        &mut self,
        case: &Case,
        got: &mut Outcome,
        mut judge: impl FnMut(Result<(), NoException>, &Outcome) -> Vec<Difference>,
    ) -> Vec<Difference> {
        let mut all = Vec::new();
        let mut endless = false;
        if let Some(g) = &mut self.plain {
            let r = g.run(case, got);
            endless = r == Err(NoException::Endless);
            all = judge(r, got);
        }
        let Some(fast) = &mut self.fast else { return all };
        if self.plain.is_none() {
            for _ in 0..self.times {
                let r = fast.run(case, got);
                all = judge(r, got);
                if !all.is_empty() || !fast.is_translatable() {
                    break;
                }
            }
            return all;
        }
        let Some(plain) = &self.plain else { return all };
        let mut mine = Outcome::new();
        for _ in 0..self.times {
            let r = fast.run(case, &mut mine);
            if endless && r == Err(NoException::Endless) {
                // Where each was stopped says nothing.
                break;
            }
            let mut these = states(plain.state(), fast.state());
            if got.chunks != mine.chunks || got.chunks() != mine.chunks() {
                these.push(difference("memory", &got.chunks().len(), &mine.chunks().len()));
            }
            if !these.is_empty() {
                // What the oracle says to the translator's outcome.
                for mut d in judge(r, &mine) {
                    d.what += " (translated)";
                    all.push(d);
                }
                all.extend(these);
                break;
            }
            if !fast.is_translatable() {
                break;
            }
        }
        all
    }
}

/// That a case has an outcome on the host and none in Mynah.
pub fn no_run(want: &Outcome, why: NoException) -> Vec<Difference> {
    let want = format!("exception {}", want.vector);
    vec![Difference { what: "run".into(), want, got: why.to_string() }]
}

fn difference(what: &str, a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug) -> Difference {
    Difference {
        what: format!("{what} (interpreted, translated)"),
        want: format!("{a:x?}"),
        got: format!("{b:x?}"),
    }
}

/// What differs in the states that two engines have left.
pub fn states(a: &State, b: &State) -> Vec<Difference> {
    if a == b {
        return Vec::new();
    }
    let (a, b) = (&a.with_packed_flags(), &b.with_packed_flags());
    if a == b {
        return Vec::new();
    }
    let mut all = Vec::new();
    macro_rules! field {
        ($($name:literal $a:expr, $b:expr;)*) => {
            $( if $a != $b { all.push(difference($name, &$a, &$b)); } )*
        };
    }
    for n in 0..32 {
        if a.gpr[n] != b.gpr[n] {
            all.push(difference(&format!("gpr{n}"), &a.gpr[n], &b.gpr[n]));
        }
    }
    for n in 0..a.xmm.len() {
        if a.xmm[n] != b.xmm[n] {
            all.push(difference(&format!("xmm{n}"), &a.xmm[n], &b.xmm[n]));
        }
    }
    field! {
        "rflags" a.rflags(), b.rflags();
        "segments" a.seg, b.seg;
        "mxcsr" a.mxcsr, b.mxcsr;
        "fpu" a.fpu, b.fpu;
        "cr2" a.cr2, b.cr2;
        "dr" a.dr, b.dr;
    }
    if all.is_empty() {
        all.push(difference("state", a, b));
    }
    all
}
