//! Names of translated code for `perf`, in the two forms that it reads:
//!
//! * `/tmp/perf-PID.map`, a line `START SIZE NAME` for each region. Regions that are thrown away stay in the file, as
//!   the form knows no end of a name; a later one at the same place comes later.
//! * `jit-PID.dump`, in the folder where the process was started: the code itself, with the time from which it is
//!   there. `perf record -k mono` takes note of the file, as part of it is mapped executable; `perf inject --jit`
//!   makes an ELF file of each region, so that code is told from what was at the same place before, and `perf
//!   annotate` shows it. (`tools/perf/Documentation/jitdump-specification.txt` in Linux's sources.)
//!
//! Both names can be foreseen, so both files are made anew, and no link is followed.
//!
//! A region is called after the guest address that it was entered at when it was compiled, or after the guest's
//! function there, if a file with symbols was given.
use memmap2::{Mmap, MmapOptions};
use parking_lot::Mutex;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

/// The names of the guest's functions, by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbols {
    /// Address, size and name, in order of addresses.
    list: Vec<(u64, u64, String)>,
}

impl Symbols {
    /// Of functions given by address, size (0: up to the next one) and name.
    pub fn new(mut list: Vec<(u64, u64, String)>) -> Self {
        list.sort();
        list.dedup_by_key(|s| s.0);
        Self { list }
    }

    /// What stands at an address: the function's name, and the distance from its start if there is one.
    pub fn name(&self, address: u64) -> Option<String> {
        let n = self.list.partition_point(|s| s.0 <= address).checked_sub(1)?;
        let (start, size, name) = &self.list[n];
        let distance = address - start;
        if *size != 0 && distance >= *size {
            return None;
        }
        Some(if distance == 0 { name.clone() } else { format!("{name}+{distance:#x}") })
    }

    /// The address, and the name there if there is one.
    pub(crate) fn describe(&self, address: u64) -> String {
        match self.name(address) {
            Some(name) => format!("{address:#x} {name}"),
            None => format!("{address:#x}"),
        }
    }
}

/// The files that `perf` reads, for all translators of the process.
pub struct Perf {
    map: Option<Mutex<File>>,
    dump: Option<Mutex<JitDump<File>>>,
    /// What has perf take note of the dump.
    _marker: Option<Mmap>,
    symbols: Arc<Symbols>,
}

impl Perf {
    /// Makes those of the files that are wanted, for this user alone; the error names the file. What others may have
    /// put in their places is not touched.
    pub fn create(map: bool, dump: bool, symbols: Arc<Symbols>) -> io::Result<Self> {
        if !cfg!(target_os = "linux") {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "perf is Linux's"));
        }
        let pid = std::process::id();
        let open = |name: &str| {
            crate::cache::private::create(name.as_ref())
                .map_err(|e| io::Error::new(e.kind(), format!("{name}: {e}")))
        };
        let map = if map { Some(Mutex::new(open(&format!("/tmp/perf-{pid}.map"))?)) } else { None };
        let (dump, marker) = if dump {
            let name = format!("jit-{pid}.dump");
            let file = open(&name)?;
            let dump = JitDump::new(file.try_clone()?, pid)?;
            // SAFETY: nobody reads or writes memory here: the mapping is only to be seen.
            let marker = unsafe { MmapOptions::new().len(mynah_mmu::PAGE_SIZE as usize).map_exec(&file) }
                .map_err(|e| io::Error::new(e.kind(), format!("{name}: not to be mapped executable: {e}")))?;
            (Some(Mutex::new(dump)), Some(marker))
        } else {
            (None, None)
        };
        Ok(Self { map, dump, _marker: marker, symbols })
    }

    /// Code was put into place for the linear guest address `lin`.
    pub(crate) fn region(&self, address: *const u8, code: &[u8], lin: u64) {
        let name = self.symbols.name(lin).unwrap_or_else(|| format!("{lin:#x}"));
        self.add(address, code, &format!("guest {name}"));
    }

    /// Code of the translator's own.
    pub(crate) fn stub(&self, address: *const u8, code: &[u8], name: &str) {
        self.add(address, code, &format!("mynah {name} stub"));
    }

    fn add(&self, address: *const u8, code: &[u8], name: &str) {
        // Who cannot write a file loses names, not the guest. A line is one write: whoever reads the file finds whole
        // ones.
        if let Some(map) = &self.map {
            let line = format!("{:x} {:x} {name}\n", address.addr(), code.len());
            let _ = map.lock().write_all(line.as_bytes());
        }
        if let Some(dump) = &self.dump {
            let _ = dump.lock().load(address.addr() as u64, code, name);
        }
    }
}

/// A writer of jitdump records.
struct JitDump<W: Write> {
    out: W,
    pid: u32,
    regions: u64,
}

impl<W: Write> JitDump<W> {
    /// Begins with the file's header.
    fn new(mut out: W, pid: u32) -> io::Result<Self> {
        const MAGIC: u32 = 0x4a69_5444;
        const VERSION: u32 = 1;
        const HEADER: u32 = 40;
        const EM_X86_64: u32 = 62;
        const EM_AARCH64: u32 = 183;
        let machine = if cfg!(target_arch = "x86_64") { EM_X86_64 } else { EM_AARCH64 };
        for word in [MAGIC, VERSION, HEADER, machine, 0, pid] {
            out.write_all(&word.to_ne_bytes())?;
        }
        out.write_all(&nanoseconds().to_ne_bytes())?;
        out.write_all(&0u64.to_ne_bytes())?;
        Ok(Self { out, pid, regions: 0 })
    }

    /// JIT_CODE_LOAD: from now on `code` is at `address`.
    fn load(&mut self, address: u64, code: &[u8], name: &str) -> io::Result<()> {
        const JIT_CODE_LOAD: u32 = 0;
        const FIXED: usize = 56;
        let size = FIXED + name.len() + 1 + code.len();
        // A record is one write: what has been written is whole records, however the process ends.
        let mut record = Vec::with_capacity(size);
        for word in [JIT_CODE_LOAD, u32::try_from(size).map_err(io::Error::other)?] {
            record.extend(word.to_ne_bytes());
        }
        record.extend(nanoseconds().to_ne_bytes());
        for word in [self.pid, thread_id()] {
            record.extend(word.to_ne_bytes());
        }
        for word in [address, address, code.len() as u64, self.regions] {
            record.extend(word.to_ne_bytes());
        }
        self.regions += 1;
        record.extend(name.as_bytes());
        record.push(0);
        record.extend(code);
        self.out.write_all(&record)
    }
}

/// The time as `perf record -k mono` has it.
fn nanoseconds() -> u64 {
    #[cfg(unix)]
    {
        let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call fills in the structure that it is given.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
        t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
    }
    #[cfg(not(unix))]
    0
}

/// The thread's number, as perf has it.
fn thread_id() -> u32 {
    #[cfg(target_os = "linux")]
    // SAFETY: the call has no memory argument.
    unsafe {
        libc::gettid() as u32
    }
    #[cfg(not(target_os = "linux"))]
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_name_of_the_function_around_it() {
        let s = Symbols::new(vec![(0x2000, 0x10, "second".into()), (0x1000, 0, "first".into())]);
        assert_eq!(s.name(0x1000).as_deref(), Some("first"));
        assert_eq!(s.name(0x1fff).as_deref(), Some("first+0xfff"));
        assert_eq!(s.name(0x200f).as_deref(), Some("second+0xf"));
        assert_eq!((s.name(0x2010), s.name(0xfff)), (None, None));
        assert_eq!((s.describe(0x2001), s.describe(0x10)), ("0x2001 second+0x1".into(), "0x10".into()));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_link_in_the_place_of_the_map_is_not_followed() {
        let map = std::path::PathBuf::from(format!("/tmp/perf-{}.map", std::process::id()));
        let precious = std::env::temp_dir().join(format!("mynah-perf-precious-{}", std::process::id()));
        std::fs::write(&precious, "precious").expect("a file");
        std::os::unix::fs::symlink(&precious, &map).expect("a link");
        let refused = Perf::create(true, false, Arc::default()).err().map(|e| e.to_string());
        std::fs::remove_file(&map).expect("the link is still there");
        assert!(refused.is_some_and(|e| e.contains("perf-")));
        // Another name of a file is not written through either.
        std::fs::hard_link(&precious, &map).expect("a name");
        let perf = Perf::create(true, false, Arc::default()).expect("a file of its own");
        perf.stub(std::ptr::null(), &[0xc3], "test");
        let (written, kept) = (std::fs::read_to_string(&map), std::fs::read_to_string(&precious));
        let _ = (std::fs::remove_file(&map), std::fs::remove_file(&precious));
        assert_eq!(written.expect("a map"), "0 1 mynah test stub\n");
        assert_eq!(kept.expect("the file"), "precious");
    }

    #[test]
    fn a_dump_has_the_layout_that_perf_reads() {
        let mut dump = JitDump::new(Vec::new(), 77).expect("a header");
        dump.load(0x7000, &[0xc3, 0x90], "f").expect("a record");
        dump.load(0x8000, &[0xcc], "gh").expect("a record");
        let b = dump.out;
        let u32_at = |at: usize| u32::from_ne_bytes(b[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_ne_bytes(b[at..at + 8].try_into().expect("8 bytes"));
        assert_eq!((u32_at(0), u32_at(4), u32_at(8), u32_at(20)), (0x4a69_5444, 1, 40, 77));
        // The first record: kind, size, time, process, thread, address twice, size, number, name, code.
        let first = 40;
        assert_eq!((u32_at(first), u32_at(first + 4)), (0, 56 + 2 + 2));
        assert!(u64_at(first + 8) >= u64_at(24));
        assert_eq!((u32_at(first + 16), u64_at(first + 24), u64_at(first + 32)), (77, 0x7000, 0x7000));
        assert_eq!((u64_at(first + 40), u64_at(first + 48)), (2, 0));
        assert_eq!(b[first + 56..first + 60], *b"f\0\xc3\x90");
        let second = first + 60;
        assert_eq!((u64_at(second + 32), u64_at(second + 48)), (0x8000, 1));
        assert_eq!(b[second + 56..], *b"gh\0\xcc");
    }
}
