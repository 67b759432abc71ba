//! `mynah switch`: a learning switch whose ports are Unix sockets, to which machines connect with `-netdev stream`, this
//! program's or QEMU's. A tap makes the host a station of it, or puts it on a bridge; a NAT leads outside.
//!
//! ```text
//!   machine --stream--> guest.rs ---+                       +--- uplink.rs --> Tap, User (mynah-net)
//!   machine --stream--> guest.rs ---+--> fabric.rs: Switch <+
//!                                          |
//!   mynah ip, --stats --> control.rs ------+
//! ```
//!
//! What decides is in `mynah_net::switch`, without sockets; here are those, all on one event loop.
mod control;
mod fabric;
mod guest;
mod plan;
mod uplink;

use super::{Error, fatal, no_new_privileges, print, tell};
use anyhow::Context;
use clap::{Args, ValueEnum};
use fabric::Fabric;
use mynah_devices::event_loop::EventLoop;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(super) use control::ask;

/// What may reach what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Guests reach each other only
    Private,
    /// Guests and this host reach each other, by a tap
    Internal,
    /// Guests are stations of an outer network, by a tap on a bridge
    External,
    /// Guests reach each other, and the outside by a NAT
    Nat,
}

/// The options of `mynah switch`.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct SwitchArgs {
    /// A port for a guest, or with guests=N for several at one path [repeatable]
    #[arg(long = "port", value_name = "PATH[,name=NAME][,guests=N][,PROPERTY=VALUE...]")]
    ports: Vec<String>,
    /// What may reach what [default: by what else is given]
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// A network interface of this host as a port [repeatable]
    #[arg(long = "tap", value_name = "IFNAME[,address=ADDRESS/PREFIX][,bridge=NAME][,PROPERTY=VALUE...]")]
    taps: Vec<String>,
    /// A NAT as a port, with the options of -netdev user
    #[arg(long, value_name = "[net=...][,hostfwd=...][,restrict=on][,PROPERTY=VALUE...]")]
    user: Option<String>,
    /// Answer 'stats' at this Unix socket, for --stats and mynah ip
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// Seconds of silence after which a station is forgotten
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    ageing: u64,
    /// The most stations that are known
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    stations: u32,
    /// Print the statistics of the switch whose --control this is, as JSON, and end
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["ports", "mode", "taps", "user", "control"])]
    stats: Option<PathBuf>,
}

const AFTER: &str = "\
A guest connects with -nic stream,addr.type=unix,addr.path=PATH

Properties of ports:
  vlan=N          its VLAN, without tags [default: 1, with trunk= none]
  trunk=A:B-C     VLANs with tags (802.1Q); 'all' for all others
  rate=10M        bits in a second, each way; burst=SIZE octets at once
  queue=SIZE      octets that wait for a guest that does not read [default: 1M]
  mac=ADDRESS     the only sources it may send from [repeatable]
  rule=RULE       what may pass [repeatable], such as 'deny tcp to 10.0.0.0/8 port 22'
  acl=FILE        rules in a file, a line each
  mirror=on|NAME  it only listens: to all that comes in, or to the port NAME
  stations=N      stations behind it [default: 64]

Rules: allow|deny [in|out] [any|arp|ip|ip6|tcp|udp|icmp|icmp6|proto N|ether N] [from END] [to END],
  END being any, ADDRESS[/PREFIX], port PORT[-PORT], or both; 'default deny'. The first that fits decides.
  in is from the guest, which is usual; out is to it.";

/// Runs the switch, until a signal ends the process; or asks one.
pub(super) fn run(args: &SwitchArgs) -> anyhow::Result<i32> {
    if let Some(path) = &args.stats {
        let stats = ask(path)?;
        print(&format!("{}\n", serde_json::to_string_pretty(&stats)?));
        return Ok(0);
    }
    let plan = plan::Plan::of(args)?;
    no_new_privileges();
    fatal::install();
    let events = Arc::new(EventLoop::new().context("the event loop")?);
    let fabric = Fabric::new(events, args.stations as usize, Duration::from_secs(args.ageing));
    let mut paths = Vec::new();
    for group in plan.guests {
        let (listener, leftover) =
            listen(&group.path).with_context(|| format!("--port {}", group.path.display()))?;
        paths.push(leftover);
        guest::serve(&fabric, listener, group)?;
    }
    for tap in plan.taps {
        uplink::tap(&fabric, tap)?;
    }
    if let Some((config, port)) = plan.user {
        uplink::nat(&fabric, config, port)?;
    }
    if let Some(path) = &args.control {
        let (listener, leftover) = listen(path).with_context(|| format!("--control {}", path.display()))?;
        paths.push(leftover);
        control::serve(listener, fabric.clone(), plan.mode)?;
    }
    tell(&format!("the switch is ready: {}", plan.mode.about()));
    // All is done by the loop's thread; a signal is the end.
    loop {
        std::thread::park();
    }
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Internal => "internal",
            Self::External => "external",
            Self::Nat => "nat",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Self::Private => "guests reach each other (private)",
            Self::Internal => "guests and this host reach each other (internal)",
            Self::External => "guests are stations of the bridge's network (external)",
            Self::Nat => "guests reach each other, and the outside by a NAT (nat)",
        }
    }
}

/// Listens at a path, in the place of a socket that nobody listens at any more.
fn listen(path: &Path) -> anyhow::Result<(UnixListener, super::Leftover)> {
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(Error::new("there is a file of this name, which is no socket").into());
        }
        if UnixStream::connect(path).is_ok() {
            return Err(Error::new("another program listens there: end it, or choose another path").into());
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    Ok((listener, super::Leftover::new(path)))
}
