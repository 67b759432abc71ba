//! `kernel-irqchip=on`: the 8259A pair and the I/O APIC in the kernel as well, beside its local APICs.
//!
//! The board lends them when it has lent all local APICs, and has them back with these
//! ([`mynah_mmu::interrupts::ApicKeeper::chips`]). Inputs of the 8259A pair and pins of the I/O APIC are interrupts of
//! their own to KVM, as it is the board that wires them; the 8254 stays the board's.
use super::{failed, lapic};
use crate::AccelError;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KvmIrqRouting, kvm_ioapic_state, kvm_irq_routing_entry, kvm_irqchip, kvm_pic_state,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use mynah_mmu::interrupts::{ChipKeeper, IoapicImage, PicImage};
use std::sync::Arc;

/// Pins of the I/O APIC, which are KVM's interrupts from 0 on.
const PINS: u32 = 24;
/// KVM's interrupt for input 0 of the 8259A pair.
const PIC: u32 = 32;
/// Inputs of the pair, and of one of it.
const INPUTS: u32 = 16;
const EACH: u32 = 8;
/// Where KVM has its I/O APIC.
const BASE: u64 = 0xfec0_0000;
/// The inputs of both whose trigger may be changed.
const ELCR_MASK: [u8; 2] = [0xf8, 0xde];

/// What it needs beside [`lapic::lacks`].
pub(super) fn lacks(kvm: &Kvm) -> Option<&'static str> {
    lapic::lacks(kvm)
        .or_else(|| (!kvm.check_extension(Cap::Irqchip)).then_some("interrupt controllers in the kernel"))
}

/// Has this virtual machine, which has no vCPU yet, keep all interrupt controllers.
pub(super) fn enable(kvm: &Kvm, fd: &Arc<VmFd>) -> Result<Arc<dyn ChipKeeper>, AccelError> {
    if let Some(what) = lacks(kvm) {
        return Err(AccelError::Lacks(what));
    }
    fd.create_irq_chip().map_err(failed("keep interrupt controllers"))?;
    lapic::widen(fd);
    let pins = (0..PINS).map(|pin| route(pin, KVM_IRQCHIP_IOAPIC, pin));
    let inputs = (0..INPUTS).map(|n| match n < EACH {
        true => route(PIC + n, KVM_IRQCHIP_PIC_MASTER, n),
        false => route(PIC + n, KVM_IRQCHIP_PIC_SLAVE, n - EACH),
    });
    let all: Vec<_> = pins.chain(inputs).collect();
    let all = KvmIrqRouting::from_entries(&all)
        .map_err(|e| AccelError::Kvm { what: "take so many routes", reason: format!("{e:?}") })?;
    fd.set_gsi_routing(&all).map_err(failed("set interrupt routes"))?;
    Ok(Arc::new(Chips { fd: fd.clone() }))
}

/// The interrupt `gsi` is this pin of that chip.
fn route(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip.irqchip = irqchip;
    entry.u.irqchip.pin = pin;
    entry
}

/// The chips of one virtual machine.
struct Chips {
    fd: Arc<VmFd>,
}

impl Chips {
    fn line(&self, gsi: u32, level: bool) {
        if let Err(e) = self.fd.set_irq_line(gsi, level) {
            tracing::error!("-accel kvm: KVM does not take interrupt {gsi}: {e}");
        }
    }

    fn get(&self, chip: u32) -> Result<kvm_irqchip, AccelError> {
        let mut state = kvm_irqchip { chip_id: chip, ..Default::default() };
        self.fd.get_irqchip(&mut state).map_err(failed("get an interrupt controller"))?;
        Ok(state)
    }

    fn put(&self, state: &kvm_irqchip) {
        let set = self.fd.set_irqchip(state).map_err(failed("set an interrupt controller"));
        if let Err(e) = set {
            tracing::error!("-accel kvm: {e}");
        }
    }

    fn get_pic(&self, chip: u32) -> Result<PicImage, AccelError> {
        let state = self.get(chip)?;
        // SAFETY: the kernel has filled in this member for an 8259A, of whose fields any bytes are values.
        Ok(pic_image(unsafe { &state.chip.pic }))
    }

    fn get_ioapic(&self) -> Result<IoapicImage, AccelError> {
        let state = self.get(KVM_IRQCHIP_IOAPIC)?;
        // SAFETY: the kernel has filled in this member for the I/O APIC, of whose fields any bytes are values.
        Ok(ioapic_image(unsafe { &state.chip.ioapic }))
    }
}

impl ChipKeeper for Chips {
    fn set_pic_line(&self, line: u32, level: bool) {
        if line < INPUTS {
            self.line(PIC + line, level);
        }
    }

    fn set_ioapic_pin(&self, pin: u32, level: bool) {
        if pin < PINS {
            self.line(pin, level);
        }
    }

    fn pic(&self) -> Option<[PicImage; 2]> {
        let both = self.get_pic(KVM_IRQCHIP_PIC_MASTER).and_then(|master| {
            let slave = self.get_pic(KVM_IRQCHIP_PIC_SLAVE)?;
            Ok([master, slave])
        });
        both.inspect_err(|e| tracing::error!("-accel kvm: {e}")).ok()
    }

    fn put_pic(&self, pair: &[PicImage; 2]) {
        // The slave first, so that no request of before stays with the master.
        for (n, image) in pair.iter().enumerate().rev() {
            let chip = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE][n];
            let mut state = kvm_irqchip { chip_id: chip, ..Default::default() };
            state.chip.pic = pic_state(image, ELCR_MASK[n]);
            self.put(&state);
        }
    }

    fn ioapic(&self) -> Option<IoapicImage> {
        self.get_ioapic().inspect_err(|e| tracing::error!("-accel kvm: {e}")).ok()
    }

    fn put_ioapic(&self, image: &IoapicImage) {
        let mut state = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        state.chip.ioapic = ioapic_state(image);
        self.put(&state);
    }
}

fn pic_image(s: &kvm_pic_state) -> PicImage {
    PicImage {
        lines: s.last_irr,
        irr: s.irr,
        imr: s.imr,
        isr: s.isr,
        top: s.priority_add,
        vector: s.irq_base,
        read_isr: s.read_reg_select != 0,
        poll: s.poll != 0,
        special_mask: s.special_mask != 0,
        // KVM counts the words that may follow ICW1.
        expects: if s.init_state == 0 { 0 } else { s.init_state.saturating_add(1) },
        auto_eoi: s.auto_eoi != 0,
        rotate_on_auto_eoi: s.rotate_on_auto_eoi != 0,
        special_fully_nested: s.special_fully_nested_mode != 0,
        has_icw4: s.init4 != 0,
        elcr: s.elcr,
    }
}

fn pic_state(image: &PicImage, elcr_mask: u8) -> kvm_pic_state {
    kvm_pic_state {
        last_irr: image.lines,
        irr: image.irr,
        imr: image.imr,
        isr: image.isr,
        priority_add: image.top,
        irq_base: image.vector,
        read_reg_select: image.read_isr.into(),
        poll: image.poll.into(),
        special_mask: image.special_mask.into(),
        init_state: image.expects.saturating_sub(1),
        auto_eoi: image.auto_eoi.into(),
        rotate_on_auto_eoi: image.rotate_on_auto_eoi.into(),
        special_fully_nested_mode: image.special_fully_nested.into(),
        init4: image.has_icw4.into(),
        elcr: image.elcr,
        elcr_mask,
    }
}

fn ioapic_image(s: &kvm_ioapic_state) -> IoapicImage {
    IoapicImage {
        id: s.id as u8,
        index: s.ioregsel as u8,
        // SAFETY: both members are 64 bits, of which any are values.
        redirection: s.redirtbl.map(|entry| unsafe { entry.bits }),
        levels: s.irr,
    }
}

fn ioapic_state(image: &IoapicImage) -> kvm_ioapic_state {
    let mut state = kvm_ioapic_state {
        base_address: BASE,
        ioregsel: image.index.into(),
        id: image.id.into(),
        irr: image.levels,
        ..Default::default()
    };
    for (to, bits) in state.redirtbl.iter_mut().zip(image.redirection) {
        to.bits = bits;
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::Host;

    /// The kernel's chips of a new virtual machine, if this host has such.
    fn chips() -> Option<(Host, Arc<dyn ChipKeeper>)> {
        let host = match Host::open() {
            Ok(host) => host,
            Err(e) => {
                eprintln!("SKIPPED: {e}");
                return None;
            }
        };
        if let Some(what) = lacks(&host.kvm) {
            eprintln!("SKIPPED: KVM lacks {what}");
            return None;
        }
        let fd = Arc::new(host.kvm.create_vm().unwrap());
        let chips = enable(&host.kvm, &fd).unwrap();
        Some((host, chips))
    }

    #[test]
    fn an_8259a_pair_comes_back_as_it_was_given() {
        let Some((_host, chips)) = chips() else { return };
        let master = PicImage {
            lines: 0x50,
            irr: 0x42,
            imr: 0xa1,
            isr: 0x10,
            top: 3,
            vector: 0x30,
            read_isr: true,
            poll: true,
            special_mask: true,
            expects: 3,
            auto_eoi: true,
            rotate_on_auto_eoi: true,
            special_fully_nested: true,
            has_icw4: true,
            elcr: 0x40,
        };
        let slave = PicImage { imr: 0xff, isr: 2, vector: 0x70, elcr: 0x0c, ..Default::default() };
        chips.put_pic(&[master, slave]);
        assert_eq!(chips.pic(), Some([master, slave]));
        for expects in [0, 2, 3, 4] {
            let master = PicImage { expects, ..master };
            chips.put_pic(&[master, slave]);
            assert_eq!(chips.pic(), Some([master, slave]));
        }
    }

    #[test]
    fn inputs_reach_the_chip_and_the_input_that_they_are_of() {
        let Some((_host, chips)) = chips() else { return };
        for n in (0..INPUTS).filter(|n| *n != 2) {
            chips.put_pic(&[PicImage { imr: 0xff, ..Default::default() }; 2]);
            chips.set_pic_line(n, true);
            let [master, slave] = chips.pic().unwrap();
            let (at, other) = if n < EACH { (master, slave) } else { (slave, master) };
            assert_eq!((at.irr, at.lines, other.irr, other.lines), (1 << (n % 8), 1 << (n % 8), 0, 0), "{n}");
            assert_eq!(chips.ioapic().unwrap().levels, 0);
            chips.set_pic_line(n, false);
            assert_eq!(chips.pic().map(|[m, s]| (m.lines, s.lines)), Some((0, 0)), "{n}");
        }
        let pair = chips.pic();
        for pin in 0..PINS {
            chips.set_ioapic_pin(pin, true);
            assert_eq!(chips.ioapic().unwrap().levels, 1 << pin);
            chips.set_ioapic_pin(pin, false);
            assert_eq!(chips.ioapic().unwrap().levels, 0);
        }
        assert_eq!(chips.pic(), pair);
    }

    #[test]
    fn an_io_apic_comes_back_as_it_was_given() {
        let Some((_host, chips)) = chips() else { return };
        // Masked, as a processor would have to be there for all else.
        let redirection = std::array::from_fn(|n| 0x0300_0000_0001_a930 | (n as u64 & 1) << 14 | n as u64);
        let image = IoapicImage { id: 5, index: 0x13, redirection, levels: 0x00_0120 };
        chips.put_ioapic(&image);
        assert_eq!(chips.ioapic(), Some(image));
    }
}
