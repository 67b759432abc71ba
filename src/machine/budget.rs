//! How much memory a machine takes beside its guest's RAM, and what for.
//!
//! All that grows with what a guest executes has one bound, QEMU's `tb-size`: decoded blocks, compiled code of both
//! tiers, and what is known of it. A vCPU's TLB and tables, which grow to a fixed size, are in it as well. What is left
//! is divided:
//!
//! ```text
//!   regions of all vCPUs 1/4 (64 MiB at most) | each vCPU: its baseline 3/5, its decoded blocks 2/5
//! ```
//!
//! What is full is emptied (decoded blocks, the baseline) or gives up its oldest MiB (regions). Queues have bounds of
//! their own, in `devices/src/chardev`; they and the program itself are what is resident beside RAM and budget.
use crate::config::Config;

const MIB: u64 = 1 << 20;
/// The budget unless told otherwise, and how much more it is for each vCPU.
const USUAL: (u64, u64) = (384 * MIB, 128 * MIB);
/// A vCPU's TLB (17 tables of up to 16,384 entries), tables of jumps and of code by its bytes, and memory of what was
/// compiled before.
const VCPU: u64 = 32 * MIB;
/// The least that there is for regions, and for each vCPU's baseline and decoded blocks.
const LEAST: (u64, u64, u64) = (4 * MIB, 4 * MIB, 4 * MIB);
/// Regions never take more.
const REGIONS: u64 = 64 * MIB;

/// Bytes for each part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Regions that Cranelift has compiled, of all vCPUs.
    pub regions: usize,
    /// The baseline of each vCPU.
    pub baseline: usize,
    /// Decoded blocks of each vCPU.
    pub blocks: usize,
}

impl Budget {
    /// That of a machine.
    pub fn of(cfg: &Config) -> Self {
        let vcpus = u64::from(cfg.smp.cpus.max(1));
        let whole = cfg.code_memory.unwrap_or(USUAL.0 + vcpus * USUAL.1);
        Self::divide(whole, vcpus, super::engines::translates(cfg))
    }

    fn divide(whole: u64, vcpus: u64, translates: bool) -> Self {
        let left = whole.saturating_sub(vcpus * VCPU);
        let regions = if translates { (left / 4).min(REGIONS) } else { 0 };
        let each = (left - regions) / vcpus;
        let baseline = if translates { each / 5 * 3 } else { 0 };
        let bytes = |n: u64, least: u64| n.max(least) as usize;
        Self {
            regions: bytes(regions, LEAST.0),
            baseline: bytes(baseline, LEAST.1),
            blocks: bytes(each - baseline, LEAST.2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_no_more_than_the_whole() {
        for vcpus in [1, 2, 3, 8, 64, 255] {
            for whole in [USUAL.0 + vcpus * USUAL.1, 64 * MIB + vcpus * 48 * MIB, vcpus << 40] {
                for translates in [false, true] {
                    let b = Budget::divide(whole, vcpus, translates);
                    let parts = if translates { b.regions + vcpus as usize * b.baseline } else { 0 };
                    let all = parts as u64 + vcpus * (b.blocks as u64 + VCPU);
                    assert!(all <= whole, "{vcpus} {whole}: {b:?}");
                }
            }
        }
    }

    #[test]
    fn the_usual_one_is_this() {
        let b = Budget::of(&Config::default());
        let mib = |n: usize| n as u64 / MIB;
        assert_eq!((mib(b.regions), mib(b.baseline), mib(b.blocks)), (64, 249, 166));
    }
}
