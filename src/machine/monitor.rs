//! The human monitor's commands: those that there is something behind, with QEMU's names and answers.
//!
//! [`COMMANDS`] and [`INFO`] are all there are: parsing, help and their tests read these tables.
mod args;
mod input;
mod memory;
mod network;

use self::args::{Args, Fault, Format};
use super::drives::open_image;
use super::handle::{Handle, Status};
use super::info;
use super::inside::Translators;
use crate::config::{self, AccelKind, Config, Interface, WatchdogAction};
use mynah_block::Drive;
use mynah_devices::chardev::{Chardev, Monitor};
use mynah_devices::display::vnc::VncControl;
use mynah_devices::display::{Screen, dump};
use mynah_devices::misc::vmgenid::Guid;
use parking_lot::Mutex;
use std::fmt::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

/// Commands that a format may follow without a blank.
const FORMATTED: [&str; 6] = ["x", "xp", "p", "print", "i", "o"];

/// What is answered to a command.
type Answer = Result<String, Fault>;

/// A command: a row of the table.
struct Command {
    /// Its names.
    names: &'static str,
    /// What stands behind it.
    args: &'static str,
    /// What it does.
    what: &'static str,
    run: Run,
}

/// How a command is carried out.
enum Run {
    /// It has no arguments, and nothing is to be said of it.
    Does(fn(&Hmp)),
    /// It has no arguments.
    Plain(fn(&Hmp) -> Answer),
    With(fn(&Hmp, &mut Args<'_>) -> Answer),
}
use Run::{Does, Plain, With};

const fn row(names: &'static str, args: &'static str, what: &'static str, run: Run) -> Command {
    Command { names, args, what, run }
}

/// The commands.
const COMMANDS: &[Command] = &[
    row(
        "block_resize",
        "DEVICE SIZE",
        "give a disk another size, in MiB or with K M G T",
        With(|m, a| m.block_resize(a)),
    ),
    row("change", "DEVICE FILE [FORMAT]", "put another medium into a drive", With(|m, a| m.change(a))),
    row("change", "vnc password PASSWORD", "another password for VNC clients", With(|m, a| m.change(a))),
    row("cont|c", "", "go on", Plain(|m| done(m.machine.resume()))),
    row("cpu", "N", "the vCPU that others look at", With(|m, a| m.choose(a))),
    row(
        "eject",
        "[-f] DEVICE",
        "take the medium out of a drive; -f: though the guest has locked it in",
        With(|m, a| m.eject(a)),
    ),
    row(
        "expire_password",
        "vnc TIME",
        "the password's end: now, never, +SECONDS, or seconds since 1970",
        With(|m, a| m.expire_password(a)),
    ),
    row(
        "handoff",
        "interp|jit|kvm|hvf",
        "have another engine run the guest from here on",
        With(|m, a| m.hand_over(a)),
    ),
    row("help|?", "[COMMAND]", "this text, or that of one command", With(|_, a| help_of(a))),
    row(
        "hostfwd_add",
        "[NETDEV] [tcp|udp]:[HOST]:PORT-[GUEST]:PORT",
        "lead a port of the host's to the guest; port 0: a free one",
        With(|m, a| m.hostfwd_add(a)),
    ),
    row(
        "hostfwd_remove",
        "[NETDEV] [tcp|udp]:[HOST]:PORT",
        "close a port of the host's again",
        With(|m, a| m.hostfwd_remove(a)),
    ),
    row(
        "i",
        "[/FMT] PORT [INDEX]",
        "read a port; with INDEX that is written there, and the next one read",
        With(|m, a| m.port_read(a)),
    ),
    row("info", "[WHAT]", "what 'help info' lists", With(|m, a| m.info(a))),
    row("memsave", "ADDRESS SIZE FILE", "virtual memory to a file", With(|m, a| m.save_memory(a, false))),
    row(
        "migrate",
        "URI",
        "stop the guest and save it to file:FILE, or to the input of exec:\"COMMAND\"",
        With(|m, a| m.migrate(a)),
    ),
    row(
        "mouse_button",
        "STATE",
        "press the mouse's buttons: 1 left, 2 middle, 4 right, and sums",
        With(|m, a| m.mouse_button(a)),
    ),
    row(
        "mouse_move",
        "DX DY [DZ]",
        "move the mouse to the right, down, its wheel",
        With(|m, a| m.mouse_move(a)),
    ),
    row("nmi", "", "an NMI for each vCPU", Does(|m| m.machine.nmi())),
    row("o", "[/FMT] PORT VALUE", "write a port", With(|m, a| m.port_write(a))),
    row("pmemsave", "ADDRESS SIZE FILE", "physical memory to a file", With(|m, a| m.save_memory(a, true))),
    row("print|p", "[/FMT] EXPRESSION", "a number, of registers too ($eip)", With(|m, a| m.print(a))),
    row("quit|q", "", "end Mynah", Does(|m| m.machine.end())),
    row(
        "screendump",
        "FILE [-f FORMAT]",
        "the screen as a picture: ppm, or png (the default for a FILE that ends so)",
        With(|m, a| m.screendump(a)),
    ),
    row("screentext", "", "the text screen, as UTF-8", Plain(|m| m.screentext())),
    row(
        "sendkey",
        "KEYS [HOLD_MS]",
        "press keys together: sendkey ctrl-alt-delete",
        With(|m, a| m.sendkey(a)),
    ),
    row(
        "set_password",
        "vnc PASSWORD",
        "the password for VNC clients",
        With(|m, a| if a.takes("vnc") { m.vnc_password(a) } else { Err(Fault::Form) }),
    ),
    row(
        "set_link",
        "NAME on|off",
        "put a network card's cable in, or pull it out",
        With(|m, a| m.set_link(a)),
    ),
    row("stop|s", "", "pause the guest", Does(|m| m.machine.pause())),
    row("sum", "ADDRESS SIZE", "the checksum of physical memory, as sum -r makes it", With(|m, a| m.sum(a))),
    row("system_powerdown", "", "press the power button", Does(|m| m.machine.power_button())),
    row("system_reset", "", "reset the machine", Does(|m| m.machine.reset())),
    row("system_wakeup", "", "wake the guest from its sleep", Plain(|m| done(m.machine.wake()))),
    row(
        "watchdog_action",
        "ACTION",
        "what a watchdog does: reset, shutdown, poweroff, pause, debug, none, inject-nmi",
        With(|m, a| m.watchdog_action(a)),
    ),
    row(
        "x",
        "[/FMT] ADDRESS",
        "virtual memory: /4xw, /2i (count; x d u o c i; b h w g)",
        With(|m, a| m.examine(a, false)),
    ),
    row("xp", "[/FMT] ADDRESS", "physical memory", With(|m, a| m.examine(a, true))),
];

/// What `info` tells of.
const INFO: &[Command] = &[
    row("block", "", "the drives and what is in them", Plain(|m| Ok(m.block()))),
    row("chardev", "", "the character devices", Plain(|m| Ok(m.lines.info()))),
    row("cpus", "", "the vCPUs and their threads", Plain(|m| Ok(m.cpus()))),
    row(
        "device",
        "NAME",
        "a device's registers and what else would be saved of it",
        With(|m, a| m.device(a)),
    ),
    row(
        "irq",
        "",
        "how many times each interrupt wire has risen",
        Plain(|m| Ok(info::irq(&m.machine.interrupts()))),
    ),
    row("jit", "", "what the translator has done", Plain(|m| Ok(m.translators.info()))),
    row("kvm", "", "whether KVM is used", Plain(|m| Ok(m.kvm()))),
    row("mem", "", "virtual addresses that are mapped", Plain(|m| m.mem())),
    row("mice", "", "the pointing devices", Plain(|m| m.mice())),
    row("migrate", "", "what became of the last 'migrate'", Plain(|m| Ok(m.migration()))),
    row(
        "mtree",
        "",
        "what answers at which addresses and ports",
        Plain(|m| Ok(info::mtree(&m.machine.memory_map(), &m.machine.port_map()))),
    ),
    row("name", "", "the guest's name", Plain(|m| Ok(m.name()))),
    row(
        "network",
        "[-j]",
        "the network cards and what is behind them; with -j all that is known, as JSON",
        With(|m, a| m.network(a)),
    ),
    row(
        "pci",
        "",
        "the PCI functions",
        Plain(|m| Ok(m.machine.pci().map_or_else(String::new, |bus| info::pci(&bus)))),
    ),
    row(
        "pic",
        "",
        "the interrupt controllers",
        Plain(|m| Ok(info::pic(&|name| m.machine.inspect_one(name)))),
    ),
    row("qtree", "", "the devices, by their buses", Plain(|m| Ok(m.devices()))),
    row("registers", "[-a]", "the vCPU's registers; with -a all vCPUs'", With(|m, a| m.registers(a))),
    row("roms", "", "what is in ROM", Plain(|m| Ok(info::roms(&m.machine.memory_map())))),
    row("status", "", "running or paused", Plain(|m| Ok(format!("VM status: {}\n", m.machine.status())))),
    row("tlb", "", "the pages of the vCPU's tables", Plain(|m| m.tlb())),
    row("usernet", "", "what passes through the user network", Plain(|m| m.usernet())),
    row("uuid", "", "the system's UUID", Plain(|m| Ok(m.uuid()))),
    row("version", "", "Mynah's version", Plain(|_| Ok(format!("{}\n", env!("CARGO_PKG_VERSION"))))),
    row(
        "vm-generation-id",
        "",
        "the id by which a guest notices that it goes on from a copy",
        Plain(|m| {
            let id = m.machine.generation_id().ok_or("VM Generation ID device not found")?;
            Ok(format!("{id}\n"))
        }),
    ),
    row("vnc", "", "the VNC server", Plain(|m| Ok(m.vnc_server()))),
];

impl Command {
    fn is(&self, name: &str) -> bool {
        self.names.split('|').any(|n| n == name)
    }

    /// Names and arguments, as `help` shows them.
    fn form(&self) -> String {
        [self.names, self.args].join(" ").trim_end().to_owned()
    }

    fn carry_out(&self, monitor: &Hmp, args: &mut Args<'_>) -> Answer {
        match self.run {
            Does(run) => {
                args.end()?;
                run(monitor);
                Ok(String::new())
            }
            Plain(run) => args.end().and_then(|()| run(monitor)),
            With(run) => run(monitor, args),
        }
    }
}

/// The text of these commands, in front of which stands `prefix`.
fn help<'a>(prefix: &str, commands: impl Iterator<Item = &'a Command>) -> String {
    commands.map(|c| format!("{prefix}{} -- {}\n", c.form(), c.what)).collect()
}

fn help_of(args: &mut Args<'_>) -> Answer {
    let text = match args.next() {
        None => help("", COMMANDS.iter()),
        Some("info") => help("info ", INFO.iter()),
        Some(name) => match help("", COMMANDS.iter().filter(|c| c.is(name))) {
            text if text.is_empty() => format!("unknown command: '{name}'\n"),
            text => text,
        },
    };
    args.end()?;
    Ok(text)
}

const NO_SCREEN: &str = "there is no screen (-device VGA adds one)";

/// What the monitor says of something that was to be done.
fn done<E: std::fmt::Display>(result: Result<(), E>) -> Answer {
    result.map_err(Fault::from).map(|()| String::new())
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
    /// How memory was shown last.
    format: Mutex<Format>,
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
            format: Mutex::new(Format::USUAL),
        }
    }

    fn chosen(&self) -> usize {
        self.seat.load(Ordering::Relaxed)
    }

    fn cpus(&self) -> String {
        let mut text = String::new();
        for (n, report) in self.machine.reports().into_iter().enumerate() {
            let mark = if n == self.chosen() { '*' } else { ' ' };
            let _ = match report {
                Some(r) => writeln!(text, "{mark} CPU #{n}: thread_id={}", r.thread),
                None => writeln!(text, "{mark} CPU #{n}: does not answer"),
            };
        }
        text
    }

    fn registers(&self, args: &mut Args<'_>) -> Answer {
        let all = args.takes("-a");
        args.end()?;
        let mut text = String::new();
        for (n, report) in self.machine.reports().into_iter().enumerate() {
            if !all && n != self.chosen() {
                continue;
            }
            let registers = report.map_or("it does not answer\n".into(), |r| r.registers);
            let _ = write!(text, "\nCPU#{n}\n{registers}");
        }
        Ok(text)
    }

    fn hand_over(&self, args: &mut Args<'_>) -> Answer {
        let name = args.word()?;
        args.end()?;
        let kind = match name {
            "interp" => AccelKind::Interp,
            "jit" | "tcg" => AccelKind::Jit,
            "kvm" => AccelKind::Kvm,
            "hvf" => AccelKind::Hvf,
            _ => return Err(Fault::Said(format!("'{name}' is no engine: interp, jit, kvm or hvf"))),
        };
        done(self.machine.hand_over(kind))
    }

    fn kvm(&self) -> String {
        let on = self.machine.engine() == Some(AccelKind::Kvm);
        format!("kvm support: {}\n", if on { "enabled" } else { "disabled" })
    }

    fn choose(&self, args: &mut Args<'_>) -> Answer {
        let seat = args.word()?;
        args.end()?;
        match seat.parse() {
            Ok(n) if n < self.machine.vcpus() => {
                self.seat.store(n, Ordering::Relaxed);
                Ok(String::new())
            }
            Ok(_) => Err(Fault::Said("invalid CPU index".into())),
            Err(_) => Err(Fault::Said(format!("'{seat}' is not the number of a vCPU"))),
        }
    }

    fn watchdog_action(&self, args: &mut Args<'_>) -> Answer {
        let name = args.word()?;
        args.end()?;
        let action = WatchdogAction::named(name).ok_or_else(|| format!("there is no action '{name}'"))?;
        self.machine.set_on_watchdog(action);
        Ok(String::new())
    }

    /// Options of QEMU's command for what is no matter here (it waits in any case; disks are not copied) may stand
    /// before the URI, which may be in quotation marks.
    fn migrate(&self, args: &mut Args<'_>) -> Answer {
        while ["-d", "-b", "-i"].iter().any(|option| args.takes(option)) {}
        if args.is_empty() {
            return Err(Fault::Form);
        }
        let uri = args.rest();
        let uri = uri.strip_prefix('"').and_then(|u| u.strip_suffix('"')).unwrap_or(uri);
        let saved = self.machine.save(uri);
        *self.migration.lock() = if saved.is_ok() { "completed" } else { "failed" };
        done(saved.map_err(|e| crate::cli::explain(&e)))
    }

    fn migration(&self) -> String {
        match *self.migration.lock() {
            "" => String::new(),
            status => format!("Migration status: {status}\n"),
        }
    }

    fn name(&self) -> String {
        if self.name.is_empty() { String::new() } else { format!("{}\n", self.name) }
    }

    fn screendump(&self, args: &mut Args<'_>) -> Answer {
        let mut format = if args.takes("-f") { Some(args.word()?) } else { None };
        let file = args.file()?;
        if format.is_none() && args.takes("-f") {
            format = Some(args.word()?);
        }
        args.end()?;
        let encode = match format.unwrap_or(if file.ends_with(".png") { "png" } else { "ppm" }) {
            "png" => dump::png,
            "ppm" => dump::ppm,
            format => return Err(format!("there is no format '{format}'; there are ppm and png").into()),
        };
        let (_, display) = self.machine.displays().into_iter().next().ok_or(NO_SCREEN)?;
        let mut screen = Screen::default();
        display.refresh(&mut screen);
        let mut picture = Vec::new();
        let written = encode(screen.surface(), &mut picture).and_then(|()| std::fs::write(&file, picture));
        done(written.map_err(|e| format!("{file}: {e}")))
    }

    fn screentext(&self) -> Answer {
        let (_, display) = self.machine.displays().into_iter().next().ok_or(NO_SCREEN)?;
        let text = display.text().ok_or("the screen shows pixels, and no text")?;
        Ok(text.to_string())
    }

    fn info(&self, args: &mut Args<'_>) -> Answer {
        let Some(what) = args.next() else { return Ok(help("info ", INFO.iter())) };
        let Some(command) = INFO.iter().find(|c| c.is(what)) else {
            return Err(Fault::Said(format!("unknown command: 'info {what}' (try 'help info')")));
        };
        command.carry_out(self, args).map_err(|fault| match fault {
            Fault::Form => Fault::Said(format!("'info {what}': its form is info {}", command.form())),
            said => said,
        })
    }

    fn vnc_password(&self, args: &mut Args<'_>) -> Answer {
        let password = args.word()?;
        args.end()?;
        done(self.vnc()?.set_password(Some(password.to_owned())))
    }

    fn expire_password(&self, args: &mut Args<'_>) -> Answer {
        if !args.takes("vnc") {
            return Err(Fault::Form);
        }
        let time = args.word()?;
        args.end()?;
        let (now, no_time) = (SystemTime::now(), || format!("'{time}' is no time"));
        let seconds = |text: &str| text.parse().ok().map(Duration::from_secs);
        let at = match (time, time.strip_prefix('+')) {
            ("now", _) => Some(now),
            ("never", _) => None,
            (_, Some(later)) => Some(seconds(later).and_then(|s| now.checked_add(s)).ok_or_else(no_time)?),
            _ => Some(seconds(time).and_then(|s| SystemTime::UNIX_EPOCH.checked_add(s)).ok_or_else(no_time)?),
        };
        done(self.vnc()?.expire_password(at))
    }

    fn vnc(&self) -> Result<&VncControl, &'static str> {
        self.machine.vnc().ok_or("there is no VNC server (-vnc)")
    }

    fn vnc_server(&self) -> String {
        let Some(server) = self.machine.vnc().and_then(VncControl::info) else { return "None\n".into() };
        let auth = if server.needs_password { "vnc" } else { "none" };
        let mut text = String::from("default:\n");
        for (address, websocket) in server.addresses {
            let websocket = if websocket { " (Websocket)" } else { "" };
            let _ = writeln!(text, "  Server: {address}{websocket}\n    Auth: {auth} (Sub: none)");
        }
        let _ = writeln!(text, "  Clients: {}", server.clients);
        text
    }

    fn drive(&self, name: &str) -> Result<Arc<Drive>, String> {
        let drive = self.machine.drives().into_iter().find(|d| d.name() == name);
        drive.ok_or_else(|| format!("there is no drive '{name}' ('info block' lists them)"))
    }

    fn eject(&self, args: &mut Args<'_>) -> Answer {
        let force = args.takes("-f");
        let name = args.word()?;
        args.end()?;
        let drive = self.drive(name)?;
        let wanted = self.drives.iter().find(|d| d.id == name).is_some_and(removable);
        if !wanted && !force {
            return Err(format!("Device '{name}' is not removable").into());
        }
        done(drive.change(None, force))
    }

    fn change(&self, args: &mut Args<'_>) -> Answer {
        let name = args.word()?;
        if name == "vnc" && args.takes("password") {
            if args.is_empty() {
                return Err("say which: change vnc password PASSWORD".into());
            }
            return self.vnc_password(args);
        }
        let (file, format) = (args.file()?, args.next());
        args.end()?;
        let drive = self.drive(name)?;
        let wanted = self.drives.iter().find(|d| d.id == name && removable(d));
        let wanted = wanted.ok_or_else(|| format!("Device '{name}' is not removable"))?;
        let wanted = config::Drive { format: format.map(Into::into), ..wanted.clone() };
        let image = open_image(&wanted, Path::new(&file)).map_err(|e| crate::cli::explain(&e))?;
        drive.change(Some(image), false)?;
        drive.name_medium(&file);
        Ok(String::new())
    }

    /// Without a suffix the size counts MiB, as in QEMU.
    fn block_resize(&self, args: &mut Args<'_>) -> Answer {
        let (name, size) = (args.word()?, args.word()?);
        args.end()?;
        let drive = self.drive(name)?;
        let bytes = crate::cli::size::size_from(size, 1 << 20, 512, i64::MAX as u64)?;
        done(drive.resize(bytes))
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

    fn device(&self, args: &mut Args<'_>) -> Answer {
        let name = args.word()?;
        args.end()?;
        match self.machine.inspect_one(name) {
            Some(registers) => Ok(format!("{registers:#}\n")),
            None => Err(Fault::Said(format!("there is no device '{name}' ('info qtree' lists them)"))),
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
        format!("{}\n", Guid(self.uuid))
    }
}

impl Monitor for Hmp {
    fn command(&self, line: &str) -> String {
        let mut args = Args(line);
        let Some(name) = args.next() else { return String::new() };
        // A format may follow without a blank: x/4xw.
        let name = match name.split_once('/') {
            Some((name, _)) if FORMATTED.contains(&name) => {
                args = Args(&line.trim_start()[name.len()..]);
                name
            }
            _ => name,
        };
        let Some(command) = COMMANDS.iter().find(|c| c.is(name)) else {
            return format!("unknown command: '{name}' (try 'help')\n");
        };
        match command.carry_out(self, &mut args) {
            Ok(text) => text,
            Err(Fault::Form) => format!("'{}': its form is {}\n", line.trim(), command.form()),
            Err(Fault::Said(text)) => text + "\n",
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
        let (all, infos) = (m.command("help"), m.command("help info"));
        for (prefix, command, text) in
            COMMANDS.iter().map(|c| ("", c, &all)).chain(INFO.iter().map(|c| ("info ", c, &infos)))
        {
            let form = command.form();
            assert!(text.contains(&format!("{prefix}{form} -- {}\n", command.what)), "{text}");
            // These take any word for a command's name.
            let names = command.names.split('|').filter(|name| !["help", "?", "info"].contains(name));
            for name in names {
                let answer = m.command(&format!("{prefix}{name} \u{1}"));
                assert!(!answer.contains("unknown command"), "{name}: {answer}");
                // What takes nothing says so, and does nothing.
                let takes = matches!(command.run, With(_));
                let told = format!(
                    "'{prefix}{name}{}': its form is {prefix}{form}\n",
                    if prefix.is_empty() { " \u{1}" } else { "" }
                );
                assert!(takes || answer == told, "{answer}");
            }
        }
        assert_eq!(m.command("help stop"), "stop|s -- pause the guest\n");
        assert_eq!(m.command("? q"), "quit|q -- end Mynah\n");
        assert_eq!(m.command("help change").lines().count(), 2);
        assert_eq!(m.command("info"), infos);
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
        assert_eq!(m.command("info device"), "'info device': its form is info device NAME\n");
        assert_eq!(m.command("info spice"), "unknown command: 'info spice' (try 'help info')\n");
        assert_eq!(m.command("watchdog_action bark"), "Error: there is no action 'bark'\n");
        assert_eq!(m.command("mouse_move 1 2"), "Error: the board has no mouse\n");
        assert_eq!(m.command("x/4qw 0"), "invalid char in format: 'q'\n");
        assert_eq!(m.command("p $nothing"), "the vCPU does not answer\n");
    }

    #[test]
    fn numbers_are_printed_in_the_last_format() {
        let m = monitor();
        assert_eq!(m.command("p 1 + 0x10"), "0x11\n");
        assert_eq!(m.command("print/d -1"), "-1\n");
        assert_eq!(m.command("p 3"), "3\n");
        assert_eq!((m.command("p /o 8"), m.command("p/o 0")), ("010\n".into(), "0\n".into()));
        assert_eq!(
            (m.command("p/u -1"), m.command("p/c 'a'")),
            ("18446744073709551615\n".into(), "'a'\n".into())
        );
        assert_eq!(m.command("p"), "'p': its form is print|p [/FMT] EXPRESSION\n");
        assert_eq!(m.command("p 1 2"), "'p 1 2': its form is print|p [/FMT] EXPRESSION\n");
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
