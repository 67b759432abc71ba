//! Runs random instructions on the host's CPU and in Mynah, and reports what differs.

const USAGE: &str = "usage: mynah-oracle [options]
  --cases N         how many cases to run (default 2000000)
  --seed N          seed of the run (default 1)
  --only LIST       only forms whose mnemonic, code or group contains one of these (comma-separated; '=x' means exactly x)
  --skip LIST       not these
  --isa LIST        only these groups: integer, flow, stack, string, bmi, x87, mmx, sse, sse2, sse3, sse4, crypto, avx, avx2,
                    fma, f16c, vaes, save, privileged
  --bits LIST       modes: 64, 32, 16 (default: all)
  --model MODEL     Mynah's CPU model (default: host)
  --engine ENGINE   Mynah's side: interp, jit or both, which are then compared to the last bit too (default: both)
  --opt LEVEL       how much the translator optimises: baseline, none or speed (default: speed); with baseline, whose undefined flags are the
                    host's, use --engine jit
  --soft            the interpreter with the portable floating point and vectors of other hosts, under any rounding, precision and masks
  --programs        cases are random programs of 2 to 40 instructions
  --jobs N          threads (default: 2)
  --show N          how many differing cases to report (default 20)
  --verbose         with all registers
  --flags           list undefined flags that differ from the host's
  --replay S:N      run case N of seed S and show everything
  --record N        write N recorded rows for every form to tests/oracle/rows
  --list            list the forms that are tried
  --habits          list what is passed over, why, and which of it this host's CPU has
Exit code: 0 no difference, 1 differences, 2 the run could not be made.";

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn main() {
    let _ = USAGE;
    println!(
        "mynah-oracle: SKIPPED: the host is not x86-64 Linux, so its CPU cannot be the oracle (recorded rows run in `cargo test`)"
    );
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn main() -> std::process::ExitCode {
    match host::main() {
        Ok(0) => 0.into(),
        Ok(_) => 1.into(),
        Err(e) => {
            eprintln!("mynah-oracle: {e}");
            2.into()
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod host {
    use mynah_jit::tier::Optimize;
    use mynah_oracle::engines::Choice;
    use mynah_oracle::session::{Plan, Summary, habits, run};
    use mynah_oracle::{forms, guest::Guest};

    pub fn main() -> Result<u64, String> {
        let mut plan = Plan { jobs: 2, ..Plan::default() };
        let mut args = std::env::args().skip(1);
        let (mut list, mut flags, mut table, mut soft) = (false, false, false, false);
        while let Some(a) = args.next() {
            let mut value = || args.next().ok_or(format!("{a} needs a value"));
            let number = |s: String| {
                let r = s
                    .strip_prefix("0x")
                    .map_or_else(|| s.replace('_', "").parse(), |h| u64::from_str_radix(h, 16));
                r.map_err(|_| format!("'{s}' is not a number"))
            };
            match a.as_str() {
                "--cases" => plan.cases = number(value()?)?,
                "--seed" => plan.seed = number(value()?)?,
                "--only" => plan.only = value()?,
                "--isa" => {
                    plan.only = value()?.split(',').map(|g| format!("={g}")).collect::<Vec<_>>().join(",")
                }
                "--skip" => plan.skip = value()?,
                "--bits" => {
                    plan.bits = value()?
                        .split(',')
                        .map(|b| number(b.into()).map(|b| b as u32))
                        .collect::<Result<_, _>>()?;
                    if plan.bits.iter().any(|b| ![16, 32, 64].contains(b)) {
                        return Err("--bits takes 16, 32 and 64".into());
                    }
                }
                "--model" => plan.model = value()?,
                "--engine" => {
                    plan.engine = match value()?.as_str() {
                        "interp" => Choice::Interpreter,
                        "jit" => Choice::Translator,
                        "both" => Choice::Both,
                        e => return Err(format!("--engine takes interp, jit or both, not '{e}'")),
                    }
                }
                "--opt" => {
                    plan.optimize = match value()?.as_str() {
                        "baseline" => Optimize::Baseline,
                        "none" => Optimize::None,
                        "speed" => Optimize::Speed,
                        o => return Err(format!("--opt takes baseline, none or speed, not '{o}'")),
                    }
                }
                "--soft" => soft = true,
                "--programs" => plan.programs = true,
                "--jobs" => plan.jobs = number(value()?)? as u32,
                "--show" => plan.show = number(value()?)?,
                "--verbose" => plan.verbose = true,
                "--flags" => flags = true,
                "--list" => list = true,
                "--habits" => table = true,
                "--record" => {
                    let each = number(value()?)?;
                    return write_rows(&plan, each);
                }
                "--replay" => {
                    let v = value()?;
                    let (s, n) = v.split_once(':').ok_or("--replay takes SEED:INDEX")?;
                    (plan.seed, plan.first) = (number(s.into())?, number(n.into())?);
                    (plan.cases, plan.jobs, plan.verbose) = (1, 1, true);
                }
                "--help" | "-h" => {
                    println!("{}", super::USAGE);
                    return Ok(0);
                }
                _ => return Err(format!("unknown option '{a}'\n{}", super::USAGE)),
            }
        }
        if soft {
            plan = plan.soft();
        }
        if list {
            let guest = Guest::new(&plan.model)?;
            for bits in [64, 32, 16] {
                for c in forms::forms(guest.model(), bits).into_iter().filter(|&c| plan.wants(c)) {
                    println!(
                        "{bits} {:10} {:30} {}",
                        forms::group(c),
                        format!("{c:?}"),
                        c.op_code().instruction_string()
                    );
                }
            }
            return Ok(0);
        }
        if table {
            print!("{}", habits(&plan)?.list());
            return Ok(0);
        }
        let start = std::time::Instant::now();
        let sum = run(&plan)?;
        print(&plan, &sum, start.elapsed().as_secs_f64(), flags);
        Ok(sum.differing())
    }

    fn write_rows(plan: &Plan, each: u64) -> Result<u64, String> {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/rows");
        for (group, lines) in mynah_oracle::session::record(plan, each)? {
            let file = format!("{dir}/{group}.txt");
            let head = format!(
                "# {group}: recorded by `mynah-oracle --record {each} --seed {}`; see src/rows.rs for the format.\n",
                plan.seed
            );
            std::fs::write(&file, head + &lines.join("\n") + "\n").map_err(|e| format!("{file}: {e}"))?;
            println!("{file}: {} rows", lines.len());
        }
        Ok(0)
    }

    fn print(plan: &Plan, sum: &Summary, seconds: f64, flags: bool) {
        use std::io::Write;
        let mut out = std::io::stdout().lock();
        // A reader that has gone is no reason to stop.
        macro_rules! put {
            ($($t:tt)*) => {{ let _ = writeln!(out, $($t)*); }};
        }
        for r in &sum.reports {
            put!("{r}");
        }
        if !sum.kinds.is_empty() {
            put!("differing cases by instruction:");
            let mut v: Vec<_> = sum.kinds.iter().collect();
            v.sort_by_key(|(_, n)| std::cmp::Reverse(n.0));
            for ((mnemonic, what), (n, first)) in v.iter().take(200) {
                put!("  {n:7} {mnemonic:14} {what:50} {}:{first}", plan.seed);
            }
        }
        if flags {
            put!("undefined flags that differ from the host's:");
            for (m, (bits, n)) in &sum.undefined {
                put!("  {m:14} {bits:#06x} {n}");
            }
        }
        put!("{:12} {:>10} {:>10} {:>10}", "group", "cases", "faults", "differing");
        for (g, c) in &sum.groups {
            put!("{g:12} {:10} {:10} {:10}", c.cases, c.faults, c.differing);
        }
        if let Ok(guest) = Guest::new(&plan.model) {
            let mut missed: Vec<_> = plan.bits.iter().flat_map(|&b| forms::forms(guest.model(), b)).collect();
            missed.retain(|c| plan.wants(*c) && !sum.forms.contains_key(c));
            missed.sort();
            missed.dedup();
            if !plan.programs && sum.cases() >= 500_000 && !missed.is_empty() {
                put!("forms without a case: {missed:?}");
            }
        }
        let t = sum.translated;
        if t != Default::default() {
            put!("translator: {} runs, {} regions, {} refused", t.cases, t.regions, t.refused);
        }
        if !sum.untried.is_empty() {
            let list: Vec<String> = sum.untried.iter().map(|(name, n)| format!("{name} {n}")).collect();
            put!("made and not tried: {}", list.join(", "));
        }
        put!("{}", sum.passed.line(sum.cases()));
        put!(
            "seed {}: {} cases, {} forms, {} differing, {seconds:.1} s, {:.0} cases/s",
            plan.seed,
            sum.cases(),
            sum.forms.len(),
            sum.differing(),
            sum.cases() as f64 / seconds
        );
    }
}
