//! Whether the kernel's local APICs, and its other interrupt controllers, can be relied on: what guests need of them is
//! tried with a small guest in real mode.
//!
//! A KVM that is emulated itself may have its own idea of them, where a guest would lose interrupts or take them in the
//! wrong order, and what is read from the registers would not be all that there is to save.
use super::kick::Ticks;
use super::lapic::Kept;
use super::{Host, Irqchip, Vm, failed};
use crate::AccelError;
use kvm_bindings::kvm_regs;
use kvm_ioctls::{VcpuExit, VcpuFd};
use mynah_mmu::interrupts::{ApicKeeper, PicImage};
use mynah_mmu::{GuestRam, PhysMemory};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where the code is that waits, and the first vector's handler; each has 32 bytes.
const CODE: u64 = 0x1000;
const HANDLERS: u64 = 0x3000;
/// Ports that a handler writes its vector to, before EOI and after it.
const BEFORE: u16 = 0x77;
const AFTER: u16 = 0x78;
/// For how long nothing has to happen where nothing should, and how long what should may take.
const QUIET: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(1);

/// Register numbers.
const SVR: usize = 0x0f;
const LINT0: usize = 0x35;
const ISR: usize = 0x10;
const LVT_TIMER: usize = 0x32;
const INITIAL: usize = 0x38;
const CURRENT: usize = 0x39;
const DIVIDE: usize = 0x3e;

/// What the guest does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Out(u16, u8),
    Ended(u8),
    Nothing,
    Other,
}

struct Trial {
    fd: VcpuFd,
    kept: Arc<Kept>,
    ticks: Ticks,
    // Its slots point into it.
    _memory: Arc<PhysMemory>,
}

/// Whether `kernel-irqchip=split` does what it has to.
///
/// # Errors
/// It does not; what is wrong.
pub fn split() -> Result<(), AccelError> {
    let mut t = Trial::new(Irqchip::Split)?;
    let outcome = t.local_apic().and_then(|()| t.level()).and_then(|()| t.timer());
    t.ticks.stop();
    outcome
}

/// Whether `kernel-irqchip=on` does.
///
/// # Errors
/// As [`split`].
pub fn on() -> Result<(), AccelError> {
    let mut t = Trial::new(Irqchip::On)?;
    let outcome = t.local_apic().and_then(|()| t.chips()).and_then(|()| t.timer());
    t.ticks.stop();
    outcome
}

fn wrong(reason: String) -> AccelError {
    AccelError::Kvm { what: "be relied on with interrupt controllers (kernel-irqchip=)", reason }
}

impl Trial {
    fn new(irqchip: Irqchip) -> Result<Self, AccelError> {
        let refused = |e: std::io::Error| wrong(e.to_string());
        let memory = PhysMemory::new(GuestRam::new(1 << 20).map_err(|e| wrong(e.to_string()))?, 1 << 20);
        // sti; hlt; jmp to hlt
        memory.write(CODE, &[0xfb, 0xf4, 0xeb, 0xfd]);
        for vector in 0x20..=0xff_u8 {
            let at = HANDLERS + 32 * u64::from(vector);
            // sti; push ax; mov al, vector; out 77h, al; mov dword [0b0h], 0; out 78h, al; pop ax; iret
            let code = [
                0xfb, 0x50, 0xb0, vector, 0xe6, 0x77, 0x66, 0xc7, 0x06, 0xb0, 0, 0, 0, 0, 0, 0xe6, 0x78,
                0x58, 0xcf,
            ];
            memory.write(at, &code);
            memory.write(4 * u64::from(vector), &(at as u32).to_le_bytes());
        }
        let vm = Vm::with(Host::open()?, &memory, irqchip)?;
        let fd = vm.fd.create_vcpu(0).map_err(failed("create a vCPU"))?;
        let mut sregs = fd.get_sregs().map_err(failed("get segment and control registers"))?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        // The local APIC's page.
        sregs.ds.base = 0xfee0_0000;
        fd.set_sregs(&sregs).map_err(failed("set segment and control registers"))?;
        let regs = kvm_regs { rip: CODE, rsp: 0x800, rflags: 2, ..Default::default() };
        fd.set_regs(&regs).map_err(failed("set registers"))?;
        let kept = Kept::new(&vm, &fd)?;
        let mut ticks = Ticks::default();
        ticks.start(TICK).map_err(refused)?;
        Ok(Self { fd, kept, ticks, _memory: memory })
    }

    fn next(&mut self, patience: Duration) -> Result<Seen, AccelError> {
        let give_up = Instant::now() + patience;
        loop {
            match self.fd.run() {
                Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                    if Instant::now() > give_up {
                        return Ok(Seen::Nothing);
                    }
                }
                Err(e) => return Err(failed("run a vCPU")(e)),
                Ok(VcpuExit::IoOut(port, data)) => {
                    return Ok(Seen::Out(port, data.first().copied().unwrap_or(0)));
                }
                Ok(VcpuExit::IoapicEoi(vector)) => return Ok(Seen::Ended(vector)),
                Ok(_) => return Ok(Seen::Other),
            }
        }
    }

    fn expect(&mut self, what: &str, all: &[Seen]) -> Result<(), AccelError> {
        for expected in all {
            let patience = if *expected == Seen::Nothing { QUIET } else { PATIENCE };
            let seen = self.next(patience)?;
            if seen != *expected {
                return Err(wrong(format!("{what} ({seen:x?}, not {expected:x?})")));
            }
        }
        Ok(())
    }

    fn send(&self, data: u32) {
        self.kept.message(0xfee0_0000, data);
    }

    /// Writes registers.
    fn set(&self, registers: &[(usize, u32)]) -> Result<(), AccelError> {
        let mut image = self.kept.get().ok_or_else(|| wrong("its registers cannot be read".into()))?;
        for (n, value) in registers {
            image.page[*n] = *value;
        }
        self.kept.put(&image, true);
        Ok(())
    }

    fn local_apic(&mut self) -> Result<(), AccelError> {
        self.set(&[(SVR, 0x1ff)])?;
        self.expect("a processor does not halt", &[Seen::Nothing])?;
        self.send(0x40);
        self.expect("a message does not wake a processor that halts", &[Seen::Out(BEFORE, 0x40)])?;
        let image = self.kept.get().ok_or_else(|| wrong("its registers cannot be read".into()))?;
        if image.page[ISR + 2] & 1 == 0 {
            return Err(wrong("an interrupt in service is not seen in its registers".into()));
        }
        self.send(0x31);
        const ORDER: &str = "an interrupt of lower priority comes before the end of the one in service";
        self.expect(ORDER, &[Seen::Out(AFTER, 0x40), Seen::Out(BEFORE, 0x31), Seen::Out(AFTER, 0x31)])
    }

    /// A level, whose end is told.
    fn level(&mut self) -> Result<(), AccelError> {
        self.kept.levels(&[(3, 0xfee0_0000, 0xc050)]);
        self.send(0xc050);
        const END: &str = "the end of a level-triggered interrupt is not told";
        self.expect(END, &[Seen::Out(BEFORE, 0x50), Seen::Ended(0x50), Seen::Out(AFTER, 0x50)])
    }

    /// The 8259A pair and the I/O APIC.
    fn chips(&mut self) -> Result<(), AccelError> {
        let chips = self.kept.chips().ok_or_else(|| wrong("it has no others".into()))?;
        let lost = || wrong("an interrupt controller cannot be read".into());
        // An edge at the slave, by way of LINT0.
        const EXT_INT: u32 = 0x700;
        self.set(&[(LINT0, EXT_INT)])?;
        let chip = PicImage { vector: 0x20, ..Default::default() };
        chips.put_pic(&[chip, PicImage { vector: 0x28, ..chip }]);
        chips.set_pic_line(12, true);
        const EDGE: &str = "the 8259A pair does not interrupt as it should";
        self.expect(EDGE, &[Seen::Out(BEFORE, 0x2c), Seen::Out(AFTER, 0x2c), Seen::Nothing])?;
        let [master, slave] = chips.pic().ok_or_else(lost)?;
        if (master.isr, slave.isr) != (1 << 2, 1 << 4) {
            return Err(wrong("an interrupt in service is not seen in the 8259A pair".into()));
        }
        // A level of the I/O APIC, which goes down while it is served, and one that stays up.
        let mut image = chips.ioapic().ok_or_else(lost)?;
        const LEVEL: u64 = 0x8000;
        const SERVED: u64 = 0x4000;
        image.redirection[10] = LEVEL | 0x51;
        chips.put_ioapic(&image);
        const PIN: &str = "a level of the I/O APIC does not interrupt as it should";
        chips.set_ioapic_pin(10, true);
        self.expect(PIN, &[Seen::Out(BEFORE, 0x51)])?;
        if chips.ioapic().ok_or_else(lost)?.redirection[10] != LEVEL | SERVED | 0x51 {
            return Err(wrong("an interrupt in service is not seen in the I/O APIC".into()));
        }
        self.expect(PIN, &[Seen::Out(AFTER, 0x51), Seen::Out(BEFORE, 0x51)])?;
        chips.set_ioapic_pin(10, false);
        self.expect(PIN, &[Seen::Out(AFTER, 0x51), Seen::Nothing])?;
        // One that is put there while it is up.
        image.levels = 1 << 10;
        chips.put_ioapic(&image);
        self.expect(PIN, &[Seen::Out(BEFORE, 0x51)])?;
        chips.set_ioapic_pin(10, false);
        self.expect(PIN, &[Seen::Out(AFTER, 0x51), Seen::Nothing])
    }

    fn timer(&mut self) -> Result<(), AccelError> {
        self.set(&[(LVT_TIMER, 0x60), (DIVIDE, 0xb), (INITIAL, 1_000_000), (CURRENT, 1_000_000)])?;
        const TIMER: &str = "its timer does not interrupt";
        self.expect(TIMER, &[Seen::Out(BEFORE, 0x60), Seen::Out(AFTER, 0x60), Seen::Nothing])
    }
}
