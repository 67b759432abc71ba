//! Taps: the host's own TCP on both sides of two of them, and what `mynah run` says and does.
use crate::guest::LONG;
use crate::world::{Folder, Place, can, mynah};
use mynah_net::reactor::{Handler, Interest, Reactor, Token};
use mynah_net::tap::{Origin, Script, TapConfig};
use mynah_net::{Backend, Frame, Nic, Takes, Tap};
use socket2::Socket;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A loop that the test turns.
struct Hand;
struct Nothing;
impl Reactor for Hand {
    fn now(&self) -> Instant {
        Instant::now()
    }
    fn register(&self, _: &Arc<Socket>, _: Token) -> io::Result<Box<dyn Interest>> {
        Ok(Box::new(Nothing))
    }
    fn set_timer(&self, _: Option<Instant>) {}
}
impl Interest for Nothing {
    fn want(&self, _: bool, _: bool) -> io::Result<()> {
        Ok(())
    }
}

/// A cable from one tap to another, that takes what they leave to it.
struct Cable {
    to: Weak<Tap>,
    takes: Takes,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    frames: AtomicUsize,
    long: AtomicUsize,
    unfinished: AtomicUsize,
}

impl Nic for Cable {
    fn can_receive(&self) -> bool {
        true
    }
    fn receive(&self, frame: &Frame<'_>) -> bool {
        self.seen.frames.fetch_add(1, Ordering::SeqCst);
        if frame.offload.gso.is_some() && frame.len() > 2000 {
            self.seen.long.fetch_add(1, Ordering::SeqCst);
        }
        if frame.offload.partial.is_some() {
            self.seen.unfinished.fetch_add(1, Ordering::SeqCst);
        }
        if let Some(to) = self.to.upgrade() {
            to.send(frame);
        }
        true
    }
    fn takes(&self) -> Takes {
        self.takes
    }
}

fn tap(place: &Place, name: &str, address: [u8; 4], queues: u16, vnet_hdr: bool) -> Arc<Tap> {
    let origin = Origin::Open {
        ifname: name.into(),
        queues,
        script: Script::No,
        downscript: Script::No,
        bridge: None,
        address: Some((address.into(), 24)),
    };
    let config = TapConfig { origin, vnet_hdr: Some(vnet_hdr) };
    let reactor: Arc<dyn Reactor> = Arc::new(Hand);
    place.run(move || Tap::new(&config, &reactor)).unwrap()
}

const BYTES: usize = 3 << 20;

/// Two taps, and the cable between.
fn cable(one: &Arc<Tap>, two: &Arc<Tap>, takes: Takes) -> Arc<Seen> {
    let seen = Arc::new(Seen::default());
    for (from, to) in [(one, two), (two, one)] {
        from.connect(Arc::new(Cable { to: Arc::downgrade(to), takes, seen: seen.clone() }));
    }
    seen
}

/// TCP both ways between two namespaces that these taps join, while the taps' loops are turned.
fn talk(near: &Place, far: &Place, taps: Vec<Arc<Tap>>) {
    let done = Arc::new(AtomicBool::new(false));
    let stop = done.clone();
    let turning = std::thread::spawn(move || {
        while !stop.load(Ordering::SeqCst) {
            for tap in &taps {
                (0..tap.queues()).for_each(|n| tap.ready(Token(n as u64), true, false));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    });
    let number = |n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8;
    let data: Arc<Vec<u8>> = Arc::new((0..BYTES as u32).map(number).collect());
    let listener = far.run(|| TcpListener::bind(("10.5.0.2", 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let theirs = data.clone();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = vec![0; BYTES];
        stream.read_exact(&mut got).unwrap();
        assert!(got == *theirs, "what came is what was sent");
        stream.write_all(&theirs).unwrap();
    });
    let mut stream = near.run(move || TcpStream::connect(("10.5.0.2", port)).unwrap());
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(&data).unwrap();
    let mut got = vec![0; BYTES];
    stream.read_exact(&mut got).unwrap();
    server.join().unwrap();
    assert!(got == *data, "and back");
    done.store(true, Ordering::SeqCst);
    turning.join().unwrap();
}

/// A tap from one namespace to another.
fn carries(queues: u16, vnet_hdr: bool, takes: Takes) -> Arc<Seen> {
    let (near, far) = (Place::new().unwrap(), Place::new().unwrap());
    let (one, two) =
        (tap(&near, "t1", [10, 5, 0, 1], queues, vnet_hdr), tap(&far, "t2", [10, 5, 0, 2], queues, vnet_hdr));
    assert_eq!((one.name(), one.queues(), one.has_headers()), ("t1", usize::from(queues), vnet_hdr));
    let seen = cable(&one, &two, takes);
    talk(&near, &far, vec![one, two]);
    seen
}

const ALL: Takes = Takes { partial: true, tso4: true, tso6: true, uso4: false, uso6: false };

#[test]
fn a_tap_carries_frames_whole_and_unfinished() {
    if !can() {
        return;
    }
    let count = |n: &AtomicUsize| n.load(Ordering::SeqCst);
    for queues in [1, 2] {
        let seen = carries(queues, true, ALL);
        assert!(count(&seen.long) > 10, "long segments are left whole: {}", count(&seen.long));
        assert!(count(&seen.unfinished) > count(&seen.long));
        assert!(count(&seen.frames) < 2 * BYTES / 1448, "so that there are fewer: {}", count(&seen.frames));
    }
    // A card that takes less gets less, whether there are headers or not.
    for vnet_hdr in [true, false] {
        let seen = carries(1, vnet_hdr, Takes::default());
        assert_eq!((count(&seen.long), count(&seen.unfinished)), (0, 0), "vnet_hdr {vnet_hdr}");
    }
}

/// What one kernel has left to the next by our header, that one has to finish for a third, which looks at it: it is
/// on a bridge between a tap with headers and one without.
#[test]
fn what_a_header_says_is_what_the_host_does() {
    if !can() {
        return;
    }
    let [near, middle, far] = [(); 3].map(|()| Place::new().unwrap());
    let one = tap(&near, "t1", [10, 5, 0, 1], 1, true);
    // Their own addresses are of no use on a bridge.
    let (two, three) =
        (tap(&middle, "t2", [10, 6, 0, 1], 1, true), tap(&middle, "t3", [10, 7, 0, 1], 1, false));
    let four = tap(&far, "t4", [10, 5, 0, 2], 1, false);
    middle.ip("link add br0 type bridge");
    for name in ["t2", "t3"] {
        middle.ip(&format!("link set {name} master br0"));
    }
    middle.ip("link set br0 up");
    let (left, right) = (cable(&one, &two, ALL), cable(&three, &four, Takes::default()));
    talk(&near, &far, vec![one, two, three, four]);
    let count = |n: &AtomicUsize| n.load(Ordering::SeqCst);
    assert!(count(&left.long) > 10 && count(&left.unfinished) > 100);
    assert_eq!((count(&right.long), count(&right.unfinished)), (0, 0));
    assert!(count(&right.frames) > 2 * BYTES / 1448);
}

/// What a `mynah run` with this network says as it fails.
fn refused(place: &Place, nic: &str) -> String {
    let nic = nic.to_owned();
    let out = place.run(move || {
        mynah()
            .args([
                "run", "-S", "-boot", "n", "-display", "none", "-monitor", "none", "-serial", "none", "-nic",
                &nic,
            ])
            .output()
    });
    let out = out.unwrap();
    assert_eq!(out.status.code(), Some(1));
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn what_is_wrong_with_a_tap_is_said() {
    if !can() {
        return;
    }
    let place = Place::new().unwrap();
    let _held = tap(&place, "busy0", [10, 5, 0, 1], 1, false);
    place.ip("tuntap add dev many0 mode tap multi_queue");
    let holder = format!("(process {})", std::process::id());
    for (nic, said) in [
        ("tap,ifname=busy0,script=no", &["ifname=busy0", &holder, "choose another name"][..]),
        ("tap,ifname=many0,script=no", &["ifname=many0", "no tap with one queue"]),
        ("tap,ifname=lo,script=no", &["ifname=lo", "no tap"]),
        ("tap,ifname=much-too-long-a-name,script=no", &["1 to 15 characters"]),
        ("tap,script=/no/such/script", &["script=/no/such/script", "No such file"]),
        ("tap,script=/bin/false", &["script=/bin/false", "it has failed", "script=no"]),
        ("tap,fd=99", &["fd=99", "Bad file descriptor"]),
        ("tap,fd=0", &["fd=0", "a descriptor of a tap"]),
        ("bridge,br=nobridge", &["br=nobridge", "ip link add nobridge type bridge"]),
        ("bridge,helper=/bin/false", &["helper=/bin/false", "br=br0", "allow br0"]),
    ] {
        let why = refused(&place, nic);
        assert!(said.iter().all(|part| why.contains(part)), "{nic}: {why}");
    }
}

#[test]
fn a_machine_has_its_tap_while_it_runs() {
    if !can() {
        return;
    }
    let place = Place::new().unwrap();
    place.ip("link add lan0 type bridge");
    let folder = Folder::new();
    let (script, log) = (folder.0.join("script"), folder.0.join("log"));
    let text = format!("#!/bin/sh\necho \"$0 $1 $(ip -o link show $1 | wc -l)\" >> {}\n", log.display());
    std::fs::write(&script, text).unwrap();
    std::process::Command::new("chmod").arg("755").arg(&script).status().unwrap();
    let tap = format!("tap,id=a,ifname=mine%d,script={0},downscript={0}", script.display());
    let mut child = place.run(move || {
        mynah()
            .args([
                "run", "-S", "-boot", "n", "-display", "none", "-serial", "none", "-monitor", "stdio",
                "-netdev", &tap,
            ])
            .args(["-device", "virtio-net-pci,netdev=a", "-nic", "bridge,br=lan0,model=e1000"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    });
    let mut monitor = child.stdin.take().unwrap();
    writeln!(monitor, "info network").unwrap();
    let mut said = String::new();
    let mut out = child.stdout.take().unwrap();
    let mut chunk = [0; 1024];
    while !said.contains("br=lan0") {
        let n = out.read(&mut chunk).unwrap();
        assert!(n > 0, "{said}");
        said += &String::from_utf8_lossy(&chunk[..n]);
    }
    assert!(said.contains("type=tap,ifname=mine0"), "{said}");
    let on = place
        .run(|| std::process::Command::new("ip").args(["-o", "link", "show", "master", "lan0"]).output());
    let on = String::from_utf8_lossy(&on.unwrap().stdout).into_owned();
    assert!(on.contains("tap0") && on.contains(",UP"), "{on}");
    writeln!(monitor, "quit").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let script = script.display();
    let log = std::fs::read_to_string(log).unwrap();
    assert_eq!(
        log,
        format!("{script} mine0 1\n{script} mine0 1\n"),
        "it was set up, and put away while it was there"
    );
}

/// Opens a tap with several things that only a caller can: as QEMU's helper does, and as one that starts QEMU does.
const OPENER: &str = r#"#!/usr/bin/env python3
import array, fcntl, os, socket, struct, sys
tap = os.open('/dev/net/tun', os.O_RDWR)
name = os.environ['TAP'].encode()
fcntl.ioctl(tap, 0x400454ca, struct.pack('16sH22x', name, 0x5002))  # TUNSETIFF: IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
os.system('ip link set %s up' % name.decode())
given = dict(a[2:].split('=') for a in sys.argv[1:] if a.startswith('--') and '=' in a)
if 'fd' in given:
    assert '--use-vnet' in sys.argv and given['br'] == 'br7', sys.argv
    there = socket.socket(fileno=int(given['fd']))
    there.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [tap]))])
else:
    os.set_inheritable(tap, True)
    os.execv(sys.argv[1], [a.replace('@', str(tap)) for a in sys.argv[1:]])
"#;

#[test]
fn a_tap_is_handed_over() {
    if !can() {
        return;
    }
    if std::process::Command::new("python3").arg("-V").output().is_err() {
        eprintln!("SKIPPED: python3 is not installed, in which the helper is written");
        return;
    }
    let (place, folder) = (Place::new().unwrap(), Folder::new());
    let opener = folder.0.join("opener");
    std::fs::write(&opener, OPENER).unwrap();
    std::process::Command::new("chmod").arg("755").arg(&opener).status().unwrap();
    let helped = format!("bridge,br=br7,helper={}", opener.display());
    let with_words = format!("tap,br=br7,helper={} again", opener.display());
    for (name, nic, inherits) in
        [("handed0", helped, false), ("handed1", with_words, false), ("handed2", "tap,fd=@".into(), true)]
    {
        let mut command = if inherits {
            let mut command = std::process::Command::new(&opener);
            command.arg(mynah().get_program());
            command
        } else {
            mynah()
        };
        let args = format!("run -S -boot n -display none -serial none -monitor stdio -nic|{nic}");
        let (words, nic) = args.split_once('|').unwrap();
        command.args(words.split(' ')).arg(nic).env("TAP", name);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = place.run(move || command.spawn().unwrap());
        let mut monitor = child.stdin.take().unwrap();
        writeln!(monitor, "info network").unwrap();
        let (mut said, mut out, mut chunk) = (String::new(), child.stdout.take().unwrap(), [0; 1024]);
        while !said.contains("type=tap,queues=1") {
            let n = out.read(&mut chunk).unwrap();
            assert!(n > 0, "{name}: {said}");
            said += &String::from_utf8_lossy(&chunk[..n]);
        }
        // It has a carrier as long as somebody has it open.
        let show = format!("-o link show {name}");
        let link =
            place.run(move || std::process::Command::new("ip").args(show.split(' ')).output().unwrap());
        let link = String::from_utf8_lossy(&link.stdout).into_owned();
        assert!(link.contains("LOWER_UP"), "{name}: {link}");
        writeln!(monitor, "quit").unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{name}");
    }
}
