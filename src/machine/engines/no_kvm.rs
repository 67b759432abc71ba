//! KVM on a host that has none.
use crate::config::Config;
use anyhow::bail;
use mynah_cpu::{Accelerator, Cpu, CpuModel};
use mynah_mmu::PhysMemory;
use std::convert::Infallible;
use std::sync::Arc;

/// There is none.
pub struct Host(Infallible);

/// There is none.
pub struct Machine(Infallible);

/// There is none.
pub struct Speed {
    pub kernel_mips: f64,
    pub user_mips: f64,
}

/// There are none.
pub struct Faults {
    pub syscall: bool,
}

impl Speed {
    pub fn is_slow(&self) -> bool {
        true
    }
}

impl Host {
    pub fn open(_: &Config) -> anyhow::Result<Self> {
        bail!("KVM is Linux's, on x86-64: this host has none")
    }
    pub fn steps(&self) -> anyhow::Result<()> {
        match self.0 {}
    }
    pub fn trial(&self) -> anyhow::Result<(Speed, Faults)> {
        match self.0 {}
    }
    pub fn warning(&self) -> Option<String> {
        match self.0 {}
    }
    pub fn counter(&self, _: u64) -> Option<u64> {
        match self.0 {}
    }
    pub fn tsc_hz(&self) -> u64 {
        match self.0 {}
    }
    pub fn has_rate(&self, _: u64) -> bool {
        match self.0 {}
    }
    pub fn fit(&self, _: &mut CpuModel, _: &Config) -> Vec<&'static str> {
        match self.0 {}
    }
    pub fn goes_on_with(&self, _: &CpuModel, _: u64) -> anyhow::Result<()> {
        match self.0 {}
    }
}

impl Machine {
    pub fn new(host: Host, _: &Arc<PhysMemory>) -> anyhow::Result<Self> {
        match host.0 {}
    }
    pub fn stepping(host: Host, _: &Arc<PhysMemory>) -> anyhow::Result<Self> {
        match host.0 {}
    }
    pub fn vcpu(&self, _: &Cpu, _: u64) -> anyhow::Result<Box<dyn Accelerator>> {
        match self.0 {}
    }
}
