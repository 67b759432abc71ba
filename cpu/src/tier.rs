//! A faster tier above the interpreter: code that a translator has made for hot blocks, run by the interpreter's own
//! chain.
//!
//! A block starts out with a first op that counts ([`count`]); when it has run [`hot_after`](Cpu::set_tier) times, the
//! tier is told of it. The tier compiles where and when it likes, and [`Cpu::install`]s the code: the first op's
//! handler is then [`run_code`], which enters it. So links, the jump cache and the dispatcher know nothing of tiers,
//! and both run side by side at no cost to either.
//!
//! Code made from several blocks is taken away from its head as soon as one of them dies.
use crate::arena::{Arena, List};
use crate::cpu::Cpu;
use crate::op::{Handler, Op};
use std::cell::Cell;

/// A function that compiled code is entered by, or calls, in the one calling convention that such code has on this
/// processor under every operating system: System V's on x86-64, so that the emitters know of one; C's elsewhere.
///
/// `code_abi! { fn(u64) -> u32 }` is the type of a pointer to one; with attributes, a visibility, a name and a body it
/// is the function.
#[cfg(target_arch = "x86_64")]
#[macro_export]
macro_rules! code_abi {
    (fn($($t:ty),*) -> $r:ty) => { unsafe extern "sysv64" fn($($t),*) -> $r };
    ($(#[$a:meta])* $v:vis fn $n:ident($($p:tt: $t:ty),* $(,)?) -> $r:ty $b:block) => {
        $(#[$a])* $v unsafe extern "sysv64" fn $n($($p: $t),*) -> $r $b
    };
}
/// See the same for x86-64.
#[cfg(not(target_arch = "x86_64"))]
#[macro_export]
macro_rules! code_abi {
    (fn($($t:ty),*) -> $r:ty) => { unsafe extern "C" fn($($t),*) -> $r };
    ($(#[$a:meta])* $v:vis fn $n:ident($($p:tt: $t:ty),* $(,)?) -> $r:ty $b:block) => {
        $(#[$a])* $v unsafe extern "C" fn $n($($p: $t),*) -> $r $b
    };
}

/// Enters compiled code: takes the vCPU, the code's ops, RIP, and the code; returns why the code (or what it has gone
/// on to) was left, with the state in memory complete.
pub type Enter = code_abi! { fn(*mut Cpu, *const Op, u64, *const u8) -> u32 };

/// Memory of the tier's own, which its code reaches from the vCPU's pointer.
#[repr(C, align(64))]
pub struct TierMemory(pub [u8; 1024]);

/// Execution goes on at RIP.
pub const LEFT_NEXT: u32 = 1;
/// The interpreter must execute the instruction at RIP, which has not begun.
pub const LEFT_INTERPRET: u32 = 3;
/// An interpreter's handler has stopped, perhaps with a fault to be delivered.
pub(crate) const LEFT_STOPPED: u32 = 4;
/// The block at RIP, of the baseline, has run often.
pub const LEFT_HOT: u32 = 6;
/// A bit in [`Compiled::ops`] that says that the rest is not ops but where baseline code goes on that has registers
/// and flags in its own places.
pub const BASELINE: u64 = 1;

/// A jump in a tier's code that leads straight to the code of a block.
#[derive(Clone, Copy)]
pub struct Link {
    /// The jump's displacement, where it can be written.
    pub at: *mut u8,
    /// The displacement to have when the block's code is taken away.
    pub back: i32,
}

/// Code for a block.
#[derive(Clone, Copy)]
pub struct Compiled {
    /// What it is entered by.
    pub enter: Enter,
    /// The code.
    pub code: *const u8,
    /// Its ops.
    pub ops: *const Op,
}

/// The entry that an address has in a table of so many.
#[inline(always)]
fn entry_for(address: u64, entries: usize) -> usize {
    (address ^ (address >> 12)) as usize & (entries - 1)
}

/// Entries of the table that compiled code finds other code in.
pub const CODE_JUMPS: usize = 1 << 16;

/// Compiled code known at a linear address.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CodeJump {
    /// The address.
    pub lin: u64,
    /// The [`mynah_mmu::TlbView::code_tags`] under which the code is there.
    pub tag: u64,
    /// The code.
    pub code: *const u8,
    /// Its ops.
    pub ops: *const Op,
}

impl CodeJump {
    /// No code: no tag is 0.
    pub(crate) const NONE: Self = Self { lin: 0, tag: 0, code: std::ptr::null(), ops: std::ptr::null() };

    /// The entry that a linear address has.
    #[inline(always)]
    pub(crate) fn index(lin: u64) -> usize {
        entry_for(lin, CODE_JUMPS)
    }
}

/// Entries of the table that compiled code finds other code in by where its bytes are.
pub const CODE_PLACES: usize = 1 << 18;

/// Compiled code known by where the bytes that it was made from are in the host's memory, under whatever linear
/// address: it outlives flushes of the TLB. Blocks that cross a page are not here.
///
/// Entries are small, and those of code that follows other code lie together: a table of this size is more than the
/// host's caches hold, and what is looked for here was not executed lately.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CodePlace {
    /// The host's address of the first byte, which is in the guest's RAM, with the key given to
    /// [`mynah_mmu::Tlb::set_code_key`] in the highest byte: see [`Self::name`].
    pub name: u64,
    /// The ops of the code.
    pub ops: *const Op,
}

impl CodePlace {
    /// No code: nothing is at 0.
    pub(crate) const NONE: Self = Self { name: 0, ops: std::ptr::null() };

    /// By what code is found: addresses of the host's memory leave the highest byte alone.
    #[inline(always)]
    pub(crate) fn name(host: u64, key: u8) -> u64 {
        host | u64::from(key) << PLACE_KEY_SHIFT
    }

    /// The entry that an address has.
    #[inline(always)]
    pub(crate) fn index(host: u64) -> usize {
        (host ^ host >> PLACE_FOLD) as usize >> PLACE_GRAIN & (CODE_PLACES - 1)
    }
}

/// Where a [`CodePlace`]'s name has the key.
pub const PLACE_KEY_SHIFT: u32 = 56;
/// By how much an address is shifted before it is folded into itself to choose an entry.
pub const PLACE_FOLD: u32 = 11;
/// So many of the lowest bits of an address choose no entry.
pub const PLACE_GRAIN: u32 = 2;

/// Where code goes on that a call was made from.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Return {
    /// The linear address.
    pub lin: u64,
    /// As in [`CodeJump::tag`].
    pub tag: u64,
    /// Code for that address, which may be entered by a jump from the tier's other code; or its code that looks for
    /// some.
    pub code: *const u8,
    /// Makes it a power of two.
    unused: u64,
}

impl Return {
    const NONE: Self = Self { lin: 0, tag: 0, code: std::ptr::null(), unused: 0 };
}

/// The returns that are to be expected, for the tier's code: a call adds one, and a return takes the latest. All are
/// forgotten when the code of any block is taken away, as one may name it.
#[repr(C)]
pub struct Returns {
    /// The latest and those before it, as a ring.
    pub slots: [Return; Self::SLOTS],
    /// The latest slot's number times [`Self::STEP`]; it wraps around.
    pub latest: u8,
}

impl Returns {
    /// How many are remembered.
    pub const SLOTS: usize = 16;
    /// From a slot to the next, in [`Self::latest`].
    pub const STEP: u8 = (256 / Self::SLOTS) as u8;
    /// None.
    pub(crate) const NONE: Self = Self { slots: [Return::NONE; Self::SLOTS], latest: 0 };

    /// No tag is 0.
    pub(crate) fn forget(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.tag = 0);
    }
}

/// What makes code.
pub trait Tier: Send {
    /// The vCPU that the tier is given to: its code may run from now on.
    fn attach(&mut self, cpu: &mut Cpu);
    /// The block at this physical address, under this mode key, is hot. Called on the vCPU's thread, with no code of
    /// this tier executing.
    fn hot(&mut self, cpu: &mut Cpu, phys: u64, key: u32);
    /// The number of executions after which [`Self::known`] is asked for a block's code.
    fn known_after(&self) -> u32 {
        u32::MAX
    }
    /// The block has run a few times: it may get code that there is already. Called as [`Self::hot`] is.
    fn known(&mut self, _cpu: &mut Cpu, _phys: u64, _key: u32) {}
    /// The block, which has code, was left with [`LEFT_HOT`]. Called as `hot` is.
    fn hotter(&mut self, cpu: &mut Cpu, phys: u64, key: u32) {
        let _ = (cpu, phys, key);
    }
    /// [`crate::board::EV_TIER`] was raised: code may be ready to be installed.
    fn ready(&mut self, cpu: &mut Cpu);
    /// What [`Cpu::record`] was asked for. Called as `hot` is.
    fn recorded(&mut self, cpu: &mut Cpu, blocks: Vec<Recorded>) {
        let _ = (cpu, blocks);
    }
}

/// A block with code that was executed while that was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Recorded {
    /// Physical address.
    pub phys: u64,
    /// Mode key.
    pub key: u32,
    /// Linear address.
    pub lin: u64,
}

/// Blocks that are being recorded, and how many there are to be.
pub(crate) struct Recording {
    pub blocks: Vec<Recorded>,
    pub most: usize,
}

/// What the tiers keep with a block.
pub(crate) struct BlockTier {
    /// The handler of the first op, behind what counts or enters code.
    pub first: Cell<Handler>,
    pub heat: Cell<u32>,
    pub code: Cell<Option<Compiled>>,
    /// The tier's own number for the block, or [`NO_NUMBER`].
    number: Cell<u32>,
    /// Heads of the code that this block went into.
    pub heads: List<(u64, u32)>,
    /// Entries of the table of [`CodeJump`]s that may name its code.
    pub jumps: Cell<Jumps>,
    /// The entry of the table of [`CodePlace`]s that may name its code.
    pub place: Cell<u32>,
    /// Jumps that lead to its code.
    pub links: List<Link>,
}

/// A block that the tier has given no number.
const NO_NUMBER: u32 = u32::MAX;

/// The first few entries of a table that name a block, and how many there are.
#[derive(Clone, Copy, Default)]
pub(crate) struct Jumps {
    number: u16,
    first: [u16; 5],
}

impl Jumps {
    /// Takes note of an entry.
    #[inline]
    pub fn add(&mut self, at: u16) {
        let n = usize::from(self.number);
        if self.first[..n.min(self.first.len())].contains(&at) {
            return;
        }
        if let Some(s) = self.first.get_mut(n) {
            *s = at;
        }
        self.number = self.number.saturating_add(1);
    }

    /// The entries; `None` if they are too many, and any may name the block.
    pub fn known(&self) -> Option<&[u16]> {
        self.first.get(..usize::from(self.number))
    }
}

impl BlockTier {
    pub(crate) fn new(first: Handler) -> Self {
        Self {
            first: Cell::new(first),
            heat: Cell::new(0),
            code: Cell::new(None),
            number: Cell::new(NO_NUMBER),
            heads: List::new(),
            jumps: Cell::default(),
            place: Cell::default(),
            links: List::new(),
        }
    }

    /// Has no jump lead to its code any more.
    pub(crate) fn sever(&self, arena: &mut Arena) {
        for l in self.links.iter() {
            // SAFETY: see `Cpu::link_code`.
            unsafe { l.at.cast::<i32>().write_unaligned(l.back) };
        }
        self.links.clear(arena);
    }

    /// Gives back what it has of the arena; nobody looks at it any more.
    pub(crate) fn drop_lists(&self, arena: &mut Arena) {
        self.links.clear(arena);
        self.heads.clear(arena);
    }

    /// The tier's number for the block, if it has given one.
    pub(crate) fn number(&self) -> Option<u32> {
        Some(self.number.get()).filter(|&n| n != NO_NUMBER)
    }

    /// Gives the block a number.
    pub(crate) fn set_number(&self, number: u32) {
        self.number.set(number);
    }

    /// Takes the number away.
    pub(crate) fn forget_number(&self) {
        self.number.set(NO_NUMBER);
    }

    /// The block's code, if it has any.
    pub(crate) fn compiled(&self) -> Option<Compiled> {
        self.code.get()
    }

    /// The block dies: whose code it went into.
    pub(crate) fn die(&self, arena: &mut Arena) -> Vec<(u64, u32)> {
        self.sever(arena);
        self.code.set(None);
        let heads = self.heads.iter().collect();
        self.heads.clear(arena);
        heads
    }
}
