//! Many cases on both sides.

use crate::compare::{Difference, Verdict, compare};
use crate::engines::{Choice, Engines, Translated, no_run};
use crate::generate::Generator;
use crate::guest::{Guest, NoException};
use crate::habits::{Habits, Passed, Tally, probes};
use crate::layout::*;
use crate::native::{Died, Native};
use crate::programs::{PROGRAMS, Program, Programs};
use crate::{background, forms, report};
use iced_x86::{Code, Instruction};
use mynah_jit::tier::Optimize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The run's seed.
    pub seed: u64,
    /// Index of the first case.
    pub first: u64,
    /// Number of cases.
    pub cases: u64,
    /// Modes: some of 64, 32, 16.
    pub bits: Vec<u32>,
    /// Name parts of mnemonics, codes or groups that are wanted, separated by commas; empty: all.
    pub only: String,
    /// Those that are not wanted.
    pub skip: String,
    /// The CPU model.
    pub model: String,
    /// Threads.
    pub jobs: u32,
    /// How many differing cases are reported in full.
    pub show: u64,
    /// With all registers.
    pub verbose: bool,
    /// Mynah's engines.
    pub engine: Choice,
    /// How much the translator optimises.
    pub optimize: Optimize,
    /// Cases are random programs.
    pub programs: bool,
}

/// The groups of forms that hosts other than x86-64 compute in code of their own.
const PORTABLE: [&str; 12] =
    ["x87", "mmx", "sse", "sse2", "sse3", "sse4", "crypto", "avx", "avx2", "fma", "f16c", "vaes"];

impl Default for Plan {
    fn default() -> Self {
        Self {
            seed: 1,
            first: 0,
            cases: 2_000_000,
            bits: vec![64, 32, 16],
            only: String::new(),
            skip: String::new(),
            model: "host".into(),
            jobs: 1,
            show: 20,
            verbose: false,
            engine: Choice::Both,
            optimize: Optimize::Speed,
            programs: false,
        }
    }
}

impl Plan {
    /// Cases for portable code: the groups that have some.
    pub fn soft(mut self) -> Self {
        self.engine = Choice::Portable;
        if self.only.is_empty() {
            self.only = PORTABLE.map(|g| format!("={g}")).join(",");
        }
        self
    }

    /// Whether a form is wanted.
    pub fn wants(&self, code: Code) -> bool {
        let names = [
            format!("{:?}", code.mnemonic()).to_lowercase(),
            format!("{code:?}").to_lowercase(),
            forms::group(code).to_string(),
        ];
        let any = |list: &str| {
            list.split(',').filter(|p| !p.is_empty()).any(|p| {
                let p = p.to_lowercase();
                match p.strip_prefix('=') {
                    Some(exact) => names.iter().any(|n| n == exact),
                    None => names.iter().any(|n| n.contains(&p)),
                }
            })
        };
        (self.only.is_empty() || any(&self.only)) && !any(&self.skip)
    }

    /// The command that runs case `index` again.
    pub fn replay(&self, index: u64) -> String {
        let mut s = format!("--replay {}:{index}", self.seed);
        if !self.only.is_empty() {
            s += &format!(" --only '{}'", self.only);
        }
        if !self.skip.is_empty() {
            s += &format!(" --skip '{}'", self.skip);
        }
        if self.programs {
            s += " --programs";
        }
        if self.engine == Choice::Portable {
            s += " --soft";
        }
        if self.bits != [64, 32, 16] {
            s += &format!(" --bits {}", self.bits.iter().map(u32::to_string).collect::<Vec<_>>().join(","));
        }
        s
    }
}

/// Counts for a group of forms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Cases run.
    pub cases: u64,
    /// Of these, ended by a fault.
    pub faults: u64,
    /// Of these, came out differently.
    pub differing: u64,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// By group.
    pub groups: BTreeMap<&'static str, Count>,
    /// Cases by form.
    pub forms: BTreeMap<Code, u64>,
    /// Differing cases by form and by what differs.
    pub kinds: BTreeMap<(String, String), (u64, u64)>,
    /// Reports of differing cases.
    pub reports: Vec<String>,
    /// What the translator has done.
    pub translated: Translated,
    /// Undefined flags that came out differently all the same, by mnemonic: bits and how often.
    pub undefined: BTreeMap<String, (u64, u64)>,
    /// What was passed over.
    pub passed: Tally,
    /// What was not generated.
    pub untried: BTreeMap<&'static str, u64>,
}

impl Summary {
    /// Cases that came out differently.
    pub fn differing(&self) -> u64 {
        self.groups.values().map(|c| c.differing).sum()
    }
    /// Cases run.
    pub fn cases(&self) -> u64 {
        self.groups.values().map(|c| c.cases).sum()
    }
    fn merge(&mut self, o: Self) {
        for (k, v) in o.groups {
            let c = self.groups.entry(k).or_default();
            c.cases += v.cases;
            c.faults += v.faults;
            c.differing += v.differing;
        }
        for (k, v) in o.forms {
            *self.forms.entry(k).or_default() += v;
        }
        for (k, v) in o.kinds {
            self.kinds.entry(k).or_insert((0, v.1)).0 += v.0;
        }
        for (k, v) in o.undefined {
            let e = self.undefined.entry(k).or_default();
            *e = (e.0 | v.0, e.1 + v.1);
        }
        self.passed.merge(&o.passed);
        for (k, n) in o.untried {
            *self.untried.entry(k).or_default() += n;
        }
        self.reports.extend(o.reports);
        self.translated.cases += o.translated.cases;
        self.translated.regions += o.translated.regions;
        self.translated.refused += o.translated.refused;
    }
}

/// The habits of the host, compared with the plan's model.
pub fn habits(plan: &Plan) -> Result<Habits, String> {
    let mut native = Native::new().map_err(|e| e.to_string())?;
    let habits = probes::ask(&mut native, &plan.model)?;
    Ok(if plan.engine == Choice::Portable { habits.portable() } else { habits })
}

/// Runs a plan.
pub fn run(plan: &Plan) -> Result<Summary, String> {
    let next = AtomicU64::new(plan.first / plan.batch());
    let stop = AtomicBool::new(false);
    if plan.programs && plan.engine == Choice::Portable {
        return Err("portable code is compared by single instructions: what differs in the last place would go through a program".into());
    }
    let habits = &habits(plan)?;
    let results = std::thread::scope(|s| {
        let hands: Vec<_> =
            (0..plan.jobs.max(1)).map(|_| s.spawn(|| worker(plan, habits, &next, &stop))).collect();
        hands
            .into_iter()
            .map(|h| h.join().unwrap_or_else(|_| Err("a worker panicked".into())))
            .collect::<Vec<_>>()
    });
    let mut all = Summary::default();
    for r in results {
        all.merge(r?);
    }
    Ok(all)
}

impl Plan {
    /// Cases that run in a row over the same background.
    fn batch(&self) -> u64 {
        if self.programs { PROGRAMS as u64 } else { BATCH as u64 }
    }
}

/// Says that a worker is done, however it ends: the thread that watches it must end too.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn worker(plan: &Plan, habits: &Habits, next: &AtomicU64, stop: &AtomicBool) -> Result<Summary, String> {
    let mut native = Native::new().map_err(|e| e.to_string())?;
    // The blocks of a program are all decoded when the first of them is compiled with those that it leads to.
    let hot_after = if plan.programs { 2 } else { 1 };
    let mut engines = Engines::new(&plan.model, plan.engine, plan.optimize, hot_after)?;
    engines.guests().for_each(|guest| native.set_modes(guest));
    let model = engines.model();
    let generator =
        Generator::new(&model, |c| plan.wants(c), &plan.bits, native.has_ldt(), native.has_fsgsbase());
    let generator = if plan.engine == Choice::Portable { generator.with_any_control() } else { generator };
    if generator.is_empty() {
        return Err("no form matches".into());
    }
    let progress = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    let kick = engines.kicker();
    std::thread::scope(|s| {
        // A case that never ends in Mynah must not hang the run.
        s.spawn(|| {
            let (mut last, mut same) = (u64::MAX, 0);
            while !done.load(Ordering::SeqCst) {
                std::thread::sleep(std::time::Duration::from_millis(50));
                let now = progress.load(Ordering::SeqCst);
                same = if now == last && now & 1 == 1 { same + 1 } else { 0 };
                last = now;
                if same > 60 {
                    kick();
                    same = 0;
                }
            }
        });
        let _done = Done(&done);
        let mut w = Worker { plan, habits, native: &mut native, engines: &mut engines, progress: &progress };
        let r = if plan.programs {
            w.programs(next, stop, &Programs::new(&generator, &model, |c| plan.wants(c), &plan.bits))
        } else {
            w.instructions(next, stop, &generator)
        };
        r.map(|mut sum| {
            sum.translated = engines.translated();
            sum.untried = generator.untried().list().into_iter().collect();
            sum
        })
    })
}

struct Worker<'a> {
    plan: &'a Plan,
    habits: &'a Habits,
    native: &'a mut Native,
    engines: &'a mut Engines,
    progress: &'a AtomicU64,
}

fn died(d: &Died) -> Vec<Difference> {
    vec![Difference { what: "the oracle's process died".into(), want: format!("{d:?}"), got: String::new() }]
}

/// Runs a case of which the host made `want`; `compare` says what differs between two outcomes. What was passed over
/// is added to `passed`.
fn judge(
    engines: &mut Engines,
    case: &Case,
    want: Result<&Outcome, Died>,
    got: &mut Outcome,
    passed: &mut Passed,
    mut compare: impl FnMut(&Outcome, &Outcome) -> Verdict,
) -> Vec<Difference> {
    match want {
        Ok(w) => engines.run(case, got, |ran, got| match ran {
            Err(e) => no_run(w, e),
            Ok(()) => {
                let v = compare(w, got);
                passed.add(v.passed);
                v.differences
            }
        }),
        // What has no end on the host must have none here.
        Err(d) if d.status == Died::ENDLESS => engines.run(case, got, |ran, _| match ran {
            Err(NoException::Endless) => Vec::new(),
            _ => died(&d),
        }),
        Err(d) => died(&d),
    }
}

/// What became of a program: its number, the exception that it ended with on the host, what differs, and what was
/// passed over.
type Ran = (usize, Result<u32, Died>, Vec<Difference>, Passed);

impl Worker<'_> {
    /// The indices of the next batch.
    fn next(&self, next: &AtomicU64, stop: &AtomicBool) -> Option<Vec<u64>> {
        let (size, end) = (self.plan.batch(), self.plan.first + self.plan.cases);
        let base = next.fetch_add(1, Ordering::SeqCst) * size;
        (base < end && !stop.load(Ordering::SeqCst))
            .then(|| (base.max(self.plan.first)..(base + size).min(end)).collect())
    }

    fn instructions(
        &mut self,
        next: &AtomicU64,
        stop: &AtomicBool,
        generator: &Generator,
    ) -> Result<Summary, String> {
        let mut sum = Summary::default();
        let mut got = Outcome::new();
        let plan = self.plan;
        while let Some(indices) = self.next(next, stop) {
            let bg = background::random(plan.seed, indices[0] / BATCH as u64 * BATCH as u64);
            let made: Vec<(Case, Instruction)> =
                indices.iter().map(|&n| generator.case(plan.seed, n)).collect();
            let cases: Vec<Case> = made.iter().map(|m| m.0).collect();
            let (engines, progress, habits) = (&mut *self.engines, self.progress, self.habits);
            engines.set_background(&bg);
            engines.new_batch();
            self.native
                .run(&bg, &cases, |n, want| {
                    let (case, i) = &made[n];
                    sum.note(i, want.is_ok_and(|w| !matches!(w.vector, 1 | 3)));
                    progress.fetch_add(1, Ordering::SeqCst);
                    let mut passed = Passed::default();
                    let differences = judge(engines, case, want, &mut got, &mut passed, |want, got| {
                        let ignored = crate::compare::flags_ignored(case, i, want);
                        let off = (want.regs.rflags ^ got.regs.rflags) & ignored;
                        if off != 0 {
                            let e = sum.undefined.entry(format!("{:?}", i.mnemonic())).or_default();
                            *e = (e.0 | off, e.1 + 1);
                        }
                        compare(case, i, &bg, want, got, habits)
                    });
                    progress.fetch_add(1, Ordering::SeqCst);
                    if differences.is_empty() {
                        sum.passed.note(passed);
                        return;
                    }
                    sum.differs(i, &differences, indices[n]);
                    if (sum.reports.len() as u64) < plan.show {
                        let empty = Outcome::new();
                        let w = want.unwrap_or(&empty);
                        let mut s = format!("DIFFERENCE  {}\n", plan.replay(indices[n]));
                        s += &report::reproducer(case, i, &bg, w, &got, &differences, plan.verbose);
                        sum.reports.push(s);
                    }
                })
                .map_err(|e| e.to_string())?;
        }
        Ok(sum)
    }

    fn programs(
        &mut self,
        next: &AtomicU64,
        stop: &AtomicBool,
        programs: &Programs,
    ) -> Result<Summary, String> {
        if programs.is_empty() {
            return Err("no form for programs matches".into());
        }
        let mut sum = Summary::default();
        let plan = self.plan;
        while let Some(indices) = self.next(next, stop) {
            let bg = background::random(plan.seed, indices[0] / PROGRAMS as u64);
            let made: Vec<Program> = indices.iter().map(|&n| programs.program(plan.seed, n)).collect();
            let mut differing = Vec::new();
            for (n, ended, d, passed) in self.run_programs(&bg, &made)? {
                let end = match ended {
                    Ok(3) => "to the end",
                    Ok(0) => "#DE",
                    Ok(13) => "#GP",
                    Ok(14) => "#PF",
                    Ok(16) => "#MF",
                    Ok(17) => "#AC",
                    Ok(19) => "#XM",
                    Err(Died { status: Died::ENDLESS, .. }) => "no end",
                    _ => "other ends",
                };
                let c = sum.groups.entry(end).or_default();
                c.cases += 1;
                c.faults += u64::from(ended.is_ok_and(|v| !matches!(v, 1 | 3)));
                c.differing += u64::from(!d.is_empty());
                if d.is_empty() {
                    sum.passed.note(passed);
                } else {
                    differing.push((n, d));
                }
            }
            for (n, d) in differing {
                let name = plan.replay(indices[n]);
                let key = ("program".to_string(), Summary::kind(&d));
                sum.kinds.entry(key).or_insert((0, indices[n])).0 += 1;
                if (sum.reports.len() as u64) < plan.show {
                    let (small, d) = self.shorten(&bg, &made[n], d)?;
                    sum.reports.push(small.report(&d, &name));
                }
            }
        }
        Ok(sum)
    }

    /// Runs programs of one batch.
    fn run_programs(&mut self, bg: &[u8], made: &[Program]) -> Result<Vec<Ran>, String> {
        let mut image = vec![0xcc; CODE_PAGES * 4096];
        made.iter().for_each(|p| p.place(&mut image));
        let cases: Vec<Case> = made.iter().map(|p| p.case).collect();
        let (engines, progress, habits) = (&mut *self.engines, self.progress, self.habits);
        engines.set_background(bg);
        engines.set_code(&image);
        self.native.set_code(&image);
        let mut got = Outcome::new();
        let mut all = Vec::new();
        self.native
            .run(bg, &cases, |n, want| {
                progress.fetch_add(1, Ordering::SeqCst);
                let end = want.map(|w| w.vector);
                let mut passed = Passed::default();
                let d = judge(engines, &cases[n], want, &mut got, &mut passed, |want, got| {
                    made[n].compare(bg, want, got, habits)
                });
                progress.fetch_add(1, Ordering::SeqCst);
                all.push((n, end, d, passed));
            })
            .map_err(|e| e.to_string())?;
        Ok(all)
    }

    /// The program with as many instructions taken away as can be.
    fn shorten(
        &mut self,
        bg: &[u8],
        program: &Program,
        differences: Vec<Difference>,
    ) -> Result<(Program, Vec<Difference>), String> {
        let (mut best, mut what) = (program.clone(), differences);
        for n in (0..program.len()).rev() {
            let less = best.without(n);
            let d = self.run_programs(bg, std::slice::from_ref(&less))?.remove(0).2;
            if !d.is_empty() {
                (best, what) = (less, d);
            }
        }
        Ok((best, what))
    }
}

impl Summary {
    fn note(&mut self, i: &Instruction, fault: bool) {
        let group = if i.is_invalid() { "undefined" } else { forms::group(i.code()) };
        let c = self.groups.entry(group).or_default();
        c.cases += 1;
        c.faults += u64::from(fault);
        *self.forms.entry(i.code()).or_default() += 1;
    }
    fn differs(&mut self, i: &Instruction, d: &[Difference], index: u64) {
        let group = if i.is_invalid() { "undefined" } else { forms::group(i.code()) };
        self.groups.entry(group).or_default().differing += 1;
        let key = (format!("{:?}", i.mnemonic()), Self::kind(d));
        self.kinds.entry(key).or_insert((0, index)).0 += 1;
    }

    /// What differs, in short.
    fn kind(d: &[Difference]) -> String {
        let mut what: Vec<String> = d
            .iter()
            .map(|d| {
                let w = d.what.trim_end_matches(|c: char| c.is_ascii_digit());
                if w.starts_with("memory") { "memory".into() } else { w.to_string() }
            })
            .collect();
        what.dedup();
        what.truncate(6);
        what.join("+")
    }
}

/// Outcomes of `each` cases of every form on this host, by group: of all forms in 64-bit mode, of those that 64-bit
/// mode does not have in 32-bit mode, and of one case of each form that addresses or stacks matter to in 16-bit mode.
pub fn record(plan: &Plan, each: u64) -> Result<BTreeMap<&'static str, Vec<String>>, String> {
    let mut native = Native::new().map_err(|e| e.to_string())?;
    let guest = Guest::new(&plan.model)?;
    if !native.has_ldt() || !native.has_fsgsbase() {
        return Err("rows are recorded where the kernel has modify_ldt and lets programs use WRFSBASE".into());
    }
    // They run on `max`, and read as AMD decodes.
    if guest.model().vendor != mynah_cpu::model::Vendor::Amd {
        return Err("rows are recorded on a processor of AMD's".into());
    }
    let generator = Generator::new(guest.model(), |c| plan.wants(c), &plan.bits, true, true);
    let mut wanted: Vec<(Code, u32, u64)> = Vec::new();
    for bits in [64, 32, 16] {
        for &c in generator.forms(bits) {
            let n = match bits {
                64 => each,
                32 if !c.op_code().mode64() => each,
                16 if matches!(forms::group(c), "integer" | "flow" | "stack" | "string") => each.min(1),
                _ => 0,
            };
            wanted.extend((0..n).map(|k| (c, bits, k)));
        }
    }
    let bg = background::pattern();
    let mut all: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    for (number, chunk) in wanted.chunks(BATCH / 2).enumerate() {
        let mut made = Vec::new();
        for (slot, &(code, bits, k)) in chunk.iter().enumerate() {
            // Rather a case that is completed than one that faults.
            let tries = (0..40u64).filter_map(|t| {
                let seed = plan.seed ^ (code as u64) << 20 ^ k << 8 ^ t << 40;
                let index = slot as u64 + (number as u64) * BATCH as u64;
                generator.case_of(seed, index, code, bits).filter(|(_, i)| i.code() == code)
            });
            if let Some((case, i)) = tries.take(1).next() {
                made.push((crate::rows::sparse(&case, &i), i));
            }
        }
        let cases: Vec<Case> = made.iter().map(|m| m.0).collect();
        native
            .run(&bg, &cases, |n, want| {
                let Ok(want) = want else { return };
                // Operands below the top of memory, where pages of the kernel's own choice might stand, do not belong
                // into rows.
                let row = crate::rows::Row { case: made[n].0, want: Box::new(*want) };
                all.entry(forms::group(made[n].1.code())).or_default().push(row.line());
            })
            .map_err(|e| e.to_string())?;
    }
    Ok(all)
}
