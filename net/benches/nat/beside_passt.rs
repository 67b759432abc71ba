//! TCP through the NAT without a guest, beside passt if that is installed: long segments and those of a link, each way,
//! request and response, connections.
//!
//! `cargo bench -p mynah-net --bench beside-passt` prints a table. Rounds of the NAT and of passt alternate, and medians
//! are told: bits in a second by the wall's clock, and in a second of processor time, which is that of the guest's
//! thread (on which the NAT runs) and of passt's process. The other end is a thread of its own, on the loopback, which
//! is not counted. `--rounds N` is for more than 15 of each, `--only WORD` for the measurements with that in their name.
#[cfg(unix)]
mod guest;
#[cfg(unix)]
mod nat;
#[cfg(unix)]
mod passt;
#[cfg(unix)]
mod side;

#[cfg(unix)]
fn main() {
    table::print();
}

/// The NAT is for Unix hosts.
#[cfg(not(unix))]
fn main() {}

#[cfg(unix)]
mod table {
    use crate::nat::Nat;
    use crate::passt::Passt;
    use crate::side::{self, Side, What};

    /// Measures, and prints.
    pub fn print() {
        let args: Vec<String> = std::env::args().collect();
        let value = |name: &str| args.iter().position(|a| a == name).and_then(|at| args.get(at + 1));
        let rounds = value("--rounds").and_then(|n| n.parse().ok()).unwrap_or(15).max(1);
        let only = value("--only").map_or("", String::as_str);
        println!("| | unit | NAT | passt | NAT / passt | NAT, per s of CPU | passt, per s of CPU | ratio |");
        println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
        for (name, long, what) in side::ALL.into_iter().filter(|(name, ..)| name.contains(only)) {
            let mut nat = Side::new(Box::new(Nat::new(long)), what).unwrap();
            let other = Passt::new(long).and_then(|p| Side::new(Box::new(p), what));
            let (mut other, why) = match other {
                Ok(other) => (Some(other), String::new()),
                Err(e) => (None, format!("skipped: {e}")),
            };
            for _ in 0..rounds {
                nat.round(what);
                other.iter_mut().for_each(|o| o.round(what));
            }
            // What a round has of it, and whether more is better.
            let (unit, scale) =
                if matches!(what, What::Up(_) | What::Down(_)) { ("Gbit/s", 1e9) } else { ("1/s", 1.0) };
            let amount = what.amount() as f64 / scale;
            let (wall, cpu) = (amount / nat.median(|r| r.0), amount / nat.median(|r| r.1));
            let Some(other) = other else {
                println!("| {name} | {unit} | {wall:.2} | {why} | | {cpu:.2} | | |");
                continue;
            };
            let (wall2, cpu2) = (amount / other.median(|r| r.0), amount / other.median(|r| r.1));
            println!(
                "| {name} | {unit} | {wall:.2} | {wall2:.2} | {:.2} | {cpu:.2} | {cpu2:.2} | {:.2} |",
                wall / wall2,
                cpu / cpu2
            );
        }
    }
}
