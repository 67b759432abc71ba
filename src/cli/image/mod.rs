//! `mynah image`: disk images are made, looked at and changed, with `qemu-img`'s names and options.
//!
//! What is said goes to standard output as `qemu-img` says it, or as JSON with `--output=json`. Exit codes are its
//! too: 1 for an error; `compare` 0, 1 or 2 for the same, different, or an error; `check` 2 for damage, 3 for leaks.

mod amend;
mod bench;
mod change;
mod copy;
mod info;
mod measure;
mod text;

use super::size::{NotTaken, parse_size};
use super::{Error, blockdev_arg, explain, say};
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mynah_block::{Backing, Cache, Image, OpenOptions, open};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The options of `mynah image`.
#[derive(Args, Debug)]
pub struct ImageArgs {
    /// Open backing files outside of the image's folder too
    #[arg(long, global = true)]
    backing_anywhere: bool,
    /// Images are given as -blockdev has them: driver=qcow2,file.filename=FILE
    #[arg(long, global = true)]
    image_opts: bool,
    /// An object of QEMU's: none is of use here
    #[arg(long, global = true, value_name = "OBJECT", hide = true)]
    object: Vec<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make an image
    Create(change::Create),
    /// Tell what an image is
    Info(info::Info),
    /// Copy images into one of another format
    Convert(copy::Convert),
    /// Change a disk's size
    Resize(change::Resize),
    /// Look for damage, and repair it
    Check(info::Check),
    /// List, make, apply or delete internal snapshots
    Snapshot(change::Snapshots),
    /// Tell what stands where
    Map(info::Map),
    /// Compare what two disks hold
    Compare(copy::Compare),
    /// Write what an image has of its own to what it stands on
    Commit(copy::Commit),
    /// Put an image on something else
    Rebase(copy::Rebase),
    /// Tell how large an image will be
    Measure(measure::Measure),
    /// Copy a part of a disk
    Dd(measure::Dd),
    /// Change what was chosen when an image was made
    Amend(amend::Amend),
    /// Measure how fast requests are carried out
    Bench(bench::Bench),
}

/// `--output=`.
#[derive(Args, Debug)]
struct Output {
    /// How it is told
    #[arg(long, value_name = "FORM", default_value = "human")]
    output: Form,
    /// The same as --output=json
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Human,
    Json,
}

impl Output {
    fn is_json(&self) -> bool {
        self.json || self.output == Form::Json
    }
}

/// `-q` and `-p`.
#[derive(Args, Debug)]
struct Quiet {
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Show how far it is; a terminal is shown it in any case
    #[arg(short, long)]
    progress: bool,
}

/// What all commands know.
struct Context {
    backing_anywhere: bool,
    image_opts: bool,
}

/// Runs the command; the result is the process's exit code.
pub fn run(args: &ImageArgs) -> anyhow::Result<i32> {
    if let Some(object) = args.object.first() {
        let kind = object.split(',').next().unwrap_or_default();
        return Err(Error::new(format!(
            "--object {kind}: not supported: objects of qemu-img are keys of encrypted images, and encryption is not"
        ))
        .into());
    }
    let context = Context { backing_anywhere: args.backing_anywhere, image_opts: args.image_opts };
    let context = &context;
    match &args.command {
        Command::Create(args) => args.run(context).map(|()| 0),
        Command::Info(args) => args.run(context).map(|()| 0),
        Command::Convert(args) => args.run(context).map(|()| 0),
        Command::Resize(args) => args.run(context).map(|()| 0),
        Command::Check(args) => args.run(context),
        Command::Snapshot(args) => args.run(context).map(|()| 0),
        Command::Map(args) => args.run(context).map(|()| 0),
        // 1 says that they differ.
        Command::Compare(args) => args.run(context).or_else(|error| {
            say("mynah", &explain(&error));
            Ok(2)
        }),
        Command::Commit(args) => args.run(context).map(|()| 0),
        Command::Rebase(args) => args.run(context).map(|()| 0),
        Command::Measure(args) => args.run(context).map(|()| 0),
        Command::Dd(args) => args.run(context).map(|()| 0),
        Command::Amend(args) => args.run(context).map(|()| 0),
        Command::Bench(args) => args.run(context).map(|()| 0),
    }
}

impl Context {
    /// How the image at `path` is opened to be read; with `--image-opts` that is no path, but says it all.
    fn reading(&self, path: &Path, format: Option<&str>) -> Result<OpenOptions, Error> {
        let backing = if self.backing_anywhere { Backing::Anywhere } else { Backing::InFolder };
        let plain = OpenOptions { format: format.map(Into::into), backing, ..OpenOptions::read_only(path) };
        if !self.image_opts {
            return Ok(plain);
        }
        let text = path.to_str().ok_or_else(|| Error::new("--image-opts: it is no text"))?;
        if format.is_some() {
            return Err(Error::new("--image-opts and a format (-f) exclude each other: say driver=FORMAT"));
        }
        let drive = blockdev_arg::image_opts(text)?;
        let file = drive.file.ok_or_else(|| Error::new(format!("{text}: file.filename=... is missing")))?;
        let backing = drive.backing.unwrap_or(plain.backing);
        Ok(OpenOptions { format: drive.format, cache: drive.cache, backing, ..OpenOptions::read_only(file) })
    }

    /// How it is opened to be written.
    fn writing(&self, path: &Path, format: Option<&str>) -> Result<OpenOptions, Error> {
        Ok(OpenOptions { read_only: false, ..self.reading(path, format)? })
    }

    /// How a file is opened that is a new image, or one that another names: its name is a path in any case.
    fn by_path(&self) -> Context {
        Context { image_opts: false, ..*self }
    }

    fn open(&self, options: &OpenOptions) -> anyhow::Result<Arc<dyn Image>> {
        Ok(open(options)?)
    }
}

/// `cache=` by name.
fn cache(name: &str) -> Result<Cache, String> {
    Cache::from_name(name)
        .ok_or_else(|| "it is one of writeback, none, writethrough, directsync, unsafe".to_string())
}

/// A size in bytes, with K M G T P E.
fn size(text: &str) -> Result<u64, String> {
    match parse_size(text, 1) {
        Ok(n) if i64::try_from(n).is_ok() => Ok(n),
        Ok(_) | Err(NotTaken::TooLarge) => Err("the size is too large".into()),
        Err(NotTaken::Form) => Err("it is no size (a number and, if you like, one of K M G T P E)".into()),
    }
}

/// `-o name=value,...`: a comma in a value is written twice.
fn format_options(given: &[String]) -> Result<Vec<(String, String)>, Error> {
    let mut all = Vec::new();
    for text in given {
        for part in text.replace(",,", "\0").split(',').filter(|p| !p.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, "on"));
            all.push((name.to_string(), value.replace('\0', ",")));
        }
    }
    Ok(all)
}

/// Shows how far something is.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(args: &Quiet) -> Self {
        use std::io::IsTerminal;
        let wanted = !args.quiet && (args.progress || std::io::stderr().is_terminal());
        Self(wanted.then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            let style = "{bar:40} {percent:>3}%  {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left";
            bar.set_style(
                ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar
        }))
    }

    fn show(&self, done: u64, all: u64) {
        if let Some(bar) = &self.0 {
            bar.set_length(all);
            bar.set_position(done);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Where a name that the user gave of a backing file is: relative to the image's folder.
fn backing_path(image: &Path, backing: &str) -> Result<PathBuf, Error> {
    mynah_block::resolve(image, backing).map_err(Error::new)
}
