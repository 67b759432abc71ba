//! QEMU's comma syntax: `first,key=value,flag`, with `,,` for a comma in a value.

use super::Error;
use super::size::{number_from, size_from};
use super::suggest::did_you_mean;
use crate::config::split_commas;

/// The properties of one option's value, each of which has to be asked for: [`Props::finish`] refuses the rest.
#[derive(Clone, Debug)]
pub struct Props {
    /// The option, with its dash, for messages.
    option: String,
    /// Key, value if one was given, and whether it was asked for.
    items: Vec<Item>,
    /// Every key that was asked for: what is accepted here, for messages.
    asked: Vec<&'static str>,
}

#[derive(Clone, Debug)]
struct Item {
    key: String,
    value: Option<String>,
    used: bool,
}

impl Props {
    /// Splits `text`. If the first part has no `=` it is the value of `first`, when the option has such a key.
    pub fn parse(option: &str, text: &str, first: Option<&str>) -> Props {
        let items = split_commas(text)
            .into_iter()
            .enumerate()
            // All that was given, if it is nothing, is a value.
            .filter(|(_, part)| !part.is_empty() || (first.is_some() && text.is_empty()))
            .map(|(i, part)| match (part.split_once('='), first) {
                // A path may well hold '=': it is a key only if it looks like one.
                (Some((key, value)), _) if is_key(key) => (key.to_string(), Some(value.to_string())),
                (_, Some(first)) if i == 0 => (first.to_string(), Some(part)),
                _ => (part, None),
            })
            .map(|(key, value)| Item { key, value, used: false })
            .collect();
        Props { option: option.into(), items, asked: Vec::new() }
    }

    /// An error in this option's value.
    pub fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::new(format!("{}: {what}", self.option))
    }

    /// An error in the value of `key`, which need not be named again if it is all that was given.
    fn refuse(&self, key: &str, value: &str, why: &str) -> Error {
        match self.option.strip_suffix(value).is_some_and(|before| before.ends_with(' ')) {
            true => self.error(why),
            false => self.error(format!("{key}={value}: {why}")),
        }
    }

    /// Names the option for messages from here on, for instance `-device isa-debug-exit`.
    pub fn rename(&mut self, option: String) {
        self.option = option;
    }

    /// The value of `key`, the last one if it was given more than once. A key without a value is an error.
    pub fn text(&mut self, key: &'static str) -> Result<Option<String>, Error> {
        match self.raw(key) {
            None => Ok(None),
            Some(Some(value)) => Ok(Some(value)),
            Some(None) => Err(self.error(format!("{key} needs a value: {key}=..."))),
        }
    }

    /// The values of `key`, which may be given several times.
    pub fn texts(&mut self, key: &'static str) -> Result<Vec<String>, Error> {
        let all =
            self.items.iter().filter(|i| i.key == key).map(|i| i.value.clone()).collect::<Option<Vec<_>>>();
        self.raw(key);
        all.ok_or_else(|| self.error(format!("{key} needs a value: {key}=...")))
    }

    /// `Some(None)` for a key without a value, `Some(Some(v))` for one with.
    fn raw(&mut self, key: &'static str) -> Option<Option<String>> {
        self.asked.push(key);
        let mut found = None;
        for item in self.items.iter_mut().filter(|i| i.key == key) {
            item.used = true;
            found = Some(item.value.clone());
        }
        found
    }

    /// A switch: `key=on|off|yes|no|true|false`, `key` for on and `nokey` for off.
    pub fn switch(&mut self, key: &'static str) -> Result<Option<bool>, Error> {
        let mut value = match self.raw(key) {
            None => None,
            Some(None) => Some(true),
            Some(Some(text)) => Some(parse_switch(&text).ok_or_else(|| {
                self.error(format!(
                    "{key}={text}: '{text}' is neither on nor off (on, off, yes, no, true, false)"
                ))
            })?),
        };
        for item in
            self.items.iter_mut().filter(|i| i.value.is_none() && i.key.strip_prefix("no") == Some(key))
        {
            item.used = true;
            value = Some(false);
        }
        Ok(value)
    }

    /// A switch that may also say `auto`, which is `Some(None)`.
    pub fn switch_or_auto(&mut self, key: &'static str) -> Result<Option<Option<bool>>, Error> {
        if self.items.iter().rev().find(|i| i.key == key).is_some_and(|i| i.value.as_deref() == Some("auto"))
        {
            self.raw(key);
            return Ok(Some(None));
        }
        Ok(self.switch(key)?.map(Some))
    }

    /// A number from `least` to `most`.
    pub fn number(&mut self, key: &'static str, least: u64, most: u64) -> Result<Option<u64>, Error> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        number_from(&text, least, most).map(Some).map_err(|why| self.refuse(key, &text, &why))
    }

    /// A size from `least` to `most` bytes; without a suffix it counts `unit` bytes.
    pub fn size(
        &mut self,
        key: &'static str,
        unit: u64,
        least: u64,
        most: u64,
    ) -> Result<Option<u64>, Error> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        size_from(&text, unit, least, most).map(Some).map_err(|why| self.refuse(key, &text, &why))
    }

    /// Takes a key that is accepted and has no effect here.
    pub fn ignore(&mut self, keys: &[&'static str]) {
        for key in keys {
            self.raw(key);
        }
    }

    /// All properties as they were given, in order, each counted as asked for. A key without a value is `on`.
    pub fn all(&mut self) -> Vec<(String, String)> {
        for item in &mut self.items {
            item.used = true;
        }
        self.items.iter().map(|i| (i.key.clone(), i.value.clone().unwrap_or_else(|| "on".into()))).collect()
    }

    /// The properties that nobody has asked for yet, as [`Props::all`] gives them.
    pub fn rest(&mut self) -> Vec<(String, String)> {
        self.items.retain(|i| !i.used);
        self.all()
    }

    /// Whether `help` or `?` stands among the properties.
    pub fn wants_help(&self) -> bool {
        self.items.iter().any(|i| match &i.value {
            None => i.key == "help" || i.key == "?",
            Some(v) => v == "help" || v == "?",
        })
    }

    /// Refuses what nobody asked for, and names the nearest key that exists.
    pub fn finish(self) -> Result<(), Error> {
        let Some(item) = self.items.iter().find(|i| !i.used) else { return Ok(()) };
        let hint = did_you_mean("", &item.key, self.asked.iter().copied());
        let accepted = if self.asked.is_empty() {
            "; it takes no properties".to_string()
        } else {
            format!(" (accepted: {})", self.asked.join(", "))
        };
        Err(self.error(format!(
            "unknown property '{}'{}",
            item.key,
            if hint.is_empty() { accepted } else { hint }
        )))
    }
}

fn is_key(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic())
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// QEMU's words for a switch.
pub fn parse_switch(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_part_may_leave_its_key_out() {
        let mut p = Props::parse("-m", "2G,slots=3", Some("size"));
        assert_eq!(p.text("size").unwrap().as_deref(), Some("2G"));
        assert_eq!(p.number("slots", 0, 9).unwrap(), Some(3));
        p.finish().unwrap();
    }

    #[test]
    fn nothing_is_a_value_where_one_is_expected() {
        let mut p = Props::parse("-m ", "", Some("size"));
        assert_eq!(p.text("size").unwrap().as_deref(), Some(""));
        Props::parse("-x", "", None).finish().unwrap();
    }

    #[test]
    fn doubled_commas_and_equals_signs_stay_in_values() {
        let mut p = Props::parse("-x", "path=/a,,b=c,server", None);
        assert_eq!(p.text("path").unwrap().as_deref(), Some("/a,b=c"));
        assert_eq!(p.switch("server").unwrap(), Some(true));
        let mut p = Props::parse("-x", "/dir/a=b", Some("path"));
        assert_eq!(p.text("path").unwrap().as_deref(), Some("/dir/a=b"));
    }

    #[test]
    fn switches_have_short_forms() {
        for (text, value) in [("wait", true), ("nowait", false), ("wait=off", false), ("wait=yes", true)] {
            let mut p = Props::parse("-x", text, None);
            assert_eq!(p.switch("wait").unwrap(), Some(value), "{text}");
            p.finish().unwrap();
        }
        let error = Props::parse("-x", "wait=perhaps", None).switch("wait").unwrap_err().to_string();
        assert!(error.starts_with("-x: wait=perhaps: "), "{error}");
    }

    #[test]
    fn an_unknown_property_is_named_with_the_nearest() {
        let mut p = Props::parse("-smp", "core=2", Some("cpus"));
        let _ = (p.number("cpus", 1, 9), p.number("cores", 1, 9));
        assert_eq!(
            p.finish().unwrap_err().to_string(),
            "-smp: unknown property 'core'; did you mean 'cores'?"
        );
        let mut p = Props::parse("-smp", "zzzzzzz=2", None);
        let _ = p.number("cores", 1, 9);
        assert_eq!(p.finish().unwrap_err().to_string(), "-smp: unknown property 'zzzzzzz' (accepted: cores)");
    }

    #[test]
    fn numbers_out_of_range_name_the_range() {
        let error = Props::parse("-x", "n=300", None).number("n", 0, 255).unwrap_err().to_string();
        assert_eq!(error, "-x: n=300: the number must be from 0 to 255");
    }
}
