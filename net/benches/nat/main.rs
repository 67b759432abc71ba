//! TCP through the NAT without a guest: long segments and those of a link, each way, request and response, connections;
//! bits or how many in a second by the wall's clock. The other end is a thread on the loopback.
//!
//! `cargo bench -p mynah-net --bench nat`; `--bench beside-passt` has the same beside passt.
#[cfg(unix)]
mod guest;
#[cfg(unix)]
mod nat;
#[cfg(unix)]
#[allow(dead_code, reason = "medians are criterion's matter")]
mod side;

#[cfg(unix)]
fn through(c: &mut criterion::Criterion) {
    let mut group = c.benchmark_group("nat");
    group.sample_size(30);
    for (name, long, what) in side::ALL {
        group.throughput(match what {
            side::What::Up(_) | side::What::Down(_) => criterion::Throughput::Bits(what.amount()),
            _ => criterion::Throughput::Elements(what.amount()),
        });
        let mut side = side::Side::new(Box::new(nat::Nat::new(long)), what).unwrap();
        group.bench_function(name, |b| b.iter(|| side.round(what)));
    }
    group.finish();
}

#[cfg(unix)]
criterion::criterion_group!(benches, through);
#[cfg(unix)]
criterion::criterion_main!(benches);

/// The NAT is for Unix hosts.
#[cfg(not(unix))]
fn main() {}
