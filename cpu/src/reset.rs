//! A vCPU is put together, takes its seat among the others, and comes to its first instruction: RESET, INIT, and the
//! start-up IPI.
use crate::block::BlockCache;
use crate::board::{Board, Events};
use crate::cpu::Cpu;
use crate::enter::GATES;
use crate::event::Exception;
use crate::mode::SegView;
use crate::model::CpuModel;
use crate::sse::mxcsr::DEFAULT as DEFAULT_MXCSR;
use crate::state::{Activity, State, cr0, gpr, seg};
use crate::tier::{Returns, TierMemory};
use crate::world::{Mail, MemoryChanges, World};
use crate::x87::unit::settle;
use mynah_mmu::{Paging, PhysMemory, Tlb};
use parking_lot::Mutex;
use std::sync::Arc;

impl Cpu {
    /// From now on nothing is computed by the host's own floating-point and vector instructions, but by the portable
    /// code that hosts other than x86-64 have. For tests of that code; compiled code does not heed it.
    pub fn use_portable_code(&mut self) {
        self.portable = true;
        self.quick_mxcsr = !0;
    }

    /// A vCPU in its reset state.
    pub fn new(
        index: u32,
        mem: Arc<PhysMemory>,
        board: Arc<dyn Board>,
        events: Arc<Events>,
        model: Arc<CpuModel>,
    ) -> Box<Self> {
        let inbox: Arc<Mutex<MemoryChanges>> = Arc::default();
        let world = World::new([(events.clone(), inbox.clone())]);
        let blocks = BlockCache::new(mem.clone(), &GATES);
        let mut cpu = Box::new(Self {
            state: State::default(),
            tlb: Tlb::new(),
            view: [SegView::default(); 8],
            event_mask: !0,
            mode_key: 0,
            sse_trap: 0,
            float_live: 0,
            avx_trap: 0,
            portable: false,
            quick_mxcsr: DEFAULT_MXCSR,
            next_ip: 0,
            fault: Exception::default(),
            events,
            mem,
            board,
            model,
            paging: Paging::default(),
            a20_mask: !0,
            apic_page: Cpu::NO_APIC_PAGE,
            debug_hits: 0,
            untraced: false,
            icount: 0,
            index,
            alignment_traced: false,
            inbox,
            world,
            seat: 0,
            writer_bit: 1,
            watcher: None,
            pauses: 0,
            paused_at: 0,
            single: false,
            watch: false,
            from_relative: 0,
            trace: None,
            unchained: false,
            tier: None,
            hot_after: u32::MAX,
            recording: None,
            known_after: u32::MAX,
            interpret_next: false,
            left: [0; 8],
            in_code: 0,
            sole: true,
            faulted: false,
            time_put_off: false,
            from: (std::ptr::null(), 0),
            x87_trap: 0,
            ferr: false,
            code_jumps: std::ptr::null(),
            code_places: std::ptr::null(),
            tier_memory: TierMemory([0; 1024]),
            returns: Returns::NONE,
            check: None,
            kept: None,
            marks_stores: false,
            faults: 0,
            device_met: false,
            blocks,
        });
        cpu.code_jumps = cpu.blocks.code_jumps.as_ptr();
        cpu.code_places = cpu.blocks.code_places.as_ptr();
        cpu.reset();
        cpu
    }

    /// Takes its seat among the vCPUs of the machine, and is told from now on of what others (devices, too) write to
    /// pages that it holds code of, and of changes of the physical map. Its events must be those of the seat.
    pub fn join(&mut self, world: &Arc<World>, seat: usize) {
        let Some(inbox) = world.inbox(seat) else { return };
        self.inbox = inbox;
        self.world = world.clone();
        self.seat = seat;
        self.sole = world.len() == 1;
        self.writer_bit = World::writer_bit(seat);
        self.watcher = Some(self.mem.watch_code(Arc::new(Mail { world: world.clone(), seat })));
        // What the TLB was filled with so far is on nobody's record.
        self.tlb.flush_all();
    }

    /// RESET: the state of SDM volume 3A, table 10-1; RDX holds the processor signature. All but the first processor
    /// wait for a start-up IPI.
    pub fn reset(&mut self) {
        // What the guest has not added itself stays.
        let msr = &self.state.msr;
        let offset = msr.tsc_offset.wrapping_sub(msr.tsc_adjust);
        self.state = State::default();
        self.set_tsc_offset(offset);
        if self.index != 0 {
            self.state.activity = Activity::WaitSipi;
        }
        self.state.gpr[gpr::RDX] = u64::from(self.model.signature());
        settle(self);
        self.sync_all();
    }

    /// INIT: as RESET, but the FPU, MSRs, caches and CR0's cache bits stay (SDM volume 3A, table 10-1); then waits for
    /// a start-up IPI unless this is the bootstrap processor.
    pub(crate) fn init(&mut self) {
        let old = self.state.clone();
        // FERR# stands with the exception behind it.
        let ferr = std::mem::take(&mut self.ferr);
        self.reset();
        self.ferr = ferr;
        let s = &mut self.state;
        s.msr = old.msr;
        s.msr.efer = 0;
        self.board.tsc_moved(s.msr.tsc_offset);
        s.fpu = old.fpu;
        s.xmm = old.xmm;
        s.mxcsr = old.mxcsr;
        s.xcr0 = old.xcr0;
        s.cr0 |= old.cr0 & (cr0::CD | cr0::NW);
        s.activity = if self.index == 0 { Activity::Running } else { Activity::WaitSipi };
        self.sync_all();
    }

    /// A start-up IPI: goes on in real mode at that page.
    pub(crate) fn sipi(&mut self, page: u8) {
        self.state.activity = Activity::Running;
        let cs = &mut self.state.seg[seg::CS];
        cs.sel = u16::from(page) << 8;
        cs.base = u64::from(page) << 12;
        self.state.gpr[gpr::RIP] = 0;
        self.sync_all();
    }
}
