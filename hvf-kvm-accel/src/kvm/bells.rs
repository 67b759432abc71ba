//! Doorbells: writes that only wake a device, which KVM turns into events (ioeventfd), so that a thread of ours answers
//! them while the guest goes on.
//!
//! Whoever needs all that a vCPU has asked for to have begun (a vCPU whose state is taken out of KVM, for a pause or a
//! snapshot) answers what has rung by itself, by [`Bells::flush`].
use super::failed;
use crate::AccelError;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use mynah_mmu::{Doorbell, Gpa, PhysMemory, Target};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Weak};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// No more than so many in a machine: each is a descriptor of the process.
const MOST: usize = 256;
/// What the thread is ended by, among its events.
const END: u64 = u64::MAX;

/// An address, and what has to be written there if not everything counts.
type Bell = (Gpa, Option<u32>);

/// The doorbells of a virtual machine.
pub(super) struct Bells {
    fd: Arc<VmFd>,
    memory: Weak<PhysMemory>,
    epoll: Epoll,
    end: EventFd,
    state: Mutex<State>,
    /// Rings are answered one after the other.
    turn: Mutex<()>,
}

#[derive(Default)]
struct State {
    bells: BTreeMap<Bell, (Arc<EventFd>, u64)>,
    by_number: BTreeMap<u64, (Bell, Arc<EventFd>)>,
    next: u64,
    /// Some could not be had, which was said.
    refused: bool,
}

impl Bells {
    /// The doorbells of this memory's devices, none yet, and a thread that answers them.
    pub fn new(fd: Arc<VmFd>, memory: &Arc<PhysMemory>) -> Result<Arc<Self>, AccelError> {
        let no_event = |e: std::io::Error| failed("have events for doorbells")(kvm_ioctls::Error::from(e));
        let epoll = Epoll::new().map_err(no_event)?;
        let end = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(no_event)?;
        epoll
            .ctl(ControlOperation::Add, end.as_raw_fd(), EpollEvent::new(EventSet::IN, END))
            .map_err(no_event)?;
        let bells = Arc::new(Self {
            fd,
            memory: Arc::downgrade(memory),
            epoll,
            end,
            state: Mutex::default(),
            turn: Mutex::new(()),
        });
        // The thread's own handle keeps it until the end rings, not the virtual machine.
        let own = bells.clone();
        std::thread::Builder::new()
            .name("kvm-doorbells".into())
            .spawn(move || own.answer())
            .map_err(no_event)?;
        Ok(bells)
    }

    /// Has KVM ring where the map's devices have doorbells now.
    pub fn update(&self) {
        let Some(memory) = self.memory.upgrade() else { return };
        let mut state = self.state.lock();
        let mut wanted: BTreeSet<Bell> = BTreeSet::new();
        for (gpa, len, target) in memory.regions() {
            let Target::Mmio(device, first) = target else { continue };
            for Doorbell { offset, value } in device.doorbells() {
                if let Some(at) = offset.checked_sub(first).filter(|at| *at < len) {
                    wanted.insert((gpa + at, value));
                }
            }
        }
        let gone: Vec<Bell> = state.bells.keys().filter(|bell| !wanted.contains(bell)).copied().collect();
        for bell in gone {
            let Some((event, number)) = state.bells.remove(&bell) else { continue };
            state.by_number.remove(&number);
            let at = IoEventAddress::Mmio(bell.0);
            let _ = match bell.1 {
                None => self.fd.unregister_ioevent(&event, &at, NoDatamatch),
                Some(value) => self.fd.unregister_ioevent(&event, &at, value),
            };
            let _ = self.epoll.ctl(ControlOperation::Delete, event.as_raw_fd(), EpollEvent::default());
        }
        for bell in wanted {
            if state.bells.contains_key(&bell) {
                continue;
            }
            let most = state.bells.len() >= MOST;
            if let Err(e) = if most { Ok(()) } else { self.add(&mut state, bell) }
                && !std::mem::replace(&mut state.refused, true)
            {
                tracing::debug!("KVM has no doorbell at {:#x}: {e}; writes there are exits", bell.0);
            }
        }
    }

    fn add(&self, state: &mut State, bell: Bell) -> Result<(), kvm_ioctls::Error> {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let at = IoEventAddress::Mmio(bell.0);
        match bell.1 {
            None => self.fd.register_ioevent(&event, &at, NoDatamatch)?,
            Some(value) => self.fd.register_ioevent(&event, &at, value)?,
        }
        let number = state.next;
        state.next += 1;
        state.by_number.insert(number, (bell, event.clone()));
        state.bells.insert(bell, (event.clone(), number));
        self.epoll.ctl(ControlOperation::Add, event.as_raw_fd(), EpollEvent::new(EventSet::IN, number))?;
        Ok(())
    }

    /// Answers what has rung: all of it is answered when this returns, by whomever.
    pub fn flush(&self) {
        let _turn = self.turn.lock();
        let mut events = [EpollEvent::default(); 16];
        // A guest may ring on and on: once for each that there can be.
        for _ in 0..MOST / events.len() {
            let rung = self.epoll.wait(0, &mut events).unwrap_or(0);
            events[..rung].iter().for_each(|event| self.ring(event.data()));
            if rung < events.len() {
                return;
            }
        }
    }

    /// Makes the write that this one stands for, if it has rung.
    fn ring(&self, number: u64) {
        let Some((bell, event)) = self.state.lock().by_number.get(&number).cloned() else { return };
        if event.read().is_ok()
            && let Some(memory) = self.memory.upgrade()
        {
            memory.phys_write(bell.0, 4, bell.1.unwrap_or(0).into());
        }
    }

    fn answer(&self) {
        let mut events = [EpollEvent::default(); 1];
        loop {
            match self.epoll.wait(-1, &mut events) {
                Ok(0) => {}
                Ok(_) if events[0].data() == END => return,
                Ok(_) => self.flush(),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    tracing::error!("KVM's doorbells: {e}");
                    return;
                }
            }
        }
    }

    /// Ends the thread.
    pub fn end(&self) {
        let _ = self.end.write(1);
    }
}
