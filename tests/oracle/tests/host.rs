//! A short run beside the host's own CPU.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn random_instructions_come_out_as_on_the_host() {
    use mynah_oracle::session::{Plan, run};
    if let Err(e) = mynah_oracle::native::Native::new() {
        println!("SKIPPED: {e}: the host's CPU cannot be the oracle here");
        return;
    }
    let plan = Plan { seed: 20_000, cases: 20_000, ..Plan::default() };
    let sum = run(&plan).expect("a run");
    assert_eq!(sum.cases(), 20_000);
    assert_eq!(sum.differing(), 0, "{}", sum.reports.join("\n"));
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
#[test]
fn random_instructions_come_out_as_on_the_host() {
    println!(
        "SKIPPED: the host is not x86-64 Linux, so its CPU cannot be the oracle; recorded rows run all the same"
    );
}
