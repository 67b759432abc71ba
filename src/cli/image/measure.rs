//! `measure`, `dd`: how large an image will be, and a part of a disk copied.
use super::super::{Error, print};
use super::change::{options_help, wrong};
use super::text::print_json;
use super::{Context, Output, format_options, size};
use mynah_block::ops::{self, CopyOptions};
use mynah_block::{Extent, Image, OpenOptions};
use serde_json::json;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `mynah image measure`.
#[derive(clap::Args, Debug)]
pub struct Measure {
    /// The source's format, told by its header if it is not given
    #[arg(short, value_name = "FORMAT")]
    format: Option<String>,
    /// The new image's format: raw or qcow2
    #[arg(short = 'O', value_name = "FORMAT", default_value = "raw")]
    output_format: String,
    /// Options of that format: name=value,...; -o help lists them
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,
    /// What the source held when this internal snapshot was made
    #[arg(short, value_name = "SNAPSHOT")]
    l: Option<String>,
    /// The disk's bytes, if there is no source
    #[arg(long, value_parser = size)]
    size: Option<u64>,
    /// Look at the source even if somebody is writing to it
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    output: Output,
    /// What would be copied
    file: Option<PathBuf>,
}

impl Measure {
    /// Tells it.
    pub fn run(&self, context: &Context) -> anyhow::Result<()> {
        if self.options.iter().any(|o| o == "help" || o == "?") {
            return Err(options_help(&self.output_format)?.into());
        }
        let source = match (&self.file, self.size) {
            (Some(file), None) => Some(context.open(&OpenOptions {
                at_snapshot: self.l.clone(),
                force_share: self.force_share,
                ..context.reading(file, self.format.as_deref())?
            })?),
            (None, Some(_)) => None,
            (Some(_), Some(_)) => return Err(Error::new("a file and --size exclude each other").into()),
            (None, None) => return Err(Error::new("a file or --size is missing").into()),
        };
        let bytes = source.as_ref().map_or(self.size, |s| Some(s.size())).unwrap_or_default();
        let bytes = bytes.next_multiple_of(512);
        let (required, all) = match self.output_format.as_str() {
            "raw" => (bytes, bytes),
            "qcow2" => {
                let options = format_options(&self.options)?;
                let chosen = mynah_block::qcow2_options(bytes, &options)?;
                chosen.validate()?;
                let cluster = chosen.cluster_size;
                let all = qcow2_size(bytes, cluster, u64::from(chosen.refcount_bits));
                let backed = chosen.backing.file.is_some();
                let data = match &source {
                    // What is the same in the backing file is not known here: QEMU counts as much.
                    Some(source) => used(&**source, cluster)?,
                    None => 0,
                };
                let prealloc = chosen.preallocation;
                use mynah_block::qcow2::Preallocation::{Falloc, Full};
                let whole = !backed && matches!(prealloc, Falloc | Full);
                let rounded = bytes.next_multiple_of(cluster);
                (all - rounded + if whole { rounded } else { data }, all)
            }
            other => {
                return Err(Error::new(format!("how large '{other}' images become is not known")).into());
            }
        };
        if self.output.is_json() {
            let mut value = json!({ "required": required, "fully-allocated": all });
            // QEMU tells of persistent bitmaps, which are not copied, where the source may have some.
            if source.is_some_and(|s| s.format() == "qcow2") && self.output_format == "qcow2" {
                value["bitmaps"] = json!(0);
            }
            print_json(&value);
        } else {
            print(&format!("required size: {required}\nfully allocated size: {all}\n"));
        }
        Ok(())
    }
}

/// Bytes of the clusters that have data.
fn used(image: &dyn Image, cluster: u64) -> io::Result<u64> {
    let (mut at, mut sum) = (0, 0);
    while at < image.size() {
        let layer = ops::layer(image, at)?;
        let end = at + layer.len.max(1);
        if layer.zero {
            at = end;
            continue;
        }
        let end = end.next_multiple_of(cluster);
        sum += end - at / cluster * cluster;
        at = end;
    }
    Ok(sum)
}

/// Bytes of a qcow2 image of which everything is there: header, tables, counters and data.
fn qcow2_size(bytes: u64, cluster: u64, refcount_bits: u64) -> u64 {
    let entries = cluster / 8;
    let data = bytes.div_ceil(cluster);
    let l2 = data.div_ceil(entries);
    let l1 = l2.div_ceil(entries);
    let counted = 1 + data + l2 + l1;
    let per_block = cluster * 8 / refcount_bits;
    // Counters count themselves.
    let (mut blocks, mut table) = (0, 0);
    loop {
        let wanted = (counted + blocks + table).div_ceil(per_block);
        let wanted_table = wanted.div_ceil(entries);
        if (wanted, wanted_table) == (blocks, table) {
            return (counted + blocks + table) * cluster;
        }
        (blocks, table) = (wanted, wanted_table);
    }
}

/// `mynah image dd`.
#[derive(clap::Args, Debug)]
pub struct Dd {
    /// The source's format, told by its header if it is not given
    #[arg(short, value_name = "FORMAT")]
    format: Option<String>,
    /// The target's format
    #[arg(short = 'O', value_name = "FORMAT", default_value = "raw")]
    output_format: String,
    /// Read the source even if somebody is writing to it
    #[arg(short = 'U', long)]
    force_share: bool,
    /// if=FILE of=FILE [bs=BYTES] [count=BLOCKS] [skip=BLOCKS]
    #[arg(required = true, value_name = "NAME=VALUE")]
    operands: Vec<String>,
}

impl Dd {
    /// Copies.
    pub fn run(&self, context: &Context) -> anyhow::Result<()> {
        let (mut from, mut to) = (None, None);
        let (mut block, mut count, mut skip) = (512, None, 0);
        for operand in &self.operands {
            let wrong = |why: &str| Error::new(format!("dd: {operand}: {why}"));
            let (name, value) = operand.split_once('=').ok_or_else(|| wrong("NAME=VALUE is expected"))?;
            let number = || size(value).map_err(|e| wrong(&e));
            match name {
                "if" => from = Some(PathBuf::from(value)),
                "of" => to = Some(PathBuf::from(value)),
                "bs" => block = number()?,
                "count" => count = Some(number()?),
                "skip" => skip = number()?,
                _ => return Err(wrong("there is if, of, bs, count, skip").into()),
            }
        }
        let (Some(from), Some(to)) = (from, to) else {
            return Err(Error::new("dd: if= and of= are both needed").into());
        };
        if block == 0 || i32::try_from(block).is_err() {
            return Err(Error::new(format!("dd: bs={block}: blocks of so many bytes cannot be")).into());
        }
        let source = context.open(&OpenOptions {
            force_share: self.force_share,
            ..context.reading(&from, self.format.as_deref())?
        })?;
        // As qemu-img has it count is of the source's blocks from its start, those that are skipped among them.
        let end = count.map_or(source.size(), |n| n.saturating_mul(block).min(source.size()));
        let start = skip.saturating_mul(block);
        let part = Part { start: start.min(end), len: end.saturating_sub(start), of: source };
        mynah_block::create(&to, &self.output_format, part.len, &[])?;
        let target = context.open(&context.by_path().writing(&to, Some(&self.output_format))?)?;
        if start > end {
            super::say("mynah", &format!("{}: cannot skip to specified offset", from.display()));
        }
        copy(&part, &*target, &to)?;
        Ok(())
    }
}

fn copy(from: &Part, to: &dyn Image, name: &Path) -> Result<(), Error> {
    let chosen =
        CopyOptions { target_is_zero: true, compressed: to.compressed_only(), ..CopyOptions::default() };
    ops::copy(from, to, chosen, &mut |_, _| {}).map_err(|e| wrong(name, &e))
}

/// Some of a disk.
struct Part {
    start: u64,
    len: u64,
    of: Arc<dyn Image>,
}

impl Image for Part {
    fn format(&self) -> &'static str {
        "raw"
    }

    fn size(&self) -> u64 {
        self.len
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.of.read(self.start + at, buf)
    }

    fn extent(&self, at: u64) -> io::Result<Extent> {
        let layer = ops::layer(&*self.of, self.start + at)?;
        Ok(Extent {
            len: layer.len.min(self.len - at),
            data: !layer.zero,
            allocated: true,
            host_offset: None,
        })
    }
}
