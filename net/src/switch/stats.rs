//! What has passed a port, and what has not, with the reason.

/// Frames and their octets (without preamble and FCS).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Frames.
    pub frames: u64,
    /// Octets.
    pub octets: u64,
}

impl Count {
    pub(super) fn add(&mut self, octets: usize) {
        self.frames += 1;
        self.octets += octets as u64;
    }
}

/// Why a frame went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It is no frame: too short, or its source is a group's address or none.
    Malformed,
    /// Its destination is for the next bridge only: spanning tree, pause frames, LLDP (IEEE 802.1Q-2022, table 8-1).
    Reserved,
    /// Its VLAN is none of the port's, or it has a tag at an access port.
    Vlan,
    /// It has two tags, or one of another kind than 802.1Q's.
    DoubleTag,
    /// Its source is not what the port is for, or is another port's.
    SourceLock,
    /// A rule for what comes in.
    AclIn,
    /// A rule for what goes out.
    AclOut,
    /// There was no room: the port does not read as fast as it is sent to.
    QueueFull,
    /// It came from a mirror port, which only listens.
    FromMirror,
    /// The port was left before it could go.
    Gone,
}

impl Cause {
    /// All of them with the names that they have in statistics.
    pub const ALL: [(Self, &'static str); 10] = [
        (Self::Malformed, "malformed"),
        (Self::Reserved, "reserved"),
        (Self::Vlan, "vlan"),
        (Self::DoubleTag, "double_tag"),
        (Self::SourceLock, "source_lock"),
        (Self::AclIn, "acl_in"),
        (Self::AclOut, "acl_out"),
        (Self::QueueFull, "queue_full"),
        (Self::FromMirror, "from_mirror"),
        (Self::Gone, "gone"),
    ];
}

/// A port's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// What has come in.
    pub input: Count,
    /// What has gone out.
    pub output: Count,
    /// What came in for all, or for one whom nobody knows.
    pub flooded: u64,
    /// Stations that there was no place for in the table: what is for them goes to all.
    pub unlearned: u64,
    drops: [u64; Cause::ALL.len()],
}

impl Counters {
    /// How many frames went no further for this reason.
    pub fn dropped(&self, cause: Cause) -> u64 {
        self.drops[cause as usize]
    }

    pub(super) fn drop(&mut self, cause: Cause, frames: u64) {
        self.drops[cause as usize] += frames;
    }
}
