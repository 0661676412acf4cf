//! The calls of the system, for the slab of stacks, the cores of workers, and faults: the
//! only file that calls the system.
//!
//! Linux only. Elsewhere stacks come from corosensei, one mapping each, threads are not
//! kept on cores (`no_sys.rs`), and faults are not explained.

use std::fmt;
use std::fs::File;
use std::io;
use std::mem::{self, ManuallyDrop, MaybeUninit};
use std::os::unix::fs::FileExt;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A range of addresses that this process has mapped for stacks.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
    /// Guards by `mprotect`, of which there can't be many.
    protected: AtomicUsize,
}

// SAFETY: a mapping belongs to the process. What is in it is not touched here.
unsafe impl Send for Mapping {}

/// `MADV_GUARD_INSTALL`, of Linux 6.13. The libc crate may not have it.
#[cfg(not(test))]
fn guard_install() -> libc::c_int {
    102
}

/// An advice that no system knows.
#[cfg(not(test))]
fn nonsense() -> libc::c_int {
    libc::c_int::MAX
}

#[cfg(test)]
use old_kernel::{guard_install, nonsense};

/// Whether the system makes no guards by `MADV_GUARD_INSTALL`.
static NO_GUARDS: AtomicBool = AtomicBool::new(false);

/// How many guards are made by `mprotect`. Each splits a mapping in three.
static PROTECTED: AtomicUsize = AtomicUsize::new(0);

impl Mapping {
    /// Reserves addresses. Memory comes with the first touch of each page.
    pub(crate) fn new(bytes: usize) -> io::Result<Mapping> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
        // SAFETY: a new private mapping, anywhere, which nobody knows yet.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // What takes any advice takes that for a guard as well, and makes none: the
        // user mode of QEMU does.
        // SAFETY: the range is the mapping just made, of which nobody knows yet.
        if unsafe { libc::madvise(start, bytes, nonsense()) } == 0 {
            NO_GUARDS.store(true, Ordering::Relaxed);
        }
        // A huge page would give 2 MiB to a stack that uses 4 KiB. A kernel
        // without huge pages refuses, and is right.
        // SAFETY: the range is the mapping just made; the advice changes no
        // contents.
        unsafe { libc::madvise(start, bytes, libc::MADV_NOHUGEPAGE) };
        Ok(Mapping {
            start: NonNull::new(start.cast()).expect("not mapped at null"),
            bytes,
            protected: AtomicUsize::new(0),
        })
    }

    /// The lowest address.
    pub(crate) fn start(&self) -> usize {
        self.start.as_ptr() as usize
    }

    /// Makes every access to a range fault.
    ///
    /// # Errors
    ///
    /// If the system can't, or if that would take too many of its mappings.
    ///
    /// # Panics
    ///
    /// If the range is not part of the mapping.
    pub(crate) fn guard(&self, offset: usize, bytes: usize) -> io::Result<()> {
        let range = self.range(offset, bytes);
        if !NO_GUARDS.load(Ordering::Relaxed) {
            // SAFETY: the range is part of this mapping, and nothing lives in it
            // yet: the caller makes the guard before it hands the stack out.
            let guarded = unsafe { libc::madvise(range, bytes, guard_install()) };
            if guarded == 0 {
                return Ok(());
            }
            // The answer of a system that doesn't know markers, or not for locked
            // memory; and those of a filter of system calls. Any other is about this
            // one range.
            let error = io::Error::last_os_error();
            let is_refused = matches!(
                error.raw_os_error(),
                Some(libc::EINVAL | libc::ENOSYS | libc::EPERM | libc::EACCES)
            );
            if !is_refused {
                return Err(error);
            }
            NO_GUARDS.store(true, Ordering::Relaxed);
        }
        // At the system's limit every allocation of the process fails, so that
        // others keep three quarters of it.
        if PROTECTED.fetch_add(1, Ordering::Relaxed) >= most_mappings() / 8 {
            PROTECTED.fetch_sub(1, Ordering::Relaxed);
            return Err(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                "without the guards of Linux 6.13 stacks take up to a quarter of the mappings \
                 that `vm.max_map_count` allows, two each",
            ));
        }
        // SAFETY: as above.
        if unsafe { libc::mprotect(range, bytes, libc::PROT_NONE) } != 0 {
            let error = io::Error::last_os_error();
            PROTECTED.fetch_sub(1, Ordering::Relaxed);
            return Err(error);
        }
        self.protected.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Unmaps all of it.
    ///
    /// # Safety
    ///
    /// Nothing may live in the mapping, nor point into it.
    pub(crate) unsafe fn unmap(self) {
        PROTECTED.fetch_sub(self.protected.load(Ordering::Relaxed), Ordering::Relaxed);
        // SAFETY: it was mapped by `new`, once; the caller has nothing in it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }

    fn range(&self, offset: usize, bytes: usize) -> *mut libc::c_void {
        assert!(
            offset
                .checked_add(bytes)
                .is_some_and(|end| end <= self.bytes),
            "a range outside of its mapping"
        );
        // SAFETY: the range was just found to be inside of the mapping.
        unsafe { self.start.as_ptr().add(offset) }.cast()
    }
}

/// No guard is larger. Foreign code may not probe its stack page by page, as Rust's does.
pub(crate) const LARGEST_GUARD: usize = 64 * 1024;

/// A mapping for one stack, with a guard. It is unmapped when this is dropped.
pub(crate) struct Pages(ManuallyDrop<Mapping>);

impl Pages {
    /// Maps so many bytes, rounded up, beside the guard.
    ///
    /// # Errors
    ///
    /// The system's, if it has no addresses or no guard for it.
    pub(crate) fn new(bytes: usize) -> io::Result<Pages> {
        let bytes = bytes
            .checked_add(LARGEST_GUARD)
            .and_then(|bytes| bytes.checked_next_multiple_of(page()))
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let pages = Pages(ManuallyDrop::new(Mapping::new(bytes)?));
        pages.0.guard(0, LARGEST_GUARD)?;
        Ok(pages)
    }

    /// The lowest address above the guard.
    pub(crate) fn lowest(&self) -> usize {
        self.0.start() + LARGEST_GUARD
    }

    /// The address behind the last byte.
    pub(crate) fn top(&self) -> usize {
        self.0.start() + self.0.bytes
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: it is taken once, here.
        let mapping = unsafe { ManuallyDrop::take(&mut self.0) };
        // SAFETY: whoever has used the addresses keeps this as long as anything lives
        // there.
        unsafe { mapping.unmap() };
    }
}

/// Gives the memory of a range back. It reads as zeros from then on.
///
/// Returns whether the system has taken it. If not, the memory just stays.
///
/// # Safety
///
/// The range must be whole pages of a [`Mapping`], and nothing may live in it.
pub(crate) unsafe fn discard(start: usize, bytes: usize) -> bool {
    let range = ptr::with_exposed_provenance_mut(start);
    // SAFETY: the caller's.
    unsafe { libc::madvise(range, bytes, libc::MADV_DONTNEED) == 0 }
}

/// Returns the start of the lowest page between two addresses that was ever touched, or
/// `end` if none was. It touches none.
///
/// `mincore` needs no file, but takes a page that was swapped out for one that was never
/// touched, and the deepest pages of a stack that waits are the first to go.
///
/// # Errors
///
/// If the system doesn't tell.
pub(crate) fn lowest_touched(start: usize, end: usize) -> io::Result<usize> {
    /// What the system says of one page.
    const ENTRY: usize = size_of::<u64>();
    /// It is in memory, or was swapped out.
    const TOUCHED: u64 = 1 << 63 | 1 << 62;

    // It may have been opened by a parent that has forked, whose pages it tells: so it is
    // not kept open.
    let map = File::open("/proc/self/pagemap")?;
    let page = page();
    let mut entries = [0; 512 * ENTRY];
    let (mut next, last) = (start / page, end.div_ceil(page));
    while next < last {
        let count = (last - next).min(entries.len() / ENTRY);
        let entries = &mut entries[..count * ENTRY];
        map.read_exact_at(entries, (next * ENTRY) as u64)?;
        let is_touched = |entry: &[u8]| {
            let entry = entry.try_into().map_or(0, u64::from_ne_bytes);
            entry & TOUCHED != 0
        };
        if let Some(index) = entries.chunks_exact(ENTRY).position(is_touched) {
            return Ok((next + index) * page);
        }
        next += count;
    }
    Ok(end)
}

/// The size of a page, in bytes.
pub(crate) fn page() -> usize {
    // SAFETY: it only reads a constant of the system.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4096)
}

/// The bits of a word of a set of cores.
const BITS: usize = libc::c_ulong::BITS as usize;

/// The cores that the calling thread may use, which a container may have limited.
pub(crate) fn allowed_cores() -> io::Result<Vec<usize>> {
    // 0 is the calling thread.
    let words = cores_of(0)?;
    let is_in = |core: &usize| (words[core / BITS] >> (core % BITS)) & 1 == 1;
    Ok((0..words.len() * BITS).filter(is_in).collect())
}

/// Keeps the calling thread on one core.
pub(crate) fn stay_on(core: usize) -> io::Result<()> {
    let mut words: Vec<libc::c_ulong> = vec![0; core / BITS + 1];
    words[core / BITS] = 1 << (core % BITS);
    use_cores(&words)
}

/// Lets the calling thread use the cores that the main thread may: it has inherited
/// those of the thread that has started it.
pub(crate) fn leave_core() -> io::Result<()> {
    // SAFETY: it only asks for a number, which is also that of the main thread.
    let main = unsafe { libc::getpid() };
    use_cores(&cores_of(main)?)
}

/// The set of cores of a thread, a bit for each.
fn cores_of(thread: libc::pid_t) -> io::Result<Vec<libc::c_ulong>> {
    // Room for 1,024 cores. A kernel that knows more refuses a smaller set.
    let mut words: Vec<libc::c_ulong> = vec![0; 1024 / BITS];
    loop {
        let bytes = mem::size_of_val(&*words);
        let set = words.as_mut_ptr().cast::<libc::cpu_set_t>();
        // SAFETY: the system writes `bytes` at most, and that is what there is.
        if unsafe { libc::sched_getaffinity(thread, bytes, set) } == 0 {
            return Ok(words);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) || words.len() > 1024 {
            return Err(error);
        }
        words.resize(words.len() * 2, 0);
    }
}

fn use_cores(words: &[libc::c_ulong]) -> io::Result<()> {
    let set = words.as_ptr().cast::<libc::cpu_set_t>();
    // SAFETY: the system reads that many bytes, and they are there; it takes
    // what is missing of its own set as zeros. 0 is the calling thread.
    match unsafe { libc::sched_setaffinity(0, mem::size_of_val(words), set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many mappings the system allows to a process.
pub(crate) fn most_mappings() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| {
        std::fs::read_to_string("/proc/sys/vm/max_map_count")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(65_530)
    })
}

/// What is said of a fault. It has its memory in itself, since the handler of a signal
/// must not allocate.
pub(crate) struct Message {
    text: [u8; 512],
    len: usize,
}

impl fmt::Write for Message {
    /// Takes as much of `text` as there is room for.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (place, &byte) in self.text[self.len..].iter_mut().zip(text.as_bytes()) {
            *place = byte;
            self.len += 1;
        }
        Ok(())
    }
}

impl Message {
    /// Writes it to standard error, if there is anything.
    fn show(&self) {
        if self.len > 0 {
            // SAFETY: the text is `len` bytes and more.
            unsafe { libc::write(libc::STDERR_FILENO, self.text.as_ptr().cast(), self.len) };
        }
    }
}

/// Says something of a fault at an address, or nothing.
type Explain = fn(usize, &mut Message);

/// Who explains faults, and what became of them before.
static FAULTS: OnceLock<(Explain, libc::sigaction)> = OnceLock::new();

/// Has the faults of this process explained on standard error. Then they go the way that
/// they went before: to the handler that was there, or to the end of the process.
///
/// Threads need an alternate stack for that, as those of std have.
///
/// # Safety
///
/// `explain` runs in the handler of a signal, in the midst of anything: it must neither
/// allocate, nor lock, nor unwind, nor touch what the thread may be changing.
pub(crate) unsafe fn explain_faults(explain: Explain) {
    let mut before = MaybeUninit::uninit();
    // SAFETY: it changes nothing, and there is room for the answer.
    if unsafe { libc::sigaction(libc::SIGSEGV, ptr::null(), before.as_mut_ptr()) } != 0 {
        return;
    }
    // SAFETY: the system has answered.
    let before: libc::sigaction = unsafe { before.assume_init() };
    // It is there before the handler is, which looks for it.
    if FAULTS.set((explain, before)).is_err() {
        return;
    }
    let mut action = before;
    action.sa_sigaction = faulted as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that the flags promise, and does only what a
    // handler may, by the condition on `explain`.
    unsafe { libc::sigaction(libc::SIGSEGV, &raw const action, ptr::null_mut()) };
}

extern "C" fn faulted(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some((explain, before)) = FAULTS.get() else {
        return;
    };
    // SAFETY: the system hands over what it knows of the signal.
    let known = unsafe { &*info };
    let is_sent = known.si_code <= 0;
    if !is_sent {
        // SAFETY: a signal that nobody has sent is of a fault, and has an address.
        let address = unsafe { known.si_addr() };
        let mut message = Message {
            text: [0; 512],
            len: 0,
        };
        explain(address.addr(), &mut message);
        message.show();
    }
    match before.sa_sigaction {
        libc::SIG_IGN if is_sent => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // What has faulted does so again, and the process ends.
            // SAFETY: it takes this handler away.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
            if is_sent {
                // SAFETY: it comes when this handler has returned.
                unsafe { libc::raise(signal) };
            }
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: who has set it has promised this signature, by the flag.
            let handler = unsafe { mem::transmute::<usize, Handler>(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: as above, without the flag.
            let handler = unsafe { mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler) };
            handler(signal);
        }
    }
}

/// Whether the system guards memory without a mapping for it.
#[cfg(test)]
pub(crate) fn has_guard_markers() -> bool {
    !NO_GUARDS.load(Ordering::Relaxed)
}

/// Systems that make no guards by advice, for tests.
#[cfg(test)]
pub(crate) mod old_kernel {
    use std::sync::atomic::AtomicI32;

    use super::Ordering;

    static GUARD_INSTALL: AtomicI32 = AtomicI32::new(102);
    static NONSENSE: AtomicI32 = AtomicI32::new(libc::c_int::MAX);

    /// Makes the system refuse markers from now on, as one before Linux 6.13 refuses
    /// any advice that it does not know. It is for the whole process, hence for a child.
    pub(crate) fn pretend() {
        GUARD_INSTALL.store(libc::c_int::MAX, Ordering::Relaxed);
    }

    /// Makes it take any advice, and do nothing.
    pub(crate) fn pretend_to_take_any_advice() {
        GUARD_INSTALL.store(libc::MADV_NORMAL, Ordering::Relaxed);
        NONSENSE.store(libc::MADV_NORMAL, Ordering::Relaxed);
    }

    /// Makes a filter of system calls refuse all advice from this thread, with `error`.
    pub(crate) fn refuse_advice(error: libc::c_int) {
        const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        const SKIP_UNLESS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
        let step = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
        let mut steps = [
            // The number of the call comes first.
            step(LOAD, 0, 0),
            step(SKIP_UNLESS, 1, libc::SYS_madvise as u32),
            step(RETURN, 0, libc::SECCOMP_RET_ERRNO | error as u32),
            step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog {
            len: steps.len() as libc::c_ushort,
            filter: steps.as_mut_ptr(),
        };
        // SAFETY: it only takes from this process the right to get more rights.
        let no_more = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        assert_eq!(no_more, 0);
        let (mode, program) = (libc::SECCOMP_MODE_FILTER, &raw const program);
        // SAFETY: the system copies the program, which is there.
        let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, program) };
        assert_eq!(set, 0, "{}", super::io::Error::last_os_error());
    }

    pub(super) fn guard_install() -> libc::c_int {
        GUARD_INSTALL.load(Ordering::Relaxed)
    }

    pub(super) fn nonsense() -> libc::c_int {
        NONSENSE.load(Ordering::Relaxed)
    }
}
