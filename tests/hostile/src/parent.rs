//! Runs cases in processes of their own, so that one that dies is a line of the report.
use crate::machine::{self, Setup};
use crate::{Engine, Profile, devices, images, saved};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Cases that one process runs: a machine leaves some of its memory to the next.
const BATCH: u64 = 100;
/// The same of disk images, whose limit is low: what the allocator has from an earlier one would count too.
const IMAGES: u64 = 1;
/// How long a process may say nothing, on a host that has much else to do.
const SILENCE: Duration = Duration::from_secs(180);

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What guests are made of.
    pub profile: Profile,
    /// What executes them; both in turns if none is given.
    pub engine: Option<Engine>,
    /// vCPUs; 1 and 2 in turns if not given.
    pub vcpus: Option<usize>,
    /// How long each guest runs.
    pub time: Duration,
    /// Names the run.
    pub seed: u64,
    /// The first case.
    pub first: u64,
    /// How many there are, if that is bounded.
    pub cases: Option<u64>,
    /// How long to go on.
    pub seconds: u64,
    /// MiB that a process may have resident at most.
    pub limit_mib: u64,
}

impl Plan {
    /// How case `case` is run: engines and numbers of vCPUs take turns, batch by batch.
    pub fn setup(&self, case: u64) -> Setup {
        let turn = case / BATCH;
        // To a saved machine it makes little difference, and the translator takes its time to come and go.
        let every = if self.profile == Profile::Saved { 8 } else { 2 };
        let engine =
            self.engine.unwrap_or(if turn.is_multiple_of(every) { Engine::Jit } else { Engine::Interp });
        let both = if self.profile == Profile::Race { 2 } else { 1 + (turn / 2 % 2) as usize };
        Setup { profile: self.profile, engine, vcpus: self.vcpus.unwrap_or(both), time: self.time }
    }
}

/// What a run found.
#[derive(Debug, Default)]
pub struct Report {
    /// Cases that were run.
    pub cases: u64,
    /// A line for each that did not end well.
    pub findings: Vec<String>,
    /// Instructions that the guests executed.
    pub executed: u64,
    /// Saved machines that were not refused.
    pub restored: u64,
    /// Frames that network cards have sent and received, by model.
    pub frames: BTreeMap<String, [u64; 2]>,
    /// The largest process, in MiB.
    pub peak_mib: u64,
}

/// Runs the cases of a batch in this process: a line before each, one at the end.
pub fn work(plan: &Plan) -> i32 {
    for case in plan.first..plan.first + plan.cases.unwrap_or(1) {
        println!("case {case}");
        let ran = match plan.profile {
            Profile::Saved => saved::run(plan.setup(case), plan.seed, case).map(|restored| {
                if restored {
                    println!("restored");
                }
                0
            }),
            Profile::Images => images::run(plan.seed, case).map(|()| 0),
            Profile::Devices | Profile::Network => {
                devices::run(plan.setup(case), plan.seed, case).map(|did| {
                    for (model, sent, received) in did.frames {
                        println!("frames {model} {sent} {received}");
                    }
                    did.made
                })
            }
            Profile::Hostile | Profile::Race => machine::run(plan.setup(case), plan.seed, case),
        };
        match ran {
            Ok(executed) => println!("executed {executed} {}", machine::peak_mib()),
            Err(e) => {
                println!("finding {e:#}");
                // Threads may be stuck: nothing is waited for.
                return 3;
            }
        }
    }
    println!("done");
    0
}

/// Runs all that `plan` says; `worker` makes the command of a process for it.
pub fn run(plan: &Plan, worker: impl Fn(&Plan) -> Command) -> std::io::Result<Report> {
    let mut report = Report::default();
    let end = Instant::now() + Duration::from_secs(plan.seconds);
    let mut next = plan.first;
    let last = plan.cases.map_or(u64::MAX, |n| plan.first + n);
    while next < last && (plan.cases.is_some() || Instant::now() < end) {
        // To the end of its turn, so that one process has one engine and one number of vCPUs.
        let most = if plan.profile == Profile::Images { IMAGES } else { BATCH };
        let batch = (most - next % most).min(last - next);
        let part = Plan { first: next, cases: Some(batch), ..plan.clone() };
        let mut child = worker(&part).stdout(Stdio::piped()).spawn()?;
        let out = child.stdout.take().expect("it is piped");
        let (tell, told) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        let until = (end, plan.cases.is_some());
        let (at, why) = watch(&mut child, &told, &mut report, until, plan.limit_mib)?;
        if !matches!(plan.profile, Profile::Hostile | Profile::Race) {
            saved::clean(child.id());
        }
        let Some(why) = why else {
            next = at.map_or(next + batch, |at| at + 1);
            continue;
        };
        let at = at.unwrap_or(next);
        let s = plan.setup(at);
        let text = format!("{}:{at} ({:?}, {:?}, {} vCPUs): {why}", plan.seed, s.profile, s.engine, s.vcpus);
        println!("{text}");
        report.findings.push(text);
        next = at + 1;
    }
    Ok(report)
}

/// Follows a process: the case that it was at if it did not do all, and why if that is a finding.
fn watch(
    child: &mut Child,
    told: &Receiver<String>,
    report: &mut Report,
    (end, bounded): (Instant, bool),
    limit_mib: u64,
) -> std::io::Result<(Option<u64>, Option<String>)> {
    let mut at = None;
    let mut finding = None;
    loop {
        match told.recv_timeout(SILENCE) {
            Ok(line) => match line.split_once(' ') {
                Some(("case", n)) => {
                    at = n.parse().ok();
                    report.cases += 1;
                    if !bounded && Instant::now() > end {
                        child.kill()?;
                        child.wait()?;
                        return Ok((at, None));
                    }
                }
                Some(("executed", figures)) => {
                    let (executed, mib) = figures.split_once(' ').unwrap_or((figures, ""));
                    report.executed += executed.parse().unwrap_or(0);
                    let mib = mib.parse().unwrap_or(0);
                    report.peak_mib = report.peak_mib.max(mib);
                    if mib > limit_mib {
                        child.kill()?;
                        child.wait()?;
                        let why = format!("{mib} MiB were resident; the limit is {limit_mib}");
                        return Ok((at, Some(why)));
                    }
                }
                None if line == "done" => {
                    child.wait()?;
                    return Ok((None, None));
                }
                None if line == "restored" => report.restored += 1,
                Some(("frames", figures)) => {
                    let mut words = figures.split(' ');
                    let model = words.next().unwrap_or_default().to_owned();
                    for count in report.frames.entry(model).or_default() {
                        *count += words.next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
                    }
                }
                Some(("finding", why)) => finding = Some(why.to_owned()),
                _ => println!("{line}"),
            },
            Err(RecvTimeoutError::Timeout) => {
                child.kill()?;
                child.wait()?;
                return Ok((at, Some("hang: nothing for three minutes".into())));
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = child.wait()?;
                return Ok((at, Some(finding.unwrap_or_else(|| describe(status)))));
            }
        }
    }
}

fn describe(status: ExitStatus) -> String {
    format!("the process has died: {status}")
}
