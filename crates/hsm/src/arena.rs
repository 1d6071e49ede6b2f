//! One arena of locked memory for every long-lived secret of the process.
//!
//! An unprivileged process may lock 8 MiB by default, so secrets share one mapping of fixed-size slots
//! rather than take a page each. The mapping is kept out of swap (`mlock`), out of core dumps
//! (`MADV_DONTDUMP`) and out of children (`MADV_WIPEONFORK`), and has a page that faults on either
//! side. Decision 0004 says what this does and does not protect from.
//!
//! **Invariant:** this is the only module of the workspace with `unsafe`. A slot has at most one
//! [`Secret`], and a free slot is all zeros.

#![expect(
    unsafe_code,
    reason = "locking and handing out raw memory; each block says why it is sound"
)]

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use keyward_env::Entropy;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, MprotectFlags, ProtFlags};
use rustix::process::{Resource, getrlimit};
use zeroize::Zeroize;

use crate::error::ArenaError;

/// Bytes of a slot, and so the longest [`Secret`]: the longest symmetric key in use (HMAC_512) fits.
pub const SLOT_BYTES: usize = 64;
/// Bytes that an arena locks at the start unless told otherwise: 65,536 secrets, and half of the 8 MiB that an
/// unprivileged process may lock by default.
pub const ARENA_BYTES_DEFAULT: usize = 4 << 20;
/// The smallest arena that is of use: 1,024 secrets. When even this cannot be locked, creation fails.
pub const ARENA_BYTES_MIN: usize = 64 << 10;
/// Bytes by which an arena grows: 16,384 secrets.
const STEP_BYTES: usize = 1 << 20;
/// What an arena that grows leaves of what the process may lock: others in it lock memory as well, such as an HSM's module.
const LEFT_FOR_OTHERS_BYTES: usize = 1 << 20;

/// How large an arena is, and whether it may do without a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaConfig {
    /// Bytes wanted at the start; at least [`ARENA_BYTES_MIN`], rounded up to whole pages. When the system does not
    /// let that much be locked, it is halved until it does, down to [`ARENA_BYTES_MIN`].
    pub bytes: usize,
    /// Whether an HSM has it grow until its cache fits in ([`Arena::growing`]).
    pub grows: bool,
    /// Go on with memory that may be swapped out when nothing can be locked. For machines where the
    /// limit cannot be raised and swap is off or encrypted; never the default.
    pub allow_unlocked: bool,
}

impl Default for ArenaConfig {
    fn default() -> Self {
        Self { bytes: ARENA_BYTES_DEFAULT, grows: true, allow_unlocked: false }
    }
}

/// A mapping of locked slots. Shared; lives until the last [`Secret`] in it is gone.
pub struct Arena {
    /// The whole mapping: a guard page, the slots, a guard page.
    mapping: NonNull<c_void>,
    mapping_bytes: usize,
    slots_start: NonNull<u8>,
    /// Whether what is used is locked.
    locked: bool,
    free: Mutex<FreeSlots>,
    lock: Lock,
}

/// The locking call, so that a refusal can be tested by a process that may lock everything.
type Lock = fn(*mut c_void, usize) -> Result<(), Errno>;

/// Slots that are free: those given back, and those never used.
struct FreeSlots {
    returned: Vec<u32>,
    never_used: u32,
    /// Slots that may be used, which are locked; further ones are mapped.
    usable: u32,
    mapped: u32,
}

// SAFETY: the mapping belongs to the arena alone and does not move. Its bytes are reached through
// `Secret` only, which owns its slot exclusively; which slots are owned is kept under a mutex.
unsafe impl Send for Arena {}
// SAFETY: as above; `&Arena` by itself gives no access to a slot's bytes.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps and locks an arena.
    ///
    /// # Errors
    /// [`ArenaError::NotLocked`] when not even [`ARENA_BYTES_MIN`] can be locked and
    /// `allow_unlocked` is off; [`ArenaError::NotMapped`] when the system has no memory to give.
    pub fn new(config: &ArenaConfig) -> Result<Arc<Self>, ArenaError> {
        Self::growing(config, 0)
    }

    /// [`Arena::new`], and with more secrets it grows up to `bytes_max`, in steps of 1 MiB, as far as the system lets more
    /// be locked. Memory is taken only then.
    ///
    /// # Errors
    /// As [`Arena::new`].
    pub fn growing(config: &ArenaConfig, bytes_max: usize) -> Result<Arc<Self>, ArenaError> {
        Self::new_with_lock(config, bytes_max, |start, bytes| {
            // SAFETY: `start` and `bytes` describe pages of a mapping that an arena has made and still has; locking changes
            // no contents.
            unsafe { mm::mlock(start, bytes) }
        })
    }

    fn new_with_lock(
        config: &ArenaConfig,
        bytes_max: usize,
        lock: Lock,
    ) -> Result<Arc<Self>, ArenaError> {
        let page_bytes = rustix::param::page_size();
        let whole_pages = |bytes: usize| {
            let pages = bytes.checked_next_multiple_of(page_bytes);
            pages.ok_or(ArenaError::NotMapped { bytes, source: Errno::NOMEM })
        };
        let bytes_min = ARENA_BYTES_MIN.next_multiple_of(page_bytes);
        let bytes_wanted = whole_pages(config.bytes.max(bytes_min))?;
        let bytes_max = whole_pages(bytes_max.max(bytes_wanted))?;
        let mut arena = Self::map(bytes_max, page_bytes, lock)?;
        let mut bytes = bytes_wanted;
        arena.locked = loop {
            match lock(arena.slots_start.as_ptr().cast(), bytes) {
                Ok(()) => break true,
                Err(_) if bytes > bytes_min => {
                    bytes = (bytes / 2).next_multiple_of(page_bytes).max(bytes_min);
                }
                Err(_) if config.allow_unlocked => {
                    bytes = bytes_max;
                    break false;
                }
                Err(source) => {
                    let limit_bytes = getrlimit(Resource::Memlock).current;
                    return Err(ArenaError::NotLocked { bytes, limit_bytes, source });
                }
            }
        };
        arena.free.get_mut().usable = slots_in(bytes)?;
        Ok(Arc::new(arena))
    }

    /// Maps `bytes` (whole pages) between two guard pages.
    fn map(bytes: usize, page_bytes: usize, lock: Lock) -> Result<Self, ArenaError> {
        let not_mapped = |source| ArenaError::NotMapped { bytes, source };
        let mapped = slots_in(bytes)?;
        let mapping_bytes = bytes + 2 * page_bytes;
        // SAFETY: a fresh private anonymous mapping at an address of the kernel's choosing overlaps
        // nothing that anybody refers to.
        let mapping = unsafe {
            mm::mmap_anonymous(
                std::ptr::null_mut(),
                mapping_bytes,
                ProtFlags::empty(),
                MapFlags::PRIVATE,
            )
        }
        .map_err(not_mapped)?;
        let mapping = NonNull::new(mapping).ok_or_else(|| not_mapped(Errno::NOMEM))?;
        // SAFETY: one page into a mapping of `bytes` and two pages is inside it.
        let slots_start = unsafe { mapping.cast::<u8>().byte_add(page_bytes) };
        let arena = Self {
            mapping,
            mapping_bytes,
            slots_start,
            locked: false,
            free: Mutex::new(FreeSlots { returned: Vec::new(), never_used: 0, usable: 0, mapped }),
            lock,
        };
        let start: *mut c_void = slots_start.as_ptr().cast();
        // SAFETY: the pages between the guards are ours and nothing refers to them yet. On failure
        // `arena` is dropped, which unmaps them.
        unsafe { mm::mprotect(start, bytes, MprotectFlags::READ | MprotectFlags::WRITE) }
            .map_err(not_mapped)?;
        for advice in [Advice::LinuxDontDump, Advice::LinuxWipeOnFork] {
            // SAFETY: both advices leave the contents of this process's pages as they are.
            // A kernel that does not know one of them refuses it, and the other protections stand:
            // core dumps are also switched off for the process, and Keyward does not fork.
            let _ = unsafe { mm::madvise(start, bytes, advice) };
        }
        Ok(arena)
    }

    /// How many secrets the arena holds without growing.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.free.lock().usable as usize
    }

    /// How many more secrets fit without growing.
    #[must_use]
    pub fn slots_free(&self) -> usize {
        let free = self.free.lock();
        free.returned.len() + (free.usable - free.never_used) as usize
    }

    /// Locks more of the mapping. False: all of it is locked, or no more may be.
    fn grow(&self, free: &mut FreeSlots) -> bool {
        let bytes = (free.mapped - free.usable) as usize * SLOT_BYTES;
        if bytes == 0 || !self.locked {
            return false;
        }
        let (step, left) = (bytes.min(STEP_BYTES), LEFT_FOR_OTHERS_BYTES);
        let start = self.slot_start(free.usable).as_ptr();
        // What others need is locked for a moment, where the mapping has it.
        if (self.lock)(start.cast(), bytes.min(step + left)).is_err() {
            // It stays at what it has; not even a part stays locked.
            unlock(start, bytes.min(step + left));
            free.mapped = free.usable;
            return false;
        }
        if bytes > step {
            unlock(start.wrapping_add(step), (bytes - step).min(left));
        }
        free.usable += u32::try_from(step / SLOT_BYTES).unwrap_or(u32::MAX);
        true
    }

    /// False when the memory could not be locked and `allow_unlocked` was set.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.locked
    }

    /// A secret of `len` zero bytes, to be filled in place.
    pub(crate) fn zeroed(self: &Arc<Self>, len: usize) -> Result<Secret, ArenaError> {
        let len = match u8::try_from(len) {
            Ok(len) if (1..=SLOT_BYTES).contains(&usize::from(len)) => len,
            _ => return Err(ArenaError::Length { bytes: len }),
        };
        let mut free = self.free.lock();
        let slot = match free.returned.pop() {
            Some(slot) => slot,
            None if free.never_used < free.usable || self.grow(&mut free) => {
                free.never_used += 1;
                free.never_used - 1
            }
            None => return Err(ArenaError::Exhausted { slots: free.usable as usize }),
        };
        Ok(Secret { arena: Arc::clone(self), slot, len })
    }

    /// A secret with a copy of `bytes`. The caller wipes its own.
    pub(crate) fn copy_in(self: &Arc<Self>, bytes: &[u8]) -> Result<Secret, ArenaError> {
        let mut secret = self.zeroed(bytes.len())?;
        secret.expose_mut().copy_from_slice(bytes);
        Ok(secret)
    }

    /// A secret of `len` random bytes, which are written nowhere else.
    pub(crate) fn random(
        self: &Arc<Self>,
        entropy: &dyn Entropy,
        len: usize,
    ) -> Result<Secret, ArenaError> {
        let mut secret = self.zeroed(len)?;
        entropy.fill(secret.expose_mut());
        Ok(secret)
    }

    fn slot_start(&self, slot: u32) -> NonNull<u8> {
        debug_assert!(slot as usize * SLOT_BYTES < self.mapping_bytes);
        // SAFETY: slot numbers come from `zeroed` and `grow` alone and are below the number of slots that are mapped, so
        // that the offset stays within the slots, which are one mapping.
        unsafe { self.slots_start.add(slot as usize * SLOT_BYTES) }
    }

    #[cfg(test)]
    fn free_slot_bytes(&self, slot: u32) -> [u8; SLOT_BYTES] {
        // SAFETY: the slot is inside the mapping, and the tests that call this have dropped its secret.
        unsafe { self.slot_start(slot).cast().read() }
    }
}

fn slots_in(bytes: usize) -> Result<u32, ArenaError> {
    let slots = u32::try_from(bytes / SLOT_BYTES);
    slots.map_err(|_| ArenaError::NotMapped { bytes, source: Errno::NOMEM })
}

/// Takes the lock off pages of an arena that hold no secret.
fn unlock(start: *mut u8, bytes: usize) {
    // SAFETY: only `grow` calls this, with pages of its own mapping; unlocking changes no contents. There is nothing to do
    // about an error: what stays locked is given back with the mapping.
    let _ = unsafe { mm::munlock(start.cast(), bytes) };
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: every `Secret` holds the arena, so none is left, and nothing else refers to the
        // mapping. Unmapping unlocks. Every slot was wiped when its secret was dropped.
        // An error would mean that the range is not ours; there is nothing to do about it here.
        let _ = unsafe { mm::munmap(self.mapping.as_ptr(), self.mapping_bytes) };
    }
}

/// 1 to [`SLOT_BYTES`] secret bytes in a slot of an [`Arena`], wiped on drop. It cannot be printed, cloned
/// or serialised, and its bytes can be read inside this crate only.
pub struct Secret {
    arena: Arc<Arena>,
    slot: u32,
    len: u8,
}

impl Secret {
    /// Number of bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a secret is never empty")]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    pub(crate) fn expose(&self) -> &[u8] {
        let start = self.arena.slot_start(self.slot);
        // SAFETY: the slot belongs to this secret alone until it is dropped, its bytes are initialised
        // (the kernel maps zeros), and `&self` keeps writers away.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.len()) }
    }

    pub(crate) fn expose_mut(&mut self) -> &mut [u8] {
        let start = self.arena.slot_start(self.slot);
        // SAFETY: as in `expose`, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.len()) }
    }

    /// The bytes as a key of `N` bytes.
    pub(crate) fn expose_key<const N: usize>(&self) -> Result<&[u8; N], ArenaError> {
        self.expose()
            .try_into()
            .map_err(|_| ArenaError::KeyLength { bytes: self.len(), expected: N })
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.expose_mut().zeroize();
        self.arena.free.lock().returned.push(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SeededEntropy, small_arena};

    #[test]
    fn the_slot_of_a_dropped_secret_is_zero_and_used_again() {
        let arena = small_arena();
        let secret = arena.random(&SeededEntropy::new(1), SLOT_BYTES).unwrap();
        let slot = secret.slot;
        assert!(secret.expose().iter().any(|b| *b != 0));
        drop(secret);
        assert_eq!(arena.free_slot_bytes(slot), [0; SLOT_BYTES]);
        assert_eq!(arena.zeroed(1).unwrap().slot, slot);
    }

    #[test]
    fn secrets_do_not_overlap() {
        let arena = small_arena();
        let secrets: Vec<Secret> =
            (0..100u8).map(|i| arena.copy_in(&[i; SLOT_BYTES]).unwrap()).collect();
        for (i, secret) in (0..100u8).zip(&secrets) {
            assert_eq!(secret.expose(), [i; SLOT_BYTES]);
        }
    }

    #[test]
    fn lengths_outside_a_slot_are_refused_and_take_no_slot() {
        let arena = small_arena();
        for bytes in [0, SLOT_BYTES + 1, 256, 257, 320] {
            assert!(
                matches!(arena.zeroed(bytes), Err(ArenaError::Length { bytes: b }) if b == bytes)
            );
        }
        assert_eq!(arena.slots_free(), arena.slots());
        assert!(matches!(
            arena.zeroed(16).unwrap().expose_key::<32>(),
            Err(ArenaError::KeyLength { bytes: 16, expected: 32 })
        ));
    }

    #[test]
    fn an_exhausted_arena_says_so_and_recovers() {
        let arena = small_arena();
        let mut secrets: Vec<Secret> =
            (0..arena.slots()).map(|_| arena.zeroed(32).unwrap()).collect();
        assert_eq!(arena.slots_free(), 0);
        assert!(matches!(arena.zeroed(32), Err(ArenaError::Exhausted { slots: 1024 })));
        secrets.pop();
        assert_eq!(arena.slots_free(), 1);
        assert!(arena.zeroed(32).is_ok());
    }

    #[test]
    fn an_arena_shrinks_to_what_can_be_locked() {
        let config = ArenaConfig::default();
        let arena = Arena::new_with_lock(&config, 0, |_, bytes| {
            if bytes <= 1 << 20 { Ok(()) } else { Err(Errno::NOMEM) }
        })
        .unwrap();
        assert_eq!(arena.slots() * SLOT_BYTES, 1 << 20);
        assert!(arena.is_locked());
    }

    /// Slots that an arena of 64 KiB has after so many were taken that it grows to, with what the system lets it lock at
    /// once.
    fn grown(bytes_max: usize, lock: Lock, taken: usize) -> usize {
        let config = ArenaConfig { bytes: ARENA_BYTES_MIN, grows: false, allow_unlocked: false };
        let arena = Arena::new_with_lock(&config, bytes_max, lock).unwrap();
        assert_eq!(
            arena.slots(),
            ARENA_BYTES_MIN / SLOT_BYTES,
            "nothing is taken before it is used"
        );
        let secrets: Vec<_> = (0..taken).map_while(|_| arena.copy_in(b"key").ok()).collect();
        assert!(secrets.iter().all(|secret| secret.expose() == b"key"));
        assert_eq!(secrets.len(), taken.min(arena.slots()));
        assert_eq!(arena.slots_free(), arena.slots() - secrets.len());
        arena.slots()
    }

    #[test]
    fn an_arena_grows_with_its_secrets_as_far_as_it_may() {
        let step = STEP_BYTES / SLOT_BYTES;
        let start = ARENA_BYTES_MIN / SLOT_BYTES;
        let bytes_max = ARENA_BYTES_MIN + 2 * STEP_BYTES + 4096;
        let all = bytes_max / SLOT_BYTES;
        for (taken, slots) in [
            (start, start),
            (start + 1, start + step),
            (start + step, start + step),
            (start + step + 1, start + 2 * step),
            (all - 1, all),
            (all, all),
            (all + 1, all),
        ] {
            assert_eq!(grown(bytes_max, |_, _| Ok(()), taken), slots, "{taken} taken");
        }
        // Not a step without what others need.
        let half = |_, bytes| if bytes <= STEP_BYTES { Ok(()) } else { Err(Errno::NOMEM) };
        assert_eq!(grown(bytes_max, half, all), start);
        // A rest that is smaller needs no more than itself.
        assert_eq!(grown(ARENA_BYTES_MIN + 4096, half, all), start + 4096 / SLOT_BYTES);
    }

    #[test]
    fn the_smallest_arena_is_tried_before_giving_up_whatever_was_asked_for() {
        for bytes in [0, 1, ARENA_BYTES_MIN, ARENA_BYTES_MIN + 1, 100 << 10, 5 << 20] {
            let config = ArenaConfig { bytes, ..ArenaConfig::default() };
            let arena = Arena::new_with_lock(&config, 0, |_, bytes| {
                if bytes <= ARENA_BYTES_MIN { Ok(()) } else { Err(Errno::NOMEM) }
            })
            .unwrap();
            assert_eq!(arena.slots() * SLOT_BYTES, ARENA_BYTES_MIN, "{bytes}");
        }
    }

    #[test]
    fn an_arena_beyond_all_memory_is_an_error_and_no_panic() {
        for bytes in [usize::MAX, usize::MAX - (1 << 20), 1 << 60] {
            let config = ArenaConfig { bytes, grows: false, allow_unlocked: true };
            let refused = Arena::new_with_lock(&config, 0, |_, _| Ok(()));
            assert!(matches!(refused, Err(ArenaError::NotMapped { .. })), "{bytes}");
        }
    }

    #[test]
    fn a_refused_lock_is_an_error_that_names_the_way_out() {
        let config = ArenaConfig::default();
        let Err(error) = Arena::new_with_lock(&config, 0, |_, _| Err(Errno::PERM)) else {
            panic!("the lock was refused");
        };
        assert!(matches!(error, ArenaError::NotLocked { bytes: ARENA_BYTES_MIN, .. }));
        assert!(error.to_string().contains("ulimit -l"), "{error}");
        assert!(error.to_string().contains("allow_unlocked"), "{error}");
    }

    #[test]
    fn an_unlocked_arena_is_given_only_on_request_and_says_so() {
        let config = ArenaConfig { allow_unlocked: true, ..ArenaConfig::default() };
        let arena = Arena::new_with_lock(&config, 0, |_, _| Err(Errno::NOMEM)).unwrap();
        assert!(!arena.is_locked());
        assert_eq!(arena.slots(), ARENA_BYTES_DEFAULT / SLOT_BYTES);
        assert_eq!(arena.copy_in(b"works").unwrap().expose(), b"works");
    }

    /// What the kernel says is locked of the mapping, in KiB.
    fn locked_kib(arena: &Arena) -> usize {
        let start = format!("{:x}-", arena.slots_start.as_ptr().addr());
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
        let line = lines.find_map(|line| line.strip_prefix("Locked:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn what_an_arena_grows_to_is_locked_and_what_it_does_not_use_is_not() {
        let bytes_max = ARENA_BYTES_MIN + 3 * STEP_BYTES;
        let config = ArenaConfig { bytes: ARENA_BYTES_MIN, grows: false, allow_unlocked: false };
        let arena = Arena::growing(&config, bytes_max).unwrap();
        assert_eq!(locked_kib(&arena), ARENA_BYTES_MIN >> 10);
        let secrets: Vec<_> = (0..=arena.slots()).map(|_| arena.zeroed(32).unwrap()).collect();
        assert_eq!(arena.slots() * SLOT_BYTES, ARENA_BYTES_MIN + STEP_BYTES);
        assert_eq!(locked_kib(&arena), (ARENA_BYTES_MIN + STEP_BYTES) >> 10);
        drop(secrets);
    }

    /// What `/proc/self/smaps` says about the mapping, not what we asked for.
    #[test]
    fn the_kernel_knows_the_mapping_as_locked_not_dumped_and_wiped_on_fork() {
        let config = ArenaConfig { bytes: ARENA_BYTES_MIN, grows: false, allow_unlocked: false };
        let arena = Arena::new(&config).unwrap();
        let start = format!("{:x}-", arena.slots_start.as_ptr().addr());
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let flags = maps
            .lines()
            .skip_while(|line| !line.starts_with(&start))
            .find_map(|line| line.strip_prefix("VmFlags:"))
            .unwrap();
        for flag in ["lo", "dd", "wf"] {
            assert!(flags.split_whitespace().any(|f| f == flag), "{flag} is not in {flags}");
        }
    }

    #[test]
    fn secrets_may_outlive_the_last_handle_to_their_arena_and_cross_threads() {
        let secret = small_arena().copy_in(b"still here").unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| assert_eq!(secret.expose(), b"still here"));
        });
    }
}
