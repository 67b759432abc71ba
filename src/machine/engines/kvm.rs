//! KVM as one of a machine's engines.
use super::TSC_HZ;
use crate::config::{AccelKind, Config, KernelIrqchip};
use anyhow::{Context, bail};
use mynah_accel::kvm::probe::{self, Faults, Speed};
use mynah_accel::kvm::{self, Irqchip, Vm, selftest};
use mynah_cpu::model::Vendor;
use mynah_cpu::{Accelerator, Cpu, CpuModel};
use mynah_mmu::PhysMemory;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// What this is.
pub const KIND: AccelKind = AccelKind::Kvm;

/// KVM on this host, and where interrupt controllers are to be.
pub struct Host {
    kvm: kvm::Host,
    /// `None`: in the kernel, as far as that works.
    irqchip: Option<Irqchip>,
}

/// A machine's share of it.
pub struct Machine(Arc<Vm>);

/// Which trial it is that is remembered: another where more is tried.
const TRIAL: u32 = 2;

/// How KVM did when it was tried, and on what host.
#[derive(Serialize, Deserialize)]
struct Remembered {
    host: String,
    kernel_mips: f64,
    user_mips: f64,
    syscall_fault: bool,
    counter_fault: bool,
    /// Why its local APICs cannot be relied on.
    split_fault: Option<String>,
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
    /// Opens `/dev/kvm`, for what the user wants of it.
    pub fn open(kind: AccelKind, cfg: &Config) -> anyhow::Result<Self> {
        if kind != KIND {
            bail!("{}", super::elsewhere(kind));
        }
        let irqchip = cfg.machine.kernel_irqchip.map(|asked| match asked {
            KernelIrqchip::Off => Irqchip::Off,
            KernelIrqchip::Split => Irqchip::Split,
            KernelIrqchip::On => Irqchip::On,
        });
        if irqchip == Some(Irqchip::On) && (cfg.machine.board.has_second_ioapic)(&cfg.machine) {
            bail!(
                "kernel-irqchip=on: the kernel has one I/O APIC, and this board two: -M microvm,ioapic2=off has one, \
                 kernel-irqchip=split has both be Mynah's"
            );
        }
        Ok(Self { kvm: kvm::Host::open()?, irqchip })
    }

    /// Where interrupt controllers are: in the kernel if the user wants it, or does not care and it works.
    fn irqchip(&self) -> Irqchip {
        self.irqchip.unwrap_or_else(|| match split_fault() {
            None => Irqchip::Split,
            Some(_) => Irqchip::Off,
        })
    }

    /// Whether it stops behind each instruction when asked to.
    pub fn steps(&self) -> anyhow::Result<()> {
        Ok(probe::steps()?)
    }

    /// How fast it is, and what it does wrong: tried once for a host, and then remembered.
    fn trial(&self) -> anyhow::Result<(Speed, Faults)> {
        let host = this_host();
        if let Some(known) = remembered(&host) {
            return Ok((known.speed(), known.faults()));
        }
        let (speed, faults) = (probe::speed()?, probe::faults()?);
        let split_fault = selftest::split().err().map(|e| e.to_string());
        if let Some(file) = place() {
            let known = Remembered {
                host,
                kernel_mips: speed.kernel_mips,
                user_mips: speed.user_mips,
                syscall_fault: faults.syscall,
                counter_fault: faults.counter,
                split_fault,
            };
            // Another time, then.
            let _ = file.parent().map(std::fs::create_dir_all);
            let _ = serde_json::to_vec(&known).map(|bytes| std::fs::write(&file, bytes));
        }
        Ok((speed, faults))
    }

    /// Whether it is better than the translator; why not.
    pub fn is_worth_it(&self) -> Result<(), String> {
        match self.trial() {
            Err(e) => Err(format!("KVM does not work here: {e:#}")),
            Ok((speed, _)) if speed.is_slow() => Err(format!(
                "KVM is here, but executes {:.1} million instructions a second in kernel mode ({:.0} in user mode): this \
                 host is a virtual machine whose own host does not pass virtualization on",
                speed.kernel_mips, speed.user_mips
            )),
            Ok((_, faults)) if faults.syscall => {
                Err("KVM is here, but is emulated itself and has SYSCALL stay in user mode".into())
            }
            Ok(_) => Ok(()),
        }
    }

    /// What it does wrong, without the time that it takes to time it.
    fn faults(&self) -> Faults {
        static TRIED: OnceLock<Faults> = OnceLock::new();
        let tried = || probe::faults().unwrap_or_default();
        *TRIED.get_or_init(|| remembered(&this_host()).map_or_else(tried, |known| known.faults()))
    }

    /// What a guest will trip over here, and why it does not get what others get, for the user.
    pub fn warning(&self) -> Option<String> {
        let mut all = Vec::new();
        if self.faults().syscall {
            all.push(
                "this host's KVM, which is emulated itself, has SYSCALL stay in user mode: programs of 64-bit systems \
                 fail under it (-accel jit runs them)"
                    .to_owned(),
            );
        }
        // Only what is to be used is tried.
        match self.irqchip {
            Some(Irqchip::Off) => {}
            Some(Irqchip::On) => {
                if let Err(why) = selftest::on() {
                    all.push(format!("kernel-irqchip=on: {why}"));
                }
            }
            Some(Irqchip::Split) => {
                all.extend(split_fault().map(|why| format!("kernel-irqchip=split: {why}")))
            }
            None => {
                let told = |why| format!("local APICs are Mynah's (kernel-irqchip=off): {why}");
                all.extend(split_fault().map(told));
            }
        }
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// What the counters of vCPUs of this rate have to begin with so that they are the host's, if this is an emulated
    /// KVM whose counters are that whatever they are set to.
    pub fn counter(&self, hz: u64) -> Option<u64> {
        let fixed = self.kvm.fixed_tsc_hz() == Some(hz) && self.faults().counter;
        // SAFETY: every x86-64 processor has RDTSC.
        fixed.then(|| unsafe { std::arch::x86_64::_rdtsc() })
    }

    /// The rate of vCPUs' time-stamp counters under it.
    pub fn tsc_hz(&self) -> u64 {
        self.kvm.fixed_tsc_hz().unwrap_or(TSC_HZ)
    }

    /// Whether they can run at this rate.
    pub fn has_rate(&self, hz: u64) -> bool {
        self.kvm.fixed_tsc_hz().is_none_or(|fixed| fixed == hz)
    }

    /// Has the model be what KVM can do here: of the host's maker, as with QEMU, if the user names none; without the
    /// features that are missing, whose names these are.
    pub fn fit(&self, model: &mut CpuModel, cfg: &Config) -> Vec<&'static str> {
        if !cfg.cpu.properties.iter().any(|(name, _)| name == "vendor")
            && let Some(vendor) = Vendor::of_host()
        {
            model.vendor = vendor;
        }
        let missing = self.kvm.missing(model);
        let features: Vec<_> = missing.iter().map(|(_, f)| *f).collect();
        model.without(&features);
        missing.into_iter().map(|(name, _)| name).collect()
    }

    /// Whether a guest that has begun elsewhere can go on here.
    pub fn goes_on_with(&self, model: &CpuModel, tsc_hz: u64) -> anyhow::Result<()> {
        let missing: Vec<&str> = self.kvm.missing(model).into_iter().map(|(name, _)| name).collect();
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
        let irqchip = host.irqchip();
        Ok(Self(Vm::with(host.kvm, memory, irqchip)?))
    }

    /// One that follows another engine, whose interrupt controllers are the board's.
    pub fn stepping(host: Host, memory: &Arc<PhysMemory>) -> anyhow::Result<Self> {
        Ok(Self(Vm::new(host.kvm, memory)?))
    }

    pub fn vcpu(&self, cpu: &Cpu, tsc_hz: u64) -> anyhow::Result<Box<dyn Accelerator>> {
        Ok(Box::new(self.0.vcpu(cpu, tsc_hz).context("a vCPU")?))
    }
}

/// Why the kernel's local APICs cannot be relied on here, if so.
fn split_fault() -> Option<String> {
    static TRIED: OnceLock<Option<String>> = OnceLock::new();
    let tried = || selftest::split().err().map(|e| e.to_string());
    TRIED.get_or_init(|| remembered(&this_host()).map_or_else(tried, |known| known.split_fault)).clone()
}

/// What the speed depends on: processor, kernel, and boot.
fn this_host() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu =
        read("/proc/cpuinfo").lines().find(|l| l.starts_with("model name")).unwrap_or_default().to_owned();
    let (kernel, boot) = (read("/proc/version"), read("/proc/sys/kernel/random/boot_id"));
    format!("{TRIAL}; {cpu}; {}; {}", kernel.trim(), boot.trim())
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
