//! FLDENV, FSTENV, FRSTOR, FSAVE: the environment in its four formats (SDM volume 1, figures 8-9 to 8-12),
//! with the registers behind it.
//!
//! | bytes | 16-bit protected | 16-bit real, VM86 | 32-bit protected | 32-bit real, VM86 |
//! | --- | --- | --- | --- | --- |
//! | words | 2 bytes | 2 bytes | 4 bytes, upper half ones | 4 bytes, upper half ones |
//! | 0 1 2 | control, status, tags | same | same | same |
//! | 3 | FIP | linear FIP 0-15 | FIP | linear FIP 0-15 |
//! | 4 | FCS | FIP 16-19 in 12-15, FOP | FCS, FOP in 16-26 | FIP 16-31 in 12-27, FOP |
//! | 5 | FDP | linear FDP 0-15 | FDP | linear FDP 0-15 |
//! | 6 | FDS | FDP 16-19 in 12-15 | FDS | FDP 16-31 in 12-27 |
use super::load_store::{f80_bytes, f80_of};
use super::unit::{check, check_no_wait, settle};
use super::word::*;
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::op::Op;
use crate::state::Fpu;

type Done = Result<(), Stop>;

/// Bytes of the environment: 14 or 28.
const fn size(wide: bool) -> usize {
    if wide { 28 } else { 14 }
}

/// The environment as seven words of the format, in `b`.
fn write_environment(f: &Fpu, wide: bool, protected: bool, b: &mut [u8]) {
    let linear = |sel: u16, offset: u64| (u32::from(sel) << 4).wrapping_add(offset as u32);
    let fop = u32::from(f.fop & 0x7ff);
    let pointers = if protected {
        let fop = if wide { fop << 16 } else { 0 };
        [
            f.fip as u32,
            u32::from(f.fcs) | fop,
            f.fdp as u32,
            u32::from(f.fds) | if wide { 0xffff_0000 } else { 0 },
        ]
    } else {
        let (ip, dp) = (linear(f.fcs, f.fip), linear(f.fds, f.fdp));
        let upper = if wide { 0xffff_0000 } else { 0 };
        [ip & 0xffff | upper, ip >> 16 << 12 | fop, dp & 0xffff | upper, dp >> 16 << 12]
    };
    let ones = 0xffff_0000;
    let words = [
        u32::from(f.cw) | ones,
        u32::from(f.status()) | ones,
        u32::from(f.tag_word()) | ones,
        pointers[0],
        pointers[1],
        pointers[2],
        pointers[3],
    ];
    if wide {
        for (d, w) in b.chunks_exact_mut(4).zip(words) {
            d.copy_from_slice(&w.to_le_bytes());
        }
    } else {
        for (d, w) in b.chunks_exact_mut(2).zip(words) {
            d.copy_from_slice(&(w as u16).to_le_bytes());
        }
    }
}

fn read_environment(f: &mut Fpu, wide: bool, protected: bool, b: &[u8]) {
    let mut w = [0u32; 7];
    if wide {
        for (d, s) in w.iter_mut().zip(b.chunks_exact(4)) {
            *d = u32::from_le_bytes([s[0], s[1], s[2], s[3]]);
        }
    } else {
        for (d, s) in w.iter_mut().zip(b.chunks_exact(2)) {
            *d = u32::from(u16::from_le_bytes([s[0], s[1]]));
        }
    }
    f.cw = w[0] as u16 & 0x1f3f | 0x40;
    f.set_status(w[1] as u16);
    f.set_tag_word(w[2] as u16);
    if protected {
        (f.fip, f.fcs, f.fdp, f.fds) = (u64::from(w[3]), w[4] as u16, u64::from(w[5]), w[6] as u16);
        if wide {
            f.fop = (w[4] >> 16) as u16 & 0x7ff;
        }
    } else {
        // Linear addresses: kept as offsets in a segment at zero.
        let high = |v: u32| u64::from(v >> 12 & 0xffff) << 16;
        f.fip = u64::from(w[3] & 0xffff) | high(w[4]);
        f.fdp = u64::from(w[5] & 0xffff) | high(w[6]);
        (f.fcs, f.fds) = (0, 0);
        f.fop = w[4] as u16 & 0x7ff;
    }
}

/// FNSTENV. All exceptions are masked afterwards.
pub fn fnstenv<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    check_no_wait(cpu)?;
    let mut b = [0u8; 28];
    let b = &mut b[..size(WIDE)];
    write_environment(&cpu.state.fpu, WIDE, cpu.state.is_protected(), b);
    let lin = cpu.operand(op, b.len() as u64, true)?;
    cpu.store_bytes(lin, b, op.seg)?;
    let f = &mut cpu.state.fpu;
    f.cw |= EXCEPTIONS;
    f.sync_summary();
    settle(cpu);
    Ok(())
}
/// FSTENV.
pub fn fstenv<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    fnstenv::<WIDE>(cpu, op)
}
/// FLDENV.
pub fn fldenv<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    let mut b = [0u8; 28];
    let b = &mut b[..size(WIDE)];
    let lin = cpu.operand(op, b.len() as u64, false)?;
    cpu.load_bytes(lin, b, op.seg)?;
    let protected = cpu.state.is_protected();
    read_environment(&mut cpu.state.fpu, WIDE, protected, b);
    settle(cpu);
    Ok(())
}
/// FNSAVE: environment and ST(0)-ST(7), then FNINIT.
pub fn fnsave<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    check_no_wait(cpu)?;
    let mut b = [0u8; 108];
    let b = &mut b[..size(WIDE) + 80];
    let f = &cpu.state.fpu;
    write_environment(f, WIDE, cpu.state.is_protected(), &mut b[..size(WIDE)]);
    for (i, d) in b[size(WIDE)..].chunks_exact_mut(10).enumerate() {
        d.copy_from_slice(&f80_bytes(f.st(i as u8)));
    }
    let lin = cpu.operand(op, b.len() as u64, true)?;
    cpu.store_bytes(lin, b, op.seg)?;
    cpu.state.fpu.init();
    settle(cpu);
    Ok(())
}
/// FSAVE.
pub fn fsave<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    fnsave::<WIDE>(cpu, op)
}
/// FRSTOR.
pub fn frstor<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    check(cpu)?;
    let mut b = [0u8; 108];
    let b = &mut b[..size(WIDE) + 80];
    let lin = cpu.operand(op, b.len() as u64, false)?;
    cpu.load_bytes(lin, b, op.seg)?;
    let protected = cpu.state.is_protected();
    let f = &mut cpu.state.fpu;
    read_environment(f, WIDE, protected, &b[..size(WIDE)]);
    for (i, s) in b[size(WIDE)..].chunks_exact(10).enumerate() {
        let mut x = [0; 10];
        x.copy_from_slice(s);
        let p = f.phys(i as u8);
        f.r[p] = f80_of(&x);
    }
    settle(cpu);
    Ok(())
}
