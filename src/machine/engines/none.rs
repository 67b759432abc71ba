//! Hardware acceleration on a host that has none.
use crate::config::{AccelKind, Config};
use anyhow::bail;
use mynah_cpu::{Accelerator, Cpu, CpuModel};
use mynah_mmu::PhysMemory;
use std::convert::Infallible;
use std::sync::Arc;

/// What `auto` would look for.
pub const KIND: AccelKind = AccelKind::Kvm;

/// There is none.
pub struct Host(Infallible);

/// There is none.
pub struct Machine(Infallible);

impl Host {
    pub fn open(kind: AccelKind, _: &Config) -> anyhow::Result<Self> {
        bail!("{}", super::elsewhere(kind))
    }
    pub fn steps(&self) -> anyhow::Result<()> {
        match self.0 {}
    }
    pub fn is_worth_it(&self) -> Result<(), String> {
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
