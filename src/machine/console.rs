//! Character streams: serial ports, the monitor behind Ctrl-A, debug consoles.
use super::board::Board;
use super::boards::common::set_cmos_floppies;
use super::handle::Handle;
use super::inside::Translators;
use super::monitor::{Hmp, Lines};
use crate::cli::build::find_firmware;
use crate::config::{CharBackend, CharTarget, Config, Display, FwCfgData, Vnc, exit_code};
use anyhow::{Context, bail};
use mynah_devices::chardev::spec::Address;
use mynah_devices::chardev::vc::Vc;
use mynah_devices::chardev::{Chardev, ChardevError, Host, MonitorLine, Mux, spec};
use mynah_devices::display::curses::{Curses, CursesOptions};
use mynah_devices::display::input::Ps2Input;
use mynah_devices::display::layout;
use mynah_devices::display::vnc::{VncOptions, VncServer};
use mynah_devices::dma::Dma;
use mynah_devices::event_loop::EventLoop;
use mynah_devices::kind::Site;
use mynah_devices::misc::debugcon::{self, Debugcon};
use mynah_devices::misc::fw_cfg::{FwCfg, key};
use mynah_devices::misc::vmgenid;
use mynah_devices::serial::{COM, Serial};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Standard output was closed when the process began.
static STDOUT_CLOSED: AtomicBool = AtomicBool::new(false);

/// Looks at standard output before the language's runtime, which opens /dev/null in its place if it is closed.
#[cfg(target_os = "linux")]
#[used]
// SAFETY: the section holds pointers to functions without arguments that the C library calls before `main`; this is
// one, and it uses nothing that is set up later.
#[unsafe(link_section = ".init_array")]
static LOOK_AT_STDOUT: extern "C" fn() = look_at_stdout;

#[cfg(target_os = "linux")]
extern "C" fn look_at_stdout() {
    // SAFETY: asks for the flags of a descriptor, open or not.
    if unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } < 0 {
        STDOUT_CLOSED.store(true, Ordering::Relaxed);
    }
}

/// All open streams.
pub struct Consoles {
    /// With what the user calls them.
    lines: Vec<(String, Arc<dyn Chardev>)>,
    serials: Vec<Arc<Serial>>,
    named: Mutex<HashMap<String, Arc<dyn Chardev>>>,
    muxes: Vec<Arc<Mux>>,
    /// By the line that each shares with a device, if it does.
    muxed: HashMap<String, Arc<Mux>>,
    monitors: Vec<Arc<MonitorLine>>,
    host: Host,
    translators: Translators,
    /// All lines by name, for the monitors.
    known: Lines,
    /// Who shows the screen to the network.
    vnc: Option<VncServer>,
    /// The terminal is to be the screen; and it is.
    wants_curses: bool,
    curses: Option<Curses>,
    /// Text consoles that it shows.
    text: Vec<(String, Arc<Vc>)>,
}

impl Consoles {
    /// Opens what `cfg` asks for, to be served by `events`, and plugs in the serial ports.
    pub fn open(
        cfg: &Config,
        board: &mut Board,
        machine: &Handle,
        events: &Arc<EventLoop>,
    ) -> anyhow::Result<Self> {
        let program = cfg.program.clone();
        let shown = program.clone();
        let failing = machine.power().clone();
        let mut host = Host::new(events.clone());
        host.on_error = Arc::new(move |e| match e {
            // Without its console a run says nothing to anyone: it ends, so that the caller knows.
            ChardevError::Write { ref target, .. } if target == "standard output" => {
                failing.fail(format!("{e}"));
            }
            e => crate::cli::say(&program, &format!("{e}")),
        });
        host.announce = Arc::new(move |line| crate::cli::say(&shown, line));
        let mut all = Self {
            lines: Vec::new(),
            serials: Vec::new(),
            named: Mutex::new(HashMap::new()),
            muxes: Vec::new(),
            muxed: HashMap::new(),
            monitors: Vec::new(),
            host,
            translators: Translators::default(),
            known: Lines::default(),
            vnc: None,
            wants_curses: matches!(cfg.display, Display::Curses | Display::Terminal),
            curses: None,
            text: Vec::new(),
        };
        for c in &cfg.chardevs {
            let target = CharTarget { spec: c.id.clone(), mux: c.mux, backend: c.backend.clone() };
            let muxes = all.muxes.len();
            let line =
                all.line(cfg, &c.id, &target, machine).with_context(|| format!("-chardev id={}", c.id))?;
            all.named.lock().insert(c.id.clone(), line);
            if let Some(mux) = all.muxes.get(muxes) {
                all.muxed.insert(c.id.clone(), mux.clone());
            }
        }
        for (n, target) in cfg.serials.iter().enumerate() {
            if target.backend == CharBackend::None {
                continue;
            }
            let Some(&(base, irq)) = COM.get(n) else { continue };
            let line = all
                .line(cfg, &format!("serial{n}"), target, machine)
                .with_context(|| format!("-serial {}", target.spec))?;
            all.serial(board, line, base, irq);
        }
        Ok(all)
    }

    /// What `-chardev` has opened by this name.
    pub fn device(&self, id: &str) -> Option<Arc<dyn Chardev>> {
        self.named.lock().get(id).cloned()
    }

    fn serial(&mut self, board: &mut Board, line: Arc<dyn Chardev>, base: u16, irq: u32) {
        let clock: Arc<dyn mynah_devices::clock::Clock> = board.clock.clone();
        let line = match &board.handoffs {
            Some(plans) => plans.watch(line),
            None => line,
        };
        let serial = Serial::new(line, board.pin(irq as usize), clock);
        serial.attach(&board.ports, base);
        board.devices.plug("isa.0", format!("serial@{base:x}"), serial.clone());
        self.serials.push(serial);
    }

    /// Opens a target under a name for the user, or finds the one that `-chardev` opened.
    pub fn line(
        &mut self,
        cfg: &Config,
        name: &str,
        target: &CharTarget,
        machine: &Handle,
    ) -> anyhow::Result<Arc<dyn Chardev>> {
        if let CharBackend::Chardev(id) = &target.backend {
            return match self.named.lock().get(id) {
                Some(line) => Ok(line.clone()),
                None => bail!("there is no -chardev with id={id}"),
            };
        }
        if matches!(target.backend, CharBackend::Stdio { .. }) && STDOUT_CLOSED.load(Ordering::Relaxed) {
            bail!(
                "standard output is closed; open it, or send the stream elsewhere (> /dev/null, or file:PATH)"
            );
        }
        if target.backend == CharBackend::Vc && self.wants_curses {
            let vc = Vc::new(self.host.events.clone());
            self.text.push((name.to_owned(), vc.clone()));
            let line: Arc<dyn Chardev> = vc;
            self.known.add(name, &line);
            self.lines.push((target.spec.clone(), line.clone()));
            return Ok(line);
        }
        let mut what = spec_of(&target.backend)?;
        if target.mux {
            what = spec::Spec::Mon(Box::new(what));
        }
        let opened = what.open(&self.host)?;
        if let Some(mux) = opened.mux {
            let quit = machine.power().clone();
            mux.set_quit(move || {
                quit.end(exit_code::POWER_OFF, Some("terminated from the console".into()));
            });
            mux.set_monitor(Arc::new(Hmp::new(cfg, machine, &self.translators, &self.known)));
            self.muxes.push(mux);
        }
        self.known.add(name, &opened.chardev);
        self.lines.push((target.spec.clone(), opened.chardev.clone()));
        Ok(opened.chardev)
    }

    /// All devices are plugged in: opens the monitors, and has whoever has come be greeted.
    pub fn start(&mut self, cfg: &Config, machine: &Handle) -> anyhow::Result<()> {
        for (n, target) in cfg.monitors.iter().enumerate() {
            // A target that is shared with a device has the monitor behind the escape character.
            if let CharBackend::Chardev(id) = &target.backend
                && self.muxed.contains_key(id)
            {
                continue;
            }
            let line = self
                .line(cfg, &format!("compat_monitor{n}"), target, machine)
                .with_context(|| format!("-monitor {}", target.spec))?;
            if !target.mux {
                let monitor = Arc::new(Hmp::new(cfg, machine, &self.translators, &self.known));
                self.monitors.push(MonitorLine::new(line, monitor));
            }
        }
        for mux in &self.muxes {
            mux.start();
        }
        self.vnc = cfg.vnc.as_ref().map(|vnc| self.show(cfg, machine, vnc)).transpose()?;
        if let Some(vnc) = &self.vnc {
            machine.shown_by(vnc.control());
        }
        if self.wants_curses {
            self.curses = Some(self.show_in_terminal(cfg, machine)?);
        }
        Ok(())
    }

    /// Shows the machine's screen to VNC clients.
    fn show(&self, cfg: &Config, machine: &Handle, vnc: &Vnc) -> anyhow::Result<VncServer> {
        let Some((_, display)) = machine.displays().into_iter().next() else {
            bail!("-vnc: the machine has no screen; add -vga std");
        };
        let Some(keyboard) = machine.keyboard() else { bail!("-vnc: the board has no keyboard") };
        let name = cfg.name.as_ref().map_or_else(|| "Mynah".into(), |name| format!("Mynah ({name})"));
        let password = match &vnc.secret {
            None => None,
            Some(id) => {
                let secret = cfg.secrets.iter().find(|s| s.id == *id).context("-vnc password-secret=")?;
                let bytes = secret.read().with_context(|| format!("-object secret,id={id}"))?;
                // The end of a file's line is none of it.
                Some(String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_owned())
            }
        };
        let options = VncOptions {
            address: vnc.address.clone(),
            needs_password: vnc.password,
            password,
            websocket: vnc.websocket.clone(),
            more_ports: vnc.more_ports,
            shared: vnc.shared,
            layout: layout_of(cfg),
            name,
        };
        let input = Arc::new(Ps2Input::new(keyboard));
        VncServer::start(&options, display, input, self.host.events.clone()).context("-vnc")
    }

    /// Shows the machine's screen in the terminal.
    fn show_in_terminal(&self, cfg: &Config, machine: &Handle) -> anyhow::Result<Curses> {
        let Some((_, display)) = machine.displays().into_iter().next() else {
            bail!("-display curses: the machine has no screen; add -vga std");
        };
        let Some(keyboard) = machine.keyboard() else { bail!("-display curses: the board has no keyboard") };
        // As QEMU has them: the monitor first.
        let mut consoles = self.text.clone();
        consoles.sort_by_key(|(name, _)| !name.starts_with("compat_monitor"));
        let lazy = cfg.display == Display::Terminal;
        let options = CursesOptions { lazy, consoles, layout: layout_of(cfg) };
        Curses::start(options, display, Arc::new(Ps2Input::new(keyboard))).context("-display curses")
    }

    /// Where the vCPUs' translators are to be listed, for the monitor.
    pub fn translators(&self) -> Translators {
        self.translators.clone()
    }

    /// The machine ends: nobody who writes waits for a reader any more.
    pub fn hurry(&self) {
        for (_, line) in &self.lines {
            line.hurry();
        }
    }

    /// Gives the terminal back, so that what is said at the end can be read.
    pub fn leave_terminal(&self) {
        if let Some(curses) = &self.curses {
            curses.stop();
        }
    }

    /// Sends what is still on its way, as far as it is taken until then, and says what was not.
    pub fn close(&self, until: Instant, program: &str) {
        for s in &self.serials {
            s.flush(until);
        }
        for (_, line) in &self.lines {
            line.flush(until);
        }
        for (spec, line) in &self.lines {
            let lost = line.unsent();
            if lost > 0 {
                crate::cli::say(
                    program,
                    &format!("{spec}: {lost} bytes of output were not read, and are lost"),
                );
            }
        }
    }
}

/// The keyboard's layout.
fn layout_of(cfg: &Config) -> &'static layout::Layout {
    cfg.layout.as_deref().and_then(layout::named).unwrap_or(layout::usual())
}

fn spec_of(backend: &CharBackend) -> anyhow::Result<spec::Spec> {
    use spec::{SocketSpec, Spec};
    Ok(match backend {
        CharBackend::None => Spec::None,
        CharBackend::Null | CharBackend::Vc => Spec::Null,
        CharBackend::Stdio { signal } => Spec::Stdio { signal: *signal },
        CharBackend::Pty => Spec::Pty,
        CharBackend::File { path, append } => Spec::File { path: path.clone(), append: *append },
        CharBackend::Unix { path, socket } => {
            no_telnet(socket)?;
            Spec::Socket(SocketSpec {
                address: Address::Unix(path.clone()),
                server: socket.server,
                wait: socket.server && socket.wait,
                nodelay: false,
            })
        }
        CharBackend::Tcp { host, port, socket } => {
            no_telnet(socket)?;
            let port = port.parse().with_context(|| format!("'{port}' is not a port number"))?;
            Spec::Socket(SocketSpec {
                address: Address::Tcp { host: host.clone(), port },
                server: socket.server,
                wait: socket.server && socket.wait,
                nodelay: socket.nodelay,
            })
        }
        CharBackend::Pipe { path } => bail!("pipe {}: not supported yet", path.display()),
        CharBackend::Host { path } => bail!("host device {}: not supported yet", path.display()),
        CharBackend::Udp { .. } => bail!("udp: not supported yet"),
        CharBackend::Chardev(id) => bail!("-chardev id={id} cannot stand for itself"),
    })
}

fn no_telnet(socket: &crate::config::Socket) -> anyhow::Result<()> {
    if socket.telnet {
        bail!("the telnet protocol is not supported yet");
    }
    if socket.reconnect != 0 {
        bail!("reconnect= is not supported yet");
    }
    Ok(())
}

/// `-debugcon`, `-device` and the board's own fw_cfg.
pub fn attach_extra(
    cfg: &Config,
    board: &mut Board,
    machine: &Handle,
    consoles: &mut Consoles,
) -> anyhow::Result<Arc<FwCfg>> {
    for target in &cfg.debugcons {
        let line = consoles
            .line(cfg, "debugcon", target, machine)
            .with_context(|| format!("-debugcon {}", target.spec))?;
        let console = Debugcon::new(line);
        console.attach(&board.ports, debugcon::PORT);
        board.devices.plug("isa.0", format!("debugcon@{:x}", debugcon::PORT), console);
    }
    let lines = |id: &str| consoles.named.lock().get(id).cloned();
    let mut isa_pin = |n: usize| board.pin(n);
    let mut slots = board.mmio_slots(cfg).into_iter();
    let mut mmio_slot = || slots.next();
    let boot = RefCell::default();
    let links = RefCell::default();
    let site = Site {
        ports: &board.ports,
        pci: board.chips.pci.as_deref(),
        clock: board.clock.clone(),
        events: machine.power().clone(),
        registry: &board.devices,
        isa_pin: RefCell::new(&mut isa_pin),
        chardev: &lines,
        drive: &|id| board.drives.take(id),
        netdev: &|id| board.nets.take(id),
        links: &links,
        rom: &|name| Some(find_firmware(cfg, Path::new(name))).filter(|f| f.is_file()),
        cpus: cfg.smp.cpus as usize,
        entropy: board.entropy.clone(),
        balloon: &board.balloon,
        vmgenid: &board.vmgenid,
        ide: &RefCell::new(board.chips.cables.clone()),
        fdc: board.chips.fdc.as_deref(),
        boot: &boot,
        consoles: &RefCell::default(),
        mmio_slot: RefCell::new(&mut mmio_slot),
        adapters: &RefCell::default(),
        serials: RefCell::new(&mut consoles.serials),
    };
    for d in &cfg.devices {
        (d.kind.plug)(&site, &d.values).with_context(|| format!("-device {}", d.kind.name))?;
    }
    drop(site);
    if let Some(id) = board.vmgenid.get() {
        let chipset = board.chips.chipset.clone();
        id.connect(move || chipset.general_event(vmgenid::EVENT));
    }
    board.nets.links = links.into_inner();
    board.boot_paths = boot.into_inner().into_values().collect();
    if let Some(fdc) = &board.chips.fdc {
        set_cmos_floppies(&board.ports, fdc);
    }
    let fw_cfg = FwCfg::new(Dma::always(board.memory.clone()));
    fw_cfg.set_u16(key::NB_CPUS, cfg.smp.cpus as u16);
    fw_cfg.set_u16(key::MAX_CPUS, cfg.smp.max_cpus as u16);
    fw_cfg.set_u64(key::RAM_SIZE, cfg.memory.size);
    for item in &cfg.fw_cfg {
        let data = match &item.data {
            FwCfgData::Text(t) => t.clone().into_bytes(),
            FwCfgData::File(path) => std::fs::read(path)
                .with_context(|| format!("-fw_cfg name={}: {}", item.name, path.display()))?,
        };
        fw_cfg.add_file(&item.name, data).with_context(|| format!("-fw_cfg name={}", item.name))?;
    }
    fw_cfg.attach(&board.ports);
    board.devices.plug("isa.0", "fw_cfg", fw_cfg.clone());
    Ok(fw_cfg)
}
