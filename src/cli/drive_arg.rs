//! Drives: `-drive`, `-hda` and its like, `-cdrom`, `-snapshot`, and the devices that they stand for.
//!
//! A drive with an interface (`if=ide`, which is the default on a PC) is a drive and a device at once: `-hda disk.img`
//! stands for `-drive if=none,id=ide0-hd0,file=disk.img -device ide-hd,drive=ide0-hd0,bus=ide.0,unit=0`.

use super::Error;
use super::blockdev_arg;
use super::device_arg;
use super::props::Props;
use super::suggest::did_you_mean;
use crate::config::{Config, Drive, Interface};
use crate::machine::boards::Description;
use mynah_block::{Cache, Limits, OnError, Rate};
use mynah_devices::kind::Bus;
use std::ffi::OsStr;
use std::path::PathBuf;

/// What messages call an argument that stands alone.
pub const ALONE: &str = "the lone argument";

/// Parses `-drive`.
pub fn drive(text: &str) -> Result<Drive, Error> {
    let mut props = Props::parse("-drive", text, None);
    let mut drive = Drive { option: "-drive".into(), ..Drive::default() };
    if let Some(name) = props.text("if")? {
        drive.interface = Some(interface(&props, &name)?);
    }
    drive.id = props.text("id")?.unwrap_or_default();
    drive.file = props.text("file")?.filter(|f| !f.is_empty()).map(PathBuf::from);
    if let Some(file) = props.text("file.filename")? {
        drive.file = Some(file.into());
    }
    drive.format = props.text("format")?.or(props.text("driver")?).filter(|f| !f.is_empty());
    blockdev_arg::file(&props, &mut drive)?;
    blockdev_arg::backing(&mut props, &mut drive)?;
    if let Some(media) = props.text("media")? {
        drive.cdrom = match media.as_str() {
            "disk" => false,
            "cdrom" => true,
            _ => return Err(props.error(format!("media={media}: accepted are disk, cdrom"))),
        };
    }
    place(&mut props, &mut drive)?;
    if let Some(name) = props.text("cache")? {
        let accepted = "none, writeback, writethrough, directsync, unsafe";
        drive.cache = Cache::from_name(&name)
            .ok_or_else(|| props.error(format!("cache={name}: accepted are {accepted}")))?;
    }
    if props.switch("cache.direct")? == Some(true) {
        drive.cache = Cache::None;
    }
    if props.switch("cache.no-flush")? == Some(true) {
        drive.cache = Cache::Unsafe;
    }
    for key in ["readonly", "read-only"] {
        drive.read_only |= props.switch(key)?.unwrap_or(false);
    }
    drive.snapshot = props.switch("snapshot")?;
    drive.discard |= blockdev_arg::discard(&mut props)?.unwrap_or(false);
    if let Some(how) = blockdev_arg::detect_zeroes(&mut props)? {
        drive.detect_zeroes = how;
    }
    drive.werror = policy(&mut props, "werror")?;
    drive.rerror = policy(&mut props, "rerror")?;
    drive.serial = props.text("serial")?;
    drive.any_backing = props.switch("backing-anywhere")?.unwrap_or(false);
    if let Some(aio) = blockdev_arg::aio(&mut props, "aio")? {
        drive.aio = aio;
    }
    blockdev_arg::check_aio(&props, &drive)?;
    if props.switch("copy-on-read")? == Some(true) {
        drive.copy_on_read = true;
    }
    if drive.copy_on_read && drive.read_only {
        return Err(props.error("copy-on-read=on and readonly=on exclude each other"));
    }
    for key in ["group", "throttling.group"] {
        drive.group = props.text(key)?.filter(|name| !name.is_empty()).or(drive.group.take());
    }
    drive.limits = limits(&mut props, [BYTES, REQUESTS], ["iops_size", "throttling.iops-size"])?;
    drive.limits.validate().map_err(|why| props.error(format!("throttling: {why}")))?;
    props.finish()?;
    if drive.cdrom && drive.snapshot == Some(true) {
        drive.snapshot = None;
    }
    Ok(drive)
}

/// A limit's old name, and the new one, for the rate, the burst and its length.
type LimitNames = [&'static str; 6];

const BYTES: [LimitNames; 3] = [
    [
        "bps",
        "throttling.bps-total",
        "bps_max",
        "throttling.bps-total-max",
        "bps_max_length",
        "throttling.bps-total-max-length",
    ],
    [
        "bps_rd",
        "throttling.bps-read",
        "bps_rd_max",
        "throttling.bps-read-max",
        "bps_rd_max_length",
        "throttling.bps-read-max-length",
    ],
    [
        "bps_wr",
        "throttling.bps-write",
        "bps_wr_max",
        "throttling.bps-write-max",
        "bps_wr_max_length",
        "throttling.bps-write-max-length",
    ],
];

const REQUESTS: [LimitNames; 3] = [
    [
        "iops",
        "throttling.iops-total",
        "iops_max",
        "throttling.iops-total-max",
        "iops_max_length",
        "throttling.iops-total-max-length",
    ],
    [
        "iops_rd",
        "throttling.iops-read",
        "iops_rd_max",
        "throttling.iops-read-max",
        "iops_rd_max_length",
        "throttling.iops-read-max-length",
    ],
    [
        "iops_wr",
        "throttling.iops-write",
        "iops_wr_max",
        "throttling.iops-write-max",
        "iops_wr_max_length",
        "throttling.iops-write-max-length",
    ],
];

/// The names of a limit of a group's: as properties of the object, and in its structure of limits.
macro_rules! of_group {
    ($name:literal) => {
        [
            concat!("x-", $name),
            concat!("limits.", $name),
            concat!("x-", $name, "-max"),
            concat!("limits.", $name, "-max"),
            concat!("x-", $name, "-max-length"),
            concat!("limits.", $name, "-max-length"),
        ]
    };
}

const GROUP: [[LimitNames; 3]; 2] = [
    [of_group!("bps-total"), of_group!("bps-read"), of_group!("bps-write")],
    [of_group!("iops-total"), of_group!("iops-read"), of_group!("iops-write")],
];

/// `-object throttle-group`: its name, and what drives share that are in it.
pub fn throttle_group(text: &str) -> Result<(String, Limits), Error> {
    let mut props = Props::parse("-object", text, Some("qom-type"));
    props.ignore(&["qom-type"]);
    let Some(id) = props.text("id")?.filter(|id| !id.is_empty()) else {
        return Err(props.error("throttle-group: id= is missing"));
    };
    let limits = limits(&mut props, GROUP, ["x-iops-size", "limits.iops-size"])?;
    limits.validate().map_err(|why| props.error(format!("throttle-group: {why}")))?;
    props.finish()?;
    Ok((id, limits))
}

/// Limits by these names; of a pair the second counts if both are given.
fn limits(props: &mut Props, names: [[LimitNames; 3]; 2], size: [&'static str; 2]) -> Result<Limits, Error> {
    let mut one = |old: &'static str, new: &'static str| -> Result<u64, Error> {
        let old = props.number(old, 0, u64::MAX)?;
        Ok(props.number(new, 0, u64::MAX)?.or(old).unwrap_or(0))
    };
    let mut rate = |[a, b, c, d, e, f]: LimitNames| -> Result<Rate, Error> {
        Ok(Rate { per_second: one(a, b)?, max: one(c, d)?, max_length: one(e, f)? })
    };
    let mut limits = Limits::default();
    let [bytes, requests] = names;
    for (limit, names) in
        limits.bytes.iter_mut().chain(&mut limits.requests).zip(bytes.into_iter().chain(requests))
    {
        *limit = rate(names)?;
    }
    limits.request_size = one(size[0], size[1])?;
    Ok(limits)
}

fn interface(props: &Props, name: &str) -> Result<Interface, Error> {
    const ALL: &[(&str, Interface)] = &[
        ("ide", Interface::Ide),
        ("virtio", Interface::Virtio),
        ("floppy", Interface::Floppy),
        ("pflash", Interface::Pflash),
        ("none", Interface::None),
    ];
    if let Some((_, interface)) = ALL.iter().find(|i| i.0 == name) {
        return Ok(*interface);
    }
    if matches!(name, "scsi" | "sd" | "mtd" | "xen") {
        return Err(props.error(format!("if={name}: this board has no such controller; add one by -device")));
    }
    let names = || ALL.iter().map(|i| i.0);
    let hint = did_you_mean("", name, names());
    let hint = if hint.is_empty() {
        format!(" (accepted: {})", names().collect::<Vec<_>>().join(", "))
    } else {
        hint
    };
    Err(props.error(format!("if={name}: unknown interface{hint}")))
}

/// `index=`, or `bus=` and `unit=`.
fn place(props: &mut Props, drive: &mut Drive) -> Result<(), Error> {
    const MOST: u64 = 255;
    let index = props.number("index", 0, MOST)?.map(|n| n as u32);
    let (bus, unit) = (props.number("bus", 0, MOST)?, props.number("unit", 0, MOST)?);
    if index.is_some() && (bus.is_some() || unit.is_some()) {
        return Err(props.error("index and bus or unit exclude each other"));
    }
    drive.index = index;
    drive.bus = bus.map(|n| n as u32);
    drive.unit = unit.map(|n| n as u32);
    Ok(())
}

fn policy(props: &mut Props, key: &'static str) -> Result<Option<OnError>, Error> {
    let Some(name) = props.text(key)? else { return Ok(None) };
    Ok(Some(match name.as_str() {
        "report" => OnError::Report,
        "ignore" => OnError::Ignore,
        "stop" => OnError::Stop,
        "enospc" if key == "werror" => OnError::Enospc,
        _ => {
            let enospc = if key == "werror" { ", enospc" } else { "" };
            return Err(props.error(format!("{key}={name}: accepted are report, ignore, stop{enospc}")));
        }
    }))
}

/// One of the options that are a drive by themselves, or an argument that is one.
pub fn plain_drive(option: &str, file: &OsStr) -> Drive {
    let (interface, index, cdrom) = match option {
        "hdb" => (Interface::Ide, 1, false),
        "hdc" => (Interface::Ide, 2, false),
        "hdd" => (Interface::Ide, 3, false),
        "cdrom" => (Interface::Ide, 2, true),
        "fda" => (Interface::Floppy, 0, false),
        "fdb" => (Interface::Floppy, 1, false),
        "pflash" => (Interface::Pflash, 0, false),
        _ => (Interface::Ide, 0, false),
    };
    let dashed = if option == ALONE { ALONE.into() } else { format!("-{option}") };
    let index = (interface != Interface::Pflash).then_some(index);
    Drive {
        option: dashed,
        // A board without IDE takes the disk as what it has.
        interface: (interface != Interface::Ide).then_some(interface),
        index,
        cdrom,
        file: (!file.is_empty()).then(|| file.into()),
        ..Drive::default()
    }
}

/// Gives drives their names and places as QEMU does, and adds the devices that they stand for. `snapshot` is the
/// option of that name.
pub fn settle(config: &mut Config, snapshot: bool) -> Result<(), Error> {
    let board = config.machine.board;
    let usual = if board.pci { Interface::Ide } else { Interface::Virtio };
    let mut drives = std::mem::take(&mut config.drives);
    for drive in &mut drives {
        drive.interface.get_or_insert(usual);
        if !drive.cdrom {
            drive.snapshot.get_or_insert(snapshot);
        }
    }
    // `-machine pflash0=ID` makes a chip of a drive without an interface.
    for (n, id) in config.machine.pflash.iter().enumerate() {
        let Some(id) = id else { continue };
        let free = |d: &&mut Drive| d.id == *id && d.interface == Some(Interface::None);
        let Some(drive) = drives.iter_mut().find(free) else {
            return Err(Error::new(format!(
                "-machine pflash{n}={id}: there is no -drive with if=none,id={id}"
            )));
        };
        (drive.interface, drive.index) = (Some(Interface::Pflash), Some(n as u32));
    }
    if default_cdrom(config, &drives) {
        let option = "the default CD-ROM drive".into();
        let interface = Some(Interface::Ide);
        drives.push(Drive { option, interface, index: Some(2), cdrom: true, ..Drive::default() });
    }
    if default_floppy(config, &drives) {
        let option = "the default floppy drive".into();
        drives.push(Drive { option, interface: Some(Interface::Floppy), index: Some(0), ..Drive::default() });
    }
    let mut taken: Vec<(Interface, u32)> = Vec::new();
    // Those with a place of their own first.
    for fixed in [true, false] {
        for drive in drives.iter_mut().filter(|d| d.has_place() == fixed) {
            set_place(drive, board, &mut taken)?;
        }
    }
    for n in 0..drives.len() {
        name(&mut drives, n, board)?;
        if let Some(text) = stands_for(&drives[n], board) {
            config.devices.push(device_arg::device(&text)?);
        }
    }
    // A drive is a floppy's however it was plugged in.
    for device in config.devices.iter().filter(|d| d.kind.bus == Bus::Floppy) {
        let id = device.drives().next();
        drives
            .iter_mut()
            .filter(|d| Some(d.id.as_str()) == id)
            .for_each(|d| d.interface = Some(Interface::Floppy));
    }
    config.drives = drives;
    for drive in config.drives.iter().filter(|d| d.option == "-blockdev") {
        if let Some(group) = &drive.group
            && !config.throttle_groups.iter().any(|(name, _)| name == group)
        {
            return Err(Error::new(format!(
                "-blockdev driver=throttle,throttle-group={group}: there is no -object throttle-group,id={group}"
            )));
        }
    }
    let used = config.devices.iter().flat_map(|d| d.drives().map(|id| (d.kind.name, id.to_owned())));
    for (device, id) in used.collect::<Vec<_>>() {
        if config.drives.iter().all(|d| d.id != id) {
            let hint = did_you_mean("", &id, config.drives.iter().map(|d| d.id.as_str()));
            return Err(Error::new(format!("-device {device}: there is no -drive with id={id}{hint}")));
        }
    }
    Ok(())
}

/// Whether the board's CD-ROM drive is there, which is empty: as in QEMU it is unless a drive has its place, or the
/// user adds drives as devices.
fn default_cdrom(config: &Config, drives: &[Drive]) -> bool {
    const DRIVES: [&str; 4] = ["ide-cd", "ide-hd", "scsi-cd", "scsi-hd"];
    let own = config.devices.iter().any(|d| DRIVES.contains(&d.kind.name));
    let is_third =
        |d: &Drive| d.interface == Some(Interface::Ide) && d.number(units(config.machine.board)) == Some(2);
    config.machine.board.pci && !config.no_defaults && !own && !drives.iter().any(is_third)
}

/// Drives on a bus of the board's own controller.
fn units(board: &Description) -> u32 {
    if board.sata { 1 } else { 2 }
}

/// Whether drive A is there, which is empty: as in QEMU it is unless the user gives it, or adds drives as devices.
fn default_floppy(config: &Config, drives: &[Drive]) -> bool {
    let own = config.devices.iter().any(|d| d.kind.name == "floppy");
    // One without a place takes the first.
    let is_first = |d: &Drive| d.interface == Some(Interface::Floppy) && d.number(2).is_none_or(|n| n == 0);
    config.machine.board.floppies && !config.no_defaults && !own && !drives.iter().any(is_first)
}

fn set_place(drive: &mut Drive, board: &Description, taken: &mut Vec<(Interface, u32)>) -> Result<(), Error> {
    let interface = drive.interface.unwrap_or(Interface::None);
    if interface == Interface::None {
        return Ok(());
    }
    let most = match interface {
        Interface::Ide if board.sata => 6,
        Interface::Ide => 4,
        Interface::Floppy | Interface::Pflash => 2,
        _ => 256,
    };
    let units = if interface == Interface::Ide { units(board) } else { 2 };
    if interface == Interface::Ide && drive.unit.is_some_and(|unit| unit >= units) {
        return Err(Error::new(format!("{}: a bus has units from 0 to {}", drive.shown(), units - 1)));
    }
    let wanted = drive.number(units);
    let free = || (0..most).find(|n| !taken.contains(&(interface, *n)));
    let Some(number) = wanted.or_else(free) else {
        return Err(Error::new(format!(
            "{}: all {most} places of {interface} drives are taken",
            drive.shown()
        )));
    };
    if number >= most {
        let shown = drive.shown();
        return Err(Error::new(format!("{shown}: {interface} drives have places from 0 to {}", most - 1)));
    }
    if taken.contains(&(interface, number)) {
        return Err(Error::new(format!(
            "{}: index={number} of {interface} is taken by another drive",
            drive.shown()
        )));
    }
    taken.push((interface, number));
    drive.index = Some(number);
    (drive.bus, drive.unit) = (None, None);
    Ok(())
}

/// QEMU's name for a drive that was not given one.
fn name(drives: &mut [Drive], n: usize, board: &Description) -> Result<(), Error> {
    let drive = &drives[n];
    let id = if !drive.id.is_empty() {
        drive.id.clone()
    } else {
        let number = drive.index.unwrap_or(n as u32);
        let media = if drive.cdrom { "cd" } else { "hd" };
        match drive.interface.unwrap_or(Interface::None) {
            Interface::Ide => {
                let units = units(board);
                format!("ide{}-{media}{}", number / units, number % units)
            }
            Interface::None => format!("none{n}"),
            other => format!("{other}{number}"),
        }
    };
    if drives.iter().enumerate().any(|(i, d)| i != n && d.id == id) {
        return Err(Error::new(format!("{}: another drive has id={id}", drives[n].shown())));
    }
    drives[n].id = id;
    Ok(())
}

/// The `-device` that a drive with an interface stands for.
fn stands_for(drive: &Drive, board: &Description) -> Option<String> {
    let id = drive.id.replace(',', ",,");
    let number = drive.index.unwrap_or_default();
    let mut text = match drive.interface.unwrap_or(Interface::None) {
        Interface::None | Interface::Pflash => return None,
        Interface::Floppy => format!("floppy,drive={id},unit={number}"),
        Interface::Ide => {
            let kind = if drive.cdrom { "ide-cd" } else { "ide-hd" };
            let units = units(board);
            format!("{kind},drive={id},bus=ide.{},unit={}", number / units, number % units)
        }
        Interface::Virtio if board.pci => format!("virtio-blk-pci,drive={id}"),
        Interface::Virtio => format!("virtio-blk-device,drive={id}"),
    };
    if let Some(serial) = drive.serial.as_ref().filter(|_| drive.interface != Some(Interface::Floppy)) {
        text.push_str(&format!(",serial={}", serial.replace(',', ",,")));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::build;
    use crate::config::DiskAio;

    fn config(words: &str) -> Result<Config, Error> {
        let words: Vec<_> = words.split(' ').map(std::ffi::OsString::from).collect();
        build::config("mynah run", &words)
    }

    fn config_of(words: &str) -> Config {
        config(words).unwrap_or_else(|e| panic!("{words}: {e}"))
    }

    /// Names of drives, and the devices that they are.
    fn settled(words: &str) -> Vec<String> {
        let config = config(words).unwrap_or_else(|e| panic!("{words}: {e}"));
        let of = |d: &Drive| {
            let device = config.devices.iter().find(|k| k.drives().any(|id| id == d.id));
            let file = d.file.as_ref().map_or("-".into(), |f| f.display().to_string());
            format!("{} {file} {}", d.id, device.map_or("-", |d| d.kind.name))
        };
        config.drives.iter().map(of).collect()
    }

    fn refused(words: &str) -> String {
        config(words).expect_err(words).to_string()
    }

    #[test]
    fn drives_have_the_places_and_names_that_qemu_gives_them() {
        assert_eq!(settled("-display none"), ["ide1-cd0 - ide-cd", "floppy0 - floppy"]);
        assert_eq!(settled("-nodefaults"), [""; 0]);
        // On SATA each has a port of its own.
        assert_eq!(settled("-M q35"), ["ide2-cd0 - ide-cd"]);
        assert_eq!(
            settled("-M q35 -hda a -hdb b -cdrom c -drive file=d,bus=5"),
            ["ide0-hd0 a ide-hd", "ide1-hd0 b ide-hd", "ide2-cd0 c ide-cd", "ide5-hd0 d ide-hd"]
        );
        assert_eq!(
            settled("-hda a -cdrom b"),
            ["ide0-hd0 a ide-hd", "ide1-cd0 b ide-cd", "floppy0 - floppy"]
        );
        assert_eq!(settled("-fda a -fdb b -nodefaults"), ["floppy0 a floppy", "floppy1 b floppy"]);
        assert_eq!(settled("-fdb b"), ["floppy1 b floppy", "ide1-cd0 - ide-cd", "floppy0 - floppy"]);
        assert_eq!(settled("-drive if=floppy,file=a"), ["floppy0 a floppy", "ide1-cd0 - ide-cd"]);
        assert_eq!(settled("-drive if=none,id=x,file=a -device floppy,drive=x -nodefaults"), ["x a floppy"]);
        assert_eq!(
            settled("-machine pflash0=c -drive if=none,id=c,file=a -pflash b -nodefaults"),
            ["c a -", "pflash1 b -"]
        );
        assert_eq!(settled("-hdb a -hdd c -nodefaults"), ["ide0-hd1 a ide-hd", "ide1-hd1 c ide-hd"]);
        assert_eq!(
            settled("-drive file=a -drive file=b,index=0 -nodefaults"),
            ["ide0-hd1 a ide-hd", "ide0-hd0 b ide-hd"]
        );
        assert_eq!(
            settled("-drive file=a,if=virtio -drive file=b,if=virtio,id=mine -nodefaults"),
            ["virtio0 a virtio-blk-pci", "mine b virtio-blk-pci"]
        );
        assert_eq!(
            settled("-drive file=a,if=none,id=d -device ide-hd,drive=d"),
            ["d a ide-hd", "floppy0 - floppy"],
            "no default CD-ROM drive beside devices"
        );
        assert_eq!(
            settled("-M microvm -drive file=a,if=virtio -drive file=b"),
            ["virtio0 a virtio-blk-device", "virtio1 b virtio-blk-device"]
        );
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        assert!(refused("-hda a -drive file=b,index=0").contains("index=0 of ide is taken"));
        assert!(refused("-drive file=a,index=4").contains("places from 0 to 3"));
        assert!(refused("-drive file=a,index=1,bus=0").contains("exclude each other"));
        assert!(refused("-M q35 -drive file=a,index=6").contains("places from 0 to 5"));
        assert!(refused("-M q35 -drive file=a,bus=0,unit=1").contains("units from 0 to 0"));
        assert!(refused("-drive file=a,if=ied").contains("did you mean 'ide'?"));
        assert!(refused("-drive file=a,if=scsi").contains("no such controller"));
        assert!(refused("-drive file=a,cache=wb").contains("accepted are none, writeback"));
        assert!(refused("-drive file=a,rerror=enospc").contains("accepted are report, ignore, stop"));
        assert!(refused("-drive file=a,fromat=raw").contains("did you mean 'format'?"));
        assert!(refused("-drive file=nbd:h:1").contains("'nbd:' are not supported"));
        assert!(refused("-drive file=http://h/x").contains("'http:' are not supported"));
        assert!(refused("-drive file=a,bps=1,bps_rd=1").contains("bps-total excludes"));
        assert!(refused("-drive file=a,readonly=on,copy-on-read=on").contains("exclude each other"));
        assert!(refused("-device ide-hd,drive=x").contains("there is no -drive with id=x"));
        assert!(refused("-drive file=a,id=ide1-cd0,if=none").contains("another drive has id=ide1-cd0"));
    }

    #[test]
    fn properties_are_kept() {
        let config =
            config("-drive file=a,,b,format=qcow2,cache=none,werror=stop,readonly=on,serial=S -snapshot");
        let drives = config.unwrap().drives;
        let d = &drives[0];
        assert_eq!((d.file.as_deref(), d.format.as_deref()), (Some("a,b".as_ref()), Some("qcow2")));
        assert_eq!((d.cache, d.werror, d.read_only), (Cache::None, Some(OnError::Stop), true));
        assert_eq!((d.serial.as_deref(), d.snapshot), (Some("S"), Some(true)));
        assert_eq!(drives[1].snapshot, None, "a CD-ROM is not written");
        let config = config_of(
            "-drive file=a,throttling.bps-total=1000,bps_max=2000,iops_wr=5,detect-zeroes=unmap,discard=unmap",
        );
        let d = &config.drives[0];
        assert_eq!(d.limits.bytes[0], Rate { per_second: 1000, max: 2000, max_length: 0 });
        assert_eq!(d.limits.requests[2].per_second, 5);
        assert_eq!(d.detect_zeroes, mynah_block::DetectZeroes::Unmap);
        let config = config_of(
            "-object throttle-group,id=g,x-iops-total=50,x-iops-total-max=90,x-iops-total-max-length=3 \
             -object throttle-group,id=h,limits.bps-write=7,limits.bps-write-max=8 \
             -drive file=a,throttling.group=g -blockdev driver=raw,node-name=n,file.filename=x,file.aio=io_uring \
             -blockdev driver=throttle,node-name=t,throttle-group=h,file=n -device virtio-blk-pci,drive=t",
        );
        let groups: Vec<Option<&str>> = config.drives.iter().map(|d| d.group.as_deref()).collect();
        assert_eq!(groups[..2], [Some("g"), Some("h")]);
        assert_eq!((config.drives[1].id.as_str(), config.drives[1].aio), ("t", DiskAio::IoUring));
        let rates = &config.throttle_groups;
        assert_eq!(rates[0].1.requests[0], Rate { per_second: 50, max: 90, max_length: 3 });
        assert_eq!(rates[1].1.bytes[2], Rate { per_second: 7, max: 8, max_length: 0 });
        for (words, why) in [
            ("-object throttle-group,x-iops-total=5", "id= is missing"),
            ("-object throttle-group,id=g,x-iops-total-max=5", "wants iops-total"),
            ("-object throttle-group,id=g,x-iops-totl=5", "x-iops-total"),
            ("-object throttle-group,id=g -object throttle-group,id=g", "two"),
            (
                "-blockdev driver=raw,node-name=n,file.filename=x \
                 -blockdev driver=throttle,node-name=t,throttle-group=no,file=n",
                "-object throttle-group,id=no",
            ),
            ("-drive file=a,aio=native", "cache.direct=on"),
            ("-drive file=a,aio=natve", "threads, native, io_uring"),
            ("-blockdev driver=raw,node-name=n,file.filename=x,file.aio=native", "cache.direct=on"),
        ] {
            assert!(refused(words).contains(why), "{words}: {}", refused(words));
        }
        assert_eq!(config_of("-drive file=a,aio=native,cache=none").drives[0].aio, DiskAio::Native);
        let json =
            r#"-drive if=virtio,file=json:{"driver":"qcow2",,"file":{"driver":"file",,"filename":"x"}}"#;
        let d = &config_of(json).drives[0];
        assert_eq!((d.file.as_deref(), d.format.as_deref()), (Some("x".as_ref()), Some("qcow2")));
        let d = &config_of("-blockdev driver=raw,node-name=n,file.filename=x -device virtio-blk-pci,drive=n")
            .drives[0];
        assert_eq!((d.id.as_str(), d.file.as_deref()), ("n", Some("x".as_ref())));
    }
}
