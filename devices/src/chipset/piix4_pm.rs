//! The PIIX4 power manager (82371AB function 3), 8086:7113 at 00:01.3: ACPI fixed registers, GPE0, the SMI
//! command port, SMBus.
//!
//! ```text
//!   PMBASE +0  PM1a_STS   +2 PM1a_EN   +4 PM1a_CNT   +8 PM timer   (ACPI 4.8.3; base: 40h in config space)
//!   GPE0   +0  status     +2 enable                                  (at AFE0h, as the emulated PC has it)
//!   B2h    SMI command (ACPI enable F1h, disable F0h), B3h its data
//!   SMBA   SMBus host controller with nothing on its bus              (base: 90h in config space)
//! ```
//!
//! Sleep: S3 is told to the machine, and so is what wakes it (the power button and the clock's alarm, where they are
//! enabled). A machine that wakes resets its chips, this one by `wake`.
//!
//! The SCI is level-triggered on ISA interrupt 9: it is up while a status bit is set whose enable bit is set,
//! and SCI_EN is. There is no SMM: the writes to B2h by which ACPI is switched on and off act on SCI_EN at
//! once, other SMI commands are stored only. The timer's count comes from outside; TMR_STS, which tells of
//! changes of its highest bit, follows the clock once it has one (`follow`). On purpose absent: device
//! monitors, throttling (P_CNT), the general-purpose pins, legacy power management. Registers of the power
//! management block that are not listed above read as 0.
//!
//! Locks: `state` is held while the SCI pin is driven. The machine's callbacks run with nothing locked.
//!
//! Sources: Intel 82371AB (PIIX4) data sheet (290562-001), chapters 7.1 and 7.2; ACPI specification 5.0,
//! 4.8.3.
use super::pm1::{Pm1, bits, go_to_sleep};
use crate::bus::{Irq, PortBus, PortIo, PortMapping, open_bus, read_bytes, write_bytes};
use crate::clock::{Clock, Nanos, Timer, TimerOwner};
use crate::device::{Device, Invalid, Reset};
use crate::events::{MachineEvents, WakeCause};
use crate::pci::config::{ConfigV1, reg};
use crate::pci::{ConfigSpace, DevFn, PciDevice};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, OnceLock, Weak};

/// Where the function is.
pub const DEVFN: DevFn = DevFn::new(1, 3);
/// Where firmware puts the power management registers.
pub const PM_BASE: u16 = 0x600;
/// Ports that they take.
pub const PM_LEN: u32 = 64;
/// PM1 event block, from the base.
pub const PM1_EVENT: u16 = 0;
/// PM1 control block, from the base.
pub const PM1_CONTROL: u16 = 4;
/// The PM timer, from the base.
pub const PM_TIMER: u16 = 8;
/// GPE0 block: 2 bytes of status, 2 of enables.
pub const GPE0_BASE: u16 = 0xafe0;
/// Bytes of the GPE0 block.
pub const GPE0_LEN: u32 = 4;
/// SMI command port; its data port is the next.
pub const SMI_COMMAND: u16 = 0xb2;
/// Written to `SMI_COMMAND`: ACPI takes over.
pub const ACPI_ENABLE: u8 = 0xf1;
/// Written to `SMI_COMMAND`: ACPI lets go.
pub const ACPI_DISABLE: u8 = 0xf0;
/// The ISA interrupt of the SCI.
pub const SCI_IRQ: u32 = 9;
pub use super::pm1::{SLP_TYP_S3, SLP_TYP_S4, SLP_TYP_S5};
/// Where firmware puts the SMBus host controller.
pub const SMBUS_BASE: u16 = 0x700;
/// Ports that it takes.
pub const SMBUS_LEN: u32 = 16;

/// Configuration registers (7.1).
mod cfg {
    pub const PMBASE: u8 = 0x40;
    pub const DEVACTB: u8 = 0x58;
    pub const PMREGMISC: u8 = 0x80;
    pub const SMBBA: u8 = 0x90;
    pub const SMBHSTCFG: u8 = 0xd2;
}

/// SMBus host status bits (7.3.1).
mod smb {
    pub const DEVICE_ERROR: u8 = 1 << 2;
    pub const CLEARABLE: u8 = 0x1e;
    pub const START: u8 = 1 << 6;
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct State {
    pm1: Pm1,
    gpe_status: u16,
    gpe_enable: u16,
    smi_command: u8,
    smi_data: u8,
    smbus: [u8; SMBUS_LEN as usize],
    /// Bases of the register blocks as they are mapped now: where the configuration space has them.
    #[serde(skip)]
    pm: Option<(u16, PortMapping)>,
    #[serde(skip)]
    smb: Option<(u16, PortMapping)>,
}

impl State {
    fn sci(&self) -> bool {
        self.pm1.acpi_mode() && (self.pm1.has_event() || self.gpe_status & self.gpe_enable != 0)
    }
}

/// The power manager.
pub struct Piix4Pm {
    config: Mutex<ConfigSpace>,
    state: Mutex<State>,
    sci: Irq,
    timer: Box<dyn Fn() -> u32 + Send + Sync>,
    ports: Arc<PortBus>,
    events: Arc<dyn MachineEvents>,
    /// The clock that the timer counts by, and the call at the next change of its highest bit.
    clock: OnceLock<(Arc<dyn Clock>, Arc<dyn Timer>)>,
    me: Weak<Self>,
}

/// Which registers a port window shows.
#[derive(Clone, Copy)]
enum Block {
    Pm,
    Gpe0,
    Smi,
    Smbus,
}

struct Window {
    chip: Weak<Piix4Pm>,
    block: Block,
}

impl Piix4Pm {
    /// A power manager whose SCI is `sci` (ISA interrupt 9) and whose PM timer counts what `timer` says (24
    /// bits are shown). Its fixed ports (GPE0, SMI command) are put on `ports` at once, the others where
    /// software enables them.
    pub fn new(
        sci: Irq,
        timer: impl Fn() -> u32 + Send + Sync + 'static,
        ports: Arc<PortBus>,
        events: Arc<dyn MachineEvents>,
    ) -> Arc<Self> {
        let mut c = ConfigSpace::new(0x8086, 0x7113, 0x06_8000, 0x03);
        c.allow16(reg::COMMAND, 0x0001);
        c.set16(reg::STATUS, 0x0280);
        c.set8(reg::INTERRUPT_PIN, 1);
        c.allow8(reg::CACHE_LINE_SIZE, 0);
        c.allow8(reg::LATENCY_TIMER, 0);
        c.set32(cfg::PMBASE, 1);
        c.allow32(cfg::PMBASE, 0xffc0);
        // Counters and device monitors, 44h to 7Fh: storage.
        for i in 0x44..0x80 {
            c.allow8(i, 0xff);
        }
        // DEVACTB's APMC_EN says to firmware that system management mode has been set up: there is none to set up.
        c.set32(cfg::DEVACTB, 0x0200_0000);
        c.allow8(cfg::PMREGMISC, 0x01);
        c.set32(cfg::SMBBA, 1);
        c.allow32(cfg::SMBBA, 0xfff0);
        c.allow32(cfg::SMBHSTCFG, 0x00ff_ff0f);
        let chip = Arc::new_cyclic(|me| Self {
            config: Mutex::new(c),
            state: Mutex::new(State::default()),
            sci,
            timer: Box::new(timer),
            ports: ports.clone(),
            events,
            clock: OnceLock::new(),
            me: me.clone(),
        });
        ports.map(GPE0_BASE, GPE0_LEN, chip.window(Block::Gpe0));
        ports.map(SMI_COMMAND, 2, chip.window(Block::Smi));
        chip
    }

    /// What firmware does before it starts a system: puts the power management registers at `base` and the
    /// SMBus controller 100h above it.
    pub fn enable_at(&self, base: u16) {
        self.config_write(cfg::PMBASE, 4, u32::from(base));
        self.config_write(cfg::PMREGMISC, 1, 1);
        self.config_write(cfg::SMBBA, 4, u32::from(base.wrapping_add(SMBUS_BASE - PM_BASE)));
        self.config_write(cfg::SMBHSTCFG, 1, 0x09);
        self.config_write(reg::COMMAND, 2, 1);
        self.config_write(reg::INTERRUPT_LINE, 1, SCI_IRQ);
    }

    /// Names the clock that the PM timer counts by, which must be the one behind the count given to `new`:
    /// from now on TMR_STS is set when the timer's highest bit changes. Only the first call counts.
    pub fn follow(&self, clock: &Arc<dyn Clock>) {
        let timer = clock.timer(self.me.clone());
        self.state.lock().pm1.begin(clock.now());
        let _ = self.clock.set((clock.clone(), timer));
    }

    /// The real-time clock's alarm has rung.
    pub fn rtc_alarm(&self) {
        self.raise(bits::RTC);
    }

    /// The machine wakes from S3, and was reset for that: WAK_STS is set with the status of what has woken it.
    pub fn wake(&self, cause: WakeCause) {
        self.raise(bits::WAKE | bits::of(cause));
    }

    /// Whether ACPI mode is on (SCI_EN).
    pub fn acpi_mode(&self) -> bool {
        self.state.lock().pm1.acpi_mode()
    }

    /// Where the power management registers are now, if they are anywhere.
    pub fn base(&self) -> Option<u16> {
        self.state.lock().pm.map(|(base, _)| base)
    }

    /// General-purpose event `bit` (0 to 15) has happened.
    pub fn general_event(&self, bit: u8) {
        let mut state = self.state.lock();
        state.gpe_status |= 1 << (bit & 15);
        self.settle(&mut state);
    }

    fn raise(&self, bits: u16) {
        let cause = {
            let mut state = self.state.lock();
            state.pm1.raise(bits);
            self.settle(&mut state);
            state.pm1.wakes()
        };
        if let Some(cause) = cause {
            self.events.wake(cause);
        }
    }

    /// Brings TMR_STS up to date.
    fn look_at_timer(&self, state: &mut State) {
        if let Some((clock, _)) = self.clock.get() {
            state.pm1.look_at_timer(clock.now());
        }
    }

    /// After a status or enable bit has changed: drives the SCI, and asks for a call if the timer's next
    /// carry is to raise it.
    fn settle(&self, state: &mut State) {
        self.look_at_timer(state);
        self.sci.set(state.sci());
        if let Some((clock, timer)) = self.clock.get() {
            match state.pm1.next_event(clock.now()) {
                Some(deadline) => timer.arm(deadline),
                None => timer.cancel(),
            }
        }
    }

    fn window(&self, block: Block) -> Arc<dyn PortIo> {
        Arc::new(Window { chip: self.me.clone(), block })
    }

    /// Moves the register blocks to where the configuration space has them.
    fn remap(&self) {
        let (pm, smb) = {
            let c = self.config.lock();
            let place = |base: u8, enable: u8| {
                let at = c.get16(base) & !1;
                (c.get8(enable) & 1 != 0 && at != 0).then_some(at)
            };
            (place(cfg::PMBASE, cfg::PMREGMISC), place(cfg::SMBBA, cfg::SMBHSTCFG))
        };
        let mut state = self.state.lock();
        let state = &mut *state;
        for (now, wanted, len, block) in
            [(&mut state.pm, pm, PM_LEN, Block::Pm), (&mut state.smb, smb, SMBUS_LEN, Block::Smbus)]
        {
            if now.map(|(base, _)| base) != wanted {
                if let Some((_, mapping)) = now.take() {
                    self.ports.unmap(mapping);
                }
                *now = wanted.map(|base| (base, self.ports.map(base, len, self.window(block))));
            }
        }
    }

    fn read_pm(&self, offset: u16, size: u8) -> u32 {
        // The timer is read in one piece, so that its bytes belong together.
        let timer = (self.timer)() & 0x00ff_ffff;
        let mut state = self.state.lock();
        self.look_at_timer(&mut state);
        read_bytes(size, |i| match offset.wrapping_add(i) {
            at @ 8..12 => timer.to_le_bytes()[usize::from(at) - 8],
            at => state.pm1.read(at),
        })
    }

    fn write_pm(&self, offset: u16, size: u8, value: u32) {
        let mut sleep = None;
        {
            let mut state = self.state.lock();
            // A carry that has happened is there to be cleared.
            self.look_at_timer(&mut state);
            write_bytes(size, value, |i, b| {
                sleep = state.pm1.write(offset.wrapping_add(i), b).or(sleep);
            });
            self.settle(&mut state);
        }
        if let Some(kind) = sleep {
            go_to_sleep(kind, &*self.events, || self.state.lock().pm1.wakes());
        }
    }

    fn write_smi(&self, offset: u16, value: u8) {
        let mut state = self.state.lock();
        if offset != 0 {
            state.smi_data = value;
            return;
        }
        state.smi_command = value;
        match value {
            ACPI_ENABLE => state.pm1.set_acpi_mode(true),
            ACPI_DISABLE => state.pm1.set_acpi_mode(false),
            _ => {}
        }
        self.settle(&mut state);
    }

    /// SMBus host registers: every transaction ends at once with "no device answered".
    fn write_smbus(&self, offset: u16, value: u8) {
        let mut state = self.state.lock();
        let Some(register) = state.smbus.get_mut(usize::from(offset)) else { return };
        match offset {
            0 => *register &= !(value & smb::CLEARABLE),
            2 => {
                *register = value & 0x1f;
                if value & smb::START != 0 {
                    state.smbus[0] |= smb::DEVICE_ERROR;
                }
            }
            _ => *register = value,
        }
    }
}

impl PortIo for Window {
    fn read(&self, offset: u16, size: u8) -> u32 {
        let Some(chip) = self.chip.upgrade() else { return open_bus(size) };
        if let Block::Pm = self.block {
            return chip.read_pm(offset, size);
        }
        let state = chip.state.lock();
        read_bytes(size, |i| {
            let at = offset.wrapping_add(i);
            match (self.block, at) {
                (Block::Gpe0, 0..2) => state.gpe_status.to_le_bytes()[usize::from(at)],
                (Block::Gpe0, 2..4) => state.gpe_enable.to_le_bytes()[usize::from(at) - 2],
                (Block::Smi, 0) => state.smi_command,
                (Block::Smi, 1) => state.smi_data,
                (Block::Smbus, _) => state.smbus.get(usize::from(at)).copied().unwrap_or(0xff),
                _ => 0xff,
            }
        })
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        let Some(chip) = self.chip.upgrade() else { return };
        match self.block {
            Block::Pm => chip.write_pm(offset, size, value),
            Block::Smi => write_bytes(size, value, |i, b| chip.write_smi(offset.wrapping_add(i), b)),
            Block::Smbus => write_bytes(size, value, |i, b| chip.write_smbus(offset.wrapping_add(i), b)),
            Block::Gpe0 => {
                let mut state = chip.state.lock();
                write_bytes(size, value, |i, b| {
                    let at = offset.wrapping_add(i);
                    let (bits, lane) = (u16::from(b) << (8 * (at & 1)), 0xff << (8 * (at & 1)));
                    match at {
                        0 | 1 => state.gpe_status &= !bits,
                        2 | 3 => state.gpe_enable = state.gpe_enable & !lane | bits,
                        _ => {}
                    }
                });
                chip.settle(&mut state);
            }
        }
    }
}

impl TimerOwner for Piix4Pm {
    fn expired(&self) {
        self.settle(&mut self.state.lock());
    }
}

impl PciDevice for Piix4Pm {
    fn config(&self) -> &Mutex<ConfigSpace> {
        &self.config
    }

    fn config_write(&self, offset: u8, size: u8, value: u32) {
        self.config.lock().write(offset, size, value);
        self.remap();
    }
}

impl super::PowerButton for Piix4Pm {
    /// Its status bit is set and, if enabled, the SCI rises.
    fn press(&self) {
        self.raise(bits::POWER_BUTTON);
    }
}

/// What is saved of a power manager.
#[derive(Serialize, Deserialize)]
pub struct Piix4PmV1 {
    config: ConfigV1,
    state: State,
    timer: Option<Nanos>,
    sci: bool,
}

impl Device for Piix4Pm {
    type State = Piix4PmV1;
    const KIND: &'static str = "PIIX4_PM";
    const VERSION: u16 = 2;

    fn reset(&self, _: Reset) {
        self.config.lock().reset();
        {
            let mut state = self.state.lock();
            let (pm, smb) = (state.pm.take(), state.smb.take());
            *state = State { pm, smb, ..State::default() };
            if let Some((clock, _)) = self.clock.get() {
                state.pm1.begin(clock.now());
            }
            self.settle(&mut state);
        }
        self.remap();
    }

    fn save(&self) -> Piix4PmV1 {
        let timer = self.clock.get().and_then(|(_, timer)| timer.deadline());
        let config = self.config.lock().save();
        Piix4PmV1 { config, state: self.state.lock().clone(), timer, sci: self.sci.level() }
    }

    fn restore(&self, Piix4PmV1 { config, state, timer, sci }: Piix4PmV1) -> Result<(), Invalid> {
        self.config.lock().restore(config)?;
        {
            let mut now = self.state.lock();
            let (pm, smb) = (now.pm.take(), now.smb.take());
            *now = State { pm, smb, ..state };
            if let Some((_, its)) = self.clock.get() {
                its.set(timer);
            }
            self.sci.restore(sci);
        }
        self.remap();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chipset::PowerButton;
    use crate::clock::{ManualClock, SECOND};
    use crate::events::testing::{Recorder, hammer};
    use crate::pci::testing::Pc;

    fn setup() -> (Pc, Arc<Piix4Pm>, Irq, Arc<Recorder>) {
        let (pc, sci, events) = (Pc::new(), Irq::unconnected(), Recorder::new());
        let chip = Piix4Pm::new(sci.clone(), || 0xff12_3456, pc.ports.clone(), events.clone());
        pc.bus.attach(DEVFN, chip.clone());
        chip.enable_at(PM_BASE);
        (pc, chip, sci, events)
    }

    #[test]
    fn its_registers_are_where_firmware_puts_them() {
        let (pc, chip, _, _) = setup();
        assert_eq!((pc.read(DEVFN, 0, 4), pc.read(DEVFN, 8, 4)), (0x7113_8086, 0x0680_0003));
        assert_eq!(pc.read(DEVFN, 0x40, 4), 0x601);
        assert_eq!(pc.ports.read(0x608, 4), 0x0012_3456, "24 bits of the timer");
        assert_eq!((pc.ports.read(0x609, 1), pc.ports.read(0x60a, 2)), (0x34, 0x12));
        pc.write(DEVFN, 0x40, 4, 0xb000);
        assert_eq!((pc.ports.read(0x608, 4), pc.ports.read(0xb008, 4)), (u32::MAX, 0x0012_3456));
        pc.write(DEVFN, 0x80, 1, 0);
        assert_eq!(pc.ports.read(0xb008, 4), u32::MAX);
        chip.enable_at(PM_BASE);
        chip.reset(Reset::Board);
        assert_eq!(pc.ports.read(0x608, 4), u32::MAX);
    }

    #[test]
    fn acpi_is_switched_on_and_off_by_smi_commands() {
        let (pc, _, _, _) = setup();
        assert_eq!(pc.ports.read(0x604, 2) & 1, 0);
        pc.ports.write(0xb2, 1, ACPI_ENABLE.into());
        assert_eq!((pc.ports.read(0x604, 2) & 1, pc.ports.read(0xb2, 1)), (1, 0xf1));
        pc.ports.write(0xb2, 1, ACPI_DISABLE.into());
        assert_eq!(pc.ports.read(0x604, 2) & 1, 0);
    }

    #[test]
    fn the_power_button_raises_the_sci_until_its_status_is_cleared() {
        let (pc, chip, sci, _) = setup();
        pc.ports.write(0x602, 2, 0x0100);
        chip.press();
        assert!(!sci.level(), "not before ACPI is on");
        pc.ports.write(0xb2, 1, ACPI_ENABLE.into());
        assert!(sci.level());
        assert_eq!(pc.ports.read(0x600, 2), 0x0100);
        pc.ports.write(0x601, 1, 0x01);
        assert!(!sci.level());
        assert_eq!(pc.ports.read(0x600, 4), 0x0100_0000);
    }

    #[test]
    fn events_that_are_not_enabled_raise_nothing() {
        let (pc, chip, sci, _) = setup();
        pc.ports.write(0xb2, 1, ACPI_ENABLE.into());
        chip.press();
        chip.general_event(3);
        assert!(!sci.level());
        assert_eq!(pc.ports.read(0xafe0, 2), 8);
        pc.ports.write(0xafe2, 2, 8);
        assert!(sci.level());
        pc.ports.write(0xafe0, 2, 8);
        assert!(!sci.level());
    }

    #[test]
    fn a_change_of_the_timers_highest_bit_sets_its_status_and_raises_the_sci_if_enabled() {
        let (pc, chip, sci, _) = setup();
        let manual = ManualClock::new();
        let clock: Arc<dyn Clock> = Arc::new(manual.clone());
        chip.follow(&clock);
        pc.ports.write(0xb2, 1, ACPI_ENABLE.into());
        manual.advance(2 * SECOND);
        assert_eq!(pc.ports.read(0x600, 2), 0);
        manual.advance(SECOND / 2);
        assert_eq!(pc.ports.read(0x600, 2), 1, "2.34 s is half its period");
        assert_eq!(manual.next_deadline(), None, "nothing is to be called while it interrupts nobody");
        pc.ports.write(0x600, 2, 1);
        pc.ports.write(0x602, 2, 1);
        assert_eq!((pc.ports.read(0x600, 2), sci.level()), (0, false));
        manual.advance(3 * SECOND);
        assert!(sci.level());
        pc.ports.write(0x600, 2, 1);
        assert!(!sci.level());
        manual.advance(3 * SECOND);
        assert!(sci.level(), "and again");
    }

    #[test]
    fn sleep_types_power_off_or_suspend() {
        let (pc, _, _, events) = setup();
        for (typ, told) in [(0_u32, "power off"), (1, "sleep S3"), (2, "sleep S4")] {
            pc.ports.write(0x604, 2, typ << 10 | 1);
            assert!(events.take().is_empty(), "not without SLP_EN");
            pc.ports.write(0x604, 2, typ << 10 | 1 | 1 << 13);
            assert_eq!(events.take(), [told]);
            assert_eq!(pc.ports.read(0x604, 2), typ << 10 | 1, "SLP_EN reads as 0");
        }
        pc.ports.write(0x604, 2, 7 << 10 | 1 << 13);
        assert!(events.take().is_empty());
        pc.ports.write(0x605, 1, 0x20);
        assert_eq!(events.take(), ["power off"], "by a byte write too");
    }

    #[test]
    fn what_is_enabled_wakes_and_is_told_of_afterwards() {
        let (pc, chip, _, events) = setup();
        pc.ports.write(0xb2, 1, ACPI_ENABLE.into());
        assert!(chip.acpi_mode());
        chip.rtc_alarm();
        chip.press();
        assert!(events.take().is_empty(), "nothing is enabled");
        pc.ports.write(0x600, 2, 0xffff);
        // RTC_EN.
        pc.ports.write(0x602, 2, 1 << 10);
        pc.ports.write(0x604, 2, 1 << 10 | 1 << 13);
        assert_eq!(events.take(), ["sleep S3"]);
        chip.press();
        assert!(events.take().is_empty());
        chip.rtc_alarm();
        assert_eq!(events.take(), ["wake RtcAlarm"]);
        // An alarm that comes before the sleep ends it at once.
        pc.ports.write(0x604, 2, 1 << 10 | 1 << 13);
        assert_eq!(events.take(), ["sleep S3", "wake RtcAlarm"]);
        assert_eq!(chip.base(), Some(PM_BASE));
        for (cause, status) in [(WakeCause::RtcAlarm, 0x8400), (WakeCause::PowerButton, 0x8100)] {
            chip.reset(Reset::Wake);
            chip.wake(cause);
            assert_eq!((chip.base(), chip.acpi_mode()), (None, false));
            chip.enable_at(0xb000);
            assert_eq!((pc.ports.read(0xb000, 4), chip.base()), (status, Some(0xb000)), "WAK_STS, and why");
        }
        assert!(events.take().is_empty(), "it is awake");
    }

    #[test]
    fn the_smbus_has_no_devices() {
        let (pc, _, _, _) = setup();
        assert_eq!(pc.read(DEVFN, 0x90, 4), 0x701);
        assert_eq!(pc.ports.read(0x700, 1), 0, "idle");
        pc.ports.write(0x704, 1, 0xa1);
        pc.ports.write(0x702, 1, 0x48);
        assert_eq!(pc.ports.read(0x700, 1), 0x04);
        pc.ports.write(0x700, 1, 0x1e);
        assert_eq!(pc.ports.read(0x700, 1), 0);
    }

    #[test]
    fn no_access_of_any_width_panics() {
        let (_, chip, _, _) = setup();
        for (block, ports) in [(Block::Pm, 64), (Block::Gpe0, 8), (Block::Smi, 4), (Block::Smbus, 20)] {
            hammer(&*chip.window(block), ports);
        }
        for offset in 0..=255_u8 {
            for size in [1, 2, 4] {
                chip.config_write(offset, size, 0xdead_beef);
                chip.config_read(offset, size);
            }
        }
    }
}
