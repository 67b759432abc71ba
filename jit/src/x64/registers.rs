//! Which of the host's registers hold the guest's in the baseline's code: see [`super::baseline`] for the others.

/// The host's register for each of the guest's, if it has one.
pub(super) const MAP: [Option<u8>; 16] = [
    Some(13),
    Some(1),
    Some(2),
    Some(3),
    Some(14),
    Some(5),
    Some(6),
    Some(15),
    Some(8),
    Some(9),
    None,
    None,
    Some(12),
    None,
    None,
    None,
];
