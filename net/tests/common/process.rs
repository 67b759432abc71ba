//! Tests that want a process of their own: for its limits, its descriptors, its memory, its network.
use std::process::Command;

/// Has `body` run in a process of its own, which is this test once more, started by `wrap` (a program and arguments that
/// ours are put behind): what it has written. `None` in that process.
#[track_caller]
pub fn alone(name: &str, wrap: &[&str], extra: &str, body: impl FnOnce(&str)) -> Option<String> {
    const NAME: &str = "MYNAH_TEST_ALONE";
    if let Ok(extra) = std::env::var(NAME) {
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
        body(&extra);
        return None;
    }
    let me = std::env::current_exe().unwrap();
    let mut command = match wrap.split_first() {
        Some((program, rest)) => {
            let mut c = Command::new(program);
            c.args(rest).arg(me);
            c
        }
        None => Command::new(me),
    };
    let out = command
        .args([name, "--exact", "--nocapture", "--include-ignored"])
        .env(NAME, extra)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    assert!(out.status.success() && said.contains("1 passed"), "{said}");
    Some(said)
}

/// Descriptors that this process has open.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Bytes of memory that this process has.
pub fn memory() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Sets how many descriptors this process may have; as many as it is allowed to, if that is less.
pub fn limit_descriptors(most: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call fills in the structure that it is given.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = most.min(limit.rlim_max);
    // SAFETY: the call reads the structure that it is given.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    limit.rlim_cur
}
