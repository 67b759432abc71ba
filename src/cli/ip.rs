//! `mynah ip`: guests' addresses, with nothing installed in the guest. A switch's control socket knows what guests say
//! of themselves in ARP and neighbour discovery; a machine's monitor knows what its NAT has leased, and the cards'
//! Ethernet addresses, by which this host's own neighbours are found.
use super::{Error, print, switch};
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a monitor may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer of a monitor's.
const LONGEST: usize = 16 << 20;
/// What a monitor says when it waits for a command.
const PROMPTS: [&str; 2] = ["(mynah) ", "(qemu) "];

/// The options of `mynah ip`.
#[derive(Args, Debug)]
#[command(after_help = "\
SOCKET is a switch's (mynah switch --control SOCKET) or a machine's monitor (-monitor unix:SOCKET,server=on,wait=off).
NAME is a port of the switch, or a card of the machine; its addresses alone are printed, the best one first:
  ssh user@$(mynah ip /run/lan.ctl web | head -1)")]
pub struct IpArgs {
    /// The socket of a switch or of a machine's monitor
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
    /// Only this guest
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// An address of a guest's.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    /// The port, or the card.
    name: String,
    mac: String,
    ip: String,
    /// How it is known.
    by: &'static str,
}

/// Runs the command; the result is the process's exit code: 1 if there is no address.
pub(super) fn run(args: &IpArgs) -> anyhow::Result<i32> {
    let mut found = look(&args.socket)?;
    if let Some(name) = &args.name {
        found.retain(|f| f.name == *name);
    }
    // What others can use comes first: IPv4, then IPv6 that leads beyond the link.
    found.sort_by_key(|f| (f.name.clone(), f.ip.contains(':'), f.ip.starts_with("fe80:")));
    if args.json {
        let all = found.iter().map(|f| json!({ "name": f.name, "mac": f.mac, "ip": f.ip, "by": f.by }));
        print(&format!("{}\n", serde_json::to_string_pretty(&all.collect::<Vec<_>>())?));
    } else if args.name.is_some() {
        found.iter().for_each(|f| print(&format!("{}\n", f.ip)));
    } else {
        found.iter().for_each(|f| print(&format!("{:16} {}  {:15} {}\n", f.name, f.mac, f.ip, f.by)));
    }
    if found.is_empty() && !args.json {
        let who =
            args.name.as_ref().map_or("there is no address of a guest's that is known".into(), |name| {
                format!("no address of '{name}' is known")
            });
        return Err(Error::new(format!(
            "{}: {who}: it has sent nothing yet, or is behind something else that is to be asked",
            args.socket.display()
        ))
        .into());
    }
    Ok(0)
}

/// Asks whoever is there.
fn look(path: &Path) -> anyhow::Result<Vec<Found>> {
    match who(path)? {
        Who::Switch(stats) => Ok(of_switch(&stats)),
        Who::Monitor(mut monitor) => {
            let network = monitor.says("info network")?;
            let usernet = monitor.says("info usernet")?;
            let neighbours = std::fs::read_to_string("/proc/net/arp").unwrap_or_default();
            Ok(of_monitor(&network, &usernet, &neighbours))
        }
    }
}

/// Who is behind a socket.
pub(super) enum Who {
    /// A switch, and what it says.
    Switch(Value),
    /// A machine's monitor.
    Monitor(Monitor),
}

/// A machine's monitor, which waits for a command.
pub(super) struct Monitor {
    path: PathBuf,
    talk: Talk,
}

impl Monitor {
    /// What it says of a command, and some echo before it.
    pub(super) fn says(&mut self, command: &str) -> anyhow::Result<String> {
        self.talk.text.clear();
        let asked = self.talk.socket.write_all(format!("{command}\n").as_bytes());
        asked.and_then(|()| self.talk.until_prompts(1)).map_err(|e| failed(&self.path, &e))?;
        Ok(std::mem::take(&mut self.talk.text))
    }
}

fn failed(path: &Path, e: &std::io::Error) -> Error {
    let why = match e.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => {
            "it does not answer: is somebody else at this monitor? It talks to one at a time".into()
        }
        _ => e.to_string(),
    };
    Error::new(format!("{}: {why}", path.display()))
}

/// Finds out who is there: a monitor greets, a switch waits for the question.
pub(super) fn who(path: &Path) -> anyhow::Result<Who> {
    let socket = UnixStream::connect(path).map_err(|e| {
        Error::new(format!(
            "{}: {e}: it is to be a switch's --control, or a machine's -monitor unix:...,server=on,wait=off",
            path.display()
        ))
    })?;
    let mut talk = Talk { socket, text: String::new(), end: Instant::now() + PATIENCE };
    // To a switch that is the question; a monitor says that it knows no such command.
    let first = talk.socket.write_all(b"stats\n").and_then(|()| talk.first_byte());
    if first.map_err(|e| failed(path, &e))? == Some('{') {
        drop(talk);
        return Ok(Who::Switch(switch::ask(path)?));
    }
    // The greeting, and what it says of that.
    talk.until_prompts(2).map_err(|e| failed(path, &e))?;
    Ok(Who::Monitor(Monitor { path: path.into(), talk }))
}

struct Talk {
    socket: UnixStream,
    text: String,
    end: Instant,
}

impl Talk {
    fn more(&mut self) -> std::io::Result<()> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() || self.text.len() > LONGEST {
            return Err(ErrorKind::TimedOut.into());
        }
        self.socket.set_read_timeout(Some(left))?;
        let mut chunk = [0; 4096];
        match self.socket.read(&mut chunk) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                self.text += &String::from_utf8_lossy(&chunk[..n]);
                Ok(())
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn first_byte(&mut self) -> std::io::Result<Option<char>> {
        while self.text.is_empty() {
            self.more()?;
        }
        Ok(self.text.chars().next())
    }

    fn until_prompts(&mut self, count: usize) -> std::io::Result<()> {
        while PROMPTS.iter().map(|p| self.text.matches(p).count()).sum::<usize>() < count {
            self.more()?;
        }
        Ok(())
    }
}

/// What a switch says.
fn of_switch(stats: &Value) -> Vec<Found> {
    let text = |v: &Value, key: &str| v[key].as_str().unwrap_or_default().to_owned();
    let ports = stats["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let guests = ports.iter().filter(|p| p["uplink"] != true);
    let of = guests.flat_map(|port| {
        let all = port["addresses"].as_array().map_or(&[][..], Vec::as_slice);
        all.iter().map(|a| Found {
            name: text(port, "name"),
            mac: text(a, "mac"),
            ip: text(a, "ip"),
            by: "seen",
        })
    });
    of.collect()
}

/// What a monitor's `info network` and `info usernet` say, and this host's table of neighbours (proc_pid_net(5), arp).
fn of_monitor(network: &str, usernet: &str, neighbours: &str) -> Vec<Found> {
    let mut found = Vec::new();
    let mut known = BTreeSet::new();
    // NAME: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:56
    let cards = network.lines().filter_map(|line| {
        let (name, rest) = line.trim_start_matches(['\r', ' ']).split_once(": ")?;
        let mac = rest.split(',').find_map(|p| p.trim().strip_prefix("macaddr="))?;
        Some((name.to_owned(), mac.to_ascii_lowercase()))
    });
    let cards: Vec<(String, String)> = cards.collect();
    let name = |mac: &str| cards.iter().find(|c| c.1 == mac).map_or("guest".into(), |c| c.0.clone());
    //   guest 52:54:00:12:34:56 has 10.0.2.15
    for line in usernet.lines() {
        if let [_, mac, _, ip] = line.split_whitespace().collect::<Vec<_>>()[..]
            && line.trim_start().starts_with("guest ")
            && line.contains(" has ")
        {
            known.insert((mac.to_owned(), ip.to_owned()));
            found.push(Found { name: name(mac), mac: mac.into(), ip: ip.into(), by: "leased" });
        }
    }
    // 192.168.77.5     0x1         0x2         52:54:00:12:34:56     *        tap0
    for line in neighbours.lines().skip(1) {
        if let [ip, _, flags, mac, ..] = line.split_whitespace().collect::<Vec<_>>()[..]
            && flags != "0x0"
            && cards.iter().any(|c| c.1 == mac)
            && known.insert((mac.to_owned(), ip.to_owned()))
        {
            found.push(Found { name: name(mac), mac: mac.into(), ip: ip.into(), by: "neighbour" });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_and_neighbours_are_found() {
        let network = "info network\r\nnet0: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:56\r\n \
                       \\ n0: index=0,type=user,net=10.0.2.0\r\n   sent 1 frames\r\n\
                       e1: index=1,type=nic,model=e1000,macaddr=52:54:00:12:34:57,link=off\r\n(mynah) ";
        let usernet = "info usernet\r\nHub -1 (n0):\r\n  Protocol[State] Source Destination\r\n  \
                       guest 52:54:00:12:34:56 has 10.0.2.15\r\n(mynah) ";
        let arp = "IP address       HW type     Flags       HW address            Mask     Device\n\
                   192.168.77.5     0x1         0x2         52:54:00:12:34:57     *        tap0\n\
                   192.168.77.6     0x1         0x0         52:54:00:12:34:57     *        tap0\n\
                   192.168.77.9     0x1         0x2         02:00:00:00:00:09     *        eth0\n";
        let found = of_monitor(network, usernet, arp);
        let shown: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.ip.as_str(), f.by)).collect();
        assert_eq!(shown, [("net0", "10.0.2.15", "leased"), ("e1", "192.168.77.5", "neighbour")]);
    }

    #[test]
    fn a_switch_tells_guests_addresses_and_not_those_behind_uplinks() {
        let address = |ip| json!({ "mac": "02:00:00:00:00:01", "ip": ip, "age_ms": 1 });
        let stats = json!({ "ports": [
            { "name": "a", "uplink": false, "addresses": [address("fe80::1"), address("10.0.2.15")] },
            { "name": "nat", "uplink": true, "addresses": [address("10.0.2.2")] },
            { "name": "b" },
        ]});
        let found = of_switch(&stats);
        let shown: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.ip.as_str())).collect();
        assert_eq!(shown, [("a", "fe80::1"), ("a", "10.0.2.15")]);
    }
}
