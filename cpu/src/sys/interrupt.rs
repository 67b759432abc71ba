//! Event delivery: interrupts, exceptions, NMI and software interrupts through the IVT or the IDT; double and triple
//! faults.
//!
//! SDM volume 3A, chapter 6 (6.12 protected mode, 6.14 64-bit mode, table 6-5 double faults); volume 2, INT n; real
//! mode: volume 3B, 20.1.4.
//!
//! A delivery reads and checks everything and writes the whole frame before it changes a register; if it faults, the
//! state is that before it, and the fault is delivered instead (or a double fault). A task switch is the exception:
//! behind its commit point, faults belong to the new task.
//!
//! One delivery is tried at a time. What it leads to, a fault in it or the debug trap of a task switch, is left in
//! [`State::pending`] for the run loop, which looks at kicks first: there are guests whose deliveries never end (#AC
//! whose handler's stack is misaligned, CVE-2015-5307; tasks that trap into each other; a breakpoint on the stack of
//! #DB's handler, CVE-2015-8104).
//!
//! [`State::pending`]: crate::state::State::pending
use super::descriptor::{Descriptor, code_of, is_null, kind};
use super::far::Target;
use super::stack::Stack;
use super::task::Switch;
use crate::cpu::Cpu;
use crate::event::{Event, EventKind, Exception, Stop, vector};
use crate::op::{Helper, Op};
use crate::state::{Activity, Segment, Shadow, fl, gpr, seg};
use crate::width::{W16, W64};
use iced_x86::{Code, Instruction};

/// What became of two exceptions, the second raised while the first was being delivered.
enum Combined {
    Deliver(Event),
    Shutdown,
}

fn is_contributory(v: u8) -> bool {
    matches!(v, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP)
}

/// SDM volume 3A, table 6-5.
fn combine(first: &Event, second: Exception) -> Combined {
    let both_matter = is_contributory(second.vector) || second.vector == vector::PF;
    if first.kind == EventKind::Exception {
        let double = match first.vector {
            vector::DF => return Combined::Shutdown,
            vector::PF => both_matter,
            v if is_contributory(v) => is_contributory(second.vector),
            _ => false,
        };
        if double {
            return Combined::Deliver(Event {
                vector: vector::DF,
                kind: EventKind::Exception,
                error: Some(0),
            });
        }
    }
    Combined::Deliver(second.into())
}

/// Exceptions that are faults: the pushed RF is set, so that an instruction breakpoint does not hit again on return.
/// Not #DB, of which only the instruction breakpoint is a fault, and that pushes RF as it is.
fn pushes_rf(ev: &Event) -> bool {
    ev.kind == EventKind::Exception
        && !matches!(ev.vector, vector::DB | vector::BP | vector::OF | vector::DF | vector::MC)
}

impl Cpu {
    /// Delivers an event. RIP is what is to be pushed: that of the instruction for faults, the next one for traps and
    /// interrupts. Sets RIP to the handler's first instruction; if the delivery faults, that exception is pending;
    /// after a triple fault the activity is [`Activity::Shutdown`].
    pub fn deliver(&mut self, ev: Event) {
        if self.state.activity == Activity::Halted {
            self.state.activity = Activity::Running;
        }
        let rip = self.state.gpr[gpr::RIP];
        if self.trace.is_some() {
            self.trace_event(&ev);
        }
        self.watch = self.debug_armed();
        self.debug_hits = 0;
        let delivered = self.try_deliver(&ev, rip);
        self.watch = false;
        match delivered {
            Ok(ip) => {
                self.state.gpr[gpr::RIP] = ip;
                if self.debug_hits != 0 {
                    self.hold_debug_trap(self.debug_hits);
                }
            }
            Err(_) => {
                let second = self.fault_during(&ev);
                match combine(&ev, second) {
                    Combined::Deliver(next) => self.hold(next),
                    Combined::Shutdown => self.shutdown(),
                }
            }
        }
        self.debug_hits = 0;
    }

    /// Leaves an event to be delivered before the next instruction.
    fn hold(&mut self, ev: Event) {
        self.state.pending = Some(ev);
        self.state.shadow = Shadow::Event;
        self.sync_events();
    }

    /// Leaves #DB to be delivered before the next instruction, with `hits` added to DR6.
    pub(crate) fn hold_debug_trap(&mut self, hits: u64) {
        self.note_debug_hits(hits);
        self.hold(Event { vector: vector::DB, kind: EventKind::Exception, error: None });
    }

    fn shutdown(&mut self) {
        tracing::debug!(rip = self.state.gpr[gpr::RIP], "triple fault");
        self.state.activity = Activity::Shutdown;
        self.sync_mode();
    }

    /// The exception in `self.fault` as it is raised while `ev` is being delivered: with EXT unless the program asked
    /// for the event.
    fn fault_during(&mut self, ev: &Event) -> Exception {
        let mut f = self.fault;
        let selector = matches!(f.vector, vector::TS | vector::NP | vector::SS | vector::GP);
        if selector && !ev.kind.is_soft() {
            f.error = f.error.map(|e| e | 1);
        }
        f
    }

    /// Delivers `ev` with `rip` as the address to push. `Ok` is the address of the handler; on `Err` nothing has
    /// changed but NMI blocking, or all that a task switch changes ([`Stop::FaultInNewTask`]).
    pub(crate) fn try_deliver(&mut self, ev: &Event, rip: u64) -> Result<u64, Stop> {
        if ev.kind == EventKind::Nmi {
            self.state.nmi_blocked = true;
        }
        self.state.shadow = Shadow::None;
        let ip = if self.state.is_real() {
            self.deliver_real(ev, rip)?
        } else if self.state.is_v86() && ev.kind == EventKind::SoftInt && self.redirected(ev.vector)? {
            self.redirect(ev.vector, rip)?
        } else if self.state.is_long() {
            self.deliver_long(ev, rip)?
        } else {
            self.deliver_protected(ev, rip)?
        };
        if ev.vector == vector::DB && matches!(ev.kind, EventKind::Exception | EventKind::IceBp) {
            self.entered_debug_handler();
        }
        self.sync_mode();
        Ok(ip)
    }

    /// RFLAGS as the event pushes it.
    pub(super) fn pushed_flags(&self, ev: &Event) -> u64 {
        self.state.rflags() | if pushes_rf(ev) { fl::RF } else { 0 }
    }

    /// Real-address mode: through the interrupt vector table; no error codes.
    fn deliver_real(&mut self, ev: &Event, rip: u64) -> Result<u64, Stop> {
        let at = u64::from(ev.vector) * 4;
        if at + 3 > u64::from(self.state.idtr.limit) {
            return Err(self.gp(u32::from(ev.vector) * 8 + 2));
        }
        let at = self.state.idtr.base.wrapping_add(at);
        let ip = self.load_sys::<W16>(at)?;
        let sel = self.load_sys::<W16>(at.wrapping_add(2))? as u16;
        let segment = self.real_segment(seg::CS, sel);
        if ip > u64::from(segment.limit) {
            return Err(self.gp(0));
        }
        let flags = self.state.rflags();
        let mut st = Stack::current(self);
        st.room(self, 6)?;
        st.push(self, 2, flags)?;
        st.push(self, 2, u64::from(self.state.seg[seg::CS].sel))?;
        st.push(self, 2, rip)?;
        st.commit(self);
        self.state.rflags &= !(fl::IF | fl::TF | fl::AC | fl::RF);
        self.enter_code(&Target { segment, ip, cpl: self.state.cpl });
        self.mode_changed();
        Ok(ip)
    }

    /// The error code that names an IDT entry.
    fn idt_code(ev: &Event) -> u32 {
        u32::from(ev.vector) * 8 + 2
    }

    /// Checks a gate's privilege and presence.
    fn check_gate(&mut self, ev: &Event, gate: Descriptor) -> Result<(), Stop> {
        if ev.kind.is_soft() && gate.dpl() < self.state.cpl {
            return Err(self.gp(Self::idt_code(ev)));
        }
        if !gate.present() {
            return Err(self.raise_ec(vector::NP, Self::idt_code(ev)));
        }
        Ok(())
    }

    /// Checks the handler's code segment: descriptor and the privilege level it will run at.
    fn handler_code(&mut self, sel: u16) -> Result<(Descriptor, u8), Stop> {
        if is_null(sel) {
            return Err(self.gp(0));
        }
        let d = self.descriptor(sel, vector::GP)?;
        let cpl = self.state.cpl;
        let long = self.state.is_long();
        if !d.is_code() || d.dpl() > cpl || long && (!d.is_long() || d.is_big()) {
            return Err(self.gp(code_of(sel)));
        }
        if !d.present() {
            return Err(self.raise_ec(vector::NP, code_of(sel)));
        }
        let new = if d.is_conforming() { cpl } else { d.dpl() };
        if self.state.is_v86() && new != 0 {
            return Err(self.gp(code_of(sel)));
        }
        Ok((d, new))
    }

    /// What every gate does to RFLAGS.
    fn mask_flags(&mut self, interrupt_gate: bool) {
        let off = fl::TF | fl::NT | fl::RF | fl::VM | if interrupt_gate { fl::IF } else { 0 };
        self.state.rflags &= !off;
    }

    /// Protected mode without long mode: task, interrupt and trap gates.
    fn deliver_protected(&mut self, ev: &Event, rip: u64) -> Result<u64, Stop> {
        let at = u64::from(ev.vector) * 8;
        if at + 7 > u64::from(self.state.idtr.limit) {
            return Err(self.gp(Self::idt_code(ev)));
        }
        let gate = Descriptor(self.load_sys::<W64>(self.state.idtr.base.wrapping_add(at))?);
        let known = !gate.is_segment()
            && matches!(
                gate.kind(),
                kind::TASK_GATE | kind::INT_GATE16 | kind::TRAP_GATE16 | kind::INT_GATE32 | kind::TRAP_GATE32
            );
        if !known {
            return Err(self.gp(Self::idt_code(ev)));
        }
        self.check_gate(ev, gate)?;
        if gate.kind() == kind::TASK_GATE {
            self.switch_for_event(gate, Switch::Gate, rip, Some(ev))?;
            return Ok(self.state.gpr[gpr::RIP]);
        }
        let wide = gate.kind() & 8 != 0;
        let width = if wide { 4 } else { 2 };
        let sel = gate.gate_selector();
        let (mut d, new_cpl) = self.handler_code(sel)?;
        let v86 = self.state.is_v86();
        let inner = new_cpl < self.state.cpl;
        let (mut st, ss) = if inner {
            let (st, ss) = self.enter_inner_stack(new_cpl)?;
            (st, Some(ss))
        } else {
            (Stack::current(self), None)
        };
        let mut t = self.check_target(d, sel, gate.gate_offset(wide), new_cpl)?;
        let words = 3 + 2 * u64::from(inner) + 4 * u64::from(v86) + u64::from(ev.error.is_some());
        st.room(self, words * width)?;
        let s = &self.state;
        let selectors = s.seg.map(|s| u64::from(s.sel));
        let rsp = s.gpr[gpr::RSP];
        let flags = self.pushed_flags(ev);
        if v86 {
            for i in [seg::GS, seg::FS, seg::DS, seg::ES] {
                st.push(self, width, selectors[i])?;
            }
        }
        if inner {
            st.push(self, width, selectors[seg::SS])?;
            st.push(self, width, rsp)?;
        }
        st.push(self, width, flags)?;
        st.push(self, width, selectors[seg::CS])?;
        st.push(self, width, rip)?;
        if let Some(e) = ev.error {
            st.push(self, width, u64::from(e))?;
        }
        self.set_accessed(sel, &mut d)?;
        t.segment.attr |= 1;
        match ss {
            Some(ss) => {
                self.state.gpr[gpr::RSP] = st.sp;
                self.state.seg[seg::SS] = ss;
            }
            None => st.commit(self),
        }
        self.mask_flags(gate.kind() & 1 == 0);
        self.enter_code(&t);
        self.mode_changed();
        if v86 {
            for i in [seg::GS, seg::FS, seg::DS, seg::ES] {
                let null = self.null_segment(i, 0, 0);
                self.set_segment(i, null);
            }
            self.sync_mode();
        }
        Ok(t.ip)
    }

    /// Long mode: 16-byte gates, IST, a frame of quadwords on a 16-byte boundary.
    fn deliver_long(&mut self, ev: &Event, rip: u64) -> Result<u64, Stop> {
        let at = u64::from(ev.vector) * 16;
        if at + 15 > u64::from(self.state.idtr.limit) {
            return Err(self.gp(Self::idt_code(ev)));
        }
        let at = self.state.idtr.base.wrapping_add(at);
        let gate = Descriptor(self.load_sys::<W64>(at)?);
        let high = self.load_sys::<W64>(at.wrapping_add(8))?;
        if gate.is_segment() || !matches!(gate.kind(), kind::INT_GATE32 | kind::TRAP_GATE32) {
            return Err(self.gp(Self::idt_code(ev)));
        }
        self.check_gate(ev, gate)?;
        let sel = gate.gate_selector();
        let (mut d, new_cpl) = self.handler_code(sel)?;
        let inner = new_cpl < self.state.cpl;
        let rsp = self.state.gpr[gpr::RSP];
        let sp = match gate.gate_ist() {
            0 if inner => self.inner_stack(new_cpl)?.1,
            0 => rsp,
            n => {
                let (tr, at) = (self.state.tr, 0x1c + n * 8);
                if at + 7 > u64::from(tr.limit) {
                    return Err(self.raise_ec(vector::TS, code_of(tr.sel)));
                }
                self.load_sys::<W64>(tr.base.wrapping_add(at))?
            }
        };
        let mut t = self.check_target(d, sel, gate.gate_offset(true) | high << 32, new_cpl)?;
        let flags = self.pushed_flags(ev);
        let mut st = Stack::long(self, sp & !15, new_cpl);
        let ss = self.state.seg[seg::SS].sel;
        st.push(self, 8, u64::from(ss))?;
        st.push(self, 8, rsp)?;
        st.push(self, 8, flags)?;
        st.push(self, 8, u64::from(self.state.seg[seg::CS].sel))?;
        st.push(self, 8, rip)?;
        if let Some(e) = ev.error {
            st.push(self, 8, u64::from(e))?;
        }
        self.set_accessed(sel, &mut d)?;
        t.segment.attr |= 1;
        self.state.gpr[gpr::RSP] = st.sp;
        if inner {
            self.state.seg[seg::SS] = self.null_segment(seg::SS, u16::from(new_cpl), new_cpl);
        }
        self.mask_flags(gate.kind() & 1 == 0);
        self.enter_code(&t);
        self.mode_changed();
        Ok(t.ip)
    }

    /// The attributes of a flat segment as SYSCALL and its kin load it.
    pub(crate) fn flat_segment(sel: u16, attr: u32) -> Segment {
        Segment { base: 0, limit: 0xffff_ffff, attr, sel }
    }
}

/// Delivers a software interrupt from within its instruction: a fault is the instruction's.
///
/// A data breakpoint that MOV SS has met right before is reported after the instruction, at the handler's first one.
/// INT1 raises #DB itself: the breakpoint is reported by that one, in DR6. (SDM volume 3C, 27.6.3, lets it be lost or
/// come after it, at the handler's first instruction, where it would have the handler believe that it has met a
/// breakpoint itself.)
fn software(cpu: &mut Cpu, vector: u8, kind: EventKind) -> Result<(), Stop> {
    let next = cpu.next_ip;
    let ev = Event { vector, kind, error: None };
    if cpu.trace.is_some() {
        cpu.trace_event(&ev);
    }
    let held = std::mem::take(&mut cpu.debug_hits);
    match cpu.try_deliver(&ev, next) {
        Ok(ip) => cpu.set_next_ip(ip),
        Err(stop) => {
            cpu.fault = cpu.fault_during(&ev);
            return Err(stop);
        }
    }
    if kind == EventKind::IceBp && held != 0 {
        cpu.note_debug_hits(held);
    } else {
        cpu.debug_hits |= held;
    }
    cpu.untraced = true;
    Ok(())
}

fn int_n(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    software(cpu, op.imm as u8, EventKind::SoftInt)
}
fn int3(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    software(cpu, vector::BP, EventKind::SoftInt3)
}
fn int1(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    software(cpu, vector::DB, EventKind::IceBp)
}
fn into(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    if cpu.state.of() { software(cpu, vector::OF, EventKind::IntO) } else { Ok(()) }
}

/// The helper for an instruction of this group.
pub(super) fn lookup(i: &Instruction) -> Option<Helper> {
    match i.code() {
        Code::Int_imm8 => Helper::ends(int_n),
        Code::Int3 => Helper::ends(int3),
        Code::Int1 => Helper::ends(int1),
        Code::Into => Helper::ends(into),
        _ => None,
    }
}
