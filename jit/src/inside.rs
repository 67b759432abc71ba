//! What is told of compiled code to those who look inside.
use crate::listing::{Mark, host_code};
use crate::perf::{Perf, Symbols};
use std::sync::Arc;

/// Where a text about the code of a guest address goes.
pub type Sink = Arc<dyn Fn(u64, &str) + Send + Sync>;

/// What is told of regions to those who look inside.
#[derive(Clone, Default)]
pub struct Inside {
    /// Takes Cranelift's intermediate representation of each.
    pub ir: Option<Sink>,
    /// Takes the host code of each.
    pub asm: Option<Sink>,
    /// Takes their names and places.
    pub perf: Option<Arc<Perf>>,
    /// The names of the guest's functions.
    pub symbols: Arc<Symbols>,
}

impl Inside {
    /// Code was put into place for the linear guest address `lin`; `marks` say what it was made from, and how wide
    /// addresses are there.
    pub(crate) fn show(&self, address: *const u8, code: &[u8], lin: u64, marks: &Marks) {
        if let Some(perf) = &self.perf {
            perf.region(address, code, lin);
        }
        if let Some(asm) = &self.asm {
            asm(lin, &host_code(address, code, &self.symbols.describe(lin), marks.0, &marks.1));
        }
    }
}

/// How wide code's addresses are, and what it was made from if somebody wants to know.
pub(crate) type Marks = (u32, Vec<Mark>);
