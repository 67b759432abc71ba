//! What is executed seldom: side exits, and what jumps go to that are not linked. It stands behind all bodies of a
//! block, and is put apart from them.
use super::*;

/// What stands out of line, behind a block's code.
pub(in super::super) enum Cold {
    /// A look-up missed, or the place at this offset in the vCPU: asks for the address by a stub, and goes on at
    /// `back` or has op `k` interpreted.
    Miss { site: usize, back: usize, stub: usize, k: usize, place: Option<i32> },
    /// The stack's page is not known to have a window that begins at `first` from RSP, of one of the [`WINDOWS`]. Goes
    /// on at `back` if it has, else with other code for the block.
    Window { site: usize, back: usize, first: i32, length: usize },
    /// Has op `k` interpreted.
    Interpret { site: usize, k: usize },
    /// Has the host's MXCSR or x87 unit (`which`) hold the guest's, and goes on at `back` or has op `k` interpreted.
    Float { site: usize, back: usize, k: usize, which: u8 },
    /// Op `k`, which is kept at the address `op`, is called after all, and goes on at `back` or returns.
    Call { sites: [Option<usize>; 4], back: usize, op: u64, k: usize },
    /// Op `k` was called and returns.
    Returned { site: usize, k: usize },
    /// Events are pending where the block begins; their word is at RAX. Goes on at `back` if they are not to be looked
    /// at now.
    Event { site: usize, back: usize },
    /// The block has run often.
    Hot { site: usize },
    /// Goes on at an offset from the page's first byte.
    Elsewhere { site: usize, target: i64 },
    /// A return to the address in RAX that was not expected (`sites`); the stack pointer is yet to be moved by
    /// `moved`.
    Unexpected { sites: [Option<usize>; 3], k: usize, moved: i32 },
}

impl Emitter<'_> {
    /// Patches a jump or call to go to a stub.
    pub(super) fn patch_to_stub(&mut self, site: usize, stub: usize) {
        self.a.patch(site, stub as i64 - self.origin as i64);
        if site >= self.split {
            self.crossing.push(site);
        }
    }

    /// Patches a jump to go to another place in the block's code.
    pub(super) fn lead(&mut self, site: usize, to: usize) {
        self.a.patch(site, to as i64);
        if (site < self.split) != (to < self.split) {
            self.crossing.push(site);
        }
    }

    /// Leaves by a stub at an offset in the page, having counted `too_much`.
    fn leave(&mut self, stub: usize, offset: i64, too_much: usize) {
        self.a.imm(host::RAX, offset as u64 | (too_much as u64) << 16);
        let site = self.a.jmp();
        self.patch_to_stub(site, stub);
    }

    /// Returns from the code, as the called op `k` says.
    fn returned(&mut self, k: usize) {
        let too_much = self.count - k - 1;
        self.a.add_mem_imm(CPU, cpu::ICOUNT, -(too_much as i8));
        let site = self.a.jmp();
        self.patch_to_stub(site, self.stubs.out);
    }

    fn offset_of(&self, k: usize, offsets: &[i64]) -> i64 {
        offsets.get(k).copied().unwrap_or(self.first)
    }

    pub(super) fn finish(&mut self, exits: &mut Vec<DirectExit>) {
        let offsets = std::mem::take(&mut self.offsets);
        let mut cold = std::mem::take(&mut self.cold);
        for (c, last) in cold.drain(..) {
            let here = self.a.at();
            // The code that is asked for an address may leave the block.
            if !matches!(c, Cold::Event { .. } | Cold::Hot { .. } | Cold::Elsewhere { .. }) {
                self.store_last_x87(last);
            }
            match c {
                Cold::Miss { site, back, stub, k, place } => {
                    self.lead(site, here);
                    if let Some(place) = place {
                        self.a.lea(true, host::R11, CPU, None, place);
                    }
                    let at = self.offset_of(k, &offsets);
                    self.a.imm(host::RAX, at as u64 | ((self.count - k) as u64) << 16);
                    let call = self.a.call();
                    self.patch_to_stub(call, stub);
                    let found = self.a.jmp();
                    self.lead(found, back);
                }
                Cold::Float { site, back, k, which } => {
                    self.lead(site, here);
                    let kind = (FLOAT | BLOCK | u64::from(which)) as i32;
                    let number = in_context(context::LIN);
                    self.a.store_imm(true, self.number as i32, CPU, number);
                    self.a.store_imm(true, kind, CPU, in_context(context::KIND));
                    let call = self.a.call();
                    self.patch_to_stub(call, self.stubs.float);
                    self.a.test(host::R10);
                    let found = self.a.jcc(cc::NE);
                    self.lead(found, back);
                    let at = self.offset_of(k, &offsets);
                    self.leave(self.stubs.interpret, at, self.count - k);
                }
                Cold::Window { site, back, first, length } => {
                    self.lead(site, here);
                    self.a.lea(true, host::R10, host::R14, None, first);
                    let call = self.a.call();
                    self.patch_to_stub(call, self.stubs.window);
                    self.is_open(first, length);
                    let open = self.a.jcc(cc::B);
                    self.lead(open, back);
                    let other = self.a.jmp();
                    self.lead(other, self.a.at());
                    self.narrow = Some(other);
                    self.a.imm(host::R11, self.number.into());
                    self.leave(self.stubs.narrow, self.first, 0);
                }
                Cold::Interpret { site, k } => {
                    self.lead(site, here);
                    let at = self.offset_of(k, &offsets);
                    self.leave(self.stubs.interpret, at, self.count - k);
                }
                Cold::Call { sites, back, op, k } => {
                    sites.into_iter().flatten().for_each(|site| self.lead(site, here));
                    self.call_kept(op);
                    self.a.test(host::RAX);
                    let done = self.a.jcc(cc::E);
                    self.lead(done, back);
                    self.returned(k);
                }
                Cold::Returned { site, k } => {
                    self.lead(site, here);
                    self.returned(k);
                }
                Cold::Event { site, back } => {
                    self.lead(site, here);
                    backward::test_events(&mut self.a, host::RAX);
                    let masked = self.a.jcc(cc::E);
                    self.lead(masked, back);
                    self.leave(self.stubs.event, self.first, 0);
                }
                Cold::Hot { site } => {
                    self.lead(site, here);
                    self.leave(self.stubs.hot, self.first, 0);
                }
                Cold::Unexpected { sites, k, moved } => {
                    sites.into_iter().flatten().for_each(|site| self.lead(site, here));
                    if self.long {
                        self.is_canonical();
                        let fine = self.a.jcc(cc::BE);
                        self.leave(self.stubs.interpret, self.offset_of(k, &offsets), self.count - k);
                        self.lead(fine, self.a.at());
                    }
                    self.move_stack(moved);
                    self.chain();
                }
                Cold::Elsewhere { site, target } => {
                    self.lead(site, here);
                    if is_in_page(target) {
                        // Until there is code to be linked with.
                        self.a.imm(host::RAX, target as u64);
                        let site = self.a.jmp();
                        self.patch_to_stub(site, self.stubs.near);
                    } else {
                        self.target_address(target);
                        self.chain_to(target);
                    }
                    exits.push(DirectExit { site, stub: here, target, tests: self.enables });
                }
            }
        }
        (self.cold, self.offsets) = (cold, offsets);
    }
}
