//! What a run leaves behind however it ends, what it may do, and what of it is the same each time.
#![cfg(target_os = "linux")]
mod kit;

use iced_x86::code_asm::*;
use kit::*;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const ENGINES: [&str; 2] = ["jit", "interp"];

/// Mynah with a guest, without a display.
fn mynah(kernel: &str, args: &[&str]) -> Command {
    let mut all = vec!["run", "-display", "none", "-m", "16", "-kernel", kernel];
    all.extend(args);
    let mut command = command(&all);
    // SAFETY: between fork and exec only `signal` and `setrlimit` are called, which are async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            // Whoever runs the tests may ignore them, as shells do for what runs in the background.
            for s in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
                libc::signal(s, libc::SIG_DFL);
            }
            // No core files.
            libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 });
            Ok(())
        });
    }
    command.stdin(Stdio::null());
    command
}

/// 16 random numbers of 32 bits on the debug console.
fn numbers(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for n in 0..16 {
        if n % 2 == 0 {
            a.rdrand(ebx)?
        } else {
            a.rdseed(ebx)?
        }
        for _ in 0..4 {
            a.mov(al, bl)?;
            a.out(0xe9, al)?;
            a.shr(ebx, 8)?;
        }
    }
    power_off(a)
}

#[test]
fn with_a_seed_the_guests_randomness_is_the_same_each_time() {
    let folder = Folder::new("seed");
    let kernel = folder.file("k", &Guest::new(&numbers).image());
    let of = |engine: &str, seed: &[&str]| {
        let out = folder.path("e9");
        let log = format!("file:{out}");
        let mut args = vec!["-cpu", "max", "-accel", engine, "-serial", "null", "-debugcon", &log];
        args.extend(seed);
        let mut run = Running::start(&mut mynah(&kernel, &args));
        assert_eq!(run.ended(PATIENCE).expect("an end").code(), Some(0));
        let bytes = fs::read(&out).unwrap();
        assert_eq!(bytes.len(), 65, "R, and the numbers");
        bytes
    };
    let seven = of("interp", &["-seed", "7"]);
    for engine in ENGINES {
        assert_eq!(of(engine, &["-seed", "7"]), seven);
        assert_ne!(of(engine, &["-seed", "8"]), seven);
        assert_ne!(of(engine, &[]), of(engine, &[]));
    }
}

/// Five software interrupts, then `end`.
fn interrupts(a: &mut CodeAssembler, end: Code<'_>) -> Result<(), IcedError> {
    handler(a, 0x80..0x81, &|a| a.iretd())?;
    for _ in 0..5 {
        a.int(0x80)?;
    }
    say(a, b'E')?;
    end(a)
}

#[test]
fn the_log_is_written_however_it_ends() {
    let ends: [(&str, Code<'static>); 4] = [
        ("power-off", &|a| interrupts(a, &power_off)),
        ("debug exit", &|a| {
            interrupts(a, &|a| {
                a.mov(al, 3)?;
                a.out(0xf4, al)
            })
        }),
        ("triple fault", &|a| interrupts(a, &|a| a.ud2())),
        ("outside", &|a| interrupts(a, &spin)),
    ];
    let (signals, by_signal) = (
        [libc::SIGTERM, libc::SIGINT, libc::SIGHUP],
        [libc::SIGQUIT, libc::SIGABRT, libc::SIGSEGV, libc::SIGUSR1],
    );
    for (name, code) in ends {
        let outside: Vec<Option<libc::c_int>> = match name {
            "outside" => signals.into_iter().chain(by_signal).map(Some).chain([None]).collect(),
            _ => vec![None],
        };
        for signal in outside {
            let folder = Folder::new("log");
            let kernel = folder.file("k", &Guest::new(code).image());
            let (log, e9, socket) = (folder.path("log"), folder.path("e9"), folder.path("m"));
            let (debug, monitor) = (format!("file:{e9}"), format!("unix:{socket},server,nowait"));
            let args = [
                "-d",
                "int",
                "-D",
                &log,
                "-serial",
                "null",
                "-debugcon",
                &debug,
                "-monitor",
                &monitor,
                "-no-reboot",
                "-device",
                "isa-debug-exit,iobase=0xf4,iosize=1",
            ];
            let mut run = Running::start(mynah(&kernel, &args).stderr(Stdio::null()));
            wait_for_text(&e9, "E");
            match (name, signal) {
                ("outside", Some(signal)) => run.signal(signal),
                ("outside", None) => Client::at(&socket).send("quit"),
                _ => {}
            }
            let status = run.ended(PATIENCE).expect("an end");
            match name {
                "debug exit" => assert_eq!(status.code(), Some(7)),
                "triple fault" => assert_eq!(status.code(), Some(70)),
                _ => match signal.filter(|s| by_signal.contains(s)) {
                    Some(signal) => assert_eq!(status.signal(), Some(signal)),
                    None => assert_eq!(status.code(), Some(0)),
                },
            }
            let text = fs::read_to_string(&log).unwrap();
            assert_eq!(text.matches(": v=80 ").count(), 5, "{name} {signal:?}: {text}");
            assert!(text.ends_with('\n'), "{name} {signal:?}");
        }
    }
}

#[test]
fn sockets_and_the_pid_file_are_gone_however_it_ends() {
    let ended = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
    let killed = [
        libc::SIGQUIT,
        libc::SIGABRT,
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGILL,
        libc::SIGFPE,
        libc::SIGSYS,
        libc::SIGTRAP,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGXCPU,
    ];
    let guest = Guest::new(&spin).image();
    for signal in ended.into_iter().chain(killed) {
        let folder = Folder::new("left");
        let kernel = folder.file("k", &guest);
        let [m, s, c, pid] = ["m", "s", "c", "pid"].map(|n| folder.path(n));
        let server = |path: &str| format!("unix:{path},server,nowait");
        let chardev = format!("socket,id=c,path={c},server=on,wait=off");
        let args = [
            "-monitor",
            &server(&m),
            "-serial",
            &server(&s),
            "-chardev",
            &chardev,
            "-mon",
            "c",
            "-pidfile",
            &pid,
        ];
        let mut run = Running::start(mynah(&kernel, &args).stderr(Stdio::null()));
        let mut client = Client::at(&m);
        client.ask("info status");
        wait_for_text(&pid, "\n");
        let id = run.0.id();
        assert_eq!(fs::read_to_string(&pid).unwrap(), format!("{id}\n"));
        assert!(Path::new(&s).exists() && Path::new(&c).exists());
        run.signal(signal);
        let status = run.ended(PATIENCE).expect("an end");
        match ended.contains(&signal) {
            true => assert_eq!(status.code(), Some(0), "{signal}"),
            false => assert_eq!(status.signal(), Some(signal)),
        }
        for path in [m, s, c, pid] {
            assert!(!Path::new(&path).exists(), "{path} is there after signal {signal}");
        }
    }
}

/// A pseudo-terminal: master and slave.
fn terminal() -> (File, File) {
    let (mut master, mut slave) = (-1, -1);
    let null = std::ptr::null_mut::<libc::c_char>();
    // SAFETY: both descriptors are writable; name, termios and window size may be null.
    let failed =
        unsafe { libc::openpty(&mut master, &mut slave, null, std::ptr::null_mut(), std::ptr::null_mut()) };
    assert_eq!(failed, 0);
    // SAFETY: openpty has succeeded: both are open and ours alone.
    unsafe { (File::from_raw_fd(master), File::from_raw_fd(slave)) }
}

fn settings(terminal: &File) -> (libc::tcflag_t, libc::tcflag_t, libc::tcflag_t) {
    // SAFETY: all zeroes is a valid termios, which tcgetattr fills.
    let t = unsafe {
        let mut t = std::mem::zeroed::<libc::termios>();
        assert_eq!(libc::tcgetattr(terminal.as_raw_fd(), &mut t), 0);
        t
    };
    (t.c_iflag, t.c_lflag, t.c_oflag)
}

#[test]
fn the_terminal_is_as_it_was_however_it_ends() {
    let folder = Folder::new("terminal");
    let kernel = folder.file("k", &Guest::new(&spin).image());
    let signals = [
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGABRT,
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGILL,
        libc::SIGFPE,
    ];
    for signal in [0].into_iter().chain(signals) {
        let (mut master, slave) = terminal();
        let before = settings(&slave);
        let io = || Stdio::from(slave.try_clone().unwrap());
        let mut command = mynah(&kernel, &["-serial", "mon:stdio"]);
        let mut run = Running::start(command.stdin(io()).stdout(io()).stderr(Stdio::null()));
        wait_for("raw mode", || {
            (settings(&slave).1 & (libc::ICANON | libc::ECHO | libc::ISIG) == 0).then_some(())
        });
        // Not before it has come to its end's handlers.
        std::thread::sleep(Duration::from_millis(50));
        match signal {
            0 => master.write_all(b"\x01x").unwrap(),
            signal => run.signal(signal),
        }
        assert!(run.ended(PATIENCE).is_some(), "{signal}");
        assert_eq!(settings(&slave), before, "{signal}");
    }
}

#[test]
fn no_thread_can_get_new_rights() {
    let folder = Folder::new("privs");
    let (kernel, socket) = (folder.file("k", &Guest::new(&spin).image()), folder.path("m"));
    let monitor = format!("unix:{socket},server,nowait");
    for engine in ENGINES {
        let mut run =
            Running::start(&mut mynah(&kernel, &["-accel", engine, "-serial", "null", "-monitor", &monitor]));
        Client::at(&socket).ask("info cpus");
        let tasks: Vec<_> = fs::read_dir(format!("/proc/{}/task", run.0.id())).unwrap().flatten().collect();
        assert!(tasks.len() > 3, "{tasks:?}");
        for task in tasks {
            let status = fs::read_to_string(task.path().join("status")).unwrap();
            assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
        }
        run.signal(libc::SIGTERM);
        assert!(run.ended(PATIENCE).is_some());
    }
}

#[test]
fn what_waits_for_others_before_the_start_ends_too() {
    let folder = Folder::new("early");
    let kernel = folder.file("k", &Guest::new(&spin).image());
    let (socket, pipe) = (folder.path("s"), folder.path("p"));
    let path = std::ffi::CString::new(pipe.as_str()).unwrap();
    // SAFETY: a terminated path.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    let (server, file, pid) = (format!("unix:{socket},server"), format!("file:{pipe}"), folder.path("pid"));
    for args in [
        &["-serial", server.as_str()][..],
        &["-serial", "null", "-monitor", &server],
        &["-serial", &file],
        &["-serial", "null", "-d", "int", "-D", &pipe],
        &["-serial", "null", "-initrd", &pipe],
    ] {
        let mut all = args.to_vec();
        all.extend(["-pidfile", &pid]);
        let mut run = Running::start(mynah(&kernel, &all).stderr(Stdio::null()));
        wait_for_text(&pid, "\n");
        std::thread::sleep(Duration::from_millis(100));
        let told = std::time::Instant::now();
        run.signal(libc::SIGTERM);
        assert!(run.ended(PATIENCE).is_some(), "{args:?}");
        assert!(told.elapsed() < Duration::from_secs(2), "{args:?}: {:?}", told.elapsed());
        assert!(!Path::new(&pid).exists() && !Path::new(&socket).exists(), "{args:?}");
    }
}

#[test]
fn the_demo_without_a_home_leaves_nothing_in_the_folder_for_temporary_files() {
    let folder = Folder::new("demo");
    let socket = folder.path("m");
    let monitor = format!("unix:{socket},server,nowait");
    let args = ["demo", "--embedded", "--", "-monitor", &monitor, "-serial", "null"];
    for signal in [None, Some(libc::SIGTERM), Some(libc::SIGABRT)] {
        let mut mynah = command(&args);
        mynah.env("TMPDIR", &folder.0).stdin(Stdio::null()).stderr(Stdio::null());
        let mut run = Running::start(&mut mynah);
        let mut m = Client::at(&socket);
        let there = |what: &str| {
            fs::read_dir(&folder.0).unwrap().flatten().any(|f| f.file_name().to_string_lossy().contains(what))
        };
        assert!(there("embedded"));
        match signal {
            None => m.send("quit"),
            Some(signal) => run.signal(signal),
        }
        assert!(run.ended(PATIENCE).is_some());
        assert!(!there("embedded"), "{signal:?}");
    }
}
