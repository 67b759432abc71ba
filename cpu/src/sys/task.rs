//! Hardware task switches (SDM volume 3A, chapter 7).
//!
//! Everything is read and the outgoing task is saved before the commit point; behind it faults are raised in the new
//! task, with its RIP ([`Stop::FaultInNewTask`]). The debug trap of a TSS with the T flag is left pending.
use super::debug::DR6_BT;
use super::descriptor::{Descriptor, code_of, is_null, kind, rpl};
use super::segments::data_loadable;
use crate::cpu::Cpu;
use crate::event::{Event, Stop, vector};
use crate::state::{Segment, Shadow, cr0, cr4, fl, gpr, seg};
use crate::width::{W8, W16, W32};

/// What causes a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    /// JMP: the old task is no longer busy.
    Jump,
    /// CALL: the new task is nested in the old one.
    Call,
    /// IRET with NT: back to the task in the link field.
    Return,
    /// An interrupt or exception through a task gate: nested.
    Gate,
}

/// Offsets in the 32-bit TSS (SDM volume 3A, figure 7-2).
mod tss32 {
    pub const CR3: u64 = 0x1c;
    pub const EIP: u64 = 0x20;
    pub const EFLAGS: u64 = 0x24;
    pub const EAX: u64 = 0x28;
    pub const ES: u64 = 0x48;
    pub const LDT: u64 = 0x60;
    pub const TRAP: u64 = 0x64;
}
/// Offsets in the 16-bit TSS (figure 7-10).
mod tss16 {
    pub const IP: u64 = 0x0e;
    pub const FLAGS: u64 = 0x10;
    pub const AX: u64 = 0x12;
    pub const ES: u64 = 0x22;
    pub const LDT: u64 = 0x2a;
}

/// The state that a TSS holds.
struct Incoming {
    cr3: u64,
    ip: u64,
    flags: u64,
    gpr: [u64; 8],
    sel: [u16; 6],
    ldt: u16,
    trap: bool,
}

impl Cpu {
    /// Switches to the task that a task gate names.
    pub(crate) fn switch_through_gate(&mut self, gate: Descriptor, how: Switch, ip: u64) -> Result<(), Stop> {
        self.switch_for_event(gate, how, ip, None)
    }

    /// Switches to the task that a task gate names, on behalf of an event.
    pub(crate) fn switch_for_event(
        &mut self,
        gate: Descriptor,
        how: Switch,
        ip: u64,
        ev: Option<&Event>,
    ) -> Result<(), Stop> {
        let sel = gate.gate_selector();
        if sel & 4 != 0 || is_null(sel) {
            return Err(self.gp(code_of(sel)));
        }
        let d = self.descriptor(sel, vector::GP)?;
        if !d.is_system(kind::TSS16) && !d.is_system(kind::TSS32) {
            return Err(self.gp(code_of(sel)));
        }
        self.switch(sel, d, how, ip, ev)
    }

    /// Switches to the task whose TSS descriptor is `d`.
    pub(crate) fn switch_task(&mut self, sel: u16, d: Descriptor, how: Switch, ip: u64) -> Result<(), Stop> {
        if sel & 4 != 0 {
            return Err(self.gp(code_of(sel)));
        }
        self.switch(sel, d, how, ip, None)
    }

    /// IRET with NT set: to the task in the link field of the current TSS.
    pub(crate) fn return_task(&mut self, ip: u64) -> Result<(), Stop> {
        let sel = self.load_sys::<W16>(self.state.tr.base)? as u16;
        if sel & 4 != 0 || is_null(sel) {
            return Err(self.raise_ec(vector::TS, code_of(sel)));
        }
        let d = self.descriptor(sel, vector::TS)?;
        if !d.is_system(kind::TSS16_BUSY) && !d.is_system(kind::TSS32_BUSY) {
            return Err(self.raise_ec(vector::TS, code_of(sel)));
        }
        self.switch(sel, d, Switch::Return, ip, None)
    }

    fn switch(
        &mut self,
        sel: u16,
        d: Descriptor,
        how: Switch,
        ip: u64,
        ev: Option<&Event>,
    ) -> Result<(), Stop> {
        let wide = d.kind() & 8 != 0;
        if !d.present() {
            return Err(self.raise_ec(vector::NP, code_of(sel)));
        }
        let mut new = d.segment(sel);
        if new.limit < if wide { 0x67 } else { 0x2b } {
            return Err(self.raise_ec(vector::TS, code_of(sel)));
        }
        let nested = matches!(how, Switch::Call | Switch::Gate);
        let inc = self.read_tss(&new, wide)?;
        let paging = self.state.cr0 & cr0::PG != 0;
        let pdpte = if wide && paging && self.state.cr4 & cr4::PAE != 0 {
            Some(self.read_pdptes(inc.cr3)?)
        } else {
            None
        };
        let mut flags = match ev {
            Some(ev) => self.pushed_flags(ev),
            None => self.state.rflags(),
        };
        if how == Switch::Return {
            flags &= !fl::NT;
        }
        // The outgoing task, saved first: the writes say only what is true until the switch is done.
        let old = self.state.tr;
        self.save_tss(&old, ip, flags)?;
        if nested {
            self.store_sys::<W16>(new.base, u64::from(old.sel))?;
        }
        if how != Switch::Return {
            self.patch_type(sel, 2, 0)?;
        }
        if !nested {
            self.patch_type(old.sel, 0, 2)?;
        }

        // The commit point.
        new.attr |= 2;
        self.state.tr = new;
        self.state.cr0 |= cr0::TS;
        if wide && paging {
            self.state.cr3 = inc.cr3;
            if let Some(p) = pdpte {
                self.state.pdpte = p;
            }
            self.sync_paging();
            self.tlb.switch_space(0, false);
        }
        self.state.dr[7] &= !0x155;
        self.state.gpr[gpr::RIP] = inc.ip;
        self.state.gpr[..8].copy_from_slice(&inc.gpr);
        self.state.set_rflags(inc.flags | if nested { fl::NT } else { 0 });
        self.state.shadow = Shadow::None;
        self.state.ldtr = Segment { base: 0, limit: 0, attr: Segment::UNUSABLE, sel: inc.ldt };
        let v86 = self.state.is_v86();
        self.state.cpl = if v86 { 3 } else { rpl(inc.sel[seg::CS]) };
        for (i, &sel) in inc.sel.iter().enumerate() {
            self.state.seg[i] = if v86 {
                Segment::real(sel, 3)
            } else {
                let attr = Segment::UNUSABLE | u32::from(self.state.cpl) << 5;
                Segment { base: 0, limit: 0xffff, attr, sel }
            };
        }
        self.sync_all_segments();
        let loaded = self.load_task_segments(&inc, v86);
        self.sync_all_segments();
        let done = loaded.and_then(|()| match ev.and_then(|e| e.error) {
            Some(e) => self.push_value(if wide { 4 } else { 2 }, u64::from(e)),
            None => Ok(()),
        });
        self.next_ip = self.state.gpr[gpr::RIP];
        if done.is_err() {
            return Err(Stop::FaultInNewTask);
        }
        if inc.trap {
            self.hold_debug_trap(DR6_BT);
        }
        Ok(())
    }

    fn sync_all_segments(&mut self) {
        for i in 0..6 {
            self.sync_segment(i);
        }
        self.sync_mode();
        self.track_alignment();
    }

    fn read_tss(&mut self, t: &Segment, wide: bool) -> Result<Incoming, Stop> {
        let mut n = Incoming { cr3: 0, ip: 0, flags: 0, gpr: [0; 8], sel: [0; 6], ldt: 0, trap: false };
        let at = |off: u64| t.base.wrapping_add(off);
        if wide {
            n.cr3 = self.load_sys::<W32>(at(tss32::CR3))?;
            n.ip = self.load_sys::<W32>(at(tss32::EIP))?;
            n.flags = self.load_sys::<W32>(at(tss32::EFLAGS))? & 0x003f_7fd5;
            for (i, r) in n.gpr.iter_mut().enumerate() {
                *r = self.load_sys::<W32>(at(tss32::EAX + 4 * i as u64))?;
            }
            for (i, s) in n.sel.iter_mut().enumerate() {
                *s = self.load_sys::<W16>(at(tss32::ES + 4 * i as u64))? as u16;
            }
            n.ldt = self.load_sys::<W16>(at(tss32::LDT))? as u16;
            n.trap = self.load_sys::<W8>(at(tss32::TRAP))? & 1 != 0;
        } else {
            n.ip = self.load_sys::<W16>(at(tss16::IP))?;
            n.flags = self.load_sys::<W16>(at(tss16::FLAGS))? & 0x7fd5;
            for (i, r) in n.gpr.iter_mut().enumerate() {
                // The upper halves are not defined by the manual: ones, as processors have them.
                *r = self.load_sys::<W16>(at(tss16::AX + 2 * i as u64))? | 0xffff_0000;
            }
            for (i, s) in n.sel.iter_mut().enumerate().take(4) {
                *s = self.load_sys::<W16>(at(tss16::ES + 2 * i as u64))? as u16;
            }
            n.ldt = self.load_sys::<W16>(at(tss16::LDT))? as u16;
        }
        Ok(n)
    }

    fn save_tss(&mut self, t: &Segment, ip: u64, flags: u64) -> Result<(), Stop> {
        let at = |off: u64| t.base.wrapping_add(off);
        if t.attr & 8 != 0 {
            self.store_sys::<W32>(at(tss32::EIP), ip)?;
            self.store_sys::<W32>(at(tss32::EFLAGS), flags)?;
            for i in 0..8 {
                self.store_sys::<W32>(at(tss32::EAX + 4 * i as u64), self.state.gpr[i])?;
            }
            for i in 0..6 {
                let sel = u64::from(self.state.seg[i].sel);
                self.store_sys::<W16>(at(tss32::ES + 4 * i as u64), sel)?;
            }
        } else {
            self.store_sys::<W16>(at(tss16::IP), ip)?;
            self.store_sys::<W16>(at(tss16::FLAGS), flags)?;
            for i in 0..8 {
                self.store_sys::<W16>(at(tss16::AX + 2 * i as u64), self.state.gpr[i])?;
            }
            for i in 0..4 {
                let sel = u64::from(self.state.seg[i].sel);
                self.store_sys::<W16>(at(tss16::ES + 2 * i as u64), sel)?;
            }
        }
        Ok(())
    }

    fn ts(&mut self, sel: u16) -> Stop {
        self.raise_ec(vector::TS, code_of(sel))
    }

    /// Loads LDTR and the segment registers of the new task, checking them as SDM volume 3A, table 7-1 says.
    fn load_task_segments(&mut self, n: &Incoming, v86: bool) -> Result<(), Stop> {
        self.state.ldtr = self.check_ldt(n.ldt, vector::TS, vector::TS)?;
        if v86 {
            return Ok(());
        }
        let cpl = self.state.cpl;
        let sel = n.sel[seg::CS];
        if is_null(sel) {
            return Err(self.ts(sel));
        }
        let mut d = self.descriptor(sel, vector::TS)?;
        let level = if d.is_conforming() { d.dpl() <= cpl } else { d.dpl() == cpl };
        if !d.is_code() || !level {
            return Err(self.ts(sel));
        }
        if !d.present() {
            return Err(self.raise_ec(vector::NP, code_of(sel)));
        }
        self.set_accessed(sel, &mut d)?;
        self.set_segment(seg::CS, d.segment(sel));

        let sel = n.sel[seg::SS];
        if is_null(sel) {
            return Err(self.ts(sel));
        }
        let mut d = self.stack_descriptor(sel, cpl, vector::TS)?;
        self.set_accessed(sel, &mut d)?;
        self.set_segment(seg::SS, d.segment(sel));

        for i in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let sel = n.sel[i];
            if is_null(sel) {
                continue;
            }
            let mut d = self.descriptor(sel, vector::TS)?;
            if !data_loadable(d, sel, cpl) {
                return Err(self.ts(sel));
            }
            if !d.present() {
                return Err(self.raise_ec(vector::NP, code_of(sel)));
            }
            self.set_accessed(sel, &mut d)?;
            self.set_segment(i, d.segment(sel));
        }
        if self.state.gpr[gpr::RIP] > u64::from(self.state.seg[seg::CS].limit) {
            return Err(self.gp(0));
        }
        Ok(())
    }
}
