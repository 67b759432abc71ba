//! A guest that says the alphabet while its machine is saved, paused, or handed to another engine.
use super::{
    Client, FREE, Folder, Guest, PATIENCE, Running, command, delay, halt, power_off, send, wait_for_text,
};
use iced_x86::code_asm::*;
use std::fs;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

pub const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz";

/// Says the alphabet on COM1, a letter each 20 ms of its time, counts each in memory and in a register, and powers
/// off if both have counted right.
pub fn spells(a: &mut CodeAssembler) -> Result<(), IcedError> {
    letters(a)?;
    judge(a)
}

/// The same, but goes on behind the last letter only when a key is pressed: for who does something to it meanwhile that
/// may take its time.
#[allow(dead_code, reason = "not every test has that")]
pub fn spells_and_waits(a: &mut CodeAssembler) -> Result<(), IcedError> {
    letters(a)?;
    let mut wait = a.create_label();
    a.set_label(&mut wait)?;
    a.pause()?;
    // The keyboard controller's output buffer is full.
    a.in_(al, 0x64)?;
    a.test(al, 1)?;
    a.je(wait)?;
    judge(a)
}

fn letters(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.xor(esi, esi)?;
    a.mov(dword_ptr(FREE), esi)?;
    for byte in LETTERS.bytes() {
        delay(a, 20)?;
        send(a, byte)?;
        a.inc(esi)?;
        a.inc(dword_ptr(FREE))?;
    }
    Ok(())
}

fn judge(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut lost = a.create_label();
    a.cmp(esi, LETTERS.len() as i32)?;
    a.jne(lost)?;
    a.cmp(dword_ptr(FREE), LETTERS.len() as i32)?;
    a.jne(lost)?;
    send(a, b'.')?;
    power_off(a)?;
    a.set_label(&mut lost)?;
    send(a, b'!')?;
    halt(a)
}

/// One machine and its files.
pub struct Machine {
    pub folder: Folder,
    pub kernel: String,
    pub vcpus: String,
}

impl Machine {
    pub fn new(name: &str, guest: &Guest) -> Self {
        let folder = Folder::new(name);
        let kernel = folder.file("kernel", &guest.image());
        Machine { folder, kernel, vcpus: guest.smp().to_string() }
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path(name)
    }

    /// What starts its guest with these options.
    pub fn command_of(&self, more: &[&str]) -> Command {
        let args = ["run", "-display", "none", "-m", "16", "-smp", &self.vcpus, "-kernel", &self.kernel];
        command(&[&args, more].concat())
    }

    /// Run number `n`, with more options.
    pub fn command(&self, n: usize, accel: &str, more: &[&str]) -> Command {
        let serial = format!("file:{}", self.path(&format!("com{n}")));
        let monitor = format!("unix:{},server,nowait", self.path(&format!("monitor{n}")));
        let args = ["-accel", accel, "-serial", &serial, "-monitor", &monitor];
        let mut command = self.command_of(&[&args, more].concat());
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Starts run number `n`.
    pub fn start(&self, n: usize, accel: &str, more: &[&str]) -> Running {
        Running::start(&mut self.command(n, accel, more))
    }

    pub fn monitor(&self, n: usize) -> Client<UnixStream> {
        Client::at(&self.path(&format!("monitor{n}")))
    }

    pub fn console(&self, n: usize) -> String {
        fs::read_to_string(self.path(&format!("com{n}"))).unwrap_or_default()
    }

    /// A saved machine in the file `saved`, when the guest has said `letter`.
    pub fn save(&self, letter: &str, more: &[&str]) -> String {
        let mut running = self.start(0, "interp", more);
        let mut monitor = self.monitor(0);
        wait_for_text(&self.path("com0"), letter);
        assert_eq!(monitor.ask(&format!("migrate file:{}", self.path("saved"))), "");
        monitor.send("quit");
        assert!(running.ended(PATIENCE).is_some_and(|s| s.success()));
        self.path("saved")
    }
}
