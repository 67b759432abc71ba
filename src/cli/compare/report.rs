//! The figures of all runs.
use super::run::{Figures, Outcome, PHASES};
use serde::Serialize;
use std::fmt::Write;

/// All that was run.
#[derive(Serialize)]
pub struct Report {
    /// The program's version.
    pub mynah: &'static str,
    /// The host.
    pub host: String,
    /// In the order in which they were run.
    pub runs: Vec<Run>,
}

/// A run.
#[derive(Serialize)]
pub struct Run {
    /// The guest.
    pub guest: String,
    /// What ran it.
    pub subject: &'static str,
    /// What came of it.
    pub outcome: Outcome,
}

/// Median and spread of a figure over runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Median {
    /// The middle one.
    pub value: f64,
    /// From the least to the most, in parts of the median.
    pub spread: f64,
}

/// The median of some values; none if there are none.
fn median(mut values: Vec<f64>) -> Option<Median> {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let (first, last) = (*values.first()?, *values.last()?);
    let value = (values[(n - 1) / 2] + values[n / 2]) / 2.0;
    Some(Median { value, spread: if value > 0.0 { (last - first) / value } else { 0.0 } })
}

/// A row of the table: a figure of each subject.
pub struct Row {
    /// What it is.
    pub name: String,
    /// Its unit.
    pub unit: &'static str,
    /// It is a time that the guest itself has measured.
    pub is_result: bool,
    /// By subject.
    pub values: Vec<Option<Median>>,
}

impl Report {
    /// Of no run yet.
    pub fn new() -> Self {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = cpu.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let host =
            format!("{}, {cpus} processors", name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()));
        Self { mynah: env!("CARGO_PKG_VERSION"), host, runs: Vec::new() }
    }

    /// Adds a run.
    pub fn add(&mut self, guest: &str, subject: &'static str, outcome: Outcome) {
        self.runs.push(Run { guest: guest.into(), subject, outcome });
    }

    /// Whether a run has failed.
    pub fn has_failures(&self) -> bool {
        self.runs.iter().any(|r| matches!(r.outcome, Outcome::Failed(_)))
    }

    /// The guests, in the order in which they were run.
    pub fn guests(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self.runs.iter().map(|r| r.guest.as_str()).collect();
        let mut seen = std::collections::HashSet::new();
        all.retain(|g| seen.insert(*g));
        all
    }

    /// What they were run by.
    pub fn subjects(&self) -> Vec<&'static str> {
        let mut all: Vec<&'static str> = self.runs.iter().map(|r| r.subject).collect();
        let mut seen = std::collections::HashSet::new();
        all.retain(|s| seen.insert(*s));
        all
    }

    fn of<'a>(&'a self, guest: &'a str, subject: &'a str) -> impl Iterator<Item = &'a Figures> + 'a {
        self.runs.iter().filter(move |r| r.guest == guest && r.subject == subject).filter_map(|r| {
            match &r.outcome {
                Outcome::Done(figures) => Some(figures),
                Outcome::Failed(_) => None,
            }
        })
    }

    /// The rows of a guest's table.
    pub fn rows(&self, guest: &str) -> Vec<Row> {
        let subjects = self.subjects();
        let row = |name: &str, unit, of: &dyn Fn(&Figures) -> Option<f64>| Row {
            name: name.into(),
            unit,
            is_result: false,
            values: subjects.iter().map(|s| median(self.of(guest, s).filter_map(of).collect())).collect(),
        };
        let mut rows = vec![row("wall", "s", &|f| Some(f.wall)), row("cpu", "s", &|f| Some(f.cpu))];
        let mut names = Vec::new();
        for figures in subjects.iter().flat_map(|s| self.of(guest, s)) {
            let mut before = "start".to_owned();
            for (name, _) in &figures.markers {
                if !names.contains(&(before.clone(), name.clone())) {
                    names.push((before.clone(), name.clone()));
                }
                before.clone_from(name);
            }
        }
        let at = |f: &Figures, name: &str| match name {
            "start" => Some(0.0),
            _ => f.markers.iter().find(|(n, _)| n == name).map(|(_, t)| *t),
        };
        for (before, name) in &names {
            // A phase is called by what ends with it.
            let phase = PHASES.iter().any(|(phase, _)| phase == name);
            let title = if phase { name.clone() } else { format!("to {name}") };
            rows.push(row(&title, "s", &|f| Some(at(f, name)? - at(f, before)?)));
        }
        if let Some((_, last)) = names.last() {
            let title = if last == "kernel" { "user space" } else { "from there on" };
            rows.push(row(title, "s", &|f| Some(f.wall - f.markers.last()?.1)));
        }
        let mut results = Vec::new();
        for figures in subjects.iter().flat_map(|s| self.of(guest, s)) {
            for (name, _) in &figures.results {
                if !results.contains(name) {
                    results.push(name.clone());
                }
            }
        }
        for name in &results {
            let time = row(name, "s", &|f| f.results.iter().find(|(n, _)| n == name).map(|(_, t)| *t));
            rows.push(Row { is_result: true, ..time });
        }
        rows.push(row("guest time", "s", &|f| f.guest));
        rows.push(row("instructions", "M", &|f| Some(f.instructions? as f64 / 1e6)));
        rows.push(row("MIPS", "", &|f| Some(f.instructions? as f64 / 1e6 / f.cpu.max(1e-9))));
        rows.push(row("exits", "", &|f| Some(f.exits? as f64)));
        rows.push(row("peak memory", "MiB", &|f| Some(f.memory as f64 / 1048576.0)));
        rows.retain(|r| r.values.iter().any(Option::is_some));
        rows
    }

    /// The table, with each figure as a ratio to the first subject's behind it, and its spread.
    pub fn table(&self) -> String {
        let mut text =
            format!("Mynah {} on {}; medians, ratio to the first, spread\n", self.mynah, self.host);
        let subjects = self.subjects();
        for guest in self.guests() {
            let _ = write!(text, "\n{guest:24}");
            for (n, subject) in subjects.iter().enumerate() {
                let _ = write!(text, "{subject:>width$}", width = if n == 0 { 20 } else { 27 });
            }
            text.push('\n');
            for row in self.rows(guest) {
                let name = if row.unit.is_empty() {
                    row.name.clone()
                } else {
                    format!("{}, {}", row.name, row.unit)
                };
                let _ = write!(text, "{name:24}");
                let first = row.values.first().copied().flatten();
                for (n, value) in row.values.iter().enumerate() {
                    let cell = value.map_or("-".into(), |m| {
                        let ratio = match first {
                            Some(f) if n > 0 && f.value > 0.0 => format!(" {:>6.2}x", m.value / f.value),
                            _ => String::new(),
                        };
                        format!("{}{ratio} ±{:.0}%", number(m.value), m.spread * 50.0)
                    });
                    let _ = write!(text, "{cell:>width$}", width = if n == 0 { 20 } else { 27 });
                }
                text.push('\n');
            }
        }
        for run in &self.runs {
            if let Outcome::Failed(why) = &run.outcome {
                let _ = writeln!(text, "\nfailed: {} by {}: {why}", run.guest, run.subject);
            }
        }
        text
    }
}

/// A number with three figures or more.
pub fn number(v: f64) -> String {
    match v {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 1.0 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_ratios_and_failures_are_told() {
        let done = |wall: f64, markers: &[(&str, f64)]| {
            Outcome::Done(Figures {
                wall,
                cpu: wall,
                markers: markers.iter().map(|(n, t)| ((*n).to_owned(), *t)).collect(),
                ..Figures::default()
            })
        };
        let mut r = Report::new();
        for wall in [2.0, 1.0, 4.0] {
            r.add("disk", "jit", done(wall, &[("firmware", 0.5), ("kernel", 0.75)]));
            r.add("disk", "qemu", done(wall * 3.0, &[("firmware", 1.0), ("kernel", 3.0)]));
        }
        r.add("disk", "qemu", Outcome::Failed("it was not over after 600 s".into()));
        let rows = r.rows("disk");
        assert_eq!(
            rows[0].values,
            [Some(Median { value: 2.0, spread: 1.5 }), Some(Median { value: 6.0, spread: 1.5 })]
        );
        let kernel = rows.iter().find(|r| r.name == "kernel").unwrap();
        assert_eq!(kernel.values[1].unwrap().value, 2.0);
        let text = r.table();
        assert!(text.contains("6.00   3.00x ±75%"), "{text}");
        assert!(text.contains("failed: disk by qemu: it was not over after 600 s"));
        assert!(r.has_failures());
    }
}
