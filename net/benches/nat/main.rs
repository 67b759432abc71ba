//! TCP through the NAT without a guest, beside passt if that is installed: long segments and those of a link, each way,
//! request and response, connections.
//!
//! `cargo bench -p mynah-net` prints a table. Rounds of the NAT and of passt alternate, and medians are told: bits in a
//! second by the wall's clock, and in a second of processor time, which is that of the guest's thread (on which the NAT
//! runs) and of passt's process. The other end is a thread of its own, on the loopback, which is not counted.
//! `--rounds N` is for more than 15 of each, `--only WORD` for the measurements with that in their name.
#[cfg(unix)]
mod guest;
#[cfg(unix)]
mod nat;
#[cfg(unix)]
mod passt;
#[cfg(unix)]
mod table;

#[cfg(unix)]
fn main() {
    table::print();
}

/// The NAT is for Unix hosts.
#[cfg(not(unix))]
fn main() {}
