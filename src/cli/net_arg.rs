//! `-netdev`, `-nic` and `-net`: what is behind network cards, and cards with it.
//!
//! `-netdev` makes a back end, to which a `-device` refers. `-nic` makes both at once. `-net` is the oldest form: all
//! cards and back ends that it makes are on one hub. With none of them there is a card on the NAT, as in QEMU, unless
//! `-nodefaults` is given.
use super::Error;
use super::device_arg;
use super::props::Props;
use super::suggest::did_you_mean;
use super::tap_arg;
use crate::config::{Config, FilterKind, NetFilter, NetKind, Netdev};
use mynah_devices::kind::{self, Chosen};
use mynah_net::fault::Faults;
use mynah_net::sockets::{Address, DgramConfig, StreamConfig};
use mynah_net::tap::Origin;
use mynah_net::{MAX_FRAME, user};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// The hub of `-net`.
const HUB: u32 = 0;

/// Back ends that there are.
const KINDS: &[&str] = &["user", "tap", "bridge", "stream", "dgram", "socket", "hubport"];
/// Those of QEMU's that are refused by name.
const LATER: &[&str] = &["l2tpv3", "vde", "vhost-user", "vhost-vdpa", "passt", "netmap", "af-xdp", "dump"];

/// Models that `-nic model=` takes by another name than the device's.
const MODELS: &[(&str, &str)] =
    &[("virtio", "virtio-net-pci"), ("virtio-net", "virtio-net-pci"), ("e1000-82540em", "e1000")];

/// What `-nic` and `-net` ask for, until the board is known.
#[derive(Default)]
pub struct Asked {
    /// One of the options was given: there is no card by default.
    any: bool,
    cards: Vec<Card>,
    /// Back ends of `-net`.
    on_hub: Vec<Netdev>,
}

struct Card {
    option: String,
    model: Option<String>,
    mac: Option<String>,
    /// `name=`, `addr=` and such of the device.
    own: Vec<(&'static str, String)>,
    /// What is behind it; none: the hub of `-net`.
    netdev: Option<String>,
}

/// `-netdev`.
pub fn netdev(text: &str, config: &mut Config, asked: &mut Asked) -> Result<(), Error> {
    asked.any = true;
    let mut props = Props::parse("-netdev", text, Some("type"));
    let kind = kind(&mut props, text, false)?;
    let id = props.text("id")?.filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| Error::new(format!("-netdev {text}: an id=ID is missing")))?;
    if config.netdevs.iter().any(|n| n.id == id) {
        return Err(Error::new(format!("-netdev {text}: there are two with the id '{id}'")));
    }
    let kind = backend(kind, props)?;
    config.netdevs.push(Netdev { shown: format!("-netdev {},id={id}", name(&kind)), id, kind });
    Ok(())
}

/// `-nic`.
pub fn nic(text: &str, config: &mut Config, asked: &mut Asked) -> Result<(), Error> {
    asked.any = true;
    let mut props = Props::parse("-nic", text, Some("type"));
    if text == "none" {
        return Ok(());
    }
    let model = props.text("model")?;
    if model.as_deref().is_some_and(|m| m == "help" || m == "?") {
        return Err(Error::info(models()));
    }
    let mac = props.text("mac")?;
    let own = own(&mut props, &["addr", "bootindex"])?;
    let kind = kind(&mut props, text, true)?;
    let free = |n: &u32| config.netdevs.iter().all(|d| d.id != format!("nic{n}"));
    let id = props.text("id")?.unwrap_or_else(|| format!("nic{}", (0..).find(free).unwrap_or(0)));
    if config.netdevs.iter().any(|n| n.id == id) {
        return Err(Error::new(format!("-nic {text}: there are two with the id '{id}'")));
    }
    let kind = backend(kind, props)?;
    config.netdevs.push(Netdev { id: id.clone(), shown: format!("-nic {}", name(&kind)), kind });
    asked.cards.push(Card { option: format!("-nic {text}"), model, mac, own, netdev: Some(id) });
    Ok(())
}

/// `-net`.
pub fn net(text: &str, asked: &mut Asked) -> Result<(), Error> {
    asked.any = true;
    let mut props = Props::parse("-net", text, Some("type"));
    if text == "none" {
        return Ok(());
    }
    if text == "nic" || text.starts_with("nic,") {
        let _ = props.text("type")?;
        let model = props.text("model")?;
        if model.as_deref().is_some_and(|m| m == "help" || m == "?") {
            return Err(Error::info(models()));
        }
        let mac = props.text("macaddr")?;
        let netdev = props.text("netdev")?;
        let mut own = own(&mut props, &["addr"])?;
        own.extend(props.text("name")?.map(|name| ("id", name)));
        props.ignore(&["vectors"]);
        props.finish()?;
        asked.cards.push(Card { option: format!("-net {text}"), model, mac, own, netdev });
        return Ok(());
    }
    let kind = kind(&mut props, text, false)?;
    props.ignore(&["name"]);
    let id = props.text("id")?.unwrap_or_else(|| format!("net{}", asked.on_hub.len()));
    let kind = backend(kind, props)?;
    asked.on_hub.push(Netdev { id, shown: format!("-net {}", name(&kind)), kind });
    Ok(())
}

/// Properties of the card's own.
fn own(props: &mut Props, names: &[&'static str]) -> Result<Vec<(&'static str, String)>, Error> {
    let mut own = Vec::new();
    for name in names {
        own.extend(props.text(name)?.map(|value| (*name, value)));
    }
    Ok(own)
}

/// `-object filter-dump` and `-object filter-fault`.
pub fn filter(text: &str) -> Result<NetFilter, Error> {
    let mut props = Props::parse("-object", text, Some("qom-type"));
    let name = props.text("qom-type")?.unwrap_or_default();
    props.rename(format!("-object {name}"));
    let id = props.text("id")?.ok_or_else(|| props.error("an id=ID is missing"))?;
    let netdev = props.text("netdev")?.ok_or_else(|| props.error("a netdev=ID is missing"))?;
    let kind = match name.as_str() {
        "filter-dump" => {
            let file = props.text("file")?.ok_or_else(|| props.error("a file=FILE is missing"))?;
            let most = props.size("maxlen", 1, 1, MAX_FRAME as u64)?.map_or(MAX_FRAME as u32, |n| n as u32);
            FilterKind::Dump { file: file.into(), most }
        }
        "filter-fault" => FilterKind::Fault(faults(&mut props)?),
        _ => {
            let known = ["filter-dump", "filter-fault"];
            let hint = did_you_mean("", &name, known);
            let hint = if hint.is_empty() { format!(" (there are {})", known.join(", ")) } else { hint };
            return Err(Error::new(format!("-object {name}: unknown filter{hint}")));
        }
    };
    props.finish()?;
    Ok(NetFilter { id, netdev, kind })
}

fn faults(props: &mut Props) -> Result<Faults, Error> {
    let mut faults = Faults { from_guest: true, to_guest: true, ..Faults::default() };
    for (name, chance) in [
        ("loss", &mut faults.loss),
        ("duplicate", &mut faults.duplicate),
        ("corrupt", &mut faults.corrupt),
        ("reorder", &mut faults.reorder),
    ] {
        if let Some(text) = props.text(name)? {
            *chance = text.parse().map_err(|why| props.error(format!("{name}={text}: {why}")))?;
        }
    }
    for (name, time) in [("delay", &mut faults.delay), ("jitter", &mut faults.jitter)] {
        if let Some(text) = props.text(name)? {
            *time = duration(&text).map_err(|why| props.error(format!("{name}={text}: {why}")))?;
        }
    }
    if let Some(text) = props.text("rate")? {
        faults.rate = bits(&text).map_err(|why| props.error(format!("rate={text}: {why}")))?;
    }
    faults.seed = props.number("seed", 0, u64::MAX)?.unwrap_or(0);
    match props.text("queue")?.as_deref() {
        None | Some("all") => {}
        // As in QEMU: what the card receives, and what it sends.
        Some("rx") => faults.from_guest = false,
        Some("tx") => faults.to_guest = false,
        Some(other) => return Err(props.error(format!("queue={other}: it is all, rx or tx"))),
    }
    Ok(faults)
}

/// Bits in a second: `10M` is ten million.
pub(super) fn bits(text: &str) -> Result<u64, String> {
    let units = [('k', 1000), ('K', 1000), ('M', 1_000_000), ('G', 1_000_000_000)];
    let found = units.iter().find_map(|(name, unit)| Some((text.strip_suffix(*name)?, *unit)));
    let (number, unit) = found.unwrap_or((text, 1));
    let number = number.parse::<u64>().ok().filter(|n| *n > 0).and_then(|n| n.checked_mul(unit));
    number.ok_or_else(|| "it is no number of bits in a second, such as 10M".into())
}

/// A time with its unit: `20ms`, `1.5s`, `300us`; milliseconds without.
fn duration(text: &str) -> Result<Duration, String> {
    let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    let found = units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)));
    let (number, unit) = found.unwrap_or((text, 1e-3));
    let seconds = number.parse::<f64>().map_err(|_| "it is no time such as 20ms")? * unit;
    if !(0.0..=60.0).contains(&seconds) {
        return Err("a line is at most a minute long".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Which back end it is.
fn kind(props: &mut Props, text: &str, usual: bool) -> Result<&'static str, Error> {
    let given = props.text("type")?;
    if given.as_deref().is_some_and(|k| k == "help" || k == "?") {
        return Err(Error::info(format!("Available netdev backend types:\n{}\n", KINDS.join("\n"))));
    }
    let given = match given {
        Some(kind) if !kind.is_empty() => kind,
        _ if usual => "user".into(),
        _ => String::new(),
    };
    if let Some(kind) = KINDS.iter().find(|k| **k == given) {
        return Ok(kind);
    }
    if LATER.contains(&given.as_str()) {
        return Err(props.error(format!("{given}: not supported yet (there are {})", KINDS.join(", "))));
    }
    let hint = did_you_mean("", &given, KINDS.iter().copied());
    let hint = if hint.is_empty() { format!(" (accepted: {})", KINDS.join(", ")) } else { hint };
    Err(props.error(format!("{text}: unknown network kind '{given}'{hint}")))
}

/// Its properties.
fn backend(kind: &str, mut props: Props) -> Result<NetKind, Error> {
    if kind == "hubport" {
        let hub = props.number("hubid", 0, u32::MAX.into())?;
        let hub = hub.ok_or_else(|| props.error("hubport: a hubid=NUMBER is missing"))? as u32;
        let netdev = props.text("netdev")?;
        props.finish()?;
        return Ok(NetKind::Hubport { hub, netdev });
    }
    let other = match kind {
        "stream" => Some(stream(&mut props)?),
        "dgram" => Some(dgram(&mut props)?),
        "socket" => Some(socket(&mut props)?),
        "tap" => Some(tap_arg::tap(&mut props)?),
        "bridge" => Some(tap_arg::bridge(&mut props)?),
        _ => None,
    };
    if let Some(kind) = other {
        props.finish()?;
        return Ok(kind);
    }
    // What has been asked for is no option of the network's.
    let rest = props.rest();
    let options = rest.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let config = user::Config::parse(options).map_err(|e| props.error(e))?;
    Ok(NetKind::User(Box::new(config)))
}

/// The names of an address' properties.
struct AddressNames([&'static str; 4]);

const STREAM: AddressNames = AddressNames(["addr.type", "addr.host", "addr.port", "addr.path"]);
const LOCAL: AddressNames = AddressNames(["local.type", "local.host", "local.port", "local.path"]);
const REMOTE: AddressNames = AddressNames(["remote.type", "remote.host", "remote.port", "remote.path"]);

/// An address, if one was given.
fn address(
    props: &mut Props,
    AddressNames([kind, host, port, path]): &AddressNames,
) -> Result<Option<Address>, Error> {
    let (given, host_of) = (props.text(kind)?, props.text(host)?);
    let (port_of, path_of) = (props.number(port, 0, 65_535)?, props.text(path)?);
    match given.as_deref() {
        Some("inet") => {
            let port_of =
                port_of.ok_or_else(|| props.error(format!("{kind}=inet: {port}=PORT is missing")))?;
            Ok(Some(Address::Inet(host_of.unwrap_or_default(), port_of as u16)))
        }
        Some("unix") => {
            let path_of =
                path_of.ok_or_else(|| props.error(format!("{kind}=unix: {path}=PATH is missing")))?;
            Ok(Some(Address::Unix(path_of.into())))
        }
        Some(other) => Err(props.error(format!("{kind}={other}: it is inet or unix"))),
        None if host_of.is_some() || port_of.is_some() || path_of.is_some() => {
            Err(props.error(format!("{kind}=inet or {kind}=unix is missing")))
        }
        None => Ok(None),
    }
}

/// `-netdev stream`.
fn stream(props: &mut Props) -> Result<NetKind, Error> {
    let address = address(props, &STREAM)?.ok_or_else(|| props.error("stream: addr.type= is missing"))?;
    let server = props.switch("server")?.unwrap_or(false);
    let reconnect = props.number("reconnect", 0, 86_400)?.unwrap_or(0) as u32;
    Ok(NetKind::Stream(StreamConfig { address, server, reconnect }))
}

/// `-netdev dgram`.
fn dgram(props: &mut Props) -> Result<NetKind, Error> {
    let (local, remote) = (address(props, &LOCAL)?, address(props, &REMOTE)?);
    let remote = remote.ok_or_else(|| props.error("dgram: remote.type= is missing"))?;
    if let Address::Inet(host, port) = &remote
        && let Ok(group) = host.parse::<IpAddr>()
        && group.is_multicast()
    {
        let local = match local {
            Some(Address::Inet(host, _)) => Some(host),
            _ => None,
        };
        return multicast(props, SocketAddr::new(group, *port), local);
    }
    Ok(NetKind::Dgram(DgramConfig::Peer { local, remote }))
}

fn multicast(props: &Props, group: SocketAddr, local: Option<String>) -> Result<NetKind, Error> {
    let local = local.filter(|l| !l.is_empty()).map(|l| l.parse::<Ipv4Addr>());
    let local = local.transpose().map_err(|_| props.error("an interface's IPv4 address is needed"))?;
    Ok(NetKind::Dgram(DgramConfig::Multicast { group, local }))
}

/// `-netdev socket`: the older form of both.
fn socket(props: &mut Props) -> Result<NetKind, Error> {
    let (listen, connect, mcast, udp) =
        (props.text("listen")?, props.text("connect")?, props.text("mcast")?, props.text("udp")?);
    let local = props.text("localaddr")?;
    let port = |text: &str| {
        let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
        let port = port.parse().map_err(|_| props.error(format!("'{text}' is no HOST:PORT")))?;
        Ok::<_, Error>(Address::Inet(host.into(), port))
    };
    let stream =
        |text: &str, server| Ok(NetKind::Stream(StreamConfig { address: port(text)?, server, reconnect: 0 }));
    match (listen, connect, mcast, udp) {
        (Some(at), None, None, None) => stream(&at, true),
        (None, Some(at), None, None) => stream(&at, false),
        (None, None, Some(group), None) => {
            let at = group.parse::<SocketAddr>().ok().filter(|g| g.ip().is_multicast());
            let at =
                at.ok_or_else(|| props.error(format!("mcast={group}: it is no group's ADDRESS:PORT")))?;
            multicast(props, at, local)
        }
        (None, None, None, Some(remote)) => {
            let local = local.ok_or_else(|| props.error("udp=: localaddr=HOST:PORT is missing"))?;
            Ok(NetKind::Dgram(DgramConfig::Peer { local: Some(port(&local)?), remote: port(&remote)? }))
        }
        _ => Err(props.error("socket: one of listen=, connect=, mcast= and udp= is to be given")),
    }
}

fn name(kind: &NetKind) -> &'static str {
    match kind {
        NetKind::User(_) => "user",
        NetKind::Stream(_) => "stream",
        NetKind::Dgram(_) => "dgram",
        NetKind::Tap(tap) if matches!(tap.origin, Origin::Helper { .. }) => "bridge",
        NetKind::Tap(_) => "tap",
        NetKind::Hubport { .. } => "hubport",
    }
}

/// `-nic model=help`.
fn models() -> String {
    let cards = mynah_devices::kind::all().into_iter().filter(|k| Chosen::of(k).is_card());
    let mut text = "Available NIC models (-nic model=NAME):\n".to_string();
    cards.for_each(|k| text += &format!("  {:18} {}\n", k.name, k.about));
    text
}

/// Adds the cards that were asked for, or the one that there is by default, once the board is known.
pub fn settle(config: &mut Config, asked: Asked) -> Result<(), Error> {
    let Asked { any, mut cards, on_hub } = asked;
    let usual = config.machine.board.nic;
    if !any && !config.no_defaults && !usual.is_empty() {
        let id = "net0".to_string();
        let free = config.netdevs.iter().all(|n| n.id != id);
        debug_assert!(free, "no option has made any");
        let kind = NetKind::User(Box::default());
        config.netdevs.push(Netdev { id: id.clone(), shown: "-nic user".into(), kind });
        let option = "the default network card".into();
        cards.push(Card { option, model: None, mac: None, own: Vec::new(), netdev: Some(id) });
    }
    let alone = cards.iter().filter(|c| c.netdev.is_none()).count() == 1 && on_hub.len() == 1;
    let mut ports = 0;
    let mut port = |config: &mut Config, netdev: Option<String>| {
        let id = format!("hub{HUB}port{ports}");
        ports += 1;
        let kind = NetKind::Hubport { hub: HUB, netdev };
        config.netdevs.push(Netdev { id: id.clone(), shown: "-net".into(), kind });
        id
    };
    let mut only = None;
    for back in on_hub {
        if config.netdevs.iter().any(|n| n.id == back.id) {
            return Err(Error::new(format!("{}: there are two with the id '{}'", back.shown, back.id)));
        }
        let id = back.id.clone();
        config.netdevs.push(back);
        if alone {
            only = Some(id);
        } else {
            port(config, Some(id));
        }
    }
    for (place, card) in cards.into_iter().enumerate() {
        let netdev = match (card.netdev, &only) {
            (Some(id), _) => id,
            (None, Some(id)) => id.clone(),
            (None, None) => port(config, None),
        };
        let model = card.model.as_deref().unwrap_or(usual);
        if model.is_empty() {
            return Err(Error::new(format!("{}: this board has no usual card: give a model=", card.option)));
        }
        let model = MODELS.iter().find(|(name, _)| *name == model).map_or(model, |(_, device)| device);
        let is_card = kind::find(model).is_none_or(|k| Chosen::of(k).is_card());
        if !is_card {
            return Err(Error::new(format!(
                "{}: '{model}' is no network card ('-nic model=help')",
                card.option
            )));
        }
        // A value may hold commas.
        let quoted = |value: &str| value.replace(',', ",,");
        let mut device = format!("{},netdev={}", quoted(model), quoted(&netdev));
        let mac = card.mac.map(|mac| ("mac", mac));
        for (key, value) in mac.into_iter().chain(card.own) {
            device += &format!(",{key}={}", quoted(&value));
        }
        let chosen = device_arg::device(&device).map_err(|e| Error::new(format!("{}: {e}", card.option)))?;
        // Cards have their slots before what is added with -device, as in QEMU.
        config.devices.insert(place, chosen);
    }
    for filter in &config.net_filters {
        let NetFilter { id, netdev, .. } = filter;
        if config.netdevs.iter().all(|n| n.id != *netdev) {
            let hint = did_you_mean("", netdev, config.netdevs.iter().map(|n| n.id.as_str()));
            return Err(Error::new(format!(
                "-object filter id={id}: there is no -netdev with id={netdev}{hint}"
            )));
        }
    }
    for device in &config.devices {
        if let Some(id) = device.netdevs().find(|id| config.netdevs.iter().all(|n| n.id != *id)) {
            let hint = did_you_mean("", id, config.netdevs.iter().map(|n| n.id.as_str()));
            return Err(Error::new(format!(
                "-device {}: there is no -netdev with id={id}{hint}",
                device.kind.name
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(options: &[(&str, &str)]) -> Result<Config, String> {
        let (mut config, mut asked) = (Config::default(), Asked::default());
        for (option, text) in options {
            match *option {
                "netdev" => netdev(text, &mut config, &mut asked),
                "nic" => nic(text, &mut config, &mut asked),
                "device" => device_arg::device(text).map(|d| config.devices.push(d)),
                _ => net(text, &mut asked),
            }
            .map_err(|e| e.to_string())?;
        }
        settle(&mut config, asked).map_err(|e| e.to_string())?;
        Ok(config)
    }

    /// Cards and what is behind them.
    fn cards(config: &Config) -> Vec<(&str, &str)> {
        config.devices.iter().map(|d| (d.kind.name, d.values.text("netdev").unwrap_or_default())).collect()
    }

    #[test]
    fn there_is_a_card_unless_the_user_says_otherwise() {
        let config = settled(&[]).unwrap();
        assert_eq!(cards(&config), [(config.machine.board.nic, "net0")]);
        assert!(matches!(config.netdevs[0].kind, NetKind::User(_)));
        for none in [("nic", "none"), ("net", "none"), ("netdev", "user,id=n0")] {
            assert!(cards(&settled(&[none]).unwrap()).is_empty(), "{none:?}");
        }
    }

    #[test]
    fn a_nic_is_a_card_with_what_is_behind_it() {
        let config = settled(&[
            ("nic", "user,model=virtio,mac=52:54:00:00:00:01,hostfwd=tcp::2222-:22,id=n"),
            ("nic", ""),
        ]);
        let config = config.unwrap();
        assert_eq!(cards(&config), [("virtio-net-pci", "n"), (config.machine.board.nic, "nic0")]);
        assert_eq!(config.devices[0].values.text("mac"), Some("52:54:00:00:00:01"));
        let NetKind::User(user) = &config.netdevs[0].kind else { panic!() };
        assert_eq!(user.host_forwards.len(), 1);
    }

    #[test]
    fn the_oldest_form_is_one_hub_or_one_cable() {
        let config = settled(&[("net", "nic,model=virtio"), ("net", "user,restrict=on")]).unwrap();
        assert_eq!(cards(&config), [("virtio-net-pci", "net0")]);
        let config =
            settled(&[("net", "nic"), ("net", "nic,macaddr=52:54:00:00:00:07"), ("net", "user")]).unwrap();
        assert_eq!(cards(&config).iter().map(|c| c.1).collect::<Vec<_>>(), ["hub0port1", "hub0port2"]);
        assert_eq!(config.netdevs[1].kind, NetKind::Hubport { hub: 0, netdev: Some("net0".into()) });
    }

    #[test]
    fn links_to_other_machines_are_read() {
        let kind =
            |text: &str| settled(&[("netdev", &format!("{text},id=n"))]).map(|c| c.netdevs[0].kind.clone());
        let inet = |host: &str, port| Address::Inet(host.into(), port);
        let unix = StreamConfig { address: Address::Unix("/run/x".into()), server: true, reconnect: 0 };
        assert_eq!(kind("stream,server=on,addr.type=unix,addr.path=/run/x").unwrap(), NetKind::Stream(unix));
        let tcp = StreamConfig { address: inet("::1", 5555), server: false, reconnect: 3 };
        assert_eq!(
            kind("stream,addr.type=inet,addr.host=::1,addr.port=5555,reconnect=3").unwrap(),
            NetKind::Stream(tcp)
        );
        let listen = StreamConfig { address: inet("", 1234), server: true, reconnect: 0 };
        assert_eq!(kind("socket,listen=:1234").unwrap(), NetKind::Stream(listen));
        let peer = DgramConfig::Peer { local: Some(inet("127.0.0.1", 2)), remote: inet("127.0.0.1", 1) };
        assert_eq!(kind("socket,udp=127.0.0.1:1,localaddr=127.0.0.1:2").unwrap(), NetKind::Dgram(peer));
        let group = DgramConfig::Multicast { group: "230.0.0.1:1234".parse().unwrap(), local: None };
        assert_eq!(kind("socket,mcast=230.0.0.1:1234").unwrap(), NetKind::Dgram(group.clone()));
        assert_eq!(
            kind("dgram,remote.type=inet,remote.host=230.0.0.1,remote.port=1234").unwrap(),
            NetKind::Dgram(group)
        );
        for (text, said) in [
            ("stream", "addr.type= is missing"),
            ("stream,addr.type=unix", "addr.path=PATH is missing"),
            ("stream,addr.path=/run/x", "addr.type=unix is missing"),
            ("socket", "one of listen="),
            ("socket,listen=:1,connect=:2", "one of listen="),
            ("socket,mcast=10.0.0.1:5", "no group's"),
            ("dgram,remote.type=fd", "inet or unix"),
        ] {
            let why = kind(text).unwrap_err();
            assert!(why.contains(said), "{text}: {why}");
        }
    }

    #[test]
    fn filters_are_read() {
        let dump = filter("filter-dump,id=f,netdev=n,file=x.pcap,maxlen=96").unwrap();
        assert_eq!(dump.kind, FilterKind::Dump { file: "x.pcap".into(), most: 96 });
        let bad = filter("filter-fault,id=f,netdev=n,loss=2%,delay=20ms,jitter=1.5,rate=10M,queue=rx,seed=3")
            .unwrap();
        let FilterKind::Fault(faults) = bad.kind else { panic!() };
        assert_eq!((faults.delay, faults.jitter), (Duration::from_millis(20), Duration::from_micros(1500)));
        assert_eq!(
            (faults.rate, faults.seed, faults.from_guest, faults.to_guest),
            (10_000_000, 3, false, true)
        );
        assert_eq!(faults.loss, "2".parse().unwrap());
        for (text, said) in [
            ("filter-dmup,id=f,netdev=n", "filter-dump"),
            ("filter-dump,id=f,netdev=n", "file=FILE is missing"),
            ("filter-fault,id=f,netdev=n,loss=200", "from 0 to 100"),
            ("filter-fault,id=f,netdev=n,delay=2h", "20ms"),
        ] {
            assert!(filter(text).unwrap_err().to_string().contains(said), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (options, said) in [
            (&[("netdev", "user")][..], "id=ID is missing"),
            (&[("nic", "usre")], "did you mean 'user'?"),
            (&[("netdev", "vde,id=n")], "vde: not supported yet"),
            (&[("nic", "tap,ifnmae=t0")], "did you mean 'ifname'?"),
            (&[("netdev", "user,id=n,hostfwd=tcp::22")], "hostfwd=tcp::22"),
            (&[("netdev", "user,id=n,restirct=on")], "restirct"),
            (&[("netdev", "user,id=n"), ("netdev", "user,id=n")], "two with the id 'n'"),
            (&[("netdev", "user,id=net1"), ("device", "virtio-net-pci,netdev=net")], "did you mean 'net1'?"),
            (&[("device", "virtio-net-pci,mac=1:2:3")], "not an Ethernet address"),
            (&[("nic", "model=edu")], "no network card"),
            (&[("nic", "model=e1001")], "e1001"),
        ] {
            let why = settled(options).unwrap_err();
            assert!(why.contains(said), "{options:?}: {why}");
        }
        assert!(settled(&[("nic", "model=help")]).unwrap_err().contains("virtio-net-pci"));
    }
}
