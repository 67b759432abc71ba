//! One run of a guest: started, watched, measured, ended.
use super::subject::{Files, Subject};
use crate::machine::stats::Stats;
use serde::Serialize;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Where a phase of a boot ends, by what Linux says then.
pub const PHASES: &[(&str, &str)] = &[
    ("firmware", "Linux version "),
    ("kernel", "Run /init as init process"),
    ("kernel", "Run /sbin/init as init process"),
];

/// A text whose time is of interest.
#[derive(Clone, Debug)]
pub struct Marker {
    name: String,
    text: Vec<u8>,
}

impl Marker {
    /// The time when `text` comes is `name`'s.
    pub fn new(name: &str, text: &str) -> Self {
        Self { name: name.into(), text: text.as_bytes().to_vec() }
    }
}

/// What a run came to.
#[derive(Clone, Debug, Serialize)]
pub enum Outcome {
    /// It ended as it should.
    Done(Figures),
    /// It did not; why.
    Failed(String),
}

/// What was measured of a run. Times are seconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// By the host's clock.
    pub wall: f64,
    /// Of the host's processors.
    pub cpu: f64,
    /// Guest time.
    pub guest: Option<f64>,
    /// Instructions of the guest's, where somebody counts them.
    pub instructions: Option<u64>,
    /// Exits from the host's hypervisor.
    pub exits: Option<u64>,
    /// The most memory that the emulator had, in bytes.
    pub memory: u64,
    /// When each marker came, in the order in which they did.
    pub markers: Vec<(String, f64)>,
    /// What the guest itself has measured: 'RESULT NAME SECONDS'.
    pub results: Vec<(String, f64)>,
}

/// Bytes of output in which a text is looked for, beside those that have just come.
const KEPT: usize = 4096;

/// What the guest has written so far.
struct Watch<'a> {
    began: Instant,
    markers: &'a [Marker],
    until: Option<&'a str>,
    tail: Vec<u8>,
    line: Vec<u8>,
    figures: Figures,
    over: bool,
}

impl Watch<'_> {
    fn take(&mut self, bytes: &[u8], at: Instant) {
        self.tail.extend_from_slice(bytes);
        let seconds = (at - self.began).as_secs_f64();
        let found = |tail: &[u8], text: &[u8]| tail.windows(text.len()).any(|w| w == text);
        for marker in self.markers {
            if !self.figures.markers.iter().any(|(name, _)| *name == marker.name)
                && found(&self.tail, &marker.text)
            {
                self.figures.markers.push((marker.name.clone(), seconds));
            }
        }
        if let Some(until) = self.until {
            self.over |= found(&self.tail, until.as_bytes());
        }
        let surplus = self.tail.len().saturating_sub(KEPT);
        self.tail.drain(..surplus);
        for &byte in bytes {
            if byte == b'\n' {
                let line = String::from_utf8_lossy(&self.line).into_owned();
                self.result(&line);
                self.line.clear();
            } else if self.line.len() < KEPT {
                self.line.push(byte);
            }
        }
    }

    fn result(&mut self, line: &str) {
        let mut words = line.split_whitespace().skip_while(|w| *w != "RESULT").skip(1);
        if let (Some(name), Some(seconds)) = (words.next(), words.next())
            && let Ok(seconds) = seconds.parse()
        {
            self.figures.results.push((name.into(), seconds));
        }
    }
}

/// A file that goes with it.
struct Temporary(PathBuf);

impl Temporary {
    fn new(what: &str) -> Self {
        Self(std::env::temp_dir().join(format!("mynah-compare-{}-{what}", std::process::id())))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Runs a guest once.
pub fn run(
    subject: &Subject,
    options: &[OsString],
    markers: &[Marker],
    until: Option<&str>,
    limit: Duration,
) -> Outcome {
    let (debug, stats, log) = (Temporary::new("debug"), Temporary::new("stats"), Temporary::new("log"));
    let files = Files { debug: debug.0.clone(), stats: stats.0.clone(), log: log.0.clone() };
    let mut command = match subject.command(options, &files) {
        Ok(command) => command,
        Err(e) => return Outcome::Failed(format!("{e:#}")),
    };
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let began = Instant::now();
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) => return Outcome::Failed(format!("it does not start: {e}")),
    };
    if let Some(mut keys) = child.stdin.take() {
        // Who does not listen does not need it.
        let _ = keys.write_all(subject.typed());
    }
    let (sender, output) = mpsc::channel();
    let errors = std::thread::spawn({
        let mut pipe = child.stderr.take();
        move || {
            let mut text = Vec::new();
            // What is beyond is of no use to anyone.
            let _ = pipe.as_mut().map(|p| p.take(1 << 16).read_to_end(&mut text));
            String::from_utf8_lossy(&text).into_owned()
        }
    });
    let mut pipe = child.stdout.take();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Some(Ok(n @ 1..)) = pipe.as_mut().map(|p| p.read(&mut bytes)) {
            if sender.send((Instant::now(), bytes[..n].to_vec())).is_err() {
                return;
            }
        }
    });
    let mut watch = Watch {
        began,
        markers,
        until,
        tail: Vec::new(),
        line: Vec::new(),
        figures: Figures::default(),
        over: false,
    };
    let mut read_of_debug = 0;
    let in_time = loop {
        // The debug port's file is looked at now and then.
        if let Ok(bytes) = std::fs::read(&debug.0)
            && let Some(new @ [_, ..]) = bytes.get(read_of_debug..)
        {
            watch.take(new, Instant::now());
            read_of_debug = bytes.len();
        }
        match output.recv_timeout(Duration::from_millis(20)) {
            Ok((at, bytes)) => watch.take(&bytes, at),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break true,
        }
        if watch.over {
            break true;
        }
        if began.elapsed() > limit {
            break false;
        }
    };
    let (met, ended) = (watch.over, end(&mut child, watch.over || !in_time));
    let mut figures = watch.figures;
    figures.wall = began.elapsed().as_secs_f64();
    let said = errors.join().unwrap_or_default();
    let reason =
        said.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("nothing on standard error").trim().to_owned();
    let Some(ended) = ended else { return Outcome::Failed("it cannot be waited for".into()) };
    if !in_time {
        return Outcome::Failed(format!("it was not over after {} s", limit.as_secs()));
    }
    if until.is_some() && !met {
        return Outcome::Failed(format!("it ended, and --until was not on its console ({reason})"));
    }
    if !met && !subject.ended_well(ended.code, &said) {
        return Outcome::Failed(format!("exit code {}: {reason}", ended.code));
    }
    (figures.cpu, figures.memory) = (ended.cpu, ended.memory);
    if let Some(stats) = std::fs::read(&stats.0).ok().and_then(|b| serde_json::from_slice::<Stats>(&b).ok()) {
        figures.guest = Some(stats.guest_seconds);
        figures.instructions = Some(stats.sum(|v| v.instructions)).filter(|n| *n != 0);
        figures.exits = Some(stats.sum(|v| v.exits)).filter(|n| *n != 0);
    }
    Outcome::Done(figures)
}

/// How a process ended, and what it took.
struct Ended {
    code: i32,
    cpu: f64,
    memory: u64,
}

/// How long a process may take to end when it is told to, before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// Waits for a process, which is told to end if `stop`.
#[cfg(unix)]
fn end(child: &mut Child, stop: bool) -> Option<Ended> {
    let id = child.id() as libc::pid_t;
    if stop {
        // SAFETY: it is our child, which nobody has waited for yet, so the number is still its.
        unsafe { libc::kill(id, libc::SIGTERM) };
    }
    let until = Instant::now() + GRACE;
    let mut killed = false;
    loop {
        let mut status = 0;
        // SAFETY: all zeroes are a valid `rusage`.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both point to what the call writes.
        match unsafe { libc::wait4(id, &raw mut status, libc::WNOHANG, &raw mut usage) } {
            0 => {}
            n if n == id => {
                let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
                return Some(Ended {
                    code: if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 },
                    cpu: seconds(usage.ru_utime) + seconds(usage.ru_stime),
                    memory: usage.ru_maxrss as u64 * 1024,
                });
            }
            _ => return None,
        }
        if stop && !killed && Instant::now() > until {
            killed = true;
            // SAFETY: as above.
            unsafe { libc::kill(id, libc::SIGKILL) };
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for a process, which is killed if `stop`. What it took is not known here.
#[cfg(not(unix))]
fn end(child: &mut Child, stop: bool) -> Option<Ended> {
    if stop {
        let _ = child.kill();
    }
    let _ = GRACE;
    let status = child.wait().ok()?;
    Some(Ended { code: status.code().unwrap_or(-1), cpu: 0.0, memory: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_and_results_are_found_across_pieces_of_output() {
        let markers = [Marker::new("kernel", "Linux version"), Marker::new("shell", "# ")];
        let began = Instant::now();
        let mut watch = Watch {
            began,
            markers: &markers,
            until: Some("login:"),
            tail: Vec::new(),
            line: Vec::new(),
            figures: Figures::default(),
            over: false,
        };
        for (n, piece) in
            ["[0.0] Linux ver", "sion 6\nRESULT int-a 1.", "25 s\nhost lo", "gin: "].iter().enumerate()
        {
            assert!(!watch.over);
            watch.take(piece.as_bytes(), began + Duration::from_secs(n as u64));
        }
        assert!(watch.over);
        assert_eq!(watch.figures.markers, [("kernel".to_owned(), 1.0)]);
        assert_eq!(watch.figures.results, [("int-a".to_owned(), 1.25)]);
    }
}
