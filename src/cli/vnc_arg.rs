//! `-vnc`, `-display vnc=`, and the secrets that `-object` gives them.
use super::Error;
use super::props::Props;
use crate::config::{Config, Secret, SecretSource, Vnc};
use mynah_devices::chardev::spec::Address;

/// The port of display 0 (RFC 6143, 8), and that of its WebSocket (QEMU's).
const BASE: u16 = 5900;
const WEBSOCKET_BASE: u16 = 5700;

/// Where a VNC server listens: `HOST:DISPLAY`, `:DISPLAY` (all of this host's addresses), `unix:PATH`, or `none`; and
/// what is chosen of it.
pub(super) fn vnc(option: &str, text: &str) -> Result<Option<Vnc>, Error> {
    let mut props = Props::parse(option, text, Some("vnc"));
    let target = props.text("vnc")?.unwrap_or_default();
    for key in ["reverse", "tls-creds", "tls-authz", "sasl", "sasl-authz", "acl"] {
        if let Some(value) = props.text(key)?.filter(|v| v != "off") {
            return Err(props.error(format!("{key}={value}: not supported yet")));
        }
    }
    let password = props.switch("password")?.unwrap_or(false);
    let secret = props.text("password-secret")?;
    let websocket = props.text("websocket")?.filter(|v| v != "off");
    let more_ports = props.number("to", 0, u64::from(u16::MAX - BASE))?.unwrap_or(0);
    let share = props.text("share")?;
    let shared = match share.as_deref() {
        None | Some("allow-exclusive") => false,
        Some("ignore" | "force-shared") => true,
        Some(other) => {
            return Err(
                props.error(format!("share={other}: expected allow-exclusive, force-shared or ignore"))
            );
        }
    };
    props.ignore(&[
        "lossy",
        "non-adaptive",
        "power-control",
        "key-delay-ms",
        "ipv4",
        "ipv6",
        "display",
        "id",
    ]);
    if target == "none" {
        props.finish()?;
        return Ok(None);
    }
    let expected = || {
        Error::new(format!(
            "{option} {text}: expected HOST:DISPLAY, :DISPLAY, unix:PATH or none (:1 is port 5901)"
        ))
    };
    let (address, display) = match target.strip_prefix("unix:") {
        Some(path) => (Address::Unix(path.into()), None),
        None => {
            let (host, display) = target.rsplit_once(':').ok_or_else(expected)?;
            let display: u16 = display.parse().map_err(|_| expected())?;
            let port = display.checked_add(BASE).ok_or_else(expected)?;
            (Address::Tcp { host: host.trim_matches(['[', ']']).into(), port }, Some(display))
        }
    };
    let websocket = match websocket {
        None => None,
        Some(value) => {
            let same_host = match &address {
                Address::Tcp { host, .. } => host.clone(),
                Address::Unix(_) => String::new(),
            };
            let usual = display.and_then(|d| d.checked_add(WEBSOCKET_BASE));
            let port = |text: &str| text.parse::<u16>().ok();
            let found = match (value.as_str(), value.rsplit_once(':')) {
                ("on", _) => usual.map(|port| (same_host, port)),
                (_, Some((host, p))) => port(p).map(|p| (host.trim_matches(['[', ']']).to_owned(), p)),
                (p, None) => port(p).map(|p| (same_host, p)),
            };
            let Some((host, port)) = found else {
                return Err(props.error(format!("websocket={value}: expected on, PORT or HOST:PORT")));
            };
            Some(Address::Tcp { host, port })
        }
    };
    props.finish()?;
    let (password, more_ports) = (password || secret.is_some(), more_ports as u16);
    Ok(Some(Vnc { address, password, secret, websocket, more_ports, shared }))
}

/// `-object secret`; other kinds are refused.
pub(super) fn secret(text: &str) -> Result<Secret, Error> {
    let mut props = Props::parse("-object", text, Some("qom-type"));
    let kind = props.text("qom-type")?.unwrap_or_default();
    if kind != "secret" {
        return Err(Error::new(format!(
            "-object {kind}: not supported yet; there are 'secret' and 'throttle-group'"
        )));
    }
    let Some(id) = props.text("id")? else { return Err(props.error("id= is missing")) };
    let base64 = match props.text("format")?.as_deref() {
        None | Some("raw") => false,
        Some("base64") => true,
        Some(other) => return Err(props.error(format!("format={other}: expected raw or base64"))),
    };
    for key in ["keyid", "iv"] {
        if let Some(value) = props.text(key)? {
            return Err(props.error(format!("{key}={value}: an encrypted secret is not supported yet")));
        }
    }
    let source = match (props.text("data")?, props.text("file")?) {
        (Some(data), None) => SecretSource::Data(data.into_bytes()),
        (None, Some(file)) => SecretSource::File(file.into()),
        _ => return Err(props.error("one of data= and file= is to be given")),
    };
    props.finish()?;
    Ok(Secret { id, source, base64 })
}

/// Whether each secret that is named is there.
pub(super) fn check(config: &Config) -> Result<(), Error> {
    let wanted = config.vnc.as_ref().and_then(|v| v.secret.as_ref());
    match wanted {
        Some(id) if !config.secrets.iter().any(|s| s.id == *id) => {
            Err(Error::new(format!("-vnc password-secret={id}: there is no -object secret,id={id}")))
        }
        _ => Ok(()),
    }
}
