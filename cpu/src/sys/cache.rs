//! Cache and TLB maintenance: INVLPG, INVPCID, INVD, WBINVD, CLFLUSH and its kin, CLZERO; fences. Caches are coherent
//! here, so that only checks remain of most of these (SDM volume 2).
use super::privilege::ring0;
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::op::{Helper, Op};
use crate::state::{cr4, gpr};
use crate::width::W64;
use iced_x86::{Instruction, Mnemonic};
use std::sync::atomic::{Ordering, fence};

/// What a serialising instruction (SDM volume 3A, 9.3) does for memory: earlier stores are seen by all before later
/// loads are made. Such an instruction also ends its block, so that what others have changed in code is seen behind
/// it.
pub(super) fn serialise() {
    fence(Ordering::SeqCst);
}

/// INVLPG makes no access: its address is not checked.
fn invlpg(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    ring0(cpu)?;
    let base = cpu.view[usize::from(op.seg & 7)].base;
    let lin = base.wrapping_add(cpu.ea(op));
    let lin = if cpu.state.is_long64() { lin } else { lin & 0xffff_ffff };
    cpu.tlb.flush_page(lin);
    serialise();
    Ok(())
}

fn invpcid(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    serialise();
    ring0(cpu)?;
    let mut kind = cpu.state.gpr[usize::from(op.dst & 31)];
    if !op.is_long() {
        kind &= 0xffff_ffff;
    }
    let lin = cpu.operand(op, 16, false)?;
    let pcid = cpu.load::<W64>(lin, op.seg)?;
    let at = cpu.operand_at(op, 8, 8, false)?;
    let target = cpu.load::<W64>(at, op.seg)?;
    let no_pcid = cpu.state.cr4 & cr4::PCIDE == 0 && pcid != 0;
    let bad =
        kind > 3 || pcid >> 12 != 0 || kind < 2 && no_pcid || kind == 0 && !cpu.is_canonical_base(target);
    if bad {
        return Err(cpu.gp(0));
    }
    match kind {
        0 => cpu.tlb.flush_page_pcid(pcid as u16, target),
        1 => cpu.tlb.flush_pcid(pcid as u16),
        2 => cpu.tlb.flush_all(),
        _ => cpu.tlb.flush_non_global(),
    }
    Ok(())
}

fn privileged_nop(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    ring0(cpu)?;
    serialise();
    Ok(())
}

/// CLFLUSH, CLFLUSHOPT, CLWB: checked as the load of a byte; execute-only segments are allowed too.
fn flush_line(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let lin = cpu.operand(op, 1, false)?;
    cpu.probe(lin, 1, op.seg, false)
}

/// CLZERO (AMD): zeroes the 64-byte line of rAX.
fn clzero(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let shift = op.ashift & 63;
    let off = cpu.state.gpr[gpr::RAX] << shift >> shift & !63;
    let lin = cpu.linear(usize::from(op.seg), off, 64, true)?;
    cpu.store_bytes(lin, &[0; 64], op.seg)
}

fn full_fence(_: &mut Cpu, _: &Op) -> Result<(), Stop> {
    fence(Ordering::SeqCst);
    Ok(())
}

fn nop(_: &mut Cpu, _: &Op) -> Result<(), Stop> {
    Ok(())
}

/// The helper for an instruction of this group.
pub(super) fn lookup(i: &Instruction) -> Option<Helper> {
    match i.mnemonic() {
        Mnemonic::Invlpg => Helper::ends(invlpg),
        Mnemonic::Invpcid => Helper::ends(invpcid),
        Mnemonic::Invd | Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => Helper::ends(privileged_nop),
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => Helper::straight(flush_line),
        Mnemonic::Clzero => Helper::straight(clzero),
        Mnemonic::Mfence | Mnemonic::Lfence | Mnemonic::Sfence => Helper::straight(full_fence),
        Mnemonic::Serialize => Helper::ends(full_fence),
        Mnemonic::Cldemote
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchit0
        | Mnemonic::Prefetchit1
        // Without shadow stacks these are no-operations.
        | Mnemonic::Rdsspd
        | Mnemonic::Rdsspq => Helper::straight(nop),
        _ => None,
    }
}
