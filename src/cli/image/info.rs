//! `info`, `check`, `map`: what an image is, without changing it, unless it is to be repaired.
use super::super::{Error, print};
use super::text::{info, info_json, print_json};
use super::{Context, Output, size};
use mynah_block::{Backing, Image, OpenOptions, Storage, open_file, ops, resolve};
use serde_json::{Map as JsonMap, Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `mynah image info`.
#[derive(clap::Args, Debug)]
pub struct Info {
    /// The image's format, told by its header if it is not given
    #[arg(short, value_name = "FORMAT")]
    format: Option<String>,
    /// Tell of all images that it stands on too
    #[arg(long)]
    backing_chain: bool,
    /// Look at it even if somebody is writing to it
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    output: Output,
    /// The image
    file: PathBuf,
}

impl Info {
    /// Tells it.
    pub fn run(&self, context: &Context) -> anyhow::Result<()> {
        let mut file = self.file.clone();
        let mut format = self.format.clone();
        let (mut all, mut text) = (Vec::new(), String::new());
        for n in 0..mynah_block::MAX_CHAIN {
            let below_it = context.by_path();
            let by = if n == 0 { context } else { &below_it };
            // Each by itself: that one below is gone is no reason not to tell of the others.
            let options = OpenOptions {
                backing: Backing::Ignore,
                force_share: self.force_share,
                ..by.reading(&file, format.as_deref())?
            };
            file.clone_from(&options.path);
            let image = context.open(&options)?;
            let actual = actual_size(&options)?;
            let name = file.display().to_string();
            let details = image.details();
            let below = match &details.backing_file {
                Some(backing) => Some(resolve(&file, backing).map_err(Error::new)?),
                None => None,
            };
            let full = below.as_ref().map(|b| b.display().to_string());
            if self.output.is_json() {
                all.push(info_json(&name, full.as_deref(), &*image, actual));
            } else {
                text += if text.is_empty() { "" } else { "\n" };
                text += &info(&name, full.as_deref(), &*image, actual);
            }
            match below {
                Some(next) if self.backing_chain => (file, format) = (next, details.backing_format),
                _ => break,
            }
        }
        match all.pop() {
            Some(one) if !self.backing_chain => print_json(&one),
            Some(last) => {
                all.push(last);
                print_json(&Value::Array(all));
            }
            None => print(&text),
        }
        Ok(())
    }
}

/// What the host keeps for the file.
fn actual_size(options: &OpenOptions) -> anyhow::Result<u64> {
    let file = open_file(&OpenOptions { force_share: true, ..options.clone() })?;
    Ok(file.disk_usage()?)
}

/// `mynah image check`.
#[derive(clap::Args, Debug)]
pub struct Check {
    /// The image's format, told by its header if it is not given
    #[arg(short, value_name = "FORMAT")]
    format: Option<String>,
    /// Repair what is found: leaks, or all
    #[arg(short, long, value_name = "WHAT", num_args = 0..=1, default_missing_value = "all")]
    #[arg(value_parser = ["leaks", "all"], require_equals = false)]
    repair: Option<String>,
    /// Look at it even if somebody is writing to it
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    output: Output,
    /// The image
    file: PathBuf,
}

impl Check {
    /// Checks it; the result is the exit code.
    pub fn run(&self, context: &Context) -> anyhow::Result<i32> {
        let options = OpenOptions {
            read_only: self.repair.is_none(),
            backing: Backing::Ignore,
            force_share: self.force_share,
            check: true,
            ..context.reading(&self.file, self.format.as_deref())?
        };
        let image = context.open(&options)?;
        let before = image.check(false);
        let unsupported = |e: &std::io::Error| e.kind() == std::io::ErrorKind::Unsupported;
        let report = match (before, self.repair.as_deref()) {
            (Err(e), _) if unsupported(&e) => {
                super::say("mynah", &format!("{}: {e}", self.file.display()));
                return Ok(63);
            }
            (Err(e), _) => return Err(Error::new(format!("{}: {e}", self.file.display())).into()),
            // Leaks alone: damage is left as it is.
            (Ok(found), Some("leaks")) if found.corruptions > 0 => found,
            (Ok(_), Some(_)) => {
                let repaired = image.check(true)?;
                let after = image.check(false)?;
                mynah_block::CheckReport {
                    corruptions_fixed: repaired.corruptions_fixed,
                    leaks_fixed: repaired.leaks_fixed,
                    messages: repaired.messages,
                    ..after
                }
            }
            (Ok(found), None) => found,
        };
        if self.output.is_json() {
            print_json(&self.json(&*image, &report));
        } else if !self.quiet {
            print(&human(&report));
        }
        Ok(match () {
            () if report.corruptions > 0 => 2,
            () if report.leaks > 0 => 3,
            () => 0,
        })
    }

    fn json(&self, image: &dyn Image, report: &mynah_block::CheckReport) -> Value {
        let mut map = JsonMap::new();
        map.insert("filename".into(), json!(self.file.display().to_string()));
        map.insert("format".into(), json!(image.format()));
        map.insert("check-errors".into(), json!(0));
        // What is 0 is not told, as QEMU has it.
        for (name, n) in [
            ("image-end-offset", report.image_end_offset),
            ("total-clusters", report.total_clusters),
            ("corruptions", report.corruptions),
            ("leaks", report.leaks),
            ("corruptions-fixed", report.corruptions_fixed),
            ("leaks-fixed", report.leaks_fixed),
            ("allocated-clusters", report.allocated_clusters),
            ("fragmented-clusters", report.fragmented_clusters),
            ("compressed-clusters", report.compressed_clusters),
        ] {
            if n > 0 {
                map.insert(name.into(), json!(n));
            }
        }
        Value::Object(map)
    }
}

fn human(report: &mynah_block::CheckReport) -> String {
    let mut text: String = report.messages.iter().map(|m| format!("{m}\n")).collect();
    if report.corruptions_fixed + report.leaks_fixed > 0 {
        let _ = writeln!(
            text,
            "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n",
            report.leaks_fixed, report.corruptions_fixed
        );
    }
    if report.corruptions + report.leaks == 0 {
        text += "No errors were found on the image.\n";
    }
    if report.corruptions > 0 {
        let _ = writeln!(
            text,
            "\n{} errors were found on the image.\n\
             Data may be corrupted, or further writes to the image may corrupt it.",
            report.corruptions
        );
    }
    if report.leaks > 0 {
        let _ = writeln!(
            text,
            "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.",
            report.leaks
        );
    }
    if report.total_clusters > 0 {
        let percent = |n: u64, of: u64| if of == 0 { 0.0 } else { n as f64 * 100.0 / of as f64 };
        let _ = writeln!(
            text,
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            report.allocated_clusters,
            report.total_clusters,
            percent(report.allocated_clusters, report.total_clusters),
            percent(report.fragmented_clusters, report.allocated_clusters),
            percent(report.compressed_clusters, report.allocated_clusters)
        );
    }
    if report.image_end_offset > 0 {
        let _ = writeln!(text, "Image end offset: {}", report.image_end_offset);
    }
    text
}

/// `mynah image map`.
#[derive(clap::Args, Debug)]
pub struct Map {
    /// The image's format, told by its header if it is not given
    #[arg(short, value_name = "FORMAT")]
    format: Option<String>,
    /// Where to begin
    #[arg(short, long, value_name = "OFFSET", default_value = "0", value_parser = size)]
    start_offset: u64,
    /// How many bytes to look at
    #[arg(short = 'l', long, value_name = "LENGTH", value_parser = size)]
    max_length: Option<u64>,
    /// Look at it even if somebody is writing to it
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    output: Output,
    /// The image
    file: PathBuf,
}

impl Map {
    /// Tells it.
    pub fn run(&self, context: &Context) -> anyhow::Result<()> {
        let options = OpenOptions {
            force_share: self.force_share,
            ..context.reading(&self.file, self.format.as_deref())?
        };
        let image = context.open(&options)?;
        let names = chain_names(&options.path, &image)?;
        let end =
            self.max_length.map_or(image.size(), |n| self.start_offset.saturating_add(n)).min(image.size());
        let json = self.output.is_json();
        let mut text = if json {
            String::from("[")
        } else {
            format!("{:<16}{:<16}{:<16}File\n", "Offset", "Length", "Mapped to")
        };
        let mut at = self.start_offset;
        while at < end {
            let layer = ops::long_layer(&*image, at)?;
            let len = layer.len.min(end - at);
            if len == 0 {
                break;
            }
            if json {
                text += if at == self.start_offset { "" } else { ",\n" };
                let _ = write!(
                    text,
                    "{{ \"start\": {at}, \"length\": {len}, \"depth\": {}, \"present\": {}, \"zero\": {}, \
                     \"data\": {}",
                    layer.depth, layer.present, layer.zero, layer.data
                );
                if let Some(offset) = layer.offset {
                    let _ = write!(text, ", \"offset\": {offset}");
                }
                text += "}";
            } else if layer.data {
                let Some(offset) = layer.offset else {
                    let what = "some of it is compressed, and stands nowhere as it is (--output=json tells)";
                    return Err(Error::new(format!("{}: {what}", self.file.display())).into());
                };
                let name = names.get(layer.depth).map(String::as_str).unwrap_or_default();
                let hex = |n: u64| if n == 0 { "0".to_string() } else { format!("{n:#x}") };
                let _ = writeln!(text, "{:<16}{:<16}{:<16}{name}", hex(at), hex(len), hex(offset));
            }
            at += len;
        }
        print(&(text + if json { "]\n" } else { "" }));
        Ok(())
    }
}

/// The files of an image and of what it stands on.
fn chain_names(path: &Path, image: &Arc<dyn Image>) -> anyhow::Result<Vec<String>> {
    let mut names = vec![path.display().to_string()];
    let (mut path, mut image) = (path.to_path_buf(), image.clone());
    while let (Some(name), Some(backing)) = (image.details().backing_file, image.backing()) {
        path = resolve(&path, &name).map_err(Error::new)?;
        names.push(path.display().to_string());
        image = backing;
    }
    Ok(names)
}
