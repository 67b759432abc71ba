//! Small old instructions and the odd ones: decimal adjust, LAHF/SAHF, CLD/STD, XLAT, SALC, CMPXCHG8B/16B, CRC32,
//! RDRAND, RDSEED.
use super::operand::{Kind, Source, Src, by_width, kind};
use crate::cpu::Cpu;
use crate::event::{Stop, vector};
use crate::exec::Exec;
use crate::op::{CHECKED, Helper, LOCK, Op};
use crate::state::{fl, gpr};
use crate::width::{W8, W16, W32, W64, Width};
use iced_x86::{Instruction, Mnemonic};

fn al(cpu: &mut Cpu) -> u8 {
    cpu.state.gpr[gpr::RAX] as u8
}

/// Sets ZF, SF, PF of a byte, and CF and AF as given; OF is cleared (undefined by the manual).
fn decimal_flags(cpu: &mut Cpu, r: u8, cf: bool, af: bool) {
    let mut f = 0;
    if r == 0 {
        f |= fl::ZF;
    }
    if r & 0x80 != 0 {
        f |= fl::SF;
    }
    if r.count_ones() & 1 == 0 {
        f |= fl::PF;
    }
    if cf {
        f |= fl::CF;
    }
    if af {
        f |= fl::AF;
    }
    cpu.state.set_arith_flags(f);
}

fn daa(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    let old = al(cpu);
    let (cf, af) = (cpu.state.cf(), cpu.state.af());
    let mut r = old;
    let low = old & 15 > 9 || af;
    if low {
        r = r.wrapping_add(6);
    }
    let high = old > 0x99 || cf;
    if high {
        r = r.wrapping_add(0x60);
    }
    cpu.set_reg::<W8>(0, u64::from(r));
    decimal_flags(cpu, r, high, low);
    Ok(())
}

fn das(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    let old = al(cpu);
    let (cf, af) = (cpu.state.cf(), cpu.state.af());
    let mut r = old;
    let mut carry = false;
    let low = old & 15 > 9 || af;
    if low {
        carry = cf || r < 6;
        r = r.wrapping_sub(6);
    }
    if old > 0x99 || cf {
        r = r.wrapping_sub(0x60);
        carry = true;
    }
    cpu.set_reg::<W8>(0, u64::from(r));
    decimal_flags(cpu, r, carry, low);
    Ok(())
}

fn ascii_adjust(cpu: &mut Cpu, add: bool) {
    let adjust = al(cpu) & 15 > 9 || cpu.state.af();
    let mut ax = cpu.state.gpr[gpr::RAX] as u16;
    if adjust {
        ax = if add { ax.wrapping_add(0x106) } else { ax.wrapping_sub(6).wrapping_sub(0x100) };
    }
    ax &= 0xff0f;
    cpu.set_reg::<W16>(0, u64::from(ax));
    decimal_flags(cpu, ax as u8, adjust, adjust);
}

fn aaa(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    ascii_adjust(cpu, true);
    Ok(())
}

fn aas(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    ascii_adjust(cpu, false);
    Ok(())
}

fn aam(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let base = op.imm as u8;
    if base == 0 {
        return Err(cpu.raise(vector::DE));
    }
    let a = al(cpu);
    cpu.set_reg::<W16>(0, u64::from(a / base) << 8 | u64::from(a % base));
    decimal_flags(cpu, a % base, false, false);
    Ok(())
}

fn aad(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let ah = (cpu.state.gpr[gpr::RAX] >> 8) as u8;
    let r = al(cpu).wrapping_add(ah.wrapping_mul(op.imm as u8));
    cpu.set_reg::<W16>(0, u64::from(r));
    decimal_flags(cpu, r, false, false);
    Ok(())
}

fn lahf(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    let f = cpu.state.arith_flags() & 0xff | 2;
    cpu.set_reg::<W8>(0x20, f);
    Ok(())
}

fn sahf(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    let ah = cpu.reg::<W8>(0x20);
    let of = cpu.state.arith_flags() & fl::OF;
    cpu.state.set_arith_flags(ah & fl::ARITH & 0xff | of);
    Ok(())
}

fn cld(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    cpu.state.rflags &= !fl::DF;
    Ok(())
}

fn std(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    cpu.state.rflags |= fl::DF;
    Ok(())
}

fn salc(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    let v = if cpu.state.cf() { 0xff } else { 0 };
    cpu.set_reg::<W8>(0, v);
    Ok(())
}

fn xlat(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let sum = cpu.state.gpr[gpr::RBX].wrapping_add(u64::from(al(cpu)));
    let off = (sum << (op.ashift & 63)) >> (op.ashift & 63);
    let lin = if op.flags & CHECKED == 0 {
        cpu.view[usize::from(op.seg & 7)].base.wrapping_add(off)
    } else {
        cpu.linear(usize::from(op.seg), off, 1, false)?
    };
    let v = cpu.load::<W8>(lin, op.seg)?;
    cpu.set_reg::<W8>(0, v);
    Ok(())
}

/// CMPXCHG8B (`W32`) and CMPXCHG16B (`W64`).
fn cmpxchg_pair<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let size = 2 * W::BYTES;
    let lin = cpu.operand(op, size, true)?;
    if W::BITS == 64 && lin & 15 != 0 {
        return Err(cpu.gp(0));
    }
    let (a, d, b, c) = (cpu.reg::<W>(0), cpu.reg::<W>(2), cpu.reg::<W>(3), cpu.reg::<W>(1));
    if W::BITS == 32 {
        let old = d << 32 | a;
        let new = c << 32 | b;
        let (found, _) =
            cpu.rmw::<W64>(lin, op.seg, op.flags & LOCK != 0, |_, v| if v == old { new } else { v })?;
        if found != old {
            cpu.set_reg::<W32>(0, found & 0xffff_ffff);
            cpu.set_reg::<W32>(2, found >> 32);
        }
        set_zf(cpu, found == old);
        return Ok(());
    }
    cpu.probe_write(lin, 16, op.seg)?;
    let old = u128::from(d) << 64 | u128::from(a);
    let new = u128::from(c) << 64 | u128::from(b);
    let found = cpu.compare_exchange128(lin, op.seg, old, new)?;
    if found != old {
        cpu.set_reg::<W64>(0, found as u64);
        cpu.set_reg::<W64>(2, (found >> 64) as u64);
    }
    set_zf(cpu, found == old);
    Ok(())
}

fn set_zf(cpu: &mut Cpu, zf: bool) {
    let f = cpu.state.arith_flags() & !fl::ZF;
    cpu.state.set_arith_flags(f | if zf { fl::ZF } else { 0 });
}

/// CRC32 (SSE4.2): polynomial 11EDC6F41h, reflected.
fn crc32<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = if op.is_mem() { cpu.load_op::<W>(op)? } else { Src::get::<Cpu, W>(cpu, op)? };
    let mut crc = cpu.reg::<W32>(op.dst) as u32;
    for n in 0..W::BYTES {
        crc ^= (v >> (8 * n)) as u8 as u32;
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    cpu.set_reg::<W32>(op.dst, u64::from(crc));
    Ok(())
}

/// RDRAND and RDSEED: a number and CF, or zero without CF where there is none.
fn random<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let number = cpu.board.random();
    cpu.set_reg::<W>(op.dst, number.unwrap_or(0) & W::MASK);
    cpu.state.set_arith_flags(if number.is_some() { fl::CF } else { 0 });
    Ok(())
}

pub(crate) fn lookup(i: &Instruction) -> Option<Helper> {
    match i.mnemonic() {
        Mnemonic::Daa => Helper::straight(daa),
        Mnemonic::Das => Helper::straight(das),
        Mnemonic::Aaa => Helper::straight(aaa),
        Mnemonic::Aas => Helper::straight(aas),
        Mnemonic::Aam => Helper::straight(aam),
        Mnemonic::Aad => Helper::straight(aad),
        Mnemonic::Lahf => Helper::straight(lahf),
        Mnemonic::Sahf => Helper::straight(sahf),
        Mnemonic::Cld => Helper::straight(cld),
        Mnemonic::Std => Helper::straight(std),
        Mnemonic::Salc => Helper::straight(salc),
        Mnemonic::Xlatb => Helper::straight(xlat),
        Mnemonic::Cmpxchg8b => Helper::straight(cmpxchg_pair::<W32>),
        Mnemonic::Cmpxchg16b => Helper::straight(cmpxchg_pair::<W64>),
        Mnemonic::Crc32 => {
            let width = match kind(i, 1) {
                Kind::Reg => i.op1_register().size(),
                _ => i.memory_size().size(),
            };
            by_width!(width, W => Helper::straight(crc32::<W>))
        }
        Mnemonic::Rdrand | Mnemonic::Rdseed => {
            by_width!(i.op0_register().size(), W => Helper::straight(random::<W>))
        }
        _ => None,
    }
}
