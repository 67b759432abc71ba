//! Ticks of a timer that KVM's kernel keeps (`kernel-irqchip=split`): none gets lost as its vCPU comes out.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
use mynah_accel::kvm::{Host, Irqchip, Vm};
use mynah_cpu::board::{Board, EV_KICK};
use mynah_cpu::state::{Segment, gpr, seg};
use mynah_cpu::{Accelerator, Cpu, CpuModel, Exit};
use mynah_mmu::interrupts::ApicKeeper;
use mynah_mmu::{GuestRam, PhysMemory};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A board that has lent its local APIC.
#[derive(Default)]
struct Lender(Mutex<Option<Arc<dyn ApicKeeper>>>);

impl Board for Lender {
    fn lend_apic(&self, keeper: &Arc<dyn ApicKeeper>) -> bool {
        *self.0.lock() = Some(keeper.clone());
        true
    }
    fn apic_msr_read(&self, _: u32) -> Result<u64, ()> {
        Ok(0xfee0_0900)
    }
}

#[test]
fn no_tick_stays_behind_when_a_vcpu_comes_out_around_it() {
    // Registers by number, and the timer's entry: periodic, vector 40h.
    const SVR: usize = 0x0f;
    const IRR: usize = 0x20;
    const TIMER: (usize, u32) = (0x32, 0x2_0040);
    const INITIAL: usize = 0x38;
    const CURRENT: usize = 0x39;
    const DIVIDE: (usize, u32) = (0x3e, 0xb);
    const PERIOD: Duration = Duration::from_millis(2);
    let host = match Host::open() {
        Ok(host) => host,
        Err(e) => return eprintln!("SKIPPED: {e}"),
    };
    if let Some(what) = host.lacks_split() {
        return eprintln!("SKIPPED: KVM lacks {what}");
    }
    let memory = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
    let mut model = CpuModel::parse("qemu64").unwrap();
    let gone: Vec<_> = host.missing(&model).into_iter().map(|(_, f)| f).collect();
    model.without(&gone);
    let vm = Vm::with(host, &memory, Irqchip::Split).unwrap();
    let board = Arc::new(Lender::default());
    let mut cpu = Cpu::new(0, memory.clone(), board.clone(), Arc::default(), Arc::new(model));
    let mut vcpu = vm.vcpu(&cpu, 0).unwrap();
    // jmp itself, with no interrupt let in.
    memory.write(0x1000, &[0xeb, 0xfe]);
    cpu.state.seg[seg::CS] = Segment { attr: 0x9b, ..Segment::real(0, 0) };
    cpu.state.gpr[gpr::RIP] = 0x1000;
    cpu.sync_all();
    let mut run_until = |end: Instant| {
        let events = cpu.events.clone();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while Instant::now() < end {
                    std::hint::spin_loop();
                }
                events.raise(EV_KICK);
            });
            assert_eq!(vcpu.run(&mut cpu), Ok(Exit::Kick));
        });
    };
    // Until it has been lent.
    run_until(Instant::now() + Duration::from_millis(20));
    let keeper = board.0.lock().clone().unwrap();
    let (mut before, mut behind) = (0, 0);
    for n in 0..400 {
        let mut image = keeper.get().unwrap();
        image.page[SVR] = 0x1ff;
        image.page[IRR + 2] = 0;
        for (register, value) in [TIMER, DIVIDE] {
            image.page[register] = value;
        }
        (image.page[INITIAL], image.page[CURRENT]) = (PERIOD.as_nanos() as u32, PERIOD.as_nanos() as u32);
        let earliest = Instant::now();
        keeper.put(&image, true);
        let latest = Instant::now();
        // From 600 microseconds before to 200 behind, as coming out takes some time, too.
        run_until(latest + PERIOD - Duration::from_micros(600) + Duration::from_micros(2 * n));
        // Some come out long before anybody looks.
        if n % 8 == 0 {
            std::thread::sleep(PERIOD + Duration::from_micros(n));
        }
        let at_least = latest.elapsed();
        let image = keeper.get().unwrap();
        let at_most = earliest.elapsed();
        let has_come = image.page[IRR + 2] & 1 != 0;
        // One that is about to come has a count of 0.
        if at_least > PERIOD && image.page[CURRENT] != 0 {
            assert!(has_come, "{n}: {at_least:?} after the start, {} left", image.page[CURRENT]);
            behind += 1;
        } else if at_most < PERIOD {
            assert!(!has_come, "{n}: {at_most:?} after the start, {} left", image.page[CURRENT]);
            before += 1;
        }
    }
    eprintln!("{before} times before the tick, {behind} behind it");
}
