//! From arguments to options: `-name`, `--name`, the argument that follows, and what stands alone.

use super::Error;
use super::options::{OPTIONS, OptionDef, Status, find};
use super::suggest::did_you_mean;
use std::ffi::{OsStr, OsString};

/// One option as it was given.
#[derive(Clone, Debug)]
pub struct Given {
    /// Its row in the table.
    pub option: &'static OptionDef,
    /// Its argument, empty for an option without one.
    pub value: OsString,
    /// The argument stood alone: the option is what that means.
    pub alone: bool,
}

impl Given {
    /// The option with its dash, for messages.
    pub fn dashed(&self) -> String {
        format!("-{}", self.option.name)
    }

    /// The argument as text, for all but plain file names.
    pub fn text(&self) -> Result<&str, Error> {
        self.value.to_str().ok_or_else(|| {
            Error::new(format!(
                "{} {}: the value is not valid UTF-8",
                self.dashed(),
                self.value.to_string_lossy()
            ))
        })
    }
}

/// Splits `args` into options. An argument that stands alone is a disk image, as in QEMU: it comes out as `-hda`.
pub fn parse(args: &[OsString]) -> Result<Vec<Given>, Error> {
    let mut given = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(name) = option_name(arg)? else {
            let Some(option) = find("hda") else { continue };
            given.push(Given { option, value: arg.clone(), alone: true });
            continue;
        };
        let Some(option) = find(name) else { return Err(unknown(name, arg)) };
        if option.status == Status::Later {
            return Err(Error::new(format!("-{name} ({}): not supported yet", option.summary)));
        }
        let value = match option.value {
            None => OsString::new(),
            Some(what) => args
                .next()
                .ok_or_else(|| Error::new(format!("-{name} needs an argument: -{name} {what}")))?
                .clone(),
        };
        given.push(Given { option, value, alone: false });
    }
    Ok(given)
}

/// The name in `-name` or `--name`; `None` for an argument that is no option.
fn option_name(arg: &OsStr) -> Result<Option<&str>, Error> {
    if !arg.as_encoded_bytes().starts_with(b"-") {
        return Ok(None);
    }
    let text =
        arg.to_str().ok_or_else(|| Error::new(format!("unknown option '{}'", arg.to_string_lossy())))?;
    let name = text.strip_prefix("--").or_else(|| text.strip_prefix('-')).unwrap_or(text);
    if name.is_empty() {
        return Err(Error::new(format!("'{text}' is no option and no file name")));
    }
    Ok(Some(name))
}

fn unknown(name: &str, arg: &OsStr) -> Error {
    let arg = arg.to_string_lossy();
    // `-m=512`: the option is right, its form is not.
    if let Some((before, value)) = name.split_once('=')
        && let Some(option) = find(before)
    {
        let hint = if option.value.is_some() { format!("-{before} {value}") } else { format!("-{before}") };
        return Error::new(format!("unknown option '{arg}'; an option's argument stands apart: '{hint}'"));
    }
    let known = OPTIONS.iter().filter(|o| o.status != Status::Later).map(|o| o.name);
    let mut hint = did_you_mean("-", name, known);
    // `-m512`, `-smp2`: an argument glued on.
    if let Some(option) = OPTIONS.iter().find(|o| {
        o.value.is_some()
            && name.strip_prefix(o.name).is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()))
    }) {
        let (before, value) = name.split_at(option.name.len());
        hint = format!("; did you mean '-{before} {value}'?");
    }
    Error::new(format!("unknown option '{arg}'{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    fn error(words: &[&str]) -> String {
        parse(&args(words)).unwrap_err().to_string()
    }

    #[test]
    fn one_dash_or_two() {
        let given = parse(&args(&["-m", "512", "--nographic", "--append", "-x y"])).unwrap();
        let got: Vec<_> = given.iter().map(|g| (g.option.name, g.value.to_str().unwrap())).collect();
        assert_eq!(got, [("m", "512"), ("nographic", ""), ("append", "-x y")]);
    }

    #[test]
    fn an_unknown_option_is_named_with_the_nearest() {
        assert_eq!(error(&["-nographik"]), "unknown option '-nographik'; did you mean '-nographic'?");
        assert_eq!(error(&["--kernal", "x"]), "unknown option '--kernal'; did you mean '-kernel'?");
        assert_eq!(error(&["-frobnicate"]), "unknown option '-frobnicate'");
        assert_eq!(error(&["-m512"]), "unknown option '-m512'; did you mean '-m 512'?");
        assert_eq!(
            error(&["-m=512"]),
            "unknown option '-m=512'; an option's argument stands apart: '-m 512'"
        );
    }

    #[test]
    fn a_missing_argument_is_told() {
        assert_eq!(error(&["-kernel"]), "-kernel needs an argument: -kernel FILE");
        assert_eq!(error(&["-"]), "'-' is no option and no file name");
    }

    #[test]
    fn what_qemu_has_and_mynah_has_not_is_refused_by_name() {
        assert_eq!(error(&["-loadvm", "s"]), "-loadvm (start from a snapshot): not supported yet");
    }

    #[test]
    fn a_lone_file_is_the_first_disk() {
        let given = parse(&args(&["disk.img", "-m", "1G"])).unwrap();
        assert_eq!((given[0].option.name, given[0].value.to_str()), ("hda", Some("disk.img")));
    }
}
