//! The same image in QEMU (TCG, or the host's KVM), where it is installed.
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// After this a guest counts as lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// The same for one that runs by KVM, which is to be slow only.
const PATIENCE_BY_KVM: Duration = Duration::from_secs(60);

/// A longer log is that of a lost guest, too.
const MAX_LOG: u64 = 256 << 10;

/// Runs an image on a CPU model; its log, and a last line if it did not end by isa-debug-exit. `None` if there is no
/// QEMU, or `MYNAH_NO_QEMU` is set.
pub fn run(name: &str, model: &str, image: &[u8]) -> Option<String> {
    run_by("tcg", name, model, image)
}

/// The same by another of its engines.
pub fn run_by(accel: &str, name: &str, model: &str, image: &[u8]) -> Option<String> {
    if std::env::var_os("MYNAH_NO_QEMU").is_some() {
        return None;
    }
    let dir = std::env::temp_dir().join(format!("mynah-machinery-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory for the guest");
    let log = run_in(accel, &dir, model, image);
    std::fs::remove_dir_all(&dir).expect("removing the guest's directory");
    log
}

/// Why [`run`] gave nothing.
pub fn why_not() -> &'static str {
    if std::env::var_os("MYNAH_NO_QEMU").is_some() { "MYNAH_NO_QEMU is set" } else { "QEMU not installed" }
}

fn run_in(accel: &str, dir: &std::path::Path, model: &str, image: &[u8]) -> Option<String> {
    let kernel: PathBuf = dir.join("image");
    let log = dir.join("log");
    std::fs::write(&kernel, image).expect("writing the image");
    // KVM of some hosts has the MSR behind this feature in its list, and refuses it.
    let model = if accel == "kvm" { format!("{model},-arch-capabilities") } else { model.to_owned() };
    let child = Command::new("qemu-system-x86_64")
        .args(["-accel", accel, "-cpu", &model, "-m", "32", "-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .arg("-debugcon")
        .arg(format!("file:{}", log.display()))
        .arg("-kernel")
        .arg(&kernel)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match child {
        Ok(c) => c,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
        Err(e) => panic!("qemu-system-x86_64: {e}"),
    };
    let start = Instant::now();
    let patience = if accel == "kvm" { PATIENCE_BY_KVM } else { PATIENCE };
    let end = loop {
        match child.try_wait().expect("waiting for QEMU") {
            Some(status) if status.code() == Some(1) => break String::new(),
            Some(status) if status.code() == Some(0) => break "shutdown\n".to_owned(),
            Some(status) => break format!("QEMU ended with {status}\n"),
            None if start.elapsed() > patience || log.metadata().is_ok_and(|m| m.len() > MAX_LOG) => {
                child.kill().and_then(|()| child.wait()).expect("ending QEMU");
                break "lost\n".to_owned();
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let mut text = String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
    text += &end;
    Some(text)
}
