//! What a vCPU keeps while its compiled code is checked.
use mynah_mmu::PAGE_SIZE;
use std::collections::HashMap;

/// A page of host memory and what it held.
pub(crate) type Kept = (*mut u8, Box<[u8; PAGE_SIZE as usize]>);

/// Called with the description of the first difference; the vCPU stops then.
pub type Report = Box<dyn FnMut(String) + Send>;

/// What has been checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Entries of compiled code that were checked.
    pub entries: u64,
    /// Instructions in them.
    pub instructions: u64,
    /// Entries that were let through unchecked, having met something that cannot be done twice, or differed and looked
    /// at undefined flags.
    pub unchecked: u64,
    /// Entries that showed a difference, but not again: somebody else has written to memory meanwhile.
    pub void: u64,
}

/// The check of a vCPU, and how far it is.
pub(crate) struct Check {
    pub(super) report: Report,
    pub(super) every: u64,
    pub(super) entered: HashMap<(u64, u32), u64>,
    pub(super) done: Checked,
    pub(super) failed: bool,
}
