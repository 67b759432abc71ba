//! Packet devices: the protocol by which command packets, data and their end go over an ATA cable.
//!
//! ```text
//!   PACKET command -> 12 bytes at the data port -> command set (scsi::cd) -> data by blocks or by DMA -> end
//! ```
//!
//! At the data port data go in blocks of at most as many bytes as the host has put into the byte count registers with
//! the command; each block begins with its own length there, and an interrupt. An odd limit is one less, but for a
//! last block that is odd itself; FFFFh is FFFEh; with 0, a command that moves data is aborted. The interrupt reason
//! (sector count) says what the block is.
//!
//! Source: ATA/ATAPI-6 (T13/1410D r3b), 8.23 (PACKET), 9.8 and 9.9 (protocols); SFF-8020i, 5.
use super::ata::command as c;
use super::scsi::cd::{self, Parts};
use super::scsi::{Outcome, Sense};
use crate::storage::ata::{CHUNK, Device, Phase, Registers};
use mynah_block::Reply;
use serde::{Deserialize, Serialize};

use super::ata::{Asked, Op, PIO_CHUNK};

/// Bytes of a packet.
const PACKET: usize = 12;
/// Bits of the interrupt reason: a packet or the end, not data; to the host.
const COMMAND: u8 = 1 << 0;
const TO_HOST: u8 = 1 << 1;

/// The packet that is carried out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(in crate::storage) struct Packet {
    cdb: [u8; PACKET],
    parts: Parts,
    /// Most bytes of a block.
    limit: u32,
    /// Bytes of the block that is moved now.
    block: u32,
    /// Bytes that are still to go to the host.
    total: u64,
}

impl Device {
    pub(in crate::storage) fn packet_device_command(&mut self, code: u8) {
        match code {
            c::PACKET => self.packet(),
            c::IDENTIFY_PACKET_DEVICE => self.identify_packet(),
            // Commands by which a host finds out that it is no disk (ATA/ATAPI-6, 9.12).
            c::IDENTIFY_DEVICE | c::READ_SECTORS => {
                let device = self.regs.device;
                self.regs = Registers::signature(true, device);
                self.regs.device = device;
                self.abort();
            }
            // There is nothing to be flushed.
            c::FLUSH_CACHE => self.complete(),
            _ => self.common_command(code),
        }
    }

    /// The PACKET command: a packet is to come.
    fn packet(&mut self) {
        const DMA: u8 = 1 << 0;
        const OVERLAPPED: u8 = 1 << 1;
        let features = self.regs.features();
        if features & OVERLAPPED != 0 {
            return self.abort();
        }
        self.state.dma = features & DMA != 0;
        let limit = u16::from_le_bytes([self.regs.mid[0], self.regs.high[0]]);
        self.packet = Packet { limit: limit.into(), ..Packet::default() };
        self.state.op = Op::Packet;
        self.state.buffer = vec![0; PACKET];
        self.state.at = 0;
        self.reason(COMMAND);
        self.transfer(Phase::PioOut, PACKET);
    }

    fn reason(&mut self, bits: u8) {
        self.regs.count[0] = self.regs.count[0] & !7 | bits;
    }

    /// The packet has come.
    pub(in crate::storage) fn packet_came(&mut self) {
        let cdb = std::mem::take(&mut self.state.buffer);
        self.state.empty();
        for (to, from) in self.packet.cdb.iter_mut().zip(cdb) {
            *to = from;
        }
        let identity = cd::Identity {
            product: self.setup.model.clone(),
            revision: self.setup.version.clone(),
            serial: self.setup.serial.clone(),
        };
        let outcome = self.cd.command(&self.packet.cdb, &self.drive, &identity);
        self.follow(outcome);
    }

    fn follow(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Done => self.packet_complete(),
            Outcome::Check(sense) => self.packet_failed(sense),
            // That is a disk's.
            Outcome::Blocks(_) => self.packet_failed(Sense::OPERATION_CODE),
            _ if !self.state.dma && self.packet.limit == 0 => {
                self.abort();
                self.reason(COMMAND | TO_HOST);
            }
            Outcome::Data(data) => {
                self.state.op = Op::PacketAnswer;
                self.packet.total = data.len() as u64;
                (self.state.buffer, self.state.at) = (data, 0);
                self.packet_block();
            }
            Outcome::Read { lba, sectors, parts } => {
                self.state.op = Op::PacketRead;
                (self.state.lba, self.state.left) = (lba.into(), sectors);
                self.packet.parts = parts;
                self.packet.total = u64::from(sectors) * parts.len() as u64;
                self.packet_read();
            }
            Outcome::Parameters(len) => {
                self.state.op = Op::PacketParameters;
                (self.state.buffer, self.state.at) = (vec![0; len], 0);
                self.packet_parameters();
            }
        }
    }

    /// Asks the drive for the next sectors, to go behind what of the buffer was not taken yet.
    fn packet_read(&mut self) {
        let most = if self.state.dma { CHUNK } else { PIO_CHUNK } as u64 / cd::SECTOR;
        let n = most.min(self.state.left.into());
        self.ask(Asked::Read(self.state.lba * cd::SECTOR, n * cd::SECTOR));
    }

    pub(in crate::storage) fn packet_answered(&mut self, reply: Reply) {
        let data = match reply {
            Ok(data) => data,
            Err(why) => {
                let sense = self.cd.failed(why, &self.drive);
                return self.packet_failed(sense);
            }
        };
        let s = &mut self.state;
        s.buffer.drain(..(s.at as usize).min(s.buffer.len()));
        (s.at, s.end) = (0, 0);
        for sector in data.chunks_exact(cd::SECTOR as usize) {
            s.buffer.extend(cd::sector_parts(self.packet.parts, s.lba as u32, sector));
            s.lba += 1;
            s.left = s.left.saturating_sub(1);
        }
        self.packet_block();
    }

    /// The next block for the host, or the next sectors for it, or the end.
    fn packet_block(&mut self) {
        let there = self.state.buffer.len() - self.state.at as usize;
        let total = self.packet.total;
        if total == 0 {
            return self.packet_complete();
        }
        if self.state.dma {
            return match there {
                0 if self.state.left > 0 => self.packet_read(),
                0 => self.packet_complete(),
                n => {
                    self.reason(TO_HOST);
                    self.transfer(Phase::DmaIn, self.state.at as usize + n);
                }
            };
        }
        let len = self.block_len(total);
        if there < len {
            return if self.state.left > 0 { self.packet_read() } else { self.packet_complete() };
        }
        self.block(TO_HOST, Phase::PioIn, len);
    }

    /// Bytes of the next block, of so many that are left.
    fn block_len(&self, total: u64) -> usize {
        let limit = u64::from(self.packet.limit.clamp(1, 0xfffe));
        let even = if limit == 1 { 1 } else { limit & !1 };
        (if total <= limit { total } else { even }) as usize
    }

    /// A block of data at the data port.
    fn block(&mut self, reason: u8, phase: Phase, len: usize) {
        (self.regs.mid[0], self.regs.high[0]) = (len as u8, (len >> 8) as u8);
        self.packet.block = len as u32;
        self.reason(reason);
        self.transfer(phase, self.state.at as usize + len);
        self.regs.interrupt = true;
    }

    /// The host, or the bus master, has taken what was there.
    pub(in crate::storage) fn packet_block_taken(&mut self) {
        let taken = if self.state.dma { self.state.end } else { self.packet.block };
        self.packet.total = self.packet.total.saturating_sub(taken.into());
        if self.state.dma {
            self.state.empty();
        }
        self.packet_block();
    }

    /// The next block of parameters from the host.
    fn packet_parameters(&mut self) {
        let left = self.state.buffer.len() - self.state.at as usize;
        if self.state.dma {
            self.reason(0);
            return self.transfer(Phase::DmaOut, self.state.buffer.len());
        }
        let len = self.block_len(left as u64);
        self.block(0, Phase::PioOut, len);
    }

    pub(in crate::storage) fn packet_parameters_came(&mut self) {
        if (self.state.at as usize) < self.state.buffer.len() {
            return self.packet_parameters();
        }
        let data = std::mem::take(&mut self.state.buffer);
        let outcome = self.cd.parameters(&self.packet.cdb, &data);
        self.follow(outcome);
    }

    fn packet_complete(&mut self) {
        self.complete();
        self.regs.error = 0;
        self.reason(COMMAND | TO_HOST);
    }

    fn packet_failed(&mut self, sense: Sense) {
        self.fail(sense.key << 4);
        self.reason(COMMAND | TO_HOST);
    }
}
