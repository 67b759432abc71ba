//! The way of a bus master into guest memory.
//!
//! ```text
//!   device --Dma::read, write--> gate --> RAM and ROM, by PhysMemory (dirty pages, code watchers)
//!          --Dma::open---------> gate --> Session: vm_memory::GuestMemory, for virtio-queue and its kin
//! ```
//!
//! A PCI function's gate is the bus master bit of its command register: the function that it belongs to opens and
//! closes it (`pci::Function`). Closing waits until whoever is copying has done so, so that after a reset no byte
//! of an old transfer arrives. Nobody may therefore wait for the guest, the host's network or another device with a
//! session open.
//!
//! Transfers reach RAM alone, and ROM for reading: one that reaches beyond is refused whole. Devices are not reached
//! by each other.
use mynah_mmu::{DmaTurn, PhysMemory};
use parking_lot::{RwLock, RwLockReadGuard};
use std::fmt;
use std::iter::FusedIterator;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::guest_memory::{Error, GuestMemorySliceIterator, Result as VmResult};
use vm_memory::region::GuestRegionCollection;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryRegion, GuestMemoryRegionBytes, GuestUsize, Permissions,
    VolatileSlice,
};

/// Why a transfer does not take place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DmaError {
    /// The function may not master the bus.
    #[error("the device may not master the bus")]
    Disabled,
    /// A part of it is no memory: the address of the first such byte.
    #[error("there is no memory at {0:#x}")]
    NoMemory(u64),
}

/// What has been transferred, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DmaCounts {
    /// Bytes read from guest memory.
    pub read: u64,
    /// Bytes written to guest memory.
    pub written: u64,
    /// Transfers that were refused.
    pub refused: u64,
}

/// One bus master's way into guest memory. Clones are the same.
#[derive(Clone)]
pub struct Dma(Arc<Master>);

struct Master {
    memory: Arc<PhysMemory>,
    /// Read while bytes are copied, written to change it.
    open: RwLock<bool>,
    read: AtomicU64,
    written: AtomicU64,
    refused: AtomicU64,
}

impl Dma {
    /// For a device that may always reach memory.
    pub fn always(memory: Arc<PhysMemory>) -> Self {
        Self::new(memory, true)
    }

    /// For a function that may not until [`Dma::enable`] says so.
    pub fn gated(memory: Arc<PhysMemory>) -> Self {
        Self::new(memory, false)
    }

    fn new(memory: Arc<PhysMemory>, open: bool) -> Self {
        let count = AtomicU64::default;
        Self(Arc::new(Master {
            memory,
            open: RwLock::new(open),
            read: count(),
            written: count(),
            refused: count(),
        }))
    }

    /// Opens or closes the gate. When it is closed nothing of what was under way arrives any more.
    pub fn enable(&self, on: bool) {
        if *self.0.open.read_recursive() != on {
            *self.0.open.write() = on;
        }
    }

    /// Whether the gate is open.
    pub fn is_enabled(&self) -> bool {
        *self.0.open.read_recursive()
    }

    /// Guest memory for a while, in which the gate does not close.
    ///
    /// # Errors
    /// The gate is closed.
    pub fn open(&self) -> Result<Session<'_>, DmaError> {
        let turn = self.0.memory.dma();
        // Not the fair kind: a thread that has a session may ask for another one.
        let gate = self.0.open.read_recursive();
        if *gate {
            return Ok(Session { master: &self.0, _gate: gate, _turn: turn });
        }
        Err(self.refuse(DmaError::Disabled))
    }

    /// Reads guest memory.
    ///
    /// # Errors
    /// The gate is closed, or not all of it is memory; `bytes` is as it was.
    pub fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), DmaError> {
        self.copy(gpa, bytes.len(), &self.0.read, |memory| memory.read(gpa, bytes))
    }

    /// Writes guest memory. ROM ignores it.
    ///
    /// # Errors
    /// The gate is closed, or not all of it is memory; nothing was written.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), DmaError> {
        self.copy(gpa, bytes.len(), &self.0.written, |memory| memory.write(gpa, bytes))
    }

    /// A transfer of `len` bytes of memory that there are.
    fn copy(
        &self,
        gpa: u64,
        len: usize,
        count: &AtomicU64,
        copy: impl FnOnce(&PhysMemory),
    ) -> Result<(), DmaError> {
        let _open = self.open()?;
        let memory = &self.0.memory;
        all_there(gpa, len, |at| memory.memory_run(at)).map_err(|e| self.refuse(e))?;
        copy(memory);
        count.fetch_add(len as u64, Ordering::Relaxed);
        Ok(())
    }

    fn refuse(&self, why: DmaError) -> DmaError {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
        why
    }

    /// Bytes of RAM that there are to reach.
    pub fn ram_size(&self) -> u64 {
        self.0.memory.ram().size()
    }

    /// What has been transferred since the machine was built.
    pub fn counts(&self) -> DmaCounts {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        DmaCounts { read: get(&self.0.read), written: get(&self.0.written), refused: get(&self.0.refused) }
    }
}

/// Guest memory with the gate held open: what `vm-memory` calls a `GuestMemory`. Its slices are RAM.
pub struct Session<'m> {
    master: &'m Master,
    _gate: RwLockReadGuard<'m, bool>,
    _turn: DmaTurn<'m>,
}

impl Session<'_> {
    /// See [`PhysMemory::discard`].
    pub fn discard(&self, gpa: u64, len: u64) -> u64 {
        self.master.memory.discard(gpa, len)
    }
}

/// Whether `len` bytes from `gpa` on are memory, of which `run` says how much there is from one address on.
fn all_there(gpa: u64, len: usize, run: impl Fn(u64) -> Option<u64>) -> Result<(), DmaError> {
    let (mut at, mut left) = (gpa, len as u64);
    while left > 0 {
        let n = run(at).ok_or(DmaError::NoMemory(at))?.min(left);
        left -= n;
        at = match at.checked_add(n) {
            Some(next) => next,
            None if left == 0 => break,
            None => return Err(DmaError::NoMemory(u64::MAX)),
        };
    }
    Ok(())
}

impl fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session")
    }
}

impl<'m> GuestMemory for Session<'m> {
    /// None: the address map changes as the guest runs.
    type PhysicalMemory = GuestRegionCollection<NoRegion>;
    type Bitmap = Marks<'m>;

    fn check_range(&self, addr: GuestAddress, count: usize, _: Permissions) -> bool {
        let memory = &self.master.memory;
        all_there(addr.0, count, |at| memory.ram_at(at).map(|(_, run)| run)).is_ok()
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> VmResult<impl GuestMemorySliceIterator<'a, Marks<'m>>> {
        if access.has_write() {
            self.master.written.fetch_add(count as u64, Ordering::Relaxed);
        } else {
            self.master.read.fetch_add(count as u64, Ordering::Relaxed);
        }
        Ok(Slices { master: self.master, at: addr.0, left: count as u64, _session: std::marker::PhantomData })
    }
}

/// Runs of RAM, one after the other.
struct Slices<'a, 'm> {
    master: &'m Master,
    at: u64,
    left: u64,
    _session: std::marker::PhantomData<&'a ()>,
}

impl<'a, 'm> Iterator for Slices<'a, 'm> {
    type Item = VmResult<VolatileSlice<'a, Marks<'m>>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let at = self.at;
        let Some((host, run)) = self.master.memory.ram_at(at) else {
            self.left = 0;
            self.master.refused.fetch_add(1, Ordering::Relaxed);
            return Some(Err(Error::InvalidGuestAddress(GuestAddress(at))));
        };
        let n = run.min(self.left);
        self.left -= n;
        self.at = at.wrapping_add(n);
        let marks = Marks { memory: &self.master.memory, at };
        // SAFETY: `ram_at` says that `run` bytes from there are RAM, which lives as long as the map does, and that
        // outlives the session. Guests and devices access it with no references to it, as they do while vCPUs run.
        Some(Ok(unsafe { VolatileSlice::with_bitmap(host, n as usize, marks, None) }))
    }
}

impl FusedIterator for Slices<'_, '_> {}

impl<'a, 'm> GuestMemorySliceIterator<'a, Marks<'m>> for Slices<'a, 'm> {}

/// What `vm-memory` tells of writes through slices: dirty pages, and code that was written over.
#[derive(Clone, Copy)]
pub struct Marks<'m> {
    memory: &'m PhysMemory,
    /// The guest's address of the slice.
    at: u64,
}

impl fmt::Debug for Marks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Marks({:#x})", self.at)
    }
}

impl<'m> WithBitmapSlice<'_> for Marks<'m> {
    type S = Marks<'m>;
}

impl BitmapSlice for Marks<'_> {}

impl<'m> Bitmap for Marks<'m> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.memory.written(self.at.wrapping_add(offset as u64), len as u64);
    }

    fn dirty_at(&self, _: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Marks<'m> {
        Marks { memory: self.memory, at: self.at.wrapping_add(offset as u64) }
    }
}

/// A region of memory that does not change, of which there is none.
pub enum NoRegion {}

impl GuestMemoryRegion for NoRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        match *self {}
    }
    fn start_addr(&self) -> GuestAddress {
        match *self {}
    }
    fn bitmap(&self) {
        match *self {}
    }
}

impl GuestMemoryRegionBytes for NoRegion {}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use mynah_mmu::{CodeWatcher, Gpa, GuestRam};
    use parking_lot::Mutex;
    use std::sync::atomic::AtomicBool;
    use virtio_queue::{Queue, QueueT};
    use vm_memory::Bytes;

    const RAM: u64 = 2 << 20;

    fn memory() -> Arc<PhysMemory> {
        PhysMemory::new(GuestRam::new(RAM).unwrap(), RAM)
    }

    #[derive(Default)]
    struct Watcher(Mutex<Vec<(Gpa, u64)>>);
    impl CodeWatcher for Watcher {
        fn code_written(&self, gpa: Gpa, len: u64) {
            self.0.lock().push((gpa, len));
        }
    }

    #[test]
    fn a_closed_gate_lets_nothing_through_and_counts_what_it_refused() {
        let dma = Dma::gated(memory());
        let mut bytes = [7; 4];
        assert_eq!(dma.read(0, &mut bytes), Err(DmaError::Disabled));
        assert_eq!((dma.write(0, &[1]), bytes), (Err(DmaError::Disabled), [7; 4]));
        assert!(dma.open().is_err());
        dma.enable(true);
        dma.write(0x1000, &[1, 2, 3, 4]).unwrap();
        dma.read(0x1001, &mut bytes[..3]).unwrap();
        assert_eq!((bytes, dma.counts()), ([2, 3, 4, 7], DmaCounts { read: 3, written: 4, refused: 3 }));
        dma.enable(false);
        assert_eq!(dma.write(0, &[1]), Err(DmaError::Disabled));
    }

    #[test]
    fn a_transfer_that_leaves_memory_is_refused_whole() {
        let memory = memory();
        let dma = Dma::always(memory.clone());
        memory.map_rom(0xf_0000, &[0xc3; 0x1000]);
        struct Nothing;
        impl mynah_mmu::Mmio for Nothing {
            fn read(&self, _: u64, _: u8) -> u64 {
                panic!("a device was reached")
            }
            fn write(&self, _: u64, _: u8, _: u64) {
                panic!("a device was reached")
            }
        }
        memory.map_mmio(0x8_0000, 0x1000, Arc::new(Nothing));
        let mut bytes = [7; 8];
        for (at, bad) in [
            (RAM - 4, RAM),
            (0x7_fffc, 0x8_0000),
            (0x8_0800, 0x8_0800),
            (u64::MAX - 3, u64::MAX - 3),
            (1 << 40, 1 << 40),
        ] {
            assert_eq!(dma.read(at, &mut bytes), Err(DmaError::NoMemory(bad)));
            assert_eq!(dma.write(at, &[1; 8]), Err(DmaError::NoMemory(bad)));
        }
        assert_eq!(bytes, [7; 8]);
        let mut last = [7; 4];
        memory.read(RAM - 4, &mut last);
        assert_eq!(last, [0; 4]);
        dma.read(0xe_fffc, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 0, 0, 0, 0xc3, 0xc3, 0xc3, 0xc3]);
        let session = dma.open().unwrap();
        assert!(session.write_slice(&[1; 8], GuestAddress(0xe_fffc)).is_err(), "slices are RAM");
        assert!(session.check_range(GuestAddress(0), 0x8_0000, Permissions::Write));
        assert!(!session.check_range(GuestAddress(0), 0x8_0001, Permissions::Write));
    }

    #[test]
    fn what_is_written_through_slices_is_marked_and_told_to_who_has_code_there() {
        let memory = memory();
        let watcher = Arc::new(Watcher::default());
        memory.watch_code(watcher.clone());
        memory.hold_code(0x3000);
        let dma = Dma::always(memory.clone());
        let session = dma.open().unwrap();
        session.write_slice(&[0x90; 0x1800], GuestAddress(0x2800)).unwrap();
        assert_eq!(*watcher.0.lock(), [(0x3000, 0x1000)]);
        session.write_obj(0x1234_u16, GuestAddress(0x3ffe)).unwrap();
        assert_eq!(watcher.0.lock()[1..], [(0x3ffe, 2)]);
        dma.write(0x3001, &[1]).unwrap();
        assert_eq!(watcher.0.lock()[2..], [(0x3001, 1)]);
    }

    #[test]
    fn who_closes_the_gate_waits_for_who_is_copying() {
        let dma = Dma::always(memory());
        let closed = Arc::new(AtomicBool::new(false));
        let session = dma.open().unwrap();
        let closer = {
            let (dma, closed) = (dma.clone(), closed.clone());
            std::thread::spawn(move || {
                dma.enable(false);
                closed.store(true, Ordering::SeqCst);
            })
        };
        // While it waits, the one that has a session may open another.
        for _ in 0..1000 {
            dma.write(0x1000, &[1]).unwrap();
            assert!(!closed.load(Ordering::SeqCst));
            std::thread::yield_now();
        }
        session.write_slice(&[2], GuestAddress(0x1000)).unwrap();
        drop(session);
        closer.join().unwrap();
        assert_eq!(dma.write(0x1000, &[3]), Err(DmaError::Disabled));
    }

    #[test]
    fn a_virtqueue_works_on_a_session() {
        let dma = Dma::always(memory());
        let session = dma.open().unwrap();
        let (table, avail, used) = (0x1000, 0x2000, 0x3000);
        let put16 = |at: u64, v: u16| session.write_obj(v, GuestAddress(at)).unwrap();
        // Descriptor 0: 16 bytes at 4000h, to be written by the device.
        session.write_obj(0x4000_u64, GuestAddress(table)).unwrap();
        session.write_obj(16_u32, GuestAddress(table + 8)).unwrap();
        put16(table + 12, 2);
        put16(avail + 4, 0);
        put16(avail + 2, 1);
        let mut queue = Queue::new(16).unwrap();
        queue.set_size(16);
        queue.set_desc_table_address(Some(table as u32), None);
        queue.set_avail_ring_address(Some(avail as u32), None);
        queue.set_used_ring_address(Some(used as u32), None);
        queue.set_ready(true);
        assert!(queue.is_valid(&session));
        let chain = queue.pop_descriptor_chain(&session).unwrap();
        let head = chain.head_index();
        let buffer = chain.writable().next().unwrap();
        session.write_slice(b"a virtio device", buffer.addr()).unwrap();
        queue.add_used(&session, head, 15).unwrap();
        assert_eq!(session.read_obj::<u16>(GuestAddress(used + 2)).unwrap(), 1);
        assert_eq!(session.read_obj::<u32>(GuestAddress(used + 8)).unwrap(), 15);
        let mut text = [0; 15];
        dma.read(0x4000, &mut text).unwrap();
        assert_eq!(&text, b"a virtio device");
    }
}
