//! How much memory the process has at most, whatever its guest executes: RAM, the budget (`tb-size`), and what the
//! program takes for itself.
//!
//! The guests have code at every byte of most of their RAM, and execute it there: blocks that overlap, of one
//! instruction or many, in several modes, that are compiled, that call the interpreter, that are written again with
//! another length. Each would take a gigabyte and more if nobody looked.
#![cfg(target_os = "linux")]
use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// MiB of guest RAM, of the budget, and of the program itself: its own pages, stacks, the compilers, queues.
const RAM: u64 = 64;
const BUDGET: u64 = 96;
const PROGRAM: u64 = 48;
/// How long a guest may take to get as far as it is wanted to.
const LIMIT: Duration = Duration::from_secs(300);

/// Where the image is loaded, and where code is executed: half of it by each vCPU.
const BASE: u32 = 0x10_0000;
const START: u32 = 8 << 20;
const HALF: u32 = 26 << 20;
/// Where the second vCPU starts, in real mode.
const TRAMPOLINE: u32 = 0x8000;
const STACK: u32 = 0x7000;
const LOCAL_APIC: u32 = 0xfee0_0000;
/// The descriptor table: code, data, data that ends below 4 GiB, a 16-bit stack.
const GDT: [u64; 5] =
    [0, 0x00cf_9a00_0000_ffff, 0x00cf_9200_0000_ffff, 0x00cf_9200_0000_fffe, 0x0000_9200_0000_ffff];
const DATA: u32 = 0x10;
const LIMITED: u32 = 0x18;
const STACK16: u32 = 0x20;

/// What a guest executes.
struct Work {
    name: &'static str,
    /// What RAM is filled with.
    fill: [u8; 64],
    /// Bytes from one call to the next.
    stride: u32,
    /// Times that the same is called.
    calls: u32,
    /// Selectors of data and stack segment, one pair after the other.
    modes: &'static [(u32, u32)],
    /// Each block is written again before, one instruction longer each time round, but for a few.
    writes: bool,
    /// Calls after which it tells, and how often each vCPU is to have told.
    tells: (u32, usize),
}

/// So many instructions of one byte, and a RET.
fn run_of(instruction: u8) -> [u8; 64] {
    let mut fill = [instruction; 64];
    fill[63] = 0xc3;
    fill
}

const FLAT: (u32, u32) = (DATA, DATA);

/// Enough each that what they execute would not fit if it were kept.
fn works() -> Vec<Work> {
    let plain = Work {
        name: "one instruction at every byte",
        fill: [0xc3; 64],
        stride: 1,
        calls: 1,
        modes: &[FLAT],
        writes: false,
        tells: (1 << 16, 20),
    };
    vec![
        Work { name: "many instructions from every byte", fill: run_of(0x40), tells: (1 << 14, 20), ..plain },
        Work { name: "one instruction at every byte, compiled", calls: 5, tells: (1 << 15, 16), ..plain },
        Work {
            name: "instructions that are called, compiled",
            fill: run_of(0x27), // DAA
            calls: 5,
            tells: (1 << 12, 12),
            ..plain
        },
        Work {
            name: "all modes",
            modes: &[FLAT, (LIMITED, DATA), (DATA, STACK16), (LIMITED, STACK16)],
            // Once in a page and a bit: so that all modes come.
            stride: 257,
            tells: (1 << 14, 50),
            ..plain
        },
        Work {
            name: "code that is written again, longer each time",
            fill: [0x40; 64],
            stride: 64,
            writes: true,
            tells: (1 << 16, 20),
            ..plain
        },
        plain,
    ]
}

/// Emits what a vCPU does; EBP is its number.
fn worker(a: &mut CodeAssembler, w: &Work) -> Result<(), IcedError> {
    let mut outer = a.create_label();
    a.mov(esp, STACK)?;
    a.mov(eax, ebp)?;
    a.shl(eax, 11)?;
    a.sub(esp, eax)?;
    a.xor(ecx, ecx)?;
    a.mov(edi, w.tells.0)?;
    a.set_label(&mut outer)?;
    for &(data, stack) in w.modes {
        let [mut next, mut again, mut quiet, mut kept] = std::array::from_fn(|_| a.create_label());
        a.mov(eax, data)?;
        a.mov(ds, ax)?;
        a.mov(es, ax)?;
        a.mov(eax, stack)?;
        a.mov(ss, ax)?;
        a.mov(esi, START)?;
        a.mov(edx, START + HALF)?;
        a.test(ebp, ebp)?;
        a.je(next)?;
        a.mov(esi, START + HALF)?;
        a.mov(edx, START + 2 * HALF)?;
        a.set_label(&mut next)?;
        if w.writes {
            a.test(esi, 0x3c0)?;
            a.je(kept)?;
            a.mov(eax, ecx)?;
            a.dec(eax)?;
            a.and(eax, 63)?;
            a.mov(byte_ptr(esi + eax), 0x40)?;
            a.set_label(&mut kept)?;
            a.mov(byte_ptr(esi + ecx), 0xc3u32 as i32)?;
        }
        a.mov(ebx, w.calls)?;
        a.set_label(&mut again)?;
        a.call(esi)?;
        a.dec(ebx)?;
        a.jne(again)?;
        a.dec(edi)?;
        a.jne(quiet)?;
        a.mov(edi, w.tells.0)?;
        a.lea(eax, ebp + i32::from(b'0'))?;
        a.out(0xe9, al)?;
        a.set_label(&mut quiet)?;
        a.add(esi, w.stride)?;
        a.cmp(esi, edx)?;
        a.jb(next)?;
    }
    a.inc(ecx)?;
    a.and(ecx, 63)?;
    a.jmp(outer)
}

/// Where what lies in the image: behind the header of 32 bytes.
const GDT_AT: u32 = BASE + 0x20;
const GDTR_AT: u32 = BASE + 0x50;
const FILL_AT: u32 = BASE + 0x60;
const TRAMPOLINE_AT: u32 = BASE + 0xa0;
const CODE_AT: u32 = BASE + 0xe0;

/// The code: fills RAM, starts the second vCPU if there are two, and works. Where the second one begins in it.
fn code(w: &Work, vcpus: u32) -> Result<(Vec<u8>, u32), IcedError> {
    let mut a = CodeAssembler::new(32)?;
    let [mut here, mut second, mut both] = std::array::from_fn(|_| a.create_label());
    let segments = |a: &mut CodeAssembler| -> Result<(), IcedError> {
        a.mov(eax, DATA)?;
        [ds, es, fs, gs, ss].into_iter().try_for_each(|s| a.mov(s, ax))
    };
    a.cli()?;
    a.lgdt(fword_ptr(GDTR_AT))?;
    segments(&mut a)?;
    // To our own code segment.
    a.mov(esp, STACK)?;
    a.push(8)?;
    a.call(here)?;
    a.set_label(&mut here)?;
    a.add(dword_ptr(esp), 5)?; // add, 4 bytes, and retf
    a.retf()?;
    a.cld()?;
    for (from, to, bytes) in [
        (FILL_AT, START, 64),
        (START, START + 64, 2 * HALF - 64),
        (FILL_AT, START + 2 * HALF - 64, 64),
        (TRAMPOLINE_AT, TRAMPOLINE, 0x40),
    ] {
        a.mov(esi, from)?;
        a.mov(edi, to)?;
        a.mov(ecx, bytes / 4)?;
        a.rep().movsd()?;
    }
    // Whatever is executed last ends.
    a.mov(byte_ptr(START + 2 * HALF), 0xc3u32 as i32)?;
    if vcpus > 1 {
        // INIT, and a start-up IPI, to all others (SDM volume 3A, 10.6.1).
        for icr in [0x000c_4500u32, 0x000c_4600 | TRAMPOLINE >> 12] {
            a.mov(dword_ptr(LOCAL_APIC + 0x300), icr)?;
            a.mov(ecx, 1_000_000)?;
            let mut pause = a.create_label();
            a.set_label(&mut pause)?;
            a.dec(ecx)?;
            a.jne(pause)?;
        }
    }
    a.xor(ebp, ebp)?;
    a.jmp(both)?;
    a.set_label(&mut second)?;
    segments(&mut a)?;
    a.mov(ebp, 1)?;
    a.set_label(&mut both)?;
    worker(&mut a, w)?;
    let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let code = a.assemble_options(u64::from(CODE_AT), options)?;
    let second = code.label_ip(&second)? as u32;
    Ok((code.inner.code_buffer, second))
}

/// A Multiboot image.
fn image(w: &Work, vcpus: u32) -> Vec<u8> {
    let (code, second) = code(w, vcpus).expect("it assembles");
    let (magic, flags) = (0x1bad_b002u32, 0x0001_0000);
    let end = CODE_AT + code.len() as u32;
    let header = [magic, flags, 0u32.wrapping_sub(magic + flags), BASE, BASE, end, end, CODE_AT];
    let mut image = header.map(u32::to_le_bytes).concat();
    let mut put = |at: u32, bytes: &[u8]| {
        image.resize((at - BASE) as usize, 0);
        image.extend_from_slice(bytes);
    };
    let gdtr = [&(size_of_val(&GDT) as u16 - 1).to_le_bytes()[..], &GDT_AT.to_le_bytes()].concat();
    put(GDT_AT, &GDT.map(u64::to_le_bytes).concat());
    put(GDTR_AT, &gdtr);
    put(FILL_AT, &w.fill);
    // cli; lgdt cs:[20h] (32-bit); mov eax, cr0; or al, 1; mov cr0, eax; jmp far 8:second
    let mut start =
        vec![0xfa, 0x2e, 0x66, 0x0f, 0x01, 0x16, 0x20, 0, 0x0f, 0x20, 0xc0, 0x0c, 1, 0x0f, 0x22, 0xc0];
    start.extend([&[0x66, 0xea][..], &second.to_le_bytes(), &[8, 0]].concat());
    start.resize(0x20, 0);
    start.extend(&gdtr);
    put(TRAMPOLINE_AT, &start);
    put(CODE_AT, &code);
    image
}

struct Guest {
    child: Child,
    kernel: PathBuf,
}

impl Guest {
    fn start(w: &Work, tag: &str, accel: &str, vcpus: u32) -> Self {
        let kernel = std::env::temp_dir().join(format!("mynah-memory-{}-{tag}", std::process::id()));
        std::fs::write(&kernel, image(w, vcpus)).expect("a file for the guest");
        let child = Command::new(env!("CARGO_BIN_EXE_mynah"))
            .args(["run", "-kernel"])
            .arg(&kernel)
            .args(["-m", &RAM.to_string(), "-smp", &vcpus.to_string(), "-accel", accel])
            .args(["-nodefaults", "-display", "none", "-debugcon", "stdio"])
            .env_remove("HOME")
            .env_remove("XDG_CACHE_HOME")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("mynah starts");
        Self { child, kernel }
    }

    /// Waits until each vCPU has told so often.
    fn wait(&mut self, vcpus: u32, times: usize) {
        let mut out = self.child.stdout.take().expect("it is piped");
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut byte = [0];
            while out.read(&mut byte).is_ok_and(|n| n == 1) && tell.send(byte[0]).is_ok() {}
        });
        let end = Instant::now() + LIMIT;
        let mut counts = vec![0; vcpus as usize];
        while counts.iter().any(|&n| n < times) {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(byte) = told.recv_timeout(left) else { panic!("it got only so far: {counts:?}") };
            let n = usize::from(byte.wrapping_sub(b'0'));
            assert!(n < counts.len(), "a character {byte:#x}");
            counts[n] += 1;
        }
    }

    /// The most that was resident, in MiB.
    fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let kib = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.split_whitespace().next());
        kib.and_then(|k| k.parse::<u64>().ok()).expect("a size") / 1024
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.kernel);
    }
}

fn stays_within(engine: &str, vcpus: u32) {
    let accel = match engine {
        "jit" => format!("jit,cache=off,tb-size={BUDGET}"),
        _ => format!("{engine},tb-size={BUDGET}"),
    };
    let mut large = Vec::new();
    for (n, w) in works().iter().enumerate() {
        let mut guest = Guest::start(w, &format!("{engine}-{vcpus}-{n}"), &accel, vcpus);
        guest.wait(vcpus, w.tells.1);
        let peak = guest.peak();
        println!("{engine}, {vcpus} vCPUs, {}: {peak} MiB", w.name);
        if peak > RAM + BUDGET + PROGRAM {
            large.push(format!("{}: {peak} MiB", w.name));
        }
    }
    assert!(large.is_empty(), "more than {RAM} + {BUDGET} + {PROGRAM} MiB: {large:?}");
}

#[test]
fn the_interpreter_stays_within_its_budget() {
    stays_within("interp", 1);
}

#[test]
fn so_does_that_of_two_vcpus() {
    stays_within("interp", 2);
}

#[test]
fn the_translator_stays_within_its_budget() {
    stays_within("jit", 1);
}

#[test]
fn so_does_that_of_two_vcpus_translating() {
    stays_within("jit", 2);
}
