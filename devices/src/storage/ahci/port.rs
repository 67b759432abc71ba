//! A port: its registers, its commands, and the device on it.
use super::fis::{self, Frame};
use super::hba::Host;
use super::prdt::{Cursor, Fault, le32};
use super::queue::{self, Failed, Queued};
use crate::device::Invalid;
use crate::dma::Dma;
use crate::storage::ata::{Device, DeviceV1, Op, Phase, ResetKind, SECTOR, error, status};
use crate::storage::ide::Cable;
use mynah_block::{Reply, Request};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};

/// Offsets of a port's registers (AHCI 1.3.1, 3.3).
mod reg {
    pub const CLB: u64 = 0x00;
    pub const CLBU: u64 = 0x04;
    pub const FB: u64 = 0x08;
    pub const FBU: u64 = 0x0c;
    pub const IS: u64 = 0x10;
    pub const IE: u64 = 0x14;
    pub const CMD: u64 = 0x18;
    pub const TFD: u64 = 0x20;
    pub const SIG: u64 = 0x24;
    pub const SSTS: u64 = 0x28;
    pub const SCTL: u64 = 0x2c;
    pub const SERR: u64 = 0x30;
    pub const SACT: u64 = 0x34;
    pub const CI: u64 = 0x38;
}

/// Bits of the interrupt status (3.3.5).
mod is {
    pub const DHRS: u32 = 1 << 0;
    pub const PSS: u32 = 1 << 1;
    pub const SDBS: u32 = 1 << 3;
    pub const DPS: u32 = 1 << 5;
    pub const PCS: u32 = 1 << 6;
    pub const PRCS: u32 = 1 << 22;
    pub const OFS: u32 = 1 << 24;
    pub const IFS: u32 = 1 << 27;
    pub const HBFS: u32 = 1 << 29;
    pub const TFES: u32 = 1 << 30;
    /// Those that can be enabled.
    pub const ALL: u32 = 0xfdc0_00ff;
}

/// Bits of the command register (3.3.7).
mod cmd {
    pub const ST: u32 = 1 << 0;
    pub const SUD: u32 = 1 << 1;
    pub const POD: u32 = 1 << 2;
    pub const CLO: u32 = 1 << 3;
    pub const FRE: u32 = 1 << 4;
    pub const FR: u32 = 1 << 14;
    pub const CR: u32 = 1 << 15;
    pub const ATAPI: u32 = 1 << 24;
    /// What of it is kept as it is written. Without staggered spin-up SUD and POD are fixed.
    pub const KEPT: u32 = ST | FRE | ATAPI;
}

/// DET of SCTL and SSTS (3.3.10, 3.3.11).
const DET: u32 = 0xf;
const DET_RESET: u32 = 1;
const DET_OFFLINE: u32 = 4;
/// A device, at 1.5 Gbit/s, not asleep.
const SSTS_UP: u32 = 0x113;
/// SERR: a device has been seen anew, PhyRdy has changed.
const SERR_X: u32 = 1 << 26;
const SERR_N: u32 = 1 << 16;
/// No device has sent its signature.
const NO_SIGNATURE: u32 = 0xffff_ffff;
/// The task file of no device.
const NO_TASK_FILE: u32 = 0x7f;
/// SRST of the device control register.
const SRST: u8 = 1 << 2;

/// The command that the device carries out.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Current {
    slot: u8,
    /// Where its header and its packet are.
    header: u64,
    packet: u64,
    cursor: Cursor,
    /// Bytes that were moved.
    moved: u32,
    /// A block has been moved at the data port, and the last one went to the host.
    blocks: bool,
    to_host: bool,
}

/// What is saved of a port beside its device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PortV1 {
    clb: u64,
    fb: u64,
    is: u32,
    ie: u32,
    cmd: u32,
    tfd: u32,
    sig: u32,
    sctl: u32,
    serr: u32,
    sact: u32,
    ci: u32,
    /// The slot that was looked at last.
    slot: u8,
    current: Option<Current>,
    queue: Vec<Queued>,
    failed: Option<Failed>,
    /// After an error nothing is fetched until ST is cleared.
    halted: bool,
    /// The host holds SRST.
    srst: bool,
    /// The device is to be reset as soon as nothing of before is at its drive.
    resetting: bool,
    /// Its signature is still to come; it has come, and is still to be written to memory.
    unsigned: bool,
    unseen: bool,
}

impl Default for PortV1 {
    fn default() -> Self {
        Self {
            clb: 0,
            fb: 0,
            is: 0,
            ie: 0,
            cmd: 0,
            tfd: NO_TASK_FILE,
            sig: NO_SIGNATURE,
            sctl: 0,
            serr: 0,
            sact: 0,
            ci: 0,
            slot: 31,
            current: None,
            queue: Vec::new(),
            failed: None,
            halted: false,
            srst: false,
            resetting: false,
            unsigned: false,
            unseen: false,
        }
    }
}

#[derive(Default)]
struct Inner {
    device: Option<Device>,
    s: PortV1,
    /// Ends of what an older one has asked for are of no interest: of the device itself, of the queue.
    device_generation: u64,
    queue_generation: u64,
    /// Requests of the queue that are at the drive, of whatever generation.
    at_drive: u32,
}

/// A port.
pub struct Port {
    number: u8,
    name: String,
    host: Arc<Host>,
    inner: Mutex<Inner>,
    me: Weak<Port>,
}

/// Whether there is more to do at once.
#[derive(PartialEq, Eq)]
enum Step {
    More,
    Wait,
}

impl Inner {
    fn running(&self) -> bool {
        self.s.cmd & cmd::ST != 0 && !self.s.halted
    }

    /// Interrupts that have happened: two of them are what SERR says.
    fn is_now(&self) -> u32 {
        let bit = |serr: u32, is: u32| if self.s.serr & serr != 0 { is } else { 0 };
        self.s.is | bit(SERR_X, is::PCS) | bit(SERR_N, is::PRCS)
    }

    /// Writes a received FIS to memory, if they are.
    fn receive(&mut self, dma: &Dma, at: u64, frame: &[u8]) {
        if self.s.cmd & cmd::FRE != 0 && dma.write(self.s.fb.wrapping_add(at), frame).is_err() {
            self.stop(is::HBFS);
        }
    }

    /// An error: nothing is fetched any more.
    fn stop(&mut self, why: u32) {
        self.s.is |= why;
        self.s.halted = true;
    }

    fn task_file(&mut self) {
        if let Some(device) = &self.device {
            self.s.tfd = u32::from(device.regs.status) | u32::from(device.regs.error) << 8;
        }
    }

    /// No command is in progress any more. What the device has asked of its drive ends, and leads to nothing.
    fn abandon(&mut self) {
        self.s.current = None;
        self.s.queue.clear();
        self.queue_generation += 1;
    }

    /// The device is reset: at once, or when nothing is at its drive any more.
    fn begin_reset(&mut self) {
        self.abandon();
        if self.device.is_some() {
            self.s.resetting = true;
            self.s.unsigned = true;
            self.s.unseen = false;
            self.s.failed = None;
            self.s.tfd = status::BSY.into();
        }
    }

    /// COMRESET.
    fn link_reset(&mut self) {
        self.s.srst = false;
        self.s.sig = NO_SIGNATURE;
        self.begin_reset();
        if self.device.is_some() {
            self.s.serr |= SERR_X | SERR_N;
        }
    }

    /// Brings a reset to its end.
    fn go_on_with_reset(&mut self, dma: &Dma) {
        let Some(device) = &mut self.device else { return };
        if self.s.resetting && self.at_drive == 0 {
            self.s.resetting = false;
            device.reset(ResetKind::Soft);
        }
        let busy = device.regs.status & status::BSY != 0;
        if self.s.unsigned && !self.s.resetting && !self.s.srst && !busy {
            let r = &device.regs;
            self.s.sig = u32::from_le_bytes([r.count[0], r.low[0], r.mid[0], r.high[0]]);
            (self.s.unsigned, self.s.unseen) = (false, true);
            self.task_file();
        }
        self.show_signature(dma);
    }

    /// The first FIS after a reset goes to memory as soon as FISes are received.
    fn show_signature(&mut self, dma: &Dma) {
        if self.s.unseen && self.s.cmd & cmd::FRE != 0 {
            self.s.unseen = false;
            if let Some(device) = &self.device {
                let frame = fis::device_to_host(&device.regs, false);
                self.receive(dma, fis::AT_DEVICE_TO_HOST, &frame);
            }
        }
    }

    /// Does what can be done now.
    fn run(&mut self, dma: &Dma) {
        self.go_on_with_reset(dma);
        while self.step(dma) == Step::More {}
    }

    fn step(&mut self, dma: &Dma) -> Step {
        let Some(device) = &mut self.device else { return Step::Wait };
        if self.s.current.is_none() && !matches!(device.phase(), Phase::Idle | Phase::Asking) {
            // Nobody moves the data of a command that was given up.
            device.dma_broken();
        }
        let phase = device.phase();
        if !self.running() {
            return Step::Wait;
        }
        match (&self.s.current, phase) {
            (None, _) => self.fetch(dma),
            (Some(_), Phase::Asking) => {
                self.s.tfd = (status::BSY | status::DRDY).into();
                Step::Wait
            }
            (Some(_), Phase::Idle) => self.finish(dma),
            (Some(_), _) => self.transfer(dma, phase),
        }
    }

    /// Takes the next command that was issued.
    fn fetch(&mut self, dma: &Dma) -> Step {
        if !self.s.srst && (self.s.resetting || self.s.unsigned) {
            return Step::Wait;
        }
        let slots = (1..=32).map(|n| (self.s.slot + n) % 32);
        let Some(slot) = slots.into_iter().find(|n| self.s.ci >> n & 1 != 0) else { return Step::Wait };
        let at = self.s.clb.wrapping_add(32 * u64::from(slot));
        let mut header = [0; 32];
        if dma.read(at, &mut header).is_err() {
            self.stop(is::HBFS);
            return Step::Wait;
        }
        let [flags, low, high] = [0, 8, 12].map(|n| le32(&header, n));
        let table = u64::from(high) << 32 | u64::from(low & !0x7f);
        let mut frame = Frame([0; 64]);
        // A frame of 2 to 16 words; that of a command has five.
        let words = (flags & 0x1f) as usize;
        let there = dma.read(table, &mut frame.0[..4 * words.min(16)]).is_ok();
        if !there || !(2..=16).contains(&words) || !frame.is_valid() {
            self.stop(if there { is::IFS } else { is::HBFS });
            return Step::Wait;
        }
        let cursor = Cursor::new(table.wrapping_add(0x80), (flags >> 16) as u16);
        let taken = if !frame.is_command() {
            self.control(slot, frame.control());
            self.go_on_with_reset(dma);
            true
        } else if self.s.srst {
            false
        } else if self.takes_queued(frame.code()) {
            self.enqueue(dma, slot, &frame, cursor)
        } else {
            self.begin(slot, at, table, &frame, cursor)
        };
        if taken {
            self.s.slot = slot;
            Step::More
        } else {
            Step::Wait
        }
    }

    /// The device control register: software resets.
    fn control(&mut self, slot: u8, control: u8) {
        self.s.ci &= !(1 << slot);
        let srst = control & SRST != 0;
        if srst && !self.s.srst {
            self.begin_reset();
        }
        self.s.srst = srst;
    }

    fn takes_queued(&self, code: u8) -> bool {
        matches!(code, queue::READ_FPDMA_QUEUED | queue::WRITE_FPDMA_QUEUED)
            && self.device.as_ref().is_some_and(|d| d.setup.queue > 0 && !d.setup.packet)
    }

    /// Queues a command; the slot is free again.
    fn enqueue(&mut self, dma: &Dma, slot: u8, frame: &Frame, cursor: Cursor) -> bool {
        let Some(device) = &mut self.device else { return false };
        if device.phase() != Phase::Idle {
            return false;
        }
        let there = self.s.queue.iter().any(|q| q.tag == slot);
        let queued = Queued::new(frame, slot, cursor, device.drive().size() / SECTOR);
        self.s.ci &= !(1 << slot);
        match queued {
            Ok(queued) if !there && self.s.sact >> slot & 1 != 0 => {
                self.s.queue.push(queued);
                device.regs.status = status::DRDY | status::DSC;
                device.regs.error = 0;
                let answer = fis::device_to_host(&device.regs, false);
                self.task_file();
                self.receive(dma, fis::AT_DEVICE_TO_HOST, &answer);
            }
            Ok(_) => self.queue_failed(
                dma,
                Failed::of(frame, status::DRDY | status::ERR, error::ABRT),
                error::ABRT,
            ),
            Err(bits) => self.queue_failed(dma, Failed::of(frame, status::DRDY | status::ERR, bits), bits),
        }
        true
    }

    /// A command of the queue has failed, and with it all of the queue.
    fn queue_failed(&mut self, dma: &Dma, failed: Failed, bits: u8) {
        self.abandon();
        self.s.failed = Some(failed);
        if let Some(device) = &mut self.device {
            device.regs.status = status::DRDY | status::ERR;
            device.regs.error = bits;
        }
        self.task_file();
        self.receive(
            dma,
            fis::AT_SET_DEVICE_BITS,
            &fis::set_device_bits(status::DRDY | status::ERR, bits, 0),
        );
        self.stop(is::TFES | is::SDBS);
    }

    /// Has the device begin a command that is not of a queue; false if it has to wait.
    fn begin(&mut self, slot: u8, header: u64, table: u64, frame: &Frame, cursor: Cursor) -> bool {
        let Some(device) = &mut self.device else { return false };
        if !self.s.queue.is_empty() || self.at_drive > 0 || device.phase() != Phase::Idle {
            return false;
        }
        frame.registers_to(device);
        let reads_log = frame.code() == queue::READ_LOG_EXT && device.setup.queue > 0 && !device.setup.packet;
        if reads_log {
            let (log, page) = (frame.lba() as u8, (frame.lba() >> 8) as u16);
            match queue::log_page(log, page, self.s.failed.as_ref()).filter(|_| frame.count() == 1) {
                Some(page) => {
                    device.regs.error = 0;
                    device.answer(page);
                }
                None => device.abort(),
            }
        } else {
            device.command(frame.code());
        }
        let (packet, blocks) = (table.wrapping_add(0x40), false);
        self.s.current = Some(Current { slot, header, packet, cursor, moved: 0, blocks, to_host: false });
        true
    }

    /// The device has ended the command.
    fn finish(&mut self, dma: &Dma) -> Step {
        let (Some(device), Some(current)) = (&self.device, self.s.current.take()) else { return Step::Wait };
        let failed = device.regs.status & status::ERR != 0;
        let frame = fis::device_to_host(&device.regs, true);
        let told = current.blocks && current.to_host && !device.setup.packet;
        self.task_file();
        if dma.write(current.header.wrapping_add(4), &current.moved.to_le_bytes()).is_err() {
            self.stop(is::HBFS);
        }
        // The last block of data to the host has told of the end already.
        if failed || !told {
            self.receive(dma, fis::AT_DEVICE_TO_HOST, &frame);
            self.s.is |= is::DHRS;
        }
        if failed {
            // The slot stays, so that software sees what has failed.
            self.stop(is::TFES);
        } else {
            self.s.ci &= !(1 << current.slot);
        }
        Step::More
    }

    /// Moves what the device wants moved.
    fn transfer(&mut self, dma: &Dma, phase: Phase) -> Step {
        let (Some(device), Some(current)) = (&mut self.device, &mut self.s.current) else {
            return Step::Wait;
        };
        let to_host = matches!(phase, Phase::PioIn | Phase::DmaIn);
        let takes_packet = device.state.op == Op::Packet;
        let bytes = device.dma_bytes();
        let len = bytes.len();
        if len == 0 {
            // No device wants that: it was restored so.
            device.dma_broken();
            self.s.current = None;
            self.stop(is::IFS);
            return Step::Wait;
        }
        let moved = if takes_packet {
            dma.read(current.packet, bytes).map(|()| false).map_err(|_| Fault::Bus)
        } else if to_host {
            current.cursor.write(dma, bytes)
        } else {
            current.cursor.read(dma, bytes)
        };
        let interrupt = match moved {
            Ok(interrupt) => interrupt,
            Err(fault) => {
                self.s.tfd = u32::from(device.regs.status);
                device.dma_broken();
                self.s.current = None;
                self.stop(if fault == Fault::Short { is::OFS } else { is::HBFS });
                return Step::Wait;
            }
        };
        let before = device.regs.status;
        device.dma_moved(len);
        if !takes_packet {
            current.moved = current.moved.saturating_add(len as u32);
        }
        let mut events = if interrupt { is::DPS } else { 0 };
        if matches!(phase, Phase::PioIn | Phase::PioOut) {
            // The first block from the host, and a packet, are asked for without an interrupt.
            let interrupts = to_host || current.blocks && !takes_packet;
            let frame = fis::pio_setup(&device.regs, before, to_host, interrupts, len);
            (current.blocks, current.to_host) = (!takes_packet, to_host);
            if interrupts {
                events |= is::PSS;
            }
            self.receive(dma, fis::AT_PIO_SETUP, &frame);
        }
        self.s.is |= events;
        self.task_file();
        Step::More
    }

    /// What of the queue is to be asked of the drive.
    fn queue_requests(&mut self, dma: &Dma) -> Vec<(u8, Request)> {
        let mut requests = Vec::new();
        if !self.running() {
            return requests;
        }
        for n in 0..self.s.queue.len() {
            let Some(queued) = self.s.queue.get_mut(n).filter(|q| !q.sent) else { continue };
            match queued.next(dma) {
                Ok(request) => {
                    queued.sent = true;
                    requests.push((queued.tag, request));
                }
                Err(fault) => {
                    self.queue_fault(fault);
                    return Vec::new();
                }
            }
        }
        requests
    }

    fn queue_fault(&mut self, fault: Fault) {
        self.abandon();
        self.stop(if fault == Fault::Short { is::OFS } else { is::HBFS });
    }

    /// A request of the queue has ended.
    fn queue_answered(&mut self, dma: &Dma, tag: u8, reply: Reply) {
        let Some(n) = self.s.queue.iter().position(|q| q.tag == tag && q.sent) else { return };
        let queued = &mut self.s.queue[n];
        let data = match reply {
            Ok(data) => data,
            Err(why) => {
                let bits = Device::error_of(why, queued.reads());
                let failed = queued.failed(status::DRDY | status::ERR, bits);
                return self.queue_failed(dma, failed, bits);
            }
        };
        match queued.done(dma, &data) {
            Ok(true) => {
                self.s.queue.remove(n);
                self.s.sact &= !(1 << tag);
                self.s.is |= is::SDBS;
                let frame = fis::set_device_bits(status::DRDY | status::DSC, 0, 1 << tag);
                self.receive(dma, fis::AT_SET_DEVICE_BITS, &frame);
            }
            Ok(false) => {}
            Err(fault) => self.queue_fault(fault),
        }
    }

    fn read(&self, at: u64) -> u32 {
        let s = &self.s;
        match at {
            reg::CLB => s.clb as u32,
            reg::CLBU => (s.clb >> 32) as u32,
            reg::FB => s.fb as u32,
            reg::FBU => (s.fb >> 32) as u32,
            reg::IS => self.is_now(),
            reg::IE => s.ie,
            reg::CMD => {
                let shown = |on: u32, what: u32| if s.cmd & on != 0 { what } else { 0 };
                let slot = s.current.as_ref().map_or(s.slot, |c| c.slot);
                let fixed = cmd::SUD | cmd::POD | u32::from(slot & 0x1f) << 8;
                s.cmd | fixed | shown(cmd::ST, cmd::CR) | shown(cmd::FRE, cmd::FR)
            }
            reg::TFD => s.tfd,
            reg::SIG => s.sig,
            reg::SSTS => match (s.sctl & DET, &self.device) {
                (DET_RESET, _) | (_, None) => 0,
                (DET_OFFLINE, _) => DET_OFFLINE,
                _ => SSTS_UP,
            },
            reg::SCTL => s.sctl,
            reg::SERR => s.serr,
            reg::SACT => s.sact,
            reg::CI => s.ci,
            _ => 0,
        }
    }

    /// A write; false if it is to a register that bytes cannot be written of.
    fn write(&mut self, at: u64, value: u32) {
        let s = &mut self.s;
        let low = |old: u64, mask: u32| old & !0xffff_ffff | u64::from(value & mask);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        match at {
            reg::CLB => s.clb = low(s.clb, !0x3ff),
            reg::CLBU => s.clb = high(s.clb),
            reg::FB => s.fb = low(s.fb, !(fis::RECEIVED as u32 - 1)),
            reg::FBU => s.fb = high(s.fb),
            reg::IS => s.is &= !value,
            reg::IE => s.ie = value & is::ALL,
            reg::CMD => {
                let stopped = s.cmd & cmd::ST != 0 && value & cmd::ST == 0;
                s.cmd = value & cmd::KEPT;
                if value & cmd::CLO != 0 {
                    s.tfd &= !u32::from(status::BSY | status::DRQ);
                }
                if stopped {
                    (s.ci, s.sact, s.halted) = (0, 0, false);
                    s.slot = 31;
                    self.abandon();
                }
            }
            reg::SCTL => {
                let before = std::mem::replace(&mut s.sctl, value & 0xfff);
                if before & DET == DET_RESET && value & DET == 0 {
                    self.link_reset();
                }
            }
            reg::SERR => s.serr &= !value,
            // Bits are set while the port runs, and cleared by the device alone.
            reg::SACT if s.cmd & cmd::ST != 0 => s.sact |= value,
            reg::CI if s.cmd & cmd::ST != 0 => s.ci |= value,
            _ => {}
        }
    }
}

impl Port {
    /// Port `number` of a controller, with nothing on it, which is `name` to `bus=`.
    pub fn new(number: u8, name: String, host: Arc<Host>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self { number, name, host, inner: Mutex::default(), me: me.clone() })
    }

    fn dma(&self) -> &Dma {
        self.host.function.dma()
    }

    /// Has follow what an access, or the end of a request, has changed.
    fn settle(&self, mut inner: MutexGuard<'_, Inner>) {
        let dma = self.dma();
        inner.run(dma);
        let queued = inner.queue_requests(dma);
        let queue_generation = inner.queue_generation;
        inner.at_drive += queued.len() as u32;
        let generation = inner.device_generation;
        if let Some(device) = &mut inner.device {
            let drive = device.drive().clone();
            if let Some(request) = device.take_request() {
                let me = self.me.clone();
                drive.submit(request, move |reply| {
                    if let Some(port) = me.upgrade() {
                        port.answered(generation, reply);
                    }
                });
            }
            for (tag, request) in queued {
                let me = self.me.clone();
                drive.submit(request, move |reply| {
                    if let Some(port) = me.upgrade() {
                        port.queue_answered(queue_generation, generation, tag, reply);
                    }
                });
            }
        }
        let pending = inner.is_now() & inner.s.ie != 0;
        self.host.port_changed(self.number, pending);
    }

    fn answered(&self, generation: u64, reply: Reply) {
        let mut inner = self.inner.lock();
        if inner.device_generation == generation
            && let Some(device) = &mut inner.device
        {
            device.answered(reply);
            self.settle(inner);
        }
    }

    fn queue_answered(&self, queue: u64, generation: u64, tag: u8, reply: Reply) {
        let mut inner = self.inner.lock();
        if inner.device_generation != generation {
            return;
        }
        inner.at_drive = inner.at_drive.saturating_sub(1);
        if inner.queue_generation == queue {
            inner.queue_answered(self.dma(), tag, reply);
        }
        self.settle(inner);
    }

    /// Reads a register of 32 bits.
    pub fn read(&self, at: u64) -> u32 {
        self.inner.lock().read(at)
    }

    /// Writes a register of 32 bits.
    pub fn write(&self, at: u64, value: u32) {
        let mut inner = self.inner.lock();
        inner.write(at, value);
        self.settle(inner);
    }

    /// Whether a register is one in which bits that are written as 0 change nothing.
    pub fn takes_ones(at: u64) -> bool {
        matches!(at, reg::IS | reg::SERR | reg::SACT | reg::CI)
    }

    /// The controller is reset: registers as after power-on, and the link.
    pub fn reset(&self) {
        let mut inner = self.inner.lock();
        inner.abandon();
        inner.s = PortV1::default();
        inner.begin_reset();
        self.settle(inner);
    }

    /// What is saved of it.
    pub fn save(&self) -> PortV1 {
        self.inner.lock().s.clone()
    }

    /// Takes that on; whether it interrupts.
    ///
    /// # Errors
    /// It is no state of such a port.
    pub fn restore(&self, saved: PortV1) -> Result<bool, Invalid> {
        let mut inner = self.inner.lock();
        let capacity = inner.device.as_ref().map_or(0, |d| d.drive().size() / SECTOR);
        let tags = saved.queue.iter().fold(0u32, |tags, q| tags | 1 << (q.tag & 31));
        let current_ok = saved.current.as_ref().is_none_or(|c| c.slot < 32);
        if saved.slot > 31
            || !current_ok
            || tags.count_ones() as usize != saved.queue.len()
            || saved.queue.iter().any(|q| !q.is_valid(capacity))
            || inner.device.is_none() && (saved.current.is_some() || !saved.queue.is_empty())
        {
            return Err(Invalid("a port's command"));
        }
        inner.s = saved;
        inner.s.queue.iter_mut().for_each(|q| q.sent = false);
        inner.queue_generation += 1;
        inner.at_drive = 0;
        Ok(inner.is_now() & inner.s.ie != 0)
    }
}

impl Cable for Port {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn number(&self) -> u8 {
        self.number
    }

    fn units(&self) -> usize {
        1
    }

    fn queue(&self) -> u8 {
        queue::DEPTH
    }

    fn is_free(&self, unit: usize) -> bool {
        unit == 0 && self.inner.lock().device.is_none()
    }

    fn plug(&self, unit: usize, device: Device) -> bool {
        let mut inner = self.inner.lock();
        if unit != 0 || inner.device.is_some() {
            return false;
        }
        inner.device = Some(device);
        inner.begin_reset();
        self.settle(inner);
        true
    }

    fn with(&self, _: usize, what: &mut dyn FnMut(&mut Device)) {
        let mut inner = self.inner.lock();
        if let Some(device) = &mut inner.device {
            what(device);
        }
        self.settle(inner);
    }

    fn forget_requests(&self, _: usize) {
        let mut inner = self.inner.lock();
        inner.device_generation += 1;
        inner.abandon();
        inner.at_drive = 0;
    }

    fn save_device(&self, _: usize) -> DeviceV1 {
        self.inner.lock().device.as_ref().expect("a device was plugged in here").save()
    }

    fn restore_device(&self, _: usize, saved: DeviceV1) -> Result<(), Invalid> {
        let mut inner = self.inner.lock();
        inner.device_generation += 1;
        inner.device.as_mut().map_or(Ok(()), |device| device.restore(saved))
    }
}
