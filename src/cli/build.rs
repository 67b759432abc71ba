//! From options to a [`Config`]: each option's handler, the defaults that depend on one another, and the checks that
//! need more than one option or a look at a file.

use super::Error;
use super::options::Status;
use super::parse::{Given, parse};
use super::size::{number_from, show_size};
use super::suggest::did_you_mean;
use super::{
    blockdev_arg, char_arg, cpu_arg, device_arg, drive_arg, help, machine_arg, net_arg, run_arg, vnc_arg,
};
use crate::config::{
    Accel, AccelKind, CharBackend, CharTarget, Check, Config, Display, FwCfgData, NetKind, RebootAction,
    ShutdownAction,
};
use mynah_devices::display::layout;
use mynah_devices::kind::Chosen;
use mynah_firmware::{Kind, identify};
use mynah_net::user::Behind;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Display back ends of QEMU's that a Mynah with a display could have.
const DISPLAYS: &[&str] =
    &["none", "gtk", "sdl", "vnc", "curses", "cocoa", "spice-app", "egl-headless", "dbus"];

/// Video adapters of QEMU's.
const ADAPTERS: &[&str] = &["none", "std", "cirrus", "vmware", "qxl", "virtio", "tcx", "cg3"];

/// The least RAM without a firmware image: the first MiB, and some for tables.
const LEAST_MEMORY: u64 = 2 << 20;

/// What the options say that is no part of the configuration by itself.
#[derive(Default)]
struct Seen {
    accel_from_machine: Vec<Accel>,
    serial: bool,
    /// `-monitor` or `-mon` was given.
    monitor: bool,
    append: bool,
    kernel_option: &'static str,
    snapshot: bool,
    nets: net_arg::Asked,
}

/// Parses the options of `mynah run`, for a program called `program`.
pub fn config(program: &str, args: &[OsString]) -> Result<Config, Error> {
    let mut config = Config { program: program.into(), display: Display::Default, ..Config::default() };
    let mut seen = Seen { kernel_option: "-kernel", ..Seen::default() };
    for given in parse(args)? {
        option(&given, program, &mut config, &mut seen)?;
    }
    if config.accel.is_empty() {
        config.accel = std::mem::take(&mut seen.accel_from_machine);
    }
    net_arg::settle(&mut config, std::mem::take(&mut seen.nets))?;
    adapter(&mut config)?;
    drive_arg::settle(&mut config, seen.snapshot)?;
    consoles(&mut config, &seen)?;
    vnc_arg::check(&config)?;
    if config.bios.is_none() && config.memory.size < LEAST_MEMORY {
        return Err(Error::new(format!(
            "-m {}: the built-in firmware needs at least {} of RAM",
            show_size(config.memory.size),
            show_size(LEAST_MEMORY)
        )));
    }
    if config.kernel.is_none() {
        for (is_given, name) in [(config.initrd.is_some(), "-initrd"), (seen.append, "-append")] {
            if is_given {
                return Err(Error::new(format!(
                    "{name} needs a -kernel: there is nothing it could be given to"
                )));
            }
        }
    }
    Ok(config)
}

fn option(given: &Given, program: &str, config: &mut Config, seen: &mut Seen) -> Result<(), Error> {
    let option = given.option;
    match option.name {
        "h" | "help" => return Err(Error::info(help::run(program))),
        "version" => return Err(Error::info(help::version())),
        _ => {}
    }
    let known = machine_option(given, config, seen)?
        || boot_option(given, config, seen)?
        || console_option(given, config, seen)?
        || device_option(given, config, seen)?
        || run_option(given, config)?;
    debug_assert!(known || option.status == Status::Harmless, "-{} has no handler", option.name);
    Ok(())
}

/// What the machine is. False if it is another option.
fn machine_option(given: &Given, config: &mut Config, seen: &mut Seen) -> Result<bool, Error> {
    match given.option.name {
        "machine" | "M" => {
            let arg = machine_arg::machine(given.text()?, &mut config.machine)?;
            seen.accel_from_machine.extend(arg.accel);
            for (key, value) in arg.boot {
                match key {
                    "kernel" => {
                        (config.kernel, seen.kernel_option) = (Some(value.into()), "-machine kernel=")
                    }
                    "initrd" => config.initrd = Some(value),
                    "append" => (config.append, seen.append) = (value, true),
                    _ => config.bios = Some(value.into()),
                }
            }
        }
        "cpu" => config.cpu = cpu_arg::cpu(given.text()?)?,
        "accel" => {
            let accel = machine_arg::accel(given.text()?)?;
            if let Some((_, value)) = accel.properties.iter().find(|(k, _)| k == "check") {
                config.check = match value.as_str() {
                    "on" | "yes" | "true" => Check::On,
                    "off" | "no" | "false" => Check::Off,
                    "all" => Check::All,
                    v => return Err(Error::new(format!("-accel jit,check={v}: on, off or all"))),
                };
            }
            if let Some((_, value)) = accel.properties.iter().find(|(k, _)| k == "kernel-irqchip") {
                config.machine.kernel_irqchip = Some(machine_arg::kernel_irqchip("-accel kvm,", value)?);
            }
            machine_arg::compiled_code(&accel, config)?;
            config.accel.push(accel);
        }
        "enable-kvm" => config.accel.push(Accel { kind: AccelKind::Kvm, properties: Vec::new() }),
        "smp" => config.smp = machine_arg::smp(given.text()?)?,
        "m" => config.memory = machine_arg::memory(given.text()?)?,
        "rtc" => run_arg::rtc(given.text()?, &mut config.rtc)?,
        "no-acpi" => config.machine.acpi = false,
        "no-hpet" => {
            config.machine.choose("hpet", false).map_err(|e| Error::new(format!("-no-hpet: {e}")))?
        }
        "name" => config.name = Some(guest_name(given.text()?)),
        "uuid" => config.uuid = Some(run_arg::uuid(given.text()?)?),
        "seed" => {
            let text = given.text()?;
            let seed = number_from(text, 0, u64::MAX);
            config.seed = Some(seed.map_err(|why| Error::new(format!("-seed {text}: {why}")))?);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// What it starts from. False if it is another option.
fn boot_option(given: &Given, config: &mut Config, seen: &mut Seen) -> Result<bool, Error> {
    let path = || PathBuf::from(&given.value);
    match given.option.name {
        "kernel" => (config.kernel, seen.kernel_option) = (Some(path()), "-kernel"),
        "initrd" => config.initrd = Some(given.text()?.into()),
        "append" => (config.append, seen.append) = (given.text()?.into(), true),
        "bios" => config.bios = Some(path()),
        "L" if given.value == "help" => return Err(Error::info(FIRMWARE_DIRS.join("\n") + "\n")),
        "L" => config.firmware_dirs.push(path()),
        "boot" => run_arg::boot(given.text()?, &mut config.boot)?,
        "fw_cfg" => config.fw_cfg.push(run_arg::fw_cfg(given.text()?)?),
        "object" => object(given.text()?, config)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// `-object`.
fn object(text: &str, config: &mut Config) -> Result<(), Error> {
    let kind = text.split(',').next().unwrap_or_default();
    let kind = kind.strip_prefix("qom-type=").unwrap_or(kind);
    if kind.starts_with("filter-") {
        config.net_filters.push(net_arg::filter(text)?);
        return Ok(());
    }
    if kind != "throttle-group" {
        config.secrets.push(vnc_arg::secret(text)?);
        return Ok(());
    }
    let group = drive_arg::throttle_group(text)?;
    if config.throttle_groups.iter().any(|(name, _)| *name == group.0) {
        return Err(Error::new(format!("-object throttle-group: there are two with the id '{}'", group.0)));
    }
    config.throttle_groups.push(group);
    Ok(())
}

/// Its consoles and displays. False if it is another option.
fn console_option(given: &Given, config: &mut Config, seen: &mut Seen) -> Result<bool, Error> {
    let target = || char_arg::target(&given.dashed(), given.text()?);
    match given.option.name {
        "nographic" => config.nographic = true,
        "serial" => {
            seen.serial = true;
            config.serials.push(target()?);
        }
        "monitor" => {
            seen.monitor = true;
            config.monitors.extend(Some(target()?).filter(|m| m.backend != CharBackend::None));
        }
        "mon" => {
            seen.monitor = true;
            config.monitors.push(char_arg::mon(given.text()?)?);
        }
        "debugcon" => config.debugcons.push(target()?),
        "chardev" => {
            let chardev = char_arg::chardev(given.text()?)?;
            if config.chardevs.iter().any(|c| c.id == chardev.id) {
                return Err(Error::new(format!("-chardev: there are two with the id '{}'", chardev.id)));
            }
            config.chardevs.push(chardev);
        }
        "parallel" => {
            let target = target()?;
            if !matches!(target.backend, CharBackend::None | CharBackend::Null) {
                return Err(Error::new(format!(
                    "-parallel {}: a parallel port is not supported yet",
                    target.spec
                )));
            }
        }
        "echr" => config.escape = run_arg::escape(given.text()?)?,
        "vnc" => config.vnc = vnc_arg::vnc("-vnc", given.text()?)?,
        "display" => match given.text()?.strip_prefix("vnc=") {
            Some(address) => config.vnc = vnc_arg::vnc("-display vnc=", address)?,
            None => config.display = display(given.text()?)?,
        },
        "curses" => config.display = Display::Curses,
        "k" => config.layout = Some(keyboard_layout(given.text()?)?),
        "vga" => config.vga = Some(word(given, ADAPTERS)?),
        _ => return Ok(false),
    }
    Ok(true)
}

/// What is plugged in. False if it is another option.
fn device_option(given: &Given, config: &mut Config, seen: &mut Seen) -> Result<bool, Error> {
    match given.option.name {
        "nodefaults" => config.no_defaults = true,
        "device" => {
            let device = device_arg::device(given.text()?)?;
            let id = &device.values.id;
            if let Some(id) = id.as_ref().filter(|_| config.devices.iter().any(|d| d.values.id == *id)) {
                return Err(Error::new(format!("-device: there are two with the id '{id}'")));
            }
            config.devices.push(device);
        }
        "drive" => config.drives.push(drive_arg::drive(given.text()?)?),
        "blockdev" => {
            let drive = blockdev_arg::blockdev(given.text()?, &mut config.drives)?;
            config.drives.push(drive);
        }
        "hda" | "hdb" | "hdc" | "hdd" | "cdrom" | "fda" | "fdb" | "pflash" => {
            let name = if given.alone { drive_arg::ALONE } else { given.option.name };
            config.drives.push(drive_arg::plain_drive(name, &given.value));
        }
        "snapshot" => seen.snapshot = true,
        "netdev" => net_arg::netdev(given.text()?, config, &mut seen.nets)?,
        "nic" => net_arg::nic(given.text()?, config, &mut seen.nets)?,
        "net" => net_arg::net(given.text()?, &mut seen.nets)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// How it runs, and what is told of it. False if it is another option.
fn run_option(given: &Given, config: &mut Config) -> Result<bool, Error> {
    let path = || PathBuf::from(&given.value);
    match given.option.name {
        "no-reboot" => config.on_reboot = RebootAction::Shutdown,
        "no-shutdown" => config.on_shutdown = ShutdownAction::Pause,
        "action" => run_arg::action(given.text()?, config)?,
        "watchdog-action" => config.on_watchdog = run_arg::watchdog_action(given.text()?)?,
        "d" => {
            for item in run_arg::log_items(given.text()?)? {
                if !config.log.has(item) {
                    config.log.items.push(item);
                }
            }
        }
        "D" => config.log.file = Some(run_arg::log_file(&given.value)?),
        "dfilter" => config.log.filter.extend(run_arg::log_filter(given.text()?)?),
        "stats" => config.stats = Some(given.text()?.into()),
        "check" => config.check = Check::On,
        "handoff" => config.handoffs.push(machine_arg::handoff(given.text()?)?),
        "perfmap" | "perf-map" => config.perf_map = true,
        "jitdump" => config.jitdump = true,
        "symbols" => config.symbols = Some(path()),
        "pidfile" => config.pidfile = Some(path()),
        "incoming" => config.incoming = Some(given.text()?.into()),
        "restore" => config.incoming = Some(format!("file:{}", given.text()?)),
        "S" => config.start_stopped = true,
        "s" => config.gdb = Some("tcp::1234".into()),
        "gdb" => config.gdb = Some(given.text()?.into()).filter(|g: &String| g != "none"),
        "qmp" => config.qmp.push(given.text()?.into()),
        "icount" => config.icount = Some(given.text()?.into()),
        "daemonize" => config.daemonize = true,
        _ => return Ok(false),
    }
    Ok(true)
}

/// `-name [guest=]NAME[,process=...][,debug-threads=...]`: only the guest's name means something.
fn guest_name(text: &str) -> String {
    let first = crate::config::split_commas(text).into_iter().next().unwrap_or_default();
    first.strip_prefix("guest=").map_or(first.clone(), str::to_string)
}

/// Devices that are display adapters: with one of these there is none by default.
const DISPLAY_DEVICES: &[&str] =
    &["VGA", "secondary-vga", "cirrus-vga", "bochs-display", "virtio-vga", "virtio-gpu-pci", "ramfb"];

/// `-vga`: the adapters that there are stand for a device, which gets the first free slot. A board with PCI has the
/// standard one by default.
fn adapter(config: &mut Config) -> Result<(), Error> {
    let usual = config.machine.board.pci
        && !config.no_defaults
        && !config.devices.iter().any(|d| DISPLAY_DEVICES.contains(&d.kind.name));
    match config.vga.as_deref() {
        None if usual => config.devices.insert(0, device_arg::device("VGA")?),
        None | Some("none") => {}
        Some("std") if config.machine.board.pci => config.devices.insert(0, device_arg::device("VGA")?),
        Some(name) => {
            return Err(Error::new(format!("-vga {name}: not supported yet; there are std and none")));
        }
    }
    Ok(())
}

fn keyboard_layout(text: &str) -> Result<String, Error> {
    if layout::named(text).is_some() {
        return Ok(text.into());
    }
    let names: Vec<&str> = layout::LAYOUTS.iter().map(|l| l.name).collect();
    let hint = did_you_mean("", text, names.iter().copied());
    Err(Error::new(format!("-k {text}: there is no such layout{hint}; there are {}", names.join(", "))))
}

fn display(text: &str) -> Result<Display, Error> {
    let kind = text.split(',').next().unwrap_or_default();
    if kind == "help" || kind == "?" {
        return Err(Error::info("Displays:\n  none\n  curses\n  vnc=[HOST]:DISPLAY\n"));
    }
    match kind {
        "none" => Ok(Display::None),
        "curses" => Ok(Display::Curses),
        _ if DISPLAYS.contains(&kind) => Ok(Display::Other(text.into())),
        _ => {
            let hint = did_you_mean("", kind, DISPLAYS.iter().copied());
            let hint = if hint.is_empty() { " (accepted: none, curses, vnc=:N)".into() } else { hint };
            Err(Error::new(format!("-display {text}: unknown display '{kind}'{hint}")))
        }
    }
}

fn word(given: &Given, words: &[&str]) -> Result<String, Error> {
    let text = given.text()?;
    if words.contains(&text) {
        return Ok(text.into());
    }
    let hint = did_you_mean("", text, words.iter().copied());
    let hint = if hint.is_empty() { format!(" (accepted: {})", words.join(", ")) } else { hint };
    Err(Error::new(format!("{} {text}: unknown value{hint}", given.dashed())))
}

/// Where serial port and monitor go when nothing, or `-nographic`, says so; and that the terminal has one user.
fn consoles(config: &mut Config, seen: &Seen) -> Result<(), Error> {
    let stdio = || CharTarget::new("stdio", CharBackend::Stdio { signal: true });
    // A monitor on a serial port's stream (`mon:`) is the monitor.
    let muxed = config.serials.iter().any(|s| s.mux);
    let default_serial =
        !seen.serial && !config.no_defaults && !has_serial_device(config) && config.machine.serials() > 0;
    let default_monitor = !seen.monitor && !muxed && !config.no_defaults;
    match (config.nographic, default_serial, default_monitor) {
        (true, true, true) => config.serials.push(CharTarget::console()),
        (true, true, false) => config.serials.push(stdio()),
        (true, false, true) => config.monitors.push(stdio()),
        // Text consoles on a display.
        (false, serial, monitor) => {
            let vc = || CharTarget::new("vc", CharBackend::Vc);
            if serial {
                config.serials.push(vc());
            }
            if monitor {
                config.monitors.push(vc());
            }
        }
        (true, false, false) => {}
    }
    let mut users: Vec<String> = Vec::new();
    let mut named: Vec<&str> = Vec::new();
    let mut note = |what: &str, target: &CharTarget| {
        if matches!(target.backend, CharBackend::Stdio { .. }) {
            users.push(format!("{what} {}", target.spec));
        }
    };
    for target in &config.serials {
        note("-serial", target);
    }
    for debugcon in &config.debugcons {
        note("-debugcon", debugcon);
    }
    for monitor in &config.monitors {
        note("-monitor", monitor);
    }
    if config.display == Display::Curses {
        note("-display", &CharTarget::new("curses", CharBackend::Stdio { signal: false }));
    }
    for chardev in &config.chardevs {
        note("-chardev", &CharTarget::new(&format!("stdio,id={}", chardev.id), chardev.backend.clone()));
    }
    if users.len() > 1 {
        let because = if config.nographic { " (-nographic puts serial port and monitor there)" } else { "" };
        return Err(Error::new(format!(
            "only one can have the terminal{because}: {}; 'mon:stdio' shares it between a serial port and the monitor",
            users.join(" and ")
        )));
    }
    let targets = config.serials.iter().chain(&config.debugcons).chain(&config.monitors);
    let ids = targets.filter_map(|t| match &t.backend {
        CharBackend::Chardev(id) => Some(id.as_str()),
        _ => None,
    });
    let users = config.netdevs.iter().filter_map(|n| match &n.kind {
        NetKind::User(user) => Some(&user.guest_forwards),
        _ => None,
    });
    let forwards = users.flatten().filter_map(|f| match &f.to {
        Behind::Chardev(id) => Some(id.as_str()),
        _ => None,
    });
    for id in ids.chain(config.devices.iter().flat_map(Chosen::chardevs)).chain(forwards) {
        let Some(chardev) = config.chardevs.iter().find(|c| c.id == id) else {
            let hint = did_you_mean("", id, config.chardevs.iter().map(|c| c.id.as_str()));
            return Err(Error::new(format!("there is no -chardev with the id '{id}'{hint}")));
        };
        if named.contains(&id) && !chardev.mux {
            return Err(Error::new(format!("-chardev id={id} is used twice; it can be shared with mux=on")));
        }
        named.push(id);
    }
    let (most, wanted) = (config.machine.serials(), config.serials.len());
    if wanted > most {
        let board = config.machine.board.name;
        return Err(Error::new(format!(
            "-serial: the board '{board}' has {most} serial ports, not {wanted}"
        )));
    }
    Ok(())
}

fn has_serial_device(config: &Config) -> bool {
    config.devices.iter().any(|d| d.kind.name == "isa-serial")
}

/// Looks at each file that the machine will read, so that what is wrong with one is said before anything is set up.
pub fn check_files(config: &Config) -> Result<(), Error> {
    if let Some(bios) = &config.bios {
        let found = find_firmware(config, bios);
        check_file("-bios", &found)?;
    }
    if let Some(kernel) = &config.kernel {
        check_file("-kernel", kernel)?;
    }
    if let Some(initrd) = &config.initrd {
        // A Multiboot kernel's modules, unless the whole is a file's name.
        if Path::new(initrd).exists() || !initrd.contains([',', ' ']) {
            check_file("-initrd", Path::new(initrd))?;
        } else {
            for (file, _) in config.modules() {
                check_file("-initrd", &file)?;
            }
        }
    }
    for item in &config.fw_cfg {
        if let FwCfgData::File(file) = &item.data {
            open_file("-fw_cfg", file)?;
        }
    }
    for drive in &config.drives {
        if let Some(file) = &drive.file {
            open_file(&drive.option, file)?;
            refuse_kernel(&drive.option, file)?;
        }
    }
    Ok(())
}

/// An argument that stands alone is a disk image, as with QEMU; many give a kernel so.
fn refuse_kernel(option: &str, path: &Path) -> Result<(), Error> {
    const MOST: u64 = 1 << 30;
    let is_file = std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() <= MOST);
    if option != drive_arg::ALONE || !is_file {
        return Ok(());
    }
    let shown = path.display().to_string();
    match std::fs::read(path).ok().and_then(|image| identify(&shown, &image).ok()) {
        Some(kind) => {
            let what = match kind {
                Kind::Linux => "Linux",
                Kind::Pvh => "PVH",
                Kind::Multiboot1 | Kind::Multiboot2 => "Multiboot",
            };
            Err(Error::new(format!(
                "{option} {shown}: that is a kernel ({what}), which is given with -kernel {shown}"
            )))
        }
        None => Ok(()),
    }
}

/// Folders in which distributions put firmware.
const FIRMWARE_DIRS: [&str; 5] = [
    "/usr/share/seabios",
    "/usr/share/qemu",
    "/usr/share/ovmf",
    "/usr/lib/ipxe/qemu",
    "/usr/share/ipxe/qemu",
];

/// The file that `-bios NAME` means: `NAME` itself, or else in one of the folders of `-L`, or where distributions put
/// it.
pub fn find_firmware(config: &Config, name: &Path) -> PathBuf {
    if name.exists() {
        return name.into();
    }
    let usual = FIRMWARE_DIRS.iter().map(Path::new);
    let folders = config.firmware_dirs.iter().map(PathBuf::as_path).chain(usual);
    folders.map(|dir| dir.join(name)).find(|f| f.exists()).unwrap_or_else(|| name.into())
}

fn open_file(option: &str, path: &Path) -> Result<File, Error> {
    let shown = path.display();
    let because = |why: std::io::Error| {
        let why = match why.kind() {
            std::io::ErrorKind::NotFound => "there is no such file".into(),
            std::io::ErrorKind::PermissionDenied => "it may not be read (permission denied)".into(),
            _ => why.to_string(),
        };
        Error::new(format!("{option} {shown}: {why}"))
    };
    if path.as_os_str().is_empty() {
        return Err(Error::new(format!("{option}: the file's name is empty")));
    }
    let meta = std::fs::metadata(path).map_err(because)?;
    if meta.is_dir() {
        return Err(Error::new(format!("{option} {shown}: that is a directory, not a file")));
    }
    File::open(path).map_err(because)
}

/// A file must open, be no directory and no device, and hold something.
fn check_file(option: &str, path: &Path) -> Result<(), Error> {
    if let Ok(meta) = std::fs::metadata(path)
        && !meta.is_file()
        && !meta.is_dir()
    {
        // A pipe's bytes must stay for whoever reads it in earnest; a device may go on for ever.
        #[cfg(unix)]
        let pipe = std::os::unix::fs::FileTypeExt::is_fifo(&meta.file_type());
        #[cfg(windows)]
        let pipe = false;
        return match pipe {
            true => Ok(()),
            false => Err(Error::new(format!("{option} {}: that is a device, not a file", path.display()))),
        };
    }
    let mut file = open_file(option, path)?;
    match file.read(&mut [0]) {
        Ok(0) => Err(Error::new(format!("{option} {}: the file is empty", path.display()))),
        Ok(_) => Ok(()),
        Err(why) => Err(Error::new(format!("{option} {}: {why}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::OPTIONS;
    use super::*;
    use crate::config::{LogItem, RtcBase};

    fn of(words: &[&str]) -> Config {
        config("mynah", &words.iter().map(OsString::from).collect::<Vec<_>>())
            .unwrap_or_else(|e| panic!("{e}"))
    }

    fn error(words: &[&str]) -> String {
        config("mynah", &words.iter().map(OsString::from).collect::<Vec<_>>()).unwrap_err().to_string()
    }

    /// What an option's example does not make sense without.
    fn needs(option: &str) -> &'static [&'static str] {
        match option {
            "initrd" | "append" => &["-kernel", "k"],
            "mon" => &["-chardev", "null,id=c0"],
            "snapshot" => &["-hda", "disk.img"],
            _ => &[],
        }
    }

    #[test]
    fn every_option_takes_its_own_example() {
        for option in OPTIONS.iter().filter(|o| o.status != Status::Later) {
            let dashed = format!("-{}", option.name);
            let mut words: Vec<&str> = vec![&dashed];
            words.extend(option.example);
            words.extend(needs(option.name));
            let words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
            match config("mynah", &words) {
                Ok(_) => assert_ne!(option.name, "help"),
                Err(e) => assert!(
                    e.is_info() && option.group == super::super::options::Group::Info,
                    "{dashed}: {e}"
                ),
            }
        }
    }

    #[test]
    fn every_supported_option_changes_the_configuration() {
        let same_by_default = ["parallel", "machine", "M", "smp", "display", "enable-kvm", "seed"];
        for option in OPTIONS.iter().filter(|o| matches!(o.status, Status::Supported | Status::Parsed)) {
            if option.group == super::super::options::Group::Info
                || same_by_default[..5].contains(&option.name)
            {
                continue;
            }
            let dashed = format!("-{}", option.name);
            let base = needs(option.name);
            let mut words = base.to_vec();
            words.push(&dashed);
            words.extend(option.example);
            assert_ne!(of(&words), of(base), "{dashed} is silently ignored");
        }
    }

    #[test]
    fn every_refused_option_is_refused_by_name() {
        for option in OPTIONS.iter().filter(|o| o.status == Status::Later) {
            let dashed = format!("-{}", option.name);
            let why = error(&[&dashed, option.example.unwrap_or("x")]);
            assert!(why.starts_with(&format!("{dashed} (")) && why.ends_with("not supported yet"), "{why}");
        }
    }

    #[test]
    fn the_usual_linux_boot() {
        let c = of(&[
            "-m",
            "1G",
            "-cpu",
            "max",
            "-accel",
            "interp",
            "-kernel",
            "vmlinuz",
            "-initrd",
            "initrd.img",
            "-append",
            "console=ttyS0 panic=-1",
            "-nographic",
            "-no-reboot",
            "-nic",
            "none",
            "-device",
            "isa-debug-exit,iobase=0xf4,iosize=0x04",
            "-d",
            "int,guest_errors",
            "-D",
            "log",
        ]);
        assert_eq!(c.memory.size, 1 << 30);
        assert_eq!(c.cpu.model, "max");
        assert_eq!(c.append, "console=ttyS0 panic=-1");
        assert_eq!(c.serials, [CharTarget::console()]);
        assert_eq!(c.monitors, []);
        assert_eq!(c.on_reboot, RebootAction::Shutdown);
        let exit = c.devices.iter().find(|d| d.kind.name == "isa-debug-exit").unwrap();
        assert_eq!(exit.values.number("iobase"), Some(0xf4));
        assert!(c.log.has(LogItem::GuestErrors) && c.log.file == Some("log".into()));
        c.refuse_unbuilt().unwrap();
    }

    #[test]
    fn nographic_gives_the_terminal_to_what_has_no_place_yet() {
        assert_eq!(of(&["-nographic"]).serials, [CharTarget::console()]);
        let c = of(&["-nographic", "-serial", "file:log"]);
        assert_eq!(c.monitors[0].spec, "stdio");
        let c = of(&["-nographic", "-monitor", "none"]);
        assert_eq!((c.serials[0].spec.as_str(), c.serials[0].mux, c.monitors.len()), ("stdio", false, 0));
        let c = of(&["-nographic", "-serial", "mon:stdio"]);
        assert_eq!((c.serials.len(), c.monitors.len()), (1, 0));
        let c = of(&["-nographic", "-nodefaults"]);
        assert_eq!((c.serials.len(), c.monitors.len()), (0, 0));
        let c = of(&[
            "-nographic",
            "-chardev",
            "null,id=c",
            "-device",
            "isa-serial,chardev=c",
            "-monitor",
            "none",
        ]);
        assert_eq!(c.serials.len(), 0);
    }

    #[test]
    fn without_a_display_the_default_consoles_are_on_it_all_the_same() {
        let c = of(&["-display", "none"]);
        assert_eq!(c.serials[0].backend, CharBackend::Vc);
        let c = of(&["-serial", "stdio", "-serial", "null"]);
        assert_eq!(c.serials.len(), 2);
        assert_eq!(c.monitors[0].backend, CharBackend::Vc);
    }

    #[test]
    fn there_may_be_several_monitors() {
        let c = of(&["-monitor", "none", "-nographic"]);
        assert_eq!((c.monitors.len(), c.serials[0].mux), (0, false));
        let c = of(&["-chardev", "pty,id=p", "-mon", "p", "-monitor", "unix:/s,server,nowait"]);
        assert_eq!(
            c.monitors.iter().map(|m| m.spec.as_str()).collect::<Vec<_>>(),
            ["chardev:p", "unix:/s,server,nowait"]
        );
        assert!(error(&["-mon", "p"]).contains("no -chardev with the id 'p'"));
    }

    #[test]
    fn the_terminal_has_one_user() {
        assert_eq!(
            error(&["-serial", "stdio", "-monitor", "stdio"]),
            "only one can have the terminal: -serial stdio and -monitor stdio; 'mon:stdio' shares it between a serial \
             port and the monitor"
        );
        assert!(error(&["-nographic", "-serial", "stdio"]).contains("-nographic puts"));
        assert!(error(&["-serial", "stdio", "-debugcon", "stdio"]).contains("-debugcon stdio"));
    }

    #[test]
    fn named_targets_must_exist_and_are_shared_only_if_they_say_so() {
        of(&["-chardev", "stdio,id=c,mux=on", "-serial", "chardev:c", "-monitor", "chardev:c"]);
        assert_eq!(error(&["-serial", "chardev:c"]), "there is no -chardev with the id 'c'");
        assert!(
            error(&["-chardev", "null,id=c", "-serial", "chardev:c", "-debugcon", "chardev:c"])
                .contains("twice")
        );
        assert!(error(&["-chardev", "null,id=c", "-chardev", "null,id=c"]).contains("two with the id"));
        assert!(error(&["-device", "edu,id=e", "-device", "pvpanic,id=e"]).contains("two with the id 'e'"));
        let two = of(&["-device", "edu", "-device", "edu"]).devices;
        assert_eq!(two.iter().filter(|d| d.kind.name == "edu").count(), 2);
    }

    #[test]
    fn combinations_that_cannot_work_are_refused() {
        assert!(error(&["-append", "x"]).starts_with("-append needs a -kernel"));
        assert!(error(&["-initrd", "x"]).starts_with("-initrd needs a -kernel"));
        assert!(
            error(&[
                "-serial", "null", "-serial", "null", "-serial", "null", "-serial", "null", "-serial", "null"
            ])
            .contains("4 serial ports")
        );
        assert!(error(&["-display", "gkt"]).contains("did you mean 'gtk'?"));
        assert!(error(&["-vga", "sdt"]).contains("did you mean 'std'?"));
        assert!(error(&["-parallel", "pty"]).contains("not supported yet"));
    }

    #[test]
    fn adapters_and_vnc_addresses() {
        let drives = ["ide-cd", "floppy", "e1000"];
        let kinds = |words: &[&str]| {
            let all: Vec<_> = of(words).devices.iter().map(|d| d.kind.name).collect();
            all.into_iter().filter(|kind| !drives.contains(kind)).collect::<Vec<_>>()
        };
        assert_eq!(kinds(&["-vga", "std", "-nodefaults"]), ["VGA"]);
        assert_eq!(kinds(&["-device", "edu"]), ["VGA", "edu"]);
        assert_eq!(kinds(&["-device", "VGA,addr=5"]), ["VGA"]);
        assert!(kinds(&["-vga", "none"]).is_empty() && kinds(&["-nodefaults"]).is_empty());
        assert!(kinds(&["-M", "microvm"]).is_empty());
        let all: Vec<_> = of(&["-device", "edu"]).devices.iter().map(|d| d.kind.name).collect();
        assert_eq!(all[..3], ["VGA", "e1000", "edu"], "slots are taken in this order");
        assert!(kinds(&["-vga", "none", "-nodefaults"]).is_empty());
        assert_eq!(error(&["-vga", "qxl"]), "-vga qxl: not supported yet; there are std and none");
        let vnc = |words: &[&str]| of(words).vnc.map(|vnc| vnc.address.to_string());
        assert_eq!(vnc(&["-vnc", ":1"]), Some("tcp::5901".into()));
        assert_eq!(vnc(&["-display", "vnc=127.0.0.1:2"]), Some("tcp:127.0.0.1:5902".into()));
        assert_eq!(vnc(&["-vnc", "unix:/s"]), Some("unix:/s".into()));
        assert_eq!(vnc(&["-vnc", "none"]), None);
        assert!(error(&["-vnc", ":70000"]).contains("expected HOST:DISPLAY"));
        assert!(error(&["-vnc", ":1,tls-creds=t"]).contains("not supported yet"));
        let c = of(&["-vnc", ":1,password=on,websocket=on,to=9,share=ignore,lossy=on"]).vnc.unwrap();
        assert!(c.password && c.shared && c.more_ports == 9);
        assert_eq!(c.websocket.map(|a| a.to_string()), Some("tcp::5701".into()));
        let c = of(&["-vnc", "127.0.0.1:0,websocket=8080"]).vnc.unwrap();
        assert_eq!(c.websocket.map(|a| a.to_string()), Some("tcp:127.0.0.1:8080".into()));
        assert_eq!((c.password, c.secret), (false, None));
        assert!(error(&["-vnc", ":1,password-secret=s"]).contains("-object secret,id=s"));
        let words = ["-object", "secret,id=s,data=open,,sesame", "-vnc", ":1,password-secret=s"];
        assert_eq!(of(&words).secrets[0].read().unwrap(), b"open,sesame");
    }

    #[test]
    fn the_first_use_of_what_is_missing_is_named() {
        for (words, start) in [
            (&["-smp", "1,maxcpus=2"] as &[&str], "-smp maxcpus"),
            (&["-daemonize"], "-daemonize"),
            (&["-display", "gtk"], "-display gtk"),
            (&["-m", "1G,slots=1,maxmem=2G"], "-m maxmem"),
        ] {
            let why = of(words).refuse_unbuilt().unwrap_err();
            assert!(why.starts_with(start) && why.ends_with("not supported yet"), "{why}");
        }
        of(&["-nic", "none", "-net", "none", "-vga", "none", "-smp", "1", "-m", "64G"])
            .refuse_unbuilt()
            .unwrap();
    }

    #[test]
    fn engines_of_accel_go_before_those_of_machine() {
        let kinds = |words: &[&str]| of(words).accel.iter().map(|a| a.kind).collect::<Vec<_>>();
        assert_eq!(kinds(&["-accel", "kvm", "-accel", "tcg"]), [AccelKind::Kvm, AccelKind::Jit]);
        assert_eq!(kinds(&["-machine", "pc,accel=kvm:tcg"]), [AccelKind::Kvm, AccelKind::Jit]);
        assert_eq!(kinds(&["-machine", "accel=kvm", "-accel", "interp"]), [AccelKind::Interp]);
        assert_eq!(kinds(&["-enable-kvm"]), [AccelKind::Kvm]);
    }

    #[test]
    fn small_things() {
        let c =
            of(&["-name", "guest=a,debug-threads=on", "-rtc", "base=localtime", "-echr", "20", "-seed", "7"]);
        assert_eq!(
            (c.name.as_deref(), c.rtc.base, c.escape, c.seed),
            (Some("a"), RtcBase::LocalTime, 20, Some(7))
        );
        assert_eq!(error(&["-seed", "x"]), "-seed x: 'x' is not a number from 0 to 18446744073709551615");
    }

    #[test]
    fn the_translator_is_looked_into_by_our_names_and_qemus() {
        for words in [["--perf-map", "--jitdump"], ["-perfmap", "-jitdump"]] {
            let c = of(&words);
            assert!(c.perf_map && c.jitdump);
        }
        let c = of(&["--symbols", "vmlinux", "--check", "-d", "in_asm,ir,out_asm,exec,int,cpu"]);
        assert_eq!((c.symbols.as_deref(), c.check), (Some(Path::new("vmlinux")), Check::On));
        assert_eq!(c.log.items.len(), 6);
    }

    #[test]
    fn the_built_in_firmware_has_a_least_size_of_ram() {
        assert_eq!(
            error(&["-kernel", "k", "-m", "1"]),
            "-m 1 MiB: the built-in firmware needs at least 2 MiB of RAM"
        );
        assert_eq!(of(&["-kernel", "k", "-m", "2"]).memory.size, 2 << 20);
        assert_eq!(of(&["-bios", "b", "-m", "1"]).memory.size, 1 << 20);
    }

    #[test]
    fn a_kernel_without_its_option_is_told_of() {
        let path = std::env::temp_dir().join(format!("mynah-cli-kernel-{}", std::process::id()));
        let shown = path.to_str().unwrap();
        std::fs::write(&path, mynah_guests::embedded::image().unwrap()).unwrap();
        let why = check_files(&of(&[shown])).unwrap_err().to_string();
        assert!(why.starts_with(&format!("the lone argument {shown}: that is a kernel (")), "{why}");
        assert!(why.ends_with(&format!("given with -kernel {shown}")), "{why}");
        // As a disk's image it may be anything.
        check_files(&of(&["-hda", shown])).unwrap();
        std::fs::write(&path, "no kernel").unwrap();
        check_files(&of(&[shown])).unwrap();
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn files_are_looked_at_before_anything_starts() {
        let dir = std::env::temp_dir().join(format!("mynah-cli-test-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let empty = dir.join("empty");
        let full = dir.join("full");
        std::fs::write(&empty, b"").unwrap();
        std::fs::write(&full, b"x").unwrap();
        let check = |words: &[&str]| check_files(&of(words)).map_err(|e| e.to_string());
        let (dir_s, empty_s, full_s) =
            (dir.to_str().unwrap(), empty.to_str().unwrap(), full.to_str().unwrap());
        check(&["-kernel", full_s]).unwrap();
        assert_eq!(check(&["-kernel", "/no/such"]).unwrap_err(), "-kernel /no/such: there is no such file");
        assert!(check(&["-kernel", dir_s]).unwrap_err().ends_with("that is a directory, not a file"));
        assert!(check(&["-kernel", "/dev/zero"]).unwrap_err().ends_with("that is a device, not a file"));
        assert!(check(&["-kernel", empty_s]).unwrap_err().ends_with("the file is empty"));
        assert_eq!(check(&["-kernel", ""]).unwrap_err(), "-kernel: the file's name is empty");
        assert!(check(&["-kernel", full_s, "-initrd", empty_s]).unwrap_err().starts_with("-initrd "));
        let modules = format!("{full_s} arg,/no/such");
        assert!(
            check(&["-kernel", full_s, "-initrd", &modules]).unwrap_err().starts_with("-initrd /no/such")
        );
        assert!(check(&["-bios", "full", "-L", dir_s]).is_ok());
        assert!(check(&["-bios", "fuller", "-L", dir_s]).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
