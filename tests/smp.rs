//! Debian's kernel on several vCPUs: boots, threads that count, a reset.
//!
//! As in `boot.rs`: `cargo test --release --test smp -- --ignored`. MYNAH_REPEAT=10 repeats each boot so many times.
mod common;
use common::{Boot, guest, ramdisk, run};
use mynah_guests::cpio::Archive;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(300);

fn repeats() -> u32 {
    std::env::var("MYNAH_REPEAT").ok().and_then(|v| v.parse().ok()).unwrap_or(1)
}

/// Boots Debian's cloud kernel on `vcpus` vCPUs.
fn boot(
    accel: &str,
    vcpus: &str,
    initrd: &Path,
    more: &[&str],
    answer: impl FnMut(&str) -> Option<&'static str>,
) -> Boot {
    let kernel = guest("cloud").unwrap();
    let mut args: Vec<&str> = "-cpu max -m 512 -nographic".split(' ').collect();
    args.extend(["-accel", accel, "-smp", vcpus, "-append", "console=ttyS0 panic=-1"]);
    args.extend(["-kernel", kernel.to_str().unwrap(), "-initrd", initrd.to_str().unwrap()]);
    args.extend(more);
    let boot = run(&args, LIMIT, answer);
    assert!(!boot.console.contains("Kernel panic"), "{}", boot.console);
    assert_eq!(boot.code, Some(0), "the exit code of a power-off; the console said:\n{}", boot.console);
    boot
}

/// Whether the guests are there, or may be passed over.
fn ready() -> bool {
    guest("cloud").is_some() && guest("busybox").is_some()
}

fn has(boot: &Boot, line: &str) {
    assert!(boot.console.contains(line), "no '{line}' in:\n{}", boot.console);
}

/// Shows how many processors there are, keeps all of them busy, and looks for complaints of the kernel's.
const WORK: &str = r#"
echo "NPROC $(nproc)"
echo "PRESENT $(cat /sys/devices/system/cpu/present)"
echo "IDS $(grep ^apicid /proc/cpuinfo | wc -l) $(grep ^apicid /proc/cpuinfo | sort -u | wc -l)"
n=0
while [ $n -lt 6 ]; do
    n=$((n + 1))
    ( i=0; s=1; while [ $i -lt 2000 ]; do i=$((i + 1)); s=$(( (s * 31 + i) % 65521 )); done; echo "SUM $s" ) &
done
wait
echo "LOCAL $(awk '$1 == "LOC:" { for (i = 2; $i ~ /^[0-9]+$/; i++) if ($i > 10) n++; print n }' /proc/interrupts)"
dmesg > /tmp/dmesg
echo "COMPLAINTS $(grep -c -i -E 'unstable|lockup|stall|WARNING|BUG:|Oops|Call Trace|inconsistent' /tmp/dmesg)"
grep -i -E 'unstable|lockup|stall|WARNING|BUG:|Oops|Call Trace|inconsistent' /tmp/dmesg
echo "DONE"
poweroff -f
"#;

fn boots(accel: &str, vcpus: u32) {
    if !ready() {
        return;
    }
    let initrd = ramdisk(&format!("smp-{accel}-{vcpus}"), "busybox", WORK).unwrap();
    for _ in 0..repeats() {
        let boot = boot(accel, &vcpus.to_string(), &initrd, &["-no-reboot"], |_| None);
        has(&boot, &format!("NPROC {vcpus}"));
        has(&boot, &format!("PRESENT 0-{}", vcpus - 1));
        has(&boot, &format!("IDS {vcpus} {vcpus}"));
        assert_eq!(boot.console.matches("SUM 36428").count(), 6, "{}", boot.console);
        has(&boot, &format!("LOCAL {vcpus}"));
        has(&boot, "COMPLAINTS 0");
        has(&boot, "DONE");
    }
    std::fs::remove_file(&initrd).unwrap();
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn the_interpreter_boots_on_two_vcpus() {
    boots("interp", 2);
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn the_interpreter_boots_on_four_vcpus() {
    boots("interp", 4);
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn the_translator_boots_on_two_vcpus() {
    boots("jit", 2);
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn the_translator_boots_on_four_vcpus() {
    boots("jit", 4);
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn sockets_cores_and_threads_are_what_the_guest_sees() {
    if !ready() {
        return;
    }
    // CPU, package, core and thread siblings; four threads of two cores, and three packages of a core each.
    let script = "cd /sys/devices/system/cpu; for c in cpu[0-9]*; do t=$c/topology; \
        echo \"AT $c $(cat $t/physical_package_id) $(cat $t/core_id) $(cat $t/thread_siblings_list)\"; done\n\
        cat /proc/cpuinfo | grep -E 'siblings|cpu cores' | sort -u | tr -d '\\t' | sed 's/^/SHAPE /'\npoweroff -f\n";
    let initrd = ramdisk("smp-shape", "busybox", script).unwrap();
    // AMD's processors before TOPOEXT have no way to tell of threads: Intel's do it by leaf 0Bh.
    let two = boot(
        "jit",
        "4,sockets=1,cores=2,threads=2",
        &initrd,
        &["-cpu", "max,vendor=GenuineIntel", "-no-reboot"],
        |_| None,
    );
    for line in ["AT cpu0 0 0 0-1", "AT cpu1 0 0 0-1", "AT cpu2 0 1 2-3", "AT cpu3 0 1 2-3"] {
        has(&two, line);
    }
    has(&two, "SHAPE siblings: 4");
    has(&two, "SHAPE cpu cores: 2");
    let three = boot("jit", "3,sockets=3", &initrd, &["-no-reboot"], |_| None);
    for line in ["AT cpu0 0 0 0", "AT cpu1 1 0 1", "AT cpu2 2 0 2"] {
        has(&three, line);
    }
    std::fs::remove_file(&initrd).unwrap();
}

#[test]
#[ignore = "boots a kernel from Debian's packages, often"]
fn a_reset_restarts_all_vcpus() {
    if !ready() {
        return;
    }
    let script =
        "echo \"READY $(nproc)\"; read what; case $what in again) reboot -f;; *) poweroff -f;; esac\n";
    let initrd = ramdisk("smp-reset", "busybox", script).unwrap();
    for (accel, vcpus) in [("jit", "2"), ("interp", "2"), ("jit", "4")] {
        let mut times = 0;
        let boot = boot(accel, vcpus, &initrd, &[], |line| {
            line.contains("READY ").then(|| {
                times += 1;
                if times < 4 { "again\n" } else { "off\n" }
            })
        });
        assert_eq!(boot.console.matches(&format!("READY {vcpus}")).count(), 4, "{}", boot.console);
    }
    std::fs::remove_file(&initrd).unwrap();
}

/// A static program of threads.c, made with the host's C compiler.
fn threads() -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/threads.c");
    let program = std::env::temp_dir().join(format!("mynah-threads-{}", std::process::id()));
    let status = Command::new("cc")
        .args(["-O2", "-static", "-pthread", "-o"])
        .arg(&program)
        .arg(&source)
        .status()
        .expect("a C compiler (cc)");
    assert!(status.success(), "cc cannot make a static program of threads.c");
    let bytes = std::fs::read(&program).unwrap();
    std::fs::remove_file(&program).unwrap();
    bytes
}

#[test]
#[ignore = "boots a kernel from Debian's packages, and wants a C compiler"]
fn threads_of_a_program_count_exactly() {
    if !ready() {
        return;
    }
    let script = "for i in 1 2 3; do /bin/threads; done; poweroff -f\n";
    let initrd: PathBuf = ramdisk("smp-threads", "busybox", script).unwrap();
    // The kernel unpacks one archive behind the other.
    let mut bytes = std::fs::read(&initrd).unwrap();
    let mut archive = Archive::new();
    archive.file("bin/threads", 0o755, &threads());
    bytes.extend(archive.finish());
    std::fs::write(&initrd, bytes).unwrap();
    for (accel, vcpus) in [("interp", "2"), ("jit", "2"), ("interp", "4"), ("jit", "4")] {
        let boot = boot(accel, vcpus, &initrd, &["-no-reboot"], |_| None);
        let right = "THREADS mutex=80000 add=80000 swap=240000 spin=80000 turns=8000 order=0 barrier=0";
        assert_eq!(boot.console.matches(right).count(), 3, "{accel} -smp {vcpus}:\n{}", boot.console);
    }
    std::fs::remove_file(&initrd).unwrap();
}
