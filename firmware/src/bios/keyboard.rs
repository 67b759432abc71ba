//! The keyboard: scan codes to keys (INT 09h), the key buffer (INT 16h), and keys from a serial terminal.
//!
//! Layout: US, as of a BIOS. A key in the buffer is a word, scan code and character; E0h as the character (or 0) marks
//! the keys of an enhanced keyboard, which the old functions 00h and 01h show with 0.
use super::{Bios, Outcome, Platform, Regs, bda};

/// Shift flags at 40:17.
mod flag {
    pub const RIGHT_SHIFT: u8 = 1 << 0;
    pub const LEFT_SHIFT: u8 = 1 << 1;
    pub const CTRL: u8 = 1 << 2;
    pub const ALT: u8 = 1 << 3;
    pub const SCROLL_LOCK: u8 = 1 << 4;
    pub const NUM_LOCK: u8 = 1 << 5;
    pub const CAPS_LOCK: u8 = 1 << 6;
    pub const INSERT: u8 = 1 << 7;
}

/// Flags at 40:18, beside those of keys that are down at the places of [`flag`].
mod held {
    pub const LEFT_CTRL: u8 = 1 << 0;
    pub const LEFT_ALT: u8 = 1 << 1;
    pub const SYSTEM_REQUEST: u8 = 1 << 2;
    pub const PAUSE: u8 = 1 << 3;
}

/// 40:96: the last code was E1h, E0h.
const LAST_E1: u8 = 1 << 0;
const LAST_E0: u8 = 1 << 1;
/// 40:96: these keys are down.
const RIGHT_CTRL: u8 = 1 << 2;
const RIGHT_ALT: u8 = 1 << 3;
/// 40:97: bits 0 to 2 are what the lights show; this one that the keyboard is being told.
const LEDS_CHANGING: u8 = 1 << 6;

/// Scan codes.
const CAPS: u8 = 0x3a;
const NUM: u8 = 0x45;
const SCROLL: u8 = 0x46;
const INSERT: u8 = 0x52;
const SYSTEM_REQUEST: u8 = 0x54;

/// What the keyboard is told, and what it answers.
const SET_LEDS: u8 = 0xed;
const SET_TYPEMATIC: u8 = 0xf3;
const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
/// A keyboard's own rate and delay: 10.9 characters a second after 500 ms.
pub(super) const TYPEMATIC: u8 = 0x2b;

/// Characters of scan codes 01h to 39h, plain and with Shift.
const PLAIN: &[u8; 57] = b"\x1b1234567890-=\x08\tqwertyuiop[]\r\0asdfghjkl;'`\0\\zxcvbnm,./\0*\0 ";
const SHIFTED: &[u8; 57] = b"\x1b!@#$%^&*()_+\x08\0QWERTYUIOP{}\r\0ASDFGHJKL:\"~\0|ZXCVBNM<>?\0*\0 ";
/// Characters of the keypad, 47h to 53h, with Num Lock.
const KEYPAD: &[u8; 13] = b"789-456+1230.";

/// The key of a make code under these shift flags.
fn key_of(code: u8, e0: bool, flags: u8) -> Option<u16> {
    let (shift, ctrl, alt) = (
        flags & (flag::LEFT_SHIFT | flag::RIGHT_SHIFT) != 0,
        flags & flag::CTRL != 0,
        flags & flag::ALT != 0,
    );
    let word = |scan: u8, c: u8| Some(u16::from(scan) << 8 | u16::from(c));
    match code {
        // Enter and slash of the keypad.
        0x1c if e0 => word(
            if alt { 0xa6 } else { 0xe0 },
            if ctrl {
                b'\n'
            } else if alt {
                0
            } else {
                b'\r'
            },
        ),
        0x35 if e0 => word(if alt { 0xa4 } else { 0xe0 }, if alt { 0 } else { b'/' }),
        // Function keys: plain, Shift, Ctrl, Alt are rows of their own.
        0x3b..=0x44 => {
            let n = code - 0x3b;
            word(
                if alt {
                    0x68 + n
                } else if ctrl {
                    0x5e + n
                } else if shift {
                    0x54 + n
                } else {
                    code
                },
                0,
            )
        }
        0x57 | 0x58 => {
            let n = code - 0x57;
            word(
                if alt {
                    0x8b
                } else if ctrl {
                    0x89
                } else if shift {
                    0x87
                } else {
                    0x85
                } + n,
                0,
            )
        }
        0x47..=0x53 => {
            let digit = KEYPAD[usize::from(code - 0x47)];
            let number = !e0 && (flags & flag::NUM_LOCK != 0) != shift;
            match code {
                0x4a | 0x4e if !alt && !ctrl => word(code, digit),
                _ if alt => e0.then(|| u16::from(code + 0x50) << 8),
                _ if ctrl => {
                    // Home, up, PgUp, -, left, 5, right, +, End, down, PgDn, Ins, Del.
                    let scan = [0x77, 0x8d, 0x84, 0x8e, 0x73, 0x8f, 0x74, 0x90, 0x75, 0x91, 0x76, 0x92, 0x93]
                        [usize::from(code - 0x47)];
                    word(scan, if e0 { 0xe0 } else { 0 })
                }
                _ if number => word(code, digit),
                _ => word(code, if e0 { 0xe0 } else { 0 }),
            }
        }
        0x01..=0x39 => {
            let i = usize::from(code - 1);
            let plain = PLAIN[i];
            if plain == 0 {
                return None;
            }
            if alt {
                return match code {
                    0x02..=0x0d => word(code + 0x76, 0),
                    0x39 => word(code, b' '),
                    _ => word(code, 0),
                };
            }
            if ctrl {
                return match plain {
                    b'a'..=b'z' => word(code, plain & 0x1f),
                    b'[' | b'\\' | b']' => word(code, plain & 0x1f),
                    b'2' => word(code, 0),
                    b'6' => word(code, 0x1e),
                    b'-' => word(code, 0x1f),
                    0x08 => word(code, 0x7f),
                    b'\r' => word(code, b'\n'),
                    b'\t' => word(0x94, 0),
                    0x1b | b' ' => word(code, plain),
                    _ => None,
                };
            }
            let upper = shift != (plain.is_ascii_lowercase() && flags & flag::CAPS_LOCK != 0);
            word(code, if upper { SHIFTED[i] } else { plain })
        }
        _ => None,
    }
}

/// Scan code and character that a character from a terminal stands for.
fn key_of_character(c: u8) -> Option<u16> {
    let find = |table: &[u8; 57]| table.iter().position(|k| *k == c && c != 0);
    // The keypad's asterisk is not the one above the 8.
    let scan = match c {
        b'*' => Some(8),
        0x7f => return Some(0x0e08),
        b'\n' => return Some(0x1c0a),
        _ => find(PLAIN).or_else(|| find(SHIFTED)),
    };
    match scan {
        Some(i) => Some((i as u16 + 1) << 8 | u16::from(c)),
        None if (1..=26).contains(&c) => find(PLAIN)
            .or_else(|| PLAIN.iter().position(|k| *k == c + b'a' - 1))
            .map(|i| (i as u16 + 1) << 8 | u16::from(c)),
        None => Some(u16::from(c)).filter(|c| *c != 0),
    }
}

/// The key of a terminal's escape sequence (without the escape character).
fn key_of_sequence(s: &[u8]) -> Option<u16> {
    Some(match s {
        b"[A" | b"OA" => 0x48e0,
        b"[B" | b"OB" => 0x50e0,
        b"[C" | b"OC" => 0x4de0,
        b"[D" | b"OD" => 0x4be0,
        b"[H" | b"OH" | b"[1~" => 0x47e0,
        b"[F" | b"OF" | b"[4~" => 0x4fe0,
        b"[2~" => 0x52e0,
        b"[3~" => 0x53e0,
        b"[5~" => 0x49e0,
        b"[6~" => 0x51e0,
        [b'O', k @ b'P'..=b'S'] => (0x3b + u16::from(k - b'P')) << 8,
        b"[15~" => 0x3f00,
        [b'[', b'1', k @ b'7'..=b'9', b'~'] => (0x40 + u16::from(k - b'7')) << 8,
        b"[20~" => 0x4300,
        b"[21~" => 0x4400,
        b"[23~" => 0x8500,
        b"[24~" => 0x8600,
        _ => return None,
    })
}

/// Puts a key into the buffer; false if it is full.
fn store(pc: &mut dyn Platform, key: u16) -> bool {
    let (start, end) = (pc.u16(bda::KEY_BUFFER), pc.u16(bda::KEY_BUFFER_END));
    let tail = pc.u16(bda::KEY_TAIL);
    let mut next = tail.wrapping_add(2);
    if next >= end {
        next = start;
    }
    if next == pc.u16(bda::KEY_HEAD) {
        return false;
    }
    pc.set_u16(0x400 + u32::from(tail), key);
    pc.set_u16(bda::KEY_TAIL, next);
    true
}

/// The next key, which stays or goes.
pub(super) fn next_key(pc: &mut dyn Platform, take: bool) -> Option<u16> {
    let head = pc.u16(bda::KEY_HEAD);
    if head == pc.u16(bda::KEY_TAIL) {
        return None;
    }
    let key = pc.u16(0x400 + u32::from(head));
    if take {
        let next = head.wrapping_add(2);
        let wrapped = next >= pc.u16(bda::KEY_BUFFER_END);
        let next = if wrapped { pc.u16(bda::KEY_BUFFER) } else { next };
        pc.set_u16(bda::KEY_HEAD, next);
    }
    Some(key)
}

/// A key as functions 00h and 01h show it, which know the keyboard of 84 keys.
fn old_key(key: u16) -> u16 {
    match (key >> 8, key & 0xff) {
        (0xe0, c) => (if c == u16::from(b'/') { 0x3500 } else { 0x1c00 }) | c,
        (scan, 0xe0) if scan != 0 => scan << 8,
        _ => key,
    }
}

/// Ctrl, Alt or Shift was pressed or released.
fn shift_moved(pc: &mut dyn Platform, key: u8, e0: bool, make: bool) -> Outcome {
    let set = |bits: u8, bit: u8| if make { bits | bit } else { bits & !bit };
    let (bit, left, right) = match key {
        0x2a => (flag::LEFT_SHIFT, 0, 0),
        0x36 => (flag::RIGHT_SHIFT, 0, 0),
        0x1d => (flag::CTRL, held::LEFT_CTRL, RIGHT_CTRL),
        _ => (flag::ALT, held::LEFT_ALT, RIGHT_ALT),
    };
    let (flags, mut flags_2) = (pc.u8(bda::SHIFT_FLAGS), pc.u8(bda::SHIFT_FLAGS_2));
    let mut mode = pc.u8(bda::KEYBOARD_MODE);
    if e0 {
        mode = set(mode, right);
    } else {
        flags_2 = set(flags_2, left);
    }
    // Of two keys of a kind, one may still be down.
    let down = make || flags_2 & left != 0 || mode & right != 0;
    pc.set_u8(bda::SHIFT_FLAGS, if down { flags | bit } else { flags & !bit });
    pc.set_u8(bda::SHIFT_FLAGS_2, flags_2);
    pc.set_u8(bda::KEYBOARD_MODE, mode);
    if bit == flag::ALT && !make {
        // A number typed on the keypad while Alt was down is a character.
        let c = pc.u8(bda::ALT_KEYPAD);
        if c != 0 {
            pc.set_u8(bda::ALT_KEYPAD, 0);
            store(pc, c.into());
        }
    }
    Outcome::Return
}

/// Whether the machine is to stand still.
pub(super) fn paused(pc: &mut dyn Platform) -> Outcome {
    if pc.u8(bda::SHIFT_FLAGS_2) & held::PAUSE != 0 { Outcome::Wait } else { Outcome::Return }
}

impl Bios {
    /// IRQ 1: the scan code in AL.
    pub(super) fn scancode(&mut self, r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
        let outcome = self.scan(r, pc);
        self.show_locks(pc);
        outcome
    }

    fn scan(&mut self, r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
        let code = r.al();
        let mode = pc.u8(bda::KEYBOARD_MODE);
        match code {
            ACK => self.acknowledged(pc),
            RESEND => self.sending.clear(),
            0xe0 => pc.set_u8(bda::KEYBOARD_MODE, mode | LAST_E0),
            0xe1 => pc.set_u8(bda::KEYBOARD_MODE, mode | LAST_E1),
            // Pause is E1 1D 45 E1 9D C5.
            0x1d | 0x9d if mode & LAST_E1 != 0 => {}
            _ => {
                pc.set_u8(bda::KEYBOARD_MODE, mode & !(LAST_E0 | LAST_E1));
                if mode & LAST_E1 != 0 {
                    return if code == NUM { self.pause(r, pc) } else { Outcome::Return };
                }
                return self.key_moved(r, pc, code, mode & LAST_E0 != 0);
            }
        }
        Outcome::Return
    }

    /// A key was pressed or released.
    fn key_moved(&mut self, r: &mut Regs, pc: &mut dyn Platform, code: u8, e0: bool) -> Outcome {
        let (make, key) = (code & 0x80 == 0, code & 0x7f);
        let flags = pc.u8(bda::SHIFT_FLAGS);
        let (ctrl, alt) = (flags & flag::CTRL != 0, flags & flag::ALT != 0);
        // The keyboard's own shifts around E0 keys are nobody's.
        if matches!(key, 0x2a | 0x36) && e0 {
            return Outcome::Return;
        }
        if matches!(key, 0x1d | 0x2a | 0x36 | 0x38) {
            return shift_moved(pc, key, e0, make);
        }
        let pressed = pc.u8(bda::SHIFT_FLAGS_2);
        // The keys that are on or off, and the bits of both flag bytes.
        let lock = match key {
            CAPS if !e0 => flag::CAPS_LOCK,
            NUM if !e0 => flag::NUM_LOCK,
            SCROLL if !e0 => flag::SCROLL_LOCK,
            INSERT => flag::INSERT,
            _ => 0,
        };
        if !make {
            pc.set_u8(bda::SHIFT_FLAGS_2, pressed & !lock);
            if key == SYSTEM_REQUEST && pressed & held::SYSTEM_REQUEST != 0 {
                pc.set_u8(bda::SHIFT_FLAGS_2, pressed & !held::SYSTEM_REQUEST);
                r.set_ax(0x8501);
                r.ip = self.rom.system_request;
                return Outcome::Jump;
            }
            return Outcome::Return;
        }
        // Any key but Num Lock ends a pause, and is nothing else.
        if pressed & held::PAUSE != 0 && !(key == 0x53 && ctrl && alt) {
            if key != NUM {
                pc.set_u8(bda::SHIFT_FLAGS_2, pressed & !held::PAUSE);
            }
            return Outcome::Return;
        }
        match key {
            NUM if ctrl && !e0 => return self.pause(r, pc),
            SCROLL if ctrl => {
                // Ctrl-Break: the buffer is emptied.
                let start = pc.u16(bda::KEY_BUFFER);
                pc.set_u16(bda::KEY_HEAD, start);
                pc.set_u16(bda::KEY_TAIL, start);
                pc.set_u8(bda::BREAK, 0x80);
                store(pc, 0);
                r.ip = self.rom.control_break;
                return Outcome::Jump;
            }
            CAPS | NUM | SCROLL if lock != 0 => {
                // Once, however often the keyboard repeats it.
                if pressed & lock == 0 {
                    pc.set_u8(bda::SHIFT_FLAGS, flags ^ lock);
                    pc.set_u8(bda::SHIFT_FLAGS_2, pressed | lock);
                }
            }
            SYSTEM_REQUEST => {
                if pressed & held::SYSTEM_REQUEST == 0 {
                    pc.set_u8(bda::SHIFT_FLAGS_2, pressed | held::SYSTEM_REQUEST);
                    r.set_ax(0x8500);
                    r.ip = self.rom.system_request;
                    return Outcome::Jump;
                }
            }
            0x37 if e0 && !ctrl && !alt => {
                r.ip = self.rom.print_screen;
                return Outcome::Jump;
            }
            0x53 if ctrl && alt => {
                pc.set_u16(bda::WARM_BOOT, 0x1234);
                return super::misc::reset(r, pc, self.rom.halt);
            }
            0x47..=0x53 if alt && !e0 && KEYPAD[usize::from(key - 0x47)].is_ascii_digit() => {
                let digit = KEYPAD[usize::from(key - 0x47)] - b'0';
                let c = pc.u8(bda::ALT_KEYPAD).wrapping_mul(10).wrapping_add(digit);
                pc.set_u8(bda::ALT_KEYPAD, c);
            }
            _ => {
                let shift = flags & (flag::LEFT_SHIFT | flag::RIGHT_SHIFT) != 0;
                let digit = !e0 && (flags & flag::NUM_LOCK != 0) != shift;
                if key == INSERT && !digit && !ctrl && !alt {
                    if pressed & lock != 0 {
                        return Outcome::Return;
                    }
                    pc.set_u8(bda::SHIFT_FLAGS, flags ^ lock);
                    pc.set_u8(bda::SHIFT_FLAGS_2, pressed | lock);
                }
                if key_of(key, e0, flags).is_some_and(|key| store(pc, key)) && self.system_hooked(pc) {
                    r.ip = self.rom.key_posted;
                    return Outcome::Jump;
                }
            }
        }
        Outcome::Return
    }

    /// The machine stands still, but for interrupts, until another key is pressed.
    fn pause(&mut self, r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
        let pressed = pc.u8(bda::SHIFT_FLAGS_2);
        if pressed & held::PAUSE != 0 {
            return Outcome::Return;
        }
        pc.set_u8(bda::SHIFT_FLAGS_2, pressed | held::PAUSE);
        r.ip = self.rom.pause;
        Outcome::Jump
    }

    /// INT 15h is a program's: it is told of waits (90h) and of their ends (91h).
    pub(super) fn system_hooked(&self, pc: &mut dyn Platform) -> bool {
        (pc.u16(4 * 0x15 + 2), pc.u16(4 * 0x15)) != (super::SEGMENT, self.rom.vectors[0x15])
    }

    /// Sends `bytes` to the keyboard, each when the one before was acknowledged; false if the controller is not there
    /// or has something to do.
    fn send(&mut self, pc: &mut dyn Platform, bytes: [u8; 2]) -> bool {
        const INPUT_FULL: u8 = 1 << 1;
        let status = pc.inb(0x64);
        if status == 0xff || status & INPUT_FULL != 0 {
            return false;
        }
        self.sending = bytes[1..].to_vec();
        pc.outb(0x60, bytes[0]);
        true
    }

    fn acknowledged(&mut self, pc: &mut dyn Platform) {
        if self.sending.is_empty() {
            let lights = pc.u8(bda::KEYBOARD_LEDS);
            pc.set_u8(bda::KEYBOARD_LEDS, lights & !LEDS_CHANGING);
        } else {
            let byte = self.sending.remove(0);
            pc.outb(0x60, byte);
        }
    }

    /// Has the lights show the locks, if they do not.
    fn show_locks(&mut self, pc: &mut dyn Platform) {
        let (flags, lights) = (pc.u8(bda::SHIFT_FLAGS), pc.u8(bda::KEYBOARD_LEDS));
        let want = flags >> 4 & 7;
        if lights & 7 == want || !self.sending.is_empty() {
            return;
        }
        if self.send(pc, [SET_LEDS, want]) {
            pc.set_u8(bda::KEYBOARD_LEDS, lights & !7 | want | LEDS_CHANGING);
        }
    }

    /// Takes what a terminal on the serial console has sent.
    pub(super) fn poll_terminal(&mut self, pc: &mut dyn Platform) {
        const READY: u8 = 1;
        let Some(base) = self.cfg.console else { return };
        // As much as the port's FIFO holds; a port without a chip reads FFh, which is no status.
        for _ in 0..16 {
            let status = pc.inb(base + 5);
            if status & READY == 0 || status == 0xff {
                break;
            }
            let c = pc.inb(base);
            if self.escape.is_empty() && c != 0x1b {
                key_of_character(c).map(|key| store(pc, key));
                continue;
            }
            if c == 0x1b && !self.escape.is_empty() {
                store(pc, 0x011b);
                self.escape.clear();
            }
            self.escape.push(c);
            let finished = match &self.escape[1..] {
                [] | [b'['] | [b'O'] => false,
                [b'[', rest @ ..] => rest.last().is_some_and(|c| (0x40..=0x7e).contains(c)) || rest.len() > 6,
                _ => true,
            };
            if finished {
                let sequence = std::mem::take(&mut self.escape);
                match (key_of_sequence(&sequence[1..]), &sequence[1..]) {
                    (Some(key), _) => {
                        store(pc, key);
                    }
                    // Escape, and then something else.
                    (None, [c]) => {
                        store(pc, 0x011b);
                        key_of_character(*c).map(|key| store(pc, key));
                    }
                    (None, _) => {}
                }
            }
        }
        // An escape that nothing follows is the key.
        if self.escape == [0x1b] && pc.inb(base + 5) & READY == 0 {
            self.escape.clear();
            store(pc, 0x011b);
        }
    }

    /// INT 16h; `waited` if it is again that a key is waited for, and INT 15h 9002h has been called.
    pub(super) fn keyboard(&mut self, r: &mut Regs, pc: &mut dyn Platform, waited: bool) -> Outcome {
        if matches!(r.ah(), 0x00 | 0x01 | 0x10 | 0x11) {
            self.poll_terminal(pc);
        }
        if matches!(r.ah(), 0x00..=0x02 | 0x10..=0x12) {
            self.show_locks(pc);
        }
        let shown = |old: bool, key: u16| if old { old_key(key) } else { key };
        match r.ah() {
            f @ (0x00 | 0x10) => match next_key(pc, true) {
                None if waited || !self.system_hooked(pc) => return Outcome::Wait,
                None => {
                    r.ip = self.rom.key_wait;
                    return Outcome::Jump;
                }
                Some(key) => r.set_ax(shown(f == 0, key)),
            },
            f @ (0x01 | 0x11) => match next_key(pc, false) {
                None => {
                    self.polls.no_key();
                    r.zero(true);
                }
                Some(key) => {
                    r.set_ax(shown(f == 1, key));
                    r.zero(false);
                }
            },
            0x02 => r.set_al(pc.u8(bda::SHIFT_FLAGS)),
            0x03 => self.typematic(r, pc),
            0x05 => {
                let full = !store(pc, r.cx());
                r.set_al(u8::from(full));
            }
            // 0305h, 0306h, 0Ah, and 10h to 12h are there.
            0x09 => r.set_al(0x3c),
            0x0a => r.set_bx(0x41ab),
            0x12 => {
                let (flags, flags_2) = (pc.u8(bda::SHIFT_FLAGS), pc.u8(bda::SHIFT_FLAGS_2));
                let right = pc.u8(bda::KEYBOARD_MODE) & (RIGHT_CTRL | RIGHT_ALT);
                let request = if flags_2 & held::SYSTEM_REQUEST != 0 { 0x80 } else { 0 };
                let own = held::SYSTEM_REQUEST | held::PAUSE | flag::INSERT;
                r.set_al(flags);
                r.set_ah(flags_2 & !own | right | request);
            }
            // "Which functions are there": AH 80h answers those of 122 keys, which there are not.
            0x92 => r.set_ah(0x80),
            _ => {}
        }
        Outcome::Return
    }

    /// AH 03h: AL 05h sets rate (BL) and delay (BH), 06h asks for them.
    fn typematic(&mut self, r: &mut Regs, pc: &mut dyn Platform) {
        match r.al() {
            0x05 if r.bl() < 0x20 && r.bh() < 4 => {
                let value = r.bh() << 5 | r.bl();
                if self.sending.is_empty() && self.send(pc, [SET_TYPEMATIC, value]) {
                    self.typematic = value;
                }
            }
            0x06 => {
                r.set_bl(self.typematic & 0x1f);
                r.set_bh(self.typematic >> 5);
            }
            _ => {}
        }
    }
}
