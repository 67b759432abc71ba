//! The monitor as its users have it: on a terminal, a unix socket, a TCP socket, a named device, beside a serial port.
#![cfg(unix)]
mod kit;

use iced_x86::code_asm::*;
use kit::*;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Says its name on COM1, then counts in EBX and in memory.
fn counts(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for byte in b"up\n" {
        send(a, *byte)?;
    }
    spin(a)
}

/// Options of all runs here: nothing of the user's own, and no display.
const QUIET: [&str; 7] = ["run", "-display", "none", "-accel", "interp", "-m", "16"];

#[test]
fn the_network_is_told_as_json() {
    let folder = Folder::new("monitor");
    let (kernel, socket) = (folder.file("k", &Guest::new(&counts).image()), folder.path("m"));
    let monitor = format!("unix:{socket},server,nowait");
    let mut args = QUIET.to_vec();
    args.extend(["-kernel", &kernel, "-serial", "null", "-monitor", &monitor]);
    args.extend(["-netdev", "user,id=n0,hostfwd=tcp:127.0.0.1:0-:22", "-device", "e1000,netdev=n0,id=card"]);
    args.extend(["-netdev", "hubport,id=h0,hubid=3"]);
    let _mynah = Running::start(&mut command(&args));
    assert_eq!(Client::at(&socket).ask("set_link card off"), "");
    let out = command(&["network", &socket]).output().unwrap();
    let said: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{out:?}"));
    let none = serde_json::json!({ "frames": 0, "bytes": 0 });
    assert_eq!(
        said["cards"],
        serde_json::json!([{
            "name": "card", "model": "e1000", "mac": "52:54:00:12:34:56", "netdev": "n0", "up": false,
            "sent": none, "received": none, "dropped": 0,
        }])
    );
    let forward = &said["networks"]["n0"]["user"]["forwards"][0];
    assert!(forward["guest"] == "0.0.0.0:22" && forward["host"] != "127.0.0.1:0", "{said}");
    assert_eq!(said["networks"]["h0"]["is"], "type=hubport,hubid=3");
    // Who does not know the question is named.
    let other = folder.path("other");
    let server = std::os::unix::net::UnixListener::bind(&other).unwrap();
    std::thread::spawn(move || {
        let mut stream = server.accept().unwrap().0;
        stream.write_all(b"(qemu) unknown command\n(qemu) ").unwrap();
        let asked = BufReader::new(stream.try_clone().unwrap()).lines().nth(1).unwrap().unwrap();
        assert_eq!(asked, "info network -j");
        stream.write_all(b"usage\n(qemu) ").unwrap();
    });
    let out = command(&["network", &other]).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("info network -j"), "{out:?}");
}

#[test]
fn a_unix_socket_has_all_commands() {
    let folder = Folder::new("monitor");
    let guest = Guest { vcpus: 2, ..Guest::new(&counts) };
    let (kernel, socket) = (folder.file("k", &guest.image()), folder.path("m"));
    let monitor = format!("unix:{socket},server,nowait");
    let serial = format!("file:{}", folder.path("s"));
    let mut args = QUIET.to_vec();
    args.extend(["-kernel", &kernel, "-smp", "2", "-serial", &serial, "-monitor", &monitor]);
    args.extend(["-monitor", "tcp:127.0.0.1:0,server,nowait", "-name", "a guest"]);
    let mut mynah = Running::start(&mut command(&args));
    let mut m = Client::at(&socket);
    wait_for_text(&folder.path("s"), "up\n");

    assert_eq!(m.ask("info status"), "VM status: running\n");
    assert_eq!(m.ask("info version"), format!("{}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(m.ask("info name"), "a guest\n");
    let tree = m.ask("info qtree");
    assert!(tree.contains("bus: isa.0\n  dev: isa-i8259, id \"pic\"\n"), "{tree}");
    assert!(tree.contains("bus: pci.0\n  dev: i440FX, id \"i440fx\"\n"), "{tree}");
    assert!(tree.contains("  dev: isa-serial, id \"serial@3f8\"\n"), "{tree}");
    let pic = m.ask("info device pic");
    assert!(pic.contains("\"master\": {") && pic.contains("\"imr\": "), "{pic}");
    let map = m.ask("info mtree");
    for line in [
        "  0000000000000000-000000000009ffff (ram): pc.ram\n",
        "  00000000fec00000-00000000fec00fff (i/o): ioapic\n",
        "  0000000000000040-0000000000000043 (i/o): pit\n",
        "  00000000000003f8-00000000000003ff (i/o): serial\n",
    ] {
        assert!(map.contains(line), "{line}{map}");
    }
    let pics = m.ask("info pic");
    assert!(
        pics.contains("  pin 23 ") && pics.contains("pic0: irr=") && pics.contains("pic1: irr="),
        "{pics}"
    );
    assert!(m.ask("info irq").starts_with("IRQ statistics:\n"));
    assert_eq!(m.ask("info device x"), "there is no device 'x' ('info qtree' lists them)\n");
    assert!(m.ask("help").contains("system_powerdown"));
    assert!(m.ask("help info").contains("info cpus"));
    assert_eq!(m.ask("frobnicate"), "unknown command: 'frobnicate' (try 'help')\n");

    // Both vCPUs, whatever they do: one runs, one halts. Their threads are there.
    let cpus = m.ask("info cpus");
    let threads: Vec<String> = cpus
        .lines()
        .enumerate()
        .map(|(n, line)| {
            let mark = if n == 0 { '*' } else { ' ' };
            let id = line.strip_prefix(&format!("{mark} CPU #{n}: thread_id="));
            id.unwrap_or_else(|| panic!("{cpus}")).to_owned()
        })
        .collect();
    assert_eq!(threads.len(), 2);
    for id in &threads {
        let name = std::fs::read_to_string(format!("/proc/{}/task/{id}/comm", mynah.0.id())).unwrap();
        assert!(name.starts_with("mynah-vcpu"), "{name}");
    }
    // Registers move while it runs, and stand still while it does not.
    let counter = |text: &str| text.split("RBX=").nth(1).expect(text)[..16].to_owned();
    let first = counter(&m.ask("info registers"));
    wait_for("other registers", || (counter(&m.ask("info registers")) != first).then_some(()));
    assert_eq!(m.ask("stop"), "");
    assert_eq!(m.ask("info status"), "VM status: paused\n");
    let first = m.ask("info registers -a");
    assert!(first.starts_with("\nCPU#0\nRAX=") && first.contains("\n\nCPU#1\nRAX="), "{first}");
    assert!(first.contains("HLT=1") && first.contains("FCW=0040") && first.contains("XMM15="), "{first}");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(m.ask("info registers -a"), first, "it is stopped");
    assert_eq!(m.ask("cpu 1"), "");
    assert_eq!(
        format!("\n{}", m.ask("info registers").trim_start()),
        first[first.find("\nCPU#1").unwrap()..]
    );
    assert!(m.ask("info cpus").contains("\n* CPU #1"));
    assert_eq!(m.ask("cpu 2"), "invalid CPU index\n");
    m.ask("cpu 0");
    assert_eq!(m.ask("cont"), "");
    wait_for("other registers", || (counter(&m.ask("info registers")) != counter(&first)).then_some(()));

    // The TCP monitor has chosen its port; this one says which.
    let devices = m.ask("info chardev");
    assert!(devices.contains(&format!("serial0: filename=file:{}\n", folder.path("s"))), "{devices}");
    assert!(devices.contains(&format!("compat_monitor0: filename=unix:{socket},server=on\n")), "{devices}");
    let start = "compat_monitor1: filename=disconnected:tcp:127.0.0.1:";
    let port = devices.lines().find_map(|l| l.strip_prefix(start)).expect(&devices);
    let port: u16 = port.strip_suffix(",server=on").expect(port).parse().unwrap();
    for _ in 0..2 {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut second, greeting) = Client::new(stream, "(mynah) ");
        assert!(greeting.contains("monitor - type 'help' for more information"), "{greeting}");
        assert_eq!(second.ask("info status"), "VM status: running\n");
    }

    // A reset starts it again; 'quit' ends it.
    m.ask("system_reset");
    wait_for_text(&folder.path("s"), "up\nup\n");
    m.send("quit");
    assert_eq!(mynah.ended(PATIENCE).expect("an end").code(), Some(0));
    assert!(!std::path::Path::new(&socket).exists(), "the socket is gone");
}

/// Where the guest has its page directory; a table is behind it.
const PAGES: u32 = FREE;

/// Turns paging on, says so, and halts with known values in registers: the first 4 MiB and the next 4 are as they are,
/// at C0000000h is what the image begins with, and a page that only the kernel has.
fn pages(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let entries = [
        (0, 0xe7),
        (4, 0x40_0083),
        (4 * 0x300, (PAGES + 0x1000) | 7),
        (0x1000, BASE | 0x25),
        (0x1004, DATA | 0x163),
    ];
    for (at, entry) in entries {
        a.mov(dword_ptr(PAGES + at), entry)?;
    }
    a.mov(dword_ptr(DATA), 0x4443_4241)?;
    a.mov(dword_ptr(DATA + 4), -2)?;
    a.mov(eax, cr4)?;
    a.or(eax, 0x10)?;
    a.mov(cr4, eax)?;
    a.mov(eax, PAGES)?;
    a.mov(cr3, eax)?;
    a.mov(eax, cr0)?;
    a.or(eax, 0x8000_0000u32 as i32)?;
    a.mov(cr0, eax)?;
    for byte in b"up\n" {
        send(a, *byte)?;
    }
    a.mov(ebx, 0x1234)?;
    halt(a)
}

#[test]
fn memory_registers_and_ports_are_looked_at_as_under_qemu() {
    let folder = Folder::new("memory");
    let (kernel, socket) = (folder.file("k", &Guest::new(&pages).image()), folder.path("m"));
    let (monitor, serial) = (format!("unix:{socket},server,nowait"), format!("file:{}", folder.path("s")));
    let mut args = QUIET.to_vec();
    args.extend(["-kernel", &kernel, "-serial", &serial, "-monitor", &monitor]);
    let mut mynah = Running::start(&mut command(&args));
    let mut m = Client::at(&socket);
    wait_for_text(&folder.path("s"), "up\n");
    wait_for("the halt", || (m.ask("p $ebx") == "0x1234\n").then_some(()));

    let at = |offset: u32| format!("{:016x}", u64::from(DATA + offset));
    // Physical and virtual addresses; sizes, formats, what stays of them.
    assert_eq!(m.ask(&format!("xp /2xw {DATA:#x}")), format!("{}: 0x44434241 0xfffffffe\n", at(0)));
    assert_eq!(m.ask("x/2w 0xc0001000"), "00000000c0001000: 0x44434241 0xfffffffe\n");
    assert_eq!(m.ask("x/1dw 0xc0000000 + 0x1004"), "00000000c0001004: 4294967294\n");
    assert_eq!(m.ask("x 0xc0001004"), "00000000c0001004: 4294967294\n");
    assert_eq!(m.ask("x/4cb 0xc0001000"), "00000000c0001000: 'A' 'B' 'C' 'D'\n");
    assert_eq!(m.ask("x/1xg 0xc0001000"), "00000000c0001000: 0xfffffffe44434241\n");
    assert_eq!(m.ask("x/1xh 0xc0000fff + 1"), "00000000c0001000: 0x4241\n");
    // Over the end of what is mapped.
    assert_eq!(m.ask("x/8xw 0xc0001ff0").lines().last(), Some("00000000c0002000: Cannot access memory"));
    assert_eq!(m.ask("x/4xw 0xd0000000"), "00000000d0000000: Cannot access memory\n");
    assert!(m.ask("x/99999999xg 0").starts_with("Error: more than "));
    // Instructions: it halts, and jumps back to that.
    let code = m.ask("x/2i $eip - 1");
    assert!(code.lines().next().unwrap().ends_with("hlt") && code.contains(":  f4 "), "{code}");
    assert!(code.lines().nth(1).unwrap().contains("jmp"), "{code}");
    assert_eq!(m.ask("p/x $cr3"), format!("{PAGES:#x}\n"));
    assert_eq!(m.ask("p ($cr0 >= 0)"), "')' expected\n");
    assert_eq!(m.ask("p $pc - $eip - $cs.base"), "0x0\n");
    assert_eq!(m.ask("p $xyz"), "unknown register '$xyz'\n");

    // Tables, as ranges and as pages.
    assert_eq!(
        m.ask("info mem"),
        "0000000000000000-0000000000400000 0000000000400000 urw\n\
         0000000000400000-0000000000800000 0000000000400000 -rw\n\
         00000000c0000000-00000000c0001000 0000000000001000 ur-\n\
         00000000c0001000-00000000c0002000 0000000000001000 -rw\n"
    );
    let tlb = m.ask("info tlb");
    let lines: Vec<&str> = tlb.lines().collect();
    assert_eq!(lines.len(), 4, "{tlb}");
    assert!(lines[0].starts_with("0000000000000000: 0000000000000000 --PDA--UW"), "{tlb}");
    assert_eq!(lines[2], format!("00000000c0000000: {:016x} ----A--U-", BASE));
    assert_eq!(lines[3], format!("00000000c0001000: {:016x} -G-DA---W", DATA));

    // To files, and summed up.
    let (virt, phys) = (folder.path("a file"), folder.path("p"));
    assert_eq!(m.ask(&format!("memsave 0xc0001000 8 \"{virt}\"")), "");
    assert_eq!(m.ask(&format!("pmemsave {DATA:#x} 8 {phys}")), "");
    assert_eq!(std::fs::read(&virt).unwrap(), b"ABCD\xfe\xff\xff\xff");
    assert_eq!(std::fs::read(&phys).unwrap(), std::fs::read(&virt).unwrap());
    let refused = m.ask(&format!("memsave 0xc0002000 8 {phys}"));
    assert!(refused.contains("Invalid addr 0x00000000c0002000/size 8 specified"), "{refused}");
    let refused = m.ask(&format!("pmemsave -1 8 {phys}"));
    assert_eq!(refused, "Error: Invalid addr 0xffffffffffffffff/size 8 specified\n");
    // 41h; 41h rotated and 42h; ...
    let sum = b"ABCD".iter().fold(0u16, |sum, b| sum.rotate_right(1).wrapping_add((*b).into()));
    assert_eq!(m.ask(&format!("sum {DATA:#x} 4")), format!("{sum:05}\n"));

    // Ports: a cell of CMOS, read through its index port.
    assert_eq!(m.ask("o /b 0x70 0x0f"), "");
    assert_eq!(m.ask("o /b 0x71 0xa5"), "");
    assert_eq!(m.ask("i /b 0x71"), "portb[0x0071] = 0xa5\n");
    assert_eq!(m.ask("i /b 0x70 0x0f"), "portb[0x0071] = 0xa5\n");
    assert_eq!(m.ask("i /w 0xcf8 0").len(), "portl[0x0cf9] = 0x00000000\n".len());

    assert!(
        m.ask("info pci")
            .contains("  Bus  0, device   0, function 0:\n    Host bridge: PCI device 8086:1237\n")
    );
    assert_eq!(m.ask("info mice"), "* Mouse #2: QEMU PS/2 Mouse\n");
    assert_eq!(m.ask("info vnc"), "None\n");
    assert_eq!(m.ask("watchdog_action none"), "");
    // The mouse tells of it, though nobody has enabled it.
    assert_eq!(m.ask("mouse_button 1"), "");
    assert_eq!(m.ask("mouse_move 5 -3 1"), "");
    let mouse = m.ask("info device i8042");
    assert!(mouse.contains("\"buttons\": 1"), "{mouse}");
    m.send("quit");
    assert_eq!(mynah.ended(PATIENCE).expect("an end").code(), Some(0));
}

/// Halts until the PIT's second tick, then switches the machine off.
fn off_at_a_tick(a: &mut CodeAssembler) -> Result<(), IcedError> {
    handler(a, 0x20..0x21, &|a| {
        a.inc(ebx)?;
        a.mov(al, 0x20)?;
        a.out(0x20, al)?;
        a.iretd()
    })?;
    for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfe)] {
        a.mov(al, value)?;
        a.out(port, al)?;
    }
    a.mov(al, 0x34)?;
    a.out(0x43, al)?;
    a.mov(al, 0)?;
    a.out(0x40, al)?;
    a.out(0x40, al)?;
    let mut wait = a.create_label();
    a.xor(ebx, ebx)?;
    a.sti()?;
    a.set_label(&mut wait)?;
    a.hlt()?;
    a.cmp(ebx, 2)?;
    a.jb(wait)?;
    power_off(a)
}

#[test]
fn a_machine_that_starts_stopped_runs_with_its_clock_from_cont_on() {
    for engine in ["interp", "jit"] {
        let folder = Folder::new("stopped");
        let (kernel, socket) = (folder.file("k", &Guest::new(&off_at_a_tick).image()), folder.path("m"));
        let (monitor, log) =
            (format!("unix:{socket},server=on,wait=off"), format!("file:{}", folder.path("e9")));
        let args = [
            "run",
            "-S",
            "-accel",
            engine,
            "-display",
            "none",
            "-serial",
            "null",
            "-kernel",
            &kernel,
            "-monitor",
            &monitor,
            "-debugcon",
            &log,
        ];
        let mut mynah = Running::start(&mut command(&args));
        let mut m = Client::at(&socket);
        assert_eq!(m.ask("info status"), "VM status: paused (prelaunch)\n");
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(std::fs::read(folder.path("e9")).unwrap(), b"", "it has not run");
        m.ask("info registers");
        m.send("cont");
        assert_eq!(mynah.ended(PATIENCE).expect("ticks").code(), Some(0), "{engine}");
        assert_eq!(std::fs::read(folder.path("e9")).unwrap(), b"R");
    }
}

/// Switches the machine off when the power button is pressed (PM1a status, bit 8).
fn off_by_button(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut wait = a.create_label();
    a.mov(dx, 0x600)?;
    a.set_label(&mut wait)?;
    a.pause()?;
    a.in_(ax, dx)?;
    a.test(eax, 1 << 8)?;
    a.jz(wait)?;
    power_off(a)
}

#[test]
fn the_power_button_is_the_guests_to_act_on() {
    let folder = Folder::new("button");
    let (kernel, socket) = (folder.file("k", &Guest::new(&off_by_button).image()), folder.path("m"));
    let chardev = format!("socket,id=c,path={socket},server=on,wait=off");
    let mut args = QUIET.to_vec();
    args.extend([
        "-serial",
        "null",
        "-kernel",
        &kernel,
        "-chardev",
        &chardev,
        "-mon",
        "chardev=c,mode=readline",
    ]);
    let mut mynah = Running::start(&mut command(&args));
    let mut m = Client::at(&socket);
    assert_eq!(
        m.ask("info chardev"),
        format!("c: filename=unix:{socket},server=on\nserial0: filename=null\n")
    );
    assert!(mynah.ended(Duration::from_millis(100)).is_none(), "nobody has pressed it");
    m.send("system_powerdown");
    assert_eq!(mynah.ended(PATIENCE).expect("an end").code(), Some(0));
}

#[test]
fn standard_input_and_output_are_a_monitor_too() {
    let folder = Folder::new("stdio");
    let kernel = folder.file("k", &Guest::new(&spin).image());
    for (name, program, prompt) in [("run", None, "(mynah) "), ("qemu", Some("qemu"), "(qemu) ")] {
        let mut args = QUIET.to_vec();
        args[0] = program.unwrap_or("run");
        args.extend(["-kernel", &kernel, "-serial", "null", "-monitor", "stdio"]);
        let mut mynah = Running::start(
            command(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()),
        );
        let mut keys = mynah.0.stdin.take().unwrap();
        keys.write_all(b"info status\nstop\ninfo status\nq\n").unwrap();
        assert_eq!(mynah.ended(PATIENCE).expect("an end").code(), Some(0), "{name}");
        let mut said = String::new();
        mynah.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        let said = said.replace('\r', "");
        let expected = format!(
            "{prompt}info status\nVM status: running\n{prompt}stop\n{prompt}info status\nVM status: paused\n{prompt}q\n"
        );
        assert!(said.ends_with(&expected), "{said}");
    }
}

#[test]
fn a_file_that_cannot_be_waited_for_is_typed_in_all_the_same() {
    let folder = Folder::new("typed");
    let kernel = folder.file("k", &Guest::new(&spin).image());
    // More than is taken at once, and more answers than are held for who does not read.
    let typed = "info version\n".repeat(3000) + "q\n";
    let mut args = QUIET.to_vec();
    args.extend(["-kernel", &kernel, "-serial", "null", "-monitor", "stdio"]);
    let input = File::open(folder.file("typed", typed.as_bytes())).unwrap();
    let mut mynah = Running::start(command(&args).stdin(input).stdout(Stdio::piped()));
    let said = lines(mynah.0.stdout.take().unwrap());
    assert_eq!(mynah.ended(PATIENCE).expect("an end").code(), Some(0));
    let answers = said.iter().filter(|line| *line == env!("CARGO_PKG_VERSION")).count();
    assert_eq!(answers, 3000);
    // At its end there is no more input, and the machine goes on: it is ended elsewhere.
    let socket = folder.path("m");
    let monitor = format!("unix:{socket},server,nowait");
    args.extend(["-monitor", &monitor]);
    let mut mynah = Running::start(command(&args).stdin(Stdio::null()).stdout(Stdio::null()));
    let mut m = Client::at(&socket);
    assert_eq!(m.ask("info status"), "VM status: running\n");
    m.send("quit");
    assert_eq!(mynah.ended(PATIENCE).expect("an end").code(), Some(0));
}

#[test]
fn a_pseudo_terminal_is_a_monitor_too() {
    let folder = Folder::new("pty");
    let kernel = folder.file("k", &Guest::new(&spin).image());
    let mut args = QUIET.to_vec();
    args.extend(["-kernel", &kernel, "-serial", "null", "-monitor", "pty"]);
    let mut mynah = Running::start(command(&args).stdin(Stdio::null()).stderr(Stdio::piped()));
    let mut said = BufReader::new(mynah.0.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let path = line.trim_end().split_once("char device redirected to ").expect(&line).1.to_owned();
    // Not the terminal of whoever runs the tests.
    let terminal =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path).unwrap();
    let (mut m, greeting) = Client::new(terminal, "(mynah) ");
    assert!(greeting.contains("monitor - type 'help' for more information"), "{greeting}");
    assert_eq!(
        m.ask("info chardev"),
        format!("serial0: filename=null\ncompat_monitor0: filename=pty:{path}\n")
    );
    assert_eq!(m.ask("stop"), "");
    assert_eq!(m.ask("info status"), "VM status: paused\n");
    m.send("quit");
    assert_eq!(mynah.ended(PATIENCE).expect("an end").code(), Some(0));
}

#[cfg(target_os = "linux")]
#[test]
fn a_machine_with_four_consoles_has_as_many_threads_as_with_one() {
    let folder = Folder::new("threads");
    let (kernel, socket) = (folder.file("k", &Guest::new(&counts).image()), folder.path("m"));
    let monitor = format!("unix:{socket},server,nowait");
    let threads_with = |consoles: usize| {
        let paths: Vec<String> = (0..consoles).map(|n| folder.path(&format!("s{n}"))).collect();
        let serials: Vec<String> = paths.iter().map(|path| format!("unix:{path},server,nowait")).collect();
        let mut args = QUIET.to_vec();
        args.extend(["-S", "-kernel", &kernel, "-monitor", &monitor]);
        args.extend(serials.iter().flat_map(|serial| ["-serial", serial]));
        let mut mynah = Running::start(&mut command(&args));
        let mut m = Client::at(&socket);
        let mut clients: Vec<_> = paths.iter().map(|path| connect(path)).collect();
        wait_for("clients", || (!m.ask("info chardev").contains("disconnected")).then_some(()));
        m.ask("cont");
        let mut up = [0; 3];
        clients[0].read_exact(&mut up).unwrap();
        assert_eq!(&up, b"up\n");
        let names = wait_for("idle monitor", || {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", mynah.0.id())).unwrap();
            let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
            let mut names: Vec<String> = tasks.flatten().filter_map(name).collect();
            names.sort();
            // The thread of a monitor's command ends when that has been answered.
            (!names.iter().any(|name| name == "mynah-monitor\n")).then_some(names)
        });
        m.send("quit");
        assert_eq!(mynah.ended(PATIENCE).expect("an end").code(), Some(0));
        names
    };
    let (one, four) = (threads_with(1), threads_with(4));
    assert_eq!(one, four);
    assert_eq!(one.iter().filter(|name| *name == "mynah-events\n").count(), 1, "{one:?}");
}

#[test]
fn a_client_that_asks_and_never_reads_costs_nothing() {
    let folder = Folder::new("greedy");
    let (kernel, socket) = (folder.file("k", &Guest::new(&spin).image()), folder.path("m"));
    let monitor = format!("unix:{socket},server,nowait");
    let mut args = QUIET.to_vec();
    args.extend(["-kernel", &kernel, "-serial", "null", "-monitor", &monitor]);
    let mut mynah = Running::start(&mut command(&args));
    let mut greedy = connect(&socket);
    greedy.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3)
        && greedy.write_all(&b"info registers\nhelp\n".repeat(500)).is_ok()
    {}
    let status = std::fs::read_to_string(format!("/proc/{}/status", mynah.0.id())).unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.split_whitespace().next().unwrap().parse().unwrap();
    assert!(kib < 100 << 10, "{peak}");
    drop(greedy);
    // The next client finds the monitor as if nothing had been.
    let mut m = Client::at(&socket);
    assert_eq!(m.ask("info status"), "VM status: running\n");
    m.send("quit");
    assert_eq!(mynah.ended(PATIENCE).expect("an end").code(), Some(0));
}
