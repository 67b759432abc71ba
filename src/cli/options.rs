//! The table of options, which parsing, help and suggestions share.
//!
//! Every option of QEMU's x86 system emulator has a row, so that none is mistaken for a slip of the fingers: it is
//! taken, accepted without effect where leaving it out changes nothing a guest or user could notice, or refused by
//! name as not supported yet.

/// What becomes of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It does what QEMU's does.
    Supported,
    /// It is parsed into the [`Config`](crate::config::Config), and what of it is not built yet is refused after that,
    /// by [`Config::refuse_unbuilt`](crate::config::Config::refuse_unbuilt) or by the machine.
    Parsed,
    /// It is accepted and changes nothing: what it asks for is so already, or concerns what Mynah has not.
    Harmless,
    /// It is QEMU's, and refused.
    Later,
}

/// Where an option stands in the help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Board, processors, memory.
    Machine,
    /// What is booted.
    Boot,
    /// Consoles and other character streams.
    Console,
    /// Devices, drives and networks.
    Devices,
    /// The run: resets, logs, debugging.
    Run,
    /// Help and the like.
    Info,
}

impl Group {
    /// The groups in the order of the help.
    pub const ALL: [Group; 6] =
        [Group::Machine, Group::Boot, Group::Console, Group::Devices, Group::Run, Group::Info];

    /// The group's heading.
    pub fn title(self) -> &'static str {
        match self {
            Group::Machine => "Machine, processors and memory",
            Group::Boot => "What is booted",
            Group::Console => "Consoles",
            Group::Devices => "Devices, drives and networks",
            Group::Run => "Running, logging and debugging",
            Group::Info => "Information",
        }
    }
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct OptionDef {
    /// The name, without dashes.
    pub name: &'static str,
    /// What its argument is called in the help; `None` if it takes none.
    pub value: Option<&'static str>,
    /// Its place in the help.
    pub group: Group,
    /// What becomes of it.
    pub status: Status,
    /// What it does, in a line.
    pub summary: &'static str,
    /// An argument for it, for the help and for the test that every option parses.
    pub example: Option<&'static str>,
}

const fn row(
    group: Group,
    status: Status,
    name: &'static str,
    value: Option<&'static str>,
    summary: &'static str,
    example: Option<&'static str>,
) -> OptionDef {
    OptionDef { name, value, group, status, summary, example }
}

macro_rules! options {
    ($( $group:ident $status:ident $name:literal $(($value:literal, $example:literal))? $summary:literal; )*) => {
        &[$( row(Group::$group, Status::$status, $name, options!(@ $($value)?), $summary, options!(@ $($example)?)) ),*]
    };
    (@) => { None };
    (@ $text:literal) => { Some($text) };
}

/// Every option.
#[rustfmt::skip]
pub const OPTIONS: &[OptionDef] = options! {
    Machine Supported "machine" ("TYPE[,prop=value...]", "pc,hpet=on") "the board ('help' lists them); kernel-entry=16|32|64 chooses how Linux is entered";
    Machine Supported "M" ("TYPE[,prop=value...]", "pc") "the same as -machine";
    Machine Supported "cpu" ("MODEL[,+feature][,-feature]", "max,-x2apic") "the CPU model ('help' lists them)";
    Machine Supported "accel" ("NAME[,prop=value...]", "interp") "interp, jit (tcg), kvm ('help' lists their properties)";
    Machine Supported "enable-kvm" "the same as -accel kvm";
    Machine Parsed "smp" ("N[,sockets=S][,cores=C][,threads=T][,maxcpus=M]", "1") "how many processors";
    Machine Supported "m" ("SIZE[,slots=N,maxmem=SIZE]", "2G") "RAM; MiB without a suffix K, M, G or T [default: 128]";
    Machine Supported "rtc" ("base=utc|localtime|DATE[,clock=host|rt|vm]", "base=2026-01-31T12:00:00") "what the clock shows at power-on";
    Machine Supported "no-acpi" "no ACPI tables; the same as -machine acpi=off";
    Machine Supported "no-hpet" "no HPET; the same as -machine hpet=off";
    Machine Supported "name" ("NAME", "testbed") "the guest's name";
    Machine Supported "uuid" ("UUID", "12345678-9abc-def0-1234-56789abcdef0") "the system's UUID, which SMBIOS shows";
    Machine Supported "seed" ("N", "42") "seed for the randomness handed to the guest";
    Machine Supported "nodefaults" "no devices but those asked for";

    Boot Supported "kernel" ("FILE", "vmlinuz") "start this Linux, PVH or Multiboot kernel directly";
    Boot Supported "initrd" ("FILE", "initrd.img") "its initial RAM disk, or for Multiboot its modules: 'FILE args,FILE args'";
    Boot Supported "append" ("TEXT", "console=ttyS0") "its command line";
    Boot Supported "bios" ("FILE", "bios.bin") "run this firmware in place of the built-in one";
    Boot Supported "L" ("FOLDER", "/usr/share/seabios") "look for firmware files here too";
    Boot Supported "boot" ("[order=]LETTERS[,once=LETTERS][,menu=on|off]", "order=dc,menu=on") "boot order: a floppy, c disk, d CD-ROM, n network";
    Boot Supported "incoming" ("URI", "file:machine.saved") "go on from what the monitor's 'migrate' has saved: file:FILE or exec:COMMAND";
    Boot Supported "restore" ("FILE", "machine.saved") "the same as -incoming file:FILE";
    Boot Supported "fw_cfg" ("name=NAME,file=FILE|string=TEXT", "name=opt/org.test/a,string=b") "an item for the guest to read through fw_cfg";

    Console Supported "nographic" "no display; serial port and monitor share the terminal (Ctrl-A H for help)";
    Console Supported "serial" ("TARGET", "mon:stdio") "where a serial port goes; repeatable, COM1 first";
    Console Supported "monitor" ("TARGET", "none") "where a monitor is; repeatable";
    Console Supported "mon" ("[chardev=]ID[,mode=readline]", "chardev=c0") "a monitor on a named target";
    Console Supported "debugcon" ("TARGET", "file:debug.log") "where bytes written to port 0xE9 go";
    Console Supported "chardev" ("BACKEND,id=ID[,prop=value...]", "null,id=c0") "a named target, for chardev:ID";
    Console Supported "parallel" ("none|null", "none") "the parallel port, of which there is none";
    Console Supported "echr" ("N", "0x14") "code of the console's escape character [default: 1, Ctrl-A]";
    Console Supported "display" ("none|curses|vnc=[HOST]:DISPLAY", "none") "where the screen is shown [default: a terminal that nothing else uses]";
    Console Supported "curses" "the screen in the terminal; the same as -display curses";
    Console Supported "k" ("LAYOUT", "de") "the keyboard's layout, for VNC and the terminal";
    Console Supported "object" ("secret,id=ID,data=TEXT|file=FILE", "secret,id=s,data=sesame") "a password for VNC; limits of drives: throttle-group,id=ID,x-iops-total=N";
    Console Supported "vga" ("std|none", "std") "the video adapter";
    Console Supported "vnc" ("[HOST]:DISPLAY|unix:PATH[,password=on][,websocket=on]", ":1") "show the screen to VNC clients";

    Devices Supported "device" ("NAME[,prop=value...]", "isa-debug-exit,iobase=0xf4,iosize=4") "add a device ('help' lists them)";
    Devices Supported "drive" ("[file=FILE][,if=TYPE][,prop=value...]", "file=disk.img,if=ide,format=raw") "a drive";
    Devices Supported "blockdev" ("driver=FORMAT,node-name=ID,file.filename=FILE[,...]|JSON", "driver=raw,node-name=d,file.filename=disk.img") "a disk image, for -device ...,drive=ID";
    Devices Supported "hda" ("FILE", "disk.img") "the first hard disk";
    Devices Supported "hdb" ("FILE", "disk.img") "the second hard disk";
    Devices Supported "hdc" ("FILE", "disk.img") "the third hard disk";
    Devices Supported "hdd" ("FILE", "disk.img") "the fourth hard disk";
    Devices Supported "cdrom" ("FILE", "cd.iso") "the CD-ROM";
    Devices Supported "fda" ("FILE", "floppy.img") "the first floppy";
    Devices Supported "fdb" ("FILE", "floppy.img") "the second floppy";
    Devices Supported "pflash" ("FILE", "flash.fd") "a parallel flash image";
    Devices Supported "snapshot" "writes to drives go to files that vanish at the end";
    Devices Supported "nic" ("user|none[,model=NAME][,mac=ADDRESS][,prop=value...]", "user,hostfwd=tcp::2222-:22") "a network card with what is behind it";
    Devices Supported "netdev" ("user|tap|bridge|stream|dgram|hubport,id=ID[,prop=value...]", "user,id=n0") "what is behind a network card";
    Devices Supported "net" ("nic|user|none[,prop=value...]", "none") "the older form of -nic";

    Run Supported "no-reboot" "a guest's reset ends Mynah";
    Run Supported "no-shutdown" "a guest's power-off only stops the machine";
    Run Supported "action" ("reboot=|shutdown=|panic=|watchdog=ACTION", "reboot=shutdown,panic=exit-failure") "what follows a guest's reset, power-off or panic, or a watchdog";
    Run Supported "watchdog-action" ("ACTION", "pause") "what follows when a watchdog expires";
    Run Supported "d" ("ITEM[,ITEM...]", "int,guest_errors") "log these items ('help' lists them)";
    Run Supported "D" ("FILE", "mynah.log") "log to this file; %d in its name stands for the process's number";
    Run Supported "dfilter" ("RANGE[,RANGE...]", "0x1000+0x100,0x8000..0x8fff") "log only what these guest addresses do";
    Run Supported "handoff" ("ENGINE@WHEN", "kvm@text:login:") "have another engine run the guest from a moment on: SECONDSs, insn:N, port:0xPORT[=VALUE], text:TEXT";
    Run Supported "stats" ("FILE", "stats.json") "write what the run has counted to a file, as JSON";
    Run Supported "check" "check translated code against the interpreter as the guest runs; the same as -accel jit,check=on";
    Run Supported "perfmap" "write the names of translated code to /tmp/perf-PID.map, for perf";
    Run Supported "perf-map" "the same as -perfmap";
    Run Supported "jitdump" "write translated code to jit-PID.dump, for perf record -k mono and perf inject --jit";
    Run Supported "symbols" ("FILE", "vmlinux") "the guest's functions by this ELF file or System.map, for -perfmap, -jitdump and -d";
    Run Supported "pidfile" ("FILE", "mynah.pid") "write the process's number to this file";
    Run Supported "S" "start stopped";
    Run Parsed "s" "wait for a debugger on TCP port 1234; the same as -gdb tcp::1234";
    Run Parsed "gdb" ("TARGET", "tcp::1234") "wait for a debugger here";
    Run Parsed "qmp" ("TARGET", "unix:qmp.sock,server=on,wait=off") "a management socket";
    Run Parsed "icount" ("shift=N", "shift=auto") "count instructions for the guest's time";
    Run Parsed "daemonize" "go to the background";

    Info Supported "h" "this text";
    Info Supported "help" "this text";
    Info Supported "version" "the version";

    Run Harmless "no-user-config" "there are no configuration files";
    Run Harmless "nouserconfig" "there are no configuration files";
    Run Harmless "msg" ("timestamp=on|off", "timestamp=on") "messages have no time stamps";
    Run Harmless "overcommit" ("mem-lock=on|off", "mem-lock=off") "RAM is touched lazily";
    Machine Harmless "no-fd-bootchk" "floppies are booted unchecked";
    Machine Harmless "win2k-hack" "disks are fast enough";
    Console Harmless "full-screen" "there is no window";
    Console Harmless "no-quit" "there is no window";
    Console Harmless "show-cursor" "there is no window";
    Console Harmless "alt-grab" "there is no window";
    Console Harmless "ctrl-grab" "there is no window";
    Run Harmless "singlestep" "a debugging aid of QEMU's own translator";
    Run Harmless "enable-fips" "there is no VNC password";

    Machine Later "numa" ("...", "node") "memory nodes";
    Machine Later "mem-path" ("FILE", "/mnt/ram") "RAM on a file";
    Machine Later "mem-prealloc" "RAM touched at start";
    Machine Later "smbios" ("...", "type=1") "changed SMBIOS tables";
    Machine Later "acpitable" ("...", "file=t.aml") "an additional ACPI table";
    Machine Later "global" ("...", "a.b=c") "a property of all devices of a kind";
    Machine Later "set" ("...", "a.b.c=d") "a property of a named option";
    Machine Later "sgx-epc" ("...", "x") "SGX memory";
    Boot Later "option-rom" ("FILE", "rom.bin") "an option ROM";
    Boot Later "dtb" ("FILE", "a.dtb") "a device tree";
    Boot Later "shim" ("FILE", "shim.efi") "a shim for the kernel";
    Boot Later "prom-env" ("...", "a=b") "firmware variables";
    Boot Later "loadvm" ("NAME", "s") "start from a snapshot";
    Boot Later "only-migratable" "devices that can migrate only";
    Console Later "spice" ("...", "port=1") "a SPICE server";
    Console Later "sdl" "a display window";
    Console Later "g" ("SIZE", "800x600") "the display's size";
    Console Later "rotate" ("DEGREES", "90") "the display's rotation";
    Console Later "portrait" "the display's rotation";
    Devices Later "mtdblock" ("FILE", "m.img") "on-board flash";
    Devices Later "sd" ("FILE", "sd.img") "an SD card";
    Devices Later "iscsi" ("...", "a") "iSCSI";
    Devices Later "fsdev" ("...", "local,id=f") "a shared folder's back end";
    Devices Later "virtfs" ("...", "local") "a shared folder";
    Devices Later "usb" "the USB controller";
    Devices Later "usbdevice" ("NAME", "tablet") "a USB device";
    Devices Later "tpmdev" ("...", "emulator,id=t") "a TPM's back end";
    Devices Later "audio" ("...", "none") "a sound card";
    Devices Later "audiodev" ("...", "none,id=a") "a sound card's back end";
    Devices Later "audio-help" "sound options";
    Devices Later "soundhw" ("NAME", "sb16") "a sound card";
    Devices Later "bt" ("...", "hci") "Bluetooth";
    Devices Later "balloon" ("...", "virtio") "a memory balloon";
    Devices Later "watchdog" ("NAME", "i6300esb") "a watchdog";
    Devices Later "add-fd" ("...", "fd=3,set=1") "an open file handed over";
    Run Later "chroot" ("FOLDER", "/var/empty") "a changed root folder";
    Run Later "runas" ("USER", "nobody") "a changed user";
    Run Later "run-with" ("...", "async-teardown=on") "process settings";
    Run Later "sandbox" ("...", "on") "a system call filter";
    Run Later "async-teardown" "memory freed in the background";
    Run Later "preconfig" "configuration before the machine is made";
    Run Later "qmp-pretty" ("TARGET", "stdio") "a management socket, indented";
    Run Later "qtest" ("TARGET", "stdio") "a device test socket";
    Run Later "qtest-log" ("FILE", "l") "its log";
    Run Later "trace" ("...", "x") "QEMU's trace events";
    Run Later "plugin" ("FILE", "p.so") "a translator plug-in";
    Run Later "tb-size" ("MIB", "64") "the code cache's size";
    Run Later "one-insn-per-tb" "blocks of one instruction";
    Run Later "semihosting" "semihosting";
    Run Later "semihosting-config" ("...", "x") "semihosting";
    Run Later "readconfig" ("FILE", "c") "options from a file";
    Run Later "writeconfig" ("FILE", "c") "options to a file";
    Run Later "dump-vmstate" ("FILE", "f") "a description of the saved state";
    Run Later "enable-sync-profile" "lock statistics";
    Run Later "compat" ("...", "x") "policies for deprecated options";
    Run Later "xen-domid" ("N", "1") "Xen";
    Run Later "xen-attach" "Xen";
    Run Later "xen-domid-restrict" "Xen";
    Run Later "old-param" "an old kernel's parameters";
};

/// The row of the option called `name`.
pub fn find(name: &str) -> Option<&'static OptionDef> {
    OPTIONS.iter().find(|o| o.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_bare() {
        for (i, option) in OPTIONS.iter().enumerate() {
            assert!(!option.name.starts_with('-') && !option.name.is_empty());
            assert!(OPTIONS[..i].iter().all(|o| o.name != option.name), "-{} twice", option.name);
            assert_eq!(option.value.is_some(), option.example.is_some());
            assert!(!option.summary.ends_with('.'));
        }
    }
}
