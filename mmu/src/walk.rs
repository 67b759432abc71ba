//! Page walks: 32-bit, PAE, 4-level and 5-level paging.
//!
//! Source: Intel SDM volume 3A, chapter 4 (paging), 4.6 (access rights), 4.7 (page-fault exceptions), 4.8
//! (accessed and dirty flags).
//!
//! One function walks all formats; they differ in entry size, number of levels, and masks. A walk collects
//! the entries it uses and decides about the access first; then it sets the accessed and dirty flags from the
//! top down, each by compare-and-exchange, and starts again if an entry has changed meanwhile. A translation
//! that faults sets no flag.
//!
//! Entries are read from RAM and ROM only; one that lies anywhere else reads as all ones. Whether a linear
//! address is canonical is the caller's business; outside IA-32e mode only its low 32 bits count. There are
//! no protection keys for supervisor pages, and no shadow stacks. 1 GiB pages exist in 4-level and 5-level
//! paging whatever CPUID says.
use crate::{Gpa, Mode, PAGE_SIZE, PhysMemory};

/// The registers that paging depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Paging {
    /// CR0 (PG, WP).
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4 (PSE, PAE, PGE, LA57, SMEP, SMAP, PKE).
    pub cr4: u64,
    /// EFER (LMA, NXE).
    pub efer: u64,
    /// PKRU.
    pub pkru: u32,
    /// The four PDPTEs that a CR3 load read, under PAE paging.
    pub pdpte: [u64; 4],
    /// Physical address bits that exist (MAXPHYADDR).
    pub phys_bits: u8,
    /// Mask put on physical addresses (A20 gate); all ones when it is open.
    pub a20_mask: u64,
}

/// What an access wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// A write.
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// On whose behalf.
    pub mode: crate::Mode,
}

/// A finished translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Physical address of the byte asked for (A20 applied).
    pub gpa: Gpa,
    /// Size of the guest's page.
    pub page_size: u64,
    /// Data reads are allowed in this mode.
    pub readable: bool,
    /// Writes are allowed in this mode and the dirty flag is set, so that no walk is needed for them.
    pub writable: bool,
    /// Fetches are allowed in this mode.
    pub executable: bool,
    /// The translation is global.
    pub global: bool,
    /// The paging-structure entry that maps the page has its user bit set at every level.
    pub user: bool,
}

/// The error code of a #PF (SDM volume 3A, figure 4-12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault(pub u32);

impl PageFault {
    /// P: the translation exists (protection), or used a reserved bit.
    pub const P: u32 = 1 << 0;
    /// W/R: the access was a write.
    pub const WR: u32 = 1 << 1;
    /// U/S: the access was a user-mode one.
    pub const US: u32 = 1 << 2;
    /// RSVD: a paging-structure entry has a reserved bit set.
    pub const RSVD: u32 = 1 << 3;
    /// I/D: the access was an instruction fetch (under NXE or SMEP).
    pub const ID: u32 = 1 << 4;
    /// PK: the protection key forbids the access.
    pub const PK: u32 = 1 << 5;
}

const CR0_WP: u64 = 1 << 16;
pub(crate) const CR0_PG: u64 = 1 << 31;
pub(crate) const CR4_PSE: u64 = 1 << 4;
pub(crate) const CR4_PAE: u64 = 1 << 5;
const CR4_PGE: u64 = 1 << 7;
pub(crate) const CR4_LA57: u64 = 1 << 12;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const CR4_PKE: u64 = 1 << 22;
pub(crate) const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

// Flags of a paging-structure entry (SDM volume 3A, tables 4-4 to 4-20).
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE_SIZE_BIT: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;

/// The levels of the deepest format.
const MAX_LEVELS: usize = 5;

/// Ones from bit `low` up to bit `high`, both included; none if `low > high`.
const fn bits(low: u32, high: u32) -> u64 {
    if low > high { 0 } else { (u64::MAX >> (63 - (high - low))) << low }
}

impl Paging {
    /// MAXPHYADDR, kept within what the formats can express.
    fn max_phy_addr(&self) -> u32 {
        u32::from(self.phys_bits).clamp(32, 52)
    }

    fn no_execute_enabled(&self) -> bool {
        self.cr4 & CR4_PAE != 0 && self.efer & EFER_NXE != 0
    }

    /// The error code of a fault on `access`, before P, RSVD and PK.
    fn error_code(&self, access: Access) -> u32 {
        let mut code = 0;
        if access.write {
            code |= PageFault::WR;
        }
        if access.mode == Mode::User {
            code |= PageFault::US;
        }
        if access.fetch && (self.no_execute_enabled() || self.cr4 & CR4_SMEP != 0) {
            code |= PageFault::ID;
        }
        code
    }
}

/// What the entries of one walk say together.
struct Rights {
    /// R/W is set at every level.
    writable: bool,
    /// U/S is set at every level.
    user: bool,
    /// XD is set at some level, and EFER.NXE.
    no_execute: bool,
    /// The protection key of the page, if keys are in use.
    key: Option<u32>,
}

/// What a mode may do with a page.
struct Allowed {
    read: bool,
    write: bool,
    fetch: bool,
    /// The key forbids reads, and writes.
    key_denies: (bool, bool),
}

impl Rights {
    /// SDM volume 3A, 4.6.1 (access rights) and 4.6.2 (protection keys).
    fn allowed(&self, p: &Paging, mode: Mode) -> Allowed {
        let user_mode = mode == Mode::User;
        let write_protect = p.cr0 & CR0_WP != 0;
        let data = match mode {
            Mode::User => self.user,
            Mode::Super => !(self.user && p.cr4 & CR4_SMAP != 0),
            Mode::SuperAc => true,
        };
        let fetch = match mode {
            Mode::User => self.user,
            Mode::Super | Mode::SuperAc => !(self.user && p.cr4 & CR4_SMEP != 0),
        };
        let key_denies = match self.key {
            Some(key) if self.user => {
                let rights = p.pkru >> (2 * key);
                let (access_disable, write_disable) = (rights & 1 != 0, rights & 2 != 0);
                (access_disable, access_disable || write_disable && (user_mode || write_protect))
            }
            _ => (false, false),
        };
        Allowed {
            read: data && !key_denies.0,
            write: data && (self.writable || !user_mode && !write_protect) && !key_denies.1,
            fetch: fetch && !self.no_execute,
            key_denies,
        }
    }
}

/// A format of paging structures, with the registers applied that change it.
struct Format {
    /// Physical address of the first table.
    root: u64,
    /// Reserved in every entry that is present.
    reserved: u64,
    /// Levels (as a bit mask) at which PS makes an entry map a page; at other levels it is reserved or, at
    /// level 1, something else.
    large: u32,
    /// Reserved in entries that map a large page, at levels 2 and 3.
    large_reserved: [u64; 2],
    /// Levels at which PS is reserved.
    ps_reserved: u32,
    /// Physical address bits of an entry that names a table or a 4 KiB page.
    address: u64,
}

/// Translates `lin`, setting accessed and dirty flags atomically as the access demands. Without CR0.PG the
/// translation is the identity.
pub fn walk(mem: &PhysMemory, p: &Paging, lin: u64, access: Access) -> Result<Translation, PageFault> {
    if p.cr0 & CR0_PG == 0 {
        return Ok(Translation {
            gpa: lin & 0xffff_ffff & p.a20_mask,
            page_size: PAGE_SIZE,
            readable: true,
            writable: true,
            executable: true,
            global: false,
            user: true,
        });
    }
    let physical = bits(12, p.max_phy_addr() - 1);
    let no_execute = if p.no_execute_enabled() { 0 } else { NO_EXECUTE };
    if p.cr4 & CR4_PAE == 0 {
        // SDM volume 3A, 4.3. Bits 20:13 of a 4 MiB PDE are physical address bits 39:32 (PSE-36), as far as
        // they exist.
        let format = Format {
            root: p.cr3 & bits(12, 31),
            reserved: 0,
            large: if p.cr4 & CR4_PSE != 0 { 1 << 2 } else { 0 },
            large_reserved: [bits(13 + p.max_phy_addr().min(40) - 32, 21), 0],
            ps_reserved: 0,
            address: bits(12, 31),
        };
        return walk_tables::<4, 2>(mem, p, &format, lin & 0xffff_ffff, access);
    }
    let long = Format {
        root: p.cr3 & physical,
        reserved: bits(p.max_phy_addr(), 51) | no_execute,
        large: 1 << 2 | 1 << 3,
        large_reserved: [bits(13, 20), bits(13, 29)],
        ps_reserved: 1 << 4 | 1 << 5,
        address: physical,
    };
    if p.efer & EFER_LMA == 0 {
        // SDM volume 3A, 4.4. The PDPTEs are registers; they were checked when they were loaded.
        let lin = lin & 0xffff_ffff;
        let pdpte = p.pdpte[(lin >> 30) as usize];
        if pdpte & PRESENT == 0 {
            return Err(PageFault(p.error_code(access)));
        }
        let format = Format {
            root: pdpte & physical,
            reserved: bits(p.max_phy_addr(), 62) | no_execute,
            large: 1 << 2,
            ..long
        };
        return walk_tables::<8, 2>(mem, p, &format, lin, access);
    }
    // SDM volume 3A, 4.5.
    if p.cr4 & CR4_LA57 == 0 {
        walk_tables::<8, 4>(mem, p, &long, lin, access)
    } else {
        walk_tables::<8, 5>(mem, p, &long, lin, access)
    }
}

/// Walks `LEVELS` levels of tables whose entries have `ENTRY` bytes.
fn walk_tables<const ENTRY: usize, const LEVELS: usize>(
    mem: &PhysMemory,
    p: &Paging,
    format: &Format,
    lin: u64,
    access: Access,
) -> Result<Translation, PageFault> {
    let index_bits = if ENTRY == 4 { 10 } else { 9 };
    loop {
        let mut trail = [(0, 0); MAX_LEVELS];
        let mut used = 0;
        let (mut all, mut any) = (u64::MAX, 0);
        let mut table = format.root;
        let mut level = LEVELS as u32;
        let (entry, shift) = loop {
            let shift = 12 + (level - 1) * index_bits;
            let index = (lin >> shift) & ((1 << index_bits) - 1);
            let at = (table + index * ENTRY as u64) & p.a20_mask;
            let entry = mem.table_entry::<ENTRY>(at);
            if entry & PRESENT == 0 {
                return Err(PageFault(p.error_code(access)));
            }
            let ps = entry & PAGE_SIZE_BIT != 0;
            let large = ps && format.large >> level & 1 != 0;
            let mut reserved = format.reserved;
            if large {
                reserved |= format.large_reserved[level as usize - 2];
            } else if ps && format.ps_reserved >> level & 1 != 0 {
                reserved |= PAGE_SIZE_BIT;
            }
            if entry & reserved != 0 {
                return Err(PageFault(p.error_code(access) | PageFault::P | PageFault::RSVD));
            }
            all &= entry;
            any |= entry;
            trail[used] = (at, entry);
            used += 1;
            if large || level == 1 {
                break (entry, shift);
            }
            table = entry & format.address;
            level -= 1;
        };

        let rights = Rights {
            writable: all & WRITABLE != 0,
            user: all & USER != 0,
            no_execute: ENTRY == 8 && any & NO_EXECUTE != 0 && p.efer & EFER_NXE != 0,
            key: (p.efer & EFER_LMA != 0 && p.cr4 & CR4_PKE != 0).then_some((entry >> 59) as u32 & 15),
        };
        let allowed = rights.allowed(p, access.mode);
        let (granted, key_denies) = match (access.fetch, access.write) {
            (true, _) => (allowed.fetch, false),
            (_, true) => (allowed.write, allowed.key_denies.1),
            _ => (allowed.read, allowed.key_denies.0),
        };
        if !granted {
            let key = if key_denies { PageFault::PK } else { 0 };
            return Err(PageFault(p.error_code(access) | PageFault::P | key));
        }

        let wanted = ACCESSED | if access.write { DIRTY } else { 0 };
        let mut intact = true;
        for (i, &(at, old)) in trail[..used].iter().enumerate() {
            let new = old | if i + 1 == used { wanted } else { ACCESSED };
            if new != old {
                intact = match ENTRY {
                    4 => mem.compare_exchange_u32(at, old as u32, new as u32).is_ok(),
                    _ => mem.compare_exchange_u64(at, old, new).is_ok(),
                };
                if !intact {
                    break;
                }
            }
        }
        if !intact {
            continue;
        }

        let page_size = 1 << shift;
        let mut base = entry & format.address & !(page_size - 1);
        if ENTRY == 4 && page_size > PAGE_SIZE {
            base |= (entry & bits(13, 20)) << (32 - 13);
        }
        return Ok(Translation {
            gpa: (base | (lin & (page_size - 1))) & p.a20_mask,
            page_size,
            readable: allowed.read,
            writable: allowed.write && (entry | wanted) & DIRTY != 0,
            executable: allowed.fetch,
            global: entry & GLOBAL != 0 && p.cr4 & CR4_PGE != 0,
            user: rights.user,
        });
    }
}

/// Reads the four PDPTEs that a CR3 load reads under PAE paging (SDM volume 3A, 4.4.1). An error means that a
/// present one has a reserved bit set; the load then raises #GP(0). `cr3` is taken with the A20 mask applied.
#[expect(clippy::result_unit_err, reason = "there is one way to fail, and one answer to it")]
pub fn load_pdptes(mem: &PhysMemory, cr3: u64, phys_bits: u8) -> Result<[u64; 4], ()> {
    let max_phy_addr = u32::from(phys_bits).clamp(32, 52);
    // Table 4-8: bits 2:1, 8:5 and 63:MAXPHYADDR.
    let reserved = bits(1, 2) | bits(5, 8) | bits(max_phy_addr, 63);
    let table = cr3 & bits(5, 31);
    let mut pdptes = [0; 4];
    for (i, pdpte) in pdptes.iter_mut().enumerate() {
        *pdpte = mem.table_entry::<8>(table + 8 * i as u64);
        if *pdpte & PRESENT != 0 && *pdpte & reserved != 0 {
            return Err(());
        }
    }
    Ok(pdptes)
}
