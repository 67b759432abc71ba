//! Booting guests with the program itself, for the tests beside this folder.
use mynah_guests::{MOUNTS, Store, initramfs};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What a boot left behind.
#[allow(dead_code, reason = "not every test boots here")]
pub struct Boot {
    /// All lines.
    pub console: String,
    /// When each line was complete.
    #[allow(dead_code, reason = "not every test wants times")]
    pub lines: Vec<(Instant, String)>,
    /// The exit code.
    pub code: Option<i32>,
}

/// The file of a guest; `None` if only what is cached is wanted and it is not.
#[allow(dead_code, reason = "not every test boots Debian's")]
pub fn guest(name: &str) -> Option<PathBuf> {
    let store = Store::open().unwrap();
    if std::env::var("MYNAH_GUESTS").is_ok_and(|v| v == "cached") && store.cached(name).is_none() {
        eprintln!("SKIPPED: the guest '{name}' is not in the cache ({})", store.folder().display());
        return None;
    }
    Some(store.fetch(name, &mut |line| eprintln!("{line}")).unwrap())
}

/// The script of a guest with network cards begins so: `word` says what the kernel's command line has behind a name,
/// and the modules that it names are loaded.
#[allow(dead_code, reason = "not every test has a network")]
pub const MODULES: &str = r#"
word() { grep -o "$1=[^ ]*" /proc/cmdline | cut -d= -f2; }
cd /modules
for m in $(word modules | tr , ' '); do insmod $m.ko || echo "MISSING $m"; done
"#;

/// With two cards it goes on so, in the networks 10.0.2.0 and 10.0.3.0.
#[allow(dead_code, reason = "not every test has a network")]
pub const TWO_CARDS: &str = r#"
i=0; while [ ! -e /sys/class/net/eth1 ] && [ $i -lt 60 ]; do sleep 1; i=$((i + 1)); done
for n in 0 1; do
    # Which is which is told by the address.
    net=$((2 + $(cut -c17 /sys/class/net/eth$n/address)))
    ip addr add 10.0.$net.15/24 dev eth$n
    ip link set eth$n up
done
"#;

/// An initial RAM disk with busybox and a script, in a file that outlives the test's use of it.
#[allow(dead_code, reason = "not every test boots Debian's")]
pub fn ramdisk(tag: &str, busybox: &str, script: &str) -> Option<PathBuf> {
    let busybox = std::fs::read(guest(busybox)?).unwrap();
    let path = std::env::temp_dir().join(format!("mynah-boot-{}-{tag}.cpio", std::process::id()));
    std::fs::write(&path, initramfs(&busybox, &format!("{MOUNTS}{script}"))).unwrap();
    Some(path)
}

/// What a Linux guest's script says of itself: the lines with one of `keys`, without the time before it.
#[allow(dead_code, reason = "not every test boots Debian's")]
pub fn key_lines<'a>(console: &'a str, keys: &[&str]) -> Vec<&'a str> {
    let of = |line: &'a str| {
        let at = keys.iter().filter_map(|key| line.find(key)).min()?;
        Some(line[at..].trim_end())
    };
    console.lines().filter_map(of).collect()
}

/// Runs Mynah with `args`; kills it (and fails) if it does not end in time. `answer` says what to type when a line has
/// come.
#[allow(dead_code, reason = "not every test boots here")]
pub fn run(args: &[&str], limit: Duration, answer: impl FnMut(&str) -> Option<&'static str>) -> Boot {
    let mut mynah = Command::new(env!("CARGO_BIN_EXE_mynah"));
    mynah.arg("run");
    // What is tested is Mynah's own engine, unless it says otherwise.
    mynah.env("MYNAH_ACCEL", std::env::var_os("MYNAH_ACCEL").unwrap_or("jit".into()));
    // As QEMU below.
    if !args.iter().any(|a| matches!(*a, "-nic" | "-netdev" | "-net")) {
        mynah.args(["-nic", "none"]);
    }
    mynah.args(args);
    mynah.args(std::env::var("MYNAH_OPTIONS").iter().flat_map(|options| options.split_whitespace()));
    run_program(&mut mynah, limit, answer)
}

/// The same with QEMU's translator. Neither has a network card that nobody asks for.
#[allow(dead_code, reason = "not every test has a second opinion")]
pub fn run_qemu(args: &[&str], limit: Duration, answer: impl FnMut(&str) -> Option<&'static str>) -> Boot {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg"]);
    if !args.iter().any(|a| matches!(*a, "-nic" | "-netdev" | "-net")) {
        qemu.args(["-nic", "none"]);
    }
    qemu.args(args);
    run_program(&mut qemu, limit, answer)
}

/// Whether there is a QEMU to run.
#[allow(dead_code, reason = "not every test has a second opinion")]
pub fn has_qemu() -> bool {
    let found = Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("SKIPPED in QEMU: qemu-system-x86_64 is not installed");
    }
    found
}

fn run_program(
    program: &mut Command,
    limit: Duration,
    mut answer: impl FnMut(&str) -> Option<&'static str>,
) -> Boot {
    let mut child = program
        // Nothing of the user's own is taken or left behind: compiled code is kept where a test says so.
        .env_remove("HOME")
        .env_remove("XDG_CACHE_HOME")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let out = child.stdout.take().unwrap();
    let mut keys = child.stdin.take().unwrap();
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).replace('\r', "");
            let _ = send.send((Instant::now(), line));
        }
    });
    let start = Instant::now();
    let mut lines: Vec<(Instant, String)> = Vec::new();
    let text =
        |lines: &[(Instant, String)]| lines.iter().map(|(_, l)| l.as_str()).collect::<Vec<_>>().join("\n");
    let code = loop {
        for line in receive.try_iter() {
            if let Some(text) = answer(&line.1) {
                // Who has ended reads no more.
                let _ = keys.write_all(text.as_bytes()).and_then(|()| keys.flush());
            }
            lines.push(line);
        }
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if start.elapsed() > limit {
            child.kill().unwrap();
            let _ = child.wait();
            panic!("no end after {limit:?}; the console said:\n{}", text(&lines));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    // The reader ends with the pipe, which the child's end has closed.
    lines.extend(receive.iter());
    Boot { console: text(&lines), lines, code }
}
