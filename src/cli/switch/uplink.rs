//! Ports that lead to the host or outside: back ends of `mynah-net`, to which a port is what a card is elsewhere.
use super::super::{Error, tell};
use super::fabric::{Fabric, Outlet, Wait, Waits};
use super::plan::TapPort;
use crate::machine::nets::LoopReactor;
use mynah_devices::event_loop::TimedSource;
use mynah_net::reactor::Reactor;
use mynah_net::switch::{Next, PortConfig};
use mynah_net::{Backend, Frame, Nic, Tap, User, user};
use std::io::IoSlice;
use std::sync::{Arc, OnceLock, Weak};

/// A port with a back end.
struct Uplink {
    fabric: Arc<Fabric>,
    port: usize,
    backend: OnceLock<Arc<dyn Backend>>,
    waits: Waits,
}

/// Adds a tap.
pub fn tap(fabric: &Arc<Fabric>, TapPort { config, port }: TapPort) -> anyhow::Result<()> {
    let reactor = LoopReactor::new(&fabric.events);
    let theirs: Arc<dyn Reactor> = reactor.clone();
    let tap = Tap::new(&config, &theirs).map_err(|e| Error::new(format!("--tap {}: {e}", port.name)))?;
    reactor.serve(&tap);
    join(fabric, tap, port)
}

/// Adds the NAT.
pub fn nat(fabric: &Arc<Fabric>, config: user::Config, port: PortConfig) -> anyhow::Result<()> {
    let reactor = LoopReactor::new(&fabric.events);
    let wanted = config.host_forwards.clone();
    let user = User::new(config, reactor.clone()).map_err(|e| Error::new(format!("--user: {e}")))?;
    reactor.serve(&user);
    for (wanted, open) in wanted.iter().zip(user.forwards()) {
        if wanted.host.port() == 0 {
            tell(&format!("hostfwd: {} leads to the guest's port {}", open.host, open.guest.port()));
        }
    }
    join(fabric, user, port)
}

fn join(fabric: &Arc<Fabric>, backend: Arc<dyn Backend>, config: PortConfig) -> anyhow::Result<()> {
    let port = fabric.add(config).map_err(Error::new)?;
    let uplink = Arc::new_cyclic(|own: &Weak<Uplink>| Uplink {
        fabric: fabric.clone(),
        port,
        backend: OnceLock::new(),
        waits: Waits::new(fabric, own.clone()),
    });
    let _ = uplink.backend.set(backend.clone());
    fabric.connect(port, Some(uplink.clone()));
    backend.connect(uplink);
    Ok(())
}

impl Nic for Uplink {
    fn can_receive(&self) -> bool {
        true
    }

    /// The back end may hold a lock of its own: nothing is sent from here.
    fn receive(&self, frame: &Frame<'_>) -> bool {
        let bytes = frame.to_vec();
        let now = self.fabric.now();
        match self.fabric.with(|s| s.input(self.port, &bytes, now)) {
            Ok(()) => {
                self.fabric.flush_later();
                true
            }
            Err(at) => {
                self.waits.set(&self.fabric, Wait::Input, Some(at));
                false
            }
        }
    }
}

impl Outlet for Uplink {
    fn drain(&self) {
        let Some(backend) = self.backend.get() else { return };
        loop {
            let now = self.fabric.now();
            match self.fabric.with(|s| s.next(self.port, now)) {
                Next::Frame(frame) => backend.send(&Frame::new(&[IoSlice::new(&frame)])),
                Next::Wait(at) => return self.waits.set(&self.fabric, Wait::Output, Some(at)),
                Next::Nothing => return,
            }
        }
    }
}

impl TimedSource for Uplink {
    fn due(&self) {
        let [input, output] = self.waits.take_due(&self.fabric);
        if output {
            self.drain();
        }
        if let Some(backend) = self.backend.get().filter(|_| input) {
            backend.wake();
        }
        self.fabric.flush();
    }
}
