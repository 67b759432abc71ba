//! Looking inside the translator: its log (`-d ir,out_asm`), names for `perf`, counters for the monitor, and the check
//! against the interpreter.
use super::budget::Budget;
use super::power::Power;
use crate::config::{Check, CodeCache, Config, LogItem, exit_code};
use anyhow::Context;
use goblin::elf::Elf;
use iced_x86::Code;
use mynah_cpu::Cpu;
use mynah_cpu::trace::Trace;
use mynah_jit::perf::{Perf, Symbols};
use mynah_jit::tier::{self, Counters, Engine, Folder, Image, Inside, OnDisk, Options, Sink, StoreInfo};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the user wants to see of the translator: opens the files that `cfg` asks for.
fn inside(cfg: &Config, log: Option<&Arc<Trace>>, symbols: Arc<Symbols>) -> anyhow::Result<Inside> {
    let sink = |item: LogItem| {
        let log = log.filter(|_| cfg.log.has(item))?.clone();
        Some(Arc::new(move |lin: u64, text: &str| log.put_at(lin, text)) as Sink)
    };
    let perf = if cfg.perf_map || cfg.jitdump {
        let options = if cfg.perf_map { "-perfmap" } else { "-jitdump" };
        Some(Arc::new(Perf::create(cfg.perf_map, cfg.jitdump, symbols.clone()).context(options)?))
    } else {
        None
    };
    Ok(Inside { ir: sink(LogItem::Ir), asm: sink(LogItem::OutAsm), perf, symbols })
}

/// What the user wants the translator to be like, for a guest of this image.
pub fn options(
    cfg: &Config,
    log: Option<&Arc<Trace>>,
    symbols: Arc<Symbols>,
    image: Image,
) -> anyhow::Result<Options> {
    let folder = match &cfg.code_cache {
        CodeCache::Off => None,
        // Nobody has asked for this one.
        CodeCache::On => cache_folder().and_then(|dir| {
            let unused = |e: &_| tracing::warn!("compiled code is not kept: {}: {e}", dir.display());
            Folder::open(&dir).inspect_err(unused).ok()
        }),
        CodeCache::Dir(dir) => {
            Some(Folder::open(dir).with_context(|| format!("-accel jit,cache={}", dir.display()))?)
        }
    };
    let limit = cfg.code_cache_size.unwrap_or(tier::LIMIT);
    let image = (!cfg.code_cache_share).then_some(image);
    let disk = folder.map(|folder| OnDisk { folder, limit, image });
    let budget = Budget::of(cfg);
    Ok(Options {
        region_bytes: budget.regions,
        baseline_bytes: budget.baseline,
        split_wx: cfg.split_wx,
        disk,
        inside: inside(cfg, log, symbols)?,
        ..Options::default()
    })
}

/// The user's own folder for compiled code: `mynah/jit` in `$XDG_CACHE_HOME`, or in `~/.cache`. Nothing if neither is
/// set, or on Windows, where nothing is kept (docs/hosts.md).
pub fn cache_folder() -> Option<PathBuf> {
    if cfg!(windows) {
        return None;
    }
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(cache.join("mynah").join("jit"))
}

/// The names of the guest's functions, of which there are none if no file was given.
pub fn symbols(cfg: &Config) -> anyhow::Result<Arc<Symbols>> {
    let Some(path) = &cfg.symbols else { return Ok(Arc::default()) };
    let named = || -> anyhow::Result<Symbols> {
        let bytes = std::fs::read(path)?;
        let list = if bytes.starts_with(b"\x7fELF") { of_elf(&bytes)? } else { of_table(&bytes) };
        anyhow::ensure!(
            !list.is_empty(),
            "it names no functions (an ELF file with symbols, or a System.map, is needed)"
        );
        Ok(Symbols::new(list))
    };
    Ok(Arc::new(named().with_context(|| format!("-symbols {}", path.display()))?))
}

/// The functions that an ELF file names: address, size and name.
fn of_elf(bytes: &[u8]) -> anyhow::Result<Vec<(u64, u64, String)>> {
    let elf = Elf::parse(bytes)?;
    let functions = elf.syms.iter().filter(|s| s.is_function() && s.st_value != 0);
    Ok(functions
        .filter_map(|s| Some((s.st_value, s.st_size, elf.strtab.get_at(s.st_name)?.to_owned())))
        .collect())
}

/// Those of a table as `nm` prints it, which is what System.map and /proc/kallsyms are: address, kind and name in a
/// line.
fn of_table(bytes: &[u8]) -> Vec<(u64, u64, String)> {
    let text = String::from_utf8_lossy(bytes);
    let function = |line: &str| {
        let mut words = line.split_whitespace();
        let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
        let address = u64::from_str_radix(address, 16).ok().filter(|&a| a != 0)?;
        matches!(kind, "t" | "T" | "w" | "W").then(|| (address, 0, name.to_owned()))
    };
    text.lines().filter_map(function).collect()
}

/// Has a vCPU's compiled code checked, if that is wanted; the first difference ends the run.
pub fn check(cfg: &Config, cpu: &mut Cpu, power: &Arc<Power>) {
    if cfg.check == Check::Off {
        return;
    }
    let power = power.clone();
    let report = move |text: String| power.end(exit_code::ERROR, Some(text));
    cpu.check_translator(cfg.check == Check::All, Box::new(report));
}

/// A line about what was checked, for the end of the run.
pub fn checked(cpu: &Cpu) -> String {
    let c = cpu.checked();
    format!(
        "check: {} entries of compiled code, {} instructions checked; {} entries could not be, {} were disturbed",
        c.entries, c.instructions, c.unchecked, c.void
    )
}

/// The machine's translator, for the monitor.
#[derive(Clone, Default)]
pub struct Translators(Arc<Mutex<Watched>>);

#[derive(Default)]
struct Watched {
    vcpus: Vec<Arc<Counters>>,
    engine: Option<Arc<Engine>>,
}

impl Translators {
    /// Names the engine.
    pub fn set_engine(&self, engine: &Arc<Engine>) {
        self.0.lock().engine = Some(engine.clone());
    }

    /// Adds what the next vCPU counts.
    pub fn add(&self, counters: Arc<Counters>) {
        self.0.lock().vcpus.push(counters);
    }

    /// What `info jit` says.
    pub fn info(&self) -> String {
        let watched = self.0.lock();
        if watched.vcpus.is_empty() {
            return "there is no translator\n".into();
        }
        let mut text: String = watched.vcpus.iter().enumerate().map(|(n, c)| info(n, c)).collect();
        if let Some(engine) = &watched.engine {
            text.push_str(&store_info(&engine.info()));
        }
        text
    }
}

/// What there is to say of what was kept.
fn store_info(i: &StoreInfo) -> String {
    let mut s = format!(
        "code: {} KiB of memory; {} regions shared between vCPUs and places; {} times the oldest MiB was given up\n",
        i.code_bytes >> 10,
        i.shared,
        i.given_up
    );
    let _ = match &i.disk {
        None => writeln!(s, "cache: off"),
        Some(d) => writeln!(
            s,
            "cache: {} regions on disk; {} hits ({} bytes of code), {} misses; {} damaged regions, {} refused files; {} regions ({} bytes) written",
            d.regions, d.hits, d.read, d.misses, d.damaged, d.refused, d.written, d.written_bytes
        ),
    };
    s
}

/// What there is to say of a vCPU's translator.
fn info(vcpu: usize, c: &Counters) -> String {
    let n = |v: &AtomicU64| v.load(Ordering::Relaxed);
    let mut s = format!("vCPU {vcpu}:\n");
    let compiled = |s: &mut String, what: &str, one: &str, number: u64, nanos: u64, guest: u64, host: u64| {
        let us = nanos as f64 / 1e3;
        let _ = writeln!(
            s,
            "  {what}: {number} {one}s compiled in {:.0} ms ({:.1} us each); {guest} guest instructions ({:.1} each) in {host} bytes of host code ({:.1} an instruction)",
            us / 1e3,
            us / number.max(1) as f64,
            guest as f64 / number.max(1) as f64,
            host as f64 / guest.max(1) as f64
        );
    };
    let (guest, host) = (n(&c.block_instructions), n(&c.block_bytes));
    compiled(&mut s, "baseline", "block", n(&c.blocks), n(&c.block_nanos), guest, host);
    let _ = writeln!(
        s,
        "    {} compiled again, to remember translations; {} accesses that forget them too often do so no more; {} had to ask the TLB",
        n(&c.placed),
        n(&c.unplaced),
        n(&c.missed)
    );
    let (guest, host) = (n(&c.instructions), n(&c.bytes));
    compiled(&mut s, "Cranelift", "region", n(&c.compiled), n(&c.nanos), guest, host);
    let _ = writeln!(
        s,
        "    {} installed, {} of them known before; not compiled: {} refused, {} put off; too late: {}; dropped from a full queue: {}",
        n(&c.installed),
        n(&c.known),
        n(&c.refused),
        n(&c.put_off),
        n(&c.late),
        n(&c.full)
    );
    let (instructions, ways) = *c.running.lock();
    let entries: u64 = ways.iter().sum();
    let in_code = n(&c.in_code);
    let _ = writeln!(
        s,
        "  executed: {instructions} instructions, {:.2} % of them in compiled code; {entries} times entered from outside, {:.1} instructions each time",
        in_code as f64 * 100.0 / instructions.max(1) as f64,
        in_code as f64 / entries.max(1) as f64
    );
    let names = ["", "no code there", "event", "interpret", "stopped in a call", "code changed", "hot", ""];
    let ways: Vec<String> = names
        .iter()
        .zip(ways)
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, ways)| format!("{name} {ways} ({:.1} %)", ways as f64 * 100.0 / entries.max(1) as f64))
        .collect();
    let _ = writeln!(s, "  left: {}", ways.join(", "));
    let _ = writeln!(s, "  interpreted by calls from the baseline: {}", most(&c.block_called.lock()));
    let _ = writeln!(s, "  interpreted by calls from Cranelift's code: {}", most(&c.called.lock()));
    s
}

/// The instructions that most calls are of in the code, with how many.
fn most(called: &HashMap<u16, u64>) -> String {
    let mut called: Vec<(u16, u64)> = called.iter().map(|(&c, &n)| (c, n)).collect();
    called.sort_by_key(|&(code, n)| (std::cmp::Reverse(n), code));
    let name = |&(code, n): &(u16, u64)| match Code::try_from(usize::from(code)) {
        Ok(c) => format!("{c:?} {n}"),
        Err(_) => format!("{code} {n}"),
    };
    called.iter().take(16).map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_symbols_names_functions_only() {
        let table = b"0000000000000000 A fixed_percpu_data\n\
            ffffffff81000000 T startup_64\nffffffff81000110 t early_setup\nffffffff82000000 D data\nffffffffc0000000 t probe\t[virtio_net]\n?\n";
        let names: Vec<String> = of_table(table).into_iter().map(|(a, _, n)| format!("{a:x} {n}")).collect();
        assert_eq!(
            names,
            ["ffffffff81000000 startup_64", "ffffffff81000110 early_setup", "ffffffffc0000000 probe"]
        );
    }
}
