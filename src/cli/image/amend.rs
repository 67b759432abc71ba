//! `amend`: what was chosen when an image was made is changed.
use super::super::Error;
use super::change::{options_help, wrong};
use super::{Context, cache, format_options};
use mynah_block::{Backing, Cache, OpenOptions};
use std::path::PathBuf;

/// Options of qcow2 that can be amended.
const QCOW2: [(&str, &str); 3] = [
    ("compat=0.10|1.1|v2|v3", "the version"),
    ("lazy_refcounts=on|off", "refcounts may be written late"),
    ("size=SIZE", "the disk's bytes; what is beyond a new end is lost"),
];

/// `mynah image amend`.
#[derive(clap::Args, Debug)]
pub struct Amend {
    /// Options of the format: name=value,...; -o help lists those that can be changed
    #[arg(short, value_name = "OPTIONS", required = true)]
    options: Vec<String>,
    /// The image's format, told by its header if it is not given
    #[arg(short, value_name = "FORMAT")]
    format: Option<String>,
    /// The host's caches: writeback, none, writethrough, directsync, unsafe
    #[arg(short = 't', value_name = "CACHE", value_parser = cache, default_value = "writeback")]
    cache: Cache,
    /// Taken for qemu-img's sake: nothing here needs it
    #[arg(long)]
    force: bool,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Taken for qemu-img's sake: it is done at once
    #[arg(short, long)]
    progress: bool,
    /// The image
    #[arg(required_unless_present = "options")]
    file: Option<PathBuf>,
}

impl Amend {
    /// Changes it.
    pub fn run(&self, context: &Context) -> anyhow::Result<()> {
        if self.options.iter().any(|o| o == "help" || o == "?") {
            let format = self.format.as_deref().unwrap_or("raw");
            if format != "qcow2" {
                options_help(format)?;
                return Err(
                    Error::new(format!("the format '{format}' has nothing that can be amended")).into()
                );
            }
            let list = QCOW2.map(|(name, help)| format!("  {name:<40} {help}\n")).concat();
            return Err(Error::info(format!("Options of qcow2 that can be amended:\n{list}")).into());
        }
        let Some(file) = &self.file else { return Err(Error::new("the file is missing").into()) };
        let options = format_options(&self.options)?;
        let writing = context.writing(file, self.format.as_deref())?;
        let cache = if self.cache == Cache::Writeback { writing.cache } else { self.cache };
        let opened = |backing| OpenOptions { cache, backing, ..writing.clone() };
        let image = context.open(&opened(writing.backing.clone()))?;
        image.amend(&options).map_err(|e| wrong(file, &e))?;
        drop(image);
        // What was written is an image.
        context.open(&OpenOptions { read_only: true, ..opened(Backing::Ignore) })?;
        Ok(())
    }
}
