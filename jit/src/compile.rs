//! From a plan to host code: Cranelift with its settings and buffers.
use crate::region::Plan;
use crate::runtime::{Context as Shared, WRITE};
use crate::translate::{Translator, entry_signature, stub_signature};
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::{AbiParam, Function, InstBuilder, MemFlagsData, Signature, UserFuncName, types};
use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use iced_x86::InstructionInfoFactory;
use mynah_cpu::CpuModel;
use std::mem::offset_of;

/// A compiler with its buffers.
pub(crate) struct Compiler {
    isa: OwnedTargetIsa,
    context: cranelift_codegen::Context,
    builder: FunctionBuilderContext,
    plane: ControlPlane,
    /// For [`Plan::new`].
    pub info: InstructionInfoFactory,
}

impl Compiler {
    /// A compiler for this host; an error says why there is none.
    pub fn new() -> Result<Self, String> {
        let mut flags = settings::builder();
        let options = [
            ("opt_level", "speed"),
            ("enable_verifier", if cfg!(debug_assertions) { "true" } else { "false" }),
        ];
        for (name, value) in options.into_iter().chain([("unwind_info", "false"), ("is_pic", "true")]) {
            flags.set(name, value).map_err(|e| format!("setting {name}: {e}"))?;
        }
        let isa =
            cranelift_native::builder()?.finish(settings::Flags::new(flags)).map_err(|e| e.to_string())?;
        Ok(Self {
            isa,
            context: cranelift_codegen::Context::new(),
            builder: FunctionBuilderContext::new(),
            plane: ControlPlane::default(),
            info: InstructionInfoFactory::new(),
        })
    }

    /// The host code of a region; `None` if it cannot be translated.
    pub fn region(&mut self, plan: &Plan, model: &CpuModel) -> Option<Vec<u8>> {
        self.context.clear();
        self.context.func =
            Function::with_name_signature(UserFuncName::default(), entry_signature(&*self.isa));
        let b = FunctionBuilder::new(&mut self.context.func, &mut self.builder);
        if !Translator::new(b, &*self.isa, plan).run(&plan.handlers(model), &*self.isa) {
            self.builder = FunctionBuilderContext::new();
            return None;
        }
        self.finish()
    }

    /// The host code of the stub that calls [`crate::runtime::refill`] and keeps all registers.
    pub fn refill_stub(&mut self) -> Option<Vec<u8>> {
        self.context.clear();
        self.context.func = Function::with_name_signature(UserFuncName::default(), stub_signature());
        let mut b = FunctionBuilder::new(&mut self.context.func, &mut self.builder);
        let mut callee = Signature::new(self.isa.default_call_conv());
        callee.params.extend([AbiParam::new(types::I64); 3]);
        callee.returns.push(AbiParam::new(types::I64));
        let callee = b.import_signature(callee);
        let entry = b.create_block();
        b.append_block_params_for_function_params(entry);
        b.switch_to_block(entry);
        b.seal_block(entry);
        let (cpu, context, lin, kind) = match b.block_params(entry) {
            &[cpu, context, lin, kind] => (cpu, context, lin, kind),
            _ => return None,
        };
        let plain = MemFlagsData::trusted();
        let function = b.ins().load(types::I64, plain, context, offset_of!(Shared, refill) as i32);
        let call = b.ins().call_indirect(callee, function, &[cpu, lin, kind]);
        let host = b.inst_results(call)[0];
        b.ins().store(plain, host, context, offset_of!(Shared, host) as i32);
        b.ins().return_(&[]);
        b.finalize(self.isa.frontend_config());
        self.finish()
    }

    /// Compiles the function in the context.
    fn finish(&mut self) -> Option<Vec<u8>> {
        match self.context.compile(&*self.isa, &mut self.plane) {
            // Code that refers to symbols could not be moved.
            Ok(code) if code.buffer.relocs().is_empty() => Some(code.code_buffer().to_vec()),
            Ok(_) => None,
            Err(e) => {
                tracing::warn!("a region could not be compiled: {:?}", e.inner);
                None
            }
        }
    }
}

const _: () = assert!(WRITE > 0xff);
