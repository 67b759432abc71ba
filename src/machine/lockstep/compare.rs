//! What differs between two vCPUs and their memories.
use mynah_cpu::state::{Fpu, Msrs, Segment, State, cr0, fl, gpr, seg};
use mynah_mmu::{PAGE_SIZE, PhysMemory};

/// A part of the state that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What it is.
    pub place: Place,
    /// Its name.
    pub name: String,
    /// What the leader has there, and what the follower has.
    pub values: [String; 2],
}

/// Where two may differ, as far as instructions can be asked whether they write there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A general register.
    Register(usize),
    /// RIP.
    Rip,
    /// These arithmetic flags.
    Flags(u64),
    /// A vector register.
    Vector(usize),
    /// The x87 unit.
    Fpu,
    /// Eight bytes of RAM, by their offset.
    Memory(u64),
    /// What has been asked of the board.
    Board,
    /// Another part of the state.
    Other,
}

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// Takes from two states what is not to be compared: forms of the same flags, and what a hypervisor keeps otherwise
/// (`loosely`): the last x87 instruction, what unusable segments hold, MSRs that it may not have.
fn comparable(s: &State, loosely: bool) -> State {
    let mut s = s.with_packed_flags();
    if loosely {
        s.fpu = Fpu { fop: 0, fip: 0, fdp: 0, fcs: 0, fds: 0, ..s.fpu };
        // Of empty registers nothing is promised.
        for n in 0..8 {
            if s.fpu.empty >> n & 1 != 0 {
                s.fpu.r[n] = Default::default();
            }
        }
        let protected = s.cr0 & cr0::PE != 0 && s.rflags & fl::VM == 0;
        for (n, segment) in s.seg.iter_mut().enumerate() {
            // These have their base in 64-bit mode whatever their selector.
            let base = if matches!(n, seg::FS | seg::GS) { segment.base } else { 0 };
            *segment = usable(*segment, protected && n != seg::CS, base);
        }
        s.ldtr = usable(s.ldtr, true, 0);
        let m = s.msr;
        s.msr = Msrs {
            efer: m.efer,
            star: m.star,
            lstar: m.lstar,
            fmask: m.fmask,
            kernel_gs_base: m.kernel_gs_base,
            tsc_aux: m.tsc_aux,
            sysenter_cs: m.sysenter_cs,
            sysenter_esp: m.sysenter_esp,
            sysenter_eip: m.sysenter_eip,
            pat: m.pat,
            ..Msrs::default()
        };
        s.dr[6] |= 0xffff_0ff0;
        s.rflags &= !fl::RF;
        s.pdpte = [0; 4];
        s.xmm.iter_mut().skip(16).for_each(|x| *x = Default::default());
        s.xmm.iter_mut().for_each(|x| x.0[4..].fill(0));
    }
    s
}

/// A segment as a hypervisor keeps it, which may have other hidden parts of one that is not usable (but for `base`), or
/// `may_be_null` and has a null selector, and calls all accessed.
fn usable(s: Segment, may_be_null: bool, base: u64) -> Segment {
    if s.usable() && s.attr & Segment::P != 0 && (s.sel & !3 != 0 || !may_be_null) {
        Segment { attr: s.attr | u32::from(s.attr & Segment::S != 0), ..s }
    } else {
        Segment { sel: s.sel, attr: Segment::UNUSABLE, base, ..Segment::default() }
    }
}

/// What differs between leader and follower.
pub fn states(leader: &State, follower: &State, loosely: bool) -> Vec<Difference> {
    let (a, b) = (comparable(leader, loosely), comparable(follower, loosely));
    if a == b {
        return Vec::new();
    }
    let mut all = Vec::new();
    let mut add = |place, name: &str, values: [String; 2]| {
        if values[0] != values[1] {
            all.push(Difference { place, name: name.into(), values });
        }
    };
    let hex = |v: u64| format!("{v:016x}");
    for (n, name) in NAMES.iter().enumerate() {
        add(Place::Register(n), name, [hex(a.gpr[n]), hex(b.gpr[n])]);
    }
    add(Place::Rip, "rip", [hex(a.gpr[gpr::RIP]), hex(b.gpr[gpr::RIP])]);
    let flags = a.arith_flags() ^ b.arith_flags();
    add(Place::Flags(flags), "flags", [flag_names(a.arith_flags()), flag_names(b.arith_flags())]);
    add(Place::Other, "rflags (system)", [hex(a.rflags), hex(b.rflags)]);
    for n in 0..a.xmm.len() {
        let text = |v: &[u64; 8]| {
            v.iter().rev().skip_while(|w| **w == 0).map(|w| format!("{w:016x}")).collect::<Vec<_>>().join("_")
        };
        add(Place::Vector(n), &format!("ymm{n}"), [text(&a.xmm[n].0), text(&b.xmm[n].0)]);
    }
    add(Place::Other, "mxcsr", [format!("{:x}", a.mxcsr), format!("{:x}", b.mxcsr)]);
    macro_rules! fields {
        ($($place:expr, $name:expr, $field:ident $(. $rest:tt)*;)*) => {
            $( add($place, $name, [format!("{:x?}", a.$field $(. $rest)*), format!("{:x?}", b.$field $(. $rest)*)]); )*
        };
    }
    for (n, name) in ["es", "cs", "ss", "ds", "fs", "gs"].iter().enumerate() {
        add(Place::Other, name, [format!("{:x?}", a.seg[n]), format!("{:x?}", b.seg[n])]);
    }
    fields! {
        Place::Fpu, "x87 registers", fpu.r;
        Place::Fpu, "x87 control word", fpu.cw;
        Place::Fpu, "x87 status word", fpu.sw;
        Place::Fpu, "x87 top of stack", fpu.top;
        Place::Fpu, "x87 empty registers", fpu.empty;
        Place::Fpu, "x87 last opcode", fpu.fop;
        Place::Fpu, "x87 last instruction", fpu.fip;
        Place::Fpu, "x87 last operand", fpu.fdp;
        Place::Fpu, "x87 selectors", fpu.fcs;
        Place::Fpu, "x87 operand's selector", fpu.fds;
        Place::Other, "ldtr", ldtr;
        Place::Other, "tr", tr;
        Place::Other, "gdtr", gdtr;
        Place::Other, "idtr", idtr;
        Place::Other, "cr0", cr0;
        Place::Other, "cr2", cr2;
        Place::Other, "cr3", cr3;
        Place::Other, "cr4", cr4;
        Place::Other, "xcr0", xcr0;
        Place::Other, "debug registers", dr;
        Place::Other, "pdptes", pdpte;
        Place::Other, "pkru", pkru;
        Place::Other, "cpl", cpl;
        Place::Other, "activity", activity;
        Place::Other, "interrupt shadow", shadow;
        Place::Other, "NMIs blocked", nmi_blocked;
        Place::Other, "pending event", pending;
        Place::Other, "MSRs", msr;
    }
    if all.is_empty() {
        all.push(Difference {
            place: Place::Other,
            name: "another part of the state".into(),
            values: Default::default(),
        });
    }
    all
}

/// Whether general registers and RIP are the same.
pub fn same_registers(a: &State, b: &State) -> bool {
    a.gpr[gpr::RIP] == b.gpr[gpr::RIP] && a.gpr[..16] == b.gpr[..16]
}

fn flag_names(v: u64) -> String {
    const ALL: [(u64, char); 6] =
        [(fl::OF, 'O'), (fl::SF, 'S'), (fl::ZF, 'Z'), (fl::AF, 'A'), (fl::PF, 'P'), (fl::CF, 'C')];
    ALL.iter().map(|(bit, c)| if v & bit != 0 { *c } else { '-' }).collect()
}

/// Words of memory that are told of at most.
const MOST: usize = 16;

/// What differs in these pages.
pub fn pages(leader: &PhysMemory, follower: &PhysMemory, offsets: &[u64]) -> Vec<Difference> {
    let mut all = Vec::new();
    for &offset in offsets {
        if leader.same_page(follower, offset) {
            continue;
        }
        let (mut a, mut b) = ([0; PAGE_SIZE as usize], [0; PAGE_SIZE as usize]);
        leader.copy_page(offset, &mut a);
        follower.copy_page(offset, &mut b);
        for n in (0..a.len()).step_by(8).filter(|&n| a[n..n + 8] != b[n..n + 8]) {
            if all.len() < MOST {
                let at = offset + n as u64;
                all.push(Difference {
                    place: Place::Memory(at),
                    name: format!("RAM at {:#x}", leader.address_of(at)),
                    values: [&a, &b].map(|page| format!("{:016x}", word(&page[n..n + 8]))),
                });
            }
        }
    }
    all
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named_and_the_same_flags_in_two_forms_do_not() {
        let a = State::default();
        let mut b = a.with_packed_flags();
        assert_eq!(states(&a, &b, false), []);
        b.gpr[3] = 7;
        b.set_rflags(b.rflags() ^ fl::CF);
        b.fpu.fip = 9;
        let names = |loosely| states(&a, &b, loosely).into_iter().map(|d| d.name).collect::<Vec<_>>();
        assert_eq!(names(false), ["rbx", "flags", "x87 last instruction"]);
        assert_eq!(names(true), ["rbx", "flags"]);
    }
}
