//! Memory and ports: `x`, `xp`, `p`, `memsave`, `pmemsave`, `sum`, `i`, `o`, `info mem`, `info tlb`.
//!
//! Virtual addresses are those of the vCPU that `cpu` has chosen. Nothing of the guest is changed by looking at RAM; a
//! device that is looked at notices that, as under QEMU.
use super::args::{Args, Fault, Format, character};
use super::{Answer, Hmp};
use crate::machine::power::Report;
use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
use mynah_cpu::state::{Segment, State, gpr, seg};
use mynah_mmu::tables::{Leaf, flag};
use mynah_mmu::{PAGE_SIZE, PhysMemory, Tables};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::ops::ControlFlow;

/// Bytes that are shown at once.
const SHOWN: usize = 1 << 20;
/// Tables that are read, and pages that are listed, at once.
const TABLES: usize = 1 << 15;
const PAGES: usize = 1 << 18;
/// The longest instruction.
const LONGEST: usize = 15;

/// A vCPU, as it is looked at.
pub struct View {
    report: Report,
    tables: Tables,
}

impl View {
    /// A vCPU that has said what it is doing.
    pub fn new(report: Report) -> Self {
        Self { tables: Tables::new(report.paging), report }
    }

    fn state(&self) -> &State {
        self.report.state.state()
    }

    /// A register by the name that QEMU's monitor, or a manual, has for it.
    pub fn register(&self, name: &str) -> Option<u64> {
        const NAMES: [&str; 8] = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"];
        const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];
        let s = self.state();
        let at = |names: &[&str], name: &str| names.iter().position(|n| *n == name);
        let number = |prefix| name.strip_prefix(prefix)?.parse::<usize>().ok();
        if let Some((segment, part)) = name.split_once('.') {
            let segment = s.seg[at(&SEGMENTS, segment)?];
            return match part {
                "base" => Some(segment.base),
                "limit" => Some(segment.limit.into()),
                _ => None,
            };
        }
        if let Some(n) = at(&SEGMENTS, name) {
            return Some(s.seg[n].sel.into());
        }
        match name {
            "pc" => Some(self.code_linear()),
            "eip" | "rip" => Some(s.gpr[gpr::RIP]),
            "eflags" | "rflags" => Some(s.rflags()),
            "cr0" => Some(s.cr0),
            "cr2" => Some(s.cr2),
            "cr3" => Some(s.cr3),
            "cr4" => Some(s.cr4),
            _ if name.starts_with("dr") => s.dr.get(number("dr")?).copied(),
            _ if name.starts_with('r') && number("r").is_some() => {
                number("r").filter(|n| (8..16).contains(n)).map(|n| s.gpr[n])
            }
            _ => Some(s.gpr[at(&NAMES, name.strip_prefix(['e', 'r'])?)?]),
        }
    }

    fn code_linear(&self) -> u64 {
        let s = self.state();
        let base = if s.is_long64() { 0 } else { s.seg[seg::CS].base };
        s.gpr[gpr::RIP].wrapping_add(base)
    }

    /// 16, 32 or 64: how instructions are decoded.
    fn code_bits(&self) -> u32 {
        let s = self.state();
        match s.seg[seg::CS].attr & Segment::DB {
            _ if s.is_long64() => 64,
            0 => 16,
            _ => 32,
        }
    }
}

/// Whose addresses are meant.
enum Space<'a> {
    Physical,
    Virtual(&'a View),
}

impl Space<'_> {
    fn physical(&self, mem: &PhysMemory, at: u64) -> Option<u64> {
        match self {
            Self::Physical => Some(at),
            Self::Virtual(view) => view.tables.translate(mem, at),
        }
    }

    /// A value of up to 8 bytes, which may lie on two pages.
    fn value(&self, mem: &PhysMemory, at: u64, size: usize) -> Option<u64> {
        let here = ((PAGE_SIZE - at % PAGE_SIZE) as usize).min(size);
        let low = mem.phys_read(self.physical(mem, at)?, here as u8);
        if here == size {
            return Some(low);
        }
        let high = mem.phys_read(self.physical(mem, at.wrapping_add(here as u64))?, (size - here) as u8);
        Some(low | high << (8 * here))
    }

    /// RAM and ROM up to the first address where nothing is mapped.
    fn bytes(&self, mem: &PhysMemory, at: u64, buf: &mut [u8]) -> usize {
        let mut done = 0;
        while done < buf.len() {
            let here = at.wrapping_add(done as u64);
            let n = ((PAGE_SIZE - here % PAGE_SIZE) as usize).min(buf.len() - done);
            let Some(physical) = self.physical(mem, here) else { break };
            mem.read(physical, &mut buf[done..done + n]);
            done += n;
        }
        done
    }
}

fn shown(value: u64, format: Format) -> String {
    let bits = format.size * 8;
    match format.kind {
        'o' => format!("#{value:>width$o}", width = bits.div_ceil(3)),
        'd' | 'u' => format!("{value:>width$}", width = (bits * 10).div_ceil(33)),
        'c' => character(value),
        _ => format!("0x{value:0width$x}", width = bits / 4),
    }
}

/// Lines of 8 or 16 bytes.
fn dump(mem: &PhysMemory, space: &Space<'_>, start: u64, format: Format) -> Result<String, Fault> {
    let line = if format.size == 1 { 8 } else { 16 };
    // Characters are bytes, however wide they were asked for.
    let bytes = format.count.saturating_mul(format.size);
    if bytes > SHOWN {
        return Err(format!("more than {SHOWN} bytes").into());
    }
    let format = if format.kind == 'c' { Format { size: 1, ..format } } else { format };
    let mut text = String::new();
    for at in (0..bytes).step_by(line) {
        let _ = write!(text, "{:016x}:", start.wrapping_add(at as u64));
        for n in (at..bytes.min(at + line)).step_by(format.size) {
            match space.value(mem, start.wrapping_add(n as u64), format.size) {
                Some(value) => _ = write!(text, " {}", shown(value, format)),
                None => return Ok(text + " Cannot access memory\n"),
            }
        }
        text.push('\n');
    }
    Ok(text)
}

fn disassemble(mem: &PhysMemory, view: &View, space: &Space<'_>, start: u64, count: usize) -> Answer {
    if count > SHOWN / LONGEST {
        return Err(format!("more than {} instructions", SHOWN / LONGEST).into());
    }
    let (mut text, mut at) = (String::new(), start);
    let mut formatter = NasmFormatter::new();
    for _ in 0..count {
        let mut bytes = [0; LONGEST];
        let n = space.bytes(mem, at, &mut bytes);
        if n == 0 {
            let _ = writeln!(text, "{at:#010x}:  Cannot access memory");
            break;
        }
        let mut decoder = Decoder::with_ip(view.code_bits(), &bytes[..n], at, DecoderOptions::NONE);
        let instruction = decoder.decode();
        let len = instruction.len().clamp(1, n);
        let hex: String = bytes[..len].iter().map(|b| format!("{b:02x} ")).collect();
        let mut words = String::new();
        formatter.format(&instruction, &mut words);
        let _ = writeln!(text, "{at:#010x}:  {hex:<24} {words}");
        at = at.wrapping_add(len as u64);
    }
    Ok(text)
}

/// Rights as QEMU shows them.
fn rights(all: u64) -> String {
    let of = |bit: u64, c| if all & bit != 0 { c } else { '-' };
    [of(flag::USER, 'u'), 'r', of(flag::WRITABLE, 'w')].into_iter().collect()
}

/// Linear addresses with the same rights, together.
fn ranges(mem: &PhysMemory, tables: &Tables) -> String {
    let mut all: Vec<(u64, u64, u64)> = Vec::new();
    let whole = tables.visit(mem, TABLES, |leaf| {
        let (rights, end) = (leaf.all & (flag::USER | flag::WRITABLE), leaf.linear.wrapping_add(leaf.size));
        match all.last_mut() {
            Some((_, last, same)) if *last == leaf.linear && *same == rights => *last = end,
            _ => all.push((leaf.linear, end, rights)),
        }
        if all.len() < PAGES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    let line = |(start, end, all): &(u64, u64, u64)| {
        format!("{start:016x}-{end:016x} {:016x} {}\n", end.wrapping_sub(*start), rights(*all))
    };
    all.iter().map(line).collect::<String>() + cut(whole)
}

fn pages(mem: &PhysMemory, tables: &Tables) -> String {
    const FLAGS: [(u64, char); 9] = [
        (flag::NO_EXECUTE, 'X'),
        (flag::GLOBAL, 'G'),
        (flag::PAGE_SIZE, 'P'),
        (flag::DIRTY, 'D'),
        (flag::ACCESSED, 'A'),
        (flag::CACHE_DISABLE, 'C'),
        (flag::WRITE_THROUGH, 'T'),
        (flag::USER, 'U'),
        (flag::WRITABLE, 'W'),
    ];
    let (mut text, mut seen) = (String::new(), 0);
    let whole = tables.visit(mem, TABLES, |Leaf { linear, physical, entry, .. }| {
        let flags: String = FLAGS.map(|(bit, c)| if entry & bit != 0 { c } else { '-' }).iter().collect();
        let _ = writeln!(text, "{linear:016x}: {physical:016x} {flags}");
        seen += 1;
        if seen < PAGES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    text + cut(whole)
}

fn cut(whole: bool) -> &'static str {
    if whole { "" } else { "... there are more tables than are shown\n" }
}

/// Writes `size` bytes to a file; an address that cannot be read is an error.
fn save(mem: &PhysMemory, space: &Space<'_>, start: u64, size: u64, file: &str) -> io::Result<()> {
    let mut out = io::BufWriter::new(File::create(file)?);
    let (mut at, mut left, mut buf) = (start, size, vec![0; 1 << 16]);
    while left > 0 {
        let n = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if space.bytes(mem, at, &mut buf[..n]) < n {
            return Err(io::Error::other(format!("Invalid addr 0x{start:016x}/size {size} specified")));
        }
        out.write_all(&buf[..n])?;
        at = at.wrapping_add(n as u64);
        left -= n as u64;
    }
    out.flush()
}

impl Hmp {
    /// The chosen vCPU.
    pub(super) fn view(&self) -> Result<View, String> {
        let report = self.machine.report(self.chosen());
        report.map(View::new).ok_or_else(|| "the vCPU does not answer".into())
    }

    fn register(&self, name: &str) -> Result<u64, String> {
        self.view()?.register(name).ok_or_else(|| format!("unknown register '${name}'"))
    }

    pub(super) fn number(&self, args: &mut Args<'_>) -> Result<u64, Fault> {
        args.number(&|name| self.register(name))
    }

    /// A format, of which what is not told is as the last time.
    fn format(&self, args: &mut Args<'_>) -> Result<Format, Fault> {
        let mut usual = self.format.lock();
        let format = args.format(*usual)?;
        usual.kind = format.kind;
        if format.kind != 'i' {
            usual.size = format.size;
        }
        Ok(format)
    }

    fn memory(&self) -> Result<std::sync::Arc<PhysMemory>, Fault> {
        self.machine.memory().ok_or_else(|| "the machine is still being built".into())
    }

    pub(super) fn examine(&self, args: &mut Args<'_>, physical: bool) -> Answer {
        let format = self.format(args)?;
        let start = self.number(args)?;
        args.end()?;
        let mem = self.memory()?;
        // Physical memory is there whatever the vCPU does; what it decodes is its own.
        let view = if physical && format.kind != 'i' { None } else { Some(self.view()?) };
        let space = match &view {
            Some(view) if !physical => Space::Virtual(view),
            _ => Space::Physical,
        };
        match &view {
            Some(view) if format.kind == 'i' => disassemble(&mem, view, &space, start, format.count),
            _ => dump(&mem, &space, start, format),
        }
    }

    pub(super) fn print(&self, args: &mut Args<'_>) -> Answer {
        let format = self.format(args)?;
        let value = self.number(args)?;
        args.end()?;
        Ok(match format.kind {
            'o' if value == 0 => "0\n".into(),
            'o' => format!("0{value:o}\n"),
            'u' => format!("{value}\n"),
            'd' => format!("{}\n", value.cast_signed()),
            'c' => character(value) + "\n",
            _ => format!("{value:#x}\n"),
        })
    }

    pub(super) fn save_memory(&self, args: &mut Args<'_>, physical: bool) -> Answer {
        let start = self.number(args)?;
        // A word by itself: what follows may well begin with a slash, and is no divisor.
        let size = self.number(&mut Args(args.word()?))?;
        let file = args.file()?;
        args.end()?;
        let mem = self.memory()?;
        let end = (1 << 32) + mem.above_4g();
        if physical && start.checked_add(size).is_none_or(|last| last > end) {
            return Err(format!("Invalid addr 0x{start:016x}/size {size} specified").into());
        }
        let view = if physical { None } else { Some(self.view()?) };
        let space = view.as_ref().map_or(Space::Physical, Space::Virtual);
        save(&mem, &space, start, size, &file).map_err(|e| format!("{file}: {e}"))?;
        Ok(String::new())
    }

    /// The checksum that BSD's `sum` makes.
    pub(super) fn sum(&self, args: &mut Args<'_>) -> Answer {
        let (start, size) = (self.number(args)?, self.number(args)?);
        args.end()?;
        let mem = self.memory()?;
        if size > mem.ram().size() {
            return Err(format!("more than the {} bytes of RAM", mem.ram().size()).into());
        }
        let (mut sum, mut left, mut buf) = (0u16, size, vec![0; 1 << 16]);
        while left > 0 {
            let n = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            mem.read(start.wrapping_add(size - left), &mut buf[..n]);
            sum = buf[..n].iter().fold(sum, |sum, b| sum.rotate_right(1).wrapping_add(u16::from(*b)));
            left -= n as u64;
        }
        Ok(format!("{sum:05}\n"))
    }

    pub(super) fn port_read(&self, args: &mut Args<'_>) -> Answer {
        let format = self.format(args)?;
        let mut port = self.number(args)? as u16;
        let index = if !args.is_empty() { Some(self.number(args)? as u8) } else { None };
        args.end()?;
        let (size, letter) = width(format);
        if let Some(index) = index {
            self.machine.port_write(port, 1, index.into());
            port = port.wrapping_add(1);
        }
        let value = self.machine.port_read(port, size);
        Ok(format!("port{letter}[0x{port:04x}] = 0x{value:0digits$x}\n", digits = 2 * usize::from(size)))
    }

    pub(super) fn port_write(&self, args: &mut Args<'_>) -> Answer {
        let format = self.format(args)?;
        let (port, value) = (self.number(args)?, self.number(args)?);
        args.end()?;
        self.machine.port_write(port as u16, width(format).0, value as u32);
        Ok(String::new())
    }

    pub(super) fn mem(&self) -> Answer {
        let (mem, view) = (self.memory()?, self.view()?);
        Ok(if view.tables.is_on() { ranges(&mem, &view.tables) } else { "PG disabled\n".into() })
    }

    pub(super) fn tlb(&self) -> Answer {
        let (mem, view) = (self.memory()?, self.view()?);
        Ok(if view.tables.is_on() { pages(&mem, &view.tables) } else { "PG disabled\n".into() })
    }
}

/// Bytes that go through a port at once, and QEMU's letter for that.
fn width(format: Format) -> (u8, char) {
    match format.size {
        1 => (1, 'b'),
        2 => (2, 'w'),
        _ => (4, 'l'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mynah_mmu::{GuestRam, Paging};

    #[test]
    fn values_are_shown_as_under_qemu() {
        let mem = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
        mem.write(0x1000, &(0..32).collect::<Vec<u8>>());
        let of =
            |count, kind, size| dump(&mem, &Space::Physical, 0x1000, Format { count, kind, size }).unwrap();
        assert_eq!(
            of(5, 'x', 4),
            "0000000000001000: 0x03020100 0x07060504 0x0b0a0908 0x0f0e0d0c\n0000000000001010: 0x13121110\n"
        );
        assert_eq!(of(2, 'd', 1), "0000000000001000:   0   1\n");
        assert_eq!(of(1, 'o', 2), "0000000000001000: #   400\n");
        assert_eq!(of(1, 'u', 8), "0000000000001000:   506097522914230528\n");
        assert_eq!(of(2, 'c', 1), "0000000000001000: '\\x00' '\\x01'\n");
        assert_eq!(of(0, 'x', 8), "");
        let most = Format { count: usize::MAX, kind: 'x', size: 8 };
        assert!(dump(&mem, &Space::Physical, 0, most).is_err());
    }

    #[test]
    fn pages_with_the_same_rights_are_one_range_and_hostile_tables_have_an_end() {
        let mem = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
        let w = |at: u64, v: u64| mem.write(at, &v.to_le_bytes());
        [(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (0x4000, 0x5065), (0x4008, 0x9065)]
            .into_iter()
            .for_each(|(at, v)| w(at, v));
        w(0x4010, 0x8000_0000_0000_6103);
        let p = Paging {
            cr0: 1 << 31,
            cr3: 0x1000,
            cr4: 1 << 5,
            efer: 1 << 10,
            phys_bits: 40,
            a20_mask: !0,
            ..Paging::default()
        };
        assert_eq!(
            ranges(&mem, &Tables::new(p)),
            "0000000000000000-0000000000002000 0000000000002000 ur-\n\
             0000000000002000-0000000000003000 0000000000001000 -rw\n"
        );
        assert_eq!(
            pages(&mem, &Tables::new(p)),
            "0000000000000000: 0000000000005000 ---DA--U-\n\
             0000000000001000: 0000000000009000 ---DA--U-\n\
             0000000000002000: 0000000000006000 XG------W\n"
        );
        // A table all of whose entries are itself: 512^4 pages.
        (0..512).for_each(|n| w(0x1000 + 8 * n, 0x1007));
        assert!(ranges(&mem, &Tables::new(p)).ends_with("than are shown\n"));
        assert!(pages(&mem, &Tables::new(p)).ends_with("than are shown\n"));
    }
}
