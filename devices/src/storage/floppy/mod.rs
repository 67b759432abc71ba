//! The floppy controller, an 82077AA, with up to two drives.
//!
//! ```text
//!   ports 3F1h-3F5h, 3F7h --> Controller --request--> the drive's threads --answer--+
//!   IRQ 6                 <--     |  ^----------------------------------------------+
//!   8237A channel 2       <------>+  data, a track at a time
//! ```
//!
//! `controller` is a pure model; `format` says what a diskette of so many bytes is; here are ports, lock, interrupt,
//! DMA, and what is plugged in. At most a track is kept.
//!
//! As QEMU's: seeks take no time, heads go where a transfer wants them, what an image lacks of its format reads as
//! zeros, the data rate has to be the medium's, scans are refused, a transfer at the data port ends normally at the
//! last sector. As the data sheet, where QEMU differs: DMA that goes on beyond the last sector ends with EN, sectors
//! that are not there with ND, marks of deleted data, formatting fills the track. Missing on purpose: 3F0h, as on an
//! AT; what is between sectors; FM.
//!
//! Locks: the controller's before the DMA controller's and the drives'. Ends of requests are told on the drives'
//! threads.
//!
//! Source: Intel 82077AA data sheet (290166-007).
mod controller;
mod format;
#[cfg(test)]
mod tests;

pub use controller::DRIVES;
pub use format::{DriveKind, Format, SECTOR};

use crate::aml::{Fragment, IrqNoFlags, IsaDmaChannel, Under, crs, hid, io, name};
use crate::bus::{Irq, PortBus, PortIo};
use crate::bytewise;
use crate::chipset::i8237::{DmaRequester, IsaDma};
use crate::device::{Device, Invalid, Reset};
use crate::kind::{Bus, KINDS, Kind, PlugError, Property, Site, Type, Values};
use acpi_tables::aml::{BufferData, Device as AmlDevice, Package};
use controller::{Controller, Media, Place, Places, Stage};
use linkme::distributed_slice;
use mynah_block::{Drive, MediumWatcher, Options};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};

/// The first of the controller's ports; those at offsets 1 to 5 and 7 are there.
pub const PORT: u16 = 0x3f0;
/// Its interrupt.
pub const IRQ: usize = 6;
/// Its DMA channel.
pub const CHANNEL: usize = 2;

#[distributed_slice(KINDS)]
static KIND: Kind = Kind {
    name: "floppy",
    bus: Bus::Floppy,
    about: "a floppy drive",
    properties: &[
        Property { name: "drive", kind: Type::Drive, default: None, help: "what is in it" },
        Property {
            name: "unit",
            kind: Type::Number(0, DRIVES as u64 - 1),
            default: None,
            help: "0 for A, 1 for B (default: the first free one)",
        },
        Property {
            name: "drive-type",
            kind: Type::Text,
            default: None,
            help: "120, 144 or 288 (default: auto, as the medium has it)",
        },
        Property {
            name: "bootindex",
            kind: Type::Number(0, i32::MAX as u64),
            default: None,
            help: "its place in the boot order",
        },
    ],
    plug,
};

fn plug(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let refuse = |why: String| PlugError::Value(why);
    let fdc = site.fdc.ok_or_else(|| refuse("this board has no floppy controller".into()))?;
    let kind = match values.text("drive-type") {
        None | Some("auto") => None,
        Some(name) => {
            let why = || refuse(format!("drive-type={name}: accepted are 120, 144, 288, auto"));
            Some(DriveKind::from_name(name).ok_or_else(why)?)
        }
    };
    let unit = values.number("unit").map(|n| n as usize);
    let unit = unit.or_else(|| fdc.free()).ok_or_else(|| refuse("both floppy drives are there".into()))?;
    let drive = match site.drive(values, "drive")? {
        Some(drive) => drive,
        None => {
            let options = Options { name: format!("floppy{unit}"), ..Options::default() };
            Drive::new(options, None).map_err(|e| refuse(format!("the drive has no thread: {e}")))?
        }
    };
    if !fdc.add(unit, drive, kind) {
        return Err(refuse(format!("unit={unit}: there is another drive")));
    }
    site.boot_path(values, || format!("/pci@i0cf8/isa@1/fdc@{PORT:04x}/floppy@{unit}"))
}

struct Unit {
    drive: Arc<Drive>,
    kind: DriveKind,
}

#[derive(Default)]
struct State {
    controller: Controller,
    units: [Option<Unit>; DRIVES],
    /// A request is under way.
    outstanding: bool,
    /// Which transfer the request is of: ends of others are of no interest.
    serial: u64,
}

impl State {
    fn places(&self) -> Places {
        self.units.each_ref().map(|unit| {
            let Some(unit) = unit else { return Place::default() };
            let media = unit.drive.medium().map(|m| Media {
                format: Format::of(unit.kind, m.size()),
                size: m.size(),
                protected: unit.drive.read_only(),
            });
            Place { drive: true, media }
        })
    }
}

/// The controller.
pub struct Fdc {
    dma: Arc<IsaDma>,
    pin: Irq,
    state: Mutex<State>,
    /// Drives hold them weakly.
    watchers: Mutex<Vec<Arc<dyn MediumWatcher>>>,
    me: Weak<Fdc>,
}

impl Fdc {
    /// A controller without drives, which moves data by `dma`.
    pub fn new(dma: Arc<IsaDma>, pin: Irq) -> Arc<Self> {
        let this = Arc::new_cyclic(|me| Self {
            dma,
            pin,
            state: Mutex::default(),
            watchers: Mutex::default(),
            me: me.clone(),
        });
        let requester: Arc<dyn DmaRequester> = this.clone();
        this.dma.connect(CHANNEL, Arc::downgrade(&requester));
        this
    }

    /// Puts its ports on the bus.
    pub fn attach(self: &Arc<Self>, bus: &PortBus) {
        for (offset, len) in [(1, 5), (7, 1)] {
            bus.map(PORT + offset, len, Arc::new(Ports { fdc: self.clone(), offset }));
        }
    }

    fn free(&self) -> Option<usize> {
        self.state.lock().units.iter().position(Option::is_none)
    }

    /// Plugs a drive in, of this kind or of the one for what is in it; false if there is one.
    pub fn add(&self, n: usize, drive: Arc<Drive>, kind: Option<DriveKind>) -> bool {
        let kind = kind.unwrap_or_else(|| DriveKind::for_image(drive.size()));
        let me: Arc<dyn MediumWatcher> = match self.me.upgrade() {
            Some(me) => Arc::new(Watcher { fdc: Arc::downgrade(&me), unit: n }),
            None => return false,
        };
        let mut state = self.state.lock();
        let Some(place @ None) = state.units.get_mut(n) else { return false };
        drive.watch(Arc::downgrade(&me));
        *place = Some(Unit { drive, kind });
        drop(state);
        self.watchers.lock().push(me);
        true
    }

    /// The kinds of the drives that there are.
    pub fn kinds(&self) -> [Option<DriveKind>; DRIVES] {
        self.state.lock().units.each_ref().map(|u| u.as_ref().map(|u| u.kind))
    }

    /// Has follow what an access, or the end of a request, has changed.
    fn settle(&self, mut state: MutexGuard<'_, State>) {
        loop {
            let s = &mut *state;
            if let Some(request) = s.controller.request() {
                if s.outstanding {
                    break;
                }
                let Some(request) = request else {
                    s.controller.answered(Ok(Vec::new()));
                    continue;
                };
                let n = s.controller.exec.as_ref().map_or(0, |e| usize::from(e.drive));
                let Some(unit) = s.units.get(n).and_then(Option::as_ref) else {
                    s.controller.answered(Err(()));
                    continue;
                };
                s.outstanding = true;
                s.serial += 1;
                let (me, serial) = (self.me.clone(), s.serial);
                unit.drive.submit(request, move |reply| {
                    if let Some(fdc) = me.upgrade() {
                        fdc.answered(serial, reply.map_err(drop));
                    }
                });
                break;
            }
            let Some(exec) = s.controller.exec.as_mut().filter(|e| e.dma && e.stage == Stage::Guest) else {
                break;
            };
            // Before it is tried: who opens the channel meanwhile finds it wanted.
            self.dma.request(CHANNEL, true);
            let pos = exec.pos;
            let moved = match exec.reads() {
                true => self.dma.to_memory(CHANNEL, &exec.buffer[pos..]),
                false => self.dma.from_memory(CHANNEL, &mut exec.buffer[pos..]),
            };
            if moved.bytes == 0 {
                self.pin.set(s.controller.interrupt);
                return;
            }
            s.controller.moved(moved.bytes, moved.terminal);
        }
        self.dma.request(CHANNEL, false);
        self.pin.set(state.controller.interrupt);
    }

    fn answered(&self, serial: u64, reply: Result<Vec<u8>, ()>) {
        let mut state = self.state.lock();
        state.outstanding = false;
        if state.serial == serial {
            state.controller.answered(reply);
        }
        self.settle(state);
    }

    fn read(&self, offset: u16) -> u8 {
        let mut state = self.state.lock();
        match offset {
            1 => state.controller.status_b(),
            2 => state.controller.dor(),
            3 => state.controller.tape(),
            4 => state.controller.main_status(),
            5 => {
                let byte = state.controller.read_data();
                self.settle(state);
                byte
            }
            7 => {
                let places = state.places();
                state.controller.digital_input(&places)
            }
            _ => 0xff,
        }
    }

    fn write(&self, offset: u16, value: u8) {
        let mut state = self.state.lock();
        let before = state.controller.exec.is_some();
        match offset {
            2 => state.controller.write_dor(value),
            3 => state.controller.write_tape(value),
            4 => state.controller.write_dsr(value),
            5 => {
                let places = state.places();
                state.controller.write_data(value, &places);
            }
            7 => state.controller.write_rate(value),
            _ => {}
        }
        if before && state.controller.exec.is_none() {
            // It was reset: the end of what was under way is not heard.
            state.serial += 1;
        }
        self.settle(state);
    }
}

impl DmaRequester for Fdc {
    fn dma_ready(&self) {
        self.settle(self.state.lock());
    }
}

/// Tells the controller of another medium in one of its drives.
struct Watcher {
    fdc: Weak<Fdc>,
    unit: usize,
}

impl MediumWatcher for Watcher {
    fn medium_changed(&self) {
        if let Some(fdc) = self.fdc.upgrade() {
            fdc.state.lock().controller.heads[self.unit].changed = true;
        }
    }
}

/// Ports from an offset on.
struct Ports {
    fdc: Arc<Fdc>,
    offset: u16,
}

impl PortIo for Ports {
    fn name(&self) -> &'static str {
        "floppy"
    }

    fn read(&self, offset: u16, size: u8) -> u32 {
        bytewise::read(offset, size, |port| self.fdc.read(port + self.offset))
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        bytewise::write(offset, size, value, |port, byte| self.fdc.write(port + self.offset, byte));
    }
}

/// What is saved of the controller and its drives.
#[derive(Serialize, Deserialize)]
pub struct FdcV1 {
    controller: Controller,
    drives: [Option<DriveKind>; DRIVES],
    irq: bool,
}

impl Device for Fdc {
    type State = FdcV1;
    const KIND: &'static str = "isa-fdc";

    /// As QEMU's: the controller, and each drive that there is with what BIOSes say of it (ACPI 6.5, 9.9).
    fn aml(&self) -> Option<Fragment> {
        let kinds = self.kinds();
        let (ports, input) = (io(PORT + 2, 4), io(PORT + 7, 1));
        let (irq, channel) = (IrqNoFlags(IRQ as u8), IsaDmaChannel(CHANNEL as u8));
        let mut present = Vec::new();
        // Drives 0 to 3, then that there is no tape.
        for n in 0..4 {
            present.extend(u32::from(kinds.get(n).is_some_and(Option::is_some)).to_le_bytes());
        }
        present.extend(2u32.to_le_bytes());
        let present = BufferData::new(present);
        let mut terms: Vec<Box<dyn acpi_tables::Aml>> = Vec::new();
        for (n, kind) in kinds.into_iter().enumerate() {
            let Some(kind) = kind else { continue };
            let f = Format::of(kind, 0);
            let (tracks, sectors, heads) =
                (u64::from(f.tracks) - 1, u64::from(f.sectors), u64::from(f.heads) - 1);
            let numbers: [u64; 16] = [
                n as u64,
                kind.cmos().into(),
                tracks,
                sectors,
                heads,
                0xaf,
                0x02,
                0x25,
                0x02,
                0x12,
                0x1b,
                0xff,
                0x6c,
                0xf6,
                0x0f,
                0x08,
            ];
            let all: Vec<&dyn acpi_tables::Aml> =
                numbers.iter().map(|n| n as &dyn acpi_tables::Aml).collect();
            let (address, info) = (name("_ADR", &n), name("_FDI", &Package::new(all)));
            let path = if n == 0 { "FLPA" } else { "FLPB" };
            let bytes = crate::aml::encode(&[&AmlDevice::new(path.into(), vec![&address, &info])]);
            terms.push(Box::new(crate::aml::Encoded(bytes)));
        }
        let (id, resources) = (hid("PNP0700"), crs(vec![&ports, &input, &irq, &channel]));
        let enumeration = name("_FDE", &present);
        let mut all: Vec<&dyn acpi_tables::Aml> = vec![&id, &resources, &enumeration];
        all.extend(terms.iter().map(|t| &**t));
        Some(Fragment::device(Under::Isa, "FDC0", all))
    }

    fn reset(&self, _: Reset) {
        let drives: Vec<_> = {
            let mut state = self.state.lock();
            // What ends meanwhile is not heard.
            state.serial += 1;
            state.controller = Controller::default();
            state.units.iter().flatten().map(|u| u.drive.clone()).collect()
        };
        drives.iter().for_each(|d| d.reset());
        self.settle(self.state.lock());
    }

    fn pause(&self) {
        let drives: Vec<_> = self.state.lock().units.iter().flatten().map(|u| u.drive.clone()).collect();
        drives.iter().for_each(|d| d.drain());
    }

    fn resume(&self) {
        let drives: Vec<_> = self.state.lock().units.iter().flatten().map(|u| u.drive.clone()).collect();
        drives.iter().for_each(|d| d.resume());
        // What a restored controller was waiting for is asked again.
        self.settle(self.state.lock());
    }

    fn save(&self) -> FdcV1 {
        let drives = self.kinds();
        FdcV1 { controller: self.state.lock().controller.clone(), drives, irq: self.pin.level() }
    }

    fn restore(&self, saved: FdcV1) -> Result<(), Invalid> {
        if saved.drives != self.kinds() {
            return Err(Invalid("which floppy drives there are"));
        }
        let mut state = self.state.lock();
        saved.controller.check(&state.places())?;
        if saved.irq != saved.controller.interrupt {
            return Err(Invalid("the floppy controller's interrupt"));
        }
        state.controller = saved.controller;
        (state.outstanding, state.serial) = (false, state.serial + 1);
        self.pin.restore(saved.irq);
        Ok(())
    }
}
