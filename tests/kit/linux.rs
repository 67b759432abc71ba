//! Debian's kernel at work that has one right answer, while its machine is saved, paused, or handed to another engine.
use super::{Folder, Running, command};
use std::time::Duration;

/// A script's function that says what the kernel complains of, and how often.
pub const TROUBLE: &str = r#"
trouble() {
    dmesg | grep -i -E 'BUG:|Oops|Call Trace|lockup|stall|unstable|invalid opcode|unexpected|backwards' > /tmp/trouble
    cat /tmp/trouble
    echo "KEY TROUBLE $(wc -l < /tmp/trouble)"
}
"#;

/// What Linux does for some seconds: work that has one right answer, sleeps, and a look at what the kernel thinks
/// of it.
pub const WORK: &str = r#"
n=0; s=1
while [ $n -lt 30 ]; do
    n=$((n + 1)); i=0
    while [ $i -lt 400 ]; do i=$((i + 1)); s=$(( (s * 31 + i + n) % 65521 )); done
    echo "KEY $n $s $(printf $s | sha256sum | cut -c1-8)"
    usleep 20000
done
trouble
echo "KEY DONE"
poweroff -f
"#;

/// Starts Linux with its console and monitor in files called `name`.
pub fn linux(
    folder: &Folder,
    files: &[&str; 2],
    name: &str,
    accel: &str,
    vcpus: &str,
    more: &[&str],
) -> Running {
    let serial = format!("file:{}", folder.path(&format!("com-{name}")));
    let monitor = format!("unix:{},server,nowait", folder.path(&format!("monitor-{name}")));
    let mut args = vec!["run", "-cpu", "max", "-m", "256", "-smp", vcpus, "-display", "none", "-no-reboot"];
    args.extend([
        "-accel",
        accel,
        "-kernel",
        files[0],
        "-initrd",
        files[1],
        "-append",
        "console=ttyS0 panic=-1",
    ]);
    args.extend(["-serial", &serial, "-monitor", &monitor]);
    args.extend(more);
    Running::start(&mut command(&args))
}

/// How long Linux may take on a host that has other work.
pub const LONG: Duration = Duration::from_secs(300);
