//! A file mapped into memory: the one place of this crate with code that the compiler cannot check.

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::{Advice, MmapRaw};

use crate::files::MappedFile;

/// A shared mapping of a whole file.
pub(crate) struct Mapped(MmapRaw);

impl Mapped {
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        let memory = MmapRaw::map_raw(file)?;
        // A copy of the process for a moment (fork and exec) must not share it.
        let _ = memory.advise(Advice::DontFork);
        Ok(Self(memory))
    }

    fn check(&self, at: usize, len: usize) {
        let fits = at.checked_add(len).is_some_and(|end| end <= self.0.len());
        assert!(fits, "{len} bytes at {at} of a mapping of {}", self.0.len());
    }
}

#[expect(unsafe_code, reason = "memory that other processes may see has no safe type")]
impl MappedFile for Mapped {
    fn write(&self, at: usize, bytes: &[u8]) {
        self.check(at, bytes.len());
        // SAFETY: the range lies within the mapping (checked), which lives as long as `self`; `bytes` is other
        // memory, for no reference into the mapping is ever made. Nobody reads or writes the range meanwhile: that
        // is the promise of `MappedFile`'s callers, which `Ring` keeps by its positions.
        unsafe { self.0.as_mut_ptr().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        self.check(at, bytes.len());
        // SAFETY: as above, the other way round.
        unsafe { self.0.as_ptr().add(at).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Pages that the kernel has written back are read-only until the next write, which may then wait for the file
    /// system's journal. Here that is done ahead. Kernels before 5.14 cannot: then a write does it.
    fn prepare(&self, range: Range<usize>) {
        let _ = self.0.advise_range(Advice::PopulateWrite, range.start, range.len());
    }
}
