//! `create`, `resize`, `snapshot`.
use super::super::{Error, print, tell};
use super::text::snapshots;
use super::{Context, backing_path, format_options, size};
use mynah_block::{Backing, OpenOptions};
use std::path::PathBuf;

/// `mynah image create`.
#[derive(clap::Args, Debug)]
pub struct Create {
    /// The new image's format
    #[arg(short, value_name = "FORMAT", default_value = "raw")]
    format: String,
    /// What it stands on
    #[arg(short, value_name = "FILE")]
    backing: Option<String>,
    /// That file's format
    #[arg(short = 'F', value_name = "FORMAT")]
    backing_format: Option<String>,
    /// Do not look at what it stands on
    #[arg(short = 'u')]
    unsafe_backing: bool,
    /// Options of the format: name=value,...; -o help lists them
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// The new image
    #[arg(required_unless_present = "options")]
    file: Option<PathBuf>,
    /// The disk's bytes, with K M G T P E; that of the backing file if it is not given
    #[arg(value_parser = size)]
    size: Option<u64>,
}

/// What `-o help` tells.
pub fn options_help(format: &str) -> Result<Error, Error> {
    let list = mynah_block::format_options(format)
        .ok_or_else(|| Error::new(format!("'{format}' images cannot be made")))?;
    let mut text = format!("Options of {format}:\n");
    for (name, values, help) in list {
        text += &format!("  {:<40} {help}\n", format!("{name}={values}"));
    }
    Ok(Error::info(text))
}

impl Create {
    /// Makes it.
    pub fn run(&self, context: &Context) -> anyhow::Result<()> {
        if self.options.iter().any(|o| o == "help" || o == "?") {
            return Err(options_help(&self.format)?.into());
        }
        let Some(file) = &self.file else { return Err(Error::new("the file is missing").into()) };
        let mut options = format_options(&self.options)?;
        let take = |name: &str, options: &[(String, String)]| {
            options.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.clone())
        };
        if let Some(backing) = &self.backing {
            options.push(("backing_file".into(), backing.clone()));
        }
        if let Some(format) = &self.backing_format {
            options.push(("backing_fmt".into(), format.clone()));
        }
        let mut bytes = self.size;
        if let Some(text) = take("size", &options) {
            bytes = Some(size(&text).map_err(|e| Error::new(format!("size={text}: {e}")))?);
            options.retain(|(name, _)| name != "size");
        }
        if let Some(backing) = take("backing_file", &options).filter(|_| !self.unsafe_backing) {
            let Some(format) = take("backing_fmt", &options) else {
                return Err(Error::new(format!(
                    "the format of the backing file '{backing}' is not given: say it with -F, as it could be \
                     mistaken for another"
                ))
                .into());
            };
            let path = backing_path(file, &backing)?;
            // It is the user who names it: it may be anywhere, but opening the new image will say so.
            let below = context.open(&OpenOptions {
                backing: Backing::Anywhere,
                ..context.by_path().reading(&path, Some(&format))?
            })?;
            bytes = bytes.or(Some(below.size()));
        }
        let Some(bytes) = bytes else {
            return Err(Error::new("the disk's size is missing").into());
        };
        mynah_block::create(file, &self.format, bytes, &options)?;
        if !self.quiet {
            let options: String = options.iter().map(|(n, v)| format!(" {n}={v}")).collect();
            print(&format!("Formatting '{}', fmt={} size={bytes}{options}\n", file.display(), self.format));
        }
        Ok(())
    }
}

/// `mynah image resize`.
#[derive(clap::Args, Debug)]
pub struct Resize {
    /// The image's format, told by its header if it is not given
    #[arg(short, value_name = "FORMAT")]
    format: Option<String>,
    /// It may become smaller: what is beyond the new end is lost
    #[arg(long)]
    shrink: bool,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// The image
    file: PathBuf,
    /// The new size, or by how much it changes: +SIZE, -SIZE
    #[arg(allow_hyphen_values = true)]
    size: String,
}

impl Resize {
    /// Changes it.
    pub fn run(&self, context: &Context) -> anyhow::Result<()> {
        let number = self.size.trim_start_matches(['+', '-']);
        let number = size(number).map_err(|e| Error::new(format!("{}: {e}", self.size)))?;
        let image = context.open(&context.writing(&self.file, self.format.as_deref())?)?;
        let old = image.size();
        let new = match self.size.as_bytes().first() {
            Some(b'+') => old.checked_add(number),
            Some(b'-') => old.checked_sub(number),
            _ => Some(number),
        };
        let new = new.ok_or_else(|| Error::new(format!("{}: the disk has {old} bytes", self.size)))?;
        if new < old && !self.shrink {
            return Err(Error::new(format!(
                "{}: it would become smaller, and what is beyond its end be lost: say --shrink if that is meant",
                self.file.display()
            ))
            .into());
        }
        if self.format.is_none() && image.format() == "raw" && !self.quiet {
            tell(&format!("{}: taken for a raw image, as it has no header (-f raw)", self.file.display()));
        }
        image.resize(new).and_then(|()| image.flush()).map_err(|e| wrong(&self.file, &e))?;
        if !self.quiet {
            print("Image resized.\n");
        }
        Ok(())
    }
}

/// `mynah image snapshot`.
#[derive(clap::Args, Debug)]
pub struct Snapshots {
    /// List them; so it is if nothing else is said
    #[arg(short, long, group = "what")]
    list: bool,
    /// Have the disk hold again what it held then
    #[arg(short, long, value_name = "SNAPSHOT", group = "what")]
    apply: Option<String>,
    /// Make one of what the disk holds now
    #[arg(short, long, value_name = "SNAPSHOT", group = "what")]
    create: Option<String>,
    /// Forget one
    #[arg(short, long, value_name = "SNAPSHOT", group = "what")]
    delete: Option<String>,
    /// The image's format, told by its header if it is not given
    #[arg(short, value_name = "FORMAT")]
    format: Option<String>,
    /// List them even if somebody is writing to it
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// The image
    file: PathBuf,
}

impl Snapshots {
    /// Does it.
    pub fn run(&self, context: &Context) -> anyhow::Result<()> {
        let changes = self.apply.is_some() || self.create.is_some() || self.delete.is_some();
        let options = if changes {
            context.writing(&self.file, self.format.as_deref())?
        } else {
            OpenOptions {
                force_share: self.force_share,
                backing: Backing::Ignore,
                ..context.reading(&self.file, self.format.as_deref())?
            }
        };
        let image = context.open(&options)?;
        let done = match (&self.apply, &self.create, &self.delete) {
            (Some(name), ..) => image.snapshot_apply(name),
            (_, Some(name), _) => image.snapshot_create(name),
            (_, _, Some(name)) => image.snapshot_delete(name),
            _ => image.snapshots().map(|list| {
                if !list.is_empty() {
                    print(&snapshots(&list));
                }
            }),
        };
        done.and_then(|()| image.flush()).map_err(|e| wrong(&self.file, &e))?;
        Ok(())
    }
}

/// An error with the file's name.
pub fn wrong(file: &std::path::Path, error: &std::io::Error) -> Error {
    Error::new(format!("{}: {error}", file.display()))
}
