//! A guest run with a file of compiled code that somebody has changed: for random tests and for the fuzzer.
//!
//! Each process makes one file by running a guest. The input says what becomes of it: bytes changed, pieces
//! moved, put in or taken out. Then the guest runs with that file and must end as in the interpreter, with
//! the compiled code checked against the interpreter as well; and again with what has been written then,
//! which must be whole.
use crate::common::*;
use iced_x86::code_asm::*;
use mynah_cpu::{Cpu, Exit, State};
use mynah_jit::tier::{Engine, Folder, LIMIT, OnDisk, Options, StoreInfo, Translating};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What is the same each time.
struct Base {
    dir: PathBuf,
    /// The file's name and contents.
    file: (PathBuf, Vec<u8>),
    code: Vec<u8>,
    end: State,
}

fn code() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut top, mut inner, mut function) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(ebp, 12)?;
    a.set_label(&mut top)?;
    a.mov(rdi, DATA)?;
    a.mov(esi, 6)?;
    a.set_label(&mut inner)?;
    a.add(dword_ptr(rdi), esi)?;
    a.movdqu(xmm0, xmmword_ptr(rdi))?;
    a.paddd(xmm1, xmm0)?;
    a.add(rdi, 4)?;
    a.dec(esi)?;
    a.jne(inner)?;
    a.call(function)?;
    a.dec(ebp)?;
    a.jne(top)?;
    a.hlt()?;
    a.set_label(&mut function)?;
    a.mov(eax, 1)?;
    a.cpuid()?;
    a.add(r9d, eax)?;
    a.ret()?;
    a.assemble(CODE)
}

fn loaded(code: &[u8]) -> Box<Cpu> {
    let cpu = machine(64);
    cpu.mem.write(CODE, code);
    cpu
}

fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("mynah-spoiled-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let code = code().expect("a program");
        let mut plain = loaded(&code);
        assert_eq!(plain.run(), Exit::Halt);
        let end = plain.state.clone();
        let info = run_in(&dir, &code, &end, false);
        assert!(info.disk.is_some_and(|d| d.written >= 3), "{info:?}");
        let path = packs(&dir).remove(0);
        let bytes = fs::read(&path).expect("the file");
        Base { dir, file: (path, bytes), code, end }
    })
}

fn packs(dir: &Path) -> Vec<PathBuf> {
    let list = fs::read_dir(dir).expect("the folder").map(|f| f.expect("a file").path());
    list.filter(|p| p.extension().is_some_and(|e| e == "pack")).collect()
}

fn run_in(dir: &Path, code: &[u8], end: &State, check: bool) -> StoreInfo {
    let mut cpu = loaded(code);
    let folder = Folder::open(dir).expect("a folder of one's own");
    let disk = Some(OnDisk { folder, limit: LIMIT, image: None });
    let engine =
        Engine::new(&cpu.model, Options { at_once: true, baseline: None, disk, ..Options::default() })
            .expect("an engine");
    cpu.set_tier(Box::new(Translating::new(&engine, cpu.events.clone()).expect("a tier")), 2);
    if check {
        cpu.check_translator(true, Box::new(|text| panic!("{text}")));
    }
    assert_eq!(cpu.run(), Exit::Halt);
    assert!(cpu.state == *end, "another end than in the interpreter");
    engine.close();
    engine.info()
}

/// Changes the file as the input says: 6 bytes a change. Returns how long it is to be, if that is longer than what is
/// in it.
fn spoil(bytes: &mut Vec<u8>, data: &[u8]) -> u64 {
    let mut sparse = 0;
    for c in data.chunks_exact(6) {
        let place = |n: usize, len: usize| usize::from(u16::from_le_bytes([c[n], c[n + 1]])) % len.max(1);
        let (at, from) = (place(1, bytes.len()), place(3, bytes.len()));
        let n = usize::from(c[5]);
        match c[0] % 9 {
            _ if bytes.is_empty() => return sparse,
            0 => bytes[at] ^= 1 << (c[5] & 7),
            1 => bytes[at] = c[5],
            2 => bytes.truncate(at),
            3 => {
                bytes.drain(at..(at + n).min(bytes.len()));
            }
            4 => bytes.extend(std::iter::repeat_n(c[5], from)),
            // A piece of it over another: records and regions that are whole, in the wrong places.
            5 => {
                let piece = bytes[from..(from + n).min(bytes.len())].to_vec();
                let end = (at + piece.len()).min(bytes.len());
                bytes[at..end].copy_from_slice(&piece[..end - at]);
            }
            // A number near the front, where lengths stand.
            6 => {
                let at = at % bytes.len().min(256);
                let end = (at + 4).min(bytes.len());
                bytes[at..end].copy_from_slice(&[c[3], c[4], c[5], 0][..end - at]);
            }
            // So many records and so much data, and a file that is as long.
            7 if bytes.len() >= 32 => {
                let records = u64::from(u32::from_le_bytes([c[1], c[2], c[3], 0])) << (c[4] % 12);
                let data = u64::from(c[5]) << 27;
                bytes[16..24].copy_from_slice(&records.to_le_bytes());
                bytes[24..32].copy_from_slice(&data.to_le_bytes());
                sparse = 64 + 40 * records + data;
            }
            _ => bytes.insert(at, c[5]),
        }
    }
    sparse
}

/// Runs the guest with a file that the input has changed; panics if it ends otherwise than in the
/// interpreter.
pub fn run(data: &[u8]) -> StoreInfo {
    let base = base();
    let _ = fs::create_dir(&base.dir);
    for old in packs(&base.dir) {
        fs::remove_file(old).expect("removed");
    }
    let mut bytes = base.file.1.clone();
    let sparse = spoil(&mut bytes, data);
    fs::write(&base.file.0, &bytes).expect("written");
    if sparse > bytes.len() as u64 {
        // Where the file system has no files so long the change is another.
        let _ = fs::File::options().write(true).open(&base.file.0).and_then(|f| f.set_len(sparse));
    }
    fs::set_permissions(&base.file.0, fs::Permissions::from_mode(0o600)).expect("made private");
    let info = run_in(&base.dir, &base.code, &base.end, true);
    // The check enters regions by other ways: what it has not met is met now.
    run_in(&base.dir, &base.code, &base.end, false);
    let again = run_in(&base.dir, &base.code, &base.end, false);
    let disk = again.disk.expect("a cache");
    assert!((disk.damaged, disk.refused) == (0, 0) && disk.hits >= 3, "it was not replaced: {again:?}");
    info
}

/// Removes what [`run`] has left on disk.
#[allow(dead_code, reason = "the fuzzer is ended from outside")]
pub fn clean() {
    let _ = fs::remove_dir_all(&base().dir);
}
