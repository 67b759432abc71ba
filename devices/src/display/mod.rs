//! Display adapters, and what can be had of their screens: pixels, characters, pictures in files.
//!
//! ```text
//!   VGA --Display::refresh--> Screen { Surface }, rectangles that changed --> dump (PNG, PPM), a viewer
//!       --Display::text-----> TextScreen: characters, cursor
//! ```
//!
//! Nothing is drawn before somebody asks: an adapter is memory and registers. Who shows a screen keeps a [`Screen`] and
//! refreshes it as often as it likes; any number of them may. The machine's adapters are those devices in the registry
//! whose `Device::display` gives one. [`vnc`] shows a screen to the network, [`curses`] in a
//! terminal, and [`input`] is the way back.
mod cp437;
pub mod curses;
pub mod dump;
pub mod input;
pub mod layout;
mod surface;
pub mod vga;
pub mod vnc;

use crate::device::Plugged;
use std::sync::Arc;

pub use surface::{Rect, Screen, Surface, TextCell, TextScreen};

/// What a display adapter shows.
pub trait Display: Send + Sync {
    /// Brings `screen` up to date; returns what of it has changed: all if its size did.
    fn refresh(&self, screen: &mut Screen) -> Vec<Rect>;

    /// Width and height of the screen, in pixels.
    fn size(&self) -> (usize, usize);

    /// The screen as characters, if it shows text.
    fn text(&self) -> Option<TextScreen>;
}

/// What a device shows, if it is a display adapter, to be kept.
pub fn of(device: Arc<dyn Plugged>) -> Option<Arc<dyn Display>> {
    struct Adapter(Arc<dyn Plugged>);
    impl Display for Adapter {
        fn refresh(&self, screen: &mut Screen) -> Vec<Rect> {
            self.0.display().map_or_else(Vec::new, |d| d.refresh(screen))
        }
        fn size(&self) -> (usize, usize) {
            self.0.display().map_or((0, 0), Display::size)
        }
        fn text(&self) -> Option<TextScreen> {
            self.0.display()?.text()
        }
    }
    device.display()?;
    Some(Arc::new(Adapter(device)))
}
