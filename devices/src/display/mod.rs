//! Display adapters, and what can be had of their screens: pixels, characters, pictures in files.
//!
//! ```text
//!   VGA --Display::refresh--> Screen { Surface }, rectangles that changed --> dump (PNG, PPM), a viewer
//!       --Display::text-----> TextScreen: characters, cursor
//! ```
//!
//! Nothing is drawn before somebody asks: an adapter is memory and registers. Who shows a screen keeps a [`Screen`] and
//! refreshes it as often as it likes; any number of them may. The machine's adapters are those devices in the registry
//! whose `Device::display` gives one.
mod cp437;
pub mod dump;
mod surface;
pub mod vga;

pub use surface::{Rect, Screen, Surface, TextCell, TextScreen};

/// What a display adapter shows.
pub trait Display: Send + Sync {
    /// Brings `screen` up to date; returns what of it has changed: all if its size did.
    fn refresh(&self, screen: &mut Screen) -> Vec<Rect>;

    /// The screen as characters, if it shows text.
    fn text(&self) -> Option<TextScreen>;
}
