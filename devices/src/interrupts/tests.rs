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

#[test]
fn interrupts_from_24_on_are_pins_of_a_second_io_apic() {
    let bus = Arc::new(Bus::default());
    let [first, second] = [0x40u64, 0x60].map(|base| {
        let ioapic = ioapic::Ioapic::new(bus.clone());
        for pin in 0..24 {
            ioapic.write(0, 4, 0x10 + 2 * pin);
            ioapic.write(0x10, 4, (base + pin) | 1 << 15);
        }
        ioapic
    });
    let router = GsiRouter::with_second(None, first, Some(second));
    let pins = [5, 23, 24, 47, 48].map(|gsi| Irq::new(router.clone(), gsi));
    pins.iter().for_each(|pin| pin.set(true));
    assert_eq!(*bus.0.lock(), [0x45, 0x57, 0x60, 0x77]);
    // Each is told of an end of interrupt, and asks again.
    [0x57, 0x60].into_iter().for_each(|vector| router.eoi(vector));
    assert_eq!(bus.0.lock()[4..], [0x57, 0x60]);
    assert_eq!(router.raised()[47], 1);
}
