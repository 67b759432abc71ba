//! What the command line asks for: one plain description of a machine and of how to run it.
//!
//! `cli` turns QEMU's options into a [`Config`]; `machine` builds from it. Nothing here opens a file or owns a host
//! resource, so a test (or another front end) can write a `Config` by hand, starting from [`Config::default`].
//! Names and defaults are QEMU's, whose command line this is. Values have been checked for form when they get here;
//! whether this build can provide what is asked for is answered by [`Config::refuse_unbuilt`].
//!
//! Also here: the process's exit codes ([`exit_code`]), which are part of the interface.

use crate::machine::boards::{self, Description};
use mynah_block::{Backing, Cache, DetectZeroes, Limits, OnError};
use mynah_devices::chardev::spec::Address;
use mynah_devices::kind::{Chosen, Value, Values};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The exit codes of `mynah run`.
pub mod exit_code {
    /// The guest powered itself off (or was ended by the user from the console).
    pub const POWER_OFF: i32 = 0;
    /// The command line was refused, or the machine could not be set up.
    pub const ERROR: i32 = 1;
    /// A triple fault under `-no-reboot`. It is even, so that no write to isa-debug-exit can produce it by accident
    /// of its lowest bit.
    pub const TRIPLE_FAULT: i32 = 70;

    /// The code for a guest's write of `value` to the isa-debug-exit port: `(value << 1) | 1`, always odd.
    /// The host's kernel keeps its low eight bits.
    pub fn isa_debug_exit(value: u32) -> i32 {
        (value.wrapping_shl(1) | 1) as i32
    }
}

/// The whole description of a machine and its run.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What the program was called as, for messages (`mynah`, `qemu-system-x86_64`).
    pub program: String,
    /// It stands in for QEMU: scripts find QEMU's own prompt at the monitor.
    pub as_qemu: bool,
    /// The guest's name (`-name`), for titles and the monitor.
    pub name: Option<String>,
    /// The system UUID (`-uuid`), as 16 bytes in the order they are written, for SMBIOS.
    pub uuid: Option<[u8; 16]>,
    /// The board (`-machine`).
    pub machine: Machine,
    /// RAM (`-m`).
    pub memory: Memory,
    /// Processors (`-smp`).
    pub smp: Smp,
    /// The CPU model and its changed features (`-cpu`).
    pub cpu: CpuModel,
    /// Engines to try, in order (`-accel`, `-machine accel=`, or the environment's `MYNAH_ACCEL`). Empty: as `auto`.
    pub accel: Vec<Accel>,
    /// The file for what the run has counted (`-stats`).
    pub stats: Option<PathBuf>,
    /// Hand-overs to other engines that are to come (`-handoff`).
    pub handoffs: Vec<Handoff>,
    /// The rate of vCPUs' time-stamp counters in Hz (`-cpu ...,tsc-frequency=`), if not the engine's own.
    pub tsc_hz: Option<u64>,
    /// A firmware image to run in place of the built-in firmware (`-bios`).
    pub bios: Option<PathBuf>,
    /// Folders searched for firmware files (`-L`), in order.
    pub firmware_dirs: Vec<PathBuf>,
    /// The kernel to start directly (`-kernel`).
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk (`-initrd`), or for a Multiboot kernel its modules: see [`Config::modules`].
    pub initrd: Option<String>,
    /// The kernel's command line (`-append`), empty when not given.
    pub append: String,
    /// Serial ports in order (`-serial`, or what `-nographic` implies). Index 0 is COM1.
    pub serials: Vec<CharTarget>,
    /// The monitors' places (`-monitor`, `-mon`, or what `-nographic` implies).
    pub monitors: Vec<CharTarget>,
    /// Where bytes written to port E9h go (`-debugcon`).
    pub debugcons: Vec<CharTarget>,
    /// Named back ends (`-chardev`), for `chardev:ID` and `chardev=ID`.
    pub chardevs: Vec<Chardev>,
    /// `-nographic`: the console is the terminal, and there is no display.
    pub nographic: bool,
    /// The display back end (`-display`).
    pub display: Display,
    /// Where a VNC server listens (`-vnc`, `-display vnc=`).
    pub vnc: Option<Vnc>,
    /// What must not stand on the command line where it is used (`-object secret`).
    pub secrets: Vec<Secret>,
    /// Limits that drives share, by name (`-object throttle-group`).
    pub throttle_groups: Vec<(String, Limits)>,
    /// The keyboard's layout (`-k`), for keys that come by their characters.
    pub layout: Option<String>,
    /// The video adapter (`-vga`); `None` when not given.
    pub vga: Option<String>,
    /// What a guest's reset does (`-no-reboot`, `-action reboot=`).
    pub on_reboot: RebootAction,
    /// What a guest's power-off does (`-no-shutdown`, `-action shutdown=`).
    pub on_shutdown: ShutdownAction,
    /// What a guest's panic, told through pvpanic, does (`-action panic=`).
    pub on_panic: PanicAction,
    /// What a watchdog does that expires (`-watchdog-action`, `-action watchdog=`).
    pub on_watchdog: WatchdogAction,
    /// Devices added with `-device`.
    pub devices: Vec<Chosen>,
    /// Disks, CD-ROMs and floppies (`-drive`, `-hda`..`-hdd`, `-cdrom`, `-fda`, `-fdb`, `-pflash`).
    pub drives: Vec<Drive>,
    /// What is behind network cards (`-netdev`, `-nic`, `-net`).
    pub netdevs: Vec<Netdev>,
    /// What is between cards and what is behind them (`-object filter-dump`, `filter-fault`), in the order given: the
    /// first one is the nearest to the back end.
    pub net_filters: Vec<NetFilter>,
    /// Items for the guest to read through fw_cfg (`-fw_cfg`).
    pub fw_cfg: Vec<FwCfgItem>,
    /// The real-time clock (`-rtc`).
    pub rtc: Rtc,
    /// Boot order and menu (`-boot`).
    pub boot: Boot,
    /// What is logged (`-d`), where (`-D`) and for which addresses (`-dfilter`).
    pub log: Log,
    /// Whether the translator is checked against the interpreter (`-check`, `-accel jit,check=`).
    pub check: Check,
    /// Where compiled code is kept between runs (`-accel jit,cache=`).
    pub code_cache: CodeCache,
    /// Bytes that kept code may take (`-accel jit,cache-size=`), if not the usual bound.
    pub code_cache_size: Option<u64>,
    /// Whether compiled code is kept for guests of all images together (`-accel jit,cache-share=`).
    pub code_cache_share: bool,
    /// Whether memory for compiled code is written at one address and executed at another (`-accel jit,split-wx=`).
    pub split_wx: bool,
    /// Bytes that all that is kept of the guest's code may take (`-accel jit,tb-size=`), if not the usual bound: see
    /// [`crate::machine::budget`].
    pub code_memory: Option<u64>,
    /// Whether names of translated code are written for `perf` (`-perfmap`).
    pub perf_map: bool,
    /// Whether translated code is written for `perf inject` (`-jitdump`).
    pub jitdump: bool,
    /// An ELF file (or a System.map) with the names of the guest's functions (`-symbols`).
    pub symbols: Option<PathBuf>,
    /// Start stopped (`-S`).
    pub start_stopped: bool,
    /// The saved machine to go on from (`-incoming`), as given.
    pub incoming: Option<String>,
    /// Where to wait for a debugger (`-gdb`, `-s`).
    pub gdb: Option<String>,
    /// Management sockets (`-qmp`).
    pub qmp: Vec<String>,
    /// Instruction counting (`-icount`), as given.
    pub icount: Option<String>,
    /// Seed of the randomness handed to the guest (`-seed`).
    pub seed: Option<u64>,
    /// File to hold the process's number while it runs (`-pidfile`).
    pub pidfile: Option<PathBuf>,
    /// Go to the background after setting up (`-daemonize`).
    pub daemonize: bool,
    /// Code of the console's escape character (`-echr`): 1 is Ctrl-A.
    pub escape: u8,
    /// No devices but those asked for (`-nodefaults`).
    pub no_defaults: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            program: "mynah".into(),
            as_qemu: false,
            name: None,
            uuid: None,
            machine: Machine::default(),
            memory: Memory::default(),
            smp: Smp::default(),
            cpu: CpuModel::default(),
            accel: Vec::new(),
            stats: None,
            handoffs: Vec::new(),
            tsc_hz: None,
            bios: None,
            firmware_dirs: Vec::new(),
            kernel: None,
            initrd: None,
            append: String::new(),
            serials: Vec::new(),
            monitors: Vec::new(),
            debugcons: Vec::new(),
            chardevs: Vec::new(),
            nographic: false,
            display: Display::None,
            vnc: None,
            secrets: Vec::new(),
            throttle_groups: Vec::new(),
            layout: None,
            vga: None,
            on_reboot: RebootAction::Reset,
            on_shutdown: ShutdownAction::PowerOff,
            on_panic: PanicAction::Shutdown,
            on_watchdog: WatchdogAction::Reset,
            devices: Vec::new(),
            drives: Vec::new(),
            netdevs: Vec::new(),
            net_filters: Vec::new(),
            fw_cfg: Vec::new(),
            rtc: Rtc::default(),
            boot: Boot::default(),
            log: Log::default(),
            check: Check::Off,
            code_cache: CodeCache::On,
            code_cache_size: None,
            code_cache_share: false,
            split_wx: true,
            code_memory: None,
            perf_map: false,
            jitdump: false,
            symbols: None,
            start_stopped: false,
            incoming: None,
            gdb: None,
            qmp: Vec::new(),
            icount: None,
            seed: None,
            pidfile: None,
            daemonize: false,
            escape: 1,
            no_defaults: false,
        }
    }
}

/// The board.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// Which board.
    pub board: &'static Description,
    /// What was chosen of it: values of its properties.
    pub chosen: Values,
    /// ACPI tables are given to the guest (`acpi=`).
    pub acpi: bool,
    /// Where a Linux kernel is entered (`kernel-entry=`).
    pub kernel_entry: KernelEntry,
    /// The drives that are flash chips, by their ids (`pflash0=`, `pflash1=`).
    pub pflash: [Option<String>; 2],
    /// Where KVM has interrupt controllers (`kernel-irqchip=`), if the user says.
    pub kernel_irqchip: Option<KernelIrqchip>,
}

/// Which interrupt controllers the host's kernel has while KVM runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelIrqchip {
    /// None.
    Off,
    /// The local APICs.
    Split,
    /// All of them, which KVM here is refused for.
    On,
}

impl Default for Machine {
    fn default() -> Self {
        let board = boards::ALL[0];
        let chosen = Values::defaults(board.properties);
        Machine {
            board,
            chosen,
            acpi: true,
            kernel_entry: KernelEntry::Auto,
            pflash: [None, None],
            kernel_irqchip: None,
        }
    }
}

impl Machine {
    /// Most serial ports.
    pub fn serials(&self) -> usize {
        let off = self.chosen.values.get("isa-serial") == Some(&Value::Switch(false));
        if off { 0 } else { self.board.serials }
    }

    /// Switches something of the board on or off.
    ///
    /// # Errors
    /// This board has no such switch.
    pub fn choose(&mut self, name: &str, on: bool) -> Result<(), String> {
        let property = self.board.properties.iter().find(|p| p.name == name);
        let property = property.ok_or_else(|| format!("the board '{}' has none", self.board.name))?;
        self.chosen.values.insert(property.name, Value::Switch(on));
        Ok(())
    }
}

/// The entries of a Linux kernel that is started directly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelEntry {
    /// The one that leaves least to do, of those that kernel and CPU have.
    #[default]
    Auto,
    /// The setup code, in real mode, which asks the BIOS.
    Real,
    /// The 32-bit entry.
    Protected,
    /// The 64-bit entry.
    Long,
}

/// RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes of RAM at power-on.
    pub size: u64,
    /// Slots for RAM added later.
    pub slots: u32,
    /// Bytes that RAM may grow to; equal to `size` when it cannot grow.
    pub max: u64,
}

/// RAM without `-m`: 128 MiB, as in QEMU.
pub const DEFAULT_MEMORY: u64 = 128 << 20;

/// Most bytes of RAM a machine may have. Guest-physical addresses go further, for the PCI hole and what is above RAM.
pub const MAX_MEMORY: u64 = mynah_mmu::ram::MAX_RAM;

impl Default for Memory {
    fn default() -> Self {
        Memory { size: DEFAULT_MEMORY, slots: 0, max: DEFAULT_MEMORY }
    }
}

/// How many processors, and how the guest is told they are packaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smp {
    /// Processors at power-on.
    pub cpus: u32,
    /// Processors there may be: `sockets * dies * cores * threads`.
    pub max_cpus: u32,
    /// Packages.
    pub sockets: u32,
    /// Dies in a package.
    pub dies: u32,
    /// Cores in a die.
    pub cores: u32,
    /// Threads in a core.
    pub threads: u32,
}

impl Default for Smp {
    fn default() -> Self {
        Smp { cpus: 1, max_cpus: 1, sockets: 1, dies: 1, cores: 1, threads: 1 }
    }
}

/// `-cpu`: a model and what differs from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    /// The model's name.
    pub model: String,
    /// Features switched on or off, in the order given (a later one wins). Names are QEMU's (`sse4.2`, `x2apic`),
    /// with `_` written as `-`.
    pub features: Vec<FeatureDelta>,
    /// Other properties (`vendor=`, `family=`, `phys-bits=`), in the order given.
    pub properties: Vec<(String, String)>,
}

impl Default for CpuModel {
    fn default() -> Self {
        CpuModel { model: "qemu64".into(), features: Vec::new(), properties: Vec::new() }
    }
}

/// One feature switched on or off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureDelta {
    /// The feature's name.
    pub name: String,
    /// On or off.
    pub on: bool,
}

/// An engine to run the guest's code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accel {
    /// Which engine.
    pub kind: AccelKind,
    /// Its properties, as given.
    pub properties: Vec<(String, String)>,
}

/// A hand-over to another engine at a known moment (`-handoff`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handoff {
    /// To which one.
    pub kind: AccelKind,
    /// When.
    pub at: HandoffAt,
}

/// When a guest is handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandoffAt {
    /// At a guest time.
    Time(Duration),
    /// Behind so many instructions of the boot processor.
    Instructions(u64),
    /// Behind a write to a port, of this value if one is given.
    Port(u16, Option<u32>),
    /// When a console has shown a text.
    Text(String),
}

/// How much of the translator's code is checked against the interpreter while a guest runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Check {
    /// Nothing.
    #[default]
    Off,
    /// New code, and a sample of the rest.
    On,
    /// All, each time that it is entered.
    All,
}

/// Where compiled code is kept between runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CodeCache {
    /// In the user's cache folder, if that can be used.
    #[default]
    On,
    /// Nowhere.
    Off,
    /// In this folder.
    Dir(PathBuf),
}

/// The engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccelKind {
    /// The fastest that there is here.
    Auto,
    /// The interpreter.
    Interp,
    /// The translator (`jit`, or QEMU's name for its own, `tcg`).
    Jit,
    /// Linux's KVM.
    Kvm,
    /// macOS's Hypervisor.framework.
    Hvf,
}

impl fmt::Display for AccelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AccelKind::Auto => "auto",
            AccelKind::Interp => "interp",
            AccelKind::Jit => "jit",
            AccelKind::Kvm => "kvm",
            AccelKind::Hvf => "hvf",
        })
    }
}

/// Where a character stream goes, from the short form of `-serial`, `-monitor` and `-debugcon`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CharTarget {
    /// The text as given, for messages.
    pub spec: String,
    /// `mon:` stood before it: the monitor shares the stream, and the escape character switches.
    pub mux: bool,
    /// What is at the other end.
    pub backend: CharBackend,
}

impl CharTarget {
    /// A target without a monitor on it, described by `spec`.
    pub fn new(spec: &str, backend: CharBackend) -> Self {
        CharTarget { spec: spec.into(), mux: false, backend }
    }

    /// The terminal with the monitor behind the escape character, which is what `-nographic` gives. Ctrl-C is the
    /// guest's.
    pub fn console() -> Self {
        CharTarget { spec: "mon:stdio".into(), mux: true, backend: CharBackend::Stdio { signal: false } }
    }
}

/// The kinds of character stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CharBackend {
    /// No device at all: `-serial none` leaves the port out.
    None,
    /// The device is there; output is dropped and there is no input.
    Null,
    /// The terminal Mynah runs on.
    Stdio {
        /// Ctrl-C ends Mynah rather than reaching the guest.
        signal: bool,
    },
    /// A text console on the display (`vc`); without a display it is as good as `Null`.
    Vc,
    /// A new pseudo-terminal, whose name is printed.
    Pty,
    /// Output to a file.
    File {
        /// The file.
        path: PathBuf,
        /// Keep what is in it.
        append: bool,
    },
    /// A named pipe, or the pair `PATH.in` and `PATH.out`.
    Pipe {
        /// The pipe.
        path: PathBuf,
    },
    /// A serial port, parallel port or terminal of the host.
    Host {
        /// The device's file.
        path: PathBuf,
    },
    /// A Unix socket.
    Unix {
        /// The socket's file.
        path: PathBuf,
        /// How it is opened.
        socket: Socket,
    },
    /// A TCP connection.
    Tcp {
        /// Name or address; empty means every address for a server, this host for a client.
        host: String,
        /// Port number or service name.
        port: String,
        /// How it is opened.
        socket: Socket,
    },
    /// UDP datagrams.
    Udp {
        /// Where to send to.
        host: String,
        /// The port to send to.
        port: String,
        /// The address to receive on, empty for every address.
        local_host: String,
        /// The port to receive on, `0` for any.
        local_port: String,
    },
    /// A back end defined by `-chardev`, by its id.
    Chardev(String),
}

/// How a stream socket is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Listen, rather than connect.
    pub server: bool,
    /// A server waits for its first client before the guest starts.
    pub wait: bool,
    /// Speak the telnet protocol.
    pub telnet: bool,
    /// Send small packets at once (TCP only).
    pub nodelay: bool,
    /// Seconds after which a client that lost its connection tries again; 0 is never.
    pub reconnect: u32,
}

impl Default for Socket {
    fn default() -> Self {
        Socket { server: false, wait: true, telnet: false, nodelay: false, reconnect: 0 }
    }
}

/// `-chardev`: a named character stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chardev {
    /// The name others refer to.
    pub id: String,
    /// Several front ends may share it (`mux=on`).
    pub mux: bool,
    /// What is at the other end.
    pub backend: CharBackend,
    /// A file that gets a copy of the output (`logfile=`).
    pub log_file: Option<PathBuf>,
    /// Keep what is in the log file (`logappend=on`).
    pub log_append: bool,
}

/// What is chosen of a VNC server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vnc {
    /// Where it listens.
    pub address: Address,
    /// Clients need a password: that of `secret`, or the one that the monitor sets.
    pub password: bool,
    /// The secret that has it.
    pub secret: Option<String>,
    /// Where it listens for WebSockets.
    pub websocket: Option<Address>,
    /// Ports behind its own that it may take if that is in use.
    pub more_ports: u16,
    /// A client that wants the screen for itself shares it all the same.
    pub shared: bool,
}

/// A secret by its name.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// The name that others use.
    pub id: String,
    /// Where it is.
    pub source: SecretSource,
    /// It is in base 64.
    pub base64: bool,
}

/// Where a secret is.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// On the command line.
    Data(Vec<u8>),
    /// In a file.
    File(PathBuf),
}

impl std::fmt::Debug for Secret {
    /// Without what it is.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Secret {
    /// The secret itself.
    ///
    /// # Errors
    /// Its file cannot be read, or has more than 1 MiB; it is not base 64.
    pub fn read(&self) -> std::io::Result<Vec<u8>> {
        use std::io::{Error, Read};
        const MOST: u64 = 1 << 20;
        let mut bytes = match &self.source {
            SecretSource::Data(data) => data.clone(),
            SecretSource::File(path) => {
                let mut bytes = Vec::new();
                std::fs::File::open(path)?.take(MOST + 1).read_to_end(&mut bytes)?;
                if bytes.len() as u64 > MOST {
                    return Err(Error::other("it has more than 1 MiB"));
                }
                bytes
            }
        };
        if self.base64 {
            bytes = from_base64(&bytes).ok_or_else(|| Error::other("it is not base 64"))?;
        }
        Ok(bytes)
    }
}

/// Bytes from their base 64 (RFC 4648, 4); white space is passed over.
fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut digits = text.to_vec();
    digits.retain(|c| !c.is_ascii_whitespace());
    if !digits.len().is_multiple_of(4) {
        return None;
    }
    while digits.len() % 4 != 2 && digits.last() == Some(&b'=') {
        digits.pop();
    }
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for c in digits {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (bits, count) = (bits << 6 | u32::from(value), count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

/// The display back ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Display {
    /// No window.
    None,
    /// Nothing was said: a program may choose the terminal.
    Default,
    /// The terminal, once there is something to be seen.
    Terminal,
    /// The terminal.
    Curses,
    /// Another one, by QEMU's name, with its properties.
    Other(String),
}

/// What follows a guest's reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RebootAction {
    /// The machine starts again.
    Reset,
    /// It is treated as a power-off; a triple fault ends with [`exit_code::TRIPLE_FAULT`].
    Shutdown,
}

/// What follows a guest's power-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownAction {
    /// Mynah ends.
    PowerOff,
    /// The machine stops and can be looked at from the monitor.
    Pause,
}

/// What follows a panic that the guest tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanicAction {
    /// Nothing.
    None,
    /// The machine stops.
    Pause,
    /// Mynah ends with code 0.
    Shutdown,
    /// Mynah ends with code 1.
    ExitFailure,
}

/// What follows when a watchdog expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchdogAction {
    /// The machine is reset.
    Reset,
    /// The power button is pressed.
    Shutdown,
    /// Mynah ends with code 0.
    PowerOff,
    /// The machine stops.
    Pause,
    /// It is logged.
    Debug,
    /// Nothing.
    None,
    /// Each vCPU has an NMI.
    InjectNmi,
}

impl WatchdogAction {
    /// All, by QEMU's names.
    pub const ALL: [(&'static str, Self); 7] = [
        ("reset", Self::Reset),
        ("shutdown", Self::Shutdown),
        ("poweroff", Self::PowerOff),
        ("pause", Self::Pause),
        ("debug", Self::Debug),
        ("none", Self::None),
        ("inject-nmi", Self::InjectNmi),
    ];

    /// The action of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(n, _)| *n == name).map(|(_, action)| *action)
    }
}

/// A drive: an image, and how it is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drive {
    /// The option that gave it, with its dash, for messages.
    pub option: String,
    /// `id=`, or QEMU's name for it.
    pub id: String,
    /// `if=`.
    pub interface: Option<Interface>,
    /// `index=`: its place among the drives with this interface.
    pub index: Option<u32>,
    /// `bus=`.
    pub bus: Option<u32>,
    /// `unit=`.
    pub unit: Option<u32>,
    /// `media=cdrom`.
    pub cdrom: bool,
    /// `file=`; none: there is no medium.
    pub file: Option<PathBuf>,
    /// `format=`; told by the image if it was not given.
    pub format: Option<String>,
    /// `cache=`.
    pub cache: Cache,
    /// `snapshot=`.
    pub snapshot: Option<bool>,
    /// `readonly=`.
    pub read_only: bool,
    /// `discard=unmap`.
    pub discard: bool,
    /// `werror=`.
    pub werror: Option<OnError>,
    /// `rerror=`.
    pub rerror: Option<OnError>,
    /// `serial=`.
    pub serial: Option<String>,
    /// `detect-zeroes=`.
    pub detect_zeroes: DetectZeroes,
    /// `copy-on-read=on`.
    pub copy_on_read: bool,
    /// `throttling.*`.
    pub limits: Limits,
    /// `throttling.group`: the limits are those of a group.
    pub group: Option<String>,
    /// `aio=`.
    pub aio: DiskAio,
    /// What the image stands on, if it is not what the image names.
    pub backing: Option<Backing>,
    /// `backing-anywhere=on`: what an image stands on may be outside of its folder.
    pub any_backing: bool,
}

impl Drive {
    /// Its place among the drives with this interface, if it was given one: so many to a bus.
    pub fn number(&self, units: u32) -> Option<u32> {
        let place = || units * self.bus.unwrap_or(0) + self.unit.unwrap_or(0);
        self.index.or_else(|| self.has_place().then(place))
    }

    /// Whether the user has said where it goes.
    pub fn has_place(&self) -> bool {
        self.index.is_some() || self.bus.is_some() || self.unit.is_some()
    }

    /// For messages: the option, and the file.
    pub fn shown(&self) -> String {
        let file = self.file.as_ref().map(|f| f.display().to_string());
        match (self.option.as_str(), file) {
            ("-drive", Some(file)) => format!("-drive file={file}"),
            (option, Some(file)) => format!("{option} {file}"),
            (option, None) => option.into(),
        }
    }
}

/// `aio=`: how an image's file is read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskAio {
    /// By threads that wait for the host.
    #[default]
    Threads,
    /// By the kernel, past the page cache.
    Native,
    /// By the kernel.
    IoUring,
}

impl fmt::Display for DiskAio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Threads => "threads",
            Self::Native => "native",
            Self::IoUring => "io_uring",
        })
    }
}

/// How a drive is wired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// The board's IDE buses.
    Ide,
    /// A virtio-blk device of its own.
    Virtio,
    /// The floppy controller.
    Floppy,
    /// Flash memory at the top of the address space.
    Pflash,
    /// By a `-device` that names it.
    None,
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ide => "ide",
            Self::Virtio => "virtio",
            Self::Floppy => "floppy",
            Self::Pflash => "pflash",
            Self::None => "none",
        })
    }
}

/// What is behind a network card.
#[derive(Clone, Debug, PartialEq)]
pub struct Netdev {
    /// Its name.
    pub id: String,
    /// The option that gave it, as a message names it.
    pub shown: String,
    /// What it is.
    pub kind: NetKind,
}

/// Something between a card and what is behind it (`-object filter-...`).
#[derive(Clone, Debug, PartialEq)]
pub struct NetFilter {
    /// Its name.
    pub id: String,
    /// The back end that it is in front of.
    pub netdev: String,
    /// What it does.
    pub kind: FilterKind,
}

/// The kinds of filters.
#[derive(Clone, Debug, PartialEq)]
pub enum FilterKind {
    /// Writes what passes to a pcap file.
    Dump {
        /// The file.
        file: PathBuf,
        /// Bytes of each frame that are kept.
        most: u32,
    },
    /// A bad line.
    Fault(mynah_net::fault::Faults),
}

/// The kinds of back ends.
#[derive(Clone, Debug, PartialEq)]
pub enum NetKind {
    /// The NAT.
    User(Box<mynah_net::user::Config>),
    /// A stream to another machine.
    Stream(mynah_net::sockets::StreamConfig),
    /// Datagrams to other machines.
    Dgram(mynah_net::sockets::DgramConfig),
    /// A network interface of the host's.
    Tap(mynah_net::tap::TapConfig),
    /// A port of a hub, all of whose ports hear each other.
    Hubport {
        /// The hub's number.
        hub: u32,
        /// Another back end that is on this port, in place of a card.
        netdev: Option<String>,
    },
}

/// An item in fw_cfg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FwCfgItem {
    /// The item's name, such as `opt/com.example/data`.
    pub name: String,
    /// Its bytes: a file's contents, or text without a closing zero.
    pub data: FwCfgData,
}

/// What an fw_cfg item holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FwCfgData {
    /// The contents of a file.
    File(PathBuf),
    /// This text.
    Text(String),
}

/// The real-time clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rtc {
    /// What it shows at power-on.
    pub base: RtcBase,
    /// What drives it.
    pub clock: RtcClock,
    /// Lost ticks are delivered later (`driftfix=slew`).
    pub slew: bool,
}

impl Default for Rtc {
    fn default() -> Self {
        Rtc { base: RtcBase::Utc, clock: RtcClock::Host, slew: false }
    }
}

/// What the clock shows at power-on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RtcBase {
    /// The host's time in UTC.
    Utc,
    /// The host's local time.
    LocalTime,
    /// A fixed date, in seconds from 1970-01-01T00:00:00 of the clock's own time zone.
    At(i64),
}

/// What drives the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RtcClock {
    /// The host's time, which an administrator may set.
    Host,
    /// The host's monotonic time.
    Monotonic,
    /// The guest's own time, which stands while the guest is stopped.
    Virtual,
}

/// Boot order and menu.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boot {
    /// Drive letters in order, empty for the firmware's own.
    pub order: String,
    /// Drive letters for the first boot only.
    pub once: String,
    /// Offer a menu.
    pub menu: bool,
    /// Milliseconds the menu waits.
    pub splash_time: Option<u32>,
    /// Milliseconds before a failed boot is tried again.
    pub reboot_timeout: Option<u32>,
    /// Try nothing that is not in `order`.
    pub strict: bool,
}

/// What is logged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// The items, by QEMU's names, each once.
    pub items: Vec<LogItem>,
    /// The file, standard error if none. `%d` has been replaced by the process's number.
    pub file: Option<PathBuf>,
    /// First and last address, inclusive, of what is logged; empty for everything.
    pub filter: Vec<(u64, u64)>,
}

impl Log {
    /// Whether `item` is to be logged.
    pub fn has(&self, item: LogItem) -> bool {
        self.items.contains(&item)
    }
}

/// The things that `-d` can log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogItem {
    /// `in_asm`: guest code when it is first decoded.
    InAsm,
    /// `exec`: blocks as they are run.
    Exec,
    /// `cpu`: registers before them.
    Cpu,
    /// `fpu`: x87 and SSE registers too, where `cpu` shows registers.
    Fpu,
    /// `int`: interrupts and exceptions.
    Int,
    /// `mmu`: page faults and flushes.
    Mmu,
    /// `pcall`: far calls and returns in protected mode.
    Pcall,
    /// `cpu_reset`: the state before a reset.
    CpuReset,
    /// `guest_errors`: what a guest does against a data sheet.
    GuestErrors,
    /// `unimp`: what a guest uses and Mynah has not.
    Unimp,
    /// `nochain`: no block goes on to another by itself, so that `exec` and `cpu` miss none.
    NoChain,
    /// `out_asm`: host code that was generated.
    OutAsm,
    /// `ir`, or by QEMU's name `op`: the translator's own form of guest code.
    Ir,
    /// `net`: a line for each frame that a card sends or gets.
    Net,
}

impl Config {
    /// The initial RAM disk as a Multiboot kernel takes it: modules separated by commas, each a file and, after a
    /// space, its command line. A comma in a name is written twice.
    pub fn modules(&self) -> Vec<(PathBuf, String)> {
        let Some(initrd) = &self.initrd else { return Vec::new() };
        split_commas(initrd)
            .into_iter()
            .filter(|m| !m.trim().is_empty())
            .map(|m| {
                let m = m.trim_start();
                let file = m.split(' ').next().unwrap_or(m);
                (PathBuf::from(file), m.to_string())
            })
            .collect()
    }

    /// Refuses, by the option's name, what the command line knows and no part of this build looks at. (What a part
    /// looks at and cannot do, such as more than one processor, it refuses itself.) Nothing that was asked for is left
    /// out silently.
    pub fn refuse_unbuilt(&self) -> Result<(), String> {
        let missing = |what: String| Err(format!("{what} not supported yet"));
        if self.smp.max_cpus > self.smp.cpus {
            return missing("-smp maxcpus=: processors added later are".into());
        }
        if let Display::Other(name) = &self.display {
            return missing(format!("-display {name}: a display window is"));
        }
        if self.daemonize {
            return missing("-daemonize is".into());
        }
        if self.memory.max > self.memory.size {
            return missing("-m maxmem=: memory added later is".into());
        }
        Ok(())
    }
}

/// Splits at single commas; a doubled comma is one comma of the text.
pub(crate) fn split_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == ',' && rest.next_if_eq(&',').is_none() {
            parts.push(String::new());
            continue;
        }
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_exit_codes_are_odd_and_never_the_triple_fault_code() {
        for value in 0..=255 {
            let code = exit_code::isa_debug_exit(value) & 0xFF;
            assert_eq!(code & 1, 1);
            assert_ne!(code, exit_code::TRIPLE_FAULT);
        }
        assert_eq!(exit_code::isa_debug_exit(0x10), 33);
        assert_eq!(exit_code::isa_debug_exit(0xFFFF_FFFF), -1);
    }

    #[test]
    fn multiboot_modules_are_files_with_command_lines() {
        let config = Config { initrd: Some("a.elf one two, b,,c".into()), ..Config::default() };
        assert_eq!(
            config.modules(),
            vec![
                (PathBuf::from("a.elf"), "a.elf one two".to_string()),
                (PathBuf::from("b,c"), "b,c".to_string())
            ]
        );
    }

    #[test]
    fn secrets_are_read_as_they_are_or_from_base_64() {
        let secret =
            |data: &str, base64| Secret { id: "s".into(), source: SecretSource::Data(data.into()), base64 };
        assert_eq!(secret("c2VzYW1l", false).read().unwrap(), b"c2VzYW1l");
        for (text, bytes) in
            [("c2VzYW1l\n", &b"sesame"[..]), ("c2VzYQ==", b"sesa"), ("c2VzYW0=", b"sesam"), ("", b"")]
        {
            assert_eq!(secret(text, true).read().unwrap(), bytes);
        }
        assert!(secret("c2V", true).read().is_err() && secret("c2V!", true).read().is_err());
        assert!(!format!("{:?}", secret("sesame", false)).contains("sesame"));
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        let config = Config { daemonize: true, ..Config::default() };
        assert_eq!(config.refuse_unbuilt().unwrap_err(), "-daemonize is not supported yet");
        assert!(Config::default().refuse_unbuilt().is_ok());
    }
}
