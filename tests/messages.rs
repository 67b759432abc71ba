//! What the program says of command lines that it cannot follow: one line that names the option, the value and what is
//! accepted, without colours where nobody sees them, and without saying anything twice.
#![cfg(unix)]
mod kit;

use kit::*;
use std::process::{Command, Stdio};

/// Runs `mynah run` with these arguments, which it has to refuse; what it says.
fn refused(args: &[&str]) -> String {
    let mut all = vec!["run"];
    all.extend(args);
    said(command(&all).env("MYNAH_LOG", "warn"))
}

fn said(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1), "{command:?}: {text}");
    assert!(out.stdout.is_empty(), "{command:?}");
    assert!(!text.contains('\x1b'), "{command:?} has colours: {text:?}");
    assert_eq!(text.lines().count(), 1, "{command:?}: {text}");
    let text = text.trim_end().strip_prefix("mynah: ").expect(&text).to_owned();
    for part in text.split(": ").filter(|p| p.len() > 12 && p.contains(' ')) {
        assert_eq!(text.matches(part).count(), 1, "{command:?} says it twice: {text}");
    }
    text
}

/// Options that take a number or a size: how it is given (`%`), what is said of the bounds, and values beyond them.
const NUMBERS: &[(&[&str], &str, &[&str])] = &[
    (&["-m", "%"], "from 1 MiB to 4 TiB", &["0", "0.5M", "5T", "99999999999E"]),
    (&["-m", "1G,slots=%,maxmem=2G"], "from 0 to 256", &["257"]),
    (&["-m", "1G,slots=1,maxmem=%"], "from 1 MiB to 4 TiB", &["0", "5T"]),
    (&["-smp", "%"], "from 1 to 255", &["0", "256"]),
    (&["-smp", "1,maxcpus=%"], "from 1 to 255", &["0", "256"]),
    (&["-smp", "sockets=%"], "from 1 to 255", &["0", "256"]),
    (&["-smp", "dies=%"], "from 1 to 255", &["0", "256"]),
    (&["-smp", "cores=%"], "from 1 to 255", &["0", "256"]),
    (&["-smp", "threads=%"], "from 1 to 255", &["0", "256"]),
    (&["-accel", "jit,tb-size=%"], "MiB from 1 to 134217728", &["134217729", "99999999999"]),
    (&["-accel", "jit,cache-size=%"], "MiB from 1 to 134217728", &["134217729", "99999999999"]),
    (&["-cpu", "max,family=%"], "from 0 to 4294967295", &["4294967296"]),
    (&["-cpu", "max,phys-bits=%"], "from 0 to 4294967295", &["4294967296"]),
    (&["-cpu", "max,tsc-frequency=%"], "from 1 to 4294967295000 Hz", &["0", "4T"]),
    (&["-seed", "%"], "from 0 to 18446744073709551615", &["18446744073709551616"]),
    (&["-boot", "splash-time=%"], "from 0 to 65535", &["65536"]),
    (&["-boot", "reboot-timeout=%"], "from 0 to 65535", &["65536", "-2"]),
    (&["-echr", "%"], "from 0 to 255", &["256"]),
    (&["-serial", "tcp:localhost:%"], "from 0 to 65535", &["65536", "99999", "http"]),
    (&["-monitor", "tcp::%,server,nowait"], "from 0 to 65535", &["65536"]),
    (&["-debugcon", "udp:localhost:1@:%"], "from 0 to 65535", &["65536"]),
    (&["-chardev", "socket,id=c,port=%"], "from 0 to 65535", &["65536"]),
    (&["-chardev", "socket,id=c,path=s,reconnect=%"], "from 0 to 4294967295", &["4294967296"]),
    (&["-device", "isa-serial,chardev=c,index=%"], "from 0 to 3", &["4"]),
    (&["-device", "isa-serial,chardev=c,irq=%"], "from 0 to 15", &["16"]),
    (&["-device", "isa-serial,chardev=c,iobase=%"], "from 0 to 65528", &["65529", "0xffff"]),
    (&["-device", "isa-debug-exit,iobase=%"], "from 0 to 65535", &["65536", "0x10000"]),
    (&["-device", "isa-debug-exit,iosize=%"], "from 1 to 256", &["0", "257"]),
    (&["-device", "isa-debugcon,chardev=c,iobase=%"], "from 0 to 65535", &["65536"]),
    (&["-device", "pvpanic,ioport=%"], "from 0 to 65535", &["65536"]),
    (&["-device", "pvpanic,events=%"], "from 0 to 255", &["256"]),
];

#[test]
fn a_number_that_cannot_be_taken_is_named_with_option_and_bounds() {
    let garbage = ["many", "", "-1", "1.5.2", "0x", "99999999999999999999999"];
    for (form, bounds, beyond) in NUMBERS {
        // 'reboot-timeout=-1' is QEMU's word for never.
        let fine = |v: &str| v == "-1" && form[1].contains("reboot");
        for value in garbage.iter().chain(*beyond).filter(|v| !fine(v)) {
            let words: Vec<String> = form.iter().map(|w| w.replace('%', value)).collect();
            let text = refused(&words.iter().map(String::as_str).collect::<Vec<_>>());
            let (option, kind) = (&words[0], form[1].split(['=', ',', ':']).next().unwrap());
            assert!(text.starts_with(option.as_str()), "{words:?}: {text}");
            assert!(text.contains(bounds), "{words:?}: {text}");
            assert!(text.contains(value), "{words:?}: {text}");
            if form[1].starts_with(|c: char| c.is_ascii_alphabetic()) && *option == "-device" {
                assert!(text.contains(kind), "{words:?}: {text}");
            }
        }
    }
}

#[test]
fn what_is_wrong_is_said_with_its_option_once() {
    let folder = Folder::new("messages");
    let none = folder.file("none", &[0x5a; 5000]);
    let kernel = folder.file("kernel", &Guest::new(&halt).image());
    let empty = folder.file("empty", b"");
    let long = format!("unix:{}/{},server,nowait", folder.path(""), "s".repeat(100));
    let in_no_folder = folder.path("no/such");
    let (k, log) = ("-kernel", folder.path("no/log"));
    let dir = folder.0.to_str().unwrap();
    let table: &[(&[&str], &str)] = &[
        // Files.
        (&[k, &in_no_folder], "-kernel %: there is no such file"),
        (&[k, dir], "-kernel %: that is a directory, not a file"),
        (&[k, &empty], "-kernel %: the file is empty"),
        (&[k, "/dev/zero"], "-kernel %: that is a device, not a file"),
        (&[k, &none], "-kernel: % is not a kernel that Mynah knows"),
        (&[&kernel], "the lone argument %: that is a kernel (Multiboot), which is given with -kernel %"),
        (&[&in_no_folder], "the lone argument %: there is no such file"),
        (&["-fda", &in_no_folder], "-fda %: there is no such file"),
        (
            &["-bios", &none],
            "-bios %: a firmware image has a multiple of 64 KiB, up to 16 MiB; this one has 5000 bytes",
        ),
        (&[k, &kernel, "-initrd", &in_no_folder], "-initrd %: there is no such file"),
        (&[k, &kernel, "-d", "int", "-D", &log], "-D %: No such file or directory (os error 2)"),
        (&[k, &kernel, "-pidfile", &log], "-pidfile %: No such file or directory (os error 2)"),
        (&[k, &kernel, "-symbols", &log, "-d", "int"], "-symbols %: No such file or directory (os error 2)"),
        // RAM.
        (&[k, &kernel, "-m", "1"], "-m 1 MiB: the built-in firmware needs at least 2 MiB of RAM"),
        (&[k, &kernel, "-m", "1048576b"], "-m 1 MiB: the built-in firmware needs at least 2 MiB of RAM"),
        // Consoles: a cause is said once, a socket's path has a limit.
        (
            &[k, &kernel, "-serial", "unix:/no/such/folder/s,server,nowait"],
            "-serial %: cannot listen on unix:/no/such/folder/s: No such file or directory (os error 2)",
        ),
        (
            &[k, &kernel, "-serial", "unix:/no/such/folder/s"],
            "-serial %: cannot connect to unix:/no/such/folder/s: No such file or directory (os error 2)",
        ),
        (
            &[k, &kernel, "-serial", "file:/no/such/folder/s"],
            "-serial %: cannot open '/no/such/folder/s' for writing: No such file or directory (os error 2)",
        ),
        (&[k, &kernel, "-monitor", &long], "the path of a socket has at most 107 bytes, and this one has "),
        (
            &[k, &kernel, "-chardev", "socket,id=c,path=/no/such/folder/s,server=on,wait=off"],
            "-chardev id=c: cannot listen on unix:/no/such/folder/s: No such file or directory (os error 2)",
        ),
        (&["-serial", "tcp:"], "-serial %: an address is missing: tcp:[HOST]:PORT"),
        (&["-serial", "tcp:localhost"], "-serial %: the port is missing: tcp:[HOST]:PORT"),
        (&["-serial", "stdoi"], "-serial %: unknown character device; did you mean 'stdio'?"),
        // What is not there is refused, not left out.
        (
            &[k, &kernel, "-machine", "isapc"],
            "-machine isapc (ISA only): not supported yet; there are pc, q35, microvm",
        ),
        (&[k, &kernel, "-chardev", "null,id=c,logfile=l"], "-chardev id=c: logfile= is not supported yet"),
        (
            &[],
            "there is nothing to boot: give a disk image, a CD image with -cdrom, a kernel with -kernel, or try 'mynah demo'",
        ),
    ];
    for (args, message) in table {
        let text = refused(args);
        let message = message.replace('%', args.last().unwrap_or(&""));
        let message = match args {
            [_, _, "-symbols", path, ..] => message.replace("-symbols int", &format!("-symbols {path}")),
            _ => message,
        };
        assert!(text.contains(&message), "{args:?}: {text}\n{message}");
    }
}

#[test]
fn a_command_line_that_is_too_long_for_a_kernel_names_append() {
    let folder = Folder::new("append");
    let kernel = folder.file("kernel", &Guest::new(&halt).image());
    let text = refused(&["-kernel", &kernel, "-append", &"x".repeat(100_000)]);
    assert!(text.starts_with("-append: ") && text.contains("bytes, and 1000"), "{text}");
}

#[test]
fn a_warning_in_a_file_has_no_colours() {
    let folder = Folder::new("warning");
    let kernel = folder.file("kernel", &Guest::new(&power_off).image());
    let args = ["run", "-display", "none", "-serial", "null", "-accel", "jit", "-kernel", &kernel];
    // Compiled code cannot be kept there.
    let out = command(&args).env("HOME", "/dev/null/home").stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(out.stderr).unwrap();
    assert!(text.contains("WARN") && text.contains("compiled code is not kept"), "{text}");
    assert!(!text.contains('\x1b'), "{text:?}");
    assert_eq!(out.status.code(), Some(0));
}

#[test]
fn other_commands_have_no_colours_either() {
    for args in [&["dmeo"][..], &["guests", "fetch", "cluod"], &["demo", "--frob"]] {
        let out = command(args).env("HOME", "/").stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(1), "{text}");
        assert!(!text.contains('\x1b'), "{text:?}");
    }
}
