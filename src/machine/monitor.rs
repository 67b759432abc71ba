//! The human monitor's commands: the few that there is something behind, with QEMU's names and answers.
use super::inside::Translators;
use super::power::{Pause, Power};
use crate::config::{Config, exit_code};
use mynah_devices::chardev::Monitor;
use mynah_devices::events::{MachineEvents, ResetCause};
use std::sync::Arc;

/// The human monitor.
pub struct Hmp {
    power: Arc<Power>,
    translators: Translators,
    name: String,
    prompt: &'static str,
    greeting: String,
}

impl Hmp {
    /// A monitor of the machine that `power` is of.
    pub fn new(cfg: &Config, power: &Arc<Power>, translators: &Translators) -> Self {
        Self {
            power: power.clone(),
            translators: translators.clone(),
            name: cfg.name.clone().unwrap_or_default(),
            // Scripts that drive QEMU wait for its prompt.
            prompt: if cfg.as_qemu { "(qemu) " } else { "(mynah) " },
            greeting: format!(
                "Mynah {} monitor - type 'help' for more information\n",
                env!("CARGO_PKG_VERSION")
            ),
        }
    }

    fn status(&self) -> String {
        let status = match self.power.paused() {
            None => "running",
            Some(Pause::User) => "paused",
            Some(Pause::Prelaunch) => "paused (prelaunch)",
            Some(Pause::Shutdown) => "paused (shutdown)",
            Some(Pause::Panicked) => "paused (guest-panicked)",
        };
        format!("VM status: {status}\n")
    }
}

impl Monitor for Hmp {
    fn command(&self, line: &str) -> String {
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            [] => String::new(),
            ["q" | "quit"] => {
                self.power.end(exit_code::POWER_OFF, None);
                String::new()
            }
            ["stop" | "s"] => {
                self.power.pause(Pause::User);
                self.power.wait_standing();
                String::new()
            }
            ["cont" | "c"] => match self.power.paused() {
                Some(Pause::Shutdown | Pause::Panicked) => {
                    "Error: Resetting the Virtual Machine is required\n".into()
                }
                _ => {
                    self.power.go_on();
                    String::new()
                }
            },
            ["system_reset"] => {
                self.power.reset(ResetCause::Host);
                String::new()
            }
            ["info", "status"] => self.status(),
            ["info", "version"] => format!("{}\n", env!("CARGO_PKG_VERSION")),
            ["info", "name"] if self.name.is_empty() => String::new(),
            ["info", "name"] => format!("{}\n", self.name),
            ["info", "jit"] => self.translators.info(),
            ["info"] => "info jit        what the translator has done\ninfo name       the guest's name\n\
                info status     running or paused\ninfo version    Mynah's version\n"
                .into(),
            ["help" | "?", ..] => {
                "cont|c          go on\ninfo WHAT       jit, name, status, version\nquit|q          end Mynah\n\
                stop|s          pause the guest\nsystem_reset    reset the machine\n"
                    .into()
            }
            [first, ..] => format!("unknown command: '{first}' (try 'help')\n"),
        }
    }

    fn prompt(&self) -> &str {
        if self.power.has_ended() { "" } else { self.prompt }
    }

    fn greeting(&self) -> &str {
        &self.greeting
    }
}
