//! Compiled code that is kept: on disk between runs, in memory between vCPUs. It is taken where it fits and
//! is whole, and nowhere else. Where nothing is kept (Windows) that is said: `folder.rs`.
#![cfg(unix)]
mod common;
#[path = "common/spoiled.rs"]
mod spoiled;

use common::*;
use iced_x86::code_asm::*;
use mynah_cpu::state::gpr;
use mynah_cpu::{Cpu, CpuModel, Exit, State};
use mynah_jit::tier::{
    Counters, Engine, Folder, Image, LIMIT, OnDisk, Optimize, Options, StoreInfo, Translating,
};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A fresh folder's name; what is there goes with this.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cache-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }
    fn packs(&self) -> Vec<PathBuf> {
        let list = fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().path());
        let mut list: Vec<_> = list.filter(|p| p.extension().is_some_and(|e| e == "pack")).collect();
        list.sort();
        list
    }
    /// The only pack.
    fn pack(&self) -> PathBuf {
        let list = self.packs();
        assert_eq!(list.len(), 1, "{list:?}");
        list[0].clone()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::set_permissions(&self.0, Permissions::from_mode(0o700));
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn on_disk(dir: &Path) -> Option<OnDisk> {
    Some(OnDisk { folder: Folder::open(dir).expect("a folder of one's own"), limit: LIMIT, image: None })
}

fn at_once(dir: &Path) -> Options {
    Options { at_once: true, baseline: None, disk: on_disk(dir), ..Options::default() }
}

/// A few regions: nested loops, calls, vectors, and CPUID, which is called by way of its op. `salt` makes it
/// another program.
fn program(salt: u32) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let f = |a: &mut CodeAssembler| -> Result<(), IcedError> {
        let (mut top, mut inner, mut function, mut other) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.mov(ebp, 40)?;
        a.mov(r9d, salt)?;
        a.set_label(&mut top)?;
        a.mov(rdi, DATA)?;
        a.mov(esi, 20)?;
        a.set_label(&mut inner)?;
        a.imul_3(r9d, r9d, 31)?;
        a.add(dword_ptr(rdi), r9d)?;
        a.movdqu(xmm0, xmmword_ptr(rdi))?;
        a.paddd(xmm1, xmm0)?;
        a.add(rdi, 4)?;
        a.dec(esi)?;
        a.jne(inner)?;
        a.call(function)?;
        a.test(ebp, 1)?;
        a.je(other)?;
        a.xor(r9d, salt ^ 0x55)?;
        a.set_label(&mut other)?;
        a.dec(ebp)?;
        a.jne(top)?;
        a.hlt()?;
        a.set_label(&mut function)?;
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.add(r9d, eax)?;
        a.ret()
    };
    f(&mut a).unwrap();
    a.assemble(CODE).unwrap()
}

/// A machine about to run a program.
fn loaded(code: &[u8]) -> Box<Cpu> {
    let cpu = machine(64);
    cpu.mem.write(CODE, code);
    cpu
}

/// What the interpreter makes of a program.
fn right(code: &[u8]) -> State {
    let mut cpu = loaded(code);
    assert_eq!(cpu.run(), Exit::Halt);
    cpu.state.clone()
}

/// What became of a run: regions compiled and taken, and what the engine says.
#[derive(Clone, Copy, Debug)]
struct Run {
    compiled: u64,
    known: u64,
    info: StoreInfo,
}

fn n(v: &AtomicU64) -> u64 {
    v.load(Ordering::Relaxed)
}

/// Runs a program; it must end as in the interpreter.
fn run_with(engine: &Engine, code: &[u8]) -> Arc<Counters> {
    let mut cpu = loaded(code);
    let tier = Translating::new(engine, cpu.events.clone()).unwrap();
    let counters = tier.counters();
    cpu.set_tier(Box::new(tier), 2);
    assert_eq!(cpu.run(), Exit::Halt);
    assert!(cpu.state == right(code), "another end than in the interpreter");
    counters
}

fn run_in(dir: &Path, code: &[u8]) -> Run {
    run_options(at_once(dir), code)
}

fn run_options(options: Options, code: &[u8]) -> Run {
    let engine = Engine::new(&machine(64).model, options).unwrap();
    let c = run_with(&engine, code);
    engine.close();
    Run { compiled: n(&c.compiled), known: n(&c.known), info: engine.info() }
}

#[test]
fn a_second_run_compiles_nothing_and_ends_alike() {
    let dir = Scratch::new("second");
    let code = program(1);
    let first = run_in(&dir.0, &code);
    assert!(first.compiled >= 3 && first.known == 0, "{first:?}");
    assert_eq!(first.info.disk.unwrap().written, first.compiled);
    let second = run_in(&dir.0, &code);
    assert!(second.compiled == 0 && second.known >= 3, "{second:?}");
    let disk = second.info.disk.unwrap();
    assert_eq!((disk.written, disk.damaged, disk.refused), (0, 0, 0));
    assert!(disk.hits >= 3 && disk.read > 500, "{disk:?}");
    // Another program takes nothing, and is kept beside it.
    let other = run_in(&dir.0, &program(2));
    assert!(other.compiled > 0 && dir.packs().len() == 2, "{other:?}");
    assert_eq!(run_in(&dir.0, &program(2)).compiled, 0);
}

#[test]
fn guests_of_another_image_find_nothing_of_it() {
    let dir = Scratch::new("image");
    let code = program(6);
    let run_as = |parts: &'static [&'static [u8]]| {
        let image = Image::new(|add| parts.iter().for_each(|p| add("part", p)));
        let disk = on_disk(&dir.0).map(|d| OnDisk { image: Some(image), ..d });
        run_options(Options { at_once: true, baseline: None, disk, ..Options::default() }, &code)
    };
    let first = run_as(&[b"kernel", b"initrd"]);
    assert!(first.compiled >= 3, "{first:?}");
    const OTHERS: [&[&[u8]]; 3] = [&[b"kernel"], &[b"kernel", b"initrD"], &[b"initrd", b"kernel"]];
    for other in OTHERS {
        let run = run_as(other);
        assert_eq!((run.compiled, run.known), (first.compiled, 0), "{run:?}");
        assert_eq!(run.info.disk.map(|d| (d.hits, d.written)), Some((0, first.compiled)));
    }
    let again = run_as(&[b"kernel", b"initrd"]);
    assert!(again.compiled == 0 && again.known >= 3, "{again:?}");
    // Those who share have theirs apart.
    assert_eq!(run_in(&dir.0, &code).compiled, first.compiled);
    assert_eq!(run_in(&dir.0, &code).compiled, 0);
    assert_eq!(dir.packs().len(), 5);
}

#[test]
fn what_is_taken_passes_the_check_against_the_interpreter() {
    let dir = Scratch::new("check");
    let code = program(3);
    run_in(&dir.0, &code);
    let mut cpu = loaded(&code);
    let engine = Engine::new(&cpu.model, at_once(&dir.0)).unwrap();
    let tier = Translating::new(&engine, cpu.events.clone()).unwrap();
    cpu.set_tier(Box::new(tier), 2);
    cpu.check_translator(true, Box::new(|text| panic!("{text}")));
    assert_eq!(cpu.run(), Exit::Halt);
    assert!(cpu.state == right(&code));
    let (checked, hits) = (cpu.checked(), engine.info().disk.unwrap().hits);
    assert!(checked.entries > 30 && hits >= 3, "{checked:?} {hits}");
}

#[test]
fn code_that_was_changed_since_is_not_taken() {
    let dir = Scratch::new("changed");
    let mut code = program(4);
    run_in(&dir.0, &code);
    // Another constant in the inner loop: 31 becomes 33.
    let at = code.windows(3).position(|w| w == [0x45, 0x6b, 0xc9]).expect("imul r9d, r9d") + 3;
    assert_eq!(code[at], 31);
    code[at] = 33;
    let run = run_in(&dir.0, &code);
    assert!(run.compiled > 0, "{run:?}");
}

#[test]
fn damaged_files_are_passed_over_and_replaced() {
    let dir = Scratch::new("damaged");
    let code = program(5);
    let first = run_in(&dir.0, &code);
    let pack = dir.pack();
    let whole = fs::read(&pack).unwrap();
    let mut seen = (0, 0);
    for at in (0..whole.len()).step_by(whole.len() / 150 + 1).chain([0, 16, 24, 32, 64, 72, 90, 98]) {
        for old in dir.packs() {
            fs::remove_file(old).unwrap();
        }
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&pack, &bytes).unwrap();
        fs::set_permissions(&pack, Permissions::from_mode(0o600)).unwrap();
        let run = run_in(&dir.0, &code);
        let disk = run.info.disk.unwrap();
        // What is between the regions is nobody's.
        let noticed = disk.refused + disk.damaged > 0;
        assert!(noticed || run.compiled == 0, "byte {at}: {run:?}");
        assert_eq!(run.compiled == 0, !noticed, "byte {at}: {run:?}");
        seen.0 += disk.refused;
        seen.1 += disk.damaged;
        let again = run_in(&dir.0, &code);
        assert_eq!(again.compiled, 0, "byte {at} was not replaced: {again:?}");
        let disk = again.info.disk.unwrap();
        assert_eq!((disk.damaged, disk.refused), (0, 0), "byte {at} is still there: {again:?}");
    }
    assert!(seen.0 > 5 && seen.1 > 100, "{seen:?} for {first:?}");
}

#[test]
fn files_of_another_length_are_not_used() {
    let dir = Scratch::new("cut");
    let code = program(6);
    run_in(&dir.0, &code);
    let pack = dir.pack();
    let whole = fs::read(&pack).unwrap();
    for len in [0, 1, 63, 64, 100, whole.len() / 2, whole.len() - 1, whole.len() + 1] {
        for old in dir.packs() {
            fs::remove_file(old).unwrap();
        }
        let mut bytes = whole.clone();
        bytes.resize(len, 0);
        fs::write(&pack, &bytes).unwrap();
        fs::set_permissions(&pack, Permissions::from_mode(0o600)).unwrap();
        let run = run_in(&dir.0, &code);
        assert!(run.compiled > 0 && run.info.disk.unwrap().refused == 1, "{len} bytes: {run:?}");
        assert_eq!(run_in(&dir.0, &code).compiled, 0, "{len} bytes");
    }
}

#[test]
fn code_for_another_model_or_made_otherwise_is_not_taken() {
    let dir = Scratch::new("foreign");
    let code = program(7);
    run_in(&dir.0, &code);
    let foreign = dir.pack();
    let none = Options { optimize: Optimize::None, ..at_once(&dir.0) };
    let run = run_options(none, &code);
    assert!(run.compiled > 0 && run.info.disk.unwrap().refused == 0, "{run:?}");
    let own = dir.packs().into_iter().find(|p| *p != foreign).unwrap();
    let model = Arc::new(CpuModel::parse("max,-avx2").unwrap());
    let engine = Engine::new(&model, at_once(&dir.0)).unwrap();
    assert!(n(&run_with(&engine, &code).compiled) > 0);
    engine.close();
    // Nor under the name of one's own.
    fs::copy(&foreign, &own).unwrap();
    fs::remove_file(&foreign).unwrap();
    let runs = [Optimize::None, Optimize::Speed]
        .map(|optimize| run_options(Options { optimize, ..at_once(&dir.0) }, &code).info.disk.unwrap());
    assert_eq!(runs.iter().map(|d| d.refused).sum::<u64>(), 1, "{runs:?}");
}

#[test]
fn a_folder_that_others_may_use_is_refused() {
    let dir = Scratch::new("open");
    fs::create_dir(&dir.0).unwrap();
    for mode in [0o701, 0o710, 0o704, 0o755, 0o777] {
        fs::set_permissions(&dir.0, Permissions::from_mode(mode)).unwrap();
        assert!(Folder::open(&dir.0).is_err(), "mode {mode:o}");
    }
    fs::set_permissions(&dir.0, Permissions::from_mode(0o700)).unwrap();
    assert!(Folder::open(&dir.0).is_ok());
    // By way of a link; a file; another user's.
    let link = Scratch::new("link");
    symlink(&dir.0, &link.0).unwrap();
    assert!(Folder::open(&link.0).is_err());
    fs::remove_file(&link.0).unwrap();
    fs::write(dir.0.join("file"), "").unwrap();
    assert!(Folder::open(&dir.0.join("file")).is_err());
    assert!(Folder::open(Path::new("/proc/self/no/such")).is_err());
    if std::os::unix::fs::chown(&dir.0, Some(1), None).is_ok() {
        assert!(Folder::open(&dir.0).is_err());
    } else {
        eprintln!("SKIPPED: only root can give a folder away");
    }
}

#[test]
fn a_folder_is_made_for_its_owner_alone_and_so_are_files() {
    let dir = Scratch::new("made");
    let deep = dir.0.join("a/b");
    run_in(&deep, &program(8));
    for f in fs::read_dir(&deep).unwrap().map(|f| f.unwrap()) {
        assert_eq!(f.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{f:?}");
    }
    assert_eq!(fs::metadata(&deep).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn files_that_are_not_this_users_alone_are_not_used() {
    type Spoil = fn(&Path) -> std::io::Result<()>;
    let spoils: [(&str, Spoil); 5] = [
        ("readable by others", |p| fs::set_permissions(p, Permissions::from_mode(0o604))),
        ("writable by the group", |p| fs::set_permissions(p, Permissions::from_mode(0o620))),
        ("a link to the file", |p| {
            fs::rename(p, p.with_extension("away"))?;
            symlink(p.with_extension("away"), p)
        }),
        ("with a second name", |p| fs::hard_link(p, p.with_extension("other"))),
        ("another user's", |p| std::os::unix::fs::chown(p, Some(1), None)),
    ];
    for (how, spoil) in spoils {
        let dir = Scratch::new("spoiled");
        let code = program(9);
        run_in(&dir.0, &code);
        if spoil(&dir.pack()).is_err() {
            eprintln!("SKIPPED: {how}");
            continue;
        }
        let run = run_in(&dir.0, &code);
        assert!(run.compiled > 0 && run.info.disk.unwrap().refused == 1, "{how}: {run:?}");
        let again = run_in(&dir.0, &code);
        assert_eq!(again.compiled, 0, "{how}: it was not replaced: {again:?}");
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_read() {
    let dir = Scratch::new("read-only");
    let code = program(10);
    run_in(&dir.0, &code);
    fs::set_permissions(&dir.0, Permissions::from_mode(0o500)).unwrap();
    std::thread::scope(|s| {
        s.spawn(|| {
            // Root may write nevertheless, unless it gives that up; a thread can.
            let caps = rustix::thread::CapabilitySet::empty();
            let none = rustix::thread::CapabilitySets { effective: caps, permitted: caps, inheritable: caps };
            rustix::thread::set_capabilities(None, none).unwrap();
            assert!(fs::write(dir.0.join("x"), "").is_err());
            assert_eq!(run_in(&dir.0, &code).compiled, 0);
            let other = run_in(&dir.0, &program(11));
            assert!(other.compiled > 0 && other.info.disk.unwrap().written == 0, "{other:?}");
        });
    });
    assert_eq!(dir.packs().len(), 1);
}

/// Runs this program's ignored test `name` with `MYNAH_DIR` set.
/// Runs another test as a process of its own; `None` where this program does not run by its name (qemu-user, where the
/// host does not know what to run it by).
fn process(name: &str, dir: &Path) -> Option<std::process::Child> {
    let own = std::env::current_exe().unwrap();
    let runs = std::process::Command::new(&own).arg("--list").stdout(std::process::Stdio::null()).status();
    if !runs.is_ok_and(|s| s.success()) {
        eprintln!("SKIPPED: this host does not run {} by its name", own.display());
        return None;
    }
    let child = std::process::Command::new(own)
        .args(["--exact", name, "--ignored", "--test-threads=1"])
        .env("MYNAH_DIR", dir)
        .stdout(std::process::Stdio::null())
        .spawn();
    Some(child.unwrap())
}

fn given_dir() -> PathBuf {
    std::env::var_os("MYNAH_DIR").expect("run by another test").into()
}

#[test]
#[ignore = "run by another test, as a process of its own"]
fn process_with_a_limit_on_file_sizes() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let mut cpu = loaded(&program(12));
    let engine = Engine::new(&cpu.model, at_once(&given_dir())).unwrap();
    cpu.set_tier(Box::new(Translating::new(&engine, cpu.events.clone()).unwrap()), 2);
    // Memory is files too, but has been got by now.
    setrlimit(Resource::Fsize, Rlimit { current: Some(100), maximum: Some(100) }).unwrap();
    assert_eq!(cpu.run(), Exit::Halt);
    engine.close();
    assert_eq!(engine.info().disk.unwrap().written, 0);
}

#[test]
fn without_room_for_files_nothing_is_kept_and_nothing_fails() {
    let dir = Scratch::new("full");
    let Some(mut limited) = process("process_with_a_limit_on_file_sizes", &dir.0) else { return };
    assert!(limited.wait().unwrap().success());
    assert_eq!(dir.packs().len(), 0);
}

#[test]
#[ignore = "run by another test, as a process of its own"]
fn process_that_runs_many_programs() {
    let dir = given_dir();
    for round in 0..6 {
        for salt in 0..6 {
            run_in(&dir, &program(100 + salt + round % 2));
        }
    }
}

#[test]
fn several_processes_use_a_folder_at_once() {
    let dir = Scratch::new("several");
    let all: Option<Vec<_>> = (0..4).map(|_| process("process_that_runs_many_programs", &dir.0)).collect();
    let Some(mut all) = all else { return };
    assert!(all.iter_mut().all(|p| p.wait().unwrap().success()));
    for salt in 0..7 {
        assert_eq!(run_in(&dir.0, &program(100 + salt)).compiled, 0, "program {salt}");
    }
    // Merged as it grew; nothing is left half done.
    assert!(dir.packs().len() <= 24, "{:?}", dir.packs());
    assert!(
        !fs::read_dir(&dir.0).unwrap().any(|f| f.unwrap().file_name().to_string_lossy().starts_with("tmp"))
    );
}

/// Many regions of some size each, called in turn, several times.
fn long_program(functions: u32) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let f = |a: &mut CodeAssembler| -> Result<(), IcedError> {
        let mut top = a.create_label();
        let mut labels: Vec<_> = (0..functions).map(|_| a.create_label()).collect();
        a.mov(ebp, 4)?;
        a.set_label(&mut top)?;
        for l in &labels {
            a.call(*l)?;
        }
        a.dec(ebp)?;
        a.jne(top)?;
        a.hlt()?;
        for (k, l) in labels.iter_mut().enumerate() {
            a.set_label(l)?;
            for m in 0..40 {
                a.add(eax, (k as u32) << 8 | m)?;
                a.add(dword_ptr(DATA + 4 * u64::from(m)), eax)?;
            }
            a.ret()?;
        }
        Ok(())
    };
    f(&mut a).unwrap();
    a.assemble(CODE).unwrap()
}

#[test]
fn code_memory_is_bounded_and_what_was_given_up_comes_back_from_disk() {
    let dir = Scratch::new("bounded");
    let code = long_program(300);
    let small =
        |disk| Options { at_once: true, baseline: None, region_bytes: 1 << 20, disk, ..Options::default() };
    let without = run_options(small(None), &code);
    assert!(without.info.given_up > 2 && without.info.code_bytes == 1 << 20, "{without:?}");
    let first = run_options(small(on_disk(&dir.0)), &code);
    let second = run_options(small(on_disk(&dir.0)), &code);
    assert!(first.compiled > 300 && second.info.given_up > 2, "{first:?} {second:?}");
    assert!(second.compiled == 0 && second.info.disk.unwrap().hits > 400, "{second:?}");
    let large = run_options(
        Options { at_once: true, baseline: None, disk: on_disk(&dir.0), ..Options::default() },
        &code,
    );
    assert!(large.compiled < 30 && large.known > 300 && large.info.given_up == 0, "{large:?}");
}

#[test]
fn a_second_vcpu_takes_what_was_compiled_for_the_first() {
    let engine =
        Engine::new(&machine(64).model, Options { at_once: true, baseline: None, ..Options::default() })
            .unwrap();
    let code = program(13);
    let first = run_with(&engine, &code);
    let second = run_with(&engine, &code);
    assert!(n(&first.compiled) >= 3);
    assert!(n(&second.compiled) == 0 && n(&second.known) >= 3, "{:?}", engine.info());
}

#[test]
fn threads_compile_for_all_vcpus_and_each_region_once() {
    let options = Options { baseline: None, ..Options::default() };
    let engine = Engine::new(&machine(64).model, options).unwrap();
    let code = program(14);
    let start = Instant::now();
    let all: Vec<_> = std::thread::scope(|s| {
        let run = || {
            let mut counted = Vec::new();
            // Until all is compiled.
            while counted.is_empty() || n(&engine_known(&counted)) < 3 {
                assert!(start.elapsed() < Duration::from_secs(60));
                counted.push(run_with(&engine, &code));
            }
            counted
        };
        let threads: Vec<_> = (0..4).map(|_| s.spawn(run)).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    let compiled: u64 = all.iter().map(|c| n(&c.compiled)).sum();
    let instructions: u64 = all.iter().map(|c| n(&c.instructions)).sum();
    assert!(all.len() > 4 && compiled < 30 && instructions < 600, "{} {compiled} {instructions}", all.len());
}

fn engine_known(all: &[Arc<Counters>]) -> AtomicU64 {
    AtomicU64::new(all.iter().map(|c| n(&c.known)).sum())
}

#[test]
fn what_is_compiled_in_the_background_is_kept_too() {
    let dir = Scratch::new("background");
    let code = program(15);
    let model = machine(64).model.clone();
    let start = Instant::now();
    loop {
        let engine =
            Engine::new(&model, Options { baseline: None, disk: on_disk(&dir.0), ..Options::default() })
                .unwrap();
        // The program's file is read meanwhile.
        while engine.info().disk.is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let known = n(&run_with(&engine, &code).known);
        std::thread::sleep(Duration::from_millis(20));
        engine.close();
        if known >= 3 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", engine.info());
    }
    // What is compiled at once may be made of other blocks.
    let at_once = run_in(&dir.0, &code);
    assert!(at_once.known >= 2 && at_once.compiled <= 2, "{at_once:?}");
}

#[test]
fn a_region_serves_any_place_that_its_code_stands_at() {
    // The same code at three places of a page and on another page.
    let engine =
        Engine::new(&machine(64).model, Options { at_once: true, baseline: None, ..Options::default() })
            .unwrap();
    let mut compiled = Vec::new();
    for at in [CODE, CODE + 0x400, CODE + 0xe00, CODE + 0x3100] {
        let code = program(16);
        let mut cpu = machine(64);
        cpu.mem.write(at, &code);
        cpu.state.gpr[gpr::RIP] = at;
        let tier = Translating::new(&engine, cpu.events.clone()).unwrap();
        let counters = tier.counters();
        cpu.set_tier(Box::new(tier), 2);
        assert_eq!(cpu.run(), Exit::Halt);
        let mut want = right(&code);
        want.gpr[gpr::RIP] += at - CODE;
        assert!(cpu.state == want);
        compiled.push(n(&counters.compiled));
    }
    assert!(compiled[0] >= 3 && compiled[1..] == [0, 0, 0], "{compiled:?}");
}

#[test]
fn a_file_changed_at_random_does_no_harm() {
    let mut r = Random(0x5a1a_d000_1234_5677);
    let (mut refused, mut damaged, mut whole) = (0, 0, 0);
    for _ in 0..300 {
        let changes: Vec<u8> =
            (0..1 + r.below(3)).flat_map(|_| r.next().to_le_bytes().into_iter().take(6)).collect();
        let disk = spoiled::run(&changes).disk.unwrap();
        refused += disk.refused;
        damaged += disk.damaged;
        whole += u64::from(disk.refused + disk.damaged == 0);
    }
    spoiled::clean();
    assert!(refused > 20 && damaged > 20 && whole > 1, "{refused} {damaged} {whole}");
}
