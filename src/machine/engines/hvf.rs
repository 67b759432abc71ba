//! Hypervisor.framework as one of a machine's engines. It has not been run on hardware.
use super::TSC_HZ;
use crate::config::{AccelKind, Config};
use anyhow::bail;
use mynah_accel::hvf::{self, ffi::Vm};
use mynah_cpu::model::Vendor;
use mynah_cpu::{Accelerator, Cpu, CpuModel};
use mynah_mmu::PhysMemory;
use std::sync::Arc;

/// What this is.
pub const KIND: AccelKind = AccelKind::Hvf;

/// The framework's virtual machine.
pub struct Host(Arc<Vm>);

/// A machine's share of it.
pub struct Machine(hvf::Machine<Vm>);

impl Host {
    /// Makes the virtual machine, of which this process has one.
    pub fn open(kind: AccelKind, _: &Config) -> anyhow::Result<Self> {
        if kind != KIND {
            bail!("{}", super::elsewhere(kind));
        }
        Ok(Self(Vm::new()?))
    }

    /// Whether it stops behind each instruction when asked to.
    pub fn steps(&self) -> anyhow::Result<()> {
        bail!("Hypervisor.framework is not made to execute single instructions here")
    }

    /// Whether it is better than the translator: it is there only where the processor has it.
    pub fn is_worth_it(&self) -> Result<(), String> {
        Ok(())
    }

    /// What a user is to know of it.
    pub fn warning(&self) -> Option<String> {
        Some("Hypervisor.framework has not been tried on hardware: -accel jit is what has".into())
    }

    /// Guest time is the board's: nothing to be ahead of.
    pub fn counter(&self, _: u64) -> Option<u64> {
        None
    }

    /// The rate of vCPUs' time-stamp counters under it: RDTSC exits, so it is as without.
    pub fn tsc_hz(&self) -> u64 {
        TSC_HZ
    }

    /// Whether they can run at this rate.
    pub fn has_rate(&self, _: u64) -> bool {
        true
    }

    fn missing(model: &CpuModel) -> Vec<(&'static str, mynah_cpu::model::features::Feature)> {
        hvf::missing(model, |leaf, index| {
            let r = std::arch::x86_64::__cpuid_count(leaf, index);
            [r.eax, r.ebx, r.ecx, r.edx]
        })
    }

    /// Has the model be what the processor can do, of its maker if the user names none; without the features that are
    /// missing, whose names these are.
    pub fn fit(&self, model: &mut CpuModel, cfg: &Config) -> Vec<&'static str> {
        if !cfg.cpu.properties.iter().any(|(name, _)| name == "vendor")
            && let Some(vendor) = Vendor::of_host()
        {
            model.vendor = vendor;
        }
        let missing = Self::missing(model);
        let features: Vec<_> = missing.iter().map(|(_, f)| *f).collect();
        model.without(&features);
        missing.into_iter().map(|(name, _)| name).collect()
    }

    /// Whether a guest that has begun elsewhere can go on here.
    pub fn goes_on_with(&self, model: &CpuModel, _: u64) -> anyhow::Result<()> {
        let missing: Vec<&str> = Self::missing(model).into_iter().map(|(name, _)| name).collect();
        if !missing.is_empty() {
            bail!(
                "the guest has a processor with {}, which this host's has not: start it without (-cpu MODEL,-FEATURE)",
                missing.join(", ")
            );
        }
        Ok(())
    }
}

impl Machine {
    pub fn new(host: Host, memory: &Arc<PhysMemory>) -> anyhow::Result<Self> {
        Ok(Self(hvf::Machine::new(host.0, memory)?))
    }

    /// One that follows another engine: refused by [`Host::steps`] before.
    pub fn stepping(host: Host, memory: &Arc<PhysMemory>) -> anyhow::Result<Self> {
        Self::new(host, memory)
    }

    pub fn vcpu(&self, cpu: &Cpu, _: u64) -> anyhow::Result<Box<dyn Accelerator>> {
        Ok(Box::new(self.0.vcpu(cpu)))
    }
}
