//! `mynah compare --lockstep A,B`: two engines in one process, from one state, instruction by instruction.
use super::super::{Error, build, print, tell};
use super::{Args, subject};
use crate::config::{Accel, AccelKind, Config};
use crate::machine::ending::Ending;
use crate::machine::lockstep::Options;
use crate::machine::lockstep::verdict::Verdict;
use crate::machine::{Machine, engines};
use anyhow::{Context, Result, ensure};
use std::ffi::OsString;
use std::time::Duration;

/// How much longer than asked for a guest may take that waits.
const GRACE: Duration = Duration::from_millis(500);

/// Runs two engines in step; 1 if they part.
pub fn run(names: &str, args: &Args) -> Result<i32> {
    let (leader, follower) = roles(names)?;
    let mut options: Vec<OsString> = Vec::new();
    ensure!(args.images.len() <= 1, Error::new("--lockstep: one image, please; each is a run of its own"));
    for image in &args.images {
        ensure!(image.exists(), Error::new(format!("{}: there is no such file", image.display())));
        options.extend(subject::options_of(image)?);
    }
    options.extend(args.options.iter().cloned());
    ensure!(
        !options.is_empty(),
        Error::new("name a guest: an image, or '--' and options of 'mynah run' (mynah compare --help)")
    );
    let mut config = build::config("mynah compare", &subject::quiet(&options))?;
    ensure!(config.accel.is_empty(), Error::new("-accel: the engines are those of --lockstep; leave it out"));
    ensure!(
        config.smp.cpus == 1,
        Error::new(format!("-smp {}: --lockstep takes one vCPU (-smp 1)", config.smp.cpus))
    );
    config.program = "mynah".into();
    config.accel = vec![Accel { kind: leader, properties: Vec::new() }];
    config.refuse_unbuilt().map_err(Error::new)?;
    build::check_files(&config)?;
    let make = engines::follower(follower, &mut config).with_context(|| format!("--lockstep {names}"))?;
    let options = Options {
        names: [leader.to_string(), follower.to_string()],
        follower: make,
        instructions: args.instructions,
        time: args.seconds.map(Duration::from_secs_f64),
        fault: None,
    };
    let verdict = go(config, options)?;
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&verdict)?;
        std::fs::write(path, text + "\n")
            .map_err(|e| Error::new(format!("--json {}: {e}", path.display())))?;
    }
    Ok(match verdict {
        Some(Verdict::Same(c)) => {
            tell(&format!(
                "{leader} and {follower} are the same: {} instructions in step, {} comparisons of the whole state, {} \
                 interrupts; {} blocks excused for flags that are undefined, {} void",
                c.instructions, c.comparisons, c.events, c.excused, c.void
            ));
            0
        }
        Some(Verdict::Parted(parting)) => {
            print(&parting.text());
            1
        }
        None => {
            tell("the machine has ended before anything was compared");
            1
        }
    })
}

/// Runs the machine to its end.
fn go(config: Config, options: Options) -> Result<Option<Verdict>> {
    let mut machine = Machine::new(config)?;
    let handle = machine.handle();
    let _ending = Ending::watch(handle.power()).context("cannot watch over the machine's end")?;
    if let Some(time) = options.time {
        // A guest that waits compares nothing, and does not see that it is over.
        let power = handle.power().clone();
        let late = std::thread::Builder::new().name("mynah-late".into());
        late.spawn(move || {
            std::thread::sleep(time.saturating_add(GRACE));
            power.end(0, None);
        })
        .context("cannot start a thread")?;
    }
    let verdict = machine.in_lockstep(options)?;
    machine.run()?;
    Ok(verdict.lock().take())
}

/// Who leads and who follows: what stops only now and then leads, and what is stepped from outside follows.
fn roles(names: &str) -> Result<(AccelKind, AccelKind)> {
    let kind = |name: &str| match name {
        "interp" => Ok(AccelKind::Interp),
        "jit" | "tcg" => Ok(AccelKind::Jit),
        "kvm" => Ok(AccelKind::Kvm),
        _ => Err(Error::new(format!("--lockstep {names}: {name} is none of interp, jit and kvm"))),
    };
    let Some((a, b)) = names.split_once(',') else {
        return Err(Error::new(format!("--lockstep {names}: expected two engines, as in interp,jit")).into());
    };
    let (a, b) = (kind(a)?, kind(b)?);
    ensure!(a != b, Error::new(format!("--lockstep {names}: these are the same engine")));
    Ok(if b == AccelKind::Jit || a == AccelKind::Kvm { (b, a) } else { (a, b) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_stop_anywhere_leads_whatever_the_order() {
        use AccelKind::{Interp, Jit, Kvm};
        for (names, expected) in [
            ("interp,jit", (Jit, Interp)),
            ("jit,interp", (Jit, Interp)),
            ("kvm,jit", (Jit, Kvm)),
            ("jit,kvm", (Jit, Kvm)),
            ("kvm,interp", (Interp, Kvm)),
            ("interp,kvm", (Interp, Kvm)),
        ] {
            assert_eq!(roles(names).unwrap(), expected, "{names}");
        }
        let why = |names: &str| roles(names).unwrap_err().to_string();
        assert_eq!(why("jit"), "--lockstep jit: expected two engines, as in interp,jit");
        assert_eq!(why("jit,qemu"), "--lockstep jit,qemu: qemu is none of interp, jit and kvm");
        assert_eq!(why("jit,tcg"), "--lockstep jit,tcg: these are the same engine");
    }
}
