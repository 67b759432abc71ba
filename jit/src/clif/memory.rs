//! Accesses of guest memory: the inlined TLB look-up, and the stub behind it.
//!
//! A look-up that misses calls the stub, which keeps all registers, fills the TLB and leaves the host address; if
//! there is none, the interpreter executes the instruction. The look-up is four loads and a compare: table, mask, tag,
//! addend.
use crate::abi::{ACROSS, NO_PAGE, WRITE, context, cpu, tlb};
use crate::clif::Translator;
use cranelift_codegen::ir::{
    Block, BlockArg, InstBuilder, MemFlagsData, StackSlot, StackSlotData, StackSlotKind, Type, Value,
    condcodes::IntCC, types,
};
use cranelift_frontend::FunctionBuilder;
use mynah_cpu::op::{CHECKED, Op};
use mynah_cpu::{state::gpr, state::seg};
use mynah_mmu::{PAGE_MASK, PAGE_SIZE};

/// What is known of a linear address: so many bytes behind a value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Root {
    value: Value,
    offset: i64,
    wraps: Wraps,
}

/// Whether a sum was cut to 32 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wraps {
    No,
    /// A cut sum and something added.
    NotYet,
    Yes,
}

/// An access that the rest of its block, and what follows that, may follow: with both addresses known, one at a known
/// distance on the same page needs no look-up.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    root: Root,
    lin: Value,
    host: Value,
    write: bool,
}

/// Places for pages in a region's frame.
const PLACES: usize = 8;
/// Bytes of one.
const SIZE: i32 = 16;

/// Where a place is: of two that follow each other if it is for a table.
#[derive(Clone, Copy)]
struct Place {
    frame: StackSlot,
    at: i32,
    table: bool,
}

/// The pages that accesses in loops went to the last time, in the region's frame: for each a tag and what is added to
/// the linear address. An access of up to 8 bytes within a loop looks there first. It is for the kind of access that
/// it was filled by, and holds until something is called.
#[derive(Default)]
pub(crate) struct Places {
    frame: Option<StackSlot>,
    used: Vec<(u16, bool)>,
}

/// What accesses share a place: the base register, and whether they write. Pointers that are loaded have none. With an
/// index there is one, for base and index, if neither moves but by steps in the loop. Other tables are looked into at
/// random, and have none unless they are small: then there is a place for each of the two pages that it may lie on.
pub(crate) type PlaceKey = Option<u16>;

/// In a [`PlaceKey`]: it is a small table; and the place is that of odd pages.
const TABLE: u16 = 0x40;
const ODD: u16 = 0x80;
/// In a [`PlaceKey`]: it has an index, whose number stands above this.
const INDEXED: u16 = 0x100;

/// Emits the look-up of a linear address in the TLB (see [`crate::abi`]): a truth value for a hit, and the entry.
/// `flags` are those of the vCPU's state and the TLB.
///
/// The entry is that of the page of `from`, which is `lin` or less than a page below it: if it is another page's, the
/// access misses.
pub(crate) fn look_up(
    b: &mut FunctionBuilder,
    (state, table_flags): (MemFlagsData, MemFlagsData),
    vcpu: Value,
    lin: Value,
    from: Value,
    len: u64,
    write: bool,
) -> (Value, Value) {
    let table = b.ins().load(types::I64, state, vcpu, tlb::TABLE);
    let offset = b.ins().ushr_imm_u(from, i64::from(tlb::ENTRY_SHIFT));
    let high = b.ins().ushr_imm_u(offset, i64::from(tlb::HASH_SHIFT));
    let offset = b.ins().bxor(offset, high);
    let mask = b.ins().load(types::I64, state, vcpu, tlb::MASK);
    let offset = b.ins().band(offset, mask);
    let entry = b.ins().iadd(table, offset);
    let tag = b.ins().load(types::I64, table_flags, entry, tlb::tag(write));
    // The tag is that of the page of `from`, or does not match: it is enough to compare with the page of the last
    // byte.
    let last = if len == 1 { lin } else { b.ins().iadd_imm_s(lin, len as i64 - 1) };
    let want = b.ins().band_imm_s(last, tlb::PAGE);
    (b.ins().icmp(IntCC::Equal, tag, want), entry)
}

/// An operand that was read from the guest's memory, once. What is made of its value holds for all that is done with
/// it: other vCPUs change the guest's memory, not the copy.
#[derive(Clone, Copy)]
pub(crate) struct OperandCopy(Value);

impl OperandCopy {
    /// What was read.
    pub fn value(self) -> Value {
        self.0
    }
}

/// Whether the host keeps less order between accesses than the guest's processors do, so that code has to ask for it.
const WEAK: bool = cfg!(not(target_arch = "x86_64"));

/// Accesses of the guest's memory, in x86's order: loads in the order of the program, stores too, and no store before
/// an earlier load (docs/hosts.md says why this keeps it).
///
/// On x86 that is any access. On arm64 a load acquires and a store releases; as such accesses must be aligned, others
/// are plain ones with a fence behind the load or before the store.
impl Translator<'_> {
    /// Loads from a host address.
    pub(crate) fn guest_load(&mut self, t: Type, host: Value, distance: i32) -> Value {
        let guest = self.access.guest;
        if !WEAK {
            return self.b.ins().load(t, guest, host, distance);
        }
        if t.is_vector() {
            let v = self.b.ins().load(t, guest, host, distance);
            self.b.ins().fence();
            return v;
        }
        if t.is_float() {
            // Whole numbers alone are loaded and stored in order.
            let bits = self.guest_load(t.as_int(), host, distance);
            return self.b.ins().bitcast(t, MemFlagsData::new(), bits);
        }
        let at = self.b.ins().iadd_imm_s(host, i64::from(distance));
        if t == types::I8 {
            return self.b.ins().atomic_load(t, guest, at);
        }
        let (plain, on) = self.aligned_or(t, at);
        let v = self.b.append_block_param(on, t);
        let acquired = self.b.ins().atomic_load(t, guest, at);
        self.b.ins().jump(on, &[acquired.into()]);
        self.b.switch_to_block(plain);
        let loaded = self.b.ins().load(t, guest, at, 0);
        self.b.ins().fence();
        self.b.ins().jump(on, &[loaded.into()]);
        self.b.switch_to_block(on);
        self.b.seal_block(on);
        v
    }

    /// Stores to a host address.
    pub(crate) fn guest_store(&mut self, v: Value, host: Value, distance: i32) {
        let guest = self.access.guest;
        if !WEAK {
            self.b.ins().store(guest, v, host, distance);
            return;
        }
        let t = self.type_of(v);
        if t.is_vector() {
            self.b.ins().fence();
            self.b.ins().store(guest, v, host, distance);
            return;
        }
        if t.is_float() {
            let bits = self.b.ins().bitcast(t.as_int(), MemFlagsData::new(), v);
            return self.guest_store(bits, host, distance);
        }
        let at = self.b.ins().iadd_imm_s(host, i64::from(distance));
        if t == types::I8 {
            self.b.ins().atomic_store(guest, v, at);
            return;
        }
        let (plain, on) = self.aligned_or(t, at);
        self.b.ins().atomic_store(guest, v, at);
        self.b.ins().jump(on, &[]);
        self.b.switch_to_block(plain);
        self.b.ins().fence();
        self.b.ins().store(guest, v, at, 0);
        self.b.ins().jump(on, &[]);
        self.b.switch_to_block(on);
        self.b.seal_block(on);
    }

    /// Goes on where an address is aligned for `t`; returns a cold block for where it is not, and one that both may
    /// go on at.
    fn aligned_or(&mut self, t: Type, at: Value) -> (Block, Block) {
        let [aligned, plain, on] = std::array::from_fn(|_| self.b.create_block());
        self.b.set_cold_block(plain);
        let low = self.b.ins().band_imm_u(at, i64::from(t.bytes()) - 1);
        self.b.ins().brif(low, plain, &[], aligned, &[]);
        self.b.seal_block(aligned);
        self.b.seal_block(plain);
        self.b.switch_to_block(aligned);
        (plain, on)
    }

    /// Before and behind a locked instruction: nothing passes it.
    fn full_fence(&mut self) {
        if WEAK {
            self.b.ins().fence();
        }
    }
}

impl Translator<'_> {
    /// Reads an operand at a host address, once.
    pub(crate) fn copy_of(&mut self, t: Type, host: Value) -> OperandCopy {
        OperandCopy(self.guest_load(t, host, 0))
    }

    /// Where the host finds the copy of an operand, until something is called.
    pub(crate) fn address_of(&mut self, copy: OperandCopy) -> Value {
        let at = context::SCRATCH;
        self.b.ins().store(self.access.context, copy.0, self.context, at);
        self.b.ins().iadd_imm_u(self.context, i64::from(at))
    }

    /// The effective address of the memory operand, `extra` bytes further if given.
    pub(crate) fn address(&mut self, op: &Op, extra: Option<Value>) -> Value {
        let zero = gpr::ZERO as u8;
        let mut sum = match usize::from(op.base) {
            gpr::ZERO => None,
            gpr::RIP => {
                let base = self.base();
                Some(self.rip_at(base))
            }
            n => Some(self.var(n & 15)),
        };
        let add = |t: &mut Self, sum: Option<Value>, v: Value| match sum {
            Some(s) => t.b.ins().iadd(s, v),
            None => v,
        };
        if op.index != zero {
            if let Some(base) = sum
                && let Some(known) = self.known_sum(op, base)
            {
                let sum = self.add_const(known, op.disp as i64);
                return self.finish_address(op, sum, extra);
            }
            let i = self.var(usize::from(op.index) & 15);
            let i = if op.scale & 3 != 0 { self.b.ins().ishl_imm_u(i, i64::from(op.scale & 3)) } else { i };
            let total = add(self, sum, i);
            if let Some(base) = sum {
                let index = self.var(usize::from(op.index) & 15);
                self.sums.insert((base, index, op.scale & 3), total);
            }
            sum = Some(total);
        }
        let sum = match sum {
            Some(s) => self.add_const(s, op.disp as i64),
            None => self.b.ins().iconst(types::I64, op.disp as i64),
        };
        self.finish_address(op, sum, extra)
    }

    /// The sum of a base and an index that was computed before in this block.
    fn known_sum(&mut self, op: &Op, base: Value) -> Option<Value> {
        let index = self.var(usize::from(op.index) & 15);
        self.sums.get(&(base, index, op.scale & 3)).copied()
    }

    fn finish_address(&mut self, op: &Op, sum: Value, extra: Option<Value>) -> Value {
        let sum = self.wrap_offset(op, sum);
        match extra {
            Some(x) => {
                let sum = self.b.ins().iadd(sum, x);
                self.wrap_offset(op, sum)
            }
            None => sum,
        }
    }

    fn wrap_offset(&mut self, op: &Op, v: Value) -> Value {
        match op.ashift & 63 {
            0 => v,
            n => {
                let cut = self.b.ins().band_imm_u(v, (u64::MAX >> n) as i64);
                if n == 32 {
                    self.note_cut(cut, v);
                }
                cut
            }
        }
    }

    /// Takes note that `cut` is `v` cut to 32 bits.
    pub(crate) fn note_cut(&mut self, cut: Value, v: Value) {
        let r = self.root(v);
        self.roots.insert(cut, Root { wraps: Wraps::Yes, ..r });
    }

    /// The linear address of `len` bytes at an offset in the operand's segment.
    pub(crate) fn linear(&mut self, op: &Op, offset: Value, len: u64, write: bool) -> Value {
        let s = usize::from(op.seg & 7);
        let plain = op.index == gpr::ZERO as u8 && !matches!(usize::from(op.base), gpr::ZERO);
        let base = u16::from(op.base);
        self.place_key = if self.is_loaded(op.base) {
            None
        } else if plain {
            Some(base)
        } else if self.in_loop() && op.index != gpr::ZERO as u8 && self.walks(op.base) && self.walks(op.index)
        {
            Some(base | INDEXED | u16::from(op.index) << 9)
        } else {
            (self.in_loop() && self.is_small_table(op, len)).then_some(base | TABLE)
        };
        if op.flags & CHECKED == 0 {
            if s < seg::FS {
                return offset; // 64-bit, or flat: the base is 0
            }
            let base = match self.bases[s] {
                Some(v) => v,
                None => self.segment(cpu::segment_base(s)),
            };
            self.bases[s] = Some(base);
            return match self.constant(offset) {
                Some(n) => self.add_const(base, n as i64),
                None => {
                    // So many bytes from what the rest comes to.
                    let r = self.root(offset);
                    if r.offset == 0 || r.wraps != Wraps::No {
                        self.b.ins().iadd(base, offset)
                    } else {
                        let sum = match self.sums.get(&(base, r.value, 0)) {
                            Some(&sum) => sum,
                            None => {
                                let sum = self.b.ins().iadd(base, r.value);
                                self.sums.insert((base, r.value, 0), sum);
                                sum
                            }
                        };
                        self.add_const(sum, r.offset)
                    }
                }
            };
        }
        let (lo, hi) = cpu::segment_bounds(s, write);
        let lo = self.segment(lo);
        let hi = self.segment(hi);
        let below = self.b.ins().icmp(IntCC::UnsignedLessThan, offset, lo);
        let last = self.add_const(offset, len as i64 - 1);
        let beyond = self.b.ins().icmp(IntCC::UnsignedGreaterThan, last, hi);
        let bad = self.b.ins().bor(below, beyond);
        self.bail_if(bad);
        let base = self.segment(cpu::segment_base(s));
        let lin = self.b.ins().iadd(base, offset);
        self.b.ins().band_imm_u(lin, 0xffff_ffff)
    }

    /// Whether the operand's index is known to be so small that what is looked into lies on two pages at most.
    fn is_small_table(&mut self, op: &Op, len: u64) -> bool {
        let most = (PAGE_SIZE - len) >> (op.scale & 3);
        op.index != gpr::ZERO as u8 && {
            let index = self.var(usize::from(op.index) & 15);
            self.bound(index) <= most
        }
    }

    /// The linear address of `len` bytes at an offset in the stack segment, which is flat or 64-bit; the offset is
    /// within the stack's width.
    pub(crate) fn stack_linear(&mut self, offset: Value, len: u64) -> Value {
        self.place_key = Some(gpr::RSP as u16);
        if !self.is_long() {
            // An access that wraps is beyond the limit.
            let bad =
                self.b.ins().icmp_imm_u(IntCC::UnsignedGreaterThan, offset, (0xffff_ffff - (len - 1)) as i64);
            self.bail_if(bad);
        }
        offset
    }

    fn segment(&mut self, at: i32) -> Value {
        self.b.ins().load(types::I64, self.access.state, self.cpu, at)
    }

    /// Looks a linear address up in the TLB's current table: a truth value for a hit, and the entry.
    fn look_up(&mut self, lin: Value, len: u64, write: bool) -> (Value, Value) {
        let (a, cpu) = (self.access, self.cpu);
        let r = self.root(lin);
        // The address's own addition need not be waited for: what a pointer leads to is rarely on two pages this near
        // to where it points.
        let from = if r.wraps == Wraps::No && (1..16).contains(&r.offset) { r.value } else { lin };
        look_up(&mut self.b, (a.state, a.tlb), cpu, lin, from, len, write)
    }

    /// Calls the stub that translates a linear address; returns the host address, or leaves the region if the access
    /// is not a plain one.
    fn ask(&mut self, lin: Value, len: u64, write: bool, out: Block) -> Value {
        let kind = self.b.ins().iconst(types::I64, (len | if write { WRITE } else { 0 }) as i64);
        self.b.ins().store(self.access.context, lin, self.context, context::LIN);
        let answer = self.call_stub(context::REFILL_STUB, kind);
        let on = self.b.create_block();
        self.b.ins().brif(answer, on, &[], out, &[]);
        self.b.switch_to_block(on);
        self.b.seal_block(on);
        answer
    }

    /// As `ask` for a load, which may lie on two pages: the host address of its first byte, and where it finds its
    /// bytes.
    fn ask_load(&mut self, lin: Value, len: u64, out: Block) -> (Value, Value) {
        let kind = self.b.ins().iconst(types::I64, (len | ACROSS) as i64);
        self.b.ins().store(self.access.context, lin, self.context, context::LIN);
        let answer = self.call_stub(context::REFILL_STUB, kind);
        let at = context::DATA;
        let data = self.b.ins().load(types::I64, self.access.context, self.context, at);
        let on = self.b.create_block();
        self.b.ins().brif(answer, on, &[], out, &[]);
        self.b.switch_to_block(on);
        self.b.seal_block(on);
        (answer, data)
    }

    /// Loads one or two vectors of 16 bytes from a linear address. Unaligned ones lie on two pages often enough.
    pub(crate) fn load_vectors<const N: usize>(&mut self, lin: Value) -> [Value; N] {
        let len = 16 * N as u64;
        let load = |t: &mut Self, host: Value, distance: i32| -> [Value; N] {
            std::array::from_fn(|n| t.guest_load(types::I8X16, host, distance + 16 * n as i32))
        };
        let out = self.interpret_here();
        let on = self.b.create_block();
        let values: [Value; N] = std::array::from_fn(|_| self.b.append_block_param(on, types::I8X16));
        let (missed, loaded, address) = match self.seen_near(lin, false) {
            Some((first, host, distance)) => {
                let missed = self.test_near(first, distance, len);
                (missed, load(self, host, distance as i32), None)
            }
            None => {
                let (hit, entry) = self.look_up(lin, len, false);
                let missed = self.fork(hit);
                let at = tlb::ADDEND;
                let addend = self.b.ins().load(types::I64, self.access.tlb, entry, at);
                let address = self.b.ins().iadd(lin, addend);
                (missed, load(self, address, 0), Some(address))
            }
        };
        let host = address.map(|_| self.b.append_block_param(on, types::I64));
        let args = |v: [Value; N], a: Option<Value>| -> Vec<BlockArg> {
            v.into_iter().chain(a).map(BlockArg::Value).collect()
        };
        self.b.ins().jump(on, &args(loaded, address));
        self.b.switch_to_block(missed);
        let (answer, data) = self.ask_load(lin, len, out);
        let loaded = load(self, data, 0);
        self.b.ins().jump(on, &args(loaded, address.map(|_| answer)));
        self.b.switch_to_block(on);
        self.b.seal_block(on);
        if let Some(host) = host {
            self.note_seen(lin, host, false);
        }
        values
    }

    /// Calls a stub of the context's that keeps all registers. It is asked through memory: operands in given registers
    /// would have the register allocator move things about where nothing is missed.
    pub(crate) fn call_stub(&mut self, stub: i32, kind: Value) -> Value {
        let (t, a) = (types::I64, self.access);
        self.b.ins().store(a.context, kind, self.context, context::KIND);
        let stub = self.b.ins().load(t, a.context, self.context, stub);
        self.b.ins().call_indirect(self.stub_sig, stub, &[self.cpu]);
        self.b.ins().load(t, a.context, self.context, context::HOST)
    }

    /// What a linear address is made of, as far as it is known.
    fn root(&self, v: Value) -> Root {
        self.roots.get(&v).copied().unwrap_or(Root { value: v, offset: 0, wraps: Wraps::No })
    }

    /// Takes note that `v` is `of` and so many bytes.
    pub(crate) fn note_sum(&mut self, v: Value, of: Value, n: i64) {
        let r = self.root(of);
        let wraps = if r.wraps == Wraps::No { Wraps::No } else { Wraps::NotYet };
        self.roots.insert(v, Root { value: r.value, offset: r.offset.wrapping_add(n), wraps });
    }

    /// An access to the page that an earlier one in this block went to, at a known distance from it.
    fn seen_near(&self, lin: Value, write: bool) -> Option<(Value, Value, i64)> {
        let r = self.root(lin);
        if r.wraps == Wraps::NotYet {
            return None;
        }
        let near = self.seen.iter().rev().find(|s| s.root.value == r.value && s.root.wraps == r.wraps)?;
        let distance = r.offset.wrapping_sub(near.root.offset);
        (distance.unsigned_abs() < PAGE_MASK && (near.write || !write))
            .then_some((near.lin, near.host, distance))
    }

    fn note_seen(&mut self, lin: Value, host: Value, write: bool) {
        let root = self.root(lin);
        if root.wraps == Wraps::NotYet {
            return;
        }
        self.seen.retain(|s| s.root.value != root.value || s.root.wraps != root.wraps);
        self.seen.push(Seen { root, lin, host, write });
    }

    /// Tests an access for lying on the page of an earlier one; in the builder's new current block it does, in the
    /// other one not.
    fn test_near(&mut self, lin: Value, distance: i64, len: u64) -> Block {
        let low = self.b.ins().band_imm_u(lin, PAGE_MASK as i64);
        let low = self.add_const(low, distance);
        let hit = self.b.ins().icmp_imm_u(IntCC::UnsignedLessThanOrEqual, low, (PAGE_MASK + 1 - len) as i64);
        self.fork(hit)
    }

    /// Goes on where `hit` holds; returns the cold block where it does not.
    fn fork(&mut self, hit: Value) -> Block {
        let found = self.b.create_block();
        let missed = self.b.create_block();
        self.b.set_cold_block(missed);
        self.b.ins().brif(hit, found, &[], missed, &[]);
        self.b.switch_to_block(found);
        self.b.seal_block(found);
        self.b.seal_block(missed);
        missed
    }

    /// The host address of `len` bytes at a linear address, translated; leaves the region if the access is not a plain
    /// one.
    pub(crate) fn host(&mut self, lin: Value, len: u64, write: bool) -> Value {
        let out = self.interpret_here();
        let on = self.b.create_block();
        let found = self.b.append_block_param(on, types::I64);
        let near = self.seen_near(lin, write);
        let place = if near.is_none() { self.place(len, write) } else { None };
        // Without a place it is the addend that is found: a pointer was loaded, perhaps from where the one before led,
        // and each addition on the way from one to the next counts; those of the host's addresses do not.
        let adds = near.is_none() && place.is_none();
        let (missed, value) = match near {
            Some((first, host, distance)) => {
                let missed = self.test_near(first, distance, len);
                (missed, self.b.ins().iadd_imm_s(host, distance))
            }
            None => {
                if let Some(place) = place {
                    self.try_place(place, lin, len, on);
                }
                let (hit, entry) = self.look_up(lin, len, write);
                let missed = self.fork(hit);
                let at = tlb::ADDEND;
                let addend = self.b.ins().load(types::I64, self.access.tlb, entry, at);
                match place {
                    Some(place) => {
                        if let Some(block) = self.b.current_block() {
                            self.b.set_cold_block(block);
                        }
                        self.fill_place(place, lin, addend);
                        (missed, self.b.ins().iadd(lin, addend))
                    }
                    None => (missed, addend),
                }
            }
        };
        self.b.ins().jump(on, &[value.into()]);
        self.b.switch_to_block(missed);
        let answer = self.ask(lin, len, write, out);
        let value = if adds { self.b.ins().isub(answer, lin) } else { answer };
        self.b.ins().jump(on, &[value.into()]);
        self.b.switch_to_block(on);
        self.b.seal_block(on);
        let host = if adds { self.b.ins().iadd(lin, found) } else { found };
        if near.is_none() {
            self.note_seen(lin, host, write);
        }
        host
    }

    /// The place, if there is one, for the page of an access.
    fn place(&mut self, len: u64, write: bool) -> Option<Place> {
        if !self.in_loop() || len > 8 {
            return None;
        }
        let key = (self.place_key?, write);
        let table = key.0 & TABLE != 0;
        let n = match self.places.used.iter().position(|&k| k == key) {
            Some(n) => n,
            None if self.places.used.len() + usize::from(table) < PLACES => {
                self.places.used.push(key);
                if table {
                    self.places.used.push((key.0 | ODD, write));
                }
                self.places.used.len() - 1 - usize::from(table)
            }
            None => return None,
        };
        Some(Place { frame: self.places_frame(), at: SIZE * n as i32, table })
    }

    fn places_frame(&mut self) -> StackSlot {
        *self.places.frame.get_or_insert_with(|| {
            let data = StackSlotData::new(StackSlotKind::ExplicitSlot, SIZE as u32 * PLACES as u32, 3);
            self.b.create_sized_stack_slot(data)
        })
    }

    /// Whether the page of an address is odd.
    fn is_odd_page(&mut self, lin: Value) -> Value {
        self.b.ins().band_imm_u(lin, PAGE_SIZE as i64)
    }

    /// Goes on at `on` with the host address if the access is aligned and on the place's page; or here.
    fn try_place(&mut self, Place { frame, at, table }: Place, lin: Value, len: u64, on: Block) {
        let found = self.b.create_block();
        let other = self.b.create_block();
        let want = self.b.ins().band_imm_s(lin, tlb::aligned_page(len));
        let odd = table.then(|| self.is_odd_page(lin));
        // Of both places, with what is to be done; no jump depends on the page, nor the address on more than one bit
        // of itself.
        let of_place = |t: &mut Self, n: i32, then: &dyn Fn(&mut Self, Value) -> Value| {
            let mut of = |at: i32| {
                let word = t.b.ins().stack_load(types::I64, types::I64, frame, at + n);
                then(t, word)
            };
            let even = of(at);
            match odd {
                None => even,
                Some(odd) => {
                    let other = of(at + SIZE);
                    t.b.ins().select(odd, other, even)
                }
            }
        };
        let page = of_place(self, 0, &|_, page| page);
        let hit = self.b.ins().icmp(IntCC::Equal, want, page);
        self.b.set_cold_block(other);
        self.b.ins().brif(hit, found, &[], other, &[]);
        self.b.switch_to_block(found);
        self.b.seal_block(found);
        self.b.seal_block(other);
        let address = of_place(self, 8, &|t, addend| t.b.ins().iadd(lin, addend));
        self.b.ins().jump(on, &[address.into()]);
        self.b.switch_to_block(other);
    }

    /// Has the place hold the page of an address, and what is added there.
    fn fill_place(&mut self, Place { frame, at, table }: Place, lin: Value, addend: Value) {
        let page = self.b.ins().band_imm_s(lin, tlb::PAGE);
        if !table {
            self.b.ins().stack_store(types::I64, page, frame, at);
            self.b.ins().stack_store(types::I64, addend, frame, at + 8);
            return;
        }
        let odd = self.is_odd_page(lin);
        let further = self.b.ins().ushr_imm_u(odd, i64::from((PAGE_SIZE as i32 / SIZE).trailing_zeros()));
        let places = self.b.ins().stack_addr(types::I64, frame, at);
        let to = self.b.ins().iadd(places, further);
        let flags = MemFlagsData::trusted();
        self.b.ins().store(flags, page, to, 0);
        self.b.ins().store(flags, addend, to, 8);
    }

    /// Nothing is known of the places' pages: something was called that may have changed their translation.
    pub(crate) fn forget_places(&mut self) {
        if self.has_loop() {
            let frame = self.places_frame();
            self.empty_places(frame, PLACES);
        }
    }

    /// Empties the places that are used; at the region's entry, when all is translated.
    pub(crate) fn begin_places(&mut self) {
        if let Some(frame) = self.places.frame {
            self.empty_places(frame, self.places.used.len());
        }
    }

    fn empty_places(&mut self, frame: StackSlot, count: usize) {
        let none = self.b.ins().iconst(types::I64, NO_PAGE);
        for n in 0..count {
            self.b.ins().stack_store(types::I64, none, frame, SIZE * n as i32);
        }
    }

    /// Loads from a linear address.
    pub(crate) fn load_linear(&mut self, ty: Type, lin: Value) -> Value {
        let load = |t: &mut Self, host, distance| t.guest_load(ty, host, distance);
        self.load_linear_as(u64::from(ty.bytes()), ty, lin, load)
    }

    /// Loads an integer from a linear address into the low lane of a vector, with zeros in the others.
    pub(crate) fn load_low_linear(&mut self, ty: Type, lin: Value) -> Value {
        let vector = if ty == types::I64 { types::I64X2 } else { types::I32X4 };
        self.load_linear_as(u64::from(ty.bytes()), types::I8X16, lin, |t, host, distance| {
            let v = t.guest_load(ty, host, distance);
            let v = t.b.ins().scalar_to_vector(vector, v);
            t.as_lanes(v, types::I8X16)
        })
    }

    /// What `load` makes of `len` bytes at a linear address, given a host address and a distance from it: a value of
    /// type `ty`.
    fn load_linear_as(
        &mut self,
        len: u64,
        ty: Type,
        lin: Value,
        mut load: impl FnMut(&mut Self, Value, i32) -> Value,
    ) -> Value {
        let Some((first, host, distance)) = self.seen_near(lin, false) else {
            let host = self.host(lin, len, false);
            return load(self, host, 0);
        };
        let out = self.interpret_here();
        let on = self.b.create_block();
        let value = self.b.append_block_param(on, ty);
        let missed = self.test_near(first, distance, len);
        let v = load(self, host, distance as i32);
        self.b.ins().jump(on, &[v.into()]);
        self.b.switch_to_block(missed);
        let answer = self.ask(lin, len, false, out);
        let v = load(self, answer, 0);
        self.b.ins().jump(on, &[v.into()]);
        self.b.switch_to_block(on);
        self.b.seal_block(on);
        value
    }

    /// Stores to a linear address.
    pub(crate) fn store_linear(&mut self, v: Value, lin: Value) {
        let len = u64::from(self.type_of(v).bytes());
        let Some((first, host, distance)) = self.seen_near(lin, true) else {
            let host = self.host(lin, len, true);
            self.guest_store(v, host, 0);
            return;
        };
        let out = self.interpret_here();
        let on = self.b.create_block();
        let missed = self.test_near(first, distance, len);
        self.guest_store(v, host, distance as i32);
        self.b.ins().jump(on, &[]);
        self.b.switch_to_block(missed);
        let answer = self.ask(lin, len, true, out);
        self.guest_store(v, answer, 0);
        self.b.ins().jump(on, &[]);
        self.b.switch_to_block(on);
        self.b.seal_block(on);
    }

    fn load_host(&mut self, ty: Type, host: Value) -> Value {
        self.guest_load(ty, host, 0)
    }

    fn store_host(&mut self, v: Value, host: Value) {
        self.guest_store(v, host, 0);
    }

    /// Reads, modifies and writes at a linear address; atomically if `lock`. Returns old and new.
    pub(crate) fn modify_at_linear(
        &mut self,
        ty: Type,
        lin: Value,
        lock: bool,
        mut f: impl FnMut(&mut Self, Value) -> Value,
    ) -> (Value, Value) {
        let len = u64::from(ty.bytes());
        if lock && len > 1 {
            // A locked access across its natural boundary is the interpreter's.
            let low = self.b.ins().band_imm_u(lin, len as i64 - 1);
            self.bail_if(low);
        }
        let host = self.host(lin, len, true);
        let first = self.load_host(ty, host);
        if !lock {
            let new = f(self, first);
            self.store_host(new, host);
            return (first, new);
        }
        self.full_fence();
        let again = self.b.create_block();
        let on = self.b.create_block();
        let old = self.b.append_block_param(again, ty);
        self.b.ins().jump(again, &[first.into()]);
        self.b.switch_to_block(again);
        let new = f(self, old);
        let found = self.b.ins().atomic_cas(MemFlagsData::trusted(), host, old, new);
        let same = self.b.ins().icmp(IntCC::Equal, found, old);
        self.b.ins().brif(same, on, &[], again, &[found.into()]);
        self.b.seal_block(again);
        self.b.switch_to_block(on);
        self.b.seal_block(on);
        self.full_fence();
        (old, new)
    }
}
