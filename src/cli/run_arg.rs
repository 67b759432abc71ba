//! The clock, boot order, logs, actions and small things: `-rtc`, `-boot`, `-d`, `-D`, `-dfilter`, `-action`, `-uuid`,
//! `-fw_cfg`, `-echr`, and networks, which are kept as they are given.

use super::Error;
use super::props::Props;
use super::size::parse_number;
use super::suggest::did_you_mean;
use crate::config::{
    Boot, Config, FwCfgData, FwCfgItem, LogItem, PanicAction, RebootAction, Rtc, RtcBase, RtcClock,
    ShutdownAction, WatchdogAction,
};
use mynah_devices::misc::vmgenid::Guid;
use std::ffi::OsStr;
use std::path::PathBuf;

/// Picks the meaning of `key=word` among `words`.
fn choose<T: Copy>(props: &Props, key: &str, word: &str, words: &[(&str, T)]) -> Result<T, Error> {
    words.iter().find(|(w, _)| *w == word).map(|(_, meaning)| *meaning).ok_or_else(|| {
        let accepted = words.iter().map(|w| w.0).collect::<Vec<_>>().join(", ");
        props.error(format!("{key}={word}: accepted are {accepted}"))
    })
}

/// Parses `-rtc`, changing `rtc`.
pub fn rtc(text: &str, rtc: &mut Rtc) -> Result<(), Error> {
    let mut props = Props::parse("-rtc", text, None);
    if let Some(base) = props.text("base")? {
        rtc.base = match base.as_str() {
            "utc" => RtcBase::Utc,
            "localtime" => RtcBase::LocalTime,
            date => RtcBase::At(parse_date(date).ok_or_else(|| {
                props.error(format!(
                    "base={date}: accepted are utc, localtime, or a date such as 2026-01-31T12:00:00"
                ))
            })?),
        };
    }
    if let Some(clock) = props.text("clock")? {
        let clocks = [("host", RtcClock::Host), ("rt", RtcClock::Monotonic), ("vm", RtcClock::Virtual)];
        rtc.clock = choose(&props, "clock", &clock, &clocks)?;
    }
    if let Some(fix) = props.text("driftfix")? {
        rtc.slew = choose(&props, "driftfix", &fix, &[("none", false), ("slew", true)])?;
    }
    props.finish()
}

/// Seconds from 1970-01-01 to `YYYY-MM-DD` or `YYYY-MM-DDTHH:MM:SS`.
fn parse_date(text: &str) -> Option<i64> {
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00"));
    let numbers = |text: &str, by: char| -> Option<[i64; 3]> {
        let parts: Vec<&str> = text.split(by).collect();
        let [a, b, c] = parts.as_slice() else { return None };
        let number = |s: &str| s.bytes().all(|b| b.is_ascii_digit()).then(|| s.parse().ok()).flatten();
        Some([number(a)?, number(b)?, number(c)?])
    };
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let length = *lengths.get(usize::try_from(month - 1).ok()?)?;
    if !(1970..=9999).contains(&year)
        || !(1..=length).contains(&day)
        || hour > 23
        || minute > 59
        || second > 59
    {
        return None;
    }
    let years =
        (1970..year).map(|y| 365 + i64::from(y % 4 == 0 && (y % 100 != 0 || y % 400 == 0))).sum::<i64>();
    let days = years + lengths[..(month - 1) as usize].iter().sum::<i64>() + day - 1;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Parses `-boot`, changing `boot`.
pub fn boot(text: &str, boot: &mut Boot) -> Result<(), Error> {
    let mut props = Props::parse("-boot", text, Some("order"));
    for (key, field) in [("order", &mut boot.order), ("once", &mut boot.once)] {
        if let Some(letters) = props.text(key)? {
            let twice = letters.char_indices().any(|(i, c)| letters[..i].contains(c));
            if twice || !letters.chars().all(|c| ('a'..='p').contains(&c)) {
                return Err(props.error(format!(
                    "{key}={letters}: accepted are letters from a to p, each once (a floppy, c disk, d CD-ROM, n network)"
                )));
            }
            *field = letters;
        }
    }
    boot.menu = props.switch("menu")?.unwrap_or(boot.menu);
    boot.strict = props.switch("strict")?.unwrap_or(boot.strict);
    let most = u64::from(u16::MAX);
    boot.splash_time = props.number("splash-time", 0, most)?.map(|n| n as u32).or(boot.splash_time);
    // -1 is QEMU's word for never.
    let never = props.text("reboot-timeout")?.as_deref() == Some("-1");
    if !never {
        boot.reboot_timeout =
            props.number("reboot-timeout", 0, most)?.map(|n| n as u32).or(boot.reboot_timeout);
    }
    if let Some(file) = props.text("splash")? {
        return Err(props.error(format!("splash={file}: not supported yet")));
    }
    props.finish()
}

/// The log items: name, item, and what it logs.
const LOG_ITEMS: &[(&str, LogItem, &str)] = &[
    ("in_asm", LogItem::InAsm, "guest code when it is first decoded"),
    ("ir", LogItem::Ir, "the translator's own form of guest code"),
    ("op", LogItem::Ir, "the same, by QEMU's name"),
    ("out_asm", LogItem::OutAsm, "host code that was generated"),
    ("int", LogItem::Int, "interrupts and exceptions"),
    ("exec", LogItem::Exec, "blocks as they are run"),
    ("cpu", LogItem::Cpu, "registers before them"),
    ("fpu", LogItem::Fpu, "x87 and SSE registers too"),
    ("mmu", LogItem::Mmu, "page faults and flushes"),
    ("pcall", LogItem::Pcall, "far calls and returns in protected mode"),
    ("cpu_reset", LogItem::CpuReset, "the state before a reset"),
    ("unimp", LogItem::Unimp, "what a guest uses and Mynah has not"),
    ("guest_errors", LogItem::GuestErrors, "what a guest does against a data sheet"),
    ("net", LogItem::Net, "a line for each frame that a network card sends or gets"),
    ("nochain", LogItem::NoChain, "exec and cpu miss no block: none goes on to another by itself"),
];

/// Items of QEMU's that concern its own innards.
const LOG_LATER: &[&str] =
    &["op_opt", "op_ind", "op_plugin", "page", "plugin", "strace", "tid", "vpu", "all"];

/// Parses `-d`.
pub fn log_items(text: &str) -> Result<Vec<LogItem>, Error> {
    let mut items = Vec::new();
    for name in text.split(',').filter(|n| !n.is_empty()) {
        if name == "help" || name == "?" {
            let mut help = "Log items:\n".to_string();
            for (name, _, what) in LOG_ITEMS {
                help += &format!("  {name:13} {what}\n");
            }
            return Err(Error::info(help));
        }
        match LOG_ITEMS.iter().find(|i| i.0 == name) {
            Some((_, item, _)) if items.contains(item) => {}
            Some((_, item, _)) => items.push(*item),
            None if LOG_LATER.contains(&name) || name.starts_with("trace:") => {
                return Err(Error::new(format!("-d {text}: log item '{name}' is not supported yet")));
            }
            None => {
                let hint = did_you_mean("", name, LOG_ITEMS.iter().map(|i| i.0));
                let hint = if hint.is_empty() { " ('-d help' lists them)".into() } else { hint };
                return Err(Error::new(format!("-d {text}: unknown log item '{name}'{hint}")));
            }
        }
    }
    Ok(items)
}

/// Parses `-D`: `%d` in the name becomes the process's number.
pub fn log_file(name: &OsStr) -> Result<PathBuf, Error> {
    let Some(text) = name.to_str() else { return Ok(name.into()) };
    let signs = text.matches('%').count();
    if signs > usize::from(text.contains("%d")) {
        return Err(Error::new(format!(
            "-D {text}: accepted is one %d, for the process's number, and no other %"
        )));
    }
    Ok(text.replace("%d", &std::process::id().to_string()).into())
}

/// Parses `-dfilter`: `START+LENGTH`, `END-LENGTH` and `START..END`, separated by commas.
pub fn log_filter(text: &str) -> Result<Vec<(u64, u64)>, Error> {
    let range = |part: &str| -> Option<(u64, u64)> {
        let number = |t: &str| parse_number(t).ok();
        let (first, last) = if let Some((start, end)) = part.split_once("..") {
            (number(start)?, number(end)?)
        } else if let Some((start, length)) = part.split_once('+') {
            let start = number(start)?;
            (start, start.checked_add(number(length)?.checked_sub(1)?)?)
        } else {
            let (end, length) = part.split_once('-')?;
            let end = number(end)?;
            (end.checked_sub(number(length)?.checked_sub(1)?)?, end)
        };
        (first <= last).then_some((first, last))
    };
    text.split(',')
        .map(|part| {
            range(part).ok_or_else(|| {
                Error::new(format!(
                    "-dfilter {text}: '{part}' is no range (accepted: START+LENGTH, END-LENGTH, START..END)"
                ))
            })
        })
        .collect()
}

/// Parses `-action`, changing `config`.
pub fn action(text: &str, config: &mut Config) -> Result<(), Error> {
    let mut props = Props::parse("-action", text, None);
    if let Some(word) = props.text("reboot")? {
        let actions = [("reset", RebootAction::Reset), ("shutdown", RebootAction::Shutdown)];
        config.on_reboot = choose(&props, "reboot", &word, &actions)?;
    }
    if let Some(word) = props.text("shutdown")? {
        let actions = [("poweroff", ShutdownAction::PowerOff), ("pause", ShutdownAction::Pause)];
        config.on_shutdown = choose(&props, "shutdown", &word, &actions)?;
    }
    if let Some(word) = props.text("panic")? {
        let actions = [
            ("none", PanicAction::None),
            ("pause", PanicAction::Pause),
            ("shutdown", PanicAction::Shutdown),
            ("exit-failure", PanicAction::ExitFailure),
        ];
        config.on_panic = choose(&props, "panic", &word, &actions)?;
    }
    if let Some(word) = props.text("watchdog")? {
        config.on_watchdog = choose(&props, "watchdog", &word, &WatchdogAction::ALL)?;
    }
    props.finish()
}

/// Parses `-watchdog-action`.
pub fn watchdog_action(text: &str) -> Result<WatchdogAction, Error> {
    choose(&Props::parse("-watchdog-action", text, Some("action")), "action", text, &WatchdogAction::ALL)
}

/// Parses `-uuid`: 32 hexadecimal digits, in groups of 8-4-4-4-12 or without dashes.
pub fn uuid(text: &str) -> Result<[u8; 16], Error> {
    let no_uuid =
        || Error::new(format!("-uuid {text}: that is no UUID, such as 12345678-9abc-def0-1234-56789abcdef0"));
    Guid::parse(text).map(|Guid(bytes)| bytes).ok_or_else(no_uuid)
}

/// Parses `-fw_cfg`. A name has at most 55 characters, as the file directory of fw_cfg holds 56 with the closing zero.
pub fn fw_cfg(text: &str) -> Result<FwCfgItem, Error> {
    let mut props = Props::parse("-fw_cfg", text, Some("name"));
    let name = props.text("name")?.unwrap_or_default();
    if name.is_empty() || name.len() > 55 {
        return Err(
            props.error(format!("name={name}: a name has 1 to 55 characters, such as opt/org.test/a"))
        );
    }
    let data = match (props.text("file")?, props.text("string")?) {
        (Some(file), None) => FwCfgData::File(file.into()),
        (None, Some(text)) => FwCfgData::Text(text),
        _ => return Err(props.error("a file=FILE or a string=TEXT (one of them) is missing")),
    };
    props.finish()?;
    Ok(FwCfgItem { name, data })
}

/// Parses `-echr`: the code of a control character, or of any other.
pub fn escape(text: &str) -> Result<u8, Error> {
    let code = parse_number(text).ok().and_then(|n| u8::try_from(n).ok());
    code.ok_or_else(|| {
        Error::new(format!("-echr {text}: accepted is a character's code from 0 to 255 (1 is Ctrl-A)"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks() {
        let parse = |text: &str| {
            let mut r = Rtc::default();
            rtc(text, &mut r).map(|()| r).map_err(|e| e.to_string())
        };
        assert_eq!(parse("base=localtime,clock=vm").unwrap().clock, RtcClock::Virtual);
        assert_eq!(parse("base=1970-01-01").unwrap().base, RtcBase::At(0));
        assert_eq!(parse("base=2000-03-01T00:00:01").unwrap().base, RtcBase::At(951_868_801));
        assert_eq!(parse("base=2026-01-31T12:00:00").unwrap().base, RtcBase::At(1_769_860_800));
        for bad in
            ["base=2026-02-29", "base=2026-13-01", "base=2026-00-01", "base=now", "base=2026-01-01T24:00:00"]
        {
            assert!(parse(bad).unwrap_err().contains("accepted are utc, localtime"), "{bad}");
        }
        assert_eq!(parse("clock=sun").unwrap_err(), "-rtc: clock=sun: accepted are host, rt, vm");
    }

    #[test]
    fn boot_orders() {
        let parse = |text: &str| {
            let mut b = Boot::default();
            boot(text, &mut b).map(|()| b).map_err(|e| e.to_string())
        };
        assert_eq!(parse("dc").unwrap().order, "dc");
        let b = parse("order=c,once=d,menu=on,splash-time=500,strict=on,reboot-timeout=-1").unwrap();
        assert_eq!((b.order.as_str(), b.once.as_str(), b.menu, b.strict), ("c", "d", true, true));
        assert_eq!((b.splash_time, b.reboot_timeout), (Some(500), None));
        assert!(parse("cc").unwrap_err().contains("each once"));
        assert!(parse("z").unwrap_err().contains("from a to p"));
    }

    #[test]
    fn logs() {
        assert_eq!(log_items("int,cpu_reset,int").unwrap(), [LogItem::Int, LogItem::CpuReset]);
        assert_eq!(log_items("ir,out_asm,op").unwrap(), [LogItem::Ir, LogItem::OutAsm]);
        assert_eq!(
            log_items("cpu_rest").unwrap_err().to_string(),
            "-d cpu_rest: unknown log item 'cpu_rest'; did you mean 'cpu_reset'?"
        );
        assert!(log_items("int,strace").unwrap_err().to_string().contains("not supported yet"));
        assert!(log_items("help").unwrap_err().is_info());
        let file = log_file(OsStr::new("log-%d.txt")).unwrap();
        assert_eq!(file, PathBuf::from(format!("log-{}.txt", std::process::id())));
        assert!(log_file(OsStr::new("%s")).is_err());
        assert!(log_file(OsStr::new("%d%d")).is_err());
        assert_eq!(
            log_filter("0x1000+0x100,0x8000..0x8fff,0x20-0x10").unwrap(),
            [(0x1000, 0x10FF), (0x8000, 0x8FFF), (0x11, 0x20)]
        );
        for bad in ["", "5", "9..8", "0+0", "0xffffffffffffffff+2", "0-2"] {
            assert!(log_filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn actions() {
        let mut c = Config::default();
        action("reboot=shutdown,shutdown=pause,panic=exit-failure", &mut c).unwrap();
        assert_eq!(
            (c.on_reboot, c.on_shutdown, c.on_panic),
            (RebootAction::Shutdown, ShutdownAction::Pause, PanicAction::ExitFailure)
        );
        assert!(
            action("reboot=never", &mut c).unwrap_err().to_string().contains("accepted are reset, shutdown")
        );
        action("watchdog=inject-nmi", &mut c).unwrap();
        assert_eq!(c.on_watchdog, WatchdogAction::InjectNmi);
        assert_eq!(watchdog_action("pause").unwrap(), WatchdogAction::Pause);
        assert!(action("watchdog=bark", &mut c).is_err() && watchdog_action("bark").is_err());
    }

    #[test]
    fn uuids() {
        let id = uuid("12345678-9abc-def0-1234-56789ABCDEF0").unwrap();
        assert_eq!(id[..4], [0x12, 0x34, 0x56, 0x78]);
        assert_eq!(uuid("123456789abcdef0123456789abcdef0").unwrap(), id);
        for bad in ["", "12", "12345678-9abc-def0-1234-56789abcdefg", "1234-56789abcdef0123456789abcdef0ab"] {
            assert!(uuid(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn firmware_items() {
        let item = fw_cfg("opt/org.test/a,string=b,,c").unwrap();
        assert_eq!((item.name.as_str(), item.data), ("opt/org.test/a", FwCfgData::Text("b,c".into())));
        assert!(fw_cfg("name=a").is_err());
        assert!(fw_cfg("name=a,file=b,string=c").is_err());
        assert!(fw_cfg(&format!("name={},string=c", "n".repeat(56))).is_err());
    }

    #[test]
    fn escapes() {
        assert_eq!(escape("0x14").unwrap(), 0x14);
        assert!(escape("256").is_err());
        assert!(escape("^T").is_err());
    }
}
