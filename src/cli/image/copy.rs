//! `convert`, `compare`, `commit`, `rebase`.
use super::super::{Error, print};
use super::change::{options_help, wrong};
use super::{Bar, Context, Quiet, backing_path, cache, format_options, size};
use mynah_block::ops::{self, CopyOptions, Difference};
use mynah_block::{Backing, Cache, Image, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `mynah image convert`.
#[derive(clap::Args, Debug)]
pub struct Convert {
    /// The sources' format, told by their headers if it is not given
    #[arg(short, value_name = "FORMAT")]
    format: Option<String>,
    /// The target's format
    #[arg(short = 'O', value_name = "FORMAT", default_value = "raw")]
    output_format: String,
    /// Options of the target's format: name=value,...; -o help lists them
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Compress
    #[arg(short)]
    compress: bool,
    /// The target is there already, and as large
    #[arg(short)]
    no_create: bool,
    /// What the target stands on: what is the same there is not copied
    #[arg(short = 'B', value_name = "FILE")]
    backing: Option<String>,
    /// That file's format
    #[arg(short = 'F', value_name = "FORMAT")]
    backing_format: Option<String>,
    /// Copy what the source held when this internal snapshot was made
    #[arg(short, value_name = "SNAPSHOT")]
    l: Option<String>,
    /// Zeros of so many bytes are not written; 0: everything is
    #[arg(short = 'S', value_name = "SIZE", default_value = "4K", value_parser = size)]
    sparse: u64,
    /// Taken for qemu-img's sake: how many parts are copied at once
    #[arg(short, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=16))]
    m: Option<u32>,
    /// Taken for qemu-img's sake: in any order
    #[arg(short = 'W')]
    any_order: bool,
    /// The target's cache: writeback, none, writethrough, directsync, unsafe
    #[arg(short, value_name = "CACHE", default_value = "writeback", value_parser = cache)]
    t: Cache,
    /// The sources' cache
    #[arg(short = 'T', value_name = "CACHE", default_value = "writeback", value_parser = cache)]
    source_cache: Cache,
    /// Read the sources even if somebody is writing to them
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    quiet: Quiet,
    /// The sources, one after the other, and the target
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl Convert {
    /// Copies.
    pub fn run(&self, context: &Context) -> anyhow::Result<()> {
        if self.options.iter().any(|o| o == "help" || o == "?") {
            return Err(options_help(&self.output_format)?.into());
        }
        let Some((target, sources)) = self.files.split_last() else {
            return Err(Error::new("the files are missing").into());
        };
        if sources.is_empty() {
            return Err(Error::new("the target is missing").into());
        }
        // One part is copied after the other, whatever is said.
        let _ = (self.m, self.any_order);
        let mut images = Vec::new();
        for source in sources {
            images.push(context.open(&OpenOptions {
                at_snapshot: self.l.clone(),
                cache: self.source_cache,
                force_share: self.force_share,
                ..context.reading(source, self.format.as_deref())?
            })?);
        }
        let from: Arc<dyn Image> = match <[_; 1]>::try_from(images) {
            Ok([one]) => one,
            Err(parts) => Arc::new(Joined::new(parts)),
        };
        let mut options = format_options(&self.options)?;
        if let Some(backing) = &self.backing {
            options.push(("backing_file".into(), backing.clone()));
            match &self.backing_format {
                Some(format) => options.push(("backing_fmt".into(), format.clone())),
                None => {
                    let text =
                        format!("the format of the backing file '{backing}' is not given: say it with -F");
                    return Err(Error::new(text).into());
                }
            }
        }
        let backed = options.iter().any(|(name, _)| name == "backing_file");
        if !self.no_create {
            mynah_block::create(target, &self.output_format, from.size(), &options)?;
        }
        let to = context.open(&OpenOptions {
            cache: self.t,
            backing: Backing::Anywhere,
            ..context.by_path().writing(target, Some(&self.output_format))?
        })?;
        if to.size() < from.size() {
            let text = format!("{}: it is smaller than what is to be copied", target.display());
            return Err(Error::new(text).into());
        }
        let bar = Bar::new(&self.quiet);
        let chosen = CopyOptions {
            compressed: self.compress || to.compressed_only(),
            target_is_zero: !self.no_create && !backed,
            above: None,
            sparse: Some(self.sparse),
        };
        if backed && !chosen.compressed {
            // What the backing file has already is left to it.
            copy_differences(&*from, &*to, &bar).map_err(|e| wrong(target, &e))?;
        } else {
            ops::copy(&*from, &*to, chosen, &mut |done, all| bar.show(done, all))
                .map_err(|e| wrong(target, &e))?;
        }
        Ok(())
    }
}

/// Writes to `to` what `from` has and `to` does not read as.
fn copy_differences(from: &dyn Image, to: &dyn Image, bar: &Bar) -> io::Result<()> {
    let size = from.size();
    let (mut new, mut old) = (vec![0; 65_536], vec![0; 65_536]);
    let mut at = 0;
    while at < size {
        bar.show(at, size);
        let n = (size - at).min(65_536);
        let (new, old) = (&mut new[..n as usize], &mut old[..n as usize]);
        from.read(at, new)?;
        to.read(at, old)?;
        if new != old {
            if ops::is_zero(new) { to.zero(at, n, true)? } else { to.write(at, new)? }
        }
        at += n;
    }
    to.flush()
}

/// Several disks, one after the other.
struct Joined {
    parts: Vec<Arc<dyn Image>>,
}

impl Joined {
    fn new(parts: Vec<Arc<dyn Image>>) -> Self {
        Self { parts }
    }

    /// The part that has `at`, and the place in it.
    fn part(&self, mut at: u64) -> Option<(&dyn Image, u64)> {
        for part in &self.parts {
            if at < part.size() {
                return Some((&**part, at));
            }
            at -= part.size();
        }
        None
    }
}

impl Image for Joined {
    fn format(&self) -> &'static str {
        "raw"
    }

    fn size(&self) -> u64 {
        self.parts.iter().map(|p| p.size()).sum()
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read(&self, mut at: u64, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let (part, place) = self.part(at).ok_or(io::ErrorKind::InvalidInput)?;
            let n = (part.size() - place).min(buf.len() as u64);
            let (now, rest) = buf.split_at_mut(n as usize);
            part.read(place, now)?;
            at += n;
            buf = rest;
        }
        Ok(())
    }

    fn extent(&self, at: u64) -> io::Result<mynah_block::Extent> {
        let (part, place) = self.part(at).ok_or(io::ErrorKind::InvalidInput)?;
        let layer = ops::layer(part, place)?;
        let (len, data) = (layer.len, !layer.zero);
        Ok(mynah_block::Extent { len, data, allocated: true, host_offset: None })
    }
}

/// `mynah image compare`.
#[derive(clap::Args, Debug)]
pub struct Compare {
    /// The first image's format, told by its header if it is not given
    #[arg(short, value_name = "FORMAT")]
    format: Option<String>,
    /// The second one's
    #[arg(short = 'F', value_name = "FORMAT")]
    other_format: Option<String>,
    /// Sizes, and what is allocated, have to be the same too
    #[arg(short)]
    strict: bool,
    /// Read them even if somebody is writing to them
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    quiet: Quiet,
    /// The first image
    a: PathBuf,
    /// The second image
    b: PathBuf,
}

impl Compare {
    /// Compares them; the result is the exit code.
    pub fn run(&self, context: &Context) -> anyhow::Result<i32> {
        let open = |path: &Path, format: &Option<String>| {
            let options =
                OpenOptions { force_share: self.force_share, ..context.reading(path, format.as_deref())? };
            context.open(&options)
        };
        let (a, b) = (open(&self.a, &self.format)?, open(&self.b, &self.other_format)?);
        let difference = {
            let bar = Bar::new(&self.quiet);
            ops::compare(&*a, &*b, self.strict, &mut |done, all| bar.show(done, all))?
        };
        let (code, text) = match difference {
            Difference::None => (0, "Images are identical.\n".to_string()),
            Difference::Size if self.strict => (1, "Strict mode: Image size mismatch!\n".into()),
            Difference::Size => (0, "Warning: Image size mismatch!\nImages are identical.\n".into()),
            Difference::Content(at) | Difference::Tail(at) => {
                (1, format!("Content mismatch at offset {at}!\n"))
            }
            Difference::Allocation(at) => (1, format!("Strict mode: Offset {at} allocation mismatch!\n")),
        };
        if !self.quiet.quiet {
            print(&text);
        }
        Ok(code)
    }
}

/// `mynah image commit`.
#[derive(clap::Args, Debug)]
pub struct Commit {
    /// The image's format, told by its header if it is not given
    #[arg(short, value_name = "FORMAT")]
    format: Option<String>,
    /// Which of the images that it stands on gets it all; the one that it names if nothing is said
    #[arg(short, value_name = "FILE")]
    base: Option<PathBuf>,
    /// Do not empty the image afterwards
    #[arg(short = 'd')]
    keep: bool,
    #[command(flatten)]
    quiet: Quiet,
    /// The image
    file: PathBuf,
}

impl Commit {
    /// Writes it down.
    pub fn run(&self, context: &Context) -> anyhow::Result<()> {
        let none = || Error::new(format!("{}: it stands on nothing", self.file.display()));
        // Which files the chain is made of, and how far below the base is.
        let first = context.reading(&self.file, self.format.as_deref())?;
        let (mut path, mut format, mut depth) = (first.path, first.format, 0);
        let wanted = match &self.base {
            Some(base) => Some(std::fs::canonicalize(base).map_err(|e| wrong(base, &e))?),
            None => None,
        };
        loop {
            let options = OpenOptions {
                backing: Backing::Ignore,
                ..context.by_path().reading(&path, format.as_deref())?
            };
            let details = context.open(&options)?.details();
            let Some(name) = details.backing_file else {
                return Err(match &self.base {
                    Some(base) if depth > 0 => {
                        Error::new(format!("{} does not stand on {}", self.file.display(), base.display()))
                    }
                    _ => none(),
                }
                .into());
            };
            path = backing_path(&path, &name)?;
            format = details.backing_format;
            depth += 1;
            if depth > mynah_block::MAX_CHAIN {
                return Err(none().into());
            }
            let here = std::fs::canonicalize(&path).map_err(|e| wrong(&path, &e))?;
            if wanted.as_ref().is_none_or(|w| *w == here) {
                break;
            }
        }
        // Both are in use at once, the base as what is written and as what the image reads: our own locks on them keep
        // others out, and are not asked for a second time.
        let held = mynah_block::open_file(&context.writing(&self.file, self.format.as_deref())?)?;
        let base = context.open(&OpenOptions {
            backing: Backing::Anywhere,
            ..context.by_path().writing(&path, format.as_deref())?
        })?;
        let top = context.open(&OpenOptions {
            force_share: true,
            ..context.reading(&self.file, self.format.as_deref())?
        })?;
        {
            let bar = Bar::new(&self.quiet);
            ops::commit(&*top, &*base, depth, &mut |done, all| bar.show(done, all))
                .map_err(|e| wrong(&path, &e))?;
        }
        drop((top, base, held));
        if !self.keep {
            let image = context.open(&context.writing(&self.file, self.format.as_deref())?)?;
            image.make_empty().and_then(|()| image.flush()).map_err(|e| wrong(&self.file, &e))?;
        }
        if !self.quiet.quiet {
            print("Image committed.\n");
        }
        Ok(())
    }
}

/// `mynah image rebase`.
#[derive(clap::Args, Debug)]
pub struct Rebase {
    /// The image's format, told by its header if it is not given
    #[arg(short, value_name = "FORMAT")]
    format: Option<String>,
    /// What it is to stand on; nothing if it is empty
    #[arg(short, value_name = "FILE", default_value = "")]
    backing: String,
    /// That file's format
    #[arg(short = 'F', value_name = "FORMAT")]
    backing_format: Option<String>,
    /// Change the name only, whatever the disk holds then
    #[arg(short = 'u')]
    unsafe_rebase: bool,
    #[command(flatten)]
    quiet: Quiet,
    /// The image
    file: PathBuf,
}

impl Rebase {
    /// Puts it there.
    pub fn run(&self, context: &Context) -> anyhow::Result<()> {
        let backing = Some(self.backing.as_str()).filter(|b| !b.is_empty());
        if backing.is_some() && self.backing_format.is_none() {
            let text =
                format!("the format of the backing file '{}' is not given: say it with -F", self.backing);
            return Err(Error::new(text).into());
        }
        let mut options = context.writing(&self.file, self.format.as_deref())?;
        if self.unsafe_rebase {
            options.backing = Backing::Ignore;
        }
        let image = context.open(&options)?;
        if !self.unsafe_rebase {
            let old = image.backing();
            let new = match backing {
                None => None,
                Some(name) => {
                    let path = backing_path(&options.path, name)?;
                    let below = OpenOptions {
                        backing: Backing::Anywhere,
                        ..context.by_path().reading(&path, self.backing_format.as_deref())?
                    };
                    Some(context.open(&below)?)
                }
            };
            let bar = Bar::new(&self.quiet);
            ops::rebase(&*image, old.as_ref(), new.as_ref(), &mut |done, all| bar.show(done, all))
                .map_err(|e| wrong(&self.file, &e))?;
        }
        image.set_backing_name(backing, self.backing_format.as_deref()).map_err(|e| wrong(&self.file, &e))?;
        Ok(())
    }
}
