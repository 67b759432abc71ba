//! From a plan to host code: Cranelift with its settings and buffers.
use crate::abi::{CONTEXT, WRITE, context, cpu, in_context, jumps, tlb};
use crate::clif::memory::look_up;
use crate::clif::primitive::Primitives;
use crate::clif::{Translator, chain_signature, region_signature, stub_signature};
use crate::perf::Symbols;
use crate::plan::Plan;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    AbiParam, Function, InstBuilder, MemFlagsData, Signature, UserFuncName, Value, types,
};
use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use mynah_cpu::CpuModel;
use mynah_cpu::tier::LEFT_NEXT;
use mynah_mmu::PAGE_MASK;
use std::sync::Arc;

/// How much Cranelift optimises (its `opt_level`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Optimize {
    /// The baseline, without Cranelift.
    Baseline,
    /// Not at all.
    None,
    /// For speed.
    #[default]
    Speed,
}

/// A compiler with its buffers.
pub(crate) struct Compiler {
    isa: OwnedTargetIsa,
    context: cranelift_codegen::Context,
    builder: FunctionBuilderContext,
    plane: ControlPlane,
    /// Takes the intermediate representation of each region.
    pub ir: Option<crate::tier::Sink>,
    /// The names of the guest's functions, for that.
    pub symbols: Arc<Symbols>,
    called: Vec<u16>,
    /// Where code from one mark of the plan begins.
    marks: Vec<(u32, u32)>,
}

/// Tells a region that is about to be entered its ops and RIP.
fn put_entry(b: &mut FunctionBuilder, cpu: Value, ops: Value, rip: Value) {
    let plain = MemFlagsData::trusted();
    b.ins().store(plain, ops, cpu, in_context(context::OPS));
    b.ins().store(plain, rip, cpu, in_context(context::RIP));
}

impl Compiler {
    /// A compiler for this host; an error says why there is none.
    pub fn new(optimize: Optimize) -> Result<Self, String> {
        let mut flags = settings::builder();
        // `finish` verifies.
        let level = match optimize {
            Optimize::None | Optimize::Baseline => "none",
            Optimize::Speed => "speed",
        };
        let options = [
            ("opt_level", level),
            ("enable_verifier", "false"),
            ("unwind_info", "false"),
            ("is_pic", "true"),
            // Tail calls need them.
            ("preserve_frame_pointers", "true"),
        ];
        for (name, value) in options {
            flags.set(name, value).map_err(|e| format!("setting {name}: {e}"))?;
        }
        let isa =
            cranelift_native::builder()?.finish(settings::Flags::new(flags)).map_err(|e| e.to_string())?;
        Ok(Self {
            isa,
            context: cranelift_codegen::Context::new(),
            builder: FunctionBuilderContext::new(),
            plane: ControlPlane::default(),
            ir: None,
            symbols: Arc::default(),
            called: Vec::new(),
            marks: Vec::new(),
        })
    }

    /// The host that code is made for, with all settings.
    pub fn isa_text(&self) -> String {
        let flags = self.isa.isa_flags();
        let list: Vec<String> = flags.iter().map(|f| f.to_string()).collect();
        format!("{} {} {}", self.isa.triple(), self.isa.flags(), list.join(" "))
    }

    /// The host code of a region that was planned at guest address `lin`; `None` if it cannot be translated.
    pub fn region(&mut self, plan: &Plan, model: &CpuModel, lin: u64) -> Option<Vec<u8>> {
        self.context.clear();
        self.context.func = Function::with_name_signature(UserFuncName::default(), region_signature());
        let b = FunctionBuilder::new(&mut self.context.func, &mut self.builder);
        let Some(primitives) = Translator::new(b, &*self.isa, plan).run(&plan.handlers(model), &*self.isa)
        else {
            self.builder = FunctionBuilderContext::new();
            return None;
        };
        if let Some(ir) = &self.ir {
            ir(lin, &format!("OP: guest {}\n{}\n", self.symbols.describe(lin), self.context.func.display()));
        }
        let code = self.finish(&primitives);
        self.called = primitives.called;
        code
    }

    /// Offsets in the last region's code, each with the mark of what the code from there on was made from; only if the plan wanted marks.
    pub fn marks(&self) -> &[(u32, u32)] {
        &self.marks
    }

    /// The instructions that the last region calls the interpreter for.
    pub fn called(&self) -> &[u16] {
        &self.called
    }

    /// The host code of the stub that translates an address and keeps all registers: from the TLB if it is there (it may well be: code asks also where an
    /// access has left the page of an earlier one), else by `fill_stub`.
    pub fn refill_stub(&mut self) -> Option<Vec<u8>> {
        self.stub(|b, cpu| {
            let (t, plain) = (types::I64, MemFlagsData::trusted());
            let context = b.ins().iadd_imm_s(cpu, CONTEXT as i64);
            let lin = b.ins().load(t, plain, context, context::LIN);
            let kind = b.ins().load(t, plain, context, context::KIND);
            let [writes, reads, found, missed] = std::array::from_fn(|_| b.create_block());
            let write = b.ins().band_imm_u(kind, WRITE as i64);
            b.ins().brif(write, writes, &[], reads, &[]);
            let mut entry = None;
            for (block, write) in [(writes, true), (reads, false)] {
                b.switch_to_block(block);
                // The length is not known here, so the last byte is left to the comparison below.
                let (hit, e) = look_up(b, (plain, plain), cpu, lin, lin, 1, write);
                let found_entry = *entry.get_or_insert_with(|| b.append_block_param(found, t));
                debug_assert_eq!(b.block_params(found), [found_entry]);
                b.ins().brif(hit, found, &[e.into()], missed, &[]);
            }
            let entry = entry?;
            b.switch_to_block(found);
            let within = b.create_block();
            let low = b.ins().band_imm_u(lin, PAGE_MASK as i64);
            let len = b.ins().band_imm_u(kind, 0xff);
            let end = b.ins().iadd(low, len);
            let inside = b.ins().icmp_imm_u(IntCC::UnsignedLessThanOrEqual, end, PAGE_MASK as i64 + 1);
            b.ins().brif(inside, within, &[], missed, &[]);
            b.switch_to_block(within);
            let addend = b.ins().load(t, plain, entry, tlb::ADDEND);
            let host = b.ins().iadd(lin, addend);
            b.ins().store(plain, host, context, context::HOST);
            b.ins().store(plain, host, context, context::DATA);
            b.ins().return_(&[]);
            b.switch_to_block(missed);
            let signature = b.import_signature(stub_signature());
            let stub = b.ins().load(t, plain, context, context::FILL_STUB);
            b.ins().call_indirect(signature, stub, &[cpu]);
            b.ins().return_(&[]);
            Some(())
        })
    }

    /// The host code of the stub that calls [`crate::runtime::refill`] and keeps all registers.
    pub fn fill_stub(&mut self) -> Option<Vec<u8>> {
        let mut callee = Signature::new(self.isa.default_call_conv());
        self.stub(|b, cpu| {
            let context = b.ins().iadd_imm_s(cpu, CONTEXT as i64);
            callee.params.push(AbiParam::new(types::I64));
            callee.returns.push(AbiParam::new(types::I64));
            let callee = b.import_signature(callee);
            let plain = MemFlagsData::trusted();
            let function = b.ins().load(types::I64, plain, context, context::REFILL);
            let call = b.ins().call_indirect(callee, function, &[cpu]);
            let host = b.inst_results(call)[0];
            b.ins().store(plain, host, context, context::HOST);
            b.ins().return_(&[]);
            Some(())
        })
    }

    fn stub(&mut self, body: impl FnOnce(&mut FunctionBuilder, Value) -> Option<()>) -> Option<Vec<u8>> {
        self.context.clear();
        self.context.func = Function::with_name_signature(UserFuncName::default(), stub_signature());
        let mut b = FunctionBuilder::new(&mut self.context.func, &mut self.builder);
        let entry = b.create_block();
        b.append_block_params_for_function_params(entry);
        b.switch_to_block(entry);
        let cpu = *b.block_params(entry).first()?;
        body(&mut b, cpu)?;
        b.seal_all_blocks();
        b.finalize(self.isa.frontend_config());
        self.finish(&Primitives::default())
    }

    /// The host code of the function that regions are entered by, a [`mynah_cpu::tier::Enter`].
    pub fn enter_stub(&mut self) -> Option<Vec<u8>> {
        self.context.clear();
        let mut signature = Signature::new(self.isa.default_call_conv());
        signature.params.extend([AbiParam::new(types::I64); 4]);
        signature.returns.push(AbiParam::new(types::I32));
        self.context.func = Function::with_name_signature(UserFuncName::default(), signature);
        let mut b = FunctionBuilder::new(&mut self.context.func, &mut self.builder);
        let callee = b.import_signature(region_signature());
        let entry = b.create_block();
        b.append_block_params_for_function_params(entry);
        b.switch_to_block(entry);
        b.seal_block(entry);
        let &[cpu, ops, rip, code] = b.block_params(entry) else { return None };
        put_entry(&mut b, cpu, ops, rip);
        let call = b.ins().call_indirect(callee, code, &[cpu]);
        let left = b.inst_results(call)[0];
        b.ins().return_(&[left]);
        b.finalize(self.isa.frontend_config());
        self.finish(&Primitives::default())
    }

    /// The host code of the stub that goes on with the code at an address if there is some and no event is pending, and else leaves.
    pub fn chain_stub(&mut self) -> Option<Vec<u8>> {
        self.context.clear();
        self.context.func = Function::with_name_signature(UserFuncName::default(), chain_signature());
        let mut b = FunctionBuilder::new(&mut self.context.func, &mut self.builder);
        let region = b.import_signature(region_signature());
        let entry = b.create_block();
        let (other, found, on, out) =
            (b.create_block(), b.create_block(), b.create_block(), b.create_block());
        b.append_block_params_for_function_params(entry);
        b.switch_to_block(entry);
        let &[cpu, rip] = b.block_params(entry) else { return None };
        let context = b.ins().iadd_imm_s(cpu, CONTEXT as i64);
        let (t, plain) = (types::I64, MemFlagsData::trusted());
        let table = b.ins().load(t, plain, cpu, jumps::TABLE);
        let high = b.ins().ushr_imm_u(rip, i64::from(jumps::SHIFT));
        let index = b.ins().bxor(rip, high);
        let index = b.ins().band_imm_u(index, i64::from(jumps::MASK));
        let index = b.ins().ishl_imm_u(index, i64::from(jumps::ENTRY_SHIFT));
        let jump = b.ins().iadd(table, index);
        let lin = b.ins().load(t, plain, jump, jumps::LIN);
        let same = b.ins().icmp(IntCC::Equal, lin, rip);
        b.ins().brif(same, other, &[], out, &[]);
        b.switch_to_block(other);
        let tag = b.ins().load(t, plain, jump, jumps::TAG);
        let half = b.ins().ushr_imm_u(rip, 63);
        let half = b.ins().ishl_imm_u(half, 3);
        let half = b.ins().iadd(cpu, half);
        let now = b.ins().load(t, plain, half, jumps::TAGS);
        let same = b.ins().icmp(IntCC::Equal, tag, now);
        b.ins().brif(same, found, &[], out, &[]);
        b.switch_to_block(found);
        let events = b.ins().load(t, plain, context, context::EVENTS);
        let pending = b.ins().load(types::I32, plain, events, 0);
        let mask = b.ins().load(types::I32, plain, cpu, cpu::EVENT_MASK);
        let hit = b.ins().band(pending, mask);
        b.ins().brif(hit, out, &[], on, &[]);
        b.switch_to_block(on);
        let code = b.ins().load(t, plain, jump, jumps::CODE);
        let ops = b.ins().load(t, plain, jump, jumps::OPS);
        put_entry(&mut b, cpu, ops, rip);
        b.ins().return_call_indirect(region, code, &[cpu]);
        b.set_cold_block(out);
        b.switch_to_block(out);
        b.ins().store(plain, rip, cpu, cpu::RIP);
        let left = b.ins().iconst(types::I32, LEFT_NEXT as i64);
        b.ins().return_(&[left]);
        b.seal_all_blocks();
        b.finalize(self.isa.frontend_config());
        self.finish(&Primitives::default())
    }

    /// Compiles the function in the context.
    fn finish(&mut self, primitives: &Primitives) -> Option<Vec<u8>> {
        if cfg!(debug_assertions)
            && let Err(e) = self.context.verify(&*self.isa)
        {
            tracing::error!("a region is not as it must be: {e:?}");
            return None;
        }
        primitives.finish_signatures(&mut self.context.func);
        let (bytes, relocs) = match self.context.compile(&*self.isa, &mut self.plane) {
            Ok(code) => {
                let places = code.buffer.get_srclocs_sorted().iter();
                self.marks =
                    places.filter(|p| !p.loc.is_default()).map(|p| (p.start, p.loc.bits())).collect();
                (code.code_buffer().to_vec(), code.buffer.relocs().to_vec())
            }
            Err(e) => {
                tracing::warn!("a region could not be compiled: {:?}", e.inner);
                return None;
            }
        };
        // Code that refers to anything but primitives could not be moved.
        primitives.link(&self.context.func, &relocs, bytes)
    }
}

const _: () = assert!(WRITE > 0xff);
