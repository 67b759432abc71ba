//! Guests of random bytes, at privilege level 0, with faults, code that they write themselves, and all that system
//! instructions do: both engines must end with the same state and memory. `MYNAH_GUESTS=N` runs N of them, of seed
//! `MYNAH_SEED`, from number `MYNAH_FIRST`; with `MYNAH_CHECK` compiled code is checked as it runs, and so the place
//! of a difference is found.
mod common;
#[path = "common/guests.rs"]
mod guests;

use common::*;
use guests::{Outcome, compare};

/// Bytes that mean something more often than not: pieces of instructions that compilers use, and others.
fn bytes(r: &mut Random) -> Vec<u8> {
    const PIECES: [&[u8]; 40] = [
        &[0x89, 0xd8],
        &[0x01, 0x03],
        &[0x8b, 0x03],
        &[0x89, 0x07],
        &[0x48, 0x89, 0x07],
        &[0x48, 0x8b, 0x06],
        &[0xff, 0xc0],
        &[0xff, 0xc9],
        &[0x75, 0xf0],
        &[0x75, 0xe0],
        &[0x74, 0x05],
        &[0xeb, 0x03],
        &[0xe2, 0xf4],
        &[0x50],
        &[0x58],
        &[0x53, 0x5b],
        &[0xe8, 0x10, 0, 0, 0],
        &[0xc3],
        &[0x31, 0xc0],
        &[0x0f, 0xb6, 0x07],
        &[0x66, 0x0f, 0x6f, 0x06],
        &[0xf3, 0x0f, 0x7f, 0x07],
        &[0xf2, 0x0f, 0x58, 0xc1],
        &[0xf3, 0x0f, 0x59, 0xca],
        &[0xd9, 0xe8],
        &[0xde, 0xc1],
        &[0xdd, 0x1f],
        &[0xf3, 0xa4],
        &[0xa5],
        &[0xab],
        &[0xc6, 0x07, 0x90],
        &[0xfe, 0x07],
        &[0x0f, 0xaf, 0xc3],
        &[0xc1, 0xe0, 0x05],
        &[0xd3, 0xc8],
        &[0xf7, 0xf1],
        &[0x9c, 0x9d],
        &[0x0f, 0x01, 0x3f],
        &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8],
        &[0x0f, 0xa2],
    ];
    let mut b: Vec<u8> = (0..600).map(|_| r.next() as u8).collect();
    while b.len() < 600 + 64 + r.below(900) as usize {
        match r.below(10) {
            0 => b.push(r.next() as u8),
            1 => b.extend(r.next().to_le_bytes()),
            _ => b.extend(PIECES[r.below(PIECES.len() as u64) as usize]),
        }
    }
    b
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn random_guests_come_out_the_same_translated() {
    let (count, seed) = (number("MYNAH_GUESTS", 400), number("MYNAH_SEED", 1));
    let (mut ended, mut regions) = (0, 0);
    for n in number("MYNAH_FIRST", 0)..count {
        let mut r = Random((seed << 32 | n).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        r.next();
        let data = bytes(&mut r);
        let result = std::panic::catch_unwind(|| compare(&data));
        match result {
            Ok(Outcome::Same { compiled }) => (ended, regions) = (ended + 1, regions + compiled),
            Ok(Outcome::Endless) => {}
            Err(_) => panic!("guest {n} of seed {seed}"),
        }
    }
    println!("{ended} of {count} ended, {regions} regions");
    assert!(ended * 4 > count && regions > count, "{ended} of {count} ended, {regions} regions");
}
