//! `-netdev`, `-nic` and `-net`: what is behind network cards, and cards with it.
//!
//! `-netdev` makes a back end, to which a `-device` refers. `-nic` makes both at once. `-net` is the oldest form: all
//! cards and back ends that it makes are on one hub. With none of them there is a card on the NAT, as in QEMU, unless
//! `-nodefaults` is given.
use super::Error;
use super::device_arg;
use super::props::Props;
use super::suggest::did_you_mean;
use crate::config::{Config, NetKind, Netdev};
use mynah_devices::kind::Chosen;
use mynah_net::user;

/// The hub of `-net`.
const HUB: u32 = 0;

/// Back ends that there are.
const KINDS: &[&str] = &["user", "hubport"];
/// Those of QEMU's that are refused by name.
const LATER: &[&str] = &[
    "tap",
    "bridge",
    "socket",
    "stream",
    "dgram",
    "l2tpv3",
    "vde",
    "vhost-user",
    "vhost-vdpa",
    "passt",
    "netmap",
    "af-xdp",
    "dump",
];

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

/// Which back end it is.
fn kind(props: &mut Props, text: &str, usual: bool) -> Result<&'static str, Error> {
    let given = props.text("type")?;
    if given.as_deref().is_some_and(|k| k == "help" || k == "?") {
        return Err(Error::info(format!("Available netdev backend types:\n{}\n", KINDS.join("\n"))));
    }
    let given = match given {
        None if usual => "user".into(),
        given => given.unwrap_or_default(),
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
    // What has been asked for is no option of the network's.
    let rest = props.rest();
    let options = rest.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let config = user::Config::parse(options).map_err(|e| props.error(e))?;
    Ok(NetKind::User(Box::new(config)))
}

fn name(kind: &NetKind) -> &'static str {
    match kind {
        NetKind::User(_) => "user",
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
    for card in cards {
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
        // A value may hold commas.
        let quoted = |value: &str| value.replace(',', ",,");
        let mut device = format!("{},netdev={}", quoted(model), quoted(&netdev));
        let mac = card.mac.map(|mac| ("mac", mac));
        for (key, value) in mac.into_iter().chain(card.own) {
            device += &format!(",{key}={}", quoted(&value));
        }
        let chosen = device_arg::device(&device).map_err(|e| Error::new(format!("{}: {e}", card.option)))?;
        if !chosen.is_card() {
            return Err(Error::new(format!(
                "{}: '{model}' is no network card ('-nic model=help')",
                card.option
            )));
        }
        config.devices.push(chosen);
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
    fn what_is_wrong_is_said() {
        for (options, said) in [
            (&[("netdev", "user")][..], "id=ID is missing"),
            (&[("nic", "usre")], "did you mean 'user'?"),
            (&[("netdev", "tap,id=n")], "tap: not supported yet"),
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
