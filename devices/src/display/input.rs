//! What people do at a screen: keys, and a pointer on its surface.
use crate::input::i8042::I8042;
use crate::input::ps2::{Key, MouseButtons};
use parking_lot::Mutex;
use std::sync::Arc;

/// Where the pointer is, on a surface of what size, and what is pressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pointer {
    /// Pixels from the left.
    pub x: usize,
    /// Pixels from the top.
    pub y: usize,
    /// The surface's width.
    pub width: usize,
    /// The surface's height.
    pub height: usize,
    /// The left, the middle and the right button.
    pub buttons: [bool; 3],
    /// Clicks of the wheel since the last call, down is positive.
    pub wheel: i32,
}

/// Whoever takes them: the machine's keyboard and mouse.
pub trait Input: Send + Sync {
    /// A key goes down or up.
    fn key(&self, key: Key, pressed: bool);
    /// The pointer has moved, or a button of it.
    fn pointer(&self, pointer: Pointer);
    /// The pointer has moved by so many pixels, to the right and down.
    fn motion(&self, x: i32, y: i32, buttons: [bool; 3], wheel: i32);
}

/// A PS/2 keyboard and mouse. The mouse knows movements only: the guest's pointer is where it has led it.
pub struct Ps2Input {
    ports: Arc<I8042>,
    last: Mutex<Option<(usize, usize)>>,
}

impl Ps2Input {
    /// The keyboard and the mouse of these ports.
    pub fn new(ports: Arc<I8042>) -> Self {
        Self { ports, last: Mutex::new(None) }
    }
}

impl Input for Ps2Input {
    fn key(&self, key: Key, pressed: bool) {
        self.ports.key(key, pressed);
    }

    fn pointer(&self, p: Pointer) {
        let (x, y) = self.last.lock().replace((p.x, p.y)).unwrap_or((p.x, p.y));
        let by = |to: usize, from: usize| to as i32 - from as i32;
        self.motion(by(p.x, x), by(p.y, y), p.buttons, p.wheel);
    }

    fn motion(&self, x: i32, y: i32, [left, middle, right]: [bool; 3], wheel: i32) {
        // A PS/2 mouse counts upwards.
        self.ports.mouse(
            x,
            y.saturating_neg(),
            wheel,
            MouseButtons { left, right, middle, ..MouseButtons::default() },
        );
    }
}
