//! Saved machines that somebody has changed: states of chips and vCPUs, RAM and what the file says of itself, with all
//! checksums right (or not). Each is restored, runs if it is not refused, and is asked and told things.
//!
//! The file's layout is that of the head of `src/machine/saved.rs`.
use crate::guest::Guest;
use crate::machine::{PATIENCE, RAM, Setup};
use crate::{Engine, Profile};
use anyhow::{Context, ensure};
use mynah::cli::build;
use mynah::config::Config;
use mynah::machine::board::{Board, Firmware};
use mynah::machine::power::Power;
use mynah::machine::saved::{Head, VERSION};
use mynah::machine::vcpu::VcpuHandle;
use mynah::machine::{Handle, Machine};
use mynah_cpu::{Cpu, CpuModel, CpuV2, World};
use mynah_devices::device::{Saved, encode};
use mynah_mmu::{GuestRam, PhysMemory};
use mynah_oracle::rng::Rng;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::Xxh3;

const PREFIX: usize = 64;
const ALIGN: u64 = 2 << 20;
const PAGE: usize = 4096;
const BLOCK: usize = 64 * PAGE;
/// Cases that change one and the same machine.
const TURN: u64 = 25;

/// A saved machine, taken apart.
#[derive(Clone)]
struct Parts {
    head: Head,
    ram: Vec<u8>,
}

/// A folder for this process's files.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn get() -> &'static Folder {
        static FOLDER: OnceLock<Folder> = OnceLock::new();
        FOLDER.get_or_init(|| {
            let path = folder_of(std::process::id());
            let _ = std::fs::create_dir_all(&path);
            Folder(path)
        })
    }

    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> anyhow::Result<String> {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).with_context(|| path.display().to_string())?;
        Ok(path.display().to_string())
    }
}

pub(crate) fn folder_of(process: u32) -> PathBuf {
    std::env::temp_dir().join(format!("mynah-hostile-{process}"))
}

/// Removes the files of a process that has ended.
pub fn clean(process: u32) {
    let _ = std::fs::remove_dir_all(folder_of(process));
}

/// The options of the machine: all devices that there are, and the built-in BIOS or a ROM.
fn config(setup: Setup, built_in: bool, rom: &[u8]) -> anyhow::Result<Config> {
    let folder = Folder::get();
    let (option, image) = match built_in {
        true => ("-kernel", folder.file("kernel", &mynah_guests::embedded::image()?)?),
        false => ("-bios", folder.file("rom", rom)?),
    };
    let (memory, vcpus) = ((RAM >> 20).to_string(), setup.vcpus.to_string());
    let accel = match setup.engine {
        Engine::Interp => "interp",
        Engine::Jit => "jit,cache=off",
    };
    let mut words = vec!["-m", &memory, "-smp", &vcpus, "-cpu", "max", "-accel", accel, option, &image, "-S"];
    words.extend(["-display", "none", "-serial", "null", "-serial", "null", "-debugcon", "null"]);
    words.extend(["-device", "pvpanic", "-device", "isa-debug-exit"]);
    Ok(build::config("mynah run", &words.into_iter().map(Into::into).collect::<Vec<_>>())?)
}

/// The machine that the cases of a turn change: one that has just been switched on, with a random guest in its RAM
/// that is about to begin.
fn original(setup: Setup, seed: u64, turn: u64) -> anyhow::Result<(Config, Parts)> {
    let mut rng = Rng::new(seed ^ 0x5a7e, turn);
    let guest = Guest::new(&mut rng, Profile::Hostile, setup.vcpus);
    let cfg = config(setup, rng.chance(50), &guest.rom())?;
    let path = Folder::get().0.join("original");
    let machine = Machine::new(cfg.clone())?;
    let handle = machine.handle();
    let run = std::thread::spawn(move || machine.run());
    let saved = handle.save(&format!("exec:cat > '{}'", path.display()));
    handle.end();
    let _ = run.join();
    saved?;
    let mut parts = Parts::read(&std::fs::read(&path)?)?;

    // The guest, and vCPUs that are about to run it.
    let memory = PhysMemory::new(GuestRam::new(RAM)?, RAM);
    guest.place(&memory);
    let model = Arc::new(CpuModel::parse("max").map_err(anyhow::Error::msg)?);
    let handles: Vec<VcpuHandle> = (0..setup.vcpus)
        .map(|n| VcpuHandle { apic_id: model.apic_id(n as u32), ..Default::default() })
        .collect();
    let world = World::new(handles.iter().map(|h| (h.events.clone(), h.inbox.clone())));
    let power = Arc::new(Power::new(cfg.on_reboot, cfg.on_shutdown, cfg.on_panic, false));
    let rom = Firmware::Image(Arc::new(guest.rom()));
    let board = Board::new(&cfg, memory.clone(), rom, &power, &handles)?;
    for (n, handle) in handles.iter().enumerate() {
        let view = Arc::new(board.view(n));
        let mut cpu = Cpu::new(n as u32, memory.clone(), view, handle.events.clone(), model.clone());
        cpu.join(&world, n);
        guest.enter(&mut cpu, n);
        parts.head.cpus[n] = encode(&format!("cpu{n}"), CpuV2::KIND, CpuV2::VERSION, &cpu.save());
    }
    for page in 0..parts.ram.len() / PAGE {
        let mut bytes = [0; PAGE];
        memory.read((page * PAGE) as u64, &mut bytes);
        if bytes != [0; PAGE] {
            parts.ram[page * PAGE..][..PAGE].copy_from_slice(&bytes);
        }
    }
    parts.head.running = true;
    (0..parts.head.blocks.len()).for_each(|n| parts.sum(n));
    Ok((cfg, parts))
}

impl Parts {
    /// From a file whose RAM is packed.
    fn read(bytes: &[u8]) -> anyhow::Result<Self> {
        ensure!(bytes.len() > PREFIX && bytes[12] == 1, "a machine saved to a pipe is not packed");
        let len = u64::from_le_bytes(bytes[16..24].try_into()?) as usize;
        let head = bytes.get(PREFIX..PREFIX + len).context("the head is cut short")?;
        let head: Head =
            postcard::from_bytes(head).context("Head in tests/hostile is not that of the machine")?;
        let mut ram = vec![0; head.make.ram as usize];
        let mut from = &bytes[PREFIX + len..];
        for (n, (bits, _)) in head.blocks.iter().enumerate() {
            for page in (0..64).filter(|page| bits >> page & 1 != 0) {
                let (bytes, rest) = from.split_at_checked(PAGE).context("RAM is cut short")?;
                ram[n * BLOCK + page * PAGE..][..PAGE].copy_from_slice(bytes);
                from = rest;
            }
        }
        Ok(Self { head, ram })
    }

    fn block(&self, n: usize) -> &[u8] {
        self.ram.get(n * BLOCK..).map_or(&[], |rest| &rest[..BLOCK.min(rest.len())])
    }

    /// Says of block `n` what is true.
    fn sum(&mut self, n: usize) {
        let (mut bits, mut sum) = (0, Xxh3::new());
        for (i, page) in self.block(n).chunks(PAGE).enumerate().filter(|(_, p)| p.iter().any(|b| *b != 0)) {
            bits |= 1 << i;
            sum.update(page);
        }
        self.head.blocks[n] = (bits, sum.digest());
    }

    /// The file, with RAM packed or as it lies; `tamper` may do something to the head's bytes.
    fn write(&self, path: &Path, packed: bool, tamper: impl FnOnce(&mut Vec<u8>)) -> anyhow::Result<()> {
        let mut head = postcard::to_stdvec(&self.head)?;
        tamper(&mut head);
        let at = if packed { 0 } else { (PREFIX as u64 + head.len() as u64).next_multiple_of(ALIGN) };
        let mut bytes = b"MYNAHSAV".to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(u32::from(packed).to_le_bytes());
        bytes.extend((head.len() as u64).to_le_bytes());
        bytes.extend(at.to_le_bytes());
        let mut digest = blake3::Hasher::new();
        digest.update(&bytes[8..]).update(&head);
        bytes.extend(digest.finalize().as_bytes());
        bytes.extend(head);
        if packed {
            for (n, (bits, _)) in self.head.blocks.iter().enumerate() {
                let pages = self.block(n).chunks(PAGE).enumerate().filter(|(i, _)| bits >> i & 1 != 0);
                pages.for_each(|(_, page)| bytes.extend(page));
            }
        } else {
            bytes.resize(at as usize, 0);
            bytes.extend(&self.ram);
        }
        Ok(std::fs::write(path, bytes)?)
    }
}

/// A number that a check may have been forgotten for.
fn interesting(rng: &mut Rng) -> u64 {
    match rng.below(6) {
        0 => rng.below(300),
        1 => u64::MAX - rng.below(3),
        2 => 1 << rng.below(64),
        3 => (1u64 << rng.below(64)).wrapping_sub(1),
        4 => u64::from(u32::MAX) + rng.below(3),
        _ => rng.u64(),
    }
}

/// Changes bytes in postcard's encoding: some in place, and numbers of any length for others.
fn change_bytes(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let more = if rng.chance(25) { rng.below(4) } else { 0 };
    for _ in 0..1 + more {
        if bytes.is_empty() {
            bytes.push(rng.u64() as u8);
        }
        let at = rng.below(bytes.len() as u64) as usize;
        match rng.below(10) {
            0..3 => bytes[at] ^= 1 << rng.below(8),
            3..5 => bytes[at] = rng.pick(&[0, 1, 2, 0x7f, 0x80, 0xff]),
            5 => bytes[at] = rng.u64() as u8,
            // A number of the encoding, which has seven bits in each byte but the last, for another.
            6..8 => {
                let end = bytes[at..].iter().position(|b| b & 0x80 == 0).map_or(bytes.len(), |n| at + n + 1);
                // Signed numbers are encoded as twice as many, and some times have 128 bits.
                let number = match rng.below(3) {
                    0 => postcard::to_stdvec(&(u128::from(interesting(rng)) << rng.below(65))),
                    1 => postcard::to_stdvec(&(interesting(rng) as i64)),
                    _ => postcard::to_stdvec(&interesting(rng)),
                };
                bytes.splice(at..end, number.unwrap_or_default());
            }
            8 => {
                bytes.remove(at);
            }
            _ => bytes.insert(at, rng.u64() as u8),
        }
    }
}

/// Changes a list of states: one of them, mostly.
fn change_states(rng: &mut Rng, states: &mut Vec<Saved>) {
    if states.is_empty() {
        return;
    }
    let n = rng.below(states.len() as u64) as usize;
    match rng.below(40) {
        0 => _ = states.remove(n),
        1 => states.push(states[n].clone()),
        2 => states[n].version = interesting(rng) as u16,
        3 => states[n].kind.push('x'),
        4 => states[n].name = states[0].name.clone(),
        5 => {
            let other = states[rng.below(states.len() as u64) as usize].state.clone();
            states[n].state = other;
        }
        6 => states[n].state.truncate(rng.below(40) as usize),
        _ => change_bytes(rng, &mut states[n].state),
    }
}

/// Something that is no longer what was saved.
fn change(rng: &mut Rng, parts: &mut Parts) {
    match rng.below(20) {
        0..11 => change_states(rng, &mut parts.head.devices),
        11..15 => change_states(rng, &mut parts.head.cpus),
        15 => parts.head.now = interesting(rng),
        16 => match rng.below(3) {
            0 => parts.head.running ^= true,
            1 => parts.head.asleep ^= true,
            _ => parts.head.make.ram = interesting(rng),
        },
        17 => {
            let n = rng.below(parts.head.blocks.len() as u64) as usize;
            match rng.below(4) {
                0 => parts.head.blocks[n].0 = rng.u64(),
                1 => parts.head.blocks[n].1 = rng.u64(),
                2 => parts.head.blocks.truncate(n),
                _ => parts.head.blocks.push((rng.u64(), 0)),
            }
        }
        _ => {
            for _ in 0..1 + rng.below(100) {
                let at = rng.below(parts.ram.len() as u64) as usize;
                parts.ram[at] = rng.u64() as u8;
                if at / BLOCK < parts.head.blocks.len() {
                    parts.sum(at / BLOCK);
                }
            }
        }
    }
}

/// Any thread has panicked: none may, though some are caught.
static PANICKED: AtomicBool = AtomicBool::new(false);

fn watch_panics() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICKED.store(true, Ordering::SeqCst);
            before(info);
        }));
    });
}

/// Waits for something that need not take long.
fn soon(what: &str, mut done: impl FnMut() -> bool) -> anyhow::Result<()> {
    let since = Instant::now();
    while !done() {
        ensure!(since.elapsed() < PATIENCE, "hang: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// Whether a vCPU's thread is left in this process.
fn vcpus_left() -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let name =
        |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    tasks.map(name).any(|name| name.starts_with("mynah-vcpu"))
}

/// Runs case `case` of run `seed`: whether the machine was one that can go on. An error is a finding.
pub fn run(setup: Setup, seed: u64, case: u64) -> anyhow::Result<bool> {
    /// The turn, and its machine.
    static ORIGINAL: Mutex<Option<(u64, Config, Parts)>> = Mutex::new(None);
    watch_panics();
    let turn = case / TURN;
    let (cfg, mut parts) = {
        let mut original = ORIGINAL.lock().unwrap_or_else(|e| e.into_inner());
        match &*original {
            Some((t, cfg, parts)) if *t == turn => (cfg.clone(), parts.clone()),
            _ => {
                let (cfg, parts) = self::original(setup, seed, turn).context("the machine to be changed")?;
                *original = Some((turn, cfg.clone(), parts.clone()));
                (cfg, parts)
            }
        }
    };
    let mut rng = Rng::new(seed, case);
    // The first one of a turn is as it was: a machine that is refused unchanged is a finding.
    let unchanged = case.is_multiple_of(TURN);
    let (packed, path) = (rng.chance(90), Folder::get().0.join("saved"));
    if !unchanged {
        let more = if rng.chance(30) { rng.below(5) } else { 0 };
        (0..1 + more).for_each(|_| change(&mut rng, &mut parts));
    }
    let raw = !unchanged && rng.chance(10);
    parts.write(&path, packed, |head| {
        if raw {
            change_bytes(&mut rng, head);
        }
    })?;
    if !unchanged && rng.chance(5) {
        // What no checksum can hide.
        let mut bytes = std::fs::read(&path)?;
        let most = if rng.chance(50) { PREFIX } else { bytes.len() };
        let at = rng.below(most as u64) as usize;
        if rng.chance(30) {
            bytes.truncate(at)
        } else {
            bytes[at] = rng.u64() as u8
        };
        std::fs::write(&path, bytes)?;
    }
    let incoming = Some(format!("file:{}", path.display()));
    let restored = match Machine::new(Config { incoming, start_stopped: false, ..cfg }) {
        Ok(machine) => {
            go_on(machine, setup.time, &mut rng)?;
            true
        }
        Err(e) if unchanged => return Err(e.context("a machine that was not changed is refused")),
        Err(_) => false,
    };
    ensure!(!PANICKED.load(Ordering::SeqCst), "a thread has panicked");
    Ok(restored)
}

/// The machine runs for a while, and has things done to it.
fn go_on(machine: Machine, time: Duration, rng: &mut Rng) -> anyhow::Result<()> {
    let handle = machine.handle();
    let run = std::thread::spawn(move || machine.run());
    let _ = handle.resume();
    std::thread::sleep(time / 2);
    disturb(&handle, rng);
    std::thread::sleep(time / 2);
    handle.end();
    soon("the machine does not end", || run.is_finished())?;
    run.join().map_err(|_| anyhow::anyhow!("the machine's thread has panicked"))??;
    soon("a vCPU does not come back", || !vcpus_left())
}

fn disturb(handle: &Handle, rng: &mut Rng) {
    match rng.below(8) {
        0 => _ = handle.save("exec:cat > /dev/null"),
        1 => _ = handle.inspect(),
        2 => handle.reset(),
        3 => _ = handle.wake(),
        4 => handle.power_button(),
        5 => handle.nmi(),
        6 => _ = handle.reports(),
        _ => {}
    }
}
