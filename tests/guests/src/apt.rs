//! Debian's packages through apt, without changing anything of the system's.
//!
//! A package is looked for first with the lists that the system has. Where it has none, or old ones, or is of another
//! architecture, apt is given a folder of its own for its lists (with the system's sources and keys): so neither root's
//! rights nor `dpkg --add-architecture` is needed. apt checks signatures and sums in both cases.

use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A way to call apt.
#[derive(Debug, Clone)]
pub struct Apt {
    options: Vec<OsString>,
    /// The folder for lists of our own; none with the system's lists.
    root: Option<PathBuf>,
}

impl Apt {
    /// apt with the system's lists.
    pub fn system() -> Apt {
        let mut apt = Apt { options: Vec::new(), root: None };
        apt.option("APT::Sandbox::User=root");
        apt.impatient();
        apt
    }

    /// apt with lists of `architecture` in the folder `root`.
    pub fn private(root: &Path, architecture: &str) -> Apt {
        let mut apt = Apt { options: Vec::new(), root: Some(root.into()) };
        for (key, folder) in [("Dir::State", "state"), ("Dir::Cache", "cache"), ("Dir::Log", "log")] {
            let mut option = OsString::from(format!("{key}="));
            option.push(root.join(folder));
            apt.options.extend(["-o".into(), option]);
        }
        apt.option("Dir::State::status=/dev/null");
        apt.option(&format!("APT::Architecture={architecture}"));
        apt.option(&format!("APT::Architectures::={architecture}"));
        // Only the packages' lists: no translations, no catalogues for software shops.
        apt.option("Acquire::Languages=none");
        apt.option("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false");
        apt.option("Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false");
        apt.option("APT::Update::Post-Invoke-Success=");
        apt.option("APT::Sandbox::User=root");
        apt.impatient();
        apt
    }

    /// Without a network the answer shall come soon.
    fn impatient(&mut self) {
        for option in ["Acquire::Retries=1", "Acquire::http::Timeout=20", "Acquire::https::Timeout=20"] {
            self.option(option);
        }
    }

    fn option(&mut self, option: &str) {
        self.options.extend(["-o".into(), option.into()]);
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        command
            .args(&self.options)
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null());
        command
    }

    /// Whether the lists are there.
    pub fn has_lists(&self) -> bool {
        let Some(root) = &self.root else { return true };
        std::fs::read_dir(root.join("state/lists"))
            .is_ok_and(|d| d.flatten().any(|f| f.file_name().to_string_lossy().contains("_Packages")))
    }

    /// Fetches the lists, for a folder of our own. Some of them may fail: what matters is whether a package is found.
    pub fn update(&self) -> Result<()> {
        let Some(root) = &self.root else { bail!("the system's package lists are not ours to change") };
        for folder in ["state/lists/partial", "cache/archives/partial", "log"] {
            let folder = root.join(folder);
            std::fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
        }
        // By itself apt calls it a success when nothing could be fetched.
        match output(self.command("apt-get").args(["-q", "-o", "APT::Update::Error-Mode=any", "update"])) {
            Err(why) if !self.has_lists() => Err(why.context("the package lists cannot be fetched")),
            Ok(_) if !self.has_lists() => bail!("apt's sources hold no packages for this architecture"),
            _ => Ok(()),
        }
    }

    /// The package starting with `prefix` that `package` depends on.
    pub fn dependency(&self, package: &str, prefix: &str) -> Result<String> {
        let text = output(self.command("apt-cache").args(["depends", package]))?;
        match first_dependency(&text, prefix) {
            Some(found) => Ok(found),
            None => bail!("{package} depends on no {prefix}* package"),
        }
    }

    /// Downloads `package` into `folder`, which must hold no other package, and says which file it is.
    pub fn download(&self, package: &str, folder: &Path) -> Result<PathBuf> {
        output(self.command("apt-get").args(["-q", "download", package]).current_dir(folder))?;
        let mut files = std::fs::read_dir(folder)?.flatten().map(|f| f.path());
        files
            .find(|f| f.extension().is_some_and(|e| e == "deb"))
            .with_context(|| format!("apt-get left no {package}"))
    }
}

/// The first `Depends:` line of `apt-cache depends` whose package starts with `prefix`; one among alternatives will do.
fn first_dependency(text: &str, prefix: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.trim_start().trim_start_matches('|').strip_prefix("Depends: "))
        .map(str::trim)
        .find(|name| name.starts_with(prefix))
        .map(str::to_string)
}

/// Whether apt is on this system.
pub fn is_there() -> bool {
    Command::new("apt-get").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// The system's own architecture, as dpkg names it.
pub fn native_architecture() -> Option<String> {
    output(Command::new("dpkg").arg("--print-architecture")).ok().map(|t| t.trim().to_string())
}

/// Takes the file that matches `pattern` (or one of several, with blanks between them) out of the package `deb` and
/// writes it to `to`.
pub fn extract(deb: &Path, pattern: &str, scratch: &Path, to: &Path) -> Result<()> {
    let file = extract_all(deb, pattern, scratch)?.into_iter().find(|f| f.is_file());
    let file = file.with_context(|| format!("{}: there is no {pattern} in it", deb.display()))?;
    std::fs::rename(&file, to).with_context(|| format!("{}", to.display()))
}

/// All files of a package that match `pattern`, in the order of their names.
pub fn extract_all(deb: &Path, pattern: &str, scratch: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = vec![unpack(deb, pattern, scratch)?];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)?.flatten() {
            if entry.file_type()?.is_dir() { folders.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    files.sort();
    Ok(files)
}

/// Unpacks what matches `pattern` into a folder in `scratch`.
fn unpack(deb: &Path, pattern: &str, scratch: &Path) -> Result<PathBuf> {
    let folder = scratch.join("files");
    std::fs::create_dir_all(&folder)?;
    let mut unpack = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("dpkg-deb cannot be run")?;
    let archive = unpack.stdout.take().context("dpkg-deb gives nothing")?;
    let list = output(
        Command::new("tar")
            .args(["-xf", "-", "--no-same-owner", "--wildcards", "-C"])
            .arg(&folder)
            .args(pattern.split_whitespace().map(|one| format!("./{one}")))
            .stdin(archive),
    );
    let unpacked = unpack.wait()?;
    list.with_context(|| format!("{}: there is no {pattern} in it", deb.display()))?;
    if !unpacked.success() {
        bail!("{}: dpkg-deb cannot unpack it", deb.display());
    }
    Ok(folder)
}

/// Runs a command to its end; its standard output, or an error with what it complained of.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{name} cannot be run"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().map(str::trim).find(|l| l.starts_with("E:"));
    let said = first.or_else(|| said.lines().map(str::trim).rfind(|l| !l.is_empty()));
    bail!("{name}: {}", said.map_or("it failed", |l| l.trim_start_matches("E:").trim()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_package_is_found_among_dependencies() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-base\n |Depends: linux-image-6.1.0-1-cloud-amd64\n  \
                    Recommends: linux-image-x\n";
        assert_eq!(
            first_dependency(text, "linux-image-").as_deref(),
            Some("linux-image-6.1.0-1-cloud-amd64")
        );
        assert_eq!(first_dependency("busybox\n  Depends: libc6\n", "linux-image-"), None);
    }

    #[test]
    fn a_failing_command_is_told_with_its_complaint() {
        let error =
            output(Command::new("sh").args(["-c", "echo W: first >&2; echo 'E: no such thing' >&2; exit 3"]));
        assert_eq!(error.unwrap_err().to_string(), "sh: no such thing");
        assert!(output(&mut Command::new("/no/such/tool")).is_err());
    }

    #[test]
    fn lists_of_our_own_are_found_when_they_are_there() {
        let root = std::env::temp_dir().join(format!("mynah-apt-test-{}", std::process::id()));
        let apt = Apt::private(&root, "i386");
        assert!(!apt.has_lists());
        std::fs::create_dir_all(root.join("state/lists")).unwrap();
        std::fs::write(root.join("state/lists/x_Packages.lz4"), b"").unwrap();
        assert!(apt.has_lists());
        std::fs::remove_dir_all(&root).unwrap();
    }
}
