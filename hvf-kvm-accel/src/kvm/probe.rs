//! Whether KVM can be used here, and whether it is worth it.
//!
//! Where a host is itself a virtual machine, its KVM may be there and execute kernel-mode code a thousand times slower
//! than the processor would. So a few thousand instructions are timed, in both modes.
use super::{Host, Vcpu, Vm};
use crate::AccelError;
use kvm_ioctls::Kvm;
use mynah_cpu::board::{EV_KICK, NoBoard};
use mynah_cpu::state::{Activity, Segment, cr0, cr4, efer, gpr, seg};
use mynah_cpu::{Accelerator, Cpu, CpuModel, Exit};
use mynah_mmu::{GuestRam, PhysMemory};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

/// Opens the device, with an error that tells what to do.
pub(super) fn open(path: &Path) -> Result<Kvm, AccelError> {
    let name = || path.display().to_string();
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(AccelError::Absent(name())),
        Ok(m) if m.is_file() || m.is_dir() => return Err(AccelError::NotKvm(name())),
        _ => {}
    }
    let c_path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| AccelError::NotKvm(name()))?;
    Kvm::new_with_path(&c_path).map_err(|e| match e.errno() {
        libc::EACCES | libc::EPERM => AccelError::Forbidden { path: name(), remedy: remedy(path) },
        libc::ENOENT | libc::ENXIO | libc::ENODEV => AccelError::Absent(name()),
        libc::EBUSY => AccelError::Busy(name()),
        _ => AccelError::Kvm { what: "open /dev/kvm", reason: e.to_string() },
    })
}

/// What a user does who may not open the device.
fn remedy(path: &Path) -> String {
    let Ok(meta) = std::fs::metadata(path) else { return "ask who administers this host".into() };
    let group = std::fs::read_to_string("/etc/group").ok().and_then(|all| {
        let gid = meta.gid().to_string();
        let line = all.lines().find(|line| line.split(':').nth(2) == Some(&gid))?;
        line.split(':').next().map(str::to_owned)
    });
    match group {
        // Nobody is in root's group who is not root.
        Some(group) if meta.gid() != 0 && meta.mode() & 0o060 == 0o060 => {
            format!("add yourself to its group (sudo usermod -aG {group} $USER) and log in again")
        }
        _ => format!(
            "its owner's alone (mode {:04o}); give it a group that you are in (sudo chgrp kvm {path}; sudo chmod 660 \
             {path})",
            meta.mode() & 0o7777,
            path = path.display()
        ),
    }
}

/// How fast KVM is here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Instructions in a microsecond in kernel mode, of a small loop in 64-bit mode.
    pub kernel_mips: f64,
    /// The same in user mode.
    pub user_mips: f64,
}

/// In a microsecond, below which an emulator does better.
pub const SLOW_MIPS: f64 = 50.0;

impl Speed {
    /// Whether a guest with a kernel is better off elsewhere.
    pub fn is_slow(&self) -> bool {
        self.kernel_mips < SLOW_MIPS
    }
}

/// Iterations of the loop, of two instructions each: about what an emulator does in a few milliseconds, and so many that
/// a processor takes longer for them than for the way in and out.
const TURNS: (u32, u32) = (5000, 5_000_000);

/// Machines that are timed before a host is told slow, how long it has between them to be done with something else, and
/// runs of each. Of all the best counts.
const TRIES: usize = 6;
const REST: Duration = Duration::from_millis(3);
const RUNS: usize = 5;

/// What a KVM that is emulated itself may do otherwise than a processor, and a guest trips over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// SYSCALL in user mode goes on in user mode: no program of a 64-bit system runs.
    pub syscall: bool,
    /// The time-stamp counter is the host's, whatever it is set to.
    pub counter: bool,
}

/// Times a loop in kernel mode and one in user mode.
///
/// # Errors
/// KVM does not run them.
pub fn speed() -> Result<Speed, AccelError> {
    Ok(Speed { kernel_mips: time(0)?, user_mips: time(3)? })
}

/// Looks for faults.
///
/// # Errors
/// KVM does not run what is needed for that.
pub fn faults() -> Result<Faults, AccelError> {
    // syscall; at 1100h: hlt
    let mut t = Trial::new(3, &[0x0f, 0x05])?;
    t.cpu.mem.write(CODE + 0x100, &[0xf4]);
    let msr = &mut t.cpu.state.msr;
    (msr.star, msr.lstar, msr.fmask) = (0x0023_0010 << 32, CODE + 0x100, 0x700);
    let mut vcpu = t.vm.vcpu(&t.cpu, 0)?;
    let exit = t.run(&mut vcpu)?;
    let syscall = exit != Exit::Halt || t.cpu.state.gpr[gpr::RIP] != CODE + 0x101;
    Ok(Faults { syscall, counter: !vcpu.takes_counter()? })
}

/// The speed of a few iterations, and, if that is no emulator's, of many. The few may have been in the way of somebody
/// else's work: that they are an emulator's is believed when all tries say so.
fn time(cpl: u8) -> Result<f64, AccelError> {
    let mut mips: f64 = 0.0;
    for _ in 0..TRIES {
        mips = mips.max(time_of(cpl, TURNS.0)?);
        if mips >= SLOW_MIPS / 10.0 {
            // No slower than it was just now: who gets in the way of many gets in the way of few, too.
            return Ok(mips.max(time_of(cpl, TURNS.1)?));
        }
        std::thread::sleep(REST);
    }
    Ok(mips)
}

/// Where the loop and its page tables are.
const CODE: u64 = 0x1000;
const TABLES: u64 = 0x2000;

/// A machine with a bit of code in 64-bit mode. HLT ends it, and so does any fault.
struct Trial {
    vm: Arc<Vm>,
    cpu: Box<Cpu>,
}

impl Trial {
    fn new(cpl: u8, code: &[u8]) -> Result<Self, AccelError> {
        let ram = GuestRam::new(2 << 20).map_err(|e| refused(e.to_string()))?;
        let memory = PhysMemory::new(ram, 2 << 20);
        memory.write(CODE, code);
        // PML4, PDPT, and a directory with one page of 2 MiB: present, writable, for users too.
        for (at, entry) in [(0, TABLES + 0x1007), (0x1000, TABLES + 0x2007), (0x2000, 0xe7_u64)] {
            memory.write(TABLES + at, &entry.to_le_bytes());
        }
        let vm = Vm::new(Host::open()?, &memory)?;
        let model = Arc::new(CpuModel::parse("qemu64").map_err(|e| refused(e.to_string()))?);
        let mut cpu = Cpu::new(0, memory, Arc::new(NoBoard), Arc::default(), model);
        let s = &mut cpu.state;
        let rights = 0xc093 | u32::from(cpl) << 5;
        let flat = Segment { base: 0, limit: u32::MAX, attr: rights, sel: 0x10 | u16::from(cpl) };
        s.seg = [flat; 6];
        s.seg[seg::CS] = Segment { attr: 0xa09b | u32::from(cpl) << 5, sel: 8 | u16::from(cpl), ..flat };
        s.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::NE;
        s.cr3 = TABLES;
        s.cr4 = cr4::PAE;
        s.msr.efer = efer::LME | efer::LMA | efer::SCE;
        s.cpl = cpl;
        s.idtr.limit = 0;
        s.gpr[gpr::RIP] = CODE;
        Ok(Self { vm, cpu })
    }

    /// Runs it to its end. One that hangs is kicked: nothing here takes long.
    fn run(&mut self, vcpu: &mut Vcpu) -> Result<Exit, AccelError> {
        self.cpu.state.activity = Activity::Running;
        self.cpu.sync_all();
        let events = self.cpu.events.clone();
        let (done, over) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                if over.recv_timeout(Duration::from_secs(2)) == Err(RecvTimeoutError::Timeout) {
                    events.raise(EV_KICK);
                }
            });
            let exit = vcpu.run(&mut self.cpu);
            drop(done);
            exit.map_err(|e| refused(e.to_string()))
        })
    }
}

fn refused(reason: String) -> AccelError {
    AccelError::Kvm { what: "run its self-test", reason }
}

/// Whether KVM stops behind each instruction when it is asked to, in kernel mode and in user mode.
///
/// # Errors
/// It does not, or does not work at all.
pub fn steps() -> Result<(), AccelError> {
    // inc eax; mov ebx, eax; nop; dec ebx; nop; nop, and HLT, to which it is not to come.
    const LENGTHS: [u64; 6] = [2, 2, 1, 2, 1, 1];
    for (cpl, mode) in [(0, "kernel"), (3, "user")] {
        let mut t = Trial::new(cpl, &[0xff, 0xc0, 0x89, 0xc3, 0x90, 0xff, 0xcb, 0x90, 0x90, 0xf4])?;
        t.cpu.sync_all();
        let mut vcpu = t.vm.vcpu(&t.cpu, 0)?;
        let mut behind = CODE;
        for len in LENGTHS {
            behind += len;
            Accelerator::step(&mut vcpu, &mut t.cpu).map_err(|e| refused(e.0))?;
            let at = t.cpu.state.gpr[gpr::RIP];
            if at != behind {
                let reason = format!(
                    "this host's does not stop behind each instruction in {mode} mode (a step leads to {at:#x}, not \
                     {behind:#x})"
                );
                return Err(AccelError::Kvm { what: "execute single instructions", reason });
            }
        }
    }
    Ok(())
}

/// A loop at this privilege level, and HLT, which is a fault in user mode: the best of some runs.
fn time_of(cpl: u8, turns: u32) -> Result<f64, AccelError> {
    // dec ecx; jnz; hlt
    let mut t = Trial::new(cpl, &[0xff, 0xc9, 0x75, 0xfc, 0xf4])?;
    let mut vcpu = t.vm.vcpu(&t.cpu, 0)?;
    let mut took = Duration::MAX;
    // The first is for what is touched for the first time.
    for _ in 0..RUNS {
        t.cpu.state.gpr[gpr::RIP] = CODE;
        t.cpu.state.gpr[gpr::RCX] = turns.into();
        let began = Instant::now();
        let exit = t.run(&mut vcpu)?;
        took = began.elapsed().min(took);
        if !matches!(exit, Exit::Halt | Exit::Shutdown) || t.cpu.state.gpr[gpr::RCX] != 0 {
            return Err(refused(format!("{exit:?} at {:#x}", t.cpu.state.gpr[gpr::RIP])));
        }
    }
    Ok(2.0 * f64::from(turns) / (took.as_secs_f64() * 1e6))
}
