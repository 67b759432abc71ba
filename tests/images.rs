//! Disk and CD images that others have made boot untouched: GRUB's rescue images, by the built-in BIOS and by SeaBIOS.
//!
//! They are fetched once through apt (`tests/guests/manifest.toml`): `cargo test --release --test images -- --ignored`.
//! MYNAH_GUESTS=cached passes over what is not there.
#[allow(dead_code, reason = "it drives machines by their monitors and consoles")]
mod common;
mod kit;
use common::guest;
use kit::typed::Machine;
use kit::{Client, Folder, wait_for};
use std::io::{Read, Write};
use std::path::Path;

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is text")
}

#[test]
#[ignore = "boots images from Debian's packages"]
fn grub_boots_from_cd_and_disk_by_the_built_in_bios_and_switches_off() {
    let Some(cd) = guest("grub-cd") else { return };
    let cd = text(&cd);
    // An ISO that is a disk as well.
    let virtio = format!("file={cd},if=virtio,format=raw,snapshot=on");
    for accel in ["jit", "interp"] {
        for (args, devices) in [
            (vec!["-cdrom", cd], "(cd) (cd,msdos"),
            (vec!["-hda", cd, "-snapshot"], "(hd0) (hd0,"),
            (vec!["-drive", &virtio], "(hd0) (hd0,"),
            (vec!["-M", "q35", "-cdrom", cd], "(cd) (cd,msdos"),
            (vec!["-M", "q35", "-hda", cd, "-snapshot"], "(hd0) (hd0,"),
            (vec!["-M", "q35", "-drive", &virtio, "-device", "pcie-root-port"], "(hd0) (hd0,"),
        ] {
            let mut machine = Machine::start(&[&["-nographic", "-accel", accel], &args[..]].concat());
            machine.until("Press enter to boot");
            machine.types("c");
            machine.until("grub>");
            machine.types("ls\r");
            machine.until(devices);
            machine.until("grub>");
            machine.types("halt\r");
            assert_eq!(machine.ends(), Some(0), "{args:?}");
        }
    }
}

/// Waits until the machine's text screen has this on it.
fn screen_has<S: Read + Write>(monitor: &mut Client<S>, text: &str) {
    wait_for(text, || monitor.ask("screentext").contains(text).then_some(()));
}

#[test]
#[ignore = "boots images from Debian's packages"]
fn grub_boots_from_cd_by_seabios_on_a_screen_with_a_keyboard() {
    let Some(cd) = guest("grub-cd") else { return };
    if !Path::new("/usr/share/seabios/vgabios-stdvga.bin").exists() {
        eprintln!("SKIPPED: SeaBIOS is not installed (Debian's package 'seabios')");
        return;
    }
    for (board, drive) in [("pc", "ide1-cd0"), ("q35", "ide2-cd0")] {
        by_seabios(text(&cd), board, drive);
    }
}

/// Boots the CD on a board, whose CD-ROM drive is called so.
fn by_seabios(cd: &str, board: &str, drive: &str) {
    let folder = Folder::new("images");
    let (socket, picture) = (folder.path("monitor"), folder.path("screen.png"));
    let monitor = format!("unix:{socket},server=on,wait=off");
    let args = ["-M", board, "-bios", "bios-256k.bin", "-vga", "std", "-display", "none", "-serial", "null"];
    let machine = Machine::start(&[&args[..], &["-cdrom", cd, "-monitor", &monitor]].concat());
    let mut monitor = Client::at(&socket);
    assert!(monitor.ask("info block").contains("(raw, read-only)"));
    screen_has(&mut monitor, "Press enter to boot");
    monitor.ask("sendkey c");
    screen_has(&mut monitor, "grub>");
    for key in ["l", "s", "ret"] {
        monitor.ask(&format!("sendkey {key}"));
    }
    screen_has(&mut monitor, "(cd) (cd,msdos");
    assert_eq!(monitor.ask(&format!("screendump {picture}")), "");
    assert!(std::fs::read(&picture).unwrap().starts_with(b"\x89PNG"));
    assert_eq!(monitor.ask(&format!("eject {drive}")), "");
    assert!(monitor.ask("info block").contains(&format!("{drive}: [not inserted]")));
    monitor.send("quit");
    assert_eq!(machine.ends(), Some(0));
}
