//! A running Debian, of which the console is used: root is logged in, has a script run, and switches it off.
use crate::kit::typed::Machine;
use crate::kit::{Folder, connect};
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a guest may take for anything, on a slow host too.
pub const LIMIT: Duration = Duration::from_secs(1800);

/// Where the script is for the guest.
const AT: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/org.mynah/script/raw";

/// The machine that it runs in.
pub struct Debian {
    machine: Machine,
    /// Where its monitor is.
    socket: String,
}

impl Debian {
    /// Starts `program`, Mynah or QEMU, with `args` and with the script in fw_cfg, and logs root in.
    pub fn log_in(program: &mut Command, folder: &Folder, args: &[&str], script: &str) -> Self {
        let start = Instant::now();
        let socket = folder.path("monitor");
        let monitor = format!("unix:{socket},server=on,wait=off");
        let script = format!("name=opt/org.mynah/script,file={}", folder.file("script", script.as_bytes()));
        let own = ["-display", "none", "-serial", "stdio", "-monitor", &monitor, "-no-reboot"];
        program.args(own).args(["-fw_cfg", &script]).args(args);
        let mut machine = Machine::of(program).patient(LIMIT);
        machine.until("debian login: ");
        eprintln!("  login: after {:?}", start.elapsed());
        machine.types("root\r");
        machine.until("root@debian:~# ");
        Self { machine, socket }
    }

    /// Has the script run; what it says.
    pub fn script(&mut self) -> String {
        self.machine.types(&format!("modprobe qemu_fw_cfg; sh {AT}; echo EN''D\r"));
        self.machine.until("END\r")
    }

    /// Presses the power button, and waits until the guest has switched the machine off.
    pub fn power_down(self) {
        let mut monitor = connect(&self.socket);
        monitor.write_all(b"system_powerdown\n").unwrap();
        assert_eq!(self.machine.ends(), Some(0));
    }
}
