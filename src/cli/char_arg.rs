//! Character streams: the short form of `-serial`, `-monitor` and `-debugcon`, and `-chardev`.

use super::Error;
use super::props::Props;
use super::size::NumberFrom;
use super::suggest::did_you_mean;
use crate::config::{CharBackend, CharTarget, Chardev, Socket};
use std::path::PathBuf;

/// The words a short form may start with, for messages.
const TARGETS: &[&str] = &[
    "none",
    "null",
    "stdio",
    "mon:stdio",
    "vc",
    "pty",
    "file:",
    "pipe:",
    "unix:",
    "tcp:",
    "telnet:",
    "udp:",
    "chardev:",
];

/// The back ends of `-chardev`.
const BACKENDS: &[&str] =
    &["null", "stdio", "vc", "pty", "file", "pipe", "socket", "udp", "serial", "tty", "parallel"];

/// Parses the short form, the argument of `option`.
pub fn target(option: &str, spec: &str) -> Result<CharTarget, Error> {
    let (mux, rest) = match spec.strip_prefix("mon:") {
        Some(rest) => (true, rest),
        None => (false, spec),
    };
    let error = |what: String| Error::new(format!("{option} {spec}: {what}"));
    let (kind, argument) = rest.split_once(':').map_or((rest, None), |(k, a)| (k, Some(a)));
    let file = |what: &str| match argument {
        Some(path) if !path.is_empty() => Ok(PathBuf::from(path)),
        _ => Err(error(format!("'{kind}:' needs {what} after it"))),
    };
    let plain = |backend| match argument {
        None => Ok(backend),
        Some(_) => Err(error(format!("'{kind}' takes nothing after it"))),
    };
    let backend = match kind {
        "none" => plain(CharBackend::None)?,
        "null" => plain(CharBackend::Null)?,
        // With the monitor behind Ctrl-A, Ctrl-C is the guest's.
        "stdio" => plain(CharBackend::Stdio { signal: !mux })?,
        "pty" => plain(CharBackend::Pty)?,
        // A size may follow: vc:800x600, vc:80Cx24C.
        "vc" => CharBackend::Vc,
        "file" => CharBackend::File { path: file("a file name")?, append: false },
        "pipe" => CharBackend::Pipe { path: file("the name of a pipe")? },
        "chardev" => match argument {
            Some(id) if !id.is_empty() => CharBackend::Chardev(id.into()),
            _ => return Err(error("'chardev:' needs the id of a -chardev after it".into())),
        },
        "unix" => {
            let mut props = Props::parse(option, argument.unwrap_or(""), Some("path"));
            let path =
                props.text("path")?.ok_or_else(|| error("'unix:' needs a file name after it".into()))?;
            let socket = socket(&mut props, false)?;
            props.finish()?;
            CharBackend::Unix { path: path.into(), socket }
        }
        "tcp" | "telnet" => {
            let mut props = Props::parse(option, argument.unwrap_or(""), Some("address"));
            let address = props.text("address")?.unwrap_or_default();
            let (host, port) = host_port(&address, &format!("{kind}:[HOST]:PORT")).map_err(error)?;
            let socket = socket(&mut props, kind == "telnet")?;
            props.finish()?;
            CharBackend::Tcp { host, port, socket }
        }
        "udp" => udp(argument.unwrap_or("")).map_err(error)?,
        _ if rest.starts_with('/') => CharBackend::Host { path: rest.into() },
        _ => {
            let hint = did_you_mean("", rest, TARGETS.iter().copied());
            let accepted = format!(" (accepted: {}, a device's file such as /dev/ttyS0)", TARGETS.join(", "));
            return Err(error(format!(
                "unknown character device{}",
                if hint.is_empty() { accepted } else { hint }
            )));
        }
    };
    if mux && matches!(backend, CharBackend::None | CharBackend::Chardev(_)) {
        return Err(error("'mon:' cannot stand before it: there is nothing the monitor could share".into()));
    }
    Ok(CharTarget { spec: spec.into(), mux, backend })
}

/// `HOST:PORT`, `:PORT`, `[IPv6]:PORT`. The error says what is wrong; `form` is how the whole is written.
fn host_port(address: &str, form: &str) -> Result<(String, String), String> {
    let Some((host, port)) = address.rsplit_once(':') else {
        let what = if address.is_empty() { "an address is" } else { "the port is" };
        return Err(format!("{what} missing: {form}"));
    };
    check_port(port)?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    Ok((host.to_string(), port.to_string()))
}

/// A port is given by its number.
fn check_port(port: &str) -> Result<(), String> {
    match port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok() {
        true => Ok(()),
        false => Err(format!("'{port}' is not a port, which is {}", NumberFrom(0, u16::MAX.into()))),
    }
}

fn udp(text: &str) -> Result<CharBackend, String> {
    const FORM: &str = "udp:[HOST]:PORT[@[LOCALHOST]:LOCALPORT]";
    let (remote, local) = text.split_once('@').unwrap_or((text, ":0"));
    let (host, port) = host_port(remote, FORM)?;
    let (local_host, local_port) = host_port(local, FORM)?;
    Ok(CharBackend::Udp { host, port, local_host, local_port })
}

fn socket(props: &mut Props, telnet: bool) -> Result<Socket, Error> {
    let server = props.switch("server")?.unwrap_or(false);
    let wait = props.switch("wait")?;
    let telnet = props.switch("telnet")?.unwrap_or(telnet);
    let nodelay = match props.switch("nodelay")? {
        Some(on) => on,
        None => props.switch("delay")? == Some(false),
    };
    let reconnect = props.number("reconnect", 0, u64::from(u32::MAX))?.unwrap_or(0) as u32;
    props.ignore(&["ipv4", "ipv6"]);
    if wait.is_some() && !server {
        return Err(props.error("'wait' is for a server; add server=on"));
    }
    if reconnect != 0 && server {
        return Err(props.error("'reconnect' is for a client, and this is a server"));
    }
    Ok(Socket { server, wait: wait.unwrap_or(server), telnet, nodelay, reconnect })
}

/// A port that is the value of a property.
fn property_port(props: &Props, key: &str, port: String) -> Result<String, Error> {
    check_port(&port).map(|()| port.clone()).map_err(|why| props.error(format!("{key}={port}: {why}")))
}

/// Parses `-mon`'s argument.
pub fn mon(text: &str) -> Result<CharTarget, Error> {
    let mut props = Props::parse("-mon", text, Some("chardev"));
    let id = props
        .text("chardev")?
        .filter(|id| !id.is_empty())
        .ok_or_else(|| props.error("a chardev=ID is missing"))?;
    match props.text("mode")?.as_deref() {
        None | Some("readline") => {}
        Some("control") => {
            return Err(props.error("mode=control: the management protocol is not supported yet"));
        }
        Some(mode) => return Err(props.error(format!("mode={mode}: there is readline"))),
    }
    props.ignore(&["pretty"]);
    props.finish()?;
    Ok(CharTarget::new(&format!("chardev:{id}"), CharBackend::Chardev(id)))
}

/// Parses `-chardev`'s argument.
pub fn chardev(text: &str) -> Result<Chardev, Error> {
    let mut props = Props::parse("-chardev", text, Some("backend"));
    let kind = props.text("backend")?.unwrap_or_default();
    props.rename(format!("-chardev {kind}"));
    if kind == "help" || kind == "?" {
        return Err(Error::info(format!("Back ends of -chardev: {}\n", BACKENDS.join(", "))));
    }
    let id =
        props.text("id")?.filter(|id| !id.is_empty()).ok_or_else(|| props.error("an id=ID is missing"))?;
    let path = |props: &mut Props| {
        props.text("path")?.map(PathBuf::from).ok_or_else(|| props.error("a path=FILE is missing"))
    };
    let backend = match kind.as_str() {
        "null" => CharBackend::Null,
        "stdio" => CharBackend::Stdio { signal: props.switch("signal")?.unwrap_or(true) },
        "vc" => {
            props.ignore(&["width", "height", "cols", "rows"]);
            CharBackend::Vc
        }
        "pty" => CharBackend::Pty,
        "file" => {
            CharBackend::File { path: path(&mut props)?, append: props.switch("append")?.unwrap_or(false) }
        }
        "pipe" => CharBackend::Pipe { path: path(&mut props)? },
        "serial" | "tty" | "parallel" => CharBackend::Host { path: path(&mut props)? },
        "socket" => match (props.text("path")?, props.text("port")?) {
            (Some(path), None) => CharBackend::Unix { path: path.into(), socket: socket(&mut props, false)? },
            (None, Some(port)) => CharBackend::Tcp {
                host: props.text("host")?.unwrap_or_default(),
                port: property_port(&props, "port", port)?,
                socket: socket(&mut props, false)?,
            },
            _ => return Err(props.error("a path=FILE or a port=PORT (one of them) is missing")),
        },
        "udp" => {
            let port = props.text("port")?.ok_or_else(|| props.error("a port=PORT is missing"))?;
            let local_port = props.text("localport")?.unwrap_or_else(|| "0".into());
            CharBackend::Udp {
                host: props.text("host")?.unwrap_or_default(),
                port: property_port(&props, "port", port)?,
                local_host: props.text("localaddr")?.unwrap_or_default(),
                local_port: property_port(&props, "localport", local_port)?,
            }
        }
        _ => {
            let hint = did_you_mean("", &kind, BACKENDS.iter().copied());
            let accepted = format!(" (accepted: {})", BACKENDS.join(", "));
            return Err(Error::new(format!(
                "-chardev: unknown back end '{kind}'{}",
                if hint.is_empty() { accepted } else { hint }
            )));
        }
    };
    let chardev = Chardev {
        id,
        mux: props.switch("mux")?.unwrap_or(false),
        backend,
        log_file: props.text("logfile")?.map(PathBuf::from),
        log_append: props.switch("logappend")?.unwrap_or(false),
    };
    props.finish()?;
    Ok(chardev)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(spec: &str) -> CharBackend {
        target("-serial", spec).unwrap_or_else(|e| panic!("{e}")).backend
    }

    fn error(spec: &str) -> String {
        target("-serial", spec).unwrap_err().to_string()
    }

    #[test]
    fn short_forms() {
        assert_eq!(backend("none"), CharBackend::None);
        assert_eq!(backend("null"), CharBackend::Null);
        assert_eq!(backend("stdio"), CharBackend::Stdio { signal: true });
        assert_eq!(backend("vc:80Cx24C"), CharBackend::Vc);
        assert_eq!(backend("pty"), CharBackend::Pty);
        assert_eq!(backend("file:/tmp/a:b"), CharBackend::File { path: "/tmp/a:b".into(), append: false });
        assert_eq!(backend("pipe:p"), CharBackend::Pipe { path: "p".into() });
        assert_eq!(backend("/dev/ttyS0"), CharBackend::Host { path: "/dev/ttyS0".into() });
        assert_eq!(backend("chardev:c"), CharBackend::Chardev("c".into()));
        let console = target("-serial", "mon:stdio").unwrap();
        assert_eq!(console, CharTarget::console());
    }

    #[test]
    fn sockets() {
        let server = Socket { server: true, wait: false, ..Socket::default() };
        let client = Socket { wait: false, ..Socket::default() };
        assert_eq!(
            backend("unix:/tmp/s,server=on,wait=off"),
            CharBackend::Unix { path: "/tmp/s".into(), socket: server }
        );
        assert_eq!(
            backend("unix:/tmp/s,server,nowait"),
            CharBackend::Unix { path: "/tmp/s".into(), socket: server }
        );
        assert_eq!(
            backend("tcp::4444,server=on"),
            CharBackend::Tcp {
                host: String::new(),
                port: "4444".into(),
                socket: Socket { wait: true, ..server }
            }
        );
        assert_eq!(
            backend("tcp:[::1]:4444,nodelay"),
            CharBackend::Tcp {
                host: "::1".into(),
                port: "4444".into(),
                socket: Socket { nodelay: true, ..client }
            }
        );
        assert_eq!(
            backend("telnet:localhost:23,server=on,wait=off"),
            CharBackend::Tcp {
                host: "localhost".into(),
                port: "23".into(),
                socket: Socket { telnet: true, ..server }
            }
        );
        assert_eq!(
            backend("udp:h:1@:2"),
            CharBackend::Udp {
                host: "h".into(),
                port: "1".into(),
                local_host: String::new(),
                local_port: "2".into()
            }
        );
    }

    #[test]
    fn bad_targets_name_option_value_and_reason() {
        assert_eq!(error("stdoi"), "-serial stdoi: unknown character device; did you mean 'stdio'?");
        assert!(error("carrier-pigeon").contains("(accepted: none, null, stdio"));
        assert_eq!(error("tcp:"), "-serial tcp:: an address is missing: tcp:[HOST]:PORT");
        assert_eq!(error("tcp:localhost"), "-serial tcp:localhost: the port is missing: tcp:[HOST]:PORT");
        for port in ["99999", "65536", "-1", "http", "", "1 "] {
            for kind in ["tcp", "telnet", "udp"] {
                let spec = format!("{kind}:localhost:{port}");
                let why =
                    format!("-serial {spec}: '{port}' is not a port, which is a number from 0 to 65535");
                assert_eq!(error(&spec), why);
            }
        }
        assert!(error("file:").contains("needs a file name"));
        assert!(error("mon:none").contains("'mon:' cannot"));
        assert!(error("stdio:x").contains("takes nothing"));
        assert_eq!(error("unix:/tmp/s,wait=off"), "-serial: 'wait' is for a server; add server=on");
        assert_eq!(
            error("unix:/tmp/s,srver=on"),
            "-serial: unknown property 'srver'; did you mean 'server'?"
        );
    }

    #[test]
    fn named_back_ends() {
        let c = chardev("file,id=log,path=/tmp/x,append=on,logfile=/tmp/y").unwrap();
        assert_eq!(c.id, "log");
        assert_eq!(c.backend, CharBackend::File { path: "/tmp/x".into(), append: true });
        assert_eq!(c.log_file, Some("/tmp/y".into()));
        let c = chardev("stdio,mux=on,id=c,signal=off").unwrap();
        assert!(c.mux);
        assert_eq!(c.backend, CharBackend::Stdio { signal: false });
        let c = chardev("socket,id=s,host=localhost,port=99,server=on,wait=off").unwrap();
        assert!(matches!(
            c.backend,
            CharBackend::Tcp { socket: Socket { server: true, wait: false, .. }, .. }
        ));
        let c = chardev("udp,id=u,port=7").unwrap();
        assert!(matches!(c.backend, CharBackend::Udp { .. }));
    }

    #[test]
    fn a_monitor_on_a_named_back_end() {
        for text in ["c", "chardev=c", "chardev=c,mode=readline", "c,pretty=on"] {
            assert_eq!(mon(text).unwrap().backend, CharBackend::Chardev("c".into()), "{text}");
        }
        for (text, why) in [
            ("mode=readline", "-mon: a chardev=ID is missing"),
            ("c,mode=control", "-mon: mode=control: the management protocol is not supported yet"),
            ("c,mode=x", "-mon: mode=x: there is readline"),
        ] {
            assert_eq!(mon(text).unwrap_err().to_string(), why);
        }
    }

    #[test]
    fn bad_back_ends_are_refused() {
        for (text, why) in [
            ("null", "-chardev null: an id=ID is missing"),
            ("file,id=x", "-chardev file: a path=FILE is missing"),
            ("fiel,id=x", "-chardev: unknown back end 'fiel'; did you mean 'file'?"),
            (
                "null,id=x,size=3",
                "-chardev null: unknown property 'size' (accepted: backend, id, mux, logfile, logappend)",
            ),
            (
                "socket,id=x,port=99999",
                "-chardev socket: port=99999: '99999' is not a port, which is a number from 0 to 65535",
            ),
            (
                "udp,id=x,port=1,localport=x",
                "-chardev udp: localport=x: 'x' is not a port, which is a number from 0 to 65535",
            ),
            ("socket,id=x", "-chardev socket: a path=FILE or a port=PORT (one of them) is missing"),
        ] {
            assert_eq!(chardev(text).unwrap_err().to_string(), why);
        }
    }
}
