//! A saved machine: the file that `migrate` writes and `-incoming` reads.
//!
//! ```text
//!   0    8  "MYNAHSAV"
//!   8    4  version of this layout: 3
//!   12   4  0: RAM as it lies in the guest, with holes where it is zero; 1: only what is not zero, piece after piece
//!   16   8  bytes of the head
//!   24   8  where RAM begins in the file, a multiple of 2 MiB (layout 0)
//!   32  32  BLAKE3 of bytes 8 to 31 and the head
//!   64      the head ([`Head`], postcard's encoding)
//! ```
//!
//! All numbers are little-endian. RAM is told of in blocks of 64 pages: which of them are not zero, and an XXH3 (64
//! bits) of these. Layout 0 is read by several threads at once; layout 1 is for what cannot be looked into at any
//! place, such as a pipe.
//!
//! Everything in the file is checked before anything of it is used. Still, it holds a guest's memory and all its
//! secrets, so it is written for its owner alone; and it decides what the guest does next, as a disk image does.
use super::board::Board;
use super::power::{Pause, Power};
use crate::config::Config;
use anyhow::{Context, bail, ensure};
use mynah_cpu::model::Vendor;
use mynah_cpu::model::features::FEATURES;
use mynah_cpu::{Cpu, CpuModel, CpuV2};
use mynah_devices::device::{self, Saved};
use mynah_jit::private::{Durable, replace};
use mynah_mmu::{GuestRam, PAGE_SIZE};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::Xxh3;

const MAGIC: [u8; 8] = *b"MYNAHSAV";
/// The version of the layout. States of devices have versions of their own.
pub const VERSION: u32 = 3;
/// Bytes before the head.
const PREFIX: usize = 64;
/// Bytes that a head may have: it is read before it is checked.
const MOST: u64 = 1 << 30;
/// RAM begins at a multiple of this.
const ALIGN: u64 = 2 << 20;
/// Pages of a block of RAM.
const PAGES: usize = 64;
const PAGE: usize = PAGE_SIZE as usize;
/// Bytes of a block of RAM.
const BLOCK: usize = PAGES * PAGE;
/// How long vCPUs may take to stand still.
const PATIENCE: Duration = Duration::from_secs(10);

/// How RAM lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    AsItLies = 0,
    Packed = 1,
}

/// What a machine must have in common with the saved one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Make {
    /// The board, and what was chosen of it, as `-machine` has it.
    pub board: String,
    /// Bytes of RAM.
    pub ram: u64,
    /// Processors.
    pub vcpus: u32,
    /// Their model, as `-cpu` has it, and how they are packaged.
    pub cpu: String,
}

/// What the engine that a machine started with has made of its processors. The guest has seen them, so they stay, under
/// whatever engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fitted {
    /// Their maker, as CPUID tells it.
    vendor: [u8; 12],
    /// The model's features that they do not have.
    without: Vec<String>,
    /// The rate of their time-stamp counters, in Hz.
    tsc_hz: u64,
}

impl Fitted {
    /// Processors of this model, from which these features were taken.
    pub fn new(model: &CpuModel, without: &[&str], tsc_hz: u64) -> Self {
        let without = without.iter().map(|name| (*name).to_owned()).collect();
        Self { vendor: *model.vendor.id(), without, tsc_hz }
    }

    /// Has processors of the same model be these.
    ///
    /// # Errors
    /// They are of a program that knows more.
    fn fit(&self, model: &mut CpuModel, cfg: &mut Config) -> anyhow::Result<()> {
        let vendor = Vendor::of_id(&self.vendor);
        model.vendor = vendor.context("its processors are of a maker that is not known here")?;
        let named = |name: &String| FEATURES.iter().find(|n| n.name == name).map(|n| n.feature);
        let without: Option<Vec<_>> = self.without.iter().map(named).collect();
        model.without(&without.context("its processors lack what is not known here")?);
        let asked = *cfg.tsc_hz.get_or_insert(self.tsc_hz);
        ensure!(
            asked == self.tsc_hz,
            "its time-stamp counters run at {} Hz, and -cpu has tsc-frequency={asked}",
            self.tsc_hz
        );
        Ok(())
    }
}

impl Make {
    fn of(cfg: &Config) -> Self {
        let mut cpu = cfg.cpu.model.clone();
        let features = cfg.cpu.features.iter().map(|f| format!("{}{}", if f.on { '+' } else { '-' }, f.name));
        let properties = cfg.cpu.properties.iter().map(|(name, value)| format!("{name}={value}"));
        for part in features.chain(properties) {
            cpu.push(',');
            cpu.push_str(&part);
        }
        let s = &cfg.smp;
        cpu.push_str(&format!(" dies={},cores={},threads={}", s.dies, s.cores, s.threads));
        let mut board = cfg.machine.board.name.to_owned();
        for (name, value) in &cfg.machine.chosen.values {
            board.push_str(&format!(",{name}={value}"));
        }
        Self { board, ram: cfg.memory.size, vcpus: cfg.smp.cpus, cpu }
    }

    /// Why a machine that was saved as this one cannot go on as that one.
    fn differs(&self, here: &Make) -> Option<String> {
        let Make { board, ram, vcpus, cpu } = self;
        if *board != here.board {
            return Some(format!("it has -machine {board}; this machine has -machine {}", here.board));
        }
        if *ram != here.ram {
            let size = |bytes: u64| match bytes >> 20 {
                mib if mib << 20 == bytes => format!("{mib}M"),
                _ => format!("{}K", bytes >> 10),
            };
            return Some(format!("it has -m {}; this machine has -m {}", size(*ram), size(here.ram)));
        }
        if *vcpus != here.vcpus {
            return Some(format!("it has -smp {vcpus}; this machine has -smp {}", here.vcpus));
        }
        let model = |text: &str| text.replace(" dies=", ", -smp dies=");
        (*cpu != here.cpu)
            .then(|| format!("it has -cpu {}; this machine has -cpu {}", model(cpu), model(&here.cpu)))
    }
}

/// All but RAM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Head {
    /// The program's version, for people.
    pub program: String,
    /// What it has in common with every machine that goes on from here.
    pub make: Make,
    /// What its first engine made of its processors.
    pub fitted: Fitted,
    /// Guest time in nanoseconds.
    pub now: u64,
    /// It ran when it was saved, and goes on by itself.
    pub running: bool,
    /// It is in S3.
    pub asleep: bool,
    /// The states of the vCPUs.
    pub cpus: Vec<Saved>,
    /// The states of the devices.
    pub devices: Vec<Saved>,
    /// For each block of RAM: which pages are not zero, and their checksum.
    pub blocks: Vec<(u64, u64)>,
}

/// Copies block `n` of RAM. The machine stands still.
fn block_of(ram: &GuestRam, n: usize) -> Vec<u8> {
    let at = n * BLOCK;
    let len = BLOCK.min(ram.size() as usize - at);
    let mut bytes = vec![0; len];
    // SAFETY: the block lies within RAM's `size()` bytes, which `ram` keeps mapped; vCPUs and devices stand still,
    // so nobody writes there.
    unsafe { std::ptr::copy_nonoverlapping(ram.base().add(at), bytes.as_mut_ptr(), len) };
    bytes
}

/// The pages of a block that are not zero, as bits.
fn used(block: &[u8]) -> u64 {
    let is_used = |page: &[u8]| page.chunks_exact(8).any(|w| w != [0; 8]);
    block.chunks_exact(PAGE).enumerate().fold(0, |bits, (i, page)| bits | u64::from(is_used(page)) << i)
}

fn pages_of(block: &[u8], bits: u64) -> impl Iterator<Item = (usize, &[u8])> {
    block.chunks_exact(PAGE).enumerate().filter(move |(i, _)| bits >> i & 1 != 0)
}

/// Of the pages that are not zero, in their order. It tells of damage, not of ill will.
fn checksum(block: &[u8], bits: u64) -> u64 {
    let mut sum = Xxh3::new();
    pages_of(block, bits).for_each(|(_, page)| sum.update(page));
    sum.digest()
}

/// Does something to all blocks that are not zero, on several threads, each of which has whole huge pages for
/// itself; the first error of any.
fn each_block<F>(blocks: &[(u64, u64)], read: F) -> anyhow::Result<()>
where
    F: Fn(usize, u64, u64) -> anyhow::Result<()> + Sync,
{
    const TOGETHER: usize = ALIGN as usize / BLOCK;
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
    let some = |thread: usize| {
        let mine = blocks.iter().enumerate().filter(|(n, _)| n / TOGETHER % threads == thread);
        mine.filter(|(_, (bits, _))| *bits != 0).try_for_each(|(n, (bits, sum))| read(n, *bits, *sum))
    };
    std::thread::scope(|scope| {
        let some = &some;
        let others: Vec<_> = (1..threads).map(|n| scope.spawn(move || some(n))).collect();
        let mut result = some(0);
        for other in others {
            result = result.and(other.join().unwrap_or_else(|_| bail!("internal error")));
        }
        result
    })
}

/// What saves a machine; the board belongs to somebody else.
pub struct Saver {
    power: Arc<Power>,
    board: Weak<Board>,
    make: Make,
    fitted: Fitted,
}

impl Saver {
    /// Of the machine with this board.
    pub fn new(cfg: &Config, fitted: Fitted, power: &Arc<Power>, board: &Arc<Board>) -> Self {
        Self { power: power.clone(), board: Arc::downgrade(board), make: Make::of(cfg), fitted }
    }

    /// Stops the machine and saves it to `uri`, as QEMU's `migrate` does. It stays stopped; if that fails it goes on.
    ///
    /// # Errors The URI is none, a vCPU does not stop, or the file cannot be written. There is no part of a file
    /// then, and an older one is as it was.
    pub fn migrate(&self, uri: &str) -> anyhow::Result<()> {
        let target = Target::parse(uri)?;
        let Some(board) = self.board.upgrade() else { bail!("the machine has ended") };
        let (paused, to_run) = (self.power.paused(), self.power.is_to_run());
        self.power.pause(Pause::User);
        let saved = self.stand_still(&board).and_then(|()| {
            board.devices.pause();
            let saved = self.save(&board, to_run, &target);
            board.devices.resume();
            saved
        });
        match &saved {
            Ok(()) if to_run => self.power.migrated(),
            // One that is about to start does so still.
            Err(_) if paused.is_none() => {
                self.power.go_on();
                // What came to be held meanwhile is tried again.
                board.drives.resume();
            }
            _ => {}
        }
        saved
    }

    fn stand_still(&self, board: &Board) -> anyhow::Result<()> {
        ensure!(
            self.power.wait_standing(PATIENCE),
            "a vCPU does not come out of an instruction, or the machine ends"
        );
        board.clock.wait_still();
        Ok(())
    }

    fn save(&self, board: &Board, running: bool, target: &Target) -> anyhow::Result<()> {
        use mynah_devices::clock::Clock;
        let mut cpus = Vec::new();
        for (n, report) in self.power.reports().into_iter().enumerate() {
            let report = report.with_context(|| format!("vCPU {n} does not answer"))?;
            cpus.push(device::encode(&format!("cpu{n}"), CpuV2::KIND, CpuV2::VERSION, &*report.state));
        }
        let ram = board.memory.ram();
        let count = (ram.size() as usize).div_ceil(BLOCK);
        let blocks = (0..count).map(|n| {
            let block = block_of(ram, n);
            let bits = used(&block);
            (bits, checksum(&block, bits))
        });
        let head = Head {
            program: env!("CARGO_PKG_VERSION").into(),
            make: self.make.clone(),
            fitted: self.fitted.clone(),
            now: board.clock.now(),
            running,
            asleep: self.power.asleep(),
            cpus,
            devices: board.devices.save(),
            blocks: blocks.collect(),
        };
        match target {
            Target::File(path) => replace(path, Durable::Yes, |file| write(file, &head, ram))
                .with_context(|| path.display().to_string()),
            Target::Exec(command) => pipe_to(command, |pipe| write_packed(pipe, &head, ram)),
        }
    }
}

/// Where a machine is saved to, or comes from.
enum Target {
    File(PathBuf),
    Exec(String),
}

impl Target {
    fn parse(uri: &str) -> anyhow::Result<Self> {
        match uri.split_once(':') {
            Some(("file", "")) | Some(("exec", "")) => bail!("'{uri}': nothing follows the colon"),
            Some(("file", path)) => Ok(Self::File(path.into())),
            Some(("exec", _)) if cfg!(windows) => {
                bail!("'exec:' is there on Unix hosts only, which have a shell; say file:FILE")
            }
            Some(("exec", command)) => Ok(Self::Exec(command.into())),
            Some((scheme @ ("tcp" | "unix" | "fd" | "rdma"), _)) => {
                bail!("'{scheme}:' is not supported yet; there are file:FILE and exec:COMMAND")
            }
            _ => bail!("'{uri}' is not where a machine can be: file:FILE or exec:COMMAND"),
        }
    }
}

/// Prefix and head. The machine's RAM begins at the offset given, if it is to be mapped.
fn head_bytes(head: &Head, layout: Layout) -> anyhow::Result<(Vec<u8>, u64)> {
    let encoded = postcard::to_stdvec(head).context("the machine's state")?;
    let at = match layout {
        Layout::AsItLies => (PREFIX as u64 + encoded.len() as u64).next_multiple_of(ALIGN),
        Layout::Packed => 0,
    };
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((layout as u32).to_le_bytes());
    bytes.extend((encoded.len() as u64).to_le_bytes());
    bytes.extend(at.to_le_bytes());
    let digest = digest_of(&bytes[8..], &encoded);
    bytes.extend(digest.as_bytes());
    bytes.extend(encoded);
    Ok((bytes, at))
}

fn digest_of(prefix: &[u8], head: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(prefix);
    hasher.update(head);
    hasher.finalize()
}

/// Calls `write` with each page of RAM that is not zero, and where it lies there. The machine stands still.
fn each_page<F>(head: &Head, ram: &GuestRam, mut write: F) -> anyhow::Result<()>
where
    F: FnMut(u64, &[u8]) -> std::io::Result<()>,
{
    for (n, (bits, _)) in head.blocks.iter().enumerate().filter(|(_, (bits, _))| *bits != 0) {
        let block = block_of(ram, n);
        for (i, page) in pages_of(&block, *bits) {
            write((n * BLOCK + i * PAGE) as u64, page)?;
        }
    }
    Ok(())
}

fn write(file: &mut File, head: &Head, ram: &GuestRam) -> anyhow::Result<()> {
    let (bytes, at) = head_bytes(head, Layout::AsItLies)?;
    file.set_len(at + ram.size())?;
    file.write_all(&bytes)?;
    let mut end = None;
    each_page(head, ram, |offset, page| {
        if end != Some(offset) {
            file.seek(SeekFrom::Start(at + offset))?;
        }
        end = Some(offset + PAGE_SIZE);
        file.write_all(page)
    })
}

fn write_packed(out: &mut dyn Write, head: &Head, ram: &GuestRam) -> anyhow::Result<()> {
    let (bytes, _) = head_bytes(head, Layout::Packed)?;
    let mut out = BufWriter::with_capacity(1 << 20, out);
    out.write_all(&bytes)?;
    each_page(head, ram, |_, page| out.write_all(page))?;
    out.flush()?;
    Ok(())
}

fn shell(command: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]);
    shell
}

fn pipe_to(command: &str, write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut child =
        shell(command).stdin(Stdio::piped()).spawn().with_context(|| format!("exec:{command}"))?;
    let Some(mut pipe) = child.stdin.take() else { bail!("exec:{command}: it has no input") };
    let written = write(&mut pipe);
    drop(pipe);
    let status = child.wait().with_context(|| format!("exec:{command}"))?;
    ensure!(status.success(), "exec:{command}: {status}");
    written.with_context(|| format!("exec:{command}"))
}

/// A machine that was saved, read and checked.
pub struct Incoming {
    /// What the user called it.
    name: String,
    head: Head,
    /// Its memory.
    ram: Option<GuestRam>,
    /// When it began to be read.
    since: Instant,
}

impl Incoming {
    /// Reads the machine that `-incoming` names, for a machine of `cfg`.
    ///
    /// # Errors
    /// It cannot be read, is no saved machine or not of this make, or has been damaged.
    pub fn read(cfg: &Config, uri: &str) -> anyhow::Result<Self> {
        let since = Instant::now();
        let target = Target::parse(uri).context("-incoming")?;
        let name = match &target {
            Target::File(path) => path.display().to_string(),
            Target::Exec(command) => format!("exec:{command}"),
        };
        let here = Make::of(cfg);
        let (head, ram) = match target {
            Target::File(path) => File::open(&path).map_err(anyhow::Error::from).and_then(|mut file| {
                let (head, layout, at) = read_head(&mut file, &here)?;
                let ram = match layout {
                    Layout::AsItLies => read_ram(&file, &head, at)?,
                    Layout::Packed => unpack_ram(&mut file, &head)?,
                };
                Ok((head, ram))
            }),
            Target::Exec(command) => read_from(&command, &here),
        }
        .with_context(|| format!("-incoming {name}"))?;
        Ok(Self { name, head, ram: Some(ram), since })
    }

    /// Has processors be what they are in the saved machine.
    ///
    /// # Errors
    /// They cannot be.
    pub fn fit(&self, model: &mut CpuModel, cfg: &mut Config) -> anyhow::Result<Fitted> {
        self.head.fitted.fit(model, cfg).with_context(|| format!("-incoming {}", self.name))?;
        Ok(self.head.fitted.clone())
    }

    /// The guest's memory. Once.
    pub fn take_ram(&mut self) -> Option<GuestRam> {
        self.ram.take()
    }

    /// How long it has taken until now, from when its file was opened.
    pub fn took(&self) -> Duration {
        self.since.elapsed()
    }

    /// Whether the machine ran when it was saved.
    pub fn ran(&self) -> bool {
        self.head.running
    }

    /// Whether it slept.
    pub fn asleep(&self) -> bool {
        self.head.asleep
    }

    /// Puts the devices and the clock, which stands still, into the saved state.
    ///
    /// # Errors
    /// The machine has other devices, or a state is none.
    pub fn restore_board(&self, board: &Board) -> anyhow::Result<()> {
        board.clock.set_paused_at(self.head.now);
        board.restore(&self.head.devices).with_context(|| format!("-incoming {}", self.name))
    }

    /// Puts vCPU `n` into the saved state.
    ///
    /// # Errors
    /// Its state is none.
    pub fn restore_cpu(&self, n: usize, cpu: &mut Cpu) -> anyhow::Result<()> {
        let wrong = |what: &str| format!("-incoming {}: the state of vCPU {n} is damaged: {what}", self.name);
        let saved = self.head.cpus.get(n).with_context(|| wrong("there is none"))?;
        let state: CpuV2 = device::decode(saved, CpuV2::KIND, CpuV2::VERSION)
            .with_context(|| format!("-incoming {}", self.name))?;
        cpu.restore(state).map_err(|what| anyhow::anyhow!(wrong(what)))
    }
}

fn read_from(command: &str, here: &Make) -> anyhow::Result<(Head, GuestRam)> {
    let mut child = shell(command).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let Some(mut pipe) = child.stdout.take() else { bail!("it has no output") };
    let read = read_head(&mut pipe, here).and_then(|(head, layout, _)| {
        ensure!(layout == Layout::Packed, "a machine that was saved to a file is read as file:FILE");
        let ram = unpack_ram(&mut pipe, &head)?;
        Ok((head, ram))
    });
    drop(pipe);
    let status = child.wait()?;
    // What it has to say comes first.
    let read = read?;
    ensure!(status.success(), "{status}");
    Ok(read)
}

fn read_head(from: &mut dyn Read, here: &Make) -> anyhow::Result<(Head, Layout, u64)> {
    let mut prefix = [0; PREFIX];
    let magic = from.read_exact(&mut prefix[..MAGIC.len()]);
    let foreign = match &magic {
        Ok(()) => prefix[..MAGIC.len()] != MAGIC,
        Err(e) => e.kind() == std::io::ErrorKind::UnexpectedEof,
    };
    ensure!(!foreign, "it is not a machine that Mynah has saved");
    magic?;
    from.read_exact(&mut prefix[MAGIC.len()..]).map_err(cut_short)?;
    let u32_at = |at: usize| u32::from_le_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]]);
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    let version = u32_at(8);
    ensure!(
        version == VERSION,
        "it is of version {version} of saved machines; this program knows version {VERSION}"
    );
    let (layout, len, at) = (u32_at(12), u64_at(16), u64_at(24));
    ensure!(len <= MOST, "it is damaged: its head has {len} bytes");
    let mut bytes = Vec::new();
    from.take(len).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 == len, "it is cut short");
    ensure!(
        digest_of(&prefix[8..32], &bytes).as_bytes()[..] == prefix[32..],
        "it is damaged: its head has another checksum"
    );
    let layout = match layout {
        0 => Layout::AsItLies,
        1 => Layout::Packed,
        n => bail!("it is damaged: there is no layout {n}"),
    };
    let head: Head = postcard::from_bytes(&bytes).context("its head is damaged")?;
    if let Some(why) = head.make.differs(here) {
        bail!("{why}");
    }
    let blocks = (here.ram as usize).div_ceil(BLOCK);
    ensure!(
        head.blocks.len() == blocks && head.cpus.len() == here.vcpus as usize,
        "it is damaged: its parts are not as many as it says"
    );
    ensure!(head.now < 1 << 61, "it is damaged: its time is after the end of all");
    Ok((head, layout, at))
}

/// The RAM of a file that has it as it lies in the guest, checked. It is read, not mapped: see docs/devices.md.
fn read_ram(file: &File, head: &Head, at: u64) -> anyhow::Result<GuestRam> {
    let size = head.make.ram;
    ensure!(at.is_multiple_of(ALIGN) && at < MOST * 2, "it is damaged: its RAM begins nowhere");
    ensure!(file.metadata()?.len() >= at + size, "it is cut short");
    let ram = GuestRam::new(size)?;
    each_block(&head.blocks, |n, bits, sum| {
        fill_block(&ram, n, bits, sum, |offset, bytes| read_exact_at(file, bytes, at + offset))
    })?;
    Ok(ram)
}

/// Reads from a place in a file, by several threads at once.
#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

/// Reads from a place in a file, by several threads at once.
#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, at)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => {
                bytes = &mut bytes[n..];
                at += n as u64;
            }
        }
    }
    Ok(())
}

/// RAM from its pieces, checked.
fn unpack_ram(from: &mut dyn Read, head: &Head) -> anyhow::Result<GuestRam> {
    let ram = GuestRam::new(head.make.ram)?;
    let mut from = std::io::BufReader::with_capacity(1 << 20, from);
    for (n, &(bits, sum)) in head.blocks.iter().enumerate().filter(|(_, (bits, _))| *bits != 0) {
        fill_block(&ram, n, bits, sum, |_, bytes| from.read_exact(bytes))?;
    }
    Ok(ram)
}

/// Reads the pages of block `n` of RAM that are not zero, with what reads what lies at an offset in RAM, and checks
/// them. Each block is one thread's.
fn fill_block<F>(ram: &GuestRam, n: usize, bits: u64, sum: u64, mut read: F) -> anyhow::Result<()>
where
    F: FnMut(u64, &mut [u8]) -> std::io::Result<()>,
{
    let start = n * BLOCK;
    let pages = BLOCK.min(ram.size() as usize - start) / PAGE;
    ensure!(bits.checked_shr(pages as u32).unwrap_or(0) == 0, "it is damaged: RAM has an end");
    // SAFETY: the block lies in RAM, which `ram` keeps mapped; no guest runs yet, and the block is this thread's.
    let block = unsafe { std::slice::from_raw_parts_mut(ram.base().add(start), pages * PAGE) };
    let mut page = 0;
    while page < pages {
        let run = (bits >> page).trailing_ones() as usize;
        if run > 0 {
            let bytes = page * PAGE..(page + run) * PAGE;
            read((start + bytes.start) as u64, &mut block[bytes]).map_err(cut_short)?;
        }
        page += run.max(1);
    }
    ensure!(checksum(block, bits) == sum, "it is damaged: RAM at {start:#x} has another checksum");
    Ok(())
}

/// What an end too early is called.
fn cut_short(e: std::io::Error) -> anyhow::Error {
    match e.kind() {
        std::io::ErrorKind::UnexpectedEof => anyhow::anyhow!("it is cut short"),
        _ => e.into(),
    }
}
