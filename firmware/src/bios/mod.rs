//! BIOS services: what real-mode programs reach through software interrupts, written in Rust.
//!
//! ```text
//!   guest: INT 15h --IVT--> F000:xxxx  out PORT, al ---+      the stub (`rom`) does no more than that
//!                                      iret  <---------|---+
//!                                                      v   |
//!   engine: port write --> registers --> Bios::call --> services (video, disk, system, keyboard, time, ...)
//! ```
//!
//! An engine that sees a write to [`PORT`] hands the vCPU's registers as [`Regs`] and the machine as [`Platform`] to
//! [`Bios::call`], and puts the registers back. Which service is meant is told by CS:IP behind the OUT, so that a
//! write from anywhere else does nothing. Arguments are registers and guest memory; the caller's flags are read from,
//! and written to, the frame that INT pushed, where IRET takes them. A service that has to wait (a key, a delay) leaves
//! the registers as they were and has the stub halt until the next interrupt, then call again.
//!
//! State that programs look at lies where they expect it: interrupt vectors at 0, the BIOS data area (BDA) at 400h.
//! Missing on purpose: tape and joystick; Plug and Play is there by its structure, and has no functions.
//!
//! Sources: IBM PS/2 and PC BIOS Interface Technical Reference (1991); Phoenix EDD 3.0; PCI BIOS 2.1; ACPI 6.5, 15.

mod boot;
mod cd;
mod disk;
mod drive;
mod edd;
mod idle;
mod keyboard;
mod misc;
mod mouse;
mod optionrom;
mod pci;
mod pci_setup;
mod pmm;
mod protected;
mod resume;
pub mod rom;
mod system;
#[cfg(test)]
mod tests;
mod time;
mod video;

pub use drive::{BootClass, BootConfig, Disk, DiskError, Drive, DriveKind, DrivePath};
pub use pci_setup::{PciSetup, set_up_pci};
pub use protected::{Caller, DescriptorsAt};

use disk::status;

use crate::entry::Entry;
use crate::mem::GuestMemory;
use crate::tables::{E820Map, Tables};
use rom::{Rom, Service};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The port that the stubs write to. Nothing of a PC answers there.
pub const PORT: u16 = 0xbc;
/// The segment of the ROM.
pub const SEGMENT: u16 = 0xf000;

/// EFLAGS: carry, which reports errors.
pub const CF: u16 = 1 << 0;
/// EFLAGS: zero, which INT 16h uses.
pub const ZF: u16 = 1 << 6;

/// Addresses in the BIOS data area.
pub(crate) mod bda {
    pub const COM: u32 = 0x400;
    pub const EBDA_SEGMENT: u32 = 0x40e;
    pub const EQUIPMENT: u32 = 0x410;
    pub const MEMORY_KIB: u32 = 0x413;
    pub const SHIFT_FLAGS: u32 = 0x417;
    pub const SHIFT_FLAGS_2: u32 = 0x418;
    pub const ALT_KEYPAD: u32 = 0x419;
    pub const KEY_HEAD: u32 = 0x41a;
    pub const KEY_TAIL: u32 = 0x41c;
    pub const MOTORS: u32 = 0x43f;
    pub const MOTOR_COUNT: u32 = 0x440;
    pub const FLOPPY_STATUS: u32 = 0x441;
    pub const VIDEO_MODE: u32 = 0x449;
    pub const VIDEO_COLUMNS: u32 = 0x44a;
    pub const VIDEO_PAGE_SIZE: u32 = 0x44c;
    pub const VIDEO_PAGE_START: u32 = 0x44e;
    pub const CURSORS: u32 = 0x450;
    pub const CURSOR_SHAPE: u32 = 0x460;
    pub const VIDEO_PAGE: u32 = 0x462;
    pub const CRTC_PORT: u32 = 0x463;
    pub const CGA_CONTROL: u32 = 0x465;
    pub const CGA_COLOURS: u32 = 0x466;
    pub const TICKS: u32 = 0x46c;
    pub const MIDNIGHT: u32 = 0x470;
    pub const BREAK: u32 = 0x471;
    pub const WARM_BOOT: u32 = 0x472;
    pub const DISK_STATUS: u32 = 0x474;
    pub const DISK_COUNT: u32 = 0x475;
    pub const LPT_TIMEOUT: u32 = 0x478;
    pub const COM_TIMEOUT: u32 = 0x47c;
    pub const KEY_BUFFER: u32 = 0x480;
    pub const KEY_BUFFER_END: u32 = 0x482;
    pub const VIDEO_ROWS: u32 = 0x484;
    pub const CHAR_HEIGHT: u32 = 0x485;
    pub const VIDEO_CONTROL: u32 = 0x487;
    pub const VIDEO_SWITCHES: u32 = 0x488;
    pub const MODE_CONTROL: u32 = 0x489;
    pub const DISPLAY_COMBINATION: u32 = 0x48a;
    pub const FLOPPY_STATES: u32 = 0x490;
    pub const KEYBOARD_MODE: u32 = 0x496;
    pub const KEYBOARD_LEDS: u32 = 0x497;
    pub const WAIT_POINTER: u32 = 0x498;
    pub const WAIT_COUNT: u32 = 0x49c;
    pub const WAIT_ACTIVE: u32 = 0x4a0;
    pub const SAVE_POINTER: u32 = 0x4a8;
    /// Of no PC's: where Bochs' BIOS keeps the mode of VBE.
    pub const VBE_MODE: u32 = 0x4ba;
}

/// A vCPU's registers at a call. 32 bits are kept of the general ones, as callers of E820 and PCI BIOS use them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Regs {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
    /// ESI.
    pub esi: u32,
    /// EDI.
    pub edi: u32,
    /// EBP.
    pub ebp: u32,
    /// ESP.
    pub esp: u32,
    /// IP: behind the OUT of the stub.
    pub ip: u16,
    /// CS.
    pub cs: u16,
    /// DS.
    pub ds: u16,
    /// ES.
    pub es: u16,
    /// SS.
    pub ss: u16,
    /// The caller's flags, in the frame that INT pushed: [`Bios::call`] loads and stores them.
    pub flags: u16,
}

macro_rules! parts {
    ($($r:ident: $low:ident $high:ident $word:ident $set_low:ident $set_high:ident $set_word:ident;)*) => {
        #[allow(missing_docs)]
        impl Regs { $(
            pub fn $low(&self) -> u8 { self.$r as u8 }
            pub fn $high(&self) -> u8 { (self.$r >> 8) as u8 }
            pub fn $word(&self) -> u16 { self.$r as u16 }
            pub fn $set_low(&mut self, v: u8) { self.$r = self.$r & !0xff | u32::from(v); }
            pub fn $set_high(&mut self, v: u8) { self.$r = self.$r & !0xff00 | u32::from(v) << 8; }
            pub fn $set_word(&mut self, v: u16) { self.$r = self.$r & !0xffff | u32::from(v); }
        )* }
    };
}
parts! {
    eax: al ah ax set_al set_ah set_ax;
    ebx: bl bh bx set_bl set_bh set_bx;
    ecx: cl ch cx set_cl set_ch set_cx;
    edx: dl dh dx set_dl set_dh set_dx;
}

impl Regs {
    /// Sets or clears the carry flag that the caller will see.
    pub fn carry(&mut self, on: bool) {
        self.flags = if on { self.flags | CF } else { self.flags & !CF };
    }

    /// Sets or clears the zero flag that the caller will see.
    pub fn zero(&mut self, on: bool) {
        self.flags = if on { self.flags | ZF } else { self.flags & !ZF };
    }

    /// Success: AH 0, carry clear.
    fn ok(&mut self) -> Outcome {
        self.set_ah(0);
        self.carry(false);
        Outcome::Return
    }

    /// An error: its code in AH, carry set.
    fn fail(&mut self, code: u8) -> Outcome {
        self.set_ah(code);
        self.carry(true);
        Outcome::Return
    }
}

/// The linear address of `segment:offset`.
pub fn linear(segment: u16, offset: u16) -> u32 {
    (u32::from(segment) << 4) + u32::from(offset)
}

/// What services need of the vCPU and the machine around it.
pub trait Platform {
    /// Reads at a linear address, as the vCPU would now.
    fn read(&mut self, linear: u32, buf: &mut [u8]);
    /// Writes at a linear address.
    fn write(&mut self, linear: u32, buf: &[u8]);
    /// Reads physical memory.
    fn read_physical(&mut self, gpa: u64, buf: &mut [u8]);
    /// Writes physical memory.
    fn write_physical(&mut self, gpa: u64, buf: &[u8]);
    /// IN of 1, 2 or 4 bytes.
    fn port_in(&mut self, port: u16, size: u8) -> u32;
    /// OUT of 1, 2 or 4 bytes.
    fn port_out(&mut self, port: u16, size: u8, value: u32);
    /// Guest time in nanoseconds.
    fn now(&mut self) -> u64;
    /// In real mode: data segments reach 4 GiB (big real mode), or 64 KiB again.
    fn set_big_real(&mut self, on: bool) {
        let _ = on;
    }
}

impl dyn Platform + '_ {
    pub(crate) fn u8(&mut self, at: u32) -> u8 {
        let mut b = [0];
        self.read(at, &mut b);
        b[0]
    }
    pub(crate) fn u16(&mut self, at: u32) -> u16 {
        let mut b = [0; 2];
        self.read(at, &mut b);
        u16::from_le_bytes(b)
    }
    pub(crate) fn u32(&mut self, at: u32) -> u32 {
        let mut b = [0; 4];
        self.read(at, &mut b);
        u32::from_le_bytes(b)
    }
    pub(crate) fn set_u8(&mut self, at: u32, v: u8) {
        self.write(at, &[v]);
    }
    pub(crate) fn set_u16(&mut self, at: u32, v: u16) {
        self.write(at, &v.to_le_bytes());
    }
    pub(crate) fn set_u32(&mut self, at: u32, v: u32) {
        self.write(at, &v.to_le_bytes());
    }
    pub(crate) fn inb(&mut self, port: u16) -> u8 {
        self.port_in(port, 1) as u8
    }
    pub(crate) fn outb(&mut self, port: u16, v: u8) {
        self.port_out(port, 1, v.into());
    }
    /// A register of the RTC's CMOS; leaves NMI enabled.
    pub(crate) fn cmos(&mut self, index: u8) -> u8 {
        self.outb(0x70, index & 0x7f);
        self.inb(0x71)
    }
    pub(crate) fn set_cmos(&mut self, index: u8, v: u8) {
        self.outb(0x70, index & 0x7f);
        self.outb(0x71, v);
    }
}

/// How a service ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The stub goes on behind its OUT.
    Return,
    /// Nothing yet: halt until an interrupt, then call again.
    Wait,
    /// Nothing yet, and soon: let interrupts in, then call again.
    Poll,
    /// The service has set CS:IP itself.
    Jump,
}

/// What the services say of the machine.
#[derive(Clone, Debug, Default)]
pub struct BiosConfig {
    /// Screen text and keys go through this serial port (its first I/O port), as well.
    pub console: Option<u16>,
    /// Nobody sees the screen: graphics by VBE are not offered, so that programs which can do without them write text,
    /// which the serial port gets.
    pub text_only: bool,
    /// Ports of debug consoles that get screen text.
    pub debug_ports: Vec<u16>,
    /// What is booted.
    pub boot: BootConfig,
}

/// The BIOS: its ROM, and the little state that is not in guest memory.
pub struct Bios {
    cfg: BiosConfig,
    rom: Rom,
    e820: E820Map,
    /// RAM from 1 MiB up to the first hole, in bytes.
    upper: u64,
    /// RAM from 4 GiB up, in bytes.
    above_4g: u64,
    drives: drive::Drives,
    boot: boot::BootState,
    /// The CD that was booted.
    cd: Option<cd::Emulation>,
    screen: video::Screen,
    /// The PCI function of the VGA.
    adapter: Option<u16>,
    /// Where the FACS is, if there is one.
    facs: Option<u64>,
    /// When the delay of INT 15h 86h is over.
    delay: Option<u64>,
    /// Bytes of an escape sequence from the serial console.
    escape: Vec<u8>,
    /// What the keyboard gets when it has acknowledged what it got last.
    sending: Vec<u8>,
    /// The keyboard's rate and delay, as its command F3h has them.
    typematic: u8,
    /// INT 15h is being called since a drive is waited for: 0 a floppy, 1 a disk.
    waiting: Option<u8>,
    polls: idle::Polls,
    /// See [`Bios::rest`].
    rest: Option<Duration>,
}

/// What is saved of the BIOS: what is neither in guest memory nor follows from how the machine was made.
#[derive(Serialize, Deserialize)]
pub struct BiosV1 {
    screen: video::Screen,
    adapter: Option<u16>,
    delay: Option<u64>,
    escape: Vec<u8>,
    sending: Vec<u8>,
    typematic: u8,
    waiting: Option<u8>,
    boot: boot::BootState,
    cd: Option<cd::Emulation>,
    hard_disks: Vec<u16>,
    /// Of each drive: the medium that was last told of, and how often it was locked.
    drives: Vec<(u64, u8)>,
}

impl Bios {
    /// What is to be saved.
    pub fn save(&self) -> BiosV1 {
        BiosV1 {
            screen: self.screen.clone(),
            adapter: self.adapter,
            delay: self.delay,
            escape: self.escape.clone(),
            sending: self.sending.clone(),
            typematic: self.typematic,
            waiting: self.waiting,
            boot: self.boot.clone(),
            cd: self.cd.clone(),
            hard_disks: self.drives.hard_disks.iter().map(|n| *n as u16).collect(),
            drives: self.drives.units.iter().map(|u| (u.medium, u.locks)).collect(),
        }
    }

    /// Takes on what was saved. The rest of [`Bios::install`] is done already.
    ///
    /// # Errors
    /// What has a value that it cannot have.
    pub fn restore(&mut self, saved: BiosV1) -> Result<(), &'static str> {
        if !saved.screen.is_whole() {
            return Err("the screen");
        }
        if saved.escape.len() > 16 {
            return Err("the console's escape sequence");
        }
        if saved.sending.len() > 1 {
            return Err("what the keyboard is told");
        }
        let hard_disks: Vec<usize> = saved.hard_disks.iter().map(|n| usize::from(*n)).collect();
        let (mut has, mut had) = (self.drives.hard_disks.clone(), hard_disks.clone());
        has.sort_unstable();
        had.sort_unstable();
        if has != had || saved.drives.len() != self.drives.units.len() {
            return Err("which drives there are");
        }
        if saved.cd.as_ref().is_some_and(|cd| !cd.is_possible()) {
            return Err("the CD that was booted");
        }
        for (unit, (medium, locks)) in self.drives.units.iter_mut().zip(&saved.drives) {
            (unit.medium, unit.locks) = (*medium, *locks);
        }
        self.drives.hard_disks = hard_disks;
        (self.boot, self.cd) = (saved.boot, saved.cd);
        (self.screen, self.delay, self.escape) = (saved.screen, saved.delay, saved.escape);
        (self.sending, self.typematic) = (saved.sending, saved.typematic & 0x7f);
        (self.adapter, self.waiting) = (saved.adapter, saved.waiting);
        Ok(())
    }

    /// A BIOS without disks.
    pub fn new(cfg: BiosConfig) -> Self {
        Bios {
            cfg,
            rom: Rom::assemble(),
            e820: E820Map::default(),
            upper: 0,
            above_4g: 0,
            drives: drive::Drives::new(),
            boot: boot::BootState::default(),
            cd: None,
            screen: video::Screen::default(),
            adapter: None,
            facs: None,
            delay: None,
            escape: Vec::new(),
            sending: Vec::new(),
            typematic: keyboard::TYPEMATIC,
            waiting: None,
            polls: idle::Polls::default(),
            rest: None,
        }
    }

    /// What a BIOS has in memory when it starts a system: ROM, interrupt vectors, data area. The firmware tables are
    /// there already.
    pub fn install(&mut self, mem: &dyn GuestMemory, tables: &Tables) {
        self.e820 = tables.e820.clone();
        self.upper = tables.e820.upper_memory();
        self.above_4g = mem.above_4g();
        self.facs = tables.facs;
        (self.screen, self.adapter) = (video::Screen::default(), None);
        (self.delay, self.escape) = (None, Vec::new());
        (self.sending, self.typematic, self.waiting) = (Vec::new(), keyboard::TYPEMATIC, None);
        mem.write(u64::from(linear(SEGMENT, rom::START)), &self.rom.image);
        mem.write(u64::from(linear(SEGMENT, rom::IRQ_TABLE)), &rom::irq_routing(tables.chipset));
        for (n, offset) in self.rom.vectors.iter().enumerate() {
            let (o, s) = (offset.to_le_bytes(), SEGMENT.to_le_bytes());
            mem.write(4 * n as u64, &[o[0], o[1], s[0], s[1]]);
        }
        // Vectors 40h and up that hold no handler of ours: those of pointers and of programs are empty.
        for n in [0x1f, 0x43].into_iter().chain(0x60..0x68).chain(0x78..0x100) {
            mem.write(4 * n, &[0; 4]);
        }
        let put = |at: u32, bytes: &[u8]| mem.write(at.into(), bytes);
        put(bda::KEY_HEAD, &[0x1e, 0, 0x1e, 0]);
        put(bda::KEY_BUFFER, &[0x1e, 0, 0x3e, 0]);
        put(bda::KEYBOARD_MODE, &[0x10]); // an enhanced keyboard
        put(bda::LPT_TIMEOUT, &[0x14; 4]);
        put(bda::COM_TIMEOUT, &[0x0a; 4]);
        put(bda::WARM_BOOT, &[0, 0]);
        (self.boot, self.cd) = (boot::BootState::default(), None);
        self.drives.number();
        for unit in &mut self.drives.units {
            unit.start();
        }
        let mut word = [0; 2];
        mem.read(bda::EQUIPMENT.into(), &mut word);
        for (at, bytes) in self.drive_data(u16::from_le_bytes(word)) {
            put(at, &bytes);
        }
        for (at, bytes) in video::initial_bda() {
            put(at, &bytes);
        }
    }

    /// What a BIOS has done to the hardware when it starts a program, be it one that never calls it: interrupts at 8
    /// and 70h with those of a PC's own devices let through, 18.2 ticks a second, a keyboard that scans, a VGA in mode
    /// 3, the serial console at 115,200 baud.
    pub fn power_on(&mut self, pc: &mut dyn Platform) {
        self.set_up_chips(pc);
        self.start_video(pc);
        time::set_ticks_from_clock(pc);
    }

    /// The machine has woken from S3: what [`Bios::power_on`] does, but for memory, which is as it was; where the boot
    /// processor goes on.
    pub fn resume(&mut self, pc: &mut dyn Platform) -> Entry {
        self.set_up_chips(pc);
        resume::entry(pc, self.facs)
    }

    fn set_up_chips(&mut self, pc: &mut dyn Platform) {
        // 8259s: ICW1 to ICW4, then the masks (timer, keyboard, cascade, floppy; clock, mouse, x87, disk).
        for (base, vector, wiring, mask) in [(0x20, 0x08, 0x04, 0xb8), (0xa0, 0x70, 0x02, 0x8e)] {
            pc.outb(base, 0x11);
            for v in [vector, wiring, 0x01, mask] {
                pc.outb(base + 1, v);
            }
        }
        // 8254 counter 0: both bytes, mode 2, 65,536.
        for (port, v) in [(0x43, 0x34), (0x40, 0), (0x40, 0)] {
            pc.outb(port, v);
        }
        // 8237A: channel 4 is the cascade, and open; both controllers are on.
        for (port, v) in [(0x08, 0), (0xd0, 0), (0xd6, 0xc0), (0xd4, 0)] {
            pc.outb(port, v);
        }
        // 8042: interrupt 1, system flag, translation; then enable scanning and take the answer.
        for (port, v) in [(0x64, 0xae), (0x64, 0x60), (0x60, 0x65), (0x60, 0xf4)] {
            pc.outb(port, v);
        }
        for _ in 0..16 {
            if pc.inb(0x64) & 1 == 0 {
                break;
            }
            pc.inb(0x60);
        }
        if let Some(base) = self.cfg.console {
            misc::set_up_serial(pc, base, 0x03, 1); // 8 bits, no parity, one stop bit
        }
    }

    /// Carries out the service whose stub has just written to [`PORT`]; the registers are then what the vCPU goes on
    /// with. A write from elsewhere changes nothing, and false says so.
    pub fn call(&mut self, regs: &mut Regs, pc: &mut dyn Platform) -> bool {
        if regs.cs != SEGMENT {
            return false;
        }
        let Some(&stub) = self.rom.stubs.get(&regs.ip) else { return false };
        let frame = linear(regs.ss, (regs.esp as u16).wrapping_add(4));
        regs.flags = pc.u16(frame);
        let before = *regs;
        let outcome = self.serve(stub.service, regs, pc);
        if !idle::is_neutral(stub.service, &before) {
            self.rest = self.polls.ended(&before, pc.now());
        }
        match outcome {
            Outcome::Return => {}
            Outcome::Wait | Outcome::Poll => {
                *regs = before;
                regs.ip = if outcome == Outcome::Wait { stub.wait } else { stub.poll };
                return true;
            }
            Outcome::Jump => return true,
        }
        if regs.flags != before.flags {
            pc.set_u16(frame, regs.flags);
        }
        true
    }

    /// How long the vCPU that has just called may rest, as its program only waits for a key; once. An interrupt ends
    /// the rest, and [`Bios::rested`] is to be told of its end.
    pub fn rest(&mut self) -> Option<Duration> {
        self.rest.take()
    }

    /// The rest is over.
    pub fn rested(&mut self, now: u64) {
        self.polls.rested(now);
    }

    /// Where the boot processor starts if nothing else is to be started: option ROMs, the boot menu, INT 19h. After
    /// [`Bios::install`], [`set_up_pci`] and [`Bios::power_on`].
    pub fn boot_entry(&self) -> Entry {
        Entry::real(SEGMENT, self.rom.start, 0, boot::STACK)
    }

    fn serve(&mut self, service: Service, r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
        match service {
            Service::Video => self.video(r, pc),
            Service::Equipment => misc::equipment(r, pc),
            Service::MemorySize => misc::memory_size(r, pc),
            Service::Disk | Service::Floppy | Service::DriveReady => self.disk(r, pc, service),
            Service::DriveWaited => self.drive_waited(r),
            Service::Serial => misc::serial(r, pc),
            Service::System => self.system(r, pc),
            Service::Keyboard => self.keyboard(r, pc, false),
            Service::KeyWaited => self.keyboard(r, pc, true),
            Service::Pause => keyboard::paused(pc),
            Service::Printer => misc::printer(r),
            Service::NoBoot => self.no_boot(r),
            Service::Boot => self.boot(r, pc),
            Service::Clock if r.ah() == 0xb1 => {
                let at = linear(r.es, r.edi as u16);
                pci::service(r, pc, at, pci::Pointers::Real)
            }
            Service::Clock => time::clock(r, pc),
            Service::Tick => self.tick(r, pc),
            Service::Scancode => self.scancode(r, pc),
            Service::RtcInterrupt => time::rtc_interrupt(r, pc, self.rom.alarm),
            Service::StrayInterrupt => misc::stray_interrupt(pc),
            Service::Reset => misc::reset(r, pc, self.rom.halt),
            Service::Start => self.start(r, pc),
            Service::BootRead => self.boot_read(r),
            Service::Mouse => self.mouse_interrupt(r, pc),
            Service::Pmm => self.pmm(r, pc),
            // They are called from protected mode only.
            Service::Pci32 | Service::Apm => Outcome::Return,
        }
    }
}
