//! A handle on a machine: what its user, its monitor and its tests do to it, from any thread.
use super::board::Board;
use super::engines::Engines;
use super::power::{Pause, Power, Report};
use super::saved::{Fitted, Saver};
use crate::config::{AccelKind, Config, WatchdogAction, exit_code};
use mynah_block::Drive;
use mynah_devices::device::Device;
use mynah_devices::display::vnc::VncControl;
use mynah_devices::display::{self, Display};
use mynah_devices::events::{MachineEvents, ResetCause, WakeCause};
use mynah_devices::input::i8042::I8042;
use mynah_devices::input::ps2::Key;
use mynah_devices::interrupts::lapic::LocalApic;
use mynah_devices::misc::vmgenid::Guid;
use mynah_devices::net::Link;
use mynah_devices::pci::PciBus;
use mynah_mmu::{PhysMemory, Target};
use parking_lot::Mutex;
use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// How long [`Handle::pause`] waits for vCPUs to stand still.
const STANDING: Duration = Duration::from_secs(1);

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Its vCPUs run, or wait for interrupts.
    Running,
    /// It sleeps (S3).
    Suspended,
    /// It is stopped, and why.
    Paused(Pause),
    /// It has been told to end.
    Ended,
}

impl fmt::Display for Status {
    /// As QEMU's monitor says it.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Suspended => "paused (suspended)",
            Self::Paused(Pause::User) => "paused",
            Self::Paused(Pause::Prelaunch) => "paused (prelaunch)",
            Self::Paused(Pause::Shutdown) => "paused (shutdown)",
            Self::Paused(Pause::Panicked) => "paused (guest-panicked)",
            Self::Paused(Pause::IoError) => "paused (io-error)",
            Self::Paused(Pause::Watchdog) => "paused (watchdog)",
            Self::Paused(Pause::PostMigrate) => "paused (postmigrate)",
            Self::Ended => "shutdown",
        })
    }
}

/// Why a machine cannot do what it is asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The guest has switched itself off, or has panicked: it can only start afresh.
    #[error("Resetting the Virtual Machine is required")]
    NeedsReset,
    /// It does not sleep.
    #[error("Unable to wake up: guest is not in suspended state")]
    Awake,
}

struct Built {
    board: Weak<Board>,
    engines: Weak<Engines>,
    saver: Saver,
}

struct Inner {
    power: Arc<Power>,
    built: OnceLock<Built>,
    /// Who shows its screen to the network.
    vnc: OnceLock<VncControl>,
    /// Held while something is done to the machine: nobody has it go on, or presses a button, while it is being saved.
    acting: Mutex<()>,
}

/// A handle on a machine. Clones are the same; it does not keep the machine alive.
#[derive(Clone)]
pub struct Handle(Arc<Inner>);

impl Handle {
    /// A handle on the machine that is to be built of `cfg`.
    pub(super) fn new(cfg: &Config) -> Self {
        let stopped = cfg.start_stopped || cfg.incoming.is_some();
        let power = Arc::new(Power::new(cfg.on_reboot, cfg.on_shutdown, cfg.on_panic, stopped));
        power.set_on_watchdog(cfg.on_watchdog);
        Self(Arc::new(Inner { power, built: OnceLock::new(), vnc: OnceLock::new(), acting: Mutex::new(()) }))
    }

    /// The machine is built. Once.
    pub(super) fn built(&self, cfg: &Config, fitted: Fitted, board: &Arc<Board>, engines: &Arc<Engines>) {
        let saver = Saver::new(cfg, fitted, &self.0.power, board);
        let engines = Arc::downgrade(engines);
        let _ = self.0.built.set(Built { board: Arc::downgrade(board), engines, saver });
    }

    /// A VNC server shows the screen. Once.
    pub(super) fn shown_by(&self, vnc: VncControl) {
        let _ = self.0.vnc.set(vnc);
    }

    /// The VNC server that shows the screen, if one does.
    pub fn vnc(&self) -> Option<&VncControl> {
        self.0.vnc.get()
    }

    /// A restored machine starts: not while it is being saved, and not if it has been before.
    pub(super) fn start(&self) {
        let _one = self.0.acting.lock();
        self.0.power.start();
    }

    pub(crate) fn power(&self) -> &Arc<Power> {
        &self.0.power
    }

    /// What the machine is doing.
    pub fn status(&self) -> Status {
        let power = &self.0.power;
        match power.paused() {
            _ if power.has_ended() => Status::Ended,
            Some(why) => Status::Paused(why),
            None if power.asleep() => Status::Suspended,
            None => Status::Running,
        }
    }

    /// Stops vCPUs and guest time; returns when all stand still, but waits no longer than a second for one that
    /// does not.
    pub fn pause(&self) {
        let _one = self.0.acting.lock();
        self.0.power.hold();
        self.0.power.wait_standing(STANDING);
    }

    /// Has vCPUs and guest time go on.
    ///
    /// # Errors
    /// The guest has come to an end of its own.
    pub fn resume(&self) -> Result<(), Refused> {
        let _one = self.0.acting.lock();
        match self.0.power.paused() {
            Some(Pause::Shutdown | Pause::Panicked) => Err(Refused::NeedsReset),
            _ => {
                self.0.power.go_on();
                if let Some(board) = self.board() {
                    board.drives.resume();
                }
                Ok(())
            }
        }
    }

    /// Presses the reset button.
    pub fn reset(&self) {
        let _one = self.0.acting.lock();
        self.0.power.reset(ResetCause::Host);
    }

    /// Presses the power button: what that means is the guest's business.
    pub fn power_button(&self) {
        let _one = self.0.acting.lock();
        self.0.power.press_button();
    }

    /// Wakes the machine from S3. To the guest it looks like the power button, which it need not have enabled.
    ///
    /// # Errors
    /// It does not sleep.
    pub fn wake(&self) -> Result<(), Refused> {
        let _one = self.0.acting.lock();
        if !self.0.power.asleep() {
            return Err(Refused::Awake);
        }
        self.0.power.wake(WakeCause::PowerButton);
        Ok(())
    }

    /// A non-maskable interrupt for each vCPU.
    pub fn nmi(&self) {
        let _one = self.0.acting.lock();
        self.0.power.nmi();
    }

    /// Ends the machine, as if its plug were pulled, whatever else is done to it.
    pub fn end(&self) {
        self.0.power.end(exit_code::POWER_OFF, None);
    }

    /// Waits until the machine has been told to end, by whomever; whether it has, before `patience` is over.
    pub fn wait_end(&self, patience: Duration) -> bool {
        self.0.power.wait_end_for(patience)
    }

    /// Stops the machine and saves it to `uri`: `file:FILE`, or `exec:COMMAND` to a command's input. It stays
    /// stopped; if it cannot be saved it goes on. [`Config::incoming`] starts a machine from there.
    ///
    /// # Errors What is wrong with the place, or which vCPU does not stop. There is no part of a file then, and an
    /// older one is as it was.
    pub fn save(&self, uri: &str) -> anyhow::Result<()> {
        let _one = self.0.acting.lock();
        match self.0.built.get() {
            Some(built) => built.saver.migrate(uri),
            None => anyhow::bail!("the machine is still being built"),
        }
    }

    /// What runs the vCPUs, once the machine is built.
    pub fn engine(&self) -> Option<AccelKind> {
        Some(self.0.built.get()?.engines.upgrade()?.current())
    }

    /// Has another engine run the vCPUs. They stand still meanwhile, and guest time with them, at an instruction
    /// boundary; the guest does not notice. If that cannot be, all is as it was.
    ///
    /// # Errors
    /// The engine is not there or cannot go on with this guest, or a vCPU does not stop.
    pub fn hand_over(&self, kind: AccelKind) -> anyhow::Result<()> {
        let _one = self.0.acting.lock();
        let Some(built) = self.0.built.get() else { anyhow::bail!("the machine is still being built") };
        let Some(engines) = built.engines.upgrade() else { anyhow::bail!("the machine has ended") };
        let name = |e: anyhow::Error| e.context(format!("handoff {kind}"));
        engines.prepare(kind).map_err(name)?;
        let power = &self.0.power;
        let running = power.paused().is_none();
        power.pause(Pause::User);
        let standing = power.wait_standing(STANDING);
        if standing {
            tracing::info!("handed over from {} to {kind}", engines.current());
            engines.hand_over(kind);
        }
        if running {
            power.go_on();
            // What came to be held meanwhile is tried again.
            if let Some(board) = self.board() {
                board.drives.resume();
            }
        }
        anyhow::ensure!(standing, name(anyhow::anyhow!("a vCPU does not come out of an instruction")));
        Ok(())
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> usize {
        self.0.power.vcpus()
    }

    /// What each vCPU says of itself between two instructions; none of one that does not within a second.
    pub fn reports(&self) -> Vec<Option<Report>> {
        self.0.power.reports()
    }

    /// What one vCPU says of itself; none if it does not answer within a second.
    pub fn report(&self, seat: usize) -> Option<Report> {
        self.reports().into_iter().nth(seat)?
    }

    /// What follows when a watchdog expires, from now on.
    pub fn set_on_watchdog(&self, action: WatchdogAction) {
        self.0.power.set_on_watchdog(action);
    }

    /// The generation id, if the machine has one.
    pub fn generation_id(&self) -> Option<Guid> {
        self.board()?.vmgenid.get().map(|id| id.guid())
    }

    /// Physical memory.
    pub fn memory(&self) -> Option<Arc<PhysMemory>> {
        self.board().map(|board| board.memory.clone())
    }

    /// Reads a port, as a vCPU does; all ones where there is none.
    pub fn port_read(&self, port: u16, size: u8) -> u32 {
        self.board().map_or(u32::MAX, |board| board.ports.read(port, size))
    }

    /// Writes a port, as a vCPU does.
    pub fn port_write(&self, port: u16, size: u8, value: u32) {
        if let Some(board) = self.board() {
            board.ports.write(port, size, value);
        }
    }

    /// Bus 0, if the board has PCI.
    pub fn pci(&self) -> Option<Arc<PciBus>> {
        self.board()?.chips.pci.clone()
    }

    /// Bus, name and kind of each device.
    pub fn devices(&self) -> Vec<(Cow<'static, str>, String, &'static str)> {
        self.board().map_or(Vec::new(), |board| board.devices.list())
    }

    /// The states of all devices by name: what would be saved of them, as trees of named values. Each is as of a moment
    /// of its own while the machine runs. Where the host's kernel keeps local APICs the vCPUs come out of the guest for
    /// them; that of one which does not within a second is as it was.
    pub fn inspect(&self) -> Vec<(String, serde_json::Value)> {
        self.0.power.look_at_apics();
        self.board().map_or(Vec::new(), |board| board.devices.inspect())
    }

    /// The state of one device, as of [`Handle::inspect`].
    pub fn inspect_one(&self, name: &str) -> Option<serde_json::Value> {
        let device = self.board()?.devices.find(name)?;
        if device.kind() == LocalApic::KIND {
            self.0.power.look_at_apics();
        }
        Some(device.inspect())
    }

    /// The screens of the display adapters, by the adapters' names.
    pub fn displays(&self) -> Vec<(String, Arc<dyn Display>)> {
        let all = self.board().map_or(Vec::new(), |board| board.devices.displays());
        all.into_iter().filter_map(|(name, device)| Some((name, display::of(device)?))).collect()
    }

    /// Keyboard and mouse.
    pub fn keyboard(&self) -> Option<Arc<I8042>> {
        self.board()?.chips.i8042.clone()
    }

    /// Presses keys, in their order, and lets them go.
    ///
    /// # Errors
    /// The board has no keyboard.
    pub fn send_keys(&self, keys: &[Key], hold: Duration) -> Result<(), &'static str> {
        let keyboard = self.keyboard().ok_or("the board has no keyboard")?;
        keys.iter().for_each(|key| keyboard.key(*key, true));
        std::thread::sleep(hold);
        keys.iter().rev().for_each(|key| keyboard.key(*key, false));
        Ok(())
    }

    /// The machine's drives.
    pub fn drives(&self) -> Vec<Arc<Drive>> {
        self.board().map_or(Vec::new(), |board| board.drives.all().to_vec())
    }

    /// The network cards' links, in the order in which the cards were plugged in.
    pub fn links(&self) -> Vec<Arc<Link>> {
        self.board().map_or(Vec::new(), |board| board.nets.links.clone())
    }

    /// What answers at physical addresses: first and last one, what it is, and which device.
    pub fn memory_map(&self) -> Vec<(u64, u64, &'static str, &'static str)> {
        let Some(board) = self.board() else { return Vec::new() };
        let regions = board.memory.regions().into_iter().filter_map(|(first, len, target)| {
            let (kind, name) = match target {
                Target::Ram(_) => ("ram", "pc.ram"),
                Target::Rom(_) => ("rom", "pc.bios"),
                Target::DeviceRam(_) => ("ram", "device memory"),
                Target::Mmio(device, _) => ("i/o", device.name()),
                Target::None => return None,
            };
            Some((first, first.saturating_add(len - 1), kind, name))
        });
        regions.collect()
    }

    /// What answers at I/O ports: first and last one, and which device.
    pub fn port_map(&self) -> Vec<(u16, u16, &'static str)> {
        self.board().map_or(Vec::new(), |board| board.ports.ranges())
    }

    /// How many times each interrupt wire has risen since the machine was built.
    pub fn interrupts(&self) -> Vec<u64> {
        self.board().map_or(Vec::new(), |board| board.router.raised())
    }

    pub(super) fn board(&self) -> Option<Arc<Board>> {
        self.0.built.get()?.board.upgrade()
    }
}
