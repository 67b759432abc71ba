//! Power and run state: what guest, devices, monitor and signals ask for, and how the run ends.
use super::vcpu::VcpuHandle;
use crate::config::{PanicAction, RebootAction, ShutdownAction, exit_code};
use mynah_devices::events::{MachineEvents, ResetCause};
use parking_lot::{Condvar, Mutex};
use std::sync::OnceLock;

/// What vCPUs are to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Go on.
    Run,
    /// Start afresh.
    Reset,
    /// Wait.
    Pause,
    /// End.
    Stop,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// The process's exit code.
    pub code: i32,
    /// What the user should read, if it did not end by the guest's own will.
    pub message: Option<String>,
}

struct State {
    reset: bool,
    /// Resets that were carried out.
    resets: u64,
    /// vCPUs that stand still until the reset is carried out.
    parked: usize,
    paused: bool,
    end: Option<End>,
    triple_fault: Option<String>,
}

/// The machine's power and run state.
pub struct Power {
    on_reboot: RebootAction,
    on_shutdown: ShutdownAction,
    on_panic: PanicAction,
    state: Mutex<State>,
    changed: Condvar,
    vcpus: OnceLock<Vec<VcpuHandle>>,
}

impl Power {
    /// A machine that is on, with the user's wishes for what ends it.
    pub fn new(
        on_reboot: RebootAction,
        on_shutdown: ShutdownAction,
        on_panic: PanicAction,
        paused: bool,
    ) -> Self {
        Self {
            on_reboot,
            on_shutdown,
            on_panic,
            state: Mutex::new(State {
                reset: false,
                resets: 0,
                parked: 0,
                paused,
                end: None,
                triple_fault: None,
            }),
            changed: Condvar::new(),
            vcpus: OnceLock::new(),
        }
    }

    /// Names the vCPUs to be told of changes. Once.
    pub fn connect(&self, vcpus: Vec<VcpuHandle>) {
        let _ = self.vcpus.set(vcpus);
    }

    fn change(&self, f: impl FnOnce(&mut State)) {
        f(&mut self.state.lock());
        self.changed.notify_all();
        for v in self.vcpus.get().into_iter().flatten() {
            v.kick();
        }
    }

    /// What vCPUs are to do.
    pub fn request(&self) -> Request {
        let s = self.state.lock();
        if s.end.is_some() {
            Request::Stop
        } else if s.reset {
            Request::Reset
        } else if s.paused {
            Request::Pause
        } else {
            Request::Run
        }
    }

    /// For the boot processor: waits until all others stand still for the reset that was asked for. False if there is none any more.
    pub fn wait_parked(&self) -> bool {
        let others = self.vcpus.get().map_or(0, |v| v.len().saturating_sub(1));
        let mut s = self.state.lock();
        while s.parked < others && s.end.is_none() {
            self.changed.wait(&mut s);
        }
        s.end.is_none() && s.reset
    }

    /// For the other processors: stands still until the reset is carried out. False if the machine has ended instead.
    pub fn park_for_reset(&self) -> bool {
        let mut s = self.state.lock();
        if !s.reset {
            return false;
        }
        let resets = s.resets;
        s.parked += 1;
        self.changed.notify_all();
        while s.resets == resets && s.end.is_none() {
            self.changed.wait(&mut s);
        }
        s.end.is_none()
    }

    /// The reset asked for has been carried out by the boot processor: all go on, as after power-on.
    pub fn reset_done(&self) {
        let mut s = self.state.lock();
        for v in self.vcpus.get().into_iter().flatten() {
            v.forget_signals();
        }
        s.reset = false;
        s.resets += 1;
        s.parked = 0;
        drop(s);
        self.changed.notify_all();
    }

    /// Ends the run.
    pub fn end(&self, code: i32, message: Option<String>) {
        self.change(|s| {
            s.end.get_or_insert(End { code, message });
        });
    }

    /// Ends the run because of an error on the host.
    pub fn fail(&self, message: String) {
        self.end(exit_code::ERROR, Some(message));
    }

    /// What to show of the CPU if a triple fault ends the run.
    pub fn describe(&self, text: String) {
        self.state.lock().triple_fault = Some(text);
    }

    /// Stops or continues the vCPUs.
    pub fn set_paused(&self, paused: bool) {
        self.change(|s| s.paused = paused);
    }

    /// Whether the machine is paused.
    pub fn is_paused(&self) -> bool {
        self.state.lock().paused
    }

    /// Waits until the machine runs, resets or ends.
    pub fn wait_while_paused(&self) {
        let mut s = self.state.lock();
        while s.paused && s.end.is_none() && !s.reset {
            self.changed.wait(&mut s);
        }
    }

    /// Waits for the end.
    pub fn wait_end(&self) -> End {
        let mut s = self.state.lock();
        loop {
            if let Some(end) = &s.end {
                return end.clone();
            }
            self.changed.wait(&mut s);
        }
    }
}

impl MachineEvents for Power {
    fn reset(&self, cause: ResetCause) {
        if self.on_reboot == RebootAction::Shutdown {
            if cause == ResetCause::TripleFault {
                let text = self.state.lock().triple_fault.take().unwrap_or_default();
                let message = format!("the guest's CPU shut down (triple fault)\n{text}");
                self.end(exit_code::TRIPLE_FAULT, Some(message));
            } else {
                self.end(0, None);
            }
            return;
        }
        tracing::info!(?cause, "reset");
        self.change(|s| s.reset = true);
    }
    fn power_off(&self) {
        match self.on_shutdown {
            ShutdownAction::PowerOff => self.end(0, None),
            ShutdownAction::Pause => self.set_paused(true),
        }
    }
    fn exit(&self, code: i32) {
        self.end(code, None);
    }
    fn a20(&self, open: bool) {
        for v in self.vcpus.get().into_iter().flatten() {
            v.memory(|m| {
                m.a20 = Some(open);
                m.flush = true;
            });
        }
    }
    fn guest_panicked(&self) {
        match self.on_panic {
            PanicAction::None => {}
            PanicAction::Pause => self.set_paused(true),
            PanicAction::Shutdown => self.end(0, Some("the guest panicked".into())),
            PanicAction::ExitFailure => self.end(exit_code::ERROR, Some("the guest panicked".into())),
        }
    }
}
