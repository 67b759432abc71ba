//! `-stats`: what a run has counted, as JSON, for those who compare runs.
use serde::{Deserialize, Serialize};

/// What a run has counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// The engine that ran the vCPUs at the end.
    pub engine: String,
    /// Guest time in seconds, from power-on.
    pub guest_seconds: f64,
    /// Each vCPU's.
    pub vcpus: Vec<VcpuStats>,
}

/// What a vCPU has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStats {
    /// Instructions that interpreter and translator have executed. What KVM executes nobody counts.
    pub instructions: u64,
    /// Those of them in compiled code.
    pub in_compiled_code: u64,
    /// How often KVM came back with something to be done.
    pub exits: u64,
}

impl Stats {
    /// Of all vCPUs together.
    pub fn sum(&self, of: impl Fn(&VcpuStats) -> u64) -> u64 {
        self.vcpus.iter().map(of).sum()
    }
}
