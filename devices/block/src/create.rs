//! New image files: the formats' options by name, as `-o` has them.
use crate::host::HostFile;
use crate::lock::{Use, lock};
use crate::open::OpenError;
use crate::qcow2::{Compression, CreateOptions, Preallocation, Qcow2};
use crate::storage::{Storage, write_zeros};
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

/// What can be chosen with `-o` for a format, or `None` if there are no such images.
pub fn format_options(format: &str) -> Option<&'static [FormatOption]> {
    match format {
        "raw" => Some(RAW),
        "qcow2" => Some(QCOW2),
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
    let chosen = match format {
        "raw" => {
            let mut how = Preallocation::Off;
            for (name, value) in options {
                match name.as_str() {
                    "preallocation" => how = preallocation(value, false).map_err(error)?,
                    _ => return Err(error(unknown("raw", name))),
                }
            }
            if size > i64::MAX as u64 {
                return Err(error(invalid("the size is too large")));
            }
            Err(how)
        }
        "qcow2" => {
            let chosen = qcow2_options(size, options).map_err(error)?;
            Ok(chosen)
        }
        _ => return Err(error(invalid(format!("'{format}' images cannot be made")))),
    };
    let file = new_file(path).map_err(error)?;
    let storage: Arc<dyn Storage> = Arc::new(file);
    match chosen {
        Ok(chosen) => Qcow2::create(&storage, &chosen).map_err(error),
        Err(how) => raw(&*storage, size, how).map_err(error),
    }
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
