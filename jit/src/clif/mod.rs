//! The translator: an [`mynah_cpu::Exec`] whose integers are Cranelift values.
//!
//! One function is made per region. General registers and the two words of lazy flags are SSA variables: loaded where
//! the region begins or comes back from a call, stored where it is left or calls. The state in memory is thus old
//! while a region runs, and complete whenever anything else looks at it. Whatever is not plain (faults, devices, pages
//! that hold code, accesses across pages) leaves the region before the instruction, with the state as that found it,
//! and the interpreter executes it: so generated code raises no faults and has none of their details in it.
//!
//! [`Translator`] here has the variables, exits and calls; [`exec`] the operations, [`memory`] the accesses,
//! [`vector`] vectors.
pub(crate) mod compile;
mod exec;
pub(crate) mod float;
mod memory;
pub(crate) mod primitive;
pub(crate) mod stubs;
mod vector;
pub(crate) mod x87;

use crate::abi::{CONTEXT, Left, context, cpu};
use crate::clif::memory::{PlaceKey, Places, Root, Seen};
use crate::clif::primitive::Primitives;
use crate::clif::x87::LastX87;
use crate::plan::{AUX, HIGH, Loop, Plan, RES, Set, VARS, XMM};
use cranelift_codegen::ir::{
    AbiParam, AliasRegion, AliasRegionData, Block, Function, InstBuilder, InstructionData, MemFlagsData,
    Opcode, SigRef, Signature, SourceLoc, Type, Value, ValueDef, condcodes::IntCC, types,
};
use cranelift_codegen::isa::{CallConv, TargetIsa};
use cranelift_frontend::{FunctionBuilder, Variable};
use mynah_cpu::decode::build;
use mynah_cpu::{CpuModel, Op, Stop};
use std::collections::HashMap;

/// A handler of the translator: emits the code of one op.
pub(crate) type Emit<'a> = fn(&mut Translator<'a>, &Op) -> Result<Step, Stop>;

/// The handlers of all ops, `None` for those that are called.
pub(crate) fn handlers<'a>(plan: &Plan, model: &CpuModel) -> Vec<Option<Emit<'a>>> {
    plan.instructions
        .iter()
        .zip(&plan.ops)
        .map(|(i, op)| {
            let i = i.as_ref()?;
            let selected = build::<Translator<'a>>(model, plan.mode, i, usize::from(op.off))?.1;
            x87::select(i).or(selected.handler)
        })
        .collect()
}

/// See [`crate::plan::Emitted`].
pub(crate) fn emitted(plan: &Plan, model: &CpuModel) -> Vec<bool> {
    handlers(plan, model).iter().map(Option::is_some).collect()
}

/// How an emitted op goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// With the next op.
    Next,
    /// It has ended its block: the builder's current block is filled.
    Ended,
}

/// What is known of the flags at translation time beyond the variables: valid in straight-line code.
#[derive(Clone, Copy)]
pub(crate) enum Recent {
    /// Nothing.
    Nothing,
    /// Of a - b.
    Sub(Value, Value, Value),
    /// Of a + b = r.
    Add(Value, Value),
    /// CF = OF = 0; the rest of the result.
    Logic(Value),
    /// ZF and SF of the result; CF and OF are elsewhere.
    Result(Value),
    /// All flags as in RFLAGS; only CF, PF and ZF may be set.
    Compared(Value),
}

/// Flags of memory accesses: the vCPU's state, its TLB's tables, guest memory and the context do not overlap.
#[derive(Clone, Copy)]
pub(crate) struct Access {
    pub state: MemFlagsData,
    pub tlb: MemFlagsData,
    pub guest: MemFlagsData,
    pub context: MemFlagsData,
    /// Parts of the context that never change.
    pub fixed: MemFlagsData,
    /// Parts of the context that stay while a region runs.
    pub entry: MemFlagsData,
}

impl Access {
    fn new(f: &mut Function) -> Self {
        let mut region = |user_id, name: &'static str| -> AliasRegion {
            f.dfg.alias_regions.insert(AliasRegionData { user_id, description: name.into() })
        };
        let plain = MemFlagsData::new().with_notrap();
        let state = plain.with_aligned().with_alias_region(Some(region(0, "state")));
        let tlb = plain.with_aligned().with_alias_region(Some(region(1, "tlb")));
        let guest = plain.with_alias_region(Some(region(2, "guest")));
        let context = plain.with_aligned().with_alias_region(Some(region(3, "context")));
        let entry = plain.with_aligned().with_alias_region(Some(region(4, "entry")));
        Self { state, tlb, guest, context, fixed: context.with_readonly().with_can_move(), entry }
    }
}

/// The convention of the functions that code calls and is entered by: see [`mynah_cpu::code_abi`].
pub(crate) fn code_convention(isa: &dyn TargetIsa) -> CallConv {
    if cfg!(target_arch = "x86_64") { CallConv::SystemV } else { isa.default_call_conv() }
}

/// The signature of a region: the vCPU. Its ops and RIP are in the context.
pub(crate) fn region_signature() -> Signature {
    let mut s = Signature::new(CallConv::Tail);
    s.params.push(AbiParam::new(types::I64));
    s.returns.push(AbiParam::new(types::I32));
    s
}

/// The signature of the stub that looks for the code at an address: vCPU, address.
pub(crate) fn chain_signature() -> Signature {
    let mut s = Signature::new(CallConv::Tail);
    s.params.extend([AbiParam::new(types::I64); 2]);
    s.returns.push(AbiParam::new(types::I32));
    s
}

/// The signature of the refill stub: the vCPU. What it is asked is in the context.
pub(crate) fn stub_signature() -> Signature {
    let mut s = Signature::new(CallConv::PreserveAll);
    s.params.push(AbiParam::new(types::I64));
    s
}

/// A cold block to be filled later: leaves the region with the variables as they are there.
struct PendingExit {
    block: Block,
    rip: Rip,
    /// Instructions of the block that have been executed.
    done: u64,
    dirty: Set,
    reason: Left,
    x87: Option<LastX87>,
}

/// Where RIP is to be when a region is left.
#[derive(Clone, Copy)]
enum Rip {
    /// So far from the entry's.
    At(i64),
    /// The value.
    Is(Value),
}

/// Translates the ops of a region.
pub struct Translator<'a> {
    pub(crate) b: FunctionBuilder<'a>,
    plan: &'a Plan,
    vars: [Variable; VARS],
    pub(crate) access: Access,
    pub(crate) cpu: Value,
    pub(crate) context: Value,
    op_sig: SigRef,
    chain_sig: SigRef,
    pub(crate) stub_sig: SigRef,
    blocks: Vec<Block>,
    /// Preheaders of loops: where the block that is led back to is entered from before it.
    preheaders: Vec<Option<Block>>,
    /// Variables that differ, or may differ, from the state in memory.
    dirty: Set,
    /// Variables that have a value.
    valid: Set,
    /// Index of the block that is translated, and of the op in it.
    at: usize,
    index: usize,
    pub(crate) recent: Recent,
    /// Where this op leaves if the interpreter must execute it.
    here: Option<Block>,
    pending: Vec<PendingExit>,
    /// What values were made of by adding constants.
    pub(crate) roots: HashMap<Value, Root>,
    /// Accesses of this block since the last call.
    pub(crate) seen: Vec<Seen>,
    /// What is known at the ends of the blocks translated so far.
    ends: Vec<End>,
    pub(crate) places: Places,
    /// What the present access shares a place with.
    pub(crate) place_key: PlaceKey,
    /// Where the region begins; it goes on with the first block.
    begin: Block,
    /// Sums of two values (the second shifted) in this block.
    pub(crate) sums: HashMap<(Value, Value, u8), Value>,
    /// Bases of segments that this block has loaded since the last call.
    pub(crate) bases: [Option<Value>; 8],
    /// A jump target that has been checked in this op.
    pub(crate) checked: Option<Value>,
    /// The op cannot be emitted: its interpreter's handler is to be called.
    pub(crate) unable: bool,
    /// Something is not as planned: there will be no region.
    pub(crate) failed: bool,
    /// What has been checked since the block began or came back from a call.
    pub(crate) ready: Ready,
    pub(crate) primitives: Primitives,
    /// Vectors that were made of constants.
    pub(crate) vector_constants: HashMap<Value, u64>,
    pub(crate) last_x87: Option<LastX87>,
}

/// What has been checked, in straight-line code.
#[derive(Clone, Copy, Default)]
pub(crate) struct Ready {
    /// Vector instructions do not trap.
    pub sse: bool,
    /// The host's MXCSR is the guest's.
    pub float: bool,
    /// The host's x87 unit is the guest's.
    pub x87: bool,
    /// AVX instructions do not trap.
    pub avx: bool,
    /// Registers whose bits 128-255 are zero in memory, and whose variables are too.
    pub high_zero: u16,
}

impl Ready {
    /// What both say.
    fn and(self, o: Self) -> Self {
        Self {
            sse: self.sse && o.sse,
            float: self.float && o.float,
            x87: self.x87 && o.x87,
            avx: self.avx && o.avx,
            high_zero: self.high_zero & o.high_zero,
        }
    }
}

/// What is known at a block's end. Values are the same only if they were computed before the ways parted.
#[derive(Clone)]
struct End {
    seen: Vec<Seen>,
    sums: HashMap<(Value, Value, u8), Value>,
    bases: [Option<Value>; 8],
    ready: Ready,
}

impl<'a> Translator<'a> {
    /// Begins the region of `plan`: entry block, loads, and a block for each of the plan's.
    pub(crate) fn new(mut b: FunctionBuilder<'a>, isa: &dyn TargetIsa, plan: &'a Plan) -> Self {
        let access = Access::new(b.func);
        let entry = b.create_block();
        b.append_block_params_for_function_params(entry);
        b.switch_to_block(entry);
        b.seal_block(entry);
        let params = b.block_params(entry);
        let cpu = params[0];
        let context = b.ins().iadd_imm_s(cpu, CONTEXT as i64);
        let vars = std::array::from_fn(|n| b.declare_var(variable_type(n)));
        let mut sig = Signature::new(code_convention(isa));
        sig.params.extend([AbiParam::new(types::I64); 2]);
        sig.returns.push(AbiParam::new(types::I32));
        let op_sig = b.import_signature(sig);
        let stub_sig = b.import_signature(stub_signature());
        let chain_sig = b.import_signature(chain_signature());
        let begin = b.create_block();
        let blocks: Vec<Block> = plan.blocks.iter().map(|_| b.create_block()).collect();
        let mut t = Self {
            b,
            plan,
            vars,
            access,
            cpu,
            context,
            op_sig,
            chain_sig,
            stub_sig,
            preheaders: vec![None; blocks.len()],
            blocks,
            dirty: 0,
            valid: 0,
            at: 0,
            index: 0,
            recent: Recent::Nothing,
            here: None,
            pending: Vec::new(),
            roots: HashMap::new(),
            seen: Vec::new(),
            ends: Vec::new(),
            places: Places::default(),
            place_key: PlaceKey::default(),
            begin,
            sums: HashMap::new(),
            bases: [None; 8],
            checked: None,
            unable: false,
            failed: false,
            ready: Ready::default(),
            primitives: Primitives::default(),
            vector_constants: HashMap::new(),
            last_x87: None,
        };
        t.reload(plan.blocks[0].live_in);
        t.b.ins().jump(t.begin, &[]);
        t
    }

    /// Translates all blocks. `None` if there is to be no region.
    pub(crate) fn run(mut self, handlers: &[Option<Emit<'a>>], isa: &dyn TargetIsa) -> Option<Primitives> {
        let plan = self.plan;
        for (n, p) in plan.blocks.iter().enumerate() {
            self.at = n;
            self.index = 0;
            self.b.switch_to_block(self.blocks[n]);
            self.dirty = p.dirty_in;
            self.valid = p.live_in | p.dirty_in;
            self.recent = Recent::Nothing;
            self.sums.clear();
            self.forget_seen();
            if p.is_head {
                self.emit_event_test();
            } else if n > 0 {
                // All that leads here has been translated.
                self.b.seal_block(self.blocks[n]);
                self.recall(&p.comes_from);
            }
            for (k, op) in plan.ops[p.ops.clone()].iter().enumerate() {
                self.index = k;
                if let Some(at) = plan.marks {
                    let at = at.wrapping_add((p.delta + i64::from(op.off)) as u32);
                    self.b.set_srcloc(SourceLoc::new(at));
                }
                self.emit_op(op, handlers[p.ops.start + k], p.ops.start + k, p.ops.len() == k + 1);
                if self.failed {
                    break;
                }
            }
            if self.failed {
                return None;
            }
            let bases = self.bases;
            // Which variables have values in what follows is the plan's.
            let ready = Ready { high_zero: 0, ..self.ready };
            let end = End { seen: self.seen.clone(), sums: std::mem::take(&mut self.sums), bases, ready };
            self.ends.push(end);
            self.fill_exits();
        }
        self.b.switch_to_block(self.begin);
        self.begin_places();
        self.b.ins().jump(self.blocks[0], &[]);
        for (preheader, inside) in std::mem::take(&mut self.preheaders).into_iter().zip(self.blocks.clone()) {
            if let Some(block) = preheader {
                self.b.switch_to_block(block);
                self.b.ins().jump(inside, &[]);
            }
        }
        self.b.seal_all_blocks();
        self.b.finalize(isa.frontend_config());
        Some(self.primitives)
    }

    /// Knows at a block's begin what is known at the end of each block that leads to it.
    fn recall(&mut self, comes_from: &[usize]) {
        let Some((&first, others)) = comes_from.split_first() else { return };
        let End { mut seen, mut sums, mut bases, mut ready } = self.ends[first].clone();
        for &other in others {
            let o = &self.ends[other];
            seen.retain(|s| o.seen.contains(s));
            sums.retain(|k, v| o.sums.get(k) == Some(v));
            for (b, o) in bases.iter_mut().zip(o.bases) {
                *b = b.filter(|_| *b == o);
            }
            ready = ready.and(o.ready);
        }
        (self.seen, self.sums, self.bases, self.ready) = (seen, sums, bases, ready);
    }

    fn emit_op(&mut self, op: &Op, handler: Option<Emit<'a>>, number: usize, last: bool) {
        self.here = None;
        self.checked = None;
        self.unable = false;
        if op.len == 0 {
            // The end of a block that was cut: nothing is executed.
            self.go_to(self.base() + i64::from(op.off), 0);
            return;
        }
        if let Some(emit) = handler {
            match emit(self, op) {
                Ok(Step::Next) if !self.unable => {
                    self.failed |= last;
                    return;
                }
                Ok(Step::Ended) => {
                    self.failed |= !last || self.unable;
                    return;
                }
                _ => {}
            }
        }
        self.recent = Recent::Nothing;
        self.call_op(number, last);
    }

    /// Whether the current block is part of a loop.
    pub(crate) fn in_loop(&self) -> bool {
        self.plan.blocks[self.at].in_loop
    }

    /// Whether any block is.
    pub(crate) fn has_loop(&self) -> bool {
        self.plan.blocks.iter().any(|b| b.in_loop)
    }

    /// Whether a general register is loaded from memory in the loop that is closest around.
    pub(crate) fn is_loaded(&self, register: u8) -> bool {
        register < 16 && self.innermost().loaded & 1 << register != 0
    }

    /// Whether what a general register holds, if it is one, moves by steps at most in the loop that is closest around.
    pub(crate) fn walks(&self, register: u8) -> bool {
        register >= 16 || self.innermost().wild & 1 << register == 0
    }

    fn innermost(&self) -> Loop {
        self.plan.blocks[self.at].innermost.unwrap_or_default()
    }

    // ---- variables
    // ---------------------------------------------------------------------------------------------------------

    pub(crate) fn var(&mut self, n: usize) -> Value {
        if self.valid & 1 << n == 0 {
            // The plan did not foresee it.
            tracing::debug!(n, "a variable is read that the plan does not load");
            self.failed = true;
            return if n < XMM { self.b.ins().iconst(types::I64, 0) } else { self.zero_vector() };
        }
        let v = self.b.use_var(self.vars[n]);
        self.b.func.dfg.resolve_aliases(v)
    }

    pub(crate) fn set_var(&mut self, n: usize, v: Value) {
        self.b.def_var(self.vars[n], v);
        self.dirty |= 1 << n;
        self.valid |= 1 << n;
    }

    /// Gives a variable a value that is stored at once: the variable is not dirty.
    pub(crate) fn set_stored_var(&mut self, n: usize, v: Value) {
        self.b.def_var(self.vars[n], v);
        self.b.ins().store(self.access.state, v, self.cpu, variable_offset(n));
        self.dirty &= !(1 << n);
        self.valid |= 1 << n;
    }

    fn reload(&mut self, set: Set) {
        for n in bits(set) {
            let v = self.b.ins().load(variable_type(n), self.access.state, self.cpu, variable_offset(n));
            self.b.def_var(self.vars[n], v);
        }
        self.valid = set;
        self.dirty = 0;
    }

    /// What was true of memory and modes may no longer be.
    fn forget_seen(&mut self) {
        self.seen.clear();
        self.bases = [None; 8];
        self.ready = Ready::default();
    }

    fn write_back(&mut self, dirty: Set) {
        for n in bits(dirty) {
            let v = self.b.use_var(self.vars[n]);
            self.b.ins().store(self.access.state, v, self.cpu, variable_offset(n));
        }
    }

    // ---- places in the region
    // ----------------------------------------------------------------------------------------------

    /// Distance of the current block's first byte from the entry.
    pub(crate) fn base(&self) -> i64 {
        self.plan.blocks[self.at].delta
    }

    /// RIP at a distance from the entry.
    pub(crate) fn rip_at(&mut self, delta: i64) -> Value {
        let at = context::RIP;
        let rip = self.b.ins().load(types::I64, self.access.entry, self.context, at);
        let v = self.add_const(rip, delta);
        if self.plan.long { v } else { self.b.ins().band_imm_u(v, 0xffff_ffff) }
    }

    /// Whether the region is 64-bit code.
    pub(crate) fn is_long(&self) -> bool {
        self.plan.long
    }

    /// Distances of the places that calls in this region return to.
    pub(crate) fn return_sites(&self) -> Vec<i64> {
        self.plan.return_sites.clone()
    }

    /// The op that is translated.
    pub(crate) fn op(&self) -> &'a Op {
        &self.plan.ops[self.plan.blocks[self.at].ops.start + self.index]
    }

    /// The block to jump to in order to have the interpreter execute this op.
    pub(crate) fn interpret_here(&mut self) -> Block {
        if let Some(b) = self.here {
            return b;
        }
        let op = self.op();
        let rip = Rip::At(self.base() + i64::from(op.off));
        let block = self.exit_block(rip, self.index as u64, Left::Interpret);
        self.here = Some(block);
        block
    }

    fn exit_block(&mut self, rip: Rip, done: u64, reason: Left) -> Block {
        let block = self.b.create_block();
        self.b.set_cold_block(block);
        let (dirty, x87) = (self.dirty, self.last_x87);
        self.pending.push(PendingExit { block, rip, done, dirty, reason, x87 });
        block
    }

    /// Leaves for the interpreter if `condition` holds.
    pub(crate) fn bail_if(&mut self, condition: Value) {
        let out = self.interpret_here();
        let on = self.b.create_block();
        self.b.ins().brif(condition, out, &[], on, &[]);
        self.b.switch_to_block(on);
        self.b.seal_block(on);
    }

    fn fill_exits(&mut self) {
        for e in std::mem::take(&mut self.pending) {
            self.b.switch_to_block(e.block);
            self.b.seal_block(e.block);
            self.write_back(e.dirty);
            self.store_last_x87(e.x87);
            let rip = match e.rip {
                Rip::At(d) => self.rip_at(d),
                Rip::Is(v) => v,
            };
            self.add_count(e.done);
            if e.reason == Left::Next {
                let at = context::CHAIN_STUB;
                let stub = self.b.ins().load(types::I64, self.access.fixed, self.context, at);
                self.b.ins().return_call_indirect(self.chain_sig, stub, &[self.cpu, rip]);
                continue;
            }
            self.b.ins().store(self.access.state, rip, self.cpu, cpu::RIP);
            let r = self.b.ins().iconst(types::I32, e.reason as i64);
            self.b.ins().return_(&[r]);
        }
    }

    /// Adds what was executed to the vCPU's count.
    fn add_count(&mut self, done: u64) {
        if done == 0 {
            return;
        }
        let at = cpu::ICOUNT;
        let old = self.b.ins().load(types::I64, self.access.state, self.cpu, at);
        let new = self.b.ins().iadd_imm_s(old, done as i64);
        self.b.ins().store(self.access.state, new, self.cpu, at);
    }

    fn emit_event_test(&mut self) {
        let at = context::EVENTS;
        let word = self.b.ins().load(types::I64, self.access.fixed, self.context, at);
        // Atomic, so that it is not taken for the same as the last time round.
        let pending = self.b.ins().atomic_load(types::I32, MemFlagsData::trusted(), word);
        let mask = cpu::EVENT_MASK;
        let mask = self.b.ins().load(types::I32, self.access.state, self.cpu, mask);
        let hit = self.b.ins().band(pending, mask);
        let out = self.exit_block(Rip::At(self.base()), 0, Left::Event);
        let on = self.b.create_block();
        self.b.ins().brif(hit, out, &[], on, &[]);
        self.b.switch_to_block(on);
        self.b.seal_block(on);
    }

    // ---- edges
    // ------------------------------------------------------------------------------------------------------------

    /// The block to jump to for a place at a distance from the entry, in the region or out of it; `done` instructions
    /// of this block are executed by then.
    fn edge_to(&mut self, delta: i64, done: u64) -> Block {
        let Some(n) = self.plan.find(delta) else {
            return self.exit_block(Rip::At(delta), done, Left::Next);
        };
        let to = &self.plan.blocks[n];
        if to.live_in & !self.valid != 0 || self.dirty & !to.dirty_in != 0 || to.dirty_in & !self.valid != 0 {
            tracing::debug!(delta, "the plan's sets do not fit at an edge");
            self.failed = true;
        }
        if n > self.at && to.is_head {
            // Into a loop: what is taken out of it has a place of its own, which is not in another loop.
            return *self.preheaders[n].get_or_insert_with(|| self.b.create_block());
        }
        self.blocks[n]
    }

    /// Instructions executed when the current op has been.
    fn done(&self) -> u64 {
        self.index as u64 + 1
    }

    /// Goes to a place at a distance from the entry; `own` is 1 if the current op counts as executed.
    pub(crate) fn go_to(&mut self, delta: i64, own: u64) {
        self.flush_x87();
        self.add_count(self.index as u64 + own);
        let to = self.edge_to(delta, 0);
        self.b.ins().jump(to, &[]);
    }

    /// Goes to one of two places.
    pub(crate) fn branch_to(&mut self, x: Value, taken: i64, other: i64) {
        self.flush_x87();
        self.add_count(self.done());
        let (a, b) = (self.edge_to(taken, 0), self.edge_to(other, 0));
        self.b.ins().brif(x, a, &[], b, &[]);
    }

    /// Leaves the region for the address `rip`, or goes on in it if that is one of `sites`.
    pub(crate) fn leave_to(&mut self, rip: Value, sites: &[i64]) {
        self.flush_x87();
        self.add_count(self.done());
        for &s in sites.iter().filter(|&&s| self.plan.find(s).is_some()).take(4).collect::<Vec<_>>() {
            let there = self.rip_at(s);
            let same = self.b.ins().icmp(IntCC::Equal, rip, there);
            let to = self.edge_to(s, 0);
            let on = self.b.create_block();
            self.b.ins().brif(same, to, &[], on, &[]);
            self.b.switch_to_block(on);
            self.b.seal_block(on);
        }
        let out = self.exit_block(Rip::Is(rip), 0, Left::Next);
        self.b.ins().jump(out, &[]);
    }

    // ---- calls
    // -------------------------------------------------------------------------------------------------------------

    /// Has op `number` of the region executed by its interpreter's handler, with the state in memory.
    fn call_op(&mut self, number: usize, last: bool) {
        self.primitives.called.push(self.plan.ops[number].code);
        self.write_back(self.dirty);
        self.flush_x87();
        let rip = self.rip_at(self.base());
        self.b.ins().store(self.access.state, rip, self.cpu, cpu::RIP);
        let at = context::OPS;
        let ops = self.b.ins().load(types::I64, self.access.entry, self.context, at);
        let op = self.add_const(ops, (number * size_of::<Op>()) as i64);
        let at = context::RUN_OP;
        let callee = self.b.ins().load(types::I64, self.access.fixed, self.context, at);
        let call = self.b.ins().call_indirect(self.op_sig, callee, &[self.cpu, op]);
        let status = self.b.inst_results(call)[0];
        if last {
            self.add_count(self.done());
            self.b.ins().return_(&[status]);
            return;
        }
        let out = self.b.create_block();
        let on = self.b.create_block();
        self.b.set_cold_block(out);
        self.b.ins().brif(status, out, &[], on, &[]);
        self.b.switch_to_block(out);
        self.b.seal_block(out);
        self.add_count(self.done());
        self.b.ins().return_(&[status]);
        self.b.switch_to_block(on);
        self.b.seal_block(on);
        self.forget_seen();
        self.forget_places();
        self.reload(self.plan.live_after[number]);
    }

    // ---- small things
    // ------------------------------------------------------------------------------------------------------

    pub(crate) fn add_const(&mut self, v: Value, n: i64) -> Value {
        if n == 0 {
            return v;
        }
        let sum = self.b.ins().iadd_imm_s(v, n);
        self.note_sum(sum, v, n);
        sum
    }

    /// The constant that a value is.
    pub(crate) fn constant(&self, v: Value) -> Option<u64> {
        match self.definition(v)? {
            InstructionData::UnaryImm { opcode: Opcode::Iconst, imm } => {
                let bits = self.b.func.dfg.value_type(v).bits();
                Some(imm.bits() as u64 & u64::MAX >> (64 - bits))
            }
            _ => None,
        }
    }

    /// The instruction that a value comes from.
    pub(crate) fn definition(&self, v: Value) -> Option<&InstructionData> {
        match self.b.func.dfg.value_def(v) {
            ValueDef::Result(i, _) => Some(&self.b.func.dfg.insts[i]),
            _ => None,
        }
    }

    pub(crate) fn type_of(&self, v: Value) -> Type {
        self.b.func.dfg.value_type(v)
    }
}

/// The type of a variable.
fn variable_type(n: usize) -> Type {
    if n < XMM { types::I64 } else { types::I8X16 }
}

/// Where a variable is in the vCPU.
fn variable_offset(n: usize) -> i32 {
    match n {
        RES => cpu::RES,
        AUX => cpu::AUX,
        HIGH.. => cpu::ymm_high(n - HIGH),
        XMM.. => cpu::xmm(n - XMM),
        n => cpu::gpr(n),
    }
}

/// The numbers of the bits set.
pub(crate) fn bits(mut set: Set) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (set != 0).then(|| {
            let n = set.trailing_zeros() as usize;
            set &= set - 1;
            n
        })
    })
}
