//! From bytes to [`Op`]: iced-x86 decodes, this resolves operands and picks the handler.
use crate::cpu::Cpu;
use crate::exec::Exec;
use crate::mode::ModeKey;
use crate::model::{CpuModel, Vendor};
use crate::op::{CHECKED, Flow, HELPER, LOCK, LONG, MEM, Op, REP, REPNE, WIDE};
use crate::state::gpr;
use iced_x86::{
    Code, Decoder, DecoderError, EncodingKind, FlowControl, Instruction, Mnemonic, OpKind, Register,
};

/// What a finished selection says of an instruction.
pub struct Selected<E: Exec> {
    /// The handler.
    pub handler: E::Handler,
    /// The helper, if the handler is the one that calls it.
    pub helper: crate::op::HelperFn,
    /// How it relates to its block.
    pub flow: Flow,
    /// It is a helper.
    pub is_helper: bool,
}

/// Decodes the instruction at the start of `bytes`, which stands `off` bytes behind the block's first byte. `None` if
/// it needs more bytes.
pub fn decode_op(model: &CpuModel, mode: ModeKey, bytes: &[u8], off: usize) -> Option<(Op, Flow)> {
    let bytes = &bytes[..bytes.len().min(15)];
    let options = model.decoder_options();
    let mut d = Decoder::with_ip(mode.bitness(), bytes, off as u64, options);
    let mut i = d.decode();
    if i.is_invalid() && d.last_error() == DecoderError::NoMoreBytes {
        return None;
    }
    // The decoder calls what goes on behind 15 bytes invalid; what is invalid by its opcode shows that within them.
    let cut = || {
        let mut d = Decoder::with_ip(mode.bitness(), &bytes[..14], off as u64, options);
        let _ = d.decode();
        d.last_error() == DecoderError::NoMoreBytes
    };
    if i.is_invalid() && i.len() == 15 && cut() {
        // More than 15 bytes: #GP(0).
        i = Instruction::default();
        i.set_len(15);
        let mut op = blank(&i, mode, off);
        (op.run, op.helper) = (crate::handler::run_ender, crate::handler::too_long);
        return Some((op, Flow::Ends));
    }
    if i.code() == Code::Pause
        && mode.has(ModeKey::LONG)
        && model.vendor == Vendor::Amd
        && bytes.len() >= 2
        && bytes[i.len().max(2) - 2] & 0xf1 == 0x41
    {
        i = exchange_r8(&i, bytes[i.len().max(2) - 2] & 8 != 0, &bytes[..i.len()]);
    }
    if is_wide_outside_64_bit_mode(model, mode, &i, bytes) {
        let len = i.len();
        i = Instruction::default();
        i.set_len(len);
    }
    Some(interpreted(model, mode, &i, bytes, off).unwrap_or_else(|| {
        let mut op = blank(&i, mode, off);
        (op.run, op.helper) = (crate::handler::run_ender, crate::handler::undefined);
        (op, Flow::Ends)
    }))
}

/// VPINSRQ or VPEXTRQ outside 64-bit mode, which does not exist with AMD (APM volume 4). With Intel VEX.W is ignored
/// there, as with all else that moves general registers with both makers, and as the decoder has it (SDM volume 2,
/// PINSRQ, note 2).
fn is_wide_outside_64_bit_mode(model: &CpuModel, mode: ModeKey, i: &Instruction, bytes: &[u8]) -> bool {
    matches!(i.code(), Code::VEX_Vpinsrd_xmm_xmm_rm32_imm8 | Code::VEX_Vpextrd_rm32_xmm_imm8)
        && !mode.has(ModeKey::LONG)
        && model.vendor == Vendor::Amd
        // The three-byte prefix, behind prefixes that are none of its bytes; W is in the last.
        && bytes.iter().position(|&b| b == 0xc4).is_some_and(|at| bytes.get(at + 2).is_some_and(|b| b & 0x80 != 0))
}

/// The interpreter's op for an instruction of these bytes; `None` for what raises #UD.
fn interpreted(
    model: &CpuModel,
    mode: ModeKey,
    i: &Instruction,
    bytes: &[u8],
    off: usize,
) -> Option<(Op, Flow)> {
    let (mut op, s) = build::<Cpu>(model, mode, i, off)?;
    crate::x87::note_opcode(&mut op, bytes);
    (op.run, op.helper) = (s.handler, s.helper);
    Some((op, s.flow))
}

/// Decodes the instructions of a block one after the other.
pub(crate) struct Run<'a> {
    decoder: Decoder<'a>,
    bytes: &'a [u8],
    mode: ModeKey,
    next: Instruction,
}

impl<'a> Run<'a> {
    /// Of the bytes of a block, from the offset `at` on.
    pub fn new(model: &CpuModel, mode: ModeKey, bytes: &'a [u8], at: usize) -> Self {
        let options = model.decoder_options();
        let decoder = Decoder::with_ip(mode.bitness(), bytes, 0, options);
        let mut run = Self { decoder, bytes, mode, next: Instruction::default() };
        run.go_to(at);
        run
    }

    fn go_to(&mut self, at: usize) {
        self.decoder.set_ip(at as u64);
        // An offset in the bytes, or their end, is a position.
        let _ = self.decoder.set_position(at);
    }

    /// As [`decode_op`] of the instruction at the offset `at`, which is where the last one ended.
    pub fn next(&mut self, model: &CpuModel, at: usize) -> Option<(Op, Flow)> {
        debug_assert_eq!(self.decoder.position(), at);
        self.decoder.decode_out(&mut self.next);
        let bytes = &self.bytes[at..];
        if !self.next.is_invalid()
            && self.next.code() != Code::Pause
            && !is_wide_outside_64_bit_mode(model, self.mode, &self.next, bytes)
            && let Some(decoded) = interpreted(model, self.mode, &self.next, bytes, at)
        {
            return Some(decoded);
        }
        let decoded = decode_op(model, self.mode, bytes, at)?;
        self.go_to(at + usize::from(decoded.0.len));
        Some(decoded)
    }
}

/// With AMD F3 90 with REX.B is no PAUSE but XCHG R8, rAX with a prefix that means nothing (APM volume 3, XCHG); with
/// Intel it is a PAUSE all the same.
fn exchange_r8(pause: &Instruction, wide: bool, bytes: &[u8]) -> Instruction {
    let (code, r8, rax) = if wide {
        (Code::Xchg_r64_RAX, Register::R8, Register::RAX)
    } else if bytes.contains(&0x66) {
        (Code::Xchg_r16_AX, Register::R8W, Register::AX)
    } else {
        (Code::Xchg_r32_EAX, Register::R8D, Register::EAX)
    };
    let mut i = Instruction::default();
    i.set_code(code);
    i.set_op0_register(r8);
    i.set_op1_register(rax);
    i.set_len(pause.len());
    i.set_ip(pause.ip());
    i
}

fn blank(i: &Instruction, mode: ModeKey, off: usize) -> Op {
    Op {
        run: crate::handler::run_ender,
        helper: crate::handler::undefined,
        imm: 0,
        disp: 0,
        base: gpr::ZERO as u8,
        index: gpr::ZERO as u8,
        scale: 0,
        seg: 3,
        ashift: 0,
        dst: 0,
        src: 0,
        src2: 0,
        width: 0,
        len: i.len() as u8,
        flags: HELPER | if mode.has(ModeKey::LONG) { LONG } else { 0 },
        stack: if mode.has(ModeKey::LONG) {
            8
        } else if mode.has(ModeKey::STACK32) {
            4
        } else {
            2
        },
        off: off as u16,
        code: i.code() as u16,
    }
}

/// Resolves operands and selects the handler for engine `E`; `None` for what raises #UD.
pub fn build<E: crate::sse::VecExec>(
    model: &CpuModel,
    mode: ModeKey,
    i: &Instruction,
    off: usize,
) -> Option<(Op, Selected<E>)> {
    if i.is_invalid() || !model.allows(i) {
        return None;
    }
    let mut op = blank(i, mode, off);
    if i.encoding() == EncodingKind::VEX {
        // There are no VEX prefixes in real and virtual-8086 mode (SDM volume 2, 2.3).
        if !mode.has(ModeKey::PE) || mode.has(ModeKey::VM) {
            return None;
        }
        let o = i.code().op_code();
        if o.l() == 1 && !o.is_lig() {
            op.flags |= WIDE;
        }
    }
    if i.has_lock_prefix() {
        op.flags |= LOCK;
    }
    if i.has_repne_prefix() {
        op.flags |= REPNE;
    }
    if i.has_rep_prefix() {
        op.flags |= REP;
    }
    op.width = width_of(i);
    op.ashift = address_shift(i, mode);
    let mut immediates = 0;
    for n in 0..i.op_count() {
        let kind = i.op_kind(n);
        match kind {
            OpKind::Register => {
                let r = register_number(i.op_register(n));
                match n {
                    0 => op.dst = r,
                    1 => op.src = r,
                    2 => op.src2 = r,
                    _ => op.imm = r.into(),
                }
            }
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                op.imm = i.near_branch_target();
                op.width = match kind {
                    OpKind::NearBranch16 => 2,
                    OpKind::NearBranch32 => 4,
                    _ => 8,
                };
            }
            OpKind::FarBranch16 => {
                op.imm = u64::from(i.far_branch_selector()) << 32 | u64::from(i.far_branch16());
                op.width = 2;
            }
            OpKind::FarBranch32 => {
                op.imm = u64::from(i.far_branch_selector()) << 32 | u64::from(i.far_branch32());
                op.width = 4;
            }
            OpKind::Memory => {
                op.flags |= MEM;
                // moffs has 64 bits, others are sign-extended by the decoder already.
                op.disp = i.memory_displacement64();
                op.base = address_register(i.memory_base());
                op.index = address_register(i.memory_index());
                op.scale = i.memory_index_scale().trailing_zeros() as u8;
                op.seg = segment(i, mode);
            }
            OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemorySegDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegRDI => op.seg = segment(i, mode),
            OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI => {}
            _ => {
                let v = i.immediate(n);
                op.imm = if immediates == 0 { v } else { op.imm & 0xffff_ffff | v << 32 };
                immediates += 1;
            }
        }
    }
    // Segment checks: in 64-bit mode none; in a flat environment none but through FS and GS.
    if op.flags & LONG == 0 && (!mode.has(ModeKey::FLAT) || !matches!(op.seg, 0 | 2 | 3)) {
        op.flags |= CHECKED;
    }
    let s = select::<E>(i, &op)?;
    if op.flags & LOCK != 0 && !op.is_mem() {
        return None;
    }
    if !s.is_helper {
        op.flags &= !HELPER;
    }
    Some((op, s))
}

/// The segment of the memory operand. In 64-bit mode only FS and GS prefixes count; SS is then what RSP or RBP as a
/// base stands for.
fn segment(i: &Instruction, mode: ModeKey) -> u8 {
    match i.memory_segment() {
        Register::ES | Register::CS | Register::SS | Register::DS if mode.has(ModeKey::LONG) => {
            let stack =
                matches!(i.memory_base(), Register::RSP | Register::RBP | Register::ESP | Register::EBP);
            if stack { 2 } else { 3 }
        }
        r => register_number(r),
    }
}

fn select<E: crate::sse::VecExec>(i: &Instruction, op: &Op) -> Option<Selected<E>> {
    let natural = if i.flow_control() == FlowControl::Next { Flow::Straight } else { Flow::Ends };
    let none: crate::op::HelperFn = crate::handler::undefined;
    if let Some(handler) = crate::int::select::<E>(i, op) {
        return Some(Selected { handler, helper: none, flow: natural, is_helper: false });
    }
    let helper = crate::int::lookup(i)
        .or_else(|| crate::sys::lookup(i))
        .or_else(|| crate::x87::lookup(i))
        .or_else(|| crate::sse::lookup(i));
    if let Some(h) = helper {
        return Some(Selected { handler: E::helper(h), helper: h.run, flow: h.flow, is_helper: true });
    }
    let handler = crate::sse::select::<E>(i)?;
    Some(Selected { handler, helper: none, flow: natural, is_helper: false })
}

/// The size in bytes of the operation: of the first operand, or of memory.
fn width_of(i: &Instruction) -> u8 {
    if i.op_count() == 0 {
        return operand_size(i.code());
    }
    match i.op0_kind() {
        OpKind::Register => i.op0_register().size() as u8,
        OpKind::Memory
        | OpKind::MemorySegSI
        | OpKind::MemorySegESI
        | OpKind::MemorySegRSI
        | OpKind::MemorySegDI
        | OpKind::MemorySegEDI
        | OpKind::MemorySegRDI
        | OpKind::MemoryESDI
        | OpKind::MemoryESEDI
        | OpKind::MemoryESRDI => i.memory_size().size() as u8,
        OpKind::NearBranch16 | OpKind::FarBranch16 if i.mnemonic() != Mnemonic::Xbegin => 2,
        OpKind::NearBranch32 | OpKind::FarBranch32 if i.mnemonic() != Mnemonic::Xbegin => 4,
        OpKind::NearBranch64 if i.mnemonic() != Mnemonic::Xbegin => 8,
        _ => operand_size(i.code()),
    }
}

/// The size in bytes of the operation of an instruction that has no operand, or an immediate first: 0 if it has none.
/// (iced's own table is made as text when it is first asked, which takes longer than a boot sector runs.)
#[rustfmt::skip]
fn operand_size(code: Code) -> u8 {
    use Code::*;
    match code {
        Pushaw | Popaw | Nopw | Cbw | Cwd | Pushfw | Popfw | Retnw | Leavew | Retfw | Iretw | Push_imm16 | Pushw_imm8
        | Retnw_imm16 | Retfw_imm16 | Enterw_imm16_imm8 | Out_imm8_AX | Xbegin_rel16 => 2,
        Pushad | Popad | Nopd | Cwde | Cdq | Pushfd | Popfd | Retnd | Leaved | Retfd | Iretd | Pushd_imm32 | Pushd_imm8
        | Retnd_imm16 | Retfd_imm16 | Enterd_imm16_imm8 | Out_imm8_EAX | Xbegin_rel32 => 4,
        Nopq | Cdqe | Cqo | Pushfq | Popfq | Retnq | Leaveq | Retfq | Iretq | Pushq_imm32 | Pushq_imm8
        | Retnq_imm16 | Retfq_imm16 | Enterq_imm16_imm8 | Sysretq | Sysexitq | Getsecq => 8,
        _ => 0,
    }
}

/// The address size in bits of an instruction without a memory operand, if it has one: that of its counter, or of a
/// register that is an address.
#[rustfmt::skip]
fn address_size(code: Code) -> u32 {
    use Code::*;
    match code {
        Loopne_rel8_16_CX | Loopne_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX | Loop_rel8_16_CX
        | Loop_rel8_32_CX | Jcxz_rel8_16 | Jcxz_rel8_32 => 16,
        Loopne_rel8_16_ECX | Loopne_rel8_32_ECX | Loopne_rel8_64_ECX | Loope_rel8_16_ECX | Loope_rel8_32_ECX
        | Loope_rel8_64_ECX | Loop_rel8_16_ECX | Loop_rel8_32_ECX | Loop_rel8_64_ECX | Jecxz_rel8_16 | Jecxz_rel8_32
        | Jecxz_rel8_64 => 32,
        Loopne_rel8_16_RCX | Loopne_rel8_64_RCX | Loope_rel8_16_RCX | Loope_rel8_64_RCX | Loop_rel8_16_RCX
        | Loop_rel8_64_RCX | Jrcxz_rel8_16 | Jrcxz_rel8_64 => 64,
        code => match code.mnemonic() {
            Mnemonic::Monitor | Mnemonic::Monitorx | Mnemonic::Umonitor | Mnemonic::Clzero | Mnemonic::Vmrun
            | Mnemonic::Vmload | Mnemonic::Vmsave | Mnemonic::Invlpga | Mnemonic::Invlpgb | Mnemonic::Pvalidate => {
                code.op_code().address_size()
            }
            _ => 0,
        },
    }
}

fn address_shift(i: &Instruction, mode: ModeKey) -> u8 {
    // String instructions and LOOP/JCXZ/MASKMOV name the size by their operand kind or code; others by their registers
    // or displacement.
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 48,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return 32,
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => return 0,
            OpKind::Memory => {
                let r = if i.memory_base() != Register::None { i.memory_base() } else { i.memory_index() };
                return match r.size() {
                    2 => 48,
                    4 => 32,
                    8 => 0,
                    _ => match i.memory_displ_size() {
                        2 => 48,
                        4 => 32,
                        8 => 0,
                        _ => default_address_shift(mode),
                    },
                };
            }
            _ => {}
        }
    }
    match address_size(i.code()) {
        16 => 48,
        32 => 32,
        64 => 0,
        _ => default_address_shift(mode),
    }
}

fn default_address_shift(mode: ModeKey) -> u8 {
    match mode.bitness() {
        64 => 0,
        32 => 32,
        _ => 48,
    }
}

fn address_register(r: Register) -> u8 {
    match r {
        Register::None => gpr::ZERO as u8,
        Register::RIP | Register::EIP => gpr::RIP as u8,
        r => r.full_register().number() as u8,
    }
}

/// A register's number as [`Op`] codes it.
pub fn register_number(r: Register) -> u8 {
    match r {
        Register::AH | Register::CH | Register::DH | Register::BH => (r.number() as u8 - 4) | 0x20,
        r if r.is_gpr() => r.full_register().number() as u8,
        Register::None => 0,
        r => r.number() as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::OpCodeOperandKind as Kind;

    #[test]
    fn sizes_are_those_of_the_table_of_all_instructions() {
        let mut seen = 0;
        for code in Code::values().filter(|c| c.op_code().is_instruction()) {
            let o = code.op_code();
            let first = match o.op0_kind() {
                _ if o.op_count() == 0 => OpKind::Register,
                Kind::br16_1 | Kind::br16_2 => OpKind::NearBranch16,
                Kind::br32_1 | Kind::br32_4 => OpKind::NearBranch32,
                Kind::br64_1 | Kind::br64_4 => OpKind::NearBranch64,
                Kind::farbr2_2 => OpKind::FarBranch16,
                Kind::farbr4_2 => OpKind::FarBranch32,
                Kind::imm8 | Kind::imm16 | Kind::imm32 => OpKind::Immediate8,
                Kind::imm8sex16 | Kind::imm8sex32 | Kind::imm8sex64 | Kind::imm32sex64 => OpKind::Immediate8,
                // Where they lead is of the mode's size, whatever their own.
                Kind::xbegin_2 | Kind::xbegin_4 => OpKind::NearBranch32,
                _ => continue,
            };
            let mut i = Instruction::new();
            i.set_code(code);
            i.set_op0_kind(first);
            assert_eq!(u32::from(width_of(&i)) * 8, o.operand_size(), "{code:?}");
            seen += 1;
        }
        assert!(seen > 300);
        for code in Code::values().filter(|c| c.op_code().is_instruction()) {
            let o = code.op_code();
            let memory = (0..o.op_count()).any(|n| format!("{:?}", o.op_kind(n)).contains("mem"));
            let other = code.cpuid_features().iter().any(|f| format!("{f:?}").contains("PADLOCK"));
            if !memory && !other {
                assert_eq!(address_size(code), o.address_size(), "{code:?}");
            }
        }
    }
}
