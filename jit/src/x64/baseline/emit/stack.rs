//! The stack: what is pushed and popped, and the window on it.
//!
//! A block asks once for all that it accesses by RSP at known distances, if that is more than one access: before its
//! first instruction, whether a *window* of one of the [`WINDOWS`]' lengths lies on the stack's page as a whole. Then
//! each of these accesses needs no more than the page's addend, and leaves the flags alone. If it does not lie there,
//! other code for the block is executed, without a window, which is made when it is asked for first.
use super::*;

/// What a block accesses on the stack.
pub(super) struct Window {
    /// From RSP where the block begins to the first byte.
    first: i32,
    /// Which of the [`WINDOWS`] it takes.
    length: usize,
    /// The ops before this have their accesses in it.
    until: usize,
}

impl Window {
    /// Of what a block begins with, as far as it is known; `None` if that is not worth it.
    pub fn of(block: &Block) -> Option<Self> {
        if !block.long || !block.may_window {
            return None;
        }
        let (mut depth, mut first, mut end) = (0i64, i64::MAX, i64::MIN);
        let (mut accesses, mut until) = (0, 0);
        for (k, (op, i)) in block.ops.iter().enumerate() {
            let Some((i, true)) = i else { break };
            let mut used = (first, end, accesses);
            let mut access = |at: i64, len: i64| used = (used.0.min(at), used.1.max(at + len), used.2 + 1);
            if is_by_stack_pointer(op) && i.mnemonic() != Mnemonic::Lea {
                let len =
                    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory).then(|| i.memory_size().size());
                match len {
                    Some(0) => break,
                    Some(len) => access(depth.wrapping_add(op.disp as i64), len as i64),
                    None => {}
                }
            }
            let Some(moved) = moves(op, i) else { break };
            if i.is_stack_instruction() {
                access(depth.min(depth + moved), 8);
            }
            depth += moved;
            if used.1.saturating_sub(used.0) > WINDOWS[WINDOWS.len() - 1] as i64 {
                break;
            }
            (first, end, accesses) = used;
            until = k + 1;
        }
        if accesses < 2 {
            return None;
        }
        let length = WINDOWS.iter().position(|&len| end - first <= len as i64)?;
        Some(Self { first: i32::try_from(first).ok()?, length, until })
    }
}

/// Whether an op's memory operand is at a known distance from RSP.
fn is_by_stack_pointer(op: &Op) -> bool {
    usize::from(op.base) == gpr::RSP
        && usize::from(op.index) == gpr::ZERO
        && usize::from(op.seg & 7) < seg::FS
        && op.ashift == 0
        && op.flags & CHECKED == 0
        && i32::try_from(op.disp as i64).is_ok()
}

/// By how much an instruction of 64-bit mode moves RSP, if that is known. What uses the stack by itself accesses 8 bytes
/// there.
fn moves(op: &Op, i: &Instruction) -> Option<i64> {
    let is_stack_pointer = |n: u32| i.op_register(n).full_register() == Register::RSP;
    if i.is_stack_instruction() {
        let moved = i64::from(i.stack_pointer_increment());
        let plain = match i.mnemonic() {
            Mnemonic::Push | Mnemonic::Call => moved == -8,
            Mnemonic::Pop => moved == 8 && i.op0_kind() == OpKind::Register && !is_stack_pointer(0),
            Mnemonic::Ret => i.code() == Code::Retnq,
            _ => false,
        };
        return plain.then_some(moved);
    }
    match i.code() {
        Code::Add_rm64_imm8 | Code::Add_rm64_imm32 if is_stack_pointer(0) => {
            return Some(i64::from(i.immediate(1) as i32));
        }
        Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 if is_stack_pointer(0) => {
            return Some(-i64::from(i.immediate(1) as i32));
        }
        Code::Lea_r64_m if is_stack_pointer(0) => {
            return is_by_stack_pointer(op).then_some(op.disp as i64);
        }
        _ => {}
    }
    // It may be read.
    let reads = match i.mnemonic() {
        Mnemonic::Cmp | Mnemonic::Test => 0,
        Mnemonic::Mov | Mnemonic::Add | Mnemonic::Sub => 1,
        _ => u32::MAX,
    };
    (0..i.op_count()).all(|n| n >= reads || !is_stack_pointer(n)).then_some(0)
}

impl Emitter<'_> {
    /// Asks for the window, where the block begins. Scratch registers and flags are lost.
    pub(super) fn open(&mut self, window: &Window) {
        self.is_open(window.first, window.length);
        let site = self.a.jcc(cc::AE);
        self.out_of_line(Cold::Window {
            site,
            back: self.a.at(),
            first: window.first,
            length: window.length,
        });
        self.windowed = window.until;
    }

    /// Below if a window on the stack may be used. RAX is lost.
    pub(super) fn is_open(&mut self, first: i32, length: usize) {
        self.a.lea(true, host::RAX, host::R14, None, first);
        self.a.sub_mem(host::RAX, CPU, STACK_PAGE);
        self.a.cmp_mem(host::RAX, CPU, STACK_ROOM + 8 * length as i32);
    }

    /// Whether what the current op accesses by RSP is in the window.
    pub(super) fn has_window(&self) -> bool {
        self.k < self.windowed
    }

    /// Whether the current op's memory operand is in the window.
    pub(super) fn is_in_window(&self, op: &Op) -> bool {
        self.has_window() && is_by_stack_pointer(op)
    }

    /// R10 = what is to be added to linear addresses in the window.
    pub(super) fn base_window(&mut self) {
        // Nothing else is executed between two that follow each other.
        if self.based.is_none_or(|k| k + 1 != self.k) {
            self.a.load(host::R10, CPU, STACK_ADDEND);
        }
        self.based = Some(self.k);
    }

    /// R10 = the host address of what is in the window, at a distance from RSP.
    pub(super) fn in_window(&mut self, distance: i32) {
        self.a.load(host::R10, CPU, STACK_ADDEND);
        self.a.lea(true, host::R10, host::R10, Some((host::R14, 0)), distance);
    }

    /// As [`Self::look_up`], for an address on the stack.
    pub(super) fn look_up_stack(&mut self, len: u64, write: bool) {
        use host::{R10, RAX};
        // As long as there is a window its page stays.
        let kind = miss(len, write).filter(|_| len <= 16 && !self.has_window());
        let Some(kind) = kind else { return self.look_up(len, write) };
        debug_assert!(self.saved);
        self.flags_lost();
        self.a.mov(RAX, R10);
        // What is not aligned may lie on two pages.
        self.a.and_imm(RAX, tlb::aligned_page(len) as i32);
        self.a.cmp_mem(RAX, CPU, STACK_PAGE);
        let site = self.a.jcc(cc::NE);
        self.a.add_mem(R10, CPU, STACK_ADDEND);
        let (back, k) = (self.a.at(), self.k);
        self.out_of_line(Cold::Miss { site, back, stub: self.stubs.stack[kind], k, place: None });
    }

    /// Width of what is pushed, if it is the mode's own.
    pub(super) fn stack_width(&self, op: &Op, width: usize) -> Option<u64> {
        let own = if self.long { 8 } else { 4 };
        (usize::from(op.stack) == own && width == own).then_some(own as u64)
    }

    /// The host address, in R10, of what is to be pushed.
    pub(super) fn stack_below(&mut self, len: u64) {
        if self.has_window() {
            return self.in_window(-(len as i32));
        }
        self.save_flags();
        self.a.lea(self.long, host::R10, host::R14, None, -(len as i32));
        self.look_up_stack(len, true);
    }

    /// Loads a word of the stack's width from the address in R10.
    pub(super) fn load_own(&mut self, to: u8) {
        if self.long {
            self.a.load(to, host::R10, 0);
        } else {
            self.a.load32(to, host::R10, 0);
        }
    }

    pub(super) fn move_stack(&mut self, distance: i32) {
        self.a.lea(self.long, host::R14, host::R14, None, distance);
    }

    pub(super) fn push_op(&mut self, op: &Op, i: &Instruction) -> Option<()> {
        let immediate = match i.op0_kind() {
            OpKind::Register if i.op0_register().is_gpr() => None,
            OpKind::Memory if self.can_address(op) => None,
            OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32
            | OpKind::Immediate32to64 => Some(i.immediate(0) as i32),
            _ => return None,
        };
        let width = match i.op0_kind() {
            OpKind::Register => i.op0_register().size(),
            OpKind::Memory => i.memory_size().size(),
            _ => i.stack_pointer_increment().unsigned_abs() as usize,
        };
        let len = self.stack_width(op, width)?;
        let wide = self.long;
        if i.op0_kind() == OpKind::Memory {
            self.operand(op, len, false);
            self.load_own(host::RAX);
            self.a.store(true, host::RAX, CPU, ASIDE);
        }
        if self.has_window() && i.op0_kind() != OpKind::Memory {
            let at = (host::R14, 0);
            self.base_window();
            if let Some(v) = immediate {
                self.a.store_imm_indexed(v, host::R10, at, -(len as i32));
            } else {
                let from = self.in_register(i.op0_register().full_register().number() as u8, host::RAX);
                self.a.store_indexed(from, host::R10, at, -(len as i32));
            }
            self.move_stack(-(len as i32));
            return Some(());
        }
        self.stack_below(len);
        if let Some(v) = immediate {
            self.a.store_imm(wide, v, host::R10, 0);
        } else if i.op0_kind() == OpKind::Memory {
            self.a.load(host::RAX, CPU, ASIDE);
            self.a.store(wide, host::RAX, host::R10, 0);
        } else {
            let from = self.in_register(i.op0_register().full_register().number() as u8, host::RAX);
            self.a.store(wide, from, host::R10, 0);
        }
        self.move_stack(-(len as i32));
        Some(())
    }

    pub(super) fn pop_op(&mut self, op: &Op, i: &Instruction) -> Option<()> {
        if i.op0_kind() != OpKind::Register || !i.op0_register().is_gpr() {
            return None;
        }
        let len = self.stack_width(op, i.op0_register().size())?;
        let guest = i.op0_register().full_register().number();
        let to = MAP[guest].unwrap_or(host::RAX);
        if self.has_window() {
            self.base_window();
            self.a.load_indexed(to, host::R10, (host::R14, 0), 0);
            self.move_stack(len as i32);
        } else {
            self.save_flags();
            self.a.lea(self.long, host::R10, host::R14, None, 0);
            self.look_up_stack(len, false);
            // First RSP, which may be what is popped.
            self.move_stack(len as i32);
            self.load_own(to);
        }
        if MAP[guest].is_none() {
            self.a.store(true, to, CPU, cpu::gpr(guest));
        }
        Some(())
    }

    pub(super) fn leave_op(&mut self, op: &Op, i: &Instruction) -> Option<()> {
        if !matches!(i.code(), Code::Leaveq | Code::Leaved) {
            return None;
        }
        let len = self.stack_width(op, usize::from(op.stack))?;
        self.save_flags();
        self.a.lea(self.long, host::R10, 5, None, 0);
        self.look_up(len, false);
        self.a.lea(self.long, host::R14, 5, None, len as i32);
        self.load_own(5);
        Some(())
    }
}
