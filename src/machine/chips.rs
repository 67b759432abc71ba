//! The 8259A pair and the I/O APIC that an engine keeps while it runs vCPUs, as the board sees them: chips and engines know
//! nothing of each other, so the same registers have a type on each side.
use mynah_cpu::board::{self, ChipKeeper};
use mynah_devices::interrupts::kept;
use std::sync::Arc;

/// An engine's keeper.
pub struct Kept(pub Arc<dyn ChipKeeper>);

/// The registers of an 8259A, as the other side has them.
macro_rules! other_side {
    ($image:expr, $from:ident => $to:ident: $($field:ident)*) => {{
        // All of them: one that a side had more would not compile.
        let $from::PicImage { $($field),* } = *$image;
        $to::PicImage { $($field),* }
    }};
    ($image:expr, $from:ident => $to:ident) => {
        other_side!($image, $from => $to:
            lines irr imr isr top vector read_isr poll special_mask expects auto_eoi rotate_on_auto_eoi
            special_fully_nested has_icw4 elcr)
    };
}

impl kept::Keeper for Kept {
    fn set_pic_line(&self, line: u32, level: bool) {
        self.0.set_pic_line(line, level);
    }
    fn set_ioapic_pin(&self, pin: u32, level: bool) {
        self.0.set_ioapic_pin(pin, level);
    }
    fn pic(&self) -> Option<[kept::PicImage; 2]> {
        Some(self.0.pic()?.each_ref().map(|image| other_side!(image, board => kept)))
    }
    fn put_pic(&self, pair: &[kept::PicImage; 2]) {
        self.0.put_pic(&pair.each_ref().map(|image| other_side!(image, kept => board)));
    }
    fn ioapic(&self) -> Option<kept::IoapicImage> {
        let board::IoapicImage { id, index, redirection, levels } = self.0.ioapic()?;
        Some(kept::IoapicImage { id, index, redirection, levels })
    }
    fn put_ioapic(&self, image: &kept::IoapicImage) {
        let kept::IoapicImage { id, index, redirection, levels } = *image;
        self.0.put_ioapic(&board::IoapicImage { id, index, redirection, levels });
    }
}
