//! Memory accesses of the vCPU: linear accesses through the TLB, the slow path behind it, and operand addressing.
use crate::cpu::Cpu;
use crate::event::{Stop, vector};
use crate::mode::ModeKey;
use crate::op::{CHECKED, Op};
use crate::state::seg;
use crate::width::{W8, Width, copy_in, copy_out, read128, write128};
use crate::world::World;
use mynah_mmu::{Access, Mode, PAGE_MASK, Page, TlbEntry, Translation, shares_entry_with_previous, walk};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// Tag of an entry that must never match.
const NEVER: u64 = u64::MAX;

/// Where a linear address leads for an access that missed the TLB's fast path.
enum Place {
    /// Plain memory: host address of the byte.
    Host(*mut u8),
    /// RAM whose page holds decoded code, or needs its dirty bit logged: guest physical and host address.
    Watched(u64, *mut u8),
    /// A device or nothing: the guest physical address.
    Device(u64),
}

impl Cpu {
    // ---- operand addressing
    // --------------------------------------------------------------------------------------------

    /// The effective address (offset in its segment) of `op`'s memory operand.
    #[inline(always)]
    pub fn ea(&self, op: &Op) -> u64 {
        let g = &self.state.gpr;
        let sum = g[usize::from(op.base & 31)]
            .wrapping_add(g[usize::from(op.index & 31)] << (op.scale & 3))
            .wrapping_add(op.disp);
        (sum << (op.ashift & 63)) >> (op.ashift & 63)
    }

    /// The linear address of `len` bytes at `offset` in segment `s`, checked against limit and rights: #GP(0), or
    /// #SS(0) for SS. In 64-bit mode only the base is added; canonical form is checked where the access misses the
    /// TLB.
    #[inline(always)]
    pub fn linear(&mut self, s: usize, offset: u64, len: u64, write: bool) -> Result<u64, Stop> {
        let v = &self.view[s & 7];
        if self.state.is_long64() {
            return Ok(v.base.wrapping_add(offset));
        }
        let (lo, hi) = if write { (v.write_lo, v.write_hi) } else { (v.read_lo, v.read_hi) };
        if offset < lo || offset.wrapping_add(len - 1) > hi {
            return Err(self.segment_fault(s));
        }
        Ok(v.base.wrapping_add(offset) & 0xffff_ffff)
    }

    #[cold]
    fn segment_fault(&mut self, s: usize) -> Stop {
        self.raise_ec(if s == seg::SS { vector::SS } else { vector::GP }, 0)
    }

    /// The linear address of `op`'s memory operand of `len` bytes.
    #[inline(always)]
    pub fn operand(&mut self, op: &Op, len: u64, write: bool) -> Result<u64, Stop> {
        let off = self.ea(op);
        if op.flags & CHECKED == 0 {
            return Ok(self.view[usize::from(op.seg & 7)].base.wrapping_add(off));
        }
        self.linear(usize::from(op.seg), off, len, write)
    }

    /// The linear address of `len` bytes, `extra` bytes behind `op`'s memory operand.
    #[inline(always)]
    pub fn operand_at(&mut self, op: &Op, extra: u64, len: u64, write: bool) -> Result<u64, Stop> {
        let off = self.ea(op).wrapping_add(extra);
        let off = (off << (op.ashift & 63)) >> (op.ashift & 63);
        if op.flags & CHECKED == 0 {
            return Ok(self.view[usize::from(op.seg & 7)].base.wrapping_add(off));
        }
        self.linear(usize::from(op.seg), off, len, write)
    }

    /// Loads `op`'s memory operand.
    #[inline(always)]
    pub fn load_op<W: Width>(&mut self, op: &Op) -> Result<u64, Stop> {
        let lin = self.operand(op, W::BYTES, false)?;
        self.load::<W>(lin, op.seg)
    }
    /// Stores to `op`'s memory operand.
    #[inline(always)]
    pub fn store_op<W: Width>(&mut self, op: &Op, v: u64) -> Result<(), Stop> {
        let lin = self.operand(op, W::BYTES, true)?;
        self.store::<W>(lin, v, op.seg)
    }
    /// Loads a 128-bit memory operand; with `aligned`, #GP(0) unless it is 16-byte aligned.
    #[inline(always)]
    pub fn load_op128(&mut self, op: &Op, aligned: bool) -> Result<u128, Stop> {
        let lin = match self.operand(op, 16, false) {
            Ok(lin) => lin,
            Err(stop) => return Err(self.alignment_first(op, aligned, stop)),
        };
        if aligned && lin & 15 != 0 {
            return Err(self.gp(0));
        }
        self.load128(lin, op.seg)
    }
    /// Stores a 128-bit memory operand; with `aligned`, #GP(0) unless it is 16-byte aligned.
    #[inline(always)]
    pub fn store_op128(&mut self, op: &Op, v: u128, aligned: bool) -> Result<(), Stop> {
        let lin = match self.operand(op, 16, true) {
            Ok(lin) => lin,
            Err(stop) => return Err(self.alignment_first(op, aligned, stop)),
        };
        if aligned && lin & 15 != 0 {
            return Err(self.gp(0));
        }
        self.store128(lin, v, op.seg)
    }

    /// Loads a 256-bit memory operand, low half first; with `aligned`, #GP(0) unless it is 32-byte aligned.
    #[inline(always)]
    pub fn load_op256(&mut self, op: &Op, aligned: bool) -> Result<[u128; 2], Stop> {
        let lin = match self.operand(op, 32, false) {
            Ok(lin) => lin,
            Err(stop) => return Err(self.wide_alignment_first(op, aligned, stop)),
        };
        if aligned && lin & 31 != 0 {
            return Err(self.gp(0));
        }
        let e = self.tlb.entry(lin);
        if e.read == lin.wrapping_add(31) & !PAGE_MASK {
            let p = lin.wrapping_add(e.addend) as *const u8;
            // SAFETY: as in `load`.
            return Ok(unsafe { [read128(p), read128(p.wrapping_add(16))] });
        }
        let mut b = [0; 32];
        self.load_bytes(lin, &mut b, op.seg)?;
        let (halves, _) = b.as_chunks::<16>();
        Ok([u128::from_le_bytes(halves[0]), u128::from_le_bytes(halves[1])])
    }
    /// Stores a 256-bit memory operand, low half first; with `aligned`, #GP(0) unless it is 32-byte aligned.
    #[inline(always)]
    pub fn store_op256(&mut self, op: &Op, v: [u128; 2], aligned: bool) -> Result<(), Stop> {
        let lin = match self.operand(op, 32, true) {
            Ok(lin) => lin,
            Err(stop) => return Err(self.wide_alignment_first(op, aligned, stop)),
        };
        if aligned && lin & 31 != 0 {
            return Err(self.gp(0));
        }
        let e = self.tlb.entry(lin);
        if e.write == lin.wrapping_add(31) & !PAGE_MASK {
            let p = lin.wrapping_add(e.addend) as *mut u8;
            // SAFETY: as in `store`.
            unsafe {
                write128(p, v[0]);
                write128(p.wrapping_add(16), v[1]);
            }
            return Ok(());
        }
        let mut b = [0; 32];
        b[..16].copy_from_slice(&v[0].to_le_bytes());
        b[16..].copy_from_slice(&v[1].to_le_bytes());
        self.store_bytes(lin, &b, op.seg)
    }

    /// Of an operand beyond its segment's limit that is not aligned either, the alignment is what is reported.
    #[cold]
    fn alignment_first(&mut self, op: &Op, aligned: bool, stop: Stop) -> Stop {
        let lin = self.view[usize::from(op.seg & 7)].base.wrapping_add(self.ea(op));
        if aligned && lin & 15 != 0 { self.gp(0) } else { stop }
    }
    #[cold]
    fn wide_alignment_first(&mut self, op: &Op, aligned: bool, stop: Stop) -> Stop {
        let lin = self.view[usize::from(op.seg & 7)].base.wrapping_add(self.ea(op));
        if aligned && lin & 31 != 0 { self.gp(0) } else { stop }
    }

    // ---- linear accesses at the current privilege
    // ----------------------------------------------------------------------

    /// Loads from a linear address. `s` is the segment used (#SS instead of #GP for a non-canonical address through
    /// SS).
    #[inline(always)]
    pub fn load<W: Width>(&mut self, lin: u64, s: u8) -> Result<u64, Stop> {
        let e = self.tlb.entry(lin);
        if e.read == lin.wrapping_add(W::BYTES - 1) & !PAGE_MASK {
            let p = lin.wrapping_add(e.addend) as *const u8;
            // SAFETY: a matching read tag means that `addend` maps this whole page to host memory that lives as long
            // as `mem`; the last byte is on the same page as the first.
            return Ok(unsafe { W::read(p) });
        }
        self.load_slow(lin, W::BYTES, s)
    }

    /// Stores to a linear address.
    #[inline(always)]
    pub fn store<W: Width>(&mut self, lin: u64, v: u64, s: u8) -> Result<(), Stop> {
        let e = self.tlb.entry(lin);
        if e.write == lin.wrapping_add(W::BYTES - 1) & !PAGE_MASK {
            let p = lin.wrapping_add(e.addend) as *mut u8;
            // SAFETY: as in `load`, with a write tag.
            unsafe { W::write(p, v) };
            return Ok(());
        }
        self.store_slow(lin, v, W::BYTES, s)
    }

    /// Loads 128 bits.
    #[inline(always)]
    pub fn load128(&mut self, lin: u64, s: u8) -> Result<u128, Stop> {
        let e = self.tlb.entry(lin);
        if e.read == lin.wrapping_add(15) & !PAGE_MASK {
            let p = lin.wrapping_add(e.addend) as *const u8;
            // SAFETY: as in `load`.
            return Ok(unsafe { read128(p) });
        }
        let mut b = [0; 16];
        self.load_bytes(lin, &mut b, s)?;
        Ok(u128::from_le_bytes(b))
    }
    /// Stores 128 bits.
    #[inline(always)]
    pub fn store128(&mut self, lin: u64, v: u128, s: u8) -> Result<(), Stop> {
        let e = self.tlb.entry(lin);
        if e.write == lin.wrapping_add(15) & !PAGE_MASK {
            let p = lin.wrapping_add(e.addend) as *mut u8;
            // SAFETY: as in `store`.
            unsafe { write128(p, v) };
            return Ok(());
        }
        self.store_bytes(lin, &v.to_le_bytes(), s)
    }

    /// Read-modify-write: `f` maps the old value to the new one. With `lock`, atomically (then `f` may run more than
    /// once). Returns old and new.
    #[inline(always)]
    pub fn rmw<W: Width>(
        &mut self,
        lin: u64,
        s: u8,
        lock: bool,
        mut f: impl FnMut(&mut Self, u64) -> u64,
    ) -> Result<(u64, u64), Stop> {
        let e = self.tlb.entry(lin);
        let aligned = lin & (W::BYTES - 1) == 0;
        if e.write == lin.wrapping_add(W::BYTES - 1) & !PAGE_MASK && (aligned || !lock) {
            let p = lin.wrapping_add(e.addend) as *mut u8;
            if lock {
                // SAFETY: as in `store`; host pages are aligned, so the host address is aligned as the linear one is.
                let mut old = unsafe { W::read(p) };
                loop {
                    let new = f(self, old) & W::MASK;
                    // SAFETY: as above.
                    match unsafe { W::compare_exchange(p, old, new) } {
                        Ok(_) => return Ok((old, new)),
                        Err(now) => old = now,
                    }
                }
            }
            // SAFETY: as in `store`.
            let old = unsafe { W::read(p) };
            let new = f(self, old) & W::MASK;
            // SAFETY: as in `store`.
            unsafe { W::write(p, new) };
            return Ok((old, new));
        }
        self.rmw_slow::<W>(lin, s, lock, &mut f)
    }

    #[cold]
    #[inline(never)]
    fn rmw_slow<W: Width>(
        &mut self,
        lin: u64,
        s: u8,
        lock: bool,
        f: &mut dyn FnMut(&mut Self, u64) -> u64,
    ) -> Result<(u64, u64), Stop> {
        self.accessible(lin, W::BYTES, s)?;
        self.align_check(lin, W::BYTES)?;
        let crosses = |unit: u64| (lin & (unit - 1)) + W::BYTES > unit;
        let across_pages = crosses(PAGE_MASK + 1);
        // x86 hosts make any access in a line atomic, others aligned ones.
        let line = if cfg!(target_arch = "x86_64") { 64 } else { W::BYTES };
        let whole = !across_pages && (!crosses(line) || self.world.split_locks());
        // What the host cannot do at once is done while the others stand still, as they do anyway while code is
        // checked.
        let world = (lock && !whole && !self.is_tentative()).then(|| self.world.clone());
        let _alone = world.as_ref().map(|w| self.alone(w));
        self.probe_write(lin, W::BYTES, s)?;
        if self.watch {
            self.data_breakpoint(lin, W::BYTES, true);
        }
        let mode = self.tlb.mode();
        if across_pages {
            let mut b = [0; 8];
            let b = &mut b[..W::BYTES as usize];
            self.load_bytes_as(lin, b, mode)?;
            let mut old = [0; 8];
            old[..b.len()].copy_from_slice(b);
            let old = u64::from_le_bytes(old);
            let new = f(self, old) & W::MASK;
            self.store_bytes_as(lin, &new.to_le_bytes()[..W::BYTES as usize], mode)?;
            return Ok((old, new));
        }
        let place = self.place(self.wrap(lin), mode, true)?;
        let p = match place {
            Place::Host(p) | Place::Watched(_, p) => p,
            Place::Device(gpa) => {
                let mut b = [0; 8];
                self.device_read(gpa, &mut b[..W::BYTES as usize]);
                let old = u64::from_le_bytes(b);
                let new = f(self, old) & W::MASK;
                self.device_write(gpa, &new.to_le_bytes()[..W::BYTES as usize]);
                return Ok((old, new));
            }
        };
        // SAFETY: `place` gave host memory for the byte at `lin` and the rest of its page, and the access does not
        // leave it.
        let mut old = unsafe { W::read(p) };
        let new = loop {
            let new = f(self, old) & W::MASK;
            if !lock {
                // SAFETY: as above.
                unsafe { W::write(p, new) };
                break new;
            }
            // SAFETY: as above.
            match unsafe { W::compare_exchange_anywhere(p, old, new) } {
                Ok(_) => break new,
                Err(now) => old = now,
            }
        };
        if let Place::Watched(gpa, _) = place {
            self.watched_write(gpa, W::BYTES);
        }
        Ok((old, new))
    }

    /// Stops the other vCPUs. Translations must be looked up anew after it.
    pub(crate) fn alone<'a>(&mut self, world: &'a Arc<World>) -> crate::world::Exclusive<'a> {
        let alone = world.exclusive(self.seat);
        self.serve_protect();
        alone
    }

    /// Atomic compare-exchange of 16 bytes at an aligned address; returns what was found. A failed comparison writes
    /// the old value back, as hardware does.
    pub fn compare_exchange128(&mut self, lin: u64, s: u8, old: u128, new: u128) -> Result<u128, Stop> {
        self.probe_write(lin, 16, s)?;
        if self.watch {
            self.data_breakpoint(lin, 16, true);
        }
        let world = (cfg!(not(target_arch = "x86_64")) && !self.is_tentative()).then(|| self.world.clone());
        let _alone = world.as_ref().map(|w| self.alone(w));
        let place = self.place(self.wrap(lin), self.tlb.mode(), true)?;
        let p = match place {
            Place::Host(p) | Place::Watched(_, p) => p,
            Place::Device(gpa) => {
                let mut b = [0; 16];
                self.device_read(gpa, &mut b);
                let found = u128::from_le_bytes(b);
                self.device_write(gpa, &(if found == old { new } else { found }).to_le_bytes());
                return Ok(found);
            }
        };
        #[cfg(target_arch = "x86_64")]
        let found = {
            let (mut lo, mut hi) = (old as u64, (old >> 64) as u64);
            // SAFETY: `place` gave host memory for the rest of the page from there; host pages are aligned, and the
            // callers see to it that `lin` is. RBX is saved around the instruction.
            unsafe {
                std::arch::asm!(
                    "xchg rbx, {nlo}",
                    "lock cmpxchg16b [{p}]",
                    "mov rbx, {nlo}",
                    p = in(reg) p,
                    nlo = inout(reg) new as u64 => _,
                    in("rcx") (new >> 64) as u64,
                    inout("rax") lo,
                    inout("rdx") hi,
                );
            }
            u128::from(hi) << 64 | u128::from(lo)
        };
        #[cfg(not(target_arch = "x86_64"))]
        // SAFETY: as above; nobody else runs.
        let found = unsafe {
            let found = read128(p);
            write128(p, if found == old { new } else { found });
            found
        };
        if let Place::Watched(gpa, _) = place {
            self.watched_write(gpa, 16);
        }
        Ok(found)
    }

    /// Checks that `len` bytes at `lin` can be written (faults as a write would, sets accessed and dirty flags).
    pub fn probe_write(&mut self, lin: u64, len: u64, s: u8) -> Result<(), Stop> {
        self.probe(lin, len, s, true)
    }

    /// Checks that `len` bytes at `lin` can be read or written.
    pub fn probe(&mut self, lin: u64, len: u64, s: u8, write: bool) -> Result<(), Stop> {
        let mode = self.tlb.mode();
        self.accessible(lin, len, s)?;
        let mut at = lin;
        loop {
            self.place(at, mode, write)?;
            let next = (at & !PAGE_MASK).wrapping_add(PAGE_MASK + 1);
            if next.wrapping_sub(lin) >= len {
                return Ok(());
            }
            at = next;
        }
    }

    /// Loads any number of bytes.
    pub fn load_bytes(&mut self, lin: u64, buf: &mut [u8], s: u8) -> Result<(), Stop> {
        let mode = self.tlb.mode();
        self.accessible(lin, buf.len() as u64, s)?;
        self.load_bytes_as(lin, buf, mode)
    }

    /// Stores any number of bytes; faults before the first is written.
    pub fn store_bytes(&mut self, lin: u64, buf: &[u8], s: u8) -> Result<(), Stop> {
        let mode = self.tlb.mode();
        self.accessible(lin, buf.len() as u64, s)?;
        self.store_bytes_as(lin, buf, mode)
    }

    // ---- implicit supervisor accesses (descriptor tables, TSS, stacks of inner levels)
    // ------------------------------------

    /// Loads on behalf of the system, whatever the CPL.
    pub fn load_sys<W: Width>(&mut self, lin: u64) -> Result<u64, Stop> {
        let mut b = [0; 8];
        self.canonical(lin, W::BYTES, seg::DS as u8)?;
        self.load_bytes_as(lin, &mut b[..W::BYTES as usize], Mode::Super)?;
        Ok(u64::from_le_bytes(b))
    }
    /// Stores on behalf of the system, whatever the CPL.
    pub fn store_sys<W: Width>(&mut self, lin: u64, v: u64) -> Result<(), Stop> {
        self.canonical(lin, W::BYTES, seg::DS as u8)?;
        self.store_bytes_as(lin, &v.to_le_bytes()[..W::BYTES as usize], Mode::Super)
    }
    /// Changes a byte on behalf of the system, atomically (SDM volume 3A, 9.1.2.1: descriptors are updated by locked
    /// accesses).
    pub(crate) fn modify_sys_byte(&mut self, lin: u64, f: impl Fn(u64) -> u64) -> Result<(), Stop> {
        self.canonical(lin, 1, seg::DS as u8)?;
        if self.watch {
            self.data_breakpoint(lin, 1, true);
        }
        let place = self.place(self.wrap(lin), Mode::Super, true)?;
        let p = match place {
            Place::Host(p) | Place::Watched(_, p) => p,
            Place::Device(gpa) => {
                let mut b = [0];
                self.device_read(gpa, &mut b);
                self.device_write(gpa, &[f(u64::from(b[0])) as u8]);
                return Ok(());
            }
        };
        // SAFETY: `place` gave host memory for the byte.
        let mut old = unsafe { W8::read(p) };
        // SAFETY: as above.
        while let Err(now) = unsafe { W8::compare_exchange(p, old, f(old) & 0xff) } {
            old = now;
        }
        if let Place::Watched(gpa, _) = place {
            self.watched_write(gpa, 1);
        }
        Ok(())
    }
    /// Loads in the given mode (a stack at a CPL that is only about to be entered, for instance).
    pub fn load_as<W: Width>(&mut self, lin: u64, mode: Mode, s: u8) -> Result<u64, Stop> {
        let mut b = [0; 8];
        self.canonical(lin, W::BYTES, s)?;
        self.load_bytes_as(lin, &mut b[..W::BYTES as usize], mode)?;
        Ok(u64::from_le_bytes(b))
    }
    /// Stores in the given mode.
    pub fn store_as<W: Width>(&mut self, lin: u64, v: u64, mode: Mode, s: u8) -> Result<(), Stop> {
        self.canonical(lin, W::BYTES, s)?;
        self.store_bytes_as(lin, &v.to_le_bytes()[..W::BYTES as usize], mode)
    }

    fn load_bytes_as(&mut self, lin: u64, buf: &mut [u8], mode: Mode) -> Result<(), Stop> {
        if self.watch {
            self.data_breakpoint(lin, buf.len() as u64, false);
        }
        let mut done = 0;
        while done < buf.len() {
            let at = self.wrap(lin.wrapping_add(done as u64));
            let n = ((PAGE_MASK + 1 - (at & PAGE_MASK)) as usize).min(buf.len() - done);
            match self.place(at, mode, false)? {
                Place::Host(p) | Place::Watched(_, p) => {
                    // SAFETY: `place` gave host memory for the byte at `at` and the rest of its page; `n` stays in it.
                    unsafe { copy_out(p, &mut buf[done..done + n]) };
                }
                Place::Device(gpa) => self.device_read(gpa, &mut buf[done..done + n]),
            }
            done += n;
        }
        Ok(())
    }

    fn store_bytes_as(&mut self, lin: u64, buf: &[u8], mode: Mode) -> Result<(), Stop> {
        let len = buf.len() as u64;
        if self.watch {
            self.data_breakpoint(lin, len, true);
        }
        if (lin & PAGE_MASK) + len > PAGE_MASK + 1 {
            // The last page first: nothing is written if any page faults.
            let mut at = lin;
            loop {
                self.place(self.wrap(at), mode, true)?;
                let next = (at & !PAGE_MASK).wrapping_add(PAGE_MASK + 1);
                if next.wrapping_sub(lin) >= len {
                    break;
                }
                at = next;
            }
        }
        let mut done = 0;
        while done < buf.len() {
            let at = self.wrap(lin.wrapping_add(done as u64));
            let n = ((PAGE_MASK + 1 - (at & PAGE_MASK)) as usize).min(buf.len() - done);
            match self.place(at, mode, true)? {
                Place::Host(p) => {
                    // SAFETY: as in `load_bytes_as`, for writes.
                    unsafe { copy_in(p, &buf[done..done + n]) };
                }
                Place::Watched(gpa, p) => {
                    // SAFETY: as above.
                    unsafe { copy_in(p, &buf[done..done + n]) };
                    self.watched_write(gpa, n as u64);
                }
                Place::Device(gpa) => self.device_write(gpa, &buf[done..done + n]),
            }
            done += n;
        }
        Ok(())
    }

    // ---- the slow path
    // -------------------------------------------------------------------------------------------------

    #[cold]
    #[inline(never)]
    fn load_slow(&mut self, lin: u64, len: u64, s: u8) -> Result<u64, Stop> {
        let mut b = [0; 8];
        self.accessible(lin, len, s)?;
        self.align_check(lin, len)?;
        self.load_bytes(lin, &mut b[..len as usize], s)?;
        Ok(u64::from_le_bytes(b))
    }

    #[cold]
    #[inline(never)]
    fn store_slow(&mut self, lin: u64, v: u64, len: u64, s: u8) -> Result<(), Stop> {
        self.accessible(lin, len, s)?;
        self.align_check(lin, len)?;
        self.store_bytes(lin, &v.to_le_bytes()[..len as usize], s)
    }

    /// #AC at CPL 3 with CR0.AM and EFLAGS.AC. While the check is on the TLB gives no fast accesses at CPL 3, so all come here.
    pub(crate) fn align_check(&mut self, lin: u64, len: u64) -> Result<(), Stop> {
        if lin & (len - 1) != 0 && self.alignment_checked() {
            return Err(self.raise_ec(vector::AC, 0));
        }
        Ok(())
    }

    /// Whether #AC is enabled now (SDM volume 3A, 6.15, interrupt 17).
    pub fn alignment_checked(&self) -> bool {
        use crate::state::{cr0, fl};
        self.state.cpl == 3 && self.state.cr0 & cr0::AM != 0 && self.state.rflags & fl::AC != 0
    }

    /// #GP(0) or #SS(0) unless the operand lies in its segment and has canonical addresses. Limits of flat segments are not checked when
    /// addresses are computed: only an access across the end of the segment is beyond them, and that never hits the
    /// TLB.
    fn accessible(&mut self, lin: u64, len: u64, s: u8) -> Result<(), Stop> {
        let flat =
            self.mode_key & (ModeKey::FLAT | ModeKey::LONG) == ModeKey::FLAT && usize::from(s) < seg::FS;
        if flat && lin.wrapping_add(len.wrapping_sub(1)) > 0xffff_ffff {
            return Err(self.segment_fault(usize::from(s)));
        }
        self.canonical(lin, len, s)
    }

    /// #GP(0) or #SS(0) unless all of the bytes have canonical addresses (64-bit mode).
    fn canonical(&mut self, lin: u64, len: u64, s: u8) -> Result<(), Stop> {
        if !self.state.is_long() || len == 0 {
            return Ok(());
        }
        if !self.is_canonical(lin) || !self.is_canonical(lin.wrapping_add(len - 1)) {
            return Err(self.segment_fault(usize::from(s)));
        }
        Ok(())
    }

    /// Whether `lin` is canonical under the paging mode (48 bits, 57 with CR4.LA57).
    pub fn is_canonical(&self, lin: u64) -> bool {
        let shift = if self.state.cr4 & crate::state::cr4::LA57 != 0 { 7 } else { 16 };
        ((lin << shift) as i64 >> shift) as u64 == lin
    }

    /// Whether `lin` may be held by what has linear addresses for its value: the registers of descriptor tables, the
    /// bases of segments, MSRs, and the operands of INVLPG and its kin. They take as many bits as the processor has,
    /// whatever CR4.LA57 says; an access there is checked as ever (5-Level Paging and 5-Level EPT white paper, 2.2;
    /// SDM volume 1, 3.3.7.1).
    pub(crate) fn is_canonical_base(&self, lin: u64) -> bool {
        let shift = 64 - u32::from(self.model.linear_bits().max(48));
        ((lin << shift) as i64 >> shift) as u64 == lin
    }

    fn wrap(&self, lin: u64) -> u64 {
        if self.state.is_long() { lin } else { lin & 0xffff_ffff }
    }

    /// Translates for a data access, filling the TLB; a page fault sets CR2.
    fn place(&mut self, lin: u64, mode: Mode, write: bool) -> Result<Place, Stop> {
        let e = self.tlb.entry_of(mode, lin);
        let page = lin & !PAGE_MASK;
        if (if write { e.write } else { e.read }) == page {
            return Ok(Place::Host(lin.wrapping_add(e.addend) as *mut u8));
        }
        let t = self.translate(lin, Access { write, fetch: false, mode })?;
        let page = if self.board_page(t.gpa) { Page::Other } else { self.mem.page_at(t.gpa, write) };
        let (host, writable) = match page {
            Page::Plain(host, writable) => (host, writable),
            Page::Device(host, written) => {
                if write {
                    self.keep_page(host);
                }
                self.fill_data(lin, mode, &t, host, written && (write || !self.notes_stores()));
                return Ok(Place::Host(host.wrapping_add((t.gpa & PAGE_MASK) as usize)));
            }
            Page::Other => {
                self.refuse_device()?;
                return Ok(Place::Device(t.gpa));
            }
        };
        let p = host.wrapping_add((t.gpa & PAGE_MASK) as usize);
        let watched = self.is_watched(t.gpa, writable && t.writable);
        if write && !writable {
            self.refuse_device()?;
            return Ok(Place::Device(t.gpa)); // ROM: the write vanishes
        }
        if write {
            self.mem.mark_dirty(t.gpa);
            self.keep_page(host);
        }
        self.fill(lin, mode, &t, host, writable && !watched && (write || !self.notes_stores()));
        Ok(if write && watched { Place::Watched(t.gpa, p) } else { Place::Host(p) })
    }

    /// Whether stores to the page must come to be known. If they may be fast otherwise, the vCPU is put on record as
    /// one who makes such, first: either it sees that the page is held, or whoever comes to hold it sees the record.
    fn is_watched(&self, gpa: u64, writable: bool) -> bool {
        if writable && !self.sole {
            self.mem.note_writer(gpa, self.writer_bit);
        }
        self.mem.is_code(gpa) || self.mem.dirty_log()
    }

    /// Devices are not accessed while what is done may have to be taken back.
    fn refuse_device(&mut self) -> Result<(), Stop> {
        if !self.is_tentative() {
            return Ok(());
        }
        self.device_met = true;
        Err(Stop::Again)
    }

    /// Whether the first store to a page is of interest, so that a load does not make ready for it.
    fn notes_stores(&self) -> bool {
        self.is_tentative() || self.marks_stores
    }

    fn fill(&mut self, lin: u64, mode: Mode, t: &Translation, host: *mut u8, fast_write: bool) {
        self.fill_tags(lin, mode, t, host, fast_write, t.executable);
    }

    /// As `fill`, for memory of devices: code there is fetched from the device each time that it is decoded.
    #[cold]
    fn fill_data(&mut self, lin: u64, mode: Mode, t: &Translation, host: *mut u8, fast_write: bool) {
        self.fill_tags(lin, mode, t, host, fast_write, false);
    }

    #[inline(always)]
    fn fill_tags(
        &mut self,
        lin: u64,
        mode: Mode,
        t: &Translation,
        host: *mut u8,
        fast_write: bool,
        executable: bool,
    ) {
        let page = lin & !PAGE_MASK;
        let tag = |on: bool| if on { page } else { NEVER };
        // Page 0 follows the last page in 64-bit mode only.
        let ambiguous = shares_entry_with_previous(page) && (page != 0 || self.state.is_long());
        let slow = self.alignment_checked() && mode == Mode::User || self.watches_page(page) || ambiguous;
        let entry = TlbEntry {
            read: tag(t.readable && !slow),
            write: tag(t.writable && fast_write && !slow),
            exec: tag(executable),
            addend: (host as u64).wrapping_sub(page),
        };
        self.tlb.insert(mode, lin, entry, t.global, t.page_size);
    }

    pub(crate) fn plain(&self, gpa: u64) -> Option<(*mut u8, bool)> {
        if self.board_page(gpa) {
            return None;
        }
        self.mem.page_is_plain(gpa)
    }

    /// Whether the local APIC answers at this physical address.
    fn board_page(&self, gpa: u64) -> bool {
        gpa & !PAGE_MASK == self.apic_page
    }

    /// Walks the page tables; on a fault sets CR2 and raises #PF.
    pub fn translate(&mut self, lin: u64, access: Access) -> Result<Translation, Stop> {
        match walk(&self.mem, &self.paging, lin, access) {
            Ok(t) => Ok(t),
            Err(f) => {
                self.state.cr2 = lin;
                Err(self.raise_ec(vector::PF, f.0))
            }
        }
    }

    /// The physical address and host page of an instruction fetch at `lin`.
    pub(crate) fn fetch_page(&mut self, lin: u64) -> Result<(u64, Option<*mut u8>), Stop> {
        let mode = self.tlb.mode();
        if self.state.is_long() && !self.is_canonical(lin) {
            return Err(self.gp(0));
        }
        let t = self.translate(lin, Access { write: false, fetch: true, mode })?;
        let plain = self.plain(t.gpa);
        if let Some((host, writable)) = plain {
            let watched = self.is_watched(t.gpa, writable && t.writable);
            self.fill(lin, mode, &t, host, writable && !watched && !self.notes_stores());
        } else {
            self.tlb.note_exec(lin, t.page_size);
        }
        Ok((t.gpa, plain.map(|p| p.0)))
    }

    fn device_read(&mut self, gpa: u64, buf: &mut [u8]) {
        let apic = self.board_page(gpa);
        let mut done = 0;
        while done < buf.len() {
            let at = gpa + done as u64;
            let n = piece(at, buf.len() - done);
            let v = if apic {
                self.board.apic_read((at & PAGE_MASK) as u32, n as u8)
            } else {
                self.mem.phys_read(at, n as u8)
            };
            buf[done..done + n].copy_from_slice(&v.to_le_bytes()[..n]);
            done += n;
        }
    }

    fn device_write(&mut self, gpa: u64, buf: &[u8]) {
        let apic = self.board_page(gpa);
        let generation = self.mem.map_generation();
        let mut done = 0;
        while done < buf.len() {
            let at = gpa + done as u64;
            let n = piece(at, buf.len() - done);
            let mut b = [0; 8];
            b[..n].copy_from_slice(&buf[done..done + n]);
            let v = u64::from_le_bytes(b);
            if apic {
                self.board.apic_write((at & PAGE_MASK) as u32, n as u8, v);
            } else {
                self.mem.phys_write(at, n as u8, v);
            }
            done += n;
        }
        if self.mem.map_generation() != generation {
            // A device that shows something else now: the next access is to that, and not after this block.
            self.tlb.flush_all();
        }
    }

    /// Bytes on a page that holds decoded code (or is dirty-logged) were written by this vCPU.
    fn watched_write(&mut self, gpa: u64, len: u64) {
        // The bytes first, then the look: as in `PhysMemory::write`.
        fence(Ordering::SeqCst);
        if self.mem.is_code(gpa) {
            self.invalidate_code(gpa, len);
            // Others hold code there, too.
            if self.mem.is_code(gpa) {
                self.mem.notify_code_written(gpa, len, self.watcher);
            }
        }
    }
}

/// The largest naturally aligned power of two, at most 8, that starts at `at` and fits `left`.
fn piece(at: u64, left: usize) -> usize {
    let align = if at == 0 { 8 } else { 1usize << at.trailing_zeros().min(3) };
    let mut n = align.min(8);
    while n > left {
        n /= 2;
    }
    n
}
