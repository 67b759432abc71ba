//! The watchdog timer of Intel's 6300ESB, as a PCI function of its own.
//!
//! ```text
//!   configuration  60h  what the first stage does, the clock, whether the second one has an output
//!                  68h  lock, enable, free running
//!   memory (BAR 0) 00h  preload of the first stage, 20 bits     04h  that of the second one
//!                  08h  bit 0: the first stage has run out       0ch  bit 8 reloads, bit 9: there was a time-out
//! ```
//!
//! The memory registers but the status take one write after 80h and 86h have been written to 0Ch. A stage takes its
//! preload, in units of 2^15 or 2^5 cycles of the 33 MHz bus. When the second one runs out the machine does what
//! `-watchdog-action` says, and has its time-out bit set after that. The first one's interrupt goes to the second I/O
//! APIC of that chip set, which is not here: it is seen in the status register alone, as its SMI is.
//!
//! Source: Intel 6300ESB I/O Controller Hub data sheet (300641), Watchdog Timer. Beside bit 9 of 0Ch its bit 12 shows
//! the time-out, as under QEMU: early drivers of Linux look there.
use crate::bus::{Mmio, read_bytes};
use crate::clock::{Clock, Nanos, Timer, TimerOwner};
use crate::device::{Device, Invalid, Reset};
use crate::events::MachineEvents;
use crate::kind::{Bus, KINDS, Kind, PlugError, Site, Values};
use crate::pci::{BarKind, BarTarget, ConfigSpace, Function, FunctionV1, PciDevice};
use linkme::distributed_slice;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};

/// Configuration registers, and their bits.
const CONFIG: u8 = 0x60;
const FAST: u16 = 1 << 2;
const NO_OUTPUT: u16 = 1 << 5;
const CONFIG_BITS: u16 = 0x27;
const LOCK: u8 = 0x68;
const LOCKED: u8 = 1 << 0;
const ENABLE: u8 = 1 << 1;
const FREE_RUNNING: u8 = 1 << 2;

/// Memory registers, and their bits.
const STATUS: u64 = 0x08;
const RELOAD: u64 = 0x0c;
const RELOAD_NOW: u16 = 1 << 8;
const TIMEOUT: u16 = 1 << 9;
const TIMEOUT_OF_OLD: u16 = 1 << 12;
const PRELOAD: u32 = 0xf_ffff;

#[distributed_slice(KINDS)]
static KIND: Kind = Kind {
    name: "i6300esb",
    bus: Bus::Pci,
    about: "the watchdog timer of Intel's 6300ESB",
    properties: &[],
    plug,
};

fn plug(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let make = |function| I6300Esb::new(function, site.clock.clone(), site.events.clone());
    site.plug_pci(values, config(), make).map(drop)
}

fn config() -> ConfigSpace {
    let mut c = ConfigSpace::new(0x8086, 0x25ab, 0x08_8000, 0);
    c.add_bar(0, BarKind::Memory32 { prefetchable: false }, 16);
    c.allow16(CONFIG, CONFIG_BITS);
    c.allow8(LOCK, LOCKED | ENABLE | FREE_RUNNING);
    c
}

/// How much of the sequence that opens the registers has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Seal {
    #[default]
    Closed,
    Half,
    Open,
}

/// The registers that are not in configuration space.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Registers {
    preload: [u32; 2],
    /// The first stage has run out.
    status: bool,
    seal: Seal,
    /// The machine was reset by a time-out: it stays through that.
    timeout: bool,
    /// The stage that is counted down, and when it has run out.
    running: Option<(bool, Nanos)>,
}

impl Registers {
    fn new(timeout: bool) -> Self {
        Self { preload: [PRELOAD; 2], status: false, seal: Seal::Closed, timeout, running: None }
    }

    /// Begins a stage at `now`.
    fn begin(&mut self, second: bool, config: u16, now: Nanos) {
        const CYCLE: u64 = 30;
        let scale = if config & FAST != 0 { 5 } else { 15 };
        // A preload of 0 runs out at once, but not in no time.
        let cycles = u64::from(self.preload[usize::from(second)].max(1)) << scale;
        self.running = Some((second, now.saturating_add(cycles * CYCLE)));
    }
}

/// The device.
pub struct I6300Esb {
    function: Function,
    /// Before the function's locks.
    regs: Mutex<Registers>,
    clock: Arc<dyn Clock>,
    timer: Arc<dyn Timer>,
    events: Arc<dyn MachineEvents>,
    me: Weak<Self>,
}

impl I6300Esb {
    fn new(function: Function, clock: Arc<dyn Clock>, events: Arc<dyn MachineEvents>) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            function,
            regs: Mutex::new(Registers::new(false)),
            timer: clock.timer(me.clone()),
            clock,
            events,
            me: me.clone(),
        })
    }

    fn configured(&self) -> (u16, u8) {
        let config = self.function.config().lock();
        (config.get16(CONFIG), config.get8(LOCK))
    }

    fn arm(&self, regs: &Registers) {
        self.timer.set(regs.running.map(|(_, at)| at));
    }

    /// The lock register has become `new`.
    fn lock_written(&self, old: u8, new: u8) {
        let mut regs = self.regs.lock();
        if new & ENABLE == 0 {
            regs.running = None;
        } else if old & ENABLE == 0 {
            regs.begin(false, self.configured().0, self.clock.now());
        }
        self.arm(&regs);
    }

    fn write_sealed(&self, regs: &mut Registers, offset: u64, value: u32) {
        if offset == RELOAD {
            match (value as u16, regs.seal) {
                (0x80, _) => return regs.seal = Seal::Half,
                (0x86, Seal::Half) => return regs.seal = Seal::Open,
                (value, Seal::Open) => self.reload(regs, value),
                _ => {}
            }
        } else if regs.seal == Seal::Open {
            regs.preload[(offset / 4) as usize & 1] = value & PRELOAD;
        }
        regs.seal = Seal::Closed;
    }

    fn reload(&self, regs: &mut Registers, value: u16) {
        let (config, lock) = self.configured();
        if value & RELOAD_NOW != 0 && lock & ENABLE != 0 {
            regs.begin(false, config, self.clock.now());
            self.arm(regs);
        }
        if value & TIMEOUT != 0 {
            regs.timeout = false;
        }
    }
}

impl TimerOwner for I6300Esb {
    fn expired(&self) {
        let (config, lock) = self.configured();
        let mut regs = self.regs.lock();
        let now = self.clock.now();
        let Some((second, _)) = regs.running.filter(|(_, at)| *at <= now) else { return };
        if !second {
            regs.status = true;
            regs.begin(true, config, now);
            return self.arm(&regs);
        }
        regs.running = None;
        if lock & FREE_RUNNING != 0 {
            regs.begin(false, config, now);
        }
        let bites = config & NO_OUTPUT == 0;
        regs.timeout |= bites;
        self.arm(&regs);
        drop(regs);
        if bites {
            self.events.watchdog();
        }
    }
}

impl Mmio for I6300Esb {
    fn name(&self) -> &'static str {
        "i6300esb"
    }

    fn read(&self, offset: u64, size: u8) -> u64 {
        let regs = self.regs.lock();
        let shown = if regs.timeout { TIMEOUT | TIMEOUT_OF_OLD } else { 0 };
        let words = [regs.preload[0], regs.preload[1], regs.status.into(), shown.into()];
        let bytes = words.map(u32::to_le_bytes);
        let byte =
            |n: u16| bytes.as_flattened().get(offset as usize + usize::from(n)).copied().unwrap_or(0xff);
        match size {
            8 => u64::from(read_bytes(4, byte)) | u64::from(read_bytes(4, |n| byte(n + 4))) << 32,
            _ => read_bytes(size, byte).into(),
        }
    }

    fn write(&self, offset: u64, _: u8, value: u64) {
        let mut regs = self.regs.lock();
        match offset {
            0 | 4 | RELOAD => self.write_sealed(&mut regs, offset, value as u32),
            // Bits that are written are cleared.
            STATUS if value & 1 != 0 => regs.status = false,
            _ => {}
        }
    }
}

impl PciDevice for I6300Esb {
    fn config(&self) -> &Mutex<ConfigSpace> {
        self.function.config()
    }

    fn function(&self) -> Option<&Function> {
        Some(&self.function)
    }

    fn config_write(&self, offset: u8, size: u8, value: u32) {
        let (old, new) = {
            let mut config = self.function.config().lock();
            let old = config.get8(LOCK);
            config.write(offset, size, value);
            if old & LOCKED != 0 {
                config.change8(LOCK, 0xff, old);
            }
            (old, config.get8(LOCK))
        };
        if old != new {
            self.lock_written(old, new);
        }
    }

    fn bar(&self, _: usize) -> BarTarget {
        self.me.upgrade().map_or(BarTarget::Own, |me| BarTarget::Memory(me))
    }
}

/// What is saved of the device.
#[derive(Serialize, Deserialize)]
pub struct I6300EsbV1 {
    function: FunctionV1,
    regs: Registers,
}

impl Device for I6300Esb {
    type State = I6300EsbV1;
    const KIND: &'static str = "i6300esb";

    /// That there was a time-out is kept.
    fn reset(&self, _: Reset) {
        self.function.reset();
        let mut regs = self.regs.lock();
        *regs = Registers::new(regs.timeout);
        self.arm(&regs);
    }

    fn save(&self) -> I6300EsbV1 {
        let regs = self.regs.lock().clone();
        I6300EsbV1 { function: self.function.save(), regs }
    }

    fn restore(&self, saved: I6300EsbV1) -> Result<(), Invalid> {
        if saved.regs.preload.iter().any(|preload| *preload > PRELOAD) {
            return Err(Invalid("a preload"));
        }
        let mut regs = self.regs.lock();
        self.function.restore(saved.function)?;
        *regs = saved.regs;
        self.arm(&regs);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::PortBus;
    use crate::clock::ManualClock;
    use crate::events::testing::Recorder;
    use crate::pci::{DevFn, PciBus};
    use mynah_mmu::{GuestRam, PhysMemory};

    const AT: DevFn = DevFn::new(4, 0);
    const BAR: u64 = 0xe000_0000;
    /// 2^15 cycles of the bus.
    const UNIT: u64 = (1 << 15) * 30;

    struct Pc {
        clock: ManualClock,
        memory: Arc<PhysMemory>,
        bus: Arc<PciBus>,
        events: Arc<Recorder>,
        chip: Arc<I6300Esb>,
    }

    impl Pc {
        fn new() -> Self {
            let memory = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
            let (clock, events) = (ManualClock::new(), Recorder::new());
            let bus = PciBus::new(Arc::new(PortBus::new()), memory.clone());
            let function = bus.function(AT, config());
            let chip = I6300Esb::new(function, Arc::new(clock.clone()), events.clone());
            bus.attach(AT, chip.clone());
            bus.config_write(0, AT, 0x10, 4, BAR as u32);
            bus.config_write(0, AT, 4, 2, 2);
            Self { clock, memory, bus, events, chip }
        }
        fn config(&self, at: u16, size: u8, value: u32) {
            self.bus.config_write(0, AT, at, size, value);
        }
        fn sealed(&self, at: u64, size: u8, value: u64) {
            [0x80, 0x86].into_iter().for_each(|v| self.memory.phys_write(BAR + RELOAD, 2, v));
            self.memory.phys_write(BAR + at, size, value);
        }
        fn get(&self, at: u64, size: u8) -> u64 {
            self.memory.phys_read(BAR + at, size)
        }
        /// After so many units of time.
        fn later(&self, units: u64) -> Vec<String> {
            self.clock.advance(units * UNIT);
            self.events.take().iter().map(ToString::to_string).collect()
        }
        /// Two stages of 100 and 50 units.
        fn started() -> Self {
            let pc = Self::new();
            pc.sealed(0, 4, 100);
            pc.sealed(4, 4, 50);
            pc.config(0x68, 1, u32::from(ENABLE));
            pc
        }
    }

    const BITES: [&str; 1] = ["reset Watchdog"];
    const NOTHING: [&str; 0] = [];

    #[test]
    fn it_bites_after_both_stages_unless_it_is_fed() {
        let pc = Pc::started();
        assert_eq!((pc.get(0, 4), pc.get(4, 4), pc.get(8, 4)), (100, 50, 0));
        for _ in 0..3 {
            assert_eq!(pc.later(140), NOTHING);
            assert_eq!(pc.get(8, 1), 1, "the first stage");
            pc.memory.phys_write(BAR + STATUS, 4, 1);
            pc.sealed(RELOAD, 2, RELOAD_NOW.into());
        }
        assert_eq!((pc.get(8, 4), pc.later(149)), (0, vec![]));
        assert_eq!(pc.later(2), BITES);
        assert_eq!(pc.later(1000), NOTHING, "once");
        // It is known after the reset, until it is cleared.
        Device::reset(&*pc.chip, Reset::Board);
        pc.config(0x10, 4, BAR as u32);
        pc.config(4, 2, 2);
        assert_eq!((pc.get(RELOAD, 2), pc.get(0, 4)), (0x1200, PRELOAD.into()));
        pc.sealed(RELOAD, 2, TIMEOUT.into());
        assert_eq!(pc.get(RELOAD, 4), 0);
    }

    #[test]
    fn registers_are_sealed_and_what_is_locked_stays() {
        let pc = Pc::new();
        for unsealed in [&[][..], &[0x80], &[0x86], &[0x80, 0x80], &[0x80, 1, 0x86]] {
            unsealed.iter().for_each(|v| pc.memory.phys_write(BAR + RELOAD, 2, *v));
            pc.memory.phys_write(BAR, 4, 7);
            assert_eq!(pc.get(0, 4), u64::from(PRELOAD), "{unsealed:x?}");
        }
        pc.sealed(0, 4, 0xfff0_0007);
        assert_eq!(pc.get(0, 4), 7);
        pc.memory.phys_write(BAR, 4, 8);
        assert_eq!(pc.get(0, 4), 7, "one write for each opening");
        pc.sealed(4, 4, 1);
        pc.config(0x68, 1, u32::from(LOCKED | ENABLE));
        pc.config(0x68, 1, 0);
        assert_eq!(pc.bus.config_read(0, AT, 0x68, 1), 3);
        assert_eq!(pc.later(9), BITES);
    }

    #[test]
    fn it_may_run_freely_be_fast_or_have_no_output() {
        let pc = Pc::started();
        pc.config(0x68, 1, u32::from(ENABLE | FREE_RUNNING));
        assert_eq!((pc.later(151), pc.later(151)), (vec![BITES[0].into()], vec![BITES[0].into()]));
        pc.config(0x60, 2, NO_OUTPUT.into());
        assert_eq!(pc.later(1000), NOTHING);
        pc.config(0x68, 1, 0);
        pc.config(0x60, 2, FAST.into());
        pc.config(0x68, 1, u32::from(ENABLE));
        assert_eq!(pc.later(1), BITES, "150 units of 2^5 cycles");
        pc.config(0x68, 1, 0);
        assert_eq!(pc.later(1000), NOTHING);
    }

    #[test]
    fn a_restored_one_bites_when_the_saved_one_would_have() {
        let (pc, other) = (Pc::started(), Pc::new());
        pc.later(120);
        other.clock.advance(120 * UNIT);
        Device::restore(&*other.chip, Device::save(&*pc.chip)).unwrap();
        assert_eq!((other.later(29), other.later(2)), (vec![], vec![BITES[0].into()]));
        let mut saved = Device::save(&*pc.chip);
        saved.regs.preload[1] = PRELOAD + 1;
        assert!(Device::restore(&*other.chip, saved).is_err());
    }
}
