//! KVM: `/dev/kvm` through kvm-ioctls.
//!
//! Memory slots are made from [`PhysMemory::regions`]; the host mapping is the guest's own RAM, so nothing is copied
//! when a vCPU changes engines.
use crate::AccelError;
use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use mynah_cpu::State;
use mynah_cpu::state::{F80, Segment, Table, gpr, seg};
use mynah_mmu::{PhysMemory, Target};
use std::sync::Arc;

fn failed(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> AccelError {
    move |e| AccelError::Kvm { what, reason: e.to_string() }
}

/// A virtual machine.
pub struct Vm {
    kvm: Kvm,
    fd: VmFd,
    // The slots point into it.
    memory: Arc<PhysMemory>,
}

impl Vm {
    /// A machine with `memory`'s RAM and ROM.
    pub fn new(memory: Arc<PhysMemory>) -> Result<Self, AccelError> {
        let kvm = Kvm::new().map_err(failed("open /dev/kvm"))?;
        let fd = kvm.create_vm().map_err(failed("create a virtual machine"))?;
        let vm = Self { kvm, fd, memory };
        vm.map_memory()?;
        Ok(vm)
    }

    fn map_memory(&self) -> Result<(), AccelError> {
        const READ_ONLY: u32 = 1 << 1;
        let mut slot = 0;
        for (gpa, len, target) in self.memory.regions() {
            let (host, flags) = match target {
                Target::Ram(p) | Target::DeviceRam(p) => (p, 0),
                Target::Rom(p) => (p, READ_ONLY),
                Target::Mmio(..) | Target::None => continue,
            };
            let region = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: gpa,
                memory_size: len,
                userspace_addr: host as u64,
            };
            // SAFETY: `regions` gives host memory of `len` bytes that lives as long as `memory`, which `self` keeps;
            // regions do not overlap.
            unsafe { self.fd.set_user_memory_region(region) }.map_err(failed("map guest memory"))?;
            slot += 1;
        }
        Ok(())
    }

    /// Adds a vCPU, with the CPUID that KVM supports on this host.
    pub fn vcpu(&self, id: u64) -> Result<Vcpu, AccelError> {
        let fd = self.fd.create_vcpu(id).map_err(failed("create a vCPU"))?;
        let cpuid = self
            .kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("read the supported CPUID"))?;
        fd.set_cpuid2(&cpuid).map_err(failed("set CPUID"))?;
        Ok(Vcpu { fd })
    }
}

/// Why [`Vcpu::run`] came back.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit {
    /// HLT.
    Halt,
    /// OUT of these bytes to a port; it is done.
    Out(u16, Vec<u8>),
    /// Triple fault.
    Shutdown,
    /// The thread was signalled.
    Interrupted,
    /// Something this engine does not handle, in words.
    Other(String),
}

/// A vCPU.
pub struct Vcpu {
    fd: VcpuFd,
}

fn segment_to_kvm(s: &Segment) -> kvm_segment {
    let a = s.attr;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.sel,
        type_: (a & 15) as u8,
        s: (a >> 4 & 1) as u8,
        dpl: (a >> 5 & 3) as u8,
        present: (a >> 7 & 1) as u8,
        avl: (a >> 12 & 1) as u8,
        l: (a >> 13 & 1) as u8,
        db: (a >> 14 & 1) as u8,
        g: (a >> 15 & 1) as u8,
        unusable: (a >> 16 & 1) as u8,
        ..Default::default()
    }
}

fn segment_from_kvm(k: &kvm_segment) -> Segment {
    let bit = |v: u8, n: u32| u32::from(v) << n;
    Segment {
        base: k.base,
        limit: k.limit,
        sel: k.selector,
        attr: u32::from(k.type_)
            | bit(k.s, 4)
            | bit(k.dpl, 5)
            | bit(k.present, 7)
            | bit(k.avl, 12)
            | bit(k.l, 13)
            | bit(k.db, 14)
            | bit(k.g, 15)
            | bit(k.unusable, 16),
    }
}

fn table_to_kvm(t: &Table) -> kvm_dtable {
    kvm_dtable { base: t.base, limit: t.limit, ..Default::default() }
}

impl Vcpu {
    /// Takes over a state.
    pub fn load(&mut self, s: &State, apic_base: u64) -> Result<(), AccelError> {
        let g = &s.gpr;
        let regs = kvm_regs {
            rax: g[0],
            rcx: g[1],
            rdx: g[2],
            rbx: g[3],
            rsp: g[4],
            rbp: g[5],
            rsi: g[6],
            rdi: g[7],
            r8: g[8],
            r9: g[9],
            r10: g[10],
            r11: g[11],
            r12: g[12],
            r13: g[13],
            r14: g[14],
            r15: g[15],
            rip: g[gpr::RIP],
            rflags: s.rflags(),
        };
        let sregs = kvm_sregs {
            es: segment_to_kvm(&s.seg[seg::ES]),
            cs: segment_to_kvm(&s.seg[seg::CS]),
            ss: segment_to_kvm(&s.seg[seg::SS]),
            ds: segment_to_kvm(&s.seg[seg::DS]),
            fs: segment_to_kvm(&s.seg[seg::FS]),
            gs: segment_to_kvm(&s.seg[seg::GS]),
            tr: segment_to_kvm(&s.tr),
            ldt: segment_to_kvm(&s.ldtr),
            gdt: table_to_kvm(&s.gdtr),
            idt: table_to_kvm(&s.idtr),
            cr0: s.cr0,
            cr2: s.cr2,
            cr3: s.cr3,
            cr4: s.cr4,
            efer: s.msr.efer,
            apic_base,
            ..Default::default()
        };
        let f = &s.fpu;
        let mut fpu = kvm_fpu {
            fcw: f.cw,
            fsw: f.sw | u16::from(f.top) << 11,
            ftwx: !f.empty,
            last_opcode: f.fop,
            last_ip: f.fip,
            last_dp: f.fdp,
            mxcsr: s.mxcsr,
            ..Default::default()
        };
        for i in 0..8 {
            // KVM wants the registers in stack order.
            let r = f.r[(i + usize::from(f.top)) & 7];
            fpu.fpr[i][..8].copy_from_slice(&r.mant.to_le_bytes());
            fpu.fpr[i][8..10].copy_from_slice(&r.exp.to_le_bytes());
        }
        for i in 0..16 {
            fpu.xmm[i] = s.xmm[i].x().to_le_bytes();
        }
        self.fd.set_sregs(&sregs).map_err(failed("set control registers"))?;
        self.fd.set_regs(&regs).map_err(failed("set registers"))?;
        self.fd.set_fpu(&fpu).map_err(failed("set the FPU"))
    }

    /// Gives the state back: everything that `load` took over.
    pub fn save(&self, s: &mut State) -> Result<(), AccelError> {
        let r = self.fd.get_regs().map_err(failed("get registers"))?;
        let k = self.fd.get_sregs().map_err(failed("get control registers"))?;
        let fpu = self.fd.get_fpu().map_err(failed("get the FPU"))?;
        let all = [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
            r.r14, r.r15,
        ];
        s.gpr[..16].copy_from_slice(&all);
        s.gpr[gpr::RIP] = r.rip;
        s.set_rflags(r.rflags);
        for (i, v) in
            [(seg::ES, &k.es), (seg::CS, &k.cs), (seg::SS, &k.ss), (seg::DS, &k.ds), (seg::FS, &k.fs)]
        {
            s.seg[i] = segment_from_kvm(v);
        }
        s.seg[seg::GS] = segment_from_kvm(&k.gs);
        s.tr = segment_from_kvm(&k.tr);
        s.ldtr = segment_from_kvm(&k.ldt);
        s.gdtr = Table { base: k.gdt.base, limit: k.gdt.limit };
        s.idtr = Table { base: k.idt.base, limit: k.idt.limit };
        (s.cr0, s.cr2, s.cr3, s.cr4, s.msr.efer) = (k.cr0, k.cr2, k.cr3, k.cr4, k.efer);
        s.cpl = s.seg[seg::SS].dpl();
        let top = (fpu.fsw >> 11 & 7) as u8;
        s.fpu.cw = fpu.fcw;
        s.fpu.sw = fpu.fsw & !(7 << 11);
        s.fpu.top = top;
        s.fpu.empty = !fpu.ftwx;
        (s.fpu.fop, s.fpu.fip, s.fpu.fdp) = (fpu.last_opcode, fpu.last_ip, fpu.last_dp);
        s.mxcsr = fpu.mxcsr;
        for i in 0..8 {
            let b = &fpu.fpr[i];
            let mut mant = [0; 8];
            mant.copy_from_slice(&b[..8]);
            s.fpu.r[(i + usize::from(top)) & 7] =
                F80 { mant: u64::from_le_bytes(mant), exp: u16::from_le_bytes([b[8], b[9]]) };
        }
        for i in 0..16 {
            s.xmm[i].set_x(u128::from_le_bytes(fpu.xmm[i]));
        }
        Ok(())
    }

    /// Runs until something has to be done outside.
    pub fn run(&mut self) -> Result<Exit, AccelError> {
        match self.fd.run() {
            Ok(VcpuExit::Hlt) => Ok(Exit::Halt),
            Ok(VcpuExit::IoOut(port, data)) => Ok(Exit::Out(port, data.to_vec())),
            Ok(VcpuExit::Shutdown) => Ok(Exit::Shutdown),
            Ok(VcpuExit::Intr) => Ok(Exit::Interrupted),
            Ok(other) => Ok(Exit::Other(format!("{other:?}"))),
            Err(e) if e.errno() == 4 => Ok(Exit::Interrupted),
            Err(e) => Err(failed("run a vCPU")(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mynah_mmu::GuestRam;

    fn machine() -> Option<(Arc<PhysMemory>, Vm)> {
        let memory = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
        match Vm::new(memory.clone()) {
            Ok(vm) => Some((memory, vm)),
            Err(e) => {
                eprintln!("SKIPPED: {e}");
                None
            }
        }
    }

    #[test]
    fn a_state_survives_the_trip_through_kvm() {
        let Some((_, vm)) = machine() else { return };
        let mut vcpu = vm.vcpu(0).unwrap();
        let mut s = State::default();
        for i in 0..16 {
            s.gpr[i] = 0x1111_2222_3333_4444_u64.wrapping_mul(i as u64 + 1);
            s.xmm[i].set_x(u128::from(s.gpr[i]) << 64 | 7);
        }
        s.set_rflags(0x8d7);
        s.fpu.top = 3;
        s.fpu.empty = 0xf7;
        s.fpu.r[3] = F80 { mant: 1 << 63, exp: 0x3fff };
        vcpu.load(&s, 0xfee0_0900).unwrap();
        let mut back = State::default();
        vcpu.save(&mut back).unwrap();
        assert_eq!(back.gpr, s.gpr);
        assert_eq!(back.rflags(), s.rflags());
        assert_eq!(back.xmm[..16], s.xmm[..16]);
        assert_eq!((back.fpu.top, back.fpu.empty, back.fpu.r[3]), (3, 0xf7, s.fpu.r[3]));
        assert_eq!(back.seg[seg::CS].base, s.seg[seg::CS].base);
    }

    #[test]
    fn a_real_mode_guest_runs_and_its_state_comes_back() {
        let Some((memory, vm)) = machine() else { return };
        // mov ax, 21; add ax, ax; out E9h, al; hlt
        memory.write(0x1000, &[0xb8, 21, 0, 0x01, 0xc0, 0xe6, 0xe9, 0xf4]);
        let mut vcpu = vm.vcpu(0).unwrap();
        let mut s = State::default();
        s.seg[seg::CS] = Segment { attr: 0x9b, ..Segment::real(0, 0) };
        s.gpr[gpr::RIP] = 0x1000;
        vcpu.load(&s, 0xfee0_0900).unwrap();
        assert_eq!(vcpu.run().unwrap(), Exit::Out(0xe9, vec![42]));
        assert_eq!(vcpu.run().unwrap(), Exit::Halt);
        vcpu.save(&mut s).unwrap();
        assert_eq!(s.gpr[0] & 0xffff, 42);
        assert_eq!(s.gpr[gpr::RIP], 0x1008);
    }
}
