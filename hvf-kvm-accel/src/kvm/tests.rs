use super::*;
use mynah_cpu::board::{Board, EV_INTR, EV_KICK};
use mynah_cpu::event::{Event, EventKind};
use mynah_cpu::state::{Activity, F80, Segment, Shadow, cr0, cr4, gpr, seg};
use mynah_cpu::{Accelerator, Exit};
use mynah_mmu::GuestRam;
use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// Ports that are noted, and read as their number. An interrupt is number 20h, once.
#[derive(Default)]
struct Ports(Mutex<Vec<(u16, u8, u32)>>, Mutex<Option<Arc<mynah_cpu::Events>>>);

impl Board for Ports {
    fn port_read(&self, port: u16, _: u8) -> u32 {
        port.into()
    }
    fn port_write(&self, port: u16, size: u8, value: u32) {
        self.0.lock().push((port, size, value));
    }
    fn acknowledge(&self) -> Option<u8> {
        self.1.lock().take().map(|events| {
            events.take(EV_INTR);
            0x20
        })
    }
    fn apic_msr_read(&self, _: u32) -> Result<u64, ()> {
        Ok(0xfee0_0900)
    }
}

struct Machine {
    memory: Arc<PhysMemory>,
    ports: Arc<Ports>,
    cpu: Box<Cpu>,
    vcpu: Vcpu,
}

/// A machine with 1 MiB, if the host has KVM.
fn machine(model: &str) -> Option<Machine> {
    let memory = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
    let host = match Host::open() {
        Ok(host) => host,
        Err(e) => {
            eprintln!("SKIPPED: {e}");
            return None;
        }
    };
    let mut model = CpuModel::parse(model).unwrap();
    let gone: Vec<_> = host.missing(&model).into_iter().map(|(_, f)| f).collect();
    model.without(&gone);
    let vm = Vm::new(host, &memory).unwrap();
    let ports = Arc::new(Ports::default());
    let cpu = Cpu::new(0, memory.clone(), ports.clone(), Arc::default(), Arc::new(model));
    let vcpu = vm.vcpu(&cpu, 0).unwrap();
    Some(Machine { memory, ports, cpu, vcpu })
}

impl Machine {
    /// Real mode at 0:1000h, where these bytes are.
    fn real(&mut self, code: &[u8]) {
        self.memory.write(0x1000, code);
        self.cpu.state.seg[seg::CS] = Segment { attr: 0x9b, ..Segment::real(0, 0) };
        self.cpu.state.gpr[gpr::RIP] = 0x1000;
        self.cpu.sync_all();
    }
}

#[test]
fn a_state_survives_the_trip_through_kvm() {
    let Some(mut m) = machine("max") else { return };
    let mask = m.cpu.model.xcr0_mask();
    let s = &mut m.cpu.state;
    for i in 0..16 {
        s.gpr[i] = 0x1111_2222_3333_4444_u64.wrapping_mul(i as u64 + 1);
        s.xmm[i].set_x(u128::from(s.gpr[i]) << 64 | 7);
        if mask & 4 != 0 {
            s.xmm[i].set_y_high(u128::from(s.gpr[i]) << 3);
        }
    }
    s.set_rflags(0x8d7);
    (s.fpu.top, s.fpu.empty, s.fpu.cw, s.fpu.sw) = (3, 0xf6, 0x27f, 0x0100);
    s.fpu.r[3] = F80 { mant: 1 << 63, exp: 0x3fff };
    s.fpu.r[0] = F80 { mant: 0x8765_4321_0fed_cba9, exp: 0xc123 };
    s.mxcsr = 0x9fc0;
    s.xcr0 = mask.max(1);
    s.dr[0] = 0x1234;
    s.dr[3] = 0xffff_8000_0000_0010;
    s.cr4 = cr4::OSFXSR | cr4::PAE;
    s.cr0 = cr0::ET | cr0::NE | cr0::PE;
    s.cr2 = 0xdead_beef;
    s.cr3 = 0x5000;
    for (i, at) in s.seg.iter_mut().enumerate() {
        *at = Segment { base: 0x1000 * i as u64, limit: 0xf_ffff, attr: 0xc093, sel: 8 * (i as u16 + 1) };
    }
    s.seg[seg::CS].attr = 0xc09b;
    s.gdtr.base = 0x7000;
    s.gdtr.limit = 0x77;
    s.idtr.base = 0x8000;
    let msr = &mut s.msr;
    (msr.star, msr.lstar, msr.kernel_gs_base) =
        (0x0013_0008_0000_0000, 0xffff_ffff_8000_1000, 0xffff_8880_0000_0000);
    (msr.sysenter_cs, msr.sysenter_esp, msr.pat) = (0x10, 0x9000, 0x0007_0106_0007_0106);
    s.nmi_blocked = true;
    for (shadow, pending) in [
        (Shadow::None, None),
        (Shadow::Sti, None),
        (Shadow::MovSs, None),
        (Shadow::Event, Some(Event { vector: 0x31, kind: EventKind::External, error: None })),
        (Shadow::Event, Some(Event { vector: 13, kind: EventKind::Exception, error: Some(0x18) })),
    ] {
        (m.cpu.state.shadow, m.cpu.state.pending) = (shadow, pending);
        m.cpu.sync_all();
        let before = m.cpu.state.with_packed_flags();
        m.vcpu.load(&m.cpu).unwrap();
        m.cpu.state = mynah_cpu::State { msr: before.msr, ..Default::default() };
        m.cpu.state.fpu.fcs = before.fpu.fcs;
        m.vcpu.save(&mut m.cpu).unwrap();
        let mut after = m.cpu.state.with_packed_flags();
        // What is the counter's own.
        after.msr.tsc_offset = before.msr.tsc_offset;
        assert_eq!(after, before, "{shadow:?} {pending:?}");
    }
}

#[test]
fn ports_one_by_one_and_by_strings() {
    let Some(mut m) = machine("qemu64") else { return };
    // mov ax, 21; add ax, ax; out E9h, al; mov dx, 1234h; in eax, dx; out dx, ax; mov si, 1100h; mov cx, 3; rep outsw; hlt
    m.real(&[
        0xb8, 21, 0, 0x01, 0xc0, 0xe6, 0xe9, 0xba, 0x34, 0x12, 0x66, 0xed, 0xef, 0xbe, 0x00, 0x11, 0xb9, 3,
        0, 0xf3, 0x6f, 0xf4,
    ]);
    m.memory.write(0x1100, &[1, 0, 2, 0, 3, 0]);
    assert_eq!(m.vcpu.run(&mut m.cpu), Ok(Exit::Halt));
    assert_eq!(m.cpu.state.gpr[gpr::RIP], 0x1016);
    assert_eq!(m.cpu.state.activity, Activity::Halted);
    let all = m.ports.0.lock().clone();
    assert_eq!(all, [(0xe9, 1, 42), (0x1234, 2, 0x1234), (0x1234, 2, 1), (0x1234, 2, 2), (0x1234, 2, 3)]);
}

#[test]
fn a_kick_ends_an_endless_loop_and_it_goes_on_from_there() {
    let Some(mut m) = machine("qemu64") else { return };
    // inc eax; jmp
    m.real(&[0x66, 0x40, 0xeb, 0xfc]);
    let mut last = 0;
    for _ in 0..20 {
        let events = m.cpu.events.clone();
        let kicker = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(5));
            events.raise(EV_KICK);
        });
        assert_eq!(m.vcpu.run(&mut m.cpu), Ok(Exit::Kick));
        kicker.join().unwrap();
        assert!(m.cpu.state.gpr[0] > last);
        last = m.cpu.state.gpr[0];
        // The interpreter counts on.
        let before = m.cpu.state.gpr[0];
        for _ in 0..4 {
            assert_eq!(m.cpu.step(), None);
        }
        assert_eq!(m.cpu.state.gpr[0], before + 2);
        last = last.max(before + 2);
    }
}

#[test]
fn an_interrupt_comes_into_a_loop_without_exits() {
    let Some(mut m) = machine("qemu64") else { return };
    // Number 20h goes to 1100h: hlt.
    m.memory.write(0x80, &[0x00, 0x11, 0, 0]);
    m.memory.write(0x1100, &[0xf4]);
    // sti; nop; cli; mov cx, 2000; loop itself; jmp to the start
    let code = [0xfb, 0x90, 0xfa, 0xb9, 0xd0, 0x07, 0xe2, 0xfe, 0xeb, 0xf6];
    for _ in 0..5 {
        m.real(&code);
        m.cpu.state.gpr[gpr::RSP] = 0x4000;
        m.cpu.state.set_rflags(2);
        m.cpu.state.activity = Activity::Running;
        let events = m.cpu.events.clone();
        let ports = m.ports.clone();
        let device = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(10));
            *ports.1.lock() = Some(events.clone());
            events.raise(EV_INTR);
            // One that is lost ends the test.
            let began = Instant::now();
            while ports.1.lock().is_some() {
                std::thread::sleep(Duration::from_millis(1));
                if began.elapsed() > Duration::from_secs(30) {
                    return events.raise(EV_KICK);
                }
            }
        });
        assert_eq!(m.vcpu.run(&mut m.cpu), Ok(Exit::Halt));
        device.join().unwrap();
        assert_eq!(m.cpu.state.gpr[gpr::RIP], 0x1101);
        // Where STI's shadow ends.
        let mut from = [0; 2];
        m.memory.read(0x3ffa, &mut from);
        assert_eq!(u16::from_le_bytes(from), 0x1002);
    }
}

/// A device whose writes are posted, and noted among those of ports.
struct Posted(Arc<Ports>);

impl mynah_mmu::Mmio for Posted {
    fn read(&self, _: u64, _: u8) -> u64 {
        0x77
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        self.0.0.lock().push((offset as u16 | 0x8000, size, value as u32));
    }
    fn posts_writes(&self) -> bool {
        true
    }
}

#[test]
fn writes_that_are_collected_come_in_order_and_before_what_follows() {
    let Some(mut m) = machine("qemu64") else { return };
    let id = m.memory.map_mmio(0xa_0000, 0x1_0000, Arc::new(Posted(m.ports.clone())));
    // mov ax, A000h; mov ds, ax; mov cx, 400; again: mov [bx], cx; inc bx; inc bx; loop again; out E9h, al; mov al, [0];
    // mov [5], al; hlt
    let code = [
        0xb8, 0, 0xa0, 0x8e, 0xd8, 0xb9, 0x90, 0x01, 0x89, 0x0f, 0x43, 0x43, 0xe2, 0xfa, 0xe6, 0xe9, 0xa0, 0,
        0, 0xa2, 5, 0, 0xf4,
    ];
    for there in [true, false, true] {
        let other =
            (!there).then(|| m.memory.map_mmio(0xa_0000, 0x1_0000, Arc::new(Unposted(m.ports.clone()))));
        m.real(&code);
        m.cpu.state.gpr[gpr::RBX] = 0;
        m.cpu.state.activity = Activity::Running;
        let base = if there { 0x8000 } else { 0xc000 };
        let before = m.vcpu.exits();
        assert_eq!(m.vcpu.run(&mut m.cpu), Ok(Exit::Halt));
        eprintln!("{} exits for 401 writes", m.vcpu.exits() - before);
        let mut expected: Vec<_> = (0..400).map(|n| (base + 2 * n as u16, 2, 400 - n)).collect();
        expected.push((0xe9, 1, 0));
        expected.push((base + 5, 1, 0x77));
        let all = std::mem::take(&mut *m.ports.0.lock());
        assert_eq!(all, expected);
        other.into_iter().for_each(|id| m.memory.unmap(id));
    }
    m.memory.unmap(id);
}

/// One whose writes are not.
struct Unposted(Arc<Ports>);

impl mynah_mmu::Mmio for Unposted {
    fn read(&self, _: u64, _: u8) -> u64 {
        0x77
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        self.0.0.lock().push((offset as u16 | 0xc000, size, value as u32));
    }
}

/// A device with two doorbells: one for any write, one for a 7.
struct Belled(Arc<Ports>);

impl mynah_mmu::Mmio for Belled {
    fn read(&self, _: u64, _: u8) -> u64 {
        0
    }
    fn write(&self, offset: u64, _: u8, value: u64) {
        self.0.0.lock().push((offset as u16, 0, value as u32));
    }
    fn doorbells(&self) -> Vec<mynah_mmu::Doorbell> {
        let bell = |offset, value| mynah_mmu::Doorbell { offset, value };
        vec![bell(0x100, None), bell(0x104, Some(7))]
    }
}

#[test]
fn a_doorbell_rings_and_has_rung_when_the_vcpu_stands() {
    let Some(mut m) = machine("qemu64") else { return };
    let id = m.memory.map_mmio(0xa_0000, 0x1000, Arc::new(Belled(m.ports.clone())));
    // mov ax, A000h; mov ds, ax; mov [100h], al; hlt
    let any = [0xb8, 0, 0xa0, 0x8e, 0xd8, 0xa2, 0, 1, 0xf4];
    // The same, but: mov dword [104h], N; hlt
    let value = |n| [0xb8, 0, 0xa0, 0x8e, 0xd8, 0x66, 0xc7, 0x06, 4, 1, n, 0, 0, 0, 0xf4];
    for _ in 0..20 {
        for (code, expected) in [(&any[..], (0x100, 0)), (&value(7), (0x104, 7)), (&value(8), (0x104, 8))] {
            m.real(code);
            m.cpu.state.activity = Activity::Running;
            assert_eq!(m.vcpu.run(&mut m.cpu), Ok(Exit::Halt));
            let all = std::mem::take(&mut *m.ports.0.lock());
            assert_eq!(all, [(expected.0, 0, expected.1)]);
        }
    }
    m.memory.unmap(id);
    m.real(&any);
    m.cpu.state.activity = Activity::Running;
    assert_eq!(m.vcpu.run(&mut m.cpu), Ok(Exit::Halt));
    assert_eq!(*m.ports.0.lock(), [], "nobody is there any more");
}

#[test]
fn memory_that_moves_and_roms_are_seen_as_they_are() {
    let Some(mut m) = machine("qemu64") else { return };
    // mov ax, 8000h; mov ds, ax; mov al, [0]; mov byte [0], 9; mov ah, [0]; hlt
    let code = [0xb8, 0, 0x80, 0x8e, 0xd8, 0xa0, 0, 0, 0xc6, 0x06, 0, 0, 9, 0x8a, 0x26, 0, 0, 0xf4];
    m.memory.write(0x8_0000, &[1]);
    for (rom, want, under) in [(false, 0x0901, 9), (true, 0x5555, 9), (false, 0x0909, 9)] {
        let id = rom.then(|| m.memory.map_rom(0x8_0000, &[0x55; 4096]));
        m.real(&code);
        m.cpu.state.activity = Activity::Running;
        assert_eq!(m.vcpu.run(&mut m.cpu), Ok(Exit::Halt));
        assert_eq!(m.cpu.state.gpr[0] & 0xffff, want);
        id.into_iter().for_each(|id| m.memory.unmap(id));
        let mut byte = [0];
        m.memory.read(0x8_0000, &mut byte);
        assert_eq!(byte, [under]);
    }
}

#[test]
fn what_a_guest_writes_to_a_devices_memory_is_told_of() {
    let Some(mut m) = machine("qemu64") else { return };
    let ram = mynah_mmu::DeviceRam::new(64 << 10).unwrap();
    let id = m.memory.map_device_ram(0xa_0000, 64 << 10, &ram, 0);
    // mov ax, A000h; mov ds, ax; mov [2001h], al; hlt
    m.real(&[0xb8, 0, 0xa0, 0x8e, 0xd8, 0xa2, 1, 0x20, 0xf4]);
    m.memory.take_written(&ram);
    assert_eq!(m.vcpu.run(&mut m.cpu), Ok(Exit::Halt));
    assert_eq!(m.memory.take_written(&ram), [0b100]);
    assert_eq!(m.memory.take_written(&ram), [0]);
    m.real(&[0xb8, 0, 0xa0, 0x8e, 0xd8, 0xa2, 1, 0x30, 0xf4]);
    m.cpu.state.activity = Activity::Running;
    assert_eq!(m.vcpu.run(&mut m.cpu), Ok(Exit::Halt));
    m.memory.unmap(id);
    assert_eq!(m.memory.take_written(&ram), [0b1000], "by a slot that is gone");
}

#[test]
fn what_is_not_kvm_is_named() {
    let says = |path: &str| Host::open_at(Path::new(path)).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(says("/nowhere/kvm").contains("/nowhere/kvm does not exist"), "{}", says("/nowhere/kvm"));
    let file = std::env::temp_dir().join(format!("mynah-not-kvm-{}", std::process::id()));
    std::fs::write(&file, b"").unwrap();
    assert!(says(file.to_str().unwrap()).ends_with("is not KVM's device"));
    std::fs::remove_file(&file).unwrap();
    assert!(!says("/dev/null").is_empty());
}

#[test]
fn its_speed_is_measured_in_both_modes() {
    if machine("qemu64").is_none() {
        return;
    }
    let speed = probe::speed().unwrap();
    eprintln!("{speed:?}");
    assert!(speed.kernel_mips > 0.0 && speed.user_mips > 0.0, "{speed:?}");
}

#[test]
fn controllers_of_the_kernels_work_or_what_is_wrong_is_said() {
    let Some(m) = machine("qemu64") else { return };
    drop(m);
    for (option, works) in [("split", selftest::split()), ("on", selftest::on())] {
        match works {
            Ok(()) => eprintln!("kernel-irqchip={option} works"),
            Err(e) => {
                eprintln!("SKIPPED: kernel-irqchip={option}: {e}");
                assert!(e.to_string().contains("be relied on with interrupt controllers ("), "{e}");
            }
        }
    }
}
