//! What a TLB keeps and what it forgets.

use mynah_mmu::{ENTRY_SHIFT, HASH_SHIFT, Mode, NEVER, Tlb, TlbEntry, shares_entry_with_previous};

const ALL_MODES: [Mode; 3] = [Mode::User, Mode::Super, Mode::SuperAc];

/// An entry that allows everything for the page of `lin`, which lies at `host`.
fn entry(lin: u64, host: u64) -> TlbEntry {
    let page = lin & !0xfff;
    TlbEntry { read: page, write: page, exec: page, addend: host.wrapping_sub(page) }
}

fn data(lin: u64) -> TlbEntry {
    TlbEntry { exec: NEVER, ..entry(lin, 0) }
}

fn hits(tlb: &Tlb, mode: Mode, lin: u64) -> bool {
    tlb.entry_of(mode, lin).read == lin & !0xfff
}

fn fill(tlb: &mut Tlb, mode: Mode, lin: u64, global: bool) {
    tlb.insert(mode, lin, entry(lin, (lin & !0xfff) ^ 0x7000_0000), global, 4096);
}

#[test]
fn an_empty_tlb_matches_nothing() {
    let tlb = Tlb::new();
    for lin in [0, 0x1000, !0xfff, !0, 0xffff_ffff_8000_0000] {
        let e = tlb.entry(lin);
        for size in [1, 2, 4, 8, 16u64] {
            let tag = lin.wrapping_add(size - 1) & !0xfff;
            assert!(e.read != tag && e.write != tag && e.exec != tag);
        }
    }
}

#[test]
fn modes_have_tables_of_their_own_and_the_view_follows() {
    let mut tlb = Tlb::new();
    for mode in ALL_MODES {
        tlb.select(mode);
        assert_eq!(tlb.mode(), mode);
        assert_ne!(tlb.entry(0x5123).read, 0x5000, "{mode:?}");
        fill(&mut tlb, mode, 0x5123, false);
        assert_eq!(tlb.entry(0x5fff).read, 0x5000);
        // What generated code does with the view.
        // SAFETY: the view names a table whose last entry is `mask` bytes behind its first.
        let e = unsafe {
            tlb.view
                .table
                .byte_add((((0x5123 ^ 0x5123 >> HASH_SHIFT) >> ENTRY_SHIFT) & tlb.view.mask) as usize)
                .read()
        };
        assert_eq!(e.addend.wrapping_add(0x5123), 0x7000_5123);
    }
    for mode in ALL_MODES {
        tlb.select(mode);
        assert_eq!(tlb.entry(0x5000).read, 0x5000, "{mode:?} kept its entry");
    }
}

#[test]
fn switching_with_pcids_keeps_user_entries_of_each_space() {
    let mut tlb = Tlb::new();
    for pcid in 0..8 {
        tlb.switch_space(pcid, true);
        assert_eq!(tlb.pcid(), pcid);
        assert!(!hits(&tlb, Mode::User, 0x1000));
        fill(&mut tlb, Mode::User, 0x1000, false);
        fill(&mut tlb, Mode::SuperAc, 0x1000, false);
    }
    for pcid in 0..8 {
        tlb.switch_space(pcid, true);
        assert!(hits(&tlb, Mode::User, 0x1000) && hits(&tlb, Mode::SuperAc, 0x1000), "{pcid}");
    }
    tlb.switch_space(3, false);
    assert!(!hits(&tlb, Mode::User, 0x1000) && !hits(&tlb, Mode::SuperAc, 0x1000));
    tlb.switch_space(4, true);
    assert!(hits(&tlb, Mode::User, 0x1000));
}

#[test]
fn the_space_left_longest_ago_is_given_up() {
    let mut tlb = Tlb::new();
    for pcid in 0..8 {
        tlb.switch_space(pcid, true);
        fill(&mut tlb, Mode::User, 0x1000, false);
    }
    tlb.switch_space(0, true);
    tlb.switch_space(100, true);
    assert!(!hits(&tlb, Mode::User, 0x1000), "a new space is empty");
    for pcid in [0, 2, 3, 4, 5, 6, 7] {
        tlb.switch_space(pcid, true);
        assert!(hits(&tlb, Mode::User, 0x1000), "{pcid}");
    }
    tlb.switch_space(1, true);
    assert!(!hits(&tlb, Mode::User, 0x1000), "its tables went to PCID 100");
}

#[test]
fn supervisor_entries_survive_a_switch_only_if_global() {
    let mut tlb = Tlb::new();
    fill(&mut tlb, Mode::Super, 0x1000, true);
    fill(&mut tlb, Mode::Super, 0x2000, false);
    tlb.switch_space(1, true);
    assert!(hits(&tlb, Mode::Super, 0x1000));
    assert!(!hits(&tlb, Mode::Super, 0x2000));
}

#[test]
fn loading_cr3_again_flushes_all_but_globals() {
    for mode in ALL_MODES {
        let mut tlb = Tlb::new();
        fill(&mut tlb, mode, 0x1000, true);
        fill(&mut tlb, mode, 0x2000, false);
        // A slot that held a non-global entry first, and one that held a global one first.
        fill(&mut tlb, mode, 0x3000, false);
        fill(&mut tlb, mode, 0x3000, true);
        fill(&mut tlb, mode, 0x4000, true);
        fill(&mut tlb, mode, 0x4000, false);
        tlb.switch_space(0, true);
        assert!(hits(&tlb, mode, 0x2000));
        for round in 0..2 {
            tlb.switch_space(0, false);
            let left: Vec<_> = [0x1000, 0x2000, 0x3000, 0x4000].map(|lin| hits(&tlb, mode, lin)).into();
            assert_eq!(left, [true, false, true, false], "{mode:?} {round}");
        }
        tlb.flush_all();
        assert!(!hits(&tlb, mode, 0x1000) && !hits(&tlb, mode, 0x3000));
    }
}

#[test]
fn flush_non_global_reaches_every_space() {
    let mut tlb = Tlb::new();
    for pcid in 0..3 {
        tlb.switch_space(pcid, true);
        fill(&mut tlb, Mode::User, 0x1000, false);
        fill(&mut tlb, Mode::User, 0x2000, true);
    }
    tlb.flush_non_global();
    for pcid in 0..3 {
        tlb.switch_space(pcid, true);
        assert!(!hits(&tlb, Mode::User, 0x1000) && hits(&tlb, Mode::User, 0x2000), "{pcid}");
    }
    tlb.flush_all();
    for pcid in 0..3 {
        tlb.switch_space(pcid, true);
        assert!(!hits(&tlb, Mode::User, 0x2000), "{pcid}");
    }
}

#[test]
fn invlpg_flushes_the_page_in_all_modes_and_nothing_else() {
    let mut tlb = Tlb::new();
    for mode in ALL_MODES {
        fill(&mut tlb, mode, 0x1000, mode == Mode::Super);
        fill(&mut tlb, mode, 0x2000, false);
    }
    tlb.flush_page(0x1abc);
    for mode in ALL_MODES {
        assert!(!hits(&tlb, mode, 0x1000) && hits(&tlb, mode, 0x2000), "{mode:?}");
    }
    // Another page of the same slot.
    tlb.flush_page(0x2000 + (1024 << 12));
    assert!(hits(&tlb, Mode::User, 0x2000));
}

#[test]
fn invlpg_flushes_global_pages_of_other_spaces_but_not_their_own_pages() {
    let mut tlb = Tlb::new();
    tlb.switch_space(1, true);
    fill(&mut tlb, Mode::SuperAc, 0x1000, true);
    fill(&mut tlb, Mode::User, 0x1000, false);
    tlb.switch_space(2, true);
    tlb.flush_page(0x1000);
    tlb.switch_space(1, true);
    assert!(!hits(&tlb, Mode::SuperAc, 0x1000));
    assert!(hits(&tlb, Mode::User, 0x1000));
}

#[test]
fn invpcid_reaches_the_space_it_names_and_spares_globals() {
    let mut tlb = Tlb::new();
    for pcid in [1, 2] {
        tlb.switch_space(pcid, true);
        for lin in [0x1000, 0x2000] {
            fill(&mut tlb, Mode::User, lin, false);
        }
        fill(&mut tlb, Mode::User, 0x3000, true);
    }
    tlb.flush_page_pcid(1, 0x1000);
    tlb.flush_page_pcid(1, 0x3000);
    tlb.flush_page_pcid(77, 0x2000);
    assert!(hits(&tlb, Mode::User, 0x1000));
    tlb.switch_space(1, true);
    assert_eq!([0x1000, 0x2000, 0x3000].map(|lin| hits(&tlb, Mode::User, lin)), [false, true, true]);
    tlb.flush_pcid(2);
    assert!(hits(&tlb, Mode::User, 0x2000));
    tlb.switch_space(2, true);
    assert_eq!([0x1000, 0x2000, 0x3000].map(|lin| hits(&tlb, Mode::User, lin)), [false, false, true]);
    fill(&mut tlb, Mode::Super, 0x5000, false);
    tlb.flush_page_pcid(2, 0x5000);
    assert!(!hits(&tlb, Mode::Super, 0x5000), "the current space's supervisor pages too");
}

#[test]
fn invlpg_inside_a_large_page_flushes_all_of_it() {
    for size in [2 << 20, 4 << 20, 1u64 << 30] {
        for global in [false, true] {
            let mut tlb = Tlb::new();
            let base = 0xffff_8880_4000_0000;
            let inside = [base, base + 0x3000, base + size - 0x1000];
            let outside = [base - 0x1000 - 0x2000, base + size + 0x5000];
            for lin in inside {
                tlb.insert(Mode::SuperAc, lin, entry(lin, 0), global, size);
            }
            for lin in outside {
                tlb.insert(Mode::SuperAc, lin, entry(lin, 0), global, size);
            }
            tlb.insert(Mode::SuperAc, base + 0x9000, entry(base + 0x9000, 0), false, 4096);
            tlb.flush_page(base + 0x7000);
            assert_eq!(inside.map(|lin| hits(&tlb, Mode::SuperAc, lin)), [false; 3], "{size:#x}");
            assert_eq!(outside.map(|lin| hits(&tlb, Mode::SuperAc, lin)), [true; 2], "{size:#x}");
            assert!(hits(&tlb, Mode::SuperAc, base + 0x9000), "a small page beside it stays");
        }
    }
}

#[test]
fn tables_grow_under_pressure_and_keep_their_entries() {
    let mut tlb = Tlb::new();
    tlb.select(Mode::User);
    let entries = |tlb: &Tlb| tlb.view.mask / size_of::<TlbEntry>() as u64 + 1;
    let start = entries(&tlb);
    let pages = 10_000;
    for _ in 0..40 {
        for page in 0..pages {
            tlb.insert(Mode::User, page << 12, entry(page << 12, page << 24), false, 4096);
        }
    }
    assert!(start <= 1024);
    assert_eq!(entries(&tlb), 16384);
    for page in 0..pages {
        let e = tlb.entry(page << 12);
        assert_eq!((e.read, e.addend.wrapping_add(page << 12)), (page << 12, page << 24));
    }
    // Other tables are as small as before.
    tlb.select(Mode::Super);
    assert_eq!(entries(&tlb), start);
    tlb.select(Mode::User);
    // And a flush finds all of them, through whatever growth did to the lists.
    tlb.switch_space(0, false);
    assert!((0..pages).all(|page| !hits(&tlb, Mode::User, page << 12)));
}

#[test]
fn growth_keeps_globals_global_and_large_pages_large() {
    let mut tlb = Tlb::new();
    let global = 0x7fff_f000;
    let large = 0x20_0000_0000u64;
    fill(&mut tlb, Mode::User, global, true);
    tlb.insert(Mode::User, large, entry(large, 0), false, 2 << 20);
    let slot = |lin: u64| ((lin ^ lin >> HASH_SHIFT) >> 12) & 1023;
    for page in 0..1024u64 {
        for way in 1..4 {
            let lin = (way << 10 | page) << 12;
            if slot(lin) != slot(global) && slot(lin) != slot(large) {
                fill(&mut tlb, Mode::User, lin, false);
            }
        }
    }
    tlb.select(Mode::User);
    assert!(tlb.view.mask / size_of::<TlbEntry>() as u64 > 1023);
    tlb.flush_page(large + 0x1f_f000);
    assert!(!hits(&tlb, Mode::User, large));
    tlb.switch_space(0, false);
    assert!(hits(&tlb, Mode::User, global));
    tlb.flush_all();
    assert!(!hits(&tlb, Mode::User, global));
}

#[test]
fn protecting_a_host_page_stops_fast_writes_in_every_table() {
    let mut tlb = Tlb::new();
    let host = 0x7f12_3456_7000u64;
    let lins = [0x1000, 0xffff_8000_0000_5000, 0x2_3000];
    for (mode, lin) in ALL_MODES.into_iter().zip(lins) {
        tlb.insert(mode, lin, entry(lin, host), false, 4096);
    }
    tlb.insert(Mode::User, 0x9000, entry(0x9000, host + 0x1000), false, 4096);
    // The same low 32 bits of the page number.
    tlb.insert(Mode::User, 0xa000, entry(0xa000, host + (1 << 44)), false, 4096);
    tlb.protect_host_page(std::ptr::without_provenance(host as usize + 0x123));
    for (mode, lin) in ALL_MODES.into_iter().zip(lins) {
        let e = tlb.entry_of(mode, lin);
        assert_ne!(e.write & 0xfff, 0, "{mode:?}");
        assert_eq!((e.read, e.exec), (lin, lin), "reads and fetches stay fast");
    }
    assert_eq!(tlb.entry_of(Mode::User, 0x9000).write, 0x9000);
    assert_eq!(tlb.entry_of(Mode::User, 0xa000).write, 0xa000);
    // A space that is not current.
    fill(&mut tlb, Mode::User, 0x1000, false);
    tlb.insert(Mode::User, 0x1000, entry(0x1000, host), false, 4096);
    tlb.switch_space(9, true);
    tlb.protect_host_page(std::ptr::without_provenance(host as usize));
    tlb.switch_space(0, true);
    assert_ne!(tlb.entry_of(Mode::User, 0x1000).write & 0xfff, 0);
}

#[test]
fn the_exec_generation_changes_when_code_may_have_gone() {
    let mut tlb = Tlb::new();
    let changes = |tlb: &mut Tlb, what: &dyn Fn(&mut Tlb)| {
        let before = tlb.exec_generation(0);
        what(tlb);
        tlb.exec_generation(0) != before
    };
    fill(&mut tlb, Mode::User, 0x40_0000, false);
    tlb.insert(Mode::User, 0x60_0000, data(0x60_0000), false, 4096);
    tlb.insert(Mode::Super, 0x8000_3000, entry(0x8000_3000, 0), true, 2 << 20);
    tlb.insert(Mode::Super, 0x4_8000_3000, entry(0x4_8000_3000, 0), true, 1 << 30);
    assert!(changes(&mut tlb, &|t| t.flush_page(0x40_0000)));
    assert!(!changes(&mut tlb, &|t| t.flush_page(0x60_0000)), "a page that held no code");
    assert!(changes(&mut tlb, &|t| t.flush_page(0x8001_0000)), "another part of a large page with code");
    assert!(changes(&mut tlb, &|t| t.flush_page(0x4_9000_0000)), "another part of a 1 GiB page with code");
    assert!(!changes(&mut tlb, &|t| t.flush_page(0x1234_5000)));
    tlb.note_exec(0x1234_5000, 4096);
    assert!(changes(&mut tlb, &|t| t.flush_page(0x1234_5000)), "cached without an entry");
    assert!(changes(&mut tlb, &|t| t.flush_page_pcid(0, 0x40_0000)));
    assert!(changes(&mut tlb, &|t| t.flush_pcid(0)));
    assert!(changes(&mut tlb, &|t| t.flush_non_global()));
    assert!(changes(&mut tlb, &|t| t.switch_space(0, false)));
    assert!(!changes(&mut tlb, &|t| t.switch_space(0, true)));
    assert!(
        changes(&mut tlb, &|t| t.flush_page(0x40_0000)),
        "flushed before, but perhaps still cached elsewhere"
    );
    assert!(changes(&mut tlb, &|t| t.flush_all()));
}

#[test]
fn the_exec_generation_of_a_space_comes_back_with_it_unless_flushed() {
    let mut tlb = Tlb::new();
    fill(&mut tlb, Mode::User, 0x1000, false);
    let zero = tlb.exec_generation(0);
    tlb.switch_space(1, true);
    assert_ne!(tlb.exec_generation(0), zero);
    tlb.switch_space(0, true);
    assert_eq!(tlb.exec_generation(0), zero);
    tlb.switch_space(1, true);
    tlb.flush_page(0x1000);
    tlb.switch_space(0, true);
    assert_ne!(tlb.exec_generation(0), zero, "it may have been a global page");
    let mut seen = std::collections::HashSet::new();
    for pcid in 0..100 {
        tlb.switch_space(pcid, true);
        assert!(seen.insert(tlb.exec_generation(0)));
    }
}

#[test]
fn the_upper_half_has_one_exec_generation_while_all_code_there_is_global() {
    const KERNEL: u64 = 0xffff_ffff_8100_0000;
    let mut tlb = Tlb::new();
    tlb.flush_all();
    tlb.insert(Mode::Super, KERNEL, entry(KERNEL, 0), true, 2 << 20);
    fill(&mut tlb, Mode::User, 0x1000, false);
    let (upper, lower) = (tlb.exec_generation(KERNEL), tlb.exec_generation(0x1000));
    assert_eq!(tlb.code_tag(KERNEL), upper << 8);
    tlb.switch_space(1, false);
    tlb.flush_non_global();
    tlb.flush_pcid(1);
    tlb.flush_page(0x1000);
    tlb.flush_page_pcid(1, KERNEL);
    assert_ne!(tlb.exec_generation(0x1000), lower);
    assert_eq!(tlb.exec_generation(KERNEL), upper, "nothing of the kernel's was flushed");
    tlb.flush_page(KERNEL + 0x5000);
    assert_ne!(tlb.exec_generation(KERNEL), upper, "a part of the large page");
    assert_eq!(tlb.code_tag(KERNEL), tlb.exec_generation(KERNEL) << 8);

    // From now on each space may have its own.
    let private = KERNEL + (64 << 20);
    fill(&mut tlb, Mode::Super, private, false);
    let upper = tlb.exec_generation(KERNEL);
    tlb.switch_space(2, true);
    assert_ne!(tlb.exec_generation(KERNEL), upper);
    assert_ne!(tlb.exec_generation(private), upper);
    tlb.switch_space(1, true);
    assert_eq!(tlb.exec_generation(private), upper);
    tlb.flush_page_pcid(1, private);
    assert_ne!(tlb.exec_generation(private), upper);
    tlb.flush_all();
    let upper = tlb.exec_generation(KERNEL);
    tlb.note_exec(private, 4096);
    assert_ne!(tlb.exec_generation(KERNEL), upper, "what is noted may not be global");
    assert_eq!(tlb.code_tag(KERNEL), tlb.exec_generation(KERNEL) << 8);
}

#[test]
fn a_tlb_moves_between_threads_with_its_tables() {
    let mut tlb = Tlb::new();
    tlb.select(Mode::User);
    fill(&mut tlb, Mode::User, 0x1000, false);
    let tlb = std::thread::spawn(move || Box::new(tlb)).join().unwrap();
    assert_eq!(tlb.entry(0x1000).read, 0x1000);
}

#[test]
fn two_buffers_a_power_of_two_apart_do_not_displace_each_other() {
    for distance in [1u64 << 26, 1 << 27, 1 << 30, 1 << 32] {
        let mut tlb = Tlb::new();
        tlb.select(Mode::User);
        let (from, to) = (0x7f00_0000_0000u64, 0x7f00_0000_0000 + distance);
        for page in (0..64).map(|n| n << 12) {
            fill(&mut tlb, Mode::User, from + page, false);
            fill(&mut tlb, Mode::User, to + page, false);
            assert!(
                hits(&tlb, Mode::User, from + page) && hits(&tlb, Mode::User, to + page),
                "{distance:#x}"
            );
        }
        // Large copies go through four pages at a time.
        for page in (0..64).step_by(4).map(|n| n << 12) {
            let four = [from, to].map(|at| (0..4).map(move |n| at + page + (n << 12)));
            four.clone().into_iter().flatten().for_each(|lin| fill(&mut tlb, Mode::User, lin, false));
            assert!(four.into_iter().flatten().all(|lin| hits(&tlb, Mode::User, lin)), "{distance:#x}");
        }
    }
}

#[test]
fn a_page_whose_predecessor_has_its_entry_is_told() {
    for (page, shares) in
        [(0, true), (0x1000, false), (1 << 29, false), (1 << 31, false), (3 << 32, true), (1 << 46, true)]
    {
        assert_eq!(shares_entry_with_previous(page), shares, "{page:#x}");
        let mut tlb = Tlb::new();
        tlb.select(Mode::User);
        fill(&mut tlb, Mode::User, page, false);
        // What an access of two bytes finds there that begins on the page before.
        let across = tlb.entry(page.wrapping_sub(1)).read == page;
        assert!(!across || shares, "{page:#x}");
    }
    // Nowhere else in what 64-bit mode can address.
    for n in 0..1u64 << 15 {
        for page in [n << 32 | 1 << 31, n << 32 | 1 << 12, n << 32 | 0xffff_f000] {
            assert!(!shares_entry_with_previous(page), "{page:#x}");
        }
    }
}
