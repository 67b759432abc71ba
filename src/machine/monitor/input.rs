//! Keyboard and mouse: `sendkey`, `mouse_move`, `mouse_button`, `info mice`.
use super::args::{Args, Fault};
use super::{Answer, Hmp, done};
use crate::machine::keys;
use mynah_devices::input::i8042::I8042;
use mynah_devices::input::ps2::MouseButtons;
use std::sync::Arc;
use std::time::Duration;

/// The longest time that keys are held.
const MOST_MS: u64 = 10_000;

fn whole(args: &mut Args<'_>) -> Result<i32, Fault> {
    let text = args.word()?;
    text.parse().map_err(|_| format!("'{text}' is no number").into())
}

impl Hmp {
    pub(super) fn sendkey(&self, args: &mut Args<'_>) -> Answer {
        let (names, hold) = (args.word()?, args.next().unwrap_or("100"));
        args.end()?;
        let ms = hold.parse().ok().filter(|ms| *ms <= MOST_MS);
        let ms = ms.ok_or_else(|| format!("'{hold}' is no time in ms, at most {MOST_MS}"))?;
        done(self.machine.send_keys(&keys::parse(names)?, Duration::from_millis(ms)))
    }

    fn mouse(&self) -> Result<Arc<I8042>, &'static str> {
        self.machine.keyboard().filter(|ports| ports.has_mouse()).ok_or("the board has no mouse")
    }

    pub(super) fn mouse_move(&self, args: &mut Args<'_>) -> Answer {
        let (dx, dy) = (whole(args)?, whole(args)?);
        let dz = if !args.is_empty() { whole(args)? } else { 0 };
        args.end()?;
        let ports = self.mouse()?;
        // A PS/2 mouse counts upwards.
        ports.mouse(dx, dy.saturating_neg(), dz, ports.buttons());
        Ok(String::new())
    }

    pub(super) fn mouse_button(&self, args: &mut Args<'_>) -> Answer {
        let state = whole(args)?;
        args.end()?;
        let [left, middle, right] = [1, 2, 4].map(|bit| state & bit != 0);
        self.mouse()?.mouse(0, 0, 0, MouseButtons { left, middle, right, ..MouseButtons::default() });
        Ok(String::new())
    }

    pub(super) fn mice(&self) -> Answer {
        Ok(match self.mouse() {
            Ok(_) => "* Mouse #2: QEMU PS/2 Mouse\n".into(),
            Err(_) => "No mouse devices connected\n".into(),
        })
    }
}
