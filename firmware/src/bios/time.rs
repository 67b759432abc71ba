//! INT 1Ah (but for PCI BIOS), and the interrupts of timer and clock.
use super::{Bios, Outcome, Platform, Regs, bda, linear};

/// Ticks of a day, at 1,193,182 / 65,536 Hz.
const DAY: u32 = 0x1800b0;
/// Microseconds between two periodic interrupts of the clock, as IBM's BIOS counts them.
const PERIOD: u32 = 976;

/// CMOS registers of the MC146818.
mod cmos {
    pub const SECONDS: u8 = 0x00;
    pub const ALARM_SECONDS: u8 = 0x01;
    pub const MINUTES: u8 = 0x02;
    pub const ALARM_MINUTES: u8 = 0x03;
    pub const HOURS: u8 = 0x04;
    pub const ALARM_HOURS: u8 = 0x05;
    pub const DAY: u8 = 0x07;
    pub const MONTH: u8 = 0x08;
    pub const YEAR: u8 = 0x09;
    pub const A: u8 = 0x0a;
    pub const B: u8 = 0x0b;
    pub const C: u8 = 0x0c;
    pub const CENTURY: u8 = 0x32;
    /// A: an update is in progress.
    pub const UIP: u8 = 1 << 7;
    /// B: updates are halted; B, C: alarm interrupt.
    pub const SET: u8 = 1 << 7;
    pub const AIE: u8 = 1 << 5;
    /// B, C: the periodic interrupt.
    pub const PIE: u8 = 1 << 6;
}

fn from_bcd(b: u8) -> u32 {
    u32::from(b >> 4) * 10 + u32::from(b & 15)
}

/// Waits until no update is in progress, so that what is read belongs together.
fn settle(pc: &mut dyn Platform) {
    for _ in 0..100_000 {
        if pc.cmos(cmos::A) & cmos::UIP == 0 {
            return;
        }
    }
}

/// Sets the tick count from the time of day.
pub(super) fn set_ticks_from_clock(pc: &mut dyn Platform) {
    settle(pc);
    let [h, m, s] = [cmos::HOURS, cmos::MINUTES, cmos::SECONDS].map(|i| from_bcd(pc.cmos(i)));
    let seconds = u64::from((h * 60 + m) * 60 + s);
    pc.set_u32(bda::TICKS, (seconds * 1_193_182 / 65_536) as u32 % DAY);
    pc.set_u8(bda::MIDNIGHT, 0);
}

impl Bios {
    /// IRQ 0.
    pub(super) fn tick(&mut self, r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
        let next = pc.u32(bda::TICKS).wrapping_add(1);
        if next >= DAY {
            pc.set_u32(bda::TICKS, 0);
            let midnights = pc.u8(bda::MIDNIGHT);
            pc.set_u8(bda::MIDNIGHT, midnights.wrapping_add(1));
        } else {
            pc.set_u32(bda::TICKS, next);
        }
        stop_motors(pc);
        match self.waiting.take() {
            Some(kind) => {
                r.ip = self.rom.tick_posts[usize::from(kind != 0)];
                Outcome::Jump
            }
            None => Outcome::Return,
        }
    }
}

/// Floppies' motors run until their time is over.
fn stop_motors(pc: &mut dyn Platform) {
    /// Digital output register: no drive, DMA and interrupts on.
    const DOR: (u16, u8) = (0x3f2, 0x0c);
    let count = pc.u8(bda::MOTOR_COUNT);
    if count == 0 {
        return;
    }
    pc.set_u8(bda::MOTOR_COUNT, count - 1);
    if count == 1 {
        let motors = pc.u8(bda::MOTORS);
        pc.set_u8(bda::MOTORS, motors & 0xf0);
        pc.outb(DOR.0, DOR.1);
    }
}

/// IRQ 8: an event's time passes; an alarm calls INT 4Ah.
pub(super) fn rtc_interrupt(r: &mut Regs, pc: &mut dyn Platform, alarm: u16) -> Outcome {
    // Reading C takes the interrupt away.
    let (b, c) = (pc.cmos(cmos::B), pc.cmos(cmos::C));
    if b & c & cmos::PIE != 0 && pc.u8(bda::WAIT_ACTIVE) & 1 != 0 {
        let left = pc.u32(bda::WAIT_COUNT);
        pc.set_u32(bda::WAIT_COUNT, left.saturating_sub(PERIOD));
        if left <= PERIOD {
            let (offset, segment) = (pc.u16(bda::WAIT_POINTER), pc.u16(bda::WAIT_POINTER + 2));
            let at = linear(segment, offset);
            let flag = pc.u8(at);
            pc.set_u8(at, flag | 0x80);
            end_wait(pc);
        }
    }
    if b & c & cmos::AIE != 0 {
        r.ip = alarm;
        return Outcome::Jump;
    }
    Outcome::Return
}

fn end_wait(pc: &mut dyn Platform) {
    pc.set_u8(bda::WAIT_ACTIVE, 0);
    let b = pc.cmos(cmos::B);
    pc.set_cmos(cmos::B, b & !cmos::PIE);
}

/// INT 15h AH 83h: AL 0 has bit 7 of ES:BX set when CX:DX microseconds are over, AL 1 takes that back.
pub(super) fn event_wait(r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
    match r.al() {
        0 if pc.u8(bda::WAIT_ACTIVE) & 1 != 0 => r.fail(0),
        0 => {
            pc.set_u32(bda::WAIT_POINTER, u32::from(r.es) << 16 | u32::from(r.bx()));
            pc.set_u32(bda::WAIT_COUNT, u32::from(r.cx()) << 16 | u32::from(r.dx()));
            pc.set_u8(bda::WAIT_ACTIVE, 1);
            let mask = pc.inb(0xa1);
            pc.outb(0xa1, mask & !1);
            // 1,024 Hz.
            let a = pc.cmos(cmos::A);
            pc.set_cmos(cmos::A, a & !(cmos::UIP | 0x0f) | 6);
            let b = pc.cmos(cmos::B);
            pc.set_cmos(cmos::B, b | cmos::PIE);
            r.ok()
        }
        1 => {
            end_wait(pc);
            r.ok()
        }
        _ => r.fail(0x86),
    }
}

/// INT 1Ah.
pub(super) fn clock(r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
    match r.ah() {
        0x00 => {
            let ticks = pc.u32(bda::TICKS);
            r.set_cx((ticks >> 16) as u16);
            r.set_dx(ticks as u16);
            r.set_al(pc.u8(bda::MIDNIGHT));
            pc.set_u8(bda::MIDNIGHT, 0);
            r.ok()
        }
        0x01 => {
            pc.set_u32(bda::TICKS, u32::from(r.cx()) << 16 | u32::from(r.dx()));
            pc.set_u8(bda::MIDNIGHT, 0);
            r.ok()
        }
        0x02 => {
            settle(pc);
            r.set_ch(pc.cmos(cmos::HOURS));
            r.set_cl(pc.cmos(cmos::MINUTES));
            r.set_dh(pc.cmos(cmos::SECONDS));
            r.set_dl(pc.cmos(cmos::B) & 1);
            r.ok()
        }
        0x03 => {
            let b = pc.cmos(cmos::B);
            pc.set_cmos(cmos::B, b | cmos::SET);
            for (index, v) in [(cmos::HOURS, r.ch()), (cmos::MINUTES, r.cl()), (cmos::SECONDS, r.dh())] {
                pc.set_cmos(index, v);
            }
            pc.set_cmos(cmos::B, b & !(cmos::SET | 1) | r.dl() & 1);
            r.ok()
        }
        0x04 => {
            settle(pc);
            r.set_ch(pc.cmos(cmos::CENTURY));
            r.set_cl(pc.cmos(cmos::YEAR));
            r.set_dh(pc.cmos(cmos::MONTH));
            r.set_dl(pc.cmos(cmos::DAY));
            r.ok()
        }
        0x05 => {
            let b = pc.cmos(cmos::B);
            pc.set_cmos(cmos::B, b | cmos::SET);
            for (index, v) in
                [(cmos::CENTURY, r.ch()), (cmos::YEAR, r.cl()), (cmos::MONTH, r.dh()), (cmos::DAY, r.dl())]
            {
                pc.set_cmos(index, v);
            }
            pc.set_cmos(cmos::B, b & !cmos::SET);
            r.ok()
        }
        0x06 => {
            let b = pc.cmos(cmos::B);
            if b & cmos::AIE != 0 {
                // There is an alarm already.
                r.carry(true);
                return Outcome::Return;
            }
            for (index, v) in
                [(cmos::ALARM_HOURS, r.ch()), (cmos::ALARM_MINUTES, r.cl()), (cmos::ALARM_SECONDS, r.dh())]
            {
                pc.set_cmos(index, v);
            }
            pc.set_cmos(cmos::B, b | cmos::AIE);
            let mask = pc.inb(0xa1);
            pc.outb(0xa1, mask & !1);
            r.ok()
        }
        0x07 => {
            let b = pc.cmos(cmos::B);
            pc.set_cmos(cmos::B, b & !cmos::AIE);
            r.ok()
        }
        _ => {
            r.carry(true);
            Outcome::Return
        }
    }
}
