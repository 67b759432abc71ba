//! The stubs that Cranelift makes: by which regions are entered, where they go on, and what they ask for addresses.
//!
//! They are functions of a [`JITModule`], which has its memory from ours ([`Provider`]): it writes them at the address
//! at which that can be written, and they run at the other. They refer to no symbols, so it does not matter where they
//! are.
use super::compile::Compiler;
use super::memory::look_up;
use super::{chain_signature, code_convention, region_signature, stub_signature};
use crate::abi::{CONTEXT, WRITE, context, cpu, in_context, jumps, tlb};
use crate::code::dual_map::Executed;
use crate::code::provider::Provider;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    AbiParam, Function, InstBuilder, MemFlagsData, Signature, UserFuncName, Value, types,
};
use cranelift_frontend::FunctionBuilder;
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{FuncId, Linkage, Module};
use mynah_cpu::tier::LEFT_NEXT;
use mynah_mmu::PAGE_MASK;

/// A stub.
pub(crate) struct Stub {
    pub name: &'static str,
    pub address: *const u8,
    /// Its bytes, for who looks inside.
    pub code: Vec<u8>,
}

/// All of them.
pub(crate) struct Stubs {
    pub entry: Stub,
    pub refill: Stub,
    pub fill: Stub,
    pub chain: Stub,
}

/// Tells a region that is about to be entered its ops and RIP.
fn put_entry(b: &mut FunctionBuilder, cpu: Value, ops: Value, rip: Value) {
    let plain = MemFlagsData::trusted();
    b.ins().store(plain, ops, cpu, in_context(context::OPS));
    b.ins().store(plain, rip, cpu, in_context(context::RIP));
}

impl Compiler {
    /// The stubs, in memory that `provider` has and `execute` is the other view of; an error says what there is not.
    pub fn stubs(&mut self, provider: Provider, execute: &Executed) -> Result<Stubs, String> {
        let mut builder = JITBuilder::with_isa(self.isa.clone(), cranelift_module::default_libcall_names());
        builder.memory_provider(Box::new(provider));
        let mut module = JITModule::new(builder);
        let entry = self.define(&mut module, "entry", Self::enter_stub)?;
        let refill = self.define(&mut module, "refill", Self::refill_stub)?;
        let fill = self.define(&mut module, "fill", Self::fill_stub)?;
        let chain = self.define(&mut module, "chain", Self::chain_stub)?;
        module.finalize_definitions().map_err(|e| format!("the stubs cannot be placed: {e}"))?;
        let stub = |(name, id, code): (&'static str, FuncId, Vec<u8>)| {
            let address = execute
                .of_written(module.get_finalized_function(id))
                .ok_or_else(|| format!("the {name} stub is elsewhere"))?;
            Ok::<_, String>(Stub { name, address, code })
        };
        Ok(Stubs { entry: stub(entry)?, refill: stub(refill)?, fill: stub(fill)?, chain: stub(chain)? })
    }

    /// Adds a stub to a module.
    fn define(
        &mut self,
        module: &mut JITModule,
        name: &'static str,
        build: fn(&mut Self) -> Option<()>,
    ) -> Result<(&'static str, FuncId, Vec<u8>), String> {
        self.context.clear();
        build(self)
            .and_then(|()| self.verify())
            .ok_or_else(|| format!("the {name} stub does not compile"))?;
        let failed = |e| format!("the {name} stub: {e}");
        let signature = self.context.func.signature.clone();
        let id = module.declare_function(name, Linkage::Export, &signature).map_err(failed)?;
        module.define_function(id, &mut self.context).map_err(failed)?;
        let code = self.context.compiled_code().map(|c| c.code_buffer().to_vec());
        Ok((name, id, code.unwrap_or_default()))
    }

    /// The stub that translates an address and keeps all registers: from the TLB if it is there (it may well be: code
    /// asks also where an access has left the page of an earlier one), else by `fill_stub`.
    fn refill_stub(&mut self) -> Option<()> {
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

    /// The stub that calls [`crate::runtime::refill`] and keeps all registers.
    fn fill_stub(&mut self) -> Option<()> {
        let mut callee = Signature::new(code_convention(&*self.isa));
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

    /// A stub that keeps all registers.
    fn stub(&mut self, body: impl FnOnce(&mut FunctionBuilder, Value) -> Option<()>) -> Option<()> {
        self.context.func = Function::with_name_signature(UserFuncName::default(), stub_signature());
        let mut b = FunctionBuilder::new(&mut self.context.func, &mut self.builder);
        let entry = b.create_block();
        b.append_block_params_for_function_params(entry);
        b.switch_to_block(entry);
        let cpu = *b.block_params(entry).first()?;
        body(&mut b, cpu)?;
        b.seal_all_blocks();
        b.finalize(self.isa.frontend_config());
        Some(())
    }

    /// The function that regions are entered by, a [`mynah_cpu::tier::Enter`].
    fn enter_stub(&mut self) -> Option<()> {
        let mut signature = Signature::new(code_convention(&*self.isa));
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
        Some(())
    }

    /// The stub that goes on with the code at an address if there is some and no event is pending, and else leaves.
    fn chain_stub(&mut self) -> Option<()> {
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
        Some(())
    }
}

const _: () = assert!(WRITE > 0xff);
