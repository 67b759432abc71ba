//! A back end that is a tap: a network interface of the host's, whose other end is the guest's card (`-netdev tap`,
//! `-netdev bridge`).
//!
//! ```text
//!   card -- Tap::send ----write--> /dev/net/tun --> the host's interface tap0 --> bridge, routes, ...
//!        <- Nic::receive --read--<       (one descriptor for each queue)
//! ```
//!
//! With `vnet_hdr` a frame has virtio-net's header in front: checksums and the cutting of long segments are left to
//! whoever is at the other side, as far as it takes that. The host is told what the card's driver takes as that
//! changes; what was on its way meanwhile is done here.
//!
//! With several queues the host spreads flows over them; all of a flow's frames go out by one, so that the host's
//! answers come in there.
//!
//! Locks: one for each queue's incoming frames, held while the card is given one. What goes out has none: a frame is
//! one system call.
mod header;
#[cfg(unix)]
mod helper;
#[cfg(target_os = "linux")]
mod host;
#[cfg(not(target_os = "linux"))]
#[path = "tap/elsewhere.rs"]
mod host;
mod scripts;

pub use scripts::Script;

use crate::reactor::{Handler, Interest, Reactor, Token};
use crate::{Backend, Frame, MAX_FRAME, Nic, Offload, Takes, offload};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::Ipv4Addr;
#[cfg(unix)]
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use thiserror::Error;

/// What would be a descriptor.
#[cfg(windows)]
type RawFd = i32;

/// Frames that are taken from a queue in one turn.
const TURN: usize = 64;
/// The most queues (Linux: MAX_TAP_QUEUES).
pub const MAX_QUEUES: u16 = 256;
/// QEMU's usual scripts.
const UP: &str = "/etc/qemu-ifup";
const DOWN: &str = "/etc/qemu-ifdown";

/// Where a tap comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It is made, or taken if it is there.
    Open {
        /// Its name; `%d` stands for the first number that is free.
        ifname: String,
        /// How many queues, from 1 to [`MAX_QUEUES`].
        queues: u16,
        /// What sets it up, and what is run at the end.
        script: Script,
        /// The script at the end.
        downscript: Script,
        /// A bridge of the host's that it is put on.
        bridge: Option<String>,
        /// An address of the host's on it, and its network's prefix.
        address: Option<(Ipv4Addr, u8)>,
    },
    /// Descriptors that the process has been given, one for each queue.
    Descriptors(Vec<RawFd>),
    /// It is made by QEMU's helper, which may have rights that this process has not.
    Helper {
        /// The program; QEMU's if none.
        program: Option<String>,
        /// The bridge.
        bridge: String,
    },
}

/// A tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapConfig {
    /// Where it comes from.
    pub origin: Origin,
    /// Whether frames have a header that leaves checksums and segmentation to their receiver; if the host can, if
    /// nothing is said.
    pub vnet_hdr: Option<bool>,
}

impl Default for TapConfig {
    fn default() -> Self {
        let origin = Origin::Open {
            ifname: "tap%d".into(),
            queues: 1,
            script: Script::Usual,
            downscript: Script::Usual,
            bridge: None,
            address: None,
        };
        Self { origin, vnet_hdr: None }
    }
}

impl TapConfig {
    /// Has a helper open the tap, if one is asked for. To be called before the process gives up getting rights by
    /// what it executes. A bridge for which no helper was named is joined without one if the process may.
    ///
    /// # Errors
    /// There is no helper, or it does not give a tap.
    pub fn prepare(&mut self) -> Result<(), TapError> {
        let Origin::Helper { program, bridge } = &self.origin else { return Ok(()) };
        if !cfg!(target_os = "linux") {
            return Err(TapError::OtherHost);
        }
        self.origin = match program {
            None if host::may_administer() => Origin::Open {
                ifname: "tap%d".into(),
                queues: 1,
                script: Script::No,
                downscript: Script::No,
                bridge: Some(bridge.clone()),
                address: None,
            },
            program => Origin::Descriptors(vec![helped(program.as_deref(), bridge)?]),
        };
        Ok(())
    }
}

/// Why there is no tap.
#[derive(Debug, Error)]
pub enum TapError {
    /// The host is not Linux.
    #[error("taps and bridges are there on Linux hosts only; 'user' and 'stream' are there on this one")]
    OtherHost,
    /// There is no device to make one with.
    #[error(
        "/dev/net/tun is not there: 'modprobe tun' makes it; a container is given it with --device /dev/net/tun"
    )]
    NoDevice,
    /// It may not be opened.
    #[error("/dev/net/tun: permission denied: '{user}' needs the right to read and write it")]
    DeviceRefused {
        /// Who asks.
        user: String,
    },
    /// The host does not let this user have it.
    #[error(
        "ifname={name}: not permitted: make it first, with 'sudo ip tuntap add dev {} mode tap user {user}{}', \
         or run with CAP_NET_ADMIN",
        name.replace("%d", "0"), if *queues > 1 { " multi_queue" } else { "" }
    )]
    Refused {
        /// Its name.
        name: String,
        /// How many queues were asked for.
        queues: u16,
        /// Who asks.
        user: String,
    },
    /// Another has it.
    #[error("ifname={name}: {} has it: choose another name", holder.as_deref().unwrap_or("another program"))]
    Busy {
        /// Its name.
        name: String,
        /// Who has it, as far as the host tells.
        holder: Option<String>,
    },
    /// There is an interface of this name that is none of these.
    #[error(
        "ifname={name}: there is such an interface, and it is no tap {} (ip tuntap add ... mode tap{})",
        if *queues > 1 { "with several queues" } else { "with one queue" },
        if *queues > 1 { " multi_queue" } else { "" }
    )]
    OtherKind {
        /// Its name.
        name: String,
        /// How many queues were asked for.
        queues: u16,
    },
    /// It is no name of an interface.
    #[error("'{name}': an interface's name has 1 to 15 characters, no '/' and no blanks")]
    Name {
        /// What was given.
        name: String,
    },
    /// No headers.
    #[error("vnet_hdr=on: this tap has no headers")]
    NoHeader,
    /// A descriptor that is none of a tap's.
    #[error("fd={number}: {why}: a descriptor of a tap is to be inherited (open /dev/net/tun, TUNSETIFF)")]
    Descriptor {
        /// Its number.
        number: RawFd,
        /// What is wrong.
        why: std::io::Error,
    },
    /// It does not get on its bridge.
    #[error("br={bridge}: {name} cannot be put on it: {why} ('ip link add {bridge} type bridge' makes one)")]
    Bridge {
        /// The bridge.
        bridge: String,
        /// The tap.
        name: String,
        /// What is wrong.
        why: std::io::Error,
    },
    /// There is no helper.
    #[error(
        "br={bridge}: not permitted, and there is no qemu-bridge-helper: install it (Debian: qemu-system-common), \
         name it with helper=, or run with CAP_NET_ADMIN"
    )]
    NoHelper {
        /// The bridge.
        bridge: String,
    },
    /// The helper has failed.
    #[error("helper={program}, br={bridge}: {why}")]
    Helper {
        /// The helper.
        program: String,
        /// The bridge.
        bridge: String,
        /// What is wrong.
        why: String,
    },
    /// A script has failed.
    #[error("{option}={}: {why}", path.display())]
    Script {
        /// The option.
        option: &'static str,
        /// The script.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The host does not do it.
    #[error("{what}: {why}")]
    Host {
        /// What.
        what: String,
        /// Why.
        why: std::io::Error,
    },
}

#[cfg(unix)]
use helper::helped;

#[cfg(windows)]
fn helped(_: Option<&str>, _: &str) -> Result<RawFd, TapError> {
    Err(TapError::OtherHost)
}

struct Queue {
    file: File,
    incoming: Mutex<Incoming>,
    interest: Mutex<Box<dyn Interest>>,
}

struct Incoming {
    buffer: Vec<u8>,
    /// Frames that the card had no room for: those of one that was cut, at most.
    waiting: VecDeque<(Vec<u8>, Offload)>,
}

/// A tap.
pub struct Tap {
    name: String,
    queues: Vec<Queue>,
    vnet_hdr: bool,
    /// What the host leaves to us.
    offered: Mutex<Takes>,
    nic: OnceLock<Arc<dyn Nic>>,
    down: Option<PathBuf>,
    lost: AtomicU64,
}

impl Tap {
    /// Opens it, and sets it up.
    ///
    /// # Errors
    /// The host does not give it, or a script has failed.
    pub fn new(config: &TapConfig, reactor: &Arc<dyn Reactor>) -> Result<Arc<Self>, TapError> {
        let mut config = config.clone();
        config.prepare()?;
        let mut down = None;
        let opened = match &config.origin {
            Origin::Open { ifname, queues, script, downscript, bridge, address } => {
                let ifname = if ifname.is_empty() { "tap%d" } else { ifname };
                let opened = host::open(ifname, *queues, config.vnet_hdr)?;
                let name = &opened.name;
                if let Some(bridge) = bridge {
                    host::join_bridge(name, bridge)?;
                }
                if let Some((address, prefix)) = address {
                    host::set_address(name, *address, *prefix)?;
                }
                match script.program(UP) {
                    Some(script) => scripts::run("script", &script, name)?,
                    // Its owner may not always: one that was made for him is up already.
                    None if bridge.is_some() || address.is_some() => host::bring_up(name)?,
                    None => _ = host::bring_up(name),
                }
                down = downscript.program(DOWN);
                opened
            }
            Origin::Descriptors(descriptors) => host::adopt(descriptors, config.vnet_hdr)?,
            Origin::Helper { .. } => return Err(TapError::OtherHost),
        };
        let bad = |why| TapError::Host { what: opened.name.clone(), why };
        let mut queues = Vec::new();
        for (n, file) in opened.queues.into_iter().enumerate() {
            let watched = host::watched(&file).map_err(bad)?;
            let interest = reactor.register(&Arc::new(watched), Token(n as u64)).map_err(bad)?;
            let incoming = Incoming { buffer: vec![0; header::LEN + MAX_FRAME], waiting: VecDeque::new() };
            queues.push(Queue { file, incoming: Mutex::new(incoming), interest: Mutex::new(interest) });
        }
        Ok(Arc::new(Self {
            name: opened.name,
            queues,
            vnet_hdr: opened.vnet_hdr,
            offered: Mutex::default(),
            nic: OnceLock::new(),
            down,
            lost: AtomicU64::new(0),
        }))
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether frames have headers.
    pub fn has_headers(&self) -> bool {
        self.vnet_hdr
    }

    /// How many queues it has.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Frames of the guest's that the host has not taken.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Whether there is an interface of this name.
    pub fn exists(name: &str) -> bool {
        host::exists(name)
    }

    /// Tells the host what the card takes by now.
    fn offer(&self, takes: Takes) {
        let mut offered = self.offered.lock();
        if self.vnet_hdr && *offered != takes {
            if let Some(queue) = self.queues.first()
                && let Err(why) = host::offer(&queue.file, takes)
            {
                tracing::warn!("{}: what the card takes cannot be told to the host: {why}", self.name);
            }
            *offered = takes;
        }
    }

    /// Reads, and gives the card what comes, until there is no more or it has no room.
    fn input(&self, queue: &Queue) {
        let Some(nic) = self.nic.get() else { return };
        let mut incoming = queue.incoming.lock();
        let Incoming { buffer, waiting } = &mut *incoming;
        let takes = nic.takes();
        self.offer(takes);
        for _ in 0..TURN {
            while let Some((bytes, offload)) = waiting.front() {
                if !nic.receive(&Frame { offload: *offload, parts: &[IoSlice::new(bytes)] }) {
                    // The card wakes us.
                    return;
                }
                waiting.pop_front();
            }
            let len = match (&queue.file).read(buffer) {
                Ok(len) if len > 0 => len,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                // EIO: it is down.
                Err(e) if e.raw_os_error() == Some(libc::EIO) => break,
                Ok(_) => break,
                Err(why) => {
                    tracing::warn!("{}: it is gone: {why}", self.name);
                    return;
                }
            };
            let (offload, bytes) = match buffer[..len].split_first_chunk::<{ header::LEN }>() {
                Some((head, bytes)) if self.vnet_hdr => (header::decode(head), bytes),
                None if self.vnet_hdr => continue,
                _ => (Some(Offload::default()), &buffer[..len]),
            };
            let Some(offload) = offload else { continue };
            let frame = Frame { offload, parts: &[IoSlice::new(bytes)] };
            offload::deliver(&frame, takes, &mut |frame| {
                if !waiting.is_empty() || !nic.receive(frame) {
                    waiting.push_back((frame.to_vec(), frame.offload));
                }
            });
        }
        let _ = queue.interest.lock().want(true, false);
    }

    /// Which queue a frame goes out by: the same for all of a flow. Addresses and ports are in its first bytes.
    fn queue_of(&self, frame: &Frame<'_>) -> Option<&Queue> {
        if self.queues.len() < 2 {
            return self.queues.first();
        }
        // From the network layer's addresses to the transport's ports: IPv4 without options, or IPv6.
        let kind = frame.slices(12, 2).concat();
        let (at, len) = match kind[..] {
            [0x08, 0x00] => (26, 12),
            [0x86, 0xdd] => (22, 36),
            _ => (0, 12),
        };
        let mix = |sum: u32, byte: &u8| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        let hash = frame.slices(at, len).iter().flat_map(|part| part.iter()).fold(0x811c_9dc5, mix);
        self.queues.get(hash as usize % self.queues.len())
    }
}

impl Backend for Tap {
    fn connect(&self, nic: Arc<dyn Nic>) {
        if self.nic.set(nic).is_ok() {
            for queue in &self.queues {
                let _ = queue.interest.lock().want(true, false);
            }
        }
    }

    fn send(&self, frame: &Frame<'_>) {
        let Some(queue) = self.queue_of(frame) else { return };
        if frame.len() > MAX_FRAME {
            return;
        }
        let sent = if self.vnet_hdr {
            let head = header::encode(frame);
            let mut parts = vec![IoSlice::new(&head)];
            parts.extend_from_slice(frame.parts);
            (&queue.file).write_vectored(&parts)
        } else {
            (&queue.file).write_vectored(frame.parts)
        };
        // A frame that the host has no room for, or does not take, is lost, as on a wire.
        if sent.is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn wake(&self) {
        self.queues.iter().for_each(|queue| self.input(queue));
    }

    fn takes(&self) -> Takes {
        Takes { partial: self.vnet_hdr, tso4: self.vnet_hdr, tso6: self.vnet_hdr, ..Takes::default() }
    }
}

impl Handler for Tap {
    fn ready(&self, token: Token, read: bool, _: bool) {
        if let Some(queue) = self.queues.get(token.0 as usize).filter(|_| read) {
            self.input(queue);
        }
    }

    fn due(&self) {}
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Some(script) = &self.down
            && let Err(why) = scripts::run("downscript", script, &self.name)
        {
            tracing::warn!("{why}");
        }
    }
}
