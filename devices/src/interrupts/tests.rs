use super::*;
use crate::bus::{Irq, Mmio};
use crate::interrupts::lapic::{ApicBus, ApicMessage};
use parking_lot::Mutex;

#[derive(Default)]
struct Bus(Mutex<Vec<u8>>);

impl ApicBus for Bus {
    fn deliver(&self, message: ApicMessage) -> bool {
        self.0.lock().push(message.vector);
        true
    }
}

#[test]
fn isa_interrupts_reach_both_controllers_and_the_timer_is_on_pin_2() {
    let bus = Arc::new(Bus::default());
    let ioapic = ioapic::Ioapic::new(bus.clone());
    for pin in 0..24 {
        ioapic.write(0, 4, 0x10 + 2 * pin);
        ioapic.write(0x10, 4, 0x40 + pin);
    }
    let pic = pic::Pic::new(Irq::unconnected());
    let router = GsiRouter::new(Some(pic.clone()), ioapic);
    for gsi in [0, 2, 4, 19, 24] {
        Irq::new(router.clone(), gsi).pulse();
    }
    assert_eq!(*bus.0.lock(), [0x42, 0x44, 0x53]);
    pic.master_ports().write(0, 1, 0x0A);
    assert_eq!(pic.master_ports().read(0, 1), 0x11);
}
