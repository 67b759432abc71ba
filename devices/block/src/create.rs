//! New image files: the formats' options by name, as `-o` has them.
use crate::host::HostFile;
use crate::lock::{Use, lock};
use crate::open::OpenError;
use crate::qcow2::{Compression, CreateOptions, Preallocation, Qcow2};
use crate::storage::{Storage, write_zeros};
use crate::{vdi, vhd, vhdx, vmdk};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// An option of a format: its name, what it may be, and what it is for.
pub type FormatOption = (&'static str, &'static str, &'static str);

const RAW: &[FormatOption] = &[("preallocation", "off|falloc|full", "what of the file is set aside")];

const QCOW2: &[FormatOption] = &[
    ("compat", "0.10|1.1|v2|v3", "the version (default: 1.1)"),
    ("cluster_size", "SIZE", "from 512 to 2M (default: 64K)"),
    ("refcount_bits", "NUMBER", "a power of two up to 64 (default: 16)"),
    ("lazy_refcounts", "on|off", "refcounts may be written late (default: off)"),
    ("compression_type", "zlib|zstd", "how clusters are compressed (default: zlib)"),
    ("preallocation", "off|metadata|falloc|full", "what is set aside (default: off)"),
    ("backing_file", "FILE", "what it stands on"),
    ("backing_fmt", "FORMAT", "that file's format"),
];

const VDI: &[FormatOption] = &[("static", "on|off", "all blocks are there from the start (default: off)")];

const VPC: &[FormatOption] = &[
    (
        "subformat",
        "dynamic|fixed",
        "blocks are made when they are written, or all is there (default: dynamic)",
    ),
    ("force_size", "on|off", "taken for QEMU's sake: the size is exact in any case"),
];

const VHDX: &[FormatOption] = &[
    (
        "subformat",
        "dynamic|fixed",
        "blocks are made when they are written, or all is there (default: dynamic)",
    ),
    ("block_size", "SIZE", "from 1M to 256M, a power of two; 0 for what suits the size (default: 0)"),
    ("log_size", "SIZE", "from 1M to 256M (default: 1M)"),
    ("block_state_zero", "on|off", "blocks that are not there are said to be zeros (default: on)"),
];

const VMDK: &[FormatOption] = &[
    (
        "subformat",
        "KIND",
        "monolithicSparse (default), monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat, streamOptimized",
    ),
    ("adapter_type", "TYPE", "ide (default), buslogic, lsilogic or legacyESX"),
    ("hwversion", "NUMBER", "of VMware's hardware (default: 4, with compat6=on 6)"),
    ("compat6", "on|off", "hwversion=6 (default: off)"),
    ("toolsversion", "NUMBER", "of VMware's tools (default: 2147483647)"),
    ("zeroed_grain", "on|off", "grains may be said to be zeros (default: off)"),
];

/// What can be chosen with `-o` for a format, or `None` if there are no such images.
pub fn format_options(format: &str) -> Option<&'static [FormatOption]> {
    match format {
        "raw" => Some(RAW),
        "qcow2" => Some(QCOW2),
        "vdi" => Some(VDI),
        "vpc" => Some(VPC),
        "vhdx" => Some(VHDX),
        "vmdk" => Some(VMDK),
        _ => None,
    }
}

pub(crate) fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text.into())
}

pub(crate) fn switch(name: &str, value: &str) -> io::Result<bool> {
    match value {
        "on" | "true" | "yes" => Ok(true),
        "off" | "false" | "no" => Ok(false),
        _ => Err(invalid(format!("{name}={value}: it is on or off"))),
    }
}

/// Bytes: a number with one of K M G T P E, powers of 1024.
pub(crate) fn bytes(name: &str, value: &str) -> io::Result<u64> {
    let wrong = || invalid(format!("{name}={value}: it is a size"));
    let (digits, shift) = match value.find(|c: char| !c.is_ascii_digit()) {
        None => (value, 0),
        Some(at) => {
            let shift = match &value[at..] {
                "B" | "b" => 0,
                "K" | "k" => 10,
                "M" | "m" => 20,
                "G" | "g" => 30,
                "T" | "t" => 40,
                "P" | "p" => 50,
                "E" | "e" => 60,
                _ => return Err(wrong()),
            };
            (&value[..at], shift)
        }
    };
    let n: u64 = digits.parse().map_err(|_| wrong())?;
    n.checked_mul(1 << shift).ok_or_else(wrong)
}

/// What is chosen of a new qcow2 image by `options`.
///
/// # Errors
/// An option, or a value, that there is not: it is named.
pub fn qcow2_options(size: u64, options: &[(String, String)]) -> io::Result<CreateOptions> {
    let mut chosen = CreateOptions { size, ..CreateOptions::default() };
    for (name, value) in options {
        match name.as_str() {
            "compat" => {
                chosen.version = match value.as_str() {
                    "0.10" | "v2" => 2,
                    "1.1" | "v3" => 3,
                    _ => return Err(invalid(format!("compat={value}: it is 0.10 or 1.1"))),
                }
            }
            "cluster_size" => chosen.cluster_size = bytes(name, value)?,
            "refcount_bits" => {
                chosen.refcount_bits =
                    value.parse().map_err(|_| invalid(format!("refcount_bits={value}: it is a number")))?;
            }
            "lazy_refcounts" => chosen.lazy_refcounts = switch(name, value)?,
            "compression_type" => {
                chosen.compression = match value.as_str() {
                    "zlib" => Compression::Zlib,
                    "zstd" => Compression::Zstd,
                    _ => return Err(invalid(format!("compression_type={value}: it is zlib or zstd"))),
                }
            }
            "preallocation" => chosen.preallocation = preallocation(value, true)?,
            "backing_file" => chosen.backing.file = Some(value.clone()),
            "backing_fmt" => chosen.backing.format = Some(value.clone()),
            "encryption" | "encrypt.format" | "data_file" | "data_file_raw" | "extended_l2"
                if matches!(value.as_str(), "off") => {}
            "encryption" | "encrypt.format" | "data_file" | "data_file_raw" | "extended_l2" => {
                return Err(invalid(format!("{name}={value} is not supported")));
            }
            _ => return Err(unknown("qcow2", name)),
        }
    }
    Ok(chosen)
}

/// What is chosen of a new VMDK.
fn vmdk_options(size: u64, options: &[(String, String)]) -> io::Result<vmdk::Options> {
    let mut chosen = vmdk::Options::new(size);
    let number = |name: &str, value: &str| match value.parse::<u32>() {
        Ok(n) => Ok(n.to_string()),
        Err(_) => Err(invalid(format!("{name}={value}: it is a number"))),
    };
    for (name, value) in options {
        match name.as_str() {
            "subformat" => {
                chosen.kind = vmdk::Kind::from_name(value).ok_or_else(|| {
                    invalid(format!("subformat={value}: there is no such kind that is made"))
                })?;
            }
            "adapter_type" => {
                if !["ide", "buslogic", "lsilogic", "legacyESX"].contains(&value.as_str()) {
                    return Err(invalid(format!("adapter_type={value}: there is no such adapter")));
                }
                chosen.adapter = value.clone();
            }
            "hwversion" => chosen.hardware = number(name, value)?,
            "compat6" => {
                if switch(name, value)? {
                    chosen.hardware = "6".into();
                }
            }
            "toolsversion" => chosen.tools = number(name, value)?,
            "zeroed_grain" => chosen.zeroed_grain = switch(name, value)?,
            "backing_file" | "backing_fmt" => {
                return Err(invalid(format!(
                    "{name}={value}: a vmdk that stands on another image is not made"
                )));
            }
            _ => return Err(unknown("vmdk", name)),
        }
    }
    if chosen.zeroed_grain && chosen.kind != vmdk::Kind::MonolithicSparse {
        return Err(invalid("zeroed_grain=on: only a monolithicSparse image has such grains"));
    }
    Ok(chosen)
}

fn preallocation(value: &str, metadata: bool) -> io::Result<Preallocation> {
    Ok(match value {
        "off" => Preallocation::Off,
        "metadata" if metadata => Preallocation::Metadata,
        "falloc" => Preallocation::Falloc,
        "full" => Preallocation::Full,
        _ => return Err(invalid(format!("preallocation={value}: there is no such way"))),
    })
}

fn unknown(format: &str, name: &str) -> io::Error {
    let names: Vec<&str> = format_options(format).unwrap_or_default().iter().map(|(n, ..)| *n).collect();
    invalid(format!("{format} has no option '{name}'; it has: {}", names.join(", ")))
}

/// Makes an image file, in place of one that is there already.
///
/// # Errors
/// Somebody uses the file that is there; what is chosen cannot be; the host's.
pub fn create(path: &Path, format: &str, size: u64, options: &[(String, String)]) -> Result<(), OpenError> {
    let error = |cause: io::Error| OpenError { path: path.display().to_string(), cause };
    let make = plan(format, size, options).map_err(error)?;
    let storage: Arc<dyn Storage> = Arc::new(new_file(path).map_err(error)?);
    make(&storage, path).map_err(error)
}

/// Writes a new image to an empty file.
type Make = Box<dyn FnOnce(&Arc<dyn Storage>, &Path) -> io::Result<()>>;

/// How an image with these options is made: nothing is touched before all of them are known to be right.
fn plan(format: &str, size: u64, options: &[(String, String)]) -> io::Result<Make> {
    // Whole sectors, as QEMU has it.
    let size = size.checked_next_multiple_of(512).filter(|n| *n <= i64::MAX as u64);
    let size = size.ok_or_else(|| invalid("the size is too large"))?;
    Ok(match format {
        "raw" => {
            let mut how = Preallocation::Off;
            for (name, value) in options {
                match name.as_str() {
                    "preallocation" => how = preallocation(value, false)?,
                    _ => return Err(unknown(format, name)),
                }
            }
            Box::new(move |storage, _| raw(&**storage, size, how))
        }
        "qcow2" => {
            let chosen = qcow2_options(size, options)?;
            chosen.validate()?;
            Box::new(move |storage, _| Qcow2::create(storage, &chosen))
        }
        "vdi" => {
            let mut all = false;
            for (name, value) in options {
                match name.as_str() {
                    "static" => all = switch(name, value)?,
                    _ => return Err(unknown(format, name)),
                }
            }
            Box::new(move |storage, _| vdi::create(&**storage, size, all))
        }
        "vpc" => {
            let mut fixed = false;
            for (name, value) in options {
                match (name.as_str(), value.as_str()) {
                    ("subformat", "fixed" | "dynamic") => fixed = value == "fixed",
                    ("subformat", _) => {
                        return Err(invalid(format!("subformat={value}: it is dynamic or fixed")));
                    }
                    ("force_size", _) => {
                        switch(name, value)?;
                    }
                    _ => return Err(unknown(format, name)),
                }
            }
            Box::new(move |storage, _| vhd::create(&**storage, size, fixed))
        }
        "vhdx" => {
            let mut chosen = vhdx::Options::new(size);
            for (name, value) in options {
                match (name.as_str(), value.as_str()) {
                    ("subformat", "fixed" | "dynamic") => chosen.fixed = value == "fixed",
                    ("subformat", _) => {
                        return Err(invalid(format!("subformat={value}: it is dynamic or fixed")));
                    }
                    ("block_size", _) => chosen.block_size = bytes(name, value)?,
                    ("log_size", _) => chosen.log_size = bytes(name, value)?,
                    ("block_state_zero", _) => chosen.block_state_zero = switch(name, value)?,
                    _ => return Err(unknown(format, name)),
                }
            }
            let chosen = chosen.validate()?;
            Box::new(move |storage, _| vhdx::create(&**storage, &chosen))
        }
        "vmdk" => {
            let chosen = vmdk_options(size, options)?;
            chosen.validate()?;
            Box::new(move |storage, path| {
                let name = path.file_name().and_then(|n| n.to_str());
                let name = name.filter(|n| !n.contains(['"', '\n', '\r']));
                let name = name.ok_or_else(|| invalid("such a name cannot stand in a descriptor"))?;
                let mut new = |name: &str| -> io::Result<Arc<dyn Storage>> {
                    let file = new_file(&path.with_file_name(name));
                    Ok(Arc::new(file.map_err(|e| io::Error::new(e.kind(), format!("{name}: {e}")))?))
                };
                vmdk::create(&**storage, name, &chosen, &mut new)
            })
        }
        _ => return Err(invalid(format!("'{format}' images cannot be made"))),
    })
}

/// An empty file that nobody else uses. A block device stays as large as it is.
fn new_file(path: &Path) -> io::Result<HostFile> {
    match fs::OpenOptions::new().read(true).write(true).create_new(true).open(path) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e),
    }
    let file = HostFile::open(path, true, false)?;
    lock(file.file(), Use::Write)?;
    if !file.is_device() {
        file.set_len(0)?;
    }
    Ok(file)
}

fn raw(storage: &dyn Storage, size: u64, how: Preallocation) -> io::Result<()> {
    if storage.len()? < size {
        storage.set_len(size)?;
    }
    match how {
        Preallocation::Off | Preallocation::Metadata => Ok(()),
        Preallocation::Falloc => storage.allocate(0, size),
        Preallocation::Full => write_zeros(storage, 0, size),
    }
}
