//! What is said of images, for people and for programs, as `qemu-img` says it.
use super::super::print;
use mynah_block::{Detail, Details, Image, Snapshot};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// Prints a value as JSON, with four spaces as QEMU has it.
pub fn print_json(value: &Value) {
    let mut out = Vec::new();
    let form = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    if value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, form)).is_ok() {
        print(&format!("{}\n", String::from_utf8_lossy(&out)));
    }
}

/// Bytes with three digits that count: `1.26 MiB`.
pub fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit < 6 {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 1.0 {
        3
    } else if value < 10.0 {
        2
    } else if value < 100.0 {
        1
    } else {
        0
    };
    let mut text = format!("{value:.digits$}");
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    text + [" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"][unit]
}

/// Day and time of seconds since 1970, in UTC.
pub fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's days-to-civil: years begin in March, so that the leap day is the last.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

/// The table of internal snapshots.
pub fn snapshots(list: &[Snapshot]) -> String {
    let mut text = String::from("Snapshot list:\n");
    let _ = writeln!(
        text,
        "{:<9} {:<16} {:>8} {:>19} {:>12} {:>10}",
        "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT"
    );
    for s in list {
        let clock = s.vm_clock_nsec / 1_000_000;
        let clock = format!(
            "{:02}:{:02}:{:02}.{:03}",
            clock / 3_600_000,
            clock / 60_000 % 60,
            clock / 1000 % 60,
            clock % 1000
        );
        let _ = writeln!(
            text,
            "{:<9} {:<16} {:>8} {:>19} {:>12} {:>10}",
            s.id,
            s.name,
            human(s.vm_state_size),
            date(u64::from(s.date_sec)),
            clock,
            s.icount.map(|n| n.to_string()).unwrap_or_default()
        );
    }
    text
}

/// What `info` tells of one image, for programs.
pub fn info_json(name: &str, full_backing: Option<&str>, image: &dyn Image, actual: u64) -> Value {
    let details = details(name, image);
    let mut map = Map::new();
    map.insert("filename".into(), json!(name));
    map.insert("format".into(), json!(image.format()));
    map.insert("virtual-size".into(), json!(image.size()));
    map.insert("actual-size".into(), json!(actual));
    map.insert("dirty-flag".into(), json!(details.dirty));
    if let Some(size) = details.cluster_size {
        map.insert("cluster-size".into(), json!(size));
    }
    if let Some(file) = &details.backing_file {
        map.insert("backing-filename".into(), json!(file));
        map.insert("full-backing-filename".into(), json!(full_backing.unwrap_or(file)));
    }
    if let Some(format) = &details.backing_format {
        map.insert("backing-filename-format".into(), json!(format));
    }
    if let Ok(list) = image.snapshots()
        && !list.is_empty()
    {
        map.insert("snapshots".into(), list.iter().map(snapshot_json).collect());
    }
    if !details.specific.is_empty() {
        let data = specific_json(&details.specific);
        map.insert("format-specific".into(), json!({ "type": image.format(), "data": data }));
    }
    Value::Object(map)
}

/// What an image has to say of itself; parts of it that are in its own file have that one's name.
fn details(name: &str, image: &dyn Image) -> Details {
    let mut details = image.details();
    for (_, value) in &mut details.specific {
        let Detail::List(parts) = value else { continue };
        for (what, file) in parts.iter_mut().flatten() {
            if let ("filename", Detail::Text(file)) = (*what, file)
                && file.is_empty()
            {
                *file = name.into();
            }
        }
    }
    details
}

/// What a format has to say of itself.
fn specific_json(specific: &[(&'static str, Detail)]) -> Value {
    let value = |value: &Detail| match value {
        Detail::Switch(on) => json!(on),
        Detail::Number(n) => json!(n),
        Detail::Text(text) => json!(text),
        Detail::List(parts) => parts.iter().map(|part| specific_json(part)).collect(),
    };
    Value::Object(specific.iter().map(|(name, v)| (name.replace(' ', "-"), value(v))).collect())
}

fn snapshot_json(s: &Snapshot) -> Value {
    let mut value = json!({
        "id": s.id,
        "name": s.name,
        "vm-state-size": s.vm_state_size,
        "date-sec": s.date_sec,
        "date-nsec": s.date_nsec,
        "vm-clock-sec": s.vm_clock_nsec / 1_000_000_000,
        "vm-clock-nsec": s.vm_clock_nsec % 1_000_000_000,
    });
    if let Some(n) = s.icount {
        value["icount"] = json!(n);
    }
    value
}

/// What `info` tells of one image, for people.
pub fn info(name: &str, full_backing: Option<&str>, image: &dyn Image, actual: u64) -> String {
    let details = details(name, image);
    let mut text = String::new();
    let _ = writeln!(text, "image: {name}\nfile format: {}", image.format());
    let _ = writeln!(text, "virtual size: {} ({} bytes)", human(image.size()), image.size());
    let _ = writeln!(text, "disk size: {}", human(actual));
    if let Some(size) = details.cluster_size {
        let _ = writeln!(text, "cluster_size: {size}");
    }
    if details.dirty {
        text += "cleanly shut down: no\n";
    }
    if let Some(file) = &details.backing_file {
        match full_backing.filter(|full| full != file) {
            Some(full) => _ = writeln!(text, "backing file: {file} (actual path: {full})"),
            None => _ = writeln!(text, "backing file: {file}"),
        }
    }
    if let Some(format) = &details.backing_format {
        let _ = writeln!(text, "backing file format: {format}");
    }
    if let Ok(list) = image.snapshots()
        && !list.is_empty()
    {
        text += &snapshots(&list);
    }
    if !details.specific.is_empty() {
        text += "Format specific information:\n";
    }
    specific(&mut text, &details.specific, 1);
    text
}

/// What a format has to say of itself, four spaces for each level.
fn specific(text: &mut String, all: &[(&'static str, Detail)], level: usize) {
    let space = " ".repeat(level * 4);
    for (name, value) in all {
        match value {
            Detail::Switch(on) => _ = writeln!(text, "{space}{name}: {on}"),
            Detail::Number(n) => _ = writeln!(text, "{space}{name}: {n}"),
            Detail::Text(word) => _ = writeln!(text, "{space}{name}: {word}"),
            Detail::List(parts) => {
                let _ = writeln!(text, "{space}{name}:");
                for (n, part) in parts.iter().enumerate() {
                    let _ = writeln!(text, "{space}    [{n}]:");
                    specific(text, part, level + 2);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_dates_are_as_people_write_them() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(67_108_864), "64 MiB");
        assert_eq!(human(331_776), "324 KiB");
        assert_eq!(human(1_323_008), "1.26 MiB");
        assert_eq!(human(1023 << 10), "0.999 MiB");
        assert_eq!(human(1_500_000_000), "1.4 GiB");
        assert_eq!(date(0), "1970-01-01 00:00:00");
        assert_eq!(date(1_795_403_850), "2026-11-23 03:17:30");
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00");
    }
}
