//! The LPC bridge, 8086:2918 at 00:1F.0.
//!
//! ```text
//!   INTA#..INTD# of each device --pirq()--> PIRQA#..PIRQH# --+--> I/O APIC inputs 16 to 23
//!                                                            +--> ISA IRQ 3-15, where routed (60h-63h, 68h-6Bh)
//!   PMBASE 40h, enabled by ACPI_CNTL 44h --> 128 ports: pm      RCBA F0h --> 16 KiB of memory: rcba
//!   CF9h reset control    B2h, B3h APM command and status
//! ```
//!
//! An SMI is never made: writes to B2h by which ACPI is switched on and off act on SCI_EN at once. On purpose absent:
//! the GPIO block, LPC decoders (registers are storage), the flash's interface.
//!
//! Locks: `state` is held while pins are driven and windows are moved. The machine's callbacks run with nothing locked.
//!
//! Source: Intel I/O Controller Hub 9 (ICH9) Family data sheet (316972-004), 5.8.4, 10.1, 13.1, 13.7 to 13.9.
use super::pm::{self, Effects, Pm};
use super::rcba::{self, Rcba};
use super::{ACPI_DISABLE, ACPI_ENABLE};
use crate::bus::{Irq, IrqSink, Mmio, PortBus, PortIo, PortMapping, open_bus, read_bytes, write_bytes};
use crate::chipset::pm1::{bits, go_to_sleep};
use crate::clock::{Clock, Nanos, Timer, TimerOwner};
use crate::device::{Device, Invalid, Reset};
use crate::events::{MachineEvents, ResetCause, WakeCause};
use crate::pci::config::{ConfigV1, reg};
use crate::pci::{ConfigSpace, DevFn, PciDevice};
use crate::timers::pm_timer::pm_timer_value;
use mynah_mmu::PhysMemory;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};

/// Where the bridge is.
pub const DEVFN: DevFn = DevFn::new(0x1f, 0);
/// Where firmware puts the power management block.
pub const PM_BASE: u16 = 0x600;
/// Where firmware puts the chip configuration registers.
pub const RCBA_BASE: u32 = 0xfed1_c000;

/// Configuration registers (13.1).
mod cfg {
    pub const PMBASE: u8 = 0x40;
    pub const ACPI_CNTL: u8 = 0x44;
    pub const GPIOBASE: u8 = 0x48;
    pub const RCBA: u8 = 0xf0;
    /// PIRQA to PIRQD, and PIRQE to PIRQH.
    pub const PIRQ: [u8; 8] = [0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6a, 0x6b];
}
/// ACPI_CNTL: the block is decoded.
const ACPI_EN: u8 = 1 << 7;
/// The wire is routed to no ISA interrupt.
const ROUTE_DISABLED: u8 = 0x80;
/// ISA interrupts that may be routed to: 3-7, 9-12, 14, 15.
const ROUTABLE: u16 = 0xdef8;
/// The I/O APIC's input of PIRQA#.
const FIRST_GSI: usize = 16;
/// Interrupts that the chip drives: ISA's and the I/O APIC's others.
pub(super) const LINES: usize = 24;
/// The APM ports.
const APM: u16 = 0xb2;

/// Reset control register, port CF9h: system reset, the trigger, and a full one.
const SYS_RST: u8 = 1 << 1;
const RST_CPU: u8 = 1 << 2;
const FULL_RST: u8 = 1 << 3;

/// The PIRQ wire (0 A to 7 H) that a pin (0 INTA# to 3 INTD#) of a device on bus 0 is wired to, as on QEMU's board.
pub const fn pirq(device: u8, pin: u8) -> u8 {
    match device {
        // The chip's own, as D25IR to D31IR have it.
        25..=29 | 31 => pin & 3,
        30 => (pin & 3) + 4,
        _ => (device.wrapping_add(pin) & 3) + 4,
    }
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct State {
    /// Levels of PIRQA# to PIRQH#.
    levels: [bool; 8],
    pm: Pm,
    rcba: Rcba,
    reset_control: u8,
    apm: [u8; 2],
    /// Where the windows are mapped now.
    #[serde(skip)]
    pm_window: Option<(u16, PortMapping)>,
    #[serde(skip)]
    rcba_window: Option<(u64, u64)>,
}

/// The PIRQ wires; each device's pins are clones of these.
struct Wires(Weak<Ich9Lpc>);

impl IrqSink for Wires {
    fn set(&self, line: u32, level: bool) {
        if let Some(chip) = self.0.upgrade() {
            chip.set_pirq(line as usize & 7, level);
        }
    }
}

/// The LPC bridge.
pub struct Ich9Lpc {
    config: Mutex<ConfigSpace>,
    state: Mutex<State>,
    lines: [Irq; LINES],
    wires: Mutex<[Irq; 8]>,
    ports: Arc<PortBus>,
    memory: Arc<PhysMemory>,
    clock: Arc<dyn Clock>,
    timer: Arc<dyn Timer>,
    events: Arc<dyn MachineEvents>,
    me: Weak<Self>,
}

/// What a window shows.
#[derive(Clone, Copy)]
enum Block {
    Pm,
    Apm,
    Rcba,
}

struct Window(Weak<Ich9Lpc>, Block);

impl Ich9Lpc {
    /// A bridge that drives the given pins, one for each ISA interrupt and each of the I/O APIC's others. Where one has
    /// other sources, hand in a shared pin (`Irq::share`).
    pub fn new(
        lines: [Irq; LINES],
        ports: Arc<PortBus>,
        memory: Arc<PhysMemory>,
        clock: Arc<dyn Clock>,
        events: Arc<dyn MachineEvents>,
    ) -> Arc<Self> {
        let mut c = ConfigSpace::new(0x8086, 0x2918, 0x06_0100, 0x02);
        c.set16(reg::COMMAND, 0x0007);
        c.allow16(reg::COMMAND, 0x0140);
        c.set16(reg::STATUS, 0x0200);
        c.set8(reg::HEADER_TYPE, 0x80);
        c.allow8(reg::CACHE_LINE_SIZE, 0);
        c.allow8(reg::LATENCY_TIMER, 0);
        c.allow8(reg::INTERRUPT_LINE, 0);
        c.set16(reg::SUBSYSTEM_VENDOR_ID, 0x1af4);
        c.set16(reg::SUBSYSTEM_ID, 0x1100);
        for base in [cfg::PMBASE, cfg::GPIOBASE] {
            c.set32(base, 1);
            c.allow32(base, 0xff80);
        }
        c.allow8(cfg::ACPI_CNTL, 0x87);
        c.allow8(0x4c, 0x13);
        for at in cfg::PIRQ {
            c.set8(at, ROUTE_DISABLED);
            c.allow8(at, 0x8f);
        }
        c.set8(0x64, 0x10);
        c.allow8(0x64, 0xff);
        // LPC decoders; general power management; BIOS control.
        c.allow32(0x80, 0x3f0f_1377);
        for at in (0x84..0x94).step_by(4) {
            c.allow32(at, 0x00fc_fffd);
        }
        for at in 0xa0..0xb0 {
            c.allow8(at, 0xff);
        }
        c.allow8(0xdc, 0x1f);
        c.allow32(cfg::RCBA, 0xffff_c001);
        let chip = Arc::new_cyclic(|me: &Weak<Self>| {
            let sink: Arc<dyn IrqSink> = Arc::new(Wires(me.clone()));
            let timer = clock.timer(me.clone());
            Self {
                config: Mutex::new(c),
                state: Mutex::default(),
                lines,
                wires: Mutex::new(std::array::from_fn(|n| Irq::new(sink.clone(), n as u32))),
                ports: ports.clone(),
                memory,
                clock,
                timer,
                events,
                me: me.clone(),
            }
        });
        chip.state.lock().pm.pm1.begin(chip.clock.now());
        ports.map(APM, 2, Arc::new(Window(chip.me.clone(), Block::Apm)));
        chip
    }

    /// The interrupt pin `pin` (0 INTA# to 3 INTD#) of the function at `devfn` on bus 0.
    pub fn intx(&self, devfn: DevFn, pin: u8) -> Irq {
        self.wires.lock()[usize::from(pirq(devfn.device(), pin) & 7)].share()
    }

    /// What firmware leaves: windows at their places, PCI interrupts routed to these ISA interrupts.
    pub fn like_firmware(&self, routes: [u8; 4]) {
        self.config_write(cfg::PMBASE, 4, PM_BASE.into());
        self.config_write(cfg::ACPI_CNTL, 1, ACPI_EN.into());
        self.config_write(cfg::RCBA, 4, RCBA_BASE | 1);
        for (at, route) in cfg::PIRQ.into_iter().zip(routes.into_iter().cycle()) {
            self.config_write(at, 1, route.into());
        }
    }

    /// The real-time clock's alarm has rung.
    pub fn rtc_alarm(&self) {
        self.raise(bits::RTC);
    }

    /// The machine wakes from S3, and was reset for that: WAK_STS is set with the status of what has woken it.
    pub fn wake(&self, cause: WakeCause) {
        self.raise(bits::WAKE | bits::of(cause));
    }

    /// General-purpose event `bit` (0 to 63) has happened.
    pub fn general_event(&self, bit: u8) {
        let bites = {
            let mut state = self.state.lock();
            state.pm.raise_general(bit);
            self.settle(&mut state)
        };
        if bites {
            self.events.watchdog();
        }
    }

    /// Whether ACPI mode is on (SCI_EN).
    pub fn acpi_mode(&self) -> bool {
        self.state.lock().pm.pm1.acpi_mode()
    }

    /// Where the power management block is now, if it is anywhere.
    pub fn base(&self) -> Option<u16> {
        self.state.lock().pm_window.map(|(base, _)| base)
    }

    fn raise(&self, events: u16) {
        let cause = {
            let mut state = self.state.lock();
            state.pm.pm1.raise(events);
            self.settle(&mut state);
            state.pm.pm1.wakes()
        };
        if let Some(cause) = cause {
            self.events.wake(cause);
        }
    }

    fn set_pirq(&self, pirq: usize, level: bool) {
        let mut state = self.state.lock();
        state.levels[pirq] = level;
        self.drive(&state);
    }

    /// The interrupts that are up: the SCI's, and the wires' by their routes.
    fn up(&self, state: &State) -> u32 {
        let c = self.config.lock();
        let sci = match c.get8(cfg::ACPI_CNTL) & 7 {
            n @ 0..=2 => 9 + u32::from(n),
            n @ 4..=5 => 16 + u32::from(n),
            _ => 9,
        };
        let mut up = u32::from(state.pm.sci()) << sci;
        for (n, _) in state.levels.iter().enumerate().filter(|(_, level)| **level) {
            up |= 1 << (FIRST_GSI + n);
            let route = c.get8(cfg::PIRQ[n]);
            let irq = route & 0x0f;
            if route & ROUTE_DISABLED == 0 && ROUTABLE >> irq & 1 != 0 {
                up |= 1 << irq;
            }
        }
        up
    }

    fn drive(&self, state: &State) {
        let up = self.up(state);
        // Pins that fall go first: one wire that moves must not look like two.
        for level in [false, true] {
            for (n, pin) in self.lines.iter().enumerate() {
                if (up >> n & 1 != 0) == level {
                    pin.set(level);
                }
            }
        }
    }

    /// After something has changed: time is caught up with, pins are driven, the next call is asked for. Whether the
    /// watchdog resets the machine.
    fn settle(&self, state: &mut State) -> bool {
        let now = self.clock.now();
        let bites = state.pm.look_at_clock(now) && state.rcba.reboots();
        self.drive(state);
        match state.pm.next_event(now) {
            Some(deadline) => self.timer.arm(deadline),
            None => self.timer.cancel(),
        }
        bites
    }

    /// Moves the windows to where the configuration space has them.
    fn remap(&self, state: &mut State) {
        let (pm, rcba) = {
            let c = self.config.lock();
            let pm = c.get16(cfg::PMBASE) & 0xff80;
            let rcba = c.get32(cfg::RCBA);
            let pm = (c.get8(cfg::ACPI_CNTL) & ACPI_EN != 0 && pm != 0).then_some(pm);
            (pm, (rcba & 1 != 0).then_some(u64::from(rcba & !0x3fff)))
        };
        if state.pm_window.map(|(base, _)| base) != pm {
            if let Some((_, mapping)) = state.pm_window.take() {
                self.ports.unmap(mapping);
            }
            let window = || Arc::new(Window(self.me.clone(), Block::Pm));
            state.pm_window = pm.map(|base| (base, self.ports.map(base, pm::LEN, window())));
        }
        if state.rcba_window.map(|(base, _)| base) != rcba {
            if let Some((_, mapping)) = state.rcba_window.take() {
                self.memory.unmap(mapping);
            }
            let window = || Arc::new(Window(self.me.clone(), Block::Rcba));
            state.rcba_window = rcba.map(|base| (base, self.memory.map_mmio(base, rcba::LEN, window())));
        }
    }

    fn read_pm(&self, offset: u16, size: u8) -> u32 {
        let now = self.clock.now();
        // The timer is read in one piece, so that its bytes belong together.
        let timer = pm_timer_value(now).to_le_bytes();
        let mut state = self.state.lock();
        // What has happened meanwhile is seen; what follows of it does so when the timer calls.
        state.pm.pm1.look_at_timer(now);
        read_bytes(size, |i| match offset.wrapping_add(i) {
            at @ 8..12 => timer[usize::from(at) - 8],
            at => state.pm.read(at, now),
        })
    }

    fn write_pm(&self, offset: u16, size: u8, value: u32) {
        let mut effects = Effects::default();
        let bites = {
            let mut state = self.state.lock();
            let now = self.clock.now();
            // A carry that has happened is there to be cleared.
            state.pm.pm1.look_at_timer(now);
            write_bytes(size, value, |i, b| {
                state.pm.write(offset.wrapping_add(i), b, now, &mut effects);
            });
            self.settle(&mut state)
        };
        if bites {
            self.events.watchdog();
        }
        if let Some(kind) = effects.sleep {
            go_to_sleep(kind, &*self.events, || self.state.lock().pm.pm1.wakes());
        }
    }

    fn write_apm(&self, offset: u16, value: u8) {
        let mut state = self.state.lock();
        if let Some(register) = state.apm.get_mut(usize::from(offset)) {
            *register = value;
        }
        match (offset, value) {
            (0, ACPI_ENABLE) => state.pm.pm1.set_acpi_mode(true),
            (0, ACPI_DISABLE) => state.pm.pm1.set_acpi_mode(false),
            _ => {}
        }
        self.settle(&mut state);
    }
}

impl PortIo for Window {
    fn name(&self) -> &'static str {
        "ich9"
    }

    fn read(&self, offset: u16, size: u8) -> u32 {
        let Some(chip) = self.0.upgrade() else { return open_bus(size) };
        match self.1 {
            Block::Pm => chip.read_pm(offset, size),
            _ => {
                let state = chip.state.lock();
                read_bytes(size, |i| state.apm.get(usize::from(offset + i)).copied().unwrap_or(0xff))
            }
        }
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        let Some(chip) = self.0.upgrade() else { return };
        match self.1 {
            Block::Pm => chip.write_pm(offset, size, value),
            _ => write_bytes(size, value, |i, b| chip.write_apm(offset + i, b)),
        }
    }
}

impl Mmio for Window {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let Some(chip) = self.0.upgrade() else { return u64::MAX };
        let state = chip.state.lock();
        crate::bus::read_bytes64(size, |i| state.rcba.read(offset + u64::from(i)))
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let Some(chip) = self.0.upgrade() else { return };
        let mut state = chip.state.lock();
        for (i, byte) in value.to_le_bytes().into_iter().enumerate().take(usize::from(size)) {
            state.rcba.write(offset + i as u64, byte);
        }
    }
}

impl TimerOwner for Ich9Lpc {
    fn expired(&self) {
        let bites = self.settle(&mut self.state.lock());
        if bites {
            self.events.watchdog();
        }
    }
}

impl PciDevice for Ich9Lpc {
    fn config(&self) -> &Mutex<ConfigSpace> {
        &self.config
    }

    fn config_write(&self, offset: u8, size: u8, value: u32) {
        let mut state = self.state.lock();
        self.config.lock().write(offset, size, value);
        self.remap(&mut state);
        self.drive(&state);
    }
}

/// The reset control register, port CF9h; `pci::ConfigPorts` leads byte accesses here.
impl PortIo for Ich9Lpc {
    fn read(&self, _: u16, size: u8) -> u32 {
        open_bus(size) & !0xff | u32::from(self.state.lock().reset_control)
    }

    fn write(&self, _: u16, _: u8, value: u32) {
        let value = value as u8;
        let triggered = {
            let mut state = self.state.lock();
            let before = std::mem::replace(&mut state.reset_control, value & (SYS_RST | RST_CPU | FULL_RST));
            value & !before & RST_CPU != 0
        };
        if triggered {
            self.events.reset(ResetCause::ResetControl);
        }
    }
}

impl crate::chipset::PowerButton for Ich9Lpc {
    fn press(&self) {
        self.raise(bits::POWER_BUTTON);
    }
}

/// What is saved of the bridge.
#[derive(Serialize, Deserialize)]
pub struct Ich9LpcV1 {
    config: ConfigV1,
    state: State,
    timer: Option<Nanos>,
}

impl Device for Ich9Lpc {
    type State = Ich9LpcV1;
    const KIND: &'static str = "ICH9-LPC";

    fn reset(&self, _: Reset) {
        let mut state = self.state.lock();
        self.config.lock().reset();
        let (pm_window, rcba_window) = (state.pm_window.take(), state.rcba_window.take());
        *state = State { pm_window, rcba_window, ..State::default() };
        state.pm.pm1.begin(self.clock.now());
        self.remap(&mut state);
        self.settle(&mut state);
    }

    fn save(&self) -> Ich9LpcV1 {
        let state = self.state.lock().clone();
        Ich9LpcV1 { config: self.config.lock().save(), state, timer: self.timer.deadline() }
    }

    fn restore(&self, Ich9LpcV1 { config, state, timer }: Ich9LpcV1) -> Result<(), Invalid> {
        if !state.pm.is_valid() || !state.rcba.is_valid() {
            return Err(Invalid("a register of the ICH9"));
        }
        let mut now = self.state.lock();
        self.config.lock().restore(config)?;
        let (pm_window, rcba_window) = (now.pm_window.take(), now.rcba_window.take());
        *now = State { pm_window, rcba_window, ..state };
        self.remap(&mut now);
        self.timer.set(timer);
        let up = self.up(&now);
        for (n, pin) in self.lines.iter().enumerate() {
            pin.restore(up >> n & 1 != 0);
        }
        Ok(())
    }
}
