//! Recorded rows run on any host.

use mynah_jit::tier::Optimize;
use mynah_oracle::engines::{Choice, Engines};
use mynah_oracle::rows::Row;
use mynah_oracle::{background, generate, report};

#[test]
fn every_recorded_row_comes_out_as_it_did_on_the_processor() {
    check_rows(Optimize::Speed);
}

#[test]
fn every_recorded_row_comes_out_as_it_did_on_the_processor_in_code_that_is_not_optimised() {
    check_rows(Optimize::None);
}

#[test]
fn every_recorded_row_comes_out_as_it_did_on_the_processor_in_the_portable_code_of_other_hosts() {
    let mut engines = Engines::new("max", Choice::Portable, Optimize::Speed, 1).expect("vCPUs");
    engines.set_background(&background::pattern());
    check(&mut engines);
}

fn engines(optimize: Optimize) -> Engines {
    let mut e = Engines::new("max", Choice::Both, optimize, 1).expect("vCPUs");
    e.set_background(&background::pattern());
    e
}

fn check_rows(optimize: Optimize) {
    let mut engines = engines(optimize);
    check(&mut engines);
    if cfg!(target_arch = "x86_64") {
        let t = engines.translated();
        assert!(t.regions > 1500, "{t:?}");
    }
}

fn check(engines: &mut Engines) {
    let (mut rows, mut bad) = (0, Vec::new());
    let dir = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/rows")).expect("the rows");
    for file in dir.map(|f| f.expect("a file").path()).filter(|f| f.extension().is_some_and(|e| e == "txt")) {
        let text = std::fs::read_to_string(&file).expect("text");
        for (n, line) in text.lines().enumerate() {
            let place = format!("{}:{}", file.display(), n + 1);
            let Some(row) = Row::parse(line).unwrap_or_else(|e| panic!("{place}: {e}")) else { continue };
            rows += 1;
            let differences = row.check(engines);
            if !differences.is_empty() {
                let i = generate::decode(&row.case, row.case.regs.bitness()).0;
                let d: Vec<String> = differences.iter().map(|d| d.to_string()).collect();
                bad.push(format!("{place}: {}: {}", report::disassemble(&i), d.join("; ")));
            }
        }
    }
    assert!(bad.is_empty(), "{} of {rows} rows:\n{}", bad.len(), bad[..bad.len().min(30)].join("\n"));
    assert!(rows > 2500, "only {rows} rows");
}

#[test]
fn a_row_reads_back_as_it_was_written() {
    let line = "64 by int3 | 480fc8 | rip=10000010 rax=1122 m20000100=0011 | vec=3 rip=10000014 rax=2211000000000000 | 0";
    let row = Row::parse(line).expect("a row").expect("not a comment");
    assert_eq!(row.line(), line);
}

#[test]
fn a_wrong_row_is_reported() {
    let line = "64 by int3 | 480fc8 | rip=10000010 rax=1122 | vec=3 rip=10000014 rax=2211 | 0";
    let row = Row::parse(line).expect("a row").expect("not a comment");
    let d = row.check(&mut engines(Optimize::Speed));
    assert_eq!(d.len(), 1);
    assert_eq!(d[0].what, "rax");
}
