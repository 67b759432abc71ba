//! Guests that other loaders and firmware start, from Debian's packages, on both engines: each says and ends as it does
//! under QEMU's translator.
//!
//! They take minutes: `.ci/nightly`, or `cargo test --release --test nightly -- --ignored`. As in `boot.rs`, guests are
//! fetched once, MYNAH_ACCEL has other engines and MYNAH_OPTIONS more options for each boot.
mod common;
#[path = "common/real_mode.rs"]
mod real_mode;

use common::{guest, key_lines, ramdisk, run, run_qemu};
use iced_x86::code_asm::*;
use real_mode::{CONTENT, EXIT_PORT, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The interpreter takes a while for Xen.
const LIMIT: Duration = Duration::from_secs(900);
const CONSOLE: &str = "console=ttyS0 panic=-1";

/// What a Linux guest does: a little work that has one right answer, and a power-off.
const WORK: &str = r#"
echo "KEY UNAME $(uname -sm)"
echo "KEY HYPERVISOR $(cat /sys/hypervisor/type 2>/dev/null || echo none)"
echo "KEY FIRMWARE $([ -d /sys/firmware/efi ] && echo UEFI || echo BIOS)"
echo "KEY SLEEPS $(cat /sys/power/state)"
i=0; s=1
while [ $i -lt 2000 ]; do i=$((i + 1)); s=$(( (s * 31 + i) % 65521 )); done
echo "KEY SUM $s"
echo "KEY DONE"
poweroff -f
"#;

/// Sleeps to RAM, is woken by the clock, and looks whether all is as before.
const SLEEP: &str = r#"
echo "KEY SLEEPS $(cat /sys/power/state) BY $(cat /sys/power/mem_sleep)"
head -c 8000000 /dev/urandom > /tmp/x
before=$(md5sum < /tmp/x)
for n in 1 2; do
    echo 0 > /sys/class/rtc/rtc0/wakealarm
    # Late enough for the slowest: an alarm that rings before the kernel is asleep wakes nobody.
    echo +15 > /sys/class/rtc/rtc0/wakealarm
    echo mem > /sys/power/state
    echo "KEY AWAKE $n $?"
done
[ "$before" = "$(md5sum < /tmp/x)" ] && echo "KEY MEMORY IS AS IT WAS"
echo "KEY TROUBLE $(dmesg | grep -c -i -E 'BUG:|Oops|Call Trace|lockup|ACPI.*(Error|Exception)')"
poweroff -f
"#;

/// Runs a guest in QEMU and on each engine; all must show `keys`, in the same lines, and end in the same way.
fn check(args: &[&str], keys: &[&str]) {
    let args = [&["-nographic", "-no-reboot"], args].concat();
    let theirs = run_qemu(&args, LIMIT, |_| None);
    let mut expected = key_lines(&theirs.console, keys);
    // QEMU, on a busy host, has a kernel complain of delays now and then; here it may not.
    for line in expected.iter_mut().filter(|line| line.starts_with("KEY TROUBLE ")) {
        *line = "KEY TROUBLE 0";
    }
    for key in keys {
        assert!(expected.iter().any(|l| l.starts_with(key)), "QEMU shows no '{key}':\n{}", theirs.console);
    }
    let engines = std::env::var("MYNAH_ACCEL").unwrap_or("jit interp".into());
    for accel in engines.split_whitespace() {
        let ours = run(&[&["-accel", accel], &args[..]].concat(), LIMIT, |_| None);
        assert_eq!(key_lines(&ours.console, keys), expected, "{accel}:\n{}", ours.console);
        assert_eq!(ours.code, theirs.code, "{accel}:\n{}", ours.console);
    }
}

/// The files of guests, unless one is not in a cache that is to do.
fn guests<const N: usize>(names: [&str; N]) -> Option<[String; N]> {
    let files = names.map(|name| guest(name).map(|f| f.to_str().unwrap().to_owned()));
    files.iter().all(Option::is_some).then(|| files.map(Option::unwrap))
}

fn temporary(name: &str, bytes: &[u8]) -> PathBuf {
    let path = std::env::temp_dir().join(format!("mynah-nightly-{}-{name}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    path
}

fn remove(files: &[&Path]) {
    files.iter().for_each(|f| std::fs::remove_file(f).unwrap());
}

#[test]
#[ignore = "boots Debian's Xen and kernel"]
fn xen_boots_a_kernel_as_its_first_domain() {
    let Some([xen, kernel]) = guests(["xen", "generic"]) else { return };
    let Some(disk) = ramdisk("xen", "busybox", WORK) else { return };
    let modules = format!("{kernel} console=hvc0,{}", disk.display());
    let keys = [
        "(XEN) Xen version",
        "(XEN) Using scheduler",
        "(XEN)  Dom0 kernel: 64-bit",
        "(XEN) Dom0 has maximum",
        "KEY ",
        "reboot: Power down",
        "(XEN) Entering ACPI S5 state",
    ];
    check(
        &["-m", "512", "-kernel", &xen, "-initrd", &modules, "-append", "console=com1 com1=115200,8n1"],
        &keys,
    );
    remove(&[&disk]);
}

#[test]
#[ignore = "boots Debian's iPXE"]
fn ipxe_is_entered_at_its_setup_code_and_runs_its_script() {
    let Some([ipxe]) = guests(["ipxe"]) else { return };
    let script = "#!ipxe\necho KEY SCRIPT\ncpuid --ext 29 && echo KEY LONG MODE ||\nset x abc\necho KEY ${x}\necho no more\nreboot\n";
    let script = temporary("ipxe", script.as_bytes());
    check(&["-m", "128", "-kernel", &ipxe, "-initrd", script.to_str().unwrap()], &["Features:", "KEY "]);
    remove(&[&script]);
}

/// A floppy of 1.44 MB whose boot sector says so, asks for its geometry, and reads, writes and reads again by INT 13h.
fn floppy() -> Vec<u8> {
    const OTHER: u16 = 0x7e00;
    const LAST: usize = 2879;
    let boot = |a: &mut CodeAssembler| -> Result {
        let (mut start, mut print, mut bad) = (a.create_label(), a.create_label(), a.create_label());
        let mut done = a.create_label();
        a.jmp(start)?;
        // Prints what is at SI, up to a zero.
        a.set_label(&mut print)?;
        a.lodsb()?;
        a.test(al, al)?;
        a.jz(done)?;
        a.mov(ah, 0x0e)?;
        a.mov(bx, 7)?;
        a.int(0x10)?;
        a.jmp(print)?;
        a.set_label(&mut done)?;
        a.ret()?;
        a.set_label(&mut start)?;
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.mov(es, ax)?;
        a.mov(ss, ax)?;
        a.mov(sp, 0x7c00)?;
        a.sti()?;
        // 80 cylinders, 2 heads, 18 sectors.
        a.mov(ax, 0x0800)?;
        a.xor(dx, dx)?;
        a.xor(di, di)?;
        a.int(0x13)?;
        a.jc(bad)?;
        a.cmp(cx, 79 << 8 | 18)?;
        a.jne(bad)?;
        a.cmp(dh, 1)?;
        a.jne(bad)?;
        a.xor(ax, ax)?;
        a.mov(es, ax)?;
        // The second sector and the last.
        for (cylinder_sector, head) in [(2, 0), (79 << 8 | 18, 1)] {
            for function in [0x0201, 0x0301, 0x0201] {
                a.mov(ax, function)?;
                a.mov(bx, i32::from(OTHER))?;
                a.mov(cx, cylinder_sector)?;
                a.mov(dx, head << 8)?;
                a.int(0x13)?;
                a.jc(bad)?;
            }
            a.mov(si, i32::from(OTHER))?;
            a.call(print)?;
        }
        // SeaBIOS sends what it has on a tick of the timer.
        for _ in 0..3 {
            a.hlt()?;
        }
        a.mov(al, CONTENT)?;
        a.out(EXIT_PORT, al)?;
        a.set_label(&mut bad)?;
        a.mov(al, 1)?;
        a.out(EXIT_PORT, al)?;
        a.hlt()
    };
    let mut a = CodeAssembler::new(16).unwrap();
    boot(&mut a).unwrap();
    let code = a.assemble(0x7c00).unwrap();
    let mut image = vec![0; 512 * (LAST + 1)];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &code);
    put(510, &[0x55, 0xaa]);
    put(512, b"KEY SECOND SECTOR\r\n");
    put(512 * LAST, b"KEY LAST SECTOR\r\n");
    image
}

#[test]
#[ignore = "boots Debian's memdisk"]
fn memdisk_boots_a_floppy() {
    let Some([memdisk]) = guests(["memdisk"]) else { return };
    let image = temporary("floppy", &floppy());
    let exit = "isa-debug-exit,iobase=0xf4,iosize=1";
    let args = ["-m", "64", "-device", exit, "-kernel", &memdisk, "-initrd", image.to_str().unwrap()];
    check(&args, &["KEY SECOND SECTOR", "KEY LAST SECTOR"]);
    remove(&[&image]);
}

/// A kernel under a firmware image.
fn under(firmware: Option<&str>, tag: &str, script: &str, keys: &[&str]) {
    let Some([kernel]) = guests(["cloud"]) else { return };
    let Some(disk) = ramdisk(tag, "busybox", script) else { return };
    let mut args =
        vec!["-m", "512", "-kernel", &kernel, "-initrd", disk.to_str().unwrap(), "-append", CONSOLE];
    let bios;
    if let Some(name) = firmware {
        let Some([file]) = guests([name]) else { return };
        bios = file;
        args.extend(["-bios", &bios]);
    }
    check(&args, keys);
    remove(&[&disk]);
}

#[test]
#[ignore = "boots Debian's kernel"]
fn qboot_starts_a_kernel() {
    under(Some("qboot"), "qboot", WORK, &["KEY ", "reboot: Power down"]);
}

#[test]
#[ignore = "boots Debian's kernel"]
fn ovmf_starts_a_kernel_that_powers_off() {
    under(Some("ovmf"), "ovmf", WORK, &["EFI stub: Loaded initrd", "KEY ", "reboot: Power down"]);
}

#[test]
#[ignore = "boots Debian's kernel"]
fn a_kernel_sleeps_and_wakes_by_the_clock() {
    under(None, "sleep", SLEEP, &["KEY ", "reboot: Power down"]);
}

#[test]
#[ignore = "boots Debian's kernel"]
fn a_kernel_sleeps_and_wakes_under_seabios() {
    under(Some("seabios"), "sleep-seabios", SLEEP, &["KEY ", "reboot: Power down"]);
}
