//! The command line: QEMU's options for `mynah run`, and a few commands of our own around them.
//!
//! ```text
//!   argv --main()--+-- run, qemu, or called qemu-system-* --parse--> Given --build--> Config --> machine::run
//!                  +-- demo, guests, version, help        --clap---> Command
//! ```
//!
//! QEMU's syntax (long options with one dash, comma properties, arguments that start with a dash) is nothing clap can
//! describe, so it is parsed here from the table in [`options`], which help texts and suggestions share. What the user
//! got wrong is an [`Error`]: one line that names the option, the value and what is accepted. It goes to standard error
//! with the program's name before it, and the process ends with code 1.

pub mod blockdev_arg;
pub mod build;
pub mod char_arg;
mod compare;
pub mod cpu_arg;
pub mod demo;
pub mod device_arg;
pub mod drive_arg;
pub mod help;
pub mod image;
#[cfg(unix)]
mod ip;
pub mod machine_arg;
mod net_arg;
pub mod options;
pub mod parse;
pub mod props;
pub mod run_arg;
pub mod size;
pub mod suggest;
#[cfg(unix)]
mod switch;
mod tap_arg;
mod vnc_arg;

use crate::config::{CharBackend, Config, Display, NetKind, exit_code};
use crate::machine;
use clap::{Parser, Subcommand};
use mynah_devices::chardev::fatal;
use mynah_devices::chardev::leftovers::{self, Leftover};
use mynah_guests as guests;
use std::ffi::{OsStr, OsString};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Why the command line leads to no machine: something is wrong, or it asked for a text.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Error {
    text: String,
    info: bool,
}

impl Error {
    /// A mistake of the user's.
    pub fn new(text: impl Into<String>) -> Error {
        Error { text: text.into(), info: false }
    }

    /// No mistake: a text that was asked for, with its line ends.
    pub fn info(text: impl Into<String>) -> Error {
        Error { text: text.into(), info: true }
    }

    /// Whether this is a text that was asked for.
    pub fn is_info(&self) -> bool {
        self.info
    }
}

/// The commands around `mynah run`.
#[derive(Parser, Debug)]
#[command(
    name = "mynah",
    about = "A full-system x86 PC emulator",
    disable_version_flag = true,
    subcommand_required = true,
    override_usage = "mynah run [options]\n       mynah <COMMAND>"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run a machine; `mynah run -help` lists QEMU's options
    Run,
    /// The same as run, for scripts that call QEMU
    Qemu,
    /// Boot Debian's cloud kernel to a shell, or the built-in guest where there is no network
    Demo(demo::Args),
    /// Guests for tests, from Debian's packages
    Guests {
        #[command(subcommand)]
        command: GuestsCommand,
    },
    /// Make, look at and change disk images, as qemu-img does
    Image(image::ImageArgs),
    /// Run the same guest on several engines, and tell what each took
    Compare(compare::Args),
    #[cfg(unix)]
    /// Connect guests, the host and other networks by a switch
    Switch(switch::SwitchArgs),
    #[cfg(unix)]
    /// Tell guests' addresses
    Ip(ip::IpArgs),
    #[cfg(windows)]
    /// Connect guests, the host and other networks by a switch (on Unix hosts)
    Switch(Elsewhere),
    #[cfg(windows)]
    /// Tell guests' addresses (on Unix hosts)
    Ip(Elsewhere),
    /// Print the version
    Version,
}

/// What is asked of a command that is not on this host.
#[cfg(windows)]
#[derive(clap::Args, Debug)]
struct Elsewhere {
    /// Its options
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<OsString>,
}

#[derive(Subcommand, Debug)]
enum GuestsCommand {
    /// List the guests and what of them is there
    List {
        /// Folder that holds them
        #[arg(long, value_name = "FOLDER")]
        dir: Option<PathBuf>,
    },
    /// Fetch guests, all of them if none is named, and print their files
    Fetch {
        /// The guests' names
        names: Vec<String>,
        /// Folder that holds them
        #[arg(long, value_name = "FOLDER")]
        dir: Option<PathBuf>,
        /// Fetch again what is there already
        #[arg(long)]
        refresh: bool,
    },
    /// Take the ELF kernel out of a bzImage
    Extract {
        /// The bzImage
        kernel: PathBuf,
        /// The file to write
        elf: PathBuf,
    },
}

/// The whole program: takes all arguments with the program's name, gives the process's exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> i32 {
    let mut args = args.into_iter();
    let argv0 = args.next().unwrap_or_else(|| "mynah".into());
    // A file that is as long as it may be (`ulimit -f`) is an error to who writes to it, and not the end.
    #[cfg(unix)]
    // SAFETY: no handler is set, and no other thread runs yet that could.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN)
    };
    let rest: Vec<OsString> = args.collect();
    let called = program_name(&argv0);
    if called.starts_with("qemu-system-") {
        return report(&called, run_machine(&called, &called, &rest));
    }
    match rest.first().and_then(|a| a.to_str()) {
        Some(command @ ("run" | "qemu")) => {
            report("mynah", run_machine("mynah", &format!("mynah {command}"), &rest[1..]))
        }
        Some("-version" | "--version" | "-V") => report("mynah", Err(Error::info(help::version()).into())),
        Some(option) if option.starts_with('-') && !matches!(option, "-h" | "--help" | "-help") => {
            let error = Error::new(format!(
                "{option} stands before a command; options go after one: mynah run {option} ..."
            ));
            report("mynah", Err(error.into()))
        }
        Some("-help") => commands(&["--help".into()]),
        _ => commands(&rest),
    }
}

/// The file name in `argv[0]`, without `.exe`.
fn program_name(argv0: &OsStr) -> String {
    let stem = Path::new(argv0).file_name().unwrap_or(argv0).to_string_lossy();
    stem.strip_suffix(".exe").unwrap_or(&stem).to_string()
}

/// Runs what clap knows.
fn commands(args: &[OsString]) -> i32 {
    let all = std::iter::once(OsString::from("mynah")).chain(args.iter().cloned());
    let cli = match Cli::try_parse_from(all) {
        Ok(cli) => cli,
        Err(error) => {
            let text = error.render().to_string();
            if !error.use_stderr() {
                return report("mynah", Err(Error::info(text).into()));
            }
            if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
                let _ = write!(std::io::stderr(), "{text}");
                return exit_code::ERROR;
            }
            let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
            return report("mynah", Err(Error::new(text).into()));
        }
    };
    let result = match cli.command {
        // Both have been seen to before clap; this is `mynah help run`'s way of listing them.
        Command::Run | Command::Qemu => run_machine("mynah", "mynah run", &[]),
        Command::Demo(args) => demo::run(&args),
        Command::Guests { command } => guests_command(command).map(|()| 0),
        Command::Image(args) => image::run(&args),
        Command::Compare(args) => compare::run(&args),
        #[cfg(unix)]
        Command::Switch(args) => switch::run(&args),
        #[cfg(unix)]
        Command::Ip(args) => ip::run(&args),
        #[cfg(windows)]
        Command::Switch(_) | Command::Ip(_) => Err(Error::new(
            "switch and ip are there on Unix hosts only: guests reach them by Unix sockets; here -netdev stream and \
             dgram connect guests",
        )
        .into()),
        Command::Version => Err(Error::info(help::version()).into()),
    };
    report("mynah", result)
}

fn guests_command(command: GuestsCommand) -> anyhow::Result<()> {
    let store = |dir: Option<PathBuf>| match dir {
        Some(dir) => Ok(guests::Store::at(dir)),
        None => guests::Store::open(),
    };
    match command {
        GuestsCommand::List { dir } => {
            let store = store(dir)?;
            let mut text = String::new();
            for guest in guests::manifest() {
                let there =
                    store.cached(&guest.name).map_or("not fetched".into(), |f| f.display().to_string());
                text += &format!(
                    "{:14} {:7} {}\n{:23}{there}\n",
                    guest.name, guest.architecture, guest.about, ""
                );
            }
            print(&text);
        }
        GuestsCommand::Fetch { names, dir, refresh } => {
            let store = store(dir)?;
            let names = if names.is_empty() {
                guests::manifest().iter().map(|g| g.name.clone()).collect()
            } else {
                names
            };
            // One that fails leaves the others to be fetched.
            let mut failed = Vec::new();
            for name in names {
                match fetch(&store, &name, refresh) {
                    Ok(file) => print(&format!("{name} {}\n", file.display())),
                    Err(error) => {
                        tell(&explain(&error));
                        failed.push(name);
                    }
                }
            }
            if !failed.is_empty() {
                return Err(Error::new(format!("not fetched: {}", failed.join(", "))).into());
            }
        }
        GuestsCommand::Extract { kernel, elf } => {
            let image =
                std::fs::read(&kernel).map_err(|e| Error::new(format!("{}: {e}", kernel.display())))?;
            let payload = guests::vmlinux::payload(&image)
                .map_err(|e| Error::new(format!("{}: {e}", kernel.display())))?;
            std::fs::write(&elf, payload).map_err(|e| Error::new(format!("{}: {e}", elf.display())))?;
        }
    }
    Ok(())
}

fn fetch(store: &guests::Store, name: &str, refresh: bool) -> anyhow::Result<PathBuf> {
    known(name)?;
    if refresh {
        store.forget(name)?;
    }
    store.fetch(name, &mut |line| tell(line))
}

/// Refuses a guest that there is not, with the name that may have been meant.
fn known(name: &str) -> anyhow::Result<()> {
    guests::find(name).map(|_| ()).map_err(|error| {
        match suggest::did_you_mean("", name, guests::store::names()) {
            hint if hint.is_empty() => error.into(),
            hint => Error::new(format!("there is no guest '{name}'{hint}")).into(),
        }
    })
}

/// `mynah run`: options to a machine, and the machine to its end. `usage` is how the help calls it.
fn run_machine(program: &str, usage: &str, args: &[OsString]) -> anyhow::Result<i32> {
    let mut config = build::config(usage, args)?;
    if config.display == Display::Default && terminal_is_screen(&config) {
        config.display = Display::Terminal;
    }
    start(Config { program: program.into(), as_qemu: usage != "mynah run", ..config })
}

/// Whether the terminal is to be the screen though nobody said so: there is one, nobody else uses it, and the guest
/// starts as a PC does. One that is given a kernel is likely to speak on a serial port.
fn terminal_is_screen(config: &Config) -> bool {
    let is_stdio = |backend: &CharBackend| matches!(backend, CharBackend::Stdio { .. });
    let targets = config.serials.iter().chain(&config.monitors).chain(&config.debugcons);
    let used = targets.map(|t| &t.backend).chain(config.chardevs.iter().map(|c| &c.backend)).any(is_stdio);
    !used
        && !config.nographic
        && config.vnc.is_none()
        && config.kernel.is_none()
        && config.devices.iter().any(|d| d.kind.name == "VGA")
        && std::io::stdin().is_terminal()
        && std::io::stdout().is_terminal()
        && (cfg!(windows) || std::env::var_os("TERM").is_some_and(|t| t != "dumb"))
}

/// Checks what `config` needs, and runs it to its end; the result is the process's exit code.
pub fn start(mut config: Config) -> anyhow::Result<i32> {
    // The bridge's helper has rights of its own.
    for net in &mut config.netdevs {
        if let NetKind::Tap(tap) = &mut net.kind {
            tap.prepare().map_err(|e| Error::new(format!("{}: {e}", net.shown)))?;
        }
    }
    no_new_privileges();
    if config.accel.is_empty()
        && let Some(names) = std::env::var_os("MYNAH_ACCEL")
    {
        config.accel = machine_arg::accels("MYNAH_ACCEL=", &names.to_string_lossy())?;
    }
    // Before anything is made that must not stay.
    fatal::install();
    config.refuse_unbuilt().map_err(Error::new)?;
    build::check_files(&config)?;
    let pidfile = match &config.pidfile {
        None => None,
        Some(path) => Some(Pidfile::write(path)?),
    };
    let code = machine::run(config);
    drop(pidfile);
    // Devices and threads may still have theirs: they end with the process.
    leftovers::remove_all();
    code
}

/// Whatever the process executes from here on, should anything make it do so, it gets no rights that it has not
/// (prctl(2), PR_SET_NO_NEW_PRIVS).
fn no_new_privileges() {
    #[cfg(target_os = "linux")]
    // SAFETY: it takes plain numbers, and touches no memory of ours.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    };
}

/// The file of `-pidfile`, which goes when the machine has ended.
struct Pidfile(#[allow(dead_code, reason = "removes the file when it is dropped")] Leftover);

impl Pidfile {
    fn write(path: &Path) -> Result<Pidfile, Error> {
        std::fs::write(path, format!("{}\n", std::process::id()))
            .map_err(|e| Error::new(format!("-pidfile {}: {e}", path.display())))?;
        Ok(Pidfile(Leftover::new(path)))
    }
}

/// An error with its causes, each once: some say theirs in their own text.
pub(crate) fn explain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    let mut last = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !last.contains(&cause) {
            text += if text.is_empty() { "" } else { ": " };
            text += &cause;
        }
        last = cause;
    }
    text
}

/// Tells the user how it ended, and makes an exit code of it.
fn report(program: &str, result: anyhow::Result<i32>) -> i32 {
    match result {
        Ok(code) => code,
        Err(error) => match error.downcast_ref::<Error>() {
            Some(info) if info.is_info() => {
                print(&info.text);
                exit_code::POWER_OFF
            }
            _ => {
                // A closed standard error leaves nobody to tell.
                let _ = writeln!(std::io::stderr(), "{program}: {}", explain(&error));
                exit_code::ERROR
            }
        },
    }
}

/// Prints a line to standard error; a closed one leaves nobody to tell.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "mynah: {line}");
}

/// Prints a line of `program` to standard error.
pub(crate) fn say(program: &str, line: &str) {
    let _ = writeln!(std::io::stderr(), "{program}: {line}");
}

/// Prints to standard output; if nobody reads it any more, that is no reason to panic.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_known_by_its_file_name() {
        assert_eq!(program_name(OsStr::new("/usr/bin/qemu-system-x86_64")), "qemu-system-x86_64");
        assert_eq!(program_name(OsStr::new("mynah.exe")), "mynah");
    }

    #[test]
    fn a_cause_is_said_once() {
        use anyhow::Context;
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read it: {0}, so nothing is there")]
        struct Says(#[source] std::io::Error);
        let io = || std::io::Error::other("no such thing");
        let error = Err::<(), _>(Says(io())).context("-serial x").unwrap_err();
        assert_eq!(explain(&error), "-serial x: cannot read it: no such thing, so nothing is there");
        let error = Err::<(), _>(io()).context("reading").context("-kernel x").unwrap_err();
        assert_eq!(explain(&error), "-kernel x: reading: no such thing");
    }

    #[test]
    fn clap_knows_the_commands() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["mynah", "guests", "fetch", "cloud"]).is_ok());
        assert!(Cli::try_parse_from(["mynah", "demo", "--embedded", "--print", "--", "-m", "64"]).is_ok());
        assert!(Cli::try_parse_from(["mynah", "dmeo"]).unwrap_err().to_string().contains("demo"));
    }

    #[test]
    fn an_unknown_guest_is_named_with_the_nearest() {
        let error = |name| known(name).unwrap_err().to_string();
        assert_eq!(error("cluod"), "there is no guest 'cluod'; did you mean 'cloud'?");
        assert!(error("windows").contains("there are cloud, generic"));
        assert!(known("cloud").is_ok());
    }

    #[test]
    fn a_pidfile_lives_as_long_as_the_machine() {
        let path = std::env::temp_dir().join(format!("mynah-pidfile-test-{}", std::process::id()));
        let pidfile = Pidfile::write(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap().trim(), std::process::id().to_string());
        drop(pidfile);
        assert!(!path.exists());
        assert!(Pidfile::write(Path::new("/no/such/dir/pid")).is_err());
    }
}
