//! Rules of a port: what may pass. The first that fits decides; without one that does, what `default` says.
//!
//! ```text
//! RULE    = allow|deny [in|out] [KIND] [from END] [to END]
//!         | default allow|deny [in|out]
//! KIND    = any | arp | ip | ip6 | tcp | udp | icmp | icmp6 | proto NUMBER | ether NUMBER
//! END     = any | ADDRESS[/PREFIX] [port PORT[-PORT]] | port PORT[-PORT]
//! ```
//!
//! `in` is from the guest into the switch, `out` the other way; without either it is `in`. `ip` is IPv4, `ip6` IPv6;
//! `tcp`, `udp` and `proto` are of both. A `#` begins a comment. Numbers may be hexadecimal (0x88cc).
//!
//! A fragment that is not the first has no ports: rules with ports do not fit it. A packet whose headers cannot be
//! followed to its transport passes no port that has rules for IP in that direction.
use super::packet::{Ip, Packet};
use crate::numbers::{ether, ip};
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// The most rules of a port.
pub const MOST_RULES: usize = 1024;

/// Which way a frame goes, seen from the guest at the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Into the switch.
    In,
    /// Out of it.
    Out,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Any,
    Ether(u16),
    Protocol(u8),
}

/// An end of a packet's way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct End {
    network: Option<(IpAddr, u8)>,
    ports: Option<RangeInclusive<u16>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    way: Way,
    kind: Kind,
    from: End,
    to: End,
}

/// A port's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    rules: Vec<Rule>,
    default_in: bool,
    default_out: bool,
}

impl Default for Acl {
    fn default() -> Self {
        Self { rules: Vec::new(), default_in: true, default_out: true }
    }
}

impl Acl {
    /// Reads rules, one in each line or with `;` between.
    ///
    /// # Errors
    /// Says which rule is wrong, and what with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut acl = Self::default();
        acl.add(text)?;
        Ok(acl)
    }

    /// Adds rules behind those that are there.
    ///
    /// # Errors
    /// Says which rule is wrong, and what with it.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        for (n, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            for rule in line.split(';').map(str::trim).filter(|r| !r.is_empty()) {
                self.add_one(rule).map_err(|why| format!("line {}: '{rule}': {why}", n + 1))?;
            }
        }
        if self.rules.len() > MOST_RULES {
            return Err(format!("there are {} rules: at most {MOST_RULES}", self.rules.len()));
        }
        Ok(())
    }

    fn add_one(&mut self, text: &str) -> Result<(), String> {
        let mut words = text.split_whitespace().peekable();
        let word = words.next().unwrap_or_default();
        let verdict = |word: Option<&str>| match word {
            Some("allow") => Ok(true),
            Some("deny") => Ok(false),
            _ => Err("a rule begins with allow, deny, or default allow|deny".to_string()),
        };
        if word == "default" {
            let allow = verdict(words.next())?;
            match words.next() {
                None | Some("in") => self.default_in = allow,
                Some("out") => self.default_out = allow,
                Some(other) => return Err(format!("'{other}' is neither in nor out")),
            }
            return words.next().map_or(Ok(()), |w| Err(format!("'{w}' is one word too many")));
        }
        let allow = verdict(Some(word))?;
        let way = match words.peek() {
            Some(&"out") => Way::Out,
            _ => Way::In,
        };
        words.next_if(|w| matches!(*w, "in" | "out"));
        let mut kind = Kind::Any;
        if let Some(word) = words.next_if(|w| !matches!(*w, "from" | "to")) {
            let mut number = |most: u32| {
                let text = words.next().ok_or(format!("'{word}' wants a number"))?;
                let read = match text.strip_prefix("0x") {
                    Some(hex) => u32::from_str_radix(hex, 16),
                    None => text.parse(),
                };
                read.ok().filter(|n| *n <= most).ok_or(format!("'{text}' is no number up to {most}"))
            };
            kind = match word {
                "any" => Kind::Any,
                "arp" => Kind::Ether(ether::ARP),
                "ip" => Kind::Ether(ether::IPV4),
                "ip6" => Kind::Ether(ether::IPV6),
                "tcp" => Kind::Protocol(ip::TCP),
                "udp" => Kind::Protocol(ip::UDP),
                "icmp" => Kind::Protocol(ip::ICMP),
                "icmp6" => Kind::Protocol(ip::ICMPV6),
                "proto" => Kind::Protocol(number(255)? as u8),
                "ether" => Kind::Ether(number(0xffff)? as u16),
                other => {
                    return Err(format!(
                        "'{other}' is none of any, arp, ip, ip6, tcp, udp, icmp, icmp6, proto N, ether N"
                    ));
                }
            };
        }
        let (mut from, mut to) = (None, None);
        while let Some(word) = words.next() {
            let end = match word {
                "from" if from.is_none() => &mut from,
                "to" if to.is_none() => &mut to,
                other => return Err(format!("'{other}' is where 'from', 'to' or the end should be")),
            };
            let mut found = End::default();
            let mut said = false;
            if let Some(text) = words.next_if(|w| !matches!(*w, "port" | "from" | "to")) {
                said = true;
                if text != "any" {
                    found.network = Some(network(text)?);
                }
            }
            if words.next_if_eq(&"port").is_some() {
                said = true;
                found.ports = Some(ports(words.next().ok_or("a port is missing")?)?);
            }
            if !said {
                return Err(format!("'{word}' wants an address, a port, or any"));
            }
            *end = Some(found);
        }
        let (from, to) = (from.unwrap_or_default(), to.unwrap_or_default());
        let with_ports = from.ports.is_some() || to.ports.is_some();
        if with_ports && !matches!(kind, Kind::Protocol(p) if ip::has_ports(p)) {
            return Err("ports are tcp's and udp's".into());
        }
        if matches!(kind, Kind::Ether(t) if t != ether::IPV4 && t != ether::IPV6)
            && (from.network.is_some() || to.network.is_some())
        {
            return Err("addresses are ip's and ip6's".into());
        }
        self.rules.push(Rule { allow, way, kind, from, to });
        Ok(())
    }

    /// Whether there is nothing that could stop a frame.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.default_in && self.default_out
    }

    /// Whether a frame without tags, of which `rest` begins with the type, may pass.
    pub fn allows(&self, way: Way, rest: &[u8]) -> bool {
        if self.is_empty() {
            return true;
        }
        let packet = Packet::read(rest);
        for rule in self.rules.iter().filter(|r| r.way == way) {
            if matches!(packet, Packet::Broken(_)) && rule.is_of_ip() {
                return false;
            }
            if rule.fits(&packet) {
                return rule.allow;
            }
        }
        if way == Way::In { self.default_in } else { self.default_out }
    }
}

impl Rule {
    fn is_of_ip(&self) -> bool {
        matches!(self.kind, Kind::Protocol(_) | Kind::Ether(ether::IPV4 | ether::IPV6))
            || self.from.network.is_some()
            || self.to.network.is_some()
    }

    fn fits(&self, packet: &Packet) -> bool {
        let ip = match packet {
            Packet::Ip(ip) => Some(ip),
            _ => None,
        };
        let kind = match (&self.kind, packet) {
            (Kind::Any, _) => true,
            (Kind::Ether(wanted), Packet::Other(kind) | Packet::Broken(kind)) => wanted == kind,
            (Kind::Ether(wanted), Packet::Ip(Ip { from, .. })) => {
                *wanted == if from.is_ipv4() { ether::IPV4 } else { ether::IPV6 }
            }
            (Kind::Protocol(wanted), Packet::Ip(ip)) => ip.protocol == *wanted,
            (Kind::Protocol(_), _) => false,
        };
        kind && self.from.fits(ip.map(|ip| ip.from), ip.and_then(|ip| Some(ip.ports?.0)))
            && self.to.fits(ip.map(|ip| ip.to), ip.and_then(|ip| Some(ip.ports?.1)))
    }
}

impl End {
    fn fits(&self, address: Option<IpAddr>, port: Option<u16>) -> bool {
        let network = self.network.is_none_or(|(network, prefix)| match (network, address) {
            (IpAddr::V4(n), Some(IpAddr::V4(a))) => {
                let shift = 32 - u32::from(prefix);
                (n.to_bits() ^ a.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(n), Some(IpAddr::V6(a))) => {
                let shift = 128 - u32::from(prefix);
                (n.to_bits() ^ a.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        });
        network && self.ports.as_ref().is_none_or(|range| port.is_some_and(|p| range.contains(&p)))
    }
}

/// `ADDRESS[/PREFIX]`.
fn network(text: &str) -> Result<(IpAddr, u8), String> {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
    let address: IpAddr = address.parse().map_err(|_| format!("'{address}' is no address"))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => most,
        Some(p) => {
            p.parse().ok().filter(|n| *n <= most).ok_or(format!("'{p}' is no prefix of 0 to {most} bits"))?
        }
    };
    Ok((address, prefix))
}

/// `PORT[-PORT]`.
fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) if first <= last => Ok(first..=last),
        _ => Err(format!("'{text}' is no port, nor PORT-PORT")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(to: [u8; 4], port: u16) -> Vec<u8> {
        let mut bytes = vec![8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 5];
        bytes.extend(to);
        bytes.extend([0x30, 0x39]);
        bytes.extend(port.to_be_bytes());
        bytes.extend([0, 8, 0, 0]);
        bytes
    }

    const LLDP: [u8; 6] = [0x88, 0xcc, 0, 0, 0, 0];
    const ARP: [u8; 4] = [8, 6, 0, 1];

    #[test]
    fn the_first_rule_that_fits_decides() {
        let acl = Acl::parse(
            "# names, and one network\n\
             allow udp to 10.0.0.3 port 53; deny ip to 10.0.0.0/24\n\
             allow ip from 10.0.0.5   # nobody else\n\
             allow arp\n\
             default deny",
        );
        let acl = acl.unwrap();
        let may = |rest: &[u8]| acl.allows(Way::In, rest);
        assert!(may(&udp([10, 0, 0, 3], 53)) && may(&ARP) && may(&udp([8, 8, 8, 8], 99)));
        assert!(!may(&udp([10, 0, 0, 3], 54)) && !may(&udp([10, 0, 0, 9], 53)) && !may(&LLDP));
        assert!(acl.allows(Way::Out, &LLDP), "the other way has rules of its own");
        let mut other = udp([8, 8, 8, 8], 99);
        other[17] = 6;
        assert!(!may(&other), "from another address");
    }

    #[test]
    fn what_cannot_be_read_does_not_slip_through() {
        let acl = Acl::parse("deny tcp to any port 22").unwrap();
        let mut tcp = udp([10, 0, 0, 9], 22);
        tcp[11] = 6;
        assert!(!acl.allows(Way::In, &tcp));
        assert!(!acl.allows(Way::In, &tcp[..23]), "its ports are cut off");
        assert!(acl.allows(Way::In, &udp([10, 0, 0, 9], 22)) && acl.allows(Way::In, &ARP));
        assert!(acl.allows(Way::Out, &tcp));
        let acl = Acl::parse("deny tcp to port 22; allow ip").unwrap();
        assert!(!acl.allows(Way::In, &tcp[..23]), "nor by a rule that comes later");
        assert!(!Acl::parse("deny any").unwrap().allows(Way::In, &tcp[..23]));
        let acl = Acl::parse("deny out ether 0x88cc; deny out ip6 from fe80::/10").unwrap();
        assert!(!acl.allows(Way::Out, &LLDP) && acl.allows(Way::In, &LLDP) && acl.allows(Way::Out, &tcp));
    }

    #[test]
    fn networks_fit_by_their_prefix() {
        for (rule, fits) in [
            ("deny ip to 0.0.0.0/0", true),
            ("deny ip to 10.0.0.9", true),
            ("deny ip to 10.0.0.8/31", true),
            ("deny ip to 10.0.0.10/31", false),
            ("deny any to ::/0", false),
            ("deny udp to port 50-60", true),
            ("deny udp from port 50-60", false),
            ("deny proto 17", true),
            ("deny proto 0x12", false),
        ] {
            assert_eq!(Acl::parse(rule).unwrap().allows(Way::In, &udp([10, 0, 0, 9], 53)), !fits, "{rule}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, said) in [
            ("permit ip", "begins with allow, deny"),
            ("allow ip\ndeny tpc", "line 2: 'deny tpc': 'tpc' is none of"),
            ("deny ip to", "'to' wants an address"),
            ("deny ip to 10.0.0.0/33", "no prefix"),
            ("deny ip to port 5", "ports are tcp's"),
            ("deny arp from 10.0.0.1", "addresses are ip's"),
            ("deny tcp to port 9-3", "no port"),
            ("deny tcp from any from any", "where 'from'"),
            ("default", "begins with"),
            ("default deny all", "neither in nor out"),
            ("deny ether 0x10000", "no number up to 65535"),
        ] {
            let why = Acl::parse(text).unwrap_err();
            assert!(why.contains(said), "{text}: {why}");
        }
        assert!(Acl::parse(&"deny arp\n".repeat(MOST_RULES + 1)).unwrap_err().contains("at most"));
        assert!(Acl::parse("").unwrap().is_empty());
    }
}
