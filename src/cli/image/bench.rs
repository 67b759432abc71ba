//! `bench`: so many requests of one size, so many at a time, as a guest's driver would send them.
use super::super::{Error, print};
use super::{Context, cache, size};
use mynah_block::{Aio, Cache, Drive, DriveError, OpenOptions, Options, Request};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Instant;

/// Most threads of `-i threads`: as many as QEMU's pool has.
const THREADS: usize = 64;

/// `mynah image bench`.
#[derive(clap::Args, Debug)]
pub struct Bench {
    /// How many requests
    #[arg(short, value_name = "COUNT", default_value_t = 75_000)]
    count: u64,
    /// How many of them at a time
    #[arg(short, value_name = "DEPTH", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    depth: u32,
    /// The image's format, told by its header if it is not given
    #[arg(short, value_name = "FORMAT")]
    format: Option<String>,
    /// Flush after so many requests
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    flush_interval: u64,
    /// Who carries them out: threads, native or io_uring
    #[arg(short = 'i', value_name = "AIO", value_parser = ["threads", "native", "io_uring"], default_value = "threads")]
    aio: String,
    /// The same as -i native
    #[arg(short)]
    native: bool,
    /// Requests go on while there is a flush
    #[arg(long)]
    no_drain: bool,
    /// Where the first request is
    #[arg(short, value_name = "OFFSET", value_parser = size, default_value = "0")]
    offset: u64,
    /// The byte that is written
    #[arg(long, value_name = "BYTE", default_value_t = 0)]
    pattern: u8,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Bytes of a request
    #[arg(short, value_name = "SIZE", value_parser = size, default_value = "4096")]
    size: u64,
    /// Bytes from one request to the next; those of a request if it is not given
    #[arg(short = 'S', value_name = "SIZE", value_parser = size, default_value = "0")]
    step: u64,
    /// The host's caches: writeback, none, writethrough, directsync, unsafe
    #[arg(short = 't', value_name = "CACHE", value_parser = cache, default_value = "writeback")]
    cache: Cache,
    /// Write; what is in the image is lost
    #[arg(short)]
    write: bool,
    /// Look at it even if somebody is writing to it
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image
    file: PathBuf,
}

impl Bench {
    /// Sends the requests, and tells how long they took.
    pub fn run(&self, context: &Context) -> anyhow::Result<()> {
        let wrong = |text: &str| Err(Error::new(text).into());
        let aio = if self.native { "native" } else { &self.aio };
        if aio == "native" && !self.cache.direct() {
            return wrong("-i native goes past the host's page cache: say -t none or -t directsync too");
        }
        if self.flush_interval > 0 && !self.write {
            return wrong("--flush-interval is of use with -w alone");
        }
        if self.flush_interval > 0 && self.flush_interval < u64::from(self.depth) {
            return wrong("--flush-interval cannot be smaller than the depth (-d)");
        }
        if self.size == 0 || self.size > 1 << 30 {
            return wrong("-s: a request has 1 byte to 1 GiB");
        }
        let how = context.reading(&self.file, self.format.as_deref())?;
        let image = context.open(&OpenOptions {
            read_only: !self.write,
            cache: self.cache,
            force_share: self.force_share,
            ..how
        })?;
        let (disk, step) = (image.size(), if self.step == 0 { self.size } else { self.step });
        if self.size > disk {
            return wrong("the image is smaller than a request (-s)");
        }
        let threads = if aio == "threads" { Aio::Threads } else { Aio::IoUring };
        let options = Options {
            aio: threads,
            threads: THREADS.min(self.depth as usize),
            write_through: self.cache.write_through(),
            no_flush: self.cache.no_flush(),
            ..Options::default()
        };
        let drive = Drive::new(options, Some(image))
            .map_err(|e| Error::new(format!("aio={aio}: the host does not let it use io_uring: {e}")))?;
        if !self.quiet {
            print(&self.plan(step));
        }
        let began = Instant::now();
        self.send(&drive, disk, step).map_err(|e| Error::new(format!("{}: {e}", self.file.display())))?;
        if !self.quiet {
            print(&format!("Run completed in {:.3} seconds.\n", began.elapsed().as_secs_f64()));
        }
        Ok(())
    }

    fn plan(&self, step: u64) -> String {
        let what = if self.write { "write" } else { "read" };
        let mut text = format!(
            "Sending {} {what} requests, {} bytes each, {} in parallel (starting at offset {}, step size {step})\n",
            self.count, self.size, self.depth, self.offset
        );
        if self.flush_interval > 0 {
            text += &format!("Sending flush every {} requests\n", self.flush_interval);
        }
        text
    }

    fn send(&self, drive: &Drive, disk: u64, step: u64) -> Result<(), DriveError> {
        let (tx, rx) = mpsc::channel();
        let submit = |request: Request| {
            let tx = tx.clone();
            drive.submit(request, move |reply| {
                // Who has seen an error waits for no more.
                let _ = tx.send(reply.map(drop));
            });
        };
        // As qemu-img goes round: not beyond the last place that has room for a whole request.
        let last = disk - self.size + 1;
        let (mut at, mut under_way) = (self.offset % last, 0);
        let ended = |under_way: &mut u64| -> Result<(), DriveError> {
            *under_way -= 1;
            rx.recv().unwrap_or(Err(DriveError::Io))
        };
        for n in 0..self.count {
            if under_way == u64::from(self.depth) {
                ended(&mut under_way)?;
            }
            if self.flush_interval > 0 && n > 0 && n % self.flush_interval == 0 {
                while under_way > 0 && !self.no_drain {
                    ended(&mut under_way)?;
                }
                submit(Request::Flush);
                under_way += 1;
                if !self.no_drain {
                    ended(&mut under_way)?;
                }
            }
            submit(if self.write {
                Request::Write { at, data: vec![self.pattern; self.size as usize] }
            } else {
                Request::Read { at, len: self.size as usize }
            });
            under_way += 1;
            at = (at + step) % last;
        }
        while under_way > 0 {
            ended(&mut under_way)?;
        }
        Ok(())
    }
}
