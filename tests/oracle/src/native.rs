//! The host's side: a child process whose address space has the cases' pages at their addresses and that runs nothing
//! but cases.
//!
//! The child lives in a signal handler. Every case ends with a signal (of INT3, of the single-step trap, or of a
//! fault); the handler reads the state from the signal frame, writes the next case's state into the frame and returns,
//! so that the kernel's own `sigreturn` loads all registers, the x87 and vector state, CS and SS included. That is one
//! signal per case and no `ptrace`. Cases come from and outcomes go to memory shared with the parent; two futex words
//! hand batches over.
//!
//! The child gives up FS (its thread-local storage) for a segment of the layout, so nothing that runs in the handler
//! may use libc functions that know `errno`. A seccomp filter refuses all system calls but the few that the handler
//! needs.

use crate::guest::Guest;
use crate::layout::*;
use std::ptr::{addr_of, addr_of_mut, null_mut};
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// What parent and child share.
#[repr(C)]
struct Area {
    /// The batch to run.
    go: AtomicU32,
    /// The batch that is done.
    done: AtomicU32,
    /// The case that runs.
    current: AtomicU32,
    /// Number of cases in the batch.
    count: AtomicU32,
    /// 1: the LDT could be made. 2: RDFSBASE works. 4: the kernel has AVX enabled.
    abilities: AtomicU32,
    /// Set-up has failed: which step.
    failed: AtomicU32,
    /// Aliases of the pages of code and data, inherited from the parent.
    code: *mut u8,
    data: *mut u8,
    background: [u8; DATA_LEN],
    cases: [Case; BATCH],
    outcomes: [Outcome; BATCH],
}

const NONE: u32 = u32::MAX;
const HAS_LDT: u32 = 1;
const HAS_FSGSBASE: u32 = 2;
const HAS_AVX: u32 = 4;
/// Where component 2 stands in an XSAVE area of the standard format.
const YMM_AT: usize = 576;

static AREA: AtomicPtr<Area> = AtomicPtr::new(null_mut());

/// A child that runs cases, and the memory shared with it.
pub struct Native {
    area: *mut Area,
    code_fd: i32,
    data_fd: i32,
    pid: i32,
    five_levels: bool,
    protection_keys: bool,
}

/// The child was killed while it ran a case.
#[derive(Clone, Copy, Debug)]
pub struct Died {
    /// Which case of the batch.
    pub index: usize,
    /// What `waitpid` says of the child ([`Died::ENDLESS`]: it came to no end, and was killed).
    pub status: i32,
}

impl Died {
    /// The status of a child that did not come to the case's end in ten seconds.
    pub const ENDLESS: i32 = -1;
}

// SAFETY: the shared area and the descriptors belong to this value alone.
unsafe impl Send for Native {}

impl Native {
    /// Starts the child.
    pub fn new() -> std::io::Result<Self> {
        let shared = |fd: i32, len: usize| {
            let flags = libc::MAP_SHARED | if fd < 0 { libc::MAP_ANONYMOUS } else { 0 };
            // SAFETY: a new mapping at an address of the kernel's choice.
            let p = unsafe { libc::mmap(null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
            if p == libc::MAP_FAILED { Err(std::io::Error::last_os_error()) } else { Ok(p) }
        };
        let memfd = |name: &std::ffi::CStr, len: usize| {
            // SAFETY: plain system calls on a descriptor that is ours.
            let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
            // SAFETY: as above.
            if fd < 0 || unsafe { libc::ftruncate(fd, len as libc::off_t) } != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(fd)
        };
        let area = shared(-1, size_of::<Area>())?.cast::<Area>();
        let code_fd = memfd(c"oracle-code", CODE_PAGES * 4096)?;
        let data_fd = memfd(c"oracle-data", DATA_LEN)?;
        // SAFETY: `area` is fresh zeroed memory of the right size; the child does not exist yet.
        unsafe {
            (*area).code = shared(code_fd, CODE_PAGES * 4096)?.cast();
            (*area).data = shared(data_fd, DATA_LEN)?.cast();
        }
        let mut n = Self { area, code_fd, data_fd, pid: 0, five_levels: false, protection_keys: false };
        n.spawn()?;
        // MOV EAX, [RAX]: the least address beyond 47 bits raises #PF, and not #GP.
        n.five_levels = n.vector_of(&[0x8b, 0x00], 0x8000_0000_0000)? == 14;
        // RDPKRU with ECX = 0 does not raise #UD.
        n.protection_keys = n.vector_of(&[0x0f, 0x01, 0xee], 0)? == 3;
        Ok(n)
    }

    /// The exception by which this instruction ends with such a RAX; 3 if it raises none.
    fn vector_of(&mut self, instruction: &[u8], rax: u64) -> std::io::Result<u32> {
        let mut regs = Regs { sel: [sel::DATA, sel::CODE64, sel::DATA, sel::DATA, 0, 0], ..Regs::default() };
        regs.rip = CODE + 16;
        regs.gpr[0] = rax;
        let mut code = [0; 15];
        code[..instruction.len()].copy_from_slice(instruction);
        let patch = [Patch::NONE; PATCHES];
        let code_len = instruction.len() as u8;
        let case = Case { regs, code, code_len, end: End::Breakpoint, patches: 0, patch };
        let mut vector = 0;
        self.run(&vec![0; DATA_LEN], &[case], |_, o| vector = o.map_or(0, |o| o.vector))?;
        Ok(vector)
    }

    /// Has a guest be in the modes that the host's kernel has chosen and that a case tells of: five levels of paging,
    /// protection keys.
    pub fn set_modes(&self, guest: &mut Guest) {
        if self.five_levels {
            guest.use_five_levels();
        }
        if self.protection_keys {
            guest.use_protection_keys();
        }
    }

    fn spawn(&mut self) -> std::io::Result<()> {
        // SAFETY: the area is mapped as long as `self` lives; its head is made of atomics, and no child uses it now.
        // The child calls only what may be called after a fork.
        unsafe {
            let a = self.area;
            (*a).go.store(0, Ordering::SeqCst);
            (*a).done.store(NONE, Ordering::SeqCst);
            (*a).current.store(NONE, Ordering::SeqCst);
            (*a).failed.store(0, Ordering::SeqCst);
            self.pid = libc::fork();
            if self.pid == 0 {
                child(a, self.code_fd, self.data_fd);
            }
            if self.pid < 0 {
                return Err(std::io::Error::last_os_error());
            }
            if self.wait(0).is_err() {
                let step = (*a).failed.load(Ordering::SeqCst);
                return Err(std::io::Error::other(format!(
                    "the oracle's child could not be set up (step {step})"
                )));
            }
        }
        Ok(())
    }

    /// Whether segments of an LDT can be used.
    pub fn has_ldt(&self) -> bool {
        // SAFETY: mapped as long as `self` lives; atomics.
        unsafe { (*self.area).abilities.load(Ordering::SeqCst) & HAS_LDT != 0 }
    }

    /// Whether the kernel lets programs use RDFSBASE and its like.
    pub fn has_fsgsbase(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.area).abilities.load(Ordering::SeqCst) & HAS_FSGSBASE != 0 }
    }

    /// Replaces all code, for cases that have none of their own.
    pub fn set_code(&mut self, code: &[u8]) {
        assert_eq!(code.len(), CODE_PAGES * 4096, "all pages");
        // SAFETY: the alias is mapped as long as `self` lives; between batches the child waits and touches nothing.
        unsafe { (*self.area).code.copy_from_nonoverlapping(code.as_ptr(), code.len()) };
    }

    /// Runs `cases` over `background`; calls `done` with the number and outcome of each. The child is started again if
    /// a case kills it.
    pub fn run(
        &mut self,
        background: &[u8],
        cases: &[Case],
        mut done: impl FnMut(usize, Result<&Outcome, Died>),
    ) -> std::io::Result<()> {
        assert!(cases.len() <= BATCH && background.len() == DATA_LEN, "a batch of the layout's size");
        let a = self.area;
        // SAFETY: the child waits for `go`: the area is the parent's until then, and again after `done`.
        unsafe {
            addr_of_mut!((*a).background)
                .cast::<u8>()
                .copy_from_nonoverlapping(background.as_ptr(), DATA_LEN);
            (*a).data.copy_from_nonoverlapping(background.as_ptr(), DATA_LEN);
            addr_of_mut!((*a).cases).cast::<Case>().copy_from_nonoverlapping(cases.as_ptr(), cases.len());
            (*a).count.store(cases.len() as u32, Ordering::SeqCst);
        }
        let mut first = 0;
        while first < cases.len() {
            // SAFETY: as above.
            let turn = unsafe {
                (*a).current.store(first as u32, Ordering::SeqCst);
                let turn = (*a).go.load(Ordering::SeqCst).wrapping_add(1) & 0x7fff_ffff;
                (*a).go.store(turn, Ordering::SeqCst);
                futex(addr_of!((*a).go), libc::FUTEX_WAKE, 1, 0);
                turn
            };
            let result = self.wait(turn);
            let last = match result {
                Ok(()) => cases.len(),
                Err(d) => d.index.min(cases.len() - 1),
            };
            for i in first..last {
                // SAFETY: outcomes before `last` are complete.
                done(i, Ok(unsafe { &(*a).outcomes[i] }));
            }
            first = last;
            if let Err(d) = result {
                done(last, Err(d));
                first += 1;
                self.spawn()?;
                // SAFETY: the new child waits.
                unsafe { (*a).data.copy_from_nonoverlapping(background.as_ptr(), DATA_LEN) };
            }
        }
        Ok(())
    }

    /// Waits until the child has done batch `turn`.
    fn wait(&mut self, turn: u32) -> Result<(), Died> {
        let a = self.area;
        let mut before = NONE;
        let mut idle = 0;
        loop {
            // SAFETY: atomics in the shared area.
            let (done, current) =
                unsafe { ((*a).done.load(Ordering::SeqCst), (*a).current.load(Ordering::SeqCst)) };
            if done == turn {
                return Ok(());
            }
            let mut status = 0;
            // SAFETY: our own child; the futex word is in the shared area.
            unsafe {
                if libc::waitpid(self.pid, &mut status, libc::WNOHANG) == self.pid {
                    self.pid = 0;
                    return Err(Died { index: current as usize, status });
                }
                if (*a).done.load(Ordering::SeqCst) != turn {
                    futex(addr_of!((*a).done), libc::FUTEX_WAIT, done, 200_000_000);
                }
            }
            idle = if current == before { idle + 1 } else { 0 };
            before = current;
            if idle > 50 {
                // SAFETY: our own child, which has not been waited for.
                unsafe {
                    libc::kill(self.pid, libc::SIGKILL);
                    libc::waitpid(self.pid, &mut status, 0);
                }
                self.pid = 0;
                return Err(Died { index: current as usize, status: Died::ENDLESS });
            }
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: our own child and mappings; nobody uses them any more.
        unsafe {
            if self.pid > 0 {
                libc::kill(self.pid, libc::SIGKILL);
                libc::waitpid(self.pid, null_mut(), 0);
            }
            libc::munmap((*self.area).code.cast(), CODE_PAGES * 4096);
            libc::munmap((*self.area).data.cast(), DATA_LEN);
            libc::munmap(self.area.cast(), size_of::<Area>());
            libc::close(self.code_fd);
            libc::close(self.data_fd);
        }
    }
}

/// The futex system call without libc's `errno`; `nanoseconds` is a time limit for waiting (0: none).
///
/// # Safety
/// `word` points to a live atomic.
unsafe fn futex(word: *const AtomicU32, op: i32, value: u32, nanoseconds: i64) {
    let limit = libc::timespec { tv_sec: 0, tv_nsec: nanoseconds };
    let limit: *const libc::timespec = if nanoseconds == 0 { std::ptr::null() } else { &limit };
    // SAFETY: the arguments are as futex(2) wants them; the call clobbers RCX and R11.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") libc::SYS_futex => _,
            in("rdi") word, in("rsi") op, in("edx") value, in("r10") limit, in("r8") 0, in("r9") 0,
            lateout("rcx") _, lateout("r11") _, options(nostack),
        );
    }
}

/// The system call `modify_ldt` takes this.
#[repr(C)]
struct UserDesc {
    entry: u32,
    base: u32,
    limit: u32,
    flags: u32,
}

fn user_desc(entry: u32, s: &UserSegment) -> UserDesc {
    let flags = u32::from(s.big)
        | u32::from(s.contents) << 1
        | u32::from(s.restricted) << 3
        | u32::from(s.pages) << 4
        | u32::from(!s.present) << 5;
    UserDesc { entry, base: s.base, limit: s.limit, flags }
}

/// Sets the child up and lets it run cases for ever.
///
/// # Safety
/// Called in a fresh child only, with the parent's area and descriptors.
unsafe fn child(a: *mut Area, code_fd: i32, data_fd: i32) -> ! {
    // SAFETY: a process of its own with one thread; the fixed addresses are free in it (checked by
    // MAP_FIXED_NOREPLACE).
    unsafe {
        let fail = |step: u32| -> ! {
            (*a).failed.store(step, Ordering::SeqCst);
            libc::_exit(1)
        };
        AREA.store(a, Ordering::SeqCst);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &none);
        let map = |addr: u64, len: u64, prot: i32, fd: i32, offset: usize, step: u32| {
            let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
            let want = addr as *mut libc::c_void;
            let p = libc::mmap(want, len as usize, prot, flags, fd, offset as libc::off_t);
            if p != want {
                fail(step);
            }
        };
        let (r, w, x) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
        let half = CODE_PAGES / 2;
        map(code_page(0), half as u64 * 4096, r | x, code_fd, 0, 1);
        map(code_page(half), half as u64 * 4096, r | x, code_fd, half * 4096, 2);
        map(LOW, LOW_LEN, r | w, data_fd, 0, 3);
        map(HIGH, HIGH_LEN, r | w, data_fd, LOW_LEN as usize, 4);
        map(READ_ONLY, 0x1000, r, data_fd, WRITABLE_LEN, 5);
        // Pages are touched once, so that no case meets the kernel's first-touch handling.
        for i in 0..CODE_PAGES {
            (code_page(i) as *const u8).read_volatile();
        }
        for o in (0..DATA_LEN).step_by(4096) {
            let p = data_address(o) as *mut u8;
            let v = p.read_volatile();
            if o < WRITABLE_LEN {
                p.write_volatile(v);
            }
        }
        let mut abilities = HAS_LDT;
        for (i, s) in LDT.iter().enumerate() {
            let d = user_desc(i as u32, s);
            if libc::syscall(libc::SYS_modify_ldt, 0x11, addr_of!(d), size_of::<UserDesc>()) != 0 {
                abilities &= !HAS_LDT;
            }
        }
        if libc::getauxval(libc::AT_HWCAP2) & 2 != 0 {
            abilities |= HAS_FSGSBASE;
        }
        if is_x86_feature_detected!("avx") {
            abilities |= HAS_AVX;
        }
        (*a).abilities.store(abilities, Ordering::SeqCst);
        let len = 1 << 17;
        let stack = libc::mmap(null_mut(), len, r | w, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
        if stack == libc::MAP_FAILED {
            fail(7);
        }
        let alt = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: len };
        if libc::sigaltstack(&alt, null_mut()) != 0 {
            fail(8);
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = enter_handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigprocmask(libc::SIG_SETMASK, &action.sa_mask, null_mut());
        for s in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS] {
            if libc::sigaction(s, &action, null_mut()) != 0 {
                fail(9);
            }
        }
        if !install_filter() {
            fail(10);
        }
        // From here on nothing uses thread-local storage.
        std::arch::asm!("int3");
        libc::_exit(2)
    }
}

/// Lets only sigreturn, futex and exit through; other system calls raise SIGSYS.
///
/// # Safety
/// In the child only: it cannot be undone.
unsafe fn install_filter() -> bool {
    let op = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let ret = libc::BPF_RET | libc::BPF_K;
    let mut program = [
        op(load, 4, 0, 0),
        op(equal, 0xc000_003e, 0, 5), // AUDIT_ARCH_X86_64
        op(load, 0, 0, 0),
        op(equal, libc::SYS_rt_sigreturn as u32, 4, 0),
        op(equal, libc::SYS_futex as u32, 3, 0),
        op(equal, libc::SYS_exit_group as u32, 2, 0),
        op(equal, libc::SYS_exit as u32, 1, 0),
        op(ret, libc::SECCOMP_RET_TRAP, 0, 0),
        op(ret, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let list = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program is complete and lives through the calls.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, addr_of!(list)) == 0
    }
}

/// The handler's first instructions: the kernel clears TF, RF and DF for a handler, but leaves AC, NT and ID, with
/// which compiled code must not run.
#[unsafe(naked)]
unsafe extern "C" fn enter_handler() {
    std::arch::naked_asm!(
        "pushfq",
        "and dword ptr [rsp], {mask}",
        "popfq",
        "jmp {handler}",
        mask = const !0x24_4000i32,
        handler = sym handler,
    )
}

/// Order of the general registers in the frame, by their number.
const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// The end of one case and the start of the next.
unsafe extern "C" fn handler(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    let a = AREA.load(Ordering::Relaxed);
    // SAFETY: the kernel passes a valid frame; the area is mapped, and the parent leaves it alone but while this waits
    // for `go`.
    unsafe {
        let head = &*a;
        let regs = &mut (*context).uc_mcontext.gregs;
        let fx = (*context).uc_mcontext.fpregs.cast::<u8>();
        let mut index = head.current.load(Ordering::Relaxed);
        if index != NONE {
            let out = addr_of_mut!((*a).outcomes[index as usize]);
            save(signal, regs, fx, out, head.abilities.load(Ordering::Relaxed));
            (*out).collect(head.data, addr_of!((*a).background).cast());
            let case = addr_of!((*a).cases[index as usize]);
            apply_patches(&*case, head.data, addr_of!((*a).background).cast(), true);
            index += 1;
            head.current.store(index, Ordering::Relaxed);
        }
        if index >= head.count.load(Ordering::Relaxed) || index == NONE {
            let turn = head.go.load(Ordering::SeqCst);
            head.done.store(turn, Ordering::SeqCst);
            futex(addr_of!(head.done), libc::FUTEX_WAKE, 1, 0);
            while head.go.load(Ordering::SeqCst) == turn {
                futex(addr_of!(head.go), libc::FUTEX_WAIT, turn, 0);
            }
            index = head.current.load(Ordering::SeqCst);
        }
        let case = &*addr_of!((*a).cases[index as usize]);
        case.place(std::slice::from_raw_parts_mut(head.code, CODE_PAGES * 4096));
        apply_patches(case, head.data, addr_of!((*a).background).cast(), false);
        load(case, regs, fx, head.abilities.load(Ordering::Relaxed));
    }
}

unsafe fn save(signal: i32, regs: &mut [i64; 23], fx: *const u8, out: *mut Outcome, abilities: u32) {
    // SAFETY: `fx` is the frame's FXSAVE area, `out` an outcome of the shared area. Reading selectors and bases changes
    // nothing.
    unsafe {
        let r = &mut (*out).regs;
        for (v, i) in r.gpr.iter_mut().zip(GREGS) {
            *v = regs[i as usize] as u64;
        }
        r.rip = regs[libc::REG_RIP as usize] as u64;
        r.rflags = regs[libc::REG_EFL as usize] as u64;
        let selectors = regs[libc::REG_CSGSFS as usize] as u64;
        let (es, ds, fs, gs): (u16, u16, u16, u16);
        std::arch::asm!(
            "mov {0:x}, es", "mov {1:x}, ds", "mov {2:x}, fs", "mov {3:x}, gs",
            out(reg) es, out(reg) ds, out(reg) fs, out(reg) gs, options(nostack, preserves_flags),
        );
        r.sel = [es, selectors as u16, (selectors >> 48) as u16, ds, fs, gs];
        r.base = [0; 2];
        if abilities & HAS_FSGSBASE != 0 {
            std::arch::asm!(
                "rdfsbase {0}", "rdgsbase {1}",
                out(reg) r.base[0], out(reg) r.base[1], options(nostack, preserves_flags),
            );
        }
        r.fx = [0; 512];
        std::ptr::copy_nonoverlapping(fx, r.fx.as_mut_ptr(), 416);
        r.fx[28..32].fill(0);
        r.ymm = [0; 256];
        if abilities & HAS_AVX != 0 && *fx.add(512).cast::<u64>() & 4 != 0 {
            std::ptr::copy_nonoverlapping(fx.add(YMM_AT), r.ymm.as_mut_ptr(), 256);
        }
        (*out).vector = if signal == libc::SIGSYS { 0xff } else { regs[libc::REG_TRAPNO as usize] as u32 };
        (*out).error = regs[libc::REG_ERR as usize] as u32;
        (*out).cr2 = if (*out).vector == 14 { regs[libc::REG_CR2 as usize] as u64 } else { 0 };
    }
}

unsafe fn load(case: &Case, regs: &mut [i64; 23], fx: *mut u8, abilities: u32) {
    let r = &case.regs;
    for (v, i) in r.gpr.iter().zip(GREGS) {
        regs[i as usize] = *v as i64;
    }
    regs[libc::REG_RIP as usize] = r.rip as i64;
    regs[libc::REG_EFL as usize] = r.rflags as i64;
    let [es, cs, ss, ds, fs, gs] = r.sel;
    regs[libc::REG_CSGSFS as usize] = i64::from(cs) | i64::from(ss) << 48;
    // SAFETY: `fx` is the frame's XSAVE area: 512 bytes (of which the kernel uses 464-511), then the header. The
    // generator gives selectors that can be loaded; nothing else uses DS, ES, FS and GS here.
    unsafe {
        std::ptr::copy_nonoverlapping(r.fx.as_ptr(), fx, 28);
        std::ptr::copy_nonoverlapping(r.fx.as_ptr().add(32), fx.add(32), 384);
        let present = fx.add(512).cast::<u64>();
        // x87, SSE and AVX from here, all else in its initial state: of PKRU, that is all rights to all pages.
        let avx = abilities & HAS_AVX != 0;
        *present = if avx { 7 } else { 3 };
        if avx {
            std::ptr::copy_nonoverlapping(r.ymm.as_ptr(), fx.add(YMM_AT), 256);
        }
        std::arch::asm!(
            "mov es, {0:x}", "mov ds, {1:x}", "mov fs, {2:x}", "mov gs, {3:x}",
            in(reg) es, in(reg) ds, in(reg) fs, in(reg) gs, options(nostack, preserves_flags),
        );
    }
}
