//! Primitives: host instructions that Cranelift has no name for, placed in the middle of its code.
//!
//! A primitive is a few bytes of machine code with operands in fixed registers. To Cranelift it is a call of a
//! function that keeps every register but its results', so it has an effect: it is neither moved, merged with another
//! nor left out. That is what instructions need that read a rounding mode and set sticky flags; and it is exact,
//! because it is the guest's very instruction. When the code is complete, [`Primitives::link`] puts the bytes in the
//! place of the call; those that are longer than a call stand behind the code and are called there.
//!
//! Which bytes there are, and where they have their operands: [`crate::host::primitives`].
use crate::clif::Translator;
use crate::host::primitives;
use cranelift_codegen::FinalizedMachReloc;
use cranelift_codegen::FinalizedRelocTarget;
use cranelift_codegen::ir::{
    AbiParam, ExtFuncData, ExternalName, FuncRef, Function, InstBuilder, SigRef, Signature, UserExternalName,
    Value, types,
};
use cranelift_codegen::isa::CallConv;
use std::collections::HashMap;

/// Numbers of operands and results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// Integers (64 bits) it takes.
    pub ints: u8,
    /// Vectors it takes.
    pub vectors: u8,
    /// Integers it yields, up to 2.
    pub to_ints: u8,
    /// Vectors it yields, up to 2; they come behind the integers.
    pub to_vectors: u8,
}

impl Shape {
    /// Takes `ints` and `vectors`, yields `to_ints` and `to_vectors`.
    pub const fn new(ints: u8, vectors: u8, to_ints: u8, to_vectors: u8) -> Self {
        Self { ints, vectors, to_ints, to_vectors }
    }
}

/// The primitives of one function.
#[derive(Default)]
pub(crate) struct Primitives {
    signatures: HashMap<Shape, SigRef>,
    known: HashMap<(Shape, Box<[u8]>), FuncRef>,
    code: Vec<Box<[u8]>>,
    /// Codes of the instructions that the region calls the interpreter for.
    pub called: Vec<u16>,
}

impl Primitives {
    fn function(&mut self, f: &mut Function, shape: Shape, bytes: &[u8]) -> FuncRef {
        let key = (shape, Box::from(bytes));
        if let Some(&known) = self.known.get(&key) {
            return known;
        }
        let signature = *self.signatures.entry(shape).or_insert_with(|| {
            // The verifier allows no results of a function that keeps all registers: see `finish_signatures`.
            let mut s = Signature::new(primitives::CONVENTION);
            let param = |n, t| std::iter::repeat_n(AbiParam::new(t), usize::from(n));
            s.params.extend(param(shape.ints, types::I64));
            s.params.extend(param(shape.vectors, types::I8X16));
            s.returns.extend(param(shape.to_ints, types::I64));
            s.returns.extend(param(shape.to_vectors, types::I8X16));
            f.import_signature(s)
        });
        let name = f.declare_imported_user_function(UserExternalName::new(0, self.code.len() as u32));
        self.code.push(key.1.clone());
        // Near: a call with a 32-bit displacement.
        let data =
            ExtFuncData { name: ExternalName::user(name), signature, colocated: true, patchable: false };
        let function = f.import_function(data);
        self.known.insert(key, function);
        function
    }

    /// Declares that primitives keep all registers, when the function is complete.
    pub fn finish_signatures(&self, f: &mut Function) {
        for &s in self.signatures.values() {
            f.dfg.signatures[s].call_conv = CallConv::PreserveAll;
        }
    }

    /// Puts the primitives into compiled code; `None` if the code refers to anything else.
    pub fn link(&self, f: &Function, relocs: &[FinalizedMachReloc], code: Vec<u8>) -> Option<Vec<u8>> {
        let call = |r: &FinalizedMachReloc| {
            let FinalizedRelocTarget::ExternalName(ExternalName::User(name)) = r.target else { return None };
            Some((r.offset as usize, f.params.user_named_funcs().get(name)?.index as usize))
        };
        let calls: Vec<(usize, usize)> = relocs.iter().map(call).collect::<Option<_>>()?;
        primitives::place(&self.code, &calls, code)
    }
}

impl Translator<'_> {
    /// Executes a primitive. Integers narrower than 64 bits are extended with zeros. Returns its results, integers
    /// first.
    pub(crate) fn primitive(
        &mut self,
        bytes: &[u8],
        ints: &[Value],
        vectors: &[Value],
        to_ints: u8,
        to_vectors: u8,
    ) -> &[Value] {
        let shape = Shape::new(ints.len() as u8, vectors.len() as u8, to_ints, to_vectors);
        let function = self.primitives.function(self.b.func, shape, bytes);
        let mut args = Vec::with_capacity(ints.len() + vectors.len());
        for &v in ints {
            args.push(self.fit(v, types::I64));
        }
        for &v in vectors {
            args.push(self.as_lanes(v, types::I8X16));
        }
        let call = self.b.ins().call(function, &args);
        self.b.inst_results(call)
    }
}
