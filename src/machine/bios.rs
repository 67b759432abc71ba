//! The built-in BIOS on this machine: from a write to its port, with the vCPU's registers, to a service and back.
//!
//! The stub's OUT ends the vCPU's run (as a kick); what was asked is then done on the vCPU's thread, between two of its
//! instructions. Real and virtual-8086 mode call, and protected mode PCI BIOS and APM; a write to the port from
//! anywhere else does nothing.
use super::board::{Board, Firmware};
use mynah_cpu::board::{EV_INTR, EV_KICK, EV_TIER};
use mynah_cpu::state::{Segment, State, cr0, gpr, seg};
use mynah_cpu::{Cpu, Events};
use mynah_devices::bus::PortBus;
use mynah_devices::clock::{Clock, HostClock};
use mynah_devices::device::{Device, Invalid, Reset};
use mynah_firmware::bios::{Bios, BiosV1, CF, Caller, DescriptorsAt, Platform, Regs};
use mynah_mmu::{Access, Mode, PAGE_MASK, PhysMemory};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One vCPU's calls of the BIOS.
pub struct BiosCalls {
    bios: Arc<Mutex<Bios>>,
    requested: AtomicBool,
    events: Arc<Events>,
    ports: Arc<PortBus>,
    clock: Arc<HostClock>,
}

impl BiosCalls {
    /// The calls of the vCPU that `events` are signals to.
    pub fn new(
        bios: Arc<Mutex<Bios>>,
        events: Arc<Events>,
        ports: Arc<PortBus>,
        clock: Arc<HostClock>,
    ) -> Self {
        BiosCalls { bios, requested: AtomicBool::new(false), events, ports, clock }
    }

    /// The vCPU has written to the port: has it come out of its run loop.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Relaxed);
        self.events.raise(EV_KICK);
    }

    /// Does what was asked, if anything was.
    pub fn serve(&self, cpu: &mut Cpu) {
        if !self.requested.swap(false, Ordering::Relaxed) {
            return;
        }
        if cpu.state.is_protected() && !cpu.state.is_v86() {
            self.serve_protected(cpu);
            return;
        }
        let mut regs = registers(cpu);
        let mut bios = self.bios.lock();
        let mut pc = CpuPlatform { cpu, ports: &self.ports, clock: &self.clock };
        if bios.call(&mut regs, &mut pc) {
            set_registers(cpu, &regs);
        }
        if let Some(rest) = bios.rest() {
            drop(bios);
            self.events.wait(cpu.event_mask & !EV_TIER | EV_INTR, Some(rest));
            self.bios.lock().rested(self.clock.now());
        }
    }
}

impl BiosCalls {
    /// PCI BIOS and APM from protected mode: the stub is told by where its OUT is in physical memory.
    fn serve_protected(&self, cpu: &mut Cpu) {
        const BIOS: std::ops::Range<u64> = 0xf_0000..0x10_0000;
        let s = &cpu.state;
        let table = |base: u64, limit: u32| DescriptorsAt { base: base as u32, limit };
        let caller = Caller {
            es: s.seg[seg::ES].base as u32,
            ss: s.seg[seg::SS].base as u32,
            wide_stack: s.seg[seg::SS].attr & Segment::DB != 0,
            gdt: table(s.gdtr.base, s.gdtr.limit.into()),
            ldt: table(s.ldtr.base, if s.ldtr.attr & Segment::UNUSABLE == 0 { s.ldtr.limit } else { 0 }),
        };
        let linear = s.seg[seg::CS].base.wrapping_add(s.gpr[gpr::RIP]) as u32;
        let mut regs = registers(cpu);
        let mut pc = CpuPlatform { cpu, ports: &self.ports, clock: &self.clock };
        let behind = pc.pages(linear, 1, false).first().and_then(|(gpa, _)| *gpa);
        let Some(gpa) = behind.filter(|gpa| BIOS.contains(gpa)) else { return };
        if self.bios.lock().call_protected(&mut regs, (gpa - BIOS.start) as u16, &caller, &mut pc) {
            set_general(&mut cpu.state, &regs);
            let flags = cpu.state.arith_flags() & !u64::from(CF) | u64::from(regs.flags & CF);
            cpu.state.set_arith_flags(flags);
        }
    }
}

/// The BIOS as something to be saved; none under a firmware image.
pub struct BiosDevice(Option<Arc<Mutex<Bios>>>);

impl BiosDevice {
    /// That of the machine's firmware.
    pub fn of(firmware: &Firmware) -> Self {
        match firmware {
            Firmware::BuiltIn(bios) => BiosDevice(Some(bios.clone())),
            Firmware::Image(_) => BiosDevice(None),
        }
    }
}

impl Device for BiosDevice {
    type State = Option<BiosV1>;
    const KIND: &'static str = "mynah-bios";
    const VERSION: u16 = 5;

    /// It is installed anew, with what it finds.
    fn reset(&self, _: Reset) {}

    fn save(&self) -> Option<BiosV1> {
        self.0.as_ref().map(|bios| bios.lock().save())
    }

    fn restore(&self, state: Option<BiosV1>) -> Result<(), Invalid> {
        match (&self.0, state) {
            (Some(bios), Some(state)) => bios.lock().restore(state).map_err(Invalid),
            (None, None) => Ok(()),
            _ => Err(Invalid("which firmware it is (-bios)")),
        }
    }
}

fn registers(cpu: &Cpu) -> Regs {
    let s = &cpu.state;
    let g = |i: usize| s.gpr[i] as u32;
    Regs {
        eax: g(gpr::RAX),
        ebx: g(gpr::RBX),
        ecx: g(gpr::RCX),
        edx: g(gpr::RDX),
        esi: g(gpr::RSI),
        edi: g(gpr::RDI),
        ebp: g(gpr::RBP),
        esp: g(gpr::RSP),
        ip: g(gpr::RIP) as u16,
        cs: s.seg[seg::CS].sel,
        ds: s.seg[seg::DS].sel,
        es: s.seg[seg::ES].sel,
        ss: s.seg[seg::SS].sel,
        flags: 0,
    }
}

fn set_general(s: &mut State, r: &Regs) {
    for (i, v) in [
        (gpr::RAX, r.eax),
        (gpr::RBX, r.ebx),
        (gpr::RCX, r.ecx),
        (gpr::RDX, r.edx),
        (gpr::RSI, r.esi),
        (gpr::RDI, r.edi),
        (gpr::RBP, r.ebp),
    ] {
        s.gpr[i] = v.into();
    }
}

fn set_registers(cpu: &mut Cpu, r: &Regs) {
    set_general(&mut cpu.state, r);
    cpu.state.gpr[gpr::RSP] = r.esp.into();
    cpu.state.gpr[gpr::RIP] = r.ip.into();
    // As a load in these modes does: the base follows the selector, limit and rights stay.
    for (i, selector) in [(seg::CS, r.cs), (seg::DS, r.ds), (seg::ES, r.es), (seg::SS, r.ss)] {
        if cpu.state.seg[i].sel != selector {
            cpu.state.seg[i].sel = selector;
            cpu.state.seg[i].base = u64::from(selector) << 4;
            cpu.sync_segment(i);
        }
    }
    cpu.sync_mode();
}

/// The machine as a service sees it from the vCPU that has called.
struct CpuPlatform<'a> {
    cpu: &'a mut Cpu,
    ports: &'a PortBus,
    clock: &'a HostClock,
}

impl CpuPlatform<'_> {
    /// Physical addresses of `len` bytes at a linear address, page by page; nothing where a page is not mapped.
    fn pages(&mut self, linear: u32, len: usize, write: bool) -> Vec<(Option<u64>, std::ops::Range<usize>)> {
        // A walk that fails is nobody's page fault.
        let (fault, cr2) = (self.cpu.fault, self.cpu.state.cr2);
        let mut parts = Vec::new();
        let mut done = 0;
        while done < len {
            let at = u64::from(linear.wrapping_add(done as u32));
            let n = ((PAGE_MASK + 1 - (at & PAGE_MASK)) as usize).min(len - done);
            let access = Access { write, fetch: false, mode: Mode::Super };
            let gpa = self.cpu.translate(at, access).ok().map(|t| t.gpa);
            parts.push((gpa, done..done + n));
            done += n;
        }
        (self.cpu.fault, self.cpu.state.cr2) = (fault, cr2);
        parts
    }
}

/// The video window, where an adapter's planes answer.
const WINDOW: std::ops::Range<u64> = 0xa_0000..0xc_0000;
/// Bytes that are read of a device's registers at a time, at most.
const REGISTERS: usize = 256;

/// Whether `len` bytes at an address are read and written as a processor does, by accesses that devices see: the video
/// window, and registers behind RAM. All else is copied.
fn by_accesses(memory: &PhysMemory, gpa: u64, len: usize) -> bool {
    WINDOW.contains(&gpa) || len <= REGISTERS && (memory.below_4g()..1 << 32).contains(&gpa)
}

fn read_physical(memory: &PhysMemory, gpa: u64, buf: &mut [u8]) {
    if !by_accesses(memory, gpa, buf.len()) {
        return memory.read(gpa, buf);
    }
    let mut at = gpa;
    let (words, rest) = buf.as_chunks_mut::<8>();
    for word in words {
        *word = memory.read_u64(at).to_le_bytes();
        at += 8;
    }
    for byte in rest {
        *byte = memory.read_u8(at);
        at += 1;
    }
}

/// Tells all vCPUs, the one that calls too, of bytes on code pages.
fn write_physical(memory: &PhysMemory, gpa: u64, buf: &[u8]) {
    if !by_accesses(memory, gpa, buf.len()) {
        return memory.write(gpa, buf);
    }
    let mut at = gpa;
    let (words, rest) = buf.as_chunks::<8>();
    for word in words {
        memory.write_u64(at, u64::from_le_bytes(*word));
        at += 8;
    }
    for byte in rest {
        memory.write_u8(at, *byte);
        at += 1;
    }
}

impl Platform for CpuPlatform<'_> {
    fn read(&mut self, linear: u32, buf: &mut [u8]) {
        for (gpa, range) in self.pages(linear, buf.len(), false) {
            match gpa {
                Some(gpa) => self.read_physical(gpa, &mut buf[range]),
                None => buf[range].fill(0xff),
            }
        }
    }
    fn write(&mut self, linear: u32, buf: &[u8]) {
        for (gpa, range) in self.pages(linear, buf.len(), true) {
            if let Some(gpa) = gpa {
                self.write_physical(gpa, &buf[range]);
            }
        }
    }
    fn read_physical(&mut self, gpa: u64, buf: &mut [u8]) {
        read_physical(&self.cpu.mem, gpa, buf);
    }
    fn write_physical(&mut self, gpa: u64, buf: &[u8]) {
        write_physical(&self.cpu.mem, gpa, buf);
    }
    fn port_in(&mut self, port: u16, size: u8) -> u32 {
        self.ports.read(port, size)
    }
    fn port_out(&mut self, port: u16, size: u8, value: u32) {
        self.ports.write(port, size, value);
    }
    fn now(&mut self) -> u64 {
        self.clock.now()
    }
    fn set_big_real(&mut self, on: bool) {
        if self.cpu.state.cr0 & cr0::PE != 0 {
            return;
        }
        for segment in [seg::DS, seg::ES, seg::FS, seg::GS, seg::SS] {
            self.cpu.state.seg[segment].limit = if on { u32::MAX } else { 0xffff };
            self.cpu.sync_segment(segment);
        }
        self.cpu.sync_mode();
    }
}

/// The machine as the BIOS sees it at power-on, before any vCPU runs.
pub struct BoardPlatform<'a> {
    /// Physical memory.
    pub memory: &'a PhysMemory,
    /// I/O ports.
    pub ports: &'a PortBus,
    /// Guest time.
    pub clock: &'a HostClock,
}

impl<'a> BoardPlatform<'a> {
    /// The machine of `board`.
    pub fn new(board: &'a Board) -> Self {
        BoardPlatform { memory: &board.memory, ports: &board.ports, clock: &board.clock }
    }
}

impl Platform for BoardPlatform<'_> {
    fn read(&mut self, linear: u32, buf: &mut [u8]) {
        read_physical(self.memory, linear.into(), buf);
    }
    fn write(&mut self, linear: u32, buf: &[u8]) {
        write_physical(self.memory, linear.into(), buf);
    }
    fn read_physical(&mut self, gpa: u64, buf: &mut [u8]) {
        read_physical(self.memory, gpa, buf);
    }
    fn write_physical(&mut self, gpa: u64, buf: &[u8]) {
        write_physical(self.memory, gpa, buf);
    }
    fn port_in(&mut self, port: u16, size: u8) -> u32 {
        self.ports.read(port, size)
    }
    fn port_out(&mut self, port: u16, size: u8, value: u32) {
        self.ports.write(port, size, value);
    }
    fn now(&mut self) -> u64 {
        self.clock.now()
    }
}
