//! `mynah demo`: something to look at, with one command.
//!
//! It boots Debian's cloud kernel, unmodified, to a busybox shell. Kernel and busybox are fetched through apt once and
//! kept in the user's cache (see [`guests`]). Where they cannot be had, it says why and runs the guest that is
//! built in ([`embedded`]).

use crate::cli::{build, explain, print, start, tell};
use crate::{embedded, guests};
use anyhow::{Context, Result};
use mynah_devices::chardev::leftovers::Leftover;
use mynah_jit::private;
use std::ffi::OsString;
use std::path::PathBuf;

/// The options of `mynah demo`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Run the built-in guest, without looking for Debian's kernel
    #[arg(long)]
    embedded: bool,
    /// Print the command that runs the guest, and do not run it
    #[arg(long)]
    print: bool,
    /// More options for `mynah run`, such as -m 1G
    #[arg(last = true, value_name = "OPTIONS")]
    options: Vec<OsString>,
}

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

/// Runs the demo; the result is the process's exit code.
pub fn run(args: &Args) -> Result<i32> {
    let mut words =
        if args.embedded { built_in(args)? } else { debian().or_else(|why| instead(args, &why))? };
    words.extend(args.options.iter().cloned());
    if args.print {
        print(&format!(
            "mynah run {}\n",
            words.iter().map(|w| quoted(&w.to_string_lossy())).collect::<Vec<_>>().join(" ")
        ));
        return Ok(0);
    }
    let config = build::config("mynah demo", &words)?;
    start(config)
}

/// Fetches kernel and busybox, and makes the initial RAM disk; the options that run them.
fn debian() -> Result<Vec<OsString>> {
    let store = guests::Store::open()?;
    let mut progress = |line: &str| tell(line);
    let kernel = store.fetch("cloud", &mut progress)?;
    let busybox = store.fetch("busybox", &mut progress)?;
    let busybox = std::fs::read(&busybox).with_context(|| format!("{}", busybox.display()))?;
    let initrd = write(
        store.folder().join("demo.cpio"),
        &guests::initramfs(&busybox, &format!("{}{INIT}", guests::MOUNTS)),
    )?;
    let mut words: Vec<OsString> = vec!["-kernel".into(), kernel.into(), "-initrd".into(), initrd.into()];
    words.extend(["-append", "console=ttyS0", "-m", "512", "-nographic", "-no-reboot"].map(OsString::from));
    Ok(words)
}

/// Says why there is no Debian kernel, and what comes instead.
fn instead(args: &Args, why: &anyhow::Error) -> Result<Vec<OsString>> {
    tell(&format!("Debian's kernel is not to be had: {}", explain(why)));
    tell("running the built-in guest instead");
    built_in(args)
}

/// Writes the built-in guest to a file; the options that run it.
fn built_in(args: &Args) -> Result<Vec<OsString>> {
    let image = embedded::image().context("the built-in guest cannot be assembled")?;
    let in_store = guests::Store::open().and_then(|s| write(s.folder().join("embedded.bin"), &image));
    // A cache that cannot be written to is no reason to show nothing.
    let temporary = || -> Result<PathBuf> {
        let file =
            write(std::env::temp_dir().join(format!("mynah-embedded-{}.bin", std::process::id())), &image)?;
        if !args.print {
            // It goes with the process.
            std::mem::forget(Leftover::new(&file));
        }
        Ok(file)
    };
    let file = in_store.or_else(|_| temporary())?;
    let mut words: Vec<OsString> = vec!["-kernel".into(), file.into()];
    words.extend(["-m", "128", "-nographic"].map(OsString::from));
    Ok(words)
}

/// Writes a file whole: another process that reads it meanwhile sees the old one or the new one. No link is followed, as `path` may be in `/tmp`.
fn write(path: PathBuf, bytes: &[u8]) -> Result<PathBuf> {
    let folder = path.parent().context("a file is in a folder")?;
    let result = std::fs::create_dir_all(folder).and_then(|()| private::write(&path, bytes));
    result.with_context(|| format!("{}", path.display()))?;
    Ok(path)
}

/// `text` as a shell reads it back.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,=:+%@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_commands_can_be_pasted_into_a_shell() {
        assert_eq!(quoted("-kernel"), "-kernel");
        assert_eq!(quoted("console=ttyS0 quiet"), "'console=ttyS0 quiet'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }

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
