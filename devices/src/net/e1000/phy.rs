//! The PHY behind MDIC: registers of IEEE 802.3, clause 22, and Marvell's own (317453, 8.4; 316080, 8.5).
//!
//! Its partner can do all there is, and negotiation ends [`NEGOTIATION`] after it was begun. The link is up from
//! power-on on.
use super::Model;
use crate::clock::Nanos;
use serde::{Deserialize, Serialize};

/// How long negotiation takes; on a wire it takes two seconds.
pub(super) const NEGOTIATION: Nanos = 20_000_000;
/// Pages of 32 registers that there are.
const PAGES: usize = 4;

/// Numbers of registers.
mod reg {
    pub const CONTROL: usize = 0;
    pub const STATUS: usize = 1;
    pub const ID_1: usize = 2;
    pub const ID_2: usize = 3;
    pub const ADVERTISED: usize = 4;
    pub const PARTNER: usize = 5;
    pub const EXPANSION: usize = 6;
    pub const CONTROL_1000: usize = 9;
    pub const STATUS_1000: usize = 10;
    pub const EXTENDED_STATUS: usize = 15;
    pub const SPECIFIC_CONTROL: usize = 16;
    pub const SPECIFIC_STATUS: usize = 17;
    pub const INTERRUPTS: usize = 19;
    pub const EXTENDED_CONTROL: usize = 20;
    /// The 82574's page.
    pub const PAGE: usize = 22;
}
mod control {
    pub const SPEED_1000: u16 = 1 << 6;
    pub const FULL_DUPLEX: u16 = 1 << 8;
    pub const RESTART: u16 = 1 << 9;
    pub const POWER_DOWN: u16 = 1 << 11;
    pub const NEGOTIATE: u16 = 1 << 12;
    pub const SPEED_100: u16 = 1 << 13;
    pub const LOOPBACK: u16 = 1 << 14;
    pub const RESET: u16 = 1 << 15;
}
const LINK: u16 = 1 << 2;
const NEGOTIATED: u16 = 1 << 5;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Phy {
    registers: Vec<u16>,
    page: u16,
    /// The cable is in.
    cable: bool,
    link: bool,
    /// The link was down since the status was read last.
    was_down: bool,
    /// When negotiation ends.
    pub(super) negotiated_at: Option<Nanos>,
}

impl Phy {
    pub(super) fn new(model: Model, cable: bool) -> Self {
        let mut phy = Self {
            registers: vec![0; 32 * PAGES],
            page: 0,
            cable,
            link: cable,
            was_down: !cable,
            negotiated_at: None,
        };
        phy.set_defaults(model);
        phy
    }

    fn set_defaults(&mut self, model: Model) {
        self.registers.fill(0);
        self.page = 0;
        let id_2 = match model {
            Model::I82540em => 0x0c20,
            Model::I82574l => 0x0cb1,
        };
        for (register, value) in [
            (reg::CONTROL, control::NEGOTIATE | control::FULL_DUPLEX | control::SPEED_1000),
            // All of 10 and 100 Mb/s, extended status, preambles may be left out.
            (reg::STATUS, 0x7949),
            (reg::ID_1, 0x0141),
            (reg::ID_2, id_2),
            (reg::ADVERTISED, 0x0de1),
            (reg::CONTROL_1000, 0x0e00),
            (reg::EXTENDED_STATUS, 0x3000),
            (reg::SPECIFIC_CONTROL, 0x0068),
            (reg::EXTENDED_CONTROL, 0x0d60),
        ] {
            self.registers[register] = value;
        }
    }

    pub(super) fn is_valid(&self) -> bool {
        self.registers.len() == 32 * PAGES
    }

    pub(super) fn link(&self) -> bool {
        self.link
    }

    /// Whether what is sent comes back.
    pub(super) fn loopback(&self) -> bool {
        self.registers[reg::CONTROL] & control::LOOPBACK != 0
    }

    /// Speed (0 for 10 Mb/s, 1 for 100, 2 for 1000), and whether it is full duplex: the best that both can, or what
    /// software has chosen.
    pub(super) fn speed(&self) -> (u16, bool) {
        let chosen = self.registers[reg::CONTROL];
        if chosen & control::NEGOTIATE == 0 {
            let speed = match (chosen & control::SPEED_1000 != 0, chosen & control::SPEED_100 != 0) {
                (true, _) => 2,
                (_, true) => 1,
                _ => 0,
            };
            return (speed, chosen & control::FULL_DUPLEX != 0);
        }
        let (gigabit, other) = (self.registers[reg::CONTROL_1000], self.registers[reg::ADVERTISED]);
        match () {
            () if gigabit & 0x200 != 0 => (2, true),
            () if gigabit & 0x100 != 0 => (2, false),
            () if other & 0x100 != 0 => (1, true),
            () if other & 0x80 != 0 => (1, false),
            () => (0, other & 0x40 != 0),
        }
    }

    /// The reset by CTRL's bit, or by the PHY's own.
    pub(super) fn reset(&mut self, model: Model, now: Nanos) {
        self.set_defaults(model);
        self.restart(now);
    }

    /// The link goes down, and comes up in a while if it can.
    fn restart(&mut self, now: Nanos) {
        self.link = false;
        self.was_down = true;
        let on = self.registers[reg::CONTROL] & control::POWER_DOWN == 0;
        self.negotiated_at = (self.cable && on).then(|| now.saturating_add(NEGOTIATION));
    }

    /// The cable is put in or pulled out.
    pub(super) fn set_cable(&mut self, cable: bool, now: Nanos) {
        if self.cable != cable {
            self.cable = cable;
            self.restart(now);
        }
    }

    /// Time has gone on.
    pub(super) fn catch_up(&mut self, now: Nanos) {
        if self.negotiated_at.is_some_and(|at| at <= now) {
            self.negotiated_at = None;
            self.link = self.cable;
        }
    }

    fn index(&self, register: u32) -> Option<usize> {
        let page = if register as usize == reg::PAGE { 0 } else { usize::from(self.page) };
        (page < PAGES).then_some(page * 32 + register as usize % 32)
    }

    pub(super) fn read(&mut self, register: u32) -> u16 {
        let Some(at) = self.index(register) else { return 0 };
        let (speed, full) = self.speed();
        let negotiates = self.registers[reg::CONTROL] & control::NEGOTIATE != 0;
        let done = self.link && negotiates;
        match at {
            reg::STATUS => {
                // A link that was down is told of once (802.3, 22.2.4.2.13).
                let up = self.link && !std::mem::replace(&mut self.was_down, !self.link);
                self.registers[at] | if up { LINK } else { 0 } | if done { NEGOTIATED } else { 0 }
            }
            reg::PARTNER if done => 0xcde1,
            reg::EXPANSION if done => 0x000f,
            reg::STATUS_1000 if done => 0x3c00,
            reg::SPECIFIC_STATUS if self.link => {
                speed << 14 | if full { 1 << 13 } else { 0 } | 1 << 11 | 1 << 10 | 1 << 7
            }
            reg::INTERRUPTS => std::mem::take(&mut self.registers[at]),
            _ => self.registers[at],
        }
    }

    pub(super) fn write(&mut self, model: Model, register: u32, value: u16, now: Nanos) {
        let Some(at) = self.index(register) else { return };
        match at {
            reg::CONTROL if value & control::RESET != 0 => {
                // The registers of 802.3's extensions keep what was chosen.
                self.registers[at] = value & !(control::RESET | control::RESTART);
                self.restart(now);
            }
            reg::CONTROL => {
                let before = self.registers[at];
                let asked = value & control::RESTART != 0 && value & control::NEGOTIATE != 0;
                let value = value & 0xffc0 & !control::RESTART;
                self.registers[at] = value;
                let choice = control::POWER_DOWN
                    | control::NEGOTIATE
                    | control::SPEED_1000
                    | control::SPEED_100
                    | control::FULL_DUPLEX;
                if (value ^ before) & choice != 0 || asked {
                    self.restart(now);
                }
            }
            reg::STATUS | reg::ID_1 | reg::ID_2 | reg::PARTNER | reg::EXPANSION | reg::STATUS_1000 => {}
            reg::EXTENDED_STATUS | reg::SPECIFIC_STATUS | reg::INTERRUPTS => {}
            reg::PAGE if model == Model::I82574l => {
                self.registers[at] = value;
                self.page = value & 0x3fff;
            }
            _ => self.registers[at] = value,
        }
    }
}
