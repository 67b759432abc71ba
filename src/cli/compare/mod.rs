//! `mynah compare`: the same guest on several engines, in turns, and how long each took for what.
//!
//! * [`subject`]: who is compared, and the command line of each; [`bochs`]: what that peer has in its place. [`run`]: one run, watched. [`report`]: figures of all
//!   runs, as a table and as JSON. [`plot`]: pictures, and the page that holds them. [`lockstep`]: two engines in step.
mod bochs;
mod lockstep;
mod plot;
mod report;
mod run;
mod subject;

use super::{Error, tell};
use anyhow::{Result, bail, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use report::Report;
use run::{Marker, Outcome};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;
use subject::Subject;

/// The options of `mynah compare`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Each run begins from the same state: disk images are not written to. A run is over when the guest \
    switches itself off, or when --until is on its console. Lines 'RESULT NAME SECONDS' on the console are benchmarks of \
    the guest's own.\n\n  mynah compare --accel jit,qemu --until login: disk.qcow2\n  mynah compare --accel interp,jit \
    -- -kernel vmlinuz -initrd test.cpio -append console=ttyS0 -m 512\n  mynah compare --lockstep interp,jit --for 30s \
    -- -kernel vmlinuz -append console=ttyS0"
)]
pub struct Args {
    /// What is compared: interp, jit, kvm, hvf, and peers that are installed: qemu, qemu-kvm, bochs
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "interp,jit")]
    accel: Vec<String>,
    /// Runs of each, in turns
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// Write all figures to a file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with plots, and the plots beside it as SVG and PNG
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// A text on the console at which a run is over
    #[arg(long, value_name = "TEXT")]
    until: Option<String>,
    /// A text on the console, or on the debug port (E9h), whose time is of interest
    #[arg(long, value_name = "NAME=TEXT")]
    marker: Vec<String>,
    /// Run two of interp, jit and kvm from one state in step, and stop where they part; 1 if they do
    #[arg(long, value_name = "A,B", conflicts_with_all = ["html", "until", "marker", "accel"])]
    lockstep: Option<String>,
    /// With --lockstep: seconds of the host's time after which it is over
    #[arg(long = "for", value_name = "SECONDS", requires = "lockstep", value_parser = seconds)]
    seconds: Option<f64>,
    /// With --lockstep: instructions after which it is over
    #[arg(long, value_name = "N", requires = "lockstep")]
    instructions: Option<u64>,
    /// Seconds after which a run has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// Disk images, CD images (.iso) or kernels: each is a guest of its own
    #[arg(value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Options of `mynah run`, which describe the guest
    #[arg(last = true, value_name = "RUN-OPTIONS")]
    options: Vec<OsString>,
}

/// A guest: what it is called, and its options.
struct Guest {
    name: String,
    options: Vec<OsString>,
}

/// A time as it is typed: 10, 10s, 0.5.
fn seconds(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('s').unwrap_or(text).parse().ok();
    number.filter(|s| (0.0..1e9).contains(s)).ok_or_else(|| "expected seconds, as in 10s".into())
}

/// Compares; 1 if a run has failed.
pub fn run(args: &Args) -> Result<i32> {
    if let Some(names) = &args.lockstep {
        return lockstep::run(names, args);
    }
    ensure!(args.runs > 0, Error::new("--runs 0: nothing is run"));
    let subjects = args.accel.iter().map(|name| Subject::named(name)).collect::<Result<Vec<_>>>()?;
    let mut markers = run::PHASES.iter().map(|(name, text)| Marker::new(name, text)).collect::<Vec<_>>();
    for marker in &args.marker {
        match marker.split_once('=') {
            Some((name, text)) if !name.is_empty() && !text.is_empty() => {
                markers.push(Marker::new(name, text))
            }
            _ => bail!(Error::new(format!("--marker {marker}: expected NAME=TEXT"))),
        }
    }
    let guests = guests(args)?;
    let bar = ProgressBar::with_draw_target(
        Some((guests.len() * subjects.len() * args.runs) as u64),
        ProgressDrawTarget::stderr(),
    );
    bar.set_style(
        ProgressStyle::with_template("{pos}/{len} {elapsed} {msg}").unwrap_or(ProgressStyle::default_bar()),
    );
    bar.enable_steady_tick(Duration::from_millis(200));
    let mut report = Report::new();
    for guest in &guests {
        // In turns, so that what else the host does hits all of them.
        for n in 0..args.runs {
            for subject in &subjects {
                bar.set_message(format!("{} by {}, run {}", guest.name, subject.name, n + 1));
                let limit = Duration::from_secs(args.timeout);
                let outcome = run::run(subject, &guest.options, &markers, args.until.as_deref(), limit);
                if let Outcome::Failed(why) = &outcome {
                    bar.suspend(|| {
                        tell(&format!("{} by {}, run {}: {why}", guest.name, subject.name, n + 1))
                    });
                }
                report.add(&guest.name, subject.name, outcome);
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    super::print(&report.table());
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text + "\n")
            .map_err(|e| Error::new(format!("--json {}: {e}", path.display())))?;
    }
    if let Some(path) = &args.html {
        plot::page(&report, path)?;
    }
    Ok(i32::from(report.has_failures()))
}

/// The guests that the arguments name.
fn guests(args: &Args) -> Result<Vec<Guest>> {
    let mut all = Vec::new();
    for image in &args.images {
        ensure!(image.exists(), Error::new(format!("{}: there is no such file", image.display())));
        let mut options = subject::options_of(image)?;
        options.extend(args.options.iter().cloned());
        let name = image.file_name().unwrap_or(image.as_os_str()).to_string_lossy().into_owned();
        all.push(Guest { name, options });
    }
    if all.is_empty() {
        ensure!(
            !args.options.is_empty(),
            Error::new("name a guest: an image, or '--' and options of 'mynah run' (mynah compare --help)")
        );
        all.push(Guest { name: "guest".into(), options: args.options.clone() });
    }
    Ok(all)
}
