//! What is plugged into the board: the contract of every device, and the registry of all that there are.
//!
//! ```text
//!   trait Device   one chip: its kind, reset, pause, a plain state that is saved and restored      (typed)
//!   trait Plugged  the same as the board sees it: states as bytes, or as a tree of named values     (erased)
//!   Registry       all that is plugged in, by name: whoever resets, saves or lists walks it
//! ```
//!
//! A device's state is a plain struct: the registers, and what else cannot be computed from them (deadlines of
//! timers, levels of its own pins). It is what is saved, and what is shown to people ([`Plugged::inspect`]), so
//! nothing can be forgotten in one of the two. Restoring is one step that moves no edge: the other end of each wire
//! is restored as well. The machine stands still meanwhile.
//!
//! States are kept in postcard's encoding, which has no names: whoever changes a state's fields counts its version up.
use crate::aml::Fragment;
use crate::display::Display;
use parking_lot::RwLock;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::borrow::Cow;
use std::sync::Arc;

/// What a reset is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The board's RESET: all is as after power-on.
    Board,
    /// The machine wakes from S3: the same, but for what has kept its power.
    Wake,
}

/// A saved value that no device of this kind can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid(
    /// What it is the value of.
    pub &'static str,
);

/// A thing on the board. Its methods are called from any thread, with no lock of the caller's that a device takes.
pub trait Device: Send + Sync + 'static {
    /// All that is saved of it.
    type State: Serialize + DeserializeOwned;
    /// What it is: QEMU's name where that has one.
    const KIND: &'static str;
    /// The version of `State`.
    const VERSION: u16 = 1;

    /// What it says of itself in the ACPI name space, if operating systems do not find it by themselves.
    fn aml(&self) -> Option<Fragment> {
        None
    }

    /// The screen that it shows, if it is a display adapter.
    fn display(&self) -> Option<&dyn Display> {
        None
    }

    /// RESET.
    fn reset(&self, why: Reset);

    /// From now on nothing comes in from the host, until [`Device::resume`]: vCPUs and clock stand still already.
    fn pause(&self) {}

    /// The end of a pause.
    fn resume(&self) {}

    /// Its state. The machine stands still if that is to be restored.
    fn save(&self) -> Self::State;

    /// What people are shown of it, at any time: of a device that is somebody else's while the machine runs, the state
    /// as far as it is known here.
    fn shown(&self) -> Self::State {
        self.save()
    }

    /// Takes the state on. No pin moves; timers are armed again.
    ///
    /// # Errors
    /// The state is none that a device can have. The device is then to be dropped.
    fn restore(&self, state: Self::State) -> Result<(), Invalid>;
}

/// The state of one device, encoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Saved {
    /// The device's name on its board.
    pub name: String,
    /// [`Device::KIND`].
    pub kind: String,
    /// [`Device::VERSION`].
    pub version: u16,
    /// The state in postcard's encoding.
    #[serde(with = "serde_bytes")]
    pub state: Vec<u8>,
}

/// Why a state cannot be restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// This machine has no such device.
    #[error("the saved machine has a device '{name}' ({kind}), which this one has not")]
    Unknown {
        /// Its name.
        name: String,
        /// Its kind.
        kind: String,
    },
    /// The saved machine had no such device.
    #[error("this machine has a device '{name}' ({kind}), of which nothing was saved")]
    Missing {
        /// Its name.
        name: String,
        /// Its kind.
        kind: &'static str,
    },
    /// There is another device of this name.
    #[error("the device '{name}' is {kind} here, and was {found} in the saved machine")]
    Kind {
        /// Its name.
        name: String,
        /// Its kind here.
        kind: &'static str,
        /// Its kind in the saved machine.
        found: String,
    },
    /// It was saved by another version of the program.
    #[error("the state of '{name}' has version {found}; this program knows version {known}")]
    Version {
        /// The device's name.
        name: String,
        /// The version saved.
        found: u16,
        /// The version that can be restored.
        known: u16,
    },
    /// It is not the encoding of a state.
    #[error("the state of '{name}' is damaged: {why}")]
    Damaged {
        /// The device's name.
        name: String,
        /// What is wrong.
        why: String,
    },
}

/// A device as the board sees it.
pub trait Plugged: Send + Sync {
    /// [`Device::KIND`].
    fn kind(&self) -> &'static str;
    /// [`Device::aml`].
    fn aml(&self) -> Option<Fragment>;
    /// [`Device::display`].
    fn display(&self) -> Option<&dyn Display>;
    /// [`Device::reset`].
    fn reset(&self, why: Reset);
    /// [`Device::pause`].
    fn pause(&self);
    /// [`Device::resume`].
    fn resume(&self);
    /// [`Device::save`], encoded, under the name that the device has on its board.
    fn save(&self, name: &str) -> Saved;
    /// [`Device::restore`] from such an encoding.
    ///
    /// # Errors
    /// It is not the state of such a device.
    fn restore(&self, saved: &Saved) -> Result<(), RestoreError>;
    /// [`Device::shown`] as a tree of named values.
    fn inspect(&self) -> Value;
}

impl<D: Device> Plugged for D {
    fn kind(&self) -> &'static str {
        D::KIND
    }

    fn aml(&self) -> Option<Fragment> {
        Device::aml(self)
    }

    fn display(&self) -> Option<&dyn Display> {
        Device::display(self)
    }

    fn reset(&self, why: Reset) {
        Device::reset(self, why);
    }

    fn pause(&self) {
        Device::pause(self);
    }

    fn resume(&self) {
        Device::resume(self);
    }

    fn save(&self, name: &str) -> Saved {
        encode(name, D::KIND, D::VERSION, &Device::save(self))
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state = decode(saved, D::KIND, D::VERSION)?;
        let why = |Invalid(what)| format!("{what} has a value that it cannot have");
        Device::restore(self, state)
            .map_err(|e| RestoreError::Damaged { name: saved.name.clone(), why: why(e) })
    }

    fn inspect(&self) -> Value {
        // States are structs of numbers: there is nothing that a tree cannot have.
        serde_json::to_value(self.shown()).unwrap_or_default()
    }
}

/// The encoding of a state.
///
/// # Panics
/// The state has a type that cannot be encoded, such as a map of unknown length: an error of the program.
pub fn encode<S: Serialize>(name: &str, kind: &str, version: u16, state: &S) -> Saved {
    let state = postcard::to_stdvec(state).unwrap_or_else(|e| panic!("the state of {kind}: {e}"));
    Saved { name: name.into(), kind: kind.into(), version, state }
}

/// A state from its encoding.
///
/// # Errors
/// It is of another kind or version, or damaged.
pub fn decode<S: DeserializeOwned>(saved: &Saved, kind: &'static str, known: u16) -> Result<S, RestoreError> {
    let name = saved.name.clone();
    if saved.kind != kind {
        return Err(RestoreError::Kind { name, kind, found: saved.kind.clone() });
    }
    if saved.version != known {
        return Err(RestoreError::Version { name, found: saved.version, known });
    }
    match postcard::take_from_bytes(&saved.state) {
        Ok((state, [])) => Ok(state),
        Ok((_, rest)) => {
            Err(RestoreError::Damaged { name, why: format!("{} bytes are left at its end", rest.len()) })
        }
        Err(e) => Err(RestoreError::Damaged { name, why: e.to_string() }),
    }
}

/// Something plugged in.
#[derive(Clone)]
struct Plug {
    name: String,
    bus: Cow<'static, str>,
    device: Arc<dyn Plugged>,
}

/// All that is plugged into a board, in the order in which it was.
#[derive(Default)]
pub struct Registry {
    plugs: RwLock<Vec<Plug>>,
}

impl Registry {
    /// Enters a device under a name, on `bus` (as `info qtree` shows it). A second device of that name is called
    /// `name#2`.
    pub fn plug(&self, bus: impl Into<Cow<'static, str>>, name: impl Into<String>, device: Arc<dyn Plugged>) {
        let bus = bus.into();
        let wanted = name.into();
        let mut plugs = self.plugs.write();
        let mut name = wanted.clone();
        for n in 2.. {
            if plugs.iter().all(|p| p.name != name) {
                break;
            }
            name = format!("{wanted}#{n}");
        }
        plugs.push(Plug { name, bus, device });
    }

    fn all(&self) -> Vec<Plug> {
        // A device that is called may look at the registry.
        self.plugs.read().clone()
    }

    /// Resets all, the last one first: interrupt controllers, which are plugged in first, forget the edges that
    /// devices make meanwhile.
    pub fn reset(&self, why: Reset) {
        self.all().iter().rev().for_each(|p| p.device.reset(why));
    }

    /// Nothing comes in from the host any more, until [`Registry::resume`].
    pub fn pause(&self) {
        self.all().iter().for_each(|p| p.device.pause());
    }

    /// The end of a pause.
    pub fn resume(&self) {
        self.all().iter().for_each(|p| p.device.resume());
    }

    /// The states of all. The machine stands still.
    pub fn save(&self) -> Vec<Saved> {
        self.all().iter().map(|p| p.device.save(&p.name)).collect()
    }

    /// Takes the states on that [`Registry::save`] gave on a board with the same devices.
    ///
    /// # Errors
    /// The devices are not the same, or a state is none. This board is then to be dropped.
    pub fn restore(&self, saved: &[Saved]) -> Result<(), RestoreError> {
        let plugs = self.all();
        if let Some(s) = saved.iter().find(|s| plugs.iter().all(|p| p.name != s.name)) {
            return Err(RestoreError::Unknown { name: s.name.clone(), kind: s.kind.clone() });
        }
        for p in &plugs {
            let Some(state) = saved.iter().find(|s| s.name == p.name) else {
                return Err(RestoreError::Missing { name: p.name.clone(), kind: p.device.kind() });
            };
            p.device.restore(state)?;
        }
        Ok(())
    }

    /// The states of all as trees of named values, by name.
    pub fn inspect(&self) -> Vec<(String, Value)> {
        self.all().into_iter().map(|p| (p.name, p.device.inspect())).collect()
    }

    /// The device of this name.
    pub fn find(&self, name: &str) -> Option<Arc<dyn Plugged>> {
        self.plugs.read().iter().find(|p| p.name == name).map(|p| p.device.clone())
    }

    /// What all say of themselves in the ACPI name space.
    pub fn aml(&self) -> Vec<Fragment> {
        self.all().iter().filter_map(|p| p.device.aml()).collect()
    }

    /// Name and device of all display adapters ([`Plugged::display`]), in the order in which they were plugged in.
    pub fn displays(&self) -> Vec<(String, Arc<dyn Plugged>)> {
        let all = self.all().into_iter().filter(|p| p.device.display().is_some());
        all.map(|p| (p.name, p.device)).collect()
    }

    /// Bus, name and kind of all.
    pub fn list(&self) -> Vec<(Cow<'static, str>, String, &'static str)> {
        self.all().into_iter().map(|p| (p.bus, p.name, p.device.kind())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use serde::Deserialize;

    #[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
    struct LatchV1 {
        value: u8,
        time: Option<u64>,
    }

    #[derive(Default)]
    struct Latch(Mutex<LatchV1>);

    impl Device for Latch {
        type State = LatchV1;
        const KIND: &'static str = "latch";

        fn reset(&self, why: Reset) {
            if why == Reset::Board {
                *self.0.lock() = LatchV1::default();
            }
        }
        fn save(&self) -> LatchV1 {
            *self.0.lock()
        }
        fn restore(&self, state: LatchV1) -> Result<(), Invalid> {
            if state.value == 0xff {
                return Err(Invalid("value"));
            }
            *self.0.lock() = state;
            Ok(())
        }
    }

    fn board(names: &[&str]) -> (Registry, Vec<Arc<Latch>>) {
        let registry = Registry::default();
        let latches: Vec<Arc<Latch>> = names.iter().map(|_| Arc::default()).collect();
        for (name, latch) in names.iter().zip(&latches) {
            registry.plug("isa", *name, latch.clone());
        }
        (registry, latches)
    }

    #[test]
    fn what_was_saved_is_restored_on_a_board_with_the_same_devices() {
        let (one, latches) = board(&["a", "b"]);
        *latches[1].0.lock() = LatchV1 { value: 7, time: Some(1 << 40) };
        assert_eq!(board(&["a", "a"]).0.list()[1], ("isa".into(), "a#2".to_owned(), "latch"));
        let (other, others) = board(&["a", "b"]);
        other.restore(&one.save()).unwrap();
        assert_eq!(*others[1].0.lock(), LatchV1 { value: 7, time: Some(1 << 40) });
        assert_eq!(one.save(), other.save());
        assert_eq!(other.find("b").unwrap().inspect(), other.inspect()[1].1);
        assert!(other.find("c").is_none());
        assert_eq!(other.inspect()[1].1, serde_json::json!({ "value": 7, "time": 1_u64 << 40 }));
        other.reset(Reset::Wake);
        assert_eq!(others[1].0.lock().value, 7);
        other.reset(Reset::Board);
        assert_eq!(*others[1].0.lock(), LatchV1::default());
    }

    #[test]
    fn what_is_not_the_state_of_this_board_is_refused_by_name() {
        let (one, _) = board(&["a", "b"]);
        let saved = one.save();
        let refused = |saved: &[Saved]| board(&["a", "b"]).0.restore(saved).unwrap_err().to_string();
        let changed = |change: fn(&mut Saved)| {
            let mut saved = saved.clone();
            change(&mut saved[1]);
            refused(&saved)
        };
        assert!(refused(&saved[..1]).contains("'b' (latch), of which nothing was saved"));
        assert!(changed(|s| s.name = "c".into()).contains("'c' (latch), which this one has not"));
        assert!(changed(|s| s.kind = "pit".into()).contains("'b' is latch here, and was pit"));
        assert!(changed(|s| s.version = 2).contains("'b' has version 2; this program knows version 1"));
        assert!(changed(|s| s.state.truncate(1)).contains("'b' is damaged"));
        assert!(changed(|s| s.state.push(0)).contains("1 bytes are left"));
        assert!(changed(|s| s.state = vec![0xff, 0]).contains("value has a value that it cannot have"));
    }
}
