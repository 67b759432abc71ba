//! Page walks over tables built in RAM, in all four formats. Chapters are those of the Intel SDM, volume 3A.

use mynah_mmu::{
    Access, GuestRam, Mmio, Mode, PageFault, Paging, PhysMemory, Translation, load_pdptes, walk,
};
use std::sync::Arc;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const G: u64 = 0x100;
const NX: u64 = 1 << 63;

const WP: u64 = 1 << 16;
const PG: u64 = 1 << 31;
const PSE: u64 = 1 << 4;
const PAE: u64 = 1 << 5;
const PGE: u64 = 1 << 7;
const LA57: u64 = 1 << 12;
const SMEP: u64 = 1 << 20;
const SMAP: u64 = 1 << 21;
const PKE: u64 = 1 << 22;
const LMA: u64 = 1 << 10;
const NXE: u64 = 1 << 11;

const MODES: [Mode; 3] = [Mode::User, Mode::Super, Mode::SuperAc];
const READ: Access = Access { write: false, fetch: false, mode: Mode::SuperAc };
const WRITE: Access = Access { write: true, ..READ };
const FETCH: Access = Access { fetch: true, ..READ };
const KINDS: [Access; 3] = [READ, WRITE, FETCH];

fn by(mode: Mode, access: Access) -> Access {
    Access { mode, ..access }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Bits32,
    Pae,
    Level4,
    Level5,
}
use Format::*;
const FORMATS: [Format; 4] = [Bits32, Pae, Level4, Level5];

impl Format {
    fn entry_bytes(self) -> u64 {
        if self == Bits32 { 4 } else { 8 }
    }

    /// Levels of tables in memory.
    fn levels(self) -> u32 {
        match self {
            Bits32 | Pae => 2,
            Level4 => 4,
            Level5 => 5,
        }
    }

    fn shift(self, level: u32) -> u32 {
        12 + (level - 1) * if self == Bits32 { 10 } else { 9 }
    }

    /// A linear address with another index at each level.
    fn lin(self) -> u64 {
        match self {
            Bits32 | Pae => 0xc123_4567,
            Level4 => 0xffff_9234_5678_9abc,
            Level5 => 0xff12_9234_5678_9abc,
        }
    }

    fn index(self, level: u32, lin: u64) -> u64 {
        (lin >> self.shift(level)) & if self == Bits32 { 0x3ff } else { 0x1ff }
    }
}

/// A guest with one path of tables: the table of level n is at n * 0x1_0000, so PML4 is at 0x4_0000.
struct Guest {
    mem: Arc<PhysMemory>,
    format: Format,
    p: Paging,
}

impl Guest {
    fn new(format: Format) -> Self {
        let mem = PhysMemory::new(GuestRam::new(16 << 20).unwrap(), 16 << 20);
        let cr4 = match format {
            Bits32 => PSE,
            Pae | Level4 => PAE,
            Level5 => PAE | LA57,
        };
        let efer = if matches!(format, Level4 | Level5) { LMA | NXE } else { NXE };
        let mut p =
            Paging { cr0: PG | WP, cr4: cr4 | PGE, efer, phys_bits: 40, a20_mask: !0, ..Default::default() };
        if format == Pae {
            p.cr3 = 0x6_0020;
            mem.write_u64(0x6_0020 + 24, 0x2_0000 | P);
            p.pdpte = load_pdptes(&mem, p.cr3, 40).unwrap();
        } else {
            p.cr3 = (u64::from(format.levels()) << 16) | 0xfff;
        }
        Self { mem, format, p }
    }

    /// With upper entries that allow everything, and `leaf` at `level`.
    fn with_leaf(format: Format, level: u32, leaf: u64) -> Self {
        let guest = Self::new(format);
        for upper in level + 1..=format.levels() {
            guest.set(upper, (u64::from(upper - 1) << 16) | P | W | U);
        }
        guest.set(level, leaf);
        guest
    }

    fn entry_gpa(&self, level: u32) -> u64 {
        u64::from(level) * 0x1_0000 + self.format.index(level, self.format.lin()) * self.format.entry_bytes()
    }

    fn set(&self, level: u32, value: u64) {
        self.mem.phys_write(self.entry_gpa(level), self.format.entry_bytes() as u8, value);
    }

    fn get(&self, level: u32) -> u64 {
        self.mem.phys_read(self.entry_gpa(level), self.format.entry_bytes() as u8)
    }

    fn walk(&self, access: Access) -> Result<Translation, PageFault> {
        walk(&self.mem, &self.p, self.format.lin(), access)
    }

    /// The error code of the fault that must come.
    fn fault(&self, access: Access) -> u32 {
        self.walk(access).expect_err("the access must fault").0
    }
}

#[test]
fn without_paging_addresses_are_physical_and_a20_masked() {
    let mut guest = Guest::new(Bits32);
    guest.p.cr0 = 0;
    let t = walk(&guest.mem, &guest.p, 0x10_1234, by(Mode::User, WRITE)).unwrap();
    assert_eq!((t.gpa, t.page_size), (0x10_1234, 4096));
    assert!(t.readable && t.writable && t.executable && !t.global);
    guest.p.a20_mask = !(1 << 20);
    assert_eq!(walk(&guest.mem, &guest.p, 0x10_1234, READ).unwrap().gpa, 0x1234);
}

#[test]
fn small_pages_translate_in_every_format() {
    for format in FORMATS {
        let guest = Guest::with_leaf(format, 1, 0x77_7000 | P | W | U | G);
        let t = guest.walk(READ).unwrap();
        assert_eq!(t.gpa, 0x77_7000 | (format.lin() & 0xfff), "{format:?}");
        assert_eq!((t.page_size, t.global, t.user), (4096, true, true), "{format:?}");
    }
}

#[test]
fn large_pages_translate_with_their_size() {
    for (format, level, size) in [
        (Bits32, 2, 4 << 20),
        (Pae, 2, 2 << 20),
        (Level4, 2, 2 << 20),
        (Level5, 2, 2 << 20),
        (Level4, 3, 1 << 30),
        (Level5, 3, 1 << 30),
    ] {
        let guest = Guest::with_leaf(format, level, 0x8000_0000 | P | W | PS | 1 << 12);
        let t = guest.walk(WRITE).unwrap();
        assert_eq!(t.gpa, 0x8000_0000 | (format.lin() & (size - 1)), "{format:?}");
        assert_eq!((t.page_size, t.user, t.global), (size, false, false), "{format:?}");
        assert_eq!(guest.get(level) & (A | D), A | D, "{format:?}");
    }
}

#[test]
fn pse36_puts_a_4m_page_above_4g() {
    let guest = Guest::with_leaf(Bits32, 2, 0xff << 13 | 0x40_0000 | P | PS);
    assert_eq!(guest.walk(READ).unwrap().gpa, 0xff_0040_0000 | (Bits32.lin() & 0x3f_ffff));
}

#[test]
fn ps_is_ignored_in_32_bit_paging_without_pse() {
    let mut guest = Guest::with_leaf(Bits32, 1, 0x5000 | P);
    guest.set(2, 0x1_0000 | P | PS);
    guest.p.cr4 &= !PSE;
    assert_eq!(guest.walk(READ).unwrap().page_size, 4096);
}

#[test]
fn globals_need_pge() {
    let mut guest = Guest::with_leaf(Level4, 1, 0x5000 | P | G);
    assert!(guest.walk(READ).unwrap().global);
    guest.p.cr4 &= !PGE;
    assert!(!guest.walk(READ).unwrap().global);
}

/// 4.6.1, said once more in another way than the code under test says it.
fn allowed(guest: &Guest, flags_at: &[u64], access: Access) -> bool {
    let user_page = flags_at.iter().all(|f| f & U != 0);
    let writable = flags_at.iter().all(|f| f & W != 0);
    let nx = guest.format != Bits32 && guest.p.efer & NXE != 0 && flags_at.iter().any(|f| f & NX != 0);
    if access.mode == Mode::User && !user_page || access.fetch && nx {
        return false;
    }
    if access.mode == Mode::User {
        return !access.write || writable;
    }
    if access.fetch {
        return !(user_page && guest.p.cr4 & SMEP != 0);
    }
    if user_page && guest.p.cr4 & SMAP != 0 && access.mode == Mode::Super {
        return false;
    }
    !access.write || writable || guest.p.cr0 & WP == 0
}

#[test]
fn every_combination_of_rights_is_as_the_manual_says() {
    let rights: Vec<u64> = (0..8)
        .map(|i| if i & 1 != 0 { W } else { 0 } | if i & 2 != 0 { U } else { 0 } | if i & 4 != 0 { NX } else { 0 })
        .collect();
    let mut cases = 0;
    for format in FORMATS {
        for (&upper, &leaf) in rights.iter().flat_map(|a| rights.iter().map(move |b| (a, b))) {
            if format == Bits32 && (upper | leaf) & NX != 0 {
                continue;
            }
            let mut guest = Guest::new(format);
            for level in 1..=format.levels() {
                let flags = match level {
                    1 => leaf | 0x5000,
                    2 => upper | 0x1_0000,
                    _ => W | U | (u64::from(level - 1) << 16),
                };
                guest.set(level, flags | P | A | D);
            }
            let base = guest.p;
            for control in 0..16 {
                guest.p = base;
                guest.p.cr0 = PG | if control & 1 != 0 { WP } else { 0 };
                guest.p.cr4 |=
                    if control & 2 != 0 { SMEP } else { 0 } | if control & 4 != 0 { SMAP } else { 0 };
                if control & 8 != 0 {
                    guest.p.efer &= !NXE;
                }
                let nxe = guest.p.efer & NXE != 0 && format != Bits32;
                for mode in MODES {
                    let ok = KINDS.map(|kind| allowed(&guest, &[upper, leaf], by(mode, kind)));
                    for (kind, ok) in KINDS.into_iter().zip(ok) {
                        cases += 1;
                        let what = format!("{format:?} {upper:#x} {leaf:#x} {:?} {mode:?} {kind:?}", guest.p);
                        let mut code =
                            if kind.write { 2 } else { 0 } | if mode == Mode::User { 4 } else { 0 };
                        code |= if kind.fetch && (nxe || guest.p.cr4 & SMEP != 0) { 0x10 } else { 0 };
                        let expected = if !nxe && (upper | leaf) & NX != 0 {
                            Err(PageFault(code | 9))
                        } else if ok {
                            Ok(())
                        } else {
                            Err(PageFault(code | 1))
                        };
                        assert_eq!(guest.walk(by(mode, kind)).map(|_| ()), expected, "{what}");
                    }
                    if let Some(t) = KINDS.iter().find_map(|&kind| guest.walk(by(mode, kind)).ok()) {
                        assert_eq!([t.readable, t.writable, t.executable], ok, "{format:?} {mode:?}");
                        assert_eq!(t.user, upper & leaf & U != 0);
                    }
                }
            }
        }
    }
    assert!(cases > 20_000, "{cases}");
}

#[test]
fn a_missing_entry_faults_with_p_clear_whatever_else_it_holds() {
    for format in FORMATS {
        for missing in 1..=format.levels() {
            let guest = Guest::with_leaf(format, 1, 0x5000 | P | W | U);
            guest.set(missing, (if format == Bits32 { 0xffff_ffff } else { !0 }) & !P);
            let id = if format == Bits32 { 0 } else { 0x10 };
            assert_eq!(guest.fault(READ), 0, "{format:?} {missing}");
            assert_eq!(guest.fault(by(Mode::User, WRITE)), 6, "{format:?} {missing}");
            assert_eq!(guest.fault(by(Mode::User, FETCH)), 4 | id, "{format:?} {missing}");
        }
    }
}

#[test]
fn a_missing_pdpte_register_faults() {
    let mut guest = Guest::with_leaf(Pae, 1, 0x5000 | P | W);
    assert!(guest.walk(WRITE).is_ok());
    guest.p.pdpte[3] = 0;
    assert_eq!(guest.fault(WRITE), 2);
}

#[test]
fn reserved_bits_fault_at_every_level() {
    for format in [Pae, Level4, Level5] {
        for level in 1..=format.levels() {
            for bit in 40..63 {
                let guest = Guest::with_leaf(format, 1, 0x5000 | P | W | U);
                guest.set(level, guest.get(level) | 1 << bit);
                let reserved = bit < 52 || format == Pae;
                let expected = if reserved { Err(PageFault(0xf)) } else { Ok(()) };
                assert_eq!(
                    guest.walk(by(Mode::User, WRITE)).map(|_| ()),
                    expected,
                    "{format:?} {level} {bit}"
                );
            }
        }
    }
}

#[test]
fn ps_is_reserved_above_the_pdpt() {
    for (format, level) in [(Level4, 4), (Level5, 4), (Level5, 5)] {
        let guest = Guest::with_leaf(format, 1, 0x5000 | P);
        guest.set(level, guest.get(level) | PS);
        assert_eq!(guest.fault(READ), 9, "{format:?} {level}");
    }
}

#[test]
fn low_address_bits_of_large_pages_are_reserved() {
    // (format, level, first and last reserved bit)
    for (format, level, first, last) in
        [(Pae, 2, 13, 20), (Level4, 2, 13, 20), (Level4, 3, 13, 29), (Level5, 3, 13, 29), (Bits32, 2, 21, 21)]
    {
        for bit in 12..=last {
            let guest = Guest::with_leaf(format, level, P | PS | 1 << bit);
            assert_eq!(guest.walk(READ).is_err(), bit >= first, "{format:?} {level} {bit}");
        }
    }
    // With 36 physical bits, PSE-36 has bits 35:32 in 16:13, and 21:17 are reserved; with 32 bits all are.
    for (phys_bits, first) in [(36, 17), (32, 13), (39, 20), (52, 21)] {
        for bit in 13..=21 {
            let mut guest = Guest::with_leaf(Bits32, 2, P | PS | 1 << bit);
            guest.p.phys_bits = phys_bits;
            assert_eq!(guest.walk(READ).is_err(), bit >= first, "{phys_bits} {bit}");
        }
    }
}

#[test]
fn accessed_and_dirty_flags_follow_the_access() {
    for format in FORMATS {
        let guest = Guest::with_leaf(format, 1, 0x5000 | P | W | U);
        let t = guest.walk(READ).unwrap();
        assert!(!t.writable, "{format:?}: the dirty flag is clear, so a write must walk again");
        assert_eq!(guest.get(1) & (A | D), A, "{format:?}");
        for level in 2..=format.levels() {
            assert_eq!(guest.get(level) & (A | D), A, "{format:?} {level}");
        }
        assert!(guest.walk(WRITE).unwrap().writable, "{format:?}");
        assert_eq!(guest.get(1) & (A | D), A | D, "{format:?}");
        for level in 2..=format.levels() {
            assert_eq!(guest.get(level) & D, 0, "{format:?} {level}");
        }
        assert!(guest.walk(READ).unwrap().writable, "{format:?}");
    }
}

#[test]
fn a_faulting_access_sets_no_flags() {
    for format in FORMATS {
        let guest = Guest::with_leaf(format, 1, 0x5000 | P);
        assert_eq!(guest.fault(by(Mode::User, WRITE)), 7);
        for level in 1..=format.levels() {
            assert_eq!(guest.get(level) & (A | D), 0, "{format:?} {level}");
        }
    }
}

#[test]
fn setting_flags_tells_the_dirty_map_and_code_watchers() {
    struct Count(std::sync::atomic::AtomicU64);
    impl mynah_mmu::CodeWatcher for Count {
        fn code_written(&self, _: u64, len: u64) {
            self.0.fetch_add(len, std::sync::atomic::Ordering::Relaxed);
        }
    }
    let guest = Guest::with_leaf(Level4, 1, 0x5000 | P);
    let count = Arc::new(Count(0.into()));
    guest.mem.watch_code(count.clone());
    guest.mem.hold_code(guest.entry_gpa(1));
    guest.mem.take_dirty(guest.entry_gpa(1));
    guest.walk(READ).unwrap();
    guest.walk(READ).unwrap();
    assert!(guest.mem.take_dirty(guest.entry_gpa(1)));
    assert_eq!(count.0.load(std::sync::atomic::Ordering::Relaxed), 8, "told once, of one entry");
}

#[test]
fn protection_keys_restrict_data_access_to_user_pages() {
    const KEY: u64 = 5;
    let (ad, wd) = (1 << (2 * KEY), 2 << (2 * KEY));
    let mut guest = Guest::with_leaf(Level4, 1, 0x5000 | P | W | U | A | D | KEY << 59);
    guest.p.cr4 |= PKE;
    let (user, sup) = (Mode::User, Mode::SuperAc);

    guest.p.pkru = !(ad | wd) as u32;
    for (mode, kind) in MODES.iter().flat_map(|&m| KINDS.map(|k| (m, k))) {
        assert!(guest.walk(by(mode, kind)).is_ok(), "other keys do not matter");
    }
    guest.p.pkru = ad as u32;
    assert_eq!(guest.fault(by(user, READ)), 0x25);
    assert_eq!(guest.fault(by(user, WRITE)), 0x27);
    assert_eq!(guest.fault(by(sup, READ)), 0x21);
    let t = guest.walk(by(user, FETCH)).expect("fetches are not checked");
    assert!(t.executable && !t.readable && !t.writable);

    guest.p.pkru = wd as u32;
    let t = guest.walk(by(user, READ)).unwrap();
    assert!(t.readable && !t.writable);
    assert_eq!(guest.fault(by(user, WRITE)), 0x27);
    assert_eq!(guest.fault(by(sup, WRITE)), 0x23);
    guest.p.cr0 &= !WP;
    assert!(guest.walk(by(sup, WRITE)).is_ok(), "WD binds supervisors under WP only");
    assert_eq!(guest.fault(by(user, WRITE)), 0x27);

    guest.p.pkru = (ad | wd) as u32;
    guest.p.cr4 &= !PKE;
    assert!(guest.walk(by(user, WRITE)).is_ok());
    guest.p.cr4 |= PKE;
    guest.set(1, guest.get(1) & !U);
    assert!(guest.walk(by(sup, WRITE)).is_ok(), "supervisor pages have no key");
    assert_eq!(guest.fault(by(user, READ)), 5, "no PK in the error code of a supervisor page");
}

#[test]
fn tables_in_a_hole_or_on_a_device_read_as_all_ones() {
    struct Never;
    impl Mmio for Never {
        fn read(&self, _: u64, _: u8) -> u64 {
            panic!("a page walk must not read a device")
        }
        fn write(&self, _: u64, _: u8, _: u64) {
            panic!("a page walk must not write a device")
        }
    }
    for format in FORMATS {
        for root in [0x8000_0000, 0xc0_0000] {
            let mut guest = Guest::new(format);
            guest.mem.map_mmio(0xc0_0000, 0x1000, Arc::new(Never));
            guest.p.cr3 = root;
            guest.p.pdpte = [root | P; 4];
            let result = guest.walk(by(Mode::User, WRITE));
            if format == Bits32 {
                // All ones with PS: a 4 MiB page, whose bit 21 is reserved.
                assert_eq!(result, Err(PageFault(0xf)));
                guest.p.cr4 = 0;
                assert!(guest.walk(by(Mode::User, WRITE)).unwrap().writable);
            } else {
                assert_eq!(result, Err(PageFault(0xf)), "{format:?}");
            }
        }
    }
}

#[test]
fn flags_of_entries_in_rom_stay_and_the_walk_ends() {
    let guest = Guest::with_leaf(Level4, 1, 0);
    let mut rom = [0u8; 4096];
    let at = (Level4.index(1, Level4.lin()) * 8) as usize;
    rom[at..at + 8].copy_from_slice(&(0x5000 | P | W).to_le_bytes());
    guest.mem.map_rom(0x1_0000, &rom);
    assert_eq!(guest.walk(WRITE).unwrap().gpa & !0xfff, 0x5000);
    assert_eq!(guest.get(1), 0x5000 | P | W);
}

#[test]
fn pdptes_with_reserved_bits_do_not_load() {
    let mem = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
    for bit in 0..64 {
        mem.write_u64(0x2018, 1 << bit | 0x3000 | P);
        let reserved = matches!(bit, 1 | 2 | 5..=8 | 36..);
        assert_eq!(load_pdptes(&mem, 0x2000, 36).is_err(), reserved, "bit {bit}");
        mem.write_u64(0x2018, (1 << bit | 0x3000) & !P);
        assert!(load_pdptes(&mem, 0x2000, 36).is_ok(), "not present: bit {bit} is ignored");
    }
    mem.write_u64(0x2018, 0x3000 | P);
    assert_eq!(load_pdptes(&mem, 0x2000 | 0x1f, 36), Ok([0, 0, 0, 0x3001]));
}

#[test]
fn the_a20_mask_holds_for_tables_and_pages() {
    let mut guest = Guest::with_leaf(Bits32, 1, 0x10_5000 | P);
    guest.p.a20_mask = !(1 << 20);
    guest.p.cr3 |= 1 << 20;
    assert_eq!(guest.walk(READ).unwrap().gpa & !0xfff, 0x5000);
}

#[test]
fn racing_walks_lose_no_flags() {
    let guest = Guest::with_leaf(Level4, 1, 0x5000 | P | W);
    for _ in 0..200 {
        guest.set(1, 0x5000 | P | W);
        std::thread::scope(|s| {
            s.spawn(|| guest.walk(READ).unwrap());
            s.spawn(|| guest.walk(WRITE).unwrap());
        });
        assert_eq!(guest.get(1) & (A | D), A | D);
    }
}
