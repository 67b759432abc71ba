//! What the interpreter is made of: decoding, dispatch, TLB hits, page walks. `cargo bench -p mynah-cpu`.
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iced_x86::code_asm::*;
use mynah_cpu::board::NoBoard;
use mynah_cpu::decode::decode_op;
use mynah_cpu::mode::ModeKey;
use mynah_cpu::state::{Segment, cr0, gpr};
use mynah_cpu::width::W32;
use mynah_cpu::{Cpu, CpuModel, Exit};
use mynah_mmu::{Access, GuestRam, Mode, Paging, PhysMemory, walk};
use std::hint::black_box;
use std::sync::Arc;

fn cpu() -> Box<Cpu> {
    let mem = PhysMemory::new(GuestRam::new(16 << 20).unwrap(), 16 << 20);
    let model = Arc::new(CpuModel::parse("max").unwrap());
    let mut cpu = Cpu::new(0, mem, Arc::new(NoBoard), Arc::default(), model);
    cpu.state.cr0 |= cr0::PE;
    for (i, s) in cpu.state.seg.iter_mut().enumerate() {
        *s = Segment { base: 0, limit: !0, attr: if i == 1 { 0xc09b } else { 0xc093 }, sel: 8 };
    }
    cpu.sync_all();
    cpu
}

/// Assembles a loop of `n` rounds around `body` at 1000h, ended by HLT.
fn program(cpu: &Cpu, n: u32, body: impl Fn(&mut CodeAssembler)) {
    let mut a = CodeAssembler::new(32).unwrap();
    let mut top = a.create_label();
    a.mov(ecx, n).unwrap();
    a.mov(esi, 0x10_0000).unwrap();
    a.set_label(&mut top).unwrap();
    body(&mut a);
    a.dec(ecx).unwrap();
    a.jne(top).unwrap();
    a.hlt().unwrap();
    cpu.mem.write(0x1000, &a.assemble(0x1000).unwrap());
}

fn run(cpu: &mut Cpu) {
    cpu.state.gpr[gpr::RIP] = 0x1000;
    cpu.state.activity = mynah_cpu::state::Activity::Running;
    assert_eq!(cpu.run(), Exit::Halt);
}

fn decode(c: &mut Criterion) {
    let model = CpuModel::parse("max").unwrap();
    let code: &[&[u8]] = &[
        &[0x48, 0x89, 0x5c, 0x24, 0x08],
        &[0x0f, 0xb6, 0x04, 0x8d, 0, 0, 0, 0],
        &[0x48, 0x83, 0xc0, 0x01],
        &[0x0f, 0x84, 0, 1, 0, 0],
        &[0x66, 0x0f, 0x6f, 0x00],
    ];
    let mut g = c.benchmark_group("decode");
    g.throughput(Throughput::Elements(code.len() as u64));
    g.bench_function("5 instructions to ops", |b| {
        b.iter(|| {
            for bytes in code {
                black_box(decode_op(&model, ModeKey(ModeKey::LONG | ModeKey::FLAT), bytes, 0));
            }
        });
    });
    g.finish();
}

fn dispatch(c: &mut Criterion) {
    let mut g = c.benchmark_group("dispatch");
    let mut cpu = cpu();
    g.throughput(Throughput::Elements(6_000_000));
    program(&cpu, 1_000_000, |a| {
        a.add(eax, ecx).unwrap();
        a.xor(ebx, eax).unwrap();
        a.rol(eax, 5).unwrap();
        a.add(edx, ebx).unwrap();
    });
    g.bench_function("register arithmetic, 6 million instructions", |b| b.iter(|| run(&mut cpu)));
    let mut cpu = self::cpu();
    program(&cpu, 1_000_000, |a| {
        a.mov(eax, dword_ptr(esi + 8)).unwrap();
        a.add(eax, ecx).unwrap();
        a.mov(dword_ptr(esi + 64), eax).unwrap();
        a.inc(ebx).unwrap();
    });
    g.bench_function("loads and stores that hit the TLB, 6 million instructions", |b| {
        b.iter(|| run(&mut cpu));
    });
    g.finish();
}

fn memory(c: &mut Criterion) {
    let mut g = c.benchmark_group("memory");
    let mut cpu = cpu();
    let _ = cpu.load::<W32>(0x10_0000, 3);
    g.bench_function("TLB hit", |b| b.iter(|| black_box(cpu.load::<W32>(black_box(0x10_0000), 3))));

    // Four levels: PML4 at 10000h, PDPT, PD, PT behind it; the table maps page 0 of every level to itself.
    for level in 0..4u64 {
        cpu.mem.write_u64(0x1_0000 + level * 0x1000, (0x1_1000 + level * 0x1000) | 0x67);
    }
    let p = Paging {
        cr0: cr0::PE | cr0::PG | cr0::WP,
        cr3: 0x1_0000,
        cr4: mynah_cpu::state::cr4::PAE,
        efer: mynah_cpu::state::efer::LMA | mynah_cpu::state::efer::LME,
        phys_bits: 40,
        a20_mask: !0,
        ..Paging::default()
    };
    let access = Access { write: true, fetch: false, mode: Mode::SuperAc };
    assert!(walk(&cpu.mem, &p, 0x123, access).is_ok());
    g.bench_function("page walk, four levels", |b| {
        b.iter(|| black_box(walk(&cpu.mem, &p, black_box(0x123), access)));
    });
    g.finish();
}

criterion_group!(benches, decode, dispatch, memory);
criterion_main!(benches);
