//! New image files: the formats' options by name, as `-o` has them.
use crate::host::HostFile;
use crate::lock::{Use, lock};
use crate::open::OpenError;
use crate::qcow2::{Compression, CreateOptions, Preallocation, Qcow2};
use crate::storage::{Storage, write_zeros};
use crate::{vdi, vhd};
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

/// What can be chosen with `-o` for a format, or `None` if there are no such images.
pub fn format_options(format: &str) -> Option<&'static [FormatOption]> {
    match format {
        "raw" => Some(RAW),
        "qcow2" => Some(QCOW2),
        "vdi" => Some(VDI),
        "vpc" => Some(VPC),
        _ => None,
    }
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text.into())
}

fn switch(name: &str, value: &str) -> io::Result<bool> {
    match value {
        "on" | "true" | "yes" => Ok(true),
        "off" | "false" | "no" => Ok(false),
        _ => Err(invalid(format!("{name}={value}: it is on or off"))),
    }
}

/// Bytes: a number with one of K M G T P E, powers of 1024.
fn bytes(name: &str, value: &str) -> io::Result<u64> {
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
    make(&storage).map_err(error)
}

/// Writes a new image to an empty file.
type Make = Box<dyn FnOnce(&Arc<dyn Storage>) -> io::Result<()>>;

/// How an image with these options is made: nothing is touched before all of them are known to be right.
fn plan(format: &str, size: u64, options: &[(String, String)]) -> io::Result<Make> {
    if size > i64::MAX as u64 {
        return Err(invalid("the size is too large"));
    }
    Ok(match format {
        "raw" => {
            let mut how = Preallocation::Off;
            for (name, value) in options {
                match name.as_str() {
                    "preallocation" => how = preallocation(value, false)?,
                    _ => return Err(unknown(format, name)),
                }
            }
            Box::new(move |storage| raw(&**storage, size, how))
        }
        "qcow2" => {
            let chosen = qcow2_options(size, options)?;
            chosen.validate()?;
            Box::new(move |storage| Qcow2::create(storage, &chosen))
        }
        "vdi" => {
            let mut all = false;
            for (name, value) in options {
                match name.as_str() {
                    "static" => all = switch(name, value)?,
                    _ => return Err(unknown(format, name)),
                }
            }
            Box::new(move |storage| vdi::create(&**storage, size, all))
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
            Box::new(move |storage| vhd::create(&**storage, size, fixed))
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
