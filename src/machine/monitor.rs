//! The human monitor's commands: the few that there is something behind, with QEMU's names and answers.
use super::handle::{Handle, Status};
use super::info;
use super::inside::Translators;
use crate::config::Config;
use mynah_devices::chardev::{Chardev, Monitor};
use parking_lot::Mutex;
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// A command for the help: its names and arguments, and what it does.
type Entry = (&'static str, &'static str);

/// The commands.
const COMMANDS: &[Entry] = &[
    ("cont|c", "go on"),
    ("cpu N", "the vCPU that 'info registers' shows"),
    ("help|? [COMMAND]", "this text, or that of one command"),
    ("info [WHAT]", "what 'help info' lists"),
    ("migrate URI", "stop the guest and save it to file:FILE, or to the input of exec:\"COMMAND\""),
    ("nmi", "an NMI for each vCPU"),
    ("quit|q", "end Mynah"),
    ("stop|s", "pause the guest"),
    ("system_powerdown", "press the power button"),
    ("system_reset", "reset the machine"),
    ("system_wakeup", "wake the guest from its sleep"),
];

/// What `info` tells of.
const INFO: &[Entry] = &[
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
            if buses.contains(bus) {
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
        assert_eq!(m.command("info block"), "unknown command: 'info block' (try 'help info')\n");
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
