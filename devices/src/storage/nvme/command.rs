//! Commands, how they end, and where their data are: PRPs and SGLs.
//!
//! Source: NVM Express 1.4, 4.2 (submission queue entry), 4.3 (PRP), 4.4 (SGL), 4.6.1 (status).
use crate::dma::Session;
use crate::pieces::Piece;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

/// Bytes of a submission queue entry.
pub const COMMAND_LEN: usize = 64;
/// The most descriptors of a scatter-gather list.
const MOST_DESCRIPTORS: usize = 4096;

/// A submission queue entry.
#[derive(Clone, Copy, Debug, Default)]
pub struct Command {
    pub opcode: u8,
    /// Fused operation, and whether data are told of by PRPs or an SGL.
    pub flags: u8,
    pub id: u16,
    pub nsid: u32,
    /// The data pointer's halves.
    pub prp1: u64,
    pub prp2: u64,
    /// Command dwords 10 to 15.
    pub cdw: [u32; 6],
}

impl Command {
    pub fn parse(bytes: &[u8; COMMAND_LEN]) -> Self {
        let dword = |n: usize| {
            let b = &bytes[4 * n..4 * n + 4];
            u32::from_le_bytes([b[0], b[1], b[2], b[3]])
        };
        let qword = |n: usize| u64::from(dword(n)) | u64::from(dword(n + 1)) << 32;
        Self {
            opcode: bytes[0],
            flags: bytes[1],
            id: (dword(0) >> 16) as u16,
            nsid: dword(1),
            prp1: qword(6),
            prp2: qword(8),
            cdw: std::array::from_fn(|n| dword(10 + n)),
        }
    }

    /// Command dword `n`, from 10 to 15.
    pub fn dword(&self, n: usize) -> u32 {
        self.cdw[n - 10]
    }

    /// The first block, of commands that have one.
    pub fn start(&self) -> u64 {
        u64::from(self.cdw[0]) | u64::from(self.cdw[1]) << 32
    }

    /// Where its data are told to be an SGL, not PRPs (PSDT).
    fn psdt(&self) -> u8 {
        self.flags >> 6
    }

    /// Where `len` bytes of its data are, with pages of `page` bytes.
    ///
    /// # Errors
    /// How the command ends if it does not say so as it must.
    pub fn data(&self, memory: &Session<'_>, len: u64, page: u64, admin: bool) -> Result<Vec<Piece>, Status> {
        match self.psdt() {
            0 => prps(memory, self.prp1, self.prp2, len, page),
            1 | 2 if !admin => sgl(memory, self.prp1, self.prp2, len),
            _ => Err(Status::INVALID_FIELD),
        }
    }
}

/// How a command ended: code, type of the code, and whether it is of no use to try it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status(pub u16);

impl Status {
    /// Do not retry.
    const DNR: u16 = 1 << 14;

    const fn generic(code: u16) -> Self {
        Self(code | Self::DNR)
    }

    const fn specific(code: u16) -> Self {
        Self(1 << 8 | code | Self::DNR)
    }

    const fn media(code: u16) -> Self {
        Self(2 << 8 | code)
    }

    pub const SUCCESS: Self = Self(0);
    pub const INVALID_OPCODE: Self = Self::generic(0x01);
    pub const INVALID_FIELD: Self = Self::generic(0x02);
    pub const DATA_TRANSFER: Self = Self(0x04);
    pub const INTERNAL: Self = Self(0x06);
    pub const ABORT_REQUESTED: Self = Self(0x07);
    pub const SQ_DELETED: Self = Self(0x08);
    pub const INVALID_NAMESPACE: Self = Self::generic(0x0b);
    pub const SEQUENCE: Self = Self::generic(0x0c);
    pub const SGL_SEGMENT: Self = Self::generic(0x0d);
    pub const SGL_DESCRIPTORS: Self = Self::generic(0x0e);
    pub const SGL_LENGTH: Self = Self::generic(0x0f);
    pub const SGL_TYPE: Self = Self::generic(0x11);
    pub const PRP_OFFSET: Self = Self::generic(0x13);
    pub const WRITE_PROTECTED: Self = Self::generic(0x20);
    pub const LBA_RANGE: Self = Self::generic(0x80);
    pub const CAPACITY: Self = Self(0x81);
    pub const NOT_READY: Self = Self(0x82);
    pub const CQ_INVALID: Self = Self::specific(0x00);
    pub const QUEUE_ID: Self = Self::specific(0x01);
    pub const QUEUE_SIZE: Self = Self::specific(0x02);
    pub const EVENT_LIMIT: Self = Self::specific(0x05);
    pub const VECTOR: Self = Self::specific(0x08);
    pub const LOG_PAGE: Self = Self::specific(0x09);
    pub const FORMAT: Self = Self::specific(0x0a);
    pub const QUEUE_DELETION: Self = Self::specific(0x0c);
    pub const NOT_SAVEABLE: Self = Self::specific(0x0d);
    pub const WRITE_FAULT: Self = Self::media(0x80);
    pub const READ_ERROR: Self = Self::media(0x81);
    pub const COMPARE: Self = Self(2 << 8 | 0x85 | Self::DNR);

    /// Whether it is one of the medium.
    pub fn is_media(self) -> bool {
        self.0 >> 8 & 7 == 2
    }
}

/// Adds a piece, to the last one if it goes on where that ends.
fn add(pieces: &mut Vec<Piece>, at: u64, len: u64) {
    if len == 0 {
        return;
    }
    if let Some(last) = pieces.last_mut()
        && last.at.checked_add(last.len.into()) == Some(at)
        && let Ok(both) = u32::try_from(u64::from(last.len) + len)
    {
        last.len = both;
        return;
    }
    // No transfer is of more.
    pieces.push(Piece { at, len: len as u32 });
}

/// Physical region pages (4.3).
fn prps(memory: &Session<'_>, prp1: u64, prp2: u64, len: u64, page: u64) -> Result<Vec<Piece>, Status> {
    if prp1 & 3 != 0 {
        return Err(Status::PRP_OFFSET);
    }
    let mut pieces = Vec::new();
    let first = len.min(page - prp1 % page);
    add(&mut pieces, prp1, first);
    let mut left = len - first;
    if left == 0 {
        return Ok(pieces);
    }
    if left <= page {
        if !prp2.is_multiple_of(page) {
            return Err(Status::PRP_OFFSET);
        }
        add(&mut pieces, prp2, left);
        return Ok(pieces);
    }
    // The list's first page may be entered anywhere, the others begin at their beginning.
    let (mut list, mut within) = (prp2, prp2 % page);
    if !list.is_multiple_of(8) {
        return Err(Status::PRP_OFFSET);
    }
    let mut bytes = Vec::new();
    loop {
        let slots = (page - within) / 8;
        let needed = left.div_ceil(page);
        bytes.resize(8 * needed.min(slots) as usize, 0);
        memory.read_slice(&mut bytes, GuestAddress(list)).map_err(|_| Status::DATA_TRANSFER)?;
        let entries = bytes.chunks_exact(8).map(|b| b.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)));
        let here = if needed > slots { slots - 1 } else { needed };
        let mut next = 0;
        for (n, entry) in entries.enumerate() {
            if !entry.is_multiple_of(page) {
                return Err(Status::PRP_OFFSET);
            }
            if (n as u64) < here {
                let part = left.min(page);
                add(&mut pieces, entry, part);
                left -= part;
            } else {
                next = entry;
            }
        }
        if left == 0 {
            return Ok(pieces);
        }
        (list, within) = (next, 0);
    }
}

/// A scatter-gather list (4.4), whose first descriptor is in the command.
fn sgl(memory: &Session<'_>, low: u64, high: u64, len: u64) -> Result<Vec<Piece>, Status> {
    const DATA_BLOCK: u8 = 0;
    const SEGMENT: u8 = 2;
    const LAST_SEGMENT: u8 = 3;
    const DESCRIPTOR: usize = 16;
    let kind = |high: u64| match (high >> 60) as u8 {
        // The subtype: an address, no offset.
        kind @ (DATA_BLOCK | SEGMENT | LAST_SEGMENT) if high >> 56 & 0xf == 0 => Ok(kind),
        _ => Err(Status::SGL_TYPE),
    };
    let mut pieces = Vec::new();
    let (mut left, mut seen) = (len, 0);
    let mut take = |at: u64, bytes: u64| {
        if bytes > left {
            return Err(Status::SGL_LENGTH);
        }
        left -= bytes;
        add(&mut pieces, at, bytes);
        Ok(())
    };
    let mut segment = match kind(high)? {
        DATA_BLOCK => {
            take(low, high & 0xffff_ffff)?;
            None
        }
        kind => Some((low, high as u32, kind)),
    };
    while let Some((at, size, segment_kind)) = segment.take() {
        let size = size as usize;
        if size == 0 || !size.is_multiple_of(DESCRIPTOR) {
            return Err(Status::SGL_SEGMENT);
        }
        let count = size / DESCRIPTOR;
        seen += count;
        if seen > MOST_DESCRIPTORS {
            return Err(Status::SGL_DESCRIPTORS);
        }
        let mut bytes = vec![0; size];
        memory.read_slice(&mut bytes, GuestAddress(at)).map_err(|_| Status::DATA_TRANSFER)?;
        let word = |n: usize| bytes[8 * n..8 * n + 8].iter().rev().fold(0, |w, b| w << 8 | u64::from(*b));
        for n in 0..count {
            let (low, high) = (word(2 * n), word(2 * n + 1));
            match kind(high)? {
                DATA_BLOCK => take(low, high & 0xffff_ffff)?,
                // What leads on is the last of a segment that is not the last one.
                kind if n + 1 == count && segment_kind == SEGMENT => {
                    segment = Some((low, high as u32, kind));
                }
                _ => return Err(Status::SGL_SEGMENT),
            }
        }
        if segment.is_none() && segment_kind == SEGMENT {
            return Err(Status::SGL_SEGMENT);
        }
    }
    if left > 0 { Err(Status::SGL_LENGTH) } else { Ok(pieces) }
}
