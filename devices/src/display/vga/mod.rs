//! VGA: QEMU's standard display adapter, a VGA with the linear modes of the Bochs display interface.
//!
//! ```text
//!   ports 3B4h..3DFh --> regs     sequencer, CRTC, graphics and attribute controllers, DAC; timing: where the beam is
//!   ports 1CEh..1D1h --> vbe      linear modes
//!   A0000h..BFFFFh ----> window   planes, latches, write modes; plain memory in chain-4 modes
//!   BAR 0 -------------> the memory, as RAM
//!   BAR 2 -------------> 000h EDID   400h ports 3C0h..3DFh   500h vbe   600h size, endianness
//!   draw <-------------- somebody who wants to see it (`Display`)
//! ```
//!
//! Memory is a `DeviceRam`: in linear and in chain-4 modes the guest draws at the speed of RAM, and pages that it has
//! written are asked for when somebody looks. There is no thread and no timer. As in QEMU, the ports and the window
//! answer whatever the PCI command register says, so a guest that was started without firmware finds them.
//!
//! Not there: an expansion ROM (`romfile=`; the built-in BIOS needs none), the interrupt at vertical retrace (no PCI
//! adapter's is connected), light pen.
//!
//! Locks: `state`, then the physical address map and the configuration space; `pages` by itself.
//!
//! Sources: IBM PS/2 Video Subsystem Technical Reference; Bochs' VBE display API; QEMU's docs/specs/standard-vga.
use super::surface::{Damage, Rect, Screen, Surface, TextScreen};
use crate::bus::{Mmio, PortBus, PortIo, read_bytes64, write_bytes};
use crate::clock::Clock;
use crate::device::{Device, Invalid, Reset};
use crate::kind::{Bus, KINDS, Kind, PlugError, Property, Site, Type, Values};
use crate::pci::config::reg;
use crate::pci::{BarKind, BarTarget, ConfigSpace, Function, FunctionV1, PciDevice};
use linkme::distributed_slice;
use mynah_mmu::{DeviceRam, PhysMemory};
use parking_lot::Mutex;
use regs::Registers;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};
use vbe::Effect;
use window::Direct;

mod draw;
mod edid;
#[cfg(test)]
mod modes;
mod regs;
mod saved;
#[cfg(test)]
mod tests;
mod timing;
mod vbe;
mod window;

pub use draw::Look;
use saved::Memory;

/// First port and number of ports that answer.
const PORTS: [(u16, u32); 5] = [(0x3b4, 2), (0x3ba, 1), (0x3c0, 16), (0x3d4, 2), (0x3da, 1)];
/// The ports of the Bochs interface: index, data, and data again at an even address.
const VBE_PORTS: u16 = 0x1ce;
/// Parts of BAR 2.
const BAR2_SIZE: u64 = 0x1000;
const BAR2_VGA: u64 = 0x400;
const BAR2_VBE: u64 = 0x500;
const BAR2_EXTENDED: u64 = 0x600;
/// Bytes of the extended registers: the size itself, and the endianness.
const EXTENDED_SIZE: u32 = 8;
const BIG_ENDIAN: u32 = 0xbebe_bebe;
const LITTLE_ENDIAN: u32 = 0x1e1e_1e1e;

/// A look at the memory finds pages of so many looks before, as a vCPU may write for a moment after it was asked.
const AGAIN: u64 = 4;
/// Every so often all is looked at.
const FULLY: u64 = 32;

const MIB: u64 = 1 << 20;

struct State {
    regs: Registers,
    /// What of the memory shows in the window, and its mapping.
    direct: Option<(Direct, u64)>,
}

/// Which pages were written, and in which look at the memory that was found.
struct Pages {
    round: u64,
    found: Vec<u64>,
}

/// The adapter.
pub struct Vga {
    function: Function,
    memory: Arc<PhysMemory>,
    ram: Arc<DeviceRam>,
    clock: Arc<dyn Clock>,
    /// The monitor's, if there is one that says so.
    edid: Option<[u8; edid::LEN]>,
    state: Mutex<State>,
    pages: Mutex<Pages>,
    me: Weak<Vga>,
}

#[distributed_slice(KINDS)]
static KIND: Kind = Kind {
    name: "VGA",
    bus: Bus::Pci,
    about: "display adapter: VGA with the linear modes of Bochs and QEMU",
    properties: &[
        Property {
            name: "vgamem_mb",
            kind: Type::Number(1, 256),
            default: Some(16),
            help: "MiB of its memory, rounded up to a power of two",
        },
        Property {
            name: "xres",
            kind: Type::Number(8, edid::MOST as u64),
            default: Some(1280),
            help: "the width that the monitor prefers",
        },
        Property {
            name: "yres",
            kind: Type::Number(8, edid::MOST as u64),
            default: Some(800),
            help: "the height that the monitor prefers",
        },
        Property { name: "edid", kind: Type::Switch, default: Some(1), help: "the monitor says what it is" },
    ],
    plug,
};

fn plug(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    if site.ports.ranges().iter().any(|(first, last, _)| (*first..=*last).contains(&0x3c0)) {
        return Err(PlugError::Value("there is a VGA already, and its ports are always the same".into()));
    }
    let number = |name: &str, usual: u64| values.number(name).unwrap_or(usual);
    let size = (number("vgamem_mb", 16) * MIB).next_power_of_two();
    let ram = DeviceRam::new(size).map_err(|e| PlugError::Value(format!("vgamem_mb: {e}")))?;
    let edid = (!values.values.contains_key("edid") || values.switch("edid"))
        .then(|| edid::block(number("xres", 1280) as u32, number("yres", 800) as u32));
    let memory = site.pci.ok_or(PlugError::NoPci)?.memory();
    let vga = site.plug_pci(values, config(size), |function| {
        Vga::new(function, memory.clone(), ram, site.clock.clone(), edid)
    })?;
    vga.attach(site.ports);
    Ok(())
}

fn config(size: u64) -> ConfigSpace {
    let mut c = ConfigSpace::new(0x1234, 0x1111, 0x03_0000, 2);
    c.set16(reg::SUBSYSTEM_VENDOR_ID, 0x1af4);
    c.set16(reg::SUBSYSTEM_ID, 0x1100);
    c.add_bar(0, BarKind::Memory32 { prefetchable: true }, size);
    c.add_bar(2, BarKind::Memory32 { prefetchable: false }, BAR2_SIZE);
    c
}

impl Vga {
    /// An adapter on this function, which `config` is of, whose window is in `memory`.
    fn new(
        function: Function,
        memory: Arc<PhysMemory>,
        ram: Arc<DeviceRam>,
        clock: Arc<dyn Clock>,
        edid: Option<[u8; edid::LEN]>,
    ) -> Arc<Self> {
        let found = vec![0; (ram.size() / mynah_mmu::PAGE_SIZE) as usize];
        let vga = Arc::new_cyclic(|me| Self {
            function,
            memory,
            ram,
            clock,
            edid,
            state: Mutex::new(State { regs: Registers::default(), direct: None }),
            pages: Mutex::new(Pages { round: AGAIN, found }),
            me: me.clone(),
        });
        vga.memory.map_mmio(window::BASE, window::LEN, Arc::new(Window(vga.clone())));
        vga
    }

    /// Puts the ports on the bus.
    fn attach(self: &Arc<Self>, ports: &PortBus) {
        for (base, count) in PORTS {
            ports.map(base, count, Arc::new(Ports { vga: self.clone(), base }));
        }
        ports.map(VBE_PORTS, 4, Arc::new(VbePorts(self.clone())));
    }

    fn port_read(&self, port: u16) -> u8 {
        let mut state = self.state.lock();
        state.regs.read(port, |regs| regs.beam(self.clock.now()))
    }

    fn port_write(&self, port: u16, value: u8) {
        let mut state = self.state.lock();
        state.regs.write(port, value);
        self.show_window(&mut state);
    }

    fn vbe_read(&self, index: u16) -> u16 {
        let mut state = self.state.lock();
        state.regs.vbe.index = index;
        state.regs.vbe.read(self.ram.size())
    }

    fn vbe_write(&self, index: u16, value: u16) {
        let mut state = self.state.lock();
        let regs = &mut state.regs;
        regs.vbe.index = index;
        let effect = regs.vbe.write(value, self.ram.size());
        match effect {
            Effect::None => return,
            Effect::Begins(true) => {
                let shown = u64::from(regs.vbe.get(vbe::YRES)) * regs.vbe.pitch();
                self.ram.clear(0, shown);
            }
            Effect::Begins(false) | Effect::Changed | Effect::Ends => {}
        }
        regs.follow_vbe();
        self.show_window(&mut state);
    }

    /// Maps what the window shows directly.
    fn show_window(&self, state: &mut State) {
        let wanted = state.regs.direct();
        if state.direct.map(|(d, _)| d) == wanted {
            return;
        }
        let before = state.direct.take();
        state.direct =
            wanted.map(|d| (d, self.memory.map_device_ram(window::BASE + d.at, d.len, &self.ram, d.memory)));
        // The new mapping lies over the old one already.
        if let Some((_, id)) = before {
            self.memory.unmap(id);
        }
    }

    fn look(&self) -> Look {
        let state = self.state.lock();
        Look::of(&state.regs, self.clock.now(), self.ram.size())
    }

    /// Notes which pages were written since the last call; the number of this one.
    fn look_at_memory(&self, pages: &mut Pages) -> u64 {
        pages.round += 1;
        let round = pages.round;
        for (n, mut word) in self.memory.take_written(&self.ram).into_iter().enumerate() {
            while word != 0 {
                if let Some(found) = pages.found.get_mut(64 * n + word.trailing_zeros() as usize) {
                    *found = round;
                }
                word &= word - 1;
            }
        }
        round
    }

    fn bar2_read(&self, offset: u64, size: u8) -> u64 {
        match offset {
            ..BAR2_VGA => {
                let edid = self.edid.as_ref();
                let byte =
                    |i: u16| edid.and_then(|e| e.get(offset as usize + usize::from(i)).copied()).unwrap_or(0);
                read_bytes64(size, byte)
            }
            BAR2_VGA..0x420 => read_bytes64(size, |i| self.port_read(0x3c0 + (offset - BAR2_VGA) as u16 + i)),
            BAR2_VBE..0x516 if offset & 1 == 0 => {
                let index = ((offset - BAR2_VBE) / 2) as u16;
                let low = u64::from(self.vbe_read(index));
                match size {
                    1 => low & 0xff,
                    2 => low,
                    _ => low | u64::from(self.vbe_read(index + 1)) << 16,
                }
            }
            BAR2_EXTENDED if size == 4 => EXTENDED_SIZE.into(),
            0x604 if size == 4 => match self.state.lock().regs.big_endian {
                true => BIG_ENDIAN.into(),
                false => LITTLE_ENDIAN.into(),
            },
            _ => u64::MAX,
        }
    }

    fn bar2_write(&self, offset: u64, size: u8, value: u64) {
        match offset {
            BAR2_VGA..0x420 => {
                write_bytes(size, value as u32, |i, b| {
                    self.port_write(0x3c0 + (offset - BAR2_VGA) as u16 + i, b)
                });
            }
            BAR2_VBE..0x516 if offset & 1 == 0 && size >= 2 => {
                let index = ((offset - BAR2_VBE) / 2) as u16;
                self.vbe_write(index, value as u16);
                if size >= 4 {
                    self.vbe_write(index + 1, (value >> 16) as u16);
                }
            }
            0x604 if size == 4 => match value as u32 {
                BIG_ENDIAN => self.state.lock().regs.big_endian = true,
                LITTLE_ENDIAN => self.state.lock().regs.big_endian = false,
                _ => {}
            },
            _ => {}
        }
    }
}

/// A range of the VGA's ports.
struct Ports {
    vga: Arc<Vga>,
    base: u16,
}

impl PortIo for Ports {
    fn read(&self, offset: u16, size: u8) -> u32 {
        crate::bytewise::read(self.base + offset, size, |port| self.vga.port_read(port))
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        crate::bytewise::write(self.base + offset, size, value, |port, byte| self.vga.port_write(port, byte));
    }
}

/// The Bochs interface's ports: 16 bits each, at any of these addresses.
struct VbePorts(Arc<Vga>);

impl PortIo for VbePorts {
    fn read(&self, offset: u16, size: u8) -> u32 {
        let index = self.0.state.lock().regs.vbe.index;
        match (offset, size) {
            (0, 2) => index.into(),
            (1 | 2, 2) => self.0.vbe_read(index).into(),
            _ => u32::MAX,
        }
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        match (offset, size) {
            (0, 2) => self.0.state.lock().regs.vbe.index = value as u16,
            (1 | 2, 2) => {
                let index = self.0.state.lock().regs.vbe.index;
                self.0.vbe_write(index, value as u16);
            }
            _ => {}
        }
    }
}

/// A0000h to BFFFFh, where it is not plain memory.
struct Window(Arc<Vga>);

impl Mmio for Window {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let mut state = self.0.state.lock();
        read_bytes64(size, |i| state.regs.read_window(&self.0.ram, offset + u64::from(i)))
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let mut state = self.0.state.lock();
        for (i, byte) in (0..size.min(8)).zip(value.to_le_bytes()) {
            state.regs.write_window(&self.0.ram, offset + u64::from(i), byte);
        }
    }

    fn posts_writes(&self) -> bool {
        true
    }
}

/// BAR 2.
struct Bar2(Arc<Vga>);

impl Mmio for Bar2 {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.0.bar2_read(offset, size)
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        self.0.bar2_write(offset, size, value);
    }
}

impl PciDevice for Vga {
    fn config(&self) -> &Mutex<ConfigSpace> {
        self.function.config()
    }

    fn function(&self) -> Option<&Function> {
        Some(&self.function)
    }

    fn bar(&self, index: usize) -> BarTarget {
        match (index, self.me.upgrade()) {
            (0, _) => BarTarget::Ram(self.ram.clone()),
            (_, Some(me)) => BarTarget::Memory(Arc::new(Bar2(me))),
            _ => BarTarget::Own,
        }
    }
}

impl super::Display for Vga {
    fn refresh(&self, screen: &mut Screen) -> Vec<Rect> {
        let mut pages = self.pages.lock();
        let round = self.look_at_memory(&mut pages);
        let look = self.look();
        let (width, height) = look.size();
        let since = screen.round;
        screen.round = round;
        screen.looks = screen.looks.wrapping_add(1);
        let fully = screen.drawn.as_ref() != Some(&look) || screen.looks.is_multiple_of(FULLY);
        let resized = (screen.surface.width(), screen.surface.height()) != (width, height);
        if resized {
            screen.surface = Surface::new(width, height);
        }
        let written = |first: u64, len: u64| {
            let page = |at: u64| ((at / mynah_mmu::PAGE_SIZE) as usize).min(pages.found.len());
            let pages = &pages.found[page(first)..page(first + len + mynah_mmu::PAGE_SIZE - 1)];
            len > 0 && pages.iter().any(|found| found + AGAIN > since)
        };
        let mut damage = Damage::default();
        let mut line = vec![0; width];
        let mut last = None;
        for y in 0..height {
            let (first, len) = look.memory_of(y);
            let draws = fully
                || match last {
                    Some((memory, known)) if memory == (first, len) => known,
                    _ => written(first, len),
                };
            last = Some(((first, len), draws));
            if draws {
                look.draw(&self.ram, y, &mut line);
                if let Some(columns) = screen.put(y, &line) {
                    damage.add(y, columns);
                }
            }
        }
        screen.drawn = Some(look);
        if resized { vec![Rect { x: 0, y: 0, width, height }] } else { damage.take() }
    }

    fn size(&self) -> (usize, usize) {
        self.look().size()
    }

    fn text(&self) -> Option<TextScreen> {
        self.look().text(&self.ram)
    }
}

/// What is saved of the adapter. Pages that were written are not: whoever shows the screen draws all of it anew.
#[derive(Serialize, Deserialize)]
pub struct VgaV1 {
    function: FunctionV1,
    regs: Registers,
    memory: Memory,
}

impl Device for Vga {
    type State = VgaV1;
    const KIND: &'static str = "VGA";

    fn display(&self) -> Option<&dyn super::Display> {
        Some(self)
    }

    fn reset(&self, _: Reset) {
        self.function.reset();
        let mut state = self.state.lock();
        state.regs = Registers::default();
        self.show_window(&mut state);
        self.ram.clear(0, self.ram.size());
    }

    fn save(&self) -> VgaV1 {
        let state = self.state.lock();
        VgaV1 { function: self.function.save(), regs: state.regs.clone(), memory: Memory::save(&self.ram) }
    }

    fn restore(&self, saved: VgaV1) -> Result<(), Invalid> {
        if !saved.regs.is_valid(self.ram.size()) {
            return Err(Invalid("a register"));
        }
        let mut state = self.state.lock();
        self.function.restore(saved.function)?;
        saved.memory.restore(&self.ram)?;
        state.regs = saved.regs;
        self.show_window(&mut state);
        Ok(())
    }
}
