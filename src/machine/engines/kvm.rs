//! KVM as one of a machine's engines.
use super::TSC_HZ;
use crate::config::{AccelKind, Config};
use anyhow::{Context, bail};
use mynah_accel::kvm::probe::{self, Faults, Speed};
use mynah_accel::kvm::{self, Vm};
use mynah_cpu::model::Vendor;
use mynah_cpu::{Accelerator, Cpu, CpuModel};
use mynah_mmu::PhysMemory;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// KVM on this host.
pub struct Host(kvm::Host);

/// A machine's share of it.
pub struct Machine(Arc<Vm>);

/// How KVM did when it was tried, and on what host.
#[derive(Serialize, Deserialize)]
struct Remembered {
    host: String,
    kernel_mips: f64,
    user_mips: f64,
    syscall_fault: bool,
    counter_fault: bool,
}

impl Remembered {
    fn speed(&self) -> Speed {
        Speed { kernel_mips: self.kernel_mips, user_mips: self.user_mips }
    }

    fn faults(&self) -> Faults {
        Faults { syscall: self.syscall_fault, counter: self.counter_fault }
    }
}

impl Host {
    /// Opens `/dev/kvm`, if what the user wants of it is there.
    pub fn open(cfg: &Config) -> anyhow::Result<Self> {
        for accel in cfg.accel.iter().filter(|a| a.kind == AccelKind::Kvm) {
            if let Some((_, value)) = accel.properties.iter().find(|(k, _)| k == "kernel-irqchip")
                && value != "off"
            {
                bail!(
                    "kernel-irqchip={value}: interrupt controllers are all Mynah's; kernel-irqchip=off is what there is"
                );
            }
        }
        Ok(Self(kvm::Host::open()?))
    }

    /// Whether it stops behind each instruction when asked to.
    pub fn steps(&self) -> anyhow::Result<()> {
        Ok(probe::steps()?)
    }

    /// How fast it is, and what it does wrong: tried once for a host, and then remembered.
    pub fn trial(&self) -> anyhow::Result<(Speed, Faults)> {
        let host = this_host();
        if let Some(known) = remembered(&host) {
            return Ok((known.speed(), known.faults()));
        }
        let (speed, faults) = (probe::speed()?, probe::faults()?);
        if let Some(file) = place() {
            let known = Remembered {
                host,
                kernel_mips: speed.kernel_mips,
                user_mips: speed.user_mips,
                syscall_fault: faults.syscall,
                counter_fault: faults.counter,
            };
            // Another time, then.
            let _ = file.parent().map(std::fs::create_dir_all);
            let _ = serde_json::to_vec(&known).map(|bytes| std::fs::write(&file, bytes));
        }
        Ok((speed, faults))
    }

    /// What it does wrong, without the time that it takes to time it.
    fn faults(&self) -> Faults {
        static TRIED: OnceLock<Faults> = OnceLock::new();
        let tried = || probe::faults().unwrap_or_default();
        *TRIED.get_or_init(|| remembered(&this_host()).map_or_else(tried, |known| known.faults()))
    }

    /// What a guest will trip over here, for the user.
    pub fn warning(&self) -> Option<String> {
        self.faults().syscall.then(|| {
            "this host's KVM, which is emulated itself, has SYSCALL stay in user mode: programs of 64-bit systems fail \
             under it (-accel jit runs them)"
                .into()
        })
    }

    /// What the counters of vCPUs of this rate have to begin with so that they are the host's, if this is an emulated
    /// KVM whose counters are that whatever they are set to.
    pub fn counter(&self, hz: u64) -> Option<u64> {
        let fixed = self.0.fixed_tsc_hz() == Some(hz) && self.faults().counter;
        // SAFETY: every x86-64 processor has RDTSC.
        fixed.then(|| unsafe { std::arch::x86_64::_rdtsc() })
    }

    /// The rate of vCPUs' time-stamp counters under it.
    pub fn tsc_hz(&self) -> u64 {
        self.0.fixed_tsc_hz().unwrap_or(TSC_HZ)
    }

    /// Whether they can run at this rate.
    pub fn has_rate(&self, hz: u64) -> bool {
        self.0.fixed_tsc_hz().is_none_or(|fixed| fixed == hz)
    }

    /// Has the model be what KVM can do here: of the host's maker, as with QEMU, if the user names none; without the
    /// features that are missing, whose names these are.
    pub fn fit(&self, model: &mut CpuModel, cfg: &Config) -> Vec<&'static str> {
        if !cfg.cpu.properties.iter().any(|(name, _)| name == "vendor")
            && let Some(vendor) = Vendor::of_host()
        {
            model.vendor = vendor;
        }
        let missing = self.0.missing(model);
        let features: Vec<_> = missing.iter().map(|(_, f)| *f).collect();
        model.without(&features);
        missing.into_iter().map(|(name, _)| name).collect()
    }

    /// Whether a guest that has begun elsewhere can go on here.
    pub fn goes_on_with(&self, model: &CpuModel, tsc_hz: u64) -> anyhow::Result<()> {
        let missing: Vec<&str> = self.0.missing(model).into_iter().map(|(name, _)| name).collect();
        if !missing.is_empty() {
            bail!(
                "the guest has a processor with {}, which this host's KVM has not: start it without (-cpu MODEL,-FEATURE)",
                missing.join(", ")
            );
        }
        if !self.has_rate(tsc_hz) {
            let hz = self.tsc_hz();
            bail!(
                "the guest's time-stamp counter runs at {tsc_hz} Hz, and this host's KVM has it run at {hz} Hz: start it \
                 with -cpu MODEL,tsc-frequency={hz}"
            );
        }
        Ok(())
    }
}

impl Machine {
    pub fn new(host: Host, memory: &Arc<PhysMemory>) -> anyhow::Result<Self> {
        Ok(Self(Vm::new(host.0, memory)?))
    }

    pub fn vcpu(&self, cpu: &Cpu, tsc_hz: u64) -> anyhow::Result<Box<dyn Accelerator>> {
        Ok(Box::new(self.0.vcpu(cpu, tsc_hz).context("a vCPU")?))
    }
}

/// What the speed depends on: processor, kernel, and boot.
fn this_host() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu =
        read("/proc/cpuinfo").lines().find(|l| l.starts_with("model name")).unwrap_or_default().to_owned();
    format!("{cpu}; {}; {}", read("/proc/version").trim(), read("/proc/sys/kernel/random/boot_id").trim())
}

/// What is remembered of this host.
fn remembered(host: &str) -> Option<Remembered> {
    let known: Remembered = serde_json::from_slice(&std::fs::read(place()?).ok()?).ok()?;
    (known.host == host).then_some(known)
}

/// The file where it is remembered, in the user's cache folder.
fn place() -> Option<PathBuf> {
    Some(super::inside::cache_folder()?.parent()?.join("kvm-speed.json"))
}
