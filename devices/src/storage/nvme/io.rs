//! Commands of the NVM command set (chapter 6).
use super::NAMESPACES;
use super::Namespace;
use super::command::{Command, Status};
use super::controller::Turn;
use super::task::{Origin, Task, What};
use crate::pieces;

/// Operation codes (figure 346).
mod op {
    pub const FLUSH: u8 = 0x00;
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const COMPARE: u8 = 0x05;
    pub const WRITE_ZEROES: u8 = 0x08;
    pub const DATASET: u8 = 0x09;
    pub const VERIFY: u8 = 0x0c;
}

/// Bits of dword 12: force unit access, deallocate.
const FUA: u32 = 1 << 30;
const DEALLOCATE: u32 = 1 << 25;
/// Bytes of a range of dataset management: attributes 32, blocks 32, the first one 64.
const RANGE: usize = 16;

impl Turn<'_, '_> {
    pub fn io(&mut self, queue: u16, command: &Command) {
        tracing::trace!(?command, "nvme: I/O");
        match self.parse(queue, command) {
            Ok(task) => self.submit(task, false),
            Err(status) => {
                tracing::debug!(?command, ?status, "nvme: a command fails");
                self.inner.end(queue, command.id, 0, status);
            }
        }
    }

    fn parse(&self, queue: u16, command: &Command) -> Result<Task, Status> {
        let origin = Origin::Command(queue, command.id);
        if command.flags & 3 != 0 {
            return Err(Status::INVALID_FIELD);
        }
        if command.opcode == op::FLUSH && command.nsid == u32::MAX {
            let all = self.nvme.namespaces().iter().map(|n| n.nsid).collect();
            return Ok(Task::new(origin, 0, What::Flush(all), Vec::new(), false));
        }
        if !(1..=NAMESPACES).contains(&command.nsid) {
            return Err(Status::INVALID_NAMESPACE);
        }
        let namespace = self.nvme.namespace(command.nsid).ok_or(Status::INVALID_FIELD)?;
        let durable = command.dword(12) & FUA != 0;
        let mut pieces = Vec::new();
        let what = match command.opcode {
            op::FLUSH => What::Flush(vec![namespace.nsid]),
            op::READ | op::WRITE | op::COMPARE => {
                let (at, len) = place(&namespace, command)?;
                let most = 4096_u64 << self.nvme.options.mdts;
                if self.nvme.options.mdts != 0 && len > most {
                    return Err(Status::INVALID_FIELD);
                }
                if command.opcode == op::WRITE && namespace.drive.read_only() {
                    return Err(Status::WRITE_PROTECTED);
                }
                pieces = command.data(self.memory, len, self.page, false)?;
                match command.opcode {
                    op::READ => What::Read { at, len },
                    op::WRITE => What::Write { at, len },
                    _ => What::Compare { at, len },
                }
            }
            op::VERIFY => {
                let (at, len) = place(&namespace, command)?;
                What::Verify { at, len }
            }
            op::WRITE_ZEROES => {
                let (at, len) = place(&namespace, command)?;
                if namespace.drive.read_only() {
                    return Err(Status::WRITE_PROTECTED);
                }
                What::Zero { at, len, unmap: command.dword(12) & DEALLOCATE != 0 }
            }
            op::DATASET => self.dataset(&namespace, command)?,
            _ => return Err(Status::INVALID_OPCODE),
        };
        let changes = matches!(what, What::Write { .. } | What::Zero { .. });
        Ok(Task::new(
            origin,
            namespace.nsid,
            what,
            pieces,
            durable && changes && namespace.drive.write_cache(),
        ))
    }

    /// Dataset management (6.7): what is not used any more is let go of.
    fn dataset(&self, namespace: &Namespace, command: &Command) -> Result<What, Status> {
        const DEALLOCATE: u32 = 1 << 2;
        let mut bytes = vec![0; RANGE * (1 + (command.dword(10) & 0xff) as usize)];
        let data = command.data(self.memory, bytes.len() as u64, self.page, false)?;
        if !pieces::read(self.memory, &data, 0, &mut bytes) {
            return Err(Status::DATA_TRANSFER);
        }
        let mut ranges = Vec::new();
        for range in bytes.chunks_exact(RANGE) {
            let word = |at: usize| range[at..at + 8].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
            let (blocks, first) = (word(0) >> 32, word(8));
            if first.checked_add(blocks).is_none_or(|end| end > namespace.blocks()) {
                return Err(Status::LBA_RANGE);
            }
            if blocks > 0 {
                ranges.push((first << namespace.shift, blocks << namespace.shift));
            }
        }
        if command.dword(11) & DEALLOCATE == 0 {
            // How it is used is of no interest.
            ranges.clear();
        } else if namespace.drive.read_only() {
            return Err(Status::WRITE_PROTECTED);
        }
        Ok(What::Discard(ranges))
    }
}

/// Where a command's blocks are, in bytes, if the namespace has them.
fn place(namespace: &Namespace, command: &Command) -> Result<(u64, u64), Status> {
    let (first, blocks) = (command.start(), u64::from(command.dword(12) & 0xffff) + 1);
    match first.checked_add(blocks) {
        Some(end) if end <= namespace.blocks() => Ok((first << namespace.shift, blocks << namespace.shift)),
        _ => Err(Status::LBA_RANGE),
    }
}
