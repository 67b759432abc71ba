//! Debian's own kernels, unmodified, boot to userspace on Mynah, work, and power off.
//!
//! They are fetched once through apt (see `tests/guests/manifest.toml`), and take a minute or so: `cargo test --release
//! --test boot -- --ignored`. A guest that cannot be fetched fails its test, unless MYNAH_GUESTS=cached says to pass
//! over what is not in the cache. MYNAH_OPTIONS has more options for each boot, `-smp 4`, say; MYNAH_ACCEL the engines,
//! `jit,check=on` in place of `interp jit`.
mod common;
#[cfg(unix)]
mod kit;
use common::{Boot, guest, ramdisk, run};
use std::time::Duration;

/// What every guest does: shows itself, does a little work that has one right answer, and powers off.
const WORK: &str = r#"
echo "UNAME $(uname -sm)"
echo "MODEL $(grep -m1 'model name' /proc/cpuinfo)"
echo "FLAGS $(grep -m1 -c 'fpu' /proc/cpuinfo)"
echo "CLOCKSOURCE $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
i=0; s=1
while [ $i -lt 2000 ]; do i=$((i + 1)); s=$(( (s * 31 + i) % 65521 )); done
echo "SUM $s"
echo "HASH $(head -c 100000 /bin/busybox | wc -c) $(printf 'mynah' | sha256sum | cut -c1-16)"
echo "TIMER $(awk '$1 == "LOC:" || /timer/ { n += $2 } END { print (n > 10) }' /proc/interrupts)"
t0=$(cut -d. -f1 /proc/uptime); sleep 2; t1=$(cut -d. -f1 /proc/uptime)
echo "SLEPT $(( t1 - t0 >= 2 && t1 - t0 <= 4 ))"
dmesg > /tmp/dmesg
echo "UNSTABLE $(grep -c -i -E 'unstable|clocksource.*(skew|wd)|soft lockup|BUG:|Oops|Call Trace|invalid opcode|unexpected' /tmp/dmesg)"
grep -i -E 'unstable|soft lockup|BUG:|Oops|Call Trace|ACPI.*(Error|Exception|Warning)|firmware bug' /tmp/dmesg
echo "DONE"
poweroff -f
"#;

/// Boots `kernel` with `busybox` and `script`.
fn boot(tag: &str, accel: &str, kernel: &str, busybox: &str, script: &str) -> Option<Boot> {
    boot_with(tag, accel, &[], kernel, busybox, script)
}

/// The same, with more options.
fn boot_with(
    tag: &str,
    accel: &str,
    options: &[&str],
    kernel: &str,
    busybox: &str,
    script: &str,
) -> Option<Boot> {
    let (kernel, initrd) = (guest(kernel)?, ramdisk(tag, busybox, script)?);
    let mut args: Vec<&str> = "-cpu max -m 512 -nographic -no-reboot".split(' ').collect();
    args.extend(options);
    args.extend(["-accel", accel, "-append", "console=ttyS0 panic=-1"]);
    args.extend(["-kernel", kernel.to_str().unwrap(), "-initrd", initrd.to_str().unwrap()]);
    let boot = run(&args, Duration::from_secs(300), |_| None);
    std::fs::remove_file(&initrd).unwrap();
    assert!(!boot.console.contains("Kernel panic"), "{}", boot.console);
    assert_eq!(boot.code, Some(0), "the exit code of a power-off; the console said:\n{}", boot.console);
    Some(boot)
}

/// What `-accel` is given: an engine after the other.
fn engines() -> Vec<String> {
    let engines = std::env::var("MYNAH_ACCEL").unwrap_or("interp jit".into());
    engines.split_whitespace().map(Into::into).collect()
}

fn boots(tag: &str, kernel: &str, busybox: &str, machine: &str) {
    for accel in engines() {
        boots_on(&format!("{tag}-{accel}"), &accel, kernel, busybox, machine);
    }
}

fn boots_on(tag: &str, accel: &str, kernel: &str, busybox: &str, machine: &str) {
    let Some(boot) = boot(tag, accel, kernel, busybox, WORK) else { return };
    has_worked(&boot, machine);
}

/// The guest has done all of `WORK`, with the right results.
fn has_worked(boot: &Boot, machine: &str) {
    let has = |line: &str| assert!(boot.console.contains(line), "no '{line}' in:\n{}", boot.console);
    has(&format!("UNAME Linux {machine}"));
    has("FLAGS 1");
    // What bash and coreutils say of the same loops and bytes.
    has("SUM 36428");
    has("HASH 100000 33c1cc28e5977267");
    has("TIMER 1");
    has("SLEPT 1");
    has("UNSTABLE 0");
    has("DONE");
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn the_cloud_kernel_boots() {
    boots("cloud", "cloud", "busybox", "x86_64");
}

/// The smallest board, with and without what there is of a PC on it.
#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn the_cloud_kernel_boots_without_pci() {
    for (n, machine) in ["microvm", "microvm,pic=off,pit=off,rtc=off"].into_iter().enumerate() {
        let (tag, options) = (format!("microvm-{n}"), ["-M", machine]);
        let Some(boot) = boot_with(&tag, "jit", &options, "cloud", "busybox", WORK) else { return };
        has_worked(&boot, "x86_64");
        assert!(boot.console.contains("tsc: Detected 1000.000 MHz"), "{}", boot.console);
    }
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn the_generic_kernel_boots() {
    boots("generic", "generic", "busybox", "x86_64");
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn the_realtime_kernel_boots() {
    boots("rt", "rt", "busybox", "x86_64");
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn the_32_bit_kernel_with_pae_boots() {
    boots("686-pae", "686-pae", "busybox-i386", "i686");
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn the_32_bit_kernel_without_pae_boots() {
    boots("686", "686", "busybox-i386", "i686");
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn the_elf_kernel_boots_by_pvh() {
    boots("elf", "cloud-elf", "busybox", "x86_64");
}

/// Boots through the kernel's own setup code, which asks the BIOS for memory, video mode and disks.
fn boots_in_real_mode(tag: &str, options: &[&str], kernel: &str, busybox: &str, machine: &str) {
    for accel in engines() {
        let tag = format!("{tag}-{accel}");
        let Some(boot) = boot_with(&tag, &accel, options, kernel, busybox, WORK) else { return };
        assert!(boot.console.contains("Probing EDD (edd=off to disable)... o"), "{}", boot.console);
        assert!(boot.console.contains("BIOS-provided physical RAM map"), "{}", boot.console);
        has_worked(&boot, machine);
    }
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn the_cloud_kernel_boots_through_its_16_bit_entry() {
    boots_in_real_mode("real", &["-machine", "kernel-entry=16"], "cloud", "busybox", "x86_64");
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn the_32_bit_kernel_boots_through_its_16_bit_entry() {
    boots_in_real_mode("real-686", &["-machine", "kernel-entry=16"], "686", "busybox-i386", "i686");
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn the_cloud_kernel_boots_under_seabios() {
    if !std::path::Path::new("/usr/share/seabios/bios-256k.bin").exists() {
        eprintln!("SKIPPED: SeaBIOS is not installed (Debian's package 'seabios')");
        return;
    }
    boots_in_real_mode("seabios", &["-bios", "bios-256k.bin"], "cloud", "busybox", "x86_64");
}

/// Seconds of host and of guest time between the marks `from` and `to` that a guest printed with its uptime.
fn elapsed(boot: &Boot, from: &str, to: &str) -> (f64, f64) {
    let find = |mark: &str| {
        let (at, line) = boot.lines.iter().find(|(_, l)| l.starts_with(mark)).expect("the mark was printed");
        (*at, line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap())
    };
    let ((h0, g0), (h1, g1)) = (find(from), find(to));
    ((h1 - h0).as_secs_f64(), g1 - g0)
}

#[test]
#[ignore = "boots a kernel from Debian's packages, and takes a minute"]
fn guest_time_keeps_step_with_host_time_idle_and_busy() {
    let script = "t() { echo \"$1 $(cat /proc/uptime)\"; }\n\
        t IDLE0; sleep 30; t IDLE1\n\
        t BUSY0; e=$(( $(cut -d. -f1 /proc/uptime) + 30 ))\n\
        while [ $(cut -d. -f1 /proc/uptime) -lt $e ]; do i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; done\n\
        t BUSY1; poweroff -f\n";
    let Some(boot) = boot("time", "jit", "cloud", "busybox", script) else { return };
    for (from, to) in [("IDLE0", "IDLE1"), ("BUSY0", "BUSY1")] {
        let (host, guest) = elapsed(&boot, from, to);
        assert!(host > 29.0, "{from}: {host} s");
        assert!(
            (host - guest).abs() < 0.01 * host,
            "{from}: {host} s on the host were {guest} s in the guest"
        );
    }
}

/// Boots the cloud kernel with compiled code kept in `dir`, and says how many regions were taken from there, and how
/// many were compiled.
fn boot_with_cache(tag: &str, dir: &std::path::Path) -> Option<(u64, u64)> {
    let accel = format!("jit,cache={}", dir.display());
    let (kernel, initrd) =
        (guest("cloud")?, ramdisk(tag, "busybox", &WORK.replace("poweroff", "sleep 2; poweroff"))?);
    let mut args: Vec<&str> = "-cpu max -m 512 -nographic -no-reboot".split(' ').collect();
    // Several at once keep each other from the CPUs; the kernel's count of timer interrupts in 40 ms is about that
    // then.
    args.extend(["-accel", &accel, "-append", "console=ttyS0 panic=-1 no_timer_check"]);
    args.extend(["-kernel", kernel.to_str().unwrap(), "-initrd", initrd.to_str().unwrap()]);
    // The monitor is on the same line.
    let ask = |line: &str| line.starts_with("DONE").then_some("\x01cinfo jit\n\x01c");
    let boot = run(&args, Duration::from_secs(300), ask);
    std::fs::remove_file(&initrd).unwrap();
    assert_eq!(boot.code, Some(0), "{}", boot.console);
    has_worked(&boot, "x86_64");
    let number = |before: &str, after: &str| -> u64 {
        let line = boot.lines.iter().map(|l| &l.1).find(|l| l.contains(before) && l.contains(after));
        let line = line.unwrap_or_else(|| panic!("no '{before}..{after}' in:\n{}", boot.console));
        let end = line.find(after).unwrap();
        let digits = line[..end].rsplit(|c: char| !c.is_ascii_digit()).next().unwrap();
        digits.parse().unwrap()
    };
    Some((number("cache: ", " hits"), number("Cranelift: ", " regions compiled")))
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn a_second_boot_takes_compiled_code_from_disk_and_two_at_once_do_too() {
    let dir =
        std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("boot-cache-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let Some((hits, compiled)) = boot_with_cache("cache1", &dir) else { return };
    assert!(hits == 0 && compiled > 5, "{hits} {compiled}");
    let Some((hits, _)) = boot_with_cache("cache2", &dir) else { return };
    assert!(hits > compiled / 2, "{hits} of {compiled}");
    std::thread::scope(|s| {
        let both = ["cache3", "cache4"].map(|tag| s.spawn(|| boot_with_cache(tag, &dir).unwrap()));
        for b in both {
            let (now, _) = b.join().unwrap();
            assert!(now > hits / 2, "{now} of {hits}");
        }
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

/// A host that runs the process 4 ms of 200: all ticks that are due come before the time at which they are, or the
/// kernel would find its timer broken and panic.
#[cfg(unix)]
#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn the_kernel_finds_its_timer_working_on_a_host_that_stalls() {
    let Some(kernel) = guest("cloud") else { return };
    let folder = kit::Folder::new("stalled");
    let said = folder.path("serial");
    let mut args: Vec<&str> = "run -m 256 -display none -no-reboot -append".split(' ').collect();
    let serial = format!("file:{said}");
    args.extend(["console=ttyS0 earlyprintk=ttyS0 panic=-1", "-serial", &serial]);
    args.extend(["-kernel", kernel.to_str().unwrap()]);
    let running = kit::Running::start(&mut kit::command(&args));
    kit::wait_for_text(&said, "Memory:");
    kit::wait_for("timer that works", || {
        let text = String::from_utf8_lossy(&std::fs::read(&said).unwrap()).into_owned();
        assert!(!text.contains("timer doesn't work"), "{text}");
        for (signal, ms) in [(libc::SIGSTOP, 200), (libc::SIGCONT, 4)] {
            running.signal(signal);
            std::thread::sleep(Duration::from_millis(ms));
        }
        text.contains("Calibrating delay").then_some(())
    });
}
