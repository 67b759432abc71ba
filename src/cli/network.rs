//! `mynah network`: all that a machine or a switch knows of its network, as JSON.
use super::ip::{Who, who};
use super::{Error, print};
use clap::Args;
use serde_json::Value;
use std::path::PathBuf;

/// The options of `mynah network`.
#[derive(Args, Debug)]
#[command(after_help = "\
SOCKET is a machine's monitor (-monitor unix:SOCKET,server=on,wait=off) or a switch's (mynah switch --control SOCKET).
Of a machine: cards with frames and bytes sent, received and dropped; networks with forwards, leases, flows, totals:
  mynah network /run/vm.monitor | jq '.networks.n0.user.flows[] | [.guest, .remote, .counters.to_guest]'")]
pub struct NetworkArgs {
    /// The socket of a machine's monitor or of a switch
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
}

/// Runs the command; the result is the process's exit code.
pub(super) fn run(args: &NetworkArgs) -> anyhow::Result<i32> {
    let value = match who(&args.socket)? {
        Who::Switch(stats) => stats,
        Who::Monitor(mut monitor) => of_monitor(&monitor.says("info network -j")?).ok_or_else(|| {
            let path = args.socket.display();
            Error::new(format!(
                "{path}: what is there does not know 'info network -j': is it another program's?"
            ))
        })?,
    };
    print(&format!("{}\n", serde_json::to_string_pretty(&value)?));
    Ok(0)
}

/// The line of JSON in what a monitor says.
fn of_monitor(said: &str) -> Option<Value> {
    said.lines().find_map(|line| serde_json::from_str(line.trim()).ok().filter(Value::is_object))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_found_behind_the_echo() {
        let said = "info network -j\r\n{\"cards\":[],\"networks\":{}}\r\n(mynah) ";
        assert_eq!(of_monitor(said).unwrap()["cards"], serde_json::json!([]));
        assert_eq!(of_monitor("info network -j\r\nnet0: index=0\r\n(qemu) "), None);
    }
}
