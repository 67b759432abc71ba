//! The text that names a backend, as QEMU's `-serial`, `-debugcon` and `-chardev` take it.
//!
//! ```text
//!   none | null | stdio | pty | file:PATH | mon:SPEC
//!   unix:PATH[,server=on|off][,wait=on|off]
//!   tcp:[HOST]:PORT[,server=on|off][,wait=on|off][,nodelay=on|off]
//! ```
//!
//! `server`, `wait`, `nowait` and `nodelay` alone are the old spellings of `server=on`, `wait=on`, `wait=off`
//! and `nodelay=on`.
use std::path::PathBuf;
use std::str::FromStr;

/// A backend, named but not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// No device at all.
    None,
    /// A device whose line leads nowhere.
    Null,
    /// The process's standard input and output.
    Stdio {
        /// Whether Ctrl-C, Ctrl-\ and Ctrl-Z act on this process rather than go to the guest.
        signal: bool,
    },
    /// A file for output.
    File {
        /// Where.
        path: PathBuf,
        /// Keep what is in it.
        append: bool,
    },
    /// A new pseudo-terminal.
    Pty,
    /// A stream socket.
    Socket(SocketSpec),
    /// A multiplexer in front of another backend: the user switches between guest and monitor with Ctrl-A.
    Mon(Box<Spec>),
}

/// A stream socket and how to use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketSpec {
    /// Where.
    pub address: Address,
    /// Listen there, rather than connect to it.
    pub server: bool,
    /// A server waits for its first client before the machine starts.
    pub wait: bool,
    /// Switch Nagle's algorithm off (TCP).
    pub nodelay: bool,
}

/// The address of a stream socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A path in the file system.
    Unix(PathBuf),
    /// A host (empty: any of this host's addresses for a server, else the local host) and a port.
    Tcp {
        /// Name or address.
        host: String,
        /// Port number.
        port: u16,
    },
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

/// What is wrong with a specification.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No backend is called so.
    #[error(
        "unknown character device '{given}'{}; there are none, null, stdio, mon:DEVICE, file:PATH, pty, \
         unix:PATH and tcp:HOST:PORT",
        nearest.map_or(String::new(), |n| format!(" (did you mean '{n}'?)"))
    )]
    Unknown {
        /// The word.
        given: String,
        /// A backend that is spelt nearly so.
        nearest: Option<&'static str>,
    },
    /// Something that must follow does not.
    #[error("'{spec}': {what} is missing")]
    Missing {
        /// The specification.
        spec: String,
        /// What is missing.
        what: &'static str,
    },
    /// The port is none.
    #[error("'{spec}': '{given}' is not a port number (0 to 65535)")]
    BadPort {
        /// The specification.
        spec: String,
        /// The word.
        given: String,
    },
    /// An option the backend does not have.
    #[error("'{spec}': unknown option '{given}'; {device} takes {options}")]
    UnknownOption {
        /// The specification.
        spec: String,
        /// The word.
        given: String,
        /// The backend.
        device: &'static str,
        /// Its options.
        options: &'static str,
    },
    /// A switch that is neither on nor off.
    #[error("'{spec}': '{option}' is 'on' or 'off', not '{given}'")]
    NotASwitch {
        /// The specification.
        spec: String,
        /// The option.
        option: String,
        /// The word.
        given: String,
    },
    /// Options that exclude one another.
    #[error("'{spec}': 'wait' is for servers; add 'server=on'")]
    WaitWithoutServer {
        /// The specification.
        spec: String,
    },
    /// `mon:` twice.
    #[error("'{spec}': only one 'mon:' can stand in front of a device, and none in front of 'none'")]
    BadMon {
        /// The specification.
        spec: String,
    },
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let spec = || text.to_owned();
        let unknown_option = |given: &str, device, options| SpecError::UnknownOption {
            spec: text.to_owned(),
            given: given.to_owned(),
            device,
            options,
        };
        let (head, rest) = match text.split_once(':') {
            Some((head, rest)) => (head, Some(rest)),
            None => (text, None),
        };
        let (word, options) = match head.split_once(',') {
            // Options come before the colon only where no argument does.
            Some((word, _)) => (word, text[word.len()..].split(',').skip(1).collect()),
            None => (head, Vec::new()),
        };
        match (word, rest) {
            ("none", None) | ("null", None) | ("pty", None) if !options.is_empty() => {
                let device = if word == "pty" { "pty" } else { "null" };
                Err(unknown_option(options[0], device, "none"))
            }
            ("none", None) => Ok(Spec::None),
            ("null", None) => Ok(Spec::Null),
            ("pty", None) => Ok(Spec::Pty),
            ("stdio", None) => {
                let mut signal = true;
                for option in options {
                    match Switch::parse(option, text)? {
                        ("signal", on) => signal = on,
                        _ => return Err(unknown_option(option, "stdio", "signal=on|off")),
                    }
                }
                Ok(Spec::Stdio { signal })
            }
            ("mon", Some(rest)) => match rest.parse()? {
                Spec::Mon(_) | Spec::None => Err(SpecError::BadMon { spec: spec() }),
                // The user of a monitor leaves with Ctrl-A X: Ctrl-C is the guest's, unless asked for.
                Spec::Stdio { .. } if !rest.contains("signal=on") => {
                    Ok(Spec::Mon(Box::new(Spec::Stdio { signal: false })))
                }
                inner => Ok(Spec::Mon(Box::new(inner))),
            },
            ("file", Some("")) | ("file", None) => Err(SpecError::Missing { spec: spec(), what: "the path" }),
            // The path is all the rest, commas included.
            ("file", Some(path)) => Ok(Spec::File { path: path.into(), append: false }),
            ("unix", rest) => {
                let mut parts = rest.unwrap_or("").split(',');
                let path = parts.next().unwrap_or("");
                if path.is_empty() {
                    return Err(SpecError::Missing { spec: spec(), what: "the path" });
                }
                socket(Address::Unix(path.into()), parts, text)
            }
            ("tcp", rest) => {
                let mut parts = rest.unwrap_or("").split(',');
                let place = parts.next().unwrap_or("");
                let Some((host, port)) = place.rsplit_once(':') else {
                    return Err(SpecError::Missing { spec: spec(), what: "the port (tcp:HOST:PORT)" });
                };
                let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
                let port =
                    port.parse().map_err(|_| SpecError::BadPort { spec: spec(), given: port.to_owned() })?;
                socket(Address::Tcp { host: host.to_owned(), port }, parts, text)
            }
            _ => Err(SpecError::Unknown { given: text.to_owned(), nearest: nearest(word) }),
        }
    }
}

/// Parses `name=on`, `name=off`, `name` and `noname`.
struct Switch;

impl Switch {
    fn parse<'a>(option: &'a str, spec: &str) -> Result<(&'a str, bool), SpecError> {
        match option.split_once('=') {
            Some((name, "on" | "yes" | "true")) => Ok((name, true)),
            Some((name, "off" | "no" | "false")) => Ok((name, false)),
            Some((name, given)) => Err(SpecError::NotASwitch {
                spec: spec.to_owned(),
                option: name.to_owned(),
                given: given.to_owned(),
            }),
            None => match option {
                "nowait" => Ok(("wait", false)),
                "noserver" => Ok(("server", false)),
                name => Ok((name, true)),
            },
        }
    }
}

fn socket<'a>(
    address: Address,
    options: impl Iterator<Item = &'a str>,
    text: &str,
) -> Result<Spec, SpecError> {
    let tcp = matches!(address, Address::Tcp { .. });
    let (mut server, mut wait, mut nodelay) = (false, None, false);
    for option in options {
        // An option that does not exist is named as such, whatever it is set to.
        let known = ["server", "wait", "nowait", "noserver"].iter().chain(tcp.then_some(&"nodelay"));
        if !known.into_iter().any(|k| *k == option.split('=').next().unwrap_or("")) {
            return Err(SpecError::UnknownOption {
                spec: text.to_owned(),
                given: option.to_owned(),
                device: if tcp { "tcp" } else { "unix" },
                options: if tcp {
                    "server=on|off, wait=on|off, nodelay=on|off"
                } else {
                    "server=on|off and wait=on|off"
                },
            });
        }
        match Switch::parse(option, text)? {
            ("server", on) => server = on,
            ("wait", on) => wait = Some(on),
            (_, on) => nodelay = on,
        }
    }
    if wait == Some(true) && !server {
        return Err(SpecError::WaitWithoutServer { spec: text.to_owned() });
    }
    Ok(Spec::Socket(SocketSpec { address, server, wait: server && wait.unwrap_or(true), nodelay }))
}

/// The backend whose name is at most two edits away.
fn nearest(word: &str) -> Option<&'static str> {
    ["none", "null", "stdio", "mon:stdio", "file", "pty", "unix", "tcp"]
        .into_iter()
        .map(|name| (distance(word, name), name))
        .filter(|(d, _)| *d <= 2)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = cost.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Spec {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    fn refuse(text: &str) -> String {
        text.parse::<Spec>().expect_err(text).to_string()
    }

    fn unix(server: bool, wait: bool) -> Spec {
        Spec::Socket(SocketSpec { address: Address::Unix("/tmp/s".into()), server, wait, nodelay: false })
    }

    #[test]
    fn every_form_of_qemu_is_understood() {
        assert_eq!(parse("none"), Spec::None);
        assert_eq!(parse("null"), Spec::Null);
        assert_eq!(parse("pty"), Spec::Pty);
        assert_eq!(parse("stdio"), Spec::Stdio { signal: true });
        assert_eq!(parse("stdio,signal=off"), Spec::Stdio { signal: false });
        assert_eq!(parse("file:/a,b:c"), Spec::File { path: "/a,b:c".into(), append: false });
        assert_eq!(parse("unix:/tmp/s"), unix(false, false));
        assert_eq!(parse("unix:/tmp/s,server"), unix(true, true));
        assert_eq!(parse("unix:/tmp/s,server,nowait"), unix(true, false));
        assert_eq!(parse("unix:/tmp/s,server=on,wait=off"), unix(true, false));
        let tcp = |host: &str, server, wait, nodelay| {
            let address = Address::Tcp { host: host.into(), port: 4444 };
            Spec::Socket(SocketSpec { address, server, wait, nodelay })
        };
        assert_eq!(parse("tcp:localhost:4444"), tcp("localhost", false, false, false));
        assert_eq!(parse("tcp::4444,server=on,nodelay"), tcp("", true, true, true));
        assert_eq!(parse("tcp:[::1]:4444,server,nowait,nodelay=off"), tcp("::1", true, false, false));
    }

    #[test]
    fn a_monitor_on_stdio_leaves_ctrl_c_to_the_guest() {
        assert_eq!(parse("mon:stdio"), Spec::Mon(Box::new(Spec::Stdio { signal: false })));
        assert_eq!(parse("mon:stdio,signal=on"), Spec::Mon(Box::new(Spec::Stdio { signal: true })));
        assert_eq!(parse("mon:unix:/tmp/s,server,nowait"), Spec::Mon(Box::new(unix(true, false))));
    }

    #[test]
    fn a_mistake_is_named() {
        for (text, named) in [
            ("stido", "did you mean 'stdio'"),
            ("", "unknown character device ''"),
            ("telnet:localhost:1", "'telnet:localhost:1'"),
            ("file:", "the path is missing"),
            ("unix:", "the path is missing"),
            ("unix:,server", "the path is missing"),
            ("tcp:4444", "the port (tcp:HOST:PORT) is missing"),
            ("tcp:host:99999", "'99999' is not a port"),
            ("tcp:host:", "'' is not a port"),
            ("unix:/s,sever", "unknown option 'sever'"),
            ("unix:/s,nodelay", "unknown option 'nodelay'"),
            ("unix:/s,server=maybe", "'server' is 'on' or 'off', not 'maybe'"),
            ("unix:/s,wait", "add 'server=on'"),
            ("stdio,mux=on", "unknown option 'mux=on'"),
            ("null,x", "unknown option 'x'"),
            ("mon:mon:stdio", "only one 'mon:'"),
            ("mon:none", "none in front of 'none'"),
            ("stdio:1", "unknown character device 'stdio:1'"),
        ] {
            assert!(refuse(text).contains(named), "{text}: {}", refuse(text));
        }
    }
}
