//! From a plan to host code: Cranelift with its settings and buffers. Stubs: [`super::stubs`].
use crate::clif::primitive::Primitives;
use crate::clif::{Translator, handlers, region_signature};
use crate::perf::Symbols;
use crate::plan::Plan;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::{Function, UserFuncName};
use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use mynah_cpu::CpuModel;
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
    pub(super) isa: OwnedTargetIsa,
    pub(super) context: cranelift_codegen::Context,
    pub(super) builder: FunctionBuilderContext,
    plane: ControlPlane,
    /// Takes the intermediate representation of each region.
    pub ir: Option<crate::inside::Sink>,
    /// The names of the guest's functions, for that.
    pub symbols: Arc<Symbols>,
    called: Vec<u16>,
    /// Where code from one mark of the plan begins.
    marks: Vec<(u32, u32)>,
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
            // No code refers to symbols, so it is position-independent; a `JITModule` wants it so.
            ("is_pic", "false"),
            // Tail calls need them.
            ("preserve_frame_pointers", "true"),
        ];
        // Windows gives a stack its next page when the one behind the last is touched: no frame may pass it by.
        let probes = [("enable_probestack", "true"), ("probestack_strategy", "inline")];
        let probes = if cfg!(windows) { &probes[..] } else { &[] };
        for &(name, value) in options.iter().chain(probes) {
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
        let Some(primitives) = Translator::new(b, &*self.isa, plan).run(&handlers(plan, model), &*self.isa)
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

    /// Offsets in the last region's code, each with the mark of what the code from there on was made from; only if the
    /// plan wanted marks.
    pub fn marks(&self) -> &[(u32, u32)] {
        &self.marks
    }

    /// The instructions that the last region calls the interpreter for.
    pub fn called(&self) -> &[u16] {
        &self.called
    }

    /// Verifies the function in the context, in builds that are for that.
    pub(super) fn verify(&self) -> Option<()> {
        if cfg!(debug_assertions)
            && let Err(e) = self.context.verify(&*self.isa)
        {
            tracing::error!("a function is not as it must be: {e:?}");
            return None;
        }
        Some(())
    }

    /// Compiles the function in the context.
    fn finish(&mut self, primitives: &Primitives) -> Option<Vec<u8>> {
        self.verify()?;
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
