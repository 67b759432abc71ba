//! What is said of two engines in step.
use super::compare::Difference;
use super::{Counts, SHOWN};
use iced_x86::{Formatter, NasmFormatter};
use mynah_cpu::Cpu;
use mynah_cpu::lockstep::{Followed, Taken};
use mynah_cpu::trace::{cpu_state, fpu_state};
use serde::Serialize;
use std::fmt::Write;

/// How it ended.
#[derive(Clone, Debug, Serialize)]
pub enum Verdict {
    /// They were the same throughout.
    Same(Counts),
    /// They were not.
    Parted(Box<Parting>),
}

/// Where two engines have parted.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Parting {
    /// The leader's name, and the follower's.
    pub engines: [String; 2],
    /// What was the same before.
    pub counts: Counts,
    /// Instructions up to there, roughly.
    pub executed: u64,
    /// The address of the instruction, if it is one.
    pub address: Option<u64>,
    /// The instruction, or what was delivered.
    pub what: String,
    /// What differs: its name, and the values of both.
    pub differences: Vec<(String, String, String)>,
    /// The last instructions, of which it is the last.
    pub history: Vec<String>,
    /// Those behind it, up to where both were compared.
    pub behind: Vec<String>,
    /// Whole states, line by line: what both have, or what each has.
    pub state: String,
    /// How sure that is.
    pub note: Option<String>,
}

impl Parting {
    /// All of it, for people.
    pub fn text(&self) -> String {
        let [a, b] = &self.engines;
        let mut s = match self.address {
            Some(at) => format!("{a} and {b} differ at {at:#x}: {}\n", self.what),
            None => format!("{a} and {b} differ: {}\n", self.what),
        };
        let _ = writeln!(s, "after {} instructions in step", self.executed);
        if let Some(note) = &self.note {
            let _ = writeln!(s, "note: {note}");
        }
        let _ = writeln!(s, "\nwhat differs:");
        for (name, x, y) in &self.differences {
            let _ = writeln!(s, "  {name:24} {a} {x}\n  {:24} {b} {y}", "");
        }
        let _ = writeln!(s, "\nthe last instructions:");
        for (n, line) in self.history.iter().enumerate() {
            let mark = if n + 1 == self.history.len() && self.address.is_some() { '>' } else { ' ' };
            let _ = writeln!(s, "{mark} {line}");
        }
        if !self.behind.is_empty() {
            let _ = writeln!(s, "\nbehind it, until both were compared:");
            for line in &self.behind {
                let _ = writeln!(s, "  {line}");
            }
        }
        let _ = writeln!(s, "\nstates where both were compared ('<' {a}, '>' {b}):\n{}", self.state);
        s
    }
}

/// Says of two engines that they have parted behind `trail`.
#[allow(clippy::too_many_arguments)]
pub(super) fn parting(
    engines: [String; 2],
    counts: Counts,
    executed: u64,
    leader: &Cpu,
    follower: &mut Cpu,
    history: &[Followed],
    trail: &[Followed],
    named: Option<usize>,
    taken: Taken,
    differences: Vec<Difference>,
    note: Option<String>,
) -> Parting {
    let state =
        beside(&(cpu_state(leader) + &fpu_state(leader)), &(cpu_state(follower) + &fpu_state(follower)));
    let mut line = |done: &Followed| show(follower, done);
    let (before, behind) = match named {
        Some(n) => trail.split_at((n + 1).min(trail.len())),
        None => (trail, &[][..]),
    };
    let all: Vec<&Followed> = history.iter().chain(before).collect();
    let shown = all.len().saturating_sub(SHOWN);
    let blamed = named.and_then(|n| trail.get(n));
    let what = match (blamed, taken) {
        (Some(done), _) => show_text(follower_text(&mut line, done)),
        (None, Taken::Interrupt(vector)) => format!("interrupt {vector:#x} is delivered by one of them"),
        (None, Taken::Nmi) => "an NMI is delivered by one of them".into(),
        (None, _) => "before the first instruction".into(),
    };
    Parting {
        engines,
        counts,
        executed,
        address: blamed.map(|d| d.lin),
        what,
        differences: differences
            .into_iter()
            .map(|d| {
                let [a, b] = d.values;
                (d.name, a, b)
            })
            .collect(),
        history: all[shown..].iter().map(|d| line(d)).collect(),
        behind: behind.iter().take(SHOWN).map(&mut line).collect(),
        state,
        note,
    }
}

fn follower_text(line: &mut impl FnMut(&Followed) -> String, done: &Followed) -> String {
    line(done)
}

/// The text of an instruction from its line: what is behind address and bytes.
fn show_text(line: String) -> String {
    line.split_once("  ").map_or(line.clone(), |(_, rest)| rest.trim_start().to_owned())
}

/// An instruction as a line: address, bytes, text.
fn show(cpu: &mut Cpu, done: &Followed) -> String {
    let Some((_, bytes, i)) = cpu.instruction_at(done.lin, done.key) else {
        return format!("{:016x}  (its page is not mapped any more)", done.lin);
    };
    let mut text = String::new();
    NasmFormatter::new().format(&i, &mut text);
    let hex: String = bytes[..i.len().min(15)].iter().map(|b| format!("{b:02x}")).collect();
    let faulted = if done.faulted { "  (raises an exception)" } else { "" };
    format!("{:016x}  {text:40} [{hex}]{faulted}", done.lin)
}

/// Two texts of as many lines: a line of both once, others marked.
fn beside(a: &str, b: &str) -> String {
    let mut s = String::new();
    for (x, y) in a.lines().zip(b.lines()) {
        let _ = if x == y { writeln!(s, "  {x}") } else { writeln!(s, "< {x}\n> {y}") };
    }
    s
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_that_differ_are_marked() {
        assert_eq!(beside("a\nb", "a\nc"), "  a\n< b\n> c\n");
    }

    #[test]
    fn the_verdict_comes_first() {
        let parting = Parting {
            engines: ["jit".into(), "interp".into()],
            address: Some(0x1000),
            what: "add eax,ebx".into(),
            differences: vec![("flags".into(), "-----C".into(), "------".into())],
            ..Parting::default()
        };
        let text = parting.text();
        assert!(text.starts_with("jit and interp differ at 0x1000: add eax,ebx\n"), "{text}");
        assert!(text.contains("flags                    jit -----C"), "{text}");
    }
}
