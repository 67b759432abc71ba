//! A vCPU of the framework's: loaded, run, taken back, and its exit answered.
use super::vmcs::{self, Control, control, event, reason};
use super::{Framework, HvError, convert};
use mynah_cpu::accel::{SIGNALS, Signals};
use mynah_cpu::board::{EV_INTR, EV_NMI};
use mynah_cpu::event::{Event, EventKind};
use mynah_cpu::state::{Activity, Shadow, efer, fl, gpr};
use mynah_cpu::{Accelerator, Cpu, EngineError, Exit};

/// What makes the framework's vCPU: it belongs to the thread that does.
pub type Make = Box<dyn FnOnce() -> Result<Box<dyn Framework>, HvError> + Send>;

/// A vCPU.
pub struct Vcpu {
    make: Option<Make>,
    by: Option<Box<dyn Framework>>,
    xcr0_mask: u64,
    /// The processor-based controls but for what changes.
    cpu_controls: u64,
    /// Those at entry.
    entry_controls: u64,
    exits: u64,
}

/// Why its run is over.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing that the guest has asked for.
    Nothing,
    Halt,
    Shutdown,
    /// The instruction at RIP is the interpreter's.
    Emulate,
}

/// What an exit is about, by its basic reason; `None` if nothing of the kind can come.
pub(super) fn about(basic: u16) -> Option<Left> {
    Some(match basic {
        reason::EXTERNAL_INTERRUPT
        | reason::INTERRUPT_WINDOW
        | reason::NMI_WINDOW
        | reason::PREEMPTION_TIMER => Left::Nothing,
        reason::TRIPLE_FAULT => Left::Shutdown,
        reason::HLT => Left::Halt,
        reason::TASK_SWITCH
        | reason::CPUID
        | reason::INVD..=reason::VMX_LAST
        | reason::CR_ACCESS..=reason::WRMSR
        | reason::MWAIT
        | reason::MONITOR
        | reason::EPT_VIOLATION
        | reason::RDTSCP
        | reason::WBINVD
        | reason::XSETBV
        | reason::INVPCID
        | reason::XSAVES
        | reason::XRSTORS => Left::Emulate,
        _ => return None,
    })
}

/// `wanted`, and what the processor has always; an error if it does not permit all of it.
fn allowed(f: &dyn Framework, of: Control, wanted: u32) -> Result<u64, HvError> {
    let permitted = f.permitted(of)?;
    let (always, may) = (permitted as u32, (permitted >> 32) as u32);
    let value = wanted | always;
    match value & !may {
        0 => Ok(value.into()),
        missing => Err(HvError { what: "have a control of VMX that is needed", code: missing }),
    }
}

impl Vcpu {
    /// A vCPU that runs one of the model of `cpu`.
    pub fn new(cpu: &Cpu, make: Make) -> Self {
        Self {
            make: Some(make),
            by: None,
            xcr0_mask: cpu.model.xcr0_mask(),
            cpu_controls: 0,
            entry_controls: 0,
            exits: 0,
        }
    }

    /// Makes the framework's vCPU, on this thread.
    fn begin(&mut self, cpu: &Cpu) -> Result<(), HvError> {
        use control::*;
        let Some(make) = self.make.take() else { return Ok(()) };
        let mut f = make()?;
        let pin = allowed(&*f, Control::Pin, PIN_EXTERNAL | PIN_NMI | PIN_VIRTUAL_NMI)?;
        f.set_field(Control::Pin.field(), pin)?;
        // Time, ports and CR8 are the board's.
        let cpu_controls = CPU_HLT
            | CPU_MWAIT
            | CPU_MONITOR
            | CPU_RDPMC
            | CPU_RDTSC
            | CPU_CR8_LOAD
            | CPU_CR8_STORE
            | CPU_IO
            | CPU_MSR_BITMAPS
            | CPU_SECONDARY;
        self.cpu_controls = allowed(&*f, Control::Cpu, cpu_controls)?;
        let cpu2 = allowed(&*f, Control::Cpu2, CPU2_EPT | CPU2_UNRESTRICTED | CPU2_RDTSCP | CPU2_INVPCID)?;
        f.set_field(Control::Cpu2.field(), cpu2)?;
        self.entry_controls = allowed(&*f, Control::Entry, ENTRY_PAT | ENTRY_EFER)?;
        let exit = EXIT_HOST_LONG | EXIT_SAVE_PAT | EXIT_LOAD_PAT | EXIT_SAVE_EFER | EXIT_LOAD_EFER;
        let exit = allowed(&*f, Control::Exit, exit)?;
        f.set_field(Control::Exit.field(), exit)?;
        f.set_field(vmcs::EXCEPTIONS, 0)?;
        cpu.events.set_kicker(Some(f.kicker()));
        self.by = Some(f);
        Ok(())
    }

    /// Has an interrupt or NMI be delivered at entry, if one waits and may come in; whether one waits that may not.
    fn inject(cpu: &mut Cpu) -> (bool, bool) {
        let pending = cpu.events.pending();
        let (mut nmi, mut intr) = (pending & EV_NMI != 0, pending & EV_INTR != 0);
        if cpu.state.pending.is_none() && cpu.state.shadow == Shadow::None {
            let external = |vector, kind| Some(Event { vector, kind, error: None });
            if nmi && !cpu.state.nmi_blocked {
                cpu.events.take_nmi();
                nmi = cpu.events.pending() & EV_NMI != 0;
                cpu.state.pending = external(2, EventKind::Nmi);
            } else if intr && cpu.state.rflags & fl::IF != 0 {
                if let Some(vector) = cpu.board.acknowledge() {
                    cpu.state.pending = external(vector, EventKind::External);
                }
                intr = cpu.events.pending() & EV_INTR != 0;
            }
            if cpu.state.pending.is_some() {
                cpu.state.shadow = Shadow::Event;
            }
        }
        (intr, nmi)
    }

    /// One entry, with the state in the framework, and back.
    fn enter(&mut self, cpu: &mut Cpu) -> Result<Left, HvError> {
        let (intr, nmi) = Self::inject(cpu);
        let Some(f) = &mut self.by else { return Ok(Left::Nothing) };
        convert::load(&mut **f, &cpu.state, self.xcr0_mask)?;
        let mut controls = self.cpu_controls;
        for (waits, window) in [(intr, control::CPU_INTERRUPT_WINDOW), (nmi, control::CPU_NMI_WINDOW)] {
            controls |= if waits { window.into() } else { 0 };
        }
        f.set_field(Control::Cpu.field(), controls)?;
        let long = if cpu.state.msr.efer & efer::LMA != 0 { control::ENTRY_LONG.into() } else { 0 };
        f.set_field(Control::Entry.field(), self.entry_controls | long)?;
        // A kick from here on ends the run that follows.
        let left = if cpu.events.pending() & SIGNALS != 0 {
            Left::Nothing
        } else {
            self.exits += 1;
            f.run()?;
            // An entry has delivered what it had to, or is no entry.
            let why = f.field(vmcs::REASON)?;
            if why & vmcs::ENTRY_FAILED != 0 {
                return Err(HvError {
                    what: "enter the guest: the processor refuses its state",
                    code: why as u32,
                });
            }
            f.set_field(event::ENTRY, 0)?;
            let left = about(why as u16);
            left.ok_or(HvError { what: "go on: an exit that was not asked for", code: why as u32 })?
        };
        convert::save(&**f, &mut cpu.state, self.xcr0_mask)?;
        cpu.taken_over();
        Ok(left)
    }

    fn run_to_exit(&mut self, cpu: &mut Cpu) -> Result<Exit, HvError> {
        self.begin(cpu)?;
        cpu.drop_code();
        loop {
            match cpu.take_signals() {
                Signals::Leave(exit) => return Ok(exit),
                Signals::Changed => continue,
                Signals::None => {}
            }
            match cpu.state.activity {
                Activity::Running => {}
                Activity::WaitSipi => return Ok(Exit::Halt),
                Activity::Shutdown => return Ok(Exit::Shutdown),
                Activity::Halted => {
                    cpu.sync_events();
                    if cpu.events.pending() & cpu.event_mask & (EV_INTR | EV_NMI) == 0 {
                        return Ok(Exit::Halt);
                    }
                    cpu.state.activity = Activity::Running;
                }
            }
            // What only the interpreter does: the A20 gate, and logs of each instruction.
            let left = match cpu.a20_mask != !0 || cpu.is_logged() {
                true => Left::Emulate,
                false => self.enter(cpu)?,
            };
            match left {
                Left::Nothing => {}
                Left::Halt => {
                    // It is at HLT, which has one byte behind its prefixes: none that counts.
                    cpu.state.gpr[gpr::RIP] = cpu.state.gpr[gpr::RIP].wrapping_add(self.length()?);
                    cpu.halted();
                }
                Left::Shutdown => cpu.state.activity = Activity::Shutdown,
                Left::Emulate => {
                    cpu.drop_code();
                    let exit = cpu.step();
                    cpu.drop_code();
                    if let Some(exit) = exit {
                        return Ok(exit);
                    }
                }
            }
        }
    }

    /// The length of the instruction that has exited.
    fn length(&self) -> Result<u64, HvError> {
        const LENGTH: u32 = 0x440c;
        self.by.as_ref().map_or(Ok(1), |f| f.field(LENGTH))
    }
}

impl Accelerator for Vcpu {
    fn name(&self) -> &'static str {
        "hvf"
    }

    fn run(&mut self, cpu: &mut Cpu) -> Result<Exit, EngineError> {
        cpu.among_others(|cpu| self.run_to_exit(cpu))
            .map_err(|e| EngineError(format!("-accel hvf: vCPU {}: {e}", cpu.index)))
    }

    fn exits(&self) -> u64 {
        self.exits
    }
}
