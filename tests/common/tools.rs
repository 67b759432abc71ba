//! Tools of the host's that make media: what is not installed is said, and passed over.
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Whether these programs (or, with a slash, files) of Debian's packages are there; else it is said which is not.
pub fn tools(names: &[(&str, &str)]) -> bool {
    names.iter().all(|(name, package)| {
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
            .any(|folder| folder.join(name).exists());
        if !found {
            eprintln!("SKIPPED: {name} is not installed (Debian's package '{package}')");
        }
        found
    })
}

/// What formats FAT volumes and fills them.
pub const FAT_TOOLS: &[(&str, &str)] = &[("mformat", "mtools"), ("mcopy", "mtools"), ("mmd", "mtools")];

/// Runs a tool, which must do what it is asked to; what it says.
pub fn tool(name: &str, args: &[&str]) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let out = Command::new(name).args(args).env("PATH", path).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{name} {args:?}: {said}\n{}", String::from_utf8_lossy(&out.stderr));
    said
}

/// A path's text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("the path is text")
}

/// The built-in BIOS, and SeaBIOS where it is installed.
pub fn firmware() -> Vec<&'static [&'static str]> {
    let mut all: Vec<&[&str]> = vec![&[]];
    if Path::new("/usr/share/seabios/vgabios-stdvga.bin").exists() {
        all.push(&["-bios", "bios-256k.bin"]);
    } else {
        eprintln!("SKIPPED by SeaBIOS: it is not installed (Debian's package 'seabios')");
    }
    all
}
