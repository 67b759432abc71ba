//! IN and OUT, and the I/O permission bitmap (SDM volume 1, 18.5; volume 3A, 7.2.1).
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::exec::Exec;
use crate::op::{Helper, Op};
use crate::state::gpr;
use crate::width::{W8, W16, W32, W64};
use iced_x86::{Code, Instruction};

/// Checks that `size` bytes at `port` may be accessed now: CPL against IOPL, else the bitmap in the TSS; #GP(0). Notes
/// I/O breakpoints.
pub fn check_io(cpu: &mut Cpu, port: u16, size: u32) -> Result<(), Stop> {
    let s = &cpu.state;
    if s.is_v86() || s.is_protected() && s.cpl > s.iopl() {
        let tr = s.tr;
        // The 16-bit TSS has no bitmap.
        if tr.attr & 8 == 0 || tr.limit < 0x67 {
            return Err(cpu.gp(0));
        }
        let at = cpu.load_sys::<W16>(tr.base.wrapping_add(0x66))? + u64::from(port >> 3);
        // Two bytes are always read: a byte of ones has to follow the bitmap.
        if at + 1 > u64::from(tr.limit) {
            return Err(cpu.gp(0));
        }
        let bits = cpu.load_sys::<W16>(tr.base.wrapping_add(at))? >> (port & 7);
        if bits & ((1 << size) - 1) != 0 {
            return Err(cpu.gp(0));
        }
    }
    cpu.io_breakpoint(port, size);
    Ok(())
}

fn input(cpu: &mut Cpu, port: u16, size: u8) -> Result<(), Stop> {
    check_io(cpu, port, u32::from(size))?;
    let v = u64::from(cpu.board.port_read(port, size));
    match size {
        1 => cpu.set_reg::<W8>(0, v & 0xff),
        2 => cpu.set_reg::<W16>(0, v & 0xffff),
        _ => cpu.set_reg::<W64>(0, v),
    }
    Ok(())
}

fn output(cpu: &mut Cpu, port: u16, size: u8) -> Result<(), Stop> {
    check_io(cpu, port, u32::from(size))?;
    let v = match size {
        1 => cpu.reg::<W8>(0),
        2 => cpu.reg::<W16>(0),
        _ => cpu.reg::<W32>(0),
    };
    cpu.board.port_write(port, size, v as u32);
    Ok(())
}

fn dx(cpu: &Cpu) -> u16 {
    cpu.state.gpr[gpr::RDX] as u16
}

fn in_imm<const N: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    input(cpu, op.imm as u16 & 0xff, N)
}
fn in_dx<const N: u8>(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    input(cpu, dx(cpu), N)
}
fn out_imm<const N: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    output(cpu, op.imm as u16 & 0xff, N)
}
fn out_dx<const N: u8>(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    output(cpu, dx(cpu), N)
}

/// The helper for an instruction of this group. A port access may raise an interrupt or change the memory map: the
/// block ends.
pub(super) fn lookup(i: &Instruction) -> Option<Helper> {
    match i.code() {
        Code::In_AL_imm8 => Helper::ends(in_imm::<1>),
        Code::In_AX_imm8 => Helper::ends(in_imm::<2>),
        Code::In_EAX_imm8 => Helper::ends(in_imm::<4>),
        Code::In_AL_DX => Helper::ends(in_dx::<1>),
        Code::In_AX_DX => Helper::ends(in_dx::<2>),
        Code::In_EAX_DX => Helper::ends(in_dx::<4>),
        Code::Out_imm8_AL => Helper::ends(out_imm::<1>),
        Code::Out_imm8_AX => Helper::ends(out_imm::<2>),
        Code::Out_imm8_EAX => Helper::ends(out_imm::<4>),
        Code::Out_DX_AL => Helper::ends(out_dx::<1>),
        Code::Out_DX_AX => Helper::ends(out_dx::<2>),
        Code::Out_DX_EAX => Helper::ends(out_dx::<4>),
        _ => None,
    }
}
