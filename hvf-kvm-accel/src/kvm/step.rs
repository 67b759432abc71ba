//! One instruction at a time: KVM's single steps, for a vCPU that follows another one ([`mynah_cpu::lockstep`]).
//!
//! The state goes to KVM and comes back for each of them, which takes some ten system calls. What KVM does not execute
//! the interpreter does.
use super::failed;
use super::vcpu::{Left, Vcpu};
use crate::AccelError;
use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_guest_debug};
use mynah_cpu::Cpu;
use mynah_cpu::state::Activity;
use std::sync::atomic::{Ordering, fence};

/// Entries for one instruction, of which each element of a port access takes one.
const MOST: u32 = 100_000;

impl Vcpu {
    /// Switches KVM's single steps.
    fn set_single_step(&self, on: bool) -> Result<(), AccelError> {
        let control = if on { KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP } else { 0 };
        let debug = kvm_guest_debug { control, ..Default::default() };
        self.fd.set_guest_debug(&debug).map_err(failed("execute single instructions"))
    }

    /// Executes one instruction, or one iteration of a repeated one. It does not look at the time-stamp counter, which
    /// stays as it is.
    pub(super) fn step_one(&mut self, cpu: &mut Cpu) -> Result<(), AccelError> {
        let tsc_hz = std::mem::take(&mut self.tsc_hz);
        let done = self.step_without_time(cpu);
        self.tsc_hz = tsc_hz;
        done
    }

    fn step_without_time(&mut self, cpu: &mut Cpu) -> Result<(), AccelError> {
        cpu.drop_code();
        self.load(cpu)?;
        self.set_single_step(true)?;
        let left = self.enter_once(cpu);
        self.set_single_step(false)?;
        let saved = self.save(cpu);
        let left = left?;
        saved?;
        match left {
            Left::Halt => cpu.halted(),
            Left::Shutdown => cpu.state.activity = Activity::Shutdown,
            Left::Emulate => {
                cpu.drop_code();
                cpu.follow();
                cpu.drop_code();
            }
            Left::Signals | Left::ShutOut | Left::Stepped => {}
        }
        Ok(())
    }

    fn enter_once(&mut self, cpu: &mut Cpu) -> Result<Left, AccelError> {
        for _ in 0..MOST {
            let cr8 = cpu.board.cr8();
            let run = self.fd.get_kvm_run();
            run.request_interrupt_window = 0;
            run.cr8 = cr8.into();
            self.kick.enter();
            fence(Ordering::SeqCst);
            // What completes an instruction executes no other.
            let completes = self.is_unfinished();
            self.kick.set(completes);
            let left = self.enter(cpu);
            self.kick.leave();
            match left? {
                Some(left) => return Ok(left),
                None if completes && !self.is_unfinished() => return Ok(Left::Stepped),
                None => {}
            }
        }
        Err(AccelError::Kvm { what: "execute a single instruction", reason: "it comes to no end".into() })
    }
}
