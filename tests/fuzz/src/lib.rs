//! What the fuzz targets do with their bytes. Each must neither panic nor hang, whatever they are.
//!
//! `cargo install cargo-fuzz`, then `cargo fuzz run -O -s none --fuzz-dir tests/fuzz cpu -- -max_total_time=60` (and
//! `loaders`, `ports`, `engines`, `cache`) from the project's root. `-s none` is for the stable compiler; `-O` leaves
//! it to the profile what asserts.
use mynah::config::Config;
use mynah::machine::board::{Board, Firmware};
use mynah::machine::power::Power;
use mynah::machine::vcpu::VcpuHandle;
use mynah_cpu::state::{Segment, cr0, cr4, efer, gpr, seg};
use mynah_cpu::{Cpu, CpuModel};
use mynah_firmware::{LoadRequest, Module, SparseMemory, build_tables, load};
use mynah_mmu::{GuestRam, PhysMemory};
use std::cell::RefCell;
use std::sync::{Arc, mpsc};

// The same guests as the translator's own tests.
#[path = "../../../jit/tests/common/mod.rs"]
mod common;
#[path = "../../../jit/tests/common/guests.rs"]
mod guests;

/// A thread with a small stack that does the same with one input after the other: what recurses as a guest pleases is
/// found by overflowing it.
struct SmallStack {
    input: mpsc::Sender<Vec<u8>>,
    done: mpsc::Receiver<()>,
}

/// A 32nd of what a vCPU's thread has.
const STACK: usize = 256 << 10;
/// With the compiler on the same thread.
const STACK_WITH_COMPILER: usize = 512 << 10;

impl SmallStack {
    fn new(size: usize, f: fn(&[u8])) -> Self {
        let (input, inputs) = mpsc::channel::<Vec<u8>>();
        let (tell, done) = mpsc::channel();
        let work = move || {
            for data in inputs {
                f(&data);
                if tell.send(()).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().stack_size(size).spawn(work).expect("a thread");
        Self { input, done }
    }

    fn run(&self, data: &[u8]) {
        self.input.send(data.to_vec()).expect("the thread is there");
        self.done.recv().expect("the thread is there");
    }
}

/// A guest run by both engines, which must end alike.
pub fn engines(data: &[u8]) {
    thread_local!(static THREAD: SmallStack = SmallStack::new(STACK_WITH_COMPILER, |data| {
        guests::compare(data);
    }));
    THREAD.with(|t| t.run(data));
}

// Files of compiled code, changed and then used.
#[path = "../../../jit/tests/common/spoiled.rs"]
mod spoiled;

/// A file of compiled code, changed: a guest that is run with it must end as ever.
pub fn cache(data: &[u8]) {
    spoiled::run(data);
}

/// A board whose ports and local APIC read as their own addresses.
struct Echo;

impl mynah_cpu::Board for Echo {
    fn port_read(&self, port: u16, _: u8) -> u32 {
        u32::from(port)
    }
    fn apic_page(&self) -> Option<u64> {
        Some(0xfee0_0000)
    }
    fn apic_read(&self, offset: u32, _: u8) -> u64 {
        u64::from(offset)
    }
}

const RAM: u64 = 1 << 20;
/// Instructions that a guest may run.
const STEPS: usize = 400;

/// Takes bytes from the front.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&b, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        b
    }
    fn word(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }
}

thread_local! {
    static CPU: RefCell<Box<Cpu>> = RefCell::new({
        let mem = PhysMemory::new(GuestRam::new(RAM).unwrap(), RAM);
        Cpu::new(0, mem, Arc::new(Echo), Arc::default(), Arc::new(CpuModel::parse("max").unwrap()))
    });
}

/// Decodes and interprets bytes as a guest, in a mode that the first byte chooses, with registers from the next.
pub fn cpu(data: &[u8]) {
    thread_local!(static THREAD: SmallStack = SmallStack::new(STACK, |data| CPU.with_borrow_mut(|cpu| guest(cpu, data))));
    THREAD.with(|t| t.run(data));
}

fn guest(cpu: &mut Cpu, data: &[u8]) {
    let mut input = Input(data);
    let mode = input.byte();
    // Old code and data must not leak from one run into the next.
    let zero = [0u8; 4096];
    for page in 0..RAM / 4096 {
        if cpu.mem.is_code(page * 4096) || cpu.mem.is_dirty(page * 4096) {
            cpu.invalidate_code(page * 4096, 4096);
            cpu.mem.write(page * 4096, &zero);
            cpu.mem.take_dirty(page * 4096);
        }
    }
    cpu.reset();
    let s = &mut cpu.state;
    for r in &mut s.gpr[..16] {
        *r = 0x8000 + u64::from(input_word_small(&mut input));
    }
    s.set_rflags(2 | input.word() & 0x2_4fd5);
    let attr = if mode & 1 != 0 { 0xc000 } else { 0 };
    for i in 0..6 {
        s.seg[i] =
            Segment { base: 0, limit: !0, attr: attr | if i == seg::CS { 0x9b } else { 0x93 }, sel: 8 };
    }
    match mode >> 1 & 3 {
        0 => s.rflags &= !(1 << 17),
        1 => {
            s.cr0 |= cr0::PE;
            s.rflags &= !(1 << 17);
        }
        _ => {
            // 64-bit mode with one page of identity-mapped 2 MiB pages at 80000h.
            s.rflags &= !(1 << 17);
            s.cr0 |= cr0::PE | cr0::PG | cr0::WP | cr0::NE;
            s.cr4 |= cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::PGE | cr4::FSGSBASE;
            s.msr.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
            s.seg[seg::CS].attr = 0xa09b;
            s.cr3 = 0x8_0000;
            cpu.mem.write_u64(0x8_0000, 0x8_1007);
            cpu.mem.write_u64(0x8_1000, 0x8_2007);
            cpu.mem.write_u64(0x8_2000, 0x87);
        }
    }
    let s = &mut cpu.state;
    if mode & 8 != 0 {
        s.cr0 |= cr0::NE;
        s.cr4 |= cr4::OSFXSR;
    }
    s.idtr.limit = if mode & 16 != 0 { 0 } else { 0xffff };
    s.idtr.base = 0x4000;
    s.gdtr.base = 0x5000;
    s.gpr[gpr::RIP] = 0x1000;
    let code = input.0;
    let code = &code[..code.len().min(0x8000)];
    cpu.mem.write(0x1000, code);
    cpu.sync_all();
    for _ in 0..STEPS {
        if cpu.step().is_some() {
            break;
        }
    }
}

fn input_word_small(input: &mut Input<'_>) -> u32 {
    u32::from(input.byte()) << 4
}

/// Loads bytes as a kernel by whatever protocol they claim.
pub fn loaders(data: &[u8]) {
    let mem = SparseMemory::new(64 << 20, 0);
    let Ok(tables) = build_tables(&mem, &mynah_firmware::Config::default()) else { return };
    let half = data.len() / 2;
    let mut request = LoadRequest::new("fuzz", data);
    request.cmdline = "console=ttyS0";
    let _ = load(&mem, &tables, &request);
    // The second half as the initrd, or as a module.
    request.kernel = &data[..half];
    request.initrd = Some(&data[half..]);
    request.cpu_is_64bit = false;
    let _ = load(&mem, &tables, &request);
    let modules = [Module { command: "module", data: &data[half..] }];
    request.initrd = None;
    request.modules = &modules;
    let _ = load(&mem, &tables, &request);
}

thread_local! {
    static BOARD: Board = {
        let memory = PhysMemory::new(GuestRam::new(2 << 20).unwrap(), 2 << 20);
        let config = Config::default();
        let power = Arc::new(Power::new(config.on_reboot, config.on_shutdown, config.on_panic, false));
        let firmware = Firmware::Image(Arc::new(vec![0xf4; 128 << 10]));
        Board::new(&config, memory, firmware, &power, &[VcpuHandle::default()]).unwrap()
    };
}

/// Reads and writes I/O ports, MMIO registers and the local APIC of a whole board: 8 bytes an access.
pub fn ports(data: &[u8]) {
    BOARD.with(|board| {
        let view = board.view(0);
        use mynah_cpu::Board as _;
        for c in data.chunks_exact(8) {
            let size = [1u8, 2, 4, 4][usize::from(c[0] & 3)];
            let value = u32::from_le_bytes([c[4], c[5], c[6], c[7]]);
            let at = u16::from_le_bytes([c[2], c[3]]);
            match c[0] >> 2 & 7 {
                0 => view.port_write(at, size, value),
                1 => {
                    view.port_read(at, size);
                }
                2 => board.memory.phys_write(0xfec0_0000 + u64::from(at & 0xfff), size, value.into()),
                3 => board.memory.phys_write(0xfed0_0000 + u64::from(at & 0x3ff), size, value.into()),
                4 => view.apic_write(u32::from(at & 0xfff), size, value.into()),
                5 => {
                    let _ =
                        view.apic_msr_write(0x800 + u32::from(at & 0xff), u64::from(value) << (c[1] & 31));
                    let _ = view.apic_msr_read(0x800 + u32::from(at & 0xff));
                }
                6 => {
                    board.memory.phys_read(0xfec0_0000 + u64::from(at), size);
                    board.memory.phys_read(0xfed0_0000 + u64::from(at & 0x3ff), size);
                    view.apic_read(u32::from(at & 0xfff), size);
                }
                _ => {
                    // The ports that a PC has, more often than the rest.
                    const BUSY: [u16; 16] = [
                        0x20, 0xa0, 0x40, 0x43, 0x60, 0x64, 0x70, 0x71, 0x92, 0xcf8, 0xcfc, 0x600, 0xb2,
                        0x4d0, 0x3f8, 0x604,
                    ];
                    let port = BUSY[usize::from(c[2] & 15)] + u16::from(c[3] & 3);
                    view.port_write(port, size, value);
                    view.port_read(port, size);
                }
            }
            let _ = view.acknowledge();
        }
    });
}
