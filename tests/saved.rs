//! Machines that are saved by the monitor's `migrate`, and go on in another process.
//!
//! Debian's kernel, saved at random moments of its boot, takes longer: `cargo test --release --test saved --
//! --ignored`. MYNAH_SAVES=N has N moments (12), MYNAH_SEED=N others; MYNAH_ACCEL the engines, which take turns.
#![cfg(unix)]
#[allow(dead_code, reason = "it drives guests by their console")]
mod common;
mod kit;

use common::{guest, ramdisk};
use kit::linux::{LONG, TROUBLE, WORK, linux};
use kit::spells::{LETTERS, Machine, spells};
use kit::*;
use mynah_oracle::rng::Rng;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

#[test]
fn a_guest_goes_on_where_it_was_saved_on_either_engine() {
    let machine = Machine::new("saved", &Guest { vcpus: 2, others: &spin, ..Guest::new(&spells) });
    let saved = machine.path("saved");
    let (to_file, from_file) = (format!("file:{saved}"), format!("file:{saved}"));
    let (to_pipe, from_pipe) = (format!("exec:cat > '{saved}'"), format!("exec:cat '{saved}'"));
    let mut n = 0;
    for (first, second, to, from) in [
        ("interp", "jit,cache=off", &to_file, &from_file),
        ("jit,cache=off", "interp", &to_pipe, &from_pipe),
        ("jit,cache=off", "jit,cache=off", &to_pipe, &from_file),
        ("interp", "interp", &to_file, &from_file),
    ] {
        // From process to process, some letters in each, the last one until the guest's end.
        let mut said = String::new();
        let mut running = machine.start(n, first, &[]);
        for hop in 1..=3 {
            let mut monitor = machine.monitor(n);
            wait_for("more letters", || (said.len() + machine.console(n).len() >= 6 * hop).then_some(()));
            assert_eq!(monitor.ask(&format!("migrate \"{to}\"")), "");
            assert_eq!(monitor.ask("info status"), "VM status: paused (postmigrate)\n");
            assert_eq!(monitor.ask("info migrate"), "Migration status: completed\n");
            monitor.send("quit");
            assert!(running.ended(PATIENCE).is_some_and(|s| s.success()));
            said += &machine.console(n);
            n += 1;
            running = machine.start(n, second, &["-incoming", from]);
        }
        assert!(running.ended(PATIENCE).is_some_and(|s| s.success()), "{said} {}", machine.console(n));
        said += &machine.console(n);
        assert_eq!(said, format!("{LETTERS}."), "{first} to {second} by {to}, {from}");
        n += 1;
    }
}

#[test]
fn who_has_saved_a_machine_may_go_on_too_and_a_failure_costs_nothing() {
    let machine = Machine::new("saved", &Guest::new(&spells));
    let old = machine.folder.file("saved", b"what was there before");
    let mut running = machine.start(0, "jit,cache=off", &[]);
    let mut monitor = machine.monitor(0);
    for (uri, why) in [
        (format!("file:{}/x", machine.path("nowhere")), "No such file or directory"),
        (format!("file:{}", machine.folder.0.display()), "Is a directory"),
        ("\"exec:exit 3\"".into(), "exit status: 3"),
        ("tcp:127.0.0.1:4444".into(), "'tcp:' is not supported yet; there are file:FILE and exec:COMMAND"),
        ("saved".into(), "'saved' is not where a machine can be: file:FILE or exec:COMMAND"),
        ("file:".into(), "nothing follows the colon"),
    ] {
        let said = monitor.ask(&format!("migrate {uri}"));
        assert!(said.starts_with("Error: ") && said.contains(why), "{uri}: {said}");
        assert_eq!(monitor.ask("info status"), "VM status: running\n");
        assert_eq!(monitor.ask("info migrate"), "Migration status: failed\n");
    }
    assert_eq!(fs::read(&old).unwrap(), b"what was there before");
    assert_eq!(fs::read_dir(&machine.folder.0).unwrap().count(), 4, "no part of a file is left behind");

    // A paused guest is saved as it stands, the same each time, and stays paused.
    monitor.ask("stop");
    assert_eq!(monitor.ask(&format!("migrate -d file:{old}")), "");
    let first = fs::read(&old).unwrap();
    assert_eq!(monitor.ask(&format!("migrate file:{}", machine.path("again"))), "");
    assert!(first == fs::read(machine.path("again")).unwrap(), "the same machine, other bytes");
    assert_eq!(monitor.ask("info status"), "VM status: paused\n");
    let meta = fs::metadata(&old).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o600, "it has the guest's secrets");
    assert!(
        meta.blocks() * 512 < 4 << 20,
        "{} bytes of a guest that has written hardly any",
        meta.blocks() * 512
    );
    monitor.ask("cont");
    assert!(running.ended(PATIENCE).is_some_and(|s| s.success()));
    assert_eq!(machine.console(0), format!("{LETTERS}."));

    // It was saved paused, and waits; then it goes on, and can be reset.
    let restored = format!("file:{old}");
    let mut running = machine.start(1, "interp", &["-incoming", &restored]);
    let mut monitor = machine.monitor(1);
    assert_eq!(monitor.ask("info status"), "VM status: paused (prelaunch)\n");
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(machine.console(1), "");
    monitor.ask("cont");
    wait_for("a letter", || (!machine.console(1).is_empty()).then_some(()));
    monitor.ask("system_reset");
    assert!(running.ended(PATIENCE).is_some_and(|s| s.success()));
    assert!(machine.console(1).ends_with(&format!("{LETTERS}.")), "{}", machine.console(1));
}

/// Starts the machine from a file; what it says before it ends by itself.
fn refused(machine: &Machine, more: &[&str]) -> String {
    let mut running = machine.start(9, "interp", more);
    let status = running.ended(PATIENCE).expect("it ends by itself");
    let said = lines(running.0.stderr.take().unwrap()).join("\n");
    assert_eq!(status.code(), Some(1), "{said}");
    assert_eq!(machine.console(9), "", "nothing of the guest has run");
    said
}

#[test]
fn what_is_not_this_machine_is_refused_before_anything_runs() {
    let machine = Machine::new("saved", &Guest::new(&spells));
    let saved = machine.save("c", &["-device", "pvpanic"]);
    let fewer = refused(&machine, &["-restore", &saved]);
    assert!(fewer.contains("has a device 'pvpanic@505' (pvpanic), which this one has not"), "{fewer}");
    let saved = machine.save("c", &[]);
    let uri = format!("file:{saved}");
    let whole = fs::read(&saved).unwrap();
    let said = |more: &[&str]| {
        let said = refused(&machine, &[&["-incoming", &uri], more].concat());
        assert!(said.contains(&format!("-incoming {saved}: ")), "{said}");
        said
    };
    assert!(said(&["-m", "32"]).contains("it has -m 16M; this machine has -m 32M"));
    assert!(said(&["-smp", "2"]).contains("it has -smp 1; this machine has -smp 2"));
    assert!(said(&["-cpu", "max"]).contains("this machine has -cpu max"));
    let board = said(&["-machine", "hpet=off"]);
    assert!(
        board.contains("it has -machine pc,hpet=on,") && board.contains(" -machine pc,hpet=off,"),
        "{board}"
    );
    let more = said(&["-device", "isa-debug-exit"]);
    assert!(more.contains("'debug-exit@501' (isa-debug-exit), of which nothing was saved"), "{more}");

    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        fs::write(&saved, bytes).unwrap();
        said(&[])
    };
    assert!(with(&|b| *b = b"#!/bin/sh\n".to_vec()).contains("it is not a machine that Mynah has saved"));
    assert!(with(&|b| b.clear()).contains("it is not a machine that Mynah has saved"));
    assert!(with(&|b| b[8] = 4).contains("of version 4 of saved machines; this program knows version 3"));
    for len in [9, 63, 64, 1000, whole.len() - 1] {
        let cut = with(&|b| b.truncate(len));
        assert!(cut.contains("it is cut short"), "{len} bytes: {cut}");
    }
    // Any byte of what is not guest memory, and one that is.
    let head = u64::from_le_bytes(whole[16..24].try_into().unwrap()) as usize;
    for at in [12, 17, 24, 40, 64, 64 + head / 2, 63 + head] {
        let damaged = with(&|b| b[at] ^= 1);
        assert!(
            damaged.contains("it is damaged") || damaged.contains("it is cut short"),
            "byte {at}: {damaged}"
        );
    }
    let ram = u64::from_le_bytes(whole[24..32].try_into().unwrap()) as usize;
    let code = ram + (1 << 20) + 0x1_0000;
    assert!(with(&|b| b[code] ^= 1).contains("it is damaged: RAM at 0x100000 has another checksum"));
    fs::remove_file(&saved).unwrap();
    assert!(said(&[]).contains("No such file or directory"));
}

/// What Linux has said that is to be the same each time.
fn key_lines(console: &str) -> Vec<&str> {
    common::key_lines(console, &["KEY "])
}

#[test]
fn a_machine_is_reset_fifty_times_in_a_row() {
    let machine = Machine::new("saved", &Guest { vcpus: 2, others: &spin, ..Guest::new(&spells) });
    for accel in ["jit,cache=off", "interp"] {
        let mut running = machine.start(0, accel, &[]);
        let mut monitor = machine.monitor(0);
        let mut random = Rng::new(50, 0);
        for n in 0..50 {
            // Some before the last one is carried out, some in the middle of the guest, some when it has begun anew.
            std::thread::sleep(Duration::from_micros(random.below(40_000)));
            let begun = machine.console(0).matches('a').count();
            assert_eq!(monitor.ask("system_reset"), "");
            if n % 7 == 0 {
                wait_for("fresh start", || (machine.console(0).matches('a').count() > begun).then_some(()));
            }
        }
        assert!(running.ended(PATIENCE).is_some_and(|s| s.success()), "{accel}");
        let said = machine.console(0);
        assert!(said.ends_with(&format!("{LETTERS}.")), "{accel}: {said}");
    }
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn linux_does_not_notice_that_it_was_stopped() {
    const STOPS: u32 = 100;
    let (Some(kernel), Some(initrd)) =
        (guest("cloud"), ramdisk("stopped", "busybox", &format!("{TROUBLE}{UPTIME}")))
    else {
        return;
    };
    let files = [kernel.to_str().unwrap(), initrd.to_str().unwrap()];
    for vcpus in ["1", "4"] {
        let folder = Folder::new("stopped");
        let start = Instant::now();
        let mut running = linux(&folder, &files, "it", "jit,cache=off", vcpus, &[]);
        let mut monitor = Client::at(&folder.path("monitor-it"));
        let (mut random, mut stopped) = (Rng::new(7, 0), Duration::ZERO);
        for _ in 0..STOPS {
            std::thread::sleep(Duration::from_micros(random.below(40_000)));
            assert_eq!(monitor.ask("stop"), "");
            let (since, registers) = (Instant::now(), monitor.ask("info registers -a"));
            std::thread::sleep(Duration::from_micros(20_000 + random.below(20_000)));
            assert_eq!(monitor.ask("info registers -a"), registers, "it goes on");
            stopped += since.elapsed();
            assert_eq!(monitor.ask("cont"), "");
        }
        assert!(running.ended(LONG).is_some_and(|s| s.success()));
        let (took, console) = (start.elapsed(), fs::read_to_string(folder.path("com-it")).unwrap());
        assert!(key_lines(&console).contains(&"KEY TROUBLE 0"), "{console}");
        let uptime =
            key_lines(&console).iter().find_map(|l| l.strip_prefix("KEY UPTIME ")?.parse::<f64>().ok());
        // Some of it was the machine's building and its end.
        let (uptime, most) = (uptime.expect(&console), (took - stopped).as_secs_f64());
        assert!(uptime <= most + 0.1, "{uptime} s of guest time in {most} s in which it was not stopped");
        assert!(stopped > Duration::from_secs(2) && uptime > 0.5, "{stopped:?}, {uptime}");
    }
    fs::remove_file(&initrd).unwrap();
}

/// Works for some seconds, then tells how long it has been up.
const UPTIME: &str = r#"
n=0; while [ $n -lt 100 ]; do n=$((n + 1)); sha256sum /bin/busybox > /dev/null; usleep 20000; done
trouble
echo "KEY UPTIME $(cut -d' ' -f1 /proc/uptime)"
poweroff -f
"#;

#[test]
#[ignore = "boots a kernel from Debian's packages again and again"]
fn linux_goes_on_from_any_moment_of_its_boot() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let (saves, seed) = (number("MYNAH_SAVES").unwrap_or(12), number("MYNAH_SEED").unwrap_or(1));
    let (Some(kernel), Some(initrd)) =
        (guest("cloud"), ramdisk("saved", "busybox", &format!("{TROUBLE}{WORK}")))
    else {
        return;
    };
    let files = [kernel.to_str().unwrap(), initrd.to_str().unwrap()];
    let engines = std::env::var("MYNAH_ACCEL").unwrap_or("jit,cache=off interp".into());
    let engines: Vec<&str> = engines.split_whitespace().collect();
    let folder = Folder::new("saved");
    let text = |name: &str| fs::read_to_string(folder.path(name)).unwrap_or_default();
    // What is to be said, and how long it takes, by engine and number of vCPUs.
    let mut whole = Vec::new();
    for vcpus in ["1", "2", "4"] {
        for &accel in &engines {
            let start = Instant::now();
            let mut running = linux(&folder, &files, "whole", accel, vcpus, &[]);
            assert!(running.ended(LONG).is_some_and(|s| s.success()), "{}", text("com-whole"));
            whole.push((vcpus, accel, start.elapsed()));
        }
    }
    let expected = text("com-whole");
    assert!(key_lines(&expected).ends_with(&["KEY TROUBLE 0", "KEY DONE"]), "{expected}");
    let mut random = Rng::new(seed, 0);
    for n in 0..saves {
        let (vcpus, first, long) = whole[n as usize % whole.len()];
        let second = engines[random.below(engines.len() as u64) as usize];
        let moment = Duration::from_micros(random.below(long.as_micros() as u64));
        let what = format!("MYNAH_SEED={seed}, save {n}: -smp {vcpus}, {first} to {second}, at {moment:?}");
        let saved = format!("file:{}", folder.path("saved"));
        let mut running = linux(&folder, &files, "first", first, vcpus, &[]);
        let mut monitor = Client::at(&folder.path("monitor-first"));
        if running.ended(moment).is_some() {
            eprintln!("{what}: it was faster");
            continue;
        }
        assert_eq!(monitor.ask(&format!("migrate {saved}")), "", "{what}");
        monitor.send("quit");
        assert!(running.ended(LONG).is_some_and(|s| s.success()), "{what}");
        let mut running = linux(&folder, &files, "second", second, vcpus, &["-incoming", &saved]);
        let ended = running.ended(LONG);
        let console = text("com-first") + &text("com-second");
        assert!(ended.is_some_and(|s| s.success()), "{what}: {ended:?}\n{console}");
        assert_eq!(key_lines(&console), key_lines(&expected), "{what}:\n{console}");
        eprintln!("{what}: at {} of {} bytes of its console", text("com-first").len(), console.len());
    }
    fs::remove_file(&initrd).unwrap();
}
