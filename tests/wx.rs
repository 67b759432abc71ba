//! Memory for compiled code in the process as users run it: at no address may it be both written and executed.
#![cfg(target_os = "linux")]
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A run of the built-in guest, with a home of its own.
struct Run {
    child: Child,
    home: std::path::PathBuf,
}

impl Run {
    fn start(name: &str, accel: &str) -> Self {
        let home = std::env::temp_dir().join(format!("mynah-wx-{}-{name}", std::process::id()));
        let child = Command::new(env!("CARGO_BIN_EXE_mynah"))
            .args(["demo", "--embedded", "--", "-accel", accel])
            .env("HOME", &home)
            .env_remove("XDG_CACHE_HOME")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("mynah starts");
        Self { child, home }
    }

    /// Rights of the mappings that the process has now.
    fn rights(&mut self) -> Vec<String> {
        assert!(self.child.try_wait().expect("a state").is_none(), "the guest has ended");
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.child.id())).unwrap_or_default();
        maps.lines().filter_map(|l| l.split(' ').nth(1)).map(str::to_owned).collect()
    }

    /// Looks at the mappings until there is one with these rights, and for a while longer; all rights seen.
    fn watch(&mut self, wanted: &str) -> Vec<String> {
        let (mut seen, end) = (Vec::new(), Instant::now() + Duration::from_secs(120));
        let mut left = 30;
        while left > 0 {
            assert!(Instant::now() < end, "there was no mapping {wanted}, but {seen:?}");
            for r in self.rights() {
                if !seen.contains(&r) {
                    seen.push(r);
                }
            }
            left -= u32::from(seen.iter().any(|r| r == wanted));
            std::thread::sleep(Duration::from_millis(20));
        }
        seen
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

#[test]
fn no_memory_can_be_written_and_executed() {
    let seen = Run::start("default", "jit").watch("r-xs");
    let both = |r: &String| r.contains('w') && r.contains('x');
    assert!(!seen.iter().any(both), "{seen:?}");
}

#[test]
fn unless_the_user_wants_it_so() {
    let seen = Run::start("off", "jit,split-wx=off").watch("rwxp");
    assert!(!seen.iter().any(|r| r == "r-xs"), "{seen:?}");
}
