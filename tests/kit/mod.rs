//! Small guests, assembled here, and the program around them: for tests of how it is driven and how it ends.
//!
//! A guest is a Multiboot 1 image in 32-bit code without paging. It starts all of its vCPUs, writes `R` to port E9h
//! when it is about to do what it is for, and can have its last vCPU switch the machine off a while later, after a `P`.
#![allow(dead_code, reason = "not every test uses all of it")]
pub mod linux;
pub mod spells;
pub mod typed;

use iced_x86::code_asm::*;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Where the image is loaded.
pub const BASE: u32 = 0x10_0000;
/// Its descriptor tables; a guest may put more into the GDT, from 28h on, and into the IDT, which is empty.
pub const GDT: u32 = BASE + 0x100;
pub const IDT: u32 = BASE + 0x1000;
/// Room for what a guest needs (zeroes), below the code.
pub const DATA: u32 = BASE + 0x2000;
const CODE: u32 = BASE + 0x1_0000;
const END: u32 = BASE + 0x2_0000;
/// Above all of the image: the vCPUs' stacks, and RAM that is free from there on.
pub const STACKS: u32 = BASE + 0x4_0000;
pub const FREE: u32 = BASE + 0x8_0000;
/// Where vCPUs start that are started by another one.
const TRAMPOLINE: u32 = 0x8000;
/// The vCPUs that have started.
const STARTED: u32 = DATA;

/// What a vCPU does.
pub type Code<'a> = &'a (dyn Fn(&mut CodeAssembler) -> Result<(), IcedError> + Sync);

/// A guest.
#[derive(Clone)]
pub struct Guest<'a> {
    /// vCPUs that take part.
    pub vcpus: u32,
    /// What the first one does.
    pub first: Code<'a>,
    /// What the others do.
    pub others: Code<'a>,
    /// One more switches the machine off.
    pub power_off: bool,
    /// The others are not started.
    pub alone: bool,
    /// Bytes of the image: address and contents.
    pub data: Vec<(u32, Vec<u8>)>,
}

impl<'a> Guest<'a> {
    /// A guest of one vCPU.
    pub fn new(first: Code<'a>) -> Self {
        Guest { vcpus: 1, first, others: &halt, power_off: false, alone: false, data: Vec::new() }
    }

    /// vCPUs that the machine needs.
    pub fn smp(&self) -> u32 {
        self.vcpus + u32::from(self.power_off)
    }

    /// The image.
    pub fn image(&self) -> Vec<u8> {
        self.assemble().expect("the guest can be assembled")
    }

    fn assemble(&self) -> Result<Vec<u8>, IcedError> {
        let mut image = vec![0; (END - BASE) as usize];
        let mut put = |at: u32, bytes: &[u8]| {
            let at = (at - BASE) as usize;
            image[at..at + bytes.len()].copy_from_slice(bytes);
        };
        // Null, flat code (08h) and data (10h) of CPL 0, then of CPL 3 (1Bh, 23h).
        let gdt = [
            0_u64,
            0x00cf_9a00_0000_ffff,
            0x00cf_9200_0000_ffff,
            0x00cf_fa00_0000_ffff,
            0x00cf_f200_0000_ffff,
        ];
        put(GDT, &gdt.map(u64::to_le_bytes).concat());
        put(GDTR, &table(GDT, 0x1ff));
        put(GDTR + 8, &table(IDT, 0x7ff));
        for (at, bytes) in &self.data {
            put(*at, bytes);
        }
        let mut a = CodeAssembler::new(32)?;
        let (mut flat, mut started, mut wait) = (a.create_label(), a.create_label(), a.create_label());
        let mut others = a.create_label();
        a.cli()?;
        a.cld()?;
        a.mov(esp, STACKS)?;
        a.lgdt(fword_ptr(GDTR))?;
        a.jmp(fword_ptr(FAR))?;
        a.set_label(&mut flat)?;
        segments(&mut a)?;
        a.lidt(fword_ptr(GDTR + 8))?;
        if self.smp() > 1 && !self.alone {
            a.mov(esi, GDTR + 0x20)?;
            a.mov(edi, TRAMPOLINE)?;
            a.mov(ecx, 0x40)?;
            a.rep().movsb()?;
            // INIT, and a start-up IPI with the trampoline's page, to all but this one.
            a.mov(dword_ptr(ICR), 0x000c_4500)?;
            a.mov(dword_ptr(ICR), 0x000c_4600 | TRAMPOLINE >> 12)?;
            a.set_label(&mut wait)?;
            a.pause()?;
            a.cmp(dword_ptr(STARTED), self.smp() as i32 - 1)?;
            a.jne(wait)?;
        }
        say(&mut a, b'R')?;
        (self.first)(&mut a)?;
        halt(&mut a)?;
        a.set_label(&mut started)?;
        segments(&mut a)?;
        a.lidt(fword_ptr(GDTR + 8))?;
        // The local APIC's id: 1 for the second vCPU.
        a.mov(eax, dword_ptr(0xfee0_0020_u32))?;
        a.shr(eax, 24)?;
        a.lock().inc(dword_ptr(STARTED))?;
        a.mov(esp, eax)?;
        a.shl(esp, 12)?;
        a.add(esp, STACKS)?;
        if self.power_off {
            a.cmp(eax, self.vcpus as i32)?;
            a.jne(others)?;
            delay(&mut a, 200)?;
            say(&mut a, b'P')?;
            power_off(&mut a)?;
        }
        a.set_label(&mut others)?;
        a.nop()?;
        (self.others)(&mut a)?;
        halt(&mut a)?;
        let code = a.assemble_options(
            u64::from(CODE),
            iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS,
        )?;
        put(FAR, &far(8, code.label_ip(&flat)? as u32));
        put(CODE, &code.inner.code_buffer);
        // cli; lgdt [cs: its own copy]; CR0.PE; a far jump to 08h:started.
        let mut t = CodeAssembler::new(16)?;
        t.cli()?;
        t.xor(ax, ax)?;
        t.mov(ds, ax)?;
        t.db(&[0x66, 0x0f, 0x01, 0x16])?;
        t.dw(&[(TRAMPOLINE + 0x30) as u16])?;
        t.mov(eax, cr0)?;
        t.or(eax, 1)?;
        t.mov(cr0, eax)?;
        t.db(&[0x66, 0xea])?;
        t.db(&far(8, code.label_ip(&started)? as u32))?;
        put(GDTR + 0x20, &t.assemble(u64::from(TRAMPOLINE))?);
        put(GDTR + 0x50, &table(GDT, 0x1ff));
        // header, load, end of the file, end of the memory to clear, entry
        let (magic, flags) = (0x1bad_b002_u32, 1_u32 << 16);
        let sum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
        put(BASE, &[magic, flags, sum, BASE, BASE, END, FREE, CODE].map(u32::to_le_bytes).concat());
        Ok(image)
    }
}

/// Operands of LGDT and LIDT, and the trampoline.
const GDTR: u32 = BASE + 0x40;
/// That of the jump which loads CS.
const FAR: u32 = BASE + 0x30;
/// The local APIC's interrupt command register, low half.
pub const ICR: u32 = 0xfee0_0300;

/// What LGDT and LIDT load.
fn table(base: u32, limit: u16) -> [u8; 6] {
    let ([a, b], [c, d, e, f]) = (limit.to_le_bytes(), base.to_le_bytes());
    [a, b, c, d, e, f]
}

/// A far pointer.
pub fn far(selector: u16, offset: u32) -> [u8; 6] {
    let ([a, b, c, d], [e, f]) = (offset.to_le_bytes(), selector.to_le_bytes());
    [a, b, c, d, e, f]
}

/// A 32-bit interrupt gate of level `dpl` to `selector:offset`.
pub fn gate(selector: u16, offset: u32, dpl: u8) -> Vec<u8> {
    let ([a, b, c, d], [e, f]) = (offset.to_le_bytes(), selector.to_le_bytes());
    vec![a, b, e, f, 0, 0x8e | dpl << 5, c, d]
}

fn segments(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ax, 0x10)?;
    for segment in [ds, es, fs, gs, ss] {
        a.mov(segment, ax)?;
    }
    Ok(())
}

/// Halts for good, with interrupts off.
pub fn halt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.cli()?;
    a.set_label(&mut again)?;
    a.hlt()?;
    a.jmp(again)
}

/// Goes round and round.
pub fn spin(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.inc(ebx)?;
    a.jmp(again)
}

/// Writes a byte to the debug console.
pub fn say(a: &mut CodeAssembler, byte: u8) -> Result<(), IcedError> {
    a.mov(al, i32::from(byte))?;
    a.out(0xe9, al)
}

/// Sends a byte by COM1, when it takes one.
pub fn send(a: &mut CodeAssembler, byte: u8) -> Result<(), IcedError> {
    let mut wait = a.create_label();
    a.mov(dx, 0x3fd)?;
    a.set_label(&mut wait)?;
    a.in_(al, dx)?;
    a.test(al, 0x20)?;
    a.jz(wait)?;
    a.mov(dx, 0x3f8)?;
    a.mov(al, i32::from(byte))?;
    a.out(dx, al)
}

/// Waits by the PM timer, 24 bits at 3,579,545 Hz.
pub fn delay(a: &mut CodeAssembler, ms: u32) -> Result<(), IcedError> {
    let mut wait = a.create_label();
    a.mov(dx, 0x608)?;
    a.in_(eax, dx)?;
    a.mov(ebx, eax)?;
    a.set_label(&mut wait)?;
    a.pause()?;
    a.in_(eax, dx)?;
    a.sub(eax, ebx)?;
    a.and(eax, 0x00ff_ffff)?;
    a.cmp(eax, ms * 3580)?;
    a.jb(wait)
}

/// PM1a control: SLP_EN with sleep type 0, which is S5 on this board. A vCPU may go on for a moment (QEMU's does), and
/// halts.
pub fn power_off(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(dx, 0x604)?;
    a.mov(ax, 0x2000)?;
    a.out(dx, ax)?;
    halt(a)
}

/// Puts interrupt gates for `vectors`, of level 3, into the IDT; `code` is their handler.
pub fn handler(
    a: &mut CodeAssembler,
    vectors: std::ops::Range<u32>,
    code: Code<'_>,
) -> Result<(), IcedError> {
    let (mut past, mut fill) = (a.create_label(), a.create_label());
    // What it pushes is the handler's address.
    a.call(past)?;
    code(a)?;
    a.set_label(&mut past)?;
    a.pop(eax)?;
    a.mov(edx, eax)?;
    a.and(edx, 0xffff_0000_u32 as i32)?;
    a.or(edx, 0xee00)?;
    a.and(eax, 0xffff)?;
    a.or(eax, 8 << 16)?;
    a.mov(edi, IDT + 8 * vectors.start)?;
    a.mov(ecx, vectors.len() as u32)?;
    a.set_label(&mut fill)?;
    a.mov(dword_ptr(edi), eax)?;
    a.mov(dword_ptr(edi + 4), edx)?;
    a.add(edi, 8)?;
    a.dec(ecx)?;
    a.jnz(fill)
}

/// A folder for one test's files, which goes with it.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let n = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("mynah-{name}-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// A file with these contents; its path.
    pub fn file(&self, name: &str, contents: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, contents).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Mynah with these arguments, in a surrounding of its own.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mynah"));
    command.args(args).env_remove("HOME").env_remove("XDG_CACHE_HOME").env_remove("MYNAH_LOG");
    command.env("MYNAH_ACCEL", "jit");
    command
}

/// A process that is killed when the test is done with it.
pub struct Running(pub Child);

impl Running {
    pub fn start(command: &mut Command) -> Self {
        Running(command.spawn().expect("mynah starts"))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: a child of ours that has not been waited for: the number is its own.
        unsafe { libc::kill(self.0.id() as libc::pid_t, signal) };
    }

    /// Waits for its end, if it comes in time.
    pub fn ended(&mut self, within: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return Some(status);
            }
            if start.elapsed() > within {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `f` gives something.
pub fn wait_for<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = f() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "there is no {what} after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until a file has these bytes in it.
pub fn wait_for_text(path: &str, text: &str) {
    wait_for(&format!("{text:?} in {path}"), || {
        let bytes = fs::read(path).ok()?;
        bytes.windows(text.len()).any(|w| w == text.as_bytes()).then_some(())
    });
}

/// A stream to a server of Mynah's.
pub trait Stream: Read + Write + Send {}
impl Stream for UnixStream {}
impl Stream for TcpStream {}

/// Connects to a unix socket when it is there.
pub fn connect(path: &str) -> UnixStream {
    wait_for(path, || UnixStream::connect(Path::new(path)).ok())
}

/// A monitor's client.
pub struct Client<S: Read + Write> {
    stream: S,
    prompt: &'static str,
}

impl Client<UnixStream> {
    /// Comes to the monitor at a unix socket.
    pub fn at(path: &str) -> Self {
        let stream = connect(path);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self::new(stream, "(mynah) ").0
    }
}

impl<S: Read + Write> Client<S> {
    /// Waits for the greeting, which comes as well.
    pub fn new(stream: S, prompt: &'static str) -> (Self, String) {
        let mut client = Client { stream, prompt };
        let greeting = client.answer();
        (client, greeting)
    }

    /// What comes before the next prompt.
    fn answer(&mut self) -> String {
        let mut bytes = Vec::new();
        let mut byte = [0];
        while !bytes.ends_with(self.prompt.as_bytes()) {
            match self.stream.read(&mut byte) {
                Ok(1) => bytes.push(byte[0]),
                other => panic!("no prompt, but {other:?} after {:?}", String::from_utf8_lossy(&bytes)),
            }
        }
        bytes.truncate(bytes.len() - self.prompt.len());
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// Carries out a command; what it says.
    pub fn ask(&mut self, line: &str) -> String {
        self.stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        let answer = self.answer();
        let echo = format!("{line}\n");
        answer.strip_prefix(&echo).unwrap_or_else(|| panic!("{line} is not echoed: {answer:?}")).to_owned()
    }

    /// The stream, to be kept.
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// Types a line and waits for nothing.
    pub fn send(&mut self, line: &str) {
        self.stream.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// The lines that a stream gives, until its end.
pub fn lines(stream: impl Read) -> Vec<String> {
    BufReader::new(stream).lines().map_while(Result::ok).collect()
}
