//! Hypervisor.framework itself. Source: Apple's headers `hv.h`, `hv_vmx.h`, `hv_arch_x86.h`.
use super::map::GuestMap;
use super::vmcs::Control;
use super::{Framework, HvError, Hypervisor, Reg, convert};
use crate::xsave;
use mynah_cpu::board::Kicker;
use mynah_mmu::Gpa;
use std::ffi::c_void;
use std::sync::Arc;

#[link(name = "Hypervisor", kind = "framework")]
unsafe extern "C" {
    fn hv_vm_create(flags: u64) -> u32;
    fn hv_vm_destroy() -> u32;
    fn hv_vm_map(host: *const c_void, gpa: u64, size: usize, flags: u64) -> u32;
    fn hv_vm_unmap(gpa: u64, size: usize) -> u32;
    fn hv_vcpu_create(vcpu: *mut u32, flags: u64) -> u32;
    fn hv_vcpu_destroy(vcpu: u32) -> u32;
    fn hv_vcpu_run_until(vcpu: u32, deadline: u64) -> u32;
    fn hv_vcpu_interrupt(vcpus: *const u32, count: u32) -> u32;
    fn hv_vcpu_read_register(vcpu: u32, reg: u32, value: *mut u64) -> u32;
    fn hv_vcpu_write_register(vcpu: u32, reg: u32, value: u64) -> u32;
    fn hv_vcpu_read_fpstate(vcpu: u32, buffer: *mut c_void, size: usize) -> u32;
    fn hv_vcpu_write_fpstate(vcpu: u32, buffer: *const c_void, size: usize) -> u32;
    fn hv_vcpu_enable_native_msr(vcpu: u32, msr: u32, enable: bool) -> u32;
    fn hv_vcpu_read_msr(vcpu: u32, msr: u32, value: *mut u64) -> u32;
    fn hv_vcpu_write_msr(vcpu: u32, msr: u32, value: u64) -> u32;
    fn hv_vcpu_invalidate_tlb(vcpu: u32) -> u32;
    fn hv_vmx_vcpu_read_vmcs(vcpu: u32, field: u32, value: *mut u64) -> u32;
    fn hv_vmx_vcpu_write_vmcs(vcpu: u32, field: u32, value: u64) -> u32;
    fn hv_vmx_read_capability(field: u32, value: *mut u64) -> u32;
}

/// Flags of a mapping.
const READ: u64 = 1;
const WRITE: u64 = 2;
const EXECUTE: u64 = 4;
/// `HV_DEADLINE_FOREVER`.
const FOREVER: u64 = u64::MAX;

fn done(what: &'static str, code: u32) -> Result<(), HvError> {
    if code == 0 { Ok(()) } else { Err(HvError { what, code }) }
}

/// The virtual machine, of which a process has one.
pub struct Vm(());

impl Vm {
    /// Makes it.
    ///
    /// # Errors
    /// The framework refuses.
    pub fn new() -> Result<Arc<Self>, HvError> {
        // SAFETY: it takes a number alone.
        done("create a virtual machine", unsafe { hv_vm_create(0) })?;
        Ok(Arc::new(Self(())))
    }
}

impl Hypervisor for Vm {
    fn vcpu(self: Arc<Self>) -> Result<Box<dyn Framework>, HvError> {
        let mut id = 0;
        // SAFETY: `id` lives until the call returns.
        done("create a vCPU", unsafe { hv_vcpu_create(&mut id, 0) })?;
        let vcpu = Vcpu { id, _vm: self };
        for msr in convert::NATIVE {
            // SAFETY: it takes numbers alone.
            done("have the guest use its MSRs", unsafe { hv_vcpu_enable_native_msr(id, msr, true) })?;
        }
        Ok(Box::new(vcpu))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // SAFETY: no vCPU is left, as each keeps this.
        unsafe { hv_vm_destroy() };
    }
}

impl GuestMap for Vm {
    unsafe fn map(&self, host: u64, gpa: Gpa, len: u64, writable: bool) -> Result<(), HvError> {
        let flags = READ | EXECUTE | if writable { WRITE } else { 0 };
        // SAFETY: the bytes are there as long as they are mapped, as the caller has promised.
        done("map guest memory", unsafe { hv_vm_map(host as *const c_void, gpa, len as usize, flags) })
    }

    fn unmap(&self, gpa: Gpa, len: u64) -> Result<(), HvError> {
        // SAFETY: it takes numbers alone; nobody here reaches memory by the guest's addresses.
        done("unmap guest memory", unsafe { hv_vm_unmap(gpa, len as usize) })
    }
}

struct Vcpu {
    id: u32,
    _vm: Arc<Vm>,
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        // SAFETY: it is ours, and gone from here.
        unsafe { hv_vcpu_destroy(self.id) };
    }
}

struct Interrupt(u32);

impl Kicker for Interrupt {
    fn kick(&self) {
        // SAFETY: it reads one number; a vCPU that is gone is an error that does no harm.
        unsafe { hv_vcpu_interrupt(&self.0, 1) };
    }
}

impl Framework for Vcpu {
    fn run(&mut self) -> Result<(), HvError> {
        // SAFETY: what the guest reaches is mapped for it.
        done("run a vCPU", unsafe { hv_vcpu_run_until(self.id, FOREVER) })
    }
    fn reg(&self, reg: Reg) -> Result<u64, HvError> {
        let mut value = 0;
        // SAFETY: `value` lives until the call returns.
        done("read a register", unsafe { hv_vcpu_read_register(self.id, reg as u32, &mut value) })?;
        Ok(value)
    }
    fn set_reg(&mut self, reg: Reg, value: u64) -> Result<(), HvError> {
        // SAFETY: it takes numbers alone.
        done("write a register", unsafe { hv_vcpu_write_register(self.id, reg as u32, value) })
    }
    fn field(&self, field: u32) -> Result<u64, HvError> {
        let mut value = 0;
        // SAFETY: `value` lives until the call returns.
        done("read the VMCS", unsafe { hv_vmx_vcpu_read_vmcs(self.id, field, &mut value) })?;
        Ok(value)
    }
    fn set_field(&mut self, field: u32, value: u64) -> Result<(), HvError> {
        // SAFETY: it takes numbers alone; the framework sees to it that the host's state is none of them.
        done("write the VMCS", unsafe { hv_vmx_vcpu_write_vmcs(self.id, field, value) })
    }
    fn msr(&self, index: u32) -> Result<u64, HvError> {
        let mut value = 0;
        // SAFETY: `value` lives until the call returns.
        done("read an MSR", unsafe { hv_vcpu_read_msr(self.id, index, &mut value) })?;
        Ok(value)
    }
    fn set_msr(&mut self, index: u32, value: u64) -> Result<(), HvError> {
        // SAFETY: it takes numbers alone.
        done("write an MSR", unsafe { hv_vcpu_write_msr(self.id, index, value) })
    }
    fn xsave(&self, area: &mut [u8; xsave::SIZE]) -> Result<(), HvError> {
        // SAFETY: it writes as many bytes as are told.
        let code = unsafe { hv_vcpu_read_fpstate(self.id, area.as_mut_ptr().cast(), area.len()) };
        done("read the XSAVE area", code)
    }
    fn set_xsave(&mut self, area: &[u8; xsave::SIZE]) -> Result<(), HvError> {
        // SAFETY: it reads as many bytes as are told.
        let code = unsafe { hv_vcpu_write_fpstate(self.id, area.as_ptr().cast(), area.len()) };
        done("write the XSAVE area", code)
    }
    fn forget_translations(&mut self) -> Result<(), HvError> {
        // SAFETY: it takes a number alone.
        done("forget translations", unsafe { hv_vcpu_invalidate_tlb(self.id) })
    }
    fn permitted(&self, control: Control) -> Result<u64, HvError> {
        let mut value = 0;
        // SAFETY: `value` lives until the call returns. The capabilities are numbered as the controls.
        done("tell what VMX can", unsafe { hv_vmx_read_capability(control as u32, &mut value) })?;
        Ok(value)
    }
    fn kicker(&self) -> Arc<dyn Kicker> {
        Arc::new(Interrupt(self.id))
    }
}
