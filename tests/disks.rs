//! Disks of whole machines: what the host's errors are to a guest (`werror=`, `rerror=`), and what is on the disk of a
//! machine that is killed.
//!
//! The ignored test kills machines whose guest writes: MYNAH_MACHINE_KILLS of them (10; 300 for a night), MYNAH_SEED
//! for others.
#![cfg(target_os = "linux")]
mod kit;

use iced_x86::code_asm::*;
use kit::*;
use mynah_block::{Image, OpenOptions};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the guest is to do: operation, sector, number.
const TABLE: u32 = DATA + 0x100;
const STEP: i32 = 12;
const WRITE: u32 = 1;
const READ: u32 = 2;
const FLUSH: u32 = 3;
/// Bytes of a write or a read.
const SLOT: usize = 4096;
const BUFFER: u32 = FREE;

/// Labels of [`routines`].
struct Routines {
    write: CodeLabel,
    read: CodeLabel,
    flush: CodeLabel,
    hex: CodeLabel,
}

impl Routines {
    fn new(a: &mut CodeAssembler) -> Self {
        let mut label = || a.create_label();
        Self { write: label(), read: label(), flush: label(), hex: label() }
    }
}

/// For the first IDE disk, by PIO: EBX is the sector, EBP the number that fills what is written; AL is the status then.
/// And `hex`, which sends EAX and a line's end.
fn routines(a: &mut CodeAssembler, r: &mut Routines) -> Result<(), IcedError> {
    let [mut ready, mut begin, mut out, mut back, mut into] = [(); 5].map(|()| a.create_label());
    let [mut digits, mut letter, mut send, mut full] = [(); 4].map(|()| a.create_label());
    a.set_label(&mut r.write)?;
    a.mov(edi, BUFFER)?;
    a.mov(ecx, SLOT as i32 / 4)?;
    a.mov(eax, ebp)?;
    a.rep().stosd()?;
    a.mov(ah, 0x30)?;
    a.call(begin)?;
    a.mov(esi, BUFFER)?;
    a.set_label(&mut out)?;
    a.call(ready)?;
    a.test(al, 0x08)?;
    a.jz(back)?;
    a.mov(dx, 0x1f0)?;
    a.mov(ecx, 256)?;
    a.rep().outsw()?;
    a.jmp(out)?;
    a.set_label(&mut r.read)?;
    a.mov(ah, 0x20)?;
    a.call(begin)?;
    a.mov(edi, BUFFER)?;
    a.set_label(&mut into)?;
    a.call(ready)?;
    a.test(al, 0x08)?;
    a.jz(back)?;
    a.mov(dx, 0x1f0)?;
    a.mov(ecx, 256)?;
    a.rep().insw()?;
    a.jmp(into)?;
    a.set_label(&mut back)?;
    a.ret()?;
    a.set_label(&mut r.flush)?;
    a.mov(dx, 0x1f7)?;
    a.mov(al, 0xe7)?;
    a.out(dx, al)?;
    // Waits until it is not busy; AL is the alternate status.
    a.set_label(&mut ready)?;
    a.mov(dx, 0x3f6)?;
    a.in_(al, dx)?;
    a.test(al, 0x80)?;
    a.jnz(ready)?;
    a.ret()?;
    // The command in AH, for a slot at sector EBX.
    a.set_label(&mut begin)?;
    a.mov(ecx, ebx)?;
    a.mov(dx, 0x1f2)?;
    a.mov(al, SLOT as i32 / 512)?;
    a.out(dx, al)?;
    for port in [0x1f3, 0x1f4, 0x1f5] {
        a.mov(dx, port)?;
        a.mov(al, cl)?;
        a.out(dx, al)?;
        a.shr(ecx, 8)?;
    }
    a.mov(dx, 0x1f6)?;
    a.mov(al, cl)?;
    a.or(al, 0xe0)?;
    a.out(dx, al)?;
    a.mov(dx, 0x1f7)?;
    a.mov(al, ah)?;
    a.out(dx, al)?;
    a.jmp(ready)?;
    a.set_label(&mut r.hex)?;
    a.mov(edi, eax)?;
    a.mov(ecx, 8)?;
    a.set_label(&mut digits)?;
    a.rol(edi, 4)?;
    a.mov(eax, edi)?;
    a.and(eax, 15)?;
    a.add(al, i32::from(b'0'))?;
    a.cmp(al, i32::from(b'9'))?;
    a.jbe(letter)?;
    a.add(al, 0x27)?;
    a.set_label(&mut letter)?;
    a.call(send)?;
    a.dec(ecx)?;
    a.jnz(digits)?;
    a.mov(al, i32::from(b'\n'))?;
    a.set_label(&mut send)?;
    a.mov(ah, al)?;
    a.mov(dx, 0x3fd)?;
    a.set_label(&mut full)?;
    a.in_(al, dx)?;
    a.test(al, 0x20)?;
    a.jz(full)?;
    a.mov(dx, 0x3f8)?;
    a.mov(al, ah)?;
    a.out(dx, al)?;
    a.ret()
}

/// Does what the table says, and tells after each step the first number in the buffer, and status and error in one.
fn orders(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut r = Routines::new(a);
    let [mut next, mut end, mut write, mut flush, mut told] = [(); 5].map(|()| a.create_label());
    a.mov(esp, FREE + 0x8000)?;
    a.push(TABLE)?;
    a.set_label(&mut next)?;
    a.mov(edi, dword_ptr(esp))?;
    a.add(dword_ptr(esp), STEP)?;
    a.mov(eax, dword_ptr(edi))?;
    a.mov(ebx, dword_ptr(edi + 4))?;
    a.mov(ebp, dword_ptr(edi + 8))?;
    a.test(eax, eax)?;
    a.jz(end)?;
    a.cmp(eax, WRITE as i32)?;
    a.je(write)?;
    a.cmp(eax, FLUSH as i32)?;
    a.je(flush)?;
    a.mov(dword_ptr(BUFFER), 0xeeee_eeee_u32 as i32)?;
    a.call(r.read)?;
    a.jmp(told)?;
    a.set_label(&mut write)?;
    a.call(r.write)?;
    a.jmp(told)?;
    a.set_label(&mut flush)?;
    a.call(r.flush)?;
    a.set_label(&mut told)?;
    a.mov(bh, al)?;
    a.mov(dx, 0x1f1)?;
    a.in_(al, dx)?;
    a.mov(bl, al)?;
    a.and(ebx, 0xffff)?;
    a.mov(eax, dword_ptr(BUFFER))?;
    a.call(r.hex)?;
    a.mov(eax, ebx)?;
    a.call(r.hex)?;
    a.jmp(next)?;
    a.set_label(&mut end)?;
    power_off(a)?;
    routines(a, &mut r)
}

/// Slots that the writer writes to, every 8 KiB.
const SLOTS: usize = 1 << 13;
const STRIDE: usize = 8192;
/// The number that the writer begins with.
const FROM: u32 = TABLE;

/// Where the writer puts a number.
fn slot(n: u32) -> usize {
    (n.wrapping_mul(0x9e37_79b1) >> 19) as usize
}

/// Writes number after number, and tells each eighth when it has been flushed; or `ffffffff` of an error.
fn writer(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut r = Routines::new(a);
    let [mut again, mut failed] = [(); 2].map(|()| a.create_label());
    a.mov(esp, FREE + 0x8000)?;
    a.mov(ebp, dword_ptr(FROM))?;
    a.set_label(&mut again)?;
    a.inc(ebp)?;
    a.imul_3(ebx, ebp, 0x9e37_79b1_u32 as i32)?;
    a.shr(ebx, 19)?;
    a.shl(ebx, 4)?;
    a.call(r.write)?;
    a.test(al, 0x21)?;
    a.jnz(failed)?;
    a.test(ebp, 7)?;
    a.jnz(again)?;
    a.call(r.flush)?;
    a.test(al, 0x21)?;
    a.jnz(failed)?;
    a.mov(eax, ebp)?;
    a.call(r.hex)?;
    a.jmp(again)?;
    a.set_label(&mut failed)?;
    a.mov(eax, -1)?;
    a.call(r.hex)?;
    halt(a)?;
    routines(a, &mut r)
}

/// Most bytes of a file that a process may write, of one that is running if there is a number.
fn limit_files(pid: libc::pid_t, most: u64) {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limit is read only; nothing is written to a null pointer.
    let done = unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// A machine with one disk.
struct Machine {
    folder: Folder,
    kernel: String,
    disk: String,
}

const MIB: u32 = 1 << 20;
/// Bytes of the disk.
const DISK: u64 = 64 << 20;
/// No file is longer, unless a test says so.
const LIMIT: u64 = 32 << 20;

impl Machine {
    /// With these steps of [`orders`].
    fn new(steps: &[(u32, u32, u32)]) -> Self {
        let folder = Folder::new("disks");
        let table = steps.iter().flat_map(|&(op, at, n)| [op, at / 512, n]).flat_map(u32::to_le_bytes);
        let guest = Guest { data: vec![(TABLE, table.collect())], ..Guest::new(&orders) };
        let (kernel, disk) = (folder.file("kernel", &guest.image()), folder.path("disk"));
        File::create(&disk).unwrap().set_len(DISK).unwrap();
        Self { folder, kernel, disk }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path(name)
    }

    /// Run number `n`, whose files may grow to `limit`.
    fn start(&self, n: usize, drive: &str, more: &[&str], limit: u64) -> Running {
        self.start_with(n, drive, more, move || limit_files(0, limit))
    }

    /// Run number `n`, after `before` in its process.
    fn start_with(
        &self,
        n: usize,
        drive: &str,
        more: &[&str],
        before: impl Fn() + Send + Sync + 'static,
    ) -> Running {
        let serial = format!("file:{}", self.path(&format!("com{n}")));
        let monitor = format!("unix:{},server,nowait", self.path(&format!("monitor{n}")));
        let drive = format!("file={},if=ide,format=raw,{drive}", self.disk);
        let mut args = vec!["run", "-display", "none", "-m", "16", "-kernel", &self.kernel, "-drive", &drive];
        args.extend(["-serial", &serial, "-monitor", &monitor]);
        args.extend(more);
        let mut command = command(&args);
        command.stdout(Stdio::null()).stderr(File::create(self.path(&format!("said{n}"))).unwrap());
        // SAFETY: a system call in the child, and nothing else unless that fails.
        unsafe {
            command.pre_exec(move || {
                before();
                Ok(())
            });
        }
        Running::start(&mut command)
    }

    fn monitor(&self, n: usize) -> Client<std::os::unix::net::UnixStream> {
        Client::at(&self.path(&format!("monitor{n}")))
    }

    /// What the guest has told: the number in its buffer, and status and error.
    fn told(&self, n: usize) -> Vec<(u32, u32)> {
        let text = fs::read_to_string(self.path(&format!("com{n}"))).unwrap_or_default();
        let numbers: Vec<u32> =
            text.lines().filter(|l| l.len() == 8).map(|l| u32::from_str_radix(l, 16).unwrap()).collect();
        numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
    }

    /// The number at a place of the disk.
    fn number(&self, at: u32) -> u32 {
        let bytes = fs::read(&self.disk).unwrap();
        u32::from_le_bytes(bytes[at as usize..at as usize + 4].try_into().unwrap())
    }
}

/// Status of the disk after a command that went well; and after one that did not, with the error behind it.
const GOOD: u32 = 0x5000;
const FAULT: u32 = 0x0100;

fn good(told: &[(u32, u32)]) -> Vec<bool> {
    told.iter().map(|(_, status)| status & 0xff00 == GOOD).collect()
}

fn waits_for_room(monitor: &mut Client<std::os::unix::net::UnixStream>) {
    wait_for("paused machine", || {
        (monitor.ask("info status") == "VM status: paused (io-error)\n").then_some(())
    });
}

/// One that there is room for, one that there is none for, one that there is, and what is there then.
const FULL: [(u32, u32, u32); 6] = [
    (WRITE, MIB, 0x1111_1111),
    (WRITE, 40 * MIB, 0x2222_2222),
    (WRITE, 2 * MIB, 0x3333_3333),
    (FLUSH, 0, 0),
    (READ, 40 * MIB, 0),
    (0, 0, 0),
];

/// Where requests are carried out.
const AIO: [&str; 2] = ["aio=threads", "aio=io_uring"];

#[test]
fn a_write_that_the_host_has_no_room_for_is_an_error_to_the_guest_or_none() {
    for (aio, word, is_good) in AIO.iter().flat_map(|aio| [(aio, "report", false), (aio, "ignore", true)]) {
        let machine = Machine::new(&FULL);
        let mut running = machine.start(0, &format!("werror={word},{aio}"), &[], LIMIT);
        assert!(running.ended(PATIENCE).is_some_and(|s| s.success()), "{word}");
        let told = machine.told(0);
        assert_eq!(good(&told), [true, is_good, true, true, true], "{word}, {aio}: {told:x?}");
        assert!(is_good || told[1].1 & (FAULT | 0x80) == FAULT, "{told:x?}");
        assert_eq!(told[4].0, 0, "nothing was written");
        assert_eq!([MIB, 40 * MIB, 2 * MIB].map(|at| machine.number(at)), [0x1111_1111, 0, 0x3333_3333]);
    }
}

#[test]
fn a_write_that_the_host_has_no_room_for_stops_the_machine_until_there_is() {
    for (aio, word) in AIO.iter().flat_map(|aio| [(aio, "werror=stop,"), (aio, "werror=enospc,"), (aio, "")])
    {
        let machine = Machine::new(&FULL);
        let mut running = machine.start(0, &format!("{word}{aio}"), &[], LIMIT);
        let mut monitor = machine.monitor(0);
        waits_for_room(&mut monitor);
        // What it has said last is still on the line.
        assert!(machine.told(0).len() <= 1, "{word}");
        // It is said when the machine has stopped.
        wait_for_text(&machine.path("said0"), "'cont' tries it again");
        // There is no more room than there was.
        monitor.ask("cont");
        waits_for_room(&mut monitor);
        assert!(machine.told(0).len() <= 1, "{word}");
        limit_files(running.0.id() as libc::pid_t, libc::RLIM_INFINITY);
        monitor.send("cont");
        assert!(running.ended(PATIENCE).is_some_and(|s| s.success()), "{word}");
        let told = machine.told(0);
        assert_eq!(good(&told), [true; 5], "{word}, {aio}: {told:x?}");
        assert_eq!(told[4].0, 0x2222_2222);
        assert_eq!(machine.number(40 * MIB), 0x2222_2222);
    }
}

#[test]
fn a_request_that_is_held_goes_with_the_machine_that_is_saved() {
    let machine = Machine::new(&FULL);
    let mut running = machine.start(0, "werror=stop", &[], LIMIT);
    let mut monitor = machine.monitor(0);
    waits_for_room(&mut monitor);
    let saved = format!("file:{}", machine.path("saved"));
    assert_eq!(monitor.ask(&format!("migrate {saved}")), "");
    monitor.send("quit");
    assert!(running.ended(PATIENCE).is_some_and(|s| s.success()));
    assert_eq!(machine.number(40 * MIB), 0, "it is still held");
    // Where there is no room either it is held again; the file that was saved stays good for another.
    for (n, limit) in [(1, LIMIT), (2, libc::RLIM_INFINITY)] {
        let mut running = machine.start(n, "werror=stop", &["-incoming", &saved], limit);
        let mut monitor = machine.monitor(n);
        if limit == LIMIT {
            monitor.ask("cont");
            waits_for_room(&mut monitor);
            monitor.send("quit");
        } else {
            monitor.send("cont");
        }
        assert!(running.ended(PATIENCE).is_some_and(|s| s.success()));
    }
    assert_eq!(machine.number(40 * MIB), 0x2222_2222);
    let told = [machine.told(0), machine.told(2)].concat();
    assert_eq!(good(&told), [true; 5], "{told:x?}");
}

#[test]
fn what_cannot_be_read_is_an_error_to_the_guest_or_stops_the_machine() {
    for (aio, word) in AIO.iter().flat_map(|aio| ["report", "ignore", "stop"].map(|word| (aio, word))) {
        let machine = Machine::new(&[(READ, MIB, 0), (READ, 40 * MIB, 0), (READ, MIB, 0), (0, 0, 0)]);
        let mut bytes = vec![0x11; DISK as usize];
        bytes[40 << 20..][..SLOT].fill(0x22);
        fs::write(&machine.disk, &bytes).unwrap();
        let drive = format!("rerror={word},{aio}");
        let mut running = machine.start(0, &drive, &["-S"], libc::RLIM_INFINITY);
        let mut monitor = machine.monitor(0);
        monitor.ask("info status");
        // Somebody cuts the file.
        File::options().write(true).open(&machine.disk).unwrap().set_len(LIMIT).unwrap();
        if word == "stop" {
            monitor.ask("cont");
            waits_for_room(&mut monitor);
            fs::write(&machine.disk, &bytes).unwrap();
        }
        monitor.send("cont");
        assert!(running.ended(PATIENCE).is_some_and(|s| s.success()), "{word}");
        let told = machine.told(0);
        let (is_good, number) = match word {
            "report" => (false, 0xeeee_eeee),
            "ignore" => (true, 0),
            _ => (true, 0x2222_2222),
        };
        assert_eq!(good(&told), [true, is_good, true], "{word}, {aio}: {told:x?}");
        assert_eq!([0, 1, 2].map(|n| told[n].0), [0x1111_1111, number, 0x1111_1111], "{word}, {aio}");
    }
}

/// Has the kernel refuse this process rings (io_uring_setup), as sandboxes do.
fn forbid_rings() {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IF: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const END: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        step(LOAD, 0, 0, 0),
        step(IF, 0, 1, libc::SYS_io_uring_setup as u32),
        step(END, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(END, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its steps are there while the kernel copies them.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program), 0);
    }
}

#[test]
fn where_the_host_forbids_rings_threads_do_the_work_and_the_user_is_told() {
    let steps = [(WRITE, MIB, 0x1234_5678), (FLUSH, 0, 0), (READ, MIB, 0), (0, 0, 0)];
    for drive in ["aio=io_uring", "aio=native,cache=none"] {
        let machine = Machine::new(&steps);
        let mut running = machine.start_with(0, drive, &[], forbid_rings);
        assert!(running.ended(PATIENCE).is_some_and(|s| s.success()), "{drive}");
        let said = fs::read_to_string(machine.path("said0")).unwrap();
        let aio = drive.split(',').next().unwrap();
        assert!(said.contains(aio) && said.contains("it uses threads instead"), "{said}");
        assert_eq!(good(&machine.told(0)), [true; 3], "{drive}");
        assert_eq!(machine.number(MIB), 0x1234_5678, "{drive}");
        // And where it does not, nothing is said.
        let mut running = machine.start(1, drive, &[], libc::RLIM_INFINITY);
        assert!(running.ended(PATIENCE).is_some_and(|s| s.success()), "{drive}");
        if mynah_block::Aio::IoUring.check().is_ok() {
            assert_eq!(fs::read_to_string(machine.path("said1")).unwrap(), "", "{drive}");
        }
    }
}

/// A boot sector that has INT 13h read the sector that the packet at 7D00h names, and sends AH and the carry on COM1.
fn boot_sector(lba: u64) -> Vec<u8> {
    let assemble = || -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(16)?;
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.mov(si, 0x7d00)?;
        a.mov(ax, 0x4200)?;
        a.mov(dl, 0x80)?;
        a.int(0x13)?;
        a.mov(bl, ah)?;
        a.sbb(bh, bh)?;
        a.neg(bh)?;
        send(&mut a, 0)?;
        for byte in [bl, bh] {
            let mut wait = a.create_label();
            a.mov(dx, 0x3fd)?;
            a.set_label(&mut wait)?;
            a.in_(al, dx)?;
            a.test(al, 0x20)?;
            a.jz(wait)?;
            a.mov(dx, 0x3f8)?;
            a.mov(al, byte)?;
            a.out(dx, al)?;
        }
        power_off(&mut a)?;
        a.assemble(0x7c00)
    };
    let mut sector = assemble().expect("it can be assembled");
    sector.resize(512, 0);
    // Sixteen bytes, one sector, to 0:9000h.
    sector[0x100..0x108].copy_from_slice(&[16, 0, 1, 0, 0, 0x90, 0, 0]);
    sector[0x108..0x110].copy_from_slice(&lba.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[test]
fn what_firmware_cannot_read_is_a_status_of_int_13h() {
    for (word, lba, status) in
        [("report", 80_000, [0, 0x20, 1]), ("ignore", 80_000, [0, 0, 0]), ("report", 60_000, [0, 0, 0])]
    {
        let folder = Folder::new("int13");
        let mut bytes = vec![0; DISK as usize];
        bytes[..512].copy_from_slice(&boot_sector(lba));
        let (disk, com, at) = (folder.file("disk", &bytes), folder.path("com"), folder.path("monitor"));
        let drive = format!("file={disk},if=ide,format=raw,rerror={word}");
        let (serial, monitor) = (format!("file:{com}"), format!("unix:{at},server,nowait"));
        let args = ["run", "-S", "-display", "none", "-m", "16", "-drive", &drive, "-serial", &serial];
        let mut running = Running::start(
            command(&args).args(["-monitor", &monitor]).stdout(Stdio::null()).stderr(Stdio::null()),
        );
        let mut monitor = Client::at(&at);
        File::options().write(true).open(&disk).unwrap().set_len(LIMIT).unwrap();
        monitor.send("cont");
        assert!(running.ended(PATIENCE).is_some_and(|s| s.success()), "{word}");
        assert_eq!(fs::read(&com).unwrap(), status, "{word}, {lba}");
    }
}

/// `qemu-img` where it is installed; whether it succeeds, and what it says.
fn qemu_img(args: &[&str]) -> Option<(bool, String)> {
    let out = Command::new("qemu-img").args(args).output().ok()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    Some((matches!(out.status.code(), Some(0 | 3)), text))
}

fn opened(path: &str, format: &str, check: bool) -> Arc<dyn Image> {
    let options = OpenOptions { format: Some(format.into()), check, ..OpenOptions::read_only(path) };
    mynah_block::open(&options).unwrap_or_else(|e| panic!("{format}: {e}"))
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// A guest writes and flushes, and tells what is flushed, until its machine is killed. Each image is sound then, reads
/// the same to us and to QEMU, and has all that the guest was told is there.
#[test]
#[ignore = "takes minutes"]
fn what_a_guest_has_flushed_is_there_after_a_kill() {
    const FORMATS: [&str; 9] = ["qcow2", "vmdk", "vhdx", "raw", "qcow2", "vmdk", "vhdx", "vdi", "vpc"];
    const DRIVES: [&str; 4] =
        ["aio=threads", "aio=io_uring", "aio=threads,cache=none", "aio=native,cache=none"];
    let (seed, many) = (number("MYNAH_SEED", 1), number("MYNAH_MACHINE_KILLS", 10));
    let mut numbers = mynah_oracle::rng::Rng::new(seed, 0);
    for n in 0..many.div_ceil(2) as usize {
        let (format, drive) = (FORMATS[n % FORMATS.len()], DRIVES[(n + n / FORMATS.len()) % DRIVES.len()]);
        let folder = Folder::new("kills");
        let (disk, raw, copy) = (folder.path("disk"), folder.path("raw"), folder.path("copy"));
        let options = if format == "vpc" { vec![("force_size".into(), "on".into())] } else { Vec::new() };
        mynah_block::create(Path::new(&disk), format, DISK, &options).unwrap();
        // The least of each slot that must be there; who has written more than was told.
        let mut flushed = vec![0u32; SLOTS];
        let mut from = 0u32;
        for round in 0..2 {
            let what = format!("{format}, {drive}, seed {seed}, image {n}, kill {round}");
            let data = vec![(FROM, from.to_le_bytes().to_vec())];
            let kernel = folder.file("kernel", &Guest { data, ..Guest::new(&writer) }.image());
            let (com, option) = (folder.path("com"), format!("file={disk},format={format},{drive}"));
            let _ = fs::remove_file(&com);
            let serial = format!("file:{com}");
            let args = ["run", "-display", "none", "-m", "16", "-kernel", &kernel, "-serial", &serial];
            let mut running = Running::start(
                command(&args).args(["-monitor", "none", "-drive", &option]).stdout(Stdio::null()),
            );
            wait_for_text(&com, "\n");
            let end = Instant::now() + Duration::from_micros(numbers.below(400_000));
            while Instant::now() < end && running.0.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(200));
            }
            running.0.kill().unwrap();
            running.0.wait().unwrap();
            let text = fs::read_to_string(&com).unwrap();
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let told = whole.lines().map(|l| u32::from_str_radix(l, 16).unwrap()).max().unwrap();
            assert!(told != u32::MAX, "{what}: the guest was given an error: {text}");
            for n in from + 1..=told {
                flushed[slot(n)] = n;
            }
            let image = opened(&disk, format, true);
            match image.check(false) {
                Ok(report) => assert_eq!(report.corruptions, 0, "{what}: {:?}", report.messages),
                Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::Unsupported, "{what}: {e}"),
            }
            drop(image);
            let mut now = vec![0; DISK as usize];
            opened(&disk, format, false).read(0, &mut now).unwrap();
            // QEMU replays a VHDX's log into the file only.
            fs::copy(&disk, &copy).unwrap();
            let repair: &[&str] = if format == "vhdx" { &["-r", "all"] } else { &[] };
            if !matches!(format, "raw" | "vpc")
                && let Some((sound, text)) = qemu_img(&[&["check", "-f", format, &copy], repair].concat())
            {
                assert!(sound, "{what}: {text}");
            }
            if let Some((done, text)) = qemu_img(&["convert", "-f", format, "-O", "raw", &copy, &raw]) {
                assert!(done, "{what}: {text}");
                assert!(fs::read(&raw).unwrap() == now, "{what}: QEMU reads something else");
            }
            for (slot, least) in flushed.iter_mut().enumerate() {
                let bytes = &now[slot * STRIDE..][..SLOT];
                let words = bytes.chunks_exact(4).map(|w| u32::from_le_bytes(w.try_into().unwrap()));
                for word in words.clone() {
                    assert!(
                        word == *least || word > told && word <= told + 64,
                        "{what}: slot {slot} has {word}, {least} was flushed, {told} is the last"
                    );
                }
                // What was begun counts from here on, where all of it is there.
                *least = words.clone().max().unwrap();
                let begun = *least;
                if words.clone().any(|word| word != begun) {
                    // Torn by the kill: another round would have to know of both.
                    now[slot * STRIDE..][..SLOT].fill(0);
                    *least = u32::MAX;
                }
            }
            if flushed.contains(&u32::MAX) {
                break;
            }
            from = (told + 64) & !7;
        }
    }
}
