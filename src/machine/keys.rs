//! The names of keys that the monitor's `sendkey` takes: QEMU's.
use mynah_devices::input::ps2::Key;

/// Keys of one character: the first one's make code, and the names of it and those behind it.
const ROWS: &[(u8, &str)] =
    &[(0x02, "1234567890"), (0x10, "qwertyuiop"), (0x1e, "asdfghjkl"), (0x2c, "zxcvbnm")];

/// The others: name, make code of set 1, with 100h for those with the prefix E0h.
const NAMED: &[(&str, u16)] = &[
    ("esc", 0x01),
    ("minus", 0x0c),
    ("equal", 0x0d),
    ("backspace", 0x0e),
    ("tab", 0x0f),
    ("bracket_left", 0x1a),
    ("bracket_right", 0x1b),
    ("ret", 0x1c),
    ("kp_enter", 0x11c),
    ("ctrl", 0x1d),
    ("ctrl_r", 0x11d),
    ("semicolon", 0x27),
    ("apostrophe", 0x28),
    ("grave_accent", 0x29),
    ("shift", 0x2a),
    ("backslash", 0x2b),
    ("comma", 0x33),
    ("dot", 0x34),
    ("slash", 0x35),
    ("kp_divide", 0x135),
    ("shift_r", 0x36),
    ("asterisk", 0x37),
    ("kp_multiply", 0x37),
    ("print", 0x137),
    ("sysrq", 0x137),
    ("alt", 0x38),
    ("alt_r", 0x138),
    ("spc", 0x39),
    ("caps_lock", 0x3a),
    ("f1", 0x3b),
    ("f2", 0x3c),
    ("f3", 0x3d),
    ("f4", 0x3e),
    ("f5", 0x3f),
    ("f6", 0x40),
    ("f7", 0x41),
    ("f8", 0x42),
    ("f9", 0x43),
    ("f10", 0x44),
    ("f11", 0x57),
    ("f12", 0x58),
    ("num_lock", 0x45),
    ("scroll_lock", 0x46),
    ("pause", 0x146),
    ("kp_7", 0x47),
    ("kp_8", 0x48),
    ("kp_9", 0x49),
    ("kp_subtract", 0x4a),
    ("kp_4", 0x4b),
    ("kp_5", 0x4c),
    ("kp_6", 0x4d),
    ("kp_add", 0x4e),
    ("kp_1", 0x4f),
    ("kp_2", 0x50),
    ("kp_3", 0x51),
    ("kp_0", 0x52),
    ("kp_decimal", 0x53),
    ("less", 0x56),
    ("home", 0x147),
    ("up", 0x148),
    ("pgup", 0x149),
    ("left", 0x14b),
    ("right", 0x14d),
    ("end", 0x14f),
    ("down", 0x150),
    ("pgdn", 0x151),
    ("insert", 0x152),
    ("delete", 0x153),
    ("meta_l", 0x15b),
    ("meta_r", 0x15c),
    ("menu", 0x15d),
];

/// The key of this name.
pub fn find(name: &str) -> Option<Key> {
    let mut one = name.chars();
    if let (Some(c), None) = (one.next(), one.next()) {
        return ROWS.iter().find_map(|(first, row)| row.find(c).map(|n| Key::new(first + n as u8)));
    }
    let (_, code) = NAMED.iter().find(|(n, _)| *n == name)?;
    let low = *code as u8;
    Some(if code & 0x100 != 0 { Key::extended(low) } else { Key::new(low) })
}

/// The keys of `ctrl-alt-delete` and its like, in their order.
///
/// # Errors
/// There is no key of a name, which is told.
pub fn parse(text: &str) -> Result<Vec<Key>, String> {
    text.split('-').map(|name| find(name).ok_or_else(|| format!("there is no key '{name}'"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_codes_of_set_1() {
        assert_eq!(parse("a"), Ok(vec![Key::new(0x1e)]));
        assert_eq!(parse("0"), Ok(vec![Key::new(0x0b)]));
        assert_eq!(parse("ctrl-alt-delete"), Ok(vec![Key::new(0x1d), Key::new(0x38), Key::extended(0x53)]));
        assert_eq!(parse("ret-x-bogus"), Err("there is no key 'bogus'".into()));
        assert!(parse("").is_err() && parse("é").is_err());
    }
}
