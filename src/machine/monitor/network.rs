//! The network: `info network`, `info usernet`, `hostfwd_add`, `hostfwd_remove`, `set_link`.
use super::args::{Args, Fault};
use super::{Answer, Hmp};
use crate::config::NetKind;
use crate::machine::board::Board;
use crate::machine::nets::Net;
use mynah_net::User;
use mynah_net::sockets::DgramConfig;
use mynah_net::tap::Origin;
use serde_json::{Value, json};
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;

impl Hmp {
    fn board(&self) -> Result<Arc<Board>, &'static str> {
        self.machine.board().ok_or("there is no machine")
    }

    /// Cards, and under each what is behind it, with what has passed; with `-j` as JSON, in one line.
    pub(super) fn network(&self, args: &mut Args<'_>) -> Answer {
        let json = args.takes("-j");
        args.end()?;
        let board = self.board()?;
        if json {
            return Ok(format!("{}\n", as_json(&board)));
        }
        let mut text = String::new();
        for (index, link) in board.nets.links.iter().enumerate() {
            let (name, model, mac) = (link.name(), link.model(), link.mac());
            let state = if link.is_up() { "" } else { ",link=off" };
            let _ = writeln!(text, "{name}: index={index},type=nic,model={model},macaddr={mac}{state}");
            let c = link.counts();
            if let Some(net) = link.netdev().and_then(|id| board.nets.find(id)) {
                let _ = writeln!(text, " \\ {}: index=0,{}", net.id, describe(net));
            }
            let _ = writeln!(
                text,
                "   sent {} frames, {} bytes; received {} frames, {} bytes; dropped {}",
                c.sent, c.sent_bytes, c.received, c.received_bytes, c.dropped
            );
        }
        for net in board.nets.all().iter().filter(|n| board.nets.card_of(&n.id).is_none()) {
            let _ = writeln!(text, "{}: index=0,{}", net.id, describe(net));
        }
        Ok(text)
    }

    /// What passes through each NAT, and its guests' addresses.
    pub(super) fn usernet(&self) -> Answer {
        let board = self.board()?;
        let mut text = String::new();
        for net in board.nets.all() {
            let Some(user) = &net.user else { continue };
            let _ = writeln!(text, "Hub -1 ({}):", net.id);
            let _ = writeln!(
                text,
                "  {:18} {:>21} {:>21} {:>10} {:>10}  Again",
                "Protocol[State]", "Source", "Destination", "From guest", "To guest"
            );
            for f in user.forwards() {
                let state = if f.udp { "UDP[HOST_FORWARD]" } else { "TCP[HOST_FORWARD]" };
                let guest = match f.guest.ip().is_unspecified() {
                    true => format!("(guest):{}", f.guest.port()),
                    false => f.guest.to_string(),
                };
                let _ = writeln!(text, "  {state:18} {:>21} {guest:>21}", f.host.to_string());
            }
            for f in user.flows() {
                let state = format!("{}[{}]", f.protocol.to_uppercase(), f.state);
                let _ = writeln!(
                    text,
                    "  {state:18} {:>21} {:>21} {:>10} {:>10}  {}",
                    f.guest.to_string(),
                    f.remote.to_string(),
                    f.counters.from_guest,
                    f.counters.to_guest,
                    f.counters.retransmitted
                );
            }
            let mut leases = user.leases();
            leases.sort_by_key(|(_, address)| *address);
            for (mac, address) in leases {
                let _ = writeln!(text, "  guest {} has {address}", mynah_net::Mac(mac));
            }
        }
        Ok(text)
    }

    /// The NAT that is meant: the one named, or the only one; and the rest of the line.
    fn nat<'a>(&self, args: &mut Args<'a>) -> Result<(Arc<User>, &'a str), Fault> {
        let board = self.board()?;
        let first = args.word()?;
        let second = args.next();
        args.end()?;
        let nats = board.nets.all().iter().filter_map(|n| Some((n.id.as_str(), n.user.clone()?)));
        let (name, forward) = match second {
            Some(forward) => (Some(first), forward),
            None => (None, first),
        };
        let user = match name {
            Some(name) => nats.clone().find(|(id, _)| *id == name).map(|(_, user)| user),
            None => nats.clone().map(|(_, user)| user).next(),
        };
        let why = match name {
            Some(name) => format!("there is no user network '{name}'"),
            None => "there is no user network".into(),
        };
        Ok((user.ok_or(why)?, forward))
    }

    pub(super) fn hostfwd_add(&self, args: &mut Args<'_>) -> Answer {
        let (user, forward) = self.nat(args)?;
        let at = user.add_forward(forward).map_err(|why| format!("hostfwd {forward}: {why}"))?;
        Ok(if forward_port(forward) == Some(0) { format!("the port is {at}\n") } else { String::new() })
    }

    pub(super) fn hostfwd_remove(&self, args: &mut Args<'_>) -> Answer {
        let (user, forward) = self.nat(args)?;
        let (udp, at) =
            removed(forward).ok_or_else(|| format!("'{forward}' is not [tcp|udp]:[host]:port"))?;
        let done = user.remove_forward(udp, at);
        Ok(format!("host forwarding rule for {forward} {}\n", if done { "removed" } else { "not found" }))
    }

    pub(super) fn set_link(&self, args: &mut Args<'_>) -> Answer {
        let (name, state) = (args.word()?, args.word()?);
        args.end()?;
        let up = match state {
            "on" | "up" => true,
            "off" | "down" => false,
            _ => return Err(Fault::Form),
        };
        let board = self.board()?;
        let link = board.nets.link(name).ok_or_else(|| format!("Device '{name}' not found"))?;
        link.set_up(up);
        Ok(String::new())
    }
}

/// The host's port in `[tcp|udp]:[host]:port-...`.
fn forward_port(forward: &str) -> Option<u16> {
    forward.split_once('-')?.0.rsplit(':').next()?.parse().ok()
}

/// `[tcp|udp]:[host]:port`.
fn removed(text: &str) -> Option<(bool, SocketAddr)> {
    let (udp, rest) = match text.split_once(':') {
        Some(("udp", rest)) => (true, rest),
        Some(("tcp" | "", rest)) => (false, rest),
        _ => (false, text),
    };
    let at = match rest.strip_prefix(':') {
        Some(port) => format!("0.0.0.0:{port}"),
        None if !rest.contains(':') => format!("0.0.0.0:{rest}"),
        None => rest.to_owned(),
    };
    Some((udp, at.parse().ok()?))
}

/// All that is known of the networks: `cards`, and `networks` by their ids, each with what a NAT knows.
fn as_json(board: &Board) -> Value {
    let cards = board.nets.links.iter().map(|link| {
        let c = link.counts();
        json!({
            "name": link.name(), "model": link.model(), "mac": link.mac().to_string(),
            "netdev": link.netdev(), "up": link.is_up(),
            "sent": { "frames": c.sent, "bytes": c.sent_bytes },
            "received": { "frames": c.received, "bytes": c.received_bytes },
            "dropped": c.dropped,
        })
    });
    let cards: Vec<Value> = cards.collect();
    let networks = board.nets.all().iter().map(|net| {
        let user = net.user.as_ref().map(|user| user.json());
        (net.id.clone(), json!({ "is": describe(net), "user": user }))
    });
    json!({ "cards": cards, "networks": networks.collect::<serde_json::Map<_, _>>() })
}

fn describe(net: &Net) -> String {
    match &net.kind {
        NetKind::User(c) => {
            format!("type=user,net={},restrict={}", c.net.0, if c.restrict { "on" } else { "off" })
        }
        NetKind::Stream(c) => format!("type=stream,{}{}", if c.server { "server," } else { "" }, c.address),
        NetKind::Dgram(DgramConfig::Peer { remote, .. }) => format!("type=dgram,{remote}"),
        NetKind::Dgram(DgramConfig::Multicast { group, .. }) => format!("type=dgram,mcast={group}"),
        NetKind::Tap(c) => match &c.origin {
            Origin::Open { ifname, bridge, .. } => {
                let bridge = bridge.as_ref().map(|b| format!(",br={b}")).unwrap_or_default();
                format!("type=tap,ifname={ifname}{bridge}")
            }
            Origin::Descriptors(fds) => format!("type=tap,queues={}", fds.len()),
            Origin::Helper { bridge, .. } => format!("type=bridge,br={bridge}"),
        },
        NetKind::Hubport { hub, netdev } => {
            let behind = netdev.as_ref().map(|id| format!(",netdev={id}")).unwrap_or_default();
            format!("type=hubport,hubid={hub}{behind}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_is_removed_by_where_the_host_listens() {
        let at = |text: &str| removed(text).map(|(udp, at)| (udp, at.to_string()));
        assert_eq!(at("tcp::2222"), Some((false, "0.0.0.0:2222".into())));
        assert_eq!(at("::2222"), Some((false, "0.0.0.0:2222".into())));
        assert_eq!(at("udp:127.0.0.1:53"), Some((true, "127.0.0.1:53".into())));
        assert_eq!(at("2222"), Some((false, "0.0.0.0:2222".into())));
        assert_eq!((at("tcp:x"), at("")), (None, None));
        assert_eq!(forward_port("tcp:127.0.0.1:0-:22"), Some(0));
    }
}
