//! Hardware acceleration: engines that let the host's hypervisor run a vCPU.
//!
//! [`kvm`] on Linux: a virtual machine over a guest's physical memory, a vCPU that takes a [`mynah_cpu::State`] and
//! gives it back, so that a running guest can be moved from the interpreter to KVM and back. What is there: memory
//! slots, general, segment and control registers, the x87 and SSE state, exits for ports, MMIO, HLT and shutdown. Not
//! yet: interrupt injection, MSRs beyond the syscall group, a machine option; so no guest is run by it but the ones in
//! its tests. Hypervisor.framework on Intel Macs is to come.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod kvm;

/// Why the host's hypervisor cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccelError {
    /// The device cannot be opened.
    #[error("KVM cannot be used: {what}: {reason}")]
    Kvm {
        /// What was tried.
        what: &'static str,
        /// The system's error.
        reason: String,
    },
}
