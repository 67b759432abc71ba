//! Hardware acceleration: engines that let the host's hypervisor run a vCPU.
//!
//! [`kvm`] on Linux; [`hvf`], Hypervisor.framework, on Intel Macs, which has not been run on hardware.

pub mod cpuid;
pub mod hvf;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod kvm;
pub mod xsave;

/// Why the host's hypervisor cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccelError {
    /// There is no device.
    #[error(
        "{0} does not exist: this kernel has no KVM (modprobe kvm_intel or kvm_amd; in a virtual machine, its host has to \
         allow nested virtualization; in a container, pass the device to it)"
    )]
    Absent(String),
    /// The device may not be opened.
    #[error("{path}: permission denied: {remedy}")]
    Forbidden {
        /// The device.
        path: String,
        /// What to do.
        remedy: String,
    },
    /// What is there is not KVM.
    #[error("{0} is not KVM's device")]
    NotKvm(String),
    /// Somebody else has the processor's virtualization.
    #[error("{0} is busy: another hypervisor (VirtualBox, VMware) has the processor; stop its machines")]
    Busy(String),
    /// KVM of another age.
    #[error("{path}: its API has version {version}, not 12: this kernel is too old")]
    Version {
        /// The device.
        path: String,
        /// What it says.
        version: i32,
    },
    /// KVM is there, and lacks something.
    #[error("this kernel's KVM has no support for {0}: it is too old")]
    Lacks(&'static str),
    /// Something went wrong.
    #[error("KVM cannot {what}: {reason}")]
    Kvm {
        /// What was tried.
        what: &'static str,
        /// The system's error.
        reason: String,
    },
}
