//! Log pages (5.14).
use super::command::{Command, Status};
use super::controller::Turn;
use super::features::TEMPERATURE;
use super::task::{Origin, Task, What};
use crate::clock::SECOND;
use serde::{Deserialize, Serialize};

/// Log page identifiers.
mod page {
    pub const ERRORS: u8 = 0x01;
    pub const HEALTH: u8 = 0x02;
    pub const FIRMWARE: u8 = 0x03;
    pub const NAMESPACES: u8 = 0x04;
    pub const COMMANDS: u8 = 0x05;
}

/// Errors that are kept (ELPE and one).
pub const ERRORS: usize = 4;
const ERROR_LEN: usize = 64;

/// What is counted since power-on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    read_bytes: u64,
    written_bytes: u64,
    reads: u64,
    writes: u64,
    media_errors: u64,
    errors: u64,
    /// The last ones, latest first: number, queue, command, status, namespace.
    last: Vec<(u64, u16, u16, u16, u32)>,
}

impl Counters {
    /// A command has ended.
    pub fn count(&mut self, task: &Task, status: Status) {
        match (&task.what, status) {
            (What::Read { len, .. } | What::Compare { len, .. }, Status::SUCCESS) => {
                self.reads += 1;
                self.read_bytes = self.read_bytes.wrapping_add(*len);
            }
            (What::Write { len, .. }, Status::SUCCESS) => {
                self.writes += 1;
                self.written_bytes = self.written_bytes.wrapping_add(*len);
            }
            (_, status) if status.is_media() => {
                self.media_errors += 1;
                self.errors += 1;
                if let Origin::Command(queue, command) = task.origin {
                    self.last.insert(0, (self.errors, queue, command, status.0 << 1, task.nsid));
                    self.last.truncate(ERRORS);
                }
            }
            _ => {}
        }
    }
}

impl Turn<'_, '_> {
    pub fn get_log_page(&mut self, command: &Command) -> Result<(), Status> {
        const RETAIN: u32 = 1 << 15;
        let id = command.dword(10) as u8;
        let len = (u64::from(command.dword(10) >> 16) | u64::from(command.dword(11) & 0xffff) << 16) + 1;
        let offset = u64::from(command.dword(12)) | u64::from(command.dword(13)) << 32;
        if !offset.is_multiple_of(4) {
            return Err(Status::INVALID_FIELD);
        }
        let page = match id {
            page::ERRORS => self.errors(),
            page::HEALTH => self.health(command.nsid)?,
            page::FIRMWARE => {
                // The first slot is active.
                let mut page = vec![0; 512];
                page[0] = 1;
                page[8..16].copy_from_slice(super::identify::FIRMWARE);
                page
            }
            // None has changed: none can.
            page::NAMESPACES => vec![0; 4096],
            page::COMMANDS => commands(),
            _ => return Err(Status::LOG_PAGE),
        };
        let from = usize::try_from(offset).ok().filter(|from| *from <= page.len());
        let rest = &page[from.ok_or(Status::INVALID_FIELD)?..];
        let len = usize::try_from(len * 4).unwrap_or(usize::MAX).min(rest.len());
        self.give(command, &rest[..len])?;
        if command.dword(10) & RETAIN == 0 {
            let kind = match id {
                page::ERRORS => 0,
                page::HEALTH => 1,
                _ => 2,
            };
            self.inner.told &= !(1 << kind);
        }
        Ok(())
    }

    /// Error information (figure 195).
    fn errors(&self) -> Vec<u8> {
        let mut page = vec![0; ERRORS * ERROR_LEN];
        for (entry, (number, queue, command, status, nsid)) in
            page.chunks_mut(ERROR_LEN).zip(&self.inner.counters.last)
        {
            entry[..8].copy_from_slice(&number.to_le_bytes());
            entry[8..10].copy_from_slice(&queue.to_le_bytes());
            entry[10..12].copy_from_slice(&command.to_le_bytes());
            entry[12..14].copy_from_slice(&status.to_le_bytes());
            // It is no parameter's fault.
            entry[14..16].copy_from_slice(&[0xff, 0xff]);
            entry[24..28].copy_from_slice(&nsid.to_le_bytes());
        }
        page
    }

    /// SMART / health (figure 196).
    fn health(&self, nsid: u32) -> Result<Vec<u8>, Status> {
        if nsid != u32::MAX && nsid != 0 && self.nvme.namespace(nsid).is_none() {
            return Err(Status::INVALID_FIELD);
        }
        let counters = &self.inner.counters;
        let mut page = vec![0; 512];
        page[0] = self.inner.features.warning();
        page[1..3].copy_from_slice(&TEMPERATURE.to_le_bytes());
        // Spare blocks, in percent.
        page[3] = 100;
        page[4] = 10;
        let mut put = |at: usize, value: u64| page[at..at + 8].copy_from_slice(&value.to_le_bytes());
        // In thousands of 512 bytes.
        put(32, counters.read_bytes.div_ceil(512_000));
        put(48, counters.written_bytes.div_ceil(512_000));
        put(64, counters.reads);
        put(80, counters.writes);
        put(112, 1);
        put(128, self.nvme.clock.now() / (3600 * SECOND));
        put(160, counters.media_errors);
        put(176, counters.errors);
        Ok(page)
    }
}

/// Commands supported and effects (figure 201).
fn commands() -> Vec<u8> {
    const SUPPORTED: u32 = 1 << 0;
    const CONTENT_CHANGES: u32 = 1 << 1;
    /// One at a time on a namespace, and nothing else.
    const ALONE: u32 = 2 << 16;
    let mut page = vec![0; 4096];
    let mut put = |at: usize, effects: u32| page[4 * at..4 * at + 4].copy_from_slice(&effects.to_le_bytes());
    for opcode in [0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x08, 0x09, 0x0a, 0x0c] {
        put(opcode, SUPPORTED);
    }
    put(0x80, SUPPORTED | CONTENT_CHANGES | ALONE);
    for (opcode, changes) in
        [(0x00, true), (0x01, true), (0x02, false), (0x05, false), (0x08, true), (0x09, true), (0x0c, false)]
    {
        put(256 + opcode, if changes { SUPPORTED | CONTENT_CHANGES } else { SUPPORTED });
    }
    page
}
