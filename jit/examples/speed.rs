//! Prints how fast three loops run interpreted and translated, in millions of guest instructions per second, and what
//! compiling cost.
//!
//! `cargo run --release -p mynah-jit --example speed`
#[path = "../tests/common/mod.rs"]
mod common;

use common::*;
use iced_x86::code_asm::*;
use mynah_jit::tier::Translating;
use std::sync::atomic::Ordering;
use std::time::Instant;

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Adds, exclusive-ors and rotates in registers.
fn chain(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(ecx, 20_000_000)?;
    a.set_label(&mut top)?;
    a.add(eax, ecx)?;
    a.xor(ebx, eax)?;
    a.rol(eax, 5)?;
    a.add(edx, ebx)?;
    a.dec(ecx)?;
    a.jne(top)?;
    a.hlt()
}

/// Strided byte stores.
fn sieve(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut outer, mut inner) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(rsi, DATA)?;
    a.mov(ebp, 500)?;
    a.set_label(&mut again)?;
    a.mov(ebx, 2)?;
    a.set_label(&mut outer)?;
    a.lea(edi, ptr(rbx + rbx))?;
    a.set_label(&mut inner)?;
    a.mov(byte_ptr(rsi + rdi), 0)?;
    a.add(edi, ebx)?;
    a.cmp(edi, 0x7000)?;
    a.jb(inner)?;
    a.inc(ebx)?;
    a.cmp(ebx, 200)?;
    a.jne(outer)?;
    a.dec(ebp)?;
    a.jne(again)?;
    a.hlt()
}

/// CRC-32 by table look-ups.
fn crc32(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut top) = (a.create_label(), a.create_label());
    a.mov(ebp, 1000)?;
    a.set_label(&mut again)?;
    a.mov(esi, (DATA + 1024) as u32)?;
    a.set_label(&mut top)?;
    a.movzx(edx, byte_ptr(rsi))?;
    a.xor(dl, al)?;
    a.shr(eax, 8)?;
    a.xor(eax, dword_ptr(rdx * 4 + DATA as i32))?;
    a.inc(rsi)?;
    a.cmp(rsi, DATA as i32 + 0x5000)?;
    a.jne(top)?;
    a.dec(ebp)?;
    a.jne(again)?;
    a.hlt()
}

fn main() {
    let programs: [(&str, Program); 3] = [("chain", chain), ("sieve", sieve), ("crc32", crc32)];
    println!(
        "{:8} {:>12} {:>12} {:>7} {:>10} {:>10}",
        "loop", "interpreted", "translated", "ratio", "guest ops", "host bytes"
    );
    for (name, f) in programs {
        let mut a = CodeAssembler::new(64).expect("64-bit code");
        f(&mut a).expect("a program");
        let code = a.assemble(CODE).expect("its code");
        let mut plain = machine(64);
        let mut fast = machine(64);
        for cpu in [&plain, &fast] {
            cpu.mem.write(CODE, &code);
        }
        let t = Instant::now();
        plain.run();
        let interpreted = plain.icount as f64 / t.elapsed().as_secs_f64() / 1e6;
        let tier = Translating::at_once(fast.events.clone()).expect("a translator");
        let counters = tier.counters();
        fast.set_tier(Box::new(tier), 50);
        let t = Instant::now();
        fast.run();
        let translated = fast.icount as f64 / t.elapsed().as_secs_f64() / 1e6;
        assert!(plain.state == fast.state, "{name}: different results");
        let (ops, bytes) =
            (counters.instructions.load(Ordering::Relaxed), counters.bytes.load(Ordering::Relaxed));
        println!(
            "{name:8} {interpreted:>7.0} MIPS {translated:>7.0} MIPS {:>6.1}x {ops:>10} {bytes:>10}",
            translated / interpreted
        );
    }
}
