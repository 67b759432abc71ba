//! The board, RAM, processors and engines: `-machine`, `-m`, `-smp`, `-accel`.

use super::Error;
use super::props::Props;
use super::size::{host_ram, show_size};
use super::suggest::did_you_mean;
use crate::config::{
    Accel, AccelKind, CodeCache, Config, Handoff, HandoffAt, KernelEntry, KernelIrqchip, MAX_MEMORY, Machine,
    Memory, Smp,
};
use crate::machine::boards::{self, Description};
use crate::machine::handoff::LONGEST_TEXT;
use mynah_devices::kind::{Property, Type, Value, Values};
use std::fmt::Write;
use std::time::Duration;

/// The least RAM: the first MiB, which real mode needs.
const MIN_MEMORY: u64 = 1 << 20;

/// RAM is counted in pages.
const PAGE: u64 = 4096;

/// Most processors: APIC ids of eight bits, less the one that means all.
pub const MAX_CPUS: u64 = 255;

/// Parses `-m`.
pub fn memory(text: &str) -> Result<Memory, Error> {
    let mut props = Props::parse(&format!("-m {text}"), text, Some("size"));
    // The host's RAM is a help to know where a size is too large for any guest.
    let with_host = |e: Error| match host_ram().filter(|_| e.to_string().contains("must be")) {
        Some(host) => Error::new(format!("{e}; this host has {}", show_size(host))),
        None => e,
    };
    let size = props.size("size", 1 << 20, MIN_MEMORY, MAX_MEMORY).map_err(with_host)?;
    let slots = props.number("slots", 0, 256)?.unwrap_or(0) as u32;
    let max = props.size("maxmem", 1 << 20, MIN_MEMORY, MAX_MEMORY).map_err(with_host)?;
    let memory = |size: u64| size.next_multiple_of(PAGE);
    let size = memory(size.unwrap_or(crate::config::DEFAULT_MEMORY));
    let max = max.map_or(size, memory);
    if max < size {
        return Err(props.error(format!(
            "maxmem ({}) is less than the size ({})",
            show_size(max),
            show_size(size)
        )));
    }
    if (max > size) != (slots > 0) {
        return Err(props.error("slots and a maxmem above the size go together"));
    }
    props.finish()?;
    Ok(Memory { size, slots, max })
}

/// Parses `-smp`. What is left out is worked out, cores first: `-smp 4` is one socket of four cores.
pub fn smp(text: &str) -> Result<Smp, Error> {
    let mut props = Props::parse(&format!("-smp {text}"), text, Some("cpus"));
    let cpus = props.number("cpus", 1, MAX_CPUS)?;
    let max = props.number("maxcpus", 1, MAX_CPUS)?;
    let sockets = props.number("sockets", 1, MAX_CPUS)?;
    let dies = props.number("dies", 1, MAX_CPUS)?;
    let cores = props.number("cores", 1, MAX_CPUS)?;
    let threads = props.number("threads", 1, MAX_CPUS)?;
    if let Some(clusters) = props.number("clusters", 1, MAX_CPUS)?
        && clusters != 1
    {
        return Err(props.error("a PC has no clusters of cores"));
    }
    let known = |part: Option<u64>| part.unwrap_or(1);
    let wanted = max.or(cpus);
    let dies = known(dies);
    let (sockets, cores, threads) = match (wanted, sockets, cores, threads) {
        (Some(n), sockets, None, threads) => {
            let (sockets, threads) = (known(sockets), known(threads));
            (sockets, (n / (sockets * dies * threads)).max(1), threads)
        }
        (Some(n), None, Some(cores), threads) => {
            let threads = known(threads);
            ((n / (dies * cores * threads)).max(1), cores, threads)
        }
        (Some(n), Some(sockets), Some(cores), None) => {
            (sockets, cores, (n / (sockets * dies * cores)).max(1))
        }
        (_, sockets, cores, threads) => (known(sockets), known(cores), known(threads)),
    };
    let product = sockets * dies * cores * threads;
    let max = max.unwrap_or_else(|| cpus.unwrap_or(product));
    let cpus = cpus.unwrap_or(max);
    if product != max {
        return Err(props.error(format!(
            "{sockets} sockets x {dies} dies x {cores} cores x {threads} threads are {product} processors, not {max}"
        )));
    }
    if cpus > max {
        return Err(props.error(format!("cpus ({cpus}) is more than maxcpus ({max})")));
    }
    if max > MAX_CPUS {
        return Err(props.error(format!("a PC has at most {MAX_CPUS} processors")));
    }
    props.finish()?;
    let n = |v: u64| v as u32;
    Ok(Smp {
        cpus: n(cpus),
        max_cpus: n(max),
        sockets: n(sockets),
        dies: n(dies),
        cores: n(cores),
        threads: n(threads),
    })
}

/// Boards that QEMU has and Mynah has not: refused by name, not as a slip of the fingers.
const LATER: &[(&str, &str)] = &[
    ("isapc", "ISA only"),
    ("none", "an empty board"),
    ("x-remote", "remote devices"),
    ("xenfv", "Xen full virtualization"),
    ("xenpv", "Xen paravirtualization"),
];

/// `-machine help`.
fn list() -> String {
    let mut help = "Boards:\n".to_string();
    for board in boards::ALL {
        let _ = writeln!(help, "  {:12} {}", board.name, board.about);
        for name in board.versioned {
            let _ = writeln!(help, "  {name:12} the same; a version after it ({name}-7.2) changes nothing");
        }
    }
    help + "'-machine NAME,help' tells what can be chosen of one.\n"
}

/// `-machine NAME,help`.
fn describe(board: &Description) -> String {
    let mut text = format!("{}: {}\n", board.name, board.about);
    for p in board.properties.iter().chain(OF_ALL) {
        let default = p.default_value().map(|d| format!(" (default: {d})")).unwrap_or_default();
        let _ = writeln!(text, "  {:13} {:10} {}{default}", p.name, p.kind.to_string(), p.help);
    }
    text + "  kernel-entry  auto, 16, 32, 64  where a Linux kernel is entered (default: auto)\n"
}

/// What can be chosen of every board.
const OF_ALL: &[Property] =
    &[Property { name: "acpi", kind: Type::Switch, default: Some(1), help: "ACPI tables for the guest" }];

/// The board of this name.
fn board(name: &str) -> Result<&'static Description, Error> {
    if let Some(board) = boards::find(name) {
        return Ok(board);
    }
    let names = boards::ALL.iter().map(|b| b.name);
    let there = names.clone().collect::<Vec<_>>().join(", ");
    // A version may follow: -7.2, -2.11.
    let is = |later: &&(&str, &str)| name == later.0 || name.starts_with(&format!("{}-", later.0));
    if let Some((_, what)) = LATER.iter().find(is) {
        return Err(Error::new(format!("-machine {name} ({what}): not supported yet; there are {there}")));
    }
    let hint = did_you_mean("", name, names.chain(LATER.iter().map(|l| l.0)));
    let hint = if hint.is_empty() { format!(" (accepted: {there})") } else { hint };
    Err(Error::new(format!("-machine {name}: unknown board{hint}")))
}

/// What `-machine` gives beside the board: engines from `accel=`, and options that may also stand here.
#[derive(Debug, Default)]
pub struct MachineArg {
    /// Engines, in order.
    pub accel: Vec<Accel>,
    /// `kernel=`, `initrd=`, `append=`, `firmware=`: option and value.
    pub boot: Vec<(&'static str, String)>,
}

/// Parses `-machine`, changing `machine`.
pub fn machine(text: &str, machine: &mut Machine) -> Result<MachineArg, Error> {
    let mut props = Props::parse("-machine", text, Some("type"));
    if let Some(name) = props.text("type")? {
        if name == "help" || name == "?" {
            return Err(Error::info(list()));
        }
        let chosen = board(&name)?;
        if *chosen != *machine.board {
            *machine =
                Machine { board: chosen, chosen: Values::defaults(chosen.properties), ..machine.clone() };
        }
    }
    if props.wants_help() {
        return Err(Error::info(describe(machine.board)));
    }
    let mut arg = MachineArg::default();
    if let Some(names) = props.text("accel")? {
        arg.accel.extend(accels("-machine accel=", &names)?);
    }
    for (key, option) in
        [("kernel", "kernel"), ("initrd", "initrd"), ("append", "append"), ("firmware", "bios")]
    {
        if let Some(value) = props.text(key)? {
            arg.boot.push((option, value));
        }
    }
    // `auto`, QEMU's spelling of the default, is what the board has by itself.
    if let Some(on) = props.switch_or_auto("acpi")? {
        machine.acpi = on.unwrap_or(true);
    }
    for p in machine.board.properties {
        if let Some(on) = props.switch_or_auto(p.name)?
            && let Some(value) = on.map(Value::Switch).or_else(|| p.default_value())
        {
            machine.chosen.values.insert(p.name, value);
        }
    }
    for (key, place) in ["pflash0", "pflash1"].into_iter().zip(&mut machine.pflash) {
        if let Some(id) = props.text(key)? {
            *place = Some(id);
        }
    }
    if let Some(entry) = props.text("kernel-entry")? {
        machine.kernel_entry = match entry.as_str() {
            "auto" => KernelEntry::Auto,
            "16" => KernelEntry::Real,
            "32" => KernelEntry::Protected,
            "64" => KernelEntry::Long,
            _ => {
                return Err(Error::new(format!(
                    "-machine kernel-entry={entry}: accepted are auto, 16, 32, 64"
                )));
            }
        };
    }
    for key in ["kernel-irqchip", "kernel_irqchip"] {
        if let Some(value) = props.text(key)? {
            machine.kernel_irqchip = Some(kernel_irqchip("-machine ", &value)?);
        }
    }
    let refused =
        |key: &str, value: &str| Err(Error::new(format!("-machine {key}={value}: not supported yet")));
    // What there is not cannot be asked for, what always is cannot be left out; `auto` is the default.
    for key in
        ["usb", "nvdimm", "vmport", "smm", "hmat", "sata", "sev", "memory-encryption", "memory-backend"]
    {
        if let Some(value) = props.text(key)?
            && !matches!(value.as_str(), "off" | "auto" | "no" | "false")
        {
            return refused(key, &value);
        }
    }
    for key in ["i8042", "smbus"] {
        if let Some(value) = props.text(key)?
            && !matches!(value.as_str(), "on" | "auto" | "yes" | "true")
        {
            return refused(key, &value);
        }
    }
    // These tune what a guest cannot see.
    props.ignore(&["graphics", "mem-merge", "dump-guest-core", "suppress-vmdesc"]);
    props.finish()?;
    Ok(arg)
}

/// Parses the value of `kernel-irqchip=`, of this option.
pub fn kernel_irqchip(option: &str, value: &str) -> Result<KernelIrqchip, Error> {
    match value {
        "off" => Ok(KernelIrqchip::Off),
        "split" => Ok(KernelIrqchip::Split),
        "on" => Ok(KernelIrqchip::On),
        _ => Err(Error::new(format!("{option}kernel-irqchip={value}: accepted are on, off, split"))),
    }
}

/// Parses a list of engines, as `-machine accel=` has it.
pub fn accels(option: &str, names: &str) -> Result<Vec<Accel>, Error> {
    names
        .split(':')
        .map(|name| Ok(Accel { kind: accel_kind(option, name)?, properties: Vec::new() }))
        .collect()
}

/// Parses `-handoff`.
pub fn handoff(text: &str) -> Result<Handoff, Error> {
    let error = |what: &str| Error::new(format!("-handoff {text}: {what}"));
    const FORM: &str =
        "expected ENGINE@WHEN, where WHEN is 2.5s, insn:1000000, port:0xe8, port:0xe8=1 or text:login:";
    let (name, when) = text.split_once('@').ok_or_else(|| error(FORM))?;
    let kind = match accel_kind("-handoff", name)? {
        AccelKind::Auto => return Err(error("the engine is interp, jit, kvm or hvf")),
        kind => kind,
    };
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    let at = if let Some(text) = when.strip_prefix("text:") {
        if text.is_empty() || text.len() > LONGEST_TEXT {
            return Err(error("a text has 1 to 256 bytes"));
        }
        HandoffAt::Text(text.to_owned())
    } else if let Some(n) = when.strip_prefix("insn:") {
        HandoffAt::Instructions(number(n).ok_or_else(|| error("insn: is followed by a number"))?)
    } else if let Some(port) = when.strip_prefix("port:") {
        let (port, value) = port.split_once('=').map_or((port, None), |(port, value)| (port, Some(value)));
        let bad = || error("port: is followed by a port, 0 to 0xffff, and =VALUE if it is to be that one");
        let value =
            value.map(|v| number(v).and_then(|v| u32::try_from(v).ok()).ok_or_else(bad)).transpose()?;
        HandoffAt::Port(number(port).and_then(|p| u16::try_from(p).ok()).ok_or_else(bad)?, value)
    } else {
        let seconds =
            when.strip_suffix('s').and_then(|s| s.parse::<f64>().ok()).filter(|s| (0.0..1e9).contains(s));
        HandoffAt::Time(Duration::from_secs_f64(seconds.ok_or_else(|| error(FORM))?))
    };
    Ok(Handoff { kind, at })
}

/// Parses `-accel`.
pub fn accel(text: &str) -> Result<Accel, Error> {
    let mut props = Props::parse("-accel", text, Some("accel"));
    let name = props.text("accel")?.unwrap_or_default();
    if name == "help" || name == "?" {
        return Err(Error::info(
            "Engines:\n  auto    KVM or Hypervisor.framework if it is there and fast, else the translator: the default\n  interp  the interpreter\n            \
             tb-size=MIB        memory for decoded code (384, and 128 for each vCPU)\n  \
             jit     the translator (also: tcg)\n            \
             cache=on|off|DIR   where compiled code is kept between runs\n            \
             cache-share=on|off whether guests booted from other files may use it, too (off)\n            \
             cache-size=MIB     what it may take; one guest's files a quarter of that (256)\n            \
             tb-size=MIB        memory for decoded and compiled code (384, and 128 for each vCPU)\n            \
             split-wx=on|off    whether that is never writable where it is executable (on)\n            \
             check=on|off|all   whether it is checked against the interpreter (off)\n  \
             kvm     Linux's KVM\n  hvf     Hypervisor.framework of Intel Macs\n",
        ));
    }
    let kind = accel_kind("-accel", &name)?;
    props.rename(format!("-accel {name}"));
    let all: Vec<_> = props.all().into_iter().filter(|(k, _)| k != "accel").collect();
    let accepted: &[&str] = match kind {
        AccelKind::Auto => &[],
        AccelKind::Interp => &["tb-size"],
        AccelKind::Jit => &[
            "cache",
            "cache-share",
            "cache-size",
            "check",
            "thread",
            "tb-size",
            "one-insn-per-tb",
            "split-wx",
            "igd-passthru",
        ],
        AccelKind::Kvm => &[
            "kernel-irqchip",
            "kvm-shadow-mem",
            "dirty-ring-size",
            "notify-vmexit",
            "notify-window",
            "device",
        ],
        AccelKind::Hvf => &[],
    };
    if let Some((key, _)) = all.iter().find(|(k, _)| !accepted.contains(&k.as_str())) {
        let hint = did_you_mean("", key, accepted.iter().copied());
        let list = if accepted.is_empty() {
            "; it takes no properties".to_string()
        } else {
            format!(" (accepted: {})", accepted.join(", "))
        };
        return Err(
            props.error(format!("unknown property '{key}'{}", if hint.is_empty() { list } else { hint }))
        );
    }
    Ok(Accel { kind, properties: all })
}

/// Most MiB that can be asked for: what a host can address.
const MOST_MIB: u64 = 1 << 27;

/// What `-accel jit` says of compiled code: where it is kept, and how much of it.
pub fn compiled_code(accel: &Accel, config: &mut Config) -> Result<(), Error> {
    let engine = if accel.kind == AccelKind::Interp { "interp" } else { "jit" };
    for (key, value) in &accel.properties {
        // As with QEMU, a size is a number of MiB, and 0 the usual one.
        let size = || match value.parse::<u64>() {
            Ok(0) => Ok(None),
            Ok(n) if n <= MOST_MIB => Ok(Some(n << 20)),
            _ => Err(Error::new(format!(
                "-accel {engine},{key}={value}: that is not a number of MiB from 1 to {MOST_MIB} (0 is the usual one)"
            ))),
        };
        let switch = || match value.as_str() {
            "on" | "yes" | "true" => Ok(true),
            "off" | "no" | "false" => Ok(false),
            _ => Err(Error::new(format!("-accel jit,{key}={value}: expected on or off"))),
        };
        match key.as_str() {
            "cache" => {
                config.code_cache = match value.as_str() {
                    "on" | "yes" | "true" => CodeCache::On,
                    "off" | "no" | "false" => CodeCache::Off,
                    "" => return Err(Error::new("-accel jit,cache=: expected on, off or a folder")),
                    dir => CodeCache::Dir(dir.into()),
                }
            }
            "cache-share" => config.code_cache_share = switch()?,
            "split-wx" => config.split_wx = switch()?,
            "cache-size" => config.code_cache_size = size()?,
            "tb-size" => config.code_memory = size()?,
            _ => {}
        }
    }
    Ok(())
}

fn accel_kind(option: &str, name: &str) -> Result<AccelKind, Error> {
    let space = if option.ends_with('=') { "" } else { " " };
    match name {
        "auto" => Ok(AccelKind::Auto),
        "interp" => Ok(AccelKind::Interp),
        "jit" | "tcg" => Ok(AccelKind::Jit),
        "kvm" => Ok(AccelKind::Kvm),
        "hvf" => Ok(AccelKind::Hvf),
        "xen" | "whpx" | "nvmm" | "hax" | "qtest" => Err(Error::new(format!(
            "{option}{space}{name}: not supported (accepted: auto, interp, jit, tcg, kvm, hvf)"
        ))),
        _ => {
            let hint = did_you_mean("", name, ["auto", "interp", "jit", "tcg", "kvm", "hvf"]);
            let hint =
                if hint.is_empty() { " (accepted: auto, interp, jit, tcg, kvm, hvf)".into() } else { hint };
            Err(Error::new(format!("{option}{space}{name}: unknown engine{hint}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_compiled_code_is_kept_and_how_much() {
        let of = |text: &str| {
            let mut c = Config::default();
            compiled_code(&accel(text).unwrap(), &mut c)
                .map(|()| (c.code_cache, c.code_cache_size, c.code_memory))
        };
        assert_eq!(of("jit").unwrap(), (CodeCache::On, None, None));
        assert_eq!(of("tcg,cache=off,tb-size=32").unwrap(), (CodeCache::Off, None, Some(32 << 20)));
        assert_eq!(of("jit,cache=on,tb-size=0").unwrap(), (CodeCache::On, None, None));
        let dir = of("jit,cache=/var/x,cache-size=64").unwrap();
        assert_eq!(dir, (CodeCache::Dir("/var/x".into()), Some(64 << 20), None));
        for size in ["much", "99999999999", "99999999999999999999", "-1", "1.5", ""] {
            let why = of(&format!("jit,tb-size={size}")).unwrap_err().to_string();
            assert_eq!(
                why,
                format!(
                    "-accel jit,tb-size={size}: that is not a number of MiB from 1 to 134217728 (0 is the usual one)"
                )
            );
        }
        let switches = |text: &str| {
            let mut c = Config::default();
            compiled_code(&accel(text).unwrap(), &mut c).map(|()| (c.code_cache_share, c.split_wx))
        };
        assert_eq!(switches("jit").unwrap(), (false, true));
        assert_eq!(switches("jit,cache-share=on,split-wx=off").unwrap(), (true, false));
        assert!(
            switches("jit,split-wx=maybe")
                .unwrap_err()
                .to_string()
                .contains("split-wx=maybe: expected on or off")
        );
        assert!(of("jit,cache=").unwrap_err().to_string().contains("a folder"));
    }

    #[test]
    fn memory_in_all_its_forms() {
        let plain = |size| Memory { size, slots: 0, max: size };
        assert_eq!(memory("512").unwrap(), plain(512 << 20));
        assert_eq!(memory("2G").unwrap(), plain(2 << 30));
        assert_eq!(memory("size=1.5G").unwrap(), plain(3 << 29));
        assert_eq!(memory("1G,slots=2,maxmem=4G").unwrap(), Memory { size: 1 << 30, slots: 2, max: 4 << 30 });
        assert_eq!(memory("1048577b").unwrap().size, (1 << 20) + 4096, "RAM is whole pages");
    }

    #[test]
    fn bad_memory_names_value_and_limit() {
        for (text, start) in [
            ("0", "-m 0: the size must be from 1 MiB to 4 TiB; this host has "),
            ("100T", "-m 100T: the size must be from 1 MiB to 4 TiB; this host has "),
            ("99999999999E", "-m 99999999999E: the size must be from 1 MiB to 4 TiB"),
        ] {
            let error = memory(text).unwrap_err().to_string();
            assert!(error.starts_with(start), "{error}");
        }
        assert!(memory("lots").unwrap_err().to_string().contains("'lots' is not a size"));
        assert!(memory("-5").unwrap_err().to_string().contains("'-5' is not a size"));
        assert!(memory("1G,maxmem=512M").unwrap_err().to_string().contains("less than the size"));
        assert!(memory("1G,slots=2").unwrap_err().to_string().contains("go together"));
        assert!(memory("1G,slot=2").unwrap_err().to_string().contains("did you mean 'slots'?"));
    }

    #[test]
    fn processors_are_cores_first() {
        let shape = |text: &str| {
            let s = smp(text).unwrap();
            (s.cpus, s.max_cpus, s.sockets, s.cores, s.threads)
        };
        assert_eq!(shape("1"), (1, 1, 1, 1, 1));
        assert_eq!(shape("4"), (4, 4, 1, 4, 1));
        assert_eq!(shape("cpus=8,sockets=2"), (8, 8, 2, 4, 1));
        assert_eq!(shape("8,cores=2,threads=2"), (8, 8, 2, 2, 2));
        assert_eq!(shape("8,sockets=2,cores=2"), (8, 8, 2, 2, 2));
        assert_eq!(shape("sockets=2,cores=3"), (6, 6, 2, 3, 1));
        assert_eq!(shape("2,maxcpus=4"), (2, 4, 1, 4, 1));
        assert_eq!(smp("4,dies=2").unwrap().dies, 2);
    }

    #[test]
    fn impossible_processors_are_refused() {
        assert!(smp("0").unwrap_err().to_string().contains("from 1 to 255"));
        assert!(smp("1000").unwrap_err().to_string().contains("from 1 to 255"));
        assert_eq!(
            smp("4,sockets=3").unwrap_err().to_string(),
            "-smp 4,sockets=3: 3 sockets x 1 dies x 1 cores x 1 threads are 3 processors, not 4"
        );
        assert!(smp("4,maxcpus=2").unwrap_err().to_string().contains("more than maxcpus"));
        assert!(
            smp("sockets=255,cores=255,threads=255,dies=255")
                .unwrap_err()
                .to_string()
                .contains("at most 255")
        );
        assert!(smp("two").unwrap_err().to_string().contains("'two' is not a number"));
    }

    #[test]
    fn boards() {
        for text in ["pc", "pc-i440fx-7.2", "type=pc", "pc,accel=kvm:tcg,usb=off,vmport=off"] {
            machine(text, &mut Machine::default()).unwrap_or_else(|e| panic!("{text}: {e}"));
        }
        let mut m = Machine::default();
        let arg = machine("hpet=off,acpi=off,accel=kvm:tcg,kernel=vmlinuz", &mut m).unwrap();
        assert!(!m.chosen.switch("hpet") && !m.acpi && m.chosen.switch("pit"));
        machine("microvm,rtc=off", &mut m).unwrap();
        assert_eq!((m.board.name, m.chosen.switch("rtc"), m.serials()), ("microvm", false, 1));
        machine("isa-serial=off", &mut m).unwrap();
        assert_eq!((m.board.name, m.chosen.switch("rtc"), m.serials()), ("microvm", false, 0));
        machine("pc", &mut m).unwrap();
        assert!(m.choose("rtc", false).is_err() && m.chosen.switch("hpet") && !m.acpi);
        assert_eq!(arg.accel.iter().map(|a| a.kind).collect::<Vec<_>>(), [AccelKind::Kvm, AccelKind::Jit]);
        assert_eq!(arg.boot, [("kernel", "vmlinuz".to_string())]);
        let error = |t: &str| machine(t, &mut Machine::default()).unwrap_err().to_string();
        assert_eq!(
            error("isapc"),
            "-machine isapc (ISA only): not supported yet; there are pc, q35, microvm"
        );
        assert!(error("xenfv-4.2").contains("not supported yet"));
        assert_eq!(error("pcc"), "-machine pcc: unknown board; did you mean 'pc'?");
        assert!(error("microvm,hpet=on").starts_with("-machine: unknown property 'hpet'"));
        for (help, text) in [("help", "microvm "), ("microvm,help", "isa-serial "), ("pc,help", "hpet ")] {
            let e = machine(help, &mut Machine::default()).unwrap_err();
            assert!(e.is_info() && e.to_string().contains(text), "{e}");
        }
        machine("kernel-entry=16", &mut m).unwrap();
        assert_eq!(m.kernel_entry, KernelEntry::Real);
        assert_eq!(error("kernel-entry=8"), "-machine kernel-entry=8: accepted are auto, 16, 32, 64");
        assert_eq!(error("pc,usb=on"), "-machine usb=on: not supported yet");
        assert_eq!(error("pc,hept=on"), "-machine: unknown property 'hept'; did you mean 'hpet'?");
    }

    #[test]
    fn engines() {
        assert_eq!(accel("interp").unwrap().kind, AccelKind::Interp);
        assert_eq!(accel("tcg,thread=multi").unwrap().kind, AccelKind::Jit);
        assert_eq!(accel("kvm").unwrap().kind, AccelKind::Kvm);
        assert_eq!(
            accel("intrep").unwrap_err().to_string(),
            "-accel intrep: unknown engine; did you mean 'interp'?"
        );
        assert!(accel("xen").unwrap_err().to_string().contains("not supported"));
        assert!(accel("interp,fast=on").unwrap_err().to_string().contains("(accepted: tb-size)"));
        assert!(accel("hvf,fast=on").unwrap_err().to_string().contains("it takes no properties"));
        assert!(accel("tcg,thraed=single").unwrap_err().to_string().contains("did you mean 'thread'?"));
    }
}
