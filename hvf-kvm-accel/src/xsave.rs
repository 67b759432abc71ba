//! The XSAVE area in its standard format, as hypervisors give and take it: x87, vector registers and PKRU.
//!
//! Source: SDM volume 1, 13.4.
use mynah_cpu::model::leaves::COMPONENTS;
use mynah_cpu::state::{F80, State};

/// Its length, which is a page: no component is enabled that is not in there.
pub const SIZE: usize = 4096;

/// Where things are in it.
mod at {
    pub const FCW: usize = 0;
    pub const FSW: usize = 2;
    pub const FTW: usize = 4;
    pub const FOP: usize = 6;
    pub const FIP: usize = 8;
    pub const FDP: usize = 16;
    pub const MXCSR: usize = 24;
    pub const ST: usize = 32;
    pub const XMM: usize = 160;
    pub const XSTATE_BV: usize = 512;
    /// Components of the legacy area.
    pub const X87: u64 = 1;
    pub const SSE: u64 = 2;
    /// The others.
    pub const AVX: u32 = 2;
    pub const PKRU: u32 = 9;
}

/// The bytes of an XSAVE area.
struct Area([u8; SIZE]);

impl Area {
    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[at..at + N]);
        bytes
    }

    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }
}

/// Where a component begins in the standard format.
fn component(bit: u32) -> usize {
    COMPONENTS.iter().find(|c| c.bit == bit).map_or(0, |c| c.offset as usize)
}

/// The x87 unit, the vector registers and PKRU, as far as the model has them (`mask`: what XCR0 may have, or none).
pub fn area(s: &State, mask: u64) -> [u8; SIZE] {
    let mut a = Area([0; SIZE]);
    let f = &s.fpu;
    a.put(at::FCW, f.cw.to_le_bytes());
    a.put(at::FSW, (f.sw | u16::from(f.top) << 11).to_le_bytes());
    a.put(at::FTW, [!f.empty]);
    a.put(at::FOP, f.fop.to_le_bytes());
    a.put(at::FIP, f.fip.to_le_bytes());
    a.put(at::FDP, f.fdp.to_le_bytes());
    a.put(at::MXCSR, s.mxcsr.to_le_bytes());
    for i in 0..8 {
        // In stack order.
        let r = f.r[(i + usize::from(f.top)) & 7];
        a.put(at::ST + 16 * i, r.mant.to_le_bytes());
        a.put(at::ST + 16 * i + 8, r.exp.to_le_bytes());
    }
    for i in 0..16 {
        a.put(at::XMM + 16 * i, s.xmm[i].x().to_le_bytes());
    }
    let mut held = at::X87 | at::SSE;
    if mask >> at::AVX & 1 != 0 {
        held |= 1 << at::AVX;
        for i in 0..16 {
            a.put(component(at::AVX) + 16 * i, s.xmm[i].y_high().to_le_bytes());
        }
    }
    if mask >> at::PKRU & 1 != 0 {
        held |= 1 << at::PKRU;
        a.put(component(at::PKRU), s.pkru.to_le_bytes());
    }
    a.put(at::XSTATE_BV, held.to_le_bytes());
    a.0
}

/// Takes them back. FCS and FDS, which a host in 64-bit mode does not keep, stay as they are.
pub fn set_area(s: &mut State, bytes: &[u8; SIZE], mask: u64) {
    let a = Area(*bytes);
    let held = u64::from_le_bytes(a.get(at::XSTATE_BV));
    let f = &mut s.fpu;
    if held & at::X87 != 0 {
        let sw = u16::from_le_bytes(a.get(at::FSW));
        f.cw = u16::from_le_bytes(a.get(at::FCW));
        f.top = (sw >> 11 & 7) as u8;
        f.sw = sw & !(7 << 11);
        let [full] = a.get::<1>(at::FTW);
        f.empty = !full;
        f.fop = u16::from_le_bytes(a.get(at::FOP)) & 0x7ff;
        f.fip = u64::from_le_bytes(a.get(at::FIP));
        f.fdp = u64::from_le_bytes(a.get(at::FDP));
        for i in 0..8 {
            f.r[(i + usize::from(f.top)) & 7] = F80 {
                mant: u64::from_le_bytes(a.get(at::ST + 16 * i)),
                exp: u16::from_le_bytes(a.get(at::ST + 16 * i + 8)),
            };
        }
    } else {
        *f = mynah_cpu::state::Fpu { fcs: f.fcs, fds: f.fds, ..Default::default() };
    }
    // MXCSR is there whatever the mask of components says.
    s.mxcsr = u32::from_le_bytes(a.get(at::MXCSR));
    for i in 0..16 {
        let x = if held & at::SSE != 0 { u128::from_le_bytes(a.get(at::XMM + 16 * i)) } else { 0 };
        s.xmm[i].set_x(x);
    }
    if mask >> at::AVX & 1 != 0 {
        let there = held >> at::AVX & 1 != 0;
        for i in 0..16 {
            let at = component(at::AVX) + 16 * i;
            s.xmm[i].set_y_high(if there { u128::from_le_bytes(a.get(at)) } else { 0 });
        }
    }
    if mask >> at::PKRU & 1 != 0 {
        let there = held >> at::PKRU & 1 != 0;
        s.pkru = if there { u32::from_le_bytes(a.get(component(at::PKRU))) } else { 0 };
    }
}
