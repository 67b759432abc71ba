//! Disk and CD images that others have made boot untouched: GRUB's rescue images, by the built-in BIOS and by SeaBIOS.
//!
//! They are fetched once through apt (`tests/guests/manifest.toml`): `cargo test --release --test images -- --ignored`.
//! MYNAH_GUESTS=cached passes over what is not there.
#[allow(dead_code, reason = "it drives machines by their monitors and consoles")]
mod common;
use common::guest;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);

/// A machine on whose console somebody types.
struct Machine {
    process: Child,
    said: Receiver<Vec<u8>>,
    /// What was said and not looked at yet.
    rest: String,
}

impl Machine {
    fn start(args: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_mynah"))
            .args(["run", "-m", "128"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut out, (tx, said)) = (process.stdout.take().unwrap(), channel());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut bytes) {
                if tx.send(bytes[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { process, said, rest: String::new() }
    }

    /// Waits until `text` has been said; what comes behind it is looked at next.
    fn until(&mut self, text: &str) {
        let give_up = Instant::now() + LIMIT;
        loop {
            if let Some((_, behind)) = self.rest.split_once(text) {
                self.rest = behind.to_owned();
                return;
            }
            let left = give_up.saturating_duration_since(Instant::now());
            match self.said.recv_timeout(left) {
                Ok(bytes) => self.rest.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("no '{text}' in: {}", self.rest),
            }
        }
    }

    fn types(&mut self, keys: &str) {
        self.process.stdin.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    fn ends(mut self) -> Option<i32> {
        let give_up = Instant::now() + LIMIT;
        while Instant::now() < give_up {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("it does not end: {}", self.rest);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

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

/// The monitor of a machine.
struct Monitor(UnixStream);

impl Monitor {
    fn connect(socket: &Path) -> Self {
        let give_up = Instant::now() + LIMIT;
        loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                let mut monitor = Self(stream);
                monitor.answer();
                return monitor;
            }
            assert!(Instant::now() < give_up, "no monitor");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What comes before the next prompt.
    fn answer(&mut self) -> String {
        let (mut bytes, mut one) = (Vec::new(), [0]);
        while !bytes.ends_with(b"(mynah) ") {
            self.0.read_exact(&mut one).expect("a prompt");
            bytes.push(one[0]);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.0, "{command}").unwrap();
        self.answer()
    }

    fn screen_has(&mut self, text: &str) {
        let give_up = Instant::now() + LIMIT;
        loop {
            let screen = self.ask("screentext");
            if screen.contains(text) {
                return;
            }
            assert!(Instant::now() < give_up, "no '{text}' on:\n{screen}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("mynah-images-{}-{name}", std::process::id()))
}

#[test]
#[ignore = "boots images from Debian's packages"]
fn grub_boots_from_cd_by_seabios_on_a_screen_with_a_keyboard() {
    let Some(cd) = guest("grub-cd") else { return };
    if !Path::new("/usr/share/seabios/vgabios-stdvga.bin").exists() {
        eprintln!("SKIPPED: SeaBIOS is not installed (Debian's package 'seabios')");
        return;
    }
    let (socket, picture) = (scratch("monitor"), scratch("screen.png"));
    let monitor = format!("unix:{},server=on,wait=off", text(&socket));
    let args = ["-bios", "bios-256k.bin", "-vga", "std", "-display", "none", "-serial", "null"];
    let machine = Machine::start(&[&args[..], &["-cdrom", text(&cd), "-monitor", &monitor]].concat());
    let mut monitor = Monitor::connect(&socket);
    assert!(monitor.ask("info block").contains("(raw, read-only)"));
    monitor.screen_has("Press enter to boot");
    monitor.ask("sendkey c");
    monitor.screen_has("grub>");
    for key in ["l", "s", "ret"] {
        monitor.ask(&format!("sendkey {key}"));
    }
    monitor.screen_has("(cd) (cd,msdos");
    monitor.ask(&format!("screendump {}", text(&picture)));
    assert!(std::fs::read(&picture).unwrap().starts_with(b"\x89PNG"));
    assert!(monitor.ask("eject ide1-cd0").contains("(mynah)"));
    assert!(monitor.ask("info block").contains("ide1-cd0: [not inserted]"));
    writeln!(monitor.0, "quit").unwrap();
    assert_eq!(machine.ends(), Some(0));
    std::fs::remove_file(&picture).unwrap();
}
