//! DIV, IDIV, and the decimal divisions' relative AAM is in `legacy`.
use super::{Kind, Mem, Source, by_width, kind};
use crate::cpu::{Cpu, Stop, vector};
use crate::exec::Exec;
use crate::op::{Helper, Op};
use crate::width::{W8, Width};
use iced_x86::{Instruction, Mnemonic};

fn dividend<W: Width>(cpu: &mut Cpu) -> (u64, u64) {
    if W::BITS == 8 { (cpu.reg::<W8>(0x20), cpu.reg::<W8>(0)) } else { (cpu.reg::<W>(2), cpu.reg::<W>(0)) }
}

fn finish<W: Width>(cpu: &mut Cpu, q: u64, r: u64) {
    if W::BITS == 8 {
        cpu.set_reg::<W8>(0, q);
        cpu.set_reg::<W8>(0x20, r);
    } else {
        cpu.set_reg::<W>(0, q);
        cpu.set_reg::<W>(2, r);
    }
}

fn divisor<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<u64, Stop> {
    if op.is_mem() { Mem::get::<Cpu, W>(cpu, op) } else { Ok(cpu.reg::<W>(op.dst)) }
}

fn div<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let d = divisor::<W>(cpu, op)?;
    let (hi, lo) = dividend::<W>(cpu);
    // hi >= d: the quotient does not fit (and d = 0 is among them).
    if hi >= d {
        return Err(cpu.raise(vector::DE));
    }
    let (q, r) = if W::BITS < 64 {
        let n = hi << W::BITS | lo;
        (n / d, n % d)
    } else if hi == 0 {
        (lo / d, lo % d)
    } else {
        let n = u128::from(hi) << 64 | u128::from(lo);
        ((n / u128::from(d)) as u64, (n % u128::from(d)) as u64)
    };
    finish::<W>(cpu, q, r);
    Ok(())
}

fn idiv<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let d = W::sext(divisor::<W>(cpu, op)?) as i64;
    let (hi, lo) = dividend::<W>(cpu);
    let n = i128::from(W::sext(hi) as i64) << W::BITS | i128::from(lo);
    if d == 0 {
        return Err(cpu.raise(vector::DE));
    }
    let (q, r) = match i64::try_from(n) {
        Ok(n) => (i128::from(n) / i128::from(d), i128::from(n.wrapping_rem(d))),
        Err(_) => (n.wrapping_div(i128::from(d)), n.wrapping_rem(i128::from(d))),
    };
    let half = 1i128 << (W::BITS - 1);
    if q < -half || q >= half {
        return Err(cpu.raise(vector::DE));
    }
    finish::<W>(cpu, q as u64 & W::MASK, r as u64 & W::MASK);
    Ok(())
}

pub(crate) fn lookup(i: &Instruction) -> Option<Helper> {
    let width = match kind(i, 0) {
        Kind::Reg => i.op0_register().size(),
        _ => i.memory_size().size(),
    };
    match i.mnemonic() {
        Mnemonic::Div => by_width!(width, W => Helper::straight(div::<W>)),
        Mnemonic::Idiv => by_width!(width, W => Helper::straight(idiv::<W>)),
        _ => None,
    }
}
