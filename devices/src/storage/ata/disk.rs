//! The commands of a disk.
use super::device::{Asked, CHUNK, Device, Op, PIO_CHUNK, Phase, ResetKind};
use super::{SECTOR, command as c, device_bits, error, identify, status};
use mynah_block::Reply;

/// Most sectors of a block of READ MULTIPLE and WRITE MULTIPLE.
pub(in crate::storage) const MULTIPLE: u16 = 16;
/// Power modes (ATA/ATAPI-6, 8.7).
pub(in crate::storage) const ACTIVE: u8 = 0xff;
const IDLE: u8 = 0x80;
const STANDBY: u8 = 0x00;

/// What LBA mid and high must be for SMART (8.41).
const SMART_KEY: [u8; 2] = [0x4f, 0xc2];
/// Attributes of SMART: number, flags, value, worst, raw value, threshold.
const ATTRIBUTES: [(u8, u16, u8, u8, u8, u8); 7] = [
    // Read errors, spin-up time, starts, reallocated sectors, hours, power cycles, temperature.
    (0x01, 0x0003, 100, 100, 0, 6),
    (0x03, 0x0003, 100, 100, 16, 0),
    (0x04, 0x0002, 100, 100, 100, 20),
    (0x05, 0x0003, 100, 100, 0, 36),
    (0x09, 0x0003, 100, 100, 1, 0),
    (0x0c, 0x0003, 100, 100, 0, 0),
    (0xbe, 0x0003, 69, 69, 31, 50),
];

impl Device {
    fn sectors(&self) -> u64 {
        self.drive.size() / SECTOR
    }

    pub(in crate::storage) fn disk_command(&mut self, code: u8) {
        match code {
            c::READ_SECTORS | c::READ_SECTORS_ONCE => self.read_sectors(false, false, 1),
            c::READ_SECTORS_EXT => self.read_sectors(true, false, 1),
            c::READ_MULTIPLE => self.read_sectors(false, false, self.state.multiple),
            c::READ_MULTIPLE_EXT => self.read_sectors(true, false, self.state.multiple),
            c::READ_DMA | c::READ_DMA_ONCE => self.read_sectors(false, true, 1),
            c::READ_DMA_EXT => self.read_sectors(true, true, 1),
            c::WRITE_SECTORS | c::WRITE_SECTORS_ONCE | c::WRITE_VERIFY => self.write_sectors(false, false, 1),
            c::WRITE_SECTORS_EXT => self.write_sectors(true, false, 1),
            c::WRITE_MULTIPLE => self.write_sectors(false, false, self.state.multiple),
            c::WRITE_MULTIPLE_EXT => self.write_sectors(true, false, self.state.multiple),
            c::WRITE_DMA | c::WRITE_DMA_ONCE => self.write_sectors(false, true, 1),
            c::WRITE_DMA_EXT => self.write_sectors(true, true, 1),
            c::WRITE_DMA_FUA_EXT | c::WRITE_MULTIPLE_FUA_EXT => {
                let dma = code == c::WRITE_DMA_FUA_EXT;
                self.write_sectors(true, dma, if dma { 1 } else { self.state.multiple });
                self.state.durable = self.state.op == Op::Write;
            }
            c::READ_VERIFY | c::READ_VERIFY_ONCE | c::READ_VERIFY_EXT => {
                if self.begin(Op::Verify, code == c::READ_VERIFY_EXT, false, 1) {
                    self.next_read();
                }
            }
            c::FLUSH_CACHE | c::FLUSH_CACHE_EXT => self.flush(),
            c::DATA_SET_MANAGEMENT => self.data_set_management(),
            c::IDENTIFY_DEVICE => {
                let words = identify::disk(&self.setup, &self.state, &self.drive, self.sectors());
                self.answer(words);
            }
            c::SET_FEATURES => self.set_features(),
            c::SET_MULTIPLE_MODE => match self.regs.count[0] {
                n if u16::from(n) > MULTIPLE || n != 0 && !n.is_power_of_two() => self.abort(),
                n => {
                    self.state.multiple = n.into();
                    self.complete();
                }
            },
            c::INITIALIZE_DEVICE_PARAMETERS => self.initialize_parameters(),
            c::SEEK..=0x7f => match self.address(false) {
                Ok(lba) if lba < self.sectors() => self.complete(),
                _ => self.fail(error::IDNF),
            },
            // Recalibrate, in all its step rates.
            c::RECALIBRATE..=0x1f => self.complete(),
            c::READ_NATIVE_MAX | c::READ_NATIVE_MAX_EXT => {
                let wide = code == c::READ_NATIVE_MAX_EXT;
                let most = if wide { (1 << 48) - 1 } else { 0x0fff_ffff };
                self.regs.set_lba(wide, self.sectors().saturating_sub(1).min(most));
                self.complete();
            }
            c::SMART => self.smart(),
            _ => self.common_command(code),
        }
    }

    /// Commands that every device has.
    pub(in crate::storage) fn common_command(&mut self, code: u8) {
        match code {
            c::EXECUTE_DEVICE_DIAGNOSTIC => self.reset(ResetKind::Diagnostic),
            c::SET_FEATURES => self.set_features(),
            c::STANDBY_IMMEDIATE | c::STANDBY | c::SLEEP | 0x94 | 0x96 | 0x99 => self.power(STANDBY),
            c::IDLE_IMMEDIATE | c::IDLE | 0x95 | 0x97 => self.power(IDLE),
            c::CHECK_POWER_MODE | 0x98 => {
                self.regs.count[0] = self.state.power;
                self.complete();
            }
            _ => self.abort(),
        }
    }

    fn power(&mut self, mode: u8) {
        self.state.power = mode;
        self.complete();
        self.regs.status = status::DRDY;
    }

    /// The address that the host gives, and whether there is such a one in its translation.
    fn address(&mut self, wide: bool) -> Result<u64, u8> {
        self.state.chs = !wide && self.regs.device & device_bits::LBA == 0;
        if !self.state.chs {
            return Ok(self.regs.lba(wide));
        }
        let (cylinder, head, sector) = self.regs.chs();
        self.state.geometry().lba(cylinder, head, sector).ok_or(error::IDNF)
    }

    /// Begins a command on the sectors that the host names; false if it has failed.
    fn begin(&mut self, op: Op, wide: bool, dma: bool, multiple: u16) -> bool {
        let (count, lba) = (self.regs.sectors(wide), self.address(wide));
        let lba = match lba {
            _ if multiple == 0 => Err(error::ABRT),
            Ok(lba) if lba + u64::from(count) > self.sectors() => Err(error::ABRT),
            Err(bits) => Err(bits),
            Ok(lba) => Ok(lba),
        };
        let lba = match lba {
            Ok(lba) => lba,
            Err(bits) => {
                self.fail(bits);
                return false;
            }
        };
        let s = &mut self.state;
        (s.op, s.wide, s.dma, s.durable) = (op, wide, dma, false);
        (s.lba, s.left, s.block) = (lba, count, u32::from(multiple) * SECTOR as u32);
        s.power = ACTIVE;
        true
    }

    fn read_sectors(&mut self, wide: bool, dma: bool, multiple: u16) {
        if self.begin(Op::Read, wide, dma, multiple) {
            self.next_read();
        }
    }

    fn write_sectors(&mut self, wide: bool, dma: bool, multiple: u16) {
        if self.begin(Op::Write, wide, dma, multiple) {
            self.next_write();
        }
    }

    /// Asks the drive for the next sectors.
    fn next_read(&mut self) {
        let s = &self.state;
        let most = if s.op == Op::Read && !s.dma { PIO_CHUNK } else { CHUNK };
        let n = u64::from(s.left).min(most as u64 / SECTOR);
        self.ask(Asked::Read(s.lba * SECTOR, n * SECTOR));
    }

    /// Has the host fill the buffer with the next sectors.
    fn next_write(&mut self) {
        let s = &mut self.state;
        let most = if s.dma { CHUNK } else { s.block as usize };
        let len = (s.left as usize).min(most / SECTOR as usize) * SECTOR as usize;
        s.buffer = vec![0; len];
        s.at = 0;
        let phase = if s.dma { Phase::DmaOut } else { Phase::PioOut };
        self.transfer(phase, len);
    }

    /// So many bytes are done: the address registers show what comes next.
    fn advance(&mut self, bytes: usize) {
        let sectors = (bytes as u64 / SECTOR) as u32;
        let s = &mut self.state;
        s.lba += u64::from(sectors);
        s.left = s.left.saturating_sub(sectors);
        let (lba, wide, left) = (s.lba, s.wide, s.left);
        if s.chs {
            let (cylinder, head, sector) = s.geometry().chs(lba);
            self.regs.set_chs(cylinder, head, sector);
        } else {
            self.regs.set_lba(wide, lba);
        }
        self.regs.count[0] = left as u8;
        if wide {
            self.regs.count[1] = (left >> 8) as u8;
        }
    }

    pub(in crate::storage) fn disk_answered(&mut self, asked: Asked, reply: Reply) {
        let data = match reply {
            Ok(data) => data,
            Err(why) => return self.fail(Self::error_of(why, matches!(asked, Asked::Read(..)))),
        };
        match (self.state.op, asked) {
            (Op::Verify, Asked::Read(_, len)) => {
                self.advance(len as usize);
                if self.state.left > 0 { self.next_read() } else { self.complete() }
            }
            (Op::Read, _) => {
                self.state.buffer = data;
                self.state.at = 0;
                if self.state.dma {
                    self.transfer(Phase::DmaIn, self.state.buffer.len());
                } else {
                    self.next_block();
                }
            }
            (Op::Write, Asked::Write(_)) => {
                self.advance(self.state.buffer.len());
                if self.state.left > 0 {
                    self.next_write();
                    self.regs.interrupt = !self.state.dma;
                } else if self.state.durable {
                    self.ask(Asked::Flush);
                } else {
                    self.complete();
                }
            }
            (Op::Trim, _) => self.next_range(),
            _ => self.complete(),
        }
    }

    /// The next block of what was read is the host's to take.
    fn next_block(&mut self) {
        let s = &self.state;
        let end = (s.at as usize + s.block as usize).min(s.buffer.len());
        self.transfer(Phase::PioIn, end);
        self.regs.interrupt = true;
    }

    /// The host, or the bus master, has taken a block.
    pub(in crate::storage) fn read_block_taken(&mut self) {
        let s = &self.state;
        let (at, len) = (s.at as usize, s.buffer.len());
        let bytes = if s.dma { len } else { at - at.saturating_sub(1) / s.block as usize * s.block as usize };
        self.advance(bytes);
        if at < len {
            self.next_block();
        } else if self.state.left > 0 {
            self.state.empty();
            self.next_read();
        } else {
            let dma = self.state.dma;
            self.complete();
            self.regs.interrupt = dma;
        }
    }

    /// The host, or the bus master, has filled the buffer.
    pub(in crate::storage) fn block_filled(&mut self) {
        if self.state.op == Op::Trim {
            let blocks = (self.state.buffer.len() as u64 / SECTOR) as u32;
            self.state.left = self.state.left.saturating_sub(blocks);
            self.state.at = 0;
            return self.next_range();
        }
        self.ask(Asked::Write(self.state.lba * SECTOR));
    }

    fn flush(&mut self) {
        self.state.op = Op::Flush;
        self.ask(Asked::Flush);
    }

    /// DATA SET MANAGEMENT with TRIM, by DMA (ATA8-ACS, 7.10).
    fn data_set_management(&mut self) {
        const TRIM: u8 = 1 << 0;
        if self.regs.features() != TRIM {
            return self.abort();
        }
        let s = &mut self.state;
        (s.op, s.dma, s.wide, s.left) = (Op::Trim, true, true, self.regs.sectors(true));
        self.next_write();
    }

    /// The next range of the list that has come.
    fn next_range(&mut self) {
        while let Some(entry) =
            self.state.buffer.get(self.state.at as usize..).and_then(|rest| rest.first_chunk::<8>())
        {
            let entry = u64::from_le_bytes(*entry);
            self.state.at += 8;
            let (lba, count) = (entry & 0xffff_ffff_ffff, entry >> 48);
            if count == 0 {
                continue;
            }
            if lba + count > self.sectors() {
                return self.abort();
            }
            return self.ask(Asked::Discard(lba * SECTOR, count * SECTOR));
        }
        if self.state.left > 0 { self.next_write() } else { self.complete() }
    }

    fn initialize_parameters(&mut self) {
        let (heads, sectors) = (u32::from(self.regs.device & 0x0f) + 1, u32::from(self.regs.count[0]));
        if sectors == 0 {
            return self.abort();
        }
        let cylinders = (self.sectors() / u64::from(heads * sectors)).min(0xffff) as u32;
        let s = &mut self.state;
        (s.cylinders, s.heads, s.sectors) = (cylinders, heads, sectors);
        self.complete();
    }

    fn set_features(&mut self) {
        let n = self.regs.count[0];
        match self.regs.features() {
            // 8-bit transfers, power management, read look-ahead, defaults after a reset, acoustics: all the same
            // to this device.
            0x05 | 0x42 | 0x55 | 0x66 | 0x67 | 0x69 | 0x85 | 0x96 | 0x9a | 0xaa | 0xc2 | 0xcc => {
                self.complete()
            }
            0x02 if !self.setup.packet => {
                self.drive.set_write_cache(true);
                self.complete();
            }
            0x82 if !self.setup.packet => {
                self.drive.set_write_cache(false);
                self.flush();
            }
            0x03 => self.set_mode(n >> 3, n & 7),
            _ => self.abort(),
        }
    }

    /// The transfer mode (ATA/ATAPI-6, table 44).
    fn set_mode(&mut self, kind: u8, mode: u8) {
        let bit = 1 << mode;
        let s = &mut self.state;
        let modes = match (kind, mode) {
            // PIO, with flow control or without.
            (0, 0 | 1) | (1, 0..=4) => (s.single_dma, s.multi_dma, s.ultra_dma),
            (2, 0..=2) => (bit, 0, 0),
            (4, 0..=2) => (0, bit, 0),
            (8, 0..=5) => (0, 0, bit),
            _ => return self.abort(),
        };
        (s.single_dma, s.multi_dma, s.ultra_dma) = modes;
        self.complete();
    }

    fn smart(&mut self) {
        const READ_DATA: u8 = 0xd0;
        const READ_THRESHOLDS: u8 = 0xd1;
        const AUTOSAVE: u8 = 0xd2;
        const OFFLINE: u8 = 0xd4;
        const READ_LOG: u8 = 0xd5;
        const ENABLE: u8 = 0xd8;
        const DISABLE: u8 = 0xd9;
        const STATUS: u8 = 0xda;
        let feature = self.regs.features();
        if [self.regs.mid[0], self.regs.high[0]] != SMART_KEY || !self.state.smart && feature != ENABLE {
            return self.abort();
        }
        match (feature, self.regs.low[0]) {
            (ENABLE | DISABLE, _) => {
                self.state.smart = feature == ENABLE;
                self.complete();
            }
            // The key as it was: no threshold is exceeded. Self-tests pass at once.
            (STATUS | AUTOSAVE, _) | (OFFLINE, 0..=2 | 127) => self.complete(),
            (READ_DATA, _) => self.answer(smart_data()),
            (READ_THRESHOLDS, _) => self.answer(smart_thresholds()),
            // The logs of errors and of self-tests, which are empty, and the directory of both.
            (READ_LOG, log @ (0 | 1 | 6)) => {
                let mut page = vec![0; 512];
                page[0] = 1;
                if log == 0 {
                    (page[2], page[12]) = (1, 1);
                }
                self.answer(with_sum(page));
            }
            _ => self.abort(),
        }
    }
}

/// The last byte makes all of them 0 in sum.
fn with_sum(mut page: Vec<u8>) -> Vec<u8> {
    page[511] = page[..511].iter().fold(0, |sum: u8, b| sum.wrapping_sub(*b));
    page
}

/// Attributes, and what can be tested (8.41.8).
fn smart_data() -> Vec<u8> {
    let mut page = vec![0; 512];
    page[0] = 1;
    for (entry, (number, flags, value, worst, raw, _)) in page[2..362].chunks_exact_mut(12).zip(ATTRIBUTES) {
        let [low, high] = u16::to_le_bytes(flags);
        entry[..6].copy_from_slice(&[number, low, high, value, worst, raw]);
    }
    // Off-line collection has ended, takes 2 minutes; it can be done at once, as can self-tests; attributes are saved;
    // errors are logged.
    page[362] = 0x02;
    (page[364], page[365]) = (0x20, 0x01);
    page[367] = 1 << 4 | 1 << 3 | 1;
    page[368] = 0x03;
    page[370] = 1;
    (page[372], page[373]) = (2, 54);
    with_sum(page)
}

fn smart_thresholds() -> Vec<u8> {
    let mut page = vec![0; 512];
    page[0] = 1;
    for (entry, (number, _, _, _, _, threshold)) in page[2..362].chunks_exact_mut(12).zip(ATTRIBUTES) {
        entry[..2].copy_from_slice(&[number, threshold]);
    }
    with_sum(page)
}
