//! What `mynah demo` boots: Debian's cloud kernel, unmodified, to a busybox shell, or the guest that is built in.

use crate::{Store, embedded, ramdisk};
use anyhow::{Context, Result};
use mynah_jit::private;
use std::ffi::OsString;
use std::path::PathBuf;

/// The shell's surroundings: the script that the kernel runs first.
const INIT: &str = r#"
mkdir -p /dev/pts && mount -t devpts devpts /dev/pts
hostname mynah
cat <<END

Debian's kernel $(uname -r) runs on $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs),
with $(grep MemTotal /proc/meminfo | awk '{ print int($2 / 1024) }') MiB of memory. This is busybox's shell.

  poweroff -f       switches the machine off (so does leaving the shell)
  Ctrl-A, then X    ends the emulator at once; Ctrl-A, then H lists more

END
cd /root
setsid cttyhack sh
poweroff -f
"#;

/// Fetches kernel and busybox, and makes the initial RAM disk; the options that run them. `progress` is told what takes
/// its time.
pub fn debian(progress: &mut dyn FnMut(&str)) -> Result<Vec<OsString>> {
    let store = Store::open()?;
    let kernel = store.fetch("cloud", progress)?;
    let busybox = store.fetch("busybox", progress)?;
    let busybox = std::fs::read(&busybox).with_context(|| format!("{}", busybox.display()))?;
    let initrd = write(
        store.folder().join("demo.cpio"),
        &ramdisk::initramfs(&busybox, &format!("{}{INIT}", ramdisk::MOUNTS)),
    )?;
    let mut words: Vec<OsString> = vec!["-kernel".into(), kernel.into(), "-initrd".into(), initrd.into()];
    words.extend(["-append", "console=ttyS0", "-m", "512", "-nographic", "-no-reboot"].map(OsString::from));
    Ok(words)
}

/// Where the built-in guest has been written to.
#[derive(Debug)]
pub enum Written {
    /// To the store, where it stays.
    Kept(PathBuf),
    /// To the folder for temporary files: it is the caller's to remove.
    Temporary(PathBuf),
}

impl Written {
    /// The options that run it.
    pub fn options(&self) -> Vec<OsString> {
        let (Written::Kept(file) | Written::Temporary(file)) = self;
        let mut words: Vec<OsString> = vec!["-kernel".into(), file.into()];
        words.extend(["-m", "128", "-nographic"].map(OsString::from));
        words
    }
}

/// Writes the built-in guest to a file.
pub fn built_in() -> Result<Written> {
    let image = embedded::image().context("the built-in guest cannot be assembled")?;
    let in_store = Store::open().and_then(|s| write(s.folder().join("embedded.bin"), &image));
    // A cache that cannot be written to is no reason to show nothing.
    let temporary = || {
        let file = std::env::temp_dir().join(format!("mynah-embedded-{}.bin", std::process::id()));
        write(file, &image).map(Written::Temporary)
    };
    in_store.map(Written::Kept).or_else(|_| temporary())
}

/// Writes a file whole: another process that reads it meanwhile sees the old one or the new one. No link is followed,
/// as `path` may be in `/tmp`.
fn write(path: PathBuf, bytes: &[u8]) -> Result<PathBuf> {
    let folder = path.parent().context("a file is in a folder")?;
    let result = std::fs::create_dir_all(folder).and_then(|()| private::write(&path, bytes));
    result.with_context(|| format!("{}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole() {
        let folder = std::env::temp_dir().join(format!("mynah-demo-test-{}", std::process::id()));
        let path = folder.join("a.bin");
        write(path.clone(), b"one").unwrap();
        write(path.clone(), b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
