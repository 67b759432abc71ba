//! A short run beside the host's own CPU.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use mynah_jit::tier::Optimize;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use mynah_oracle::session::{Plan, Summary, run};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn random_instructions_come_out_as_on_the_host() {
    // The default plan compares both engines.
    let plan = Plan { seed: 20_000, cases: 20_000, ..Plan::default() };
    let Some(sum) = checked(&plan) else { return };
    assert!(sum.translated.regions > 10_000, "{:?}", sum.translated);
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn random_programs_come_out_as_on_the_host_and_the_same_in_both_engines() {
    for (optimize, seed) in [(Optimize::Speed, 1), (Optimize::None, 2)] {
        let plan = Plan { seed, cases: 3_000, programs: true, optimize, ..Plan::default() };
        let Some(sum) = checked(&plan) else { return };
        assert!(sum.translated.regions > 3_000, "{:?}", sum.translated);
        // Enough of them run to their end.
        assert!(sum.groups["to the end"].cases > 1_000, "{:?}", sum.groups);
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn portable_floating_point_and_vectors_come_out_as_on_the_host() {
    let plan = Plan { seed: 30_000, cases: 60_000, ..Plan::default() }.soft();
    let Some(sum) = checked(&plan) else { return };
    // The instructions that trap for an exception that is not masked, too.
    assert!(sum.groups["x87"].cases > 4_000 && sum.groups["sse2"].faults > 500, "{:?}", sum.groups);
    assert!(sum.translated.regions == 0, "{:?}", sum.translated);
    // Tiny operands, on which side of the result the true one lies, come seldom.
    let only = "=fsin,=fcos,=fsincos,=fptan,=fpatan".into();
    checked(&Plan { seed: 30_001, cases: 40_000, only, ..Plan::default() }.soft());
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn checked(plan: &Plan) -> Option<Summary> {
    if let Err(e) = mynah_oracle::native::Native::new() {
        println!("SKIPPED: {e}: the host's CPU cannot be the oracle here");
        return None;
    }
    let sum = run(plan).expect("a run");
    assert_eq!(sum.cases(), plan.cases);
    assert_eq!(sum.differing(), 0, "{}", sum.reports.join("\n"));
    Some(sum)
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
#[test]
fn random_instructions_come_out_as_on_the_host() {
    println!(
        "SKIPPED: the host is not x86-64 Linux, so its CPU cannot be the oracle; recorded rows run all the same"
    );
}
