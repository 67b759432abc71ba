//! How a block ends: jumps, calls and returns, and what the interpreter executes for it.
use super::*;

impl Emitter<'_> {
    pub(super) fn ender(&mut self, op: &Op, i: &Instruction) -> Option<()> {
        let own = if self.long { 8 } else { 4 };
        let near = match i.op0_kind() {
            OpKind::NearBranch64 => Some(i.near_branch64() as i64),
            OpKind::NearBranch32 => Some(i64::from(i.near_branch32() as i32)),
            _ => None,
        };
        let after = self.here + i64::from(op.len);
        match i.flow_control() {
            FlowControl::Next => {
                // The last of a block that was cut for its length ends with another op; this one is special.
                None
            }
            FlowControl::ConditionalBranch => {
                let target = near?;
                let condition = if i.is_jcc_short_or_near() {
                    let condition = condition(i.condition_code())?;
                    self.want_flags();
                    self.save_flags();
                    condition
                } else {
                    self.count_is(i)?
                };
                let site = self.a.jcc(condition);
                self.out_of_line(Cold::Elsewhere { site, target });
                self.go_to(after);
                Some(())
            }
            FlowControl::UnconditionalBranch => {
                self.go_to(near?);
                Some(())
            }
            FlowControl::Call => {
                let target = near?;
                let len = self.stack_width(op, own)?;
                self.save_flags();
                self.stack_below(len);
                self.push_return(after);
                self.go_to(target);
                Some(())
            }
            FlowControl::IndirectCall | FlowControl::IndirectBranch => {
                let call = i.flow_control() == FlowControl::IndirectCall;
                let len = if call { self.stack_width(op, own)? } else { 0 };
                match i.op0_kind() {
                    OpKind::Register if i.op0_register().size() == own => {}
                    OpKind::Memory if i.memory_size().size() == own && self.can_address(op) => {}
                    _ => return None,
                }
                if !matches!(i.code(), Code::Call_rm64 | Code::Jmp_rm64 | Code::Call_rm32 | Code::Jmp_rm32) {
                    return None;
                }
                self.save_flags();
                if i.op0_kind() == OpKind::Memory {
                    self.operand(op, own as u64, false);
                    self.load_own(host::RAX);
                } else {
                    let r = self.in_register(i.op0_register().full_register().number() as u8, host::RAX);
                    self.a.lea(self.long, host::RAX, r, None, 0);
                }
                self.check_target();
                if call {
                    self.a.store(true, host::RAX, CPU, ASIDE);
                    self.stack_below(len);
                    self.push_return(after);
                    self.a.load(host::RAX, CPU, ASIDE);
                }
                self.chain();
                Some(())
            }
            FlowControl::Return => {
                if !matches!(i.code(), Code::Retnq | Code::Retnq_imm16 | Code::Retnd | Code::Retnd_imm16) {
                    return None;
                }
                let len = self.stack_width(op, own)?;
                let dropped = if i.op_count() > 0 { i.immediate16() } else { 0 };
                self.save_flags();
                if self.has_window() {
                    self.base_window();
                    self.a.load_indexed(host::RAX, host::R10, (host::R14, 0), 0);
                } else {
                    self.a.lea(self.long, host::R10, host::R14, None, 0);
                    self.look_up_stack(len, false);
                    self.load_own(host::RAX);
                }
                self.go_back(len as i32 + i32::from(dropped));
                Some(())
            }
            _ => None,
        }
    }

    /// Changes the count of LOOP or JRCXZ, and compares it with 0. Returns the condition under which they jump; `None`
    /// if the instruction is not as wide as the mode.
    fn count_is(&mut self, i: &Instruction) -> Option<u8> {
        let (wide, loops) = match i.code() {
            Code::Loop_rel8_64_RCX => (true, true),
            Code::Loop_rel8_32_ECX => (false, true),
            Code::Jrcxz_rel8_64 => (true, false),
            Code::Jecxz_rel8_32 => (false, false),
            _ => return None,
        };
        if wide != self.long {
            return None;
        }
        self.save_flags();
        self.flags_lost();
        if loops {
            self.a.lea(wide, host::RCX, host::RCX, None, -1);
        }
        self.a.test_width(wide, host::RCX);
        Some(if loops { cc::NE } else { cc::E })
    }

    /// In 64-bit mode a jump to an address that is not canonical faults. RAX holds it; R11 and flags are lost.
    fn check_target(&mut self) {
        self.flags_lost();
        if self.long {
            self.is_canonical();
            let site = self.a.jcc(cc::A);
            self.out_of_line(Cold::Interpret { site, k: self.k });
        }
    }

    /// Below or equal if the address in RAX is canonical. R11 is lost.
    pub(super) fn is_canonical(&mut self) {
        self.a.mov(host::R11, host::RAX);
        self.a.sar(true, host::R11, 47);
        self.a.add_imm(host::R11, 1);
        self.a.cmp_imm(true, host::R11, 1);
    }

    /// Puts the address behind the call at R10, and moves the stack pointer. The return is expected from now on
    /// ([`mynah_cpu::tier::Returns`]).
    fn push_return(&mut self, after: i64) {
        use host::{R10, R11, RAX};
        self.target_address(after);
        self.a.store(self.long, RAX, R10, 0);
        self.move_stack(if self.long { -8 } else { -4 });
        // Code on another page cannot be linked with.
        if is_in_page(after) {
            let a = &mut self.a;
            a.load8(R11, CPU, returns::LATEST);
            a.add8(R11, returns::STEP);
            a.store_part(1, R11, CPU, returns::LATEST);
            a.lea(true, R11, CPU, Some((R11, returns::SCALE)), 0);
            a.store(true, RAX, R11, returns::LIN);
            a.shr(RAX, 63);
            a.load_indexed(RAX, CPU, (RAX, 3), jumps::TAGS);
            a.store(true, RAX, R11, returns::TAG);
            let site = a.lea_rip(R10);
            a.store(true, R10, R11, returns::CODE);
            self.out_of_line(Cold::Elsewhere { site, target: after });
        }
    }

    /// Returns to the address in RAX, and moves the stack pointer. The return that was expected is not any more,
    /// whether or not it is this: so what was called and has not returned costs one look for code.
    fn go_back(&mut self, moved: i32) {
        use host::{R10, R11, RAX};
        let a = &mut self.a;
        a.load8(R11, CPU, returns::LATEST);
        a.lea(false, R10, R11, None, -i32::from(returns::STEP));
        a.store_part(1, R10, CPU, returns::LATEST);
        a.lea(true, R11, CPU, Some((R11, returns::SCALE)), 0);
        a.cmp_mem(RAX, R11, returns::LIN);
        let other = a.jcc(cc::NE);
        a.mov(R10, RAX);
        a.shr(R10, 63);
        a.load_indexed(R10, CPU, (R10, 3), jumps::TAGS);
        a.cmp_mem(R10, R11, returns::TAG);
        let old = a.jcc(cc::NE);
        // It is good for once: so each time round a loop there is something that tests events.
        a.store_imm(true, 0, R11, returns::TAG);
        a.load(R11, R11, returns::CODE);
        let event = self.enables.then(|| {
            a.load(R10, CPU, in_context(context::EVENTS));
            backward::test_events(a, R10);
            a.jcc(cc::NE)
        });
        a.and_imm(RAX, tlb::PAGE as i32);
        a.store(true, RAX, CPU, PAGE_RIP);
        self.move_stack(moved);
        self.a.jmp_to(R11);
        let sites = [Some(other), Some(old), event];
        self.out_of_line(Cold::Unexpected { sites, k: self.k, moved });
    }

    /// Goes on at the address in RAX.
    pub(super) fn chain(&mut self) {
        self.chain_as(true);
    }

    /// As [`Self::chain`], at an address on another page, at this offset from the page's first byte.
    pub(super) fn chain_to(&mut self, target: i64) {
        // Who goes on goes down at some time. In 32 bits the addresses wrap.
        self.chain_as(target < 0 || self.enables || !self.long);
    }

    fn chain_as(&mut self, tests: bool) {
        self.a.bytes(&self.chained[usize::from(tests)]);
        let site = self.a.jmp();
        self.patch_to_stub(site, self.stubs.chain);
    }

    /// Goes on at an offset from the page's first byte.
    pub(super) fn go_to(&mut self, target: i64) {
        self.save_flags();
        if is_in_page(target) {
            let site = self.a.jmp();
            self.out_of_line(Cold::Elsewhere { site, target });
        } else {
            self.target_address(target);
            self.chain_to(target);
        }
    }

    /// RAX = the address at an offset from the page's first byte.
    pub(super) fn target_address(&mut self, target: i64) {
        self.a.load(host::RAX, CPU, PAGE_RIP);
        self.a.lea(self.long, host::RAX, host::RAX, None, target as i32);
    }

    /// Has the op executed by its interpreter's handler.
    pub(super) fn call(&mut self, op: &Op, last: bool) {
        self.flush_x87();
        self.save_flags();
        let op = self.keep(op);
        self.call_kept(op);
        self.called_op();
        if last {
            let site = self.a.jmp();
            self.patch_to_stub(site, self.stubs.out);
            return;
        }
        self.a.test(host::RAX);
        let site = self.a.jcc(cc::NE);
        self.out_of_line(Cold::Returned { site, k: self.k });
    }

    /// Keeps an op with the code, which has its address.
    pub(super) fn keep(&mut self, op: &Op) -> u64 {
        let kept = Box::new(*op);
        let at = &raw const *kept as u64;
        self.called.push(kept);
        at
    }

    /// Calls the stub for an op that is kept. The saved flags are the guest's.
    pub(super) fn call_kept(&mut self, op: u64) {
        self.a.imm(host::R11, op);
        self.a.imm(host::RAX, self.first as u64);
        let site = self.a.call();
        self.patch_to_stub(site, self.stubs.call);
    }

    /// An op was called, or may have been.
    pub(super) fn called_op(&mut self) {
        self.flags_lost();
        (self.vectors, self.float, self.avx, self.x87) = (0, false, false, false);
        self.windowed = 0;
    }
}
