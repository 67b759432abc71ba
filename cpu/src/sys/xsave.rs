//! FXSAVE, FXRSTOR and the XSAVE family (SDM volume 1, 10.5 and chapter 13; volume 2).
//!
//! Components: x87 (0), SSE (1), and behind the header what [`crate::model::leaves::COMPONENTS`] lists (AVX, 2: bits
//! 128-255 of the YMM registers; PKRU, 9). A component is *in use* unless its registers have their initial values. The
//! modified optimisation is not made: XSAVEOPT and XSAVES write all that is in use, which the manual allows.
use super::privilege::ring0;
use crate::cpu::Cpu;
use crate::event::{Stop, vector};
use crate::model::Feature;
use crate::model::leaves::{COMPONENTS, XComponent, XSAVE_HEADER_END};
use crate::op::{Helper, Op};
use crate::state::{F80, Fpu, cr0, cr4, gpr};
use iced_x86::{Code, Instruction};

/// Component bits.
const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
const AVX_BIT: u32 = 2;
const PKRU_BIT: u32 = 9;
/// XCOMP_BV bit 63: the compacted format.
const COMPACTED: u64 = 1 << 63;
/// What MXCSR_MASK says: all bits but the upper half.
const MXCSR_MASK: u32 = 0xffff;

/// Room for the largest component.
const LARGEST: usize = 256;

/// The legacy region, 512 bytes.
type Legacy = [u8; 512];

fn put<const N: usize>(b: &mut [u8], at: usize, v: [u8; N]) {
    b[at..at + N].copy_from_slice(&v);
}
fn get<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
    let mut v = [0; N];
    v.copy_from_slice(&b[at..at + N]);
    v
}

/// The x87 state as FXSAVE lays it out (SDM volume 1, table 10-2); `wide` is the form with REX.W.
fn put_x87(b: &mut Legacy, f: &Fpu, wide: bool) {
    put(b, 0, f.cw.to_le_bytes());
    put(b, 2, (f.sw & !0x3800 | u16::from(f.top & 7) << 11).to_le_bytes());
    b[4] = !f.empty;
    put(b, 6, f.fop.to_le_bytes());
    if wide {
        put(b, 8, f.fip.to_le_bytes());
        put(b, 16, f.fdp.to_le_bytes());
    } else {
        put(b, 8, (f.fip as u32).to_le_bytes());
        put(b, 12, f.fcs.to_le_bytes());
        put(b, 16, (f.fdp as u32).to_le_bytes());
        put(b, 20, f.fds.to_le_bytes());
    }
    for i in 0..8 {
        let r = f.r[(usize::from(f.top) + i) & 7];
        put(b, 32 + 16 * i, r.mant.to_le_bytes());
        put(b, 40 + 16 * i, r.exp.to_le_bytes());
    }
}

fn get_x87(b: &Legacy, wide: bool) -> Fpu {
    let sw = u16::from_le_bytes(get(b, 2));
    let mut f = Fpu {
        cw: u16::from_le_bytes(get(b, 0)) & !0xe080 | 0x40,
        sw: sw & !0x3800,
        top: (sw >> 11 & 7) as u8,
        empty: !b[4],
        fop: u16::from_le_bytes(get(b, 6)) & 0x7ff,
        ..Fpu::default()
    };
    // The error summary follows flags and masks.
    let pending = f.sw & !f.cw & 0x3f != 0;
    f.sw = f.sw & !0x8080 | if pending { 0x8080 } else { 0 };
    if wide {
        f.fip = u64::from_le_bytes(get(b, 8));
        f.fdp = u64::from_le_bytes(get(b, 16));
    } else {
        f.fip = u64::from(u32::from_le_bytes(get(b, 8)));
        f.fcs = u16::from_le_bytes(get(b, 12));
        f.fdp = u64::from(u32::from_le_bytes(get(b, 16)));
        f.fds = u16::from_le_bytes(get(b, 20));
    }
    for i in 0..8 {
        let r = F80 {
            mant: u64::from_le_bytes(get(b, 32 + 16 * i)),
            exp: u16::from_le_bytes(get(b, 40 + 16 * i)),
        };
        f.r[(usize::from(f.top) + i) & 7] = r;
    }
    f
}

impl Cpu {
    /// XMM registers that the current mode reaches.
    fn xmm_count(&self) -> usize {
        if self.state.is_long64() { 16 } else { 8 }
    }

    fn put_sse(&self, b: &mut Legacy) {
        for i in 0..self.xmm_count() {
            put(b, 160 + 16 * i, self.state.xmm[i].x().to_le_bytes());
        }
    }

    fn put_mxcsr(&self, b: &mut Legacy) {
        put(b, 24, self.state.mxcsr.to_le_bytes());
        put(b, 28, MXCSR_MASK.to_le_bytes());
    }

    fn get_sse(&mut self, b: &Legacy) {
        for i in 0..self.xmm_count() {
            self.state.xmm[i].set_x(u128::from_le_bytes(get(b, 160 + 16 * i)));
        }
    }

    /// XINUSE: the components whose registers differ from their initial values.
    pub(crate) fn components_in_use(&self) -> u64 {
        let s = &self.state;
        let sse = s.xmm[..16].iter().any(|x| x.x() != 0);
        let avx = s.xmm[..16].iter().any(|x| x.y_high() != 0);
        let x87 = s.fpu != Fpu::default();
        u64::from(avx) << AVX_BIT | u64::from(x87) | u64::from(sse) << 1 | u64::from(s.pkru != 0) << PKRU_BIT
    }

    /// XINUSE as XGETBV, XSAVEC and XSAVES see it: SSE counts as used if MXCSR has changed.
    pub(crate) fn components_in_use_with_mxcsr(&self) -> u64 {
        self.components_in_use() | if self.state.mxcsr == 0x1f80 { 0 } else { SSE }
    }

    /// Writes a component into its area; returns how many bytes of it the current mode has.
    fn put_component(&self, c: &XComponent, b: &mut [u8; LARGEST]) -> usize {
        match c.bit {
            AVX_BIT => {
                let n = self.xmm_count();
                for i in 0..n {
                    put(b, 16 * i, self.state.xmm[i].y_high().to_le_bytes());
                }
                16 * n
            }
            PKRU_BIT => {
                put(b, 0, self.state.pkru.to_le_bytes());
                c.size as usize
            }
            _ => 0,
        }
    }

    fn get_component(&mut self, c: &XComponent, b: &[u8; LARGEST]) {
        match c.bit {
            AVX_BIT => {
                for i in 0..self.xmm_count() {
                    self.state.xmm[i].set_y_high(u128::from_le_bytes(get(b, 16 * i)));
                }
            }
            PKRU_BIT => self.set_pkru(u32::from_le_bytes(get(b, 0))),
            _ => {}
        }
    }

    /// Gives a component its initial values, which are zeros.
    fn init_component(&mut self, c: &XComponent) {
        self.get_component(c, &[0; LARGEST]);
    }

    /// What FXSAVE and FXRSTOR check: #NM, then a 16-byte boundary.
    fn fx_operand(&mut self, op: &Op, write: bool) -> Result<u64, Stop> {
        if self.state.cr0 & (cr0::EM | cr0::TS) != 0 {
            return Err(self.raise(vector::NM));
        }
        let lin = self.operand(op, 512, write)?;
        if lin & 15 != 0 {
            return Err(self.gp(0));
        }
        Ok(lin)
    }

    /// What the XSAVE family checks: CR4.OSXSAVE, #NM, a 64-byte boundary. Returns address and RFBM.
    fn xsave_operand(&mut self, op: &Op, write: bool, supervisor: bool) -> Result<(u64, u64), Stop> {
        if self.state.cr4 & cr4::OSXSAVE == 0 {
            return Err(self.ud());
        }
        if self.state.cr0 & cr0::TS != 0 {
            return Err(self.raise(vector::NM));
        }
        if supervisor {
            ring0(self)?;
        }
        let lin = self.operand(op, u64::from(XSAVE_HEADER_END), write)?;
        if lin & 63 != 0 {
            return Err(self.gp(0));
        }
        let g = &self.state.gpr;
        let wanted = g[gpr::RDX] << 32 | g[gpr::RAX] & 0xffff_ffff;
        let enabled = self.state.xcr0 | if supervisor { self.state.msr.xss } else { 0 };
        Ok((lin, wanted & enabled))
    }
}

/// Where component `c` stands in an area of this format.
fn place(c: &XComponent, compacted: Option<u64>) -> u64 {
    match compacted {
        None => u64::from(c.offset),
        Some(mask) => {
            let before = COMPONENTS.iter().filter(|o| o.bit < c.bit && mask >> o.bit & 1 != 0);
            u64::from(XSAVE_HEADER_END) + before.map(|o| u64::from(o.size)).sum::<u64>()
        }
    }
}

fn fxsave<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let lin = cpu.fx_operand(op, true)?;
    let mut b = [0; 512];
    put_x87(&mut b, &cpu.state.fpu, WIDE);
    cpu.put_mxcsr(&mut b);
    let mut end = 160;
    if cpu.state.cr4 & cr4::OSFXSR != 0 {
        cpu.put_sse(&mut b);
        end += 16 * cpu.xmm_count();
    }
    cpu.probe_write(lin, 512, op.seg)?;
    cpu.store_bytes(lin, &b[..end], op.seg)
}

fn fxrstor<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let lin = cpu.fx_operand(op, false)?;
    let mut b = [0; 512];
    cpu.load_bytes(lin, &mut b, op.seg)?;
    let mxcsr = u32::from_le_bytes(get(&b, 24));
    if cpu.state.cr4 & cr4::OSFXSR != 0 {
        if mxcsr & !MXCSR_MASK != 0 {
            return Err(cpu.gp(0));
        }
        cpu.state.mxcsr = mxcsr;
        cpu.get_sse(&b);
    }
    cpu.state.fpu = get_x87(&b, WIDE);
    crate::x87::unit::settle(cpu);
    Ok(())
}

/// How an instruction of the XSAVE family saves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// XSAVE: all of RFBM.
    Plain,
    /// XSAVEOPT: what is in use.
    Optimised,
    /// XSAVEC, XSAVES: what is in use, compacted.
    Compacted,
}

fn save(cpu: &mut Cpu, op: &Op, form: Form, supervisor: bool, wide: bool) -> Result<(), Stop> {
    let (lin, rfbm) = cpu.xsave_operand(op, true, supervisor)?;
    let compacted = (form == Form::Compacted).then_some(rfbm);
    let used = if compacted.is_some() { cpu.components_in_use_with_mxcsr() } else { cpu.components_in_use() };
    let saved = if form == Form::Plain { rfbm } else { rfbm & used };
    let mut end = u64::from(XSAVE_HEADER_END);
    for c in COMPONENTS.iter().filter(|c| saved >> c.bit & 1 != 0) {
        end = end.max(place(c, compacted) + u64::from(c.size));
    }
    let lin = if end > u64::from(XSAVE_HEADER_END) { cpu.operand(op, end, true)? } else { lin };
    cpu.probe_write(lin, end, op.seg)?;

    let mut header = [0; 16];
    let header_len = match compacted {
        Some(mask) => {
            put(&mut header, 0, (rfbm & used).to_le_bytes());
            put(&mut header, 8, (mask | COMPACTED).to_le_bytes());
            16
        }
        None => {
            let mut old = [0; 8];
            cpu.load_bytes(lin.wrapping_add(512), &mut old, op.seg)?;
            let bv = u64::from_le_bytes(old) & !rfbm | rfbm & used;
            put(&mut header, 0, bv.to_le_bytes());
            8
        }
    };
    let mut b = [0; 512];
    put_x87(&mut b, &cpu.state.fpu, wide);
    cpu.put_mxcsr(&mut b);
    cpu.put_sse(&mut b);
    let sse_end = 160 + 16 * cpu.xmm_count();
    let mxcsr = if compacted.is_some() { saved & SSE != 0 } else { rfbm & (SSE | AVX) != 0 };
    let pieces = [
        (saved & X87 != 0, 0, 24),
        (mxcsr, 24, 32),
        (saved & X87 != 0, 32, 160),
        (saved & SSE != 0, 160, sse_end),
    ];
    for (on, from, to) in pieces {
        if on {
            cpu.store_bytes(lin.wrapping_add(from as u64), &b[from..to], op.seg)?;
        }
    }
    for c in COMPONENTS.iter().filter(|c| saved >> c.bit & 1 != 0) {
        let mut area = [0; LARGEST];
        let len = cpu.put_component(c, &mut area).min(LARGEST);
        let at = lin.wrapping_add(place(c, compacted));
        cpu.store_bytes(at, &area[..len], op.seg)?;
    }
    cpu.store_bytes(lin.wrapping_add(512), &header[..header_len], op.seg)
}

fn restore(cpu: &mut Cpu, op: &Op, supervisor: bool, wide: bool) -> Result<(), Stop> {
    let (lin, rfbm) = cpu.xsave_operand(op, false, supervisor)?;
    let mut header = [0u8; 64];
    cpu.load_bytes(lin.wrapping_add(512), &mut header, op.seg)?;
    let bv = u64::from_le_bytes(get(&header, 0));
    let comp = u64::from_le_bytes(get(&header, 8));
    let enabled = cpu.state.xcr0 | if supervisor { cpu.state.msr.xss } else { 0 };
    let compact = comp & COMPACTED != 0;
    let valid = if compact {
        let mask = comp & !COMPACTED;
        cpu.model.has(Feature::XSAVEC)
            && mask & !enabled == 0
            && bv & !mask == 0
            && header[16..].iter().all(|&b| b == 0)
    } else {
        !supervisor && bv & !enabled == 0 && header[8..24].iter().all(|&b| b == 0)
    };
    if !valid {
        return Err(cpu.gp(0));
    }
    let compacted = compact.then_some(comp & !COMPACTED);
    let loaded = rfbm & bv;
    let reset = rfbm & !bv;

    // All memory is read, and MXCSR checked, before anything changes.
    let mut b = [0; 512];
    cpu.load_bytes(lin, &mut b, op.seg)?;
    let mut areas = [[0u8; LARGEST]; COMPONENTS.len()];
    for (c, area) in COMPONENTS.iter().zip(areas.iter_mut()) {
        if loaded >> c.bit & 1 != 0 {
            let at = place(c, compacted);
            let lin = cpu.operand_at(op, at, u64::from(c.size), false)?;
            cpu.load_bytes(lin, &mut area[..(c.size as usize).min(LARGEST)], op.seg)?;
        }
    }
    let from_memory = if compact { loaded & SSE != 0 } else { rfbm & (SSE | AVX) != 0 };
    let mxcsr = u32::from_le_bytes(get(&b, 24));
    if from_memory && mxcsr & !MXCSR_MASK != 0 {
        return Err(cpu.gp(0));
    }

    if loaded & X87 != 0 {
        cpu.state.fpu = get_x87(&b, wide);
    } else if reset & X87 != 0 {
        cpu.state.fpu = Fpu::default();
    }
    crate::x87::unit::settle(cpu);
    if from_memory {
        cpu.state.mxcsr = mxcsr;
    } else if reset & SSE != 0 {
        cpu.state.mxcsr = 0x1f80;
    }
    if loaded & SSE != 0 {
        cpu.get_sse(&b);
    } else if reset & SSE != 0 {
        cpu.get_sse(&[0; 512]);
    }
    for (c, area) in COMPONENTS.iter().zip(areas.iter()) {
        if loaded >> c.bit & 1 != 0 {
            cpu.get_component(c, area);
        } else if reset >> c.bit & 1 != 0 {
            cpu.init_component(c);
        }
    }
    Ok(())
}

fn xsave<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    save(cpu, op, Form::Plain, false, WIDE)
}
fn xsaveopt<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    save(cpu, op, Form::Optimised, false, WIDE)
}
fn xsavec<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    save(cpu, op, Form::Compacted, false, WIDE)
}
fn xsaves<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    save(cpu, op, Form::Compacted, true, WIDE)
}
fn xrstor<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    restore(cpu, op, false, WIDE)
}
fn xrstors<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    restore(cpu, op, true, WIDE)
}

/// The helper for an instruction of this group.
pub(super) fn lookup(i: &Instruction) -> Option<Helper> {
    match i.code() {
        Code::Fxsave_m512byte => Helper::straight(fxsave::<false>),
        Code::Fxsave64_m512byte => Helper::straight(fxsave::<true>),
        Code::Fxrstor_m512byte => Helper::straight(fxrstor::<false>),
        Code::Fxrstor64_m512byte => Helper::straight(fxrstor::<true>),
        Code::Xsave_mem => Helper::straight(xsave::<false>),
        Code::Xsave64_mem => Helper::straight(xsave::<true>),
        Code::Xsaveopt_mem => Helper::straight(xsaveopt::<false>),
        Code::Xsaveopt64_mem => Helper::straight(xsaveopt::<true>),
        Code::Xsavec_mem => Helper::straight(xsavec::<false>),
        Code::Xsavec64_mem => Helper::straight(xsavec::<true>),
        Code::Xsaves_mem => Helper::straight(xsaves::<false>),
        Code::Xsaves64_mem => Helper::straight(xsaves::<true>),
        Code::Xrstor_mem => Helper::ends(xrstor::<false>),
        Code::Xrstor64_mem => Helper::ends(xrstor::<true>),
        Code::Xrstors_mem => Helper::ends(xrstors::<false>),
        Code::Xrstors64_mem => Helper::ends(xrstors::<true>),
        _ => None,
    }
}
