//! The engine on a framework that is none: registers and fields are numbers in a table, and a run is what a test says.
use super::map::GuestMap;
use super::vcpu::{Left, about};
use super::vmcs::{self, Control, control, event, guest, reason, shadow};
use super::*;
use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use mynah_cpu::board::{Board, EV_INTR, EV_KICK};
use mynah_cpu::event::{Event, EventKind};
use mynah_cpu::state::{F80, Segment, Shadow, State, cr0, cr4, efer, fl, gpr, seg};
use mynah_cpu::{Accelerator, Cpu, CpuModel, Events, Exit};
use mynah_mmu::{Gpa, GuestRam, PhysMemory};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

/// What the guest does in a run.
type Run = Box<dyn FnOnce(&mut Table) + Send>;

/// Registers, fields and MSRs.
#[derive(Default)]
struct Table {
    regs: BTreeMap<Reg, u64>,
    fields: BTreeMap<u32, u64>,
    msrs: BTreeMap<u32, u64>,
    area: Option<Box<[u8; xsave::SIZE]>>,
}

impl Table {
    fn exit(&mut self, why: u16) {
        self.fields.insert(vmcs::REASON, why.into());
    }
    fn field(&self, field: u32) -> u64 {
        self.fields.get(&field).copied().unwrap_or(0)
    }
}

#[derive(Default)]
struct Fake {
    table: Table,
    runs: Arc<Mutex<VecDeque<Run>>>,
    /// Controls that the processor has not.
    lacks: u32,
}

struct Nobody;

impl Kicker for Nobody {
    fn kick(&self) {}
}

impl Framework for Fake {
    fn run(&mut self) -> Result<(), HvError> {
        let run = self.runs.lock().pop_front().ok_or(HvError { what: "run on", code: 0xfae9_4001 })?;
        run(&mut self.table);
        Ok(())
    }
    fn reg(&self, reg: Reg) -> Result<u64, HvError> {
        Ok(self.table.regs.get(&reg).copied().unwrap_or(0))
    }
    fn set_reg(&mut self, reg: Reg, value: u64) -> Result<(), HvError> {
        self.table.regs.insert(reg, value);
        Ok(())
    }
    fn field(&self, field: u32) -> Result<u64, HvError> {
        Ok(self.table.field(field))
    }
    fn set_field(&mut self, field: u32, value: u64) -> Result<(), HvError> {
        self.table.fields.insert(field, value);
        Ok(())
    }
    fn msr(&self, index: u32) -> Result<u64, HvError> {
        Ok(self.table.msrs.get(&index).copied().unwrap_or(0))
    }
    fn set_msr(&mut self, index: u32, value: u64) -> Result<(), HvError> {
        self.table.msrs.insert(index, value);
        Ok(())
    }
    fn xsave(&self, area: &mut [u8; xsave::SIZE]) -> Result<(), HvError> {
        *area = self.table.area.as_deref().copied().unwrap_or([0; xsave::SIZE]);
        Ok(())
    }
    fn set_xsave(&mut self, area: &[u8; xsave::SIZE]) -> Result<(), HvError> {
        self.table.area = Some(Box::new(*area));
        Ok(())
    }
    fn forget_translations(&mut self) -> Result<(), HvError> {
        Ok(())
    }
    fn permitted(&self, _: Control) -> Result<u64, HvError> {
        // Nothing has to be, but for a bit that nobody asks for.
        Ok(u64::from(!self.lacks) << 32 | 1 << 1)
    }
    fn kicker(&self) -> Arc<dyn Kicker> {
        Arc::new(Nobody)
    }
}

/// A state with something in all of it.
fn full() -> State {
    let mut s = State::default();
    for i in 0..16 {
        s.gpr[i] = 0x1111_2222_3333_4444_u64.wrapping_mul(i as u64 + 1);
        s.xmm[i].set_x(u128::from(s.gpr[i]) << 64 | 7);
        s.xmm[i].set_y_high(u128::from(s.gpr[i]) << 3);
    }
    s.gpr[gpr::RIP] = 0xffff_8000_0000_1234;
    s.set_rflags(0x8d7);
    (s.fpu.top, s.fpu.empty, s.fpu.cw, s.fpu.sw) = (3, 0xf6, 0x27f, 0x0100);
    s.fpu.r[3] = F80 { mant: 1 << 63, exp: 0x3fff };
    (s.mxcsr, s.xcr0, s.pkru) = (0x9fc0, 7, 0);
    s.dr = [0x1234, 1, 2, 3, 0, 0, 0xffff_0ff1, 0x401];
    (s.cr0, s.cr2, s.cr3, s.cr4) =
        (cr0::PE | cr0::PG | cr0::ET | cr0::CD, 0xdead_beef, 0x5000, cr4::PAE | cr4::OSFXSR);
    for (i, at) in s.seg.iter_mut().enumerate() {
        *at = Segment { base: 0x1000 * i as u64, limit: 0xf_ffff, attr: 0xc093, sel: 8 * (i as u16 + 1) };
    }
    s.seg[seg::CS].attr = 0xa09b;
    // An unusable one.
    s.seg[seg::GS].attr = 0x1_0000;
    s.ldtr = Segment { base: 0x9000, limit: 0x17, attr: 0x82, sel: 0x48 };
    s.tr = Segment { base: 0xa000, limit: 0x67, attr: 0x8b, sel: 0x50 };
    (s.gdtr.base, s.gdtr.limit, s.idtr.base, s.idtr.limit) = (0x7000, 0x77, 0x8000, 0xfff);
    let m = &mut s.msr;
    (m.efer, m.star, m.lstar, m.cstar, m.fmask) = (efer::LMA | efer::LME | efer::SCE, 1, 2, 3, 4);
    (m.kernel_gs_base, m.tsc_aux, m.pat, m.debugctl) = (5, 6, 0x0007_0106_0007_0106, 1);
    (m.sysenter_cs, m.sysenter_esp, m.sysenter_eip) = (0x10, 0x9000, 0x9100);
    s
}

#[test]
fn a_state_survives_the_trip_through_the_vmcs() {
    let external = Event { vector: 0x31, kind: EventKind::External, error: None };
    let fault = Event { vector: 13, kind: EventKind::Exception, error: Some(0x18) };
    for (shadow, pending, nmi_blocked) in [
        (Shadow::None, None, true),
        (Shadow::Sti, None, false),
        (Shadow::MovSs, None, true),
        (Shadow::Event, Some(external), false),
        (Shadow::Event, Some(fault), true),
    ] {
        let mut before = full();
        (before.shadow, before.pending, before.nmi_blocked) = (shadow, pending, nmi_blocked);
        let mut f = Fake::default();
        convert::load(&mut f, &before, 7).unwrap();
        let mut after = State { cpl: before.cpl, ..Default::default() };
        (after.fpu.fcs, after.fpu.fds) = (before.fpu.fcs, before.fpu.fds);
        convert::save(&f, &mut after, 7).unwrap();
        let (before, after) = (before.with_packed_flags(), after.with_packed_flags());
        assert_eq!(format!("{before:?}"), format!("{after:?}"));
        // What the processor insists on, and the guest does not see.
        assert_eq!(f.table.field(guest::CR0), cr0::PE | cr0::PG | cr0::ET | cr0::NE);
        assert_eq!(f.table.field(guest::CR4), before.cr4 | 1 << 13);
        assert_eq!(f.table.field(shadow::CR4), before.cr4);
        assert_eq!(f.table.field(0x4816), 0xa09b, "CS' access rights");
    }
}

#[test]
fn what_was_being_delivered_is_delivered_again() {
    let mut f = Fake::default();
    let mut s = full();
    convert::load(&mut f, &s, 7).unwrap();
    for (info, error, expected) in [
        (0x8000_0030, 0, Some(Event { vector: 0x30, kind: EventKind::External, error: None })),
        (0x8000_0202, 0, Some(Event { vector: 2, kind: EventKind::Nmi, error: None })),
        (0x8000_0b0e, 6, Some(Event { vector: 14, kind: EventKind::Exception, error: Some(6) })),
        // INT n is executed again.
        (0x8000_0480, 0, None),
        (0x30, 0, None),
    ] {
        f.table.fields.extend([(event::VECTORING, info), (event::VECTORING_ERROR, error)]);
        f.table.fields.insert(guest::INTERRUPTIBILITY, vmcs::blocking::NMI);
        convert::save(&f, &mut s, 7).unwrap();
        assert_eq!(s.pending, expected, "{info:#x}");
        assert_eq!(s.nmi_blocked, expected.is_none_or(|e| e.kind != EventKind::Nmi), "{info:#x}");
    }
}

/// Port writes are noted; an interrupt is number 20h, once.
#[derive(Default)]
struct Ports(Mutex<Vec<(u16, u32)>>, Mutex<Option<Arc<Events>>>);

impl Board for Ports {
    fn port_write(&self, port: u16, _: u8, value: u32) {
        self.0.lock().push((port, value));
    }
    fn acknowledge(&self) -> Option<u8> {
        self.1.lock().take().map(|events| {
            events.take(EV_INTR);
            0x20
        })
    }
}

struct Machine {
    cpu: Box<Cpu>,
    vcpu: Vcpu,
    ports: Arc<Ports>,
    runs: Arc<Mutex<VecDeque<Run>>>,
}

/// A machine in real mode at 0:1000h, where these bytes are.
fn machine(code: &[u8], lacks: u32) -> Machine {
    let memory = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
    memory.write(0x1000, code);
    let ports = Arc::new(Ports::default());
    let model = Arc::new(CpuModel::parse("qemu64").unwrap());
    let mut cpu = Cpu::new(0, memory, ports.clone(), Arc::default(), model);
    cpu.state.seg[seg::CS] = Segment { attr: 0x9b, ..Segment::real(0, 0) };
    cpu.state.gpr[gpr::RIP] = 0x1000;
    cpu.sync_all();
    let runs: Arc<Mutex<VecDeque<Run>>> = Arc::default();
    let theirs = runs.clone();
    let make = move || Ok(Box::new(Fake { runs: theirs, lacks, ..Default::default() }) as Box<dyn Framework>);
    let vcpu = Vcpu::new(&cpu, Box::new(make));
    Machine { cpu, vcpu, ports, runs }
}

impl Machine {
    fn next(&self, run: impl FnOnce(&mut Table) + Send + 'static) {
        self.runs.lock().push_back(Box::new(run));
    }
    fn run(&mut self) -> Result<Exit, String> {
        self.vcpu.run(&mut self.cpu).map_err(|e| e.0)
    }
}

#[test]
fn what_exits_the_interpreter_does_and_the_guest_goes_on_behind_it() {
    // mov al, 5; out 80h, al; cpuid; hlt
    let mut m = machine(&[0xb0, 5, 0xe6, 0x80, 0x0f, 0xa2, 0xf4], 0);
    m.cpu.state.gpr[0] = 0;
    m.next(|t| {
        // The processor has executed the first one.
        t.regs.extend([(Reg::Rip, 0x1002), (Reg::Rax, 5)]);
        t.exit(reason::IO);
    });
    m.next(|t| {
        assert_eq!(t.regs[&Reg::Rip], 0x1004);
        t.regs.insert(Reg::Rax, 0);
        t.exit(reason::CPUID);
    });
    m.next(|t| {
        assert_eq!(
            (t.regs[&Reg::Rip], t.regs[&Reg::Rbx]),
            (0x1006, 0x6874_7541),
            "'Auth' of the model's name"
        );
        t.fields.insert(0x440c, 1);
        t.exit(reason::HLT);
    });
    assert_eq!(m.run(), Ok(Exit::Halt));
    assert_eq!(*m.ports.0.lock(), [(0x80, 5)]);
    assert_eq!(m.cpu.state.gpr[gpr::RIP], 0x1007);
    assert_eq!(m.vcpu.exits(), 3);
}

#[test]
fn interrupts_come_in_where_they_may() {
    let mut m = machine(&[0xf4], 0);
    let events = m.cpu.events.clone();
    *m.ports.1.lock() = Some(events.clone());
    events.raise(EV_INTR);
    // Off: the processor is asked to say when they are on.
    m.next(|t| {
        assert_ne!(t.field(Control::Cpu.field()) & u64::from(control::CPU_INTERRUPT_WINDOW), 0);
        assert_eq!(t.field(event::ENTRY), 0);
        t.regs.insert(Reg::Rflags, 0x202);
        t.exit(reason::INTERRUPT_WINDOW);
    });
    m.next(move |t| {
        assert_eq!(t.field(event::ENTRY), 0x8000_0020);
        assert_eq!(t.field(Control::Cpu.field()) & u64::from(control::CPU_INTERRUPT_WINDOW), 0);
        events.nmi();
        t.exit(reason::EXTERNAL_INTERRUPT);
    });
    let events = m.cpu.events.clone();
    m.next(move |t| {
        assert_eq!(t.field(event::ENTRY), 0x8000_0202, "an NMI, whatever IF is");
        events.raise(EV_KICK);
        t.exit(reason::EXTERNAL_INTERRUPT);
    });
    assert_eq!(m.run(), Ok(Exit::Kick));
    assert_eq!(m.cpu.state.pending, None, "what was delivered is not delivered again");
}

#[test]
fn what_goes_wrong_is_told() {
    let mut m = machine(&[0xf4], 0);
    m.next(|t| t.exit(reason::TRIPLE_FAULT));
    assert_eq!(m.run(), Ok(Exit::Shutdown));

    let mut m = machine(&[0xf4], 0);
    m.next(|t| {
        t.fields.insert(vmcs::REASON, vmcs::ENTRY_FAILED | 33);
    });
    let told = m.run().unwrap_err();
    assert!(told.starts_with("-accel hvf: vCPU 0: ") && told.contains("refuses its state"), "{told}");
    // A processor without unrestricted guests.
    let mut m = machine(&[0xf4], control::CPU2_UNRESTRICTED);
    let told = m.run().unwrap_err();
    assert!(told.contains("a control of VMX that is needed (0x80)"), "{told}");
    let entitled = HvError { what: "create a virtual machine", code: 0xfae9_4007 }.to_string();
    assert!(entitled.contains("com.apple.security.hypervisor"), "{entitled}");
    assert_eq!(about(reason::EPT_VIOLATION), Some(Left::Emulate));
    assert_eq!(about(reason::EXCEPTION_OR_NMI), None);
}

/// What is mapped: host address, length and rights.
#[derive(Default)]
struct Mapped(Mutex<BTreeMap<Gpa, (u64, u64, bool)>>);

impl GuestMap for Mapped {
    unsafe fn map(&self, host: u64, gpa: Gpa, len: u64, writable: bool) -> Result<(), HvError> {
        let mut all = self.0.lock();
        let free = all.range(..gpa + len).next_back().is_none_or(|(at, (_, len, _))| at + len <= gpa);
        assert!(free, "{gpa:#x} is mapped");
        all.insert(gpa, (host, len, writable));
        Ok(())
    }
    fn unmap(&self, gpa: Gpa, len: u64) -> Result<(), HvError> {
        assert_eq!(self.0.lock().remove(&gpa).map(|p| p.1), Some(len));
        Ok(())
    }
}

#[test]
fn the_mapping_follows_the_map() {
    struct Nothing;
    impl mynah_mmu::Mmio for Nothing {
        fn read(&self, _: u64, _: u8) -> u64 {
            0
        }
        fn write(&self, _: u64, _: u8, _: u64) {}
    }
    let memory = PhysMemory::new(GuestRam::new(2 << 20).unwrap(), 2 << 20);
    let by = Arc::new(Mapped::default());
    let _map = Map::new(by.clone(), &memory).unwrap();
    let mapped = |gpa: Gpa| {
        let all = by.0.lock();
        let (at, piece) = all.range(..=gpa).next_back()?;
        (gpa < at + piece.1).then_some((piece.0 + (gpa - at), piece.2))
    };
    let first = mapped(0).unwrap();
    assert_eq!(mapped(0x10_1000), Some((first.0 + 0x10_1000, true)));
    memory.map_mmio(0xa_0000, 0x2_0000, Arc::new(Nothing));
    assert_eq!((mapped(0xa_0000), mapped(0xb_ffff)), (None, None));
    assert_eq!(mapped(0xc_0000), Some((first.0 + 0xc_0000, true)));
    memory.map_ram_read_only(0xc_0000, 0x1_0000);
    assert_eq!(mapped(0xc_0000), Some((first.0 + 0xc_0000, false)));
    assert_eq!(mapped(0xd_0000), Some((first.0 + 0xd_0000, true)));
}

/// The framework's virtual machine, with one vCPU that does what a test says.
struct FakeVm {
    mapped: Mapped,
    runs: Arc<Mutex<VecDeque<Run>>>,
}

impl GuestMap for FakeVm {
    unsafe fn map(&self, host: u64, gpa: Gpa, len: u64, writable: bool) -> Result<(), HvError> {
        // SAFETY: the caller's promise; nothing is done with the address.
        unsafe { self.mapped.map(host, gpa, len, writable) }
    }
    fn unmap(&self, gpa: Gpa, len: u64) -> Result<(), HvError> {
        self.mapped.unmap(gpa, len)
    }
}

impl Hypervisor for FakeVm {
    fn vcpu(self: Arc<Self>) -> Result<Box<dyn Framework>, HvError> {
        Ok(Box::new(Fake { runs: self.runs.clone(), ..Default::default() }))
    }
}

#[test]
fn a_machine_has_its_memory_mapped_and_its_vcpus_run() {
    let memory = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
    let runs: Arc<Mutex<VecDeque<Run>>> = Arc::default();
    runs.lock().push_back(Box::new(|t| t.exit(reason::TRIPLE_FAULT)));
    let vm = Arc::new(FakeVm { mapped: Mapped::default(), runs });
    let machine = super::Machine::new(vm.clone(), &memory).unwrap();
    assert!(vm.mapped.0.lock().contains_key(&0), "RAM is not mapped");
    let model = Arc::new(CpuModel::parse("qemu64").unwrap());
    let mut cpu = Cpu::new(0, memory, Arc::new(Ports::default()), Arc::default(), model);
    let mut vcpu = machine.vcpu(&cpu);
    let ended = std::thread::scope(|s| s.spawn(|| vcpu.run(&mut cpu)).join().unwrap());
    assert_eq!(ended, Ok(Exit::Shutdown));
}

#[test]
fn what_the_processor_has_not_the_guest_is_not_promised() {
    let model = CpuModel::parse("qemu64,+avx2,+xsave,+avx,+xsavec,+xsaves").unwrap();
    let all = |leaf: u32, _: u32| if leaf << 1 == 0 { [leaf | 0x20; 4] } else { [u32::MAX; 4] };
    let names = |host: &dyn Fn(u32, u32) -> [u32; 4]| -> Vec<&str> {
        missing(&model, host).into_iter().map(|(name, _)| name).collect()
    };
    // XSAVES the engine does not switch on.
    assert_eq!(names(&all), ["xsaves"]);
    let without_avx2 = |leaf, index| if leaf == 7 { [!0, !(1 << 5), !0, !0] } else { all(leaf, index) };
    assert_eq!(names(&without_avx2), ["avx2", "xsaves"]);
    // Leaves beyond the last are not to be asked for: they have another's answer.
    let old = |leaf: u32, index| if leaf == 0 { [6; 4] } else { all(leaf, index) };
    assert!(names(&old).contains(&"avx2"));
}

/// A processor with a hypervisor, made of the interpreter: it runs a guest from what the framework was told, exits for
/// what its controls say, and knows nothing of the board.
struct Simulated {
    fake: Fake,
    cpu: Box<Cpu>,
    outside: Arc<Outside>,
    kicked: Arc<Kicked>,
    exits: Arc<Mutex<BTreeMap<u16, u32>>>,
}

/// Device memory is not mapped for the processor: whether it executes, and has tried to get there.
#[derive(Default)]
struct Outside {
    executes: AtomicBool,
    tried: AtomicBool,
}

#[derive(Default)]
struct Kicked(AtomicBool);

impl Kicker for Kicked {
    fn kick(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Simulated {
    /// Why the processor does not execute the instruction at RIP, and its length.
    fn intercepts(&self) -> Option<(u16, usize)> {
        let s = &self.cpu.state;
        let mut bytes = [0; 15];
        let at = s.seg[seg::CS].base + s.gpr[gpr::RIP];
        bytes.iter_mut().zip(at..).for_each(|(b, at)| *b = self.cpu.mem.read_u8(at));
        let i = Decoder::with_ip(16, &bytes, s.gpr[gpr::RIP], DecoderOptions::NONE).decode();
        let controls = self.fake.table.field(Control::Cpu.field()) as u32;
        let (control, why) = match i.mnemonic() {
            Mnemonic::Hlt => (control::CPU_HLT, reason::HLT),
            Mnemonic::Cpuid => return Some((reason::CPUID, i.len())),
            Mnemonic::Rdtsc => (control::CPU_RDTSC, reason::RDTSC),
            Mnemonic::In | Mnemonic::Out | Mnemonic::Insb | Mnemonic::Outsb => (control::CPU_IO, reason::IO),
            _ => return None,
        };
        (controls & control != 0).then_some((why, i.len()))
    }

    /// Executes guest code up to an exit.
    fn until_exit(&mut self) -> (u16, usize) {
        let window =
            self.fake.table.field(Control::Cpu.field()) & u64::from(control::CPU_INTERRUPT_WINDOW) != 0;
        loop {
            let s = &self.cpu.state;
            if s.pending.is_none() {
                if self.kicked.0.swap(false, Ordering::SeqCst) {
                    return (reason::EXTERNAL_INTERRUPT, 0);
                }
                if window && s.rflags() & fl::IF != 0 && s.shadow == Shadow::None {
                    return (reason::INTERRUPT_WINDOW, 0);
                }
                if let Some(why) = self.intercepts() {
                    return why;
                }
            }
            let before = self.cpu.state.clone();
            self.outside.executes.store(true, Ordering::Relaxed);
            let ended = self.cpu.step();
            self.outside.executes.store(false, Ordering::Relaxed);
            if self.outside.tried.swap(false, Ordering::Relaxed) {
                // As if it had not begun.
                self.cpu.state = before;
                self.cpu.sync_all();
                return (reason::EPT_VIOLATION, 0);
            }
            if ended == Some(Exit::Shutdown) {
                return (reason::TRIPLE_FAULT, 0);
            }
        }
    }
}

impl Framework for Simulated {
    fn run(&mut self) -> Result<(), HvError> {
        convert::save(&self.fake, &mut self.cpu.state, 7)?;
        self.cpu.drop_code();
        self.cpu.taken_over();
        let (why, len) = self.until_exit();
        *self.exits.lock().entry(why).or_default() += 1;
        let controls = self.fake.table.field(Control::Cpu.field());
        convert::load(&mut self.fake, &self.cpu.state, 7)?;
        self.fake.table.fields.insert(Control::Cpu.field(), controls);
        self.fake.table.fields.insert(0x440c, len as u64);
        self.fake.table.exit(why);
        Ok(())
    }
    fn reg(&self, reg: Reg) -> Result<u64, HvError> {
        self.fake.reg(reg)
    }
    fn set_reg(&mut self, reg: Reg, value: u64) -> Result<(), HvError> {
        self.fake.set_reg(reg, value)
    }
    fn field(&self, field: u32) -> Result<u64, HvError> {
        self.fake.field(field)
    }
    fn set_field(&mut self, field: u32, value: u64) -> Result<(), HvError> {
        self.fake.set_field(field, value)
    }
    fn msr(&self, index: u32) -> Result<u64, HvError> {
        self.fake.msr(index)
    }
    fn set_msr(&mut self, index: u32, value: u64) -> Result<(), HvError> {
        self.fake.set_msr(index, value)
    }
    fn xsave(&self, area: &mut [u8; xsave::SIZE]) -> Result<(), HvError> {
        self.fake.xsave(area)
    }
    fn set_xsave(&mut self, area: &[u8; xsave::SIZE]) -> Result<(), HvError> {
        self.fake.set_xsave(area)
    }
    fn forget_translations(&mut self) -> Result<(), HvError> {
        self.fake.forget_translations()
    }
    fn permitted(&self, control: Control) -> Result<u64, HvError> {
        self.fake.permitted(control)
    }
    fn kicker(&self) -> Arc<dyn Kicker> {
        self.kicked.clone()
    }
}

/// A board whose port 81h asks for as many interrupts as are written to it, of number 20h; what is written to others,
/// and to the device's memory at A0000h, it notes.
#[derive(Default)]
struct Asks {
    events: Mutex<Option<Arc<Events>>>,
    wanted: Mutex<u32>,
    seen: Mutex<Vec<(u32, u32)>>,
}

impl Board for Asks {
    fn port_read(&self, port: u16, _: u8) -> u32 {
        u32::from(port) ^ 0x55
    }
    fn port_write(&self, port: u16, _: u8, value: u32) {
        self.seen.lock().push((port.into(), value));
        if port == 0x81 {
            *self.wanted.lock() += value;
            self.events.lock().as_ref().unwrap().raise(EV_INTR);
        }
    }
    fn acknowledge(&self) -> Option<u8> {
        let mut wanted = self.wanted.lock();
        *wanted = wanted.saturating_sub(1);
        if *wanted == 0 {
            self.events.lock().as_ref().unwrap().take(EV_INTR);
        }
        Some(0x20)
    }
}

struct Noted(Arc<Asks>, Arc<Outside>);

impl Noted {
    /// Nothing is there for who executes the guest's code.
    fn is_outside(&self) -> bool {
        let executes = self.1.executes.load(Ordering::Relaxed);
        self.1.tried.fetch_or(executes, Ordering::Relaxed);
        executes
    }
}

impl mynah_mmu::Mmio for Noted {
    fn read(&self, offset: u64, size: u8) -> u64 {
        if self.is_outside() { 0 } else { offset + u64::from(size) }
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        if !self.is_outside() {
            self.0.seen.lock().push(((offset as u32) << 8 | u32::from(size), value as u32));
        }
    }
}

/// Real mode: ports one by one and by strings, device memory, CPUID, an interrupt that waits for STI and comes behind
/// the instruction after it, some that end HLT, faults, x87 and SSE. It ends with HLT, and interrupts off.
fn guest_code() -> [(u16, Vec<u8>); 3] {
    use iced_x86::code_asm::*;
    const TICKED: u16 = 0x1800;
    const DIVIDED: u16 = 0x1900;
    let at = |at: u16, body: &dyn Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>| {
        let mut a = CodeAssembler::new(16).unwrap();
        body(&mut a).unwrap();
        (at, a.assemble(at.into()).unwrap())
    };
    let ticked = at(TICKED, &|a| {
        a.inc(word_ptr(0x600))?;
        a.out(0x82, al)?;
        a.iret()
    });
    let divided = at(DIVIDED, &|a| {
        // DIV CL has two bytes.
        a.push(bp)?;
        a.mov(bp, sp)?;
        a.add(word_ptr(bp + 2), 2)?;
        a.pop(bp)?;
        a.inc(word_ptr(0x602))?;
        a.iret()
    });
    let code = at(0x1000, &|a| {
        a.mov(word_ptr(4 * 0x20), i32::from(TICKED))?;
        a.mov(word_ptr(4 * 0x20 + 2), 0)?;
        a.mov(word_ptr(0), i32::from(DIVIDED))?;
        a.mov(word_ptr(2), 0)?;
        // It waits with interrupts off.
        a.mov(al, 1)?;
        a.out(0x81, al)?;
        a.mov(cx, 300)?;
        let mut spins = a.create_label();
        a.set_label(&mut spins)?;
        a.loop_(spins)?;
        a.sti()?;
        a.inc(si)?;
        a.inc(si)?;
        a.cli()?;
        for _ in 0..3 {
            a.mov(al, 1)?;
            a.out(0x81, al)?;
            a.sti()?;
            a.hlt()?;
            a.cli()?;
        }
        a.in_(al, 0x71)?;
        a.out(0x80, al)?;
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.mov(dword_ptr(0x610), ebx)?;
        a.mov(si, 0x610)?;
        a.mov(cx, 4)?;
        a.mov(dx, 0x84)?;
        a.cld()?;
        a.rep().outsb()?;
        a.mov(ax, 0xa000)?;
        a.mov(es, ax)?;
        a.add(word_ptr(0x20).es(), 7)?;
        a.xor(cl, cl)?;
        a.div(cl)?;
        a.int(0x20)?;
        a.fninit()?;
        a.fld1()?;
        a.fldpi()?;
        a.faddp(st1, st0)?;
        a.fstp(qword_ptr(0x620))?;
        a.hlt()
    });
    [code, ticked, divided]
}

#[test]
fn a_guest_runs_as_by_the_interpreter() {
    let code = guest_code();
    let exits: Arc<Mutex<BTreeMap<u16, u32>>> = Arc::default();
    let run = |hvf: bool| {
        let memory = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
        code.iter().for_each(|(at, bytes)| memory.write((*at).into(), bytes));
        let (board, outside) = (Arc::new(Asks::default()), Arc::new(Outside::default()));
        memory.map_mmio(0xa_0000, 0x1000, Arc::new(Noted(board.clone(), outside.clone())));
        let model = Arc::new(CpuModel::parse("qemu64").unwrap());
        let mut cpu = Cpu::new(0, memory.clone(), board.clone(), Arc::default(), model.clone());
        *board.events.lock() = Some(cpu.events.clone());
        cpu.state.seg[seg::CS] = Segment { attr: 0x9b, ..Segment::real(0, 0) };
        (cpu.state.gpr[gpr::RIP], cpu.state.gpr[gpr::RSP]) = (0x1000, 0x5000);
        cpu.sync_all();
        let to = exits.clone();
        let mut vcpu = Vcpu::new(
            &cpu,
            Box::new(move || {
                Ok(Box::new(Simulated {
                    fake: Fake::default(),
                    cpu: Cpu::new(0, memory, Arc::new(Ports::default()), Arc::default(), model),
                    outside,
                    kicked: Arc::default(),
                    exits: to,
                }) as Box<dyn Framework>)
            }),
        );
        let exit = if hvf { vcpu.run(&mut cpu).unwrap() } else { cpu.run() };
        assert_eq!((exit, cpu.state.rflags() & fl::IF), (Exit::Halt, 0));
        let low: Vec<u8> = (0x600..0x630).map(|at| cpu.mem.read_u8(at)).collect();
        (cpu.state.with_packed_flags(), low, board.seen.lock().clone())
    };
    let (want, got) = (run(false), run(true));
    assert_eq!(want.2, got.2, "ports and device memory");
    assert_eq!(want.1, got.1, "memory");
    assert_eq!(format!("{:?}", want.0), format!("{:?}", got.0));
    // Four interrupts and INT n; one division by zero.
    assert_eq!(want.1[..4], [5, 0, 1, 0]);
    let exits = exits.lock();
    for (why, times) in [(reason::HLT, 4), (reason::CPUID, 1), (reason::INTERRUPT_WINDOW, 1)] {
        assert!(exits.get(&why).is_some_and(|n| *n >= times), "{why}: {exits:?}");
    }
    assert_eq!(exits.get(&reason::EPT_VIOLATION), Some(&1), "{exits:?}");
}
