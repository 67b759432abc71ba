//! Booting: option ROMs, the menu, and what is to be booted in turn.
//!
//! ```text
//!   power-on -> Roms -> Connect -> Prompt -> Menu -> INT 19h -> Try(0) -> boot sector, CD image, option ROM
//!                                     |               ^  INT 18h: Try(n + 1)
//!                                     +-- time over --+
//! ```
//!
//! All of it is steps of one stub (`Service::Start`), which is called again after each: a step ends with a jump into
//! an option ROM, a boot sector or a program's INT 13h, or waits for a key. Text goes to the screen of INT 10h,
//! whoever has that; where it is ours, to the serial console.
use super::drive::{BootClass, DriveKind, FIRST_DISK, SECTOR};
use super::{Bios, Outcome, Platform, Regs, SEGMENT, cd, linear, optionrom, rom};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Where a boot sector is loaded.
const AT: u16 = 0x7c00;
/// The stack while nothing runs but the BIOS.
pub(super) const STACK: u16 = 0x7000;
/// IF, and the bit that is always set.
const FLAGS: u16 = 0x0202;
/// Milliseconds that the menu's prompt waits.
const PROMPT: u32 = 2500;
/// Keys of the menu's lines.
const KEYS: &[u8] = b"123456789abcdefghijklmnopqrstuvwxyz";

/// Where it has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// The next option ROM is looked for from this address on.
    #[default]
    Start,
    /// Option ROMs from this address on are started.
    Roms(u32),
    /// Boot connection vectors from this ROM on are called.
    Connect(u16),
    /// A key is waited for until then.
    Prompt(u64),
    /// A line of the menu is waited for.
    Menu,
    /// INT 19h is next.
    Ready,
    /// This candidate is next.
    Try(u16),
    /// This candidate is announced, and is to be loaded.
    Load(u16),
    /// A program's INT 13h has loaded this candidate's boot sector, or has failed.
    Loaded(u16, bool),
    /// Nothing is left; until then, if it is tried again.
    Failed(Option<u64>),
}

/// What is kept of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct BootState {
    pub phase: Phase,
    /// The candidate that the menu has put first.
    pub chosen: Option<u16>,
    /// Text for a screen that an option ROM has.
    pub text: VecDeque<u8>,
    /// Option ROMs that were started.
    pub roms: Vec<optionrom::Found>,
    /// Memory that they have.
    pub blocks: Vec<super::pmm::Block>,
    /// The structure by which option ROMs find the memory manager, while it is not there.
    pub pmm: Vec<u8>,
}

/// What may be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Candidate {
    /// A drive, by its unit.
    Unit(usize),
    /// An option ROM, by its number.
    Rom(usize),
}

impl Bios {
    /// From the next boot on these classes are booted, in this order.
    pub fn set_boot_order(&mut self, order: Vec<BootClass>) {
        self.cfg.boot.order = order;
    }

    /// A network card has a place in the order: bus, device and function as INT 1Ah has them, and its boot index.
    pub fn add_network(&mut self, device: u16, index: u32) {
        self.cfg.boot.network.push((device, index));
    }

    /// What may be booted, in order.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let units = &self.drives.units;
        let roms = &self.boot.roms;
        let of_unit = |n: usize| Some((units[n].drive.boot_index?, Candidate::Unit(n)));
        let index_of = |rom: &optionrom::Found| {
            let network =
                self.cfg.boot.network.iter().find(|(device, _)| rom.entry != 0 && *device == rom.device);
            network.map(|(_, index)| *index)
        };
        let of_rom = |n: usize| Some((index_of(&roms[n])?, Candidate::Rom(n)));
        let mut indexed: Vec<(u32, Candidate)> =
            (0..units.len()).filter_map(of_unit).chain((0..roms.len()).filter_map(of_rom)).collect();
        indexed.sort_by_key(|(index, _)| *index);
        let mut list: Vec<Candidate> = indexed.into_iter().map(|(_, candidate)| candidate).collect();
        if !self.cfg.boot.strict || list.is_empty() {
            for class in self.cfg.classes() {
                let kind = match class {
                    BootClass::Floppy => DriveKind::Floppy,
                    BootClass::HardDisk => DriveKind::HardDisk,
                    BootClass::Cd => DriveKind::Cd,
                    BootClass::Network => {
                        let boots = |n: &usize| roms[*n].entry != 0 && index_of(&roms[*n]).is_none();
                        list.extend((0..roms.len()).filter(boots).map(Candidate::Rom));
                        continue;
                    }
                };
                let is = |n: &usize| units[*n].drive.kind == kind && units[*n].drive.boot_index.is_none();
                list.extend((0..units.len()).filter(is).map(Candidate::Unit));
            }
        }
        if let Some(chosen) = self.boot.chosen.map(usize::from).filter(|n| *n < list.len()) {
            list[..=chosen].rotate_right(1);
        }
        list
    }

    /// What the menu calls it.
    fn title(&self, candidate: Candidate) -> String {
        let (kind, name) = match candidate {
            Candidate::Unit(n) => {
                let drive = &self.drives.units[n].drive;
                (kind_name(drive.kind), drive.name.clone())
            }
            Candidate::Rom(n) => ("Network", self.boot.roms[n].name.clone()),
        };
        // What is printed is a line of plain characters.
        let name: String = name.chars().filter(|c| matches!(c, ' '..='~')).take(60).collect();
        if name.is_empty() || name == kind { kind.into() } else { format!("{kind}: {name}") }
    }

    /// Text of the firmware itself, on the screen that INT 10h has.
    fn say(&mut self, pc: &mut dyn Platform, text: &str) {
        if (pc.u16(0x42), pc.u16(0x40)) == (SEGMENT, self.rom.vectors[0x10]) {
            self.print(pc, text);
            return;
        }
        for c in text.bytes() {
            if c == b'\n' {
                self.boot.text.push_back(b'\r');
            }
            self.boot.text.push_back(c);
        }
    }

    /// The stub, with nothing on the stack.
    fn again(&self, r: &mut Regs) -> Outcome {
        *r = Regs { cs: SEGMENT, ip: self.rom.start, esp: STACK.into(), ..Regs::default() };
        Outcome::Jump
    }

    /// INT 19h.
    pub(super) fn boot(&mut self, r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
        self.cd = None;
        self.drives.number();
        self.count_drives(pc);
        self.boot.phase = Phase::Try(0);
        self.again(r)
    }

    /// INT 18h: the next one.
    pub(super) fn no_boot(&mut self, r: &mut Regs) -> Outcome {
        // A program that calls it long after it was booted is at the end of the list as well.
        if !matches!(self.boot.phase, Phase::Try(_) | Phase::Failed(_)) {
            self.boot.phase = Phase::Try(0);
        }
        self.again(r)
    }

    /// A step.
    pub(super) fn start(&mut self, r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
        loop {
            if let Some(c) = self.boot.text.pop_front() {
                self.again(r);
                (r.eax, r.ebx, r.ip) = (0x0e00 | u32::from(c), 7, self.rom.say);
                return Outcome::Jump;
            }
            match self.boot.phase {
                Phase::Start => self.boot.phase = Phase::Roms(optionrom::AREA.start),
                Phase::Roms(at) => {
                    let Some((rom, next)) = optionrom::next(pc, at) else {
                        self.boot.phase = Phase::Connect(0);
                        continue;
                    };
                    self.boot.phase = Phase::Roms(next);
                    let (segment, device) = (rom.segment, rom.device);
                    // One of the network takes long, and is seldom booted from.
                    let now = !rom.network || self.cfg.boot.menu;
                    self.boot.roms.push(optionrom::Found { started: now, ..rom });
                    if now {
                        pc.set_big_real(true);
                        return self.call_rom(r, pc, segment, 3, device);
                    }
                }
                Phase::Connect(n) => {
                    if n == 0 {
                        // Headers may be made by the ROM's own initialisation.
                        self.boot.roms.iter_mut().for_each(|rom| rom.read_headers(pc));
                    }
                    let Some(rom) = self.boot.roms.get(usize::from(n)) else {
                        self.prompt(pc);
                        continue;
                    };
                    let (segment, vector, device) = (rom.segment, rom.connect, rom.device);
                    self.boot.phase = Phase::Connect(n + 1);
                    if vector != 0 {
                        pc.set_big_real(true);
                        return self.call_rom(r, pc, segment, vector, device);
                    }
                }
                Phase::Prompt(until) => match self.pressed(pc) {
                    Some(key) if key >> 8 == 0x86 || key as u8 == 0x1b => {
                        self.say(pc, "\n");
                        self.show_menu(pc);
                        self.boot.phase = Phase::Menu;
                    }
                    _ if pc.now() >= until => {
                        self.say(pc, "\n");
                        self.boot.phase = Phase::Ready;
                    }
                    _ => return Outcome::Wait,
                },
                Phase::Menu => match self.pressed(pc).map(|key| key as u8) {
                    Some(0x1b) => self.boot.phase = Phase::Ready,
                    Some(c) => {
                        let line = KEYS.iter().position(|k| *k == c.to_ascii_lowercase());
                        if let Some(n) = line.filter(|n| *n < self.candidates().len()) {
                            self.boot.chosen = Some(n as u16);
                            self.boot.phase = Phase::Ready;
                        }
                    }
                    None => return Outcome::Wait,
                },
                Phase::Ready => {
                    self.end_pmm(pc);
                    // By the vector, as an option ROM may have taken it.
                    self.boot.phase = Phase::Try(0);
                    self.again(r);
                    r.ip = self.rom.boot;
                    return Outcome::Jump;
                }
                Phase::Try(n) => {
                    let Some(&candidate) = self.candidates().get(usize::from(n)) else {
                        self.say(pc, "No bootable device.\n");
                        let wait = self.cfg.boot.reboot_timeout;
                        let until = wait.map(|ms| pc.now().saturating_add(u64::from(ms) * 1_000_000));
                        self.boot.phase = Phase::Failed(until);
                        continue;
                    };
                    let what = match candidate {
                        Candidate::Unit(u) => kind_name(self.drives.units[u].drive.kind),
                        Candidate::Rom(_) => "option ROM",
                    };
                    self.say(pc, &format!("Booting from {what}...\n"));
                    self.boot.phase = Phase::Load(n);
                }
                Phase::Load(n) => {
                    let candidate = self.candidates().get(usize::from(n)).copied();
                    self.boot.phase = Phase::Try(n.saturating_add(1));
                    let Some(candidate) = candidate else { continue };
                    if let Candidate::Rom(rom) = candidate
                        && let Some(rom) = self.boot.roms.get_mut(rom).filter(|rom| !rom.started)
                    {
                        rom.started = true;
                        let (segment, device) = (rom.segment, rom.device);
                        self.begin_pmm(pc);
                        self.boot.phase = Phase::Load(n);
                        pc.set_big_real(true);
                        return self.call_rom(r, pc, segment, 3, device);
                    }
                    match self.load(r, pc, candidate, n) {
                        Ok(()) => return Outcome::Jump,
                        Err(why) => self.say(pc, &format!("Boot failed: {why}\n\n")),
                    }
                }
                Phase::Loaded(n, ok) => {
                    self.boot.phase = Phase::Try(n.saturating_add(1));
                    let Some(&Candidate::Unit(unit)) = self.candidates().get(usize::from(n)) else {
                        continue;
                    };
                    let floppy = self.drives.units[unit].drive.kind == DriveKind::Floppy;
                    let mut sector = [0; SECTOR];
                    pc.read(AT.into(), &mut sector);
                    let result = if ok { check(&sector, floppy) } else { Err("it cannot be read".into()) };
                    match result {
                        Ok(()) => {
                            self.enter(r, pc, 0, AT, if floppy { 0 } else { FIRST_DISK }, 0);
                            return Outcome::Jump;
                        }
                        Err(why) => self.say(pc, &format!("Boot failed: {why}\n\n")),
                    }
                }
                Phase::Failed(None) => {
                    self.again(r);
                    r.ip = self.rom.halt;
                    return Outcome::Jump;
                }
                Phase::Failed(Some(until)) if pc.now() < until => return Outcome::Wait,
                Phase::Failed(Some(_)) => return super::misc::reset(r, pc, self.rom.halt),
            }
        }
    }

    /// The INT 13h of a program has returned from loading a boot sector.
    pub(super) fn boot_read(&mut self, r: &mut Regs) -> Outcome {
        let ok = r.flags & super::CF == 0;
        if let Phase::Try(n) = self.boot.phase {
            self.boot.phase = Phase::Loaded(n.saturating_sub(1), ok);
        }
        self.again(r)
    }

    fn prompt(&mut self, pc: &mut dyn Platform) {
        if !self.cfg.boot.menu || self.candidates().is_empty() {
            self.boot.phase = Phase::Ready;
            return;
        }
        self.say(pc, "Press F12 or ESC for the boot menu.\n");
        let ms = self.cfg.boot.menu_time.unwrap_or(PROMPT);
        self.boot.phase = Phase::Prompt(pc.now().saturating_add(u64::from(ms) * 1_000_000));
    }

    fn show_menu(&mut self, pc: &mut dyn Platform) {
        self.say(pc, "Select what to boot (ESC for the usual order):\n\n");
        for (key, candidate) in KEYS.iter().zip(self.candidates()) {
            let line = format!("{}. {}\n", char::from(*key), self.title(candidate));
            self.say(pc, &line);
        }
        self.say(pc, "\n");
    }

    /// A key, from the keyboard or the serial console.
    fn pressed(&mut self, pc: &mut dyn Platform) -> Option<u16> {
        self.poll_terminal(pc);
        super::keyboard::next_key(pc, true)
    }

    /// Loads a candidate and goes there.
    fn load(&mut self, r: &mut Regs, pc: &mut dyn Platform, what: Candidate, n: u16) -> Result<(), String> {
        self.cd = None;
        let unit = match what {
            Candidate::Unit(unit) => unit,
            Candidate::Rom(rom) => {
                let rom = self.boot.roms.get_mut(rom).ok_or("it is gone")?;
                // Its initialisation may have made them.
                rom.read_headers(pc);
                let (segment, entry, device) = (rom.segment, rom.entry, rom.device);
                self.end_pmm(pc);
                self.call_rom(r, pc, segment, entry, device);
                // It is not to return; if it does, the next one is tried.
                pc.set_u16(linear(0, r.esp as u16), self.rom.rom_failed);
                return Ok(());
            }
        };
        let (kind, disk) = (self.drives.units[unit].drive.kind, self.drives.units[unit].drive.disk.clone());
        let index = self.drives.of(kind).iter().position(|u| *u == unit).unwrap_or(0) as u8;
        match kind {
            DriveKind::Cd => {
                let found = cd::find(&*disk, index)?;
                let segment = cd::load(pc, &*disk, &found)?;
                let (drive, sectors) = (found.drive, found.sectors.max(4));
                self.cd = Some(found);
                self.count_drives(pc);
                // As 0000:7C00 and not 07C0:0000, which some do not expect.
                let (cs, ip) = (segment & 0xf000, (segment & 0xfff) << 4);
                self.enter(r, pc, cs, ip, drive, u32::from(sectors) * SECTOR as u32);
            }
            DriveKind::HardDisk | DriveKind::Floppy => {
                let floppy = kind == DriveKind::Floppy;
                if !floppy {
                    self.drives.promote(unit);
                    self.count_drives(pc);
                }
                // The second floppy can be booted where the first cannot.
                let number = if floppy { index } else { FIRST_DISK };
                let vector = (pc.u16(4 * 0x13 + 2), pc.u16(4 * 0x13));
                if vector != (SEGMENT, self.rom.vectors[0x13]) {
                    // An option ROM has its own drives before ours, or instead of them.
                    self.boot.phase = Phase::Try(n.saturating_add(1));
                    self.again(r);
                    (r.eax, r.ebx, r.ecx, r.edx) = (0x0201, AT.into(), 1, number.into());
                    let frame = [self.rom.boot_read, SEGMENT, FLAGS].map(u16::to_le_bytes);
                    r.esp -= 6;
                    pc.write(r.esp, frame.as_flattened());
                    (r.cs, r.ip) = vector;
                    return Ok(());
                }
                if disk.sectors() == 0 {
                    return Err("no medium in the drive".into());
                }
                let mut sector = vec![0; disk.sector_size() as usize];
                disk.read(0, &mut sector).map_err(|e| e.to_string())?;
                check(&sector, floppy)?;
                pc.write(linear(0, AT), &sector);
                self.enter(r, pc, 0, AT, number, 0);
            }
        }
        Ok(())
    }

    /// Goes to what was loaded, with interrupts on: by an IRET, as the flags are the vCPU's. `len`: bytes that were
    /// loaded, if the stack is to be kept out of them.
    pub(super) fn enter(&self, r: &mut Regs, pc: &mut dyn Platform, cs: u16, ip: u16, drive: u8, len: u32) {
        let at = linear(cs, ip);
        let below = at < AT.into() && at + len > u32::from(AT) - 0x400;
        let (ss, sp) = if below { (0x9000, 0xf000) } else { (0, AT - 6) };
        let frame = [ip, cs, FLAGS].map(u16::to_le_bytes);
        pc.write(linear(ss, sp), frame.as_flattened());
        *r = Regs {
            eax: 0xaa55,
            edx: drive.into(),
            esp: sp.into(),
            ss,
            cs: SEGMENT,
            ip: self.rom.iret,
            ..Regs::default()
        };
    }

    /// A far call of an option ROM, which comes back to the next step: AX the device, ES:DI the `$PnP` structure.
    fn call_rom(
        &self,
        r: &mut Regs,
        pc: &mut dyn Platform,
        segment: u16,
        offset: u16,
        device: u16,
    ) -> Outcome {
        self.again(r);
        r.esp -= 4;
        let back = [self.rom.start, SEGMENT].map(u16::to_le_bytes);
        pc.write(r.esp, back.as_flattened());
        (r.eax, r.ebx, r.edx) = (device.into(), 0xffff, 0xffff);
        (r.es, r.edi) = (SEGMENT, rom::PNP.into());
        (r.cs, r.ip) = (segment, offset);
        Outcome::Jump
    }
}

fn kind_name(kind: DriveKind) -> &'static str {
    match kind {
        DriveKind::Floppy => "Floppy",
        DriveKind::HardDisk => "Hard Disk",
        DriveKind::Cd => "DVD/CD",
    }
}

/// Whether a sector can be booted; why not.
fn check(sector: &[u8], floppy: bool) -> Result<(), String> {
    let marked = sector.get(510..512) == Some(&[0x55, 0xaa]);
    // Old floppies have no mark; what is not code (zeros, a format's filling) is none of them.
    let code = sector.first().is_some_and(|b| matches!(b, 0xeb | 0xe9 | 0xfa | 0x33));
    if !(marked || floppy && code) {
        return Err("it is not a bootable disk (its first sector has no mark of a boot sector)".into());
    }
    if sector.get(..4) == Some(&[0; 4]) {
        let gpt = sector[0x1be..0x1fe].chunks_exact(16).any(|e| e[4] == 0xee);
        return Err(if gpt {
            "its partition table is a GPT, without boot code for a BIOS (it may boot with UEFI)".into()
        } else {
            "its first sector has no boot code".into()
        });
    }
    Ok(())
}
