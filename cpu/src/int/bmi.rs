//! BMI1, BMI2 (VEX-coded general-register instructions) and ADX.
use crate::cpu::{Cpu, Stop};
use crate::exec::Exec;
use crate::op::{Helper, Op};
use crate::state::fl;
use crate::width::{W32, W64, Width};
use iced_x86::{Instruction, Mnemonic};

/// The r/m operand at position 1.
fn second<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<u64, Stop> {
    if op.is_mem() { cpu.load_op::<W>(op) } else { Ok(cpu.reg::<W>(op.src)) }
}

/// The r/m operand at position 2.
fn third<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<u64, Stop> {
    if op.is_mem() { cpu.load_op::<W>(op) } else { Ok(cpu.reg::<W>(op.src2)) }
}

fn andn<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let b = third::<W>(cpu, op)?;
    let a = cpu.reg::<W>(op.src);
    let r = !a & b & W::MASK;
    cpu.set_reg::<W>(op.dst, r);
    cpu.flags_logic::<W>(r);
    Ok(())
}

fn bextr<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let a = second::<W>(cpu, op)?;
    let c = cpu.reg::<W>(op.src2);
    let (start, len) = (c & 0xff, c >> 8 & 0xff);
    let v = if start >= 64 { 0 } else { a >> start };
    let r = if len >= 64 { v } else { v & ((1 << len) - 1) };
    cpu.set_reg::<W>(op.dst, r);
    cpu.flags_logic::<W>(r);
    Ok(())
}

/// BLSI, BLSMSK, BLSR: destination is operand 0 (VEX.vvvv), source operand 1.
fn blsi<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let a = second::<W>(cpu, op)?;
    let r = a & a.wrapping_neg() & W::MASK;
    cpu.set_reg::<W>(op.dst, r);
    cpu.flags_result::<W>(r, a != 0, false);
    Ok(())
}

fn blsmsk<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let a = second::<W>(cpu, op)?;
    let r = (a ^ a.wrapping_sub(1)) & W::MASK;
    cpu.set_reg::<W>(op.dst, r);
    cpu.flags_result::<W>(r, a == 0, false);
    Ok(())
}

fn blsr<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let a = second::<W>(cpu, op)?;
    let r = a & a.wrapping_sub(1);
    cpu.set_reg::<W>(op.dst, r);
    cpu.flags_result::<W>(r, a == 0, false);
    Ok(())
}

fn bzhi<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let a = second::<W>(cpu, op)?;
    let n = cpu.reg::<W>(op.src2) & 0xff;
    let bits = u64::from(W::BITS);
    let r = if n >= bits { a } else { a & ((1 << n) - 1) };
    cpu.set_reg::<W>(op.dst, r);
    cpu.flags_result::<W>(r, n >= bits, false);
    Ok(())
}

fn mulx<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let b = third::<W>(cpu, op)?;
    let a = cpu.reg::<W>(2);
    let lo = cpu.mul::<W>(a, b);
    let hi = cpu.umulh::<W>(a, b);
    // The low half first: with equal destinations the high half remains.
    cpu.set_reg::<W>(op.src, lo);
    cpu.set_reg::<W>(op.dst, hi);
    Ok(())
}

fn pdep<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let mut mask = third::<W>(cpu, op)?;
    let mut a = cpu.reg::<W>(op.src);
    let mut r = 0;
    while mask != 0 {
        let low = mask & mask.wrapping_neg();
        if a & 1 != 0 {
            r |= low;
        }
        a >>= 1;
        mask ^= low;
    }
    cpu.set_reg::<W>(op.dst, r);
    Ok(())
}

fn pext<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let mut mask = third::<W>(cpu, op)?;
    let a = cpu.reg::<W>(op.src);
    let (mut r, mut at) = (0, 0);
    while mask != 0 {
        let low = mask & mask.wrapping_neg();
        r |= u64::from(a & low != 0) << at;
        at += 1;
        mask ^= low;
    }
    cpu.set_reg::<W>(op.dst, r);
    Ok(())
}

fn rorx<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let a = second::<W>(cpu, op)?;
    let n = op.imm & W::COUNT_MASK;
    let r = cpu.rotl::<W>(a, 0u64.wrapping_sub(n));
    cpu.set_reg::<W>(op.dst, r);
    Ok(())
}

fn shift_x<W: Width, const KIND: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let a = second::<W>(cpu, op)?;
    let n = cpu.reg::<W>(op.src2) & W::COUNT_MASK;
    let r = match KIND {
        0 => cpu.shl::<W>(a, n),
        1 => cpu.shr::<W>(a, n),
        _ => cpu.sar::<W>(a, n),
    };
    cpu.set_reg::<W>(op.dst, r);
    Ok(())
}

/// ADCX (carry in CF) and ADOX (carry in OF).
fn adx<W: Width, const FLAG: u64>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let b = second::<W>(cpu, op)?;
    let a = cpu.reg::<W>(op.dst);
    let f = cpu.state.arith_flags();
    let sum = u128::from(a) + u128::from(b) + u128::from(f & FLAG != 0);
    cpu.set_reg::<W>(op.dst, sum as u64 & W::MASK);
    let carry = sum >> W::BITS != 0;
    cpu.state.set_arith_flags(f & !FLAG | if carry { FLAG } else { 0 });
    Ok(())
}

pub(crate) fn lookup(i: &Instruction) -> Option<Helper> {
    let wide = i.op0_register().size() == 8;
    macro_rules! go {
        ($f:ident $(, $k:expr)?) => {
            if wide { Helper::straight($f::<W64 $(, { $k })?>) } else { Helper::straight($f::<W32 $(, { $k })?>) }
        };
    }
    match i.mnemonic() {
        Mnemonic::Andn => go!(andn),
        Mnemonic::Bextr => go!(bextr),
        Mnemonic::Blsi => go!(blsi),
        Mnemonic::Blsmsk => go!(blsmsk),
        Mnemonic::Blsr => go!(blsr),
        Mnemonic::Bzhi => go!(bzhi),
        Mnemonic::Mulx => go!(mulx),
        Mnemonic::Pdep => go!(pdep),
        Mnemonic::Pext => go!(pext),
        Mnemonic::Rorx => go!(rorx),
        Mnemonic::Shlx => go!(shift_x, 0),
        Mnemonic::Shrx => go!(shift_x, 1),
        Mnemonic::Sarx => go!(shift_x, 2),
        Mnemonic::Adcx => go!(adx, fl::CF),
        Mnemonic::Adox => go!(adx, fl::OF),
        _ => None,
    }
}
