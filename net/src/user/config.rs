//! What a user may say of the network, with QEMU's names and defaults (`-netdev user`).
use serde::Serialize;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use thiserror::Error;

/// What is wrong with an option.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// There is none of that name.
    #[error("the user network has no option '{0}'")]
    Unknown(String),
    /// Its value is not what it takes.
    #[error("{name}={value}: {why}")]
    Value {
        /// The option's name.
        name: String,
        /// What was given.
        value: String,
        /// What is wrong.
        why: String,
    },
}

/// A port of the host's that leads to the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostForward {
    /// UDP, or else TCP.
    pub udp: bool,
    /// Where the host listens; port 0 has it choose one.
    pub host: SocketAddr,
    /// Where it leads: the address the guest has leased if unspecified.
    pub guest: SocketAddr,
}

/// What is behind an address that only the guest sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behind {
    /// A TCP server.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
    /// A program, started by `/bin/sh -c` for each connection, with the connection as standard input and output.
    Command(String),
    /// What the machine has by this name ([`Dial`]): a character device.
    Chardev(String),
}

/// Makes connections to what [`Behind::Chardev`] names.
pub trait Dial: Send + Sync {
    /// The network's end of a new connection to `name`.
    ///
    /// # Errors
    /// There is nothing of that name, or the host does not give a socket.
    fn dial(&self, name: &str) -> std::io::Result<socket2::Socket>;
}

/// A TCP port, seen by the guest only, that leads to something of the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestForward {
    /// Where the guest sees it.
    pub server: SocketAddr,
    /// What is there.
    pub to: Behind,
}

/// The network and what it offers.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Whether there is IPv4.
    pub ipv4: bool,
    /// The network's first address and length of prefix.
    pub net: (Ipv4Addr, u8),
    /// The gateway, behind which is the host's loopback.
    pub host: Ipv4Addr,
    /// The name server.
    pub dns: Ipv4Addr,
    /// The first of the addresses for DHCP.
    pub dhcp_start: Ipv4Addr,
    /// Whether there is IPv6.
    pub ipv6: bool,
    /// The prefix and its length.
    pub net6: (Ipv6Addr, u8),
    /// The gateway.
    pub host6: Ipv6Addr,
    /// The name server.
    pub dns6: Ipv6Addr,
    /// Keeps the guest from everything but forwards, DHCP and TFTP.
    pub restrict: bool,
    /// The name DHCP gives a guest.
    pub hostname: Option<String>,
    /// The domain DHCP gives a guest.
    pub domain: Option<String>,
    /// The domains a guest looks names up in.
    pub search: Vec<String>,
    /// The folder of the TFTP server.
    pub tftp: Option<PathBuf>,
    /// The name DHCP gives the TFTP server.
    pub tftp_name: Option<String>,
    /// The file to boot from.
    pub bootfile: Option<String>,
    /// The folder that the guest sees as a Windows share, by Samba's smbd.
    pub smb: Option<PathBuf>,
    /// Where that is.
    pub smb_server: Ipv4Addr,
    /// Ports of the host's.
    pub host_forwards: Vec<HostForward>,
    /// Ports of the network's.
    pub guest_forwards: Vec<GuestForward>,
    /// The longest IP packet on the link, in bytes.
    pub mtu: u16,
    /// The most flows of each protocol at a time.
    pub max_flows: usize,
    /// Where the host's name servers stand.
    pub resolv_conf: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ipv4: true,
            net: (Ipv4Addr::new(10, 0, 2, 0), 24),
            host: Ipv4Addr::new(10, 0, 2, 2),
            dns: Ipv4Addr::new(10, 0, 2, 3),
            dhcp_start: Ipv4Addr::new(10, 0, 2, 15),
            ipv6: true,
            net6: (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 64),
            host6: Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2),
            dns6: Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 3),
            restrict: false,
            hostname: None,
            domain: None,
            search: Vec::new(),
            tftp: None,
            tftp_name: None,
            bootfile: None,
            smb: None,
            smb_server: Ipv4Addr::new(10, 0, 2, 4),
            host_forwards: Vec::new(),
            guest_forwards: Vec::new(),
            mtu: 1500,
            max_flows: 4096,
            resolv_conf: "/etc/resolv.conf".into(),
        }
    }
}

impl Config {
    /// Reads options as QEMU's `-netdev user` has them, in any order. What is not named has QEMU's default, which for
    /// addresses depends on `net`.
    pub fn parse<'a>(options: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let (mut host, mut dns, mut start, mut smb) = (None, None, None, None);
        let (mut host6, mut dns6) = (None, None);
        for (name, value) in options {
            let bad =
                |why: &str| ConfigError::Value { name: name.into(), value: value.into(), why: why.into() };
            let v4 = || value.parse::<Ipv4Addr>().map_err(|_| bad("it is no IPv4 address"));
            let v6 = || value.parse::<Ipv6Addr>().map_err(|_| bad("it is no IPv6 address"));
            let switch = || match value {
                "on" | "yes" | "y" | "true" => Ok(true),
                "off" | "no" | "n" | "false" => Ok(false),
                _ => Err(bad("it is on or off")),
            };
            match name {
                "net" => config.net = net(value).map_err(|why| bad(&why))?,
                "host" => host = Some(v4()?),
                "dns" => dns = Some(v4()?),
                "dhcpstart" => start = Some(v4()?),
                "ipv4" => config.ipv4 = switch()?,
                "ipv6" => config.ipv6 = switch()?,
                "ipv6-net" => {
                    let (prefix, len) = value.split_once('/').unwrap_or((value, "64"));
                    let prefix = prefix.parse().map_err(|_| bad("it is no IPv6 prefix"))?;
                    let len = len.parse().ok().filter(|n| (8..=126).contains(n));
                    config.net6 = (prefix, len.ok_or_else(|| bad("a prefix has 8 to 126 bits"))?);
                }
                "ipv6-prefix" => config.net6.0 = v6()?,
                "ipv6-prefixlen" => {
                    let len = value.parse().ok().filter(|n| (8..=126).contains(n));
                    config.net6.1 = len.ok_or_else(|| bad("a prefix has 8 to 126 bits"))?;
                }
                "ipv6-host" => host6 = Some(v6()?),
                "ipv6-dns" => dns6 = Some(v6()?),
                "restrict" => config.restrict = switch()?,
                "hostname" => config.hostname = Some(short(value).ok_or_else(|| bad("it is too long"))?),
                "domainname" => config.domain = Some(short(value).ok_or_else(|| bad("it is too long"))?),
                "dnssearch" => config.search.push(short(value).ok_or_else(|| bad("it is too long"))?),
                "tftp" => config.tftp = Some(value.into()),
                "tftp-server-name" => {
                    config.tftp_name = Some(short(value).ok_or_else(|| bad("it is too long"))?);
                }
                "bootfile" => {
                    let fits = Some(value.to_string()).filter(|v| v.len() <= 127);
                    config.bootfile = Some(fits.ok_or_else(|| bad("it is longer than 127 bytes"))?);
                }
                "smb" => config.smb = Some(value.into()),
                "smbserver" => smb = Some(v4()?),
                "hostfwd" => config.host_forwards.push(host_forward(value).map_err(|why| bad(&why))?),
                "guestfwd" => config.guest_forwards.push(guest_forward(value).map_err(|why| bad(&why))?),
                _ => return Err(ConfigError::Unknown(name.into())),
            }
        }
        let first = u32::from(config.net.0);
        let at = |n: u32| Ipv4Addr::from(first.wrapping_add(n));
        config.host = host.unwrap_or(at(2));
        config.dns = dns.unwrap_or(at(3));
        config.dhcp_start = start.unwrap_or(at(15));
        config.smb_server = smb.unwrap_or(at(4));
        let first = u128::from(config.net6.0) & mask6(config.net6.1);
        config.net6.0 = first.into();
        config.host6 = host6.unwrap_or(Ipv6Addr::from(first | 2));
        config.dns6 = dns6.unwrap_or(Ipv6Addr::from(first | 3));
        let inside = |name: &str, address: Ipv4Addr| {
            let why = "it is not in the network".into();
            if config.has(address.into()) {
                Ok(())
            } else {
                Err(ConfigError::Value { name: name.into(), value: address.to_string(), why })
            }
        };
        if config.ipv4 {
            inside("host", config.host)?;
            inside("dns", config.dns)?;
            inside("dhcpstart", config.dhcp_start)?;
            inside("smbserver", config.smb_server)?;
        }
        if config.host == config.dns {
            return Err(ConfigError::Value {
                name: "dns".into(),
                value: config.dns.to_string(),
                why: "it is the gateway's".into(),
            });
        }
        Ok(config)
    }

    /// Whether an address is the network's.
    pub fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => {
                let mask = self.mask();
                u32::from(a) & mask == u32::from(self.net.0) & mask
            }
            IpAddr::V6(a) => {
                let mask = mask6(self.net6.1);
                u128::from(a) & mask == u128::from(self.net6.0) & mask
            }
        }
    }

    /// The network's mask.
    pub fn mask(&self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.net.1)).unwrap_or(0)
    }

    /// The network's broadcast address.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.net.0) | !self.mask())
    }
}

fn mask6(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

fn short(value: &str) -> Option<String> {
    (value.len() <= 255).then(|| value.to_string())
}

/// `addr[/mask]`; without a mask, as the address' class was (QEMU's rule).
fn net(value: &str) -> Result<(Ipv4Addr, u8), String> {
    let (address, mask) = match value.split_once('/') {
        Some((a, m)) => (a, Some(m)),
        None => (value, None),
    };
    let address: Ipv4Addr = address.parse().map_err(|_| "it is no IPv4 network")?;
    let len = match mask {
        None if address.octets()[0] < 0x80 => 8,
        None if address.octets()[0] < 0xc0 => 16,
        None => 24,
        Some(mask) => match (mask.parse::<u8>(), mask.parse::<Ipv4Addr>()) {
            (Ok(n), _) => n,
            (_, Ok(dotted)) if u32::from(dotted).leading_ones() == u32::from(dotted).count_ones() => {
                u32::from(dotted).leading_ones() as u8
            }
            _ => return Err("its mask is none".into()),
        },
    };
    if !(4..=30).contains(&len) {
        return Err("a network has 4 to 30 bits of prefix".into());
    }
    let mask = u32::MAX << (32 - len);
    Ok((Ipv4Addr::from(u32::from(address) & mask), len))
}

/// `addr:port`, with the address empty for any, and that of IPv6 in brackets.
fn end(value: &str, v6: bool) -> Result<SocketAddr, String> {
    let (address, port) = value.rsplit_once(':').ok_or("a port is missing")?;
    let port = port.parse().map_err(|_| format!("'{port}' is no port"))?;
    let address = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    let address: IpAddr = match address {
        "" if v6 => Ipv6Addr::UNSPECIFIED.into(),
        "" => Ipv4Addr::UNSPECIFIED.into(),
        _ => address.parse().map_err(|_| format!("'{address}' is no address"))?,
    };
    Ok(SocketAddr::new(address, port))
}

/// `[tcp|udp]:[hostaddr]:hostport-[guestaddr]:guestport`.
pub(super) fn host_forward(value: &str) -> Result<HostForward, String> {
    let (kind, rest) = value.split_once(':').ok_or("it is [tcp|udp]:[host]:port-[guest]:port")?;
    let udp = match kind {
        "" | "tcp" => false,
        "udp" => true,
        _ => return Err(format!("'{kind}' is neither tcp nor udp")),
    };
    let (host, guest) = rest.split_once('-').ok_or("where it leads to is missing, after '-'")?;
    let host = end(host, false)?;
    let guest = end(guest, false)?;
    if guest.port() == 0 {
        return Err("a guest has no port 0".into());
    }
    Ok(HostForward { udp, host, guest })
}

/// `[tcp]:server:port-cmd:program`, `-tcp:host:port`, `-unix:path`, `-chardev:id`.
pub(super) fn guest_forward(value: &str) -> Result<GuestForward, String> {
    let (kind, rest) = value.split_once(':').ok_or("it is [tcp]:server:port-device")?;
    if !matches!(kind, "" | "tcp") {
        return Err(format!("'{kind}' is not tcp"));
    }
    let (server, to) = rest.split_once('-').ok_or("where it leads to is missing, after '-'")?;
    let server = end(server, false)?;
    if server.port() == 0 || server.ip().is_unspecified() {
        return Err("it wants an address and a port of the network's".into());
    }
    let to = match to.split_once(':') {
        Some((kind @ ("cmd" | "unix"), _)) if cfg!(windows) => {
            return Err(format!("{kind}: is there on Unix hosts only: say tcp:ADDRESS:PORT"));
        }
        Some(("cmd", program)) => Behind::Command(program.into()),
        Some(("unix", path)) => Behind::Unix(path.into()),
        Some(("chardev", id)) if !id.is_empty() => Behind::Chardev(id.into()),
        Some(("tcp", address)) => {
            let mut found = address.to_socket_addrs().map_err(|e| format!("'{address}': {e}"))?;
            Behind::Tcp(found.next().ok_or_else(|| format!("'{address}' has no address"))?)
        }
        _ => return Err(format!("'{to}' is none of chardev:, cmd:, tcp: and unix:")),
    };
    Ok(GuestForward { server, to })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_the_network() {
        let c = Config::parse([("net", "192.168.76.0/24"), ("hostname", "box")]).unwrap();
        assert_eq!(c.host.to_string(), "192.168.76.2");
        assert_eq!(c.dns.to_string(), "192.168.76.3");
        assert_eq!(c.dhcp_start.to_string(), "192.168.76.15");
        assert_eq!(c.broadcast().to_string(), "192.168.76.255");
        let c = Config::parse([("net", "10.1.2.3/255.255.0.0"), ("dhcpstart", "10.1.9.9")]).unwrap();
        assert_eq!((c.net.0.to_string().as_str(), c.net.1), ("10.1.0.0", 16));
        assert_eq!(c.dhcp_start.to_string(), "10.1.9.9");
        assert_eq!(Config::parse([("net", "192.168.1.0")]).unwrap().net.1, 24);
        let c = Config::parse([("ipv6-net", "fd00:1::/64")]).unwrap();
        assert_eq!(c.host6.to_string(), "fd00:1::2");
    }

    #[test]
    fn forwards_are_read() {
        let f = host_forward("tcp::2222-:22").unwrap();
        assert_eq!(
            (f.udp, f.host.to_string(), f.guest.to_string()),
            (false, "0.0.0.0:2222".into(), "0.0.0.0:22".into())
        );
        let f = host_forward("udp:127.0.0.1:0-10.0.2.16:69").unwrap();
        assert_eq!(
            (f.udp, f.host.to_string(), f.guest.to_string()),
            (true, "127.0.0.1:0".into(), "10.0.2.16:69".into())
        );
        let f = guest_forward("tcp:10.0.2.100:80-cmd:cat -u").unwrap();
        assert_eq!(f.to, Behind::Command("cat -u".into()));
        let f = guest_forward(":10.0.2.100:81-unix:/run/x").unwrap();
        assert_eq!((f.server.port(), f.to), (81, Behind::Unix("/run/x".into())));
        let f = guest_forward("tcp:10.0.2.100:1234-chardev:line").unwrap();
        assert_eq!(f.to, Behind::Chardev("line".into()));
        let f = guest_forward("tcp:10.0.2.100:81-tcp:127.0.0.1:5").unwrap();
        assert_eq!(f.to, Behind::Tcp("127.0.0.1:5".parse().unwrap()));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (name, value) in [
            ("net", "10.0.2.0/31"),
            ("net", "10.0.2.0/255.0.255.0"),
            ("host", "10.0.3.2"),
            ("dns", "10.0.2.2"),
            ("restrict", "maybe"),
            ("hostfwd", "tcp::22"),
            ("hostfwd", "sctp::22-:22"),
            ("hostfwd", "tcp::99999-:22"),
            ("guestfwd", "tcp:10.0.2.100:80"),
            ("guestfwd", "tcp:10.0.2.100:80-tape:x"),
            ("guestfwd", "tcp:10.0.2.100:80-chardev:"),
            ("smbserver", "10.0.3.4"),
        ] {
            let said = Config::parse([(name, value)]).unwrap_err().to_string();
            assert!(said.contains(name), "{said}");
        }
    }
}
