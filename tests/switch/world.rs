//! A host and an outside, each in a network namespace of its own, and a switch on the host.
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

/// The port of those who send back what comes.
pub const ECHO: u16 = 7;
/// The outside's address, and the host's on the way there.
pub const OUTSIDE: [u8; 4] = [192, 0, 2, 2];
pub const HOST: [u8; 4] = [192, 0, 2, 1];

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own; what it starts is there too.
pub struct Place {
    jobs: Option<Sender<Job>>,
    pub task: i32,
    thread: Option<JoinHandle<()>>,
}

impl Place {
    /// A new one, or why the host does not give it.
    pub fn new() -> Result<Self, String> {
        let (jobs, work) = channel::<Job>();
        let (tell, told) = channel();
        let thread = std::thread::spawn(move || {
            // SAFETY: unshare and gettid take plain numbers; the namespace is this thread's alone.
            let made = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            let why = (made != 0).then(|| std::io::Error::last_os_error().to_string());
            // SAFETY: as above.
            let task = unsafe { libc::syscall(libc::SYS_gettid) } as i32;
            let _ = tell.send((why, task));
            work.into_iter().for_each(|job| job());
        });
        let (why, task) = told.recv().map_err(|e| e.to_string())?;
        match why {
            Some(why) => Err(format!("network namespaces: {why}")),
            None => Ok(Self { jobs: Some(jobs), task, thread: Some(thread) }),
        }
    }

    /// Has something done there.
    pub fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> R {
        let (tell, told) = channel();
        let job: Job = Box::new(move || _ = tell.send(work()));
        self.jobs.as_ref().unwrap().send(job).unwrap();
        told.recv().expect("it has panicked there")
    }

    /// `ip ...` there.
    pub fn ip(&self, line: &str) {
        let words: Vec<String> = line.split(' ').map(Into::into).collect();
        let done = self.run(move || Command::new("ip").args(&words).output().unwrap());
        assert!(done.status.success(), "ip {line}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// Sends back what comes to a UDP port there.
    pub fn echo(&self) {
        let socket = self.socket(ECHO);
        std::thread::spawn(move || {
            let mut bytes = [0; 2048];
            while let Ok((n, from)) = socket.recv_from(&mut bytes) {
                let _ = socket.send_to(&bytes[..n], from);
            }
        });
    }

    /// A UDP socket there.
    pub fn socket(&self, port: u16) -> UdpSocket {
        self.run(move || UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], port))).unwrap())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.jobs = None;
        let _ = self.thread.take().unwrap().join();
    }
}

/// Whether the tests can be: root, namespaces, taps. Says why not.
pub fn can() -> bool {
    let why = if !Path::new("/dev/net/tun").exists() {
        Some("there is no /dev/net/tun".into())
    } else {
        Place::new().err().or_else(|| Command::new("ip").arg("-V").output().err().map(|e| format!("ip: {e}")))
    };
    if let Some(why) = &why {
        eprintln!("SKIPPED: networks of their own for the tests: {why} (root has them)");
    }
    why.is_none()
}

/// The host and the outside, on one cable; each sends back what comes to port 7.
pub fn world() -> (Place, Place) {
    let (host, outside) = (Place::new().unwrap(), Place::new().unwrap());
    for place in [&host, &outside] {
        place.ip("link set lo up");
        place.echo();
    }
    host.ip(&format!("link add h0 type veth peer name o0 netns {}", outside.task));
    host.ip("link set h0 up");
    outside.ip("addr add 192.0.2.2/24 dev o0");
    outside.ip("link set o0 up");
    (host, outside)
}

/// A folder that goes when it is dropped.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::SeqCst);
        let path = std::env::temp_dir().join(format!("mynah-switch-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A switch.
pub struct Switch {
    pub folder: Folder,
    pub child: Child,
}

pub fn mynah() -> Command {
    Command::new(env!("CARGO_BIN_EXE_mynah"))
}

impl Switch {
    /// Starts one with these options, in which `@` stands for its folder; its control socket is `@/ctl`.
    pub fn start(place: &Place, options: &str) -> Self {
        let folder = Folder::new();
        let options = format!("--control @/ctl {options}").replace('@', folder.0.to_str().unwrap());
        let words: Vec<String> = options.split(' ').map(|w| w.replace('_', " ")).collect();
        let mut child =
            place.run(move || mynah().arg("switch").args(words).stderr(Stdio::piped()).spawn().unwrap());
        let (tell, told) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                println!("{line}");
                let _ = tell.send(line);
            }
        });
        while !told.recv().expect("the switch has ended").contains("the switch is ready") {}
        Self { folder, child }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.0.join(name)
    }

    /// Its statistics.
    pub fn stats(&self) -> serde_json::Value {
        let out = mynah().args(["switch", "--stats"]).arg(self.path("ctl")).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    }

    /// Waits until so many guests are there.
    pub fn settle(&self, guests: usize) {
        let there = |s: serde_json::Value| {
            let ports = s["ports"].as_array().unwrap().clone();
            ports.iter().filter(|p| p["uplink"] == false && p["connected"] == true).count()
        };
        while there(self.stats()) != guests {}
    }

    /// Those of one port.
    pub fn port(&self, name: &str) -> serde_json::Value {
        let stats = self.stats();
        stats["ports"].as_array().unwrap().iter().find(|p| p["name"] == name).unwrap().clone()
    }

    /// Its memory that is there, in bytes.
    pub fn memory(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
