//! The 8042 keyboard controller of the PC/AT with its auxiliary (mouse) port: ports 60h and 64h, IRQ 1 and
//! IRQ 12.
//!
//! ```text
//!   keyboard --+--> translation (set 2 to 1) --+
//!   mouse -----+-------------------------------+--> output buffer --60h--> computer
//!   controller's own answers ------------------+        |
//!                                                    IRQ 1, IRQ 12
//! ```
//!
//! `Controller` is the register machine. There is one output buffer; the next byte enters it when the last
//! has been read (answers first, then keyboard, then mouse), with a new edge on its interrupt line. The input
//! buffer is always empty: commands take no time. The output port's A20 bit is the machine's `A20Gate`, its
//! reset bit a reset. A password (A5h) that is enabled (A6h) holds back what keyboard and mouse send until it has been
//! typed. On purpose absent: the keyboard lock, timeouts and parity errors, the active-multiplexing extension (its
//! knock is answered as by a chip without it).
//!
//! Source: IBM PS/2 Hardware Interface Technical Reference (1990), Keyboard and Auxiliary Device Controller;
//! Intel UPI-41AH/42AH.
use super::ps2::{Key, Keyboard, Mouse, MouseButtons, TO_SET1};
use crate::aml::{Fragment, IrqNoFlags, io};
use crate::bus::{Irq, PortBus, PortIo, open_bus};
use crate::clock::{Clock, Timer, TimerOwner};
use crate::device::{Device, Invalid, Reset};
use crate::events::{A20Gate, MachineEvents, ResetCause};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, Weak};

/// Data port.
pub const DATA_PORT: u16 = 0x60;
/// Status (read) and command (write) port.
pub const COMMAND_PORT: u16 = 0x64;

/// Status register.
mod status {
    pub const OUTPUT_FULL: u8 = 1 << 0;
    pub const SYSTEM: u8 = 1 << 2;
    pub const COMMAND: u8 = 1 << 3;
    pub const UNLOCKED: u8 = 1 << 4;
    pub const AUX_FULL: u8 = 1 << 5;
}

/// Command byte (byte 0 of the controller's RAM).
mod config {
    pub const KEYBOARD_INTERRUPT: u8 = 1 << 0;
    pub const AUX_INTERRUPT: u8 = 1 << 1;
    pub const SYSTEM: u8 = 1 << 2;
    pub const KEYBOARD_DISABLED: u8 = 1 << 4;
    pub const AUX_DISABLED: u8 = 1 << 5;
    pub const TRANSLATE: u8 = 1 << 6;
    /// Bit 3 (once: override the keyboard lock) and bit 7 do not exist.
    pub const ALL: u8 = 0x77;
}

/// Output port.
mod outport {
    pub const NOT_RESET: u8 = 1 << 0;
    pub const A20: u8 = 1 << 1;
    pub const KEYBOARD_FULL: u8 = 1 << 4;
    pub const AUX_FULL: u8 = 1 << 5;
    /// Clock and data lines of the keyboard, idle.
    pub const LINES: u8 = 0xc0;
}

/// Input port: keyboard not locked, 512 KiB on board, no manufacturing jumper.
const INPUT_PORT: u8 = 0xbf;

/// Bytes of the controller's RAM that the password is about.
mod security {
    /// Sent when the password is enabled, if it is not 0.
    pub const ON: usize = 0x13;
    /// Sent when it has been typed, if it is not 0.
    pub const OFF: usize = 0x14;
    /// Make codes that are passed over.
    pub const IGNORED: [usize; 2] = [0x16, 0x17];
}

/// Answers of the controller that wait: no fewer than a dump has.
const ANSWERS: usize = 64;

/// Scan codes of the longest password.
const PASSWORD: usize = 7;

/// A password: make codes.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Password {
    codes: Vec<u8>,
    /// It is being loaded.
    loading: bool,
    /// So many codes of it were typed, while that is waited for.
    typed: Option<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Source {
    Keyboard,
    Aux,
}

/// What a register access asks of the machine; done by the adapter once the lock is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    None,
    Reset,
    A20(bool),
    /// A20 changes and the machine is reset.
    A20AndReset(bool),
}

#[derive(Clone, Serialize, Deserialize)]
struct Controller {
    /// The controller's RAM; byte 0 is the command byte.
    ram: [u8; 32],
    status: u8,
    /// The byte that port 60h shows, full or not.
    buffer: u8,
    full: Option<Source>,
    /// Answers of the controller itself, and on whose behalf.
    answers: VecDeque<(u8, Source)>,
    /// A command that waits for its argument on port 60h.
    command: Option<u8>,
    /// The last byte translated was F0h: the next is a key going up.
    release: bool,
    password: Password,
    /// The half of the input port that is shown in bits 4 to 7 of the status: bits 0 to 3, or 4 to 7.
    polled: Option<bool>,
    keyboard: Keyboard,
    mouse: Option<Mouse>,
}

impl Controller {
    fn new(mouse: bool) -> Self {
        let mut ram = [0; 32];
        // As firmware leaves it: self-test passed, keyboard translated and interrupting.
        ram[0] = config::KEYBOARD_INTERRUPT | config::SYSTEM | config::TRANSLATE;
        Self {
            ram,
            status: status::UNLOCKED | status::SYSTEM,
            buffer: 0,
            full: None,
            answers: VecDeque::new(),
            command: None,
            release: false,
            password: Password::default(),
            polled: None,
            keyboard: Keyboard::new(),
            mouse: mouse.then(Mouse::new),
        }
    }

    fn config(&self) -> u8 {
        self.ram[0]
    }

    fn answer(&mut self, byte: u8, source: Source) {
        // A guest that asks without reading has the latest answers only.
        if self.answers.len() >= ANSWERS {
            self.answers.pop_front();
        }
        self.answers.push_back((byte, source));
    }

    /// Moves the next byte into the output buffer if it is empty.
    fn refill(&mut self) {
        if self.full.is_some() {
            return;
        }
        let next = self.answers.pop_front().or_else(|| {
            if self.config() & config::KEYBOARD_DISABLED == 0
                && let Some(byte) = self.passed()
            {
                return Some((byte, Source::Keyboard));
            }
            if self.password.typed.is_some() {
                return None;
            }
            if self.config() & config::AUX_DISABLED == 0 {
                return self.mouse.as_mut()?.take().map(|b| (b, Source::Aux));
            }
            None
        });
        if let Some((byte, source)) = next {
            self.buffer = byte;
            self.full = Some(source);
        }
    }

    /// The next byte of the keyboard that is not held back for the password.
    fn passed(&mut self) -> Option<u8> {
        loop {
            let byte = self.translated()?;
            let Some(typed) = self.password.typed else { return Some(byte) };
            if byte & 0x80 != 0 || security::IGNORED.iter().any(|at| self.ram[*at] == byte) {
                continue;
            }
            let right = self.password.codes.get(usize::from(typed)) == Some(&byte);
            let typed = if right { typed + 1 } else { 0 };
            let whole = usize::from(typed) == self.password.codes.len();
            self.password.typed = (!whole).then_some(typed);
            if whole && self.ram[security::OFF] != 0 {
                return Some(self.ram[security::OFF]);
            }
        }
    }

    /// The next byte of the keyboard, in set 1 if the command byte says so.
    fn translated(&mut self) -> Option<u8> {
        loop {
            let byte = self.keyboard.take()?;
            if self.config() & config::TRANSLATE == 0 {
                self.release = false;
                return Some(byte);
            }
            if byte == 0xf0 {
                self.release = true;
                continue;
            }
            let code = TO_SET1.get(usize::from(byte)).copied().unwrap_or(byte);
            let released = std::mem::take(&mut self.release);
            return Some(if released { code | 0x80 } else { code });
        }
    }

    fn read_data(&mut self) -> u8 {
        self.full = None;
        self.buffer
    }

    fn read_status(&self) -> u8 {
        let full = match self.full {
            None => 0,
            Some(Source::Keyboard) => status::OUTPUT_FULL,
            Some(Source::Aux) => status::OUTPUT_FULL | status::AUX_FULL,
        };
        let status = self.status | full;
        match self.polled {
            None => status,
            Some(false) => status & 0x0f | INPUT_PORT << 4,
            Some(true) => status & 0x0f | INPUT_PORT & 0xf0,
        }
    }

    fn output_port(&self, a20: bool) -> u8 {
        let full = match self.full {
            None => 0,
            Some(Source::Keyboard) => outport::KEYBOARD_FULL,
            Some(Source::Aux) => outport::AUX_FULL,
        };
        outport::LINES | outport::NOT_RESET | full | if a20 { outport::A20 } else { 0 }
    }

    fn write_config(&mut self, value: u8) {
        self.ram[0] = value & config::ALL;
        self.status = self.status & !status::SYSTEM | value & config::SYSTEM;
    }

    fn write_command(&mut self, byte: u8, a20: bool) -> Effect {
        self.status |= status::COMMAND;
        self.command = None;
        (self.polled, self.password.loading) = (None, false);
        match byte {
            0x20..=0x3f => self.answer(self.ram[usize::from(byte & 0x1f)], Source::Keyboard),
            0x60..=0x7f | 0xd1..=0xd4 => self.command = Some(byte),
            // Is a password set?
            0xa4 => {
                let set = if self.password.codes.is_empty() { 0xf1 } else { 0xfa };
                self.answer(set, Source::Keyboard);
            }
            0xa5 => self.password = Password { loading: true, ..Password::default() },
            0xa6 if !self.password.codes.is_empty() => {
                self.password.typed = Some(0);
                if self.ram[security::ON] != 0 {
                    self.answer(self.ram[security::ON], Source::Keyboard);
                }
            }
            0xa7 => self.ram[0] |= config::AUX_DISABLED,
            0xa8 => self.ram[0] &= !config::AUX_DISABLED,
            // Auxiliary port's test: 0 is "no error", whether a mouse is there or not.
            0xa9 => self.answer(0x00, Source::Keyboard),
            0xaa => {
                self.write_config(self.config() | config::SYSTEM);
                self.answer(0x55, Source::Keyboard);
            }
            0xab => self.answer(0x00, Source::Keyboard),
            0xac => self.dump(a20),
            0xad => self.ram[0] |= config::KEYBOARD_DISABLED,
            0xae => self.ram[0] &= !config::KEYBOARD_DISABLED,
            0xc0 => self.answer(INPUT_PORT, Source::Keyboard),
            0xc1 | 0xc2 => self.polled = Some(byte == 0xc2),
            0xd0 => self.answer(self.output_port(a20), Source::Keyboard),
            0xdd => return Effect::A20(false),
            0xdf => return Effect::A20(true),
            // Test inputs: clock lines of keyboard and mouse are high unless disabled.
            0xe0 => {
                let c = self.config();
                let lines = u8::from(c & config::KEYBOARD_DISABLED == 0)
                    | u8::from(c & config::AUX_DISABLED == 0) << 1;
                self.answer(lines, Source::Keyboard);
            }
            // Pulses the low bits of the output port that are 0 in the command; bit 0 is the reset line.
            0xf0..=0xff if byte & 1 == 0 => return Effect::Reset,
            _ => {}
        }
        Effect::None
    }

    /// What the diagnostic dump sends: 16 bytes of RAM, input and output port, and the processor's status word, each as
    /// the make codes of two hexadecimal digits and a blank.
    fn dump(&mut self, a20: bool) {
        const DIGITS: [u8; 16] =
            [0x0b, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x1e, 0x30, 0x2e, 0x20, 0x12, 0x21];
        const BLANK: u8 = 0x39;
        let ports = [INPUT_PORT, self.output_port(a20), 0];
        let bytes = self.ram[..16].iter().copied().chain(ports);
        let codes = bytes.flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)], BLANK]);
        self.answers = codes.map(|code| (code, Source::Keyboard)).collect();
    }

    fn load_password(&mut self, byte: u8) {
        match byte {
            0 => self.password.loading = false,
            _ if self.password.codes.len() < PASSWORD => self.password.codes.push(byte),
            _ => {}
        }
    }

    fn write_data(&mut self, byte: u8) -> Effect {
        self.status &= !status::COMMAND;
        if self.password.loading {
            self.load_password(byte);
            return Effect::None;
        }
        match self.command.take() {
            Some(0x60) => self.write_config(byte),
            Some(c @ 0x61..=0x7f) => self.ram[usize::from(c & 0x1f)] = byte,
            Some(0xd1) => {
                let a20 = byte & outport::A20 != 0;
                return if byte & outport::NOT_RESET == 0 {
                    Effect::A20AndReset(a20)
                } else {
                    Effect::A20(a20)
                };
            }
            Some(0xd2) => self.answer(byte, Source::Keyboard),
            Some(0xd3) => self.answer(byte, Source::Aux),
            Some(_) => {
                self.ram[0] &= !config::AUX_DISABLED;
                if let Some(mouse) = &mut self.mouse {
                    mouse.write(byte);
                }
            }
            None => {
                // Sending to the keyboard switches its port on.
                self.ram[0] &= !config::KEYBOARD_DISABLED;
                self.release = false;
                self.keyboard.write(byte);
            }
        }
        Effect::None
    }

    /// Levels of IRQ 1 and IRQ 12.
    fn interrupts(&self) -> (bool, bool) {
        let c = self.config();
        (
            self.full == Some(Source::Keyboard) && c & config::KEYBOARD_INTERRUPT != 0,
            self.full == Some(Source::Aux) && c & config::AUX_INTERRUPT != 0,
        )
    }
}

/// The controller, its keyboard and its mouse.
pub struct I8042 {
    model: Mutex<Controller>,
    keyboard_irq: Irq,
    aux_irq: Irq,
    a20: Arc<A20Gate>,
    events: Arc<dyn MachineEvents>,
    /// What keys repeat by.
    clock: OnceLock<(Arc<dyn Clock>, Arc<dyn Timer>)>,
    me: Weak<Self>,
}

impl I8042 {
    /// A controller with a keyboard and, if wanted, a mouse. The pins go to IRQ 1 and IRQ 12.
    pub fn new(
        mouse: bool,
        keyboard_irq: Irq,
        aux_irq: Irq,
        a20: Arc<A20Gate>,
        events: Arc<dyn MachineEvents>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            model: Mutex::new(Controller::new(mouse)),
            keyboard_irq,
            aux_irq,
            a20,
            events,
            clock: OnceLock::new(),
            me: me.clone(),
        })
    }

    /// Keys that are held repeat by this clock. Once; without it they do not.
    pub fn follow(&self, clock: &Arc<dyn Clock>) {
        let _ = self.clock.set((clock.clone(), clock.timer(self.me.clone())));
    }

    /// Sets the timer for the next code of a key that is held.
    fn arm(&self, model: &Controller) {
        if let Some((_, timer)) = self.clock.get() {
            timer.set(model.keyboard.due());
        }
    }

    /// Puts both ports on the bus.
    pub fn attach(self: &Arc<Self>, bus: &PortBus) {
        bus.map(DATA_PORT, 1, self.port(false));
        bus.map(COMMAND_PORT, 1, self.port(true));
    }

    /// One of the two ports.
    pub fn port(self: &Arc<Self>, command: bool) -> Arc<dyn PortIo> {
        Arc::new(Port { chip: self.clone(), command })
    }

    /// A key goes down or up.
    pub fn key(&self, key: Key, pressed: bool) {
        let mut model = self.model.lock();
        let now = self.clock.get().map_or(0, |(clock, _)| clock.now());
        model.keyboard.key(key, pressed, now);
        self.arm(&model);
        self.settle(&mut model);
    }

    /// The mouse moves by `dx` to the right, `dy` up, `dz` wheel steps towards the user. Ignored if there is
    /// none.
    pub fn mouse(&self, dx: i32, dy: i32, dz: i32, buttons: MouseButtons) {
        let mut model = self.model.lock();
        if let Some(mouse) = &mut model.mouse {
            mouse.moved(dx, dy, dz, buttons);
        }
        self.settle(&mut model);
    }

    /// Whether there is a mouse.
    pub fn has_mouse(&self) -> bool {
        self.model.lock().mouse.is_some()
    }

    /// The mouse's buttons that are down.
    pub fn buttons(&self) -> MouseButtons {
        self.model.lock().mouse.as_ref().map_or_else(MouseButtons::default, Mouse::buttons)
    }

    /// The keyboard's LEDs: bit 0 scroll lock, bit 1 num lock, bit 2 caps lock.
    pub fn leds(&self) -> u8 {
        self.model.lock().keyboard.leds()
    }

    fn settle(&self, model: &mut MutexGuard<'_, Controller>) {
        model.refill();
        let (keyboard, aux) = model.interrupts();
        self.keyboard_irq.set(keyboard);
        self.aux_irq.set(aux);
    }

    fn read_port(&self, command: bool) -> u8 {
        let mut model = self.model.lock();
        if command {
            return model.read_status();
        }
        let byte = model.read_data();
        // Both lines fall before the next byte raises one: the interrupt controller sees an edge.
        self.keyboard_irq.set(false);
        self.aux_irq.set(false);
        self.settle(&mut model);
        byte
    }

    fn write_port(&self, command: bool, byte: u8) {
        let a20 = self.a20.is_open();
        let mut model = self.model.lock();
        let effect = if command { model.write_command(byte, a20) } else { model.write_data(byte) };
        if !command {
            self.arm(&model);
        }
        self.settle(&mut model);
        drop(model);
        if let Effect::A20(open) | Effect::A20AndReset(open) = effect {
            self.a20.set(open);
        }
        if matches!(effect, Effect::Reset | Effect::A20AndReset(_)) {
            self.events.reset(ResetCause::Keyboard);
        }
    }
}

impl TimerOwner for I8042 {
    fn expired(&self) {
        let Some((clock, _)) = self.clock.get() else { return };
        let mut model = self.model.lock();
        model.keyboard.repeat(clock.now());
        self.arm(&model);
        self.settle(&mut model);
    }
}

struct Port {
    chip: Arc<I8042>,
    command: bool,
}

impl PortIo for Port {
    fn read(&self, _: u16, size: u8) -> u32 {
        // The chip drives the low byte lane only.
        open_bus(size) & !0xff | u32::from(self.chip.read_port(self.command))
    }
    fn write(&self, _: u16, _: u8, value: u32) {
        self.chip.write_port(self.command, value as u8);
    }
}

/// What is saved of a keyboard controller, its keyboard and its mouse.
#[derive(Serialize, Deserialize)]
pub struct I8042V2 {
    model: Controller,
    irq1: bool,
    irq12: bool,
}

impl Device for I8042 {
    type State = I8042V2;
    const KIND: &'static str = "i8042";
    const VERSION: u16 = 2;

    fn aml(&self) -> Option<Fragment> {
        let mut both = Fragment::isa("KBD_", "PNP0303", vec![&io(0x60, 1), &io(0x64, 1), &IrqNoFlags(1)]);
        both.aml.extend(Fragment::isa("MOU_", "PNP0F13", vec![&IrqNoFlags(12)]).aml);
        Some(both)
    }

    fn reset(&self, _: Reset) {
        let mut model = self.model.lock();
        *model = Controller::new(model.mouse.is_some());
        self.arm(&model);
        self.settle(&mut model);
    }

    fn save(&self) -> I8042V2 {
        let model = self.model.lock().clone();
        I8042V2 { model, irq1: self.keyboard_irq.level(), irq12: self.aux_irq.level() }
    }

    fn restore(&self, I8042V2 { model, irq1, irq12 }: I8042V2) -> Result<(), Invalid> {
        let mut now = self.model.lock();
        if model.mouse.is_some() != now.mouse.is_some() {
            return Err(Invalid("whether there is a mouse"));
        }
        if model.answers.len() > ANSWERS {
            return Err(Invalid("the controller's answers"));
        }
        let Password { codes, typed, .. } = &model.password;
        if codes.len() > PASSWORD || typed.is_some_and(|n| usize::from(n) >= codes.len()) {
            return Err(Invalid("the password"));
        }
        model.keyboard.check()?;
        model.mouse.as_ref().map_or(Ok(()), Mouse::check)?;
        *now = model;
        self.arm(&now);
        self.keyboard_irq.restore(irq1);
        self.aux_irq.restore(irq12);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::IrqSink;
    use crate::events::testing::{Recorder, hammer};

    /// Counts rising edges of each line.
    #[derive(Default)]
    struct Edges(Mutex<[usize; 16]>);
    impl IrqSink for Edges {
        fn set(&self, line: u32, level: bool) {
            self.0.lock()[line as usize] += usize::from(level);
        }
    }

    struct Pc {
        chip: Arc<I8042>,
        bus: PortBus,
        edges: Arc<Edges>,
        events: Arc<Recorder>,
    }

    impl Pc {
        fn new(mouse: bool) -> Self {
            let (edges, events, bus) = (Arc::new(Edges::default()), Recorder::new(), PortBus::new());
            let chip = I8042::new(
                mouse,
                Irq::new(edges.clone(), 1),
                Irq::new(edges.clone(), 12),
                A20Gate::new(true, events.clone()),
                events.clone(),
            );
            chip.attach(&bus);
            Self { chip, bus, edges, events }
        }
        fn command(&self, byte: u8) {
            self.bus.write(COMMAND_PORT, 1, byte.into());
        }
        fn data(&self, byte: u8) {
            self.bus.write(DATA_PORT, 1, byte.into());
        }
        fn status(&self) -> u8 {
            self.bus.read(COMMAND_PORT, 1) as u8
        }
        fn read(&self) -> u8 {
            assert_eq!(self.status() & 1, 1, "the output buffer is empty");
            self.bus.read(DATA_PORT, 1) as u8
        }
        fn drain(&self) -> Vec<u8> {
            std::iter::from_fn(|| (self.status() & 1 != 0).then(|| self.read())).take(1000).collect()
        }
        fn edges(&self) -> (usize, usize) {
            let e = self.edges.0.lock();
            (e[1], e[12])
        }
    }

    #[test]
    fn linux_finds_a_sound_controller() {
        let pc = Pc::new(true);
        pc.command(0xaa);
        assert_eq!(pc.read(), 0x55);
        pc.command(0x20);
        let ctr = pc.read();
        assert_eq!(ctr & config::TRANSLATE, config::TRANSLATE);
        assert_eq!(pc.status() & status::UNLOCKED, status::UNLOCKED, "no keylock warning");
        pc.command(0x60);
        pc.data((ctr | config::KEYBOARD_DISABLED) & !config::KEYBOARD_INTERRUPT);
        pc.command(0x20);
        assert_eq!(pc.read(), (ctr | config::KEYBOARD_DISABLED) & !config::KEYBOARD_INTERRUPT);
    }

    #[test]
    fn the_auxiliary_port_passes_linux_loop_tests() {
        let pc = Pc::new(true);
        // The loop test: the byte comes back as the mouse's.
        pc.command(0xd3);
        pc.data(0x5a);
        assert_eq!(pc.status() & 0x21, 0x21);
        assert_eq!(pc.read(), 0x5a);
        // The port's disable bit follows the commands.
        for (command, bit) in [(0xa7, config::AUX_DISABLED), (0xa8, 0)] {
            pc.command(command);
            pc.command(0x20);
            assert_eq!(pc.read() & config::AUX_DISABLED, bit);
        }
        // No multiplexer: the knock's last byte comes back unchanged.
        for byte in [0xf0, 0x56, 0xa4] {
            pc.command(0xd3);
            pc.data(byte);
            assert_eq!(pc.read(), byte);
        }
        // The interrupt test.
        pc.command(0x60);
        pc.data(config::AUX_INTERRUPT | config::TRANSLATE);
        let before = pc.edges();
        pc.command(0xd3);
        pc.data(0xa5);
        assert_eq!(pc.edges(), (before.0, before.1 + 1));
        assert_eq!(pc.read(), 0xa5);
    }

    #[test]
    fn keys_arrive_translated_with_one_interrupt_each_byte() {
        let pc = Pc::new(false);
        let before = pc.edges().0;
        pc.chip.key(Key::extended(0x48), true);
        pc.chip.key(Key::extended(0x48), false);
        assert_eq!(pc.drain(), [0xe0, 0x48, 0xe0, 0xc8]);
        assert_eq!(pc.edges().0, before + 4);
        pc.command(0x60);
        pc.data(0x01);
        pc.chip.key(Key::extended(0x48), false);
        assert_eq!(pc.drain(), [0xe0, 0xf0, 0x75], "without translation, set 2");
    }

    #[test]
    fn keyboard_commands_pass_through_and_identify_as_translated() {
        let pc = Pc::new(false);
        pc.data(0xf2);
        assert_eq!(pc.drain(), [0xfa, 0xab, 0x41]);
        pc.data(0xff);
        assert_eq!(pc.drain(), [0xfa, 0xaa]);
        pc.data(0xed);
        pc.data(0x02);
        assert_eq!(pc.drain(), [0xfa, 0xfa]);
        assert_eq!(pc.chip.leds(), 2);
    }

    #[test]
    fn a_disabled_keyboard_port_holds_its_bytes_back() {
        let pc = Pc::new(false);
        pc.command(0xad);
        pc.chip.key(Key::new(0x1e), true);
        assert_eq!(pc.drain(), [0_u8; 0]);
        pc.command(0x20);
        assert_eq!(pc.drain().len(), 1, "the controller's own answers pass");
        pc.command(0xae);
        assert_eq!(pc.drain(), [0x1e]);
    }

    #[test]
    fn the_mouse_is_reached_by_d4_and_interrupts_on_12() {
        let pc = Pc::new(true);
        pc.command(0x60);
        pc.data(0x47);
        let before = pc.edges().1;
        for (byte, reply) in [(0xff, &[0xfa, 0xaa, 0x00][..]), (0xf4, &[0xfa])] {
            pc.command(0xd4);
            pc.data(byte);
            assert_eq!(pc.status() & status::AUX_FULL, status::AUX_FULL);
            assert_eq!(pc.drain(), reply);
        }
        pc.chip.mouse(1, 2, 0, MouseButtons::default());
        assert_eq!(pc.drain(), [0x08, 1, 2]);
        assert_eq!(pc.edges().1, before + 7);
    }

    #[test]
    fn a_key_that_is_held_repeats_at_the_rate_that_was_set() {
        const MS: u64 = 1_000_000;
        let clock = crate::clock::ManualClock::new();
        let pc = Pc::new(false);
        pc.chip.follow(&(Arc::new(clock.clone()) as Arc<dyn Clock>));
        let later = |ms: u64| {
            clock.advance(ms * MS);
            pc.drain()
        };
        pc.chip.key(Key::new(0x1e), true);
        assert_eq!(pc.drain(), [0x1e]);
        assert_eq!((later(499), later(2)), (vec![], vec![0x1e]));
        assert_eq!((later(89), later(3)), (vec![], vec![0x1e]), "10.9 in a second");
        // What the host repeats is no news, and one that nobody reads does not pile up.
        pc.chip.key(Key::new(0x1e), true);
        (0..100).for_each(|_| clock.advance(100 * MS));
        assert_eq!(pc.drain().len(), 2, "the buffer, and one behind it");
        // 250 ms, 30 in a second: the last key counts, and another one's release does not.
        pc.data(0xf3);
        pc.data(0x00);
        pc.drain();
        pc.chip.key(Key::new(0x30), true);
        pc.chip.key(Key::new(0x1e), false);
        assert_eq!(pc.drain(), [0x30, 0x9e]);
        assert_eq!((later(249), later(2), later(34)), (vec![], vec![0x30], vec![0x30]));
        // It is saved how far that is.
        let other = Pc::new(false);
        other.chip.follow(&(Arc::new(clock.clone()) as Arc<dyn Clock>));
        Device::restore(&*other.chip, Device::save(&*pc.chip)).unwrap();
        clock.advance(34 * MS);
        assert_eq!((pc.drain(), other.drain()), (vec![0x30], vec![0x30]));
        pc.chip.key(Key::new(0x30), false);
        assert_eq!(pc.drain(), [0xb0]);
        assert_eq!(later(1000), [0u8; 0]);
        Device::reset(&*other.chip, Reset::Board);
        clock.advance(1000 * MS);
        assert_eq!(other.drain(), [0u8; 0]);
    }

    #[test]
    fn a_password_holds_keyboard_and_mouse_back_until_it_is_typed() {
        let pc = Pc::new(true);
        pc.command(0xa4);
        assert_eq!(pc.read(), 0xf1);
        // Without one it cannot be enabled.
        pc.command(0xa6);
        pc.chip.key(Key::new(0x1e), true);
        assert_eq!(pc.drain(), [0x1e]);
        pc.command(0xa5);
        [0x1e, 0x30, 0].into_iter().for_each(|byte| pc.data(byte));
        pc.command(0xa4);
        assert_eq!(pc.read(), 0xfa);
        for (at, value) in [(0x73, 0x55), (0x74, 0x66), (0x76, 0x2a)] {
            pc.command(at);
            pc.data(value);
        }
        pc.command(0xa6);
        assert_eq!(pc.drain(), [0x55]);
        let tap = |code| {
            pc.chip.key(Key::new(code), true);
            pc.chip.key(Key::new(code), false);
            pc.drain()
        };
        // The first letter twice, and a shift between.
        for code in [0x1e, 0x10, 0x1e, 0x2a] {
            assert_eq!(tap(code), [0u8; 0], "{code:#x}");
        }
        assert_eq!(tap(0x30), [0x66, 0xb0]);
        assert_eq!(tap(0x10), [0x10, 0x90]);
    }

    #[test]
    fn the_input_port_is_polled_and_the_controller_dumped() {
        let pc = Pc::new(false);
        pc.command(0xc0);
        assert_eq!(pc.read(), 0xbf);
        pc.command(0xc1);
        assert_eq!(pc.status() & 0xf0, 0xf0);
        pc.command(0xc2);
        assert_eq!(pc.status() & 0xf0, 0xb0);
        pc.command(0xac);
        let dump = pc.drain();
        assert_eq!((dump.len(), &dump[..3]), (57, &[0x05, 0x06, 0x39][..]), "45h is the command byte");
        assert_eq!(pc.status() & 0xf0, 0x10, "until the next command");
    }

    #[test]
    fn without_a_mouse_d4_gets_no_answer() {
        let pc = Pc::new(false);
        pc.command(0xd4);
        pc.data(0xff);
        assert_eq!(pc.drain(), [0_u8; 0]);
    }

    #[test]
    fn the_reset_line_is_pulsed_by_fe_and_by_the_output_port() {
        let pc = Pc::new(false);
        pc.command(0xfe);
        pc.command(0xff);
        assert_eq!(pc.events.take(), ["reset Keyboard"]);
        pc.command(0xd1);
        pc.data(0xfe);
        assert_eq!(pc.events.take(), ["reset Keyboard"]);
    }

    #[test]
    fn a20_is_closed_and_opened_by_both_its_commands() {
        let pc = Pc::new(false);
        pc.command(0xd1);
        pc.data(0xdd);
        assert_eq!(pc.events.take(), ["a20 false"]);
        pc.command(0xd0);
        assert_eq!(pc.read() & 0x02, 0);
        pc.command(0xdf);
        assert_eq!(pc.events.take(), ["a20 true"]);
        pc.command(0xd0);
        assert_eq!(pc.read() & 0x03, 0x03);
    }

    #[test]
    fn no_access_of_any_width_panics() {
        for mouse in [false, true] {
            let pc = Pc::new(mouse);
            for command in [false, true] {
                hammer(&*pc.chip.port(command), 4);
                pc.chip.key(Key { code: 0xff, extended: true }, true);
                pc.chip.mouse(i32::MIN, i32::MAX, i32::MIN, MouseButtons::default());
                hammer(&*pc.chip.port(!command), 1);
            }
        }
    }
}
