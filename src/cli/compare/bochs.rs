//! Bochs as a peer: what QEMU's options say of a guest, as the configuration file that Bochs takes.
//!
//! It boots disks, CDs and floppies, as its firmware does. Its display is the one of its RFB server, as the package of
//! Debian's has it without a screen: while it runs, it answers VNC viewers at port 5900.
use super::Error;
use anyhow::{Result, bail, ensure};
use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Where its firmware may be.
const FOLDERS: &[&str] = &["/usr/share/bochs", "/usr/local/share/bochs", "/usr/share/bochs-bios"];
/// What it says when the guest switches itself off, which is an error to it.
pub const SWITCHED_OFF: &str = "soft power off";
/// What is typed to a Bochs that was built with its debugger: go on.
pub const TYPED: &[u8] = b"c\n";

/// A guest, as far as Bochs can run it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Guest {
    mib: u32,
    disks: Vec<String>,
    cd: Option<String>,
    floppy: Option<String>,
}

fn guest(options: &[OsString]) -> Result<Guest> {
    let refused = |what: &str, why: &str| Error::new(format!("--accel bochs: {what}: {why}"));
    let mut guest = Guest { mib: 128, ..Guest::default() };
    let mut words = options.iter().map(|w| w.to_string_lossy());
    while let Some(word) = words.next() {
        let mut value = || words.next().map(|v| v.into_owned()).unwrap_or_default();
        match &*word {
            "-nographic" | "-no-reboot" | "-snapshot" => {}
            // Who is on the console is known.
            "-display" | "-serial" | "-monitor" | "-nic" | "-net" | "-debugcon" => drop(value()),
            "-m" => guest.mib = mebibytes(&value()).ok_or_else(|| refused("-m", "expected 1 to 2048 MiB"))?,
            "-hda" => guest.disks.push(value()),
            "-cdrom" => guest.cd = Some(value()),
            "-fda" => guest.floppy = Some(value()),
            "-drive" => {
                let text = value();
                let mut file = None;
                // A comma in a name is doubled, and would be a quote's end in the file.
                for part in text.split(',') {
                    match part.split_once('=').unwrap_or((part, "")) {
                        ("file", name) => file = Some(name.to_owned()),
                        ("format", "raw") | ("if", "ide") | ("media", "disk") | ("snapshot", _) => {}
                        ("if", other) => {
                            bail!(refused(&format!("-drive if={other}"), "it has IDE disks alone (if=ide)"))
                        }
                        ("format", other) => {
                            bail!(refused(&format!("-drive format={other}"), "it reads raw images"))
                        }
                        (key, _) => bail!(refused(&format!("-drive {key}="), "there is nothing like it")),
                    }
                }
                guest.disks.push(file.ok_or_else(|| refused("-drive", "it has no file="))?);
            }
            "-kernel" => bail!(refused("-kernel", "it boots disks, CDs and floppies alone")),
            other => bail!(refused(other, "there is nothing like it")),
        }
    }
    let files = guest.disks.iter().chain(&guest.cd).chain(&guest.floppy);
    for file in files {
        ensure!(!file.contains(['"', ',', '\n']), refused(file, "a file's name cannot be told to it"));
    }
    ensure!(guest.disks.len() <= 2, refused("-drive", "two disks are all that it gets here"));
    ensure!(
        !guest.disks.is_empty() || guest.cd.is_some() || guest.floppy.is_some(),
        refused("the guest", "it boots disks, CDs and floppies alone")
    );
    Ok(guest)
}

/// A size as `-m` has it, in MiB.
fn mebibytes(text: &str) -> Option<u32> {
    let text = text.strip_prefix("size=").unwrap_or(text);
    let (number, unit) = match text.strip_suffix(['G', 'g']) {
        Some(number) => (number, 1024),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
    };
    number.parse::<u32>().ok()?.checked_mul(unit).filter(|n| (1..=2048).contains(n))
}

/// The configuration for a guest with its console in a file.
///
/// # Errors
/// What of the options Bochs has not; its firmware is not there.
pub fn configuration(options: &[OsString], console: &Path, log: &Path) -> Result<String> {
    let guest = guest(options)?;
    let firmware = |name: &str| -> Result<PathBuf> {
        let found = FOLDERS.iter().map(|f| Path::new(f).join(name)).find(|p| p.exists());
        found.ok_or_else(|| {
            Error::new(format!("--accel bochs: {name} is not there (Debian's package is bochsbios)")).into()
        })
    };
    let mut text = format!(
        "config_interface: textconfig\n\
         display_library: rfb, options=\"timeout=0\"\n\
         memory: guest={mib}, host={mib}\n\
         romimage: file=\"{}\"\n\
         vgaromimage: file=\"{}\"\n\
         cpu: model=corei7_haswell_4770, count=1, reset_on_triple_fault=0\n\
         clock: sync=realtime, time0=utc\n\
         com1: enabled=1, mode=file, dev=\"{}\"\n\
         port_e9_hack: enabled=1\n\
         speaker: enabled=0\n\
         log: \"{}\"\n\
         panic: action=fatal\nerror: action=ignore\ninfo: action=ignore\ndebug: action=ignore\n\
         ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
         ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15\n",
        firmware("BIOS-bochs-latest")?.display(),
        firmware("VGABIOS-lgpl-latest")?.display(),
        console.display(),
        log.display(),
        mib = guest.mib,
    );
    let places = ["ata0-master", "ata0-slave"];
    for (place, file) in places.iter().zip(&guest.disks) {
        // What is written goes to a file that is gone with it.
        let _ = writeln!(text, "{place}: type=disk, path=\"{file}\", mode=volatile");
    }
    if let Some(file) = &guest.cd {
        let _ = writeln!(text, "ata1-master: type=cdrom, path=\"{file}\", status=inserted");
    }
    if let Some(file) = &guest.floppy {
        let _ = writeln!(text, "floppya: type=1_44, 1_44=\"{file}\", status=inserted, write_protected=1");
    }
    let boot = match (&guest.floppy, &guest.disks[..]) {
        (Some(_), _) => "floppy",
        (None, [_, ..]) => "disk",
        (None, []) => "cdrom",
    };
    let _ = writeln!(text, "boot: {boot}");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Result<Guest> {
        guest(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn what_options_say_of_a_disk_bochs_is_told() {
        let words = ["-m", "1G", "-drive", "file=/a/disk.raw,format=raw,snapshot=on", "-nic", "none"];
        let expected = Guest { mib: 1024, disks: vec!["/a/disk.raw".into()], ..Guest::default() };
        assert_eq!(of(&words).unwrap(), expected);
        let expected = Guest { mib: 128, cd: Some("a.iso".into()), ..Guest::default() };
        assert_eq!(of(&["-cdrom", "a.iso", "-nographic"]).unwrap(), expected);
    }

    #[test]
    fn what_bochs_has_not_is_named() {
        for (words, said) in [
            (&["-kernel", "vmlinuz"][..], "-kernel: it boots disks, CDs and floppies alone"),
            (&["-drive", "file=a,if=virtio,format=raw"], "-drive if=virtio: it has IDE disks alone"),
            (&["-drive", "file=a,format=qcow2"], "-drive format=qcow2: it reads raw images"),
            (&["-drive", "file=a,,b,format=raw"], "-drive =: there is nothing like it"),
            (&["-hda", "a,b"], "a,b: a file's name cannot be told to it"),
            (&["-m", "64G", "-hda", "a"], "-m: expected 1 to 2048 MiB"),
            (&["-smp", "2", "-hda", "a"], "-smp: there is nothing like it"),
            (&["-m", "64"], "the guest: it boots disks"),
        ] {
            let why = of(words).unwrap_err().to_string();
            assert!(why.contains(said), "{words:?}: {why}");
        }
    }
}
