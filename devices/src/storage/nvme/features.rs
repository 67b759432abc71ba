//! Features (5.21): what the host chooses of the controller.
use super::command::Status;
use super::controller::Turn;
use crate::clock::Nanos;
use crate::pieces;
use mynah_block::Request;
use serde::{Deserialize, Serialize};

use super::command::Command;

/// Feature identifiers.
mod id {
    pub const ARBITRATION: u8 = 0x01;
    pub const POWER: u8 = 0x02;
    pub const TEMPERATURE: u8 = 0x04;
    pub const ERROR_RECOVERY: u8 = 0x05;
    pub const WRITE_CACHE: u8 = 0x06;
    pub const QUEUES: u8 = 0x07;
    pub const COALESCING: u8 = 0x08;
    pub const VECTOR: u8 = 0x09;
    pub const ATOMICITY: u8 = 0x0a;
    pub const EVENTS: u8 = 0x0b;
    pub const TIMESTAMP: u8 = 0x0e;
}

/// The temperature of the controller, in kelvins, and where it would be too hot.
pub const TEMPERATURE: u16 = 0x143;
pub const WARNING: u16 = 0x157;
pub const CRITICAL: u16 = 0x175;
/// Events that the controller can tell of: SMART's warnings.
const EVENTS: u32 = 0x1f;
/// SMART's warning of a temperature.
const TOO_HOT: u8 = 1 << 1;

/// What was chosen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Features {
    arbitration: u32,
    over: u16,
    under: u16,
    coalescing: u32,
    /// Vectors whose interrupts are not to be coalesced.
    alone: Vec<u16>,
    atomicity: u32,
    pub events: u32,
    error_recovery: u32,
    /// Milliseconds that were set, and when.
    timestamp: u64,
    set_at: Option<Nanos>,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            arbitration: 7,
            over: WARNING,
            under: 0,
            coalescing: 0,
            alone: Vec::new(),
            atomicity: 0,
            events: 0,
            error_recovery: 0,
            timestamp: 0,
            set_at: None,
        }
    }
}

impl Features {
    pub fn is_sound(&self) -> bool {
        self.alone.len() <= 2048
    }

    /// SMART's critical warning.
    pub fn warning(&self) -> u8 {
        if TEMPERATURE >= self.over || TEMPERATURE <= self.under { TOO_HOT } else { 0 }
    }

    /// The timestamp (5.21.1.14).
    fn now(&self, now: Nanos) -> u64 {
        const SET_BY_HOST: u64 = 1 << 49;
        const MS: u64 = 1_000_000;
        let (since, origin) = match self.set_at {
            Some(at) => (now.saturating_sub(at) / MS, SET_BY_HOST),
            None => (now / MS, 0),
        };
        self.timestamp.wrapping_add(since) & 0xffff_ffff_ffff | origin
    }
}

impl Turn<'_, '_> {
    /// Get Features: what dword 0 of the end has.
    pub fn get_features(&mut self, command: &Command) -> Result<u32, Status> {
        let (feature, select) = (command.dword(10) as u8, command.dword(10) >> 8 & 7);
        let changeable = 1 << 2;
        match select {
            0 => self.current(feature, command),
            // Nothing is saved: what would be is the default.
            1 | 2 => {
                let chosen = std::mem::take(&mut self.inner.features);
                let found = self.current(feature, command);
                self.inner.features = chosen;
                found
            }
            3 => match feature {
                id::ARBITRATION | id::TEMPERATURE | id::WRITE_CACHE | id::QUEUES | id::COALESCING => {
                    Ok(changeable)
                }
                id::VECTOR | id::ATOMICITY | id::EVENTS | id::TIMESTAMP | id::POWER => Ok(changeable),
                id::ERROR_RECOVERY => Ok(changeable | 1 << 1),
                _ => Err(Status::INVALID_FIELD),
            },
            _ => Err(Status::INVALID_FIELD),
        }
    }

    fn current(&mut self, feature: u8, command: &Command) -> Result<u32, Status> {
        let features = &self.inner.features;
        Ok(match feature {
            id::ARBITRATION => features.arbitration,
            // There is one power state.
            id::POWER => 0,
            id::TEMPERATURE => match (command.dword(11) >> 16 & 0xf, command.dword(11) >> 20 & 3) {
                (0, 0) => features.over.into(),
                (0, 1) => features.under.into(),
                // There are no further sensors.
                (1..=8, _) => 0,
                _ => return Err(Status::INVALID_FIELD),
            },
            id::ERROR_RECOVERY => match self.nvme.namespace(command.nsid) {
                Some(_) => features.error_recovery,
                None => return Err(Status::INVALID_NAMESPACE),
            },
            id::WRITE_CACHE => self.nvme.namespaces().iter().any(|n| n.drive.write_cache()).into(),
            id::QUEUES => self.queues(),
            id::COALESCING => features.coalescing,
            id::VECTOR => {
                let vector = command.dword(11) as u16;
                if vector >= self.nvme.options.vectors {
                    return Err(Status::INVALID_FIELD);
                }
                let alone = vector == 0 || features.alone.contains(&vector);
                u32::from(vector) | u32::from(alone) << 16
            }
            id::ATOMICITY => features.atomicity,
            id::EVENTS => features.events,
            id::TIMESTAMP => {
                let value = features.now(self.nvme.clock.now());
                self.give(command, &value.to_le_bytes())?;
                0
            }
            _ => return Err(Status::INVALID_FIELD),
        })
    }

    /// As many queues of each sort as there are, both less one.
    fn queues(&self) -> u32 {
        let n = u32::from(self.nvme.options.pairs) - 1;
        n | n << 16
    }

    /// Set Features: what dword 0 of the end has.
    pub fn set_features(&mut self, command: &Command) -> Result<u32, Status> {
        const SAVE: u32 = 1 << 31;
        let (feature, value) = (command.dword(10) as u8, command.dword(11));
        if command.dword(10) & SAVE != 0 {
            return Err(Status::NOT_SAVEABLE);
        }
        let features = &mut self.inner.features;
        match feature {
            id::ARBITRATION => features.arbitration = value,
            id::POWER if value & 0x1f != 0 => return Err(Status::INVALID_FIELD),
            id::POWER => {}
            id::TEMPERATURE => {
                match (value >> 16 & 0xf, value >> 20 & 3) {
                    (0 | 0xf, 0) => features.over = value as u16,
                    (0 | 0xf, 1) => features.under = value as u16,
                    (1..=8, 0 | 1) => {}
                    _ => return Err(Status::INVALID_FIELD),
                }
                if features.warning() & features.events as u8 != 0 {
                    // The health log has more.
                    self.inner.event((1, 1, 2));
                }
            }
            id::ERROR_RECOVERY => {
                if command.nsid != u32::MAX && self.nvme.namespace(command.nsid).is_none() {
                    return Err(Status::INVALID_NAMESPACE);
                }
                // Deallocated blocks can be read.
                if value & 1 << 16 != 0 {
                    return Err(Status::INVALID_FIELD);
                }
                features.error_recovery = value & 0xffff;
            }
            id::WRITE_CACHE => self.set_write_cache(value & 1 != 0),
            id::QUEUES => {
                if self.inner.submissions.len() > 1 || self.inner.completions.len() > 1 {
                    return Err(Status::SEQUENCE);
                }
                if value & 0xffff == 0xffff || value >> 16 == 0xffff {
                    return Err(Status::INVALID_FIELD);
                }
                return Ok(self.queues());
            }
            id::COALESCING => features.coalescing = value & 0xffff,
            id::VECTOR => {
                let vector = value as u16;
                // The admin queue's are never coalesced.
                if vector >= self.nvme.options.vectors || vector == 0 && value & 1 << 16 == 0 {
                    return Err(Status::INVALID_FIELD);
                }
                features.alone.retain(|v| *v != vector);
                if value & 1 << 16 != 0 {
                    features.alone.push(vector);
                }
            }
            id::ATOMICITY => features.atomicity = value & 1,
            id::EVENTS => features.events = value & EVENTS,
            id::TIMESTAMP => {
                let mut bytes = [0; 8];
                let data = command.data(self.memory, 8, self.page, true)?;
                if !pieces::read(self.memory, &data, 0, &mut bytes) {
                    return Err(Status::DATA_TRANSFER);
                }
                features.timestamp = u64::from_le_bytes(bytes) & 0xffff_ffff_ffff;
                features.set_at = Some(self.nvme.clock.now());
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(0)
    }

    /// The volatile write cache of all namespaces.
    fn set_write_cache(&mut self, on: bool) {
        for namespace in self.nvme.namespaces() {
            namespace.drive.set_write_cache(on);
            if !on {
                // What was written so far is to be durable as well.
                namespace.drive.submit(Request::Flush, drop);
            }
        }
    }
}
