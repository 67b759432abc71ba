//! The PIIX3 ISA bridge (82371SB), 8086:7000 at 00:01.0: interrupt routing and reset control.
//!
//! ```text
//!   INTA#..INTD# of each slot --swizzle--> PIRQA#..PIRQD# --PIRQRC[A:D] (60h-63h)--> ISA IRQ 0-15
//! ```
//!
//! Each of the four PCI interrupt wires is level-triggered and shared; a route sends it to an ISA interrupt,
//! where it shares the pin with other wires that are routed there. Changing a route moves the level with it.
//! The other ISA bridge registers are storage. On purpose absent: the edge/level control ports (4D0h, 4D1h)
//! and the NMI and refresh ports, which are the interrupt controllers' and timers'; the X-bus decoders.
//!
//! Locks: `state` is held while pins are driven, so that levels and routes change together.
//!
//! Source: Intel 82371FB/82371SB (PIIX/PIIX3) data sheet (290550-002), 2.2 and 2.5.8 (reset control).
use crate::bus::{Irq, IrqSink, PortIo, open_bus};
use crate::device::{Device, Invalid, Reset};
use crate::events::{MachineEvents, ResetCause};
use crate::pci::config::{ConfigV1, reg};
use crate::pci::{ConfigSpace, DevFn, PciDevice};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Where the bridge is.
pub const DEVFN: DevFn = DevFn::new(1, 0);

/// PIRQ route control A; B to D follow (2.2.9).
const PIRQRC: u8 = 0x60;
/// The wire is routed nowhere.
const ROUTE_DISABLED: u8 = 0x80;
/// Interrupts that may be routed to: 3-7, 9-12, 14, 15.
const ROUTABLE: u16 = 0xdef8;

/// Reset control register, port CF9h: hard reset, and the trigger.
const SRST: u8 = 1 << 1;
const RCPU: u8 = 1 << 2;

#[derive(Clone, Serialize, Deserialize)]
struct State {
    /// Levels of PIRQA# to PIRQD#.
    levels: [bool; 4],
    reset_control: u8,
}

/// The four shared wires; each slot's pins are clones of these.
struct Wires(std::sync::Weak<Piix3>);

impl IrqSink for Wires {
    fn set(&self, line: u32, level: bool) {
        if let Some(chip) = self.0.upgrade() {
            chip.set_pirq(line as usize & 3, level);
        }
    }
}

/// The ISA bridge.
pub struct Piix3 {
    config: Mutex<ConfigSpace>,
    state: Mutex<State>,
    /// This bridge's pins on the 16 ISA interrupts.
    isa: [Irq; 16],
    wires: Mutex<[Irq; 4]>,
    events: Arc<dyn MachineEvents>,
}

impl Piix3 {
    /// A bridge that drives the given pins, one for each ISA interrupt. Where an interrupt has other sources,
    /// hand in a shared pin (`Irq::share`).
    pub fn new(isa: [Irq; 16], events: Arc<dyn MachineEvents>) -> Arc<Self> {
        let mut c = ConfigSpace::new(0x8086, 0x7000, 0x06_0100, 0x00);
        // I/O, memory, master and special cycles, all fixed but the last.
        c.set16(reg::COMMAND, 0x0007);
        c.allow16(reg::COMMAND, 0x0008);
        c.set16(reg::STATUS, 0x0200);
        c.set8(reg::HEADER_TYPE, 0x80);
        c.allow8(reg::CACHE_LINE_SIZE, 0);
        c.allow8(reg::LATENCY_TIMER, 0);
        c.allow8(reg::INTERRUPT_LINE, 0);
        // I/O recovery, X-bus chip select.
        c.set8(0x4c, 0x4d);
        c.allow8(0x4c, 0xff);
        c.set16(0x4e, 0x0003);
        c.allow16(0x4e, 0x07ff);
        for i in 0..4 {
            c.set8(PIRQRC + i, ROUTE_DISABLED);
            c.allow8(PIRQRC + i, 0x8f);
        }
        // Top of memory, miscellaneous status, motherboard IRQ routes, chip selects, DMA.
        c.set8(0x69, 0x02);
        c.allow8(0x69, 0xfe);
        c.allow16(0x6a, 0x8015);
        c.set8(0x70, 0x80);
        c.allow8(0x70, 0xef);
        c.set8(0x71, 0x80);
        c.allow8(0x71, 0xef);
        c.set8(0x76, 0x0c);
        c.allow8(0x76, 0x8f);
        c.set8(0x77, 0x0c);
        c.allow8(0x77, 0x8f);
        c.set16(0x78, 0x0002);
        c.allow16(0x78, 0xfffc);
        c.allow8(0x80, 0x7f);
        c.allow8(0x82, 0x0f);
        // SMI control and the timers behind it.
        c.set8(0xa0, 0x08);
        c.allow8(0xa0, 0x1f);
        c.allow16(0xa2, 0x01ff);
        c.allow32(0xa4, 0xe000_01ff);
        c.set8(0xa8, 0x0f);
        c.allow8(0xa8, 0xff);
        c.allow16(0xaa, 0x00ff);
        c.allow8(0xac, 0xff);
        c.allow8(0xae, 0xff);
        Arc::new_cyclic(|weak| {
            let sink: Arc<dyn IrqSink> = Arc::new(Wires(weak.clone()));
            Self {
                config: Mutex::new(c),
                state: Mutex::new(State { levels: [false; 4], reset_control: 0 }),
                isa,
                wires: Mutex::new(std::array::from_fn(|i| Irq::new(sink.clone(), i as u32))),
                events,
            }
        })
    }

    /// The interrupt pin `pin` (0 INTA# to 3 INTD#) of the function at `devfn`: a share of the wire that the
    /// board's swizzle leads it to.
    pub fn intx(&self, devfn: DevFn, pin: u8) -> Irq {
        self.wires.lock()[usize::from(Self::pirq(devfn, pin))].share()
    }

    /// The PIRQ wire (0 to 3) of a function's pin: slots are rotated, and device 1's INTA# is PIRQA#.
    pub const fn pirq(devfn: DevFn, pin: u8) -> u8 {
        pin.wrapping_add(devfn.device()).wrapping_sub(1) & 3
    }

    /// The ISA interrupt that wire `pirq` is routed to.
    pub fn route(&self, pirq: u8) -> Option<u8> {
        Self::decode(self.config.lock().get8(PIRQRC + (pirq & 3)))
    }

    fn decode(route: u8) -> Option<u8> {
        let irq = route & 0x0f;
        (route & ROUTE_DISABLED == 0 && ROUTABLE >> irq & 1 != 0).then_some(irq)
    }

    fn set_pirq(&self, pirq: usize, level: bool) {
        let mut state = self.state.lock();
        state.levels[pirq] = level;
        self.drive(&state);
    }

    /// The ISA pins that are up, from the wires and their routes.
    fn routed(&self, state: &State) -> u16 {
        let c = self.config.lock();
        let route = |(i, level): (usize, &bool)| {
            if *level { Self::decode(c.get8(PIRQRC + i as u8)) } else { None }
        };
        state.levels.iter().enumerate().filter_map(route).fold(0, |up, irq| up | 1 << irq)
    }

    /// Drives the ISA pins.
    fn drive(&self, state: &State) {
        let up = self.routed(state);
        // Pins that fall go first: one wire that moves must not look like two.
        for level in [false, true] {
            for (irq, pin) in self.isa.iter().enumerate() {
                if (up >> irq & 1 != 0) == level {
                    pin.set(level);
                }
            }
        }
    }
}

impl PciDevice for Piix3 {
    fn config(&self) -> &Mutex<ConfigSpace> {
        &self.config
    }

    fn config_write(&self, offset: u8, size: u8, value: u32) {
        let state = self.state.lock();
        self.config.lock().write(offset, size, value);
        self.drive(&state);
    }
}

/// What is saved of an ISA bridge.
#[derive(Serialize, Deserialize)]
pub struct Piix3V1 {
    config: ConfigV1,
    state: State,
}

impl Device for Piix3 {
    type State = Piix3V1;
    const KIND: &'static str = "PIIX3";

    fn reset(&self, _: Reset) {
        let mut state = self.state.lock();
        state.reset_control = 0;
        self.config.lock().reset();
        self.drive(&state);
    }

    fn save(&self) -> Piix3V1 {
        let state = self.state.lock().clone();
        Piix3V1 { config: self.config.lock().save(), state }
    }

    fn restore(&self, Piix3V1 { config, state }: Piix3V1) -> Result<(), Invalid> {
        let mut now = self.state.lock();
        self.config.lock().restore(config)?;
        *now = state;
        let up = self.routed(&now);
        for (irq, pin) in self.isa.iter().enumerate() {
            pin.restore(up >> irq & 1 != 0);
        }
        Ok(())
    }
}

/// The reset control register, port CF9h; `pci::ConfigPorts` leads byte accesses here.
impl PortIo for Piix3 {
    fn read(&self, _: u16, size: u8) -> u32 {
        open_bus(size) & !0xff | u32::from(self.state.lock().reset_control)
    }

    fn write(&self, _: u16, _: u8, value: u32) {
        let value = value as u8;
        let mut state = self.state.lock();
        let triggered = value & !state.reset_control & RCPU != 0;
        // The trigger is kept, so that the next edge is seen; a reset clears it.
        state.reset_control = value & (SRST | RCPU);
        drop(state);
        if triggered {
            self.events.reset(ResetCause::ResetControl);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::testing::{Recorder, hammer};
    use crate::pci::testing::Pc;

    #[derive(Default)]
    struct Log(Mutex<Vec<(u32, bool)>>);
    impl IrqSink for Log {
        fn set(&self, line: u32, level: bool) {
            self.0.lock().push((line, level));
        }
    }
    impl Log {
        fn take(&self) -> Vec<(u32, bool)> {
            std::mem::take(&mut self.0.lock())
        }
    }

    fn setup() -> (Pc, Arc<Piix3>, Arc<Log>, Arc<Recorder>) {
        let (pc, log, events) = (Pc::new(), Arc::new(Log::default()), Recorder::new());
        let isa = std::array::from_fn(|i| Irq::new(log.clone(), i as u32));
        let chip = Piix3::new(isa, events.clone());
        pc.bus.attach(DEVFN, chip.clone());
        (pc, chip, log, events)
    }

    #[test]
    fn it_is_a_multifunction_isa_bridge() {
        let (pc, _, _, _) = setup();
        assert_eq!((pc.read(DEVFN, 0, 4), pc.read(DEVFN, 8, 4)), (0x7000_8086, 0x0601_0000));
        assert_eq!(pc.read(DEVFN, reg::HEADER_TYPE, 1), 0x80);
    }

    #[test]
    fn slots_are_swizzled_onto_the_four_wires() {
        assert_eq!(Piix3::pirq(DevFn::new(1, 3), 0), 0);
        assert_eq!(Piix3::pirq(DevFn::new(2, 0), 0), 1);
        assert_eq!(Piix3::pirq(DevFn::new(3, 0), 3), 1);
        assert_eq!(Piix3::pirq(DevFn::new(0, 0), 0), 3);
    }

    #[test]
    fn a_wire_raises_the_interrupt_it_is_routed_to() {
        let (pc, chip, log, _) = setup();
        let pin = chip.intx(DevFn::new(3, 0), 0);
        pin.set(true);
        assert_eq!(log.take(), [], "routes are off after reset");
        pc.write(DEVFN, 0x62, 1, 11);
        assert_eq!((log.take(), chip.route(2)), (vec![(11, true)], Some(11)));
        pc.write(DEVFN, 0x62, 1, 10);
        assert_eq!(log.take(), [(11, false), (10, true)]);
        pc.write(DEVFN, 0x62, 1, 0x8a);
        assert_eq!(log.take(), [(10, false)]);
        pc.write(DEVFN, 0x62, 1, 13);
        assert_eq!(log.take(), [], "interrupt 13 is not to be had");
    }

    #[test]
    fn wires_that_share_an_interrupt_hold_it_together() {
        let (pc, chip, log, _) = setup();
        pc.write(DEVFN, 0x60, 4, 0x0b0b_0a0a);
        let (a, b) = (chip.intx(DevFn::new(1, 3), 0), chip.intx(DevFn::new(2, 0), 0));
        let a2 = chip.intx(DevFn::new(5, 0), 0);
        a.set(true);
        b.set(true);
        a2.set(true);
        a.set(false);
        b.set(false);
        assert_eq!(log.take(), [(10, true)]);
        a2.set(false);
        assert_eq!(log.take(), [(10, false)]);
    }

    #[test]
    fn the_reset_control_register_resets_on_a_rising_edge() {
        let (_, chip, _, events) = setup();
        chip.write(0, 1, 0x02);
        assert_eq!((events.take(), PortIo::read(&*chip, 0, 1)), (vec![], 0x02));
        chip.write(0, 1, 0x06);
        assert_eq!(events.take(), ["reset ResetControl"]);
        chip.write(0, 1, 0x06);
        assert!(events.take().is_empty());
        chip.reset(Reset::Board);
        chip.write(0, 1, 0x06);
        assert_eq!(events.take(), ["reset ResetControl"]);
    }

    #[test]
    fn no_access_of_any_width_panics() {
        let (_, chip, _, _) = setup();
        hammer(&*chip, 4);
        for offset in 0..=255_u8 {
            for size in [1, 2, 4] {
                chip.config_write(offset, size, 0xdead_beef);
                chip.config_read(offset, size);
            }
        }
    }
}
