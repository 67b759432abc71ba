//! `mynah demo`: something to look at, with one command.
//!
//! It boots Debian's cloud kernel, unmodified, to a busybox shell. Kernel and busybox are fetched through apt once and
//! kept in the user's cache (see [`mynah_guests`]). Where they cannot be had, it says why and runs the guest that is
//! built in.

use super::{build, explain, print, start, tell};
use anyhow::Result;
use mynah_devices::chardev::leftovers::Leftover;
use mynah_guests::demo::{self, Written};
use std::ffi::OsString;

/// The options of `mynah demo`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Run the built-in guest, without looking for Debian's kernel
    #[arg(long)]
    embedded: bool,
    /// Print the command that runs the guest, and do not run it
    #[arg(long)]
    print: bool,
    /// More options for `mynah run`, such as -m 1G
    #[arg(last = true, value_name = "OPTIONS")]
    options: Vec<OsString>,
}

/// Runs the demo; the result is the process's exit code.
pub fn run(args: &Args) -> Result<i32> {
    let mut words = if args.embedded {
        built_in(args)?
    } else {
        demo::debian(&mut |line| tell(line)).or_else(|why| instead(args, &why))?
    };
    words.extend(args.options.iter().cloned());
    if args.print {
        print(&format!(
            "mynah run {}\n",
            words.iter().map(|w| quoted(&w.to_string_lossy())).collect::<Vec<_>>().join(" ")
        ));
        return Ok(0);
    }
    let config = build::config("mynah demo", &words)?;
    start(config)
}

/// Says why there is no Debian kernel, and what comes instead.
fn instead(args: &Args, why: &anyhow::Error) -> Result<Vec<OsString>> {
    tell(&format!("Debian's kernel is not to be had: {}", explain(why)));
    tell("running the built-in guest instead");
    built_in(args)
}

/// The options that run the built-in guest, in a file that goes with the process unless it is kept for all.
fn built_in(args: &Args) -> Result<Vec<OsString>> {
    let guest = demo::built_in()?;
    if let Written::Temporary(file) = &guest
        && !args.print
    {
        std::mem::forget(Leftover::new(file));
    }
    Ok(guest.options())
}

/// `text` as a shell reads it back.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,=:+%@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_commands_can_be_pasted_into_a_shell() {
        assert_eq!(quoted("-kernel"), "-kernel");
        assert_eq!(quoted("console=ttyS0 quiet"), "'console=ttyS0 quiet'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
