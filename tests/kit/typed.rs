//! A machine on whose console somebody types.
use super::{PATIENCE, Running, command};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A machine on whose console somebody types.
pub struct Machine {
    running: Running,
    said: Receiver<Vec<u8>>,
    /// What was said and not looked at yet.
    rest: String,
    /// How long it waits for what must come.
    patience: Duration,
}

impl Machine {
    /// Mynah with 128 MiB of RAM, unless these arguments say otherwise.
    pub fn start(args: &[&str]) -> Self {
        Self::of(&mut command(&[&["run", "-m", "128"], args].concat()))
    }

    /// The machine of a program.
    pub fn of(command: &mut Command) -> Self {
        let mut running = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let (mut out, (tx, said)) = (running.0.stdout.take().unwrap(), channel());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut bytes) {
                if tx.send(bytes[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { running, said, rest: String::new(), patience: PATIENCE }
    }

    /// The same machine, for which this long is waited.
    pub fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Waits until `text` has been said; what came before it. What comes behind it is looked at next.
    pub fn until(&mut self, text: &str) -> String {
        let give_up = Instant::now() + self.patience;
        loop {
            if let Some((before, behind)) = self.rest.split_once(text) {
                let (before, behind) = (before.to_owned(), behind.to_owned());
                self.rest = behind;
                return before;
            }
            let left = give_up.saturating_duration_since(Instant::now());
            match self.said.recv_timeout(left) {
                Ok(bytes) => self.rest.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("no '{text}' in: {}", self.rest),
            }
        }
    }

    /// Types on the console.
    pub fn types(&mut self, keys: &str) {
        self.running.0.stdin.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for its end; the exit code.
    pub fn ends(mut self) -> Option<i32> {
        let status = self.running.ended(self.patience);
        status.unwrap_or_else(|| panic!("it does not end: {}", self.rest)).code()
    }
}
