//! What the options ask for: ports with their properties, and whether that is what the mode allows.
use super::super::Error;
use super::super::net_arg::bits;
use super::super::props::Props;
use super::super::suggest::did_you_mean;
use super::{Mode, SwitchArgs};
use mynah_net::switch::{
    Acl, LEAST_QUEUE, MOST_PORTS, Mirror, PortConfig, USUAL_QUEUE, USUAL_STATIONS, Vlans, vlan_number,
};
use mynah_net::tap::{Origin, Script, TapConfig};
use mynah_net::user;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// The least rate, in bits in a second.
const LEAST_RATE: u64 = 1000;

/// Ports at one path.
#[derive(Debug)]
pub struct Group {
    /// Where they connect.
    pub path: PathBuf,
    /// A port for each guest.
    pub ports: Vec<PortConfig>,
}

/// A tap.
#[derive(Debug)]
pub struct TapPort {
    /// The interface.
    pub config: TapConfig,
    /// Its port.
    pub port: PortConfig,
}

/// All of it.
#[derive(Debug)]
pub struct Plan {
    /// The mode, as it was given or follows.
    pub mode: Mode,
    /// Guests' ports.
    pub guests: Vec<Group>,
    /// Taps.
    pub taps: Vec<TapPort>,
    /// The NAT.
    pub user: Option<(user::Config, PortConfig)>,
}

impl Plan {
    /// Reads the options.
    ///
    /// # Errors
    /// Says which is wrong, and what goes.
    pub fn of(args: &SwitchArgs) -> Result<Self, Error> {
        let guests = args.ports.iter().map(|text| guests(text)).collect::<Result<Vec<_>, _>>()?;
        if guests.is_empty() {
            return Err(Error::new("a --port PATH is missing: where guests connect (mynah switch --help)"));
        }
        let taps = args.taps.iter().map(|text| tap(text, args)).collect::<Result<Vec<_>, _>>()?;
        let mut user = args.user.as_deref().map(|text| nat(text, args)).transpose()?;
        let restricted = user.as_ref().is_some_and(|(config, _)| config.restrict);
        let bridged = taps.iter().any(|t| matches!(&t.config.origin, Origin::Open { bridge: Some(_), .. }));
        let mode = args.mode.unwrap_or(match (&user, taps.is_empty()) {
            (Some(_), _) if !restricted && !bridged => Mode::Nat,
            (_, true) => Mode::Private,
            _ if bridged => Mode::External,
            _ => Mode::Internal,
        });
        let refuse = |why: &str| Err(Error::new(format!("--mode {}: {why}", mode.name())));
        match mode {
            Mode::Private if !taps.is_empty() => {
                return refuse("a --tap lets the host in: leave it out, or say --mode internal");
            }
            Mode::Internal | Mode::External if taps.is_empty() => {
                return refuse("a --tap IFNAME is missing, by which the host is reached");
            }
            Mode::Internal | Mode::Nat if bridged => {
                return refuse("a --tap with bridge= leads to another network: say --mode external");
            }
            Mode::External if user.is_some() => {
                return refuse("--user answers DHCP, and would do so to the bridge's stations: leave it out");
            }
            Mode::Private | Mode::Internal if user.is_some() && !restricted => {
                return refuse(
                    "--user leads outside: say --user restrict=on (for DHCP alone), or --mode nat",
                );
            }
            Mode::Nat if restricted => {
                return refuse("--user restrict=on does not lead outside: leave it out, or the mode");
            }
            Mode::Nat if user.is_none() => user = Some(nat("", args)?),
            _ => {}
        }
        let plan = Self { mode, guests, taps, user };
        plan.check()?;
        Ok(plan)
    }

    fn ports(&self) -> impl Iterator<Item = &PortConfig> {
        let guests = self.guests.iter().flat_map(|g| &g.ports);
        guests.chain(self.taps.iter().map(|t| &t.port)).chain(self.user.iter().map(|(_, port)| port))
    }

    fn check(&self) -> Result<(), Error> {
        let names: Vec<&str> = self.ports().map(|p| p.name.as_str()).collect();
        if names.len() > MOST_PORTS {
            return Err(Error::new(format!("there are {} ports: at most {MOST_PORTS}", names.len())));
        }
        for (n, name) in names.iter().enumerate() {
            if names[..n].contains(name) {
                return Err(Error::new(format!("there are two ports with the name '{name}': give a name=")));
            }
        }
        for (n, group) in self.guests.iter().enumerate() {
            if self.guests[..n].iter().any(|g| g.path == group.path) {
                let path = group.path.display();
                return Err(Error::new(format!(
                    "--port {path}: it is there twice: say guests=N for several"
                )));
            }
        }
        for port in self.ports() {
            if let Some(Mirror::Port(name)) = &port.mirror
                && !names.contains(&name.as_str())
            {
                let hint = did_you_mean("", name, names.iter().copied());
                return Err(Error::new(format!("--port: mirror={name}: there is no such port{hint}")));
            }
        }
        Ok(())
    }
}

/// `--port`.
fn guests(text: &str) -> Result<Group, Error> {
    let mut props = Props::parse("--port", text, Some("path"));
    let path = props.text("path")?.filter(|p| !p.is_empty());
    let path = PathBuf::from(path.ok_or_else(|| props.error(format!("{text}: a path=PATH is missing")))?);
    props.rename(format!("--port {}", path.display()));
    let count = props.number("guests", 1, MOST_PORTS as u64)?.unwrap_or(1);
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let port = properties(&mut props, &stem, USUAL_STATIONS)?;
    props.finish()?;
    let named = |n| PortConfig { name: format!("{}.{n}", port.name), ..port.clone() };
    let ports = if count == 1 { vec![port] } else { (1..=count).map(named).collect() };
    Ok(Group { path, ports })
}

/// `--tap`.
fn tap(text: &str, args: &SwitchArgs) -> Result<TapPort, Error> {
    let mut props = Props::parse("--tap", text, Some("ifname"));
    let ifname = props.text("ifname")?.filter(|n| !n.is_empty());
    let ifname = ifname.ok_or_else(|| props.error(format!("{text}: a name is missing, such as mynah0")))?;
    props.rename(format!("--tap {ifname}"));
    let bridge = props.text("bridge")?;
    let address = match props.text("address")? {
        Some(text) => Some(address(&text).ok_or_else(|| {
            props.error(format!("address={text}: it is ADDRESS/PREFIX, such as 192.168.77.1/24"))
        })?),
        None => None,
    };
    if bridge.is_some() && address.is_some() {
        return Err(props.error("address= and bridge= exclude each other: the bridge has the address"));
    }
    let mut port = properties(&mut props, &ifname, args.stations as usize)?;
    port.uplink = true;
    props.finish()?;
    let (script, downscript) = (Script::No, Script::No);
    let origin = Origin::Open { ifname, queues: 1, script, downscript, bridge, address };
    // Guests' frames are plain, and so are the host's.
    Ok(TapPort { config: TapConfig { origin, vnet_hdr: Some(false) }, port })
}

/// `--user`.
fn nat(text: &str, args: &SwitchArgs) -> Result<(user::Config, PortConfig), Error> {
    let mut props = Props::parse("--user", text, None);
    let mut port = properties(&mut props, "nat", args.stations as usize)?;
    port.uplink = true;
    let rest = props.rest();
    let options = rest.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let config = user::Config::parse(options).map_err(|e| props.error(e))?;
    if config.guest_forwards.iter().any(|f| matches!(f.to, user::Behind::Chardev(_))) {
        return Err(
            props.error("guestfwd: a switch has no character devices: say unix:PATH or tcp:ADDRESS:PORT")
        );
    }
    Ok((config, port))
}

/// What all ports have.
fn properties(props: &mut Props, name: &str, stations: usize) -> Result<PortConfig, Error> {
    let mut port = PortConfig::named(&props.text("name")?.unwrap_or_else(|| name.into()));
    let vlan = match props.text("vlan")? {
        Some(text) => Some(vlan_number(&text).map_err(|why| props.error(format!("vlan={text}: {why}")))?),
        None => None,
    };
    port.vlans = match props.text("trunk")? {
        Some(text) => Vlans::trunk(vlan, &text).map_err(|why| props.error(format!("trunk={text}: {why}")))?,
        None => Vlans::access(vlan.unwrap_or(1)),
    };
    if let Some(text) = props.text("rate")? {
        let rate = bits(&text).and_then(|rate| match rate {
            LEAST_RATE.. => Ok(rate),
            _ => Err("the least is 1k".to_string()),
        });
        port.rate = Some(rate.map_err(|why| props.error(format!("rate={text}: {why}")))?);
    }
    port.burst = props.size("burst", 1, 1, 1 << 40)?;
    if port.burst.is_some() && port.rate.is_none() {
        return Err(props.error("burst= wants a rate="));
    }
    let queue = props.size("queue", 1, LEAST_QUEUE as u64, 1 << 30)?;
    port.queue = queue.map_or(USUAL_QUEUE, |n| n as usize);
    for text in props.texts("mac")? {
        let mac: mynah_net::Mac = text.parse().map_err(|why| props.error(format!("mac={text}: {why}")))?;
        if mac.is_multicast() {
            return Err(props.error(format!("mac={mac}: this is a group's address")));
        }
        port.macs.push(mac);
    }
    let mut acl = Acl::default();
    for rule in props.texts("rule")? {
        let why = |why: String| props.error(format!("rule={}", why.trim_start_matches("line 1: ")));
        acl.add(&rule).map_err(why)?;
    }
    for file in props.texts("acl")? {
        let why = |why: String| props.error(format!("acl={file}: {why}"));
        let text = std::fs::read_to_string(Path::new(&file)).map_err(|e| why(e.to_string()))?;
        acl.add(&text).map_err(why)?;
    }
    port.acl = acl;
    port.mirror = match props.text("mirror")?.as_deref() {
        None | Some("off") => None,
        Some("on") => Some(Mirror::All),
        Some(name) => Some(Mirror::Port(name.into())),
    };
    port.stations = props.number("stations", 1, 1_000_000)?.map_or(stations, |n| n as usize);
    Ok(port)
}

/// `ADDRESS/PREFIX`.
fn address(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    Some((address.parse().ok()?, prefix.parse().ok().filter(|p| (1..=31).contains(p))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: SwitchArgs,
    }

    fn plan(line: &str) -> Result<Plan, String> {
        let words = std::iter::once("switch").chain(line.split('|').map(str::trim).filter(|w| !w.is_empty()));
        let command = Command::try_parse_from(words).map_err(|e| e.to_string())?;
        Plan::of(&command.args).map_err(|e| e.to_string())
    }

    #[test]
    fn the_mode_follows_from_what_is_given() {
        let mode = |line: &str| plan(&format!("--port|/run/a|{line}")).map(|p| p.mode);
        assert_eq!(mode(""), Ok(Mode::Private));
        assert_eq!(mode("--user|restrict=on"), Ok(Mode::Private));
        assert_eq!(mode("--tap|m0,address=10.9.0.1/24"), Ok(Mode::Internal));
        assert_eq!(
            mode("--tap|m0,address=10.9.0.1/24|--user|net=10.9.0.0/24,restrict=on"),
            Ok(Mode::Internal)
        );
        assert_eq!(mode("--tap|m0,bridge=br0"), Ok(Mode::External));
        assert_eq!(mode("--mode|external|--tap|m0"), Ok(Mode::External));
        assert_eq!(mode("--user|hostfwd=tcp::2222-:22"), Ok(Mode::Nat));
        assert_eq!(mode("--mode|nat"), Ok(Mode::Nat));
        assert!(plan("--port|/run/a|--mode|nat").unwrap().user.is_some());
    }

    #[test]
    fn what_a_mode_excludes_is_said() {
        for (line, said) in [
            ("--mode|private|--tap|m0", "a --tap lets the host in"),
            ("--mode|internal", "a --tap IFNAME is missing"),
            ("--mode|external", "a --tap IFNAME is missing"),
            ("--mode|internal|--tap|m0,bridge=br0", "say --mode external"),
            ("--tap|m0,bridge=br0|--user|net=10.0.0.0/8", "--user answers DHCP"),
            ("--mode|internal|--tap|m0|--user|ipv6=off", "--user restrict=on"),
            ("--mode|nat|--user|restrict=on", "does not lead outside"),
            ("--mode|bridged", "possible values"),
            ("--stats|/run/c", "cannot be used with"),
            ("--tap|m0,bridge=b,address=10.0.0.1/8", "exclude each other"),
            ("--tap|m0,address=10.0.0.1", "ADDRESS/PREFIX"),
            ("--user|hostfwd=tcp::22", "hostfwd=tcp::22"),
        ] {
            let why = plan(&format!("--port|/run/a|{line}")).unwrap_err();
            assert!(why.contains(said), "{line}: {why}");
        }
        assert!(plan("").unwrap_err().contains("--port PATH is missing"));
    }

    #[test]
    fn ports_have_their_properties() {
        let plan = plan(
            "--port|/run/a.sock,vlan=10,rate=10M,queue=256K,mac=52:54:00:00:00:01,mac=52:54:00:00:00:02,\
             rule=deny tcp to any port 22,rule=default deny out|\
             --port|path=/run/lan,name=lan,guests=3,trunk=20:30-31,vlan=5|\
             --port|/run/m,mirror=on|--port|/run/n,mirror=a|--user|vlan=10,rate=1G,net=10.9.0.0/24",
        );
        let plan = plan.unwrap();
        let names: Vec<_> = plan.ports().map(|p| p.name.clone()).collect();
        assert_eq!(names, ["a", "lan.1", "lan.2", "lan.3", "m", "n", "nat"]);
        let a = &plan.guests[0].ports[0];
        assert_eq!((a.rate, a.queue, a.macs.len()), (Some(10_000_000), 256 << 10, 2));
        assert_eq!(a.vlans, Vlans::access(10));
        assert!(!a.acl.is_empty() && !a.uplink);
        let lan = &plan.guests[1].ports[2];
        assert_eq!(lan.vlans, Vlans::trunk(Some(5), "20:30:31").unwrap());
        assert_eq!(plan.guests[2].ports[0].mirror, Some(Mirror::All));
        assert_eq!(plan.guests[3].ports[0].mirror, Some(Mirror::Port("a".into())));
        let (config, nat) = plan.user.unwrap();
        assert_eq!(
            (config.host.to_string().as_str(), nat.vlans, nat.uplink),
            ("10.9.0.2", Vlans::access(10), true)
        );
        for (port, said) in [
            ("name=x", "path=PATH is missing"),
            ("/run/a,vlan=4095", "1 to 4094"),
            ("/run/a,vlan=3,trunk=1-5", "VLAN 3"),
            ("/run/a,rate=10", "the least is 1k"),
            ("/run/a,rate=ten", "such as 10M"),
            ("/run/a,burst=9k", "wants a rate"),
            ("/run/a,queue=1", "from 128.1 KiB"),
            ("/run/a,mac=1:2", "not an Ethernet address"),
            ("/run/a,rule=permit", "rule='permit': a rule begins with"),
            ("/run/a,acl=/no/such/file", "acl=/no/such/file: No such file"),
            ("/run/a,mirror=bb|--port|/run/b", "did you mean 'b'?"),
            ("/run/a|--port|/tmp/a", "two ports with the name 'a'"),
            ("/run/a|--port|/run/a,name=b", "say guests=N"),
            ("/run/a,guests=300", "from 1 to 256"),
            ("/run/a,guests=200|--port|/run/b,guests=200", "at most 256"),
            ("/run/a,vlna=3", "did you mean 'vlan'?"),
        ] {
            let why = super::tests::plan(&format!("--port|{port}|")).unwrap_err();
            assert!(why.contains(said), "{port}: {why}");
        }
    }
}
