//! `-blockdev`, and `file=json:{...}` of `-drive`: images by QEMU's nodes, as JSON or with dots in the names.
//!
//! A format's node (`driver=qcow2`) names the file below it, which is a node of its own (`driver=file,filename=...`),
//! given in it or before it by name. Here both make one drive without an interface, for a `-device` to take by the
//! node's name.
use super::Error;
use super::props::Props;
use crate::config::{DiskAio, Drive, Interface};
use mynah_block::{Backing, Cache, DetectZeroes, FORMATS};
use serde_json::Value;
use std::path::PathBuf;

/// Names of images that are somewhere else, and drivers for them.
const NETWORK: [&str; 12] =
    ["nbd", "nbd+unix", "nbd+tcp", "http", "https", "ftp", "ftps", "ssh", "iscsi", "rbd", "gluster", "nfs"];

/// What can be done about an image that is on the network.
const HINT: &str =
    "attach it to the host first (nbd-client, qemu-nbd -c, iscsiadm) and give the device, or copy it";

/// Parses `-blockdev`; nodes that it refers to are among `drives`, and are part of it from then on.
pub fn blockdev(text: &str, drives: &mut Vec<Drive>) -> Result<Drive, Error> {
    let mut props = Props::parse("-blockdev", &dotted("-blockdev", text)?, None);
    let mut drive =
        Drive { option: "-blockdev".into(), interface: Some(Interface::None), ..Drive::default() };
    drive.id = props.text("node-name")?.unwrap_or_default();
    if drive.id.is_empty() {
        return Err(props.error("node-name=... is missing: nothing could refer to it"));
    }
    node(&mut props, &mut drive, drives)?;
    check_aio(&props, &drive)?;
    props.finish()?;
    Ok(drive)
}

/// What `mynah image --image-opts` says of an image.
pub fn image_opts(text: &str) -> Result<Drive, Error> {
    let mut props = Props::parse("--image-opts", text, None);
    let mut drive = Drive::default();
    props.ignore(&["node-name"]);
    node(&mut props, &mut drive, &mut Vec::new())?;
    props.finish()?;
    Ok(drive)
}

/// What `file=` of a drive stands for, if it is `json:{...}`; a file on the network is refused.
pub fn file(props: &Props, drive: &mut Drive) -> Result<(), Error> {
    let Some(name) = drive.file.as_ref().and_then(|f| f.to_str()).map(str::to_owned) else { return Ok(()) };
    if let Some(json) = name.strip_prefix("json:") {
        let mut inner = Props::parse("-drive file=json:", &dotted("-drive file=json:", json)?, None);
        drive.file = None;
        let format = drive.format.take();
        inner.ignore(&["node-name"]);
        node(&mut inner, drive, &mut Vec::new())?;
        drive.format = format.or(drive.format.take());
        return inner.finish();
    }
    if let Some((scheme, rest)) = name.split_once(':')
        && (NETWORK.contains(&scheme) || rest.starts_with("//"))
        && scheme != "file"
    {
        return Err(props.error(format!("file={name}: images by '{scheme}:' are not supported; {HINT}")));
    }
    if let Some(plain) = name.strip_prefix("file:") {
        drive.file = Some(plain.strip_prefix("//").unwrap_or(plain).into());
    }
    Ok(())
}

/// The properties of a node, and of what is below it.
pub fn node(props: &mut Props, drive: &mut Drive, drives: &mut Vec<Drive>) -> Result<(), Error> {
    let Some(driver) = props.text("driver")? else {
        return Err(props.error("driver=... is missing"));
    };
    if NETWORK.contains(&driver.as_str()) {
        return Err(props.error(format!("driver={driver}: images on the network are not supported; {HINT}")));
    }
    match driver.as_str() {
        "file" | "host_device" | "host_cdrom" => {
            drive.format = Some("raw".into());
            drive.file = props.text("filename")?.map(PathBuf::from);
            if drive.file.is_none() {
                return Err(props.error(format!("driver={driver}: filename=... is missing")));
            }
            props.ignore(&["locking", "x-check-cache-dropped"]);
            if let Some(how) = aio(props, "aio")? {
                drive.aio = how;
            }
        }
        "copy-on-read" => {
            let child = referred(props, "file", drives)?;
            let (id, option) = (std::mem::take(&mut drive.id), std::mem::take(&mut drive.option));
            *drive = Drive { id, option, copy_on_read: true, ..child };
        }
        "throttle" => {
            let Some(group) = props.text("throttle-group")?.filter(|name| !name.is_empty()) else {
                return Err(props.error("driver=throttle: throttle-group=... is missing"));
            };
            let child = referred(props, "file", drives)?;
            let (id, option) = (std::mem::take(&mut drive.id), std::mem::take(&mut drive.option));
            *drive = Drive { id, option, group: Some(group), ..child };
        }
        format if FORMATS.contains(&format) => {
            below(props, drive, drives)?;
            drive.format = Some(driver);
            backing(props, drive)?;
        }
        _ => {
            let there = FORMATS.join(", ");
            return Err(props.error(format!(
                "driver={driver}: there is no such driver (there are: file, host_device, copy-on-read, throttle, \
                 {there})"
            )));
        }
    }
    for key in ["read-only", "auto-read-only"] {
        let on = props.switch(key)?.unwrap_or(false);
        drive.read_only |= on && key == "read-only";
    }
    drive.discard |= discard(props)?.unwrap_or(false);
    if let Some(how) = detect_zeroes(props)? {
        drive.detect_zeroes = how;
    }
    let direct = props.switch("cache.direct")?.unwrap_or(drive.cache.direct());
    let no_flush = props.switch("cache.no-flush")?.unwrap_or(drive.cache.no_flush());
    drive.cache = match (direct, no_flush) {
        (_, true) => Cache::Unsafe,
        (true, false) => Cache::None,
        (false, false) => drive.cache,
    };
    Ok(())
}

/// `aio=`.
pub fn aio(props: &mut Props, key: &'static str) -> Result<Option<DiskAio>, Error> {
    Ok(Some(match props.text(key)?.as_deref() {
        None => return Ok(None),
        Some("threads") => DiskAio::Threads,
        Some("native") => DiskAio::Native,
        Some("io_uring") => DiskAio::IoUring,
        Some(other) => {
            return Err(props.error(format!("{key}={other}: accepted are threads, native, io_uring")));
        }
    }))
}

/// Whether `aio=` and `cache=` are for each other.
pub fn check_aio(props: &Props, drive: &Drive) -> Result<(), Error> {
    if drive.aio == DiskAio::Native && !drive.cache.direct() {
        return Err(props.error(
            "aio=native goes past the host's page cache and requires cache.direct=on (cache=none, cache=directsync), \
             which was not given; aio=io_uring and aio=threads do without",
        ));
    }
    Ok(())
}

/// A node that was given before: it is taken out of `drives`.
fn referred(props: &mut Props, key: &'static str, drives: &mut Vec<Drive>) -> Result<Drive, Error> {
    let name = props.text(key)?.unwrap_or_default();
    match drives.iter().position(|d| d.id == name && d.interface == Some(Interface::None)) {
        Some(at) => Ok(drives.remove(at)),
        None => {
            Err(props.error(format!("{key}={name}: there is no -blockdev before it with that node-name")))
        }
    }
}

/// The file of a format's node: a node in it, or one before it.
fn below(props: &mut Props, drive: &mut Drive, drives: &mut Vec<Drive>) -> Result<(), Error> {
    let inner = props.text("file.driver")?;
    let name = props.text("file.filename")?;
    match (inner.as_deref(), name) {
        (None | Some("file" | "host_device" | "host_cdrom"), Some(name)) => drive.file = Some(name.into()),
        (Some(driver), _) if NETWORK.contains(&driver) => {
            let text = format!("file.driver={driver}: images on the network are not supported; {HINT}");
            return Err(props.error(text));
        }
        (Some(driver), Some(_)) => {
            return Err(props.error(format!("file.driver={driver}: accepted are file, host_device")));
        }
        (Some(_), None) => return Err(props.error("file.filename=... is missing")),
        (None, None) => {
            let child = referred(props, "file", drives)?;
            drive.file = child.file;
            drive.read_only |= child.read_only;
            (drive.cache, drive.discard, drive.detect_zeroes) =
                (child.cache, child.discard, child.detect_zeroes);
            drive.aio = child.aio;
        }
    }
    props.ignore(&["file.locking", "file.node-name", "file.read-only", "file.auto-read-only"]);
    for key in ["file.cache.direct", "file.cache.no-flush"] {
        if props.switch(key)? == Some(true) {
            drive.cache = if key.ends_with("direct") { Cache::None } else { Cache::Unsafe };
        }
    }
    if props.text("file.discard")?.is_some_and(|v| v == "unmap" || v == "on") {
        drive.discard = true;
    }
    if let Some(how) = aio(props, "file.aio")? {
        drive.aio = how;
    }
    Ok(())
}

/// What the image stands on, if the user says so.
pub fn backing(props: &mut Props, drive: &mut Drive) -> Result<(), Error> {
    if let Some(name) = props.text("backing")? {
        if !name.is_empty() {
            return Err(props
                .error(format!("backing={name}: give its driver and file in it (backing.file.filename)")));
        }
        drive.backing = Some(Backing::Ignore);
    }
    let format = props.text("backing.driver")?;
    let driver = props.text("backing.file.driver")?;
    if let Some(driver) = driver.filter(|d| d != "file" && d != "host_device") {
        return Err(props.error(format!("backing.file.driver={driver}: accepted are file, host_device")));
    }
    match (props.text("backing.file.filename")?.or(props.text("backing.filename")?), format) {
        (Some(path), format) => {
            let format = format.map(|f| if f == "file" { "raw".into() } else { f });
            drive.backing = Some(Backing::File { path: path.into(), format });
        }
        (None, Some(format)) => {
            return Err(props.error(format!("backing.driver={format}: backing.file.filename=... is missing")));
        }
        (None, None) => {}
    }
    Ok(())
}

/// `discard=`.
pub fn discard(props: &mut Props) -> Result<Option<bool>, Error> {
    match props.text("discard")?.as_deref() {
        None => Ok(None),
        Some("ignore" | "off") => Ok(Some(false)),
        Some("unmap" | "on") => Ok(Some(true)),
        Some(other) => Err(props.error(format!("discard={other}: accepted are ignore, unmap"))),
    }
}

/// `detect-zeroes=`.
pub fn detect_zeroes(props: &mut Props) -> Result<Option<DetectZeroes>, Error> {
    match props.text("detect-zeroes")?.as_deref() {
        None => Ok(None),
        Some("off") => Ok(Some(DetectZeroes::Off)),
        Some("on") => Ok(Some(DetectZeroes::On)),
        Some("unmap") => Ok(Some(DetectZeroes::Unmap)),
        Some(other) => Err(props.error(format!("detect-zeroes={other}: accepted are off, on, unmap"))),
    }
}

/// JSON as the same with dots; what is no JSON is that already.
fn dotted(option: &str, text: &str) -> Result<String, Error> {
    if !text.trim_start().starts_with('{') {
        return Ok(text.into());
    }
    let value: Value =
        serde_json::from_str(text).map_err(|e| Error::new(format!("{option}: it is no JSON: {e}")))?;
    let mut all = Vec::new();
    flatten(option, "", &value, &mut all)?;
    Ok(all.join(","))
}

fn flatten(option: &str, key: &str, value: &Value, all: &mut Vec<String>) -> Result<(), Error> {
    let text = match value {
        Value::Object(map) => {
            for (name, value) in map {
                if name.contains(['=', ',']) {
                    return Err(Error::new(format!("{option}: '{name}' is no name of a property")));
                }
                let name = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flatten(option, &name, value, all)?;
            }
            return Ok(());
        }
        Value::Null => String::new(),
        Value::Bool(on) => if *on { "on" } else { "off" }.into(),
        Value::Number(n) => n.to_string(),
        Value::String(text) => text.replace(',', ",,"),
        Value::Array(_) => return Err(Error::new(format!("{option}: {key} cannot be a list"))),
    };
    all.push(format!("{key}={text}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(all: &[&str]) -> Result<Vec<Drive>, Error> {
        let mut drives = Vec::new();
        for text in all {
            let drive = blockdev(text, &mut drives)?;
            drives.push(drive);
        }
        Ok(drives)
    }

    fn refused(text: &str) -> String {
        parse(&[text]).map(drop).expect_err(text).to_string()
    }

    #[test]
    fn nodes_are_taken_as_json_with_dots_and_by_name() {
        let json = r#"{"driver":"qcow2","node-name":"d","file":{"driver":"file","filename":"a,b.qcow2"},
                       "read-only":true,"cache":{"direct":true},"discard":"unmap","backing":null}"#;
        let dots = "driver=qcow2,node-name=d,file.driver=file,file.filename=a,,b.qcow2,read-only=on,\
                    cache.direct=on,discard=unmap,backing=";
        let two = [
            "driver=file,node-name=f,filename=a,,b.qcow2,cache.direct=on,discard=unmap",
            "driver=qcow2,node-name=d,file=f,read-only=on,backing=",
        ];
        for all in [&[json][..], &[dots], &two] {
            let drives = parse(all).unwrap_or_else(|e| panic!("{all:?}: {e}"));
            assert_eq!(drives.len(), 1, "{all:?}");
            let d = &drives[0];
            assert_eq!((d.id.as_str(), d.file.as_deref()), ("d", Some("a,b.qcow2".as_ref())), "{all:?}");
            assert_eq!((d.format.as_deref(), d.read_only, d.discard), (Some("qcow2"), true, true), "{all:?}");
            assert_eq!((d.cache, &d.backing), (Cache::None, &Some(Backing::Ignore)), "{all:?}");
        }
        let drives = parse(&[
            "driver=qcow2,node-name=a,file.filename=x,backing.driver=raw,backing.file.filename=y",
            "driver=copy-on-read,node-name=b,file=a",
        ]);
        let d = &drives.expect("both are right")[0];
        assert!(d.copy_on_read && d.id == "b");
        assert_eq!(d.backing, Some(Backing::File { path: "y".into(), format: Some("raw".into()) }));
    }

    #[test]
    fn what_there_is_not_is_refused_by_name() {
        assert!(refused("driver=raw,file.filename=x").contains("node-name"));
        assert!(refused("node-name=a").contains("driver=... is missing"));
        assert!(refused("driver=nbd,node-name=a").contains("nbd-client"));
        assert!(refused("driver=raw,node-name=a,file.driver=https,file.url=x").contains("network"));
        assert!(refused("driver=raw,node-name=a,file=b").contains("no -blockdev before it"));
        assert!(refused("driver=qcow3,node-name=a").contains("there is no such driver"));
        assert!(refused("driver=raw,node-name=a,file.filename=x,cache.dirct=on").contains("cache.direct"));
        assert!(refused("{\"driver\":").contains("no JSON"));
    }
}
