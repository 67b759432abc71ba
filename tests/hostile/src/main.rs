//! `mynah-hostile`: see the library.
use clap::Parser;
use mynah_hostile::parent::{self, Plan};
use mynah_hostile::{Engine, Profile};
use std::process::Command;
use std::time::Duration;

/// As the machine's program has it: what it does with memory is looked at.
#[cfg(not(target_vendor = "apple"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Cases of network cards after which frames must have passed each way through each model.
const ENOUGH: u64 = 200;

/// Random guests that mean harm, in whole machines: none may kill the process, hang it or make it large.
#[derive(Parser)]
struct Args {
    /// What guests are made of.
    #[arg(long, value_enum, default_value = "hostile")]
    profile: Profile,
    /// What executes them; both in turns if not given.
    #[arg(long, value_enum)]
    engine: Option<Engine>,
    /// vCPUs; 1 and 2 in turns if not given.
    #[arg(long)]
    smp: Option<usize>,
    /// Names the run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The first case.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// So many cases, in place of a time.
    #[arg(long)]
    cases: Option<u64>,
    /// How long to go on.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Milliseconds that each guest runs.
    #[arg(long, default_value_t = 40)]
    time: u64,
    /// MiB that a process may have resident; 1024 if not given, with images 64 and what the process has without.
    #[arg(long)]
    limit: Option<u64>,
    /// Run one case: SEED:CASE.
    #[arg(long)]
    replay: Option<String>,
    /// Run the cases here, and say where it is.
    #[arg(long, hide = true)]
    worker: bool,
}

fn main() -> anyhow::Result<()> {
    let mut args = Args::parse();
    if let Some(case) = &args.replay {
        let (seed, case) =
            case.split_once(':').ok_or_else(|| anyhow::anyhow!("--replay: SEED:CASE is expected"))?;
        (args.seed, args.first, args.cases) = (seed.parse()?, case.parse()?, Some(1));
    }
    let plan = Plan {
        profile: args.profile,
        engine: args.engine,
        vcpus: args.smp,
        time: Duration::from_millis(args.time),
        seed: args.seed,
        first: args.first,
        cases: args.cases,
        seconds: args.seconds,
        limit_mib: args.limit.unwrap_or(if args.profile == Profile::Images { 64 + 16 } else { 1024 }),
    };
    if args.worker {
        std::process::exit(parent::work(&plan));
    }
    let me = std::env::current_exe()?;
    let mut report = parent::run(&plan, |part| {
        let mut command = Command::new(&me);
        command.arg("--worker");
        let name = |v: &dyn std::fmt::Debug| format!("{v:?}").to_lowercase();
        command.args(["--profile", &name(&part.profile)]);
        command.args(part.engine.iter().flat_map(|e| ["--engine".into(), name(e)]));
        command.args(part.vcpus.iter().flat_map(|n| ["--smp".into(), n.to_string()]));
        let numbers = [
            ("--seed", part.seed),
            ("--first", part.first),
            ("--cases", part.cases.unwrap_or(1)),
            ("--time", args.time),
        ];
        command.args(numbers.iter().flat_map(|(option, n)| [option.to_string(), n.to_string()]));
        command
    })?;
    let did = match plan.profile {
        Profile::Saved => format!("{} machines restored", report.restored),
        Profile::Images => "disk images".into(),
        Profile::Devices | Profile::Network => format!("{} thousand accesses", report.executed / 1000),
        Profile::Hostile | Profile::Race => format!("{} million instructions", report.executed / 1_000_000),
    };
    for (model, [sent, received]) in &report.frames {
        println!("{model}: {sent} frames sent, {received} received");
        // So many cases have some of each card: rings that nothing goes through try little.
        if plan.profile == Profile::Network && report.cases >= ENOUGH && (*sent == 0 || *received == 0) {
            report.findings.push(format!("{model}: nothing has passed"));
        }
    }
    println!(
        "{} cases of seed {}, {did}: {} findings; the largest process had {} MiB resident",
        report.cases,
        plan.seed,
        report.findings.len(),
        report.peak_mib
    );
    std::process::exit(i32::from(!report.findings.is_empty()));
}
