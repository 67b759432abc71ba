//! The check of compiled code on a running guest: it is silent where code is right, and names what is wrong where it
//! is not.
mod common;

use common::*;
use iced_x86::code_asm::*;
use mynah_cpu::board::EV_INTR;
use mynah_cpu::state::{Activity, fl, gpr};
use mynah_cpu::tier::{Compiled, Tier};
use mynah_cpu::{Cpu, Exit, Op, code_abi};
use mynah_jit::tier::{Optimize, Translating};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

type Reports = Arc<Mutex<Vec<String>>>;

fn checked(cpu: &mut Cpu) -> Reports {
    let reports = Reports::default();
    let to = reports.clone();
    cpu.check_translator(true, Box::new(move |text| to.lock().unwrap().push(text)));
    reports
}

fn assemble(bits: u32, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).unwrap();
    f(&mut a).unwrap();
    a.assemble(CODE).unwrap()
}

#[test]
fn right_code_is_not_reported_whatever_it_does() {
    for optimize in [Optimize::Baseline, Optimize::None, Optimize::Speed] {
        if optimize == Optimize::Baseline && lacks_baseline() {
            continue;
        }
        let mut cpu = machine(64);
        let tier = Translating::at_once_with(cpu.events.clone(), optimize).unwrap();
        cpu.set_tier(Box::new(tier), 2);
        let reports = checked(&mut cpu);
        // Stores, vectors, helpers, repeated moves, ports, the time, what kernels execute, a fault at the end.
        let code = assemble(64, |a| {
            let (mut top, mut inner, mut enabled) = (a.create_label(), a.create_label(), a.create_label());
            // Flags that are undefined where a block ends.
            let mut after = [(); 6].map(|_| a.create_label());
            a.fninit()?;
            for (n, label) in after.iter_mut().enumerate() {
                a.mov(ecx, n as u32 + 3)?;
                a.mov(eax, 0x8123_4567u32)?;
                match n {
                    0 => a.mul(ecx)?,
                    1 => a.shl(eax, cl)?,
                    2 => a.bsf(edx, eax)?,
                    3 => a.ror(eax, cl)?,
                    4 => a.imul_2(ecx, eax)?,
                    _ => a.shld(eax, ecx, 5)?,
                }
                a.jmp(*label)?;
                a.set_label(label)?;
            }
            a.mov(ebp, 40)?;
            a.set_label(&mut top)?;
            a.mov(rdi, DATA)?;
            a.mov(ecx, 30)?;
            a.set_label(&mut inner)?;
            a.add(dword_ptr(rdi), ecx)?;
            a.push(rcx)?;
            a.movdqu(xmm0, xmmword_ptr(rdi))?;
            a.paddd(xmm0, xmm1)?;
            a.pmaddwd(xmm1, xmm0)?;
            a.cvtsi2sd(xmm2, ecx)?;
            a.divsd(xmm2, xmm3)?;
            a.movdqu(xmmword_ptr(rdi + 32), xmm1)?;
            a.pop(rax)?;
            a.add(rdi, 8)?;
            a.dec(ecx)?;
            a.jne(inner)?;
            a.mov(ecx, 5000)?;
            a.mov(rsi, DATA)?;
            a.mov(rdi, DATA + 100)?;
            a.rep().movsb()?;
            a.in_(al, dx)?;
            a.rdtsc()?;
            a.fld1()?;
            a.fstp(dword_ptr(DATA))?;
            a.cli()?;
            a.pushfq()?;
            a.mov(ecx, 9)?;
            a.rep().stosq()?;
            a.mov(ecx, 9)?;
            a.rep().movsd()?;
            a.cmpxchg16b(xmmword_ptr(DATA + 64))?;
            a.pop(rax)?;
            a.sti()?;
            a.jmp(enabled)?;
            a.set_label(&mut enabled)?;
            a.cli()?;
            a.sti()?;
            a.in_(al, dx)?;
            a.dec(ebp)?;
            a.jne(top)?;
            a.mov(dword_ptr(READ_ONLY), eax)
        });
        cpu.mem.write(CODE, &code);
        assert_eq!(cpu.run(), Exit::Halt);
        assert_eq!(cpu.state.gpr[gpr::RIP], HANDLERS + 4 * 14 + 1, "the page fault");
        assert_eq!(*reports.lock().unwrap(), Vec::<String>::new());
        let done = cpu.checked();
        assert!(done.entries > 50 && done.instructions > 10_000, "{done:?}");
    }
}

/// A tier with one piece of "code" for every block: a function of the test's.
struct Fake(mynah_cpu::tier::Enter);
impl Tier for Fake {
    fn attach(&mut self, _: &mut Cpu) {}
    fn hot(&mut self, cpu: &mut Cpu, phys: u64, key: u32) {
        let code = Compiled { enter: self.0, code: std::ptr::null(), ops: std::ptr::null() };
        // SAFETY: a function lives for ever; what it does wrong is within the vCPU's own state and RAM.
        unsafe { cpu.install(phys, key, &[phys], code) };
    }
    fn ready(&mut self, _: &mut Cpu) {}
}

/// A machine with `inc eax; mov [rdi], eax; hlt`, whose code is `f`.
fn fake(f: mynah_cpu::tier::Enter) -> Box<Cpu> {
    let mut cpu = machine(64);
    cpu.set_tier(Box::new(Fake(f)), 1);
    let code = assemble(64, |a| {
        a.inc(eax)?;
        a.mov(dword_ptr(rdi), eax)?;
        a.hlt()
    });
    cpu.mem.write(CODE, &code);
    cpu.state.gpr[gpr::RDI] = DATA;
    cpu
}

/// Runs that with the first two instructions done by `f`.
fn with_fake(f: mynah_cpu::tier::Enter) -> Vec<String> {
    let mut cpu = fake(f);
    let reports = checked(&mut cpu);
    assert_eq!(cpu.run(), Exit::Halt);
    // The interpreter's result stands.
    assert_eq!(cpu.mem.read_u32(DATA), 1);
    reports.lock().unwrap().clone()
}

/// What the two instructions do, and then something else. Only the first block is "compiled" so; the HLT is left to
/// the interpreter.
fn two(cpu: *mut Cpu, rip: u64, store: Option<u64>, wrong: impl FnOnce(&mut Cpu)) -> u32 {
    // SAFETY: called by `run_code` with its vCPU.
    let cpu = unsafe { &mut *cpu };
    if rip != CODE {
        return 3;
    }
    // The flags of INC are those of an addition of 0 and 1.
    use mynah_cpu::exec::Exec;
    use mynah_cpu::width::W32;
    cpu.state.gpr[gpr::RAX] = 1;
    cpu.flags_inc::<W32>(1);
    if let Some(at) = store {
        cpu.store::<W32>(at, 1, 3).unwrap();
    }
    cpu.state.gpr[gpr::RIP] = rip + 4;
    cpu.icount += 2;
    wrong(cpu);
    3
}

code_abi! {
    fn right(cpu: *mut Cpu, _: *const Op, rip: u64, _: *const u8) -> u32 {
        two(cpu, rip, Some(DATA), |_| ())
    }
}
code_abi! {
    fn register(cpu: *mut Cpu, _: *const Op, rip: u64, _: *const u8) -> u32 {
        two(cpu, rip, Some(DATA), |cpu| cpu.state.gpr[12] ^= 0x40)
    }
}
code_abi! {
    fn flags(cpu: *mut Cpu, _: *const Op, rip: u64, _: *const u8) -> u32 {
        two(cpu, rip, Some(DATA), |cpu| cpu.state.aux ^= 1 << 63)
    }
}
code_abi! {
    fn no_store(cpu: *mut Cpu, _: *const Op, rip: u64, _: *const u8) -> u32 {
        two(cpu, rip, None, |_| ())
    }
}
code_abi! {
    fn other_store(cpu: *mut Cpu, _: *const Op, rip: u64, _: *const u8) -> u32 {
        two(cpu, rip, Some(DATA), |cpu| cpu.store::<mynah_cpu::width::W8>(DATA + 0x3007, 7, 3).unwrap())
    }
}
code_abi! {
    fn early(cpu: *mut Cpu, _: *const Op, rip: u64, _: *const u8) -> u32 {
        two(cpu, rip, Some(DATA), |cpu| cpu.state.gpr[gpr::RIP] -= 2)
    }
}
code_abi! {
    fn vector(cpu: *mut Cpu, _: *const Op, rip: u64, _: *const u8) -> u32 {
        two(cpu, rip, Some(DATA), |cpu| cpu.state.xmm[7].set_x(1))
    }
}

code_abi! {
    /// Once, somebody else writes to memory behind what the code has written.
    fn disturbed(cpu: *mut Cpu, _: *const Op, rip: u64, _: *const u8) -> u32 {
        two(cpu, rip, Some(DATA), |cpu| {
            if cpu.mem.read_u32(DATA + 0x800) == 0 && !DISTURBED.swap(true, Ordering::SeqCst) {
                cpu.mem.write_u32(DATA + 0x800, 0x1234);
            }
        })
    }
}
static DISTURBED: AtomicBool = AtomicBool::new(false);

#[test]
fn a_halted_guest_wakes_up_when_it_has_enabled_interrupts() {
    if lacks_baseline() {
        return;
    }
    let mut cpu = machine(64);
    let tier = Translating::at_once_with(cpu.events.clone(), Optimize::Baseline).unwrap();
    cpu.set_tier(Box::new(tier), 2);
    let reports = checked(&mut cpu);
    let code = assemble(64, |a| {
        a.inc(eax)?;
        a.sti()?;
        a.hlt()
    });
    cpu.mem.write(CODE, &code);
    // Until it is compiled nothing wakes it up.
    for _ in 0..5 {
        assert_eq!(cpu.run(), Exit::Halt);
        assert_eq!(cpu.state.gpr[gpr::RIP], CODE + code.len() as u64);
        cpu.state.activity = Activity::Running;
        cpu.state.gpr[gpr::RIP] = CODE;
        cpu.state.rflags &= !fl::IF;
        cpu.sync_all();
    }
    cpu.events.raise(EV_INTR);
    assert_eq!(cpu.run(), Exit::Halt);
    assert_eq!(cpu.state.gpr[gpr::RIP], HANDLERS + 4 * 0x30 + 1);
    assert_eq!(*reports.lock().unwrap(), Vec::<String>::new());
}

#[test]
fn what_others_write_meanwhile_is_no_difference_and_stays() {
    let mut cpu = fake(disturbed);
    let reports = checked(&mut cpu);
    assert_eq!(cpu.run(), Exit::Halt);
    assert_eq!(*reports.lock().unwrap(), Vec::<String>::new());
    assert!(DISTURBED.load(Ordering::SeqCst));
    assert_eq!(cpu.mem.read_u32(DATA + 0x800), 0x1234, "it is not taken back with what the code has done");
    assert_eq!((cpu.mem.read_u32(DATA), cpu.checked().void), (1, 1));
}

/// Runs `f` with "code" that leaves the flags `wrong` differently; whether that is reported.
fn flags_are_reported(
    wrong: u64,
    f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    count: u64,
) -> bool {
    WRONG.set(wrong);
    let mut cpu = fake(flags_after_all);
    let reports = checked(&mut cpu);
    let code = assemble(64, |a| {
        f(a)?;
        let mut end = a.create_label();
        a.jmp(end)?;
        a.set_label(&mut end)?;
        a.hlt()
    });
    cpu.mem.write(CODE, &code);
    cpu.state.gpr[gpr::RCX] = count;
    cpu.state.gpr[gpr::RAX] = 5;
    (cpu.state.gpr[gpr::RSI], cpu.state.gpr[gpr::RDI]) = (DATA, DATA + 0x100);
    assert_eq!(cpu.run(), Exit::Halt);
    let reports = reports.lock().unwrap();
    assert!(reports.iter().all(|r| r.contains("rflags: ") && !r.contains("RAM at")), "{reports:?}");
    !reports.is_empty()
}
thread_local! {
    static WRONG: Cell<u64> = const { Cell::new(0) };
}

code_abi! {
    /// Has the interpreter execute all ops of the block, and then changes flags.
    fn flags_after_all(cpu: *mut Cpu, _: *const Op, rip: u64, _: *const u8) -> u32 {
        // SAFETY: called by `run_code` with its vCPU.
        let cpu = unsafe { &mut *cpu };
        if rip != CODE {
            return 3;
        }
        let ops: Vec<Op> = {
            let block = cpu.known_block(CODE, cpu.mode_key).unwrap();
            let mut ops = Vec::new();
            assert!(cpu.plain_ops(block, &mut ops));
            ops
        };
        for op in &ops {
            cpu.icount += 1;
            cpu.run_op(op);
        }
        let flags = cpu.state.arith_flags() ^ WRONG.get();
        cpu.state.set_arith_flags(flags);
        1
    }
}

#[test]
fn flags_that_are_undefined_are_not_compared_and_all_others_are() {
    use mynah_cpu::state::fl::{AF, CF, OF, PF, SF, ZF};
    // Each flag that is wrong is reported unless it is among the last. What looks at undefined ones before the end is
    // not judged.
    type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let cases: [(&str, Emit, u64, u64); 16] = [
        ("inc", |a| a.inc(eax), 0, 0),
        ("mul", |a| a.mul(ecx), 3, SF | ZF | AF | PF),
        ("mul, then add", |a| a.mul(ecx).and_then(|()| a.add(eax, 1)), 3, 0),
        ("mul, then inc", |a| a.mul(ecx).and_then(|()| a.inc(eax)), 3, 0),
        ("and", |a| a.and(eax, ecx), 3, AF),
        ("bsf", |a| a.bsf(edx, eax), 3, CF | OF | SF | AF | PF),
        ("shl by 1", |a| a.shl(eax, cl), 1, AF),
        ("shl by 3", |a| a.shl(eax, cl), 3, AF | OF),
        ("shl by 0", |a| a.shl(eax, cl), 32, 0),
        ("shr of a byte by 9", |a| a.shr(al, cl), 9, AF | OF | CF),
        ("sar of a byte by 9", |a| a.sar(al, 9), 0, AF | OF),
        ("and, then a long move", |a| a.and(eax, eax).and_then(|()| a.rep().movsb()), 2000, AF),
        ("ror by 1", |a| a.ror(eax, 1), 0, 0),
        ("ror by 4", |a| a.ror(eax, cl), 4, OF),
        ("add, then pushf", |a| a.add(eax, ecx).and_then(|()| a.pushfq()), 3, 0),
        ("and, then pushf", |a| a.and(eax, ecx).and_then(|()| a.pushfq()), 3, CF | PF | AF | ZF | SF | OF),
    ];
    for (what, emit, count, undefined) in cases {
        for flag in [CF, PF, AF, ZF, SF, OF] {
            let reported = flags_are_reported(flag, emit, count);
            assert_eq!(reported, undefined & flag == 0, "{what}: flag {flag:#x}");
        }
    }
}

#[test]
fn wrong_code_is_reported_with_what_is_wrong_and_where() {
    assert_eq!(with_fake(right), Vec::<String>::new());
    for (fake, wanted) in [
        (register as mynah_cpu::tier::Enter, "r12: interpreted 0, translated 40"),
        (flags, "rflags: interpreted"),
        (no_store, "RAM at 0x10000: interpreted 0000000000000001, translated 0000000000000000"),
        (other_store, "RAM at 0x13000: interpreted 0000000000000000, translated 0700000000000000"),
        (early, "rip: interpreted 20004, translated 20002"),
        (vector, "xmm7: interpreted"),
    ] {
        let reports = with_fake(fake);
        // The first is enough.
        assert_eq!(reports.len(), 1, "{wanted}: {reports:?}");
        assert!(reports[0].contains(wanted), "{wanted} is not in {}", reports[0]);
        assert!(reports[0].contains("inc eax") && reports[0].contains("mov [rdi],eax"), "{}", reports[0]);
    }
}
