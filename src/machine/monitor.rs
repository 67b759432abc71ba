//! The human monitor's commands: the few that there is something behind, with QEMU's names and answers.
use super::drives::open_image;
use super::handle::{Handle, Status};
use super::info;
use super::inside::Translators;
use super::keys;
use crate::config::{self, Config, Interface};
use mynah_block::Drive;
use mynah_devices::chardev::{Chardev, Monitor};
use mynah_devices::display::vnc::VncControl;
use mynah_devices::display::{Screen, dump};
use parking_lot::Mutex;
use std::fmt::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

/// A command for the help: its names and arguments, and what it does.
type Entry = (&'static str, &'static str);

/// The commands.
const COMMANDS: &[Entry] = &[
    ("cont|c", "go on"),
    ("change DEVICE FILE [FORMAT]", "put another medium into a drive"),
    ("cpu N", "the vCPU that 'info registers' shows"),
    ("change vnc password PASSWORD", "another password for VNC clients"),
    ("block_resize DEVICE SIZE", "give a disk another size, in MiB or with K M G T"),
    ("eject [-f] DEVICE", "take the medium out of a drive; -f: though the guest has locked it in"),
    ("expire_password vnc TIME", "the password's end: now, never, +SECONDS, or seconds since 1970"),
    ("help|? [COMMAND]", "this text, or that of one command"),
    ("info [WHAT]", "what 'help info' lists"),
    ("migrate URI", "stop the guest and save it to file:FILE, or to the input of exec:\"COMMAND\""),
    ("nmi", "an NMI for each vCPU"),
    ("quit|q", "end Mynah"),
    (
        "screendump FILE [-f FORMAT]",
        "the screen as a picture: ppm, or png (the default for a FILE that ends so)",
    ),
    ("screentext", "the text screen, as UTF-8"),
    ("sendkey KEYS [HOLD_MS]", "press keys together: sendkey ctrl-alt-delete"),
    ("set_password vnc PASSWORD", "the password for VNC clients"),
    ("stop|s", "pause the guest"),
    ("system_powerdown", "press the power button"),
    ("system_reset", "reset the machine"),
    ("system_wakeup", "wake the guest from its sleep"),
];

/// What `info` tells of.
const INFO: &[Entry] = &[
    ("info block", "the drives and what is in them"),
    ("info chardev", "the character devices"),
    ("info cpus", "the vCPUs and their threads"),
    ("info device NAME", "a device's registers and what else would be saved of it"),
    ("info irq", "how many times each interrupt wire has risen"),
    ("info jit", "what the translator has done"),
    ("info kvm", "whether KVM is used"),
    ("info migrate", "what became of the last 'migrate'"),
    ("info mtree", "what answers at which addresses and ports"),
    ("info name", "the guest's name"),
    ("info pic", "the interrupt controllers"),
    ("info qtree", "the devices, by their buses"),
    ("info registers [-a]", "the vCPU's registers; with -a all vCPUs'"),
    ("info status", "running or paused"),
    ("info uuid", "the system's UUID"),
    ("info version", "Mynah's version"),
];

fn help(entries: &[Entry]) -> String {
    entries.iter().map(|(name, what)| format!("{name} -- {what}\n")).collect()
}

/// The entry whose first word has `name` among its names.
fn find(name: &str) -> Option<&'static Entry> {
    let names = |entry: &Entry| entry.0.split(' ').next().is_some_and(|w| w.split('|').any(|n| n == name));
    COMMANDS.iter().find(|e| names(e))
}

const NO_SCREEN: &str = "Error: there is no screen (-device VGA adds one)\n";

/// What the monitor says of something that was to be done.
fn done<E: std::fmt::Display>(result: Result<(), E>) -> String {
    result.map_or_else(|e| format!("Error: {e}\n"), |()| String::new())
}

/// A name that users know, and what it is of.
type Line = (String, Weak<dyn Chardev>);

/// The open character devices; they belong to somebody else.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<Line>>>);

impl Lines {
    /// Adds one.
    pub fn add(&self, name: &str, line: &Arc<dyn Chardev>) {
        self.0.lock().push((name.to_owned(), Arc::downgrade(line)));
    }

    fn info(&self) -> String {
        let all: Vec<_> =
            self.0.lock().iter().filter_map(|(name, l)| Some((name.clone(), l.upgrade()?))).collect();
        all.iter().map(|(name, line)| format!("{name}: filename={}\n", line.name())).collect()
    }
}

/// The human monitor.
pub struct Hmp {
    machine: Handle,
    translators: Translators,
    lines: Lines,
    /// Drives as the user has asked for them.
    drives: Vec<config::Drive>,
    /// What became of the last `migrate`.
    migration: Mutex<&'static str>,
    name: String,
    uuid: [u8; 16],
    prompt: &'static str,
    greeting: String,
    /// The vCPU that is looked at.
    seat: AtomicUsize,
}

impl Hmp {
    /// A monitor of `machine`.
    pub fn new(cfg: &Config, machine: &Handle, translators: &Translators, lines: &Lines) -> Self {
        Self {
            machine: machine.clone(),
            translators: translators.clone(),
            lines: lines.clone(),
            drives: cfg.drives.clone(),
            migration: Mutex::default(),
            name: cfg.name.clone().unwrap_or_default(),
            uuid: cfg.uuid.unwrap_or_default(),
            // Scripts that drive QEMU wait for its prompt.
            prompt: if cfg.as_qemu { "(qemu) " } else { "(mynah) " },
            greeting: format!(
                "Mynah {} monitor - type 'help' for more information\n",
                env!("CARGO_PKG_VERSION")
            ),
            seat: AtomicUsize::new(0),
        }
    }

    fn cpus(&self) -> String {
        let current = self.seat.load(Ordering::Relaxed);
        let mut text = String::new();
        for (n, report) in self.machine.reports().into_iter().enumerate() {
            let mark = if n == current { '*' } else { ' ' };
            let _ = match report {
                Some(r) => writeln!(text, "{mark} CPU #{n}: thread_id={}", r.thread),
                None => writeln!(text, "{mark} CPU #{n}: does not answer"),
            };
        }
        text
    }

    fn registers(&self, all: bool) -> String {
        let current = self.seat.load(Ordering::Relaxed);
        let mut text = String::new();
        for (n, report) in
            self.machine.reports().into_iter().enumerate().filter(|(n, _)| all || *n == current)
        {
            let registers = report.map_or("it does not answer\n".into(), |r| r.registers);
            let _ = write!(text, "\nCPU#{n}\n{registers}");
        }
        text
    }

    fn choose(&self, seat: &str) -> String {
        match seat.parse() {
            Ok(n) if n < self.machine.vcpus() => {
                self.seat.store(n, Ordering::Relaxed);
                String::new()
            }
            Ok(_) => "invalid CPU index\n".into(),
            Err(_) => format!("'{seat}' is not the number of a vCPU\n"),
        }
    }

    /// Options of QEMU's command for what is no matter here (it waits in any case; disks are not copied) may stand before the URI, which
    /// may be in quotation marks.
    fn migrate(&self, rest: &str) -> String {
        let mut uri = rest;
        while let Some(after) = ["-d ", "-b ", "-i "].iter().find_map(|option| uri.strip_prefix(option)) {
            uri = after.trim_start();
        }
        let uri = uri.strip_prefix('"').and_then(|u| u.strip_suffix('"')).unwrap_or(uri);
        let saved = self.machine.save(uri);
        *self.migration.lock() = if saved.is_ok() { "completed" } else { "failed" };
        done(saved.map_err(|e| crate::cli::explain(&e)))
    }

    fn screendump(&self, file: &str, format: &str) -> String {
        let encode = match format {
            "png" => dump::png,
            "ppm" => dump::ppm,
            _ => return format!("Error: there is no format '{format}'; there are ppm and png\n"),
        };
        let Some((_, display)) = self.machine.displays().into_iter().next() else { return NO_SCREEN.into() };
        let mut screen = Screen::default();
        display.refresh(&mut screen);
        let mut picture = Vec::new();
        let written = encode(screen.surface(), &mut picture).and_then(|()| std::fs::write(file, picture));
        done(written.map_err(|e| format!("{file}: {e}")))
    }

    fn screentext(&self) -> String {
        match self.machine.displays().into_iter().next() {
            None => NO_SCREEN.into(),
            Some((_, display)) => display
                .text()
                .map_or_else(|| "Error: the screen shows pixels, and no text\n".into(), |t| t.to_string()),
        }
    }

    fn sendkey(&self, keys: &str, hold: &str) -> String {
        const MOST_MS: u64 = 10_000;
        match hold.parse() {
            Ok(ms) if ms <= MOST_MS => {
                let sent = keys::parse(keys)
                    .and_then(|keys| Ok(self.machine.send_keys(&keys, Duration::from_millis(ms))?));
                done(sent)
            }
            _ => format!("Error: '{hold}' is no time in ms, at most {MOST_MS}\n"),
        }
    }

    fn vnc_password(&self, password: &str) -> String {
        done(self.vnc().and_then(|vnc| vnc.set_password(Some(password.to_owned()))))
    }

    fn expire_password(&self, time: &str) -> String {
        let now = SystemTime::now();
        let seconds = |text: &str| text.parse().ok().map(Duration::from_secs);
        let at = match (time, time.strip_prefix('+')) {
            ("now", _) => Some(now),
            ("never", _) => None,
            (_, Some(later)) => match seconds(later).and_then(|s| now.checked_add(s)) {
                Some(at) => Some(at),
                None => return format!("Error: '{time}' is no time\n"),
            },
            _ => match seconds(time).and_then(|s| SystemTime::UNIX_EPOCH.checked_add(s)) {
                Some(at) => Some(at),
                None => return format!("Error: '{time}' is no time\n"),
            },
        };
        done(self.vnc().and_then(|vnc| vnc.expire_password(at)))
    }

    fn vnc(&self) -> Result<&VncControl, &'static str> {
        self.machine.vnc().ok_or("there is no VNC server (-vnc)")
    }

    fn drive(&self, name: &str) -> Result<Arc<Drive>, String> {
        let drive = self.machine.drives().into_iter().find(|d| d.name() == name);
        drive.ok_or_else(|| format!("there is no drive '{name}' ('info block' lists them)"))
    }

    fn eject(&self, name: &str, force: bool) -> String {
        done(self.drive(name).and_then(|drive| {
            let wanted = self.drives.iter().find(|d| d.id == name).is_some_and(removable);
            if !wanted && !force {
                return Err(format!("Device '{name}' is not removable"));
            }
            drive.change(None, force).map_err(|e| e.to_string())
        }))
    }

    fn change(&self, name: &str, file: &str, format: Option<&str>) -> String {
        done(self.drive(name).and_then(|drive| {
            let wanted = self.drives.iter().find(|d| d.id == name && removable(d));
            let wanted = wanted.ok_or_else(|| format!("Device '{name}' is not removable"))?;
            let wanted = config::Drive { format: format.map(Into::into), ..wanted.clone() };
            let image = open_image(&wanted, Path::new(file)).map_err(|e| crate::cli::explain(&e))?;
            drive.change(Some(image), false).map_err(|e| e.to_string())?;
            drive.name_medium(file);
            Ok(())
        }))
    }

    /// Without a suffix the size counts MiB, as in QEMU.
    fn block_resize(&self, name: &str, size: &str) -> String {
        done(self.drive(name).and_then(|drive| {
            let bytes = crate::cli::size::size_from(size, 1 << 20, 512, i64::MAX as u64)?;
            drive.resize(bytes).map_err(|e| e.to_string())
        }))
    }

    fn block(&self) -> String {
        let mut text = String::new();
        for drive in self.machine.drives() {
            let wanted = self.drives.iter().find(|d| d.id == drive.name());
            let name = drive.name();
            match drive.medium() {
                None => _ = writeln!(text, "{name}: [not inserted]"),
                Some(medium) => {
                    let first = || Some(wanted?.file.as_ref()?.display().to_string());
                    let file = drive.medium_name().or_else(first).unwrap_or_default();
                    let read_only = if drive.read_only() { ", read-only" } else { "" };
                    _ = writeln!(text, "{name}: {file} ({}{read_only})", medium.format());
                }
            }
            if wanted.is_some_and(removable) {
                let locked = if drive.locked() { "locked" } else { "not locked" };
                let tray = if drive.tray_open() { "open" } else { "closed" };
                _ = writeln!(text, "    Removable device: {locked}, tray {tray}");
            }
            let cache = if drive.write_cache() { "writeback" } else { "writethrough" };
            _ = writeln!(text, "    Cache mode:       {cache}");
        }
        text
    }

    fn device(&self, name: &str) -> String {
        match self.machine.inspect().into_iter().find(|(n, _)| n == name) {
            Some((_, registers)) => format!("{registers:#}\n"),
            None => format!("there is no device '{name}' ('info qtree' lists them)\n"),
        }
    }

    /// Buses in the order in which they come, each with its devices.
    fn devices(&self) -> String {
        let all = self.machine.devices();
        let mut buses: Vec<&str> = Vec::new();
        let mut text = String::new();
        for (bus, ..) in &all {
            if buses.contains(&&**bus) {
                continue;
            }
            buses.push(bus);
            let _ = writeln!(text, "bus: {bus}");
            for (_, name, kind) in all.iter().filter(|(on, ..)| on == bus) {
                let _ = writeln!(text, "  dev: {kind}, id \"{name}\"");
            }
        }
        text
    }

    fn uuid(&self) -> String {
        let hex: String = self.uuid.iter().map(|b| format!("{b:02x}")).collect();
        let groups = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
        groups.join("-") + "\n"
    }
}

impl Monitor for Hmp {
    fn command(&self, line: &str) -> String {
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            [] => String::new(),
            ["q" | "quit"] => {
                self.machine.end();
                String::new()
            }
            ["stop" | "s"] => {
                self.machine.pause();
                String::new()
            }
            ["cont" | "c"] => done(self.machine.resume()),
            ["system_reset"] => {
                self.machine.reset();
                String::new()
            }
            ["system_powerdown"] => {
                self.machine.power_button();
                String::new()
            }
            ["system_wakeup"] => done(self.machine.wake()),
            ["migrate", ..] if line.trim().len() > "migrate".len() => {
                self.migrate(line.trim()["migrate".len()..].trim())
            }
            ["nmi"] => {
                self.machine.nmi();
                String::new()
            }
            ["cpu", seat] => self.choose(seat),
            ["screendump", file] => self.screendump(file, if file.ends_with(".png") { "png" } else { "ppm" }),
            ["screendump", file, "-f", format] | ["screendump", "-f", format, file] => {
                self.screendump(file, format)
            }
            ["screentext"] => self.screentext(),
            ["sendkey", keys] => self.sendkey(keys, "100"),
            ["sendkey", keys, hold] => self.sendkey(keys, hold),
            ["eject", device] => self.eject(device, false),
            ["eject", "-f", device] => self.eject(device, true),
            ["change", "vnc", "password", password] | ["set_password", "vnc", password] => {
                self.vnc_password(password)
            }
            ["expire_password", "vnc", time] => self.expire_password(time),
            ["change", "vnc", "password"] => "Error: say which: change vnc password PASSWORD\n".into(),
            ["change", device, file] => self.change(device, file, None),
            ["change", device, file, format] => self.change(device, file, Some(format)),
            ["block_resize", device, size] => self.block_resize(device, size),
            ["info", "block"] => self.block(),
            ["info", "chardev"] => self.lines.info(),
            ["info", "cpus"] => self.cpus(),
            ["info", "device", name] => self.device(name),
            ["info", "irq"] => info::irq(&self.machine.interrupts()),
            ["info", "jit"] => self.translators.info(),
            ["info", "kvm"] => "kvm support: disabled\n".into(),
            ["info", "migrate"] => match *self.migration.lock() {
                "" => String::new(),
                status => format!("Migration status: {status}\n"),
            },
            ["info", "mtree"] => info::mtree(&self.machine.memory_map(), &self.machine.port_map()),
            ["info", "pic"] => info::pic(&self.machine.inspect()),
            ["info", "name"] if self.name.is_empty() => String::new(),
            ["info", "name"] => format!("{}\n", self.name),
            ["info", "registers"] => self.registers(false),
            ["info", "registers", "-a"] => self.registers(true),
            ["info", "qtree"] => self.devices(),
            ["info", "status"] => format!("VM status: {}\n", self.machine.status()),
            ["info", "uuid"] => self.uuid(),
            ["info", "version"] => format!("{}\n", env!("CARGO_PKG_VERSION")),
            ["info"] | ["help" | "?", "info"] => help(INFO),
            ["help" | "?"] => help(COMMANDS),
            ["help" | "?", name] => match find(name) {
                Some(entry) => help(&[*entry]),
                None => format!("unknown command: '{name}'\n"),
            },
            ["info", what, ..] => format!("unknown command: 'info {what}' (try 'help info')\n"),
            [first, ..] => match find(first) {
                Some((name, _)) => format!("'{line}': its form is {name}\n"),
                None => format!("unknown command: '{first}' (try 'help')\n"),
            },
        }
    }

    fn prompt(&self) -> &str {
        if self.machine.status() == Status::Ended { "" } else { self.prompt }
    }

    fn greeting(&self) -> &str {
        &self.greeting
    }
}

/// Whether the medium is one that users put in and take out.
fn removable(drive: &config::Drive) -> bool {
    drive.cdrom || drive.interface == Some(Interface::Floppy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn monitor() -> Hmp {
        let uuid = Some(std::array::from_fn(|n| n as u8 * 0x11));
        let cfg = Config { name: Some("a b".into()), uuid, ..Config::default() };
        Hmp::new(&cfg, &Handle::new(&cfg), &Translators::default(), &Lines::default())
    }

    #[test]
    fn what_the_help_lists_is_there() {
        let m = monitor();
        for (entry, what) in COMMANDS.iter().chain(INFO) {
            let words: Vec<&str> = entry
                .split(' ')
                .map(|w| w.split('|').next().unwrap())
                .filter(|w| !w.starts_with('['))
                .collect();
            let line = words.join(" ").replace('N', "0");
            assert!(!m.command(&line).contains("unknown"), "{line}");
            let text = m.command(if line.starts_with("info ") { "help info" } else { "help" });
            assert!(text.contains(&format!("{entry} -- {what}\n")), "{text}");
        }
        assert_eq!(m.command("help stop"), "stop|s -- pause the guest\n");
        assert_eq!(m.command("? q"), "quit|q -- end Mynah\n");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let m = monitor();
        assert_eq!(m.command("savevm x"), "unknown command: 'savevm' (try 'help')\n");
        assert_eq!(m.command("info blokc"), "unknown command: 'info blokc' (try 'help info')\n");
        assert_eq!(m.command("screentext"), "Error: there is no screen (-device VGA adds one)\n");
        assert_eq!(m.command("sendkey ctrl-alt-dleete"), "Error: there is no key 'dleete'\n");
        assert_eq!(m.command("sendkey a"), "Error: the board has no keyboard\n");
        assert_eq!(m.command("eject cd"), "Error: there is no drive 'cd' ('info block' lists them)\n");
        assert_eq!(m.command("stop now"), "'stop now': its form is stop|s\n");
        assert_eq!(m.command("cpu"), "'cpu': its form is cpu N\n");
        assert_eq!(m.command("cpu x"), "'x' is not the number of a vCPU\n");
        assert_eq!(m.command("cpu 1"), "invalid CPU index\n");
        assert_eq!(m.command("help nothing"), "unknown command: 'nothing'\n");
    }

    #[test]
    fn names_and_numbers() {
        let m = monitor();
        assert_eq!(m.command("info name"), "a b\n");
        assert_eq!(m.command("info uuid"), "00112233-4455-6677-8899-aabbccddeeff\n");
        assert_eq!(m.command("info status"), "VM status: running\n");
        m.command("stop");
        assert_eq!(m.command("info status"), "VM status: paused\n");
        m.command("c");
        assert_eq!(m.command("info status"), "VM status: running\n");
    }
}
