//! The guest's records as text.
//!
//! `#GP(0x18) at name`, then what is not as usual: `cs=` (usual: the flat code of level 0), `fl=` (system flags that
//! were pushed), `h=` (flags the handler was entered with), `hcs=` (the handler's CS), `cr2=` for page faults, `dr6=`
//! for debug exceptions (the bits that are set beyond those that always are), `stack=` (the handler's stack pointer at
//! the frame, where a test asks for it), `sp=` (the interrupted SS:ESP where the level changed).
use std::collections::BTreeMap;
use std::fmt::Write;

const NAMES: [&str; 22] = [
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "#9", "#TS", "#NP", "#SS", "#GP", "#PF",
    "#15", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
];

const FLAGS: [(u64, &str); 10] = [
    (8, "TF"),
    (9, "IF"),
    (10, "DF"),
    (14, "NT"),
    (16, "RF"),
    (17, "VM"),
    (18, "AC"),
    (19, "VIF"),
    (20, "VIP"),
    (21, "ID"),
];

/// What lines tell.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// The handler's stack, and the interrupted one.
    pub stacks: bool,
    /// A fault that did not push RF. (QEMU 7.2 never pushes it.)
    pub rf: bool,
}

/// The names of the system flags that are set.
pub fn flags(f: u64) -> String {
    let mut names: Vec<String> = Vec::new();
    for (bit, name) in FLAGS {
        if f >> bit & 1 != 0 {
            names.push(name.to_owned());
        }
    }
    let iopl = f >> 12 & 3;
    if iopl != 0 {
        names.push(format!("IOPL{iopl}"));
    }
    names.join("|")
}

/// The name of an address, exactly or as an instruction's end.
fn symbol(names: &BTreeMap<u32, String>, at: u64) -> String {
    let near = u32::try_from(at).ok().and_then(|a| names.range(..=a).next_back().map(|(b, n)| (a - b, n)));
    match near {
        Some((0, n)) => n.clone(),
        Some((d @ 1..=40, n)) => format!("{n}+{d}"),
        _ => format!("{at:#x}"),
    }
}

/// Faults by SDM volume 3A, table 6-1: they push RF set (volume 3B, 17.3.1.1), so their lines say so only if it is not:
/// `!RF`. Not #DB: only its instruction breakpoints are faults.
fn is_fault(vector: u64) -> bool {
    matches!(vector, 0 | 5..=7 | 10..=14 | 16 | 17 | 19 | 20 | 21)
}

fn record(line: &str, names: &BTreeMap<u32, String>, style: Style) -> Option<String> {
    let mut words = line.split_whitespace();
    let long = match words.next()? {
        "E" => false,
        "L" => true,
        _ => return None,
    };
    let f: Vec<u64> = words.map(|w| u64::from_str_radix(w, 16)).collect::<Result<_, _>>().ok()?;
    let mut f = f.into_iter();
    let mut next = |wide: bool| -> Option<u64> {
        let v = f.next()?;
        if wide { Some(v << 32 | f.next()?) } else { Some(v) }
    };
    let (vector, error) = (next(false)?, next(false)?);
    let eip = next(long)?;
    let (cs, efl, hfl, hcs, hss, hsp) =
        (next(false)?, next(false)?, next(false)?, next(false)?, next(false)?, next(false)?);
    let (esp, ss, cr2, dr6) = (next(long)?, next(false)?, next(long)?, next(false)?);
    let cs = cs & 0xffff;
    let mut s = match NAMES.get(vector as usize) {
        Some(n) => (*n).to_owned(),
        None => format!("int {vector:#x}"),
    };
    if crate::stubs::has_error_code(vector as u8) {
        write!(s, "({error:#x})").ok()?;
    }
    // In virtual-8086 mode programs are named by linear address.
    let lin = if efl >> 17 & 1 != 0 && !long { (cs << 4) + eip } else { eip };
    write!(s, " at {}", symbol(names, lin)).ok()?;
    let (usual, level) = (if long { 0x48 } else { 8 }, cs & 3);
    if cs != usual {
        write!(s, " cs={cs:#x}").ok()?;
    }
    let mut fl = flags(efl & !if is_fault(vector) { 1 << 16 } else { 0 });
    if style.rf && is_fault(vector) && efl >> 16 & 1 == 0 {
        fl += "!RF";
    }
    if !fl.is_empty() {
        write!(s, " fl={fl}").ok()?;
    }
    let h = flags(hfl & 0x3_4300);
    if !h.is_empty() {
        write!(s, " h={h}").ok()?;
    }
    if hcs != usual {
        write!(s, " hcs={hcs:#x}").ok()?;
    }
    let outer = ss != 0xffff_ffff && (!long || level > (hcs & 3));
    if outer && style.stacks {
        write!(s, " sp={:x}:{esp:x}", ss & 0xffff).ok()?;
    }
    if style.stacks {
        write!(s, " stack={hss:x}:{hsp:x}").ok()?;
    }
    match vector {
        1 => write!(s, " dr6={:x}", dr6 & 0xf00f).ok()?,
        14 => write!(s, " cr2={}", symbol(names, cr2)).ok()?,
        _ => {}
    }
    Some(s)
}

/// A line `=name XXXXXXXX ...` shows 32-bit values, `%name XXXXXXXX XXXXXXXX` one of 64 bits.
fn values(line: &str, names: &BTreeMap<u32, String>) -> Option<String> {
    let (name, words) = line.strip_prefix(['=', '%'])?.split_once("  ")?;
    let words =
        words.split_whitespace().map(|w| u64::from_str_radix(w, 16).ok()).collect::<Option<Vec<_>>>()?;
    let value = |v: u64| match u32::try_from(v).ok().and_then(|a| names.get(&a)) {
        Some(n) => n.clone(),
        None => format!("{v:#x}"),
    };
    let shown = match words.as_slice() {
        [high, low] if line.starts_with('%') => value(high << 32 | low),
        all => all.iter().map(|v| value(*v)).collect::<Vec<_>>().join(" "),
    };
    Some(format!("{name}={shown}"))
}

/// The log as text: records of exceptions and values made readable, the guest's own words as they are.
pub fn decode(raw: &str, names: &BTreeMap<u32, String>, style: Style) -> String {
    let mut out = String::new();
    for line in raw.lines() {
        if let Some(r) = record(line, names, style) {
            out += &r;
        } else if let Some(v) = values(line, names) {
            out += &v;
        } else {
            out += line;
        }
        out += "\n";
    }
    out
}

/// A line with the EXT bit of its error code clear.
pub fn without_ext(line: &str) -> String {
    let cut =
        ["#TS(0x", "#NP(0x", "#SS(0x", "#GP(0x"].iter().find_map(|p| line.strip_prefix(p)?.split_once(')'));
    match cut.and_then(|(code, rest)| Some((u32::from_str_radix(code, 16).ok()?, rest))) {
        Some((code, rest)) => format!("{}{:#x}){rest}", &line[..4], code & !1),
        None => line.to_owned(),
    }
}

/// A page fault's line with P clear if RSVD is set.
pub fn reserved_without_p(line: &str) -> String {
    let cut = line.strip_prefix("#PF(0x").and_then(|l| l.split_once(')'));
    match cut.and_then(|(code, rest)| Some((u32::from_str_radix(code, 16).ok()?, rest))) {
        Some((code, rest)) if code & 8 != 0 => format!("#PF({:#x}){rest}", code & !1),
        _ => line.to_owned(),
    }
}

/// Two logs side by side, for a panic message.
pub fn difference(who: &str, want: &str, got: &str) -> String {
    let mut s = format!("--- {who}: the log differs (- expected, + got)\n");
    // A lost guest may write very much.
    let (w, g): (Vec<_>, Vec<_>) = (want.lines().collect(), got.lines().take(400).collect());
    // The longest common subsequence; logs are short.
    let mut best = vec![vec![0u32; g.len() + 1]; w.len() + 1];
    for i in (0..w.len()).rev() {
        for j in (0..g.len()).rev() {
            best[i][j] =
                if w[i] == g[j] { best[i + 1][j + 1] + 1 } else { best[i + 1][j].max(best[i][j + 1]) };
        }
    }
    let (mut i, mut j) = (0, 0);
    while i < w.len() || j < g.len() {
        if i < w.len() && j < g.len() && w[i] == g[j] {
            s += &format!("  {}\n", w[i]);
            i += 1;
            j += 1;
        } else if i < w.len() && (j == g.len() || best[i + 1][j] >= best[i][j + 1]) {
            s += &format!("- {}\n", w[i]);
            i += 1;
        } else {
            s += &format!("+ {}\n", g[j]);
            j += 1;
        }
    }
    s
}
