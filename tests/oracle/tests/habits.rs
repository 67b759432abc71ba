//! The table of habits passes over what its lines cover and nothing beside it.

use mynah_oracle::compare::compare;
use mynah_oracle::generate::decode;
use mynah_oracle::guest::Guest;
use mynah_oracle::habits::{Habits, How, TABLE, Tally, probes, untried};
use mynah_oracle::layout::*;

/// A case of 64-bit code with RSI, RDI and the outcome of a fault at its instruction.
fn case(code: &[u8], rsi: u64, rdi: u64) -> (Case, Box<Outcome>) {
    let mut regs =
        Regs { sel: [sel::DATA, sel::CODE64, sel::DATA, sel::DATA, 0, 0], rip: CODE + 16, ..Regs::default() };
    (regs.gpr[6], regs.gpr[7]) = (rsi, rdi);
    let mut bytes = [0; 15];
    bytes[..code.len()].copy_from_slice(code);
    let patch = [Patch::NONE; PATCHES];
    let case =
        Case { regs, code: bytes, code_len: code.len() as u8, end: End::Breakpoint, patches: 0, patch };
    let mut out = Outcome::new();
    out.regs = regs;
    (case, out)
}

fn faulting(out: &Outcome, vector: u32, cr2: u64) -> Box<Outcome> {
    let mut o = Box::new(*out);
    (o.vector, o.error, o.cr2) = (vector, if vector == 14 { 4 } else { 0 }, cr2);
    o
}

/// What differs, and what was passed over.
fn judge(c: &Case, want: &Outcome, got: &Outcome, habits: &Habits) -> (Vec<String>, Vec<&'static str>) {
    let (i, memory) = (decode(c, c.regs.bitness()).0, vec![0; DATA_LEN]);
    let v = compare(c, &i, &memory, want, got, habits);
    (v.differences.iter().map(|d| d.what.clone()).collect(), v.passed.names().collect())
}

fn only(name: &'static str) -> Habits {
    Habits::of_host(move |h| h.name == name)
}

#[test]
fn every_line_has_a_name_of_its_own_and_every_probed_one_its_probes() {
    let mut names: Vec<&str> =
        TABLE.iter().map(|h| h.name).chain(untried::TABLE.iter().map(|u| u.name)).collect();
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all);
    for h in TABLE {
        assert_eq!(!probes::cases(h.name).is_empty(), h.how == How::Probed, "{}", h.name);
        assert!(!h.covers.is_empty() && !h.why.is_empty(), "{}", h.name);
    }
    let probes = probes::all();
    assert!(probes.iter().all(|(_, c)| code_offset(c.regs.rip + 15).is_some()));
    let text = only("lock-verw").list();
    assert!(TABLE.iter().all(|h| text.contains(h.name)) && text.contains(untried::TABLE[0].name));
}

#[test]
fn either_operand_of_cmps_may_fault_first_where_the_host_has_the_habit_and_no_other_address() {
    // CMPSD
    let (c, out) = case(&[0xa7], 0x2000_4010, 0x2000_6020);
    let (by_di, by_si) = (faulting(&out, 14, 0x2000_6020), faulting(&out, 14, 0x2000_4010));
    let has = only("cmps-both-fault");
    assert_eq!(judge(&c, &by_di, &by_si, &has), (vec![], vec!["cmps-both-fault"]));
    let general = faulting(&out, 13, 0);
    assert_eq!(judge(&c, &general, &by_si, &has), (vec![], vec!["cmps-both-fault"]));
    assert_eq!(judge(&c, &by_di, &by_si, &only("movs-both-fault")), (vec!["cr2".into()], vec![]));
    // An address that belongs to neither; a register besides.
    let astray = faulting(&out, 14, 0x2000_7000);
    assert_eq!(judge(&c, &astray, &by_si, &has), (vec!["cr2".into()], vec![]));
    let mut spoilt = by_si.clone();
    spoilt.regs.gpr[3] = 1;
    assert_eq!(judge(&c, &by_di, &spoilt, &has), (vec!["rbx".into()], vec!["cmps-both-fault"]));
    // Another instruction with the same outcomes.
    let (scas, _) = case(&[0xaf], 0x2000_4010, 0x2000_6020);
    assert_eq!(judge(&scas, &by_di, &by_si, &has).0, ["cr2"]);
}

#[test]
fn only_locked_verr_and_verw_may_lack_their_undefined_opcode() {
    let has = only("lock-verw");
    for (code, passed) in [
        (&[0xf0, 0x48, 0x0f, 0x00, 0x28][..], true), // LOCK VERW
        (&[0xf0, 0x66, 0x0f, 0x00, 0xe0], true),     // LOCK VERR
        (&[0xf0, 0x0f, 0x00, 0x18], false),          // LOCK LTR
        (&[0xf0, 0x8b, 0x00], false),                // LOCK MOV
        (&[0x0f, 0x00, 0x28], false),                // VERW
    ] {
        let (c, out) = case(code, 0, 0);
        let mut want = faulting(&out, 3, 0);
        want.regs.rip += code.len() as u64;
        let got = faulting(&out, 6, 0);
        let (left, names) = judge(&c, &want, &got, &has);
        assert_eq!((left.is_empty(), names.contains(&"lock-verw")), (passed, passed), "{code:02x?}");
        // The other way round nothing is passed over.
        assert!(!judge(&c, &got, &want, &has).0.is_empty(), "{code:02x?}");
    }
}

#[test]
fn elementary_functions_of_another_processor_may_differ_in_their_last_place_only() {
    // FSIN
    let (c, out) = case(&[0xd9, 0xfe], 0, 0);
    let with = |exp: u16, mant: u64| {
        let mut o = faulting(&out, 3, 0);
        o.regs.rip += 2;
        o.regs.put_fx(32, &mant.to_le_bytes());
        o.regs.put_fx(40, &exp.to_le_bytes());
        o
    };
    let one = with(0x3fff, 1 << 63);
    let host = only("");
    for (got, near) in [
        (with(0x3fff, 1 << 63 | 1), true),
        (with(0x3ffe, !0), true),
        (with(0x3fff, 1 << 63 | 2), false),
        (with(0xbfff, 1 << 63), false),
        (with(0x3ffe, 1 << 63), false),
    ] {
        assert_eq!(judge(&c, &one, &got, &host).0, ["st0"]);
        assert_eq!(judge(&c, &one, &got, &host.clone().portable()).0.is_empty(), near);
        assert_eq!(judge(&c, &one, &got, &Habits::recorded()).0.is_empty(), near);
    }
}

#[test]
fn what_is_passed_over_is_counted_by_line() {
    let (c, out) = case(&[0xa7], 0x2000_4010, 0x2000_6020);
    let (by_di, by_si) = (faulting(&out, 14, 0x2000_6020), faulting(&out, 14, 0x2000_4010));
    let (i, memory, has) = (decode(&c, 64).0, vec![0; DATA_LEN], only("cmps-both-fault"));
    let mut tally = Tally::default();
    for got in [&by_si, &by_di, &by_si] {
        tally.note(compare(&c, &i, &memory, &by_di, got, &has).passed);
    }
    assert_eq!(tally.line(3), "passed over: 2 of 3 cases: cmps-both-fault 2");
    assert_eq!(Tally::default().line(3), "passed over: 0 of 3 cases");
}

#[test]
fn with_five_levels_of_paging_the_address_space_is_the_same_and_more_addresses_are_canonical() {
    // MOV EAX, [RSI]; above 47 bits, and where the guest's own pages would be with four levels.
    for (at, four, five) in
        [(LOW, 3, 3), (0x8000_0000_0000, 13, 14), (0x8000_0000_1000, 13, 14), (0x100_0000_0000_0000, 13, 13)]
    {
        let (c, _) = case(&[0x8b, 0x06], at, 0);
        for (levels, vector) in [(4, four), (5, five)] {
            let mut g = Guest::new("max").expect("a vCPU");
            if levels == 5 {
                g.use_five_levels();
            }
            let mut out = Outcome::new();
            g.run(&c, &mut out).expect("an outcome");
            let (error, cr2) = if vector == 14 { (4, at) } else { (0, 0) };
            assert_eq!(
                (out.vector, out.error, out.cr2),
                (vector, error, cr2),
                "{at:#x} with {levels} levels"
            );
        }
    }
}
