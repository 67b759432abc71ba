//! Power and run state: what guest, devices, monitor and signals ask for, and how the run ends.
use super::vcpu::VcpuHandle;
use crate::config::{PanicAction, RebootAction, ShutdownAction, WatchdogAction, exit_code};
use mynah_cpu::CpuV2;
use mynah_devices::chipset::PowerButton;
use mynah_devices::clock::HostClock;
use mynah_devices::events::{MachineEvents, ResetCause, SleepState, WakeCause};
use mynah_devices::interrupts::lapic::LocalApics;
use mynah_mmu::Paging;
use parking_lot::{Condvar, Mutex};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

/// What vCPUs are to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Go on.
    Run,
    /// Start afresh.
    Reset,
    /// Wait.
    Pause,
    /// Say what it is doing: [`Power::report`].
    Report,
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
    /// When the machine was told to end.
    pub told: Instant,
}

/// What a vCPU says of itself.
#[derive(Clone, Debug)]
pub struct Report {
    /// The host's number of its thread.
    pub thread: u64,
    /// Registers, as text.
    pub registers: String,
    /// What is saved of it.
    pub state: Box<CpuV2>,
    /// The registers that paging depends on.
    pub paging: Paging,
}

/// Why the machine is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// It has not been started yet (`-S`).
    Prelaunch,
    /// The user wants it so.
    User,
    /// The guest has switched it off (`-no-shutdown`).
    Shutdown,
    /// The guest has panicked (`-action panic=pause`).
    Panicked,
    /// A drive's request has failed (`werror=stop`): it is tried again when the machine goes on.
    IoError,
    /// Its state has been saved by `migrate`: it goes on from there.
    PostMigrate,
    /// A watchdog has expired (`-action watchdog=pause`).
    Watchdog,
}

struct State {
    reset: bool,
    /// The machine sleeps (S3): vCPUs stand still.
    asleep: bool,
    /// The reset is one by which it wakes, and why it does.
    waking: Option<WakeCause>,
    /// Resets that were carried out.
    resets: u64,
    /// vCPUs that stand still until the reset is carried out.
    parked: usize,
    paused: Option<Pause>,
    /// Somebody has stopped it since it last went on: it does not start by itself.
    held: bool,
    /// It was running when it was saved, and starts by itself.
    starts: bool,
    /// vCPUs that stand still because the machine is paused.
    standing: usize,
    /// vCPUs whose thread has come to its end.
    gone: usize,
    end: Option<End>,
    triple_fault: Option<String>,
    /// What each vCPU has said of itself, while somebody wants to know.
    reports: Option<Vec<Option<Report>>>,
}

impl State {
    /// Whether the vCPU is to say what it is doing.
    fn is_asked(&self, seat: usize) -> bool {
        self.reports.as_ref().and_then(|all| all.get(seat)).is_some_and(Option::is_none)
    }
}

/// The machine's power and run state.
pub struct Power {
    on_reboot: RebootAction,
    on_shutdown: ShutdownAction,
    on_panic: PanicAction,
    on_watchdog: Mutex<WatchdogAction>,
    state: Mutex<State>,
    changed: Condvar,
    vcpus: OnceLock<Vec<VcpuHandle>>,
    clock: OnceLock<Arc<HostClock>>,
    apics: OnceLock<Weak<LocalApics>>,
    /// Weak, as the chip has the machine.
    button: OnceLock<Weak<dyn PowerButton>>,
    /// Held by the one who wants to know what vCPUs are doing. Before `state`.
    asking: Mutex<()>,
}

/// How long a vCPU may take to say what it is doing.
const ANSWER: Duration = Duration::from_secs(1);

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
            on_watchdog: Mutex::new(WatchdogAction::Reset),
            state: Mutex::new(State {
                reset: false,
                asleep: false,
                waking: None,
                resets: 0,
                parked: 0,
                paused: paused.then_some(Pause::Prelaunch),
                held: false,
                starts: false,
                standing: 0,
                gone: 0,
                end: None,
                triple_fault: None,
                reports: None,
            }),
            changed: Condvar::new(),
            vcpus: OnceLock::new(),
            clock: OnceLock::new(),
            apics: OnceLock::new(),
            button: OnceLock::new(),
            asking: Mutex::new(()),
        }
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> usize {
        self.vcpus.get().map_or(0, Vec::len)
    }

    /// What follows when a watchdog expires, from now on.
    pub fn set_on_watchdog(&self, action: WatchdogAction) {
        *self.on_watchdog.lock() = action;
    }

    /// Has a vCPU come out of its run loop for a moment.
    pub fn kick(&self, seat: usize) {
        if let Some(v) = self.vcpus.get().and_then(|all| all.get(seat)) {
            v.kick();
        }
    }

    /// An NMI for every vCPU.
    pub fn nmi(&self) {
        for v in self.vcpus.get().into_iter().flatten() {
            v.events.nmi();
        }
    }

    /// Names the clock that stands still while the machine does. Once.
    pub fn connect_clock(&self, clock: Arc<HostClock>) {
        let s = self.state.lock();
        if s.paused.is_some() {
            clock.pause();
        }
        let _ = self.clock.set(clock);
    }

    /// Names the local APICs, which come back from whom they are lent to when all vCPUs stand still. Once.
    pub fn connect_apics(&self, apics: &Arc<LocalApics>) {
        let _ = self.apics.set(Arc::downgrade(apics));
    }

    /// Names the chip that the power button is wired to. Once.
    pub fn connect_button(&self, chip: &Arc<dyn PowerButton>) {
        let _ = self.button.set(Arc::downgrade(chip));
    }

    /// Presses the power button: what that means is the guest's business.
    pub fn press_button(&self) {
        if let Some(chip) = self.button.get().and_then(Weak::upgrade) {
            chip.press();
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

    /// What the vCPU in `seat` is to do.
    pub fn request(&self, seat: usize) -> Request {
        let s = self.state.lock();
        if s.end.is_some() {
            Request::Stop
        } else if s.is_asked(seat) {
            Request::Report
        } else if s.reset {
            Request::Reset
        } else if s.paused.is_some() || s.asleep {
            Request::Pause
        } else {
            Request::Run
        }
    }

    /// For the boot processor: waits until all others stand still for the reset that was asked for. False if there is
    /// none any more.
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

    /// Why the machine wakes, if that is what the reset asked for is.
    pub fn waking(&self) -> Option<WakeCause> {
        self.state.lock().waking
    }

    /// The reset asked for has been carried out by the boot processor, or the waking that it was: all go on, as after
    /// power-on.
    pub fn reset_done(&self, was: Option<WakeCause>) {
        let mut s = self.state.lock();
        for v in self.vcpus.get().into_iter().flatten() {
            v.forget_signals();
        }
        // A reset that was asked for while the machine woke is still to come.
        s.reset = s.waking.take() != was;
        s.resets += 1;
        s.parked = 0;
        drop(s);
        self.changed.notify_all();
    }

    /// Ends the run.
    pub fn end(&self, code: i32, message: Option<String>) {
        self.change(|s| {
            s.end.get_or_insert(End { code, message, told: Instant::now() });
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

    /// Stops vCPUs and clock. The reason of an earlier stop stays.
    pub fn pause(&self, why: Pause) {
        self.change(|s| {
            s.paused.get_or_insert(why);
            if let Some(clock) = self.clock.get() {
                clock.pause();
            }
        });
    }

    /// The user wants the machine to stand still, whatever it does now: until [`Power::go_on`].
    pub fn hold(&self) {
        self.change(|s| s.held = true);
        self.pause(Pause::User);
    }

    /// Has vCPUs and clock go on.
    pub fn go_on(&self) {
        self.change(|s| self.let_go(s));
    }

    /// The restored machine will start by itself: [`Power::start`] follows.
    pub fn starts_by_itself(&self) {
        self.state.lock().starts = true;
    }

    /// Whether the machine runs, or is a restored one that is about to.
    pub fn is_to_run(&self) -> bool {
        let s = self.state.lock();
        s.paused.is_none() || s.paused == Some(Pause::Prelaunch) && s.starts && !s.held
    }

    /// A restored machine starts, unless somebody has stopped it, or had it go on, meanwhile.
    pub fn start(&self) {
        self.change(|s| {
            if s.paused == Some(Pause::Prelaunch) && !s.held {
                self.let_go(s);
            }
        });
    }

    fn let_go(&self, s: &mut State) {
        if let Some(clock) = self.clock.get() {
            clock.resume();
        }
        (s.paused, s.held) = (None, false);
    }

    /// Whether, and why, the machine is paused.
    pub fn paused(&self) -> Option<Pause> {
        self.state.lock().paused
    }

    /// Whether the machine sleeps.
    pub fn asleep(&self) -> bool {
        self.state.lock().asleep
    }

    /// Waits until all vCPUs of a paused machine stand still, with no reset to be carried out; whether they do.
    pub fn wait_standing(&self, patience: Duration) -> bool {
        let all = self.vcpus();
        let give_up = Instant::now() + patience;
        let mut s = self.state.lock();
        while s.end.is_none() && s.paused.is_some() {
            if s.standing == all && !s.reset {
                drop(s);
                // They go on where they are taken up next, and guest time stands still for their timers too.
                if let Some(apics) = self.apics.get().and_then(Weak::upgrade) {
                    apics.take_back();
                }
                return true;
            }
            if self.changed.wait_until(&mut s, give_up).timed_out() {
                break;
            }
        }
        false
    }

    /// The machine, which is paused, has been saved.
    pub fn migrated(&self) {
        self.state.lock().paused = Some(Pause::PostMigrate);
    }

    /// The machine sleeps, as it did when it was saved: before it is started.
    pub fn go_to_sleep(&self) {
        self.state.lock().asleep = true;
    }

    /// Has what is shown of local APICs be as it is, of those that somebody keeps while vCPUs run.
    pub fn look_at_apics(&self) {
        let apics = self.apics.get().and_then(Weak::upgrade);
        if apics.is_some_and(|apics| apics.are_lent()) {
            self.reports();
        }
    }

    /// Asks all vCPUs what they are doing. None for one that has not said so within a second.
    pub fn reports(&self) -> Vec<Option<Report>> {
        let _one = self.asking.lock();
        let all = self.vcpus();
        self.change(|s| s.reports = Some(vec![None; all]));
        let give_up = Instant::now() + ANSWER;
        let mut s = self.state.lock();
        while s.end.is_none() && (0..all).any(|seat| s.is_asked(seat)) {
            if self.changed.wait_until(&mut s, give_up).timed_out() {
                break;
            }
        }
        s.reports.take().unwrap_or_default()
    }

    /// What the vCPU in `seat` says, having been asked: on its thread.
    pub fn report(&self, seat: usize, report: Report) {
        if let Some(apics) = self.apics.get().and_then(Weak::upgrade) {
            apics.look(seat);
        }
        let mut s = self.state.lock();
        if let Some(place) = s.reports.as_mut().and_then(|all| all.get_mut(seat)) {
            *place = Some(report);
        }
        drop(s);
        self.changed.notify_all();
    }

    /// For the vCPU in `seat`: waits until the machine runs, wakes, resets, ends or asks.
    pub fn wait_while_paused(&self, seat: usize) {
        let mut s = self.state.lock();
        s.standing += 1;
        self.changed.notify_all();
        while (s.paused.is_some() || s.asleep) && s.end.is_none() && !s.reset && !s.is_asked(seat) {
            self.changed.wait(&mut s);
        }
        s.standing -= 1;
    }

    /// The thread of a vCPU has come to its end.
    pub fn vcpu_gone(&self) {
        self.state.lock().gone += 1;
        self.changed.notify_all();
    }

    /// Waits until all `vcpus` threads have come to their end, or the time has come; whether they have.
    pub fn wait_gone(&self, vcpus: usize, until: Instant) -> bool {
        let mut s = self.state.lock();
        while s.gone < vcpus {
            if self.changed.wait_until(&mut s, until).timed_out() {
                return false;
            }
        }
        true
    }

    /// Whether the machine has been told to end.
    pub fn has_ended(&self) -> bool {
        self.state.lock().end.is_some()
    }

    /// Waits for the end, but no longer than this; whether it has come.
    pub fn wait_end_for(&self, patience: Duration) -> bool {
        let give_up = Instant::now() + patience;
        let mut s = self.state.lock();
        while s.end.is_none() {
            if self.changed.wait_until(&mut s, give_up).timed_out() {
                break;
            }
        }
        s.end.is_some()
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
        self.change(|s| {
            (s.reset, s.asleep, s.waking) = (true, false, None);
            // A guest that has ended may start afresh, when the user says so.
            if let Some(Pause::Shutdown | Pause::Panicked) = s.paused {
                s.paused = Some(Pause::User);
            }
        });
    }
    fn power_off(&self) {
        match self.on_shutdown {
            ShutdownAction::PowerOff => self.end(0, None),
            ShutdownAction::Pause => self.pause(Pause::Shutdown),
        }
    }
    fn exit(&self, code: i32) {
        self.end(code, None);
    }
    fn sleep(&self, state: SleepState) {
        match state {
            SleepState::S3 => self.change(|s| s.asleep = !s.reset),
            SleepState::S4 => self.power_off(),
        }
    }
    fn wake(&self, cause: WakeCause) {
        if !self.asleep() {
            return;
        }
        tracing::info!(?cause, "wake");
        self.change(|s| {
            if std::mem::take(&mut s.asleep) {
                (s.reset, s.waking) = (true, Some(cause));
            }
        });
    }
    fn a20(&self, open: bool) {
        for v in self.vcpus.get().into_iter().flatten() {
            v.memory(|m| {
                m.a20 = Some(open);
                m.flush = true;
            });
        }
    }
    fn watchdog(&self) {
        let action = *self.on_watchdog.lock();
        tracing::info!(?action, "a watchdog has expired");
        match action {
            WatchdogAction::Reset => self.reset(ResetCause::Watchdog),
            WatchdogAction::Shutdown => self.press_button(),
            WatchdogAction::PowerOff => self.end(0, Some("a watchdog has expired".into())),
            WatchdogAction::Pause => self.pause(Pause::Watchdog),
            WatchdogAction::Debug => tracing::warn!("a watchdog has expired"),
            WatchdogAction::None => {}
            WatchdogAction::InjectNmi => self.nmi(),
        }
    }
    fn guest_panicked(&self) {
        match self.on_panic {
            PanicAction::None => {}
            PanicAction::Pause => self.pause(Pause::Panicked),
            PanicAction::Shutdown => self.end(0, Some("the guest panicked".into())),
            PanicAction::ExitFailure => self.end(exit_code::ERROR, Some("the guest panicked".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mynah_devices::clock::Clock;

    fn power(stopped: bool) -> (Power, Arc<HostClock>) {
        let power = Power::new(RebootAction::Reset, ShutdownAction::Pause, PanicAction::None, stopped);
        let clock = Arc::new(HostClock::new().unwrap());
        power.connect_clock(clock.clone());
        (power, clock)
    }

    #[test]
    fn the_clock_stands_still_while_the_machine_does() {
        let (power, clock) = power(true);
        assert_eq!((power.paused(), power.request(0)), (Some(Pause::Prelaunch), Request::Pause));
        for _ in 0..3 {
            let at = clock.now();
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(clock.now(), at, "stopped");
            power.go_on();
            assert_eq!((power.paused(), power.request(0)), (None, Request::Run));
            while clock.now() == at {
                std::thread::yield_now();
            }
            power.pause(Pause::User);
        }
    }

    #[test]
    fn a_guest_that_has_switched_itself_off_wants_a_reset() {
        let (power, clock) = power(false);
        power.power_off();
        power.pause(Pause::User);
        assert_eq!((power.paused(), clock.is_paused()), (Some(Pause::Shutdown), true));
        power.reset(ResetCause::Host);
        assert_eq!(power.paused(), Some(Pause::User));
    }

    #[test]
    fn who_sleeps_wakes_by_a_reset_of_its_own_kind_and_loses_no_other() {
        let (power, clock) = power(false);
        power.wake(WakeCause::RtcAlarm);
        assert_eq!(power.request(0), Request::Run, "it is awake");
        power.sleep(SleepState::S3);
        assert_eq!((power.request(0), power.asleep(), clock.is_paused()), (Request::Pause, true, false));
        power.wake(WakeCause::PowerButton);
        power.wake(WakeCause::RtcAlarm);
        assert_eq!((power.request(0), power.waking()), (Request::Reset, Some(WakeCause::PowerButton)));
        power.reset_done(Some(WakeCause::PowerButton));
        assert_eq!((power.request(0), power.waking()), (Request::Run, None));
        // A reset in its sleep, and one while it wakes.
        power.sleep(SleepState::S3);
        power.reset(ResetCause::Host);
        assert_eq!((power.request(0), power.waking(), power.asleep()), (Request::Reset, None, false));
        power.reset_done(None);
        power.sleep(SleepState::S3);
        power.wake(WakeCause::RtcAlarm);
        power.reset(ResetCause::Host);
        power.reset_done(Some(WakeCause::RtcAlarm));
        assert_eq!((power.request(0), power.waking()), (Request::Reset, None));
        power.reset_done(None);
        assert_eq!(power.request(0), Request::Run);
    }

    #[test]
    fn of_several_ends_the_first_counts_and_nobody_waits_for_a_vcpu_for_ever() {
        let (power, _clock) = power(false);
        assert!(!power.has_ended());
        power.end(3, Some("first".into()));
        power.end(0, None);
        let end = power.wait_end();
        assert_eq!((end.code, end.message.as_deref()), (3, Some("first")));
        assert!(!power.wait_gone(1, Instant::now() + Duration::from_millis(5)));
        power.vcpu_gone();
        assert!(power.wait_gone(1, Instant::now() + Duration::from_secs(60)));
    }

    #[test]
    fn a_restored_machine_does_not_start_once_somebody_has_stopped_it() {
        let (power, clock) = power(true);
        power.start();
        assert_eq!((power.paused(), clock.is_paused()), (None, false));
        power.pause(Pause::User);
        power.start();
        assert_eq!((power.paused(), clock.is_paused()), (Some(Pause::User), true));
    }

    #[test]
    fn a_stop_before_a_restored_machine_s_own_start_holds() {
        let (power, clock) = power(true);
        power.hold();
        power.start();
        assert_eq!((power.paused(), clock.is_paused()), (Some(Pause::Prelaunch), true));
        power.go_on();
        assert_eq!((power.paused(), clock.is_paused()), (None, false));
        // What was stopped and has gone on is not stopped for ever.
        power.pause(Pause::User);
        power.go_on();
        assert_eq!(power.paused(), None);
    }

    #[test]
    fn a_restored_machine_that_is_saved_before_it_starts_was_running() {
        let (power, _clock) = power(true);
        assert!(!power.is_to_run(), "started with -S");
        power.starts_by_itself();
        assert!(power.is_to_run());
        power.migrated();
        power.start();
        assert_eq!(power.paused(), Some(Pause::PostMigrate));
        power.go_on();
        assert!(power.is_to_run());
        power.hold();
        assert!(!power.is_to_run());
    }

    #[test]
    fn a_watchdog_does_what_was_chosen() {
        let (power, clock) = power(false);
        power.watchdog();
        assert_eq!(power.request(0), Request::Reset);
        power.reset_done(None);
        for harmless in [WatchdogAction::None, WatchdogAction::Debug, WatchdogAction::InjectNmi] {
            power.set_on_watchdog(harmless);
            power.watchdog();
            assert_eq!((power.request(0), clock.is_paused()), (Request::Run, false));
        }
        power.set_on_watchdog(WatchdogAction::Pause);
        power.watchdog();
        assert_eq!((power.paused(), clock.is_paused()), (Some(Pause::Watchdog), true));
        power.set_on_watchdog(WatchdogAction::PowerOff);
        power.watchdog();
        assert_eq!(power.wait_end().code, 0);
    }
}
