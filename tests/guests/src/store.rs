//! Debian's kernels and busybox, unmodified, fetched once into a cache.
//!
//! `manifest.toml` names them. A [`Store`] is a folder with one folder per guest; several processes may use one at a
//! time, and a guest is there whole or not at all.

use crate::apt::{self, Apt};
use crate::cpio::Archive;
use crate::vmlinux;
use anyhow::{Context, Result, bail};
use mynah_jit::private;
use serde::Deserialize;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// One row of the manifest.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// What it is called.
    pub name: String,
    /// The Debian package it is in.
    #[serde(default)]
    pub package: Option<String>,
    /// Its architecture, as Debian names it.
    pub architecture: String,
    /// The package only depends on the real one, whose name starts with this.
    #[serde(default)]
    pub follow: Option<String>,
    /// The file in the package, with `*` for any run of characters.
    #[serde(default)]
    pub file: Option<String>,
    /// The file's name in the store.
    #[serde(rename = "as")]
    pub stored_as: String,
    /// The file is packed like this, and kept unpacked.
    #[serde(default)]
    pub unpack: Option<Packing>,
    /// It is the ELF kernel in this guest's bzImage, rather than in a package.
    #[serde(default)]
    pub from: Option<String>,
    /// What it is.
    pub about: String,
}

/// How a file is packed.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// gzip.
    Gzip,
    /// Not at all: it is several files, kept as an archive for an initial RAM disk, in its folder `modules`.
    Cpio,
}

#[derive(Deserialize)]
struct Manifest {
    guest: Vec<Guest>,
}

/// The manifest that this build was made with.
static MANIFEST: LazyLock<Vec<Guest>> = LazyLock::new(|| {
    parse(include_str!("../manifest.toml")).expect("the manifest is tested to be well-formed")
});

fn parse(text: &str) -> Result<Vec<Guest>> {
    let manifest: Manifest = toml::from_str(text)?;
    for guest in &manifest.guest {
        let (package, from) = (guest.package.is_some() && guest.file.is_some(), guest.from.is_some());
        if package == from {
            bail!("{}: either package and file, or from", guest.name);
        }
        if guest.name.contains('/') || guest.stored_as.contains('/') {
            bail!("{}: names are no paths", guest.name);
        }
    }
    Ok(manifest.guest)
}

/// All guests there are.
pub fn manifest() -> &'static [Guest] {
    &MANIFEST
}

/// The guest called `name`.
pub fn find(name: &str) -> Result<&'static Guest, NoSuchGuest> {
    manifest().iter().find(|g| g.name == name).ok_or_else(|| NoSuchGuest { name: name.into() })
}

/// A name that no guest has.
#[derive(Debug, thiserror::Error)]
#[error("there is no guest '{name}'; there are {}", names().collect::<Vec<_>>().join(", "))]
pub struct NoSuchGuest {
    /// The name.
    pub name: String,
}

/// The names of all guests.
pub fn names() -> impl Iterator<Item = &'static str> {
    manifest().iter().map(|g| g.name.as_str())
}

/// A folder with guests.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// The user's own: `mynah/guests` in `$XDG_CACHE_HOME`, or in `~/.cache`; on Windows in `%LOCALAPPDATA%`.
    pub fn open() -> Result<Store> {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let (home, below) = if cfg!(windows) { ("LOCALAPPDATA", "") } else { ("HOME", ".cache") };
        let cache =
            set("XDG_CACHE_HOME").filter(|c| c.is_absolute()).or_else(|| Some(set(home)?.join(below)));
        let cache = cache
            .with_context(|| format!("neither XDG_CACHE_HOME nor {home} says where guests can be kept"))?;
        Ok(Store::at(cache.join("mynah").join("guests")))
    }

    /// The store in `folder`, which need not be there yet.
    pub fn at(folder: impl Into<PathBuf>) -> Store {
        Store { folder: folder.into() }
    }

    /// The store's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The guest's file, if it is there.
    pub fn cached(&self, name: &str) -> Option<PathBuf> {
        let guest = find(name).ok()?;
        Some(self.folder.join(name).join(&guest.stored_as)).filter(|f| f.is_file())
    }

    /// Forgets a guest, so that the next [`fetch`](Store::fetch) fetches it again.
    pub fn forget(&self, name: &str) -> Result<()> {
        let Some(file) = self.cached(name) else { return Ok(()) };
        let _lock = self.lock()?;
        fs::remove_file(&file).with_context(|| format!("{}", file.display()))
    }

    /// The guest's file, fetched if it is not there. `progress` is told what takes its time.
    pub fn fetch(&self, name: &str, progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
        let guest = find(name)?;
        if let Some(file) = self.cached(name) {
            return Ok(file);
        }
        let _lock = self.lock()?;
        // Another process may have fetched it while this one waited.
        match self.cached(name) {
            Some(file) => Ok(file),
            None => self.fetch_locked(guest, progress),
        }
    }

    fn fetch_locked(&self, guest: &Guest, progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
        let folder = self.folder.join(&guest.name);
        let scratch = self.folder.join(format!(".{}.new", guest.name));
        let _ = fs::remove_dir_all(&scratch);
        // What is there now has been put there by somebody else.
        fs::create_dir(&scratch).with_context(|| format!("{}", scratch.display()))?;
        let made = scratch.join(&guest.stored_as);
        let result = match &guest.from {
            Some(from) => self.take_elf(from, &made, progress),
            None => self.take_file(guest, &scratch, &made, progress),
        };
        let file = folder.join(&guest.stored_as);
        let result = result.and_then(|version| {
            fs::create_dir_all(&folder)?;
            private::write(&folder.join("version"), (version + "\n").as_bytes())?;
            fs::rename(&made, &file).with_context(|| format!("{}", file.display()))
        });
        let _ = fs::remove_dir_all(&scratch);
        result.with_context(|| format!("guest {} cannot be fetched", guest.name))?;
        Ok(file)
    }

    /// The ELF kernel in the bzImage of the guest `from`.
    fn take_elf(&self, from: &str, to: &Path, progress: &mut dyn FnMut(&str)) -> Result<String> {
        let kernel = match self.cached(from) {
            Some(file) => file,
            None => self.fetch_locked(find(from)?, progress)?,
        };
        let image = fs::read(&kernel).with_context(|| format!("{}", kernel.display()))?;
        let elf = vmlinux::payload(&image).with_context(|| format!("{}", kernel.display()))?;
        private::write(to, &elf).with_context(|| format!("{}", to.display()))?;
        let version = fs::read_to_string(self.folder.join(from).join("version")).unwrap_or_default();
        Ok(version.trim().to_string())
    }

    /// The guest's file out of its package. Returns the package's file name, which tells the version.
    fn take_file(
        &self,
        guest: &Guest,
        scratch: &Path,
        to: &Path,
        progress: &mut dyn FnMut(&str),
    ) -> Result<String> {
        let (Some(package), Some(pattern)) = (&guest.package, &guest.file) else {
            bail!("the manifest names no package for it");
        };
        let deb = self.download(guest, package, scratch, progress)?;
        if let Some(Packing::Cpio) = guest.unpack {
            let files = apt::extract_all(&deb, pattern, scratch)?;
            pack(&files, to).with_context(|| format!("{pattern} cannot be packed"))?;
            return Ok(deb.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
        apt::extract(&deb, pattern, scratch, to)?;
        if let Some(Packing::Gzip) = guest.unpack {
            unpack(to).with_context(|| format!("{pattern} cannot be unpacked"))?;
        }
        Ok(deb.file_name().unwrap_or_default().to_string_lossy().into_owned())
    }

    /// Downloads a guest's package: with the system's lists, then with lists of our own as they are, then with new
    /// ones.
    fn download(
        &self,
        guest: &Guest,
        package: &str,
        scratch: &Path,
        progress: &mut dyn FnMut(&str),
    ) -> Result<PathBuf> {
        if !apt::is_there() {
            bail!("apt-get is not on this system, and guests come from Debian's packages");
        }
        let get = |apt: &Apt, progress: &mut dyn FnMut(&str)| -> Result<PathBuf> {
            let real = match &guest.follow {
                Some(prefix) => apt.dependency(package, prefix)?,
                None => package.to_string(),
            };
            progress(&format!("downloading {real} ({})", guest.architecture));
            apt.download(&real, scratch)
        };
        if apt::native_architecture().as_deref() == Some(guest.architecture.as_str())
            && let Ok(deb) = get(&Apt::system(), progress)
        {
            return Ok(deb);
        }
        let own = Apt::private(&self.folder.join(".apt").join(&guest.architecture), &guest.architecture);
        if own.has_lists()
            && let Ok(deb) = get(&own, progress)
        {
            return Ok(deb);
        }
        progress(&format!("fetching Debian's package lists ({})", guest.architecture));
        own.update()?;
        get(&own, progress)
    }

    /// Held by the one process that changes the store.
    fn lock(&self) -> Result<File> {
        fs::create_dir_all(&self.folder).with_context(|| format!("{}", self.folder.display()))?;
        let path = self.folder.join(".lock");
        let file = private::keep(&path).with_context(|| format!("{}", path.display()))?;
        file.lock().with_context(|| format!("{}", path.display()))?;
        Ok(file)
    }
}

/// An archive of `files`, all in one folder.
fn pack(files: &[PathBuf], to: &Path) -> Result<()> {
    let mut archive = Archive::new();
    archive.directory("modules", 0o755);
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("modules/{name}"), 0o644, &fs::read(file)?);
    }
    Ok(private::write(to, &archive.finish())?)
}

/// Unpacks a file of gzip's where it is.
fn unpack(file: &Path) -> Result<()> {
    let packed = fs::read(file)?;
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut bytes)?;
    fs::remove_file(file)?;
    Ok(private::write(file, &bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_names_every_guest_once() {
        let guests = parse(include_str!("../manifest.toml")).unwrap();
        for (i, guest) in guests.iter().enumerate() {
            assert!(guests[..i].iter().all(|g| g.name != guest.name), "{} twice", guest.name);
            if let Some(from) = &guest.from {
                assert!(guests.iter().any(|g| g.name == *from && g.package.is_some()), "{}", guest.name);
            }
        }
        for name in ["cloud", "generic", "rt", "686-pae", "686", "cloud-elf", "busybox", "busybox-i386"] {
            assert!(find(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_bad_manifest_is_refused() {
        let row = "[[guest]]\nname='a'\narchitecture='amd64'\nas='f'\nabout='x'\n";
        assert!(parse(row).unwrap_err().to_string().contains("either package"));
        assert!(parse(&format!("{row}package='p'\nfile='f'\nfrom='b'\n")).is_err());
        assert!(parse(&format!("{row}package='p'\nfile='f'\nspeed=1\n")).is_err());
        assert!(
            parse(&row.replace("as='f'", "as='../f'\nfrom='b'"))
                .unwrap_err()
                .to_string()
                .contains("no paths")
        );
        assert_eq!(parse(&format!("{row}package='p'\nfile='f'\n")).unwrap().len(), 1);
    }

    #[test]
    fn a_packed_file_is_kept_unpacked() {
        use std::io::Write;
        let file = std::env::temp_dir().join(format!("mynah-unpack-test-{}", std::process::id()));
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(b"kernel").unwrap();
        fs::write(&file, packed.finish().unwrap()).unwrap();
        unpack(&file).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"kernel");
        assert!(unpack(&file).is_err(), "that is not packed");
        fs::remove_file(&file).unwrap();
    }

    #[test]
    fn where_there_is_no_such_guest_it_is_said_which_there_are() {
        let error = find("windows").unwrap_err().to_string();
        assert!(error.starts_with("there is no guest 'windows'; there are cloud, generic"), "{error}");
    }

    #[test]
    fn a_stored_guest_is_not_fetched_again() {
        let folder = std::env::temp_dir().join(format!("mynah-store-test-{}", std::process::id()));
        let store = Store::at(&folder);
        assert_eq!(store.cached("busybox"), None);
        fs::create_dir_all(folder.join("busybox")).unwrap();
        fs::write(folder.join("busybox/busybox"), b"x").unwrap();
        let file = store.fetch("busybox", &mut |line| panic!("{line}")).unwrap();
        assert_eq!(file, folder.join("busybox/busybox"));
        store.forget("busybox").unwrap();
        assert_eq!(store.cached("busybox"), None);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_store_s_lock_follows_no_link() {
        let folder = std::env::temp_dir().join(format!("mynah-lock-test-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let precious = folder.join("precious");
        fs::write(&precious, "precious").unwrap();
        std::os::unix::fs::symlink(&precious, folder.join(".lock")).unwrap();
        assert!(Store::at(&folder).fetch("busybox", &mut |line| panic!("{line}")).is_err());
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn an_elf_kernel_comes_from_the_stored_bzimage() {
        let folder = std::env::temp_dir().join(format!("mynah-elf-test-{}", std::process::id()));
        let store = Store::at(&folder);
        fs::create_dir_all(folder.join("cloud")).unwrap();
        fs::write(folder.join("cloud/vmlinuz"), b"no kernel at all").unwrap();
        let error = format!("{:#}", store.fetch("cloud-elf", &mut |_| {}).unwrap_err());
        assert!(error.contains("cloud-elf cannot be fetched") && error.contains("no bzImage"), "{error}");
        assert_eq!(store.cached("cloud-elf"), None, "half a guest is none");
        fs::remove_dir_all(&folder).unwrap();
    }
}
