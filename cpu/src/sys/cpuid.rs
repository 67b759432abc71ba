//! CPUID and counters: CPUID, RDTSC, RDTSCP, RDPMC, RDPID (SDM volume 2).
use crate::board::EV_INTR;
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::exec::Exec;
use crate::model::Vendor;
use crate::model::leaves::Dynamic;
use crate::op::{Helper, Op};
use crate::state::{cr4, gpr};
use crate::width::W64;
use iced_x86::{Code, Instruction};

impl Cpu {
    /// What CPUID takes from this vCPU.
    pub fn cpuid_input(&self) -> Dynamic {
        let s = &self.state;
        let apic_base = self.board.apic_msr_read(super::msr::index::APIC_BASE).unwrap_or(0);
        Dynamic {
            apic_id: self.model.apic_id(self.index),
            apic_enabled: apic_base >> 11 & 1 != 0,
            osxsave: s.cr4 & cr4::OSXSAVE != 0,
            pke: s.cr4 & cr4::PKE != 0,
            long64: s.is_long64(),
            xcr0: s.xcr0,
            xss: s.msr.xss,
        }
    }
}

fn cpuid(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    super::cache::serialise();
    let d = cpu.cpuid_input();
    let g = &mut cpu.state.gpr;
    let [a, b, c, e] = cpu.model.cpuid(&d, g[gpr::RAX] as u32, g[gpr::RCX] as u32);
    g[gpr::RAX] = u64::from(a);
    g[gpr::RBX] = u64::from(b);
    g[gpr::RCX] = u64::from(c);
    g[gpr::RDX] = u64::from(e);
    Ok(())
}

fn set_edx_eax(cpu: &mut Cpu, v: u64) {
    cpu.state.gpr[gpr::RAX] = v & 0xffff_ffff;
    cpu.state.gpr[gpr::RDX] = v >> 32;
}

/// CR4.TSD keeps the counter for CPL 0.
fn tsc_allowed(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.state.cr4 & cr4::TSD != 0 && cpu.state.cpl > 0 {
        return Err(cpu.gp(0));
    }
    Ok(())
}

fn rdtsc(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    read_tsc(cpu)
}

/// On a host that is late, timers that were due before this time run out now, or have just done so on another thread.
/// Their interrupt comes before the time is seen: a guest that waits for ticks until a time (as Linux does to see whether
/// its timer works) gets all that belong to it. It is put off once at a time, so the guest gets on in any case.
fn read_tsc(cpu: &mut Cpu) -> Result<(), Stop> {
    tsc_allowed(cpu)?;
    let v = cpu.tsc();
    let due = cpu.events.pending() & cpu.event_mask & EV_INTR != 0;
    cpu.time_put_off = due && !cpu.time_put_off;
    if cpu.time_put_off {
        return Err(Stop::Again);
    }
    set_edx_eax(cpu, v);
    Ok(())
}

fn rdtscp(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    read_tsc(cpu)?;
    cpu.state.gpr[gpr::RCX] = cpu.state.msr.tsc_aux & 0xffff_ffff;
    Ok(())
}

/// RDPMC: AMD's processors have four counters (which count nothing here); Intel's models have none.
fn rdpmc(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    if cpu.state.cr4 & cr4::PCE == 0 && cpu.state.cpl > 0 {
        return Err(cpu.gp(0));
    }
    if cpu.model.vendor != Vendor::Amd || cpu.state.gpr[gpr::RCX] as u32 > 3 {
        return Err(cpu.gp(0));
    }
    set_edx_eax(cpu, 0);
    Ok(())
}

fn rdpid(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = cpu.state.msr.tsc_aux;
    cpu.set_reg::<W64>(op.dst, v);
    Ok(())
}

/// The helper for an instruction of this group.
pub(super) fn lookup(i: &Instruction) -> Option<Helper> {
    match i.code() {
        Code::Cpuid => Helper::ends(cpuid),
        Code::Rdtsc => Helper::straight(rdtsc),
        Code::Rdtscp => Helper::straight(rdtscp),
        Code::Rdpmc => Helper::straight(rdpmc),
        Code::Rdpid_r32 | Code::Rdpid_r64 => Helper::straight(rdpid),
        _ => None,
    }
}
