//! Opening an image by what the user says of it, with all that it stands on.
use crate::host::HostFile;
use crate::image::Image;
use crate::lock::{Use, lock};
use crate::probe;
use crate::qcow2::{BackingName, CreateOptions, OpenMode, Qcow2};
use crate::raw::Raw;
use crate::storage::Storage;
use crate::{vdi, vhd, vhdx, vmdk};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most images that stand on one another.
pub const MAX_CHAIN: usize = 128;

/// The formats that there are, as `format=` names them.
pub const FORMATS: &[&str] = &["raw", "qcow2", "vdi", "vpc", "vhdx", "vmdk"];

/// `cache=`: what of the host's and the image's caches is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// The host's page cache is; a write is durable after a flush.
    #[default]
    Writeback,
    /// The host's page cache is not, where it can be done without.
    None,
    /// The host's page cache is; a write is durable when it ends.
    Writethrough,
    /// The host's page cache is not; a write is durable when it ends.
    Directsync,
    /// Flushes do nothing.
    Unsafe,
}

impl Cache {
    /// The one of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "writeback" => Self::Writeback,
            "none" | "off" => Self::None,
            "writethrough" => Self::Writethrough,
            "directsync" => Self::Directsync,
            "unsafe" => Self::Unsafe,
            _ => return None,
        })
    }

    /// Whether the host's page cache is gone past.
    pub fn direct(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }

    /// For [`crate::Options::write_through`].
    pub fn write_through(self) -> bool {
        matches!(self, Self::Writethrough | Self::Directsync)
    }

    /// For [`crate::Options::no_flush`].
    pub fn no_flush(self) -> bool {
        self == Self::Unsafe
    }
}

/// What becomes of the backing file that an image names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// It is opened if it is in the image's folder, or below.
    #[default]
    InFolder,
    /// It is opened wherever it is.
    Anywhere,
    /// It is not opened: what the image has not reads as zeros.
    Ignore,
    /// This file is opened instead.
    File {
        /// Where it is.
        path: PathBuf,
        /// Its format; told by its header if nobody has said.
        format: Option<String>,
    },
}

/// What the user says of an image: `-drive file=`, `format=` and so on.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// `file=`.
    pub path: PathBuf,
    /// `format=`; told by the header if nobody has said.
    pub format: Option<String>,
    /// `readonly=`.
    pub read_only: bool,
    /// `cache=`.
    pub cache: Cache,
    /// What it stands on.
    pub backing: Backing,
    /// `snapshot=on`: what is written goes to a file that vanishes.
    pub snapshot: bool,
    /// `force-share=on`: it is read though somebody may be writing to it; for reading only.
    pub force_share: bool,
    /// To check or repair it: damage is no reason not to open it.
    pub check: bool,
    /// What it held when this internal snapshot was made; for reading only.
    pub at_snapshot: Option<String>,
}

impl OpenOptions {
    /// To write to the image at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// To read it.
    pub fn read_only(path: impl Into<PathBuf>) -> Self {
        Self { read_only: true, ..Self::new(path) }
    }
}

/// Why an image cannot be opened: the file, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {cause}")]
pub struct OpenError {
    /// As the user, or the image that stands on it, names it.
    pub path: String,
    /// What is wrong.
    #[source]
    pub cause: io::Error,
}

/// Opens an image.
///
/// # Errors
/// The host's; somebody else uses the file; the format is unknown, or the image is damaged or asks for what is not
/// there; so it is with a file that it stands on.
pub fn open(options: &OpenOptions) -> Result<Arc<dyn Image>, OpenError> {
    let image = open_in_chain(options, &mut Vec::new())?;
    if !options.snapshot {
        return Ok(image);
    }
    overlay(image).map_err(|cause| OpenError { path: options.path.display().to_string(), cause })
}

/// Opens the file of an image, and locks it.
///
/// # Errors
/// The host's; somebody else uses it.
pub fn open_file(options: &OpenOptions) -> Result<Arc<HostFile>, OpenError> {
    let write = !options.read_only && !options.snapshot;
    let file = HostFile::open(&options.path, write, options.cache.direct())
        .and_then(|file| {
            if !options.force_share || write {
                lock(file.file(), if write { Use::Write } else { Use::Read })?;
            }
            Ok(file)
        })
        .map_err(|cause| OpenError { path: options.path.display().to_string(), cause })?;
    Ok(Arc::new(file))
}

/// The format of the image in `storage`, by its header; raw if it has none.
///
/// # Errors
/// The host's.
pub fn probe_format(storage: &dyn Storage) -> io::Result<&'static str> {
    let mut sector = [0; 512];
    storage.read_at(0, &mut sector)?;
    Ok(probe::by_header(&sector).unwrap_or("raw"))
}

fn open_in_chain(options: &OpenOptions, above: &mut Vec<PathBuf>) -> Result<Arc<dyn Image>, OpenError> {
    let error = |cause: io::Error| OpenError { path: options.path.display().to_string(), cause };
    let invalid = |text: String| error(io::Error::new(io::ErrorKind::InvalidInput, text));
    let canonical = fs::canonicalize(&options.path).map_err(error)?;
    if above.contains(&canonical) {
        return Err(invalid("it stands on itself, by way of its backing file".into()));
    }
    if above.len() >= MAX_CHAIN {
        return Err(invalid(format!("more than {MAX_CHAIN} images stand on one another")));
    }
    let file = open_file(options)?;
    let format = match options.format.as_deref() {
        Some(format) => format,
        None => probe_format(&*file).map_err(error)?,
    };
    let read_only = options.read_only || options.snapshot;
    let storage: Arc<dyn Storage> = file;
    let image: Arc<dyn Image> = match format {
        "raw" if options.at_snapshot.is_none() => {
            Arc::new(Raw::open(storage, read_only, options.format.is_none()).map_err(error)?)
        }
        "qcow2" => {
            let name = Qcow2::backing_name(&*storage).map_err(error)?;
            above.push(canonical.clone());
            let backing = open_backing(options, &canonical, &name, above)?;
            above.pop();
            let mode = OpenMode { read_only, check: options.check };
            let image = Qcow2::open(storage, backing, mode).map_err(error)?;
            if let Some(name) = &options.at_snapshot {
                image.show_snapshot(name).map_err(error)?;
            }
            Arc::new(image)
        }
        "vdi" if options.at_snapshot.is_none() => {
            let parent = match vdi::parent(&*storage).map_err(error)? {
                None => None,
                Some(_) if matches!(options.backing, Backing::InFolder | Backing::Anywhere) => {
                    return Err(invalid(
                        "a differencing VDI image has no name of its parent in it: say which file that is \
                         (backing.driver=vdi,backing.file.filename=...)"
                            .into(),
                    ));
                }
                Some(identity) => open_parent(options, &canonical, None, identity, above)?,
            };
            vdi::open(storage, read_only, parent).map_err(error)?
        }
        "vpc" if options.at_snapshot.is_none() => {
            let parent = match vhd::parent(&*storage).map_err(error)? {
                None => None,
                Some(vhd::Parent { name, identity }) => {
                    let image = open_parent(options, &canonical, Some(&name), identity, above)?;
                    Some((name, image))
                }
            };
            vhd::open(storage, read_only, parent).map_err(error)?
        }
        "vhdx" if options.at_snapshot.is_none() => Arc::new(vhdx::open(storage, read_only).map_err(error)?),
        "vmdk" if options.at_snapshot.is_none() => {
            let extent = |name: &str, write: bool| open_extent(options, &canonical, name, write);
            Arc::new(vmdk::open(storage, read_only, &extent).map_err(error)?)
        }
        other if options.at_snapshot.is_some() && FORMATS.contains(&other) => {
            return Err(invalid(format!("the format '{other}' has no internal snapshots")));
        }
        other => {
            return Err(invalid(format!(
                "the format '{other}' is not supported; there are: {}",
                FORMATS.join(", ")
            )));
        }
    };
    Ok(image)
}

/// Opens what a differencing image at `path` stands on, and looks whether it is that.
fn open_parent(
    options: &OpenOptions,
    path: &Path,
    name: Option<&str>,
    identity: [u8; 16],
    above: &mut Vec<PathBuf>,
) -> Result<Option<Arc<dyn Image>>, OpenError> {
    let name = BackingName { file: name.map(Into::into), format: None };
    above.push(path.to_owned());
    let parent = open_backing(options, path, &name, above)?;
    above.pop();
    if parent.as_ref().and_then(|p| p.identity()).is_some_and(|is| is != identity) {
        return Err(OpenError {
            path: options.path.display().to_string(),
            cause: io::Error::new(
                io::ErrorKind::InvalidData,
                "its parent is another image than the one that it was made from (their identifiers differ)",
            ),
        });
    }
    Ok(parent)
}

/// Opens what an image at `path` stands on.
fn open_backing(
    options: &OpenOptions,
    path: &Path,
    name: &BackingName,
    above: &mut Vec<PathBuf>,
) -> Result<Option<Arc<dyn Image>>, OpenError> {
    let error = |text: String| OpenError {
        path: options.path.display().to_string(),
        cause: io::Error::new(io::ErrorKind::InvalidInput, text),
    };
    let (file, format) = match &options.backing {
        Backing::Ignore => return Ok(None),
        Backing::File { path, format } => (path.clone(), format.clone()),
        Backing::InFolder | Backing::Anywhere => match &name.file {
            None => return Ok(None),
            Some(file) => (resolve(path, file).map_err(error)?, name.format.clone()),
        },
    };
    if options.backing == Backing::InFolder {
        let folder = path.parent().unwrap_or(Path::new("/"));
        // A file that is not there is said to be so below.
        if fs::canonicalize(&file).is_ok_and(|file| !file.starts_with(folder)) {
            return Err(error(format!(
                "its backing file '{}' is outside of its folder; say that it may be there to open it",
                file.display()
            )));
        }
    }
    // What a given file stands on is where it says.
    let below = match options.backing {
        Backing::File { .. } => Backing::Anywhere,
        _ => options.backing.clone(),
    };
    let lower = OpenOptions {
        path: file,
        format,
        read_only: true,
        cache: options.cache,
        backing: below,
        snapshot: false,
        force_share: options.force_share,
        check: false,
        at_snapshot: None,
    };
    open_in_chain(&lower, above).map(Some)
}

/// Opens a file that the descriptor at `path` names as a part of the image: it is in the same folder.
fn open_extent(options: &OpenOptions, path: &Path, name: &str, write: bool) -> io::Result<Arc<dyn Storage>> {
    let wrong = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
    let file = resolve(path, name).map_err(wrong)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let outside = fs::canonicalize(&file).is_ok_and(|file| !file.starts_with(folder));
    if outside && options.backing != Backing::Anywhere {
        return Err(wrong(format!("its extent '{name}' is outside of its folder")));
    }
    let part = OpenOptions { path: file, read_only: !write, ..options.clone() };
    let file = open_file(&part).map_err(|e| io::Error::new(e.cause.kind(), e.to_string()))?;
    Ok(file)
}

/// Where the backing file `name` of the image at `path` is: relative names are so to the image's folder.
///
/// # Errors
/// It is no name of a file.
pub fn resolve(path: &Path, name: &str) -> Result<PathBuf, String> {
    let scheme = name.split_once(':').map(|(scheme, _)| scheme);
    let name = match scheme {
        Some("file") => &name[5..],
        Some(scheme) if scheme.len() > 1 && scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+') => {
            return Err(format!("its backing file '{name}' is no file ('{scheme}:' is not supported)"));
        }
        _ => name,
    };
    Ok(path.parent().unwrap_or(Path::new(".")).join(name))
}

/// A disk that holds what `below` does, and whose writes vanish with it.
///
/// # Errors
/// The host has no file for it.
pub fn overlay(below: Arc<dyn Image>) -> io::Result<Arc<dyn Image>> {
    let storage: Arc<dyn Storage> = Arc::new(HostFile::new(vanishing_file()?));
    let options = CreateOptions { size: below.size(), ..CreateOptions::default() };
    Qcow2::create(&storage, &options)?;
    Ok(Arc::new(Qcow2::open(storage, Some(below), OpenMode::default())?))
}

/// A file that is gone when it is closed. It may grow large, so it is not where files are kept in memory.
fn vanishing_file() -> io::Result<fs::File> {
    let usual = cfg!(unix).then(|| PathBuf::from("/var/tmp"));
    let folders = [std::env::var_os("TMPDIR").map(PathBuf::from), usual, Some(std::env::temp_dir())];
    let folder = folders.into_iter().flatten().find(|f| f.is_dir()).unwrap_or_else(std::env::temp_dir);
    for n in 0..1000u32 {
        let path = folder.join(format!("mynah-{}-{n}.overlay", std::process::id()));
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        #[cfg(windows)]
        std::os::windows::fs::OpenOptionsExt::custom_flags(&mut options, 0x0400_0000);
        match options.open(&path) {
            Ok(file) => {
                #[cfg(windows)]
                crate::host::make_sparse(&file);
                // Windows deletes it at the end (FILE_FLAG_DELETE_ON_CLOSE).
                #[cfg(not(windows))]
                fs::remove_file(&path)?;
                return Ok(file);
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::other("no free name for a temporary file"))
}
