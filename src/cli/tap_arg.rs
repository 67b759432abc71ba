//! `-netdev tap` and `-netdev bridge`, with QEMU's properties and rules of what excludes what.
use super::Error;
use super::props::Props;
use crate::config::NetKind;
use mynah_net::tap::{MAX_QUEUES, Origin, Script, TapConfig};

/// The bridge, if nobody names one.
const BRIDGE: &str = "br0";

/// `-netdev tap`.
pub fn tap(props: &mut Props) -> Result<NetKind, Error> {
    let (ifname, helper, bridge) = (props.text("ifname")?, props.text("helper")?, props.text("br")?);
    let (fd, fds) = (props.text("fd")?, props.text("fds")?);
    let (script, downscript) = (props.text("script")?, props.text("downscript")?);
    let (vnet_hdr, queues) = (props.switch("vnet_hdr")?, props.number("queues", 1, MAX_QUEUES.into())?);
    // How much the host keeps, and how long its kernel looks at rings, which only vhost does.
    props.ignore(&["sndbuf", "poll-us"]);
    if props.switch("vhost")? == Some(true) || props.switch("vhostforce")? == Some(true) {
        return Err(props.error("tap: vhost=on: not supported: leave it out, the tap is as it is without"));
    }
    let together = |with: &str, given: &[(&str, bool)]| match given.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(props.error(format!("tap: {name}= and {with}= exclude each other"))),
        None => Ok(()),
    };
    let own = [
        ("ifname", ifname.is_some()),
        ("script", script.is_some()),
        ("downscript", downscript.is_some()),
        ("vnet_hdr", vnet_hdr.is_some()),
        ("queues", queues.is_some()),
    ];
    let origin = if let Some(numbers) = fds.as_ref().or(fd.as_ref()) {
        let option = if fds.is_some() { "fds" } else { "fd" };
        together(option, &own)?;
        together(option, &[("helper", helper.is_some()), ("fd", fds.is_some() && fd.is_some())])?;
        let numbers =
            numbers.split(':').map(|n| n.parse().ok().filter(|n| *n >= 0)).collect::<Option<Vec<_>>>();
        let most = if fds.is_some() { usize::from(MAX_QUEUES) } else { 1 };
        let numbers = numbers.filter(|n| n.len() <= most);
        Origin::Descriptors(numbers.ok_or_else(|| {
            props.error(format!(
                "tap: {option}=: it is no number of an inherited descriptor (several: fds=3:4)"
            ))
        })?)
    } else if helper.is_some() {
        together("helper", &own)?;
        Origin::Helper { program: helper, bridge: bridge.unwrap_or_else(|| BRIDGE.into()) }
    } else {
        if bridge.is_some() {
            return Err(props.error("tap: br= is of use with helper=: say -netdev bridge,br=NAME"));
        }
        let named = |script: Option<String>| script.as_deref().map_or(Script::Usual, Script::named);
        Origin::Open {
            ifname: ifname.unwrap_or_else(|| "tap%d".into()),
            queues: queues.unwrap_or(1) as u16,
            script: named(script),
            downscript: named(downscript),
            bridge: None,
            address: None,
        }
    };
    Ok(NetKind::Tap(TapConfig { origin, vnet_hdr }))
}

/// `-netdev bridge`.
pub fn bridge(props: &mut Props) -> Result<NetKind, Error> {
    let (bridge, program) = (props.text("br")?, props.text("helper")?);
    let origin = Origin::Helper { program, bridge: bridge.unwrap_or_else(|| BRIDGE.into()) };
    Ok(NetKind::Tap(TapConfig { origin, vnet_hdr: None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<TapConfig, String> {
        let mut props = Props::parse("-netdev", text, Some("type"));
        let kind = match props.text("type").unwrap().as_deref() {
            Some("bridge") => bridge(&mut props),
            _ => tap(&mut props),
        };
        let kind = kind.and_then(|k| props.finish().map(|()| k)).map_err(|e| e.to_string())?;
        let NetKind::Tap(config) = kind else { panic!() };
        Ok(config)
    }

    #[test]
    fn taps_are_read_as_qemu_reads_them() {
        assert_eq!(parsed("tap").unwrap(), TapConfig::default());
        let all =
            parsed("tap,ifname=t0,script=no,downscript=/bin/x,queues=4,vnet_hdr=off,vhost=off,sndbuf=0");
        let origin = Origin::Open {
            ifname: "t0".into(),
            queues: 4,
            script: Script::No,
            downscript: Script::Program("/bin/x".into()),
            bridge: None,
            address: None,
        };
        assert_eq!(all.unwrap(), TapConfig { origin, vnet_hdr: Some(false) });
        assert_eq!(parsed("tap,fd=5").unwrap().origin, Origin::Descriptors(vec![5]));
        assert_eq!(parsed("tap,fds=5:7").unwrap().origin, Origin::Descriptors(vec![5, 7]));
        let helper = |program: Option<&str>, bridge: &str| Origin::Helper {
            program: program.map(Into::into),
            bridge: bridge.into(),
        };
        assert_eq!(parsed("tap,helper=/h").unwrap().origin, helper(Some("/h"), "br0"));
        assert_eq!(parsed("bridge").unwrap().origin, helper(None, "br0"));
        assert_eq!(parsed("bridge,br=lan,helper=/h").unwrap().origin, helper(Some("/h"), "lan"));
    }

    #[test]
    fn what_excludes_another_is_said() {
        for (text, said) in [
            ("tap,fd=5,ifname=t0", "ifname= and fd= exclude"),
            ("tap,fd=5,vnet_hdr=on", "vnet_hdr= and fd= exclude"),
            ("tap,fd=5,fds=6", "fd= and fds= exclude"),
            ("tap,helper=/h,queues=2", "queues= and helper= exclude"),
            ("tap,fd=5,helper=/h", "helper= and fd= exclude"),
            ("tap,fd=x", "no number of an inherited descriptor"),
            ("tap,fd=-1", "no number of an inherited descriptor"),
            ("tap,fd=3:4", "fds=3:4"),
            ("tap,br=br0", "-netdev bridge,br=NAME"),
            ("tap,vhost=on", "vhost=on: not supported"),
            ("tap,queues=0", "from 1 to 256"),
            ("bridge,ifname=x", "ifname"),
        ] {
            let why = parsed(text).unwrap_err();
            assert!(why.contains(said), "{text}: {why}");
        }
    }
}
