//! Who is compared.
use super::{Error, bochs};
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An engine, or another emulator.
pub struct Subject {
    /// What the user calls it.
    pub name: &'static str,
    program: PathBuf,
    first: &'static [&'static str],
    kind: Kind,
}

/// Whose options it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// This program.
    Own,
    Qemu,
    Bochs,
}

/// What goes with a run: files' names.
pub struct Files {
    /// What comes of the debug port; where a peer has its console in a file, that too.
    pub debug: PathBuf,
    /// Figures, or a peer's configuration.
    pub stats: PathBuf,
    /// A peer's log.
    pub log: PathBuf,
}

impl Subject {
    /// The one of this name.
    ///
    /// # Errors
    /// There is none, or it is not installed.
    pub fn named(name: &str) -> Result<Self> {
        const QEMU: &str = "qemu-system-x86_64";
        let (name, first): (_, &'static [&'static str]) = match name {
            "interp" => ("interp", &["run", "-accel", "interp"]),
            "jit" | "tcg" => ("jit", &["run", "-accel", "jit"]),
            "kvm" => ("kvm", &["run", "-accel", "kvm"]),
            "auto" => ("auto", &["run", "-accel", "auto"]),
            "qemu" => ("qemu", &["-accel", "tcg"]),
            "qemu-kvm" => ("qemu-kvm", &["-accel", "kvm"]),
            "hvf" => ("hvf", &["run", "-accel", "hvf"]),
            "bochs" => ("bochs", &["-q", "-f"]),
            _ => bail!(Error::new(format!(
                "--accel {name}: expected interp, jit, kvm, hvf, auto, qemu, qemu-kvm or bochs"
            ))),
        };
        let installed = |program: &str, package: &str| {
            which(program).ok_or_else(|| {
                Error::new(format!(
                    "--accel {name}: {program} is not installed (Debian's package is {package})"
                ))
            })
        };
        let (kind, program) = match name {
            "qemu" | "qemu-kvm" => (Kind::Qemu, installed(QEMU, "qemu-system-x86")?),
            "bochs" => (Kind::Bochs, installed("bochs", "bochs")?),
            _ => (Kind::Own, std::env::current_exe().context("cannot find this program's own file")?),
        };
        Ok(Self { name, program, first, kind })
    }

    /// The command that runs a guest: console to standard output or to the file of the debug port, figures to `stats`.
    ///
    /// # Errors
    /// The guest is none that it can run.
    pub fn command(&self, options: &[OsString], files: &Files) -> Result<Command> {
        let mut command = Command::new(&self.program);
        command.args(self.first).stdin(Stdio::null());
        if self.kind == Kind::Bochs {
            let text = bochs::configuration(options, &files.debug, &files.log)?;
            std::fs::write(&files.stats, text)
                .with_context(|| format!("--accel bochs: {}", files.stats.display()))?;
            command.arg(&files.stats).stdin(Stdio::piped());
            return Ok(command);
        }
        if !has(options, &["-debugcon"]) {
            command.arg("-debugcon").arg(format!("file:{}", files.debug.display()));
        }
        command.args(quiet(options));
        if self.kind == Kind::Own {
            command.arg("-stats").arg(&files.stats);
        }
        Ok(command)
    }

    /// What is typed to it at the start.
    pub fn typed(&self) -> &'static [u8] {
        if self.kind == Kind::Bochs { bochs::TYPED } else { b"" }
    }

    /// Whether a run that ended with a code, and said this, has ended as it should.
    pub fn ended_well(&self, code: i32, said: &str) -> bool {
        code == 0 || self.kind == Kind::Bochs && said.contains(bochs::SWITCHED_OFF)
    }
}

fn has(options: &[OsString], names: &[&str]) -> bool {
    options.iter().any(|o| names.iter().any(|n| o == *n))
}

/// The options of a run with the console on standard output, no network and no reset, unless they say otherwise.
pub fn quiet(options: &[OsString]) -> Vec<OsString> {
    let mut all: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| all.extend(words.iter().map(OsString::from));
    if !has(options, &["-nographic", "-display", "-serial"]) {
        add(&["-display", "none", "-serial", "stdio", "-monitor", "none"]);
    }
    if !has(options, &["-nic", "-netdev", "-net"]) {
        add(&["-nic", "none"]);
    }
    if !has(options, &["-no-reboot"]) {
        add(&["-no-reboot"]);
    }
    all.extend(options.iter().cloned());
    all
}

/// The options that boot an image: a kernel, a CD or a disk, by what it is.
pub fn options_of(image: &Path) -> Result<Vec<OsString>> {
    let mut head = Vec::new();
    let file = std::fs::File::open(image).map_err(|e| Error::new(format!("{}: {e}", image.display())))?;
    file.take(0x206).read_to_end(&mut head).map_err(|e| Error::new(format!("{}: {e}", image.display())))?;
    let kernel = head.starts_with(b"\x7fELF") || head.get(0x202..0x206) == Some(b"HdrS");
    let words = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
    Ok(if kernel {
        let mut all = words(&["-append", "console=ttyS0 panic=-1", "-kernel"]);
        all.push(image.into());
        all
    } else if image.extension().is_some_and(|e| e.eq_ignore_ascii_case("iso")) {
        let mut all = words(&["-cdrom"]);
        all.push(image.into());
        all
    } else {
        // A comma in a name is doubled.
        let name = image.display().to_string().replace(',', ",,");
        let format = if head.starts_with(b"QFI\xfb") { "qcow2" } else { "raw" };
        words(&["-drive", &format!("file={name},format={format},snapshot=on")])
    })
}

fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_image_is_is_seen_by_its_head() {
        let folder = std::env::temp_dir().join(format!("mynah-compare-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let options = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            std::fs::write(&path, bytes).unwrap();
            let all = options_of(&path).unwrap();
            all.iter().map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        let mut linux = vec![0; 0x202];
        linux.extend(b"HdrS");
        assert!(options("vmlinuz", &linux).starts_with("-append console=ttyS0 panic=-1 -kernel "));
        assert!(options("vmlinux", b"\x7fELF").contains(" -kernel "));
        assert!(options("a.ISO", b"").starts_with("-cdrom "));
        assert!(options("a.qcow2", b"QFI\xfb").ends_with(",format=qcow2,snapshot=on"));
        assert!(options("a,b.img", b"").ends_with("a,,b.img,format=raw,snapshot=on"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn who_is_not_there_is_named() {
        let why = Subject::named("vmware").err().map(|e| e.to_string()).unwrap_or_default();
        assert_eq!(why, "--accel vmware: expected interp, jit, kvm, hvf, auto, qemu, qemu-kvm or bochs");
        let jit = Subject::named("jit").unwrap();
        assert_eq!(jit.kind, Kind::Own);
        assert!(jit.ended_well(0, "") && !jit.ended_well(1, bochs::SWITCHED_OFF));
    }
}
