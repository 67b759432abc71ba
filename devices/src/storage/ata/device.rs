//! A device: what it does at a time, its buffer, and what it asks of its drive.
use super::registers::{Register, Registers};
use super::{Geometry, command, disk, error, identify, status};
use crate::device::Invalid;
use crate::storage::atapi::Packet;
use crate::storage::scsi::cd::Cd;
use mynah_block::{Drive, DriveError, Reply, Request};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Most bytes that are asked of a drive, or kept for it, at once. A write is kept by the drive as well.
pub const CHUNK: usize = 512 << 10;
/// The same of commands whose data the host moves, which it does slowly.
pub(in crate::storage) const PIO_CHUNK: usize = 64 << 10;

/// What a device waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// A command.
    #[default]
    Idle,
    /// Its drive.
    Asking,
    /// The host, which reads its buffer at the data port.
    PioIn,
    /// The host, which writes its buffer there.
    PioOut,
    /// The bus master, which takes its buffer to memory.
    DmaIn,
    /// The bus master, which fills its buffer from memory.
    DmaOut,
}

/// The command that it carries out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::storage) enum Op {
    #[default]
    None,
    Read,
    Write,
    Verify,
    Flush,
    Trim,
    /// The buffer goes to the host, and that is all.
    Answer,
    /// A packet comes.
    Packet,
    PacketAnswer,
    PacketRead,
    PacketParameters,
}

/// What the drive is doing for the device. What is written is in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::storage) enum Asked {
    Read(u64, u64),
    Write(u64),
    Discard(u64, u64),
    Flush,
}

/// Which way a bus master moves data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To memory.
    In,
    /// From memory.
    Out,
}

/// What is reset, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::storage) enum ResetKind {
    /// SRST of the device control register.
    Soft,
    /// DEVICE RESET.
    Command,
    /// EXECUTE DEVICE DIAGNOSTIC.
    Diagnostic,
}

/// What a device is, which does not change.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Model number, up to 40 characters.
    pub model: String,
    /// Serial number, up to 20.
    pub serial: String,
    /// Firmware revision, up to 8.
    pub version: String,
    /// World wide name.
    pub wwn: Option<u64>,
    /// Its default translation.
    pub geometry: Geometry,
    /// Bytes of a physical sector.
    pub physical_block: u32,
    /// It takes packets.
    pub packet: bool,
    /// Device 0 or 1.
    pub unit: u8,
    /// How many commands its host queues (NCQ); 0: none.
    pub queue: u8,
}

/// What has been set, and the command in progress.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(in crate::storage) struct State {
    pub cylinders: u32,
    pub heads: u32,
    pub sectors: u32,
    /// Sectors of a block of READ MULTIPLE.
    pub multiple: u16,
    /// Modes as bits, none or one each.
    pub single_dma: u16,
    pub multi_dma: u16,
    pub ultra_dma: u16,
    pub smart: bool,
    /// As CHECK POWER MODE tells it.
    pub power: u8,

    pub phase: Phase,
    pub op: Op,
    pub dma: bool,
    /// 48 bits of address.
    pub wide: bool,
    /// The host counts in cylinders.
    pub chs: bool,
    /// A flush follows.
    pub durable: bool,
    /// What comes next, and how much of it, in sectors of the device.
    pub lba: u64,
    pub left: u32,
    /// Bytes between two interrupts at the data port.
    pub block: u32,
    #[serde(with = "serde_bytes")]
    pub buffer: Vec<u8>,
    /// The next byte to be moved, and where the block ends.
    pub at: u32,
    pub end: u32,
    pub asked: Option<Asked>,
    /// It is reset as soon as the drive has done what was asked.
    pub resetting: Option<ResetKind>,
}

impl State {
    fn of(setup: &Setup) -> Self {
        let Geometry { cylinders, heads, sectors } = setup.geometry;
        Self {
            cylinders,
            heads,
            sectors,
            multiple: disk::MULTIPLE,
            ultra_dma: 1 << 5,
            smart: true,
            power: disk::ACTIVE,
            ..Self::default()
        }
    }

    pub fn geometry(&self) -> Geometry {
        Geometry { cylinders: self.cylinders, heads: self.heads, sectors: self.sectors }
    }

    /// There is nothing in the buffer.
    pub fn empty(&mut self) {
        self.buffer = Vec::new();
        (self.at, self.end) = (0, 0);
    }

    /// No command is in progress.
    fn forget(&mut self) {
        self.phase = Phase::Idle;
        self.op = Op::None;
        self.empty();
        self.left = 0;
        (self.asked, self.resetting) = (None, None);
    }
}

/// A device.
pub struct Device {
    pub(in crate::storage) setup: Setup,
    pub(in crate::storage) drive: Arc<Drive>,
    /// The command block.
    pub regs: Registers,
    pub(in crate::storage) state: State,
    pub(in crate::storage) packet: Packet,
    pub(in crate::storage) cd: Cd,
    /// What was asked is still to be submitted.
    unsent: bool,
}

impl Device {
    /// A device with this drive, as after power-on.
    pub fn new(setup: Setup, drive: Arc<Drive>) -> Self {
        Self {
            regs: Registers::signature(setup.packet, 0),
            state: State::of(&setup),
            packet: Packet::default(),
            cd: Cd::default(),
            setup,
            drive,
            unsent: false,
        }
    }

    /// RESET: all is as after power-on. What was asked of the drive has ended, or is of no interest any more.
    pub fn power_on(&mut self) {
        self.regs = Registers::signature(self.setup.packet, 0);
        self.state = State::of(&self.setup);
        (self.packet, self.cd) = (Packet::default(), Cd::default());
        self.unsent = false;
    }

    /// What is behind it.
    pub fn drive(&self) -> &Arc<Drive> {
        &self.drive
    }

    /// What it waits for.
    pub fn phase(&self) -> Phase {
        self.state.phase
    }

    /// The host writes the command register.
    pub fn command(&mut self, code: u8) {
        let packet = self.setup.packet;
        if packet && code == command::DEVICE_RESET {
            return self.reset(ResetKind::Command);
        }
        if self.regs.status & (status::BSY | status::DRQ) != 0 {
            return;
        }
        self.regs.interrupt = false;
        self.regs.error = 0;
        self.state.forget();
        if packet { self.packet_device_command(code) } else { self.disk_command(code) }
    }

    /// SRST, DEVICE RESET or EXECUTE DEVICE DIAGNOSTIC.
    pub(in crate::storage) fn reset(&mut self, kind: ResetKind) {
        self.regs.interrupt = false;
        if self.state.asked.is_some() && !self.unsent {
            self.state.resetting = Some(kind);
            self.regs.status = status::BSY;
            return;
        }
        self.unsent = false;
        self.state.forget();
        self.packet = Packet::default();
        let device = if kind == ResetKind::Command { self.regs.device } else { 0 };
        self.regs = Registers::signature(self.setup.packet, device);
        match kind {
            ResetKind::Soft => self.state.multiple = disk::MULTIPLE,
            ResetKind::Diagnostic => self.regs.interrupt = self.setup.unit == 0,
            ResetKind::Command => {}
        }
    }

    /// Asks something of the drive.
    pub(in crate::storage) fn ask(&mut self, what: Asked) {
        self.state.asked = Some(what);
        self.state.phase = Phase::Asking;
        self.regs.status = status::BSY | status::DRDY;
        self.unsent = true;
    }

    /// What is to be submitted to the drive, if anything is. Its end goes to [`Device::answered`].
    pub fn take_request(&mut self) -> Option<Request> {
        if !std::mem::take(&mut self.unsent) {
            return None;
        }
        Some(match self.state.asked? {
            Asked::Read(at, len) => Request::Read { at, len: len as usize },
            Asked::Write(at) => Request::Write { at, data: self.state.buffer.clone() },
            Asked::Discard(at, len) => Request::Discard { at, len },
            Asked::Flush => Request::Flush,
        })
    }

    /// How what was asked has ended.
    pub fn answered(&mut self, reply: Reply) {
        let Some(asked) = self.state.asked.take() else { return };
        if let Some(kind) = self.state.resetting.take() {
            return self.reset(kind);
        }
        match self.state.op {
            Op::PacketRead => self.packet_answered(reply),
            _ => self.disk_answered(asked, reply),
        }
    }

    /// The command has ended.
    pub(in crate::storage) fn complete(&mut self) {
        self.state.forget();
        self.regs.status = status::DRDY | status::DSC;
        self.regs.interrupt = true;
    }

    /// The command has ended with these bits in the error register.
    pub(in crate::storage) fn fail(&mut self, bits: u8) {
        self.state.forget();
        self.regs.error = bits;
        self.regs.status = status::DRDY | status::ERR;
        self.regs.interrupt = true;
    }

    /// The command is not carried out.
    pub(in crate::storage) fn abort(&mut self) {
        self.fail(error::ABRT);
    }

    /// The error bits that stand for an error of the drive.
    pub(in crate::storage) fn error_of(why: DriveError, read: bool) -> u8 {
        match why {
            DriveError::Io if read => error::UNC,
            _ => error::ABRT,
        }
    }

    /// The host is to move `self.state.at..end` of the buffer.
    pub(in crate::storage) fn transfer(&mut self, phase: Phase, end: usize) {
        self.state.phase = phase;
        self.state.end = end as u32;
        self.regs.status = status::DRDY | status::DSC | status::DRQ;
    }

    /// 512 bytes or so that the host reads, and no more.
    pub(in crate::storage) fn answer(&mut self, bytes: Vec<u8>) {
        self.state.op = Op::Answer;
        self.state.buffer = bytes;
        self.state.at = 0;
        self.transfer(Phase::PioIn, self.state.buffer.len());
        self.regs.interrupt = true;
    }

    pub(in crate::storage) fn identify_packet(&mut self) {
        self.answer(identify::packet(&self.setup, &self.state));
    }

    /// The host reads 16 bits of data; a device that has none gives zeros.
    pub fn read_data(&mut self) -> u16 {
        if self.state.phase != Phase::PioIn {
            return 0;
        }
        let (at, end) = (self.state.at as usize, self.state.end as usize);
        let byte = |n: usize| if n < end { self.state.buffer.get(n).copied().unwrap_or(0) } else { 0 };
        let value = u16::from_le_bytes([byte(at), byte(at + 1)]);
        self.moved(2);
        value
    }

    /// The host writes 16 bits of data.
    pub fn write_data(&mut self, value: u16) {
        if self.state.phase != Phase::PioOut {
            return;
        }
        let (at, end) = (self.state.at as usize, self.state.end as usize);
        for (n, byte) in value.to_le_bytes().into_iter().enumerate() {
            if let Some(b) = self.state.buffer.get_mut(at + n).filter(|_| at + n < end) {
                *b = byte;
            }
        }
        self.moved(2);
    }

    /// What the bus master is to do.
    pub fn dma(&self) -> Option<Direction> {
        match self.state.phase {
            Phase::DmaIn => Some(Direction::In),
            Phase::DmaOut => Some(Direction::Out),
            _ => None,
        }
    }

    /// What goes to memory, or is to be filled from there.
    pub fn dma_bytes(&mut self) -> &mut [u8] {
        let (at, end) = (self.state.at as usize, self.state.end as usize);
        self.state.buffer.get_mut(at..end).unwrap_or_default()
    }

    /// The bus master has moved so many of those bytes.
    pub fn dma_moved(&mut self, bytes: usize) {
        self.moved(bytes);
    }

    /// The bus master cannot go on: the command ends, and nobody is told (there is no interrupt from a device whose
    /// requests for data are not met; on hardware it waits for a reset).
    pub fn dma_broken(&mut self) {
        self.state.forget();
        self.regs.status = status::DRDY | status::DSC;
    }

    /// What is taken by the host, or came from it.
    fn moved(&mut self, bytes: usize) {
        self.state.at = (self.state.at as usize + bytes).min(self.state.end as usize) as u32;
        if self.state.at < self.state.end {
            return;
        }
        match self.state.op {
            Op::None | Op::Flush | Op::Verify => {}
            Op::Answer => {
                self.complete();
                self.regs.interrupt = false;
            }
            Op::Read => self.read_block_taken(),
            Op::Write | Op::Trim => self.block_filled(),
            Op::Packet => self.packet_came(),
            Op::PacketAnswer | Op::PacketRead => self.packet_block_taken(),
            Op::PacketParameters => self.packet_parameters_came(),
        }
    }

    /// The host reads a register that is not status.
    pub fn read(&self, register: Register, high_order: bool) -> u8 {
        self.regs.read(register, high_order)
    }

    /// The host writes one that is not the command.
    pub fn write(&mut self, register: Register, value: u8) {
        self.regs.write(register, value);
    }

    /// There is another medium, or none.
    pub fn medium_changed(&mut self) {
        self.cd.medium_changed(&self.drive);
    }

    /// Somebody wishes the medium out.
    pub fn eject_requested(&mut self) {
        self.cd.eject_requested();
    }
}

/// What is saved of a device.
#[derive(Clone, Serialize, Deserialize)]
pub struct DeviceV1 {
    regs: Registers,
    state: State,
    packet: Packet,
    cd: Cd,
    locked: bool,
    tray_open: bool,
    write_cache: bool,
}

impl Device {
    /// All that is saved of it. What the drive holds is asked again after it is restored.
    pub fn save(&self) -> DeviceV1 {
        DeviceV1 {
            regs: self.regs.clone(),
            state: self.state.clone(),
            packet: self.packet.clone(),
            cd: self.cd.clone(),
            locked: self.drive.locked(),
            tray_open: self.drive.tray_open(),
            write_cache: self.drive.write_cache(),
        }
    }

    /// Takes that on. [`Device::take_request`] has then what the drive was doing.
    ///
    /// # Errors
    /// It is no state of such a device.
    pub fn restore(&mut self, saved: DeviceV1) -> Result<(), Invalid> {
        let s = &saved.state;
        let moving = matches!(s.phase, Phase::PioIn | Phase::PioOut | Phase::DmaIn | Phase::DmaOut);
        if s.buffer.len() > 2 * CHUNK
            || s.end as usize > s.buffer.len()
            || s.at > s.end
            || moving && s.at == s.end
        {
            return Err(Invalid("the position in the buffer"));
        }
        if (s.phase == Phase::Asking) != s.asked.is_some() || (s.phase == Phase::Idle) != (s.op == Op::None) {
            return Err(Invalid("what the device is doing"));
        }
        if s.resetting.is_some() && s.asked.is_none() {
            return Err(Invalid("what the device will do"));
        }
        if matches!(s.asked, Some(Asked::Read(_, len)) if len > CHUNK as u64) {
            return Err(Invalid("what was asked of the drive"));
        }
        let modes = [s.single_dma, s.multi_dma, s.ultra_dma];
        if !(1..=16).contains(&s.heads)
            || s.sectors > 255
            || s.multiple > disk::MULTIPLE
            || modes.iter().any(|m| *m > 0xff)
        {
            return Err(Invalid("what was set"));
        }
        // A disk's commands are not a packet device's.
        let for_packets =
            matches!(s.op, Op::Packet | Op::PacketAnswer | Op::PacketRead | Op::PacketParameters);
        let for_disks = matches!(s.op, Op::Read | Op::Write | Op::Verify | Op::Trim);
        if for_packets && !self.setup.packet || for_disks && self.setup.packet {
            return Err(Invalid("the command"));
        }
        if s.lba > 1 << 48 {
            return Err(Invalid("the address"));
        }
        if s.block == 0 && matches!(s.op, Op::Read | Op::Write) {
            return Err(Invalid("the size of a block"));
        }
        self.drive.lock(saved.locked);
        self.drive.set_tray_open(saved.tray_open);
        self.drive.set_write_cache(saved.write_cache);
        self.unsent = s.asked.is_some();
        (self.regs, self.state, self.packet, self.cd) = (saved.regs, saved.state, saved.packet, saved.cd);
        Ok(())
    }
}
