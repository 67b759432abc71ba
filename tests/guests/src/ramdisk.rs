//! An initial RAM disk of a busybox and a script.

use crate::cpio::Archive;

/// An initial RAM disk: `busybox`, what it needs around it, and the script `init`, which the kernel runs first.
///
/// The script begins with `#!/bin/busybox sh`, and finds no file system mounted and no applet but busybox itself;
/// [`MOUNTS`] does for it what nearly every one wants first.
pub fn initramfs(busybox: &[u8], init: &str) -> Vec<u8> {
    let mut archive = Archive::new();
    for folder in
        ["bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "usr/bin", "usr/sbin"]
    {
        archive.directory(folder, 0o755);
    }
    // The kernel opens the console for init before init can mount anything.
    archive
        .device("dev/console", 0o600, 5, 1)
        .device("dev/null", 0o666, 1, 3)
        .file("bin/busybox", 0o755, busybox)
        .link("bin/sh", "busybox")
        .file("init", 0o755, init.as_bytes());
    archive.finish()
}

/// The first lines of an init script: file systems and busybox's commands.
pub const MOUNTS: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_initramfs_holds_init_and_a_console() {
        let bytes = initramfs(b"BUSYBOX", &format!("{MOUNTS}exec sh\n"));
        let has = |what: &str| bytes.windows(what.len()).any(|w| w == what.as_bytes());
        assert!(has("dev/console\0") && has("init\0") && has("BUSYBOX") && has("exec sh\n"));
    }
}
