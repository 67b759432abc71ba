//! Help texts, made from the table of options.

use super::options::{Group, OPTIONS, OptionDef, Status};
use crate::config::exit_code;

/// What `-version` prints.
pub fn version() -> String {
    format!("Mynah emulator version {}\n", env!("CARGO_PKG_VERSION"))
}

/// What `-help` prints for a program called `program`.
pub fn run(program: &str) -> String {
    let mut text = format!(
        "Usage: {program} [options] [disk image]\n\nRuns an x86 PC. The options are QEMU's, with QEMU's meaning and one dash \
         or two.\nA comma in a value is written twice.\n"
    );
    for group in Group::ALL {
        let rows = OPTIONS
            .iter()
            .filter(|o| o.group == group && matches!(o.status, Status::Supported | Status::Parsed));
        text += &format!("\n{}:\n", group.title());
        for option in rows {
            text += &entry(option);
        }
    }
    text += "\nTargets of -serial, -monitor and -debugcon:\n  \
             none, null, stdio, mon:stdio, pty, file:FILE, pipe:FILE, unix:FILE[,server=on][,wait=off],\n  \
             tcp:[HOST]:PORT[,server=on][,wait=off], telnet:..., udp:HOST:PORT[@HOST:PORT], chardev:ID, /dev/...\n";
    text += &format!(
        "\nExit codes:\n  {:<14} the guest powered off\n  {:<14} the command line was refused, or setting up failed\n  \
         {:<14} the guest wrote V to isa-debug-exit\n  {:<14} a triple fault under -no-reboot\n",
        exit_code::POWER_OFF,
        exit_code::ERROR,
        "(V << 1) | 1",
        exit_code::TRIPLE_FAULT
    );
    text += &wrapped("Some values of these are refused as not supported yet", Status::Parsed);
    text += &wrapped("Accepted without effect", Status::Harmless);
    text += &wrapped("QEMU's, and refused as not supported yet", Status::Later);
    text
}

fn entry(option: &OptionDef) -> String {
    let head = match option.value {
        Some(value) => format!("-{} {value}", option.name),
        None => format!("-{}", option.name),
    };
    let example = match option.example.zip(option.value) {
        // An example says something only where the argument has parts.
        Some((example, value)) if value.contains(',') => format!(" (-{} {example})", option.name),
        _ => String::new(),
    };
    if head.len() <= 22 {
        format!("  {head:22}  {}{example}\n", option.summary)
    } else {
        format!("  {head}\n  {:22}  {}{example}\n", "", option.summary)
    }
}

fn wrapped(title: &str, status: Status) -> String {
    let mut text = format!("\n{title}:\n");
    let mut line = " ".to_string();
    for option in OPTIONS.iter().filter(|o| o.status == status) {
        if line.len() + option.name.len() + 2 > 100 {
            text += &line;
            text += "\n";
            line = " ".into();
        }
        line += &format!(" -{}", option.name);
    }
    text + &line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_option_and_exit_code() {
        let text = run("mynah run");
        for option in OPTIONS {
            assert!(text.contains(&format!("-{}", option.name)), "{}", option.name);
        }
        assert!(text.contains("70 "));
        assert!(text.lines().all(|l| l.len() <= 140), "{text}");
    }
}
